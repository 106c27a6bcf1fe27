"""make real: the model that comes as a GGUF file, the rows of SVAMP, and what whoever waits for it sees."""
import io
import json
import os
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from conftest import ROOT, inside
from transformers import AutoModelForCausalLM, AutoTokenizer

import rollout
from data import load_tokenizer, rl_prompts, sft_examples
from model import load_model
from rows import read_rows
from tools import smollm2
from verify import verify

SVAMP = os.path.join(ROOT, 'examples', 'svamp')


# --- the model ----------------------------------------------------------------
@pytest.fixture(scope='module')
def tiny_gguf(tmp_path_factory):
    """A folder with a Llama of two layers and a byte-level tokenizer in tiny.gguf, weights quantised as SmolLM2's are."""
    folder, rng = tmp_path_factory.mktemp('gguf'), np.random.default_rng(1)
    letters = [chr(x) for x in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]  # GPT-2's for the 256 bytes
    merges = [(letters[64], letters[65]), (letters[66], letters[67])]  # one alone transformers 5.17 reads as a text
    tokens = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', *letters, *map(''.join, merges)]
    layers, hidden, heads, kv_heads, ffn = 2, 64, 4, 2, 96
    writer = gguf.GGUFWriter(folder / 'tiny.gguf', 'llama')
    writer.add_block_count(layers)
    writer.add_context_length(256)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model('gpt2')
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges([' '.join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
                             "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}")

    def add(name, *shape):
        weight = rng.normal(0, 0.3, shape).astype(np.float32)
        if len(shape) == 2:
            writer.add_tensor(name, gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_1),
                              raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(name, 1 + weight)
    add('token_embd.weight', len(tokens), hidden)
    add('output_norm.weight', hidden)
    for i in range(layers):
        add(f'blk.{i}.attn_norm.weight', hidden)
        add(f'blk.{i}.ffn_norm.weight', hidden)
        add(f'blk.{i}.attn_q.weight', hidden, hidden)
        add(f'blk.{i}.attn_k.weight', hidden // 2, hidden)
        add(f'blk.{i}.attn_v.weight', hidden // 2, hidden)
        add(f'blk.{i}.attn_output.weight', hidden, hidden)
        add(f'blk.{i}.ffn_gate.weight', ffn, hidden)
        add(f'blk.{i}.ffn_up.weight', ffn, hidden)
        add(f'blk.{i}.ffn_down.weight', hidden, ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(folder)


def test_a_gguf_file_becomes_a_plain_folder(tiny_gguf, tmp_path, capsys):
    """Plain transformers and our scripts load it, as fp32 and without a word of quantisation, with its chat template."""
    target = str(tmp_path / 'model')
    smollm2.convert(tiny_gguf, 'tiny.gguf', target)
    assert 'equal those of that file to the bit' in capsys.readouterr().out
    assert not os.path.exists(target + '.tmp')
    with open(os.path.join(target, 'config.json')) as f:
        assert 'quantization_config' not in json.load(f)
    source = AutoModelForCausalLM.from_pretrained(tiny_gguf, gguf_file='tiny.gguf', dtype=torch.float32)
    for lm in (AutoModelForCausalLM.from_pretrained(target), load_model(target)):
        assert lm.dtype == torch.float32
        for name, weight in source.state_dict().items():
            assert torch.equal(lm.state_dict()[name], weight), name
    tokenizer = load_tokenizer(target)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_gguf, gguf_file='tiny.gguf').chat_template
    assert smollm2.main(target) is None and 'is there already' in capsys.readouterr().out


def test_a_folder_that_computes_something_else_is_not_kept(tiny_gguf, tmp_path, monkeypatch):
    save = AutoTokenizer.from_pretrained(tiny_gguf, gguf_file='tiny.gguf').__class__.save_pretrained

    def damage(self, folder, *args, **kwargs):
        """Writes the tokenizer, and another model than the one that is there."""
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model.model.norm.weight.mul_(1.001)
        model.save_pretrained(folder)
        return save(self, folder, *args, **kwargs)
    monkeypatch.setattr(AutoTokenizer.from_pretrained(tiny_gguf, gguf_file='tiny.gguf').__class__, 'save_pretrained', damage)
    with pytest.raises(RuntimeError, match='logits differ'):
        smollm2.convert(tiny_gguf, 'tiny.gguf', str(tmp_path / 'model'))
    assert os.listdir(tmp_path) == []


# --- the rows -----------------------------------------------------------------
def test_every_demonstration_is_right_and_no_story_is_on_both_sides():
    """The verifier takes each demonstration, every row is trained on, and a story stays on its side."""
    stories = {}
    tokenizer = load_tokenizer('tiny')
    for side in ('train', 'test'):
        rows, _ = read_rows(os.path.join(SVAMP, f'{side}.jsonl'))
        prompts, _ = rl_prompts(rows, tokenizer, 2000)
        examples, _ = sft_examples(rows, tokenizer, 2000)
        assert len(prompts) == len(examples) == len(rows)
        for prompt in prompts:
            assert prompt['kind'] == 'gsm8k' and verify('gsm8k', prompt['demonstration'], prompt['truth']) == 1, prompt
            for line in prompt['demonstration'].split('\n')[:-1]:
                left, right = line.split(' = ')
                assert eval(left) == pytest.approx(float(right)), line
        stories[side] = {''.join(c for c in prompt['text'] if not c.isdigit()) for prompt in prompts}
    assert not stories['train'] & stories['test']


def test_the_rows_are_what_the_script_makes(tmp_path):
    """make.py on a few problems: two operations, a decimal, an equation that is not the answer, one without an operation."""
    problems = [('A had 3.', '( ( 7.0 - 10.0 ) + 4.0 )', 1.0), ('B had 4.', '( 24.0 / ( 28.0 - 12.0 ) )', 1.5),
                ('C had 5.', '( 4.0 - 2.0 )', 1.0), ('D had 6.', '8.0', 8.0), ('E had 7.', '( 1357.0 * 22300.0 )', 30261100.0)]
    source = tmp_path / 'SVAMP.json'
    source.write_text(json.dumps([{'ID': f'chal-{body[0]}', 'Body': body, 'Question': 'How many?', 'Equation': equation, 'Answer': answer}
                                  for body, equation, answer in problems]))
    script = tmp_path / 'make.py'
    with open(os.path.join(SVAMP, 'make.py')) as f:
        script.write_text(f.read())
    printed = subprocess.run([sys.executable, script, source], capture_output=True, text=True, check=True).stdout
    assert 'chal-C is left out' in printed and 'chal-D is left out' in printed
    made = [json.loads(line) for side in ('train', 'test') for line in (tmp_path / f'{side}.jsonl').read_text().splitlines()]
    assert {row['id']: row['demonstration'] for row in made} == {
        'chal-A': '7 - 10 = -3\n-3 + 4 = 1\n#### 1', 'chal-B': '28 - 12 = 16\n24 / 16 = 1.5\n#### 1.5',
        'chal-E': '1357 * 22300 = 30261100\n#### 30261100'}


# --- progress -----------------------------------------------------------------
def test_progress_in_a_file_is_a_line_now_and_then(monkeypatch):
    """Where stderr is no terminal: nothing at once, then whole lines, also while no completion ends."""
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    bar = rollout.Progress(64, 'rollout', 'completion')
    assert sys.stderr.getvalue() == ''
    bar.update(1)
    assert sys.stderr.getvalue() == ''
    bar.mininterval = bar.delay = 0  # half a minute later
    bar.set_postfix_str('48 decode steps', refresh=False)
    bar.update(0)
    bar.update(10)
    bar.close()
    lines = sys.stderr.getvalue().split('\n')
    assert len(lines) == 3 and lines[2] == '' and '\r' not in sys.stderr.getvalue()
    assert 'rollout' in lines[0] and '1/64' in lines[0] and '48 decode steps' in lines[0]
    assert '11/64' in lines[1]


def test_sample_tells_how_far_it_is(monkeypatch, capsys, tmp_path):
    """In a file too, by completion: a run on a slow machine must not look dead."""
    monkeypatch.setattr(rollout.Progress, 'SECONDS_BETWEEN_LINES', 0)
    inside(monkeypatch, 'sample.py', '--model=tiny', '--limit=20', '--n=2', '--max_new_tokens=12', f'--out={tmp_path / "out.jsonl"}')
    lines = [line for line in capsys.readouterr().err.split('\n') if line.startswith('prompts 1 to 20 of 20')]
    assert len(lines) > 1 and '/40' in lines[0] and 'decode steps' in lines[-1]
