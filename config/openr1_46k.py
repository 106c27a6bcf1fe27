# OpenR1-Math: 46,000 problems with one demonstration each. For 8 x 80 GB. Not run here.
#
#     torchrun --nproc-per-node 8 hpt.py config/openr1_46k.py
#
# prefix_rft.py and grpo.py take this file too. sft.py is the baseline (recipe of arXiv 2604.23747).
model = 'Qwen/Qwen2.5-Math-7B'
rope_theta, max_position_embeddings = 40000.0, 16384  # its own are 10000 and 4,096: too short
shard = 'all'  # 7B does not fit otherwise; one GPU: --shard=optimizer --lora_rank=32
out_dir = f'out/openr1_{script}'
data = 'hf://datasets/Elliott/Openr1-Math-46k-8192/openr1.parquet'  # needs pyarrow
eval_prompts = 'hf://datasets/HuggingFaceH4/MATH-500/test.jsonl'
verifier = 'math'
max_new_tokens = 8192
micro_batch_tokens = 16384
activation_checkpointing = True
dtype = 'bfloat16'
weight_decay = 0.01
beta1, beta2 = 0.9, 0.999

if script == 'sft':
    eval_data = ''
    # 215 steps of warm-up are 10 %
    batch_size, epochs, max_steps, max_length = 64, 3.0, 0, 9216
    learning_rate, min_learning_rate, schedule, warmup_steps = 5e-5, 5e-6, 'cosine', 215
if script in ('grpo', 'hpt', 'prefix_rft'):
    prompts_per_step, group_size, max_prompt_tokens, temperature = 128, 8, 1024, 1.0
    updates_per_rollout = 2  # of 64 prompts each
    advantage_std, loss_denominator, schedule, warmup_steps = False, 'constant', 'constant', 0
    kv_cache_gb, importance_cap, learning_rate = 24.0, 2.0, 1e-6
    max_steps, eval_every, checkpoint_every = 1000, 20, 100  # 1,000 updates are 500 rollouts
if script in ('hpt', 'prefix_rft'):
    max_length, without_demonstration = 9216, 'drop'
if script == 'hpt':
    learning_rate, gamma = 5e-6, 0.0  # gamma 0.25 for Llama-3.1-8B
    # the authors sum the RL loss over 512 completions and average it over 8 GPUs: 64 times a mean
    sft_coef, rl_coef = 1.0, 64.0
if script == 'prefix_rft':
    n_prefix, prefix_steps, prefix_entropy = 1, 1000, 0.2
