"""Runs papers against their baselines, three seeds each.

    python papers/run.py gspo       # all arms of one paper; prints its rows of the tables
    python papers/run.py            # all papers (make papers): hours on 2 cores
    python papers/run.py --report   # README.md's tables, from headers and outcomes.jsonl; no run
    python papers/run.py --jobs=4   # four runs at a time; default 2

A paper is papers/NAME.diff, which changes the scripts, or config/papers/NAME.py, a config file. Either
begins with a header (see header_of). It names the commands of the baseline and of the variant; papers
with the same baseline share its runs. An arm may consist of several commands: sampling, then training.
The log of the last one is measured.

Every run has a copy of the code in out/papers, patched if the paper is a diff, with an `out` folder of its
own in which only the start models are links to yours. (So take a diff that you have applied out of your
tree first.) A run that is done is kept until you delete its paper's folder in out/papers.

outcomes.jsonl has every evaluation of every run, table.txt the tables of all papers in it.
"""
import glob
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tqdm import tqdm

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
OUTCOMES = os.path.join(HERE, 'outcomes.jsonl')
SEEDS = (1, 2, 3)
TUNING_SEED = 0
# what the commands start from; a script says which command makes a missing one
START_MODELS = ('tiny_base', 'sums_base')
COPIED = ('', 'config', 'config/papers', 'papers', 'rewards')  # folders whose files a run has a copy of
GROUPS = ('policy gradients', 'supervised losses', 'eliciting', 'pairs', 'data', 'pretraining')
NOT_RUN = 'not run here'  # begins the outcome of a paper that this machine cannot run


# --- papers -------------------------------------------------------------------
ONE_LINE = ('group', 'changes', 'paper', 'command', 'arms', 'tune', 'measure', 'claim', 'outcome')
MANY_LINES = ('baseline', 'variant')  # commands in their order


def header_of(path):
    """{key: text, or a list of texts} of a paper's first lines, 'key: text', in a config '# key: text'.

    group     one of GROUPS
    changes   what the paper changes
    paper     authors, title, arXiv id, equation
    command   of the baseline; the variant's is the same with the diff, or with the config file behind it
    baseline  instead of `command`: a line for each command of the baseline; a paper may have none
    variant   and those of the variant; the last one of each arm is measured
    arms      several variants: the flags of each behind its last command, separated by ';'
    tune      'learning_rate 1e-4 1e-3 on sums:tune': each arm has the value that is best on these rows
    measure   keys of the log instead of pass@1 over the run
    claim     the paper's claim
    outcome   what came out here
    """
    header = {}
    with open(path) as f:
        for line in f:
            key, _, text = line.removeprefix('# ').strip().partition(': ')
            if key in MANY_LINES:
                header.setdefault(key, []).append(text)
            elif key in ONE_LINE:
                header[key] = text
            else:
                break
    return header


def all_papers():
    """{name: path} of all papers, in the order of their names."""
    paths = glob.glob(os.path.join(HERE, '*.diff')) + glob.glob(os.path.join(ROOT, 'config/papers/*.py'))
    # the tasks' own config files have no header
    names = {os.path.basename(path).rpartition('.')[0]: path for path in paths if header_of(path)}
    return dict(sorted(names.items()))


class Arm(NamedTuple):
    """What is run with each seed."""
    name: str  # 'baseline_1a2b3c4d', 'gspo', 'pear pear=token'
    commands: tuple  # in their order; the last one is measured
    diff: str | None = None  # path of the diff that the code is under
    tune: str = ''  # as in the header

    def with_flags(self, flags):
        """The arm with flags behind its last command, and in its name."""
        name = f'{self.name} {flags.replace("--", "")}'
        return self._replace(name=name, commands=(*self.commands[:-1], f'{self.commands[-1]} {flags}'))


def baseline_of(path):
    """The baseline's Arm, named after what it runs: papers with the same one share it. None without one."""
    header = header_of(path)
    commands = header.get('baseline') or [header[key] for key in ('command',) if key in header]
    tune = header.get('tune', '')
    if not commands:
        return None
    words = '\n'.join([*commands, tune] if tune else commands)
    return Arm(f'baseline_{zlib.crc32(words.encode()):08x}', tuple(commands), None, tune)


def variants_of(name, path):
    """The variants' Arms, one or those of `arms`."""
    header = header_of(path)
    is_diff = path.endswith('.diff')
    commands = header.get('variant')
    if commands is None:
        # the baseline's command: with the diff, or with the config file behind its own
        commands = [header['command'] if is_diff else with_config(header['command'], path)]
    arm = Arm(name, tuple(commands), path if is_diff else None, header.get('tune', ''))
    if 'arms' not in header:
        return [arm]
    return [arm.with_flags(flags.strip()) for flags in header['arms'].split(';')]


def arms_of(name, path):
    """All Arms of a paper, the baseline first."""
    baseline = baseline_of(path)
    return [baseline, *variants_of(name, path)] if baseline else variants_of(name, path)


def with_config(command, path):
    """The command with one more config file, behind the config file that it has."""
    words = shlex.split(command)
    # words[0] is python, words[1] the script
    last_config = max(i for i, word in enumerate(words) if i > 1 and word.endswith('.py')
                      and not word.startswith('--'))
    words.insert(last_config + 1, os.path.relpath(path, ROOT))
    return shlex.join(words)


def is_run(path):
    return not header_of(path)['outcome'].startswith(NOT_RUN)


# --- tuning -------------------------------------------------------------------
def candidates_of(arm):
    """{flag: Arm} of the settings that the arm is tuned over, evaluated on the rows for that."""
    knob_and_values, _, rows = arm.tune.partition(' on ')
    knob, *values = knob_and_values.split()
    flags = [f'--{knob}={value}' for value in values]
    return {flag: arm.with_flags(flag).with_flags(f'--eval_prompts={rows}') for flag in flags}


def best_flag(arm, outcomes):
    """The flag with which the arm ended best on the tuning rows; None if it was not tuned yet."""
    scores = {}
    for flag, candidate in candidates_of(arm).items():
        if (candidate.name, TUNING_SEED) not in outcomes:
            return None
        scores[flag] = outcomes[candidate.name, TUNING_SEED][-1]['eval/pass@1']
    return max(scores, key=scores.get)


# --- runs ---------------------------------------------------------------------
def folder_of(arm):
    return os.path.join(ROOT, 'out', 'papers', arm.name.replace(' ', '_').replace('/', '_'))


def code():
    """The text of all code that a run may use, without comments in lines of their own (headers)."""
    text = ''
    for folder in COPIED:
        for path in sorted(glob.glob(os.path.join(ROOT, folder, '*.py'))):
            if path == os.path.join(HERE, 'run.py'):
                continue
            with open(path) as f:
                text += ''.join(line for line in f if not line.startswith('#'))
    return text


def check_runs(arm):
    """Ends with an error if the arm's folder has runs of other commands, another diff or other code."""
    made_from = '\n'.join(arm.commands) + f'\ncode {zlib.crc32(code().encode()):08x}\n'
    if arm.diff:
        with open(arm.diff) as f:
            _, _, changes = f.read().partition('\n--- ')  # without the header, whose outcome changes
        made_from += changes
    path = os.path.join(folder_of(arm), 'made_from.txt')
    if os.path.exists(path):
        with open(path) as f:
            if f.read() != made_from:
                sys.exit(f'error: {folder_of(arm)} has runs of another {arm.name}: '
                         'delete it to make them anew')
    os.makedirs(folder_of(arm), exist_ok=True)
    with open(path, 'w') as f:
        f.write(made_from)


def run(arm, seed):
    """Runs an arm with one seed unless that is done; returns its evaluations, each {'step', 'eval/...'}."""
    tree = os.path.join(folder_of(arm), f'seed{seed}')
    # the text file gets its name at the end: a run that was cut is made anew
    if not os.path.exists(f'{tree}.txt'):
        start = time.time()
        prepare(tree, arm.diff)
        run_commands(arm, seed, tree)
        with open(os.path.join(tree, 'seconds.txt'), 'w') as f:
            f.write(f'{time.time() - start:.0f}')
        os.rename(f'{tree}.running', f'{tree}.txt')

    with open(os.path.join(tree, 'out', 'run', 'log.jsonl')) as f:
        records = [json.loads(line) for line in f]
    # a training step's line has a loss; all others are evaluations
    evaluations = [record for record in records if 'loss' not in record]
    for record in evaluations:
        for key in ('samples', 'tokens', 'eval/gave_up'):
            record.pop(key, None)
    with open(os.path.join(tree, 'seconds.txt')) as f:
        evaluations[-1]['seconds'] = int(f.read())
    tqdm.write(f'{arm.name}, seed {seed}: {summary_of(evaluations[-1])}')
    return evaluations


def summary_of(evaluation):
    """'step 60  eval/pass@1 0.636  seconds 21': without the levels."""
    return '  '.join(f'{key} {value:.4g}' for key, value in evaluation.items()
                     if not key.startswith('eval/pass@1/') and isinstance(value, (int, float)))


def prepare(tree, diff):
    """Copies the code into a fresh folder, links the start models, applies the diff, if there is one."""
    shutil.rmtree(tree, ignore_errors=True)
    os.makedirs(os.path.join(tree, 'out'))
    for folder in COPIED:
        os.makedirs(os.path.join(tree, folder), exist_ok=True)
        for pattern in ('*.py', '*.json', '*.jinja'):
            for path in glob.glob(os.path.join(ROOT, folder, pattern)):
                shutil.copy(path, os.path.join(tree, folder))
    for model in START_MODELS:
        made = os.path.join(ROOT, 'out', model)
        if os.path.exists(made):
            os.symlink(made, os.path.join(tree, 'out', model))
    if diff:
        # paths of --directory are relative to the repository
        directory = os.path.relpath(tree, ROOT)
        applied = subprocess.run(['git', 'apply', f'--directory={directory}', diff], cwd=ROOT)
        if applied.returncode:
            sys.exit(f'error: {diff} does not apply to the code as it is: see the lines above')


def run_commands(arm, seed, tree):
    """Runs an arm's commands in its tree; ends with an error that shows what a failed one printed."""
    # several runs at a time: a thread each
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    for i, command in enumerate(arm.commands):
        _, *words = shlex.split(command)
        words += [f'--seed={seed}']
        if i == len(arm.commands) - 1:
            words += ['--out_dir=out/run']
        with open(f'{tree}.running', 'a' if i else 'w') as output:
            done = subprocess.run([sys.executable, *words], cwd=tree, stdout=output, stderr=output,
                                  env=environment)
        if done.returncode:
            with open(f'{tree}.running') as f:
                print(f.read()[-2000:], file=sys.stderr)
            sys.exit(f'error: {shlex.join(["python", *words])} failed in {tree}')


def run_all(jobs, n_jobs, outcomes):
    """Runs these (arm, seed) and adds their evaluations, in this order, to `outcomes` and to its file."""
    if not jobs:
        return
    for arm, _ in jobs:
        check_runs(arm)
    with ThreadPoolExecutor(n_jobs) as pool:
        results = pool.map(lambda job: run(*job), jobs)
        for (arm, seed), evaluations in zip(jobs, tqdm(results, total=len(jobs), unit='run')):
            outcomes[arm.name, seed] = evaluations
            # another run.py may have added to the file in the meantime
            write_outcomes(read_outcomes() | outcomes)


# --- numbers ------------------------------------------------------------------
def measured(evaluations):
    """The four numbers of one run, by its evaluations in the order of their steps."""
    steps = [evaluation['step'] for evaluation in evaluations]
    scores = [evaluation['eval/pass@1'] for evaluation in evaluations]

    # the area under the curve over the length of the run: a mean pass@1
    area = 0.0
    for i in range(1, len(steps)):
        area += (steps[i] - steps[i - 1]) * (scores[i] + scores[i - 1]) / 2
    length = steps[-1] - steps[0]

    # the evaluation nearest to a third of the steps
    distances = [abs(step - steps[-1] / 3) for step in steps]
    third = distances.index(min(distances))
    return {
        'final': scores[-1],
        'area': area / length if length else math.nan,
        'third': scores[third],
        'hardest': hardest(evaluations[-1])}


def hardest(evaluation):
    """pass@1 on the hardest problems: search's of four digits, sums' of nine and ten; nan without such."""
    if 'eval/pass@1/4' in evaluation and 'eval/pass@1/5' not in evaluation:
        return evaluation['eval/pass@1/4']
    if 'eval/pass@1/9' in evaluation and 'eval/pass@1/10' in evaluation:
        return (evaluation['eval/pass@1/9'] + evaluation['eval/pass@1/10']) / 2
    return math.nan


def last_of(evaluations, key):
    """The last value that a run logged under a key."""
    return [evaluation[key] for evaluation in evaluations if key in evaluation][-1]


def paired(baseline, variant):
    """Mean and standard error of the differences over the seeds, which both arms share."""
    differences = [after - before for before, after in zip(baseline, variant)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), error


def mean_and_sd(values):
    return f'{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}'


def difference_of(baseline, variant):
    """'+0.061 ± 0.013': the mean of the differences and its standard error."""
    difference, error = paired(baseline, variant)
    return f'{difference:+.3f} ± {error:.3f}'


# --- tables -------------------------------------------------------------------
def markdown(heads, rows):
    """A table in Markdown."""
    lines = [f'| {" | ".join(cells)} |' for cells in [heads, *rows]]
    lines.insert(1, '|---' * len(heads) + '|')
    return '\n'.join(lines)


def is_complete(arms, outcomes):
    """Whether all runs of these arms are in `outcomes`."""
    is_tuned = all(best_flag(arm, outcomes) for arm in arms if arm.tune)
    return is_tuned and all((arm.name, seed) in outcomes for arm in arms for seed in SEEDS)


def values_of(arm, key, outcomes):
    """What each of an arm's runs logged last under a key."""
    return [last_of(outcomes[arm.name, seed], key) for seed in SEEDS]


def curves_of(arm, other, outcomes):
    """The four numbers of each of an arm's runs, at the steps at which another arm is evaluated too.

    (grpo.py evaluates the start model and sft.py does not: a mean over all steps would not be fair.)
    """
    numbers = []
    for seed in SEEDS:
        steps = {evaluation['step'] for evaluation in outcomes[other.name, seed]}
        numbers.append(measured([e for e in outcomes[arm.name, seed] if e['step'] in steps]))
    return numbers


def label(variant, baseline, outcomes):
    """A variant's first cell: its name, and what tuning chose for both arms."""
    if not variant.tune:
        return variant.name
    knob = variant.tune.split()[0]
    chosen = [best_flag(arm, outcomes).partition('=')[2] for arm in (baseline, variant)]
    return f'{variant.name} ({knob} {" → ".join(chosen)})'


def curves_table(names, papers, outcomes):
    """The papers that are measured by pass@1 over the run; one without all of its runs is left out."""
    rows = []
    for name in names:
        if 'measure' in header_of(papers[name]) or not is_run(papers[name]):
            continue
        baseline, *variants = arms_of(name, papers[name])
        for variant in variants:
            if is_complete([baseline, variant], outcomes):
                before = curves_of(baseline, variant, outcomes)
                after = curves_of(variant, baseline, outcomes)
                cells = [label(variant, baseline, outcomes)]
                for key in ('final', 'area', 'third', 'hardest'):
                    of_baseline, of_variant = [run[key] for run in before], [run[key] for run in after]
                    cells.append(f'{mean_and_sd(of_baseline)} → {mean_and_sd(of_variant)}')
                    cells.append(difference_of(of_baseline, of_variant))
                rows.append(cells)
    heads = ['paper', 'final pass@1', 'difference', 'mean over the run', 'difference',
             'at a third of the steps', 'difference', 'final, hardest problems', 'difference']
    return markdown(heads, rows)


def measures_table(names, papers, outcomes):
    """The papers that are measured by something else; one without all of its runs is left out."""
    rows = []
    for name in names:
        header = header_of(papers[name])
        if 'measure' not in header or not is_run(papers[name]):
            continue
        baseline = baseline_of(papers[name])
        for variant in variants_of(name, papers[name]):
            if not is_complete([arm for arm in (baseline, variant) if arm], outcomes):
                continue
            for key in header['measure'].split(', '):
                after = values_of(variant, key, outcomes)
                cells = ['', mean_and_sd(after), '']
                if baseline:
                    before = values_of(baseline, key, outcomes)
                    cells = [mean_and_sd(before), mean_and_sd(after), difference_of(before, after)]
                rows.append([variant.name, key, *cells])
    return markdown(['paper', 'measure', 'baseline', 'variant', 'difference'], rows)


def list_of(papers, outcomes):
    """The papers with what their headers say, a table for each group: README.md has them."""
    parts = []
    for group in GROUPS:
        rows = []
        for name, path in papers.items():
            header = header_of(path)
            if header['group'] == group:
                form = 'diff' if path.endswith('.diff') else 'recipe'
                link = f'[{form}]({os.path.relpath(path, HERE)})'
                rows.append([f'`{name}`', link, header['changes'], header['paper'], header['claim'],
                             header['outcome'], *cost_of(name, path, outcomes)])
        heads = ['name', 'form', 'what changes', 'paper', 'its claim', 'outcome', 'seeds', 'minutes']
        parts.append(f'### {group.capitalize()}\n\n{markdown(heads, rows)}')
    return '\n\n'.join(parts)


def cost_of(name, path, outcomes):
    """[seeds, minutes of one core] of a paper's runs, as text; minutes include tuning and the baseline."""
    arms = arms_of(name, path)
    seeds = [seed for seed in SEEDS if all((arm.name, seed) in outcomes for arm in arms)]
    runs = [outcomes[arm.name, seed] for arm in arms for seed in seeds]
    for arm in arms:
        if arm.tune:
            runs += [outcomes[candidate.name, TUNING_SEED] for candidate in candidates_of(arm).values()
                     if (candidate.name, TUNING_SEED) in outcomes]
    # the first papers' runs were not timed
    seconds = [run[-1].get('seconds', math.nan) for run in runs]
    minutes = '–' if math.isnan(sum(seconds)) else f'{sum(seconds) / 60:.0f}'
    return [str(len(seeds)), minutes]


# --- files --------------------------------------------------------------------
def read_outcomes():
    """{(arm, seed): evaluations} of outcomes.jsonl."""
    outcomes = {}
    if os.path.exists(OUTCOMES):
        with open(OUTCOMES) as f:
            for line in f:
                evaluation = json.loads(line)
                run = evaluation.pop('arm'), evaluation.pop('seed')
                outcomes.setdefault(run, []).append(evaluation)
    return outcomes


def write_outcomes(outcomes):
    """Writes outcomes.jsonl: a line for every evaluation of every run."""
    with open(OUTCOMES, 'w') as f:
        for (arm, seed), evaluations in sorted(outcomes.items()):
            for evaluation in evaluations:
                f.write(json.dumps({'arm': arm, 'seed': seed, **evaluation}) + '\n')


def tables(names, papers, outcomes):
    """Both tables of outcomes."""
    return (curves_table(names, papers, outcomes) + '\n\n' + measures_table(names, papers, outcomes))


def main(arguments):
    """The command line: see the top of the file."""
    papers = all_papers()
    options = [word for word in arguments if word.startswith('--')]
    names = [word for word in arguments if not word.startswith('--')] or list(papers)
    n_jobs = 2
    for option in options:
        if option.startswith('--jobs='):
            n_jobs = int(option.removeprefix('--jobs='))
        elif option != '--report':
            sys.exit(f'error: no option {option}; there are --jobs=N and --report')
    for name in names:
        if name not in papers:
            sys.exit(f'error: no paper {name!r}; there are {", ".join(papers)}')

    outcomes = read_outcomes()
    if '--report' not in options:
        # papers may share an arm
        arms = {}
        for name in names:
            if is_run(papers[name]):
                arms |= {arm.name: arm for arm in arms_of(name, papers[name])}
            else:
                print(f'{name}: {header_of(papers[name])["outcome"]}')
        tuned = [arm for arm in arms.values() if arm.tune]
        print('each run is in a folder of out/papers, with what it prints in a .txt beside it', flush=True)
        run_all([(candidate, TUNING_SEED) for arm in tuned for candidate in candidates_of(arm).values()],
                n_jobs, outcomes)
        jobs = []
        for arm in arms.values():
            if arm.tune:
                # the name stays: the table finds what was chosen in the outcomes of tuning
                arm = arm.with_flags(best_flag(arm, outcomes))._replace(name=arm.name)
            jobs += [(arm, seed) for seed in SEEDS]
        run_all(jobs, n_jobs, outcomes)

    outcomes = read_outcomes()
    with open(os.path.join(HERE, 'table.txt'), 'w') as f:
        f.write(tables(papers, papers, outcomes) + '\n')
    if '--report' in options:
        print(list_of(papers, outcomes), end='\n\n')
    # of the two tables those that have a row: one paper is in one of them
    for table in tables(names, papers, outcomes).split('\n\n'):
        if table.count('\n') > 1:
            print(table)


if __name__ == '__main__':
    main(sys.argv[1:])
