"""Sample from a checkpoint, verify, report; or make training rows of the samples.

    python sample.py --model=out/grpo --data=sums:test --n=8
    python sample.py --model=Qwen/Qwen3-0.6B --data=gsm8k_test.jsonl --n=1 --temperature=0
    python sample.py --model=out/tiny_base --data=sums:train --write=pairs --out=out/pairs.jsonl

Writes every completion with its verdict as a JSON line to `out` and prints pass@1 with its standard error
(clustered by prompt), the unbiased pass@k of Chen et al. 2021 (arXiv 2107.03374, equation 1), maj@n, length
and the share cut at max_new_tokens; by difficulty too where the rows carry one.

`write` says what a line of `out` is. 'samples': a completion. 'sft': a prompt with a completion that the
verifier holds right (rejection sampling), for sft.py. 'pairs': a prompt with its best and worst completion
where their rewards differ, for dpo.py; with --rejected_model the completions of `model` against those of the
other model, whatever the verdicts (delta learning, arXiv 2507.06187). Training rows are made only of
completions that ended by themselves: a cut one would teach to stop where it was cut.
"""
import json
import math
import os
from collections import Counter

from configurator import UserError, at_least, configure

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
write = 'samples'  # lines of `out`: 'samples', 'sft' or 'pairs'
rejected_model = ''  # of write=pairs: a weaker model gives the rejected side; '': best against worst
out = 'out/samples.jsonl'  # JSON lines
overwrite = False  # replace an `out` that exists
show = 3  # completions printed
seed = 1337
device = 'auto'  # 'cpu' or 'cuda'; 'auto': a GPU where there is one
dtype = 'auto'  # of compute; 'auto': bfloat16 on a GPU, float32 on a CPU
kv_cache_gb = 4.0  # GB for the KV cache
config = configure(globals(), temperature=at_least(0))

if os.path.exists(out) and not overwrite:
    raise UserError(f'{out} exists: say --overwrite=True or another --out')
if rejected_model and write != 'pairs':
    raise UserError('rejected_model goes with write=pairs')
if write == 'pairs' and n < 2 and not rejected_model:
    raise UserError('write=pairs compares completions of a prompt: --n=2 or more')

# --- imports --------------------------------------------------------------------
# after the settings, because they take seconds: a mistake in a flag is answered at once
import torch

from data import completion_text, format_report, levels, load_tokenizer, random_stream
from data import rl_prompts, stop_ids, turns
from model import check_token_ids, load_model
from rollout import generate
from rows import read_rows
from verify import ANSWERS, extract, gave_up, verify_all


def pass_at_k(n, c, k):
    """1 - C(n - c, k) / C(n, k) as a stable product: the chance that k of n, c right, hold one."""
    return 1.0 if n - c < k else 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def majority(answers, rewards):
    """Reward of the most frequent answer; no answer (None) does not vote, a tie goes to the first seen."""
    votes = Counter(a for a in answers if a is not None)
    return rewards[answers.index(votes.most_common(1)[0][0])] if votes else 0.0


if device == 'auto':
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
if dtype == 'auto':
    dtype = 'float32' if device == 'cpu' else 'bfloat16'
if device != 'cpu' and not torch.cuda.is_available():
    raise UserError(f'device={device}, but torch sees no CUDA device: set --device=cpu')
tokenizer = load_tokenizer(model, chat_template)
if rejected_model and load_tokenizer(rejected_model, chat_template).get_vocab() != tokenizer.get_vocab():
    raise UserError(f'rejected_model {rejected_model} has another vocabulary than {model}: the same ids mean '
                    'other text there')
stops = stop_ids(tokenizer)
prompts, report = rl_prompts(read_rows(data)[0], tokenizer, max_prompt_tokens, verifier, instruction)
prompts = prompts[:limit or None]
print(f'{data}: {format_report(report)}', flush=True)
# models made from scratch are drawn from torch's own stream
torch.manual_seed(random_stream(seed, 'weights').randint(2 ** 31))
lm = load_model(model, device).eval()
check_token_ids(lm, tokenizer, prompts)
weaker = None
if rejected_model:
    weaker = load_model(rejected_model, device).eval()
    check_token_ids(weaker, tokenizer, prompts)
os.makedirs(os.path.dirname(out) or '.', exist_ok=True)
chunk = max(1, 512 // n)  # prompts at a time, so that a long run writes as it goes
results, written = [], 0  # results, per prompt: difficulty, rewards, answers, lengths, stopped, kind


def complete(lm, part, first, use):
    """n completions of each prompt, with 'text' and 'reward' added to what generate gives.

    The random numbers are those of `seed`, `use` (which of the two models) and the place of the prompt among
    all, of which the first here has `first`.
    """
    progress = f'prompts {first + 1} to {first + len(part)} of {len(prompts)}'
    with torch.autocast(device.split(':')[0], torch.bfloat16, enabled=dtype == 'bfloat16'):
        groups = generate(lm, [p['ids'] for p in part], n, max_new_tokens, temperature, stops,
                          [(seed, use, first + j) for j in range(len(part))], kv_cache_gb, progress)
    made = [(prompt, c) for prompt, group in zip(part, groups) for c in group]
    for _, c in made:
        c['text'] = completion_text(tokenizer, c['ids'])
    verdicts = verify_all([(prompt['kind'], c['text'], prompt['truth']) for prompt, c in made])
    for (_, c), (reward, _) in zip(made, verdicts):
        c['reward'] = reward
    return groups


def lines(prompt, group, weak):
    """What `out` gets for a prompt: its group of completions, and the weaker model's."""
    about = {'truth': prompt['truth'], 'dataset': prompt['kind'], 'difficulty': prompt['difficulty'],
             'where': prompt['where']}
    if write == 'samples':
        return [{'prompt': prompt['text'], 'completion': c['text'], 'reward': c['reward'], **about,
                 'stopped': c['stopped'], 'tokens': len(c['ids'])} for c in group]
    group, weak = ([c for c in side if c['stopped'] and c['text'].strip()] for side in (group, weak))
    if write == 'sft':
        right = {c['text']: None for c in group if c['reward'] > 0.5}  # each text once
        return [{'prompt': prompt['messages'], 'completion': text, **about} for text in right]
    if rejected_model:
        pairs = zip(group, weak)
    else:  # of equals the first sampled
        best, worst = (choose(group, key=lambda c: c['reward'], default=None) for choose in (max, min))
        pairs = [(best, worst)] if group and best['reward'] > worst['reward'] else []
    return [{'prompt': prompt['messages'], 'chosen': turns(chosen['text'], 'assistant'),
             'rejected': turns(rejected['text'], 'assistant'), 'chosen_reward': chosen['reward'],
             'rejected_reward': rejected['reward'], **about}
            for chosen, rejected in pairs if chosen['text'] != rejected['text']]


with open(out, 'w') as f:
    for i in range(0, len(prompts), chunk):
        part = prompts[i:i + chunk]
        groups = complete(lm, part, i, 'sample')
        weak_groups = complete(weaker, part, i, 'rejected') if weaker else [[]] * len(part)
        for prompt, group, weak in zip(part, groups, weak_groups):
            for line in lines(prompt, group, weak):
                f.write(json.dumps(line) + '\n')
                written += 1
            if len(results) < show:
                print(f'  {group[0]["reward"]:.0f} | {prompt["text"]!r} -> {group[0]["text"]!r}', flush=True)
            texts, rewards = [c['text'] for c in group], [c['reward'] for c in group]
            results.append((prompt['difficulty'], rewards, [extract(prompt['kind'], t) for t in texts],
                            [len(c['ids']) for c in group], [c['stopped'] for c in group], prompt['kind']))
        f.flush()


def report_line(name, results):
    """pass@1 with its standard error, pass@k, maj@n, mean length and truncated share of these prompts."""
    means = torch.tensor([sum(r) / n for _, r, *_ in results], dtype=torch.float64)
    error = (means.std() / math.sqrt(len(means))).item() if len(means) > 1 else float('nan')
    solved = [sum(x > 0.5 for x in r) for _, r, *_ in results]
    line = f'{name:>12} {len(results):6d} prompts  pass@1 {means.mean():.3f} +- {error:.3f}'
    for k in [2 ** i for i in range(1, 11) if 2 ** i <= n]:
        line += f'  pass@{k} {sum(pass_at_k(n, c, k) for c in solved) / len(solved):.3f}'
    # prompts whose completions have an answer to vote on: those of kinds like code and ifeval have none
    voted = [majority(answers, rewards) for _, rewards, answers, _, _, kind in results if kind in ANSWERS]
    if n > 1 and voted:
        line += f'  maj@{n} {sum(voted) / len(voted):.3f}'
    tokens = sum(sum(x[3]) for x in results) / (n * len(results))
    cut = sum(not s for x in results for s in x[4]) / (n * len(results))
    return line + f'  tokens {tokens:.1f}  truncated {cut:.3f}'


for level in levels(r[0] for r in results):
    print(report_line(f'level {level}', [r for r in results if r[0] == level]))
print(report_line('all', results))
if gave_up:
    print('0 for want of a verdict: ' + ', '.join(f'{count} of {kind}' for kind, count in gave_up.items()))
if not written:
    raise UserError(f'{out} is empty: no prompt has what write={write} needs (more completions: --n)')
print(f'{written:,} {write} of {len(prompts):,} prompts: {out}')
