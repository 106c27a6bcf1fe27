# A real model on real rows: SmolLM2-135M-Instruct on SVAMP's word problems (examples/svamp).
#
# `make real` trains it with sft.py, then with grpo.py. sample.py measures before and after each.
# docs/real.txt has the results. SCALE=1, the default, is for two CPU cores, `SCALE=8 make real` for
# a GPU. `python -m tools.results real` compares methods with these settings.
import os
_scale = int(os.environ.get('SCALE', 1))
model = 'out/real_sft' if script == 'grpo' else 'out/smollm2'
max_new_tokens = 64  # a demonstration has 17 on average

if script in ('sft', 'grpo', 'hpt', 'distill'):
    out_dir = f'out/real_{script}'
    data = 'examples/svamp/train.jsonl'
    eval_prompts = ''  # sample.py measures instead, at the temperature of training
    micro_batch_tokens = 2048 * _scale
    log_every, checkpoint_every = 1, 25
if script == 'sft':
    # 1.3 epochs, enough to learn the form of an answer. SFT alone with 200 steps ends higher than
    # these 60 steps and GRPO.
    eval_data = 'examples/svamp/test.jsonl'
    eval_every = 0
    batch_size, max_steps = 16, 60
    learning_rate, schedule, warmup_steps = 1e-4, 'cosine', 5
if script in ('grpo', 'hpt'):
    prompts_per_step, group_size, max_steps = 8 * _scale, 8, 120
    advantage_std = False
    learning_rate, schedule, warmup_steps = 1e-5, 'constant', 5
    sample_every = 10
if script == 'hpt':
    sft_coef = 0.01  # as on the embedded task
if script == 'distill':
    # the model of SFT and GRPO teaches the start model
    teacher = 'out/real_grpo'
    prompts_per_step, group_size, max_steps = 16 * _scale, 2, 24
    learning_rate, schedule, warmup_steps = 1e-4, 'cosine', 5
if script == 'sample':
    data = 'examples/svamp/test.jsonl'
    n, temperature = 4, 1.0
