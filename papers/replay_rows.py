"""A second task after sums, for papers/ewc.diff and config/papers/replay.py (arXiv 2305.04106).

    python -m papers.replay_rows --out=out/replay

The second task asks for the largest digit: '3,5,2' is answered '#### 5'. new.jsonl has its training rows,
old.jsonl some of sums, and test.jsonl held-out rows of both, whose difficulty is 'old' or 'new'.
"""
from configurator import at_least, configure
from papers.lines import write_lines
from rows import read_rows

out = 'out/replay'  # folder
memory = 200  # rows of sums
seed = 1337  # no effect: nothing is drawn


def largest(row):
    """The row of sums as a row of the second task."""
    answer = max(row['prompt'].split('+'))
    prompt = row['prompt'].replace('+', ',')
    return {**row, 'prompt': prompt, 'answer': answer, 'demonstration': f'#### {answer}'}


def files_of(train, test, memory):
    """{name: rows} of the three files."""
    tests = [{**row, 'difficulty': 'old'} for row in test]
    tests += [{**largest(row), 'difficulty': 'new'} for row in test]
    return {'new': [largest(row) for row in train], 'old': train[:memory], 'test': tests}


if __name__ == '__main__':
    config = configure(globals(), memory=at_least(1))
    files = files_of(read_rows('sums:train')[0], read_rows('sums:test')[0], memory)
    for name, rows in files.items():
        write_lines(f'{out}/{name}.jsonl', rows)
