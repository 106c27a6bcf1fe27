"""A row's truth, in whatever form a file gave it, as the one text that is checked and then judged.

JSON, Parquet and pandas spell the same truth in many ways: 34, 34.0, '34', ['34'], '["34"]', a
numpy scalar, a numpy array of one. text_of() makes them one text. NaN is pandas' empty cell.
"""
import functools
import json
import math
import re
from decimal import Decimal

from rewards.answers import need, parsed

NUMBERS = ('sums', 'gsm8k', 'math')  # kinds whose truth is one text
READ_AS_JSON = ('mcq', 'ifeval', 'countdown', 'search', 'code')  # kinds whose truth may be a dict or a list

# --- Python's values ------------------------------------------------------------
def plain(value):
    """A value without numpy's types: an array becomes a list. Raises GaveUp on what has no text."""
    # numpy's float64 and str_ are a float and a str, too
    is_numpy = type(value).__module__ == 'numpy'
    if isinstance(value, (str, bool, int, float, Decimal)) and not is_numpy:
        return value
    if value is None:
        return None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        # ValueError for bytes that are no text
        return value.decode('utf-8')
    # of other libraries only numpy's values are known
    need(hasattr(value, 'dtype'), f'a truth cannot be of the type {type(value).__name__}')
    return plain_numpy(value)


def plain_numpy(value):
    """The same for an array or a scalar of numpy."""
    if value.ndim > 0:
        return [plain(item) for item in value]
    item = value.item()
    # a float32 of 0.1 is 0.10000000149011612 as a Python float
    if isinstance(item, float):
        return float(str(value))
    return plain(item)


def number_text(number):
    """A number without an exponent: '0.00001' for 1e-05, '34' for 34.0. Raises GaveUp on NaN."""
    # str() gives the shortest digits: Decimal(0.1) would have 55
    number = Decimal(str(number))
    need(number.is_finite(), f'{number} is no number')
    if number == number.to_integral_value():
        number = number.to_integral_value()
    # 0E+2 and -0 are zero
    if number == 0:
        return '0'
    return f'{number:f}'


def tidy(value):
    """The same value with None for NaN and with whole numbers as ints, as it was before pandas."""
    if isinstance(value, dict):
        return {key: tidy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [tidy(item) for item in value]
    if isinstance(value, Decimal):
        value = float(value)
    # NaN where a column is empty, and 3.0 for 3 where another row's cell is
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer():
            return int(value)
    return value


def json_text(value):
    """The value as JSON. Raises GaveUp on infinity, which JSON does not have."""
    try:
        return json.dumps(tidy(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        need(False, f'it has no text in JSON: {error}')


# --- lists around a truth -------------------------------------------------------
def the_only(value):
    """What a list of one holds, however deep; a value that is no list as it is.

    Raises GaveUp for a list of none or of different truths.
    """
    while isinstance(value, list):
        need(value, 'an empty list')
        first = value[0]
        for other in value[1:]:
            need(other == first, f'{len(value)} different truths, but one is needed')
        value = first
    return value


def read_code(value):
    """A truth of the kind 'code' as a dict or a list of tests."""
    value = read_json(value)
    # a list around a dict, or around the text of a list
    while isinstance(value, list) and len(value) == 1:
        only = read_json(value[0])
        # a list of one test is the truth itself
        if isinstance(only, dict) and 'input' in only:
            return [only]
        value = only
    need(isinstance(value, (dict, list)), 'a test is {"input": ..., "output": ...}')
    return value


def read_json(value):
    """A text of JSON or of Python's literals, read; anything else as it is."""
    return plain(parsed(value)) if isinstance(value, str) else value


# --- the text of a truth --------------------------------------------------------
# what may be a list or a dict that somebody made a text of: it has quotes or names
CONTAINER = re.compile(r'''\s*[\[({].*['"]''', re.DOTALL)
# a number as Python prints it: 1e-05. The LaTeX 2e-3 is something else.
PRINTED_NUMBER = re.compile(r'[-+]?[0-9]+(?:\.[0-9]+)?[eE](?:\+[0-9]+|-0[0-9]+)')
NO_TRUTH = re.compile(r'\s*(?:nan|null|<NA>|NaT)\s*', re.IGNORECASE)
# a value as Python prints it
PRINTED_OBJECT = re.compile(r'\s*(?:np\.\w+|array|Decimal|Fraction|tensor|dict_\w+)\(')


def text_of_number(kind, value):
    """The text of a truth of a kind in NUMBERS."""
    # 1. out of its lists; a text may be that of a list
    value = the_only(value)
    if isinstance(value, str) and CONTAINER.match(value):
        value = the_only(read_json(value))
    need(value is not None, 'one text is needed')
    need(not isinstance(value, (bool, dict)), f'one text is needed, not {value!r:.60}')

    # 2. a number is written out
    if not isinstance(value, str):
        return number_text(value)
    if PRINTED_NUMBER.fullmatch(value.strip()):
        return number_text(value.strip())

    # 3. a text that only the same text could match is no truth
    need(not NO_TRUTH.fullmatch(value), 'no truth')
    need(not PRINTED_OBJECT.match(value), 'a value as Python prints it')
    need(kind != 'math' or '####' not in value, 'the answer alone is needed, without ####')
    return value


def text_of(kind, value):
    """The one text that a truth of this kind is judged by. Raises GaveUp on what is none.

    text_of('math', ['34']) and text_of('math', 34.0) are '34'.
    """
    value = plain(value)
    if kind in NUMBERS:
        return text_of_number(kind, value)

    # a function of the user's own takes any text
    if kind not in READ_AS_JSON:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        need(value is not None, 'no truth')
        if isinstance(value, (dict, list, bool)):
            return json_text(value)
        return value if isinstance(value, str) else number_text(value)

    if kind == 'code':
        return json_text(read_code(value))

    # a dict, or the text of one
    value = the_only(read_json(the_only(value)))
    need(value is not None, 'no truth')
    if isinstance(value, str):
        # a list may hold a text of JSON
        value = the_only(read_json(value))
    if isinstance(value, dict):
        return json_text(value)
    # a letter
    need(kind == 'mcq' and isinstance(value, str), f'a dict is needed, not {value!r:.60}')
    return value


# --- a right completion ----------------------------------------------------------
@functools.lru_cache(1024)
def right_form(kind, answer):
    """A completion that gives this answer, in the form the kind expects."""
    if kind in ('sums', 'gsm8k'):
        return f'#### {answer}'
    return f'\\boxed{{{answer}}}'
