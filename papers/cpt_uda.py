"""Sums in digits, the source, and in letters, the target: for config/papers/cpt_uda.py (arXiv 2401.17514).

    python -m papers.cpt_uda --data=sums:train --out=out/text.jsonl                # text of both domains
    python -m papers.cpt_uda --data=sums:test --write=tests --out=out/tests.jsonl  # prompts of the target
"""
from configurator import configure, one_of
from papers.lines import write_lines
from rows import read_rows
from verify import verify

data = 'sums:train'  # rows with a truth and a demonstration
write = 'text'  # lines of `out`: 'text' or 'tests'
out, seed = 'out/text.jsonl', 1337  # JSON lines; no effect, as nothing is drawn
TO_LETTERS = str.maketrans('0123456789', 'abcdefghij')
TO_DIGITS = str.maketrans('abcdefghij', '0123456789')


def letters(completion, truth):
    """The verifier of the target, whose truths are in digits: a sum counts in either alphabet."""
    return verify('sums', completion.translate(TO_DIGITS), truth)


def lines_of(row, kind):
    """A test with its prompt in letters; or two documents without turns, the sum in digits and in letters."""
    if kind == 'tests':
        prompt = row['prompt'].translate(TO_LETTERS)
        return [{**row, 'prompt': prompt, 'dataset': 'papers/cpt_uda.py:letters'}]
    text = f'{row["prompt"]} {row["demonstration"]}'
    return [{'text': text}, {'text': text.translate(TO_LETTERS)}]


if __name__ == '__main__':
    configure(globals(), write=one_of('text', 'tests'))
    write_lines(out, [line for row in read_rows(data)[0] for line in lines_of(row, write)])
