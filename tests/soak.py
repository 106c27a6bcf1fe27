"""2,000 steps of grpo.py on the tiny model: memory, open files and processes must not grow.

    python tests/soak.py        # about 10 minutes on 2 cores; not part of the suite

Resident memory of the process is sampled every second; the means of the first and of the last quarter of the steps (the
first 50 left out: the allocator still grows) must be within 5 %.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STEPS = int(sys.argv[1]) if sys.argv[1:] else 2000


def sample(pid, log):
    """Steps so far, resident MB, open files, child processes."""
    with open(f'/proc/{pid}/statm') as f:
        memory = int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6
    with open(f'/proc/{pid}/task/{pid}/children') as f:
        children = len(f.read().split())
    with open(log, 'rb') as f:
        return f.read().count(b'\n'), memory, len(os.listdir(f'/proc/{pid}/fd')), children


with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, os.path.join(ROOT, 'sft.py'), '--max_steps=250', '--eval_data=', '--eval_prompts=',
                    f'--out_dir={folder}/start'], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(f'{folder}/output.txt', 'w') as output:
        process = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, 'grpo.py'), f'--model={folder}/start', f'--out_dir={folder}/run',
             f'--max_steps={STEPS}', '--prompts_per_step=8', '--group_size=4', '--max_new_tokens=32', '--eval_every=500',
             '--checkpoint_every=250', '--sample_every=500', '--verifier=math', '--log_every=100'],
            stdout=output, stderr=output, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        samples = []
        while process.poll() is None:
            try:
                samples.append(sample(process.pid, f'{folder}/run/log.jsonl'))
            except (OSError, IndexError):  # it has not begun, or just ended
                pass
            time.sleep(1)
    assert process.returncode == 0, open(f'{folder}/output.txt').read()[-3000:]
first = [x for x in samples if 50 < x[0] <= STEPS // 4]
last = [x for x in samples if x[0] > STEPS - STEPS // 4]
for name, i in (('resident MB', 1), ('open files', 2), ('child processes', 3)):
    print(f'{name}: {statistics.mean(x[i] for x in first):.1f} in the first quarter, {statistics.mean(x[i] for x in last):.1f} in the '
          f'last, at most {max(x[i] for x in samples):.0f}')
grown = statistics.mean(x[1] for x in last) / statistics.mean(x[1] for x in first) - 1
print(f'resident memory {grown:+.1%} over {STEPS} steps')
sys.exit(grown > 0.05 or max(x[2] for x in last) > max(x[2] for x in first) + 2 or max(x[3] for x in last) > max(x[3] for x in first))
