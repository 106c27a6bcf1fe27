r"""All that decides right from wrong: verify(kind, completion, truth) -> float in [0, 1].

    python verify.py math '\frac12' < completion       # the verdict and the rule that fired

In doubt the verdict is 0.0: a false negative costs a sample, a false positive teaches to cheat. Nothing a
model wrote is executed (but by `code`, in a sandbox), raises, or is scanned more than linearly. `gave_up`
counts by kind the verdicts of 0.0 that rest on a limit or a bug of this file; a bug is also printed, once.

sums       the embedded task: the integer after the last '####', which must end the completion
gsm8k      truth: a number. After the last '####', else in the last \boxed{}, after 'answer is', the last
math       truth: LaTeX. In the last \boxed{}, else after '####', 'answer is', <answer>, else one line
mcq        truth: 'C' or {'answer': 'C', 'options': ['A', ...]}
ifeval     truth: {'instruction_id_list', 'kwargs', 'mode': 'strict' or 'loose'}; google-research's 25 rules
countdown  truth: {'numbers', 'target'}; the last <answer> uses each number once, with + - * / and parentheses
code       truth: {'language', 'tests': [{'input', 'output'}], 'time_limit_s', 'memory_mb'}: stdin to stdout
f.py:g     g(completion, truth as text) -> float, of the user's own
A truth that is a dict may also be given as its text, in JSON or as Python prints it.
"""
import ast
import functools
import importlib.util
import itertools
import json
import math as m
import operator
import os
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

from mpmath.ctx_mp import MPContext  # comes with torch's sympy

MAX_DIGITS, MAX_ANSWER = 1000, 2000  # characters; longer numbers and answers are compared as text
MAX_BITS, MAX_DEPTH, MAX_TOKENS, MAX_CALLS = 4000, 60, 400, 25  # of exact numbers and of expressions
gave_up = Counter()  # kind -> verdicts of 0.0 because neither right nor wrong could be shown
bugs = Counter()  # kind -> those of them that are this file's (or the user function's) own fault
raise_bugs = False  # the tests set it

class GaveUp(Exception):
    """Neither shown right nor shown wrong."""

def need(condition, why):
    if not condition:
        raise GaveUp(why)

GIVE_UPS = (GaveUp, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError)  # text's fault

# --- finding the answer --------------------------------------------------------
def after_thinking(text):
    """What follows the last think block, all of a text without one; '' where a block was never closed."""
    text = text.rpartition('</think>')[2]
    return '' if '<think>' in text else text

def boxes(text):
    r"""[(start, end, content)] of the balanced boxes in the last sentence that has one, last first."""
    found, start = [], len(text)
    for _ in range(40):  # what opens more boxes than that does not answer
        start = max(text.rfind('\\boxed', 0, start), text.rfind('\\fbox', 0, start))
        between = text[text.find('}', start) + 1:found[-1][0]] if found else ''
        if start < 0 or re.search(r'[.!?]\s|\n', between[-200:]):
            break
        opening, depth = re.compile(r'\\(?:boxed|fbox)\s*\{').match(text, start), 0
        braces = re.compile(r'\\[^a-zA-Z]|[{}]').finditer(text, start, start + 2 * MAX_ANSWER)
        for brace in braces if opening else ():
            depth += (brace[0] == '{') - (brace[0] == '}')
            if depth == 0 and brace[0] == '}':
                if not found or brace.end() <= found[-1][0]:  # of nested ones, the inner
                    found.append((start, brace.end(), text[opening.end():brace.start()]))
                break
    return found

def boxed(text):
    r"""Content of the last balanced \boxed{...}; None without, '?' if it hedges; 'a,b' for two in a row."""
    found = boxes(text)
    if not found:
        return None
    before, after = text[max(0, found[-1][0] - 40):found[-1][0]], text[found[0][1]:found[0][1] + 40]
    if (re.match(r'[\s$)]*\(?or\s+[$\\0-9(-]', after)
            or re.search(r"(?:\bnot|n't|\bnever|\bneither|\bnor)[\s$(]*$", before)):
        return '?'
    return ','.join(dict.fromkeys(content for *_, content in reversed(found)))

def after_hashes(text):
    """The line after the last '####'; None without one."""
    return text.rpartition('####')[2].strip().partition('\n')[0] if '####' in text else None

def tagged(text):
    """What is in the last <answer>...</answer>; None without one."""
    start, end = text.rfind('<answer>'), text.rfind('</answer>')
    return text[start + 8:end] if 0 <= start < end else None

def after_phrase(text, nouns='nswer|NSWER'):
    """The sentence after the last 'answer is', 'answer:' or 'answer ='; None without one."""
    match = re.match(rf'(?s).*(?:{nouns})[\s*]{{0,9}}(?:is\b|:|=)', text)
    if not match:
        return None
    tail = re.sub(r'^[\s:*]*(?:\\\[|\$\$)?\s*', '', text[match.end():match.end() + 2 * MAX_ANSWER])
    return re.split(r'[.!?](?:\s|\*|$)|\n', tail, maxsplit=1)[0]

def first_found(text, *places):
    """What the first of these functions finds in a text that has an answer there; None if none does."""
    text = after_thinking(text)
    return next((found for place in places if (found := place(text)) is not None), None)

# --- math: reading -------------------------------------------------------------
# words that change a number or doubt it; DOUBTFUL are those that do so inside a sentence
DOUBTFUL = set(
    "- + * / ! < > >= <= or nor not neither either isn't minus negative plus times half squared cubed dozen "
    'hundred thousand million billion trillion wrong about approximately between'.split())
MISLEADING = DOUBTFUL | set('is to if than more less when unless except otherwise'.split())
UNITS = {word: unit for unit, *words in map(str.split, (
    '° degree', 'mm millimeter', 'cm centimeter', 'm meter metre', 'km kilometer', 'inch inche in', 'mi mile',
    'ft foot feet', 'yard', 'g gram', 'kg kilogram', 'lb pound', 'l liter litre', 'ounce', 'gallon',
    'min minute', 's second sec', 'h hour hr', 'day', 'week', 'month', 'year', 'cent', 'dollar',
    'sq square', 'unit')) for word in (unit, *words)}  # without the plural's s
BARE = '|'.join(word for word in UNITS if len(word) > 1)  # without \text: m may be a variable
UNIT = re.compile(  # "..." is what \text became
    rf'(?<=[0-9}}).]) ?("[^"0-9]*"(?:\^[23])?|%|(?:(?:square|cubic|sq) )?(?:{BARE})s?(?:\^[23])?'
    r'|(?<= )[A-Za-z]{2,}(?:[ /][A-Za-z]{2,}){0,3})$')
SIGNS = str.maketrans(dict(zip('−–∞π×÷·≤≥∪∅√±', (sign + ' ' for sign in (
    r'- - \infty \pi \times / \cdot \le \ge \cup \emptyset \sqrt \pm').split()))))
WORDS = 'sqrt|sin|cos|tan|cot|sec|csc|ln|log|exp|pi|infty|theta|alpha|beta|gamma|cup|pm|frac'

def quoted(found):
    r"""\text{cm} as "cm"; a single letter is a variable."""
    return f' "{found[1].strip()}" ' if re.search('[a-zA-Z]{2}|[a-zA-Z]/', found[1]) else f' {found[1]} '

def mixed(found):
    r"""2\frac13 is a sum; 2\frac43 nobody means."""
    whole, top, bottom = filter(None, found.groups())
    return f'({whole}+\\frac{{{top}}}{{{bottom}}})' if 0 < int(top) < int(bottom) else '?'

def repeating(found):
    r"""0.1\overline{6} as a fraction."""
    whole, start, cycle = found.groups()
    top, bottom = int(whole + start + cycle) - int(whole + start), (10 ** len(cycle) - 1) * 10 ** len(start)
    return f'(\\frac{{{top}}}{{{bottom}}})'

LOOKS = [(re.compile(pattern), replacement) for pattern, replacement in (  # in this order
    (r'\s+', ' '),  # first, so that no pattern below meets a long run of blanks
    (r'(?<!\\)\\(?:(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])|[()\[\]])|\\?\$', ''),
    (r',\\!\s*|\{,\}', ','),
    (r'(?<!\\)\\(?:[,;:! ]|q?quad(?![a-zA-Z]))|~', ' '),
    (r'(?<![0-9.,^_(\[{])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])', lambda found: found[0].replace(',', '')),
    (r'\\(?:text(?:rm|bf|it|normal)?|mbox|math(?:rm|bf|it)|operatorname)\s*\{([^{}"]*)\}', quoted),
    (r'\s*"?\b(?:or|and)\b"?\s*', ','),
    (r'\^\s*\{?\\circ\}?|°', ' "degrees"'),
    (r'\\%', '%'),
    (r'\\[dtc](frac|binom)(?![a-zA-Z])', r'\\\1'),
    (r'\\(?:lvert|rvert|vert)(?![a-zA-Z])', '|'),
    (r'\\([lg]e)(?:q|qslant)(?![a-zA-Z])', r'\\\1 '),
    (r'<=|>=', lambda found: '\\le ' if found[0] == '<=' else '\\ge '),
    (r'\\[lg]t(?![a-zA-Z])', lambda found: '<' if found[0] == '\\lt' else '>'),
    (r'\\varnothing', r'\\emptyset'),
    (rf'(?<![\\a-zA-Z"])({WORDS})(?![a-zA-Z])', r'\\\1'),
    (r'(?<![0-9.])([0-9]+) +([0-9]+)/([0-9]+)(?![0-9.])', r'\1\\frac{\2}{\3}'),  # 1 1/2 is not 11/2
    (r'\s+', ' '),
    (r'(?<![0-9A-Za-z]) | (?![0-9A-Za-z"])', ''),
    (r'(?<![0-9.^_])([0-9]+) ?\\frac ?(?:\{([0-9]+)\}|([0-9])) ?(?:\{([0-9]+)\}|([0-9]))', mixed),
    (r'([0-9]+)\.([0-9]*)\\overline\{([0-9]+)\}', repeating),
    (r'([\^_])\{([0-9a-zA-Z])\}(?![0-9])', r'\1\2'),
    (r'^\{([^{}]*)\}$', r'\1'))]

@functools.lru_cache(4096)
def normal(text):
    r"""A LaTeX answer without what it has for looks: spacing, \left, $, \dfrac, braces; \text is "..."."""
    text = text.strip()
    if len(text) <= MAX_ANSWER:
        text = text.translate(SIGNS)
        for pattern, replacement in LOOKS:
            text = pattern.sub(replacement, text)
    return text.strip(' *').removesuffix('.').strip()

def split(text, separator):
    """The parts of a text between separators outside all brackets and quotes."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(rf'\\?[(){{}}\[\]]|"[^"]*"|{separator}', text):
        depth += (match[0][-1] in '([{') - (match[0][-1] in ')]}')
        need(depth >= 0, 'brackets')
        if depth == 0 and match[0][-1] not in ')]}"':
            parts.append(text[start:match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]

def paired(text):
    """Whether the brackets at both ends belong together."""
    depths = itertools.accumulate((c in '([{') - (c in ')]}') for c in text)
    return 0 not in list(depths)[1:-1]

# An answer's tree is (sort, mark, parts): sorts list and union in any order, tuple (mark: brackets), matrix,
# row, relation (mark: signs), equation, ratio, named (mark: x, of x>2); number (mark: unit, parts: tokens);
# and without parts infinity, base and text.
RELATION = r'\\[lg]e(?![a-zA-Z])|<|>'
FLIPPED = {'>': '<', '\\ge': '\\le'}
TOKEN = re.compile(r'[0-9]+\.?[0-9]*|\.[0-9]+|\\[a-zA-Z]+|[a-zA-Z](?:_(?:\{[a-zA-Z0-9]*\}|[a-zA-Z0-9]))?'
                   r'|[-+*/^!()\[\]{}|_]')

@functools.lru_cache(4096)
def tree(text, depth=0):
    """Tree of a normal answer. Raises GaveUp."""
    need(depth <= 6 and text, 'empty or too deep')
    def made(sort, mark, parts):
        return sort, mark, tuple(tree(part.strip(), depth + 1) for part in parts)
    pieces = split(text, ',')
    if '\\pm' in text and not text.startswith(('(', '[', '\\{', '\\begin')):
        pieces = [piece.replace('\\pm', sign).replace('\\mp', other) for piece in pieces
                  for sign, other in ('+-', '-+')[:1 + ('\\pm' in piece)]]
    if len(pieces) > 1:
        name = re.match('(?:[a-zA-Z]=)?', pieces[0])[0]  # x=2,x=5 or x=2,5
        return made('list', '', [piece.removeprefix(name) for piece in pieces])
    if text in ('\\emptyset', '\\{\\}'):
        return ('list', '', ())
    if text.lstrip('+-') == '\\infty':
        return ('infinity', text.replace('+', ''), ())
    if found := re.fullmatch(r'([a-zA-Z])\\in ?(.+)', text):
        return made('named', found[1], [found[2]])
    if len(sets := split(text, r'\\cup(?![a-zA-Z])')) > 1:
        return made('union', '', sets)
    if re.fullmatch(r'\\\{.*\\\}', text) and paired(text):
        found = tree(text[2:-2], depth + 1)
        return found if found[0] == 'list' else ('list', '', (found,))
    if re.fullmatch(r'[(\[].*[)\]]', text) and paired(text):
        if '\\begin' in text:
            return tree(text[1:-1], depth + 1)
        if len(items := split(text[1:-1], ',')) > 1:
            return made('tuple', text[0] + text[-1], items)
    if found := re.fullmatch(r'\\begin\{([pbv]?)(?:matrix|array)\}(.*)\\end\{[pbv]?(?:matrix|array)\}', text):
        rows = [made('row', '', row.split('&')) for row in found[2].split('\\\\') if row.strip()]
        return ('matrix', found[1] == 'v', tuple(rows))
    if len(sides := split(text, RELATION)) > 1:
        signs = re.findall(RELATION, text)
        if signs[0] in FLIPPED:
            sides, signs = sides[::-1], [FLIPPED.get(sign) for sign in reversed(signs)]
        need({'<', '\\le'}.issuperset(signs) and len(sides) == len(signs) + 1, 'relation')
        if len(sides) == 2 and re.fullmatch('[a-zA-Z]', sides[0]):
            sides, signs = ['-\\infty', *sides], ['<', *signs]
        elif len(sides) == 2 and re.fullmatch('[a-zA-Z]', sides[1]):
            sides, signs = [*sides, '\\infty'], [*signs, '<']
        if len(sides) == 3 and re.fullmatch('[a-zA-Z]', sides[1]):
            ends = '[('[signs[0] == '<'] + '])'[signs[1] == '<']
            return ('named', sides[1], (made('tuple', ends, sides[::2]),))
        return made('relation', tuple(signs), sides)
    for sort, sign in (('equation', '='), ('ratio', ':')):
        if len(sides := split(text, sign)) > 1:
            return made(sort, '', sides)
    if found := re.fullmatch(r'\(?([0-9][0-9a-fA-F]*|[0-9A-F]{2,})\)?_\{?([0-9]{1,2})\}?', text):
        return ('base', (found[1].upper().lstrip('0'), found[2]), ())
    return number_or_text(text)

def number_or_text(text):
    unit, value, bare = '', text, lambda text: re.sub(r'\\[a-zA-Z]+|_\{[a-zA-Z0-9]*\}', '', text)
    if (found := UNIT.search(text)) and (
            found[1][0] == '"' or not re.search('[a-zA-Z]{3}', bare(text[:found.start()]))):
        words = re.sub(r'["^]', ' ', found[1].lower().replace('per ', '/').replace('/', ' / ')).split()
        if MISLEADING.intersection(words) - {'/'} or len(words) > 5:
            return ('text', fold(text), ())
        words = [word.removesuffix('s') if len(word) > 2 else word for word in words]
        unit, value = ''.join(UNITS.get(word, word) for word in words), text[:found.start()]
    if '"' in value or re.search('[a-zA-Z]{3}', bare(value)):
        return ('text', fold(text), ())
    tokens = TOKEN.findall(value)
    need(''.join(tokens) == value.replace(' ', ''), f'cannot read {value[:20]!r}')
    need(len(tokens) <= MAX_TOKENS and max(map(len, tokens)) <= MAX_DIGITS, 'too long')
    return ('number', unit, tuple(tokens))

def fold(text):
    return re.sub(r'[\s"{}]+|\\[a-z]+', '', text).lower()

# --- math: values --------------------------------------------------------------
GREEK = {'\\' + name for name in 'theta alpha beta gamma lambda phi omega mu'.split()}
FUNCTIONS = set('sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp'.split())
CLOSE = {'(': ')', '[': ']', '{': '}', '|': '|', '\\lfloor': '\\rfloor', '\\lceil': '\\rceil'}
ROUNDED = {'|': abs, '\\lfloor': m.floor, '\\lceil': m.ceil}
TERM, FACTOR, POWER, ONE = range(4)  # how closely operators bind
BINDS = {'+': TERM, '-': TERM, '*': FACTOR, '\\cdot': FACTOR, '\\times': FACTOR, '/': FACTOR, '\\div': FACTOR,
         '^': POWER, '!': POWER, **dict.fromkeys(('', '_', ')', ']', '}', '\\rfloor', '\\rceil'), -1)}  # end
OPERATIONS = {'+': operator.add, '-': operator.sub, '/': operator.truediv, '\\div': operator.truediv}

def names(found):
    """The variables of a number, as a set; empty for other trees."""
    tokens = found[2] if found[0] == 'number' else ()
    return {token for token in tokens if token[0].isalpha() and token not in 'ei' or token in GREEK}

def bits(x):
    return x.numerator.bit_length() + x.denominator.bit_length()

def small(x, limit=800):
    need(abs(x) <= limit, 'number too large')
    return x

def rational(*xs):
    return all(isinstance(x, Fraction) for x in xs)

def integer(x):
    return rational(x) and x.denominator == 1

def rough(x, mp):
    """x as a number of mp. Raises GaveUp for more digits than FINE could tell apart."""
    if not rational(x):
        return x
    need(bits(x) <= 1000, 'number too long')
    return mp.mpf(x.numerator) / x.denominator

class Reader:
    """Tokens of a LaTeX subset to their value: Fraction where it is rational, else a number of mp.

    Raises GaveUp, or ZeroDivisionError or ValueError where the value is undefined."""

    def __init__(self, tokens, env, mp):
        self.tokens, self.env, self.mp = [*tokens, ''], env, mp  # env: variable -> Fraction
        self.at = self.depth = self.calls = 0
        self.closing = ['']  # what ends the innermost open brackets

    def take(self, wanted=None):
        token = self.tokens[self.at]
        need(token and wanted in (None, token), f'{wanted or "more"} expected')
        self.at += 1
        return token

    def expression(self, least=TERM):
        """What operators that bind at least so closely hold together."""
        self.depth += 1
        need(self.depth <= MAX_DEPTH, 'too deep')
        sign = self.tokens[self.at]
        if sign in ('+', '-'):
            self.take()
            result = self.expression(max(least, FACTOR))
            result = -result if sign == '-' else result
        else:
            result = self.primary()
        while True:
            token = self.tokens[self.at]
            juxtaposed = token not in BINDS and token != self.closing[-1]
            binds = FACTOR if juxtaposed else BINDS.get(token, -1)
            if binds < least:
                self.depth -= 1
                return result
            if juxtaposed:
                before = self.tokens[self.at - 1]
                need(not (token[0] in '.0123456789' and before[0] in '.0123456789'), 'two numbers')  # 1 200
            else:
                self.take()
            if token == '!':
                need(integer(result), 'factorial')
                result = Fraction(m.factorial(int(small(result, 400))))  # ValueError if negative
            elif token == '^':
                result = self.power(result, self.expression(ONE))
            else:
                result = self.apply(OPERATIONS.get(token, operator.mul), result, self.expression(binds + 1))

    def apply(self, operation, x, y):
        if not rational(x, y):
            return operation(rough(x, self.mp), rough(y, self.mp))
        result = operation(x, y)
        need(bits(result) <= MAX_BITS, 'number too long')
        return result

    def power(self, a, b):
        self.calls += 1
        need(self.calls <= MAX_CALLS, 'too long')
        if a == 0:
            return Fraction(0 if rational(b) and b > 0 else 1 // 0)
        if not integer(b):
            return self.mp.exp(small(rough(b, self.mp) * self.mp.log(rough(a, self.mp))))
        if a in (-1, 1):
            return a ** int(b % 2)
        if rational(a):
            need(abs(b) * max(bits(a) - 2, 1) <= MAX_BITS, 'power too large')
        else:
            small(rough(b, self.mp) * self.mp.log(abs(a)))
        return a ** int(b)

    def argument(self):
        token = self.tokens[self.at]
        if token[:1].isdigit() and len(token) > 1:  # \frac12: the macro takes one digit
            self.tokens[self.at] = token[1:]
            return Fraction(token[0])
        return self.primary()

    def group(self, opening):
        self.closing.append(CLOSE[opening])
        result = self.expression()
        self.take(self.closing.pop())
        if rounded := ROUNDED.get(opening):
            inexact = getattr(self.mp, rounded.__name__, abs)
            return Fraction(rounded(result)) if rational(result) else inexact(result)
        return result

    def primary(self):
        token, mp = self.take(), self.mp
        if token[0] in '.0123456789':
            return Fraction(token)
        if token in self.env:
            return self.env[token]
        if token in ('e', 'i', '\\pi'):
            return +mp.e if token == 'e' else mp.mpc(0, 1) if token == 'i' else +mp.pi
        if token in CLOSE:
            return self.group(token)
        if token == '\\frac':
            return self.apply(operator.truediv, self.argument(), self.argument())
        if token == '\\binom':
            n, k = self.argument(), self.argument()
            need(rational(n) and k in range(300), 'binomial')
            product = functools.partial(functools.reduce, functools.partial(self.apply, operator.mul))
            return product([(n - j) / (j + 1) for j in range(int(k))], Fraction(1))
        if token == '\\sqrt':
            n, x = self.group(self.take()) if self.tokens[self.at] == '[' else 2, self.argument()
            need(n in range(2, 100), 'root')
            real = n % 2 and rational(x) and x < 0  # of a negative number
            return -self.power(-x, Fraction(1, int(n))) if real else self.power(x, Fraction(1, int(n)))
        need(token[1:] in FUNCTIONS, f'cannot read {token}')
        return self.function(token[1:])

    def function(self, name):
        mp, given = self.mp, {'_': Fraction(10), '^': 1}
        while self.tokens[self.at] in given:  # \log_2, \sin^2
            sign = self.take()
            given[sign] = self.argument()
        need(given['^'] != -1, 'inverse')  # \sin^{-1}
        x = self.expression(POWER)
        more = re.compile(r'[0-9a-zA-Z]|\\(?:pi|frac|theta|sqrt)$')
        while self.tokens[self.at - 1] not in CLOSE.values() and more.match(self.tokens[self.at]):
            x = self.apply(operator.mul, x, self.expression(POWER))  # \sin 2x
        x = rough(x, mp)
        if name in ('ln', 'log'):
            y = mp.log(x) / (mp.log(rough(given['_'], mp)) if name == 'log' else 1)
        else:
            y = getattr(mp, name.replace('arc', 'a'))(small(x))
        return y if given['^'] == 1 else self.power(y, given['^'])

# --- math: equality ------------------------------------------------------------
ROUGH, FINE = MPContext(), MPContext()
ROUGH.dps, FINE.dps = 60, 400  # equal to 45 digits, then to 380: e^-200 is not 0

def value(number, env, mp):
    reader = Reader(number[2], env, mp)
    result = reader.expression()
    need(reader.at == len(number[2]), 'cannot read all of it')
    return result

def difference(equation, env, mp):
    left, right = (value(side, env, mp) for side in equation[2])
    return left - right if rational(left, right) else rough(left, mp) - rough(right, mp)

@functools.lru_cache(2048)
def point(name, i):
    """The i-th value of a variable: random rationals of either sign, the same in every run."""
    return Fraction(random.Random(f'{name} {i}').randint(-4000, 4000) or 1, 997)

def close(x, y, mp):
    if rational(x, y):
        return x == y
    x, y = rough(x, mp), rough(y, mp)
    size = max(abs(x), abs(y)) if x and y else 1  # against an exact zero, absolute
    return abs(x - y) <= mp.mpf(10) ** (15 - mp.dps) * size

def probe(read, a, b, variables, agree):
    """Whether agree(read a, read b) holds at random points; constants: to many digits, if not exactly."""
    if not variables:
        try:
            x, y = read(a, {}, ROUGH), read(b, {}, ROUGH)
            exactly = rational(x, y)
            return agree(x, y, ROUGH) and (exactly or agree(read(a, {}, FINE), read(b, {}, FINE), FINE))
        except (ZeroDivisionError, ValueError):
            return False  # undefined
    seen = 0
    for i in range(8):
        env = {name: point(name, i) for name in variables}
        try:
            agreed = agree(read(a, env, ROUGH), read(b, env, ROUGH), ROUGH)
        except (ZeroDivisionError, ValueError, GaveUp):
            continue
        seen += 1
        if not agreed or seen == 4:
            return agreed
    raise GaveUp('undefined at random points')

def same_equation(p, t):
    """Whether left - right of two equations differ by a constant factor, not zero."""
    need(all(len(x[2]) == 2 and all(side[:2] == ('number', '') for side in x[2]) for x in (p, t)), 'equation')
    (variables, others), factors = (names(x[2][0]) | names(x[2][1]) for x in (p, t)), []
    def agree(x, y, mp):
        if not x or not y:
            return not x and not y
        factors.append(x / y if rational(x, y) else rough(x, mp) / rough(y, mp))
        return close(factors[0], factors[-1], mp)
    return bool(variables) and variables == others and probe(difference, p, t, variables, agree)

def last_side(found, strict):
    """5 of x=5, 2x of f(x)=2x, 18 of 9*2=18; strict: a constant, of two sides. None of other equations."""
    if found[0] != 'equation':
        return found
    *left, last = found[2]
    if strict and (len(left) > 1 or last[0] != 'number' or names(last)):
        return None
    for side in left:
        if side[0] != 'number' or side[1]:
            return None
        name = re.fullmatch(r'([a-zA-Z](?:_\w|_\{\w+\})?|[A-Z]{2}|\\[a-z]+)(?:\([a-z]\))?', ''.join(side[2]))
        if not (names(side) and name and name[1] not in names(last) or not names(side) and same(side, last)):
            return None
    return last

def same(p, t):
    """Whether two trees, prediction and truth, mean the same. Raises GaveUp."""
    if p == t and p[0] != 'number':  # 0/0 is not 0/0
        return True
    p, t = (p[2][0] if p[0] == 'named' != t[0] else p), (t[2][0] if t[0] == 'named' != p[0] else t)
    if p[0] == 'equation' == t[0]:
        return same_equation(p, t)
    p, t = last_side(p, strict=False), last_side(t, strict=True)  # 2x+3 is not y=2x+3
    if p is None or t is None:
        return False
    p, t = (x[2][0] if x[0] == 'list' and len(x[2]) == 1 else x for x in (p, t))
    if p[0] != t[0]:
        return False
    if p[0] == 'number':
        if p[1] != t[1] and (p[1] and t[1] or '%' in p[1] + t[1]):
            return False  # a unit may be left out, % may not
        return probe(value, p, t, names(p) | names(t), close)
    if p[1] != t[1] or len(p[2]) != len(t[2]):
        return False
    if p[0] in ('list', 'union') and len(p[2]) <= 16:  # in any order
        left = list(t[2])
        for item in p[2]:
            match = next((i for i, other in enumerate(left) if same(item, other)), None)
            if match is None:
                return False
            del left[match]
        return True
    return bool(p[2]) and all(map(same, p[2], t[2]))  # those without parts would be p == t

def math_answer(completion):
    found = first_found(completion, boxed, after_hashes, after_phrase, tagged)
    text = after_thinking(completion).strip()
    if found is None and len(text) <= 100 and '\n' not in text:
        found = text
    return normal(found or '') or None

def math(completion, truth):
    answer, truth = math_answer(completion), normal(str(truth))
    if not answer or not truth:
        return 0.0, 'no answer'
    if answer == truth and answer.strip('\\{}() '):
        return float('\\frac{0}{0}' not in answer), 'same text'
    need(max(len(answer), len(truth)) <= MAX_ANSWER, 'answer too long')
    p, t = tree(answer), tree(truth)
    if p[0] == 'list' != t[0] and 0 < len(p[2]) < 10 and all(same(item, p[2][0]) for item in p[2][1:]):
        p = p[2][0]  # one answer written twice: 15\frac{39}{40} and \frac{639}{40}
    return float(same(p, t)), f'{p[0]} against {t[0]}: {answer[:60]}'

def exact(text):
    """The Fraction that a normal text is, whatever its unit; None if it is none."""
    try:
        found = tree(text)
        x = value(found, {}, ROUGH) if found[0] == 'number' and not names(found) else None
    except GIVE_UPS:
        return None
    return x if rational(x) else None

# --- gsm8k, sums ---------------------------------------------------------------
SUM_TO_DO = re.compile(r'[*^!|]|\\(?!frac)|[0-9)}]([-+](?!\\frac)|\()')  # 9+9 is not yet 18
UNSURE = re.compile(r"\b(?:cannot|can't|could not|unsure|not sure|maybe|perhaps|guess)\b", re.IGNORECASE)

def prose_number(text, only=True):
    """The only number in a sentence ('she earns $18 a day'), or else the last; None if it is unclear."""
    text = text.replace('−', '-').replace('$', '')
    words = re.findall(r'[^\s(){}\[\]:"]+' if only else r'[^\s(){}\[\]:"=<>]+', text)
    places = [i for i, word in enumerate(words) if re.search('[0-9]', word)]
    if not places or only and len(places) > 1:
        return None
    near = words if only else words[max(places[-1] - 1, 0):places[-1] + 2]
    if any(word.lower().strip('.,;') in DOUBTFUL or re.search(r'[\\^_]', word) for word in near):
        return None
    word = words[places[-1]].strip('*').rstrip(".,;?'")
    match = re.fullmatch(r'([-+]?[0-9.,]+(?:/[0-9]+)?)%?(?:[a-zA-Z]{2,})?(?:/[a-zA-Z]{2,})?', word)  # 5pm
    return exact(normal(match[1])) if match else None

def gsm8k_answer(completion):
    """Fraction or None."""
    found = first_found(completion, after_hashes, boxed, after_phrase, tagged)
    if found is None:
        text = after_thinking(completion).rstrip()[-2000:].replace('\\$', '$')
        return None if UNSURE.search(text.rpartition('\n')[2]) else prose_number(text, only=False)
    last = normal(found[:2 * MAX_ANSWER]).rpartition('=')[2].strip()
    answer = None if SUM_TO_DO.search(last) else exact(last)
    return prose_number(last.replace('"', ' ')) if answer is None else answer

def sums_answer(completion):
    """int or None."""
    tail = completion.rpartition('####')[2].strip(' \t\r\n') if '####' in completion else ''
    return int(tail) if re.fullmatch(f'[-+]?[0-9]{{1,{MAX_DIGITS}}}', tail) else None

def judge_by(answer_of, completion, truth):
    answer, wanted = answer_of(completion), answer_of(f'#### {truth}')
    return float(answer is not None and answer == wanted), f'{answer} against {wanted}'

# --- mcq, countdown ------------------------------------------------------------
def mcq_answer(completion, options='ABCDEFGHIJ'):
    """The option's letter, or None without one or with several."""
    phrase = functools.partial(after_phrase, nouns='nswer|NSWER|ption|hoice')
    found = first_found(completion, boxed, tagged, after_hashes, phrase)
    text = after_thinking(completion).strip() if found is None else normal(found[:200]).replace('"', '')
    match = re.match(r'[\s(*]*(?:[Oo]ption )?([A-Z])(?![A-Za-z])(.*)', text, re.DOTALL)
    if not match or found is None and not re.fullmatch(r'[\s).*]*', match[2]) or match[1] not in options:
        return None
    several = r"[\s,/&|)(]*(?:or|and|nor)?[\s,/&|(]*[A-Z](?![A-Za-z'])|[\s,)*]*(?:or|and|nor)\b"
    return None if re.match(several, match[2]) else match[1]

def mcq(completion, truth):
    truth = loaded(truth)
    truth = truth if isinstance(truth, dict) else {'answer': str(truth).strip('() ')}
    options = truth.get('options') or 'ABCDEFGHIJ'
    said = mcq_answer(completion, options)
    right = said is not None and said == truth['answer'] and said in options
    return float(right), f'{said} against {truth["answer"]}'

def countdown(completion, truth):
    truth = loaded(truth, dict)
    numbers, target = Counter(truth['numbers']), Fraction(str(truth['target']))
    text = (first_found(completion, tagged, boxed) or '')[:500].translate(SIGNS)
    for sign, plain in (('\\times', '*'), ('\\cdot', '*'), ('\\div', '/')):
        text = text.replace(sign, plain)
    text = re.sub(r' *([-+*/()]) *', r'\1', text.strip())
    if not re.fullmatch('[0-9+*/() -]+', text) or re.search(r'(?:^|[-+*/(])[-+*/]|[0-9)]\(|\)[0-9]', text):
        return 0.0, 'no expression'  # neither **, // nor signs
    tokens = TOKEN.findall(text)
    try:
        result = value(('number', '', tokens), {}, ROUGH)
    except ZeroDivisionError:
        return 0.0, 'division by zero'
    used = [int(token) for token in tokens if token.isdigit()]
    return float(result == target and Counter(used) == numbers), f'{result} from {used}'

# --- ifeval --------------------------------------------------------------------
ABBREVIATIONS = set('mr mrs ms dr prof st vs e.g i.e etc jr sr no fig inc ltd co u.s a.m p.m approx'.split())

def sentences(text):
    """Number of sentences: . ! ? before a blank, not after abbreviations, not '...' before a-z."""
    n, start, words = 0, 0, None  # words: whether the sentence has one yet
    for match in re.finditer(r'(?<![.!?])[.!?]+["\')\]*]*(?=\s|$)', text):
        words = words or re.search(r'\w', text[start:match.start()])
        if not words:
            start = match.end()
            continue
        before = text[max(start, match.start() - 20):match.start()].lower()
        word, after = re.split(r'[\s("\'*]', before)[-1], text[match.end():match.end() + 2].strip()
        initial = word in ABBREVIATIONS or len(word) == 1 and word.isalpha() and word != 'i'
        goes_on = match[0] == '.' and after and initial or match[0][:2] == '..' and after[:1].islower()
        start, n, words = match.end(), n + (not goes_on), words if goes_on else None
    return n + bool(words or re.search(r'\w', text[start:]))

def filled(text, separator):
    """The parts that are not blank; none if one between two separators is blank."""
    parts = [part.strip() for part in re.split(separator, text)]
    return [part for part in parts if part] if all(parts[1:-1]) else []

def is_json(text):
    try:
        json.loads(re.sub(r'^```(?:json|Json|JSON)?|```$', '', text.strip()).strip())
    except (ValueError, RecursionError):
        return False
    return True

def first_word(text, first_word, num_paragraphs, nth_paragraph):
    parts = text.split('\n\n')
    if sum(bool(part.strip()) for part in parts) != num_paragraphs or not 0 < nth_paragraph <= len(parts):
        return False
    word = (parts[nth_paragraph - 1].split() or [''])[0].lstrip('\'"')
    return re.split(r'[.,?!\'"]', word)[0].lower() == first_word.lower()

SCRIPTS = dict(pair.split(':') for pair in (  # by the first word of the letters' Unicode names
    'kn:KANNADA gu:GUJARATI te:TELUGU ta:TAMIL bn:BENGALI pa:GURMUKHI th:THAI ml:MALAYALAM he:HEBREW '
    'ko:HANGUL ja:HIRAGANA').split())
LANGUAGES = {code: (script, letters, set(words.split())) for code, script, letters, words in (
    ('en', 'LATIN', '', 'the of and to in is that it was for on are with as be at this have from or had '
     'not but what all were when we there can an your which their if will each about how up out them then '
     'she many some so her would i you he they'),
    ('de', 'LATIN', 'ß', 'der die das und ist nicht ein eine zu den mit von auf für im dem sich des auch '
     'es an werden aus er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war'),
    ('fr', 'LATIN', '', 'le la les des et est un une du dans que pour qui sur avec ce il au ne se pas plus '
     'par sont ou mais nous vous leur elle cette à en de y tout très été aux ses son sa ils comme je'),
    ('es', 'LATIN', 'ñ¿¡', 'el la los las de y que en un una es por con para del se no al lo como más su '
     'pero sus este ya muy o fue todos entre cuando sin sobre también me hasta hay donde sus está'),
    ('it', 'LATIN', '', 'il la di che e un una in per è non con del della i le gli da dei si al sono ma '
     'anche come più nel alla lo questo ha delle ogni molto degli dal ed era'),
    ('pt', 'LATIN', 'ãõ', 'o a os as de e que do da em um uma é para com não por mais dos das se no na ao '
     'como mas foi muito todos seu sua pela pelo são à também pão está'),
    ('nl', 'LATIN', '', 'de het een en van is in dat op te zijn met voor niet aan er om ook als dan bij '
     'nog uit naar wordt door maar heeft hebben ik je ze deze veel elke staat'),
    ('fi', 'LATIN', '', 'ja on ei se että oli hän mutta ovat kun niin myös joka kuin tai siitä ole sen jo '
     'hyvin vanha ne me sekä ihmiset kanssa päivä joita siellä monta paljon'),
    ('pl', 'LATIN', 'łżśćń', 'i w na z się do nie to że jest jak o po co dla od za przez są ale który '
     'tylko oraz był bardzo każdego jego'),
    ('vi', 'LATIN', 'ạảấầậắặẹếềểệịọốồổộớợụứừửữựđ', 'và của là có các được trong cho không một người với '
     'những này để khi đã đến từ rất nhiều ở ra ngày chúng tôi mỗi'),
    ('sw', 'LATIN', '', 'na ya wa kwa ni la katika za cha kuwa hii vya watu yake huo hiyo kila siku mji '
     'yenye wengi sana pia lakini huja kama au ili hapa watoto wake'),
    ('hi', 'DEVANAGARI', '', 'है में की के और यह से को हैं था का पर लिए भी नहीं एक हर बहुत ने वह लोग आते'),
    ('mr', 'DEVANAGARI', 'ळ', 'आहे आणि या मध्ये होते आहेत हे ते खूप येतात एक करण्यासाठी पण नाही जुने लोक '
     'रोज ही तो'),
    ('ne', 'DEVANAGARI', '', 'छ र को मा छन् भएको पनि यो हुन् गर्न लागि धेरै हो मानिसहरू आउँछन् हरेक लाई '
     'छैन दिन'),
    ('ar', 'ARABIC', 'ةىيكإأؤئ', 'في من على التي إلى هذا هذه أن و مع كل عن الذي كان لا ما يوم هو هي'),
    ('fa', 'ARABIC', 'پچژگک', 'در به که از را این است و با هر برای آن می های روز یک بود مردم بسیار'),
    ('ur', 'ARABIC', 'ٹڈڑےںہھ', 'ہے میں کے کی اور سے یہ ہیں کو کا پر بہت ہر لوگ نے ایک بھی'),
    ('ru', 'CYRILLIC', 'ыэё', 'и в не на что это с по как из он она к для они есть у все но каждый очень '
     'день люди'),
    ('bg', 'CYRILLIC', 'ъщ', 'е на и да за от се са с в по не това този които всеки много ден хората които '
     'като беше'),
    ('uk', 'CYRILLIC', 'іїєґ', 'і в не на що це з та як до у він є для дуже люди день щодня'))}

def in_language(text, code):
    """Whether a text is in a language (ISO 639-1): by script, then by the most frequent words and letters."""
    text = text[:20000].lower()
    scripts = Counter(unicodedata.name(c, '?').split()[0] for c in text if c.isalpha())
    if scripts['HIRAGANA'] + scripts['KATAKANA']:
        scripts['HIRAGANA'] += scripts.pop('KATAKANA', 0) + scripts.pop('CJK', 0)
    script = max(scripts, key=scripts.get, default='LATIN')
    words = [word.strip('.,;:!?"\'()*।،؟«»') for word in text.split()]
    scores = {other: sum(word in stop for word in words) + sum(map(text.count, letters)) / 2
              for other, (own_script, letters, stop) in LANGUAGES.items() if own_script == script}
    best = code in scores and scores[code] == max(scores.values()) and (scores[code] > 0 or code == 'en')
    return best or SCRIPTS.get(code) == script

def highlights(text):
    parts = re.findall(r'\*[^\n*]*\*', text) + re.findall(r'\*\*[^\n*]*\*\*', text)
    return sum(bool(part.strip('*').strip()) for part in parts)

# google-research's instruction_following_eval: instruction -> names of its arguments, what must hold of a
# text and them. Where the first two are a relation ('>=', '==' or an argument) and a number, it is a count.
RULES = {
    'keywords:existence': ('keywords', lambda text, words: all(w.lower() in text.lower() for w in words)),
    'keywords:frequency': ('relation frequency keyword', lambda text, word: text.lower().count(word.lower())),
    'keywords:forbidden_words': ('forbidden_words', lambda text, words: not any(
        re.search(rf'(?<!\w){re.escape(w)}(?!\w)', text, re.IGNORECASE) for w in words)),
    'keywords:letter_frequency': (
        'let_relation let_frequency letter', lambda text, letter: text.lower().count(letter.lower())),
    'language:response_language': ('language', in_language),
    'length_constraints:number_sentences': ('relation num_sentences', sentences),
    'length_constraints:number_paragraphs': (
        '== num_paragraphs', lambda text: len(filled(text, r'\s?\*\*\*\s?'))),
    'length_constraints:number_words': ('relation num_words', lambda text: len(re.findall(r'\w+', text))),
    'length_constraints:nth_paragraph_first_word': ('first_word num_paragraphs nth_paragraph', first_word),
    'detectable_content:number_placeholders': ('>= num_placeholders', lambda text: sum(
        '[' in part for line in text.split('\n') for part in line.split(']')[:-1])),
    'detectable_content:postscript': ('postscript_marker', lambda text, marker: re.search(
        r'\.\s?'.join(map(re.escape, marker.lower().split('.'))), text.lower())),
    'detectable_format:number_bullet_lists': (
        '== num_bullets', lambda text: len(re.findall(r'(?m)^[ \t]*(?:-|\*[^*\n])', text))),
    'detectable_format:constrained_response': ('', lambda text: any(
        f'My answer is {word}.' in text for word in ('yes', 'no', 'maybe'))),
    'detectable_format:number_highlighted_sections': ('>= num_highlights', highlights),
    'detectable_format:multiple_sections': ('>= num_sections section_spliter', lambda text, word: len(
        re.findall(re.escape(word) + r'\s?\d+', text))),
    'detectable_format:json_format': ('', is_json),
    'detectable_format:title': ('', lambda text: any(
        line.partition('<<')[2].rpartition('>>')[0].strip('<> ') for line in text.split('\n'))),
    'combination:two_responses': (
        '', lambda text: len(parts := filled(text, r'\*{6}')) == 2 and parts[0] != parts[1]),
    'combination:repeat_prompt': (
        'prompt_to_repeat', lambda text, prompt: text.strip().lower().startswith(prompt.strip().lower())),
    'startend:end_checker': (
        'end_phrase', lambda text, end: text.strip().strip('"').lower().endswith(end.strip().lower())),
    'startend:quotation': ('', lambda text: re.fullmatch(r'(?s)\s*".*"\s*', text) is not None),
    'change_case:capital_word_frequency': ('capital_relation capital_frequency', lambda text: sum(
        word.isupper() for word in re.findall(r'\w+(?:[-./]\w+)*', text))),
    'change_case:english_capital': ('', lambda text: text.isupper() and in_language(text, 'en')),
    'change_case:english_lowercase': ('', lambda text: text.islower() and in_language(text, 'en')),
    'punctuation:no_comma': ('', lambda text: ',' not in text)}
RELATIONS = {'less than': operator.lt, 'at least': operator.ge, '>=': operator.ge, '==': operator.eq}

def instructions(truth):
    """[(id, [relation and number,] arguments)], mode of a truth. Raises GaveUp on what is unknown."""
    truth = loaded(truth)
    truth = loaded(truth[0] if isinstance(truth, list) and len(truth) == 1 else truth, dict)
    ids, found = truth.get('instruction_id_list') or truth.get('instruction_id'), []
    need(ids and len(ids) == len(truth.get('kwargs') or []), 'as many kwargs as ids are needed')
    for name, given in zip(ids, truth['kwargs']):
        need(name in RULES, f'unknown instruction {name!r}')
        wanted = RULES[name][0].split()
        values = [RELATIONS.get(key) or (given or {}).get(key) for key in wanted]
        values = [RELATIONS.get(x) if 'relation' in key else x for key, x in zip(wanted, values)]
        known = wanted != ['language'] or values[0] in {**LANGUAGES, **SCRIPTS}
        need(None not in values and known, f'{name} takes {", ".join(wanted)}, not {given}')
        found.append((name, values))
    return found, truth.get('mode') or 'strict'

def follows(text, name, values):
    if values and callable(values[0]):
        relation, number, *arguments = values
        return relation(RULES[name][1](text, *arguments), number)
    return RULES[name][1](text, *values)

def ifeval(completion, truth, mode=None, fraction=False):
    """1.0 if all are followed, or with fraction=True the share; loose: without first, last line or *."""
    rules, given = instructions(truth)
    texts = [after_thinking(completion)]
    if (mode or given) == 'loose':
        lines = texts[0].split('\n')
        texts += ['\n'.join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
        texts += [text.replace('*', '') for text in texts]
    done = [any(text.strip() and follows(text, *rule) for text in texts) for rule in rules]
    said = ', '.join(f'{name} {"yes" if ok else "no"}' for (name, _), ok in zip(rules, done))
    return (sum(done) / len(done) if fraction else float(all(done))), said

# --- code ----------------------------------------------------------------------
PROGRAMS = {  # language: file, compile, run, further names of the language
    'python': ('main.py', '', f'{sys.executable} main.py', 'py python3'),
    'bash': ('main.sh', '', 'bash main.sh', 'sh shell'),
    'c': ('main.c', 'gcc -O2 -o main main.c -lm', './main', ''),
    'cpp': ('main.cpp', 'g++ -O2 -o main main.cpp', './main', 'c++ cc cxx'),
    'javascript': ('main.js', '', 'node main.js', 'js node'),
    'perl': ('main.pl', '', 'perl main.pl', 'pl'),
    'awk': ('main.awk', '', 'awk -f main.awk', ''),
    'lua': ('main.lua', '', 'lua main.lua', ''),
    'ruby': ('main.rb', '', 'ruby main.rb', 'rb'),
    'go': ('main.go', 'go build -o main main.go', './main', 'golang'),
    'rust': ('main.rs', 'rustc -O -o main main.rs', './main', 'rs'),
    'java': ('Main.java', 'javac Main.java', 'java Main', ''),
    'ocaml': ('main.ml', 'ocamlfind ocamlopt -package str -linkpkg -o main main.ml', './main', 'ml'),
    'fortran': ('main.f90', 'gfortran -O2 -o main main.f90', './main', 'f90'),
    'r': ('main.R', '', 'Rscript main.R', ''),
    'julia': ('main.jl', '', 'julia main.jl', 'jl')}
LAUNCH = r"""
import ctypes, os, resource, signal, sys, time
folder, seconds, memory, sandbox, *command = sys.argv[1:]
# this is process 1 of its namespace: all files read-only but the folder, all die with it
if sandbox != 'none':
    libc, place = ctypes.CDLL(None), folder.encode()
    def mount_setattr(path, flags, on, off):
        return libc.syscall(442, -100, path, flags, (ctypes.c_uint64 * 4)(on, off, 0, 0), 32)
    bound = libc.mount(place, place, None, 4096, None)
    if bound or mount_setattr(b'/', 0x8000, 1, 0) or mount_setattr(place, 0, 0, 1):
        os._exit(97)
os.chdir(folder)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 26, 2 ** 26))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        os.execvp(command[0], command)
    except OSError:
        os._exit(96)
end, page = time.monotonic() + float(seconds), os.sysconf('SC_PAGE_SIZE')
while True:
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid == child:
        code = os.waitstatus_to_exitcode(status)
        break
    used, pids = 0, [str(child)]
    if sandbox != 'none':
        pids = [p for p in os.listdir('/proc') if p.isdigit() and p != '1']
    for p in pids:
        try:
            with open(f'/proc/{p}/statm') as f:
                used += int(f.read().split()[1]) * page
        except (OSError, IndexError):
            pass
    code = 98 if used > float(memory) * 2 ** 20 or len(pids) > 500 else 99 if time.monotonic() > end else None
    if code:
        break
    time.sleep(0.005)
if sandbox == 'none':
    try:
        os.killpg(child, signal.SIGKILL)
    except OSError:
        pass
os._exit(code if code >= 0 else 128 - code)
"""

def run_program(command, folder, text, seconds, memory, sandbox, cap=2**20):
    """Exit status (96: no such program, 97: no sandbox, 98: memory, 99: time, 95: output) and output."""
    isolate = 'unshare --user --map-root-user --net --pid --mount-proc --fork --kill-child --'.split()
    launch = [sys.executable, '-I', '-S', '-c', LAUNCH, folder, str(seconds), str(memory), sandbox, *command]
    env = {'PATH': os.environ.get('PATH', os.defpath), 'HOME': os.environ.get('HOME', '/'), 'LANG': 'C.UTF-8',
           'TMPDIR': folder, 'GOCACHE': f'{folder}/.go', 'PYTHONDONTWRITEBYTECODE': '1'}
    with tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode('utf-8', 'replace'))
        stdin.seek(0)
        try:
            process = subprocess.Popen(([] if sandbox == 'none' else isolate) + launch, env=env, stdin=stdin,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except OSError:
            return 97, ''
    output, end, full = b'', time.monotonic() + seconds + 2, False
    with process.stdout:
        while (left := end - time.monotonic()) > 0 and not full:
            if select.select([process.stdout], [], [], left)[0]:
                piece = os.read(process.stdout.fileno(), 2**16)
                output += piece
                full = len(output) > cap
                if not piece:
                    break
        try:
            process.wait(0 if full else max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return 95 if full else 99, ''
    return process.returncode, output.decode('utf-8', 'replace')

def program_of(text, names):
    """The last fenced block of that language, else the last without a language; None without either."""
    text = after_thinking(text).replace('\r\n', '\n').replace('~~~', '```')
    blocks = re.findall(r'(?ms)^[ \t]*```[ \t]*([^\s`]*)[^\n]*\n(.*?)^[ \t]*```', text)
    for wanted in (names, ('',)):
        if fitting := [body for tag, body in blocks if tag.lower() in wanted]:
            return fitting[-1]
    return None

def tests_of(truth):
    """language, [(input, output)], seconds, MB of a truth, Agnostics' or verl's too. Raises GaveUp."""
    truth = loaded(truth)
    truth = {'tests': truth} if isinstance(truth, list) else loaded(truth, dict)
    tests = [(test['input'], test['output']) for test in truth.get('tests') or truth.get('test_cases') or ()]
    tests = tests or list(zip(truth.get('inputs') or (), truth.get('outputs') or ()))
    name = str(truth.get('language', 'python')).lower()
    language = next((key for key, row in PROGRAMS.items() if name in (key, *row[3].split())), None)
    need(tests and language, f'no tests, or a language without a row in PROGRAMS: {name!r}')
    seconds = float(truth.get('time_limit_s') or truth.get('timeout_s') or 10)
    return language, tests, seconds, float(truth.get('memory_mb') or 1024)

def code(completion, truth, sandbox='namespace'):
    """1.0 if every test's output is right but for blanks at line ends. Raises GaveUp if none could run."""
    language, tests, seconds, memory = tests_of(truth)
    file, build, run, others = PROGRAMS[language]
    source = program_of(completion, (language, *others.split()))
    if not source:
        return 0.0, 'no code block'
    def lines(text):
        return [line.rstrip() for line in text.rstrip().split('\n')]
    def execute(*args, **caps):
        status, output = run_program(*args, sandbox, **caps)
        need(status != 96, f'{language} is not installed')
        need(status != 97, "no sandbox; sandbox='none' does without")
        return status, output
    with tempfile.TemporaryDirectory(prefix='verify') as folder:
        made = os.path.join(folder, 'made')
        os.mkdir(made)
        with open(os.path.join(made, file), 'w', encoding='utf-8', errors='replace') as f:
            f.write(source)
        if build and execute(build.split(), made, '', 60, 4096)[0]:
            return 0.0, 'does not compile'
        for i, (given, wanted) in enumerate(tests):
            place = shutil.copytree(made, os.path.join(folder, str(i)))  # no test sees another's files
            status, output = execute(run.split(), place, given, seconds, memory, cap=2**20 + 2 * len(wanted))
            shutil.rmtree(place)
            if status or lines(output) != lines(wanted):
                said = {98: 'memory', 99: 'time', 95: 'too much output', 0: 'wrong output'}
                return 0.0, f'test {i + 1}: {said.get(status, f"exit {status}")}'
    return 1.0, f'{len(tests)} tests'

@functools.lru_cache(1)
def sandboxed():
    """Whether programs can be isolated here."""
    with tempfile.TemporaryDirectory() as folder:
        return run_program(['true'], folder, '', 5, 512, 'namespace')[0] == 0

# --- any kind ------------------------------------------------------------------
@functools.lru_cache(1024)
def parsed(text):
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (SyntaxError, *GIVE_UPS):
            pass
    return text

def loaded(truth, sort=object):
    """A truth given as JSON or as Python's text of it, read. Raises GaveUp if it is not of the sort."""
    truth = parsed(truth) if isinstance(truth, str) else truth
    need(isinstance(truth, sort), f'a {sort.__name__} is needed')
    return truth

@functools.lru_cache(64)
def own(kind):
    """The user's function 'file.py:function' as a judge. Raises ValueError."""
    path, _, name = kind.rpartition(':')
    try:
        spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, name)
    except (OSError, AttributeError, SyntaxError, ImportError) as error:
        raise ValueError(f'verifier {kind!r}: {error}') from error
    def judge(completion, truth, **opts):
        reward = float(function(completion, truth, **opts))
        need(0 <= reward <= 1, f'{kind} gave {reward}, not in [0, 1]')
        return reward, kind
    return judge

KINDS = {'sums': functools.partial(judge_by, sums_answer), 'gsm8k': functools.partial(judge_by, gsm8k_answer),
         'math': math, 'mcq': mcq, 'ifeval': ifeval, 'countdown': countdown, 'code': code}  # -> reward, rule
ANSWERS = {'sums': sums_answer, 'gsm8k': gsm8k_answer, 'math': math_answer, 'mcq': mcq_answer,
           'countdown': lambda text: first_found(text, tagged)}  # what is voted on
NAMES = {name: kind for kind, names in {  # of data sets
    'gsm8k': 'openai/gsm8k svamp chilled/svamp',
    'math': 'lighteval/math digitallearninggmbh/math-lighteval huggingfaceh4/math-500 math-500 math500 '
            'math_dapo hendrycks/competition_math eleutherai/hendrycks_math',
    'mcq': 'aqua aqua_rat mmlu arc gpqa', 'ifeval': 'google/ifeval',
    'countdown': 'jiayi-pan/countdown-tasks-3to4', 'code': 'code_stdio codecontests apps taco',
}.items() for name in names.split()}

def judge_of(kind):
    """The function of a kind. Raises ValueError listing known kinds."""
    if kind not in KINDS and '.py:' not in str(kind):
        raise ValueError(f'no verifier {kind!r}; kinds: {", ".join(KINDS)}')
    return KINDS.get(kind) or own(kind)

def kind_of(name):
    """The kind for rows whose dataset or data_source is `name`. Raises ValueError listing known kinds."""
    name = str(name).strip()
    key = 'math' if name.lower().rpartition('/')[2].startswith('aime') else name.lower()
    kind = name if '.py:' in name else NAMES.get(key, key)
    judge_of(kind)
    return kind

def check_truth(kind, truth):
    """Raises ValueError naming a truth that cannot be read or judged by here: a broken row."""
    judge = judge_of(kind)
    try:
        plain = isinstance(truth, (str, int, float))
        need(plain or truth is not None and kind not in ('sums', 'gsm8k', 'math'), 'one text is needed')
        if kind in KINDS:
            judge('', truth)  # it reads the truth first
        if kind in ('sums', 'gsm8k', 'math', 'mcq'):
            dicts = kind == 'mcq' and isinstance(loaded(truth), dict)
            right = loaded(truth)['answer'] if dicts else truth
            form = '#### {}' if kind in ('sums', 'gsm8k') else '\\boxed{{{}}}'
            need(judge(form.format(right), truth)[0] == 1, 'it is not right by itself')
        elif kind == 'code':
            row = PROGRAMS[tests_of(truth)[0]]
            need(shutil.which((row[1] or row[2]).split()[0]), f'{row[1] or row[2]} is not installed')
            need(sandboxed(), "no sandbox here (unshare); a function of your own may use sandbox='none'")
    except Exception as error:
        raise ValueError(f'{kind}: cannot read the truth {truth!r:.200}: {error}') from error

def extract(kind, completion):
    """The answer in a completion as text to vote on (maj@k), '1/2' for 0.5; None if there is none."""
    if kind not in ANSWERS or not isinstance(completion, str):
        return None
    answer = ANSWERS[kind](completion)
    if kind == 'math' and answer and '%' not in answer:
        answer = answer if exact(answer) is None else exact(answer)
    return None if answer is None else str(answer)

def verify(kind, completion, truth, explain=False, **opts):
    """Reward in [0, 1]; explain=True: also the rule. Options: mode, fraction (ifeval), sandbox (code)."""
    try:
        judge = judge_of(kind)
        reward, rule = judge(completion, truth, **opts) if isinstance(completion, str) else (0.0, 'no text')
    except Exception as error:  # what a model writes must not end a run
        if not isinstance(error, GIVE_UPS):
            if raise_bugs:
                raise
            bugs[kind] += 1
            if bugs[kind] == 1:
                traceback.print_exc()
        gave_up[kind] += 1
        reward, rule = 0.0, f'gave up: {type(error).__name__} {error}'
    return (reward, rule) if explain else reward

idle = []  # worker processes between calls of verify_all

def ask(item, deadline):
    """A worker process's (reward, gave up). One that dies or is too slow is ended, its item given up."""
    try:
        worker = idle.pop()
    except IndexError:
        command = [sys.executable, os.path.abspath(__file__), '--worker']
        pipe = subprocess.PIPE
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
    try:
        worker.stdin.write(json.dumps(item).encode() + b'\n')
        worker.stdin.flush()
        ready = select.select([worker.stdout], [], [], deadline)[0]
        reward, given_up = json.loads(worker.stdout.readline() if ready else '')
        idle.append(worker)
    except (OSError, ValueError):
        worker.kill()
        worker.wait()
        reward, given_up = 0.0, True
    gave_up[item[0]] += given_up
    return reward, given_up

def verify_all(items, workers=None, deadline=120.0):
    """[(reward, gave up)] of [(kind, completion, truth)]: cheap kinds here, others by worker processes, which
    have `deadline` seconds an item."""
    cheap = ('sums', 'gsm8k', 'mcq', 'countdown')
    with ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:
        asked = pool.map(lambda item: ask(item, deadline), [item for item in items if item[0] not in cheap])
        return [here(*item) if item[0] in cheap else next(asked) for item in items]

def here(kind, completion, truth):
    reward, rule = verify(kind, completion, truth, explain=True)
    return reward, rule.startswith('gave up: ')

if __name__ == '__main__':
    if sys.argv[1:] == ['--worker']:
        out, sys.stdout = sys.stdout, sys.stderr  # what a function of the user's prints is no verdict
        for line in sys.stdin:
            print(json.dumps(here(*json.loads(line))), file=out, flush=True)
    elif len(sys.argv) == 3:
        check_truth(*sys.argv[1:])
        print(*verify(sys.argv[1], sys.stdin.read(), sys.argv[2], explain=True))
    else:
        print(__doc__)
