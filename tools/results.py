"""Compares the methods: regimes of demonstrations, controls, several seeds, and tests of what is real.

    python -m tools.results            # the embedded search task: hours on 2 cores
    python -m tools.results real       # SmolLM2-135M on SVAMP's word problems, smaller: hours too
    python -m tools.results --report   # tables and picture again, from the runs that are kept
    python -m tools.results --quick    # everything once, small: ten minutes; nothing in docs/ changes
    python -m tools.results real --at_a_time=8     # eight runs at a time, say on a GPU, instead of two

It may be stopped at any time. Each finished run is a line of docs/curves.jsonl (docs/curves_real.jsonl),
and a run that has its line there is not made again: the command goes on where it was. A run that
was stopped begins anew. Delete the file to start afresh, and do so after a change to the task or to the
config file: a line does not say with which settings it was made. tools/report.py makes the tables.

The regimes differ in the demonstrations; the rows are the same:

    plenty   every prompt has one, a search that reached the target
    scarce   a few prompts have one; HPT and Prefix-RFT take a quarter of their prompts from these
    noisy    every prompt has one; a third end in a wrong attempt, and half of those claim it right

What needs no demonstrations (GRPO, DPO on pairs of the start model's own completions, the controls)
runs once for all regimes.

On the search task compute is matched: every method may spend about the same FLOPs, 2N for each token
that sampling puts through the model and 6N for each token of an update, N being the number of
parameters. Prefix-RFT, which learns late, may spend half as much again. A method stops earlier where
that is better: learning rate and last step are chosen together, among three rates and four steps for
each method and regime, on seed 0 and on problems that no table uses. The real model has one rate for
each method, and its compute is matched only roughly. Then the other seeds run, and their models are
measured on the test problems.
"""
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch

from data import completion_text, load_tokenizer, rl_prompts, stop_ids
from embedded import make_attempt
from model import load_model
from rows import read_rows
from tools.report import draw, own_points, report
from verify import verify_all

TUNING_SEED = 0
NO_REGIME = 'none'  # of what needs no demonstrations


# --- what is compared -------------------------------------------------------------
@dataclass
class Method:
    """What a method runs. On the search task the steps are such that all methods cost about the same."""
    script: str
    steps: int
    learning_rates: tuple  # to choose from; of a single one the last step is taken
    needs_demonstrations: bool = True
    sft_steps: int = 0  # steps of sft.py before it, at most
    scarce_steps: int = 0  # `steps` in the regime 'scarce'; 0: as many as elsewhere

    def steps_in(self, regime):
        """The most steps that it may make in a regime."""
        return self.scarce_steps if regime == 'scarce' and self.scarce_steps else self.steps


@dataclass
class Task:
    """A start model, its problems, and the methods that are compared on them."""
    name: str
    base: str  # folder of the start model
    make_base: list  # the command that makes it
    config: str  # config file of all scripts
    methods: dict  # name -> Method
    regimes: tuple
    seeds: tuple
    train: str  # rows with demonstrations
    test: str  # problems of the tables
    tune: str = ''  # problems to choose learning rates by
    other_skill: str = ''  # problems of another kind: what does training do to them?
    levels: tuple = ()  # values of the rows' difficulty
    unit: str = ''  # what a level counts
    scarce: int = 48  # demonstrations of the regime 'scarce'
    evaluations: int = 4  # during a run; each is a step at which the method may stop
    samples: int = 16  # completions of each test problem
    max_new_tokens: int = 128
    pair_prompts: int = 2000  # DPO's pairs are made of 8 completions of each
    has_bias_controls: bool = False
    at_a_time: int = 2  # runs side by side, each with one thread of the CPU
    quick: bool = False

    @property
    def out(self):
        """Where run folders and their texts go."""
        suffix = '' if self.name == 'search' else f'_{self.name}'
        return f'out/{"quick" if self.quick else "results"}{suffix}'

    def path(self, name):
        """The path of a file that the docs have: 'curves.jsonl', 'results.txt' or 'methods.png'."""
        stem, ending = os.path.splitext(name)
        suffix = '' if self.name == 'search' else f'_{self.name}'
        return f'{self.out if self.quick else "docs"}/{stem}{suffix}{ending}'

    def rows_of(self, name):
        return f'{self.out}/rows/{name}.jsonl'

    def regimes_of(self, method):
        return self.regimes if self.methods[method].needs_demonstrations else (NO_REGIME,)


SEARCH = Task(
    name='search',
    base='out/tiny_base',
    make_base=['sft.py', 'config/tiny_base.py', '--overwrite=True'],
    config='config/tiny.py',
    # each has three learning rates, around the best one of earlier rounds
    methods={
        'GRPO': Method('grpo.py', 72, (1.5e-4, 3e-4, 6e-4), needs_demonstrations=False),
        'DPO': Method('dpo.py', 160, (1e-4, 3e-4, 1e-3), needs_demonstrations=False),
        'SFT': Method('sft.py', 480, (5e-5, 1e-4, 3e-4)),
        # in 'scarce' SFT is best after 120 steps, elsewhere it makes all 200: that leaves more for GRPO
        'SFT then GRPO': Method('grpo.py', 32, (5e-5, 1e-4, 3e-4), sft_steps=200, scarce_steps=56),
        'HPT': Method('hpt.py', 72, (1.5e-4, 3e-4, 6e-4)),
        'Prefix-RFT': Method('prefix_rft.py', 100, (1.5e-4, 3e-4, 6e-4))},
    regimes=('plenty', 'scarce', 'noisy'),
    seeds=(1, 2, 3),
    train='search:train', tune='search:tune', test='search:test',
    other_skill='search:arithmetic',
    levels=(2, 3, 4), unit='digits',
    has_bias_controls=True)
REAL = Task(
    name='real',
    base='out/smollm2',
    make_base=['-m', 'tools.smollm2', 'out/smollm2'],
    config='config/real.py',
    methods={
        'GRPO': Method('grpo.py', 60, (1e-5,), needs_demonstrations=False),
        'SFT': Method('sft.py', 60, (1e-4,)),
        'SFT then GRPO': Method('grpo.py', 40, (1e-5,), sft_steps=40),
        'HPT': Method('hpt.py', 40, (1e-5,))},
    regimes=('plenty', 'scarce'),
    seeds=(1, 2, 3, 4, 5),
    train='examples/svamp/train.jsonl', test='examples/svamp/test.jsonl',
    levels=(1, 2), unit='operations',
    evaluations=2, samples=4, max_new_tokens=64)


def small(task):
    """The task with every step once and short: whether the command works, not what it gives."""
    task.quick = True
    task.seeds = (1, 2)
    task.samples = 2
    task.pair_prompts = 100
    for method in task.methods.values():
        method.steps = max(task.evaluations, method.steps // 10)
        method.sft_steps //= 10
        method.scarce_steps //= 10
        # the middle rate, or the only one
        method.learning_rates = method.learning_rates[-2:-1] or method.learning_rates
    return task


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



# --- the summary --------------------------------------------------------------------
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
                    # a line that a full disk or kill -9 has cut is a run that is made again
                    if line.endswith('}\n'):
                        record = json.loads(line)
                        self.records[record['name']] = record

    def keep(self, record):
        """Adds a record and prints it in short."""
        with self.lock:
            self.records[record['name']] = record
            with open(self.path, 'a') as f:
                f.write(json.dumps(record) + '\n')
            minutes = (time.time() - self.start) / 60
            scores = [f'{key} {record[key]:.3f}' for key in ('tflop', 'pass@1') if key in record]
            print(f'{minutes:4.0f} minutes: {record["name"]}: {", ".join(scores)}', flush=True)


# --- demonstrations -----------------------------------------------------------------
def prepare_demonstrations(task):
    """Writes the rows of the regimes."""
    os.makedirs(f'{task.out}/rows', exist_ok=True)
    plenty = []
    train, _ = read_rows(task.train)
    for row in train:
        # _where is the reader's note of where the row came from
        plenty.append({key: value for key, value in row.items() if key != '_where'})
    write_rows(task, 'plenty', plenty)

    write_rows(task, 'scarce', plenty[:task.scarce])
    rest = []
    for row in plenty[task.scarce:]:
        rest.append({key: value for key, value in row.items() if key != 'demonstration'})
    write_rows(task, 'rest', rest)

    if 'noisy' in task.regimes:
        noisy = list(plenty)
        wrong = random.Random('noisy').sample(range(len(noisy)), round(len(noisy) / 3))
        for n, i in enumerate(wrong):
            noisy[i] = spoil(noisy[i], claims_right=n % 2 == 0)
        write_rows(task, 'noisy', noisy)


def spoil(row, claims_right):
    """The row of search with a demonstration whose last attempt is wrong, and perhaps claims to be right."""
    numbers, target = row['answer']['numbers'], row['answer']['target']
    rng = random.Random(row['prompt'])
    attempt = make_attempt(numbers, rng)
    # it ends, because the digits of a problem have at least two possible results
    while attempt.result == target:
        attempt = make_attempt(numbers, rng)
    verdict = 'y' if claims_right else 'n'
    *before, _ = row['demonstration'].split('\n')
    return {**row, 'demonstration': '\n'.join([*before, f'{attempt.text}?{target}{verdict}'])}


def write_rows(task, name, rows):
    with open(task.rows_of(name), 'w') as f:
        for row in rows:
            f.write(json.dumps(row) + '\n')


def data_flags(task, script, regime, seed):
    """What a script trains on in a regime."""
    if script == 'dpo.py':
        return [f'--data={task.rows_of(f"pairs_{seed}")}', '--eval_data=']
    if script == 'grpo.py':
        return [f'--data={task.rows_of("plenty")}']
    if script == 'sft.py':
        return [f'--data={task.rows_of(regime)}', '--eval_data=']
    if regime == 'scarce':
        # so many passes over the few prompts with a demonstration that they make a quarter of all
        with open(task.rows_of('rest')) as f:
            n_rest = len(f.readlines())
        passes = n_rest / 3 / task.scarce
        return [f'--data={task.rows_of("scarce")}*{passes:.3f},{task.rows_of("rest")}',
                '--without_demonstration=rl']
    return [f'--data={task.rows_of(regime)}']


# --- running --------------------------------------------------------------------------
def run_command(text, *command):
    """Runs a script of the repository; what it prints goes to the file `text` and is returned."""
    os.makedirs(os.path.dirname(text), exist_ok=True)
    # a run has one thread, because others run beside it. SCALE is a setting of config/real.py.
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'SCALE': '1'}
    with open(text, 'w') as f:
        done = subprocess.run([sys.executable, *command], stdout=f, stderr=f, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f'{" ".join(command)}: it failed, see {text}')
    with open(text) as f:
        return f.read()


def file_name(text):
    return re.sub('[^a-z0-9.]+', '_', text.lower())


class Once:
    """Lets one thread make a thing while others that want it wait. `with once(name):`"""

    def __init__(self):
        self.locks = defaultdict(threading.Lock)
        self.own = threading.Lock()

    def __call__(self, name):
        with self.own:
            return self.locks[name]


once = Once()


def read_log(folder):
    """The records of a run's log; [] where there is none."""
    path = os.path.join(folder, 'log.jsonl')
    if not os.path.exists(path):
        return []
    with open(path) as f:
        return [json.loads(line) for line in f]


def is_done(folder, steps):
    """Whether a run has made its last evaluation. One that Ctrl-C stopped ends without an error."""
    return any(record['step'] == steps and 'eval/pass@1' in record for record in read_log(folder))


def train(task, script, model, folder, steps, eval_every, learning_rate, seed, data):
    """Runs a script from `model` in `folder`, unless that is done; returns its log, a list of dicts."""
    with once(folder):
        if not is_done(folder, steps):
            flags = [
                f'--model={model}', f'--out_dir={folder}', f'--max_steps={steps}', f'--seed={seed}',
                f'--learning_rate={learning_rate}', '--schedule=constant', '--overwrite=True',
                f'--eval_every={eval_every}', '--eval_temperature=1']
            if seed == TUNING_SEED:
                flags += [f'--eval_prompts={task.tune}', '--eval_samples=2']
            else:
                flags += [f'--eval_prompts={task.test}', '--eval_samples=1']
            if script == 'prefix_rft.py':
                # its prefixes shrink over the whole run, also where it stops earlier
                flags.append(f'--prefix_steps={task.methods["Prefix-RFT"].steps}')
            run_command(f'{folder}.txt', script, task.config, *flags, *data)
        # the script has heard the Ctrl-C and ended in order; here it has to end the command
        if not is_done(folder, steps):
            raise KeyboardInterrupt
        # a finished run is not resumed, and the checkpoint of a real model has 1.6 GB
        shutil.rmtree(f'{folder}/state', ignore_errors=True)
        return read_log(folder)


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


def execute(task, run, summary, choices, n_parameters):
    """Makes a run and keeps its record, unless the summary has it."""
    if run.name in summary.records:
        return
    begin = time.time()
    method = task.methods[run.method]
    model, points, tflop = task.base, [], 0.0
    if method.sft_steps:
        # SFT's own choice in this regime, but for a limit to its steps; one stage for all learning rates
        rate, steps = choices[run.regime, 'SFT']
        steps = min(steps, method.sft_steps)
        stage = Run(run.regime, 'first SFT', rate, steps, run.seed)
        model = f'{task.out}/{file_name(stage.name)}'
        log = train(task, 'sft.py', task.base, model, steps, max(1, steps // 2), rate, run.seed,
                    data_flags(task, 'sft.py', run.regime, run.seed))
        points, tflop = points_of(log, n_parameters, 0.0)
    # the pairs of dpo.py have cost something before it begins
    if method.script == 'dpo.py':
        tflop = prepare_pairs(task, run.seed, n_parameters)

    # the method's own script
    folder = f'{task.out}/{file_name(run.name)}'
    eval_every = max(1, method.steps_in(run.regime) // task.evaluations)
    log = train(task, method.script, model, folder, run.steps, eval_every, run.learning_rate, run.seed,
                data_flags(task, method.script, run.regime, run.seed))
    points_of_script, tflop = points_of(log, n_parameters, tflop)

    # a run for the tables is measured, one for tuning has its evaluations
    record = {'name': run.name, **asdict(run), 'tflop': tflop, 'points': points + points_of_script}
    if run.seed == TUNING_SEED:
        _, _, record['pass@1'] = points_of_script[-1]
    else:
        record |= measure(task, folder, folder)
    record['minutes'] = (time.time() - begin) / 60
    summary.keep(record)


def prepare_pairs(task, seed, n_parameters):
    """DPO's pairs: the start model's own completions with this seed, a right one against a wrong one.

    Returns what they cost in TFLOP: 2N for each token sampled, and for each that the reference scores.
    """
    pairs = task.rows_of(f'pairs_{seed}')
    with once(pairs):
        if not os.path.exists(pairs):
            run_command(f'{pairs}.txt', 'sample.py', f'--model={task.base}', '--write=pairs', '--n=8',
                        f'--data={task.rows_of("plenty")}', f'--limit={task.pair_prompts}',
                        f'--seed={seed}', f'--max_new_tokens={task.max_new_tokens}', '--show=0',
                        f'--out={pairs}.part', '--overwrite=True')
            os.rename(f'{pairs}.part', pairs)
    with open(f'{pairs}.txt') as f:
        mean_tokens = float(report_of_all(f.read(), 'tokens'))
    with open(pairs) as f:
        n_pairs = len(f.readlines())
    # the two sides of a pair are about as long as the mean completion
    tokens = mean_tokens * (task.pair_prompts * 8 + n_pairs * 2)
    return 2 * n_parameters * tokens / 1e12


# --- measuring ------------------------------------------------------------------------
def report_of_all(printed, key):
    """A number that sample.py printed of all prompts, as text."""
    line = re.search(r'^ +all +\d+ prompts .*', printed, re.M)[0]
    return re.search(rf'  {key} ([\d.]+)', line)[1]


def measure(task, model, path, temperature=1.0):
    """What the tables say of a model, a dict; the completions go to files that begin with `path`."""
    def sample(name, data, n, temperature):
        out = f'{path}_{name}.jsonl'
        printed = run_command(
            f'{path}_{name}.txt', 'sample.py', f'--model={model}', f'--data={data}', f'--n={n}',
            f'--temperature={temperature}', f'--max_new_tokens={task.max_new_tokens}',
            f'--out={out}', '--show=0', '--overwrite=True')
        with open(out) as f:
            return [json.loads(line) for line in f], printed

    completions, printed = sample('test', task.test, task.samples, temperature)
    by_prompt = defaultdict(list)
    for completion in completions:
        by_prompt[completion['prompt']].append(completion)
    solved = [any(c['reward'] > 0.5 for c in group) for group in by_prompt.values()]
    scores = {
        'pass@1': mean_reward(completions),
        f'pass@{task.samples}': statistics.mean(solved),
        f'maj@{task.samples}': float(report_of_all(printed, f'maj@{task.samples}')),
        'tokens': statistics.mean(completion['tokens'] for completion in completions),
        'truncated': statistics.mean(not completion['stopped'] for completion in completions)}
    for level in task.levels:
        of_level = [completion for completion in completions if completion['difficulty'] == level]
        scores[f'pass@1/{level}'] = mean_reward(of_level)
    if task.name == 'search':
        scores['own verdict'] = statistics.mean(map(reward_by_own_verdict, by_prompt.values()))
    greedy, _ = sample('greedy', task.test, 1, 0)
    scores['greedy'] = mean_reward(greedy)
    if task.other_skill:
        other, _ = sample('other', task.other_skill, 2, temperature)
        scores['other skill'] = mean_reward(other)
    return scores


def reward_by_own_verdict(completions):
    """Of search: the reward of the first completion whose last line claims 'y', or else of the first one.

    It costs as many completions as there are, and needs no truth: the model's own check decides.
    """
    claimed = [c for c in completions if c['completion'].rstrip().endswith('y')]
    return (claimed or completions)[0]['reward']


def mean_reward(completions):
    return statistics.mean(completion['reward'] for completion in completions)


# --- controls ---------------------------------------------------------------------------
def start_controls(task, summary, pool):
    """The start model as it is, at three temperatures."""
    def control(temperature):
        name = f'start model, temperature {temperature:g}'
        if name not in summary.records:
            scores = measure(task, task.base, f'{task.out}/start_{temperature:g}', temperature)
            summary.keep({'name': name, 'control': True, **scores})
    list(pool.map(control, (1.0, 0.7, 0.5)))


class BiasedSampler:
    """Samples from the start model with a constant added to some logits.

    transformers samples here, because rollout.py has no such knob.
    """

    def __init__(self, task):
        self.task = task
        self.lm = load_model(task.base, attention='sdpa').eval()
        self.tokenizer = load_tokenizer(task.base)
        self.stops = set(stop_ids(self.tokenizer, task.base))

    def score(self, tokens, bias, data, n):
        """Mean reward of n completions of each prompt of `data`, with `bias` on the logits of `tokens`."""
        rows, _ = read_rows(data)
        prompts, _ = rl_prompts(rows, self.tokenizer, 512)
        longest = max(len(prompt['ids']) for prompt in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # (B, P), padded on the left
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            first = longest - len(prompt['ids'])
            ids[i, first:] = torch.tensor(prompt['ids'])
            mask[i, first:] = 1
        biases = torch.zeros(self.lm.config.vocab_size)  # (V,)
        biases[list(tokens)] = bias

        torch.manual_seed(TUNING_SEED)
        with torch.no_grad():
            sampled = self.lm.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, num_return_sequences=n, max_new_tokens=self.task.max_new_tokens,
                eos_token_id=sorted(self.stops), pad_token_id=min(self.stops),
                logits_processor=[lambda _, logits: logits + biases])  # (B * n, P + T)
        tasks = []
        for i, completion in enumerate(sampled[:, longest:].tolist()):
            # behind the first end there is padding
            end = next((j for j, token in enumerate(completion) if token in self.stops), len(completion))
            prompt = prompts[i // n]
            text = completion_text(self.tokenizer, completion[:end + 1])
            tasks.append((prompt['kind'], text, prompt['truth']))
        return statistics.mean(reward for reward, _ in verify_all(tasks))


def bias_controls(task, summary):
    """The best constant bias on the end token, and on any one token, chosen on the tuning problems."""
    names = {'end': 'best bias on the end token', 'any': 'best bias on any one token'}
    if all(name in summary.records for name in names.values()):
        return
    sampler = BiasedSampler(task)
    candidates = {'end': sampler.stops}
    for character in '0123456789+-*=?yn\n':
        candidates[repr(character)] = set(sampler.tokenizer.encode(character, add_special_tokens=False))

    # both signs for every token, then more sizes for the best one and for the end; 0 is no bias
    scores = {('end', 0): sampler.score(sampler.stops, 0, task.tune, 2)}  # (candidate, bias) -> pass@1
    for name, tokens in candidates.items():
        for bias in (-2,) if task.quick else (-2, 2):
            scores[name, bias] = sampler.score(tokens, bias, task.tune, 2)
    best, _ = max(scores, key=scores.get)
    for name in {best, 'end'}:
        for bias in () if task.quick else (-8, -4, -1, -0.5, 0.5, 1, 4, 8):
            scores[name, bias] = sampler.score(candidates[name], bias, task.tune, 2)

    for which, name in names.items():
        allowed = {key: score for key, score in scores.items() if which == 'any' or key[0] == 'end'}
        token, bias = max(allowed, key=allowed.get)
        reward = sampler.score(candidates[token], bias, task.test, task.samples // 2)
        summary.keep({'name': name, 'control': True, 'token': token, 'bias': bias,
                      'on tuning problems': scores[token, bias], 'pass@1': reward})


# --- tuning and seeds ---------------------------------------------------------------------
def tuning_runs(task, name):
    """The runs that choose a method's learning rate and last step; none where there is no choice."""
    method = task.methods[name]
    if not task.tune:
        return []
    return [Run(regime, name, rate, method.steps_in(regime), TUNING_SEED)
            for regime in task.regimes_of(name) for rate in method.learning_rates]


def choose(task, summary, names):
    """{(regime, method): (learning rate, step)} with the best pass@1 on the tuning problems.

    Of equals the earliest step, then the smallest rate.
    """
    choices = {}
    for name in names:
        method = task.methods[name]
        for regime in task.regimes_of(name):
            tried = []  # (pass@1, -step, -learning rate)
            for run in tuning_runs(task, name):
                if run.regime == regime:
                    for _, step, score in own_points(summary.records[run.name]):
                        tried.append((score, -step, -run.learning_rate))
            if tried:
                _, step, rate = max(tried)
                choices[regime, name] = (-rate, -step)
            else:
                choices[regime, name] = (method.learning_rates[0], method.steps_in(regime))
    return choices


def groups_of(task):
    """Two lists of methods: those of one script, and those that begin with sft.py at SFT's choice."""
    alone = [name for name, method in task.methods.items() if method.sft_steps == 0]
    staged = [name for name, method in task.methods.items() if method.sft_steps > 0]
    return alone, staged


def all_tuning_runs(task):
    return [run for group in groups_of(task) for name in group for run in tuning_runs(task, name)]


def seed_runs(task, summary):
    """The runs of the tables, seed by seed: an unfinished table has a few seeds of all.

    [] while the tuning is not finished.
    """
    if any(run.name not in summary.records for run in all_tuning_runs(task)):
        return []
    choices = choose(task, summary, task.methods)
    return [Run(regime, name, rate, steps, seed)
            for seed in task.seeds for (regime, name), (rate, steps) in choices.items()]


def run_all(task, summary):
    """Controls, tuning, then the seeds."""
    n_parameters = sum(p.numel() for p in load_model(task.base).parameters())
    alone, staged = groups_of(task)
    with ThreadPoolExecutor(task.at_a_time) as pool:
        def run_these(runs, choices):
            list(pool.map(lambda run: execute(task, run, summary, choices, n_parameters), runs))

        start_controls(task, summary, pool)
        # SFT's choice is needed by what begins with it
        run_these([run for name in alone for run in tuning_runs(task, name)], {})
        choices = choose(task, summary, alone)
        run_these([run for name in staged for run in tuning_runs(task, name)], choices)
        if task.has_bias_controls:
            bias_controls(task, summary)
        run_these(seed_runs(task, summary), choose(task, summary, task.methods))


def prepare_start_model(task, summary):
    """Makes the start model unless it is there; raises SystemExit if the kept runs had another one."""
    weights = f'{task.base}/model.safetensors'
    log = read_log(task.base)
    # a start model from sft.py has a log; it is whole after its last evaluation
    if not os.path.exists(weights) or log and 'eval/pass@1' not in log[-1]:
        print(f'the start model: {" ".join(task.make_base)}, minutes', flush=True)
        run_command(f'{task.out}/start.txt', *task.make_base)
    with open(weights, 'rb') as f:
        checksum = zlib.crc32(f.read())
    known = summary.records.get('start model')
    if known is None:
        summary.keep({'name': 'start model', 'folder': task.base, 'crc32': checksum})
    elif known['crc32'] != checksum:
        sys.exit(f'error: {summary.path} has runs from another {task.base} (crc32 {known["crc32"]}, now '
                 f'{checksum}): put that model back, or delete {summary.path} to start afresh')


def main(arguments):
    known = r'real|--quick|--report|--at_a_time=[1-9]\d*'
    if not all(re.fullmatch(known, argument) for argument in arguments):
        sys.exit(__doc__)
    task = REAL if 'real' in arguments else SEARCH
    if '--quick' in arguments:
        task = small(task)
    for argument in arguments:
        if argument.startswith('--at_a_time='):
            task.at_a_time = int(argument.partition('=')[2])
    path = task.path('curves.jsonl')
    if '--report' not in arguments:
        # without a summary nothing that is left in `out` counts
        if task.quick or not os.path.exists(path):
            shutil.rmtree(task.out, ignore_errors=True)
        os.makedirs(task.out, exist_ok=True)
        summary = Summary(path)
        print(f'{len(summary.records)} runs and controls are in {path}', flush=True)
        prepare_start_model(task, summary)
        prepare_demonstrations(task)
        try:
            run_all(task, summary)
        except KeyboardInterrupt:
            sys.exit('stopped: the same command goes on from here')

    summary = Summary(path)
    text = report(task, summary.records, all_tuning_runs(task), seed_runs(task, summary))
    print(text)
    with open(task.path('results.txt'), 'w') as f:
        f.write(text + '\n')
    draw(task, summary.records, seed_runs(task, summary), task.path('methods.png'))


if __name__ == '__main__':
    main(sys.argv[1:])
