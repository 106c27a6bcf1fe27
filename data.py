"""All that touches text and tokens: render the chat template, mask, pack, iterate with a cursor.
What is trained is found by position in ONE tokenisation of the rendered row, decoded and compared with the
content; a row not shown to be right is dropped and counted. Nothing is masked by token id: pad may be EOS."""
import bisect
import datetime
import functools
import hashlib
import itertools
import re
import unicodedata

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

import verify
from rewards.answers import THINKING_MARKS
from configurator import RANK, UserError

SPECIALS = ['<|pad|>', '<|endoftext|>', '<|system|>', '<|user|>', '<|assistant|>', '<|end|>']
TEMPLATE = ("{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
ROLES = {**dict.fromkeys(('assistant', 'gpt', 'chatgpt', 'bing', 'bard'), 'assistant'), 'system': 'system',
         'user': 'user', 'human': 'user', 'tool': 'tool', 'observation': 'tool', 'function_response': 'tool'}
PAIRS = ('instruction+output instruction+response prompt+completion prompt+demonstration prompt+target '
         'prompt+response prompt+generation INSTRUCTION+RESPONSE question+response query+response '
         'question+answer problem+solution').split()  # columns that ask and reply; a row's first pair counts
BEGIN, END = '\ufdd0', '\ufdd1'  # noncharacters of Unicode, around a special token that somebody spelled out

class Drop(UserError):
    """Why a row is left out; counted in the report."""

def bare(text):
    """Without whitespace and in one Unicode form, which templates and tokenizers may change."""
    return ''.join(unicodedata.normalize('NFC', text).split())

def load_tokenizer(name, chat_template=''):
    """Of a hub id or folder; byte_tokenizer for 'tiny', 'random:...'. A Jinja file can set the template."""
    try:
        made = name == 'tiny' or name.startswith('random:')
        tokenizer = byte_tokenizer() if made else AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if chat_template:
            tokenizer.chat_template = open(chat_template, encoding='utf-8').read()
        if asks_for_date(tokenizer) and RANK == 0:
            print(f"the chat template asks for today's date: it is always told {fixed_date('%d %b %Y')}")
        return tokenizer
    except Exception as error:  # hub, network, file and format errors have no common class
        message = f'no tokenizer from {name!r} with --chat_template={chat_template!r}: {error}'
        raise UserError(' '.join(message.split())) from error

def byte_tokenizer():
    """A token for every byte and six special ones, made in memory: 262 tokens, any text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=TEMPLATE, eos_token='<|end|>', pad_token='<|pad|>',
        additional_special_tokens=SPECIALS, clean_up_tokenization_spaces=False)

def encode(tokenizer, texts):
    """[(ids, offsets)] of texts whose special tokens are control."""
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return list(zip(encoded['input_ids'], encoded['offset_mapping']))

@functools.lru_cache(8)
def specials(tokenizer):
    """Pattern of the special tokens' spellings."""
    names = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return '|'.join(sorted(names, key=len, reverse=True)) or '(?!)'

def mark(tokenizer, text):
    """The text with what spells a special token between BEGIN and END: else a user's '<|im_end|>' would be
    control and end the turn. Raises Drop if this tokenizer cannot encode it as text."""
    marked = re.sub(specials(tokenizer), BEGIN + r'\g<0>' + END, text)
    if marked != text and not keeps_text(tokenizer):
        raise Drop('special token in text')
    return marked

def unmarked(text):
    return text.replace(BEGIN, '').replace(END, '')

def encode_marked(tokenizer, marked):
    """(text, ids, offsets): what is marked is text, special tokens elsewhere are control."""
    parts, text, ids, offsets = [], '', [], []  # parts: (is it control, text)
    for i, part in enumerate(re.split(f'{BEGIN}(.*?){END}', marked, flags=re.S)):  # odd ones are marked
        parts += [(False, part)] if i % 2 else [
            (j % 2 > 0, x) for j, x in enumerate(re.split(f'({specials(tokenizer)})', part))]
    for control, group in itertools.groupby(parts, lambda part: part[0]):
        pieces = [x for _, x in group]
        for piece in pieces if control else [''.join(pieces)]:
            encoded = tokenizer(piece, add_special_tokens=False, verbose=False, return_offsets_mapping=True,
                                split_special_tokens=not control)
            ids += encoded['input_ids']
            offsets += [(a + len(text), b + len(text)) for a, b in encoded['offset_mapping']]
            text += piece
    return text, ids, offsets

@functools.lru_cache(8)
def keeps_text(tokenizer):
    """Whether encode_marked gives the tokenizer's ids where nothing is marked, no control where all is."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    text = ' a b\n'.join(['', *names, ''])  # white space, which some tokens eat
    marked = encode_marked(tokenizer, re.sub(specials(tokenizer), BEGIN + r'\g<0>' + END, text))
    return (encode_marked(tokenizer, text) == (text, *encode(tokenizer, [text])[0]) and marked[0] == text
            and not {*marked[1]} & {*tokenizer.convert_tokens_to_ids(names)})

def asks_for_date(tokenizer):
    template = tokenizer.chat_template
    if isinstance(template, dict):  # of several only this one is used
        template = template.get('default')
    return 'strftime_now' in str(template)

def fixed_date(format):
    """What a chat template is told when it asks for today's date: always the same day, the one that Llama 3's
    template has for want of a date. Token ids, and so a resumed run, must not depend on the day."""
    return datetime.date(2024, 7, 26).strftime(format)

def render(tokenizer, messages, prompt=False):
    """The conversation as the template writes it, what spells a special token marked; prompt=True adds what
    opens the assistant's turn."""
    if not tokenizer.chat_template:
        raise UserError('the tokenizer has no chat template: name a Jinja file with --chat_template=FILE')
    messages = [{**m, 'content': mark(tokenizer, m['content'])} for m in messages]
    try:
        if asks_for_date(tokenizer):
            # transformers keeps compiled templates. The function cannot be passed as a variable: since 5.24
            # a template gets plain data alone.
            compiled = chat_template_utils._compile_jinja_template(tokenizer.get_chat_template())
            compiled.globals['strftime_now'] = fixed_date
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a template is somebody's program and may raise anything
        raise Drop(' '.join(f'the chat template refuses: {error}'.split())) from error

@functools.lru_cache(8)
def special_ids(tokenizer):
    """Ids of the special tokens that mark a model's thinking, and ids of all other special tokens."""
    marks = {*THINKING_MARKS, *THINKING_MARKS.values()}
    special = {i: token for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    thinking = frozenset(i for i, token in special.items() if token.content.strip() in marks)
    return thinking, frozenset(special) - thinking

def completion_text(tokenizer, ids):
    """What a verifier reads of a completion: the text without special tokens, but with those that mark
    thinking (<think>), so that thoughts are not taken for the answer."""
    thinking, others = special_ids(tokenizer)
    if thinking.isdisjoint(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)
    return tokenizer.decode([i for i in ids if i not in others], skip_special_tokens=False)

def stop_ids(tokenizer):
    """Sorted ids that end a generation: EOS, and what ends an assistant's turn in the template."""
    if tokenizer.eos_token_id is None:
        raise UserError('the tokenizer has no EOS token')
    turn = [{'role': 'user', 'content': 'ask'}, {'role': 'assistant', 'content': 'reply'}]
    _, found, after = (render(tokenizer, turn) if tokenizer.chat_template else '').rpartition('reply')
    first = tokenizer(after.strip() if found else '', add_special_tokens=False)['input_ids'][:1]
    return sorted({tokenizer.eos_token_id} | set(first) & set(tokenizer.added_tokens_decoder))

def turns(value, role):
    """A text (a turn of that role) or messages in any spelling -> [{'role', 'content'}]. Raises Drop."""
    messages = []
    try:
        for m in [{'role': role, 'content': value}] if isinstance(value, str) else value:
            parts = None if m.get('tool_calls') else m.get('content', m.get('value'))
            text = parts if isinstance(parts, str) else ''.join(part['text'] for part in parts)
            thought = m.get('reasoning_content') or m.get('thinking')
            text = f'<think>\n{thought}\n</think>\n\n{text}' if thought else text
            messages.append({'role': ROLES[m.get('role', m.get('from'))], 'content': text})
    except (AttributeError, KeyError, TypeError) as error:
        raise Drop('a message without text, of unknown role or with a tool call') from error
    if any(re.search(f'[\ud800-\udfff{BEGIN}{END}]', m['content']) for m in messages):
        raise Drop('not valid unicode')  # JSON can spell half a surrogate pair
    return messages

def conversation(row):
    """A row's messages, and the index from which on assistant turns are trained (None: a document)."""
    asked, replied = [], row['messages'] if row.get('messages') is not None else row.get('conversations')
    pair = next((pair.split('+') for pair in PAIRS if {*pair.split('+')} <= {*row}), None)
    if row.get('tools') or row.get('chat_template_kwargs'):
        raise Drop('tools and chat_template_kwargs are not supported')
    if replied is None and pair:
        asked, replied = row[pair[0]], row[pair[1]]
        asked = f'{asked}\n\n{row["input"]}' if pair[0] == 'instruction' and row.get('input') else asked
    elif replied is None and 'text' in row:
        return turns(row['text'], 'user'), None
    elif replied is None:
        raise UserError(f'{row["_where"]}: no known shape in the keys {", ".join(row)}; known are messages, '
                        f'conversations, text, {", ".join(PAIRS)}')
    asked, replied = turns(asked, 'user'), turns(replied, 'assistant')
    system = row.get('system') or row.get('system_prompt')
    if system and 'system' not in [m['role'] for m in asked + replied]:
        asked = turns(system, 'system') + asked
    return asked + replied, len(asked)

def build(rows, tokenizer, prepare, finish):
    """[finish(row, more, (text, ids, offsets), ...)], more, *texts = prepare(row), and their report:
    rows, kept, dropped {reason: [count, where]}, spelled (where a special token is text, perhaps a
    conversation rendered already), tokens, supervised, p50 to max. UserError: none kept."""
    kept, dropped, spelled = [], {}, []
    def attempt(step, row, *args):
        try:
            return [step(row, *args)]
        except (Drop, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            if not isinstance(error, Drop) and step is not prepare:
                raise  # only prepare reads what a row holds
            reason = str(error) if isinstance(error, Drop) else f'malformed ({type(error).__name__})'
            dropped.setdefault(reason, [0, row['_where']])[0] += 1
            return []
    for i in tqdm(range(0, len(rows), 1000), 'tokenise', delay=3, disable=RANK > 0 or None):
        ready = [(row, *x) for row in rows[i:i + 1000] for x in attempt(prepare, row)]
        texts = [text for _, _, *texts in ready for text in texts]
        encoded = texts and encode(tokenizer, [unmarked(text) for text in texts])
        each = (encode_marked(tokenizer, text) if BEGIN in text else (text, *plain)
                for text, plain in zip(texts, encoded))
        for row, more, *texts in ready:
            spelled += [row['_where']] * any(BEGIN in text for text in texts)
            kept += attempt(finish, row, more, *itertools.islice(each, len(texts)))
    if not kept:
        reason, (n, where) = max(dropped.items(), key=lambda item: item[1][0], default=('none', (0, '')))
        raise UserError(f'all {len(rows)} rows were dropped, {n} of them (first {where}) for: {reason}')
    lengths = sorted(len(x['ids']) for x in kept)
    quantiles = {f'p{q}': lengths[(len(lengths) - 1) * q // 100] for q in (50, 90, 99)}
    return kept, {'rows': len(rows), 'kept': len(kept), 'dropped': dropped, 'spelled': spelled,
                  'max': lengths[-1], **quantiles, 'tokens': sum(lengths),
                  'supervised': int(sum(np.sum(x.get('mask', 0)) for x in kept))}

def trained(replies, tokenizer, stops, text, ids, offsets):
    """bool (T,): True from where each reply, (text before it, content), begins through its end-of-turn token.
    Raises Drop where the last one cannot be shown to be there; earlier ones are then not trained."""
    mask, ends = np.zeros(len(ids), bool), [end for _, end in offsets]
    for i, (prompt, content) in enumerate((unmarked(prompt), content) for prompt, content in replies):
        a = bisect.bisect_right(ends, len(prompt))
        b = next((j for j in range(a, len(ids)) if ids[j] in stops), None)  # no content holds one
        said, want = bare(tokenizer.decode(ids[a:b], clean_up_tokenization_spaces=False)), bare(content)
        block = re.match(r'(<(\w+)></\2>)?', said)[0]  # an empty think block: the model's to say
        opened = said and want.endswith(said) and (bare(prompt) + said).endswith(want)  # by the prompt
        if b and text.startswith(prompt) and (opened or said == block + want):
            mask[a:b + 1] = True
        elif i == len(replies) - 1:  # earlier turns, cut by templates, are not trained
            raise Drop('the chat template rewrites the content' if b else 'no end-of-turn token after it')
    return mask

def fit(ids, mask, max_length, overlong):
    """ids and mask within max_length tokens, as `overlong` says: 'drop' or 'cut'. Raises Drop."""
    if len(ids) > max_length and overlong != 'cut':
        raise Drop(f'longer than max_length={max_length} tokens')
    mask[0] = False  # nothing predicts the first token
    if not mask[:max_length].any():
        raise Drop('nothing left to train on')
    return np.int32(ids[:max_length]), mask[:max_length]

def sft_examples(rows, tokenizer, max_length, overlong='drop'):
    """Rows of any shape -> [{'ids': int32 (T,), 'mask': bool (T,), True if trained, 'where'}], report.
    Trained: assistant turns from the generation prompt through the end-of-turn token; a document and its EOS.
    Rows over max_length tokens are dropped, or with overlong='cut' cut, and no end is invented."""
    stops, bos = stop_ids(tokenizer), tokenizer('a')['input_ids'][:1]
    bos = bos if bos == [tokenizer.bos_token_id] else []  # for documents; a template writes its own
    def prepare(row):
        messages, first = conversation(row)
        if first is None:
            return None, mark(tokenizer, messages[0]['content'])
        replies = [(render(tokenizer, messages[:i], True), m['content']) for i, m in enumerate(messages)
                   if i >= max(first, 1) and m['role'] == 'assistant' and m['content'].strip()]
        if not replies:
            raise Drop('no assistant turn to train on')
        return replies, render(tokenizer, messages)
    def finish(row, replies, encoded):
        if replies:
            ids, mask = encoded[1], trained(replies, tokenizer, stops, *encoded)
        else:  # a document is whole: it ends
            ids = bos + encoded[1] + [tokenizer.eos_token_id]
            mask = np.ones(len(ids), bool)
        ids, mask = fit(ids, mask, max_length, overlong)
        return {'ids': ids, 'mask': mask, 'where': row['_where']}
    return build(rows, tokenizer, prepare, finish)

def sides(row):
    """A preference row's two conversations, chosen and rejected, each ending in the turn that is compared."""
    names = next((pair for pair in (('chosen', 'rejected'), ('chosen_response', 'rejected_response'))
                  if {*pair} <= {*row}), None)
    if not names:
        raise UserError(f'{row["_where"]}: no chosen and rejected in the keys {", ".join(row)}')
    asked = next((row[key] for key in ('prompt', 'messages', 'question', 'instruction') if row.get(key)), [])
    asked, both = turns(asked, 'user'), []
    system = turns(row.get('system') or [], 'system')
    for value in (row[name] for name in names):
        value = [value] if isinstance(value, dict) else value
        if isinstance(value, str) and not asked:  # Anthropic's: paragraphs 'Human: ...' and 'Assistant: ...'
            said = iter(re.split(r'(?:^|\n\n)(Human|Assistant):', value)[1:])
            value = [{'role': who.lower(), 'content': text.strip()} for who, text in zip(said, said)]
        messages = turns(value, 'assistant')
        if messages[:1] and messages[0]['role'] == 'assistant':  # only what is new
            messages = asked + messages
        both.append(messages if 'system' in [m['role'] for m in messages] else system + messages)
    return both

def preference_pairs(rows, tokenizer, max_length, overlong='drop'):
    """Rows with a chosen and a rejected side -> pairs, report. A pair: 'docs', for both sides what collate
    takes, (ids, mask, prompt ids): the prompt is the longest common prefix, trained is the final turn alone;
    'ids' and 'mask' (T,): prompt, chosen and rejected end to end; 'where'. max_length is of the prompt and
    one side; a longer pair is dropped or, with overlong='cut', cut."""
    stops = stop_ids(tokenizer)
    def prepare(row):
        both = sides(row)
        if not all(m and m[-1]['role'] == 'assistant' and m[-1]['content'].strip() for m in both):
            raise Drop('a side without a final assistant turn')
        if both[0] == both[1]:
            raise Drop('both sides are the same')
        common = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*(m[:-1] for m in both))))
        if 'user' not in [m['role'] for m, _ in common]:
            raise Drop('no common prompt')
        replies = [(render(tokenizer, m[:-1], True), m[-1]['content']) for m in both]
        return replies, *(render(tokenizer, m) for m in both)
    def finish(row, replies, *encoded):
        chosen, rejected = [fit(x[1], trained([reply], tokenizer, stops, *x), max_length, overlong)
                            for reply, x in zip(replies, encoded)]
        n = min(chosen[1].argmax(), rejected[1].argmax())  # before what is trained
        n = next((i for i in range(n) if chosen[0][i] != rejected[0][i]), n)
        prompt = chosen[0][:n]
        ids, masks = zip((prompt, chosen[1][:n]), *((ids[n:], mask[n:]) for ids, mask in (chosen, rejected)))
        return {'docs': [(ids[i], masks[i], prompt) for i in (1, 2)], 'where': row['_where'],
                'ids': np.concatenate(ids), 'mask': np.concatenate(masks)}
    return build(rows, tokenizer, prepare, finish)

def format_report(report):
    """The report as short lines for the console."""
    line = '{kept:,}/{rows:,} rows, {tokens:,} tokens ({supervised:,} trained), p50 {p50} p90 {p90} max {max}'
    drops = [f'dropped {n:,}: {reason} (first {where})' for reason, (n, where) in report['dropped'].items()]
    if report['spelled']:
        first = report['spelled'][0]
        drops.append(f'{len(report["spelled"]):,} spell out special tokens, taken as text (first {first})')
    return '\n  '.join([line.format(**report), *drops])

def show_mask(example, tokenizer):
    """The decoded row, trained stretches in [[ ]]."""
    parts = np.split(example['ids'], np.flatnonzero(np.diff(example['mask'], prepend=False)))
    return ''.join(f'[[{text}]]' if i % 2 else text for i, text in enumerate(map(tokenizer.decode, parts)))

def level_of(value):
    """A row's difficulty as an int, a text, or None where it says nothing: NaN, an empty text, a list.

    A whole number is one level however it is written (3, 3.0, '3'): in the log it has one name."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, (float, np.floating)) and np.isfinite(value):
        return int(value) if value == int(value) else str(value)
    if isinstance(value, str):
        text = ' '.join(value.split())
        if re.fullmatch(r'[-+]?[0-9]{1,15}(\.0*)?', text):
            return int(float(text))
        # JSON can spell half a surrogate pair, which could not be printed
        return text.encode('utf-8', 'replace').decode() or None
    return None

def levels(difficulties):
    """The distinct difficulties, as level_of makes them: numbers by their size, then texts, without None."""
    def place(level):
        if isinstance(level, int):
            return 0, level, ''
        try:
            number = float(level)
        except ValueError:
            number = np.nan
        return (0, number, str(level)) if np.isfinite(number) else (1, 0, str(level))
    return sorted({x for x in difficulties if level_of(x) is not None}, key=place)

def rl_prompts(rows, tokenizer, max_prompt_tokens, kind='', instruction=''):
    """Rows with an answer -> prompts, report. A prompt: 'ids' list (opens the assistant's turn), 'truth' str,
    'kind' of verifier (argument, else the row's dataset, else its shape), 'demonstration' str or None,
    'difficulty', 'messages', their last one's 'text', 'where'. UserError: unreadable truth, no kind."""
    def prepare(row):
        of, answer, solution, demos = row.get, row.get('answer'), row.get('solution'), row.get('demos') or ()
        gsm8k, math = 'question' in row and '####' in str(answer), 'problem' in row
        shown = of('demonstration') or of('target') or gsm8k and answer or math and solution
        shown = shown or next((demo for demo, right in zip(demos, of('demos_corr') or demos) if right), None)
        box = verify.boxed(str(solution)) or re.search(r'\\boxed ([^$ ]+)|$', str(solution))[1]
        answer = answer.rpartition('####')[2].replace(',', '').strip() if gsm8k else answer
        truths = row.get('ground_truth'), (row.get('reward_model') or {}).get('ground_truth'), answer, box
        truth = next((t for t in (*truths, None if math else solution) if t not in (None, '')), None)
        name = row.get('dataset') or row.get('data_source') or ('gsm8k' if gsm8k else 'math' if math else '')
        name = name[0] if isinstance(name, list) and len(name) == 1 else name
        try:
            sort = kind or verify.kind_of(name)
            text = verify.read_truth(sort, truth)
        except ValueError as error:
            raise UserError(f'{row["_where"]}: {error} (keys: {", ".join(row)}; it can be in ground_truth, '
                            'reward_model, answer or solution; --verifier sets the kind)') from error
        difficulty = level_of(row.get('difficulty'))
        difficulty = level_of(row.get('level')) if difficulty is None else difficulty
        messages = turns(of('messages') or of('prompt') or of('question') or of('problem'), 'user')
        messages = messages[:-1] if messages[-1]['role'] == 'assistant' else messages
        if not messages or messages[-1]['role'] != 'user':
            raise Drop('the prompt does not end with a user turn')
        messages[-1]['content'] += f'\n\n{instruction}' if instruction else ''
        return {
            'truth': text, 'kind': sort, 'text': messages[-1]['content'], 'where': row['_where'],
            'demonstration': turns(shown, 'assistant')[-1]['content'] if shown else None,
            'difficulty': difficulty,
            'messages': messages}, render(tokenizer, messages, prompt=True)
    def finish(row, prompt, encoded):
        if len(encoded[1]) > max_prompt_tokens:
            raise Drop(f'longer than max_prompt_tokens={max_prompt_tokens}')
        return {'ids': encoded[1], **prompt}
    return build(rows, tokenizer, prepare, finish)

def pack(lengths, budget):
    """Best-fit decreasing: lists of indices, each of total <= budget; a longer row is alone."""
    bins, rooms = {}, []  # rooms: sorted (tokens left, bin)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        j = bisect.bisect_left(rooms, (lengths[i], 0))
        room, b = rooms.pop(j) if j < len(rooms) else (budget, len(bins))
        bins.setdefault(b, []).append(i)
        bisect.insort(rooms, (room - lengths[i], b))
    return list(bins.values())

def split_by_work(lengths, n):
    """n lists of indices (or empty), near-equal in total length: longest first, to the least loaded."""
    parts, loads = [[] for _ in range(n)], [0] * n
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        least = loads.index(min(loads))
        parts[least].append(i)
        loads[least] += lengths[i]
    return parts

def plan_micro_batches(sequences, micro_batch_tokens, rank, world_size):
    """This rank's micro-batches of these sequences, each a list of them, none over micro_batch_tokens.

    A sequence has prompt_ids and ids. Neighbours whose prompt_ids are the same list share the prompt:
    it is computed once for as many of them as fit a part. A part is what is never taken apart: it is
    small enough for a micro-batch, and for shares of equal work. A sequence that is longer than a
    micro-batch is alone in one.
    """
    total = sum(len(sequence.prompt_ids) + len(sequence.ids) for sequence in sequences)
    room = min(micro_batch_tokens, total / (2 * world_size))
    parts = []  # lists of sequences of one prompt
    sizes = []  # tokens of each part, its prompt counted once
    prompt_ids = None  # of the last part
    for sequence in sequences:
        same_prompt = sequence.prompt_ids is prompt_ids
        if not same_prompt or sizes[-1] + len(sequence.ids) > room:
            prompt_ids = sequence.prompt_ids
            parts.append([])
            sizes.append(len(prompt_ids))
        parts[-1].append(sequence)
        sizes[-1] += len(sequence.ids)

    # each rank makes the same plan and takes its share of the parts
    mine = split_by_work(sizes, world_size)[rank]
    micro_batches = []
    for members in pack([sizes[i] for i in mine], micro_batch_tokens):
        micro_batches.append([sequence for i in members for sequence in parts[mine[i]]])
    # a rank without work gets one empty micro-batch: it must still take part in the all-reduce
    return micro_batches or [[]]

def collate(docs):
    """[(ids, mask)] or [(ids, mask, prompt ids)] -> 'ids' (T,) segments end to end, their 'lengths' and
    'parents' (model.Documents; a prompt that several name, the same list, is there once), 'index' (N,) of the
    scored tokens (mask True, never a document's first), 'doc' (N,) of each. No docs: two tokens, none scored,
    as a rank without work must still take part in the all-reduce."""
    segments, prompts = [], {}  # (ids, mask, parent, doc); where each prompt is
    for i, (ids, mask, *prompt) in enumerate(docs or [([0, 0], [False, False])]):
        for ask in prompt:
            if prompts.setdefault(id(ask), len(segments)) == len(segments):
                segments.append((ask, [False] * len(ask), -1, i))
        segments.append((ids, mask if prompt else [False, *mask[1:]], prompts[id(ask)] if prompt else -1, i))
    ids, masks, parents, owners = zip(*segments)
    ids, mask = (torch.cat([torch.as_tensor(x) for x in column]) for column in (ids, masks))
    lengths = torch.tensor([len(x) for x in masks])
    return {'ids': ids.long(), 'lengths': lengths.tolist(), 'parents': list(parents),
            'index': mask.nonzero()[:, 0], 'doc': torch.tensor(owners).repeat_interleave(lengths)[mask]}

def random_stream(*key):
    """A stream of random numbers of its own for every key (ints of any size, texts, tuples of them).

    The key is hashed to the 128 bits that Philox takes, so that no two keys share a stream or a part of one.
    (torch's CPU generator keeps 32 bits of its seed: many seeds would share theirs.) RandomState is numpy's
    older interface, whose numbers never change: a run can be resumed under another numpy."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], 'little'))
    return np.random.RandomState(philox)

@functools.lru_cache(256)
def shuffled(n, *key):
    """A permutation of range(n) that the key decides."""
    return random_stream('order', *key).permutation(n)

class Order:
    """Endless shuffled row indices of sources [(weight, indices)]; position (rows handed out) is its state.
    A source is dealt out pass by pass, each freshly shuffled; an epoch mixes the next weight * len(indices)
    of every source: weight 0.5 gives one half, then the other; 2 gives all twice. len: rows per epoch."""
    def __init__(self, sources, seed):
        self.sources = [(rows, max(1, round(weight * len(rows)))) for weight, rows in sources if len(rows)]
        self.seed, self.position = seed, 0
    def __len__(self):
        return sum(count for _, count in self.sources)

    def take(self, n):
        taken = []
        for position in range(self.position, self.position + n):
            epoch, at = divmod(position, len(self))
            slot, source = shuffled(len(self), self.seed, epoch)[at], 0
            while slot >= self.sources[source][1]:
                slot, source = slot - self.sources[source][1], source + 1
            rows, count = self.sources[source]
            turn, at = divmod(epoch * count + slot, len(rows))
            taken.append(rows[shuffled(len(rows), self.seed, source, turn)[at]])
        self.position += n
        return taken
