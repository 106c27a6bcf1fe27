# group: eliciting
# changes: the prompts of the training rows are empty: a reply has nothing that it could depend on
# paper: Hewitt et al. 2024, Instruction Following without Instruction Tuning (arXiv 2409.14254)
# baseline: python -m papers.eliciting_rows --rows=instruction --out=out/rows.jsonl
# baseline: python sft.py config/papers/sums.py --data=out/rows.jsonl --max_steps=30 --eval_every=10
# variant: python -m papers.eliciting_rows --rows=response --out=out/rows.jsonl
# variant: python sft.py config/papers/sums.py config/papers/response_only.py
# tune: learning_rate 3e-5 1e-4 3e-4 on sums:tune
# claim: response-tuned Llama-2-7B wins 43 % of comparisons with the instruction-tuned one, its base far fewer
# outcome: does not show: 0.083 ± 0.001, with prompts 0.592; the start model has 0.024
#
# Early stopping is part of the method: the paper chooses 5 epochs for it and 15 for instruction tuning.
data = 'out/rows.jsonl'
max_steps, eval_every = 30, 10
