"""tools/results.py: its statistics by hand-worked numbers, its regimes, and what it chooses and counts."""
import json

import pytest

from tools import results
from tools.results import Run, Summary, holm, paired_difference, student_p


# --- statistics ---------------------------------------------------------------
@pytest.mark.parametrize('t, df, p', [
    # the quantiles that every table of Student's t has
    (12.706, 1, 0.05), (4.303, 2, 0.05), (2.776, 4, 0.05), (-2.776, 4, 0.05), (4.604, 4, 0.01), (2.228, 10, 0.05), (0, 4, 1.0),
])
def test_p_values_are_those_of_the_tables(t, df, p):
    assert student_p(t, df) == pytest.approx(p, abs=5e-5)


def test_paired_difference_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, error 1 / sqrt 3, t = 3.464 with df 2: p = 1 - t / sqrt(t^2 + 2) = 0.0742."""
    found = paired_difference([2, 4, 6], [1, 2, 3])
    assert (found.mean, found.error) == pytest.approx((2, 3 ** -0.5))
    assert found.p == pytest.approx(1 - 12 ** 0.5 / 14 ** 0.5)
    assert paired_difference([1, 2], [1, 2]).p == 1 and paired_difference([2, 3], [1, 2]).p == 0
    with pytest.raises(ValueError):
        paired_difference([1, 2], [1, 2, 3])


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2 (which stays at the 0.06 before it), 0.5 x 1; in the order that they came in."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9]) and holm([]) == []


# --- counts -------------------------------------------------------------------
def test_flops_by_hand():
    """10 parameters: 2 x 100 + 6 x 50, then as much again, after 1 TFLOP of another stage; sft.py's tokens are all trained."""
    log = [{'step': 0, 'tokens': 0, 'eval/pass@1': 0.1},
           {'step': 1, 'tokens': 150, 'tokens/sampled': 100, 'tokens/trained': 50},
           {'step': 2, 'tokens': 300, 'tokens/sampled': 100, 'tokens/trained': 50},
           {'step': 2, 'tokens': 300, 'eval/pass@1': 0.5}]
    points, tflop = results.points_of(log, 10, 1.0)
    assert points == [(1.0, 0, 0.1), (pytest.approx(1 + 1e-8), 2, 0.5)] and tflop == pytest.approx(1 + 1e-8)
    points, tflop = results.points_of([{'step': 4, 'tokens': 100, 'eval/pass@1': 0.3}], 10, 0.0)
    assert points == [(pytest.approx(6e-9), 4, 0.3)]


def summary_of(tmp_path, records):
    path = tmp_path / 'curves.jsonl'
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return Summary(str(path))


def test_choices_are_the_best_rate_and_step(tmp_path):
    """Over rates and steps together; of equals the earliest step; an SFT stage before does not count, nor step 0."""
    records = []
    for regime in results.REGIMES:
        for run in results.tuning_runs('SFT then GRPO'):
            if run.regime == regime:
                points = [[0.1, 120, 0.9], [0.2, 240, 0.9], [0.2, 0, 0.9], [0.3, 10, 0.2], [0.4, 20, 0.2]]
                if run.learning_rate == 4e-4:
                    points[3:] = [[0.3, 5, 0.2], [0.3, 10, 0.4], [0.4, 15, 0.4], [0.5, 20, 0.3]]
                records.append({'name': run.name, 'points': points})
    choices = results.choose(summary_of(tmp_path, records), ['SFT then GRPO'])
    assert choices == {(regime, 'SFT then GRPO'): (4e-4, 10) for regime in results.REGIMES}


def test_a_finished_run_is_not_made_again(tmp_path, monkeypatch):
    run = Run('plenty', 'SFT', 1e-3, 540, 1)
    summary = summary_of(tmp_path, [{'name': run.name, 'pass@1': 0.5}])
    monkeypatch.setattr(results, 'train', lambda *_: pytest.fail('it runs again'))
    results.execute(run, summary, {}, 10)
    summary.keep({'name': 'another', 'pass@1': 0.25})
    assert set(Summary(summary.path).records) == {run.name, 'another'}


# --- regimes ------------------------------------------------------------------
def test_regimes(tmp_path, monkeypatch):
    """The same prompts in all; 48 demonstrations in scarce; a third of noisy is wrong, half of those claim to be right."""
    from verify import verify
    monkeypatch.setattr(results, 'OUT', str(tmp_path))
    results.prepare_demonstrations()
    rows = {}
    for name in ('plenty', 'scarce', 'rest', 'noisy'):
        with open(results.rows_of(name)) as f:
            rows[name] = [json.loads(line) for line in f]
    prompts = [row['prompt'] for row in rows['plenty']]
    assert len(set(prompts)) == len(prompts) > 3000
    assert [row['prompt'] for row in rows['scarce'] + rows['rest']] == prompts == [row['prompt'] for row in rows['noisy']]
    assert len(rows['scarce']) == 48 and not any('demonstration' in row for row in rows['rest'])
    assert [sum(row['difficulty'] == n for row in rows['scarce']) for n in (2, 3, 4)] == [16, 16, 16]
    assert all(verify('search', row['demonstration'], row['answer']) == 1 for row in rows['plenty'])
    wrong = [row for row in rows['noisy'] if verify('search', row['demonstration'], row['answer']) == 0]
    claimed = [row for row in wrong if row['demonstration'].endswith('y')]
    assert len(wrong) == round(len(prompts) / 3) and abs(len(claimed) - len(wrong) / 2) <= 0.5


def test_scarce_demonstrations_are_a_quarter_of_the_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(results, 'OUT', str(tmp_path))
    results.prepare_demonstrations()
    data, missing = results.data_flags('hpt.py', 'scarce', 1)
    first, _ = data.split(',')
    passes = float(first.rpartition('*')[2])
    with open(results.rows_of('rest')) as f:
        n_rest = len(f.readlines())
    assert passes * 48 / (passes * 48 + n_rest) == pytest.approx(0.25, abs=1e-3) and missing == '--without_demonstration=rl'


# --- the story of a run -------------------------------------------------------
def test_a_story_has_its_columns_side_by_side(capsys, tmp_path):
    """Long completions lose their middle; where not all evaluations fit, the first and the last one stay."""
    from tools.story import columns_of, main
    printed = tmp_path / 'run.txt'
    printed.write_text("""first line
  step 0: 0 | '4 5>9' -> '4*5=20?9n', truth {"numbers": [4, 5], "target": 9}
step 5  loss 0.1
  step 20: 1 | '4 5>9' -> '4*5=20?9n\\n4+5=9?9y', truth {"numbers": [4, 5], "target": 9}
""")
    main(str(printed))
    assert capsys.readouterr().out == (
        '\n4 5>9\n'
        '  step 0: reward 0   step 20: reward 1\n'
        '  4*5=20?9n          4*5=20?9n\n'
        '                     4+5=9?9y\n')
    lines = list(columns_of([(0, '0', '\n'.join('abcdefghij'))], 100))
    assert lines == ['step 0: reward 0', 'a', 'b', 'c', 'd', '... 3 more', 'h', 'i', 'j']
    lines = list(columns_of([(step, '0', 'x') for step in (0, 10, 20, 30)], 45))
    assert lines == ['step 0: reward 0   step 30: reward 0', 'x                  x']
