"""The held-out problems that a run printed, each followed through its evaluations, side by side.

    python grpo.py config/tiny.py | tee out/tiny_grpo.txt
    python -m tools.story out/tiny_grpo.txt

A line of the output is `  step 20: 1 | '4 5>9' -> '4*5=20?9n\\n4+5=9?9y', truth ...`: the step, the
reward, the prompt and the completion.
"""
import ast
import re
import shutil
import sys
from itertools import zip_longest

TEXT = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""  # a text as Python prints it
LINE = re.compile(rf'^  step (\d+): (\S+) \| {TEXT} -> {TEXT}, truth', re.M)
GAP = 3  # characters between two columns


def read_story(printed):
    """{prompt: [(step, reward as text, completion), ...]} of what a script has printed."""
    story = {}
    for step, reward, prompt, completion in LINE.findall(printed):
        entry = (int(step), reward, ast.literal_eval(completion))
        story.setdefault(ast.literal_eval(prompt), []).append(entry)
    return story


def columns_of(entries, width):
    """The lines that show these completions beside each other; as many as fit into `width`."""
    columns = []
    for step, reward, completion in entries:
        # a long completion shows its beginning and its end, which decides
        lines = completion.split('\n')
        if len(lines) > 8:
            lines = [*lines[:4], f'... {len(lines) - 7} more', *lines[-3:]]
        columns.append([f'step {step}: reward {reward}', *lines])
    # where not all fit, the first and the last ones matter most
    widths = [max(map(len, column)) + GAP for column in columns]
    while len(columns) > 2 and sum(widths) > width:
        middle = len(columns) // 2
        del columns[middle], widths[middle]
    for cells in zip_longest(*columns, fillvalue=''):
        yield ''.join(cell.ljust(size) for cell, size in zip(cells, widths)).rstrip()


def main(path):
    with open(path, encoding='utf-8') as f:
        story = read_story(f.read())
    width = shutil.get_terminal_size((120, 24)).columns
    for prompt, entries in story.items():
        print(f'\n{prompt}')
        for line in columns_of(entries, width - 2):
            print(f'  {line}')


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
