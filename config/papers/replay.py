# group: data
# changes: half of each batch of a second task are rows of the first one, 200 of them again and again
# paper: Weyssow et al. 2023 (arXiv 2305.04106), as in its code: replay from a memory of 200 rows
# baseline: python -m papers.replay_rows
# baseline: python sft.py config/papers/sums.py --max_steps=40 --eval_every=0 --out_dir=out/first
# baseline: python sft.py config/papers/sums.py config/papers/replay.py --data=out/replay/new.jsonl
# variant: python -m papers.replay_rows
# variant: python sft.py config/papers/sums.py --max_steps=40 --eval_every=0 --out_dir=out/first
# variant: python sft.py config/papers/sums.py config/papers/replay.py
# measure: eval/pass@1/old, eval/pass@1/new
# claim: a code model tuned on one domain after the other forgets the earlier ones; replay and EWC forget less
# outcome: shows: keeps 0.585 of the old task, plain tuning 0.013; the new one has 0.906 instead of 0.985
#
# The first task is sums, the second asks for the largest digit (papers/replay_rows.py).
model = 'out/first'
data = 'out/replay/new.jsonl, out/replay/old.jsonl*40'  # 8,000 new rows, 200 old ones: half each
eval_prompts = 'out/replay/test.jsonl'
max_steps, eval_every = 40, 10
