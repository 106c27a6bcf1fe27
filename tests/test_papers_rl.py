"""papers/ about baselines, curricula, filters and candidates of reinforcement learning, and CodeBoost: by hand-worked numbers."""
import json
import math
import os
import types

import pytest
import torch
from conftest import ROOT, inside, launch, read_log
from data import Order, load_tokenizer, rl_prompts, sft_examples
from embedded import task_rows
from model import Policy, load_model
from paper_tools import FOLDER, PAPERS, advantages, load, near, only_with_the_diff, papers_run, run_inside, sampled, weights_of
from rows import read_rows
from verify import verify

levels, gradient_variance, codeboost, codeboost_run, codeboost_rows, codeboost_distinct = [
    load(os.path.join(FOLDER, f'{name}.py'), name) for name in (
        'levels', 'gradient_variance', 'codeboost', 'codeboost_run', 'codeboost_rows', 'codeboost_distinct')]


# --- the diffs ------------------------------------------------------------------
def weighted(groups, weight_of):
    """The sum of W A of each group."""
    return [sum(weight_of(c) * float(c.advantage) for c in group.completions) for group in groups]


def check_oblr_po(ns):
    """R = (1, 0, 0, 1), W = (1, 2, 3, 2): the baseline is 3/8. W is what the sampler had at its temperature."""
    rewards = torch.tensor([1.0, 0, 0, 1])
    by_hand = [types.SimpleNamespace(grad_square=w, ids=[5] * length) for w, length in ((1, 4), (2, 1), (3, 1), (2, 2))]
    for knob, baseline in (('gradient', 3 / 8), ('length', 6 / 8), ('none', 1 / 2)):
        ns.update(baseline_weight=knob)
        assert ns['advantages_of'](rewards, by_hand).tolist() == pytest.approx((rewards - baseline).tolist())
        # exactly 0, whatever the weights
        assert ns['advantages_of'](torch.full((4,), 0.3), by_hand).tolist() == [0, 0, 0, 0]

    # a rollout: three of the six completions of each prompt are right
    ns.update(group_size=6, max_new_tokens=9, temperature=0.7, verify_all=lambda tasks: [(float(i % 2), False) for i in range(len(tasks))])
    for knob, weight_of in (('gradient', lambda c: c.grad_square), ('length', lambda c: len(c.ids)), ('none', lambda c: 1)):
        ns.update(baseline_weight=knob)
        groups = ns['rollout']([0, 1], 0)
        assert weighted(groups, weight_of) == pytest.approx([0, 0], abs=1e-5)
        assert all(c.advantage for group in groups for c in group.completions)
    for completion in groups[1].completions[:2]:
        micro = ns['collate']([(completion.ids, [True] * len(completion.ids), completion.prompt_ids)])
        hidden = ns['policy'](micro['ids'], micro['lengths'], micro['index'], parents=micro['parents'], only_hidden=True)
        logits = (hidden @ ns['policy'].model.get_output_embeddings().weight.T / 0.7).detach().requires_grad_()
        torch.log_softmax(logits, -1)[range(len(completion.ids)), completion.ids].sum().backward()
        assert completion.grad_square == pytest.approx(logits.grad.square().sum().item(), rel=1e-3)


def check_dump(ns):
    """V = (0.3, 0.1), n = (8, 0): bounds of 0.3 + 0.69876 and 0.1 + 2.09629."""
    chances = []

    def stream(*key):
        assert key == (ns['seed'], 'bandit', ns['order'].position)
        return types.SimpleNamespace(choice=lambda n_levels, n, p: chances.append(list(p)) or [0, 1, 1][:n])
    real = ns['random_stream']
    ns.update(group_size=8, random_stream=stream, order=Order([(1.0, range(9))], 0),
              orders={2: Order([(1.0, [10, 11])], 0), 'hard': Order([(1.0, [20, 21, 22])], 0)}, recent={2: [0.2, 0.4], 'hard': [0.1]})
    ns['orders'][2].position = 1
    first, *others = ns['take'](3)
    assert first in (10, 11) and set(others) < {20, 21, 22} and len(set(others)) == 2
    # the places of the samples go on
    assert (ns['order'].position, ns['orders'][2].position, ns['orders']['hard'].position) == (3, 2, 2)
    assert chances[0] == pytest.approx([1 / (1 + math.exp(11.9753)), 1 / (1 + math.exp(-11.9753))], rel=1e-3)
    # equal counts, equal bonuses: what is left is exp((0.3 - 0.1) / 0.1); and no bonus before the first sample
    for position in (10, 0):
        for of in ns['orders'].values():
            of.position = position
        ns['take'](1)
        assert chances[-1] == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))])
    # all chances are near 1/2 at a high temperature: each is drawn about half of the time
    ns.update(random_stream=real, bandit_temperature=100.0)
    assert 400 < sum(i < 20 for i in ns['take'](1000)) < 600
    ns.update(bandit_temperature=0.0, order=Order([(1.0, range(9))], 0))
    assert ns['take'](5) == Order([(1.0, range(9))], 0).take(5)

    # |advantages| of the last 300 completions, by difficulty; those of an evaluation do not count
    rows = [{**prompt, 'difficulty': difficulty} for prompt, difficulty in zip(ns['prompts'], (2, 3, 2, 3))]
    ns.update(bandit_temperature=0.1, prompts=rows, orders={level: Order([(1.0, range(level - 2, 4, 2))], 0) for level in (2, 3)},
              recent={2: [9.0] * 299, 3: []}, eval_rows=rows[:1], random_stream=lambda *_: types.SimpleNamespace(choice=lambda *_, **__: [0, 1]))
    groups = sampled(ns, [1, 0, 0, 0], [1, 1, 0, 0])
    assert [group.prompt['difficulty'] for group in groups] == [2, 3]
    assert ns['recent'] == {2: [9.0] * 296 + [0.75, 0.25, 0.25, 0.25], 3: [0.5] * 4}
    known = {level: list(values) for level, values in ns['recent'].items()}
    ns.update(verify_all=lambda tasks: [(1.0, False) for _ in tasks], completion_text=lambda *_: '', generate=lambda *_: [[{'ids': [5]}]])
    ns['evaluate']()
    assert ns['recent'] == known


def check_rf_nll(ns):
    """Rewards (0, 0, 0, 0): the demonstration is learned; (0, 1, 1, 0): the second completion, of two tokens, and nothing else."""
    ns.update(gamma=0.0, sft_coef=1.0)
    groups = sampled(ns, [0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1], lengths=[1, 1, 1, 1, 1, 2, 3, 4, 7, 1, 1, 1])
    assert advantages(groups) == [[0.0] * 4] * 3
    learned = ns['demonstrations_of'](groups)
    shown = groups[0].prompt['demonstration']
    assert [d.ids for d in learned] == [shown, [5, 5], [5] * 7]
    assert [d.prompt_ids is group.prompt['ids'] for d, group in zip(learned, groups)] == [True] * 3
    # the share of demonstrations that the log has
    assert [group.learns_demonstration for group in groups] == [True, False, False]

    # the gradient of sft.py: minus one over the number of tokens, for each of them
    n_tokens = len(shown) + 2 + 7
    scored = 0
    for micro in ns['micro_batches_of'](groups):
        logprobs = torch.full((len(micro['index']),), -0.7, requires_grad=True)
        ns['policy_loss'](logprobs, torch.zeros_like(logprobs), micro)[0].backward()
        assert logprobs.grad.tolist() == pytest.approx([-1 / n_tokens] * len(logprobs))
        scored += len(logprobs)
    assert scored == n_tokens

    # a completion that was cut is not learned, though it is right
    def cut_first(*arguments, **options):
        return [[{'ids': [5, 6], 'logprobs': torch.zeros(2), 'stopped': i == 3} for i in range(4)] for _ in range(2)]
    for stopped_one, ids in ((1.0, [[5, 6]] * 2), (0.0, [])):
        ns.update(group_size=4, generate=cut_first, completion_text=lambda *_: '',
                  verify_all=lambda tasks, last=stopped_one: [(1.0 if i % 4 < 3 else last, False) for i in range(len(tasks))])
        groups = ns['rollout']([0, 1], 0)
        assert [d.ids for d in ns['demonstrations_of'](groups)] == ids and advantages(groups) == [[0.0] * 4] * 2
    # off: HPT
    ns.update(rf_nll=False)
    groups = sampled(ns, [0, 0, 0, 0], [0, 1, 1, 0])
    assert advantages(groups) == [[0.0] * 4, [-0.5, 0.5, 0.5, -0.5]] and len(ns['demonstrations_of'](groups)) == 1


@pytest.mark.parametrize('name', ['oblr_po', 'dump', 'rf_nll'])
def test_diff_does_what_its_paper_says(name, patched, namespaces):
    """With hand-worked numbers, which the code as it is does not give."""
    only_with_the_diff(name, globals()[f'check_{name}'], patched, namespaces)


@pytest.mark.parametrize('name, script, off', [
    ('oblr_po', 'grpo.py', '--baseline_weight=none'), ('dump', 'grpo.py', '--bandit_temperature=0'), ('rf_nll', 'hpt.py', '--rf_nll=False')])
def test_off_is_the_code_as_it_is(rows, start_model, tmp_path, patched, name, script, off):
    """To the bit; and on is not."""
    flags = [f'--model={start_model}', f'--data={rows}']
    as_it_is = weights_of(os.path.join(ROOT, script), tmp_path / '0', *flags)
    assert weights_of(patched(name) / script, tmp_path / '1', *flags, off) == as_it_is
    assert weights_of(patched(name) / script, tmp_path / '2', *flags) != as_it_is


def test_dump_resumes_exactly_and_two_ranks_take_the_same_prompts(rows, start_model, tmp_path, patched):
    """What the bandit knows is in the checkpoint: stopped after two steps and resumed, a run ends in the same bytes."""
    script = str(patched('dump') / 'grpo.py')
    flags = [f'--model={start_model}', f'--data={rows}', '--eval_prompts=', '--prompts_per_step=6', '--group_size=4', '--max_new_tokens=24',
             '--sample_every=0', '--warmup_steps=1', '--advantage_std=False', '--resample_rounds=1']
    whole, parts, ranks = (tmp_path / name for name in ('whole', 'parts', 'ranks'))
    run_inside(script, *flags, '--max_steps=4', f'--out_dir={whole}')
    run_inside(script, *flags, '--max_steps=2', f'--out_dir={parts}')
    run_inside(script, *flags, '--max_steps=4', f'--out_dir={parts}', '--resume=True')
    assert (whole / 'model.safetensors').read_bytes() == (parts / 'model.safetensors').read_bytes()
    launch(script, *flags, '--max_steps=4', f'--out_dir={ranks}', ranks=2)
    states = [torch.load(folder / 'state' / 'shared.pt', weights_only=False)['bandit'] for folder in (whole, parts, ranks)]
    assert states[0] == states[1] and sorted(states[0]) == list(range(2, 11))
    assert {level: position for level, (position, _) in states[2].items()} == {level: position for level, (position, _) in states[0].items()}
    assert sum(position for position, _ in states[0].values()) >= 24 and len(set(map(str, states[0].values()))) > 1
    assert [record['reward/mean'] for record in read_log(whole)] == pytest.approx([record['reward/mean'] for record in read_log(ranks)])


# --- the variance under a baseline ----------------------------------------------
def test_baselines_of_a_prompt_and_of_the_others():
    rewards, weights = torch.tensor([[1.0, 0, 0, 1]]), torch.tensor([[1.0, 2, 3, 2]])
    assert gradient_variance.baseline(rewards, weights, others=False).item() == 3 / 8
    assert gradient_variance.baseline(rewards, weights, others=True).tolist() == near([[2 / 7, 3 / 6, 3 / 5, 1 / 6]])
    assert gradient_variance.baseline(rewards, torch.ones(1, 4), others=True).tolist() == near([[1 / 3, 2 / 3, 2 / 3, 1 / 3]])


def test_variance_of_a_group_s_gradient():
    """Means of (2, 0), (0, 2) and (1, 1): variance 1 in each of both weights; one weight that does not vary adds nothing."""
    gradients = torch.tensor([[[4.0, 0.0, 3.0], [0, 0, 3]], [[0, 4, 3], [0, 0, 3]], [[2, 2, 3], [0, 0, 3]]])
    assert gradient_variance.variance(torch.ones(3, 2), gradients) == pytest.approx(2)
    # an advantage of 0 takes a completion out: means of (2, 0, 1.5), (0, 0, 1.5) and (0, 0, 1.5)
    assert gradient_variance.variance(torch.tensor([[1.0, 0], [0, 1], [0, 1]]), gradients) == pytest.approx(4 / 3)


def test_weights_are_squared_norms_of_gradients():
    policy = Policy(load_model('tiny', 'cpu'))
    prompt, ids = [7, 8, 9], [20, 21, 22, 23]
    weights, gradient = gradient_variance.weights_and_gradient(policy, prompt, ids)
    plain = load_model('tiny', 'cpu', attention='sdpa')
    plain.load_state_dict(policy.model.state_dict())
    logits = plain(torch.tensor([prompt + ids])).logits[0, 2:-1]
    logits.retain_grad()
    torch.log_softmax(logits, -1)[range(4), ids].sum().backward()
    whole = torch.cat([p.grad.flatten() for p in plain.parameters()])
    assert torch.allclose(gradient, whole, atol=1e-5)
    assert weights.tolist() == pytest.approx([1, 4, logits.grad.square().sum().item(), whole.square().sum().item()], rel=1e-4)


def test_table_of_variances(monkeypatch, start_model, rows, tmp_path):
    """Relative to the mean's. With what all completions say the exact weights have the least second moment; it has all measured keys."""
    inside(monkeypatch, 'papers/baseline_variance.py', f'--model={start_model}', f'--data={rows}', '--n_prompts=5', '--n_groups=3', '--group_size=4',
           '--max_new_tokens=24', f'--out_dir={tmp_path}')
    record, = read_log(tmp_path)
    keys = papers_run.header_of(PAPERS['baseline_variance'])['measure'].split(', ')
    assert record['all/mean'] == record['others/mean'] == 1 and set(keys) < set(record)
    assert all(math.isfinite(record[key]) and record[key] > 0 for key in keys) and len({record[key] for key in keys}) == 6


# --- forgetting -----------------------------------------------------------------
def test_rows_of_some_levels(monkeypatch, tmp_path):
    """As they were, for sft.py and for grpo.py."""
    out = tmp_path / 'new' / 'rows.jsonl'
    inside(monkeypatch, 'papers/levels.py', '--data=sums:tune', '--levels=7,10', f'--out={out}')
    made = [json.loads(line) for line in open(out)]
    assert made == [row for row in task_rows('sums:tune') if row['difficulty'] in (7, 10)] and len(made) > 20
    tokenizer = load_tokenizer('tiny')
    assert len(sft_examples(read_rows(str(out))[0], tokenizer, 256)[0]) == len(rl_prompts(read_rows(str(out))[0], tokenizer, 256)[0]) == len(made)
    rows = [{'difficulty': 'Level 3'}, {'difficulty': 3.0}, {'level': 3}, {}, {'difficulty': 'hard'}]
    assert levels.of_levels(rows, ['hard']) == rows[4:] and rows[1] in levels.of_levels(rows, ['3'])


def test_forgetting(monkeypatch, tmp_path):
    """Old levels fall from 0.8, at the end of the first run, to 0.5; the new one rises to 0.6. Lines of training steps are left out."""
    def evaluation(step, *scores):
        return {'step': step, 'eval/pass@1': 0.5, **dict(zip(('eval/pass@1/2', 'eval/pass@1/3', 'eval/pass@1/7'), scores))}
    for name, records in (('first', [evaluation(3, 0.1, 0.1, 0.1), evaluation(6, 1.0, 0.6, 0.0)]), ('second', [evaluation(5, 0.7, 0.3, 0.2), evaluation(9, 0.8, 0.2, 0.6)])):
        (tmp_path / name).write_text('\n'.join(map(json.dumps, [records[0], {'step': 4, 'loss': 2.0}, records[1]])))
    inside(monkeypatch, 'papers/forgetting.py', f'--first={tmp_path}/first', f'--second={tmp_path}/second', '--old=2,3', '--new=7', f'--out_dir={tmp_path}/out')
    half, end = read_log(tmp_path / 'out')
    assert half == pytest.approx({'step': 5, 'eval/old': 0.5, 'eval/new': 0.2, 'eval/forgotten': 0.3})
    assert end == pytest.approx({'step': 9, 'eval/old': 0.5, 'eval/new': 0.6, 'eval/forgotten': 0.3})
    assert set(papers_run.header_of(PAPERS['rl_forgets_less'])['measure'].split(', ')) == set(end) - {'step'}


# --- CodeBoost ------------------------------------------------------------------
@pytest.mark.parametrize('completion, accuracy, present', [
    ('<stdout>\n3\n4\n</stdout>\n<stderr>\na\nb\n</stderr>', 0.5 + 0.25 / 3, 1),  # {a, b} against {b, c}
    ('<stdout>3\n4</stdout><stderr>c\nb</stderr>', 0.75, 1),
    ('<stdout>\n3\n4\n</stdout>', 0.5, 0.5),
    ('<stdout>\n3\n4 \n</stdout><stderr>b\nc\nc</stderr>', 0.25 * 2 / 3, 1),  # a line twice is two lines
    ('<stdout>\n</stdout><stderr></stderr>', 0, 1),
    ('<stdout>5</stdout> no, <stdout>3\n4</stdout>', 0.5, 0.5),
    ('<think><stdout>3\n4</stdout></think><stderr>\nb\nc\n</stderr>', 0.25, 0.5),
    ('<stdout><stdout>3\n4</stdout>', 0.5, 0.5),
    ('3\n4', 0, 0), ('<stdout>3\n4', 0, 0), ('', 0, 0)])
def test_reward_of_a_prediction(completion, accuracy, present):
    truth = json.dumps({'stdout': '3\n4\n', 'stderr': 'b\nc\n'})
    assert codeboost.reward(completion, truth) == pytest.approx(0.9 * accuracy + 0.1 * present if present else 0)


def test_reward_without_errors_and_of_a_masked_line():
    """Two empty stderrs agree; a missing block never does."""
    truth = json.dumps({'stdout': '\nok\n', 'stderr': ''})
    assert codeboost.reward('<stdout>\n\nok\n</stdout><stderr>\n</stderr>', truth) == pytest.approx(0.9 * 0.75 + 0.1)
    assert codeboost.reward('<stdout>ok</stdout>', truth) == pytest.approx(0.9 * 0.5 + 0.05)
    assert codeboost.reward('<stdout>ok</stdout><stderr>x</stderr>', truth) == pytest.approx(0.9 * 0.5 + 0.1)
    truth = json.dumps({'line': '    return x'})
    assert [codeboost.reward(f'<line>{line}</line>', truth) for line in ('return x', '\n    return x\n', 'return y')] == pytest.approx([1, 1, 0.1])
    assert codeboost.reward('return x', truth) == 0


def test_what_a_snippet_prints():
    """In the real sandbox: the traceback without the folder's name; a limit is no output."""
    stdout, stderr = codeboost_run.outputs_of('import sys\nprint(3)\nprint("é", file=sys.stderr)\n1 / 0\n')
    assert stdout == '3\n'
    assert stderr.splitlines()[:3] == ['é', 'Traceback (most recent call last):', '  File "main.py", line 4, in <module>']
    assert stderr.endswith('ZeroDivisionError: division by zero\n')
    assert codeboost_run.outputs_of('print(') == ('', codeboost_run.outputs_of('print(')[1]) and 'SyntaxError' in codeboost_run.outputs_of('print(')[1]
    assert codeboost_run.outputs_of('print("x" * 2 ** 22)') is None


def test_snippets_without_near_copies():
    """b is like a and like c, which are not alike: the largest set is a and c, though b comes first."""
    a, b, c = ('one two three four five six seven eight', 'one two three four five six seven eight nine ten', 'four five six seven eight nine ten')
    assert codeboost_distinct.distinct([b, a, c], 0.5) == [a, c]
    # 4 of 6 5-grams are shared with a, 3 of 6 with c; of two that are alike the first is kept
    assert codeboost_distinct.distinct([b, a, c], 0.6) == [b, c] and codeboost_distinct.distinct([b, a, c], 0.7) == [b, a, c]
    assert codeboost_distinct.distinct(['x = 1', 'x = 1', 'x = 2'], 0.5) == ['x = 1', 'x = 2']


def test_rows_of_snippets(monkeypatch, tmp_path):
    """The three scripts, one after the other: grpo.py reads the rows, and what the program printed has the highest reward."""
    monkeypatch.chdir(ROOT)
    codes = ['def f(x):\n\n    return x + 1\nprint(f(2))', 'def f(x):\n\n    return x + 1\nprint(f(2))', 'import time\nprint(time.time_ns())',
             'print(1)\nraise ValueError("no")', 'while True: pass', 'for i in range(3):\n    print(i * i)']
    files = [tmp_path / name for name in ('0.jsonl', '1.jsonl', '2.jsonl', '3.jsonl')]
    files[0].write_text('\n'.join(json.dumps({'code': code}) for code in codes))
    monkeypatch.setattr('rewards.sandbox.run_program', quick(codeboost_run.run_program))
    inside(monkeypatch, 'papers/codeboost_distinct.py', f'--data={files[0]}', f'--out={files[1]}')
    inside(monkeypatch, 'papers/codeboost_run.py', f'--data={files[1]}', f'--out={files[2]}')
    ran = [json.loads(line) for line in open(files[2])]
    assert [(row['code'], row['stdout']) for row in ran] == [(codes[0], '3\n'), (codes[3], '1\n'), (codes[5], '0\n1\n4\n')]
    for share in (0, 1):
        inside(monkeypatch, 'papers/codeboost_rows.py', f'--data={files[2]}', f'--fill_share={share}', f'--out={files[3]}')
        prompts, report = rl_prompts(read_rows(str(files[3]))[0], load_tokenizer('tiny'), 1024)
        assert len(prompts) == 3 and not report['dropped']
        for prompt, row in zip(prompts, ran):
            truth = json.loads(prompt['truth'])
            right = ''.join(f'<{name}>\n{text}\n</{name}>' for name, text in truth.items())
            assert verify(prompt['kind'], right, prompt['truth']) == pytest.approx(1 if share else 0.775)
            if share:
                # the masked program with the line in it is the program
                assert row['code'] in prompt['text'].replace('???\n', truth['line'] + '\n').replace('???', 'masked', 1) or \
                    row['code'] in prompt['text'].replace('\n???', '\n' + truth['line'])
                assert truth['line'].strip() and row['stdout'] in prompt['text']
            else:
                assert row['code'] in prompt['text'] and truth == {'stdout': row['stdout'], 'stderr': row['stderr']}


def quick(run_program):
    """The sandbox with a second's limit where codeboost_run.py has ten."""
    def limited(*arguments, **options):
        return run_program(*arguments, **(options | ({'seconds': 1} if 'seconds' in options else {})))
    return limited
