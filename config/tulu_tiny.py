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
    max_steps, batch_size, learning_rate, schedule, warmup_steps = 30, 32, 1e-3, 'linear', 5
    eval_every = 30
if script == 'dpo':
    # as in the paper: the length-normalised loss, beta 5, one epoch
    data, eval_data = 'out/tulu_tiny_pairs.jsonl', ''
    loss_type, beta, epochs, learning_rate, schedule, warmup_steps = 'dpo_norm', 5.0, 1.0, 3e-4, 'linear', 5
    # not in the paper; at this learning rate DPO ruined two models of three without it (docs/results.md)
    sft_coef = 3.0
    eval_every = 20
if script == 'grpo':
    data = 'search:train'
    # as in config/tiny.py
    prompts_per_step, group_size, max_steps = 32, 8, 60
    advantage_std, loss_denominator = False, 'sequences'
    learning_rate, beta2 = 3e-4, 0.99
    eval_every = sample_every = 20
