r"""LaTeX answers: whether what a model wrote means the same as the truth.

Four stages, in the order of this file:

    normal   '\left( 0.50,\, \dfrac{1}{2} \right)'  ->  '(0.50,\frac{1}{2})'   a text without looks
    tree     '(0.50,\frac{1}{2})'  ->  a Tree: a tuple in brackets '()' of two numbers
    value    the number ('\frac', '{', '1', '}', '{', '2', '}')  ->  Fraction(1, 2)
    same     whether two trees mean the same

There is no eval and no sympy parser. The reader goes down a subset of LaTeX recursively. Values are
exact fractions where that is possible, and else numbers of mpmath with many digits. Answers with
variables are compared at points. Caps limit digits, depth, size and calls.

In doubt two answers differ.
"""
import functools
import math
import operator
import random
import re
from fractions import Fraction
from typing import NamedTuple

from mpmath.ctx_mp import MPContext  # comes with torch's sympy

from rewards.answers import GIVE_UPS, MAX_ANSWER, GaveUp, need

# --- caps ----------------------------------------------------------------
MAX_DIGITS = 1000  # of a number; answers with longer ones are compared as text
MAX_BITS = 4000  # of an exact number's numerator and denominator
MAX_DEPTH = 60  # of brackets and operators in an expression
MAX_TOKENS = 400  # of an expression
MAX_CALLS = 25  # powers in an expression
MAX_EXPONENT = 800  # of e
MAX_FACTORIAL = 400
MAX_BINOMIAL = 300
MAX_ROOT = 100
ROUGH_BITS = 1000  # of a fraction beside inexact numbers: more digits than they have
MAX_NESTING = 6  # of lists, tuples and so on
MAX_ANY_ORDER = 16  # items of a list that is compared in any order

# --- words ---------------------------------------------------------------
# A word behind a number is a unit, which may be left out: 15 cm, 5 apples. These words are none.
# numbers in words, without the plural's s: 5 hundred, 3 thirds, 2 dozens
CARDINALS = set(
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen '
    'sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety '
    'hundred thousand million billion trillion lakh crore '
    'dozen score gross pair couple trio triplet quartet quintet twin'.split())
FRACTIONS = set(
    'half halve third fourth quarter fifth sixth seventh eighth ninth tenth eleventh twelfth '
    'thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth '
    'thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth hundredth thousandth '
    'millionth billionth trillionth'.split())
NUMERALS = CARDINALS | FRACTIONS
SHORT_NUMERALS = set('mil mill mln mn bln bn tn grand'.split())

# words that change a number or doubt it, inside a sentence; verify.py looks for them, too
DOUBTFUL = set(
    "- + * / ! < > >= <= or nor not neither either isn't minus negative plus times half squared "
    'cubed dozen hundred thousand million billion trillion wrong about approximately between '
    'factorial dozens hundreds thousands millions billions trillions lakh crore '
    'halves thirds fourths fifths tenths hundredths thousandths'.split())

# words that do so behind a number: 5 factorial
OPERATIONS_IN_WORDS = set(
    'factorial subfactorial root power exponent exponential log logarithm inverse reciprocal '
    'opposite halved doubled tripled quadrupled double triple quadruple quintuple twice thrice '
    'fold mod modulo modulus remainder rem base choose permute divided multiplied added subtracted '
    'by over neg loss deficit basis ppm ppb permil repeating repeated recurring periodic'.split())
# words that compare or deny: 5 or more
COMPARISONS = set(
    'is to if than more less fewer greater smaller larger least most max maximum minimum under '
    'above below up upward down off when unless except otherwise without until through no never '
    'false incorrect roughly nearly almost around circa approx ish'.split())
MISLEADING = DOUBTFUL | NUMERALS | SHORT_NUMERALS | OPERATIONS_IN_WORDS | COMPARISONS
# plurals of them that are things to be counted: 2 roots of an equation
COUNTED = set(
    'roots bases powers logs exponents logarithms inverses reciprocals remainders folds '
    'triples quadruples quintuples'.split())

# short words that are answers or names of quantities, and so no products of variables
WORDS = NUMERALS | set(
    'no yes none true false odd even both all east west north south left right up down prime not '
    'red blue green white black pink brown mon tue wed thu fri sat sun may june july april march '
    'area sum total cost mean mode range speed time width angle slope ratio price max min value '
    'rate age day hour cone cube kite acute cat dog man boy girl nan inf mod'.split())

# --- units ---------------------------------------------------------------
# each line: the unit as it is compared, then its other names, without the plural's s
UNIT_NAMES = """
° degree
mm millimeter millimetre
cm centimeter centimetre
m meter metre
km kilometer kilometre
inch inche in
mi mile
ft foot feet
yard yd
g gram
kg kilogram
lb pound
l liter litre
ounce oz
gallon
min minute
s second sec
h hour hr
day
week
month
year
cent
sq square
unit
＄ dollar usd
€ euro eur
£ gbp
¥ yen jpy
₹ rupee inr
"""
CURRENCIES = '＄€£¥₹₩₽₺₪₫฿'  # a plain $ is a sign of mathematics


def unit_table():
    """{name of a unit: the unit}."""
    table = {}
    for line in UNIT_NAMES.strip().split('\n'):
        unit, *others = line.split()
        table[unit] = unit
        for other in others:
            table[other] = unit
    return table


UNITS = unit_table()
PERCENT = {'%', 'percent', 'percentage', 'pct'}
POWERS_OF_UNITS = {'sq': '2', 'cubic': '3'}
MAX_UNIT_WORDS = 5

# the units that may follow a number as they are: 15cm; those of one letter may be variables
BARE_UNITS = '|'.join(unit for unit in [*UNITS, *PERCENT] if unit.isascii() and len(unit) > 1)

# what may follow a number; "..." stands for \text{...} in a normal text
UNIT = re.compile(
    # behind a number, also behind 12\pi; but x "degrees" is no x
    rf'(?:(?<=[0-9}}).{CURRENCIES}])|(?<=\\pi)(?= ?")) ?('
    # 15 "cm"^2, 90 "degrees"
    r'"[^"0-9]*"(?:\^[23])?'
    # 50%
    r'|%'
    # 15cm, 15 square feet
    rf'|(?:(?:square|cubic|sq) )?(?:{BARE_UNITS})s?(?:\^[23])?'
    # 15 apples, 24 meters per second
    r'|(?<= )[A-Za-z]{2,}(?:[ /][A-Za-z]{2,}){0,3}'
    r')$')

# --- normal: signs and looks ---------------------------------------------
SIGNS = str.maketrans({
    '−': '- ',
    '–': '- ',
    '∞': r'\infty ',
    'π': r'\pi ',
    '×': r'\times ',
    '÷': '/ ',
    '·': r'\cdot ',
    '≤': r'\le ',
    '≥': r'\ge ',
    '∪': r'\cup ',
    '∅': r'\emptyset ',
    '√': r'\sqrt ',
    '±': r'\pm ',
})

# functions and constants that some write without their backslash
UNESCAPED = 'sqrt|sin|cos|tan|cot|sec|csc|ln|log|exp|pi|infty|theta|alpha|beta|gamma|cup|pm|frac'
STYLES = (
    r'(?:text|math)(?:rm|bf|it|sf|sc|sl|tt|up|normal)?'
    r'|mbox|emph|operatorname|boldsymbol|bm|num')
# a space between groups of digits; it does not separate two numbers
THIN = r'(?: ?(?:\\[,;:! ]|\{\\,\}|~|\\thinspace|[\u2009\u202f\u00a0]) ?)'
# currencies as LaTeX and as banks call them
CURRENCY_NAMES = {
    'usd': '＄',
    'euro': '€',
    'eur': '€',
    'pounds': '£',
    'sterling': '£',
    'gbp': '£',
    'yen': '¥',
    'jpy': '¥',
    'rupee': '₹',
    'inr': '₹',
    'rs': '₹',
}


def ungrouped(found):
    r"""24\,000 and 1,234 without what groups their digits."""
    return re.sub('[^0-9]', '', found[0])


def quoted(found):
    r"""\text{cm} as "cm", \textbf{1,250} as 1,250, \text{5 cm} as 5 "cm"."""
    content = found[1].strip()
    # numbers, and single letters, which are variables
    if not re.search('[a-zA-Z]{2}|[a-zA-Z]/', content):
        return f' {content} '
    # a number and its unit
    amount = re.fullmatch(r'([-+]?[0-9][0-9.,]*) +([a-zA-Z][^0-9]*)', content)
    if amount:
        return f' {amount[1]} "{amount[2]}" '
    return f' "{content}" '


def currency(found):
    r"""\pounds, GBP and £ as one sign."""
    name = re.search('[a-z]+', found[0].lower().replace('\\text', ''))[0]
    return CURRENCY_NAMES[name]


def dollar(found):
    r"""\$5 as ＄5, where that is a whole side; 5+\$3 as 5+3."""
    before = found.string[:found.start()].rstrip('$- ')
    if before and not before.endswith('='):
        return ''
    return '＄'


def mixed(found):
    r"""2\frac13 is a sum; 2\frac43 nobody means."""
    whole, top, bottom = filter(None, found.groups())
    if 0 < int(top) < int(bottom):
        return f'({whole}+\\frac{{{top}}}{{{bottom}}})'
    return '?'


def repeating(found):
    r"""0.1\overline{6} as the fraction (16 - 1) / 90."""
    whole, start, cycle = found.groups()
    top = int(whole + start + cycle) - int(whole + start)
    bottom = (10 ** len(cycle) - 1) * 10 ** len(start)
    return f'(\\frac{{{top}}}{{{bottom}}})'


# replaced as they are
SAME_SIGN = {
    r'\%': '%',
    '<=': r'\le ',
    '>=': r'\ge ',
    r'\varnothing': r'\emptyset',
}

# (pattern, replacement), applied in this order
LOOKS = [
    # 24\,000 -> 24000; 24 000 with a plain space stays two numbers
    (rf'(?<![0-9.])[1-9][0-9]{{0,2}}(?:{THIN}[0-9]{{3}})+(?!{THIN}?[0-9])', ungrouped),
    # blanks and line ends -> one blank, so that no pattern below meets a long run
    (r'\s+', ' '),
    # \left( -> (, and \[x\] -> x
    (r'(?<!\\)\\(?:(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])|[()\[\]])', ''),
    # 10,\!080 -> 10,080, and 1{,}234 -> 1,234
    (r',\\!\s*|\{,\}', ','),
    # 2\,x -> 2 x
    (r'(?<!\\)\\(?:[,;:! ]|q?quad(?![a-zA-Z]))|~', ' '),
    # {\bf 7} -> {7}
    (r'\\(?:bf|rm|it|sf|tt|bfseries|itshape)(?![a-zA-Z]) ?', ''),
    # \text{cm} -> "cm"
    (rf'\\(?:{STYLES})\s*\{{([^{{}}"]*)\}}', quoted),
    # \underline{7} -> 7, \underline{Evelyn} -> Evelyn; \underline{AB} may mean digits
    (r'\\underline ?\{(?![A-Z]+\}|[a-z]\})((?:[^{}\\]|\\\$)*)\}', r' \1 '),
    # \boldsymbol{\frac{1}{2}} -> {\frac{1}{2}}
    (r'\\(?:boldsymbol|bm|(?:math|text)(?:bf|rm|it))(?=\{)', ''),
    # {1,250} -> 1,250
    (r'^ ?\{([^{}]*)\} ?$', r'\1'),
    # 1,234 -> 1234, but not in (1,234), which may be a pair
    (r'(?<![0-9.,^_(\[{])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])', ungrouped),
    # \euro 5 -> €5, 5\,\euro -> 5 €
    (r'\\(?:text)?(?:euro|sterling|yen|pounds|rupee)(?![a-zA-Z])(?:\{\})? ?', currency),
    # EUR 5 -> €5
    (r'(?<![a-zA-Z])"?(?:EUR|USD|GBP|JPY|INR|Rs\.?)"? ?(?=[0-9])', currency),
    # \$5 -> ＄5
    (r'\\\$ ?(?=[0-9][0-9.,]* ?(?:"|\$?$))', dollar),
    # $x$ -> x, and \$5+\$3 -> 5+3
    (r'\\?\$', ''),
    # 1 or 2 -> 1,2
    (r'\s*"?\b(?:or|and)\b"?\s*', ','),
    # 90^\circ -> 90 "degrees"
    (r'\^\s*\{?\\circ\}?|°', ' "degrees"'),
    # \dfrac -> \frac
    (r'\\[dtc](frac|binom)(?![a-zA-Z])', r'\\\1'),
    # \lvert x \rvert -> | x |
    (r'\\(?:lvert|rvert|vert)(?![a-zA-Z])', '|'),
    # \leq, \leqslant -> \le
    (r'\\([lg]e)(?:q|qslant)(?![a-zA-Z])', r'\\\1 '),
    # \lt -> <
    (r'\\lt(?![a-zA-Z])', '<'),
    (r'\\gt(?![a-zA-Z])', '>'),
    # \angle{ABC} -> \angle ABC
    (r'(\\(?:angle|triangle)) ?\{ ?([a-zA-Z]+) ?\}', r'\1 \2'),
    # sqrt(2) -> \sqrt(2)
    (rf'(?<![\\a-zA-Z"])({UNESCAPED})(?![a-zA-Z])', r'\\\1'),
    # 1 1/2 -> 1\frac{1}{2}; it is not 11/2
    (r'(?<![0-9.])([0-9]+) +([0-9]+)/([0-9]+)(?![0-9.])', r'\1\\frac{\2}{\3}'),
    # blanks that the rules above made
    (r'\s+', ' '),
    # x + 1 -> x+1; blanks stay between letters or digits, and before a unit
    (r'(?<![0-9A-Za-z]) | (?![0-9A-Za-z"])', ''),
    # 2\frac13 -> (2+\frac{1}{3})
    (r'(?<![0-9.^_])([0-9]+) ?\\frac ?(?:\{([0-9]+)\}|([0-9])) ?(?:\{([0-9]+)\}|([0-9]))', mixed),
    # 0.\overline{3} -> (\frac{3}{9})
    (r'([0-9]+)\.([0-9]*)\\overline\{([0-9]+)\}', repeating),
    # x^{2} -> x^2, but not x^{2}3
    (r'([\^_])\{([0-9a-zA-Z])\}(?![0-9])', r'\1\2'),
    # {x} -> x
    (r'^\{([^{}]*)\}$', r'\1'),
]
RULES = [(re.compile(pattern), replacement) for pattern, replacement in LOOKS]
PLAIN = re.compile('-?[0-9]{1,%d}' % MAX_DIGITS)


@functools.lru_cache(4096)
def normal(text):
    r"""A LaTeX answer without its looks: spacing, \left, $, \dfrac, braces; \text is "..."."""
    text = text.strip()
    # most answers are such numbers, which no rule changes
    if PLAIN.fullmatch(text):
        return text
    if len(text) <= MAX_ANSWER:
        text = text.translate(SIGNS)
        for sign, plain in SAME_SIGN.items():
            text = text.replace(sign, plain)
        for pattern, replacement in RULES:
            text = pattern.sub(replacement, text)
    return text.strip(' *').removesuffix('.').strip()


# --- tree: which sort of answer ------------------------------------------
class Tree(NamedTuple):
    r"""What an answer is made of.

    sort        mark                        parts
    number      units that it states        tokens:  15 "cm"  ->  {'cm'}, ('15',)
    text        as it is spelled            the same without case, where case does not matter
    list        ''                          trees in any order:  1,2  and  \{1,2\}
    union       ''                          trees in any order:  (0,1)\cup(2,3)
    tuple       its brackets                trees in order; also an interval:  (1,2)  [0,1)
    matrix      whether it is determinant   rows:  \begin{pmatrix}...
    row         ''                          trees in order
    named       the name                    one tree:  x>2  ->  'x', the interval (2,\infty)
    relation    its signs                   trees of its sides:  x+y<2
    equation    the texts of its sides      trees of its sides:  y=2x
    ratio       ''                          trees of its sides:  10:30
    infinity    with its sign               none
    base        digits and base             none:  204_5
    name        as it is spelled            none: the left side of f'(2)=5
    """
    sort: str
    mark: object
    parts: tuple


NO_UNITS = frozenset()
RELATION = r'\\[lg]e(?![a-zA-Z])|<|>'
FLIPPED = {'>': '<', '\\ge': '\\le'}
TOKEN = re.compile(
    # 12, 1.5, .5
    r'[0-9]+\.?[0-9]*|\.[0-9]+'
    # \frac
    r'|\\[a-zA-Z]+'
    # x, x_1, x_{10}
    r'|[a-zA-Z](?:_(?:\{[a-zA-Z0-9]*\}|[a-zA-Z0-9]))?'
    r'|[-+*/^!()\[\]{}|_]')


def split(text, separator):
    """The parts of a text between separators outside all brackets and quotes."""
    parts = []
    depth = 0
    start = 0
    for match in re.finditer(rf'\\?[(){{}}\[\]]|"[^"]*"|{separator}', text):
        sign = match[0][-1]
        if sign in '([{':
            depth += 1
        elif sign in ')]}':
            depth -= 1
            need(depth >= 0, 'brackets')
        elif sign != '"' and depth == 0:
            parts.append(text[start:match.start()].strip())
            start = match.end()
    parts.append(text[start:].strip())
    return parts


def paired(text):
    """Whether the brackets at both ends belong together: of (1,2), but not of (1)(2)."""
    depth = 0
    for place, sign in enumerate(text):
        if sign in '([{':
            depth += 1
        elif sign in ')]}':
            depth -= 1
        if depth == 0 and 0 < place < len(text) - 1:
            return False
    return True


def trees(texts, depth):
    return tuple(tree(text.strip(), depth + 1) for text in texts)


def read_digits(text, depth):
    """12: what most answers are."""
    # isdigit() alone would take Arabic digits, too
    if not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS:
        return None
    return Tree('number', NO_UNITS, (text,))


def both_signs(texts):
    r"""3\pm 1 as 3+1 and 3-1."""
    result = []
    for text in texts:
        result.append(text.replace('\\pm', '+').replace('\\mp', '-'))
        if '\\pm' in text:
            result.append(text.replace('\\pm', '-').replace('\\mp', '+'))
    return result


def read_list(text, depth):
    r"""1,2 and 3\pm 1 and x=2,x=5."""
    items = split(text, ',')  # also sees that brackets are closed
    if '\\pm' in text and not text.startswith(('(', '[', '\\{', '\\begin')):
        items = both_signs(items)
    if len(items) == 1:
        return None
    # x=2,x=5 and x=2,5 are the list 2,5; in x=1,y=2 the names matter
    name = re.match('(?:[a-zA-Z]=)?', items[0])[0]
    if name and all('=' not in item or item.startswith(name) for item in items):
        items = [item.removeprefix(name) for item in items]
    return Tree('list', '', trees(items, depth))


def read_empty(text, depth):
    r"""\emptyset: a list without items."""
    if text not in ('\\emptyset', '\\{\\}'):
        return None
    return Tree('list', '', ())


def read_infinity(text, depth):
    r"""+\infty and -\infty."""
    if text.lstrip('+-') != '\\infty':
        return None
    return Tree('infinity', text.replace('+', ''), ())


def read_membership(text, depth):
    r"""x\in[1,2]."""
    found = re.fullmatch(r'([a-zA-Z])\\in ?(.+)', text)
    if not found:
        return None
    return Tree('named', found[1], trees([found[2]], depth))


def read_union(text, depth):
    r"""(0,1)\cup(2,3)."""
    # most texts have none, and need not be split
    if '\\cup' not in text:
        return None
    sets = split(text, r'\\cup(?![a-zA-Z])')
    if len(sets) == 1:
        return None
    return Tree('union', '', trees(sets, depth))


def read_set(text, depth):
    r"""\{1,2\}: a list."""
    if not (text.startswith('\\{') and text.endswith('\\}') and paired(text)):
        return None
    content = tree(text[2:-2], depth + 1)
    if content.sort == 'list':
        return content
    return Tree('list', '', (content,))


def read_tuple(text, depth):
    """(1,2), and the interval [0,1)."""
    if text[0] not in '([' or text[-1] not in ')]' or not paired(text):
        return None
    # a matrix in brackets
    if '\\begin' in text:
        return tree(text[1:-1], depth + 1)
    items = split(text[1:-1], ',')
    # (1+x) is an expression
    if len(items) == 1:
        return None
    return Tree('tuple', text[0] + text[-1], trees(items, depth))


MATRIX = re.compile(
    r'\\begin\{([pbv]?)(?:matrix|array)\}(.*)\\end\{[pbv]?(?:matrix|array)\}')


def read_matrix(text, depth):
    r"""\begin{pmatrix}1&2\\3&4\end{pmatrix}."""
    found = MATRIX.fullmatch(text)
    if not found:
        return None
    rows = []
    for row in found[2].split('\\\\'):
        # the last row may end in \\, too
        if row.strip():
            rows.append(Tree('row', '', trees(row.split('&'), depth)))
    return Tree('matrix', found[1] == 'v', tuple(rows))


def is_letter(text):
    return len(text) == 1 and text.isascii() and text.isalpha()


def read_relation(text, depth):
    r"""x<2, 2>x and 1<x\le 2."""
    sides = split(text, RELATION)
    if len(sides) == 1:
        return None
    signs = re.findall(RELATION, text)
    # 2>x as x<2
    if signs[0] in FLIPPED:
        sides = sides[::-1]
        signs = [FLIPPED.get(sign) for sign in reversed(signs)]
    need({'<', '\\le'}.issuperset(signs) and len(sides) == len(signs) + 1, 'relation')
    # x<2 as -\infty<x<2
    if len(sides) == 2 and is_letter(sides[0]):
        sides = ['-\\infty', *sides]
        signs = ['<', *signs]
    elif len(sides) == 2 and is_letter(sides[1]):
        sides = [*sides, '\\infty']
        signs = [*signs, '<']
    # 1<x\le 2 as the interval (1,2] of x
    if len(sides) == 3 and is_letter(sides[1]):
        opening = '(' if signs[0] == '<' else '['
        closing = ')' if signs[1] == '<' else ']'
        interval = Tree('tuple', opening + closing, trees([sides[0], sides[2]], depth))
        return Tree('named', sides[1], (interval,))
    return Tree('relation', tuple(signs), trees(sides, depth))


def read_equation(text, depth):
    """y=2x, f(2)=5, 9*2=18."""
    if '=' not in text:
        return None
    sides = split(text, '=')
    if len(sides) == 1:
        return None
    parts = []
    for side in sides[:-1]:
        # f'(2) is no expression, but a name
        try:
            parts.append(tree(side, depth + 1))
        except GaveUp:
            need(NAME.fullmatch(side), 'equation')
            parts.append(Tree('name', side, ()))
    parts.append(tree(sides[-1], depth + 1))
    return Tree('equation', tuple(sides), tuple(parts))


def read_ratio(text, depth):
    """10:30."""
    if ':' not in text:
        return None
    sides = split(text, ':')
    if len(sides) == 1:
        return None
    return Tree('ratio', '', trees(sides, depth))


BASE = re.compile(r'\(?([0-9][0-9a-fA-F]*|[0-9A-F]{2,})\)?_\{?([0-9]{1,2})\}?')


def read_base(text, depth):
    """204_5 and 2A_{16}."""
    found = BASE.fullmatch(text)
    if not found:
        return None
    digits = found[1].upper().lstrip('0')
    return Tree('base', (digits, found[2]), ())


# --- tree: numbers and texts ---------------------------------------------
GREEK = {'\\' + name for name in (
    'alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau '
    'phi varphi chi psi omega').split()}
# all functions and macros that stage three can compute; what has others is a text
FUNCTIONS = set('sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp'.split())
MACROS = {'\\' + name for name in (
    'pi frac binom sqrt lfloor rfloor lceil rceil cdot times div').split()}
READABLE = GREEK | MACROS | {'\\' + name for name in FUNCTIONS}
MACRO = re.compile(r'\\[a-zA-Z]+')
SUBSCRIPT = re.compile(r'_\{[a-zA-Z0-9]*\}')


def neighbours(letters):
    """Whether they follow each other in the alphabet, as variables do: abc, zyx."""
    return ''.join(sorted(letters)) in 'abcdefghijklmnopqrstuvwxyz'


def is_word(letters, alone):
    """Whether letters in a row are a word; else they are variables, to be multiplied."""
    lower = letters.lower()
    if alone and lower in WORDS:
        return True
    if len(letters) < 3:
        return False
    # ABC may be an order, Amy a name
    if alone and not letters.islower():
        return True
    if neighbours(lower):
        return False
    # dot is a word, as it has a vowel
    if alone and re.search('[eiou]', letters):
        return True
    return len(letters) > 5


def is_text(amount):
    r"""Whether no number can be read: \triangle ABC, "Evelyn", no solution; but 2xyz can."""
    if '"' in amount:
        return True
    if not READABLE.issuperset(MACRO.findall(amount)):
        return True
    rest = SUBSCRIPT.sub('', MACRO.sub('', amount))
    alone = re.fullmatch('[a-zA-Z ]+', amount) is not None
    return any(is_word(letters, alone) for letters in re.findall('[a-zA-Z]{2,}', rest))


def ignores_case(text):
    """Whether a text is words whose case does not matter: "Odd", Monday; but not ABC or 2 "x"."""
    if re.fullmatch(r'[{\s]*"[^"\\]*"[}\s]*', text):
        return True
    words = re.findall("[a-zA-Z.'-]+", text)
    if ' '.join(words) != text:
        return False
    if len(words) > 1 or text.lower() in WORDS or len(text) > 5:
        return True
    return text.istitle() and not neighbours(text.lower())


def made_text(text):
    """A text is kept as it is spelled, but for quotes and blanks."""
    spelled = re.sub(r'[\s"]+', '', text)
    if not ignores_case(text):
        return Tree('text', spelled, (spelled,))
    spelled = re.sub('[{}]+', '', spelled)
    return Tree('text', spelled, (spelled.lower(),))


def unit_words(phrase):
    """The words of a unit in lower case: "meters per second" as meters, /, second."""
    phrase = re.sub(r'["^]', ' ', phrase.lower())
    # per cent is one word
    phrase = re.sub(r'\bper[ -]cent', 'percent', phrase)
    phrase = re.sub(r'\bper\b', '/', phrase)
    # an ordered pair is one thing, a pair of shoes two
    phrase = re.sub(r'ordered (?:pair|triple)', 'tuple', phrase)
    words = phrase.replace('/', ' / ').split()
    return [word.strip('.,()') for word in words]


def singular(word):
    if len(word) > 2:
        return word.removesuffix('s')
    return word


def is_misleading(word):
    """Whether a word behind a number changes it or doubts it: factorial, dozens, tenfold, isn't."""
    if word == '/' or word in COUNTED:
        return False
    for part in (word, *word.split('-')):
        if part in MISLEADING or singular(part) in MISLEADING:
            return True
    if word.endswith(('fold', "n't")):
        return True
    # percents, %points
    return word.startswith(('percent', '%')) and word not in PERCENT


def units_of(phrase):
    """What units a phrase behind a number states, as a set; None if it is no unit."""
    words = unit_words(phrase)
    if len(words) > MAX_UNIT_WORDS or any(map(is_misleading, words)):
        return None
    # 5 square
    if words and words[-1] in ('square', 'sq', 'cubic'):
        return None
    # 35 percent of the class
    if words and words[0] in PERCENT:
        return frozenset('%')
    # "inches", "in" and "inch" are the same unit
    words = [singular(word) for word in words]
    words = [UNITS.get(word, word) for word in words]
    # "square inches" and "inches^2" are, too
    if len(words) > 1 and words[0] in POWERS_OF_UNITS:
        words = [words[1], POWERS_OF_UNITS[words[0]], *words[2:]]
    # 5 dollars per hour states what \$5 states, and more
    stated = []
    if words and words[0] in CURRENCIES:
        stated.append(words.pop(0))
    if words:
        stated.append(''.join(words))
    return frozenset(stated)


# units without a vowel, which would look like products of variables
SHORT_UNITS = set(
    'am pm th st nd rd mg ml cl dl hz kb mb gb tb kw mw hp pt qt yr yrs mph kph kmh rpm kwh khz '
    'mhz ghz psi pts pct'.split())


def is_product_of_variables(phrase):
    """Whether letters behind '2 ' are variables rather than a noun: xy, abc; but not cm, men."""
    if not phrase.isalpha() or len(phrase) > 3:
        return False
    lower = phrase.lower()
    if singular(lower) in UNITS or lower in SHORT_UNITS:
        return False
    if len(phrase) == 2 or neighbours(lower):
        return True
    # men, pie; but not xyz, abx
    return not re.search('[aeiou]', lower[1:])


def without_unit(text):
    """15 "cm" as 15 and {'cm'}. The units are None if what follows the number changes it."""
    found = UNIT.search(text)
    if not found or is_product_of_variables(found[1]):
        return text, NO_UNITS
    return text[:found.start()], units_of(found[1])


PRICE = re.compile(rf'(-?)([{CURRENCIES}]) ?([^{CURRENCIES}]+)')
PRICE_BEFORE_SIGN = re.compile(rf'([^{CURRENCIES}]+?) ?([{CURRENCIES}])')


def without_currency(text):
    """-€5 and -5 € as -5 and {'€'}."""
    found = PRICE.fullmatch(text)
    if found:
        return found[1] + found[3], frozenset(found[2])
    found = PRICE_BEFORE_SIGN.fullmatch(text)
    if found:
        return found[1], frozenset(found[2])
    return text, NO_UNITS


def read_amount(text, depth):
    r"""A number, with or without a unit, or else a text: 15 "cm", €5, 2xyz, \frac12, "Evelyn"."""
    amount, units = without_unit(text)
    # 5 "factorial"
    if units is None:
        return made_text(text)
    amount, currencies = without_currency(amount)
    # €5 "dollars"
    if currencies and not units.isdisjoint(CURRENCIES):
        return made_text(text)
    if is_text(amount):
        return made_text(text)
    tokens = tuple(TOKEN.findall(amount))
    # nothing may be lost between the tokens
    need(''.join(tokens) == amount.replace(' ', ''), f'cannot read {amount[:20]!r}')
    need(len(tokens) <= MAX_TOKENS and max(map(len, tokens)) <= MAX_DIGITS, 'too long')
    return Tree('number', units | currencies, tokens)


READERS = (
    read_digits, read_list, read_empty, read_infinity, read_membership, read_union, read_set,
    read_tuple, read_matrix, read_relation, read_equation, read_ratio, read_base, read_amount)


@functools.lru_cache(4096)
def tree(text, depth=0):
    """Tree of a normal text: what the first reader makes of it. Raises GaveUp."""
    need(depth <= MAX_NESTING and text, 'empty or too deep')
    for read in READERS:
        found = read(text, depth)
        if found is not None:
            return found


# --- value: a number from its tokens -------------------------------------
CLOSE = {'(': ')', '[': ']', '{': '}', '|': '|', '\\lfloor': '\\rfloor', '\\lceil': '\\rceil'}
# how closely operators bind
END, TERM, FACTOR, POWER, ONE = range(-1, 4)
BINDS = {
    # what ends an expression
    '': END,
    '_': END,
    ')': END,
    ']': END,
    '}': END,
    '\\rfloor': END,
    '\\rceil': END,
    # operators
    '+': TERM,
    '-': TERM,
    '*': FACTOR,
    '\\cdot': FACTOR,
    '\\times': FACTOR,
    '/': FACTOR,
    '\\div': FACTOR,
    '^': POWER,
    '!': POWER,
}
OPERATIONS = {
    '+': operator.add,
    '-': operator.sub,
    '*': operator.mul,
    '\\cdot': operator.mul,
    '\\times': operator.mul,
    '/': operator.truediv,
    '\\div': operator.truediv,
}
# two precisions: numbers are compared to 45 digits, then to 365, since e^{-200} is not 0
ROUGH = MPContext()
ROUGH.dps = 80
FINE = MPContext()
FINE.dps = 400
LOST_DIGITS = 35  # that differences of nearly equal numbers may cost: 1-\tanh^2 x


# the token after a part of a function's argument, if that goes on: \sin 2x
ARGUMENT_GOES_ON = re.compile(r'[0-9a-zA-Z]|\\(?:pi|frac|theta|sqrt)$')


class NotReal(ValueError):
    """A root, power or function has no real value here."""


def bits(x):
    return x.numerator.bit_length() + x.denominator.bit_length()


def small(x, limit=MAX_EXPONENT):
    need(abs(x) <= limit, 'number too large')
    return x


def rational(x):
    return isinstance(x, Fraction)


def integer(x):
    return isinstance(x, Fraction) and x.denominator == 1


def rough(x, mp):
    """x as a number of mp. Raises GaveUp for more digits than FINE could tell apart."""
    if not isinstance(x, Fraction):
        return x
    need(bits(x) <= ROUGH_BITS, 'number too long')
    return mp.mpf(x.numerator) / x.denominator


class Reader:
    """Reads tokens to their value: a Fraction where it is rational, else a number of mp.

    `env` holds the variables' values. With `is_real`, a root or function that is not real raises
    NotReal. Raises GaveUp, or ZeroDivisionError or ValueError where the value is undefined.

    How tightly an operand is bound decides what belongs to it. In 1+2x^3 the sum takes 2x^3, the
    product takes x^3, and the power takes 3: expression(TERM), expression(FACTOR) and so on.
    """

    def __init__(self, tokens, env, mp, is_real):
        self.tokens = [*tokens, '']
        self.env = env
        self.mp = mp
        self.is_real = is_real
        self.at = 0  # the next token
        self.depth = 0
        self.calls = 0
        self.closing = ['']  # what ends the innermost open brackets

    def take(self):
        """The next token, which is then read."""
        token = self.tokens[self.at]
        if not token:
            raise GaveUp('more expected')
        self.at += 1
        return token

    def expression(self, least=TERM):
        """What operators that bind at least so closely hold together."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise GaveUp('too deep')
        result = self.signed(least)
        while True:
            token = self.tokens[self.at]
            # an operand that follows without an operator is a factor: 2x
            is_factor = token not in BINDS and token != self.closing[-1]
            binds = FACTOR if is_factor else BINDS.get(token, END)
            # what binds less closely belongs to an expression around this one
            if binds < least:
                self.depth -= 1
                return result
            if is_factor:
                self.need_no_second_number(token)
                result = self.apply(operator.mul, result, self.expression(POWER))
            else:
                self.at += 1
                result = self.operate(token, result, binds)

    def signed(self, least):
        """The first operand, with its sign: -x^2 is -(x^2)."""
        sign = self.tokens[self.at]
        if sign == '-':
            self.at += 1
            return -self.expression(max(least, FACTOR))
        if sign == '+':
            self.at += 1
            return self.expression(max(least, FACTOR))
        return self.primary()

    def need_no_second_number(self, token):
        """1 200 is no product."""
        before = self.tokens[self.at - 1]
        if token[0] in '.0123456789' and before[0] in '.0123456789':
            raise GaveUp('two numbers')

    def operate(self, token, x, binds):
        """x and what follows the operator that was taken."""
        if token == '!':
            return self.factorial(x)
        if token == '^':
            return self.power(x, self.expression(ONE))
        return self.apply(OPERATIONS[token], x, self.expression(binds + 1))

    def apply(self, operation, x, y):
        """The result of an operator: exact, if both operands are."""
        if not rational(x) or not rational(y):
            return operation(rough(x, self.mp), rough(y, self.mp))
        result = operation(x, y)
        need(bits(result) <= MAX_BITS, 'number too long')
        return result

    def factorial(self, x):
        # 5!! is no factorial of a factorial, but 5*3*1
        need(self.tokens[self.at] != '!', 'double factorial')
        need(integer(x), 'factorial')
        small(x, MAX_FACTORIAL)
        return Fraction(math.factorial(int(x)))  # ValueError if it is negative

    def power(self, a, b):
        """a ** b within the caps."""
        self.calls += 1
        need(self.calls <= MAX_CALLS, 'too long')
        if a == 0:
            return self.power_of_zero(b)
        # a^b = e^(b ln a)
        if not integer(b):
            logarithm = self.real(self.mp.log(rough(a, self.mp)))
            return self.mp.exp(small(rough(b, self.mp) * logarithm))
        # (-1)^b at any size of b
        if a in (-1, 1):
            return a ** int(b % 2)
        # first see that the result stays small
        if rational(a):
            need(abs(b) * max(bits(a) - 2, 1) <= MAX_BITS, 'power too large')
        else:
            small(rough(b, self.mp) * self.mp.log(abs(a)))
        return a ** int(b)

    def power_of_zero(self, b):
        if rational(b) and b > 0:
            return Fraction(0)
        raise ZeroDivisionError('0 to the power of 0, or of less')

    def real(self, y):
        """y, which must be real where only reals count."""
        if self.is_real and isinstance(y, self.mp.mpc):
            raise NotReal('not real')
        return y

    def primary(self):
        """One operand: a number, a variable, a constant, brackets, a macro and its arguments."""
        token = self.take()
        if token[0] in '.0123456789':
            # int() first: Fraction takes long to read a text
            return Fraction(int(token) if token.isdigit() else token)
        if token in self.env:
            return self.env[token]
        if token in CLOSE:
            return self.group(token)
        # macros that take arguments
        if token == '\\frac':
            return self.apply(operator.truediv, self.argument(), self.argument())
        if token == '\\sqrt':
            return self.root()
        if token == '\\binom':
            return self.binomial(self.argument(), self.argument())
        # constants
        if token == '\\pi':
            return +self.mp.pi
        if token == 'e':
            return +self.mp.e
        if token == 'i':
            return self.mp.mpc(0, 1)
        if token[1:] not in FUNCTIONS:
            raise GaveUp(f'cannot read {token}')
        return self.function(token[1:])

    def argument(self):
        r"""What a macro takes: {12}, or of \frac12 one digit."""
        token = self.tokens[self.at]
        if token[:1].isdigit() and len(token) > 1:
            self.tokens[self.at] = token[1:]
            return Fraction(token[0])
        return self.primary()

    def group(self, opening):
        """What stands in brackets, of which the first was taken."""
        self.closing.append(CLOSE[opening])
        result = self.expression()
        need(self.take() == self.closing.pop(), 'brackets')
        if opening == '|':
            return abs(result)
        if opening == '\\lfloor':
            return self.floor(result)
        if opening == '\\lceil':
            return -self.floor(-result)
        return result

    def floor(self, x):
        """The largest integer that is not larger."""
        if rational(x):
            return Fraction(math.floor(x))
        self.real(x)
        # an inexact integer, such as \log_2 8, may lie below itself
        nearest = self.mp.nint(x)
        if close(x, nearest, self.mp):
            return nearest
        return self.mp.floor(x)

    def binomial(self, n, k):
        """n (n-1) ... (n-k+1) / k!, for any rational n."""
        need(rational(n) and integer(k) and 0 <= k < MAX_BINOMIAL, 'binomial')
        result = Fraction(1)
        for j in range(int(k)):
            result = self.apply(operator.mul, result, (n - j) / (j + 1))
        return result

    def root(self):
        r"""\sqrt{x} and \sqrt[n]{x}."""
        n = Fraction(2)
        # \sqrt[3]
        if self.tokens[self.at] == '[':
            n = self.group(self.take())
        x = self.argument()
        need(integer(n) and 2 <= n < MAX_ROOT, 'root')
        # odd roots of negative numbers are real
        is_complex = isinstance(x, self.mp.mpc)
        if n % 2 == 1 and not is_complex and x < 0:
            return -self.power(-x, 1 / n)
        return self.power(x, 1 / n)

    def function(self, name):
        r"""\sin x, \sin^2 x, \log_2 x: the name was taken."""
        mp = self.mp
        # its base and its power, in any order
        given = {'_': Fraction(10), '^': Fraction(1)}
        while self.tokens[self.at] in given:
            sign = self.take()
            given[sign] = self.argument()
        # \sin^{-1} is no power
        need(given['^'] != -1, 'inverse')
        x = rough(self.function_argument(), mp)
        # mpmath would return minus infinity
        if name in ('ln', 'log') and x == 0:
            raise ZeroDivisionError('logarithm of 0')
        if name == 'ln':
            y = mp.log(x)
        elif name == 'log':
            y = mp.log(x) / mp.log(rough(given['_'], mp))
        else:
            y = getattr(mp, name.replace('arc', 'a'))(small(x))
        self.real(y)
        if given['^'] == 1:
            return y
        return self.power(y, given['^'])

    def function_argument(self):
        r"""2x of \sin 2x; of \sin(2)x it is 2."""
        x = self.expression(POWER)
        # brackets end it
        while self.tokens[self.at - 1] not in CLOSE.values():
            if not ARGUMENT_GOES_ON.match(self.tokens[self.at]):
                break
            x = self.apply(operator.mul, x, self.expression(POWER))
        return x


def value(number, env, mp, is_real=False):
    """The value of a Tree 'number' at a point, or of any (sort, mark, tokens). Raises as Reader.

    value(('number', '', ['1', '+', 'x']), {'x': Fraction(2)}, ROUGH)  ->  Fraction(3)
    """
    tokens = number[2]
    reader = Reader(tokens, env, mp, is_real)
    result = reader.expression()
    need(reader.at == len(tokens), 'cannot read all of it')
    return result


def difference(equation, env, mp, is_real=False):
    """Left minus right side of an equation, at a point."""
    left = value(equation.parts[0], env, mp, is_real)
    right = value(equation.parts[1], env, mp, is_real)
    if rational(left) and rational(right):
        return left - right
    return rough(left, mp) - rough(right, mp)


# --- same: at points -----------------------------------------------------
# Two expressions are equal if they are so wherever both are real. Roots, logarithms and powers need
# positive numbers, |x| and x differ at negative ones, factorials and (-1)^n need integers.
# (how the variables' values are drawn, their size at most)
ROUND = (
    # rational numbers of either sign
    ('signed', 4),
    # the same with all signs changed: |x| is not x
    ('mirrored', 4),
    # natural numbers from 2 on, of which one is larger than all others together: \binom{n}{k}
    ('distinct', 10),
    ('distinct', 10),
    # \arcsin x
    ('positive', 1),
    ('distinct', 10),
    # natural numbers from 0 on
    ('natural', 6),
    ('signed', 1),
    # the same with one variable's sign changed: |xy| is not xy
    ('flipped', 1),
    # \sqrt{x-20}
    ('positive', 30),
    ('integer', 5),
)
POINTS = (*ROUND, *ROUND, *ROUND, *ROUND, *ROUND, ('natural', 0))
INTEGER_KINDS = ('distinct', 'natural', 'integer')
# 0 and 1 may hide a difference: n-kb and n-k agree at k = 0 and at b = 1. These do not count.
HIDING_KINDS = ('natural', 'integer')
ENOUGH = 3  # points that count and where both sides have a value
PLENTY = 24  # of them: no more are needed
FEW = 6  # points, even for the longest expressions
MAX_WORK = 1500  # tokens at all points together: longer expressions have fewer points
ROUNDING = {'\\lfloor', '\\lceil'}
INTEGERS = set('jklmnN')  # the variables that stand for integers where something is rounded


class Point(NamedTuple):
    hides: bool  # whether it may hide a difference
    env: dict  # variable -> Fraction


def drawn(kind, size, names, last, dice):
    """A value for each variable; `last` is the point drawn before."""
    if kind == 'mirrored':
        return {name: -last[name] for name in names}
    if kind == 'flipped':
        return {**last, names[0]: -last[names[0]]}
    if kind == 'distinct':
        numbers = dice.sample(range(2, size + len(names)), len(names))
        numbers[0] += sum(numbers[1:])
        return {name: Fraction(number) for name, number in zip(names, numbers)}
    if kind == 'natural':
        return {name: Fraction(dice.randint(0, size)) for name in names}
    if kind == 'integer':
        return {name: Fraction(dice.randint(-size, size)) for name in names}
    env = {name: Fraction(dice.randint(1, 997 * size), 997) for name in names}
    if kind == 'signed':
        return {name: number * dice.choice((-1, 1)) for name, number in env.items()}
    return env


@functools.lru_cache(512)
def points(variables, only_integers):
    """The points of a set of variables: random, the same in every run."""
    names = sorted(variables)
    dice = random.Random(' '.join(names))
    result = []
    env = {}
    for kind, size in POINTS:
        env = drawn(kind, size, names, env, dice)
        if kind in INTEGER_KINDS or not only_integers:
            result.append(Point(kind in HIDING_KINDS, env))
        # the next variable has its turn to be the large or the flipped one
        names = names[1:] + names[:1]
    return result


def close(x, y, mp):
    """Whether two values are equal, but for the last digits of inexact ones."""
    if rational(x) and rational(y):
        return x == y
    x = rough(x, mp)
    y = rough(y, mp)
    # against an exact zero, an absolute difference
    size = 1
    if x and y:
        size = max(abs(x), abs(y))
    return abs(x - y) <= mp.mpf(10) ** (LOST_DIGITS - mp.dps) * size


def tokens_of(found):
    """All tokens of the numbers in a tree."""
    if found.sort == 'number':
        return list(found.parts)
    if found.sort == 'text':
        return []
    return [token for part in found.parts for token in tokens_of(part)]


def variables_of(tokens):
    """The variables among tokens; e and i are constants."""
    letters = {token for token in tokens if token[0].isalpha()}
    return letters - {'e', 'i'} | GREEK.intersection(tokens)


def agree_as_constants(read, p, t, agree):
    """Whether two values without variables agree: exactly, or else to many digits."""
    try:
        x = read(p, {}, ROUGH)
        y = read(t, {}, ROUGH)
        if not agree(x, y, ROUGH):
            return False
        if rational(x) and rational(y):
            return True
        return agree(read(p, {}, FINE), read(t, {}, FINE), FINE)
    except (ZeroDivisionError, ValueError):
        return False  # undefined


def real_or_none(read, found, env, is_real):
    try:
        return read(found, env, ROUGH, is_real)
    except NotReal:
        return None


def agree_at(env, read, p, t, agree, is_real, same_domain):
    """Whether two values agree at a point: True, False, or None where the point says nothing.

    same_domain: where only one of them is real, they do not agree.
    """
    try:
        x = real_or_none(read, p, env, is_real)
        y = real_or_none(read, t, env, is_real)
        if x is None and y is None:
            return None
        if x is None or y is None:
            return False if same_domain else None
        return agree(x, y, ROUGH)
    except (ZeroDivisionError, ValueError, GaveUp):
        return None  # undefined, or too large


def agree_everywhere(read, p, t, agree):
    r"""Whether agree(read(p), read(t)) holds for all values of the variables. Raises GaveUp.

    Only points count at which all roots, logarithms and powers of both sides are real, unless an i
    says that complex numbers are meant. So \sqrt{ab} is \sqrt{a}\sqrt{b}, and \sqrt{x}^2 is x. But
    bars, as of |x|, tell that negative numbers matter. Then both sides must be real at the same
    points: |x| is not \sqrt{x}^2, and \ln|x| is not \ln x.
    """
    tokens = tokens_of(p) + tokens_of(t)
    variables = variables_of(tokens)
    if not variables:
        return agree_as_constants(read, p, t, agree)
    is_real = 'i' not in tokens
    has_bars = '|' in tokens
    # \lceil n/2\rceil is \lfloor(n+1)/2\rfloor for integers n only
    is_rounded = not ROUNDING.isdisjoint(tokens)
    only_integers = is_rounded and not INTEGERS.isdisjoint(variables)
    n_points = max(FEW, MAX_WORK // len(tokens))
    seen = 0
    for point in points(frozenset(variables), only_integers)[:n_points]:
        # at x = 0 both \sqrt{x^2y} and |x|\sqrt{y} are 0, if that is real; it tells nothing
        same_domain = has_bars and not point.hides
        agreed = agree_at(point.env, read, p, t, agree, is_real, same_domain)
        if agreed is False:
            return False
        if agreed and not point.hides:
            seen += 1
        if seen == PLENTY:
            break
    need(seen >= ENOUGH, 'undefined at random points')
    return True


# --- same: equations and their names -------------------------------------
# An equation may only name an answer: f(2)=5. Or it may be an answer, or one to be solved: x+y=5.
GREEK_LETTER = r'\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|sigma|omega)(?![a-zA-Z])'
LETTER = rf'(?:[a-zA-Z]|{GREEK_LETTER})'
VARIABLE = LETTER + r' ?(?:_(?:\w|\{[^{}]*\}))?'
CORNERS = r'(?:[A-Z] ?){1,6}'
ACCENT = r'\\(?:overline|overrightarrow|vec|hat|bar|tilde|widehat|angle|measuredangle|triangle)'
QUOTED = r'''"[a-zA-Z .'-]+"'''
AN_ANGLE = rf'(?:(?:\\angle ?){CORNERS}|[A-Z]|{GREEK_LETTER})'
NAME = re.compile('|'.join((
    # x, x_1, \theta, A_{"total"}
    VARIABLE,
    # (x,y), (a,b,c), \{a,b\}
    rf'\({VARIABLE}(?:,{VARIABLE})+\)',
    rf'\\\{{{VARIABLE}(?:,{VARIABLE})+\\\}}',
    # AB, the length of a line, and the number ABC
    '[A-Z]{2,4}',
    r'\\frac\{[A-Z]{2}\}\{[A-Z]{2}\}',
    # f(2), f^{-1}(3), f'(x), P(A), E[X], \Pr(A): functions, of whatever argument
    r"(?:[fgFGPE]|\\Pr|\\phi|\\mathbb\{[EP]\})(?:_\w)?"
    r"(?:'*|\^\{?-1\}?)[(\[].*[)\]]",
    # h(3), p(x): letters that may be variables, of a number or a letter
    r"[hnpqrstuvyHQRSTVNACDLW]'*\((?:-?[0-9]+|[a-zA-Z])\)",
    # d(A,B)
    r'[a-zA-Z]\([A-Z](?:,[A-Z])+\)',
    # (f\circ g)(2)
    r"\([fgh](?:\\circ ?|[-+*/])?[fgh]\)\(.*\)",
    # y', \frac{dy}{dx}
    r"[a-zA-Z]'+",
    r'\\frac\{d\^?[0-9]?[a-zA-Z]?\}\{d[a-z](?:\^[0-9])?\}',
    # |AB|, \|v\|, |\overline{AB}|; but |x|=5 is to be solved
    r'\|[A-Z]{1,2}\|',
    r'\\\|[^|=]*\\\|',
    r'\|\\(?:vec|overline|overrightarrow) ?\{?[a-zA-Z]{1,2}\}?\|',
    # [ABC], [\triangle ABC]: an area
    rf'\[(?:\\triangle ?)?{CORNERS}\]',
    # \overline{AB}, \vec v, \angle ABC, m\angle A
    rf'm?{ACCENT} ?\{{?(?:{CORNERS}|{VARIABLE})\}}?',
    # \sin A, \cos\theta, \tan\angle ABC: of an angle; \sin x=1 is to be solved
    rf'\\(?:sin|cos|tan|cot|sec|csc) ?\(?{AN_ANGLE}\)?',
    # \det A, \gcd(a,b), \max
    r'\\(?:det|gcd|deg|dim|max|min|arg) ?(?:[a-zA-Z]|\(.*\))?',
    # "Area", "Area of"\triangle ABC, "value of"x
    rf'{QUOTED}(?: ?(?:\\triangle ?)?{CORNERS}| ?{VARIABLE})?',
    # "Var"(X), "Area"_{ABC}
    rf'{QUOTED}(?:\(.*\)|\[.*\]|_\{{[^{{}}]*\}}|_\w)',
    # Area, The area of the square
    '[A-Za-z]{3,}(?: [A-Za-z]+){0,6}',
)))
NOT_IN_NAMES = DOUBTFUL | {'never', 'false', 'incorrect', 'twice', 'double', 'triple'}


def is_name(side):
    """Whether the left side of an equation only names what the right side is."""
    if not NAME.fullmatch(side):
        return False
    # "not"=5
    words = re.findall('[a-zA-Z]+', side.lower())
    if not NOT_IN_NAMES.isdisjoint(words):
        return False
    # f(2)+f(3)=5 is to be solved
    argument = re.search(r'(?<=.)[(\[].*[)\]]$', side)
    if argument and side[0] != '(' and not paired(argument[0]):
        return False
    # xyz=5 is to be solved, area=5 is not
    if side.isalpha() and len(side) > 2 and not side.isupper():
        return is_word(side, alone=True)
    return True


def names_in(side):
    """The variables that a name introduces: f of f(x), x and y of (x,y), none of words."""
    if '"' in side or ' ' in side or side.startswith('\\frac'):
        return set()
    # of (x,y), whose first part is empty, all of it
    head = side.partition('(')[0] or side
    return variables_of(TOKEN.findall(head))


def is_left_of(side, side_text, last, last_text):
    """Whether a left side only names the last side, or is a number equal to it: 9*2 of 9*2=18."""
    # (x,y)=5
    if side.sort == 'tuple' and len(side.parts) != len(last.parts):
        return False
    if is_name(side_text):
        outside_quotes = re.sub('"[^"]*"', '', last_text)
        # x=2x is to be solved
        return names_in(side_text).isdisjoint(TOKEN.findall(outside_quotes))
    if side.sort != 'number' or side.mark or variables_of(tokens_of(side)):
        return False
    return same(side, last)


def last_side(found, strict):
    """5 of x=5, 2x of f(x)=2x, 18 of 9*2=18; None of other equations.

    strict: only a value without variables, after one name. So y=2x+3 is 2x+3, but 2x+3 is not the
    truth y=2x+3.
    """
    if found.sort != 'equation':
        return found
    last = found.parts[-1]
    if strict and len(found.parts) > 2:
        return None
    if strict and last.sort not in ('number', 'tuple', 'matrix', 'list', 'union'):
        return None
    if strict and variables_of(tokens_of(last)):
        return None
    for side, side_text in zip(found.parts[:-1], found.mark):
        if not is_left_of(side, side_text, last, found.mark[-1]):
            return None
    return last


def same_equation(p, t):
    """Whether two equations say the same: left - right differ by a constant factor, not zero."""
    # f(2)=5 and f(2)=5.0
    if p.mark[:-1] == t.mark[:-1] and same(p.parts[-1], t.parts[-1]):
        return True
    # from here on both must be y=2x
    for equation in (p, t):
        need(len(equation.parts) == 2, 'equation')
        for side in equation.parts:
            need(side.sort == 'number' and side.mark == NO_UNITS, 'equation')
    variables = variables_of(tokens_of(p))
    if not variables or variables != variables_of(tokens_of(t)):
        return False
    # the quotient must be the same at all points
    factors = []

    def agree(x, y, mp):
        if not x or not y:
            return not x and not y
        if rational(x) and rational(y):
            factors.append(x / y)
        else:
            factors.append(rough(x, mp) / rough(y, mp))
        return close(factors[0], factors[-1], mp)

    return agree_everywhere(difference, p, t, agree) and bool(factors)


# --- same ----------------------------------------------------------------
def same_number(p, t):
    """A unit may be left out, % may not, and different units differ."""
    if ('%' in p.mark) != ('%' in t.mark):
        return False
    # one may state fewer units than the other, but no others
    if not (p.mark <= t.mark or p.mark >= t.mark):
        return False
    return agree_everywhere(value, p, t, close)


def same_text(p, t):
    """Whether two texts are spelled alike; one may be a number whose tokens are letters: even."""
    if p.sort == 'number' or t.sort == 'number':
        number, text = (p, t) if p.sort == 'number' else (t, p)
        letters = ''.join(number.parts)
        if number.mark or not letters.isalpha():
            return False
        if letters == text.mark:
            return True
        # ABC is not abc
        return letters == text.parts[0] and not text.mark.isupper()
    if p.sort != t.sort:
        return False
    return p.mark == t.mark or p.parts == t.parts


def same_in_any_order(p, t):
    """Whether each item of one list has its own item in the other: 1,2,2 and 2,1,2."""
    left = list(t.parts)
    for item in p.parts:
        for place, other in enumerate(left):
            if same(item, other):
                del left[place]
                break
        else:
            return False
    return True


def without_variable(found, other):
    """The interval of x>2 where the other answer is an interval, too."""
    if found.sort == 'named' and other.sort != 'named':
        return found.parts[0]
    return found


def only_item(found):
    if found.sort == 'list' and len(found.parts) == 1:
        return found.parts[0]
    return found


def same(p, t):
    """Whether two trees, prediction and truth, mean the same. Raises GaveUp."""
    # numbers must have a value, too: 0/0 is not 0/0
    if p == t and p.sort != 'number':
        return True
    p, t = without_variable(p, t), without_variable(t, p)
    if p.sort == 'equation' and t.sort == 'equation':
        return same_equation(p, t)
    # x=5 as 5
    p = last_side(p, strict=False)
    t = last_side(t, strict=True)
    if p is None or t is None:
        return False
    # \{5\} as 5
    p = only_item(p)
    t = only_item(t)
    # from here on, sort by sort
    if 'text' in (p.sort, t.sort):
        return same_text(p, t)
    if p.sort != t.sort:
        return False
    if p.sort == 'number':
        return same_number(p, t)
    if p.mark != t.mark or len(p.parts) != len(t.parts):
        return False
    if p.sort in ('list', 'union') and len(p.parts) <= MAX_ANY_ORDER:
        return same_in_any_order(p, t)
    # trees without parts would have been equal above
    return bool(p.parts) and all(map(same, p.parts, t.parts))


def exact(text):
    """The Fraction that a normal text is, whatever its unit; None if it is none."""
    try:
        found = tree(text)
        if found.sort != 'number' or variables_of(tokens_of(found)):
            return None
        x = value(found, {}, ROUGH)
    except GIVE_UPS:
        return None
    return x if rational(x) else None
