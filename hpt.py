"""Hybrid Post-Training (Lv et al. 2025, arXiv 2509.04419): rewards where they teach, else a demonstration.

    python hpt.py config/tiny.py                              # 1 CPU: the embedded task, minutes
    torchrun --nproc-per-node 8 hpt.py config/openr1_46k.py   # 8 GPUs

The unified estimator (same paper) is mask x (1 / reference policy) x advantage x likelihood gradient. A
prompt is sampled group_size times; P is the share of completions that are right: of reward 1, as
the paper's verdicts are 0 or 1. For HPT, where P > gamma | where P <= gamma:

    mask                  completion tokens whose ratio is not clipped away | the demonstration's tokens
    reference policy      the policy that sampled, pi_old | the current policy: 1/pi * grad pi = grad log pi
    advantage             reward - mean of the group | 1
    likelihood gradient   grad pi(token | prompt, what is before it) | the same

Deviations from the official code:

1. The SFT side is a token mean over all demonstrations of the step, on all ranks, times sft_coef; theirs is a
   mean in each micro-batch, and these are summed: its weight grows with the number of micro-batches that hold
   a demonstration. Here one demonstration in a step weighs what a hundred do.
2. The RL side is divided by all completions of the step times max_new_tokens, the dropped ones included, and
   multiplied by rl_coef; theirs is a sum over sequences. Here a closing gate does not make RL louder, and at
   gamma = 0 the gradient is rl_coef x GRPO's + sft_coef x SFT's; their coefficients are not ours.
3. No entropy bonus; theirs is 0.001, on demonstrations too.
4. The ratio is clipped; with one update per rollout it is 1 anyway.
5. With beta > 0 the dropped completions stay in the KL; demonstrations are never in it.
6. `temperature` divides all logits.
7. Several updates on a rollout share its prompts; theirs share the sequences that are left after
   demonstrations have taken the places of groups.
8. No update is skipped because its gradient is large (theirs: a norm above 80); grad_clip scales it.
"""
import json
import math
import os
import shutil
import sys
import time
from contextlib import nullcontext
from datetime import timedelta

from configurator import UserError, configure

# --- config -------------------------------------------------------------------
# what and where
model = 'tiny'  # hub id, local Hugging Face folder, 'tiny', or 'random:<shape>' (model.py)
chat_template = ''  # file with a Jinja chat template; '': the tokenizer's own
data = 'sums:train'  # sources, each with optional passes per epoch: 'a.jsonl*0.5, b.json*2'
eval_prompts = 'sums:test'  # held-out rows for eval/pass@1; '' for none
verifier = ''  # kind of verifier; '' goes by each row's own dataset name
instruction = ''  # appended to every prompt, e.g. how to write the final answer
out_dir = 'out/hpt'  # run folder: model, log.jsonl, run.json, state/
resume = False  # go on from out_dir/state
overwrite = False  # start afresh in an out_dir that holds another run
# demonstrations
max_length = 1024  # tokens of prompt and demonstration; longer ones go the way of `overlong`
overlong = 'drop'  # 'drop' or 'cut' (no end of turn is invented)
without_demonstration = 'error'  # rows that have none: 'error', 'drop' or 'rl' (rewards alone)
# rollouts
prompts_per_step = 32  # prompts per rollout, over all GPUs
group_size = 8  # completions of each prompt
max_new_tokens = 64  # tokens of a completion
max_prompt_tokens = 512  # longer prompts are dropped and counted
temperature = 1.0  # divides the logits in sampling and in scoring
resample_rounds = 0  # times that groups without spread are replaced by fresh prompts (DAPO)
mask_truncated = False  # completions cut at max_new_tokens: no gradient; False: as verified
kv_cache_gb = 4.0  # GB for the KV cache of rollouts, per GPU
# the loss
gamma = 0.0  # a prompt of which this share or less is solved learns its demonstration; -1: none, 1: every one
sft_coef, rl_coef = 1.0, 1.0  # weights of the two sides
advantage_std = False  # divide the centred rewards by the group's std; False: only centred (Dr. GRPO)
updates_per_rollout = 1  # optimizer steps on one rollout, each on its share of the prompts
clip_low, clip_high = 0.2, 0.28  # ratio within [1 - clip_low, 1 + clip_high]; matters with updates > 1
loss_denominator = 'constant'  # 'tokens' (global mean), 'sequences' (mean of means), 'constant'
importance_cap = 0.0  # of the weight trainer's / sampler's probability, where they differ; 0: no weight
beta = 0.0  # KL to the start model, k3 estimator; 0: no reference model is loaded
micro_batch_tokens = 8192  # tokens in one forward, per GPU
max_steps = 100  # optimizer steps
# optimizer
learning_rate = 1e-4  # peak
min_learning_rate = 0.0  # at the last step of cosine and linear
schedule = 'constant'  # 'cosine', 'linear' or 'constant' after the warm-up
warmup_steps = 5  # linear from 0
weight_decay = 0.0  # on matrices only
beta1, beta2 = 0.9, 0.95  # Adam
grad_clip = 1.0  # global norm; 0: off
# evaluation, log, checkpoint
eval_every = 20  # steps; 0: only at the end
sample_every = 10  # steps between printed completions with their rewards; 0: never
checkpoint_every = 50  # steps between checkpoints; one more before each evaluation and at the end
log_every = 1  # steps between lines on the console; log.jsonl has every step
wandb_log = False  # WANDB_MODE=offline works too
wandb_project = 'nanopost'
# system
seed = 1337
device = 'auto'  # 'cpu' or 'cuda'; 'auto': a GPU where there is one
dtype = 'auto'  # of compute, weights are fp32; 'auto': bfloat16 on a GPU, float32 on a CPU
activation_checkpointing = False  # recompute each layer in backward
compile = False  # torch.compile of every layer: half a minute at first; on CPUs then 1.00 to 1.08 x as fast
shard_optimizer = True  # Adam's moments over the ranks (ZeRO stage 1), when there are several
config = configure(globals())
if not resume and not overwrite and os.path.exists(out_dir) and os.listdir(out_dir):
    raise UserError(f'out_dir {out_dir} is not empty: say --resume=True or --overwrite=True')

# --- imports --------------------------------------------------------------------
# after the settings, because they take seconds: a mistake in a flag is answered at once
import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from checkpoint import catch_stop, load_state, save_state
from data import Order, collate, completion_text, format_report, levels, load_tokenizer, pack, random_stream
from data import rl_prompts, sft_examples, split_by_work, stop_ids
from model import Policy, check_token_ids, frozen_copy, load_model, memory_plan, save_model
from rollout import generate
from rows import read_rows
from verify import verify_all

# --- ranks, seed, device ------------------------------------------------------
rank, world_size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
if device == 'auto':
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
if dtype == 'auto':
    dtype = 'float32' if device == 'cpu' else 'bfloat16'
config |= {'device': device, 'dtype': dtype}  # run.json has what 'auto' became
if device != 'cpu' and not torch.cuda.is_available():
    raise UserError(f'device={device}, but torch sees no CUDA device: set --device=cpu')
if device == 'cuda':
    device = f'cuda:{os.environ.get("LOCAL_RANK", 0)}'
if device != 'cpu':
    torch.cuda.set_device(device)
log_path = os.path.join(out_dir, 'log.jsonl')
saved = own = None  # of a checkpoint: what all ranks share, and this rank's part
if resume:
    saved, own = load_state(out_dir, rank, world_size, model=model, shard_optimizer=shard_optimizer)
if world_size > 1:
    # an hour: a long rollout or a slow disk on one rank is no failure
    dist.init_process_group('nccl' if 'cuda' in device else 'gloo', timeout=timedelta(hours=1))
# a model from scratch is drawn from torch's own stream: the same on every rank
torch.manual_seed(random_stream(seed, 'weights').randint(2 ** 31))
# without its cache, which would keep a bf16 copy of every weight as long as autocast lasts
autocast = torch.autocast(
    device.split(':')[0], torch.bfloat16, enabled=dtype == 'bfloat16', cache_enabled=False)

# --- data ---------------------------------------------------------------------
tokenizer = load_tokenizer(model, chat_template)
stops = stop_ids(tokenizer)
rows, sources = read_rows(data)
prompts, report, weighted = [], {}, []  # weighted: (passes per epoch, rows kept) of every source
for name, weight, start, stop in sources:
    kept, report[name] = rl_prompts(rows[start:stop], tokenizer, max_prompt_tokens, verifier, instruction)
    asked = [{'prompt': p['messages'], 'completion': p['demonstration'], '_where': p['where']}
             for p in kept if p['demonstration']]
    if len(asked) < len(kept) and without_demonstration == 'error':
        raise UserError(f'{name}: {len(kept) - len(asked)} rows have no demonstration: say '
                        '--without_demonstration=drop, or =rl to learn them from rewards alone')
    examples, counts = sft_examples(asked, tokenizer, max_length, overlong) if asked else ([], report[name])
    report[f'{name}, demonstrations'], examples = counts, {e['where']: e for e in examples}
    for p in kept:  # the ids that sft.py trains on, if they go on from the ids that rollouts go on from
        e = examples.get(p['where'])
        fits = e is not None and e['ids'][:len(p['ids'])].tolist() == p['ids']
        p['demonstration'] = e['ids'][e['mask']].tolist() if fits else None
    kept = [p for p in kept if p['demonstration'] or without_demonstration == 'rl']
    weighted.append((weight, list(range(len(prompts), len(prompts) + len(kept)))))
    prompts += kept
order = Order(weighted, seed)
eval_rows = []
if eval_prompts:
    eval_rows, report['eval_prompts: ' + eval_prompts] = rl_prompts(
        read_rows(eval_prompts)[0], tokenizer, max_prompt_tokens, verifier, instruction)
if rank == 0:
    shown = [p['demonstration'] for p in prompts if p['demonstration']]
    print(f'{len(shown)} prompts have a demonstration, {sum(x[-1] not in stops for x in shown)} are cut')
    print('\n'.join(f'{name}: {format_report(counts)}' for name, counts in report.items()))
    print('first prompt: ' + repr(tokenizer.decode(prompts[0]['ids'])))

# --- model --------------------------------------------------------------------
lm = load_model(model, device)
check_token_ids(lm, tokenizer, prompts + eval_rows)
# the reference is the start model itself, also where that is drawn at random: copied before it learns
reference = Policy(frozen_copy(lm, getattr(torch, dtype))) if beta else None
if activation_checkpointing:
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})
if compile:
    for layer in lm.base_model.layers:
        layer.compile(dynamic=True)
raw = policy = Policy(lm)
if world_size > 1:
    policy = DistributedDataParallel(raw, gradient_as_bucket_view=True, broadcast_buffers=False)
if rank == 0:
    rollout_rows = max(prompts_per_step * group_size, len(eval_rows))
    plan = memory_plan(lm.config, world_size, micro_batch_tokens, activation_checkpointing, shard_optimizer,
                       dtype == 'bfloat16', reference=beta > 0, kv_cache_gb=kv_cache_gb,
                       rollout_rows=math.ceil(rollout_rows / world_size), max_new_tokens=max_new_tokens)
    print('memory plan, GB a GPU: ' + ', '.join(f'{key} {value:.3g}' for key, value in plan.items()))

# --- optimizer, schedule ------------------------------------------------------
groups = [{'params': [p for p in raw.parameters() if p.dim() >= 2], 'weight_decay': weight_decay},
          {'params': [p for p in raw.parameters() if p.dim() < 2], 'weight_decay': 0.0}]
adam = dict(lr=learning_rate, betas=(beta1, beta2), fused=True)
shard = world_size > 1 and shard_optimizer
adamw = torch.optim.AdamW
optimizer = ZeroRedundancyOptimizer(groups, adamw, **adam) if shard else adamw(groups, **adam)


def learning_rate_at(step):
    """Of update `step`, counted from 0: a linear warm-up to learning_rate, then `schedule`, which
    reaches min_learning_rate at the last update."""
    if step < warmup_steps:
        return learning_rate * (step + 1) / warmup_steps
    peak = max(0, warmup_steps - 1)  # the update that has learning_rate itself
    done = (step - peak) / max(1, max_steps - 1 - peak)  # from 0 at the peak to 1 at the last update
    left = {'cosine': 0.5 * (1 + math.cos(math.pi * done)), 'linear': 1 - done, 'constant': 1.0}[schedule]
    return min_learning_rate + left * (learning_rate - min_learning_rate)


# --- helpers ------------------------------------------------------------------
def due(every):
    """Whether the updates on the last rollout passed a multiple of `every` steps; 0 is never."""
    return every > 0 and step % every < updates_per_rollout


def gather(value):
    """[value of rank 0, value of rank 1, ...] on every rank."""
    values = [value] * world_size
    if world_size > 1:
        dist.all_gather_object(values, value)
    return values


def evaluate():
    """Greedy pass@1 on eval_rows, also by difficulty, as log keys. Every rank does its share."""
    metrics = {}
    mine = eval_rows[rank::world_size]
    with autocast:
        completions = generate(lm, [p['ids'] for p in mine], 1, max_new_tokens, 0.0, stops,
                               kv_cache_gb=kv_cache_gb, progress='evaluate' if rank == 0 else None)
    texts = [completion_text(tokenizer, c['ids']) for (c,) in completions]
    judged = verify_all([(p['kind'], text, p['truth']) for p, text in zip(mine, texts)])
    for p, text, (reward, _) in list(zip(mine, texts, judged))[:3 * (rank == 0)]:
        tqdm.write(f'  {reward:.0f} | {p["text"]!r} -> {text!r}, truth {p["truth"]}')
    verdicts = sum(gather([(p['difficulty'], *verdict) for p, verdict in zip(mine, judged)]), [])
    if verdicts:
        metrics['eval/pass@1'] = sum(v for _, v, _ in verdicts) / len(verdicts)
        metrics['eval/gave_up'] = sum(given_up for *_, given_up in verdicts)  # 0 for want of a verdict
        for level in levels(d for d, *_ in verdicts):
            scores = [v for d, v, _ in verdicts if d == level]
            metrics[f'eval/pass@1/{level}'] = sum(scores) / len(scores)
    return metrics


def rollout(indices, first):
    """Groups of these prompts, in their order, on every rank; each rank samples and judges its share.

    A group: prompt, completions, texts, rewards and advantages (group_size,), spread (do rewards differ),
    taught (is the demonstration learned).
    `first` is the first prompt's place in the order: with `seed` it fixes what is sampled, on any rank."""
    mine = range(len(indices))[rank::world_size]
    rows = [prompts[indices[i]] for i in mine]
    with autocast:
        completions = generate(lm, [p['ids'] for p in rows], group_size, max_new_tokens, temperature, stops,
                               [(seed, 'rollout', first + i) for i in mine], kv_cache_gb,
                               progress='rollout' if rank == 0 else None)
    written = [[completion_text(tokenizer, c['ids']) for c in g] for g in completions]
    asked = [(p['kind'], text, p['truth']) for p, texts in zip(rows, written) for text in texts]
    verdicts = iter(verify_all(asked))
    groups = {}
    for i, prompt, group, texts in zip(mine, rows, completions, written):
        judged = [next(verdicts) for _ in texts]  # (reward, whether the verifier gave up)
        rewards = torch.tensor([reward for reward, _ in judged])
        advantages = rewards - rewards.mean()  # equation 3's numerator; zero when all rewards are equal
        if advantage_std:
            advantages /= rewards.std() + 1e-4
        solved = sum(reward == 1 for reward in rewards.tolist())  # a verdict is 1 or 0; a part is not solved
        taught = bool(prompt['demonstration']) and solved / group_size <= gamma  # the gate
        advantages *= not taught  # its completions are dropped
        groups[i] = {'prompt': prompt, 'completions': group, 'texts': texts, 'rewards': rewards,
                     'advantages': advantages, 'taught': taught,
                     'spread': bool((rewards != rewards[0]).any()),
                     'gave_up': sum(given_up for _, given_up in judged)}
    everyones = {i: group for share in gather(groups) for i, group in share.items()}
    return [everyones[i] for i in range(len(indices))]


def trained_completions(groups):
    """[(prompt ids, completion, advantage)] of the completions of these groups that are trained on."""
    return [(group['prompt']['ids'], completion, group['advantages'][i])
            for group in groups for i, completion in enumerate(group['completions'])
            if completion['stopped'] or not mask_truncated]


def micro_batches_of(groups, rollout_groups=None, n_updates=1):
    """This rank's packed micro-batches of these groups, with each scored token's advantage and loss weight.

    The weight is 1 / denominator over all ranks' completions, so that the loss is one sum. `groups` are the
    share of one of `n_updates` updates on `rollout_groups` (all of it, if left out). The denominator is the
    rollout's, divided by n_updates: a completion weighs the same in a smaller share and in a larger one. A
    prompt is computed once for as many of its completions as fit a micro-batch. A rank without completions
    gets one empty micro-batch: it must still take part in the gradient's all-reduce."""
    docs, rollout_docs = trained_completions(groups), trained_completions(rollout_groups or groups)
    total_tokens = sum(len(c['ids']) for _, c, _ in rollout_docs) / n_updates
    total_sequences = len(rollout_docs) / n_updates
    # Without an advantage a completion has no gradient and need not be computed, as long as every term of the
    # loss is multiplied by the advantage. The KL is not. A term of your own that is not (an entropy bonus)
    # needs all completions too: make this True.
    needs_all = beta > 0
    docs = [doc for doc in docs if doc[2] != 0 or needs_all]
    taught = [group['prompt'] for group in groups if group['taught']]
    shown_tokens = sum(len(group['prompt']['demonstration'])  # the GLOBAL denominator of the SFT side
                       for group in rollout_groups or groups if group['taught']) / n_updates
    docs += [(p['ids'], {'ids': p['demonstration'], 'logprobs': torch.zeros(len(p['demonstration'])),
                         'shown': len(p['demonstration'])}, 1.0) for p in taught]
    # parts of groups, small enough for a micro-batch and for an even share of every rank
    room = min(micro_batch_tokens, sum(len(p) + len(c['ids']) for p, c, _ in docs) / (2 * world_size))
    parts, sizes = [], []
    for prompt, completion, advantage in docs:
        size = len(completion['ids'])
        if not parts or parts[-1][0][0] is not prompt or sizes[-1] + size > room:
            parts.append([])
            sizes.append(len(prompt))
        parts[-1].append((prompt, completion, advantage))
        sizes[-1] += size
    mine = split_by_work(sizes, world_size)[rank]
    micro_batches = []
    for members in pack([sizes[i] for i in mine], micro_batch_tokens) or [[]]:
        part = [doc for i in members for doc in parts[mine[i]]]
        micro = collate([(c['ids'], [True] * len(c['ids']), p) for p, c, _ in part])
        lengths = torch.tensor([len(c['ids']) for _, c, _ in part], dtype=torch.float32)
        denominator = {'tokens': total_tokens, 'sequences': lengths * total_sequences,
                       'constant': max_new_tokens * total_sequences}[loss_denominator]
        micro['shown'] = torch.cat([torch.empty(0), *(
            torch.arange(len(c['ids'])) < c.get('shown', 0) for _, c, _ in part)]).bool()  # not sampled
        micro['weight'] = rl_coef * (torch.ones(len(part)) / denominator)[micro['doc']]  # (N,) of scored ones
        micro['weight'][micro['shown']] = sft_coef / (shown_tokens or 1)
        micro['advantage'] = torch.tensor([a for _, _, a in part])[micro['doc']]
        micro['sampler_logprobs'] = torch.cat([torch.empty(0), *(c['logprobs'] for _, c, _ in part)])
        micro_batches.append({key: x.to(device) if torch.is_tensor(x) else x for key, x in micro.items()})
    return micro_batches


def save_checkpoint():
    """out_dir/state, all that resume needs, and the model in out_dir."""
    own = getattr(optimizer, 'optim', optimizer).state_dict()  # a ZeRO optimizer's own shard
    save_state(out_dir, rank, own, {
        'weights': raw.state_dict(), 'step': step, 'samples': samples, 'tokens': tokens,
        'position': order.position, 'world_size': world_size, 'wandb_id': wandb_id,
        'model': model, 'shard_optimizer': shard_optimizer,
        'log_bytes': rank == 0 and os.path.getsize(log_path)}, lambda: gather(None))
    if rank == 0:
        save_model(lm, tokenizer, out_dir, stops, getattr(torch, dtype))
    gather(None)


# --- resume, logging ----------------------------------------------------------
step = samples = tokens = skipped = 0
wandb_id = None
if resume:
    raw.load_state_dict(saved['weights'])
    # Adam's moments are the checkpoint's; its options (weight_decay, betas) are those of today's settings
    own_optimizer = getattr(optimizer, 'optim', optimizer)
    own_optimizer.load_state_dict({**own, 'param_groups': own_optimizer.state_dict()['param_groups']})
    step, samples, tokens, order.position = (saved[key] for key in ('step', 'samples', 'tokens', 'position'))
    wandb_id = saved['wandb_id']
    if rank == 0:
        os.truncate(log_path, saved['log_bytes'])  # steps after the checkpoint are made again
if rank == 0:
    os.makedirs(out_dir, exist_ok=True)
    if overwrite and not resume:
        shutil.rmtree(os.path.join(out_dir, 'state'), ignore_errors=True)
        open(log_path, 'w').close()
    with open(os.path.join(out_dir, 'run.json'), 'w') as f:
        json.dump({'script': sys.argv[0], **config}, f, indent=1)
    if wandb_log:
        import wandb
        wandb_id = wandb.init(project=wandb_project, name=os.path.basename(out_dir), config=config,
                              dir=out_dir, id=wandb_id, resume='allow').id
    n = sum(p.numel() for p in lm.parameters())
    print(f'{n:,} parameters, {world_size} x {device}, {max_steps} steps of '
          f'{prompts_per_step} prompts x {group_size}, {len(order)} prompts an epoch')
bar = tqdm(total=max_steps, initial=step, disable=None if rank == 0 else True, unit='step')
stopping = catch_stop()


def log(metrics):
    """One line of log.jsonl and wandb, and one on the console."""
    global wandb_log
    os.makedirs(out_dir, exist_ok=True)  # deleted under a run: what comes from here on is kept
    with open(log_path, 'a') as f:
        f.write(json.dumps(metrics) + '\n')
    if wandb_log:
        try:
            wandb.log(metrics, step=metrics['step'])
        except Exception as error:  # wandb only mirrors log.jsonl: its troubles must not end a run
            wandb_log = False
            tqdm.write(f'wandb fails and is off from here, log.jsonl goes on: {error}')
    if metrics['step'] % log_every == 0 or any(key.startswith('eval/') for key in metrics):
        shown = {key: value for key, value in metrics.items() if not key.startswith('eval/pass@1/')}
        tqdm.write('  '.join(f'{key} {value:.4g}' if isinstance(value, float) else f'{key} {value}'
                             for key, value in shown.items()))


# --- the loop -----------------------------------------------------------------
while True:
    # evaluate these weights, whose checkpoint is written: what fails here costs no step
    if eval_rows and (step >= max_steps or due(eval_every)):
        scores = evaluate()
        if rank == 0:
            log({'step': step, 'samples': samples, 'tokens': tokens, **scores})
    if step >= max_steps:
        break

    start = time.time()
    # rollout, reward, advantage
    rollout_start = time.time()
    groups, seen = [], []
    # groups whose rewards are all alike teach nothing: fresh prompts take their places (DAPO)
    for attempt in range(resample_rounds + 1):
        first = order.position
        fresh = rollout(order.take(prompts_per_step - len(groups)), first)
        seen += fresh
        groups += [g for g in fresh if g['spread'] or g['taught'] or attempt == resample_rounds]
        if len(groups) == prompts_per_step:
            break
    rollout_seconds = time.time() - rollout_start
    rewards = torch.cat([g['rewards'] for g in seen])
    completions = [c for g in seen for c in g['completions']]
    lengths = [len(c['ids']) for c in completions]
    generated = sum(lengths)
    step_tokens = sum(len(g['prompt']['ids']) + len(c['ids']) for g in groups for c in g['completions'])
    step_tokens += sum(len(g['prompt']['ids']) + len(g['prompt']['demonstration'])
                       for g in groups if g['taught'])
    tokens += step_tokens
    metrics = {
        'reward/mean': rewards.mean().item(),
        'reward/zero_std_frac': sum(not g['spread'] for g in seen) / len(seen),
        'reward/gave_up': sum(g['gave_up'] for g in seen),  # verdicts of 0 that show nothing
        'hpt/sft_frac': sum(g['taught'] for g in groups) / len(groups),
        'completion/len_mean': sum(lengths) / len(completions),
        'completion/truncated_frac': sum(not c['stopped'] for c in completions) / len(completions),
        'tokens/sampled': generated + sum(len(g['prompt']['ids']) for g in seen),  # a prompt once a group
        'perf/gen_tok_s': generated / rollout_seconds}
    if rank == 0 and due(sample_every):
        for text, reward in zip(groups[0]['texts'][:3], groups[0]['rewards'].tolist()):
            tqdm.write(f'  {reward:.0f} | {groups[0]["prompt"]["text"]!r} -> {text!r}')

    # what does not change during the updates: old log-probs (only if there are several) and the reference's
    n_updates = min(updates_per_rollout, max_steps - step)
    shares = [groups[i::n_updates] for i in range(n_updates)]
    updates = [micro_batches_of(share, groups, n_updates) for share in shares]
    for micro in sum(updates, []):
        packed = micro['ids'], micro['lengths'], micro['index'], temperature, micro['parents']
        with torch.no_grad(), autocast:
            if n_updates > 1:
                micro['old_logprobs'], _ = raw(*packed)
            if reference:
                micro['ref_logprobs'], _ = reference(*packed)

    for share, micro_batches in zip(shares, updates):
        # loss, backward
        # loss, tokens computed, demonstrations' -log pi and tokens; of sampled tokens entropy, k3, clipped,
        # |sampler - trainer|, their number
        sums = torch.zeros(9, dtype=torch.float64)
        for i, micro in enumerate(micro_batches):
            with policy.no_sync() if world_size > 1 and i < len(micro_batches) - 1 else nullcontext():
                with autocast:
                    logprobs, entropy = policy(
                        micro['ids'], micro['lengths'], micro['index'], temperature, micro['parents'])
                weight, sampler_logprobs = micro['weight'], micro['sampler_logprobs']
                old_logprobs = micro.get('old_logprobs', logprobs.detach())
                shown = micro['shown']  # nothing sampled these: their reference policy is the current one
                old_logprobs, sampler_logprobs = (
                    torch.where(shown, logprobs.detach(), x) for x in (old_logprobs, sampler_logprobs))
                if importance_cap:  # truncated: the sampler's policy is not quite the trainer's
                    sampled = torch.exp(old_logprobs - sampler_logprobs)
                    weight = weight * sampled.clamp(max=importance_cap)
                ratio, advantage = torch.exp(logprobs - old_logprobs), micro['advantage']  # grad pi / pi_old
                unclipped, clipped = ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
                objective = torch.min(unclipped, clipped)  # equation 3; the min is the mask
                k3 = torch.zeros_like(logprobs)
                if reference:
                    difference = micro['ref_logprobs'] - logprobs
                    # equation 4 (expm1 keeps small ones' digits); the ratio makes its gradient the KL's
                    k3 = ~shown * ratio * (torch.expm1(difference) - difference)
                loss = -(weight * (objective - beta * k3)).sum()
                (loss * world_size).backward()  # DDP averages over ranks, the loss is a sum
            with torch.no_grad():
                mismatch = (old_logprobs - sampler_logprobs).abs()
                sums += torch.stack([x.double().sum().cpu() for x in (
                    loss, micro['ids'] >= 0, -logprobs * shown, shown,
                    entropy * ~shown, k3, clipped < unclipped, mismatch, ~shown)])

        # step
        grad_norm = torch.nn.utils.clip_grad_norm_(raw.parameters(), grad_clip or math.inf)
        for group in optimizer.param_groups:
            group['lr'] = learning_rate_at(step)
        skipped = 0 if grad_norm.isfinite() else skipped + 1  # in a row, on all ranks alike
        if not skipped:
            optimizer.step()
        # DDP's gradients live in its buckets: freed, they would be made again beside these
        optimizer.zero_grad(set_to_none=world_size == 1)
        step, samples = step + 1, samples + group_size * len(share)

        # log
        loss, trained, nll, shown, *means, n = sum(gather(sums)).tolist()
        if rank == 0:
            seconds = time.time() - start
            means = dict(zip(('policy/entropy', 'policy/kl', 'policy/clip_frac', 'policy/mismatch'),
                             (x / max(1, n) for x in means)))  # over the tokens that have a gradient
            record = {'step': step, 'samples': samples, 'tokens': tokens, 'loss': loss,
                      'lr': learning_rate_at(step - 1), 'grad_norm': grad_norm.item(), 'skipped': skipped,
                      **metrics, **means, 'tokens/trained': int(trained), 'perf/tok_s': step_tokens / seconds,
                      'perf/gen_frac': rollout_seconds / seconds}
            if shown:
                record['hpt/sft_loss'] = nll / shown
            if 'cuda' in device:
                record['perf/peak_gb'] = torch.cuda.max_memory_allocated() / 1e9
            log(record)
            bar.update()
            metrics.pop('tokens/sampled', None)  # of several updates on a rollout the first has its cost
        if skipped == 10:
            raise UserError('10 gradients in a row not finite: --resume=True --learning_rate=(less)')
    # between rollouts, so that none is pending
    asked_to_stop = any(gather(bool(stopping)))
    evaluation_next = bool(eval_rows) and due(eval_every)
    if step >= max_steps or asked_to_stop or evaluation_next or due(checkpoint_every):
        save_checkpoint()
    if asked_to_stop:
        break

# --- clean up -----------------------------------------------------------------
bar.close()
if rank == 0:
    print(f'model, log.jsonl and state/ are in {out_dir}' + '; --resume=True goes on' * bool(stopping))
if world_size > 1:
    del policy, optimizer  # they hold the process group: its threads end here, not at the interpreter's end
    dist.destroy_process_group()
