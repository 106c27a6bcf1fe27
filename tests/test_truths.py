"""read_truth: a row's truth from JSON, Python, Parquet or pandas -> the one text that is judged."""
import json
import math
import time
from decimal import Decimal

import numpy as np
import pytest

import verify as module
from rewards import sandbox
from verify import check_truth, read_truth, verify

NAN = float('nan')
needs_sandbox = pytest.mark.skipif(not sandbox.sandboxed(), reason='no namespaces here')


@pytest.fixture(autouse=True)
def bugs_surface(monkeypatch):
    monkeypatch.setattr(module, 'raise_bugs', True)


# kind, truth as a file gives it, the text, a completion that is right
TEXTS = [
    ('math', '34', '34', '\\boxed{34}'), ('math', 34, '34', '\\boxed{34}'), ('math', 34.0, '34', '\\boxed{34}'),
    ('math', 1e-05, '0.00001', '\\boxed{0.00001}'), ('math', '1e-05', '0.00001', '\\boxed{10^{-5}}'),
    ('math', 1e22, '1' + '0' * 22, '\\boxed{10^{22}}'), ('math', -0.5, '-0.5', '\\boxed{-\\frac12}'),
    ('math', -0.0, '0', '\\boxed{0}'), ('math', Decimal('1E+2'), '100', '\\boxed{100}'), ('math', 1.5e-7, '0.00000015', '\\boxed{0.00000015}'),
    ('math', '2e-3', '2e-3', '\\boxed{2e-3}'), ('math', ['34'], '34', '\\boxed{34}'), ('math', [['34']], '34', '\\boxed{34}'),
    ('math', '["34"]', '34', '\\boxed{34}'), ("math", "['34']", '34', '\\boxed{34}'), ('math', '[["34"]]', '34', '\\boxed{34}'),
    ('math', ['["34"]'], '34', '\\boxed{34}'), ('math', ['34', '34'], '34', '\\boxed{34}'), ("math", "('34',)", '34', '\\boxed{34}'),
    ('math', np.array(['34']), '34', '\\boxed{34}'), ('math', np.array(['34'], dtype=object), '34', '\\boxed{34}'),
    ('math', np.array('34'), '34', '\\boxed{34}'), ('math', np.str_('34'), '34', '\\boxed{34}'), ('math', (34,), '34', '\\boxed{34}'),
    ('math', np.float32(0.1), '0.1', '\\boxed{0.1}'), ('math', np.array([0.1], np.float32), '0.1', '\\boxed{0.1}'),
    ('math', np.int64(34), '34', '\\boxed{34}'), ('math', np.float64(1e-5), '0.00001', '\\boxed{10^{-5}}'),
    ('math', np.array([[34]]), '34', '\\boxed{34}'), ('math', b'34', '34', '\\boxed{34}'),
    ('math', '[1,2]', '[1,2]', '\\boxed{[1,2]}'), ('math', '(1, 2)', '(1, 2)', '\\boxed{(1,2)}'),
    ('math', '\\{1,2\\}', '\\{1,2\\}', '\\boxed{\\{2,1\\}}'), ('math', '\\frac{1}{2}', '\\frac{1}{2}', '\\boxed{0.5}'),
    ('math', "f'(x)", "f'(x)", "\\boxed{f'(x)}"), ('math', '\\text{None}', '\\text{None}', '\\boxed{\\text{None}}'),
    ('gsm8k', '1,800', '1,800', '#### 1800'), ('gsm8k', 18, '18', '#### 18'), ('gsm8k', 18.0, '18', '#### 18'),
    ('gsm8k', ['18'], '18', '#### 18'), ('gsm8k', '["18"]', '18', '#### 18'), ('gsm8k', 1e-05, '0.00001', '#### 0.00001'),
    ('gsm8k', np.int32(18), '18', '#### 18'), ('gsm8k', Decimal('18.50'), '18.50', '#### 18.5'), ('gsm8k', '€18', '€18', '#### 18'),
    ('sums', 19, '19', '#### 19'), ('sums', 19.0, '19', '#### 19'), ('sums', [19], '19', '#### 19'), ('sums', '["19"]', '19', '#### 19'),
    ('mcq', 'C', 'C', '\\boxed{C}'), ('mcq', '(C)', '(C)', '\\boxed{C}'), ('mcq', ['C'], 'C', '\\boxed{C}'), ('mcq', '["C"]', 'C', '\\boxed{C}'),
    ('mcq', '"C"', 'C', '\\boxed{C}'), ('mcq', np.array(['C']), 'C', '\\boxed{C}'),
    ('mcq', {'answer': 'C', 'options': ['A', 'B', 'C']}, '{"answer": "C", "options": ["A", "B", "C"]}', '\\boxed{C}'),
    ('mcq', "{'answer': 'C', 'options': ['A', 'B', 'C']}", '{"answer": "C", "options": ["A", "B", "C"]}', '\\boxed{C}'),
    ('mcq', {'answer': 'C', 'options': np.array(['A', 'B', 'C'])}, '{"answer": "C", "options": ["A", "B", "C"]}', '\\boxed{C}'),
    ('countdown', {'numbers': [5, 6, 7], 'target': 37}, '{"numbers": [5, 6, 7], "target": 37}', '<answer>5*6+7</answer>'),
    ('countdown', {'numbers': np.array([5, 6, 7]), 'target': np.int64(37)}, '{"numbers": [5, 6, 7], "target": 37}', '<answer>5*6+7</answer>'),
    ('countdown', {'numbers': [5.0, 6.0, 7.0], 'target': 37.0}, '{"numbers": [5, 6, 7], "target": 37}', '<answer>5*6+7</answer>'),
    ('countdown', "{'numbers': [5, 6, 7], 'target': 37}", '{"numbers": [5, 6, 7], "target": 37}', '<answer>5*6+7</answer>'),
    ('countdown', [{'numbers': [5, 6, 7], 'target': '37'}], '{"numbers": [5, 6, 7], "target": "37"}', '<answer>5*6+7</answer>'),
]


@pytest.mark.parametrize('kind, value, text, completion', TEXTS, ids=lambda value: ascii(value)[:40])
def test_what_is_checked_is_what_is_judged(kind, value, text, completion):
    assert read_truth(kind, value) == text
    assert read_truth(kind, text) == text
    assert verify(kind, completion, text) == 1
    assert verify(kind, 'I do not know.', text) == 0


REFUSED = [
    ('math', None), ('math', NAN), ('math', math.inf), ('math', True), ('math', np.bool_(True)), ('math', ''), ('math', ' '), ('math', []),
    ('math', {}), ('math', {'answer': '34'}), ('math', '{"answer": "34"}'), ('math', ['34', '35']), ('math', '["34", "35"]'),
    ('math', np.array(['34', '35'])), ('math', [None]), ('math', [NAN]), ('math', 'nan'), ('math', 'null'), ('math', '<NA>'),
    ('math', 'np.float64(3.0)'), ('math', "array(['34'], dtype=object)"), ('math', '\\frac{1}{2'), ('math', b'\xff'),
    ('math', {1, 2}), ('math', '[]'.replace('[]', '["", ""]')), ('math', Decimal('NaN')), ('math', '{"a": 1}'), ('math', np.datetime64('2020')),
    ('math', '2 + 2 = 4 #### 4'), ('math', 'The answer is 34'), ('math', '<answer>34</answer>'), ('math', '\\boxed{34}'),
    ('gsm8k', True), ('gsm8k', NAN), ('gsm8k', 'eighteen'), ('gsm8k', '17 or 18'), ('gsm8k', '1e5'), ('gsm8k', ['17', '18']), ('gsm8k', 'Step 2'),
    ('sums', 1.5), ('sums', '1.5'), ('sums', '1.0'), ('sums', False), ('sums', 'x'),
    ('mcq', None), ('mcq', 2), ('mcq', 'c'), ('mcq', 'Paris'), ('mcq', ['B', 'C']), ('mcq', {'options': ['A']}), ('mcq', NAN), ('mcq', True),
    ('mcq', {'answer': 'E', 'options': ['A', 'B']}), ('mcq', {'answer': 'A', 'options': ['Paris', 'Rome']}), ('mcq', ''), ('mcq', {'answer': None}),
    ('countdown', {'numbers': [], 'target': 37}), ('countdown', {'numbers': [5], 'target': None}), ('countdown', {'numbers': [5]}),
    ('countdown', {'numbers': '5 6 7', 'target': 37}), ('countdown', {'numbers': [5.5], 'target': 37}), ('countdown', {'numbers': [-5], 'target': 37}),
    ('countdown', {'numbers': [True], 'target': 1}), ('countdown', {'numbers': [5], 'target': 'x'}), ('countdown', '37'), ('countdown', NAN),
    ('countdown', {'numbers': [5], 'target': NAN}), ('countdown', {'numbers': ['5'], 'target': 5}), ('countdown', {'nums': [5], 'target': 5}),
    ('countdown', {'numbers': [5], 'target': True}), ('countdown', {'numbers': [5], 'target': '1/0'}),
    ('ifeval', {'instruction_id_list': ['length_constraints:number_words'], 'kwargs': [{'relation': 'at least', 'num_words': 'ten'}]}),
    ('ifeval', {'instruction_id_list': ['keywords:frequency'], 'kwargs': [{'relation': 'at least', 'frequency': 1, 'keyword': 5}]}),
    ('ifeval', None), ('ifeval', 'x'), ('ifeval', {'instruction_id_list': ['no:rule'], 'kwargs': [{}]}), ('ifeval', []),
    ('ifeval', {'instruction_id_list': ['punctuation:no_comma'], 'kwargs': []}), ('ifeval', NAN),
    ('ifeval', {'instruction_id_list': ['length_constraints:number_words'], 'kwargs': [{'relation': 'at least', 'num_words': NAN}]}),
    ('code', None), ('code', []), ('code', '[]'), ('code', {}), ('code', 'x'), ('code', {'tests': []}), ('code', NAN),
    ('code', {'inputs': [[1, 2]], 'outputs': [3], 'fn_name': 'add'}), ('code', {'inputs': ['1\n'], 'outputs': ['2\n'], 'fn_name': 'add'}),
    ('code', {'inputs': [[1, 2]], 'outputs': ['3']}), ('code', {'inputs': ['1 2'], 'outputs': [3]}), ('code', {'inputs': ['1'], 'outputs': ['1', '2']}),
    ('code', ['assert add(1, 2) == 3']), ('code', ['assert f(1) == 1', 'assert f(2) == 2']), ('code', [{'input': '1'}]), ('code', [{'input': 1, 'output': '1'}]),
    ('code', [{'input': None, 'output': '1'}]), ('code', {'language': 'cobol', 'tests': [{'input': '', 'output': ''}]}),
    ('code', {'tests': [{'input': '', 'output': ''}], 'time_limit_s': -1}), ('code', {'tests': [{'input': '', 'output': ['1']}]}),
    ('code', {'tests': [{'input': '', 'output': ''}], 'time_limit_s': 'soon'}), ('code', {'inputs': 5, 'outputs': 5}), ('code', {'tests': 5}),
]


@pytest.mark.parametrize('kind, value', REFUSED, ids=lambda value: ascii(value)[:60])
def test_what_no_completion_can_match_is_refused(kind, value):
    with pytest.raises(ValueError, match=f'{kind}: cannot read the truth'):
        read_truth(kind, value)


def test_the_reason_is_named():
    for kind, value, reason in [
            ('math', ['34', '35'], '2 different truths'), ('math', NAN, 'no number'), ('math', True, 'True'), ('math', None, 'one text'),
            ('code', {'inputs': ['1'], 'outputs': ['1'], 'fn_name': 'add'}, "function"),
            ('code', {'inputs': [[1, 2]], 'outputs': [3]}, 'must be a text'), ('code', ['assert f(1)'], 'a test is'),
            ('code', {'inputs': ['1'], 'outputs': []}, '1 inputs and 0 outputs'), ('countdown', {'numbers': [-5], 'target': 1}, '-5')]:
        with pytest.raises(ValueError, match=reason):
            read_truth(kind, value)
    with pytest.raises(ValueError, match='no verifier'):
        read_truth('nosuch', '34')


def test_ifeval_without_empty_cells():
    """pandas fills the arguments that a row does not have with NaN, and makes ints floats."""
    given = {'relation': 'at least', 'num_words': 3.0, 'capital_frequency': NAN, 'keywords': None}
    for value in ({'instruction_id_list': ['length_constraints:number_words'], 'kwargs': [given]},
                  {'instruction_id_list': np.array(['length_constraints:number_words'], object), 'kwargs': np.array([given], object)}):
        for form in (value, [value]):
            text = read_truth('ifeval', form)
            assert json.loads(text)['kwargs'] == [{'relation': 'at least', 'num_words': 3, 'capital_frequency': None, 'keywords': None}]
            assert verify('ifeval', 'one two three', text) == 1 and verify('ifeval', 'one two', text) == 0
    nth = {'first_word': 'so', 'num_paragraphs': 2.0, 'nth_paragraph': 2.0}
    text = read_truth('ifeval', {'instruction_id_list': ['length_constraints:nth_paragraph_first_word'], 'kwargs': [nth]})
    assert verify('ifeval', 'A.\n\nSo it is.', text) == 1
    rows = json.dumps([{'instruction_id': ['punctuation:no_comma'], 'kwargs': [None]}])
    assert verify('ifeval', 'no', read_truth('ifeval', rows)) == 1 and verify('ifeval', 'a, b', read_truth('ifeval', [rows])) == 0
    none = {'instruction_id_list': ['punctuation:no_comma'], 'kwargs': [NAN]}
    assert verify('ifeval', 'no', read_truth('ifeval', none)) == 1


@needs_sandbox
def test_tests_of_programs():
    """A list of one test is the truth itself; a list of one text of JSON is unwrapped."""
    test = {'input': '1 2\n', 'output': '3\n'}
    lists = {'inputs': ['1 2\n'], 'outputs': ['3\n']}
    program = '```python\nprint(sum(map(int, input().split())))\n```'
    for value in ([test], json.dumps([test]), [json.dumps([test])], str([test]), np.array([test], object), {'tests': [test]}, [{'tests': [test]}],
                  lists, [lists], json.dumps(lists), [json.dumps(lists)], {'test_cases': [test], 'fn_name': None}, {**lists, 'fn_name': NAN},
                  {'inputs': np.array(['1 2\n'], object), 'outputs': np.array(['3\n'], object)}, [test, test]):
        text = read_truth('code', value)
        assert isinstance(text, str)
        check_truth('code', text)
        assert verify('code', program, text) == 1
    assert verify('code', '```python\nprint(4)\n```', text) == 0


def test_truths_of_functions_of_ones_own(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text('def f(completion, truth):\n    return float(completion == truth)\n')
    kind = f'{path}:f'
    for value, text in [('a', 'a'), ('["a"]', '["a"]'), (1e-05, '0.00001'), (3, '3'), (3.0, '3'), ({'a': NAN}, '{"a": null}'), (['a'], 'a'),
                        (['a', 'b'], '["a", "b"]'), (True, 'true'), (np.float32(0.5), '0.5'), (np.array([1, 2]), '[1, 2]'), ('', '')]:
        assert read_truth(kind, value) == text and verify(kind, text, text) == 1
    for value in (None, NAN, object(), {'a': math.inf}):
        with pytest.raises(ValueError):
            read_truth(kind, value)


def test_a_million_truths_are_read_in_minutes():
    for kind, values in (('math', [f'\\frac{{{i}}}{{7}}' for i in range(1000)]), ('gsm8k', [f'{i},000' for i in range(1, 1000)]),
                         ('gsm8k', list(range(1000))), ('mcq', list('ABCDEFGHIJ') * 100)):
        start = time.perf_counter()
        for value in values:
            read_truth(kind, value)
        took = time.perf_counter() - start
        print(f'{kind}: {took * 1000:.0f} microseconds a truth')
        assert took < 1, 'the machine may be slow, but not ten times'
