"""The embedded tasks: rows that this file makes, so that a first run needs no download.

`search` is the default. Reach a target from two, three or four digits, with + - * from left to
right and each digit once. A prompt and a completion:

    5 8 9>6             the digits and the target

    9-5=4+8=12?6n       an attempt with its running results, the target again, and a verdict
    9-8=1+5=6?6y        the last attempt is the answer

The start model learns from rows whose arithmetic and verdicts are right, but which stop after an
attempt at random, whether it was right or wrong. So it can compute and can check, and does not act
on it. Reinforcement learning teaches it to go on until an attempt is right: completions get longer
while the reward grows.

`sums` is smaller: add up digits, with the running totals as the work shown.

    3+5+2               3 8 10 #### 10

Each task has the splits `base` (stands in for pretraining), `train` (prompts, truths and
demonstrations) and `test`. Search has two more: `tune`, problems to choose settings by, and
`arithmetic`, lines to compute without a target, to see whether training harms that skill.
"""
import random
import zlib
from dataclasses import dataclass
from functools import cache
from itertools import accumulate


def task_rows(name):
    """The rows of 'search:train', 'sums:test' and so on, a list of dicts; None for another name.

    They are the same on every machine. Raises ValueError, which lists the splits, for a task with
    an unknown one.
    """
    task, colon, split = name.partition(':')
    if not colon or task not in TASKS:
        return None
    sizes, make_rows = TASKS[task]
    if split not in sizes:
        raise ValueError(f'{task} has no split {split!r}; it has {", ".join(sizes)}')
    return make_rows(split, sizes[split], random.Random(name))


# --- search -------------------------------------------------------------------
SEARCH_SIZES = {'base': 30000, 'train': 6000, 'tune': 300, 'test': 300, 'arithmetic': 300}  # rows
SEARCH_DIGITS = (2, 3, 4)  # the difficulty
LARGEST_RESULT = 12  # running results are from 0 to this
STOP_CHANCE = 0.4  # of a base row, after each of its attempts
ARITHMETIC_SHARE = 0.15  # of base rows: lines to compute, less the eighth that is kept for testing
LONGEST_BASE_ROW = 10  # attempts
LONGEST_DEMONSTRATION = 120  # characters


@dataclass
class Attempt:
    """Digits in some order, combined from left to right."""
    expression: str  # '9-8+5'
    text: str  # '9-8=1+5=6'
    result: int  # 6


def make_attempt(digits, rng):
    """A random Attempt that uses each digit once."""
    attempt = None
    while attempt is None:
        attempt = combine(rng.sample(digits, len(digits)), rng)
    return attempt


def combine(digits, rng):
    """The Attempt with the digits in this order and random operators.

    None where a running result is not from 0 to LARGEST_RESULT.
    """
    result = digits[0]
    expression = text = str(result)
    for digit in digits[1:]:
        operator = rng.choice('+-*')
        result = {'+': result + digit, '-': result - digit, '*': result * digit}[operator]
        if not 0 <= result <= LARGEST_RESULT:
            return None
        expression += f'{operator}{digit}'
        text += f'{operator}{digit}={result}'
    return Attempt(expression, text, result)


def search_line(attempt, target):
    """An attempt with the target and a right verdict: '9-8=1+5=6?6y'."""
    verdict = 'y' if attempt.result == target else 'n'
    return f'{attempt.text}?{target}{verdict}'


def search_split(digits, target):
    """The split that a problem belongs to: 'test', 'tune' or 'train'.

    Test and tune have an eighth each; of two digits a quarter each, because there are so few. The
    order of the digits makes no difference, so that no problem is in two splits.
    """
    key = f'{sorted(digits)}>{target}'
    parts = 4 if len(digits) == 2 else 8
    # a checksum, unlike Python's hash(), is the same in every process
    part = zlib.crc32(key.encode()) % parts
    if part == 0:
        return 'test'
    if part == 1:
        return 'tune'
    return 'train'


@cache
def possible_results(digits):
    """The results that attempts with these digits (a tuple) can have, a frozenset."""
    if len(digits) == 1:
        return frozenset(digits)
    results = set()
    # each digit may be the last one: it is combined with a result of the others
    for i, last in enumerate(digits):
        for result in possible_results(digits[:i] + digits[i + 1:]):
            results |= {result + last, result - last, result * last}
    return frozenset(result for result in results if 0 <= result <= LARGEST_RESULT)


def make_problem(split, n, rng):
    """n digits and a target, drawn until the problem is of this split.

    Each result that is possible with the digits is equally likely to be the target. So a model that only
    changes its habits, to add all digits say, gains nothing: no result is right more often than another.
    """
    while True:
        digits = [rng.randint(1, 9) for _ in range(n)]
        results = sorted(possible_results(tuple(sorted(digits))))
        target = rng.choice(results)
        # with a single possible result every attempt would be right
        if len(results) > 1 and search_split(digits, target) == split:
            return digits, target


def search_rows(split, size, rng):
    """`size` rows of a split of search, the difficulties in turn; test and tune without repetition."""
    if split == 'arithmetic':
        return distinct_rows(size, SEARCH_DIGITS, lambda n: arithmetic_row(n, rng))
    if split in ('test', 'tune'):
        return distinct_rows(size, SEARCH_DIGITS, lambda n: demonstrated_row(split, n, rng))
    # base has problems of the train side, too
    make_row = base_row if split == 'base' else demonstrated_row
    return [make_row('train', SEARCH_DIGITS[i % len(SEARCH_DIGITS)], rng) for i in range(size)]


def base_row(split, n, rng):
    """Attempts until chance says stop, whatever the verdict; or a line of arithmetic."""
    if rng.random() < ARITHMETIC_SHARE:
        attempt = make_attempt([rng.randint(1, 9) for _ in range(n)], rng)
        # an eighth is kept for the split `arithmetic`
        if not is_for_testing(attempt.expression):
            return chat_row(attempt.expression, attempt.text, n)
    digits, target = make_problem(split, n, rng)
    lines = []
    while len(lines) < LONGEST_BASE_ROW:
        lines.append(search_line(make_attempt(digits, rng), target))
        if rng.random() < STOP_CHANCE:
            break
    return chat_row(search_prompt(digits, target), '\n'.join(lines), n)


def chat_row(question, answer, difficulty):
    """A row of a split that stands in for pretraining."""
    messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
    return {'messages': messages, 'difficulty': difficulty}


def search_prompt(digits, target):
    """'5 8 9>6'."""
    return f'{" ".join(map(str, digits))}>{target}'


def demonstrated_row(split, n, rng):
    """A prompt with its truth, and a random search that found the target as a demonstration."""
    digits, target = make_problem(split, n, rng)
    return {'prompt': search_prompt(digits, target), 'answer': {'numbers': digits, 'target': target},
            'demonstration': make_search(digits, target, rng), 'dataset': 'search', 'difficulty': n}


def make_search(digits, target, rng):
    """Random attempts, none twice, of which the last reaches the target; not too long as text."""
    while True:
        # one search: it ends at the target, or when it has become too long
        lines = []
        while len('\n'.join(lines)) <= LONGEST_DEMONSTRATION:
            attempt = make_attempt(digits, rng)
            line = search_line(attempt, target)
            if line not in lines:
                lines.append(line)
            if attempt.result == target:
                break
        # a search that is too long is thrown away, and another one begins
        text = '\n'.join(lines)
        if lines[-1].endswith('y') and len(text) <= LONGEST_DEMONSTRATION:
            return text


def arithmetic_row(n, rng):
    """'9-8+5', which the start model continues with '9-8=1+5=6'."""
    while True:
        attempt = make_attempt([rng.randint(1, 9) for _ in range(n)], rng)
        if is_for_testing(attempt.expression):
            return {'prompt': attempt.expression, 'answer': str(attempt.result),
                    'demonstration': attempt.text, 'dataset': 'gsm8k', 'difficulty': n}


# --- sums ---------------------------------------------------------------------
SUM_SIZES = {'base': 20000, 'train': 8000, 'tune': 300, 'test': 450}  # rows
SUM_OPERANDS = range(2, 11)  # digits to add up: the difficulty
# operands of base rows and their shares: few are hard
SUM_BASE = {2: 2, 3: 4, 4: 6, 5: 6, 6: 6, 7: 4, 8: 2}
SUM_BASE_WORKED = 0.4  # share of base rows that show their work; the others are guesses, all wrong


def sum_rows(split, size, rng):
    """`size` rows of a split of sums, the difficulties in turn; those of test and tune without repetition."""
    if split == 'test':
        return distinct_rows(size, SUM_OPERANDS, lambda n: sum_row(split, n, rng))
    if split == 'tune':
        # prompts that neither train nor test has; of two digits few are left
        tested = {row['prompt'] for row in task_rows('sums:test')}
        rows = distinct_rows(2 * size, SUM_OPERANDS, lambda n: sum_row('test', n, rng))
        return [row for row in rows if row['prompt'] not in tested][:size]
    # of base the easy levels more often
    operands = list(SUM_OPERANDS)
    if split == 'base':
        operands = rng.choices(list(SUM_BASE), SUM_BASE.values(), k=size)
    return [sum_row(split, operands[i % len(operands)], rng) for i in range(size)]


def sum_row(split, n, rng):
    """A row of n operands. A checksum of the prompt keeps test prompts out of train and base."""
    while True:
        digits = [rng.randrange(10) for _ in range(n)]
        prompt = '+'.join(map(str, digits))
        if is_for_testing(prompt) == (split == 'test'):
            break
    # '3+5+1' is worked out as '3 8 9 #### 9'
    answer = sum(digits)
    totals = ' '.join(str(total) for total in accumulate(digits))
    worked = f'{totals} #### {answer}'
    if split != 'base':
        return {'prompt': prompt, 'answer': str(answer), 'demonstration': worked, 'dataset': 'sums',
                'difficulty': n}
    # a row of base: worked out, or a number that is not the answer
    guess = rng.choice([x for x in range(9 * n + 1) if x != answer])
    reply = worked if rng.random() < SUM_BASE_WORKED else f'#### {guess}'
    return chat_row(prompt, reply, n)


# --- both ---------------------------------------------------------------------
def is_for_testing(prompt):
    """Whether a prompt belongs to a test split: a checksum chooses an eighth of all."""
    return zlib.crc32(prompt.encode()) % 8 == 0


def distinct_rows(size, levels, make_row):
    """`size` rows with different prompts, the levels in turn. make_row(n) makes one of level n.

    Of the easiest level there are few prompts (of sums a dozen). The other levels fill up evenly.
    """
    pools = []  # the rows of each level
    for n in levels:
        distinct = {}  # prompt -> row
        for _ in range(size):
            row = make_row(n)
            distinct[row['prompt']] = row
        pools.append(list(distinct.values()))
    # one of each level, then the next of each, as long as a level has more
    rows = []
    for i in range(size):
        rows += [pool[i] for pool in pools if i < len(pool)]
    return rows[:size]


# task -> (its splits and their sizes, what makes the rows)
TASKS = {'search': (SEARCH_SIZES, search_rows), 'sums': (SUM_SIZES, sum_rows)}
