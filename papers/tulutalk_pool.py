"""A pool for papers/tulutalk.py: sums, some with a wrong reply, and the log-prob of a reply as its reward."""
import random
from itertools import accumulate

import torch

from configurator import between, configure
from data import collate, load_tokenizer, sft_examples
from model import Policy, load_model
from papers.lines import write_lines
from rows import read_rows

model, data, n_rows = 'out/sums_base', 'sums:train', 3600  # the judge; the first so many rows
corrupt = 0.4  # share of the replies with a wrong total, from which the rest is counted on
out = 'out/pool.jsonl'  # JSON lines
seed = 1337


def corrupted(prompt, rng):
    """'3 9 11 #### 11' for '3+5+2'."""
    digits = [int(digit) for digit in prompt.split('+')]
    digits[rng.randrange(1, len(digits))] += rng.randint(1, 9)
    return f'{" ".join(str(total) for total in accumulate(digits))} #### {sum(digits)}'


if __name__ == '__main__':
    configure(globals(), corrupt=between(0, 1))
    rng, tokenizer, judge = random.Random(f'pool {seed}'), load_tokenizer(model), Policy(load_model(model))
    pool = []
    for row in read_rows(data)[0][:n_rows]:
        reply = corrupted(row['prompt'], rng) if rng.random() < corrupt else row['demonstration']
        labels = {'quality': 'excellent', 'category': row['difficulty']}
        row = {'prompt': row['prompt'], 'completion': reply, **labels}
        (example,), _ = sft_examples([{**row, '_where': ''}], tokenizer, 1024)
        with torch.no_grad():
            micro = collate([(example['ids'], example['mask'])])
            logprobs, _ = judge(micro['ids'], micro['lengths'], micro['index'])
        pool.append({**row, 'reward': logprobs.mean().item()})
    write_lines(out, pool)
