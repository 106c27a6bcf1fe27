r"""All that decides right from wrong: verify(kind, completion, truth) -> float in [0, 1].

    python verify.py math '\frac12' < completion       # the verdict and the rule that fired

In doubt the verdict is 0.0: a false negative costs a sample, a false positive teaches to cheat. Nothing a
model wrote is executed (but by `code`, in a sandbox), raises, or is scanned more than linearly. `gave_up`
counts by kind the verdicts of 0.0 that rest on a limit of this file. A dict as truth may also be its text.

sums       the embedded task: the integer after the last '####', which must end the completion
gsm8k      truth: a number. After the last '####', else in the last \boxed{}, after 'answer is', the last
math       truth: LaTeX. In the last \boxed{}, else after '####', 'answer is', <answer>, else one line
mcq        truth: 'C' or {'answer': 'C', 'options': ['A', ...]}
ifeval     truth: {'instruction_id_list', 'kwargs', 'mode': 'strict' or 'loose'}; google-research's 25 rules
countdown  truth: {'numbers', 'target'}; the last <answer> uses each number once, with + - * / and parentheses
code       truth: {'language', 'tests': [{'input', 'output'}], 'time_limit_s', 'memory_mb'}: stdin to stdout
f.py:g     g(completion, truth as text) -> float, of the user's own
"""

import ast
import functools
import importlib.util
import inspect
import json
import math as m
import os
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from fractions import Fraction

from mpmath.ctx_mp import MPContext  # comes with torch's sympy

MAX_DIGITS, MAX_ANSWER = 1000, 2000  # characters of a number, of an answer; longer ones are compared as text
MAX_BITS, MAX_DEPTH, MAX_NODES, MAX_CALLS = 4000, 30, 200, 25  # of exact numbers and of expressions
gave_up = Counter()  # kind -> verdicts of 0.0 because neither right nor wrong could be shown


class GaveUp(Exception):
    """Neither shown right nor shown wrong."""


# --- finding the answer --------------------------------------------------------
def after_thinking(text):
    """What follows the last think block, all of a text without one; '' where a block was never closed."""
    text = text.rpartition('</think>')[2]
    return '' if '<think>' in text else text


def boxes(text):
    r"""[(start, end, content)] of the balanced \boxed or \fbox of the last sentence with one, last first."""
    found, end = [], len(text)
    for _ in range(40):  # what opens more boxes than that does not answer
        start = max(text.rfind('\\boxed', 0, end), text.rfind('\\fbox', 0, end))
        if start < 0 or found and re.search(r'[.!?]\s|\n', text[end_of(start, text) : found[-1][0]][-200:]):
            break
        end, depth = start, 0
        for match in re.compile(r'\\[^a-zA-Z]|[{}]').finditer(text, start, start + 2 * MAX_ANSWER):
            depth += (match[0] == '{') - (match[0] == '}')
            if depth == 0 and match[0] == '}':
                head = text.index('{', start)
                if not text[start + 1 : head].lstrip('bfoxed').strip():
                    if not found or match.end() <= found[-1][0]:  # of nested ones, the inner
                        found.append((start, match.end(), text[head + 1 : match.start()]))
                break
    return found


def end_of(start, text):
    """Where the line or box that starts there can be said to end: its first closing brace."""
    return text.find('}', start) + 1 or len(text)


def boxed(text):
    r"""Content of the last balanced \boxed{...}, the inner one if nested; None without one, or if it hedges.

    Several different ones in a sentence are one list: '\boxed{5} or \boxed{6}' is '5,6'."""
    found = boxes(text)
    if not found:
        return None
    if re.match(r'[\s$)]*\(?or\s+[$\\0-9(-]', text[found[0][1] : found[0][1] + 40]) or re.search(
        r"(?:\bnot|n't|\bnever|\bneither|\bnor)[\s$(]*$", text[max(0, found[-1][0] - 40) : found[-1][0]]
    ):
        return '?'
    return ','.join(dict.fromkeys(content for *_, content in reversed(found)))


def after_hashes(text):
    """The line after the last '####'; None without one."""
    return text.rpartition('####')[2].strip().partition('\n')[0] if '####' in text else None


def tagged(text):
    """What is in the last <answer>...</answer>; None without one."""
    start, end = text.rfind('<answer>'), text.rfind('</answer>')
    return text[start + 8 : end] if 0 <= start < end else None


def after_phrase(text, nouns='nswer|NSWER'):
    """The sentence after the last 'answer is', 'answer:' or 'answer ='; None without one."""
    match = re.match(rf'(?s).*(?:{nouns})[\s*]{{0,9}}(?:is\b|:|=)', text)
    if not match:
        return None
    tail = text[match.end() : match.end() + 2 * MAX_ANSWER].lstrip(' \t\r\n:*')
    tail = re.sub(r'^(?:\\\[|\$\$)\s*', '', tail)
    return re.split(r'[.!?](?:\s|\*|$)|\n', tail, maxsplit=1)[0]


def first_found(text, *places):
    """What the first of these functions finds in a text that has an answer there; None if none does."""
    text = after_thinking(text)
    return next((found for place in places if (found := place(text)) is not None), None)


# --- math: reading -------------------------------------------------------------
MISLEADING = set(
    "- + * / ! < > >= <= or nor not neither either isn't minus negative plus times half squared is if "
    'cubed dozen hundred thousand million billion trillion when wrong about approximately more less than '
    'to except between unless otherwise'.split()
)  # they change a number or doubt it
UNITS = {
    'degree': '°',
    'centimeter': 'cm',
    'millimeter': 'mm',
    'meter': 'm',
    'metre': 'm',
    'kilometer': 'km',
    'inche': 'inch',
    'in': 'inch',
    'feet': 'ft',
    'foot': 'ft',
    'second': 's',
    'sec': 's',
    'hour': 'h',
    'hr': 'h',
    'minute': 'min',
    'gram': 'g',
    'kilogram': 'kg',
    'liter': 'l',
    'litre': 'l',
    'mile': 'mi',
    'pound': 'lb',
    'square': 'sq',
}
PLAIN = (
    r'degree|mm|cm|cm|km|kg|ft|foot|feet|inch|inche|mile|meter|metre|centimeter|'
    r'kilometer|yard|unit|gram|pound|'
    r'ounce|liter|gallon|dollar|cent|second|minute|hour|day|week|month|year'
)  # m may be a variable
UNIT = re.compile(
    rf'(?<=[0-9}}).]) ?("[^"0-9]*"(?:\^[23])?|%|(?:(?:square|cubic|sq) )?(?:{PLAIN})s?(?:\^[23])?'
    r'|(?<= )[A-Za-z]{2,}(?:[ /][A-Za-z]{2,}){0,3})$'
)
SIGNS = str.maketrans(
    {
        '−': '-',
        '–': '-',
        '∞': '\\infty ',
        'π': '\\pi ',
        '×': '\\times ',
        '÷': '/',
        '·': '\\cdot ',
        '≤': '\\le ',
        '≥': '\\ge ',
        '∪': '\\cup ',
        '∅': '\\emptyset ',
        '√': '\\sqrt ',
        '±': '\\pm ',
    }
)
WORDS = 'sqrt|sin|cos|tan|cot|sec|csc|ln|log|exp|pi|infty|theta|alpha|beta|gamma|cup|pm|frac'
LOOKS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (  # in this order
        (r'(?<!\\)\\(?:(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])|[()\[\]])|\\?\$', ''),
        (r',\\!\s*|\{,\}', ','),
        (r'(?<!\\)\\(?:[,;:! ]|q?quad(?![a-zA-Z]))|~', ' '),
        (
            r'(?<![0-9.,^_(\[{])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])',
            lambda found: found[0].replace(',', ''),
        ),  # 1,234
        (r'\\(?:math(?:rm|bf|it)|operatorname)\s*\{([a-zA-Z])\}', r'\1'),
        (
            r'\\(?:text(?:rm|bf|it|normal)?|mbox|math(?:rm|bf|it)|operatorname)\s*\{([^{}"]*)\}',
            lambda found: (
                f' "{found[1].strip()}" ' if re.search('[a-zA-Z]{2}|[a-zA-Z]/', found[1]) else f' {found[1]} '
            ),
        ),
        (r'\s*"?\b(?:or|and)\b"?\s*', ','),
        (r'\^\s*\{?\\circ\}?|°', ' "degrees"'),
        (r'\\%', '%'),
        (r'\\[dtc]frac(?![a-zA-Z])', r'\\frac'),
        (r'\\(?:lvert|rvert|vert)(?![a-zA-Z])', '|'),
        (r'\\le(?:q|qslant)(?![a-zA-Z])|<=', r'\\le '),
        (r'\\ge(?:q|qslant)(?![a-zA-Z])|>=', r'\\ge '),
        (r'\\lt(?![a-zA-Z])', '<'),
        (r'\\gt(?![a-zA-Z])', '>'),
        (r'\\varnothing', r'\\emptyset'),
        (rf'(?<![\\a-zA-Z"])({WORDS})(?![a-zA-Z])', r'\\\1'),
        (r'(?<![0-9.])([0-9]+) +([0-9]+)/([0-9]+)(?![0-9.])', r'\1\\frac{\2}{\3}'),  # 1 1/2 is not 11/2
        (r'\s+', ' '),
        (r'(?<![0-9A-Za-z]) | (?![0-9A-Za-z"])', ''),
        (r'([\^_])\{([0-9a-zA-Z])\}(?![0-9])', r'\1\2'),
    (r'^\{([^{}]*)\}$', r'\1'),
    )
]
FUNCTIONS = set('sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp'.split())
CLOSE = {'(': ')', '[': ']', '{': '}', '\\{': '\\}', '|': '|', '\\lfloor': '\\rfloor', '\\lceil': '\\rceil'}
TOKEN = re.compile(
    r' *(?:([0-9]+\.?[0-9]*|\.[0-9]+)|(\\[a-zA-Z]+|\\[{}])|([a-zA-Z](?:_(?:\{[a-zA-Z0-9]*\}|[a-zA-Z0-9]))?)'
    r'|([-+*/^!()\[\]{}|_,]))'
)


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
    """The parts of a text between separators outside all brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(rf'\\?[(){{}}\[\]]|"[^"]*"|{separator}', text):
        if match[0][-1] in '([{':
            depth += 1
        elif match[0][-1] in ')]}':
            depth -= 1
            if depth < 0:
                raise GaveUp('brackets')
        elif depth == 0 and match[0][0] != '"':
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]


class Reader:
    """Recursive descent over a LaTeX subset: .read() -> node, names. A node is (operation, operands...)."""

    def __init__(self, text):
        self.tokens, self.at, self.depth, self.bars, self.nodes, self.calls, self.names = (
            [],
            0,
            0,
            0,
            0,
            0,
            set(),
        )
        place = 0
        while place < len(text):
            match = TOKEN.match(text, place)
            if not match or len(match[0]) > MAX_DIGITS:
                raise GaveUp(f'cannot read {text[place : place + 12]!r}')
            self.tokens.append((match.lastindex, match[match.lastindex]))
            place = match.end()
        self.tokens.append((0, ''))

    def peek(self):
        return self.tokens[self.at][1]

    def take(self, wanted=None):
        token = self.tokens[self.at][1]
        if wanted is not None and token != wanted or not token:
            raise GaveUp(f'{wanted or "more"} expected')
        self.at += 1
        return token

    def node(self, *node):
        self.nodes, self.calls = (
            self.nodes + 1,
            self.calls + (node[0] in FUNCTIONS or node[0] in ('^', 'root', '!')),
        )
        if self.nodes > MAX_NODES or self.calls > MAX_CALLS:
            raise GaveUp('too long')
        return node

    def read(self):
        node = self.sum()
        self.take('') if self.peek() else None
        return node, frozenset(self.names)

    def sum(self):
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise GaveUp('too deep')
        terms = [self.product()]
        while self.peek() in ('+', '-'):
            terms.append(self.product())  # it reads its own sign
        self.depth -= 1
        return terms[0] if len(terms) == 1 else self.node('+', *terms)

    def product(self):
        sign, signs, factors, over = 1, 0, [], []
        while self.peek() in ('+', '-'):
            sign, signs = -sign if self.take() == '-' else sign, signs + 1
            if signs > 2:
                raise GaveUp('signs')
        factors.append(self.power())
        while True:
            token = self.peek()
            if token in ('*', '\\cdot', '\\times', '/', '\\div'):
                side = over if self.take() in ('/', '\\div') else factors
                negative = self.peek() == '-' and self.take()
                side.append(self.power())
                sign = -sign if negative else sign
            elif self.starts(token):
                if self.tokens[self.at][0] == 1 and self.tokens[self.at - 1][0] == 1:
                    raise GaveUp('two numbers')  # 1 200
                factors.append(self.power())
            else:
                break
        if sign < 0:
            factors.append(('n', Fraction(-1)))
        top = factors[0] if len(factors) == 1 else self.node('*', *factors)
        return self.node('/', top, *over) if over else top

    def starts(self, token):
        kind = self.tokens[self.at][0]
        return (
            kind in (1, 3)
            or token in ('(', '[', '{', '\\lfloor', '\\lceil')
            or token == '|'
            and not self.bars
            or (
                kind == 2 and token not in ('\\}', '\\{', '\\rfloor', '\\rceil', '\\cdot', '\\times', '\\div')
            )
        )

    def power(self, base=None):
        node = base or self.primary()
        while self.peek() in ('^', '!'):
            if self.take() == '!':
                node = self.node('!', node)
            else:
                negative = self.peek() == '-' and self.take()
                node = self.node(
                    '^',
                    node,
                    self.node('*', ('n', Fraction(-1)), self.primary()) if negative else self.primary(),
                )
        return node

    def argument(self):
        kind, token = self.tokens[self.at]
        if kind == 1 and len(token) > 1:  # \frac12: the macro takes one digit
            self.tokens[self.at] = (1, token[1:])
            return ('n', Fraction(token[0])) if token[0] != '.' else self.take('digit')
        return self.primary()

    def group(self, opening):
        self.bars += opening == '|'
        bars, self.bars = self.bars, self.bars if opening == '|' else 0
        node = self.sum()
        self.take(CLOSE[opening])
        self.bars = bars - (opening == '|')
        return node

    def primary(self):
        kind, token = self.tokens[self.at][0], self.take()
        if kind == 1:
            value = Fraction(token)
            if self.peek() == '\\overline':  # 0.1\overline{6}
                self.take()
                self.take('{')
                cycle = self.take()
                self.take('}')
                if '.' not in token or not cycle.isdigit():
                    raise GaveUp('overline')
                return (
                    'n',
                    value + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(token.partition('.')[2])),
                )
            if self.peek() == '\\frac' and '.' not in token:  # 2\frac13 is a sum
                part = self.primary()
                numbers = [x[1] for x in part[1:] if x[0] == 'n']
                if len(numbers) == 2:
                    if not 0 < numbers[0] < numbers[1]:
                        raise GaveUp('mixed number')
                    return self.node('+', ('n', value), part)
                return self.node('*', ('n', value), part)
            return ('n', value)
        if kind == 3 or token in (
            '\\pi',
            '\\theta',
            '\\alpha',
            '\\beta',
            '\\gamma',
            '\\lambda',
            '\\phi',
            '\\omega',
            '\\mu',
        ):
            if token not in ('e', 'i', '\\pi'):
                self.names.add(token.replace('{', '').replace('}', ''))
            return ('s', token.replace('{', '').replace('}', ''))
        if token in CLOSE and token != '\\{':
            node = self.group(token)
            name = {'|': 'abs', '\\lfloor': 'floor', '\\lceil': 'ceil'}.get(token)
            return self.node(name, node) if name else node
        if token in ('\\frac', '\\binom', '\\dbinom', '\\tbinom'):
            return self.node('/' if token == '\\frac' else 'binom', self.argument(), self.argument())
        if token == '\\sqrt':
            index = ('n', Fraction(2))
            if self.peek() == '[':
                index = self.group(self.take())
            return self.node('root', self.argument(), index)
        if token == '\\overline':
            return self.argument()
        name = token[1:]
        if name not in FUNCTIONS:
            raise GaveUp(f'cannot read {token}')
        base = power = None
        while self.peek() in ('^', '_'):
            if self.take() == '^':
                power = self.argument()
            else:
                base = self.argument()
        if power == ('*', ('n', Fraction(-1)), ('n', Fraction(1))):
            raise GaveUp('inverse')  # \sin^{-1}
        inside = [self.power()] if self.peek() in CLOSE else []
        while (
            not inside
            or self.tokens[self.at - 1][1] not in (')', ']', '}', '|')
            and (
                self.tokens[self.at][0] in (1, 3)
                or self.peek() in ('\\pi', '\\frac', '\\theta', '\\alpha', '\\sqrt')
            )
        ):
            inside.append(self.power())  # \sin 2x
        node = self.node(
            name, inside[0] if len(inside) == 1 else self.node('*', *inside), base or ('n', Fraction(10))
        )
        return self.node('^', node, power) if power else node


RELATION = r'\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|<|>'
INFINITE = {'\\infty': 1, '+\\infty': 1, '-\\infty': -1}


@functools.lru_cache(4096)
def tree(text, depth=0):
    """A normal answer as (sort, ...). Raises GaveUp."""
    if depth > 6 or not text:
        raise GaveUp('empty or too deep')
    deeper = functools.partial(tree, depth=depth + 1)
    pieces = split(text, ',')
    if len(pieces) > 1 or '\\pm' in text and not text.startswith(('(', '[', '\\{', '\\begin')):
        name, values = re.match(r'(?:([a-zA-Z])=)?', pieces[0])[1], []
        for piece in pieces:
            given, value = re.fullmatch(r'(?:([a-zA-Z])=)?(.*)', piece).groups()
            piece = value if name and given in (name, None) else piece  # x=2,x=5 or x=2,5
            if '\\pm' in piece and piece[:2] != '\\{':
                values += [
                    deeper(piece.replace('\\pm', sign).replace('\\mp', other)) for sign, other in ('+-', '-+')
                ]
            else:
                values.append(deeper(piece))
        return ('list', tuple(values))
    if text == '\\emptyset' or text == '\\{\\}':
        return ('list', ())
    if text in INFINITE:
        return ('infinity', INFINITE[text])
    if found := re.fullmatch(r'([a-zA-Z])\\in ?(.+)', text):
        return deeper(found[2])
    if len(sets := split(text, r'\\cup(?![a-zA-Z])')) > 1:
        return ('union', tuple(map(deeper, sets)))
    inner = re.fullmatch(r'\\\{(.*)\\\}', text)
    if inner and min(balance(inner[1])) >= 0:
        found = deeper(inner[1])
        return found if found[0] == 'list' else ('list', (found,))
    inner = re.fullmatch(r'[(\[](.*)[)\]]', text)
    if inner and min(balance(inner[1])) >= 0:
        if '\\begin' in text:
            return deeper(inner[1])
        if len(items := split(inner[1], ',')) > 1:
            return ('tuple', text[0] + text[-1], tuple(map(deeper, items)), '')
    if found := re.fullmatch(r'\\begin\{([pbv]?)(?:matrix|array)\}(.*)\\end\{[pbv]?(?:matrix|array)\}', text):
        rows = [
            tuple(deeper(cell.strip()) for cell in row.split('&'))
            for row in found[2].split('\\\\')
            if row.strip()
        ]
        return ('matrix', found[1] == 'v', tuple(rows))
    if len(sides := split(text, RELATION)) > 1:
        signs = [sign.strip() for sign in re.findall(RELATION, text)]
        sides = [deeper(side) for side in sides]
        if signs[0] in ('>', '\\ge'):
            sides, signs = sides[::-1], signs[::-1]
        signs = (
            [{'>': '<', '\\ge': '\\le'}.get(sign, sign) if sign in ('>', '\\ge') else sign for sign in signs]
            if len({sign in ('>', '\\ge') for sign in signs}) == 1
            else [GaveUp]
        )
        return interval(sides, signs)
    if len(sides := split(text, '=')) > 1:
        return ('equation', tuple(deeper(side) for side in sides))
    if len(sides := split(text, ':')) > 1:
        return ('ratio', tuple(map(deeper, sides)))
    if found := re.fullmatch(r'\(?([0-9][0-9a-fA-F]*|[0-9A-F]{2,})\)?_\{?([0-9]{1,2})\}?', text):
        if 2 <= int(found[2]) <= 36 and len(found[1]) < MAX_DIGITS:
            return ('base', found[1].upper().lstrip('0'), int(found[2]))
    unit, value = '', text
    if (found := UNIT.search(text)) and (
        found[1][0] == '"' or not re.search('[a-zA-Z]{3}', re.sub(r'\\[a-zA-Z]+', '', text[: found.start()]))
    ):
        words = re.sub(r'["^]|\bper\b', ' ', found[1].replace('per ', '/').replace('/', ' / ')).split()
        if MISLEADING.intersection(word.lower() for word in words if word != '/') or len(words) > 5:
            return ('text', fold(text))
        unit = ''.join(
            UNITS.get(
                word.removesuffix('s') if len(word) > 2 else word,
                word.removesuffix('s') if len(word) > 2 else word,
            )
            for word in map(str.lower, words)
        )
        value = text[: found.start()]
    if '"' in value or re.search('[a-zA-Z]{3}', re.sub(r'\\[a-zA-Z]+|_\{[a-zA-Z0-9]*\}', '', value)):
        return ('text', fold(text))
    return ('number', *Reader(value).read(), unit)


def balance(text):
    """Running depth of the brackets."""
    depth, seen = 0, [0]
    for c in text:
        depth += (c in '([{') - (c in ')]}')
        seen.append(depth)
    return seen


def fold(text):
    return re.sub(r'[\s"{}]+|\\[a-z]+', '', text).lower()


def interval(sides, signs):
    r"""a<x\le b as the tuple (a,b] with the name x; other chains as they are."""
    if signs == [GaveUp] or len(sides) > 3:
        raise GaveUp('relation')
    names = [side[1][1] if side[0] == 'number' and side[1][0] == 's' and side[2] else None for side in sides]
    if (
        len(sides) == 3
        and names[1]
        and not any(side[0] == 'number' and side[2] for side in (sides[0], sides[2]))
    ):
        return ('tuple', '[('[signs[0] == '<'] + '])'[signs[1] == '<'], (sides[0], sides[2]), names[1])
    if len(sides) == 2 and names[0] and not (sides[1][0] == 'number' and sides[1][2]):
        return ('tuple', '(' + '])'[signs[0] == '<'], (('infinity', -1), sides[1]), names[0])
    if len(sides) == 2 and names[1] and not (sides[0][0] == 'number' and sides[0][2]):
        return ('tuple', '[('[signs[0] == '<'] + ')', (sides[0], ('infinity', 1)), names[1])
    return ('relation', tuple(signs), tuple(sides))


# --- math: equality ------------------------------------------------------------
def context(digits):
    made = MPContext()
    made.dps = digits
    return made


ROUGH, FINE = context(60), context(400)  # equal to 45 digits, then to 380: e^-200 is not 0


def capped(x):
    if x.numerator.bit_length() + x.denominator.bit_length() > MAX_BITS:
        raise GaveUp('number too long')
    return x


def value(node, env, mp):
    """Fraction where the value is rational, else mp's. Raises GaveUp, ZeroDivisionError, ValueError."""

    up = functools.partial(rough, mp=mp)

    def small(x, limit=800):
        if abs(x) > limit:
            raise GaveUp('number too large')
        return x

    def combine(xs, exact, rough):
        if all(isinstance(x, Fraction) for x in xs):
            return functools.reduce(lambda a, b: capped(exact(a, b)), xs)
        return functools.reduce(rough, map(up, xs))

    def power(a, b):
        if isinstance(b, Fraction) and b.denominator == 1:
            if isinstance(a, Fraction):
                bits = max(a.numerator.bit_length(), a.denominator.bit_length())
                if abs(b) * max(bits - 1, bits > 1) > MAX_BITS and abs(a) != 1 and a:
                    raise GaveUp('power too large')
                if a == 0 and b <= 0:
                    raise ZeroDivisionError
                return a ** int(b % 2 if abs(a) == 1 or a == 0 and b > 9 else b) if a or b < 9 else a
            return a ** int(small(b * small(abs(mp.log(a))) if a else b, 3000) and b)
        if a == 0:
            raise ZeroDivisionError
        return mp.exp(small(up(b) * mp.log(up(a))))

    op, *operands = node
    if op == 'n':
        return operands[0]
    if op == 's':
        name = operands[0]
        return env[name] if name in env else {'\\pi': +mp.pi, 'e': +mp.e, 'i': mp.mpc(0, 1)}[name]
    x, *rest = operands = [value(operand, env, mp) for operand in operands]
    if op == '+':
        return combine(operands, lambda a, b: a + b, lambda a, b: a + b)
    if op == '*':
        return combine(operands, lambda a, b: a * b, lambda a, b: a * b)
    if op == '/':
        return combine(operands, lambda a, b: a / b, lambda a, b: a / b)
    if op == '^':
        return power(x, rest[0])
    if op == 'root':
        n = rest[0]
        if not isinstance(n, Fraction) or n.denominator != 1 or not 2 <= n <= 100:
            raise GaveUp('root')
        if isinstance(x, Fraction) and x >= 0 and n == 2:
            top, bottom = m.isqrt(x.numerator), m.isqrt(x.denominator)
            if top * top == x.numerator and bottom * bottom == x.denominator:
                return Fraction(top, bottom)
        x = up(x)
        return (
            x
            if not x
            else -mp.root(-x, int(n))
            if n % 2 and mp.im(x) == 0 and mp.re(x) < 0
            else mp.root(x, int(n))
        )
    if op == '!':
        if isinstance(x, Fraction) and x.denominator == 1:
            return Fraction(m.factorial(int(small(x, 400)))) if x >= 0 else 1 // 0
        return mp.gamma(small(up(x), 300) + 1)
    if op == 'binom':
        n, k = operands
        if (
            not isinstance(k, Fraction)
            or k.denominator != 1
            or not 0 <= k <= 300
            or not isinstance(n, Fraction)
        ):
            raise GaveUp('binomial')
        return functools.reduce(lambda done, j: capped(done * (n - j) / (j + 1)), range(int(k)), Fraction(1))
    if op in ('abs', 'floor', 'ceil'):
        if isinstance(x, Fraction):
            return Fraction({'abs': abs, 'floor': m.floor, 'ceil': m.ceil}[op](x))
        return {'abs': abs, 'floor': mp.floor, 'ceil': mp.ceil}[op](x)
    x = up(x)
    if op in ('ln', 'log'):
        return mp.log(x) / (mp.log(up(rest[0])) if op == 'log' else 1)
    return getattr(mp, {'arcsin': 'asin', 'arccos': 'acos', 'arctan': 'atan'}.get(op, op))(small(x))


@functools.lru_cache(2048)
def point(name, i):
    """The i-th value of a variable: random rationals of either sign, the same in every run."""
    return Fraction(random.Random(f'{name} {i}').randint(-4000, 4000) or 1, 997)


def rough(x, mp):
    """x as a number of mp. Raises GaveUp for more digits than FINE could tell apart."""
    if not isinstance(x, Fraction):
        return x
    if x.numerator.bit_length() + x.denominator.bit_length() > 1000:
        raise GaveUp('number too long')
    return mp.mpf(x.numerator) / x.denominator


def close(x, y, mp):
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    x, y = rough(x, mp), rough(y, mp)
    size = max(abs(x), abs(y))
    small = mp.mpf(10) ** (15 - mp.dps)
    return abs(x - y) <= small * (size if x and y else 1)  # against an exact zero, absolute


def probe(a, b, names, agree):
    """Whether agree(value of a, value of b, mp, memory) holds at random points; constants: in full."""
    if not names:
        try:
            x, y = (value(node, {}, ROUGH) for node in (a, b))
            if not agree(x, y, ROUGH) or isinstance(x, Fraction) and isinstance(y, Fraction):
                return agree(x, y, ROUGH)
            return agree(*(value(node, {}, FINE) for node in (a, b)), FINE)
        except (ZeroDivisionError, ValueError):
            return False  # undefined
    seen = 0
    for i in range(8):
        env = {name: point(name, i) for name in names}
        try:
            agreed = agree(value(a, env, ROUGH), value(b, env, ROUGH), ROUGH)
        except (ZeroDivisionError, ValueError, GaveUp):
            continue
        if not agreed:
            return False
        seen += 1
        if seen == 4:
            return True
    raise GaveUp('undefined at random points')


def same_equation(a, b):
    """Whether left - right of two equations differ by a constant factor, not zero."""

    def difference(equation):
        if len(equation[1]) != 2 or any(side[0] != 'number' or side[3] for side in equation[1]):
            raise GaveUp('equation')
        (_, left, names, _), (_, right, more, _) = equation[1]
        return ('+', left, ('*', ('n', Fraction(-1)), right)), names | more

    (p, names), (t, more) = difference(a), difference(b)
    factors = []

    def agree(x, y, mp):
        if not x or not y:
            return not x and not y
        exact = isinstance(x, Fraction) and isinstance(y, Fraction)
        factors.append(x / y if exact else rough(x, mp) / rough(y, mp))
        return close(factors[0], factors[-1], mp)

    return bool(names) and names == more and probe(p, t, names, agree)


def same(p, t):
    """Whether two trees, prediction and truth, mean the same. Raises GaveUp."""
    if p == t:
        return p[0] != 'number' or probe(p[1], t[1], p[2], close)  # 0/0 is not 0/0
    for _ in range(2):  # a name that the other lacks, a chain 9*2=18
        if p[0] == 'equation' and t[0] != 'equation':
            *left, last = p[1]
            for side in left:
                if (
                    side[0] != 'number'
                    or side[3]
                    or last[0] == 'number'
                    and side[1][0] in 's*'
                    and side[2] & last[2]
                ):
                    return False
                if (
                    side[1][0] != 's'
                    and not (
                        side[1][0] == '*'
                        and len(side[1]) == 3
                        and side[1][1][0] == 's'
                        and side[1][2][0] == 's'
                    )
                    and not (not side[2] and same(side, last))
                ):
                    return False  # neither a name (x, f(x)) nor the same value
            p = last
        p, t = t, p
        if (
            p[0] == 'equation'
            and t[0] == 'number'
            and (len(p[1]) > 2 or p[1][1][0] != 'number' or p[1][1][2])
        ):
            return False  # truth y=2x+3, prediction 2x+3
    p, t = (x[1][0] if x[0] == 'list' and len(x[1]) == 1 else x for x in (p, t))
    if p[0] != t[0]:
        return False
    if p[0] == 'number':
        if ('%' in p[3]) != ('%' in t[3]) or p[3] and t[3] and p[3] != t[3]:
            return False
        return probe(p[1], t[1], p[2] | t[2], close)
    if p[0] in ('list', 'union'):  # in any order
        left = list(t[1])
        if len(p[1]) != len(left):
            return False
        if len(left) > 16:
            return all(map(same, p[1], left))
        for item in p[1]:
            match = next((other for other in left if same(item, other)), None)
            if match is None:
                return False
            left.remove(match)
        return True
    if p[0] == 'tuple':
        named = not (p[3] and t[3]) or p[3] == t[3]
        return named and p[1] == t[1] and len(p[2]) == len(t[2]) and all(map(same, p[2], t[2]))
    if p[0] == 'matrix':
        shapes = p[1] == t[1] and list(map(len, p[2])) == list(map(len, t[2]))
        return shapes and all(same(a, b) for row, other in zip(p[2], t[2]) for a, b in zip(row, other))
    if p[0] == 'relation':
        return p[1] == t[1] and all(map(same, p[2], t[2]))
    if p[0] == 'ratio':
        return len(p[1]) == len(t[1]) and all(map(same, p[1], t[1]))
    return same_equation(p, t) if p[0] == 'equation' else False  # base, text, infinity: p == t above


def math(completion, truth):
    found = first_found(completion, boxed, after_hashes, after_phrase, tagged)
    text = after_thinking(completion).strip()
    if found is None and len(text) <= 100 and '\n' not in text:
        found = text
    answer, truth = normal(found or ''), normal(str(truth))
    if not answer or not truth:
        return 0.0, 'no answer'
    if answer == truth and answer.strip('\\{}() '):
        undefined = '\\frac{0}{0}' in answer
        return float(not undefined), 'same text'
    if max(len(answer), len(truth)) > MAX_ANSWER:
        raise GaveUp('answer too long')
    p, t = tree(answer), tree(truth)
    if p[0] == 'list' != t[0] and p[1] and all(same(item, p[1][0]) for item in p[1][1:9]) and len(p[1]) < 10:
        p = p[1][0]  # one answer written twice: 15\frac{39}{40} and \frac{639}{40}
    return float(same(p, t)), f'{p[0]} against {t[0]}: {answer[:60]}'


# --- gsm8k, sums ---------------------------------------------------------------
def decimal(text):
    """Exact value of a number in ASCII digits such as '-1,234.50', else None. Raises GaveUp."""
    if not re.fullmatch(r'[-+]?(?:[0-9][0-9,]*\.?[0-9]*|\.[0-9]+)', text):
        return None
    if len(text) > MAX_DIGITS:
        raise GaveUp('number too long')
    first, *groups = text.lstrip('-+').partition('.')[0].split(',')
    if groups and (len(first) > 3 or first[0] == '0' or any(len(group) != 3 for group in groups)):
        return None  # '1,450,00' and '0,125' are not thousands
    return Fraction(text.replace(',', ''))


def number(text):
    r"""Exact value of '1,234.5', '-3/4', '1 1/2' or '-2\frac{1}{3}', else None. Raises GaveUp."""
    match = re.fullmatch(r'(-?)(?:([0-9]+) ?)?\\frac\{([-0-9.,]+)\}\{([-0-9.,]+)\}', text) or re.fullmatch(
        r'(-?)(?:([0-9]+) )?([0-9.,]+)/([0-9.,]+)', text
    )
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
    near = words if only else words[max(places[-1] - 1, 0) : places[-1] + 2]
    if any(word.lower().strip('.,;') in DOUBTFUL or re.search(r'[\\^_]', word) for word in near):
        return None
    word = words[places[-1]].strip('*').rstrip(".,;?'")
    match = re.fullmatch(r'([-+]?[0-9.,]+(?:/[0-9]+)?)%?(?:[a-zA-Z]{2,})?(?:/[a-zA-Z]{2,})?', word)  # 5pm
    return number(match[1]) if match else None


DOUBTFUL = MISLEADING - set('is to if than more less when unless except otherwise'.split())
UNSURE = re.compile(r"\b(?:cannot|can't|could not|unsure|not sure|maybe|perhaps|guess)\b", re.IGNORECASE)


def gsm8k_answer(completion):
    """Fraction or None. Raises GaveUp."""
    found = first_found(completion, after_hashes, boxed, after_phrase, tagged)
    if found is None:
        text = after_thinking(completion).rstrip()[-2000:]
        return None if UNSURE.search(text.rpartition('\n')[2]) else prose_number(text, only=False)
    if len(found) > MAX_ANSWER:
        raise GaveUp('answer too long')
    found = re.sub(r'\s+', ' ', normal(found).replace('"', ' ')).strip()
    exact = number(found)
    return prose_number(found.rpartition('=')[2]) if exact is None else exact


def gsm8k(completion, truth):
    answer, wanted = gsm8k_answer(completion), gsm8k_answer(f'#### {truth}')
    return float(answer is not None and answer == wanted), f'{answer} against {wanted}'


def sums_answer(completion):
    """int or None."""
    tail = completion.rpartition('####')[2].strip(' \t\r\n') if '####' in completion else ''
    return int(tail) if re.fullmatch(f'[-+]?[0-9]{{1,{MAX_DIGITS}}}', tail) else None


def sums(completion, truth):
    answer = sums_answer(completion)
    return float(answer == int(truth)), f'{answer} against {truth}'


# --- mcq -----------------------------------------------------------------------
def mcq_answer(completion, options='ABCDEFGHIJ'):
    """The option's letter, or None without one or with several."""
    found = first_found(
        completion, boxed, tagged, after_hashes, lambda text: after_phrase(text, 'nswer|NSWER|ption|hoice')
    )
    text = after_thinking(completion).strip() if found is None else normal(found[:200]).replace('"', '')
    match = re.match(r'[\s(*]*(?:[Oo]ption )?([A-Z])(?![A-Za-z])(.*)', text, re.DOTALL)
    if not match or found is None and not re.fullmatch(r'[\s).*]*', match[2]) or match[1] not in options:
        return None
    several = re.match(
        r"[\s,/&|)(]*(?:or|and|nor)?[\s,/&|(]*[A-Z](?![A-Za-z'])|[\s,)*]*(?:or|and|nor)\b", match[2]
    )
    return None if several else match[1]


def mcq(completion, truth):
    truth = loaded(truth)
    answer, options = (
        (truth['answer'], truth.get('options') or 'ABCDEFGHIJ')
        if isinstance(truth, dict)
        else (str(truth).strip('() '), 'ABCDEFGHIJ')
    )
    said = mcq_answer(completion, options)
    return float(said is not None and said == answer and answer in options), f'{said} against {answer}'


# --- countdown -----------------------------------------------------------------
OPERATIONS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def countdown(completion, truth):
    truth, used = loaded(truth), []
    found = first_found(completion, tagged, boxed)
    text = (
        (found or '')
        .translate(SIGNS)
        .replace('\\times', '*')
        .replace('\\cdot', '*')
        .replace('\\div', '/')
        .strip()
    )
    if not re.fullmatch(r'[0-9+\-*/() ]{1,500}', text) or '**' in text or '//' in text:
        return 0.0, 'no expression'

    def evaluate(node):
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](evaluate(node.left), evaluate(node.right))
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return Fraction(node.value)
        raise ValueError

    try:
        result = evaluate(ast.parse(text, mode='eval').body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return 0.0, 'cannot be evaluated'
    right = result == Fraction(str(truth['target'])) and Counter(used) == Counter(truth['numbers'])
    return float(right), f'{result} from {used}'


# --- ifeval --------------------------------------------------------------------
def relate(n, relation, wanted):
    return n < wanted if relation == 'less than' else n >= wanted


ABBREVIATIONS = set(
    'mr mrs ms dr prof st vs e.g i.e etc jr sr no fig inc ltd co u.s a.m p.m approx dept'.split()
)


def sentences(text):
    """Number of sentences: . ! ? before a blank, not after abbreviations, not '...' before a-z."""
    n, start = 0, 0
    for match in re.finditer(r'[.!?]+["\')\]*]*(?=\s|$)', text):
        word = (
            (text[max(start, match.start() - 20) : match.start()].split() or [''])[-1].lower().lstrip('("\'*')
        )
        after = text[match.end() : match.end() + 2].strip()
        if (
            match[0] == '.'
            and after
            and (word in ABBREVIATIONS or len(word) == 1 and word.isalpha() and word != 'i')
        ):
            continue
        if (
            match[0].startswith('..')
            and after[:1].islower()
            or not re.search(r'\w', text[start : match.start()])
        ):
            continue
        n, start = n + 1, match.end()
    return n + bool(re.search(r'\w', text[start:]))


def placeholders(text):
    """Number of [...] within a line, without going back over it."""
    n = 0
    for line in text.split('\n'):
        place = line.find('[')
        while place >= 0 and (place := line.find(']', place)) >= 0:
            n, place = n + 1, line.find('[', place)
    return n


def highlighted(text):
    single = sum(bool(h.strip('*').strip()) for h in re.findall(r'\*[^\n*]*\*', text))
    return single + sum(bool(h[2:-2].strip()) for h in re.findall(r'\*\*[^\n*]*\*\*', text))


def titled(text):
    return any(
        (a := line.find('<<')) >= 0 and line.rfind('>>') > a + 1 and line[a : line.rfind('>>')].strip('<> ')
        for line in text.split('\n')
    )


def bullets(text):
    lines = [line.lstrip() for line in text.split('\n')]
    return sum(line[:1] == '-' or line[:1] == '*' and line[1:2] not in ('', '*') for line in lines)


def is_json(text):
    text = re.sub(r'^```(?:json|Json|JSON)?|```$', '', text.strip()).strip()
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def two_responses(text):
    parts = text.split('******')
    filled = [part.strip() for part in parts if part.strip()]
    return len(filled) == 2 and filled[0] != filled[1] and all(part.strip() for part in parts[1:-1])


def paragraphs(text):
    parts = re.split(r'\s?\*\*\*\s?', text)
    return -1 if not all(part.strip() for part in parts[1:-1]) else sum(bool(part.strip()) for part in parts)


def first_word(text, num_paragraphs, nth_paragraph, first_word):
    parts = text.split('\n\n')
    if sum(bool(part.strip()) for part in parts) != num_paragraphs or not 0 < nth_paragraph <= len(parts):
        return False
    word = (parts[nth_paragraph - 1].split() or [''])[0].lstrip('\'"')
    return re.split(r'[.,?!\'"]', word)[0].lower() == first_word.lower()


def postscript(text, postscript_marker):
    pattern = {'P.P.S': r'p\.\s?p\.\s?s', 'P.S.': r'p\.\s?s\.'}.get(postscript_marker)
    return bool(re.search(pattern or re.escape(postscript_marker.lower()), text.lower()))


SCRIPTS = {
    'kn': 0xC80,
    'gu': 0xA80,
    'te': 0xC00,
    'ta': 0xB80,
    'bn': 0x980,
    'pa': 0xA00,
    'ml': 0xD00,
    'hi mr ne': 0x900,
    'th': 0xE00,
    'he': 0x580,
    'ar fa ur': 0x600,
    'ru bg uk mk': 0x400,
    'el': 0x380,
    'ko': 0xAC00,
    'ja': 0x3000,
    'zh': 0x4E00,
}  # code points // 128
STOP = {
    code: set(words.split())
    for code, words in {
        'en': 'the of and to in is that it was for on are with as be at this have from or had not but '
              'what all were when we '
        'there can an your which their if will each about how up out them then she many some so her '
        'would i you he they',
        'de': 'der die das und ist nicht ein eine zu den mit von auf für im dem sich des auch es an '
              'werden aus er hat dass sie '
        'nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor '
        'zur ich wir wurde',
        'fr': 'le la les des et est un une du dans que pour qui sur avec ce il au ne se pas plus par '
              'sont ou mais nous vous '
        'leur elle cette à en de y tout très été aux ses son sa ils comme je',
        'es': 'el la los las de y que en un una es por con para del se no al lo como más su pero sus '
              'este ya muy o fue todos '
        'entre cuando sin sobre también me hasta hay donde sus está',
        'it': 'il la di che e un una in per è non con del della i le gli da dei si al sono ma anche '
              'come più nel alla lo questo '
        'ha delle ogni molto degli dal ed era',
        'pt': 'o a os as de e que do da em um uma é para com não por mais dos das se no na ao como mas '
              'foi muito todos seu sua '
        'pela pelo são à também pão está',
        'nl': 'de het een en van is in dat op te zijn met voor niet aan er om ook als dan bij nog uit '
              'naar wordt door maar '
        'heeft hebben ik je ze deze veel elke staat',
        'sv': 'och att det som en på är av för med den till inte har de ett om var jag men sig vi så '
              'från kan när alla hon han',
        'da': 'og at det som en på er af for med den til ikke har de et om var jeg men sig vi så fra '
              'kan når alle der hver',
        'fi': 'ja on ei se että oli hän mutta ovat kun niin myös joka kuin tai siitä ole sen jo hyvin '
              'vanha ne me sekä ihmiset '
        'kanssa päivä joita siellä monta paljon',
        'pl': 'i w na z się do nie to że jest jak o po co dla od za przez są ale który tylko oraz był '
              'bardzo każdego jego',
        'cs': 'a se v na je že s z do o to i ve pro jsou byl jako za který ale od tak po jeho když si',
        'tr': 've bir bu da de için ile çok olarak daha gibi olan ne kadar sonra her en değil ama var',
        'ro': 'și de la în a cu pe nu o un este care din pentru mai să se sunt ce au fost dar prin',
        'hu': 'a az és hogy nem is egy van meg volt de ez csak ki már vagy mint el sok',
        'vi': 'và của là có các được trong cho không một người với những này để khi đã đến từ rất nhiều '
              'ở ra ngày chúng tôi mỗi',
        'sw': 'na ya wa kwa ni la katika za cha kuwa hii vya watu yake huo hiyo kila siku mji yenye '
              'wengi sana pia lakini huja '
        'kama au ili hapa watoto wake',
        'id': 'yang dan di dengan untuk dari ini pada adalah tidak itu dalam ke akan oleh juga ada '
              'orang setiap banyak mereka',
        'hi': 'है में की के और यह से को हैं था का पर लिए भी नहीं एक हर बहुत ने वह लोग आते',
        'mr': 'आहे आणि या मध्ये होते आहेत हे ते खूप येतात एक करण्यासाठी पण नाही जुने लोक रोज ही तो',
        'ne': 'छ र को मा छन् भएको पनि यो हुन् गर्न लागि धेरै हो मानिसहरू आउँछन् हरेक लाई छैन दिन',
        'ar': 'في من على التي إلى هذا هذه أن و مع كل عن الذي كان لا ما يوم هو هي',
        'fa': 'در به که از را این است و با هر برای آن می های روز یک بود مردم بسیار',
        'ur': 'ہے میں کے کی اور سے یہ ہیں کو کا پر بہت ہر لوگ نے ایک بھی',
        'ru': 'и в не на что это с по как из он она к для они есть у все но каждый очень день люди',
        'bg': 'е на и да за от се са с в по не това този които всеки много ден хората които като беше',
        'uk': 'і в не на що це з та як до у він є для дуже люди день щодня',
        'mk': 'и на во да се од за е не со што ова како многу секој луѓето',
    }.items()
}
LETTERS = {
    'ru': 'ыэё',
    'bg': 'ъщ',
    'uk': 'іїєґ',
    'mk': 'ѓќљњџѕј',
    'fa': 'پچژگک',
    'ur': 'ٹڈڑےںہھ',
    'ar': 'ةىيكإأؤئ',
    'de': 'ß',
    'es': 'ñ¿¡',
    'pt': 'ãõ',
    'vi': 'ạảấầậắặẹếềểệịọốồổộớợụứừửữựđ',
    'pl': 'łżśćń',
    'cs': 'řěů',
    'tr': 'ışğ',
    'ro': 'țș',
    'hu': 'őű',
    'mr': 'ळ',
}
LANGUAGES = set(STOP) | {code for codes in SCRIPTS for code in codes.split()}


def in_language(text, code):
    """Whether a text is in a language (ISO 639-1): by script, then by the most frequent words and letters."""
    text = text[:20000].lower()
    blocks, kana = Counter(ord(c) // 128 for c in text if c.isalpha()), re.search('[\u3040-\u30ff]', text)
    counts = {
        codes: sum(
            n
            for b, n in blocks.items()
            if b == start // 128
            or codes == 'ko'
            and 0x158 <= b <= 0x1AF
            or codes in ('zh', 'ja')[bool(kana) : 2 - (not kana)]
            and (0x9C <= b <= 0x13F or b == 0x60)
            or codes in ('ru bg uk mk', 'ar fa ur')
            and b == start // 128 + 1
        )
        for codes, start in SCRIPTS.items()
    }
    script = max(counts, key=counts.get)
    if counts[script] * 2 > sum(blocks.values()):
        if ' ' not in script:
            return code == script
        others = script.split()
    else:
        others = set(STOP) - {c for codes in SCRIPTS for c in codes.split()}
    words = [word.strip('.,;:!?"\'()*।،؟«»') for word in text.split()]
    scores = {
        other: sum(word in STOP[other] for word in words)
        + 0.5 * sum(text.count(c) for c in LETTERS.get(other, ''))
        for other in others
    }
    return code in scores and scores[code] == max(scores.values()) and (scores[code] > 0 or code == 'en')


def words_found(text, word):
    return re.search(rf'(?<!\w){re.escape(word)}(?!\w)', text, re.IGNORECASE)


# instruction -> function(text, its arguments by name), as in google-research's instruction_following_eval
RULES = {
    'keywords:existence': lambda text, keywords: all(word.lower() in text.lower() for word in keywords),
    'keywords:frequency': lambda text, keyword, frequency, relation: relate(
        text.lower().count(keyword.lower()), relation, frequency
    ),
    'keywords:forbidden_words': lambda text, forbidden_words: (
        not any(words_found(text, w) for w in forbidden_words)
    ),
    'keywords:letter_frequency': lambda text, letter, let_frequency, let_relation: relate(
        text.lower().count(letter.lower()), let_relation, let_frequency
    ),
    'language:response_language': lambda text, language: in_language(text, language),
    'length_constraints:number_sentences': lambda text, num_sentences, relation: relate(
        sentences(text), relation, num_sentences
    ),
    'length_constraints:number_paragraphs': lambda text, num_paragraphs: paragraphs(text) == num_paragraphs,
    'length_constraints:number_words': lambda text, num_words, relation: relate(
        len(re.findall(r'\w+', text)), relation, num_words
    ),
    'length_constraints:nth_paragraph_first_word': first_word,
    'detectable_content:number_placeholders': lambda text, num_placeholders: (
        placeholders(text) >= num_placeholders
    ),
    'detectable_content:postscript': postscript,
    'detectable_format:number_bullet_lists': lambda text, num_bullets: bullets(text) == num_bullets,
    'detectable_format:constrained_response': lambda text: any(
        f'My answer is {word}.' in text for word in ('yes', 'no', 'maybe')
    ),
    'detectable_format:number_highlighted_sections': lambda text, num_highlights: (
        highlighted(text) >= num_highlights
    ),
    'detectable_format:multiple_sections': lambda text, section_spliter, num_sections: (
        len(re.findall(re.escape(section_spliter) + r'\s?\d+', text)) >= num_sections
    ),
    'detectable_format:json_format': is_json,
    'detectable_format:title': titled,
    'combination:two_responses': two_responses,
    'combination:repeat_prompt': lambda text, prompt_to_repeat: (
        text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    'startend:end_checker': lambda text, end_phrase: (
        text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    ),
    'startend:quotation': lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    'change_case:capital_word_frequency': lambda text, capital_frequency, capital_relation: relate(
        sum(word.isupper() for word in re.findall(r'\w+(?:[-./]\w+)*', text)),
        capital_relation,
        capital_frequency,
    ),
    'change_case:english_capital': lambda text: text.isupper() and in_language(text, 'en'),
    'change_case:english_lowercase': lambda text: text.islower() and in_language(text, 'en'),
    'punctuation:no_comma': lambda text: ',' not in text,
}


def instructions(truth):
    """[(id, arguments)], mode of an IFEval or open-instruct truth. Raises ValueError on what is unknown."""
    truth = loaded(truth)
    truth = truth[0] if isinstance(truth, list) and len(truth) == 1 else truth
    ids, found = truth.get('instruction_id_list') or truth.get('instruction_id'), []
    if not ids or len(ids) != len(truth.get('kwargs') or []):
        raise ValueError('instruction_id_list and kwargs must have the same length, not 0')
    for name, given in zip(ids, truth['kwargs']):
        if name not in RULES:
            raise ValueError(f'unknown instruction {name!r}')
        wanted = list(inspect.signature(RULES[name]).parameters)[1:]
        given = {key: given[key] for key in wanted if (given or {}).get(key) is not None}
        relation = next((x for key, x in given.items() if 'relation' in key), 'at least')
        if (
            len(given) < len(wanted)
            or relation not in ('less than', 'at least')
            or given.get('language', 'en') not in LANGUAGES
        ):
            raise ValueError(f'{name} takes {", ".join(wanted)}, not {given}')
        found.append((name, given))
    return found, truth.get('mode') or 'strict'


def ifeval(completion, truth, mode=None, fraction=False):
    """1.0 if all are followed, or with fraction=True the share; loose: without first, last line or *."""
    rules, given = instructions(truth)
    texts = [after_thinking(completion)]
    if (mode or given) == 'loose':
        lines = texts[0].split('\n')
        texts += ['\n'.join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
        texts += [text.replace('*', '') for text in texts]
    done = [any(text.strip() and RULES[name](text, **given) for text in texts) for name, given in rules]
    return (sum(done) / len(done) if fraction else float(all(done))), ', '.join(
        f'{name} {"yes" if ok else "no"}' for (name, _), ok in zip(rules, done)
    )


# --- code ----------------------------------------------------------------------
PROGRAMS = {  # language: file, compile, run; further names of the language
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
    'julia': ('main.jl', '', 'julia main.jl', 'jl'),
}
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
    path = [] if sandbox == 'none' else isolate
    env = {
        'PATH': os.environ.get('PATH', os.defpath),
        'HOME': os.environ.get('HOME', '/'),
        'LANG': 'C.UTF-8',
        'TMPDIR': folder,
        'GOCACHE': f'{folder}/.go',
        'PYTHONDONTWRITEBYTECODE': '1',
    }
    with tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode('utf-8', 'replace'))
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                [
                    *path,
                    sys.executable,
                    '-I',
                    '-S',
                    '-c',
                    LAUNCH,
                    folder,
                    str(seconds),
                    str(memory),
                    sandbox,
                    *command,
                ],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=env,
            )
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
    text, plain = after_thinking(text).replace('\r\n', '\n').replace('~~~', '```'), None
    end = len(text)
    for _ in range(50):
        end = text.rfind('\n```', 0, end)
        if end < 0:
            break
        start = text.rfind('```', 0, end)
        if start < 0:
            break
        head, _, body = text[start + 3 : end + 1].partition('\n')
        tag = head.strip().lower().split(' ')[0]
        if tag in names:
            return body
        plain = body if tag == '' and plain is None else plain
        end = max(start - 1, 0)
    return plain


def tests_of(truth):
    """language, [(input, output)], seconds, MB of a truth, Agnostics' or verl's too. Raises ValueError."""
    truth = loaded(truth)
    truth = {'tests': truth} if isinstance(truth, list) else truth
    tests = (
        truth.get('tests')
        or truth.get('test_cases')
        or [{'input': i, 'output': o} for i, o in zip(truth.get('inputs') or [], truth.get('outputs') or [])]
    )
    language = str(truth.get('language', 'python')).lower()
    language = next((key for key, row in PROGRAMS.items() if language in (key, *row[3].split())), None)
    if not tests or language is None:
        raise ValueError(f'no tests, or a language without a row in PROGRAMS: {truth.get("language")!r}')
    return (
        language,
        [(test['input'], test['output']) for test in tests],
        float(truth.get('time_limit_s') or truth.get('timeout_s') or 10),
        float(truth.get('memory_mb') or 1024),
    )


def code(completion, truth, sandbox='namespace'):
    """1.0 if every test's output is right but for blanks at line ends. Raises GaveUp if none could run."""
    language, tests, seconds, memory = tests_of(truth)
    file, build, run, names = PROGRAMS[language]
    source = program_of(completion, (language, *names.split()))
    if not source:
        return 0.0, 'no code block'

    def lines(text):
        return [line.rstrip() for line in text.rstrip().split('\n')]

    def execute(*args, **caps):
        status, output = run_program(*args, sandbox, **caps)
        if status in (96, 97):
            raise GaveUp(
                f'{language} is not installed' if status == 96 else "no sandbox; sandbox='none' does without"
            )
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
                said = {98: 'memory', 99: 'time', 95: 'too much output', 0: 'wrong output'}.get(
                    status, f'exit {status}'
                )
                return 0.0, f'test {i + 1}: {said}'
    return 1.0, f'{len(tests)} tests'


# --- any kind ------------------------------------------------------------------
@functools.lru_cache(1024)
def parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text


def loaded(truth):
    """A truth given as JSON or as Python's text of it, read."""
    return parsed(truth) if isinstance(truth, str) else truth


@functools.lru_cache(64)
def own(kind):
    """The function of 'file.py:function'. Raises ValueError."""
    path, _, name = kind.rpartition(':')
    try:
        spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)
    except (OSError, AttributeError, SyntaxError, ImportError) as error:
        raise ValueError(f'verifier {kind!r}: {error}') from error


def user_function(kind):
    def judge_own(completion, truth, **opts):
        reward = float(own(kind)(completion, truth, **opts))
        if not 0 <= reward <= 1:
            raise GaveUp(f'{kind} gave {reward}, not in [0, 1]')
        return reward, kind

    return judge_own


KINDS = {
    f.__name__: f for f in (sums, gsm8k, math, mcq, ifeval, countdown, code)
}  # (completion, truth) -> reward, rule
ANSWERS = {
    'sums': sums_answer,
    'gsm8k': gsm8k_answer,
    'mcq': mcq_answer,
    'countdown': lambda text: first_found(text, tagged),
    'math': lambda text: (
        normal(found) or None
        if (found := first_found(text, boxed, after_hashes, after_phrase, tagged))
        else None
    ),
}  # what is voted on
NAMES = {
    'gsm8k': ['openai/gsm8k', 'svamp', 'chilled/svamp'],
    'math': [
        'lighteval/math',
        'digitallearninggmbh/math-lighteval',
        'huggingfaceh4/math-500',
        'math-500',
        'math500',
        'math_dapo',
        'hendrycks/competition_math',
        'eleutherai/hendrycks_math',
    ],
    'mcq': ['aqua', 'aqua_rat', 'mmlu', 'arc', 'gpqa'],
    'ifeval': ['google/ifeval'],
    'countdown': ['jiayi-pan/countdown-tasks-3to4'],
    'code': ['code_stdio', 'codecontests', 'apps', 'taco'],
}


def known(kind):
    return KINDS.get(kind) or (user_function(kind) if '.py:' in str(kind) else None)


def kind_of(name):
    """The kind for rows whose dataset or data_source is `name`. Raises ValueError listing known kinds."""
    key = str(name).strip().lower()
    kind = next((kind for kind, names in NAMES.items() if key in names), key)
    if key.rpartition('/')[2].startswith('aime'):
        kind = 'math'
    if not known(kind):
        raise ValueError(f'no verifier for data set {name!r}; kinds: {", ".join(KINDS)}')
    return kind


@functools.lru_cache(1)
def sandboxed():
    """Whether programs can be isolated here."""
    with tempfile.TemporaryDirectory() as folder:
        return run_program(['true'], folder, '', 5, 512, 'namespace')[0] == 0


def check_truth(kind, truth):
    """Raises ValueError naming a truth that cannot be read or judged by here: a broken row."""
    if truth is None:
        raise ValueError(f'{kind}: cannot read the truth None')
    if not known(kind):
        raise ValueError(f'no verifier {kind!r}; kinds: {", ".join(KINDS)}')
    try:
        if kind in ('sums', 'gsm8k', 'math', 'mcq'):
            right = loaded(truth)['answer'] if kind == 'mcq' and isinstance(loaded(truth), dict) else truth
            readable = (
                KINDS[kind](f'#### {right}' if kind in ('sums', 'gsm8k') else f'\\boxed{{{right}}}', truth)[0]
                == 1
            )
        elif kind == 'countdown':
            readable = bool(loaded(truth)['numbers']) and Fraction(str(loaded(truth)['target'])) is not None
        elif kind == 'code':
            language = tests_of(truth)[0]
            if not shutil.which((PROGRAMS[language][1] or PROGRAMS[language][2]).split()[0]):
                raise ValueError(f'{language} is not installed')
            if not sandboxed():
                raise ValueError(
                    "no sandbox here (unshare); a function of your own may call with sandbox='none'"
                )
            readable = True
        else:
            readable = bool(instructions(truth) if kind == 'ifeval' else own(kind))
    except Exception as error:
        raise ValueError(f'{kind}: cannot read the truth {truth!r:.200}: {error}') from error
    if not readable:
        raise ValueError(f'{kind}: cannot read the truth {truth!r:.200}')


def extract(kind, completion):
    """The answer in a completion as text to vote on (maj@k), '1/2' for 0.5; None if there is none."""
    try:
        answer = None
        answer = ANSWERS[kind](completion)
        if (
            kind == 'math'
            and answer
            and (found := tree(answer))[0] == 'number'
            and not found[2]
            and found[3] != '%'
        ):
            exact = value(found[1], {}, ROUGH)
            answer = exact if isinstance(exact, Fraction) else answer
        return None if answer is None else str(answer)
    except GaveUp:
        return answer if isinstance(answer, str) else None
    except Exception:
        return None


def verify(kind, completion, truth, explain=False, **opts):
    """Reward in [0, 1]; explain=True: also the rule. Options: mode, fraction (ifeval), sandbox (code)."""
    judge = known(kind)
    try:
        reward, rule = judge(completion, truth, **opts) if isinstance(completion, str) else (0.0, 'no text')
    except Exception as error:  # GaveUp or a bug: what a model writes must not end a run
        gave_up[kind] += 1
        reward, rule = 0.0, f'gave up: {type(error).__name__} {error}'
    return (reward, rule) if explain else reward


idle = []  # worker processes between calls of verify_all


def ask(worker, item, deadline):
    """The worker's (reward, gave up) on an item, None if it died or was too slow."""
    try:
        worker.stdin.write(json.dumps(item).encode() + b'\n')
        worker.stdin.flush()
        if select.select([worker.stdout], [], [], deadline)[0]:
            return tuple(json.loads(worker.stdout.readline()))
    except (OSError, ValueError):
        pass
    return None


def verify_all(items, workers=None, deadline=120.0):
    """[(reward, gave up)] of [(kind, completion, truth)] by worker processes, but for cheap kinds.

    A worker that dies or takes longer than `deadline` seconds is replaced, its item given up and counted."""
    verdicts, todo = [(0.0, True)] * len(items), deque()
    for i, (kind, completion, truth) in enumerate(items):
        if kind in ('sums', 'gsm8k', 'mcq', 'countdown'):
            before = gave_up[kind]
            verdicts[i] = verify(kind, completion, truth), gave_up[kind] > before
        else:
            todo.append(i)

    def serve():
        worker = None
        while todo:
            try:
                i = todo.popleft()
                worker = worker or (idle.pop() if idle else None)
            except IndexError:
                break
            worker = worker or subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), '--worker'],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            verdict = ask(worker, items[i], deadline)
            if verdict is None:
                worker.kill()
                worker.wait()
                worker = None
            verdicts[i] = verdict or (0.0, True)
            gave_up[items[i][0]] += verdicts[i][1]
        if worker:
            idle.append(worker)

    threads = [
        threading.Thread(target=serve) for _ in range(min(len(todo), workers or min(16, os.cpu_count() or 1)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return verdicts


if __name__ == '__main__':
    if sys.argv[1:] == ['--worker']:
        out, sys.stdout = sys.stdout, sys.stderr  # what a function of the user's prints is no verdict
        for line in sys.stdin:
            reward, rule = verify(*json.loads(line), explain=True)
            print(json.dumps((reward, rule.startswith('gave up'))), file=out, flush=True)
    elif len(sys.argv) == 3:
        check_truth(*sys.argv[1:])
        print(*verify(sys.argv[1], sys.stdin.read(), sys.argv[2], explain=True))
    else:
        print(__doc__)
