"""Settings of a script: config block < config files < --key=value flags, any number of each.

A config file is Python. Its module-level assignments set the script's knobs. It can read the knobs
too, and the name `script` ('sft' in sft.py). Modules that it imports and names that begin with '_'
are not settings. An assignment to a global name inside a function or a comprehension sets no knob.

The values are checked before the script goes on: LEGAL has a rule for every knob that the scripts
share, TOGETHER has rules for pairs of knobs. A knob without a rule takes any value of its type.

This file imports the standard library only, so that a script can call configure() before it
imports torch: the user learns of a mistake at once.
"""
import ast
import datetime
import difflib
import glob
import math
import os
import re
import signal
import sys
import time
from functools import partial
from typing import Callable, NamedTuple

# torchrun sets RANK; a script that is run without torchrun is rank 0
RANK = int(os.environ.get('RANK', 0))
NoneType = type(None)
Module = type(sys)

# the types that a knob can have, each with its words in an error message
TYPES = {
    int: 'an int',
    float: 'a float',
    bool: 'True or False',
    str: 'a str',
    NoneType: 'a plain value',
}

# printed below the traceback of an out-of-memory error
OUT_OF_MEMORY = (
    'out of memory: see the memory plan above; turn, in this order, micro_batch_tokens (half),\n'
    'activation_checkpointing=True, kv_cache_gb (half), max_new_tokens, max_length; then either\n'
    'shard=all on several GPUs, or lora_rank=32 with a higher learning rate (docs/lora.md)')


# --- errors -------------------------------------------------------------------
class UserError(Exception):
    """A mistake of the user: one line on stderr, no traceback, exit code 1."""


def excepthook(previous, kind, error, trace):
    """Prints a UserError as one line; passes other exceptions on to the `previous` hook."""
    if not issubclass(kind, UserError):
        previous(kind, error, trace)
        if re.search("out of memory|can't allocate memory", str(error)):
            print(OUT_OF_MEMORY, file=sys.stderr, flush=True)
        return

    # Usually all ranks have the same error, and only rank 0 should print it. It exits first, then
    # torchrun sends SIGTERM to the others. They wait for that with the default handler, which ends
    # the process: the scripts' own handler does not.
    if RANK > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(3)

    one_line = ' '.join(str(error).splitlines())
    print('error:', one_line, file=sys.stderr, flush=True)


# --- legal values -------------------------------------------------------------
class Rule(NamedTuple):
    """Which values a knob may have."""
    allows: Callable  # value -> bool
    words: str  # completes the sentence "the knob must be ..."


def number(allows, words):
    """Rule for finite numbers: NaN and infinities are never legal."""
    def allows_finite(value):
        is_number = type(value) in (int, float)
        # not math.isfinite, which overflows on a huge int
        return is_number and -math.inf < value < math.inf and allows(value)
    return Rule(allows_finite, words)


def at_least(low):
    return number(lambda value: value >= low, f'at least {low}')


def above(low):
    return number(lambda value: value > low, f'above {low}')


def between(low, high):
    """Both ends are legal."""
    return number(lambda value: low <= value <= high, f'between {low} and {high}')


def above_and_below(low, high):
    return number(lambda value: low < value < high, f'above {low} and below {high}')


def at_least_and_below(low, high):
    return number(lambda value: low <= value < high, f'at least {low} and below {high}')


def one_of(*choices):
    # 'drop or cut', 'cosine, linear or constant'
    all_but_last = ', '.join(choices[:-1])
    words = ' or '.join([all_but_last, choices[-1]])
    return Rule(lambda value: value in choices, words)


def not_empty():
    return Rule(lambda value: value != '', 'a text that is not empty')


def a_device():
    def allows(value):
        return re.fullmatch(r'auto|cpu|cuda(:[0-9]+)?', str(value)) is not None
    return Rule(allows, 'auto, cpu, cuda or cuda:N')


def a_date():
    def allows(value):
        try:
            return value == '' or bool(datetime.date.fromisoformat(value))
        except (TypeError, ValueError):
            return False
    return Rule(allows, 'a day like 2024-07-26, or empty')


# The rule of each knob. A script can replace it: configure(globals(), beta=above(0)).
LEGAL = {
    # what and where
    'model': not_empty(),  # check_models() checks more
    'template_date': a_date(),
    'rope_theta': at_least(0),
    'max_position_embeddings': at_least(0),
    'data': not_empty(),
    'out_dir': not_empty(),
    # batch and length
    'batch_size': at_least(1),
    'micro_batch_tokens': at_least(1),
    'max_length': at_least(2),  # the first token is only read, the second can be trained on
    'overlong': one_of('drop', 'cut'),
    'max_steps': at_least(1),
    'epochs': above(0),
    # what is trained
    'lora_rank': at_least(0),
    'lora_alpha': above(0),
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
    'group_size': at_least(2),  # a completion is compared with the others of its group
    'max_new_tokens': at_least(1),
    'max_prompt_tokens': at_least(1),
    'temperature': above(0),  # logits are divided by it
    'resample_rounds': at_least(0),
    'kv_cache_gb': above(0),
    # the loss of grpo.py, hpt.py and prefix_rft.py
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
    # distill.py
    'teacher': not_empty(),  # check_models() checks more
    'divergence': one_of('sampled', 'reverse_kl', 'forward_kl', 'jsd'),
    'jsd_beta': above_and_below(0, 1),  # at 0 and at 1 the divergence is 0, whatever the models
    'on_policy_fraction': between(0, 1),
    'off_policy': one_of('teacher', 'demonstration'),
    'reward_coef': at_least(0),
    # the loss of dpo.py
    'loss_type': one_of('dpo', 'dpo_norm', 'ipo', 'simpo'),
    'gamma_beta_ratio': at_least(0),
    'label_smoothing': at_least_and_below(0, 0.5),  # at 0.5 the label of a pair carries nothing
    # evaluation, log, checkpoint
    'eval_every': at_least(0),
    'eval_samples': at_least(1),
    'eval_temperature': at_least(0),
    'sample_every': at_least(0),
    'checkpoint_every': at_least(0),
    'log_every': at_least(1),
    # system
    'device': a_device(),
    'dtype': one_of('auto', 'float32', 'bfloat16'),
    'shard': one_of('none', 'optimizer', 'all'),
    # sample.py
    'n': at_least(1),
    'limit': at_least(0),
    'show': at_least(0),
    'write': one_of('samples', 'sft', 'pairs', 'prompts'),
    'out': not_empty(),
}


class PairRule(NamedTuple):
    """Which values two knobs may have together."""
    first: str  # the names of the knobs
    second: str
    allows: Callable  # value of the first, value of the second -> bool
    words: str  # the error message


TOGETHER = [
    # optimizer
    PairRule('min_learning_rate', 'learning_rate', lambda low, peak: low <= peak,
             'min_learning_rate must be at most learning_rate'),
    # what is trained, and where
    PairRule('lora_rank', 'shard', lambda rank, shard: rank == 0 or shard != 'all',
             "lora_rank and shard='all' cannot be combined: take --shard=optimizer, because LoRA's "
             'frozen weights take about half the memory anyway, or --lora_rank=0'),
    # rollouts
    PairRule('updates_per_rollout', 'prompts_per_step', lambda updates, prompts: updates <= prompts,
             'updates_per_rollout must be at most prompts_per_step: '
             'each update takes a share of the prompts'),
    # prefixes of demonstrations
    PairRule('n_prefix', 'group_size', lambda n_prefix, group_size: n_prefix < group_size,
             'n_prefix must be below group_size'),
    PairRule('prefix_low', 'prefix_high', lambda low, high: low <= high,
             'prefix_low must be at most prefix_high'),
    PairRule('prefix_low_end', 'prefix_high', lambda low, high: low <= high,
             'prefix_low_end must be at most prefix_high'),
    # run folder
    PairRule('resume', 'overwrite', lambda resume, overwrite: not (resume and overwrite),
             'resume continues a run and overwrite starts it afresh: one of them must be False'),
    # evaluation
    PairRule('eval_samples', 'eval_temperature', lambda n, temperature: n == 1 or temperature > 0,
             'eval_samples must be 1 with eval_temperature 0: greedy completions of a prompt are alike'),
    # the loss of dpo.py
    PairRule('label_smoothing', 'loss_type', lambda amount, loss: amount == 0 or loss != 'ipo',
             'label_smoothing must be 0 with loss_type ipo: IPO has no smoothed form'),
]


def check_values(knobs, legal, sources):
    """Raises UserError at the first knob with an illegal value.

    `legal` has the knobs' rules; `sources` says, per knob, which file or flag set its value.
    """
    for name, value in knobs.items():
        # only a knob that a fork made None by default can be None
        if value is None or name not in legal:
            continue
        rule = legal[name]
        if not rule.allows(value):
            raise UserError(f'{sources[name]}: {name} must be {rule.words}, not {value!r}')


def check_together(knobs):
    """Raises UserError at the first two knobs in TOGETHER whose values do not go together."""
    for rule in TOGETHER:
        first_value = knobs.get(rule.first)
        second_value = knobs.get(rule.second)
        # the script lacks one of the knobs, or a fork made it None
        if first_value is None or second_value is None:
            continue
        if not rule.allows(first_value, second_value):
            values = f'{rule.first} = {first_value!r}, {rule.second} = {second_value!r}'
            raise UserError(f'{rule.words} ({values})')


def check_out_dir(out_dir, resume, overwrite):
    """Raises UserError if the folder `out_dir` holds files and the user did not say what to do."""
    if resume or overwrite:
        return
    if os.path.exists(out_dir) and os.listdir(out_dir):
        raise UserError(f'out_dir {out_dir} is not empty: say --resume=True or --overwrite=True')


# --- models that another command makes ----------------------------------------
SCRIPTS = ('sft', 'dpo', 'grpo', 'hpt', 'prefix_rft', 'distill')  # each writes its model to its out_dir


def check_models(knobs, path, files):
    """Raises UserError if a local model is missing; the message names the command that makes it.

    `path` is the script's, `files` are the config files of this run.
    """
    for knob in ('model', 'rejected_model', 'teacher'):
        name = knobs.get(knob) or ''
        if os.path.isdir(name) or not looks_local(name):
            continue
        command = command_that_makes(name, path, knobs, files)
        if command:
            advice = f'make it first: {command}'
        else:
            advice = 'give the out_dir of a run, another folder in Hugging Face format, or a hub id'
        raise UserError(f'{knob} {name}: no such folder; {advice}')


def looks_local(name):
    """Whether a model's name must be a folder's. False for gpt2, Qwen/Qwen3-4B, tiny, random:..."""
    first_part = name.split('/')[0]
    starts_like_a_path = name.startswith(('/', '.', '~'))
    too_deep_for_a_hub_id = name.count('/') > 1
    starts_in_a_folder = first_part == 'out' or os.path.isdir(first_part)
    return starts_like_a_path or too_deep_for_a_hub_id or starts_in_a_folder


def command_that_makes(folder, path, knobs, files):
    """The command whose out_dir is `folder`, found by trying; None if there is none.

    It tries each script without config files, with this run's `files`, and with each file that
    nanopost ships. `path` is the running script's.
    """
    home = os.path.dirname(path)
    folder = os.path.normpath(folder)
    # the only model here that no script trains
    if folder == os.path.normpath('out/smollm2'):
        return 'make real, or only python -m tools.smollm2 out/smollm2'

    # without a config file every script writes to out/<its name>
    for script in SCRIPTS:
        if folder == os.path.normpath(f'out/{script}'):
            return command_line(home, script, [])

    # this run's own files come first: the stage before this one often uses the same files
    shipped_files = sorted(glob.glob('config/*.py', root_dir=home))
    shipped_files += sorted(glob.glob('config/papers/*.py', root_dir=home))
    candidates = [files]
    for file in shipped_files:
        candidates.append([file])
    for candidate in candidates:
        for script in SCRIPTS:
            if out_dir_with(candidate, home, script, knobs) == folder:
                return command_line(home, script, candidate)
    return None


def command_line(home, script, files):
    """The command that runs a script in the folder `home` with these config files."""
    script_path = os.path.relpath(f'{home}/{script}.py')
    return ' '.join(['python', script_path, *files])


def out_dir_with(files, home, script, knobs):
    """The out_dir of a script with these config files; None if they are not for this script.

    The files can read `knobs`, those of the running script.
    """
    settings = {'out_dir': f'out/{script}'}  # the default of every script
    try:
        for file in files:
            settings |= read_file(file, home, script, {**knobs, **settings})
    except UserError:
        # a file reads a knob that is not there, or it is broken
        return None
    # a file without `data` only changes another config file, as config/tulu3_4b.py does
    if 'data' not in settings:
        return None
    return os.path.normpath(settings['out_dir'])


# --- config files -------------------------------------------------------------
class ConfigNames:
    """The module-level names of a config file while it runs; notes which ones the file assigns.

    All reads and writes go to `everything`, a dict that has the knobs from the start. `assigned`,
    {name: value}, has only what the file itself assigned.
    """

    def __init__(self, everything):
        self.everything = everything
        self.assigned = {}

    def __getitem__(self, name):
        return self.everything[name]

    def __setitem__(self, name, value):
        self.everything[name] = value
        self.assigned[name] = value

    def __delitem__(self, name):
        del self.everything[name]
        self.assigned.pop(name, None)


def read_file(file, home, script, knobs):
    """{name: value} that a config file assigns. It is looked for here, then in the folder `home`.

    Raises UserError if the file is missing or fails, with the line that failed.
    """
    # so that config/tiny.py is found from any folder
    path = file if os.path.isfile(file) else os.path.join(home, file)
    if not os.path.isfile(path):
        raise UserError(f'no config file {file}; for a flag use --key=value')
    with open(path, 'rb') as f:
        source = f.read()

    # exec() takes two mappings of names. The file's functions and comprehensions look names up in
    # the first one. Its module-level code reads and assigns names through the second one, which
    # passes everything on to the first.
    everything = {**knobs, 'script': script}
    names = ConfigNames(everything)
    try:
        exec(compile(source, path, 'exec'), everything, names)
    except Exception as error:
        line = line_of(error)
        raise UserError(f'{file}:{line}: {type(error).__name__}: {error}') from None

    # the rest is the file's own: modules that it imports, and helpers like _half
    settings = {}
    for name, value in names.assigned.items():
        if not name.startswith('_') and type(value) is not Module:
            settings[name] = value
    return settings


def line_of(error):
    """The line of a config file where `error`, caught in read_file(), was raised."""
    # the traceback begins in read_file(); if the file compiled, the next frame is the file's
    frame_in_file = error.__traceback__.tb_next
    if frame_in_file:
        return frame_in_file.tb_lineno
    # the file did not compile; only a SyntaxError has a line
    return getattr(error, 'lineno', None) or 1


# --- flags --------------------------------------------------------------------
def read_flag(flag, types):
    """(key, value) of the text --key=value; `types` has the knobs' types. UserError without '='."""
    key, equals, text = flag.removeprefix('--').partition('=')
    if not equals:
        raise UserError(f'{flag}: use --key=value')
    return key, value_of(text, types.get(key))


def value_of(text, kind):
    """The value that a flag's text stands for, given the knob's type; else the text itself."""
    # '123' stays a text
    if kind is str:
        return text
    try:
        # float() reads inf and nan too
        if kind is float:
            return float(text)
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    # a list is no knob's value, and a text keeps its quotes
    if type(value) in (int, float, bool, NoneType):
        return value
    return text


# --- configure ----------------------------------------------------------------
def fits(value, kind):
    """Whether a knob of type `kind` can take the value without losing anything."""
    # a knob that is None by default takes any plain value
    if kind is NoneType:
        return type(value) in TYPES
    # 1 fits a float and 1e3 fits an int, but 1.5, infinity and NaN do not fit an int
    if {type(value), kind} == {int, float}:
        return value % 1 == 0 and abs(value) < 1e300
    return type(value) is kind


def override(knobs, types, key, value, source):
    """Sets knobs[key] to the value, in the knob's type, and reports it on rank 0.

    Raises UserError for a key that is no knob and for a value of another type. `source` is the
    file or flag that the value comes from.
    """
    if key not in types:
        near = difflib.get_close_matches(key, types, 1)
        hint = f'nearest: {near[0]!r}' if near else 'see --help'
        raise UserError(f'{source}: no knob {key!r}, {hint}')

    # the default value, not the latest one, decides the type
    kind = types[key]
    if not fits(value, kind):
        raise UserError(f'{source}: {key} takes {TYPES[kind]}, not {value!r}')
    knobs[key] = value if kind is NoneType else kind(value)
    if RANK == 0:
        print(f'{source}: {key} = {knobs[key]!r}')


def apply_arguments(knobs, files, flags, home, filename):
    """Overrides the knobs with config files and flags; returns {knob: where its value is from}."""
    script = filename.removesuffix('.py')
    types = {name: type(value) for name, value in knobs.items()}
    sources = dict.fromkeys(knobs, filename)
    # files first, wherever they stand on the command line, because flags win
    for file in files:
        for key, value in read_file(file, home, script, knobs).items():
            override(knobs, types, key, value, file)
            sources[key] = file
    for flag in flags:
        key, value = read_flag(flag, types)
        override(knobs, types, key, value, flag)
        sources[key] = flag
    return sources


def find_line(lines, pattern, start=0):
    """The index of the first line, from `start` on, whose beginning matches the pattern."""
    for i in range(start, len(lines)):
        if re.match(pattern, lines[i]):
            return i
    raise ValueError(f'no line matches {pattern}')


def print_help(path, docstring, first_knob):
    """Prints the first paragraph of the script's docstring, and its config block.

    The block goes from the headings above the first knob to the line before configure().
    """
    with open(path) as f:
        lines = f.readlines()
    # the first knob's line begins like `a = 1`, `a, b = 1, 2` or `a: int = 1`
    start = find_line(lines, rf'{first_knob}\s*[=,:]')
    end = find_line(lines, r'.*configure\(', start)
    while start > 0 and lines[start - 1].startswith('#'):
        start -= 1

    summary = docstring.split('\n\n')[0]
    block = ''.join(lines[start:end])
    print(summary, block, sep='\n\n', end='')


def knobs_of(namespace):
    """{name: value} of the public names with plain values."""
    knobs = {}
    for name, value in namespace.items():
        if not name.startswith('_') and type(value) in TYPES:
            knobs[name] = value
    return knobs


def configure(namespace, **rules):
    """Applies sys.argv to the knobs of a script and checks them; returns {knob: value}.

    `namespace` is the script's globals(): its knobs are the public names with plain values so far.
    `rules`, {knob: Rule}, replace those of LEGAL for this script. Raises UserError.
    """
    # from here on every UserError of the script is printed as one line
    sys.excepthook = partial(excepthook, sys.excepthook)

    path = os.path.abspath(namespace['__file__'])
    home, filename = os.path.split(path)
    knobs = knobs_of(namespace)

    # a rule for a name that is no knob is a bug of the script
    for name in rules:
        if name not in knobs:
            raise TypeError(f'configure() got a rule for {name!r}, which is no knob')

    # --help ends the script, whatever else is on the command line
    arguments = sys.argv[1:]
    if '-h' in arguments or '--help' in arguments:
        if RANK == 0:
            first_knob = next(iter(knobs))
            print_help(path, namespace['__doc__'] or '', first_knob)
        sys.exit()

    # everything that is no flag is the name of a config file
    files = [argument for argument in arguments if not argument.startswith('-')]
    flags = [argument for argument in arguments if argument.startswith('-')]
    sources = apply_arguments(knobs, files, flags, home, filename)

    # after all overrides, so that a flag can correct a value of a config file
    check_values(knobs, {**LEGAL, **rules}, sources)
    check_together(knobs)
    check_models(knobs, path, files)

    # the script's own variables get the new values
    namespace.update(knobs)
    return knobs
