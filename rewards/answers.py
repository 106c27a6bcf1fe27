"""Where the answer is in what a model wrote; truths given as text. Nothing here scans more than linearly."""
import ast
import functools
import json
import re

MAX_ANSWER = 2000  # characters; longer answers are compared as text

class GaveUp(Exception):
    """Neither shown right nor shown wrong."""

def need(condition, why):
    if not condition:
        raise GaveUp(why)

GIVE_UPS = (GaveUp, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError)  # text's fault

# --- finding the answer --------------------------------------------------------
# around what a model thinks before it answers; in some tokenizers they are special tokens
THINKING_MARKS = {
    '<think>': '</think>',  # DeepSeek-R1, Qwen3, Phi-4 and most others
    '[THINK]': '[/THINK]',  # Magistral
    '<seed:think>': '</seed:think>',  # Seed-OSS
    '<thinking>': '</thinking>',  # Reflection
    '◁think▷': '◁/think▷',  # Kimi
}

def after_thinking(text):
    """What follows the last think block, all of a text without one; '' where a block was never closed."""
    for opening, closing in THINKING_MARKS.items():
        # <think> counts anywhere, because the prompt may have opened it. The others count as the first
        # words of a completion; elsewhere they are only mentioned.
        if opening == '<think>' or text.lstrip().startswith(opening):
            text = text.rpartition(closing)[2]
            text = '' if opening in text else text
    return text

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

# --- truths --------------------------------------------------------------------
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
