r"""Word problems whose answer is a number (gsm8k), and the sums of the embedded task (sums)."""
import functools
import re

from rewards.answers import UNCLEAR, after_hashes, after_phrase, after_thinking, boxed
from rewards.answers import first_answer, tagged, unwrapped
from rewards.latex import DOUBTFUL, MAX_DIGITS, exact, normal

# --- what a number looks like ---------------------------------------------------
CURRENCY = re.compile(r'\\?[$€£¥₹₩₽₺₦₫₱฿₪¢]')
# codes that stand before a sign or a number: US$18, Rs. 18
CURRENCY_CODE = re.compile(r'\b(?:US|AU|CA|NZ|HK|SG|A|C)(?=\$)|\bRs\.?(?=\s?[0-9])')
# 9+9 is not yet 18
SUM_TO_DO = re.compile(r'[*^!|]|\\(?!frac)|[0-9)}]([-+](?!\\frac)|\()')
# a formula that holds a number, but is none: x>18, 3x+5
RELATION = re.compile(r'[<>]|\\(?:le|ge|ne|gg|ll)(?![a-zA-Z])')
TERM = re.compile(
    r'(?<![a-zA-Z\\])[a-zA-Z] ?[-+*/^] ?[0-9]|[0-9] ?[-+*/] ?[0-9]*[a-zA-Z](?![a-zA-Z])')
# the left side of an equation that is still to be solved: 2x, x + y
UNKNOWN = re.compile(r'[0-9][xyzn](?![a-zA-Z])')
SUM_OF_UNKNOWNS = re.compile(r'(?<![a-zA-Z\\])[a-zA-Z] ?[-+*/^] ?[0-9a-zA-Z]')
# x = 17, x = 18
SEVERAL_VALUES = re.compile(r'(?<![a-zA-Z])[a-zA-Z] ?= ?-?[0-9.]+[,;]')
WORD_OF_PROSE = re.compile(r'(?<![\\a-zA-Z])[a-zA-Z]{2,}')
# a number with its unit in one word: 18, $18.50, 1/2, 18%, 5pm, 60km/h
NUMBER = re.compile(r'([-+]?[0-9.,]+(?:/[0-9]+)?)%?(?:[a-zA-Z]{2,})?(?:/[a-zA-Z]{2,})?')
# 'seventeen' is not read, but it is an answer
NUMERALS = set(
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen '
    'sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety '
    'hundred thousand million half dozen none nothing'.split())
UNSURE = re.compile(
    r"\b(?:cannot|can't|could not|unsure|not sure|maybe|perhaps|guess)\b", re.IGNORECASE)

# --- headings -------------------------------------------------------------------
PARTS = ('(?:step|part|case|question|problem|method|example|phase|stage|section|option|exercise'
         '|task|scenario|approach|note)')
# 'Step 2', '2. Add the heaps', '2 - Add the heaps': the number is not of the answer
ENUMERATED = re.compile(
    rf'{PARTS}\s*#?[0-9]+|[0-9]{{1,2}}\s?[.):]\s+\S|[0-9]{{1,2}}\s+[-–—]\s+[A-Za-z]', re.IGNORECASE)
# the same in a box, or at the beginning of a line in prose
PART = re.compile(rf'"?{PARTS}\s*#?[0-9]+\b', re.IGNORECASE)
ENUMERATION = re.compile(
    rf'^[#*> \t]{{0,9}}(?:{PARTS}[ \t]*[0-9]+|[0-9]{{1,2}}[.)](?=[ \t]+\S))', re.IGNORECASE | re.M)
HEADING_LINE = re.compile(r'^#{1,6} .*\n', re.MULTILINE)
# '18 apples', '$18', '\frac12', '\text{18 apples}': a line that begins with its number
NUMBER_FIRST = re.compile(
    r'(?:[^a-zA-Z0-9]|(?<=\\)[a-zA-Z]{1,20}|US(?=\$)|(?:USD|EUR|GBP|INR|Rs) ?)*[0-9]')
# 'x = 18', 'Total: 18'
NAMED_NUMBER = re.compile(r'(?:[a-z]|total|result|sum|solution) ?[=:] ?', re.IGNORECASE)
# '3 Ways to See It', '1st step', '(1) Add the heaps'
TITLE = re.compile(r'[0-9]{1,2} [A-Z][a-z]+ [A-Za-z]|\(?[0-9]{1,2}(?:st|nd|rd|th|\)) [A-Za-z]')
HEDGES = {'or', 'nor', 'not', 'either', 'neither', 'between', 'maybe', 'perhaps', 'about'}


def is_heading(line, text_follows):
    """Whether '#### line' is a Markdown heading ('Step 1: Add', 'Solution') and not an answer."""
    line = unwrapped(line)
    if ENUMERATED.match(line):
        return True
    # what a text ends with is no heading
    if not text_follows:
        return False
    if not re.search('[0-9]', line):
        return True
    if TITLE.match(line):
        return True
    # '#### She has 18 apples.' is a sentence
    if line.endswith('.'):
        return False
    named = NAMED_NUMBER.match(line)
    value = line[named.end():] if named else line
    if NUMBER_FIRST.match(value):
        return False
    # a hedge is no heading: no other line may rescue it
    return HEDGES.isdisjoint(line.lower().split())


# --- reading a number -----------------------------------------------------------
def without_currency(text):
    """'18' for '€18' and 'US$18'."""
    return CURRENCY.sub('', CURRENCY_CODE.sub('', text))


def number_of_word(word, nearby):
    """The Fraction that a word says, '18' or '5pm'; None if it or a word nearby is unclear."""
    for other in nearby:
        if other.lower().strip('.,;') in DOUBTFUL:
            return None
        if re.search(r'[\\^_]', other):
            return None
    # 'less than 18' is not 18
    place = nearby.index(word)
    if place > 0 and nearby[place - 1].lower() == 'than':
        return None
    found = NUMBER.fullmatch(word.strip('*').rstrip(".,;?'"))
    if not found:
        return None
    return exact(normal(found[1]))


def only_number(sentence):
    """The only number of a sentence, as 18 of 'she earns $18 a day'; None if it is unclear."""
    sentence = without_currency(sentence.replace('−', '-'))
    words = re.findall(r'[^\s(){}\[\]:"]+', sentence)
    numbers = [word for word in words if re.search('[0-9]', word)]
    if len(numbers) != 1:
        return None
    return number_of_word(numbers[0], words)


def last_number(text):
    """The last number of a text, as 18 of '3 * 6 = 18 apples'; None if it is unclear."""
    text = without_currency(text.replace('−', '-'))
    words = re.findall(r'[^\s(){}\[\]:"=<>]+', text)
    places = [i for i, word in enumerate(words) if re.search('[0-9]', word)]
    if not places:
        return None
    last = places[-1]
    nearby = words[max(last - 1, 0):last + 2]
    return number_of_word(words[last], nearby)


def is_prose(text):
    """Whether a text has words in it, beside the names of macros."""
    return WORD_OF_PROSE.search(text) is not None


def is_unsolved(left):
    """Whether an equation with this left side is still to be solved: 2x = 18, x + y = 18."""
    if UNKNOWN.search(left):
        return True
    return not is_prose(left) and SUM_OF_UNKNOWNS.search(left) is not None


def read_number(content):
    """The Fraction that an answer says; UNCLEAR for '17 or 18'; None for what holds no number."""
    text = unwrapped(content).strip('\'"‘’“”')
    text = normal(without_currency(text))
    if PART.match(text):
        return None
    # the last side counts, as in 9 * 2 = 18
    left, _, last = text.rpartition('=')
    if SEVERAL_VALUES.search(left):
        return UNCLEAR
    if is_unsolved(left):
        return None
    last = last.strip()
    if not SUM_TO_DO.search(last):
        number = exact(last)
        if number is not None:
            return number
    number = only_number(last.replace('"', ' '))
    if number is not None:
        return number

    # nothing clear: is it no answer at all, or an unclear one?
    if not re.search('[0-9]', last):
        words = re.findall('[a-z]+', last.lower())
        return None if HEDGES.union(NUMERALS).isdisjoint(words) else UNCLEAR
    is_formula = RELATION.search(last) or TERM.search(last)
    if is_formula and not is_prose(last):
        return None
    return UNCLEAR


def number_of_prose(text):
    """The last number of a text that marks no answer; None where its last line is in doubt."""
    tail = text.rstrip()[-2000:].replace('\\$', '$')
    before, line_end, last_line = tail.rpartition('\n')
    if UNSURE.search(last_line):
        return None
    # a text that ends with a heading was cut before its answer
    if last_line.startswith('#') and is_heading(last_line.strip('# '), False):
        return None
    # the numbers in headings and of steps are not the answer
    without_headings = HEADING_LINE.sub('', before + line_end) + last_line
    return last_number(ENUMERATION.sub('', without_headings))


def after_answer_hashes(text):
    """The last line after '####' that may be an answer; None without one."""
    return after_hashes(text, is_heading, read_number)


def gsm8k_answer(completion):
    r"""The number that a completion gives as its answer, as a Fraction; None without a clear one.

    Fraction(18) for 'So \boxed{18}.' and for '#### $18'.
    """
    text = after_thinking(completion)
    places = (after_answer_hashes, boxed, after_phrase, tagged)
    answer, is_marked = first_answer(text, places, read_number)
    if answer == UNCLEAR:
        return None
    # without any mark the last number counts
    if not is_marked:
        answer = number_of_prose(text)
    return answer


def sums_answer(completion):
    """The integer after the last '####', which must end the completion; None without one."""
    if '####' not in completion:
        return None
    tail = completion.rpartition('####')[2].strip(' \t\r\n')
    if not re.fullmatch(f'[-+]?[0-9]{{1,{MAX_DIGITS}}}', tail):
        return None
    return int(tail)


# --- judging --------------------------------------------------------------------
@functools.lru_cache(4096)
def number_of_truth(answer_of, truth):
    """The number of a truth: it is read as an answer is read."""
    return answer_of(f'#### {truth}')


def judge_number(answer_of, completion, truth):
    """(1.0 if the answer is the truth's number, both numbers as text)."""
    answer = answer_of(completion)
    wanted = number_of_truth(answer_of, truth)
    is_right = answer is not None and answer == wanted
    return float(is_right), f'{answer} against {wanted}'


def gsm8k(completion, truth):
    """(reward, rule) of a word problem; the truth is a number, as '18' or '1,800'."""
    return judge_number(gsm8k_answer, completion, truth)


def sums(completion, truth):
    """(reward, rule) of the embedded task; the truth is an integer."""
    return judge_number(sums_answer, completion, truth)
