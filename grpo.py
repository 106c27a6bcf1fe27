"""Group Relative Policy Optimization (Shao et al. 2024, arXiv 2402.03300) with verifiable rewards.

    python grpo.py config/tiny.py                             # 1 CPU: the embedded task, minutes
    python grpo.py config/qwen3_0.6b.py                       # 1 GPU
    torchrun --nproc-per-node 8 grpo.py config/qwen3_4b.py    # 8 GPUs

The unified estimator (Lv et al. 2025, arXiv 2509.04419) is mask x (1 / reference policy) x advantage x
likelihood gradient. For GRPO:

    mask                  completion tokens whose ratio is not clipped away
    reference policy      the policy that sampled, pi_old; with one update per rollout the current one
    advantage             (reward - mean of the group) / (std of the group + 1e-4), or only centred
    likelihood gradient   grad pi(token | prompt, completion before it)

Deviations from the paper: (1) the loss is a sum over completion tokens divided by their number in the whole
step, on all ranks (DAPO, arXiv 2503.14476; `loss_denominator` has the paper's, Dr. GRPO's); (2) no KL and no
reference model unless beta > 0; (3) one update per rollout by default: the ratio is 1, the loss near 0, the
gradient is not; (4) sampled ids are trained on, never re-encoded text, at the temperature of sampling;
(5) the k3 estimate of the KL is multiplied by the ratio, without which its gradient is not the KL's
(DeepSeek-V3.2, arXiv 2512.02556).
"""
import json
import math
import os
import shutil
import sys
import time
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from checkpoint import catch_stop, load_state, save_state
from configurator import UserError, configure
from data import Order, collate, format_report, load_tokenizer, pack, rl_prompts
from data import split_by_work, stop_ids
from model import Policy, load_model, memory_plan, save_model
from rollout import generate
from rows import read_rows
from verify import verify_all

# --- config -------------------------------------------------------------------
# what and where
model = 'tiny'  # hub id, local Hugging Face folder, 'tiny', or 'random:<shape>' (model.py)
chat_template = ''  # file with a Jinja chat template; '': the tokenizer's own
data = 'sums:train'  # sources, each with optional passes per epoch: 'a.jsonl*0.5, b.json*2'
eval_prompts = 'sums:test'  # held-out rows for eval/pass@1; '' for none
verifier = ''  # kind of verifier; '' goes by each row's own dataset name
instruction = ''  # appended to every prompt, e.g. how to write the final answer
out_dir = 'out/grpo'  # run folder: model, log.jsonl, run.json, state/
resume = False  # go on from out_dir/state
overwrite = False  # start afresh in an out_dir that holds another run
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
advantage_std = True  # divide the centred rewards by the group's std; False: only centred (Dr. GRPO)
updates_per_rollout = 1  # optimizer steps on one rollout batch, each on its share of the prompts
clip_low, clip_high = 0.2, 0.28  # ratio within [1 - clip_low, 1 + clip_high]; matters with updates > 1
loss_denominator = 'tokens'  # 'tokens' (global mean), 'sequences' (mean of means), 'constant'
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
checkpoint_every = 50  # steps between checkpoints; the last step always makes one
log_every = 1  # steps between lines on the console; log.jsonl has every step
wandb_log = False  # WANDB_MODE=offline works too
wandb_project = 'nanopost'
# system
seed = 1337
device = 'cuda' if torch.cuda.is_available() else 'cpu'
dtype = 'bfloat16' if torch.cuda.is_available() else 'float32'  # of compute; weights are fp32
activation_checkpointing = False  # recompute each layer in backward
compile = False  # torch.compile of every layer: half a minute at first; on CPUs then 1.00 to 1.08 x as fast
shard_optimizer = True  # Adam's moments over the ranks (ZeRO stage 1), when there are several
config = configure(globals())

# --- ranks, seed, device ------------------------------------------------------
rank, world_size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
if device == 'cuda' and not torch.cuda.is_available():
    raise UserError('device=cuda, but torch sees no CUDA device: set --device=cpu --dtype=float32')
if dtype not in ('float32', 'bfloat16') or schedule not in ('cosine', 'linear', 'constant'):
    raise UserError('dtype is float32 or bfloat16, schedule is cosine, linear or constant')
if device == 'cuda':
    device = f'cuda:{os.environ.get("LOCAL_RANK", 0)}'
    torch.cuda.set_device(device)
log_path = os.path.join(out_dir, 'log.jsonl')
saved, own = load_state(out_dir, rank, world_size) if resume else (None, None)
if not resume and not overwrite and os.path.exists(out_dir) and os.listdir(out_dir):
    raise UserError(f'out_dir {out_dir} is not empty: say --resume=True or --overwrite=True')
if world_size > 1:
    # an hour: a long rollout or a slow disk on one rank is no failure
    dist.init_process_group('nccl' if 'cuda' in device else 'gloo', timeout=timedelta(hours=1))
torch.manual_seed(seed)  # the same start on every rank
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
    weighted.append((weight, list(range(len(prompts), len(prompts) + len(kept)))))
    prompts += kept
order = Order(weighted, seed)
eval_rows = []
if eval_prompts:
    eval_rows, report['eval_prompts: ' + eval_prompts] = rl_prompts(
        read_rows(eval_prompts)[0], tokenizer, max_prompt_tokens, verifier, instruction)
if rank == 0:
    print('\n'.join(f'{name}: {format_report(counts)}' for name, counts in report.items()))
    print('first prompt: ' + repr(tokenizer.decode(prompts[0]['ids'])))

# --- model --------------------------------------------------------------------
lm = load_model(model, device)
if activation_checkpointing:
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})
if compile:
    for layer in lm.base_model.layers:
        layer.compile(dynamic=True)
raw = policy = Policy(lm)
reference = Policy(load_model(model, device, getattr(torch, dtype)).eval()) if beta else None
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
    """Linear warm-up to learning_rate, then `schedule` down to min_learning_rate at max_steps."""
    if step < warmup_steps:
        return learning_rate * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    left = {'cosine': 0.5 * (1 + math.cos(math.pi * done)), 'linear': 1 - done, 'constant': 1.0}[schedule]
    return min_learning_rate + left * (learning_rate - min_learning_rate)


# --- helpers ------------------------------------------------------------------
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
    texts = [tokenizer.decode(c['ids'], skip_special_tokens=True) for (c,) in completions]
    judged = verify_all([(p['kind'], text, p['truth']) for p, text in zip(mine, texts)])
    for p, text, (reward, _) in list(zip(mine, texts, judged))[:3 * (rank == 0)]:
        tqdm.write(f'  {reward:.0f} | {p["text"]!r} -> {text!r}, truth {p["truth"]}')
    verdicts = sum(gather([(p['difficulty'], *verdict) for p, verdict in zip(mine, judged)]), [])
    if verdicts:
        metrics['eval/pass@1'] = sum(v for _, v, _ in verdicts) / len(verdicts)
        metrics['eval/gave_up'] = sum(given_up for *_, given_up in verdicts)  # 0 for want of a verdict
        for level in sorted({d for d, *_ in verdicts if d is not None}):
            scores = [v for d, v, _ in verdicts if d == level]
            metrics[f'eval/pass@1/{level}'] = sum(scores) / len(scores)
    return metrics


def rollout(indices, first):
    """Groups of these prompts, in their order, on every rank; each rank samples and judges its share.

    A group: prompt, completions, texts, rewards and advantages (group_size,), spread (do rewards differ).
    `first` is the first prompt's place in the order: with `seed` it fixes what is sampled, on any rank."""
    mine = range(len(indices))[rank::world_size]
    rows = [prompts[indices[i]] for i in mine]
    with autocast:
        completions = generate(lm, [p['ids'] for p in rows], group_size, max_new_tokens, temperature, stops,
                               [seed * 2 ** 32 + first + i for i in mine], kv_cache_gb,
                               progress='rollout' if rank == 0 else None)
    written = [[tokenizer.decode(c['ids'], skip_special_tokens=True) for c in g] for g in completions]
    asked = [(p['kind'], text, p['truth']) for p, texts in zip(rows, written) for text in texts]
    verdicts = iter(verify_all(asked))
    groups = {}
    for i, prompt, group, texts in zip(mine, rows, completions, written):
        judged = [next(verdicts) for _ in texts]  # (reward, whether the verifier gave up)
        rewards = torch.tensor([reward for reward, _ in judged])
        advantages = rewards - rewards.mean()  # equation 3's numerator; zero when all rewards are equal
        if advantage_std and group_size > 1:
            advantages /= rewards.std() + 1e-4
        groups[i] = {'prompt': prompt, 'completions': group, 'texts': texts, 'rewards': rewards,
                     'advantages': advantages, 'spread': bool((rewards != rewards[0]).any()),
                     'gave_up': sum(given_up for _, given_up in judged)}
    everyones = {i: group for share in gather(groups) for i, group in share.items()}
    return [everyones[i] for i in range(len(indices))]


def micro_batches_of(groups):
    """This rank's packed micro-batches of these groups, with each scored token's advantage and loss weight.

    The weight is 1 / denominator over all ranks' completions, so that the loss is one sum. A prompt is
    computed once for as many of its completions as fit a micro-batch. A rank without completions gets one
    empty micro-batch: it must still take part in the gradient's all-reduce."""
    docs = [(group['prompt']['ids'], completion, group['advantages'][i])
            for group in groups for i, completion in enumerate(group['completions'])
            if completion['stopped'] or not mask_truncated]
    total_tokens, total_sequences = sum(len(c['ids']) for _, c, _ in docs), len(docs)
    docs = [doc for doc in docs if doc[2] != 0 or beta]  # no advantage, no gradient: nothing to compute
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
        micro['weight'] = (torch.ones(len(part)) / denominator)[micro['doc']]  # (N,) of every scored token
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
        'log_bytes': rank == 0 and os.path.getsize(log_path)}, lambda: gather(None))
    if rank == 0:
        save_model(lm, tokenizer, out_dir, stops, getattr(torch, dtype))
    gather(None)


# --- resume, logging ----------------------------------------------------------
step = samples = tokens = skipped = 0
wandb_id = None
if resume:
    raw.load_state_dict(saved['weights'])
    getattr(optimizer, 'optim', optimizer).load_state_dict(own)
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
    os.makedirs(out_dir, exist_ok=True)  # deleted under a run: what comes from here on is kept
    with open(log_path, 'a') as f:
        f.write(json.dumps(metrics) + '\n')
    if wandb_log:
        wandb.log(metrics, step=metrics['step'])
    if metrics['step'] % log_every == 0 or any(key.startswith('eval/') for key in metrics):
        shown = {key: value for key, value in metrics.items() if not key.startswith('eval/pass@1/')}
        tqdm.write('  '.join(f'{key} {value:.4g}' if isinstance(value, float) else f'{key} {value}'
                             for key, value in shown.items()))


# --- the loop -----------------------------------------------------------------
while step < max_steps:
    start = time.time()
    metrics = {}
    if eval_every and step % eval_every == 0:
        metrics = evaluate()

    # rollout, reward, advantage
    rollout_start = time.time()
    groups, seen = [], []
    # groups whose rewards are all alike teach nothing: fresh prompts take their places (DAPO)
    for attempt in range(resample_rounds + 1):
        first = order.position
        fresh = rollout(order.take(prompts_per_step - len(groups)), first)
        seen += fresh
        groups += [g for g in fresh if g['spread'] or attempt == resample_rounds]
        if len(groups) == prompts_per_step:
            break
    rollout_seconds = time.time() - rollout_start
    rewards = torch.cat([g['rewards'] for g in seen])
    completions = [c for g in seen for c in g['completions']]
    lengths = [len(c['ids']) for c in completions]
    generated = sum(lengths)
    step_tokens = sum(len(g['prompt']['ids']) + len(c['ids']) for g in groups for c in g['completions'])
    tokens += step_tokens
    metrics.update({
        'reward/mean': rewards.mean().item(),
        'reward/zero_std_frac': sum(not g['spread'] for g in seen) / len(seen),
        'reward/gave_up': sum(g['gave_up'] for g in seen),  # verdicts of 0 that show nothing
        'completion/len_mean': sum(lengths) / len(completions),
        'completion/truncated_frac': sum(not c['stopped'] for c in completions) / len(completions),
        'tokens/sampled': generated + sum(len(g['prompt']['ids']) for g in seen),  # a prompt once a group
        'perf/gen_tok_s': generated / rollout_seconds})
    if rank == 0 and sample_every and step % sample_every == 0:
        for text, reward in zip(groups[0]['texts'][:3], groups[0]['rewards'].tolist()):
            tqdm.write(f'  {reward:.0f} | {groups[0]["prompt"]["text"]!r} -> {text!r}')

    # what does not change during the updates: old log-probs (only if there are several) and the reference's
    updates = [micro_batches_of(groups[i::updates_per_rollout]) for i in range(updates_per_rollout)]
    for micro in sum(updates, []):
        packed = micro['ids'], micro['lengths'], micro['index'], temperature, micro['parents']
        with torch.no_grad(), autocast:
            if updates_per_rollout > 1:
                micro['old_logprobs'], _ = raw(*packed)
            if reference:
                micro['ref_logprobs'], _ = reference(*packed)

    for micro_batches in updates:
        # loss, backward
        # loss, tokens computed, entropy, k3, clipped, |sampler - trainer|, tokens scored
        sums = torch.zeros(7, dtype=torch.float64)
        for i, micro in enumerate(micro_batches):
            with policy.no_sync() if world_size > 1 and i < len(micro_batches) - 1 else nullcontext():
                with autocast:
                    logprobs, entropy = policy(
                        micro['ids'], micro['lengths'], micro['index'], temperature, micro['parents'])
                weight, sampler_logprobs = micro['weight'], micro['sampler_logprobs']
                old_logprobs = micro.get('old_logprobs', logprobs.detach())
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
                    k3 = ratio * (torch.expm1(difference) - difference)
                loss = -(weight * (objective - beta * k3)).sum()
                (loss * world_size).backward()  # DDP averages over ranks, the loss is a sum
            with torch.no_grad():
                mismatch = (logprobs - sampler_logprobs).abs()
                sums += torch.stack([x.double().sum().cpu() for x in (
                    loss, micro['ids'] >= 0, entropy, k3, clipped < unclipped, mismatch,
                    torch.ones_like(logprobs))])

        # step
        grad_norm = torch.nn.utils.clip_grad_norm_(raw.parameters(), grad_clip or math.inf)
        for group in optimizer.param_groups:
            group['lr'] = learning_rate_at(step)
        skipped = 0 if grad_norm.isfinite() else skipped + 1  # in a row, on all ranks alike
        if not skipped:
            optimizer.step()
        # DDP's gradients live in its buckets: freed, they would be made again beside these
        optimizer.zero_grad(set_to_none=world_size == 1)
        step, samples = step + 1, samples + group_size * prompts_per_step // updates_per_rollout

        # log
        loss, trained, *means, n = sum(gather(sums)).tolist()
        if step >= max_steps:
            metrics.update(evaluate())
        if rank == 0:
            seconds = time.time() - start
            means = dict(zip(('policy/entropy', 'policy/kl', 'policy/clip_frac', 'policy/mismatch'),
                             (x / max(1, n) for x in means)))  # over the tokens that have a gradient
            record = {'step': step, 'samples': samples, 'tokens': tokens, 'loss': loss,
                      'lr': learning_rate_at(step - 1), 'grad_norm': grad_norm.item(), 'skipped': skipped,
                      **metrics, **means, 'tokens/trained': int(trained), 'perf/tok_s': step_tokens / seconds,
                      'perf/gen_frac': rollout_seconds / seconds}
            if 'cuda' in device:
                record['perf/peak_gb'] = torch.cuda.max_memory_allocated() / 1e9
            log(record)
            bar.update()
            # of several updates on a rollout only the first has its evaluation and its count of tokens
            metrics = {k: v for k, v in metrics.items() if not k.startswith(('eval/', 'tokens/'))}
        if skipped == 10:
            raise UserError('10 gradients in a row not finite: --resume=True --learning_rate=(less)')
    if any(gather(bool(stopping))):
        max_steps = step  # asked to end: this was the last step
    if step >= max_steps or checkpoint_every and step % checkpoint_every < updates_per_rollout:
        save_checkpoint()  # between rollouts, so that none is pending

# --- clean up -----------------------------------------------------------------
bar.close()
if rank == 0:
    print(f'model, log.jsonl and state/ are in {out_dir}' + '; --resume=True goes on' * bool(stopping))
if world_size > 1:
    del policy, optimizer  # they hold the process group: its threads end here, not at the interpreter's end
    dist.destroy_process_group()
