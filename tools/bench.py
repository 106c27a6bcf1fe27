"""Measures time and memory on random weights, in one run with a peer.

    python -m tools.bench --what=sft --against=trl        # sft.py against TRL's SFTTrainer
    python -m tools.bench --what=dpo --against=trl
    python -m tools.bench --what=grpo --against=trl       # --fill=0.4: a long tail; --prompt_tokens=400
    python -m tools.bench --what=generate --against=transformers
    python -m tools.bench --what=memory       # log-probs of 4,096 tokens at Qwen3's vocabulary
    python -m tools.bench --what=scale        # how time grows when the work doubles
    python -m tools.bench --what=verify       # pairs/s beside math-verify; the worst case on 1 MB
    python -m tools.bench --what=data         # rows to examples, beside plain tokenisation
    python -m tools.bench --what=generate --shape=qwen3-4b --rows=128 --prompt_tokens=512 \\
        --new_tokens=1024                     # on a GPU

A script is measured as it stands: its source runs up to its loop, then the loop a few steps at a
time (tools/script.py). Peers (requirements-dev.txt) alternate with it. A ratio is the median over
the rounds, with the smallest and the largest in brackets.

model.py switches cuDNN's attention off in the whole process, so peers run without it too. On Hopper
GPUs, where cuDNN builds a plan for every new shape, that helps them.
"""
import contextlib
import io
import itertools
import json
import os
import re
import resource
import statistics
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ContinuousBatchingConfig, GenerationConfig, TrainerCallback

from configurator import configure, one_of
from model import Documents, Policy, TokenLogprobs, head_size, load_model
from decoder import KVCache
from rollout import generate
from tools.script import advance, start

# --- config -------------------------------------------------------------------
what = 'sft'  # 'sft', 'dpo', 'grpo', 'generate', 'memory', 'scale', 'verify', 'data'
against = ''  # '': ours alone; 'trl' (sft, dpo, grpo); 'transformers', 'continuous' (generate; its batching)
shape = 'tiny'  # of model.py's SHAPES
rounds = 5  # alternations, after one that warms up
steps = 4  # optimizer steps of a round
rows = 64  # sequences of a GRPO step or of a call of generate
group_size = 8  # of them, completions of one prompt
prompt_tokens = 24  # about; they differ by a tenth
new_tokens = 64  # of a completion, at most
fill = 1.0  # mean completion / new_tokens; 1: all are equally long, less: geometric lengths
rows_file = 'tests/data/gsm8k_sample.jsonl'  # of what=data: question and answer
tokenizer = ''  # of what=data: a folder; '': one trained on the rows, with three usual templates
batch_size = 8  # sequences of an SFT step, their lengths log-normal (median 200, at most 1,000)
device = 'cuda' if torch.cuda.is_available() else 'cpu'
dtype = 'bfloat16' if torch.cuda.is_available() else 'float32'  # of compute
configure(globals(),
          what=one_of('sft', 'dpo', 'grpo', 'generate', 'memory', 'scale', 'verify', 'data'),
          against=one_of('', 'trl', 'transformers', 'continuous'))

# after configure(), which takes every plain value above it for a setting
model_name = 'tiny' if shape == 'tiny' else f'random:{shape}'
stop_id = 261  # the end of a turn in the byte tokenizer, which every random model has
folder = tempfile.mkdtemp()
is_bf16 = dtype == 'bfloat16'
weights_dtype = torch.bfloat16 if is_bf16 else torch.float32  # of a copy that only samples
rng = np.random.default_rng(1)
torch.manual_seed(1)


# --- measuring ----------------------------------------------------------------
def seconds(run, *args):
    """Wall time of one call, with all that it leaves running on the GPU."""
    begin = time.perf_counter()
    run(*args)
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def alternate(unit, **sides):
    """Measures the sides in turn; prints each one's median rate and the first's ratio to it.

    `sides`: {name: function -> (work done, seconds)}. Returns the first side's median rate.
    """
    # Alternation, because the machine's speed changes over minutes: a round's rates were measured
    # close together, so their ratio holds even when the rates themselves drift.
    rates = {side: [] for side in sides}
    for i in range(rounds + 1):
        for side, measure in sides.items():
            work, took = measure()
            # round 0 warms up: allocation, compilation, thread pools
            if i > 0:
                rates[side].append(work / took)

    first, *_ = rates.values()
    for side, rate in rates.items():
        line = f'{side:>12} {statistics.median(rate):10.4g} {unit}'
        if rate is not first:
            ratios = sorted(a / b for a, b in zip(first, rate))
            middle = statistics.median(ratios)
            line += f'   ours / it {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})'
        print(line)
    return statistics.median(first)


# --- texts and models ---------------------------------------------------------
def texts(sizes):
    """Random lower-case texts of these numbers of letters, each of them one token."""
    letters = [rng.integers(97, 123, int(size)) for size in sizes]
    return [bytes(codes.tolist()).decode() for codes in letters]


def prompts_of(n):
    """n random prompts of about prompt_tokens tokens."""
    low = int(0.9 * prompt_tokens)
    high = int(1.1 * prompt_tokens) + 1
    return texts(rng.integers(low, high, n))


def token_ids_of(n):
    """The token ids of n random prompts, without a chat template."""
    return [list(text.encode()) for text in prompts_of(n)]


def write_rows(found):
    """Writes the rows that the scripts read."""
    with open(f'{folder}/rows.jsonl', 'w') as f:
        for row in found:
            f.write(json.dumps(row) + '\n')


def stop_probability():
    """The probability of stopping, at every token, by which lengths have the mean fill * new_tokens."""
    if fill >= 1:
        return 1e-9
    low = 1e-9
    high = 1.0
    for _ in range(60):
        p = (low * high) ** 0.5
        # of min(geometric, new_tokens)
        mean_length = (1 - (1 - p) ** new_tokens) / p
        if mean_length > fill * new_tokens:
            low = p
        else:
            high = p
    return p


def stopping(model):
    """Changes a random model so that it stops with stop_probability() at every token; returns it.

    A model of random weights stops when its weights happen to say so, and a small difference of
    rounding would then change the lengths, and with them the work. Here the probability does not
    depend on the text: lengths have one distribution for every engine, whatever it samples.
    """
    embedding = model.get_input_embeddings().weight  # (V, H)
    head = model.get_output_embeddings().weight  # (V, H)
    with torch.no_grad():
        # a direction of the residual stream that is the same at every token: no layer writes to it
        embedding[:, 0] = 4 * embedding.std()
        for layer in model.base_model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0

        # the stop token's logit reads this direction alone
        head[stop_id] = 0
        ids = torch.randint(97, 123, (1, 64), device=device)  # (1, T)
        output = model.base_model(ids, documents=Documents([64], model.device))
        hidden = output.last_hidden_state[0]  # (T, H)
        others = (hidden @ head.T).logsumexp(-1).mean()
        logit = others + np.log(stop_probability())
        head[stop_id, 0] = logit / hidden[:, 0].mean()
    return model


def script(file, **knobs):
    """A script before its loop, on folder/rows.jsonl -> Script (tools/script.py)."""
    settings = {
        'model': model_name, 'device': device, 'dtype': dtype, 'data': f'{folder}/rows.jsonl',
        'out_dir': f'{folder}/{file}', 'learning_rate': 1e-6, 'warmup_steps': 0, 'schedule': 'constant',
        # steps alone are measured: no evaluation, no checkpoint, no output
        'eval_prompts': '', 'eval_every': 0, 'checkpoint_every': 0, 'log_every': 10 ** 6,
        **knobs}
    flags = [f'--{key}={value}' for key, value in settings.items()]
    with contextlib.redirect_stdout(io.StringIO()):
        return start(file, flags)


def seconds_of_steps(started, n):
    """Makes n steps of a script's loop -> seconds: batch, rollout, loss, backward, update, metrics."""
    return seconds(advance, started, n)


# --- TRL ----------------------------------------------------------------------
def trl_options():
    """The options that all of TRL's trainers share: the script's, and no output."""
    return dict(output_dir=folder, report_to='none', use_cpu=device == 'cpu', bf16=is_bf16,
                save_strategy='no', logging_strategy='no', learning_rate=1e-6,
                lr_scheduler_type='constant', disable_tqdm=True, gradient_checkpointing=False,
                max_steps=steps)


def twin(model):
    """The same weights for a peer, with transformers' own attention."""
    copy = load_model(model_name, device, attention='sdpa')
    copy.load_state_dict(model.state_dict())
    return copy


class Clock(TrainerCallback):
    """The times at which a trainer began and ended its steps."""

    def __init__(self):
        self.times = []

    def on_step_begin(self, *_, **__):
        self.times.append(time.perf_counter())

    def on_step_end(self, *_, **__):
        self.times.append(time.perf_counter())


def peer(trainer, work):
    """Function -> (work, seconds) of a TRL trainer's steps.

    Timed from the begin of the first step to the end of the last one. What train() does before and
    after them (optimizer, data loader) would weigh too much in a round of a few steps.
    """
    clock = Clock()
    trainer.add_callback(clock)

    def run():
        clock.times.clear()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        return work, clock.times[-1] - clock.times[0]
    return run


# --- SFT ----------------------------------------------------------------------
def bench_sft():
    """Real tokens a second, padding not counted, of sft.py and three of TRL's ways to make a batch."""
    lengths = np.exp(rng.normal(np.log(200), 0.8, batch_size * steps))
    lengths = np.minimum(lengths, 1000).astype(int) + 2
    lines = texts(lengths)
    write_rows({'text': line} for line in lines)
    # of a round; each row has an end-of-turn token too
    real_tokens = int(lengths.sum()) + len(lengths)
    sft = script('sft.py', eval_data='', batch_size=batch_size)

    def ours():
        return real_tokens, seconds_of_steps(sft, steps)
    sides = {'sft.py': ours}
    if against == 'trl':
        sides |= trl_sft(sft, lines, real_tokens)
    tokens_per_second = alternate('tokens/s', **sides)
    print_flops(sft.names['policy'], tokens_per_second, lengths)


def trl_sft(sft, lines, real_tokens):
    """Sides of TRL's SFTTrainer on the same rows: padded batches, and its two kinds of packing."""
    import datasets
    import trl
    rows_of_ids = [[*line.encode(), stop_id] for line in lines]
    data = datasets.Dataset.from_list([{'input_ids': ids, 'labels': ids} for ids in rows_of_ids])

    def trainer_of(rows_per_step, **options):
        args = trl.SFTConfig(**trl_options(), per_device_train_batch_size=rows_per_step, **options)
        return trl.SFTTrainer(twin(sft.names['policy'].model), args=args, train_dataset=data,
                              processing_class=sft.names['tokenizer'])
    padded = trainer_of(batch_size, max_length=None, dataset_kwargs={'skip_prepare_dataset': True})
    print_first_loss(sft, rows_of_ids[:batch_size], padded, data)
    # one packed row a step, with as many tokens as a step of sft.py has on average
    packed_length = real_tokens // steps
    bfd = trainer_of(1, packing_strategy='bfd', packing=True, max_length=packed_length)
    wrapped = trainer_of(1, packing_strategy='wrapped', packing=True, max_length=packed_length)
    return {'TRL padded': peer(padded, real_tokens),
            'TRL bfd': peer(bfd, real_tokens),
            'TRL wrapped': peer(wrapped, real_tokens)}


def print_first_loss(sft, rows_of_ids, trainer, data):
    """Prints the loss of one batch by both: a comparison of speed needs the same computation."""
    batch = trainer.data_collator(data.to_list()[:len(rows_of_ids)])
    padded = {key: x.to(device) for key, x in batch.items()}
    micro = sft.names['collate']([(ids, [True] * len(ids)) for ids in rows_of_ids])
    with torch.no_grad():
        logprobs, _ = sft.names['policy'](
            micro['ids'].to(device), micro['lengths'], micro['index'].to(device))  # (N,)
        ours = -logprobs.mean().item()
        theirs = trainer.model(**padded).loss.item()
    print(f'loss of a batch: sft.py {ours:.6f}, TRL {theirs:.6f}')


def print_flops(policy, tokens_per_second, lengths):
    """Prints the FLOP/s of training at this rate; on a GPU the share of an H100's peak too."""
    config = policy.model.config
    n_parameters = sum(p.numel() for p in policy.parameters())
    # a long document holds more of the tokens: the length of a token's document, on average
    mean_length = (lengths ** 2).sum() / lengths.sum()
    width = config.num_attention_heads * head_size(config)
    attention_flops = 6 * config.num_hidden_layers * width * mean_length
    flops = tokens_per_second * (6 * n_parameters + attention_flops)
    line = (f'{flops / 1e12:.3g} TFLOP/s = tokens/s x (6 N + 6 layers x heads x head size x mean length), '
            f'N = {n_parameters:,}')
    if device == 'cuda':
        line += f': MFU {flops / 989e12:.1%} of 989'
    print(line)


# --- DPO ----------------------------------------------------------------------
def bench_dpo():
    """Pairs a second. Lengths are as in preference data: prompts' median 100, sides' median 150."""
    n_pairs = batch_size * steps

    def lengths(median):
        drawn = np.exp(rng.normal(np.log(median), 0.6, n_pairs))
        return np.clip(drawn, 8, 700).astype(int)
    prompts = texts(lengths(100))
    chosen = texts(lengths(150))
    rejected = texts(lengths(150))
    pairs = []
    for prompt, good, bad in zip(prompts, chosen, rejected):
        pairs.append({'prompt': prompt, 'chosen': good, 'rejected': bad})
    write_rows(pairs)
    # reference log-probs are scored before the loop, by TRL before train(): neither is timed
    dpo = script('dpo.py', batch_size=batch_size, loss_type='dpo', beta=0.1, max_length=2048)

    def ours():
        return n_pairs, seconds_of_steps(dpo, steps)
    sides = {'dpo.py': ours}
    if against == 'trl':
        trainer = trl_dpo_trainer(dpo, pairs)
        print_first_pair(dpo, trainer)
        sides['TRL'] = peer(trainer, n_pairs)
    alternate('pairs/s', **sides)


def trl_dpo_trainer(dpo, pairs):
    """TRL's DPOTrainer on the same pairs."""
    import datasets
    import trl
    roles = {'prompt': 'user', 'chosen': 'assistant', 'rejected': 'assistant'}
    chats = []
    for pair in pairs:
        chats.append({key: [{'role': role, 'content': pair[key]}] for key, role in roles.items()})
    args = trl.DPOConfig(**trl_options(), per_device_train_batch_size=batch_size, beta=0.1,
                         max_length=2048, precompute_ref_log_probs=True)
    model = dpo.names['policy'].model
    return trl.DPOTrainer(twin(model), twin(model), args=args,
                          train_dataset=datasets.Dataset.from_list(chats),
                          processing_class=dpo.names['tokenizer'])


def print_first_pair(dpo, trainer):
    """Prints the first pair's log-probs by both: a comparison of speed needs the same computation."""
    with torch.no_grad():
        logprobs = dpo.names['pair_logprobs'](dpo.names['policy'], dpo.names['pairs'][:1])  # (1, 2)
    ours = logprobs[0].tolist()
    first = trainer.train_dataset[0]
    theirs = [first['ref_chosen_logps'], first['ref_rejected_logps']]
    print(f'chosen and rejected log-probs of the first pair: dpo.py {ours}, TRL {theirs}')


# --- GRPO ---------------------------------------------------------------------
def reward_by_length(text):
    """1 or 0: texts of a random model have no right answer, but half of the rewards must be 1."""
    return float(len(text) % 2)


def bench_grpo():
    """Steps a second of grpo.py: rollout, rewards, update. The rewards cost nothing here."""
    prompts_per_step = rows // group_size
    write_rows({'prompt': text, 'answer': '1', 'dataset': 'sums'}
               for text in prompts_of(prompts_per_step * steps))
    grpo = script('grpo.py', prompts_per_step=prompts_per_step, group_size=group_size, sample_every=0,
                  max_new_tokens=new_tokens, max_prompt_tokens=2 * prompt_tokens)
    stopping(grpo.names['policy'].model)
    grpo.names['verify_all'] = lambda tasks: [(reward_by_length(text), False) for _, text, _ in tasks]

    def ours():
        return steps, seconds_of_steps(grpo, steps)
    sides = {'grpo.py': ours}
    lengths_of_trl = []
    if against == 'trl':
        sides['TRL'] = peer(trl_grpo_trainer(grpo, lengths_of_trl), steps)
    steps_per_second = alternate('steps/s', **sides)

    # lengths of both, because the work grows with them
    length = statistics.mean(metrics['completion/len_mean'] for metrics in grpo.metrics)
    lengths = f'completions of {length:.1f} tokens'
    if lengths_of_trl:
        lengths += f', TRL {statistics.mean(lengths_of_trl):.1f}'
    tokens_per_step = grpo.metrics[-1]['tokens'] / len(grpo.metrics)
    # not in the steps that warmed up
    rollout_share = statistics.mean(metrics['perf/gen_frac'] for metrics in grpo.metrics[steps:])
    print(f'{lengths}; prompts and completions {steps_per_second * tokens_per_step:.0f} tokens/s, '
          f'rollout {rollout_share:.0%} of a step')


def trl_grpo_trainer(grpo, lengths):
    """TRL's GRPOTrainer on the same prompts; appends its completions' lengths to `lengths`."""
    import datasets
    import trl

    def reward(completions, completion_ids, **_):
        lengths.extend(len(ids) for ids in completion_ids)
        return [reward_by_length(message['content']) for (message,) in completions]
    chats = [[{'role': 'user', 'content': prompt['text']}] for prompt in grpo.names['prompts']]
    args = trl.GRPOConfig(**trl_options(), per_device_train_batch_size=rows, num_generations=group_size,
                          beta=0.0, max_completion_length=new_tokens, temperature=1.0, epsilon_high=0.28)
    return trl.GRPOTrainer(
        twin(grpo.names['policy'].model), reward_funcs=reward, args=args,
        processing_class=grpo.names['tokenizer'],
        train_dataset=datasets.Dataset.from_dict({'prompt': chats}))


# --- generate -----------------------------------------------------------------
def bench_generate():
    """Completion tokens a second; prefill is timed, its tokens are not counted."""
    model = stopping(load_model(model_name, device))
    prompts = token_ids_of(rows // group_size)
    sides = {'generate': ours_of_generate(model, prompts)}
    if against == 'continuous':
        sides[against] = continuous_batching(model, prompts)
    elif against:
        sides[against] = padded_batch(model, prompts)
    tokens_per_second = alternate('tokens/s', **sides)
    print_copy_rate(model, tokens_per_second)


def ours_of_generate(model, prompts):
    """Function -> (tokens, seconds) of a call of rollout.py's generate."""
    calls = itertools.count()

    def run():
        # other random numbers in every call, so that one draw of lengths does not decide
        call = next(calls)
        seeds = [call * 1000 + i for i in range(len(prompts))]
        with torch.autocast(device, torch.bfloat16, enabled=is_bf16):
            begin = time.perf_counter()
            groups = generate(model, prompts, group_size, new_tokens, 1.0, [stop_id], seeds,
                              kv_cache_gb=60.0)
            took = time.perf_counter() - begin
        completions = [completion for group in groups for completion in group]
        return sum(len(completion['ids']) for completion in completions), took
    return run


def transformers_copy(model, prompts):
    """What transformers samples with: the weights, a prompt for each completion, its settings."""
    copy = twin(model).eval().to(weights_dtype)
    every_prompt = [ids for ids in prompts for _ in range(group_size)]
    settings = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new_tokens,
                    eos_token_id=stop_id, pad_token_id=0)
    return copy, every_prompt, settings


def padded_batch(model, prompts):
    """Function -> (tokens, seconds) of transformers' generate on one padded batch."""
    copy, every_prompt, settings = transformers_copy(model, prompts)
    longest = max(len(ids) for ids in every_prompt)
    # padding is on the left and has id 0, which no prompt holds
    padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in every_prompt], device=device)

    def run():
        begin = time.perf_counter()
        ids = copy.generate(padded, attention_mask=(padded != 0).long(), **settings)
        completions = ids[:, longest:]  # (B, T)
        # rows that have stopped are padded: tokens after the first stop do not count
        is_stop = (completions == stop_id).int()
        stops_before = is_stop.cumsum(-1) - is_stop
        tokens = int((stops_before == 0).sum())
        return tokens, time.perf_counter() - begin
    return run


def continuous_batching(model, prompts):
    """Function -> (tokens, seconds) of transformers' generate_batch."""
    copy, every_prompt, settings = transformers_copy(model, prompts)

    def run():
        options = ContinuousBatchingConfig(num_blocks=1024, page_size=32, max_batch_tokens=512)
        begin = time.perf_counter()
        done = copy.generate_batch(every_prompt, GenerationConfig(**settings), options)
        tokens = sum(len(request.generated_tokens) for request in done.values())
        return tokens, time.perf_counter() - begin
    return run


def print_copy_rate(model, tokens_per_second):
    """Prints which share of the memory's copy rate decoding reaches: it is bound by what it reads."""
    weights = sum(p.numel() for p in model.parameters()) * weights_dtype.itemsize
    # half of a completion is in the cache, on average over its steps
    cached_tokens = rows * (prompt_tokens + fill * new_tokens / 2)
    read = weights + cached_tokens * KVCache.token_bytes(model.config, weights_dtype)
    large = torch.empty(2 ** 28, dtype=torch.int32, device=device)  # 1 GiB
    fastest = min(seconds(large.clone) for _ in range(5))
    copy_rate = 2 * large.nbytes / fastest  # read and written
    steps_per_second = tokens_per_second / rows
    print(f'a step reads {read / 1e9:.3g} GB of weights, keys and values: '
          f'{read * steps_per_second / copy_rate:.1%} of the copy rate')


# --- memory -------------------------------------------------------------------
def bench_memory():
    """Peak memory over the inputs' and gradients', and time, of forward and backward."""
    n_tokens = 4096
    vocabulary = 151936
    width = 256
    hidden = torch.randn(n_tokens, width, device=device, requires_grad=True)
    weight = (torch.randn(vocabulary, width, device=device) / 16).requires_grad_()
    targets = torch.randint(0, vocabulary, (n_tokens,), device=device)

    def ours():
        logprobs, _ = TokenLogprobs.apply(hidden, weight, targets, 1.0, torch.float32)  # (N,)
        logprobs.sum().backward()

    def cross_entropy():
        F.cross_entropy(hidden @ weight.T, targets, reduction='sum').backward()

    def naive():
        logprobs = torch.log_softmax(hidden @ weight.T, -1)  # (N, V)
        logprobs.gather(1, targets[:, None]).sum().backward()

    # from small to large, because the peak of a process never falls
    for run in (ours, cross_entropy, naive):
        times = []
        for _ in range(1 if run is naive else rounds):
            hidden.grad = weight.grad = None
            used = memory_in_use()
            times.append(seconds(run))
        gib = (peak_memory() - used) / 2 ** 30
        print(f'{run.__name__:>14} {gib:6.2f} GiB {min(times):7.2f} s')


def memory_in_use():
    """Bytes in use now; on a GPU the peak is counted from here."""
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with open('/proc/self/statm') as f:
        _, resident_pages, *_ = f.read().split()
    return int(resident_pages) * resource.getpagesize()


def peak_memory():
    """Bytes in use at the peak: on a GPU since memory_in_use(), on a CPU since the process began."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- scale --------------------------------------------------------------------
def bench_scale():
    """Exponents of time when the work doubles: 1 is linear."""
    model = load_model(model_name, device)

    def decode(n_tokens):
        prompts = token_ids_of(n_tokens // new_tokens // group_size)
        seeds = list(range(len(prompts)))
        # a small cache and no stop token: rows wait, and all completions are equally long
        with torch.autocast(device, torch.bfloat16, enabled=is_bf16):
            generate(model, prompts, group_size, new_tokens, 1.0, [], seeds, 0.03)

    def train(n_tokens):
        ids = torch.randint(0, 256, (n_tokens,), device=device)
        lengths = [128] * (n_tokens // 128)
        scored = torch.arange(1, n_tokens, device=device)
        logprobs, _ = Policy(model)(ids, lengths, scored)
        logprobs.sum().backward()

    def score(vocabulary):
        weight = torch.randn(vocabulary, 128, device=device, requires_grad=True)
        hidden = torch.randn(512, 128, device=device)
        targets = torch.randint(0, vocabulary, (512,), device=device)
        logprobs, _ = TokenLogprobs.apply(hidden, weight, targets, 1.0, torch.float32)
        logprobs.sum().backward()

    print_exponent('tokens generated', decode, 2048 * 2 ** np.arange(6))
    print_exponent('tokens packed', train, 2048 * 2 ** np.arange(5))
    print_exponent('vocabulary', score, 8192 * 2 ** np.arange(5))


def print_exponent(label, run, sizes):
    """Times run(size) for all sizes and prints the slope of the times on logarithmic scales."""
    # the first call warms up
    run(sizes[0])
    times = []
    for size in sizes:
        # the fastest of three: others can only make a call slower
        times.append(min(seconds(run, int(size)) for _ in range(3)))
    exponent, _ = np.polyfit(np.log(sizes), np.log(times), 1)
    print(f'{label:>17} {sizes[0]} to {sizes[-1]}: {times[0]:.3g} s to {times[-1]:.3g} s, '
          f'exponent {exponent:.2f}')


# --- verify -------------------------------------------------------------------
# repeated up to a hostile text: each opens, nests or repeats something that a verifier looks for
UNITS = ['\\boxed{', '{', '1 ', '\\', 'answer is ', 'answer ', ' ', '\\boxed{5} ', '#', '<answer>1+',
         'a. ', '*a* ', '[x]\n', 'the cat ', '"', '\n', '\n\n', '...', '<<a>>', 'A-', '***', '```c\n']


def bench_verify():
    """verify.py against math-verify: pairs/s, and each kind's slowest verdict on a hostile megabyte."""
    from math_verify import parse
    from math_verify import verify as their_verify

    from rewards.latex import normal, tree
    from verify import verify as our_verify
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(os.path.join(root, 'tests', 'data', 'math500_answers.json')) as f:
        answers = json.load(f)
    # each answer against itself, which is right, and against the one before it, which is mostly wrong
    pairs = []
    for i, answer in enumerate(answers):
        completion = f'So the answer is $\\boxed{{{answer}}}$.'
        pairs += [(completion, answer), (completion, answers[i - 1])]

    def judge_all(judge):
        for completion, truth in pairs:
            judge(completion, truth)

    def measured(judge):
        def run():
            # every round sees the pairs for the first time
            normal.cache_clear()
            tree.cache_clear()
            return len(pairs), seconds(judge_all, judge)
        return run
    alternate('pairs/s',
              ours=measured(lambda completion, truth: our_verify('math', completion, truth)),
              math_verify=measured(lambda completion, truth: their_verify(
                  parse(f'${truth}$'), parse(completion))))
    print_slowest_verdicts(our_verify)


def hostile_truths():
    """[(kind of verifier, truth, name)]: one of each kind, and of IFEval each of its rules."""
    from rewards.ifeval import RULES
    truths = [(kind, '7', kind) for kind in ('math', 'gsm8k', 'mcq')]
    truths.append(('countdown', {'numbers': [1], 'target': 1}, 'countdown'))
    for name, rule in RULES.items():
        arguments = {key: argument_for(key) for key in rule.names()}
        truth = {'instruction_id_list': [name], 'kwargs': [arguments], 'mode': 'loose'}
        truths.append(('ifeval', truth, name))
    return truths


def argument_for(key):
    """A legal value of an IFEval argument, by its name."""
    if 'relation' in key:
        return 'at least'
    if re.search('num|nth|frequency|^N$', key):
        return 3
    if key == 'language':
        return 'en'
    if 'words' in key:
        return ['ab']
    return 'ab'


def print_slowest_verdicts(verify):
    """Prints the slowest verdict of each kind over all hostile texts."""
    from rewards.ifeval import MAX_TEXT
    truths = hostile_truths()
    slowest = {}  # kind: (seconds, name, unit)
    for unit in UNITS:
        megabyte = (unit * (10 ** 6 // len(unit) + 1))[:10 ** 6]
        for kind, truth, name in truths:
            # IFEval's verifier gives up longer texts at once
            text = megabyte[:MAX_TEXT] if kind == 'ifeval' else megabyte
            # the fastest of three, because the machine may be shared
            took = min(seconds(verify, kind, text, truth) for _ in range(3))
            if kind not in slowest or (took, name, unit) > slowest[kind]:
                slowest[kind] = (took, name, unit)
    for kind, (took, name, unit) in slowest.items():
        size = MAX_TEXT if kind == 'ifeval' else 10 ** 6
        print(f'slowest verdict of {kind}: {took * 1000:.1f} ms ({name}, {unit!r} repeated, '
              f'{size:,} characters)')


# --- data ---------------------------------------------------------------------
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + "
    "'<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}")
TEMPLATES = {  # name -> template, its special tokens, the one that ends a turn
    'ChatML': (CHATML, ['<|im_start|>', '<|im_end|>'], '<|im_end|>'),
    'Llama 3': (LLAMA, ['<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'],
                '<|eot_id|>'),
    'Mistral': (MISTRAL, ['<s>', '[INST]', '[/INST]', '</s>'], '</s>')}


def trained_tokenizer(texts, template, specials, end):
    """A byte-level tokenizer of 4,000 tokens, as the texts are, with a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    core = Tokenizer(models.BPE())
    # words and numbers with the blank before them, as in GPT-2 and what came after
    words = Regex(r"'s|'t|'re| ?[A-Za-z]+| ?[0-9]{1,3}| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(words, 'isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=4000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    core.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, eos_token=end)


def bench_data():
    """sft_examples against what cannot be left out: each row rendered once, all tokenised in one call."""
    from data import load_tokenizer
    from rows import read_rows
    found, _ = read_rows(rows_file)
    # 1,000 questions with their answers, from a shorter file several times
    pairs = []
    for i in range(1000):
        row = found[i % len(found)]
        pairs.append([{'role': 'user', 'content': row['question']},
                      {'role': 'assistant', 'content': row['answer']}])
    texts = [message['content'] for pair in pairs for message in pair]
    if tokenizer:
        tokenizers = {tokenizer: load_tokenizer(tokenizer)}
    else:
        tokenizers = {name: trained_tokenizer(texts, *parts) for name, parts in TEMPLATES.items()}
    for name, made in tokenizers.items():
        for turns in (2, 10, 400):
            n = turns // 2
            conversations = [sum(pairs[i:i + n], []) for i in range(0, len(pairs), n)]
            print(f'{name}, {len(conversations)} rows of {turns} turns:')
            alternate('tokens/s', ours=measured_examples(made, conversations),
                      plain=measured_plain(made, conversations))


def measured_examples(tokenizer, conversations):
    """A side of `alternate`: rows to examples."""
    from data import sft_examples
    rows = [{'messages': messages, '_where': 'row'} for messages in conversations]

    def run():
        begin = time.perf_counter()
        _, report = sft_examples(rows, tokenizer, 10 ** 6)
        return report['tokens'], time.perf_counter() - begin
    return run


def measured_plain(tokenizer, conversations):
    """A side of `alternate`: the chat template of transformers, then its tokenizer on all texts."""
    def run():
        begin = time.perf_counter()
        texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)
        return sum(map(len, encoded['input_ids'])), time.perf_counter() - begin
    return run


if __name__ == '__main__':  # tools/gpu_check.py uses the parts
    benches = {'sft': bench_sft, 'dpo': bench_dpo, 'grpo': bench_grpo, 'generate': bench_generate,
               'memory': bench_memory, 'scale': bench_scale, 'verify': bench_verify, 'data': bench_data}
    benches[what]()
