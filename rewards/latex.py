"""LaTeX answers: normal() strips what is for looks, tree() reads, same() tells whether two mean the same.

No eval and no sympy parser: a recursive descent over a LaTeX subset, exact rationals where it can be, else
mpmath at many digits, and random points for variables. Hard caps on digits, depth, size and calls.
"""
import functools
import itertools
import math as m
import operator
import random
import re
from fractions import Fraction

from mpmath.ctx_mp import MPContext  # comes with torch's sympy

from rewards.answers import GIVE_UPS, MAX_ANSWER, GaveUp, need

MAX_DIGITS = 1000  # longer numbers are compared as text
MAX_BITS, MAX_DEPTH, MAX_TOKENS, MAX_CALLS = 4000, 60, 400, 25  # of exact numbers and of expressions

# --- reading -------------------------------------------------------------
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

# --- values --------------------------------------------------------------
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

# --- equality ------------------------------------------------------------
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

def exact(text):
    """The Fraction that a normal text is, whatever its unit; None if it is none."""
    try:
        found = tree(text)
        x = value(found, {}, ROUGH) if found[0] == 'number' and not names(found) else None
    except GIVE_UPS:
        return None
    return x if rational(x) else None
