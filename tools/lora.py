"""LoRA against training all weights: learning rates tuned for each, several seeds, peak memory.

    python -m tools.lora            # the embedded search task, grpo.py and sft.py
    python -m tools.lora real       # SmolLM2-135M on SVAMP's word problems, sft.py
    python -m tools.lora --report   # the tables again, from the runs that are kept

Each finished run is a line of docs/lora.jsonl, and is not made again: the command goes on where it
was stopped. The tables go to docs/lora.txt. A learning rate is chosen for each rank on seed 0 and on
rows that no table uses; then three other seeds run with it and are measured on the test rows. Peak
memory is the largest resident set of the training process.
"""
import json
import os
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
        ('--max_steps=60', '--eval_data=', '--schedule=cosine'),
        (3e-5, 1e-4, 3e-4), (3e-4, 1e-3, 3e-3), 'out/lora/svamp_tune.jsonl',
        'examples/svamp/test.jsonl', 4, 64)]


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
    _, peak = run_command(
        f'{folder}.txt', experiment.script, experiment.config, f'--model={experiment.start}', *data,
        *experiment.flags, f'--lora_rank={run.rank}', f'--learning_rate={run.rate}',
        f'--seed={run.seed}', '--eval_prompts=', '--overwrite=True', f'--out_dir={folder}')
    rows = experiment.tune if run.seed == TUNING_SEED else experiment.test
    run_command(
        f'{folder}_test.txt', 'sample.py', f'--model={folder}', f'--data={rows}',
        f'--n={experiment.samples}', f'--max_new_tokens={experiment.max_new_tokens}', '--show=0',
        f'--out={folder}.jsonl', '--overwrite=True')
    with open(f'{folder}.jsonl') as file:
        rewards = [json.loads(line)['reward'] for line in file]
    with open(f'{folder}.txt') as file:
        printed = file.read()
    # '820,864 parameters, 55,296 trained, 1 x cpu, ...'
    (line,) = [line for line in printed.splitlines() if ' trained, ' in line]
    trained = int(line.split(', ')[1].split()[0].replace(',', ''))
    return {**asdict(run), 'pass@1': statistics.mean(rewards), 'trained': trained, 'peak_gb': peak,
            'minutes': (time.time() - begin) / 60}


def training_rows(experiment):
    """--data for the rows of training. Of SVAMP a tenth is kept to choose learning rates by."""
    if not experiment.tune.endswith('.jsonl'):
        return []
    train = f'{OUT}/svamp_train.jsonl'
    if not os.path.exists(train):
        with open('examples/svamp/train.jsonl') as file:
            rows = file.readlines()
        for path, part in ((experiment.tune, rows[::10]),
                           (f'{train}.part', [row for i, row in enumerate(rows) if i % 10])):
            with open(path, 'w') as file:
                file.writelines(part)
        os.rename(f'{train}.part', train)
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
              f'{record["pass@1"]:.3f}, {record["minutes"]:.1f} minutes', flush=True)
    kept = read_kept()
    list(pool.map(make, [run for run in runs if run not in kept]))


def best_rate(experiment, rank, kept):
    """The learning rate with the best pass@1 on the rows for tuning; of equals the smallest."""
    scores = {rate: kept[Run(experiment.name, rank, rate, TUNING_SEED)]['pass@1']
              for rate in experiment.rates(rank)}
    return max(sorted(scores), key=scores.get)


def table(experiment, kept):
    """The lines of an experiment's table."""
    lines = [f'## {experiment.name}', '',
             '| rank | trained numbers | learning rate, of | pass@1 | each seed | peak memory, GB |',
             '|---|---|---|---|---|---|']
    for rank in RANKS:
        tuning = [Run(experiment.name, rank, rate, TUNING_SEED) for rate in experiment.rates(rank)]
        if not all(run in kept for run in tuning):
            continue
        rate = best_rate(experiment, rank, kept)
        records = [kept[run] for seed in SEEDS
                   if (run := Run(experiment.name, rank, rate, seed)) in kept]
        if len(records) < 2:
            continue
        scores = [record['pass@1'] for record in records]
        tried = ', '.join(f'{run.rate:g}: {kept[run]["pass@1"]:.3f}' for run in tuning)
        peak = max(record['peak_gb'] for record in records)
        lines.append(
            f'| {rank or "all weights"} | {records[0]["trained"]:,} | {rate:g} ({tried}) '
            f'| {statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f} '
            f'| {", ".join(f"{score:.3f}" for score in scores)} | {peak:.2f} |')
    return [*lines, '']


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
    kept = read_kept()
    lines = [f'python -m tools.lora, python -m tools.lora real: {processor()}', '']
    for experiment in SEARCH + REAL:
        lines += table(experiment, kept)
    text = '\n'.join(lines)
    print(text)
    with open(TABLES, 'w') as file:
        file.write(text)


if __name__ == '__main__':
    main(sys.argv[1:])
