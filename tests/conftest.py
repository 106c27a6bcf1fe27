"""Scripts are run as their users run them, or their functions are called: never their source text between marks.

    inside        the whole script in this process, on one rank: the quickest way
    before_loop   the script's names as they are when its loop begins
    run           the script in a process of its own, on one rank or several: where signals, ranks or its end matter
    torchrun      the same, started by torchrun: seconds slower, where torchrun's own part matters
"""
import ast
import fcntl
import json
import os
import runpy
import socket
import subprocess
import sys
import time

import process
import pytest
from rows import read_rows

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# before torch is imported, here and in the fork server
os.environ |= {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'WANDB_MODE': 'offline'}


class Started:
    """A script on so many ranks, each a fork of a process that has torch."""

    def __init__(self, script, *flags, ranks=1, cwd=ROOT):
        self.args = [script, *flags]
        folder = Started.folder()
        self.texts = [f'{folder}/output.txt', f'{folder}/errors.txt']
        port = free_port()
        self.processes = []
        for rank in range(ranks):
            environment = dict(os.environ)
            if ranks > 1:
                environment |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(ranks),
                                'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
            self.processes.append(process.start(os.path.join(ROOT, script), flags, environment, cwd, *self.texts))

    def send_signal(self, number):
        """To every rank, as torchrun does."""
        for rank in self.processes:
            os.kill(rank.pid, number)

    def ended(self):
        return not all(rank.is_alive() for rank in self.processes)

    def wait(self, seconds=300):
        """What subprocess.run would return."""
        code = process.wait_for(self.processes, seconds)
        texts = []
        for path in self.texts:
            with open(path) as f:
                texts.append(f.read())
        return subprocess.CompletedProcess(self.args, code, *texts)


def launch(script, *flags, ranks=1, cwd=ROOT, check=True):
    """Run a script on so many ranks, in forks; returns what subprocess.run would."""
    done = Started(script, *flags, ranks=ranks, cwd=cwd).wait()
    assert done.returncode == 0 or not check, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def launch_in_background(script, *flags, out_dir, ranks=1, steps=3):
    """Start a script; returns its Started once its log has so many lines."""
    started = Started(script, *flags, f'--out_dir={out_dir}', ranks=ranks)
    wait_for_steps(out_dir, steps, started.ended)
    if started.ended():
        done = started.wait()
        raise AssertionError(done.stdout[-3000:] + done.stderr[-3000:])
    return started


def wait_for_steps(out_dir, steps, ended):
    """Until the log has so many lines, ended() or two minutes have passed."""
    log, end = f'{out_dir}/log.jsonl', time.time() + 120
    while time.time() < end and not ended():
        if os.path.exists(log) and open(log).read().count('\n') >= steps:
            return
        time.sleep(0.02)


def start_torchrun(script, *flags, ranks=2, nodes=1, cwd=ROOT):
    """torchrun itself, once for each node, with so many ranks each; returns the Popen objects."""
    meet = ['--nnodes', str(nodes), '--master-addr', '127.0.0.1', '--master-port', str(free_port())]
    started = []
    for node in range(nodes):
        where = ['--standalone'] if nodes == 1 else [*meet, '--node-rank', str(node)]
        command = [sys.executable, '-m', 'torch.distributed.run', *where, '--nproc-per-node', str(ranks)]
        started.append(subprocess.Popen([*command, os.path.join(ROOT, script), *flags], cwd=cwd,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return started


def torchrun(script, *flags, ranks=2, nodes=1, cwd=ROOT, check=True):
    """Run a script under torchrun; returns the last node's completed process, with its text."""
    for started in start_torchrun(script, *flags, ranks=ranks, nodes=nodes, cwd=cwd):
        output, errors = started.communicate(timeout=300)
        assert started.returncode == 0 or not check, output[-3000:] + errors[-3000:]
    return subprocess.CompletedProcess(started.args, started.returncode, output, errors)


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


@pytest.fixture(scope='session', autouse=True)
def folder_of_outputs(tmp_path_factory):
    Started.folder = lambda: tmp_path_factory.mktemp('launch')


@pytest.fixture(scope='session')
def run():
    return launch


def as_command(monkeypatch, script, *flags):
    """What a script finds when it is the command: its arguments; the signals stay pytest's."""
    import run as run_module
    monkeypatch.setattr(sys, 'argv', [script, *flags])
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
    monkeypatch.setattr(run_module, 'catch_stop', run_module.Stop)


def inside(monkeypatch, script, *flags):
    """Run a whole script in this process, on one rank; returns its names."""
    as_command(monkeypatch, script, *flags)
    return runpy.run_path(os.path.join(ROOT, script), run_name='__main__')


def before_loop(monkeypatch, script, *flags):
    """The names of a script when its loop, the last `while` of the file, begins: its functions can be called."""
    as_command(monkeypatch, script, *flags)
    path = os.path.join(ROOT, script)
    with open(path) as f:
        statements = ast.parse(f.read()).body
    loop = max(i for i, statement in enumerate(statements) if isinstance(statement, ast.While))
    namespace = {'__file__': path, '__name__': '__main__', '__doc__': ''}
    exec(compile(ast.Module(statements[:loop], []), path, 'exec'), namespace)
    return namespace


def read_log(out_dir):
    with open(os.path.join(out_dir, 'log.jsonl')) as f:
        return [json.loads(line) for line in f]


@pytest.fixture(scope='session')
def rows(tmp_path_factory):
    """200 rows of sums, which the start model solves in part: a start takes a second less than with all."""
    path = tmp_path_factory.mktemp('rows') / 'rows.jsonl'
    path.write_text('\n'.join(json.dumps({k: v for k, v in row.items() if k != '_where'})
                              for row in read_rows('sums:train')[0][:200]))
    return str(path)


@pytest.fixture(scope='session')
def start_model(tmp_path_factory):
    """A start model for GRPO that already solves something, made by sft.py once for all of xdist's workers."""
    if 'NANOPOST_START_MODEL' in os.environ:
        return os.environ['NANOPOST_START_MODEL']  # mutants.py has made it
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent  # each worker has a folder of its own in it
    out = str(folder / 'start_model')
    with open(out + '.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(out):
            # sums: 250 steps are enough for a model that solves some of them
            launch('sft.py', '--data=sums:base', f'--out_dir={out}', '--max_steps=250', '--eval_data=', '--eval_prompts=')
    return out


@pytest.fixture(scope='session')
def patched(tmp_path_factory):
    """patched(name): a folder with the code under papers/NAME.diff, made once."""
    from paper_tools import patched_tree
    trees = {}

    def tree_of(name):
        if name not in trees:
            trees[name] = patched_tree(name, tmp_path_factory.mktemp(name))
        return trees[name]
    return tree_of


@pytest.fixture(scope='session')
def namespaces(tmp_path_factory):
    """namespaces(path, *flags): the names of a script, of whatever tree, before its loop, on a tiny model and four sums; made once."""
    from paper_tools import names_of
    folder = tmp_path_factory.mktemp('names')
    rows = [{'prompt': f'{i}+4', 'answer': str(i + 4), 'demonstration': f'{i} {i + 4} #### {i + 4}', 'dataset': 'sums'} for i in range(4)]
    (folder / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    made = {}

    def names(path, *flags):
        if (path, flags) not in made:
            script = os.path.basename(path)
            # the advantages as config/tiny.py has them
            of_script = ['--eval_data='] if script == 'sft.py' else ['--advantage_std=False']
            made[path, flags] = names_of(path, '--model=tiny', f'--data={folder}/rows.jsonl', '--eval_prompts=', *of_script,
                                         f'--out_dir={folder}/run{len(made)}', *flags)
        return made[path, flags]
    return names
