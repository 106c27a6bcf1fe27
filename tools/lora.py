"""LoRA against training all weights: learning rates tuned for each, several seeds, peak memory.

    python -m tools.lora            # the embedded search task, grpo.py and sft.py
    python -m tools.lora real       # SmolLM2-135M on SVAMP's word problems, sft.py
    python -m tools.lora --report   # the tables again, from the runs that are kept
    python -m tools.lora --one      # one run at a time, where the other core is needed

The start models: `make demo` makes out/tiny_base, `python -m tools.smollm2 out/smollm2` the other one.
Each finished run is a line of docs/lora.jsonl, and is not made again: the command goes on where it
was stopped. The tables go to docs/lora.txt. A learning rate is chosen for each rank on seed 0 and on
rows that no table uses; then three other seeds run with it and are measured on the test rows. Peak
memory is the largest resident set of the training process.
"""
import datetime
import json
import os
import shutil
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from tools.machine import processor

RANKS = (0, 32, 8, 1)  # 0: all weights are trained
SEEDS = (1, 2, 3)
TUNING_SEED = 0
KEPT = 'docs/lora.jsonl'
TABLES = 'docs/lora.txt'
OUT = 'out/lora'


@dataclass(frozen=True)
class Experiment:
    """A script on a start model, with learning rates to choose from."""
    name: str
    script: str
    config: str
    start: str  # folder of the start model
    flags: tuple
    full_rates: tuple
    lora_rates: tuple
    tune: str  # rows to choose a rate by
    test: str  # rows of the tables
    samples: int  # completions of each test row
    max_new_tokens: int
    by_loss: bool = False  # choose by the loss on held-out demonstrations, not by pass@1

    def rates(self, rank):
        return self.full_rates if rank == 0 else self.lora_rates


SEARCH = [
    Experiment(
        'search, GRPO', 'grpo.py', 'config/tiny.py', 'out/tiny_base',
        ('--max_steps=72', '--eval_every=0', '--schedule=constant'),
        (1.5e-4, 3e-4, 6e-4), (3e-4, 1e-3, 3e-3, 1e-2), 'search:tune', 'search:test', 8, 128),
    Experiment(
        'search, SFT', 'sft.py', 'config/tiny.py', 'out/tiny_base',
        ('--max_steps=200', '--eval_every=0', '--eval_data='),
        (1e-4, 3e-4, 1e-3, 3e-3), (3e-4, 1e-3, 3e-3, 1e-2), 'search:tune', 'search:test', 8, 128)]
REAL = [
    Experiment(
        'SmolLM2-135M, SFT', 'sft.py', 'config/real.py', 'out/smollm2',
        ('--max_steps=20', '--checkpoint_every=0'),
        (3e-5, 1e-4, 3e-4), (3e-4, 1e-3, 3e-3, 1e-2), 'out/lora/svamp_tune.jsonl',
        'examples/svamp/test.jsonl', 2, 64, by_loss=True)]


@dataclass(frozen=True)
class Run:
    """One training."""
    experiment: str
    rank: int
    rate: float
    seed: int


def run_command(text, *command):
    """Runs a command, its output in the file `text`; returns (that output, peak memory in GB)."""
    # one thread, because another run is beside it
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'SCALE': '1'}
    with open(text, 'w') as file:
        streams = [(os.POSIX_SPAWN_DUP2, file.fileno(), 1), (os.POSIX_SPAWN_DUP2, file.fileno(), 2)]
        process = os.posix_spawn(sys.executable, [sys.executable, *command], environment,
                                 file_actions=streams)
        _, status, usage = os.wait4(process, 0)
    if status != 0:
        raise SystemExit(f'{" ".join(command)}: it failed or was stopped, see {text}')
    with open(text) as file:
        return file.read(), usage.ru_maxrss * 1024 / 1e9


def execute(experiment, run):
    """Trains and measures; returns the record."""
    begin = time.time()
    name = f'{run.experiment}_{run.rank}_{run.rate:g}_{run.seed}'
    folder = os.path.join(OUT, name.replace(', ', '_'))
    data = training_rows(experiment)
    rows = experiment.tune if run.seed == TUNING_SEED else experiment.test
    if experiment.by_loss:
        data = [*data, f'--eval_data={rows}']
    printed, peak = run_command(
        f'{folder}.txt', experiment.script, experiment.config, f'--model={experiment.start}', *data,
        *experiment.flags, f'--lora_rank={run.rank}', f'--learning_rate={run.rate}',
        f'--seed={run.seed}', '--eval_prompts=', '--overwrite=True', f'--out_dir={folder}')
    scores = {}
    if experiment.by_loss:
        with open(f'{folder}/log.jsonl') as file:
            scores['loss'] = [json.loads(line) for line in file][-1]['eval/loss']
    if not experiment.by_loss or run.seed != TUNING_SEED:
        scores['pass@1'] = measure(experiment, folder, rows)
    # a finished run is not resumed, and a checkpoint of a real model has 1.6 GB
    shutil.rmtree(f'{folder}/state')
    # '899,200 parameters, 77,824 trained, 1 x cpu, ...'
    (line,) = [line for line in printed.splitlines() if ' trained, ' in line]
    trained = int(line.split(', ')[1].split()[0].replace(',', ''))
    return {**asdict(run), **scores, 'trained': trained, 'peak_gb': peak,
            'minutes': (time.time() - begin) / 60, 'made': f'{datetime.date.today()}, {processor()}'}


def measure(experiment, folder, rows):
    """pass@1 of the model in `folder` on `rows`."""
    run_command(
        f'{folder}_test.txt', 'sample.py', f'--model={folder}', f'--data={rows}',
        f'--n={experiment.samples}', f'--max_new_tokens={experiment.max_new_tokens}', '--show=0',
        f'--out={folder}.jsonl', '--overwrite=True')
    with open(f'{folder}.jsonl') as file:
        return statistics.mean(json.loads(line)['reward'] for line in file)


def training_rows(experiment):
    """--data for the rows of training. Of SVAMP a tenth is kept to choose learning rates by."""
    # the embedded task has a split for that
    if not experiment.tune.endswith('.jsonl'):
        return []
    train = f'{OUT}/svamp_train.jsonl'
    if not os.path.exists(train):
        with open('examples/svamp/train.jsonl') as file:
            rows = file.readlines()
        with open(experiment.tune, 'w') as file:
            file.writelines(rows[::10])
        with open(train, 'w') as file:
            file.writelines(row for i, row in enumerate(rows) if i % 10 != 0)
    return [f'--data={train}']


def read_kept():
    """{Run: record} of the runs that are kept."""
    if not os.path.exists(KEPT):
        return {}
    with open(KEPT) as file:
        records = [json.loads(line) for line in file]
    return {Run(r['experiment'], r['rank'], r['rate'], r['seed']): r for r in records}


def run_these(experiment, runs, pool):
    """Makes the runs that are not kept, two at a time."""
    def make(run):
        record = execute(experiment, run)
        with open(KEPT, 'a') as file:
            file.write(json.dumps(record) + '\n')
        print(f'{run.experiment}, rank {run.rank}, learning rate {run.rate:g}, seed {run.seed}: '
              f'{score_of(experiment, record):.3f}, {record["minutes"]:.1f} minutes', flush=True)
    kept = read_kept()
    list(pool.map(make, [run for run in runs if run not in kept]))


def score_of(experiment, record):
    """What a learning rate is chosen by: the loss, else pass@1."""
    return record['loss' if experiment.by_loss else 'pass@1']


def best_rate(experiment, rank, kept):
    """The learning rate with the best score on the rows for tuning; of equals the smallest."""
    scores = {rate: score_of(experiment, kept[Run(experiment.name, rank, rate, TUNING_SEED)])
              for rate in experiment.rates(rank)}
    best = min if experiment.by_loss else max
    return best(sorted(scores), key=scores.get)


def table(experiment, kept):
    """The lines of an experiment's table, with the ranks that have all their runs."""
    lines = []
    made = set()
    for rank in RANKS:
        tuning = [Run(experiment.name, rank, rate, TUNING_SEED) for rate in experiment.rates(rank)]
        if not all(run in kept for run in tuning):
            continue
        rate = best_rate(experiment, rank, kept)
        runs = [Run(experiment.name, rank, rate, seed) for seed in SEEDS]
        if not all(run in kept for run in runs):
            continue
        records = [kept[run] for run in runs]
        made |= {record['made'] for record in records}

        scores = [record['pass@1'] for record in records]
        cells = [f'{rank or "all weights"}', f'{records[0]["trained"]:,}', f'{rate:g}']
        if experiment.by_loss:
            cells.append(mean_and_spread([record['loss'] for record in records]))
        cells += [
            mean_and_spread(scores),
            ', '.join(f'{score:.3f}' for score in scores),
            ', '.join(f'{run.rate:g}: {score_of(experiment, kept[run]):.3f}' for run in tuning),
            f'{max(record["peak_gb"] for record in records):.2f}']
        lines.append(f'| {" | ".join(cells)} |')

    if not lines:
        return []
    names = ['rank', 'trained numbers', 'learning rate']
    names += ['loss'] if experiment.by_loss else []
    names += ['pass@1', 'each seed']
    names += ['loss by learning rate' if experiment.by_loss else 'pass@1 by learning rate']
    names += ['peak memory, GB']
    return [f'## {experiment.name} ({"; ".join(sorted(made))})', '',
            f'| {" | ".join(names)} |', '|---' * len(names) + '|', *lines, '']


def report(kept):
    """All tables, as docs/lora.txt has them."""
    lines = ['python -m tools.lora; python -m tools.lora real', '']
    for experiment in SEARCH + REAL:
        lines += table(experiment, kept)
    return '\n'.join(lines)


def mean_and_spread(scores):
    return f'{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}'


def main(arguments):
    if not set(arguments) <= {'real', '--report', '--one'}:
        sys.exit(__doc__)
    os.makedirs(OUT, exist_ok=True)
    experiments = REAL if 'real' in arguments else SEARCH
    if '--report' not in arguments:
        with ThreadPoolExecutor(1 if '--one' in arguments else 2) as pool:
            for experiment in experiments:
                tuning = [Run(experiment.name, rank, rate, TUNING_SEED)
                          for rank in RANKS for rate in experiment.rates(rank)]
                training_rows(experiment)
                run_these(experiment, tuning, pool)
                kept = read_kept()
                runs = [Run(experiment.name, rank, best_rate(experiment, rank, kept), seed)
                        for seed in SEEDS for rank in RANKS]
                run_these(experiment, runs, pool)
    text = report(read_kept())
    print(text)
    with open(TABLES, 'w') as file:
        file.write(text)


if __name__ == '__main__':
    main(sys.argv[1:])
