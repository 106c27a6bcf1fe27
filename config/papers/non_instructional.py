# group: eliciting
# changes: a prompt is half a web page, its reply a strong model's continuation: no instruction at all
# paper: Xie et al. 2024, Non-instructional Fine-tuning (arXiv 2409.00096); rows, prompt, rate not found
# baseline: python sample.py --model=out/base --data=ifeval.jsonl --n=1 --out=out/samples.jsonl
# baseline: python -m papers.pass_at_1 --data=out/samples.jsonl
# variant: python -m papers.non_instructional --data=web.jsonl --out=out/rows.jsonl
# variant: python sft.py config/papers/non_instructional.py --model=out/base --out_dir=out/tuned
# variant: python sample.py --model=out/tuned --data=ifeval.jsonl --n=1 --out=out/samples.jsonl
# variant: python -m papers.pass_at_1 --data=out/samples.jsonl
# measure: eval/pass@1, eval/stopped
# claim: such rows improve base models and some tuned ones on MT-Bench and Arena-Hard
# outcome: not run here: needs a base model, a teacher that follows instructions, and web pages
#
# out/base: any base model with a chat template; LoRA and its rate are ours.
data = 'out/rows.jsonl'
eval_data = eval_prompts = ''
max_steps, epochs = 0, 3.0
learning_rate, lora_rank = 1e-4, 16
