"""LoRA: the start model to the bit, what is sampled is what is scored, gradients, checkpoints, peft's format, memory."""
import json
import math
import shutil

import data
import decoder
import model as model_module
import numpy as np
import pytest
import torch
from configurator import UserError
from conftest import before_loop, inside, read_log
from model import Policy, add_lora, adapter_off, load_config, load_model, lora_layers, low_rank_of, memory_plan, save_model
from rollout import generate
from safetensors.torch import load_file
from test_models_in_the_wild import made
from test_scripts import GRPO, SFT, alike, same, weights
from torch import nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM

IDS = torch.randint(0, 262, (40,), generator=torch.Generator().manual_seed(1))
INDEX = torch.arange(1, 40)


def tiny(rank=4, alpha=8.0, dtype=torch.float32, moved=True):
    """A tiny model with LoRA; `moved`: B is no longer 0."""
    torch.manual_seed(0)
    lm = load_model('tiny')
    add_lora(lm, rank, alpha, dtype)
    if moved:
        for linear in lora_layers(lm).values():
            nn.init.normal_(low_rank_of(linear).B, std=0.05)
    return lm


def scores(lm, dtype=torch.float32):
    """Log-probs and entropies of IDS, under the autocast of training in `dtype`."""
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False):
        return Policy(lm)(IDS, [40], INDEX, 0.7)


def merged(lm, folder):
    """A plain model with the merged weights, through its saved folder."""
    save_model(lm, data.byte_tokenizer(), str(folder), [2])
    return load_model(str(folder))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_at_start_it_is_the_base_to_the_bit(dtype):
    """Invariant 11. So it is with the adapter off, after B has moved."""
    torch.manual_seed(0)
    base = scores(load_model('tiny'), dtype)
    assert all(torch.equal(a, b) for a, b in zip(base, scores(tiny(dtype=dtype, moved=False), dtype)))
    lm = tiny(dtype=dtype)
    assert not torch.allclose(scores(lm, dtype)[0], base[0], atol=1e-2)
    with adapter_off(lm):
        assert all(torch.equal(a, b) for a, b in zip(base, scores(lm, dtype)))
    assert not torch.allclose(scores(lm, dtype)[0], base[0], atol=1e-2)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_what_it_samples_is_what_it_scores(tmp_path, dtype):
    """Invariants 2 and 11: trainer and saved model agree to the bit, the sampler to rounding."""
    lm = tiny()
    plain = merged(lm, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(scores(lm, dtype), scores(plain, dtype)))
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
        sampled, theirs = (generate(m, [[5, 6, 7]], 8, 12, 0.7, [2], seeds=[1])[0] for m in (lm, plain))
    for a, b in zip(sampled, theirs):
        assert a['ids'] == b['ids'] and torch.equal(a['logprobs'], b['logprobs'])
        ids = torch.tensor([5, 6, 7, *a['ids']])
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False):
            scored, _ = Policy(lm)(ids, [len(ids)], torch.arange(3, len(ids)), 0.7)
        assert torch.allclose(a['logprobs'], scored, atol=1e-4 if dtype == torch.float32 else 0.1)


def test_gradients_are_the_chain_rule_of_the_weights_gradient(tmp_path):
    """dA = scale B^T dW and dB = scale dW A^T, in float64 loops; dW is that of a plain model with the merged weights."""
    lm = tiny(rank=3, alpha=6.0)
    plain = merged(lm, tmp_path)
    for m in (lm, plain):
        scores(m)[0].sum().backward()
    of_weights = {name: p.grad.double().numpy() for name, p in plain.named_parameters()}
    for name in ('model.layers.0.self_attn.k_proj', 'model.layers.3.mlp.down_proj'):
        low_rank = low_rank_of(lora_layers(lm)[name])
        A, B = low_rank.A.detach().double().numpy(), low_rank.B.detach().double().numpy()
        dW = of_weights[f'{name}.weight']
        dA, dB = np.zeros_like(A), np.zeros_like(B)
        for o in range(dW.shape[0]):
            for r in range(3):
                dA[r] += 2.0 * B[o, r] * dW[o]
                dB[o, r] = 2.0 * sum(dW[o] * A[r])
        for found, expected in ((low_rank.A.grad, dA), (low_rank.B.grad, dB)):
            assert np.linalg.norm(found.numpy() - expected) < 1e-4 * np.linalg.norm(expected)
    trained = {name for name, p in lm.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in lm.named_parameters() if p.requires_grad} == {
        f'{layer}.parametrizations.weight.0.{x}' for layer in lora_layers(lm) for x in 'AB'}
    assert len(lora_layers(lm)) == 4 * 7


def test_full_rank_reaches_what_full_fine_tuning_reaches():
    """Invariant 11, on a regression with targets W* x: rank 5 of a 5 x 6 matrix reaches W*, rank 2 does not."""
    generator = torch.Generator().manual_seed(0)
    start, goal, x = (torch.randn(shape, generator=generator) for shape in ((5, 6), (5, 6), (200, 6)))

    def loss_after_training(rank):
        torch.manual_seed(1)
        layer = nn.Linear(6, 5, bias=False)
        layer.weight.data.copy_(start)
        if rank:
            layer.requires_grad_(False)
            parametrize.register_parametrization(layer, 'weight', model_module.LowRank(layer.weight, rank, 2.0 * rank))
        optimizer = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad], lr=0.02)
        for _ in range(1500):
            loss = ((layer(x) - x @ goal.T) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()
    assert loss_after_training(0) < 1e-6 and loss_after_training(5) < 1e-6
    assert loss_after_training(2) > 1e-2


def test_weights_keep_their_dtypes_and_only_linear_layers_are_cast():
    """The frozen matrices in bf16; A and B, embedding, norms and the merged weight in fp32: bf16 would round updates away."""
    lm = tiny(dtype=torch.bfloat16)
    dtypes = {name: p.dtype for name, p in lm.named_parameters()}
    assert {d for name, d in dtypes.items() if name.endswith('original')} == {torch.bfloat16}
    assert {d for name, d in dtypes.items() if not name.endswith('original')} == {torch.float32}
    layer = lora_layers(lm)['model.layers.0.mlp.up_proj']
    with torch.autocast('cpu', torch.bfloat16):
        low_rank, W = low_rank_of(layer), layer.parametrizations.weight.original
        assert layer.weight.dtype == torch.float32
        assert torch.allclose(layer.weight, W.float() + 2.0 * (low_rank.B.double() @ low_rank.A.double()).float(), atol=1e-6)


def test_a_model_of_experts_is_refused():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    config = Qwen3MoeConfig(vocab_size=32, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=1,
                            num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=2, num_experts_per_tok=1)
    with pytest.raises(UserError, match='LoRA is for dense models'):
        add_lora(Qwen3MoeForCausalLM(config), 4, 8.0, torch.float32)


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('kind', ['llama', 'qwen2'])  # without biases and with
def test_other_architectures(tmp_path, kind, tied):
    """The merged folder scores what LoRA scores, also with biases and a head of its own; the rollouts have a decode copy."""
    plain = made(kind, tie_word_embeddings=tied)
    add_lora(plain, 4, 8.0, torch.bfloat16)
    for linear in lora_layers(plain).values():
        nn.init.normal_(low_rank_of(linear).B, std=0.05)
    ids, index = IDS % 60, INDEX
    with torch.autocast('cpu', torch.bfloat16, cache_enabled=False):
        found, _ = Policy(plain)(ids, [40], index)
        found.sum().backward()
        sampled = generate(plain, [ids[:4].tolist()], 4, 6, 1.0, [], seeds=[1])[0]
        for completion in sampled:
            row = torch.cat([ids[:4], torch.tensor(completion['ids'])])
            scored, _ = Policy(plain)(row, [10], torch.arange(4, 10))
            assert torch.allclose(completion['logprobs'], scored, atol=0.2)
    assert decoder.decodable[plain] == {torch.bfloat16: True}
    assert all(p.grad is None for p in plain.parameters() if not p.requires_grad)
    again = merged(plain, tmp_path)
    with torch.autocast('cpu', torch.bfloat16, cache_enabled=False):
        assert torch.equal(Policy(again)(ids, [40], index)[0], found)


def test_compile_compiles_a_layer_once():
    """Were the linear layers of other classes in each layer, each would be compiled, up to dynamo's limit of eight.

    Twice with LoRA: the first layer's input has no gradient, because the embedding is frozen.
    """
    counts = []
    for lora in (False, True):
        torch.manual_seed(0)
        lm = load_model('tiny')
        if lora:
            add_lora(lm, 4, 8.0, torch.float32)
        torch._dynamo.reset()
        graphs = []

        def count(graph, _, graphs=graphs):
            graphs.append(graph)
            return graph.forward
        for layer in lm.base_model.layers:
            layer.compile(dynamic=True, backend=count)
        scores(lm)
        counts.append(len(graphs))
    torch._dynamo.reset()
    assert 0 < counts[1] <= 2 * counts[0], counts


def test_an_old_adapter_does_not_stay_beside_another_model(monkeypatch, rows, tmp_path):
    flags = [*SFT, f'--data={rows}', '--max_steps=1', f'--out_dir={tmp_path}/x']
    inside(monkeypatch, 'sft.py', *flags, '--lora_rank=4')
    assert (tmp_path / 'x/adapter').is_dir()
    inside(monkeypatch, 'sft.py', *flags, '--overwrite=True')
    assert not (tmp_path / 'x/adapter').exists()


# --- the folder that a run leaves ----------------------------------------------
def test_peft_loads_the_adapter(tmp_path):
    """Base and adapter by the library peft have the logits of the merged folder, which transformers loads as it is."""
    peft = pytest.importorskip('peft')
    torch.manual_seed(0)
    save_model(load_model('tiny'), data.byte_tokenizer(), str(tmp_path / 'base'), [2])
    lm = load_model(str(tmp_path / 'base'))
    add_lora(lm, 4, 8.0, torch.float32)
    for linear in lora_layers(lm).values():
        nn.init.normal_(low_rank_of(linear).B, std=0.05)
    save_model(lm, data.byte_tokenizer(), str(tmp_path / 'run'), [2])

    whole = AutoModelForCausalLM.from_pretrained(tmp_path / 'run')
    base = AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
    before = base(IDS[None]).logits
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / 'run' / 'adapter')
    assert torch.allclose(theirs(IDS[None]).logits, whole(IDS[None]).logits, atol=1e-4)
    assert not torch.allclose(before, whole(IDS[None]).logits, atol=1e-2)
    settings = json.load(open(tmp_path / 'run' / 'adapter' / 'adapter_config.json'))
    assert settings['base_model_name_or_path'] == str(tmp_path / 'base')
    # the same through the base that the adapter names
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / 'run' / 'adapter')
    assert torch.allclose(again(IDS[None]).logits, whole(IDS[None]).logits, atol=1e-4)


def test_a_run_changes_linear_layers_alone(monkeypatch, rows, start_model, tmp_path):
    inside(monkeypatch, 'sft.py', *SFT, f'--data={rows}', f'--model={start_model}', '--lora_rank=2', '--learning_rate=1e-2', f'--out_dir={tmp_path}/x')
    before, after = weights(start_model), weights(tmp_path / 'x')
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if 'proj' in name}
    # an update of rank 2
    for name in changed:
        sizes = torch.linalg.svdvals((after[name] - before[name]).double())
        assert sizes[2] < 1e-4 * sizes[0]


# --- runs ----------------------------------------------------------------------
def test_lora_on_two_ranks_is_lora_on_one(monkeypatch, run, rows, start_model, tmp_path):
    flags = [*SFT, f'--data={rows}', f'--model={start_model}', '--lora_rank=4', '--micro_batch_tokens=64']
    inside(monkeypatch, 'sft.py', *flags, f'--out_dir={tmp_path}/one')
    for shard in ('none', 'optimizer'):
        run('sft.py', *flags, f'--out_dir={tmp_path}/{shard}', f'--shard={shard}', ranks=2)
        alike(f'{tmp_path}/one', f'{tmp_path}/{shard}')


@pytest.mark.parametrize('script', ['grpo.py', 'hpt.py', 'prefix_rft.py'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_kl_reference_is_the_policy_with_its_adapter_off(monkeypatch, rows, start_model, tmp_path, script, dtype):
    """0 to the bit at first, then not; no second model in memory; after a resume it is still the start model."""
    data_flags = [f'--data={rows if script == "grpo.py" else "sums:train"}']
    flags = [*GRPO, *data_flags, f'--model={start_model}', '--lora_rank=4', '--beta=0.1', f'--dtype={dtype}', '--learning_rate=1e-2']
    ns = inside(monkeypatch, script, *flags, f'--out_dir={tmp_path}/whole')
    first, second = (r['policy/kl'] for r in read_log(f'{tmp_path}/whole'))
    assert first == 0 and second > 1e-6 and ns['kl_reference'].policy is ns['policy']
    if dtype == 'float32':
        for steps in (1, 2):
            inside(monkeypatch, script, *flags, f'--max_steps={steps}', f'--resume={steps == 2}', f'--out_dir={tmp_path}/parts')
        assert read_log(f'{tmp_path}/parts')[1]['policy/kl'] == second and same(f'{tmp_path}/whole', f'{tmp_path}/parts')


def test_dpos_loss_is_ln_2_at_step_0(monkeypatch, start_model, tmp_path):
    """Invariant 9; and after a resume with adapters that have moved, the reference is still the start model."""
    pairs = tmp_path / 'pairs.jsonl'
    pairs.write_text('{"prompt": "1+2", "chosen": "3", "rejected": "4"}\n' * 8)
    flags = [f'--data={pairs}', f'--model={start_model}', '--lora_rank=4', '--loss_type=dpo', '--beta=0.1', '--batch_size=4', '--eval_prompts=',
             '--warmup_steps=0', '--learning_rate=1e-2', '--schedule=constant']
    inside(monkeypatch, 'dpo.py', *flags, '--max_steps=2', f'--out_dir={tmp_path}/whole')
    log = read_log(f'{tmp_path}/whole')
    assert log[0]['loss'] == pytest.approx(math.log(2), abs=1e-7) and log[1]['loss'] < 0.69
    for steps in (1, 2):
        inside(monkeypatch, 'dpo.py', *flags, f'--max_steps={steps}', f'--resume={steps == 2}', f'--out_dir={tmp_path}/parts')
    assert read_log(f'{tmp_path}/parts')[1]['loss'] == log[1]['loss'] and same(f'{tmp_path}/whole', f'{tmp_path}/parts')


@pytest.mark.parametrize('ranks', [1, 2])
def test_a_checkpoint_holds_adapters_alone_and_resumes_exactly(run, rows, start_model, tmp_path, ranks):
    """Invariant 6. The optimizer's moments are those of A and B; the base is named, and another base is refused."""
    base = shutil.copytree(start_model, tmp_path / 'base')
    flags = [*SFT, f'--data={rows}', f'--model={base}', '--lora_rank=4', '--schedule=constant', '--learning_rate=1e-2']
    run('sft.py', *flags, f'--out_dir={tmp_path}/whole', ranks=ranks)
    run('sft.py', *flags, '--max_steps=2', f'--out_dir={tmp_path}/parts', ranks=ranks)
    shared = torch.load(f'{tmp_path}/parts/state/shared.pt')
    assert shared['model'] == str(base) and len(shared['base_hash']) == 64
    assert set(shared['weights']) == {f'model.{layer}.parametrizations.weight.0.{x}' for layer in lora_layers(tiny()) for x in 'AB'}
    moments = [m for r in range(ranks) for m in torch.load(f'{tmp_path}/parts/state/rank{r}.pt')['optimizer']['state'].values()]
    assert sum(m['exp_avg'].numel() for m in moments) == sum(w.numel() for w in shared['weights'].values())

    run('sft.py', *flags, '--max_steps=3', '--resume=True', f'--out_dir={tmp_path}/parts', ranks=ranks)
    assert same(tmp_path / 'whole', tmp_path / 'parts')
    assert [r['loss'] for r in read_log(f'{tmp_path}/whole')] == [r['loss'] for r in read_log(f'{tmp_path}/parts')]

    changed = load_file(base / 'model.safetensors')
    changed['model.norm.weight'][0] += 1
    model_module.save_file(changed, base / 'model.safetensors', metadata={'format': 'pt'})
    done = run('sft.py', *flags, '--max_steps=4', '--resume=True', f'--out_dir={tmp_path}/parts', ranks=ranks, check=False)
    assert done.returncode and 'are not those that the run started from' in done.stderr


@pytest.mark.parametrize('flag', ['--lora_rank=8', '--lora_rank=0', '--lora_alpha=16'])
def test_a_resumed_run_keeps_its_lora(monkeypatch, rows, tmp_path, flag):
    flags = [*SFT, f'--data={rows}', '--lora_rank=4', '--max_steps=1', f'--out_dir={tmp_path}/x']
    inside(monkeypatch, 'sft.py', *flags)
    with pytest.raises(UserError, match=f'cannot become {flag[2:]}'):
        inside(monkeypatch, 'sft.py', *flags, '--resume=True', '--max_steps=2', flag)


def test_activation_checkpointing_and_lora(monkeypatch, rows, start_model, tmp_path):
    """A layer that is computed again merges its weights again: the same gradient."""
    gradients = []
    for checkpointing in (False, True):
        ns = before_loop(monkeypatch, 'sft.py', *SFT, f'--data={rows}', f'--model={start_model}', '--lora_rank=4', f'--out_dir={tmp_path}/{checkpointing}',
                         f'--activation_checkpointing={checkpointing}')
        ns['accumulate_gradients'](ns['micro_batches_of'](ns['examples'][:8]), 40)
        gradients.append(torch.cat([p.grad.flatten() for p in ns['trained']]))
    assert gradients[0].norm() > 0 and torch.allclose(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


# --- memory --------------------------------------------------------------------
def test_memory_plan_by_hand():
    """Qwen3-4B, rank 16: N = 4,022,468,096, embedding 151,936 x 2,560; a layer's linear layers have 2,560 + 4,096 and 2 x
    (2,560 + 1,024), 4,096 + 2,560, 2 x (2,560 + 9,728), 9,728 + 2,560 inputs and outputs."""
    n, embedding = 4_022_468_096, 151_936 * 2560
    width = 36 * (6656 + 2 * 3584 + 6656 + 2 * 12288 + 12288)
    plan = memory_plan(load_config('random:qwen3-4b'), 1, 16384, kv_cache_gb=24, rollout_rows=256, max_new_tokens=2048, lora_rank=16,
                       reference=True)
    assert plan['frozen weights'] == pytest.approx((2 * n + 2 * embedding) / 1e9)
    assert plan['adapters (fp32)'] == plan['gradients (fp32)'] == pytest.approx(4 * 16 * width / 1e9)
    assert plan['Adam moments / 1'] == pytest.approx(8 * 16 * width / 1e9)
    assert 'reference' not in plan and plan['a merged matrix'] == pytest.approx(16 * 2560 * 9728 / 1e9)
    rollout = plan['decode copy'] + plan['KV cache'] + plan['sampling']
    assert plan['peak'] == pytest.approx(plan['frozen weights'] + plan['adapters (fp32)'] + plan['Adam moments / 1'] + rollout)


def test_4b_and_8b_fit_one_gpu_of_80_gb():
    """The goal: grpo.py of 4B with 24 GB of KV cache, sft.py of 8B. Without LoRA neither does."""
    for lora_rank, fits in ((32, True), (0, False)):
        grpo = memory_plan(load_config('random:qwen3-4b'), 1, 16384, kv_cache_gb=24, rollout_rows=1024, max_new_tokens=2048, lora_rank=lora_rank)
        sft = memory_plan(load_config('random:qwen3-8b'), 1, 16384, lora_rank=lora_rank)
        assert (grpo['peak'] < 75) == (sft['peak'] < 75) == fits


def test_a_frozen_head_has_no_gradient_tensor():
    """TokenLogprobs makes none of (V, hidden), which would be 4 bytes for each number of the head."""
    hidden = torch.randn(5, 8, requires_grad=True)
    W = torch.randn(11, 8)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            seen.append(tuple(result.shape) if torch.is_tensor(result) else None)
            return result
    logprobs, entropy = model_module.TokenLogprobs.apply(hidden, W, torch.arange(5), 1.0, torch.float32)
    with Watch():
        (logprobs.sum() + entropy.sum()).backward()
    frozen = hidden.grad.clone()
    assert (11, 8) not in seen and W.grad is None
    hidden.grad = None
    logprobs, entropy = model_module.TokenLogprobs.apply(hidden, W.requires_grad_(), torch.arange(5), 1.0, torch.float32)
    with Watch():
        (logprobs.sum() + entropy.sum()).backward()
    assert (11, 8) in seen and torch.equal(hidden.grad, frozen)
