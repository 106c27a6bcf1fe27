"""Each diff of this folder: three seeds with it, three without, from the demo's start model (make ablations).

    python docs/ablations/run.py             # 16 minutes on 2 cores; runs that are done are kept
    python docs/ablations/run.py positive    # one of them

A diff begins with two lines that git apply skips: what it changes, and the command of both arms. The patched
copies of the code lie in out/ablations; nothing of the working tree changes. Writes outcomes.jsonl, every
evaluation, and table.txt, which it prints.
"""
import glob
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SEEDS = (1, 2, 3)


def folder_of(name, arm):
    return os.path.join(ROOT, 'out', 'ablations', f'{name}_{arm}')


def prepare(name, arm):
    """Copy the scripts to the arm's folder, patched unless it is the baseline."""
    folder = folder_of(name, arm)
    os.makedirs(folder, exist_ok=True)
    for path in glob.glob(os.path.join(ROOT, '*.py')):
        shutil.copy(path, folder)
    if arm != 'baseline':
        subprocess.run(['git', 'apply', f'--directory={os.path.relpath(folder, ROOT)}',
                        os.path.join(HERE, f'{name}.diff')], cwd=ROOT, check=True)


def train(job):
    """The evaluations of one run: [{'step', 'eval/pass@1'}]."""
    name, arm, seed = job
    command = open(os.path.join(HERE, f'{name}.diff')).readlines()[1]
    folder, (_, script, *flags) = folder_of(name, arm), shlex.split(command)
    out_dir = os.path.join(folder, f'seed{seed}')
    if not os.path.exists(f'{out_dir}.txt'):  # a checkpoint is there before a run is done
        with open(f'{out_dir}.running', 'w') as output:
            subprocess.run([sys.executable, os.path.join(folder, script), *flags, f'--seed={seed}',
                            f'--out_dir={out_dir}', '--overwrite=True'], cwd=ROOT, check=True, stdout=output,
                           stderr=output, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        os.rename(f'{out_dir}.running', f'{out_dir}.txt')
        print(f'{name}, {arm}, seed {seed}: done', flush=True)
    with open(os.path.join(out_dir, 'log.jsonl')) as f:
        records = [json.loads(line) for line in f]
    return [{'step': r['step'], 'eval/pass@1': r['eval/pass@1']} for r in records if 'eval/pass@1' in r]


if __name__ == '__main__':
    every = sorted(os.path.basename(path)[:-5] for path in glob.glob(os.path.join(HERE, '*.diff')))
    names = sys.argv[1:] or every
    jobs = [(name, arm, seed) for name in names for arm in ('baseline', 'variant') for seed in SEEDS]
    for name, arm, seed in jobs:
        if seed == SEEDS[0]:  # not by each run: another of the arm may be reading them
            prepare(name, arm)
    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip(jobs, pool.map(train, jobs)))
    if names == every:
        with open(os.path.join(HERE, 'outcomes.jsonl'), 'w') as f:
            for (name, arm, seed), points in outcomes.items():
                about = {'ablation': name, 'arm': arm, 'seed': seed}
                f.writelines(json.dumps({**about, **r}) + '\n' for r in points)
    table = ['| ablation | as it is | with the diff |', '|---|---|---|']
    for name in names:
        cells = []
        for arm in ('baseline', 'variant'):
            ends = [outcomes[name, arm, seed][-1]['eval/pass@1'] for seed in SEEDS]
            cells.append(f'{statistics.mean(ends):.3f} ± {statistics.stdev(ends):.3f}')
        table.append(f'| {name} | {" | ".join(cells)} |')
    print('\n'.join(table))
    if names == every:
        with open(os.path.join(HERE, 'table.txt'), 'w') as f:
            f.write('\n'.join(table) + '\n')
