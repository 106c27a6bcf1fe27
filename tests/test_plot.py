"""plot.py: what it computes of hand-made files, what it says of files that are none, and that a picture comes out."""
import json
import os
import subprocess
import sys

import plot
import pytest
from conftest import ROOT


def write(path, records):
    path.write_text(''.join(json.dumps(r) + '\n' for r in records))
    return str(path)


def log(*scores):
    """A run's records, an evaluation at each second step."""
    return [{'step': i + 1, 'loss': 1 / (i + 1), 'grad_norm': 1.0, **({'eval/pass@1': x, 'eval/pass@1/2': x, 'eval/pass@1/10': x / 2}
                                                                      if x is not None else {})} for i, x in enumerate(scores)]


def test_curves_by_hand():
    """Mean and sample deviation where every run has a value; the longer run's end is left out; one run has no band."""
    runs = [log(None, 0.2, None, 0.5), log(None, 0.4, None, 0.9, None, 1.0)]
    x, mean, deviation = plot.curve(runs, 'eval/pass@1')
    assert x == [2, 4] and mean == pytest.approx((0.3, 0.7)) and deviation == pytest.approx((0.02 ** 0.5, 0.08 ** 0.5))
    assert plot.curve(runs[:1], 'eval/pass@1')[2] == (0.0, 0.0) and plot.curve(runs, 'missing') == ([], (), ())


def test_difficulties_by_hand():
    """A log's last evaluation, in the order of numbers; completions by their own; several files are several values."""
    assert list(plot.by_difficulty([log(0.1, 0.4), log(0.2, 0.6)]).items()) == [(2, [0.4, 0.6]), (10, [0.2, 0.3])]
    rows = [{'prompt': p, 'reward': r, 'difficulty': d} for p, r, d in
            (('a', 1, 'Level 1'), ('a', 0, 'Level 1'), ('b', 1, 'Level 2'), ('b', 1, 'Level 2'))]
    assert plot.by_difficulty([rows]) == {'Level 1': [0.5], 'Level 2': [1.0]}
    assert plot.total([rows]) == pytest.approx((0.75, 0.25))  # two prompts, 0.5 and 1: deviation 0.3536 / root 2
    assert plot.total([rows, rows[:2]]) == pytest.approx((0.625, 0.125 * 2 ** 0.5))
    worse = [{**r, 'reward': 0} for r in rows]
    assert [line.split() for line in plot.table({'before': [worse], 'after': [rows]})] == [
        ['difficulty', 'before', 'after', 'gain'], ['Level', '1', '0.000', '0.500', '+0.500'], ['Level', '2', '0.000', '1.000', '+1.000'],
        ['all', '0.000', '±', '0.000', '0.750', '±', '0.250', '+0.750'],
        ['gain', '+0.750', '±', '0.250', *'over the column before, paired by prompt'.split()]]
    better = [{**r, 'reward': 1} for r in rows]  # over rows: 0.5 for a and 0 for b, however much a and b differ
    assert plot.paired_gain(rows, better) == pytest.approx((0.25, 0.25)) and plot.paired_gain(rows, [{**rows[0], 'prompt': 'c'}]) is None


def test_files_and_pictures(tmp_path):
    """Patterns are seeds, a file without a label has its name for one; what is no log is named with its line."""
    command = [sys.executable, os.path.join(ROOT, 'plot.py')]
    for seed in (1, 2):
        write(tmp_path / f'log{seed}.jsonl', log(0.1 * seed, 0.4))
    for name, *files in (('a.svg', f'GRPO={tmp_path}/log*.jsonl'), ('b.png', f'{tmp_path}/log1.jsonl')):
        pytest.importorskip('matplotlib')
        done = subprocess.run([*command, str(tmp_path / name), *files], capture_output=True, text=True, check=True)
        assert done.stdout == f'picture: {tmp_path}/{name}\n' and os.path.getsize(tmp_path / name) > 5000
    svg = (tmp_path / 'a.svg').read_text()
    assert all(f'<!-- {words} -->' in svg for words in ('Held-out pass@1', 'Loss', 'Last evaluation, by difficulty', 'difficulty', 'GRPO'))
    samples = write(tmp_path / 'samples.jsonl', [{'prompt': p, 'reward': 1, 'difficulty': p} for p in (2, 3)])
    without = ('import runpy, sys; sys.modules["matplotlib"] = None; sys.argv = sys.argv[1:]; '
               'runpy.run_path(sys.argv[0], run_name="__main__")')
    done = subprocess.run([sys.executable, '-c', without, command[1], str(tmp_path / 'f.png'), f'a={samples}'], capture_output=True, text=True)
    assert done.returncode == 0 and '1.000' in done.stdout and 'no picture: pip install matplotlib' in done.stdout, done.stderr
    plain = write(tmp_path / 'plain.jsonl', [{'step': 1, 'loss': 1.0}])  # nothing by difficulty: no line there
    done = subprocess.run([*command, str(tmp_path / 'd.png'), f'a={tmp_path}/log1.jsonl', f'b={plain}'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lone = write(tmp_path / 'lone.jsonl', [{'prompt': 'p', 'reward': 1, 'difficulty': None}])
    done = subprocess.run([*command, str(tmp_path / 'e.png'), f'a={lone}'], capture_output=True, text=True)
    assert done.returncode == 1 and 'nothing to draw' in done.stderr and '1.000' in done.stdout
    (tmp_path / 'bad.jsonl').write_text('{"step": 1}\n{"step"\n')
    for name, words in (('bad.jsonl', 'bad.jsonl:2: '), ('none.jsonl', 'none.jsonl: [Errno 2]'), ('other.json', 'neither a log.jsonl nor')):
        (tmp_path / 'other.json').write_text('{"a": 1}\n')
        done = subprocess.run([*command, str(tmp_path / 'c.png'), f'x={tmp_path}/{name}'], capture_output=True, text=True)
        assert done.returncode == 1 and words in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('size, is_flat', [(1e-9, True), (1e-2, False)])
def test_a_loss_of_rounding_is_drawn_flat(size, is_flat):
    """GRPO's loss is 0 at ratio 1. An axis of 1e-9 would show its rounding as a curve."""
    pyplot = pytest.importorskip('matplotlib.pyplot')
    figure, axis = pyplot.subplots()
    records = [{'step': step, 'loss': size * (-1) ** step} for step in range(5)]
    plot.draw_log_panel(axis, 'loss', {'GRPO': [records]}, {'GRPO': 'C0'})
    low, high = axis.get_ylim()
    pyplot.close(figure)
    assert (high - low > 1) == is_flat
