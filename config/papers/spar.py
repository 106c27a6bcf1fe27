# group: pairs
# changes: the chosen side is the rejected one with the smallest edit that makes it right, not another sample
# paper: Cheng et al. 2024, SPaR (arXiv 2412.11605); a splice of two samples for its tree search
# baseline: python sample.py config/papers/spar.py --model=out/tiny_base --out=out/samples.jsonl
# baseline: python -m papers.spar --data=out/samples.jsonl --chosen=independent --out=out/pairs.jsonl
# baseline: python dpo.py config/tiny.py config/papers/spar.py
# variant: python sample.py config/papers/spar.py --model=out/tiny_base --out=out/samples.jsonl
# variant: python -m papers.spar --data=out/samples.jsonl --chosen=refined --out=out/pairs.jsonl
# variant: python dpo.py config/tiny.py config/papers/spar.py
# claim: refined pairs teach more than independent ones; LLaMA3-8B passes GPT-4-Turbo on IFEval
# outcome: shows with the paper's small SFT term: 0.432 against 0.143, which is below the start
#
# Of `search`, for a sum can be worked out in one way only: there the two kinds of pairs are the same.
if script == 'sample':
    data, limit, n, show = 'search:train', 1500, 4, 0
if script == 'dpo':
    data, eval_data = 'out/pairs.jsonl', ''
    loss_type, beta, sft_coef = 'dpo', 0.1, 0.1
    max_steps, eval_every = 45, 15
