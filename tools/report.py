"""The tables and the picture of tools/results.py, and the tests of which differences are real.

Of each pair of methods in a regime there is a paired t-test over the seeds, with Holm's correction for
the number of pairs in that regime. It says whether a difference would remain with other training
seeds; the start model, the test problems and the tuned settings are the same in all of them.
"""
import math
import statistics
from dataclasses import dataclass
from itertools import combinations


# --- statistics -------------------------------------------------------------------------
def student_p(t, df):
    """Two-sided p-value of Student's t with df degrees of freedom.

    With t = sqrt(df) tan(angle) the density is proportional to cos(angle)^(df - 1), which Simpson's
    rule integrates from 0 to the angle of t, and to a right angle for the whole.
    """
    def integral(end, n=1000):
        width = end / n
        heights = [math.cos(i * width) ** (df - 1) for i in range(n + 1)]
        inner = 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
        return width / 3 * (heights[0] + inner + heights[-1])
    angle = math.atan(abs(t) / math.sqrt(df))
    return 1 - integral(angle) / integral(math.pi / 2)


@dataclass
class Difference:
    """A difference between two methods over seeds, each seed against the same seed."""
    mean: float
    error: float  # standard error of the mean
    p: float  # of a paired t-test


def paired_difference(first, second):
    """The Difference first - second of two lists, which have a score for each seed."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return Difference(mean, 0.0, 0.0 if mean else 1.0)
    return Difference(mean, error, student_p(mean / error, len(differences) - 1))


def holm(p_values):
    """p-values corrected for their number: the smallest times n, the next times n - 1, and so on.

    Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, i in enumerate(order):
        # never below that of a smaller p-value
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - place)))
        corrected[i] = largest
    return corrected


def differences_of(runs_of):
    """[(better method, other method, Difference, corrected p)] of all pairs of {method: records}.

    The largest difference first. Only seeds that both have count, and there must be three: two make
    no test.
    """
    pairs = []
    for first, second in combinations(runs_of, 2):
        # each seed against the same seed
        first_scores = {run['seed']: run['pass@1'] for run in runs_of[first]}
        second_scores = {run['seed']: run['pass@1'] for run in runs_of[second]}
        seeds = sorted(first_scores.keys() & second_scores.keys())
        if len(seeds) < 3:
            continue
        found = paired_difference([first_scores[seed] for seed in seeds],
                                  [second_scores[seed] for seed in seeds])
        # the better one comes first
        if found.mean < 0:
            first, second = second, first
            found = Difference(-found.mean, found.error, found.p)
        pairs.append((first, second, found))
    # as many tests as pairs: chance alone would make some of them look real
    corrected = holm([found.p for _, _, found in pairs])
    rows = [(*pair, p) for pair, p in zip(pairs, corrected)]
    return sorted(rows, key=lambda row: -row[2].mean)


# --- evaluations ------------------------------------------------------------------------
def own_points(record):
    """The evaluations of a record's own script, after training began: no stage before it, no step 0.

    A point is (TFLOP so far, step, pass@1).
    """
    points = []
    last_step = 0
    for point in record['points']:
        _, step, _ = point
        # the steps of the stage before are counted from 0, too
        if step < last_step:
            points = []
        if step > 0:
            points.append(point)
        last_step = step
    return points


# --- tables -----------------------------------------------------------------------------
def by_method(task, records, runs, regime):
    """{method: its finished records, in the order of the seeds}, of a regime's table.

    `runs` are the runs that the tables are of: a record of former settings is in none.
    """
    runs_of = {}
    for name in task.methods:
        # what needs no demonstrations is in the tables of all regimes
        wanted = regime if regime in task.regimes_of(name) else task.regimes_of(name)[0]
        names = [run.name for run in runs if run.method == name and run.regime == wanted]
        found = [records[key] for key in names if key in records]
        if found:
            runs_of[name] = sorted(found, key=lambda record: record['seed'])
    return runs_of


def mean_and_spread(values):
    """The mean ± the standard deviation over seeds, as text."""
    text = f'{statistics.mean(values):.3f}'
    if len(values) > 1:
        text += f' ± {statistics.stdev(values):.3f}'
    return text


def table(headings, rows):
    """The lines of a table in Markdown."""
    lines = [f'| {" | ".join(headings)} |', '|---' * len(headings) + '|']
    return lines + [f'| {" | ".join(row)} |' for row in rows]


def score_columns(task):
    """{heading: key of a record} of the scores in a table."""
    columns = {'pass@1': 'pass@1'}
    for level in task.levels:
        unit = task.unit.removesuffix('s') if level == 1 else task.unit
        columns[f'{level} {unit}'] = f'pass@1/{level}'
    columns[f'pass@{task.samples}'] = f'pass@{task.samples}'
    columns['greedy'] = 'greedy'
    if task.other_skill:
        columns['other skill'] = 'other skill'
    return columns


def control_table(task, records):
    """The start model and what needs no training."""
    columns = score_columns(task)
    rows = []
    for record in records.values():
        if not record.get('control'):
            continue
        name = record['name']
        if 'bias' in record:
            name += f' ({record["bias"]:+g} on {record["token"]})'
        cells = [f'{record[key]:.3f}' if key in record else '' for key in columns.values()]
        tokens = f'{record["tokens"]:.0f}' if 'tokens' in record else ''
        rows.append([name, *cells, tokens])
        # of 16 completions one is chosen, without the truth
        ways = {f'maj@{task.samples}': f'majority of {task.samples}',
                'own verdict': f'the first of {task.samples} that claims to be right'}
        for key, way in ways.items():
            if key in record:
                rows.append([f'{name}, {way}', f'{record[key]:.3f}', *[''] * len(columns)])
    return table(['control', *columns, 'tokens'], rows)


def overview_table(task, records, runs):
    """pass@1 of every method in every regime, beside the start model's."""
    start = records.get('start model, temperature 1', {}).get('pass@1')
    rows = []
    if start is not None:
        rows.append(['start model', *[f'{start:.3f}'] * len(task.regimes)])
    found = {regime: by_method(task, records, runs, regime) for regime in task.regimes}
    for name in task.methods:
        cells = []
        for regime in task.regimes:
            scores = [run['pass@1'] for run in found[regime].get(name, [])]
            cells.append(mean_and_spread(scores) if scores else '')
        rows.append([name, *cells])
    return table(['method', *task.regimes], rows)


def method_table(task, runs_of):
    """A regime's methods, {method: records}."""
    columns = score_columns(task)
    rows = []
    for name, runs in runs_of.items():
        cells = [mean_and_spread([run[key] for run in runs]) for key in columns.values()]
        tflop = statistics.mean(run['tflop'] for run in runs)
        tokens = statistics.mean(run['tokens'] for run in runs)
        rows.append([name, f'{runs[0]["learning_rate"]:g}', str(runs[0]['steps']), f'{tflop:.1f}',
                     *cells, f'{tokens:.0f}', str(len(runs))])
    return table(['method', 'learning rate', 'steps', 'TFLOP', *columns, 'tokens', 'seeds'], rows)


def p_value(p):
    """As text, never 0."""
    return f'{p:.4f}' if p >= 0.0001 else '< 0.0001'


def difference_table(runs_of):
    rows = []
    for first, second, found, p in differences_of(runs_of):
        rows.append([f'{first} over {second}', f'+{found.mean:.3f} ± {found.error:.3f}',
                     p_value(found.p), p_value(p), 'yes' if p < 0.05 else 'no'])
    return table(['difference', 'mean ± standard error', 'p', 'p, Holm', 'p < 0.05'], rows)


def tuning_table(records, tuning_runs):
    """Every score by which a learning rate and a step were chosen."""
    rows = []
    for run in tuning_runs:
        if run.name in records:
            scores = [f'{score:.3f} at {step}' for _, step, score in own_points(records[run.name])]
            rows.append([run.regime, run.method, f'{run.learning_rate:g}', ', '.join(scores)])
    return table(['regime', 'method', 'learning rate', 'pass@1 at step'], rows)


def report(task, records, tuning_runs, runs):
    """All tables, as text: `tuning_runs` chose the settings, `runs` are those of the tables."""
    lines = ['pass@1 is at temperature 1; mean ± standard deviation over seeds.', '',
             '## Controls', '', *control_table(task, records), '',
             '## pass@1 by the demonstrations that a method is given', '',
             *overview_table(task, records, runs)]
    for regime in task.regimes:
        runs_of = by_method(task, records, runs, regime)
        lines += ['', f'## Demonstrations: {regime}', '', *method_table(task, runs_of), '',
                  *difference_table(runs_of)]
    if tuning_runs:
        lines += ['', '## Tuning, on other problems', '',
                  *tuning_table(records, tuning_runs)]
    done = [run for run in runs if run.name in records]
    # a record of former settings is in no table, and its time does not count
    minutes = sum(records[run.name]['minutes'] for run in [*tuning_runs, *runs] if run.name in records)
    lines += ['', f'{len(done)} of {len(runs)} runs of the tables are done; the times of all runs '
              f'add up to {minutes / 60:.1f} hours']
    return '\n'.join(lines)


# --- picture ----------------------------------------------------------------------------
def mean_curve(runs, start):
    """TFLOP, mean and standard deviation of pass@1 over seeds, from the start model on."""
    tflops, means, deviations = [0.0], [start], [0.0]
    # Step 0 is the start model. A point is the mean over seeds of their first evaluation, the next
    # one of their second, and so on.
    trained = [[point for point in run['points'] if point[1] > 0] for run in runs]
    for points in zip(*trained):
        scores = [score for _, _, score in points]
        tflops.append(statistics.mean(tflop for tflop, _, _ in points))
        means.append(statistics.mean(scores))
        deviations.append(statistics.stdev(scores) if len(scores) > 1 else 0.0)
    return tflops, means, deviations


def draw(task, records, runs, picture):
    """A panel for each regime: pass@1 on the test problems over TFLOP, mean and standard deviation."""
    try:
        import matplotlib
    except ImportError:
        # no failure: the tables are written
        print('no picture: pip install matplotlib, then --report')
        return
    # draws into files without a window
    matplotlib.use('Agg')
    from matplotlib import pyplot

    start = records.get('start model, temperature 1', {}).get('pass@1')
    if start is None or not any(run.name in records for run in runs):
        print('no picture before the first run of the tables is done')
        return
    colors = {name: f'C{i}' for i, name in enumerate(task.methods)}
    figure, axes = pyplot.subplots(1, len(task.regimes), figsize=(4.4 * len(task.regimes), 4),
                                   layout='constrained', sharey=True)
    for axis, regime in zip(axes, task.regimes):
        for name, found in by_method(task, records, runs, regime).items():
            tflops, means, deviations = mean_curve(found, start)
            axis.plot(tflops, means, color=colors[name], marker='o', markersize=4, label=name)
            low = [mean - deviation for mean, deviation in zip(means, deviations)]
            high = [mean + deviation for mean, deviation in zip(means, deviations)]
            axis.fill_between(tflops, low, high, color=colors[name], alpha=0.15, linewidth=0)
        axis.set(title=f'Demonstrations: {regime}', xlabel='TFLOP')
    axes[0].set(ylabel='pass@1 of held-out problems', ylim=(0, None))
    axes[0].legend(fontsize=8)
    figure.savefig(picture, dpi=110)
    print(f'picture: {picture}')
