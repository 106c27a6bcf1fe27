"""dpo.py: the shapes of preference rows, each loss by hand, reference log-probs and their cache, packing and ranks, and
the loop sample.py -> dpo.py -> sample.py."""
import json
import math
import os
import shutil

import pytest
import torch
from conftest import ROOT, before_loop, inside, read_log
from transformers import AutoModelForCausalLM, AutoTokenizer

from configurator import UserError
from data import byte_tokenizer, preference_pairs
from rows import read_rows

TINY = byte_tokenizer()
Q, A, B = ({'role': role, 'content': text} for role, text in (('user', 'Q'), ('assistant', 'A'), ('assistant', 'B')))
S = {'role': 'system', 'content': 'S'}
PAIRS = [{'prompt': f'{a}+{b}', 'chosen': f'{a} {a + b} #### {a + b}', 'rejected': '#### ' + '7' * (1 + a)}
         for a in range(4) for b in range(3)]
DPO = ['--max_steps=3', '--batch_size=5', '--eval_prompts=', '--warmup_steps=0', '--learning_rate=3e-4', '--model=tiny']


def texts(row, max_length=100, overlong='drop'):
    """prompt, chosen and rejected of a row as text, what is trained in [[ ]]."""
    (pair,), _ = preference_pairs([{**row, '_where': 'x:1'}], TINY, max_length, overlong)
    (chosen, mask, prompt), (rejected, other, same) = pair['docs']
    assert same is prompt  # one object: collate computes it once
    assert pair['ids'].tolist() == [*prompt, *chosen, *rejected]
    assert pair['mask'].tolist() == [False] * len(prompt) + [*mask, *other]
    side = lambda ids, mask: TINY.decode(ids[~mask]) + f'[[{TINY.decode(ids[mask])}]]'  # noqa: E731
    return TINY.decode(prompt), side(chosen, mask), side(rejected, other)


@pytest.mark.parametrize('row', [
    {'prompt': 'Q', 'chosen': 'A', 'rejected': 'B'},
    {'prompt': [Q], 'chosen': [A], 'rejected': [B]},
    {'chosen': [Q, A], 'rejected': [Q, B]},
    {'prompt': 'Q', 'prompt_id': 'x', 'chosen': [Q, A], 'rejected': [Q, B], 'messages': [Q, A], 'score_chosen': 8.0},
    {'id': 'x', 'prompt': 'Q', 'chosen': [Q, A], 'rejected': [Q, B], 'source': 's'},
    {'chosen': '\n\nHuman: Q\n\nAssistant: A', 'rejected': '\n\nHuman: Q\n\nAssistant: B'},
    {'instruction': 'Q', 'chosen_response': 'A', 'rejected_response': 'B'},
    {'messages': [Q], 'chosen': A, 'rejected': B},
    {'system': '', 'question': 'Q', 'chosen': 'A', 'rejected': 'B'}])
def test_every_shape(row):
    assert texts(row) == ('<|user|>Q<|end|><|assistant|>', '[[A<|end|>]]', '[[B<|end|>]]')


def test_shapes_with_more():
    assert texts({'system': 'S', 'question': 'Q', 'chosen': 'A', 'rejected': 'B'})[0].startswith('<|system|>S<|end|>')
    assert texts({'prompt': [S, Q], 'chosen': [A], 'rejected': [B], 'system': 'T'})[0].startswith('<|system|>S<|end|><|user|>')
    # only the final turn is trained; the prompt is what both have before it, word by word
    several = {'chosen': '\n\nHuman: Q\n\nAssistant: A\n\nHuman: more\n\nplease\n\nAssistant: A',
               'rejected': '\n\nHuman: Q\n\nAssistant: A\n\nHuman: more\n\nplease\n\nAssistant: B'}
    assert texts(several) == ('<|user|>Q<|end|><|assistant|>A<|end|><|user|>more\n\nplease<|end|><|assistant|>',
                              '[[A<|end|>]]', '[[B<|end|>]]')
    assert texts({'chosen': [Q, A, Q, A], 'rejected': [Q, B, Q, A]}) == (
        '<|user|>Q<|end|><|assistant|>', 'A<|end|><|user|>Q<|end|><|assistant|>[[A<|end|>]]',
        'B<|end|><|user|>Q<|end|><|assistant|>[[A<|end|>]]')
    # a start that both completions share is trained in both
    assert texts({'prompt': 'Q', 'chosen': 'AA', 'rejected': 'AB'})[1:] == ('[[AA<|end|>]]', '[[AB<|end|>]]')


@pytest.mark.parametrize('row, why', [
    ({'prompt': 'Q', 'chosen': 'A', 'rejected': 'A'}, 'both sides are the same'),
    ({'chosen': [Q, A], 'rejected': [{**Q, 'content': 'q'}, B]}, 'no common prompt'),
    ({'chosen': [S, Q, A], 'rejected': [S, A, Q, B]}, 'no common prompt'),
    ({'chosen': 'A', 'rejected': 'B'}, 'without a prompt'),
    ({'prompt': 'Q', 'chosen': 'A', 'rejected': ' '}, 'without a final assistant turn'),
    ({'prompt': 'Q', 'chosen': [Q, A], 'rejected': [Q]}, 'without a final assistant turn'),
    ({'prompt': 'Q', 'chosen': 'A', 'rejected': None}, 'a side is null'),
    ({'prompt': 'Q', 'chosen': 'A\ud800', 'rejected': 'B'}, 'unicode'),
    ({'prompt': 'Q' * 98, 'chosen': 'A', 'rejected': 'B'}, 'longer than max_length=100')])
def test_pairs_that_are_dropped(row, why):
    with pytest.raises(UserError, match=why):
        texts(row)


def test_pairs_are_cut_only_when_asked():
    row = {'prompt': 'Q', 'chosen': 'A' * 20, 'rejected': 'B'}
    assert texts(row, 10, 'cut')[1:] == ('[[AAAAAA]]', '[[B<|end|>]]')  # no end is invented
    with pytest.raises(UserError, match='nothing left to train on'):
        texts(row, 4, 'cut')
    with pytest.raises(UserError, match=r'x:1: no chosen and rejected in the keys prompt'):
        texts({'prompt': 'Q'})


@pytest.mark.parametrize('path', [
    'tests/data/gsm8k_preference_sample.jsonl', 'tests/data/oasst_preference_sample.jsonl',
    '../shared/data/gsm8k/preference_test.jsonl', '../shared/data/oasst_sample/preference.jsonl'])
def test_counts_on_real_rows(path):
    """Against an independent count: every byte a token, three chat tokens a turn, and each completion's end."""
    path = os.path.join(ROOT, path)
    if not os.path.exists(path):
        pytest.skip('only where ../shared is')
    rows = [json.loads(line) for line in open(path, encoding='utf-8')]
    text = lambda x: x if isinstance(x, str) else x[-1]['content']  # noqa: E731
    want = [r for r in rows if text(r['chosen']) != text(r['rejected'])]
    pairs, report = preference_pairs(read_rows(path)[0], TINY, 10 ** 6)
    assert (report['rows'], report['kept']) == (len(rows), len(want)) and len(want) > 0.95 * len(rows)
    asked = lambda r: [r['prompt']] if isinstance(r['prompt'], str) else [m['content'] for m in r['prompt']]  # noqa: E731
    size = lambda x: len(x.encode())  # noqa: E731
    assert report['supervised'] == sum(size(text(r['chosen'])) + size(text(r['rejected'])) + 2 for r in want)
    assert report['tokens'] == report['supervised'] + sum(sum(size(t) + 2 for t in asked(r)) + 1 for r in want)
    for row, pair in zip(want, pairs):
        for key, (ids, mask, _) in zip(('chosen', 'rejected'), pair['docs']):
            assert TINY.decode(ids[mask]) == text(row[key]) + '<|end|>'


def write(path, rows):
    with open(path, 'w') as f:
        f.writelines(json.dumps(row) + '\n' for row in rows)
    return str(path)


@pytest.fixture()
def data(tmp_path):
    return f'--data={write(tmp_path / "pairs.jsonl", PAIRS)}'


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize('flags, by_hand', [
    # D: difference of summed log-ratios, M: of their means; c: the chosen's mean log-prob
    (['dpo', 0.1], lambda D, M, m, c: -log_sigmoid(0.1 * D)),
    (['dpo', 0.1, '--label_smoothing=0.2'], lambda D, M, m, c: -0.8 * log_sigmoid(0.1 * D) - 0.2 * log_sigmoid(-0.1 * D)),
    (['dpo', 0.1, '--sft_coef=0.7'], lambda D, M, m, c: -log_sigmoid(0.1 * D) - 0.7 * c),
    (['dpo_norm', 5], lambda D, M, m, c: -log_sigmoid(5 * M)),
    (['ipo', 0.1], lambda D, M, m, c: (M - 5) ** 2),
    (['simpo', 2, '--gamma_beta_ratio=0.3'], lambda D, M, m, c: -log_sigmoid(2 * m - 0.6))])
def test_losses_by_hand(monkeypatch, tmp_path, data, flags, by_hand):
    loss_type, beta, *more = flags
    ns = before_loop(monkeypatch, 'dpo.py', *DPO, data, f'--out_dir={tmp_path / "o"}',
                     f'--loss_type={loss_type}', f'--beta={beta}', *more)
    pairs = ns['pairs'][:3]
    logprobs = torch.tensor([[-3.0, -4.5], [-10.0, -2.0], [-1.0, -1.5]], dtype=torch.float64)
    ref = [[-2.0, -2.5], [-9.0, -4.0], [-1.0, -1.0]] if loss_type != 'simpo' else [[0.0, 0.0]] * 3
    for pair, values in zip(pairs, ref):
        pair['ref_logprobs'] = values
    losses, statistics = ns['preference_loss'](logprobs, pairs)
    assert losses.dtype == torch.float64
    want, margins = [], []
    for row, (w, x), (rw, rx) in zip(PAIRS, logprobs.tolist(), ref):
        n, k = len(row['chosen']) + 1, len(row['rejected']) + 1  # bytes and the end
        D, M, m, c = (w - rw) - (x - rx), (w - rw) / n - (x - rx) / k, w / n - x / k, w / n
        want.append(by_hand(D, M, m, c))
        margins.append(beta * (D if loss_type == 'dpo' else M))
    assert losses.tolist() == pytest.approx(want, rel=1e-12)
    found = {key: values.tolist() for key, values in statistics.items()}
    assert found['dpo/margin'] == pytest.approx(margins, rel=1e-12)
    assert found['dpo/accuracy'] == [x > 0 for x in margins]
    differences = [c - r for c, r in zip(found['dpo/chosen_rewards'], found['dpo/rejected_rewards'])]
    assert differences == pytest.approx(margins, rel=1e-9)
    assert found['dpo/chosen_logps'] == [-3.0, -10.0, -1.0] and found['dpo/rejected_logps'] == [-4.5, -2.0, -1.5]
    assert found['completion/chosen_len'] == [len(row['chosen']) + 1 for row in PAIRS[:3]]
    assert found['completion/rejected_len'] == [len(row['rejected']) + 1 for row in PAIRS[:3]]


@pytest.mark.parametrize('flags, first', [
    (['--loss_type=dpo', '--beta=0.1'], math.log(2)), (['--loss_type=dpo_norm', '--beta=5'], math.log(2)),
    (['--loss_type=dpo', '--beta=0.1', '--label_smoothing=0.3'], math.log(2)), (['--loss_type=ipo', '--beta=0.1'], 25.0)])
def test_loss_at_step_0_and_its_gradient(monkeypatch, tmp_path, data, flags, first):
    """Invariant 9, and that the gradient is not 0 there: two steps on are better than one."""
    inside(monkeypatch, 'dpo.py', *DPO, *flags, data, f'--out_dir={tmp_path / "o"}', '--batch_size=12', '--schedule=constant',
           '--learning_rate=1e-5')
    log = read_log(tmp_path / 'o')
    assert log[0]['loss'] == pytest.approx(first, rel=1e-6) and log[0]['grad_norm'] > 1e-3
    assert log[0]['dpo/margin'] == pytest.approx(0, abs=1e-4) and log[2]['loss'] < log[1]['loss'] < log[0]['loss']


@pytest.mark.parametrize('flags', [[], ['--loss_type=simpo', '--beta=2', '--sft_coef=0.5']])
def test_packing_and_ranks_do_not_change_it(monkeypatch, run, tmp_path, data, flags):
    """Invariants 3 and 4: one big micro-batch, a pair alone in each, two ranks with unequal shares, one without any."""
    def log_of(name, *more, ranks=1):
        flags_of_run = ['dpo.py', *DPO, *flags, *more, data, f'--out_dir={tmp_path / name}']
        if ranks == 1:
            inside(monkeypatch, *flags_of_run)
        else:
            run(*flags_of_run, ranks=ranks)
        return read_log(tmp_path / name)
    whole = log_of('whole')
    for other in (log_of('alone', '--micro_batch_tokens=1'), log_of('two', '--micro_batch_tokens=80', ranks=2)):
        for a, b in zip(whole, other):
            for key in a:
                assert key.startswith('perf/') or a[key] == pytest.approx(b[key], rel=2e-4, abs=2e-5), key
    if not flags:
        one, two = log_of('1', '--batch_size=1'), log_of('2', '--batch_size=1', ranks=2)
        assert [r['loss'] for r in one] == pytest.approx([r['loss'] for r in two], rel=1e-5)


def test_reference_logprobs_and_their_cache(monkeypatch, start_model, tmp_path, data):
    """Against transformers' own forward; and a cache that does not fit is never used."""
    shutil.copytree(start_model, tmp_path / 'model')

    def refs(*flags):
        ns = before_loop(monkeypatch, 'dpo.py', *DPO, f'--model={tmp_path / "model"}', data, '--overwrite=True',
                         f'--out_dir={tmp_path / "o"}', *flags)
        return ns['ref_logprobs']

    live, path = refs(), tmp_path / 'o' / 'ref_logprobs.pt'
    lm = AutoModelForCausalLM.from_pretrained(start_model, dtype=torch.float32)
    pairs, _ = preference_pairs(read_rows(data[7:])[0], TINY, 1000)
    for pair, ours in zip(pairs, live):
        for (ids, mask, prompt), our in zip(pair['docs'], ours):
            whole = torch.tensor([[*prompt, *ids]])
            with torch.no_grad():
                logprobs = lm(whole).logits[0].log_softmax(-1)
            picked = logprobs[len(prompt) - 1:-1].gather(1, whole[0, len(prompt):, None])[:, 0]
            assert our.item() == pytest.approx(picked[torch.tensor(mask)].sum().item(), rel=1e-5, abs=1e-5)
    assert torch.equal(refs(), live)

    def poison():
        cached = torch.load(path, weights_only=True)
        torch.save({**cached, 'logprobs': torch.full_like(live, 7.0)}, path)
    poison()
    assert (refs() == 7.0).all()  # it is read, so the next ones say something
    assert (refs('--micro_batch_tokens=40') == 7.0).all()  # how it is packed does not matter
    for broken in (b'', b'PK', path.read_bytes()[:200]):
        path.write_bytes(broken)
        assert torch.equal(refs(), live)
    for change in ('weight', 'row', 'template', 'length'):
        poison()
        flags = []
        if change == 'weight':
            model = AutoModelForCausalLM.from_pretrained(tmp_path / 'model', dtype=torch.float32)
            with torch.no_grad():
                model.model.layers[2].mlp.up_proj.weight[3, 5] += 1e-3
            model.save_pretrained(tmp_path / 'model')
        if change == 'row':
            write(data[7:], [*PAIRS[:-1], {**PAIRS[-1], 'rejected': '#### 8'}])
        if change == 'template':
            template = (tmp_path / 'model' / 'chat_template.jinja').read_text()
            flags = [f'--chat_template={tmp_path / "t.jinja"}']
            (tmp_path / 't.jinja').write_text(template.replace("'<|assistant|>'", "'<|assistant|>:'").replace(
                "m.role + '|>' +", "m.role + '|>' + (':' if m.role == 'assistant' else '') +"))
        if change == 'length':
            flags = ['--max_length=14', '--overlong=cut']
        assert not (refs(*flags) == 7.0).any(), change


def test_write_sft_and_pairs_and_train_on_them(monkeypatch, start_model, tmp_path, capfd):
    """sample.py's rows are what dpo.py and sft.py read; right and wrong are where they belong."""
    pairs, weak, rows = (str(tmp_path / name) for name in ('pairs.jsonl', 'weak.jsonl', 'sft.jsonl'))
    common = [f'--model={start_model}', '--data=sums:train', '--limit=60', '--show=0', '--instruction=Add.']
    inside(monkeypatch, 'sample.py', *common, '--n=6', '--write=pairs', f'--out={pairs}')
    made = [json.loads(line) for line in open(pairs)]
    assert f'{len(made)} pairs of 60 prompts' in capfd.readouterr().out and len(made) > 5
    for row in made:
        assert (row['chosen_reward'], row['rejected_reward']) == (1.0, 0.0)
        assert row['chosen'][0]['content'].rpartition('#### ')[2].strip() == row['truth']
        assert row['prompt'][-1]['content'].endswith('\n\nAdd.')
    inside(monkeypatch, 'dpo.py', *DPO, f'--model={start_model}', f'--data={pairs}', f'--eval_data={pairs}',
           '--eval_prompts=sums:test', f'--out_dir={tmp_path / "dpo"}', '--learning_rate=1e-4', '--max_steps=8', '--batch_size=8')
    log = read_log(tmp_path / 'dpo')
    assert log[-1]['eval/accuracy'] > 0.8 and log[-1]['eval/margin'] > 0 and 'eval/pass@1' in log[-1]
    inside(monkeypatch, 'sample.py', *common, '--n=6', '--write=sft', f'--out={rows}')
    made = [json.loads(line) for line in open(rows)]
    assert made and all(r['completion'].rpartition('#### ')[2].strip() == r['truth'] for r in made)
    assert len({(r['where'], r['completion']) for r in made}) == len(made)
    inside(monkeypatch, 'sft.py', f'--model={start_model}', f'--data={rows}', '--eval_data=', '--eval_prompts=', '--max_steps=1',
           f'--out_dir={tmp_path / "sft"}', '--batch_size=4')
    inside(monkeypatch, 'sample.py', f'--model={start_model}', '--rejected_model=tiny', '--data=sums:train', '--limit=9', '--n=1',
           '--write=pairs', '--max_new_tokens=400', f'--out={weak}', '--show=0')
    for row in map(json.loads, open(weak)):
        assert row['chosen'] != row['rejected'] and '####' not in row['rejected'][0]['content']
    shutil.copytree(start_model, tmp_path / 'other')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / 'other')
    tokenizer.add_tokens(['abc'])
    tokenizer.save_pretrained(tmp_path / 'other')
    with pytest.raises(UserError, match='has another vocabulary'):
        inside(monkeypatch, 'sample.py', f'--model={start_model}', f'--rejected_model={tmp_path / "other"}', '--write=pairs',
               f'--out={tmp_path / "x"}')
    with pytest.raises(UserError, match='--n=2'):
        inside(monkeypatch, 'sample.py', '--model=tiny', '--n=1', '--write=pairs', f'--out={tmp_path / "x"}')


def test_write_prompts_for_grpo(monkeypatch, start_model, tmp_path, capfd):
    """Of groups with 0, 3 and 8 of 8 right only the second is written; rl_prompts reads it as it read the first row, the instruction once."""
    asked = [{'role': 'system', 'content': 'Be quick.'}, {'role': 'user', 'content': '1+1'}, {'role': 'assistant', 'content': '1 2 #### 2'}]
    write(tmp_path / 'rows.jsonl', [
        {'prompt': '3+4', 'answer': 7, 'dataset': 'sums', 'difficulty': 2, 'demonstration': '3 7 #### 7'},
        {'messages': [*asked, {'role': 'user', 'content': 'Add.\n\nAdd.'}], 'answer': '2', 'data_source': 'openai/gsm8k'},
        {'prompt': 'C?', 'answer': {'answer': 'C', 'options': ['A', 'C']}, 'dataset': 'mcq', 'level': 'Level 3'}])
    out, common = tmp_path / 'prompts.jsonl', ['--max_new_tokens=24', '--show=0']
    flags = [f'--model={start_model}', f'--data={tmp_path}/rows.jsonl', '--instruction=Add.', '--write=prompts', '--n=8', *common]
    with pytest.raises(UserError, match='no prompt has what write=prompts needs'):
        inside(monkeypatch, 'sample.py', *flags, '--temperature=0', f'--out={out}')
    with pytest.raises(UserError, match='write=prompts compares completions of a prompt: --n=2'):
        inside(monkeypatch, 'sample.py', '--model=tiny', '--n=1', '--write=prompts', f'--out={tmp_path / "x"}')
    ns = inside(monkeypatch, 'sample.py', *flags, '--write=samples', f'--out={tmp_path}/samples.jsonl')
    lines = []
    for prompt in ns['prompts']:
        made = [ns['prompt_lines'](prompt, [{'reward': float(i < right)} for i in range(8)]) for right in (0, 3, 8)]
        assert [len(line) for line in made] == [0, 1, 0] and made[1][0]['mean_reward'] == 3 / 8
        lines += made[1]
    assert ['demonstration' in line for line in lines] == [True, False, False]
    write(out, lines)
    again, _ = ns['rl_prompts'](ns['read_rows'](str(out))[0], ns['tokenizer'], 512, '', 'Add.')
    assert [{**prompt, 'where': ''} for prompt in again] == [{**prompt, 'where': ''} for prompt in ns['prompts']]
    assert [prompt['text'] for prompt in again] == ['3+4\n\nAdd.', 'Add.\n\nAdd.\n\nAdd.', 'C?\n\nAdd.']

    # the whole way, without an instruction: what is written is what some completions solve and some do not
    flags = [f'--model={start_model}', '--data=sums:train', '--limit=30', '--n=4', *common]
    for kind in ('samples', 'prompts'):
        inside(monkeypatch, 'sample.py', *flags, f'--write={kind}', f'--out={tmp_path}/{kind}.jsonl', '--overwrite=True')
    rewards = {}
    for line in map(json.loads, open(tmp_path / 'samples.jsonl')):
        rewards.setdefault(line['where'], []).append(line['reward'])
    solved_in_part = {where: sum(of_row) / 4 for where, of_row in rewards.items() if 0 < sum(of_row) < 4}
    assert {line['where']: line['mean_reward'] for line in map(json.loads, open(out))} == solved_in_part
    assert 2 < len(solved_in_part) < 30 and f'{len(solved_in_part)} prompts of 30 prompts' in capfd.readouterr().out
    inside(monkeypatch, 'grpo.py', f'--model={start_model}', f'--data={out}', '--eval_prompts=', '--prompts_per_step=2', '--group_size=4',
           '--max_steps=1', '--max_new_tokens=24', f'--out_dir={tmp_path}/grpo')
