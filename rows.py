"""Sources of rows, files or the embedded task: each row a dict that knows the line it stands on."""
import fnmatch
import glob
import gzip
import json
import random
import re
import zlib
from array import array

import numpy as np
from tqdm import tqdm

from configurator import RANK, UserError

SUM_OPERANDS = range(2, 11)  # digits to add up: the difficulty
SUM_SIZES = {'base': 20000, 'train': 8000, 'test': 450}  # rows
SUM_BASE = {2: 2, 3: 4, 4: 6, 5: 6, 6: 6, 7: 4, 8: 2}  # operands of base rows and their shares: few are hard
SUM_BASE_WORKED = 0.4  # share of base rows that show their work; the others are wild guesses, always wrong


def files_of(name):
    """A source's files: itself, or what a pattern like 'train-*.parquet' names, also on the hub, sorted."""
    if '*' not in name:
        return [name]
    if not name.startswith('hf://'):
        found = glob.glob(name)
    else:
        from huggingface_hub import HfApi
        owner, repo, pattern = name.removeprefix('hf://datasets/').split('/', 2)
        every = HfApi().list_repo_files(f'{owner}/{repo}', repo_type='dataset')
        found = [f'hf://datasets/{owner}/{repo}/{file}' for file in fnmatch.filter(every, pattern)]
    if not found:
        raise ValueError('no file has such a name')
    return sorted(found)


class Rows:
    """A sequence of rows. Those of files of lines are read when asked for: memory holds where they begin.

    files: [(name, its rows or its path)]; table, int64 (N, 3): file, place in it (row or byte), line."""
    def __init__(self, files, table):
        self.files, self.table = files, table

    def __len__(self):
        return len(self.table)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return Rows(self.files, self.table[i])
        file, at, line = self.table[i].tolist()
        name, source = self.files[file]
        if isinstance(source, str):
            with open(source, 'rb') as f:
                f.seek(at)
                return {**json.loads(f.readline()), '_where': f'{name}:{line}'}
        return {**source[at], '_where': f'{name}:{line}'}


def read_rows(spec):
    """Sources with optional weights ('a.jsonl*0.5, sums:train') -> Rows, [(name, weight, start, stop)].
    Source: .jsonl, .jsonl.gz, .json (list or lines), .parquet, hf://datasets/owner/name/file, a pattern
    (train-*.parquet), sums:base, sums:train, sums:test. Row: a dict, '_where' is 'file:line' (or row number).
    Files of lines are not held in memory, but .gz and pipes; each line is tried. UserError: unreadable."""
    files, table, sources = [], array('q'), []
    for part in map(str.strip, spec.split(',')):
        name, weight = re.fullmatch(r'(.*?)(?:\*([-+]?[\d.][\de.+-]*))?', part).groups('1')
        start, line, file = len(table) // 3, 0, name
        try:
            if not 0 < float(weight) < 1e6:
                raise ValueError(f'*{weight} is no number of passes over it per epoch')
            for file in files_of(name):
                path, line, at, held = file, 0, 0, []
                if file.startswith('hf://'):
                    from huggingface_hub import hf_hub_download
                    owner, repo, inside = file.removeprefix('hf://datasets/').split('/', 2)
                    path = hf_hub_download(f'{owner}/{repo}', inside, repo_type='dataset')
                if file.startswith('sums:'):
                    found = sum_rows(file[5:])
                elif path.endswith('.parquet'):
                    from pyarrow import parquet
                    found = parquet.read_table(path).to_pylist()
                else:
                    found, line = gzip.open(path) if path.endswith('.gz') else open(path, 'rb'), 1
                    head = path.endswith('.json') and open(path, 'rb').read(99).lstrip(b'\xef\xbb\xbf \t\r\n')
                    found = json.loads(found.read()) if head and head[:1] == b'[' else found
                lazy = not path.endswith('.gz') and hasattr(found, 'seekable') and found.seekable()  # no pipe
                for line, row in enumerate(tqdm(found, file, delay=3, disable=RANK > 0 or None), 1):
                    parsed = json.loads(row.strip() or b'null') if isinstance(row, bytes) else row
                    if parsed is not None:
                        parsed = {**parsed}  # TypeError if it is not an object
                        table.extend((len(files), at if lazy else len(held), line))
                        held += [] if lazy else [parsed]
                    at += len(row)
                files.append((file, path if lazy else held))
            if len(table) == 3 * start:
                raise ValueError('no rows in it')
        except Exception as error:  # hub, file, gzip, parquet and JSON errors have no common class
            line += (error.object.count(b'\n', 0, error.start) if isinstance(error, UnicodeDecodeError)
                     else getattr(error, 'lineno', 1) - 1)  # of a JSON error inside a list
            hint = ' (pip install pyarrow or convert to .jsonl)' if isinstance(error, ImportError) else ''
            message = f'data source {file}{f":{line}" if line else ""}: {error}{hint}'
            raise UserError(' '.join(message.split())) from error
        sources.append((name, float(weight), start, len(table) // 3))
    return Rows(files, np.frombuffer(table, np.int64).reshape(-1, 3)), sources


def sum_rows(split):
    """The embedded task: add up digits. A prompt's crc decides its side: no test prompt is in train or base.
    Base stands in for pretraining: some rows show the running totals, most blurt out a guess."""
    rng, size = random.Random(f'sums:{split}'), SUM_SIZES[split]
    def draw(n):
        digits = [rng.randrange(10) for _ in range(n)]
        prompt, answer = '+'.join(map(str, digits)), str(sum(digits))
        if (zlib.crc32(prompt.encode()) % 8 == 0) != (split == 'test'):
            return draw(n)
        row, work = {'difficulty': n}, ' '.join(map(str, np.cumsum(digits))) + f' #### {answer}'
        if split != 'base':
            return {'prompt': prompt, 'answer': answer, 'demonstration': work, 'dataset': 'sums', **row}
        guess = rng.choice([x for x in range(9 * n + 1) if x != sum(digits)])
        reply = work if rng.random() < SUM_BASE_WORKED else f'#### {guess}'
        said = (('user', prompt), ('assistant', reply))
        return {'messages': [{'role': role, 'content': text} for role, text in said], **row}
    if split == 'test':  # no prompt twice: of n = 2 there are about a dozen, the other levels fill up evenly
        pools = [list({row['prompt']: row for row in map(draw, [n] * size)}.values()) for n in SUM_OPERANDS]
        return [pool[i] for i in range(size) for pool in pools if i < len(pool)][:size]
    operands = rng.choices([*SUM_BASE], SUM_BASE.values(), k=size) if split == 'base' else SUM_OPERANDS
    return [draw(operands[i % len(operands)]) for i in range(size)]
