"""The shape of the repository: line width, blocks that siblings share, configs that exist and parse."""
import glob
import os
import re

import pytest
from conftest import ROOT


def read(name):
    with open(os.path.join(ROOT, name)) as f:
        return f.read()


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
    ('def save_checkpoint', '\n    gather(None)'), ('# --- resume', "    print(f'{n:,} parameters"), ('def log(', '# --- the loop'),
    ('# --- clean up', '\n    dist.destroy')])
def test_blocks_declared_identical_are(start, end):
    for script in ('dpo.py', 'grpo.py'):
        assert block(read('sft.py'), start, end) == block(read(script), start, end), script


@pytest.mark.parametrize('sibling', ['hpt.py', 'prefix_rft.py'])
def test_hybrids_are_grpo_but_for_their_method(sibling):
    """Blocks that no method changes are grpo.py's to the letter."""
    for start, end in [('# --- ranks', '# --- data'), ('# --- model', '# --- helpers'), ('def gather', 'def rollout'),
                       ('def save_checkpoint', '# --- the loop'), ('# --- the loop', '    rewards = torch.cat' if 'pre' in sibling
                        else '        groups += '), ('    # what does not change', '        # loss, backward'),
                       ('        # step\n', '        # log\n'), ('    if step >= max_steps or', '# --- clean up')]:
        assert block(read(sibling), start, end) == block(read('grpo.py'), start, end)
    assert read(sibling).endswith(read('grpo.py')[read('grpo.py').index('# --- clean up'):])


def test_hybrids_read_demonstrations_alike():
    hpt, prefix = (block(read(name), '# --- data', '# --- model') for name in ('hpt.py', 'prefix_rft.py'))
    assert hpt == prefix.replace('n_free = group_size - n_prefix\n', '')


def test_section_order():
    names = ['"""', 'import', '# --- config', 'configure(globals()', '# --- imports', '# --- ranks', '# --- data', '# --- model',
             '# --- optimizer', '# --- helpers', '# --- resume, logging', '# --- the loop', '# --- clean up']
    for script in ('sft.py', 'dpo.py', 'grpo.py', 'hpt.py', 'prefix_rft.py'):
        source = read(script)
        places = [source.index(name) for name in names]
        assert places == sorted(places), script


def test_readme_names_only_files_that_exist():
    for name in re.findall(r'\b(?:[a-z]+/)*[a-z0-9_.]+\.py\b', read('README.md')):
        exists = any(os.path.exists(os.path.join(ROOT, folder, name)) for folder in ('', 'tests', 'tests/exercises'))
        assert exists or name == 'my_file.py', name


def test_launch_lines_use_an_option_that_torchrun_has():
    """`--nproc` alone is ambiguous to torch 2.13's torchrun; what these lines use is what conftest's launch uses."""
    paths = ('README.md', 'sft.py', 'dpo.py', 'grpo.py', 'hpt.py', 'prefix_rft.py', 'config/qwen3_4b.py', 'config/openr1_46k.py')
    used = [option for path in paths for option in re.findall(r'torchrun (\S+)', read(path)) if option.startswith('-')]
    assert len(used) >= 5 and set(used) == {'--nproc-per-node'} and '--nproc-per-node' in read('tests/conftest.py')


@pytest.mark.parametrize('script', ['sft.py', 'dpo.py', 'grpo.py', 'hpt.py', 'prefix_rft.py'])
def test_docstrings_have_the_four_parts_of_the_unified_estimator(script):
    rows = re.findall(r'^    (mask|reference policy|advantage|likelihood gradient)  +\S', read(script), re.M)
    assert rows == ['mask', 'reference policy', 'advantage', 'likelihood gradient']
