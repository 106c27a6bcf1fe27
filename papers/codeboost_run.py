"""Snippets of Python -> with what they print, for config/papers/codeboost.py (arXiv 2508.05242).

    python -m papers.codeboost_run --data=out/distinct.jsonl --out=out/run.jsonl

A program that a limit ends, or whose output changes from run to run (a time, an address), is left out.
"""
import tempfile

from configurator import UserError, configure
from papers.lines import write_lines
from rewards.sandbox import PYTHON, run_program, sandboxed
from rows import read_rows

data = 'out/distinct.jsonl'  # rows with a program in `code`
out, seed = 'out/run.jsonl', 1337  # JSON lines: code, stdout, stderr; the seed has no effect


def outputs_of(code):
    """(stdout, stderr) of a program in the sandbox; None where a limit ended it."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f'{folder}/main.py', 'w') as f:
            f.write(code)
        command = ['sh', '-c', f'{PYTHON} main.py 2>stderr.txt']
        status, stdout = run_program(command, folder, '', seconds=10, memory=1024, sandbox='namespace')
        if status >= 95:
            return None
        with open(f'{folder}/stderr.txt', errors='replace') as f:
            return stdout, f.read().replace(f'{folder}/', '')


if __name__ == '__main__':
    config = configure(globals())
    if not sandboxed():
        raise UserError('no sandbox here (unshare)')
    rows = []
    for code in [row['code'] for row in read_rows(data)[0]]:
        outputs = outputs_of(code)
        if outputs and outputs == outputs_of(code):
            rows.append({'code': code, 'stdout': outputs[0], 'stderr': outputs[1]})
    write_lines(out, rows)
