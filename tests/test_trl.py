"""sft.py's, dpo.py's and grpo.py's own functions against TRL's trainers on the same tiny model and batch: loss and gradient.

Where definitions differ (not compared): TRL averages the SFT loss of one process over its own micro-batches unless
num_items_in_batch is given (given here); its GRPO default counts tokens as we do ('dapo'); its clip_high defaults to
clip_low; its std is the sample's with 1e-4 added, as ours; its KL is multiplied by the ratio, as ours; it computes
completions of groups without spread too, whose gradient is 0 (left out here); its completions come from transformers'
generate; its k3 is exp(d) - d - 1, which has no digits left where d is small (ours is expm1(d) - d);
its DPO has no cDPO and no SimPO (both are in its CPO trainer), and its 'sft' term is a mean over the tokens of the batch,
ours over each completion's own tokens as in the paper: compared on one pair.
"""
import os
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, before_loop
from transformers import AutoModelForCausalLM

trl = pytest.importorskip('trl')
datasets = pytest.importorskip('datasets')


def gradients_of(model):
    return [p.grad.clone() for p in model.parameters()]


def move_away(policy):
    """Changes every weight a little, in the same way each time."""
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.002 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))


def close(ours, theirs, loss, their_loss):
    assert loss == pytest.approx(their_loss, rel=1e-5, abs=1e-7)
    norm = torch.cat([g.flatten() for g in theirs]).norm()
    assert norm > 1e-4
    difference = torch.cat([(a - b).flatten() for a, b in zip(ours, theirs)]).norm()
    assert difference < 1e-5 * norm


def common(tmp_path):
    return dict(output_dir=str(tmp_path / 'trl'), report_to='none', use_cpu=True, bf16=False, save_strategy='no',
                gradient_checkpointing=False)


@pytest.mark.parametrize('denominator, loss_type, beta', [
    ('tokens', 'dapo', 0.0), ('sequences', 'grpo', 0.0), ('constant', 'dr_grpo', 0.0), ('tokens', 'dapo', 0.2)])
def test_grpo(monkeypatch, start_model, tmp_path, denominator, loss_type, beta):
    ns = before_loop(
        monkeypatch, 'grpo.py', f'--model={start_model}', '--data=sums:train', f'--out_dir={tmp_path / "ours"}', '--eval_prompts=',
        f'--loss_denominator={denominator}', f'--beta={beta}', '--temperature=0.8', '--max_new_tokens=24')
    groups = [group for group in ns['rollout'](list(range(24)), 0) if group.has_spread]  # the others are left out of our update
    assert len(groups) > 4
    (micro,) = ns['micro_batches_of'](groups)
    with torch.no_grad():
        move_away(ns['policy'])  # from the start model, so that ratio and KL are not trivial
        old_logprobs, _ = ns['forward'](ns['policy'], micro)
        n = len(old_logprobs)
        micro['old_logprobs'] = old_logprobs + 0.3 * torch.sin(torch.arange(n))  # some clipped
        if beta:
            micro['ref_logprobs'], _ = ns['forward'](ns['kl_reference'], micro)
            # TRL's exp(d) - d - 1 loses its digits where d is small: away from there (ours is expm1(d) - d)
            micro['ref_logprobs'] += 0.5 * torch.cos(torch.arange(n))
    statistics = ns['accumulate_gradients']([micro])
    assert 0 < statistics['clipped'] < n
    ours = gradients_of(ns['policy'])

    # the same documents, padded, through TRL
    starts = torch.tensor(micro['lengths']).cumsum(0) - torch.tensor(micro['lengths'])
    assert len(set(micro['parents'])) < len(micro['parents']) / 2  # prompts are shared here, and repeated in TRL's batch
    pad = lambda rows, left: torch.stack([  # noqa: E731
        torch.nn.functional.pad(r, (longest - len(r), 0) if left else (0, longest - len(r)))
        for longest in [max(map(len, rows))] for r in rows])
    prompts, completions, olds, refs = [], [], [], []
    children = [s for s, parent in enumerate(micro['parents']) if parent >= 0]  # segments: prompts, and completions of them
    for d, segment in enumerate(children):
        own, parent = micro['doc'] == d, micro['parents'][segment]
        prompts.append(micro['ids'][starts[parent]:starts[parent] + micro['lengths'][parent]])
        completions.append(micro['ids'][starts[segment]:starts[segment] + micro['lengths'][segment]])
        olds.append(micro['old_logprobs'][own])
        refs.append(micro['ref_logprobs'][own] if beta else torch.zeros(int(own.sum())))
    advantages = torch.stack([micro['advantage'][micro['doc'] == d][0] for d in range(len(prompts))])
    lm = AutoModelForCausalLM.from_pretrained(start_model, attn_implementation='sdpa', dtype=torch.float32)
    lm.load_state_dict(ns['policy'].model.state_dict())
    args = trl.GRPOConfig(**common(tmp_path), loss_type=loss_type, beta=beta, temperature=0.8, epsilon=0.2,
                          epsilon_high=0.28, max_completion_length=24, num_generations=8,
                          per_device_train_batch_size=8, model_init_kwargs=None)
    rows = datasets.Dataset.from_list([{'prompt': '1+1'}] * 8)
    trainer = trl.GRPOTrainer(lm, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args,
                              train_dataset=rows, processing_class=ns['tokenizer'])
    trainer.current_gradient_accumulation_steps = 1
    mask = pad([torch.ones(len(c)) for c in completions], False)
    inputs = {'prompt_ids': pad(prompts, True), 'prompt_mask': pad([torch.ones(len(p)) for p in prompts], True).long(),
              'completion_ids': pad(completions, False), 'completion_mask': mask.long(), 'advantages': advantages,
              'old_per_token_logps': pad(olds, False), 'ref_per_token_logps': pad(refs, False),
              'num_items_in_batch': mask.sum()}
    lm.train()
    loss = trainer.compute_loss(lm, inputs)
    loss.backward()
    close(ours, gradients_of(lm), statistics['loss'], loss.item())


def test_sft(monkeypatch, start_model, tmp_path):
    ns = before_loop(monkeypatch, 'sft.py', f'--model={start_model}', f'--out_dir={tmp_path / "ours"}',
                     '--eval_data=', '--eval_prompts=', '--micro_batch_tokens=100')
    batch = [ns['examples'][i] for i in ns['order'].take(16)]
    micro_batches = ns['micro_batches_of'](batch)
    assert len(micro_batches) > 1
    supervised_tokens = ns['supervised_tokens_of'](batch)
    our_loss = ns['accumulate_gradients'](micro_batches, supervised_tokens)
    ours = gradients_of(ns['policy'])
    lm = AutoModelForCausalLM.from_pretrained(start_model, attn_implementation='sdpa', dtype=torch.float32)
    rows = datasets.Dataset.from_list([{'input_ids': e['ids'].tolist(), 'labels': [
        int(i) if m else -100 for i, m in zip(e['ids'], e['mask'])]} for e in batch])
    args = trl.SFTConfig(**common(tmp_path), per_device_train_batch_size=16, max_length=None,
                         dataset_kwargs={'skip_prepare_dataset': True})
    trainer = trl.SFTTrainer(lm, args=args, train_dataset=rows, processing_class=ns['tokenizer'])
    longest = max(len(e['ids']) for e in batch)
    pad = lambda values, fill: torch.tensor([list(v) + [fill] * (longest - len(v)) for v in values])  # noqa: E731
    inputs = {'input_ids': pad([e['ids'].tolist() for e in batch], 0), 'labels': pad(rows['labels'], -100),
              'attention_mask': pad([[1] * len(e['ids']) for e in batch], 0)}
    lm.train()
    loss = trainer.compute_loss(lm, inputs, num_items_in_batch=torch.tensor(supervised_tokens))
    loss.backward()
    close(ours, gradients_of(lm), our_loss, loss.item())


@pytest.mark.parametrize('loss_type, theirs, beta, pairs, more', [
    ('dpo', ['sigmoid'], 0.1, 7, []), ('dpo_norm', ['sigmoid_norm'], 5.0, 7, []), ('ipo', ['ipo'], 0.1, 7, []),
    ('dpo', ['sigmoid', 'sft'], 0.1, 1, ['--sft_coef=0.7'])])
def test_dpo(monkeypatch, start_model, tmp_path, loss_type, theirs, beta, pairs, more):
    path = os.path.join(ROOT, 'tests/data/gsm8k_preference_sample.jsonl')
    ns = before_loop(
        monkeypatch, 'dpo.py', f'--model={start_model}', f'--out_dir={tmp_path / "ours"}', '--eval_prompts=', '--micro_batch_tokens=300',
        f'--data={path}', f'--loss_type={loss_type}', f'--beta={beta}', f'--batch_size={pairs}', *more)
    batch = ns['pairs'][:pairs]
    move_away(ns['policy'])  # from the reference, so that the ratios are not 1
    our_loss, _ = ns['accumulate_gradients'](ns['micro_batches_of'](batch))
    ours = gradients_of(ns['policy'])
    lm = AutoModelForCausalLM.from_pretrained(start_model, attn_implementation='sdpa', dtype=torch.float32)
    args = trl.DPOConfig(**common(tmp_path), per_device_train_batch_size=pairs, beta=beta, loss_type=theirs,
                         loss_weights=[1.0, 0.7][:len(theirs)], precompute_ref_log_probs=True, max_length=2000)
    rows = datasets.Dataset.from_list([{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}])
    trainer = trl.DPOTrainer(lm, args=args, train_dataset=rows, processing_class=ns['tokenizer'])
    lm.load_state_dict(ns['policy'].model.state_dict())
    documents = [pair['docs'][side] for side in (0, 1) for pair in batch]  # chosen first, then rejected, each whole
    longest = max(len(prompt) + len(ids) for ids, _, prompt in documents)
    pad = lambda row: torch.tensor([*row, *[0] * (longest - len(row))])  # noqa: E731
    inputs = {'input_ids': torch.stack([pad([*prompt, *ids]) for ids, _, prompt in documents]),
              'attention_mask': torch.stack([pad([1] * (len(prompt) + len(ids))) for ids, _, prompt in documents]),
              'completion_mask': torch.stack([pad([0] * len(prompt) + [1] * len(ids)) for ids, _, prompt in documents])}
    for i, side in enumerate(('chosen', 'rejected')):
        inputs[f'ref_{side}_logps'] = torch.tensor([pair['ref_logprobs'][i] for pair in batch])
    lm.train()
    loss = trainer.compute_loss(lm, inputs)
    loss.backward()
    close(ours, gradients_of(lm), our_loss, loss.item())


@pytest.mark.parametrize('loss_type, beta, gamma, smoothing', [('simpo', 2.0, 0.6, 0.0), ('simpo', 2.0, 0.6, 0.1), ('dpo', 0.1, 0.0, 0.2)])
def test_simpo_and_cdpo(monkeypatch, tmp_path, loss_type, beta, gamma, smoothing):
    """preference_loss against the loss of TRL's CPO trainer, which wants means for SimPO, sums for the other."""
    cpo = pytest.importorskip('trl.experimental.cpo').CPOTrainer
    path = os.path.join(ROOT, 'tests/data/gsm8k_preference_sample.jsonl')
    ns = before_loop(monkeypatch, 'dpo.py', '--model=tiny', f'--out_dir={tmp_path / "o"}', '--eval_prompts=',
                     f'--data={path}', f'--loss_type={loss_type}', f'--beta={beta}',
                     f'--label_smoothing={smoothing}', f'--gamma_beta_ratio={gamma / beta}')
    pairs = ns['pairs'][:4]
    for pair in pairs:
        pair['ref_logprobs'] = [0.0, 0.0]
    logprobs = -40 * torch.rand(4, 2, dtype=torch.float64)
    tokens = torch.tensor([[mask.sum() for _, mask, _ in pair['docs']] for pair in pairs])
    knobs = SimpleNamespace(alpha=0.0, beta=beta, loss_type='simpo' if loss_type == 'simpo' else 'sigmoid', simpo_gamma=gamma,
                            label_smoothing=smoothing, accelerator=SimpleNamespace(device='cpu'))
    theirs, *_ = cpo.cpo_loss(knobs, *(logprobs / (tokens if loss_type == 'simpo' else 1)).T)
    losses, _ = ns['preference_loss'](logprobs, pairs)
    assert torch.allclose(losses, theirs, rtol=1e-12)
