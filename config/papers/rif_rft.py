# group: policy gradients
# changes: the start model samples each prompt 8 times; those that it solves always or never are left out
# paper: Lai et al. 2025, RIF-RFT (arXiv 2507.05386); not confirmed: its threshold and number of rollouts
# baseline: python grpo.py config/papers/sums.py --max_steps=40
# variant: python sample.py --model=out/sums_base --data=sums:train --limit=3000 --n=8 --write=prompts
# variant: python grpo.py config/papers/sums.py config/papers/rif_rft.py
# claim: leaving out samples without a usable reward makes training more efficient
# outcome: a little: +0.036 ± 0.016, at half the steps +0.029 ± 0.001; the filter samples more than the run
#
# The filter's rollouts come on top: 24,000, more than the 20,480 of the training itself.
data = 'out/samples.jsonl'  # what sample.py wrote
max_steps = 40
