# TULU 3 8B (arXiv 2411.15124) under its public names, sft.py and then dpo.py, for example
# torchrun --nproc-per-node 8 dpo.py config/tulu3_8b.py. 8B does not fit 80 GB GPUs this way (memory plan).
model = 'meta-llama/Llama-3.1-8B' if script == 'sft' else 'out/tulu3_8b_sft'
chat_template = 'config/tulu3.jinja' if script == 'sft' else ''  # afterwards the checkpoint has it
out_dir = f'out/tulu3_8b_{script}'
activation_checkpointing = True
micro_batch_tokens = 16384
dtype = 'bfloat16'
eval_prompts = ''
weight_decay = 0.0
schedule = 'linear'

if script == 'sft':
    data = 'hf://datasets/allenai/tulu-3-sft-mixture/data/train-*.parquet'  # needs pyarrow
    eval_data = ''
    max_steps, epochs, batch_size, max_length, overlong = 0, 2.0, 128, 4096, 'cut'
    learning_rate, warmup_steps, checkpoint_every = 5e-6, 440, 1000  # warm-up 3 %
if script == 'dpo':
    data = 'hf://datasets/allenai/llama-3.1-tulu-3-8b-preference-mixture/data/train-*.parquet'
    eval_data = ''
    loss_type, beta = 'dpo_norm', 5.0
    max_steps, epochs, batch_size, max_length, overlong = 0, 1.0, 128, 2048, 'cut'
    learning_rate, warmup_steps, checkpoint_every = 5e-7, 212, 500  # warm-up 10 %
