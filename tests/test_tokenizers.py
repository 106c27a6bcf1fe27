"""data.py on the chat templates of real models, with small tokenizers that are made in memory.

White space that merges across borders, turn tokens that take it, control tokens that are not "special",
thoughts, channels, system messages. The templates are the originals that TRL ships.
`make real-tokenizers` runs real vocabularies: docs/tokenizers.md.
"""
import datetime
import importlib.util
import os
import re

import pytest
import transformers.utils.chat_template_utils as chat_template_utils
from conftest import ROOT
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

import data
from configurator import UserError
from data import format_report, load_tokenizer, preference_pairs, rl_prompts, sft_examples, stop_ids

TRL = importlib.util.find_spec('trl')
needs_trl = pytest.mark.skipif(TRL is None, reason='its chat templates are needed')
SYMBOL = {' ': 'Ġ', '\n': 'Ċ', '\t': 'ĉ'}  # of the byte-level alphabet


# --- tokenizers ----------------------------------------------------------------

def original(name):
    """A family's original chat template."""
    folder = os.path.dirname(pytest.importorskip('trl').__file__)
    with open(f'{folder}/chat_templates/{name}.jinja', encoding='utf-8') as f:
        return f.read()


def byte_level(template, tokens, eos, merged=(), **names):
    """A byte-level tokenizer.

    tokens: what is added, a text (special) or an AddedToken. merged: texts that are one token wherever
    they stand, across the template's borders, too.
    """
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for text in merged:
        text = ''.join(SYMBOL.get(character, character) for character in text)
        for i in range(2, len(text) + 1):
            if text[:i] not in vocabulary:
                vocabulary[text[:i]] = len(vocabulary)
                merges.append((text[:i - 1], text[i - 1]))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return with_tokens(core, template, tokens, eos, **names)


def with_tokens(core, template, tokens, eos, **names):
    for token in tokens:
        if isinstance(token, str):
            token = AddedToken(token, special=True, normalized=False)
        (core.add_special_tokens if token.special else core.add_tokens)([token])
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, eos_token=eos,
                                   clean_up_tokenization_spaces=False, **names)


def plain_token(text):
    """An added token that is not special, as DeepSeek's marks of turns are."""
    return AddedToken(text, special=False, normalized=False)


def sentencepiece(template, tokens, eos, scheme, merged=(), **names):
    """As Llama 2's and Mistral's: white space is ▁, one is put before the text; bytes for unknown letters."""
    pieces = ['<unk>', *(f'<0x{i:02X}>' for i in range(256)), '▁']
    pieces += [chr(i) for i in range(33, 127)]
    merges = []
    for text in merged:
        for i in range(2, len(text) + 1):
            if text[:i] not in pieces:
                pieces.append(text[:i])
                merges.append((text[:i - 1], text[i - 1]))
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges,
                                unk_token='<unk>', byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(' ', 1, 0)])
    return with_tokens(core, template, tokens, eos, **names)


CHATML_TOKENS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
NEWLINES = ['\n\n', '\n\n\n', '\n   ', '\n  \n']  # tokens that straddle 'assistant\n' and a reply


def qwen(template, merged=NEWLINES, tokens=()):
    thinking = [plain_token('<think>'), plain_token('</think>')]
    return byte_level(template, [*CHATML_TOKENS, *thinking, *tokens], '<|im_end|>', merged)


def thinking_2507():
    """Qwen3-Thinking-2507: Qwen3's template, the generation prompt opening the thoughts."""
    opening = "{{- '<|im_start|>assistant\\n' }}"
    template = original('qwen3')
    assert template.count(opening) == 1
    return qwen(template.replace(opening, "{{- '<|im_start|>assistant\\n<think>\\n' }}"))


def phi3(template):
    turn = [AddedToken(f'<|{name}|>', special=True, normalized=False, rstrip=True)
            for name in ('system', 'user', 'assistant', 'end')]
    return byte_level(template, ['<|endoftext|>', *turn], '<|endoftext|>')


PHI4 = ("{% for m in messages %}"
        "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}")


def phi4():
    turn = [AddedToken(f'<|im_{name}|>', special=True, normalized=False, lstrip=True, rstrip=True)
            for name in ('start', 'sep', 'end')]
    return byte_level(PHI4, turn, '<|im_end|>')


DEEPSEEK_TOKENS = ['<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', plain_token('<｜User｜>'),
                   plain_token('<｜Assistant｜>'), plain_token('<think>'), plain_token('</think>')]
# as DeepSeek-V3's: no thoughts; the system message right behind the first token
DEEPSEEK = ("{{ bos_token }}{% for m in messages %}"
            "{% if m.role == 'system' %}{{ m.content }}"
            "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
            "{% else %}{{ '<｜Assistant｜>' + m.content + eos_token }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}")


def deepseek(template):
    names = {'bos_token': '<｜begin▁of▁sentence｜>'}
    return byte_level(template, DEEPSEEK_TOKENS, '<｜end▁of▁sentence｜>', **names)


# as Mistral 7B v0.3's and Nemo's: a system message is written into the last user turn, if that is the end
MISTRAL = """{%- if messages[0].role == 'system' %}
    {%- set system_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for m in loop_messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if m.role == 'user' and loop.last and system_message is defined %}
        {{- '[INST]' + system_message + '\n\n' + m.content + '[/INST]' }}
    {%- elif m.role == 'user' %}{{- '[INST]' + m.content + '[/INST]' }}
    {%- else %}{{- m.content + eos_token }}{%- endif %}
{%- endfor %}"""


def mistral():
    return byte_level(MISTRAL, ['<s>', '</s>', '[INST]', '[/INST]'], '</s>', bos_token='<s>')


# --- what is looked at ---------------------------------------------------------

def chat(*contents, system=None):
    messages = []
    if system is not None:
        messages.append({'role': 'system', 'content': system})
    for i, content in enumerate(contents):
        role = 'user' if i % 2 == 0 else 'assistant'
        messages.append({'role': role, 'content': content})
    return messages


def sft(tokenizer, messages):
    """(examples of this row, 0 or 1; report). With another row, so that a drop is no error."""
    rows = [{'messages': messages, '_where': 'x:1'}, {'text': 'other', '_where': 'x:2'}]
    kept, report = sft_examples(rows, tokenizer, 10000)
    return [example for example in kept if example['where'] == 'x:1'], report


def prompt_of(tokenizer, messages):
    row = {'messages': messages, 'answer': '1', 'dataset': 'math', '_where': 'x:1'}
    (prompt,), _ = rl_prompts([row], tokenizer, 10000)
    return prompt['ids']


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def trained_text(tokenizer, example):
    """What the last trained stretch says, as it stands in the row."""
    ids, mask = example['ids'].tolist(), example['mask'].tolist()
    last = max(i for i, on in enumerate(mask) if on) + 1
    first = max((i + 1 for i in range(last) if not mask[i]), default=0)
    before = decode(tokenizer, ids[:first])
    whole = decode(tokenizer, ids[:last])
    assert whole.startswith(before)
    return whole[len(before):]


def check(tokenizer, messages, said):
    """The row is kept and begins with its RL prompt; trained is `said`, and the prompt is not."""
    (example,), report = sft(tokenizer, messages)
    assert not report['dropped']
    prompt = prompt_of(tokenizer, messages[:-1])
    n = len(prompt)
    assert example['ids'].tolist()[:n] == prompt and example['mask'][n] and not example['mask'][n - 1]
    assert trained_text(tokenizer, example) == said
    return example


def as_transformers(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


def untrained(report):
    """[count, first place] of the turns that the report says are not trained; None if none."""
    return next((count for note, count in report['notes'].items() if 'not trained' in note), None)


def reason(tokenizer, messages):
    """Why the row is dropped."""
    examples, report = sft(tokenizer, messages)
    assert not examples
    ((why, (count, where)),) = report['dropped'].items()
    assert (count, where) == (1, 'x:1')
    return why


SPACED = ['\n\nhello', '\nhello', '    return 1\n', '  \n hello', '\thello', ' hello', '\n hello \n\n',
          'hello  ']
HUMANEVAL = '    for i in x:\n        yield i\n'


# --- T1, T2: text that merges across the border of prompt and reply --------------

@needs_trl
@pytest.mark.parametrize('text', [*SPACED, HUMANEVAL])
def test_white_space_at_the_border_is_the_replys(text):
    """'assistant\\n' and '\\n\\nhello' share a token, which no prompt can hold: they are tokenised apart."""
    tokenizer = qwen(original('qwen2_5'))
    messages = chat('Hi', text)
    example = check(tokenizer, messages, text + '<|im_end|>')
    # where nothing merges, the tokens are those of the whole
    whole, prompt = as_transformers(tokenizer, messages), prompt_of(tokenizer, messages[:-1])
    merges = whole[:len(prompt)] != prompt
    assert merges == (text[0] in ' \n')
    assert merges or example['ids'].tolist() == whole


@needs_trl
def test_white_space_at_the_border_in_every_turn():
    tokenizer = qwen(original('qwen2_5'))
    example = check(tokenizer, chat('Hi', '\n\none', '\n\nand', HUMANEVAL), HUMANEVAL + '<|im_end|>')
    text = data.show_mask(example, tokenizer)
    assert text.count('[[') == 2 and 'assistant\n[[\n\none<|im_end|>]]' in text and 'user\n\n\nand' in text


def test_the_border_of_prompt_and_completion_in_preference_rows():
    tokenizer = qwen("{% for m in messages %}"
                     "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
                     "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    row = {'prompt': 'Hi', 'chosen': '\n\nhello', 'rejected': 'bye', '_where': 'x:1'}
    (pair,), _ = preference_pairs([row], tokenizer, 1000)
    prompt = prompt_of(tokenizer, chat('Hi'))
    for (ids, mask, before), said in zip(pair['docs'], ('\n\nhello<|im_end|>', 'bye<|im_end|>')):
        assert list(before) == prompt
        assert decode(tokenizer, [i for i, on in zip(ids, mask) if on]) == said


@pytest.mark.parametrize('text', [*SPACED, HUMANEVAL])
def test_the_header_of_tulu3_is_text(text):
    """'|>\\n' is a token of its own, and with a further newline another one."""
    with open(os.path.join(ROOT, 'config/tulu3.jinja')) as f:
        tokenizer = byte_level(f.read(), ['<|end_of_text|>'], '<|end_of_text|>', ['>\n', '>\n\n\n', '>\n   '])
    check(tokenizer, chat('Hi', text), text + '<|end_of_text|>')


def test_letters_that_merge_across_the_border():
    """Not only white space: Mistral 7B v0.1 has a token ']<'."""
    template = MISTRAL.replace("'[/INST]'", "' [/INST]'")
    tokenizer = byte_level(template, ['<s>', '</s>'], '</s>', [']<'], bos_token='<s>')
    messages = chat('Hi', '<think>\nx\n</think>\n\ny')
    prompt = prompt_of(tokenizer, messages[:1])
    assert as_transformers(tokenizer, messages)[:len(prompt)] != prompt
    check(tokenizer, messages, messages[-1]['content'] + '</s>')


# --- T3: turn tokens that swallow white space ------------------------------------

@needs_trl
@pytest.mark.parametrize('name', ['phi3', 'phi3_5'])
@pytest.mark.parametrize('text', [*SPACED, HUMANEVAL])
def test_turn_tokens_with_rstrip(name, text):
    """What a turn token swallows is no reason to drop a row: the model never sees it."""
    tokenizer = phi3(original(name))
    messages = chat('Hi', text, system='Be kind.')
    example = check(tokenizer, messages, text.lstrip() + '<|end|>')
    assert as_transformers(tokenizer, messages)[:len(example['ids'])] == example['ids'].tolist()


@pytest.mark.parametrize('text', SPACED)
def test_turn_tokens_with_lstrip_and_rstrip(text):
    tokenizer = phi4()
    messages = chat('Hi', text)
    example = check(tokenizer, messages, text.strip() + '<|im_end|>')
    assert as_transformers(tokenizer, messages) == example['ids'].tolist()


# --- T4, T5: the generation prompt opens the thoughts ----------------------------

def thinkers():
    return {'R1-Distill': deepseek(original('deepseek_r1_distill')), 'Qwen3-Thinking-2507': thinking_2507(),
            'Qwen3.5': qwen(original('qwen3_5_think'))}


@needs_trl
@pytest.mark.parametrize('model', ['R1-Distill', 'Qwen3-Thinking-2507', 'Qwen3.5'])
def test_a_thinking_model_needs_thoughts(model):
    why = reason(thinkers()[model], chat('Hi', 'Hello.'))
    assert 'thoughts' in why and '--chat_template' in why


@needs_trl
@pytest.mark.parametrize('model', ['Qwen3-Thinking-2507', 'Qwen3.5'])
@pytest.mark.parametrize('apart', [False, True])
def test_thoughts_are_trained_behind_the_mark_that_the_prompt_opens(model, apart):
    """In the content, or in reasoning_content."""
    tokenizer = thinkers()[model]
    messages = chat('Hi', '<think>\nA greeting.\n</think>\n\nHello.')
    if apart:
        messages[-1] = {'role': 'assistant', 'content': 'Hello.', 'reasoning_content': 'A greeting.'}
    example = check(tokenizer, messages, 'A greeting.\n</think>\n\nHello.<|im_end|>')
    assert example['ids'].tolist() == as_transformers(tokenizer, messages)[:len(example['ids'])]


@needs_trl
def test_a_template_that_cuts_thoughts():
    """R1's original: the thought is trained behind the prompt, or the reason says what to do."""
    tokenizer = deepseek(original('deepseek_r1_distill'))
    messages = chat('Hi', '<think>\nA greeting.\n</think>\n\nHello.')
    examples, report = sft(tokenizer, messages)
    if examples:
        check(tokenizer, messages, 'A greeting.\n</think>\n\nHello.<｜end▁of▁sentence｜>')
    else:
        assert '--chat_template' in next(iter(report['dropped']))


@needs_trl
@pytest.mark.parametrize('name', ['qwen3_8', 'qwen3_5_think', 'qwen3_6', 'qwen3'])
def test_one_block_of_thoughts(name):
    """Both spellings of a row are one row.

    Qwen3.8's template reads reasoning_content alone: thoughts in the content would get an empty block
    before them.
    """
    tokenizer = qwen(original(name))
    inside = chat('Hi', '<think>\nA greeting.\n</think>\n\nHello.')
    apart = [inside[0], {'role': 'assistant', 'content': 'Hello.', 'reasoning_content': 'A greeting.'}]
    rendered = []
    for messages in (inside, apart):
        examples, report = sft(tokenizer, messages)
        if not examples:
            assert 'thoughts' in next(iter(report['dropped']))
            continue
        said = trained_text(tokenizer, examples[0])
        assert said.count('</think>') == 1 and said.endswith('A greeting.\n</think>\n\nHello.<|im_end|>')
        rendered.append(examples[0]['ids'].tolist())
    assert len(rendered) == 2 and rendered[0] == rendered[1]


# --- T6: the system message goes to the last user turn ---------------------------

@pytest.mark.parametrize('system', ['Be kind.', '', ' '])
def test_a_system_message_that_the_template_puts_last(system):
    tokenizer = mistral()
    example = check(tokenizer, chat('Hi', 'Hello.', system=system), 'Hello.</s>')
    text = decode(tokenizer, example['ids'])
    assert text in (f'<s>[INST]{system}\n\nHi[/INST]Hello.</s>', '<s>[INST]Hi[/INST]Hello.</s>')
    assert not system.strip() or system in text


def test_of_several_turns_what_can_be_trained_is():
    """The first reply's prompt held the system message; the whole row's does not, there."""
    tokenizer = mistral()
    messages = chat('Hi', 'Hello.', 'And?', 'Bye.', system='Be kind.')
    example = check(tokenizer, messages, 'Bye.</s>')
    text = decode(tokenizer, example['ids'])
    assert text == '<s>[INST]Hi[/INST]Hello.</s>[INST]Be kind.\n\nAnd?[/INST]Bye.</s>'
    _, report = sft(tokenizer, messages)
    assert untrained(report) == [1, 'x:1']


@needs_trl
def test_a_template_without_a_system_role():
    tokens = ['<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>']
    tokenizer = byte_level(original('gemma'), tokens, '<eos>', bos_token='<bos>')
    assert 'refuses' in reason(tokenizer, chat('Hi', 'Hello.', system='Be kind.'))


# --- T7: control tokens that are not special -------------------------------------

@pytest.mark.parametrize('asked, said', [
    ('Say <｜User｜> or <｜Assistant｜>', 'no'), ('x', 'I say <｜User｜>.'),
    ('<｜Assistant｜>', '<｜User｜><｜Assistant｜>'), ('<｜end▁of▁sentence｜>', '<｜Assistant｜>')])
def test_marks_of_turns_that_are_not_special_are_text_where_somebody_types_them(asked, said):
    tokenizer = deepseek(DEEPSEEK)
    control = {tokenizer.convert_tokens_to_ids(str(token)) for token in DEEPSEEK_TOKENS}
    example = check(tokenizer, chat(asked, said), said + '<｜end▁of▁sentence｜>')
    (plain,), _ = sft(tokenizer, chat('x', 'y'))
    assert [i for i in example['ids'] if i in control] == [i for i in plain['ids'] if i in control]
    _, report = sft(tokenizer, chat(asked, said))
    assert report['spelled']
    prompt = prompt_of(tokenizer, chat(asked))
    assert [i for i in prompt if i in control] == [i for i in prompt_of(tokenizer, chat('x')) if i in control]


def test_added_tokens_that_are_only_words_stay_tokens():
    """Gemma's newlines and HTML marks are added tokens, too; the template writes newlines.

    They are not control: nobody types them as such.
    """
    words = [plain_token('\n'), plain_token('\n\n'), plain_token('<table>'), plain_token('  ')]
    template = ("{{ bos_token }}{% for m in messages %}"
                "{{ '<start_of_turn>' + m.role + '\n' + m.content + '<end_of_turn>\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}")
    tokens = ['<bos>', '<start_of_turn>', '<end_of_turn>', *words]
    tokenizer = byte_level(template, tokens, '<end_of_turn>', bos_token='<bos>')
    messages = chat('a\n\nb  c\n<table>', 'd\ne\n\nf <table>')
    example = check(tokenizer, messages, messages[-1]['content'] + '<end_of_turn>')
    assert example['ids'].tolist() == as_transformers(tokenizer, messages)
    _, report = sft(tokenizer, messages)
    assert not report['spelled']


@needs_trl
def test_marks_of_thoughts_are_the_models_tokens():
    """<think> in a reply is what the model will say, one token; it is not taken for text."""
    tokenizer = qwen(original('qwen3'))
    messages = chat('Hi', '<think>\nA greeting.\n</think>\n\nHello.')
    example = check(tokenizer, messages, '<think>\nA greeting.\n</think>\n\nHello.<|im_end|>')
    marks = tokenizer.convert_tokens_to_ids(['<think>', '</think>'])
    assert [i for i in example['ids'] if i in marks] == marks
    assert example['ids'].tolist() == as_transformers(tokenizer, messages)


# --- T8: channels ------------------------------------------------------------------

@needs_trl
def test_gpt_oss_answers_in_a_channel():
    """Kept, the channel trained with the answer; or the reason says what to do."""
    tokenizer = byte_level(original('gptoss'), [
        '<|startoftext|>', '<|endoftext|>', '<|return|>', '<|constrain|>', '<|channel|>', '<|start|>',
        '<|end|>', '<|message|>', '<|call|>'], '<|return|>')
    messages = chat('Hi', 'Hello.')
    examples, report = sft(tokenizer, messages)
    if examples:
        example = check(tokenizer, messages, '<|channel|>final<|message|>Hello.<|return|>')
        assert example['ids'].tolist() == as_transformers_on(tokenizer, messages)
    else:
        assert '--chat_template' in next(iter(report['dropped']))


def as_transformers_on(tokenizer, messages):
    """With the date that data.py tells templates."""
    return tokenizer(data.render(tokenizer, messages), add_special_tokens=False)['input_ids']


# --- T9: system messages in columns --------------------------------------------------

@pytest.mark.parametrize('column', ['system', 'system_prompt'])
def test_a_system_column_is_read_by_every_script(column):
    tokenizer = deepseek(DEEPSEEK)
    expected = prompt_of(tokenizer, chat('Hi', system='Be kind.'))
    assert 'Be kind.' in decode(tokenizer, expected)
    row = {column: 'Be kind.', '_where': 'x:1'}
    for asked in ({'question': 'Hi'}, {'problem': 'Hi'}, {'prompt': 'Hi'}, {'messages': chat('Hi')}):
        rl_row = {**row, **asked, 'answer': '1', 'dataset': 'math'}
        (prompt,), _ = rl_prompts([rl_row], tokenizer, 1000)
        assert prompt['ids'] == expected and prompt['text'] == 'Hi'
    (example,), _ = sft_examples([{**row, 'prompt': 'Hi', 'completion': 'Hello.'}], tokenizer, 1000)
    assert example['ids'].tolist()[:len(expected)] == expected
    sides = {**row, 'prompt': 'Hi', 'chosen': 'Hello.', 'rejected': 'Bye.'}
    (pair,), _ = preference_pairs([sides], tokenizer, 1000)
    assert all(list(prompt) == expected for _, _, prompt in pair['docs'])


def test_a_system_message_of_the_row_wins_over_the_column():
    tokenizer = deepseek(DEEPSEEK)
    row = {'messages': chat('Hi', system='Be kind.'), 'system': 'Be rude.', 'answer': '1',
           'dataset': 'math', '_where': 'x:1'}
    (prompt,), _ = rl_prompts([row], tokenizer, 1000)
    assert prompt['ids'] == prompt_of(tokenizer, chat('Hi', system='Be kind.'))


# --- T10: turns that stay untrained ------------------------------------------------

@needs_trl
def test_turns_that_stay_untrained_are_counted():
    """Qwen3 cuts the thoughts of earlier turns: what is left of them is not what the model would say."""
    tokenizer = qwen(original('qwen3'))
    thoughts = ['<think>\nA greeting.\n</think>\n\nHello.', '<think>\nMore.\n</think>\n\nBye.']
    messages = chat('Hi', thoughts[0], 'And?', thoughts[1])
    rows = [{'messages': chat('Hi', 'Hello.'), '_where': 'x:1'}, {'messages': messages, '_where': 'x:2'},
            {'messages': messages, '_where': 'x:3'}]
    kept, report = sft_examples(rows, tokenizer, 10000)
    assert len(kept) == 3 and untrained(report) == [2, 'x:2']
    line = next(line for line in format_report(report).splitlines() if 'x:2' in line)
    assert re.search(r'\b2\b', line) and 'train' in line
    _, report = sft_examples(rows[:1], tokenizer, 10000)
    assert untrained(report) is None and 'x:' not in format_report(report)


# --- T11: tokenizers that put white space before a text --------------------------------

def mistral_spm(scheme):
    tokens = ['<s>', '</s>', '[INST]', '[/INST]']
    return sentencepiece(MISTRAL, tokens, '</s>', scheme, ['▁▁'], bos_token='<s>')


@pytest.mark.parametrize('scheme', ['first', 'always', 'never'])
@pytest.mark.parametrize('asked, said', [('Say </s> now', 'no'), ('x', 'I say </s>.'), ('</s>', '<s>'),
                                         ('<s></s>', '</s> </s>')])
def test_spelled_tokens_where_white_space_is_put_before_a_text(scheme, asked, said):
    """Kept with the right tokens, or dropped with the reason; never control."""
    tokenizer = mistral_spm(scheme)
    examples, report = sft(tokenizer, chat(asked, said))
    if not examples:
        assert 'special token' in next(iter(report['dropped']))
        return
    control = set(tokenizer.convert_tokens_to_ids(['<s>', '</s>', '[INST]', '[/INST]']))
    (plain,), _ = sft(tokenizer, chat('x', 'y'))
    ids = examples[0]['ids'].tolist()
    assert [i for i in ids if i in control] == [i for i in plain['ids'] if i in control]
    # white space before a piece is the tokenizer's; no other is put there
    assert bare(decode(tokenizer, ids)) == bare(f'<s>[INST]{asked}[/INST]{said}</s>')
    prompt = prompt_of(tokenizer, chat(asked))
    assert ids[:len(prompt)] == prompt


def bare(text):
    return ''.join(text.split())


@pytest.mark.parametrize('scheme', ['first', 'always', 'never'])
@pytest.mark.parametrize('text', ['Hello.', ' Hello.', '    return 1', '\n\nhello', 'é 你好', 'a  b '])
def test_sentencepiece_tokens_are_those_of_transformers(scheme, text):
    tokenizer = mistral_spm(scheme)
    messages = chat(f'Say {text}', text)
    (example,), report = sft(tokenizer, messages)
    assert not report['dropped']
    assert example['ids'].tolist() == as_transformers(tokenizer, messages)
    prompt = prompt_of(tokenizer, messages[:1])
    assert example['mask'].tolist() == [i >= len(prompt) for i in range(len(example['ids']))]


# --- T12: a folder of Mistral's own format ---------------------------------------------

def test_a_folder_with_only_tekken_json(tmp_path):
    (tmp_path / 'tekken.json').write_text('{"config": {}, "vocab": [], "special_tokens": []}')
    with pytest.raises(UserError):
        used(load_tokenizer(str(tmp_path)))
    config = '{"model_type": "mistral", "architectures": ["MistralForCausalLM"]}'
    (tmp_path / 'config.json').write_text(config)
    with pytest.raises(UserError):
        used(load_tokenizer(str(tmp_path)))


class MistralCommon:
    """What transformers loads from such a folder with the package mistral-common: another interface."""
    is_fast = False
    chat_template = None
    eos_token_id = 2

    def added_tokens_decoder(self):
        return {}

    def get_chat_template(self):
        raise ValueError('no template')

    def __call__(self, text, **settings):
        raise ValueError(f'not supported: {settings}')


def test_a_tokenizer_of_mistral_common(monkeypatch, tmp_path):
    monkeypatch.setattr(AutoTokenizer, 'from_pretrained', lambda *args, **settings: MistralCommon())
    with pytest.raises(UserError):
        used(load_tokenizer(str(tmp_path)))


def used(tokenizer):
    stop_ids(tokenizer)
    sft(tokenizer, chat('Hi', 'Hello.'))


# --- T13: half a block of thoughts, two replies in a row -----------------------------

@needs_trl
def test_thoughts_without_their_opening_mark():
    """A trace as a model wrote it whose prompt opened the block: the thought is trained, not cut."""
    tokenizer = qwen(original('qwen3'))
    messages = chat('Hi', 'A greeting.\n</think>\n\nHello.')
    examples, report = sft(tokenizer, messages)
    if examples:
        check(tokenizer, messages, '<think>\nA greeting.\n</think>\n\nHello.<|im_end|>')
    else:
        assert '<think>' in next(iter(report['dropped']))


@needs_trl
@pytest.mark.parametrize('name', ['llama3_1', 'qwen2_5', 'qwen3', 'phi3_5'])
def test_two_replies_in_a_row(name):
    turn = ['<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>']
    if name == 'llama3_1':
        tokenizer = byte_level(original(name), turn, '<|eot_id|>', bos_token=turn[0])
    elif name == 'phi3_5':
        tokenizer = phi3(original(name))
    else:
        tokenizer = qwen(original(name))
    messages = [*chat('Hi', 'One.'), {'role': 'assistant', 'content': 'Two.'}]
    (example,), report = sft(tokenizer, messages)
    assert not report['dropped']
    said = trained_text(tokenizer, example)
    assert re.search(r'^(<think>\n\n</think>\n\n)?Two\.<\|(eot_id|im_end|end)\|>$', said)


# --- what else depends on templates ----------------------------------------------------

def test_stop_ids_hold_those_of_the_models_generation_config(tmp_path):
    tokenizer = deepseek(DEEPSEEK)
    end = tokenizer.eos_token_id
    assert stop_ids(tokenizer, str(tmp_path)) == stop_ids(tokenizer) == [end]  # it has none
    for named, ids in (([7, 5], [5, 7]), (9, [9])):
        GenerationConfig(eos_token_id=named).save_pretrained(tmp_path)
        assert stop_ids(tokenizer, str(tmp_path)) == sorted([*ids, end])


class Clock(datetime.datetime):
    today = 1

    @classmethod
    def now(cls, tz=None):
        return cls(2025, 3, cls.today, cls.today, cls.today)


@needs_trl
@pytest.mark.parametrize('name', ['llama3_2', 'gptoss'])
def test_tokens_do_not_depend_on_the_day(monkeypatch, name):
    monkeypatch.setattr(chat_template_utils, 'datetime', Clock)
    tokens = ['<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>', '<|start|>',
              '<|message|>', '<|end|>', '<|return|>', '<|channel|>']
    tokenizer = byte_level(original(name), tokens, '<|eot_id|>' if name == 'llama3_2' else '<|return|>',
                           bos_token='<|begin_of_text|>')
    found = []
    for Clock.today in (1, 2):
        examples, _ = sft(tokenizer, chat('Hi', 'Hello.'))
        found.append((prompt_of(tokenizer, chat('Hi')), [example['ids'].tolist() for example in examples]))
    assert found[0] == found[1]


# --- config/*_training.jinja -----------------------------------------------------------

def ours(tokenizer, name):
    with open(f'{ROOT}/config/{name}_training.jinja', encoding='utf-8') as f:
        tokenizer.chat_template = f.read()
    return tokenizer


def families():
    """{name: (a tokenizer with the original template, one with ours, end of turn)}"""
    return {
        'qwen3': (qwen(original('qwen3')), ours(qwen(''), 'qwen3'), '<|im_end|>'),
        'r1': (deepseek(original('deepseek_r1_distill')), ours(deepseek(''), 'r1'), '<｜end▁of▁sentence｜>'),
        'mistral': (mistral(), ours(mistral(), 'mistral'), '</s>')}


THOUGHT = '<think>\nA greeting.\n</think>\n\nHello.'


@needs_trl
@pytest.mark.parametrize('family', ['qwen3', 'r1', 'mistral'])
def test_our_training_templates_write_what_the_originals_write(family):
    """For rows where the original is well-behaved: no system message for Mistral's, no thoughts for R1's."""
    theirs, mine, _ = families()[family]
    rows = [chat('Hi', 'Hello.'), chat('Hi', 'Hello.\n'), chat('Hi', '  Hello.')]
    turns = chat('Hi', 'Hello.', 'And?', 'Bye.')
    with_system = chat('Hi', 'Hello.', system='Be kind.')
    rows += {'qwen3': [chat('Hi', THOUGHT), with_system, chat('Hi', THOUGHT, system='Be kind.')],
             'r1': [turns, with_system], 'mistral': [turns]}[family]
    for messages in rows:
        assert as_transformers(mine, messages) == as_transformers(theirs, messages)
    if family != 'r1':  # whose prompt opens thoughts
        for messages in (chat('Hi'), chat('Hi', system='Be kind.')):
            assert prompt_of(mine, messages) == prompt_of(theirs, messages)


@needs_trl
@pytest.mark.parametrize('family', ['qwen3', 'r1', 'mistral'])
@pytest.mark.parametrize('system', [None, '', 'Be kind.'])
def test_our_training_templates_train_every_turn(family, system):
    """A conversation begins with the prompt of each of its replies, with and without thoughts."""
    _, tokenizer, end = families()[family]
    for replies in (['Hello.', 'Bye.', 'Ja.'], [THOUGHT, THOUGHT, THOUGHT], [THOUGHT, 'Bye.', THOUGHT],
                    ['Hello.', THOUGHT, '    x']):
        messages = chat('Hi', replies[0], 'And?', replies[1], 'So?', replies[2], system=system)
        text = data.render(tokenizer, messages)
        places = [i for i, message in enumerate(messages) if message['role'] == 'assistant']
        assert all(text.startswith(data.render(tokenizer, messages[:i], prompt=True)) for i in places)
        (example,), report = sft(tokenizer, messages)
        assert not report['dropped'] and untrained(report) is None
        empty = '<think>\n\n</think>\n\n' if family == 'qwen3' else ''
        said = [reply if '<think>' in reply else empty + reply for reply in replies]
        shown = re.findall(r'\[\[(.*?)\]\]', data.show_mask(example, tokenizer), re.DOTALL)
        assert shown == [reply + end for reply in said]
        check(tokenizer, messages, said[-1] + end)


@needs_trl
@pytest.mark.parametrize('family', ['qwen3', 'r1'])
def test_our_training_templates_take_thoughts_in_every_spelling(family):
    _, tokenizer, end = families()[family]
    apart = [*chat('Hi'), {'role': 'assistant', 'content': 'Hello.', 'reasoning_content': 'A greeting.'}]
    for messages in (chat('Hi', THOUGHT), apart, chat('Hi', THOUGHT.removeprefix('<think>\n'))):
        check(tokenizer, messages, THOUGHT + end)
