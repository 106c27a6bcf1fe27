"""rows.py: every shape of a row, and what in it is used, refused by name or counted; values from parquet and numpy."""
import json

import numpy as np
import pytest

import rows as rows_module
from configurator import UserError
from data import byte_tokenizer, format_report, preference_pairs, rl_prompts, sft_examples, show_mask
from rewards.sandbox import sandboxed
from rows import is_empty, plain, read_rows, stored_messages, turns
from verify import verify

TINY = byte_tokenizer()
Q, A, B = ({'role': role, 'content': text} for role, text in (('user', 'Q'), ('assistant', 'A'), ('assistant', 'B')))
S = {'role': 'system', 'content': 'S'}
NAN = float('nan')
PLAIN = '<|user|>Q<|end|><|assistant|>[[A<|end|>]]'


def sft(row):
    """The marked text of a row, or the reason why it is dropped."""
    rows = [{**row, '_where': 'x:1'}, {'text': 'other', '_where': 'x:2'}]
    examples, report = sft_examples(rows, TINY, 10000)
    if report['dropped']:
        ((reason, (_, where)),) = report['dropped'].items()
        assert where == 'x:1'
        return reason
    return show_mask(examples[0], TINY)


def dpo(row):
    """prompt | chosen | rejected as texts, or the reason why the row is dropped."""
    other = {'prompt': 'x', 'chosen': 'y', 'rejected': 'z', '_where': 'x:2'}
    pairs, report = preference_pairs([{**row, '_where': 'x:1'}, other], TINY, 10000)
    if report['dropped']:
        return next(iter(report['dropped']))
    (chosen, _, prompt), (rejected, _, _) = pairs[0]['docs']
    return ' | '.join(map(TINY.decode, (prompt, chosen, rejected)))


def rl(row, kind='math'):
    """The prompt as a text, or the reason why the row is dropped."""
    other = {'prompt': 'x', 'answer': '1', '_where': 'x:2'}
    prompts, report = rl_prompts([{**row, '_where': 'x:1'}, other], TINY, 10000, kind)
    if report['dropped']:
        return next(iter(report['dropped']))
    return TINY.decode(prompts[0]['ids'])


# --- columns beside the messages, the same for all scripts ---------------------------------------
ASKED = '<|user|>Q<|end|><|assistant|>'
COLUMNS = [  # columns, what the prompt becomes
    ({'system': 'S'}, '<|system|>S<|end|>' + ASKED),
    ({'system_prompt': 'S'}, '<|system|>S<|end|>' + ASKED),
    ({'system': None, 'system_prompt': 'S'}, '<|system|>S<|end|>' + ASKED),
    ({'system': ''}, ASKED),
    ({'system': [S]}, '<|system|>S<|end|>' + ASKED),
    ({'input': 'I'}, '<|user|>Q\n\nI<|end|><|assistant|>'),
    ({'context': 'C'}, '<|user|>Q\n\nC<|end|><|assistant|>'),
    ({'input': '', 'context': NAN}, ASKED),
    ({'history': [['a', 'b']]}, '<|user|>a<|end|><|assistant|>b<|end|>' + ASKED),
    ({'history': '[["a", "b"]]'}, '<|user|>a<|end|><|assistant|>b<|end|>' + ASKED),
    ({'history': [{'role': 'user', 'content': 'a'}, {'from': 'gpt', 'value': 'b'}]},
     '<|user|>a<|end|><|assistant|>b<|end|>' + ASKED),
    ({'history': [], 'system': 'S', 'input': 'I'}, '<|system|>S<|end|><|user|>Q\n\nI<|end|><|assistant|>'),
    ({'weight': 1}, ASKED), ({'weight': 1.0}, ASKED), ({'weight': None}, ASKED),
    ({'tools': '[]'}, ASKED), ({'tools': []}, ASKED), ({'tools': 'null'}, ASKED), ({'tools': [None]}, ASKED),
    ({'chat_template_kwargs': {'enable_thinking': None}}, ASKED),
    ({'chat_template_kwargs': '{"enable_thinking": null}'}, ASKED), ({'images': []}, ASKED)]


@pytest.mark.parametrize('columns, prompt', COLUMNS)
@pytest.mark.parametrize('asked', ['prompt', 'question', 'instruction'])
def test_a_column_is_used_alike_by_all_scripts(columns, prompt, asked):
    replied = {'prompt': 'completion', 'question': 'response', 'instruction': 'output'}[asked]
    assert sft({asked: 'Q', replied: 'A', **columns}) == prompt + '[[A<|end|>]]'
    assert dpo({asked: 'Q', 'chosen': 'A', 'rejected': 'B', **columns}) == f'{prompt} | A<|end|> | B<|end|>'
    assert rl({asked: 'Q', 'answer': '1', **columns}) == prompt


@pytest.mark.parametrize('columns, name', [
    ({'input': 'I'}, 'input'), ({'context': 'C'}, 'context'), ({'history': [['a', 'b']]}, 'history'),
    ({'tools': [{'name': 'f'}]}, 'tools'), ({'tools': '[{"name": "f"}]'}, 'tools'), ({'functions': [{'name': 'f'}]}, 'functions'),
    ({'chat_template_kwargs': {'enable_thinking': False}}, 'chat_template_kwargs'), ({'images': ['x.png']}, 'images'),
    ({'weight': 0.5}, 'weight'), ({'weight': 0}, 'weight'), ({'weight': 2}, 'weight')])
def test_what_cannot_be_used_is_refused_by_its_name(columns, name):
    """input, context and history beside messages: where they belong is not known."""
    assert name in sft({'messages': [Q, A], **columns})
    assert name in sft({'conversations': [Q, A], **columns})
    assert name in sft({'prompt': [Q], 'completion': [A], **columns})
    assert name in rl({'messages': [Q], 'answer': '1', **columns})
    assert name in dpo({'prompt': [Q], 'chosen': [A], 'rejected': [B], **columns})
    if name not in ('input', 'context', 'history'):
        assert name in sft({'prompt': 'Q', 'completion': 'A', **columns})


def test_input_and_context_that_are_no_texts():
    assert 'context' in sft({'question': 'Q', 'answer': 'A', 'context': {'title': ['x']}})
    assert sft({'input': 'Q', 'output': 'A'}) == PLAIN  # a pair of its own
    assert sft({'input': [Q], 'output': 'A', 'system_prompt': 'S'}) == '<|system|>S<|end|>' + PLAIN


def test_columns_that_are_not_used_are_counted():
    rows = [{'messages': [S, Q, A], 'system': 'other', '_where': 'x:1'}, {'messages': [S, Q, A], 'system': 'S', '_where': 'x:2'},
            {'messages': [S, Q, A], 'system_prompt': 'other', 'reasoning': 'r', '_where': 'x:3'}]
    _, report = sft_examples(rows, TINY, 1000)
    notes = {'column system is not used: there is another system message': [1, 'x:1'],
             'column system_prompt is not used: there is another system message': [1, 'x:3'],
             'column reasoning is not used: thoughts belong in the messages': [1, 'x:3']}
    assert report['notes'] == notes
    assert '1 column reasoning is not used' in format_report(report) and '(first x:3)' in format_report(report)


@pytest.mark.parametrize('switch', ['weight', 'train', 'loss', 'trainable'])
@pytest.mark.parametrize('off', [0, 0.0, False])
def test_turns_that_a_row_does_not_want_trained(switch, off):
    bad, good = {**B, switch: off}, {**A, switch: 1}
    assert sft({'messages': [Q, bad, Q, good]}) == '<|user|>Q<|end|><|assistant|>B<|end|>' + PLAIN
    assert sft({'messages': [Q, good, Q, bad]}) == PLAIN + '<|user|>Q<|end|><|assistant|>B<|end|>'
    assert sft({'messages': [Q, bad]}) == 'no assistant turn to train on'
    assert switch in sft({'messages': [Q, {**A, switch: 0.5}]})
    assert dpo({'prompt': 'Q', 'chosen': [good], 'rejected': [bad]}) == 'weight 0 of a side'
    assert sft({'messages': [Q, {**A, switch: None}]}) == PLAIN


@pytest.mark.parametrize('key', ['reasoning_content', 'thinking', 'reasoning'])
def test_thoughts_of_a_message(key):
    thought = '[[<think>\nbecause\n</think>\n\nA<|end|>]]'
    assert sft({'messages': [Q, {**A, key: 'because'}]}).endswith(thought)
    assert sft({'messages': [Q, {**A, key: ''}]}) == sft({'messages': [Q, {**A, key: None}]}) == PLAIN
    # thoughts that the words happen to hold are still thoughts
    assert sft({'messages': [Q, {**A, key: 'A'}]}).endswith('[[<think>\nA\n</think>\n\nA<|end|>]]')
    both = {'role': 'assistant', 'content': '<think>\nbecause\n</think>\n\nA', key: 'because'}
    assert sft({'messages': [Q, both]}).endswith(thought)
    parts = [{'type': 'thinking', 'thinking': 'because'}, {'type': 'text', 'text': 'A'}]
    assert sft({'messages': [Q, {**A, 'content': parts}]}).endswith(thought)


# --- messages that are stored as a text --------------------------------------------------------
STORED = [
    json.dumps([Q, A]), str([Q, A]), json.dumps([Q, A], indent=2), ' ' + json.dumps([Q, A]),
    json.dumps([{'content': 'Q', 'role': 'user'}, {'content': 'A', 'role': 'assistant'}]),
    json.dumps([{'from': 'human', 'value': 'Q'}, {'from': 'gpt', 'value': 'A'}]),
    json.dumps([{'name': None, **Q}, {'name': None, **A}]), [json.dumps(Q), json.dumps(A)],
    np.array([Q, A], dtype=object), (Q, A)]


@pytest.mark.parametrize('stored', STORED, ids=str)
def test_messages_stored_as_a_text(stored):
    assert sft({'messages': stored}) == sft({'conversations': stored}) == PLAIN
    assert sft({'system': 'S', 'messages': stored}) == '<|system|>S<|end|>' + PLAIN
    assert rl({'messages': stored, 'answer': '1'}) == ASKED


def test_other_columns_stored_as_a_text():
    assert sft({'prompt': json.dumps([S, Q]), 'completion': str([A])}) == '<|system|>S<|end|>' + PLAIN
    assert sft({'prompt': 'Q', 'completion': json.dumps(A)}) == PLAIN
    assert rl({'prompt': str([S, Q]), 'reward_model': '{"style": "rule", "ground_truth": "1"}'}) == '<|system|>S<|end|>' + ASKED
    assert dpo({'prompt': 'Q', 'chosen': str([Q, A]), 'rejected': json.dumps([Q, B])}) == f'{ASKED} | A<|end|> | B<|end|>'
    assert dpo({'chosen': json.dumps([Q, A]), 'rejected': json.dumps([Q, B])}) == f'{ASKED} | A<|end|> | B<|end|>'


@pytest.mark.parametrize('text', [
    '{"role": "user"', "[{'role': 'user', 'content': 'Q'}\n {'role': 'assistant', 'content': 'A'}]", '[{"role": "user", "content": "Q"},'])
def test_messages_that_cannot_be_read(text):
    assert sft({'messages': text}) in ('messages are stored as a text that is neither JSON nor Python',
                                       'messages holds a text and no list of messages')


@pytest.mark.parametrize('text', [
    '[1, 2]', '{"name": "x"}', '[{"role": "narrator", "content": "x"}]', '[{"role": 3}]', '["role"]', '{"a": {"role": "user"}}', '{', '[]'])
def test_a_reply_may_be_json(text):
    """It is what somebody said, unless it is a list of messages."""
    assert stored_messages(text) is None
    assert sft({'prompt': 'Q', 'completion': text}) == f'{ASKED}[[{text}<|end|>]]'
    assert sft({'messages': 'Hello'}) == 'messages holds a text and no list of messages'


# --- columns that are null in this row -----------------------------------------------------------
@pytest.mark.parametrize('null', [None, NAN, np.float64('nan')])
def test_null_columns_of_joined_files(null):
    everything = dict.fromkeys(('messages', 'conversations', 'instruction', 'output', 'prompt', 'completion', 'text', 'chosen',
                                'rejected', 'answer', 'system', 'weight', 'tools', 'history', 'input', 'level', 'difficulty'), null)
    for row in ({'messages': [Q, A]}, {'conversations': [Q, A]}, {'instruction': 'Q', 'output': 'A'}, {'prompt': 'Q', 'completion': 'A'}):
        assert sft({**everything, **row}) == PLAIN
    assert sft({**everything, 'text': 'ab'}) == 'a[[b<|end|>]]'
    assert dpo({**everything, 'prompt': 'Q', 'chosen': 'A', 'rejected': 'B'}) == f'{ASKED} | A<|end|> | B<|end|>'
    assert rl({**everything, 'prompt': 'Q', 'answer': '1'}) == ASKED
    assert sft(everything) == 'the columns to train on are empty'


def test_empty_columns_hide_no_others():
    assert sft({'messages': [], 'prompt': 'Q', 'completion': 'A'}) == PLAIN
    assert sft({'instruction': '', 'output': '', 'prompt': 'Q', 'completion': 'A'}) == PLAIN
    assert sft({'messages': '[]', 'conversations': [Q, A]}) == PLAIN


# --- values of numpy and parquet -------------------------------------------------------------------
def test_plain_values():
    assert plain(np.array([np.int64(1), 2])) == [1, 2] and plain({'a': np.float32(0.5)}) == {'a': 0.5}
    assert plain(np.float32(0.1)) == 0.1 and plain(np.array([0.1], np.float32)) == [0.1]
    assert plain(NAN) is None and plain([NAN, (1,)]) == [None, [1]] and plain(np.str_('x')) == 'x'
    assert type(plain(np.bool_(True))) is bool and plain('x') == 'x'
    for value in (None, NAN, '', ' ', [], {}, '[]', '{}', 'null', [None], {'a': None}, '{"a": null}'):
        assert is_empty(plain(value)), value
    for value in (0, False, 'x', [0], {'a': 0}, '[0]', '{', '[{"name": "f"}]'):
        assert not is_empty(value), value


def test_rows_of_numpy():
    """As pandas and datasets hand them out."""
    row = {'prompt': np.array([Q], dtype=object), 'reward_model': {'ground_truth': np.array(['7'])},
           'data_source': np.array(['math']), 'difficulty': np.float64(3), 'extra_info': {'index': np.int64(3)}}
    (prompt,), _ = rl_prompts([{**row, '_where': 'x:1'}], TINY, 100)
    assert (prompt['truth'], prompt['kind'], prompt['difficulty']) == ('7', 'math', 3)
    assert sft({'messages': np.array([Q, {**A, 'weight': np.float64(1)}], dtype=object)}) == PLAIN


def test_shards_of_parquet(tmp_path):
    """One source; each row says its file and number; a truth that cannot be read stops the run with them."""
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    good = {'prompt': [Q], 'reward_model': {'ground_truth': '7', 'style': 'rule'}, 'data_source': 'math', 'level': 1.0}
    bad = {**good, 'reward_model': {'ground_truth': '\\frac{1}{', 'style': 'rule'}, 'level': NAN}
    for i, part in enumerate(([good] * 3, [good, good])):
        parquet.write_table(pyarrow.Table.from_pylist(part), tmp_path / f'train-0000{i}-of-00002.parquet')
    rows, sources = read_rows(f'{tmp_path}/train-*.parquet')
    assert sources == [(f'{tmp_path}/train-*.parquet', 1.0, 0, 5)]
    prompts, _ = rl_prompts(rows, TINY, 100)
    assert [prompt['where'].rpartition('/')[2] for prompt in prompts] == [
        *(f'train-00000-of-00002.parquet:{i}' for i in (1, 2, 3)), *(f'train-00001-of-00002.parquet:{i}' for i in (1, 2))]
    parquet.write_table(pyarrow.Table.from_pylist([good, bad]), tmp_path / 'train-00001-of-00002.parquet')
    with pytest.raises(UserError, match=r'train-00001-of-00002.parquet:2: math: cannot read the truth'):
        rl_prompts(read_rows(f'{tmp_path}/train-*.parquet')[0], TINY, 100)


# --- roles and spellings --------------------------------------------------------------------------
def test_roles_in_any_spelling():
    for user, assistant in (('human', 'gpt'), ('User', 'Assistant'), ('prompter', 'model'), ('user', 'bot')):
        row = {'messages': [{'role': user, 'content': 'Q'}, {'role': assistant, 'content': 'A'}]}
        assert sft(row) == (PLAIN if assistant != 'bot' else rows_module.NO_ROLE)
    assert turns('Q', 'user') == turns(Q, 'user') == turns([Q], 'assistant') == [Q]
    assert sft({'messages': [{'role': 'developer', 'content': 'S'}, Q, A]}) == '<|system|>S<|end|>' + PLAIN


# --- what data sets of the field hold ---------------------------------------------------------------
@pytest.mark.parametrize('row, expected', [
    # Mistral's parts of thoughts, and other parts
    ({'messages': [Q, {**A, 'content': [{'type': 'thinking', 'thinking': [{'type': 'text', 'text': 'T'}]}, {'type': 'text', 'text': 'A'}]}]},
     ASKED + '[[<think>\nT\n</think>\n\nA<|end|>]]'),
    ({'messages': [Q, {**A, 'content': [{'type': 'thinking', 'thinking': None}, {'type': 'text', 'text': 'A'}]}]}, PLAIN),
    ({'messages': [Q, {**A, 'content': [{'type': 'reasoning', 'text': 'T'}, {'type': 'output_text', 'text': 'A'}]}]},
     ASKED + '[[<think>\nT\n</think>\n\nA<|end|>]]'),
    ({'messages': [Q, {**A, 'content': '[{"type": "text", "text": "A"}]'}]}, PLAIN),
    ({'messages': [Q, {**A, 'content': [{'type': 'image', 'text': 'alt'}]}]}, rows_module.NO_TEXT),
    ({'messages': [Q, {**A, 'channel': 'analysis'}, {**A, 'channel': 'final'}]}, 'a message in a channel'),
    ({'messages': [Q, {**A, 'reasoning': {'text': 'T'}}]}, 'reasoning of a message is no text'),
    ({'messages': [{**Q, 'thinking': 'T'}, A]}, PLAIN),
    ({'messages': [Q, {**A, 'content': 'no </think> here', 'reasoning_content': 'T'}]},
     ASKED + '[[<think>\nT\n</think>\n\nno </think> here<|end|>]]'),
    # merged parquet, odd roles, weights as texts
    ({'messages': [{'role': None, 'content': None, 'from': 'human', 'value': 'Q'}, {'role': None, 'content': None, 'from': 'gpt', 'value': 'A'}]}, PLAIN),
    ({'messages': [{**Q, 'role': 'USER '}, {**A, 'weight': '1'}], 'weight': '1.0'}, PLAIN),
    ({'messages': [Q, A], 'weight': ''}, PLAIN),
    ({'messages': [Q, {**A, 'weight': 1, 'train': False}]}, 'no assistant turn to train on'),
    # the reply repeats what is asked
    ({'prompt': 'Q', 'completion': [Q, A]}, PLAIN), ({'prompt': [Q], 'completion': [Q, A, Q, A]}, PLAIN + PLAIN),
    ({'prompt': [S, Q], 'completion': [Q, A]}, '<|system|>S<|end|>' + PLAIN),
    ({'prompt': [S, Q], 'completion': [S, Q, A]}, '<|system|>S<|end|>' + PLAIN),
    ({'prompt': 'Q', 'completion': [{**Q, 'content': 'other'}, A]}, 'column completion does not begin with a reply'),
    ({'prompt': 'Q', 'completion': '{"role": "user", "name": "Bob"}'}, ASKED + '[[{"role": "user", "name": "Bob"}<|end|>]]'),
    # an input that looks like nothing
    ({'instruction': 'Q', 'input': '[]', 'output': 'A'}, '<|user|>Q\n\n[]<|end|><|assistant|>[[A<|end|>]]'),
    ({'instruction': 'Q', 'input': '{"name": null}', 'output': 'A'}, '<|user|>Q\n\n{"name": null}<|end|><|assistant|>[[A<|end|>]]'),
    ({'instruction': 'Q', 'input': 'I\ud83d', 'output': 'A'}, 'not valid unicode'),
    ({'instruction': 'Q\ufdd4', 'output': 'A'}, 'not valid unicode'),
    # further names
    ({'query': 'Q', 'answer': 'A'}, PLAIN), ({'conversation': [Q, A]}, PLAIN), ({'inputs': 'Q', 'targets': 'A'}, PLAIN),
    ({'problem': 'Q', 'generated_solution': 'A'}, PLAIN),
    ({'text': ''}, 'the columns to train on are empty'), ({'text': ['a', 'b']}, 'column text is no text'),
    ({'instruction': 7, 'output': 'A'}, rows_module.NO_TEXT)])
def test_rows_for_sft_as_they_are_found(row, expected):
    assert sft(row).startswith(expected)


HUMAN = '\n\nHuman: Q\n\nAssistant:'


@pytest.mark.parametrize('row, expected', [
    ({'chosen': HUMAN + ' A', 'rejected': HUMAN + ' B'}, f'{ASKED} | A<|end|> | B<|end|>'),
    ({'prompt': HUMAN, 'chosen': 'A', 'rejected': 'B'}, f'{ASKED} | A<|end|> | B<|end|>'),
    ({'prompt': HUMAN, 'chosen': HUMAN + ' A', 'rejected': HUMAN + ' B'}, f'{ASKED} | A<|end|> | B<|end|>'),
    ({'prompt': [S, Q], 'chosen': [Q, A], 'rejected': [Q, B]}, f'<|system|>S<|end|>{ASKED} | A<|end|> | B<|end|>'),
    ({'system': 'S', 'input': 'Q', 'chosen': 'A', 'rejected': 'B'}, f'<|system|>S<|end|>{ASKED} | A<|end|> | B<|end|>'),
    ({'chosen': HUMAN + ' A', 'rejected': HUMAN + ' B', 'input': 'other'}, f'{ASKED} | A<|end|> | B<|end|>'),
    ({'prompt': 'Q', 'input': 'I', 'chosen': [Q, A], 'rejected': [Q, B]}, '<|user|>Q\n\nI<|end|><|assistant|> | A<|end|> | B<|end|>'),
    ({'chosen': 'A', 'rejected': 'B'}, 'a side without a prompt: no column has one, and it is no conversation')])
def test_pairs_as_they_are_found(row, expected):
    assert dpo(row) == expected


def test_a_prompt_beside_other_conversations_is_counted():
    row = {'prompt': 'Other', 'chosen': [Q, A], 'rejected': [Q, B], '_where': 'x:1'}
    _, report = preference_pairs([row, {**row, 'prompt': 'Q'}], TINY, 1000)
    assert report['notes'] == {'column prompt is not used: the sides hold another conversation': [1, 'x:1']}


def test_prompts_as_they_are_found():
    countdown = {'nums': [1, 2], 'target': 3, 'prompt': [Q], 'data_source': 'countdown',
                 'reward_model': {'ground_truth': {'numbers': [1, 2], 'target': 3}}}
    (prompt,), _ = rl_prompts([{**countdown, '_where': 'x:1'}], TINY, 100)
    assert TINY.decode(prompt['ids']) == ASKED and prompt['demonstration'] is None
    row = {'question': 'Q', 'answer': 'A\n#### 4', 'target': 4, '_where': 'x:1'}
    (prompt,), _ = rl_prompts([row], TINY, 100)
    assert (prompt['truth'], prompt['demonstration']) == ('4', 'A\n#### 4')
    row = {'problem': 'Q', 'solution': 'old', 'answer': '4', 'ground_truth': [], '_where': 'x:1',
           'generations': ['wrong', 'right'], 'correctness_math_verify': [False, True]}
    (prompt,), _ = rl_prompts([row], TINY, 100)
    assert (prompt['truth'], prompt['demonstration']) == ('4', 'right')


@pytest.mark.parametrize('row, kind, words', [
    ({'prompt': 'Q', 'answer': '4'}, '', 'nothing says how to judge it: no dataset or data_source in the keys prompt, answer; --verifier'),
    ({'prompt': 'Q', 'ground_truth': ' '}, 'math', 'no truth in the keys prompt, ground_truth: it can be in'),
    ({'prompt': 'Q', 'answer': '4', 'dataset': 'nosuch'}, '', 'nosuch.*--verifier sets the kind')])
def test_what_a_prompt_lacks_is_said(row, kind, words):
    with pytest.raises(UserError, match='x:1: .*' + words):
        rl_prompts([{**row, '_where': 'x:1'}], TINY, 100, kind)


def test_what_is_strange_about_a_row_is_counted_only_if_it_is_kept():
    rows = [{'messages': [S, {**Q, 'content': '<|end|>' * 50}, A], 'system': 'other', '_where': f'x:{n}'} for n in (1, 2)]
    rows += [{'messages': [S, {**Q, 'content': '<|end|>'}, A], 'system': 'other', '_where': 'x:3'}]
    _, report = sft_examples(rows, TINY, 40)
    assert report['kept'] == 1 and report['spelled'] == ['x:3'] and list(report['notes'].values()) == [[1, 'x:3']]


def test_columns_beside_a_document_are_counted():
    _, report = sft_examples([{'text': 'ab', 'system': 'S', 'input': '', '_where': 'x:1'}], TINY, 100)
    assert report['notes'] == {'column system is not used: a text is trained as it stands': [1, 'x:1']}


def test_a_value_that_is_nested_too_deeply_costs_its_row_alone():
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert sft({'messages': [Q, A], 'junk': deep}) == 'malformed (RecursionError)'


def test_a_file_of_languages(tmp_path):
    """--languages=FILE: the truth takes the language along, so that a verdict needs nothing else."""
    file = tmp_path / 'languages.jsonl'
    file.write_text('{"name": "squid", "file": "main.sq", "run": "bash main.sq"}\n')
    tests = [{'input': 'x', 'output': 'x'}]
    row = {'prompt': 'Q', 'ground_truth': {'language': 'squid', 'tests': tests}, 'dataset': 'code', '_where': 'x:1'}
    with pytest.raises(UserError, match='x:1: code: cannot read the truth.*squid'):
        rl_prompts([row], TINY, 100)
    (prompt,), _ = rl_prompts([row], TINY, 100, languages=str(file))
    assert json.loads(prompt['truth'])['language']['run'] == 'bash main.sq'
    if sandboxed():
        assert verify('code', '```squid\ncat\n```', prompt['truth']) == 1
        assert verify('code', '```squid\necho y\n```', prompt['truth']) == 0
    file.write_text('{"name": "squid"}\n')
    with pytest.raises(UserError, match='languages.jsonl.*run'):
        rl_prompts([row], TINY, 100, languages=str(file))
    with pytest.raises(UserError, match='none.jsonl'):
        rl_prompts([row], TINY, 100, languages='none.jsonl')
