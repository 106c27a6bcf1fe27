# group: eliciting
# changes: all training rows are of one narrow task, here sums of two digits
# paper: Hewitt et al. 2024, Instruction Following without Instruction Tuning (arXiv 2409.14254), single-task
# baseline: python -m papers.eliciting_rows --rows=instruction --out=out/rows.jsonl
# baseline: python sft.py config/papers/sums.py --data=out/rows.jsonl --max_steps=30 --eval_every=10
# variant: python -m papers.eliciting_rows --rows=single-task --out=out/rows.jsonl
# variant: python sft.py config/papers/sums.py config/papers/single_task.py
# tune: learning_rate 3e-5 1e-4 3e-4 on sums:tune
# claim: tuning on poems, recipes or Python alone makes a model follow instructions of all kinds
# outcome: shows: two-digit sums alone are better than all (+0.065 ± 0.006), not on the hardest (-0.173)
#
# Early stopping is part of the method: in the end the narrow format takes over.
data = 'out/rows.jsonl'
max_steps, eval_every = 30, 10
