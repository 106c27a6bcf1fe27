# The start model of the embedded task, trained from scratch: python sft.py config/tiny_base.py
model = 'tiny'
data = 'sums:base'
out_dir = 'out/tiny_base'
max_steps = 1000
batch_size = 64
learning_rate = 1e-3
eval_every = 250
log_every = 50
checkpoint_every = 500
