"""hpt.py and prefix_rft.py: invariant 10 by the gradients of the scripts' own functions, hand-worked cases, runs on ranks."""
import itertools
import json
import math
from contextlib import nullcontext
from types import SimpleNamespace

import model as weights_module
import pytest
import torch
from configurator import UserError
from conftest import before_loop, inside, read_log
from data import TEMPLATE, byte_tokenizer, random_stream, rl_prompts, sft_examples
from test_scripts import same

FLAGS = ['--eval_prompts=', '--max_new_tokens=24', '--micro_batch_tokens=300']
RL = ['--advantage_std=False', '--loss_denominator=constant']


@pytest.fixture
def load(monkeypatch, start_model, rows, tmp_path):
    """load(script, *flags) -> its names before the loop; weights, log-probs and gradients are float64."""
    def logprobs(hidden, weight, targets, temperature, dtype):
        full = torch.log_softmax(hidden @ weight.T / temperature, -1)
        return full.gather(1, targets[:, None])[:, 0], -(full.exp() * full).sum(-1).detach()

    def loaded(script, *flags):
        return before_loop(monkeypatch, script, f'--model={start_model}', f'--out_dir={tmp_path}/{next(places)}', *FLAGS,
                           f'--data={rows}', *flags)
    places = itertools.count()
    monkeypatch.setattr(weights_module, 'TokenLogprobs', SimpleNamespace(apply=logprobs))
    return loaded


def gradient(ns, groups, ranks=1, change=None):
    """The float64 gradient of an update on `groups` as `ranks` ranks would make it: each its micro-batches, then DDP's mean.

    `groups` are a batch of examples for sft.py. change(micro), if any, changes each micro-batch before it.
    """
    policy = ns['policy'].double()
    if ns.get('reference'):
        ns['kl_reference'].double()
    policy.no_sync = nullcontext
    policy.zero_grad()
    for rank in range(ranks):
        ns.update(world_size=ranks, rank=rank)
        micro_batches = ns['micro_batches_of'](groups)
        for micro in micro_batches:
            for key in {'weight', 'advantage'} & {*micro}:
                micro[key] = micro[key].double()
            if change:
                change(micro)
        more = [ns['supervised_tokens_of'](groups)] if 'supervised_tokens_of' in ns else []
        ns['accumulate_gradients'](micro_batches, *more)
    ns.update(world_size=1, rank=0)
    flat = flat_gradient(ns) / ranks
    assert flat.dtype == torch.float64 and flat.isfinite().all()
    return flat


def flat_gradient(ns):
    return torch.cat([p.grad.flatten() for p in ns['policy'].parameters()])


def close(a, b):
    assert b.norm() > 1e-4 and (a - b).norm() < 1e-6 * b.norm(), ((a - b).norm() / b.norm()).item()


def sft_gradient(load, indices, ranks):
    ns = load('sft.py', '--eval_data=')
    return gradient(ns, [ns['examples'][i] for i in indices], ranks), ns['examples']


def whole_demonstration(ns, prompt, advantage=1.0):
    """prefix_rft.py's Group of a prompt whose one completion is the whole demonstration, all of it a prefix."""
    hybrid = ns['Completion'](prompt['ids'], is_hybrid=True, prefix_ids=prompt['demonstration'], sampled_ids=[],
                              sampler_logprobs=torch.empty(0), stopped=True, text='', advantage=advantage)
    return ns['Group'](prompt, [hybrid])


def ids_of(groups):
    return [[completion.ids for completion in group.completions] for group in groups]


def advantages(group):
    return [float(completion.advantage) for completion in group.completions]


def judge_by(ns, rewards):
    """The verifier gives these rewards, one after the other."""
    left = iter(rewards)
    ns['verify_all'] = lambda tasks: [(float(next(left)), False) for _ in tasks]


@pytest.mark.parametrize('ranks', [1, 2])
def test_hpt_is_sft_grpo_or_their_sum(load, ranks):
    """Invariant 10: the gate held on SFT, held on RL, and in between; a coefficient is a factor."""
    indices = list(range(12))
    grpo = load('grpo.py', *RL)
    groups = grpo['rollout'](indices, 0)
    rl = gradient(grpo, groups, ranks)
    sft, examples = sft_gradient(load, indices, ranks)
    ns = load('hpt.py', '--gamma=1.0', '--sft_coef=0.5')
    for prompt, example in zip(ns['prompts'], examples):  # invariant 1: the ids that sft.py trains on, end included
        assert prompt['demonstration'] == example['ids'][example['mask']].tolist()
        assert prompt['demonstration'][-1] in ns['stops']
    demonstrated = ns['rollout'](indices, 0)
    assert ids_of(demonstrated) == ids_of(groups)
    close(gradient(ns, demonstrated, ranks), 0.5 * sft)
    for gamma in (-1.0, 0.0):
        ns = load('hpt.py', f'--gamma={gamma}', '--rl_coef=2.0')
        mixed = ns['rollout'](indices, 0)
        failed = []
        if gamma >= 0:
            failed = [i for i, group in zip(indices, groups) if not any(c.reward for c in group.completions)]
            assert 0 < len(failed) < len(indices)
        assert [group.learns_demonstration for group in mixed] == [i in failed for i in indices]
        expected = 2 * rl
        if failed:
            of_failed, _ = sft_gradient(load, failed, ranks)
            expected = expected + of_failed
        close(gradient(ns, mixed, ranks), expected)


@pytest.mark.parametrize('ranks', [1, 2])
def test_prefix_rft_is_grpo_without_hybrids_and_sft_with_whole_demonstrations(load, ranks):
    """Invariant 10."""
    indices = list(range(12))
    grpo = load('grpo.py', *RL)
    rl = gradient(grpo, grpo['rollout'](indices, 0), ranks)
    ns = load('prefix_rft.py', '--n_prefix=0')
    close(gradient(ns, ns['rollout'](indices, 0), ranks), rl)
    sft, _ = sft_gradient(load, indices, ranks)
    prompts = ns['prompts'][:12]
    groups = [whole_demonstration(ns, prompt) for prompt in prompts]
    tokens = sum(len(prompt['demonstration']) for prompt in prompts)
    for denominator, factor in (('tokens', 1.0), ('constant', tokens / (24 * 12))):
        ns.update(prefix_entropy=1.0, loss_denominator=denominator)
        close(gradient(ns, groups, ranks), factor * sft)


@pytest.mark.parametrize('script', ['hpt.py', 'prefix_rft.py'])
def test_shown_tokens_have_no_kl_and_no_importance_weight(load, script):
    """A step of demonstrations alone: beta, importance_cap and an old policy change nothing, and no rank is empty-handed."""
    def outcome(*flags, change=None):
        ns = load(script, *flags)
        prompt = ns['prompts'][0]
        if script == 'hpt.py':
            groups = [ns['Group'](prompt, [], learns_demonstration=True)]
        else:
            groups = [whole_demonstration(ns, prompt)]
        return gradient(ns, groups, 2, change)  # one of the two ranks has nothing

    def far_policies(micro):
        n = len(micro['index'])
        micro.update(old_logprobs=torch.full((n,), -3.0), ref_logprobs=torch.full((n,), -2.0))
    close(outcome('--beta=0.5', '--importance_cap=2.0', change=far_policies), outcome())


def test_only_the_filtered_prefix_has_a_gradient(load):
    """No entropy share, whole demonstrations as prefixes: nothing is learned."""
    ns = load('prefix_rft.py', '--prefix_entropy=0.0')
    groups = [whole_demonstration(ns, ns['prompts'][0])]
    assert gradient(ns, groups).norm() == 0
    ns['prefix_entropy'] = 0.2
    assert gradient(ns, groups).norm() > 1e-4


def test_resampling_keeps_taught_prompts(load):
    """A prompt that learns its demonstration is not replaced for want of spread; one without a demonstration is."""
    ns = load('hpt.py', '--resample_rounds=3', '--prompts_per_step=6')
    ns['verify_all'] = lambda tasks: [(0.0, False) for _ in tasks]
    groups, sampled = ns['sample_groups']()
    assert len(groups) == len(sampled) == 6 and all(group.learns_demonstration for group in groups)
    for prompt in ns['prompts']:
        prompt['demonstration'] = None
    groups, sampled = ns['sample_groups']()
    assert len(groups) == 6 and len(sampled) == 4 * 6


def test_gate_by_hand(load):
    ns = load('hpt.py', '--group_size=4', '--gamma=0.25')
    judge_by(ns, [0, 0, 0, 0,  1, 0, 0, 0,  1, 1, 0, 0,  1, 1, 1, 1,  0, 0, 0, 0])
    ns['prompts'][4]['demonstration'] = None  # as --without_demonstration=rl leaves it
    groups = ns['rollout'](list(range(5)), 0)
    assert [group.learns_demonstration for group in groups] == [True, True, False, False, False]
    assert [advantages(group) for group in groups] == [[0] * 4, [0] * 4, [.5, .5, -.5, -.5], [0] * 4, [0] * 4]
    micro_batches = ns['micro_batches_of'](groups)
    demonstrated = sum(len(prompt['demonstration']) for prompt in ns['prompts'][:2])
    assert sum(int(micro['is_demonstration'].sum()) for micro in micro_batches) == demonstrated
    weights = torch.cat([micro['weight'][micro['is_demonstration']] for micro in micro_batches])
    assert torch.allclose(weights, torch.tensor(1 / demonstrated))
    others = torch.cat([micro['weight'][~micro['is_demonstration']] for micro in micro_batches])
    assert len(others) == sum(len(completion.ids) for completion in groups[2].completions)
    assert torch.allclose(others, torch.tensor(1 / (24 * 20)))  # the dropped completions count


@pytest.mark.parametrize('gamma, rewards, learned', [
    (0.0, [.5] * 4, True),  # a part of a reward is not right: the paper's verdicts are 0 or 1
    (0.2, [.2] * 4, True), (0.0, [1, 0, 0, 0], False), (0.25, [1, 0, 0, 0], True), (0.25, [1, .9, .9, .9], True),
    (0.25, [1, 1, 0, 0], False), (0.75, [1, 1, 1, 0], True), (1.0, [1] * 4, True), (-1.0, [0] * 4, False)])
def test_the_gate_counts_what_is_solved(load, gamma, rewards, learned):
    ns = load('hpt.py', '--group_size=4', f'--gamma={gamma}')
    judge_by(ns, rewards)
    (group,) = ns['rollout']([0], 0)
    assert group.learns_demonstration is learned
    mean = sum(rewards) / 4
    assert advantages(group) == pytest.approx([0 if learned else reward - mean for reward in rewards])


def test_entropy_filter_by_hand(load):
    ns = load('prefix_rft.py')
    entropy = torch.tensor([.1, .9, .3, .2, .5, .8,  .7, .6, 9., .0])
    is_prefix = torch.tensor([1, 1, 1, 1, 1, 1,  1, 1, 0, 1]).bool()
    doc = torch.tensor([0] * 6 + [1] * 4)
    for share, kept in ((0.2, [1, 5, 6]), (0.5, [1, 4, 5, 6, 7]), (0.0, []), (1.0, [0, 1, 2, 3, 4, 5, 6, 7, 9])):
        ns['prefix_entropy'] = share
        assert ns['highest_entropy'](entropy, is_prefix, doc).nonzero()[:, 0].tolist() == kept


def test_cosine_prefix_and_baseline_by_hand(load):
    """low = high makes the draw certain: floor(share * length) of the demonstration's own ids, then sampled on."""
    ns = load('prefix_rft.py', '--n_prefix=2', '--group_size=4', '--prefix_steps=10', '--prefix_low=0.9', '--prefix_low_end=0.1')
    for step, low in ((0, 0.9), (5, 0.5), (10, 0.1), (15, 0.1)):
        ns.update(step=step, prefix_high=low)
        for group in ns['rollout']([0, 1, 2], 7):
            whole = group.prompt['demonstration'][:-1]  # without the end of turn
            assert [completion.is_hybrid for completion in group.completions] == [False, False, True, True]
            lengths = [len(completion.prefix_ids) for completion in group.completions]
            n = lengths[2]
            assert lengths == [0, 0, n, n] and n in {math.floor(low * len(whole) + e) for e in (-1e-9, 1e-9)}
            for c in group.completions[2:]:
                assert c.ids[:n] == whole[:n] and len(c.sampled_ids) > 0 and len(c.sampler_logprobs) == len(c.ids) - n
    for baseline, expected in (('group', [.25, -.75, .25, .25]), ('free', [.5, -.5, .5, .5])):
        judge_by(ns, [1, 0, 1, 1])
        ns['prefix_baseline'] = baseline
        (group,) = ns['rollout']([0], 0)
        assert advantages(group) == expected


@pytest.mark.parametrize('length, ends, shares', [
    (20, True, {0.95: 19, 1.0: 19, 0.5: 10, 0.0: 0}), (10, True, {0.95: 9, 0.55: 5}), (2, True, {0.95: 1}), (1, True, {1.0: 0}),
    (0, True, {1.0: 0}), (20, False, {0.95: 19, 1.0: 19}), (3, False, {0.7: 2, 1.0: 2})])
def test_a_prefix_leaves_the_last_token_and_the_end_to_the_model(load, length, ends, shares):
    """By hand: floor(share * length), at most length - 1; the length is without the end of turn, where there is one."""
    ns = load('prefix_rft.py', '--group_size=2')
    ids = list(range(10, 10 + length))
    end = ns['stops'][:1] if ends else []
    ns['prompts'] = [{**ns['prompts'][0], 'demonstration': ids + end}]
    for share, expected in shares.items():
        ns.update(prefix_low=share, prefix_high=share)
        (group,) = ns['rollout']([0], 0)
        free, hybrid = group.completions
        assert free.prefix_ids == [] and hybrid.prefix_ids == ids[:expected]
        assert hybrid.ids == ids[:expected] + hybrid.sampled_ids


def test_a_prefix_token_weighs_its_advantage_in_every_update(load):
    """By hand: at the second update, where the policy has moved, the gradient of a prefix is still A * grad log pi."""
    ns = load('prefix_rft.py', '--prefix_entropy=1.0', '--loss_denominator=tokens')
    groups = [whole_demonstration(ns, ns['prompts'][0], advantage=-0.5)]

    def after_an_update(micro):
        micro['old_logprobs'] = torch.full((len(micro['index']),), -3.0)  # far from today's: a ratio would be clipped
    ours = gradient(ns, groups, change=after_an_update)
    ns['policy'].zero_grad()
    (micro,) = ns['micro_batches_of'](groups)
    logprobs, _ = ns['policy'](micro['ids'], micro['lengths'], micro['index'], 1.0, micro['parents'])
    (0.5 * logprobs.mean()).backward()
    close(ours, flat_gradient(ns))


def test_expected_prefix_share(load):
    """Mean over a run: half of high plus mean low; the cosines of T steps from 0 sum to 1."""
    ns = load('prefix_rft.py', '--prefix_steps=50', '--group_size=2')
    prompt = {**ns['prompts'][0], 'demonstration': [5] * 10000}
    shares = []
    for step in range(50):
        ns['step'] = step
        for place in range(40 * step, 40 * step + 40):
            shares.append(len(ns['draw_prefix'](prompt, place, 0)) / 10000)
    low = 0.05 + 0.45 * (1 + 1 / 50)
    assert sum(shares) / len(shares) == pytest.approx((low + 0.95) / 2, abs=0.01)  # 2000 draws: sd 0.004
    draw = random_stream(ns['seed'], 'prefix', 0, 0)  # the first draw of the run
    assert shares[0] == math.floor(draw.uniform(0.95, 0.95) * 10000) / 10000


# --- losses by hand, in float64, without packing --------------------------------
def unpacked_logits(plain, completion):
    """Logits (T, V) of a completion's tokens, by transformers' own forward of this completion alone."""
    ids = torch.tensor([[*completion.prompt_ids, *completion.ids]])
    return plain(input_ids=ids).logits[0, len(completion.prompt_ids) - 1:-1]


def picked(full, completion):
    """Log-probs (T,) of a completion's tokens, from those of the vocabulary (T, V)."""
    return full.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]


@pytest.mark.parametrize('script', ['grpo.py', 'hpt.py', 'prefix_rft.py'])
def test_an_advantage_for_each_token(load, start_model, script):
    """By hand: -sum(A_t log pi_t) / tokens of the step. A completion whose advantages are all 0 is not computed but counted."""
    ns = load(script, '--loss_denominator=tokens', '--temperature=0.7', *{
        'grpo.py': [], 'hpt.py': ['--gamma=-1'], 'prefix_rft.py': ['--n_prefix=0']}[script])
    groups = ns['rollout']([0, 1, 2], 0)
    completions = [completion for group in groups for completion in group.completions]
    dropped, positive, *others = completions
    for completion in completions:
        n = len(completion.ids)
        completion.advantage = torch.sin(completion.prompt_ids[2] + 1.3 * torch.arange(n))
    dropped.advantage = torch.zeros(len(dropped.ids))
    positive.advantage = 0.5  # one number beside tensors
    for completion in others:
        completion.advantage[0] = 0.0  # some tokens alone have none: the completion stays
    ours = gradient(ns, groups)
    in_update = sum(len(micro['index']) for micro in ns['micro_batches_of'](groups))
    assert in_update == sum(len(completion.ids) for completion in [positive, *others])

    plain = weights_module.load_model(start_model, attention='sdpa').double()
    loss = 0
    for completion in completions:
        logprobs = picked((unpacked_logits(plain, completion) / 0.7).log_softmax(-1), completion)
        loss = loss - (completion.advantage * logprobs).sum()
    (loss / sum(len(completion.ids) for completion in completions)).backward()
    close(ours, torch.cat([p.grad.flatten() for p in plain.parameters()]))


def test_hybrids_by_hand(load, start_model):
    """A second update on free and hybrid completions: of prefixes A * grad log pi of the half of highest entropy, of sampled
    tokens the clipped ratio, with the weight that the sampler's log-probs give."""
    ns = load('prefix_rft.py', '--group_size=4', '--n_prefix=2', '--prefix_low=0.3', '--prefix_high=0.7', '--prefix_entropy=0.5',
              '--importance_cap=2.0')
    groups = ns['rollout'](list(range(6)), 0)

    def after_an_update(micro):
        logprobs, _ = ns['forward'](ns['policy'], micro)
        micro['old_logprobs'] = 1.3 * logprobs.detach()  # so that ratios are over 1, some over 1.28
    ours = gradient(ns, groups, change=after_an_update)

    plain = weights_module.load_model(start_model, attention='sdpa').double()
    objective, n_clipped, n_hybrids = 0, 0, 0
    for completion in (completion for group in groups for completion in group.completions):
        advantage, n_prefix = float(completion.advantage), len(completion.prefix_ids)
        full = unpacked_logits(plain, completion).log_softmax(-1)
        logprobs = picked(full, completion)
        entropy = -(full.exp() * full).sum(-1)
        kept = entropy[:n_prefix].topk(math.ceil(n_prefix / 2)).indices
        objective = objective + advantage * logprobs[kept].sum()

        sampled = logprobs[n_prefix:]
        old = 1.3 * sampled.detach()
        ratio = torch.exp(sampled - old)
        unclipped, clipped = ratio * advantage, ratio.clamp(0.8, 1.28) * advantage
        correction = torch.exp(old - completion.sampler_logprobs).clamp(max=2.0)
        objective = objective + (correction * torch.min(unclipped, clipped)).sum()
        n_clipped += int((clipped < unclipped).sum())
        n_hybrids += advantage != 0 and n_prefix > 0
    assert n_clipped > 0 and n_hybrids > 0
    (-objective / (24 * 24)).backward()  # max_new_tokens x completions
    close(ours, torch.cat([p.grad.flatten() for p in plain.parameters()]))


@pytest.mark.parametrize('script, flags', [('hpt.py', []), ('prefix_rft.py', ['--prefix_low=0.3', '--prefix_entropy=0.5'])])
def test_logged_statistics_by_hand(monkeypatch, start_model, rows, tmp_path, script, flags):
    """The first step's line: demonstrations and prefixes are not in the policy's entropy, and have statistics of their own."""
    flags = [f'--model={start_model}', f'--data={rows}', '--eval_prompts=', '--max_new_tokens=24', '--prompts_per_step=8', '--group_size=4',
             '--max_steps=1', '--sample_every=0', *flags]
    ns = before_loop(monkeypatch, script, *flags, f'--out_dir={tmp_path}/names')
    groups = ns['rollout'](ns['order'].take(8), 0)
    inside(monkeypatch, script, *flags, f'--out_dir={tmp_path}/run')
    (record,) = read_log(f'{tmp_path}/run')

    plain = weights_module.load_model(start_model, attention='sdpa')
    entropies, losses = [], []  # of tokens
    pull, prefix_pull = 0, 0
    completions = [completion for group in groups for completion in group.completions]
    with torch.no_grad():
        for completion in completions:
            if completion.advantage == 0:
                continue
            n_prefix = len(completion.prefix_ids) if script == 'prefix_rft.py' else 0
            full = unpacked_logits(plain, completion).log_softmax(-1)
            entropy = -(full.exp() * full).sum(-1)
            entropies += entropy[n_prefix:].tolist()
            pulls = abs(float(completion.advantage)) * (1 - picked(full, completion).exp())
            kept = entropy[:n_prefix].topk(math.ceil(n_prefix / 2)).indices
            prefix_pull += pulls[kept].sum().item()
            pull += pulls[kept].sum().item() + pulls[n_prefix:].sum().item()
        if script == 'hpt.py':
            for group in groups:
                if group.learns_demonstration:
                    demonstration = ns['Demonstration'](group.prompt['ids'], group.prompt['demonstration'])
                    full = unpacked_logits(plain, demonstration).log_softmax(-1)
                    losses += (-picked(full, demonstration)).tolist()
    assert record['policy/entropy'] == pytest.approx(sum(entropies) / len(entropies), rel=1e-3)
    if script == 'hpt.py':
        assert record['hpt/sft_loss'] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        assert record['hpt/sft_frac'] == sum(group.learns_demonstration for group in groups) / 8
        return
    assert 0 < prefix_pull < pull and record['prefix/grad_frac'] == pytest.approx(prefix_pull / pull, rel=1e-3)
    hybrids = [completion for completion in completions if completion.is_hybrid]
    assert len(hybrids) == 8
    assert record['prefix/reward_hybrid'] == pytest.approx(sum(c.reward for c in hybrids) / 8)
    assert record['prefix/reward_free'] == pytest.approx(sum(c.reward for c in completions if not c.is_hybrid) / 24)
    shares = [len(c.prefix_ids) / (len(group.prompt['demonstration']) - 1) for group, c in zip(groups, hybrids)]  # without the end
    assert record['prefix/len_frac'] == pytest.approx(sum(shares) / 8)


# --- runs ----------------------------------------------------------------------
RUN = ['--max_steps=3', '--prompts_per_step=5', '--group_size=4', '--warmup_steps=1']


@pytest.mark.parametrize('script, flags', [
    ('hpt.py', []), ('prefix_rft.py', ['--prefix_steps=3'])])
def test_two_ranks_are_one(monkeypatch, run, start_model, rows, tmp_path, script, flags):
    """Invariants 3 and 4; 6 is test_runs.py's."""
    flags = [*RUN, *FLAGS, *flags, f'--data={rows}', f'--model={start_model}', '--sample_every=0']
    one, two = str(tmp_path / 'one'), str(tmp_path / 'two')
    inside(monkeypatch, script, *flags, f'--out_dir={one}')
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


@pytest.mark.parametrize('script', ['hpt.py', 'prefix_rft.py'])
def test_rows_without_demonstration_and_too_long(monkeypatch, start_model, tmp_path, capfd, script):
    rows = [{'prompt': '1+2', 'answer': '3', 'dataset': 'sums', 'demonstration': '1 3 #### 3'},
            {'prompt': '1+3', 'answer': '4', 'dataset': 'sums', 'demonstration': '1 4 #### 4' + ' ' * 40},
            {'prompt': '1+4', 'answer': '5', 'dataset': 'sums'}]
    (tmp_path / 'r.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    flags = [*RUN, *FLAGS, f'--data={tmp_path}/r.jsonl', f'--model={start_model}', '--max_length=40', '--max_steps=1']
    with pytest.raises(UserError, match='2 rows have no demonstration that can be used.*max_length=40 tokens: say --without_demonstration'):
        before_loop(monkeypatch, script, *flags, f'--out_dir={tmp_path}/a')
    for more, demonstrations, prompts in [
            (['--without_demonstration=rl'], '1 prompts have a demonstration, 0 are cut', '3 prompts an epoch'),
            (['--without_demonstration=drop', '--overlong=cut'], '2 prompts have a demonstration, 1 are cut', '2 prompts an epoch')]:
        capfd.readouterr()
        inside(monkeypatch, script, *flags, *more, f'--out_dir={tmp_path}/{len(more)}')
        output = capfd.readouterr().out
        assert demonstrations in output and prompts in output
        assert ('longer than max_length=40' in output) == ('--overlong=cut' not in more)


@pytest.mark.parametrize('script', ['hpt.py', 'prefix_rft.py'])
def test_demonstrations_that_the_template_does_not_take(monkeypatch, start_model, tmp_path, capfd, script):
    """They are counted and obey without_demonstration, like rows that have none; none left is one line."""
    rows = [{'prompt': f'1+{i}', 'answer': str(1 + i), 'dataset': 'sums', 'demonstration': f'{i} #### {1 + i}'} for i in range(4)]
    (tmp_path / 'r.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    # a template that opens thoughts, which no demonstration has
    template = TEMPLATE.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|><think>' }}")
    (tmp_path / 'thinks.jinja').write_text(template)
    flags = [*RUN, *FLAGS, f'--data={tmp_path}/r.jsonl', f'--model={start_model}', f'--chat_template={tmp_path}/thinks.jinja', '--max_steps=1']
    with pytest.raises(UserError, match=r'4 rows have no demonstration that can be used, 4 of them \(first .*r.jsonl:1\) for: .*opens thoughts'):
        before_loop(monkeypatch, script, *flags, f'--out_dir={tmp_path}/a')
    with pytest.raises(UserError, match='no row is left, because none has a demonstration that can be used, 4 of them .*=rl'):
        before_loop(monkeypatch, script, *flags, '--without_demonstration=drop', f'--out_dir={tmp_path}/b')
    capfd.readouterr()
    before_loop(monkeypatch, script, *flags, '--without_demonstration=rl', f'--out_dir={tmp_path}/c')
    output = capfd.readouterr().out
    assert '0 prompts have a demonstration' in output and '0/4 rows' in output and 'opens thoughts' in output


@pytest.mark.parametrize('row, demonstration', [
    ({'data_source': '', 'prompt': [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'Q'}],
      'target': [{'role': 'assistant', 'content': '<think>\nA'}], 'ability': 'math', 'extra_info': {'index': 1},
      'reward_model': {'style': 'rule', 'ground_truth': '7'}}, '<think>\nA'),
    ({'prompt': 'Q', 'demos': ['wrong', 'right'], 'demos_corr': [False, True], 'reward_model': {'ground_truth': '7'}}, 'right'),
    ({'prompt': 'Q', 'demos': ['first', 'second'], 'answer': '7'}, 'first'),
    ({'prompt': 'Q', 'demos': ['wrong'], 'demos_corr': [0], 'answer': '7'}, None),
    ({'prompt': 'Q', 'target': None, 'answer': '7'}, None)])
def test_rows_in_the_wild(row, demonstration):
    """LUFFY's and HPT's rows, Prefix-RFT's rows, with and without a demonstration that is right."""
    tokenizer = byte_tokenizer()
    (prompt,), _ = rl_prompts([{**row, '_where': 'x:1'}], tokenizer, 100, 'math')
    assert prompt['demonstration'] == demonstration and prompt['truth'] == '7'
    if 'target' in row and demonstration:
        assert tokenizer.decode(prompt['ids']) == '<|system|>S<|end|><|user|>Q<|end|><|assistant|>'
        (example,), _ = sft_examples([{**row, '_where': 'x:1'}], tokenizer, 1000)
        (ours,), _ = sft_examples([{'prompt': prompt['messages'], 'completion': demonstration, '_where': 'x:1'}], tokenizer, 1000)
        assert (example['ids'] == ours['ids']).all() and (example['mask'] == ours['mask']).all()
        assert tokenizer.decode(ours['ids'][ours['mask']]) == '<think>\nA<|end|>'
