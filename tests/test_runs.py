"""A run is what its flags say: seeds, schedules, references, settings on resume, nothing lost at the end."""
import itertools
import json
import math
import os
import sys
import types

import data
import numpy as np
import pytest
import rollout
import run as run_module  # the fixture `run` has its name
import torch
from conftest import ROOT, before_loop, inside, read_log
from configurator import UserError
from safetensors.torch import load_file
from test_scripts import same
from tools.story import read_story
from verify import verify

RL = ['--max_new_tokens=4', '--eval_prompts=', '--warmup_steps=0', '--group_size=3', '--prompts_per_step=5']
PAIRS = f'--data={ROOT}/tests/data/gsm8k_preference_sample.jsonl'


@pytest.fixture
def some_rows(tmp_path):
    """Flags for five rows to train on and two to evaluate with, judged by a function that any change of the text changes."""
    (tmp_path / 'verdict.py').write_text('import zlib\ndef verdict(completion, truth):\n'
                                         '    return zlib.crc32(completion.encode()) % 1000 / 1000\n')
    rows = [{'prompt': f'{i}+2', 'answer': str(i + 2), 'dataset': 'sums', 'demonstration': f'{i} {i + 2} #### {i + 2}'} for i in range(7)]
    for name, part in (('train', rows[:5]), ('eval', rows[5:])):
        (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, part)))
    return [f'--data={tmp_path}/train.jsonl', f'--eval_prompts={tmp_path}/eval.jsonl', f'--verifier={tmp_path}/verdict.py:verdict']


def trainings(out):
    return [r for r in read_log(out) if 'lr' in r]


def evaluations(out):
    return {r['step']: r['eval/pass@1'] for r in read_log(out) if 'eval/pass@1' in r}


# --- evaluation -----------------------------------------------------------------
@pytest.mark.parametrize('script', ['sft.py', 'dpo.py', 'grpo.py', 'hpt.py', 'prefix_rft.py', 'distill.py'])
def test_an_evaluation_is_the_mean_over_its_samples(script, monkeypatch, tmp_path, some_rows, capsys):
    """eval_samples completions of each row at eval_temperature, with the seeds of the rows, as generate gives them; the same again later.

    The first of each row is printed, and python -m tools.story reads it.
    """
    flags = [*some_rows, '--model=tiny', f'--out_dir={tmp_path}/run', '--max_new_tokens=5', '--eval_samples=3', '--eval_temperature=0.7']
    if script == 'dpo.py':
        pairs = tmp_path / 'pairs.jsonl'
        pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
        flags += [f'--data={pairs}', '--eval_data=']
    if script == 'sft.py':
        flags += ['--eval_data=']
    if script == 'distill.py':
        flags += ['--teacher=tiny']
    ns = before_loop(monkeypatch, script, *flags)
    evaluate = ns.get('evaluate_prompts', ns['evaluate'])  # sft.py and dpo.py evaluate more than prompts
    ids = [row['ids'] for row in ns['eval_rows']]
    seeds = [(ns['seed'], 'evaluate', place) for place in range(len(ids))]
    sampled = rollout.generate(ns['policy'].model, ids, 3, 5, 0.7, ns['stops'], seeds)
    rewards = []
    for row, completions in zip(ns['eval_rows'], sampled):
        for completion in completions:
            rewards.append(verify(row['kind'], data.completion_text(ns['tokenizer'], completion['ids']), row['truth']))
    assert len(rewards) == 6 and len(set(rewards)) > 1
    capsys.readouterr()
    assert evaluate()['eval/pass@1'] == pytest.approx(sum(rewards) / 6)
    story = read_story(capsys.readouterr().out)
    texts = [data.completion_text(ns['tokenizer'], completions[0]['ids']) for completions in sampled]
    assert story == {row['text']: [(0, f'{reward:.2g}', text)] for row, reward, text in zip(ns['eval_rows'], rewards[::3], texts)}
    assert evaluate()['eval/pass@1'] == pytest.approx(sum(rewards) / 6)


# --- seeds ---------------------------------------------------------------------
SEEDS = [0, 1, 2, -1, 2 ** 32, 2 ** 32 + 1, 2 ** 64 + 1, 10 ** 30, -10 ** 30]


def test_every_key_has_a_stream_of_its_own():
    """Seeds, places, members and uses: also those that agree in their low 32 or 64 bits, or when written in a row."""
    places = [0, 1, 11, 2 ** 32, 2 ** 32 + 1]
    keys = list(itertools.product(SEEDS, ['rollout', 'hybrid', 'sample', 'rejected', 'prefix'], places, [0, 1, 11]))
    drawn = [data.random_stream(*key).random_sample(2).tolist() for key in keys]
    assert len({tuple(x) for x in drawn}) == len(keys) == len({x for pair in drawn for x in pair}) // 2
    assert data.random_stream(1, 11).random_sample() != data.random_stream(11, 1).random_sample()
    for key, first in list(zip(keys, drawn))[::50]:
        assert data.random_stream(*key).random_sample(2).tolist() == first
    # known numbers: a resumed run draws what it would have drawn, under any numpy
    assert data.random_stream(1337, 'rollout', 3).random_sample(2).tolist() == KNOWN


KNOWN = [0.7563288092636986, 0.21380323108234023]


@pytest.mark.parametrize('script', ['grpo.py', 'hpt.py', 'prefix_rft.py', 'distill.py'])
def test_the_streams_of_a_run_do_not_collide(monkeypatch, tmp_path, some_rows, script):
    """Every stream that two seeds draw from, in two rollouts, with all that is drawn from each."""
    streams, draw = [], data.random_stream

    def recorded(*key):
        state = draw(*key)
        streams.append((key, tuple(draw(*key).randint(0, 2 ** 32, 8, dtype=np.uint64).tolist())))
        return state
    data.shuffled.cache_clear()
    for module in (data, rollout):
        monkeypatch.setattr(module, 'random_stream', recorded)
    for seed in (1, 2 ** 32 + 1):
        more = ['--teacher=tiny', '--on_policy_fraction=0.5'] if script == 'distill.py' else []
        ns = before_loop(monkeypatch, script, *RL, *some_rows, *more, f'--seed={seed}', '--eval_prompts=', f'--out_dir={tmp_path}/{seed}')
        for first in (0, 5):
            ns['rollout'](ns['order'].take(5), first)
    data.shuffled.cache_clear()
    keys, numbers = zip(*streams)
    assert len(set(keys)) == len(keys) == len(set(numbers)) > 60
    assert len({x for row in numbers for x in row}) > len(keys) * 8 - 3  # 32-bit numbers: a few may be alike


def test_two_seeds_are_two_runs(monkeypatch, tmp_path, start_model):
    """sample.py writes other completions, grpo.py on one row ends in other weights; one seed twice: the same."""
    (tmp_path / 'one.jsonl').write_text('{"prompt": "3+4", "answer": "7", "dataset": "sums"}\n')
    texts, ends = {}, {}
    for name, seed in (('a', 1), ('b', 1), ('c', 2), ('d', 2 ** 32 + 1), ('e', -1)):
        out = f'{tmp_path}/{name}.jsonl'
        inside(monkeypatch, 'sample.py', f'--model={start_model}', '--limit=8', '--n=4', '--show=0', f'--seed={seed}', f'--out={out}')
        texts[name] = open(out).read()
        ns = inside(monkeypatch, 'grpo.py', f'--model={start_model}', f'--data={tmp_path}/one.jsonl', '--eval_prompts=', '--prompts_per_step=2',
                    '--group_size=8', '--max_steps=2', '--learning_rate=1e-3', '--max_new_tokens=24', '--warmup_steps=0',
                    f'--seed={seed}', f'--out_dir={tmp_path}/{name}')
        ends[name] = ns['policy'].model.get_input_embeddings().weight.detach().clone()
    for outcomes, equal in ((texts, lambda x, y: x == y), (ends, torch.equal)):
        assert equal(outcomes['a'], outcomes['b'])
        assert not any(equal(outcomes[x], outcomes[y]) for x, y in itertools.combinations('acde', 2))


def test_two_seeds_are_two_models_from_scratch(monkeypatch, tmp_path, rows):
    models = []
    for i, seed in enumerate((1, 1, 2, 2 ** 32 + 1)):
        ns = before_loop(monkeypatch, 'sft.py', f'--data={rows}', '--eval_data=', '--eval_prompts=', f'--seed={seed}', f'--out_dir={tmp_path}/{i}')
        models.append((ns['policy'].model.get_input_embeddings().weight.detach().clone(), ns['order'].take(20)))
    assert torch.equal(models[0][0], models[1][0]) and models[0][1] == models[1][1]
    for x, y in itertools.combinations(models[1:], 2):
        assert not torch.equal(x[0], y[0]) and x[1] != y[1]


def test_the_second_model_has_streams_of_its_own(monkeypatch, tmp_path, start_model):
    """One model on both sides: were they drawn alike, every pair would have equal sides and none would be written."""
    out = f'{tmp_path}/pairs.jsonl'
    inside(monkeypatch, 'sample.py', f'--model={start_model}', f'--rejected_model={start_model}', '--write=pairs', '--limit=20', '--n=4',
           f'--out={out}')
    assert len(open(out).readlines()) > 20


# --- schedules -----------------------------------------------------------------
@pytest.mark.parametrize('max_steps, updates, eval_every, checkpoint_every, warmup, schedule', [
    (5, 4, 0, 0, 0, 'linear'), (7, 3, 2, 4, 0, 'cosine'), (7, 3, 4, 2, 3, 'linear'), (6, 5, 3, 5, 2, 'cosine'), (8, 2, 3, 100, 20, 'constant'),
    (1, 2, 1, 1, 0, 'linear'), (4, 3, 1, 1, 1, 'linear'), (9, 1, 4, 3, 4, 'cosine'), (3, 1, 2, 2, 2, 'linear')])
def test_any_schedule(monkeypatch, tmp_path, some_rows, max_steps, updates, eval_every, checkpoint_every, warmup, schedule):
    """No step past max_steps; the rate never negative, never rising after the warm-up, its minimum last; evaluation and checkpoint at the
    first end of a rollout at or after each multiple; a checkpoint before every evaluation."""
    out, saves, save = f'{tmp_path}/x', [], run_module.save_state

    def recorded(out_dir, rank, own, shared, barrier):
        saves.append((shared['step'], len(evaluations(out))))
        save(out_dir, rank, own, shared, barrier)
    monkeypatch.setattr(run_module, 'save_state', recorded)
    inside(monkeypatch, 'grpo.py', *RL, *some_rows, f'--max_steps={max_steps}', f'--updates_per_rollout={updates}', f'--eval_every={eval_every}',
           f'--checkpoint_every={checkpoint_every}', f'--warmup_steps={warmup}', f'--schedule={schedule}', '--learning_rate=1e-3',
           '--min_learning_rate=1e-4', f'--out_dir={out}')
    records = trainings(out)
    assert [r['step'] for r in records] == list(range(1, max_steps + 1))
    rates = [r['lr'] for r in records]
    assert rates[:warmup] == pytest.approx([1e-3 * (i + 1) / warmup for i in range(min(warmup, max_steps))])
    after = rates[max(0, warmup - 1):]
    assert after == sorted(after, reverse=True) and all(0 < rate <= 1e-3 for rate in rates)
    if schedule != 'constant' and max_steps > max(1, warmup):
        assert rates[-1] == pytest.approx(1e-4)
    ends = sorted({*range(0, max_steps, updates), max_steps})  # of rollouts

    def first_chances(every):
        return {min(end for end in ends if end >= due) for due in range(0, max_steps + 1, every) if every} if every else set()
    evaluated = first_chances(eval_every) | {max_steps}
    assert set(evaluations(out)) == evaluated
    assert {step for step, _ in saves} == (first_chances(checkpoint_every) | evaluated) - {0}
    for step in evaluated - {0}:  # saved when there were only the evaluations of earlier steps
        assert (step, len([s for s in evaluated if s < step])) in saves


@pytest.mark.parametrize('script', ['sft.py', 'grpo.py'])
def test_an_evaluation_has_the_step_of_the_weights_it_measured(monkeypatch, tmp_path, some_rows, script):
    """The run that ends at step 4 measures at its end what the longer one measured at step 4."""
    flags = [*(RL if script == 'grpo.py' else ['--batch_size=3', '--eval_data=', '--warmup_steps=0']), *some_rows,
             '--max_new_tokens=8', '--schedule=constant', '--learning_rate=1e-2', '--eval_every=2',
             '--eval_temperature=1']  # greedy completions of two steps may be the same
    for steps in (4, 6):
        inside(monkeypatch, script, *flags, f'--max_steps={steps}', f'--out_dir={tmp_path}/{steps}')
    long, short = evaluations(f'{tmp_path}/6'), evaluations(f'{tmp_path}/4')
    assert short == {step: long[step] for step in short} and len(long) == (4 if script == 'grpo.py' else 3)
    assert long[2] != long[4] != long[6]


def test_samples_are_printed_at_the_first_chance(monkeypatch, tmp_path, some_rows, capfd):
    inside(monkeypatch, 'grpo.py', *RL, *some_rows, '--eval_prompts=', '--max_steps=9', '--updates_per_rollout=3', '--sample_every=4', f'--out_dir={tmp_path}/x')
    captured = capfd.readouterr()
    assert (captured.out + captured.err).count(' -> ') == 6  # three of each of the rollouts at steps 0 and 6


# --- references ----------------------------------------------------------------
@pytest.mark.parametrize('script, dtype', [('grpo.py', 'float32'), ('grpo.py', 'bfloat16'), ('hpt.py', 'bfloat16'), ('prefix_rft.py', 'bfloat16')])
@pytest.mark.parametrize('name', ['tiny', 'random:tiny', 'folder'])
def test_the_kl_of_a_policy_to_itself_is_0(monkeypatch, tmp_path, start_model, some_rows, script, dtype, name):
    """To the bit, before the first update; also with Adam's first step made and the run resumed, where the start model is drawn again."""
    flags = [*RL, *some_rows, '--eval_prompts=', f'--model={start_model if name == "folder" else name}', '--beta=0.1', f'--dtype={dtype}',
             '--learning_rate=1e-3']
    inside(monkeypatch, script, *flags, '--max_steps=2', f'--out_dir={tmp_path}/whole')
    first, second = [r['policy/kl'] for r in trainings(f'{tmp_path}/whole')]
    assert first == 0 and second > 1e-6
    if dtype == 'float32' and name != 'random:tiny':
        for steps in (1, 2):
            inside(monkeypatch, script, *flags, '--schedule=constant', f'--max_steps={steps}', f'--resume={steps == 2}', f'--out_dir={tmp_path}/parts')
        assert trainings(f'{tmp_path}/parts')[1]['policy/kl'] == second


def test_the_reference_keeps_what_autocast_would_cast_in_half_the_memory(start_model):
    from model import frozen_copy, load_model
    lm = load_model(start_model)
    kept = {name: p.dtype for name, p in frozen_copy(lm, torch.bfloat16).named_parameters()}
    assert {d for name, d in kept.items() if 'proj' in name} == {torch.bfloat16}
    assert {d for name, d in kept.items() if 'proj' not in name} == {torch.float32}  # embedding (and tied head), norms
    assert all(p.dtype == torch.float32 and p.requires_grad for p in lm.parameters())


# --- settings on resume --------------------------------------------------------
@pytest.mark.parametrize('ranks', [1, 2])
def test_options_of_the_optimizer_take_effect_on_resume(run, monkeypatch, tmp_path, some_rows, ranks):
    """Alike on one rank and on two: weight_decay and betas are today's, the moments are the checkpoint's."""
    flags = ['--batch_size=4', '--eval_data=', some_rows[0], '--eval_prompts=', '--schedule=constant', '--warmup_steps=0', '--learning_rate=1e-3']

    def start(*more, out):
        if ranks == 1:
            inside(monkeypatch, 'sft.py', *flags, *more, f'--out_dir={tmp_path}/{out}')
        else:
            run('sft.py', *flags, *more, f'--out_dir={tmp_path}/{out}', ranks=ranks)

    def weight(out):
        return load_file(f'{tmp_path}/{out}/model.safetensors')['model.layers.0.mlp.up_proj.weight']
    for out in ('same', 'changed'):
        start('--max_steps=1', out=out)
    before = weight('changed')
    start('--max_steps=2', '--resume=True', out='same')
    start('--max_steps=2', '--resume=True', '--weight_decay=0.5', out='changed')
    # AdamW takes learning_rate * weight_decay of the weight, besides the step that both make
    assert torch.allclose(weight('same') - weight('changed'), 1e-3 * 0.5 * before, atol=1e-7)
    start('--max_steps=3', '--resume=True', '--beta1=0.5', '--beta2=0.9', out='changed')
    options = torch.load(f'{tmp_path}/changed/state/rank0.pt')['optimizer']['param_groups'][0]
    assert options['betas'] == (0.5, 0.9) and options['weight_decay'] == 0.0  # also back to what the flags no longer say


@pytest.mark.parametrize('flag, words', [
    ('--shard=none', 'started with shard=optimizer, which cannot become shard=none'),
    ('--model=random:tiny', 'started with model=tiny, which cannot become model=random:tiny'),
    ('--seed=7', 'started with seed=1337, which cannot become seed=7'),
    ('--overwrite=True', 'overwrite')])
def test_settings_that_a_resumed_run_cannot_change(monkeypatch, tmp_path, some_rows, flag, words):
    flags = ['--batch_size=4', some_rows[0], '--eval_data=', '--eval_prompts=', '--max_steps=1', f'--out_dir={tmp_path}/x']
    inside(monkeypatch, 'sft.py', *flags)
    before = open(f'{tmp_path}/x/log.jsonl').read()
    with pytest.raises(UserError, match=words):
        inside(monkeypatch, 'sft.py', *flags, '--max_steps=2', '--resume=True', flag)
    assert open(f'{tmp_path}/x/log.jsonl').read() == before


def test_two_ranks_refuse_another_sharding_in_one_line(run, tmp_path, some_rows):
    flags = ['--batch_size=4', some_rows[0], '--eval_data=', '--eval_prompts=', f'--out_dir={tmp_path}/x']
    run('sft.py', *flags, '--max_steps=1', ranks=2)
    done = run('sft.py', *flags, '--max_steps=2', '--resume=True', '--shard=none', ranks=2, check=False)
    assert done.returncode and done.stderr.count('error:') == 1 and 'cannot become shard=none' in done.stderr


# --- nothing is lost -----------------------------------------------------------
@pytest.mark.parametrize('script', ['sft.py', 'dpo.py', 'grpo.py', 'hpt.py', 'prefix_rft.py', 'distill.py'])
def test_an_evaluation_that_fails_costs_no_step(monkeypatch, tmp_path, some_rows, script):
    """At the end and on the way: the checkpoint of the step is there, --resume=True goes on to the same log and weights."""
    own = ['--teacher=tiny'] if script == 'distill.py' else []
    flags = [*own, *(RL if script not in ('sft.py', 'dpo.py') else ['--batch_size=3', '--warmup_steps=0', '--max_new_tokens=4', '--eval_data=', '--model=tiny']), *some_rows,
             '--eval_every=2', '--max_steps=3', '--checkpoint_every=0', '--schedule=constant', *([PAIRS] if script == 'dpo.py' else [])]
    inside(monkeypatch, script, *flags, f'--out_dir={tmp_path}/whole')
    whole, generate = rollout.generate, rollout.generate
    for failing in (2, 3):
        def fails(*arguments, failing=failing, **more):
            log = f'{tmp_path}/parts/log.jsonl'
            if arguments[4] == 0 and os.path.exists(log) and trainings(f'{tmp_path}/parts') and trainings(f'{tmp_path}/parts')[-1]['step'] == failing:
                raise RuntimeError('a bad day')
            return generate(*arguments, **more)
        monkeypatch.setattr(rollout, 'generate', fails)
        with pytest.raises(RuntimeError, match='a bad day'):
            inside(monkeypatch, script, *flags, f'--resume={failing == 3}', f'--out_dir={tmp_path}/parts')
        assert torch.load(f'{tmp_path}/parts/state/shared.pt')['step'] == failing
    monkeypatch.setattr(rollout, 'generate', whole)
    inside(monkeypatch, script, *flags, '--resume=True', f'--out_dir={tmp_path}/parts')
    assert same(f'{tmp_path}/whole', f'{tmp_path}/parts')
    drop = lambda r: {k: v for k, v in r.items() if not k.startswith('perf/')}  # noqa: E731
    assert [drop(r) for r in read_log(f'{tmp_path}/whole')] == [drop(r) for r in read_log(f'{tmp_path}/parts')]


def test_wandb_that_fails_is_turned_off(monkeypatch, tmp_path, some_rows, capfd):
    calls = []

    def log(*_, **__):
        calls.append(1)
        raise OSError('no network')
    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(log=log, init=lambda **_: types.SimpleNamespace(id='x')))
    inside(monkeypatch, 'sft.py', '--batch_size=4', some_rows[0], '--eval_data=', '--eval_prompts=', '--max_steps=3', '--wandb_log=True', f'--out_dir={tmp_path}/x')
    captured = capfd.readouterr()
    assert len(trainings(f'{tmp_path}/x')) == 3 and len(calls) == 1
    assert 'wandb fails and is off from here, log.jsonl goes on: no network' in captured.out + captured.err


# --- statistics ----------------------------------------------------------------
def test_mismatch_is_that_of_the_policy_that_sampled(monkeypatch, tmp_path, some_rows):
    """After the first of three updates the policy is another: the sampler is compared with the one before them."""
    inside(monkeypatch, 'grpo.py', *RL, *some_rows, '--eval_prompts=', '--max_steps=3', '--updates_per_rollout=3', '--learning_rate=1e-1',
           f'--out_dir={tmp_path}/x')
    assert all(r['policy/mismatch'] < 1e-4 for r in trainings(f'{tmp_path}/x'))


@pytest.mark.parametrize('script', ['grpo.py', 'hpt.py', 'prefix_rft.py', 'distill.py'])
@pytest.mark.parametrize('denominator', ['tokens', 'sequences', 'constant'])
def test_a_completion_weighs_the_same_in_every_share(monkeypatch, tmp_path, some_rows, script, denominator):
    """Five prompts, three updates: shares of 2, 2 and 1 groups. By hand: 1 / (all tokens / 3) and so on."""
    ns = before_loop(monkeypatch, script, *RL, *some_rows, f'--loss_denominator={denominator}',
                     '--teacher=tiny' if script == 'distill.py' else '--beta=0.1', f'--out_dir={tmp_path}/x')
    groups = ns['rollout'](list(range(5)), 0)
    sizes = [len(completion.ids) for group in groups for completion in group.completions]
    expected = {'tokens': [3 / sum(sizes)], 'constant': [3 / (4 * 15)], 'sequences': [3 / (15 * n) for n in set(sizes)]}[denominator]
    demonstrated = 0  # tokens
    if script == 'hpt.py':
        for i, group in enumerate(groups):
            group.learns_demonstration = i in (1, 2)  # two of the five, of different shares
            if group.learns_demonstration:
                demonstrated += len(group.prompt['demonstration'])
    found = 0
    for share in range(3):
        for micro in ns['micro_batches_of'](groups[share::3], groups, 3):
            weights = micro['weight']
            if script == 'hpt.py':
                of_demonstrations = weights[micro['is_demonstration']]
                assert torch.allclose(of_demonstrations, torch.tensor(3 / demonstrated))
                weights = weights[~micro['is_demonstration']]
                found += len(of_demonstrations)
            assert all(min(abs(w - e) for e in expected) < 1e-7 for w in weights.tolist())
            found += len(weights)
    assert found == sum(sizes) + demonstrated


def test_samples_count_completions(monkeypatch, tmp_path, some_rows):
    inside(monkeypatch, 'grpo.py', *RL, *some_rows, '--eval_prompts=', '--max_steps=7', '--updates_per_rollout=3', f'--out_dir={tmp_path}/x')
    assert [r['samples'] for r in trainings(f'{tmp_path}/x')] == [6, 12, 15, 21, 27, 30, 45]


def test_hpts_tokens_hold_demonstrations(monkeypatch, tmp_path, some_rows):
    inside(monkeypatch, 'hpt.py', *RL, *some_rows, '--eval_prompts=', '--max_steps=1', '--gamma=1', f'--out_dir={tmp_path}/x')
    (record,) = trainings(f'{tmp_path}/x')
    ns = before_loop(monkeypatch, 'hpt.py', *RL, *some_rows, f'--out_dir={tmp_path}/y')
    prompts = ns['prompts']
    groups = ns['rollout'](ns['order'].take(5), 0)
    completions = sum(len(completion.ids) for group in groups for completion in group.completions)
    in_prompts = sum(len(prompt['ids']) for prompt in prompts)
    in_demonstrations = sum(len(prompt['demonstration']) for prompt in prompts)
    assert record['tokens'] == 3 * in_prompts + completions + in_prompts + in_demonstrations


def test_maj_is_left_out_where_nothing_can_be_voted_on(monkeypatch, tmp_path, start_model, some_rows, capfd):
    flags = [f'--model={start_model}', '--n=4', '--limit=5', '--show=0', '--overwrite=True', f'--out={tmp_path}/s.jsonl']
    inside(monkeypatch, 'sample.py', *flags)
    assert 'maj@4' in capfd.readouterr().out
    inside(monkeypatch, 'sample.py', *flags, some_rows[0], some_rows[2])
    assert 'maj@4' not in capfd.readouterr().out


# --- all scripts, odd numbers --------------------------------------------------
@pytest.mark.parametrize('script', ['sft.py', 'dpo.py', 'grpo.py', 'hpt.py', 'prefix_rft.py', 'distill.py'])
def test_odd_numbers_on_two_ranks(run, tmp_path, some_rows, script):
    """Invariant 6 with nothing that divides anything: 5 prompts, groups of 3, 3 updates a rollout, 7 steps, evaluation every 2, checkpoint
    every 4, two ranks. Stopped at step 6 (the end of a rollout) and resumed: the same weights, the same log."""
    own = {'sft.py': ['--batch_size=5', '--eval_data='], 'dpo.py': ['--batch_size=5', '--model=tiny', PAIRS]}
    rl = ['--prompts_per_step=5', '--group_size=3', '--updates_per_rollout=3', '--sample_every=0']
    rl += ['--teacher=tiny', '--on_policy_fraction=0.5'] if script == 'distill.py' else ['--beta=0.01']
    flags = [*some_rows, '--max_new_tokens=6', '--eval_every=2', '--checkpoint_every=4', '--schedule=constant', '--warmup_steps=2',
             '--micro_batch_tokens=200', *own.get(script, rl)]
    whole, parts = str(tmp_path / 'whole'), str(tmp_path / 'parts')
    run(script, *flags, '--max_steps=7', f'--out_dir={whole}', ranks=2)
    run(script, *flags, '--max_steps=6', f'--out_dir={parts}', ranks=2)
    with open(os.path.join(parts, 'log.jsonl'), 'a') as f:
        f.write('{"step": 7, "lost": true}\n')  # made after the checkpoint, before a kill
    run(script, *flags, '--max_steps=7', '--resume=True', f'--out_dir={parts}', ranks=2)
    assert [r['step'] for r in trainings(whole)] == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(evaluations(whole)) == ([2, 4, 6, 7] if script in own else [0, 3, 6, 7])
    assert all(math.isfinite(r['loss']) and math.isfinite(r['grad_norm']) for r in trainings(whole))
    assert torch.load(f'{whole}/state/shared.pt')['step'] == 7
    assert same(whole, parts)
    drop = lambda r: {k: v for k, v in r.items() if not k.startswith('perf/')}  # noqa: E731
    assert [drop(r) for r in read_log(whole)] == [drop(r) for r in read_log(parts)]
