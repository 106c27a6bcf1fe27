# group: eliciting
# changes: large batches, low learning rate, constant from the first step, all data at once
# paper: Pareja et al. 2024, Unveiling the Secret Recipe (arXiv 2412.13337); its abstract and notes
# variant: python -m papers.secret_recipe --runs=out/runs
# variant: python -m papers.secret_findings --runs=out/runs
# measure: large_batch, rho_grad_norm, rho_loss, no_warmup, constant, stacked
# claim: large batches win, low gradient norm and high loss early mean success; no warm-up, no phases needed
# outcome: low gradient norm: yes (-0.567); warm-up, phases: not needed; large batches, high loss: no
#
#     python sft.py config/papers/secret_recipe.py
#
# The paper has batches of 3,840 and 7,680; here the sweep has 16 to 256, with equally many samples.
model, data, eval_data, eval_prompts = 'out/sums_base', 'sums:train', '', 'sums:test'
batch_size, max_steps = 256, 15
learning_rate, schedule, warmup_steps = 1e-4, 'constant', 0
max_new_tokens, eval_every, checkpoint_every, log_every = 40, 0, 0, 10
