"""The demo's summary: accuracy by difficulty before and after, and the learning curve as a picture.

    python plot.py BEFORE.jsonl AFTER.jsonl LOG.jsonl PICTURE.png

BEFORE and AFTER are sample.py's completions, LOG a run's log.jsonl. The table needs nothing; the picture
needs matplotlib, and without it this says so.
"""
import json
import sys
from collections import defaultdict


def read(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


before, after, log, picture = sys.argv[1:]
levels = defaultdict(lambda: ([], []))
for side, path in enumerate((before, after)):
    for row in read(path):
        levels[row['difficulty']][side].append(row['reward'])
levels = dict(sorted(levels.items()))
everything = [sum((scores[side] for scores in levels.values()), []) for side in (0, 1)]
print('pass@1 at temperature 1 on held-out rows\ndifficulty  before   after    gain')
for name, (a, b) in [*levels.items(), ('all', everything)]:
    a, b = sum(a) / len(a), sum(b) / len(b)
    print(f'{name!s:>10}  {a:6.3f}  {b:6.3f}  {b - a:+6.3f}')
try:
    import matplotlib
except ImportError:
    print("no picture: pip install matplotlib, then run this again")
    sys.exit()
matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen

records = read(log)
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout='constrained')
steps = [r['step'] for r in records]
left.plot(steps, [r['reward/mean'] for r in records], color='0.7', label='reward of rollouts')
shown = [(r['step'], r['eval/pass@1']) for r in records if 'eval/pass@1' in r]
left.plot(*zip(*shown), marker='o', label='held-out pass@1, greedy')
left.set(xlabel='step', ylabel='share solved', ylim=(0, 1), title='Learning curve')
left.legend()
for side, name in enumerate(('before', 'after')):
    right.plot(list(levels), [sum(s[side]) / len(s[side]) for s in levels.values()], marker='o', label=name)
right.set(xlabel='operands', ylabel='pass@1 at temperature 1', ylim=(0, 1), title='By difficulty')
right.legend()
fig.savefig(picture, dpi=120)
print(f'picture: {picture}')
