# group: pretraining
# changes: before it is tuned on sums in digits, the model reads plain text with sums in digits and letters
# paper: Uppaal et al. 2024, Continued Pre-Training for Generative UDA (arXiv 2401.17514); from its abstract
# baseline: python -m papers.cpt_uda --data=sums:test --write=tests --out=out/tests.jsonl
# baseline: python sft.py config/papers/sums.py --eval_prompts=out/tests.jsonl
# variant: python -m papers.cpt_uda --data=sums:test --write=tests --out=out/tests.jsonl
# variant: python -m papers.cpt_uda --data=sums:train --out=out/text.jsonl
# variant: python sft.py config/papers/sums.py config/papers/cpt_uda.py
# variant: python sft.py config/papers/sums.py --model=out/cpt --eval_prompts=out/tests.jsonl
# claim: continued pre-training on text of both domains is competitive with domain-invariant features
# outcome: does not show: 0.016 against 0.039 without the text, and 0.039 is guessing
#
# Adaptation without labels (UDA): the source domain is sums in digits, with replies; the target the same
# sums with the letters a to j for 0 to 9, of which there is only text. The text shows them solved, which
# replaces words that tell the class; it never shows a turn, or a letter beside its digit.
data = 'out/text.jsonl'
eval_prompts = ''
max_steps = 150
learning_rate = 1e-3
out_dir = 'out/cpt'
