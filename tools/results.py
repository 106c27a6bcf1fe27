"""Compares the methods on the embedded search task: regimes of demonstrations, controls, tests.

    python -m tools.results            # all of it: hours on 2 cores. It may be stopped at any time
    python -m tools.results --report   # the tables and the picture again, from docs/curves.jsonl
    python -m tools.results --quick    # everything once, small: minutes; nothing in docs/ changes

Each finished run is a line of docs/curves.jsonl. A run that has its line there is not made again: so
the command goes on where it was stopped, also on another machine. Delete the file to start afresh.

The regimes differ in the demonstrations; the prompts are the same:

    plenty   every prompt has one, a search that reached the target
    scarce   SCARCE prompts have one
    noisy    every prompt has one; a third end in a wrong attempt, and half of those claim it right

What needs no demonstrations (GRPO, DPO on pairs of the start model's own completions, the controls)
runs once for all regimes.

Compute is matched: every method may spend about the same FLOPs, 2N for each token that sampling puts
through the model and 6N for each token of an update, N being the number of parameters. A method
stops earlier where that is better: learning rate and last step are chosen together, among three
rates and four steps for each method and regime, on seed 0 and on problems that no table uses
(search:tune). Then seeds 1 to 5 run with this choice, and the models are measured on search:test.
"""
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import combinations

import torch

from data import completion_text, load_tokenizer, rl_prompts, stop_ids
from embedded import make_attempt
from model import load_model
from rows import read_rows
from verify import verify_all

# --- settings -------------------------------------------------------------------
QUICK = '--quick' in sys.argv[1:]
OUT = 'out/quick' if QUICK else 'out/results'  # run folders and their texts
SUMMARY = f'{OUT}/curves.jsonl' if QUICK else 'docs/curves.jsonl'  # a line for each finished run
REPORT = f'{OUT}/results.txt' if QUICK else 'docs/results.txt'
PICTURE = f'{OUT}/methods.png' if QUICK else 'docs/methods.png'
BASE = 'out/tiny_base'  # the start model of all methods
TUNING_SEED = 0
SEEDS = (1, 2) if QUICK else (1, 2, 3, 4, 5)
QUARTERS = 4  # evaluations during a run; each is a step at which the method may stop
SAMPLES = 2 if QUICK else 16  # completions of each test problem
MAX_NEW_TOKENS = 128
SCARCE = 48  # demonstrations of the regime 'scarce'
SCARCE_SHARE = 0.25  # HPT, Prefix-RFT: the share of prompts there that have a demonstration
WRONG_SHARE = 1 / 3  # of the demonstrations of the regime 'noisy'
PAIR_PROMPTS = 100 if QUICK else 2000  # DPO's pairs are made of 8 completions of each

SFT_RATES = (3e-4, 1e-3, 3e-3)
RL_RATES = (2e-4, 4e-4, 8e-4)
DPO_RATES = (3e-5, 1e-4, 3e-4)


@dataclass
class Method:
    """What a method runs. The steps are set so that all methods cost about the same."""
    script: str
    steps: int
    learning_rates: tuple
    needs_demonstrations: bool = True
    sft_steps: int = 0  # of sft.py before it, at most


METHODS = {
    'GRPO': Method('grpo.py', 44, RL_RATES, needs_demonstrations=False),
    'DPO': Method('dpo.py', 120, DPO_RATES, needs_demonstrations=False),
    'SFT': Method('sft.py', 540, SFT_RATES),
    'SFT then GRPO': Method('grpo.py', 20, RL_RATES, sft_steps=200),
    'HPT': Method('hpt.py', 36, RL_RATES),
    'Prefix-RFT': Method('prefix_rft.py', 40, RL_RATES),
}
REGIMES = ('plenty', 'scarce', 'noisy')
NO_REGIME = 'none'  # of what needs no demonstrations
LEVELS = (2, 3, 4)  # numbers of digits


@dataclass(frozen=True)
class Run:
    """One training: a method with a learning rate, a number of steps and a seed."""
    regime: str
    method: str
    learning_rate: float
    steps: int  # of the method's own script
    seed: int

    @property
    def name(self):
        return (f'{self.regime}, {self.method}, learning rate {self.learning_rate:g}, '
                f'{self.steps} steps, seed {self.seed}')

    @property
    def folder(self):
        return f'{OUT}/{re.sub("[^a-z0-9.]+", "_", self.name.lower())}'

    @property
    def tunes(self):
        """Whether it is for choosing a learning rate, and not for the tables."""
        return self.seed == TUNING_SEED


# --- the summary ------------------------------------------------------------------
class Summary:
    """The lines of curves.jsonl: {name: record}. A record is kept as soon as its run is done."""

    def __init__(self, path):
        self.path = path
        self.records = {}
        self.lock = threading.Lock()
        self.start = time.time()
        if os.path.exists(path):
            with open(path) as f:
                for line in f:
                    record = json.loads(line)
                    self.records[record['name']] = record

    def keep(self, record):
        """Adds a record and prints it in short."""
        with self.lock:
            self.records[record['name']] = record
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with open(self.path, 'a') as f:
                f.write(json.dumps(record) + '\n')
            scores = ', '.join(f'{key} {record[key]:.3f}' for key in ('tflop', 'pass@1') if key in record)
            minutes = (time.time() - self.start) / 60
            print(f'{minutes:4.0f} minutes: {record["name"]}: {scores}', flush=True)


# --- demonstrations ---------------------------------------------------------------
def prepare_demonstrations():
    """Writes the rows of the regimes; every problem is there once."""
    distinct = {}  # prompt -> row
    train, _ = read_rows('search:train')
    for row in train:
        # _where is the reader's note of where the row came from
        fields = {key: value for key, value in row.items() if key != '_where'}
        distinct.setdefault(row['prompt'], fields)
    plenty = list(distinct.values())
    write_rows('plenty', plenty)

    # the difficulties in turn, as the rows are
    write_rows('scarce', plenty[:SCARCE])
    rest = []
    for row in plenty[SCARCE:]:
        rest.append({key: value for key, value in row.items() if key != 'demonstration'})
    write_rows('rest', rest)

    noisy = list(plenty)
    wrong = random.Random('noisy').sample(range(len(noisy)), round(WRONG_SHARE * len(noisy)))
    for n, i in enumerate(wrong):
        noisy[i] = spoil(noisy[i], claims_right=n % 2 == 0)
    write_rows('noisy', noisy)


def spoil(row, claims_right):
    """The row with a demonstration whose last attempt is wrong, and perhaps claims to be right."""
    numbers, target = row['answer']['numbers'], row['answer']['target']
    rng = random.Random(row['prompt'])
    attempt = make_attempt(numbers, rng)
    while attempt.result == target:
        attempt = make_attempt(numbers, rng)
    verdict = 'y' if claims_right else 'n'
    *before, _ = row['demonstration'].split('\n')
    return {**row, 'demonstration': '\n'.join([*before, f'{attempt.text}?{target}{verdict}'])}


def rows_of(name):
    return f'{OUT}/rows/{name}.jsonl'


def write_rows(name, rows):
    os.makedirs(f'{OUT}/rows', exist_ok=True)
    with open(rows_of(name), 'w') as f:
        for row in rows:
            f.write(json.dumps(row) + '\n')


def data_flags(script, regime, seed):
    """What a script trains on in a regime."""
    if script == 'dpo.py':
        return [f'--data={rows_of(f"pairs_{seed}")}', '--eval_data=']
    if script == 'grpo.py':
        return [f'--data={rows_of("plenty")}']
    if script == 'sft.py':
        return [f'--data={rows_of(regime)}', '--eval_data=']
    if regime == 'scarce':
        # as many passes over the few prompts with a demonstration as make them SCARCE_SHARE of all
        with open(rows_of('rest')) as f:
            n_rest = len(f.readlines())
        passes = SCARCE_SHARE / (1 - SCARCE_SHARE) * n_rest / SCARCE
        return [f'--data={rows_of("scarce")}*{passes:.3f},{rows_of("rest")}',
                '--without_demonstration=rl']
    return [f'--data={rows_of(regime)}']


# --- running ------------------------------------------------------------------------
def run_command(text, *command):
    """Runs a script of the repository; what it prints goes to the file `text` and is returned."""
    os.makedirs(os.path.dirname(text), exist_ok=True)
    # two runs at a time on two cores: a thread each
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    with open(text, 'w') as f:
        done = subprocess.run([sys.executable, *command], stdout=f, stderr=f, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f'{" ".join(command)}: it failed, see {text}')
    with open(text) as f:
        return f.read()


def train(script, model, folder, steps, run, learning_rate):
    """Runs a script from `model` in `folder`, unless that is done; returns its log, a list of dicts."""
    log_path = os.path.join(folder, 'log.jsonl')
    if not os.path.exists(f'{folder}.txt'):
        evaluation = ['--eval_prompts=search:test', '--eval_samples=1']
        if run.tunes:
            evaluation = ['--eval_prompts=search:tune', '--eval_samples=2']
        flags = [f'--model={model}', f'--out_dir={folder}', f'--max_steps={steps}',
                 f'--learning_rate={learning_rate}', '--schedule=constant', f'--seed={run.seed}',
                 f'--eval_every={max(1, METHODS[run.method].steps // QUARTERS)}', '--overwrite=True']
        if script == 'prefix_rft.py':
            # its prefixes shrink over the whole run
            flags.append(f'--prefix_steps={METHODS[run.method].steps}')
        run_command(f'{folder}.running', script, 'config/tiny.py', *flags, *evaluation,
                    *data_flags(script, run.regime, run.seed))
        os.rename(f'{folder}.running', f'{folder}.txt')
    with open(log_path) as f:
        log = [json.loads(line) for line in f]
    # a run that Ctrl-C has stopped ends without an error
    if log[-1]['step'] != steps:
        raise RuntimeError(f'{folder} was stopped: delete {folder}.txt and run this again')
    return log


def points_of(log, n_parameters, tflop_before):
    """[(TFLOP, step, pass@1)] of the evaluations in a log, and the TFLOP at its end."""
    points = []
    counted = 0  # FLOPs for each parameter
    for record in log:
        counted += 2 * record.get('tokens/sampled', 0) + 6 * record.get('tokens/trained', 0)
        # sft.py and dpo.py have no such counts: they train all their tokens; 'tokens' is the sum so far
        per_parameter = counted if counted > 0 else 6 * record['tokens']
        tflop = tflop_before + n_parameters * per_parameter / 1e12
        if 'eval/pass@1' in record:
            points.append((tflop, record['step'], record['eval/pass@1']))
    return points, tflop


def execute(run, summary, choices, n_parameters):
    """Makes a run and keeps its record, unless the summary has it."""
    if run.name in summary.records:
        return
    begin = time.time()
    method = METHODS[run.method]
    model, points, tflop = BASE, [], 0.0
    if method.sft_steps:
        # SFT's own choice in this regime, but for a limit to its steps
        rate, steps = choices[run.regime, 'SFT']
        steps = min(steps, scaled(method.sft_steps))
        log = train('sft.py', BASE, f'{run.folder}_sft', steps, run, rate)
        model = f'{run.folder}_sft'
        points, tflop = points_of(log, n_parameters, 0.0)
    if method.script == 'dpo.py':
        tflop = prepare_pairs(run.seed, summary, n_parameters)
    log = train(method.script, model, run.folder, run.steps, run, run.learning_rate)
    later, tflop = points_of(log, n_parameters, tflop)

    record = {'name': run.name, **asdict(run), 'tflop': tflop, 'points': points + later}
    if run.tunes:
        record['pass@1'] = points[-1][-1] if not later else later[-1][-1]
    else:
        record |= measure(run.folder, run.folder)
    record['minutes'] = (time.time() - begin) / 60
    summary.keep(record)


def scaled(steps):
    """Steps, or with --quick few of them."""
    return max(QUARTERS, steps // 10) if QUICK else steps


def prepare_pairs(seed, summary, n_parameters):
    """DPO's pairs: the start model's own completions with this seed, a right and a wrong one each.

    Returns their cost in TFLOP: of sampling, and of scoring a pair once with the reference.
    """
    pairs = rows_of(f'pairs_{seed}')
    if not os.path.exists(f'{pairs}.txt'):
        run_command(f'{pairs}.running', 'sample.py', f'--model={BASE}', '--write=pairs', '--n=8',
                    f'--data={rows_of("plenty")}', f'--limit={PAIR_PROMPTS}', f'--seed={seed}',
                    f'--max_new_tokens={MAX_NEW_TOKENS}', '--show=0', f'--out={pairs}',
                    '--overwrite=True')
        os.rename(f'{pairs}.running', f'{pairs}.txt')
    with open(f'{pairs}.txt') as f:
        last_line = f.read().splitlines()[-2]
    tokens = float(re.search(r'tokens ([\d.]+)', last_line)[1]) * PAIR_PROMPTS * 8
    return 2 * n_parameters * tokens / 1e12


# --- measuring ----------------------------------------------------------------------
def measure(model, path, temperature=1.0):
    """What the tables say of a model, a dict; the completions go to files that begin with `path`."""
    def sample(name, data, n, temperature):
        out = f'{path}_{name}.jsonl'
        report = run_command(f'{path}_{name}.txt', 'sample.py', f'--model={model}', f'--data={data}',
                             f'--n={n}', f'--temperature={temperature}', f'--out={out}', '--show=0',
                             f'--max_new_tokens={MAX_NEW_TOKENS}', '--overwrite=True')
        with open(out) as f:
            return [json.loads(line) for line in f], report

    completions, report = sample('test', 'search:test', SAMPLES, temperature)
    solved = defaultdict(bool)  # prompt -> whether one of its completions is right
    for completion in completions:
        solved[completion['prompt']] |= completion['reward'] > 0.5
    scores = {
        'pass@1': mean_reward(completions),
        f'pass@{SAMPLES}': statistics.mean(solved.values()),
        f'maj@{SAMPLES}': float(re.search(rf'  maj@{SAMPLES} ([\d.]+)', report.split(' all ')[1])[1]),
        'tokens': statistics.mean(completion['tokens'] for completion in completions),
        'truncated': statistics.mean(not completion['stopped'] for completion in completions),
    }
    for level in LEVELS:
        scores[f'pass@1/{level}'] = mean_reward(c for c in completions if c['difficulty'] == level)
    greedy, _ = sample('greedy', 'search:test', 1, 0)
    scores['greedy'] = mean_reward(greedy)
    arithmetic, _ = sample('arithmetic', 'search:arithmetic', 2, temperature)
    scores['arithmetic'] = mean_reward(arithmetic)
    return scores


def mean_reward(completions):
    return statistics.mean(completion['reward'] for completion in completions)


# --- controls -------------------------------------------------------------------------
def sample_with_bias(lm, prompts, stops, bias, n, seed):
    """Mean reward and tokens of n completions of each prompt; `bias` (V,) is added to all logits.

    transformers samples here: rollout.py has no such knob.
    """
    longest = max(len(prompt['ids']) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        # padding on the left
        ids[i, longest - len(prompt['ids']):] = torch.tensor(prompt['ids'])
        mask[i, longest - len(prompt['ids']):] = 1
    torch.manual_seed(seed)
    with torch.no_grad():
        sampled = lm.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=n, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=sorted(stops),
            pad_token_id=min(stops), logits_processor=[lambda _, logits: logits + bias])
    tokenizer = load_tokenizer(BASE)
    tasks = []
    for i, completion in enumerate(sampled[:, longest:].tolist()):
        ends = [place for place, token in enumerate(completion) if token in stops]
        text = completion_text(tokenizer, completion[:ends[0] + 1] if ends else completion)
        prompt = prompts[i // n]
        tasks.append((prompt['kind'], text, prompt['truth']))
    return statistics.mean(reward for reward, _ in verify_all(tasks))


def bias_controls(summary):
    """The best constant bias on one logit, of the end token and of any token, chosen on search:tune."""
    names = {'end': 'best bias on the end token', 'any': 'best bias on any one token'}
    if all(name in summary.records for name in names.values()):
        return
    lm = load_model(BASE, attention='sdpa').eval()
    tokenizer = load_tokenizer(BASE)
    stops = set(stop_ids(tokenizer, BASE))

    def problems(split):
        rows, _ = read_rows(f'search:{split}')
        prompts, _ = rl_prompts(rows, tokenizer, 512)
        return prompts

    def score(tokens, value, prompts, n):
        bias = torch.zeros(lm.config.vocab_size)
        bias[list(tokens)] = value
        return sample_with_bias(lm, prompts, stops, bias, n, TUNING_SEED)

    # every character that a completion may have, and the end; the best of both signs, then its size
    tune = problems('tune')
    candidates = {repr(c): set(tokenizer.encode(c, add_special_tokens=False)) for c in '0123456789+-*=?yn\n'}
    candidates['end'] = stops
    values = (-2, 2) if not QUICK else (-2,)
    scores = {}  # (candidate, value) -> mean reward
    for name, tokens in candidates.items():
        for value in values:
            scores[name, value] = score(tokens, value, tune, 2)
    best, _ = max(scores, key=scores.get)
    for name in {best, 'end'}:
        for value in () if QUICK else (-8, -4, -1, -0.5, 0.5, 1, 4, 8):
            scores[name, value] = score(candidates[name], value, tune, 2)

    for which, name in names.items():
        allowed = {key: value for key, value in scores.items() if which == 'any' or key[0] == 'end'}
        token, value = max(allowed, key=allowed.get)
        reward = score(candidates[token], value, problems('test'), SAMPLES // 2)
        summary.keep({'name': name, 'control': True, 'token': token, 'bias': value,
                      'on_tune': scores[token, value], 'pass@1': reward})


def start_controls(summary):
    """The start model as it is, at three temperatures."""
    for temperature in (1.0, 0.7, 0.5):
        name = f'start model, temperature {temperature:g}'
        if name not in summary.records:
            scores = measure(BASE, f'{OUT}/start_{temperature:g}', temperature)
            summary.keep({'name': name, 'control': True, **scores})


# --- tuning and seeds -----------------------------------------------------------------
def regimes_of(name):
    return REGIMES if METHODS[name].needs_demonstrations else (NO_REGIME,)


def tuning_runs(name):
    method = METHODS[name]
    rates = method.learning_rates[1:2] if QUICK else method.learning_rates
    return [Run(regime, name, rate, scaled(method.steps), TUNING_SEED)
            for regime in regimes_of(name) for rate in rates]


def choose(summary, names):
    """{(regime, method): (learning rate, step)} with the best pass@1 on the tuning problems.

    Of equals the first step and the smallest rate.
    """
    choices = {}
    for name in names:
        for regime in regimes_of(name):
            best = (-1.0, 0, 0)
            for run in tuning_runs(name):
                if run.regime == regime:
                    for _, step, score in own_points(summary.records[run.name]):
                        best = max(best, (score, -step, -run.learning_rate))
            _, step, rate = best
            choices[regime, name] = (-rate, -step)
    return choices


def own_points(record):
    """The evaluations of a record's own script, after training began: no stage before it, no step 0."""
    points = []
    for i, point in enumerate(record['points']):
        _, step, _ = point
        # the steps of the script before are counted from 0, too
        if i > 0 and step < record['points'][i - 1][1]:
            points = []
        if step > 0:
            points.append(point)
    return points


def run_all(summary, n_parameters):
    """Controls, tuning, then seed by seed, so that an unfinished table has a few seeds of all."""
    alone = [name for name in METHODS if METHODS[name].sft_steps == 0]
    staged = [name for name in METHODS if METHODS[name].sft_steps > 0]
    with ThreadPoolExecutor(2) as pool:
        start_controls(summary)
        # SFT's choice is needed by what begins with it
        jobs = [run for name in alone for run in tuning_runs(name)]
        list(pool.map(lambda run: execute(run, summary, {}, n_parameters), jobs))
        choices = choose(summary, alone)
        jobs = [run for name in staged for run in tuning_runs(name)]
        list(pool.map(lambda run: execute(run, summary, choices, n_parameters), jobs))
        choices = choose(summary, METHODS)
        bias_controls(summary)
        jobs = []
        for seed in SEEDS:
            for (regime, name), (rate, steps) in choices.items():
                jobs.append(Run(regime, name, rate, steps, seed))
        list(pool.map(lambda run: execute(run, summary, choices, n_parameters), jobs))


# --- statistics -------------------------------------------------------------------------
def student_p(t, df):
    """Two-sided p-value of Student's t with df degrees of freedom.

    With t = sqrt(df) tan(angle) the density is proportional to cos(angle)^(df - 1), which Simpson's
    rule integrates from 0 to the angle of t, and to a right angle for the whole.
    """
    def integral(end, n=1000):
        width = end / n
        heights = [math.cos(i * width) ** (df - 1) for i in range(n + 1)]
        return width / 3 * (heights[0] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]) + heights[-1])
    return 1 - integral(math.atan(abs(t) / math.sqrt(df))) / integral(math.pi / 2)


@dataclass
class Difference:
    """A difference between two methods over seeds, each seed against the same seed."""
    mean: float
    error: float  # standard error of the mean
    p: float  # of a paired t-test


def paired_difference(first, second):
    """The Difference first - second of two lists with a score for each seed."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return Difference(mean, 0.0, 0.0 if mean else 1.0)
    return Difference(mean, error, student_p(mean / error, len(differences) - 1))


def holm(p_values):
    """p-values corrected for their number (Holm 1979): the smallest times n, the next times n - 1, ..."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, i in enumerate(order):
        # never below that of a smaller p-value
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - place)))
        corrected[i] = largest
    return corrected


# --- report -----------------------------------------------------------------------------
def by_method(summary, regime):
    """{method: its records of all seeds that are done, in the order of the seeds}, for a regime's table."""
    records = {}
    for name in METHODS:
        wanted = regime if METHODS[name].needs_demonstrations else NO_REGIME
        found = [record for record in summary.records.values()
                 if record.get('method') == name and record['regime'] == wanted
                 and record['seed'] in SEEDS]
        if found:
            records[name] = sorted(found, key=lambda record: record['seed'])
    return records


def mean_and_spread(values):
    """The mean ± the standard deviation over seeds, as text."""
    text = f'{statistics.mean(values):.3f}'
    if len(values) > 1:
        text += f' ± {statistics.stdev(values):.3f}'
    return text


SCORES = ['pass@1', *(f'pass@1/{level}' for level in LEVELS), f'pass@{SAMPLES}', 'greedy', 'arithmetic']
HEADINGS = ['pass@1', *(f'{level} digits' for level in LEVELS), f'pass@{SAMPLES}', 'greedy', 'arithmetic']


def table(headings, rows):
    lines = [f'| {" | ".join(headings)} |', '|---' * len(headings) + '|']
    return lines + [f'| {" | ".join(row)} |' for row in rows]


def control_table(summary):
    """The start model and what needs no training, in Markdown."""
    rows = []
    for record in summary.records.values():
        if record.get('control'):
            cells = [f'{record[key]:.3f}' if key in record else '' for key in SCORES]
            tokens = f'{record["tokens"]:.0f}' if 'tokens' in record else ''
            rows.append([record['name'], *cells, tokens])
            majority = record.get(f'maj@{SAMPLES}')
            if majority is not None:
                rows.append([f'the same, majority of {SAMPLES}', f'{majority:.3f}', *[''] * len(SCORES)])
    return table(['control', *HEADINGS, 'tokens'], rows)


def method_table(records):
    """A regime's methods in Markdown, {method: records}."""
    rows = []
    for name, runs in records.items():
        cells = [mean_and_spread([run[key] for run in runs]) for key in SCORES]
        tflop = statistics.mean(run['tflop'] for run in runs)
        tokens = statistics.mean(run['tokens'] for run in runs)
        rows.append([name, f'{runs[0]["learning_rate"]:g}', str(runs[0]['steps']), f'{tflop:.1f}',
                     *cells, f'{tokens:.0f}', str(len(runs))])
    return table(['method', 'learning rate', 'steps', 'TFLOP', *HEADINGS, 'tokens', 'seeds'], rows)


def differences_of(records):
    """[(method, method, Difference, corrected p)] of all pairs of a regime, the better one first."""
    pairs = []
    for first, second in combinations(records, 2):
        scores = []
        for name in (first, second):
            scores.append({run['seed']: run['pass@1'] for run in records[name]})
        seeds = sorted(scores[0].keys() & scores[1].keys())
        if len(seeds) > 1:
            found = paired_difference(*[[score[seed] for seed in seeds] for score in scores])
            if found.mean < 0:
                first, second = second, first
                found = Difference(-found.mean, found.error, found.p)
            pairs.append((first, second, found))
    corrected = holm([found.p for _, _, found in pairs])
    rows = [(*pair, p) for pair, p in zip(pairs, corrected)]
    return sorted(rows, key=lambda row: -row[2].mean)


def difference_table(records):
    rows = []
    for first, second, found, p in differences_of(records):
        verdict = 'real' if p < 0.05 else 'not shown'
        rows.append([f'{first} - {second}', f'+{found.mean:.3f} ± {found.error:.3f}',
                     f'{found.p:.4f}', f'{p:.4f}', verdict])
    return table(['difference in pass@1', 'mean ± standard error', 'p', 'p of all pairs (Holm)', ''], rows)


def tuning_table(summary):
    """Every score that a learning rate and a step were chosen by."""
    rows = []
    for name in METHODS:
        for run in tuning_runs(name):
            if run.name in summary.records:
                points = own_points(summary.records[run.name])
                scores = [f'{score:.3f} at {step}' for _, step, score in points]
                rows.append([run.regime, name, f'{run.learning_rate:g}', ', '.join(scores)])
    return table(['regime', 'method', 'learning rate', 'pass@1 on tuning problems, at step'], rows)


def report(summary):
    """All tables, as text."""
    lines = ['pass@1 at temperature 1 unless a column says otherwise; mean ± standard deviation over seeds.',
             '', '## Controls', *control_table(summary)]
    for regime in REGIMES:
        records = by_method(summary, regime)
        lines += ['', f'## Regime: {regime}', *method_table(records), '', *difference_table(records)]
    lines += ['', '## Tuning', *tuning_table(summary)]
    minutes = sum(record.get('minutes', 0) for record in summary.records.values())
    lines += ['', f'{len(summary.records)} runs and controls, {minutes / 60:.1f} hours of one core']
    return '\n'.join(lines)


def draw(summary, picture):
    """A panel for each regime: pass@1 on test problems over TFLOP, mean and standard deviation."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    start = summary.records['start model, temperature 1']['pass@1']
    figure, axes = pyplot.subplots(1, len(REGIMES), figsize=(13, 4), layout='constrained', sharey=True)
    for axis, regime in zip(axes, REGIMES):
        for i, (name, runs) in enumerate(by_method(summary, regime).items()):
            x, mean, deviation = [0.0], [start], [0.0]
            # the first points of all seeds, then the second ones, and so on
            for points in zip(*[[p for p in run['points'] if p[1] > 0] for run in runs]):
                x.append(statistics.mean(tflop for tflop, _, _ in points))
                scores = [score for _, _, score in points]
                mean.append(statistics.mean(scores))
                deviation.append(statistics.stdev(scores) if len(scores) > 1 else 0.0)
            axis.plot(x, mean, color=f'C{i}', marker='o', markersize=4, label=name)
            low = [m - d for m, d in zip(mean, deviation)]
            high = [m + d for m, d in zip(mean, deviation)]
            axis.fill_between(x, low, high, color=f'C{i}', alpha=0.15, linewidth=0)
        axis.set(title=f'Demonstrations: {regime}', xlabel='TFLOP')
    axes[0].set(ylabel='pass@1 on held-out problems, temperature 1', ylim=(0, None))
    axes[-1].legend(fontsize=8)
    figure.savefig(picture, dpi=110)


def main():
    summary = Summary(SUMMARY)
    if '--report' not in sys.argv[1:]:
        os.makedirs(OUT, exist_ok=True)
        if not os.path.exists(f'{BASE}/model.safetensors'):
            print('the start model: sft.py config/tiny_base.py, minutes', flush=True)
            run_command(f'{OUT}/start.txt', 'sft.py', 'config/tiny_base.py', '--overwrite=True')
        n_parameters = sum(p.numel() for p in load_model(BASE).parameters())
        prepare_demonstrations()
        run_all(summary, n_parameters)
    text = report(summary)
    print(text)
    with open(REPORT, 'w') as f:
        f.write(text + '\n')
    draw(summary, PICTURE)


if __name__ == '__main__':
    main()
