"""Instructions that a program can check: IFEval's 25 rules, and the form TULU 3 gives them.

A truth names rules and their arguments. `ifeval` says whether a completion follows them. This file
has four parts: a small function for each rule, the tables RULES and TULU, the reading of a truth,
the verdict. To add a rule, write its function and give it a row in RULES.

Sources: IFEval (Zhou et al. 2023, arXiv 2311.07911; instruction_following_eval of google-research),
TULU 3 (if_functions.py of allenai/open-instruct). The differences from IFEval's own code:
1. Functions of this file count sentences (IFEval: NLTK) and guess languages (IFEval: langdetect).
2. Keywords and other arguments are texts, never regular expressions.
3. Every scan is linear, so that no completion can stall a run.
"""
import json
import math
import numbers
import operator
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from rewards.answers import after_thinking, loaded, need

# characters of a completion after its thinking; longer ones could take the slowest rule over 50 ms
MAX_TEXT = 50000
# characters by which a text's language is guessed
MAX_LANGUAGE_TEXT = 20000


# --- rules about keywords --------------------------------------------------------
def contains_keywords(text, keywords):
    """keywords:existence: every keyword is somewhere in the text, in any case."""
    lower_text = text.lower()
    return all(keyword.lower() in lower_text for keyword in keywords)


def number_of_keyword(text, keyword):
    """keywords:frequency: how often the keyword is in the text, also inside other words."""
    return text.lower().count(keyword.lower())


def is_whole_word_in(word, text, flags=0):
    """Whether the text has the word with no letter or digit on either side of it."""
    return re.search(rf'(?<!\w){re.escape(word)}(?!\w)', text, flags) is not None


def avoids_words(text, forbidden_words):
    """keywords:forbidden_words: none of the words is in the text, in any case.

    'no' is not in 'know'.
    """
    return not any(is_whole_word_in(word, text, re.IGNORECASE) for word in forbidden_words)


def number_of_letter(text, letter):
    """keywords:letter_frequency: how often the letter is in the text, small or capital."""
    return text.lower().count(letter.lower())


# --- rules about languages -------------------------------------------------------
# ISO 639-1 codes of the languages that have a script of their own. A script is written as in the
# Unicode names of its letters: 'THAI CHARACTER KO KAI'.
SCRIPTS = {
    'bn': 'BENGALI',
    'gu': 'GUJARATI',
    'he': 'HEBREW',
    'ja': 'HIRAGANA',
    'kn': 'KANNADA',
    'ko': 'HANGUL',
    'ml': 'MALAYALAM',
    'pa': 'GURMUKHI',
    'ta': 'TAMIL',
    'te': 'TELUGU',
    'th': 'THAI',
}


@dataclass(frozen=True)
class WrittenLanguage:
    """How a text shows its language, where several languages share a script."""
    script: str
    words: frozenset  # the most frequent ones
    letters: str  # those that the script's other languages do not have


def written(script, words, letters=''):
    """A WrittenLanguage; `words` is one text with blanks between the words."""
    return WrittenLanguage(script, frozenset(words.split()), letters)


LANGUAGES = {
    # English
    'en': written('LATIN', words='''
        the of and to in is that it was for on are with as be at this have from or had not
        but what all were when we there can an your which their if will each about how up
        out them then she many some so her would i you he they
    '''),
    # German
    'de': written('LATIN', letters='ß', words='''
        der die das und ist nicht ein eine zu den mit von auf für im dem sich des auch es
        an werden aus er hat dass sie nach wird bei einer um am sind noch wie einem über
        einen so zum war
    '''),
    # French
    'fr': written('LATIN', words='''
        le la les des et est un une du dans que pour qui sur avec ce il au ne se pas plus
        par sont ou mais nous vous leur elle cette à en de y tout très été aux ses son sa
        ils comme je
    '''),
    # Spanish
    'es': written('LATIN', letters='ñ¿¡', words='''
        el la los las de y que en un una es por con para del se no al lo como más su pero
        sus este ya muy o fue todos entre cuando sin sobre también me hasta hay donde sus
        está
    '''),
    # Italian
    'it': written('LATIN', words='''
        il la di che e un una in per è non con del della i le gli da dei si al sono ma
        anche come più nel alla lo questo ha delle ogni molto degli dal ed era
    '''),
    # Portuguese
    'pt': written('LATIN', letters='ãõ', words='''
        o a os as de e que do da em um uma é para com não por mais dos das se no na ao
        como mas foi muito todos seu sua pela pelo são à também pão está
    '''),
    # Dutch
    'nl': written('LATIN', words='''
        de het een en van is in dat op te zijn met voor niet aan er om ook als dan bij nog
        uit naar wordt door maar heeft hebben ik je ze deze veel elke staat
    '''),
    # Finnish
    'fi': written('LATIN', words='''
        ja on ei se että oli hän mutta ovat kun niin myös joka kuin tai siitä ole sen jo
        hyvin vanha ne me sekä ihmiset kanssa päivä joita siellä monta paljon
    '''),
    # Polish
    'pl': written('LATIN', letters='łżśćń', words='''
        i w na z się do nie to że jest jak o po co dla od za przez są ale który tylko oraz
        był bardzo każdego jego
    '''),
    # Vietnamese
    'vi': written('LATIN', letters='ạảấầậắặẹếềểệịọốồổộớợụứừửữựđ', words='''
        và của là có các được trong cho không một người với những này để khi đã đến từ rất
        nhiều ở ra ngày chúng tôi mỗi
    '''),
    # Swahili
    'sw': written('LATIN', words='''
        na ya wa kwa ni la katika za cha kuwa hii vya watu yake huo hiyo kila siku mji
        yenye wengi sana pia lakini huja kama au ili hapa watoto wake
    '''),
    # Hindi
    'hi': written('DEVANAGARI', words='''
        है में की के और यह से को हैं था का पर लिए भी नहीं एक हर बहुत ने वह लोग आते
    '''),
    # Marathi
    'mr': written('DEVANAGARI', letters='ळ', words='''
        आहे आणि या मध्ये होते आहेत हे ते खूप येतात एक करण्यासाठी पण नाही जुने लोक रोज ही
        तो
    '''),
    # Nepali
    'ne': written('DEVANAGARI', words='''
        छ र को मा छन् भएको पनि यो हुन् गर्न लागि धेरै हो मानिसहरू आउँछन् हरेक लाई छैन दिन
    '''),
    # Arabic
    'ar': written('ARABIC', letters='ةىيكإأؤئ', words='''
        في من على التي إلى هذا هذه أن و مع كل عن الذي كان لا ما يوم هو هي
    '''),
    # Persian
    'fa': written('ARABIC', letters='پچژگک', words='''
        در به که از را این است و با هر برای آن می های روز یک بود مردم بسیار
    '''),
    # Urdu
    'ur': written('ARABIC', letters='ٹڈڑےںہھ', words='''
        ہے میں کے کی اور سے یہ ہیں کو کا پر بہت ہر لوگ نے ایک بھی
    '''),
    # Russian
    'ru': written('CYRILLIC', letters='ыэё', words='''
        и в не на что это с по как из он она к для они есть у все но каждый очень день
        люди
    '''),
    # Bulgarian
    'bg': written('CYRILLIC', letters='ъщ', words='''
        е на и да за от се са с в по не това този които всеки много ден хората които като
        беше
    '''),
    # Ukrainian
    'uk': written('CYRILLIC', letters='іїєґ', words='''
        і в не на що це з та як до у він є для дуже люди день щодня
    '''),
}


def main_script(text):
    """The script of most letters of a text, as SCRIPTS names it; 'LATIN' if it has no letter."""
    letters_of = Counter()  # script: letters of the text in it
    # each distinct character is looked up once
    for character, count in Counter(text).items():
        if character.isalpha():
            script = unicodedata.name(character, '?').split()[0]
            letters_of[script] += count

    # Japanese mixes three scripts; Chinese has neither Hiragana nor Katakana
    is_japanese = letters_of['HIRAGANA'] + letters_of['KATAKANA'] > 0
    if is_japanese:
        letters_of['HIRAGANA'] += letters_of.pop('KATAKANA', 0)
        letters_of['HIRAGANA'] += letters_of.pop('CJK', 0)
    # of scripts with equally many letters, the one that comes first in the text
    return max(letters_of, key=letters_of.get, default='LATIN')


def language_score(text, words, language):
    """Frequent words of the language in a text, plus half its special letters."""
    n_words = sum(word in language.words for word in words)
    n_letters = sum(text.count(letter) for letter in language.letters)
    return n_words + n_letters / 2


def in_language(text, language):
    """language:response_language: the text is in the language, given by its ISO 639-1 code."""
    # 1. some languages are the only one of their script
    text = text[:MAX_LANGUAGE_TEXT].lower()
    script = main_script(text)
    if SCRIPTS.get(language) == script:
        return True

    # 2. the languages written in that script must include the one wanted
    rivals = {code: known for code, known in LANGUAGES.items() if known.script == script}
    if language not in rivals:
        return False

    # 3. frequent words and special letters tell them apart
    words = [word.strip('.,;:!?"\'()*।،؟«»') for word in text.split()]
    scores = {code: language_score(text, words, known) for code, known in rivals.items()}
    if scores[language] < max(scores.values()):
        return False

    # 4. a text without any such word passes for English
    return scores[language] > 0 or language == 'en'


# --- rules about length ----------------------------------------------------------
# these end with a full stop and do not end a sentence
ABBREVIATIONS = set('''
    mr mrs ms dr prof st vs e.g i.e etc jr sr no fig inc ltd co u.s a.m p.m approx
'''.split())
# full stops, exclamation and question marks, with any quotes or brackets, before a blank or the end
END_MARK = re.compile(r'(?<![.!?])[.!?]+["\')\]*]*(?=\s|$)')
# what a word may follow: a blank, an opening quote or bracket, a star
BEFORE_WORD = re.compile(r'[\s("\'*]')
# a letter, a digit or _
WORD_CHARACTER = re.compile(r'\w')


def goes_on(sentence, mark, after):
    """Whether a sentence goes on after an end mark; `after`: the text's next two characters."""
    after = after.strip()
    # an ellipsis before a small letter: 'Wait... what?'
    if mark.startswith('..') and after[:1].islower():
        return True
    # anything else that does not end a sentence is one full stop inside a text
    if mark != '.' or not after:
        return False
    last_word = BEFORE_WORD.split(sentence[-20:].lower())[-1]
    if last_word in ABBREVIATIONS:
        return True
    # an initial, as in 'J. Smith', but not the word 'I'
    is_letter = len(last_word) == 1 and last_word.isalpha()
    return is_letter and last_word != 'i'


def number_of_sentences(text):
    """length_constraints:number_sentences: how many sentences the text has."""
    count = 0
    start = 0  # where the text after the last end mark begins
    has_word = False  # whether the sentence that is read has a word yet
    for mark in END_MARK.finditer(text):
        piece = text[start:mark.start()]
        start = mark.end()
        if WORD_CHARACTER.search(piece):
            has_word = True
        # '. . .' is no sentence
        if not has_word:
            continue
        if goes_on(piece, mark[0], text[start:start + 2]):
            continue
        count += 1
        has_word = False

    # the last sentence may lack its end mark
    if has_word or WORD_CHARACTER.search(text[start:]):
        count += 1
    return count


def filled_parts(text, separator):
    """The parts between separators (a regular expression) that are not blank.

    A blank part between two separators makes the whole text wrong: the list is then empty.
    """
    parts = [part.strip() for part in re.split(separator, text)]
    inner_parts = parts[1:-1]
    if not all(inner_parts):
        return []
    return [part for part in parts if part]


def number_of_paragraphs(text):
    """length_constraints:number_paragraphs: how many parts the text has, with *** between them."""
    return len(filled_parts(text, r'\s?\*\*\*\s?'))


def number_of_words(text):
    """length_constraints:number_words: how many words the text has."""
    return len(re.findall(r'\w+', text))


def paragraph_starts_with(text, first_word, num_paragraphs, nth_paragraph):
    """length_constraints:nth_paragraph_first_word: the nth paragraph starts with the word.

    There must be num_paragraphs, with blank lines between them. The first is number 1.
    """
    # 1. as many paragraphs as asked for; blank ones do not count
    paragraphs = text.split('\n\n')
    n_filled = sum(paragraph.strip() != '' for paragraph in paragraphs)
    if n_filled != num_paragraphs:
        return False

    # 2. the nth of them, where IFEval counts blank ones too
    if not 1 <= nth_paragraph <= len(paragraphs):
        return False
    words = paragraphs[nth_paragraph - 1].split()
    if not words:
        return False

    # 3. its first word, without quotes before it and without what follows a full stop or the like
    word = words[0].lstrip('\'"')
    word = re.split(r'[.,?!\'"]', word)[0]
    return word.lower() == first_word.lower()


def number_of_divided_parts(text):
    """TULU 3's verify_paragraph_count: how many parts the text has, with * * * between them."""
    return len(filled_parts(text, r'\* \* \*'))


# --- rules about content ---------------------------------------------------------
def number_of_placeholders(text):
    """detectable_content:number_placeholders: how many [placeholders] the text has."""
    count = 0
    for line in text.split('\n'):
        # each part but the last ends with a closing bracket
        for closed_part in line.split(']')[:-1]:
            if '[' in closed_part:
                count += 1
    return count


def has_postscript(text, postscript_marker):
    """detectable_content:postscript: the marker is in the text; 'P.S.' may also be 'P. S.'."""
    letters = [re.escape(part) for part in postscript_marker.lower().split('.')]
    # a blank may follow each full stop
    marker = r'\.\s?'.join(letters)
    return re.search(marker, text.lower()) is not None


# --- rules about format ----------------------------------------------------------
def number_of_bullets(text):
    """detectable_format:number_bullet_lists: how many lines begin with - or *, but not with **."""
    return len(re.findall(r'(?m)^[ \t]*(?:-|\*[^*\n])', text))


def is_constrained_response(text):
    """detectable_format:constrained_response: one of IFEval's three answers is in the text."""
    return any(f'My answer is {word}.' in text for word in ('yes', 'no', 'maybe'))


def number_of_highlights(text):
    """detectable_format:number_highlighted_sections: how many parts are *highlighted* or **so**."""
    parts = re.findall(r'\*[^\n*]*\*', text)
    parts += re.findall(r'\*\*[^\n*]*\*\*', text)
    # two stars with nothing between them highlight nothing
    contents = [part.strip('*').strip() for part in parts]
    return sum(content != '' for content in contents)


def number_of_sections(text, section_spliter):
    """detectable_format:multiple_sections: how many headings such as 'Section 1' the text has.

    The argument's name is IFEval's.
    """
    return len(re.findall(re.escape(section_spliter) + r'\s?\d+', text))


def is_json(text):
    """detectable_format:json_format: the whole text is JSON, maybe in a ``` fence."""
    without_fence = re.sub(r'^```(?:json|Json|JSON)?|```$', '', text.strip())
    try:
        json.loads(without_fence.strip())
    except (ValueError, RecursionError):
        return False
    return True


def has_title(text):
    """detectable_format:title: some line has a <<title>> that is not blank."""
    for line in text.split('\n'):
        # from the line's first << to its last >>
        after_opening = line.partition('<<')[2]
        title = after_opening.rpartition('>>')[0]
        if title.strip('<> '):
            return True
    return False


def choices(options):
    """The options as a list; a text such as '(yes, no or maybe)' is taken apart."""
    if isinstance(options, list):
        return [str(option) for option in options if option is not None]
    return re.split(r'\s*(?:[,/;\n]|\bor\b)\s*', options.strip('()[] '))


def makes_choice(text, options):
    """TULU 3's validate_choice: at least one of the options is in the text, as a whole word."""
    return any(is_whole_word_in(option, text) for option in choices(options) if option)


# --- rules about combinations, start and end -------------------------------------
def has_two_responses(text):
    """combination:two_responses: two different responses, with ****** between them."""
    responses = filled_parts(text, r'\*{6}')
    return len(responses) == 2 and responses[0] != responses[1]


def repeats_prompt(text, prompt_to_repeat):
    """combination:repeat_prompt: the text starts with the prompt, in any case."""
    prompt = prompt_to_repeat.strip().lower()
    return text.strip().lower().startswith(prompt)


def ends_with(text, end_phrase):
    """startend:end_checker: the text, or what it quotes, ends with the phrase, in any case."""
    end = end_phrase.strip().lower()
    return text.strip().strip('"').lower().endswith(end)


def is_quotation(text):
    """startend:quotation: the whole text is in double quotes."""
    return re.fullmatch(r'(?s)\s*".*"\s*', text) is not None


# --- rules about letter case and punctuation -------------------------------------
def number_of_capital_words(text):
    """change_case:capital_word_frequency: how many words are all capitals; 'A-B' is one word."""
    words = re.findall(r'\w+(?:[-./]\w+)*', text)
    return sum(word.isupper() for word in words)


def is_english_capital(text):
    """change_case:english_capital: the text is English, in capital letters only."""
    return text.isupper() and in_language(text, 'en')


def is_english_lowercase(text):
    """change_case:english_lowercase: the text is English, in small letters only."""
    return text.islower() and in_language(text, 'en')


def has_no_comma(text):
    """punctuation:no_comma: the text has no comma."""
    return ',' not in text


# --- the table of rules ----------------------------------------------------------
def is_around(count, goal):
    """TULU 3's 'around': at most a tenth more or less, and always one."""
    return abs(count - goal) <= max(1, round(goal / 10))


RELATIONS = {
    'less than': operator.lt,
    'at least': operator.ge,
    '>=': operator.ge,
    '==': operator.eq,
    'at most': operator.le,
    'around': is_around,
}


@dataclass(frozen=True)
class Rule:
    """A rule's function, and the names under which a truth gives what the function needs.

    A function that counts has a relation and a number: the count must stand in that relation to the
    number. Any other function says itself whether the text follows the rule.
    """
    function: Callable  # function(text, *arguments) -> a count, or whether the rule is followed
    arguments: str = ''  # their names in a truth, in the function's order, with blanks between them
    relation: str = ''  # the name of the relation in a truth, or the relation itself: '>=' or '=='
    number: str = ''  # the name of the number in a truth

    def names(self):
        """Names of all that a truth must give."""
        names = [self.relation, self.number, *self.arguments.split()]
        return [name for name in names if name and name not in RELATIONS]


RULES = {
    # keywords
    'keywords:existence': Rule(contains_keywords, 'keywords'),
    'keywords:frequency': Rule(
        number_of_keyword, 'keyword', relation='relation', number='frequency'),
    'keywords:forbidden_words': Rule(avoids_words, 'forbidden_words'),
    'keywords:letter_frequency': Rule(
        number_of_letter, 'letter', relation='let_relation', number='let_frequency'),
    # languages
    'language:response_language': Rule(in_language, 'language'),
    # length
    'length_constraints:number_sentences': Rule(
        number_of_sentences, relation='relation', number='num_sentences'),
    'length_constraints:number_paragraphs': Rule(
        number_of_paragraphs, relation='==', number='num_paragraphs'),
    'length_constraints:number_words': Rule(
        number_of_words, relation='relation', number='num_words'),
    'length_constraints:nth_paragraph_first_word': Rule(
        paragraph_starts_with, 'first_word num_paragraphs nth_paragraph'),
    # content
    'detectable_content:number_placeholders': Rule(
        number_of_placeholders, relation='>=', number='num_placeholders'),
    'detectable_content:postscript': Rule(has_postscript, 'postscript_marker'),
    # format
    'detectable_format:number_bullet_lists': Rule(
        number_of_bullets, relation='==', number='num_bullets'),
    'detectable_format:constrained_response': Rule(is_constrained_response),
    'detectable_format:number_highlighted_sections': Rule(
        number_of_highlights, relation='>=', number='num_highlights'),
    'detectable_format:multiple_sections': Rule(
        number_of_sections, 'section_spliter', relation='>=', number='num_sections'),
    'detectable_format:json_format': Rule(is_json),
    'detectable_format:title': Rule(has_title),
    # combinations, start and end
    'combination:two_responses': Rule(has_two_responses),
    'combination:repeat_prompt': Rule(repeats_prompt, 'prompt_to_repeat'),
    'startend:end_checker': Rule(ends_with, 'end_phrase'),
    'startend:quotation': Rule(is_quotation),
    # letter case and punctuation
    'change_case:capital_word_frequency': Rule(
        number_of_capital_words, relation='capital_relation', number='capital_frequency'),
    'change_case:english_capital': Rule(is_english_capital),
    'change_case:english_lowercase': Rule(is_english_lowercase),
    'punctuation:no_comma': Rule(has_no_comma),
    # these two are not IFEval's but TULU 3's
    'length_constraints:divided': Rule(number_of_divided_parts, relation='==', number='N'),
    'detectable_format:choice': Rule(makes_choice, 'options'),
}


# --- TULU 3's names of the rules ---------------------------------------------------
@dataclass(frozen=True)
class Renamed:
    """A rule under a name of TULU 3's, whose rows have other names for the arguments."""
    rule: str  # its id in RULES
    arguments: str = ''
    relation: str = ''
    number: str = ''


# func_name of an RLVR row: the rule
TULU = {
    'verify_keywords': Renamed('keywords:existence', 'keyword_list'),
    'validate_forbidden_words': Renamed('keywords:forbidden_words', 'forbidden_words'),
    'verify_keyword_frequency': Renamed('keywords:frequency', 'word', relation='==', number='N'),
    'verify_letter_frequency': Renamed(
        'keywords:letter_frequency', 'letter', relation='==', number='N'),
    'validate_response_language': Renamed('language:response_language', 'language'),
    'verify_paragraph_count': Renamed('length_constraints:divided', relation='==', number='N'),
    'validate_word_constraint': Renamed(
        'length_constraints:number_words', relation='quantifier', number='N'),
    'verify_sentence_constraint': Renamed(
        'length_constraints:number_sentences', relation='quantifier', number='N'),
    'validate_paragraphs': Renamed('length_constraints:nth_paragraph_first_word', 'first_word N i'),
    'verify_postscript': Renamed('detectable_content:postscript', 'postscript_marker'),
    'validate_placeholders': Renamed(
        'detectable_content:number_placeholders', relation='>=', number='N'),
    'verify_bullet_points': Renamed(
        'detectable_format:number_bullet_lists', relation='==', number='N'),
    'validate_title': Renamed('detectable_format:title'),
    'validate_choice': Renamed('detectable_format:choice', 'options'),
    'validate_highlighted_sections': Renamed(
        'detectable_format:number_highlighted_sections', relation='>=', number='N'),
    'validate_sections': Renamed(
        'detectable_format:multiple_sections', 'section_splitter', relation='>=', number='N'),
    'validate_json_format': Renamed('detectable_format:json_format'),
    'validate_repeat_prompt': Renamed('combination:repeat_prompt', 'original_prompt'),
    'validate_two_responses': Renamed('combination:two_responses'),
    'validate_uppercase': Renamed('change_case:english_capital'),
    'validate_lowercase': Renamed('change_case:english_lowercase'),
    'validate_frequency_capital_words': Renamed(
        'change_case:capital_word_frequency', relation='quantifier', number='N'),
    'validate_end': Renamed('startend:end_checker', 'end_phrase'),
    'validate_quotation': Renamed('startend:quotation'),
    'validate_no_commas': Renamed('punctuation:no_comma'),
}


# --- the reading of a truth --------------------------------------------------------
# names of the arguments that are whole numbers, in either form of a truth
NUMBERS = {
    'frequency', 'let_frequency', 'capital_frequency',
    'num_words', 'num_sentences', 'num_paragraphs', 'nth_paragraph',
    'num_placeholders', 'num_bullets', 'num_highlights', 'num_sections',
    'N', 'i',  # TULU 3's
}
# names of those that are lists of texts; of one text each letter would be taken for a word
WORD_LISTS = {'keywords', 'keyword_list', 'forbidden_words'}


@dataclass(frozen=True)
class Instruction:
    """A rule with the values that a truth gives."""
    rule: str  # its id
    arguments: list
    # these are None if the rule's function itself says whether a text follows it
    relation: Callable | None = None
    number: int | None = None


def given(fields, name):
    """A field of a truth; None where it is absent, null or pandas' NaN of an empty column."""
    value = fields.get(name)
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def whole_number(value):
    """The value as an int, where 3.0 is 3; None if it is no whole number."""
    if not isinstance(value, numbers.Real):
        return None
    if not float(value).is_integer():
        return None
    return int(value)


def is_word_list(value):
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def argument(rule_id, fields, name):
    """The value of an argument, checked by its name. Raises GaveUp that says what is expected."""
    value = given(fields, name)
    takes = f'{rule_id} takes {name}'
    if name in NUMBERS:
        number = whole_number(value)
        need(number is not None, f'{takes}, a whole number, not {value!r}')
        return number

    if name in WORD_LISTS:
        need(is_word_list(value), f'{takes}, a list of texts, not {value!r}')
        return value

    # TULU 3 gives options as a text or as a list
    if name == 'options' and isinstance(value, list):
        return value

    # every other argument is a text
    need(isinstance(value, str), f'{takes}, a text, not {value!r}')
    if name == 'language':
        is_known = value in LANGUAGES or value in SCRIPTS
        known = ', '.join(sorted([*LANGUAGES, *SCRIPTS]))
        need(is_known, f'{takes}, one of {known}, not {value!r}')
    return value


def relation_of(rule_id, fields, name):
    """The relation's function: `name` is the relation itself, or the argument that names it."""
    if name in RELATIONS:
        return RELATIONS[name]
    value = given(fields, name)
    known = ', '.join(RELATIONS)
    is_known = isinstance(value, str) and value in RELATIONS
    need(is_known, f'{rule_id} takes {name}, one of {known}, not {value!r}')
    return RELATIONS[value]


def instruction(rule_id, names, fields):
    """The Instruction of a rule. `names`, a Rule or Renamed, says what its arguments are called."""
    values = [argument(rule_id, fields, name) for name in names.arguments.split()]
    # a rule that does not count
    if not names.number:
        return Instruction(rule_id, values)
    return Instruction(
        rule_id,
        values,
        relation=relation_of(rule_id, fields, names.relation),
        number=argument(rule_id, fields, names.number),
    )


def tulu_instructions(fields):
    """The one Instruction of a truth in TULU 3's form: func_name and, beside it, the arguments."""
    name = fields['func_name']
    is_known = isinstance(name, str) and name in TULU
    need(is_known, f'unknown func_name {name!r}; known are {", ".join(TULU)}')
    return [instruction(TULU[name].rule, TULU[name], fields)]


def google_instructions(fields):
    """The Instructions of a truth in IFEval's form: a list of ids and a list of their arguments."""
    # 1. ids and arguments in pairs; open-instruct calls the list instruction_id
    ids = given(fields, 'instruction_id_list') or given(fields, 'instruction_id')
    kwargs = given(fields, 'kwargs')
    need(isinstance(ids, list), 'instruction_id_list (a list of ids) or func_name is needed')
    need(isinstance(kwargs, list), 'kwargs is needed: a list with one dict for each id')
    need(len(ids) > 0, 'at least one instruction is needed')
    n_ids, n_kwargs = len(ids), len(kwargs)
    need(n_ids == n_kwargs, f'as many kwargs as ids are needed, not {n_kwargs} for {n_ids}')

    # 2. each id with its arguments
    found = []
    for rule_id, fields_of_rule in zip(ids, kwargs):
        is_known = isinstance(rule_id, str) and rule_id in RULES
        need(is_known, f'unknown instruction {rule_id!r}; known are {", ".join(RULES)}')
        # a rule without arguments may have null
        fields_of_rule = fields_of_rule or {}
        need(isinstance(fields_of_rule, dict), f'{rule_id} takes a dict, not {fields_of_rule!r}')
        found.append(instruction(rule_id, RULES[rule_id], fields_of_rule))
    return found


def instructions(truth):
    """The Instructions of a truth, and its mode. Raises GaveUp on what is unknown or missing."""
    # 1. a dict, a list of one dict, or the text of either
    fields = loaded(truth)
    if isinstance(fields, list) and len(fields) == 1:
        fields = fields[0]
    fields = loaded(fields, dict)

    # 2. one of the two forms
    if given(fields, 'func_name') is None:
        found = google_instructions(fields)
    else:
        found = tulu_instructions(fields)
    return found, given(fields, 'mode') or 'strict'


# --- the verdict -------------------------------------------------------------------
def loose_variants(text):
    """The texts of which, in IFEval's loose mode, any may follow a rule; no text twice."""
    # without what may only introduce or close the response: its first line, its last line, both
    lines = text.split('\n')
    variants = [text]
    for kept_lines in (lines[1:], lines[:-1], lines[1:-1]):
        variants.append('\n'.join(kept_lines).strip())
    # each also without Markdown's stars
    variants += [variant.replace('*', '') for variant in variants]
    return list(dict.fromkeys(variants))


def follows(text, asked):
    """Whether a text follows an Instruction; a blank text follows none."""
    if not text.strip():
        return False
    result = RULES[asked.rule].function(text, *asked.arguments)
    if asked.relation is None:
        return result
    return asked.relation(result, asked.number)


def ifeval(completion, truth, mode=None, fraction=False):
    """1.0 if all instructions are followed, or the share that is (fraction=True), and the verdicts.

    mode: 'strict' or 'loose' (see loose_variants); None leaves it to the truth. Raises GaveUp on a
    truth that cannot be read and on a completion of more than MAX_TEXT characters.
    """
    # 1. what is asked
    asked, mode_of_truth = instructions(truth)

    # 2. the text, or in loose mode its variants
    text = after_thinking(completion)
    need(len(text) <= MAX_TEXT, 'text too long')
    is_loose = (mode or mode_of_truth) == 'loose'
    texts = loose_variants(text) if is_loose else [text]

    # 3. each instruction by itself
    verdicts = []
    for wanted in asked:
        verdicts.append(any(follows(variant, wanted) for variant in texts))

    # 4. the reward, and the verdicts in words
    words = []
    for wanted, is_followed in zip(asked, verdicts):
        words.append(f'{wanted.rule} {"yes" if is_followed else "no"}')
    share = sum(verdicts) / len(verdicts)
    reward = share if fraction else float(all(verdicts))
    return reward, ', '.join(words)
