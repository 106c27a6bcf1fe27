"""Sample from a checkpoint, verify, report.

    python sample.py --model=out/grpo --data=sums:test --n=8
    python sample.py --model=Qwen/Qwen3-0.6B --data=gsm8k_test.jsonl --n=1 --temperature=0

Writes every completion with its verdict as a JSON line to `out` and prints pass@1 with its standard error
(clustered by prompt), the unbiased pass@k of Chen et al. 2021 (arXiv 2107.03374, equation 1), maj@n, length
and the share cut at max_new_tokens; by difficulty too where the rows carry one.
"""
import json
import math
import os
from collections import Counter

import torch
from tqdm import tqdm

from configurator import UserError, configure
from data import format_report, load_tokenizer, read_rows, rl_prompts, stop_ids
from model import load_model
from rollout import generate
from verify import extract, verify

# --- config ------------------------------------------------------------------
model = 'out/grpo'  # hub id, local folder in Hugging Face format, 'tiny', or 'random:<shape>'
chat_template = ''  # file with a Jinja chat template; '' uses the tokenizer's own
data = 'sums:test'  # rows with a checkable truth
limit = 0  # the first so many prompts; 0: all
verifier = ''  # kind of verifier; '' goes by each row's own dataset name
instruction = ''  # appended to every prompt
n = 8  # completions of each prompt
temperature = 1.0  # 0: greedy
max_new_tokens = 64  # tokens of a completion
max_prompt_tokens = 512  # longer prompts are dropped and counted
out = 'out/samples.jsonl'  # one JSON line a completion
overwrite = False  # replace an `out` that exists
show = 3  # completions printed
seed = 1337
device = 'cuda' if torch.cuda.is_available() else 'cpu'
dtype = 'bfloat16' if torch.cuda.is_available() else 'float32'  # of compute
kv_cache_gb = 4.0  # GB for the KV cache
config = configure(globals())


def pass_at_k(n, c, k):
    """1 - C(n - c, k) / C(n, k) as a stable product: the chance that k of n, c right, hold one."""
    return 1.0 if n - c < k else 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def majority(answers, rewards):
    """Reward of the most frequent answer; no answer (None) does not vote, a tie goes to the first seen."""
    votes = Counter(a for a in answers if a is not None)
    return rewards[answers.index(votes.most_common(1)[0][0])] if votes else 0.0


if device == 'cuda' and not torch.cuda.is_available():
    raise UserError('device=cuda, but torch sees no CUDA device: set --device=cpu --dtype=float32')
if os.path.exists(out) and not overwrite:
    raise UserError(f'{out} exists: say --overwrite=True or another --out')
tokenizer = load_tokenizer(model, chat_template)
stops = stop_ids(tokenizer)
prompts, report = rl_prompts(read_rows(data)[0], tokenizer, max_prompt_tokens, verifier, instruction)
prompts = prompts[:limit or None]
print(f'{data}: {format_report(report)}')
lm = load_model(model, device).eval()
os.makedirs(os.path.dirname(out) or '.', exist_ok=True)
chunk = max(1, 512 // n)  # prompts at a time, so that a long run writes as it goes
results = []  # per prompt: difficulty, rewards, answers, lengths, stopped
with open(out, 'w') as f, tqdm(total=len(prompts), unit='prompt', disable=None) as bar:
    for i in range(0, len(prompts), chunk):
        part = prompts[i:i + chunk]
        with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
            completions = generate(lm, [p['ids'] for p in part], n, max_new_tokens, temperature, stops,
                                   [seed * 2 ** 32 + i + j for j in range(len(part))], kv_cache_gb)
        for prompt, group in zip(part, completions):
            texts = [tokenizer.decode(c['ids'], skip_special_tokens=True) for c in group]
            rewards = [verify(prompt['kind'], text, prompt['truth']) for text in texts]
            for text, reward, c in zip(texts, rewards, group):
                f.write(json.dumps({
                    'prompt': prompt['text'], 'completion': text, 'reward': reward, 'truth': prompt['truth'],
                    'dataset': prompt['kind'], 'difficulty': prompt['difficulty'], 'stopped': c['stopped'],
                    'tokens': len(c['ids']), 'where': prompt['where']}) + '\n')
            if len(results) < show:
                tqdm.write(f'  {rewards[0]:.0f} | {prompt["text"]!r} -> {texts[0]!r}')
            results.append((prompt['difficulty'], rewards, [extract(prompt['kind'], t) for t in texts],
                            [len(c['ids']) for c in group], [c['stopped'] for c in group]))
        f.flush()
        bar.update(len(part))


def report_line(name, results):
    """pass@1 with its standard error, pass@k, maj@n, mean length and truncated share of these prompts."""
    means = torch.tensor([sum(r) / n for _, r, *_ in results], dtype=torch.float64)
    error = (means.std() / math.sqrt(len(means))).item() if len(means) > 1 else float('nan')
    solved = [sum(x > 0.5 for x in r) for _, r, *_ in results]
    line = f'{name:>12} {len(results):6d} prompts  pass@1 {means.mean():.3f} +- {error:.3f}'
    for k in [2 ** i for i in range(1, 11) if 2 ** i <= n]:
        line += f'  pass@{k} {sum(pass_at_k(n, c, k) for c in solved) / len(solved):.3f}'
    if n > 1:
        line += f'  maj@{n} {sum(majority(a, r) for _, r, a, *_ in results) / len(results):.3f}'
    tokens = sum(sum(x[3]) for x in results) / (n * len(results))
    cut = sum(not s for x in results for s in x[4]) / (n * len(results))
    return line + f'  tokens {tokens:.1f}  truncated {cut:.3f}'


levels = sorted({r[0] for r in results if r[0] is not None}, key=str)
for level in sorted(levels, key=lambda x: (isinstance(x, str), x)):
    print(report_line(f'level {level}', [r for r in results if r[0] == level]))
print(report_line('all', results))
print(f'completions and verdicts: {out}')
