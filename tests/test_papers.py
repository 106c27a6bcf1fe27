"""papers/: each applies to the code as it is, trains, and does what its paper says, which the code as it is does not do."""
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
from conftest import ROOT, before_loop, inside, launch, read_log

FOLDER = os.path.join(ROOT, 'papers')


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
TINY = ['--max_steps=2', '--prompts_per_step=5', '--group_size=4', '--max_new_tokens=24', '--eval_prompts=', '--sample_every=0',
        '--warmup_steps=1', '--learning_rate=1e-4', '--updates_per_rollout=2']


def script_of(name):
    return papers_run.header_of(PAPERS[name])['command'].split()[1]


def text_of(name):
    with open(PAPERS[name]) as f:
        return f.read()


def apply(name, tree):
    subprocess.run(['git', 'apply', '--unsafe-paths', f'--directory={tree}', PAPERS[name]], cwd='/', check=True)


@pytest.fixture(scope='module')
def patched(tmp_path_factory):
    """patched(name): a folder with grpo.py, prefix_rft.py and verify.py under the diff, made once."""
    trees = {}

    def tree_of(name):
        if name not in trees:
            trees[name] = tmp_path_factory.mktemp(name)
            for script in ('grpo.py', 'prefix_rft.py', 'verify.py'):
                shutil.copy(os.path.join(ROOT, script), trees[name])
            apply(name, trees[name])
        return trees[name]
    return tree_of


# --- the files ----------------------------------------------------------------
def test_every_file_is_a_paper_or_a_tool():
    """A file whose header cannot be read would be left out silently."""
    files = {name for name in os.listdir(FOLDER) if name.endswith(('.diff', '.py'))}
    assert files - {os.path.basename(path) for path in PAPERS.values()} == {'run.py', 'two_rewards.py'}
    assert len(DIFFS) >= 12 and len(CONFIGS) >= 2


@pytest.mark.parametrize('name', PAPERS)
def test_header(name):
    """All keys, each one line; a command whose script and config exist."""
    header = papers_run.header_of(PAPERS[name])
    assert tuple(header) == papers_run.KEYS
    assert all(0 < len(value) <= 150 for value in header.values())
    python, script, config, *flags = header['command'].split()
    assert python == 'python' and all(flag.startswith('--') for flag in flags)
    assert all(os.path.exists(os.path.join(ROOT, path)) for path in (script, config))
    # the arXiv id also stands in the code of a diff
    assert re.search(r'arXiv \d{4}\.\d{5}', header['paper'])
    if name in DIFFS:
        assert re.search(r'^\+.*arXiv \d{4}\.\d{5}', text_of(name), re.M)


@pytest.mark.parametrize('name', DIFFS)
def test_diff_is_small_and_applies(name, patched):
    lines = text_of(name).split('\n')
    assert 1 <= sum(line.startswith('+++ ') for line in lines) <= 2
    changed = [line for line in lines if line[:1] in ('+', '-') and line[:4] not in ('+++ ', '--- ')]
    assert 0 < len(changed) <= 30
    assert all(len(line) <= 111 for line in changed if line[0] == '+')
    script = script_of(name)
    assert (patched(name) / script).read_text() != open(os.path.join(ROOT, script)).read()


# --- what each paper changes --------------------------------------------------
@pytest.fixture(scope='module')
def namespaces(tmp_path_factory):
    """namespaces(path): the names of a script before its loop, made once."""
    folder = tmp_path_factory.mktemp('names')
    rows = [{'prompt': f'{i}+4', 'answer': str(i + 4), 'demonstration': f'{i} {i + 4} #### {i + 4}', 'dataset': 'sums'} for i in range(4)]
    (folder / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    made = {}

    def names_of(path):
        if path not in made:
            with pytest.MonkeyPatch.context() as monkeypatch:
                # the advantages as config/tiny.py has them
                made[path] = before_loop(monkeypatch, path, '--model=tiny', f'--data={folder}/rows.jsonl', '--eval_prompts=',
                                         '--advantage_std=False', f'--out_dir={folder}/run{len(made)}')
        return made[path]
    return names_of


@contextmanager
def as_they_were(ns):
    """Puts the names of a script back at the end."""
    saved = dict(ns)
    yield
    ns.clear()
    ns.update(saved)


def sampled(ns, *groups, lengths=None):
    """The groups of sample_groups() whose completions get these rewards: a list for each group.

    A reward is what the user's function gives: a number or {name: number}.
    """
    texts = iter([json.dumps(reward) for group in groups for reward in group])
    lengths = iter(lengths or [1] * sum(map(len, groups)))
    folder = os.path.dirname(ns['__file__'])
    verify = load(os.path.join(folder, 'verify.py'), 'verify_of_tree').verify
    kind = f'{os.path.dirname(__file__)}/test_papers.py:given'
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


def near(values, tolerance=1e-5):
    return [pytest.approx(row, rel=tolerance, abs=1e-7) for row in values]


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


def check_rloo(ns):
    """The baseline is the mean of the other three."""
    assert advantages(sampled(ns, [1, 0, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1])) == near([
        [2 / 3, -2 / 3, -2 / 3, 2 / 3], [1, -1 / 3, -1 / 3, -1 / 3], [0, 0, 0, 0]])


def check_reinforce_pp(ns):
    """The mean of all rewards is 3/4, their standard deviation 1/2; without any spread all are 0."""
    assert advantages(sampled(ns, [1, 1], [1, 0])) == near([[0.5, 0.5], [0.5, -1.5]], 1e-3)
    assert advantages(sampled(ns, [0.3, 0.3], [0.3, 0.3])) == [[0, 0], [0, 0]]


def check_maxrl(ns):
    """(1 - 1/4) / (1/4) = 3; 0 without success."""
    assert advantages(sampled(ns, [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1])) == near([
        [3, -1, -1, -1], [1, 1, -1, -1], [0, 0, 0, 0], [0, 0, 0, 0]])


def check_raft(ns):
    """The rewards themselves."""
    assert advantages(sampled(ns, [1, 0, 0, 1], [1, 1, 1, 1])) == [[1, 0, 0, 1], [1, 1, 1, 1]]


def check_gdpo(ns):
    """Two rewards of which one differs have half the advantage of two that differ; opposite ones cancel."""
    one, both, opposite = [
        [{'right': right, 'short': short} for right, short in group] for group in (
            [(1, 0), (0, 0)], [(1, 1), (0, 0)], [(1, 0), (0, 1)])]
    groups = sampled(ns, one, both, opposite)
    # before they are normalised a, -a, 2a, -2a, 0, 0: their variance is 10 a^2 / 5
    a = 1 / math.sqrt(2)
    assert advantages(groups) == near([[a, -a], [2 * a, -2 * a], [0, 0]], 1e-3)
    assert [group.has_spread for group in groups] == [True, True, False]
    # the reward is their mean, and one out of range is a verdict that was given up
    assert [[c.reward for c in group.completions] for group in groups] == [[0.5, 0], [1, 0], [0.5, 0.5]]
    group, = sampled(ns, [{'right': 2, 'short': 1}, {'right': 1, 'short': 0}])
    assert [c.reward for c in group.completions] == [0, 0.5]
    # a single number still is a reward
    assert advantages(sampled(ns, [1, 0], [1, 0])) == near([[math.sqrt(3) / 2, -math.sqrt(3) / 2]] * 2, 1e-3)


def check_overlong(ns):
    """Nothing is taken away up to 96 tokens, half a reward at 112, 1 at 128; 0 turns it off."""
    ns.update(max_new_tokens=128)
    for cache, rewards in ((32, [1, 1, 0.5, -0.5, -1]), (0, [1, 1, 1, 0, 0])):
        ns.update(overlong_cache=cache)
        found = []
        for length, reward in ((90, 1), (96, 1), (112, 1), (112, 0), (128, 0)):
            group, = sampled(ns, [reward], lengths=[length])
            found.append(group.completions[0].reward)
        assert found == rewards


def check_cispo(ns):
    """The gradient is min(ratio, 5) times the advantage, also where GRPO clips a token away."""
    objective, gradient, _, statistics = loss_of(ns, [0.5, 1, 10, 0.5], [1.0, 1.0, 2.0, -1.0])
    assert gradient == pytest.approx([0.5, 1, 10, -0.5], rel=1e-5)
    assert objective == pytest.approx(11 * math.log(0.5), rel=1e-5)
    assert statistics['clipped'] == 1


def check_gspo(ns):
    """Three completions: one inside the range, one above it at A = 1, one below it at A = -1."""
    inside_range, above, below = math.exp(2e-4), math.exp(1e-3), math.exp(-1e-3)
    objective, gradient, _, statistics = loss_of(
        ns, [math.exp(4e-4), 1, above, below], [1.0, 1.0, 1.0, -1.0], doc=[0, 0, 1, 2], weight=[1 / 6, 1 / 6, 1 / 3, 1 / 3])
    # the mean over completions of min(s A, clip(s) A); both tokens of the first share its ratio
    assert objective == pytest.approx((inside_range + 1.0004 - 0.9997) / 3, abs=1e-6)
    assert gradient == pytest.approx([inside_range / 6, inside_range / 6, 0, 0], abs=1e-6)
    assert statistics['clipped'] == 2


def check_sapo(ns):
    """4 / tau * sigmoid(tau (r - 1)) A: at ratio 1 GRPO's gradient, at ratio 2 less, at 10 hardly any."""
    objective, gradient, _, statistics = loss_of(ns, [1, 1, 2, 2, 10], [1.0, -1.0, 1.0, -1.0, 1.0])
    # by hand: sigmoid(1) = 0.731059, sigmoid(1.05) = 0.740775; a gradient is 4 r sigmoid (1 - sigmoid) A
    assert gradient[:4] == pytest.approx([1, -1, 1.572896, -1.536218], rel=1e-4)
    assert 0 < gradient[4] < 0.01
    assert objective == pytest.approx(2 - 2 / 1.05 + 4 * 0.731059 - 4 / 1.05 * 0.740775 + 4 * 0.999877, rel=1e-4)
    assert statistics['clipped'] == 0


def check_dual_clip(ns):
    """A floor of 3 A where A < 0: only the first differs from min(r A, clip(r) A)."""
    objective, gradient, _, statistics = loss_of(ns, [10, 2, 10, 1.1, 0.5], [-1.0, -1.0, 1.0, 1.0, -1.0])
    assert objective == pytest.approx(-3 - 2 + 1.28 + 1.1 - 0.8, rel=1e-5)
    assert gradient == pytest.approx([0, -2, 0, 1.1, 0], rel=1e-5)
    assert statistics['clipped'] == 3


def check_entropy(ns):
    """The gradient by the entropy is the coefficient, also of a completion without an advantage, which is kept."""
    for coef in (0.5, 0.0):
        ns.update(entropy_coef=coef)
        objective, gradient, by_entropy, _ = loss_of(ns, [1, 1], [2.0, 0.0])
        assert gradient == pytest.approx([2, 0])
        assert objective == pytest.approx(2 + 2 * coef)
        assert by_entropy == pytest.approx([coef, coef])
        scored = [len(micro['index']) for micro in ns['micro_batches_of'](sampled(ns, [1, 1], [0, 0]))]
        assert sum(scored) == (4 if coef else 0)


def check_linear_prefix(ns):
    """After a quarter of the steps the shortest prefix has come down by a quarter of its way: 60 % to 45 %."""
    class Lowest:
        def uniform(self, low, high):
            return low
    ns.update(prefix_low=0.6, prefix_low_end=0.0, prefix_steps=100, random_stream=lambda *_: Lowest(), without_end=lambda ids: ids)
    lengths = []
    for step in (0, 25, 50, 100, 200):
        ns.update(step=step)
        lengths.append(len(ns['draw_prefix']({'demonstration': [5] * 1000}, 0, 0)))
    assert lengths == pytest.approx([600, 450, 300, 0, 0], abs=1)


@pytest.mark.parametrize('name', DIFFS)
def test_diff_does_what_its_paper_says(name, patched, namespaces):
    """With hand-worked numbers, which the code as it is does not give."""
    check = globals()[f'check_{name}']
    script = script_of(name)
    ns = namespaces(str(patched(name) / script))
    with as_they_were(ns):
        check(ns)
    ns = namespaces(os.path.join(ROOT, script))
    with as_they_were(ns), pytest.raises(AssertionError):
        check(ns)


@pytest.mark.parametrize('name, knobs', [
    ('dapo', {'advantage_std': True, 'loss_denominator': 'tokens', 'clip_low': 0.2, 'clip_high': 0.28, 'resample_rounds': 3, 'beta': 0.0}),
    ('dr_grpo', {'advantage_std': False, 'loss_denominator': 'constant', 'clip_low': 0.2, 'clip_high': 0.2})])
def test_config_sets_the_paper_s_knobs(monkeypatch, rows, start_model, tmp_path, name, knobs):
    """Behind config/tiny.py; and two steps with it train."""
    out = tmp_path / 'out'
    inside(monkeypatch, 'grpo.py', os.path.join(ROOT, 'config/tiny.py'), PAPERS[name], *TINY, f'--model={start_model}', f'--data={rows}',
           f'--out_dir={out}')
    with open(out / 'run.json') as f:
        config = json.load(f)
    assert {key: config[key] for key in knobs} == knobs
    trained(out)


# --- they train ---------------------------------------------------------------
def trained(out_dir):
    """Whether a run of two steps has a log with finite numbers and a gradient."""
    records = read_log(out_dir)
    assert [record['step'] for record in records] == [1, 2]
    for record in records:
        assert all(math.isfinite(value) for value in record.values())
    assert any(record['grad_norm'] > 0 for record in records)


@pytest.mark.parametrize('name', [name for name in DIFFS if name != 'gdpo'])
def test_two_steps(monkeypatch, rows, start_model, tmp_path, patched, name):
    inside(monkeypatch, str(patched(name) / script_of(name)), *TINY, f'--model={start_model}', f'--data={rows}', f'--out_dir={tmp_path}/out')
    trained(tmp_path / 'out')


def test_two_steps_of_gdpo(start_model, tmp_path):
    """In a process of its own, where verify.py is the patched one too, with both rewards and an evaluation."""
    tree = tmp_path / 'tree'
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns('.*', 'out', 'wandb', '__pycache__', 'docs', 'tests'))
    apply('gdpo', tree)
    rows = [{'numbers': [5, 8, 9], 'target': 22}, {'numbers': [1, 2, 3], 'target': 6}]
    (tmp_path / 'rows.jsonl').write_text('\n'.join(
        json.dumps({'prompt': f'{row["numbers"]}', 'answer': row, 'dataset': 'search'}) for row in rows))
    done = launch(str(tree / 'grpo.py'), *TINY, f'--model={start_model}', f'--data={tmp_path}/rows.jsonl', '--sample_every=1',
                  f'--eval_prompts={tmp_path}/rows.jsonl', f'--verifier={FOLDER}/two_rewards.py:right_and_short', f'--out_dir={tmp_path}/out')
    records = read_log(tmp_path / 'out')
    # short, never right
    assert [record['eval/pass@1'] for record in records if 'eval/pass@1' in record] == [0.5, 0.5]
    assert [record['reward/mean'] for record in records if 'reward/mean' in record] == [0.5, 0.5]
    assert all(record.get('reward/gave_up', 0) == 0 for record in records)
    assert '  0.5 | ' in done.stdout + done.stderr


def test_entropy_coef_of_zero_is_the_code_as_it_is(monkeypatch, rows, start_model, tmp_path, patched):
    """To the bit."""
    weights = []
    for script, flags in ((str(patched('entropy') / 'grpo.py'), ['--entropy_coef=0']), ('grpo.py', [])):
        out = tmp_path / str(len(weights))
        inside(monkeypatch, script, *TINY, *flags, f'--model={start_model}', f'--data={rows}', f'--out_dir={out}')
        weights.append((out / 'model.safetensors').read_bytes())
    assert weights[0] == weights[1]


def test_two_rewards():
    module = load(os.path.join(FOLDER, 'two_rewards.py'), 'two_rewards')
    right, wrong, truth = '9+8=17+5=22?22y', '5*8=40+9=49?22n', json.dumps({'numbers': [5, 8, 9], 'target': 22})
    for lines, verdict in (([right], (1, 1)), ([wrong, wrong, right], (1, 1)), ([wrong] * 3 + [right], (1, 0)), ([wrong], (0, 1)),
                           ([right] + [wrong] * 3, (0, 0))):
        rewards = module.right_and_short('\n'.join(lines) + '\n', truth)
        assert (rewards['right'], rewards['short']) == verdict


# --- run.py -------------------------------------------------------------------
def evaluations(*scores, step=24):
    return [{'step': i * step, 'eval/pass@1': score, 'eval/pass@1/4': score / 2} for i, score in enumerate(scores)]


def test_numbers_of_a_run():
    """Hand-worked: trapezoids 0.15, 0.25, 0.45 over three equal parts; a third of 72 steps is step 24."""
    numbers = papers_run.measured(evaluations(0.1, 0.2, 0.3, 0.6))
    assert numbers == pytest.approx({'final': 0.6, 'area': (0.15 + 0.25 + 0.45) / 3, 'third': 0.2, 'four digits': 0.3})


def test_paired_standard_error():
    """The differences are 0.1, 0.2, 0.3: their standard deviation is 0.1, over the root of 3 seeds."""
    difference, error = papers_run.paired([0.5, 0.1, 0.3], [0.6, 0.3, 0.6])
    assert difference == pytest.approx(0.2)
    assert error == pytest.approx(0.1 / math.sqrt(3))


def test_table_has_a_row_for_each_paper_with_all_runs():
    command = papers_run.header_of(PAPERS['rloo'])['command']
    outcomes = {}
    for seed, before, after in ((1, 0.5, 0.6), (2, 0.1, 0.3), (3, 0.3, 0.6)):
        outcomes[papers_run.baseline_of(command), seed] = evaluations(0, before, before)
        outcomes['rloo', seed] = evaluations(0, after, after)
    head, rule, row = papers_run.table(PAPERS, PAPERS, outcomes).split('\n')
    assert row == ('| rloo | 0.300 ± 0.200 → 0.500 ± 0.173 | +0.200 ± 0.058 | 0.225 ± 0.150 → 0.375 ± 0.130 | +0.150 ± 0.043 '
                   '| 0.300 ± 0.200 → 0.500 ± 0.173 | +0.200 ± 0.058 | 0.150 ± 0.100 → 0.250 ± 0.087 | +0.100 ± 0.029 |')
    assert head.count('|') == rule.count('|') == row.count('|')


def test_readme_has_the_tables_of_run_py():
    """papers/README.md has what the headers say and, once there are runs, the table of outcomes.jsonl, which is table.txt."""
    with open(os.path.join(FOLDER, 'README.md')) as f:
        readme = f.read()
    assert papers_run.list_of(PAPERS) in readme
    if os.path.exists(papers_run.OUTCOMES):
        known = papers_run.table(PAPERS, PAPERS, papers_run.read_outcomes())
        assert known in readme
        with open(os.path.join(FOLDER, 'table.txt')) as f:
            assert f.read() == known + '\n'


def test_papers_of_one_command_share_a_baseline():
    arms = papers_run.arms_of(['rloo', 'maxrl', 'dapo'], PAPERS)
    baseline, = [arm for arm in arms if arm.startswith('baseline_')]
    assert re.fullmatch('baseline_[0-9a-f]{8}', baseline)
    assert arms['dapo'] == (arms[baseline][0].replace('config/tiny.py', 'config/tiny.py papers/dapo.py'), None)
    assert arms['rloo'] == (arms[baseline][0], PAPERS['rloo'])


def test_from_a_command_to_its_row(monkeypatch, capsys, tmp_path):
    """run.py on a paper with a tiny model and one step: code, runs, outcomes, table; a run that is done is kept."""
    tree = tmp_path / 'tree'
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns('.*', 'out', 'wandb', '__pycache__', 'docs', 'tests'))
    flags = '--model=tiny --max_steps=1 --prompts_per_step=2 --max_new_tokens=4 --eval_prompts=search:tune --eval_samples=1'
    for name in ('raft', 'dr_grpo'):
        path = tree / 'papers' / os.path.basename(PAPERS[name])
        path.write_text(re.sub(r'command: .*', f'command: python grpo.py config/tiny.py {flags}', path.read_text()))
    (tree / 'papers/outcomes.jsonl').write_text('{"arm": "gspo", "seed": 1, "step": 0, "eval/pass@1": 0.5}\n')

    module = load(tree / 'papers/run.py', 'papers_run_of_tree')
    monkeypatch.setattr(module, 'SEEDS', (1, 2))
    # the scripts run in forks that have torch already
    monkeypatch.setattr(module.subprocess, 'run', lambda command, **options: (
        launch(*command[1:], cwd=tree) if command[0] == sys.executable else subprocess_run(command, **options)))
    module.main(['raft', '--jobs=1'])
    baseline = module.baseline_of(f'python grpo.py config/tiny.py {flags}')
    row = '0.000 ± 0.000 → 0.000 ± 0.000 | +0.000 ± 0.000'
    assert f'| raft | {" | ".join([row] * 4)} |' in capsys.readouterr().out
    assert f'| raft | {row}' in (tree / 'papers/table.txt').read_text()
    assert sorted(os.listdir(tree / 'out/papers/raft')) == ['code', 'made_from.txt', 'seed1', 'seed1.txt', 'seed2', 'seed2.txt']
    assert {'config', 'papers', 'rewards', 'grpo.py', 'run.py'} <= {*os.listdir(tree / 'out/papers' / baseline / 'code')}
    lines = [json.loads(line) for line in open(tree / 'papers/outcomes.jsonl')]
    assert {line['arm'] for line in lines} == {'gspo', 'raft', baseline} and len(lines) == 1 + 2 * 2 * 2

    # the shared baseline is not run again
    before = os.path.getmtime(tree / 'out/papers' / baseline / 'seed1/log.jsonl')
    module.main(['dr_grpo', '--jobs=1'])
    assert os.path.getmtime(tree / 'out/papers' / baseline / 'seed1/log.jsonl') == before
    assert json.load(open(tree / 'out/papers/dr_grpo/seed1/run.json'))['loss_denominator'] == 'constant'
    # runs of another version of the diff are not taken for this one's
    raft = tree / 'papers/raft.diff'
    raft.write_text(raft.read_text().replace('outcome: pending', 'outcome: bad'))
    module.prepare('raft', f'python grpo.py config/tiny.py {flags}', str(raft))
    raft.write_text(raft.read_text().replace('return rewards', 'return 2 * rewards'))
    with pytest.raises(SystemExit, match='has runs of another raft: delete it'):
        module.prepare('raft', f'python grpo.py config/tiny.py {flags}', str(raft))
    module.main(['--report'])
    assert [line.split(' | ')[0] for line in capsys.readouterr().out.strip().split('\n')[-2:]] == ['| dr_grpo', '| raft']


subprocess_run = subprocess.run
