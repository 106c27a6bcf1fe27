r"""Pictures and tables of finished or running runs, from the files that the scripts leave.

    python plot.py out/demo.png GRPO=out/tiny_grpo/log.jsonl before=out/before.jsonl \
                                after=out/after.jsonl
    python plot.py out/seeds.svg "SFT=out/sft_*/log.jsonl" "GRPO=out/grpo_*/log.jsonl"

The first argument is the picture: PNG, SVG or PDF by its name. Every other argument is
LABEL=PATTERN: the files that match are runs of one method with different seeds. They are one line in
each panel, their mean; the band is one standard deviation. Without a label it is the pattern itself.

A file is a script's log.jsonl or sample.py's completions. The picture has a panel for everything
that the files contain: see PANELS.

Completions also make a printed table, with a column for each label and at the right the gain from
the first label to the last. Its rows: pass@1 by difficulty; pass@1 of all prompts with its standard
error over prompts (with several files: the standard deviation over files); and the gain of each
label over the one before.
"""
import glob
import json
import math
import statistics
import sys
from collections import defaultdict

# key of log.jsonl: title of its panel, label of its y axis
PANELS = {
    'eval/pass@1': ('Held-out pass@1', 'share solved'),
    'eval/accuracy': ('Held-out pairs', 'share ranked right'),
    'reward/mean': ('Reward of rollouts', 'mean reward'),
    'loss': ('Loss', 'loss'),
    'completion/len_mean': ('Length of completions', 'tokens'),
    'hpt/sft_frac': ('Prompts that learn their demonstration', 'share of prompts'),
    'prefix/len_frac': ('Prefix of hybrid completions', 'share of the demonstration'),
    'grad_norm': ('Gradient norm, before clipping', 'norm'),
}


# --- files --------------------------------------------------------------------
def read(path):
    """The records (dicts) of a file, one a line. Exits with an error that names the broken line."""
    records = []
    try:
        with open(path) as f:
            for line in f:
                records.append(dict(json.loads(line)))
    except (OSError, ValueError, TypeError) as error:
        # a file that cannot be opened, or whose first line is broken, is named without a line
        place = f'{path}:{len(records) + 1}' if records else path
        sys.exit(f'error: {place}: {error}')

    # every record of a log has a step, every completion a reward
    if not records or ('step' not in records[0] and 'reward' not in records[0]):
        sys.exit(f'error: {path}: neither a log.jsonl nor completions of sample.py')
    return records


def read_all(arguments):
    """logs, samples: {label: runs} of all LABEL=PATTERN; a run is a list of records."""
    logs = defaultdict(list)
    samples = defaultdict(list)
    for argument in arguments:
        label, pattern = argument.split('=', 1) if '=' in argument else (argument, argument)
        # a pattern without a match is kept, so that read() names the missing file
        paths = sorted(glob.glob(pattern)) or [pattern]
        for path in paths:
            run = read(path)
            is_sample = 'reward' in run[0]
            runs_by_label = samples if is_sample else logs
            runs_by_label[label].append(run)
    return logs, samples


# --- statistics ---------------------------------------------------------------
def spread(values):
    """Mean and sample standard deviation; the deviation of one value is 0."""
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), deviation


def curve(runs, key):
    """Step, mean and standard deviation over the runs, of the records that have this key.

    Three sequences of one length. They end where the shortest run ends.
    """
    with_key = []
    for run in runs:
        with_key.append([record for record in run if key in record])

    steps, means, deviations = [], [], []
    # the runs' first records with this key, then their second ones, and so on
    for records in zip(*with_key):
        steps.append(statistics.fmean(record['step'] for record in records))
        mean, deviation = spread(record[key] for record in records)
        means.append(mean)
        deviations.append(deviation)
    return steps, tuple(means), tuple(deviations)


def scores_by_difficulty(run):
    """{difficulty: list of scores} of one run.

    Completions: each one's reward. A log: the one pass@1 of its last evaluation.
    """
    scores = defaultdict(list)
    for record in run:
        if 'reward' in record:
            scores[record.get('difficulty')].append(record['reward'])

    evaluations = [record for record in run if 'eval/pass@1' in record]
    last_evaluation = evaluations[-1] if evaluations else {}
    for key, value in last_evaluation.items():
        # eval/pass@1/3 is the pass@1 of difficulty 3
        if key.startswith('eval/pass@1/'):
            level = key.removeprefix('eval/pass@1/')
            level = int(level) if level.isdigit() else level
            scores[level] = [value]
    return scores


def place_of_level(level):
    """Sort key of a difficulty: numbers by their size, then texts."""
    padded = str(level).zfill(9)  # 000000002 comes before 000000010
    return isinstance(level, str), padded


def by_difficulty(runs):
    """{difficulty: the pass@1 of each run}, in the order of the difficulties."""
    levels = defaultdict(list)
    for run in runs:
        for level, scores in scores_by_difficulty(run).items():
            levels[level].append(statistics.fmean(scores))
    return {level: levels[level] for level in sorted(levels, key=place_of_level)}


def by_prompt(run):
    """{prompt: mean reward of its completions}."""
    rewards_of = defaultdict(list)
    for record in run:
        rewards_of[record['prompt']].append(record['reward'])
    return {prompt: statistics.fmean(rewards) for prompt, rewards in rewards_of.items()}


def total(runs):
    """pass@1 of completions and its error.

    The error of one file is the standard error over its prompts; that of several files is the
    standard deviation over the files.
    """
    if len(runs) > 1:
        file_means = []
        for run in runs:
            file_means.append(statistics.fmean(record['reward'] for record in run))
        return spread(file_means)

    prompt_means = by_prompt(runs[0]).values()
    mean, deviation = spread(prompt_means)
    return mean, deviation / math.sqrt(len(prompt_means))


def paired_gain(before, after):
    """Mean gain of the prompts that two runs share, and its standard error; None without two.

    The pairs make the error smaller than that of two independent means: a prompt that is hard for
    one model is often hard for the other.
    """
    before_means = by_prompt(before)
    after_means = by_prompt(after)
    gains = []
    for prompt in before_means:
        if prompt in after_means:
            gains.append(after_means[prompt] - before_means[prompt])
    if len(gains) < 2:
        return None
    mean, deviation = spread(gains)
    return mean, deviation / math.sqrt(len(gains))


# --- table --------------------------------------------------------------------
def table(samples):
    """The lines of the table of completions, {label: runs}; the top of this file describes it."""
    # difficulty
    columns = {label: by_difficulty(runs) for label, runs in samples.items()}
    labels = ''.join(f'{label:>9}        ' for label in columns)
    yield f'difficulty{labels}    gain'

    # the first column says which difficulties there are
    first_column = next(iter(columns.values()))
    for level in first_column:
        means = [statistics.fmean(column.get(level, [math.nan])) for column in columns.values()]
        cells = ''.join(f'{mean:9.3f}        ' for mean in means)
        gain = means[-1] - means[0]
        yield f'{level!s:>10}{cells}{gain:+8.3f}'

    # all
    totals = [total(runs) for runs in samples.values()]
    cells = ''.join(f'{mean:9.3f} ± {error:.3f}' for mean, error in totals)
    first_mean, _ = totals[0]
    last_mean, _ = totals[-1]
    yield f'       all{cells}{last_mean - first_mean:+8.3f}'

    # gain
    gains = gains_by_label(samples)
    if gains:
        cells = ''.join(f'{mean:+9.3f} ± {error:.3f}' for mean, error in gains)
        under_first_column = ' ' * 17
        yield f'      gain{under_first_column}{cells}  over the column before, paired by prompt'


def gains_by_label(samples):
    """paired_gain() of each label over the one before; [] unless every label has one file."""
    if any(len(runs) > 1 for runs in samples.values()):
        return []
    only_runs = [runs[0] for runs in samples.values()]
    gains = []
    for before, after in zip(only_runs, only_runs[1:]):
        gains.append(paired_gain(before, after))
    # labels that share no prompts have no gain, and the printed line has no place for a gap
    return [] if None in gains else gains


# --- picture ------------------------------------------------------------------
def records_of(logs):
    """All records of all runs."""
    for runs in logs.values():
        for run in runs:
            yield from run


def draw_line(axis, x, means, deviations, label, color):
    """A line with its band of one standard deviation."""
    # marks on many points would hide the line
    marker = 'o' if len(x) < 20 else None
    axis.plot(x, means, color=color, marker=marker, markersize=4, label=label)
    low = [mean - deviation for mean, deviation in zip(means, deviations)]
    high = [mean + deviation for mean, deviation in zip(means, deviations)]
    axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def draw_log_panel(axis, key, logs, colors):
    """The panel of a key of log.jsonl: a line for each label, over steps."""
    for label, runs in logs.items():
        steps, means, deviations = curve(runs, key)
        if steps:
            draw_line(axis, steps, means, deviations, label, colors[label])
    title, ylabel = PANELS[key]
    axis.set(title=title, ylabel=ylabel, xlabel='step')

    # shares and rewards lie in [0, 1]; a gradient norm can vary by orders of magnitude
    if ylabel.startswith(('share', 'mean reward')):
        axis.set(ylim=(0, 1))
    if key == 'grad_norm':
        axis.set(yscale='log')
    # GRPO's loss can be 0 but for rounding: its axis would show the rounding as if it were a curve
    if key == 'loss' and axis.dataLim.height < 1e-6:
        axis.set(ylim=(-1, 1))


def draw_difficulty_panel(axis, title, levels_of, colors):
    """The panel of pass@1 by difficulty: a line for each label of {label: by_difficulty()}."""
    for label, levels in levels_of.items():
        if levels:
            x = [str(level) for level in levels]
            spreads = [spread(values) for values in levels.values()]
            means = [mean for mean, _ in spreads]
            deviations = [deviation for _, deviation in spreads]
            draw_line(axis, x, means, deviations, label, colors[label])
    axis.set(title=title, ylabel='pass@1', xlabel='difficulty', ylim=(0, 1))


def draw(picture, logs, samples):
    """Writes the picture: a panel for each key that the logs have, then one by difficulty.

    The last panel is about the completions, or without any about the logs' last evaluations.
    """
    # imported here, because tables need no matplotlib
    from matplotlib import pyplot

    keys = []
    for key in PANELS:
        if any(key in record for record in records_of(logs)):
            keys.append(key)
    levels_of = {label: by_difficulty(runs) for label, runs in (samples or logs).items()}
    # a line needs two difficulties
    with_difficulty = any(len(levels) > 1 for levels in levels_of.values())
    n_panels = len(keys) + (1 if with_difficulty else 0)
    if n_panels == 0:
        sys.exit('nothing to draw: no evaluation, loss or difficulty in these files')

    # three panels a row; unused places of the last row stay empty
    columns = min(3, n_panels)
    rows = math.ceil(n_panels / 3)
    figure, grid = pyplot.subplots(rows, columns, figsize=(4.4 * columns, 3.2 * rows),
                                   layout='constrained', squeeze=False)
    axes = list(grid.flat)
    for axis in axes[n_panels:]:
        axis.set_axis_off()

    # a label has the same colour in all panels
    colors = {}
    for i, label in enumerate([*logs, *samples]):
        colors.setdefault(label, f'C{i}')
    for key, axis in zip(keys, axes):
        draw_log_panel(axis, key, logs, colors)
    if with_difficulty:
        subject = 'Completions' if samples else 'Last evaluation'
        draw_difficulty_panel(axes[len(keys)], f'{subject}, by difficulty', levels_of, colors)

    for axis in axes[:n_panels]:
        axis.legend(fontsize=8)
    figure.savefig(picture, dpi=120)


def main():
    if len(sys.argv) < 3 or not sys.argv[1].endswith(('.png', '.svg', '.pdf')):
        sys.exit(__doc__)
    picture = sys.argv[1]
    logs, samples = read_all(sys.argv[2:])
    if samples:
        print('pass@1 of completions', *table(samples), sep='\n')
    try:
        import matplotlib
    except ImportError:
        # no failure: the table is printed
        print('no picture: pip install matplotlib, then run this again')
        return
    # draws into files without a window
    matplotlib.use('Agg')
    draw(picture, logs, samples)
    print(f'picture: {picture}')


if __name__ == '__main__':
    main()
