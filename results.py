"""Five methods from one start model at matched compute, on the embedded task: a table and a picture.

    python results.py            # tuning, then 5 seeds; two at a time, one thread each; skips what is done
    python results.py --quick    # one learning rate, one seed, a sixth of the steps

FLOPs of a run, N parameters: 2N for each token that sampling puts through the model and 6N for each that an
update does (log.jsonl: tokens/sampled and tokens/trained; sft.py's tokens are all trained). STEPS are set so
that methods cost about the same; the table has what they did cost. A learning rate is chosen on seed 0 by
held-out pass@1 from the grid, the same number of values for each method; the table is of the seeds after it.
"""
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

QUICK = '--quick' in sys.argv[1:]
OUT, BASE, SEEDS = ('out/quick' if QUICK else 'out/results'), 'out/tiny_base', range(1, 2 if QUICK else 6)
SFT_GRID, RL_GRID = (3e-4, 1e-3, 3e-3), (5e-5, 1e-4, 2e-4)
# method: stages (script, steps), grid of the last stage's learning rate
METHODS = {
    'SFT': ([('sft.py', 305)], SFT_GRID),
    'GRPO': ([('grpo.py', 60)], RL_GRID),
    'SFT then GRPO': ([('sft.py', 100), ('grpo.py', 40)], RL_GRID),
    'HPT': ([('hpt.py', 60)], RL_GRID),
    'Prefix-RFT': ([('prefix_rft.py', 55)], RL_GRID)}
LEVELS = {'easy, 2-4': range(2, 5), 'middle, 5-8': range(5, 9), 'hard, 9-10': range(9, 11)}
chosen = {}  # learning rate of each method


def read(folder):
    """Records of a run's log, [] where there is none."""
    path = os.path.join(folder, 'log.jsonl')
    return [json.loads(line) for line in open(path)] if os.path.exists(path) else []


def train(method, lr, seed):
    """Folders of the method's stages, each run unless its log has its last step."""
    model, folders = BASE, []
    for i, (script, steps) in enumerate(METHODS[method][0]):
        steps = steps // 6 if QUICK else steps
        rate = lr if i == len(METHODS[method][0]) - 1 else chosen['SFT']
        name = f'{method}_{i}_{lr:g}_{seed}'.replace(' ', '_')
        folders.append(os.path.join(OUT, name))
        if not [r for r in read(folders[-1]) if r['step'] == steps]:
            os.makedirs(OUT, exist_ok=True)
            flags = [f'--model={model}', f'--out_dir={folders[-1]}', f'--max_steps={steps}', f'--seed={seed}',
                     f'--learning_rate={rate}', f'--eval_every={max(1, steps // 3)}', '--overwrite=True']
            flags += [f'--prefix_steps={steps}'] if script == 'prefix_rft.py' else []
            with open(folders[-1] + '.txt', 'w') as f:
                subprocess.run([sys.executable, script, 'config/tiny.py', *flags], stdout=f, stderr=f,
                               check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        model = folders[-1]
    return folders


def curve(folders):
    """[(FLOPs so far, record)] of the records with an evaluation, over all stages."""
    flops, points = 0, []
    for folder in folders:
        before, seen = flops, 0
        for r in read(folder):
            seen += 2 * r.get('tokens/sampled', 0) + 6 * r.get('tokens/trained', 0)
            flops = before + PARAMETERS * (seen or 6 * r['tokens'])
            points += [(flops, r)] if 'eval/pass@1' in r else []
    return points


def level(record, operands):
    return statistics.mean(record[f'eval/pass@1/{n}'] for n in operands)


start = time.time()
if not read(BASE):
    subprocess.run([sys.executable, 'sft.py', 'config/tiny_base.py'], check=True)
from model import load_model  # noqa: E402  slow to import, after what needs no model

PARAMETERS = sum(p.numel() for p in load_model(BASE).parameters())
runs = {}
with ThreadPoolExecutor(2) as pool:
    for group in (['SFT'], [m for m in METHODS if m != 'SFT']):  # some start from SFT's best rate
        jobs = [(m, lr) for m in group for lr in (METHODS[m][1][1:2] if QUICK else METHODS[m][1])]
        for (m, lr), folders in zip(jobs, pool.map(lambda job: train(*job, 0), jobs)):
            score = curve(folders)[-1][1]['eval/pass@1']
            print(f'tuning {m}, learning rate {lr:g}: pass@1 {score:.3f}', flush=True)
            chosen[m] = max(chosen.get(m, (0, 0)), (score, lr))
        chosen.update({m: chosen[m][1] for m in group})
    jobs = [(m, chosen[m], seed) for m in METHODS for seed in SEEDS]
    for (m, _, _), folders in zip(jobs, pool.map(lambda job: train(*job), jobs)):
        runs.setdefault(m, []).append(curve(folders))
print('| method | lr | all | ' + ' | '.join(LEVELS) + ' | 1e12 FLOP |\n|' + '---|' * (len(LEVELS) + 4))
for m, curves in runs.items():
    ends = [points[-1] for points in curves]
    columns = [[level(r, x) for _, r in ends] for x in (range(2, 11), *LEVELS.values())]
    cells = [f'{statistics.mean(c):.3f} +- {statistics.stdev(c) if len(c) > 1 else 0:.3f}' for c in columns]
    print(f'| {m} | {chosen[m]:g} | {" | ".join(cells)} | {statistics.mean(f for f, _ in ends) / 1e12:.2f} |')
print(f'greedy pass@1, mean +- sd of {len(SEEDS)} seeds; {(time.time() - start) / 60:.0f} minutes')
