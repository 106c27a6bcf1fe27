r"""Multiple choice (mcq): which option's letter a completion names.

A letter counts only where it is used as a name. In 'A mammal lays no eggs' it is an article, in
'C, I checked it twice' a pronoun, in 'B cells' a part of a word.

The letter is looked for at marked places first (read_option): in \boxed{}, in <answer>, after
'####' and after 'the answer is'. Then in sentences like 'B is correct' (named_option), and at last
in a text that is not much more than the letter (lone_option).
"""
import functools
import re

from rewards.answers import UNCLEAR, after_phrase, after_thinking, boxed, first_answer, hash_lines
from rewards.answers import loaded, tagged, unwrapped

LETTERS = 'ABCDEFGHIJ'  # the options where a truth does not list them
MAX_READ = 400  # characters of what stands at a marked place
MAX_TAIL = 4000  # characters at the end of a text that are searched for sentences with a letter


def one_of(*words):
    """A pattern for any of these words or patterns."""
    return '(?:' + '|'.join(words) + ')'


# --- a text without what is there for looks -------------------------------------
# \textbf{(B)}, $B$, **B**, "B"
LOOKS = re.compile(one_of(
    r'\\(?:text|math)(?:bf|rm|it|sf|tt|bb|cal|normal|up)?(?![a-zA-Z])',
    r'\\(?:mbox|operatorname|bf|rm|left|right|displaystyle)(?![a-zA-Z])',
    r'\\[()\[\]]',
    r'[{}$`"“”]',
    r'\*\*'))
SPACES = re.compile(r'\\[ ,;:!]|\\q?quad(?![a-zA-Z])|~')
SMALL_LETTER = re.compile(r'\([a-j]\)')


def plain(text):
    r"""A text without macros, bold face and quotes: '(B) birds' for '\textbf{(b)} birds'."""
    text = LOOKS.sub('', SPACES.sub(' ', text))
    # a small letter counts in brackets only
    return SMALL_LETTER.sub(lambda found: found[0].upper(), text)


# --- is a letter a name? --------------------------------------------------------
# nothing that could make another word of a letter: A's, B12, C-section
NO_WORD = r"(?![A-Za-z0-9'’-])"
# words that may follow a letter without punctuation: 'B because ...'
FOLLOWS_LETTER = {
    'because', 'since', 'as', 'which', 'where', 'so', 'therefore', 'thus', 'hence', 'by', 'from',
    'in', 'for', 'is', 'was', 'would', 'seems', 'or', 'and', 'nor', 'not', 'but', 'due', 'based',
    'according', 'rather', 'instead', 'given', 'here', 'with', 'while'}
# of these, those that also follow an article: 'a given day'
FOLLOWS_ARTICLE = {'due', 'based', 'rather', 'given', 'with', 'while', 'not', 'but'}
# of these, those that do not follow the pronoun: neither 'I so' nor 'I was'
FOLLOWS_NO_PRONOUN = {'because', 'since', 'is'}


def is_name(letter, rest, bracketed=False):
    """Whether a letter, followed by the rest of its sentence, is used as an option's name.

    True for 'A' before ') mammals' and ' because ...', False for 'A' before ' mammal lays no eggs'.
    """
    if bracketed or not rest.strip(' \t\r\n.*'):
        return True
    # 'A. mammals', 'A) mammals'
    if rest[0] in ')].:':
        return True
    # 'A, because ...', but 'I, for one, ...' is the pronoun
    if rest[0] in ',;':
        return letter != 'I'
    # 'A/B', 'A (mammals)', 'A - mammals', but neither 'A-frame' nor 'A + B'
    if re.match(r'\s*[/|&(]|\s+[-–—]\s|\s*[–—]', rest):
        return True
    # 'A 15' and nothing more
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
        # 'I or J', but 'I and my friend' is the pronoun
        return re.match(r'\s+\w+\s+\(?[A-J](?![A-Za-z])', rest) is not None
    if letter == 'I':
        return word in FOLLOWS_NO_PRONOUN
    if letter == 'A' and word in FOLLOWS_ARTICLE:
        return False
    return word in FOLLOWS_LETTER


# --- is another option named, too? ----------------------------------------------
# after these words an answer gives its reasons, which may name other options
REASON = re.compile(
    r"\b(?:because|since|(?<!well )as(?! well)|due to|given|so|which|where|I [a-z]+|I'm)\b")
# ' or', ', and', but not ' and I am sure'
CONJUNCTION = re.compile(r"[\s,)*]*(?:or|and|nor)\b(?! I(?: [a-z]|['’]))")
# directly after a letter: ' or B', ', B', ')(B', '/B'
LISTED = re.compile(
    r'[\s,;/&|)(\].:*-]*(?:(?:or|and|nor)\b)?[\s,/&|(\[]*'
    rf'(?:(?:[Oo]ption|[Cc]hoice) )?(?P<letter>[A-Z]){NO_WORD}')
# further on in the sentence: 'or possibly B', '(B)', 'B)'
ADDS = one_of(
    'or', 'nor', 'and', 'as well as', 'along with', 'plus', 'maybe', 'perhaps', 'possibly',
    'alternatively', 'also', 'could be', 'might be')
FURTHER = re.compile(
    rf'\b{ADDS}\b[^A-Za-z]{{0,5}}(?:possibly |maybe |perhaps |also )?'
    rf'(?:it could be |it might be )?(?:option |choice )?\(?(?P<letter>[A-J]){NO_WORD}'
    r'|(?<!not )(?<!than )(?<!of )\((?P<bracketed>[A-J])\)'
    r'|(?<![A-Za-z(])(?P<closed>[A-J])\)')
# 'B is wrong', '(B) can never be true', 'B could be right'
DENIED = re.compile(
    r'[\s)\]]*(?:(?:is|was|would be|can|could|does|must|will)'
    r"(?:n't|n’t|not|\s+(?:not|never|wrong|false|incorrect))\b"
    r'|(?:may|might|could)\s+(?:also\s+)?be\b)')


def names_another(letter, rest):
    """Whether what follows an option's letter names another option, as ' or B' does."""
    if CONJUNCTION.match(rest):
        return True
    listed = LISTED.match(rest)
    if listed and listed['letter'] != letter:
        if is_name(listed['letter'], rest[listed.end():]):
            return True

    # in 'D because A, B and C are false' the reasons are no answer
    claim = REASON.split(rest, maxsplit=1)[0]
    for found in FURTHER.finditer(claim):
        # 'and C is wrong'
        if DENIED.match(claim, found.end()):
            continue
        other = found['letter'] or found['bracketed'] or found['closed']
        bracketed = found['letter'] is None
        if other != letter and is_name(other, claim[found.end():], bracketed):
            return True
    return False


# --- the letter at a marked place -----------------------------------------------
# an answer that names none or several: 'neither A nor B', 'all of the above', 'I am not sure', 'AB'
NO_ONE_OPTION = re.compile(one_of(
    r'(?i:not|neither|nor|either|both|none|all|between|maybe|perhaps|unclear|unknown|unsure)\b',
    r"I(?: am|'m)? (?:not|unsure|don't|do not|cannot|can't)\b",
    r'[A-J]{2,4}\W*$'))
# what may come before the letter: 'clearly B', 'option B', 'I think that it is B'
ADVERB = one_of(
    'clearly', 'definitely', 'obviously', 'therefore', 'thus', 'indeed', 'simply', 'most likely',
    'probably', 'likely', 'the', 'an?')
BEFORE_LETTER = re.compile(one_of(
    rf'{ADVERB}\s+(?=[(A-Z]|option|choice|letter)',
    r'\[?(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer|OPTION|CHOICE|ANSWER)[\s:]+',
    r"I(?: am|'m|'d| would)? "
    r'(?:think|believe|say|go with|choose|pick|select|sure|confident|certain)(?: that)?,? '
    r"(?:(?:it is|it's|it must be|the answer is) )?"))
LETTER = re.compile(
    r"([(\[]*)\s*([A-Z])(?![A-Za-z0-9'’])(?:\s+(?=[)\].:,;]))?(.*)", re.DOTALL)


def read_option(content):
    r"""The letter that an answer names; UNCLEAR for 'A or B' and 'not A'; None where it names none.

    'B' for 'B', '\text{(B)}', 'option B', 'B) birds' and 'B because birds fly'.
    """
    text = plain(unwrapped(content[:MAX_READ])).strip(' \t\r\n*_,:-–—')
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
    r'[\s(\[*_]*(?:(?:the |my )?(?:final |correct )?(?:option|choice|answer|letter)[\s:*–—-]+)?'
    r'[(\[*_]*([A-Z])[\s.)\]*_]*', re.IGNORECASE)
# '#### Answer: B'
ANNOUNCED = re.compile(r'answer\W{0,4}(?:is\b|:|=)', re.IGNORECASE)
# '#### A or B': a line of nothing but letters
ONLY_LETTERS = re.compile(r'(?:[A-J](?![A-Za-z])|or\b|and\b|either\b|both\b|[\s(),/&*.])+')


def lone_letter(line):
    """The letter of a line that holds nothing else, as '**(B)**' or 'Option B'; else None."""
    if len(line) > 60:
        return None
    found = LONE_LETTER.fullmatch(plain(line))
    if not found or not found[1].isupper():
        return None
    return found[1]


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
        letter = read_option(line)
        # '#### Done' after '#### B'
        if letter is None and not text_follows:
            found = ''
            continue
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
CALLED = (
    r'(?P<called>(?:[Tt]he )?(?:[Cc]orrect )?'
    r'(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ll]etter)[ :]{1,2})?')
OPTION = rf'{CALLED}[(\[]?(?P<letter>[A-Z])[)\]]?{NO_WORD}'
SURE = one_of(
    ' clearly', ' therefore', ' definitely', ' obviously', ' indeed', ' thus', ' most likely',
    ' likely')
RIGHT = one_of('correct', 'right', 'best', 'most appropriate', 'most likely')
# 'B is right', 'option B (birds) is the correct answer', 'B is the answer'
IS_RIGHT = re.compile(
    rf'{OPTION}(?: \([^()\n]{{1,60}}\))? {{1,3}}'
    rf'(?:is|would be|must be|has to be|should be){SURE}?(?: the| an?)?(?: only| single)?'
    rf'(?: {RIGHT}(?: (?:answer|option|choice|one|response))?| answer)\b')
# 'I choose B', "I'd go with option B"
CHOOSES = re.compile(
    r"\b(?:I|[Ww]e)(?: would|'d| will|'ll| therefore| thus| hence){0,2}(?: am|'m)? "
    r'(?:going with|choose|pick|select|go with|opt for|vote for|answer with|answer|settle on) '
    rf'{OPTION}')
# at the end of a text: 'So it must be B.', 'It is B.', 'Answer B'
CONCLUDES = re.compile(
    r'(?:\b(?:[Ss]o|[Tt]herefore|[Tt]hus|[Hh]ence),? '
    r"(?:(?:(?:it|this|that) (?:is|must be|has to be|can only be)|it's) )?"
    r'|\b(?:[Ii]t|[Tt]his) (?:must be|has to be|can only be|is) '
    r'|\b(?:[Aa]nswer|ANSWER|[Aa]ns|ANS)\s?[:.–—-]?\s?)'
    rf'{OPTION}[\s.!*)]*\Z')

# what may follow: the sentence or the clause ends, or its reasons begin
CLAIM_ENDS = re.compile(r'[\s*)]*(?:$|[.,;:!\n(–—])|\s+(?:because|since|as|for|here)\b')
CHOICE_ENDS = re.compile(r'[\s*)]*(?:$|[.,;:!\n(–—])|\s+(?:because|since)\b')
# the word before: 'I think B is right', but not 'vitamin B is right'
LEADS = {
    '', 'so', 'therefore', 'thus', 'hence', 'that', 'think', 'believe', 'conclude', 'only',
    'clearly', 'then', 'means', 'but', 'and', 'say', 'sure', 'confident', 'obviously', 'overall',
    'finally'}
# with these words before, a claim is none: 'not', 'if', 'some say', 'A and'
DOUBTS_BEFORE = one_of(
    'not', 'never', 'neither', 'nor', 'or', 'either', 'if', 'whether', 'unless', 'might', 'may',
    'could', 'maybe', 'perhaps', 'possibly', 'both', 'none', 'doubt', 'doubtful', 'unlikely', 'why',
    'how', 'suppose', 'assume', 'assuming', 'some', 'someone', 'one', 'many', 'people',
    'students', 'although', 'though', 'when', 'until', 'before', 'first', 'initially', 'says?',
    'said', 'claims?')
HEDGE_BEFORE = re.compile(
    rf"\b{DOUBTS_BEFORE}\b|n't|n’t|[A-J][)\]]?,? ?(?:and|&|/|,) ?\(?$", re.IGNORECASE)
# and with these words after: 'or', 'but ... could', 'only if', '? No', ', C'
DOUBTS_AFTER = one_of(
    'or', 'nor', 'maybe', 'perhaps', 'possibly', 'could', 'might', 'may', 'also', 'either',
    'unless', 'if', 'but', 'too')
HEDGE_AFTER = re.compile(
    rf"\b{DOUBTS_AFTER}\b|\?|^[\s,/&)]*(?:and )?\(?[A-J](?![A-Za-z'’])|n't|^\W*(?:not|wrong|no)\b",
    re.IGNORECASE)
SENTENCE_BEGINS = re.compile(r'[.!?:;][*_\s)]+|\n')
NEW_CLAUSE = re.compile(r'\b(?:so|therefore|thus|hence|but)\b,?', re.IGNORECASE)


def is_claimed(found, text, ends):
    """Whether the sentence around a match says without a hedge what the match says."""
    # 'I is correct' needs 'option I'
    if found['letter'] == 'I' and not found['called']:
        return False
    if not ends.match(text, found.end()):
        return False

    # before: the last clause of the sentence, as 'B is right' in 'A is wrong, so B is right'
    before = SENTENCE_BEGINS.split(text[max(0, found.start() - 300):found.start()])[-1]
    clause = NEW_CLAUSE.split(before)[-1]
    if HEDGE_BEFORE.search(clause):
        return False
    words = before.strip(' \t,*_("').split()
    last_word = words[-1].strip(',*_(').lower() if words else ''
    is_new_clause = before.rstrip(' *_(').endswith((',', '—', '–', '-'))
    is_led = found['called'] or is_new_clause or last_word in LEADS
    if not is_led:
        return False

    # after: the rest of the sentence, up to the reasons
    after = re.split(r'(?<=[.!?])\s|\n', text[found.end():found.end() + 300], maxsplit=1)[0]
    claim = REASON.split(after, maxsplit=1)[0]
    return HEDGE_AFTER.search(claim) is None


def named_option(text):
    """The letter that sentences name ('B is correct', 'I choose B'); UNCLEAR if they name several.

    None if no sentence does so without a hedge.
    """
    tail = plain(text.rstrip()[-MAX_TAIL:])
    letters = set()
    for pattern, ends in ((IS_RIGHT, CLAIM_ENDS), (CHOOSES, CHOICE_ENDS), (CONCLUDES, CHOICE_ENDS)):
        for found in pattern.finditer(tail):
            if is_claimed(found, tail, ends):
                letters.add(found['letter'])
    if len(letters) > 1:
        return UNCLEAR
    return letters.pop() if letters else None


# --- a text that is not much more than the letter -------------------------------
# 'B) birds', 'Option B. Birds', 'B because ...', but not 'B) is better'
LETTER_FIRST = re.compile(
    r'[\s(*\[]*(?:[Oo]ption )?[A-Z](?:[).:\]]|,? (?:because|since)\b)'
    r'(?!\s*(?:is|was|are|would|could|can|may|might|does|must|seems|has)\b)')


def lone_option(text):
    """The letter of a text that is 'B' or 'B) birds', or whose first or last line is a letter."""
    text = text.strip()
    if len(text) > MAX_TAIL:
        return None
    # a text of one line
    lines = [line for line in text.split('\n') if line.strip()]
    if len(lines) == 1 and LETTER_FIRST.match(plain(text)):
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
# 'conclusion: B', if the phrases before gave no letter
after_other_phrase = functools.partial(
    after_phrase, nouns=('esponse', 'olution', 'onclusion', 'correct one', 'correct statement'))
PLACES = (boxed, tagged, after_option_hashes, after_option_phrase, after_other_phrase)


def mcq_answer(completion, options=LETTERS):
    r"""The letter of the option that a completion names; None without one or with several.

    'B' for '\boxed{B}', 'The answer is (B).' and 'Therefore, B is the correct answer.'
    """
    text = after_thinking(completion)
    letter, _ = first_answer(text, PLACES, read_option)
    if letter is None:
        letter = named_option(text)
    if letter is None:
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
