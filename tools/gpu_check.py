"""What nanopost does on a GPU: is it right, how fast is it, where does the time go.

    bash tools/gpu_check.sh 450                     # the usual call: at most 450 seconds
    python -m tools.gpu_check 200 attention,graphs  # some items

GPU time comes in minutes, so everything is imported once and each item then runs in a forked process with a
limit of its own: an item that hangs or dies costs its limit and no more. The most telling items come first.
Figures go to $OUT/results.txt as they come, everything that is printed to $OUT/log.txt.

Without a GPU it runs on tiny shapes. That tries this script and measures nothing.
"""
import os
import runpy
import signal
import sys
import time
import traceback

START = time.time()
os.environ.update(HF_HUB_OFFLINE='1', WANDB_MODE='offline')
os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] = '1'  # is_available() then leaves CUDA alone: forks need that

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from transformers import Qwen3ForCausalLM  # noqa: E402,F401  the forks find it imported

import model as M  # noqa: E402
import rollout as R  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.environ.get('OUT', 'out/gpu_check')
# the device file is looked for first: asking CUDA itself could spoil it for the forked processes
SMOKE = not (os.path.exists('/dev/nvidia0') or torch.cuda.is_available())
DEVICE = 'cpu' if SMOKE else 'cuda'
# shapes of model.py that the items use
SMALL, MIDDLE, LARGE, HUGE = ('tiny',) * 4 if SMOKE else ('qwen3-0.6b', 'qwen3-1.7b', 'qwen3-4b', 'qwen3-8b')
PEAK_FLOPS = 989e12  # an H100's or H200's dense bf16


# --- writing and timing -------------------------------------------------------
def note(item, **figures):
    """One line of results.txt, on disk before this returns."""
    texts = [f'{key} {value:.4g}' if isinstance(value, float) else f'{key} {value}'
             for key, value in figures.items()]
    line = f'{item}: ' + ', '.join(texts)
    with open(os.path.join(OUT, 'results.txt'), 'a') as f:
        f.write(line + '\n')
        f.flush()
        os.fsync(f.fileno())
    print(line, flush=True)


def synchronize():
    if DEVICE == 'cuda':
        torch.cuda.synchronize()


def milliseconds_of_one(run):
    """Wall time of a single call, its first one included: compilation, plans, allocation."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return (time.perf_counter() - start) * 1e3


def microseconds(run, repeats=20, warm_up=3):
    """Median time of a call; on a GPU by its own events, without the time to launch."""
    for _ in range(warm_up):
        run()
    if DEVICE == 'cpu':
        times = [milliseconds_of_one(run) * 1e3 for _ in range(repeats)]
        return float(np.median(times))
    # the GPU is asked once, after all calls: waiting for each would add the time to launch it
    pairs = []
    for _ in range(repeats):
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        pairs.append((start, end))
    synchronize()
    times = [start.elapsed_time(end) * 1e3 for start, end in pairs]
    return float(np.median(times))


def memory_figures():
    """Peak memory since the last reset_peak, in GB."""
    if DEVICE == 'cpu':
        return {}
    return {'peak_gb': torch.cuda.max_memory_allocated() / 1e9,
            'reserved_gb': torch.cuda.max_memory_reserved() / 1e9}


def reset_peak():
    if DEVICE == 'cuda':
        torch.cuda.reset_peak_memory_stats()


def bench(*flags):
    """tools/bench.py's names with these flags set; nothing is measured yet."""
    sys.argv = ['bench.py', *flags]
    # a fresh namespace for every set of flags; its name is not __main__, so that no bench begins
    return runpy.run_path(os.path.join(ROOT, 'tools', 'bench.py'), run_name='bench')


def profile(name, run, kernels=14):
    """The kernels that take most of the GPU's time in a call of run()."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE == 'cuda':
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        synchronize()
    events = profiler.key_averages()
    if DEVICE == 'cuda':
        # the operator that launched a kernel has the kernel's time as well: count it once
        events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    events = sorted(events, key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    for event in events[:kernels]:
        microseconds_of_kernel = event.self_device_time_total
        # a comma would end a figure in results.txt; on a CPU all times are 0
        note(name, kernel=event.key[:70].replace(',', ';'), calls=event.count,
             ms=microseconds_of_kernel / 1e3, share=microseconds_of_kernel / max(1, total))


# --- ceilings, correctness ----------------------------------------------------
def info():
    """The card, the versions, and what a copy and plain matrix products reach on it."""
    if DEVICE == 'cuda':
        card = torch.cuda.get_device_properties(0)
        note('info', gpu=card.name, gb=card.total_memory / 1e9, torch=torch.__version__,
             transformers=transformers.__version__, varlen_takes_gqa=M.VARLEN_TAKES_GQA,
             flash_takes_splits=M.FLASH_TAKES_SPLITS)
    note('copy', tb_s=copy_rate() / 1e12)
    shapes = [(64, 64, 64)] if SMOKE else [
        (8192, 8192, 8192), (16384, 1024, 6144), (16384, 2560, 9728), (16384, 9728, 2560),  # layers
        (331, 1024, 151936), (1324, 1024, 151936), (331, 2560, 151936)]  # a chunk of logits
    for m, k, n in shapes:
        a = torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16)
        b = torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16)
        took = microseconds(lambda a=a, b=b: a @ b.T)
        note('matmul', mkn=f'{m}x{k}x{n}', tflop_s=2 * m * k * n / took / 1e6)


def copy_rate():
    """Bytes a second that a large copy reads and writes on this card."""
    source = torch.empty(2 ** 10 if SMOKE else 2 ** 30, dtype=torch.int32, device=DEVICE)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes  # read and written
    return copied / (microseconds(lambda: target.copy_(source)) * 1e-6)


def tests():
    """The tests that need a GPU. They need pytest, which `make demo` does not install."""
    import pytest

    paths = [os.path.join(ROOT, 'tests', name) for name in ('test_model.py', 'test_gpu_ready.py')]
    outcomes = []

    class Outcomes:
        def pytest_runtest_logreport(self, report):
            if report.when == 'call' or report.outcome != 'passed':
                outcomes.append((report.nodeid.rpartition('::')[2], report.outcome))
    options = ['-q', '-p', 'no:cacheprovider', '--tb=short', '-k', 'on_a_gpu']
    pytest.main([*options, *paths], plugins=[Outcomes()])
    for name, outcome in outcomes:
        note('test', name=name, outcome=outcome)


def rope():
    """Do the rotary tables differ where fp32 products may run in TF32? The scripts never allow it."""
    name = 'tiny' if SMOKE else f'random:{SMALL}'
    rotary = M.load_model(name, DEVICE).base_model.rotary_emb
    for positions in [512] if SMOKE else [1024, 4096, 16384]:
        cosines = []
        for precision in ('highest', 'high'):
            torch.set_float32_matmul_precision(precision)
            cos, _ = rotary(torch.zeros(1, 1, device=DEVICE), torch.arange(positions, device=DEVICE)[None])
            cosines.append(cos)
        torch.set_float32_matmul_precision('highest')
        note('rope', positions=positions, error_with_tf32=(cosines[0] - cosines[1]).abs().max().item())


# --- attention ----------------------------------------------------------------
def attention():
    """Ways to compute decode attention, in time and share of the bandwidth; then packed attention."""
    torch.manual_seed(0)
    shapes = [(2, 2, 2, 20, 32)] if SMOKE else [
        (64, 8, 2, 1024, 1280), (256, 8, 2, 1024, 1280), (64, 8, 4, 1024, 1280), (64, 8, 4, 4096, 4352)]
    bandwidth = copy_rate()
    for rows, kv_heads, heads_per_key, filled, length in shapes:
        decode_attention(rows, kv_heads, heads_per_key, filled, length, bandwidth)

    shrink = 16 if SMOKE else 1
    packed_attention('16 documents of 1024', [1024 // shrink] * 16, None)
    # each prompt is followed by its completions, whose parent is its index
    lengths = []
    parents = []
    for _ in range(8):
        parent = len(lengths)
        lengths += [512 // shrink] + [192 // shrink] * 8
        parents += [-1] + [parent] * 8
    packed_attention('8 prompts of 512 with 8 completions of 192', lengths, parents)


def decode_attention(rows, kv_heads, heads_per_key, filled, length, bandwidth, head_dim=128):
    """One token of each row against a KV cache of `filled` tokens, in every way that torch has.

    What a way does not support is a line of results.txt too.
    """
    options = dict(device=DEVICE, dtype=torch.bfloat16)
    scaling = head_dim ** -0.5
    q = torch.randn(rows, kv_heads * heads_per_key, head_dim, **options)
    k = torch.randn(rows, length, kv_heads, head_dim, **options)
    v = torch.randn(rows, length, kv_heads, head_dim, **options)
    used = torch.full((rows,), filled, device=DEVICE, dtype=torch.int32)
    mask = torch.zeros(rows, filled, **options)
    truth = M.cached_sdpa(q.float(), k.float(), v.float(), used, mask.float(), scaling)
    bytes_read = 2 * rows * filled * kv_heads * head_dim * q.itemsize  # keys and values

    def by(backend, filled=filled):
        with sdpa_kernel(backend):
            return M.cached_sdpa(q, k, v, used, mask[:, :filled], scaling)

    def cudnn(filled=filled):
        torch.backends.cuda.enable_cudnn_sdp(True)  # model.py has switched it off
        try:
            return by(SDPBackend.CUDNN_ATTENTION, filled)
        finally:  # or packed_sdpa, which is measured next, would take it too
            torch.backends.cuda.enable_cudnn_sdp(False)
    ways = {
        'varlen': lambda: M.cached_varlen(q, k, v, used, None, scaling),
        'SDPA efficient': lambda: by(SDPBackend.EFFICIENT_ATTENTION),
        'SDPA math': lambda: by(SDPBackend.MATH),
        'SDPA cudnn': cudnn}
    case = dict(rows=rows, heads_per_key=heads_per_key, filled=filled)
    for name, run in ways.items():
        try:
            first = milliseconds_of_one(run)
            error = ((run().float() - truth).norm() / truth.norm()).item()
            took = microseconds(run)
            share = bytes_read / (took * 1e-6) / bandwidth
            more = {}
            if name == 'SDPA cudnn':  # what a mask of another length costs
                more['new_length_ms'] = milliseconds_of_one(lambda: cudnn(filled - 1))
            note('decode attention', **case, way=name, us=took, error=error, first_ms=first,
                 of_bandwidth=share, **more)
        except Exception as problem:  # a backend may not take the shape: that is a result
            note('decode attention', **case, way=name, failed=M.first_line(problem)[:100])


def packed_attention(name, lengths, parents):
    """Training attention over a packed row of these documents, forward and with backward."""
    documents = M.Documents(lengths, torch.device(DEVICE), parents)
    options = dict(device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    q = torch.randn(sum(lengths), 16, 128, **options)
    k = torch.randn(sum(lengths), 8, 128, **options)
    v = torch.randn(sum(lengths), 8, 128, **options)
    for way in (M.packed_varlen, M.packed_sdpa):
        try:
            def forward(way=way):
                return way(q, k, v, documents, 0.1)

            def both(forward=forward):
                out = forward()
                return torch.autograd.grad(out, (q, k, v), out)
            first = milliseconds_of_one(forward)
            forward_us = microseconds(forward, 10)
            both_us = microseconds(both, 10)
            note('packed attention', row=name, way=way.__name__, forward_us=forward_us,
                 forward_and_backward_us=both_us, first_ms=first)
        except Exception as problem:
            note('packed attention', row=name, way=way.__name__, failed=M.first_line(problem)[:100])


# --- rollout ------------------------------------------------------------------
def rollout_model(space, prompts, prompt_tokens):
    """bench's model, whose completions have random lengths, and the token ids of random prompts."""
    model = space['stopping'](space['load_model'](space['model_name'], DEVICE))
    texts = space['texts']([prompt_tokens] * prompts)
    return model, [list(text.encode()) for text in texts]


def call_generate(space, model, prompts, group_size):
    seeds = list(range(len(prompts)))
    with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=False):
        return R.generate(model, prompts, group_size, space['new_tokens'], 1.0, [space['stop_id']],
                          seeds, kv_cache_gb=1.0 if SMOKE else 40.0)


def generate(shape, rows, prompt_tokens=768, new_tokens=512):
    """bench --what=generate: tokens a second and the share of the copy rate."""
    def run():
        if SMOKE:
            space = bench('--rows=8', '--new_tokens=8', '--rounds=1')
            space['bench_generate']()
            return
        reset_peak()
        space = bench(f'--shape={shape}', f'--rows={rows}', f'--prompt_tokens={prompt_tokens}',
                      f'--new_tokens={new_tokens}', '--rounds=1')
        space['bench_generate']()
        note(f'generate {shape} {rows} rows', **memory_figures())
    return run


def graphs():
    """A long tail of lengths: what recording graphs costs; and does the sampler agree with the trainer."""
    space = bench(f'--shape={SMALL}', '--fill=0.4', f'--new_tokens={24 if SMOKE else 256}')
    model, prompts = rollout_model(space, prompts=2 if SMOKE else 32, prompt_tokens=20 if SMOKE else 300)
    seconds_recording = time_recordings()
    # two calls, of which the second counts
    for _ in range(2):
        seconds_recording.clear()
        reset_peak()
        start = time.perf_counter()
        groups = call_generate(space, model, prompts, 8)  # ends in a copy to the host
        took = time.perf_counter() - start
    tokens = sum(len(completion['ids']) for group in groups for completion in group)
    recording = float(sum(seconds_recording))
    note('graphs', recorded=len(seconds_recording), seconds_recording=recording,
         of_call=recording / took, call_s=took, tokens_s=tokens / took, **memory_figures())
    sampler_against_trainer(model, prompts[:4], groups[:4])


def time_recordings():
    """From now on torch.cuda.graph notes how long a recording took; returns the list of seconds."""
    seconds_recording = []
    plain_graph = torch.cuda.graph

    class TimedGraph(plain_graph):
        def __enter__(self):
            self.start = time.perf_counter()
            return super().__enter__()

        def __exit__(self, *error):
            super().__exit__(*error)
            seconds_recording.append(time.perf_counter() - self.start)
    torch.cuda.graph = TimedGraph
    return seconds_recording


def sampler_against_trainer(model, prompts, groups):
    """How far the sampler's log-probs are from a training forward's, on four completions a prompt."""
    differences = []
    for prompt, group in zip(prompts, groups):
        for completion in group[:4]:
            ids = torch.tensor(prompt + completion['ids'], device=DEVICE)  # (T,)
            scored = torch.arange(len(prompt), len(ids), device=DEVICE)
            with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
                logprobs, _ = M.Policy(model)(ids, [len(ids)], scored)
            differences.append((logprobs.cpu() - completion['logprobs']).abs())
    differences = torch.cat(differences)
    note('sampler against trainer', tokens=len(differences), mean_nats=differences.mean().item(),
         max_nats=differences.max().item())


def profile_generate():
    space = bench(f'--shape={SMALL}', f'--new_tokens={8 if SMOKE else 48}')
    model, prompts = rollout_model(space, prompts=2 if SMOKE else 16, prompt_tokens=20 if SMOKE else 1000)
    # graphs are recorded outside the profile
    call_generate(space, model, prompts, 8)
    profile('profile generate', lambda: call_generate(space, model, prompts, 8))


# --- sampler ------------------------------------------------------------------
def pick(sizes, u):
    """First index whose running sum of `sizes` (B, n) exceeds u (B, 1), and u less what comes before it."""
    sums = sizes.cumsum(-1, dtype=torch.float64)  # (B, n)
    # rounding must not pass the end
    below_end = torch.nextafter(sums[:, -1:], torch.zeros_like(u))
    u = torch.minimum(u, below_end)
    index = torch.searchsorted(sums, u, right=True)  # (B, 1)
    before = sums.gather(1, index) - sizes.gather(1, index)
    return index, (u - before).clamp_(min=0)


def sample_in_two_levels(logits, temperature, uniform, block_size=128):
    """sample_token by the sums of blocks first and then within a block: a candidate to replace it.

    logits (B, V), uniform (B,) float64 -> ids (B,), log-probs (B,).
    """
    logprobs = torch.log_softmax(logits.float() / temperature, -1)  # (B, V)
    # padded with zeros to whole blocks
    padding = -logprobs.shape[1] % block_size
    probabilities = F.pad(logprobs.exp(), (0, padding))
    blocks = probabilities.unflatten(1, (-1, block_size))  # (B, blocks, block_size)
    sums = blocks.sum(-1, dtype=torch.float64)  # (B, blocks)
    u = uniform[:, None] * sums.sum(-1, keepdim=True)  # (B, 1)
    block, left = pick(sums, u)
    inside = blocks.gather(1, block[..., None].expand(-1, 1, block_size))[:, 0]  # (B, block_size)
    index, _ = pick(inside, left)
    ids = (block * block_size + index)[:, 0]
    return ids, logprobs.gather(1, ids[:, None])[:, 0]


def sampler():
    """Time of the sampler's parts at Qwen3's vocabulary, and the error of bf16 logits."""
    vocabulary = 1000 if SMOKE else 151936
    for rows in [4] if SMOKE else [64, 256]:
        sampler_parts(rows, vocabulary)
    logits_in_bf16(vocabulary)


def sampler_parts(rows, vocabulary):
    logits = torch.randn(rows, vocabulary, device=DEVICE).mul_(3).bfloat16()
    uniform = torch.rand(rows, device=DEVICE, dtype=torch.float64)
    p = torch.softmax(logits.float(), -1)
    ids, _ = R.sample_token(logits, 1.0, uniform)
    ids_in_two_levels, _ = sample_in_two_levels(logits, 1.0, uniform)
    same = ids == ids_in_two_levels
    note('sampler', rows=rows,
         sample_token_us=microseconds(lambda: R.sample_token(logits, 1.0, uniform)),
         two_levels_us=microseconds(lambda: sample_in_two_levels(logits, 1.0, uniform)),
         same_ids=same.float().mean().item(),
         log_softmax_us=microseconds(lambda: torch.log_softmax(logits.float(), -1)),
         cumsum_fp64_us=microseconds(lambda: p.cumsum(-1, dtype=torch.float64)),
         cumsum_fp32_us=microseconds(lambda: p.cumsum(-1)))


def logits_in_bf16(vocabulary):
    """What rounding logits to bf16 loses, and what fp32 logits of bf16 inputs cost."""
    hidden = torch.randn(64, 1024, device=DEVICE).bfloat16()
    head = torch.randn(vocabulary, 1024, device=DEVICE).bfloat16()
    # of the first thousand tokens, because fp64 is slow
    exact = hidden.double() @ head[:1000].double().T

    def bf16_out():
        return hidden @ head.T

    def fp32_out():
        return torch.mm(hidden, head.T, out_dtype=torch.float32)

    def error(logits):
        return (logits[:, :1000].double() - exact).abs().max().item()
    figures = {'bf16_us': microseconds(bf16_out), 'bf16_error': error(bf16_out())}
    if not SMOKE:  # a CPU has no such product
        figures |= {'fp32_out_us': microseconds(fp32_out), 'fp32_out_error': error(fp32_out())}
    note('head', **figures)


# --- training -----------------------------------------------------------------
def sft(shape, batch_size=64, warm_up=2, steps=3, with_profile=False, **knobs):
    """Steps of sft.py on documents of median length 200: tokens a second, MFU, memory against the plan."""
    def run():
        sequences = 4 if SMOKE else batch_size
        space = bench(f'--shape={shape}', f'--batch_size={sequences}')
        lengths = np.exp(space['rng'].normal(np.log(200), 0.8, sequences * (steps + warm_up)))
        lengths = np.minimum(lengths, 1000).astype(int) + 2
        space['write_rows']({'text': line} for line in space['texts'](lengths))
        script = space['script']('sft.py', eval_data='', batch_size=sequences, **knobs)
        # the first step has the kernels' plans and the compilation
        first_step = space['seconds_of_steps'](script, 1)
        space['seconds_of_steps'](script, warm_up - 1)
        reset_peak()
        tokens_before = script.metrics[-1]['tokens']
        seconds = space['seconds_of_steps'](script, steps)
        last = script.metrics[-1]
        tokens_s = (last['tokens'] - tokens_before) / seconds
        memory = memory_figures()

        names = script.names
        model = names['policy'].model
        plan = M.memory_plan(model.config, 1, names['micro_batch_tokens'], names['activation_checkpointing'],
                             bf16=names['compute_dtype'] == torch.bfloat16, lora_rank=names['lora_rank'])
        mfu = tokens_s * flops_of_a_token(model, lengths) / PEAK_FLOPS
        note(f'sft {shape}', **knobs, tokens_s=tokens_s, mfu=mfu, first_step_s=first_step,
             loss=last['loss'], plan_gb=plan['peak'], **memory)
        if with_profile:
            profile(f'profile sft {shape}', lambda: space['seconds_of_steps'](script, 1))
    return run


def flops_of_a_token(model, lengths):
    """FLOPs that training spends on a token, in documents of these lengths: 6 N and the attention's."""
    config = model.config
    n_parameters = sum(p.numel() for p in model.parameters())
    # a long document holds more of the tokens: the length of a token's document, on average
    mean_length = float((lengths ** 2).sum() / lengths.sum())
    width = config.num_attention_heads * M.head_size(config)
    return 6 * n_parameters + 6 * config.num_hidden_layers * width * mean_length


def grpo(shape, rows=128, prompt_tokens=200, new_tokens=256, group_size=8, steps=2, micro_batch_tokens=16384,
         lora_rank=0, needs_gb=0, teacher='', divergence='sampled'):
    """Steps of grpo.py: how long they take, how much of that is the rollout, memory against the plan.

    With a teacher, a shape, they are steps of distill.py with this divergence. Skipped on a card with
    less than needs_gb GB.
    """
    def run():
        if not SMOKE and torch.cuda.get_device_properties(0).total_memory < needs_gb * 1e9:
            note(f'grpo {shape}', skipped=f'it needs {needs_gb} GB')
            return
        completions, prompt, new = (16, 20, 16) if SMOKE else (rows, prompt_tokens, new_tokens)
        prompts = completions // group_size
        kv_cache_gb = 1.0 if SMOKE else 24.0
        space = bench(f'--shape={shape}', f'--rows={completions}', f'--prompt_tokens={prompt}',
                      f'--new_tokens={new}', f'--group_size={group_size}', '--fill=0.6')
        space['write_rows']({'prompt': text, 'answer': '1', 'dataset': 'sums'}
                            for text in space['prompts_of'](prompts * (steps + 1)))
        distillation = {}
        if teacher:
            distillation = {'teacher': f'random:{teacher}', 'divergence': divergence}
        script = space['script'](
            'distill.py' if teacher else 'grpo.py',
            prompts_per_step=prompts, group_size=group_size, sample_every=0, max_new_tokens=new,
            max_prompt_tokens=2 * prompt, kv_cache_gb=kv_cache_gb, activation_checkpointing=True,
            micro_batch_tokens=micro_batch_tokens, lora_rank=lora_rank, **distillation)
        names = script.names
        model = names['policy'].model
        space['stopping'](model)
        # no text of a random model is right: half of all completions, by their length
        reward = space['reward_by_length']
        names['verify_all'] = lambda tasks: [(reward(text), False) for _, text, _ in tasks]
        # the first step warms up
        space['seconds_of_steps'](script, 1)
        reset_peak()
        tokens_before = script.metrics[-1]['tokens']
        seconds = space['seconds_of_steps'](script, steps)
        last = script.metrics[-1]

        plan = M.memory_plan(
            model.config, 1, micro_batch_tokens, activation_checkpointing=True,
            bf16=names['compute_dtype'] == torch.bfloat16, kv_cache_gb=kv_cache_gb, rollout_rows=completions,
            max_new_tokens=new, lora_rank=lora_rank, whole_distributions=divergence != 'sampled',
            teacher=names['teacher_policy'].model.config if teacher else None)
        figures = {key: last[key] for key in (
            'perf/gen_tok_s', 'perf/gen_frac', 'policy/mismatch', 'grad_norm', 'completion/len_mean')}
        tokens_s = (last['tokens'] - tokens_before) / seconds
        name = f'distill {shape} from {teacher}, {divergence}' if teacher else f'grpo {shape}'
        note(name, lora_rank=lora_rank, s_step=seconds / steps, tokens_s=tokens_s, **figures,
             plan_gb=plan['peak'], **memory_figures())
    return run


def logprobs_memory():
    """bench --what=memory: log-probs of 4,096 tokens at Qwen3's vocabulary."""
    if not SMOKE:
        space = bench('--rounds=2')
        space['bench_memory']()


# --- the run ------------------------------------------------------------------
# name, seconds that it may take, function; the most telling first
ITEMS = [
    ('info', 30, info),
    ('tests', 60, tests),
    ('attention', 45, attention),
    ('generate64', 40, generate(SMALL, 64)),
    ('sft06', 40, sft(SMALL, with_profile=True, activation_checkpointing=False, micro_batch_tokens=8192)),
    ('graphs', 40, graphs),
    ('generate256', 45, generate(SMALL, 256)),
    ('grpo06', 50, grpo(SMALL)),
    ('sft17', 45, sft(MIDDLE, activation_checkpointing=True, micro_batch_tokens=16384)),
    ('sampler', 20, sampler),
    ('rope', 15, rope),
    ('generate128', 40, generate(SMALL, 128)),
    ('profile', 30, profile_generate),
    ('sft06ckpt', 40, sft(SMALL, activation_checkpointing=True, micro_batch_tokens=16384)),
    ('generate4b', 60, generate(LARGE, 128, 768, 256)),
    ('memory', 20, logprobs_memory),
    # it compiles again where a micro-batch is longer than a bound, so more steps warm up
    ('sft06compile', 120, sft(SMALL, warm_up=10, steps=6, activation_checkpointing=False,
                              micro_batch_tokens=8192, compile=True)),
    ('generate17', 45, generate(MIDDLE, 128, 768, 256)),
    ('sft4b', 60, sft(LARGE, batch_size=16, steps=2, activation_checkpointing=True, micro_batch_tokens=4096)),
    # weights, gradients and moments of 4B parameters are 64 GB, and a rollout's keys and values come on top
    ('grpo4b', 90, grpo(LARGE, micro_batch_tokens=8192, needs_gb=100)),
    ('sft4bcompile', 120, sft(LARGE, batch_size=16, warm_up=8, steps=4, activation_checkpointing=True,
                              micro_batch_tokens=4096, compile=True)),
    # two models that fit 80 GB with LoRA alone, by the plan; and one whose every weight is trained
    ('grpo4blora', 90, grpo(LARGE, lora_rank=16)),
    ('sft8blora', 90, sft(HUGE, batch_size=32, steps=2, activation_checkpointing=True,
                          micro_batch_tokens=16384, lora_rank=16)),
    ('grpo17', 60, grpo(MIDDLE)),
    ('distill06', 60, grpo(SMALL, teacher=MIDDLE)),
    ('distill06jsd', 60, grpo(SMALL, teacher=MIDDLE, divergence='jsd')),
]
NEEDS_A_FRESH_PROCESS = {'sft06compile', 'sft4bcompile'}  # Inductor's workers hang in a forked one


def run_forked(name, run):
    """Runs an item in this forked process, its output in log.txt, and ends the process."""
    os.setsid()  # a group of its own, so that its workers can be ended with it
    log = os.open(os.path.join(OUT, 'log.txt'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        print(f'\n=== {name}', flush=True)
        if name in NEEDS_A_FRESH_PROCESS:
            os.execv(sys.executable, [sys.executable, '-m', 'tools.gpu_check', '--one-item', name])
        run()
        status = 0
    except BaseException as problem:
        traceback.print_exc()
        note(name, failed=f'{type(problem).__name__}: {M.first_line(problem)[:150]}')
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait_for(child, seconds):
    """The child's exit status, or None when it was killed after so many seconds."""
    deadline = time.time() + seconds
    while time.time() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main(seconds, chosen):
    os.makedirs(OUT, exist_ok=True)
    # empty what an earlier run has left
    for name in ('results.txt', 'log.txt'):
        open(os.path.join(OUT, name), 'w').close()
    note('start', imports_s=time.time() - START, device=DEVICE)
    for name, limit, run in ITEMS:
        left = seconds - (time.time() - START)
        if chosen and name not in chosen:
            continue
        if left < 8:
            note(name, skipped='no time left')
            continue
        begun = time.time()
        child = os.fork()
        if child == 0:
            run_forked(name, run)
        status = wait_for(child, min(limit, left))
        if status is None:
            ended = 'killed at its limit'
        elif status == 0:
            ended = 'ok'
        else:
            ended = f'status {status}'
        note(name, seconds=time.time() - begun, ended=ended)
    print_all()


def print_all():
    """Every figure once more, bench's too: a caller may see only the end of the output."""
    words = ('tokens/s', 'copy rate', 'GiB', 'SDPA is used')
    print('\n--- of log.txt')
    with open(os.path.join(OUT, 'log.txt')) as f:
        for line in f:
            if any(word in line for word in words):
                print(line, end='')
    print('\n--- results.txt')
    with open(os.path.join(OUT, 'results.txt')) as f:
        print(f.read(), end='', flush=True)


if __name__ == '__main__':
    # [seconds, [item,item,...]]; gpu_check.sh gives '' where it has no items
    first, second = [*sys.argv[1:], '', ''][:2]
    if first == '--one-item':
        runs = {name: run for name, _, run in ITEMS}
        run_item = runs[second]
        run_item()
    else:
        main(seconds=float(first or 440), chosen=second.split(',') if second else [])
