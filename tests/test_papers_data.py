"""papers/ of the group `data`: their rows, what sft.py trains of them, and their measures."""
import collections
import json
import math
import os
import random
import shlex

import pytest
import torch
from conftest import ROOT, inside
from data import load_tokenizer, rl_prompts, sft_examples, show_mask, stop_ids
from embedded import is_for_testing, task_rows
from model import load_model, save_model
from paper_tools import FOLDER, PAPERS, load, papers_run
from rows import read_rows
from verify import verify

treasure_hunt, spectrum, spectrum_calibration, cpt_uda = [
    load(os.path.join(FOLDER, f'{name}.py'), name) for name in ('treasure_hunt', 'spectrum', 'spectrum_calibration', 'cpt_uda')]


def made(monkeypatch, name, path, *flags):
    """The rows that a script writes, as a list of dicts."""
    inside(monkeypatch, f'papers/{name}.py', f'--out={path}', *flags)
    return [json.loads(line) for line in open(path)]


def examples_of(path):
    """What sft.py makes of a file: (text with what is trained in [[ ]], ...) of each row, none dropped."""
    tokenizer = load_tokenizer('tiny')
    examples, report = sft_examples(read_rows(str(path))[0], tokenizer, 1024)
    assert not report['dropped'] and not report['notes']
    return [show_mask(example, tokenizer) for example in examples]


# --- Treasure Hunt --------------------------------------------------------------
def marked(row, row_dropout, marker_dropout, seed=0):
    treasure_hunt.row_dropout, treasure_hunt.marker_dropout = row_dropout, marker_dropout
    return treasure_hunt.marked(row, random.Random(seed))


def test_markers_are_in_both_turns():
    worked, guessed = [{'messages': [{'role': 'user', 'content': '3+5+2'}, {'role': 'assistant', 'content': reply}], 'difficulty': 3}
                       for reply in ('3 8 10 #### 10', '#### 7')]
    assert marked(worked, 0, 0) == {'prompt': '3+5+2 w n3', 'completion': 'w n3 3 8 10 #### 10'}
    assert marked(guessed, 0, 0) == {'prompt': '3+5+2 g n3', 'completion': 'g n3 #### 7'}
    # never left out of the reply
    assert marked(guessed, 1, 0) == marked(guessed, 0, 1) == {'prompt': '3+5+2', 'completion': 'g n3 #### 7'}
    # the verifier reads past them
    assert verify('sums', 'w n3 3 8 10 #### 10', '10') == 1 and verify('sums', 'g n3 #### 7', '10') == 0


def test_markers_of_prompts_are_left_out_by_chance():
    """None in half of the rows; in the others each of both with chance 1/2. The deviations are 1.1 and 0.8 percent of 2000 rows."""
    rows = task_rows('sums:base')[:2000]
    for marker_dropout, shares in ((0, {'': 0.5, 'wn': 0.5}), (0.5, {'': 0.625, 'w': 0.125, 'n': 0.125, 'wn': 0.125})):
        rng = random.Random(1)
        treasure_hunt.row_dropout, treasure_hunt.marker_dropout = 0.5, marker_dropout
        counts = collections.Counter()
        for row in rows:
            digits, *shown = treasure_hunt.marked(row, rng)['prompt'].split(' ')
            assert digits == row['messages'][0]['content']
            counts[''.join(marker[0].replace('g', 'w') for marker in shown)] += 1
        assert {key: n / 2000 for key, n in counts.items()} == pytest.approx(shares, abs=0.04)


def test_marked_rows_as_sft_reads_them(monkeypatch, tmp_path):
    base = [{key: row[key] for key in ('messages', 'difficulty')} for row in task_rows('sums:base')[:50]]
    (tmp_path / 'base.jsonl').write_text('\n'.join(map(json.dumps, base)))
    source = f'--data={tmp_path}/base.jsonl'
    rows = made(monkeypatch, 'treasure_hunt', tmp_path / 'a.jsonl', source, '--seed=1')
    assert rows == made(monkeypatch, 'treasure_hunt', tmp_path / 'b.jsonl', source, '--seed=1')
    assert rows != made(monkeypatch, 'treasure_hunt', tmp_path / 'c.jsonl', source, '--seed=2')
    for text, row, before in zip(examples_of(tmp_path / 'a.jsonl'), rows, base):
        quality = 'g' if before['messages'][1]['content'].startswith('####') else 'w'
        reply = f'{quality} n{before["difficulty"]} {before["messages"][1]["content"]}'
        assert text == f'<|user|>{row["prompt"]}<|end|><|assistant|>[[{reply}<|end|>]]'


def test_marked_prompts_of_a_test(monkeypatch, tmp_path):
    made(monkeypatch, 'treasure_hunt', tmp_path / 'asked.jsonl', '--data=sums:test', '--quality=w')
    prompts, _ = rl_prompts(read_rows(f'{tmp_path}/asked.jsonl')[0], load_tokenizer('tiny'), 512)
    for prompt, row in zip(prompts, task_rows('sums:test'), strict=True):
        assert prompt['text'] == f'{row["prompt"]} w n{row["difficulty"]}'
        assert (prompt['truth'], prompt['kind'], prompt['difficulty']) == (row['answer'], 'sums', row['difficulty'])


# --- Spectrum Tuning -------------------------------------------------------------
def test_every_draw_is_trained_but_the_first_one_that_nothing_describes(tmp_path):
    rows = [{'messages': spectrum.conversation(description, replies)} for description, replies in (
        ('2 5', ['5', '2', '5']), ('', ['5', '2', '5']), ('2 5', ['2']))]
    (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    start, end = '<|user|><|end|><|assistant|>', '<|end|>'
    assert examples_of(tmp_path / 'rows.jsonl') == [
        f'<|system|>2 5{end}{start}[[5{end}]]{start}[[2{end}]]{start}[[5{end}]]',
        f'{start}5{end}{start}[[2{end}]]{start}[[5{end}]]',
        f'<|system|>2 5{end}{start}[[2{end}]]']


def test_distributions_that_are_held_out():
    rng = random.Random(0)
    seen, new = [[spectrum.distribution(rng, held_out) for _ in range(300)] for held_out in (False, True)]
    assert {description for description, *_ in seen}.isdisjoint(description for description, *_ in new)
    assert all(is_for_testing(description) for description, *_ in new)
    for description, digits, chances in seen + new:
        assert description.split() == digits == sorted(set(digits)) and 2 <= len(digits) <= 5
        assert math.isclose(sum(chances), 1) and min(chances) > 0


def test_rows_of_draws(monkeypatch, tmp_path):
    """Both arms have as many draws; a fifth of the conversations has no description; draws are of the described digits alone."""
    rows = made(monkeypatch, 'spectrum', tmp_path / 'draws.jsonl', '--draws=20000')
    singles = made(monkeypatch, 'spectrum', tmp_path / 'singles.jsonl', '--draws=20000', '--turns=1', '--dropout=0')
    assert len(rows) == 1000 and len(singles) == 20000
    described = [row['messages'] for row in rows + singles if row['messages'][0]['role'] == 'system']
    # the deviation is 13
    assert 20000 + 750 < len(described) < 20000 + 850
    for system, *turns in described:
        assert {turn['content'] for turn in turns if turn['role'] == 'assistant'} <= set(system['content'].split())
    assert all(len(row['messages']) in (40, 41) for row in rows) and all(len(row['messages']) == 3 for row in singles)
    for text in examples_of(tmp_path / 'draws.jsonl')[:50]:
        assert text.count('[[') == (20 if '<|system|>' in text else 19)


def test_both_arms_see_as_many_draws_a_step():
    header = papers_run.header_of(PAPERS['spectrum'])
    flags = dict(word.lstrip('-').split('=') for word in shlex.split(header['baseline'][1]) if '=' in word)
    text = open(PAPERS['spectrum']).read()
    assert 'batch_size, max_steps = 16, 200' in text and int(flags['batch_size']) == 16 * spectrum.turns


def test_total_variation():
    """By hand: |0.5 - 0.7| + |0.25 - 0.3| + 0.25 outside, halved; 0 for equal chances, 1 for disjoint ones."""
    uniform = torch.full((4,), 0.25)
    assert spectrum_calibration.compare(uniform, [0, 1, 2, 3], [0.25] * 4) == (0, 1)
    assert spectrum_calibration.compare(torch.tensor([1.0, 0, 0]), [1, 2], [0.5, 0.5]) == (1, 0)
    assert spectrum_calibration.compare(torch.tensor([0.5, 0.25, 0.25]), [0, 1], [0.7, 0.3]) == pytest.approx((0.25, 0.75))


def test_calibration_of_a_model_that_gives_all_tokens_the_same_chance(monkeypatch, tmp_path):
    """n of 262 tokens are valid, 2 to 5: each chance above 1/262 is missed by all but that; the prompt makes no difference."""
    model, tokenizer = load_model('tiny'), load_tokenizer('tiny')
    model.get_output_embeddings().weight.data.zero_()
    save_model(model, tokenizer, str(tmp_path / 'model'), stop_ids(tokenizer), torch.float32)
    inside(monkeypatch, 'papers/spectrum_calibration.py', f'--model={tmp_path}/model', f'--out_dir={tmp_path}/out', '--seed=1')
    metrics, = [json.loads(line) for line in open(tmp_path / 'out/log.jsonl')]
    assert set(metrics) == {'step', *(f'{key}/{k}' for key in ('tv', 'valid') for k in (0, 4, 16))}
    assert {key for key in papers_run.header_of(PAPERS['spectrum'])['measure'].split(', ')} <= set(metrics)
    for k in (0, 4, 16):
        assert 2 / 262 < metrics[f'valid/{k}'] < 5 / 262
        assert metrics[f'tv/{k}'] == pytest.approx(1 - metrics[f'valid/{k}'], abs=2e-3)


# --- continued pre-training -------------------------------------------------------
def test_text_has_both_domains_and_no_turns(monkeypatch, tmp_path):
    row = {'prompt': '3+5+2', 'answer': '10', 'demonstration': '3 8 10 #### 10', 'dataset': 'sums', 'difficulty': 3}
    (tmp_path / 'rows.jsonl').write_text(json.dumps(row))
    made(monkeypatch, 'cpt_uda', tmp_path / 'text.jsonl', f'--data={tmp_path}/rows.jsonl')
    # the first token is not trained: nothing predicts it
    assert examples_of(tmp_path / 'text.jsonl') == ['3[[+5+2 3 8 10 #### 10<|end|>]]', 'd[[+f+c d i ba #### ba<|end|>]]']
    made(monkeypatch, 'cpt_uda', tmp_path / 'tests.jsonl', f'--data={tmp_path}/rows.jsonl', '--write=tests')
    monkeypatch.chdir(ROOT)  # the verifier's path is of the repository
    (prompt,), _ = rl_prompts(read_rows(f'{tmp_path}/tests.jsonl')[0], load_tokenizer('tiny'), 512)
    assert (prompt['text'], prompt['truth'], prompt['difficulty']) == ('d+f+c', '10', 3)
    for completion, reward in (('d i ba #### ba', 1), ('3 8 10 #### 10', 1), ('#### b', 0), ('d i ba', 0), ('#### ba k', 0)):
        assert verify(prompt['kind'], completion, prompt['truth']) == reward
