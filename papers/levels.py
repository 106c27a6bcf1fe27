"""The rows of some difficulties, for config/papers/rl_forgets_less.py (Lai et al. 2025, arXiv 2507.05386).

    python -m papers.levels --data=sums:train --levels=7,8 --out=out/new.jsonl
"""
from configurator import configure, not_empty
from papers.lines import write_lines
from rows import level_of, read_rows

data = 'sums:train'  # rows of any shape with a difficulty
levels = '7,8'  # the difficulties to keep
out = 'out/levels.jsonl'  # JSON lines
seed = 1337  # no effect: nothing is drawn


def of_levels(rows, levels):
    """The rows whose difficulty is one of `levels`, texts like '7', in their order."""
    return [row for row in rows if str(level_of(row.get('difficulty'))) in levels]


if __name__ == '__main__':
    config = configure(globals(), levels=not_empty())
    write_lines(out, of_levels(read_rows(data)[0], levels.split(',')))
