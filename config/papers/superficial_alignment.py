# group: eliciting
# changes: 16 to 4,096 rows in as many steps; errors of form and of arithmetic are counted apart
# paper: Raghavendra et al. 2024, Revisiting the Superficial Alignment Hypothesis (arXiv 2410.03717); notes
# variant: python -m papers.eliciting_rows --rows=instruction --n_rows=16 --out=out/16.jsonl
# variant: python sft.py config/papers/superficial_alignment.py --data=out/16.jsonl --out_dir=out/16
# variant: python sample.py config/papers/superficial_alignment.py --model=out/16 --out=out/test_16.jsonl
# variant: python -m papers.eliciting_rows --rows=instruction --n_rows=64 --out=out/64.jsonl
# variant: python sft.py config/papers/superficial_alignment.py --data=out/64.jsonl --out_dir=out/64
# variant: python sample.py config/papers/superficial_alignment.py --model=out/64 --out=out/test_64.jsonl
# variant: python -m papers.eliciting_rows --rows=instruction --n_rows=256 --out=out/256.jsonl
# variant: python sft.py config/papers/superficial_alignment.py --data=out/256.jsonl --out_dir=out/256
# variant: python sample.py config/papers/superficial_alignment.py --model=out/256 --out=out/test_256.jsonl
# variant: python -m papers.eliciting_rows --rows=instruction --n_rows=1024 --out=out/1024.jsonl
# variant: python sft.py config/papers/superficial_alignment.py --data=out/1024.jsonl --out_dir=out/1024
# variant: python sample.py config/papers/superficial_alignment.py --model=out/1024 --out=out/test_1024.jsonl
# variant: python -m papers.eliciting_rows --rows=instruction --n_rows=4096 --out=out/4096.jsonl
# variant: python sft.py config/papers/superficial_alignment.py --data=out/4096.jsonl --out_dir=out/4096
# variant: python sample.py config/papers/superficial_alignment.py --model=out/4096 --out=out/test_4096.jsonl
# variant: python -m papers.superficial_alignment --data=out/test_SIZE.jsonl
# measure: format@16, format@64, arithmetic@16, arithmetic@64, arithmetic@4096, slope, r2
# claim: errors of form stop falling at about 100 rows, those of reasoning fall on, a power of the rows
# outcome: form: right from 16 rows on; arithmetic errors 0.586 to 0.381, but no lower than with 1,024 rows
#
# slope and r2 are of log(share of arithmetic errors) over log(rows).
if script == 'sft':
    model, data = 'out/sums_base', 'out/16.jsonl'
    batch_size, max_steps = 64, 60  # with few rows more epochs
    learning_rate, warmup_steps = 3e-4, 5
    eval_data = eval_prompts = ''  # sample.py answers the prompts
    log_every = 10
if script == 'sample':
    data, n, temperature, max_new_tokens = 'sums:test', 1, 0.0, 40
