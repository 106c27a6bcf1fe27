# TULU 3 8B (arXiv 2411.15124) with its public model and data sets: sft.py, then dpo.py, then
# grpo.py with TULU 3.1's settings. For 8 x 80 GB. Not run here.
#
#     torchrun --nproc-per-node 8 sft.py config/tulu3_8b.py
model = {'sft': 'meta-llama/Llama-3.1-8B', 'dpo': 'out/tulu3_8b_sft', 'grpo': 'out/tulu3_8b_dpo'}.get(script)
chat_template = 'config/tulu3.jinja' if script == 'sft' else ''  # later it is in the checkpoint
out_dir = f'out/tulu3_8b_{script}'
shard = 'all'  # 8B does not fit otherwise; one GPU: --shard=optimizer --lora_rank=32
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
if script == 'grpo':
    # A right completion has reward 1 here and 10 in TULU 3. The advantages are the same, because
    # they are divided by the standard deviation of the rewards.
    # Each row names its verifier. The file needs pyarrow.
    data = 'hf://datasets/allenai/RLVR-GSM-MATH-IF-Mixed-Constraints/data/train-*.parquet'
    prompts_per_step, group_size, updates_per_rollout = 48, 16, 2
    max_prompt_tokens, max_new_tokens, temperature, kv_cache_gb = 2048, 2048, 1.0, 24.0
    beta, clip_low, clip_high, loss_denominator = 0.01, 0.2, 0.2, 'tokens'
    learning_rate, schedule, warmup_steps, importance_cap = 5e-7, 'constant', 0, 2.0
    max_steps, checkpoint_every = 5208, 100  # 2 million completions
