"""The papers about pairs and about choosing rows that are recipes: what their scripts write, by hand-worked rows."""
import json
import math
import os
import random
import subprocess

import pytest
import torch
from conftest import ROOT, inside
from data import load_tokenizer, preference_pairs, sft_examples
from paper_tools import CONFIGS, FOLDER, PAPERS, load, names_of, papers_run
from rows import read_rows
from verify import verify

NAMES = ('budget', 'drift', 'spar', 'stat', 'tulutalk', 'tulutalk_pool')
budget, drift, spar, stat, tulutalk, tulutalk_pool = (load(os.path.join(FOLDER, f'{name}.py'), f'papers_{name}') for name in NAMES)


def written(monkeypatch, tmp_path, name, rows, *flags):
    """The lines that papers/NAME.py writes for these rows."""
    (tmp_path / 'data.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    inside(monkeypatch, f'papers/{name}.py', f'--data={tmp_path}/data.jsonl', f'--out={tmp_path}/out.jsonl', *flags)
    return [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]


def trained_texts(tmp_path):
    """What dpo.py trains on of the pairs in out.jsonl: (chosen, rejected) of each."""
    tokenizer = load_tokenizer('tiny')
    pairs, _ = preference_pairs(read_rows(f'{tmp_path}/out.jsonl')[0], tokenizer, 256)
    return [tuple(tokenizer.decode(ids[mask], skip_special_tokens=True) for ids, mask, _ in pair['docs']) for pair in pairs]


def sample(prompt, completion, reward=0.0, stopped=True, dataset='sums'):
    return {'prompt': prompt, 'completion': completion, 'reward': reward, 'stopped': stopped, 'dataset': dataset}


# --- drift ----------------------------------------------------------------------
STORED = [sample('3+5', '#### 7'), sample('3+5', '3 8 #### 8', 1.0), sample('3+5', '3 9 #### 9'), sample('3+5', '#### 1', stopped=False),
          sample('1+1', '1 2 #### 2', 1.0), sample('4+4', '#### 5')]
NOW = [sample('3+5', '3 7 #### 7', stopped=False), sample('3+5', '#### 6'), sample('3+5', '3 8 #### 8', 1.0), sample('1+1', '1 2 #### 2', 1.0),
       sample('4+4', '#### 5'), sample('2+2', '2 4 #### 4', 1.0), sample('2+2', '#### 3'),
       sample('2+2', '#### 4', 1.0)]


def test_drift_keeps_the_rejected_side_and_samples_the_chosen_one(monkeypatch, tmp_path):
    """Chosen: the first sample that ended, though it is wrong. Rejected: the stored text to the letter. 4+4: twice the same; 1+1: never wrong; 2+2: not stored."""
    (tmp_path / 'stored.jsonl').write_text('\n'.join(map(json.dumps, STORED)))
    rows = written(monkeypatch, tmp_path, 'drift', NOW, f'--rejected={tmp_path}/stored.jsonl')
    assert rows == [{'prompt': '3+5', 'chosen': '#### 6', 'rejected': '3 9 #### 9'}]
    assert trained_texts(tmp_path) == [('#### 6', '3 9 #### 9')]


def test_iterated_dpo_by_majority(monkeypatch, tmp_path):
    """8 has two votes of three, 6 has one; where all agree there is no pair. No reward is looked at."""
    samples = [sample('3+5', '#### 6', 1.0), sample('3+5', '3 8 #### 8'), sample('3+5', '#### 8'), sample('1+1', '#### 3'), sample('1+1', '#### 3')]
    assert written(monkeypatch, tmp_path, 'drift', samples) == [{'prompt': '3+5', 'chosen': '3 8 #### 8', 'rejected': '#### 6'}]


def test_iterations_differ_in_the_rejected_side_alone():
    """And each starts from the model of the one before."""
    baseline, variant = papers_run.arms_of('drift', PAPERS['drift'])
    assert [command.replace(' --rejected=out/stored.jsonl', '') for command in variant.commands] == list(baseline.commands)
    assert sum('--rejected' in command for command in variant.commands) == 3
    models = ['out/sums_base', 'out/dpo1', 'out/dpo2']
    assert [command.split('--model=')[1].split()[0] for command in baseline.commands[::3]] == models
    assert [f'--model={model}' in command for model, command in zip(models, baseline.commands[2::3])] == [False, True, True]


# --- spar -----------------------------------------------------------------------
TRUTH = {'numbers': [5, 8, 9], 'target': 6}
GAVE_UP, FOUND, LIED = '9-5=4+8=12?6n', '9+8=17-5=12?6n\n9-8=1+5=6?6y', '9+5=14-8=6?6y'


def test_a_refined_pair_differs_in_its_end_alone():
    assert spar.refined(GAVE_UP, FOUND) == '9-5=4+8=12?6n\n9-8=1+5=6?6y'
    assert verify('search', spar.refined(GAVE_UP, FOUND), json.dumps(TRUTH)) == 1.0
    assert verify('search', GAVE_UP, json.dumps(TRUTH)) == 0.0


@pytest.mark.parametrize('kind, chosen', [('independent', FOUND), ('refined', f'{GAVE_UP}\n9-8=1+5=6?6y')])
def test_both_kinds_make_the_same_number_of_pairs(monkeypatch, tmp_path, kind, chosen):
    """Of a prompt with a success and a failure that calls itself one: not of a cut one, not of one that claims to be right."""
    samples = [sample('a', GAVE_UP[:-1] + 'n', stopped=False), sample('a', GAVE_UP), sample('a', FOUND, 1.0), sample('a', '9+8=17+5=22?6n'),
               sample('b', FOUND, 1.0), sample('b', LIED.replace('n', 'y')), sample('c', GAVE_UP), sample('d', FOUND, 1.0, stopped=False), sample('d', GAVE_UP)]
    assert written(monkeypatch, tmp_path, 'spar', samples, f'--chosen={kind}') == [{'prompt': 'a', 'chosen': chosen, 'rejected': GAVE_UP}]
    assert trained_texts(tmp_path) == [(chosen, GAVE_UP)]


# --- budget ---------------------------------------------------------------------
SHOWN = [{'prompt': f'{i}+1'} for i in range(10)]
COMPARED = [{'prompt': [{'role': 'user', 'content': f'{i}+1'}]} for i in range(20)]


@pytest.mark.parametrize('share, shown, first_pair', [(1, 8, None), (0.5, 4, '4+1'), (0.1, 1, '1+1'), (0, 0, '0+1')])
def test_a_division_adds_up_to_the_budget(share, shown, first_pair):
    """No prompt has both kinds of annotation, and a script without rows is not run."""
    parts = budget.divide(SHOWN, COMPARED, 8, share)
    assert len(parts.get('sft', [])) == shown and len(parts.get('dpo', [])) == 8 - shown
    assert all(parts.values())
    if first_pair:
        assert parts['dpo'][0]['prompt'][0]['content'] == first_pair
    asked = [row['prompt'] for row in parts.get('sft', [])] + [row['prompt'][0]['content'] for row in parts.get('dpo', [])]
    assert len(set(asked)) == 8


def test_the_stages_of_a_division(monkeypatch, tmp_path):
    """dpo.py starts from the model of sft.py; of pairs alone, from the start model. The last log counts."""
    (tmp_path / 'out').mkdir()
    (tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, COMPARED)))
    (tmp_path / 'shown.jsonl').write_text('\n'.join(map(json.dumps, SHOWN)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(budget, 'pairs', 'pairs.jsonl')
    monkeypatch.setattr(budget, 'demonstrations', 'shown.jsonl')
    monkeypatch.setattr(budget, 'out_dir', 'out/run')
    done = []

    def run(command, check):
        python, script, *files, model, out_dir, seed = command
        folder = out_dir.removeprefix('--out_dir=')
        os.makedirs(folder)
        rows = list(read_rows('out/budget.jsonl')[0])
        with open(f'{folder}/log.jsonl', 'w') as f:
            f.write(f'{{"step": 1, "loss": 0.0}}\n{{"step": 1, "eval/pass@1": {len(rows) / 100}}}\n')
        done.append((script, model, len(rows)))
    monkeypatch.setattr(subprocess, 'run', run)
    assert budget.score(8, 0.5) == 0.04
    assert budget.score(8, 0.25) == 0.06
    assert budget.score(8, 0.0) == 0.08
    assert done == [('sft.py', '--model=out/sums_base', 4), ('dpo.py', '--model=out/run/sft_8_0.5', 4), ('sft.py', '--model=out/sums_base', 2),
                    ('dpo.py', '--model=out/run/sft_8_0.25', 6), ('dpo.py', '--model=out/sums_base', 8)]


def test_what_is_measured_is_what_the_script_writes():
    measures = papers_run.header_of(PAPERS['budget'])['measure'].split(', ')
    assert measures == [f'{b}/{s}' for b in budget.budgets.split() for s in budget.shares.split()]


# --- delta learning ---------------------------------------------------------------
def test_the_last_arm_is_sft_on_the_chosen_side(tmp_path):
    """Its gradient by the chosen side's log-prob is -1 / tokens, by the rejected side's 0; DPO's are -beta/2 / tokens and its opposite."""
    arms = papers_run.header_of(PAPERS['delta_learning'])['arms'].split('; ')
    (tmp_path / 'pairs.jsonl').write_text(json.dumps({'prompt': '3+5', 'chosen': '3 8 #### 8', 'rejected': '#### 8'}))
    config = os.path.join(ROOT, 'config/papers/delta_learning.py')
    for i, (arm, gradient) in enumerate([(arms[0], (-2.5, 2.5)), (arms[-1], (-1, 0))]):
        ns = names_of(os.path.join(ROOT, 'dpo.py'), config, '--model=tiny', f'--data={tmp_path}/pairs.jsonl', '--eval_data=', '--eval_prompts=',
                      f'--out_dir={tmp_path}/{i}', *arm.split())
        logprobs = torch.tensor([[-20.0, -9.0]], dtype=torch.float64, requires_grad=True)
        pair = {**ns['pairs'][0], 'ref_logprobs': [-20.0, -9.0]}
        ns['preference_loss'](logprobs, [pair])[0].sum().backward()
        tokens = [mask.sum() for _, mask, _ in pair['docs']]
        assert (logprobs.grad[0] * torch.tensor(tokens)).tolist() == pytest.approx(gradient, abs=1e-5)


# --- stat -----------------------------------------------------------------------
def test_missing_skills():
    """8+5+2 as 8 12 14 misses 8+5, though 12+2 is right; a guess and a right sum miss nothing; the tens are part of a total."""
    assert stat.skills_of('8+5+2') == [((8, 5), 13), ((3, 2), 15)]
    for completion, facts in (('8 12 14 #### 14', [(8, 5)]), ('8 13 14 #### 14', [(3, 2)]), ('8 13 15 #### 15', []), ('#### 15', []),
                              ('8 3 5 #### 5', [(8, 5)]), ('8 13', []), ('8 13 15 1 #### 1', [])):
        assert stat.missing(sample('8+5+2', completion)) == facts, completion


def test_rows_are_drawn_in_proportion(monkeypatch, tmp_path):
    """Three samples of the four that miss something miss 8+5, one misses 1+1. A row with both is drawn for either."""
    samples = [sample('8+5', '8 12 #### 12')] * 3 + [sample('1+1', '1 3 #### 3'), sample('2+2', '2 4 #### 4')]
    pool = [{'prompt': prompt, 'completion': 'x'} for prompt in ('8+5+1', '2+2', '1+1', '8+5+8+1', '3+8')]
    (tmp_path / 'pool.jsonl').write_text('\n'.join(map(json.dumps, pool)))
    prompts = [row['prompt'] for row in written(monkeypatch, tmp_path, 'stat', samples, f'--pool={tmp_path}/pool.jsonl', '--n_rows=400')]
    assert len(prompts) == 400 and set(prompts) == {'8+5+1', '1+1', '8+5+8+1'}
    # 300 of 400 are for 8+5, 100 for 1+1, each half and half; 8+5+8+1 has both, as 21 ends in 1
    assert prompts.count('1+1') == pytest.approx(50, abs=25)
    assert prompts.count('8+5+1') == pytest.approx(150, abs=40)
    assert prompts.count('8+5+8+1') == pytest.approx(200, abs=40)
    both = [{'prompt': '8+5+8'}]
    assert stat.rows_with([(8, 5), (3, 8), (8, 5)], both, random.Random(0)) == both * 3
    examples, _ = sft_examples(read_rows(f'{tmp_path}/out.jsonl')[0], load_tokenizer('tiny'), 64)
    assert len(examples) == 400


# --- tulutalk -------------------------------------------------------------------
def label(category, quality, reward, multi=False):
    return {'prompt': f'{category} {quality} {reward}', 'completion': 'x', 'category': category, 'quality': quality, 'reward': reward, 'multi': multi}


# single turns: excellent rewards 1 to 5 (quartiles 2, 3, 4), good ones 0, 4, 6, 8 (third quartile 6.5)
TWELVE = [label('math', 'excellent', 4), label('math', 'excellent', 5), label('chat', 'excellent', 3), label('chat', 'excellent', 2),
          label('chat', 'excellent', 1), label('chat', 'good', 8), label('chat', 'good', 6), label('math', 'good', 4), label('math', 'good', 0),
          label('math', 'excellent', 5, True), label('math', 'excellent', 4, True), label('chat', 'good', 5, True)]


def test_the_four_steps_of_tulutalk():
    """Above the median 3: 4 and 5; of several turns 5. chat falls from half of the rows to none and gets back what is second best."""
    passed, back = tulutalk.choose(TWELVE, 0.05)
    assert passed == [TWELVE[0], TWELVE[1], TWELVE[9]]
    assert back == [TWELVE[2], TWELVE[3], TWELVE[5], TWELVE[11]]
    # a share that fell by exactly tau did not fall by more
    assert tulutalk.choose(TWELVE, 0.5)[1] == []


def test_a_category_that_lost_nothing_gets_nothing_back():
    rows = [label(category, 'excellent', reward) for category in 'ab' for reward in (1, 2, 3, 4)]
    passed, back = tulutalk.choose(rows, 0.05)
    assert [row['reward'] for row in passed] == [3, 4, 3, 4] and back == []


def test_equal_numbers_of_rows_with_and_without_the_fallback(monkeypatch, tmp_path):
    found = {}
    for fallback in (True, False):
        rows = written(monkeypatch, tmp_path, 'tulutalk', TWELVE, f'--fallback={fallback}')
        found[fallback] = [row['category'] for row in rows]
    assert found[False] == ['math'] * 3 and len(found[True]) == 3 and 'chat' in found[True]
    assert len(sft_examples(read_rows(f'{tmp_path}/out.jsonl')[0], load_tokenizer('tiny'), 64)[0]) == 3


def test_a_corrupted_reply_goes_on_from_one_wrong_total():
    for seed in range(50):
        totals, _, answer = tulutalk_pool.corrupted('3+5+2+9', random.Random(seed)).partition(' #### ')
        totals = [int(total) for total in totals.split()]
        off = [total - right for total, right in zip(totals, (3, 8, 10, 19))]
        assert off[0] == 0 and len({*off} - {0}) == 1 and off == sorted(off) and 1 <= off[-1] <= 9
        assert int(answer) == totals[-1]


def test_pool_is_labelled(monkeypatch, tmp_path):
    """Rewards are means over tokens: of a model without training about -log of the vocabulary, whatever the length. Half of the replies are wrong."""
    flags = ['--model=tiny', '--n_rows=90', '--corrupt=0.5']
    inside(monkeypatch, 'papers/tulutalk_pool.py', f'--out={tmp_path}/pool.jsonl', *flags)
    rows = list(read_rows(f'{tmp_path}/pool.jsonl')[0])
    assert [row['category'] for row in rows] == list(range(2, 11)) * 10
    size = len(load_tokenizer('tiny').get_vocab())
    assert all(row['reward'] == pytest.approx(-math.log(size), abs=1.0) for row in rows)
    wrong = [verify('sums', row['completion'], str(sum(map(int, row['prompt'].split('+'))))) == 0 for row in rows]
    assert 30 <= sum(wrong) <= 60
    # the row is trained on as it was scored: its label columns are no text
    assert len(sft_examples(rows, load_tokenizer('tiny'), 64)[0]) == 90


def test_each_has_its_config():
    assert {'budget', 'delta_learning', 'drift', 'spar', 'stat', 'tulutalk'} <= set(CONFIGS)
