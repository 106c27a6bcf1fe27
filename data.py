"""Text to tokens: render a conversation, find what is trained, tokenise, mask, pack, deal out.

How a row becomes a training example (sft_examples):

    1. rows.py reads the row's columns into messages.
    2. `Chat.render` writes the conversation with the tokenizer's chat template.
    3. `lay_out` finds each reply in that text. A reply begins right after the prompt that a rollout
       would be given, and ends with the end-of-turn token. It must say what the message says.
    4. The text is cut at these borders into pieces, and `Chat.encode` tokenises every piece on its
       own (with a few tokenizers whole, and then cut, or the row is dropped). So the tokens of
       prompt and reply never merge, and a prompt of rl_prompts has the same ids.
    5. `mask_of` marks the tokens of the replies: these are trained.

A row for which a step cannot be shown to be right is dropped, and counted with the reason. Nothing
is masked by token id, because the pad token may be the end-of-turn token.
"""
import bisect
import functools
import hashlib
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import verify
from chat import BEGIN, CLOSE, OPEN, Chat, bare, content_with_thoughts, thoughts_and_words
# for those who import data.py: what they need of a tokenizer
from chat import SPECIALS, TEMPLATE, byte_tokenizer, render  # noqa: F401
from chat import completion_text, load_tokenizer, stop_ids  # noqa: F401
from configurator import RANK, UserError
from rewards.answers import THINKING_MARKS
from rewards.sandbox import read_languages, with_language
from rows import Drop, example_of, pair_of, prompt_of

# --- what is trained ----------------------------------------------------------
# why a row is dropped, with what to do about it
NO_END = ('the chat template writes no end-of-turn token after the reply: take another one, '
          '--chat_template=FILE')
REWRITES = ('the chat template rewrites the content of the reply: take another one, '
            '--chat_template=FILE')
THOUGHTS_NEEDED = (
    'the chat template opens thoughts in the prompt and the reply has none: take rows with '
    'thoughts (<think>...</think> or reasoning_content), or a training template, '
    '--chat_template=FILE (config/ has qwen3_training.jinja, r1_training.jinja)')
THOUGHTS_LOST = (
    'the chat template leaves out the thoughts of the reply: take a training template that keeps '
    'them, --chat_template=FILE (config/ has qwen3_training.jinja, r1_training.jinja)')
THOUGHTS_CLOSED = (
    'the chat template closes the thoughts in the prompt and the reply has some: take rows without '
    'thoughts, or a training template, --chat_template=FILE')
# what the report notes of rows that are kept
NOT_TRAINED = ('assistant turns are not trained: the chat template cuts their thoughts, or writes '
               'them in another way than a prompt')
NO_SYSTEM = 'system messages are not rendered by the chat template'
SPELLED_OUT = 'spell out special tokens, taken as text'


class Span(NamedTuple):
    """A part of a text: text[begin:end]."""
    begin: int
    end: int


class Piece(NamedTuple):
    """A part of a conversation that is tokenised on its own."""
    text: str  # as Chat.render writes it
    is_trained: bool


@dataclass
class Layout:
    """A conversation, cut into pieces."""
    text: str  # as Chat.render writes it
    pieces: list  # Pieces: before a reply, the reply, before the next reply, ..., the rest
    n_untrained: int = 0  # replies that the row wants trained and that are not


def lay_out(chat, messages, trained):
    """Where the replies stand in the rendered conversation -> Layout. Raises Drop.

    trained: indices of the assistant turns to train. The last of them must be shown to be right.
    Earlier ones that are not stay in the text and are not trained: many templates cut the thoughts
    from them.
    """
    last = trained[-1]
    protected = chat.protected(messages)
    prompt = chat.call_template(protected[:last], prompt=True)
    # one rendering shows where all earlier replies are, however many there are
    replies = findable_replies(chat, protected[:last])
    text, places = render_with_marks(chat, protected, replies)
    if replies and not text.startswith(prompt):
        # the template looks at the words, and wrote others because of the marks
        text, places = chat.call_template(protected), []
    # 1. the last reply goes on from the prompt that a rollout would have
    if text.startswith(prompt):
        span = last_span(chat, content_with_thoughts(protected[last]), text, prompt)
        earlier = earlier_spans(chat, protected, replies, places, text)
    # a few templates write a conversation in another way than a prompt: what counts is the prompt
    else:
        text, span = behind_prompt(chat, protected, last, text, prompt)
        earlier = {}
    # 2. of the earlier replies those are trained that the row wants trained and that were found
    spans = {**earlier, last: span}
    found = [i for i in trained if i in spans]
    pieces = pieces_of(text, spans, found)
    return Layout(text, pieces, n_untrained=len(trained) - len(found))


def lay_out_prompt(chat, messages):
    """The same for a prompt, in which nothing is trained; cut like a row that has it."""
    protected = chat.protected(messages)
    text = chat.call_template(protected, prompt=True)
    spans = {}
    replies = findable_replies(chat, protected)
    # the usual prompt is one turn
    if replies:
        text_of_marked, places = render_with_marks(chat, protected, replies, prompt=True)
        if text_of_marked == text:
            spans = earlier_spans(chat, protected, replies, places, text)
    return Layout(text, pieces_of(text, spans, trained=[]))


def pieces_of(text, spans, trained):
    """The text cut at the borders of its replies. spans: {index of a message: Span}, in order."""
    pieces = []
    place = 0  # how far the text is cut
    for i, span in spans.items():
        pieces.append(Piece(text[place:span.begin], False))
        pieces.append(Piece(text[span.begin:span.end], i in trained))
        place = span.end
    pieces.append(Piece(text[place:], False))
    return pieces


def last_span(chat, content, text, prompt):
    """Span of the reply that follows the prompt in the text. Raises Drop."""
    # 1. it begins where the prompt ends, and ends with the first end-of-turn token from there
    begin = len(prompt)
    found = chat.end_pattern.search(text, begin)
    if found is None:
        raise Drop(NO_END)
    # 2. it says what the message says, and may be said there
    if closes_thoughts(prompt) and has_thoughts(content):
        raise Drop(THOUGHTS_CLOSED)
    said = text[begin:found.start()]
    if said.strip() != content.strip():
        check_reply(chat, said, content, prompt)
    return Span(begin, end_of(chat, found, text))


def end_of(chat, found, text):
    """The place behind an end-of-turn token, and behind the white space that some of them take."""
    token = chat.added[chat.core.token_to_id(found[0])]
    place = found.end()
    # Phi's tokens take the white space behind them: there is no token for it
    if token.rstrip:
        while text[place:place + 1].isspace():
            place += 1
    return place


def check_reply(chat, said, content, prompt):
    """Raises Drop if a reply does not say what its message says.

    said: what stands in the conversation between prompt and end of turn. It may differ in white
    space, and in these ways:
        the template puts an empty think block or a channel before it, which the model has to say
        the template completes thoughts whose opening mark is missing
        the prompt has opened the thoughts already
    """
    # as templates may change white space
    said, want = bare(said), bare(content)
    # 1. word for word, or with the opening mark that the row left out
    if said in (want, '<think>' + want):
        return
    # 2. behind what the template puts before a reply without thoughts, which the model has to say
    if not has_thoughts(want):
        block = re.match(r'(<(\w+)></\2>)?', said)[0]
        if said in (block + want, bare(usable_opening(chat)) + want):
            return
    # 3. thoughts and words in the places that the template has for them, which are the same with
    # and without a system message
    form = chat.formats[False]
    if form is not None and has_thoughts(want):
        thoughts, words = thoughts_and_words(content)
        if said == bare(form.before_thoughts + thoughts + form.behind_thoughts + words):
            return
    # 4. without its beginning, which the prompt has written already
    is_end = bool(said) and want.endswith(said)
    if is_end and (bare(prompt) + said).endswith(want):
        return
    raise Drop(why_not(said, want, prompt))


def usable_opening(chat):
    """What the template puts before the words of a last reply; '' if it would close thoughts."""
    form = chat.formats[False]
    if form is None:
        return ''
    opening = form.last_opening
    # a prompt that has opened the thoughts is closed by the template: no model should learn that
    for mark, closing in THINKING_MARKS.items():
        if opening.count(closing) != opening.count(mark):
            return ''
    return opening


def why_not(said, want, prompt):
    """The reason for which a reply is not what its message says, as helpful as it can be."""
    # the remedies are different: other rows, or another template
    opens_thoughts = any(prompt.rstrip().endswith(mark) for mark in THINKING_MARKS)
    if opens_thoughts and not has_thoughts(want):
        return THOUGHTS_NEEDED
    if has_thoughts(want) and not has_thoughts(said):
        return THOUGHTS_LOST
    return REWRITES


def closes_thoughts(prompt):
    """Whether a prompt ends with the end of thoughts: no more of them can follow."""
    return any(prompt.rstrip().endswith(closing) for closing in THINKING_MARKS.values())


def has_thoughts(text):
    """Whether a reply holds thoughts, by their closing mark."""
    return any(closing in text for closing in THINKING_MARKS.values())


def words_of(content):
    """Span of the words of a reply: without thoughts before them and white space around them."""
    # behind the last closing mark of any kind
    begin = 0
    for closing in THINKING_MARKS.values():
        # of several kinds the last one counts
        if closing in content:
            begin = max(begin, content.rindex(closing) + len(closing))
    while content[begin:begin + 1].isspace():
        begin += 1
    return Span(begin, len(content.rstrip()))


def findable_replies(chat, protected):
    """Indices of the assistant turns in a prompt that can be looked for."""
    found = []
    for i, message in enumerate(protected):
        if message['role'] == 'assistant' and has_words(message):
            found.append(i)
    # where a template writes an earlier turn in another way than in a prompt, the model would be
    # trained on a context that it never meets
    form = chat.format_of(protected) if found else None
    return found if form is not None and form.is_stable else []


def has_words(message):
    """Whether a message says something besides thoughts."""
    words = words_of(message['content'])
    return words.begin < words.end


def render_with_marks(chat, protected, indices, prompt=False):
    """The conversation -> text, [Span of the words of each of these messages].

    It is rendered with marks around the words, and the marks are taken out again. A template that
    looks at the words may write another text because of them: the caller has to compare. [] where
    the template loses or repeats a mark.
    """
    # the usual row has one reply, the last
    if not indices:
        return chat.call_template(protected, prompt), []
    # 1. put the marks
    marked = list(protected)
    for i in indices:
        content = protected[i]['content']
        words = words_of(content)
        before, after = content[:words.begin], content[words.end:]
        between = OPEN + content[words.begin:words.end] + CLOSE
        marked[i] = {**protected[i], 'content': before + between + after}
    # 2. cut the text at the marks: between, words, between, words, ..., between
    parts = re.split(f'[{OPEN}{CLOSE}]', chat.call_template(marked, prompt))
    text = ''.join(parts)
    if len(parts) != 2 * len(indices) + 1:
        return text, []
    # 3. add up the lengths
    places = []
    end = 0
    for between, words in zip(parts[0::2], parts[1::2]):
        begin = end + len(between)
        end = begin + len(words)
        places.append(Span(begin, end))
    return text, places


def earlier_spans(chat, protected, replies, places, text):
    """{index: Span} of the replies that can be shown to be right. places: Span of their words."""
    form = chat.format_of(protected)
    # a reply that is not found is passed over: the others may be right
    spans = {}
    last_end = 0  # of the reply before
    for i, words in zip(replies, places):
        # 1. the reply begins behind the nearest header
        header = text.rfind(form.header, last_end, words.begin)
        if header < 0:
            continue
        begin = header + len(form.header)
        # 2. only white space is between its words and its end
        found = chat.end_pattern.search(text, words.end)
        if found is None or text[words.end:found.start()].strip():
            continue
        # 3. it says all that the message says
        said = text[begin:words.end]
        content = content_with_thoughts(protected[i])
        if said.strip() == content.strip() or is_earlier_reply(form, bare(said), bare(content)):
            last_end = end_of(chat, found, text)
            spans[i] = Span(begin, last_end)
    return spans


def is_earlier_reply(form, said, want):
    """Whether an earlier reply says what its message says: the thoughts may have been cut."""
    return said in (want, bare(form.earlier_opening) + want, '<think>' + want)


def behind_prompt(chat, protected, last, text, prompt):
    """The prompt and behind it the last reply -> text, Span. Raises Drop.

    For templates whose conversation does not begin with the prompt. Mistral's puts the system
    message into the last user turn of a prompt, and leaves it out of a conversation that ends with
    a reply.
    """
    # 1. where the turn before and the reply stand
    content = content_with_thoughts(protected[last])
    # what to say if it fails
    reason = why_not('', bare(content), prompt)
    form = chat.format_of(protected)
    if form is None or not has_words(protected[last - 1]) or not has_words(protected[last]):
        raise Drop(reason)
    text_of_marked, places = render_with_marks(chat, protected, [last - 1, last])
    if text_of_marked != text or not places:
        raise Drop(reason)
    asked, words = places
    found = chat.end_pattern.search(text, words.end)
    if found is None:
        raise Drop(NO_END)
    # 2. the reply begins behind its header, which the prompt ends with
    if not prompt.endswith(form.header):
        raise Drop(reason)
    begin = behind_header(text, form.header, asked.end, words.begin)
    if begin is None:
        raise Drop(reason)
    # 3. from there on it is the reply
    check_reply(chat, text[begin:found.start()], content, prompt)
    end = end_of(chat, found, text)
    span = Span(len(prompt), len(prompt) + end - begin)
    return prompt + text[begin:], span


def behind_header(text, header, low, high):
    """The place behind the last header in text[low:high]; None without one.

    A header may open thoughts, '<|im_start|>assistant\\n<think>\\n', that the conversation opens in
    another way or not at all (QwQ). Then the place is behind its own opening mark, if thoughts
    follow.
    """
    place = text.rfind(header, low, high)
    if place >= 0:
        return place + len(header)
    # without the mark that opens thoughts
    for opening, closing in THINKING_MARKS.items():
        if not header.rstrip().endswith(opening):
            continue
        without = header.rstrip().removesuffix(opening)
        place = text.rfind(without, low, high)
        if place < 0 or closing not in text[place:high]:
            return None
        # the prompt has said the mark: the reply must not say it again
        begin = place + len(without)
        return begin + len(opening) if text.startswith(opening, begin) else begin
    return None


def mask_of(pieces_ids, are_trained):
    """The ids of each piece, and whether it is trained -> ids (T,) int32, mask (T,) bool."""
    # int32, because the tokens of all rows stay in memory
    n_tokens = sum(len(piece_ids) for piece_ids in pieces_ids)
    ids = np.fromiter(itertools.chain.from_iterable(pieces_ids), np.int32, n_tokens)
    mask = np.zeros(n_tokens, bool)
    place = 0
    for piece_ids, is_trained in zip(pieces_ids, are_trained):
        if is_trained:
            mask[place:place + len(piece_ids)] = True
        place += len(piece_ids)
    return ids, mask


def fit(ids, mask, max_length, overlong):
    """ids and mask within max_length tokens, as `overlong` says: 'drop' or 'cut'. Raises Drop."""
    if len(ids) > max_length and overlong != 'cut':
        raise Drop(f'longer than max_length={max_length} tokens')
    # nothing predicts the first token
    mask[:1] = False
    # a cut row keeps its beginning, and has no end of turn
    ids, mask = ids[:max_length], mask[:max_length]
    if not mask.any():
        raise Drop('nothing left to train on')
    return ids, mask


# --- rows to examples ---------------------------------------------------------
BATCH = 128  # rows that are tokenised at once
# what Python raises for values of a type that no adapter expects
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def new_report(n_rows):
    """Counts for the console: {reason: [count, first place]} of what is dropped or noted."""
    return {'rows': n_rows, 'kept': 0, 'dropped': {}, 'notes': {}, 'spelled': []}


def count(counts, reason, where, n=1):
    """Counts a reason in {reason: [count, place where it was met first]}."""
    counts.setdefault(reason, [0, where])[0] += n


class ReadRow(NamedTuple):
    """What is known of a row before it is tokenised."""
    where: str  # 'file:line'
    extra: object  # the caller's own
    conversations: list  # each a list of pieces, texts that follow each other; a pair has two
    notes: list  # [(note, count)] for the report


def tokenised(rows, chat, report, read):
    """Yields (where, extra, ids, notes) of each row that can be used.

    read(row) -> extra, conversations, notes, as a ReadRow has them. ids is a list for each
    conversation, with a list of ids for each piece.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = None  # the batch before and its ids, which are on their way
        begins = range(0, len(rows), BATCH)
        for begin in tqdm(begins, 'tokenise', delay=3, disable=RANK > 0 or None):
            batch = read_batch(rows[begin:begin + BATCH], report, read)
            conversations = [pieces for row in batch for pieces in row.conversations]
            # the tokenizer needs no Python: while it works on a batch, the next one is read
            encoding = pool.submit(chat.encode, conversations)
            if waiting is not None:
                yield from usable(*waiting, report)
            waiting = batch, encoding
        # the last one
        if waiting is not None:
            yield from usable(*waiting, report)


def read_batch(rows, report, read):
    """ReadRows of the rows that can be read; the others are counted with their reason."""
    batch = []
    for row in rows:
        where = row['_where']
        try:
            batch.append(ReadRow(where, *read(row)))
        # shown not to be right
        except Drop as reason:
            count(report['dropped'], str(reason), where)
        # of a type that nobody thought of
        except MALFORMED as error:
            count(report['dropped'], f'malformed ({type(error).__name__})', where)
    return batch


def usable(batch, encoding, report):
    """Yields (where, extra, ids, notes) of the rows whose conversations could all be encoded."""
    encoded = iter(encoding.result())
    # to each row its own
    for row in batch:
        ids = [next(encoded) for _ in row.conversations]
        reasons = [reason for reason in ids if isinstance(reason, Drop)]
        if reasons:
            count(report['dropped'], str(reasons[0]), row.where)
            continue
        notes = row.notes
        if any(BEGIN in ''.join(pieces) for pieces in row.conversations):
            notes = [*notes, (SPELLED_OUT, 1)]
        yield row.where, row.extra, ids, notes


def count_notes(report, where, notes):
    """Counts what is strange about a row that is kept."""
    for note, n in notes:
        if note == SPELLED_OUT:
            report['spelled'].append(where)
        else:
            count(report['notes'], note, where, n)


def finish_report(report, kept, required=True):
    """Adds what is kept to the report: rows and tokens, p50 to max of their lengths.

    UserError: nothing is kept and something is required.
    """
    # a run without rows would end in a division by zero, or train on nothing
    if required and not kept:
        raise UserError(f'all {report["rows"]} rows were dropped{most_frequent(report)}')
    report['kept'] = len(kept)
    # how long the rows are, in tokens
    lengths = sorted(len(example['ids']) for example in kept) or [0]
    for percent in (50, 90, 99):
        place = (len(lengths) - 1) * percent // 100
        report[f'p{percent}'] = lengths[place]
    report['max'] = lengths[-1]
    report['tokens'] = sum(lengths)
    # how many of the tokens are trained; prompts have no mask
    report['supervised'] = 0
    for example in kept:
        if 'mask' in example:
            report['supervised'] += int(example['mask'].sum())
    return report


def most_frequent(report):
    """The reason for which most rows were dropped, to end a sentence with; '' if none was."""
    if not report['dropped']:
        return ''
    reason = max(report['dropped'], key=lambda reason: report['dropped'][reason][0])
    n, where = report['dropped'][reason]
    return f', {n} of them (first {where}) for: {reason}'


def trained_turns(messages, first):
    """Indices of the assistant turns to train, from `first` on. Raises Drop if there is none."""
    found = []
    for i, message in enumerate(messages):
        # an empty reply has nothing to train but its end
        is_reply = message['role'] == 'assistant' and bool(message['content'].strip())
        # nothing stands before a first message, so that no rollout would write it
        if is_reply and message.get('train', True) and i >= max(first, 1):
            found.append(i)
    if not found:
        raise Drop('no assistant turn to train on')
    return found


def notes_of(messages, layout_text, n_untrained, notes):
    """What the report counts of a conversation, [(note, count)]."""
    # columns that the row's shape does not use
    found = [(note, 1) for note in notes]
    # replies that should be trained and are not
    if n_untrained:
        found.append((NOT_TRAINED, n_untrained))
    # system messages that the model will never see
    for message in messages:
        if message['role'] != 'system':
            continue
        # the quick look first: most templates write a system message as it is
        words = message['content'].strip()
        if words not in layout_text and bare(words) not in bare(layout_text):
            found.append((NO_SYSTEM, 1))
    return found


def sft_examples(rows, tokenizer, max_length, overlong='drop', required=True):
    """Rows of any shape -> [{'ids': int32 (T,), 'mask': bool (T,), 'where': place}], report.

    mask is True for what is trained: assistant turns from the end of their prompt through their
    end-of-turn token; of a document all tokens and an EOS. Rows over max_length tokens are dropped,
    or with overlong='cut' cut; no end is invented then. UserError: no row is left, unless required
    is False.
    """
    chat = Chat(tokenizer)
    report = new_report(len(rows))
    # a document begins as the tokenizer begins a text; a template writes its own beginning
    bos = tokenizer('a')['input_ids'][:1]
    if bos != [tokenizer.bos_token_id]:
        bos = []
    eos = [tokenizer.eos_token_id]

    def read(row):
        """Which pieces are trained (None: a document), their texts, and notes for the report."""
        example = example_of(row)
        if example.document is not None:
            notes = [(note, 1) for note in example.notes]
            return None, [[chat.protect(example.document)]], notes
        messages = example.messages
        layout = lay_out(chat, messages, trained_turns(messages, example.first))
        texts, are_trained = zip(*layout.pieces)
        notes = notes_of(messages, layout.text, layout.n_untrained, example.notes)
        return are_trained, [texts], notes

    examples = []
    for where, are_trained, (piece_ids,), notes in tokenised(rows, chat, report, read):
        if are_trained is None:
            # all of a document is trained, and that it ends
            piece_ids = [bos, *piece_ids, eos]
            are_trained = [False, True, True]
        # too long, or nothing of it trained
        try:
            ids, mask = fit(*mask_of(piece_ids, are_trained), max_length, overlong)
        except Drop as reason:
            count(report['dropped'], str(reason), where)
            continue
        count_notes(report, where, notes)
        examples.append({'ids': ids, 'mask': mask, 'where': where})
    return examples, finish_report(report, examples, required)


def preference_pairs(rows, tokenizer, max_length, overlong='drop'):
    """Rows with a chosen and a rejected side -> pairs, report.

    A pair: 'docs', for chosen and rejected what collate takes, (ids, mask, prompt ids), where the
    prompt is the longest common beginning and mask is True for the final turn; 'ids' and 'mask'
    (T,): prompt, chosen and rejected end to end; 'where'. max_length is of the prompt and one side;
    a longer pair is dropped or, with overlong='cut', cut. UserError: no pair is left.
    """
    chat = Chat(tokenizer)
    report = new_report(len(rows))

    def read(row):
        """Which pieces of each side are trained, the pieces' texts, and notes for the report."""
        pair = pair_of(row)
        check_pair(pair)
        # only the last turn of each side is compared, and so trained
        chosen = lay_out(chat, pair.chosen, [len(pair.chosen) - 1])
        rejected = lay_out(chat, pair.rejected, [len(pair.rejected) - 1])
        chosen_texts, chosen_trained = zip(*chosen.pieces)
        rejected_texts, rejected_trained = zip(*rejected.pieces)
        notes = notes_of(pair.chosen, chosen.text, 0, pair.notes)
        return (chosen_trained, rejected_trained), [chosen_texts, rejected_texts], notes

    pairs = []
    for where, are_trained, sides, notes in tokenised(rows, chat, report, read):
        chosen, rejected = sides
        chosen_trained, rejected_trained = are_trained
        # a pair is as long as its longer side
        try:
            chosen = Side(*fit(*mask_of(chosen, chosen_trained), max_length, overlong))
            rejected = Side(*fit(*mask_of(rejected, rejected_trained), max_length, overlong))
        except Drop as reason:
            count(report['dropped'], str(reason), where)
            continue
        count_notes(report, where, notes)
        pairs.append({**pair_docs(chosen, rejected), 'where': where})
    return pairs, finish_report(report, pairs)


class Side(NamedTuple):
    """One side of a pair."""
    ids: np.ndarray  # (T,)
    mask: np.ndarray  # (T,)


def check_pair(pair):
    """Raises Drop for a pair that has nothing to compare."""
    for messages in (pair.chosen, pair.rejected):
        last = messages[-1] if messages else {'role': '', 'content': ''}
        if last['role'] != 'assistant' or not last['content'].strip():
            raise Drop('a side without a final assistant turn')
        if not last.get('train', True):
            raise Drop('weight 0 of a side')
    if contents(pair.chosen) == contents(pair.rejected):
        raise Drop('both sides are the same')
    # what both begin with must hold a question
    common_roles = []
    prompts = zip(contents(pair.chosen[:-1]), contents(pair.rejected[:-1]))
    for one, other in prompts:
        if one != other:
            break
        common_roles.append(one['role'])
    if 'user' not in common_roles:
        raise Drop('no common prompt')


def contents(messages):
    """The messages without the mark that one is not trained."""
    return [{'role': message['role'], 'content': message['content']} for message in messages]


def pair_docs(chosen, rejected):
    """'docs', 'ids' and 'mask' of a pair of Sides."""
    # the prompt is what both begin with, up to where something is trained
    n = min(chosen.mask.argmax(), rejected.mask.argmax())
    differ = np.flatnonzero(chosen.ids[:n] != rejected.ids[:n])
    if len(differ):
        n = differ[0]
    # scored together, so that the prompt is computed once for both
    prompt = chosen.ids[:n]
    chosen_rest = Side(chosen.ids[n:], chosen.mask[n:])
    rejected_rest = Side(rejected.ids[n:], rejected.mask[n:])
    return {
        'docs': [(*chosen_rest, prompt), (*rejected_rest, prompt)],
        'ids': np.concatenate([prompt, chosen_rest.ids, rejected_rest.ids]),
        'mask': np.concatenate([chosen.mask[:n], chosen_rest.mask, rejected_rest.mask])}


def rl_prompts(rows, tokenizer, max_prompt_tokens, kind='', instruction='', languages='',
               needs_truth=True):
    """Rows with a truth -> prompts, report.

    A prompt: 'ids' list, which opens the assistant's turn; 'truth' str, as verify() takes it;
    'kind' of verifier (`kind`, else what the row's dataset or shape says); 'demonstration' str or
    None; 'difficulty'; 'messages'; 'text', the last message's; 'where'. instruction: added to every
    prompt. languages: a file of programming languages for kind 'code'. UserError: a truth that
    cannot be read or judged, an unknown kind, no prompt left. With needs_truth=False such a prompt
    stays, its 'truth' and 'kind' are None, and the report counts it; an unknown `kind` is still an error.
    """
    chat = Chat(tokenizer)
    report = new_report(len(rows))
    # a row's truth takes its language along, so that a verdict needs nothing but the truth
    more_languages = {}
    if languages:
        try:
            more_languages = read_languages(languages)
        except (OSError, ValueError) as error:
            raise UserError(f'--languages={languages}: {error}') from error

    def read(row):
        """The prompt but for its ids, its one piece, and notes for the report."""
        asked = prompt_of(row)
        # a truth that cannot be judged stops the run: in training it would be a reward of 0 for
        # ever
        notes = list(asked.notes)
        try:
            row_kind, truth = judged(row, asked, kind, more_languages)
        except UserError:
            # a verifier that does not exist is a slip of the user, and no property of the rows
            is_slip = kind and not verifier_exists(kind)
            if needs_truth or is_slip:
                raise
            row_kind, truth = None, None
            notes.append('rows without a truth that can be judged: they have no reward')
        # the instruction is part of what is asked
        messages = asked.messages
        if instruction:
            last = messages[-1]
            messages = messages[:-1] + [{**last, 'content': f'{last["content"]}\n\n{instruction}'}]
        prompt = {
            'truth': truth, 'kind': row_kind, 'text': messages[-1]['content'],
            'demonstration': asked.demonstration, 'difficulty': asked.difficulty,
            'messages': messages}
        layout = lay_out_prompt(chat, messages)
        texts = [piece.text for piece in layout.pieces]
        return prompt, [texts], notes_of(messages, layout.text, 0, notes)

    prompts = []
    for where, prompt, (piece_ids,), notes in tokenised(rows, chat, report, read):
        ids = list(itertools.chain.from_iterable(piece_ids))
        if len(ids) > max_prompt_tokens:
            count(report['dropped'], f'longer than max_prompt_tokens={max_prompt_tokens}', where)
            continue
        count_notes(report, where, notes)
        prompts.append({'ids': ids, **prompt, 'where': where})
    return prompts, finish_report(report, prompts)


def add_demonstrations(prompts, source, tokenizer, max_length, overlong, without_demonstration):
    """The prompts of a source with a demonstration to learn from, and the counts of its rows.

    'demonstration', a text, becomes the token ids that sft.py would train on, the end of the turn
    included. A prompt without one that can be used is dropped with without_demonstration='drop',
    stays with 'rl', and ends the run with 'error' (UserError). UserError also where no prompt is
    left. `source` is the name of the rows' source in these errors.
    """
    demonstrations = []
    for prompt in prompts:
        if prompt['demonstration']:
            reply = [{'role': 'assistant', 'content': prompt['demonstration']}]
            demonstrations.append(
                {'prompt': prompt['messages'], 'completion': reply, '_where': prompt['where']})
    found, counts = sft_examples(demonstrations, tokenizer, max_length, overlong, required=False)
    examples = {example['where']: example for example in found}

    n_missing = 0
    for prompt in prompts:
        prompt['demonstration'] = None
        example = examples.get(prompt['where'])
        if example is None:
            n_missing += 1
            continue
        # the supervised tokens must go on from the very ids that rollouts go on from
        if example['ids'][:len(prompt['ids'])].tolist() == prompt['ids']:
            prompt['demonstration'] = example['ids'][example['mask']].tolist()
        else:
            n_missing += 1
            count(counts['dropped'], 'the demonstration does not go on from its prompt', prompt['where'])
    if n_missing and without_demonstration == 'error':
        raise UserError(f'{source}: {n_missing} rows have no demonstration that can be used'
                        f'{most_frequent(counts)}: say --without_demonstration=drop, or =rl to learn '
                        'them from completions alone')
    if without_demonstration != 'rl':
        prompts = [prompt for prompt in prompts if prompt['demonstration']]
    if not prompts:
        raise UserError(f'{source}: no row is left, because none has a demonstration that can be used'
                        f'{most_frequent(counts)}; --without_demonstration=rl learns from completions alone')
    return prompts, counts


def verifier_exists(kind):
    """Whether there is a verifier of this kind."""
    try:
        verify.judge_of(kind)
    except ValueError:
        return False
    return True


def judged(row, asked, kind, languages):
    """The kind of verifier and the truth, as verify() will get them. UserError names the row."""
    keys = ', '.join(name for name in row if name != '_where')
    # 1. what is missing is said in words of its own
    if not kind and not asked.dataset:
        raise UserError(f'{row["_where"]}: nothing says how to judge it: no dataset or data_source '
                        f'in the keys {keys}; --verifier sets the kind')
    if asked.truth is None:
        raise UserError(f'{row["_where"]}: no truth in the keys {keys}: it can be in ground_truth, '
                        'reward_model, answer or solution')
    # 2. what verify() will get is what is checked
    try:
        kind = kind or verify.kind_of(asked.dataset)
        truth = asked.truth
        if kind == 'code' and languages:
            truth = with_language(truth, languages)
        return kind, verify.read_truth(kind, truth)
    except ValueError as error:
        raise UserError(f'{row["_where"]}: {error} (--verifier sets the kind)') from error


def format_report(report):
    """The report as short lines for the console."""
    # how many and how long
    lines = ['{kept:,}/{rows:,} rows, {tokens:,} tokens ({supervised:,} trained), '
             'p50 {p50} p90 {p90} max {max}'.format(**report)]
    # what is left out and why, and what is strange about what is kept
    for reason, (n, where) in report['dropped'].items():
        lines.append(f'dropped {n:,}: {reason} (first {where})')
    for note, (n, where) in report['notes'].items():
        lines.append(f'{n:,} {note} (first {where})')
    if report['spelled']:
        lines.append(f'{len(report["spelled"]):,} {SPELLED_OUT} (first {report["spelled"][0]})')
    return '\n  '.join(lines)


def show_mask(example, tokenizer):
    """The decoded row, trained stretches in [[ ]]."""
    # the first part is not trained, the second is, and so on
    borders = np.flatnonzero(np.diff(example['mask'], prepend=False))
    # special tokens are shown: they are what a mask is mostly about
    shown = ''
    for i, ids in enumerate(np.split(example['ids'], borders)):
        text = tokenizer.decode(ids)
        shown += f'[[{text}]]' if i % 2 else text
    return shown


# --- packs --------------------------------------------------------------------
def pack(lengths, budget):
    """Best-fit decreasing: lists of indices, each of total <= budget; a longer row is alone."""
    bins = {}  # number -> indices
    rooms = []  # (tokens left, number) of each bin, the fullest first
    # the longest first, each into the fullest bin that has room for it
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(rooms, (lengths[i], 0))
        # without such a bin a new one begins, which a row longer than the budget overfills
        if place < len(rooms):
            room, number = rooms.pop(place)
        else:
            room, number = budget, len(bins)
        bins.setdefault(number, []).append(i)
        bisect.insort(rooms, (room - lengths[i], number))
    return list(bins.values())


def split_by_work(lengths, n):
    """n lists of indices (or empty), near-equal in total length: longest to the least loaded."""
    parts = [[] for _ in range(n)]
    loads = [0] * n
    # a long one that comes last would spoil the balance
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        least = loads.index(min(loads))
        parts[least].append(i)
        loads[least] += lengths[i]
    return parts


def plan_micro_batches(sequences, micro_batch_tokens, rank, world_size):
    """This rank's micro-batches of these sequences, lists of about micro_batch_tokens tokens.

    A sequence has prompt_ids and ids. Neighbours whose prompt_ids are the same list share the
    prompt: it is computed once for as many of them as fit a part. A part is what is never taken
    apart: it is small enough for a micro-batch, and for shares of equal work. A sequence that is
    longer than a micro-batch is alone in one, the only kind that exceeds micro_batch_tokens.
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
    return micro_batches


NO_PARENT = -1  # of a segment that follows nothing
NOTHING = ([0, 0], [False, False])  # a document of two tokens, none of them scored


class Segment(NamedTuple):
    """A prompt, or a document without its prompt."""
    ids: list
    mask: list  # True: scored
    parent: int  # place of the segment that it goes on from, or NO_PARENT
    number: int  # of its document


def collate(docs):
    """Documents end to end, as the model takes them.

    docs: a list of (ids, mask) or (ids, mask, prompt ids).
    Returns 'ids' (T,) of the segments, their 'lengths' and 'parents' (see model.Documents), 'index'
    (N,) of the scored tokens and 'doc' (N,), the document of each. Scored is a token whose mask is
    True; never a document's first, as nothing predicts it. A prompt that several documents name,
    the same list, is there once. No docs: two tokens, none scored, as a rank without work must
    still take part in the all-reduce.
    """
    # 1. what stands after what
    segments = []
    place_of_prompt = {}  # id() of a prompt's list -> its segment
    for number, (ids, mask, *prompts) in enumerate(docs or [NOTHING]):
        if not prompts:
            # nothing predicts a document's first token
            segments.append(Segment(ids, [False, *mask[1:]], NO_PARENT, number))
            continue
        # the first document of a prompt brings it along
        (prompt,) = prompts
        if id(prompt) not in place_of_prompt:
            place_of_prompt[id(prompt)] = len(segments)
            segments.append(Segment(prompt, [False] * len(prompt), NO_PARENT, number))
        segments.append(Segment(ids, mask, place_of_prompt[id(prompt)], number))

    # 2. end to end
    lengths = [len(segment.ids) for segment in segments]
    ids = torch.cat([torch.as_tensor(segment.ids) for segment in segments])  # (T,)
    mask = torch.cat([torch.as_tensor(segment.mask) for segment in segments])  # (T,)
    # 3. whose tokens they are
    numbers = torch.tensor([segment.number for segment in segments])
    number_of_token = numbers.repeat_interleave(torch.tensor(lengths))  # (T,)
    parents = [segment.parent for segment in segments]
    return {
        'ids': ids.long(), 'lengths': lengths, 'parents': parents,
        'index': mask.nonzero()[:, 0], 'doc': number_of_token[mask]}


# --- order --------------------------------------------------------------------

def random_stream(*key):
    """A stream of random numbers of its own for every key (ints, texts, tuples of them).

    The key is hashed to the 128 bits that Philox takes, so that no two keys share a stream or a
    part of one. (torch's CPU generator keeps 32 bits of its seed: many seeds would share theirs.)
    RandomState is numpy's older interface, whose numbers never change: a run can be resumed under
    another numpy.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], 'little'))
    return np.random.RandomState(philox)


@functools.lru_cache(256)
def shuffled(n, *key):
    """A permutation of range(n) that the key decides."""
    return random_stream('order', *key).permutation(n)


class Order:
    """Endless shuffled row indices of sources [(weight, indices)].

    An epoch mixes the next weight * len(indices) rows of every source. A source is dealt out pass
    by pass, each freshly shuffled: with weight 0.5 an epoch takes one half and the next the other;
    with 2 it takes every row twice. `position`, the number of rows handed out, is all of its state.
    len(): rows per epoch.
    """

    def __init__(self, sources, seed):
        self.sources = []  # (indices, how many of them an epoch takes)
        for weight, indices in sources:
            if len(indices):
                per_epoch = max(1, round(weight * len(indices)))
                self.sources.append((indices, per_epoch))
        self.seed = seed
        self.position = 0

    def __len__(self):
        return sum(per_epoch for _, per_epoch in self.sources)

    def take(self, n):
        """The next n indices."""
        positions = range(self.position, self.position + n)
        self.position += n
        return [self.at(position) for position in positions]

    def at(self, position):
        """The index that is handed out at a position."""
        epoch, place = divmod(position, len(self))
        # the epoch's slots are shuffled; a slot belongs to the source in whose stretch it lies
        slot = shuffled(len(self), self.seed, epoch)[place]
        source = 0
        while slot >= self.sources[source][1]:
            slot -= self.sources[source][1]
            source += 1
        indices, per_epoch = self.sources[source]
        # the slots of all epochs are passes over the source, one after the other, each shuffled
        # anew
        turn, place = divmod(epoch * per_epoch + slot, len(indices))
        order = shuffled(len(indices), self.seed, source, turn)
        return indices[order[place]]
