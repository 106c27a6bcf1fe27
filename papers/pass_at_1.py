"""pass@1 of what sample.py wrote, as a log that papers/run.py can measure.

    python sample.py --model=out/sums_base --data=sums:test --out=out/samples.jsonl
    python -m papers.pass_at_1 --data=out/samples.jsonl --out_dir=out/pass_at_1

It reads lines of write=samples, and writes one line to out_dir/log.jsonl: the mean reward of all
samples, of each difficulty, the share that ended by itself, and the mean number of tokens.
"""
from configurator import configure
from papers.lines import write_lines
from rows import levels, read_rows

data = 'out/samples.jsonl'  # what sample.py wrote
out_dir = 'out/pass_at_1'  # its log.jsonl is replaced
seed = 1337  # no effect: nothing is drawn


def mean(values):
    return sum(values) / len(values)


def metrics_of(samples):
    """{'step': 0, 'eval/pass@1': ..., 'eval/pass@1/9': ..., 'eval/stopped': ..., 'eval/tokens': ...}."""
    metrics = {'step': 0, 'eval/pass@1': mean([sample['reward'] for sample in samples])}
    for level in levels(sample['difficulty'] for sample in samples):
        rewards = [sample['reward'] for sample in samples if sample['difficulty'] == level]
        metrics[f'eval/pass@1/{level}'] = mean(rewards)
    return {**metrics, 'eval/stopped': mean([sample['stopped'] for sample in samples]),
            'eval/tokens': mean([sample['tokens'] for sample in samples])}


if __name__ == '__main__':
    config = configure(globals())
    write_lines(f'{out_dir}/log.jsonl', [metrics_of(list(read_rows(data)[0]))])
