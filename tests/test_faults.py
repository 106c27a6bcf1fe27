"""Bad days, caused for real: signals, damaged and missing state, a full disk, gradients that are not finite."""
import json
import os
import shutil
import signal
import subprocess
import time

import pytest
import torch
from configurator import UserError
from conftest import ROOT, Started, inside, launch, launch_in_background, read_log, start_torchrun, torchrun, wait_for_steps
from data import load_tokenizer
from model import load_model
from run import checksum, load_state
from safetensors.torch import load_file
from test_scripts import same

SFT = ['--eval_data=', '--eval_prompts=', '--batch_size=8', '--warmup_steps=0']


@pytest.fixture(scope='module')
def two_ranks(rows, tmp_path_factory):
    """The flags of 40 steps of sft.py, and the folder of such a run by two ranks that nothing befell."""
    whole, flags = str(tmp_path_factory.mktemp('whole') / 'run'), ['--max_steps=40', '--checkpoint_every=10', *SFT, f'--data={rows}']
    launch('sft.py', *flags, f'--out_dir={whole}', ranks=2)
    return flags, whole


def test_a_signal_ends_the_step_and_nothing_is_lost(run, two_ranks, tmp_path):
    """The last step of the log is the checkpoint's; resumed, the run ends as one never stopped. Under torchrun, which
    passes the signal on."""
    (flags, whole), stopped = two_ranks, str(tmp_path / 'stopped')
    process, = start_torchrun('sft.py', *flags, f'--out_dir={stopped}')
    wait_for_steps(stopped, 3, lambda: process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    output = ''.join(process.communicate(timeout=60))
    assert 'stopping: a checkpoint after this step' in output and '--resume=True goes on' in output, output
    steps = len(read_log(stopped))
    assert 3 <= steps < 40 and os.path.exists(f'{stopped}/model.safetensors')
    run('sft.py', *flags, f'--out_dir={stopped}', '--resume=True', ranks=2)
    assert same(whole, stopped) and [r['step'] for r in read_log(stopped)] == list(range(1, 41))


RL = ['--eval_prompts=', '--eval_every=0', '--prompts_per_step=4', '--group_size=4', '--max_new_tokens=16', '--sample_every=0']


@pytest.mark.parametrize('script, phases, flags', [
    ('sft.py', 'forward,update,state,model,rollout,reward', ['--eval_data=', '--batch_size=8', '--eval_every=1', '--max_new_tokens=8']),
    ('dpo.py', 'forward,update,state,model', ['--eval_data=', '--eval_prompts=', '--batch_size=8']),
    ('grpo.py', 'rollout,reward,forward,update,state,model', RL), ('hpt.py', 'rollout,reward,forward,update,state,model', RL),
    ('prefix_rft.py', 'rollout,reward,forward,update,state,model', [*RL, '--prefix_steps=9']),
    ('distill.py', 'rollout,reward,forward,update,state,model', [*RL, '--teacher=tiny', '--divergence=jsd', '--on_policy_fraction=0.5'])])
def test_a_signal_in_every_phase(rows, tmp_path, script, phases, flags):
    """SIGTERM and SIGINT, in turn, in the midst of each: the step is finished and kept, the run goes on to the same bits."""
    if script == 'dpo.py':
        pair = {'prompt': '1+1', 'chosen': '#### 2', 'rejected': '#### 3'}
        rows = tmp_path / 'pairs.jsonl'
        rows.write_text('\n'.join([json.dumps(pair)] * 16))
    if script == 'sft.py':  # the evaluation's rollout and reward
        few = tmp_path / 'few.jsonl'
        few.write_text(''.join(open(rows).readlines()[:8]))
        flags = [*flags, f'--eval_prompts={few}']
    n = len(phases.split(','))
    steps = n + 2 + 1  # a signal that comes in a checkpoint lets one more step be made
    flags = ['--model=tiny', f'--data={rows}', f'--max_steps={steps}', '--checkpoint_every=1', '--warmup_steps=0', *flags]
    whole, parts = f'{tmp_path}/whole', f'{tmp_path}/parts'
    done = launch('tests/phases.py', script, phases, whole, parts, *flags)
    assert done.stderr.count('stopping: a checkpoint after this step') == done.stdout.count('--resume=True goes on') == n
    assert same(whole, parts) and [r['step'] for r in read_log(parts) if 'lr' in r] == list(range(1, steps + 1))
    drop = lambda r: {k: v for k, v in r.items() if not k.startswith('perf/')}  # noqa: E731
    assert [drop(r) for r in read_log(whole)] == [drop(r) for r in read_log(parts)]


def test_a_second_signal_ends_at_once(tmp_path):
    """Two within two seconds are one (torchrun passes on what a terminal sends to all); a later one ends the process."""
    (tmp_path / 'waits.py').write_text(
        'import sys, time\n'
        f'sys.path.insert(0, {ROOT!r})\n'
        'import run\n'
        'run.catch_stop()\n'
        f'open({str(tmp_path / "ready")!r}, "w")\n'
        'while True:\n'
        '    time.sleep(0.05)\n')
    started = Started(str(tmp_path / 'waits.py'))
    while not os.path.exists(tmp_path / 'ready'):
        assert not started.ended()
        time.sleep(0.02)
    for pause in (0.3, 2.2):
        started.send_signal(signal.SIGTERM)
        time.sleep(pause)
        assert not started.ended()
    started.send_signal(signal.SIGTERM)
    done = started.wait(seconds=10)
    assert done.returncode == -signal.SIGTERM and done.stderr.count('stopping') == 1


def test_a_killed_rank_ends_the_others_at_once(run, two_ranks, tmp_path):
    """kill -9 of one of two: torchrun names it, the other is gone within seconds, the last checkpoint goes on."""
    (flags, whole), killed = two_ranks, str(tmp_path / 'killed')
    process, = start_torchrun('sft.py', *flags, f'--out_dir={killed}')
    wait_for_steps(killed, 11, lambda: process.poll() is not None)
    ranks = subprocess.run(['pgrep', '-f', f'^[^ ]*python[^ ]* .*sft.py.*{killed}'], capture_output=True, text=True).stdout.split()
    ranks = [int(pid) for pid in ranks if int(pid) != process.pid]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    begun = time.time()
    output = ''.join(process.communicate(timeout=60))
    assert process.returncode != 0 and time.time() - begun < 25, output  # gloo's time-out is half an hour
    assert output.count('Traceback (most recent call last)') <= 2 and 'Signal 9 (SIGKILL)' in output
    assert not [pid for pid in ranks if os.path.exists(f'/proc/{pid}')]
    run('sft.py', *flags, f'--out_dir={killed}', '--resume=True', ranks=2)
    assert same(whole, killed) and [r['step'] for r in read_log(killed)] == list(range(1, 41))


def test_a_rank_that_raises_ends_the_others(rows, tmp_path):
    """An error of one rank in the midst of a run: its traceback is there once, the other does not wait for it."""
    (tmp_path / 'ill.py').write_text(f"""import os, runpy, sys, torch
sys.path.insert(0, {ROOT!r})
def step(*args, **kwargs):
    raise RuntimeError('this rank is ill')
if os.environ['RANK'] == '1':
    torch.optim.AdamW.step = step
runpy.run_path({os.path.join(ROOT, 'sft.py')!r}, run_name='__main__')
""")
    begun = time.time()
    done = torchrun(str(tmp_path / 'ill.py'), *SFT, f'--data={rows}', '--max_steps=3', f'--out_dir={tmp_path}/run', check=False)
    assert done.returncode != 0 and done.stderr.count('RuntimeError: this rank is ill') == 1, done.stderr
    assert time.time() - begun < 60  # its start and its end; gloo's time-out is half an hour


def test_out_dir_deleted_under_a_run(two_ranks, tmp_path):
    """It is made again: the log from there on, the checkpoint and the model."""
    (flags, whole), deleted = two_ranks, str(tmp_path / 'deleted')
    started = launch_in_background('sft.py', *flags, '--checkpoint_every=0', out_dir=deleted, ranks=2)
    shutil.rmtree(deleted)
    done = started.wait()
    assert done.returncode == 0, done.stderr
    steps = [r['step'] for r in read_log(deleted)]
    assert 1 < steps[0] < 40 and steps == list(range(steps[0], 41)) and same(whole, deleted)
    (shared, _), log = load_state(deleted, 0, 2), f'{deleted}/log.jsonl'
    assert shared['step'] == 40 and shared['log_bytes'] == os.path.getsize(log)
    os.truncate(log, shared['log_bytes'] - 1)  # it would be filled up with zeros
    with pytest.raises(UserError, match='log.jsonl lost lines'):
        load_state(deleted, 0, 2)


def test_a_pickled_program_in_a_checkpoint_is_not_run(tmp_path):
    class Program:
        def __reduce__(self):
            return open, (f'{tmp_path}/ran', 'w')
    os.makedirs(tmp_path / 'state')
    torch.save({'world_size': 1, 'weights': Program()}, tmp_path / 'state/shared.pt')
    (tmp_path / 'state/shared.pt.crc32').write_text(checksum(tmp_path / 'state/shared.pt'))
    with pytest.raises(UserError, match='shared.pt holds more than tensors'):
        load_state(str(tmp_path), 0, 1)
    assert not os.path.exists(tmp_path / 'ran')


def test_a_models_own_program_is_not_run(monkeypatch, tmp_path):
    """A folder whose config.json names Python files: transformers would ask, and be told yes; here it is not asked."""
    monkeypatch.setattr('builtins.input', lambda *_: 'y')
    config = {'auto_map': {'AutoConfig': 'own.Own', 'AutoModelForCausalLM': 'own.Own'}, 'model_type': 'own'}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'auto_map': {'AutoTokenizer': ['own.Own', None]}}))
    (tmp_path / 'own.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")\n')
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError, match='contains custom code'):
            load(str(tmp_path))
    assert not os.path.exists(tmp_path / 'ran')


@pytest.fixture(scope='module')
def stopped_run(rows, tmp_path_factory):
    out_dir = str(tmp_path_factory.mktemp('faults') / 'run')
    with pytest.MonkeyPatch.context() as patch:
        inside(patch, 'sft.py', '--max_steps=2', *SFT, f'--data={rows}', f'--out_dir={out_dir}')
    return out_dir


@pytest.mark.parametrize('fault, words', [
    ('flip', 'state/shared.pt is damaged'), ('cut', 'state/rank0.pt is damaged'), ('remove', 'rank0.pt is missing'),
    ('old', ''), ('half', '')])
def test_damaged_state_is_named_and_half_written_state_is_not_used(monkeypatch, rows, stopped_run, tmp_path, fault, words):
    out_dir = str(tmp_path / 'run')
    shutil.copytree(stopped_run, out_dir)
    if fault == 'flip':
        with open(f'{out_dir}/state/shared.pt', 'r+b') as f:
            f.seek(os.path.getsize(f.name) // 2)
            byte = f.read(1)
            f.seek(-1, 1)
            f.write(bytes([byte[0] ^ 16]))
    elif fault == 'cut':
        os.truncate(f'{out_dir}/state/rank0.pt', 1000)
    elif fault == 'remove':
        os.remove(f'{out_dir}/state/rank0.pt')
    elif fault == 'old':  # killed between the renames
        os.rename(f'{out_dir}/state', f'{out_dir}/state.old')
    else:  # killed while it wrote
        os.mkdir(f'{out_dir}/state.new')
        with open(f'{out_dir}/state.new/shared.pt', 'wb') as f:
            f.write(b'PK half')
    flags = ['--max_steps=3', *SFT, f'--data={rows}', f'--out_dir={out_dir}', '--resume=True']
    if words:
        with pytest.raises(UserError, match=words):
            inside(monkeypatch, 'sft.py', *flags)
    else:
        inside(monkeypatch, 'sft.py', *flags)
        assert [r['step'] for r in read_log(out_dir)] == [1, 2, 3]


def test_a_checkpoint_of_an_older_version_is_named(monkeypatch, rows, tmp_path):
    flags = [f'--data={rows}', '--eval_data=', '--eval_prompts=', '--max_steps=1', '--batch_size=4', f'--out_dir={tmp_path}/x']
    inside(monkeypatch, 'sft.py', *flags)
    path = tmp_path / 'x/state/shared.pt'
    shared = torch.load(path)
    del shared['base_hash']
    torch.save(shared, path)
    (tmp_path / 'x/state/shared.pt.crc32').write_text(checksum(path))
    with pytest.raises(UserError, match='written by an older version of this code'):
        inside(monkeypatch, 'sft.py', *flags, '--max_steps=2', '--resume=True')


def test_another_number_of_ranks(run, rows, stopped_run):
    done = run('sft.py', '--max_steps=3', *SFT, f'--data={rows}', f'--out_dir={stopped_run}', '--resume=True', ranks=2, check=False)
    assert done.returncode != 0 and 'was written by 1 ranks, this run has 2' in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason='a small disk needs mount')
def test_a_full_disk_keeps_the_last_checkpoint(monkeypatch, rows, tmp_path):
    disk, whole, flags = str(tmp_path / 'disk'), str(tmp_path / 'whole'), ['--max_steps=3', '--checkpoint_every=1', *SFT, f'--data={rows}']
    os.mkdir(disk)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=20m', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('no mount here')
    try:
        # state 10 MB, model 3: the second state has no room
        with pytest.raises(UserError, match='cannot write the checkpoint'):
            inside(monkeypatch, 'sft.py', *flags, f'--out_dir={disk}/run')
        subprocess.run(['mount', '-o', 'remount,size=100m', disk], check=True)
        inside(monkeypatch, 'sft.py', *flags, f'--out_dir={disk}/run', '--resume=True')
        inside(monkeypatch, 'sft.py', *flags, f'--out_dir={whole}')
        assert same(whole, f'{disk}/run') and [r['step'] for r in read_log(f'{disk}/run')] == [1, 2, 3]
    finally:
        # lazily: the checkpoint that was resumed from is mapped into this process
        subprocess.run(['umount', '-l', disk], check=True)


def test_gradients_that_are_not_finite_skip_updates_and_end_the_run(run, rows, tmp_path):
    """A learning rate that destroys the weights in one step: on two ranks alike, counted, ended after ten."""
    done = run('sft.py', *SFT, f'--data={rows}', '--learning_rate=1e30', '--max_steps=30', '--checkpoint_every=1', f'--out_dir={tmp_path}/x', ranks=2, check=False)
    assert done.returncode != 0 and done.stderr.count('10 gradients in a row not finite') == 1
    assert [r['skipped'] for r in read_log(f'{tmp_path}/x')] == [0, *range(1, 11)]
    assert all(x.isfinite().all() for x in load_file(f'{tmp_path}/x/model.safetensors').values())  # as of the one good step
