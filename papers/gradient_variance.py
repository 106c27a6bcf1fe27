"""Variance of the policy gradient under a baseline, for papers/baseline_variance.py (arXiv 2511.23310)."""
import torch
from data import collate

BASELINES = ('mean', 'length', 'gradient', 'exact')  # by what a completion weighs in them


def weights_and_gradient(policy, prompt_ids, ids):
    """A completion's weight in each of BASELINES (4,), and the gradient (P,) of its log-prob.

    1; its length; the squared norm of the gradient by the logits, as in papers/oblr_po.diff; that by
    the P weights of the model, which the theorem asks for.
    """
    micro = collate([(ids, [True] * len(ids), prompt_ids)])
    place = {key: micro[key] for key in ('ids', 'lengths', 'index', 'parents')}
    hidden = policy(**place, only_hidden=True)  # (T, hidden)
    head = policy.model.get_output_embeddings().weight  # (V, hidden)
    log_p = torch.log_softmax(hidden @ head.T, -1)  # (T, V)
    chosen = log_p.gather(1, micro['ids'][micro['index'], None])[:, 0]  # (T,)
    gradients = torch.autograd.grad(chosen.sum(), list(policy.parameters()))
    gradient = torch.cat([of_parameter.flatten() for of_parameter in gradients])
    by_logits = (1 - 2 * chosen.exp() + log_p.exp().square().sum(-1)).sum()
    return torch.tensor([1, len(ids), by_logits.item(), gradient.square().sum().item()]), gradient


def baseline(rewards, weights, others):
    """sum W R / sum W, of all completions of a prompt or of the others in each one's group (groups, G)."""
    weighted = weights * rewards
    if not others:
        return weighted.sum() / weights.sum()
    return (weighted.sum(1, keepdim=True) - weighted) / (weights.sum(1, keepdim=True) - weights)


def variance(advantages, gradients):
    """Of the mean of A grad log pi over a group, summed over the weights: (groups, G), (groups, G, P)."""
    means = torch.einsum('kg,kgp->kp', advantages, gradients) / advantages.shape[1]
    return means.var(0).sum().item()
