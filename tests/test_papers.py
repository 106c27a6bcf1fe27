"""papers/: each applies to the code as it is, trains, and does what its paper says, which the code as it is does not do.

Here are what holds for all papers, the checks of the policy gradients, and run.py. The other papers' checks are in test_papers_*.py.
"""
import ast
import glob
import json
import math
import os
import re
import shlex
import subprocess
import sys

import configurator
import pytest
from conftest import ROOT, launch, read_log
from paper_tools import CONFIGS, DIFFS, FOLDER, PAPERS, TINY, TWO_STEPS, advantages, copy_code, files_of, load, loss_of, near, only_with_the_diff
from paper_tools import papers_run, patched_tree, run_inside, sampled, text_of, trained, two_steps, weights_of

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = ('sft.py', 'dpo.py', 'grpo.py', 'hpt.py', 'prefix_rft.py')


# --- the files ----------------------------------------------------------------
def test_every_file_is_a_paper_or_a_tool():
    """A file whose header cannot be read would be left out silently."""
    diffs = set(glob.glob(os.path.join(FOLDER, '*.diff')))
    assert diffs == {path for path in PAPERS.values() if path.endswith('.diff')}
    configs = {os.path.basename(path) for path in glob.glob(os.path.join(ROOT, 'config/papers/*.py'))}
    assert configs - {os.path.basename(PAPERS[name]) for name in CONFIGS} == {'sums.py', 'sums_base.py'}
    # each script that makes rows or measures belongs to a paper's commands or is named in one
    headers = ' '.join(json.dumps(papers_run.header_of(path)) for path in PAPERS.values())
    for path in glob.glob(os.path.join(FOLDER, '*.py')):
        stem = os.path.basename(path).removesuffix('.py')
        assert stem in ('run', 'lines') or f'papers.{stem}' in headers or f'papers/{stem}.py' in headers, path
    assert len(DIFFS) >= 20 and len(CONFIGS) >= 18


def commands_of(header):
    return [header[key] for key in ('command',) if key in header] + header.get('baseline', []) + header.get('variant', [])


@pytest.mark.parametrize('name', PAPERS)
def test_header(name):
    """All keys in their order, each one line; commands whose scripts and config files exist."""
    header = papers_run.header_of(PAPERS[name])
    order = [key for key in ('group', 'changes', 'paper', 'command', 'baseline', 'variant', 'arms', 'tune', 'measure', 'claim', 'outcome') if key in header]
    assert list(header) == order
    assert {'group', 'changes', 'paper', 'claim', 'outcome'} <= set(header)
    assert header['group'] in papers_run.GROUPS
    # one command of both arms, or those of each
    assert ('command' in header) != ('variant' in header)
    # without a baseline there is no difference in pass@1 to show
    is_run = papers_run.is_run(PAPERS[name])
    assert 'command' in header or 'baseline' in header or 'measure' in header or not is_run
    texts = [text for key in header for text in ([header[key]] if isinstance(header[key], str) else header[key])]
    assert all(0 < len(text) <= 150 for text in texts)
    for command in commands_of(header):
        python, *words = shlex.split(command)
        assert python == 'python'
        if words[0] == '-m':
            assert words[1].startswith('papers.')
            assert os.path.exists(os.path.join(ROOT, words[1].replace('.', '/') + '.py')), command
            words = words[2:]
        for word in words:
            assert word.startswith('--') or os.path.exists(os.path.join(ROOT, word)), command
    # the arXiv id also stands in the code of a diff
    assert re.search(r'arXiv \d{4}\.\d{5}', header['paper'])
    if name in DIFFS:
        assert re.search(r'^\+.*arXiv \d{4}\.\d{5}', text_of(name), re.M)


@pytest.mark.parametrize('name', PAPERS)
def test_commands_have_knobs_that_exist_and_legal_values(name, monkeypatch, patched):
    """Of all arms, those of a diff's variant in its patched tree."""
    monkeypatch.setattr(configurator, 'check_models', lambda *_: None)
    for arm in papers_run.arms_of(name, PAPERS[name]):
        tree = patched(name) if arm.diff else ROOT
        for command in arm.commands:
            _, *words = shlex.split(command)
            path = os.path.join(tree, words[1].replace('.', '/') + '.py' if words[0] == '-m' else words[0])
            flags = words[2:] if words[0] == '-m' else words[1:]
            run_config_block(path, [*flags, '--seed=1'], monkeypatch)


def run_config_block(path, flags, monkeypatch):
    """Runs a script's config block with these flags, up to and with its call of configure, which may be in a function."""
    with open(path) as f:
        statements = ast.parse(f.read()).body
    knobs = [s for s in statements if isinstance(s, ast.Assign) and 'configure(' not in ast.unparse(s)]
    call, = [node for s in statements for node in ast.walk(s) if isinstance(node, ast.Call) and ast.unparse(node.func) == 'configure']
    names = {key: value for key, value in vars(configurator).items() if callable(value)} | {'__file__': path, '__doc__': None}
    last = call.lineno
    block = [s for s in knobs if s.lineno < last] + [ast.Expr(call)]
    monkeypatch.setattr(sys, 'argv', [os.path.basename(path), *flags])
    exec(compile(ast.fix_missing_locations(ast.Module(block, [])), path, 'exec'), names)


@pytest.mark.parametrize('name', PAPERS)
def test_a_claim_is_run_or_says_what_it_needs(name):
    outcome = papers_run.header_of(PAPERS[name])['outcome']
    assert outcome != 'pending'
    if outcome.startswith(papers_run.NOT_RUN):
        assert 'needs' in outcome


@pytest.mark.parametrize('name', DIFFS)
def test_diff_is_small_and_applies(name, patched):
    lines = text_of(name).split('\n')
    assert 1 <= len(files_of(name)) <= 2
    changed = [line for line in lines if line[:1] in ('+', '-') and line[:4] not in ('+++ ', '--- ')]
    assert 0 < len(changed) <= 30
    assert all(len(line) <= 111 for line in changed if line[0] == '+')
    for file in files_of(name):
        assert (patched(name) / file).read_text() != open(os.path.join(ROOT, file)).read()


def test_recipes_are_short():
    for path in glob.glob(os.path.join(ROOT, 'config/papers/*.py')) + glob.glob(os.path.join(FOLDER, '*.py')):
        if os.path.basename(path) != 'run.py':
            with open(path) as f:
                assert len(f.readlines()) <= 40, path


def test_every_diff_has_numbers_of_its_own():
    """A check_NAME somewhere, which only_with_the_diff() runs."""
    checked = set()
    for path in glob.glob(os.path.join(HERE, 'test_papers*.py')):
        with open(path) as f:
            checked |= set(re.findall(r'^def check_(\w+)\(', f.read(), re.M))
    assert checked == set(DIFFS)


# --- what each paper changes --------------------------------------------------
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


POLICY_GRADIENTS = [name.removeprefix('check_') for name in globals() if name.startswith('check_')]


@pytest.mark.parametrize('name', POLICY_GRADIENTS)
def test_diff_does_what_its_paper_says(name, patched, namespaces):
    """With hand-worked numbers, which the code as it is does not give."""
    only_with_the_diff(name, globals()[f'check_{name}'], patched, namespaces)


@pytest.mark.parametrize('name, knobs', [
    ('dapo', {'advantage_std': True, 'loss_denominator': 'tokens', 'clip_low': 0.2, 'clip_high': 0.28, 'resample_rounds': 3, 'beta': 0.0}),
    ('dr_grpo', {'advantage_std': False, 'loss_denominator': 'constant', 'clip_low': 0.2, 'clip_high': 0.2})])
def test_config_sets_the_paper_s_knobs(rows, start_model, tmp_path, name, knobs):
    """Behind config/tiny.py; and two steps with it train."""
    out = tmp_path / 'out'
    run_inside(os.path.join(ROOT, 'grpo.py'), os.path.join(ROOT, 'config/tiny.py'), PAPERS[name], *TINY['grpo'], *TWO_STEPS,
               f'--model={start_model}', f'--data={rows}', f'--out_dir={out}')
    with open(out / 'run.json') as f:
        config = json.load(f)
    assert {key: config[key] for key in knobs} == knobs
    trained(out)


# --- they train ---------------------------------------------------------------
# what a diff's knobs need besides: a file of rows, a folder
NEEDS = {}


@pytest.mark.parametrize('name, script', [(name, script) for name in DIFFS for script in files_of(name) if script in SCRIPTS and name != 'gdpo'])
def test_two_steps(rows, start_model, tmp_path, patched, name, script):
    flags = [flag.format(rows=rows, model=start_model) for flag in NEEDS.get(name, [])]
    two_steps(patched(name) / script, tmp_path / 'out', f'--model={start_model}', f'--data={rows}', *flags)


def test_two_steps_of_gdpo(start_model, tmp_path):
    """In a process of its own, where verify.py is the patched one too, with both rewards and an evaluation."""
    tree = patched_tree('gdpo', tmp_path / 'tree')
    rows = [{'numbers': [5, 8, 9], 'target': 22}, {'numbers': [1, 2, 3], 'target': 6}]
    (tmp_path / 'rows.jsonl').write_text('\n'.join(
        json.dumps({'prompt': f'{row["numbers"]}', 'answer': row, 'dataset': 'search'}) for row in rows))
    done = launch(str(tree / 'grpo.py'), *TINY['grpo'], *TWO_STEPS, f'--model={start_model}', f'--data={tmp_path}/rows.jsonl', '--sample_every=1',
                  f'--eval_prompts={tmp_path}/rows.jsonl', f'--verifier={FOLDER}/two_rewards.py:right_and_short', f'--out_dir={tmp_path}/out')
    records = read_log(tmp_path / 'out')
    # short, never right
    assert [record['eval/pass@1'] for record in records if 'eval/pass@1' in record] == [0.5, 0.5]
    assert [record['reward/mean'] for record in records if 'reward/mean' in record] == [0.5, 0.5]
    assert all(record.get('reward/gave_up', 0) == 0 for record in records)
    assert '  0.5 | ' in done.stdout + done.stderr


def test_entropy_coef_of_zero_is_the_code_as_it_is(rows, start_model, tmp_path, patched):
    """To the bit."""
    flags = [f'--model={start_model}', f'--data={rows}']
    assert (weights_of(patched('entropy') / 'grpo.py', tmp_path / '0', *flags, '--entropy_coef=0')
            == weights_of(os.path.join(ROOT, 'grpo.py'), tmp_path / '1', *flags))


def test_two_rewards():
    module = load(os.path.join(FOLDER, 'two_rewards.py'), 'two_rewards')
    right, wrong, truth = '9+8=17+5=22?22y', '5*8=40+9=49?22n', json.dumps({'numbers': [5, 8, 9], 'target': 22})
    for lines, verdict in (([right], (1, 1)), ([wrong, wrong, right], (1, 1)), ([wrong] * 3 + [right], (1, 0)), ([wrong], (0, 1)),
                           ([right] + [wrong] * 3, (0, 0))):
        rewards = module.right_and_short('\n'.join(lines) + '\n', truth)
        assert (rewards['right'], rewards['short']) == verdict


def test_write_lines(tmp_path):
    """Without read_rows' notes, in a folder that was not there, over the file that was."""
    from papers.lines import write_lines
    path = tmp_path / 'new' / 'rows.jsonl'
    for n in (2, 1):
        write_lines(path, ({'a': i, '_where': 'x'} for i in range(n)))
    assert path.read_text() == '{"a": 0}\n'


# --- run.py -------------------------------------------------------------------
def evaluations(*scores, step=24):
    return [{'step': i * step, 'eval/pass@1': score, 'eval/pass@1/4': score / 2} for i, score in enumerate(scores)]


def timed(*scores, seconds=60):
    records = evaluations(*scores)
    records[-1]['seconds'] = seconds
    return records


def test_numbers_of_a_run():
    """Hand-worked: trapezoids 0.15, 0.25, 0.45 over three equal parts; a third of 72 steps is step 24."""
    numbers = papers_run.measured(evaluations(0.1, 0.2, 0.3, 0.6))
    assert numbers == pytest.approx({'final': 0.6, 'area': (0.15 + 0.25 + 0.45) / 3, 'third': 0.2, 'hardest': 0.3})


def test_hardest_problems():
    """Four digits of search; of sums, which has four digits too, nine and ten."""
    assert papers_run.hardest({'eval/pass@1/4': 0.5}) == 0.5
    assert papers_run.hardest({f'eval/pass@1/{n}': n / 100 for n in range(2, 11)}) == pytest.approx(0.095)


def test_paired_standard_error():
    """The differences are 0.1, 0.2, 0.3: their standard deviation is 0.1, over the root of 3 seeds."""
    difference, error = papers_run.paired([0.5, 0.1, 0.3], [0.6, 0.3, 0.6])
    assert difference == pytest.approx(0.2)
    assert error == pytest.approx(0.1 / math.sqrt(3))


def header(path, **changed):
    """A paper's file with other lines in its header; None takes a line out."""
    lines = {'group': 'data', 'changes': 'x', 'paper': 'y', 'command': 'python sft.py config/tiny.py --max_steps=2', 'claim': 'c', 'outcome': 'o', **changed}
    text = ''
    for key, value in lines.items():
        for line in value if isinstance(value, list) else [value] * (value is not None):
            text += f'# {key}: {line}\n'
    path.write_text(text + 'learning_rate = 1e-3\n')
    return str(path)


def test_table_has_a_row_for_each_paper_with_all_runs():
    outcomes = {}
    baseline = papers_run.baseline_of(PAPERS['rloo']).name
    for seed, before, after in ((1, 0.5, 0.6), (2, 0.1, 0.3), (3, 0.3, 0.6)):
        outcomes[baseline, seed] = timed(0, before, before)
        outcomes['rloo', seed] = timed(0, after, after, seconds=120)
    head, rule, row = papers_run.curves_table(PAPERS, PAPERS, outcomes).split('\n')
    assert row == ('| rloo | 0.300 ± 0.200 → 0.500 ± 0.173 | +0.200 ± 0.058 | 0.225 ± 0.150 → 0.375 ± 0.130 | +0.150 ± 0.043 '
                   '| 0.300 ± 0.200 → 0.500 ± 0.173 | +0.200 ± 0.058 | 0.150 ± 0.100 → 0.250 ± 0.087 | +0.100 ± 0.029 |')
    assert head.count('|') == rule.count('|') == row.count('|')
    # three seeds, three minutes of the baseline and six of the paper
    assert papers_run.cost_of('rloo', PAPERS['rloo'], outcomes) == ['3', '9']
    del outcomes['rloo', 2], outcomes['rloo', 3][-1]['seconds']
    assert papers_run.cost_of('rloo', PAPERS['rloo'], outcomes) == ['2', '–']


def test_arms_are_compared_at_the_steps_that_both_evaluate():
    """The baseline alone evaluates its start model: 0 at step 0 does not count in its mean over the run."""
    baseline = papers_run.baseline_of(PAPERS['rloo']).name
    outcomes = {(name, seed): [record for record in timed(*scores) if record['step'] >= first]
                for seed in (1, 2, 3) for name, scores, first in ((baseline, (0, 0.2, 0.4), 0), ('rloo', (9, 0.2, 0.4), 24))}
    row = papers_run.curves_table(['rloo'], PAPERS, outcomes).split('\n')[-1]
    assert '| 0.300 ± 0.000 → 0.300 ± 0.000 | +0.000 ± 0.000 |' in row


def test_measures_of_several_arms(tmp_path):
    """A row for each arm and key, with the last value that was logged; an arm whose runs are missing has none, a paper may have no baseline."""
    path = header(tmp_path / 'a.py', arms='--seed_of=1; --lr=2 --x=3', measure='bits, nats')
    names = [arm.name for arm in papers_run.arms_of('a', path)]
    assert names[1:] == ['a seed_of=1', 'a lr=2 x=3']
    outcomes = {(name, seed): [{'step': 1, 'bits': 9.0}, {'step': 2, 'bits': i + seed, 'nats': 1.0}, {'step': 3}]
                for i, name in enumerate(names[:2]) for seed in (1, 2, 3)}
    _, _, *rows = papers_run.measures_table(['a'], {'a': path}, outcomes).split('\n')
    assert rows == ['| a seed_of=1 | bits | 2.000 ± 1.000 | 3.000 ± 1.000 | +1.000 ± 0.000 |',
                    '| a seed_of=1 | nats | 1.000 ± 0.000 | 1.000 ± 0.000 | +0.000 ± 0.000 |']
    alone = header(tmp_path / 'b.py', command=None, variant=['python sft.py'], measure='bits')
    outcomes = {('b', seed): [{'step': 0, 'bits': 2.0}] for seed in (1, 2, 3)}
    assert papers_run.measures_table(['b'], {'b': alone}, outcomes).endswith('| b | bits |  | 2.000 ± 0.000 |  |')


def test_each_arm_has_the_setting_that_is_best_for_it(tmp_path):
    path = header(tmp_path / 'a.py', tune='learning_rate 1e-3 1e-4 on sums:tune')
    baseline, variant = papers_run.arms_of('a', path)
    candidates = papers_run.candidates_of(baseline)
    assert [arm.commands for arm in candidates.values()] == [
        (f'python sft.py config/tiny.py --max_steps=2 --learning_rate={lr} --eval_prompts=sums:tune',) for lr in ('1e-3', '1e-4')]
    outcomes = {}
    for arm, scores in ((baseline, (0.3, 0.2)), (variant, (0.3, 0.4))):
        assert papers_run.best_flag(arm, outcomes) is None
        for candidate, score in zip(papers_run.candidates_of(arm).values(), scores):
            outcomes[candidate.name, 0] = timed(0.9, score)
    assert [papers_run.best_flag(arm, outcomes) for arm in (baseline, variant)] == ['--learning_rate=1e-3', '--learning_rate=1e-4']
    for arm in (baseline, variant):
        outcomes |= {(arm.name, seed): timed(0.1, 0.2) for seed in (1, 2, 3)}
    assert '| a (learning_rate 1e-3 → 1e-4) | 0.200' in papers_run.curves_table(['a'], {'a': path}, outcomes)
    # six runs of three seeds and four of tuning, a minute each
    assert papers_run.cost_of('a', path, outcomes) == ['3', '10']


def test_readme_has_the_tables_of_run_py():
    """papers/README.md has what the headers say and the tables of outcomes.jsonl, which are in table.txt."""
    with open(os.path.join(FOLDER, 'README.md')) as f:
        readme = f.read()
    outcomes = papers_run.read_outcomes()
    for part in papers_run.list_of(PAPERS, outcomes).split('\n\n'):
        assert part in readme
    known = papers_run.tables(PAPERS, PAPERS, outcomes)
    for table in known.split('\n\n'):
        assert table in readme
    with open(os.path.join(FOLDER, 'table.txt')) as f:
        assert f.read() == known + '\n'


def test_every_paper_that_is_run_has_its_outcome():
    outcomes = papers_run.read_outcomes()
    for name, path in PAPERS.items():
        if papers_run.is_run(path):
            assert papers_run.is_complete(papers_run.arms_of(name, path), outcomes), name


def test_outcomes_are_those_of_papers():
    """None of an arm that no header has any more."""
    known = set()
    for name, path in PAPERS.items():
        for arm in papers_run.arms_of(name, path):
            known |= {arm.name}
            if arm.tune:
                known |= {candidate.name for candidate in papers_run.candidates_of(arm).values()}
    assert {arm for arm, _ in papers_run.read_outcomes()} <= known


def test_papers_of_one_command_share_a_baseline():
    arms = [arm for name in ('rloo', 'maxrl', 'dapo') for arm in papers_run.arms_of(name, PAPERS[name])]
    baseline, = {arm for arm in arms if arm.name.startswith('baseline_')}
    assert re.fullmatch('baseline_[0-9a-f]{8}', baseline.name) and baseline.diff is None
    command, = baseline.commands
    assert arms[5] == ('dapo', (command.replace('config/tiny.py', 'config/tiny.py config/papers/dapo.py'),), None, '')
    assert arms[1] == ('rloo', (command,), PAPERS['rloo'], '')


def test_from_a_command_to_its_row(monkeypatch, capsys, tmp_path):
    """run.py on a paper with a tiny model and one step: code, runs, outcomes, table; a run that is done is kept."""
    tree = tmp_path / 'tree'
    copy_code(tree)
    flags = '--model=tiny --max_steps=1 --prompts_per_step=2 --max_new_tokens=4 --eval_prompts=search:tune --eval_samples=1'
    command = f'python grpo.py config/tiny.py {flags}'
    for path in ('papers/raft.diff', 'config/papers/dr_grpo.py'):
        (tree / path).write_text(re.sub(r'command: .*', f'command: {command}', (tree / path).read_text()))
    (tree / 'papers/outcomes.jsonl').write_text('{"arm": "gspo", "seed": 1, "step": 0, "eval/pass@1": 0.5}\n')
    (tree / 'out/tiny_base').mkdir(parents=True)

    module = load(tree / 'papers/run.py', 'papers_run_of_tree')
    monkeypatch.setattr(module, 'SEEDS', (1, 2))
    # the scripts run in forks that have torch already
    monkeypatch.setattr(module.subprocess, 'run', lambda command, **options: (
        launch(f'{options["cwd"]}/{command[1]}', *command[2:], cwd=options['cwd']) if command[0] == sys.executable
        else subprocess_run(command, **options)))
    module.main(['raft', '--jobs=1'])
    baseline = module.baseline_of(str(tree / 'papers/raft.diff')).name
    row = '0.000 ± 0.000 → 0.000 ± 0.000 | +0.000 ± 0.000'
    assert f'| raft | {" | ".join([row] * 4)} |' in capsys.readouterr().out
    assert f'| raft | {row}' in (tree / 'papers/table.txt').read_text()
    assert sorted(os.listdir(tree / 'out/papers/raft')) == ['made_from.txt', 'seed1', 'seed1.txt', 'seed2', 'seed2.txt']
    assert {'config', 'papers', 'rewards', 'grpo.py', 'run.py'} <= {*os.listdir(tree / 'out/papers' / baseline / 'seed1')}
    assert sorted(os.listdir(tree / 'out/papers/raft/seed1/out')) == ['run', 'tiny_base']
    lines = [json.loads(line) for line in open(tree / 'papers/outcomes.jsonl')]
    assert {line['arm'] for line in lines} == {'gspo', 'raft', baseline} and len(lines) == 1 + 2 * 2 * 2
    assert all('seconds' in line for line in lines if line['arm'] != 'gspo' and line['step'] == 1)
    # the variant alone is patched
    assert (tree / 'out/papers' / baseline / 'seed1/grpo.py').read_text() == (tree / 'grpo.py').read_text()
    assert (tree / 'out/papers/raft/seed1/grpo.py').read_text() != (tree / 'grpo.py').read_text()

    # the shared baseline is not run again
    before = os.path.getmtime(tree / 'out/papers' / baseline / 'seed1/out/run/log.jsonl')
    module.main(['dr_grpo', '--jobs=1'])
    assert os.path.getmtime(tree / 'out/papers' / baseline / 'seed1/out/run/log.jsonl') == before
    assert json.load(open(tree / 'out/papers/dr_grpo/seed1/out/run/run.json'))['loss_denominator'] == 'constant'
    # runs of another version of the diff are not taken for this one's
    raft = tree / 'papers/raft.diff'
    raft.write_text(re.sub(r'outcome: .*', 'outcome: bad', raft.read_text()))
    _, variant = module.arms_of('raft', str(raft))
    module.check_runs(variant)
    raft.write_text(raft.read_text().replace('return rewards', 'return 2 * rewards'))
    with pytest.raises(SystemExit, match='has runs of another raft: delete it'):
        module.check_runs(variant)
    # nor those of other code, but another outcome in a header is no other code
    config = tree / 'config/papers/dr_grpo.py'
    _, dr_grpo = module.arms_of('dr_grpo', str(config))
    config.write_text(re.sub(r'# outcome: .*', '# outcome: bad', config.read_text()))
    module.check_runs(dr_grpo)
    (tree / 'data.py').write_text((tree / 'data.py').read_text() + '\nx = 1\n')
    with pytest.raises(SystemExit, match='has runs of another dr_grpo: delete it'):
        module.check_runs(dr_grpo)
    capsys.readouterr()
    module.main(['--report'])
    assert re.findall(r'^\| (\w+) \| 0', capsys.readouterr().out, re.M) == ['dr_grpo', 'raft']


def test_commands_of_an_arm_run_in_their_order(monkeypatch, tmp_path):
    """In one tree; each has the seed, the last one has the out_dir that is measured; an error shows what was printed."""
    monkeypatch.setattr(papers_run, 'ROOT', str(tmp_path))
    (tmp_path / 'out').mkdir()
    for folder in ('config', 'papers', 'rewards'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'first.py').write_text('import sys; open("out/first", "w").write(" ".join(sys.argv[1:]))')
    (tmp_path / 'last.py').write_text("""import os, sys
os.makedirs('out/run')
first = open('out/first').read()
open('out/run/log.jsonl', 'w').write(f'{{"step": 1, "loss": 2}}\\n{{"step": 1, "first": "{first}", "tokens": 3, "last": "{sys.argv[1:]}"}}')
""")
    arm = papers_run.Arm('x', ('python first.py --a=1', 'python last.py'))
    record, = papers_run.run(arm, 7)
    assert record.pop('seconds') >= 0
    assert record == {'step': 1, 'first': '--a=1 --seed=7', 'last': "['--seed=7', '--out_dir=out/run']"}
    (tmp_path / 'first.py').write_text('raise ValueError("broken")')
    with pytest.raises(SystemExit, match='python first.py --a=1 --seed=8 failed in .*seed8'):
        papers_run.run(arm, 8)


subprocess_run = subprocess.run
