"""Pairs for iterated DPO without a judge, of samples that sample.py wrote (DRIFT, arXiv 2510.02341)."""
from configurator import configure
from papers.lines import write_lines
from rows import read_rows
from verify import extract

data = 'out/samples.jsonl'  # samples of the policy as it is now
rejected = ''  # stored samples, the wrong ones are the rejected side; '': a majority chooses both sides
out, seed = 'out/pairs.jsonl', 1337  # JSON lines; the seed has no effect, as nothing is drawn


def by_prompt(samples):
    """{prompt: its samples that ended by themselves}, in their order."""
    groups = {}
    for sample in samples:
        if sample['stopped'] and sample['completion'].strip():
            groups.setdefault(sample['prompt'], []).append(sample)
    return groups


def sides(group, wrong):
    """(chosen, rejected): the first sample, good or not, and the last wrong one; None: by majority."""
    if wrong:
        return group[0], wrong[-1]
    answers = [extract(sample['dataset'], sample['completion']) for sample in group]
    votes = [answers.count(answer) for answer in answers]
    return group[votes.index(max(votes))], group[votes.index(min(votes))]


if __name__ == '__main__':
    configure(globals())
    groups, stored = by_prompt(read_rows(data)[0]), read_rows(rejected)[0] if rejected else []
    wrong = by_prompt(sample for sample in stored if sample['reward'] < 0.5)
    pairs = []
    for prompt in [prompt for prompt in groups if prompt in wrong or not rejected]:
        chosen, worse = (sample['completion'] for sample in sides(groups[prompt], wrong.get(prompt)))
        if chosen != worse:
            pairs.append({'prompt': prompt, 'chosen': chosen, 'rejected': worse})
    write_lines(out, pairs)
