"""Which of the paper's findings hold for the runs of papers/secret_recipe.py (arXiv 2412.13337)."""
import glob
import json

import numpy as np
from configurator import configure
from papers.lines import write_lines

runs, compared = 'out/secret_recipe', '64_1e-4'  # as papers/secret_recipe.py made them
out_dir = 'out/secret_findings'  # log.jsonl has one line
seed = 1337  # no effect: nothing is drawn


def summary(path):
    """Of a log: pass@1 at the end, the mean loss and gradient norm from a tenth to a fifth of the steps."""
    with open(path) as f:
        *steps, evaluation = [json.loads(line) for line in f]
    early = [(step['loss'], step['grad_norm']) for step in steps[len(steps) // 10:len(steps) // 5 + 1]]
    return evaluation['eval/pass@1'], *np.mean(early, 0)


def findings(logs, compared):
    """The numbers behind the findings (i) to (iv); logs: {'64_1e-4' or another run's name: its summary}."""
    sweep = [(int(name.partition('_')[0]), *numbers) for name, numbers in logs.items() if '_' in name]
    sizes, scores, losses, norms = map(np.array, zip(*sweep))
    ranks = [np.argsort(np.argsort(values)) for values in (scores, losses, norms)]
    gains = [logs[compared][0] - logs[name][0] for name in ('warmup', 'cosine', 'phased')]
    return {'large_batch': scores[sizes == max(sizes)].max() - scores[sizes == min(sizes)].max(),
            'rho_grad_norm': np.corrcoef(ranks)[0, 2], 'rho_loss': np.corrcoef(ranks)[0, 1],
            **dict(zip(('no_warmup', 'constant', 'stacked'), gains))}


if __name__ == '__main__':
    config = configure(globals())
    found = findings({p.split('/')[-2]: summary(p) for p in glob.glob(f'{runs}/*/log.jsonl')}, compared)
    print('(i)', found['large_batch'] > 0, '(ii)', found['rho_grad_norm'] < 0 < found['rho_loss'], '(iii)',
          min(found['no_warmup'], found['constant']) > -0.03, '(iv)', found['stacked'] > -0.03)
    write_lines(f'{out_dir}/log.jsonl', [{'step': 0, **found}])
