"""Whether the exercises of EXERCISES.md are solved in this tree: pytest -q tests/release/exercises/check.py -k NAME.

Not part of the suite; tests/release/test_exercises.py sees each fail before and pass after its solution beside this file.
"""
import json
import math
import os

import data
import pytest
import test_data
import torch
from conftest import ROOT, before_loop
from verify import verify


@pytest.fixture()
def load(monkeypatch, tmp_path):
    """load(script, *flags): its names before the loop, on four sums."""
    rows = [{'prompt': f'{i}+4', 'answer': str(i + 4), 'demonstration': f'{i} {i + 4} #### {i + 4}', 'dataset': 'sums',
             'chosen': f'{i} {i + 4} #### {i + 4}', 'rejected': '#### 99'} for i in range(4)]
    (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return lambda script, *flags: before_loop(
        monkeypatch, script, '--model=tiny', f'--data={tmp_path}/rows.jsonl', '--eval_prompts=', f'--out_dir={tmp_path}/run', *flags)


def judged(ns, *rewards):
    """The Group that rollout() makes of four completions with these rewards."""
    left = iter(rewards)
    ns.update(generate=lambda model, prompts, n, *_, **__: [
        [{'ids': [5], 'logprobs': torch.zeros(1), 'stopped': True} for _ in range(n)] for _ in prompts],
        verify_all=lambda tasks: [(float(next(left)), False) for _ in tasks])
    (group,) = ns['rollout']([0], 0)
    return group


def advantages(group):
    return [float(completion.advantage) for completion in group.completions]


def test_mask(monkeypatch):
    """answer.txt names a test of tests/test_data.py that passes, and fails when the end of turn is not trained."""
    with open(os.path.join(ROOT, 'answer.txt')) as f:
        named_test = getattr(test_data, f.read().strip())
    named_test()  # data.py itself is whole again
    monkeypatch.setattr(data, 'end_of', lambda chat, found, text: found.start())
    with pytest.raises(AssertionError):
        named_test()


def test_rloo(load):
    """A completion's baseline is the mean of the other three."""
    ns = load('grpo.py', '--group_size=4', '--advantage_std=False')
    assert advantages(judged(ns, 1, 0, 0, 1)) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    assert advantages(judged(ns, 1, 0, 0, 0)) == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    assert advantages(judged(ns, 1, 1, 1, 1)) == [0, 0, 0, 0]


@pytest.mark.parametrize('ratio, advantage, objective, gradient', [
    (10.0, -1.0, -3.0, False),  # only this is new: min(-10, -1.28) = -10, and not below 3 x the advantage
    (2.0, -1.0, -2.0, True), (10.0, 1.0, 1.28, False), (1.1, 1.0, 1.1, True), (0.5, -1.0, -0.8, False)])
def test_dualclip(load, ratio, advantage, objective, gradient):
    ns = load('grpo.py')
    prompt = ns['prompts'][0]
    completion = ns['Completion'](prompt['ids'], [5, 6, 7], torch.zeros(3), stopped=True, text='', advantage=advantage)
    (micro,) = ns['micro_batches_of']([ns['Group'](prompt, [completion])])
    with torch.no_grad():
        logprobs, _ = ns['forward'](ns['policy'], micro)
    micro['old_logprobs'] = logprobs - math.log(ratio)
    statistics = ns['accumulate_gradients']([micro])
    assert statistics['loss'] == pytest.approx(-objective, rel=1e-5)  # the mean over three tokens
    assert (max(p.grad.abs().max().item() for p in ns['policy'].parameters()) > 1e-6) == gradient


def test_penalty():
    """my_reward.py's reward: 1 for a right last attempt, 0.1 less for each attempt before it."""
    kind = os.path.join(ROOT, 'my_reward.py') + ':reward'
    right, wrong = '9+8=17+5=22?22y', '5*8=40+9=49?22n'
    truth = json.dumps({'numbers': [5, 8, 9], 'target': 22})
    for lines, reward in [([right], 1), ([wrong], 0), ([wrong, right], 0.9), ([right, wrong], 0), ([wrong] * 4 + [right], 0.6),
                          ([wrong] * 12 + [right], 0), ([], 0)]:
        assert verify(kind, '\n'.join(lines), truth) == pytest.approx(reward), lines


def test_hinge(load):
    """--loss_type=hinge: max(0, 1 - beta x the difference of the summed log-ratios)."""
    ns = load('dpo.py', '--loss_type=hinge', '--beta=0.1', '--eval_data=')
    pairs = ns['pairs'][:3]
    for pair, reference in zip(pairs, ([-2.0, -2.5], [-9.0, -4.0], [-1.0, -21.0])):
        pair['ref_logprobs'] = reference
    logprobs = torch.tensor([[-3.0, -4.5], [-20.0, -2.0], [-1.0, -41.0]], requires_grad=True)
    losses, _ = ns['preference_loss'](logprobs, pairs)
    # differences of log-ratios: -1 - -2 = 1, -11 - 2 = -13, 0 - -20 = 20
    assert losses.tolist() == pytest.approx([0.9, 2.3, 0.0])
    losses.sum().backward()
    assert logprobs.grad.tolist()[1:] == [pytest.approx([-0.1, 0.1]), [0.0, 0.0]]


def test_gate(load):
    """hpt.py's threshold falls in a straight line from gamma at the first step to 0 at the last."""
    ns = load('hpt.py', '--group_size=4', '--gamma=0.5', '--max_steps=100')
    for step, right, learned in ((0, 2, True), (0, 3, False), (40, 1, True), (60, 1, False), (49, 1, True), (99, 0, True)):
        ns['step'] = step
        group = judged(ns, *[1] * right, *[0] * (4 - right))
        assert group.learns_demonstration == learned, (step, right)
