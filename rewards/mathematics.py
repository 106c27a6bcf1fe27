r"""Problems whose answer is LaTeX (math): \frac12, (1, 2), x > 3. rewards/latex.py compares."""
import re

from rewards.answers import MAX_ANSWER, UNCLEAR, after_hashes, after_phrase, after_thinking, boxed
from rewards.answers import first_answer, need, tagged, unwrapped
from rewards.latex import normal, same, tree

MAX_LINE = 100  # characters of a completion that is nothing but its answer

# --- headings -------------------------------------------------------------------
# 'Step 2', '2. Add the heaps'
ENUMERATED = re.compile(
    r'(?:step|part|case|method|example|problem|question|option)\s*#?[0-9]+'
    r'|[0-9]{1,2}\s?[.):]\s+[A-Za-z]', re.IGNORECASE)
# a word that is neither a macro's name nor in quotes or braces, as \text{east} is
WORD = re.compile(r'(?<![\\a-zA-Z{"])(?!(?:sqrt|sin|cos|tan|log|ln|pi)\b)[a-zA-Z]{2,}')
# titles of one word; other single words may be an answer
TITLES = {
    'solution', 'answer', 'explanation', 'analysis', 'calculation', 'calculations', 'conclusion',
    'summary', 'verification', 'check', 'approach', 'setup', 'proof', 'final', 'given', 'reasoning',
    'note', 'notes', 'result', 'steps', 'overview', 'derivation', 'introduction'}


def is_heading(line, text_follows):
    """Whether '#### line' is a Markdown heading ('Step 1: Add', 'Solution') and not an answer."""
    line = unwrapped(line)
    if ENUMERATED.match(line):
        return True
    # what a text ends with is no heading
    if not text_follows:
        return False
    # an answer begins with its number: '4 square units'
    if re.match(r'[^a-zA-Z]*[0-9]', line):
        return False
    words = WORD.findall(line)
    if words == [line]:
        return line.lower() in TITLES
    return len(words) > 0


def after_answer_hashes(text):
    """The last line after '####' that may be an answer; None without one."""
    return after_hashes(text, is_heading, read_latex)


# --- judging --------------------------------------------------------------------
def read_latex(content):
    """The answer of a place in normal form; None if nothing is left of it."""
    return normal(unwrapped(content)) or None


def math_answer(completion):
    r"""The LaTeX that a completion gives as its answer, in normal form; None without one.

    '\frac{1}{2}' for 'So \boxed{\dfrac12}.' or 'The answer is $\frac{1}{2}$.'
    """
    text = after_thinking(completion)
    places = (boxed, after_answer_hashes, after_phrase, tagged)
    answer, is_marked = first_answer(text, places, read_latex)
    if answer == UNCLEAR:
        return None
    # a completion may be nothing but its answer
    text = text.strip()
    if not is_marked and len(text) <= MAX_LINE and '\n' not in text:
        answer = read_latex(text)
    return answer


def the_one_item(found):
    """The item of a list that says one thing in several ways: 15\frac{39}{40}, \frac{639}{40}."""
    _, _, items = found
    if not 0 < len(items) < 10:
        return found
    first = items[0]
    for item in items[1:]:
        if not same(item, first):
            return found
    return first


def math(completion, truth):
    """(reward, rule) of a problem whose truth is LaTeX."""
    answer = math_answer(completion)
    truth = normal(str(truth))
    if not answer or not truth:
        return 0.0, 'no answer'

    # the same text is right without being understood, but brackets alone say nothing
    if answer == truth and answer.strip('\\{}() '):
        is_undefined = '\\frac{0}{0}' in answer
        return float(not is_undefined), 'same text'

    # longer ones were compared as text
    need(max(len(answer), len(truth)) <= MAX_ANSWER, 'answer too long')
    said = tree(answer)
    wanted = tree(truth)
    sort, wanted_sort = said[0], wanted[0]
    if sort == 'list' and wanted_sort != 'list':
        said = the_one_item(said)
    return float(same(said, wanted)), f'{said[0]} against {wanted_sort}: {answer[:60]}'
