"""Five methods from one start model at matched compute, on the embedded task: a table and a picture.

    python results.py            # tuning, then 5 seeds; two runs at a time; skips what is done
    python results.py --quick    # one learning rate, one seed, a sixth of the steps: 10 minutes on 2 cores

FLOPs of a run, N parameters: 2N for each token that sampling puts through the model and 6N for each that an
update does (log.jsonl: tokens/sampled and tokens/trained; sft.py's tokens are all trained). STEPS are set so
that the methods cost about the same; the table has what they did cost. Learning rates are chosen on seed 0
by pass@1 on prompts that no model was trained on, the start model included, and that are not in the table;
each method has the same number of values.
"""
import json
import os
import statistics
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

from model import load_model
from rows import read_rows

QUICK = '--quick' in sys.argv[1:]
OUT, BASE, SEEDS = ('out/quick' if QUICK else 'out/results'), 'out/tiny_base', range(1, 2 if QUICK else 6)
SFT_GRID, RL_GRID = (1e-3, 3e-3, 1e-2), (5e-5, 1e-4, 2e-4)
# method: stages (script, steps), grid of the last stage's learning rate
METHODS = {
    'SFT': ([('sft.py', 305)], SFT_GRID),
    'GRPO': ([('grpo.py', 60)], RL_GRID),
    'SFT then GRPO': ([('sft.py', 200), ('grpo.py', 16)], RL_GRID),
    'HPT': ([('hpt.py', 60)], RL_GRID),
    'Prefix-RFT': ([('prefix_rft.py', 55)], RL_GRID)}
LEVELS = {'easy, 2-4': range(2, 5), 'middle, 5-8': range(5, 9), 'hard, 9-10': range(9, 11)}
chosen = {}  # learning rate of each method


def read(folder):
    """Records of a run's log, [] where there is none."""
    path = os.path.join(folder, 'log.jsonl')
    return [json.loads(line) for line in open(path)] if os.path.exists(path) else []


def train(method, lr, seed):
    """Folders of the method's stages, each run unless its log has its last step. Seed 0 is for tuning."""
    model, folders = BASE, []
    for i, (script, steps) in enumerate(METHODS[method][0]):
        steps = steps // 6 if QUICK else steps
        rate = lr if i == len(METHODS[method][0]) - 1 else chosen['SFT']
        folders.append(os.path.join(OUT, f'{method}_{i}_{lr:g}_{seed}'.replace(' ', '_')))
        # the last evaluation is the last line of a log
        if not [r for r in read(folders[-1]) if r['step'] == steps and 'eval/pass@1' in r]:
            flags = [f'--model={model}', f'--out_dir={folders[-1]}', f'--max_steps={steps}', f'--seed={seed}',
                     f'--learning_rate={rate}', f'--eval_every={max(1, steps // 4)}', '--overwrite=True',
                     f'--data={OUT}/train.jsonl',
                     f'--eval_prompts={"sums:test" if seed else OUT + "/tune.jsonl"}']
            flags += [f'--prefix_steps={steps}'] if script == 'prefix_rft.py' else []
            with open(folders[-1] + '.txt', 'w') as f:
                subprocess.run([sys.executable, script, 'config/tiny.py', *flags], stdout=f, stderr=f,
                               check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
            assert read(folders[-1])[-1]['step'] == steps, f'{folders[-1]} was stopped: run this again'
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
    """pass@1 at these numbers of operands, each number counting the same."""
    return statistics.mean(record[f'eval/pass@1/{n}'] for n in operands)


start = time.time()
os.makedirs(OUT, exist_ok=True)
if not read(BASE):
    print('the start model: sft.py config/tiny_base.py, about 2 minutes', flush=True)
    subprocess.run([sys.executable, 'sft.py', 'config/tiny_base.py'], check=True, stdout=subprocess.DEVNULL)
PARAMETERS = sum(p.numel() for p in load_model(BASE).parameters())
held_out = lambda row: zlib.crc32(row['prompt'].encode()) % 8 == 1  # noqa: E731  0: sums:test
rows = {row['prompt']: row for row in read_rows('sums:train')[0]}.values()
# neither the methods nor the start model have seen the sums that learning rates are chosen on
seen = {row['messages'][0]['content'] for row in read_rows('sums:base')[0]}
tune = [row for row in rows if held_out(row) and row['prompt'] not in seen][:450]
assert len(tune) == 450
for name, part in (('train', [row for row in rows if not held_out(row)]), ('tune', tune)):
    with open(os.path.join(OUT, f'{name}.jsonl'), 'w') as f:
        f.writelines(json.dumps({k: v for k, v in row.items() if k != '_where'}) + '\n' for row in part)
runs = {}
with ThreadPoolExecutor(2) as pool:
    for group in (['SFT'], [m for m in METHODS if m != 'SFT']):  # some start from SFT's best rate
        jobs = [(m, lr) for m in group for lr in (METHODS[m][1][1:2] if QUICK else METHODS[m][1])]
        for (m, lr), folders in zip(jobs, pool.map(lambda job: train(*job, 0), jobs)):
            flops, record = curve(folders)[-1]
            print(f'tuning {m}, learning rate {lr:g}: pass@1 {record["eval/pass@1"]:.3f}, '
                  f'{flops / 1e12:.2f} TFLOP, {(time.time() - start) / 60:.0f} minutes so far', flush=True)
            chosen[m] = max(chosen.get(m, (0, 0)), (record['eval/pass@1'], lr))
        chosen.update({m: chosen[m][1] for m in group})
    jobs = [(m, chosen[m], seed) for seed in SEEDS for m in METHODS]
    for (m, _, seed), folders in zip(jobs, pool.map(lambda job: train(*job), jobs)):
        runs.setdefault(m, []).append(curve(folders))
        print(f'{m}, seed {seed}: {(time.time() - start) / 60:.0f} minutes so far', flush=True)
lines = ['| method | learning rate | all | ' + ' | '.join(LEVELS) + ' | TFLOP |',
         '|---' * (len(LEVELS) + 4) + '|']
# the first evaluation of an RL run is the start model's
for m, curves in {'start model': [[runs['GRPO'][0][0]]], **runs}.items():
    ends = [points[-1] for points in curves]
    columns = [[r['eval/pass@1'] for _, r in ends]]
    columns += [[level(r, x) for _, r in ends] for x in LEVELS.values()]
    spread = [f' ± {statistics.stdev(c):.3f}' if len(c) > 1 else '' for c in columns]
    cells = [f'{statistics.mean(c):.3f}{sd}' for c, sd in zip(columns, spread)]
    spent = f'{statistics.mean(f for f, _ in ends) / 1e12:.2f}' if m in chosen else '0'
    lines.append(f'| {m} | {f"{chosen[m]:g}" if m in chosen else ""} | {" | ".join(cells)} | {spent} |')
lines.append('\nGreedy pass@1 of all held-out sums; of a band of levels the mean of theirs, each counting '
             f'the same. Mean ± standard deviation of {len(SEEDS)} seeds.')
print('\n'.join(lines))
with open(os.path.join(OUT, 'table.md'), 'w') as f:
    f.write('\n'.join(lines) + '\n')
with open(os.path.join(OUT, 'curves.jsonl'), 'w') as f:  # all that the table and the picture are made of
    for m, curves in runs.items():
        for seed, (flops, r) in [(seed, point) for seed, points in zip(SEEDS, curves) for point in points]:
            scores = {key: value for key, value in r.items() if key.startswith('eval/pass')}
            f.write(json.dumps({'method': m, 'seed': seed, 'flops': flops, 'step': r['step'], **scores}))
            f.write('\n')
subprocess.run([sys.executable, 'plot.py', f'{OUT}/methods.png', f'{OUT}/curves.jsonl'], check=True)
