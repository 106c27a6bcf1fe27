"""Snippets without near copies, for config/papers/codeboost.py (arXiv 2508.05242).

    python -m papers.codeboost_distinct --data=snippets.jsonl --out=out/distinct.jsonl
"""
from configurator import between, configure
from papers.lines import write_lines
from rows import read_rows

data = 'snippets.jsonl'  # rows with a program in `code`
similarity = 0.5  # of two snippets that share so much of their 5-grams (Jaccard), one is left out
out = 'out/distinct.jsonl'  # JSON lines
seed = 1337  # no effect: nothing is drawn


def distinct(codes, similarity):
    """Codes no two of which are similar: greedily, those with the fewest similar ones first.

    (The paper's maximum clique, in the graph of what is not similar.) Every pair is compared.
    """
    grams = []
    for code in codes:
        words = code.split()
        grams.append({tuple(words[i:i + 5]) for i in range(max(1, len(words) - 4))})
    similar = [{i for i, other in enumerate(grams)
                if other is not own and len(own & other) >= similarity * len(own | other)} for own in grams]
    kept = set()
    for i in sorted(range(len(codes)), key=lambda i: len(similar[i])):
        if similar[i].isdisjoint(kept):
            kept.add(i)
    return [codes[i] for i in sorted(kept)]


if __name__ == '__main__':
    config = configure(globals(), similarity=between(0, 1))
    kept = distinct([row['code'] for row in read_rows(data)[0]], similarity)
    write_lines(out, [{'code': code} for code in kept])
