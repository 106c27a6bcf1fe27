"""verify.py: a table of verdicts, hostile completions, names and truths of rows, votes."""
import json
import os
import random
import time

import pytest

from rewards import sandbox
import verify as module
from verify import KINDS, boxed, check_truth, extract, gave_up, kind_of, verify


@pytest.fixture(autouse=True)
def bugs_surface(monkeypatch):
    """A TypeError, KeyError, ... of ours fails the test; in training it is printed once and counted."""
    monkeypatch.setattr(module, 'raise_bugs', True)


SUMS = [
    ('12 + 7\n#### 19', '19', 1), ('#### 19 \n', '19', 1), ('####19', '19', 1), ('#### 019', '19', 1),
    ('#### 18\n#### 19', '19', 1), ('#### 19\n#### 18', '19', 0), ('#### 19 or 20', '19', 0),
    ('19', '19', 0), ('#### 19.', '19', 0), ('#### -19', '19', 0), ('#### 1 9', '19', 0),
    ('#### ', '19', 0), ('#### 19\x1c', '19', 0), ('#### 19\xa0', '19', 0),
    ('\x00\ufffd\xff#### 19', '19', 1), ('#### 19\x00', '19', 0),
    ('#### 19\ufffd', '19', 0), ('#### ١٩', '19', 0), ('#### ' + '9' * 5000, '19', 0),
]
GSM8K = [
    # which number counts
    ('5 + 13 = 18\n#### 18', '18', 1), ('#### 17\nNo:\n#### 18', '18', 1),
    ('#### 18\nNo:\n#### 17', '18', 0), ('#### 18\n\\boxed{17}', '18', 1),
    ('So \\boxed{18}. The answer is 17.', '18', 1), ('The answer is 17. No, the answer is 18.', '18', 1),
    ('**Answer: 18**', '18', 1), ('Answer:\n18', '18', 1), ('She has 3 cats and 18 dogs.', '18', 1),
    ('A: 18', '18', 1), ('<answer>18</answer>', '18', 1), ('The answer is 9 * 2 = 18.', '18', 1),
    ('There are 18 at first. #### 17', '18', 0), ('', '18', 0),
    ('<think>17</think> The answer is 18', '18', 1), ('17</think>18', '18', 1),
    ('<think>#### 18', '18', 0), ('<think>a</think><think>#### 18', '18', 0),
    # how it is written
    ('#### $1,800.00', '1800', 1), ('#### 1800', '1,800', 1), ('\\boxed{1{,}800}', '1800', 1),
    ('#### 1', '1,800', 0), ('#### 1,80', '180', 0), ('#### 0,125', '125', 0), ('#### 18.0', '18', 1),
    ('#### 18.01', '18', 0), ('\\boxed{\\frac{1}{2}}', '0.5', 1), ('#### 1/2', '.5', 1),
    ('\\boxed{−3}', '-3', 1), ('#### 3', '-3', 0), ('#### - 18', '18', 0), ('#### -$18', '-18', 1),
    ('\\boxed{18\\text{ hours}}', '18', 1), ('#### 18%', '18', 1), ('It is at 6pm', '6', 1),
    ('It fell to −3', '-3', 1), ('It took 18, she said', '18', 1),
    ('She pays $18.', '18', 1), ('She has **18** dogs', '18', 1),
    ('#### 18 apples', '18', 1),
    # not a plain number
    ('The answer is 18 or 19.', '18', 0), ('I think 17 or 18', '18', 0),
    ('The answer is not 18', '18', 0), ('#### 17, 18', '18', 0),
    ('The answer is 17 dogs and 18 cats.', '18', 0),
    ('#### 18e5', '18', 0),
    ('#### 0x12', '18', 0), ('#### 18 million', '18', 0), ('#### minus 18', '18', 0),
    ('\\boxed{\\sqrt{9}}', '9', 0), ('\\boxed{x^{10}}', '10', 0), ('\\boxed{x > 18}', '18', 0),
    ('#### 18k', '18', 0), ('#### inf', '18', 0), ('#### nan', '18', 0), ('#### ١٨', '18', 0),
    ('#### １８', '18', 0), ('#### 1/0', '1', 0), ('#### 18!', '18', 0), ('#### 9-18', '18', 0),
    # a sum is not its result
    ('#### 9+9', '18', 0), ('#### 3 * 6', '18', 0), ('#### (3)(6)', '18', 0), ('#### 2(9)', '18', 0), ('\\boxed{2^4}', '16', 0),
    ('\\boxed{3 \\times 6}', '18', 0), ('\\boxed{3 \\times 6 = 18}', '18', 1), ('#### 2\\frac{1}{2}', '2.5', 1), ('#### -\\frac52', '-2.5', 1),
]
MATH = [
    # where the answer is
    ('Thus $\\boxed{4}$.', '4', 1), ('\\boxed{3}. No, \\boxed{4}', '4', 1), ('\\boxed{3} or \\boxed{4}', '4', 0),
    ('\\boxed{4} no, \\boxed{3}', '4', 0), ('\\boxed{4} or 5', '4', 0), ('not \\boxed{4}', '4', 0), ('\\boxed{\\boxed{4}}', '4', 1), ('\\fbox{4}', '4', 1),
    ('\\boxed {4}', '4', 1), ('\\boxed{4}' + ' ' * 300000 + '2', '4', 1),
    ('#### 4', '4', 1), ('Answer: 4', '4', 1),
    ('\\boxed{4}\n#### 5', '4', 1), ('The final answer is $4$. I hope it is correct.', '4', 1),
    ('4', '4', 1), ('So 4 it is, surely', '4', 0), ('<think>\\boxed{4}', '4', 0), ('<think>\\boxed{3}</think>\\boxed{4}', '4', 1),
    ('<think>\\boxed{4}</think> I forgot.', '4', 0), ('\\boxed{4', '4', 0), ('}}} {{ \\boxed{4}', '4', 1),
    ('\\boxed{\\{1,2\\}}', '\\{1,2\\}', 1), ('\\boxed{}', '4', 0),
    ('\\boxed{\\frac{\\sqrt{3}}{2}}', '\\frac{\\sqrt3}{2}', 1),
]
EQUAL = [  # answer, truth, verdict
    ('0.5', '\\frac12', 1), ('\\dfrac{1}{2}', '1/2', 1), ('-\\frac{1}{2}', '\\frac{-1}{2}', 1),
    ('\\frac 59', '\\frac{5}{9}', 1), ('-1\\frac{1}{2}', '-1.5', 1), ('1 1/2', '1.5', 1),
    ('1 1/2', '11/2', 0), ('1 1/2', '\\frac{11}{2}', 0), ('2\\frac{1}{3}', '\\frac{21}{3}', 0),
    ('2\\frac{3}{2}', '3.5', 0), ('1\\frac9{19}', '\\frac{9}{19}', 0), ('1\\frac 9{19}', '\\frac{28}{19}', 1),
    ('xy=5', '5', 0), ('AB=5', '5', 1), ('f(x)=2x', '2x', 1), ('x<3', '(-\\infty,3)', 1), ('3>x', 'x<3', 1), ('y<3', 'x<3', 0), ('−3', '-3', 1), ('x+y=5', '5', 0), ('(1,2),(3,4)', '(1,2.0),(3,4)', 1),
    ('1{,}234', '1234', 1), ('12,\\!345', '12345', 1), ('1,000,000', '1000000', 1), ('1, 200', '1200', 0),
    ('(1,2)', '(1, 2)', 1), ('(0.5,2)', '(\\frac12,2)', 1), ('(2,1)', '(1,2)', 0),
    ('(1,2,3)', '(1,2)', 0), ('[1,2]', '(1,2)', 0), ('[0,1)', '[0,1]', 0), ('1,2', '\\{1,2\\}', 1),
    ('((1,2),3)', '((1,2.0),3)', 1), ('\\left(1,2\\right)', '(1,2)', 1), ('\\$32.50', '32.5', 1),
    ('15\\text{ cm}', '15', 1), ('90^\\circ', '90', 1), ('90^{\\circ}', '90\\text{ degrees}', 1),
    ('15\\text{ cm}', '15\\text{ kg}', 0), ('15\\text{ million}', '15', 0), ('5m', '5', 0),
    ('50\\%', '50', 0), ('50\\%', '50.0%', 1), ('x=5', '5', 1), ('5', 'x=5', 1), ('x=5', 'y=5', 0),
    ('x=-5', '5', 0), ('y=2x+3', '2x+3', 1), ('2x+3', 'y=2x+3', 0), ('\\text{Evelyn}', '\\mathrm{Evelyn}', 1),
    ('\\text{not Evelyn}', '\\text{Evelyn}', 0), ('10\\text{:}30', '10:30', 1), ('x^{2}+1', 'x^2 + 1', 1),
    ('x^{10}', 'x^10', 1), ('204_5', '204_7', 0), ('204_5', '204', 0), ('18 or 19', '18', 0),
    ('18\\text{ or }19', '18', 0), ('18 (or 19)', '18', 0), ('9^{9^{9}}', '9^{9^9}', 1),
    ('3.14159266', '3.14159265', 0), ('100000', '99999', 0), ('0.5', '50', 0),
    ('0.\\overline{3}', '0.3', 0), ('²', '2', 0), ('1/0', '1', 0), ('\\frac{0}{0}', '0', 0),
    ('1e3', '1000', 0), ('10^{999999999}', '1', 0), ('9!' * 300, '1', 0), ('٥', '5', 0), ('５', '5', 0),
    ('?', '5', 0), ('nan', '5', 0), ("__import__('os').system('false')", '5', 0),
    ('1' * 1500, '1' * 1500, 1), ('1' * 1500 + '.0', '1' * 1500, 0), ('\\sqrt{8}', '2\\sqrt2', 1), ('8^{1/3}', '2', 1), ('\\sin\\frac{\\pi}{6}', '0.5', 1), ('i^2', '-1', 1), ('\\sin\\pi', '0', 1), ('ey=2x', 'y=2x/e', 1), ('e^{-200}', '0', 0), ('\\sqrt{10^{140}+1}', '10^{70}', 0), ('1' * 3000, '1' * 3000, 1),
    ('a' * 3000, 'a', 0), ('a' + ' ' * 3000 + 'b', 'a b', 0),
]
CASES = [(kind, *case) for kind, table in [('sums', SUMS), ('gsm8k', GSM8K), ('math', MATH)]
         for case in table]
CASES += [('math', f'So \\boxed{{{answer}}}.', truth, verdict) for answer, truth, verdict in EQUAL]


@pytest.mark.parametrize('kind, completion, truth, verdict', CASES, ids=lambda value: ascii(value)[:40])
def test_verdicts(kind, completion, truth, verdict):
    check_truth(kind, truth)
    assert verify(kind, completion, truth) == verdict


MEGABYTE = 10 ** 6
HOSTILE = {
    'open braces': '\\boxed{' + '{' * MEGABYTE, 'closed braces': '}' * MEGABYTE,
    'boxes': '\\boxed{' * (MEGABYTE // 7), 'box and blanks': '\\boxed' + ' ' * MEGABYTE,
    'blanks': ' ' * MEGABYTE, 'backslashes': '\\' * MEGABYTE, 'hashes': '#' * MEGABYTE,
    'digits': '1' * MEGABYTE, 'boxed digits': '\\boxed{' + '1' * MEGABYTE + '}',
    'hashed digits': '#### ' + '1' * MEGABYTE, 'numbers': '1 ' * (MEGABYTE // 2),
    'commas': '\\boxed{' + '1,' * 900 + '}', 'phrases': 'answer is ' * (MEGABYTE // 10),
    'phrase and blanks': 'answer' + ' ' * MEGABYTE, 'dots': 'answer is ' + '.' * MEGABYTE,
    'nested': '\\boxed{' + '(' * 900 + ')' * 900 + '}', 'minus': '\\boxed{' + '-' * 1900 + '5}',
    'signs': '=' * MEGABYTE, 'fractions': '\\boxed{' + '\\frac' * 390 + '}',
    'inner blanks': '\\boxed{1' + ' ' * 1900 + '2}', 'NUL': '\x00' * MEGABYTE,
    'surrogates': '\ud800#### \udfff', 'think': '<think>' * (MEGABYTE // 7), 'empty': '',
    'texts': '\\boxed{' + '\\text{' * 300 + '}' * 301,
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_completions_end_in_a_verdict(name):
    for kind in KINDS:
        start = time.perf_counter()
        assert verify(kind, HOSTILE[name], '5') == 0.0
        answer = extract(kind, HOSTILE[name])
        assert answer is None or isinstance(answer, str)
        print(f'{kind} {name}: {time.perf_counter() - start:.3f} s')


def test_nothing_but_text_is_no_answer():
    for kind in KINDS:
        for completion in (None, 5, b'#### 5', ['#### 5']):
            assert verify(kind, completion, '5') == 0.0 and extract(kind, completion) is None


def test_names_of_data_sets():
    for name in ('gsm8k', 'GSM8K', 'openai/gsm8k', 'svamp'):
        assert kind_of(name) == 'gsm8k'
    for name in ('math', 'MATH', 'lighteval/MATH', 'DigitalLearningGmbH/MATH-lighteval',
                 'HuggingFaceH4/MATH-500', 'math_dapo', 'aime24', 'AIME2025', 'HuggingFaceH4/aime_2024'):
        assert kind_of(name) == 'math'
    assert kind_of('sums') == 'sums'
    for name in ('nosuch', '', None):
        with pytest.raises(ValueError, match='gsm8k'):
            kind_of(name)


def test_unreadable_truths_are_named():
    for kind, truth in [('sums', '1.5'), ('sums', ''), ('gsm8k', 'eighteen'), ('gsm8k', '17 or 18'),
                        ('gsm8k', ''), ('gsm8k', '1/0'), ('math', ''), ('math', '\\frac{1}{2'),
                        ('math', 'a}{b'), ('math', None)]:
        with pytest.raises(ValueError, match='cannot read the truth') as error:
            check_truth(kind, truth)
        assert repr(truth) in str(error.value)
    with pytest.raises(ValueError, match='no verifier'):
        check_truth('nosuch', '5')


def test_votes_are_normalised():
    assert extract('sums', '#### 019') == '19' and extract('sums', '19') is None
    assert extract('gsm8k', '#### 1,800.00') == extract('gsm8k', 'The answer is $1800') == '1800'
    assert extract('math', '\\boxed{0.5}') == extract('math', '\\boxed{\\dfrac{1}{2}}') == '1/2'
    assert extract('math', '\\boxed{\\left( 3, \\pi \\right)}') == '(3,\\pi)'


def test_boxed_finds_the_last_balanced_one():
    assert boxed('\\boxed{a{b}c} \\boxed{d') == 'a{b}c' and boxed('\\boxed{\\{a}') == '\\{a'
    assert boxed('{a}') is None


HERE = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(HERE, 'data', 'math500_answers.json')) as f:
    ANSWERS = json.load(f)


def test_cross_pairs_of_math500_answers_are_not_equal():
    rng = random.Random(1)
    pairs = [rng.sample(ANSWERS, 2) for _ in range(20000)]
    equal = {tuple(sorted(p)) for p in pairs if p[0] != p[1] and verify('math', f'\\boxed{{{p[0]}}}', p[1])}
    assert equal <= {('120', '120^\\circ'), ('30', '30^\\circ'), ('5', 'x=5'), ('\\frac14', '\\frac{1}{4}'),
                     ('2 \\sqrt{5}', '2\\sqrt{5}'), ('\\dfrac{33}{100}', '\\frac{33}{100}')}, equal
    assert all(verify('math', f'\\boxed{{{a}}}', a) for a in ANSWERS)


def test_fuzz():
    rng, soup = random.Random(2), ['\\frac', '\\sqrt', '{', '}', '(', ')', '^', '_', '\\pm', ',', '1', '23', 'x', '\\boxed{',
                                   '|', '!', '=', '<', '\\text{', 'or', '\\cup', '[', ']', '\\sin', '9^9^9', '"', '/', '-', '.5']
    for i in range(20000):
        if i % 3 == 0:
            text = ''.join(rng.choices(soup, k=rng.randint(1, 20)))
        elif i % 3 == 1:
            text = bytes(rng.choices(range(256), k=rng.randint(0, 40))).decode('latin-1')
        else:
            text = list(rng.choice(ANSWERS))
            text[rng.randrange(len(text))] = rng.choice(soup)
            text = ''.join(text)
        start = time.perf_counter()
        for kind in ('math', 'gsm8k', 'mcq'):
            assert 0 <= verify(kind, f'\\boxed{{{text}}}' if i % 2 else text, 'A' if kind == 'mcq' else '7') <= 1
        assert time.perf_counter() - start < 1, text


def test_bugs_are_counted_and_printed_once(monkeypatch, capsys):
    monkeypatch.setitem(KINDS, 'sums', lambda completion, truth: {}['no such key'])
    with pytest.raises(KeyError):
        verify('sums', '#### 1', '1')
    monkeypatch.setattr(module, 'raise_bugs', False)
    gave_up.clear()
    module.bugs.clear()
    assert [verify('sums', '#### 1', '1') for _ in range(3)] == [0.0] * 3
    assert gave_up['sums'] == module.bugs['sums'] == 3
    assert capsys.readouterr().err.count('no such key') == 2  # the line and the message of one traceback


def test_several_rewards_count_as_their_mean(tmp_path):
    """A function of the user's may give {name: reward}; one out of range, or none at all, is a verdict given up."""
    path = tmp_path / 'several.py'
    path.write_text('import json\ndef f(completion, truth):\n    return json.loads(completion)\n')
    kind = f'{path}:f'
    gave_up.clear()
    for text, reward in [('{"right": 1, "short": 0}', 0.5), ('{"a": 1, "b": 0.5, "c": 0}', 0.5), ('{"a": 0.25}', 0.25), ('0.25', 0.25),
                         ('true', 1.0)]:
        assert verify(kind, text, '') == reward
    assert not gave_up
    for text in ('{"a": 1, "b": 1.5}', '{"a": 1, "b": NaN}', '{"a": -1, "b": 1}', '{}'):
        assert verify(kind, text, '') == 0
    assert gave_up == {kind: 4}
    # by worker processes too
    assert module.verify_all([(kind, '{"right": 1, "short": 0}', '')], workers=1) == [(0.5, False)]


def test_workers_survive_death_and_count(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text('import os, time\ndef f(completion, truth):\n    if completion == "die":\n        os._exit(1)\n'
                    '    if completion == "sleep":\n        time.sleep(60)\n    return float(completion == truth)\n')
    kind = f'{path}:f'
    check_truth(kind, 'a')
    items = [(kind, x, 'a') for x in ('a', 'die', 'b', 'sleep', 'a')] + [('math', '\\boxed{0.5}', '\\frac12')]
    gave_up.clear()
    assert module.verify_all(items, workers=1, deadline=3.0) == [
        (1.0, False), (0.0, True), (0.0, False), (0.0, True), (1.0, False), (1.0, False)]
    assert gave_up == {kind: 2}  # a kind without a lost verdict is not in it: sample.py would report 0
    with pytest.raises(ValueError):
        check_truth(f'{tmp_path}/none.py:f', 'a')


def test_countdown_uses_each_number_once():
    for answer, verdict in [('5*6+7', 1), ('5*6+7+0', 0), ('37', 0), ('5**6', 0), ('9' * 400, 0)]:
        assert verify('countdown', f'<answer>{answer}</answer>', {'numbers': [5, 6, 7], 'target': 37}) == verdict


PLACES = [os.path.join(HERE, *['..'] * up, 'shared') for up in (2, 3)]  # beside the checkout, or a worktree's parent
SHARED = next(filter(os.path.isdir, PLACES), PLACES[0])
needs_shared = pytest.mark.skipif(not os.path.isdir(SHARED), reason='the labelled rows are not here')


def shared_rows(path):
    with open(os.path.join(SHARED, path)) as f:
        return [json.loads(line) for line in f]


@needs_shared
@pytest.mark.parametrize('name, accuracy, false_positives', [
    ('gsm8k', 1, 0), ('mcq', 1, 0), ('countdown', 1, 0), ('code', 1, 0), ('math_own', 0.98, 0.005),
    ('math_math500', 0.98, 0.005), ('ifeval', 0.98, 1), ('adversarial', 0.98, 0.005)])
def test_labelled_rows(name, accuracy, false_positives):
    rows = [row for row in shared_rows(f'verify_dev/{name}.jsonl') if not row['contested']]
    rows = [row for row in rows if row['kind'] != 'code' or sandbox.sandboxed()]
    wrong = []
    for row in rows:
        start = time.perf_counter()
        if (verify(row['kind'], row['prediction'], row['gold']) == 1) != row['expected']:
            wrong.append((row['id'], row['expected']))
        assert time.perf_counter() - start < row.get('max_seconds', 5), row['id']
    print(f'{name}: {len(rows) - len(wrong)} of {len(rows)} verdicts are right')  # pytest -rP shows it
    assert len(wrong) <= (1 - accuracy) * len(rows), wrong
    assert sum(not expected for _, expected in wrong) <= false_positives * len(rows), wrong


@needs_shared
def test_labelled_completions_of_gsm8k():
    wrong = n = 0
    for row in shared_rows('data/gsm8k/example_model_solutions.jsonl'):
        truth = row['ground_truth'].rpartition('A: ')[2].strip()
        for made in filter(lambda value: isinstance(value, dict), row.values()):
            wrong += (verify('gsm8k', made['solution'], truth) == 1) != made['is_correct']
            n += 1
    print(f'completions of GSM8K: {n - wrong} of {n} verdicts are right')
    assert (n, wrong) == (5276, 0)


@needs_shared
def test_labelled_solutions_of_math500():
    rows = shared_rows('data/math500/test.jsonl')
    wrong = [row['answer'] for row in rows if verify('math', row['solution'], row['answer']) != 1]
    print(f'solutions of MATH-500: {len(rows) - len(wrong)} of {len(rows)} are right')
    assert len(rows) == 500 and not wrong


def test_against_math_verify():
    theirs = pytest.importorskip('math_verify')
    for i in range(0, 500, 5):
        for truth in (ANSWERS[i], ANSWERS[i - 1]):
            if verify('math', f'\\boxed{{{ANSWERS[i]}}}', truth):
                assert theirs.verify(theirs.parse(f'${truth}$'), theirs.parse(f'\\boxed{{{ANSWERS[i]}}}')), truth
