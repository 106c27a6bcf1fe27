"""The shape of the repository: line width, the order of a script's sections, launch lines, docstrings."""
import glob
import os
import re

import pytest
from conftest import ROOT

SCRIPTS = ['sft.py', 'dpo.py', 'grpo.py', 'hpt.py', 'prefix_rft.py', 'distill.py']
SECTIONS = ['config', 'imports', 'run set-up', 'data', 'model', 'optimizer, schedule', 'helpers', 'micro-batches', 'the loss',
            'resume, log', 'the loop', 'clean up']


def read(name):
    with open(os.path.join(ROOT, name)) as f:
        return f.read()


def test_line_width_and_config_size():
    paths = [path for folder in ('', '*', 'config/papers') for path in glob.glob(os.path.join(ROOT, folder, '*.py'))]
    for path in paths:
        long = [line for line in read(path).split('\n') if len(line) > 110]
        assert not long or f'{os.sep}tests{os.sep}' in path, (path, long)
    for path in glob.glob(os.path.join(ROOT, 'config', '*.py')):
        assert read(path).count('\n') <= 40, path


@pytest.mark.parametrize('script', SCRIPTS)
def test_sections_stand_in_the_same_order(script):
    """A script may have more of its own: rollout, reference."""
    found = re.findall(r'^# --- (.+?) -+$', read(script), re.M)
    assert [name for name in found if name in SECTIONS] == SECTIONS


def test_launch_lines_use_an_option_that_torchrun_has():
    """`--nproc` alone is ambiguous to torch 2.13's torchrun; these lines use the option that the tests use."""
    paths = ['README.md', *SCRIPTS, 'config/qwen3_4b.py', 'config/openr1_46k.py']
    paths += [os.path.relpath(path, ROOT) for path in glob.glob(os.path.join(ROOT, 'docs', '*.md'))]
    used = [option for path in paths for option in re.findall(r'torchrun (--\S+)', read(path))]
    assert len(used) >= 5 and set(used) == {'--nproc-per-node'} and '--nproc-per-node' in read('tests/conftest.py')


@pytest.mark.parametrize('script', SCRIPTS)
def test_docstrings_have_the_four_parts_of_the_unified_estimator(script):
    rows = re.findall(r'^    (mask|reference policy|advantage|likelihood gradient)  +\S', read(script), re.M)
    assert rows == ['mask', 'reference policy', 'advantage', 'likelihood gradient']
