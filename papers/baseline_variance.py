"""How much the gradient of a group varies under four baselines (OBLR-PO, arXiv 2511.23310)."""
import torch
from configurator import configure
from data import completion_text, load_tokenizer, rl_prompts, stop_ids
from model import Policy, load_model
from rollout import generate
from rows import read_rows
from verify import verify

from papers.gradient_variance import BASELINES, baseline, variance, weights_and_gradient
from papers.lines import write_lines

model, data = 'out/tiny_base', 'search:train'
n_prompts, n_groups, group_size, max_new_tokens = 32, 8, 8, 128  # n_groups groups of each prompt
out_dir = 'out/baseline_variance'  # log.jsonl: one line, variances over that with the mean as baseline
seed = 1337

if __name__ == '__main__':
    config = configure(globals())
    policy, tokenizer = Policy(load_model(model, 'cpu')), load_tokenizer(model, '', '')
    totals = {}
    for place, row in enumerate(rl_prompts(read_rows(data)[0], tokenizer, 512)[0][:n_prompts]):
        samples, = generate(policy.model, [row['ids']], n_groups * group_size, max_new_tokens, 1.0,
                            stop_ids(tokenizer, model), [(seed, place)])
        texts = [completion_text(tokenizer, sample['ids']) for sample in samples]
        rewards = torch.tensor([verify(row['kind'], text, row['truth']) for text in texts]).view(n_groups, -1)
        found = [weights_and_gradient(policy, row['ids'], sample['ids']) for sample in samples]
        gradients = torch.stack([gradient for _, gradient in found]).view(n_groups, group_size, -1)
        for name, weights in zip(BASELINES, torch.stack([of_sample for of_sample, _ in found]).T):
            for kind in ('others', 'all'):
                b = baseline(rewards, weights.view(n_groups, -1), kind == 'others')
                totals[kind, name] = totals.get((kind, name), 0) + variance(rewards - b, gradients)
    ratios = {f'{kind}/{name}': total / totals[kind, 'mean'] for (kind, name), total in totals.items()}
    write_lines(f'{out_dir}/log.jsonl', [{'step': 0, **ratios}])
