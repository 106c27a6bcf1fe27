"""papers/: the weighted losses of SFT, EWC, sparse pretraining, Mix-LN, and the rows and recipes that go with them."""
import json
import math
import os
import random
import types

import numpy as np
import pytest
import torch
from conftest import ROOT
from paper_tools import FOLDER, PAPERS, TINY, TWO_STEPS, load, only_with_the_diff, run_inside, weights_of
from safetensors.torch import load_file

import configurator
from data import load_tokenizer, sft_examples
from embedded import task_rows
from model import TokenLogprobs, token_divergences
from rows import read_rows
from verify import verify


# --- the loss of sft.py -----------------------------------------------------------
def loss_of(ns, logprobs, doc=None, others=None, supervised=None):
    """accumulate_gradients on one micro-batch: (loss, its gradient by log-prob). `others` are the log-probs of a second model."""
    leaf = torch.tensor(logprobs).requires_grad_()
    ns['forward'] = lambda module, micro: (leaf if module is ns['ddp'] else torch.tensor(others), None)
    loss = ns['accumulate_gradients']([{'doc': torch.tensor(doc or [0] * len(leaf))}], supervised or len(leaf))
    return loss, leaf.grad.tolist()


def gradient_of(ns, micro_batches=None):
    """The gradient of the real model on the four rows, one vector."""
    batch = ns['examples']
    ns['accumulate_gradients'](micro_batches or ns['micro_batches_of'](batch), ns['supervised_tokens_of'](batch))
    gradient = torch.cat([p.grad.flatten() for p in ns['trained']])
    ns['optimizer'].zero_grad()
    return gradient


def close(a, b):
    """Two vectors, to float32."""
    return (a - b).norm() < 1e-5 * b.norm()


def logs(*probs):
    return [math.log(p) for p in probs]


def sft_gradient(ns):
    """What sft.py as it is gives."""
    micro, = ns['micro_batches_of'](ns['examples'])
    logprobs, _ = ns['policy'](micro['ids'], micro['lengths'], micro['index'])
    (-logprobs.sum() / len(logprobs)).backward()
    gradient = torch.cat([p.grad.flatten() for p in ns['trained']])
    ns['optimizer'].zero_grad()
    return gradient


# --- what each paper changes --------------------------------------------------------
def check_dft(ns):
    """p = 0.5, 0.8, 0.25: the mean of -p log p, where SFT has 0.76753; its gradient by log p is -p / 3."""
    whole_batch = gradient_of(ns)
    parts = [micro for example in ns['examples'] for micro in ns['micro_batches_of']([example])]
    assert close(gradient_of(ns, parts), whole_batch)
    loss, gradient = loss_of(ns, logs(0.5, 0.8, 0.25))
    assert loss == pytest.approx(0.29055, abs=1e-5)
    assert gradient == pytest.approx([-0.5 / 3, -0.8 / 3, -0.25 / 3])


def logits_model(logits):
    """What Policy is with a vocabulary of two words and the logits themselves as hidden states; the token is word 0."""
    def policy(ids, lengths, index, target=None, only_hidden=False):
        if only_hidden:
            return logits
        scores = TokenLogprobs.apply(logits, torch.eye(2), torch.zeros(1, dtype=torch.long), 1.0, torch.float32)
        return scores if target is None else (*scores, token_divergences(logits, torch.eye(2), target, 1.0, torch.float32))
    policy.model = types.SimpleNamespace(get_output_embeddings=lambda: types.SimpleNamespace(weight=torch.eye(2)))
    return policy


def check_asft(ns):
    """Two words, policy (0.8, 0.2), start model (0.5, 0.5): the KL is 0.22314; without the anchor the loss is DFT's."""
    # a policy that is still the start model has no KL and none of its gradient; one that is not has
    anchored = gradient_of(ns)
    anchor = ns['anchor']
    ns['anchor'] = None
    assert close(anchored, gradient_of(ns))
    ns['anchor'] = anchor
    with torch.no_grad():
        for p in ns['trained']:
            p.mul_(1.1)
    anchored = gradient_of(ns)
    ns['anchor'] = None
    assert not close(anchored, gradient_of(ns))
    with torch.no_grad():
        for p in ns['trained']:
            p.div_(1.1)

    logits = torch.tensor([logs(0.8, 0.2)]).requires_grad_()
    ns.update(ddp=logits_model(logits), policy=None, anchor=logits_model(torch.tensor([logs(0.5, 0.5)])))
    ns['policy'] = ns['ddp']  # one rank
    micro = {'ids': None, 'lengths': None, 'index': None, 'doc': torch.zeros(1, dtype=torch.long)}
    for coef, dft, loss, by_logit in ((0.05, True, 0.8 * 0.22314 + 0.05 * 0.22314, 0.8 * -0.2 + 0.05 * 0.3),
                                      (0.05, False, 0.22314 + 0.05 * 0.22314, -0.2 + 0.05 * 0.3), (0.0, True, 0.8 * 0.22314, 0.8 * -0.2)):
        ns.update(anchor_coef=coef, dft=dft)
        logits.grad = None
        assert ns['accumulate_gradients']([micro], 1) == pytest.approx(loss, abs=1e-5)
        assert logits.grad.flatten().tolist() == pytest.approx([by_logit, -by_logit], abs=1e-6)


def check_pear(ns):
    """Log-ratios 0.5, -0.2, 0.1 are clipped to 0.3, -0.08, 0.1; a second document is packed behind them."""
    ratios, doc = [0.5, -0.2, 0.1, 0.1, -0.5], [0, 0, 0, 1, 1]
    expected = {
        'token': [math.exp(0.02) * 0.999 ** 2, math.exp(0.1) * 0.999, 1, math.exp(-0.08) * 0.999, 1],
        'block': [math.exp(0.1) * 0.999] * 2 + [1] * 3,
        'sequence': [math.exp(0.32)] * 3 + [math.exp(0.02)] * 2}
    assert expected['token'][:2] == pytest.approx([1.01816, 1.10407], abs=1e-5)
    assert expected['sequence'][0] == pytest.approx(1.37713, abs=1e-5)
    for form, weights in expected.items():
        ns.update(pear=form, pear_block=2)
        assert ns['pear_weights'](torch.tensor(ratios), torch.tensor(doc)).tolist() == pytest.approx(weights)
        # the writer is known: log-probs -1 and ratios as above; no gradient goes through a weight
        ns['writer'] = 'writer'
        own = [-1 + ratio for ratio in ratios]
        loss, gradient = loss_of(ns, own, doc, others=[-1.0] * 5, supervised=10)
        assert gradient == pytest.approx([-weight / 10 for weight in weights])
        assert loss == pytest.approx(-sum(weight * logprob for weight, logprob in zip(weights, own)) / 10)
        # a program wrote it: log-prob 0
        ns['writer'] = None
        _, gradient = loss_of(ns, [-0.05, -3.0, -0.01], supervised=3)
        whole_document = math.exp(-0.14)
        assert gradient[0] == pytest.approx(-{'token': math.exp(-0.09) * 0.999 ** 2, 'block': math.exp(-0.01) * 0.999, 'sequence': whole_document}[form] / 3)
    # not below exp(-10), not above exp(5)
    ns['pear'] = 'sequence'
    for ratio, bound in ((-1.0, -10), (1.0, 5)):
        assert ns['pear_weights'](torch.full((200,), ratio), torch.zeros(200, dtype=torch.long)).log().tolist() == pytest.approx([bound] * 200)
    # where policy and writer agree it is SFT
    ns['writer'] = 'writer'
    _, gradient = loss_of(ns, logs(0.5, 0.8, 0.25), others=logs(0.5, 0.8, 0.25))
    assert gradient == pytest.approx([-1 / 3] * 3)


def check_implicit_reward(ns):
    """Rewards 0.5, 2, -0.2: 5 times the mean log-ratio of each document. At the start all weights are 1."""
    for form in ('chi2', 'hellinger'):
        ns['f_divergence'] = form
        assert close(gradient_of(ns), sft_gradient(ns))
    ratios, doc = [0.05, 0.15, 0.4, -0.04, -0.04, -0.04], [0, 0, 1, 2, 2, 2]
    for form, (a, b, c) in {'chi2': (0.75, 0, 1.1), 'hellinger': (0.44444, 0.11111, 1.5625)}.items():
        ns.update(f_divergence=form, reward_beta=5.0)
        weights = [a, a, b, c, c, c]
        assert ns['reward_weights'](torch.tensor(ratios), torch.tensor(doc)).tolist() == pytest.approx(weights, abs=1e-5)
        _, gradient = loss_of(ns, [-1 + ratio for ratio in ratios], doc, others=[-1.0] * 6)
        assert gradient == pytest.approx([-weight / 6 for weight in weights], abs=1e-5)
    # chi2 does not unlearn beyond its top, Hellinger's slope is finite
    assert ns['reward_weights'](torch.tensor([-1.0]), torch.tensor([0])).item() == pytest.approx(100, rel=1e-4)
    ns['f_divergence'] = 'chi2'
    assert ns['reward_weights'](torch.tensor([1.0]), torch.tensor([0])).item() == 0


def check_ewc(ns):
    """Importance 4, 0.5 from the old weight, strength 0.3: the gradient of 0.3 x 4 x 0.25 is 1.2."""
    p = torch.nn.Parameter(torch.tensor([1.5, 1.0]))
    p.grad = torch.tensor([0.1, 0.1])
    ns.update(trained=[p], old_weights=[torch.tensor([1.0, 1.0])], importance=[torch.tensor([4.0, 4.0])], ewc=0.3)
    ns['pull_back']()
    assert p.grad.tolist() == pytest.approx([1.3, 0.1])


def check_spdf(ns):
    """Three quarters of each matrix of the layers are 0, all others as they were; an update does not fill them."""
    layers = list(ns['policy'].model.base_model.layers.parameters())
    matrices = [p for p in layers if p.dim() == 2]
    zeros = [p == 0 for p in matrices]
    assert all(zero.float().mean().item() == pytest.approx(0.75, abs=0.02) for zero in zeros)
    assert (ns['policy'].model.get_input_embeddings().weight == 0).float().mean() < 0.01
    assert all((p == 1).all() for p in layers if p.dim() == 1)
    # each matrix has a mask of its own
    same_shape = [zero for zero in zeros if zero.shape == zeros[0].shape]
    assert (same_shape[0] == same_shape[1]).float().mean() < 0.7
    with torch.no_grad():
        for p in matrices:
            p.add_(1)
    ns['keep_sparse']()
    assert all(((p == 0) == zero).all() for p, zero in zip(matrices, zeros))


def outputs_of_layers(ns):
    """[(input, attention, output of the MLP, output)] of each layer, on a few tokens."""
    seen = []
    hooks = []
    for layer in ns['policy'].model.base_model.layers:
        record = {}
        seen.append(record)
        hooks += [
            layer.register_forward_pre_hook(lambda _, inputs, record=record: record.update(x=inputs[0])),
            layer.self_attn.register_forward_hook(lambda _, __, output, record=record: record.update(attention=output[0])),
            layer.mlp.register_forward_hook(lambda _, __, output, record=record: record.update(mlp=output)),
            layer.register_forward_hook(lambda _, __, output, record=record: record.update(output=output))]
    micro, = ns['micro_batches_of'](ns['examples'])
    with torch.no_grad():
        ns['policy'](micro['ids'], micro['lengths'], micro['index'])
    for hook in hooks:
        hook.remove()
    return [(record['x'], record['attention'], record['mlp'], record['output']) for record in seen]


def normed(x):
    return x / x.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()


def check_mix_ln(ns):
    """The first layer of four divides by the root mean square behind each of its two sums, the others add only."""
    (x, attention, mlp, output), *others = outputs_of_layers(ns)
    assert torch.allclose(output, normed(normed(x + attention) + mlp), atol=1e-5)
    assert torch.allclose(output.pow(2).mean(-1), torch.ones(output.shape[:-1]), atol=1e-3)
    assert len(others) == 3
    for x, attention, mlp, output in others:
        assert torch.allclose(output, x + attention + mlp, atol=1e-5)


NAMES = [name.removeprefix('check_') for name in globals() if name.startswith('check_')]


@pytest.mark.parametrize('name', NAMES)
def test_diff_does_what_its_paper_says(name, patched, namespaces):
    """With hand-worked numbers, which the code as it is does not give."""
    only_with_the_diff(name, globals()[f'check_{name}'], patched, namespaces)


@pytest.mark.parametrize('name, off', [
    ('asft', ['--anchor_coef=0', '--dft=False']), ('pear', ['--pear=']), ('implicit_reward', ['--f_divergence=tv']),
    ('ewc', ['--ewc=0', '--old_data={rows}']), ('ewc', []), ('spdf', ['--sparsity=0']), ('mix_ln', ['--post_norm_layers=0'])])
def test_a_knob_that_is_off_is_the_code_as_it_is(name, off, rows, tmp_path, patched):
    """To the bit."""
    flags = ['--model=tiny', f'--data={rows}']
    assert (weights_of(str(patched(name) / 'sft.py'), tmp_path / '0', *flags, *[flag.format(rows=rows) for flag in off])
            == weights_of(os.path.join(ROOT, 'sft.py'), tmp_path / '1', *flags))


def test_asft_without_anchor_is_dft(rows, tmp_path, patched):
    """To the bit; and with it another."""
    flags = ['--model=tiny', f'--data={rows}']
    dft = weights_of(str(patched('dft') / 'sft.py'), tmp_path / 'dft', *flags)
    assert weights_of(str(patched('asft') / 'sft.py'), tmp_path / '0', *flags, '--anchor_coef=0') == dft
    assert weights_of(str(patched('asft') / 'sft.py'), tmp_path / '5', *flags, '--anchor_coef=5') != dft


@pytest.mark.parametrize('name, flags', [
    ('asft', []), ('asft', ['--lora_rank=2']), ('pear', ['--behaviour={model}']), ('pear', ['--pear=block']), ('pear', ['--pear=sequence']),
    ('implicit_reward', ['--f_divergence=hellinger']), ('implicit_reward', ['--lora_rank=2'])])
def test_other_settings_train(name, flags, rows, start_model, tmp_path, patched):
    weights_of(str(patched(name) / 'sft.py'), tmp_path, f'--model={start_model}', f'--data={rows}', *[flag.format(model=start_model) for flag in flags])


# --- EWC, sparse pretraining, Mix-LN: what is around their functions -------------------
def test_importance_is_the_mean_of_squared_gradients_of_batches_of_eight(rows, namespaces, patched):
    """200 rows are 25 batches; the start model's weights are kept."""
    ns = namespaces(str(patched('ewc') / 'sft.py'), f'--old_data={rows}')
    old = ns['old_rows']
    expected = 0
    for begin in range(0, 200, 8):
        batch = old[begin:begin + 8]
        ns['accumulate_gradients'](ns['micro_batches_of'](batch), ns['supervised_tokens_of'](batch))
        expected += torch.cat([p.grad.flatten() for p in ns['trained']]) ** 2 / 25
        ns['optimizer'].zero_grad()
    assert len(old) == 200 and expected.max() > 0
    assert close(torch.cat([f.flatten() for f in ns['importance']]), expected)
    assert all((p == old).all() for p, old in zip(ns['trained'], ns['old_weights']))


def test_ewc_pulls_back_in_training(rows, start_model, tmp_path, patched):
    """Without momentum an update is the sign of the gradient: with a strong pull the second one takes the first one back."""
    old = load_file(f'{start_model}/model.safetensors')
    far = []
    for name, ewc in (('weak', 0.3), ('strong', 1e12)):
        weights_of(str(patched('ewc') / 'sft.py'), tmp_path / name, f'--model={start_model}', f'--data={rows}', f'--old_data={rows}', f'--ewc={ewc}',
                   '--schedule=constant', '--beta1=0', '--beta2=0')
        new = load_file(tmp_path / name / 'model.safetensors')
        far.append(sum((new[key] - old[key]).pow(2).sum() for key in old).sqrt().item())
    assert far[1] < 0.3 * far[0]


def test_zeros_stay_through_training_and_are_free_afterwards(rows, tmp_path, patched):
    """The model that is written is sparse; dense fine-tuning fills it."""
    path = str(patched('spdf') / 'sft.py')
    weights_of(path, tmp_path / 'sparse', '--model=tiny', f'--data={rows}')
    weights_of(path, tmp_path / 'dense', f'--model={tmp_path}/sparse', f'--data={rows}', '--sparsity=0')
    weights_of(path, tmp_path / 'again', f'--model={tmp_path}/sparse', f'--data={rows}')
    sparse, dense, again = [load_file(tmp_path / name / 'model.safetensors') for name in ('sparse', 'dense', 'again')]
    name = 'model.layers.3.mlp.up_proj.weight'
    assert (sparse[name] == 0).float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert (dense[name] == 0).float().mean() < 0.01
    # of one seed the masks are the same, and the rest of the weights is trained
    assert ((again[name] == 0) == (sparse[name] == 0)).all() and (again[name] != sparse[name]).any()


@pytest.mark.parametrize('name, flags, words', [
    ('spdf', ['--shard=all', '--eval_prompts='], 'sparsity needs whole weights: --shard=optimizer'),
    ('mix_ln', ['--eval_prompts=sums:test'], 'decodes pre-norm layers only: say --eval_prompts=')])
def test_what_would_silently_go_wrong_is_refused(rows, tmp_path, patched, name, flags, words):
    """Masks of weights that are divided among ranks; completions of a model that the sampler runs otherwise."""
    # (the tree's UserError is another class than the one here)
    with pytest.raises(Exception, match=words):
        run_inside(str(patched(name) / 'sft.py'), '--model=tiny', f'--data={rows}', '--eval_data=', *flags, f'--out_dir={tmp_path}')


def test_post_norm_model_is_not_written(rows, tmp_path, patched, namespaces, capsys):
    path = str(patched('mix_ln') / 'sft.py')
    run_inside(path, *TINY['sft'], *TWO_STEPS, '--model=tiny', f'--data={rows}', f'--out_dir={tmp_path}')
    assert not os.path.exists(tmp_path / 'model.safetensors')
    assert 'post_norm_layers 1: no model is written' in capsys.readouterr().out
    for x, attention, mlp, output in outputs_of_layers(namespaces(path, '--post_norm_layers=4')):
        assert torch.allclose(output, normed(normed(x + attention) + mlp), atol=1e-5)


# --- rows -----------------------------------------------------------------------------
def script_of(name):
    return load(os.path.join(FOLDER, f'{name}.py'), name)


def test_a_foreign_demonstration_is_as_long_and_as_right():
    pear_rows = script_of('pear_rows')
    row = {'prompt': '3+5+2', 'answer': '10', 'demonstration': '3 8 10 #### 10', 'dataset': 'sums'}
    assert pear_rows.from_the_right(row) == {**row, 'demonstration': '2 7 10 #### 10'}
    train = task_rows('sums:train')[:900]
    mixed = pear_rows.mixed(train, 0.5, random.Random(1))
    foreign = [new is not old for new, old in zip(mixed, train)]
    assert sum(foreign) == pytest.approx(450, abs=60)
    assert all(verify('sums', row['demonstration'], row['answer']) == 1 for row in mixed)
    words = [[len(row['demonstration'].split()) for row in rows] for rows in (mixed, train)]
    assert words[0] == words[1]
    assert pear_rows.mixed(train, 0, random.Random(1)) == train
    # sft.py reads them
    examples, _ = sft_examples([{**row, '_where': ''} for row in mixed], load_tokenizer('tiny'), 1024)
    assert len(examples) == 900


def test_rows_of_a_second_task(monkeypatch, tmp_path):
    """No prompt of the second task's test is trained; both tasks are told apart by difficulty."""
    replay_rows = script_of('replay_rows')
    row = {'prompt': '3+5+2', 'answer': '10', 'demonstration': '3 8 10 #### 10', 'dataset': 'sums', 'difficulty': 3}
    assert replay_rows.largest(row) == {**row, 'prompt': '3,5,2', 'answer': '5', 'demonstration': '#### 5'}
    files = replay_rows.files_of(task_rows('sums:train'), task_rows('sums:test'), 200)
    assert {name: len(rows) for name, rows in files.items()} == {'new': 8000, 'old': 200, 'test': 900}
    assert [row['difficulty'] for row in files['test']] == ['old'] * 450 + ['new'] * 450
    assert not {row['prompt'] for row in files['test']} & {row['prompt'] for row in files['new'] + files['old']}
    for rows in files.values():
        assert all(verify('sums', row['demonstration'], row['answer']) == 1 for row in rows)
        examples, _ = sft_examples([{**row, '_where': ''} for row in rows[:50]], load_tokenizer('tiny'), 1024)
        assert len(examples) == 50
    # in half of the rows of an epoch the recipe replays
    settings = settings_of('replay', 'sft')
    for name in files:
        (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, files[name])))
    _, sources = read_rows(settings['data'].replace('out/replay', str(tmp_path)))
    (_, new, *places), (_, old, *old_places) = sources
    assert new * np.diff(places) == old * np.diff(old_places) == 8000


# --- recipes --------------------------------------------------------------------------
def settings_of(name, script):
    """What a recipe sets behind config/papers/sums.py."""
    knobs = {'model': '', 'data': '', 'learning_rate': 0.0, 'max_steps': 0, 'eval_every': 0, 'eval_prompts': '', 'limit': 0, 'max_new_tokens': 0,
             'write': '', 'out': '', 'out_dir': ''}
    return configurator.read_file(PAPERS[name], ROOT, script, knobs)


def test_recipes_set_what_their_papers_change():
    assert settings_of('small_lr', 'sft')['learning_rate'] == pytest.approx(3e-4 / 10)
    sampled = settings_of('small_lr', 'sample')
    assert (sampled['model'], sampled['write'], sampled['out']) == ('out/sums_base', 'pairs', 'out/pairs.jsonl')
    assert 'learning_rate' not in settings_of('small_lr', 'dpo')
    assert settings_of('replay', 'sft')['model'] == 'out/first'
