# Qwen3-0.6B-Base on one GPU, for all scripts: python grpo.py config/qwen3_0.6b.py
model = 'Qwen/Qwen3-0.6B-Base'
out_dir = f'out/qwen3_0.6b_{script}'
activation_checkpointing = True
micro_batch_tokens = 16384
dtype = 'bfloat16'
log_every = 1

if script == 'sft':
    # TULU 3's batch, epochs and schedule (linear, warm-up 3 %)
    data = 'hf://datasets/allenai/tulu-3-sft-mixture/data/train-*.parquet'  # needs pyarrow
    eval_data = eval_prompts = ''
    max_steps, epochs, batch_size, max_length = 0, 2.0, 128, 4096
    learning_rate, schedule, warmup_steps = 5e-6, 'linear', 100
    checkpoint_every = 500
if script == 'dpo':
    # TULU 3's settings, on UltraFeedback; it starts from sft.py's model
    model = 'out/qwen3_0.6b_sft'
    data = 'hf://datasets/HuggingFaceH4/ultrafeedback_binarized/data/train_prefs-*.parquet'
    eval_data = 'hf://datasets/HuggingFaceH4/ultrafeedback_binarized/data/test_prefs-*.parquet'
    eval_prompts = ''
    loss_type, beta, max_steps, epochs, batch_size, max_length = 'dpo_norm', 5.0, 0, 1.0, 128, 2048
    learning_rate, schedule, warmup_steps = 5e-7, 'linear', 48
    eval_every, checkpoint_every = 100, 200
if script in ('grpo', 'hpt', 'prefix_rft', 'distill'):
    data = 'hf://datasets/openai/gsm8k/main/train-00000-of-00001.parquet'  # needs pyarrow
    eval_prompts = 'hf://datasets/openai/gsm8k/main/test-00000-of-00001.parquet'
    instruction = 'Please reason step by step, and put your final answer within \\boxed{}.'
    prompts_per_step, group_size, max_new_tokens, max_prompt_tokens = 32, 8, 2048, 1024
    advantage_std, learning_rate, schedule, warmup_steps = False, 1e-6, 'constant', 10
    kv_cache_gb, importance_cap = 24.0, 2.0
    max_steps, eval_every, sample_every, checkpoint_every = 300, 25, 5, 50
if script == 'distill':
    # settings of nobody's run: the learning rate is a guess
    teacher = 'Qwen/Qwen3-4B-Instruct-2507'  # Qwen3-4B would think, longer than max_new_tokens
    prompts_per_step, group_size, learning_rate = 64, 4, 5e-6
