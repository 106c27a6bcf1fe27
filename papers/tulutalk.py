"""Rows chosen by quality, and more of the categories that lose by it (TuluTalk, arXiv 2506.06522)."""
import random
from collections import Counter

import numpy as np
from configurator import configure
from papers.lines import write_lines
from rows import read_rows

data = 'out/pool.jsonl'  # rows: category, quality of the prompt, reward; multi if it is one of 0 to 5
fallback, tau = True, 0.05  # rows for categories whose share falls by more than tau; False: the filter alone
out = 'out/rows.jsonl'  # JSON lines: as many rows with the fallback as without
seed = 1337


def choose(rows, tau):
    """The rows that pass the filter, and those that come back in categories that lost their share."""
    single = {quality: [row['reward'] for row in rows if row['quality'] == quality and not row.get('multi')]
              for quality in ('excellent', 'good')}
    q1, q2 = np.quantile(single['excellent'], [0.25, 0.5])
    q3 = np.quantile(single['good'] or [np.nan], 0.75)
    passed, second = [], []
    for row in rows:
        low, high, of_good = (3.5, 4.5, 4.5) if row.get('multi') else (q1, q2, q3)
        excellent, good, reward = row['quality'] == 'excellent', row['quality'] == 'good', row['reward']
        if excellent and reward > high:
            passed.append(row)
        elif excellent and reward >= low or good and reward > of_good:
            second.append(row)
    before, after = (Counter(row['category'] for row in some) for some in (rows, passed))
    lost = {key for key in before if before[key] / len(rows) - after[key] / len(passed) > tau}
    return passed, [row for row in second if row['category'] in lost]


if __name__ == '__main__':
    configure(globals())
    passed, back = choose(list(read_rows(data)[0]), tau)
    write_lines(out, random.Random(f'tulutalk {seed}').sample(passed + back * fallback, len(passed)))
