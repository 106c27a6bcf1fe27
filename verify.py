r"""All that decides right from wrong: verify(kind, completion, truth) -> float in [0, 1].

A row's data set name chooses the kind (kind_of). Nothing here executes what a model wrote, raises on it, or
scans it more than linearly. In doubt the verdict is 0.0: a false negative costs a sample, a false positive
teaches to cheat. `gave_up` counts the doubts: the limits of this file never pass silently for wrong answers.

sums    the embedded task: the integer after the last '####', which must end the completion
gsm8k   one number: after the last '####', else in the last \boxed{}, then after 'answer is', then the last
math    in the last \boxed{}, else after the last '####', else after 'answer is': the same text but for looks,
        the same exact rational, or lists of these, element by element
"""
import re
from collections import Counter
from fractions import Fraction

MAX_DIGITS = 1000  # longer numbers are compared as text only,
MAX_ANSWER = 2000  # characters: and so are longer answers
gave_up = Counter()  # kind -> verdicts of 0.0 because neither equality nor difference could be shown

MISLEADING = set("- + * / ! < > >= <= or nor not neither either isn't minus negative plus times half squared "
                 'cubed dozen hundred thousand million billion trillion'.split())  # they change a number
UNITS = ('degree|mm|cm|km|kg|ft|foot|feet|inch|inche|mile|meter|metre|centimeter|kilometer|yard|unit|gram|'
         'pound|ounce|liter|gallon|dollar|second|minute|hour|day|week|month|year')  # m may be a variable
UNIT = re.compile(rf'(?<=[0-9}}.])(?:%| ?(?:(?:square|cubic|sq) )?(?:{UNITS})s?(?:\^[23])?)$')
LOOKS = [(re.compile(pattern), replacement) for pattern, replacement in (  # in this order
    (r'\u2212', '-'),
    (r'(?<!\\)\\(?:(?:left|right|displaystyle)(?![a-zA-Z])|[!()\[\]])|\\?\$', ''),
    (r'(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z]))|~', ' '),
    (r'\{,\}', ','),
    (r'(?<![0-9.,^_])[1-9][0-9]{0,2},[0-9,]*[0-9]', lambda m: str(decimal(m[0]) or m[0])),  # 1,234
    (r'\\(?:text|textrm|textbf|textit|mbox|mathrm|mathbf)\s*\{([^{}]*)\}', r' \1 '),
    (r'\^\s*\{?\\circ\}?|\u00b0', ' degrees'),
    (r'\\%', '%'),
    (r'\\[dt]frac(?![a-zA-Z])', r'\\frac'),
    (r'\\(frac|sqrt)\s*([0-9])', r'\\\1{\2}'),  # \frac12, \sqrt2
    (r'(\\frac\s*\{[^{}]*\})\s*([0-9])', r'\1{\2}'),
    (r'([\^_])\{(.)\}', r'\1\2'),
    (r'\s+', ' '),
    (r'(?<![0-9A-Za-z]) | (?![0-9A-Za-z])', ''),  # others matter: 1 1/2 is not 11/2
    (r'^\{([^{}]*)\}$', r'\1'),
)]


class Undecided(Exception):
    """Neither shown equal nor shown different."""


# --- finding the answer --------------------------------------------------------
def after_thinking(text):
    """What follows the last think block, all of a text without one; '' where a block was never closed."""
    text = text.rpartition('</think>')[2]
    return '' if '<think>' in text else text


def boxed(text):
    r"""Content of the last balanced \boxed{...} or \fbox{...}, the inner one if nested; None without one."""
    opened, last = [], (-1, None)  # opened: for every open brace, where its box starts, or None
    for match in re.finditer(r'\\(?:boxed|fbox)\s*\{|\\.|[{}]', text, re.DOTALL):
        if match[0][0] == '\\' and match[0][-1] == '{' and len(match[0]) > 2:
            opened.append(match.end())
        elif match[0] == '{':
            opened.append(None)
        elif match[0] == '}' and opened:
            start = opened.pop()
            if start is not None and start > last[0]:
                last = start, text[start:match.start()]
    return last[1]


def after_hashes(text):
    """The line after the last '####'; None without one."""
    return text.rpartition('####')[2].strip().partition('\n')[0] if '####' in text else None


def after_phrase(text):
    """The sentence after the last 'answer is', 'answer:' or 'answer ='; None without one."""
    tail = None
    for match in re.finditer(r'answer\s{0,9}(?:is\b|:|=)', text, re.IGNORECASE):
        tail = match.end()
    if tail is None:
        return None
    return re.split(r'[.!?](?:\s|$)|\n', text[tail:].lstrip(' \t\r\n:*'), maxsplit=1)[0]


def first_found(text, *places):
    """What the first of these functions finds in a text that has an answer there; None if none does."""
    text = after_thinking(text)
    return next((found for place in places if (found := place(text)) is not None), None)


# --- reading it ----------------------------------------------------------------
def decimal(text):
    """Exact value of a number in ASCII digits such as '-1,234.50', else None. Raises Undecided."""
    if not re.fullmatch(r'[-+]?(?:[0-9][0-9,]*\.?[0-9]*|\.[0-9]+)', text):
        return None
    if len(text) > MAX_DIGITS:
        raise Undecided
    first, *groups = text.lstrip('-+').partition('.')[0].split(',')
    if groups and (len(first) > 3 or first[0] == '0' or any(len(group) != 3 for group in groups)):
        return None  # '1,450,00' and '0,125' are not thousands
    return Fraction(text.replace(',', ''))


def number(text):
    r"""Exact value of '1,234.5', '-3/4', '1 1/2' or '-2\frac{1}{3}', else None. Raises Undecided."""
    match = (re.fullmatch(r'(-?)(?:([0-9]+) ?)?\\frac\{([-0-9.,]+)\}\{([-0-9.,]+)\}', text)
             or re.fullmatch(r'(-?)(?:([0-9]+) )?([0-9.,]+)/([0-9.,]+)', text))
    if not match:
        return decimal(text)
    whole, top, bottom = (decimal(part or '0') for part in match.group(2, 3, 4))
    if top is None or not bottom or match[2] and not 0 < top < bottom:
        return None
    return (whole + top / bottom) * (-1 if match[1] else 1)


def prose_number(text, only=True):
    """The only number in a sentence ('she earns $18 a day'), or else the last; None if it is unclear."""
    text = text.replace('\u2212', '-').replace('\\$', '').replace('$', '')
    words = [word for word in re.split(r'[\s(){}\[\]:"]+' if only else r'[\s(){}\[\]:"=<>]+', text) if word]
    places = [i for i, word in enumerate(words) if re.search('[0-9]', word)]
    if not places or only and len(places) > 1:
        return None
    near = words if only else words[max(places[-1] - 1, 0):places[-1] + 2]
    if any(word.lower().strip('.,;') in MISLEADING or re.search(r'[\\^_]', word) for word in near):
        return None
    word = words[places[-1]].strip('*').rstrip('.,;?\'')
    match = re.fullmatch(r'([-+]?[0-9.,]+(?:/[0-9]+)?)%?(?:[a-zA-Z]{2,})?(?:/[a-zA-Z]{2,})?', word)  # 5pm
    return number(match[1]) if match else None


def normal(text):
    r"""A LaTeX answer without what it has for looks: spacing, \left, $, \text, \dfrac, needless braces."""
    text = text.strip()
    if len(text) > MAX_ANSWER:
        return text
    for pattern, replacement in LOOKS:
        text = pattern.sub(replacement, text)
    return text.strip(' *').removesuffix('.')


def quantity(text):
    """(name, value, unit) of a normal 'x=5', '90 degrees', '25%'; else value None. Raises Undecided."""
    name, _, rest = text.rpartition('=')
    unit = UNIT.search(rest)
    rest = rest[:unit.start()] if unit else rest
    plain = ',' not in rest and re.fullmatch('[a-zA-Z]?', name)  # thousands have lost theirs
    return name, number(rest) if plain else None, unit[0].strip().rstrip('s') if unit else ''


def elements(text):
    """The parts of a text between its outermost commas; [] if its brackets do not pair up."""
    cuts, depth = [-1], 0
    for i, c in enumerate(text):
        depth += (c in '([{') - (c in ')]}')
        if depth < 0:
            return []
        if c == ',' and depth == 0:
            cuts.append(i)
    return [text[i + 1:j] for i, j in zip(cuts, [*cuts[1:], len(text)])]


def split(text):
    r"""(brackets, parts) of a normal '(1,2)', '[0,1)', '\{3,4\}' or '1,2'; the last two have brackets ''."""
    match = re.fullmatch(r'(\(|\[|\\\{)(.*)(\)|\]|\\\})', text)
    inner = elements(match[2]) if match else []
    return ((match[1] + match[3]).replace('\\{\\}', ''), inner) if inner else ('', elements(text))


def equal(a, b):
    """Whether two normal answers are the same. Raises Undecided."""
    if a == b:
        return True
    if max(len(a), len(b)) > MAX_ANSWER:
        raise Undecided
    (name, x, unit), (other_name, y, other_unit) = quantity(a), quantity(b)
    if x is not None and y is not None:
        names, units = {name, other_name} - {''}, {unit, other_unit} - {''}
        if x == y and (len(names) > 1 or len(units) > 1 or '%' in units and unit != other_unit):
            raise Undecided  # x=5 and y=5, 5 cm and 5 kg, 50% and 50
        return x == y
    (brackets, left), (other_brackets, right) = split(a), split(b)
    if brackets == other_brackets and len(left) == len(right) > (brackets == ''):
        if all(equal(p, q) for p, q in zip(left, right)):
            return True
        if brackets:  # without, they may be a set in another order
            return False
    if all(v is not None or re.fullmatch('[a-zA-Z]{2}[a-zA-Z ]*', text) for text, v in ((a, x), (b, y))):
        return False  # numbers and words
    raise Undecided


# --- the kinds -----------------------------------------------------------------
def sums_answer(completion):
    """int or None."""
    tail = completion.rpartition('####')[2].strip(' \t\r\n') if '####' in completion else ''
    return int(tail) if re.fullmatch(f'[-+]?[0-9]{{1,{MAX_DIGITS}}}', tail) else None


def gsm8k_answer(completion):
    """Fraction or None. Raises Undecided."""
    found = first_found(completion, after_hashes, boxed, after_phrase)
    if found is None:
        return prose_number(after_thinking(completion), only=False)
    if len(found) > MAX_ANSWER:
        raise Undecided
    value = number(normal(found))
    return prose_number(normal(found).rpartition('=')[2]) if value is None else value


def math_answer(completion):
    """Normal text or None."""
    found = first_found(completion, boxed, after_hashes, after_phrase)
    return normal(found) or None if found else None


def sums(completion, truth):
    return float(sums_answer(completion) == int(truth))


def gsm8k(completion, truth):
    answer = gsm8k_answer(completion)
    return float(answer is not None and answer == gsm8k_answer(f'#### {truth}'))


def math(completion, truth):
    answer = math_answer(completion)
    return float(answer is not None and equal(answer, normal(truth)))


KINDS = {'sums': sums, 'gsm8k': gsm8k, 'math': math}  # kind -> function(completion, truth) -> float
ANSWERS = {'sums': sums_answer, 'gsm8k': gsm8k_answer, 'math': math_answer}  # kind -> function(completion)
NAMES = {'gsm8k': ['openai/gsm8k', 'svamp', 'chilled/svamp'],
         'math': ['lighteval/math', 'digitallearninggmbh/math-lighteval', 'huggingfaceh4/math-500',
                  'math-500', 'math500', 'math_dapo', 'hendrycks/competition_math',
                  'eleutherai/hendrycks_math']}


def kind_of(name):
    """The kind for rows whose dataset or data_source is `name`. Raises ValueError listing known kinds."""
    key = str(name).strip().lower()
    kind = next((kind for kind, names in NAMES.items() if key in names), key)
    if key.rpartition('/')[2].startswith('aime'):
        kind = 'math'
    if kind not in KINDS:
        raise ValueError(f'no verifier for data set {name!r}; kinds: {", ".join(KINDS)}')
    return kind


def check_truth(kind, truth):
    """Raises ValueError naming a truth that would not be accepted as its own answer: a broken row."""
    if kind not in KINDS:
        raise ValueError(f'no verifier {kind!r}; kinds: {", ".join(KINDS)}')
    try:
        readable = KINDS[kind](f'\\boxed{{{truth}}}' if kind == 'math' else f'#### {truth}', truth) == 1.0
    except Exception:
        readable = False
    if not readable:
        raise ValueError(f'{kind}: cannot read the truth {truth!r}')


def extract(kind, completion):
    """The answer in a completion as text to vote on (maj@k), '1/2' for 0.5; None if there is none."""
    try:
        answer = ANSWERS[kind](completion)
        if isinstance(answer, str):
            _, value, unit = quantity(answer)
            answer = answer if value is None or unit == '%' else value
        return None if answer is None else str(answer)
    except Exception:
        return None


def verify(kind, completion, truth):
    """1.0 if the answer in `completion` is `truth`, else 0.0; gave_up[kind] counts where that stays open."""
    judge = KINDS[kind]
    try:
        return judge(completion, truth)
    except Exception:  # Undecided or a bug: what a model writes must not end a run
        gave_up[kind] += 1
        return 0.0
