# group: policy gradients
# changes: token mean, groups without spread replaced by fresh ones, clip-higher, std of the group; no KL
# paper: Yu et al. 2025, DAPO (arXiv 2503.14476); its overlong punishment is papers/overlong.diff
# command: python grpo.py config/tiny.py --max_steps=72 --eval_every=24 --eval_samples=4
# claim: 50 points on AIME 2024 where GRPO has 30 (Qwen2.5-32B), in half the steps of R1-Zero
# outcome: cannot tell at equal steps, with more samples: -0.011 ± 0.063; a slow seed of three (0.422)
#
#     python grpo.py config/tiny.py config/papers/dapo.py
advantage_std = True  # as GRPO
loss_denominator = 'tokens'  # the mean over all tokens of the step
clip_low, clip_high = 0.2, 0.28  # clip-higher: no effect with one update per rollout
resample_rounds = 3  # dynamic sampling: a step samples more than the baseline's
beta = 0.0  # no KL
