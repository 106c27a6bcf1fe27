"""On-policy distillation (Agarwal et al. 2024, arXiv 2306.13649): the student samples, a teacher scores.

    python distill.py config/tiny.py      # 1 CPU: the embedded task, after sft.py config/tiny_teacher.py
    torchrun --nproc-per-node 8 distill.py config/qwen3_0.6b.py    # 8 GPUs

The student is `model`, the teacher any model with the same tokenizer. No reward is needed: a prompt may
be without a truth. The unified estimator (Lv et al. 2025, arXiv 2509.04419) is mask x (1 / reference
policy) x advantage x likelihood gradient. With divergence='sampled', for what the student samples | for
the prompts that it does not sample:

    mask                  completion tokens whose ratio is not clipped away | all tokens
    reference policy      the policy that sampled, pi_old | the current policy: 1/pi * grad pi = grad log pi
    advantage             log pi_teacher - log pi_old of the token, + reward_coef x GRPO's | 1
    likelihood gradient   grad pi(token | prompt, completion before it) | the same

So the left side is GRPO with the teacher's opinion of each token in place of a reward: a gradient of the
reverse KL(student || teacher) at the sampled tokens. The right side is SFT on demonstrations or on samples
of the teacher: sequence-level distillation. (Kim and Rush 2016, arXiv 1606.07947, take the outputs of the
teacher's beam search.)

The other divergences compare the two distributions over the whole vocabulary, at the tokens of the
student's samples and of the others alike (GKD, equation 1 and algorithm 1). S is the student, T the teacher:

    reverse_kl            KL(S || T)
    forward_kl            KL(T || S), which is knowledge distillation
    jsd                   b KL(T || M) + (1 - b) KL(S || M), where M = b T + (1 - b) S and b is jsd_beta

In none of them a gradient goes through what was sampled: the samples are held fixed.

Deviations from Agarwal et al.:

1. A sum over tokens divided by their number in the whole step, on all ranks; theirs is the mean over
   completions of their token means, loss_denominator='sequences'.
2. on_policy_fraction is drawn for each prompt; theirs for a whole batch.
3. `temperature` divides the logits in sampling and in both models' scores, so that what is sampled is what
   is scored; theirs samples and scores at temperatures of their own.
4. divergence='sampled' is not theirs but that of Lu et al. 2025 (On-Policy Distillation, Thinking Machines):
   each token is judged alone. MiniLLM (Gu et al. 2024, arXiv 2306.08543) adds what the teacher says of the
   tokens that follow.
5. With a reward_coef the reward's side is GRPO's loss, clipped ratio included; theirs (equation 5) is
   (1 - a) x reward - a x divergence.

From a prompt to the gradient:

    rollout                   the student samples, or off_policy does; rewards where there are truths
    micro_batches_of          this rank's share of the completions, packed, each token with its weight
    add_fixed_logprobs        what stays as it is while the updates on a rollout change the student
    accumulate_gradients      the teacher's scores, forward, policy_loss, backward of each micro-batch
    the loop at the end       evaluate, rollout, updates, log, checkpoint

The value of the loss says little with 'sampled': each token that the student did not sample adds minus its
weight, whatever its probability. Read distill/divergence, distill/nll and eval/pass@1.
"""
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field

from configurator import UserError, at_least, check_out_dir, configure

# --- config -------------------------------------------------------------------
# what and where
model = 'tiny'  # the student: hub id, local Hugging Face folder, 'tiny', or 'random:<shape>' (model.py)
teacher = 'out/tiny_teacher'  # a model with the same tokenizer; never trained
chat_template = ''  # file with a Jinja chat template; '': the tokenizer's own
template_date = ''  # day that a chat template is told which asks for it; '': the model's, or 2024-07-26
rope_theta = 0.0  # base of the rotary embeddings' frequencies; 0: the model's own
max_position_embeddings = 0  # longest prompt with its completion, tokens; 0: the model's own
data = 'search:train'  # sources, each with optional passes per epoch: 'a.jsonl*0.5, b.json*2'
eval_prompts = 'search:test'  # held-out rows for eval/pass@1; '' for none
verifier = ''  # kind of verifier; '' goes by each row's own dataset name
languages = ''  # file of programming languages for verifier 'code', besides the built-in ones
instruction = ''  # appended to every prompt, e.g. how to write the final answer
out_dir = 'out/distill'  # run folder: model, log.jsonl, run.json, state/
resume = False  # go on from out_dir/state
overwrite = False  # start afresh in an out_dir that holds another run
# what the student does not sample
on_policy_fraction = 1.0  # probability that the student samples a prompt
off_policy = 'teacher'  # else the 'teacher' samples it, or it has the row's 'demonstration', one a prompt
max_length = 1024  # tokens of prompt and demonstration; longer ones go the way of `overlong`
overlong = 'drop'  # 'drop' or 'cut' (no end of turn is invented)
without_demonstration = 'error'  # rows that have none: 'error', 'drop' or 'rl' (the student samples)
# rollouts
prompts_per_step = 128  # prompts of a rollout, over all GPUs; its updates share them
group_size = 1  # completions of each prompt; a reward needs 2
max_new_tokens = 128  # tokens of a completion
max_prompt_tokens = 512  # longer prompts are dropped and counted
temperature = 1.0  # divides the logits in sampling and in scoring
mask_truncated = False  # leave completions that were cut at max_new_tokens out of the loss
kv_cache_gb = 4.0  # GB for the KV cache of rollouts, per GPU
# the loss
divergence = 'sampled'  # reverse KL at sampled tokens; all tokens: 'reverse_kl', 'forward_kl', 'jsd'
jsd_beta = 0.5  # b of 'jsd', the teacher's share of the mixture
reward_coef = 0.0  # weight of the verifier's reward beside the teacher; 0: rewards are only logged
advantage_std = True  # with a reward_coef: divide the centred rewards by the group's std
updates_per_rollout = 1  # optimizer steps on one rollout, each on its share of the groups
clip_low, clip_high = 0.2, 0.28  # ratio's range, with updates > 1; for 'sampled' and rewards
loss_denominator = 'tokens'  # 'tokens' (global mean), 'sequences' (mean of means), 'constant'
importance_cap = 0.0  # 0: off; 2: times min(2, probability by trainer / sampler); same use as the clip
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
config = configure(globals(), group_size=at_least(1))
if reward_coef > 0 and group_size < 2:
    raise UserError('with a reward_coef group_size must be at least 2: rewards of a group are compared')
check_out_dir(out_dir, resume, overwrite)

# --- imports ------------------------------------------------------------------
# after the settings, because they take seconds: a mistake in a flag is answered at once
import torch
from torch.distributed.optim import ZeroRedundancyOptimizer
from tqdm import tqdm

from chat import check_same_tokens
from data import Order, add_demonstrations, collate, completion_text, format_report
from data import load_tokenizer, plan_micro_batches, random_stream, rl_prompts, stop_ids
from model import Policy, Target, add_lora, check_token_ids, load_model, load_teacher
from model import memory_plan, save_model, whole
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
check_same_tokens(tokenizer, load_tokenizer(teacher), f'teacher {teacher}')
stops = stop_ids(tokenizer, model)
rows, sources = read_rows(data)
prompts = []  # of all sources, one after the other
weighted = []  # (passes per epoch, indices into prompts) of each source
report = {}  # what was kept and dropped, for each source
for name, passes, begin, end in sources:
    kept, report[name] = rl_prompts(
        rows[begin:end], tokenizer, max_prompt_tokens, verifier, instruction, languages,
        needs_truth=reward_coef > 0)
    if off_policy == 'demonstration' and on_policy_fraction < 1:
        kept, report[f'{name}, demonstrations'] = add_demonstrations(
            kept, name, tokenizer, max_length, overlong, without_demonstration)
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

# --- model --------------------------------------------------------------------
policy = Policy(load_model(
    model, device, rope_theta=rope_theta, max_position_embeddings=max_position_embeddings))
check_token_ids(policy.model, tokenizer, prompts + eval_rows)
if lora_rank:
    # the weights are frozen; what is trained is a low-rank update of each linear layer
    add_lora(policy.model, lora_rank, lora_alpha, compute_dtype)
teacher_policy = load_teacher(teacher, device, compute_dtype, policy.model)
check_token_ids(teacher_policy.model, tokenizer, prompts + eval_rows)
if activation_checkpointing:
    # backward computes a layer's activations again: less memory, about a third more time
    policy.model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={'use_reentrant': False})
if compile:
    # a layer at a time: they are alike, and packed rows are of any length (dynamic)
    for layer in [*policy.model.base_model.layers, *teacher_policy.model.base_model.layers]:
        layer.compile(dynamic=True)

# the policy as the loss calls it: with several ranks its backward averages their gradients
teacher_samples = off_policy == 'teacher' and on_policy_fraction < 1
ddp = parallel(policy, shard, run, teacher_policy, teacher_samples)

# what will hold the memory in a step
if rank == 0:
    rollout_rows = max(prompts_per_step * group_size, eval_samples * len(eval_rows))
    memory = memory_plan(
        policy.model.config, world_size, micro_batch_tokens, activation_checkpointing,
        shard, compute_dtype == torch.bfloat16, teacher=teacher_policy.model.config,
        teacher_samples=teacher_samples,
        whole_distributions=divergence != 'sampled',
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
    is_off_policy: bool = False  # the teacher's, or a demonstration
    advantage: torch.Tensor | float = 0.0  # one number, or (T,): one for each token


@dataclass
class Group:
    """All completions of one prompt."""
    prompt: dict  # see rl_prompts
    place: int  # of the prompt in the row order
    is_off_policy: bool  # its completions are the teacher's, or a demonstration
    completions: list = field(default_factory=list)  # of Completion
    has_spread: bool = False  # whether its rewards differ; if not, all advantages are 0


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


def rollout(indices, first_place):
    """Samples and judges completions of each of these prompts; every rank gets all Groups.

    `first_place` is the first prompt's place in the row order. Places and `seed` decide what is
    sampled and by whom: the same on any number of ranks, unless rounding flips a token.
    """
    # each rank samples the completions of its share of the prompts
    my_places = range(len(indices))[rank::world_size]
    my_groups = []
    for place in my_places:
        prompt = prompts[indices[place]]
        place_in_order = first_place + place
        my_groups.append(Group(prompt, place_in_order, not student_samples(prompt, place_in_order)))
    groups_of_student = [group for group in my_groups if not group.is_off_policy]
    other_groups = [group for group in my_groups if group.is_off_policy]

    add_samples(groups_of_student, policy, 'rollout')
    if off_policy == 'demonstration':
        for group in other_groups:
            group.completions = [demonstration_of(group.prompt)]
    elif teacher_samples:
        add_samples(other_groups, teacher_policy, 'rollout of the teacher')

    # rewards of what the student has sampled, then advantages
    judge(groups_of_student)
    for group in groups_of_student:
        rewards = torch.tensor([completion.reward for completion in group.completions])  # (G,)
        group.has_spread = bool((rewards != rewards[0]).any())
        for completion, advantage in zip(group.completions, advantages_of(rewards)):
            completion.advantage = advantage

    # all groups on every rank: which of them is trained where is planned by their lengths. Rank r
    # sampled those at the places r, r + world_size, ...
    groups = [None] * len(indices)
    for r, share in enumerate(gather(my_groups)):
        groups[r::world_size] = share
    return groups


def student_samples(prompt, place):
    """Whether the student samples the prompt at this place of the row order; else off_policy says who."""
    if off_policy == 'demonstration' and not prompt['demonstration']:
        return True
    return random_stream(seed, 'on_policy', place).uniform() < on_policy_fraction


def add_samples(groups, sampler, label):
    """Gives each of these groups group_size completions, sampled by the student or the teacher."""
    seeds = [(seed, 'rollout', group.place) for group in groups]
    with autocast:
        sampled = generate(
            sampler.model, [group.prompt['ids'] for group in groups], group_size, max_new_tokens,
            temperature, stops, seeds, kv_cache_gb, progress=label if rank == 0 else None)
    for group, of_prompt in zip(groups, sampled):
        for sample in of_prompt:
            group.completions.append(Completion(
                group.prompt['ids'], sample['ids'], sample['logprobs'], sample['stopped'],
                text=completion_text(tokenizer, sample['ids']), is_off_policy=group.is_off_policy))


def demonstration_of(prompt):
    """The demonstration of a prompt as a Completion. Nobody sampled it: its log-probs are of no meaning."""
    ids = prompt['demonstration']
    return Completion(
        prompt['ids'], ids, torch.zeros(len(ids)), stopped=ids[-1] in stops,
        text=completion_text(tokenizer, ids), is_off_policy=True)


def judge(groups):
    """Sets the rewards of all completions. One call of the verifier, which may use all cores."""
    tasks = []  # (completion, (kind of verifier, text, truth))
    for group in groups:
        if group.prompt['kind'] is None:
            continue  # a prompt without a truth: its rewards stay 0
        kind, truth = group.prompt['kind'], group.prompt['truth']
        for completion in group.completions:
            tasks.append((completion, (kind, completion.text, truth)))
    verdicts = verify_all([task for _, task in tasks])
    for (completion, _), (reward, gave_up) in zip(tasks, verdicts):
        completion.reward = reward
        completion.gave_up = gave_up


def rollout_metrics(groups, seconds):
    """What the log says of a rollout that took so many seconds."""
    others = [group for group in groups if group.is_off_policy]
    groups = [group for group in groups if not group.is_off_policy]  # what follows is the student's
    completions = [completion for group in groups for completion in group.completions]
    lengths = [len(completion.ids) for completion in completions]
    # a prompt without a truth has no reward
    rewards = [completion.reward for group in groups if group.prompt['kind'] is not None
               for completion in group.completions]
    # the sampler computes a prompt once for all its completions
    prompt_tokens = sum(len(group.prompt['ids']) for group in groups)
    of_rewards = {}
    if rewards:
        of_rewards = {
            'reward/mean': mean(rewards),
            'reward/zero_std_frac': mean([not group.has_spread for group in groups]),
            'reward/gave_up': sum(completion.gave_up for completion in completions)}
    teacher_sampled = 0  # tokens, counted as the student's
    if off_policy == 'teacher':
        for group in others:
            teacher_sampled += len(group.prompt['ids'])
            teacher_sampled += sum(len(completion.ids) for completion in group.completions)
    return {
        'distill/off_policy_frac': len(others) / prompts_per_step,
        **of_rewards,
        'completion/len_mean': mean(lengths),
        'completion/truncated_frac': mean([not completion.stopped for completion in completions]),
        'tokens/sampled': sum(lengths) + prompt_tokens,
        'distill/teacher_sampled': teacher_sampled,
        # seconds include the verifier's
        'perf/gen_tok_s': sum(lengths) / seconds}


def tokens_of(groups):
    """Tokens of all sequences of these groups, each with its prompt."""
    tokens = 0
    for group in groups:
        for completion in group.completions:
            tokens += len(completion.prompt_ids) + len(completion.ids)
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
    """This rank's micro-batches of one update on `groups`, as collate_completions makes them.

    n_updates updates divide the groups of a rollout, `rollout_groups`, among them; `groups` is the
    share of one. (By default one update takes all of them.) The loss is one sum over the tokens of
    all ranks, each with its weight, so that the number of ranks, micro_batch_tokens and
    packing do not change it. Every share is divided by the average size of a share (the rollout's
    totals / n_updates), not by its size: a completion weighs the same in a large share and in a
    small one.
    """
    in_rollout = trained_completions(rollout_groups or groups)
    total_tokens = sum(len(completion.ids) for completion in in_rollout) / n_updates
    total_completions = len(in_rollout) / n_updates

    # every completion counts, whatever its reward: the teacher has something to say of each
    completions = trained_completions(groups)

    # shares of near-equal work for all ranks, packed into rows; prompts are shared where possible
    plan = plan_micro_batches(completions, micro_batch_tokens, rank, world_size)
    plan = equal_numbers(plan, shard)
    return [collate_completions(part, total_tokens, total_completions) for part in plan]


def collate_completions(completions, total_tokens, total_completions):
    """One micro-batch on the device: what collate makes, and for each of its N scored tokens
    'advantage' by its reward, 'weight' in the loss, 'sampler_logprobs' and 'is_off_policy', all (N,).
    N may be 0."""
    # every sampled token is scored, and no token of a prompt
    micro = collate([(c.ids, [True] * len(c.ids), c.prompt_ids) for c in completions])
    # each list begins with an empty tensor, because a micro-batch may have no completion
    weights = [torch.empty(0)]
    advantages = [torch.empty(0)]
    sampler_logprobs = [torch.empty(0)]
    is_off_policy = [torch.empty(0, dtype=torch.bool)]
    for completion in completions:
        length = len(completion.ids)
        denominator = denominator_of(completion, total_tokens, total_completions)
        weights.append(torch.ones(length) / denominator)
        advantages.append(torch.as_tensor(completion.advantage).expand(length))
        sampler_logprobs.append(completion.sampler_logprobs)
        is_off_policy.append(torch.full((length,), completion.is_off_policy))
    micro['weight'] = torch.cat(weights)
    micro['advantage'] = torch.cat(advantages)
    micro['sampler_logprobs'] = torch.cat(sampler_logprobs)
    micro['is_off_policy'] = torch.cat(is_off_policy)
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


def forward(module, micro, **options):
    """What Policy.forward gives for the scored tokens, at the temperature at which they were sampled."""
    with autocast:
        return module(
            micro['ids'], micro['lengths'], micro['index'], temperature, micro['parents'], **options)


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


# --- the teacher --------------------------------------------------------------
# Divergences of the student from the teacher, (n,), of their log-probs of the whole vocabulary, (n, V).
def reverse_kl(log_student, log_teacher):
    return (log_student.exp() * (log_student - log_teacher)).sum(-1)


def forward_kl(log_student, log_teacher):
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


def jsd(log_student, log_teacher):
    # M = b T + (1 - b) S, in logarithms
    log_mixture = torch.logaddexp(
        log_teacher + math.log(jsd_beta), log_student + math.log(1 - jsd_beta))
    of_teacher = (log_teacher.exp() * (log_teacher - log_mixture)).sum(-1)
    of_student = (log_student.exp() * (log_student - log_mixture)).sum(-1)
    return jsd_beta * of_teacher + (1 - jsd_beta) * of_student


DIVERGENCES = {'reverse_kl': reverse_kl, 'forward_kl': forward_kl, 'jsd': jsd}

# SFT asks no teacher: with 'sampled' the loss has no use for its scores if the student never samples
teacher_scores = divergence != 'sampled' or on_policy_fraction > 0 or without_demonstration == 'rl'


@torch.no_grad()
def scores_of_teacher(micro):
    """What the loss needs of the teacher for one micro-batch: its log-probs (N,) of the scored tokens,
    or, for a divergence of whole distributions, a Target that makes them."""
    if not teacher_scores:
        return {'teacher_logprobs': torch.zeros_like(micro['weight']), 'target': None}
    if divergence == 'sampled':
        logprobs, _ = forward(teacher_policy, micro)
        return {'teacher_logprobs': logprobs, 'target': None}
    hidden = forward(teacher_policy, micro, only_hidden=True)  # (N, hidden)
    head = whole(teacher_policy.model.get_output_embeddings().weight)  # (V, hidden)
    return {'target': Target(hidden, head, DIVERGENCES[divergence])}


# --- the loss -----------------------------------------------------------------
def policy_loss(logprobs, entropy, divergences, micro):
    """Loss of one micro-batch, a scalar, and its statistics, {name: tensor that is summed up}.

    logprobs and entropy (N,) are the current policy's, of the scored tokens; divergences (N,) are from
    the teacher, or None with divergence='sampled'. A statistic of your own is a line here and a line in
    the loop's metrics. The sequence of each token is in micro['doc'].
    """
    if divergence != 'sampled' and reward_coef == 0:
        # The ratio's side of the loss is 0 here. Detached, it costs no backward through TokenLogprobs.
        logprobs = logprobs.detach()
    # pi_old, the policy before the first update on this rollout: with one update the current one
    old_logprobs = micro.get('old_logprobs', logprobs.detach())  # (N,)
    weight = micro['weight']  # (N,)
    advantage = reward_coef * micro['advantage']  # (N,)
    sampler_logprobs = micro['sampler_logprobs']  # (N,)
    # The student did not sample these: their reference policy is the current one in every update. The
    # ratio is then 1 and is never clipped, and its gradient is grad log pi.
    is_off_policy = micro['is_off_policy']  # (N,)
    old_logprobs = torch.where(is_off_policy, logprobs.detach(), old_logprobs)
    sampler_logprobs = torch.where(is_off_policy, logprobs.detach(), sampler_logprobs)
    if divergence == 'sampled':
        # Where the student is too fond of a token the difference is negative. It is a number, like a
        # reward: its expectation over the student's samples is -KL(student || teacher).
        difference = micro['teacher_logprobs'] - old_logprobs
        advantage = advantage + difference
        # with advantage 1 the lines below make SFT's gradient
        advantage = torch.where(is_off_policy, 1.0, advantage)
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

    # the weights hold the denominator, so that this is a sum
    loss = -(weight * objective).sum()

    # GKD's side. A divergence sums over all tokens that might have been sampled: the probability of
    # the one that was has no part in it, and neither has its importance weight.
    if divergences is not None:
        loss = loss + (micro['weight'] * divergences).sum()
    else:
        divergences = logprobs - micro['teacher_logprobs']  # its mean estimates the reverse KL
    statistics = {
        'loss': loss,
        # of what the student did not sample
        'off_policy': is_off_policy,
        'nll': -logprobs * is_off_policy,
        'off_policy_divergence': divergences * is_off_policy,
        # of what it sampled
        'scored': ~is_off_policy,
        'divergence': divergences * ~is_off_policy,
        'entropy': entropy * ~is_off_policy,
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
            # a copy, so that the teacher's scores do not outlive this micro-batch
            micro = {**micro, **scores_of_teacher(micro)}
            logprobs, entropy, *divergences = forward(ddp, micro, target=micro['target'])
            loss, statistics = policy_loss(
                logprobs, entropy, divergences[0] if divergences else None, micro)
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
    first_place = order.position  # before take() moves it
    groups = rollout(order.take(prompts_per_step), first_place)
    rollout_seconds = time.time() - start
    of_rollout = rollout_metrics(groups, rollout_seconds)
    step_tokens = tokens_of(groups)
    tokens += step_tokens
    # some completions with their rewards: the reward alone does not tell what is learned
    groups_of_student = [group for group in groups if not group.is_off_policy]
    if rank == 0 and due(sample_every) and groups_of_student:
        first_group = groups_of_student[0]
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
        samples += sum(len(group.completions) for group in share)

        # log; the policy's means are over the tokens that the student sampled; they are 0 without any
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
            'policy/clip_frac': totals['clipped'] / scored,
            'policy/mismatch': totals['mismatch'] / scored,
            'tokens/trained': int(totals['computed']),
            # of the whole rollout, over the time since it began
            'perf/tok_s': step_tokens / seconds,
            'perf/gen_frac': rollout_seconds / seconds}
        # the divergence, which 'sampled' only estimates, and what it costs
        if totals['scored']:
            metrics['distill/divergence'] = totals['divergence'] / scored
        if totals['off_policy']:
            metrics['distill/nll'] = totals['nll'] / totals['off_policy']
            if divergence != 'sampled':
                metrics['distill/divergence_off_policy'] = (
                    totals['off_policy_divergence'] / totals['off_policy'])
        metrics['distill/teacher_scored'] = metrics['tokens/trained'] if teacher_scores else 0
        if 'cuda' in device:
            metrics['perf/peak_gb'] = torch.cuda.max_memory_allocated() / 1e9
        log(metrics)
        # their cost is in the line of the first update
        of_rollout.pop('tokens/sampled', None)
        of_rollout.pop('distill/teacher_sampled', None)
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
