# group: pairs
# changes: DPO on pairs of two weaker models: chosen from the better one of them, rejected from the other
# paper: Geng et al. 2025, The Delta Learning Hypothesis (arXiv 2507.06187); greedy pairs, dpo_norm, beta 5
# baseline: python sft.py config/papers/sums.py
# variant: python sft.py config/papers/sums.py --out_dir=out/policy --eval_prompts=
# variant: python sft.py config/papers/sums.py --max_steps=10 --out_dir=out/weak --eval_prompts=
# variant: python sample.py config/papers/delta_learning.py --model=out/weak --out=out/pairs.jsonl
# variant: python dpo.py config/papers/sums.py config/papers/delta_learning.py
# arms: --learning_rate=3e-6; --learning_rate=1e-5; --learning_rate=1e-5 --beta=1e-6 --sft_coef=1
# measure: eval/pass@1, eval/pass@1/9, eval/pass@1/10
# claim: pairs of 3B over 1.5B models teach an 8B policy as much as pairs of strong ones; SFT on them hurts
# outcome: does not show: at 1e-5 DPO and SFT on the chosen lose alike (-0.050, -0.047); at 3e-6 DPO no change
#
# The policy is the start model after 60 steps of SFT; chosen are answers after 10 steps, rejected those of
# the start model. The last arm is SFT on the chosen: with a beta of nearly 0 that term alone is left.
if script == 'sample':
    rejected_model, write = 'out/sums_base', 'pairs'
    data, limit = 'sums:train', 2000
    n, temperature, max_new_tokens, show = 1, 0.0, 40, 0
if script == 'dpo':
    model = 'out/policy'
    loss_type, beta, schedule = 'dpo_norm', 5.0, 'cosine'
    eval_every = 0
