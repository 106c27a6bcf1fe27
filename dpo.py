"""Preference tuning: DPO, its length-normalised form (TULU 3), IPO and SimPO, on packed pairs.

    python dpo.py config/tiny.py --data=out/pairs.jsonl       # 1 CPU, pairs from sample.py --write=pairs
    python dpo.py config/qwen3_0.6b.py                        # 1 GPU
    torchrun --nproc-per-node 8 dpo.py config/qwen3_4b.py     # 8 GPUs

Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290). The unified estimator (Lv et al.
2025, arXiv 2509.04419) is mask x (1 / reference policy) x advantage x likelihood gradient. For DPO:

    mask                  the final assistant turn of both sides and its end
    reference policy      the current policy itself, so 1/pi * grad pi = grad log pi
    advantage             + beta * sigmoid(-beta * delta) on the chosen, - that on the rejected: large while
                          the pair is ranked wrongly, 0 once it is clear (delta: see the loss)
    likelihood gradient   grad pi(token | prompt and completion before it)

Deviations from the usual script: (1) the reference is the policy before its first step, scored once and kept
in out_dir/ref_logprobs.pt: no second model is in memory; (2) a prompt is computed once for both its sides;
(3) the loss is a sum over pairs divided by the pairs of the whole step, whatever the packing.
"""
import hashlib
import math
import os
import pickle
import time
from contextlib import nullcontext

from configurator import UserError, above, at_least, check_out_dir, configure

# --- config -------------------------------------------------------------------
# what and where
model = 'out/tiny_base'  # hub id, local Hugging Face folder, 'tiny', or 'random:<shape>' (model.py)
chat_template = ''  # file with a Jinja chat template; '': the tokenizer's own
template_date = ''  # day that a chat template is told which asks for it; '': the model's, or 2024-07-26
rope_theta = 0.0  # base of the rotary embeddings' frequencies; 0: the model's own
max_position_embeddings = 0  # longest prompt with its completion, tokens; 0: the model's own
data = 'out/pairs.jsonl'  # sources, each with optional passes per epoch: 'a.jsonl*0.5, b.json*2'
eval_data = ''  # held-out pairs for eval/accuracy and eval/margin; '' for none
eval_prompts = 'search:test'  # rows with a checkable truth for eval/pass@1; '' for none
verifier = ''  # kind of verifier for eval_prompts; '' goes by each row's own dataset name
languages = ''  # file of programming languages for verifier 'code', besides the built-in ones
instruction = ''  # appended to every eval prompt, e.g. how to write the final answer
out_dir = 'out/dpo'  # run folder: model, log.jsonl, run.json, state/
resume = False  # go on from out_dir/state
overwrite = False  # start afresh in an out_dir that holds another run
# loss
loss_type = 'dpo_norm'  # 'dpo' (sums of log-probs), 'dpo_norm', 'ipo', 'simpo' (means over a side's tokens)
beta = 5.0  # goes with loss_type, see the loss: dpo 0.1, dpo_norm 5, ipo 0.1, simpo 2
gamma_beta_ratio = 0.5  # of simpo: its target margin / beta, nats a token
label_smoothing = 0.0  # share of pairs taken to be swapped (cDPO); not for ipo
sft_coef = 0.0  # of the chosen's negative log-prob a token (RPO)
# batch
batch_size = 64  # pairs per step, over all GPUs
micro_batch_tokens = 8192  # tokens in one forward, per GPU; a pair is never split
max_length = 1024  # tokens of the prompt and one side; longer pairs go the way of `overlong`
overlong = 'drop'  # 'drop' or 'cut' (no end of turn is invented)
max_steps = 0  # optimizer steps; 0: as many as `epochs` makes
epochs = 1.0  # passes over the data when max_steps is 0
# what is trained
lora_rank = 0  # rank of the update of each linear layer (LoRA), other weights are frozen; 0: all weights
lora_alpha = 32.0  # with LoRA: the update is multiplied by lora_alpha / lora_rank
# optimizer
learning_rate = 5e-7  # peak
min_learning_rate = 0.0  # at the last step of cosine and linear
schedule = 'linear'  # 'cosine', 'linear' or 'constant' after the warm-up
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
config = configure(globals(), max_steps=at_least(0), beta=above(0))
check_out_dir(out_dir, resume, overwrite)

# --- imports ------------------------------------------------------------------
# after the settings, because they take seconds: a mistake in a flag is answered at once
import torch
import torch.nn.functional as F
from torch.distributed.optim import ZeroRedundancyOptimizer
from tqdm import tqdm

from data import Order, collate, completion_text, format_report, load_tokenizer, pack
from data import preference_pairs, rl_prompts, show_mask, split_by_work, stop_ids
from model import Policy, add_lora, check_token_ids, hash_of_weights, load_model
from model import memory_plan, save_model, whole
from rollout import generate
from rows import levels, read_rows
from run import Log, base_hash, catch_stop, equal_numbers, finish, gather, parallel, restore
from run import save_checkpoint, start_run, sum_over_ranks
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
pairs = []  # of all sources, one after the other
weighted = []  # (passes per epoch, indices into pairs) of each source
report = {}  # what was kept and dropped, for each source
for name, passes, begin, end in sources:
    kept, report[name] = preference_pairs(rows[begin:end], tokenizer, max_length, overlong)
    weighted.append((passes, range(len(pairs), len(pairs) + len(kept))))
    pairs += kept
order = Order(weighted, seed)
if max_steps == 0:
    max_steps = math.ceil(len(order) * epochs / batch_size)

# held-out rows, never trained on
eval_pairs = []
if eval_data:
    held_out, _ = read_rows(eval_data)
    eval_pairs, report[f'eval_data: {eval_data}'] = preference_pairs(
        held_out, tokenizer, max_length, overlong)
eval_rows = []
if eval_prompts:
    held_out, _ = read_rows(eval_prompts)
    eval_rows, report[f'eval_prompts: {eval_prompts}'] = rl_prompts(
        held_out, tokenizer, max_length, verifier, instruction, languages)
has_evaluation = bool(eval_pairs or eval_rows)

# a look at the data before hours are spent on it
if rank == 0:
    for name, counts in report.items():
        print(f'{name}: {format_report(counts)}')
    first_pair = pairs[0]
    _, _, prompt_ids = first_pair['docs'][0]  # of the chosen side; the other has the same
    print('first pair, what is trained in [[ ]]: ' + tokenizer.decode(prompt_ids))
    for side, (ids, mask, _) in zip(('chosen', 'rejected'), first_pair['docs']):
        print(f'  {side}: ' + show_mask({'ids': ids, 'mask': mask}, tokenizer))

# --- model --------------------------------------------------------------------
policy = Policy(load_model(
    model, device, rope_theta=rope_theta, max_position_embeddings=max_position_embeddings))
check_token_ids(policy.model, tokenizer, pairs + eval_pairs + eval_rows)
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

# of the start model, while each rank has all of it: reference log-probs are kept under this name
start_hash = None
if rank == 0 and loss_type != 'simpo':
    start_hash = base_hash(policy) or hash_of_weights(policy.parameters())

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


def evaluate_pairs():
    """Accuracy and margin on eval_pairs. Each rank does its share."""
    totals = {'dpo/accuracy': 0.0, 'dpo/margin': 0.0}
    for micro in pack_pairs(eval_pairs[rank::world_size]):
        with torch.no_grad():
            _, statistics = preference_loss(pair_logprobs(policy, micro), micro)
        for key in totals:
            totals[key] += statistics[key].sum().item()
    totals = sum_over_ranks(totals)
    return {'eval/accuracy': totals['dpo/accuracy'] / len(eval_pairs),
            'eval/margin': totals['dpo/margin'] / len(eval_pairs)}


def evaluate():
    """Log keys of what can be evaluated: pass@1 on eval_rows, the ranking of eval_pairs."""
    metrics = {}
    if eval_rows:
        metrics |= evaluate_prompts()
    if eval_pairs:
        metrics |= evaluate_pairs()
    return metrics


# --- micro-batches ------------------------------------------------------------
def micro_batches_of(batch):
    """This rank's micro-batches of a step's pairs, each a list of pairs."""
    # every rank makes the same plan: shares of near-equal tokens
    shares = split_by_work([len(pair['ids']) for pair in batch], world_size)
    return pack_pairs([batch[i] for i in shares[rank]])


def pack_pairs(pairs):
    """Lists of pairs, none over micro_batch_tokens but for a longer pair alone."""
    plan = pack([len(pair['ids']) for pair in pairs], micro_batch_tokens)
    return [[pairs[i] for i in members] for members in equal_numbers(plan, shard)]


# --- the loss -----------------------------------------------------------------
def pair_logprobs(module, pairs):
    """Summed log-probs (n, 2) float64 of the chosen and rejected sides of n pairs, in one forward.

    A prompt is computed once for both its sides.
    """
    micro = collate([document for pair in pairs for document in pair['docs']])
    with autocast:
        logprobs, _ = module(micro['ids'].to(device), micro['lengths'], micro['index'].to(device),
                             parents=micro['parents'])
    # float64, because the loss takes differences of these sums
    sums = torch.zeros(2 * len(pairs), dtype=torch.float64, device=device)
    sums = sums.index_add(0, micro['doc'].to(device), logprobs.double())
    return sums.view(len(pairs), 2)


def preference_loss(logprobs, pairs):
    """Losses (n,) of n pairs, and their statistics, {log key: (n,)}.

    logprobs (n, 2): summed over the tokens of the chosen and the rejected side (pair_logprobs).
    """
    lengths = [[mask.sum() for _, mask, _ in pair['docs']] for pair in pairs]
    tokens = logprobs.new_tensor(lengths).view(-1, 2)  # (n, 2) trained tokens of each side
    ref_logprobs = logprobs.new_tensor([pair['ref_logprobs'] for pair in pairs]).view(-1, 2)  # (n, 2)

    # DPO (eq. 7) sums log(pi / reference) over a side's tokens. The others take the mean, IPO too (its
    # authors say so, the paper does not). A mean is smaller by about the length, so that a beta of
    # one form does not carry over to the other.
    log_ratios = logprobs - ref_logprobs  # (n, 2)
    if loss_type != 'dpo':
        log_ratios = log_ratios / tokens
    chosen_ratio, rejected_ratio = log_ratios.unbind(1)
    delta = chosen_ratio - rejected_ratio  # (n,)

    if loss_type == 'ipo':
        # Azar et al. 2023, arXiv 2310.12036, eq. 17; beta is its tau
        losses = (delta - 1 / (2 * beta)) ** 2
    else:
        # SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6) has a margin and no reference: its
        # ref_logprobs are 0
        margin = gamma_beta_ratio if loss_type == 'simpo' else 0.0
        logits = beta * (delta - margin)
        # cDPO: with the probability label_smoothing the two sides are swapped
        losses = ((label_smoothing - 1) * F.logsigmoid(logits)
                  - label_smoothing * F.logsigmoid(-logits))
    # RPO (Pang et al. 2024, arXiv 2404.19733, eq. 1) adds SFT's loss on the chosen side
    losses = losses - sft_coef * logprobs[:, 0] / tokens[:, 0]

    statistics = {
        'dpo/margin': beta * delta,
        'dpo/accuracy': delta > 0,
        'dpo/chosen_logps': logprobs[:, 0],
        'dpo/rejected_logps': logprobs[:, 1],
        'dpo/chosen_rewards': beta * chosen_ratio,
        'dpo/rejected_rewards': beta * rejected_ratio,
        'completion/chosen_len': tokens[:, 0],
        'completion/rejected_len': tokens[:, 1]}
    return losses, statistics


def accumulate_gradients(micro_batches):
    """Adds the loss's gradient to the parameters; returns this rank's loss and sums of statistics.

    The loss is one sum over pairs divided by the pairs of the whole step, on all ranks.
    """
    total = torch.zeros((), device=device)
    totals = {}
    for i, micro in enumerate(micro_batches):
        # DDP averages gradients over the ranks in the last backward alone; sharded weights do it in
        # every one, so that no rank ever holds the whole gradient
        is_last = i == len(micro_batches) - 1
        averaging = nullcontext() if is_last or ddp is policy else ddp.no_sync()
        with averaging:
            losses, statistics = preference_loss(pair_logprobs(ddp, micro), micro)
            loss = losses.sum() / batch_size
            # gradients are averaged over the ranks, but the loss is a sum over their pairs
            (loss * world_size).backward()
        total += loss.detach()
        for key, values in statistics.items():
            totals[key] = totals.get(key, 0) + values.detach().double().sum()
    return total.item(), {key: value.item() for key, value in totals.items()}


# --- reference ----------------------------------------------------------------
def reference_key(pairs):
    """A hash of all that reference log-probs depend on: weights, dtype, token ids and masks.

    Ids and masks stand for the rows, the template, the tokenizer and max_length.
    """
    key = hashlib.sha256(f'{start_hash} {compute_dtype}'.encode())
    for pair in pairs:
        for document in pair['docs']:
            for array in document:
                key.update(array.tobytes())
    return key.hexdigest()


def read_reference(path, key):
    """The log-probs kept in `path`, or None if they are of another `key` or the file is not whole."""
    try:
        kept = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return kept['logprobs'] if kept['key'] == key else None


def score_reference(pairs):
    """Log-probs (n, 2) float64 of the sides of all pairs under the policy as it is now."""
    my_places = range(len(pairs))[rank::world_size]
    my_pairs = [pairs[place] for place in my_places]
    logprobs = torch.zeros(len(pairs), 2, dtype=torch.float64)
    plan = pack([len(pair['ids']) for pair in my_pairs], micro_batch_tokens)
    no_bar = True if rank > 0 else None  # None: where the output is a file
    for members in tqdm(equal_numbers(plan, shard), 'reference log-probs', disable=no_bar):
        with torch.no_grad():
            scored = pair_logprobs(policy, [my_pairs[i] for i in members])
        logprobs[[my_places[i] for i in members]] = scored.cpu()
    return sum(gather(logprobs))  # a pair is 0 on the ranks that did not score it


def reference_logprobs(pairs):
    """Log-probs (n, 2) of all pairs under the start model, scored once and kept in out_dir."""
    if loss_type == 'simpo':
        return torch.zeros(len(pairs), 2)
    path = os.path.join(out_dir, 'ref_logprobs.pt')
    key = None
    kept = None
    if rank == 0:
        key = reference_key(pairs)
        kept = read_reference(path, key)
    of_rank_0, *_ = gather(kept)
    if of_rank_0 is not None:
        return of_rank_0
    logprobs = score_reference(pairs)
    if rank == 0:
        os.makedirs(out_dir, exist_ok=True)
        torch.save({'key': key, 'logprobs': logprobs}, f'{path}.tmp')
        os.replace(f'{path}.tmp', path)
    return logprobs


# the policy is still the start model here: restore() comes after it
ref_logprobs = reference_logprobs(pairs + eval_pairs)
for pair, values in zip(pairs + eval_pairs, ref_logprobs.tolist()):
    pair['ref_logprobs'] = values  # [chosen, rejected]

# --- resume, log --------------------------------------------------------------
# step counts updates, samples pairs, tokens all tokens of these
step, samples, tokens = restore(saved, policy, optimizer, order)
skipped = 0  # updates in a row whose gradient was not finite
if rank == 0:
    n_parameters = sum(p.numel() for p in policy.parameters())
    n_trained = sum(p.numel() for p in trained)
    print(f'{n_parameters:,} parameters, {n_trained:,} trained, {world_size} x {device}, '
          f'{max_steps} steps of {batch_size} pairs, {len(order)} pairs an epoch')
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
    batch = [pairs[i] for i in order.take(batch_size)]
    step_tokens = sum(len(pair['ids']) for pair in batch)

    # loss, backward
    loss, totals = accumulate_gradients(micro_batches_of(batch))

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
    totals = sum_over_ranks(totals)
    seconds = time.time() - start
    metrics = {
        'step': step,
        'samples': samples,
        'tokens': tokens,
        'loss': loss,
        'lr': learning_rate_at(step - 1),
        'grad_norm': grad_norm.item(),
        'skipped': skipped,
        **{key: total / batch_size for key, total in totals.items()},
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
