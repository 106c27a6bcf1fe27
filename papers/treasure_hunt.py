"""Rows with markers, for config/papers/treasure_hunt.py (D'souza et al. 2025, arXiv 2506.14702).

    python -m papers.treasure_hunt --data=sums:base --out=out/marked.jsonl             # to train on
    python -m papers.treasure_hunt --data=sums:test --quality=w --out=out/asked.jsonl  # prompts
"""
import random

from configurator import between, configure
from papers.lines import write_lines
from rows import read_rows

data = 'sums:base'  # conversations, which get markers in both turns; or prompts with a truth
quality = ''  # marker of every prompt with a truth: 'w' (worked out) or 'g' (guessed)
row_dropout = 0.5  # share of the conversations whose prompt has no markers
marker_dropout = 0.5  # share of the markers that are left out of the other prompts
out = 'out/marked.jsonl'  # JSON lines
seed = 1337


def marked(row, rng):
    """The row with markers behind its prompt and, all of them, before its reply: 'w n3 3 8 10 #### 10'."""
    level = f'n{row["difficulty"]}'
    if 'messages' not in row:
        return {**row, 'prompt': f'{row["prompt"]} {quality} {level}'}
    question, reply = [message['content'] for message in row['messages']]
    markers = ['g' if reply.startswith('####') else 'w', level]
    shown = []
    if rng.random() >= row_dropout:
        shown = [marker for marker in markers if rng.random() >= marker_dropout]
    return {'prompt': ' '.join([question, *shown]), 'completion': ' '.join([*markers, reply])}


if __name__ == '__main__':
    configure(globals(), row_dropout=between(0, 1), marker_dropout=between(0, 1))
    rng = random.Random(f'markers {seed}')
    write_lines(out, [marked(row, rng) for row in read_rows(data)[0]])
