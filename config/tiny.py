# The embedded task for all scripts, from the model of config/tiny_base.py:
#
#     python grpo.py config/tiny.py
model = 'out/tiny_base'
out_dir = f'out/tiny_{script}'
eval_prompts = 'search:test'
eval_temperature = 1.0  # greedy decoding repeats one attempt until it is cut
max_new_tokens = 128
log_every = 5

if script == 'sft':
    # demonstrations instead of rewards
    data = 'search:train'
    eval_data = 'search:test'
    batch_size, max_steps = 32, 200
    learning_rate = 1e-3
if script == 'dpo':
    # pairs of the start model's own completions; `make dpo` samples them
    data, eval_data = 'out/tiny_pairs.jsonl', 'out/tiny_eval_pairs.jsonl'
    epochs, warmup_steps, learning_rate, eval_every = 6.0, 5, 3e-4, 30
    # without this term the chosen completions become improbable too, and others come in their place
    sft_coef = 3.0
if script in ('grpo', 'hpt', 'prefix_rft', 'distill'):
    data = 'search:train'
    prompts_per_step, group_size = 32, 8  # 64 and half the steps gave less (docs/results.md)
    # dividing by the group's std would give problems that are rarely solved most weight
    advantage_std = False
    learning_rate, beta2 = 3e-4, 0.99
    max_steps = 96
    eval_every, sample_every, checkpoint_every = 24, 48, 50
if script == 'grpo':
    loss_denominator = 'sequences'  # a long completion weighs no more than a short one
if script == 'distill':
    teacher = 'out/tiny_teacher'  # python sft.py config/tiny_teacher.py
    # small batches and many steps (docs/distill.md)
    prompts_per_step, group_size, max_steps, eval_every = 16, 4, 112, 28
if script == 'prefix_rft':
    prefix_steps = 96  # the whole run, as in the paper
if script == 'hpt':
    sft_coef = 0.01  # small, because the RL loss is a mean over all completions; 0.1 was slower
