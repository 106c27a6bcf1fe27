"""shard='all' (FSDP2): two ranks train what one trains, whatever their shares; checkpoints and the saved folder are those of DDP."""
import json
import os

import pytest
import torch
from conftest import ROOT, inside, launch, read_log
from model import load_config, memory_plan
from test_runs import PAIRS, evaluations, some_rows, trainings  # noqa: F401
from test_scripts import GRPO, SFT, same, weights

ALL = '--shard=all'


@pytest.mark.parametrize('batch', [8, 1])
def test_sft_on_two_ranks_is_sft_on_one(monkeypatch, run, rows, tmp_path, batch):
    """Unequal numbers of micro-batches; with a batch of 1 a rank has no row. The loss on held-out rows too: 5 rows on 2 ranks."""
    held_out = tmp_path / 'held_out.jsonl'
    held_out.write_text(''.join(open(rows).readlines()[:5]))
    flags = [*SFT, f'--data={rows}', f'--batch_size={batch}', '--micro_batch_tokens=64', f'--eval_data={held_out}', '--activation_checkpointing=True']
    inside(monkeypatch, 'sft.py', *flags, f'--out_dir={tmp_path}/one')
    run('sft.py', *flags, ALL, f'--out_dir={tmp_path}/two', ranks=2)
    one, two = read_log(f'{tmp_path}/one'), read_log(f'{tmp_path}/two')
    assert len(one) == len(two) == 4
    for a, b in zip(one, two):
        for key in ('loss', 'grad_norm', 'eval/loss'):
            assert a.get(key, 0) == pytest.approx(b.get(key, 0), rel=1e-4)
    assert same(tmp_path / 'one', tmp_path / 'two', 1e-4)


@pytest.mark.parametrize('script, flags', [
    ('grpo.py', ['--updates_per_rollout=2', '--beta=0.1', '--importance_cap=2']),
    ('grpo.py', ['--prompts_per_step=1', '--beta=0.1', '--group_size=8']),  # a rank without prompts
    ('hpt.py', ['--beta=0.1', '--gamma=0.3']), ('prefix_rft.py', []), ('distill.py', ['--teacher=tiny', '--on_policy_fraction=0.5']),
    ('distill.py', ['--teacher=tiny', '--divergence=jsd', '--prompts_per_step=1', '--updates_per_rollout=1'])])
def test_rewards_on_two_ranks_are_those_of_one(monkeypatch, run, start_model, tmp_path, script, flags):
    """Rollouts with prefill by the decode copy, evaluation of 3 prompts, KL, several updates."""
    held_out = tmp_path / 'held_out.jsonl'
    held_out.write_text('\n'.join(json.dumps({'prompt': f'{i}+1', 'answer': str(i + 1), 'dataset': 'sums'}) for i in range(3)))
    flags = [*GRPO, *flags, f'--model={start_model}', '--data=sums:train', f'--eval_prompts={held_out}', '--eval_every=1']
    inside(monkeypatch, script, *flags, f'--out_dir={tmp_path}/one')
    run(script, *flags, ALL, '--micro_batch_tokens=80', f'--out_dir={tmp_path}/two', ranks=2)
    one, two = trainings(f'{tmp_path}/one'), trainings(f'{tmp_path}/two')
    assert len(one) == len(two) == 2 and one[-1]['grad_norm'] > 0
    for a, b in zip(one, two):
        assert a.get('reward/mean') == b.get('reward/mean') and a.get('completion/len_mean') == b.get('completion/len_mean')
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-4, abs=1e-6)
        assert a['grad_norm'] == pytest.approx(b['grad_norm'], rel=1e-3)
        kl = 'distill/divergence' if script == 'distill.py' else 'policy/kl'
        assert a.get(kl, 0) == pytest.approx(b.get(kl, 0), rel=1e-2, abs=1e-8) and b['policy/mismatch'] < 1e-4
    assert evaluations(f'{tmp_path}/one') == evaluations(f'{tmp_path}/two')
    assert same(tmp_path / 'one', tmp_path / 'two', 2e-5)


@pytest.mark.parametrize('script', ['grpo.py', 'hpt.py', 'prefix_rft.py'])
@pytest.mark.parametrize('ranks', [1, 2])
def test_a_step_without_any_advantage_is_a_step(run, tmp_path, script, ranks):
    """No group has spread and there is no KL, so that no rank has a micro-batch of its own: the gradient is 0."""
    rows = tmp_path / 'rows.jsonl'
    rows.write_text('{"prompt": "1+1", "answer": "123456", "dataset": "sums"}\n')
    more = [] if script == 'grpo.py' else ['--without_demonstration=rl']
    run(script, *GRPO, *more, ALL, '--model=tiny', f'--data={rows}', '--prompts_per_step=2', f'--out_dir={tmp_path}/x', ranks=ranks)
    assert [r['grad_norm'] for r in trainings(f'{tmp_path}/x')] == [0, 0]


def test_dpo_on_two_ranks_is_dpo_on_one(monkeypatch, run, start_model, tmp_path):
    """5 pairs, so that ranks score unequal numbers for the reference; 3 pairs to evaluate; a step of one pair."""
    pairs, held_out = tmp_path / 'pairs.jsonl', tmp_path / 'held_out.jsonl'
    for path, n in ((pairs, 5), (held_out, 3)):
        path.write_text('\n'.join(json.dumps({'prompt': f'{i}+1', 'chosen': str(i + 1), 'rejected': str(i)}) for i in range(n)))
    for batch in (4, 1):
        flags = [f'--data={pairs}', f'--eval_data={held_out}', f'--model={start_model}', f'--batch_size={batch}', '--max_steps=3', '--eval_prompts=',
                 '--warmup_steps=0', '--learning_rate=1e-4', '--micro_batch_tokens=16', '--eval_every=2']
        one, two = f'{tmp_path}/one{batch}', f'{tmp_path}/two{batch}'
        inside(monkeypatch, 'dpo.py', *flags, f'--out_dir={one}')
        run('dpo.py', *flags, ALL, f'--out_dir={two}', ranks=2)
        for a, b in zip(read_log(one), read_log(two), strict=True):
            for key in ('loss', 'grad_norm', 'dpo/margin', 'eval/margin', 'eval/accuracy'):
                assert a.get(key, 0) == pytest.approx(b.get(key, 0), rel=1e-3, abs=1e-6), key
        assert same(one, two, 2e-5)


@pytest.mark.parametrize('script', ['sft.py', 'dpo.py', 'grpo.py', 'hpt.py', 'prefix_rft.py', 'distill.py'])
def test_resume_is_exact(run, tmp_path, some_rows, script):  # noqa: F811
    """Invariant 6 with odd numbers, see test_odd_numbers_on_two_ranks of test_runs.py. Each rank saves its own part of the weights."""
    own = {'sft.py': ['--batch_size=5', '--eval_data='], 'dpo.py': ['--batch_size=5', '--model=tiny', PAIRS]}
    rl = ['--prompts_per_step=5', '--group_size=3', '--updates_per_rollout=3', '--sample_every=0']
    rl += ['--teacher=tiny', '--divergence=forward_kl'] if script == 'distill.py' else ['--beta=0.01']
    flags = [*some_rows, ALL, '--max_new_tokens=6', '--eval_every=2', '--checkpoint_every=4', '--schedule=constant', '--warmup_steps=2',
             '--micro_batch_tokens=200', *own.get(script, rl)]
    whole_run, parts = str(tmp_path / 'whole'), str(tmp_path / 'parts')
    run(script, *flags, '--max_steps=5', f'--out_dir={whole_run}', ranks=2)
    run(script, *flags, '--max_steps=3', f'--out_dir={parts}', ranks=2)
    run(script, *flags, '--max_steps=5', '--resume=True', f'--out_dir={parts}', ranks=2)
    assert [r['step'] for r in trainings(whole_run)] == [1, 2, 3, 4, 5] and same(whole_run, parts)
    drop = lambda r: {k: v for k, v in r.items() if not k.startswith('perf/')}  # noqa: E731
    assert [drop(r) for r in read_log(whole_run)] == [drop(r) for r in read_log(parts)]
    shared, own_parts = (torch.load(f'{parts}/state/{name}.pt') for name in ('shared', 'rank0'))
    n = sum(w.numel() for w in weights(parts).values())
    assert shared['weights'] is None and sum(w.numel() for w in own_parts['weights'].values()) <= n / 2 + 200
    assert sum(m['exp_avg'].numel() for m in own_parts['optimizer']['state'].values()) <= n / 2 + 200


def test_the_saved_folder_is_that_of_ddp(run, rows, start_model, tmp_path):
    """Files, settings, names, dtypes; the weights to the bit where nothing was trained."""
    flags = [*SFT, f'--data={rows}', f'--model={start_model}', '--dtype=bfloat16', '--learning_rate=0', '--max_steps=1']
    folders = {}
    for shard in ('none', 'all'):
        out = f'{tmp_path}/{shard}'
        run('sft.py', *flags, f'--shard={shard}', f'--out_dir={out}', ranks=2)
        files = {name for name in os.listdir(out) if os.path.isfile(f'{out}/{name}')} - {'log.jsonl', 'run.json'}
        folders[shard] = {name: open(f'{out}/{name}', 'rb').read() for name in files}
    assert folders['none'] == folders['all'] and 'model.safetensors' in folders['all']
    assert all(w.dtype == torch.bfloat16 for w in weights(f'{tmp_path}/all').values())


def test_bf16_trains_what_ddp_trains(run, rows, start_model, tmp_path):
    """The same autocast over the same fp32 weights, the frozen reference in bf16: the numerics are DDP's."""
    flags = [*GRPO, f'--data={rows}', f'--model={start_model}', '--dtype=bfloat16', '--beta=0.1']
    for shard in ('none', 'all'):
        run('grpo.py', *flags, f'--shard={shard}', '--max_steps=1', f'--out_dir={tmp_path}/{shard}', ranks=2)
    (a,), (b,) = read_log(f'{tmp_path}/none'), read_log(f'{tmp_path}/all')
    assert b['policy/kl'] == a['policy/kl'] == 0
    assert a['grad_norm'] == pytest.approx(b['grad_norm'], rel=0.1) and a['policy/mismatch'] == pytest.approx(b['policy/mismatch'], rel=0.2)


PROBE = '''
import os, runpy, sys, warnings
sys.path.insert(0, ROOT)
import torch, torch.distributed as dist
import model, decoder
from torch.distributed.tensor import DTensor
dist.init_process_group('gloo')
torch.manual_seed(0)
policy = model.Policy(model.load_model('tiny'))
plain = {name: p.detach().clone() for name, p in policy.named_parameters()}
with torch.no_grad():
    decoder.decoder_of(policy.model, torch.float32, 1)
model.shard_weights(policy)
def all_sharded():
    return all(isinstance(p, DTensor) for p in policy.parameters())
ids, index = torch.arange(1, 9), torch.arange(1, 8)
with torch.no_grad():
    policy(ids, [8], index)
assert all_sharded(), 'a forward without a backward leaves weights whole'
logprobs, _ = policy(ids, [8], index)
assert all_sharded()
logprobs.sum().backward()
assert all_sharded() and all(isinstance(p.grad, DTensor) for p in policy.parameters())
assert all(torch.equal(model.whole(p), plain[name]) for name, p in policy.named_parameters())
# decoding of an architecture without a decode copy cannot be done by one rank alone
decoder.decodable[policy.model][torch.float32] = False
try:
    decoder.decoder_of(policy.model, torch.float32, 4)
except decoder.UserError as error:
    assert '--shard=optimizer' in str(error)
else:
    raise AssertionError('no error')
dist.destroy_process_group()
'''


def test_weights_are_whole_only_while_they_are_used(tmp_path):
    path = tmp_path / 'probe.py'
    path.write_text(f'ROOT = {ROOT!r}\n' + PROBE)
    launch(str(path), ranks=2)


def test_one_rank_has_nothing_to_share(monkeypatch, rows, tmp_path):
    for shard in ('all', 'optimizer'):
        inside(monkeypatch, 'sft.py', *SFT, f'--data={rows}', f'--shard={shard}', f'--out_dir={tmp_path}/{shard}')
    assert same(tmp_path / 'all', tmp_path / 'optimizer')


# --- memory --------------------------------------------------------------------
def test_memory_plan_by_hand():
    """Qwen3-8B on 8 GPUs: N = 8,190,735,360, embedding and head 151,936 x 4,096 each; a layer is (N - 2 E - last norm) / 36."""
    n, embedding = 8_190_735_360, 151_936 * 4096
    layer = (n - 2 * embedding - 4096) / 36
    plan = memory_plan(load_config('random:qwen3-8b'), 8, 16384, shard='all', reference=True, kv_cache_gb=24, rollout_rows=128, max_new_tokens=2048)
    assert plan['weights (fp32) / 8'] == plan['gradients (fp32)'] == pytest.approx(4 * n / 8e9)
    assert plan['Adam moments / 8'] == pytest.approx(n / 1e9)
    assert plan['reference / 8'] == pytest.approx((2 * n + 2 * embedding) / 8e9)
    assert plan['decode copy'] == pytest.approx((2 * n + 4 * embedding) / 1e9)
    assert plan['whole layers, embedding, head'] == pytest.approx((16 * layer + 12 * (2 * embedding + 4096) - 4 * embedding) / 1e9)


@pytest.mark.parametrize('shape', ['random:qwen3-8b', 'llama', 'math'])
def test_8b_fits_8_gpus_of_80_gb(shape):
    """The shapes of Llama-3.1-8B (TULU 3) and Qwen2.5-Math-7B (Openr1-Math) too, with the settings of config/; by DDP none fits."""
    from transformers import LlamaConfig, Qwen2Config
    config = {
        'llama': LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                             num_key_value_heads=8, max_position_embeddings=131072),
        'math': Qwen2Config(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
                            num_key_value_heads=4, max_position_embeddings=16384)}.get(shape) or load_config(shape)
    for rollout in ({}, {'kv_cache_gb': 24, 'rollout_rows': 128, 'max_new_tokens': 8192 if shape == 'math' else 2048, 'reference': True}):
        assert memory_plan(config, 8, 16384, shard='all', **rollout)['peak'] < 75
        assert memory_plan(config, 8, 16384, shard='optimizer', **rollout)['peak'] > 80
