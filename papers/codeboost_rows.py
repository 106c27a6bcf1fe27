"""Snippets with what they print -> rows for grpo.py, for config/papers/codeboost.py (arXiv 2508.05242).

    python -m papers.codeboost_rows --data=out/run.jsonl --out=out/rows.jsonl
"""
import json
import random

from configurator import between, configure
from papers.lines import write_lines
from rows import read_rows

data = 'out/run.jsonl'  # rows with code, stdout, stderr
fill_share = 0.25  # of the rows: they ask for a masked line instead of the outputs
out = 'out/rows.jsonl'  # JSON lines, for --verifier=papers/codeboost.py:reward
seed = 1337
PREDICT = 'What does this program print? <stdout>...</stdout> <stderr>...</stderr>\n\n```python\n{}\n```'
FILL = 'Which line is masked by ??? here? <line>...</line>\n\n```python\n{}\n```\nIt prints:\n{}'


def row_of(code, stdout, stderr, masked):
    """A row with its truth. masked: the number of the line to ask for, or None."""
    prompt, truth = PREDICT.format(code), {'stdout': stdout, 'stderr': stderr}
    if masked is not None:
        lines = code.splitlines()
        truth = {'line': lines[masked]}
        prompt = FILL.format('\n'.join([*lines[:masked], '???', *lines[masked + 1:]]), stdout)
    return {'prompt': prompt, 'ground_truth': json.dumps(truth), 'dataset': 'papers/codeboost.py:reward'}


if __name__ == '__main__':
    config = configure(globals(), fill_share=between(0, 1))
    rng = random.Random(f'codeboost {seed}')
    rows = []
    for row in read_rows(data)[0]:
        lines = [i for i, line in enumerate(row['code'].splitlines()) if line.strip()]
        masked = rng.choice(lines) if rng.random() < fill_share else None
        rows.append(row_of(row['code'], row['stdout'], row['stderr'], masked))
    write_lines(out, rows)
