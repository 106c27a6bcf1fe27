"""Bad days, caused for real: signals, damaged and missing state, a full disk, gradients that are not finite."""
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, read_log
from safetensors.torch import load_file
from test_scripts import same

SFT = ['--eval_data=', '--eval_prompts=', '--batch_size=8', '--warmup_steps=0']


def start(out_dir, *flags, ranks=1):
    """A script in the background, once its log has three steps."""
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(ranks)] if ranks > 1 else []
    process = subprocess.Popen([sys.executable, *torchrun, os.path.join(ROOT, flags[0]), *flags[1:], f'--out_dir={out_dir}'],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                               env={**os.environ, 'OMP_NUM_THREADS': '1'})
    end = time.time() + 120
    while process.poll() is None and time.time() < end:
        if os.path.exists(f'{out_dir}/log.jsonl') and len(read_log(out_dir)) >= 3:
            return process
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0][-3000:])


@pytest.mark.parametrize('number, ranks', [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_ends_the_step_and_nothing_is_lost(run, rows, tmp_path, number, ranks):
    """The last step of the log is the checkpoint's; resumed, the run ends as one never stopped."""
    whole, stopped, flags = str(tmp_path / 'whole'), str(tmp_path / 'stopped'), ['--max_steps=60', '--checkpoint_every=0', *SFT, f'--data={rows}']
    run('sft.py', *flags, f'--out_dir={whole}', ranks=ranks)
    process = start(stopped, 'sft.py', *flags, ranks=ranks)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert ranks > 1 or process.returncode == 0, output  # torchrun itself says that it was stopped
    assert 'stopping: a checkpoint after this step' in output and '--resume=True goes on' in output
    steps = len(read_log(stopped))
    assert 3 <= steps < 60 and os.path.exists(f'{stopped}/model.safetensors')
    run('sft.py', *flags, f'--out_dir={stopped}', '--resume=True', ranks=ranks)
    assert same(whole, stopped) and [r['step'] for r in read_log(stopped)] == list(range(1, 61))


def test_a_second_signal_ends_at_once():
    """Two within two seconds are one (torchrun passes on what a terminal sends to all); a later one ends the process."""
    waits = 'import time, checkpoint; asked = checkpoint.catch_stop(); print("ready", flush=True)\nwhile True: time.sleep(0.05)'
    process = subprocess.Popen([sys.executable, '-c', waits], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    for pause in (0.3, 2.2):
        process.send_signal(signal.SIGTERM)
        time.sleep(pause)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM and process.stderr.read().count('stopping') == 1


@pytest.fixture(scope='module')
def stopped_run(run, rows, tmp_path_factory):
    out_dir = str(tmp_path_factory.mktemp('faults') / 'run')
    run('sft.py', '--max_steps=2', *SFT, f'--data={rows}', f'--out_dir={out_dir}')
    return out_dir


@pytest.mark.parametrize('fault, words', [
    ('flip', 'state/shared.pt is damaged'), ('cut', 'state/rank0.pt is damaged'), ('remove', 'rank0.pt is missing'),
    ('old', ''), ('half', '')])
def test_damaged_state_is_named_and_half_written_state_is_not_used(run, rows, stopped_run, tmp_path, fault, words):
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
    done = run('sft.py', '--max_steps=3', *SFT, f'--data={rows}', f'--out_dir={out_dir}', '--resume=True', check=False)
    if words:
        assert done.returncode == 1 and words in done.stderr and 'Traceback' not in done.stderr
    else:
        assert done.returncode == 0 and [r['step'] for r in read_log(out_dir)] == [1, 2, 3]


def test_another_number_of_ranks(run, rows, stopped_run):
    done = run('sft.py', '--max_steps=3', *SFT, f'--data={rows}', f'--out_dir={stopped_run}', '--resume=True', ranks=2, check=False)
    assert done.returncode != 0 and 'was written by 1 ranks, this run has 2' in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason='a small disk needs mount')
def test_a_full_disk_keeps_the_last_checkpoint(run, rows, tmp_path):
    disk, whole, flags = str(tmp_path / 'disk'), str(tmp_path / 'whole'), ['--max_steps=3', '--checkpoint_every=1', *SFT, f'--data={rows}']
    os.mkdir(disk)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=20m', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('no mount here')
    try:
        done = run('sft.py', *flags, f'--out_dir={disk}/run', check=False)  # state 10 MB, model 3: the second state has no room
        assert done.returncode == 1 and 'cannot write the checkpoint' in done.stderr and 'Traceback' not in done.stderr
        subprocess.run(['mount', '-o', 'remount,size=100m', disk], check=True)
        run('sft.py', *flags, f'--out_dir={disk}/run', '--resume=True')
        run('sft.py', *flags, f'--out_dir={whole}')
        assert same(whole, f'{disk}/run') and [r['step'] for r in read_log(f'{disk}/run')] == [1, 2, 3]
    finally:
        subprocess.run(['umount', disk], check=True)


def test_gradients_that_are_not_finite_skip_updates_and_end_the_run(run, rows, tmp_path):
    """A learning rate that destroys the weights in one step: on two ranks alike, counted, ended after ten."""
    done = run('sft.py', *SFT, f'--data={rows}', '--learning_rate=1e30', '--max_steps=30', '--checkpoint_every=1', f'--out_dir={tmp_path}/x', ranks=2, check=False)
    assert done.returncode != 0 and done.stderr.count('10 gradients in a row not finite') == 1
    assert [r['skipped'] for r in read_log(f'{tmp_path}/x')] == [0, *range(1, 11)]
    assert all(x.isfinite().all() for x in load_file(f'{tmp_path}/x/model.safetensors').values())  # as of the one good step
