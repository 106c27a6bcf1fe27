"""Errors of form and of arithmetic against the number of training rows (arXiv 2410.03717).

config/papers/superficial_alignment.py has the commands that make the samples.
"""
import numpy as np
from configurator import configure
from papers.lines import write_lines
from rows import read_rows

data = 'out/test_SIZE.jsonl'  # what sample.py wrote for the models trained on SIZE rows
sizes = '16 64 256 1024 4096'
out_dir = 'out/superficial_alignment'  # log.jsonl has one line
seed = 1337  # no effect: nothing is drawn


def kind_of(reply, reward):
    """'right'; 'format': no work is shown, or no '####' behind it; 'arithmetic': wrong for another reason."""
    work, mark, _ = reply.rpartition('####')
    return 'right' if reward > 0.5 else 'arithmetic' if mark and work.strip() else 'format'


def power_law(x, y):
    """The straight line through (log x, log y): its slope and r2."""
    return np.polyfit(np.log(x), np.log(y), 1)[0], np.corrcoef(np.log(x), np.log(y))[0, 1] ** 2


if __name__ == '__main__':
    config = configure(globals())
    metrics, errors = {'step': 0}, []
    for size in sizes.split():
        samples = read_rows(data.replace('SIZE', size))[0]
        kinds = [kind_of(sample['completion'], sample['reward']) for sample in samples]
        errors.append(kinds.count('arithmetic') / len(kinds))
        metrics |= {f'format@{size}': kinds.count('format') / len(kinds), f'arithmetic@{size}': errors[-1]}
    metrics['slope'], metrics['r2'] = power_law([int(size) for size in sizes.split()], errors)
    write_lines(f'{out_dir}/log.jsonl', [metrics])
