"""papers/, the group `eliciting`: what the rows say, what the rules do to the logits, what the measuring scripts count."""
import json
import math
import os
import subprocess
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, inside, read_log
from paper_tools import FOLDER, PAPERS, TINY, TWO_STEPS, load, modules_of, run_inside, trained

from data import byte_tokenizer, show_mask, sft_examples
from rows import read_rows

eliciting_rows, non_instructional, pass_at_1, secret_findings, secret_recipe, superficial_alignment = [
    load(os.path.join(FOLDER, f'{name}.py'), name) for name in (
        'eliciting_rows', 'non_instructional', 'pass_at_1', 'secret_findings', 'secret_recipe', 'superficial_alignment')]
SUMS = [{'prompt': '1+2', 'demonstration': '1 3 #### 3', 'difficulty': 2}, {'prompt': '1+2+3', 'demonstration': '1 3 6 #### 6', 'difficulty': 3},
        {'prompt': '4+4', 'demonstration': '4 8 #### 8', 'difficulty': '2'}]


def write(path, rows):
    path.write_text('\n'.join(map(json.dumps, rows)))
    return str(path)


# --- rows ---------------------------------------------------------------------
def test_response_rows_hold_no_prompt_and_train_the_same():
    """The trained tokens are those of the instruction rows; before them is the same empty turn in every row."""
    tokenizer = byte_tokenizer()
    both = [sft_examples([{'messages': messages, '_where': 'x'} for messages in eliciting_rows.messages_of(SUMS, kind)], tokenizer, 100)[0]
            for kind in ('instruction', 'response')]
    for instruction, response, row in zip(*both, SUMS):
        trained_ids = [example['ids'][example['mask']].tolist() for example in (instruction, response)]
        assert trained_ids[0] == trained_ids[1]
        assert tokenizer.decode(trained_ids[0], skip_special_tokens=True) == row['demonstration']
        assert row['prompt'] in tokenizer.decode(instruction['ids'].tolist())
    before = {tuple(example['ids'][~example['mask']].tolist()) for example in both[1]}
    assert len(before) == 1 and not any(character.isdigit() for character in tokenizer.decode(list(*before)))


def test_rows_of_a_conversation_keep_their_turns():
    messages = [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'},
                {'role': 'user', 'content': 'c'}, {'role': 'assistant', 'content': 'd'}]
    found, = eliciting_rows.messages_of([{'messages': messages}], 'response')
    assert [(message['role'], message['content']) for message in found] == [
        ('system', 's'), ('user', ''), ('assistant', 'b'), ('user', ''), ('assistant', 'd')]


def test_single_task_rows_are_of_one_level_and_all_kinds_are_as_many(monkeypatch):
    assert [messages[0]['content'] for messages in eliciting_rows.messages_of(SUMS, 'single-task')] == ['1+2', '4+4']
    monkeypatch.setattr(eliciting_rows, 'n_rows', 1)
    assert [len(eliciting_rows.messages_of(SUMS, kind)) for kind in ('instruction', 'response', 'single-task')] == [1, 1, 1]


@pytest.mark.parametrize('name, kind', [('response_only', 'response'), ('single_task', 'single-task')])
def test_rows_are_trained(tmp_path, monkeypatch, capsys, name, kind):
    """Written by the script, read by sft.py with the paper's config."""
    inside(monkeypatch, 'papers/eliciting_rows.py', f'--rows={kind}', '--n_rows=50', f'--out={tmp_path}/rows.jsonl')
    assert len(read_rows(f'{tmp_path}/rows.jsonl')[0]) == 50
    inside(monkeypatch, 'sft.py', os.path.join(ROOT, 'config/papers/sums.py'), PAPERS[name], *TINY['sft'], *TWO_STEPS, '--model=tiny',
           f'--data={tmp_path}/rows.jsonl', f'--out_dir={tmp_path}/out')
    trained(tmp_path / 'out')
    with open(tmp_path / 'out/run.json') as f:
        assert json.load(f)['eval_every'] == 10


# --- rule adapter ---------------------------------------------------------------
def sampled_greedily(module, logits, n, seen=(), rules=None):
    """(id, log-prob) of the token that follows n others, under rules for eight tokens, of which 0 is the end."""
    state = module.new_state([[3]], 1, 0.0, [0], torch.zeros(2, 300), SimpleNamespace(slots=1))
    state.rules = {'eos': 15, 'repeat': -1.5, 'tokens': torch.zeros(8), **(rules or {})}
    state.seen = torch.zeros(2, 8, dtype=torch.bool)
    state.seen[0, list(seen)] = True
    state.alive[:] = True
    state.sampled[:] = n
    module.sample_and_record(state, torch.tensor([logits]), slice(0, 1))
    assert state.seen[0].nonzero()[:, 0].tolist() == sorted({*seen, state.out_ids[0, n].item()})
    return state.out_ids[0, n].item(), state.out_logprobs[0, n].item()


def check_rule_adapter(module):
    """The end has +7.5 at 125 tokens, 14.94 at 249 and nothing from 250 on; a token that is there has -1.5, and a bias adds to its logit."""
    flat = [0.0] * 8
    for n, bonus in ((125, 7.5), (249, 14.94)):
        assert sampled_greedily(module, flat, n) == (0, pytest.approx(bonus - math.log(math.exp(bonus) + 7), abs=1e-5))
    for n in (0, 250, 299):
        assert sampled_greedily(module, flat, n) == (0, pytest.approx(-math.log(8)))
    # five tokens that were there weigh exp(-1.5) each, however often they were
    assert sampled_greedily(module, [0.0, 1.0] + [0.0] * 6, 0, seen=(1, 2, 3, 4, 5)) == (0, pytest.approx(
        -math.log(3 + math.exp(-0.5) + 4 * math.exp(-1.5))))
    biases = {'tokens': torch.tensor([0.0, -4.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])}
    assert sampled_greedily(module, [0.0, 4.5] + [0.0] * 6, 0, rules=biases) == (2, pytest.approx(1 - math.log(6 + math.exp(0.5) + math.exp(1))))


def test_diff_does_what_its_paper_says(patched):
    """With hand-worked numbers, which the code as it is does not give."""
    with modules_of(patched('rule_adapter')):
        check_rule_adapter(load(patched('rule_adapter') / 'rollout.py', 'rollout_with_rules'))
    with pytest.raises(AssertionError):
        check_rule_adapter(load(os.path.join(ROOT, 'rollout.py'), 'rollout_as_it_is'))


def test_no_token_of_prompt_or_completion_is_repeated(patched):
    """Under a large penalty, in each of several requests that share slots; without it there are repetitions."""
    with modules_of(patched('rule_adapter')):
        from decoder import KVCache
        from model import load_model
        from rollout import generate
        lm = load_model('tiny', 'cpu')
        prompts = [[5, 6, 7, 8], [9, 10]]
        # three slots for eight requests
        gb = 3.5e-9 * 34 * KVCache.token_bytes(lm.config, torch.float32)
        for repeat, distinct in ((-1e4, True), (0.0, False)):
            rules = {'eos': -1e4, 'repeat': repeat, 'tokens': torch.zeros(lm.config.vocab_size)}
            rules['tokens'][50:] = -1e6
            groups = generate(lm, prompts, 4, 30, 1.0, [49], [1, 2], gb, rules=rules)
            for prompt, group in zip(prompts, groups):
                for completion in group:
                    ids = prompt + completion['ids']
                    assert max(ids) < 50 and (len(set(ids)) == len(ids)) == distinct


def test_rules_of_sample(patched, tmp_path):
    """Without rules the old bits; with a bias on '#' that token alone; a token that the tokenizer lacks is an error."""
    flags = ['--model=tiny', '--data=sums:test', '--limit=3', '--n=2', '--max_new_tokens=8', '--show=0']
    path = str(patched('rule_adapter') / 'sample.py')
    run_inside(os.path.join(ROOT, 'sample.py'), *flags, f'--out={tmp_path}/0.jsonl')
    run_inside(path, *flags, '--rules=', f'--out={tmp_path}/1.jsonl')
    assert (tmp_path / '0.jsonl').read_bytes() == (tmp_path / '1.jsonl').read_bytes()
    (tmp_path / 'rules.json').write_text('{"eos": 0, "repeat": 0, "tokens": {"#": 100}}')
    run_inside(path, *flags, f'--rules={tmp_path}/rules.json', f'--out={tmp_path}/2.jsonl')
    assert {row['completion'] for row in read_rows(f'{tmp_path}/2.jsonl')[0]} == {'#' * 8}
    # (the tree's UserError is another class than the one here)
    with pytest.raises(Exception, match="rule_adapter.json: tiny has no token '▁<'"):
        run_inside(path, *flags, f'--rules={FOLDER}/rule_adapter.json', f'--out={tmp_path}/3.jsonl')


def test_rules_of_the_paper():
    """15 tokens; the end's bonus is 15 at its highest."""
    with open(os.path.join(FOLDER, 'rule_adapter.json')) as f:
        rules = json.load(f)
    assert (rules['eos'], rules['repeat']) == (15, -1.5)
    assert len(rules['tokens']) == 15
    with open(os.path.join(FOLDER, 'one_rule.json')) as f:
        assert json.load(f) == {'eos': 0, 'repeat': 0, 'tokens': {'#': -4}}


# --- what the scripts measure ---------------------------------------------------
def test_pass_at_1_of_samples(tmp_path, monkeypatch):
    """Two samples of level 2, two of level 10, one without a level; level 10 stands behind 2."""
    samples = [{'reward': reward, 'difficulty': level, 'stopped': stopped, 'tokens': tokens} for reward, level, stopped, tokens in (
        (1.0, 10, True, 3), (0.0, 2, True, 5), (0.5, 2, False, 8), (1.0, 10, True, 4), (0.0, None, True, 5))]
    inside(monkeypatch, 'papers/pass_at_1.py', f'--data={write(tmp_path / "samples.jsonl", samples)}', f'--out_dir={tmp_path}/out/run', '--seed=3')
    record, = read_log(tmp_path / 'out/run')
    assert record == pytest.approx({'step': 0, 'eval/pass@1': 0.5, 'eval/pass@1/2': 0.25, 'eval/pass@1/10': 1.0, 'eval/stopped': 0.8, 'eval/tokens': 5.0})
    assert list(record)[2:4] == ['eval/pass@1/2', 'eval/pass@1/10']


def test_pass_at_1_reads_what_sample_writes(tmp_path, monkeypatch):
    inside(monkeypatch, 'sample.py', '--model=tiny', '--data=sums:test', '--limit=3', '--n=2', '--max_new_tokens=8', f'--out={tmp_path}/s.jsonl')
    inside(monkeypatch, 'papers/pass_at_1.py', f'--data={tmp_path}/s.jsonl', f'--out_dir={tmp_path}/out')
    record, = read_log(tmp_path / 'out')
    assert {'eval/pass@1/2', 'eval/pass@1/3', 'eval/pass@1/4'} <= set(record)


def test_kinds_of_errors():
    kinds = {'3 8 9 #### 9': 'right', '3 8 10 #### 10': 'arithmetic', '3 8 9 ####': 'arithmetic', '#### 10': 'format', ' #### 4': 'format', '3 8 9': 'format', '': 'format'}
    assert {reply: superficial_alignment.kind_of(reply, float(reply == '3 8 9 #### 9')) for reply in kinds} == kinds
    # a right guess is right
    assert superficial_alignment.kind_of('#### 9', 1.0) == 'right'


def test_power_law():
    """y = 3 / sqrt(x) has the slope -1/2; through (1, 1), (e, 1), (e^2, e) goes a line of slope 1/2 and r2 3/4."""
    x = [16, 64, 256, 1024]
    assert superficial_alignment.power_law(x, [3 / math.sqrt(value) for value in x]) == pytest.approx((-0.5, 1))
    assert superficial_alignment.power_law([1, math.e, math.e ** 2], [1, 1, math.e]) == pytest.approx((0.5, 0.75))


def test_superficial_alignment_from_samples_to_log(tmp_path, monkeypatch):
    """Half and a quarter of four replies have wrong numbers at 1 and 4 rows: slope -1/2; one reply has no work."""
    right, wrong, guess = [{'completion': reply, 'reward': reward} for reply, reward in (('1 3 #### 3', 1), ('1 4 #### 4', 0), ('#### 4', 0))]
    write(tmp_path / 'test_1.jsonl', [right, wrong, wrong, guess])
    write(tmp_path / 'test_4.jsonl', [right, right, wrong, right])
    inside(monkeypatch, 'papers/superficial_alignment.py', '--sizes=1 4', f'--data={tmp_path}/test_SIZE.jsonl', f'--out_dir={tmp_path}/out')
    record, = read_log(tmp_path / 'out')
    assert record == pytest.approx({'step': 0, 'format@1': 0.25, 'arithmetic@1': 0.5, 'format@4': 0, 'arithmetic@4': 0.25, 'slope': -0.5, 'r2': 1})


def made_log(folder, score, loss, norm, n=20):
    """Twenty steps, of which 2 to 4, counted from 0, have this mean loss and gradient norm."""
    folder.mkdir(parents=True)
    steps = [{'step': i + 1, 'loss': loss + i - 3 if 2 <= i <= 4 else 99, 'grad_norm': norm if 2 <= i <= 4 else -99} for i in range(n)]
    write(folder / 'log.jsonl', [*steps, {'step': n, 'eval/pass@1': score}])


@pytest.mark.parametrize('sign', [1, -1])
def test_findings_of_made_logs(tmp_path, monkeypatch, capsys, sign):
    """Losses rank as the scores do, norms the other way round, or both reversed; the best of 256 is 0.2 above the best of 16."""
    for name, score in {'16_3e-5': 0.1, '16_1e-4': 0.3, '64_3e-5': 0.2, '64_1e-4': 0.45, '256_1e-4': 0.5, '256_3e-5': 0.4}.items():
        made_log(tmp_path / name, score, loss=sign * score ** 3, norm=-sign * math.exp(score))
    for name, score in (('warmup', 0.5), ('cosine', 0.46), ('phased', 0.25), ('easy', 0.1)):
        made_log(tmp_path / name, score, 1.0, 1.0)
    assert secret_findings.summary(f'{tmp_path}/256_1e-4/log.jsonl') == pytest.approx((0.5, sign * 0.125, -sign * math.exp(0.5)))
    inside(monkeypatch, 'papers/secret_findings.py', f'--runs={tmp_path}', f'--out_dir={tmp_path}/out')
    record, = read_log(tmp_path / 'out')
    assert record == pytest.approx({'step': 0, 'large_batch': 0.2, 'rho_loss': sign, 'rho_grad_norm': -sign, 'no_warmup': -0.05, 'constant': -0.01, 'stacked': 0.2})
    # without a warm-up it is 0.05 worse
    assert f'(i) True (ii) {sign == 1} (iii) False (iv) True' in capsys.readouterr().out


def test_secret_recipe_runs_have_equal_samples(tmp_path, monkeypatch):
    """Nine runs of the sweep, two others, and three phases of 3/9, 4/9 and 2/9 of them, as many as their levels, each going on from the one before."""
    commands = []
    monkeypatch.setattr(subprocess, 'run', lambda command, check: commands.append(command))
    inside(monkeypatch, 'papers/secret_recipe.py', f'--runs={tmp_path}', '--seed=5')
    runs = [{word[2:].partition('=')[0]: word.partition('=')[2] for word in command[3:]} for command in commands]
    assert len(runs) == 14 and all(command[1:3] == ['sft.py', 'config/papers/secret_recipe.py'] for command in commands)
    assert {run['seed'] for run in runs} == {'5'}
    assert all(int(run['batch_size']) * int(run['max_steps']) == 3840 for run in runs[:11])
    assert len({(run['batch_size'], run['learning_rate']) for run in runs[:9]}) == 9
    changed = [run for run in runs[:9] if run['out_dir'] == f'{tmp_path}/64_1e-4']
    for run in runs[9:]:
        assert [run[key] for key in ('batch_size', 'learning_rate')] == [changed[0][key] for key in ('batch_size', 'learning_rate')]
    phases = runs[11:]
    assert [int(run['max_steps']) for run in phases] == [20, 27, 13]
    assert [run['model'] for run in phases] == ['out/sums_base', f'{tmp_path}/easy', f'{tmp_path}/middle']
    levels = [{row['difficulty'] for row in read_rows(run['data'])[0]} for run in phases]
    assert levels == [{2, 3, 4}, {5, 6, 7, 8}, {9, 10}]


# --- non-instructional rows -------------------------------------------------------
def test_halves_of_a_document():
    text = 'One. Two two! Three?  Four four four. Five five.'
    first, second = non_instructional.halves(text)
    assert first + second == text and (first, second) == ('One. Two two! Three?  ', 'Four four four. Five five.')
    for single in ('', 'A single sentence.', 'A single one. ', 'No 3.14 end'):
        assert non_instructional.halves(single) is None


def test_non_instructional_rows_are_trained(tmp_path, monkeypatch):
    """A model of random weights goes on; of its replies those that ended are written, and can be trained on."""
    texts = [f'The first sentence of {i}. The second is of {i}, too.' for i in range(30)] + ['A single sentence']
    inside(monkeypatch, 'papers/non_instructional.py', f'--data={write(tmp_path / "web.jsonl", [{"text": text} for text in texts])}', '--teacher=tiny',
           '--device=cpu', '--max_new_tokens=100', f'--out={tmp_path}/rows.jsonl')
    rows = read_rows(f'{tmp_path}/rows.jsonl')[0]
    assert 0 < len(rows) < 30
    assert all(row['prompt'] == f'The first sentence of {row["prompt"].split()[-1]} ' for row in rows)
    examples, _ = sft_examples(rows, byte_tokenizer(), 1000)
    assert len(examples) == len(rows) and 'Continue' not in show_mask(examples[0], byte_tokenizer())
