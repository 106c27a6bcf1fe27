# group: pairs
# changes: a fixed number of annotations is divided between demonstrations for SFT and pairs for DPO
# paper: Raghavendra et al. 2025, Balancing the Budget (arXiv 2502.11284); settings of its config
# variant: python sample.py config/papers/budget.py --model=out/sums_base --out=out/pairs.jsonl
# variant: python -m papers.budget
# measure: 128/1, 128/0.5, 128/0.1, 128/0, 1024/1, 1024/0.5, 1024/0.1, 1024/0
# claim: up to 1,000 annotations SFT alone is best, then more and more pairs; DPO alone starts cold (GSM8K)
# outcome: of 128 no share is clearly best; of 1,024 pairs alone 0.656, SFT alone 0.599; rates not tuned
#
# A measure is annotations/share of demonstrations. The start model is not cold: it solves a quarter.
if script == 'sample':
    data, limit, n, write = 'sums:train', 2400, 4, 'pairs'
    max_new_tokens, show = 40, 0
if script in ('sft', 'dpo'):
    data = 'out/budget.jsonl'  # papers/budget.py writes it
    max_steps, epochs, batch_size = 0, 2.0, 16
    schedule, warmup_steps, eval_every = 'cosine', 1, 0
if script == 'sft':
    learning_rate = 3e-4
if script == 'dpo':
    learning_rate = 3e-5  # a tenth of SFT's, as in the paper
    loss_type, beta = 'dpo', 1.0
