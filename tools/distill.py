"""On-policy distillation on the embedded search task, against SFT on the teacher's samples and GRPO.

    python -m tools.distill            # all runs: an hour on 2 cores
    python -m tools.distill --report   # the table again, from the runs that are kept
    python -m tools.distill --one      # one run at a time, where the other core is needed

The student is out/tiny_base (`make demo` makes it), the teacher out/tiny_teacher
(`python sft.py config/tiny_teacher.py`). Each finished run is a line of docs/distill.jsonl, and is not
made again: the command goes on where it was stopped. The table goes to docs/distill.txt. A learning
rate is chosen for each method on seed 0 and search:tune; then three other seeds run with it and are
measured on search:test. Each way to distil trains on the same number of completions. GRPO samples more
of them, because its steps cost less; the table has the compute of each.
"""
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from tools.machine import processor

STUDENT, TEACHER = 'out/tiny_base', 'out/tiny_teacher'
SEEDS = (1, 2, 3)
TUNING_SEED = 0
KEPT = 'docs/distill.jsonl'
TABLE = 'docs/distill.txt'
OUT = 'out/distill_results'


@dataclass(frozen=True)
class Method:
    """A command of the table, with learning rates to choose from."""
    name: str
    script: str
    flags: tuple
    rates: tuple = (1.5e-4, 3e-4, 6e-4)


# small batches and many steps: 28 steps of 32 x 8 completions gave 0.261 on search:tune, and 112 of
# 16 x 4, which are as many, 0.632
BATCH = ('--prompts_per_step=16', '--group_size=4', '--max_steps=56', '--eval_every=28')
OF_TEACHER = (*BATCH, '--on_policy_fraction=0')
METHODS = [
    Method('GRPO', 'grpo.py', ('--prompts_per_step=16', '--max_steps=72', '--eval_every=36'),
           (2e-4, 4e-4, 8e-4)),
    Method("SFT on the teacher's samples", 'distill.py', OF_TEACHER, (3e-4, 6e-4, 1.2e-3)),
    Method("forward KL on the teacher's samples", 'distill.py', (*OF_TEACHER, '--divergence=forward_kl')),
    Method('on-policy, sampled reverse KL', 'distill.py', BATCH),
    Method('on-policy, reverse KL', 'distill.py', (*BATCH, '--divergence=reverse_kl')),
    Method('on-policy, JSD', 'distill.py', (*BATCH, '--divergence=jsd'))]


@dataclass(frozen=True)
class Run:
    """One training."""
    method: str
    rate: float
    seed: int


def execute(method, run):
    """Trains and measures; returns the record."""
    begin = time.time()
    name = f'{run.method}_{run.rate:g}_{run.seed}'.replace(', ', '_').replace(' ', '_')
    folder = os.path.join(OUT, name)
    os.makedirs(OUT, exist_ok=True)
    is_tuning = run.seed == TUNING_SEED
    command = [
        sys.executable, method.script, 'config/tiny.py', *method.flags, f'--learning_rate={run.rate}',
        f'--seed={run.seed}', f'--eval_prompts=search:{"tune" if is_tuning else "test"}',
        f'--eval_samples={2 if is_tuning else 4}', '--sample_every=0', '--checkpoint_every=0',
        f'--out_dir={folder}', '--overwrite=True']
    # one thread, because another run is beside it
    with open(f'{folder}.txt', 'w') as output:
        subprocess.run(command, check=True, stdout=output, stderr=output,
                       env={**os.environ, 'OMP_NUM_THREADS': '1'})
    with open(f'{folder}/log.jsonl') as file:
        log = [json.loads(line) for line in file]
    shutil.rmtree(folder)
    with open(f'{folder}.txt') as file:
        # '821,376 parameters, ...': teacher and student are of the same size here
        (line,) = [line for line in file if ' parameters, ' in line and ' trained, ' in line]
    n_parameters = int(line.split()[0].replace(',', ''))
    evaluations = [record for record in log if 'eval/pass@1' in record]
    curve = [(record['step'], record['eval/pass@1']) for record in evaluations]
    by_digits = {key: value for key, value in evaluations[-1].items() if key.startswith('eval/pass@1/')}
    return {**asdict(run), 'curve': curve, **by_digits, 'tflop': tflop_of(log, n_parameters),
            'minutes': (time.time() - begin) / 60, 'made': f'{datetime.date.today()}, {processor()}'}


def tflop_of(log, n_parameters):
    """Compute of a run: 2N for each token that a model samples or a teacher scores, 6N for each trained."""
    sampled = scored = trained = 0
    for record in log:
        sampled += record.get('tokens/sampled', 0) + record.get('distill/teacher_sampled', 0)
        trained += record.get('tokens/trained', 0)
        scored += record.get('distill/teacher_scored', 0)
    return n_parameters * (2 * sampled + 2 * scored + 6 * trained) / 1e12


def read_kept():
    """{Run: record} of the runs that are kept."""
    if not os.path.exists(KEPT):
        return {}
    with open(KEPT) as file:
        records = [json.loads(line) for line in file]
    return {Run(r['method'], r['rate'], r['seed']): r for r in records}


def last_score(record):
    _, score = record['curve'][-1]
    return score


def best_rate(method, kept):
    """The learning rate with the best pass@1 on search:tune at the end; of equals the smallest."""
    scores = {rate: last_score(kept[Run(method.name, rate, TUNING_SEED)]) for rate in method.rates}
    return max(sorted(scores), key=scores.get)


def run_these(runs, pool):
    """Makes the runs, pairs of a Method and a Run, that are not kept."""
    def make(method_and_run):
        method, run = method_and_run
        record = execute(method, run)
        with open(KEPT, 'a') as file:
            file.write(json.dumps(record) + '\n')
        print(f'{run.method}, learning rate {run.rate:g}, seed {run.seed}: {last_score(record):.3f}, '
              f'{record["tflop"]:.1f} TFLOP, {record["minutes"]:.1f} minutes', flush=True)
    kept = read_kept()
    list(pool.map(make, [(method, run) for method, run in runs if run not in kept]))


def mean_and_deviation(values):
    return f'{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}'


def report(kept):
    """The table as text: the methods that have all their runs."""
    lines = ['| method | learning rate | TFLOP | pass@1 at half | at the end | 4 digits |',
             '|---|---|---|---|---|---|']
    tuning = []
    made = set()
    for method in METHODS:
        tried = [Run(method.name, rate, TUNING_SEED) for rate in method.rates]
        if not all(run in kept for run in tried):
            continue
        rate = best_rate(method, kept)
        runs = [Run(method.name, rate, seed) for seed in SEEDS]
        if not all(run in kept for run in runs):
            continue
        records = [kept[run] for run in runs]
        made |= {record['made'] for record in records}
        cells = [method.name, f'{rate:g}', f'{statistics.mean(r["tflop"] for r in records):.1f}']
        for place in (1, 2):  # evaluations are at the start, at half and at the end
            scores = [score for record in records for _, score in [record['curve'][place]]]
            cells.append(mean_and_deviation(scores))
        cells.append(mean_and_deviation([record['eval/pass@1/4'] for record in records]))
        lines.append(f'| {" | ".join(cells)} |')
        tried_scores = ', '.join(f'{run.rate:g}: {last_score(kept[run]):.3f}' for run in tried)
        tuning.append(f'{method.name}: {tried_scores}')
    start = [record['curve'][0][1] for run, record in kept.items() if run.seed != TUNING_SEED]
    if start:
        lines += ['', f'The start model: {statistics.mean(start):.3f} (mean of the {len(start)} runs before '
                      'their first step).']
    lines += ['', 'pass@1 on search:tune at the end, seed 0, by learning rate:', '', *tuning, '',
              f'made: {"; ".join(sorted(made))}']
    return '\n'.join(lines) + '\n'


def main(arguments):
    if not set(arguments) <= {'--report', '--one'}:
        sys.exit(__doc__)
    if '--report' not in arguments:
        for folder in (STUDENT, TEACHER):
            if not os.path.isdir(folder):
                sys.exit(f'{folder} is missing: see python -m tools.distill --help')
        with ThreadPoolExecutor(1 if '--one' in arguments else 2) as pool:
            run_these([(method, Run(method.name, rate, TUNING_SEED))
                       for method in METHODS for rate in method.rates], pool)
            kept = read_kept()
            run_these([(method, Run(method.name, best_rate(method, kept), seed))
                       for seed in SEEDS for method in METHODS], pool)
    text = report(read_kept())
    print(text)
    with open(TABLE, 'w') as file:
        file.write(text)


if __name__ == '__main__':
    main(sys.argv[1:])
