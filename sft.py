"""Supervised fine-tuning: packed documents, the global token mean, exact resume.

    python sft.py config/tiny_base.py                         # 1 CPU: the start model of the embedded task
    python sft.py config/qwen3_0.6b.py                        # 1 GPU
    torchrun --nproc-per-node 8 sft.py config/qwen3_4b.py     # 8 GPUs

The unified estimator (Lv et al. 2025, arXiv 2509.04419) is mask x (1 / reference policy) x advantage x
likelihood gradient. For SFT:

    mask                  supervised tokens: the assistants' turns and the end of each
    reference policy      the current policy itself, so 1/pi * grad pi = grad log pi
    advantage             1
    likelihood gradient   grad pi(token | the document before it)

Deviations from the usual script: (1) the loss is a sum over supervised tokens divided by their number in the
whole step, over all ranks and micro-batches, whatever the packing; (2) documents in a packed row do not see
each other; (3) a row whose mask cannot be checked against the chat template is dropped.
"""
import math
import time
from contextlib import nullcontext

from configurator import UserError, at_least, check_out_dir, configure

# --- config -------------------------------------------------------------------
# what and where
model = 'tiny'  # hub id, local Hugging Face folder, 'tiny', or 'random:<shape>' (model.py)
chat_template = ''  # file with a Jinja chat template; '': the tokenizer's own
template_date = ''  # day that a chat template is told which asks for it; '': the model's, or 2024-07-26
rope_theta = 0.0  # base of the rotary embeddings' frequencies; 0: the model's own
max_position_embeddings = 0  # longest prompt with its completion, tokens; 0: the model's own
data = 'search:base'  # sources, each with optional passes per epoch: 'a.jsonl*0.5, b.json*2'
eval_data = 'search:test'  # held-out rows for eval/loss; '' for none
eval_prompts = 'search:test'  # rows with a checkable truth for eval/pass@1; '' for none
verifier = ''  # kind of verifier for eval_prompts; '' goes by each row's own dataset name
languages = ''  # file of programming languages for verifier 'code', besides the built-in ones
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
# what is trained
lora_rank = 0  # rank of the update of each linear layer (LoRA), other weights are frozen; 0: all weights
lora_alpha = 32.0  # with LoRA: the update is multiplied by lora_alpha / lora_rank
# optimizer
learning_rate = 1e-3  # peak
min_learning_rate = 0.0  # at the last step of cosine and linear
schedule = 'cosine'  # 'cosine', 'linear' or 'constant' after the warm-up
warmup_steps = 20  # a linear rise: step i of them has i / warmup_steps of the peak
weight_decay = 0.0  # on matrices only
beta1, beta2 = 0.9, 0.95  # Adam
grad_clip = 1.0  # global norm; 0: off
# evaluation, log, checkpoint
eval_every = 100  # steps; 0: only at the end
eval_samples = 1  # completions of each of eval_prompts
eval_temperature = 0.0  # of these completions; 0: greedy
max_new_tokens = 128  # evaluation completions, tokens
checkpoint_every = 500  # steps between checkpoints; one more before each evaluation and at the end
log_every = 1  # steps between lines on the console; log.jsonl has every step
wandb_log = False  # WANDB_MODE=offline works too
wandb_project = 'nanopost'
# system
seed = 1337
device = 'auto'  # 'cpu' or 'cuda'; 'auto': a GPU where there is one
dtype = 'auto'  # of compute, what is trained is fp32; 'auto': bfloat16 on a GPU, float32 on a CPU
activation_checkpointing = False  # recompute each layer in backward
compile = False  # torch.compile of every layer: 20 seconds at first; an H200 gains half, a CPU 0 to 8 %
shard = 'optimizer'  # over the ranks: 'none', 'optimizer' (Adam's moments), 'all' (weights too: FSDP2)
kv_cache_gb = 4.0  # GB for generation's KV cache, per GPU
config = configure(globals(), max_steps=at_least(0))
check_out_dir(out_dir, resume, overwrite)

# --- imports ------------------------------------------------------------------
# after the settings, because they take seconds: a mistake in a flag is answered at once
import torch
from torch.distributed.optim import ZeroRedundancyOptimizer
from tqdm import tqdm

from data import Order, collate, completion_text, format_report, load_tokenizer, pack
from data import rl_prompts, sft_examples, show_mask, split_by_work, stop_ids
from model import Policy, add_lora, check_token_ids, load_model, memory_plan, save_model
from model import whole
from rollout import generate
from rows import levels, read_rows
from run import Log, catch_stop, equal_numbers, finish, gather, parallel, restore
from run import save_checkpoint, start_run
from verify import verify_all

# --- run set-up ---------------------------------------------------------------
# from here on `device` is this rank's own ('cpu' or 'cuda:N'), whatever the setting
run = start_run(config)
rank, world_size, device, compute_dtype, autocast, saved = run

# --- data ---------------------------------------------------------------------
# rows of any shape become token ids and a mask of what is trained; `order` deals them out: shuffled
# by seed, epoch after epoch
tokenizer = load_tokenizer(model, chat_template, template_date)
stops = stop_ids(tokenizer, model)
rows, sources = read_rows(data)
examples = []  # of all sources, one after the other
weighted = []  # (passes per epoch, indices into examples) of each source
report = {}  # what was kept and dropped, for each source
for name, passes, begin, end in sources:
    kept, report[name] = sft_examples(rows[begin:end], tokenizer, max_length, overlong)
    weighted.append((passes, range(len(examples), len(examples) + len(kept))))
    examples += kept
order = Order(weighted, seed)
if max_steps == 0:
    max_steps = math.ceil(len(order) * epochs / batch_size)

# held-out rows, never trained on
eval_examples = []
if eval_data:
    held_out, _ = read_rows(eval_data)
    eval_examples, report[f'eval_data: {eval_data}'] = sft_examples(held_out, tokenizer, max_length, overlong)
eval_rows = []
if eval_prompts:
    held_out, _ = read_rows(eval_prompts)
    eval_rows, report[f'eval_prompts: {eval_prompts}'] = rl_prompts(
        held_out, tokenizer, max_length, verifier, instruction, languages)
has_evaluation = bool(eval_examples or eval_rows)

# a look at the data before hours are spent on it
if rank == 0:
    for name, counts in report.items():
        print(f'{name}: {format_report(counts)}')
    print('first row, what is trained in [[ ]]:')
    print(show_mask(examples[0], tokenizer))

# --- model --------------------------------------------------------------------
policy = Policy(load_model(
    model, device, rope_theta=rope_theta, max_position_embeddings=max_position_embeddings))
check_token_ids(policy.model, tokenizer, examples + eval_examples + eval_rows)
if lora_rank:
    # the weights are frozen; what is trained is a low-rank update of each linear layer
    add_lora(policy.model, lora_rank, lora_alpha, compute_dtype)
if activation_checkpointing:
    # backward computes a layer's activations again: less memory, about a third more time
    policy.model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={'use_reentrant': False})
if compile:
    # a layer at a time: they are alike, and packed rows are of any length (dynamic)
    for layer in policy.model.base_model.layers:
        layer.compile(dynamic=True)

# the policy as the loss calls it: with several ranks its backward averages their gradients
ddp = parallel(policy, shard, run)

# what will hold the memory in a step
if rank == 0:
    memory = memory_plan(
        policy.model.config, world_size, micro_batch_tokens, activation_checkpointing,
        shard, compute_dtype == torch.bfloat16, kv_cache_gb=kv_cache_gb,
        rollout_rows=math.ceil(eval_samples * len(eval_rows) / world_size),
        max_new_tokens=max_new_tokens, lora_rank=lora_rank)
    print('memory plan, GB a GPU: ' + ', '.join(f'{key} {gb:.3g}' for key, gb in memory.items()))

# --- optimizer, schedule ------------------------------------------------------
# weight decay is for matrices; norms and biases are vectors
trained = [p for p in policy.parameters() if p.requires_grad]
matrices = [p for p in trained if p.dim() >= 2]
vectors = [p for p in trained if p.dim() < 2]
parameter_groups = [{'params': matrices, 'weight_decay': weight_decay},
                    {'params': vectors, 'weight_decay': 0.0}]
adam = dict(lr=learning_rate, betas=(beta1, beta2), fused=True)
if world_size > 1 and shard == 'optimizer':
    # each rank holds the moments of its share of the parameters (ZeRO stage 1)
    optimizer = ZeroRedundancyOptimizer(parameter_groups, torch.optim.AdamW, **adam)
else:
    optimizer = torch.optim.AdamW(parameter_groups, **adam)


def learning_rate_at(step):
    """Learning rate of update `step`, counted from 0: a linear warm-up, then `schedule`. Cosine and
    linear reach min_learning_rate at the last update, constant stays at the peak."""
    if step < warmup_steps:
        return learning_rate * (step + 1) / warmup_steps
    # the last update of the warm-up has learning_rate itself; from there to the end `done` is 0 to 1
    first = max(0, warmup_steps - 1)
    done = (step - first) / max(1, max_steps - 1 - first)
    if schedule == 'cosine':
        left = 0.5 * (1 + math.cos(math.pi * done))
    elif schedule == 'linear':
        left = 1 - done
    else:
        left = 1.0
    return min_learning_rate + left * (learning_rate - min_learning_rate)


# --- helpers ------------------------------------------------------------------
def due(every):
    """Whether this step is a multiple of `every`; 0 is never."""
    return every > 0 and step % every == 0


def evaluation_due():
    """Whether the weights of this step are evaluated; the start model is not."""
    return has_evaluation and (step >= max_steps or step > 0 and due(eval_every))


def mean(values):
    """The mean of a list; 0 for an empty one."""
    return sum(values) / max(1, len(values))


def evaluate_prompts():
    """pass@1 on eval_rows, also by difficulty, as log keys. Each rank does its share."""
    places = range(rank, len(eval_rows), world_size)
    my_rows = [eval_rows[place] for place in places]
    # the same random numbers at every evaluation, so that two of them differ by the weights alone
    seeds = [(seed, 'evaluate', place) for place in places]
    with autocast:
        sampled = generate(
            policy.model, [row['ids'] for row in my_rows], eval_samples, max_new_tokens,
            eval_temperature, stops, seeds, kv_cache_gb, 'evaluate' if rank == 0 else None)
    answers = []  # (row, text) of each completion
    for row, samples_of_row in zip(my_rows, sampled):
        answers += [(row, completion_text(tokenizer, sample['ids'])) for sample in samples_of_row]
    verdicts = verify_all([(row['kind'], text, row['truth']) for row, text in answers])

    my_results = []  # (difficulty, reward, whether the verifier gave up) of each completion
    for i, ((row, text), (reward, gave_up)) in enumerate(zip(answers, verdicts)):
        # the first completion of the first three rows is printed: a number alone says little
        if rank == 0 and i in (0, eval_samples, 2 * eval_samples):
            tqdm.write(f'  step {step}: {reward:.2g} | {row["text"]!r} -> {text!r}, '
                       f'truth {row["truth"]}')
        my_results.append((row['difficulty'], reward, gave_up))
    results = [result for share in gather(my_results) for result in share]

    metrics = {'eval/pass@1': mean([reward for _, reward, _ in results]),
               'eval/gave_up': sum(gave_up for _, _, gave_up in results)}
    for level in levels(difficulty for difficulty, _, _ in results):
        rewards = [reward for difficulty, reward, _ in results if difficulty == level]
        metrics[f'eval/pass@1/{level}'] = mean(rewards)
    return metrics


def evaluate_loss():
    """The token-mean loss on eval_examples. Each rank does its share."""
    loss = 0.0
    for micro in pack_examples(eval_examples[rank::world_size]):
        with torch.no_grad():
            logprobs, _ = forward(policy, micro)
        loss -= logprobs.double().sum().item()
    return sum(gather(loss)) / supervised_tokens_of(eval_examples)


def evaluate():
    """Log keys of what can be evaluated: pass@1 on eval_rows, the loss on eval_examples."""
    metrics = {}
    if eval_rows:
        metrics |= evaluate_prompts()
    if eval_examples:
        metrics['eval/loss'] = evaluate_loss()
    return metrics


# --- micro-batches ------------------------------------------------------------
def supervised_tokens_of(examples):
    """How many tokens of these examples the loss counts."""
    return sum(int(example['mask'].sum()) for example in examples)


def micro_batches_of(batch):
    """This rank's micro-batches of a step's examples."""
    # every rank makes the same plan: shares of near-equal tokens
    shares = split_by_work([len(example['ids']) for example in batch], world_size)
    return pack_examples([batch[i] for i in shares[rank]])


def pack_examples(examples):
    """Micro-batches on the device, none over micro_batch_tokens but for a longer example alone."""
    plan = pack([len(example['ids']) for example in examples], micro_batch_tokens)
    micro_batches = []
    for members in equal_numbers(plan, shard):
        documents = [(examples[i]['ids'], examples[i]['mask']) for i in members]
        micro_batches.append(to_device(collate(documents)))
    return micro_batches


def to_device(micro):
    return {key: x.to(device) if torch.is_tensor(x) else x for key, x in micro.items()}


def forward(module, micro):
    """Log-prob and entropy (N,) of the supervised tokens of a micro-batch."""
    with autocast:
        return module(micro['ids'], micro['lengths'], micro['index'])


# --- the loss -----------------------------------------------------------------
def accumulate_gradients(micro_batches, supervised_tokens):
    """Adds the loss's gradient to the parameters; returns this rank's part of the loss.

    `supervised_tokens` are those of the whole step, on all ranks: the loss is one sum divided by
    them, so that ranks, micro-batches and packing do not change it.
    """
    total = torch.zeros((), device=device)
    for i, micro in enumerate(micro_batches):
        # DDP averages gradients over the ranks in the last backward alone; sharded weights do it in
        # every one, so that no rank ever holds the whole gradient
        is_last = i == len(micro_batches) - 1
        averaging = nullcontext() if is_last or ddp is policy else ddp.no_sync()
        with averaging:
            logprobs, _ = forward(ddp, micro)
            # the reference policy is the current one: 1/pi * grad pi = grad log pi, advantage 1
            loss = -logprobs.sum() / supervised_tokens
            # gradients are averaged over the ranks, but the loss is a sum over their tokens
            (loss * world_size).backward()
        total += loss.detach()
    return total.item()


# --- resume, log --------------------------------------------------------------
# step counts updates, samples rows, tokens all tokens of these
step, samples, tokens = restore(saved, policy, optimizer, order)
skipped = 0  # updates in a row whose gradient was not finite
if rank == 0:
    n_parameters = sum(p.numel() for p in policy.parameters())
    n_trained = sum(p.numel() for p in trained)
    print(f'{n_parameters:,} parameters, {n_trained:,} trained, {world_size} x {device}, '
          f'{max_steps} steps of {batch_size} sequences, {len(order)} rows an epoch')
log = Log(config, max_steps, saved)
stop = catch_stop()

# --- the loop -----------------------------------------------------------------
while True:
    # evaluate these weights; the loop has saved them before, so that an error here loses no training
    if evaluation_due():
        log({'step': step, 'samples': samples, 'tokens': tokens, **evaluate()})
    if step >= max_steps:
        break

    start = time.time()
    # the whole step's rows, the same on every rank
    batch = [examples[i] for i in order.take(batch_size)]
    step_tokens = sum(len(example['ids']) for example in batch)

    # loss, backward
    loss = accumulate_gradients(micro_batches_of(batch), supervised_tokens_of(batch))

    # step; an update whose gradient is not finite is skipped, on all ranks alike
    max_norm = grad_clip if grad_clip > 0 else math.inf
    grad_norm = whole(torch.nn.utils.clip_grad_norm_(trained, max_norm))
    for parameter_group in optimizer.param_groups:
        parameter_group['lr'] = learning_rate_at(step)
    if grad_norm.isfinite():
        skipped = 0
        # a gradient of 0 (no group has spread) is an update like any other: momentum goes on
        optimizer.step()
    else:
        skipped += 1
    # DDP's gradients live in its buckets: freed, they would be allocated again beside them
    optimizer.zero_grad(set_to_none=ddp is policy)
    step += 1
    samples += batch_size
    tokens += step_tokens

    # log
    loss = sum(gather(loss))
    seconds = time.time() - start
    metrics = {
        'step': step,
        'samples': samples,
        'tokens': tokens,
        'loss': loss,
        'lr': learning_rate_at(step - 1),
        'grad_norm': grad_norm.item(),
        'skipped': skipped,
        'perf/tok_s': step_tokens / seconds}
    if 'cuda' in device:
        metrics['perf/peak_gb'] = torch.cuda.max_memory_allocated() / 1e9
    log(metrics)
    if skipped == 10:
        raise UserError('10 gradients in a row not finite: lower the learning rate; '
                        '--resume=True goes on from the last checkpoint')

    # checkpoint
    stop_requested = any(gather(stop.requested))
    if step >= max_steps or stop_requested or evaluation_due() or due(checkpoint_every):
        save_checkpoint(config, policy, optimizer, order, log, step=step, samples=samples, tokens=tokens)
        save_model(policy.model, tokenizer, out_dir, stops, compute_dtype)
        gather(None)  # the others wait until the model is written
    if stop_requested:
        break

# --- clean up -----------------------------------------------------------------
log.close()
ddp = optimizer = None  # they hold the process group, whose threads are to end in finish()
finish(out_dir, stop)
