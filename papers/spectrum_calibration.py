"""Calibration on new distributions, for config/papers/spectrum.py. After K draws: tv/K is the total variation
between the model's chances for the next draw and the true ones (0: equal, 1: disjoint), valid/K its mass on
the described digits; both are means over 200 distributions."""
import random

import torch

from configurator import configure
from data import load_tokenizer, render
from model import load_model
from papers.lines import write_lines
from papers.spectrum import conversation, distribution

model = 'out/first'  # folder in Hugging Face format
out_dir = 'out/calibration'  # its log.jsonl is replaced
seed = 1337


def compare(p, ids, chances):
    """Total variation between probabilities p (V,) and the chances of these ids; the mass of p on the ids."""
    truth = torch.zeros_like(p).index_add(0, torch.tensor(ids), torch.tensor(chances))
    return (p - truth).abs().sum().item() / 2, p[ids].sum().item()


if __name__ == '__main__':
    configure(globals())
    tokenizer, lm, rng = load_tokenizer(model), load_model(model, attention='sdpa'), random.Random(seed)
    metrics, tests = {'step': 0}, [distribution(rng, held_out=True) for _ in range(200)]
    for k in (0, 4, 16):
        results = []
        for description, digits, chances in tests:
            messages = conversation(description, rng.choices(digits, chances, k=k))
            text = render(tokenizer, [*messages, {'role': 'user', 'content': ''}], prompt=True)
            p = lm(torch.tensor([tokenizer(text)['input_ids']])).logits[0, -1].detach().softmax(-1)
            results.append(compare(p, [tokenizer(digit)['input_ids'][0] for digit in digits], chances))
        metrics[f'tv/{k}'], metrics[f'valid/{k}'] = (sum(values) / len(values) for values in zip(*results))
    write_lines(f'{out_dir}/log.jsonl', [metrics])
