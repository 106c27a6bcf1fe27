"""What costs time and memory, measured on random weights, in one run with the peer.

    python bench.py --what=sft --against=trl              # sft.py's own lines against TRL's SFTTrainer
    python bench.py --what=grpo --against=trl             # --fill=0.4: a long tail; --prompt_tokens=400
    python bench.py --what=generate --against=transformers
    python bench.py --what=memory                         # log-probs of 4,096 tokens at Qwen3's vocabulary
    python bench.py --what=scale                          # how time grows when work doubles
    python bench.py --what=verify                         # pairs/s beside math-verify, worst case on 1 MB
    python bench.py --what=generate --shape=qwen3-4b --rows=128 --prompt_tokens=512 --new_tokens=1024   # GPU

A script is run as it stands: its source up to the loop, then the loop, a few steps at a time. Peers
(requirements-dev.txt) alternate with it; a ratio is the median over rounds, with the smallest and largest.
model.py switches cuDNN's attention off in the whole process, so peers run without it too: on Hopper GPUs,
where it builds a plan for every new shape, that helps them.
"""
import contextlib
import io
import json
import os
import re
import resource
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ContinuousBatchingConfig, GenerationConfig, TrainerCallback

import checkpoint
from configurator import configure
from model import Documents, Policy, TokenLogprobs, head_size, load_model
from rollout import KVCache, generate


# --- config -------------------------------------------------------------------
what = 'sft'  # 'sft', 'dpo', 'grpo', 'generate', 'memory', 'scale', 'verify'
against = ''  # '': ours alone; 'trl' (sft, dpo, grpo); 'transformers', 'continuous' (generate; its batching)
shape = 'tiny'  # of model.py's SHAPES
rounds = 5  # alternations, after one that warms up
steps = 4  # optimizer steps of a round
rows = 64  # sequences of a GRPO step or of a call of generate
group_size = 8  # of them, completions of one prompt
prompt_tokens = 24  # about; they differ by a tenth
new_tokens = 64  # of a completion, at most
fill = 1.0  # mean completion / new_tokens; 1: all are equally long, less: geometric lengths
batch_size = 8  # sequences of an SFT step, their lengths log-normal (median 200, at most 1,000)
device = 'cuda' if torch.cuda.is_available() else 'cpu'
dtype = 'bfloat16' if torch.cuda.is_available() else 'float32'  # of compute
configure(globals())
name, stop, folder = 'tiny' if shape == 'tiny' else f'random:{shape}', 261, tempfile.mkdtemp()
rng, half = np.random.default_rng(1), dtype == 'bfloat16'
torch.manual_seed(1)


# --- measuring ----------------------------------------------------------------
def seconds(run, *args):
    start = time.perf_counter()
    run(*args)
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start

def alternate(unit, **sides):
    """Prints the median rate of every side (a function -> work done, seconds) and its ratio to the first."""
    rates = {side: [] for side in sides}
    for i in range(rounds + 1):
        for side, run in sides.items():
            work, took = run()
            rates[side] += [work / took] * (i > 0)
    first, *_ = rates.values()
    for side, rate in rates.items():
        ratios = sorted(a / b for a, b in zip(first, rate))
        print(f'{side:>12} {statistics.median(rate):10.4g} {unit}' + (rate is not first) * (
            f'   ours / it {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})'))
    return statistics.median(first)

def texts(sizes):
    return [bytes(rng.integers(97, 123, int(n)).tolist()).decode() for n in sizes]

def prompts_of(n):
    return texts(rng.integers(int(0.9 * prompt_tokens), int(1.1 * prompt_tokens) + 1, n))

def stopping(lm):
    """A random model that ends with a constant probability a token, mean length fill * new_tokens.

    The stop token's row alone reads a residual direction that never changes: whatever is said, the lengths
    have the same distribution for every engine."""
    low, high = 1e-9, 1.0
    for _ in range(60):  # the mean of min(geometric, n) is (1 - (1 - p)^n) / p
        p = (low * high) ** 0.5
        low, high = (p, high) if (1 - (1 - p) ** new_tokens) / p > fill * new_tokens else (low, p)
    with torch.no_grad():
        embed, head = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
        embed[:, 0] = 4 * embed.std()
        for layer in lm.base_model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
        hidden = lm.base_model(torch.randint(97, 123, (1, 64), device=device),
                               documents=Documents([64], lm.device)).last_hidden_state[0]
        head[stop] = 0
        others = (hidden @ head.T).logsumexp(-1).mean()
        head[stop, 0] = (others + np.log(p if fill < 1 else 1e-9)) / hidden[:, 0].mean()
    return lm

def script(file, **knobs):
    """A script's namespace before its loop, and a function that runs n steps of the loop -> seconds."""
    knobs = {'model': name, 'device': device, 'dtype': dtype, 'learning_rate': 1e-6, 'warmup_steps': 0,
             'schedule': 'constant', 'data': f'{folder}/rows.jsonl', 'eval_prompts': '', 'eval_every': 0,
             'checkpoint_every': 0, 'log_every': 10 ** 6, 'out_dir': f'{folder}/{file}', **knobs}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), file)
    with open(path) as f:
        head, loop = f.read().split('# --- the loop', 1)
    space, argv = {'__file__': path, '__name__': '__main__', '__doc__': ''}, sys.argv
    sys.argv = [file, *(f'--{key}={value}' for key, value in knobs.items())]
    checkpoint.catch_stop = list  # signals end the bench, not the script's step
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(head, path, 'exec'), space)
    sys.argv, space['save_checkpoint'] = argv, lambda: None
    code = compile('#' + loop.split('# --- clean up')[0], path, 'exec')

    def go_on(n):
        space['max_steps'] = space['step'] + n
        return seconds(exec, code, space)
    return space, go_on

def write_rows(found):
    with open(f'{folder}/rows.jsonl', 'w') as f:
        f.writelines(json.dumps(row) + '\n' for row in found)

def peer(trainer, work):
    """Function -> work, seconds of a TRL trainer's steps by the clock of its own callbacks."""
    clock = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            clock.append(time.perf_counter())
        on_step_end = on_step_begin
    trainer.add_callback(Clock())

    def run():
        clock.clear()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        return work, clock[-1] - clock[0]
    return run

def trl_options():
    return dict(output_dir=folder, report_to='none', use_cpu=device == 'cpu', bf16=half, save_strategy='no',
                logging_strategy='no', learning_rate=1e-6, lr_scheduler_type='constant', disable_tqdm=True,
                gradient_checkpointing=False, max_steps=steps)

def twin(lm):
    """The same weights for a peer, with transformers' own attention."""
    copy = load_model(name, device, attention='sdpa')
    copy.load_state_dict(lm.state_dict())
    return copy


# --- what is measured ---------------------------------------------------------
def bench_sft():
    sizes = np.minimum(np.exp(rng.normal(np.log(200), 0.8, batch_size * steps)), 1000).astype(int) + 2
    lines = texts(sizes)
    write_rows({'text': line} for line in lines)
    real = int(sizes.sum()) + len(sizes)
    space, go_on = script('sft.py', eval_data='', batch_size=batch_size)
    sides = {'sft.py': lambda: (real, go_on(steps))}
    if against == 'trl':
        import datasets
        import trl
        ids = [[*line.encode(), stop] for line in lines]
        data = datasets.Dataset.from_list([{'input_ids': row, 'labels': row} for row in ids])
        packing = {'packing': True, 'max_length': real // steps}
        for side, batch, options in (
                ('TRL padded', batch_size, dict(max_length=None,
                                                dataset_kwargs={'skip_prepare_dataset': True})),
                ('TRL bfd', 1, dict(packing_strategy='bfd', **packing)),
                ('TRL wrapped', 1, dict(packing_strategy='wrapped', **packing))):
            args = trl.SFTConfig(**trl_options(), per_device_train_batch_size=batch, **options)
            trainer = trl.SFTTrainer(twin(space['lm']), args=args, train_dataset=data,
                                     processing_class=space['tokenizer'])
            if not sides.get('TRL padded'):  # the first batch, both ways
                padded = {k: x.to(device) for k, x in trainer.data_collator(data.to_list()[:batch]).items()}
                micro = space['collate']([(row, [True] * len(row)) for row in ids[:batch]])
                with torch.no_grad():
                    logprobs, _ = space['raw'](micro['ids'].to(device), micro['lengths'],
                                               micro['index'].to(device))
                    theirs = trainer.model(**padded).loss.item()
                print(f'loss of a batch: sft.py {-logprobs.mean().item():.6f}, TRL {theirs:.6f}')
            sides[side] = peer(trainer, real)
    rate = alternate('tokens/s', **sides)
    c, n = space['lm'].config, sum(p.numel() for p in space['lm'].parameters())
    mean = (sizes ** 2).sum() / sizes.sum()  # length of a token's document, on average
    flops = rate * (6 * n + 6 * c.num_hidden_layers * c.num_attention_heads * head_size(c) * mean)
    print(f'{flops / 1e12:.3g} TFLOP/s = tokens/s x (6 N + 6 layers x heads x head size x mean length), '
          f'N = {n:,}' + (f': MFU {flops / 989e12:.1%} of 989' if device == 'cuda' else ''))

def bench_dpo():
    """Pairs of a prompt (log-normal, median 100) and two sides (median 150): preference data as it is."""
    n = batch_size * steps

    def draw(median):
        return np.clip(np.exp(rng.normal(np.log(median), 0.6, n)), 8, 700).astype(int)
    rows = [dict(zip(('prompt', 'chosen', 'rejected'), row))
            for row in zip(texts(draw(100)), texts(draw(150)), texts(draw(150)))]
    write_rows(rows)
    space, go_on = script('dpo.py', batch_size=batch_size, loss_type='dpo', beta=0.1, max_length=2048)
    sides = {'dpo.py': lambda: (n, go_on(steps))}
    if against == 'trl':
        import datasets
        import trl
        roles = {'prompt': 'user', 'chosen': 'assistant', 'rejected': 'assistant'}
        lines = [{key: [{'role': roles[key], 'content': row[key]}] for key in roles} for row in rows]
        args = trl.DPOConfig(**trl_options(), per_device_train_batch_size=batch_size, beta=0.1,
                             max_length=2048, precompute_ref_log_probs=True)
        trainer = trl.DPOTrainer(twin(space['lm']), twin(space['lm']), args=args,
                                 train_dataset=datasets.Dataset.from_list(lines),
                                 processing_class=space['tokenizer'])
        ours = space['pair_logprobs'](space['pairs'][:1], space['raw'])[0].tolist()
        theirs = [trainer.train_dataset[0][f'ref_{side}_logps'] for side in ('chosen', 'rejected')]
        print(f'chosen and rejected log-probs of the first pair: dpo.py {ours}, TRL {theirs}')
        sides['TRL'] = peer(trainer, n)
    alternate('pairs/s', **sides)

def bench_grpo():
    write_rows({'prompt': text, 'answer': '1', 'dataset': 'sums'}
               for text in prompts_of(rows // group_size * steps))
    space, go_on = script('grpo.py', prompts_per_step=rows // group_size, group_size=group_size,
                          sample_every=0, max_new_tokens=new_tokens, max_prompt_tokens=2 * prompt_tokens)
    stopping(space['lm'])
    space['verify_all'] = lambda items: [(float(len(text) % 2), False) for _, text, _ in items]
    made, theirs = [], []

    def ours():
        took = go_on(steps)
        made.append(space['generated'] / rows)
        return steps, took

    def reward(completions, completion_ids, **_):
        theirs.extend(map(len, completion_ids))
        return [float(len(c[0]['content']) % 2) for c in completions]
    sides = {'grpo.py': ours}
    if against == 'trl':
        import datasets
        import trl
        args = trl.GRPOConfig(**trl_options(), per_device_train_batch_size=rows, num_generations=group_size,
                              beta=0.0, max_completion_length=new_tokens, temperature=1.0, epsilon_high=0.28)
        chats = [[{'role': 'user', 'content': prompt['text']}] for prompt in space['prompts']]
        sides['TRL'] = peer(trl.GRPOTrainer(
            twin(space['lm']), reward_funcs=reward, args=args, processing_class=space['tokenizer'],
            train_dataset=datasets.Dataset.from_dict({'prompt': chats})), steps)
    rate = alternate('steps/s', **sides)
    print(f'completions of {statistics.mean(made):.1f} tokens'
          + (f', TRL {statistics.mean(theirs):.1f}' if theirs else '')
          + f'; prompts and completions {rate * space["step_tokens"]:.0f} tokens/s, '
          f'rollout {space["rollout_seconds"] * rate:.0%} of a step')

def bench_generate():
    lm = stopping(load_model(name, device))
    prompts = [list(text.encode()) for text in prompts_of(rows // group_size)]
    calls = iter(range(10 ** 6))

    def ours():
        call = next(calls)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            start = time.perf_counter()
            groups = generate(lm, prompts, group_size, new_tokens, 1.0, [stop],
                              [call * 1000 + i for i in range(len(prompts))], kv_cache_gb=60.0)
        return sum(len(c['ids']) for group in groups for c in group), time.perf_counter() - start
    sides = {'generate': ours}
    if against:
        plain = twin(lm).eval().to(torch.bfloat16 if half else torch.float32)
        settings = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new_tokens,
                        eos_token_id=stop, pad_token_id=0)
        every, longest = [p for p in prompts for _ in range(group_size)], max(map(len, prompts))
        padded = torch.tensor([[0] * (longest - len(p)) + p for p in every], device=device)

        def dynamic():
            start = time.perf_counter()
            ids = plain.generate(padded, attention_mask=(padded != 0).long(), **settings)[:, longest:]
            before = (ids == stop).int().cumsum(-1) - (ids == stop).int()  # ends before this token
            return int((before == 0).sum()), time.perf_counter() - start

        def continuous():
            options = ContinuousBatchingConfig(num_blocks=1024, page_size=32, max_batch_tokens=512)
            start = time.perf_counter()
            done = plain.generate_batch(every, GenerationConfig(**settings), options)
            return sum(len(r.generated_tokens) for r in done.values()), time.perf_counter() - start
        sides[against] = continuous if against == 'continuous' else dynamic
    rate = alternate('tokens/s', **sides)
    size = torch.bfloat16 if half else torch.float32
    kept = rows * (prompt_tokens + fill * new_tokens / 2) * KVCache.token_bytes(lm.config, size)
    read = sum(p.numel() for p in lm.parameters()) * size.itemsize + kept
    large = torch.empty(2 ** 28, dtype=torch.int32, device=device)
    copied = 2 * large.nbytes / min(seconds(large.clone) for _ in range(5))
    print(f'a step reads {read / 1e9:.3g} GB of weights, keys and values: {read / rows * rate / copied:.1%} '
          'of the copy rate')

def bench_memory():
    """Peak memory over the inputs' and gradients', and time, of forward and backward."""
    n, vocab, hidden = 4096, 151936, 256
    h = torch.randn(n, hidden, device=device, requires_grad=True)
    w = (torch.randn(vocab, hidden, device=device) / 16).requires_grad_()
    targets = torch.randint(0, vocab, (n,), device=device)

    def ours():
        TokenLogprobs.apply(h, w, targets, 1.0, torch.float32)[0].sum().backward()

    def cross_entropy():
        F.cross_entropy(h @ w.T, targets, reduction='sum').backward()

    def naive():
        torch.log_softmax(h @ w.T, -1).gather(1, targets[:, None]).sum().backward()
    for run in (ours, cross_entropy, naive):  # from small to large: the process's peak never falls
        times, used = [], 0
        for _ in range(rounds if run is not naive else 1):
            h.grad = w.grad = None
            if device == 'cuda':
                torch.cuda.reset_peak_memory_stats()
                used = torch.cuda.memory_allocated()
            else:
                with open('/proc/self/statm') as f:
                    used = int(f.read().split()[1]) * resource.getpagesize()
            times.append(seconds(run))
        peak = torch.cuda.max_memory_allocated() if device == 'cuda' else 1024 * resource.getrusage(
            resource.RUSAGE_SELF).ru_maxrss
        print(f'{run.__name__:>14} {(peak - used) / 2 ** 30:6.2f} GiB {min(times):7.2f} s')

def bench_scale():
    """Exponent of time when work doubles: 1 is linear."""
    lm = load_model(name, device)

    def decode(n):
        prompts = [list(text.encode()) for text in prompts_of(n // new_tokens // group_size)]
        with torch.autocast(device, torch.bfloat16, enabled=half):
            generate(lm, prompts, group_size, new_tokens, 1.0, [], list(range(len(prompts))), 0.03)

    def train(n):
        ids = torch.randint(0, 256, (n,), device=device)
        Policy(lm)(ids, [128] * (n // 128), torch.arange(1, n, device=device))[0].sum().backward()

    def score(vocab):
        w = torch.randn(vocab, 128, device=device, requires_grad=True)
        h, targets = torch.randn(512, 128, device=device), torch.randint(0, vocab, (512,), device=device)
        TokenLogprobs.apply(h, w, targets, 1.0, torch.float32)[0].sum().backward()
    for label, run, sizes in (('tokens generated', decode, 2048 * 2 ** np.arange(6)),
                              ('tokens packed', train, 2048 * 2 ** np.arange(5)),
                              ('vocabulary', score, 8192 * 2 ** np.arange(5))):
        run(sizes[0])
        times = [min(seconds(run, int(n)) for _ in range(3)) for n in sizes]
        print(f'{label:>17} {sizes[0]} to {sizes[-1]}: {times[0]:.3g} s to {times[-1]:.3g} s, '
              f'exponent {np.polyfit(np.log(sizes), np.log(times), 1)[0]:.2f}')

def bench_verify():
    """verify.py against math-verify: pairs/s, and each kind's slowest verdict on a hostile megabyte."""
    from math_verify import parse
    from math_verify import verify as theirs

    from ifeval import MAX_TEXT, RULES
    from latex import normal, tree
    from verify import verify as ours
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, 'tests', 'data', 'math500_answers.json')) as f:
        answers = json.load(f)
    pairs = [(f'So the answer is $\\boxed{{{a}}}$.', b)
             for i, a in enumerate(answers) for b in (a, answers[i - 1])]

    def rate(judge):
        def run():
            normal.cache_clear(), tree.cache_clear()
            return len(pairs), seconds(lambda: [judge(a, b) for a, b in pairs])
        return run
    alternate('pairs/s', ours=rate(lambda a, b: ours('math', a, b)),
              math_verify=rate(lambda a, b: theirs(parse(f'${b}$'), parse(a))))
    units = ['\\boxed{', '{', '1 ', '\\', 'answer is ', 'answer ', ' ', '\\boxed{5} ', '#', '<answer>1+',
             'a. ', '*a* ', '[x]\n', 'the cat ', '"', '\n', '\n\n', '...', '<<a>>', 'A-', '***', '```c\n']
    truths = [(kind, '7', kind) for kind in ('math', 'gsm8k', 'mcq')]
    truths += [('countdown', {'numbers': [1], 'target': 1}, 'countdown')]
    for name, (wanted, _) in RULES.items():
        given = {key: 'at least' if 'relation' in key else 3 if re.search('num|nth|frequency', key) else
                 'en' if key == 'language' else ['ab'] if 'words' in key else 'ab' for key in wanted.split()}
        truths.append(('ifeval', {'instruction_id_list': [name], 'kwargs': [given], 'mode': 'loose'}, name))
    slow = {}
    for unit in units:
        whole = (unit * (10 ** 6 // len(unit) + 1))[:10 ** 6]
        for kind, truth, name in truths:
            text = whole[:MAX_TEXT] if kind == 'ifeval' else whole  # it gives longer ones up at once
            took = min(seconds(ours, kind, text, truth) for _ in range(3))  # the machine may be shared
            slow[kind] = max(slow.get(kind, (0,)), (took, name, unit))
    for kind, (worst, name, unit) in slow.items():
        print(f'slowest verdict of {kind}: {worst * 1000:.1f} ms ({name}, {unit!r} repeated, '
              f'{MAX_TEXT if kind == "ifeval" else 10 ** 6:,} characters)')

if __name__ == '__main__':  # tools/gpu_check.py uses the parts
    globals()[f'bench_{what}']()
