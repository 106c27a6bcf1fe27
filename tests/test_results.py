"""tools/results.py and report.py: statistics by hand-worked numbers, regimes, what is chosen and counted, the tables; tools/story.py."""
import json
import types

import pytest

from tools import report, results
from tools.report import differences_of, holm, paired_difference, student_p
from tools.results import SEARCH, Run, Summary
from tools.story import columns_of, main
from verify import verify


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
    """0.01 x 4, 0.02 x 3, 0.025 x 2 (which stays at the 0.06 before it), 0.5 x 1; in the order that they came in."""
    assert holm([0.025, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9]) and holm([]) == []


# --- counts -------------------------------------------------------------------
def test_flops_by_hand():
    """1e9 parameters: (2 x 100 + 6 x 50) x 1e9, then as much again: 1 TFLOP, after 1 of another stage; sft.py's tokens are all trained."""
    log = [{'step': 0, 'tokens': 0, 'eval/pass@1': 0.1},
           {'step': 1, 'tokens': 150, 'tokens/sampled': 100, 'tokens/trained': 50},
           {'step': 2, 'tokens': 300, 'tokens/sampled': 100, 'tokens/trained': 50},
           {'step': 2, 'tokens': 300, 'eval/pass@1': 0.5}]
    points, tflop = results.points_of(log, 1e9, 1.0)
    assert points == [(1.0, 0, 0.1), (pytest.approx(2), 2, 0.5)] and tflop == pytest.approx(2)
    points, tflop = results.points_of([{'step': 4, 'tokens': 100, 'eval/pass@1': 0.3}], 1e9, 0.0)
    assert points == [(pytest.approx(0.6), 4, 0.3)]


def test_choices_are_the_best_rate_and_step():
    """Over rates and steps together; of equals the earliest step; an SFT stage before does not count, nor step 0."""
    records = {}
    _, best_rate, _ = SEARCH.methods['SFT then GRPO'].learning_rates
    for run in results.tuning_runs(SEARCH, 'SFT then GRPO'):
        points = [[0.1, 120, 0.9], [0.2, 200, 0.9], [0.2, 0, 0.9], [0.3, 10, 0.2], [0.4, 20, 0.2]]
        if run.learning_rate == best_rate:
            points[3:] = [[0.3, 5, 0.2], [0.3, 10, 0.4], [0.4, 15, 0.4], [0.5, 20, 0.3]]
        records[run.name] = {'name': run.name, 'points': points}
    summary = types.SimpleNamespace(records=records)
    choices = results.choose(SEARCH, summary, ['SFT then GRPO'])
    assert choices == {(regime, 'SFT then GRPO'): (best_rate, 10) for regime in SEARCH.regimes}
    # without problems to tune on there is one learning rate, and the last step
    only = results.REAL.methods['GRPO']
    (only_rate,) = only.learning_rates
    assert results.choose(results.REAL, summary, ['GRPO']) == {('none', 'GRPO'): (only_rate, only.steps)}


def test_a_finished_run_is_not_made_again(tmp_path, monkeypatch):
    path = tmp_path / 'curves.jsonl'
    run = Run('plenty', 'SFT', 1e-3, 540, 1)
    path.write_text(json.dumps({'name': run.name, 'pass@1': 0.5}) + '\n')
    summary = Summary(str(path))
    monkeypatch.setattr(results, 'train', lambda *_: pytest.fail('it runs again'))
    results.execute(SEARCH, run, summary, {}, 10)
    summary.keep({'name': 'another', 'pass@1': 0.25})
    assert set(Summary(str(path)).records) == {run.name, 'another'}


def test_a_finished_run_keeps_its_model_and_no_checkpoint(tmp_path):
    """Twenty checkpoints of a real model fill a disk."""
    (tmp_path / 'log.jsonl').write_text(json.dumps({'step': 10, 'eval/pass@1': 0.1}) + '\n')
    (tmp_path / 'model.safetensors').touch()
    (tmp_path / 'state').mkdir()
    log = results.train(SEARCH, 'grpo.py', 'start', str(tmp_path), 10, 5, 1e-3, 1, [])
    assert log == [{'step': 10, 'eval/pass@1': 0.1}]
    assert {path.name for path in tmp_path.iterdir()} == {'log.jsonl', 'model.safetensors'}


def test_a_run_that_was_stopped_is_not_done(tmp_path):
    """It is done when it has evaluated its last step: a script that Ctrl-C stops ends without an error."""
    for lines, done in ((None, False), ([{'step': 7}], False), ([{'step': 5, 'eval/pass@1': 0.1}, {'step': 10}], False),
                        ([{'step': 10}, {'step': 10, 'eval/pass@1': 0.1}], True)):
        if lines is not None:
            (tmp_path / 'log.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
        assert results.is_done(str(tmp_path), 10) == done


def test_a_line_that_was_cut_is_a_run_to_make_again(tmp_path):
    path = tmp_path / 'curves.jsonl'
    path.write_text('{"name": "a"}\n{"name": "b", "pass')
    assert set(Summary(str(path)).records) == {'a'}


def test_another_start_model_is_refused(tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(b'weights')
    task = types.SimpleNamespace(base=str(tmp_path), make_base=['none'], out=str(tmp_path))
    path = tmp_path / 'curves.jsonl'
    results.prepare_start_model(task, Summary(str(path)))
    results.prepare_start_model(task, Summary(str(path)))
    (tmp_path / 'model.safetensors').write_bytes(b'others')
    with pytest.raises(SystemExit, match='another'):
        results.prepare_start_model(task, Summary(str(path)))


def test_the_models_own_check_chooses_a_completion():
    """The first that claims y; the first of all where none does."""
    made = [{'completion': text, 'reward': reward} for text, reward in (('1+1=2?3n', 0.1), ('1+2=3?3y\n', 1.0), ('1*3=3?3y', 0.5))]
    assert results.reward_by_own_verdict(made) == 1.0 and results.reward_by_own_verdict(made[:1]) == 0.1


def test_what_sample_prints_is_read():
    printed = ('     level 2     62 prompts  pass@1 0.387 +- 0.033  pass@2 0.616  maj@4 0.403  tokens 23.2  truncated 0.000\n'
               '         all    300 prompts  pass@1 0.133 +- 0.012  pass@2 0.226  maj@4 0.150  tokens 37.9  truncated 0.014\n'
               '1,200 samples of 300 prompts: out/before.jsonl\n')
    assert results.report_of_all(printed, 'maj@4') == '0.150' and results.report_of_all(printed, 'tokens') == '37.9'


# --- regimes ------------------------------------------------------------------
@pytest.fixture
def task(tmp_path):
    return type('Here', (results.Task,), {'out': str(tmp_path)})(**vars(SEARCH))


def read_rows(task, name):
    with open(task.rows_of(name)) as f:
        return [json.loads(line) for line in f]


def test_regimes(task):
    """The same prompts in all; 48 demonstrations in scarce; a third of noisy is wrong, half of those claim to be right."""
    results.prepare_demonstrations(task)
    rows = {name: read_rows(task, name) for name in ('plenty', 'scarce', 'rest', 'noisy')}
    prompts = [row['prompt'] for row in rows['plenty']]
    assert len(prompts) == 6000 and len(set(prompts)) > 3000
    assert [row['prompt'] for row in rows['scarce'] + rows['rest']] == prompts == [row['prompt'] for row in rows['noisy']]
    assert len(rows['scarce']) == 48 and not any('demonstration' in row for row in rows['rest'])
    assert [sum(row['difficulty'] == n for row in rows['scarce']) for n in (2, 3, 4)] == [16, 16, 16]
    assert all(verify('search', row['demonstration'], row['answer']) == 1 for row in rows['plenty'])
    wrong = [row for row in rows['noisy'] if verify('search', row['demonstration'], row['answer']) == 0]
    claimed = [row for row in wrong if row['demonstration'].endswith('y')]
    assert len(wrong) == 2000 and len(claimed) == 1000


def test_scarce_demonstrations_are_a_quarter_of_the_prompts(task):
    results.prepare_demonstrations(task)
    data, missing = results.data_flags(task, 'hpt.py', 'scarce', 1)
    first, _ = data.split(',')
    passes = float(first.rpartition('*')[2])
    assert passes * 48 / (passes * 48 + len(read_rows(task, 'rest'))) == pytest.approx(0.25, abs=1e-3)
    assert missing == '--without_demonstration=rl'


# --- tables -------------------------------------------------------------------
def finished(method, regime, seed, score):
    scores = {key: score for key in ('pass@1/2', 'pass@1/3', 'pass@1/4', 'pass@16', 'greedy', 'other skill')}
    return {'method': method, 'regime': regime, 'seed': seed, 'learning_rate': 1e-3, 'steps': 10, 'tflop': 5.0, 'tokens': 80,
            'pass@1': score, 'points': [[0.0, 0, 0.1], [5.0, 10, score]], **scores}


def test_differences_of_methods_by_hand():
    """A over B: 0.1, 0.2, 0.3, mean 0.2, error 0.1 / sqrt 3; only seeds that both have; the better one first."""
    runs_of = {'B': [finished('B', 'plenty', seed, 0.3) for seed in (1, 2, 3, 4)],
               'A': [finished('A', 'plenty', seed, score) for seed, score in ((1, 0.4), (2, 0.5), (3, 0.6))]}
    (first, second, found, p), = differences_of(runs_of)
    assert (first, second, found.mean, found.error) == ('A', 'B', pytest.approx(0.2), pytest.approx(0.1 / 3 ** 0.5))
    assert p == found.p == pytest.approx(1 - 12 ** 0.5 / 14 ** 0.5)


def test_a_regimes_table_has_what_needs_no_demonstrations():
    """GRPO's runs stand in the tables of all regimes, SFT's in that of their own; tuning runs in none."""
    made = [finished('GRPO', 'none', 1, 0.4), finished('GRPO', 'none', 2, 0.6), finished('SFT', 'plenty', 1, 0.7),
            finished('SFT', 'scarce', 1, 0.2), finished('SFT', 'plenty', 0, 0.9)]
    runs = [Run(record['regime'], record['method'], 1e-3, 10, record['seed']) for record in made[:4]]
    records = {Run(record['regime'], record['method'], 1e-3, 10, record['seed']).name: record for record in made}
    former = Run('plenty', 'SFT', 1e-4, 10, 1)  # a record of settings that are no longer chosen
    records[former.name] = finished('SFT', 'plenty', 1, 0.1)
    runs_of = report.by_method(SEARCH, records, runs, 'plenty')
    assert {name: [run['pass@1'] for run in runs] for name, runs in runs_of.items()} == {'GRPO': [0.4, 0.6], 'SFT': [0.7]}
    lines = report.method_table(SEARCH, runs_of)
    assert lines[2].startswith('| GRPO | 0.001 | 10 | 5.0 | 0.500 ± 0.141 |') and lines[2].endswith('| 80 | 2 |')
    overview = report.overview_table(SEARCH, records, runs)
    assert '| GRPO | 0.500 ± 0.141 | 0.500 ± 0.141 | 0.500 ± 0.141 |' in overview and '| SFT | 0.700 | 0.200 |  |' in overview
    assert report.mean_curve(runs_of['GRPO'], 0.1) == ([0.0, 5.0], [0.1, pytest.approx(0.5)], [0.0, pytest.approx(0.02 ** 0.5)])


# --- the story of a run -------------------------------------------------------
def test_a_story_has_its_columns_side_by_side(capsys, tmp_path):
    """Long completions lose their middle; where not all evaluations fit, the first and the last one stay."""
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
