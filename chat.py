"""A tokenizer and its chat template: load, render conversations, encode what is rendered.

A chat template is a program in Jinja that writes a conversation as one text, with control tokens
around the contents. `Chat` calls it, finds out how it writes a reply, and turns its texts into
token ids. What a content spells out is never control.
"""
import bisect
import datetime
import functools
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from configurator import RANK, UserError
from rewards.answers import THINKING_MARKS
from rows import Drop

# --- tokenizers ---------------------------------------------------------------
SPECIALS = ['<|pad|>', '<|endoftext|>', '<|system|>', '<|user|>', '<|assistant|>', '<|end|>']
TEMPLATE = ("{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
FIXED_DATE = '2024-07-26'  # the day that Llama 3's template writes when it is told none


def load_tokenizer(name, chat_template='', template_date=''):
    """The tokenizer of a hub id or folder; byte_tokenizer for 'tiny' and 'random:...'.

    chat_template: a file with a Jinja template that replaces the tokenizer's own.
    template_date: the day (YYYY-MM-DD) that is given to a template that asks for today's date. It
    is saved with the tokenizer: token ids, and so a resumed run, must not depend on the day.
    Raises UserError.
    """
    try:
        # models that are made from scratch read and write bytes
        if name == 'tiny' or name.startswith('random:'):
            tokenizer = byte_tokenizer()
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if chat_template:
            with open(chat_template, encoding='utf-8') as f:
                tokenizer.chat_template = f.read()
        if template_date:
            datetime.date.fromisoformat(template_date)
    # hub, network, file and format errors have no common class
    except Exception as error:
        message = (f'no tokenizer from {name!r} with --chat_template={chat_template!r} '
                   f'--template_date={template_date!r}: {error}')
        raise UserError(' '.join(message.split())) from error
    # Mistral's own package (mistral-common) gives another interface
    if not hasattr(tokenizer, 'backend_tokenizer'):
        raise UserError(f'no tokenizer from {name!r}: it has no tokenizer.json '
                        f'(a {type(tokenizer).__name__}); take a folder or repository that has one')
    if template_date:
        tokenizer.init_kwargs['template_date'] = template_date
    if asks_for_date(tokenizer) and RANK == 0:
        day = date_of(tokenizer).strftime('%d %b %Y')
        print(f"the chat template asks for today's date: it is always told {day}")
    return tokenizer


# A text in which two tokenizers that are not the same one will differ somewhere: words of several
# scripts, numbers, code, signs, blanks.
PAGE = """The 12,345 quick brown foxes jumped over 67 lazy dogs; \"isn't it?\" - 3.14159e-10.
def f(x_1, camelCase):\n\treturn [x_1 ** 2 for _ in range(10)]  # \\frac{a}{b} != $c^{2}$
Größe, naïve, français, mañana; Привет, мир; 你好,世界; こんにちは; 안녕하세요; שלום; مرحبا; नमस्ते 🙂👩‍👩‍👧
   three blanks, a tab\tand an end   \n\n\n<tag attr='v'>&amp;</tag> https://example.org/a?b=c#d"""


def check_same_tokens(tokenizer, other, name):
    """UserError unless `other`, the tokenizer of the model `name`, has the same ids for the same texts.

    Models can score each other's token ids only then. Compared are the vocabularies and PAGE.
    """
    mine = tokenizer.get_vocab()  # {token: id}
    theirs = other.get_vocab()
    differing = sorted(token for token in {*mine, *theirs} if mine.get(token) != theirs.get(token))
    if differing:
        raise UserError(f'{name} has another tokenizer: {len(differing):,} tokens of {len(mine):,} have '
                        f'another id or none, {differing[0]!r} for one: take a model of the same family')
    of_page = [each.encode(PAGE, add_special_tokens=False) for each in (tokenizer, other)]
    if of_page[0] != of_page[1]:
        raise UserError(f'{name} has another tokenizer: the vocabulary is the same, but a page of text '
                        'becomes other ids: take a model of the same family')


def byte_tokenizer():
    """A token for every byte and six special ones, in memory: 262 tokens, any text round-trips."""
    # bytes are written as printable letters, one for each of the 256
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    # without a split into words, and without a blank before the first one
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=TEMPLATE, eos_token='<|end|>', pad_token='<|pad|>',
        additional_special_tokens=SPECIALS, clean_up_tokenization_spaces=False)


def asks_for_date(tokenizer):
    """Whether the chat template asks for today's date."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # of several templates only this one is used
        template = template.get('default')
    return 'strftime_now' in str(template)


def date_of(tokenizer):
    """The day that a chat template is told: always the same one."""
    return datetime.date.fromisoformat(tokenizer.init_kwargs.get('template_date') or FIXED_DATE)


def stop_ids(tokenizer, model=''):
    """Sorted ids that end a generation. Raises UserError for a tokenizer without EOS.

    They are EOS, what ends an assistant's turn in the chat template, and those that the generation
    config of `model` names (a hub id or folder; '' for none). Llama 3.1's, for one, names three.
    """
    ids = {tokenizer.eos_token_id, *Chat(tokenizer).turn_ends}
    # models made here have no generation config
    if model and model != 'tiny' and not model.startswith('random:'):
        try:
            named = GenerationConfig.from_pretrained(model).eos_token_id
        except OSError:  # the model has none
            named = None
        if isinstance(named, int):
            named = [named]
        ids.update(named or [])
    return sorted(ids)


@functools.lru_cache(8)
def special_ids(tokenizer):
    """Ids of the special tokens that mark a model's thinking, and ids of all other special tokens.
    """
    thinking, others = set(), set()
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.special and token.content.strip() in THINKING:
            thinking.add(token_id)
        elif token.special:
            others.add(token_id)
    return frozenset(thinking), frozenset(others)


def completion_text(tokenizer, ids):
    """What a verifier reads of a completion: the text without special tokens.

    Those that mark thinking (<think>) stay, so that thoughts are not taken for the answer.
    """
    thinking, others = special_ids(tokenizer)
    # the usual case, for which the tokenizer has a way of its own
    if thinking.isdisjoint(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)
    return tokenizer.decode([i for i in ids if i not in others], skip_special_tokens=False)


# --- chat template ------------------------------------------------------------
# Noncharacters of Unicode mark places in a text; `protect` refuses a text that holds one.
BEGIN, END = '\ufdd0', '\ufdd1'  # around what spells a control token and is text
OPEN, CLOSE = '\ufdd2', '\ufdd3'  # around the words of a reply, to find it in a conversation
LEAD = '\ufdd4'  # a control token of our own, to stand before a text
NOT_UNICODE = re.compile('[\ud800-\udfff\ufdd0-\ufdd4]')  # our marks, and halves of surrogate pairs
A_THOUGHT = 'ruminate'  # a word that no template holds, to try templates with
THINKING = frozenset(THINKING_MARKS) | frozenset(THINKING_MARKS.values())

SPELLED = 'a control token is spelled out, and this tokenizer cannot take it as text'
MERGED = 'the last token of the prompt and the first of the reply are one'


@dataclass
class Format:
    """How a chat template writes a reply, found out with a conversation of three rounds."""
    header: str  # what stands right before a reply
    earlier_opening: str  # what the template itself puts before the words of an earlier reply
    last_opening: str  # and of the last one: '<think>\n\n</think>\n\n' (Qwen3), a channel (gpt-oss)
    before_thoughts: str  # what the template puts before the thoughts of a last reply
    behind_thoughts: str  # and between them and the words
    is_stable: bool  # a conversation begins with each reply's prompt, and earlier ones are alike


class Part(NamedTuple):
    """A part of a text: one control token, or what stands between two of them."""
    text: str
    is_control: bool


class Chat:
    """A tokenizer and its chat template: renders conversations and encodes texts.

    What a text spells out is never control: `render` marks it, and `encode` takes it as text.
    Control is what the tokenizer flags as special, and what the chat template writes between the
    contents.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        # the tokenizer without transformers around it, which is faster
        self.core = tokenizer.backend_tokenizer
        # a call of the tokenizer may have left these on
        self.core.no_padding()
        self.core.no_truncation()
        self.added = tokenizer.added_tokens_decoder  # id -> AddedToken
        self.day = date_of(tokenizer)
        # what every template may read: the names of special tokens, and Llama 3.1's date
        self.variables = {
            **tokenizer.special_tokens_map, 'date_string': self.day.strftime('%d %b %Y'),
            'tools': None, 'documents': None}

    # rendering

    @functools.cached_property
    def template(self):
        """The compiled chat template.

        transformers compiles and keeps it. It is called here without the checks of
        apply_chat_template, which take longer than the rendering itself.
        """
        # base models often have none
        if not self.tokenizer.chat_template:
            raise UserError('the tokenizer has no chat template: name a Jinja file with '
                            '--chat_template=FILE')
        compiled = chat_template_utils._compile_jinja_template(self.tokenizer.get_chat_template())
        # every call copies these: a plain dict takes a third of the time of jinja's chain of dicts
        compiled.globals = dict(compiled.globals)
        return compiled

    def call_template(self, messages, prompt=False):
        """What the template writes for messages, contents taken as they are. Raises Drop."""
        try:
            # a template that asks for today's date calls this function
            self.template.globals['strftime_now'] = self.day.strftime
            return self.template.render(
                # each call gets copies: a template cannot change them
                self.variables, messages=messages, add_generation_prompt=prompt)
        except UserError:
            raise
        # a template is somebody's program and may raise anything
        except Exception as error:
            raise Drop(' '.join(f'the chat template refuses: {error}'.split())) from error

    def render(self, messages, prompt=False):
        """The conversation as the template writes it, BEGIN and END around spelled control tokens.

        prompt: with what opens the assistant's turn at the end. Raises Drop where the template
        refuses.
        """
        return self.call_template(self.protected(messages), prompt)

    def protected(self, messages):
        """Copies of the messages as the template takes them, what spells a control token marked."""
        copies = []
        for message in messages:
            # other keys of a message, like 'train', are not the template's
            role = message['role']
            content = self.protect(message['content'], role)
            # apart from the words, if the template wants them so
            thoughts = ''
            if role == 'assistant' and self.takes_thoughts_apart:
                thoughts, content = thoughts_and_words(content)
            copies.append(message_with(role, content, thoughts))
        return copies

    @functools.cached_property
    def takes_thoughts_apart(self):
        """Whether the template wants thoughts in a field of their own, and not in the content.

        Most templates look for </think> in the content. To gpt-oss's it is a text like any other.
        """
        asked = {'role': 'user', 'content': 'ask'}
        inside = {'role': 'assistant', 'content': f'<think>\n{A_THOUGHT}\n</think>\n\nreply'}
        apart = message_with('assistant', 'reply', A_THOUGHT)
        try:
            with_inside = self.call_template([asked, inside])
            with_apart = self.call_template([asked, apart])
        except Drop:
            return False
        if A_THOUGHT not in with_apart:
            return False
        # a template that did not see the thoughts in the content wrote an empty block before them
        return with_inside.count('</think>') > with_apart.count('</think>')

    # control tokens

    @functools.cached_property
    def control(self):
        """Text of each control token -> its id."""
        # what the template writes in a conversation, and what it names for one with tools
        may_write = self.written + str(self.tokenizer.chat_template)
        control = {}
        for token_id, token in self.added.items():
            # words and white space that were added are no control: Gemma's newlines
            looks_like_a_mark = re.fullmatch(r'[^\w\s](.*[^\w\s])?', token.content, re.DOTALL)
            is_written = looks_like_a_mark and token.content in may_write
            if token.special or is_written:
                control[token.content] = token_id
        return control

    @functools.cached_property
    def written(self):
        """All that the template writes around the contents of a conversation, as one text.

        Some tokenizers do not flag the template's tokens as special: DeepSeek's <|User|>.
        """
        if not self.tokenizer.chat_template:
            return ''
        asked = {'role': 'user', 'content': 'ask'}
        replied = {'role': 'assistant', 'content': 'reply'}
        rule = {'role': 'system', 'content': 'rule'}
        texts = []
        # what is written may differ in a first and in a later turn, and with a system message
        for messages in ([asked], [asked, replied, asked, replied], [rule, asked, replied]):
            for prompt in (True, False):
                try:
                    texts.append(self.call_template(messages, prompt))
                # some templates know no system message
                except Drop:
                    pass
        return '\n'.join(texts)

    @functools.cached_property
    def control_pattern(self):
        """Matches a control token's spelling."""
        return one_of(self.control)

    @functools.cached_property
    def reply_pattern(self):
        """The same for replies, which may say the marks of thoughts and of tool calls."""
        names = []
        for name, token_id in self.control.items():
            # a model that calls a tool says <tool_call> itself, as it says <think>
            is_mark_of_turns = self.added[token_id].special or name in self.written
            if is_mark_of_turns and name.strip() not in THINKING:
                names.append(name)
        return one_of(names)

    def protect(self, text, role='user'):
        """The text with BEGIN and END around every control token that it spells out.

        Else a user's '<|im_end|>' would be control and end the turn. Raises Drop if this tokenizer
        cannot encode it as text, and for a text that is not valid Unicode: JSON can spell half a
        surrogate pair.
        """
        if not text.isascii() and NOT_UNICODE.search(text):
            raise Drop('not valid unicode')
        pattern = self.reply_pattern if role == 'assistant' else self.control_pattern
        # the usual case
        if not pattern.search(text):
            return text
        # a tokenizer for which it does not work would make control of it after all
        if not self.keeps_text:
            raise Drop(SPELLED)
        return pattern.sub(lambda found: BEGIN + found[0] + END, text)

    @functools.cached_property
    def turn_ends(self):
        """Ids of the tokens that end an assistant's turn in the template, a set."""
        if self.tokenizer.eos_token_id is None:
            raise UserError('the tokenizer has no EOS token')
        if not self.tokenizer.chat_template:
            return set()
        asked = {'role': 'user', 'content': 'ask'}
        replied = {'role': 'assistant', 'content': 'reply'}
        # what stands behind the reply
        _, found, after = self.call_template([asked, replied]).rpartition('reply')
        # a template that rewrites its words, or writes nothing behind them
        if not found or not after.strip():
            return set()
        # the first token behind the reply, if it is one of the added ones
        ids = self.core.encode(after.strip(), add_special_tokens=False).ids
        return set(ids[:1]) & set(self.added)

    @functools.cached_property
    def end_pattern(self):
        """Matches an end-of-turn token that is control, and not one that a text spells out."""
        ids = {self.tokenizer.eos_token_id} | self.turn_ends
        # a text's own spelling has BEGIN before it
        names = one_of(self.added[i].content for i in ids if i in self.added)
        return re.compile(f'(?<!{BEGIN})(?:{names.pattern})')

    # what is found out about the template

    def format_of(self, messages):
        """The Format for conversations with or without a system message; None if it is unclear."""
        return self.formats[messages[0]['role'] == 'system']

    @functools.cached_property
    def formats(self):
        """{whether the conversation has a system message: Format or None}"""
        return {has_system: self.find_format(has_system) for has_system in (False, True)}

    def find_format(self, has_system):
        """Format, from three rounds of short messages. None for a template that cannot be made out.
        """
        # 1. the conversation, and the prompt of each of its replies
        messages = [{'role': 'system', 'content': 'rule'}] if has_system else []
        replies = []  # their places
        for i in range(3):
            messages.append({'role': 'user', 'content': f'ask {i}'})
            replies.append(len(messages))
            messages.append({'role': 'assistant', 'content': f'reply {i}'})
        content = f'<think>\n{A_THOUGHT}\n</think>\n\nreply 2'
        thoughtful = {'role': 'assistant', 'content': content}
        try:
            text = self.call_template(messages)
            prompts = [self.call_template(messages[:place], prompt=True) for place in replies]
            last_prompt = prompts[-1]
            header = self.header_of(messages[:-1], last_prompt)
            thinking = self.render([*messages[:-1], thoughtful])
        # the template knows no system message, or asks for what these messages lack
        except Drop:
            return None

        # 2. what the template writes between the prompt and the words of each reply
        openings = []
        for i, prompt in enumerate(prompts):
            openings.append(text[len(prompt):text.find(f'reply {i}', len(prompt))])
        # 3. the same around the thoughts of the last one
        before, _, behind = thinking.removeprefix(last_prompt).partition(A_THOUGHT)
        behind = behind.partition('reply 2')[0]
        # 4. whether earlier replies can be found by their header
        has_all_prompts = all(text.startswith(prompt) for prompt in prompts)
        is_stable = has_all_prompts and bool(header) and openings[0] == openings[1]
        return Format(header, openings[0], openings[2], before, behind, is_stable)

    def header_of(self, messages, prompt):
        """What stands right before a reply to these messages. prompt: the rendered prompt.

        '<|im_start|>assistant\\n' (ChatML). Mistral's template opens no reply: there it is
        '[/INST]', the end of the user's turn.
        """
        # what the template adds where a reply is asked for
        without = self.call_template(messages)
        opening = prompt.removeprefix(without) if prompt.startswith(without) else ''
        # or else what stands behind the last words
        return opening or prompt.rpartition(messages[-1]['content'])[2]

    # encoding

    @functools.cached_property
    def lead(self):
        """A control token to put before a piece, whose id is taken off again; '' if there is none.

        Some tokenizers (Mistral's) put a blank before the first word of a text, so that it has the
        id of a word in the midst of a sentence. Behind a control token a piece is encoded as it is
        in the midst of a text. Where pieces are the same anywhere, none is needed.
        """
        if self.is_piecewise:
            return ''
        # any will do that leaves the white space around it alone
        for token in self.added.values():
            if token.special and not token.rstrip and not token.lstrip:
                return token.content
        return ''

    @functools.cached_property
    def is_piecewise(self):
        """Whether the tokens of a piece do not depend on the text before it, wherever it is cut."""
        # Llama 2's gives 'y' the id of ' y', so that 'x' and 'y' come back as 'x y'
        for before, piece in (('x\n', 'y'), ('x:', ' y'), ('x', '\n  y')):
            first, second = self.ids_of([before, piece])
            if self.decoded(first + second) != before + piece:
                return False
            if not self.is_same_behind_control(piece, second):
                return False
        return True

    def is_same_behind_control(self, piece, ids):
        """Whether a piece has these ids behind a control token, too."""
        for token_id, token in self.added.items():
            # one that does not take the white space behind it
            if token.special and not token.rstrip:
                (together,) = self.ids_of([token.content + piece])
                return together == [token_id] + ids
        return True

    def decoded(self, ids):
        """The text of the ids, control tokens included."""
        return self.core.decode(ids, skip_special_tokens=False)

    def ids_of(self, texts):
        """The ids of each text as the tokenizer encodes it, control tokens as control."""
        encoded = self.core.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def encode(self, conversations):
        """The ids of conversations that are cut into pieces.

        conversations: [[piece, ...], ...], texts that follow each other, as `render` writes them.
        -> [[ids of a piece, ...], ...]; a Drop in place of a conversation that cannot be encoded.
        Each goes one of three ways:
            its pieces on their own, those of all conversations in one call, as that is fast
            its pieces on their own, with care, if it spells out a control token
            whole, and then cut, if this tokenizer encodes a piece by what stands before it
        """
        # what a token takes of the white space behind it has no token of its own
        if self.space_takers:
            conversations = [self.without_taken_space(pieces) for pieces in conversations]
        ways = [self.way_of(pieces) for pieces in conversations]
        plain = [pieces for pieces, way in zip(conversations, ways) if way is None]
        ids_of_plain = iter(self.encode_plain(plain))
        encoded = []
        for pieces, way in zip(conversations, ways):
            try:
                ids = next(ids_of_plain) if way is None else way(pieces)
                # byte-level tokenizers and those with a token for every byte lose no text
                if not self.is_lossless:
                    self.check_text(pieces, ids)
            except Drop as reason:
                ids = reason
            encoded.append(ids)
        return encoded

    def way_of(self, pieces):
        """The method that encodes the pieces; None for the fast way of `encode_plain`."""
        if not self.can_be_cut(pieces):
            return self.encode_together
        if BEGIN in ''.join(pieces):
            return self.encode_pieces
        return None

    def can_be_cut(self, pieces):
        """Whether the pieces have the same ids on their own as where they stand."""
        # most tokenizers: those that work on bytes
        if self.is_piecewise:
            return True
        # behind a control token, which `lead` is as well
        return bool(self.lead) and all(self.ends_in_control(piece) for piece in pieces[:-1])

    def encode_plain(self, conversations):
        """The ids of each piece of each conversation, all in one call."""
        texts = []
        for pieces in conversations:
            texts.append(pieces[0])
            texts += [self.lead + piece for piece in pieces[1:]]
        all_ids = iter(self.ids_of(texts))
        encoded = []
        for pieces in conversations:
            ids = [next(all_ids) for _ in pieces]
            # without the lead
            if self.lead:
                ids[1:] = [piece_ids[1:] for piece_ids in ids[1:]]
            encoded.append(ids)
        return encoded

    def encode_pieces(self, pieces):
        """The ids of each piece of a conversation that spells out a control token."""
        # nothing stands before the first piece, so that it may begin with a blank of its own
        first = self.encode_protected(pieces[0], is_first=True)
        return [first, *(self.encode_protected(piece, is_first=False) for piece in pieces[1:])]

    def without_taken_space(self, pieces):
        """The pieces without white space that the token before them takes."""
        stripped = [pieces[0]]
        for before, piece in zip(pieces, pieces[1:]):
            stripped.append(piece.lstrip() if self.takes_space(before) else piece)
        return stripped

    def ends_in_control(self, piece):
        """Whether the last token of a piece is control."""
        return piece.endswith(tuple(self.control)) or self.takes_space(piece)

    @functools.cached_property
    def space_takers(self):
        """The control tokens that take the white space behind them (Phi's)."""
        return tuple(name for name, token_id in self.control.items() if self.added[token_id].rstrip)

    def takes_space(self, piece):
        """Whether the last token of a piece takes the white space behind it."""
        return piece.rstrip().endswith(self.space_takers)

    def encode_together(self, pieces):
        """The ids of each piece of a text that is encoded whole. Drop: a token is in two pieces.

        For tokenizers that encode a piece differently by what stands before it.
        """
        text = ''.join(pieces)
        if BEGIN in text:
            return self.encode_protected_together(pieces)
        encoding = self.core.encode(text, add_special_tokens=False)
        starts = [start for start, _ in encoding.offsets]  # first character of each token
        ends = [end for _, end in encoding.offsets]
        # 1. the first token of each piece must begin with the piece, or behind it
        cuts = [0]  # number of tokens before each piece
        place = 0
        for piece in pieces:
            place += len(piece)
            cut = bisect.bisect_right(ends, place)
            if cut < len(starts) and starts[cut] < place:
                raise Drop(MERGED)
            cuts.append(cut)
        # 2. what stands before a reply must have the same ids on its own
        for n in range(1, len(pieces), 2):
            (prompt_ids,) = self.ids_of([''.join(pieces[:n])])
            if prompt_ids != encoding.ids[:cuts[n]]:
                raise Drop(MERGED)
        return [encoding.ids[begin:end] for begin, end in zip(cuts, cuts[1:])]

    def encode_protected_together(self, pieces):
        """The same for a text with marks, of whose tokens it is not known where they stand."""
        whole = self.encode_protected(''.join(pieces))
        # such texts are rare, so that it may take time: every beginning is encoded anew
        ids = []
        n_before = 0
        for n in range(1, len(pieces) + 1):
            # what stands before a cut must have the same ids on its own
            beginning = self.encode_protected(''.join(pieces[:n]))
            if beginning != whole[:len(beginning)]:
                raise Drop(MERGED)
            ids.append(beginning[n_before:])
            n_before = len(beginning)
        return ids

    def encode_protected(self, marked, is_first=True):
        """The ids of a piece: marked text is text, control elsewhere is control.

        is_first: no other text stands before it.
        """
        # 1. take the marked text apart from the rest, and control tokens from the text
        parts = []
        for i, stretch in enumerate(re.split(f'{BEGIN}(.*?){END}', marked, flags=re.DOTALL)):
            # every second stretch stood between marks
            if i % 2 == 1:
                parts.append(Part(stretch, is_control=False))
                continue
            # and every second part of another stretch is a control token
            for j, text in enumerate(re.split(f'({self.control_pattern.pattern})', stretch)):
                parts.append(Part(text, is_control=j % 2 == 1))

        # 2. neighbouring texts are one text: a mark must not change how words are cut into tokens
        joined = []
        for part in parts:
            if joined and not part.is_control and not joined[-1].is_control:
                part = Part(joined.pop().text + part.text, is_control=False)
            joined.append(part)

        # 3. encode; a text stands between control tokens, and some take the white space beside them
        ids = []
        for i, part in enumerate(joined):
            if part.is_control:
                ids.append(self.control[part.text])
                continue
            text = part.text
            if i > 0 and self.flags(joined[i - 1].text).rstrip:
                text = text.lstrip()
            if i + 1 < len(joined) and self.flags(joined[i + 1].text).lstrip:
                text = text.rstrip()
            ids += self.text_ids(text, is_first and not ids)
        return ids

    def flags(self, name):
        """The AddedToken of a control token."""
        return self.added[self.control[name]]

    def text_ids(self, text, is_first):
        """The ids of a text in which nothing is control."""
        if not text:
            return []
        # behind a control token, as in `lead`
        needs_lead = not is_first and not self.is_piecewise
        lead = LEAD if needs_lead else ''
        ids = self.text_core.encode(lead + text, add_special_tokens=False).ids
        if needs_lead:
            ids = ids[1:]
        return [self.from_text_core.get(i, i) for i in ids]

    @functools.cached_property
    def text_core(self):
        """The tokenizer without control tokens; LEAD is one, to stand before a piece."""
        return core_without(self.tokenizer, frozenset(self.control))

    @functools.cached_property
    def from_text_core(self):
        """Ids of text_core -> ids of the tokenizer, for added tokens whose ids are not the same."""
        # without its neighbours an added token may get another number
        moved = {}
        for token_id, token in self.text_core.get_added_tokens_decoder().items():
            here = self.core.token_to_id(token.content)
            if here is not None:
                moved[token_id] = here
        return moved

    @functools.cached_property
    def keeps_text(self):
        """Whether encode_protected is right here: tried with all control tokens on one page."""
        page = ' a b\n'.join(['', *self.control, ''])
        # 1. what is marked is text, all of it
        spelled = self.control_pattern.sub(lambda found: BEGIN + found[0] + END, page)
        ids = self.encode_protected(spelled)
        if not set(ids).isdisjoint(self.control.values()):
            return False
        if bare(self.decoded(ids)) != bare(page):
            return False
        # 2. where nothing is marked, control tokens are control and the text has the usual ids
        return self.encode_protected(page) == self.ids_of([page])[0]

    def check_text(self, pieces, ids):
        """Raises Drop where decoding does not give the text back: a character is unknown."""
        for piece, piece_ids in zip(pieces, ids):
            if bare(self.decoded(piece_ids)) != bare(piece):
                raise Drop('the tokenizer does not give the text back')

    @functools.cached_property
    def is_lossless(self):
        """Whether texts come back when their ids are decoded: tried with many scripts."""
        # Latin, Greek and Cyrillic; then other scripts, an emoji and control characters
        letters = ''.join(map(chr, range(32, 0x500)))
        page = letters + 'السلام 你好 नमस्ते 안녕 \U0001f600\u200d\U0010ffff\t\r\n\x00\x7f'
        (ids,) = self.ids_of([page])
        return bare(self.decoded(ids)) == bare(page)


@functools.lru_cache(4)
def core_without(tokenizer, names):
    """The tokenizer without these added tokens. It is kept, because making one takes seconds."""
    # tokenizers have no way to forget a token: the file that describes one is changed
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    written['added_tokens'] = [
        token for token in written['added_tokens'] if token['content'] not in names]
    written['post_processor'] = None
    core = Tokenizer.from_str(json.dumps(written))
    core.add_special_tokens([LEAD])
    return core


def render(tokenizer, messages, prompt=False):
    """Chat.render for one conversation."""
    return Chat(tokenizer).render(messages, prompt)


def thoughts_and_words(content):
    """A reply -> its thoughts without their marks, and the words behind them; '' without thoughts.
    """
    for opening, closing in THINKING_MARKS.items():
        if closing in content:
            # the opening mark may be missing: the prompt had it
            thoughts, _, words = content.partition(closing)
            return thoughts.replace(opening, '').strip(), words.lstrip()
    return '', content


def message_with(role, content, thoughts):
    """A message with its thoughts under the names by which templates look for them."""
    message = {'role': role, 'content': content}
    # an empty field would make some templates write an empty block
    if thoughts:
        message.update(reasoning_content=thoughts, thinking=thoughts)
    return message


def content_with_thoughts(message):
    """The reverse: the content of a message with its thoughts before it, as a row has them."""
    thoughts = message.get('reasoning_content')
    if not thoughts:
        return message['content']
    return f'<think>\n{thoughts}\n</think>\n\n{message["content"]}'


def one_of(names):
    """Pattern that matches any of the names, the longest that fits; nothing without a name."""
    # '<|im_end|>|>' before '<|im_end|>'
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile('|'.join(map(re.escape, longest_first)) or '(?!)')


def unprotected(text):
    return text.replace(BEGIN, '').replace(END, '')


def bare(text):
    """Without white space and in one Unicode form, which templates and tokenizers may change."""
    return ''.join(unicodedata.normalize('NFC', unprotected(text)).split())
