r"""Where a completion gives its answer: in \boxed{}, after '####', after 'answer is', in <answer>.

Each kind of verifier looks into these places in an order of its own (first_answer). A place that
holds no answer of that kind is passed over. A place that holds an answer is decisive, even if the
answer is wrong or hedged: nothing that stands elsewhere may rescue it.

Nothing here scans a text more than a few times, whatever a model wrote.
"""
import ast
import functools
import json
import re
from itertools import islice
from typing import NamedTuple

MAX_ANSWER = 2000  # characters; longer answers are compared as text

# what a reader returns for an answer that is there, but is not one clear answer: '17 or 18'
UNCLEAR = '?'


# --- giving up ------------------------------------------------------------------
class GaveUp(Exception):
    """An answer could be shown neither right nor wrong."""


def need(condition, why):
    """Raises GaveUp, with the reason why, where the condition does not hold."""
    if not condition:
        raise GaveUp(why)


# exceptions that are the text's fault; all others are bugs
GIVE_UPS = (
    GaveUp,
    ValueError,
    ZeroDivisionError,
    OverflowError,
    RecursionError,
    MemoryError,
)


# --- thinking -------------------------------------------------------------------
# around what a model thinks before it answers; in some tokenizers they are special tokens
THINKING_MARKS = {
    '<think>': '</think>',  # DeepSeek-R1, Qwen3, Phi-4 and most others
    '[THINK]': '[/THINK]',  # Magistral
    '<seed:think>': '</seed:think>',  # Seed-OSS
    '<thinking>': '</thinking>',  # Reflection
    '◁think▷': '◁/think▷',  # Kimi
}
QUOTES = ('`', '"', "'")


def after_thinking(text):
    """What follows the last think block; '' where a block was never closed.

    after_thinking('<think>17?</think>It is 18.') is 'It is 18.'. The opening mark may be missing,
    because the prompt may have opened the block.
    """
    for opening, closing in THINKING_MARKS.items():
        # nearly all texts have neither
        if opening not in text and closing not in text:
            continue
        # a text may mention a mark as a word, but not <think>, nor the mark that it begins with
        begins = text.lstrip().startswith(opening)
        may_be_word = opening != '<think>' and not begins
        closed_at = last_mark(text, closing, may_be_word)
        is_closed = closed_at >= 0
        if is_closed:
            text = text[closed_at + len(closing):]

        # was a block opened and not closed?
        is_used = opening == '<think>' or begins or is_closed
        if is_used and last_mark(text, opening, may_be_word) >= 0:
            return ''
    return text


def last_first(text, marks):
    """The places of these marks in a text, with the mark, the last place first."""
    places = {mark: text.rfind(mark) for mark in marks}
    while True:
        mark = max(places, key=places.get)
        start = places[mark]
        if start < 0:
            return
        yield start, mark
        places[mark] = text.rfind(mark, 0, start)


def last_mark(text, mark, may_be_word):
    """Where a mark of thinking stands last in a text and is not only mentioned; -1 for nowhere.

    '`<think>`' in quotes is a mention; with may_be_word, so is ' <think> ' between blanks.
    """
    # of more marks than that even a quoted one counts
    for n, (start, _) in enumerate(last_first(text, (mark,))):
        before = text[start - 1:start]
        after = text[start + len(mark):start + len(mark) + 1]
        is_quoted = before in QUOTES and after in QUOTES
        is_word = may_be_word and before == ' ' and after == ' '
        is_mention = is_quoted or is_word
        if n == 100 or not is_mention:
            return start
    return -1


# --- boxes ----------------------------------------------------------------------
class Box(NamedTuple):
    r"""A \boxed{content} that is text[start:end]."""
    start: int
    end: int
    content: str


OPENING = re.compile(r'\\(?:boxed|fbox)\s*\{')
BRACE = re.compile(r'\\[^a-zA-Z]|[{}]')  # an escaped brace is none
SENTENCE_END = re.compile(r'[.!?]\s|\n')

# what may stand around a placeholder: macros for looks, dots, blanks, braces
LOOKS = re.compile(
    r'\\(?:text|math)[a-z]*|\\phantom\{[^{}]*\}|\\[lc]?dots|\\q?quad|\\[,;:! ]|[\s.?_*$~{}-]+')
DIGIT = re.compile('[0-9]')
PLACEHOLDERS = {
    '', 'answer', 'answer here', 'the answer', 'the final answer', 'final answer',
    'your answer', 'your answer here', 'your final answer', 'your final answer here'}


def is_blank(content):
    """Whether an answer is yet to be filled in: '', '...', 'your answer here'."""
    if len(content) > 100:
        return False
    # the usual case: a placeholder has no digit, unless it is one that \phantom hides
    if DIGIT.search(content) and 'phantom' not in content:
        return False
    words = LOOKS.sub(' ', content).strip().lower()
    return words in PLACEHOLDERS


def box_at(text, start):
    r"""The balanced \boxed{} that starts there; None if there is none or it is too long."""
    opening = OPENING.match(text, start)
    if not opening:
        return None
    # the brace that closes the first one
    depth = 0
    for brace in BRACE.finditer(text, start, start + 2 * MAX_ANSWER):
        if brace[0] == '{':
            depth += 1
        elif brace[0] == '}':
            depth -= 1
            if depth == 0:
                return Box(start, brace.end(), text[opening.end():brace.start()])
    return None


def boxes(text):
    r"""The boxes in the last sentence that has one, the last first; of nested boxes the inner one.

    boxes(r'\boxed{1}. So \boxed{3} or \boxed{4}') holds those of 4 and 3.
    """
    found = []
    # a sentence that opens more boxes than that does not answer
    for start, _ in islice(last_first(text, ('\\boxed', '\\fbox')), 40):
        if found:
            # a sentence may end between this box and the next one
            next_start = found[-1].start
            closed_at = text.find('}', start, next_start)
            between = text[closed_at + 1:next_start] if closed_at >= 0 else ''
            if SENTENCE_END.search(between[-200:]):
                break
        box = box_at(text, start)
        if box is None:
            continue
        # the inner box of nested ones was found before
        is_outer = bool(found) and box.end > found[-1].start
        if not is_outer:
            found.append(box)
    return found


# '\boxed{4} or 5', '\boxed{A} or maybe B'
OTHER_AFTER = re.compile(
    r'[\s$)]*\(?or\s+(?:(?:maybe|perhaps|possibly)\s+)?'
    r'(?:[$\\0-9(-]|(?:option )?[A-Z](?![A-Za-z]))')
# 'not \boxed{4}', '3 or \boxed{4}'
OTHER_BEFORE = re.compile(
    r"(?:\bnot|n't|\bnever|\bneither|\bnor|(?:[0-9$})]|\b[A-Z])\s+or)[\s$(]*$")


def boxed(text):
    r"""The content of the last \boxed{...}: '4' for 'so \boxed{4}'; None without a box.

    'a,b' for two boxes in one sentence, '' where all boxes are blank, UNCLEAR ('?') where the words
    around a box offer a second answer or deny the box.
    """
    found = boxes(text)
    if not found:
        return None

    # a blank box says nothing, so look at the boxes before it
    filled = [box for box in found if not is_blank(box.content)]
    for _ in range(5):
        if filled or not found:
            break
        found = boxes(text[:found[-1].start])
        filled = [box for box in found if not is_blank(box.content)]
    if not filled:
        return ''

    # a few words on either side tell whether the answer is hedged
    first = filled[-1]
    last = filled[0]
    before = text[max(0, first.start - 40):first.start]
    after = text[last.end:last.end + 40]
    if OTHER_AFTER.match(after) or OTHER_BEFORE.search(before):
        return UNCLEAR

    # the same content twice is one answer
    contents = dict.fromkeys(box.content for box in reversed(filled))
    return ','.join(contents)


# --- the other places -----------------------------------------------------------
def hash_lines(text):
    """[(line, whether text follows it)] for the lines after '####', the last first.

    hash_lines('#### Step 1\n4 + 5\n#### 9') is [('9', False), ('Step 1', True)].
    """
    found = []
    text_follows = False
    # of more marks than that, the first ones do not count
    pieces = text.rsplit('####', 50)
    for piece in reversed(pieces[1:]):
        # the answer may be on the line after the mark
        line, _, rest = piece.strip().partition('\n')
        if rest.strip():
            text_follows = True
        found.append((line.strip('# \t')[:2 * MAX_ANSWER], text_follows))
        text_follows = True
    return found


def after_hashes(text, is_heading, read):
    """The last line after '####' that holds an answer; '' if none does, None without such a line.

    is_heading(line, text_follows) says which lines are Markdown headings for a kind of verifier, and
    read(line) is the answer of a line, or None. Headings are no such lines.
    """
    found = None
    for line, text_follows in hash_lines(text):
        if is_heading(line, text_follows):
            continue
        # in '#### 18' and '#### Done' after it, the line before counts
        if read(line) is not None:
            return line
        found = ''
    return found


def tagged(text):
    """What is in the last <answer>...</answer> that is not blank; '' if all are, None without any.

    tagged('<answer>5</answer>') is '5'.
    """
    found = None
    start = text.rfind('<answer>')
    end = text.rfind('</answer>')
    for _ in range(5):
        # an <answer> that is not closed gives none
        if not 0 <= start < end:
            break
        content = text[start + len('<answer>'):end]
        if not is_blank(content):
            return content
        # look at the tags before these
        found = ''
        end = text.rfind('</answer>', 0, start)
        start = text.rfind('<answer>', 0, start)
    return found


# words that may stand between 'answer' and 'is': 'the answer to this question is'
BETWEEN = (
    r'(?:,?[ ](?:to|for|of|in|here|then|therefore|thus|hence|the|this|that|above|question|problem'
    r'|letter)\b){0,6},?')
SAYS = r'(?:is\b|IS\b|:|=|(?:would|must|should|will|has to|can only) be\b)'
# a heading: 'Final Answer' alone on its line
LINE_ENDS = r'[*_]{0,3}[ \t]{0,9}\n'
HEADING_BEFORE = re.compile(
    r'[ \t]*(?:#{1,6}|\*\*)[#* \t]{0,9}(?:the |my )?(?:final |correct )?a', re.IGNORECASE)
# 'this answer is correct' speaks of an answer that was given before
AFFIRMS = re.compile(
    r'(?:indeed |also |therefore )?'
    r'(?:correct|right|supported|consistent|confirmed|verified|justified|reasonable|clear)'
    r'(?:[\s.,!*]*$| (?:because|by|as|since|with|and)\b)')
DOUBTS = re.compile(r"\b(?:not|doubt|unsure|whether|if|never|cannot)\b|n't", re.IGNORECASE)
# blanks, bold face and the beginning of a displayed formula or of a block of code
BEFORE_ANSWER = re.compile(r'[\s:*]*(?:\\\[|\$\$|```[a-z]{0,9}\n)?\s*')
ANSWER_ENDS = re.compile(r'[.!?](?:\s|\*|$)|\n')
# what follows the noun: 'is', or the end of the line
PHRASE = re.compile(rf'{BETWEEN}[\s*]{{0,9}}{SAYS}|(?P<line_ends>{LINE_ENDS})')


def after_phrase(text, nouns=('nswer', 'NSWER')):
    """The sentence after the last 'answer is', 'answer:' or heading 'Answer'; None without one.

    after_phrase('So the answer is 18. Good.') is '18'.
    """
    # a text that speaks of the answer more often without giving it does not answer
    for start, noun in islice(last_first(text, nouns), 200):
        found = PHRASE.match(text, start + len(noun))
        if not found:
            continue

        # 'answer' at the end of a line counts if the line is a heading
        if found['line_ends']:
            line_start = text.rfind('\n', 0, start) + 1
            if not HEADING_BEFORE.fullmatch(text[max(line_start, start - 60):start]):
                continue

        # the sentence that follows
        tail = text[found.end():found.end() + 2 * MAX_ANSWER]
        tail = tail[BEFORE_ANSWER.match(tail).end():]
        sentence = ANSWER_ENDS.split(tail, maxsplit=1)[0]
        # 'this answer is correct' gives none: look at the phrase before
        before = text[max(0, start - 40):start]
        if AFFIRMS.match(sentence) and not DOUBTS.search(before):
            continue
        return sentence
    return None


# --- what a place holds ---------------------------------------------------------
# any sign of what the patterns below look for
WRAPPING = re.compile(r'[\\*`_<]|answer', re.IGNORECASE)
TAG = re.compile(r'</?(?:answer|b|strong|i|em|u|code)>')
# **18**, _18_, but not 2**4
EMPHASIS = re.compile(r'(?<![\w)*])(\*{1,3}|_{1,2})(?=\S)([^*`_]+)(?<=\S)\1(?![\w(*])')
CODE = re.compile(r'(?<!\w)(`{1,3})([^`]+)\1(?!\w)')
LEAD = re.compile(
    r'[\s*_]*(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:(?:the|my|our)\s+)?'
    r'(?:(?:final|correct|right|best)\s+)?answer\s*(?:is\b|:|=)[\s:*]*', re.IGNORECASE)


def unwrapped(content):
    r"""An answer without what is around it: '24' for '**24**', '\boxed{24}' and 'Answer: 24'.

    Blanks replace a box and a tag, so that 1\boxed{8} does not become 18.
    """
    # most answers have no wrapping
    if not WRAPPING.search(content):
        return content.strip()
    text = TAG.sub(' ', content)
    # a wrapping may hold another one
    for _ in range(3):
        before = text
        # the last box comes first, so that the places of the others stay
        for box in boxes(text):
            text = f'{text[:box.start]} {box.content} {text[box.end:]}'
        text = CODE.sub(r'\2', text)
        text = EMPHASIS.sub(r'\2', text).strip()
        lead = LEAD.match(text)
        if lead:
            text = text[lead.end():]
        if text == before:
            break
    return text


def first_answer(text, places, read):
    """(the answer, whether a place was found at all).

    place(text) is what stands at a place, or None. read(content) is the answer that this holds;
    UNCLEAR if it is not one clear answer; None if it is no answer, so that the next place counts.
    The answer returned is likewise UNCLEAR, or None if no place holds one.
    """
    is_marked = False
    for place in places:
        content = place(text)
        if content is None:
            continue
        is_marked = True
        # the place itself is hedged: '\\boxed{4} or 5'
        if content == UNCLEAR:
            return UNCLEAR, is_marked
        if is_blank(content):
            continue
        # an answer is decisive, right or wrong
        answer = read(content[:2 * MAX_ANSWER])
        if answer is not None:
            return answer, is_marked
    return None, is_marked


# --- truths that are given as text ----------------------------------------------
def read_literal(text):
    """What a text holds as JSON or as Python prints it; None if it is neither."""
    # literal_eval runs nothing
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (SyntaxError, *GIVE_UPS):
            pass
    return None


@functools.lru_cache(1024)
def parsed(text):
    """The same for truths, which every completion needs again; the text itself if it is neither."""
    value = read_literal(text)
    return text if value is None else value


def loaded(truth, sort=object):
    """A truth given as JSON or as Python's text of it, read: {'a': 5} for '{"a": 5}'.

    Raises GaveUp if it is not of the sort, as dict.
    """
    if isinstance(truth, str):
        truth = parsed(truth)
    need(isinstance(truth, sort), f'a {sort.__name__} is needed')
    return truth
