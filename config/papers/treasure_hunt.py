# group: data
# changes: replies begin with markers of quality and level; prompts end with those not dropped by chance
# paper: D'souza et al. 2025, Treasure Hunt (arXiv 2506.14702); two markers here, there up to 90
# baseline: python sft.py config/papers/sums_base.py config/papers/treasure_hunt.py
# variant: python -m papers.treasure_hunt --data=sums:base --out=out/marked.jsonl
# variant: python -m papers.treasure_hunt --data=sums:test --quality=w --out=out/asked.jsonl
# variant: python sft.py config/papers/sums_base.py config/papers/treasure_hunt.py --data=out/marked.jsonl
# arms: --eval_prompts=out/asked.jsonl; --eval_prompts=sums:test
# claim: markers in training lift the win rate from 32.1 to 37.8, in rare domains by 9.1 points
# outcome: shows if asked for: 0.342 with w in the prompt, 0.180 unmarked; unasked 0.154; not on the hardest
#
# The model from scratch, in 600 steps. The quality is w (worked out, 40 % of the rows) or g (guessed,
# always wrong). A prompt of the first arm asks for w and tells its level; one of the second has no
# markers, and the reply begins with those that the model infers. pass@1 is at temperature 1.
out_dir = 'out/treasure_hunt'
max_steps, eval_every = 600, 300
learning_rate = 2e-3
eval_samples, eval_temperature = 2, 1.0
max_new_tokens = 48
