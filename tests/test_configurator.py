"""configurator.py: what overrides what, conversions, and that every mistake is one line naming its place."""
import ast
import json
import math
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch

import configurator
from configurator import LEGAL, TOGETHER, UserError, above, at_least, check_out_dir, configure, one_of

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


FREE = {'offset': 0, 'factor': 1.0}  # knobs of a fork: no rule is known for them


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
                     '_private': 3, 'sizes': [1], **FREE}
        config = configure(namespace)
        assert repr(config) == repr({name: namespace[name] for name in config})  # NaN is not NaN
        return config
    return knobs


def test_knobs_are_the_public_plain_values(knobs):
    assert knobs() == {'learning_rate': 1e-3, 'max_steps': 500, 'resume': False, 'run_name': '', 'seed': None, **FREE}


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
                      'seed': 250, **FREE}


def test_only_what_a_file_really_assigns_is_an_override(knobs, folder, capsys):
    """Not a knob that it reads, deletes again, or assigns in a branch that is not taken; the same value counts."""
    (folder / 'a.py').write_text("if script == 'grpo':\n    learning_rate = 5.0\nelse:\n    max_steps = max_steps\n"
                                 "_copy = seed\nrun_name = 'x'\ndel run_name\n")
    assert knobs('a.py') == knobs()
    assert capsys.readouterr().out == 'a.py: max_steps = 500\n'


@pytest.mark.parametrize('line', [
    'max_steps, seed = 7, 1', 'max_steps: int = 7', 'max_steps += -493', '(max_steps := 7)', 'for max_steps in (1, 7):\n    pass',
    'with open(__import__("os").devnull) as _f:\n    max_steps = 7', 'try:\n    1/0\nexcept ZeroDivisionError as error:\n    max_steps = 7'])
def test_every_form_of_assignment_counts(knobs, folder, line):
    (folder / 'a.py').write_text(line)
    assert knobs('a.py')['max_steps'] == 7


@pytest.mark.parametrize('text', [
    'def _f():\n    return [max_steps * _factor for _ in range(1)][0]\n_factor = 3\nseed = _f()',
    '_factor = 3\nseed = [max_steps * _factor for _ in range(1)][0]', '_factor = 3\nseed = sum(max_steps * _factor for _ in range(1))',
    '_factor = 3\nclass _C:\n    value = max_steps * _factor\nseed = _C.value', 'max_steps = 1500\nseed = (lambda: max_steps)()'])
def test_functions_and_comprehensions_see_knobs_and_the_file_s_own_names(knobs, folder, text):
    (folder / 'a.py').write_text(text)
    assert knobs('a.py')['seed'] == 1500


@pytest.mark.parametrize('flag, value', [
    ('--max_steps=1e3', 1000), ('--offset=-7', -7), ('--max_steps=1_000', 1000),
    ('--learning_rate=1', 1.0), ('--learning_rate=1e-6', 1e-6), ('--factor=inf', math.inf),
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
    assert math.isnan(knobs('--factor=nan')['factor'])


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
    ("import os\n\nopen('no')", ['a.py:3: FileNotF']), ("\neval('(')", ['a.py:2: SyntaxError'])])
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


# --- legal values ---------------------------------------------------------------------------------
SCRIPTS = ['sft', 'dpo', 'grpo', 'hpt', 'prefix_rft', 'distill', 'sample']
ANY_VALUE = {  # texts that name data and ways to read them, and the seed
    'chat_template', 'eval_data', 'eval_prompts', 'verifier', 'languages', 'instruction', 'wandb_project', 'seed',
    'rejected_model'}  # '' or a model: see check_models

# Of every rule: legal values at its ends, values just beyond them, and the words of the message.
AT_LEAST_0 = [0, 5], [-1], 'at least 0'
AT_LEAST_1 = [1, 5], [0, -1], 'at least 1'
AT_LEAST_0_FLOAT = [0.0, 2.5], [-1e-9, math.nan, math.inf, -math.inf], 'at least 0'
ABOVE_0 = [1e-9, 2.5], [0.0, -1.0, math.nan, math.inf, -math.inf], 'above 0'
SHARE = [0.0, 0.5, 1.0], [-1e-9, 1.000001, math.nan, math.inf], 'between 0 and 1'
DECAY = [0.0, 0.999], [-1e-9, 1.0, math.nan, math.inf], 'at least 0 and below 1'
NAME = ['x'], [''], 'a text that is not empty'
DEVICES = ['auto', 'cpu', 'cuda', 'cuda:0', 'cuda:11']
NO_DEVICES = ['', 'gpu', 'CPU', 'cuda:', 'cuda:x', 'cuda:1x', 'cpu:0']
RULES = {
    'model': (['tiny', 'random:qwen3-4b', 'Qwen/Qwen3-4B', 'gpt2'], [''], NAME[2]), 'data': NAME, 'out_dir': NAME,
    'batch_size': AT_LEAST_1, 'micro_batch_tokens': AT_LEAST_1, 'max_length': ([2, 9], [1, 0], 'at least 2'),
    'overlong': (['drop', 'cut'], ['', 'Drop', 'truncate'], 'drop or cut'),
    'max_steps': AT_LEAST_1, 'epochs': ABOVE_0,
    'learning_rate': AT_LEAST_0_FLOAT, 'min_learning_rate': AT_LEAST_0_FLOAT,
    'schedule': (['cosine', 'linear', 'constant'], ['', 'cos', 'constant '], 'cosine, linear or constant'),
    'warmup_steps': AT_LEAST_0, 'weight_decay': AT_LEAST_0_FLOAT, 'beta1': DECAY, 'beta2': DECAY,
    'grad_clip': AT_LEAST_0_FLOAT,
    'prompts_per_step': AT_LEAST_1, 'group_size': ([2, 8], [1, 0, -2], 'at least 2'),
    'max_new_tokens': AT_LEAST_1, 'max_prompt_tokens': AT_LEAST_1, 'temperature': ABOVE_0,
    'resample_rounds': AT_LEAST_0, 'kv_cache_gb': ABOVE_0,
    'updates_per_rollout': AT_LEAST_1, 'clip_low': SHARE, 'clip_high': AT_LEAST_0_FLOAT,
    'loss_denominator': (['tokens', 'sequences', 'constant'], ['token', ''], 'tokens, sequences or constant'),
    'importance_cap': AT_LEAST_0_FLOAT, 'beta': AT_LEAST_0_FLOAT,
    'template_date': (['', '2025-02-28'], ['2025-02-29', 'today', '28.2.2025'], 'a day like 2024-07-26, or empty'),
    'rope_theta': AT_LEAST_0_FLOAT, 'max_position_embeddings': AT_LEAST_0, 'lora_rank': AT_LEAST_0, 'lora_alpha': ABOVE_0,
    'shard': (['none', 'optimizer', 'all'], ['full', ''], 'none, optimizer or all'),
    'without_demonstration': (['error', 'drop', 'rl'], ['sft', ''], 'error, drop or rl'),
    'gamma': ([-1.0, 0.25, 1.0], [-1.01, 1.01, math.nan], 'between -1 and 1'),
    'sft_coef': AT_LEAST_0_FLOAT, 'rl_coef': AT_LEAST_0_FLOAT,
    'n_prefix': AT_LEAST_0, 'prefix_low': SHARE, 'prefix_low_end': SHARE, 'prefix_high': SHARE,
    'prefix_steps': AT_LEAST_1, 'prefix_entropy': SHARE,
    'prefix_baseline': (['group', 'free'], ['all', ''], 'group or free'),
    'teacher': NAME, 'divergence': (['sampled', 'reverse_kl', 'forward_kl', 'jsd'], ['kl', ''], 'sampled, reverse_kl, forward_kl or jsd'),
    'jsd_beta': ([0.1, 0.9], [0.0, 1.0, math.nan], 'above 0 and below 1'), 'on_policy_fraction': SHARE,
    'off_policy': (['teacher', 'demonstration'], ['student', ''], 'teacher or demonstration'), 'reward_coef': AT_LEAST_0_FLOAT,
    'loss_type': (['dpo', 'dpo_norm', 'ipo', 'simpo'], ['sigmoid', ''], 'dpo, dpo_norm, ipo or simpo'),
    'gamma_beta_ratio': AT_LEAST_0_FLOAT,
    'eval_samples': ([1, 8], [0, -1], 'at least 1'),
    'eval_temperature': ([0.0, 1.0], [-1e-9, math.nan], 'at least 0'),
    'label_smoothing': ([0.0, 0.49], [-1e-9, 0.5, 1.0, math.nan], 'at least 0 and below 0.5'),
    'eval_every': AT_LEAST_0, 'sample_every': AT_LEAST_0, 'checkpoint_every': AT_LEAST_0, 'log_every': AT_LEAST_1,
    'device': (DEVICES, NO_DEVICES, 'auto, cpu, cuda or cuda:N'),
    'dtype': (['auto', 'float32', 'bfloat16'], ['float16', 'bf16', ''], 'auto, float32 or bfloat16'),
    'n': AT_LEAST_1, 'limit': AT_LEAST_0, 'show': AT_LEAST_0,
    'write': (['samples', 'sft', 'pairs', 'prompts'], ['pair', ''], 'samples, sft, pairs or prompts'), 'out': NAME}


@pytest.fixture
def with_knobs(folder, monkeypatch):
    """with_knobs({knob: default}, *args, **rules): what configure makes of a script with these knobs."""
    def with_knobs(defaults, *args, **rules):
        monkeypatch.setattr(sys, 'argv', ['sft.py', *args])
        return configure({'__file__': str(folder / 'sft.py'), '__doc__': None, **defaults}, **rules)
    return with_knobs


def refusal(with_knobs, *args, **rules):
    """The message of the UserError; it is one line."""
    with pytest.raises(UserError) as error:
        with_knobs(*args, **rules)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_every_rule_has_its_test():
    assert set(RULES) == set(LEGAL)


@pytest.mark.parametrize('knob', LEGAL)
def test_legal_values_are_taken_and_others_refused(with_knobs, knob):
    legal, illegal, words = RULES[knob]
    for value in legal:
        assert with_knobs({knob: legal[0]}, f'--{knob}={value}') == {knob: value}
        assert with_knobs({knob: value}) == {knob: value}
    for value in illegal:
        flag = f'--{knob}={value}'
        assert refusal(with_knobs, {knob: legal[0]}, flag) == f'{flag}: {knob} must be {words}, not {value!r}'


def test_a_text_or_infinity_in_the_place_of_a_number(with_knobs):
    """Whatever rule a number has, NaN and the infinities break it; an int may have any size."""
    numbers = {knob: legal[0] for knob, (legal, _, _) in RULES.items() if type(legal[0]) in (int, float)}
    assert len(numbers) > 30
    for knob in numbers:
        for value in math.nan, math.inf, -math.inf, 'text':
            assert not LEGAL[knob].allows(value), knob
    assert with_knobs({'max_steps': 5}, f'--max_steps={10 ** 400}')['max_steps'] == 10 ** 400
    assert not LEGAL['device'].allows('cuda\n')


@pytest.mark.parametrize('seed', [-1, 0, 202411261823, 2 ** 32, 2 ** 64, 10 ** 30])
def test_any_int_is_a_seed(with_knobs, seed):
    assert with_knobs({'seed': 1337}, f'--seed={seed}') == {'seed': seed}


def test_values_are_checked_after_all_overrides(with_knobs, folder):
    """A flag mends a file; the message names who set the value last."""
    (folder / 'a.py').write_text('max_steps = 0')
    (folder / 'b.py').write_text('max_steps = -1')
    assert with_knobs({'max_steps': 5}, 'a.py', '--max_steps=3')['max_steps'] == 3
    assert with_knobs({'max_steps': 5}, '--max_steps=0', '--max_steps=3')['max_steps'] == 3
    assert refusal(with_knobs, {'max_steps': 5}, 'b.py', 'a.py').startswith('a.py: max_steps must be at least 1, not 0')
    assert refusal(with_knobs, {'max_steps': 5}, 'b.py', '--max_steps=0').startswith('--max_steps=0: ')
    assert refusal(with_knobs, {'max_steps': 0}).startswith('sft.py: ')


def test_a_script_s_own_rules_win(with_knobs):
    assert with_knobs({'temperature': 1.0}, '--temperature=0', temperature=at_least(0)) == {'temperature': 0.0}
    assert 'above 0' in refusal(with_knobs, {'beta': 1.0}, '--beta=0', beta=above(0))
    own = {'mode': one_of('fast', 'exact')}
    assert 'fast or exact' in refusal(with_knobs, {'mode': 'fast'}, '--mode=slow', **own)
    assert with_knobs({'mode': 'fast'}, '--mode=slow') == {'mode': 'slow'}
    with pytest.raises(TypeError, match='mode'):  # a bug of the script's author
        with_knobs({'seed': 1}, **own)


def test_a_fork_may_make_a_knob_none(with_knobs):
    assert with_knobs({'grad_clip': None}) == {'grad_clip': None}
    assert with_knobs({'grad_clip': None}, '--grad_clip=1') == {'grad_clip': 1}
    assert 'at least 0' in refusal(with_knobs, {'grad_clip': None}, '--grad_clip=-1')
    assert 'at least 0' in refusal(with_knobs, {'grad_clip': None}, '--grad_clip=off')


PAIRS = [  # legal together; not legal together; a piece of the message
    ({'min_learning_rate': 0.1, 'learning_rate': 0.1}, {'min_learning_rate': 0.2}, 'min_learning_rate = 0.2, learning_rate = 0.1'),
    ({'updates_per_rollout': 4, 'prompts_per_step': 4}, {'updates_per_rollout': 5}, 'updates_per_rollout = 5, prompts_per_step = 4'),
    ({'n_prefix': 3, 'group_size': 4}, {'n_prefix': 4}, 'n_prefix = 4, group_size = 4'),
    ({'prefix_low': 0.5, 'prefix_high': 0.5}, {'prefix_low': 0.6}, 'prefix_low = 0.6, prefix_high = 0.5'),
    ({'prefix_low_end': 0.5, 'prefix_high': 0.5}, {'prefix_low_end': 0.6}, 'prefix_low_end = 0.6, prefix_high = 0.5'),
    ({'resume': True, 'overwrite': False}, {'overwrite': True}, 'resume = True, overwrite = True'),
    ({'resume': False, 'overwrite': True}, {'resume': True}, 'resume = True, overwrite = True'),
    ({'label_smoothing': 0.1, 'loss_type': 'dpo'}, {'loss_type': 'ipo'}, "label_smoothing = 0.1, loss_type = 'ipo'"),
    ({'eval_samples': 2, 'eval_temperature': 1.0}, {'eval_temperature': 0.0}, 'eval_samples = 2, eval_temperature = 0.0'),
    ({'lora_rank': 8, 'shard': 'optimizer'}, {'shard': 'all'}, "lora_rank = 8, shard = 'all'"),
    ({'lora_rank': 0, 'shard': 'all'}, {'lora_rank': 8}, "lora_rank = 8, shard = 'all'"),
    ({'label_smoothing': 0.0, 'loss_type': 'ipo'}, {'label_smoothing': 0.1}, "label_smoothing = 0.1, loss_type = 'ipo'")]


def test_every_pair_has_its_test():
    assert {frozenset(good) for good, _, _ in PAIRS} == {frozenset(pair[:2]) for pair in TOGETHER}


@pytest.mark.parametrize('good, bad, said', PAIRS, ids=str)
def test_knobs_that_do_not_go_together(with_knobs, good, bad, said):
    assert with_knobs(good) == good
    flags = [f'--{knob}={value}' for knob, value in bad.items()]
    assert said in refusal(with_knobs, good, *flags)
    assert with_knobs(bad, *flags) == bad  # without the other knob there is nothing to say


def test_warmup_may_exceed_the_steps(with_knobs):
    assert with_knobs({'warmup_steps': 20, 'max_steps': 3})


def test_a_folder_with_files_needs_resume_or_overwrite(tmp_path):
    check_out_dir(str(tmp_path / 'new'), resume=False, overwrite=False)
    check_out_dir(str(tmp_path), resume=False, overwrite=False)  # empty
    (tmp_path / 'log.jsonl').write_text('')
    with pytest.raises(UserError) as error:
        check_out_dir(str(tmp_path), resume=False, overwrite=False)
    assert str(error.value) == f'out_dir {tmp_path} is not empty: say --resume=True or --overwrite=True'
    check_out_dir(str(tmp_path), resume=True, overwrite=False)
    check_out_dir(str(tmp_path), resume=False, overwrite=True)


# --- the scripts' own knobs -----------------------------------------------------------------------
def settings_of(script):
    """The source of a script's config block and its call of configure, as a list of statements."""
    with open(os.path.join(REPOSITORY, f'{script}.py')) as f:
        statements = ast.parse(f.read()).body
    calls = ['configure(' in ast.unparse(statement) for statement in statements]
    return [s for s in statements[:calls.index(True) + 1] if not isinstance(s, (ast.Import, ast.ImportFrom))]


def read_settings(root, script):
    """{knob: value} as the script in the folder `root` reads them, from sys.argv too."""
    namespace = {name: value for name, value in vars(configurator).items() if callable(value)}  # configure, at_least ...
    namespace |= {'__file__': os.path.join(root, f'{script}.py'), '__doc__': None}
    exec(compile(ast.Module(settings_of(script), []), script, 'exec'), namespace)
    return namespace['config']


@pytest.fixture
def settings(folder, monkeypatch):
    """settings(script, *args): {knob: value} of a script of the repository; whether its model exists is not asked."""
    def settings(script, *args):
        monkeypatch.setattr(sys, 'argv', [f'{script}.py', *args])
        monkeypatch.setattr(configurator, 'check_models', lambda *_: None)
        return read_settings(REPOSITORY, script)
    return settings


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_knob_of_the_scripts_has_a_rule(settings, script):
    """Their defaults are legal too, or this would raise."""
    config = settings(script)
    assert len(config) > 15
    without_rule = {knob for knob, value in config.items() if type(value) is not bool and knob not in LEGAL}
    assert without_rule <= ANY_VALUE


def test_no_rule_is_for_a_knob_that_nobody_has(settings):
    known = set().union(*(settings(script) for script in SCRIPTS))
    assert set(LEGAL) <= known and ANY_VALUE <= known


@pytest.mark.parametrize('scripts, flag, words', [
    (['sft', 'dpo'], '--max_steps=0', None), (['sft', 'dpo'], '--max_steps=-1', 'at least 0'),
    (['grpo', 'hpt', 'prefix_rft', 'distill'], '--max_steps=0', 'at least 1'),
    (['grpo', 'hpt', 'prefix_rft'], '--group_size=1', 'at least 2'), (['distill'], '--group_size=1', None),
    (['sample'], '--temperature=0', None), (['sample'], '--temperature=-1', 'at least 0'),
    (['grpo', 'hpt', 'prefix_rft'], '--temperature=0', 'above 0'),
    (['dpo'], '--beta=0', 'above 0'), (['grpo', 'hpt', 'prefix_rft'], '--beta=0', None)])
def test_where_scripts_differ(settings, scripts, flag, words):
    for script in scripts:
        if words is None:
            settings(script, flag)
        else:
            with pytest.raises(UserError, match=words):
                settings(script, flag)


@pytest.mark.parametrize('files, scripts', [
    ('tiny', 'sft dpo grpo hpt prefix_rft distill'), ('qwen3_0.6b', 'sft dpo grpo hpt prefix_rft distill'), ('tiny_teacher', 'sft'),
    ('qwen3_4b', 'sft dpo grpo hpt prefix_rft'), ('openr1_46k', 'sft grpo hpt prefix_rft'), ('tiny_base', 'sft'),
    ('real', 'sft grpo hpt distill sample'), ('tulu3_8b', 'sft dpo grpo'), ('tulu3_8b tulu3_4b', 'sft dpo grpo'),
    ('tulu_tiny', 'sft dpo grpo'), ('papers/sums_base', 'sft'), ('papers/sums', 'sft dpo grpo hpt prefix_rft')])
def test_config_files_set_knobs_that_exist_to_legal_values(settings, files, scripts):
    for script in scripts.split():
        config = settings(script, *(f'{REPOSITORY}/config/{name}.py' for name in files.split()))
        assert script == 'sample' or config['out_dir'] != f'out/{script}'


def test_all_config_files_are_tested():
    tested, = [mark.args[1] for mark in test_config_files_set_knobs_that_exist_to_legal_values.pytestmark]
    names = {name for files, _ in tested for name in files.split()}
    # the files of config/papers stand behind others: test_papers.py reads them
    assert {f'{name}.py' for name in names} - {'papers/sums_base.py', 'papers/sums.py'} == {
        f for f in os.listdir(f'{REPOSITORY}/config') if f.endswith('.py')}


def test_only_the_standard_library_is_imported():
    """So that a mistake is answered before torch is imported, which takes seconds."""
    code = 'import sys; before = set(sys.modules); import configurator, json; print(json.dumps([*sys.modules.keys() - before]))'
    done = subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    imported = {name.split('.')[0] for name in json.loads(done.stdout)}
    assert imported - {'configurator'} <= sys.stdlib_module_names


def test_help_stops_at_a_call_of_several_lines_and_imports_may_follow(folder):
    call = 'config = configure(globals(), max_steps=at_least(0),\n                   learning_rate=above(0))\n\nimport json\n'
    source = SCRIPT.replace('config = configure(globals())\n', call).replace(' configure\n', ' above, at_least, configure\n')
    (folder / 'sft.py').write_text(source)
    block = SCRIPT[SCRIPT.index('# --- config'):SCRIPT.index('config = configure')]
    assert run('--help') == (f'Teaches nothing,\nfor now.\n\n{block}', '', 0)
    assert "'max_steps': 0" in run('--max_steps=0')[0]
    assert run('--max_steps=-1')[1] == 'error: --max_steps=-1: max_steps must be at least 0, not -1\n'


# --- the first command ----------------------------------------------------------------------------
@pytest.fixture
def clone(tmp_path, monkeypatch):
    """clone(script, *args): the model with which the script would start in a fresh clone, where no run has been made.

    The clone, with the scripts and config files, is the current folder.
    """
    shutil.copytree(os.path.join(REPOSITORY, 'config'), tmp_path / 'config')
    for script in [*SCRIPTS, 'configurator']:
        shutil.copy(os.path.join(REPOSITORY, f'{script}.py'), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)

    def clone(script, *args):
        monkeypatch.setattr(sys, 'argv', [f'{script}.py', *args])
        return read_settings(str(tmp_path), script)['model']
    return clone


@pytest.mark.parametrize('model, command', [
    ('out/tiny_base', 'python sft.py config/tiny_base.py'), ('out/tiny_base/', 'python sft.py config/tiny_base.py'),
    ('./out/tiny_base', 'python sft.py config/tiny_base.py'), ('out/tiny_grpo', 'python grpo.py config/tiny.py'),
    ('out/tiny_prefix_rft', 'python prefix_rft.py config/tiny.py'), ('out/real_sft', 'python sft.py config/real.py'),
    ('out/qwen3_4b_sft', 'python sft.py config/qwen3_4b.py'), ('out/openr1_hpt', 'python hpt.py config/openr1_46k.py'),
    ('out/tulu_tiny_dpo', 'python dpo.py config/tulu_tiny.py'), ('out/tulu3_8b_sft', 'python sft.py config/tulu3_8b.py'),
    ('out/sums_base', 'python sft.py config/papers/sums_base.py'),
    ('out/grpo', 'python grpo.py'), ('out/smollm2', 'make real, or only python -m tools.smollm2 out/smollm2')])
@pytest.mark.parametrize('script', ['grpo', 'sample'])
def test_a_missing_model_names_the_command_that_makes_it(clone, script, model, command, capsys):
    said = refusal(clone, script, f'--model={model}')
    assert said == f'model {model}: no such folder; make it first: {command}'
    assert capsys.readouterr().out == f'--model={model}: model = {model!r}\n'  # nothing of the files that were tried
    os.makedirs(model)
    assert clone(script, f'--model={model}') == model


@pytest.mark.parametrize('command', [
    'grpo config/tiny.py', 'dpo config/qwen3_4b.py', 'grpo config/real.py', 'sft config/real.py', 'dpo', 'sample',
    'dpo config/tulu3_8b.py config/tulu3_4b.py', 'grpo config/tulu3_8b.py config/tulu3_4b.py', 'sample config/real.py'])
def test_each_advice_leads_to_a_command_that_starts(clone, command):
    """Whoever follows the advice, command by command, comes to a script that has its model."""
    script, *files = command.split()
    for _ in range(4):
        try:
            clone(script, *files)
            return
        except UserError as error:
            advice = str(error).split('make it first: ')[1]
        if 'smollm2' in advice:
            return
        python, script, *files = advice.split()
        assert python == 'python'
        script = script.removesuffix('.py')
        assert os.path.isfile(f'{script}.py') and all(map(os.path.isfile, files))
    raise AssertionError('the advice goes round in circles')


def test_an_earlier_stage_is_looked_for_in_the_files_of_this_run_first(clone):
    """config/tulu3_4b.py adds to config/tulu3_8b.py: by itself it would train on other data."""
    said = refusal(clone, 'dpo', 'config/tulu3_8b.py', 'config/tulu3_4b.py')
    assert said.endswith('make it first: python sft.py config/tulu3_8b.py config/tulu3_4b.py')
    assert 'python sft.py' not in refusal(clone, 'sample', '--model=out/tulu3_4b_sft')


@pytest.mark.parametrize('model', [
    'out/no_such_run', '/nowhere', './nowhere', '../nowhere', '~/nowhere', '.nowhere', 'some/where/else', 'config/nowhere', 'out'])
def test_other_missing_folders_are_refused_too(clone, model):
    said = refusal(clone, 'grpo', f'--model={model}')
    assert said.startswith(f'model {model}: no such folder; give the out_dir of a run')


@pytest.mark.parametrize('model', [
    'tiny', 'random:qwen3-4b', 'gpt2', 'Qwen/Qwen3-4B', 'Qwen/Qwen3-0.6B-Base', 'a/b', 'mine', 'runs/mine', '.', 'deep/er/still'])
def test_hub_ids_and_folders_are_let_be(clone, tmp_path, model):
    for folder in 'mine', 'runs/mine', 'deep/er/still':
        (tmp_path / folder).mkdir(parents=True)
    assert clone('grpo', f'--model={model}') == model


def test_the_weaker_model_must_exist_too(clone):
    flags = '--model=tiny', '--write=pairs'
    assert clone('sample', *flags) == clone('sample', *flags, '--rejected_model=tiny') == 'tiny'
    said = refusal(clone, 'sample', *flags, '--rejected_model=out/tiny_base')
    assert said == 'rejected_model out/tiny_base: no such folder; make it first: python sft.py config/tiny_base.py'


def test_the_advice_does_not_depend_on_how_a_folder_is_written(clone, tmp_path):
    """A new config file, whose folder's name comes from knobs; and a script without one, beside files of this run."""
    (tmp_path / 'config' / 'new.py').write_text("data = 'sums:train'\nout_dir = f'./{out_dir}_{max_new_tokens}/'")
    assert refusal(clone, 'grpo', '--model=out/hpt_128').endswith('make it first: python hpt.py config/new.py')
    assert refusal(clone, 'grpo', 'config/tiny.py', '--model=out/sft').endswith('make it first: python sft.py')


def test_config_files_that_fail_are_passed_over(clone, tmp_path):
    (tmp_path / 'config' / 'a.py').write_text('1/0')
    (tmp_path / 'config' / 'b.py').write_text('print = nothing_of_this_name')
    assert refusal(clone, 'grpo', 'config/tiny.py').endswith('make it first: python sft.py config/tiny_base.py')


def test_the_command_fits_the_current_folder(clone, tmp_path, monkeypatch):
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    assert refusal(clone, 'grpo', 'config/tiny.py').endswith('make it first: python ../sft.py config/tiny_base.py')


def test_the_first_command_of_a_fresh_clone(clone):
    """As a user sees it, without torch, which comes later."""
    done = subprocess.run([sys.executable, '-S', 'grpo.py', 'config/tiny.py'], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ('error: model out/tiny_base: no such folder; make it first: '
                           'python sft.py config/tiny_base.py\n')
