"""JSON lines, which the scripts of this folder write: rows for a training script, or a log for run.py."""
import json
import os


def write_lines(path, rows):
    """Writes rows as lines of JSON, without what read_rows noted in them (keys with a '_' in front).

    The folder is made if need be. A file that is there is replaced.
    """
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with open(path, 'w') as f:
        for row in rows:
            f.write(json.dumps({key: value for key, value in row.items() if key[:1] != '_'}) + '\n')
