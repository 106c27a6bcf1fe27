"""Settings of a script: config block < config files < --key=value flags, any number of each.

A config file is Python: it assigns to the script's knobs. It can read the knobs too, and the name
`script` ('sft' in sft.py). Modules that it imports and names that begin with '_' are its own.

The values are checked before the script goes on: LEGAL has a rule for every knob that the scripts
share, TOGETHER for pairs of knobs. A knob without a rule takes any value.

This file imports the standard library only, so that a script can call configure() before it
imports torch: a mistake is answered at once.
"""
import ast
import builtins
import difflib
import glob
import math
import os
import re
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Callable, NamedTuple

RANK = int(os.environ.get('RANK', 0))
NoneType = type(None)
TYPES = {int: 'an int', float: 'a float', bool: 'True or False', NoneType: 'a plain value',
         str: 'a str'}
OUT_OF_MEMORY = (
    'out of memory: see the memory plan above; turn, in this order, micro_batch_tokens (half),\n'
    'activation_checkpointing=True, kv_cache_gb (half), max_new_tokens, max_length, more GPUs')


# --- errors -------------------------------------------------------------------
class UserError(Exception):
    """A mistake of the person at the keyboard: one line on stderr, no traceback, exit code 1."""


def excepthook(previous, kind, error, trace):
    """Says a UserError in one line; leaves other exceptions to the `previous` hook."""
    if not issubclass(kind, UserError):
        previous(kind, error, trace)
        if re.search("out of memory|can't allocate memory", str(error)):
            print(OUT_OF_MEMORY, file=sys.stderr, flush=True)
        return
    if RANK > 0:  # torchrun ends all ranks when the first one ends: let rank 0 speak
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(3)
    print('error:', ' '.join(str(error).splitlines()), file=sys.stderr, flush=True)


# --- legal values -------------------------------------------------------------
class Rule(NamedTuple):
    """Which values a knob may have."""
    allows: Callable  # value -> bool
    words: str  # ends the sentence "the knob must be ..."


def number(allows, words):
    """Rule for finite numbers: NaN and infinities are never legal."""
    def allows_finite(value):
        # not math.isfinite, which overflows on a huge int
        return type(value) in (int, float) and -math.inf < value < math.inf and allows(value)
    return Rule(allows_finite, words)


def at_least(low):
    return number(lambda value: value >= low, f'at least {low}')


def above(low):
    return number(lambda value: value > low, f'above {low}')


def between(low, high):
    """Both ends are legal."""
    return number(lambda value: low <= value <= high, f'between {low} and {high}')


def at_least_and_below(low, high):
    return number(lambda value: low <= value < high, f'at least {low} and below {high}')


def one_of(*choices):
    words = ' or '.join([', '.join(choices[:-1]), choices[-1]])
    return Rule(lambda value: value in choices, words)


def not_empty():
    return Rule(lambda value: value != '', 'a text that is not empty')


def a_device():
    def allows(value):
        return re.fullmatch(r'auto|cpu|cuda(:[0-9]+)?', str(value)) is not None
    return Rule(allows, 'auto, cpu, cuda or cuda:N')


# A script that differs gives its own rule to configure(): configure(globals(), beta=above(0)).
LEGAL = {
    # what and where
    'model': not_empty(),  # more in check_models()
    'data': not_empty(),
    'out_dir': not_empty(),
    # batch and length
    'batch_size': at_least(1),
    'micro_batch_tokens': at_least(1),
    'max_length': at_least(2),  # the first token is given, the second can be learned
    'overlong': one_of('drop', 'cut'),
    'max_steps': at_least(1),
    'epochs': above(0),
    # optimizer
    'learning_rate': at_least(0),
    'min_learning_rate': at_least(0),
    'schedule': one_of('cosine', 'linear', 'constant'),
    'warmup_steps': at_least(0),  # may exceed max_steps
    'weight_decay': at_least(0),
    'beta1': at_least_and_below(0, 1),
    'beta2': at_least_and_below(0, 1),
    'grad_clip': at_least(0),
    # rollouts
    'prompts_per_step': at_least(1),
    'group_size': at_least(2),  # one completion has no others to be compared with
    'max_new_tokens': at_least(1),
    'max_prompt_tokens': at_least(1),
    'temperature': above(0),  # logits are divided by it
    'resample_rounds': at_least(0),
    'kv_cache_gb': above(0),
    # the loss of grpo.py and its hybrids
    'updates_per_rollout': at_least(1),
    'clip_low': between(0, 1),
    'clip_high': at_least(0),
    'loss_denominator': one_of('tokens', 'sequences', 'constant'),
    'importance_cap': at_least(0),
    'beta': at_least(0),
    # demonstrations
    'without_demonstration': one_of('error', 'drop', 'rl'),
    'gamma': between(-1, 1),
    'sft_coef': at_least(0),
    'rl_coef': at_least(0),
    'n_prefix': at_least(0),
    'prefix_low': between(0, 1),
    'prefix_low_end': between(0, 1),
    'prefix_high': between(0, 1),
    'prefix_steps': at_least(1),
    'prefix_entropy': between(0, 1),
    'prefix_baseline': one_of('group', 'free'),
    # the loss of dpo.py
    'loss_type': one_of('dpo', 'dpo_norm', 'ipo', 'simpo'),
    'gamma_beta_ratio': at_least(0),
    'label_smoothing': at_least_and_below(0, 0.5),  # at a half a pair says nothing
    # evaluation, log, checkpoint
    'eval_every': at_least(0),
    'sample_every': at_least(0),
    'checkpoint_every': at_least(0),
    'log_every': at_least(1),
    # system
    'device': a_device(),
    'dtype': one_of('auto', 'float32', 'bfloat16'),
    # sample.py
    'n': at_least(1),
    'limit': at_least(0),
    'show': at_least(0),
    'write': one_of('samples', 'sft', 'pairs'),
    'out': not_empty(),
}

# Two knobs, whether their values go together, and what to say when they do not.
TOGETHER = [
    ('min_learning_rate', 'learning_rate', lambda low, peak: low <= peak,
     'min_learning_rate must be at most learning_rate'),
    ('updates_per_rollout', 'prompts_per_step', lambda updates, prompts: updates <= prompts,
     'updates_per_rollout must be at most prompts_per_step: each takes a share of the prompts'),
    ('n_prefix', 'group_size', lambda n_prefix, group_size: n_prefix < group_size,
     'n_prefix must be below group_size'),
    ('prefix_low', 'prefix_high', lambda low, high: low <= high,
     'prefix_low must be at most prefix_high'),
    ('prefix_low_end', 'prefix_high', lambda low, high: low <= high,
     'prefix_low_end must be at most prefix_high'),
    ('resume', 'overwrite', lambda resume, overwrite: not (resume and overwrite),
     'resume goes on with a run and overwrite starts it afresh: one of them must be False'),
    ('label_smoothing', 'loss_type', lambda smoothing, kind: kind != 'ipo' or smoothing == 0,
     'label_smoothing must be 0 with loss_type ipo, which has no such form'),
]


def check_values(knobs, legal, sources):
    """UserError at the first knob whose value its rule does not allow; `sources`: who set it."""
    for name, value in knobs.items():
        if name not in legal or value is None:  # only a knob that a fork made None can be None
            continue
        if not legal[name].allows(value):
            raise UserError(f'{sources[name]}: {name} must be {legal[name].words}, not {value!r}')


def check_together(knobs):
    """UserError at the first pair in TOGETHER whose values do not go together."""
    for first, second, allows, words in TOGETHER:
        a, b = knobs.get(first), knobs.get(second)
        if a is None or b is None:  # the script does not have both
            continue
        if not allows(a, b):
            raise UserError(f'{words} ({first} = {a!r}, {second} = {b!r})')


# --- models that another command makes ----------------------------------------
SCRIPTS = ('sft', 'dpo', 'grpo', 'hpt', 'prefix_rft')  # each writes its model to its out_dir


def check_models(knobs, path, files):
    """UserError, with the command to run first, if a local model is missing.

    `path` is the script's, `files` are the config files of this run.
    """
    for knob in ('model', 'rejected_model'):
        name = knobs.get(knob) or ''
        if not looks_local(name) or os.path.isdir(name):
            continue
        command = command_that_makes(name, path, knobs, files)
        advice = (f'make it first: {command}' if command else
                  'give the out_dir of a run, another folder in Hugging Face format, or a hub id')
        raise UserError(f'{knob} {name}: no such folder; {advice}')


def looks_local(name):
    """Whether a model's name must be a folder's. False for gpt2, Qwen/Qwen3-4B, tiny, random:..."""
    first = name.split('/')[0]
    starts_like_a_path = name.startswith(('/', '.', '~'))
    too_deep_for_a_hub_id = name.count('/') > 1
    return starts_like_a_path or too_deep_for_a_hub_id or first == 'out' or os.path.isdir(first)


def command_that_makes(folder, path, knobs, files):
    """The command whose out_dir is `folder`, or None where no config file says so."""
    folder = os.path.normpath(folder)
    if folder == os.path.normpath('out/smollm2'):
        return 'make real, or only python -m tools.smollm2 out/smollm2'
    home = os.path.dirname(path)
    shipped = sorted(glob.glob('config/*.py', root_dir=home))
    # first no file at all, then this run's files (the stage before often has the same), then others
    for candidate in [[], files, *([file] for file in shipped)]:
        for script in SCRIPTS:
            settings = {'out_dir': f'out/{script}'}  # the default of every script
            with suppress(UserError):  # a file that is not for this script
                for file in candidate:
                    settings |= read_file(file, home, script, {**knobs, **settings})
            if candidate and 'data' not in settings:
                continue  # it only adds to another config file, as config/tulu3_4b.py does
            if os.path.normpath(settings['out_dir']) == folder:
                return ' '.join(['python', os.path.relpath(f'{home}/{script}.py'), *candidate])
    return None


# --- config files and flags ---------------------------------------------------
def read_file(file, home, script, knobs):
    """{name: value} that a config file assigns. It is looked for here, then in the folder `home`.

    UserError when the file is missing or raises, with the line.
    """
    path = file if os.path.isfile(file) else os.path.join(home, file)
    if not os.path.isfile(path):
        raise UserError(f'no config file {file}; for a flag use --key=value')
    # The file finds the knobs where it finds Python's builtins. So `scope` itself, which the names
    # that it assigns go to, holds nothing else.
    scope = {'__builtins__': {**vars(builtins), **knobs, 'script': script}}
    try:
        with open(path, 'rb') as f:
            exec(compile(f.read(), path, 'exec'), scope)
    except Exception as error:
        in_file = error.__traceback__.tb_next  # None if the file does not compile
        line = getattr(in_file, 'tb_lineno', 0) or getattr(error, 'lineno', 0) or 1
        raise UserError(f'{file}:{line}: {type(error).__name__}: {error}') from None
    module = type(sys)
    return {name: value for name, value in scope.items()
            if name[0] != '_' and type(value) is not module}


def read_flag(flag, types):
    """(key, value) of the text --key=value; `types` has the knobs' types. UserError without '='."""
    key, equals, text = flag.removeprefix('--').partition('=')
    if not equals:
        raise UserError(f'{flag}: use --key=value')
    kind = types.get(key)
    if kind is str:  # '123' stays a text
        return key, text
    try:
        literal = float(text) if kind is float else ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return key, text
    return key, literal if type(literal) in (int, float, bool, NoneType) else text


def override(knobs, types, key, value, source):
    """knobs[key] = value, in the knob's type. UserError: source, key, type or nearest key."""
    if key not in types:
        near = difflib.get_close_matches(key, types, 1)
        hint = f'nearest: {near[0]!r}' if near else 'see --help'
        raise UserError(f'{source}: no knob {key!r}, {hint}')
    kind, given = types[key], type(value)
    both_numbers = {given, kind} == {int, float}
    if both_numbers and value % 1 == 0 and abs(value) < 1e300:
        value = kind(value)  # 1 will do for 1.0, and 1e3 for 1000
    elif kind is NoneType and given in TYPES:
        pass  # a knob that is None by default takes any plain value
    elif given is not kind:
        raise UserError(f'{source}: {key} takes {TYPES[kind]}, not {value!r}')
    knobs[key] = value
    if RANK == 0:
        print(f'{source}: {key} = {value!r}')


def check_out_dir(out_dir, resume, overwrite):
    """UserError if the run folder holds files and neither resume nor overwrite is set."""
    if resume or overwrite or not os.path.exists(out_dir):
        return
    if os.listdir(out_dir):
        raise UserError(f'out_dir {out_dir} is not empty: say --resume=True or --overwrite=True')


def print_help(path, docstring, first_knob):
    """The first paragraph of the script's docstring, and its config block."""
    with open(path) as f:
        lines = f.readlines()
    start = 0
    while not re.match(rf'{first_knob}\s*[=,:]', lines[start]):
        start += 1
    end = start
    while 'configure(' not in lines[end]:
        end += 1
    while start > 0 and lines[start - 1].startswith('#'):  # the block's headings
        start -= 1
    summary = docstring.split('\n\n')[0]
    print(summary, ''.join(lines[start:end]), sep='\n\n', end='')


def configure(namespace, **rules):
    """Applies sys.argv to the knobs of a script and checks them; returns {knob: value}.

    `namespace` is the script's globals(): its knobs are the public names with plain values so far.
    `rules` are the script's own rules, {knob: Rule}, before those of LEGAL. Raises UserError.
    """
    sys.excepthook = partial(excepthook, sys.excepthook)
    path = os.path.abspath(namespace['__file__'])
    home, filename = os.path.split(path)
    script = filename.removesuffix('.py')
    knobs = {name: value for name, value in namespace.items()
             if name[0] != '_' and type(value) in TYPES}
    types = {name: type(value) for name, value in knobs.items()}
    sources = dict.fromkeys(knobs, filename)  # who set the value
    for name in rules:
        if name not in knobs:
            raise TypeError(f'configure() got a rule for {name!r}, which is no knob')

    arguments = sys.argv[1:]
    if '-h' in arguments or '--help' in arguments:
        if RANK == 0:
            print_help(path, namespace['__doc__'] or '', next(iter(knobs)))
        sys.exit()

    # flags win over files wherever they stand, and what comes later wins over what comes earlier
    files = [argument for argument in arguments if not argument.startswith('-')]
    flags = [argument for argument in arguments if argument.startswith('-')]
    for file in files:
        for key, value in read_file(file, home, script, knobs).items():
            override(knobs, types, key, value, file)
            sources[key] = file
    for flag in flags:
        key, value = read_flag(flag, types)
        override(knobs, types, key, value, flag)
        sources[key] = flag

    # checked last, so that a flag may mend a file
    check_values(knobs, {**LEGAL, **rules}, sources)
    check_together(knobs)
    check_models(knobs, path, files)
    namespace.update(knobs)
    return knobs
