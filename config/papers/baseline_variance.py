# group: policy gradients
# changes: the variance of a group's gradient is measured with baselines that weigh the rewards differently
# paper: Huang et al. 2025, OBLR-PO (arXiv 2511.23310): the optimal baseline; papers/gradient_variance.py
# variant: python -m papers.baseline_variance
# measure: all/length, all/gradient, all/exact, others/length, others/gradient, others/exact
# claim: the variance is least where a reward weighs the squared norm of its completion's gradient
# outcome: pending
#
# Measured are variances over that with the mean as baseline. all: the baseline of a prompt comes from its
# 64 completions, so that it is nearly known. others: from the 7 others of a group, as in training.
