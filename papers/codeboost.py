"""Rewards for predictions about code, for config/papers/codeboost.py (Wang et al. 2025, arXiv 2508.05242).

The reward is 0.9 times the accuracy and 0.1 times the share of the required blocks that are there; without
any block it is 0. The accuracy is the mean of an exact stdout, 0 or 1, and half the overlap of stderr's
lines: at most 0.75. Two empty stderrs overlap wholly. Of a masked line it is 0 or 1.
"""
import json
import re
from collections import Counter

from rewards.answers import after_thinking


def block_of(text, name):
    """What stands in the last <name> block; None without one."""
    found = re.findall(rf'<{name}>\n?((?:(?!<{name}>).)*?)\n?</{name}>', text, re.DOTALL)
    return found[-1] if found else None


def accuracy_of(name, block, wanted):
    """What a block adds to the accuracy."""
    if name == 'line':
        return float(block.strip() == wanted.strip())
    if name == 'stdout':
        # a line break more or less at either end does no harm
        texts = {text.removeprefix('\n').removesuffix('\n') for text in (block, wanted)}
        return 0.5 if len(texts) == 1 else 0.0
    lines, others = Counter(block.splitlines()), Counter(wanted.splitlines())
    union = (lines | others).total()
    return 0.25 * ((lines & others).total() / union if union else 1.0)


def reward(completion, truth):
    """The truth is JSON: {'stdout', 'stderr'} of a program, or {'line'}, the one that was masked."""
    wanted, text = json.loads(truth), after_thinking(completion)
    blocks = {name: block_of(text, name) for name in wanted}
    found = {name: block for name, block in blocks.items() if block is not None}
    accuracy = sum(accuracy_of(name, block, wanted[name]) for name, block in found.items())
    return 0.9 * accuracy + 0.1 * len(found) / len(wanted) if found else 0.0
