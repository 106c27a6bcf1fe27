"""Checkpoints, architectures, tokenizers and templates as they are found: each works or is refused in one line."""
import copy
import datetime
import importlib.util
import json
import logging
import os
import re
import shutil
import time
import warnings

import numpy as np
import pytest
import torch
import transformers.utils.chat_template_utils as chat_template_utils
from rewards.answers import after_thinking
from configurator import UserError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import chat
import data
import decoder
import model as model_module
from data import SPECIALS, TEMPLATE, byte_tokenizer, completion_text, rl_prompts, sft_examples
from model import check_token_ids, load_config, load_model
from rollout import generate
from rows import level_of, levels

SMALL = {
    'vocab_size': 262, 'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 2,
    'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 8, 'max_position_embeddings': 512,
    'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 0}


def made(kind, **settings):
    """A small model of an architecture, with weights large enough for attention to matter."""
    config = AutoConfig.for_model(kind, **{**SMALL, **settings})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation='nanopost')
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(5)
    return model.eval()


# --- checkpoints ---------------------------------------------------------------

@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """The folder of a small Llama."""
    folder = tmp_path_factory.mktemp('plain')
    made('llama').save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(plain, tmp_path):
    """f(weights=f(dict) -> dict, **settings): the folder of a copy with other weights and settings."""
    def change(weights=None, **settings):
        folder = tmp_path / 'model'
        shutil.copytree(plain, folder)
        if weights:
            file = folder / 'model.safetensors'
            save_file(weights(load_file(file)), file, metadata={'format': 'pt'})
        file = folder / 'config.json'
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
        return str(folder)
    return change


def without(part):
    return lambda weights: {name: w for name, w in weights.items() if part not in name}


def with_prefix(prefix):
    return lambda weights: {prefix + name: w for name, w in weights.items()}


def plus(*names):
    return lambda weights: {**weights, **{name: torch.ones(4) for name in names}}


def renamed_layer(weights, place):
    first = {name.replace('layers.0', f'layers.{place}'): w.clone() for name, w in weights.items()
             if 'layers.0' in name}
    return {**weights, **first}


def another_layer(weights, *names):
    return {**renamed_layer(weights, 2), **{name: torch.ones(4) for name in names}}


INCOMPLETE = {
    'compiled and wrapped': (with_prefix('module._orig_mod.'), {}, r'21 .*module\._orig_mod\.lm_head'),
    'a layer too few': (without('layers.1'), {}, r'9 of its 21 .*first model\.layers\.1\.input_'),
    'no head': (without('lm_head'), {}, r'1 of its .*lm_head\.weight'),
    'GPTQ without a word in config.json': (
        lambda w: {name.replace('q_proj.weight', 'q_proj.qweight'): x for name, x in w.items()}, {},
        r'q_proj\.weight; it has others, like .*q_proj\.qweight'),
    'another vocabulary': (None, {'vocab_size': 300}, r'shapes.*\[262, 32\].*\[300, 32\]'),
    'a bias': (plus('model.layers.1.self_attn.q_proj.bias'), {}, r'q_proj\.bias'),
    'a norm': (plus('model.layers.0.self_attn.q_norm.weight'), {}, r'q_norm'),
    'an adapter': (plus('model.layers.0.self_attn.q_proj.lora_A.weight'), {}, 'lora_A'),
    'scales': (plus('model.layers.0.mlp.up_proj.weight_scale_inv'), {}, 'weight_scale_inv'),
    'a layer too many': (another_layer, {}, r'model\.layers\.2\.input_layernorm'),
    'a tied head of another shape': (
        lambda w: {**w, 'lm_head.weight': torch.zeros(100, 32)}, {'tie_word_embeddings': True},
        r'lm_head\.weight .*another shape'),
}


@pytest.mark.parametrize('case', INCOMPLETE)
def test_weights_that_are_missing_or_left_over_are_refused(checkpoint, case):
    weights, settings, words = INCOMPLETE[case]
    with pytest.raises(UserError, match=words):
        load_model(checkpoint(weights, **settings))


HARMLESS = {
    'old rotary buffers': (plus('model.layers.0.self_attn.rotary_emb.cos_cached'), 'cos_cached'),
    'layers that predict further tokens': (
        lambda w: another_layer(w, 'model.layers.2.eh_proj.weight'), 'eh_proj'),
    'the same, beside the model': (plus('mtp.fc.weight', 'mtp.norm.weight'), r'2, first mtp\.fc'),
    'a value head': (plus('v_head.summary.weight'), 'v_head'),
    'a piece of a layer': (plus('model.layers.2.self_attn.q_proj.weight'), '2.self_attn'),
    'a layer far behind the last': (lambda w: renamed_layer(w, '99'), r'9, first model\.layers\.99'),
    'a vision tower': (plus('model.vision_tower.patch.weight'), 'vision_tower'),
}


@pytest.mark.parametrize('case', HARMLESS)
def test_parts_of_their_own_are_left_out_with_a_line(checkpoint, monkeypatch, capsys, case):
    weights, words = HARMLESS[case]
    logged = []
    logger = logging.getLogger('transformers.modeling_utils')
    monkeypatch.setattr(logger, 'handle', logged.append)
    folder = checkpoint(weights)
    model = load_model(folder)
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and re.search(words, said)
    assert logged == []  # no table of transformers' besides
    own = load_file(folder + '/model.safetensors')
    assert all(torch.equal(w, own[name]) for name, w in model.state_dict().items())
    monkeypatch.setattr(model_module, 'RANK', 1)
    load_model(folder)
    assert capsys.readouterr().out == ''


def test_files_that_cannot_be_read(checkpoint):
    folder = checkpoint()
    file = folder + '/model.safetensors'
    whole = open(file, 'rb').read()
    for content in (whole[:-100], whole[:5], b'', b'version https://git-lfs.github.com/spec/v1\n' * 3):
        open(file, 'wb').write(content)
        with pytest.raises(UserError, match='header'):
            load_model(folder)
    open(folder + '/config.json', 'w').write('{"model_type": "llama", "hidden_size": "many"}')
    with pytest.raises(UserError, match='hidden_size.* expected int'):
        load_model(folder)


def test_a_head_of_its_own_though_config_json_ties_it(checkpoint, tmp_path):
    """The file decides, as in transformers: the logits are those of its two matrices."""
    folder = checkpoint(tie_word_embeddings=True)
    own = load_file(folder + '/model.safetensors')
    model = load_model(folder)
    assert torch.equal(model.get_output_embeddings().weight, own['lm_head.weight'])
    assert torch.equal(model.get_input_embeddings().weight, own['model.embed_tokens.weight'])
    model_module.save_model(model, byte_tokenizer(), tmp_path, [2])
    again = load_model(str(tmp_path))
    assert torch.equal(again.get_output_embeddings().weight, own['lm_head.weight'])


class Program:
    def __reduce__(self):
        return os.mkdir, ('here_it_ran',)


def test_pickled_weights(checkpoint, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = checkpoint()
    weights = load_file(folder + '/model.safetensors')
    os.remove(folder + '/model.safetensors')
    with pytest.raises(UserError, match='no file named model.safetensors'):
        load_model(folder)
    file = folder + '/pytorch_model.bin'
    torch.save(weights, file)
    model = load_model(folder)
    assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())
    torch.save(without('layers.1')(weights), file)
    with pytest.raises(UserError, match=r'9 of its 21 .*first model\.layers\.1\.input_'):
        load_model(folder)
    torch.save({**weights, 'x': Program()}, file)
    with pytest.raises(UserError, match='cannot be loaded: Weights only load failed'):
        load_model(folder)
    assert not os.path.exists('here_it_ran')
    for content in (b'', b'abc'):
        open(file, 'wb').write(content)
        with pytest.raises(UserError, match='its weights cannot be loaded'):
            load_model(folder)


def test_shards(plain, tmp_path):
    folder = tmp_path / 'shards'
    AutoModelForCausalLM.from_pretrained(plain).save_pretrained(folder, max_shard_size='30KB')
    load_model(str(folder))
    index = folder / 'model.safetensors.index.json'
    kept = index.read_text()
    for content in ('{"weight', '{}', '[]'):
        index.write_text(content)
        with pytest.raises(UserError):
            load_model(str(folder))
    index.write_text(kept)
    sorted(folder.glob('model-*'))[1].unlink()
    with pytest.raises(UserError, match='model-00002'):
        load_model(str(folder))


def test_experts_that_are_missing(tmp_path):
    """transformers joins experts to one weight; what it says of a gap is in a report that is not printed."""
    made('qwen3_moe', num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8).save_pretrained(tmp_path)
    file = tmp_path / 'model.safetensors'
    weights = load_file(file)
    save_file(without('experts.2.gate_proj')(weights), file, metadata={'format': 'pt'})
    with pytest.raises(UserError, match='experts are missing'):
        load_model(str(tmp_path))


@pytest.mark.parametrize('error', [
    torch.OutOfMemoryError('CUDA out of memory.'), MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_out_of_memory_is_not_a_fault_of_the_checkpoint(plain, monkeypatch, error):
    def fail(*_, **__):
        raise error
    monkeypatch.setattr(AutoModelForCausalLM, 'from_pretrained', fail)
    with pytest.raises(type(error)):
        load_model(str(plain))
    monkeypatch.setattr(decoder, 'twin', fail)
    with pytest.raises(type(error)):
        generate(made('llama'), [[1, 2]], 1, 2, 0.0, [])


@pytest.mark.parametrize('key, settings, method', [
    ('quantization_config', {'quant_method': 'awq', 'bits': 4}, 'awq'),
    ('quantization_config', {'quant_method': 'gptq', 'bits': 4}, 'gptq'),
    ('quantization_config', {'quant_method': 'fp8'}, 'fp8'),
    ('quantization_config', {'load_in_4bit': True}, 'bitsandbytes'),
    ('quantization_config', {'quant_method': 'compressed-tensors'}, 'compressed-tensors'),
    ('compression_config', {'format': 'pack-quantized'}, 'compressed-tensors'),
    ('quantization', {'bits': 4, 'group_size': 64}, 'MLX')])
def test_quantised_checkpoints_are_refused(checkpoint, key, settings, method):
    with pytest.raises(UserError, match=rf'quantised \({method}\).*bf16'):
        load_config(checkpoint(**{key: settings}))


def test_plain_checkpoints_may_say_so(checkpoint):
    load_model(checkpoint(quantization_config=None))


SCALED = {'rope_theta': 1e4, 'factor': 4.0, 'original_max_position_embeddings': 128}
FACTORS = {**SCALED, 'short_factor': [1.0] * 4, 'long_factor': [3.0] * 4}


@pytest.mark.parametrize('settings', [
    {'rope_parameters': {'rope_type': 'dynamic', **SCALED}},
    {'rope_parameters': {'rope_type': 'longrope', **FACTORS}},
    {'rope_parameters': None, 'rope_scaling': {'type': 'dynamic', 'factor': 4.0}},
    {'rope_parameters': None, 'rope_scaling': {'type': 'su', **FACTORS}}])
def test_frequencies_that_depend_on_the_batch_are_refused(checkpoint, settings):
    with pytest.raises(UserError, match='rotary embeddings of type (dynamic|longrope|su) are not supp'):
        load_config(checkpoint(**settings))


def test_such_frequencies_in_one_type_of_layers(tmp_path):
    config = AutoConfig.for_model('gemma3_text', **SMALL)
    config.rope_parameters['full_attention'] = {'rope_type': 'dynamic', **SCALED}
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match='rotary embeddings of type dynamic'):
        load_config(str(tmp_path))


@pytest.mark.parametrize('kind', ['default', 'linear', 'yarn', 'llama3'])
def test_frequencies_that_do_not_are_loaded(checkpoint, kind):
    rope = {'rope_type': kind, **SCALED, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
    policy = model_module.Policy(load_model(checkpoint(rope_parameters=rope)))
    ids = torch.arange(410) % 262
    with torch.no_grad():
        alone, _ = policy(ids[:10], [10], torch.arange(1, 10))
        beside, _ = policy(ids, [10, 400], torch.arange(1, 10))  # beyond the original positions
    assert torch.allclose(alone, beside, atol=1e-5)


# --- architectures --------------------------------------------------------------

def test_a_model_of_text_and_images_is_refused(tmp_path):
    AutoConfig.for_model('gemma3').save_pretrained(tmp_path)
    with pytest.raises(UserError, match='no vocab_size, hidden_size.*text alone'):
        load_config(str(tmp_path))


@pytest.mark.parametrize('kind, settings, words', [
    ('stablelm', {}, 'cannot be run with packed documents'),  # its layers hand no arguments down
    ('lfm2', {'layer_types': ['conv', 'full_attention']}, 'with packed documents its logits differ'),
    ('gpt_oss', {'num_local_experts': 2, 'num_experts_per_tok': 1}, 'its logits differ')])  # sinks
def test_a_model_that_would_mix_documents_is_refused(tmp_path, kind, settings, words):
    made(kind, **settings).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        load_model(str(tmp_path))


MOE = {'num_experts': 4, 'num_experts_per_tok': 2, 'moe_intermediate_size': 8}
SCALED_QUERIES = {'rope_parameters': {
    'rope_type': 'yarn', **SCALED, 'llama_4_scaling_beta': 0.5, 'beta_fast': 32.0, 'beta_slow': 1.0}}
FAST = ['llama', 'mistral', 'qwen2', 'qwen3']
OWN = {
    'gemma': {}, 'gemma3_text': {}, 'olmo2': {}, 'phi3': {}, 'glm4': {}, 'ernie4_5': {},
    'qwen3_moe': MOE, 'smollm3': {'num_hidden_layers': 4}, 'ministral3': SCALED_QUERIES,
    'granite': {'residual_multiplier': 0.3, 'embedding_multiplier': 4.0}}


def greedy(model, prompt, n):
    """The n most probable tokens after a prompt, one after the other, by transformers' own attention."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(int(logits.argmax()))
    return ids[len(prompt):]


@pytest.mark.parametrize('kind', [*FAST, *OWN])
def test_every_architecture_samples_what_it_computes(kind):
    """With a decode copy, or by its own forward where the copy would compute something else."""
    model = made(kind, **OWN.get(kind, {}))
    prompts = [[5, 6, 7, 8, 9], [10, 11, 12]]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        groups = generate(model, prompts, 1, 10, 0.0, [])
    said = [str(w.message) for w in said if 'no fast decoding' in str(w.message)]
    assert len(said) == (kind in OWN)
    assert all('its own forward is used (' in line for line in said)
    model.set_attn_implementation('eager')
    for prompt, (completion,) in zip(prompts, groups):
        assert completion['ids'] == greedy(model, prompt, 10)


UNSUPPORTED = {
    'gemma2': ({}, 'final_logit_softcapping'), 'cohere': ({}, 'logit_scale'),
    'granite': ({'logits_scaling': 8.0}, 'logits_scaling'),
    'gpt_oss': ({'num_local_experts': 2}, 'logits differ'),
    'phimoe': ({'num_local_experts': 2}, 'drawn at random'), 'gpt_neox': ({}, 'num_key_value_heads'),
    'qwen2_moe': ({**MOE, 'use_sliding_window': True, 'sliding_window': 64, 'max_window_layers': 1,
                   'shared_expert_intermediate_size': 8}, 'sliding window of qwen2_moe')}


@pytest.mark.parametrize('kind', UNSUPPORTED)
def test_what_would_be_computed_otherwise_is_refused(tmp_path, kind):
    """From a folder, and where a script made the model itself."""
    settings, words = UNSUPPORTED[kind]
    settings = {'num_experts_per_tok': 2, **settings}
    if kind == 'gpt_neox':
        config = AutoConfig.for_model(kind, **{k: v for k, v in SMALL.items() if 'key_value' not in k})
        model = AutoModelForCausalLM.from_config(config, attn_implementation='nanopost')
    else:
        model = made(kind, **settings)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match=words):
        generate(model, [[5, 6, 7]], 1, 4, 0.0, [])


@pytest.mark.parametrize('kind, settings', [
    ('seed_oss', {'residual_dropout': 0.5}), ('phi3', {'resid_pdrop': 0.5, 'embd_pdrop': 0.5}),
    ('starcoder2', {'residual_dropout': 0.5, 'embedding_dropout': 0.5, 'sliding_window': None}),
    ('minimax_m2', {'router_jitter_noise': 0.5, 'num_local_experts': 4, 'num_experts_per_tok': 2})])
def test_nothing_is_dropped_or_shaken_in_training(tmp_path, kind, settings):
    """What is scored in training is what was sampled."""
    made(kind, **settings).save_pretrained(tmp_path)
    policy = model_module.Policy(load_model(str(tmp_path)))
    ids, index = torch.arange(3, 33), torch.arange(1, 30)
    assert policy.training
    trained, _ = policy(ids, [30], index)
    sampled, _ = policy.eval()(ids, [30], index)
    assert torch.allclose(trained, sampled, atol=1e-5)


def test_no_difference_hides_in_the_rounding_of_bf16():
    """A quarter of SmolLM3's layers does not rotate: with three tokens before it a token hardly tells."""
    model = made('smollm3', num_hidden_layers=4)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        assert decoder.decoder_error(model, torch.bfloat16, 3) < 0.05
        assert 'in fp32 its logits differ' in decoder.why_no_decoder(model, torch.bfloat16)
        assert decoder.why_no_decoder(made('llama'), torch.bfloat16) is None


def test_a_trial_leaves_the_random_numbers_alone():
    model = made('llama')
    before = torch.random.get_rng_state()
    decoder.twin(model)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_model_that_cannot_be_sampled_from():
    """DiffLlama attends twice a layer: the second time would overwrite the cache."""
    with pytest.raises(UserError, match='cannot be sampled from: with a KV cache'):
        generate(made('diffllama'), [[1, 2, 3]], 1, 4, 0.0, [])
    with pytest.raises(UserError, match='cannot be run with packed documents'):
        generate(made('stablelm'), [[1, 2, 3]], 1, 4, 0.0, [])


def test_a_completion_longer_than_the_sliding_window():
    model = made('mistral', sliding_window=8)
    generate(model, [[5, 6, 7]], 1, 5, 0.0, [])
    with pytest.raises(UserError, match='sliding window'):
        generate(model, [[5, 6, 7]], 1, 6, 0.0, [])


@pytest.mark.parametrize('pad', [7, -1])
def test_the_pad_token_is_trained_like_any_other(checkpoint, pad):
    """Of some models it is the end of turn. Gradients against a loop in float64, without nn.Embedding."""
    model = load_model(checkpoint(pad_token_id=pad))
    ids = torch.tensor([3, 7, 9, 7, 261, 4])
    logprobs, _ = model_module.Policy(model)(ids, [6], torch.arange(1, 6))
    logprobs.sum().backward()
    ours = model.get_input_embeddings().weight.grad

    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation('eager')
    weight = exact.get_input_embeddings().weight.detach().requires_grad_()
    rows = torch.stack([weight[i] for i in ids.tolist()])
    logits = exact(inputs_embeds=rows[None], use_cache=False).logits[0]
    (-torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction='sum')).backward()
    assert weight.grad[7].norm() > 0 and weight.grad[261].norm() > 0
    assert torch.allclose(ours.double(), weight.grad, atol=1e-5 * weight.grad.abs().max().item())


# --- tokenizers -----------------------------------------------------------------

def test_token_ids_that_the_model_has_not(plain):
    model, tokenizer = load_model(str(plain)), byte_tokenizer()
    rows = [{'ids': [1, 2, 261]}, {'ids': np.int32([3, 4])}, {'ids': []}]
    check_token_ids(model, tokenizer, rows)
    tokenizer.add_tokens(['<|turn|>', '<|more|>'])  # ids 262 and 263: no row has them
    check_token_ids(model, tokenizer, rows)
    for ids in ([5, 262], np.int32([262, 5])):
        with pytest.raises(UserError, match=r"rows.jsonl:9 .* 262, '<\|turn\|>'.* 264 tokens.* only 262"):
            check_token_ids(model, tokenizer, [*rows, {'ids': ids, 'where': 'rows.jsonl:9'}])
    tokenizer.pad_token = '<|more|>'
    with pytest.raises(UserError, match=r"263, '<\|more\|>'"):
        check_token_ids(model, tokenizer, rows)
    tokenizer.pad_token, tokenizer.eos_token = '<|pad|>', '<|turn|>'
    with pytest.raises(UserError, match='262'):
        check_token_ids(model, tokenizer, [])
    tokenizer.eos_token = '<|endoftext|>'  # what ends a turn in the template alone
    tokenizer.chat_template = TEMPLATE.replace("'<|end|>'", "'<|more|>'")
    with pytest.raises(UserError, match=r"263, '<\|more\|>'"):
        check_token_ids(model, tokenizer, rows)
    tokenizer.pad_token = None
    tokenizer.chat_template = TEMPLATE
    check_token_ids(model, tokenizer, rows)


def test_many_rows_are_looked_at_in_no_time(plain):
    model, tokenizer = load_model(str(plain)), byte_tokenizer()
    row = {'ids': np.random.RandomState(0).randint(0, 262, 500, dtype=np.int32)}
    start = time.process_time()
    check_token_ids(model, tokenizer, [row] * 200_000)
    assert time.process_time() - start < 2


class Clock(datetime.datetime):
    today = 1

    @classmethod
    def now(cls, tz=None):
        return cls(2025, 3, cls.today, cls.today, cls.today)


DATES = {
    "strftime_now('%d %b %Y')": '26 Jul 2024',  # Llama 3.2
    "strftime_now('%Y-%m-%d')": '2024-07-26',  # gpt-oss, Mistral Small
    "strftime_now('%B %d, %Y')": 'July 26, 2024',  # Granite 3
    "strftime_now(format='%A, %H:%M:%S %j')": 'Friday, 00:00:00 208',
}


@pytest.mark.parametrize('call', DATES)
def test_ids_do_not_depend_on_the_day(monkeypatch, call):
    monkeypatch.setattr(chat_template_utils, 'datetime', Clock)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{%- macro day() %}{{ " + call + " }}{%- endmacro %}"
        "{%- if strftime_now is defined %}{{ '<|system|>' + day() + '<|end|>' }}{%- endif %}" + TEMPLATE)
    texts = []
    for Clock.today in (1, 2):
        (example,), _ = sft_examples([{'prompt': 'Q', 'completion': 'A', '_where': 'x'}], tokenizer, 99)
        texts.append(tokenizer.decode(example['ids']))
    assert texts[0] == texts[1] and texts[0].startswith(f'<|system|>{DATES[call]}<|end|>')


def test_a_template_that_asks_for_the_date_is_told_of(monkeypatch, tmp_path, capsys):
    file = tmp_path / 'dated.jinja'
    file.write_text("{{ strftime_now('%d %b %Y') }}" + TEMPLATE)
    data.load_tokenizer('tiny', str(file))
    assert capsys.readouterr().out == (
        "the chat template asks for today's date: it is always told 26 Jul 2024\n")
    data.load_tokenizer('tiny')
    monkeypatch.setattr(chat, 'RANK', 1)
    data.load_tokenizer('tiny', str(file))
    assert capsys.readouterr().out == ''


def test_the_day_is_a_knob_and_is_saved_with_the_model(tmp_path, capsys):
    """Llama 3.1's template takes the day as a variable, Llama 3.2's asks for it."""
    for day in ("strftime_now('%d %b %Y')", 'date_string'):
        file = tmp_path / 'dated.jinja'
        file.write_text("{{ " + day + " }}" + TEMPLATE)
        capsys.readouterr()
        messages = [{'role': 'user', 'content': 'Q'}]
        tokenizer = data.load_tokenizer('tiny', str(file), '2025-02-28')
        assert data.render(tokenizer, messages) == '28 Feb 2025<|user|>Q<|end|>'
        assert ('always told 28 Feb 2025' in capsys.readouterr().out) == (day != 'date_string')
        tokenizer.save_pretrained(tmp_path / 'model')
        assert data.render(data.load_tokenizer(str(tmp_path / 'model')), messages).startswith('28 Feb 2025')
        again = data.load_tokenizer(str(tmp_path / 'model'), '', '2025-03-01')
        assert data.render(again, messages).startswith('01 Mar 2025')
        assert data.render(data.load_tokenizer('tiny', str(file)), messages).startswith('26 Jul 2024')
    with pytest.raises(UserError, match='2025-02-29'):
        data.load_tokenizer('tiny', '', '2025-02-29')


def test_of_several_templates_the_default_one_counts(tmp_path, capsys):
    tokenizer = byte_tokenizer()
    dated = "{{ strftime_now('%d %b %Y') }}" + TEMPLATE
    said = []
    for templates in ({'default': dated, 'tool_use': TEMPLATE}, {'default': TEMPLATE, 'tool_use': dated}):
        tokenizer.chat_template = templates
        tokenizer.save_pretrained(tmp_path)
        loaded = data.load_tokenizer(str(tmp_path))
        said.append(capsys.readouterr().out)
        text = data.render(loaded, [{'role': 'user', 'content': 'Q'}])
        assert text == '26 Jul 2024' * len(said[0][:1] * (len(said) == 1)) + '<|user|>Q<|end|>'
    assert said[0].count('\n') == 1 and said[1] == ''
    tokenizer.chat_template = {'tool_use': TEMPLATE}
    with pytest.raises(UserError, match='no default'):
        data.render(tokenizer, [{'role': 'user', 'content': 'Q'}])


@pytest.mark.skipif(importlib.util.find_spec('trl') is None, reason='its templates are needed')
@pytest.mark.parametrize('name, words', [
    ('gptoss', 'Current date: 2024-07-26'), ('llama3_2', 'Today Date: 26 Jul 2024'),
    ('llama3_1', 'Today Date: 26 Jul 2024'), ('qwen3', '')])
def test_templates_as_they_are_found(monkeypatch, capsys, name, words):
    monkeypatch.setattr(chat_template_utils, 'datetime', Clock)
    folder = os.path.dirname(importlib.util.find_spec('trl').origin)
    tokenizer = data.load_tokenizer('tiny', f'{folder}/chat_templates/{name}.jinja')
    dated = name in ('gptoss', 'llama3_2')  # the others have a date of their own, or none
    assert capsys.readouterr().out.count('\n') == dated
    messages = [{'role': 'user', 'content': 'Q'}]
    texts = []
    for Clock.today in (1, 2):
        texts.append(data.render(tokenizer, messages))
    assert texts[0] == texts[1] and words in texts[0]
    if not dated:
        assert texts[0] == tokenizer.apply_chat_template(messages, tokenize=False)


PAIRS = [('<think>', '</think>'), ('[THINK]', '[/THINK]'), ('<seed:think>', '</seed:think>'),
         ('<thinking>', '</thinking>'), ('◁think▷', '◁/think▷')]
TRUTHS = [('gsm8k', '18', '#### 18'), ('math', '18', r'\boxed{18}'), ('mcq', 'B', 'The answer is (B)')]


@pytest.mark.parametrize('kind, truth, answer', TRUTHS)
def test_an_answer_counts_behind_the_thoughts(kind, truth, answer):
    """With the marks as special tokens, and where a text only mentions them."""
    for opening, closing in PAIRS:
        if opening != '<think>':
            for text in (f'Of {opening} I know nothing. {answer}', f'{answer}\nNo {closing} is needed'):
                assert verify(kind, truth, text, byte_tokenizer()) == 1
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({'additional_special_tokens': [*SPECIALS, opening, closing]})
        assert verify(kind, truth, f'{opening}\n{answer}<|end|>', tokenizer) == 0
        assert verify(kind, truth, f'\n{opening}{answer}', tokenizer) == 0
        assert verify(kind, truth, f'{opening}no{closing} {opening}{answer}', tokenizer) == 0
        assert verify(kind, truth, f'{opening}{answer}{closing}none<|end|>', tokenizer) == 0
        assert verify(kind, truth, f'\n{opening}who knows{closing}\n{answer}<|end|>', tokenizer) == 1


def verify(kind, truth, written, tokenizer):
    ids = tokenizer(written, add_special_tokens=False)['input_ids']
    return data.verify.verify(kind, completion_text(tokenizer, ids), truth)


@pytest.mark.parametrize('opening, closing', PAIRS)
@pytest.mark.parametrize('special', [True, False])
def test_marks_of_thinking_are_read_by_the_verifier(opening, closing, special):
    """Also where they are special tokens: a completion that was cut in its thoughts has no answer."""
    tokenizer = byte_tokenizer()
    if special:
        tokenizer.add_special_tokens({'additional_special_tokens': [*SPECIALS, opening, closing]})
    else:
        tokenizer.add_tokens([opening, closing])

    def text(written):
        return completion_text(tokenizer, tokenizer(written, add_special_tokens=False)['input_ids'])
    assert text(f'{opening}\nmaybe 18') == f'{opening}\nmaybe 18'
    assert text(f'{opening}no{closing}18<|end|>') == f'{opening}no{closing}18'
    assert after_thinking(text(f'{opening}maybe 18<|end|>')) == ''
    assert after_thinking(text(f'{opening}maybe 17{closing}18<|end|>')) == '18'
    if opening == '<think>':  # which a prompt may end in
        assert after_thinking(text(f'maybe 17{closing}18<|end|>')) == '18'


def test_without_such_marks_the_text_is_decoded_as_ever():
    tokenizer = byte_tokenizer()
    ids = np.random.RandomState(0).randint(0, 262, (50, 40)).tolist()
    for row in ids:
        assert completion_text(tokenizer, row) == tokenizer.decode(row, skip_special_tokens=True)


def test_a_leading_space_is_stripped_as_ever():
    """Sentencepiece's decoder strips one from the first token, be it special or not."""
    special = ['<s>', '</s>', '<think>', '</think>']
    words = [*special, '▁', '▁a', 'a', '▁b', 'b']
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    core.decoder = decoders.Metaspace(prepend_scheme='first')
    core.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=special)
    random = np.random.RandomState(0)
    for _ in range(200):
        ids = random.choice([0, 1, 4, 5, 6, 7, 8], random.randint(6)).tolist()
        assert completion_text(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)
    assert completion_text(tokenizer, [0, 2, 5, 3, 1, 7]) == '<think> a</think> b'


# --- difficulties ---------------------------------------------------------------

NAN, INFINITY = float('nan'), float('inf')


@pytest.mark.parametrize('value, level', [
    (3, 3), (3.0, 3), ('3', 3), (' 3.0 ', 3), (np.int64(3), 3), (np.float32(3), 3), (-2, -2),
    (3.5, '3.5'), (np.float32(3.5), '3.5'), ('Level 2', 'Level 2'), (' very\n hard ', 'very hard'),
    ('', None), ('  ', None), (None, None), (NAN, None), (-INFINITY, None), (np.float64('nan'), None),
    ([3], None), ({}, None), (np.array([1, 2]), None), (True, None), ('half a \ud83d', 'half a ?')])
def test_a_level_is_a_number_or_a_text_or_nothing(value, level):
    found = level_of(value)
    assert found == level and type(found) is type(level)
    row = {'prompt': 'Q', 'answer': '1', 'dataset': 'math', '_where': 'x:1'}
    (prompt,), _ = rl_prompts([{**row, 'difficulty': value}], byte_tokenizer(), 99)
    assert prompt['difficulty'] == level
    (prompt,), _ = rl_prompts([{**row, 'difficulty': value, 'level': 9}], byte_tokenizer(), 99)
    assert prompt['difficulty'] == (9 if level is None else level)


def test_levels_in_order():
    """Numbers by their size, then texts, each once: whatever the rows hold, and in whatever order."""
    mixed = [10, 'Level 2', NAN, 9, '9', None, 3.5, '3.25', 'nan', [1], 'Level 10', INFINITY, 10 ** 400,
             '1e999', -1, np.int32(9), np.float64(9)]
    expected = [-1, '3.25', '3.5', 9, 10, 10 ** 400, '1e999', 'Level 10', 'Level 2', 'nan']
    found = [level_of(value) for value in mixed]
    assert levels(found) == levels(reversed(found)) == levels(expected) == expected
    assert levels([]) == levels([None]) == []


def test_levels_part_what_they_are_found_in():
    """Each difficulty that says something is in one group: as rows give them, and read by level_of."""
    raw = [3, 3.0, '3', 3.5, '3.5', 'Level 2', 'level 2', 'nan', 'inf', '-inf', NAN, INFINITY, None, '', [], {},
           [3], True, 10 ** 400, '1e400', np.int64(4), 0.1, np.float64('nan'), (1, [2]), b'x']
    for values in (raw, [level_of(value) for value in raw]):
        places = [i for level in levels(values) for i, value in enumerate(values)
                  if level_of(value) is not None and value == level]
        assert sorted(places) == [i for i, value in enumerate(values) if level_of(value) is not None]


# --- a longer context ----------------------------------------------------------
def test_rope_theta_and_positions_are_what_the_checkpoint_would_have(checkpoint, plain, tmp_path):
    """The two knobs compute what a checkpoint with these settings computes, and are saved with the model."""
    given = checkpoint(max_position_embeddings=600, rope_parameters={'rope_type': 'default', 'rope_theta': 40000.0})
    expected = load_model(given)
    model = load_model(str(plain), rope_theta=40000.0, max_position_embeddings=600)
    assert load_model(str(plain)).config.max_position_embeddings == 512
    ids = torch.arange(1, 551) % 60
    index = torch.arange(1, 550)
    scores, _ = model_module.Policy(model)(ids, [550], index)
    assert torch.equal(scores, model_module.Policy(expected)(ids, [550], index)[0])
    assert not torch.allclose(scores, model_module.Policy(load_model(str(plain)))(ids, [550], index)[0], atol=1e-3)
    # more than the 512 positions of its own
    generate(model, [ids[:540].tolist()], 1, 20, 0.0, [])
    model_module.save_model(model, byte_tokenizer(), str(tmp_path / 'saved'), [2])
    again = load_model(str(tmp_path / 'saved'))
    assert again.config.max_position_embeddings == 600 and again.config.rope_parameters['rope_theta'] == 40000.0
    assert torch.equal(scores, model_module.Policy(again)(ids, [550], index)[0])


def test_rope_theta_of_each_type_of_layer_is_refused(checkpoint):
    per_layer = {'full_attention': {'rope_type': 'default', 'rope_theta': 1e4}}
    config = AutoConfig.from_pretrained(checkpoint())
    config.rope_parameters = per_layer
    with pytest.raises(UserError, match='rope_theta cannot be set'):
        model_module.override_positions('a model', config, 4e4, 0)
