"""Rows for sft.py that say little about the task (Hewitt et al. 2024, arXiv 2409.14254).

    python -m papers.eliciting_rows --rows=response --data=sums:train --out=out/rows.jsonl

rows: 'instruction'  prompts and replies as they are
      'response'     every prompt is empty, so that the reply cannot depend on it
      'single-task'  prompts and replies of one difficulty
"""
import random

from configurator import at_least, configure, one_of
from papers.lines import write_lines
from rows import example_of, level_of, read_rows

rows = 'response'  # 'instruction', 'response' or 'single-task'
data = 'sums:train'  # rows of any shape that sft.py reads
n_rows, level = 800, 2  # so many, drawn by the seed; of single-task: their difficulty
out, seed = 'out/rows.jsonl', 1337  # JSON lines


def without_prompt(messages):
    """The conversation with empty user turns."""
    return [{**message, 'content': ''} if message['role'] == 'user' else message for message in messages]


def messages_of(source, kind):
    """The conversations of n_rows random rows, for one of the kinds."""
    chosen = [row for row in source if kind != 'single-task' or level_of(row.get('difficulty')) == level]
    random.Random(seed).shuffle(chosen)
    conversations = [example_of(row).messages for row in chosen[:n_rows]]
    return [without_prompt(messages) if kind == 'response' else messages for messages in conversations]


if __name__ == '__main__':
    config = configure(globals(), rows=one_of('instruction', 'response', 'single-task'), n_rows=at_least(1))
    conversations = messages_of(read_rows(data)[0], rows)
    write_lines(out, [{'messages': messages} for messages in conversations])
