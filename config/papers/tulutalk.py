# group: data
# changes: a filter by quality gives rows back to the categories whose share of the rows it lowered
# paper: Djuhera et al. 2025, Fixing It in Post (TuluTalk, arXiv 2506.06522), notes; not confirmed: tau
# baseline: python -m papers.tulutalk_pool --out=out/pool.jsonl
# baseline: python -m papers.tulutalk --data=out/pool.jsonl --fallback=False --out=out/rows.jsonl
# baseline: python sft.py config/papers/sums.py config/papers/tulutalk.py
# variant: python -m papers.tulutalk_pool --out=out/pool.jsonl
# variant: python -m papers.tulutalk --data=out/pool.jsonl --fallback=True --out=out/rows.jsonl
# variant: python sft.py config/papers/sums.py config/papers/tulutalk.py
# claim: the filter alone costs IFEval 1.6 points, the fallback repairs it; 51.6 on average, TULU's mix 51.4
# outcome: shows against the filter alone: hardest +0.108 ± 0.003, all -0.016 ± 0.008; a pool made for it
#
# Made to measure: the reward is a log-prob under the start model, so that the filter drops long sums.
data = 'out/rows.jsonl'
