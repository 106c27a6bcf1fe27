"""EXERCISES.md: each check fails on the tree as it is and passes with the solution beside it."""
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

NAMES = ['mask', 'rloo', 'dualclip', 'penalty', 'hinge', 'gate']


@pytest.fixture()
def tree(tmp_path):
    """A copy of what the checks run."""
    shutil.copytree(ROOT, tmp_path / 'nanopost', ignore=shutil.ignore_patterns(
        '.*', 'out', 'wandb', '__pycache__', 'docs', 'answer.txt', 'my_reward.py'))
    return tmp_path / 'nanopost'


def apply(diff, tree):
    subprocess.run(['git', 'apply', '--unsafe-paths', f'--directory={tree}', diff], cwd='/', check=True)


def outcomes(tree):
    """{exercise: whether its check passes}."""
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-rA', '-p', 'no:cacheprovider', 'tests/release/exercises/check.py'], cwd=tree,
                          capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    found = re.findall(r'^(PASSED|FAILED) tests/release/exercises/check.py::test_(\w+)', done.stdout, re.M)
    assert found and 'ERROR' not in done.stdout, done.stdout[-3000:]
    return {name: all(verdict == 'PASSED' for verdict, other in found if other == name) for _, name in found}


def test_checks_fail_before_and_pass_after(tree):
    assert outcomes(tree) == dict.fromkeys(NAMES, False)
    for name in NAMES:
        apply(os.path.join(ROOT, 'tests/release/exercises', f'{name}.diff'), tree)
    assert outcomes(tree) == dict.fromkeys(NAMES, True)


def test_every_exercise_is_described():
    with open(os.path.join(ROOT, 'EXERCISES.md')) as f:
        assert re.findall(r'check\.py -k (\w+)', f.read()) == ['NAME', *NAMES]
    assert {f'{name}.diff' for name in NAMES} <= {*os.listdir(os.path.join(ROOT, 'tests/release/exercises'))}
