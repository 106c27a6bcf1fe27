"""Two rewards for the embedded search task, for papers/gdpo.diff: to be right, and to be short.

    python grpo.py config/tiny.py --verifier=papers/two_rewards.py:right_and_short
"""
from verify import verify

MAX_ATTEMPTS = 3  # lines of a completion that counts as short


def right_and_short(completion, truth):
    """{'right': 1 if the last attempt is right, 'short': 1 for at most MAX_ATTEMPTS attempts}."""
    n_attempts = len(completion.strip().splitlines())
    return {
        'right': verify('search', completion, truth),
        'short': float(n_attempts <= MAX_ATTEMPTS)}
