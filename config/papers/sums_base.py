# The start model of the task `sums` (embedded.py), on which many papers are tried; two minutes.
#
#     python sft.py config/papers/sums_base.py
#
# Its rows work a sum out in 40 % and guess a wrong number in 60 %: it can add and mostly does not
# show it. So greedily it nearly always guesses.
model = 'tiny'
data = 'sums:base'
eval_data = ''
eval_prompts = 'sums:test'
out_dir = 'out/sums_base'
max_steps = 1000
batch_size = 64
learning_rate = 1e-3
max_new_tokens = 40
eval_every = 500
log_every = 50
checkpoint_every = 500
