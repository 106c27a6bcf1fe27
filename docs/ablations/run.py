"""Runs each diff of this folder: three seeds with it, three without, from the demo's start model.

    make ablations                           # all of them: up to an hour on 2 cores; finished runs are kept
    python docs/ablations/run.py positive    # one of them

A diff begins with two lines that git apply skips: what it changes, and the command of both arms. The
patched copies of the code are in out/ablations; nothing of the working tree changes. A run of all
diffs writes outcomes.jsonl, which has every evaluation, and table.txt, which is printed too.
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
ARMS = ('baseline', 'variant')  # without the diff, with it
SEEDS = (1, 2, 3)


def diff_of(name):
    return os.path.join(HERE, f'{name}.diff')


def folder_of(name, arm):
    return os.path.join(ROOT, 'out', 'ablations', f'{name}_{arm}')


def prepare(name, arm):
    """Copies the code to the arm's folder; a variant is patched there."""
    folder = folder_of(name, arm)
    os.makedirs(folder, exist_ok=True)
    for path in glob.glob(os.path.join(ROOT, '*.py')):
        shutil.copy(path, folder)
    shutil.copytree(os.path.join(ROOT, 'rewards'), os.path.join(folder, 'rewards'), dirs_exist_ok=True)
    if arm == 'variant':
        directory = os.path.relpath(folder, ROOT)
        subprocess.run(['git', 'apply', f'--directory={directory}', diff_of(name)], cwd=ROOT, check=True)


def train(job):
    """Makes one run unless it is done; returns its evaluations, [{'step', 'eval/pass@1'}]."""
    name, arm, seed = job
    out_dir = os.path.join(folder_of(name, arm), f'seed{seed}')
    # the text file gets its name at the end: a model is in out_dir before a run is done
    if not os.path.exists(f'{out_dir}.txt'):
        run_script(job, out_dir)
        os.rename(f'{out_dir}.running', f'{out_dir}.txt')
        print(f'{name}, {arm}, seed {seed}: done', flush=True)
    with open(os.path.join(out_dir, 'log.jsonl')) as f:
        records = [json.loads(line) for line in f]
    evaluations = [record for record in records if 'eval/pass@1' in record]
    return [{key: record[key] for key in ('step', 'eval/pass@1')} for record in evaluations]


def run_script(job, out_dir):
    """Runs the command of the diff's second line in the arm's copy of the code."""
    name, arm, seed = job
    with open(diff_of(name)) as f:
        _, command, *_ = f
    _, script, *flags = shlex.split(command)
    path = os.path.join(folder_of(name, arm), script)
    # two runs at a time on two cores: a thread each
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    with open(f'{out_dir}.running', 'w') as output:
        subprocess.run(
            [sys.executable, path, *flags, f'--seed={seed}', f'--out_dir={out_dir}', '--overwrite=True'],
            cwd=ROOT, check=True, stdout=output, stderr=output, env=environment)


def table(names, outcomes):
    """The last pass@1 of both arms in Markdown: mean ± standard deviation over the seeds."""
    lines = ['| ablation | as it is | with the diff |', '|---|---|---|']
    for name in names:
        cells = [name]
        for arm in ARMS:
            last = [outcomes[name, arm, seed][-1] for seed in SEEDS]
            scores = [evaluation['eval/pass@1'] for evaluation in last]
            cells.append(f'{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}')
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def write_outcomes(outcomes):
    """Writes outcomes.jsonl: every evaluation of every run."""
    with open(os.path.join(HERE, 'outcomes.jsonl'), 'w') as f:
        for (name, arm, seed), evaluations in outcomes.items():
            for evaluation in evaluations:
                line = {'ablation': name, 'arm': arm, 'seed': seed, **evaluation}
                f.write(json.dumps(line) + '\n')


def main(chosen):
    paths = sorted(glob.glob(os.path.join(HERE, '*.diff')))
    every = [os.path.basename(path).removesuffix('.diff') for path in paths]
    names = chosen or every
    # all copies before all runs: no copy changes under a run that reads it
    jobs = []
    for name in names:
        for arm in ARMS:
            prepare(name, arm)
            jobs += [(name, arm, seed) for seed in SEEDS]
    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip(jobs, pool.map(train, jobs)))

    text = table(names, outcomes)
    print(text)
    # the files have all ablations or are left as they are
    if names == every:
        write_outcomes(outcomes)
        with open(os.path.join(HERE, 'table.txt'), 'w') as f:
            f.write(text + '\n')


if __name__ == '__main__':
    main(sys.argv[1:])
