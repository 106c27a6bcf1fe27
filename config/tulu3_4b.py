# TULU 3 on Qwen3-4B-Base, for 8 x 80 GB. This file changes config/tulu3_8b.py: give both, in
# this order, to sft.py, then to dpo.py, then to grpo.py.
#
#     torchrun --nproc-per-node 8 sft.py config/tulu3_8b.py config/tulu3_4b.py
model = {'sft': 'Qwen/Qwen3-4B-Base', 'dpo': 'out/tulu3_4b_sft', 'grpo': 'out/tulu3_4b_dpo'}.get(script)
out_dir = f'out/tulu3_4b_{script}'
shard = 'optimizer'  # 4B fits, and gathers no weights
