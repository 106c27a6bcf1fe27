"""What the tests of papers/ share: the papers, their patched trees, and the functions of a script under hand-made completions."""
import glob
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from conftest import ROOT, before_loop, inside, read_log

FOLDER = os.path.join(ROOT, 'papers')
# two small steps of each script
TINY = {'sft': ['--batch_size=8', '--eval_data='], 'dpo': ['--batch_size=8', '--eval_data=']}
for rl_script in ('grpo', 'hpt', 'prefix_rft'):
    TINY[rl_script] = ['--prompts_per_step=5', '--group_size=4', '--max_new_tokens=24', '--eval_prompts=', '--sample_every=0', '--updates_per_rollout=2']
TINY['sft'] += ['--eval_prompts=']
TWO_STEPS = ['--max_steps=2', '--warmup_steps=1', '--learning_rate=1e-4']


def load(path, name):
    """A file as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


papers_run = load(os.path.join(FOLDER, 'run.py'), 'papers_run')
PAPERS = papers_run.all_papers()
DIFFS = [name for name, path in PAPERS.items() if path.endswith('.diff')]
CONFIGS = [name for name, path in PAPERS.items() if path.endswith('.py')]


# --- trees --------------------------------------------------------------------
def text_of(name):
    with open(PAPERS[name]) as f:
        return f.read()


def files_of(name):
    """The files that a diff changes."""
    return re.findall(r'^\+\+\+ b/(\S+)', text_of(name), re.M)


def copy_code(tree):
    """The code, without the tests and without what was made with it."""
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns('.*', 'out', 'wandb', '__pycache__', 'docs', 'tests', 'tools'), dirs_exist_ok=True)


def apply(name, tree):
    subprocess.run(['git', 'apply', '--unsafe-paths', f'--directory={tree}', PAPERS[name]], cwd='/', check=True)


def patched_tree(name, tree):
    copy_code(tree)
    apply(name, tree)
    return tree


@contextmanager
def modules_of(tree):
    """In here `import model` finds the tree's model.py, and the modules of this repository are put aside."""
    if str(tree) == ROOT:
        yield
        return
    own = {os.path.basename(path).removesuffix('.py') for path in glob.glob(os.path.join(ROOT, '*.py'))} | {'rewards'}
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split('.')[0] in own}
    sys.path.insert(0, str(tree))
    try:
        yield
    finally:
        sys.path.remove(str(tree))
        for name in list(sys.modules):
            if name.split('.')[0] in own:
                del sys.modules[name]
        sys.modules.update(aside)


# --- running a script of a tree -------------------------------------------------
def names_of(path, *flags):
    """The names of a script, of whatever tree, as they are when its loop begins."""
    with pytest.MonkeyPatch.context() as monkeypatch, modules_of(os.path.dirname(path)):
        return before_loop(monkeypatch, path, *flags)


def run_inside(path, *flags):
    """The whole script, of whatever tree, in this process."""
    with pytest.MonkeyPatch.context() as monkeypatch, modules_of(os.path.dirname(path)):
        return inside(monkeypatch, path, *flags)


def two_steps(path, out_dir, *flags):
    """Trains two small steps, and asserts that the log has finite numbers and a gradient."""
    script = os.path.basename(path).removesuffix('.py')
    run_inside(str(path), *TINY[script], *TWO_STEPS, *flags, f'--out_dir={out_dir}')
    trained(out_dir)


def trained(out_dir):
    """Asserts that a run of two steps has a log with finite numbers and a gradient."""
    records = read_log(out_dir)
    assert [record['step'] for record in records] == [1, 2]
    for record in records:
        assert all(math.isfinite(value) for value in record.values())
    assert any(record['grad_norm'] > 0 for record in records)


def weights_of(path, out_dir, *flags):
    """The bytes of the model that two small steps make: equal bytes are equal runs."""
    two_steps(path, out_dir, *flags)
    with open(os.path.join(out_dir, 'model.safetensors'), 'rb') as f:
        return f.read()


# --- what a diff changes --------------------------------------------------------
@contextmanager
def as_they_were(ns):
    """Puts the names of a script back at the end."""
    saved = dict(ns)
    yield
    ns.clear()
    ns.update(saved)


def only_with_the_diff(name, check, patched, namespaces):
    """check(ns) passes on the first script that the diff changes, and fails on the code as it is."""
    script = next(file for file in files_of(name) if file in ('sft.py', 'dpo.py', 'grpo.py', 'hpt.py', 'prefix_rft.py'))
    ns = namespaces(str(patched(name) / script))
    with as_they_were(ns):
        check(ns)
    ns = namespaces(os.path.join(ROOT, script))
    with as_they_were(ns), pytest.raises((AssertionError, KeyError, TypeError, NameError, ValueError)):
        check(ns)


def near(values, tolerance=1e-5):
    return [pytest.approx(row, rel=tolerance, abs=1e-7) for row in values]


# --- the rollout and the loss of grpo.py -----------------------------------------
def sampled(ns, *groups, lengths=None):
    """The groups of sample_groups() whose completions get these rewards: a list for each group.

    A reward is what the user's function gives: a number or {name: number}.
    """
    texts = iter([json.dumps(reward) for group in groups for reward in group])
    lengths = iter(lengths or [1] * sum(map(len, groups)))
    folder = os.path.dirname(ns['__file__'])
    verify = load(os.path.join(folder, 'verify.py'), 'verify_of_tree').verify
    kind = f'{os.path.abspath(__file__)}:given'
    ns.update(
        group_size=len(groups[0]), prompts_per_step=len(groups),
        generate=lambda model, prompts, n, *_, **__: [
            [{'ids': [5] * (length := next(lengths)), 'logprobs': torch.zeros(length), 'stopped': True} for _ in range(n)] for _ in prompts],
        completion_text=lambda *_: next(texts),
        verify_all=lambda tasks: [(verify(kind, text, ''), False) for _, text, _ in tasks])
    return ns['sample_groups']()[0]


def given(completion, truth):
    """A user's function for verify(): the completion is the reward."""
    return json.loads(completion)


def advantages(groups):
    return [[float(completion.advantage) for completion in group.completions] for group in groups]


def loss_of(ns, ratio, advantage, doc=None, weight=None):
    """policy_loss on tokens of probability 1/2: (objective, its gradient by log-prob, by entropy, statistics)."""
    ratio = torch.tensor(ratio, dtype=torch.float32)
    logprobs = torch.full_like(ratio, math.log(0.5)).requires_grad_()
    entropy = torch.ones_like(ratio).requires_grad_()
    old_logprobs = logprobs.detach() - ratio.log()
    micro = {
        'weight': torch.tensor(weight) if weight else torch.ones_like(ratio), 'advantage': torch.tensor(advantage),
        'old_logprobs': old_logprobs, 'sampler_logprobs': old_logprobs, 'doc': torch.tensor(doc or [0] * len(ratio))}
    loss, statistics = ns['policy_loss'](logprobs, entropy, micro)
    loss.backward()
    by_entropy = None if entropy.grad is None else (-entropy.grad).tolist()
    return -loss.item(), (-logprobs.grad).tolist(), by_entropy, {key: float(value.detach().sum()) for key, value in statistics.items()}
