"""What takes too long for the suite, half an hour on 2 cores: `make slow`, or pytest -m slow.

Kills: kill -9 at random moments, twenty times in one run, each time resumed: the weights must be those of a run never
killed. Moments: while it starts (anything up to the loop), and up to half a second after some step was logged, which
with a checkpoint at each step is often inside the writing of one.

Soak: 2,000 steps of grpo.py; memory, open files and processes must not grow.
"""
import json
import os
import random
import signal
import statistics
import time

import pytest
from conftest import Started, launch, read_log
from test_scripts import same

pytestmark = pytest.mark.slow
KILLS, STEPS = 20, 150
COMMON = [f'--max_steps={STEPS}', '--checkpoint_every=1', '--eval_prompts=', '--eval_every=0', '--warmup_steps=3', '--log_every=100']
RL = ['--prompts_per_step=4', '--group_size=4', '--max_new_tokens=24', '--sample_every=0']
FLAGS = {'sft': ['--batch_size=8', '--eval_data='], 'dpo': ['--batch_size=8', '--eval_data='],
         'grpo': RL, 'hpt': RL, 'prefix_rft': [*RL, '--prefix_steps=50'],
         'distill': [*RL, '--teacher=tiny', '--on_policy_fraction=0.5']}


def lines(folder):
    path = os.path.join(folder, 'log.jsonl')
    return open(path, 'rb').read().count(b'\n') if os.path.exists(path) else 0


@pytest.mark.parametrize('ranks', [1, 2])
@pytest.mark.parametrize('script', FLAGS)
def test_killed_twenty_times(start_model, rows, tmp_path, script, ranks):
    rng, whole, killed = random.Random(f'{script} {ranks}'), str(tmp_path / 'whole'), str(tmp_path / 'killed')
    if script == 'dpo':
        pairs = [{'prompt': row['prompt'], 'chosen': row['demonstration'], 'rejected': '#### 1'} for row in map(json.loads, open(rows))]
        rows = tmp_path / 'pairs.jsonl'
        rows.write_text('\n'.join(map(json.dumps, pairs)))
    flags = [*COMMON, *FLAGS[script], f'--model={start_model}', f'--data={rows}']
    launch(f'{script}.py', *flags, f'--out_dir={whole}', ranks=ranks)
    inside = 0
    for _ in range(KILLS):
        again = '--resume=True' if os.path.isdir(f'{killed}/state') or os.path.isdir(f'{killed}/state.old') else '--overwrite=True'
        started = Started(f'{script}.py', *flags, f'--out_dir={killed}', again, ranks=ranks)
        begun, early, before = time.time(), rng.random() < 0.2, lines(killed)
        # a fork has torch already: what comes before its loop takes a second or two
        while not started.ended() and (time.time() - begun < 1 if early else lines(killed) in (0, before) and time.time() - begun < 60):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.5)
        assert not started.ended(), f'ended before it was killed: {started.wait().stderr[-2000:]}'
        started.send_signal(signal.SIGKILL)
        started.wait()
        inside += os.path.isdir(f'{killed}/state.new')
    launch(f'{script}.py', *flags, f'--out_dir={killed}', '--resume=True', ranks=ranks)
    print(f'{script}, {ranks} ranks: {KILLS} kills, {inside} inside a checkpoint')
    assert same(whole, killed) and [r['step'] for r in read_log(killed)] == list(range(1, STEPS + 1))


def usage(pid, folder):
    """Steps so far, resident MB, open files, child processes."""
    with open(f'/proc/{pid}/statm') as f:
        memory = int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6
    with open(f'/proc/{pid}/task/{pid}/children') as f:
        children = len(f.read().split())
    return lines(folder), memory, len(os.listdir(f'/proc/{pid}/fd')), children


def test_soak(start_model, tmp_path, steps=2000):
    """Means of the first quarter (but for 50 steps, in which the allocator grows) and of the last, sampled every second."""
    started = Started('grpo.py', f'--model={start_model}', f'--out_dir={tmp_path}/run', f'--max_steps={steps}', '--prompts_per_step=8',
                      '--group_size=4', '--max_new_tokens=32', '--eval_every=500', '--checkpoint_every=250', '--sample_every=500',
                      '--verifier=math', '--log_every=100')
    samples = []
    while not started.ended():
        try:
            samples.append(usage(started.processes[0].pid, f'{tmp_path}/run'))
        except OSError:  # it has just ended
            pass
        time.sleep(1)
    done = started.wait()
    assert done.returncode == 0, done.stderr[-3000:]
    first, last = ([x for x in samples if a < x[0] <= b] for a, b in ((50, steps // 4), (steps - steps // 4, steps)))
    before, after = ([statistics.mean(column) for column in zip(*part)] for part in (first, last))
    print(f'resident {before[1]:.1f} MB, then {after[1]:.1f} ({after[1] / before[1] - 1:+.1%}); open files {before[2]:.1f}, then '
          f'{after[2]:.1f}; child processes {before[3]:.1f}, then {after[3]:.1f}')
    assert after[1] < 1.05 * before[1] and max(x[2] for x in last) <= max(x[2] for x in first) + 2
    assert max(x[3] for x in last) <= max(x[3] for x in first)
