"""Knobs: config block < config files < --key=value. In a script, after its config block: config = configure(globals())

A config file is Python: assignments to knobs, with the predefined name `script` ('sft', 'grpo', ...) and the knobs
themselves to compute from; names that begin with _ are its own. Config files are code: run only those you trust.
"""
import ast
import difflib
import os
import sys
import time


class UserError(Exception):
    """A mistake of the person at the keyboard: shown as one line by rank 0, without a traceback, exit code 1."""


def report(kind, value, traceback):
    if not issubclass(kind, UserError):
        sys.__excepthook__(kind, value, traceback)
    elif int(os.environ.get('RANK', 0)) == 0:
        print(f'error: {value}', file=sys.stderr, flush=True)
    else:
        time.sleep(3)  # torchrun kills the others when the first rank ends: let rank 0 speak


def assign(knobs, key, value, where):
    """knobs[key] = value in the knob's type. UserError for a misspelt key (naming the nearest) or a wrong type."""
    if key not in knobs:
        near = difflib.get_close_matches(key, knobs, 1)
        raise UserError(f'{where}: no knob {key!r}' + (f', did you mean {near[0]!r}?' if near else '; --help lists them'))
    kind, given = type(knobs[key]), type(value)
    if kind is float and given is int or kind is int and given is float and value.is_integer():
        value = kind(value)  # 1 is a fine float and 1e3 a fine int
    elif given is not kind and knobs[key] is not None:
        raise UserError(f'{where}: {key} must be {kind.__name__}, not {given.__name__} {value!r}')
    knobs[key] = value
    if int(os.environ.get('RANK', 0)) == 0:
        print(f'{where.split("=")[0]}: {key} = {value!r}')


def configure(namespace):
    """Read sys.argv, write the knobs into `namespace` (a script's globals) and return them as a dict.

    Knobs are the public names of plain value defined so far. Raises UserError: a config file that is not there or
    does not run (file:line), a misspelt key, a wrong type. Only rank 0 prints."""
    sys.excepthook = report
    script = namespace['__file__']
    knobs = {k: v for k, v in namespace.items()
             if k[0] != '_' and (v is None or isinstance(v, (bool, int, float, str)))}
    if {'--help', '-h'} & set(sys.argv[1:]):
        if int(os.environ.get('RANK', 0)) == 0:
            source = open(script).read()
            print(namespace['__doc__'], source[source.find('# --- config'):source.find('\nconfig = configure(')], sep='\n')
        sys.exit(0)
    for path in [a for a in sys.argv[1:] if a[0] != '-']:
        near = os.path.join(os.path.dirname(os.path.abspath(script)), path)
        found = next((p for p in (path, near) if os.path.isfile(p)), None)
        if found is None:
            raise UserError(f'config file {path}: no such file (flags are written --key=value)')
        scope = {**knobs, 'script': os.path.splitext(os.path.basename(script))[0]}
        before = dict(scope)
        try:
            exec(compile(open(found).read(), found, 'exec'), scope)
        except Exception as error:
            line = error.lineno if isinstance(error, SyntaxError) else error.__traceback__.tb_next.tb_lineno
            raise UserError(f'{path}:{line}: {type(error).__name__}: {error}') from None
        for key, value in scope.items():
            if key[0] != '_' and type(value).__name__ != 'module' and (key not in before or value is not before[key]):
                assign(knobs, key, value, path)
    for flag in [a for a in sys.argv[1:] if a[0] == '-']:
        key, equals, value = flag.removeprefix('--').partition('=')
        if not equals or flag[:2] != '--':
            raise UserError(f'{flag}: write --key=value')
        if not isinstance(knobs.get(key), str):  # a str knob takes its text verbatim
            try:
                value = float(value) if isinstance(knobs.get(key), float) else ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pass  # text: a wrong type for most knobs, said below
        assign(knobs, key, value, flag)
    namespace.update(knobs)
    return knobs
