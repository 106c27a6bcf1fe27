"""Pictures and tables of finished or running runs, from the files that the scripts leave.

    python plot.py out/demo.png GRPO=out/tiny_grpo/log.jsonl before=out/before.jsonl after=out/after.jsonl
    python plot.py out/seeds.svg "SFT=out/sft_*/log.jsonl" "GRPO=out/grpo_*/log.jsonl"
    python plot.py docs/methods.png docs/curves.jsonl

LABEL=PATTERN is one line in each panel, its files are seeds: the line is their mean, the band one standard
deviation. A file is a script's log.jsonl, or sample.py's completions. Of completions a table is printed:
pass@1 by difficulty, its standard error over prompts (several files: the standard deviation over files), the
gain from the first label to the last, and that of each label over the one before. A file without a label
holds many runs: `method` and `seed` of each line say which (tools/results.py's). Panels are those that the
files have something for; PNG, SVG or PDF by the name.
"""
import glob
import json
import math
import statistics
import sys
from collections import defaultdict

PANELS = {  # key of log.jsonl: its panel's title, its axis
    'eval/pass@1': ('Held-out pass@1, greedy', 'share solved'),
    'eval/accuracy': ('Held-out pairs', 'share ranked right'),
    'reward/mean': ('Reward of rollouts', 'mean reward'),
    'loss': ('Loss', 'loss'),
    'completion/len_mean': ('Length of completions', 'tokens'),
    'hpt/sft_frac': ('Prompts that learn their demonstration', 'share of prompts'),
    'prefix/len_frac': ('Prefix of hybrid completions', 'share of the demonstration'),
    'grad_norm': ('Gradient norm, before clipping', 'norm')}


def read(path):
    """The objects of a file, one a line. SystemExit names the line that is none."""
    records = []
    try:
        with open(path) as f:
            for line in f:
                records.append(dict(json.loads(line)))
    except (OSError, ValueError, TypeError) as error:
        sys.exit(f'error: {path}{f":{len(records) + 1}" if records else ""}: {error}')
    if not records or not {'step', 'reward'} & {*records[0]}:
        sys.exit(f'error: {path}: neither a log.jsonl nor completions of sample.py')
    return records


def spread(values):
    """Mean and standard deviation, 0 of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def curve(runs, key):
    """x, mean, standard deviation of the records with this key, as far as every run goes. x is the step, or
    the mean of the runs' TFLOPs where the records have them."""
    columns = [*zip(*([r for r in run if key in r] for run in runs))]
    x = [statistics.fmean(r.get('flops', r['step'] * 1e12) / 1e12 for r in column) for column in columns]
    return x, *([*zip(*(spread([r[key] for r in column]) for column in columns))] or ((), ()))


def by_difficulty(runs):
    """{difficulty: [a run's pass@1, of each run]}, of a log at its last evaluation."""
    levels = defaultdict(list)
    for run in runs:
        scores = defaultdict(list)
        for r in run:
            if 'reward' in r:
                scores[r.get('difficulty')].append(r['reward'])
        for key, value in next((r for r in reversed(run) if 'eval/pass@1' in r), {}).items():
            level = key.removeprefix('eval/pass@1/')
            if level != key:
                scores[int(level) if level.isdigit() else level] = [value]
        for level, values in scores.items():
            levels[level].append(statistics.fmean(values))
    return dict(sorted(levels.items(), key=lambda item: (isinstance(item[0], str), str(item[0]).zfill(9))))


def by_prompt(run):
    """{prompt: mean reward of its completions}."""
    prompts = defaultdict(list)
    for r in run:
        prompts[r['prompt']].append(r['reward'])
    return {prompt: statistics.fmean(rewards) for prompt, rewards in prompts.items()}


def total(runs):
    """pass@1 of completions, its standard error over prompts; of several files their deviation."""
    if len(runs) > 1:
        return spread([statistics.fmean(r['reward'] for r in run) for run in runs])
    scores = by_prompt(runs[0])
    mean, deviation = spread(scores.values())
    return mean, deviation / math.sqrt(len(scores))


def paired_gain(before, after):
    """Mean gain of the prompts that two files share, and its standard error; None without such prompts.

    The error is smaller than that of two independent means: a prompt that is hard is hard for both models."""
    before, after = by_prompt(before), by_prompt(after)
    gains = [after[prompt] - before[prompt] for prompt in before if prompt in after]
    if len(gains) < 2:
        return None
    mean, deviation = spread(gains)
    return mean, deviation / math.sqrt(len(gains))


def table(samples):
    """Lines of pass@1 by difficulty, a column a label; at the end the gain of each over the one before it."""
    columns = {label: by_difficulty(runs) for label, runs in samples.items()}
    yield 'difficulty' + ''.join(f'{label:>9}        ' for label in columns) + '    gain'
    for level in next(iter(columns.values())):
        means = [statistics.fmean(levels.get(level, [math.nan])) for levels in columns.values()]
        yield f'{level!s:>10}' + ''.join(f'{x:9.3f}        ' for x in means) + f'{means[-1] - means[0]:+8.3f}'
    ends = [total(runs) for runs in samples.values()]
    yield ('       all' + ''.join(f'{mean:9.3f} ± {error:.3f}' for mean, error in ends)
           + f'{ends[-1][0] - ends[0][0]:+8.3f}')
    files = [runs[0] for runs in samples.values() if len(runs) == 1]
    gains = [paired_gain(before, after) for before, after in zip(files, files[1:])]
    if gains and len(files) == len(samples) and None not in gains:
        yield ('      gain' + ' ' * 17 + ''.join(f'{mean:+9.3f} ± {error:.3f}' for mean, error in gains)
               + '  over the column before, paired by prompt')


def draw(picture, logs, samples):
    """Write the picture: a panel for each key that the files have, the last by difficulty: of completions, or
    of the logs' last evaluations."""
    keys = [key for key in PANELS if any(key in r for runs in logs.values() for run in runs for r in run)]
    levels = {label: by_difficulty(runs) for label, runs in (samples or logs).items()}
    panels = keys + ['difficulty'] * any(len(found) > 1 for found in levels.values())
    flops = all('flops' in r for runs in logs.values() for run in runs for r in run)
    if not panels:
        sys.exit('nothing to draw: no evaluation, loss or difficulty in these files')
    width, rows = min(3, len(panels)), -(-len(panels) // 3)
    figure, axes = pyplot.subplots(rows, width, figsize=(4.4 * width, 3.2 * rows), layout='constrained',
                                   squeeze=False)
    for axis in axes.flat[len(panels):]:
        axis.set_axis_off()
    for key, axis in zip(panels, axes.flat):
        for label in logs if key in PANELS else levels:
            x, y, deviation = curve(logs[label], key) if key in PANELS else (
                [*map(str, levels[label])], *([*zip(*map(spread, levels[label].values()))] or ((), ())))
            if x:
                color = f'C{[*logs, *samples].index(label)}'
                axis.plot(x, y, color, marker='o' * (len(x) < 20) or None, markersize=4, label=label)
                band = [[a + s * b for a, b in zip(y, deviation)] for s in (-1, 1)]
                axis.fill_between(x, *band, color=color, alpha=0.2, linewidth=0)
        what = 'Completions, by difficulty' if samples else 'Last evaluation, by difficulty'
        title, ylabel = PANELS.get(key, (what, 'pass@1'))
        axis.set(title=title, ylabel=ylabel, xlabel=('TFLOP' if flops else 'step') if key in PANELS else key)
        axis.legend(fontsize=8)
        if ylabel.startswith(('share', 'pass', 'mean reward')):
            axis.set(ylim=(0, 1))
        if key == 'grad_norm':
            axis.set(yscale='log')
    figure.savefig(picture, dpi=120)


if __name__ == '__main__':
    if len(sys.argv) < 3 or not sys.argv[1].endswith(('.png', '.svg', '.pdf')):
        sys.exit(__doc__)
    logs, samples = defaultdict(list), defaultdict(list)
    for argument in sys.argv[2:]:
        label, pattern = argument.split('=', 1) if '=' in argument else ('', argument)
        for path in sorted(glob.glob(pattern)) or [pattern]:
            records = read(path)
            runs = defaultdict(list)
            for r in records:
                runs[(label or r.get('method', path), r.get('seed'))].append(r)
            for (name, _), run in runs.items():
                (samples if 'reward' in run[0] else logs)[name].append(run)
    if samples:
        print('pass@1 of completions', *table(samples), sep='\n')
    try:
        import matplotlib
    except ImportError:
        print('no picture: pip install matplotlib, then run this again')
        sys.exit()  # the table is there: no failure
    matplotlib.use('Agg')
    from matplotlib import pyplot
    draw(sys.argv[1], logs, samples)
    print(f'picture: {sys.argv[1]}')
