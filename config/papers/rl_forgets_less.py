# group: policy gradients
# changes: a model that has learned one set of tasks goes on with another by GRPO, and not by SFT
# paper: Lai et al. 2025, Reinforcement Fine-Tuning Naturally Mitigates Forgetting (arXiv 2507.05386)
# baseline: python -m papers.levels --data=sums:train --levels=2,3,4,5,6 --out=out/old.jsonl
# baseline: python -m papers.levels --data=sums:train --levels=7,8 --out=out/new.jsonl
# baseline: python sft.py config/papers/sums.py --data=out/old.jsonl --out_dir=out/first
# baseline: python sft.py config/papers/sums.py config/papers/rl_forgets_less.py
# baseline: python -m papers.forgetting
# variant: python -m papers.levels --data=sums:train --levels=2,3,4,5,6 --out=out/old.jsonl
# variant: python -m papers.levels --data=sums:train --levels=7,8 --out=out/new.jsonl
# variant: python sft.py config/papers/sums.py --data=out/old.jsonl --out_dir=out/first
# variant: python grpo.py config/papers/sums.py config/papers/rl_forgets_less.py
# variant: python -m papers.forgetting
# measure: eval/old, eval/new, eval/forgotten
# claim: seven tasks in turn (Qwen2.5-VL-7B): SFT loses 10.4 points of the earlier ones, GRPO 2.3
# outcome: reversed: GRPO loses 0.420 of the old sums, SFT 0.022, and learns less; but one skill serves both
#
# Old are the sums of 2 to 6 digits, new those of 7 and 8: a mild stream, whose tasks share a skill. Both
# have the learning rates of config/papers/sums.py. (At 3e-5 GRPO keeps the old and learns nothing new;
# one seed.)
model = 'out/first'
data = 'out/new.jsonl'
out_dir = 'out/second'
max_steps = 40
