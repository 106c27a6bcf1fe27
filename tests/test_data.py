"""data.py: what is trained, what is dropped and why, what reads, packs and orders rows."""

import gzip
import json
import os
import random
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from conftest import ROOT
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

import chat as chat_module
import data
from configurator import UserError
from data import (
    Order,
    byte_tokenizer,
    collate,
    format_report,
    load_tokenizer,
    pack,
    preference_pairs,
    rl_prompts,
    sft_examples,
    show_mask,
    split_by_work,
    stop_ids,
)
from rows import read_rows

GSM8K, GSM8K_TEST = 'tests/data/gsm8k_sample.jsonl', 'tests/data/gsm8k_test_sample.jsonl'
TINY = byte_tokenizer()
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# as Qwen3's: thoughts are cut from turns before the last user turn, an empty block is put before a last reply without
QWEN3 = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set content = m.content %}{%- set thought = m.reasoning_content or '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{%- if loop.index0 > ns.last and (loop.last or thought) %}
{{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}
{{- '<|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


def tokenizer_of(template, specials, words=(), **names):
    """A byte-level tokenizer with these special tokens; words get tokens of their own, merged across borders."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for word in words:
        for i in range(2, len(word) + 1):
            if word[:i] not in alphabet:
                alphabet[word[:i]] = len(alphabet)
                merges.append((word[: i - 1], word[i - 1]))
    core = Tokenizer(models.BPE(vocab=alphabet, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=template,
        additional_special_tokens=list(specials),
        clean_up_tokenization_spaces=False,
        **names,
    )


def chatml(template=CHATML, pad='<|endoftext|>'):
    """Like Qwen's base models: EOS is not what ends a turn, and the pad token is EOS."""
    return tokenizer_of(
        template, ['<|endoftext|>', '<|im_start|>', '<|im_end|>'], eos_token='<|endoftext|>', pad_token=pad
    )


def chat(*contents):
    return [{'role': 'user' if i % 2 == 0 else 'assistant', 'content': c} for i, c in enumerate(contents)]


def one(row, tokenizer=TINY, max_length=10000, **knobs):
    """The marked text of a row on its own."""
    (example,), _ = sft_examples([{**row, '_where': 'x:1'}], tokenizer, max_length, **knobs)
    assert example['ids'].dtype == np.int32 and example['mask'].dtype == bool and example['where'] == 'x:1'
    assert len(example['ids']) == len(example['mask']) and not example['mask'][0]
    return show_mask(example, tokenizer)


def why(row, tokenizer=TINY, max_length=10000, **knobs):
    """The reason for which a row is dropped."""
    rows = [{**row, '_where': 'bad:7'}, {'text': 'ok', '_where': 'ok:1'}]
    _, report = sft_examples(rows, tokenizer, max_length, **knobs)
    ((reason, (count, where)),) = report['dropped'].items()
    assert (count, where, report['kept'], report['rows']) == (1, 'bad:7', 1, 2) and reason in format_report(
        report
    )
    return reason


# --- tokenizers --------------------------------------------------------------------------------------------------
HOSTILE = [
    '',
    ' ',
    'a  b .',
    ' x ',
    'é e\u0301 ﬁ',
    '你好 مرحبا',
    '👩\u200d👩\u200d👧',
    '\x00\x7f\r\n\t\u2028\ufeff',
    "don't .",
    '\U0010ffff\ufffd',
    '<|end',
    '▁Ġ',
    '\u202eabc',
    '1,234 #### 5',
]


@pytest.mark.parametrize('text', HOSTILE)
def test_byte_tokenizer_round_trips(text):
    ids = TINY(text, add_special_tokens=False)['input_ids']
    assert TINY.decode(ids) == text and len(ids) == len(text.encode())
    assert TINY(text)['input_ids'] == ids  # it adds nothing
    if text.strip():
        assert (
            one({'prompt': text, 'completion': text})
            == f'<|user|>{text}<|end|><|assistant|>[[{text}<|end|>]]'
        )


@pytest.mark.parametrize('config', [None, Qwen3Config(), LlamaConfig()])
def test_byte_tokenizer_saved_and_loaded(tmp_path, config):
    TINY.save_pretrained(tmp_path)
    if config:
        config.save_pretrained(tmp_path)
    for again in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert (again.eos_token, again.pad_token, len(again)) == ('<|end|>', '<|pad|>', 262)
        assert again.chat_template == TINY.chat_template and stop_ids(again) == stop_ids(TINY)
        assert all(
            again(t)['input_ids'] == TINY(t)['input_ids'] and again.decode(again(t)['input_ids']) == t
            for t in HOSTILE
        )


def test_load_tokenizer(tmp_path):
    assert len(load_tokenizer('tiny')) == len(load_tokenizer('random:layers=2')) == 262
    (tmp_path / 'chat.jinja').write_text(CHATML)
    assert load_tokenizer('tiny', str(tmp_path / 'chat.jinja')).chat_template == CHATML
    for name, template in (
        (str(tmp_path / 'none'), ''),
        (str(tmp_path), ''),
        ('tiny', str(tmp_path / 'none.jinja')),
    ):
        with pytest.raises(UserError, match='none|no tokenizer') as error:
            load_tokenizer(name, template)
        assert '\n' not in str(error.value)


def test_stop_ids():
    assert stop_ids(TINY) == [TINY.convert_tokens_to_ids('<|end|>')]
    assert stop_ids(chatml()) == [256, 258]  # EOS, and what ends a turn
    assert stop_ids(chatml(template=None)) == [256]
    for old, new in (('<|im_end|>', ''), ('<|im_end|>', '###'), ('m.content', '(m.content | upper)')):
        assert stop_ids(chatml(CHATML.replace(old, new))) == [256]
    with pytest.raises(UserError, match='chat template'):
        stop_ids(chatml("{{ raise_exception('no') }}"))
    with pytest.raises(UserError, match='EOS'):
        stop_ids(tokenizer_of(CHATML, ['<|im_start|>', '<|im_end|>']))


# --- rows --------------------------------------------------------------------------------------------------------
def test_read_rows(tmp_path):
    objects = [{'text': f'r{i}\u2028'} for i in range(3)]
    lines = '\n\n'.join(json.dumps(o, ensure_ascii=False) for o in objects)
    (tmp_path / 'a.jsonl').write_text(lines)
    (tmp_path / 'b.json').write_text(json.dumps(objects, indent=1))
    (tmp_path / 'c.json').write_text('\ufeff' + lines + '\n')
    (tmp_path / 'd.jsonl.gz').write_bytes(gzip.compress(lines.encode()))
    rows, sources = read_rows(
        f'{tmp_path}/a.jsonl*0.5, {tmp_path}/b.json,{tmp_path}/c.json*2,{tmp_path}/d.jsonl.gz*.25'
    )
    assert [r['text'] for r in rows] == ['r0\u2028', 'r1\u2028', 'r2\u2028'] * 4
    assert [r['_where'].removeprefix(f'{tmp_path}/') for r in rows] == [
        *(f'a.jsonl:{i}' for i in (1, 3, 5)),
        *(f'b.json:{i}' for i in (1, 2, 3)),
        *(f'c.json:{i}' for i in (1, 3, 5)),
        *(f'd.jsonl.gz:{i}' for i in (1, 3, 5)),
    ]
    assert sources == [
        (f'{tmp_path}/a.jsonl', 0.5, 0, 3),
        (f'{tmp_path}/b.json', 1.0, 3, 6),
        (f'{tmp_path}/c.json', 2.0, 6, 9),
        (f'{tmp_path}/d.jsonl.gz', 0.25, 9, 12),
    ]


def test_files_of_lines_are_not_held_in_memory(tmp_path):
    """What read_rows keeps is 24 bytes a row; a slice is no copy; rows come in any order, each as it stands in the file."""
    size, n = 2000, 10000
    with open(tmp_path / 'a.jsonl', 'w') as f:
        for i in range(n):
            f.write(json.dumps({'text': f'{i} é '.ljust(size, 'x')}) + '\n' * (1 + (i % 7 == 0)))
    tracemalloc.start()
    rows, _ = read_rows(f'{tmp_path}/a.jsonl')
    part = rows[1000:9000:2]
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert now < 60 * n and peak < 100 * n, (now, peak)  # the file: 2,000 n
    assert len(rows) == n and len(part) == 4000
    for i in (9999, 0, 5000, 4999):
        row = rows[i]
        assert row['text'] == f'{i} é '.ljust(size, 'x') and row['_where'] == f'{tmp_path}/a.jsonl:{i + 1 + -(-i // 7)}'
    assert [row['text'].split()[0] for row in part[-2:]] == ['8996', '8998'] and part[0] == rows[1000]


def test_a_pipe_is_read_once(tmp_path):
    """--data=<(zcat ...): it cannot be read again."""
    os.mkfifo(tmp_path / 'pipe')
    writer = threading.Thread(target=lambda: (tmp_path / 'pipe').write_text('{"text": "a"}\n{"text": "b"}\n'))
    writer.start()
    assert [row['text'] for row in read_rows(f'{tmp_path}/pipe')[0]] == ['a', 'b']
    writer.join()


def test_read_parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([{'prompt': chat('a'), 'n': 1}]), tmp_path / 'a.parquet')
    assert list(read_rows(f'{tmp_path}/a.parquet')[0]) == [
        {'prompt': chat('a'), 'n': 1, '_where': f'{tmp_path}/a.parquet:1'}
    ]
    (tmp_path / 'b.parquet').write_text('no')
    with pytest.raises(UserError, match='b.parquet'):
        read_rows(f'{tmp_path}/b.parquet')
    monkeypatch.setitem(__import__('sys').modules, 'pyarrow', None)
    with pytest.raises(UserError, match='pip install pyarrow'):
        read_rows(f'{tmp_path}/a.parquet')


def test_read_hub(tmp_path, monkeypatch):
    (tmp_path / 'f.jsonl').write_text('{"text": "a"}')

    def download(repo, file, repo_type):
        assert repo_type == 'dataset'
        if (repo, file) != ('owner/name', 'sub/f.jsonl'):
            raise OSError('404\nno such repository')
        return str(tmp_path / 'f.jsonl')

    monkeypatch.setattr('huggingface_hub.hf_hub_download', download)
    rows, sources = read_rows('hf://datasets/owner/name/sub/f.jsonl*2')
    assert rows[0]['_where'] == 'hf://datasets/owner/name/sub/f.jsonl:1' and sources[0][1] == 2
    monkeypatch.setattr('huggingface_hub.HfApi.list_repo_files',
                        lambda self, repo, repo_type: ['README.md', 'sub/f.jsonl', 'sub/g.txt'])
    rows, sources = read_rows('hf://datasets/owner/name/sub/*.jsonl*3')
    assert rows[0]['_where'] == 'hf://datasets/owner/name/sub/f.jsonl:1' and sources[0][1] == 3
    for name in ('hf://datasets/owner/other/f.jsonl', 'hf://datasets/owner'):
        with pytest.raises(UserError, match=name):
            read_rows(name)


def test_the_tulu3_template():
    """Newlines as TULU 3 has them: after a header and between turns; EOS, no newline, at the end."""
    tokenizer = load_tokenizer('tiny', os.path.join(ROOT, 'config/tulu3.jinja'))
    messages = [{'role': 'system', 'content': 'S'}, *chat('Q', 'A'), *chat('q', ' a')]
    (example,), _ = sft_examples([{'messages': messages, '_where': 'x:1'}], tokenizer, 100)
    assert show_mask(example, tokenizer) == (
        '<|system|>\nS\n<|user|>\nQ\n<|assistant|>\n[[A<|end|>]]\n<|user|>\nq\n<|assistant|>\n[[ a<|end|>]]')


def test_patterns_are_one_source(tmp_path):
    for i in range(3):
        (tmp_path / f'part-{2 - i}.jsonl').write_text(f'{{"text": "{2 - i}"}}\n' * (3 - i))
    rows, sources = read_rows(f'{tmp_path}/part-*.jsonl*0.5, {tmp_path}/part-0.jsonl')
    assert [row['text'] for row in rows] == list('0112220')
    assert sources == [(f'{tmp_path}/part-*.jsonl', 0.5, 0, 6), (f'{tmp_path}/part-0.jsonl', 1.0, 6, 7)]
    with pytest.raises(UserError, match='no file has such a name'):
        read_rows(f'{tmp_path}/other-*.jsonl')


@pytest.mark.parametrize(
    'name, content, match',
    [
        ('a.jsonl', b'{"a": 1}\n{"a": ', r'a\.jsonl:2: '),
        ('a.jsonl', b'{"a": 1}\n\n\xff{}', r'a\.jsonl:3: .*utf-8'),
        ('a.jsonl', b'{"a": 1}\n[1]\n', r'a\.jsonl:2: '),
        ('a.json', b'[{"a": 1},\n{"a": 2},\n{"a" 3}]', r'a\.json:3: '),
        ('a.json', b'[{"a": 1},\n{"a": "\xff"}]', r'a\.json:2: .*utf-8'),
        ('a.json', b'[{"a": 1}, 3]', r'a\.json:2: '),
        ('a.jsonl', b'', 'a.jsonl.*no rows'),
        ('a.json', b'[]', 'a.json.*no rows'),
        ('a.jsonl.gz', b'{"a": 1}', r'a\.jsonl\.gz.*gzip'),
        ('a.jsonl.gz', gzip.compress(b'{"a": 1}' * 99, mtime=0)[:30], r'a\.jsonl\.gz'),
    ],
)
def test_unreadable_files(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=match) as error:
        read_rows(f'{tmp_path}/{name}')
    assert '\n' not in str(error.value)


def test_unreadable_specs():
    for spec in (
        'none.jsonl',
        '',
        f'{GSM8K}*x',
        f'{GSM8K}*0',
        f'{GSM8K}*-1',
        f'{GSM8K}*nan',
        'sums:other',
        'search:other',
        'tests',
    ):
        with pytest.raises(UserError, match='data source'):
            read_rows(spec)


# --- supervised rows ---------------------------------------------------------------------------------------------
def test_end_of_turn_is_trained_although_pad_is_eos():
    tokenizer = chatml()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    marked = one({'messages': chat('hi', 'yo', 'and', 'bye')}, tokenizer)
    assert marked == (
        '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n[[yo<|im_end|>]]\n'
        '<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n[[bye<|im_end|>]]\n'
    )
    eos = tokenizer_of(
        CHATML.replace('<|im_end|>', '<|endoftext|>'),
        ['<|endoftext|>', '<|im_start|>'],
        eos_token='<|endoftext|>',
        pad_token='<|endoftext|>',
    )
    assert one({'messages': chat('hi', 'yo')}, eos).endswith('[[yo<|endoftext|>]]\n')
    assert one({'text': 'ab'}, eos) == 'a[[b<|endoftext|>]]'


def test_contents_that_also_occur_elsewhere():
    for content in ('s', 'assistant', 'user\n', '|', '\n', 'im_end', '<think>', 'a<|', 'mark0kram', '\\1'):
        if content.strip():
            assert (
                one({'messages': chat(content, content, content, content)}, chatml()).count(
                    f'[[{content}<|im_end|>]]'
                )
                == 2
            )


def test_roles_and_system():
    row = {
        'messages': [
            {'role': 'system', 'content': 'S'},
            *chat('a', 'b'),
            {'role': 'tool', 'content': 'T'},
            {'role': 'assistant', 'content': 'c'},
            {'role': 'user', 'content': 'd'},
        ]
    }
    assert one(row) == (
        '<|system|>S<|end|><|user|>a<|end|><|assistant|>[[b<|end|>]]<|tool|>T<|end|><|assistant|>'
        '[[c<|end|>]]<|user|>d<|end|>'
    )


def test_templates_that_strip():
    strip = CHATML.replace('m.content', '(m.content | trim)')
    assert one({'messages': chat(' a\n', '\n b ')}, chatml(strip)).endswith('assistant\n[[b<|im_end|>]]\n')
    assert one({'messages': chat(' a\n', '\n b ')}, chatml()).endswith('assistant\n[[\n b <|im_end|>]]\n')


def test_think_blocks():
    tokenizer = chatml(QWEN3)
    # no thought: the template's empty block stands after the generation prompt, so the model has to say it
    assert one({'messages': chat('a', 'b')}, tokenizer).endswith(
        'assistant\n[[<think>\n\n</think>\n\nb<|im_end|>]]\n'
    )
    marked = one({'messages': chat('a', 'b', 'c', 'd')}, tokenizer)
    assert 'assistant\n[[b<|im_end|>]]' in marked and '[[<think>\n\n</think>\n\nd<|im_end|>]]' in marked
    # thoughts are cut from the earlier turn: only the last is trained
    marked = one({'messages': chat('a', '<think>\nt\n</think>\n\nb', 'c', '<think>u</think>d')}, tokenizer)
    assert 'assistant\nb<|im_end|>' in marked and marked.endswith(
        'assistant\n[[<think>\nu\n</think>\n\nd<|im_end|>]]\n'
    )
    # a prompt that opens the block
    opens = CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}")
    assert one({'messages': chat('a', '<think>\nt\n</think>\n\nb')}, chatml(opens)).endswith(
        'assistant\n<think>\n[[t\n</think>\n\nb<|im_end|>]]\n'
    )
    assert why({'messages': chat('a', 'b')}, chatml(opens)) == data.THOUGHTS_NEEDED
    # reasoning_content, rendered by the template and not part of the content
    row = {'messages': [chat('a')[0], {'role': 'assistant', 'content': 'b', 'reasoning_content': 't'}]}
    assert one(row, tokenizer).endswith('assistant\n[[<think>\nt\n</think>\n\nb<|im_end|>]]\n')


def test_templates_that_cannot_be_trusted():
    for change in (
        '(m.content | upper)',
        "(m.content | replace('b', 'x'))",
        'm.content * 2',
        'm.content[:0]',
    ):
        assert why({'messages': chat('a', 'b')}, chatml(CHATML.replace('m.content', change))) in (
            data.REWRITES,
            data.NO_END,
        )
    assert why({'messages': chat('a', 'b')}, chatml(CHATML.replace('<|im_end|>', ''))) == data.NO_END
    more = CHATML.replace("'<|im_end|>\n'", "('' if m.content == 'reply' else ' ...') + '<|im_end|>\n'")
    assert why({'messages': chat('a', 'b')}, chatml(more)) == data.REWRITES
    silent = CHATML.replace('m.content', "(m.content if m.content != 'assistant' else '')")
    other = CHATML.replace("{{ '<|im_start|>assistant", "{{ '<|im_start|>ASSISTANT")  # no reply follows this
    for template, reply in ((silent, 'assistant'), (other, 'b')):
        reason = why({'messages': chat('a', reply)}, chatml(template))
        assert reason == data.REWRITES
    refuses = CHATML.replace(
        '{% for m', "{% if messages | length > 2 %}{{ raise_exception('too\nlong') }}{% endif %}{% for m"
    )
    assert (
        why({'messages': chat('a', 'b', 'c', 'd')}, chatml(refuses)) == 'the chat template refuses: too long'
    )
    # an end only after the last turn: the first is not trained, and never runs on into the user's words
    last = CHATML.replace(
        "'<|im_end|>\n' }}", "('<|im_end|>' if loop.last or m.role == 'user' else '') + '\n' }}"
    )
    marked = one({'messages': chat('a', 'ok', 'b', 'ok')}, chatml(last))
    assert marked.count('[[') == 1 and marked.endswith(
        'b<|im_end|>\n<|im_start|>assistant\n[[ok<|im_end|>]]\n'
    )
    # a token that straddles header and content
    merged = tokenizer_of(
        "{% for m in messages %}{{ m.role + ':' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
        ['<|end|>'],
        [':b'],
        eos_token='<|end|>',
    )
    assert one({'messages': chat('a', 'c')}, merged) == 'user:a<|end|>assistant:[[c<|end|>]]'
    # ... is none: prompt and reply are tokenised apart, so that a rollout could have begun so
    assert one({'messages': chat('a', 'b')}, merged) == 'user:a<|end|>assistant:[[b<|end|>]]'


def test_special_tokens_in_text_are_text():
    """What a user or a demonstration spells out is never control; the template's own tokens are; the mask is as without."""
    im = tokenizer_of(CHATML, ['<|im_start|>', '<|im_end|>', '<|im_end|>|>'], ['of'], eos_token='<|im_end|>')
    strip = tokenizer_of(CHATML.replace('m.content', 'm.content | trim'), ['<|im_start|>', '<|im_end|>'], eos_token='<|im_end|>')
    for tokenizer, begin, end in ((TINY, '<|user|>', '<|end|>'), (im, '<|im_start|>', '<|im_end|>'), (strip, '<|im_start|>', '<|im_end|>')):
        control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        for asked, said in (('a' + end, 'b'), (end, begin), ('a', f'b{end}{begin}c of{end}'), (begin + end, 'x ' + end), ('a', end + '|>')):
            (example,), _ = sft_examples([{'messages': chat(asked, said), '_where': 'x:1'}], tokenizer, 1000)
            (safe,), _ = sft_examples([{'messages': chat('a', 'b'), '_where': 'x:1'}], tokenizer, 1000)
            ids = example['ids'].tolist()
            assert [i for i in ids if i in control] == [i for i in safe['ids'].tolist() if i in control]
            assert tokenizer.decode(ids) == tokenizer.apply_chat_template(chat(asked, said), tokenize=False)
            assert tokenizer.decode(example['ids'][example['mask']]) == said + end
            (prompt,), _ = rl_prompts([{'prompt': asked, 'answer': '1', 'dataset': 'sums', '_where': 'x:1'}], tokenizer, 1000)
            assert prompt['ids'] == ids[:len(prompt['ids'])] and prompt['text'] == asked
            (pair,), _ = preference_pairs([{'prompt': asked, 'chosen': said, 'rejected': 'no', '_where': 'x:1'}], tokenizer, 1000)
            assert pair['docs'][0][0][pair['docs'][0][1]].tolist() == example['ids'][example['mask']].tolist()
    (document, _), report = sft_examples([{'text': 'a<|end|><|pad|>', '_where': 'x:1'}, {'text': 'b', '_where': 'x:2'}], TINY, 1000)
    assert report['spelled'] == ['x:1'] and '\n  1 spell out special tokens' in format_report(report) and '(first x:1)' in format_report(report)
    assert document['ids'][:-1].tolist() == [TINY.convert_tokens_to_ids(c) for c in 'a<|end|><|pad|>'] and document['mask'][1:].all()
    assert why({'messages': chat('a', json.loads('"\\ud83d"'))}) == why({'messages': chat('a', '\ufdd0')}) == 'not valid unicode'
    assert one({'messages': chat('a', '<|end <|im_end|>')}).endswith('[[<|end <|im_end|><|end|>]]')


def test_marks_change_nothing_where_nothing_is_spelled_out():
    """One piece at a time gives the ids of the whole; a tokenizer for which it does not drops the row."""
    for tokenizer in (TINY, tokenizer_of(CHATML, ['<|im_start|>', '<|im_end|>'], ['of'], eos_token='<|im_end|>')):
        text = data.render(tokenizer, chat('what of it?', 'a \U0001f600 of\n', 'e\u0301'))
        made = data.Chat(tokenizer)
        assert made.encode_protected(text) == made.ids_of([text])[0] == tokenizer(text)['input_ids']
    # the letters of this one's control token merge to the very same id
    greedy = tokenizer_of(CHATML, ['<|im_start|>', '<|im_end|>', '<eats>'], ['<eats>'], eos_token='<|im_end|>')
    assert why({'messages': chat('a<eats>', 'b')}, greedy) == chat_module.SPELLED
    assert one({'messages': chat('a', 'b')}, greedy).endswith('[[b<|im_end|>]]\n')


def test_one_bos():
    with_bos = tokenizer_of(
        "{{ '<s>' }}" + CHATML,
        ['<s>', '<|im_start|>', '<|im_end|>', '</s>'],
        bos_token='<s>',
        eos_token='</s>',
    )
    from tokenizers.processors import TemplateProcessing

    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', 256)]
    )
    assert with_bos('a')['input_ids'][0] == 256
    assert (
        one({'messages': chat('a', 'b')}, with_bos)
        == '<s><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[[b<|im_end|>]]\n'
    )
    assert one({'text': 'ab'}, with_bos) == '<s>[[ab</s>]]'
    (prompt,), _ = rl_prompts([{'prompt': 'a', 'answer': '1', '_where': ''}], with_bos, 99, 'math')
    assert prompt['ids'].count(256) == 1


def test_truncation_invents_no_end():
    row = {'prompt': 'ab', 'completion': 'cdefgh'}  # 1 + 2 + 1 + 1 + 6 + 1 tokens
    whole = '<|user|>ab<|end|><|assistant|>[[cdefgh<|end|>]]'
    assert one(row, max_length=12) == one(row, max_length=12, overlong='cut') == whole
    assert why(row, max_length=11) == 'longer than max_length=11 tokens'
    assert one(row, max_length=11, overlong='cut') == '<|user|>ab<|end|><|assistant|>[[cdefgh]]'
    assert why(row, max_length=5, overlong='cut') == 'nothing left to train on'
    assert one({'text': 'abcdef'}, max_length=4, overlong='cut') == 'a[[bcd]]'


Q, A = {'role': 'user', 'content': 'Q'}, {'role': 'assistant', 'content': 'A'}


@pytest.mark.parametrize(
    'row',
    [
        {'messages': [Q, A], 'id': 1, 'source': 's', 'tools': None},
        {'messages': [{**Q, 'name': None}, {**A, 'tool_calls': None}]},
        {
            'messages': [
                {'role': 'user', 'content': [{'type': 'text', 'text': 'Q'}]},
                {**A, 'content': [{'type': 'text', 'text': 'A'}, {'type': 'text', 'text': ''}]},
            ]
        },
        {'prompt': 'Q', 'completion': 'A'},
        {'prompt': [Q], 'completion': [A]},
        {'conversations': [{'from': 'human', 'value': 'Q'}, {'from': 'gpt', 'value': 'A'}]},
        {'conversations': [Q, A], 'messages': None},
        {'instruction': 'Q', 'input': '', 'output': 'A', 'text': 'Below is'},
        {'instruction': 'Q', 'output': 'A'},
        {'instruction': 'Q', 'input': '', 'response': 'A'},
        {'prompt': 'Q', 'response': 'A'},
        {'INSTRUCTION': 'Q', 'RESPONSE': 'A'},
        {'prompt': 'Q', 'generation': 'A'},
        {'question': 'Q', 'answer': 'A'},
        {'query': 'Q', 'response': 'A'},
        {'problem': 'Q', 'solution': 'A', 'answer': '1', 'level': 'Level 2'},
        {'prompt': 'Q', 'answer': '1', 'demonstration': 'A', 'difficulty': 3, 'dataset': 'sums'},
        {'prompt': [Q], 'target': [A], 'data_source': '', 'reward_model': {'ground_truth': '1'}},
    ],
)
def test_every_shape(row):
    assert one(row) == '<|user|>Q<|end|><|assistant|>[[A<|end|>]]'


def test_shapes_with_more():
    assert one({'instruction': 'Q', 'input': 'I', 'output': 'A'}).startswith('<|user|>Q\n\nI<|end|>')
    for row in (
        {'system_prompt': 'S', 'question': 'Q', 'response': 'A'},
        {'system': 'S', 'conversations': [Q, A]},
        {'prompt': [{'role': 'system', 'content': 'S'}, Q], 'target': [A], 'system': 'other'},
    ):
        assert one(row) == '<|system|>S<|end|><|user|>Q<|end|><|assistant|>[[A<|end|>]]'
    # of prompt and completion only the completion is trained, also where the prompt holds replies
    assert one({'prompt': [Q, A, Q], 'completion': [A]}).count('[[') == 1
    assert one({'text': 'Aé'}) == 'A[[é<|end|>]]'


@pytest.mark.parametrize(
    'row',
    [
        {'messages': []},
        {'messages': [Q]},
        {'messages': [Q, {**A, 'content': ' '}]},
        {'messages': [A]},
        {'messages': [Q, {'role': 'narrator', 'content': 'A'}]},
        {'messages': [Q, {'role': 'assistant', 'content': None}]},
        {'messages': [Q, {'role': 'assistant'}]},
        {'messages': 3},
        {'messages': [Q, {**A, 'tool_calls': [{'name': 'f'}]}]},
        {'messages': ['Q', 'A']},
        {'prompt': 'Q', 'completion': None},
        {'messages': [Q, {'role': 'assistant', 'content': [{'type': 'image', 'url': 'u'}]}]},
        {'prompt': [Q], 'target': None},
        {'messages': [Q, A], 'tools': [{'name': 'f'}]},
        {'messages': [{'content': 'Q'}, A]},
        {'question': 'Q', 'answer': 4},
    ],
)
def test_rows_that_are_dropped(row):
    assert why(row)


def test_errors_of_rows():
    with pytest.raises(UserError, match=r'x:1.*foo.*messages.*instruction\+output'):
        one({'foo': 1})
    with pytest.raises(UserError, match='--chat_template'):
        one({'messages': [Q, A]}, chatml(template=None))
    assert one({'text': 'ab'}, chatml(template=None)) == 'a[[b<|endoftext|>]]'
    rows = [{'messages': [Q], '_where': f'f:{i}'} for i in (1, 2)] + [
        {'messages': chat('a', 'b\ud800'), '_where': 'f:3'}
    ]
    with pytest.raises(UserError, match=r'all 3 rows.*2 of them \(first f:1\).*no assistant turn'):
        sft_examples(rows, TINY, 100)
    with pytest.raises(UserError):
        sft_examples([], TINY, 100)


def test_report():
    rows = [{'text': 'x' * n, '_where': f'f:{n}'} for n in range(1, 101)] + [
        {'messages': [Q], '_where': f'g:{i}'} for i in (1, 2)
    ]
    examples, report = sft_examples(rows, TINY, 1000)
    assert {k: report[k] for k in ('rows', 'kept', 'tokens', 'supervised', 'p50', 'p90', 'p99', 'max')} == {
        'rows': 102,
        'kept': 100,
        'tokens': 5150,
        'supervised': 5050,
        'p50': 51,
        'p90': 91,
        'p99': 100,
        'max': 101,
    }
    assert list(report['dropped'].values()) == [[2, 'g:1']] and 'first g:1' in format_report(report)
    assert [len(e['ids']) for e in examples] == list(range(2, 102))


def test_gsm8k_counts():
    """Against an independent count: bytes of the texts, and of each answer plus its end."""
    raw = [json.loads(line) for line in open(GSM8K, encoding='utf-8')]
    examples, report = sft_examples(read_rows(GSM8K)[0], TINY, 10000)
    assert report['rows'] == report['kept'] == len(raw) == 40 and not report['dropped']
    assert report['supervised'] == sum(len(r['answer'].encode()) + 1 for r in raw)
    assert report['tokens'] == sum(len((r['question'] + r['answer']).encode()) + 4 for r in raw)
    for row, example in zip(raw, examples):
        assert TINY.decode(example['ids'][example['mask']]) == row['answer'] + '<|end|>'


# --- prompts -----------------------------------------------------------------------------------------------------
def prompt_of(row, kind='', **knobs):
    (prompt,), _ = rl_prompts([{**row, '_where': 'x:1'}], TINY, 1000, kind, **knobs)
    assert TINY.decode(prompt['ids']).endswith(f'<|user|>{prompt["text"]}<|end|><|assistant|>')
    assert isinstance(prompt['ids'], list) and prompt['where'] == 'x:1' and isinstance(prompt['truth'], str)
    return prompt


BOXED = r'so \boxed{\frac{1}{2}} is $x$'


@pytest.mark.parametrize(
    'row, kind, expected',
    [
        ({'messages': [Q], 'ground_truth': '7', 'dataset': 'gsm8k'}, '', ('7', 'gsm8k', None, None)),
        ({'messages': [Q, A], 'ground_truth': ['7'], 'dataset': ['MATH']}, '', ('7', 'math', None, None)),
        ({'prompt': 'Q', 'answer': 7}, 'math', ('7', 'math', None, None)),
        ({'prompt': [Q], 'solution': BOXED}, 'math', (r'\frac{1}{2}', 'math', None, None)),
        ({'prompt': 'Q', 'solution': 0}, 'math', ('0', 'math', None, None)),
        ({'prompt': 'Q', 'solution': '7'}, 'math', ('7', 'math', None, None)),
        ({'prompt': 'Q', 'ground_truth': '7', 'dataset': 'gsm8k'}, 'math', ('7', 'math', None, None)),
        (
            {
                'data_source': 'openai/gsm8k',
                'prompt': [Q],
                'reward_model': {'style': 'rule', 'ground_truth': '7'},
                'extra_info': {'split': 'train'},
            },
            '',
            ('7', 'gsm8k', None, None),
        ),
        (
            {'data_source': '', 'prompt': [Q], 'target': [A], 'reward_model': {'ground_truth': '7'}},
            'math',
            ('7', 'math', 'A', None),
        ),
        ({'question': 'Q', 'answer': 'A\n#### 1,234'}, '', ('1234', 'gsm8k', 'A\n#### 1,234', None)),
        (
            {'problem': 'Q', 'solution': BOXED, 'level': 'Level 2'},
            '',
            (r'\frac{1}{2}', 'math', BOXED, 'Level 2'),
        ),
        ({'problem': 'Q', 'solution': r'$\boxed 2$'}, '', ('2', 'math', r'$\boxed 2$', None)),
        ({'problem': 'Q', 'solution': BOXED, 'answer': '0.5', 'level': 2}, '', ('0.5', 'math', BOXED, 2)),
        ({'problem': 'Q', 'answer': 33}, '', ('33', 'math', None, None)),
        (
            {'prompt': 'Q', 'answer': '5', 'demonstration': '2 5 #### 5', 'difficulty': 2, 'dataset': 'sums'},
            '',
            ('5', 'sums', '2 5 #### 5', 2),
        ),
    ],
)
def test_every_prompt_shape(row, kind, expected):
    prompt = prompt_of(row, kind)
    assert (prompt['truth'], prompt['kind'], prompt['demonstration'], prompt['difficulty']) == expected
    assert TINY.decode(prompt['ids']) == '<|user|>Q<|end|><|assistant|>' and prompt['text'] == 'Q'


def test_instruction_and_system():
    prompt = prompt_of(
        {'messages': [{'role': 'system', 'content': 'S'}, Q, A, Q], 'ground_truth': '1'},
        'math',
        instruction='Box it.',
    )
    assert (
        TINY.decode(prompt['ids'])
        == ('<|system|>S<|end|><|user|>Q<|end|><|assistant|>A<|end|><|user|>Q\n\nBox it.<|end|><|assistant|>')
        and prompt['text'] == 'Q\n\nBox it.'
    )


@pytest.mark.parametrize(
    'row, kind, match',
    [
        ({'prompt': 'Q', 'answer': '7'}, '', 'x:1.*--verifier'),
        ({'prompt': 'Q', 'answer': '7', 'dataset': 'odd'}, '', 'odd.*--verifier'),
        ({'prompt': 'Q', 'answer': 'seven'}, 'gsm8k', "x:1.*'seven'"),
        ({'prompt': 'Q'}, 'math', 'x:1: no truth in the keys prompt:'),
        ({'problem': 'Q', 'solution': 'no box'}, '', 'x:1'),
        ({'prompt': 'Q', 'ground_truth': ['1', '2']}, 'math', 'x:1'),
        ({'prompt': 'Q', 'answer': '7'}, 'odd', 'x:1.*odd'),
        ({'answer': '7'}, 'math', 'x:1'),
        ({'messages': [A], 'answer': '7'}, 'math', 'user turn'),
    ],
)
def test_prompt_errors(row, kind, match):
    with pytest.raises(UserError, match=match):
        prompt_of(row, kind)


def test_prompts_dropped_and_counted():
    rows = [{'prompt': 'x' * n, 'answer': '1', 'dataset': 'math', '_where': f'f:{n}'} for n in (5, 8, 9)]
    rows += [{'prompt': '\ud800', 'answer': '1', 'dataset': 'math', '_where': 'f:0'}]
    prompts, report = rl_prompts(rows, TINY, 8)
    assert [p['where'] for p in prompts] == ['f:5'] and report['tokens'] == 8
    assert report['dropped'] == {
        'longer than max_prompt_tokens=8': [2, 'f:8'],
        'not valid unicode': [1, 'f:0'],
    }
    with pytest.raises(UserError, match='max_prompt_tokens'):
        rl_prompts(rows, TINY, 7)
    with pytest.raises(UserError, match='--chat_template'):
        rl_prompts(rows, chatml(template=None), 100)


def test_gsm8k_prompts():
    raw = [json.loads(line) for line in open(GSM8K_TEST, encoding='utf-8')]
    prompts, report = rl_prompts(read_rows(GSM8K_TEST)[0], TINY, 10000)
    assert report['kept'] == len(raw) == 20 and report['tokens'] == sum(
        len(r['question'].encode()) + 3 for r in raw
    )
    assert [p['truth'] for p in prompts] == [r['answer'].split('#### ')[1].replace(',', '') for r in raw]
    assert [p['demonstration'] for p in prompts] == [r['answer'] for r in raw]
    assert all('#' not in TINY.decode(p['ids']) for p in prompts)  # the answer is not in the prompt


def test_batches_keep_order():
    rows = read_rows('sums:train')[0][:2500]
    prompts, _ = rl_prompts(rows, TINY, 100)
    examples, _ = sft_examples(rows, TINY, 200)
    assert [p['text'] for p in prompts] == [r['prompt'] for r in rows]
    assert (
        [e['where'] for e in examples]
        == [r['_where'] for r in rows]
        == [f'sums:train:{i}' for i in range(1, 2501)]
    )


# --- packing, order ----------------------------------------------------------------------------------------------
def test_pack():
    rng = random.Random(0)
    for _ in range(50):
        lengths, budget = [rng.randrange(1, 120) for _ in range(rng.randrange(200))], 100
        bins = pack(lengths, budget)
        assert (
            sorted(i for b in bins for i in b) == list(range(len(lengths))) and pack(lengths, budget) == bins
        )
        assert all(b and (len(b) == 1 or sum(lengths[i] for i in b) <= budget) for b in bins)
        least = sum(n > 100 for n in lengths) + sum(n for n in lengths if n <= 100) / budget
        assert len(bins) <= least * 11 / 9 + 2  # best-fit decreasing's bound
    assert pack([], 10) == [] and pack([4, 6, 5, 5, 9, 30], 10) == [[5], [4], [1, 0], [2, 3]]
    assert pack([6, 3, 2], 10) == [[0, 1], [2]] and pack([7, 6, 3], 10) == [
        [0, 2],
        [1],
    ]  # into the fullest that fits


def test_split_by_work():
    assert split_by_work([5, 3, 3, 2, 1], 2) == [[0, 3], [1, 2, 4]] and split_by_work([7], 3) == [[0], [], []]
    lengths = [random.Random(1).randrange(1, 50) for _ in range(100)]
    parts = split_by_work(lengths, 8)
    assert sorted(i for p in parts for i in p) == list(range(100))
    loads = [sum(lengths[i] for i in p) for p in parts]
    assert max(loads) - min(loads) <= max(lengths)


def test_collate():
    micro = collate(
        [
            ([10, 11, 12], [False, True, True]),
            (np.array([20, 21], np.int32), np.array([True, True])),
            ([30, 31, 32, 33], [False, False, False, True]),
        ]
    )
    assert micro['ids'].tolist() == [10, 11, 12, 20, 21, 30, 31, 32, 33] and micro['lengths'] == [3, 2, 4]
    assert micro['index'].tolist() == [1, 2, 4, 8]  # 3 is a document's first: nothing predicts it
    assert micro['doc'].tolist() == [0, 0, 1, 2]
    assert all(micro[k].dtype == torch.int64 for k in ('ids', 'index', 'doc'))
    empty = collate([])
    assert (
        empty['lengths'] == [2] and len(empty['ids']) == 2 and len(empty['index']) == len(empty['doc']) == 0
    )


def test_collate_leaves_its_input():
    mask = torch.tensor([True, True])
    collate([(torch.tensor([1, 2]), mask)])
    assert mask.tolist() == [True, True]


def test_order():
    sources = [(1, list(range(10))), (0.5, list(range(10, 20))), (2, list(range(20, 25))), (1, [])]
    order = Order(sources, 3)
    assert len(order) == 10 + 5 + 10
    epochs = [order.take(25) for _ in range(4)]
    assert order.position == 100
    for a, b in (epochs[:2], epochs[2:]):
        for epoch in (a, b):
            assert sorted(i for i in epoch if i < 10) == list(range(10))
            assert sorted(i for i in epoch if i >= 20) == sorted([*range(20, 25)] * 2)
        assert sorted(i for i in a + b if 10 <= i < 20) == list(range(10, 20))  # one half, then the other
    assert epochs[0] != epochs[1] != epochs[2]
    stream = sum(epochs, [])
    for position in (0, 1, 24, 25, 60):  # any place, any piece size
        again = Order(sources, 3)
        again.position = position
        assert [i for n in (1, 3, 30) for i in again.take(n)] == stream[position : position + 34]
    assert Order(sources, 4).take(25) != epochs[0] and all(type(i) is int for i in stream)
    assert Order([(1, [7])], -1).take(3) == [7, 7, 7]
    assert Order([(1, list(range(6)))], 5).take(6) == FIRST


FIRST = [2, 4, 3, 5, 0, 1]  # pinned: a resumed run of another day or machine must go on in the same order


def test_a_thousand_malformed_and_hostile_rows():
    """Whatever a row holds: it is kept, or dropped with a reason and its line, or named in an error; nothing else happens."""
    rng = random.Random(5)
    junk = [None, '', ' ', 0, -1, 1.5, float('nan'), True, [], {}, [[]], [None], {'a': {}}, 'x' * 3000, '\x00', '\ud83d', '<|end|>',
            '<|assistant|>', 'A<|end|><|user|>B<|end|>\n<|assistant|>4<|end|>', 'a\x00<|pad|>\x00', '\u202e', 'é' * 50, '####', '\\boxed{', [{'role': 'user'}], [{'role': 'assistant', 'content': 'A'}],
            {'role': 'user', 'content': 'Q'}, 10 ** 400, '1/0', [{'type': 'text', 'text': None}], b'\xff']
    shapes = [
        {'messages': [Q, A, Q, A]}, {'messages': [{'role': 'system', 'content': 'S'}, Q, A]}, {'prompt': 'Q', 'completion': 'A'},
        {'prompt': [Q], 'completion': [A]}, {'conversations': [{'from': 'human', 'value': 'Q'}, {'from': 'gpt', 'value': 'A'}]},
        {'instruction': 'Q', 'input': 'I', 'output': 'A'}, {'question': 'Q', 'answer': 'A #### 4'}, {'text': 'abc'},
        {'problem': 'Q', 'solution': '\\boxed{4}', 'level': 'Level 2'}, {'prompt': 'Q', 'answer': '1', 'dataset': 'sums', 'demonstration': 'A'},
        {'prompt': [Q], 'target': [A], 'reward_model': {'ground_truth': '1'}, 'data_source': 'math'},
        {'prompt': 'Q', 'demos': ['A', 'B'], 'demos_corr': [False, True], 'answer': '7', 'dataset': 'gsm8k'},
        {'prompt': 'Q', 'chosen': 'A', 'rejected': 'B'}, {'chosen': [Q, A], 'rejected': [Q, {**A, 'content': 'B'}]}]

    def mutate(value, depth=0):
        if rng.random() < 0.25 * depth or not value or not isinstance(value, (dict, list)):
            return rng.choice(junk)
        value = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if rng.random() < 0.15:
            del value[key]
        else:
            value[key] = mutate(value[key], depth + 1)
        return value
    good = {'messages': [Q, A], 'prompt': 'Q', 'completion': 'A', 'chosen': 'A', 'rejected': 'B', 'answer': '4', 'dataset': 'sums'}
    readers = [lambda rows: sft_examples(rows, TINY, 1000), lambda rows: rl_prompts(rows, TINY, 1000),
               lambda rows: preference_pairs(rows, TINY, 1000)]
    control = {*TINY.convert_tokens_to_ids(data.SPECIALS)}

    def unspelled(value):
        """The same without special tokens: a letter in their midst is another."""
        if isinstance(value, (dict, list)):
            return {k: unspelled(v) for k, v in value.items()} if isinstance(value, dict) else [*map(unspelled, value)]
        return value.replace('|>', '!>') if isinstance(value, str) else value
    outcomes, spelled = [[0, 0, 0] for _ in readers], 0
    for i in range(1000):
        row = rng.choice(shapes)
        for _ in range(rng.randint(1, 3)):
            row = mutate(row)
            row = row if isinstance(row, dict) else {'messages': row}
        both = [{**good, 'id': 'x', '_where': 'good:1'}, {**row, 'id': 'x', '_where': f'bad:{i}'}]  # ids say nothing
        for count, reader in zip(outcomes, readers):
            try:
                kept, report = reader(both)
            except UserError as error:
                assert f'bad:{i}' in str(error), row
                count[2] += 1
                continue
            dropped = report['dropped']
            assert len(kept) + sum(n for n, _ in dropped.values()) == 2, row
            assert all(reason and where == f'bad:{i}' for reason, (_, where) in dropped.items()), row
            count[len(kept) == 1] += 1
            if len(kept) == 2:  # what is control is the template's, whatever the text says
                plain, _ = reader(unspelled(both))
                assert [[x for x in [*row['ids']] if x in control] for row in kept] == [
                    [x for x in [*row['ids']] if x in control] for row in plain], row
                spelled += bool(report['spelled'])
    assert all(min(count) > 10 for count in outcomes) and spelled > 30, (outcomes, spelled)


def test_a_million_tokens_in_a_row():
    """Dropped and counted, or cut; nothing else of the file suffers."""
    rows = [{'text': 'x' * 10 ** 6, '_where': 'x:1'}, {'text': 'abc', '_where': 'x:2'}]
    kept, report = sft_examples(rows, TINY, 100)
    assert [len(x['ids']) for x in kept] == [4] and report['dropped'] == {'longer than max_length=100 tokens': [1, 'x:1']}
    kept, _ = sft_examples(rows, TINY, 100, 'cut')
    assert [len(x['ids']) for x in kept] == [100, 4] and TINY.eos_token_id not in kept[0]['ids']
    question = {'prompt': 'Q', 'completion': 'y' * 10 ** 6, '_where': 'x:3'}
    assert sft_examples([*rows, question], TINY, 100)[1]['dropped']['longer than max_length=100 tokens'] == [2, 'x:1']
