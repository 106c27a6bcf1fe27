# The teacher of the embedded task, from the model of config/tiny_base.py: a minute or two.
#
#     python sft.py config/tiny_teacher.py
#
# It learns all demonstrations, and with a decaying learning rate: it solves more than the models
# that the methods are compared on.
model = 'out/tiny_base'
data = 'search:train'
eval_data = eval_prompts = 'search:test'
out_dir = 'out/tiny_teacher'
batch_size, max_steps = 32, 800
learning_rate, schedule, beta2 = 6e-4, 'cosine', 0.99
eval_every = 400
eval_temperature = 1.0
log_every = 50
