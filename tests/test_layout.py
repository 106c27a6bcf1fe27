"""The shape of the repository: line caps, line width, blocks that siblings share, configs that exist and parse."""
import glob
import os
import re

import pytest
from conftest import ROOT

CAPS = {'sft.py': 300, 'grpo.py': 450, 'model.py': 500, 'rollout.py': 350, 'data.py': 350, 'verify.py': 1119, 'configurator.py': 80,
        'sample.py': 200, 'bench.py': 348}


def read(name):
    with open(os.path.join(ROOT, name)) as f:
        return f.read()


@pytest.mark.parametrize('name', CAPS)
def test_line_caps(name):
    assert read(name).count('\n') <= CAPS[name]


def test_line_width_and_config_size():
    for path in glob.glob(os.path.join(ROOT, '*.py')) + glob.glob(os.path.join(ROOT, 'config', '*.py')):
        long = [line for line in read(path).split('\n') if len(line) > 110]
        assert not long, (path, long)
    for path in glob.glob(os.path.join(ROOT, 'config', '*.py')):
        assert read(path).count('\n') <= 40


def block(source, start, end):
    return source[source.index(start):source.index(end, source.index(start))]


@pytest.mark.parametrize('start, end', [
    ('# --- ranks', '# --- data'), ('# --- optimizer', '# --- helpers'), ('def gather', 'def evaluate'),
    ('def save_checkpoint', '# --- resume'), ('# --- resume', "    print(f'{n:,} parameters"), ('def log(', '# --- the loop'),
    ('# --- clean up', '\n    dist.destroy')])
def test_blocks_declared_identical_are(start, end):
    assert block(read('sft.py'), start, end) == block(read('grpo.py'), start, end)


def test_section_order():
    names = ['"""', 'import', '# --- config', 'configure(globals())', '# --- ranks', '# --- data', '# --- model',
             '# --- optimizer', '# --- helpers', '# --- resume, logging', '# --- the loop', '# --- clean up']
    for script in ('sft.py', 'grpo.py'):
        source = read(script)
        places = [source.index(name) for name in names]
        assert places == sorted(places), script


@pytest.mark.parametrize('script', ['sft', 'grpo'])
@pytest.mark.parametrize('config', ['tiny.py', 'qwen3_0.6b.py', 'qwen3_4b.py'])
def test_configs_set_only_knobs_that_exist(run, script, config):
    """The script must get past its configuration: to the out_dir check, which an existing run would fail."""
    done = run(f'{script}.py', f'config/{config}', '--out_dir=.', '--model=tiny', '--device=cpu', check=False)
    assert 'is not empty' in done.stderr and done.returncode == 1


def test_readme_names_only_files_that_exist():
    for name in re.findall(r'\b(?:config/)?[a-z0-9_.]+\.py\b', read('README.md')):
        exists = any(os.path.exists(os.path.join(ROOT, folder, name)) for folder in ('', 'tests'))
        assert exists or name in ('dpo.py', 'hpt.py', 'prefix_rft.py')


def test_launch_lines_use_an_option_that_torchrun_has():
    """`--nproc` alone is ambiguous to torch 2.13's torchrun; what these lines use is what conftest's launch uses."""
    paths = ('README.md', 'sft.py', 'grpo.py', 'config/qwen3_4b.py')
    used = [option for path in paths for option in re.findall(r'torchrun (\S+)', read(path)) if option.startswith('-')]
    assert len(used) >= 5 and set(used) == {'--nproc-per-node'} and '--nproc-per-node' in read('tests/conftest.py')
