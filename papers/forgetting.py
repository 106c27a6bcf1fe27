"""How much a run forgets of earlier levels, for config/papers/rl_forgets_less.py (arXiv 2507.05386).

    python -m papers.forgetting --first=out/first/log.jsonl --second=out/second/log.jsonl

It compares the evaluations of the second run with the last one of the first, whose model it started from.
"""
import json

from configurator import configure, not_empty
from papers.lines import write_lines

first, second = 'out/first/log.jsonl', 'out/second/log.jsonl'  # logs of both runs
old, new = '2,3,4,5,6', '7,8'  # the levels that each of them trains on
out_dir = 'out/forgetting'  # its log.jsonl gets a line for each evaluation
seed = 1337  # no effect: nothing is drawn


def evaluations_of(path):
    """The lines of a log that are evaluations."""
    with open(path) as f:
        return [record for record in map(json.loads, f) if 'eval/pass@1' in record]


def mean_over(evaluation, levels):
    """The mean pass@1 over the levels, each with the same weight."""
    scores = [evaluation[f'eval/pass@1/{level}'] for level in levels.split(',')]
    return sum(scores) / len(scores)


if __name__ == '__main__':
    config = configure(globals(), old=not_empty(), new=not_empty())
    before = mean_over(evaluations_of(first)[-1], old)
    lines = []
    for record in evaluations_of(second):
        after = mean_over(record, old)
        lines.append({'step': record['step'], 'eval/old': after, 'eval/new': mean_over(record, new),
                      'eval/forgotten': before - after})
    write_lines(f'{out_dir}/log.jsonl', lines)
