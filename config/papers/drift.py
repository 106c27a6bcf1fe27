# group: pairs
# changes: the rejected side stays a failure that was stored; the chosen one is sampled anew each iteration
# paper: Wang et al. 2025, DRIFT (arXiv 2510.02341), settings of its code; without its prompt to improve
# baseline: python sample.py config/papers/drift.py --model=out/sums_base --out=out/stored.jsonl
# baseline: python -m papers.drift --data=out/stored.jsonl --out=out/pairs.jsonl
# baseline: python dpo.py config/papers/sums.py config/papers/drift.py --out_dir=out/dpo1
# baseline: python sample.py config/papers/drift.py --model=out/dpo1 --out=out/samples1.jsonl
# baseline: python -m papers.drift --data=out/samples1.jsonl --out=out/pairs.jsonl
# baseline: python dpo.py config/papers/sums.py config/papers/drift.py --model=out/dpo1 --out_dir=out/dpo2
# baseline: python sample.py config/papers/drift.py --model=out/dpo2 --out=out/samples2.jsonl
# baseline: python -m papers.drift --data=out/samples2.jsonl --out=out/pairs.jsonl
# baseline: python dpo.py config/papers/sums.py config/papers/drift.py --model=out/dpo2
# variant: python sample.py config/papers/drift.py --model=out/sums_base --out=out/stored.jsonl
# variant: python -m papers.drift --data=out/stored.jsonl --rejected=out/stored.jsonl --out=out/pairs.jsonl
# variant: python dpo.py config/papers/sums.py config/papers/drift.py --out_dir=out/dpo1
# variant: python sample.py config/papers/drift.py --model=out/dpo1 --out=out/samples1.jsonl
# variant: python -m papers.drift --data=out/samples1.jsonl --rejected=out/stored.jsonl --out=out/pairs.jsonl
# variant: python dpo.py config/papers/sums.py config/papers/drift.py --model=out/dpo1 --out_dir=out/dpo2
# variant: python sample.py config/papers/drift.py --model=out/dpo2 --out=out/samples2.jsonl
# variant: python -m papers.drift --data=out/samples2.jsonl --rejected=out/stored.jsonl --out=out/pairs.jsonl
# variant: python dpo.py config/papers/sums.py config/papers/drift.py --model=out/dpo2
# measure: eval/pass@1, eval/pass@1/9, eval/pass@1/10
# claim: WildBench (7B) 51.7 against 46.3 of iterated DPO; it gains until iteration 4, the others peak at 1
# outcome: does not show: 0.364 against 0.519 of iterated DPO (-0.155 ± 0.099, three very different seeds)
#
# The baseline is iterated DPO: of four samples the answer of the majority against the rarest one.
if script == 'sample':
    data, limit = 'sums:train', 1000
    n, temperature, max_new_tokens, show = 4, 0.7, 40, 0
if script == 'dpo':
    loss_type, beta, sft_coef = 'dpo', 0.1, 0.001
    max_steps, eval_every = 15, 5
