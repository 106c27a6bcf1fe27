# The start model of the embedded task, trained from scratch: python sft.py config/tiny_base.py
model = 'tiny'
data = 'search:base'
eval_data = 'search:test'
eval_prompts = 'search:test'
out_dir = 'out/tiny_base'
max_steps = 1400
batch_size = 32
learning_rate, beta2 = 2e-3, 0.99
eval_every = 700
eval_temperature = 1.0
log_every = 50
checkpoint_every = 500
