"""model.py: packed attention, token log-probs, generation and saving against independent computations."""
import json
import os

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import model as model_module
import decoder
from configurator import UserError
from data import byte_tokenizer, collate, stop_ids
from model import Policy, TokenLogprobs, load_config, load_model, memory_plan, save_model, varlen_is_right
from rollout import generate, sample_token


@pytest.fixture(scope='module')
def lm():
    torch.manual_seed(0)
    lm = load_model('tiny')
    with torch.no_grad():
        for p in lm.parameters():
            if p.dim() > 1:
                p.mul_(4)  # sharper than fresh weights: attention and argmax matter
    return lm


def documents(lengths, vocab=262, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab, (n,), generator=g) for n in lengths]


def pack(docs):
    """ids, lengths, index of every token but each document's first."""
    starts = torch.tensor([len(d) for d in docs]).cumsum(0) - torch.tensor([len(d) for d in docs])
    index = torch.cat([torch.arange(1, len(d)) + s for d, s in zip(docs, starts)])
    return torch.cat(docs), [len(d) for d in docs], index


def plain_logprobs(lm, docs, temperature):
    """transformers' own forward, one document at a time, log-softmax in float64."""
    was, lm.config._attn_implementation = lm.config._attn_implementation, 'sdpa'
    out = [torch.log_softmax(lm(d[None]).logits[0].double() / temperature, -1)[:-1].gather(1, d[1:, None])[:, 0]
           for d in docs if len(d) > 1]
    lm.config._attn_implementation = was
    return torch.cat(out)


def test_packed_documents_do_not_see_each_other(lm):
    """Invariant 8: log-probs and gradients of a packed row are those of its documents alone."""
    docs = documents([5, 1, 17, 30, 64, 3, 33])
    lm.zero_grad()
    ours, _ = Policy(lm)(*pack(docs), 0.7)
    (ours * torch.linspace(-1, 1, len(ours))).sum().backward()
    grads = [p.grad.clone() for p in lm.parameters()]
    lm.zero_grad()
    plain = plain_logprobs(lm, docs, 0.7)
    (plain * torch.linspace(-1, 1, len(plain))).sum().backward()
    assert torch.allclose(ours.double(), plain, atol=2e-5)
    for p, grad in zip(lm.parameters(), grads):
        assert torch.allclose(grad, p.grad, rtol=1e-3, atol=1e-4 * p.grad.abs().max())


def test_a_prompt_shared_by_its_group_is_a_prompt_of_each(lm):
    """Log-probs and gradients of completions that go on from one prompt are those of whole documents."""
    prompts, completions = documents([6, 90, 1], seed=3), documents([5, 70, 1, 33, 40, 9, 2], seed=4)
    owner = [0, 0, 0, 1, 1, 2, 2]
    micro = collate([(c, [True] * len(c), prompts[p]) for c, p in zip(completions, owner)])
    assert len(micro['ids']) == 97 + 160 and micro['doc'].tolist() == [
        i for i, c in enumerate(completions) for _ in c]
    whole = [torch.cat([prompts[p], c]) for c, p in zip(completions, owner)]
    ids, lengths, _ = pack(whole)
    starts = torch.tensor([0] + lengths[:-1]).cumsum(0)
    index = torch.cat([torch.arange(s + len(d) - len(c), s + len(d)) for s, d, c in zip(starts, whole, completions)])
    scale, results = torch.linspace(-1, 1, 160), []
    for packed in ((micro['ids'], micro['lengths'], micro['index'], 0.7, micro['parents']), (ids, lengths, index, 0.7)):
        lm.zero_grad()
        logprobs, entropy = Policy(lm)(*packed)
        (logprobs * scale).sum().backward()
        results.append((logprobs.detach(), entropy, [p.grad.clone() for p in lm.parameters()]))
    assert torch.allclose(results[0][0], results[1][0], atol=2e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=2e-5)
    for a, b in zip(results[0][2], results[1][2]):
        assert (a - b).norm() < 1e-4 * b.norm()


def test_changing_one_document_leaves_the_others(lm):
    docs = documents([9, 12, 20])
    before, _ = Policy(lm)(*pack(docs))
    docs[0] = documents([9], seed=5)[0]
    after, _ = Policy(lm)(*pack(docs))
    assert not torch.allclose(before[:8], after[:8])
    assert torch.equal(before[8:], after[8:])


@pytest.mark.parametrize('chunk', [262, 262 * 7, 2 ** 26])
@pytest.mark.parametrize('temperature', [1.0, 0.6])
@pytest.mark.parametrize('of_logprobs, of_entropy', [(1, 0), (0, 1), (1, 1)])
def test_logprobs_and_entropy_have_their_gradients(monkeypatch, chunk, temperature, of_logprobs, of_entropy):
    """Against float64, with losses on the log-probs, on the entropy (a bonus), and on both."""
    monkeypatch.setattr(model_module, 'LOGITS_PER_CHUNK', chunk)
    g = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(23, 16, generator=g), torch.randn(262, 16, generator=g)
    targets = torch.randint(0, 262, (23,), generator=g)
    a, b = of_logprobs * torch.randn(23, generator=g), of_entropy * torch.randn(23, generator=g)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprobs, entropy = TokenLogprobs.apply(h, w, targets, temperature, torch.float32)
    loss = (logprobs * a).sum() if of_logprobs else 0
    loss = loss + (entropy * b).sum() if of_entropy else loss
    loss.backward()
    h64, w64 = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logs = torch.log_softmax(h64 @ w64.T / temperature, -1)
    expected, expected_entropy = logs.gather(1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(-1)
    (expected @ a.double() + expected_entropy @ b.double()).backward()
    assert torch.allclose(logprobs.double(), expected, atol=1e-4)
    assert torch.allclose(entropy.double(), expected_entropy, atol=1e-4)
    assert torch.allclose(h.grad.double(), h64.grad, atol=1e-4) and torch.allclose(w.grad.double(), w64.grad, atol=1e-4)


def test_no_vocabulary_sized_tensor_is_kept(monkeypatch):
    """What autograd saves for backward is (tokens, hidden) and the weight, never (tokens, vocabulary)."""
    monkeypatch.setattr(model_module, 'LOGITS_PER_CHUNK', 262 * 4)
    saved = []
    hidden, weight = torch.randn(64, 16, requires_grad=True), torch.randn(262, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        TokenLogprobs.apply(hidden, weight, torch.zeros(64, dtype=torch.long), 1.0, torch.float32)
    assert saved and max(saved) <= weight.numel() < 64 * 262


STOPS = [3, 50, 60, 70, 80, 90, 100, 110, 120]
PROMPTS = [d.tolist() for d in documents([5, 9, 17, 30], seed=2)]


def test_sampled_logprobs_are_the_trainers(lm):
    """Invariant 2: the sampler's log-prob of every sampled id is the trainer's forward at the same temperature."""
    for group in zip(PROMPTS, generate(lm, PROMPTS, 8, 20, 0.7, STOPS, seeds=[1, 2, 3, 4])):
        prompt, completions = group
        assert len({tuple(c['ids']) for c in completions}) > 1
        for c in completions:
            ids = torch.tensor(prompt + c['ids'])
            with torch.no_grad():
                trainer, _ = Policy(lm)(ids, [len(ids)], torch.arange(len(prompt), len(ids)), 0.7)
            assert torch.allclose(trainer, c['logprobs'], atol=3e-5)
            assert c['stopped'] == (c['ids'][-1] in STOPS) and (c['stopped'] or len(c['ids']) == 20)
            assert not set(c['ids'][:-1]) & set(STOPS)


def test_rollouts_do_not_depend_on_batch_or_cache(lm):
    """Rows wait, slots are refilled and compacted: the same completions come out as with room for all, and alone."""
    roomy = generate(lm, PROMPTS, 6, 16, 1.0, STOPS, seeds=[1, 2, 3, 4])
    tight = generate(lm, PROMPTS, 6, 16, 1.0, STOPS, seeds=[1, 2, 3, 4], kv_cache_gb=0.0004)
    alone = [generate(lm, [p], 6, 16, 1.0, STOPS, seeds=[s])[0] for p, s in zip(PROMPTS, [1, 2, 3, 4])]
    ids = [[[c['ids'] for c in group] for group in run] for run in (roomy, tight, alone)]
    assert ids[0] == ids[1] == ids[2]
    with pytest.raises(UserError, match='kv_cache_gb'):
        generate(lm, PROMPTS, 1, 16, 0.0, STOPS, kv_cache_gb=1e-6)
    with pytest.raises(UserError, match='positions'):
        generate(lm, PROMPTS, 1, 10 ** 6, 0.0, STOPS)


def test_greedy_equals_transformers_generate(lm):
    lm.config._attn_implementation = 'sdpa'
    theirs = [lm.generate(torch.tensor([p]), attention_mask=torch.ones(1, len(p)), max_new_tokens=20, do_sample=False,
                          eos_token_id=STOPS, pad_token_id=0)[0, len(p):].tolist() for p in PROMPTS]
    lm.config._attn_implementation = 'nanopost'
    assert [g[0]['ids'] for g in generate(lm, PROMPTS, 1, 20, 0.0, STOPS)] == theirs


def test_generation_config_is_never_applied(lm):
    before = generate(lm, PROMPTS, 4, 12, 1.0, STOPS, seeds=[1, 2, 3, 4])
    was, lm.generation_config = lm.generation_config, transformers.GenerationConfig(
        do_sample=True, top_k=1, top_p=0.1, temperature=0.1, max_new_tokens=2, eos_token_id=7)
    after = generate(lm, PROMPTS, 4, 12, 1.0, STOPS, seeds=[1, 2, 3, 4])
    lm.generation_config = was
    assert [[c['ids'] for c in g] for g in before] == [[c['ids'] for c in g] for g in after]


def test_sample_token_draws_the_softmax():
    """Frequencies over an even grid of uniforms are the probabilities; a token of probability 0 is never drawn."""
    logits = torch.tensor([1.0, -float('inf'), 3.0, 0.0, -float('inf')])
    uniform = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for temperature in (1.0, 0.5, 2.0):
        ids, logprobs = sample_token(logits.expand(20000, 5), temperature, uniform)
        p = torch.softmax(logits.double() / temperature, -1)
        assert torch.allclose(torch.bincount(ids, minlength=5) / 20000, p.float(), atol=2e-4)
        assert torch.allclose(logprobs.double(), p.log()[ids], atol=1e-5)
    ids, _ = sample_token(logits.expand(2, 5), 1.0, torch.tensor([0.0, 1 - 2 ** -53], dtype=torch.float64))
    assert ids.tolist() == [0, 3]


@pytest.mark.parametrize('name', ['Llama', 'Qwen2', 'Mistral'])
def test_other_architectures_need_no_patch(tmp_path, name):
    config = getattr(transformers, name + 'Config')(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=262, max_position_embeddings=128, initializer_range=0.2)
    torch.manual_seed(1)
    fresh = AutoModelForCausalLM.from_config(config)
    for key, p in fresh.named_parameters():
        if key.endswith('bias'):  # Qwen2's, zero at first
            torch.nn.init.normal_(p)
    fresh.save_pretrained(tmp_path)
    lm = load_model(str(tmp_path))
    docs = documents([7, 20])
    ours, _ = Policy(lm)(*pack(docs), 0.9)
    assert torch.allclose(ours.double(), plain_logprobs(lm, docs, 0.9), atol=1e-4)
    completion = generate(lm, [docs[0].tolist()], 1, 10, 0.0, [3])[0][0]
    lm.config._attn_implementation = 'sdpa'
    theirs = lm.generate(docs[0][None], attention_mask=torch.ones(1, 7), max_new_tokens=10, do_sample=False,
                         eos_token_id=3, pad_token_id=0)
    assert completion['ids'] == theirs[0, 7:].tolist()
    lm.config._attn_implementation = 'nanopost'
    for c in generate(lm, [docs[0].tolist()], 20, 10, 0.9, [3], seeds=[1])[0]:  # 16 rows and more: other products
        ids = torch.cat([docs[0], torch.tensor(c['ids'])])
        with torch.no_grad():
            trainer, _ = Policy(lm)(ids, [len(ids)], torch.arange(7, len(ids)), 0.9)
        assert torch.allclose(trainer, c['logprobs'], atol=3e-5)


def test_an_architecture_the_decode_copy_does_not_know(tmp_path):
    """OLMo 2 norms after its blocks: its own forward decodes, with a warning, and right."""
    config = transformers.Olmo2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                      intermediate_size=48, vocab_size=262, initializer_range=0.2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    lm, prompt = load_model(str(tmp_path)), documents([7])[0]
    with pytest.warns(UserWarning, match='Olmo2ForCausalLM: no fast decoding'):
        ours = generate(lm, [prompt.tolist()], 1, 10, 0.0, [3])[0][0]['ids']
    lm.config._attn_implementation = 'sdpa'
    theirs = lm.generate(prompt[None], attention_mask=torch.ones(1, 7), max_new_tokens=10, do_sample=False,
                         eos_token_id=3, pad_token_id=0)
    assert ours == theirs[0, 7:].tolist()


def test_a_decode_copy_that_computes_something_else_is_not_used(lm, monkeypatch):
    """Its logits are compared with the model's before its first use: names alone are no proof."""
    monkeypatch.setattr(decoder, 'decodable', {})
    monkeypatch.setattr(decoder, 'rms_norm', lambda x, norm: x)
    with pytest.warns(UserWarning, match='no fast decoding'):
        broken = generate(lm, PROMPTS, 1, 8, 0.0, STOPS)
    monkeypatch.undo()
    assert [g[0]['ids'] for g in broken] == [g[0]['ids'] for g in generate(lm, PROMPTS, 1, 8, 0.0, STOPS)]


def test_varlen_kernel_without_cuda_fails_its_self_test():
    with pytest.warns(UserWarning, match='SDPA is used instead'):
        assert not varlen_is_right(torch.device('cpu'), torch.bfloat16, 4, 2, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('heads, kv_heads, size', [(16, 8, 128), (32, 8, 128), (4, 2, 32)])
def test_varlen_kernel_on_a_gpu(heads, kv_heads, size):
    assert varlen_is_right(torch.device('cuda'), torch.bfloat16, heads, kv_heads, size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_rollout_on_a_gpu_matches_the_trainer(lm):
    """Graphs, refills and compaction: the sampler's bf16 log-probs are the trainer's to bf16's rounding."""
    gpu = load_model('tiny', 'cuda')
    gpu.load_state_dict(lm.state_dict())
    with torch.autocast('cuda', torch.bfloat16):
        groups = generate(gpu, PROMPTS, 16, 40, 1.0, STOPS, seeds=[1, 2, 3, 4], kv_cache_gb=0.0008)
        for prompt, group in zip(PROMPTS, groups):
            for c in group:
                ids = torch.tensor(prompt + c['ids'], device='cuda')
                with torch.no_grad():
                    index = torch.arange(len(prompt), len(ids), device='cuda')
                    trainer, _ = Policy(gpu)(ids, [len(ids)], index)
                assert (trainer.cpu() - c['logprobs']).abs().mean() < 0.05
                assert c['stopped'] == (c['ids'][-1] in STOPS) and not set(c['ids'][:-1]) & set(STOPS)


def test_saved_model_loads_in_plain_transformers(lm, tmp_path):
    """Same logits, chat template and stop ids saved, and transformers' generate stops where ours does."""
    tokenizer = byte_tokenizer()
    save_model(lm, tokenizer, str(tmp_path), stop_ids(tokenizer))
    assert not os.path.exists(tmp_path / 'model.tmp')
    plain, saved = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert plain.config._attn_implementation != 'nanopost'
    docs = documents([11, 30])
    ours, _ = Policy(lm)(*pack(docs))
    logs = torch.cat([torch.log_softmax(plain(d[None]).logits[0], -1)[:-1].gather(1, d[1:, None])[:, 0] for d in docs])
    assert torch.allclose(ours, logs, atol=2e-5)
    assert saved.chat_template == tokenizer.chat_template and saved.eos_token == tokenizer.eos_token
    assert set(plain.generation_config.eos_token_id) == set(stop_ids(tokenizer))
    assert plain.generation_config.top_k in (None, 50) and not plain.generation_config.do_sample
    again = load_model(str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(lm.state_dict().values(), again.state_dict().values()))
    saved_like_transformers(tmp_path, tmp_path / 'theirs', tokenizer)
    save_model(lm, tokenizer, str(tmp_path), stop_ids(tokenizer), torch.bfloat16)
    half = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert half.dtype == torch.bfloat16 and half.lm_head.weight is half.model.embed_tokens.weight
    assert lm.dtype == torch.float32


def saved_like_transformers(ours, theirs, tokenizer):
    """The files of save_pretrained and what they say, but for the ids: inference engines read these, and nothing else."""
    load_model('tiny', attention='sdpa').save_pretrained(theirs)
    tokenizer.save_pretrained(theirs)
    names = {name for name in os.listdir(ours) if not os.path.isdir(ours / name)}
    assert names == {*os.listdir(theirs)} and 'chat_template.jinja' in names
    for name in names - {'model.safetensors', 'generation_config.json'}:  # the latter is ours: nothing but ids in it
        both = [(folder / name).read_text() for folder in (ours, theirs)]
        if name.endswith('.json'):
            both = [json.loads(text) for text in both]
            for said in both:
                for key in ('bos_token_id', 'eos_token_id', 'pad_token_id') * (name == 'config.json'):
                    said.pop(key, None)
        assert both[0] == both[1], name
    tensors = [{k: (v.shape, v.dtype) for k, v in load_file(folder / 'model.safetensors').items()} for folder in (ours, theirs)]
    assert tensors[0] == tensors[1]


def test_weights_are_fp32_masters(tmp_path):
    """Invariant 5: a bf16 checkpoint is trained as fp32, so that a small update does not round away."""
    tokenizer = byte_tokenizer()
    save_model(load_model('tiny'), tokenizer, str(tmp_path), [5], torch.bfloat16)
    lm = load_model(str(tmp_path))
    assert {p.dtype for p in lm.parameters()} == {torch.float32}
    with torch.autocast('cpu', torch.bfloat16):
        logprobs, _ = Policy(lm)(*pack(documents([9])))
    logprobs.sum().backward()
    assert {p.grad.dtype for p in lm.parameters()} == {torch.float32}
    weight = lm.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    torch.optim.AdamW(lm.parameters(), lr=1e-6, fused=True).step()
    assert (weight != before).float().mean() > 0.99


def test_bf16_rollout_matches_bf16_trainer(lm):
    """Under autocast sampler and trainer still agree to bf16's rounding."""
    with torch.autocast('cpu', torch.bfloat16):
        completions = generate(lm, PROMPTS, 2, 12, 1.0, STOPS, seeds=[1, 2, 3, 4])
        for prompt, group in zip(PROMPTS, completions):
            for c in group:
                ids = torch.tensor(prompt + c['ids'])
                with torch.no_grad():
                    trainer, _ = Policy(lm)(ids, [len(ids)], torch.arange(len(prompt), len(ids)))
                assert (trainer - c['logprobs']).abs().mean() < 0.05


def test_qwen3_4b_is_a_real_configuration():
    """Parameters as counted in the model card's shape; the plan for 8 x 80 GB has room."""
    with torch.device('meta'):
        n = sum(p.numel() for p in AutoModelForCausalLM.from_config(load_config('random:qwen3-4b')).parameters())
    assert n == 4_022_468_096
    plan = memory_plan(load_config('random:qwen3-4b'), 8, 16384, kv_cache_gb=24)  # config/qwen3_4b.py's
    assert plan['decode copy'] == pytest.approx(2 * n / 1e9)
    assert plan['weights (fp32)'] == plan['gradients (fp32)'] == pytest.approx(4 * n / 1e9)
    assert plan['Adam moments / 8'] == pytest.approx(n / 1e9)
    assert plan['peak'] == pytest.approx(sum(plan[k] for k in (
        'weights (fp32)', 'gradients (fp32)', 'Adam moments / 8', 'decode copy', 'KV cache')))
    assert 52 < plan['peak'] < 80
    assert memory_plan(load_config('random:qwen3-4b'), 1, 16384)['peak'] > 80


@pytest.mark.parametrize('name, words', [('random:gpt-5', 'known: tiny'), ('/no/such/folder', 'no such'),
                                         ('./nowhere', 'nowhere')])
def test_a_name_that_is_no_model(name, words):
    with pytest.raises(UserError, match=words):
        load_model(name)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match='config.json'):
        load_model(str(tmp_path))
