r"""Multiple choice (mcq): which option's letter a completion names.

A letter counts only where it is used as a name. In 'A mammal lays no eggs' it is an article, in
'C, I checked it twice' a pronoun, in 'B cells' a part of a word.
"""
import functools
import re

from rewards.answers import UNCLEAR, after_phrase, after_thinking, boxed, first_answer, hash_lines
from rewards.answers import loaded, tagged, unwrapped

LETTERS = 'ABCDEFGHIJ'  # the options where a truth does not list them
MAX_READ = 400  # characters of what stands at a marked place
MAX_TAIL = 4000  # characters at the end of a text that are searched for sentences like 'I choose B'

# --- one letter -----------------------------------------------------------------
# macros and signs that are there for looks: \textbf{(B)}, $B$
LOOKS = re.compile(
    r'\\(?:text|math)(?:bf|rm|it|sf|tt|bb|cal|normal|up)?(?![a-zA-Z])'
    r'|\\(?:mbox|operatorname|bf|rm|left|right|displaystyle|q?quad)(?![a-zA-Z])'
    r'|\\[ ,;:!()\[\]]|[{}$`"“”]|\*\*')
# what may come before the letter: 'option B', 'clearly B', 'I think it is B'
BEFORE_LETTER = re.compile(
    r"(?:(?:clearly|definitely|obviously|therefore|thus|indeed|simply|most likely|probably|likely"
    r"|the|an?)\s+(?=[(A-Z]|option|choice|letter)"
    r"|(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer|OPTION|CHOICE|ANSWER)[\s:]+"
    r"|I(?: am|'m|'d| would)? (?:think|believe|say|go with|choose|pick|select|sure|confident|certain)"
    r"(?: that)?,? (?:(?:it is|it's|it must be|the answer is) )?)")
LETTER = re.compile(r"([(\[]*)\s*([A-Z])(?![A-Za-z0-9'’])(?:\s+(?=[)\].:,;]))?(.*)", re.DOTALL)
# a small letter counts in brackets only
SMALL_LETTER = re.compile(r'\([a-j]\)')
# an answer that names none or several: 'neither A nor B', 'all of the above', 'AB'
NO_ONE_OPTION = re.compile(
    r"(?i:not|neither|nor|either|both|none|all|between|maybe|perhaps|unclear|unknown|unsure)\b"
    r"|I(?: am|'m)? (?:not|unsure|don't|do not|cannot|can't)\b|[A-J]{2,4}\W*$")

# words that may follow a letter without punctuation: 'B because ...'
FOLLOWS_LETTER = {
    'because', 'since', 'as', 'which', 'where', 'so', 'therefore', 'thus', 'hence', 'by', 'from',
    'in', 'for', 'is', 'was', 'would', 'seems', 'or', 'and', 'nor', 'not', 'but', 'due', 'based',
    'according', 'rather', 'instead', 'given', 'here', 'with', 'while'}
# of these, what may also follow an article ('a given day') or the pronoun ('I was')
AFTER_ARTICLE = {'due', 'based', 'rather', 'given', 'with', 'while', 'not', 'but'}
AFTER_PRONOUN = {'because', 'since', 'is'}
# after these words an answer gives its reasons, which may name other options
REASON = re.compile(r"\b(?:because|since|(?<!well )as(?! well)|due to|given|so|which|where|I [a-z]+|I'm)\b")


def is_name(letter, rest, bracketed=False):
    """Whether a letter, followed by the rest of its sentence, is used as an option's name.

    True for 'A' before ') mammals' and ' because ...', False for 'A' before ' mammal lays no eggs'.
    """
    if bracketed or not rest.strip(' \t\r\n.*'):
        return True
    # 'A. mammals', 'A) mammals'
    if rest[0] in ')].:':
        return True
    # 'A, because', but also 'I, for one, ...'
    if rest[0] in ',;':
        return letter != 'I'
    # 'A - mammals', 'A/B', 'A (mammals)', but neither 'A-frame' nor 'A + B'
    if re.match(r'\s*[/|&(]|\s+[-–—]\s|\s*[–—]', rest):
        return True
    # 'A 15', and nothing more
    if re.fullmatch(r'\s+[-$]?[0-9][0-9.,/%]*\s*', rest):
        return True
    # 'A B'
    if re.match(r'\s+[A-J](?![A-Za-z])', rest):
        return True

    following = re.match(r'\s+([A-Za-z]+)(?![-\w])', rest)
    if not following:
        return False
    word = following[1]
    if letter == 'I' and word in ('and', 'or', 'nor'):
        return re.match(r'\s+\w+\s+\(?[A-J](?![A-Za-z])', rest) is not None
    if letter == 'I':
        return word in AFTER_PRONOUN
    if letter == 'A' and word in AFTER_ARTICLE:
        return False
    return word in FOLLOWS_LETTER


# 'B is wrong', '(B) can never be true'
DENIED = re.compile(
    r"[\s)\]]*(?:is|was|would be|can|could|does|must|will)"
    r"(?:n't|n’t|not|\s+(?:not|never|wrong|false|incorrect))\b")
# directly after a letter: ' or B', ', B', ')(B', '/B'
LISTED = re.compile(
    r"[\s,;/&|)(\].:*-]*(?:(?:or|and|nor)\b)?[\s,/&|(\[]*(?:(?:option|choice) )?"
    r"(?P<letter>[A-Z])(?![A-Za-z0-9'’-])", re.IGNORECASE)
CONJUNCTION = re.compile(r"[\s,)*]*(?:or|and|nor)\b(?! I(?: [a-z]|['’]))")
# further on in the sentence: 'or possibly B', '(B)'
FURTHER = re.compile(
    r"\b(?:or|nor|and|as well as|along with|plus|maybe|perhaps|possibly|alternatively|also|could be|might be)\b[^A-Za-z]{0,5}"
    r"(?:possibly |maybe |perhaps |also )?(?:it could be |it might be )?(?:option |choice )?\(?"
    r"(?P<letter>[A-J])(?![A-Za-z0-9'’-])"
    r"|(?<!not )(?<!than )(?<!of )\((?P<bracketed>[A-J])\)|(?<![A-Za-z(])(?P<closed>[A-J])\)")


def names_another(letter, rest):
    """Whether what follows an option's letter names another option, as ' or B' does."""
    # in 'D because A, B and C are false' the reasons are no answer
    claim = REASON.split(rest, maxsplit=1)[0]
    if CONJUNCTION.match(rest):
        return True
    listed = LISTED.match(rest)
    if listed and listed['letter'].isupper() and listed['letter'] != letter:
        if is_name(listed['letter'], rest[listed.end():]):
            return True
    for found in FURTHER.finditer(claim):
        other = found['letter'] or found['bracketed'] or found['closed']
        # 'and C is wrong'
        if DENIED.match(claim, found.end()):
            continue
        bracketed = found['letter'] is None
        if other != letter and is_name(other, claim[found.end():], bracketed):
            return True
    return False


def read_option(content):
    r"""The letter that an answer names; UNCLEAR for 'A or B' and 'not A'; None where it names none.

    'B' for 'B', '\text{(B)}', 'option B', 'B) birds' and 'B because birds fly'.
    """
    text = LOOKS.sub(' ', unwrapped(content[:MAX_READ])).strip(' \t\r\n*_,:-–—')
    text = SMALL_LETTER.sub(lambda found: found[0].upper(), text)
    if NO_ONE_OPTION.match(text):
        return UNCLEAR
    # 'I think it is option B' has two of these
    for _ in range(3):
        before = BEFORE_LETTER.match(text)
        if not before:
            break
        text = text[before.end():]
    found = LETTER.match(text)
    if not found:
        return UNCLEAR if NO_ONE_OPTION.match(text) else None
    opening, letter, rest = found.groups()
    # a formula is no option: A + B, A = 5
    bracketed = bool(opening) and rest[:1] in (')', ']')
    if not is_name(letter, rest, bracketed):
        return None
    if DENIED.match(rest):
        return UNCLEAR
    if names_another(letter, rest):
        return UNCLEAR
    return letter


# --- letters in headings --------------------------------------------------------
LONE_LETTER = re.compile(
    r'[\s(\[*_`"]*(?:(?:the |my )?(?:final |correct )?(?:option|choice|answer|letter)[\s:*–—-]+)?'
    r'[(\[*_`"]*([A-Z])[\s.)\]*_`"]*', re.IGNORECASE)


def lone_letter(line):
    """The letter of a line that holds nothing else, as '**(B)**' or 'Option B'; None without one."""
    found = LONE_LETTER.fullmatch(line[:60]) if len(line) <= 60 else None
    if found is None or not found[1].isupper():
        return None
    return found[1]


# '#### Answer: B'
ANNOUNCED = re.compile(r'answer\W{0,4}(?:is\b|:|=)', re.IGNORECASE)
# '#### A or B': a line of nothing but letters
ONLY_LETTERS = re.compile(r'(?:[A-J](?![A-Za-z])|or\b|and\b|either\b|both\b|[\s(),/&*.])+')


def after_option_hashes(text):
    """The last line after '####' that may be an answer; None without one.

    '#### A closer look' and '#### B. Birds' with text below them are headings, '#### B' is none.
    """
    lines = hash_lines(text)
    letters = {read_option(line) for line, _ in lines}
    letters.discard(None)
    # one heading for each option: none of them is the answer
    one_each = len(letters) > 1

    found = None
    for line, text_follows in lines:
        if not line:
            found = ''
            continue
        letter = read_option(line)
        if ANNOUNCED.search(line):
            is_heading = text_follows and letter is None
        elif lone_letter(line):
            is_heading = text_follows and one_each
        elif letter == UNCLEAR and ONLY_LETTERS.fullmatch(line):
            is_heading = False
        else:
            is_heading = text_follows or (one_each and letter != UNCLEAR)
        if not is_heading:
            return line
    return found


# --- sentences that name an option ----------------------------------------------
CALLED = r'(?P<called>(?:[Tt]he )?(?:[Cc]orrect )?(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ll]etter)[ :]{1,2})'
OPTION = r"[(\[*]{0,3}(?P<letter>[A-Z])[)\]*]{0,3}(?![A-Za-z0-9'’-])"
SURE = r'(?: clearly| therefore| definitely| obviously| indeed| thus| most likely| likely)?'
# 'B is the correct answer', 'B is right'
IS_RIGHT = re.compile(
    rf'{CALLED}?{OPTION}(?: \([^()\n]{{1,60}}\))? {{1,3}}(?:is|would be|must be|has to be|should be){SURE}'
    r'(?: the| an?)?(?: only| single)?(?: \*{0,2}(?:correct|right|best|most appropriate)\*{0,2})?'
    r'(?P<noun> \*{0,2}(?:answer|option|choice|one|response)\b\*{0,2})?')
# 'I choose B'
CHOOSES = re.compile(
    rf"\b(?:I|[Ww]e)(?: would|'d| will|'ll| therefore| thus| hence){{0,2}}"
    r"(?: am|'m)?"
    r' (?:going with|choose|pick|select|go with|opt for|vote for|answer with|answer|settle on) '
    rf'{CALLED}?{OPTION}')
# 'So it must be B.' and 'Answer B' at the end of a text
CONCLUDES = re.compile(
    r'(?:\b(?:[Ss]o|[Tt]herefore|[Tt]hus|[Hh]ence),? '
    r"(?:(?:(?:it|this|that) (?:is|must be|has to be|can only be)|it's) )?"
    r"|\b(?:[Ii]t|[Tt]his) (?:must be|has to be|can only be|is) "
    r'|\b(?:[Aa]nswer|ANSWER|[Aa]ns|ANS)\s?[:.–—-]?\s?)'
    rf'{CALLED}?{OPTION}[\s.!*)]*\Z')

# what may follow the claim
CLAIM_ENDS = re.compile(r'[\s*)]*(?:$|[.,;:!\n(–—])|\s+(?:because|since|as|for|here)\b')
CHOICE_ENDS = re.compile(r'[\s*)]*(?:$|[.,;:!\n(–—])|\s+(?:because|since)\b')
# words that may stand before the letter: 'I think that B is right', but not 'vitamin B is right'
LEADS = {
    '', 'so', 'therefore', 'thus', 'hence', 'that', 'think', 'believe', 'conclude', 'only', 'clearly',
    'then', 'means', 'but', 'and', 'say', 'sure', 'confident', 'obviously', 'overall', 'finally'}
# a claim after these words is none
HEDGE_BEFORE = re.compile(
    r"\b(?:not|never|neither|nor|or|either|if|whether|unless|might|may|could|maybe|perhaps|possibly"
    r"|both|none|doubt|doubtful|unlikely|why|how|suppose|assume|assuming|some|someone|one|many|people"
    r"|students|although|though|when|until|before|first|initially|says?|said|claims?|not sure)\b"
    r"|n't|n’t|[A-J][)\]]?,? ?(?:and|&|/|,) ?\(?$", re.IGNORECASE)
HEDGE_AFTER = re.compile(
    r"\b(?:or|nor|maybe|perhaps|possibly|could|might|may|also|either|unless|if|but|too)\b|\?"
    r"|^[\s,/&)]*(?:and )?\(?[A-J](?![A-Za-z'’])|n't|^\W*(?:not|wrong|no)\b", re.IGNORECASE)
SENTENCE_BEGINS = re.compile(r'[.!?:;][*_\s)]+|\n')
NEW_CLAUSE = re.compile(r'\b(?:so|therefore|thus|hence|but)\b,?', re.IGNORECASE)


def is_claimed(found, text, ends):
    """Whether the sentence around a match says without a hedge what the match says."""
    letter = found['letter']
    if letter == 'I' and not found['called']:
        return False
    if not ends.match(text, found.end()):
        return False

    # before: the last clause of the sentence, as 'B is right' in 'A is wrong, so B is right'
    before = SENTENCE_BEGINS.split(text[max(0, found.start() - 300):found.start()])[-1]
    if HEDGE_BEFORE.search(NEW_CLAUSE.split(before)[-1]):
        return False
    words = before.strip(' \t,*_("').split()
    last_word = words[-1].strip(',*_(').lower() if words else ''
    ends_clause = before.rstrip(' *_(').endswith((',', '—', '–', '-'))
    if not found['called'] and last_word not in LEADS and not ends_clause:
        return False

    # after: the rest of the sentence, up to the reasons
    after = re.split(r'(?<=[.!?])\s|\n', text[found.end():found.end() + 300], maxsplit=1)[0]
    return HEDGE_AFTER.search(REASON.split(after, maxsplit=1)[0]) is None


def says_right(found):
    """Whether 'B is ...' goes on with 'right', 'correct' or 'the answer', not just with anything."""
    claim = found[0][found.end('letter') - found.start():]
    return re.search(r'\b(?:correct|right|best|most appropriate|answer)\b', claim) is not None


def named_option(text):
    """The letter that sentences name ('B is correct', 'I choose B'); UNCLEAR if they name several.

    None if no sentence does so without a hedge.
    """
    tail = text.rstrip()[-MAX_TAIL:]
    letters = set()
    for found in IS_RIGHT.finditer(tail):
        if says_right(found) and is_claimed(found, tail, CLAIM_ENDS):
            letters.add(found['letter'])
    for pattern in (CHOOSES, CONCLUDES):
        for found in pattern.finditer(tail):
            if is_claimed(found, tail, CHOICE_ENDS):
                letters.add(found['letter'])
    if len(letters) > 1:
        return UNCLEAR
    return letters.pop() if letters else None


def lone_option(text):
    """The letter of a text that is 'B' or 'B) birds', or whose first or last line is a letter alone."""
    text = text.strip()
    if len(text) > MAX_TAIL:
        return None
    lines = [line for line in text.split('\n') if line.strip()]
    if len(lines) == 1 and re.match(r'[\s(*\[]*[A-Z](?:[).:\]]|,? (?:because|since)\b)', text):
        return read_option(text)
    # a list of letters names no option
    letters = [lone_letter(line) for line in lines]
    lone = [letter for letter in letters if letter]
    if len(lone) != 1:
        return None
    return letters[0] or letters[-1]


# --- judging --------------------------------------------------------------------
# 'the correct option is', 'my choice:'
after_option_phrase = functools.partial(after_phrase, nouns=('nswer', 'NSWER', 'ption', 'hoice'))
PLACES = (boxed, tagged, after_option_hashes, after_option_phrase)


def mcq_answer(completion, options=LETTERS):
    r"""The letter of the option that a completion names; None without one or with several.

    'B' for '\boxed{B}', 'The answer is (B).' and 'Therefore, B is the correct answer.'
    """
    text = after_thinking(completion)
    letter, is_marked = first_answer(text, PLACES, read_option)
    if letter is None:
        letter = named_option(text)
    if letter is None and not is_marked:
        letter = lone_option(text)
    # UNCLEAR is no option either
    if letter is None or letter not in options:
        return None
    return letter


def mcq(completion, truth):
    """(reward, rule): the truth is 'C' or {'answer': 'C', 'options': ['A', ...]}, or its text."""
    truth = loaded(truth)
    if isinstance(truth, dict):
        wanted = truth['answer']
        options = truth.get('options') or LETTERS
    else:
        wanted = str(truth).strip('() ')
        options = LETTERS
    said = mcq_answer(completion, options)
    is_right = said is not None and said == wanted
    return float(is_right), f'{said} against {wanted}'
