"""EXERCISES.md: each check fails on the tree as it is and passes with the solution beside it; the ablations' diffs apply."""
import glob
import os
import py_compile
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


def test_ablations_apply(tree):
    """Each to the tree as it is, at most ten changed lines, its command that of a script and a config that exist."""
    diffs = glob.glob(os.path.join(ROOT, 'docs/ablations/*.diff'))
    assert len(diffs) == 3
    for diff in diffs:
        with open(diff) as f:
            what, command, old, _, *lines = f.read().split('\n')
        script, config = command.split()[1:3]
        assert what and old == f'--- a/{script}' and os.path.exists(os.path.join(ROOT, config))
        assert 0 < sum(line[:1] in ('+', '-') for line in lines) <= 10
        shutil.copy(os.path.join(ROOT, script), tree / script)
        apply(diff, tree)
        py_compile.compile(str(tree / script), doraise=True)
        assert (tree / script).read_text() != open(os.path.join(ROOT, script)).read()


def test_ablations_run(tree):
    """The command of the ablations from copy to table, with a tiny model and one step."""
    shutil.copytree(os.path.join(ROOT, 'docs/ablations'), tree / 'docs/ablations')
    diff = tree / 'docs/ablations/positive.diff'
    what, command, *rest = diff.read_text().split('\n')
    command += ' --model=tiny --max_steps=1 --prompts_per_step=2 --max_new_tokens=4 --eval_prompts=search:tune'
    diff.write_text('\n'.join([what, command, *rest]))
    done = subprocess.run([sys.executable, 'docs/ablations/run.py', 'positive'], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r'^\| positive \| 0.000 ± 0.000 \| 0.000 ± 0.000 \|$', done.stdout, re.M), done.stdout
