"""hpt.py and prefix_rft.py: invariant 10 by gradients of the scripts' own lines, hand-worked cases, runs on ranks."""
import itertools
import json
import math
import os
import textwrap
from contextlib import nullcontext
from types import SimpleNamespace

import model as weights_module
import pytest
import torch
from conftest import ROOT, read_log, script_until_loop
from data import byte_tokenizer, random_stream, rl_prompts, sft_examples
from test_scripts import same

FLAGS = ['--eval_prompts=', '--max_new_tokens=24', '--micro_batch_tokens=300']
RL = ['--advantage_std=False', '--loss_denominator=constant']


@pytest.fixture
def load(monkeypatch, start_model, rows, tmp_path):
    """load(script, *flags) -> namespace, loss block; weights, log-probs and gradients are float64."""
    def logprobs(hidden, weight, targets, temperature, dtype):
        full = torch.log_softmax(hidden @ weight.T / temperature, -1)
        return full.gather(1, targets[:, None])[:, 0], -(full.exp() * full).sum(-1).detach()

    def loaded(script, *flags):
        ns, block = script_until_loop(monkeypatch, script, f'--model={start_model}', f'--out_dir={tmp_path}/{next(places)}', *FLAGS,
                                      f'--data={rows}', *flags)
        return ns, block
    places = itertools.count()
    monkeypatch.setattr(weights_module, 'TokenLogprobs', SimpleNamespace(apply=logprobs))
    return loaded


def gradient(ns, block, ranks=1, **names):
    """The float64 gradient as `ranks` ranks would make it: each its micro-batches, then DDP's mean."""
    ns['lm'].double()
    ns['policy'].no_sync = nullcontext
    ns['lm'].zero_grad()
    for rank in range(ranks):
        ns.update(world_size=ranks, rank=rank)
        if 'groups' in names:
            ns['micro_batches'] = ns['micro_batches_of'](names['groups'])
            for micro in ns['micro_batches']:
                micro['weight'], micro['advantage'] = micro['weight'].double(), micro['advantage'].double()
        else:
            batch = names['batch']
            mine = [batch[i] for i in ns['split_by_work']([len(e['ids']) for e in batch], ranks)[rank]]
            ns.update(mine=mine, bins=ns['pack']([len(e['ids']) for e in mine], 300) or [[]],
                      supervised=sum(int(e['mask'].sum()) for e in batch))
        exec(block, ns)
    ns.update(world_size=1, rank=0)
    flat = torch.cat([p.grad.flatten() for p in ns['lm'].parameters()]) / ranks
    assert flat.dtype == torch.float64 and flat.isfinite().all()
    return flat


def close(a, b):
    assert b.norm() > 1e-4 and (a - b).norm() < 1e-6 * b.norm(), ((a - b).norm() / b.norm()).item()


def sft_gradient(load, indices, ranks):
    ns, block = load('sft.py', '--eval_data=')
    return gradient(ns, block, ranks, batch=[ns['examples'][i] for i in indices]), ns['examples']


@pytest.mark.parametrize('ranks', [1, 2])
def test_hpt_is_sft_grpo_or_their_sum(load, ranks):
    """Invariant 10: the gate held on SFT, held on RL, and in between; a coefficient is a factor."""
    indices = list(range(12))
    grpo, grpo_block = load('grpo.py', *RL)
    groups = grpo['rollout'](indices, 0)
    rl = gradient(grpo, grpo_block, ranks, groups=groups)
    sft, examples = sft_gradient(load, indices, ranks)
    ns, block = load('hpt.py', '--gamma=1.0', '--sft_coef=0.5')
    for prompt, example in zip(ns['prompts'], examples):  # invariant 1: the ids that sft.py trains on, end included
        assert prompt['demonstration'] == example['ids'][example['mask']].tolist()
        assert prompt['demonstration'][-1] in ns['stops']
    taught = ns['rollout'](indices, 0)
    assert [[c['ids'] for c in g['completions']] for g in taught] == [[c['ids'] for c in g['completions']] for g in groups]
    close(gradient(ns, block, ranks, groups=taught), 0.5 * sft)
    assert ns['sums'][3] > 0 or ranks > 1
    for held, gamma in ((rl, -1.0), (None, 0.0)):
        ns, block = load('hpt.py', f'--gamma={gamma}', '--rl_coef=2.0')
        mixed = ns['rollout'](indices, 0)
        failed = [i for i, g in zip(indices, groups) if gamma >= 0 and not g['rewards'].any()]
        assert [g['taught'] for g in mixed] == [i in failed for i in indices]
        if gamma >= 0:
            assert 0 < len(failed) < len(indices)
            held = rl + sft_gradient(load, failed, ranks)[0] / 2
        close(gradient(ns, block, ranks, groups=mixed), 2 * held)


@pytest.mark.parametrize('ranks', [1, 2])
def test_prefix_rft_is_grpo_without_hybrids_and_sft_with_whole_demonstrations(load, ranks):
    """Invariant 10."""
    indices = list(range(12))
    grpo, grpo_block = load('grpo.py', *RL)
    rl = gradient(grpo, grpo_block, ranks, groups=grpo['rollout'](indices, 0))
    ns, block = load('prefix_rft.py', '--n_prefix=0')
    close(gradient(ns, block, ranks, groups=ns['rollout'](indices, 0)), rl)
    sft, _ = sft_gradient(load, indices, ranks)
    groups = [{'prompt': p, 'advantages': torch.ones(1), 'completions': [
        {'ids': p['demonstration'], 'logprobs': torch.zeros(len(p['demonstration'])), 'stopped': True,
         'shown': len(p['demonstration'])}]} for p in ns['prompts'][:12]]
    tokens = sum(len(p['demonstration']) for p in ns['prompts'][:12])
    for denominator, factor in (('tokens', 1.0), ('constant', tokens / (24 * 12))):
        ns.update(prefix_entropy=1.0, loss_denominator=denominator)
        close(gradient(ns, block, ranks, groups=groups), factor * sft)


@pytest.mark.parametrize('script', ['hpt.py', 'prefix_rft.py'])
def test_shown_tokens_have_no_kl_and_no_importance_weight(load, script):
    """A step of demonstrations alone: beta, importance_cap and an old policy change nothing, and no rank is empty-handed."""
    def outcome(*flags):
        ns, block = load(script, *flags, *(['--gamma=1.0'] if script == 'hpt.py' else []))
        groups = [{'prompt': p, 'taught': True, 'advantages': torch.ones(1) * (script != 'hpt.py'), 'completions': [
            {'ids': p['demonstration'], 'logprobs': torch.zeros(len(p['demonstration'])), 'stopped': True,
             'shown': len(p['demonstration'])}]} for p in ns['prompts'][:1]]
        if script == 'hpt.py':
            groups[0]['completions'] = []
        ns['lm'].double()
        if ns['reference']:
            ns['reference'].double()
        original = ns['micro_batches_of']

        def with_old(groups):
            made = original(groups)
            for micro in made:
                n = len(micro['index'])
                micro.update(old_logprobs=torch.full((n,), -3.0), ref_logprobs=torch.full((n,), -2.0))
            return made
        if flags:
            ns['micro_batches_of'] = with_old
        return gradient(ns, block, 2, groups=groups)  # one of the two ranks has nothing
    close(outcome('--beta=0.5', '--importance_cap=2.0'), outcome())


def test_only_the_filtered_prefix_has_a_gradient(load):
    """No entropy share, whole demonstrations as prefixes: nothing is learned."""
    ns, block = load('prefix_rft.py', '--prefix_entropy=0.0')
    whole = ns['prompts'][0]['demonstration']
    groups = [{'prompt': ns['prompts'][0], 'advantages': torch.ones(1), 'completions': [
        {'ids': whole, 'logprobs': torch.zeros(len(whole)), 'stopped': True, 'shown': len(whole)}]}]
    assert gradient(ns, block, groups=groups).norm() == 0
    ns['prefix_entropy'] = 0.2
    assert gradient(ns, block, groups=groups).norm() > 1e-4


def test_resampling_keeps_taught_prompts(load):
    """The loop's own lines: a prompt that learns its demonstration is not replaced for want of spread."""
    ns, _ = load('hpt.py', '--resample_rounds=3', '--prompts_per_step=6')
    ns['verify_all'] = lambda items: [(0.0, False) for _ in items]
    source = open(os.path.join(ROOT, 'hpt.py')).read()
    lines = source[source.index('    groups, seen = [], []'):source.index('    rollout_seconds =')]
    exec(textwrap.dedent(lines), ns)
    assert len(ns['groups']) == len(ns['seen']) == 6 and all(g['taught'] for g in ns['groups'])


def test_gate_by_hand(load):
    ns, _ = load('hpt.py', '--group_size=4', '--gamma=0.25')
    scores = iter([0, 0, 0, 0,  1, 0, 0, 0,  1, 1, 0, 0,  1, 1, 1, 1,  0, 0, 0, 0])
    ns['verify_all'] = lambda items: [(float(next(scores)), False) for _ in items]
    ns['prompts'][4]['demonstration'] = None  # as --without_demonstration=rl leaves it
    groups = ns['rollout'](list(range(5)), 0)
    assert [g['taught'] for g in groups] == [True, True, False, False, False]
    assert [g['advantages'].tolist() for g in groups] == [[0] * 4, [0] * 4, [.5, .5, -.5, -.5], [0] * 4, [0] * 4]
    micro_batches = ns['micro_batches_of'](groups)
    shown = sum(len(p['demonstration']) for p in ns['prompts'][:2])
    assert sum(int(m['shown'].sum()) for m in micro_batches) == shown
    weights = torch.cat([m['weight'][m['shown']] for m in micro_batches])
    assert torch.allclose(weights, torch.tensor(1 / shown))
    others = torch.cat([m['weight'][~m['shown']] for m in micro_batches])
    assert torch.allclose(others, torch.tensor(1 / (24 * 20)))  # the dropped completions count


@pytest.mark.parametrize('gamma, rewards, taught', [
    (0.0, [.5] * 4, True),  # a part of a reward is not solved: the paper's verdicts are 0 or 1
    (0.2, [.2] * 4, True), (0.0, [1, 0, 0, 0], False), (0.25, [1, 0, 0, 0], True), (0.25, [1, .9, .9, .9], True),
    (0.25, [1, 1, 0, 0], False), (0.75, [1, 1, 1, 0], True), (1.0, [1] * 4, True), (-1.0, [0] * 4, False)])
def test_the_gate_counts_what_is_solved(load, gamma, rewards, taught):
    ns, _ = load('hpt.py', '--group_size=4', f'--gamma={gamma}')
    ns['verify_all'] = lambda items: [(float(reward), False) for reward in rewards]
    (group,) = ns['rollout']([0], 0)
    assert group['taught'] is taught
    mean = sum(rewards) / 4
    assert group['advantages'].tolist() == pytest.approx([0 if taught else reward - mean for reward in rewards])


def test_entropy_filter_by_hand(load):
    ns, _ = load('prefix_rft.py')
    entropy = torch.tensor([.1, .9, .3, .2, .5, .8,  .7, .6, 9., .0])
    shown = torch.tensor([1, 1, 1, 1, 1, 1,  1, 1, 0, 1]).bool()
    doc = torch.tensor([0] * 6 + [1] * 4)
    for share, kept in ((0.2, [1, 5, 6]), (0.5, [1, 4, 5, 6, 7]), (0.0, []), (1.0, [0, 1, 2, 3, 4, 5, 6, 7, 9])):
        ns['prefix_entropy'] = share
        assert ns['highest_entropy'](entropy, shown, doc).nonzero()[:, 0].tolist() == kept


def test_cosine_prefix_and_baseline_by_hand(load):
    """low = high makes the draw certain: floor(share * length) of the demonstration's own ids, then sampled on."""
    ns, _ = load('prefix_rft.py', '--n_prefix=2', '--group_size=4', '--prefix_steps=10', '--prefix_low=0.9', '--prefix_low_end=0.1')
    for step, low in ((0, 0.9), (5, 0.5), (10, 0.1), (15, 0.1)):
        ns.update(step=step, prefix_high=low)
        for group in ns['rollout']([0, 1, 2], 7):
            whole = group['prompt']['demonstration'][:-1]  # without the end of turn
            lengths = [c.get('shown') for c in group['completions']]
            n = lengths[2]
            assert lengths == [None, None, n, n] and n in {math.floor(low * len(whole) + e) for e in (-1e-9, 1e-9)}
            for c in group['completions'][2:]:
                assert c['ids'][:n] == whole[:n] and len(c['ids']) > n and len(c['logprobs']) == len(c['ids'])
    for baseline, advantages in (('group', [.25, -.75, .25, .25]), ('free', [.5, -.5, .5, .5])):
        scores = iter([1, 0, 1, 1])
        ns.update(verify_all=lambda items, s=scores: [(float(next(s)), False) for _ in items], prefix_baseline=baseline)
        assert ns['rollout']([0], 0)[0]['advantages'].tolist() == advantages


@pytest.mark.parametrize('length, ends, shares', [
    (20, True, {0.95: 19, 1.0: 19, 0.5: 10, 0.0: 0}), (10, True, {0.95: 9, 0.55: 5}), (2, True, {0.95: 1}), (1, True, {1.0: 0}),
    (0, True, {1.0: 0}), (20, False, {0.95: 19, 1.0: 19}), (3, False, {0.7: 2, 1.0: 2})])
def test_a_prefix_leaves_the_last_token_and_the_end_to_the_model(load, length, ends, shares):
    """By hand: floor(share * length), at most length - 1; the length is without the end of turn, where there is one."""
    ns, _ = load('prefix_rft.py', '--group_size=2')
    ids = list(range(10, 10 + length))
    prompt = {**ns['prompts'][0], 'demonstration': ids + ns['stops'][:1] * ends}
    ns.update(prompts=[prompt])
    for share, expected in shares.items():
        ns.update(prefix_low=share, prefix_high=share)
        (group,) = ns['rollout']([0], 0)
        assert group['completions'][1]['shown'] == expected and group['completions'][1]['ids'][:expected] == ids[:expected]


def test_a_prefix_token_weighs_its_advantage_in_every_update(load):
    """By hand: at the second update, where the policy has moved, the gradient of a prefix is still A * grad log pi."""
    ns, block = load('prefix_rft.py', '--prefix_entropy=1.0', '--loss_denominator=tokens')
    whole = ns['prompts'][0]['demonstration']
    groups = [{'prompt': ns['prompts'][0], 'advantages': torch.tensor([-0.5]), 'completions': [
        {'ids': whole, 'logprobs': torch.zeros(len(whole)), 'stopped': True, 'shown': len(whole)}]}]
    original = ns['micro_batches_of']

    def after_an_update(groups):
        made = original(groups)
        for micro in made:
            micro['old_logprobs'] = torch.full((len(micro['index']),), -3.0)  # far from today's: a ratio would be clipped
        return made
    ns['micro_batches_of'] = after_an_update
    ours = gradient(ns, block, groups=groups)
    ns['lm'].zero_grad()
    (micro,) = original(groups)
    logprobs, _ = ns['raw'](micro['ids'], micro['lengths'], micro['index'], 1.0, micro['parents'])
    (0.5 * logprobs.mean()).backward()
    close(ours, torch.cat([p.grad.flatten() for p in ns['lm'].parameters()]))


def test_expected_prefix_share(load):
    """Mean over a run: half of high plus mean low; the cosines of T steps from 0 sum to 1."""
    ns, _ = load('prefix_rft.py', '--prefix_steps=50', '--group_size=2')
    prompt = {**ns['prompts'][0], 'ids': [1], 'demonstration': [5] * 10000}
    ns.update(prompts=[prompt] * 40, generate=lambda lm, prompts, *_, **__: [
        [{'ids': [2], 'logprobs': torch.zeros(1), 'stopped': True}] for _ in prompts])
    shares = []
    for step in range(50):
        ns['step'] = step
        shares += [g['completions'][1]['shown'] / 10000 for g in ns['rollout'](list(range(40)), 40 * step)]
    low = 0.05 + 0.45 * (1 + 1 / 50)
    assert sum(shares) / len(shares) == pytest.approx((low + 0.95) / 2, abs=0.01)  # 2000 draws: sd 0.004
    draw = random_stream(ns['seed'], 'prefix', 0, 0)  # the first draw of the run
    assert shares[0] == math.floor(draw.uniform(0.95, 0.95) * 10000) / 10000


RUN = ['--max_steps=3', '--prompts_per_step=5', '--group_size=4', '--warmup_steps=1']


@pytest.mark.parametrize('script, flags', [
    ('hpt.py', []), ('prefix_rft.py', ['--prefix_steps=3'])])
def test_two_ranks_are_one(run, start_model, rows, tmp_path, script, flags):
    """Invariants 3 and 4; 6 is test_runs.py's."""
    flags = [*RUN, *FLAGS, *flags, f'--data={rows}', f'--model={start_model}', '--sample_every=0']
    one, two = str(tmp_path / 'one'), str(tmp_path / 'two')
    run(script, *flags, f'--out_dir={one}')
    run(script, *flags, f'--out_dir={two}', '--micro_batch_tokens=80', ranks=2)
    for a, b in zip(read_log(one), read_log(two)):
        for key in ('reward/mean', 'completion/len_mean', 'hpt/sft_frac', 'prefix/len_frac', 'tokens/sampled'):
            assert a.get(key, 0) == pytest.approx(b.get(key, 0), rel=1e-9)
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-4, abs=1e-6)
        assert a['grad_norm'] == pytest.approx(b['grad_norm'], rel=1e-3)
        assert a['policy/mismatch'] < 1e-4
    assert same(one, two, 2e-5)


@pytest.mark.parametrize('gamma, share', [(1, 1), (-1, 0)])
def test_steps_of_demonstrations_alone_and_of_none(run, start_model, rows, tmp_path, gamma, share):
    run('hpt.py', *RUN, *FLAGS, f'--data={rows}', f'--model={start_model}', f'--gamma={gamma}', '--prompts_per_step=1', '--max_steps=2',
        f'--out_dir={tmp_path}/x', ranks=2)
    for record in read_log(f'{tmp_path}/x'):
        assert record['hpt/sft_frac'] == share and ('hpt/sft_loss' in record) == bool(share)
        assert math.isfinite(record['loss']) and math.isfinite(record['grad_norm'])


def test_rows_without_demonstration_and_too_long(run, start_model, tmp_path):
    """hpt.py's data block is prefix_rft.py's (test_layout.py)."""
    rows = [{'prompt': '1+2', 'answer': '3', 'dataset': 'sums', 'demonstration': '1 3 #### 3'},
            {'prompt': '1+3', 'answer': '4', 'dataset': 'sums', 'demonstration': '1 4 #### 4' + ' ' * 40},
            {'prompt': '1+4', 'answer': '5', 'dataset': 'sums'}]
    (tmp_path / 'r.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    flags = [*RUN, *FLAGS, f'--data={tmp_path}/r.jsonl', f'--model={start_model}', '--max_length=40', '--max_steps=1']
    done = run('hpt.py', *flags, f'--out_dir={tmp_path}/a', check=False)
    assert done.returncode == 1 and '1 rows have no demonstration: say --without_demonstration' in done.stderr
    for n, (more, words) in enumerate([
            (['--without_demonstration=rl'], '1 prompts have a demonstration, 0 are cut'),
            (['--without_demonstration=drop', '--overlong=cut'], '2 prompts have a demonstration, 1 are cut')]):
        done = run('hpt.py', *flags, *more, f'--out_dir={tmp_path}/{n}')
        assert words in done.stdout and ('rl' not in more[0] or 'longer than max_length=40' in done.stdout)
        assert ('3 prompts an epoch' if 'rl' in more[0] else '2 prompts an epoch') in done.stdout


@pytest.mark.parametrize('row, shown', [
    ({'data_source': '', 'prompt': [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'Q'}],
      'target': [{'role': 'assistant', 'content': '<think>\nA'}], 'ability': 'math', 'extra_info': {'index': 1},
      'reward_model': {'style': 'rule', 'ground_truth': '7'}}, '<think>\nA'),
    ({'prompt': 'Q', 'demos': ['wrong', 'right'], 'demos_corr': [False, True], 'reward_model': {'ground_truth': '7'}}, 'right'),
    ({'prompt': 'Q', 'demos': ['first', 'second'], 'answer': '7'}, 'first'),
    ({'prompt': 'Q', 'demos': ['wrong'], 'demos_corr': [0], 'answer': '7'}, None),
    ({'prompt': 'Q', 'target': None, 'answer': '7'}, None)])
def test_rows_in_the_wild(row, shown):
    """LUFFY's and HPT's rows, Prefix-RFT's rows, with and without a demonstration that is right."""
    tokenizer = byte_tokenizer()
    (prompt,), _ = rl_prompts([{**row, '_where': 'x:1'}], tokenizer, 100, 'math')
    assert prompt['demonstration'] == shown and prompt['truth'] == '7'
    if 'target' in row and shown:
        assert tokenizer.decode(prompt['ids']) == '<|system|>S<|end|><|user|>Q<|end|><|assistant|>'
        (example,), _ = sft_examples([{**row, '_where': 'x:1'}], tokenizer, 1000)
        (ours,), _ = sft_examples([{'prompt': prompt['messages'], 'completion': shown, '_where': 'x:1'}], tokenizer, 1000)
        assert (example['ids'] == ours['ids']).all() and (example['mask'] == ours['mask']).all()
        assert tokenizer.decode(ours['ids'][ours['mask']]) == '<think>\nA<|end|>'
