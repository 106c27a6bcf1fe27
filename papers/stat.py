"""Rows with the skills that a student lacks; a program is the teacher (STAT, arXiv 2510.10023)."""
import random
from itertools import accumulate

from configurator import configure
from papers.lines import write_lines
from rows import read_rows

data, pool = 'out/samples.jsonl', 'sums:train'  # the student's samples; rows to choose from
n_rows = 3840  # chosen, with repetitions
out = 'out/rows.jsonl'  # JSON lines
seed = 1337


def skills_of(prompt):
    """Each addition fact of a sum, and the total behind it: of '8+5+2' ((8, 5), 13) and ((3, 2), 15)."""
    digits = [int(digit) for digit in prompt.split('+')]
    return [((total % 10, digit), total + digit) for total, digit in zip(accumulate(digits), digits[1:])]


def missing(sample):
    """[the fact at the first wrong total]; [] if no total is wrong."""
    written = sample['completion'].partition('####')[0].split()[1:]
    steps = zip(skills_of(sample['prompt']), written)
    return [fact for (fact, total), text in steps if text != str(total)][:1]


def rows_with(facts, rows, rng):
    """A row for each fact; one that has two of them can be drawn for either."""
    with_fact = {fact: [r for r in rows if fact in dict(skills_of(r['prompt']))] for fact in set(facts)}
    return [rng.choice(with_fact[fact]) for fact in facts]


if __name__ == '__main__':
    configure(globals())
    rng = random.Random(f'stat {seed}')
    missed = [fact for sample in read_rows(data)[0] for fact in missing(sample)]
    chosen = rows_with(rng.choices(missed, k=n_rows), list(read_rows(pool)[0]), rng)
    write_lines(out, chosen)
