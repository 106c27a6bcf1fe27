"""Scripts are run as their users run them, or their functions are called: never their source text between marks.

    run           the script in a process of its own, on one rank or several
    inside        the whole script in this process: the quickest way, on one rank
    before_loop   the script's names as they are when its loop begins
"""
import ast
import fcntl
import json
import os
import runpy
import socket
import subprocess
import sys

import process
import pytest
from rows import read_rows

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# before torch is imported, here and in the fork server
os.environ |= {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'WANDB_MODE': 'offline'}


def launch(script, *flags, ranks=1, cwd=ROOT, check=True):
    """Run a script on so many ranks, in forks of a process that has torch; returns what subprocess.run would."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    folder = launch.folder()
    output, errors = f'{folder}/output.txt', f'{folder}/errors.txt'
    processes = []
    for rank in range(ranks):
        environment = dict(os.environ)
        if ranks > 1:
            environment |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(ranks),
                            'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
        processes.append(process.start(os.path.join(ROOT, script), flags, environment, cwd, output, errors))
    code = process.wait_for(processes, 300)
    texts = []
    for path in (output, errors):
        with open(path) as f:
            texts.append(f.read())
    assert code == 0 or not check, texts[0][-3000:] + texts[1][-3000:]
    return subprocess.CompletedProcess([script, *flags], code, *texts)


def torchrun(script, *flags, ranks=2, nodes=1, cwd=ROOT, check=True):
    """Run a script under torchrun, on so many ranks of each node; returns the last node's completed process, with its text."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        meet = ['--nnodes', str(nodes), '--master-addr', '127.0.0.1', '--master-port', str(free.getsockname()[1])]
    processes = []
    for node in range(nodes):
        where = ['--standalone'] if nodes == 1 else [*meet, '--node-rank', str(node)]
        command = [sys.executable, '-m', 'torch.distributed.run', *where, '--nproc-per-node', str(ranks)]
        processes.append(subprocess.Popen([*command, os.path.join(ROOT, script), *flags], cwd=cwd,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for started in processes:
        output, errors = started.communicate(timeout=300)
        assert started.returncode == 0 or not check, output[-3000:] + errors[-3000:]
    return subprocess.CompletedProcess(started.args, started.returncode, output, errors)


@pytest.fixture(scope='session', autouse=True)
def folder_of_outputs(tmp_path_factory):
    launch.folder = lambda: tmp_path_factory.mktemp('launch')


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
    """200 rows of the embedded task: a start takes a second less than with all."""
    path = tmp_path_factory.mktemp('rows') / 'rows.jsonl'
    path.write_text('\n'.join(json.dumps({k: v for k, v in row.items() if k != '_where'})
                              for row in read_rows('sums:train')[0][:200]))
    return str(path)


@pytest.fixture(scope='session')
def start_model(tmp_path_factory):
    """A start model for GRPO that already solves something, made by sft.py once for all of xdist's workers."""
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent  # each worker has a folder of its own in it
    out = str(folder / 'start_model')
    with open(out + '.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(out):
            launch('sft.py', f'--out_dir={out}', '--max_steps=250', '--eval_data=', '--eval_prompts=')
    return out
