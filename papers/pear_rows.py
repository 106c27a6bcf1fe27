"""Demonstrations of which half are written in another way, for papers/pear.diff (PEAR, arXiv 2602.01058).

    python -m papers.pear_rows --data=sums:train --out=out/rows.jsonl

A sum is worked out from the left, as the start model does it, or from the right, as it never does. Both
have the same length and the same answer: '3+5+2' is '3 8 10 #### 10' or '2 7 10 #### 10'.
"""
import random
from itertools import accumulate

from configurator import between, configure
from papers.lines import write_lines
from rows import read_rows

data = 'sums:train'  # rows of sums
foreign = 0.5  # share that is worked out from the right
out = 'out/rows.jsonl'  # JSON lines
seed = 1337  # draws which


def from_the_right(row):
    """The row with running totals that begin at the last digit."""
    totals = accumulate(int(digit) for digit in reversed(row['prompt'].split('+')))
    return {**row, 'demonstration': f'{" ".join(map(str, totals))} #### {row["answer"]}'}


def mixed(rows, share, rng):
    """The rows, of which about this share is worked out from the right."""
    return [from_the_right(row) if rng.random() < share else row for row in rows]


if __name__ == '__main__':
    config = configure(globals(), foreign=between(0, 1))
    write_lines(out, mixed(list(read_rows(data)[0]), foreign, random.Random(f'pear {seed}')))
