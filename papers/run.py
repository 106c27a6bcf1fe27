"""Runs the papers of this folder against their baselines, three seeds each, from the demo's start model.

    python papers/run.py gspo       # both arms of one paper; prints a row of the table
    python papers/run.py            # all papers (make papers): hours on 2 cores
    python papers/run.py --report   # README.md's two tables, from headers and outcomes.jsonl; no run
    python papers/run.py --jobs=4   # four runs at a time; default 2

A paper is NAME.diff, which changes the scripts, or NAME.py, a config file. Either begins with a header
of five lines (see header_of). Both arms have the header's command; papers with the same command share
a baseline. Runs and patched copies of the code are in out/papers, and nothing of the working tree
changes. A run that is done is kept: delete its folder and its .txt to make it anew.

outcomes.jsonl has every evaluation of every run, table.txt the table of all papers in it.
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
import zlib
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
OUTCOMES = os.path.join(HERE, 'outcomes.jsonl')
KEYS = ('changes', 'paper', 'command', 'claim', 'outcome')  # of a header
MEASURES = ('eval/pass@1', 'eval/pass@1/4')  # of an evaluation: all problems, those of four digits
SEEDS = (1, 2, 3)


# --- papers -------------------------------------------------------------------
def header_of(path):
    """{key: value} of a paper's first lines, 'key: value' in a diff and '# key: value' in a config.

    changes  what the paper changes
    paper    authors, title, arXiv id, equation
    command  of both arms; the flags of a run are added behind it
    claim    the paper's claim
    outcome  what came out here
    """
    header = {}
    with open(path) as f:
        for line in f:
            key, _, value = line.removeprefix('# ').strip().partition(': ')
            if key not in KEYS:
                break
            header[key] = value
    return header


def all_papers():
    """{name: path} of the papers in this folder, in the order of their names."""
    paths = glob.glob(os.path.join(HERE, '*.diff')) + glob.glob(os.path.join(HERE, '*.py'))
    # run.py and two_rewards.py have no header
    names = {os.path.basename(path).rpartition('.')[0]: path for path in paths if header_of(path)}
    return dict(sorted(names.items()))


def baseline_of(command):
    """The name of the arm that runs the code as it is: one for each command."""
    return f'baseline_{zlib.crc32(command.encode()):08x}'


def with_config(command, path):
    """The command with one more config file, behind the config file that it has."""
    words = shlex.split(command)
    # words[0] is python, words[1] the script
    last_config = max(i for i, word in enumerate(words) if i > 1 and word.endswith('.py')
                      and not word.startswith('--'))
    words.insert(last_config + 1, os.path.relpath(path, ROOT))
    return shlex.join(words)


def arms_of(names, papers):
    """{arm: (command, path of the diff or None)} of these papers and their baselines."""
    arms = {}
    for name in names:
        path = papers[name]
        command = header_of(path)['command']
        arms[baseline_of(command)] = (command, None)
        if path.endswith('.diff'):
            arms[name] = (command, path)
        else:
            arms[name] = (with_config(command, path), None)
    return arms


# --- runs ---------------------------------------------------------------------
def folder_of(arm):
    return os.path.join(ROOT, 'out', 'papers', arm)


def prepare(arm, command, diff):
    """Copies the code to the arm's folder and applies the diff there, if the arm has one."""
    code = os.path.join(folder_of(arm), 'code')
    os.makedirs(code, exist_ok=True)
    check_runs(arm, command, diff)
    # over the last copy, file by file: another run of this arm may be reading it
    for path in glob.glob(os.path.join(ROOT, '*.py')):
        shutil.copy(path, code)
    for folder in ('config', 'papers', 'rewards'):
        shutil.copytree(
            os.path.join(ROOT, folder), os.path.join(code, folder), dirs_exist_ok=True)
    if diff:
        # paths of --directory are relative to the repository
        directory = os.path.relpath(code, ROOT)
        subprocess.run(['git', 'apply', f'--directory={directory}', diff], cwd=ROOT, check=True)


def check_runs(arm, command, diff):
    """Ends with an error if the arm's folder has runs of another command or another diff."""
    made_from = command + '\n'
    if diff:
        with open(diff) as f:
            _, _, changes = f.read().partition('\n--- ')  # without the header, whose outcome changes
        made_from += changes
    path = os.path.join(folder_of(arm), 'made_from.txt')
    if os.path.exists(path):
        with open(path) as f:
            if f.read() != made_from:
                sys.exit(f'error: {folder_of(arm)} has runs of another {arm}: delete it to make them anew')
    with open(path, 'w') as f:
        f.write(made_from)


def train(job):
    """Makes one run unless it is done; returns its evaluations, each {'step', 'eval/pass@1', ...}."""
    arm, seed, command = job
    out_dir = os.path.join(folder_of(arm), f'seed{seed}')
    # the text file gets its name at the end: a model is in out_dir before a run is done
    if not os.path.exists(f'{out_dir}.txt'):
        run_script(command, arm, seed, out_dir)
        os.rename(f'{out_dir}.running', f'{out_dir}.txt')
    with open(os.path.join(out_dir, 'log.jsonl')) as f:
        records = [json.loads(line) for line in f]
    evaluations = [record for record in records if 'eval/pass@1' in record]
    print(f'{arm}, seed {seed}: pass@1 {evaluations[-1]["eval/pass@1"]:.3f}', flush=True)
    kept = ('step', *MEASURES)
    return [{key: record[key] for key in kept if key in record} for record in evaluations]


def run_script(command, arm, seed, out_dir):
    """Runs a command in the arm's copy of the code."""
    _, script, *flags = shlex.split(command)
    path = os.path.join(folder_of(arm), 'code', script)
    # several runs at a time: a thread each
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    with open(f'{out_dir}.running', 'w') as output:
        subprocess.run(
            [sys.executable, path, *flags, f'--seed={seed}', f'--out_dir={out_dir}', '--overwrite=True'],
            cwd=ROOT, check=True, stdout=output, stderr=output, env=environment)


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
        'area': area / length,
        'third': scores[third],
        # a set of problems without any of four digits has no such number
        'four digits': evaluations[-1].get('eval/pass@1/4', math.nan)}


def paired(baseline, variant):
    """Mean and standard error of the differences over the seeds, which both arms share."""
    differences = [after - before for before, after in zip(baseline, variant)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), error


def row_of(name, command, outcomes):
    """A paper's row of the table. outcomes: {(arm, seed): evaluations}."""
    of_baseline = [measured(outcomes[baseline_of(command), seed]) for seed in SEEDS]
    of_variant = [measured(outcomes[name, seed]) for seed in SEEDS]
    cells = [name]
    for key in ('final', 'area', 'third', 'four digits'):
        baseline = [numbers[key] for numbers in of_baseline]
        variant = [numbers[key] for numbers in of_variant]
        difference, error = paired(baseline, variant)
        cells.append(f'{mean_and_sd(baseline)} → {mean_and_sd(variant)}')
        cells.append(f'{difference:+.3f} ± {error:.3f}')
    return f'| {" | ".join(cells)} |'


def mean_and_sd(values):
    return f'{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}'


def table(names, papers, outcomes):
    """The table of these papers in Markdown; one without all of its runs is left out."""
    heads = ['paper', 'final pass@1', 'difference', 'mean over the run', 'difference',
             'at a third of the steps', 'difference', 'final, four digits', 'difference']
    lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
    for name in names:
        command = header_of(papers[name])['command']
        needed = [(arm, seed) for arm in (baseline_of(command), name) for seed in SEEDS]
        if all(run in outcomes for run in needed):
            lines.append(row_of(name, command, outcomes))
    return '\n'.join(lines)


def list_of(papers):
    """The papers with what their headers say, as a table in Markdown: README.md has it."""
    lines = ['| file | what changes | paper | outcome |', '|---|---|---|---|']
    for name, path in papers.items():
        header = header_of(path)
        link = f'[{name}]({os.path.basename(path)})'
        cells = [link, header['changes'], header['paper'], header['outcome']]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


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

    if '--report' not in options:
        # all copies before all runs: no copy changes under a run that reads it
        jobs = []
        for arm, (command, diff) in arms_of(names, papers).items():
            prepare(arm, command, diff)
            jobs += [(arm, seed, command) for seed in SEEDS]
        with ThreadPoolExecutor(n_jobs) as pool:
            results = list(pool.map(train, jobs))
        # other papers' lines stay; another command's may have come in the meantime
        outcomes = read_outcomes()
        for (arm, seed, _), evaluations in zip(jobs, results):
            outcomes[arm, seed] = evaluations
        write_outcomes(outcomes)

    outcomes = read_outcomes()
    with open(os.path.join(HERE, 'table.txt'), 'w') as f:
        f.write(table(papers, papers, outcomes) + '\n')
    if '--report' in options:
        print(list_of(papers), end='\n\n')
    print(table(names, papers, outcomes))


if __name__ == '__main__':
    main(sys.argv[1:])
