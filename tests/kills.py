"""kill -9 at random moments, twenty times in one run, each time resumed: the weights must be those of a run never killed.

    python tests/kills.py              # five scripts on one rank and on two, about 20 minutes on 2 cores; not part of the suite
    python tests/kills.py grpo 2       # one script, that many ranks

Moments: while it starts (anything up to the loop), and up to half a second after some step was logged, which with a
checkpoint at each step is often inside the writing of one.
"""
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from safetensors.torch import load_file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from rows import read_rows  # noqa: E402

KILLS, STEPS = 20, 150
COMMON = [f'--max_steps={STEPS}', '--checkpoint_every=1', '--eval_prompts=', '--eval_every=0', '--warmup_steps=3', '--log_every=100']
RL = ['--prompts_per_step=4', '--group_size=4', '--max_new_tokens=24', '--sample_every=0']
FLAGS = {'sft': ['--batch_size=8', '--eval_data='], 'dpo': ['--batch_size=8', '--eval_data='],
         'grpo': RL, 'hpt': RL, 'prefix_rft': [*RL, '--prefix_steps=50']}


def start(script, ranks, *flags):
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(ranks)] if ranks > 1 else []
    return subprocess.Popen([sys.executable, *torchrun, os.path.join(ROOT, f'{script}.py'), *flags], start_new_session=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def finish(process):
    error = process.communicate()[1].decode()
    assert process.returncode == 0, error[-3000:]


def lines(folder):
    path = os.path.join(folder, 'log.jsonl')
    return open(path, 'rb').read().count(b'\n') if os.path.exists(path) else 0


def kills(job):
    """Whether a run killed KILLS times ends as one that was not."""
    script, ranks, model, folder = job
    rng, whole, killed = random.Random(f'{script} {ranks}'), f'{folder}/{script}{ranks}', f'{folder}/{script}{ranks}_killed'
    flags = [*COMMON, *FLAGS[script], f'--model={model}', f'--data={folder}/{"pairs" if script == "dpo" else "rows"}.jsonl']
    finish(start(script, ranks, *flags, f'--out_dir={whole}'))
    inside = []
    while len(inside) < KILLS:
        again = '--resume=True' if os.path.isdir(f'{killed}/state') or os.path.isdir(f'{killed}/state.old') else '--overwrite=True'
        process = start(script, ranks, *flags, f'--out_dir={killed}', again)
        begun, early = time.time(), rng.random() < 0.2
        seen = lines(killed)
        while process.poll() is None and (time.time() - begun < 4 if early else lines(killed) in (0, seen) and time.time() - begun < 60):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.5)
        assert process.poll() is None, f'{script} ended before it was killed: {process.communicate()[1].decode()[-2000:]}'
        os.killpg(process.pid, signal.SIGKILL)
        if ranks > 1:  # torchrun's own children are of other sessions
            subprocess.run(['pkill', '-9', '-f', f'out_dir={killed}'])
        process.communicate()
        inside.append(os.path.isdir(f'{killed}/state.new'))
    finish(start(script, ranks, *flags, f'--out_dir={killed}', '--resume=True'))
    a, b = (load_file(f'{x}/model.safetensors') for x in (whole, killed))
    steps = [json.loads(line)['step'] for line in open(f'{killed}/log.jsonl')]
    good = all((a[key] == b[key]).all() for key in a) and a.keys() == b.keys() and steps == list(range(1, STEPS + 1))
    print(f'{"same" if good else "DIFFERENT":9} {script}, {ranks} ranks: {KILLS} kills, {sum(inside)} inside a checkpoint', flush=True)
    return good


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as folder:
        rows = [{key: value for key, value in row.items() if key != '_where'} for row in read_rows('sums:train')[0][:200]]
        pairs = [{'prompt': row['prompt'], 'chosen': row['demonstration'], 'rejected': '#### 1'} for row in rows]
        for name, part in (('rows', rows), ('pairs', pairs)):
            with open(f'{folder}/{name}.jsonl', 'w') as f:
                f.writelines(json.dumps(row) + '\n' for row in part)
        finish(start('sft', 1, f'--out_dir={folder}/start', '--max_steps=250', '--eval_data=', '--eval_prompts='))
        scripts, ranks = ([sys.argv[1]], [int(sys.argv[2])]) if sys.argv[1:] else (FLAGS, (1, 2))
        jobs = [(script, n, f'{folder}/start', folder) for n in ranks for script in scripts]
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(kills, jobs))
    print(f'{sum(results)} of {len(results)} end in the same weights')
    sys.exit(not all(results))
