# group: policy gradients
# changes: advantages are not divided by the std, a completion's loss by a constant and not by its length
# paper: Liu et al. 2025, Understanding R1-Zero-Like Training (Dr. GRPO, arXiv 2503.20783)
# command: python grpo.py config/tiny.py --max_steps=72 --eval_every=24 --eval_samples=4
# claim: without these two biases wrong completions do not grow longer, with the same accuracy
# outcome: worse: -0.096 ± 0.029, on four digits -0.120 ± 0.022; at the baseline's learning rate
#
#     python grpo.py config/tiny.py config/papers/dr_grpo.py
advantage_std = False  # config/tiny.py has this too
loss_denominator = 'constant'  # max_new_tokens, whatever the length
clip_low, clip_high = 0.2, 0.2  # no effect with one update per rollout
