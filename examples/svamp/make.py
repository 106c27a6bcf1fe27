"""SVAMP.json (github.com/arkilpatel/SVAMP) -> train.jsonl and test.jsonl beside this file.

    python examples/svamp/make.py SVAMP.json

The demonstration of a row is its equation, computed one operation a line, then the answer:

    7 + 3 = 10
    10 - 4 = 6
    #### 6
"""
import json
import re
import sys
import zlib
from pathlib import Path

INNERMOST = re.compile(r'\( (-?[\d.]+) ([-+*/]) (-?[\d.]+) \)')  # an operation on two numbers
OPERATIONS = {'+': lambda a, b: a + b, '-': lambda a, b: a - b,
              '*': lambda a, b: a * b, '/': lambda a, b: a / b}


def text_of(number):
    """'13' for 13.0, '2.5' for 2.5; ten digits, which hold every number of the data set."""
    return f'{float(number):.10g}'


def worked(equation):
    """Lines 'a + b = c' that compute an equation like '( ( 7.0 + 3.0 ) - 4.0 )', innermost first."""
    lines = []
    while operation := INNERMOST.search(equation):
        left, sign, right = operation.groups()
        result = text_of(OPERATIONS[sign](float(left), float(right)))
        lines.append(f'{text_of(left)} {sign} {text_of(right)} = {result}')
        equation = equation[:operation.start()] + result + equation[operation.end():]
    return lines, equation


def side_of(body):
    """'test' for three stories in ten. Rows that tell one story with other numbers stay together."""
    story = re.sub(r'\d+', 'N', body)
    return 'test' if zlib.crc32(story.encode()) % 10 < 3 else 'train'


def main(source):
    sides = {'train': [], 'test': []}
    for problem in json.load(open(source)):
        answer = text_of(problem['Answer'])
        lines, result = worked(problem['Equation'])
        if not lines or text_of(result) != answer:
            print(f'{problem["ID"]} is left out: {problem["Equation"]} = {result}, not {answer}')
            continue
        sides[side_of(problem['Body'])].append({
            'prompt': problem['Body'] + ' ' + problem['Question'],
            'answer': answer,
            'demonstration': '\n'.join([*lines, f'#### {answer}']),
            'dataset': 'svamp',
            'difficulty': len(lines),  # operations
            'id': problem['ID']})
    for side, rows in sides.items():
        path = Path(__file__).parent / f'{side}.jsonl'
        path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
        print(f'{len(rows)} rows: {path}')


main(sys.argv[1])
