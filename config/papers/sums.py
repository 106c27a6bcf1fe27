# The task `sums` for all scripts, from the model of config/papers/sums_base.py:
#
#     python sft.py config/papers/sums.py
#
# Evaluations are greedy. The levels are the numbers of digits to add, 2 to 10; of 9 and 10 the start
# model has seen none.
model = 'out/sums_base'
out_dir = f'out/sums_{script}'
eval_prompts = 'sums:test'
max_new_tokens = 40
log_every = 10

if script == 'sft':
    data, eval_data = 'sums:train', ''
    batch_size, max_steps = 64, 60
    learning_rate, warmup_steps = 3e-4, 5
    eval_every = 20
if script == 'dpo':
    data, eval_data = 'out/pairs.jsonl', ''
    learning_rate, warmup_steps = 1e-4, 5
    eval_every = 15
if script in ('grpo', 'hpt', 'prefix_rft'):
    data = 'sums:train'
    prompts_per_step, group_size = 64, 8
    # True gives the hopeless sums most weight, and the policy learns to guess
    advantage_std = False
    learning_rate, schedule, beta2 = 1e-4, 'linear', 0.99
    max_steps = 60
    eval_every, sample_every = 20, 20
