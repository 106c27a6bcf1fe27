"""The embedded search task: reach a target from digits with + - * from left to right.

A completion is attempts, one a line: '9-8=1+5=6?6y'. The last line is the answer. It is computed
again here; what the model wrote as the target and as its verdict (y or n) decides nothing.
"""
import re

from rewards.countdown import numbers_and_target

# digits, an operator, a digit, the running result, ...; then the target and a verdict
ATTEMPT = re.compile(r'([0-9]{1,4}(?:[-+*][0-9]{1,4}=[0-9]{1,4}){1,9})\?[0-9]{1,4}[yn]')
STEP = re.compile(r'([-+*])([0-9]+)=([0-9]+)')


def last_attempt(completion):
    """'9-8=1+5=6' of a completion whose last line is '9-8=1+5=6?6y'; None of another.

    A line that was cut before its verdict is no attempt.
    """
    last_line = completion.rstrip(' \r\n').rpartition('\n')[2]
    found = ATTEMPT.fullmatch(last_line)
    return found[1] if found else None


def search_answer(completion):
    """The result of the last attempt as text: '22'; None without one. It is what majorities vote on."""
    attempt = last_attempt(completion)
    return attempt.rpartition('=')[2] if attempt else None


def search(completion, truth):
    """(reward, rule): the truth is {'numbers': [5, 8, 9], 'target': 6}, or its text."""
    numbers, target = numbers_and_target(truth)
    attempt = last_attempt(completion)
    if attempt is None:
        return 0.0, 'no attempt'

    result = int(re.match('[0-9]+', attempt)[0])
    used = [result]
    for operator, operand, written in STEP.findall(attempt):
        operand = int(operand)
        used.append(operand)
        result = {'+': result + operand, '-': result - operand, '*': result * operand}[operator]
        if result != int(written):
            return 0.0, f'{written} is not {result}'
    is_right = result == target and sorted(used) == sorted(numbers.elements())
    return float(is_right), f'{result} from {used}'
