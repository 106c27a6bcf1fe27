# group: data
# changes: prompts are made of bare code: predict what it prints, or fill in a line that is masked
# paper: Wang et al. 2025, CodeBoost (arXiv 2508.05242); no augmentation; the masked line's reward is ours
# variant: python -m papers.codeboost_distinct --data=snippets.jsonl
# variant: python -m papers.codeboost_run
# variant: python -m papers.codeboost_rows
# variant: python grpo.py config/papers/codeboost.py
# claim: reinforcement learning on code without instructions improves code models (numbers: not confirmed)
# outcome: not run here: needs a coder of 1.5B or more, a GPU and snippets
#
# The rewards are those of papers/codeboost.py. top_p 0.99 is left out: all of the vocabulary is sampled.
model = 'Qwen/Qwen2.5-Coder-1.5B-Instruct'
data, eval_prompts = 'out/rows.jsonl', ''
verifier = 'papers/codeboost.py:reward'
prompts_per_step, updates_per_rollout, group_size = 512, 4, 5
max_prompt_tokens, max_new_tokens = 4096, 4096
learning_rate, beta = 1e-6, 0.01
