"""Compares five methods from one start model at matched compute: a table and a picture.

    python -m tools.results            # tuning, then 5 seeds; two runs at a time; finished runs are kept
    python -m tools.results --quick    # one learning rate, one seed, a sixth of the steps: 10 minutes
                                       # on 2 cores

The task is the embedded one. FLOPs of a run with N parameters: 2N for each token that sampling puts
through the model and 6N for each that an update does (log.jsonl: tokens/sampled and tokens/trained;
sft.py's tokens are all trained). The steps in METHODS are set so that the methods cost about the
same; the table has what they did cost.

Learning rates are chosen on seed 0 by pass@1 on prompts that no model was trained on, the start
model included, and that are not in the table. Each method has the same number of values.
"""
import json
import os
import statistics
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from model import load_model
from rows import read_rows

QUICK = '--quick' in sys.argv[1:]
OUT = 'out/quick' if QUICK else 'out/results'
BASE = 'out/tiny_base'  # the start model of all methods
SEEDS = [1] if QUICK else [1, 2, 3, 4, 5]
TUNING_SEED = 0


@dataclass
class Method:
    """The scripts of a method, one after the other, and the learning rates it is tuned over."""
    stages: list  # of (script, steps); each starts from the model of the one before
    learning_rates: list  # of the last stage


SFT_RATES = [1e-3, 3e-3, 1e-2]
RL_RATES = [5e-5, 1e-4, 2e-4]
METHODS = {
    'SFT': Method([('sft.py', 305)], SFT_RATES),
    'GRPO': Method([('grpo.py', 60)], RL_RATES),
    'SFT then GRPO': Method([('sft.py', 200), ('grpo.py', 16)], RL_RATES),
    'HPT': Method([('hpt.py', 60)], RL_RATES),
    'Prefix-RFT': Method([('prefix_rft.py', 55)], RL_RATES)}

# numbers of operands
LEVELS = {'easy, 2-4': range(2, 5), 'middle, 5-8': range(5, 9), 'hard, 9-10': range(9, 11)}


# --- data ---------------------------------------------------------------------
def prepare_start_model():
    """Trains the start model unless it is there."""
    if read_log(BASE):
        return
    print('the start model: sft.py config/tiny_base.py, about 2 minutes', flush=True)
    subprocess.run([sys.executable, 'sft.py', 'config/tiny_base.py'], check=True,
                   stdout=subprocess.DEVNULL)


def for_tuning(prompt):
    """Whether a training prompt is kept from training: one eighth. Another eighth is sums:test."""
    return zlib.crc32(prompt.encode()) % 8 == 1


def prepare_rows():
    """Writes train.jsonl, which all methods train on, and tune.jsonl, which decides learning rates."""
    rows = {}  # by prompt: a prompt that occurs twice counts once
    training_rows, _ = read_rows('sums:train')
    for row in training_rows:
        rows[row['prompt']] = row
    train = [row for prompt, row in rows.items() if not for_tuning(prompt)]

    # neither the methods nor the start model have seen the sums that learning rates are chosen on
    seen = set()
    rows_of_start_model, _ = read_rows('sums:base')
    for row in rows_of_start_model:
        question, *_ = row['messages']
        seen.add(question['content'])
    unseen = [row for prompt, row in rows.items() if for_tuning(prompt) and prompt not in seen]
    tune = unseen[:450]
    assert len(tune) == 450
    write_rows('train.jsonl', train)
    write_rows('tune.jsonl', tune)


def write_rows(name, rows):
    with open(os.path.join(OUT, name), 'w') as f:
        for row in rows:
            # _where is the reader's note of where the row came from
            fields = {key: value for key, value in row.items() if key != '_where'}
            f.write(json.dumps(fields) + '\n')


# --- runs ---------------------------------------------------------------------
def read_log(folder):
    """The records of a run's log, [] where there is none."""
    path = os.path.join(folder, 'log.jsonl')
    if not os.path.exists(path):
        return []
    with open(path) as f:
        return [json.loads(line) for line in f]


def is_done(folder, steps):
    """Whether a run made its last evaluation, which comes after its last step."""
    return any(record['step'] == steps and 'eval/pass@1' in record for record in read_log(folder))


def train(name, learning_rate, seed, chosen):
    """Runs a method's stages, but for those that are done; returns their folders.

    `chosen`: {method: learning rate}, where SFT's is that of every stage before the last.
    """
    method = METHODS[name]
    model = BASE
    folders = []
    for i, (script, steps) in enumerate(method.stages):
        if QUICK:
            steps = steps // 6
        is_last = i == len(method.stages) - 1
        rate = learning_rate if is_last else chosen['SFT']
        # named by the last stage's rate, whatever this stage's is: two jobs never share a folder
        folder = os.path.join(OUT, f'{name}_{i}_{learning_rate:g}_{seed}'.replace(' ', '_'))
        if not is_done(folder, steps):
            run_stage(script, model, folder, steps, rate, seed)
        folders.append(folder)
        model = folder
    return folders


def run_stage(script, model, folder, steps, learning_rate, seed):
    """Runs a script from `model` in `folder`; its output goes to a text file beside the folder."""
    eval_prompts = f'{OUT}/tune.jsonl' if seed == TUNING_SEED else 'sums:test'
    flags = [f'--model={model}', f'--out_dir={folder}', f'--max_steps={steps}', f'--seed={seed}',
             f'--learning_rate={learning_rate}', f'--eval_every={max(1, steps // 4)}',
             '--overwrite=True', f'--data={OUT}/train.jsonl', f'--eval_prompts={eval_prompts}']
    if script == 'prefix_rft.py':
        # its prefixes shrink over the whole run
        flags.append(f'--prefix_steps={steps}')
    # two runs at a time on two cores: a thread each
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    with open(f'{folder}.txt', 'w') as f:
        subprocess.run([sys.executable, script, 'config/tiny.py', *flags], stdout=f, stderr=f,
                       check=True, env=environment)
    last = read_log(folder)[-1]
    # a run that Ctrl-C has stopped ends without an error
    assert last['step'] == steps, f'{folder} was stopped: run this again'


def curve(folders, n_parameters):
    """[(FLOPs so far, record)] of the records with an evaluation, over all stages."""
    points = []
    flops = 0
    for folder in folders:
        flops_before = flops  # of the stages before this one
        counted = 0  # FLOPs of this stage for each parameter
        for record in read_log(folder):
            counted += 2 * record.get('tokens/sampled', 0) + 6 * record.get('tokens/trained', 0)
            # sft.py logs no such counts: it trains all of its tokens, and 'tokens' is their sum so far
            per_parameter = counted if counted > 0 else 6 * record['tokens']
            flops = flops_before + n_parameters * per_parameter
            if 'eval/pass@1' in record:
                points.append((flops, record))
    return points


# --- tuning and seeds ---------------------------------------------------------
def tune_rates(pool, names, chosen, n_parameters, start):
    """Runs these methods with all their learning rates; adds the best of each to `chosen`."""
    jobs = []
    for name in names:
        rates = METHODS[name].learning_rates
        # quick: the middle one, without a comparison
        jobs += [(name, rate) for rate in (rates[1:2] if QUICK else rates)]
    runs = pool.map(lambda job: train(*job, TUNING_SEED, chosen), jobs)

    scores = {name: [] for name in names}  # of (pass@1, learning rate)
    for (name, rate), folders in zip(jobs, runs):
        flops, record = curve(folders, n_parameters)[-1]
        score = record['eval/pass@1']
        scores[name].append((score, rate))
        print(f'tuning {name}, learning rate {rate:g}: pass@1 {score:.3f}, '
              f'{flops / 1e12:.2f} TFLOP, {minutes_since(start):.0f} minutes so far', flush=True)
    for name in names:
        _, chosen[name] = max(scores[name])


def run_seeds(pool, chosen, n_parameters, start):
    """{method: its curve with each seed}, at the chosen learning rates."""
    jobs = [(name, chosen[name], seed) for seed in SEEDS for name in METHODS]
    runs = pool.map(lambda job: train(*job, chosen), jobs)
    curves = {name: [] for name in METHODS}
    for (name, _, seed), folders in zip(jobs, runs):
        curves[name].append(curve(folders, n_parameters))
        print(f'{name}, seed {seed}: {minutes_since(start):.0f} minutes so far', flush=True)
    return curves


def minutes_since(start):
    return (time.time() - start) / 60


# --- outcome ------------------------------------------------------------------
def pass_at_1_of(record, operands):
    """pass@1 at these numbers of operands, each number counting the same."""
    return statistics.mean(record[f'eval/pass@1/{n}'] for n in operands)


def mean_and_spread(values):
    """The mean ± the standard deviation over seeds, as text."""
    text = f'{statistics.mean(values):.3f}'
    if len(values) > 1:
        text += f' ± {statistics.stdev(values):.3f}'
    return text


def table_row(name, learning_rate, ends, tflop):
    """A line of the table; `ends` are the last records of all seeds."""
    cells = [name, learning_rate, mean_and_spread([record['eval/pass@1'] for record in ends])]
    for operands in LEVELS.values():
        cells.append(mean_and_spread([pass_at_1_of(record, operands) for record in ends]))
    cells.append(tflop)
    return f'| {" | ".join(cells)} |'


def table(curves, chosen):
    """The table in Markdown, with a line on how to read it."""
    headings = ['method', 'learning rate', 'all', *LEVELS, 'TFLOP']
    lines = [f'| {" | ".join(headings)} |', '|---' * len(headings) + '|']
    # the first evaluation of an RL run is the start model's, the same with every seed
    first_curve = curves['GRPO'][0]
    _, start_record = first_curve[0]
    lines.append(table_row('start model', '', [start_record], '0'))
    for name, curves_of_seeds in curves.items():
        last_points = [points[-1] for points in curves_of_seeds]
        mean_flops = statistics.mean(flops for flops, _ in last_points)
        lines.append(table_row(name, f'{chosen[name]:g}', [record for _, record in last_points],
                               f'{mean_flops / 1e12:.2f}'))
    lines.append('\nGreedy pass@1 of all held-out sums; of a band of levels the mean of theirs, each '
                 f'counting the same. Mean ± standard deviation of {len(SEEDS)} seeds.')
    return '\n'.join(lines)


def write_curves(curves):
    """Writes curves.jsonl: all that the table and the picture are made of."""
    with open(os.path.join(OUT, 'curves.jsonl'), 'w') as f:
        for name, curves_of_seeds in curves.items():
            for seed, points in zip(SEEDS, curves_of_seeds):
                for flops, record in points:
                    scores = {key: value for key, value in record.items() if key.startswith('eval/pass')}
                    line = {'method': name, 'seed': seed, 'flops': flops, 'step': record['step'], **scores}
                    f.write(json.dumps(line) + '\n')


def main():
    start = time.time()
    os.makedirs(OUT, exist_ok=True)
    prepare_start_model()
    prepare_rows()
    n_parameters = sum(p.numel() for p in load_model(BASE).parameters())

    chosen = {}  # learning rate of each method
    with ThreadPoolExecutor(2) as pool:
        # SFT first: the first stage of another method takes its rate
        tune_rates(pool, ['SFT'], chosen, n_parameters, start)
        others = [name for name in METHODS if name != 'SFT']
        tune_rates(pool, others, chosen, n_parameters, start)
        curves = run_seeds(pool, chosen, n_parameters, start)

    text = table(curves, chosen)
    print(text)
    with open(os.path.join(OUT, 'table.md'), 'w') as f:
        f.write(text + '\n')
    write_curves(curves)
    subprocess.run([sys.executable, 'plot.py', f'{OUT}/methods.png', f'{OUT}/curves.jsonl'], check=True)


if __name__ == '__main__':
    main()
