r"""All that decides right from wrong: verify(kind, completion, truth) -> float in [0, 1].

    python verify.py math '\frac12' < completion       # the verdict and the rule that fired

In doubt the verdict is 0.0: a false negative costs a sample, a false positive teaches to cheat. Nothing a
model wrote is executed (but by `code`, in a sandbox), raises, or is scanned more than linearly. `gave_up`
counts by kind the verdicts of 0.0 that rest on a limit or a bug of this file; each process prints a bug once.

sums       the embedded task: the integer after the last '####', which must end the completion
gsm8k      truth: a number. After the last '####', else in the last \boxed{}, after 'answer is', the last
math       truth: LaTeX. In the last \boxed{}, else after '####', 'answer is', <answer>, else one line
mcq        truth: 'C' or {'answer': 'C', 'options': ['A', ...]}
ifeval     truth: {'instruction_id_list', 'kwargs', 'mode': 'strict' or 'loose'}; google-research's 25 rules
countdown  truth: {'numbers', 'target'}; the last <answer> uses each number once, with + - * / and parentheses
code       truth: {'language', 'tests': [{'input', 'output'}], 'time_limit_s', 'memory_mb'}: stdin to stdout
f.py:g     g(completion, truth as text) -> float, of the user's own
A truth that is a dict may also be given as its text, in JSON or as Python prints it.
"""
import functools
import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

from rewards.answers import GIVE_UPS, MAX_ANSWER, after_hashes, after_phrase, after_thinking, boxed, first_found
from rewards.answers import loaded, need, tagged
from rewards.ifeval import ifeval
from rewards.latex import DOUBTFUL, MAX_DIGITS, ROUGH, SIGNS, TOKEN, exact, normal, same, tree, value
from rewards.sandbox import check_language, code, sandboxed, tests_of

gave_up = Counter()  # kind -> verdicts of 0.0 because neither right nor wrong could be shown
bugs = Counter()  # kind -> those of them that are this file's (or the user function's) own fault
raise_bugs = False  # the tests set it

# --- gsm8k, sums ---------------------------------------------------------------
SUM_TO_DO = re.compile(r'[*^!|]|\\(?!frac)|[0-9)}]([-+](?!\\frac)|\()')  # 9+9 is not yet 18
UNSURE = re.compile(r"\b(?:cannot|can't|could not|unsure|not sure|maybe|perhaps|guess)\b", re.IGNORECASE)

def prose_number(text, only=True):
    """The only number in a sentence ('she earns $18 a day'), or else the last; None if it is unclear."""
    text = text.replace('−', '-').replace('$', '')
    words = re.findall(r'[^\s(){}\[\]:"]+' if only else r'[^\s(){}\[\]:"=<>]+', text)
    places = [i for i, word in enumerate(words) if re.search('[0-9]', word)]
    if not places or only and len(places) > 1:
        return None
    near = words if only else words[max(places[-1] - 1, 0):places[-1] + 2]
    if any(word.lower().strip('.,;') in DOUBTFUL or re.search(r'[\\^_]', word) for word in near):
        return None
    word = words[places[-1]].strip('*').rstrip(".,;?'")
    match = re.fullmatch(r'([-+]?[0-9.,]+(?:/[0-9]+)?)%?(?:[a-zA-Z]{2,})?(?:/[a-zA-Z]{2,})?', word)  # 5pm
    return exact(normal(match[1])) if match else None

def gsm8k_answer(completion):
    """Fraction or None."""
    found = first_found(completion, after_hashes, boxed, after_phrase, tagged)
    if found is None:
        text = after_thinking(completion).rstrip()[-2000:].replace('\\$', '$')
        return None if UNSURE.search(text.rpartition('\n')[2]) else prose_number(text, only=False)
    last = normal(found[:2 * MAX_ANSWER]).rpartition('=')[2].strip()
    answer = None if SUM_TO_DO.search(last) else exact(last)
    return prose_number(last.replace('"', ' ')) if answer is None else answer

def sums_answer(completion):
    """int or None."""
    tail = completion.rpartition('####')[2].strip(' \t\r\n') if '####' in completion else ''
    return int(tail) if re.fullmatch(f'[-+]?[0-9]{{1,{MAX_DIGITS}}}', tail) else None

def judge_by(answer_of, completion, truth):
    answer, wanted = answer_of(completion), answer_of(f'#### {truth}')
    return float(answer is not None and answer == wanted), f'{answer} against {wanted}'

# --- math ----------------------------------------------------------------------
def math_answer(completion):
    found = first_found(completion, boxed, after_hashes, after_phrase, tagged)
    text = after_thinking(completion).strip()
    if found is None and len(text) <= 100 and '\n' not in text:
        found = text
    return normal(found or '') or None

def math(completion, truth):
    answer, truth = math_answer(completion), normal(str(truth))
    if not answer or not truth:
        return 0.0, 'no answer'
    if answer == truth and answer.strip('\\{}() '):
        return float('\\frac{0}{0}' not in answer), 'same text'
    need(max(len(answer), len(truth)) <= MAX_ANSWER, 'answer too long')
    p, t = tree(answer), tree(truth)
    if p[0] == 'list' != t[0] and 0 < len(p[2]) < 10 and all(same(item, p[2][0]) for item in p[2][1:]):
        p = p[2][0]  # one answer written twice: 15\frac{39}{40} and \frac{639}{40}
    return float(same(p, t)), f'{p[0]} against {t[0]}: {answer[:60]}'

# --- mcq, countdown ------------------------------------------------------------
def mcq_answer(completion, options='ABCDEFGHIJ'):
    """The option's letter, or None without one or with several."""
    phrase = functools.partial(after_phrase, nouns='nswer|NSWER|ption|hoice')
    found = first_found(completion, boxed, tagged, after_hashes, phrase)
    text = after_thinking(completion).strip() if found is None else normal(found[:200]).replace('"', '')
    match = re.match(r'(?:[Oo]ption )?([A-Z])(?![A-Za-z])(.*)', text.lstrip(' \t\r\n(*'), re.DOTALL)
    if not match or found is None and not re.fullmatch(r'[\s).*]*', match[2]) or match[1] not in options:
        return None
    several = r"[\s,/&|)(]*(?:or|and|nor)?[\s,/&|(]*[A-Z](?![A-Za-z'])|[\s,)*]*(?:or|and|nor)\b"
    return None if re.match(several, match[2]) else match[1]

def mcq(completion, truth):
    truth = loaded(truth)
    truth = truth if isinstance(truth, dict) else {'answer': str(truth).strip('() ')}
    options = truth.get('options') or 'ABCDEFGHIJ'
    said = mcq_answer(completion, options)
    right = said is not None and said == truth['answer'] and said in options
    return float(right), f'{said} against {truth["answer"]}'

def countdown(completion, truth):
    truth = loaded(truth, dict)
    numbers, target = Counter(truth['numbers']), Fraction(str(truth['target']))
    text = (first_found(completion, tagged, boxed) or '')[:500].translate(SIGNS)
    for sign, plain in (('\\times', '*'), ('\\cdot', '*'), ('\\div', '/')):
        text = text.replace(sign, plain)
    text = re.sub(r' *([-+*/()]) *', r'\1', text.strip())
    if not re.fullmatch('[0-9+*/() -]+', text) or re.search(r'(?:^|[-+*/(])[-+*/]|[0-9)]\(|\)[0-9]', text):
        return 0.0, 'no expression'  # neither **, // nor signs
    tokens = TOKEN.findall(text)
    try:
        result = value(('number', '', tokens), {}, ROUGH)
    except ZeroDivisionError:
        return 0.0, 'division by zero'
    used = [int(token) for token in tokens if token.isdigit()]
    return float(result == target and Counter(used) == numbers), f'{result} from {used}'

# --- any kind ------------------------------------------------------------------
@functools.lru_cache(64)
def own(kind):
    """The user's function 'file.py:function' as a judge. Raises ValueError."""
    path, _, name = kind.rpartition(':')
    try:
        spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, name)
    except (OSError, AttributeError, SyntaxError, ImportError) as error:
        raise ValueError(f'verifier {kind!r}: {error}') from error
    def judge(completion, truth, **opts):
        reward = float(function(completion, truth, **opts))
        need(0 <= reward <= 1, f'{kind} gave {reward}, not in [0, 1]')
        return reward, kind
    return judge

KINDS = {'sums': functools.partial(judge_by, sums_answer), 'gsm8k': functools.partial(judge_by, gsm8k_answer),
         'math': math, 'mcq': mcq, 'ifeval': ifeval, 'countdown': countdown, 'code': code}  # -> reward, rule
ANSWERS = {'sums': sums_answer, 'gsm8k': gsm8k_answer, 'math': math_answer, 'mcq': mcq_answer,
           'countdown': lambda text: first_found(text, tagged)}  # what is voted on
NAMES = {name: kind for kind, names in {  # of data sets
    'gsm8k': 'openai/gsm8k svamp chilled/svamp',
    'math': 'lighteval/math digitallearninggmbh/math-lighteval huggingfaceh4/math-500 math-500 math500 '
            'math_dapo hendrycks/competition_math eleutherai/hendrycks_math',
    'mcq': 'aqua aqua_rat mmlu arc gpqa', 'ifeval': 'google/ifeval',
    'countdown': 'jiayi-pan/countdown-tasks-3to4', 'code': 'code_stdio codecontests apps taco',
}.items() for name in names.split()}

def judge_of(kind):
    """The function of a kind. Raises ValueError listing known kinds."""
    if kind not in KINDS and '.py:' not in str(kind):
        raise ValueError(f'no verifier {kind!r}; kinds: {", ".join(KINDS)}')
    return KINDS.get(kind) or own(kind)

def kind_of(name):
    """The kind for rows whose dataset or data_source is `name`. Raises ValueError listing known kinds."""
    name = str(name).strip()
    key = 'math' if name.lower().rpartition('/')[2].startswith('aime') else name.lower()
    kind = name if '.py:' in name else NAMES.get(key, key)
    judge_of(kind)
    return kind

def check_truth(kind, truth):
    """Raises ValueError naming a truth that cannot be read or judged by here: a broken row."""
    judge = judge_of(kind)
    try:
        plain = isinstance(truth, (str, int, float))
        need(plain or truth is not None and kind not in ('sums', 'gsm8k', 'math'), 'one text is needed')
        if kind in KINDS:
            judge('', truth)  # it reads the truth first
        if kind in ('sums', 'gsm8k', 'math', 'mcq'):
            dicts = kind == 'mcq' and isinstance(loaded(truth), dict)
            right = loaded(truth)['answer'] if dicts else truth
            form = '#### {}' if kind in ('sums', 'gsm8k') else '\\boxed{{{}}}'
            need(judge(form.format(right), truth)[0] == 1, 'it is not right by itself')
        elif kind == 'code':
            check_language(tests_of(truth).language)
            need(sandboxed(), "no sandbox here (unshare); a function of your own may use sandbox='none'")
    except Exception as error:
        raise ValueError(f'{kind}: cannot read the truth {truth!r:.200}: {error}') from error

def read_truth(kind, truth):
    if isinstance(truth, list) and len(truth) == 1:
        truth = truth[0]
    check_truth(kind, str(truth) if isinstance(truth, (int, float)) else truth)
    return str(truth)

def extract(kind, completion):
    """The answer in a completion as text to vote on (maj@k), '1/2' for 0.5; None if there is none."""
    if kind not in ANSWERS or not isinstance(completion, str):
        return None
    answer = ANSWERS[kind](completion)
    if kind == 'math' and answer and '%' not in answer:
        answer = answer if exact(answer) is None else exact(answer)
    return None if answer is None else str(answer)

def verify(kind, completion, truth, explain=False, **opts):
    """Reward in [0, 1]; explain=True: also the rule. Options: mode, fraction (ifeval), sandbox (code)."""
    try:
        judge = judge_of(kind)
        reward, rule = judge(completion, truth, **opts) if isinstance(completion, str) else (0.0, 'no text')
    except Exception as error:  # what a model writes must not end a run
        if not isinstance(error, GIVE_UPS):
            if raise_bugs:
                raise
            bugs[kind] += 1
            if bugs[kind] == 1:
                traceback.print_exc()
        gave_up[kind] += 1
        reward, rule = 0.0, f'gave up: {type(error).__name__} {error}'
    return (reward, rule) if explain else reward

idle = []  # worker processes between calls of verify_all

def ask(item, deadline):
    """A worker process's (reward, gave up). One that dies or is too slow is ended, its item given up."""
    try:
        worker = idle.pop()
    except IndexError:
        command = [sys.executable, os.path.abspath(__file__), '--worker']
        pipe = subprocess.PIPE
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
    try:
        worker.stdin.write(json.dumps(item).encode() + b'\n')
        worker.stdin.flush()
        ready = select.select([worker.stdout], [], [], deadline)[0]
        reward, given_up = json.loads(worker.stdout.readline() if ready else '')
        idle.append(worker)
    except (OSError, ValueError):
        worker.kill()
        worker.wait()
        reward, given_up = 0.0, True
    return reward, given_up

def verify_all(items, workers=None, deadline=120.0):
    """[(reward, gave up)] of [(kind, completion, truth)]: cheap kinds here, others by worker processes, which
    have `deadline` seconds an item."""
    cheap = ('sums', 'gsm8k', 'mcq', 'countdown')
    cores = (os.cpu_count() or 1) // int(os.environ.get('LOCAL_WORLD_SIZE', 1))  # the other ranks have theirs
    with ThreadPoolExecutor(workers or max(1, min(16, cores))) as pool:
        asked = pool.map(lambda item: ask(item, deadline), [item for item in items if item[0] not in cheap])
        verdicts = [here(*item) if item[0] in cheap else next(asked) for item in items]
    gave_up.update(kind for (kind, *_), (_, lost) in zip(items, verdicts) if lost and kind not in cheap)
    return verdicts

def here(kind, completion, truth):
    reward, rule = verify(kind, completion, truth, explain=True)
    return reward, rule.startswith('gave up: ')

if __name__ == '__main__':
    if sys.argv[1:] == ['--worker']:
        out, sys.stdout = sys.stdout, sys.stderr  # what a function of the user's prints is no verdict
        for line in sys.stdin:
            print(json.dumps(here(*json.loads(line))), file=out, flush=True)
    elif len(sys.argv) == 3:
        try:
            check_truth(*sys.argv[1:])
        except ValueError as error:
            sys.exit(f'error: {error}')
        print(*verify(sys.argv[1], sys.stdin.read(), sys.argv[2], explain=True))
    else:
        print(__doc__)
