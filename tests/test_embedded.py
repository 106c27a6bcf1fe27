"""The embedded tasks: their rows are right, the same on every machine, and no problem is in two splits; the verifier of search."""
import json
import re
from collections import Counter, defaultdict
from itertools import permutations, product

import pytest

import embedded
from data import load_tokenizer, rl_prompts
from embedded import task_rows
from rewards.search import search_answer
from rows import read_rows
from verify import verify

SEARCH = {split: task_rows(f'search:{split}') for split in embedded.SEARCH_SIZES}
SUMS = {split: task_rows(f'sums:{split}') for split in embedded.SUM_SIZES}

TEST_OF_SEARCH = ['4 5>9', '8 8 7>9', '5 9 5 4>0']
TEST_OF_SUMS = ['0+5', '2+4+6', '0+3+3+9']


def evaluate(line):
    """(digits, result, target, verdict) of a line whose running results are right, by Python's own arithmetic."""
    attempt, _, claim = line.partition('?')
    parts = attempt.split('=')
    result, used = None, []
    for part, running in zip(parts, parts[1:]):
        # the first part is '9+8', a later one '17+5', which begins with the running result
        assert eval(part) == int(re.match('[0-9]+', running)[0])
        numbers = [int(x) for x in part.replace('*', '+').replace('-', '+').split('+')]
        used += numbers if result is None else numbers[1:]
        result = eval(part)
    return sorted(used), result, int(claim[:-1]), claim[-1]


def problem_of(prompt):
    digits, target = prompt.split('>')
    return tuple(sorted(map(int, digits.split()))), int(target)


def test_sizes_and_names():
    for rows, sizes in ((SEARCH, embedded.SEARCH_SIZES), (SUMS, embedded.SUM_SIZES)):
        assert {split: len(found) for split, found in rows.items()} == sizes
    assert task_rows('search:train') == SEARCH['train']
    assert task_rows('rows.jsonl') is None and task_rows('search') is None and task_rows('other:train') is None
    with pytest.raises(ValueError, match="search has no split 'other'; it has base, train, tune, test, arithmetic"):
        task_rows('search:other')
    # pinned: the same on every machine
    assert [row['prompt'] for row in SEARCH['test'][:3]] == TEST_OF_SEARCH
    assert [row['prompt'] for row in SUMS['test'][:3]] == TEST_OF_SUMS


def test_no_problem_is_in_two_splits():
    """In whatever order its digits are; the start model has seen none of test and tune either."""
    problems = {split: {problem_of(row['prompt']) for row in SEARCH[split]} for split in ('train', 'tune', 'test')}
    asked = [row['messages'][0]['content'] for row in SEARCH['base']]
    problems['base'] = {problem_of(prompt) for prompt in asked if '>' in prompt}
    for held_out in ('tune', 'test'):
        for other in problems.keys() - {held_out}:
            assert not problems[held_out] & problems[other]
    assert not {row['prompt'] for row in SEARCH['arithmetic']} & set(asked)
    for split in ('tune', 'test', 'arithmetic'):
        assert len({row['prompt'] for row in SEARCH[split]}) == 300


def results_by_trying(digits):
    """What attempts with these digits can give, by Python's own arithmetic on every order and every choice of operators."""
    results = set()
    for order in permutations(digits):
        for operators in product('+-*', repeat=len(digits) - 1):
            runnings = [order[0]]
            for operator, digit in zip(operators, order[1:]):
                runnings.append(eval(f'{runnings[-1]}{operator}{digit}'))
            if all(0 <= running <= embedded.LARGEST_RESULT for running in runnings):
                results.add(runnings[-1])
    return results


def test_possible_results():
    assert embedded.possible_results((5, 8)) == {3} and embedded.possible_results((2, 3)) == {1, 5, 6}
    for digits in [(1, 1), (9, 9), (1, 2, 3), (4, 4, 9), (9, 9, 9), (1, 1, 1, 1), (2, 4, 6, 9), (9, 9, 9, 9)]:
        assert embedded.possible_results(digits) == results_by_trying(digits)


def test_no_habit_pays():
    """Adding all digits is right as often as each other result: in 1 of n problems, n being the number of possible results."""
    hits, expected, variance = 0, 0.0, 0.0
    for row in SEARCH['train']:
        digits, target = problem_of(row['prompt'])
        # some results of these digits belong to test and tune
        possible = [x for x in embedded.possible_results(digits) if embedded.search_split(digits, x) == 'train']
        assert target in possible and len(embedded.possible_results(digits)) > 1
        if sum(digits) in possible:
            chance = 1 / len(possible)
            hits += target == sum(digits)
            expected += chance
            variance += chance * (1 - chance)
    assert expected > 300 and abs(hits - expected) < 3 * variance ** 0.5


@pytest.mark.parametrize('split', ['train', 'tune', 'test'])
def test_demonstrations_of_search_are_right(split):
    for row in SEARCH[split]:
        digits, target = problem_of(row['prompt'])
        assert row['answer'] == {'numbers': [int(x) for x in row['prompt'].split('>')[0].split()], 'target': target}
        assert row['difficulty'] == len(digits) and len(row['demonstration']) <= embedded.LONGEST_DEMONSTRATION
        *before, last = row['demonstration'].split('\n')
        assert evaluate(last) == (list(digits), target, target, 'y') and len({*before, last}) == len(before) + 1
        for line in before:
            used, result, claimed, verdict = evaluate(line)
            assert used == list(digits) and result != target and claimed == target and verdict == 'n'
        assert verify('search', row['demonstration'], row['answer']) == 1
        assert not before or verify('search', '\n'.join(before), row['answer']) == 0


def test_base_rows_of_search_stop_at_random():
    """Right arithmetic and verdicts; the share of rows that end after an attempt is the same for y and n, and in the middle."""
    ended, seen = Counter(), Counter()
    arithmetic = 0
    for row in SEARCH['base']:
        question, reply = (message['content'] for message in row['messages'])
        if '>' not in question:
            arithmetic += 1
            _, result, _, _ = evaluate(reply + '?0n')
            assert re.sub('=[0-9]+', '', reply) == question and reply.endswith(f'={result}')
            continue
        digits, target = problem_of(question)
        lines = reply.split('\n')
        for line in lines:
            used, result, claimed, verdict = evaluate(line)
            assert used == list(digits) and claimed == target and verdict == ('y' if result == target else 'n')
            seen[verdict] += 1
        if len(lines) < embedded.LONGEST_BASE_ROW:
            ended[lines[-1][-1]] += 1
    assert abs(arithmetic / 30000 - embedded.ARITHMETIC_SHARE * 7 / 8) < 0.01
    for verdict in 'yn':
        assert abs(ended[verdict] / seen[verdict] - embedded.STOP_CHANCE) < 0.015


def test_the_levels_fill_up_evenly():
    for rows, levels in ((SEARCH['test'], (2, 3, 4)), (SUMS['test'], range(2, 11))):
        counts = Counter(row['difficulty'] for row in rows)
        assert set(counts) == set(levels) and counts[2] > 5
        others = [counts[n] for n in levels if n != 2]
        assert max(others) - min(others) <= 1


def test_rows_of_sums():
    for row in SUMS['train'][:500] + SUMS['test']:
        digits = [int(d) for d in row['prompt'].split('+')]
        totals = [str(sum(digits[:i])) for i in range(1, len(digits) + 1)]
        assert row == {
            'prompt': row['prompt'],
            'answer': str(sum(digits)),
            'difficulty': len(digits),
            'dataset': 'sums',
            'demonstration': f'{" ".join(totals)} #### {sum(digits)}',
        }
    prompts = {row['prompt'] for row in SUMS['test']}
    assert len(prompts) == 450
    assert not prompts & {row['prompt'] for row in SUMS['train']}
    assert not prompts & {row['messages'][0]['content'] for row in SUMS['base']}
    # to choose learning rates by: prompts that are in no other split
    tune = {row['prompt'] for row in SUMS['tune']}
    assert len(tune) == len(SUMS['tune']) == 300 and not tune & prompts
    assert not tune & {row['prompt'] for row in SUMS['train']} | tune & {row['messages'][0]['content'] for row in SUMS['base']}
    by_level = defaultdict(list)
    for row in SUMS['base']:
        by_level[row['difficulty']].append([message['content'] for message in row['messages']])
    for n, share in embedded.SUM_BASE.items():
        pairs = by_level[n]
        assert abs(len(pairs) / 20000 - share / sum(embedded.SUM_BASE.values())) < 0.02
        worked = [pair for pair in pairs if not pair[1].startswith('#')]
        assert abs(len(worked) / len(pairs) - embedded.SUM_BASE_WORKED) < 0.05
        for prompt, reply in pairs:  # the work is right, a guess never is
            right = int(reply.split()[-1]) == sum(map(int, prompt.split('+')))
            assert right == (not reply.startswith('#'))


# --- the verifier of search -----------------------------------------------------
TRUTH = {'numbers': [5, 8, 9], 'target': 22}
VERDICTS = [
    ('9+8=17+5=22?22y', 1), ('5*8=40+9=49?22n\n9+8=17+5=22?22y', 1), ('9+8=17+5=22?22y\n', 1),
    ('9+8=17+5=22?22n', 1),  # the last attempt is the answer, whatever is said of it
    ('9+8=17+5=22?49y', 1), ('nonsense\n9+8=17+5=22?22y', 1),
    ('9+8=17+5=22?22y\n5*8=40+9=49?22n', 0),  # a right attempt that is not the last
    ('5*8=40+9=49?22y', 0),  # claims to be right
    ('9+8=16+5=22?22y', 0), ('9+8=17+5=23?22y', 0), ('9*5=45-8=22?22y', 0),  # wrong arithmetic
    ('9+8=17+4=21+1=22?22y', 0), ('9+9=18+4=22?22y', 0), ('9+8=17+5=22+0=22?22y', 0), ('11*2=22?22y', 0),  # other digits
    ('9+8=17+5=22', 0), ('9+8=17+5=22?22', 0), ('9+8=17+5=22?22yy', 0), ('x9+8=17+5=22?22y', 0),  # cut, or not in the form
    ('9+8=17+5=22?22y\n9+8=', 0), ('', 0), ('\n', 0), ('22', 0), ('9+8+5=22?22y', 0), ('9+8=17+5=22?22y nonsense', 0),
    ('٩+8=17+5=22?22y', 0), ('9' * 10 ** 6, 0), ('9+8=17' + '+5=22' * 10 ** 5 + '?22y', 0), ('\n' * 10 ** 6, 0),
]


@pytest.mark.parametrize('completion, verdict', VERDICTS, ids=lambda value: ascii(value)[:40])
def test_verdicts_of_search(completion, verdict):
    assert verify('search', completion, TRUTH) == verdict
    assert verify('search', completion, json.dumps(TRUTH)) == verdict


def test_each_digit_counts_as_often_as_it_is_given():
    truth = {'numbers': [3, 3, 4], 'target': 13}
    assert verify('search', '3*3=9+4=13?13y', truth) == 1
    assert verify('search', '3*3=9+4=13?13y', {'numbers': [3, 4, 4], 'target': 13}) == 0
    assert verify('search', '7-4=3-3=0?0y', {'numbers': [3, 4, 7], 'target': 0}) == 1


def test_majorities_vote_on_results():
    assert search_answer('9+8=17+5=22?22y') == '22' and search_answer('1+1=2?22n\n9+8=17+5=22?22y') == '22'
    assert search_answer('9+8=17+5=22') is None


def test_rows_reach_the_verifier():
    """The truth of a prompt, read as a script reads it, takes the row's own demonstration."""
    tokenizer = load_tokenizer('tiny')
    for split in ('test', 'arithmetic'):
        rows, _ = read_rows(f'search:{split}')
        prompts, _ = rl_prompts(rows[:30], tokenizer, 100)
        for row, prompt in zip(rows, prompts):
            assert verify(prompt['kind'], row['demonstration'], prompt['truth']) == 1
            assert prompt['difficulty'] == row['difficulty']
