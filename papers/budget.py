"""Annotations divided between demonstrations and pairs, for config/papers/budget.py (arXiv 2502.11284)."""
import subprocess
import sys

from configurator import configure
from papers.lines import write_lines
from rows import read_rows

model, demonstrations, pairs = 'out/sums_base', 'sums:train', 'out/pairs.jsonl'  # pairs of its samples
budgets, shares = '128 1024', '1 0.5 0.1 0'  # annotations; the share of demonstrations in them
out_dir = 'out/budget'  # log.jsonl: the last pass@1 of each division, under '1024/0.5'
seed = 1337


def divide(shown, compared, budget, share):
    """{script: its rows}: the first demonstrations, and pairs of other prompts; no script without rows."""
    shown = list(shown[:round(share * budget)])
    asked = {row['prompt'] for row in shown}
    compared = [row for row in compared if row['prompt'][-1]['content'] not in asked][:budget - len(shown)]
    return {script: rows for script, rows in {'sft': shown, 'dpo': compared}.items() if rows}


def score(budget, share):
    """pass@1 after sft.py on the demonstrations and dpo.py on the pairs."""
    start = model
    for script, rows in divide(read_rows(demonstrations)[0], read_rows(pairs)[0], budget, share).items():
        write_lines('out/budget.jsonl', rows)
        command = [sys.executable, f'{script}.py', 'config/papers/sums.py', 'config/papers/budget.py']
        folder = f'{out_dir}/{script}_{budget}_{share}'
        subprocess.run([*command, f'--model={start}', f'--out_dir={folder}', f'--seed={seed}'], check=True)
        start = folder
    return read_rows(f'{start}/log.jsonl')[0][-1]['eval/pass@1']


if __name__ == '__main__':
    configure(globals())
    scores = {f'{b}/{s}': score(int(b), float(s)) for b in budgets.split() for s in shares.split()}
    write_lines(f'{out_dir}/log.jsonl', [{'step': 0, **scores}])
