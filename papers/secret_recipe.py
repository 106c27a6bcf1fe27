"""Runs of sft.py on equally many samples: a sweep, and one of them in three other ways (arXiv 2412.13337)."""
import subprocess
import sys

from configurator import configure
from papers.lines import write_lines
from rows import read_rows

batch_sizes, learning_rates = '16 64 256', '3e-5 1e-4 3e-4'
compared = '64 1e-4'  # the run of the sweep that is compared with three others
samples = 3840  # of every run
data = 'sums:train'
runs = 'out/secret_recipe'  # a folder for each run
seed = 1337


def train(name, batch_size, rate, *flags, share=1.0):
    """A run on a share of the samples."""
    subprocess.run([sys.executable, 'sft.py', 'config/papers/secret_recipe.py', f'--out_dir={runs}/{name}',
                    f'--max_steps={round(share * samples / int(batch_size))}', f'--batch_size={batch_size}',
                    f'--learning_rate={rate}', f'--seed={seed}', *flags], check=True)


if __name__ == '__main__':
    config = configure(globals())
    for size in batch_sizes.split():
        for rate in learning_rates.split():
            train(f'{size}_{rate}', size, rate)
    train('warmup', *compared.split(), '--warmup_steps=10')
    train('cosine', *compared.split(), '--schedule=cosine')
    # easy levels first: each phase goes on from the model of the one before
    model = 'out/sums_base'
    for name, levels in (('easy', (2, 3, 4)), ('middle', (5, 6, 7, 8)), ('phased', (9, 10))):
        of_phase = [row for row in read_rows(data)[0] if row['difficulty'] in levels]
        write_lines(f'{runs}/{name}.jsonl', of_phase)
        flags = [f'--model={model}', f'--data={runs}/{name}.jsonl']
        train(name, *compared.split(), *flags, share=len(levels) / 9)
        model = f'{runs}/{name}'
