"""Settings of a script: config block < config files < --key=value; any number of either, in any order.

A config file is Python: assignments to the script's knobs, which it can read too, as it can the name `script`
('sft' in sft.py). Modules it imports and names that begin with '_' are its own affair.
"""
import ast
import builtins
import difflib
import os
import re
import signal
import sys
import time
from contextlib import suppress
from functools import partial

RANK = int(os.environ.get('RANK', 0))
TYPES = {int: 'an int', float: 'a float', bool: 'True or False', type(None): 'a plain value', str: 'a str'}
OUT_OF_MEMORY = (
    'out of memory: see the memory plan above; turn, in this order, micro_batch_tokens (half of it),\n'
    'activation_checkpointing=True, kv_cache_gb (half), max_new_tokens, max_length, more GPUs')


class UserError(Exception):
    """A mistake of the person at the keyboard: one line on stderr, rank 0 first, no traceback, exit 1."""


def excepthook(previous, kind, error, trace):
    if not issubclass(kind, UserError):
        previous(kind, error, trace)
        if re.search("out of memory|can't allocate memory", str(error)):
            print(OUT_OF_MEMORY, file=sys.stderr, flush=True)
        return
    if RANK > 0:  # torchrun ends all ranks when the first one ends: let rank 0 speak
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(3)
    print('error:', ' '.join(str(error).splitlines()), file=sys.stderr, flush=True)


def override(knobs, types, key, value, source):
    """knobs[key] = value, in the knob's type. UserError: source, key, and expected type or nearest key."""
    if key not in types:
        near = difflib.get_close_matches(key, types, 1)
        raise UserError(f'{source}: no knob {key!r}, ' + (f'nearest: {near[0]!r}' if near else 'see --help'))
    kind, given = types[key], type(value)
    if {given, kind} == {int, float} and value % 1 == 0 and abs(value) < 1e300:
        value = kind(value)  # 1 will do for 1.0, and 1e3 for 1000
    elif given is not kind and (kind is not type(None) or given not in TYPES):
        raise UserError(f'{source}: {key} takes {TYPES[kind]}, not {value!r}')
    knobs[key] = value
    if RANK == 0:
        print(f'{source}: {key} = {value!r}')


def configure(namespace):
    """Applies sys.argv to the knobs of a script, whose globals() are `namespace`; returns {knob: value}."""
    sys.excepthook, path = partial(excepthook, sys.excepthook), os.path.abspath(namespace['__file__'])
    knobs = {k: v for k, v in namespace.items() if k[0] != '_' and type(v) in TYPES}
    types = {k: type(v) for k, v in knobs.items()}
    if {'-h', '--help'} & set(sys.argv[1:]):
        block = re.search(rf'^((#.*\n)*{[*knobs][0]}\s*[=,:](.*\n)*?).*configure\(', open(path).read(), re.M)
        if RANK == 0:
            print((namespace['__doc__'] or '').split('\n\n')[0], block[1], sep='\n\n', end='')
        sys.exit()
    for arg in [a for a in sys.argv[1:] if a[:1] != '-']:
        found = arg if os.path.isfile(arg) else os.path.join(os.path.dirname(path), arg)
        if not os.path.isfile(found):
            raise UserError(f'no config file {arg}; for a flag use --key=value')
        # The file reads knobs the way it reads builtins, so all that `scope` holds afterwards it assigned.
        scope = {'__builtins__': {**vars(builtins), **knobs, 'script': os.path.basename(path)[:-3]}}
        try:
            exec(compile(open(found, 'rb').read(), found, 'exec'), scope)
        except Exception as error:
            line = getattr(error.__traceback__.tb_next, 'tb_lineno', 0) or getattr(error, 'lineno', 0) or 1
            raise UserError(f'{arg}:{line}: {type(error).__name__}: {error}') from None
        for key in [k for k, v in scope.items() if k[0] != '_' and type(v) is not type(sys)]:
            override(knobs, types, key, scope[key], arg)
    for arg in [a for a in sys.argv[1:] if a[:1] == '-']:
        key, equals, value = arg.removeprefix('--').partition('=')
        if not equals:
            raise UserError(f'{arg}: use --key=value')
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):  # no literal: the text itself
            literal = float(value) if types.get(key) is float else ast.literal_eval(value)
            value = literal if types.get(key) is not str and type(literal) in [*TYPES][:4] else value
        override(knobs, types, key, value, arg)
    namespace.update(knobs)
    return knobs
