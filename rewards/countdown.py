r"""Countdown: reach a target from given numbers with + - * / and parentheses, each number once."""
import re
from collections import Counter
from fractions import Fraction

from rewards.answers import after_thinking, boxed, first_answer, loaded, need, tagged, unwrapped
from rewards.latex import exact

MAX_EXPRESSION = 500  # characters

# other spellings of the operators
OPERATORS = {
    '\\times': '*', '\\cdot': '*', '\\div': '/',
    '×': '*', '·': '*', '÷': '/', '−': '-', '–': '-',
}
ALLOWED = re.compile('[0-9+*/() -]+')
# two operators in a row (**, //, a sign) or a product without its sign
MALFORMED = re.compile(r'(?:^|[-+*/(])[-+*/]|[0-9)]\(|\)[0-9]')


def numbers_and_target(truth):
    """(Counter of the numbers, target as a Fraction) of a truth. Raises GaveUp on a broken one."""
    # no completion could match a truth that fails here
    truth = loaded(truth, dict)
    numbers = truth.get('numbers')
    target = truth.get('target')
    need(isinstance(numbers, (list, tuple)) and numbers, 'numbers and target are needed')
    for number in numbers:
        # a sign is not a number's own: -3 cannot be written
        is_integer = isinstance(number, int) and not isinstance(number, bool)
        need(is_integer and number >= 0, f'numbers must be whole, not {number!r}')
    # the target may be a fraction: '1/2'
    need(isinstance(target, (int, float, str)) and not isinstance(target, bool),
         f'a target must be a number, not {target!r}')
    return Counter(numbers), Fraction(str(target))


def read_expression(content):
    """An answer's expression with plain operators and without blanks around them: '5*6+7'."""
    text = unwrapped(content)[:MAX_EXPRESSION]
    for sign, plain in OPERATORS.items():
        text = text.replace(sign, plain)
    return re.sub(r' *([-+*/()]) *', r'\1', text.strip('$ \t\r\n'))


def countdown_answer(completion):
    """The expression in the last <answer>, else in the last box; None without one.

    '5*6+7' for '<answer>5 × 6 + 7</answer>'.
    """
    answer, _ = first_answer(after_thinking(completion), (tagged, boxed), read_expression)
    return answer


def countdown(completion, truth):
    """(reward, rule): the truth is {'numbers': [5, 6, 7], 'target': 37}, or its text."""
    numbers, target = numbers_and_target(truth)
    text = countdown_answer(completion) or ''
    # nothing but an expression is read
    if not ALLOWED.fullmatch(text) or MALFORMED.search(text):
        return 0.0, 'no expression'

    # two numbers without an operator, unpaired brackets and a division by zero have no value
    result = exact(text)
    if result is None:
        return 0.0, 'no value'
    # each number as often as it is given
    used = [int(digits) for digits in re.findall('[0-9]+', text)]
    is_right = result == target and Counter(used) == numbers
    return float(is_right), f'{result} from {used}'
