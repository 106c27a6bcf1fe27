# group: policy gradients
# changes: the variance of a group's gradient is measured with baselines that weigh the rewards differently
# paper: Huang et al. 2025, OBLR-PO (arXiv 2511.23310): the optimal baseline; papers/gradient_variance.py
# variant: python -m papers.baseline_variance
# measure: all/length, all/gradient, all/exact, others/length, others/gradient, others/exact
# claim: the variance is least if rewards are weighted by the squared norm of their completions' gradients
# outcome: shows with the baseline known (0.929), not with one estimated from the group (1.074 ± 0.110)
#
# A measure is a variance divided by the one with the mean as baseline: below 1 is better. all: a prompt's
# baseline comes from its 64 completions, so it is nearly known; others: from the 7 others of a group.
