"""All that decides right from wrong: verify(kind, completion, truth) -> float in [0, 1].

A row's own dataset name chooses the kind. Nothing here evaluates or executes what a model wrote, raises on it, or
scans it more than linearly; where in doubt the answer is wrong: a false negative costs a sample, a false positive
teaches to cheat.
"""
import re
from collections import Counter
from fractions import Fraction

MAX_DIGITS = 1000  # longer numbers are compared as text only
NUMBER = re.compile(r'[-+]?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)')
ANSWER_IS = re.compile(r'answer\s{0,9}(?:is\b|:|=)\s{0,9}:?', re.IGNORECASE)
gave_up = Counter()  # kind -> verdicts that could not be reached and count as 0.0


def final_part(text):
    """What follows the reasoning; None when a think block was never closed."""
    if '</think>' in text:
        return text.rpartition('</think>')[2]
    return None if '<think>' in text else text


def boxed(text):
    r"""Content of the last balanced \boxed{...} or \fbox{...}, None without one. One pass over the text."""
    found, opened = None, []  # opened: for every open brace, where a box's content starts, or None
    for match in re.finditer(r'\\(?:boxed|fbox)\s?\{|\\[{}]|[{}]', text):
        token = match.group()
        if token in ('\\{', '\\}'):
            continue
        if token != '}':
            opened.append(match.end() if token != '{' else None)
        elif opened:
            start = opened.pop()
            if start is not None:
                found = text[start:match.start()]
    return found


def number(text):
    """Exact value of a plain number, fraction or LaTeX fraction: '1,234.50', '-3/4', '\\frac{3}{4}'; None if not."""
    text = text.strip().replace('$', '').replace('\\!', '').replace('{,}', ',').replace(' ', '')
    if len(text) > MAX_DIGITS:
        return None
    text = re.sub(r'^([-+]?)\\[dt]?frac(?:\{([-+]?[0-9]+)\}|([0-9]))(?:\{([0-9]+)\}|([0-9]))$',
                  lambda m: f'{m[1]}{m[2] or m[3]}/{m[4] or m[5]}', text)
    if ',' in text and not re.fullmatch(r'[-+]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?', text):
        return None
    text = text.replace(',', '').removesuffix('.')
    match = re.fullmatch(r'([-+]?)([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:/([0-9]+))?', text)
    if not match or match[3] and ('.' in match[2] or int(match[3]) == 0):
        return None
    return Fraction(match[2]) / int(match[3] or 1) * (-1 if match[1] == '-' else 1)


def first_number(text):
    match = NUMBER.search(text)
    return match and match.group()


def sums_answer(text):
    """The embedded task: the integer after the last '####', which must end the completion."""
    return text.rpartition('####')[2].strip() if '####' in text else None


def gsm8k_answer(text):
    r"""After the last '####', else in the last box, else after the last 'answer is', else the last number."""
    text = final_part(text)
    if text is None:
        return None
    if '####' in text:
        return first_number(text.rpartition('####')[2][:MAX_DIGITS])
    box = boxed(text)
    if box is not None:
        return first_number(box) if len(NUMBER.findall(box)) == 1 else None
    phrases = list(ANSWER_IS.finditer(text))
    if phrases:
        tail = text[phrases[-1].end():].split('\n')[0][:MAX_DIGITS]
        hedged = re.search(r'[0-9][^0-9]{1,9}\bor\b', tail)
        return None if hedged else first_number(tail)
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else None


def math_answer(text):
    r"""In the last box, else after the last '####', else after the last 'answer is' up to the end of the sentence."""
    text = final_part(text)
    if text is None:
        return None
    box = boxed(text)
    if box is not None:
        return box.strip()
    if '####' in text:
        return text.rpartition('####')[2].strip().split('\n')[0]
    phrases = list(ANSWER_IS.finditer(text))
    if phrases:
        tail = text[phrases[-1].end():].split('\n')[0].strip()
        return re.split(r'\.(?:\s|$)', tail)[0].strip(' $*')
    return None


def normal(text):
    """LaTeX answer text without what carries no meaning: spaces, \\left, units in \\text, a leading 'x='."""
    text = re.sub(r'\\(?:left|right|displaystyle|,|;|:|!|quad|qquad)(?![a-zA-Z])', '', text.strip().strip('$'))
    text = text.replace('\\dfrac', '\\frac').replace('\\tfrac', '\\frac').replace('^\\circ', '').replace('^{\\circ}', '')
    text = re.sub(r'(?<=[0-9}])\\?\s?\\(?:text|mathrm|mbox)\{\s*[a-zA-Z. ]{1,30}(?:\^[23])?\}(?:\^\{?[23]\}?)?$', '', text)
    text = re.sub(r'\\(?:text|mathrm|textbf)\{([^{}]*)\}', r'\1', text)
    text = re.sub(r'^[a-zA-Z]\s*(?:=|\\in)\s*', '', text)
    text = re.sub(r'\\frac([0-9])([0-9])', r'\\frac{\1}{\2}', text)
    return re.sub(r'\\?\s+', '', text).removesuffix('.').replace('\\$', '').replace('\\%', '%')


def equal(answer, truth, depth=0):
    """Same normal text, same exact number, or tuples and intervals equal part by part inside the same brackets."""
    a, b = normal(answer), normal(truth)
    if a == b:
        return a != ''
    x, y = number(a), number(b)
    if x is not None and y is not None:
        return x == y
    if depth == 0 and len(a) > 2 and len(b) > 2 and len(a) < 1000 and ',' in a and (a[0], a[-1]) == (b[0], b[-1]) \
            and a[0] in '([' and a[-1] in ')]':
        left, right = a[1:-1].split(','), b[1:-1].split(',')
        return len(left) == len(right) and all(equal(p, q, 1) for p, q in zip(left, right))
    return False


def numbers_equal(answer, truth):
    x = number(answer)
    return x is not None and x == number(truth)


def sums_equal(answer, truth):
    return bool(re.fullmatch('[0-9]{1,9}', answer)) and int(answer) == int(truth)


# kind: how to find the answer in a completion, how to compare it with the truth, and whether a truth can be read
KINDS = {
    'sums': (sums_answer, sums_equal, lambda truth: re.fullmatch('[0-9]{1,9}', truth)),
    'gsm8k': (gsm8k_answer, numbers_equal, lambda truth: number(truth) is not None),
    'math': (math_answer, equal, lambda truth: normal(truth) and truth.count('{') == truth.count('}')),
}
NAMES = {'openai/gsm8k': 'gsm8k', 'lighteval/math': 'math', 'digitallearninggmbh/math-lighteval': 'math',
         'huggingfaceh4/math-500': 'math', 'math_dapo': 'math', 'math-500': 'math', 'math500': 'math'}


def kind_of(name):
    """The kind that verifies rows of the data set `name` (their `dataset` or `data_source`). Raises ValueError."""
    name = str(name).lower()
    kind = NAMES.get(name, 'math' if name.startswith('aime') else name)
    if kind not in KINDS:
        raise ValueError(f'no verifier for data set {name!r}; kinds: {", ".join(KINDS)}')
    return kind


def check_truth(kind, truth):
    """Raise ValueError naming `truth` when `kind` cannot read it: a broken row must not become reward 0."""
    if kind not in KINDS:
        raise ValueError(f'no verifier {kind!r}; kinds: {", ".join(KINDS)}')
    if not isinstance(truth, str) or not KINDS[kind][2](truth):
        raise ValueError(f'{kind} cannot read the truth {truth!r}')


def extract(kind, completion):
    """The answer in `completion` in a form to vote on (maj@k), None without one."""
    answer = KINDS[kind][0](completion)
    if answer is None:
        return None
    value = number(answer)
    return str(value) if value is not None else normal(answer)


def verify(kind, completion, truth):
    """1.0 if the completion's final answer is `truth`, else 0.0. Never raises on a completion, never hangs."""
    find, same, _ = KINDS[kind]
    try:
        answer = find(completion)
        return float(answer is not None and same(answer, truth))
    except (ValueError, ArithmeticError, RecursionError):
        gave_up[kind] += 1  # our fault, not the model's: counted, never silent
        return 0.0
