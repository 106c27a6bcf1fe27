"""Sample from a checkpoint, verify, report; or turn the samples into training rows.

    python sample.py --model=out/grpo --data=search:test --n=8
    python sample.py --model=Qwen/Qwen3-0.6B --data=gsm8k_test.jsonl --n=1 --temperature=0
    python sample.py --model=out/tiny_base --data=search:train --write=pairs --out=out/pairs.jsonl

It samples `n` completions of every prompt, writes JSON lines to `out`, and prints

    pass@1      the mean reward, with its standard error (clustered by prompt)
    pass@k      the unbiased estimate of Chen et al. 2021 (arXiv 2107.03374, equation 1)
    maj@n       the reward of the most frequent answer
    tokens      the mean length of a completion
    truncated   the share of completions cut at max_new_tokens

for all prompts, and for each difficulty where the rows carry one.

`write` chooses the lines of `out`:

    samples     every completion with its reward
    sft         rows for sft.py: a prompt with a right completion (rejection sampling)
    pairs       rows for dpo.py: a prompt with its best and its worst completion where their rewards
                differ. With --rejected_model: the completions of `model` against those of the other
                model, whatever their rewards (delta learning, arXiv 2507.06187)
    prompts     rows for grpo.py: the prompts whose completions have different rewards, without
                completions. GRPO learns nothing from the others (RIF-RFT, arXiv 2507.05386). They
                stand there without `instruction`: give it to grpo.py again

Training rows (sft, pairs) contain only completions that ended by themselves. A completion cut at
max_new_tokens would teach the model to stop there.
"""
import json
import math
import os
from collections import Counter
from dataclasses import dataclass

from configurator import UserError, at_least, configure

# --- config ------------------------------------------------------------------
# model and prompts
model = 'out/grpo'  # hub id, local folder in Hugging Face format, 'tiny', or 'random:<shape>'
chat_template = ''  # file with a Jinja chat template; '' uses the tokenizer's own
template_date = ''  # day that a chat template is told which asks for it; '': the model's, or 2024-07-26
rope_theta = 0.0  # base of the rotary embeddings' frequencies; 0: the model's own
max_position_embeddings = 0  # longest prompt with its completion, tokens; 0: the model's own
data = 'search:test'  # rows with a checkable truth
limit = 0  # use only so many prompts, from the first; 0: all
verifier = ''  # kind of verifier; '' goes by each row's own dataset name
languages = ''  # file of programming languages for verifier 'code', besides the built-in ones
instruction = ''  # appended to every prompt
# sampling
n = 8  # completions of each prompt
temperature = 1.0  # 0: greedy
max_new_tokens = 128  # tokens of a completion
max_prompt_tokens = 512  # longer prompts are dropped and counted
# output
write = 'samples'  # lines of `out`: 'samples', 'sft', 'pairs' or 'prompts'
rejected_model = ''  # of write=pairs: a weaker model for the rejected side; '': best against worst
out = 'out/samples.jsonl'  # JSON lines
overwrite = False  # replace an `out` that exists
show = 3  # prompts printed, each with its first completion
# system
seed = 1337
device = 'auto'  # 'cpu' or 'cuda'; 'auto': a GPU where there is one
dtype = 'auto'  # of compute; 'auto': bfloat16 on a GPU, float32 on a CPU
kv_cache_gb = 4.0  # GB for the KV cache
config = configure(globals(), temperature=at_least(0))

# mistakes that need more than one knob, or the disk, to see
if os.path.exists(out) and not overwrite:
    raise UserError(f'{out} exists: say --overwrite=True or another --out')
if rejected_model and write != 'pairs':
    raise UserError('rejected_model goes with write=pairs')
if n < 2 and (write == 'prompts' or write == 'pairs' and not rejected_model):
    raise UserError(f'write={write} compares completions of a prompt: --n=2 or more')

# --- imports --------------------------------------------------------------------
# after the settings, because they take seconds: the user learns of a mistake in a flag at once
import torch

from data import completion_text, format_report, load_tokenizer, random_stream
from data import rl_prompts, stop_ids
from model import check_token_ids, load_model
from rollout import generate
from rows import levels, read_rows
from verify import ANSWERS, extract, gave_up, verify_all

# --- device -------------------------------------------------------------------
# 'auto' becomes what this machine has
if device == 'auto':
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
if dtype == 'auto':
    dtype = 'float32' if device == 'cpu' else 'bfloat16'
if device != 'cpu' and not torch.cuda.is_available():
    raise UserError(f'device={device}, but torch sees no CUDA device: set --device=cpu')

# --- prompts, models -----------------------------------------------------------
tokenizer = load_tokenizer(model, chat_template, template_date)
if rejected_model:
    # one tokenizer writes and reads for both models
    other_tokenizer = load_tokenizer(rejected_model, chat_template, template_date)
    if other_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise UserError(f'rejected_model {rejected_model} has another vocabulary than {model}: '
                        'the same ids mean other text there')
stops = stop_ids(tokenizer, model)

# a row without a checkable truth ends the script here; a prompt that is too long is dropped
rows, _ = read_rows(data)
prompts, report = rl_prompts(rows, tokenizer, max_prompt_tokens, verifier, instruction, languages)
if limit:
    prompts = prompts[:limit]
print(f'{data}: {format_report(report)}', flush=True)

# models made from scratch are drawn from torch's own stream
torch.manual_seed(random_stream(seed, 'weights').randint(2 ** 31))
positions = dict(rope_theta=rope_theta, max_position_embeddings=max_position_embeddings)
lm = load_model(model, device, **positions).eval()
check_token_ids(lm, tokenizer, prompts)
weaker = None
if rejected_model:
    weaker = load_model(rejected_model, device, **positions).eval()
    check_token_ids(weaker, tokenizer, prompts)


# --- completions ----------------------------------------------------------------
def complete(language_model, part, first, use):
    """n completions of each prompt in `part`: a list per prompt of dicts.

    A dict has what generate gives (ids, logprobs, stopped) and 'text' and 'reward'. `first` is the
    place of the first prompt of `part` among all prompts, `use` is 'sample' or 'rejected'.
    """
    # A completion's random numbers come from the seed, the model's use and the prompt's place among
    # all. So they do not depend on the size of a part, and the two models have different ones.
    seeds = [(seed, use, first + i) for i in range(len(part))]
    prompt_ids = [prompt['ids'] for prompt in part]
    progress = f'prompts {first + 1} to {first + len(part)} of {len(prompts)}'
    device_type = device.split(':')[0]
    with torch.autocast(device_type, torch.bfloat16, enabled=dtype == 'bfloat16'):
        groups = generate(language_model, prompt_ids, n, max_new_tokens, temperature, stops, seeds,
                          kv_cache_gb, progress)

    # one call for all completions, because it shares them among several processes
    to_verify = []
    for prompt, group in zip(part, groups):
        for completion in group:
            completion['text'] = completion_text(tokenizer, completion['ids'])
            to_verify.append((prompt['kind'], completion['text'], prompt['truth']))
    verdicts = iter(verify_all(to_verify))

    # the verdicts come in the order of the completions
    for group in groups:
        for completion in group:
            reward, _ = next(verdicts)
            completion['reward'] = reward
    return groups


# --- lines of `out` -------------------------------------------------------------
def about(prompt):
    """What every line says about its prompt."""
    return {
        'truth': prompt['truth'],
        'dataset': prompt['kind'],
        'difficulty': prompt['difficulty'],
        'where': prompt['where'],
    }


def sample_lines(prompt, group):
    """A line for each completion."""
    lines = []
    for completion in group:
        lines.append({
            'prompt': prompt['text'],
            'completion': completion['text'],
            'reward': completion['reward'],
            **about(prompt),
            'stopped': completion['stopped'],
            'tokens': len(completion['ids']),
        })
    return lines


def usable(group):
    """The completions that training rows may contain: they ended by themselves and have a text."""
    return [c for c in group if c['stopped'] and c['text'].strip()]


def sft_lines(prompt, group):
    """A line for each distinct text among the right completions."""
    lines = []
    seen = set()
    for completion in usable(group):
        text = completion['text']
        if completion['reward'] > 0.5 and text not in seen:
            seen.add(text)
            lines.append({'prompt': prompt['messages'], 'completion': text, **about(prompt)})
    return lines


def best_and_worst(group):
    """[(best, worst)] of the usable completions, by reward; [] if all have the same reward."""
    candidates = usable(group)
    if not candidates:
        return []
    # of completions with equal rewards, max and min give the one sampled first
    best = max(candidates, key=lambda completion: completion['reward'])
    worst = min(candidates, key=lambda completion: completion['reward'])
    return [(best, worst)] if best['reward'] > worst['reward'] else []


def pair_lines(prompt, group, weaker_group):
    """A line for each pair of a chosen and a rejected completion."""
    if rejected_model:
        pairs = zip(usable(group), usable(weaker_group))
    else:
        pairs = best_and_worst(group)

    lines = []
    for chosen, rejected in pairs:
        # a pair of equal texts teaches nothing
        if chosen['text'] == rejected['text']:
            continue
        lines.append({
            'prompt': prompt['messages'],
            'chosen': [{'role': 'assistant', 'content': chosen['text']}],
            'rejected': [{'role': 'assistant', 'content': rejected['text']}],
            'chosen_reward': chosen['reward'],
            'rejected_reward': rejected['reward'],
            **about(prompt),
        })
    return lines


def prompt_lines(prompt, group):
    """The prompt as it was read, in one line; none if all rewards are equal."""
    rewards = [completion['reward'] for completion in group]
    if min(rewards) == max(rewards):
        return []
    # the training script appends the instruction: here it would be there twice
    *earlier, last = prompt['messages']
    if instruction:
        last = {**last, 'content': last['content'].removesuffix(f'\n\n{instruction}')}
    line = {
        'messages': [*earlier, last],
        'ground_truth': prompt['truth'],
        'dataset': prompt['kind'],
        'difficulty': prompt['difficulty'],
        'where': prompt['where'],
        'mean_reward': sum(rewards) / n,
    }
    if prompt['demonstration']:
        line['demonstration'] = prompt['demonstration']
    return [line]


def lines_of(prompt, group, weaker_group):
    """The lines of `out` for a prompt, as dicts.

    `group` has the completions of `model`, `weaker_group` those of rejected_model.
    """
    if write == 'samples':
        return sample_lines(prompt, group)
    if write == 'sft':
        return sft_lines(prompt, group)
    if write == 'prompts':
        return prompt_lines(prompt, group)
    return pair_lines(prompt, group, weaker_group)


# --- results --------------------------------------------------------------------
@dataclass
class PromptResult:
    """What the report needs to know about a prompt's n completions."""
    difficulty: int | str | None
    mean_reward: float
    right: int  # completions with a reward above 0.5
    majority_reward: float | None  # None: the prompt's kind has no answers to vote on
    tokens: int  # of all n completions
    truncated: int  # completions cut at max_new_tokens


def majority(answers, rewards):
    """Reward of the most frequent answer. None is no answer and has no vote.

    Of answers with equally many votes the one sampled first counts. 0 without any answer.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    winner = max(votes, key=votes.get)
    return rewards[answers.index(winner)]


def result_of(prompt, group):
    """The PromptResult of a prompt and its completions."""
    rewards = [completion['reward'] for completion in group]
    right = [reward for reward in rewards if reward > 0.5]
    lengths = [len(completion['ids']) for completion in group]
    truncated = [completion for completion in group if not completion['stopped']]

    # kinds like code and ifeval have no short answer that two completions could share
    majority_reward = None
    if prompt['kind'] in ANSWERS:
        answers = [extract(prompt['kind'], completion['text']) for completion in group]
        majority_reward = majority(answers, rewards)

    return PromptResult(
        difficulty=prompt['difficulty'],
        mean_reward=sum(rewards) / n,
        right=len(right),
        majority_reward=majority_reward,
        tokens=sum(lengths),
        truncated=len(truncated),
    )


def pass_at_k(n, c, k):
    """Chance that k of n completions, of which c are right, contain a right one.

    1 - C(n - c, k) / C(n, k): Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    # with fewer than k wrong completions every choice contains a right one
    if n - c < k:
        return 1.0
    # The quotient as a product, because the binomial coefficients are huge (figure 3 of the paper):
    # C(n - c, k) / C(n, k) = product over i from n - c + 1 to n of (1 - k / i)
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def report_line(name, results):
    """The line of the report about these prompts; the top of this file explains its numbers."""
    # The standard error is that of a mean over prompts, because the completions of one prompt are
    # not independent. A single prompt has no standard error.
    means = torch.tensor([result.mean_reward for result in results], dtype=torch.float64)
    error = float('nan')
    if len(results) > 1:
        error = (means.std() / math.sqrt(len(results))).item()
    line = f'{name:>12} {len(results):6d} prompts  pass@1 {means.mean():.3f} +- {error:.3f}'

    # k = 2, 4, 8, ... up to n, at most 1024
    k = 2
    while k <= min(n, 1024):
        chances = [pass_at_k(n, result.right, k) for result in results]
        line += f'  pass@{k} {sum(chances) / len(chances):.3f}'
        k *= 2

    # the mean over the prompts that have answers to vote on
    voted = [r.majority_reward for r in results if r.majority_reward is not None]
    if n > 1 and voted:
        line += f'  maj@{n} {sum(voted) / len(voted):.3f}'

    # means over all completions
    completions = n * len(results)
    tokens = sum(result.tokens for result in results) / completions
    truncated = sum(result.truncated for result in results) / completions
    return line + f'  tokens {tokens:.1f}  truncated {truncated:.3f}'


# --- sample and write -----------------------------------------------------------
folder = os.path.dirname(out) or '.'
os.makedirs(folder, exist_ok=True)
# about 512 completions at a time, so that `out` grows during a long run
prompts_per_part = max(1, 512 // n)
results = []
written = 0  # lines

with open(out, 'w') as f:
    for first in range(0, len(prompts), prompts_per_part):
        part = prompts[first:first + prompts_per_part]
        groups = complete(lm, part, first, 'sample')
        if weaker:
            weaker_groups = complete(weaker, part, first, 'rejected')
        else:
            weaker_groups = [[] for _ in part]

        for prompt, group, weaker_group in zip(part, groups, weaker_groups):
            for line in lines_of(prompt, group, weaker_group):
                f.write(json.dumps(line) + '\n')
                written += 1

            # the first prompts on the console, each with its first completion
            if len(results) < show:
                completion = group[0]
                reward = f'{completion["reward"]:.0f}'
                print(f'  {reward} | {prompt["text"]!r} -> {completion["text"]!r}', flush=True)
            results.append(result_of(prompt, group))
        f.flush()

# --- report ---------------------------------------------------------------------
for level in levels(result.difficulty for result in results):
    of_this_level = [result for result in results if result.difficulty == level]
    print(report_line(f'level {level}', of_this_level))
print(report_line('all', results))

# rewards of 0 that mean "not decided" and not "wrong"
if gave_up:
    counts = [f'{count} of {kind}' for kind, count in gave_up.items()]
    print('0 for want of a verdict: ' + ', '.join(counts))
if not written:
    raise UserError(f'{out} is empty: no prompt has what write={write} needs '
                    '(more completions: --n)')
print(f'{written:,} {write} of {len(prompts):,} prompts: {out}')
