"""sft.py and grpo.py as their users run them: invariants 1, 3, 4, 6, 7 and 9, faults of the person at the keyboard."""
import json
import math
import os
import re
import shutil
import signal
import sys

import pytest
import torch
from configurator import UserError
from conftest import ROOT, before_loop, inside, launch_in_background, read_log, torchrun
from safetensors.torch import load_file

SFT = ['--max_steps=3', '--batch_size=8', '--eval_data=', '--eval_prompts=', '--warmup_steps=1']
GRPO = ['--max_steps=2', '--prompts_per_step=5', '--group_size=4', '--max_new_tokens=24', '--eval_prompts=',
        '--sample_every=0', '--warmup_steps=1', '--learning_rate=1e-4']


def weights(out_dir):
    return load_file(os.path.join(out_dir, 'model.safetensors'))


def same(a, b, tolerance=0.0):
    a, b = weights(a), weights(b)
    return all(torch.equal(a[k], b[k]) if not tolerance else torch.allclose(a[k], b[k], atol=tolerance, rtol=0)
               for k in a)


def gradient_of(policy):
    """All gradients as one vector; they are 0 afterwards."""
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
    policy.zero_grad()
    return gradient


# Adam divides by the gradient's size, so 1e-7 of rounding in a gradient near 0 can become a step; the tolerance is
# far below one step of the learning rate (1e-3 for SFT, 1e-4 for GRPO), which a wrong denominator would change.
def test_sft_does_not_depend_on_micro_batches(monkeypatch, rows, tmp_path):
    """Invariant 3: loss and gradient are those of one big micro-batch, also with a row in each."""
    ns = before_loop(monkeypatch, 'sft.py', *SFT, f'--data={rows}', f'--out_dir={tmp_path}/x')
    batch = ns['examples'][:16]
    supervised = sum(int(example['mask'].sum()) for example in batch)
    outcomes, counts = [], []
    for tokens in (8192, 128, 1):
        ns['micro_batch_tokens'] = tokens
        micro_batches = ns['micro_batches_of'](batch)
        outcomes.append((ns['accumulate_gradients'](micro_batches, supervised), gradient_of(ns['policy'])))
        counts.append(len(micro_batches))
    assert counts[0] == 1 < counts[1] < counts[2] == 16
    (loss, gradient), *others = outcomes
    for other_loss, other_gradient in others:
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert (other_gradient - gradient).norm() < 1e-5 * gradient.norm()


@pytest.mark.parametrize('batch', [8, 1])
def test_sft_on_two_ranks_is_sft_on_one(monkeypatch, run, rows, tmp_path, batch):
    """Invariants 3 and 4, also when a rank has no row at all (batch of 1)."""
    one, two = str(tmp_path / 'one'), str(tmp_path / 'two')
    flags = [*SFT, f'--data={rows}', f'--batch_size={batch}', '--micro_batch_tokens=64']
    inside(monkeypatch, 'sft.py', *flags, f'--out_dir={one}')
    run('sft.py', *flags, f'--out_dir={two}', '--micro_batch_tokens=96', ranks=2)
    alike(one, two)


def test_sft_on_two_nodes_is_sft_on_one_rank(monkeypatch, rows, tmp_path):
    """The same under torchrun itself, on two nodes of two ranks each."""
    one, four = str(tmp_path / 'one'), str(tmp_path / 'four')
    flags = [*SFT, f'--data={rows}', '--micro_batch_tokens=64']
    inside(monkeypatch, 'sft.py', *flags, f'--out_dir={one}')
    torchrun('sft.py', *flags, f'--out_dir={four}', ranks=2, nodes=2)
    alike(one, four)


def alike(one, several):
    """Whether two runs of sft.py had the same loss and gradient in each step, and end in the same weights."""
    records = read_log(one)
    assert len(records) == len(read_log(several)) == 3
    for a, b in zip(records, read_log(several)):
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-5)
        assert a['grad_norm'] == pytest.approx(b['grad_norm'], rel=1e-4)
    assert same(one, several, 1e-4)


@pytest.mark.parametrize('flags', [
    [], ['--updates_per_rollout=2', '--beta=0.1', '--shard=none'], ['--loss_denominator=sequences'],
    ['--loss_denominator=constant', '--advantage_std=False', '--mask_truncated=True', '--resample_rounds=1']])
def test_grpo_on_two_ranks_is_grpo_on_one(monkeypatch, run, rows, start_model, tmp_path, flags):
    """Invariants 3 and 4 with unequal shares (5 prompts on 2 ranks): same rollouts, loss, gradient and weights."""
    one, two = str(tmp_path / 'one'), str(tmp_path / 'two')
    flags = [*GRPO, *flags, f'--model={start_model}', f'--data={rows}']
    inside(monkeypatch, 'grpo.py', *flags, f'--out_dir={one}')
    run('grpo.py', *flags, f'--out_dir={two}', '--micro_batch_tokens=80', ranks=2)
    assert len(read_log(one)) == len(read_log(two)) == 2
    for a, b in zip(read_log(one), read_log(two)):
        assert a['reward/mean'] == b['reward/mean'] and a['completion/len_mean'] == b['completion/len_mean']
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-4, abs=1e-6)
        assert a['grad_norm'] == pytest.approx(b['grad_norm'], rel=1e-3)
    assert same(one, two, 2e-5)
    # what a rollout cost, and the evaluation before it, are in the log once, with its first update
    assert [r['step'] for r in read_log(one) if 'tokens/sampled' in r] == ([1] if '--updates_per_rollout=2' in flags else [1, 2])


def test_grpo_loss_is_zero_at_ratio_one_and_its_gradient_is_not(monkeypatch, rows, start_model, tmp_path):
    """Invariant 9: with sequence-mean weights the centred advantages cancel exactly; the gradient does not."""
    out = str(tmp_path / 'x')
    inside(monkeypatch, 'grpo.py', *GRPO, '--loss_denominator=sequences', f'--model={start_model}', f'--data={rows}', f'--out_dir={out}')
    records = read_log(out)
    assert any(r['reward/zero_std_frac'] < 1 for r in records)
    for r in records:
        assert abs(r['loss']) < 1e-6 and (r['grad_norm'] > 1e-3) == (r['reward/zero_std_frac'] < 1)
        assert r['policy/mismatch'] < 1e-4  # invariant 2, in training


@pytest.fixture
def grpo(monkeypatch, rows, start_model, tmp_path):
    """The names of grpo.py before its loop."""
    return before_loop(monkeypatch, 'grpo.py', f'--model={start_model}', f'--data={rows}', f'--out_dir={tmp_path}/x',
                       '--eval_prompts=', '--max_new_tokens=24')


def test_groups_without_spread_cost_no_update_and_keep_the_denominator(grpo):
    """Their advantages are 0: leaving them out changes neither loss nor gradient, only the tokens computed."""
    groups = grpo['rollout'](list(range(24)), 0)
    flat = [group for group in groups if not group.has_spread]
    assert flat and len(flat) < len(groups)

    def outcome():
        totals = grpo['accumulate_gradients'](grpo['micro_batches_of'](groups))
        return totals, gradient_of(grpo['policy'])
    totals, gradient = outcome()
    assert totals['scored'] == sum(len(c.ids) for group in groups if group.has_spread for c in group.completions)
    for group in flat:
        for completion in group.completions:
            completion.advantage = 1e-30  # no longer exactly 0: everything is computed
    whole_totals, whole = outcome()
    assert whole_totals['scored'] == sum(len(c.ids) for group in groups for c in group.completions)
    assert (gradient - whole).norm() < 1e-5 * whole.norm() and abs(totals['loss'] - whole_totals['loss']) < 1e-6


def test_an_advantage_may_be_one_number_or_one_a_token(grpo):
    """The same number for every token is that number; 0 for all but the last token trains the last alone."""
    groups = grpo['rollout'](list(range(16)), 0)
    completions = [c for group in groups if group.has_spread for c in group.completions]

    def gradient():
        grpo['accumulate_gradients'](grpo['micro_batches_of'](groups))
        return gradient_of(grpo['policy'])
    plain = gradient()
    for completion in completions:
        completion.advantage = completion.advantage * torch.ones(len(completion.ids))
    assert torch.equal(gradient(), plain)
    for completion in completions:
        completion.advantage[:-1] = 0
    of_last_token = gradient()
    assert of_last_token.norm() > 1e-4 and not torch.allclose(of_last_token, plain)


@pytest.mark.parametrize('script', ['grpo.py', 'hpt.py', 'prefix_rft.py'])
@pytest.mark.parametrize('standard', [True, False])
def test_equal_rewards_have_no_advantage(monkeypatch, rows, tmp_path, script, standard):
    """Exactly 0, although the mean of such rewards is not always equal to them in fp32."""
    ns = before_loop(monkeypatch, script, '--model=tiny', f'--data={rows}', '--eval_prompts=', f'--advantage_std={standard}', '--group_size=7',
                     f'--out_dir={tmp_path}/x')
    for reward in (0.0, 0.1, 0.3, 0.7, 1 / 3, 1.0):
        assert not ns['advantages_of'](torch.full((7,), reward)).any()
    assert ns['advantages_of'](torch.tensor([0.3] * 6 + [0.4])).all()


def test_importance_cap(grpo):
    """The gradient is scaled by the trainer's probability over the sampler's, at most by the cap; 0 leaves it alone."""
    micro_batches = grpo['micro_batches_of'](grpo['rollout'](list(range(16)), 0))
    sampled = [micro['sampler_logprobs'] for micro in micro_batches]

    def gradient(cap, shift):
        for micro, logprobs in zip(micro_batches, sampled):
            micro['sampler_logprobs'] = logprobs - shift
        grpo['importance_cap'] = cap
        grpo['accumulate_gradients'](micro_batches)
        return gradient_of(grpo['policy'])
    plain = gradient(0.0, 0.4)
    assert plain.norm() > 1e-3
    for cap, shift, factor in ((2.0, 0.4, math.exp(0.4)), (2.0, 1.0, 2.0), (2.0, -1.0, math.exp(-1.0))):
        assert (gradient(cap, shift) - factor * plain).norm() < 1e-4 * plain.norm()


def test_killed_and_resumed(monkeypatch, rows, tmp_path):
    """kill -9 in the middle of a run, whatever it was doing: resume ends in the same weights."""
    flags = [*SFT, f'--data={rows}', '--max_steps=30', '--checkpoint_every=1', '--schedule=constant']
    whole, killed = str(tmp_path / 'whole'), str(tmp_path / 'killed')
    inside(monkeypatch, 'sft.py', *flags, f'--out_dir={whole}')
    started = launch_in_background('sft.py', *flags, out_dir=killed, steps=5)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert 5 <= len(read_log(killed)) < 30
    inside(monkeypatch, 'sft.py', *flags, f'--out_dir={killed}', '--resume=True')
    assert same(whole, killed) and [r['step'] for r in read_log(killed)] == list(range(1, 31))


def test_end_of_turn_is_learned(monkeypatch, start_model, tmp_path):
    """Invariant 1, seen from outside: a model trained by sft.py stops by itself."""
    out = str(tmp_path / 's.jsonl')
    inside(monkeypatch, 'sample.py', f'--model={start_model}', '--limit=20', '--n=2', f'--out={out}')
    rows = [json.loads(line) for line in open(out)]
    assert len(rows) == 40 and sum(r['stopped'] for r in rows) >= 38


def test_counts_on_real_gsm8k_rows(monkeypatch, capsys, tmp_path):
    """The printed counts against an independent count: every byte a token, 3 chat tokens and the end."""
    path = os.path.join(ROOT, 'tests/data/gsm8k_sample.jsonl')
    rows = [json.loads(line) for line in open(path)]
    sizes = [len(r['question'].encode()) + len(r['answer'].encode()) + 4 for r in rows]
    supervised = sum(len(r['answer'].encode()) + 1 for r in rows)
    before_loop(monkeypatch, 'sft.py', *SFT, f'--data={path}', '--max_length=4096', f'--out_dir={tmp_path}/a')
    counts = re.search(r'gsm8k_sample.jsonl: (\d+)/(\d+) rows, ([\d,]+) tokens \(([\d,]+) trained\)', capsys.readouterr().out)
    assert [int(x.replace(',', '')) for x in counts.groups()] == [len(rows), len(rows), sum(sizes), supervised]
    prompts = sum(len(r['question'].encode()) + 3 for r in rows)
    before_loop(monkeypatch, 'grpo.py', *GRPO, f'--data={path}', '--model=tiny', '--max_prompt_tokens=2000', f'--out_dir={tmp_path}/b')
    counts = re.search(r'gsm8k_sample.jsonl: (\d+)/(\d+) rows, ([\d,]+) tokens', capsys.readouterr().out)
    assert [int(x.replace(',', '')) for x in counts.groups()] == [len(rows), len(rows), prompts]


def test_wandb_offline_and_run_json(run, rows, tmp_path):
    """In a process of its own: wandb starts another and closes with it."""
    out = tmp_path / 'x'
    run('sft.py', *SFT, f'--data={rows}', f'--out_dir={out}', '--wandb_log=True')
    assert any(p.name.startswith('offline-run') for p in (out / 'wandb').iterdir())
    knobs = json.load(open(out / 'run.json'))
    assert knobs['batch_size'] == 8 and knobs['seed'] == 1337


@pytest.mark.parametrize('script, flags, words', [
    ('sft.py', ['--data=missing.jsonl'], 'data source missing.jsonl: [Errno 2] No such file'),
    ('sft.py', ['--data={tmp}/bad.jsonl'], 'bad.jsonl:2: '),
    ('sft.py', ['--data={tmp}/shape.jsonl'], 'shape.jsonl:1: no known shape in the keys foo'),
    ('sft.py', ['--data=sums:test', '--max_length=3'], 'rows were dropped'),
    ('sft.py', ['--model={tmp}'], 'no tokenizer from'),
    ('sft.py', ['--lerning_rate=1'], "nearest: 'learning_rate'"),
    ('sft.py', ['--out_dir={tmp}'], 'is not empty: say --resume=True'),
    ('sft.py', ['--resume=True', '--out_dir={tmp}/new'], 'does not exist'),
    ('sft.py', ['--device=cuda'], 'torch sees no CUDA device'),
    ('dpo.py', ['--data=missing.jsonl', '--model=tiny'], 'data source missing.jsonl: [Errno 2] No such file'),
    ('dpo.py', ['--data={tmp}/shape.jsonl', '--model=tiny'], 'shape.jsonl:1: no chosen and rejected in the keys foo'),
    ('dpo.py', ['--model=tiny', '--loss_type=kto'], 'loss_type must be dpo, dpo_norm, ipo or simpo'),
    ('dpo.py', ['--model=tiny', '--loss_type=ipo', '--label_smoothing=0.1'], 'label_smoothing must be 0 with loss_type ipo'),
    ('grpo.py', ['--data=sums:test', '--max_prompt_tokens=2'], 'longer than max_prompt_tokens=2'),
    ('grpo.py', ['--data={tmp}/truth.jsonl'], 'truth.jsonl:1: '),
    ('sample.py', ['--model={tmp}'], 'no tokenizer from'),
])
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, script, flags, words):
    """A UserError, which the hook that configure() sets prints as one line, before anything is written."""
    if 'cuda' in flags[0] and torch.cuda.is_available():
        pytest.skip('CUDA is here')
    (tmp_path / 'bad.jsonl').write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / 'shape.jsonl').write_text('{"foo": 1}\n')
    (tmp_path / 'truth.jsonl').write_text('{"question": "a", "answer": "b #### c"}\n')
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    out = [] if script == 'sample.py' or '--out_dir' in str(flags) else [f'--out_dir={tmp_path}/new']
    with pytest.raises(UserError) as error:
        inside(monkeypatch, script, *[flag.replace('{tmp}', str(tmp_path)) for flag in flags], *out)
    sys.excepthook(UserError, error.value, None)
    said = capsys.readouterr().err
    assert said.startswith('error: ') and said.count('\n') == 1 and words in said
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before  # nothing made, nothing overwritten


def test_a_mistake_ends_the_process_with_one_line(run, tmp_path):
    done = run('sft.py', '--data=missing.jsonl', f'--out_dir={tmp_path}/new', check=False)
    assert done.returncode == 1 and 'Traceback' not in done.stderr and done.stderr.count('error:') == 1


def test_a_mistake_does_not_hang_ranks(run, tmp_path):
    done = run('grpo.py', '--data=missing.jsonl', f'--out_dir={tmp_path}/new', ranks=2, check=False)
    assert done.returncode != 0 and done.stderr.count('error: data source missing.jsonl') == 1


def test_a_tokenizer_without_chat_template(monkeypatch, start_model, tmp_path):
    shutil.copytree(start_model, tmp_path / 'm')
    (tmp_path / 'm' / 'chat_template.jinja').unlink()
    with pytest.raises(UserError, match='--chat_template='):
        inside(monkeypatch, 'grpo.py', f'--model={tmp_path}/m', f'--out_dir={tmp_path}/o')
