"""The 25 rules of IFEval (Zhou et al. 2023, arXiv 2311.07911), by linear scans, and TULU 3's form of them."""
import json
import operator
import re
import unicodedata
from collections import Counter

from rewards.answers import after_thinking, loaded, need

MAX_TEXT = 50000  # characters after any thinking; of longer ones the slowest rule would take over 50 ms

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
    'punctuation:no_comma': ('', lambda text: ',' not in text),
    # not IFEval's but TULU 3's
    'length_constraints:divided': ('== N', lambda text: len(filled(text, r'\* \* \*'))),
    'detectable_format:choice': ('options', lambda text, options: any(
        re.search(rf'(?<!\w){re.escape(str(x))}(?!\w)', text) for x in (options if isinstance(options, list)
        else re.split(r'\s*(?:[,/;\n]|\bor\b)\s*', options.strip('()[] '))) if x))}
RELATIONS = {'less than': operator.lt, 'at least': operator.ge, '>=': operator.ge, '==': operator.eq,
             'at most': operator.le, 'around': lambda n, goal: abs(n - goal) <= max(1, round(goal / 10))}
# func_name of TULU 3's RLVR rows (open-instruct, if_functions.py): our rule, what a row calls its arguments
TULU = {name: (rule, wanted) for text in '''
verify_keywords existence keyword_list, validate_forbidden_words forbidden_words forbidden_words,
verify_keyword_frequency frequency == N word, verify_letter_frequency letter_frequency == N letter,
validate_response_language response_language language, verify_paragraph_count divided == N,
validate_word_constraint number_words quantifier N,
verify_sentence_constraint number_sentences quantifier N,
validate_paragraphs nth_paragraph_first_word first_word N i,
verify_postscript postscript postscript_marker, validate_placeholders number_placeholders >= N,
verify_bullet_points number_bullet_lists == N, validate_title title, validate_choice choice options,
validate_json_format json_format, validate_quotation quotation,
validate_highlighted_sections number_highlighted_sections >= N, validate_two_responses two_responses,
validate_sections multiple_sections >= N section_splitter,
validate_repeat_prompt repeat_prompt original_prompt, validate_uppercase english_capital,
validate_lowercase english_lowercase, validate_end end_checker end_phrase,
validate_frequency_capital_words capital_word_frequency quantifier N,
validate_no_commas no_comma'''.split(',')
        for name, last, *wanted in [text.split()] for rule in RULES if rule.split(':')[1] == last}

def instructions(truth):
    """[(id, [relation and number,] arguments)], mode of a truth. Raises GaveUp on what is unknown."""
    truth = loaded(truth)
    truth = loaded(truth[0] if isinstance(truth, list) and len(truth) == 1 else truth, dict)
    ids, found = truth.get('instruction_id_list') or truth.get('instruction_id'), []
    if 'func_name' in truth:
        need(truth['func_name'] in TULU, f'unknown func_name {truth["func_name"]!r}')
        asked = [(*TULU[truth['func_name']], truth)]
    else:
        need(ids and len(ids) == len(truth.get('kwargs') or []), 'as many kwargs as ids are needed')
        need({*ids} <= {*RULES}, f'unknown instruction in {ids}')
        asked = [(name, RULES[name][0].split(), given or {}) for name, given in zip(ids, truth['kwargs'])]
    for name, wanted, given in asked:
        values = [RELATIONS.get(key) or given.get(key) for key in wanted]
        values = [RELATIONS.get(x) if key == 'quantifier' or 'relation' in key else x
                  for key, x in zip(wanted, values)]
        known = wanted != ['language'] or values[0] in {**LANGUAGES, **SCRIPTS}
        known &= all(isinstance(x, list) for key, x in zip(wanted, values)  # a text: each letter
                     if key in ('keywords', 'keyword_list', 'forbidden_words'))
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
    need(len(texts[0]) <= MAX_TEXT, 'text too long')
    if (mode or given) == 'loose':
        lines = texts[0].split('\n')
        texts += ['\n'.join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
        texts += [text.replace('*', '') for text in texts]
    texts = list(dict.fromkeys(texts))
    done = [any(text.strip() and follows(text, *rule) for text in texts) for rule in rules]
    said = ', '.join(f'{name} {"yes" if ok else "no"}' for (name, _), ok in zip(rules, done))
    return (sum(done) / len(done) if fraction else float(all(done))), said
