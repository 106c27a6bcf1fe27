"""Supervised fine-tuning: packed documents, the global token mean, exact resume.

    python sft.py config/tiny_base.py                         # 1 CPU: the start model of the embedded task
    python sft.py config/qwen3_0.6b.py                        # 1 GPU
    torchrun --nproc-per-node 8 sft.py config/qwen3_4b.py     # 8 GPUs

The unified estimator (Lv et al. 2025, arXiv 2509.04419) is mask x (1 / reference policy) x advantage x
likelihood gradient. For SFT:

    mask                  supervised tokens: what assistants say and the end of their turn
    reference policy      the current policy itself, so 1/pi * grad pi = grad log pi
    advantage             1
    likelihood gradient   grad pi(token | the document before it)

Deviations from the usual script: (1) the loss is a sum over supervised tokens divided by their number in the
whole step, over all ranks and micro-batches, whatever the packing; (2) documents in a packed row do not see
each other; (3) a row whose mask cannot be shown right is dropped.
"""
import json
import math
import os
import shutil
import sys
import time
from contextlib import nullcontext
from datetime import timedelta

from configurator import UserError, at_least, configure

# --- config -------------------------------------------------------------------
# what and where
model = 'tiny'  # hub id, local Hugging Face folder, 'tiny', or 'random:<shape>' (model.py)
chat_template = ''  # file with a Jinja chat template; '': the tokenizer's own
data = 'sums:base'  # sources, each with optional passes per epoch: 'a.jsonl*0.5, b.json*2'
eval_data = 'sums:test'  # held-out rows for eval/loss; '' for none
eval_prompts = 'sums:test'  # rows with a checkable truth for eval/pass@1; '' for none
verifier = ''  # kind of verifier for eval_prompts; '' goes by each row's own dataset name
instruction = ''  # appended to every eval prompt, e.g. how to write the final answer
out_dir = 'out/sft'  # run folder: model, log.jsonl, run.json, state/
resume = False  # go on from out_dir/state
overwrite = False  # start afresh in an out_dir that holds another run
# batch
batch_size = 64  # sequences per step, over all GPUs
micro_batch_tokens = 8192  # tokens in one forward, per GPU
max_length = 1024  # tokens; longer rows go the way of `overlong`
overlong = 'drop'  # 'drop' or 'cut' (no end of turn is invented)
max_steps = 500  # optimizer steps; 0: as many as `epochs` makes
epochs = 1.0  # passes over the data when max_steps is 0
# optimizer
learning_rate = 1e-3  # peak
min_learning_rate = 0.0  # at the last step of cosine and linear
schedule = 'cosine'  # 'cosine', 'linear' or 'constant' after the warm-up
warmup_steps = 20  # linear from 0
weight_decay = 0.0  # on matrices only
beta1, beta2 = 0.9, 0.95  # Adam
grad_clip = 1.0  # global norm; 0: off
# evaluation, log, checkpoint
eval_every = 100  # steps; 0: only at the end
max_new_tokens = 64  # evaluation completions, tokens
checkpoint_every = 500  # steps between checkpoints; one more before each evaluation and at the end
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
kv_cache_gb = 4.0  # GB for generation's KV cache, per GPU
config = configure(globals(), max_steps=at_least(0))
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
from data import rl_prompts, sft_examples, show_mask, split_by_work, stop_ids
from model import Policy, check_token_ids, load_model, memory_plan, save_model
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
examples, report, weighted = [], {}, []  # weighted: (passes per epoch, rows kept) of every source
for name, weight, start, stop in sources:
    kept, report[name] = sft_examples(rows[start:stop], tokenizer, max_length, overlong)
    weighted.append((weight, list(range(len(examples), len(examples) + len(kept)))))
    examples += kept
order = Order(weighted, seed)
max_steps = max_steps or math.ceil(len(order) * epochs / batch_size)
eval_examples, eval_rows = [], []
if eval_data:
    eval_examples, report['eval_data: ' + eval_data] = sft_examples(
        read_rows(eval_data)[0], tokenizer, max_length)
if eval_prompts:
    eval_rows, report['eval_prompts: ' + eval_prompts] = rl_prompts(
        read_rows(eval_prompts)[0], tokenizer, max_length, verifier, instruction)
has_evaluation = bool(eval_examples or eval_rows)
if rank == 0:
    print('\n'.join(f'{name}: {format_report(counts)}' for name, counts in report.items()))
    print('first row, what is trained in [[ ]]:\n' + show_mask(examples[0], tokenizer))

# --- model --------------------------------------------------------------------
lm = load_model(model, device)
check_token_ids(lm, tokenizer, examples + eval_examples + eval_rows)
if activation_checkpointing:
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})
if compile:
    for layer in lm.base_model.layers:
        layer.compile(dynamic=True)
raw = policy = Policy(lm)
if world_size > 1:
    policy = DistributedDataParallel(raw, gradient_as_bucket_view=True, broadcast_buffers=False)
if rank == 0:
    plan = memory_plan(lm.config, world_size, micro_batch_tokens, activation_checkpointing, shard_optimizer,
                       dtype == 'bfloat16', kv_cache_gb=kv_cache_gb,
                       rollout_rows=math.ceil(len(eval_rows) / world_size), max_new_tokens=max_new_tokens)
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
    """Whether this step is a multiple of `every`; 0 is never."""
    return every > 0 and step % every == 0


def gather(value):
    """[value of rank 0, value of rank 1, ...] on every rank."""
    values = [value] * world_size
    if world_size > 1:
        dist.all_gather_object(values, value)
    return values


def evaluate():
    """Greedy pass@1 on eval_rows, also by difficulty, and the token-mean loss on eval_examples, as log keys.
    Every rank does its share."""
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
    loss, mine = 0.0, eval_examples[rank::world_size]
    for rows in pack([len(e['ids']) for e in mine], micro_batch_tokens):
        micro = collate([(mine[i]['ids'], mine[i]['mask']) for i in rows])
        with torch.no_grad(), autocast:
            logprobs, _ = raw(micro['ids'].to(device), micro['lengths'], micro['index'].to(device))
        loss -= logprobs.double().sum().item()
    if eval_examples:
        metrics['eval/loss'] = sum(gather(loss)) / sum(int(e['mask'].sum()) for e in eval_examples)
    return metrics


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
          f'{batch_size} sequences, {len(order)} rows an epoch')
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
    if has_evaluation and (step >= max_steps or step > 0 and due(eval_every)):
        scores = evaluate()
        if rank == 0:
            log({'step': step, 'samples': samples, 'tokens': tokens, **scores})
    if step >= max_steps:
        break

    start = time.time()
    # the plan is made from the whole step's rows, the same on every rank; each takes its share of the work
    batch = [examples[i] for i in order.take(batch_size)]
    step_tokens = sum(len(e['ids']) for e in batch)
    supervised = sum(int(e['mask'].sum()) for e in batch)  # the GLOBAL denominator
    mine = [batch[i] for i in split_by_work([len(e['ids']) for e in batch], world_size)[rank]]
    bins = pack([len(e['ids']) for e in mine], micro_batch_tokens) or [[]]  # without rows it still takes part

    # loss, backward
    loss = torch.zeros((), device=device)
    for i, rows in enumerate(bins):
        micro = collate([(mine[j]['ids'], mine[j]['mask']) for j in rows])
        with policy.no_sync() if world_size > 1 and i < len(bins) - 1 else nullcontext():
            with autocast:
                logprobs, _ = policy(micro['ids'].to(device), micro['lengths'], micro['index'].to(device))
                micro_loss = -logprobs.sum() / supervised  # mask x 1/pi x 1 x grad pi = grad log pi
            (micro_loss * world_size).backward()  # DDP averages over ranks, the loss is a sum
        loss += micro_loss.detach()

    # step
    grad_norm = torch.nn.utils.clip_grad_norm_(raw.parameters(), grad_clip or math.inf)
    for group in optimizer.param_groups:
        group['lr'] = learning_rate_at(step)
    skipped = 0 if grad_norm.isfinite() else skipped + 1  # in a row, on all ranks alike
    if not skipped:
        optimizer.step()
    # DDP's gradients live in its buckets: freed, they would be made again beside these
    optimizer.zero_grad(set_to_none=world_size == 1)
    step, samples, tokens = step + 1, samples + batch_size, tokens + step_tokens

    # log, checkpoint
    losses = gather(loss.item())
    if rank == 0:
        seconds = time.time() - start
        metrics = {'step': step, 'samples': samples, 'tokens': tokens, 'loss': sum(losses),
                   'lr': learning_rate_at(step - 1), 'grad_norm': grad_norm.item(), 'skipped': skipped,
                   'perf/tok_s': step_tokens / seconds}
        if 'cuda' in device:
            metrics['perf/peak_gb'] = torch.cuda.max_memory_allocated() / 1e9
        log(metrics)
        bar.update()
    if skipped == 10:
        raise UserError('10 gradients in a row not finite: --resume=True --learning_rate=(less)')
    asked_to_stop = any(gather(bool(stopping)))
    evaluation_next = has_evaluation and due(eval_every)
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
