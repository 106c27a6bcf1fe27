"""Pairs whose sides differ as little as possible (SPaR, Cheng et al. 2024, arXiv 2412.11605).

Rejected is a search that gave up. Chosen is another sample, which found the target ('independent'), or the
search that gave up, with the last attempt of that sample behind it ('refined'): equally many pairs.
"""
from configurator import configure, one_of
from papers.lines import write_lines
from rows import read_rows

data = 'out/samples.jsonl'  # what sample.py wrote for the task `search`
chosen = 'refined'  # 'refined' or 'independent'
out = 'out/pairs.jsonl'  # JSON lines
seed = 1337  # no effect: nothing is drawn


def refined(failure, success):
    """The failure, and behind it the last attempt of the success."""
    return failure.rstrip('\n') + '\n' + success.splitlines()[-1]


def pairs_of(samples, kind):
    """A pair for each prompt with a success and with a search that ended at an attempt it calls wrong."""
    groups = {}  # prompt -> {whether it is right: the first such sample}
    for sample in samples:
        text, right = sample['completion'], sample['reward'] > 0.5
        if sample['stopped'] and (right or text.endswith('n')):
            groups.setdefault(sample['prompt'], {}).setdefault(right, text)
    for prompt, texts in groups.items():
        if len(texts) == 2:
            better = refined(texts[False], texts[True]) if kind == 'refined' else texts[True]
            yield {'prompt': prompt, 'chosen': better, 'rejected': texts[False]}


if __name__ == '__main__':
    configure(globals(), chosen=one_of('refined', 'independent'))
    write_lines(out, pairs_of(read_rows(data)[0], chosen))
