"""All that touches text and tokens: read rows, render chat, mask, pack, and hand rows out in an order with a cursor."""
import bisect
import gzip
import json
import os
import random
import zlib

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import verify
from configurator import UserError

# the embedded task: adding up digits, a running total after each; difficulty is the number of operands
SUM_OPERANDS = range(2, 11)
SUM_SIZES = {'base': 20000, 'train': 8000, 'test': 450}
# the start model reads few hard sums; where it does not see the work it sees a careless answer, off by 1 to 3
SUM_BASE = {2: 2, 3: 4, 4: 6, 5: 6, 6: 6, 7: 4, 8: 2}  # operands and their shares of its rows
SUM_BASE_WORKED = 0.3  # share of its rows that show the work
SHAPES = ('messages, prompt + completion, text, conversations, instruction + output, question + answer, '
          'problem + solution or answer, prompt + answer / ground_truth / reward_model, messages + ground_truth')


# -----------------------------------------------------------------------------
# tokenizers

def byte_tokenizer():
    """256 byte symbols and chat tokens, made in memory: any text goes through it and comes back."""
    special = ['<|pad|>', '<|endoftext|>', '<|system|>', '<|user|>', '<|assistant|>', '<|end|>']
    vocab = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='<|end|>', pad_token='<|pad|>',
                                   additional_special_tokens=special[1:5], clean_up_tokenization_spaces=False)
    fast.chat_template = ("{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
                          "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
    return fast


def load_tokenizer(name, chat_template=''):
    """Tokenizer of a model name; `chat_template` is a Jinja file that replaces its own. Raises UserError."""
    if name == 'tiny' or name.startswith('random:'):
        tokenizer = byte_tokenizer()
    else:
        if os.path.isdir(name) and not os.path.exists(os.path.join(name, 'config.json')):
            raise UserError(f'model {name}: the folder has no config.json, so it is not a Hugging Face model')
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # hub, network, file and format errors have no common class
            line = (str(error).strip().splitlines() or [''])[0]
            raise UserError(f'model {name}: no tokenizer can be loaded ({line[:200]})') from None
    if chat_template:
        if not os.path.isfile(chat_template):
            raise UserError(f'chat_template {chat_template}: no such file')
        with open(chat_template) as f:
            tokenizer.chat_template = f.read()
    return tokenizer


def render(tokenizer, messages, generation_prompt=False):
    """The conversation as text, by the tokenizer's chat template. Raises UserError without one."""
    if not tokenizer.chat_template:
        raise UserError('this tokenizer has no chat template: set --chat_template=<a Jinja file>')
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)


def stop_ids(tokenizer):
    """Ids that end a completion: the tokenizer's EOS and what its template writes after an assistant's words.

    Both: Qwen's base models have EOS <|endoftext|> while their template ends a turn with <|im_end|>."""
    stops = {tokenizer.eos_token_id} - {None}
    if tokenizer.chat_template:
        text = render(tokenizer, [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'zqz'}])
        after = tokenizer(text.rpartition('zqz')[2], add_special_tokens=False)['input_ids']
        stops |= {i for i in after if i in special_ids(tokenizer)}
    if not stops:
        raise UserError('no stop token: the tokenizer has no EOS and its template ends no turn with a special token')
    return sorted(stops)


def special_ids(tokenizer):
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


# -----------------------------------------------------------------------------
# reading rows

def sum_rows(split):
    """Rows of the embedded task. A problem's checksum decides its side: train (and base) and test are disjoint."""
    rng, rows, seen, tries = random.Random(split), [], set(), 0
    while len(rows) < SUM_SIZES[split] and tries < 100 * SUM_SIZES[split]:
        tries += 1
        n = rng.choices(list(SUM_BASE), SUM_BASE.values())[0] if split == 'base' else rng.choice(SUM_OPERANDS)
        digits = [rng.randrange(10) for _ in range(n)]
        prompt = '+'.join(map(str, digits))
        if (zlib.crc32(prompt.encode()) % 8 == 0) != (split == 'test') or split == 'test' and prompt in seen:
            continue
        seen.add(prompt)
        totals = [sum(digits[:i]) for i in range(1, n + 1)]
        answer, work = str(totals[-1]), ' '.join(map(str, totals)) + f' #### {totals[-1]}'
        row = {'prompt': prompt, 'answer': answer, 'demonstration': work, 'difficulty': n, 'dataset': 'sums'}
        if split == 'base':
            careless = f'#### {abs(totals[-1] + rng.choice((-3, -2, -1, 1, 2, 3)))}'
            text = work if rng.random() < SUM_BASE_WORKED else careless
            row = {'messages': [{'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': text}]}
        rows.append(row)
    return rows


def lines_of(name, path):
    """(row, 'file:line') of a .jsonl, .jsonl.gz, .json or .parquet file. Raises UserError with the line."""
    if path.endswith('.parquet'):
        try:
            import pyarrow.parquet
        except ImportError:
            raise UserError(f'{name}: .parquet needs pyarrow (pip install pyarrow), or convert to .jsonl') from None
        yield from ((row, f'{name}:{i + 1}') for i, row in enumerate(pyarrow.parquet.read_table(path).to_pylist()))
        return
    with (gzip.open if path.endswith('.gz') else open)(path, 'rb') as f:
        if f.read(4096).lstrip()[:1] == b'[':
            f.seek(0)
            try:
                yield from ((row, f'{name}:{i + 1}') for i, row in enumerate(json.loads(f.read())))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f'{name}:{getattr(error, "lineno", "?")}: not readable as JSON ({error})') from None
            return
        f.seek(0)
        for i, line in enumerate(f):
            if line.strip():
                try:
                    yield json.loads(line), f'{name}:{i + 1}'
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    raise UserError(f'{name}:{i + 1}: not readable as JSON ({error})') from None


def read_rows(spec):
    """Rows of comma-separated sources, each `path`, `hf://datasets/owner/name/file` or 'sums:<split>', `*weight`.

    Returns (rows, sources): dicts with '_where' ('file:line'), and (name, weight, start, stop) of every source; the
    weight is the passes over it in an epoch. Raises UserError: no such file, unreadable line, nothing in it."""
    rows, sources = [], []
    for source in filter(None, (part.strip() for part in spec.split(','))):
        name, _, weight = source.partition('*')
        start = len(rows)
        try:
            weight = float(weight or 1)
        except ValueError:
            raise UserError(f'{source}: the weight after * must be a number') from None
        if name.startswith('sums:'):
            if name[5:] not in SUM_SIZES:
                raise UserError(f'{name}: the embedded task has sums:{", sums:".join(SUM_SIZES)}')
            rows += [{**row, '_where': f'{name}:{i + 1}'} for i, row in enumerate(sum_rows(name[5:]))]
        else:
            path = name
            if name.startswith('hf://datasets/'):
                from huggingface_hub import hf_hub_download
                owner, repo, file = name.removeprefix('hf://datasets/').split('/', 2)
                try:
                    path = hf_hub_download(f'{owner}/{repo}', file, repo_type='dataset')
                except Exception as error:  # network, permission and name errors have no common class
                    raise UserError(f'{name}: {str(error).strip().splitlines()[0]}') from None
            if not os.path.isfile(path):
                raise UserError(f'{name}: no such file')
            for row, where in tqdm(lines_of(name, path), desc=name, disable=None, leave=False):
                if not isinstance(row, dict):
                    raise UserError(f'{where}: a row must be a JSON object, not {type(row).__name__}')
                rows.append({**row, '_where': where})
        if len(rows) == start:
            raise UserError(f'{name}: no rows in it')
        sources.append((name, weight, start, len(rows)))
    if not rows:
        raise UserError(f'no data source in {spec!r}')
    return rows, sources


# -----------------------------------------------------------------------------
# rows -> conversations (shapes: see SHAPES)

ROLES = {'human': 'user', 'gpt': 'assistant', 'chatgpt': 'assistant', 'bing': 'assistant', 'bard': 'assistant'}


def as_messages(value, role='user'):
    """A string or a list of messages (ShareGPT's keys too, content in parts too) as [{'role', 'content'}]."""
    if isinstance(value, str):
        return [{'role': role, 'content': value}]
    out = []
    for m in value:
        who, content = m.get('role', m.get('from')), m.get('content', m.get('value'))
        if isinstance(content, list):
            content = ''.join(part.get('text', '') for part in content)
        out.append({**{k: v for k, v in m.items() if k not in ('from', 'value')}, 'role': ROLES.get(who, who),
                    'content': content or ''})
    return out


def conversation(row):
    """(messages, first message that may be supervised) of an SFT row; ([], 0) for plain text. Raises UserError."""
    has = row.keys().__contains__
    system = as_messages(row['system'], 'system') if isinstance(row.get('system'), str) and row['system'] else []
    if has('messages') or has('conversations'):
        return system + as_messages(row['messages'] if has('messages') else row['conversations']), 0
    if has('text'):
        return [], 0
    for user, assistant in (('prompt', 'completion'), ('prompt', 'target'), ('prompt', 'demonstration'),
                            ('instruction', 'output'), ('instruction', 'response'), ('prompt', 'response'),
                            ('question', 'response'), ('INSTRUCTION', 'RESPONSE'), ('prompt', 'generation'),
                            ('query', 'response'), ('question', 'answer'), ('problem', 'solution')):
        if row.get(user) is not None and row.get(assistant) is not None:
            if isinstance(row.get('system_prompt'), str) and row['system_prompt']:
                system = as_messages(row['system_prompt'], 'system')
            prompt = system + as_messages(row[user])
            if row.get('input'):
                prompt[-1]['content'] += '\n\n' + row['input']
            return prompt + as_messages(row[assistant], 'assistant'), len(prompt)
    keys = ', '.join(k for k in row if k != '_where')
    raise UserError(f'{row["_where"]}: a row of no known shape. Keys found: {keys}. Known: {SHAPES}')


def spans_of(tokenizer, messages, first, text):
    """Character spans of `text` to supervise: each assistant's words, up to where its end-of-turn token starts.

    Contents are located by a second rendering in which each is a sentinel: searching for them would find 's' in
    '<|im_start|>'. A template that rewrites contents (think blocks) gets its last turn only; None: cannot be shown."""
    marks = [f'\ue000{i}\ue001' for i in range(len(messages))]
    pieces = [render(tokenizer, [{**m, 'content': mark} for m, mark in zip(messages, marks)])]
    for mark in marks:
        pieces[-1:] = pieces[-1].split(mark) if pieces[-1].count(mark) == 1 else [pieces[-1]]
    spans = []
    for strip in (False, True):
        contents = [m['content'].strip() if strip else m['content'] for m in messages]
        if len(pieces) == len(messages) + 1 and text == pieces[0] + ''.join(map(str.__add__, contents, pieces[1:])):
            at = len(pieces[0])
            for i, (m, content) in enumerate(zip(messages, contents)):
                if m['role'] == 'assistant' and i >= first:
                    spans.append([at, at + len(content)])
                at += len(content) + len(pieces[i + 1])
            break
    if messages[-1]['role'] != 'assistant':
        return spans
    prompt, content = render(tokenizer, messages[:-1], True), messages[-1]['content'].strip()
    if text.startswith(prompt) and content in text[len(prompt):]:
        # what the template puts between the prompt and the words (an empty think block) the model must say itself
        end = spans[-1][1] if spans else len(prompt) + text[len(prompt):].rindex(content) + len(content)
        spans[-1:] = [[len(prompt), end]]
    return spans


def sft_examples(rows, tokenizer, max_length, overlong='drop'):
    """Tokenise and mask SFT rows. Returns (examples, report).

    An example has ids int32 (T,), mask bool (T,) (True: supervised; never the first token), where. Words of assistants
    and the end-of-turn token after them are supervised, all of a 'text' row is. A row is dropped, with its reason
    counted, when its mask cannot be shown right; `overlong` rows are dropped or 'cut', and a cut invents no end."""
    stops, special = set(stop_ids(tokenizer)), special_ids(tokenizer)
    control = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    dropped, texts = {}, []

    def drop(reason, where):
        dropped.setdefault(reason, [0, where])[0] += 1

    for row in rows:
        messages, first = conversation(row)
        contents = [m['content'] for m in messages] or [row['text']]
        if any(token in content for content in contents for token in control):
            drop('special token spelled out in the text', row['_where'])
            continue
        text = render(tokenizer, messages) if messages else row['text']
        spans = spans_of(tokenizer, messages, first, text) if messages else [[0, len(text)]]
        if spans:
            texts.append((text, spans, bool(messages), row['_where']))
        else:
            drop('no assistant turn whose place can be shown', row['_where'])
    examples = []
    for i in tqdm(range(0, len(texts), 1000), desc='tokenise', leave=False, disable=None if len(texts) > 20000 else True):
        batch = texts[i:i + 1000]
        encoded = tokenizer([text for text, *_ in batch], add_special_tokens=False, return_offsets_mapping=True)
        for (text, spans, chat, where), ids, offsets in zip(batch, encoded['input_ids'], encoded['offset_mapping']):
            starts, mask, good = np.array([a for a, _ in offsets] or [0]), np.zeros(len(ids) + 2, dtype=bool), True
            for a, b in spans if chat else []:
                i, j = np.searchsorted(starts, [a, b])
                end = j  # only white space may stand between the words and the special token that ends the turn
                while end < len(ids) and ids[end] not in special and text[slice(*offsets[end])].isspace():
                    end += 1
                good &= end < len(ids) and ids[end] in stops and \
                    tokenizer.decode(ids[i:j], clean_up_tokenization_spaces=False) == text[a:b]
                mask[i:end + 1] = True
            if not chat:  # a document: BOS if the tokenizer writes one, everything, and its end
                bos = [tokenizer.bos_token_id] if tokenizer('a')['input_ids'][0] == tokenizer.bos_token_id else []
                ids = bos + ids + [tokenizer.eos_token_id]
                mask[:len(ids)] = True
            mask[0] = False  # nothing predicts the first token
            length = min(len(ids), max_length) if overlong == 'cut' else len(ids)
            if not good:
                drop('supervised tokens do not decode to the assistant\'s words and their end', where)
            elif length > max_length:
                drop(f'longer than max_length={max_length}', where)
            elif not mask[:length].any():
                drop('nothing supervised is left', where)
            else:
                examples.append({'ids': np.array(ids[:length], dtype=np.int32), 'mask': mask[:length], 'where': where})
    lengths = [len(e['ids']) for e in examples]
    return examples, make_report(len(rows), dropped, lengths, sum(int(e['mask'].sum()) for e in examples))


def make_report(n, dropped, lengths, supervised=None):
    if not lengths:
        reason, (count, where) = max(dropped.items(), key=lambda item: item[1][0])
        raise UserError(f'{where}: none of {n} rows is left; {count} dropped: {reason}')
    return {'rows': n, 'kept': len(lengths), 'dropped': dropped, 'tokens': sum(lengths), 'supervised': supervised,
            'lengths': dict(zip(('p50', 'p90', 'p99', 'max'), np.percentile(lengths, (50, 90, 99, 100)).tolist()))}


def format_report(report):
    """The counts of a source on one line, and a line for every reason to drop rows."""
    share = report['supervised'] and f', {report["supervised"]} supervised ({report["supervised"] / report["tokens"]:.0%})'
    out = f'{report["rows"]} rows read, {report["kept"]} kept, {report["tokens"]} tokens{share or ""}, lengths ' + \
        ' '.join(f'{k} {v:.0f}' for k, v in report['lengths'].items())
    return out + ''.join(f'\n  dropped {n}: {reason} (first: {where})' for reason, (n, where) in report['dropped'].items())


def show_mask(example, tokenizer):
    """The decoded row, supervised stretches in [[ ]]."""
    out, inside = '', False
    ids, mask = example['ids'], example['mask']
    edges = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1), len(ids)]
    for a, b in zip(edges, edges[1:]):
        inside = tokenizer.decode(ids[a:b], clean_up_tokenization_spaces=False)
        out += f'[[{inside}]]' if mask[a] else inside
    return out


def rl_prompts(rows, tokenizer, max_prompt_tokens, kind='', instruction=''):
    """Prompts with a checkable truth. Returns (prompts, report).

    A prompt has ids (rendered with the generation prompt), truth, kind (given, or by the row's dataset or
    data_source, or by its shape), demonstration or None, difficulty or None, text (the user's), where. `instruction`
    is appended to the last user message. Raises UserError: unknown shape or kind, a truth its kind cannot read."""
    prompts, dropped = [], {}
    for row in rows:
        where, has = row['_where'], row.keys().__contains__
        if has('reward_model') and has('prompt'):  # verl
            truth, shape = row['reward_model']['ground_truth'], None
        elif has('ground_truth'):  # open-instruct
            truth, shape = row['ground_truth'], None
        elif has('question') and '####' in str(row.get('answer')):  # GSM8K
            truth, shape = row['answer'].rpartition('####')[2].strip().replace(',', ''), 'gsm8k'
        elif has('problem') and (has('answer') or has('solution')):  # MATH and its relatives
            truth, shape = row.get('answer') or verify.boxed(row['solution']), 'math'
        else:
            truth, shape = next((row[k] for k in ('answer', 'solution', 'truth') if has(k)), None), None
        question = next((row[k] for k in ('messages', 'prompt', 'question', 'problem') if row.get(k)), None)
        if question is None or truth is None:
            keys = ', '.join(k for k in row if k != '_where')
            raise UserError(f'{where}: no prompt with a truth. Keys found: {keys}. Known: {SHAPES}')
        messages = as_messages(question)
        demonstration = next((row[k] for k in ('demonstration', 'target', 'solution') if row.get(k)), None) or (
            row['answer'] if shape == 'gsm8k' else None)
        if not isinstance(demonstration, (str, type(None))):
            demonstration = as_messages(demonstration)[0]['content']
        if messages[-1]['role'] == 'assistant':
            messages = messages[:-1]
        if instruction:
            messages[-1]['content'] += '\n\n' + instruction
        truth = str(truth[0] if isinstance(truth, list) else truth)
        name = row.get('dataset') or row.get('data_source')
        try:
            use = kind or (verify.kind_of(name[0] if isinstance(name, list) else name) if name else shape)
            if use is None:
                raise ValueError('no dataset name in the row: set --verifier=<kind>')
            verify.check_truth(use, truth)
        except ValueError as error:
            raise UserError(f'{where}: {error}') from None
        ids = tokenizer(render(tokenizer, messages, True), add_special_tokens=False)['input_ids']
        if len(ids) > max_prompt_tokens:
            dropped.setdefault(f'longer than max_prompt_tokens={max_prompt_tokens}', [0, where])[0] += 1
            continue
        prompts.append({'ids': ids, 'truth': truth, 'kind': use, 'demonstration': demonstration, 'where': where,
                        'difficulty': row.get('difficulty', row.get('level')), 'text': messages[-1]['content']})
    return prompts, make_report(len(rows), dropped, [len(p['ids']) for p in prompts])


# -----------------------------------------------------------------------------
# micro-batches and order

def pack(lengths, budget):
    """Best-fit decreasing: lists of indices whose lengths sum to at most `budget`; a longer one stands alone."""
    bins, room = [], []  # room: (space left, bin), sorted
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(room, (lengths[i], -1))
        space, b = room.pop(at) if at < len(room) else (max(budget, lengths[i]), len(bins))
        if b == len(bins):
            bins.append([])
        bins[b].append(i)
        bisect.insort(room, (space - lengths[i], b))
    return bins


def split_by_work(lengths, n):
    """Indices in n lists of near-equal total: the longest first, each to the least loaded list."""
    parts, loads = [[] for _ in range(n)], [0] * n
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        part = loads.index(min(loads))
        parts[part].append(i)
        loads[part] += lengths[i]
    return parts


def collate(docs):
    """Documents (ids, mask) end to end as one packed row.

    Returns ids (T,), lengths (list), index (N,) positions of the scored tokens (mask True) in the row, doc (N,) the
    document of each. No documents make a dummy without a scored token: its rank must still join the all-reduce."""
    docs = docs or [([0, 0], [False, False])]
    mask = torch.tensor(np.concatenate([m for _, m in docs]).astype(bool))
    lengths = [len(ids) for ids, _ in docs]
    owner = torch.arange(len(docs)).repeat_interleave(torch.tensor(lengths))
    index = mask.nonzero()[:, 0]
    return {'ids': torch.tensor(np.concatenate([ids for ids, _ in docs]).astype(np.int64)), 'lengths': lengths,
            'index': index, 'doc': owner[index]}


class Order:
    """Endless seeded order over weighted sources, a pure function of (seed, position): the position is all its state.

    `sources` holds (weight, indices): weight passes over the source in every epoch; half a pass is the first half of
    one permutation in one epoch and the second half of it in the next."""

    def __init__(self, sources, seed):
        self.sources, self.seed, self.position = sources, seed, 0
        self.counts = [max(1, round(weight * len(indices))) for weight, indices in sources]
        self.epoch, self.rows = None, None

    def __len__(self):
        return sum(self.counts)

    def take(self, n):
        out = []
        for position in range(self.position, self.position + n):
            if position // len(self) != self.epoch:
                self.epoch, rows = position // len(self), []
                for s, ((_, indices), count) in enumerate(zip(self.sources, self.counts)):
                    for k in range(self.epoch * count, (self.epoch + 1) * count):  # k-th row ever taken of source s
                        if k % len(indices) == 0 or k == self.epoch * count:
                            shuffled = np.random.default_rng([self.seed, s, k // len(indices)]).permutation(indices)
                        rows.append(int(shuffled[k % len(indices)]))
                self.rows = np.random.default_rng([self.seed, self.epoch]).permutation(rows)
            out.append(int(self.rows[position % len(self)]))
        self.position += n
        return out
