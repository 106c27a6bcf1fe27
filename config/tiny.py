# The embedded task for all scripts, from the model of config/tiny_base.py:
#
#     python grpo.py config/tiny.py
model = 'out/tiny_base'
out_dir = f'out/tiny_{script}'
eval_prompts = 'sums:test'
max_new_tokens = 40
log_every = 5

if script == 'sft':
    # demonstrations instead of rewards
    data = 'sums:train'
    eval_data = 'sums:test'
    max_steps = 100
    learning_rate = 3e-4
if script == 'dpo':
    # pairs of the start model's own completions; `make dpo` samples them
    data, eval_data = 'out/tiny_pairs.jsonl', 'out/tiny_eval_pairs.jsonl'
    epochs, warmup_steps, learning_rate, eval_every = 2.0, 5, 1e-4, 15
if script in ('grpo', 'hpt', 'prefix_rft'):
    data = 'sums:train'
    prompts_per_step, group_size = 64, 8
    # True gives the hopeless sums most weight, and the policy learns to guess
    advantage_std = False
    learning_rate, schedule, beta2 = 1e-4, 'linear', 0.99
    max_steps = 60
    eval_every = 20
    sample_every = 20
    checkpoint_every = 50
if script == 'prefix_rft':
    prefix_steps = 60  # the whole run, as in the paper
if script == 'hpt':
    # small, because the RL loss is a mean over all completions. 0.01, 0.1 and 1 ended lower, each
    # lower than the one before.
    sft_coef = 0.003
