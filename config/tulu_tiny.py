# TULU 3's pipeline (arXiv 2411.15124) in miniature, on the embedded task and a CPU: `make tulu`.
#
# The model of config/tiny_base.py stands for the pretrained one. Then come sft.py on few
# demonstrations, dpo.py on pairs of the model's own completions, and grpo.py.
model = {'sft': 'out/tiny_base', 'dpo': 'out/tulu_tiny_sft', 'grpo': 'out/tulu_tiny_dpo'}.get(script)
out_dir = f'out/tulu_tiny_{script}'
eval_prompts = 'search:test'
eval_temperature = 1.0
max_new_tokens = 128
log_every = 10

if script == 'sft':
    data, eval_data = 'search:train', 'search:test'
    max_steps, batch_size, learning_rate, schedule, warmup_steps = 15, 32, 3e-4, 'linear', 5
    eval_every = 30
if script == 'dpo':
    # as in the paper: the length-normalised loss, beta 5, one epoch
    data, eval_data = 'out/tulu_tiny_pairs.jsonl', ''
    loss_type, beta, epochs, learning_rate, schedule, warmup_steps = 'dpo_norm', 5.0, 1.0, 5e-5, 'linear', 5
    eval_every = 20
if script == 'grpo':
    data = 'search:train'
    prompts_per_step, group_size, max_steps, advantage_std = 64, 8, 40, False
    learning_rate, schedule, warmup_steps, beta2 = 2e-4, 'linear', 5, 0.99
    eval_every = sample_every = 20
