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
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass

from configurator import UserError, check_out_dir, configure

# --- config -------------------------------------------------------------------
# what and where
model = 'tiny'  # hub id, local Hugging Face folder, 'tiny', or 'random:<shape>' (model.py)
chat_template = ''  # file with a Jinja chat template; '': the tokenizer's own
template_date = ''  # day that a chat template is told which asks for it; '': the model's, or 2024-07-26
rope_theta = 0.0  # base of the rotary embeddings' frequencies; 0: the model's own
max_position_embeddings = 0  # longest prompt with its completion, tokens; 0: the model's own
data = 'search:train'  # sources, each with optional passes per epoch: 'a.jsonl*0.5, b.json*2'
eval_prompts = 'search:test'  # held-out rows for eval/pass@1; '' for none
verifier = ''  # kind of verifier; '' goes by each row's own dataset name
languages = ''  # file of programming languages for verifier 'code', besides the built-in ones
instruction = ''  # appended to every prompt, e.g. how to write the final answer
out_dir = 'out/hpt'  # run folder: model, log.jsonl, run.json, state/
resume = False  # go on from out_dir/state
overwrite = False  # start afresh in an out_dir that holds another run
# demonstrations
max_length = 1024  # tokens of prompt and demonstration; longer ones go the way of `overlong`
overlong = 'drop'  # 'drop' or 'cut' (no end of turn is invented)
without_demonstration = 'error'  # rows that have none: 'error', 'drop' or 'rl' (rewards alone)
# rollouts
prompts_per_step = 32  # prompts of a rollout, over all GPUs; its updates share them
group_size = 8  # completions of each prompt
max_new_tokens = 128  # tokens of a completion
max_prompt_tokens = 512  # longer prompts are dropped and counted
temperature = 1.0  # divides the logits in sampling and in scoring
resample_rounds = 0  # times that groups without spread are replaced by fresh prompts (DAPO)
mask_truncated = False  # leave completions that were cut at max_new_tokens out of the loss
kv_cache_gb = 4.0  # GB for the KV cache of rollouts, per GPU
# the loss
gamma = 0.0  # a prompt of which this share or less is solved learns its demonstration; -1: none, 1: every one
sft_coef, rl_coef = 1.0, 1.0  # weights of the two sides
advantage_std = False  # divide the centred rewards by the group's std; False: only centred (Dr. GRPO)
updates_per_rollout = 1  # optimizer steps on one rollout, each on its share of the groups
clip_low, clip_high = 0.2, 0.28  # ratio within [1 - clip_low, 1 + clip_high]; matters with updates > 1
loss_denominator = 'constant'  # 'tokens' (global mean), 'sequences' (mean of means), 'constant'
importance_cap = 0.0  # 0: off; 2: times min(2, the token's probability by the trainer / by the sampler)
beta = 0.0  # KL to the start model, k3 estimator; 0: no reference model is loaded
micro_batch_tokens = 8192  # tokens in one forward, per GPU; a longer sequence is alone in one
max_steps = 100  # optimizer steps
# what is trained
lora_rank = 0  # rank of the update of each linear layer (LoRA), other weights are frozen; 0: all weights
lora_alpha = 32.0  # with LoRA: the update is multiplied by lora_alpha / lora_rank
# optimizer
learning_rate = 1e-4  # peak
min_learning_rate = 0.0  # at the last step of cosine and linear
schedule = 'constant'  # 'cosine', 'linear' or 'constant' after the warm-up
warmup_steps = 5  # a linear rise: step i of them has i / warmup_steps of the peak
weight_decay = 0.0  # on matrices only
beta1, beta2 = 0.9, 0.95  # Adam
grad_clip = 1.0  # global norm; 0: off
# evaluation, log, checkpoint
eval_every = 20  # steps; 0: only at the end
eval_samples = 1  # completions of each of eval_prompts
eval_temperature = 0.0  # of these completions; 0: greedy
sample_every = 10  # steps between printed completions with their rewards; 0: never
checkpoint_every = 50  # steps between checkpoints; one more before each evaluation and at the end
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
config = configure(globals())
check_out_dir(out_dir, resume, overwrite)

# --- imports ------------------------------------------------------------------
# after the settings, because they take seconds: a mistake in a flag is answered at once
import torch
from torch.distributed.optim import ZeroRedundancyOptimizer
from tqdm import tqdm

from data import Order, add_demonstrations, collate, completion_text, format_report
from data import load_tokenizer, plan_micro_batches, rl_prompts, stop_ids
from model import Policy, add_lora, check_token_ids, load_model, memory_plan, save_model
from model import start_model, whole
from rollout import generate
from rows import levels, read_rows
from run import Log, catch_stop, equal_numbers, finish, gather, parallel, restore
from run import save_checkpoint, start_run, sum_over_ranks
from verify import verify_all

# --- run set-up ---------------------------------------------------------------
# from here on `device` is this rank's own ('cpu' or 'cuda:N'), whatever the setting
run = start_run(config)
rank, world_size, device, compute_dtype, autocast, saved = run

# --- data ---------------------------------------------------------------------
# rows of any shape become prompts, and `order` deals them out: shuffled by seed, epoch after epoch
tokenizer = load_tokenizer(model, chat_template, template_date)
stops = stop_ids(tokenizer, model)
rows, sources = read_rows(data)
prompts = []  # of all sources, one after the other
weighted = []  # (passes per epoch, indices into prompts) of each source
report = {}  # what was kept and dropped, for each source
for name, passes, begin, end in sources:
    kept, report[name] = rl_prompts(
        rows[begin:end], tokenizer, max_prompt_tokens, verifier, instruction, languages)
    kept, counts = add_demonstrations(
        kept, name, tokenizer, max_length, overlong, without_demonstration)
    if counts['rows']:
        report[f'{name}, demonstrations'] = counts
    weighted.append((passes, range(len(prompts), len(prompts) + len(kept))))
    prompts += kept
order = Order(weighted, seed)

# held-out prompts, never trained on
eval_rows = []
if eval_prompts:
    held_out, _ = read_rows(eval_prompts)
    eval_rows, report[f'eval_prompts: {eval_prompts}'] = rl_prompts(
        held_out, tokenizer, max_prompt_tokens, verifier, instruction, languages)

# a look at the data before hours are spent on it
if rank == 0:
    for name, counts in report.items():
        print(f'{name}: {format_report(counts)}')
    print(f'first prompt: {tokenizer.decode(prompts[0]["ids"])!r}')
    demonstrations = [prompt['demonstration'] for prompt in prompts if prompt['demonstration']]
    n_cut = sum(ids[-1] not in stops for ids in demonstrations)
    print(f'{len(demonstrations)} prompts have a demonstration, {n_cut} are cut')

# --- model --------------------------------------------------------------------
policy = Policy(load_model(
    model, device, rope_theta=rope_theta, max_position_embeddings=max_position_embeddings))
check_token_ids(policy.model, tokenizer, prompts + eval_rows)
if lora_rank:
    # the weights are frozen; what is trained is a low-rank update of each linear layer
    add_lora(policy.model, lora_rank, lora_alpha, compute_dtype)
kl_reference = None
if beta > 0:
    # before the first step and before a checkpoint is put back: so it is the start model
    kl_reference = start_model(policy, compute_dtype)
if activation_checkpointing:
    # backward computes a layer's activations again: less memory, about a third more time
    policy.model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={'use_reentrant': False})
if compile:
    # a layer at a time: they are alike, and packed rows are of any length (dynamic)
    for layer in policy.model.base_model.layers:
        layer.compile(dynamic=True)

# the policy as the loss calls it: with several ranks its backward averages their gradients
ddp = parallel(policy, shard, run, kl_reference)

# what will hold the memory in a step
if rank == 0:
    rollout_rows = max(prompts_per_step * group_size, eval_samples * len(eval_rows))
    memory = memory_plan(
        policy.model.config, world_size, micro_batch_tokens, activation_checkpointing,
        shard, compute_dtype == torch.bfloat16, reference=beta > 0,
        kv_cache_gb=kv_cache_gb, rollout_rows=math.ceil(rollout_rows / world_size),
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
    """Whether the last rollout's updates reached or passed a multiple of `every` steps; 0 is never.

    An example: with 3 updates a rollout and every = 4 it is due at the steps 0, 6, 9, 12.
    """
    return every > 0 and step % every < updates_per_rollout


def evaluation_due():
    """Whether the weights of this step are evaluated."""
    return bool(eval_rows) and (step >= max_steps or due(eval_every))


def mean(values):
    """The mean of a list; 0 for an empty one."""
    return sum(values) / max(1, len(values))


def evaluate():
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


# --- rollout, reward, advantage -----------------------------------------------
@dataclass
class Completion:
    """A completion on its way to the loss; T is the number of its tokens."""
    prompt_ids: list  # one list for the whole group, so that its prompt is computed once
    ids: list  # (T,) sampled token ids with the stop token; text is never encoded again
    sampler_logprobs: torch.Tensor  # (T,) when they were sampled
    stopped: bool  # False: cut at max_new_tokens
    text: str  # what the verifier reads
    reward: float = 0.0  # from 0 to 1
    gave_up: bool = False  # the verifier gave no verdict; the reward is then 0
    advantage: torch.Tensor | float = 0.0  # one number, or (T,): one for each token


@dataclass
class Demonstration:
    """A demonstration on its way to the loss. Its advantage is 1 and nothing sampled it."""
    prompt_ids: list  # the group's
    ids: list  # token ids with the end of the turn


@dataclass
class Group:
    """All completions of one prompt."""
    prompt: dict  # see rl_prompts; 'demonstration' as add_demonstrations leaves it
    completions: list  # of Completion
    has_spread: bool = False  # whether its rewards differ; if not, all advantages are 0
    learns_demonstration: bool = False  # in place of its completions


def advantages_of(rewards):
    """Advantages (group_size,) of the completions of one prompt, by their rewards (group_size,)."""
    # equal rewards teach nothing: exactly 0, where the mean of eight 0.3 may not be quite 0.3
    if (rewards == rewards[0]).all():
        return torch.zeros_like(rewards)
    # the mean of the group is the baseline that a critic would have to learn
    advantages = rewards - rewards.mean()
    if advantage_std:
        advantages = advantages / (rewards.std() + 1e-4)
    return advantages


def gate(prompt, rewards):
    """Whether a prompt learns its demonstration: at most the share gamma of its completions is right.

    Right is a reward of 1, as the paper's verdicts are 0 or 1; a part of a reward is not right.
    """
    n_right = sum(reward == 1 for reward in rewards.tolist())
    return bool(prompt['demonstration']) and n_right / group_size <= gamma


def rollout(indices, first_place):
    """Samples and judges group_size completions of each of these prompts; every rank gets all Groups.

    `first_place` is the first prompt's place in the row order. Places and `seed` decide what is
    sampled: the same on any number of ranks, unless rounding flips a token. An advantage that needs
    more than its group (the mean of a batch) belongs after this, in sample_groups: here a rank
    knows only the groups that it samples.
    """
    # each rank samples the completions of its share of the prompts
    my_places = range(len(indices))[rank::world_size]
    my_prompts = [prompts[indices[place]] for place in my_places]
    seeds = [(seed, 'rollout', first_place + place) for place in my_places]
    with autocast:
        sampled = generate(policy.model, [prompt['ids'] for prompt in my_prompts], group_size,
                           max_new_tokens, temperature, stops, seeds, kv_cache_gb,
                           progress='rollout' if rank == 0 else None)

    my_groups = []
    for prompt, of_prompt in zip(my_prompts, sampled):
        completions = [
            Completion(prompt['ids'], sample['ids'], sample['logprobs'], sample['stopped'],
                       text=completion_text(tokenizer, sample['ids']))
            for sample in of_prompt]
        my_groups.append(Group(prompt, completions))

    # rewards, then advantages
    judge(my_groups)
    for group in my_groups:
        rewards = torch.tensor([completion.reward for completion in group.completions])  # (G,)
        group.has_spread = bool((rewards != rewards[0]).any())
        group.learns_demonstration = gate(group.prompt, rewards)
        if group.learns_demonstration:
            continue  # its completions keep an advantage of 0: the loss drops them
        for completion, advantage in zip(group.completions, advantages_of(rewards)):
            completion.advantage = advantage

    # all groups on every rank: which of them is trained where is planned by their lengths. Rank r
    # sampled those at the places r, r + world_size, ...
    groups = [None] * len(indices)
    for r, share in enumerate(gather(my_groups)):
        groups[r::world_size] = share
    return groups


def judge(groups):
    """Sets the rewards of all completions. One call of the verifier, which may use all cores."""
    tasks = []  # (completion, (kind of verifier, text, truth))
    for group in groups:
        kind, truth = group.prompt['kind'], group.prompt['truth']
        for completion in group.completions:
            tasks.append((completion, (kind, completion.text, truth)))
    verdicts = verify_all([task for _, task in tasks])
    for (completion, _), (reward, gave_up) in zip(tasks, verdicts):
        completion.reward = reward
        completion.gave_up = gave_up


def sample_groups():
    """prompts_per_step Groups for the next updates, and all Groups that were sampled for them.

    With resample_rounds, fresh prompts take the places of groups without spread (DAPO's dynamic
    sampling, arXiv 2503.14476): where all rewards are equal, no completion has an advantage.
    """
    groups, sampled_groups = [], []
    for attempt in range(resample_rounds + 1):
        first_place = order.position  # before take() moves it
        fresh = rollout(order.take(prompts_per_step - len(groups)), first_place)
        sampled_groups += fresh
        # the last attempt takes what it gets: a step has always as many prompts
        is_last = attempt == resample_rounds
        groups += [group for group in fresh
                   if group.has_spread or group.learns_demonstration or is_last]
        if len(groups) == prompts_per_step:
            break
    return groups, sampled_groups


def rollout_metrics(groups, seconds):
    """What the log says of a rollout that took so many seconds."""
    completions = [completion for group in groups for completion in group.completions]
    lengths = [len(completion.ids) for completion in completions]
    # the sampler computes a prompt once for all its completions
    prompt_tokens = sum(len(group.prompt['ids']) for group in groups)
    rewards = torch.tensor([completion.reward for completion in completions])
    return {
        'reward/mean': rewards.mean().item(),
        'reward/zero_std_frac': mean([not group.has_spread for group in groups]),
        'reward/gave_up': sum(completion.gave_up for completion in completions),
        'completion/len_mean': mean(lengths),
        'completion/truncated_frac': mean([not completion.stopped for completion in completions]),
        'tokens/sampled': sum(lengths) + prompt_tokens,
        # seconds include the verifier's
        'perf/gen_tok_s': sum(lengths) / seconds}


def tokens_of(groups):
    """Tokens of all sequences of these groups, each with its prompt."""
    tokens = 0
    for group in groups:
        for completion in group.completions:
            tokens += len(completion.prompt_ids) + len(completion.ids)
    for demonstration in demonstrations_of(groups):
        tokens += len(demonstration.prompt_ids) + len(demonstration.ids)
    return tokens


# --- micro-batches ------------------------------------------------------------
def trained_completions(groups):
    """The completions of these groups that the loss counts."""
    completions = [completion for group in groups for completion in group.completions]
    if mask_truncated:
        # one that was cut might have become right; it still counts in its group's mean
        completions = [completion for completion in completions if completion.stopped]
    return completions


def micro_batches_of(groups, rollout_groups=None, n_updates=1):
    """This rank's micro-batches of one update on `groups`, as collate_sequences makes them.

    n_updates updates divide the groups of a rollout, `rollout_groups`, among them; `groups` is the
    share of one. (By default one update takes all of them.) The loss is one sum over the tokens of
    all ranks, each with its weight, so that the number of ranks, micro_batch_tokens and
    packing do not change it. Every share is divided by the average size of a share (the rollout's
    totals / n_updates), not by its size: a completion weighs the same in a large share and in a
    small one.
    """
    rollout_groups = rollout_groups or groups
    in_rollout = trained_completions(rollout_groups)
    total_tokens = sum(len(completion.ids) for completion in in_rollout) / n_updates
    total_completions = len(in_rollout) / n_updates
    total_demonstrated = sum(len(demonstration.ids)  # tokens
                             for demonstration in demonstrations_of(rollout_groups)) / n_updates

    # Completions without an advantage are left out: their gradient is 0 as long as every term of the
    # loss is multiplied by the advantage. The KL is not, so with it all are computed. If you add a
    # term to policy_loss that is not (an entropy bonus), set needs_all to True. The totals above
    # count them either way.
    needs_all = beta > 0
    completions = trained_completions(groups)
    if not needs_all:
        completions = [c for c in completions if torch.as_tensor(c.advantage).any()]

    # completions and demonstrations share micro-batches: one forward for both sides of the loss.
    # Each rank has a share of near-equal work; prompts are shared where possible.
    sequences = completions + demonstrations_of(groups)
    plan = plan_micro_batches(sequences, micro_batch_tokens, rank, world_size)
    plan = equal_numbers(plan, shard)
    return [collate_sequences(part, total_tokens, total_completions, total_demonstrated)
            for part in plan]


def demonstrations_of(groups):
    """The demonstrations that these groups learn."""
    return [Demonstration(group.prompt['ids'], group.prompt['demonstration'])
            for group in groups if group.learns_demonstration]


def collate_sequences(sequences, total_tokens, total_completions, total_demonstrated):
    """One micro-batch on the device: what collate makes, and for each of its N scored tokens
    'advantage', 'weight' in the loss, 'sampler_logprobs' and 'is_demonstration', all (N,).
    N may be 0."""
    # every token of a completion and of a demonstration is scored, and no token of a prompt
    micro = collate([(s.ids, [True] * len(s.ids), s.prompt_ids) for s in sequences])
    # each list begins with an empty tensor, because a micro-batch may have no sequence
    weights = [torch.empty(0)]
    advantages = [torch.empty(0)]
    sampler_logprobs = [torch.empty(0)]
    is_demonstration = [torch.empty(0, dtype=torch.bool)]
    for sequence in sequences:
        length = len(sequence.ids)
        demonstrated = isinstance(sequence, Demonstration)
        is_demonstration.append(torch.full((length,), demonstrated))
        if demonstrated:
            # the SFT side: a token mean over all demonstrations of the step
            weights.append(torch.full((length,), sft_coef / total_demonstrated))
            advantages.append(torch.ones(length))
            sampler_logprobs.append(torch.zeros(length))  # of no meaning, policy_loss replaces them
        else:
            denominator = denominator_of(sequence, total_tokens, total_completions)
            weights.append(rl_coef * (torch.ones(length) / denominator))
            advantages.append(torch.as_tensor(sequence.advantage).expand(length))
            sampler_logprobs.append(sequence.sampler_logprobs)
    micro['weight'] = torch.cat(weights)
    micro['advantage'] = torch.cat(advantages)
    micro['sampler_logprobs'] = torch.cat(sampler_logprobs)
    micro['is_demonstration'] = torch.cat(is_demonstration)
    return {key: x.to(device) if torch.is_tensor(x) else x for key, x in micro.items()}


def denominator_of(completion, total_tokens, total_completions):
    """What the loss of each token of a completion is divided by."""
    # the mean over all tokens of the step (DAPO): every token weighs the same
    if loss_denominator == 'tokens':
        return total_tokens
    # the mean over completions of their token means (GRPO): every completion weighs the same
    if loss_denominator == 'sequences':
        return len(completion.ids) * total_completions
    # 'constant': a sum over tokens, scaled by a number that lengths do not change (Dr. GRPO)
    return max_new_tokens * total_completions


def forward(module, micro):
    """Log-prob and entropy (N,) of the scored tokens, at the temperature at which they were sampled."""
    with autocast:
        return module(micro['ids'], micro['lengths'], micro['index'], temperature, micro['parents'])


def add_fixed_logprobs(micro_batches, n_updates):
    """Adds the log-probs (N,) that stay as they are while the updates on a rollout change the policy.

    The trainer scores the old ones, although the sampler has log-probs too: the ratio is to say how
    far the updates have moved the policy, and nothing else. That sampler and trainer round
    differently is importance_cap's business.
    """
    for micro in micro_batches:
        with torch.no_grad():
            if n_updates > 1:
                # of the policy before the first update; a single update has them from its own forward
                micro['old_logprobs'], _ = forward(policy, micro)
            if kl_reference is not None:
                micro['ref_logprobs'], _ = forward(kl_reference, micro)


# --- the loss -----------------------------------------------------------------
def policy_loss(logprobs, entropy, micro):
    """Loss of one micro-batch, a scalar, and its statistics, {name: tensor that is summed up}.

    logprobs and entropy (N,) are the current policy's, of the scored tokens. A statistic of your own
    is a line here and a line in the loop's metrics. The sequence of each token is in micro['doc'].
    """
    # pi_old, the policy before the first update on this rollout: with one update the current one
    old_logprobs = micro.get('old_logprobs', logprobs.detach())  # (N,)
    sampler_logprobs = micro['sampler_logprobs']  # (N,)
    # Nothing sampled a demonstration: its reference policy is the current one in every update. Its
    # ratio is then 1 and is never clipped, and the ratio's gradient is grad log pi: with advantage 1
    # the lines below make SFT's gradient.
    is_demonstration = micro['is_demonstration']  # (N,)
    old_logprobs = torch.where(is_demonstration, logprobs.detach(), old_logprobs)
    sampler_logprobs = torch.where(is_demonstration, logprobs.detach(), sampler_logprobs)
    weight = micro['weight']  # (N,)
    advantage = micro['advantage']  # (N,)
    if importance_cap > 0:
        # sampler and trainer round differently, so that the samples are not quite the policy's:
        # importance weights make up for it, truncated so that no token outweighs all others
        correction = torch.exp(old_logprobs - sampler_logprobs)
        weight = weight * correction.clamp(max=importance_cap)

    # Equation 3 of Shao et al. The minimum is the mask: a token has no gradient where the clamped
    # side is smaller, at advantage > 0 and ratio > 1 + clip_high, or advantage < 0 and
    # ratio < 1 - clip_low.
    ratio = torch.exp(logprobs - old_logprobs)  # (N,), its gradient is grad pi / pi_old
    unclipped = ratio * advantage
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    objective = torch.min(unclipped, clipped)

    # equation 4, times the ratio: without it the gradient would not be the KL's (DeepSeek-V3.2).
    # expm1(d) is exp(d) - 1 without the digits that the subtraction loses where d is small.
    k3 = torch.zeros_like(logprobs)
    if kl_reference is not None:
        difference = micro['ref_logprobs'] - logprobs
        k3 = ratio * (torch.expm1(difference) - difference)
        k3 = k3 * ~is_demonstration  # demonstrations are not in the KL

    # the weights hold the denominator, so that this is a sum
    loss = -(weight * (objective - beta * k3)).sum()

    statistics = {
        'loss': loss,
        # of demonstrations
        'demonstrated': is_demonstration,
        'nll': -logprobs * is_demonstration,
        # of completions
        'scored': ~is_demonstration,
        'entropy': entropy * ~is_demonstration,
        'kl': k3,
        'clipped': clipped < unclipped,
        'mismatch': (old_logprobs - sampler_logprobs).abs()}
    return loss, statistics


def accumulate_gradients(micro_batches):
    """Adds the loss's gradient to the parameters; returns this rank's sums of the statistics."""
    totals = {}
    for i, micro in enumerate(micro_batches):
        # DDP averages gradients over the ranks in the last backward alone; sharded weights do it in
        # every one, so that no rank ever holds the whole gradient
        is_last = i == len(micro_batches) - 1
        averaging = nullcontext() if is_last or ddp is policy else ddp.no_sync()
        with averaging:
            logprobs, entropy = forward(ddp, micro)
            loss, statistics = policy_loss(logprobs, entropy, micro)
            # gradients are averaged over the ranks, but the loss is a sum over their tokens
            (loss * world_size).backward()
        statistics['computed'] = torch.ones_like(micro['ids'])  # tokens, prompts included
        # float64 sums that stay on the device: nothing waits for the GPU here
        for key, value in statistics.items():
            totals[key] = totals.get(key, 0) + value.detach().double().sum()
    return {key: total.item() for key, total in totals.items()}


# --- resume, log --------------------------------------------------------------
# step counts updates; samples the completions of their groups, also those that the loss leaves
# out; tokens these with their prompts
step, samples, tokens = restore(saved, policy, optimizer, order)
skipped = 0  # updates in a row whose gradient was not finite
if rank == 0:
    n_parameters = sum(p.numel() for p in policy.parameters())
    n_trained = sum(p.numel() for p in trained)
    print(f'{n_parameters:,} parameters, {n_trained:,} trained, {world_size} x {device}, '
          f'{max_steps} steps of {prompts_per_step} prompts x {group_size}, {len(order)} prompts an epoch')
log = Log(config, max_steps, saved)
stop = catch_stop()

# --- the loop -----------------------------------------------------------------
while True:
    # evaluate these weights; the loop has saved them before (but for step 0), so that an error here
    # loses no training
    if evaluation_due():
        log({'step': step, 'samples': samples, 'tokens': tokens, **evaluate()})
    if step >= max_steps:
        break

    # rollout, reward, advantage
    start = time.time()
    groups, sampled_groups = sample_groups()
    rollout_seconds = time.time() - start
    of_rollout = rollout_metrics(sampled_groups, rollout_seconds)
    of_rollout['hpt/sft_frac'] = mean([group.learns_demonstration for group in groups])
    step_tokens = tokens_of(groups)
    tokens += step_tokens
    # some completions with their rewards: the reward alone does not tell what is learned
    if rank == 0 and due(sample_every):
        first_group = groups[0]
        for completion in first_group.completions[:3]:
            tqdm.write(f'  {completion.reward:.2g} | {first_group.prompt["text"]!r} -> {completion.text!r}')

    # each update has its share of the groups; the last rollout makes the updates that are left
    n_updates = min(updates_per_rollout, max_steps - step)
    shares = [groups[i::n_updates] for i in range(n_updates)]
    updates = [micro_batches_of(share, groups, n_updates) for share in shares]
    for micro_batches in updates:
        add_fixed_logprobs(micro_batches, n_updates)

    for share, micro_batches in zip(shares, updates):
        # loss, backward
        totals = accumulate_gradients(micro_batches)

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
        samples += group_size * len(share)

        # log; the policy's means are over the scored tokens: those of groups with spread, or with
        # beta > 0 of all; they are 0 where there are none
        totals = sum_over_ranks(totals)
        scored = max(1, totals['scored'])
        seconds = time.time() - start
        metrics = {
            'step': step,
            'samples': samples,
            'tokens': tokens,
            'loss': totals['loss'],
            'lr': learning_rate_at(step - 1),
            'grad_norm': grad_norm.item(),
            'skipped': skipped,
            **of_rollout,
            'policy/entropy': totals['entropy'] / scored,
            'policy/kl': totals['kl'] / scored,
            'policy/clip_frac': totals['clipped'] / scored,
            'policy/mismatch': totals['mismatch'] / scored,
            'tokens/trained': int(totals['computed']),
            # of the whole rollout, over the time since it began
            'perf/tok_s': step_tokens / seconds,
            'perf/gen_frac': rollout_seconds / seconds}
        if totals['demonstrated']:
            metrics['hpt/sft_loss'] = totals['nll'] / totals['demonstrated']
        if 'cuda' in device:
            metrics['perf/peak_gb'] = torch.cuda.max_memory_allocated() / 1e9
        log(metrics)
        of_rollout.pop('tokens/sampled', None)  # its cost is in the line of the first update
        if skipped == 10:
            raise UserError('10 gradients in a row not finite: lower the learning rate; '
                            '--resume=True goes on from the last checkpoint')

    # checkpoint, between rollouts: no completion waits for its update
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
