"""Runs a method script as it stands, up to its loop and then a few steps at a time.

    script = start('grpo.py', ['--model=tiny', ...])   # everything before the loop has run
    advance(script, 4)                                 # four optimizer steps
    script.names['policy'], script.metrics[-1]['loss']

The loop is the last `while` at the top level of the file. It is found in the syntax tree, so that
comments, blank lines and the order of functions are free to change.
"""
import ast
import os
import sys
from dataclasses import dataclass
from types import CodeType

import run as run_module

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass
class Script:
    """A script that is somewhere in its loop."""
    names: dict  # its globals: functions, settings, step, policy
    loop: CodeType  # its loop, to be executed with these names
    metrics: list  # of dicts: what it has logged, one for each step or evaluation


def split_at_loop(path):
    """Compiles a script -> (code of all that is before its loop, code of the loop)."""
    with open(path) as f:
        statements = ast.parse(f.read()).body
    loops = [i for i, statement in enumerate(statements) if isinstance(statement, ast.While)]
    last = loops[-1]
    # whole statements with their line numbers: a traceback points into the script
    before = compile(ast.Module(statements[:last], []), path, 'exec')
    loop = compile(ast.Module([statements[last]], []), path, 'exec')
    return before, loop


def names_before_loop(path, code, flags):
    """Executes the code before a script's loop with these flags; returns the script's globals."""
    names = {'__file__': path, '__name__': '__main__', '__doc__': ''}
    previous = sys.argv, sys.excepthook, run_module.catch_stop
    # Ctrl-C ends the measurement, not only the script's step
    run_module.catch_stop = run_module.Stop
    sys.argv = [os.path.basename(path), *flags]
    try:
        exec(code, names)
    finally:
        sys.argv, sys.excepthook, run_module.catch_stop = previous
    return names


def start(file, flags):
    """Runs a script of the project's root up to its loop -> Script. It writes no log and no model.

    `flags` are --key=value texts.
    """
    path = os.path.join(ROOT, file)
    before, loop = split_at_loop(path)
    names = names_before_loop(path, before, flags)
    # metrics stay in memory
    metrics = []
    names['log'].close()
    names['log'] = metrics.append
    # the loop saves when it reaches max_steps, which advance() moves on: a checkpoint is not wanted
    names['save_checkpoint'] = names['save_model'] = lambda *_, **__: None
    return Script(names, loop, metrics)


def advance(script, steps):
    """Makes so many optimizer steps of a script's loop, which then ends as if it had reached max_steps."""
    script.names['max_steps'] = script.names['step'] + steps
    exec(script.loop, script.names)
