"""configurator.py: what overrides what, conversions, and that every mistake is one line naming its place."""
import math
import os
import subprocess
import sys
import time

import pytest
import torch

import configurator
from configurator import UserError, configure

REPOSITORY = os.path.dirname(os.path.abspath(configurator.__file__))
SCRIPT = '''"""Teaches nothing,
for now.

    python sft.py
"""
import os
import sys

from configurator import UserError, configure

# --- config ---
# the optimizer
learning_rate = 1e-3  # peak
beta1, beta2 = 0.9, 0.95
max_steps = 500
resume = False
run_name = ''
seed = None
_private = 3
config = configure(globals())
print(config)
if run_name == 'mistake':
    raise UserError('two\\nlines')
if run_name == 'bug':
    raise KeyError('a bug')
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with sft.py, the current one."""
    (tmp_path / 'sft.py').write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)  # configure replaces it
    return tmp_path


def run(*args, **variables):
    """stdout, stderr and exit code of sft.py as a user would run it."""
    done = subprocess.run([sys.executable, 'sft.py', *args], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': REPOSITORY, **variables})
    return done.stdout, done.stderr, done.returncode


@pytest.fixture
def knobs(folder, monkeypatch):
    """knobs(*args): what configure makes of these arguments."""
    def knobs(*args):
        monkeypatch.setattr(sys, 'argv', ['sft.py', *args])
        namespace = {'__file__': str(folder / 'sft.py'), '__doc__': None, 'os': os, 'UserError': UserError,
                     'learning_rate': 1e-3, 'max_steps': 500, 'resume': False, 'run_name': '', 'seed': None,
                     '_private': 3, 'sizes': [1]}
        config = configure(namespace)
        assert config == {name: namespace[name] for name in config} or math.isnan(config['learning_rate'])
        return config
    return knobs


def test_knobs_are_the_public_plain_values(knobs):
    assert knobs() == {'learning_rate': 1e-3, 'max_steps': 500, 'resume': False, 'run_name': '', 'seed': None}


def test_flags_win_over_files_and_later_files_over_earlier(knobs, folder):
    (folder / 'a.py').write_text('max_steps = 1\nlearning_rate = 0.1\nseed = 1')
    (folder / 'b.py').write_text('max_steps = 2\nlearning_rate = 0.2')
    config = knobs('--max_steps=3', 'a.py', 'b.py')
    assert (config['max_steps'], config['learning_rate'], config['seed']) == (3, 0.2, 1)
    assert knobs('a.py', '--max_steps=3', 'b.py', '--max_steps=4') == {**config, 'max_steps': 4}
    assert knobs('b.py', 'a.py')['max_steps'] == 1


def test_a_file_computes_from_script_and_knobs(knobs, folder):
    (folder / 'a.py').write_text("import os.path\n_half = max_steps // 2\nmax_steps = _half\n"
                                 "if script == 'sft':\n    learning_rate /= sum(2 for _ in [0] * max_steps)\n"
                                 "def _f():\n    return run_name + 'x'\nrun_name = _f()")
    (folder / 'b.py').write_text('seed = max_steps')
    config = knobs('a.py', 'b.py')
    assert config == {'learning_rate': 1e-3 / 500, 'max_steps': 250, 'resume': False, 'run_name': 'x',
                      'seed': 250}


@pytest.mark.parametrize('flag, value', [
    ('--max_steps=1e3', 1000), ('--max_steps=-7', -7), ('--max_steps=1_000', 1000),
    ('--learning_rate=1', 1.0), ('--learning_rate=1e-6', 1e-6), ('--learning_rate=inf', math.inf),
    ('--resume=True', True),
    ('--resume=False', False), ('--run_name=123', '123'), ('--run_name=True', 'True'), ('--run_name=', ''),
    ('--run_name=a=b=c', 'a=b=c'), ('--run_name="q"', '"q"'), ('--seed=None', None), ('--seed=5', 5),
    ('--seed=0.5', 0.5), ('--seed=True', True), ('--seed=a b', 'a b'), ('--seed="5"', '"5"'),
    ('--seed=(1,2)', '(1,2)'),
    ('--seed=' + '(' * 1000, '(' * 1000), ('--seed=' + '-' * 100000, '-' * 100000),
    ('--seed=' + '-' * 100000 + '1', '-' * 100000 + '1')], ids=lambda value: str(value)[:40])
def test_flags_are_read_as_the_knob_wants(knobs, flag, value):
    got = knobs(flag)[flag[2:].partition('=')[0]]
    assert got == value and type(got) is type(value)


def test_nan_is_a_float(knobs):
    assert math.isnan(knobs('--learning_rate=nan')['learning_rate'])


@pytest.mark.parametrize('line, value', [
    ('max_steps = 1e3', 1000), ('learning_rate = 1', 1.0), ('seed = "a"', 'a'), ('seed = None', None),
    ('resume = max_steps > 1', True)])
def test_files_are_converted_like_flags(knobs, folder, line, value):
    (folder / 'a.py').write_text(line)
    got = knobs('a.py')[line.split()[0]]
    assert got == value and type(got) is type(value)


def test_the_default_decides_the_type_whatever_a_file_said(knobs, folder):
    (folder / 'a.py').write_text('seed = 5')
    assert knobs('a.py', '--seed=text')['seed'] == 'text'


@pytest.mark.parametrize('flag, parts', [
    ('--max_stps=5', ["no knob 'max_stps'", "'max_steps'"]), ('--script=sft', ["no knob 'script'"]),
    ('--_private=4', ["no knob '_private'"]), ('--zzzzzz=1', ['--help']), ('-max_steps=5', ["'max_steps'"]),
    ('--max_steps=1.5', ['max_steps takes an int, not 1.5']), ('--max_steps=True', ['an int, not True']),
    ('--max_steps=nan', ["an int, not 'nan'"]), ('--max_steps=1e999', ['an int, not inf']),
    ('--max_steps=None', ['an int, not None']), ('--max_steps=', ["an int, not ''"]),
    ('--learning_rate=fast', ["a float, not 'fast'"]), ('--learning_rate=True', ["a float, not 'True'"]),
    ('--resume=1', ['True or False, not 1']), ('--resume=true', ["True or False, not 'true'"]),
    ('--resume', ['use --key=value']), ('-x', ['use --key=value']), ('--', ['use --key=value'])])
def test_wrong_flags_are_named(knobs, flag, parts):
    with pytest.raises(UserError) as error:
        knobs(flag)
    assert all(part in str(error.value) for part in [flag, *parts])


@pytest.mark.parametrize('text, parts', [
    ('max_stps = 5', ["a.py: no knob 'max_stps'", "'max_steps'"]), ("script = 'grpo'", ["no knob 'script'"]),
    ('max_steps = "5"', ["a.py: max_steps takes an int, not '5'"]),
    ('max_steps = True', ['an int, not True']), ('max_steps = 1.5', ['an int, not 1.5']),
    ('run_name = 123', ['run_name takes a str, not 123']),
    ('resume = 0', ['True or False, not 0']), ('learning_rate = None', ['a float, not None']),
    ('learning_rate = True', ['a float, not True']), ('learning_rate = 10 ** 400', ['a float']),
    ('seed = [1]', ['seed takes', '[1]']), ('from math import pi', ["no knob 'pi'"]),
    ('max_steps = 1\nmax_steps = (', ['a.py:2: SyntaxError']), ('\n\nseed = max_stps', ['a.py:3: NameError']),
    ('max_steps = 1\n1/0', ['a.py:2: ZeroDivisionError']), ('\x00', ['a.py:1: ']),
    ("import os\n\nopen('no')", ['a.py:3: FileNotF'])])
def test_wrong_files_are_named(knobs, folder, text, parts):
    (folder / 'a.py').write_text(text)
    with pytest.raises(UserError) as error:
        knobs('a.py')
    assert all(part in str(error.value) for part in parts)


def test_a_missing_file_is_named_and_a_blank_for_the_equals_sign_explained(knobs, folder):
    with pytest.raises(UserError, match='config/nowhere.py'):
        knobs('config/nowhere.py')
    (folder / 'a.py').write_text('')
    for value in '5', 'a.py':  # the value may be the name of a file
        with pytest.raises(UserError, match='use --key=value'):
            knobs('--run_name', value)


def test_files_are_found_here_and_beside_the_script(knobs, folder, monkeypatch):
    (folder / 'config').mkdir()
    (folder / 'config' / 'a.py').write_text('max_steps = 1')
    (folder / 'elsewhere' / 'config').mkdir(parents=True)
    monkeypatch.chdir(folder / 'elsewhere')
    assert knobs('config/a.py')['max_steps'] == 1
    (folder / 'elsewhere' / 'config' / 'a.py').write_text('max_steps = 2')
    assert knobs('config/a.py')['max_steps'] == 2 and knobs(str(folder / 'config/a.py'))['max_steps'] == 1


def test_rank_0_prints_one_line_for_each_override(knobs, folder, monkeypatch, capsys):
    (folder / 'a.py').write_text('learning_rate = 1e-4\nmax_steps = 500')
    knobs('--seed=1', 'a.py')
    assert capsys.readouterr().out == ('a.py: learning_rate = 0.0001\na.py: max_steps = 500\n'
                                       '--seed=1: seed = 1\n')
    monkeypatch.setattr(configurator, 'RANK', 1)
    knobs('--seed=1', 'a.py')
    assert capsys.readouterr().out == ''


def test_help_prints_the_config_block(folder):
    block = SCRIPT[SCRIPT.index('# --- config'):SCRIPT.index('config = configure')]
    for flag in '-h', '--help':
        assert run('--max_steps=5', flag) == (f'Teaches nothing,\nfor now.\n\n{block}', '', 0)
    assert run('--help', RANK='1') == ('', '', 0)


def test_a_mistake_is_one_line_and_exit_code_1(folder):
    out, err, code = run('--max_stps=5')
    assert (out, code) == ('', 1) and err == "error: --max_stps=5: no knob 'max_stps', nearest: 'max_steps'\n"
    out, err, code = run('--run_name=mistake')  # after configure too
    assert (err, code) == ('error: two lines\n', 1)


def test_other_ranks_let_rank_0_speak_first(folder):
    """torchrun ends them meanwhile; where rank 0 has no error (its disk is not full), theirs is said after all."""
    start = time.perf_counter()
    out, err, code = run('--max_stps=5', RANK='1')
    assert (out, code) == ('', 1) and err.startswith('error: ')
    assert time.perf_counter() - start > 2.5


def test_a_bug_keeps_its_traceback(folder):
    out, err, code = run('--run_name=bug', RANK='1')
    assert code == 1 and err.startswith('Traceback') and "KeyError: 'a bug'" in err


def test_a_hook_that_was_there_still_gets_other_exceptions(knobs, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, 'excepthook', lambda *args: seen.append(args))
    knobs()
    sys.excepthook(KeyError, KeyError('x'), None)
    sys.excepthook(UserError, UserError('x'), None)
    assert [kind for kind, *_ in seen] == [KeyError]


def test_out_of_memory_names_the_knobs(capsys):
    """A real failed allocation: 4 EB."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(10 ** 18)
    configurator.excepthook(lambda *_: None, RuntimeError, error.value, None)
    said = capsys.readouterr().err
    assert said.index('micro_batch_tokens') < said.index('activation_checkpointing') < said.index('kv_cache_gb')
    configurator.excepthook(lambda *_: None, RuntimeError, RuntimeError('other'), None)
    assert capsys.readouterr().err == ''
