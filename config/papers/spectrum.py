# group: data
# changes: a row is a conversation of twenty draws from one described distribution, each draw trained
# paper: Sorensen et al. 2025, Spectrum Tuning (arXiv 2510.06084); here draws of digits, not its 90 tasks
# baseline: python -m papers.spectrum --turns=1 --dropout=0
# baseline: python sft.py config/papers/spectrum.py --batch_size=320 --out_dir=out/first
# baseline: python -m papers.spectrum_calibration --model=out/first
# variant: python -m papers.spectrum
# variant: python sft.py config/papers/spectrum.py --out_dir=out/first
# variant: python -m papers.spectrum_calibration --model=out/first
# measure: tv/0, tv/4, tv/16, valid/16
# claim: follows examples as well as the pretrained model or better (Gemma, number game: 70.2 against 64.3)
# outcome: shows: after 16 draws 0.160 from the true chances, single rows 0.247; before any 0.328, 0.303
#
# A model from scratch; in both arms 320 draws a step, in the baseline each with its description. tv/K is
# its distance from the true chances after K draws in the prompt: 0.29 for one that gives all described
# digits the same chance; 0.19 and 0.12 after 4 and 16 draws for one that counts as well as possible.
model = 'tiny'
data = 'out/draws.jsonl'
eval_data = eval_prompts = ''
batch_size, max_steps = 16, 200
learning_rate = 2e-3
log_every = 50
