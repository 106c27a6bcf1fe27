"""distill.py: gradients against TRL, float64 loops, sft.py and grpo.py; who samples what; teachers that fit and that do not."""
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from configurator import UserError
from conftest import before_loop, inside, read_log
from data import byte_tokenizer, rl_prompts
from model import LOGITS_PER_CHUNK, Policy, Target, load_model, load_teacher, memory_plan, save_model, token_divergences
from test_scripts import same
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config, Qwen3ForCausalLM

import model as weights_module
from tools import distill as comparison

FULL = ['reverse_kl', 'forward_kl', 'jsd']
FLAGS = ['--eval_prompts=', '--micro_batch_tokens=300']
SAMPLED = ['--max_new_tokens=24', '--group_size=2']
RUN = ['--max_steps=2', '--prompts_per_step=5', '--group_size=2', '--max_new_tokens=24', '--eval_prompts=', '--sample_every=0',
       '--warmup_steps=1', '--learning_rate=1e-4']


@pytest.fixture
def load(monkeypatch, start_model, rows, tmp_path):
    """load(script, *flags) -> its names before the loop; distill.py's student is then moved away from its teacher."""
    places = itertools.count()

    def loaded(script, *flags, moved=True):
        own = {'sft.py': ['--eval_data='], 'grpo.py': SAMPLED, 'distill.py': [*SAMPLED, f'--teacher={start_model}']}[script]
        ns = before_loop(monkeypatch, script, f'--model={start_model}', f'--out_dir={tmp_path}/{next(places)}', *own, *FLAGS,
                         f'--data={rows}', *flags)
        if moved:
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for p in ns['policy'].parameters():
                    p.add_(0.01 * torch.randn(p.shape, generator=generator))
        return ns
    return loaded


def gradient(ns, groups):
    """The gradient of one update on these groups, as a vector."""
    ns['policy'].zero_grad()
    ns['accumulate_gradients'](ns['micro_batches_of'](groups))
    return torch.cat([p.grad.flatten() for p in ns['policy'].parameters()])


def close(ours, theirs, tolerance=1e-5):
    assert theirs.norm() > 1e-4
    assert (ours - theirs).norm() < tolerance * theirs.norm(), ((ours - theirs).norm() / theirs.norm()).item()


def plain_logits(lm, completion):
    """Logits (T, V) that predict the tokens of a completion, without packing, caches or chunks."""
    ids = torch.tensor([[*completion.prompt_ids, *completion.ids]])
    return lm(ids).logits[0, len(completion.prompt_ids) - 1:-1]


def plain_models(ns, start_model):
    """Student and teacher as plain float64 models of transformers."""
    student, teacher = (load_model(start_model, attention='sdpa').double().eval() for _ in range(2))
    student.load_state_dict({name: weight.double() for name, weight in ns['policy'].model.state_dict().items()})
    return student, teacher


def plain_gradient(student, loss):
    student.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in student.parameters()]).float()


# --- the loss ------------------------------------------------------------------
@pytest.mark.parametrize('divergence', ['sampled', *FULL])
def test_a_student_that_is_its_teacher_learns_nothing(load, divergence):
    """Invariant 10. Moved away from its teacher it does."""
    ns = load('distill.py', f'--divergence={divergence}', moved=False)
    groups = ns['rollout'](list(range(8)), 0)
    assert gradient(ns, groups).abs().max() < 1e-6
    moved = load('distill.py', f'--divergence={divergence}')
    assert gradient(moved, groups).norm() > 1e-2


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_sampled_reverse_kl_is_a_policy_gradient(load, start_model, temperature):
    """A float64 loop over tokens: (log p_teacher - log p_student), a number, times grad log p_student; the mean over all tokens."""
    ns = load('distill.py', f'--temperature={temperature}')
    groups = ns['rollout'](list(range(8)), 0)
    ours = gradient(ns, groups)
    student, teacher = plain_models(ns, start_model)
    loss, tokens = 0, 0
    for completion in [c for group in groups for c in group.completions]:
        log_student = (plain_logits(student, completion) / temperature).log_softmax(-1)
        log_teacher = (plain_logits(teacher, completion) / temperature).log_softmax(-1).detach()
        for t, token in enumerate(completion.ids):
            advantage = (log_teacher[t, token] - log_student[t, token]).item()
            loss = loss - advantage * log_student[t, token]
            tokens += 1
    close(ours, plain_gradient(student, loss / tokens))


@pytest.mark.parametrize('divergence, beta', [('forward_kl', 0), ('reverse_kl', 1), ('jsd', 0.5), ('jsd', 0.1)])
def test_whole_distributions_are_trls(load, start_model, divergence, beta):
    """GKD's loss in TRL, from plain logits: loss and gradient. Its beta is 0 for the forward and 1 for the reverse KL."""
    trl = pytest.importorskip('trl.experimental.gkd')
    more = [f'--jsd_beta={beta}'] if divergence == 'jsd' else []
    ns = load('distill.py', f'--divergence={divergence}', '--temperature=0.8', *more)
    groups = ns['rollout'](list(range(8)), 0)
    ours = gradient(ns, groups)
    our_loss = ns['accumulate_gradients'](ns['micro_batches_of'](groups))['loss']
    student, teacher = plain_models(ns, start_model)
    completions = [c for group in groups for c in group.completions]
    logits = torch.cat([plain_logits(student, c) for c in completions])[None]
    with torch.no_grad():
        teacher_logits = torch.cat([plain_logits(teacher, c) for c in completions])[None]
    loss = trl.GKDTrainer.generalized_jsd_loss(
        logits, teacher_logits, beta=beta, temperature=0.8, num_items_in_batch=sum(len(c.ids) for c in completions))
    assert our_loss == pytest.approx(loss.item(), rel=1e-4)
    close(ours, plain_gradient(student, loss))


def test_divergences_by_hand(load):
    """Student (1/2, 1/2), teacher (3/4, 1/4), b = 1/4: the mixture is (9/16, 7/16)."""
    ns = load('distill.py', '--jsd_beta=0.25')
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    assert ns['reverse_kl'](student, teacher).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert ns['forward_kl'](student, teacher).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    of_teacher = 0.75 * math.log(4 / 3) + 0.25 * math.log(4 / 7)
    of_student = 0.5 * math.log(8 / 9) + 0.5 * math.log(8 / 7)
    assert ns['jsd'](student, teacher).item() == pytest.approx(0.25 * of_teacher + 0.75 * of_student, rel=1e-5)


@pytest.mark.parametrize('divergence', ['sampled', 'forward_kl'])
def test_a_reward_is_added(load, divergence):
    """The gradient is that without it plus reward_coef times grpo.py's."""
    flags = [f'--divergence={divergence}', '--group_size=4', '--advantage_std=False']
    ns = load('distill.py', *flags)
    groups = ns['rollout'](list(range(12)), 0)
    assert any(group.has_spread for group in groups)
    alone = gradient(ns, groups)
    both = gradient(load('distill.py', *flags, '--reward_coef=0.5'), groups)
    grpo = load('grpo.py', *flags[1:])
    of_reward = gradient(grpo, grpo['rollout'](list(range(12)), 0))
    close(both, alone + 0.5 * of_reward)
    assert of_reward.norm() > 1e-3


def test_the_advantage_is_that_of_the_policy_that_sampled(load):
    """With several updates a rollout it stays as it was while the policy moves."""
    ns = load('distill.py', '--updates_per_rollout=2', '--prompts_per_step=8')
    groups = ns['rollout'](list(range(8)), 0)
    (micro,) = ns['micro_batches_of'](groups[:2])
    ns['add_fixed_logprobs']([micro], 2)
    micro = {**micro, **ns['scores_of_teacher'](micro)}
    advantage = micro['teacher_logprobs'] - micro['old_logprobs']
    moved = (micro['old_logprobs'] + 0.1).requires_grad_()
    loss, _ = ns['policy_loss'](moved, torch.zeros_like(moved), None, micro)
    loss.backward()
    expected = -micro['weight'] * math.exp(0.1) * advantage
    assert torch.allclose(moved.grad, expected, rtol=1e-4, atol=1e-7)


# --- memory --------------------------------------------------------------------
class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if torch.is_tensor(x):
                self.numel = max(self.numel, x.numel())
        return result


@pytest.mark.parametrize('n_tokens', [64, 1, 0])
def test_logits_are_never_whole(monkeypatch, n_tokens):
    """The largest tensor is a chunk's logits, whatever the number of tokens; the values do not depend on the chunk."""
    torch.manual_seed(0)
    hidden = torch.randn(n_tokens, 4, requires_grad=True)
    weight = torch.randn(1000, 4, requires_grad=True)
    target = Target(torch.randn(n_tokens, 6), torch.randn(1000, 6),
                    lambda log_p, log_t: (log_t.exp() * (log_t - log_p)).sum(-1))
    outcomes = []
    for chunk in (3, 1000):
        monkeypatch.setattr(weights_module, 'LOGITS_PER_CHUNK', chunk * 1000)
        hidden.grad = weight.grad = None
        with Largest() as largest:
            divergences = token_divergences(hidden, weight, target, 1.0, torch.float32)
            divergences.sum().backward()
        assert divergences.shape == (n_tokens,) and weight.grad is not None
        if chunk == 3:
            assert largest.numel <= 6000  # the teacher's head; a chunk has 3,000
        outcomes.append((divergences.detach(), hidden.grad.clone(), weight.grad.clone()))
    for a, b in zip(*outcomes):
        assert torch.allclose(a, b, atol=1e-5)
    expected = F.kl_div((hidden @ weight.T).log_softmax(-1), (target.hidden @ target.weight.T).log_softmax(-1),
                        reduction='none', log_target=True).sum(-1)
    assert torch.allclose(outcomes[0][0], expected, atol=1e-5)
    assert LOGITS_PER_CHUNK < 64 * 10 ** 6


def test_memory_plan_has_the_teacher():
    """Qwen3-4B beside a student of 0.6B: bf16 but for the embedding, N = 4,022,468,096 and 151,936 x 2,560."""
    student, teacher = (weights_module.load_config(f'random:qwen3-{size}') for size in ('0.6b', '4b'))
    plain = memory_plan(student, 8, 8192)
    plan = memory_plan(student, 8, 8192, teacher=teacher)
    expected = (2 * 4_022_468_096 + 2 * 151_936 * 2560) / 1e9
    assert plan['teacher'] == pytest.approx(expected) and plan['peak'] == pytest.approx(plain['peak'] + expected)
    assert memory_plan(student, 8, 8192, teacher=teacher, shard='all')['teacher / 8'] == pytest.approx(expected / 8)
    # a teacher that samples has the larger decode copy
    rollout = {'teacher': teacher, 'kv_cache_gb': 4, 'rollout_rows': 8}
    assert memory_plan(student, 8, 8192, **rollout)['decode copy'] == pytest.approx(2 * 596_049_920 / 1e9)
    assert memory_plan(student, 8, 8192, **rollout, teacher_samples=True)['decode copy'] == pytest.approx(2 * 4_022_468_096 / 1e9)


# --- who samples ----------------------------------------------------------------
def test_on_policy_fraction(load):
    """0: the teacher samples all; in between some, by place and seed alone; off-policy completions have no reward."""
    ns = load('distill.py', '--on_policy_fraction=0.5')
    groups = ns['rollout'](list(range(40)), 100)
    share = sum(group.is_off_policy for group in groups) / 40
    assert 0.2 < share < 0.8
    again = ns['rollout'](list(range(20, 40)), 120)
    assert [g.is_off_policy for g in again] == [g.is_off_policy for g in groups[20:]]
    for group in groups:
        for completion in group.completions:
            assert completion.is_off_policy == group.is_off_policy and len(group.completions) == 2
            # whose log-probs they are: the student is far from its teacher
            sampler = ns['teacher_policy'] if group.is_off_policy else ns['policy']
            micro = ns['collate_completions']([completion], 1, 1)
            with torch.no_grad():
                logprobs, _ = ns['forward'](sampler, micro)
            assert torch.allclose(logprobs, completion.sampler_logprobs, atol=1e-4)
            assert not group.is_off_policy or completion.reward == completion.advantage == 0
    ns['on_policy_fraction'] = 0.0
    assert all(group.is_off_policy for group in ns['rollout'](list(range(8)), 0))


def test_without_any_of_its_own_samples_it_is_sft(load):
    """on_policy_fraction=0 on demonstrations: sft.py's gradient; with a divergence, GKD on a fixed data set."""
    ns = load('distill.py', '--on_policy_fraction=0', '--off_policy=demonstration')
    groups = ns['rollout'](list(range(12)), 0)
    ours = gradient(ns, groups)
    sft = load('sft.py')
    batch = [sft['examples'][i] for i in range(12)]
    sft['accumulate_gradients'](sft['micro_batches_of'](batch), sft['supervised_tokens_of'](batch))
    close(ours, torch.cat([p.grad.flatten() for p in sft['policy'].parameters()]))
    full = load('distill.py', '--on_policy_fraction=0', '--off_policy=demonstration', '--divergence=forward_kl')
    assert gradient(full, groups).norm() > 1e-3
    same_model = load('distill.py', '--on_policy_fraction=0', '--off_policy=demonstration', '--divergence=forward_kl', moved=False)
    assert gradient(same_model, groups).abs().max() < 1e-6


def test_importance_cap_leaves_off_policy_tokens_and_whole_distributions_alone(load):
    for flags in (['--on_policy_fraction=0'], ['--divergence=jsd']):
        ns = load('distill.py', *flags, '--importance_cap=2')
        groups = ns['rollout'](list(range(6)), 0)
        for group in groups:
            for completion in group.completions:
                completion.sampler_logprobs = completion.sampler_logprobs - 0.4
        capped = gradient(ns, groups)
        ns['importance_cap'] = 0.0
        close(capped, gradient(ns, groups))


def test_sft_asks_no_teacher_and_costs_nothing_of_it(monkeypatch, rows, start_model, tmp_path):
    """What a run logs of the teacher's work: samples with each prompt once, scores only where the loss needs them."""
    flags = [*RUN, '--max_steps=1', f'--data={rows}', f'--model={start_model}', '--teacher=tiny']
    for i, (more, sampled, scored) in enumerate([
            ([], False, True), (['--on_policy_fraction=0'], True, False), (['--on_policy_fraction=0', '--divergence=jsd'], True, True),
            (['--on_policy_fraction=0', '--off_policy=demonstration'], False, False)]):
        names = inside(monkeypatch, 'distill.py', *flags, *more, f'--out_dir={tmp_path}/{i}')
        (record,) = read_log(tmp_path / str(i))
        assert record['distill/teacher_scored'] == (record['tokens/trained'] if scored else 0)
        tokens = sum(len(g.prompt['ids']) + sum(len(c.ids) for c in g.completions) for g in names['groups'])
        assert record['distill/teacher_sampled'] == (tokens if sampled else 0)
        assert record['samples'] == sum(len(g.completions) for g in names['groups'])
        assert ('distill/divergence' in record) == ('reward/mean' in record) == (not more)


# --- whole runs ------------------------------------------------------------------
@pytest.mark.parametrize('flags', [
    [], ['--divergence=jsd', '--updates_per_rollout=2', '--shard=none'],
    ['--on_policy_fraction=0.5', '--loss_denominator=sequences', '--reward_coef=0.5', '--mask_truncated=True'],
    ['--on_policy_fraction=0.5', '--off_policy=demonstration', '--divergence=forward_kl', '--importance_cap=2']])
def test_two_ranks_are_one(monkeypatch, run, rows, start_model, tmp_path, flags):
    """Invariants 3 and 4 with unequal shares: rollouts, loss, gradient and weights."""
    one, two = str(tmp_path / 'one'), str(tmp_path / 'two')
    flags = [*RUN, *flags, f'--data={rows}', f'--model={start_model}', '--teacher=tiny']
    inside(monkeypatch, 'distill.py', *flags, f'--out_dir={one}')
    run('distill.py', *flags, f'--out_dir={two}', '--micro_batch_tokens=80', ranks=2)
    for a, b in zip(read_log(one), read_log(two), strict=True):
        assert a['completion/len_mean'] == b['completion/len_mean'] and a['distill/off_policy_frac'] == b['distill/off_policy_frac']
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-4, abs=1e-6)
        assert a['grad_norm'] == pytest.approx(b['grad_norm'], rel=1e-3)
        for key in ('distill/divergence', 'distill/nll', 'distill/divergence_off_policy'):
            assert a.get(key, 0) == pytest.approx(b.get(key, 0), rel=1e-3, abs=1e-6), key
    assert same(one, two, 2e-5)


def test_prompts_without_a_truth_are_welcome(monkeypatch, start_model, tmp_path, capsys):
    """Rows for sft.py too, whose replies are the demonstrations; with a reward_coef each row needs a truth."""
    rows = [{'prompt': '1+1'}, {'prompt': '1+2', 'answer': '3', 'dataset': 'sums'}, {'prompt': '1+3', 'completion': '1 4 #### 4'},
            {'messages': [{'role': 'user', 'content': '1+4'}, {'role': 'assistant', 'content': '1 5 #### 5'}]}]
    path = tmp_path / 'rows.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    flags = [*RUN, f'--data={path}', f'--model={start_model}', f'--teacher={start_model}', '--prompts_per_step=4']
    names = inside(monkeypatch, 'distill.py', *flags, f'--out_dir={tmp_path}/a')
    assert '3 rows without a truth that can be judged' in capsys.readouterr().out
    assert [prompt['demonstration'] for prompt in names['prompts']] == [None, None, '1 4 #### 4', '1 5 #### 5']
    assert len(read_log(tmp_path / 'a')) == 2
    inside(monkeypatch, 'distill.py', *flags, '--on_policy_fraction=0', '--off_policy=demonstration', '--without_demonstration=rl',
           f'--out_dir={tmp_path}/b')
    assert [record['distill/off_policy_frac'] for record in read_log(tmp_path / 'b')] == [0.5, 0.5]
    with pytest.raises(UserError, match='2 rows have no demonstration'):
        before_loop(monkeypatch, 'distill.py', *flags, '--on_policy_fraction=0', '--off_policy=demonstration', f'--out_dir={tmp_path}/c')
    with pytest.raises(UserError, match='rows.jsonl:1: '):
        before_loop(monkeypatch, 'distill.py', *flags, '--reward_coef=1', f'--out_dir={tmp_path}/d')


def test_a_truth_without_which_grpo_stops(tmp_path):
    row = {'prompt': '1+1', 'answer': '2', 'dataset': 'unknown', '_where': 'x:1'}
    with pytest.raises(UserError, match='x:1'):
        rl_prompts([row], byte_tokenizer(), 100)
    (prompt,), report = rl_prompts([row], byte_tokenizer(), 100, needs_truth=False)
    assert prompt['truth'] is None and prompt['kind'] is None and report['notes']
    # a verifier that the user has misspelt would otherwise give no reward without a word
    with pytest.raises(UserError, match="no verifier 'maht'"):
        rl_prompts([row], byte_tokenizer(), 100, 'maht', needs_truth=False)


# --- teachers ---------------------------------------------------------------------
@pytest.fixture(scope='module')
def wide_teacher(tmp_path_factory):
    """A model of another width and depth, whose head is padded to 300 ids."""
    torch.manual_seed(3)
    config = Qwen3Config(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
                         intermediate_size=96, vocab_size=300, tie_word_embeddings=False, max_position_embeddings=4096)
    tokenizer = byte_tokenizer()
    folder = str(tmp_path_factory.mktemp('wide'))
    save_model(Qwen3ForCausalLM(config), tokenizer, folder, [tokenizer.eos_token_id])
    return folder


@pytest.mark.parametrize('divergence', ['sampled', 'jsd'])
@pytest.mark.parametrize('larger', ['teacher', 'student'])
def test_a_teacher_of_another_shape(monkeypatch, start_model, rows, wide_teacher, tmp_path, divergence, larger):
    """Either vocabulary may be padded to more ids. A model without training samples the padding, too."""
    student, teacher = (start_model, wide_teacher) if larger == 'teacher' else (wide_teacher, start_model)
    inside(monkeypatch, 'distill.py', *RUN, f'--data={rows}', f'--model={student}', f'--teacher={teacher}',
           f'--divergence={divergence}', '--on_policy_fraction=0.5', '--dtype=bfloat16', f'--out_dir={tmp_path}/x')
    for record in read_log(tmp_path / 'x'):
        assert math.isfinite(record['loss']) and record['grad_norm'] > 1e-3


def test_a_teacher_is_frozen_and_its_linear_layers_are_in_the_compute_dtype(wide_teacher):
    teacher = load_teacher(wide_teacher, 'cpu', torch.bfloat16, load_model('tiny'))
    dtypes = {name: p.dtype for name, p in teacher.model.named_parameters()}
    assert not any(p.requires_grad for p in teacher.parameters()) and isinstance(teacher, Policy)
    assert dtypes['model.layers.0.mlp.up_proj.weight'] == dtypes['lm_head.weight'] == torch.bfloat16
    assert len(teacher.model.lm_head.weight) == 262  # the student's
    assert dtypes['model.embed_tokens.weight'] == dtypes['model.layers.0.input_layernorm.weight'] == torch.float32


def test_another_tokenizer_is_refused(monkeypatch, start_model, rows, wide_teacher, tmp_path):
    """By the vocabulary, and where that is the same by a page of text."""
    import shutil
    flags = [*RUN, f'--data={rows}', f'--model={start_model}']
    with open(f'{wide_teacher}/tokenizer.json', encoding='utf-8') as f:
        tokenizer = json.load(f)
    first, second = list(tokenizer['model']['vocab'])[:2]
    vocabulary = {**tokenizer['model']['vocab'], first: 1, second: 0}
    for i, (change, words) in enumerate([
            ({'model': {**tokenizer['model'], 'vocab': vocabulary}}, '2 tokens of 262 have another id or none'),
            ({'normalizer': {'type': 'Lowercase'}}, 'a page of text becomes other ids')]):
        folder = f'{tmp_path}/teacher{i}'
        shutil.copytree(wide_teacher, folder)
        with open(f'{folder}/tokenizer.json', 'w', encoding='utf-8') as f:
            json.dump({**tokenizer, **change}, f)
        with pytest.raises(UserError, match=words) as error:
            before_loop(monkeypatch, 'distill.py', *flags, f'--teacher={folder}', f'--out_dir={tmp_path}/x{i}')
        assert folder in str(error.value)


def test_a_missing_teacher_has_its_command(monkeypatch, rows, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='teacher out/tiny_teacher: no such folder; make it first: python .*sft.py config/tiny_teacher.py'):
        before_loop(monkeypatch, 'distill.py', *RUN, '--model=tiny', f'--data={rows}', '--out_dir=x')


def test_a_reward_needs_a_group(monkeypatch, rows, tmp_path):
    with pytest.raises(UserError, match='with a reward_coef group_size must be at least 2'):
        before_loop(monkeypatch, 'distill.py', '--model=tiny', '--teacher=tiny', f'--data={rows}', '--group_size=1', '--reward_coef=1',
                    f'--out_dir={tmp_path}/x')


# --- the comparison ------------------------------------------------------------------
def test_flops_of_a_run_by_hand():
    """2N for each token that student or teacher samples and for each that the teacher scores, 6N for each trained."""
    log = [{'tokens/sampled': 100, 'distill/teacher_sampled': 50, 'tokens/trained': 120, 'distill/teacher_scored': 120},
           {'eval/pass@1': 0.5}, {'tokens/trained': 80, 'distill/teacher_scored': 80}]
    assert comparison.tflop_of(log, 10 ** 9) == pytest.approx((2 * 150 + 2 * 200 + 6 * 200) / 1000)
    assert comparison.tflop_of([{'tokens/sampled': 100, 'tokens/trained': 40}], 10 ** 9) == pytest.approx((200 + 240) / 1000)


def test_the_table_has_the_tuned_rate_and_the_spread_of_three_seeds():
    method = comparison.METHODS[1]
    kept = {}
    for seed in (0, 1, 2, 3):
        for rate in method.rates:
            score = 0.5 + 0.1 * (rate == method.rates[1]) + 0.01 * seed
            kept[comparison.Run(method.name, rate, seed)] = {
                'curve': [(0, 0.2), (28, 0.4), (56, score)], 'tflop': 2.0, 'eval/pass@1/4': 0.3, 'made': 'today'}
    (row,) = [line for line in comparison.report(kept).split('\n') if line.startswith(f'| {method.name} |')]
    assert row == f'| {method.name} | {method.rates[1]:g} | 2.0 | 0.400 ± 0.000 | 0.620 ± 0.010 | 0.300 ± 0.000 |'
