# TULU 3 on Qwen3-4B-Base, which fits 8 x 80 GB; both files, in this order, for sft.py, dpo.py, grpo.py:
# torchrun --nproc-per-node 8 sft.py config/tulu3_8b.py config/tulu3_4b.py
model = {'sft': 'Qwen/Qwen3-4B-Base', 'dpo': 'out/tulu3_4b_sft', 'grpo': 'out/tulu3_4b_dpo'}.get(script)
out_dir = f'out/tulu3_4b_{script}'
