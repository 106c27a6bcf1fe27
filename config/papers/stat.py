# group: data
# changes: SFT goes on with rows that have the addition facts which the student gets wrong, not with any rows
# paper: He et al. 2025, Skill-Targeted Adaptive Training (STAT-Sel, arXiv 2510.10023); a program as teacher
# baseline: python sft.py config/papers/sums.py --out_dir=out/first --eval_prompts=
# baseline: python sft.py config/papers/sums.py --model=out/first
# variant: python sft.py config/papers/sums.py --out_dir=out/first --eval_prompts=
# variant: python sample.py config/papers/stat.py --model=out/first --out=out/samples.jsonl
# variant: python -m papers.stat --data=out/samples.jsonl --n_rows=3840 --out=out/rows.jsonl
# variant: python sft.py config/papers/sums.py config/papers/stat.py --model=out/first
# claim: MATH 51.5 against 44.8 with SFT on any rows and 44.0 before (a student of 3B)
# outcome: no difference at the end (-0.005 ± 0.007): this student fails at long sums, not at single facts
if script == 'sample':
    data, limit, n = 'sums:train', 500, 4
    max_new_tokens, show = 40, 0
if script == 'sft':
    data = 'out/rows.jsonl'
