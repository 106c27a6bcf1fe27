"""Draws from described distributions, for config/papers/spectrum.py (Spectrum Tuning, arXiv 2510.06084)."""
import random

from configurator import at_least, between, configure
from embedded import is_for_testing
from papers.lines import write_lines

draws, turns = 100000, 20  # in all rows together, in a row; --turns=1 --dropout=0: one draw, described
dropout = 0.2  # share of the rows that lack the description
out, seed = 'out/draws.jsonl', 1337  # JSON lines


def distribution(rng, held_out):
    """'2 5 7', which is the description; the digits in it; the chance of each, which it does not tell."""
    digits = sorted(rng.sample('0123456789', rng.randint(2, 5)))
    if is_for_testing(' '.join(digits)) != held_out:
        return distribution(rng, held_out)
    parts = [rng.expovariate(1) for _ in digits]  # all chances are equally likely (Dirichlet)
    return ' '.join(digits), digits, [part / sum(parts) for part in parts]


def conversation(description, replies):
    """A turn for each reply. Without a description ('') nothing tells the first one: it is not trained."""
    messages = [{'role': 'system', 'content': description}] if description else []
    for i, reply in enumerate(replies):
        messages.append({'role': 'user', 'content': ''})
        messages.append({'role': 'assistant', 'content': reply, 'train': description != '' or i > 0})
    return messages


if __name__ == '__main__':
    configure(globals(), turns=at_least(1), dropout=between(0, 1))
    rng = random.Random(f'draws {seed}')
    rows = []
    for description, digits, chances in [distribution(rng, False) for _ in range(draws // turns)]:
        replies = rng.choices(digits, chances, k=turns)
        messages = conversation('' if rng.random() < dropout else description, replies)
        rows.append({'messages': messages})
    write_lines(out, rows)
