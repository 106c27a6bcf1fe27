"""Scripts are run as their users run them: as processes. `run` is that, with the tiny model and few steps."""
import fcntl
import json
import os
import runpy
import socket
import subprocess
import sys
import textwrap

import pytest
from rows import read_rows

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def launch(script, *flags, ranks=1, nodes=1, cwd=ROOT, check=True):
    """Run a script, under torchrun when ranks (of each node) > 1; returns the completed process, the last node's, with its text."""
    script, env = os.path.join(ROOT, script), {**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'WANDB_MODE': 'offline'}
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        meet = ['--nnodes', str(nodes), '--master-addr', '127.0.0.1', '--master-port', str(free.getsockname()[1])]
    processes = []
    for node in range(nodes):
        torchrun = ['-m', 'torch.distributed.run', *(['--standalone'] if nodes == 1 else [*meet, '--node-rank', str(node)]),
                    '--nproc-per-node', str(ranks)]
        processes.append(subprocess.Popen([sys.executable, *(torchrun if ranks > 1 else []), script, *flags], cwd=cwd, env=env,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0 or not check, output[-3000:] + errors[-3000:]
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.fixture(scope='session')
def run():
    return launch


def inside(monkeypatch, script, *flags):
    """Run a whole script in this process, on one rank; returns its names. Saves the seconds that imports take."""
    monkeypatch.setattr(sys, 'argv', [script, *flags])
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
    monkeypatch.setattr('checkpoint.catch_stop', list)  # the signals stay pytest's
    return runpy.run_path(os.path.join(ROOT, script), run_name='__main__')


def script_until_loop(monkeypatch, script, *flags):
    """The namespace of a script run up to its loop, and the source of its `# loss, backward` block."""
    monkeypatch.setattr(sys, 'argv', [script, *flags])
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
    monkeypatch.setattr('checkpoint.catch_stop', list)  # the signals stay pytest's
    path = os.path.join(ROOT, script)
    source = open(path).read()
    head, loop = source.split('# --- the loop', 1)
    namespace = {'__file__': path, '__name__': '__main__', '__doc__': ''}
    exec(compile(head, path, 'exec'), namespace)
    block = loop[loop.rindex('\n', 0, loop.index('# loss, backward')) + 1:loop.index('# step\n')]
    return namespace, textwrap.dedent(block[:block.rindex('\n') + 1])


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
