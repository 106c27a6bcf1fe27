"""Rows: read them from files, the hub or an embedded task, and say what is in them.

The first half reads: read_rows returns a sequence of dicts, each of which knows the file and line
that it stands on. There is one small reader for each format.

The second half understands: an adapter for each use of a row. `example_of` (sft.py), `pair_of`
(dpo.py) and `prompt_of` (grpo.py and its siblings) turn a row of any known shape into messages. A
message is a dict with 'role' (system, user, assistant or tool) and 'content' (a text); 'train' is
False where the row says that a turn is not to be trained. data.py turns messages into tokens.

To add a shape for sft.py, add a pair of columns to PAIRS, or an adapter to SHAPES.
"""
import bisect
import fnmatch
import glob
import gzip
import json
import re
import zlib
from array import array
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from configurator import RANK, UserError
from embedded import task_rows
from rewards.answers import boxed, read_literal

# --- files --------------------------------------------------------------------


class BadLine(Exception):
    """A line of a file that cannot be read."""

    def __init__(self, line, reason):
        super().__init__(reason)
        self.line = line


@dataclass
class File:
    """The rows of one file. They are held in memory, or their places in the file are.

    A file of lines is read again for every row that is asked for. So memory holds 16 bytes a row,
    and the file may be larger than memory.
    """
    name: str  # as the user wrote it
    path: str = ''  # of a file of lines; '' if the rows are held in memory
    held: list = field(default_factory=list)  # the rows in memory
    places: array = field(default_factory=lambda: array('q'))  # the byte at which each row begins
    lines: array = field(default_factory=lambda: array('q'))  # line of each row, or its number

    def __len__(self):
        return len(self.lines)

    def row(self, i):
        """The i-th row, a dict with its place under '_where'."""
        if self.path:
            # opened anew for every row: a run with many workers needs no open file for long
            with open(self.path, 'rb') as f:
                f.seek(self.places[i])
                row = json.loads(f.readline())
        else:
            row = self.held[i]
        return {**row, '_where': f'{self.name}:{self.lines[i]}'}


class Rows:
    """A sequence of the rows of several files. A slice of it copies no row."""

    def __init__(self, files, indices=None):
        self.files = files
        # the rows of all files are numbered on, one file after the other
        self.starts = []  # number of each file's first row
        total = 0
        for file in files:
            self.starts.append(total)
            total += len(file)
        # a range: a slice of it is another range
        self.indices = range(total) if indices is None else indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return Rows(self.files, self.indices[i])
        index = self.indices[i]
        # the last file that begins at or before this index
        n = bisect.bisect_right(self.starts, index) - 1
        return self.files[n].row(index - self.starts[n])


def progress(items, name):
    """The items, with a progress bar if they take more than three seconds."""
    return tqdm(items, name, delay=3, disable=RANK > 0 or None)


def object_of(value, line):
    """The value if it is a JSON object. Raises BadLine."""
    if not isinstance(value, dict):
        raise BadLine(line, f'a row is an object {{...}}, not {str(value)[:40]!r}')
    return value


def lines_of(file):
    """(line number, first byte, row) of each line that is not blank. Raises BadLine."""
    place = 0
    for line, text in enumerate(file, 1):
        # blank lines count as lines and are no rows
        if text.strip():
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise BadLine(line, str(error)) from error
            yield line, place, object_of(value, line)
        place += len(text)


def read_lines(name, path):
    """File of JSON lines. Every line is tried now, and read again when its row is asked for."""
    with open(path, 'rb') as f:
        # a pipe, --data=<(zcat rows.gz), can be read only once
        if not f.seekable():
            return read_held_lines(name, f)
        file = File(name, path)
        for line, place, _ in progress(lines_of(f), name):
            file.lines.append(line)
            file.places.append(place)
    return file


def read_held_lines(name, f):
    """File of JSON lines that are kept in memory: of a pipe, or compressed."""
    file = File(name)
    for line, _, row in progress(lines_of(f), name):
        file.lines.append(line)
        file.held.append(row)
    return file


def read_gzip(name, path):
    """File of compressed JSON lines. Raises BadLine where the file is damaged."""
    try:
        with gzip.open(path) as f:
            # no place in a compressed file can be gone back to
            return read_held_lines(name, f)
    except (EOFError, zlib.error) as error:
        raise BadLine(0, f'no whole gzip file: {error}') from error


def read_list(name, path):
    """File that is one JSON list of objects. A row's number counts from 1. Raises BadLine."""
    with open(path, 'rb') as f:
        content = f.read()
    try:
        values = json.loads(content)
    # both errors say where in the text they are; the line is more useful
    except UnicodeDecodeError as error:
        raise BadLine(1 + content.count(b'\n', 0, error.start), str(error)) from error
    except json.JSONDecodeError as error:
        raise BadLine(error.lineno, str(error)) from error
    return held_file(name, values)


def read_parquet(name, path):
    """File in Apache's Parquet format. A row's number counts from 1."""
    # imported here, because only who has such files needs the package
    from pyarrow import parquet
    values = []
    # piece by piece: a table and its rows together would take twice the memory
    for batch in parquet.ParquetFile(path).iter_batches():
        values += batch.to_pylist()
    return held_file(name, values)


def held_file(name, values):
    """File whose rows are in memory, numbered from 1. Raises BadLine if one is no object."""
    file = File(name)
    for line, value in enumerate(progress(values, name), 1):
        file.held.append(object_of(value, line))
        file.lines.append(line)
    return file


def is_json_list(path):
    """Whether a .json file holds one list; else it holds lines."""
    if not path.endswith('.json'):
        return False
    with open(path, 'rb') as f:
        beginning = f.read(99)
    # a byte order mark may stand before the text
    return beginning.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'[')


def hub_parts(name):
    """'hf://datasets/owner/name/path' -> 'owner/name', 'path'."""
    parts = name.removeprefix('hf://datasets/').split('/', 2)
    if len(parts) < 3:
        raise ValueError('a file on the hub is hf://datasets/OWNER/NAME/FILE')
    owner, repository, path = parts
    return f'{owner}/{repository}', path


def local_path(name):
    """The path of a file; one on the hub is downloaded first."""
    if not name.startswith('hf://'):
        return name
    from huggingface_hub import hf_hub_download
    repository, path = hub_parts(name)
    return hf_hub_download(repository, path, repo_type='dataset')


def read_file(name):
    """File of that name, in any of the formats."""
    made = task_rows(name)
    if made is not None:
        return held_file(name, made)
    path = local_path(name)
    # the ending tells the format; what has none of these is read as lines
    if path.endswith('.parquet'):
        return read_parquet(name, path)
    if path.endswith('.gz'):
        return read_gzip(name, path)
    if is_json_list(path):
        return read_list(name, path)
    return read_lines(name, path)


def files_of(name):
    """The files of a source: itself, or what a pattern like 'train-*.parquet' names, sorted."""
    if '*' not in name:
        return [name]
    if name.startswith('hf://'):
        from huggingface_hub import HfApi
        repository, pattern = hub_parts(name)
        everything = HfApi().list_repo_files(repository, repo_type='dataset')
        paths = fnmatch.filter(everything, pattern)
        found = [f'hf://datasets/{repository}/{path}' for path in paths]
    else:
        found = glob.glob(name)
    if not found:
        raise ValueError('no file has such a name')
    return sorted(found)


def read_rows(spec):
    """Sources, separated by commas -> Rows, [(name, weight, first row, last row + 1)].

    A source: .jsonl, .jsonl.gz, .json (a list, or lines), .parquet, hf://datasets/owner/name/file,
    a pattern (train-*.parquet), or a split of an embedded task (search:train, see embedded.py).
    '*2' behind a source is its weight: how often an epoch passes over it. A row is a dict; '_where'
    in it is 'file:line', or 'file:number' of a format without lines. UserError: what cannot be read,
    with file and line.
    """
    files = []
    sources = []
    begin = 0
    for part in spec.split(','):
        # 'rows.jsonl*0.5' is a name and a weight, 'part-*.jsonl' is a pattern
        name, weight = re.fullmatch(r'(.*?)(?:\*([-+]?[\d.][\de.+-]*))?', part.strip()).groups('1')
        end = begin
        file_name = name
        try:
            if not 0 < float(weight) < 1e6:
                raise ValueError(f'*{weight} is no number of passes over it per epoch')
            # the files of a pattern are one source
            for file_name in files_of(name):
                files.append(read_file(file_name))
                end += len(files[-1])
            if end == begin:
                raise ValueError('no rows in it')
        # errors of files, the hub and parquet have no common class
        except Exception as error:
            # a BadLine knows its line
            line = getattr(error, 'line', 0)
            place = f'{file_name}:{line}' if line else file_name
            hint = ''
            if isinstance(error, ImportError):
                hint = ' (pip install pyarrow, or convert the file to .jsonl)'
            # of an error in several lines one line is made
            message = ' '.join(f'data source {place}: {error}{hint}'.split())
            raise UserError(message) from error
        # the rows of a source stand together: rows[begin:end]
        sources.append((name, float(weight), begin, end))
        begin = end
    return Rows(files), sources


# --- values -------------------------------------------------------------------


class Drop(UserError):
    """Why a row is left out: it is counted, the next one is read. Other UserErrors end the run."""


def plain(value):
    """The value without numpy's and parquet's types; None for what says nothing (NaN)."""
    # most values are of these types already
    if type(value) in (str, int, bool, type(None)):
        return value
    # numpy's arrays and scalars, as parquet files give them through pandas
    if isinstance(value, np.ndarray):
        value = list(value)
    # 0.1 of float32 is 0.10000000149011612 as a Python float, and not what the file says
    if isinstance(value, np.floating):
        value = float(str(value))
    if isinstance(value, np.generic):
        value = value.item()
    # NaN is what pandas writes where a column is empty; only it differs from itself
    if isinstance(value, float) and value != value:
        return None
    # the same for what is inside
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def plain_row(row):
    """The columns that say something in this row.

    Where files of several shapes are joined, every row has all columns, and most are null.
    """
    filled = {}
    for name, value in row.items():
        value = plain(value)
        if value is not None:
            filled[name] = value
    return filled


def is_empty(value):
    """Like is_blank, and also for '[]' or 'null' stored as a text and for lists of such values."""
    if isinstance(value, str):
        text = value.strip()
        # files store lists and dicts as texts, too
        if text.startswith(('[', '{')) and len(text) < 1000:
            value = read_literal(text)
            return value is not None and is_empty(value)
        return text in ('', 'null', 'None')
    if isinstance(value, dict):
        return all(is_empty(item) for item in value.values())
    if isinstance(value, list):
        return all(is_empty(item) for item in value)
    return value is None


def is_blank(value):
    """Whether a value says nothing: null, a blank text, an empty list or dict."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, (list, dict)) and not value)


def only_item(value):
    """The item of a list of one; anything else as it is."""
    # open-instruct's rows name their data set in a list of one
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def level_of(value):
    """A row's difficulty as an int, a text, or None where it says nothing (NaN, a list).

    A whole number is one level however it is written (3, 3.0, '3'): in the log it has one name.
    """
    if isinstance(value, bool):
        return None
    # numbers: 3 and 3.0 are level 3, 3.5 is level '3.5'
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value):
            return None
        return int(value) if value == int(value) else str(value)
    # texts: '3' is level 3, 'Level 3' is itself
    if isinstance(value, str):
        text = ' '.join(value.split())
        if re.fullmatch(r'[-+]?[0-9]{1,15}(\.0*)?', text):
            return int(float(text))
        # JSON can spell half a surrogate pair, which could not be printed
        return text.encode('utf-8', 'replace').decode() or None
    return None


def levels(difficulties):
    """The distinct difficulties as level_of makes them: numbers by size, then texts; no None."""
    def place(level):
        # numbers first: by their size, exactly where they are ints
        if isinstance(level, int):
            return 0, level, ''
        try:
            number = float(level)
        except ValueError:
            number = np.nan
        if np.isfinite(number):
            return 0, number, str(level)
        # then texts, by their letters
        return 1, 0, str(level)
    return sorted({level for level in difficulties if level_of(level) is not None}, key=place)


# --- messages -----------------------------------------------------------------
# a role as rows write it, in small letters -> as chat templates have it
ROLES = {
    'system': 'system', 'developer': 'system',
    'user': 'user', 'human': 'user', 'prompter': 'user',
    'assistant': 'assistant', 'gpt': 'assistant', 'chatgpt': 'assistant', 'bing': 'assistant',
    'bard': 'assistant', 'model': 'assistant',
    'tool': 'tool', 'observation': 'tool', 'function_response': 'tool', 'function': 'tool',
    'ipython': 'tool'}
# a message's keys for what the model thought
THOUGHTS = ('reasoning_content', 'thinking', 'reasoning')
# a message's keys that say whether it is trained
SWITCHES = ('weight', 'train', 'loss', 'trainable', 'training', 'loss_mask')
CALLS = ('tool_calls', 'function_call')
# the beginning of a content's parts as JSON or as Python prints them
STORED_PARTS = re.compile(r"""\s*\[\s*\{\s*['"]type['"]\s*:""")
NO_TEXT = 'a message without a text (images, numbers and other parts are not supported)'
NO_ROLE = f'a message of an unknown role (known are {", ".join(ROLES)})'
CALL = 'a message with a tool call'


def turns(value, role):
    """A text, said by `role`, or messages in any spelling -> list of messages. Raises Drop.

        'Q'                                     -> [{'role': 'user', 'content': 'Q'}]
        [{'from': 'human', 'value': 'Q'}]       the same
        '[{"role": "user", "content": "Q"}]'    the same: a file may store messages as a text
    """
    if isinstance(value, str):
        stored = stored_messages(value)
        value = [{'role': role, 'content': value}] if stored is None else stored
    # one message without its list
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise Drop(NO_TEXT)
    return [read_message(message) for message in value]


def stored_messages(text):
    """The messages that a text stores as JSON or Python; None if somebody said it. Raises Drop."""
    # a list of dicts, or a dict, with a key for who speaks
    is_list_of_dicts = re.match(r"""\s*\[?\s*\{\s*['"]""", text)
    if not is_list_of_dicts or not re.search(r"""['"](role|from)['"]\s*:""", text):
        return None
    value = read_literal(text)
    if value is None:
        # a list of messages that was cut, or printed by numpy without its commas
        if re.match(r"""\s*\[\s*\{\s*['"](role|from|content|value)['"]""", text):
            raise Drop('messages are stored as a text that is neither JSON nor Python')
        return None
    messages = [value] if isinstance(value, dict) else value
    # a reply may be such a list too, of other things: then it is what somebody said
    for message in messages:
        if not isinstance(message, dict) or role_of(message) is None:
            return None
        if {'content', 'value', *CALLS}.isdisjoint(message):
            return None
    return messages


def role_of(message):
    """The role of a message as chat templates have it; None if it is unknown."""
    # where files are joined, a message has both keys, and one is null
    role = message.get('role') or message.get('from')
    return ROLES.get(role.strip().lower()) if isinstance(role, str) else None


def read_message(message):
    """A message in any spelling -> {'role', 'content'}, perhaps 'train': False. Raises Drop."""
    # 1. a list of messages may store each as a text
    if isinstance(message, str):
        message = read_literal(message)
    if not isinstance(message, dict):
        raise Drop(NO_TEXT)
    # 2. what a message holds beside a text cannot be trained here
    for key in CALLS:
        if key in message and not is_empty(message[key]):
            raise Drop(CALL)
    role = role_of(message)
    if role is None:
        raise Drop(NO_ROLE)
    if message.get('channel') not in (None, 'final'):
        raise Drop('a message in a channel of its own: thoughts belong in reasoning_content')
    # 3. thoughts of their own stand before the text, as models write them
    content = message.get('content')
    content = content_of(message.get('value') if content is None else content)
    if role == 'assistant':
        content = with_thoughts(content, thoughts_of(message))
    # 4. the mark is there only if it is needed
    read = {'role': role, 'content': content}
    if not is_trained(message):
        read['train'] = False
    return read


def thoughts_of(message):
    """What the model thought, of the first key that holds it; '' without."""
    for key in THOUGHTS:
        if key not in message or is_blank(message[key]):
            continue
        if not isinstance(message[key], str):
            raise Drop(f'{key} of a message is no text')
        return message[key]
    return ''


def with_thoughts(content, thoughts):
    """The text with thoughts before it, unless it begins with them already."""
    written, _, _ = content.rpartition('</think>')
    if not thoughts or thoughts.strip() in written:
        return content
    return f'<think>\n{thoughts}\n</think>\n\n{content}'


def content_of(content):
    """The text of a message: a text, or a list of parts. Raises Drop for images and the like.

        [{'type': 'thinking', 'thinking': 'T'}, {'type': 'text', 'text': 'A'}]
        -> '<think>\\nT\\n</think>\\n\\nA'
    """
    if isinstance(content, str):
        # parts may be stored as a text, like messages
        if not STORED_PARTS.match(content):
            return content
        parts = read_literal(content)
        if not isinstance(parts, list):
            return content
        content = parts
    if not isinstance(content, list):
        raise Drop(NO_TEXT)
    # each part is words or thoughts
    text = ''
    thoughts = ''
    for part in content:
        # a list of one text
        if isinstance(part, str) and len(content) == 1:
            return part
        if not isinstance(part, dict):
            raise Drop(NO_TEXT)
        kind = part.get('type', 'text')
        if kind in ('thinking', 'reasoning'):
            value = part.get(kind, part.get('text'))
            thoughts += content_of('' if value is None else value)
        elif kind in ('text', 'input_text', 'output_text') and isinstance(part.get('text'), str):
            text += part['text']
        else:
            raise Drop(NO_TEXT)
    return with_thoughts(text, thoughts)


def is_trained(message):
    """Whether a message wants to be trained: weight 0 and train false say no. Raises Drop."""
    for key in SWITCHES:
        if key not in message or is_blank(message[key]):
            continue
        weight = number_of(message[key])
        # a share like 0.5 would need a weighted loss
        if weight not in (0, 1):
            raise Drop(f'{key}={message[key]!r} of a message: only 0 and 1 are supported')
        if weight == 0:
            return False
    return True


def number_of(value):
    """The number that a value is, also where it is written as a text; None if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


# --- columns that go with every shape -----------------------------------------
# alpaca's and dolly's second columns, and what would need more than a text model
ADDED = ('input', 'context')  # texts that are added to what is asked
REFUSED = ('tools', 'functions', 'chat_template_kwargs', 'documents',
           'images', 'image', 'videos', 'audios')
CHECKED = {*REFUSED, 'weight'}
NOTED = {*THOUGHTS, 'system', 'system_prompt'}
# columns that change the prompt
ADDING = {*ADDED, 'history', 'system', 'system_prompt'}


def check_columns(row):
    """Raises Drop for a column that would change the row and that nothing here uses."""
    # the usual row has none of them
    if CHECKED.isdisjoint(row):
        return
    for name in REFUSED:
        if not is_empty(row.get(name)):
            raise Drop(f'{name} is not supported (tools, images and template settings are not)')
    # the weight of a whole row
    if is_blank(row.get('weight')):
        return
    weight = number_of(row['weight'])
    if weight == 0:
        raise Drop('weight 0')
    if weight != 1:
        raise Drop('a weight of a row is not supported: weigh a source instead, --data=FILE*0.5')


def system_turn(row):
    """The system message of the columns system or system_prompt, as a list; [] without one."""
    for name in ('system', 'system_prompt'):
        if not is_blank(row.get(name)):
            return turns(row[name], 'system')
    return []


def history_of(row):
    """Turns of the column history, [[asked, replied], ...] or messages. They are not trained."""
    history = row.get('history')
    if is_empty(history):
        return []
    # it may be stored as a text, like messages
    if isinstance(history, str):
        history = read_literal(history)
    if not isinstance(history, list):
        raise Drop('history holds no turns')
    messages = []
    for item in history:
        # LLaMA-Factory's pairs, or messages
        if isinstance(item, list) and len(item) == 2:
            messages += turns(item[0], 'user') + turns(item[1], 'assistant')
        elif isinstance(item, dict):
            messages.append(read_message(item))
        else:
            raise Drop('history holds no turns')
    return messages


def with_columns(row, messages, column):
    """The messages of a prompt with what other columns of the row add to it. Raises Drop.

    system, system_prompt   the system turn, if the messages have none
    history                 turns before the prompt
    input, context          text behind what is asked, after an empty line
    column: the name of the column that the messages are from. A list of messages says everything
    itself: input, context and history beside it are refused, by their name.
    """
    # the usual row adds nothing
    if ADDING.isdisjoint(row):
        return messages
    beside = [name for name in ADDED if name != column and not is_blank(row.get(name))]
    if not is_empty(row.get('history')):
        beside.append('history')
    # where in a list of messages they belong is not known
    is_text = isinstance(row[column], str) and stored_messages(row[column]) is None
    if beside and not is_text:
        raise Drop(f'column {beside[0]} beside messages: put it into the messages, or leave it out')
    # 1. what is asked becomes longer
    for name in beside:
        if name in ADDED:
            messages = with_text(messages, row[name], name)
    # 2. earlier turns come before it
    messages = history_of(row) + messages
    # 3. the system turn comes first; one in the messages counts more
    if 'system' not in [message['role'] for message in messages]:
        messages = system_turn(row) + messages
    return messages


def with_text(messages, text, name):
    """The messages with a text added to the last one, after an empty line. Raises Drop for no text.
    """
    if not isinstance(text, str):
        raise Drop(f'column {name} is no text')
    if not messages:
        raise Drop(f'column {name} without a prompt')
    last = messages[-1]
    return messages[:-1] + [{**last, 'content': f'{last["content"]}\n\n{text}'}]


def unused_columns(row, messages):
    """Notes for the report: columns that hold something, and that this row's shape does not use."""
    notes = []
    # the usual row has none of these columns
    if NOTED.isdisjoint(row):
        return notes
    for name in THOUGHTS:
        if not is_empty(row.get(name)):
            notes.append(f'column {name} is not used: thoughts belong in the messages')
    # the columns that with_columns leaves alone where the messages have a system turn
    systems = [message['content'] for message in messages if message['role'] == 'system']
    for name in ('system', 'system_prompt'):
        if is_blank(row.get(name)):
            continue
        given = [message['content'] for message in turns(row[name], 'system')]
        if not set(given) <= set(systems):
            notes.append(f'column {name} is not used: there is another system message')
    return notes


# --- rows for sft.py ----------------------------------------------------------
# columns that hold a conversation
CONVERSATIONS = ('messages', 'conversations', 'conversation')
# columns that ask and reply; of a row the first pair that holds something counts
PAIRS = [
    ('instruction', 'output'), ('instruction', 'response'),  # alpaca, dolly
    ('prompt', 'completion'), ('prompt', 'demonstration'), ('prompt', 'target'),
    ('prompt', 'response'), ('prompt', 'generation'),
    ('INSTRUCTION', 'RESPONSE'),
    ('question', 'response'), ('query', 'response'),  # OpenOrca, MetaMath
    ('query', 'answer'), ('question', 'answer'),  # CodeFeedback, GSM8K
    ('problem', 'solution'), ('problem', 'generated_solution'),  # MATH, OpenMathInstruct
    ('inputs', 'targets'), ('input', 'output')]  # Aya


@dataclass
class Example:
    """What is trained of a row: a conversation, or a document."""
    messages: list  # of a conversation
    first: int = 0  # assistant turns from this one on are trained
    document: str | None = None  # a text that is trained as it stands, instead of messages
    notes: list = field(default_factory=list)  # what the report should count of this row


def example_of_messages(row, column):
    """{'messages': [{'role': 'user', ...}, {'role': 'assistant', ...}]} -> Example.

    Uses messages or conversations; system or system_prompt where the messages have no system turn.
    Every assistant turn is trained, unless its weight or train says no. Refuses input, context and
    history beside the messages.
    """
    value = row[column]
    # a plain text is no conversation
    if isinstance(value, str):
        value = stored_messages(value)
        if value is None:
            raise Drop(f'{column} holds a text and no list of messages')
    messages = with_columns(row, turns(value, 'assistant'), column)
    return Example(messages, notes=unused_columns(row, messages))


def example_of_pair(row, asked, replied):
    """{'instruction': 'Q', 'input': 'I', 'output': 'A'} -> Example with the reply alone trained.

    Either side may be a text or messages. input and context are added to what is asked, history
    stands before it, system or system_prompt first.
    """
    prompt = turns(row[asked], 'user')
    reply = turns(row[replied], 'assistant')
    # some rows repeat in the reply what is asked, with or without its system message
    without_system = [message for message in prompt if message['role'] != 'system']
    for asked_before in (prompt, without_system):
        if reply[:len(asked_before)] == asked_before:
            reply = reply[len(asked_before):]
            break
    if reply and reply[0]['role'] != 'assistant':
        raise Drop(f'column {replied} does not begin with a reply')
    messages = with_columns(row, prompt, asked)
    # turns of the asked side are never trained, also where it holds replies
    return Example(messages + reply, first=len(messages), notes=unused_columns(row, messages))


def example_of_text(row, column):
    """{'text': 'Once upon a time'} -> Example with a document, trained whole."""
    # messages would be rendered, a document is not
    if not isinstance(row[column], str):
        raise Drop(f'column {column} is no text')
    notes = []
    for name in ('system', 'system_prompt', 'history', *ADDED):
        if not is_blank(row.get(name)):
            notes.append(f'column {name} is not used: a text is trained as it stands')
    return Example([], document=row[column], notes=notes)


# (columns, adapter): a row has the first shape whose columns all hold something. To add a shape,
# write an adapter and put it here; a pair of columns that ask and reply is a line in PAIRS.
SHAPES = [
    (('messages',), example_of_messages),
    (('conversations',), example_of_messages),
    (('conversation',), example_of_messages),
    *((pair, example_of_pair) for pair in PAIRS),
    (('text',), example_of_text)]


def example_of(row):
    """A row for supervised fine-tuning -> Example. Raises Drop, or UserError for an unknown shape.
    """
    names = names_of(row)
    row = plain_row(row)
    check_columns(row)
    # the first shape that fits
    for columns, adapter in SHAPES:
        if all(holds_something(row, name) for name in columns):
            return adapter(row, *columns)
    # a known shape whose columns are empty in this row is no reason to stop the run
    for columns, _ in SHAPES:
        if set(columns) <= set(names):
            raise Drop('the columns to train on are empty')
    known = ', '.join('+'.join(columns) for columns, _ in SHAPES)
    keys = ', '.join(names)
    raise UserError(f'{row["_where"]}: no known shape in the keys {keys}; known are {known}')


def holds_something(row, name):
    """Whether a column is there and not empty. A reply may be '[]'; messages may not."""
    value = row.get(name)
    if name in CONVERSATIONS and isinstance(value, str):
        return not is_empty(value)
    return not is_blank(value)


def names_of(row):
    """The columns of a row, for messages."""
    return [name for name in row if name != '_where']


# --- rows for dpo.py ----------------------------------------------------------
# columns of the better and the worse reply: TRL's and most others, Argilla's
SIDES = [('chosen', 'rejected'), ('chosen_response', 'rejected_response')]
# columns that may hold what is asked, for pairs and for prompts
ASKED = (*CONVERSATIONS, 'prompt', 'question', 'problem', 'instruction', 'query', 'input')


@dataclass
class Pair:
    """Two conversations; compared are their last turns."""
    chosen: list
    rejected: list
    notes: list = field(default_factory=list)


def pair_of(row):
    """A preference row -> Pair. Raises Drop, or UserError for an unknown shape.

        {'prompt': 'Q', 'chosen': 'A', 'rejected': 'B'}         texts, or messages
        {'chosen': [Q, A], 'rejected': [Q, B]}                  whole conversations
        {'chosen': '\\n\\nHuman: Q\\n\\nAssistant: A', ...}     Anthropic's

    What is asked is in prompt or in one of ASKED, or both sides begin with it. Uses input, context,
    history, system and system_prompt as example_of does.
    """
    names = names_of(row)
    row = plain_row(row)
    check_columns(row)
    sides = side_columns(row)
    # null in this row, or in no row at all
    if sides is None and side_columns(names):
        raise Drop('a side is null')
    if sides is None:
        raise UserError(f'{row["_where"]}: no chosen and rejected in the keys {", ".join(names)}')

    # what is asked, if a column of its own says so
    asked = []
    column = first_filled(row, ['prompt', *ASKED])
    if column is not None:
        asked = turns(transcript_of(row[column]) or row[column], 'user')
        # messages that end in a reply hold the chosen side, too
        if column != 'prompt' and asked[-1]['role'] == 'assistant':
            asked = asked[:-1]
    chosen, rejected = (side_of(row, side, asked, column) for side in sides)
    # the report should say what of the row is not used
    notes = unused_columns(row, chosen)
    # a side that is a whole conversation counts more than the prompt's column
    everything = '\n'.join(message['content'] for message in chosen)
    if asked and asked[-1]['content'] not in everything:
        notes.append(f'column {column} is not used: the sides hold another conversation')
    return Pair(chosen, rejected, notes)


def first_filled(row, names):
    """The first of these columns that holds something; None if none does."""
    for name in names:
        if not is_blank(row.get(name)):
            return name
    return None


def side_columns(columns):
    """The names of the columns of both sides, or None."""
    for chosen, rejected in SIDES:
        if chosen in columns and rejected in columns:
            return chosen, rejected
    return None


def side_of(row, side, asked, column):
    """The conversation of one side, a column's name, with what is asked and what other columns add.
    """
    value = row[side]
    messages = turns(transcript_of(value) or value, 'assistant')
    # 1. the side is the reply alone
    if messages and messages[0]['role'] == 'assistant':
        if not asked:
            raise Drop('a side without a prompt: no column has one, and it is no conversation')
        return with_columns(row, asked, column) + messages
    # 2. the side is the whole conversation, and the prompt's column may say it once more
    # (UltraFeedback, TULU 3); a system message may stand only there
    # (a side without messages is dropped later, with its reason)
    *prompt, reply = messages or [{'role': '', 'content': ''}]
    roles = [message['role'] for message in prompt]
    if 'system' not in roles:
        prompt = [message for message in asked if message['role'] == 'system'] + prompt
    return [*with_columns(row, prompt, column or side), reply]


def transcript_of(text):
    """Anthropic's paragraphs of 'Human:' and 'Assistant:' -> messages; None for other texts."""
    if not isinstance(text, str):
        return None
    if not re.match(r'\s*Human:', text) or '\n\nAssistant:' not in text:
        return None
    # ['', 'Human', ' Q', 'Assistant', ' A']
    parts = re.split(r'(?:^\s*|\n\n)(Human|Assistant):', text)
    messages = []
    for who, words in zip(parts[1::2], parts[2::2]):
        messages.append({'role': who.lower(), 'content': words.strip()})
    # a prompt ends with 'Assistant:' and nothing behind it
    if messages[-1]['role'] == 'assistant' and not messages[-1]['content']:
        messages = messages[:-1]
    return messages


# --- rows for grpo.py, hpt.py, prefix_rft.py ----------------------------------


@dataclass
class Prompt:
    """What is asked, and the truth that a reply is judged by."""
    messages: list  # the last one is the user's
    truth: object  # as the row has it
    dataset: str  # the name that tells which verifier judges; '' if the row has none
    demonstration: str | None  # a reply to learn from
    difficulty: object  # as level_of gives it
    notes: list = field(default_factory=list)


def prompt_of(row):
    """A row with a truth -> Prompt. Raises Drop.

        {'prompt': 'Q', 'answer': '4', 'dataset': 'math'}       the plain shape
        {'messages': [Q], 'ground_truth': '4', 'dataset': ...}  open-instruct's
        {'prompt': [Q], 'reward_model': {'ground_truth': '4'}, 'data_source': ...}  verl's
        {'question': 'Q', 'answer': 'worked\\n#### 4'}          GSM8K's
        {'problem': 'Q', 'solution': 'so \\\\boxed{4}'}         MATH's

    Uses input, context, history, system and system_prompt as example_of does; difficulty or level;
    demonstration, target or demos (hpt.py, prefix_rft.py, distill.py). A row without a truth may
    have the shape of one for sft.py: its reply is the demonstration (distill.py).
    """
    row = plain_row(row)
    check_columns(row)
    # the first of both columns that says something
    difficulty = level_of(row.get('difficulty'))
    if difficulty is None:
        difficulty = level_of(row.get('level'))
    messages = asked_messages(row)
    return Prompt(messages, truth_of(row), dataset_of(row), demonstration_of(row), difficulty,
                  unused_columns(row, messages))


def asked_messages(row):
    """The messages that a completion goes on from. Raises Drop."""
    column = first_filled(row, ASKED)
    if column is None:
        raise Drop(f'no prompt: none of the columns {", ".join(ASKED)} holds one')
    messages = turns(row[column], 'user')
    # a reply at the end is an example of one, and not part of what is asked
    if messages and messages[-1]['role'] == 'assistant':
        messages = messages[:-1]
    if not messages or messages[-1]['role'] != 'user':
        raise Drop('the prompt does not end with a user turn')
    return with_columns(row, messages, column)


def is_gsm8k(row):
    return 'question' in row and '####' in str(row.get('answer'))


def is_math(row):
    return 'problem' in row


def truth_of(row):
    """What the row gives as the right answer; None without one."""
    # verl's {'style': 'rule', 'ground_truth': '4'}, which may be stored as a text
    reward_model = row.get('reward_model')
    if isinstance(reward_model, str):
        reward_model = read_literal(reward_model)
    if isinstance(reward_model, dict):
        reward_model = reward_model.get('ground_truth')
    # GSM8K's answer is worked out, and ends in '#### 1,234'
    answer = row.get('answer')
    if is_gsm8k(row):
        answer = str(answer).rpartition('####')[2].replace(',', '').strip()
    # the first that says something; a solution of MATH counts only by its box
    candidates = [row.get('ground_truth'), reward_model, answer, boxed_answer(row.get('solution'))]
    if not is_math(row):
        candidates.append(row.get('solution'))
    for truth in candidates:
        if not is_blank(truth):
            return truth
    return None


def boxed_answer(solution):
    r"""What a solution has in its last \boxed{}, or behind '\boxed '; None without one."""
    if not isinstance(solution, str):
        return None
    if found := boxed(solution):
        return found
    # some of MATH's solutions have '$\boxed 2$', without braces
    bare = re.search(r'\\boxed ([^$ ]+)', solution)
    return bare[1] if bare else None


def dataset_of(row):
    """The name of the row's data set."""
    for name in ('dataset', 'data_source'):
        # open-instruct's rows have a list of one
        value = only_item(row.get(name))
        if not is_blank(value):
            return value
    # rows of these two say by their shape what they are
    if is_gsm8k(row):
        return 'gsm8k'
    return 'math' if is_math(row) else ''


def demonstration_of(row):
    """A reply to learn from, as a text; None without one."""
    # 1. a column of its own; a number there is no reply (Countdown's target)
    shown = None
    for name in ('demonstration', 'target'):
        value = row.get(name)
        if shown is None and isinstance(value, (str, list)) and not is_blank(value):
            shown = value
    # 2. one of several
    if shown is None:
        shown = right_demo(row)
    # 3. the worked answer of GSM8K, the solution of MATH
    if shown is None and is_gsm8k(row):
        shown = row['answer']
    if shown is None and is_math(row):
        shown = row.get('solution')
    # 4. the reply of a row for sft.py, which has no truth
    if shown is None and truth_of(row) is None:
        shown = reply_of(row)
    if is_blank(shown):
        return None
    # of messages the last one is the reply
    return turns(shown, 'assistant')[-1]['content']


def reply_of(row):
    """The reply at the end of a row for supervised fine-tuning; None if it is no such row."""
    try:
        example = example_of(row)
    except (Drop, UserError):
        return None
    if example.document is not None or example.messages[-1]['role'] != 'assistant':
        return None
    return example.messages[-1]['content']


def right_demo(row):
    """The first of several replies that the row calls right. None without one."""
    # Prefix-RFT's rows, OpenR1-Math's
    columns = [('demos', 'demos_corr'), ('generations', 'correctness_math_verify')]
    for name, verdicts_name in columns:
        demos = row.get(name) or []
        verdicts = row.get(verdicts_name) or [True] * len(demos)
        for demo, is_right in zip(demos, verdicts):
            if is_right:
                return demo
    return None
