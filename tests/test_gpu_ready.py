"""What the CUDA paths must do, as far as a CPU can hold it: shapes on the meta device, stand-ins for kernel and graphs.

The meta device computes shapes and nothing else. A call that the installed torch does not take fails there, and so does
a step that must look at a value on the host, which on a GPU would wait for all work before it.
"""
import contextlib
import io
import json
import os
import re
import textwrap

import pytest
import torch
from conftest import ROOT, before_loop, launch

import model as model_module
import decoder
import rollout
from model import Documents, Policy, cached_sdpa, cached_varlen, load_model, memory_plan, packed_sdpa, packed_varlen, shape_config

SCRIPTS = ['sft.py', 'dpo.py', 'grpo.py', 'hpt.py', 'prefix_rft.py', 'distill.py']
META = torch.device('meta')


def queries_keys_values(tokens, device, dtype=torch.bfloat16):
    """q (T, 8, 64), k and v (T, 4, 64), with gradients."""
    return [torch.randn(tokens, heads, 64, device=device, dtype=dtype).requires_grad_() for heads in (8, 4, 4)]


# --- the kernel's calls -------------------------------------------------------
@pytest.mark.parametrize('parents', [None, [-1, -1, 0, 0]])
@pytest.mark.parametrize('packed', [packed_varlen, packed_sdpa])
def test_packed_attention_as_this_torch_spells_it(packed, parents):
    """Forward and backward of shared prompts too: the arguments exist, the shapes are right, the host never waits."""
    documents = Documents([37, 1, 80, 50], META, parents)
    q, k, v = queries_keys_values(168, META)
    out = packed(q, k, v, documents, 0.125)
    assert out.shape == q.shape
    assert [g.shape for g in torch.autograd.grad(out.sum(), (q, k, v))] == [q.shape, k.shape, v.shape]


def test_cached_attention_as_this_torch_spells_it():
    q, k, v = queries_keys_values(3 * 56, META)
    used = torch.zeros(3, device=META, dtype=torch.int32)
    out = cached_varlen(q[:3], k.view(3, 56, 4, 64), v.view(3, 56, 4, 64), used, None, 0.125)
    assert out.shape == (3, 8, 64)


def test_a_decode_step_never_waits_for_the_gpu(monkeypatch):
    """The step that is recorded as a CUDA graph: cache, decode copy and sampler on the meta device."""
    monkeypatch.setattr(decoder, 'varlen_works', lambda q, k: True)
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: contextlib.nullcontext())  # the meta device has none
    lm = load_model('tiny', META)
    cache = decoder.KVCache(lm.config, 4, 32, META, torch.bfloat16)
    cache.begin_decode(torch.zeros(4, dtype=torch.long, device=META), 32)
    ids = torch.zeros(4, dtype=torch.long, device=META)
    logits = decoder.Decoder(lm, torch.bfloat16, 32)(ids, cache.positions, cache)
    assert logits.shape == (4, lm.config.vocab_size)
    uniform = torch.zeros(4, dtype=torch.float64, device=META)
    assert rollout.sample_token(logits, 1.0, uniform)[0].shape == (4,)


# --- the self-test ------------------------------------------------------------
@pytest.fixture
def stand_in_kernel(monkeypatch):
    """SDPA in the varlen kernel's place, so that a CPU runs the self-test and then what a GPU would."""
    model_module.varlen_is_right.cache_clear()
    monkeypatch.setattr(model_module, 'packed_varlen', packed_sdpa)
    monkeypatch.setattr(model_module, 'cached_varlen', cached_sdpa)
    monkeypatch.setattr(model_module, 'varlen_works', lambda q, k: model_module.varlen_is_right(
        q.device, q.dtype, q.shape[1], k.shape[1], q.shape[2]))
    yield
    model_module.varlen_is_right.cache_clear()


def gradients_of_a_fresh_model(checkpointing, device='cpu'):
    torch.manual_seed(0)
    lm = load_model('tiny').to(device)
    if checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})
    ids = torch.randint(0, 262, (40,), generator=torch.Generator().manual_seed(1))
    with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda', cache_enabled=False):
        logprobs, _ = Policy(lm)(ids.to(device), [40], torch.arange(1, 40, device=device))
    logprobs.sum().backward()
    return [p.grad for p in lm.parameters()]


def test_the_self_test_may_run_inside_a_checkpointed_layer(stand_in_kernel):
    """sft.py's first forward is such a layer's: its second run, in backward, must save as many tensors as the first."""
    checkpointed = gradients_of_a_fresh_model(checkpointing=True)
    assert model_module.varlen_is_right.cache_info().misses == 1  # it ran, once, in the first layer
    for a, b in zip(checkpointed, gradients_of_a_fresh_model(checkpointing=False)):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6 * b.abs().max())


@pytest.mark.parametrize('value', [float('nan'), 1.0])
@pytest.mark.parametrize('kernel', ['packed_varlen', 'cached_varlen'])
def test_the_self_test_sees_what_a_wrong_kernel_writes(stand_in_kernel, monkeypatch, kernel, value):
    """NaN too, in any of the compared tensors: a decode kernel of torch 2.13 writes it (pytorch issue 194167)."""
    right = getattr(model_module, kernel)
    monkeypatch.setattr(model_module, kernel, lambda *arguments: right(*arguments) * 0 + value)
    with pytest.warns(UserWarning, match='SDPA is used instead'):
        assert not model_module.varlen_is_right(torch.device('cpu'), torch.bfloat16, 4, 2, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_checkpointed_training_on_a_gpu():
    """The same with the real kernel, first used inside a checkpointed layer."""
    model_module.varlen_is_right.cache_clear()
    checkpointed = gradients_of_a_fresh_model(checkpointing=True, device='cuda')
    for a, b in zip(checkpointed, gradients_of_a_fresh_model(checkpointing=False, device='cuda')):
        assert (a - b).norm() <= 0.02 * b.norm()


# --- CUDA graphs --------------------------------------------------------------
class RecordingCuda:
    """The part of torch.cuda that StepGraphs uses. A 'graph' runs the rows that it was recorded with."""

    def __init__(self):
        self.events, self.pools, self.streams = [], [], []
        self.recording = None

    def graph_pool_handle(self):
        self.pools.append(object())
        return self.pools[-1]

    def Stream(self):
        self.streams.append(self)
        return self

    def current_stream(self):
        return self

    def wait_stream(self, _):
        self.events.append('wait')

    def stream(self, _):
        return contextlib.nullcontext()

    def CUDAGraph(self):
        cuda = self

        class Graph:
            def replay(self):
                cuda.events.append(('replay', self.rows))
        return Graph()

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert pool is self.pools[0] and stream is self.streams[0] and capture_error_mode == 'thread_local'
        self.recording = graph
        yield
        self.recording = None

    def step(self, rows):
        if self.recording is None:
            self.events.append(('step', rows))
        else:
            self.recording.rows = rows


def test_graphs_share_one_pool_and_one_stream():
    """Every call makes one token: a new size runs once and is recorded, a known one is replayed, the size rounded up."""
    cuda = RecordingCuda()
    advance = decoder.StepGraphs(cuda.step, slots=40, cuda=cuda)
    for rows in (40, 33, 31, 5, 8, 32):
        advance(rows)
    assert [event for event in cuda.events if event != 'wait'] == [
        ('step', 40), ('replay', 40), ('step', 32), ('step', 8), ('replay', 8), ('replay', 32)]
    assert len(cuda.pools) == 1 and len(cuda.streams) == 1


# --- settings of every script -------------------------------------------------
@pytest.fixture(scope='module')
def before_the_loop(tmp_path_factory, rows):
    """script -> its namespace before the loop, under bf16."""
    folder = tmp_path_factory.mktemp('scripts')
    pairs = folder / 'pairs.jsonl'
    pairs.write_text('{"prompt": "1+1", "chosen": "2", "rejected": "3"}\n' * 64)

    def namespace(script):
        data = [f'--data={pairs if script == "dpo.py" else rows}'] + ['--eval_data='] * (script in ('sft.py', 'dpo.py'))
        data += ['--teacher=tiny'] * (script == 'distill.py')
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
            return before_loop(patch, script, '--model=tiny', f'--out_dir={folder / script}', '--dtype=bfloat16', '--eval_prompts=', *data)
    return namespace


@pytest.mark.parametrize('script', SCRIPTS)
def test_precision_of_a_script(before_the_loop, script):
    """TF32 would round the rotary tables, which transformers computes as an fp32 product; autocast's cache would keep a
    bf16 copy of every weight."""
    namespace = before_the_loop(script)
    assert torch.get_float32_matmul_precision() == 'highest'
    with namespace['autocast']:
        assert torch.is_autocast_enabled('cpu') and not torch.is_autocast_cache_enabled()


def test_cudnn_attention_is_off():
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_rollout_keeps_no_bf16_copy_of_the_weights_beside_the_decode_copy():
    """Also under an autocast whose cache is on: no forward of the model may fill it."""
    lm, cached = load_model('tiny'), []
    lm.base_model.register_forward_pre_hook(lambda *_: cached.append(torch.is_autocast_cache_enabled()))
    with torch.autocast('cpu', torch.bfloat16):
        rollout.generate(lm, [[1, 2, 3]], 2, 4, 1.0, [5], seeds=[1])
        assert torch.is_autocast_cache_enabled()  # the caller's is as it was
    assert cached and not any(cached)


WATCHED = textwrap.dedent('''
    """Runs sft.py; each rank writes what it did with its process group and gradients to a file of its own."""
    import json, os, runpy
    import torch
    import torch.distributed as dist
    timeout, parameters = None, []
    start = dist.init_process_group
    def watched(*args, **kwargs):
        global timeout
        timeout = kwargs['timeout'].total_seconds()
        return start(*args, **kwargs)
    dist.init_process_group = watched
    step = torch.optim.AdamW.step
    def remember(optimizer, *args, **kwargs):
        parameters.extend(p for group in optimizer.param_groups for p in group['params'])
        return step(optimizer, *args, **kwargs)
    torch.optim.AdamW.step = remember
    runpy.run_path(SCRIPT, run_name='__main__')
    with open(__file__ + os.environ.get('RANK', '0'), 'w') as f:
        json.dump({'timeout': timeout, 'kept': [p.grad is not None for p in parameters]}, f)
''')


@pytest.mark.parametrize('ranks', [1, 2])
def test_gradients_stay_in_ddps_buckets_and_ranks_wait_an_hour(tmp_path, rows, ranks):
    """With DDP a freed gradient would be made again beside its bucket: 4 more bytes a parameter. Alone it is freed."""
    watched = tmp_path / 'watched.py'
    watched.write_text(f'SCRIPT = {os.path.join(ROOT, "sft.py")!r}\nimport sys\nsys.path.insert(0, {ROOT!r})\n' + WATCHED)
    launch(str(watched), f'--data={rows}', '--eval_data=', '--eval_prompts=', '--max_steps=1', '--batch_size=8', '--device=cpu',
           '--dtype=float32', f'--out_dir={tmp_path / "run"}', ranks=ranks)
    for rank in range(ranks):
        with open(f'{watched}{rank}') as f:
            seen = json.load(f)
        assert seen['timeout'] == (3600 if ranks > 1 else None)
        assert set(seen['kept']) == {ranks > 1}


# --- the measurement ----------------------------------------------------------
def test_gpu_check_runs_through_on_a_cpu(monkeypatch, tmp_path):
    """Its smoke form: GPU minutes are not for finding out that a script has changed under it."""
    items = ['info', 'sft06', 'graphs', 'grpo06', 'sampler', 'grpo4blora', 'sft8blora', 'distill06jsd']
    monkeypatch.setenv('OUT', str(tmp_path))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    launch('tools/gpu_check.py', '200', ','.join(items))
    results = (tmp_path / 'results.txt').read_text()
    for item in items:
        assert re.search(rf'^{item}: seconds .*, ended ok$', results, re.M), results
    assert not re.search('^[^:]*: failed', results, re.M), results
    assert re.search(r'^sft tiny: .*tokens_s .*plan_gb', results, re.M) and re.search('^sampler against trainer: tokens', results, re.M)


# --- memory -------------------------------------------------------------------
def test_memory_plan_by_hand():
    """Qwen3-0.6B: N = 596,049,920 of which 155,582,464 are the tied embedding; 28 layers, 1,024 wide, heads 16 + 2 x 8 of
    128, feed-forward 3,072; bf16."""
    n, embedding, chunk = 596_049_920, 155_582_464, 50_331_648
    layer = 2 * (12 * 1024 + 4 * 32 * 128 + 4 * 3072)  # bytes a token
    config = shape_config('qwen3-0.6b')

    # one GPU, no checkpointing: every linear layer's bf16 weight is kept for backward, gradients only in the update
    plan = memory_plan(config, 1, 8192, activation_checkpointing=False)
    expected = {
        'weights (fp32)': 4 * n, 'Adam moments / 1': 8 * n, 'gradients (fp32)': 4 * n, 'autocast casts (bf16)': 2 * n,
        'activations': 8192 * 28 * layer, 'logits chunk and head gradient': 10 * chunk + 6 * embedding}
    assert plan == pytest.approx({**{k: v / 1e9 for k, v in expected.items()}, 'peak': sum(expected.values()) / 1e9})

    # the rollout is the larger phase on one GPU: 256 rows of 2,048 tokens wait, 102 fit 24 GB at 114,688 bytes a token
    rows = 24e9 / (2048 * 114_688)
    rollout_phase = 2 * n + 24e9 + rows * 151_936 * 18
    plan = memory_plan(config, 1, 8192, kv_cache_gb=24.0, rollout_rows=256, max_new_tokens=2048)
    assert 102 < rows < 103 and plan['sampling'] == pytest.approx(rows * 151_936 * 18 / 1e9)
    assert plan['peak'] == pytest.approx((12 * n + rollout_phase) / 1e9)  # gradients are freed by then

    # eight GPUs with checkpointing: DDP's gradients stay during the rollout, one layer's casts and the head's remain
    plan = memory_plan(config, 8, 8192, kv_cache_gb=24.0, rollout_rows=256, max_new_tokens=2048)
    assert plan['peak'] == pytest.approx((8 * n + n + rollout_phase) / 1e9)
    assert plan['autocast casts (bf16)'] == pytest.approx(2 * ((n - embedding) / 28 + embedding) / 1e9)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_bf16_casts_are_kept_as_the_plan_says(checkpointing):
    """What autograd keeps of the weights in bf16 between forward and backward: of all layers, or with checkpointing of none."""
    torch.manual_seed(0)
    lm = load_model('tiny')
    if checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})
    shapes = {p.shape for layer in lm.base_model.layers for p in layer.parameters() if p.dim() == 2}
    kept = {}

    def keep(tensor):
        if tensor.dtype == torch.bfloat16 and tensor.dim() == 2 and {tensor.shape, tensor.mT.shape} & shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor
    ids = torch.randint(0, 262, (300,), generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), \
            torch.autocast('cpu', torch.bfloat16, cache_enabled=False):
        Policy(lm)(ids, [300], torch.arange(1, 300))
    weights = sum(p.numel() for layer in lm.base_model.layers for p in layer.parameters() if p.dim() == 2)
    assert sum(tensor.numel() for tensor in kept.values()) == (0 if checkpointing else weights)
