"""data.py on the tokenizers and chat templates of real models: `make real-tokenizers`.

    python -m tools.real_tokenizers                # all models, tables into docs/tokenizers.md
    python -m tools.real_tokenizers Qwen3 QwQ      # these alone, tables on the console
    python -m tools.real_tokenizers --fetch        # write the folders out/tokenizers/NAME and stop
    python -m tools.real_tokenizers --again        # write the folders anew

tools/tokenizer_folders.py makes the folders, without a model hub. About 100 real and hostile rows
go through data.py on each. What comes out is judged without data.py: by transformers'
apply_chat_template, and by the texts of the rows. docs/tokenizers.md explains the tables.
"""
import collections
import datetime
import json
import os
import re
import sys
import time
import unicodedata
from dataclasses import dataclass, field

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import tokenizers  # noqa: E402
import transformers  # noqa: E402
from transformers.utils import logging  # noqa: E402

import data  # noqa: E402
from configurator import UserError  # noqa: E402
from tools.machine import processor  # noqa: E402
from tools.tokenizer_folders import MODELS, ROOT, read_json, read_text, write  # noqa: E402

PAGE = 'docs/tokenizers.md'
NO_LIMIT = 100_000  # tokens of a row


# --- rows ---------------------------------------------------------------------
# white space that tokenizers and templates take, move or join with their own
SPACED = ['\n\nhello', '\nhello', ' hello', '    return 1\n', '\thello', '  \n hello', 'hello\n',
          'hello  ', 'hello \n\n', '\n hello \n']
# letters that some vocabularies lack, or write in another form
UNICODE = ['你好，世界', 'e\u0301 and é', '👩\u200d👩\u200d👧 ok', 'مرحبا', '1\u00a0000 \u2028 x',
           'ﬁ ½ ²', 'Ġ']
# as Qwen3 and DeepSeek write them, and without any white space
THOUGHTS = ['<think>\nTwo and two.\n</think>\n\nIt is 4.', '<think>\nOne.\n\nTwo.\n</think>\n\n4',
            '<think>x</think>y']
# as a model wrote them whose prompt had opened them
HALF_THOUGHTS = 'Two and two.\n</think>\n\nIt is 4.'


def chat(*contents):
    """A conversation: the user and the assistant take turns."""
    messages = []
    for i, content in enumerate(contents):
        role = 'user' if i % 2 == 0 else 'assistant'
        messages.append({'role': role, 'content': content})
    return messages


def with_system(content, messages):
    return [{'role': 'system', 'content': content}, *messages]


def jsonl(name):
    with open(f'tests/data/{name}.jsonl', encoding='utf-8') as f:
        return [json.loads(line) for line in f]


def rows_of(spelled):
    """{kind: conversations} of real and of hostile rows. spelled: control tokens to type."""
    # 1. real ones
    math = [chat(row['question'], row['answer']) for row in jsonl('gsm8k_sample')]
    code = [chat(row['prompt'], row['canonical_solution']) for row in jsonl('humaneval_sample')]
    talks = [row['prompt'] + row['chosen'] for row in jsonl('oasst_preference_sample')]
    short = [talk for talk in talks if len(talk) == 2]
    long = [talk for talk in talks if len(talk) > 2]
    # 2. thoughts, in the content or apart
    thoughts = [chat('What is 2 + 2?', text) for text in THOUGHTS]
    apart = chat('What is 2 + 2?', 'It is 4.')
    apart[-1]['reasoning_content'] = 'First this.\nThen that.'
    thoughts.append(apart)
    thoughts.append(chat('Hi', THOUGHTS[0], 'And?', THOUGHTS[1]))
    # 3. control tokens that somebody types, each of them and all
    control = [chat(f'Say {name} now', f'I say {name}.') for name in spelled]
    control.append(chat('x', ' '.join(spelled)))
    control.append(chat('\n'.join(spelled), 'y'))
    return {
        'plain': math[:20] + short,
        'system': [with_system('Answer briefly.', messages) for messages in math[20:30]],
        'empty system': [with_system('', messages) for messages in math[20:22]],
        'turns': long,
        'system, turns': [with_system('Be kind.', talk) for talk in long[:5]],
        'code': code,
        'space': [chat('Hi', text) for text in SPACED],
        'unicode': [chat(text, text) for text in UNICODE],
        'thoughts': thoughts,
        'half thoughts': [chat('What is 2 + 2?', HALF_THOUGHTS)],
        'two replies': [[*chat('Hi', 'One.'), {'role': 'assistant', 'content': 'Two.'}]],
        'control': control}


# --- what transformers makes of a row -----------------------------------------
# how the ids of data.py compare with those of apply_chat_template
EQUAL = 'equal'
MERGED = 'merged'  # the text of the prompt is a prefix of the row's, its ids are not
PLACED = 'placed'  # the text is not: the template writes a conversation otherwise than a prompt
DIFFERENT = 'different'


def spellings(messages):
    """The row in the ways in which templates look for thoughts."""
    inside, apart = [], []
    for message in messages:
        thoughts, words = thoughts_and_words(message)
        role = message['role']
        if not thoughts:
            inside.append(message)
            apart.append(message)
            continue
        # in the content
        block = f'<think>\n{thoughts}\n</think>\n\n'
        inside.append({'role': role, 'content': block + words})
        # or in a field, for which gpt-oss has a name of its own
        apart.append({'role': role, 'content': words, 'reasoning_content': thoughts,
                      'thinking': thoughts})
    return [messages, inside, apart]


def thoughts_and_words(message):
    """The thoughts of a message without marks, '' if it has none, and its words."""
    # in a field of their own
    if 'reasoning_content' in message:
        return message['reasoning_content'], message['content']
    # in the content; the opening mark may be missing
    thoughts, mark, words = message['content'].partition('</think>')
    if message['role'] != 'assistant' or not mark:
        return '', message['content']
    return thoughts.replace('<think>', '').strip(), words.lstrip()


def compare(tokenizer, messages, ids):
    """EQUAL, MERGED, PLACED or DIFFERENT: `ids` and those of transformers."""
    # contents are taken as they are, so that what is typed is control
    def apply(messages, **settings):
        return tokenizer.apply_chat_template(messages, return_dict=False, **settings)

    found = []  # a verdict for each spelling
    for spelling in spellings(messages):
        whole = apply(spelling, tokenize=True)
        prompt = apply(spelling[:-1], tokenize=True, add_generation_prompt=True)
        # the texts tell why no prompt can be a prefix
        text = apply(spelling, tokenize=False)
        prompt_text = apply(spelling[:-1], tokenize=False, add_generation_prompt=True)
        if not text.startswith(prompt_text):
            found.append(PLACED)
        elif whole[:len(prompt)] != prompt:
            found.append(MERGED)
        else:
            found.append(EQUAL if whole == ids else DIFFERENT)
    # a row is right if it is what one of the spellings gives
    return EQUAL if EQUAL in found else found[0]


# --- judge --------------------------------------------------------------------
# what a trained stretch says
EXACT = 'exact'
TRIMMED = 'trimmed'  # without white space at an end
MARKED = 'marked'  # with marks that the template writes around thoughts and words
WRONG = 'wrong'


@dataclass
class Result:
    """What is counted for a model."""
    name: str
    source: str  # where the tokenizer is from
    template: str  # where the template is from
    vocabulary: int
    stops: list  # tokens that end a generation
    rows: dict = field(default_factory=dict)  # kind -> rows
    kept: dict = field(default_factory=dict)  # kind -> rows
    dropped: dict = field(default_factory=dict)  # reason -> {kind: rows}
    ids: dict = field(default_factory=collections.Counter)  # EQUAL, ... -> rows
    masks: dict = field(default_factory=collections.Counter)  # EXACT, ... -> rows
    prefixes: dict = field(default_factory=collections.Counter)  # whether right -> rows
    controls: dict = field(default_factory=collections.Counter)  # whether right -> rows
    faults: list = field(default_factory=list)  # a line for each

    def drop(self, reason, kind, n):
        by_kind = self.dropped.setdefault(reason, {})
        by_kind[kind] = by_kind.get(kind, 0) + n


class Judge:
    """A model's tokenizer, and what counts as control in it. Judges rows; counts in `result`."""

    def __init__(self, name):
        folder = f'{ROOT}/{name}'
        self.tokenizer = data.load_tokenizer(folder)
        self.template = read_text(f'{folder}/chat_template.jinja')
        self.stops = data.stop_ids(self.tokenizer)
        self.find_control()
        # the table shows names
        stop_names = self.tokenizer.convert_ids_to_tokens(self.stops)
        self.result = Result(
            name, vocabulary=len(self.tokenizer), stops=stop_names,
            **read_json(f'{folder}/SOURCE.json'))

    def find_control(self):
        """Sets control_ids, typed (control tokens for users to type) and own_marks.

        own_marks are those that a model says itself: marks of tool calls. In a reply they are
        control, elsewhere text.
        """
        written = self.written()
        controls = []
        self.own_marks = []
        # 1. special tokens, and marks that the template's source names
        for token in self.tokenizer.added_tokens_decoder.values():
            # other added tokens are words and white space
            is_mark = bool(re.search(r'[<\[|｜]', token.content))
            is_thinking = token.content in ('<think>', '</think>')
            if token.special:
                controls.append(token.content)
            elif is_mark and token.content in self.template and not is_thinking:
                controls.append(token.content)
                if token.content not in written:
                    self.own_marks.append(token.content)
        # 2. what is looked for in the rows, and what is typed there
        self.control_ids = set(self.tokenizer.convert_tokens_to_ids(controls))
        # of hundreds of placeholders nobody needs to type each
        names = (self.tokenizer.eos_token, self.tokenizer.bos_token)
        self.typed = [name for name in controls if name in self.template or name in names][:12]

    def written(self):
        """What the template writes in conversations without thoughts and tools, as one text."""
        texts = []
        for messages in (chat('x', 'y', 'x'), with_system('x', chat('x', 'y', 'x'))):
            try:
                texts.append(self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True))
            # some templates know no system message
            except Exception:  # noqa: BLE001
                continue
        # what ends a turn
        texts.append(self.tokenizer.apply_chat_template(chat('x', 'y'), tokenize=False))
        return '\n'.join(texts)

    def judge_kind(self, kind, conversations):
        """Judges the rows of a kind."""
        # 1. through data.py
        rows = []
        for i, messages in enumerate(conversations):
            rows.append({'messages': messages, '_where': f'{kind}:{i}'})
        examples = self.examples(kind, rows)
        self.result.rows[kind] = len(rows)
        self.result.kept[kind] = len(examples)
        if not examples:
            return
        # 2. what to compare with: rows that spell nothing out, prompts
        plain = {}
        if kind == 'control':
            plain = self.plain_examples(rows)
        prompts = self.prompts(rows)
        by_place = {row['_where']: row['messages'] for row in rows}
        # 3. the four questions of each row
        for example in examples:
            where = example['where']
            messages = by_place[where]
            self.judge_mask(messages, example)
            self.judge_prefix(example, prompts.get(where))
            # transformers takes what is typed for control: its ids are others
            if kind == 'control':
                self.judge_control(messages, example, plain[where])
            else:
                self.judge_ids(messages, example)

    def examples(self, kind, rows):
        """The rows that data.py keeps; the others are counted as dropped."""
        # another row is there, so that it is no error if all of these are dropped
        other = {'text': 'other', '_where': 'other'}
        kept, report = data.sft_examples([*rows, other], self.tokenizer, NO_LIMIT)
        for reason, (n, _) in report['dropped'].items():
            self.result.drop(reason, kind, n)
        return [example for example in kept if example['where'] != 'other']

    def plain_examples(self, rows):
        """{place: example} of the rows with 'x' for every content."""
        plain_rows = []
        for row in rows:
            messages = [{**message, 'content': 'x'} for message in row['messages']]
            plain_rows.append({**row, 'messages': messages})
        kept, _ = data.sft_examples(plain_rows, self.tokenizer, NO_LIMIT)
        return {example['where']: example for example in kept}

    def prompts(self, rows):
        """{place: ids} of the prompts that reinforcement learning has of the rows."""
        asked = []
        for row in rows:
            # all but the last reply
            messages = row['messages'][:-1]
            if messages[-1]['role'] == 'user':
                asked.append({'messages': messages, 'answer': '1', 'dataset': 'math',
                              '_where': row['_where']})
        # without any row, rl_prompts raises an error
        if not asked:
            return {}
        prompts, _ = data.rl_prompts(asked, self.tokenizer, NO_LIMIT)
        return {prompt['where']: prompt['ids'] for prompt in prompts}

    # the four questions

    def judge_ids(self, messages, example):
        """Whether the ids are those of transformers."""
        ids = example['ids'].tolist()
        verdict = compare(self.tokenizer, messages, ids)
        self.result.ids[verdict] += 1
        if verdict == DIFFERENT:
            self.fault(example, 'ids', self.decode(ids))

    def judge_prefix(self, example, prompt):
        """Whether the row is the prompt of reinforcement learning up to the reply."""
        # rows whose last turn but one is a reply have none
        if prompt is None:
            return
        # up to the last trained stretch
        first, _ = self.stretches(example)[-1]
        before = example['ids'].tolist()[:first]
        self.result.prefixes[prompt == before] += 1
        if prompt != before:
            self.fault(example, 'prompt', self.decode(prompt), self.decode(before))

    def judge_mask(self, messages, example):
        """Whether the last trained stretch is the reply, and earlier ones are replies."""
        replies = [message for message in messages if message['role'] == 'assistant']
        *earlier, last = self.stretches(example)
        verdict = self.verdict(example, last, replies[-1])
        # which of the earlier replies are trained is the template's matter
        for stretch in earlier:
            verdicts = [self.verdict(example, stretch, reply) for reply in replies[:-1]]
            if set(verdicts) <= {WRONG}:
                verdict = WRONG
        self.result.masks[verdict] += 1
        if verdict == WRONG:
            said = [self.said(example, stretch) for stretch in (*earlier, last)]
            self.fault(example, 'mask', *said, replies[-1]['content'])

    def judge_control(self, messages, example, plain):
        """Whether what somebody types is text: there is as much control as in a plain row."""
        # 1. around the reply, as much as in the plain row
        found = self.control_around(example)
        expected = self.control_around(plain)
        # 2. in the reply, what the model says itself as well
        own = []
        if self.own_marks:
            longest_first = sorted(self.own_marks, key=len, reverse=True)
            pattern = '|'.join(map(re.escape, longest_first))
            # each time that the reply spells one
            own = re.findall(pattern, messages[-1]['content'])
        expected['reply'] = sorted([*expected['reply'], *own])
        self.result.controls[found == expected] += 1
        if found != expected:
            self.fault(example, 'control', found, expected)

    def control_around(self, example):
        """{part of a row: names of its control tokens}"""
        ids = example['ids'].tolist()
        first, end = self.stretches(example)[-1]
        parts = {'before': ids[:first], 'reply': ids[first:end], 'behind': ids[end:]}
        names = {}
        for part, part_ids in parts.items():
            control = [i for i in part_ids if i in self.control_ids]
            names[part] = self.tokenizer.convert_ids_to_tokens(control)
        # the plain row has others between them: the order does not matter
        names['reply'] = sorted(names['reply'])
        return names

    # trained stretches

    def stretches(self, example):
        """[(first, end)] of the trained stretches: ids[first:end]."""
        found = []
        first = None  # of the stretch that is open
        for i, is_trained in enumerate(example['mask']):
            if is_trained and first is None:
                first = i
            if not is_trained and first is not None:
                found.append((first, i))
                first = None
            # templates without a header write one reply right behind another
            if is_trained and example['ids'][i] in self.stops:
                found.append((first, i + 1))
                first = None
        # a row may end with one
        if first is not None:
            found.append((first, len(example['ids'])))
        return found

    def decode(self, ids):
        return self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def said(self, example, stretch):
        """What a stretch says, without its last token."""
        ids = example['ids'].tolist()
        first, end = stretch
        # in its place: some tokenizers write no blank at the beginning of a text
        return self.decode(ids[:end - 1])[len(self.decode(ids[:first])):]

    def verdict(self, example, stretch, message):
        """EXACT, TRIMMED, MARKED or WRONG: what a stretch says, against a message."""
        ids = example['ids'].tolist()
        first, end = stretch
        # without a stop token the model would not learn to end
        if ids[end - 1] not in self.stops:
            return WRONG
        said = unicodedata.normalize('NFC', self.said(example, stretch))
        content = unicodedata.normalize('NFC', message['content'])
        thoughts, words = thoughts_and_words(message)
        # 1. a prompt that has closed the thoughts cannot be followed by some
        prompt = self.decode(ids[:first]).rstrip()
        if thoughts and prompt.endswith('</think>'):
            return WRONG
        # 2. as it stands in the row
        if 'reasoning_content' not in message:
            if said == content:
                return EXACT
            if said.strip() == content.strip():
                return TRIMMED
        # 3. thoughts and words, with marks around them that the template writes
        said, thoughts, words = squeezed(said), squeezed(thoughts), squeezed(words)
        if thoughts not in said or not said.endswith(words):
            return WRONG
        around = said.removesuffix(words)
        if thoughts:
            before, _, between = around.partition(thoughts)
        else:
            before, between = around, ''
        # the prompt has opened the thoughts, or the reply does
        opened_twice = prompt.endswith('<think>') and '<think>' in before + between
        not_closed = bool(thoughts) and not between
        if opened_twice or not_closed:
            return WRONG
        return MARKED if self.writes(before) and self.writes(between) else WRONG

    def writes(self, text):
        """Whether a text without blanks is marks, and pieces of the template's source."""
        names = ['<think>', '</think>', *self.tokenizer.convert_ids_to_tokens(self.control_ids)]
        longest_first = sorted(names, key=len, reverse=True)
        pieces = re.split('|'.join(map(re.escape, longest_first)), text)
        # an empty piece is in every template
        return all(piece in self.template for piece in pieces)

    def fault(self, example, what, *texts):
        shown = ' '.join(repr(text)[-300:] for text in texts)
        self.result.faults.append(f'{self.result.name} {example["where"]}: {what} {shown}')


def squeezed(text):
    """Without white space, in one Unicode form."""
    return ''.join(unicodedata.normalize('NFC', text).split())


def check(name):
    """The Result of a model."""
    judge = Judge(name)
    # every kind has rows of its own, those with control tokens even for each model
    for kind, conversations in rows_of(judge.typed).items():
        judge.judge_kind(kind, conversations)
    return judge.result


# --- tables -------------------------------------------------------------------
def lines_of(head, rows):
    """A table in Markdown."""
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for row in rows:
        # a | in a cell would end it
        lines.append('| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in row) + ' |')
    return '\n'.join(lines)


def share(right, total):
    return f'{right}/{total}'


def main_table(results):
    head = ('model', 'kept', 'ids', 'merged', 'placed', 'prefix', 'exact', 'trimmed', 'marked',
            'wrong', 'control', 'stop tokens')
    rows = []
    for result in results:
        # merged and placed rows have ids that transformers' cannot have
        compared = result.ids[EQUAL] + result.ids[DIFFERENT]
        rows.append((
            result.name,
            share(sum(result.kept.values()), sum(result.rows.values())),
            share(result.ids[EQUAL], compared), result.ids[MERGED], result.ids[PLACED],
            share(result.prefixes[True], sum(result.prefixes.values())),
            result.masks[EXACT], result.masks[TRIMMED], result.masks[MARKED], result.masks[WRONG],
            share(result.controls[True], sum(result.controls.values())),
            ' '.join(f'`{token}`' for token in result.stops)))
    return lines_of(head, rows)


def kinds_table(results):
    """Kept rows by their kind, of models that drop any."""
    # all models have rows of the same kinds
    kinds = list(results[0].rows)
    rows = []
    for result in results:
        if result.dropped:
            rows.append([result.name, *(share(result.kept[k], result.rows[k]) for k in kinds)])
    return lines_of(['model', *kinds], rows)


def reasons(results):
    """The reasons of all drops, with models and counts."""
    by_reason = {}  # reason -> ['model count', ...]
    for result in results:
        for reason, by_kind in result.dropped.items():
            n = sum(by_kind.values())
            by_reason.setdefault(reason, []).append(f'{result.name} {n}')
    return '\n'.join(f'- {reason}: {", ".join(where)}.' for reason, where in by_reason.items())


def sources_table(results):
    rows = []
    for result in results:
        rows.append((result.name, f'{result.vocabulary:,}', result.source, result.template))
    return lines_of(('model', 'vocabulary', 'tokenizer', 'template'), rows)


def parts_of(results):
    """{name of a part of PAGE: its text}"""
    versions = f'tokenizers {tokenizers.__version__}, transformers {transformers.__version__}'
    command = f'`make real-tokenizers`, {datetime.date.today()}, {processor()}, {versions}'
    details = [
        'Kept rows by kind, of the models that drop any:', kinds_table(results),
        'The reasons that data.py gives, and the number of rows of each model:', reasons(results),
        'Where tokenizers and templates are from:', sources_table(results)]
    return {'table': f'{command}\n\n{main_table(results)}', 'details': '\n\n'.join(details)}


def filled(page, name, text):
    """The page with another text between the marks of a part."""
    begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
    before, after = page.partition(begin)[0], page.partition(end)[2]
    return f'{before}{begin}\n{text}\n{end}{after}'


# --- command line -------------------------------------------------------------
def chosen(names):
    """The models with these names, all without a name. UserError for unknown ones."""
    known = [model.name for model in MODELS]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(f'no such model: {", ".join(unknown)}; there are {", ".join(known)}')
    return [model for model in MODELS if not names or model.name in names]


def main(args):
    # what is asked for
    flags = {arg for arg in args if arg.startswith('--')}
    if flags - {'--fetch', '--again'}:
        raise UserError(f'unknown: {", ".join(sorted(flags))}; there are --fetch and --again')
    names = [arg for arg in args if arg not in flags]
    logging.set_verbosity_error()
    # 1. a model at a time
    results = []
    models = chosen(names)
    for i, model in enumerate(models, 1):
        print(f'{i}/{len(models)} {model.name}', flush=True)
        start = time.perf_counter()
        is_there = os.path.exists(f'{ROOT}/{model.name}/SOURCE.json')
        # a template of ours may have changed
        if not is_there or '--again' in flags or model.template.startswith('file:'):
            write(model)
        # then the folder is all that is wanted
        if '--fetch' in flags:
            continue
        result = check(model.name)
        results.append(result)
        seconds = time.perf_counter() - start
        print(f'  kept {sum(result.kept.values())} of {sum(result.rows.values())} rows, '
              f'{len(result.faults)} faults, {seconds:.0f} s', flush=True)
    # --fetch alone checks nothing
    if not results:
        return
    # 2. for a closer look
    with open(f'{ROOT}/results.json', 'w', encoding='utf-8') as f:
        json.dump([vars(result) for result in results], f, indent=1, ensure_ascii=False)
    for result in results:
        for line in result.faults:
            print(line)
    # 3. the tables; of some models alone they are not for the page
    parts = parts_of(results)
    if names:
        print('\n\n'.join(parts.values()))
        return
    page = read_text(PAGE)
    for name, text in parts.items():
        page = filled(page, name, text)
    with open(PAGE, 'w', encoding='utf-8') as f:
        f.write(page)
    print(f'{PAGE} is written')


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f'error: {error}')
