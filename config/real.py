# A real model on real rows: SmolLM2-135M-Instruct on SVAMP's word problems (examples/svamp), by sft.py, then
# grpo.py; sample.py measures after each. `make real` runs all of it: docs/real.txt has what comes out.
# One knob, SCALE: 1 is for two CPU cores; `SCALE=8 make real` is for a GPU.
import os
_scale = int(os.environ.get('SCALE', 1))
model = 'out/real_sft' if script == 'grpo' else 'out/smollm2'
max_new_tokens = 64  # a demonstration has 17 in the mean

if script in ('sft', 'grpo'):
    out_dir = f'out/real_{script}'
    data = 'examples/svamp/train.jsonl'
    eval_prompts = ''  # sample.py measures, on the test rows, at the temperature of training
    micro_batch_tokens = 2048 * _scale
    log_every, checkpoint_every = 1, 25
if script == 'sft':  # 1.3 epochs: the form of an answer. 200 steps alone reach more than GRPO after these
    eval_data = 'examples/svamp/test.jsonl'
    eval_every = 0
    batch_size, max_steps = 16, 60
    learning_rate, schedule, warmup_steps = 1e-4, 'cosine', 5
if script == 'grpo':
    prompts_per_step, group_size, max_steps = 8 * _scale, 8, 120
    advantage_std = False
    learning_rate, schedule, warmup_steps = 1e-5, 'constant', 5
    sample_every = 10
if script == 'sample':
    data = 'examples/svamp/test.jsonl'
    n, temperature = 4, 1.0
