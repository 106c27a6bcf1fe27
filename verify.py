r"""All that decides right from wrong: verify(kind, completion, truth) -> float in [0, 1].

    python verify.py math '\frac12' < completion       # the verdict and the rule that fired

In doubt the verdict is 0.0: a false negative costs a sample, a false positive teaches to cheat.
Nothing a model wrote is executed (but by `code`, in a sandbox), raises, or is scanned more than
linearly. `gave_up` counts by kind the verdicts of 0.0 that rest on a limit or a bug of this file;
each process prints a bug once.

search     the embedded task; truth: {'numbers', 'target'}. The last line is an attempt like
           '9-8=1+5=6?6y', computed again: it uses each number once and reaches the target
sums       the other embedded task: the integer after the last '####', which must end the completion
gsm8k      truth: a number. After '####', in \boxed{}, after 'answer is', in <answer>; without any
           of them the last number
math       truth: LaTeX. In \boxed{}, after '####', after 'answer is', in <answer>; or one line
mcq        truth: 'C' or {'answer': 'C', 'options': ['A', ...]}. In \boxed{}, in <answer>, after
           '####', after 'answer is'; else in a sentence like 'B is correct'; or the letter alone
ifeval     truth: {'instruction_id_list', 'kwargs', 'mode': 'strict' or 'loose'}; the 25 rules of
           google-research, and those of TULU 3
countdown  truth: {'numbers', 'target'}; the last <answer> uses each number once, with + - * / and
           parentheses
code       truth: {'language', 'tests': [{'input', 'output'}], 'time_limit_s', 'memory_mb'}: a
           program, from stdin to stdout
f.py:g     g(completion, truth as text) -> float, of the user's own; or {name: float}, whose mean counts

Of several places the first that holds an answer decides, in the order above; within a place it is
the last answer there. A truth that is a dict may also be given as its text, in JSON or as Python
prints it. read_truth() makes the truth of a row the text that is judged.
"""
import functools
import importlib.util
import json
import os
import select
import subprocess
import sys
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from rewards.answers import GIVE_UPS, boxed, loaded, need
from rewards.arithmetic import gsm8k, gsm8k_answer, sums, sums_answer
from rewards.choice import mcq, mcq_answer
from rewards.countdown import countdown, countdown_answer
from rewards.ifeval import ifeval
from rewards.latex import exact
from rewards.mathematics import math, math_answer
from rewards.sandbox import check_language, code, sandboxed, tests_of
from rewards.search import search, search_answer
from rewards.truths import NUMBERS, right_form, text_of

__all__ = [
    'ANSWERS', 'KINDS', 'NAMES', 'boxed', 'bugs', 'check_truth', 'extract', 'gave_up', 'here',
    'kind_of', 'named_rewards', 'raise_bugs', 'read_truth', 'verify', 'verify_all']

gave_up = Counter()  # kind -> verdicts of 0.0 because neither right nor wrong could be shown
bugs = Counter()  # kind -> those of them that are this file's (or the user function's) own fault
raise_bugs = False  # the tests set it

# --- kinds ----------------------------------------------------------------------
# kind -> its judge: judge(completion, truth) -> (reward, the rule that fired)
KINDS = {
    'search': search,
    'sums': sums,
    'gsm8k': gsm8k,
    'math': math,
    'mcq': mcq,
    'ifeval': ifeval,
    'countdown': countdown,
    'code': code,
}

# kind -> what finds the answer in a completion, to vote on
ANSWERS = {
    'search': search_answer,
    'sums': sums_answer,
    'gsm8k': gsm8k_answer,
    'math': math_answer,
    'mcq': mcq_answer,
    'countdown': countdown_answer,
}

# kind -> names of data sets, in lower case
DATA_SETS = {
    'gsm8k': ('openai/gsm8k', 'svamp', 'chilled/svamp'),
    'math': (
        'lighteval/math', 'digitallearninggmbh/math-lighteval', 'huggingfaceh4/math-500',
        'math-500', 'math500', 'math_dapo', 'hendrycks/competition_math',
        'eleutherai/hendrycks_math'),
    'mcq': ('aqua', 'aqua_rat', 'mmlu', 'arc', 'gpqa'),
    'ifeval': ('google/ifeval',),
    'countdown': ('jiayi-pan/countdown-tasks-3to4',),
    'code': ('code_stdio', 'codecontests', 'apps', 'taco'),
}
NAMES = {name: kind for kind, names in DATA_SETS.items() for name in names}


def named_rewards(given):
    """What a function of the user's gives, as {name: reward}: a single number has the name 'reward'."""
    if isinstance(given, dict):
        return given
    return {'reward': given}


@functools.lru_cache(64)
def own(kind):
    """The user's function 'file.py:function' as a judge. Raises ValueError if there is none."""
    path, _, name = kind.rpartition(':')
    module_name = os.path.basename(path).removesuffix('.py')
    # the file need not be on Python's path
    try:
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, name)
    except (OSError, AttributeError, SyntaxError, ImportError) as error:
        raise ValueError(f'verifier {kind!r}: {error}') from error

    def judge(completion, truth, **opts):
        given = named_rewards(function(completion, truth, **opts))
        rewards = {name: float(reward) for name, reward in given.items()}
        need(rewards, f'{kind} gave no reward')
        for reward in rewards.values():
            # NaN is neither
            need(0 <= reward <= 1, f'{kind} gave {reward}, not in [0, 1]')
        return sum(rewards.values()) / len(rewards), kind
    return judge


def judge_of(kind):
    """The function of a kind. Raises ValueError listing known kinds."""
    if kind in KINDS:
        return KINDS[kind]
    # the file is loaded at its first use
    if '.py:' in str(kind):
        return own(kind)
    raise ValueError(f'no verifier {kind!r}; kinds: {", ".join(KINDS)}')


def kind_of(name):
    """The kind for rows whose dataset or data_source is `name`: 'gsm8k' for 'openai/gsm8k'.

    Raises ValueError listing known kinds.
    """
    name = str(name).strip()
    lower = name.lower()
    # a path keeps its capitals
    if '.py:' in name:
        kind = name
    # aime24, AIME2025, HuggingFaceH4/aime_2024
    elif lower.rpartition('/')[2].startswith('aime'):
        kind = 'math'
    else:
        kind = NAMES.get(lower, lower)
    # ValueError for an unknown one
    judge_of(kind)
    return kind


# --- truths ---------------------------------------------------------------------
def read_truth(kind, value):
    """The truth of a row as the one text that verify() is to be given, checked.

    value is as JSON, Parquet or pandas gave it: read_truth('math', [34.0]) is '34'. A dict becomes
    JSON. Raises ValueError saying what is wrong with a truth that cannot be judged.
    """
    judge_of(kind)
    # 1. one text, whatever the file made of it
    try:
        text = text_of(kind, value)
    except GIVE_UPS as error:
        raise ValueError(f'{kind}: cannot read the truth {value!r:.200}: {error}') from error

    # 2. this text, which is the one that is judged by, must be good
    check_truth(kind, text)
    return text


def check_truth(kind, truth):
    """Raises ValueError naming a truth that cannot be read or judged by here: a broken row."""
    judge = judge_of(kind)
    try:
        if kind in NUMBERS or kind == 'mcq':
            check_by_itself(kind, truth)
        elif kind == 'code':
            check_code(truth)
        elif kind in KINDS:
            # a word that follows hardly any instruction, so that all of the truth is read
            judge('a', truth)
        else:
            # what a function of the user's reads is its own business
            need(truth is not None, 'one text is needed')
    # a broken truth may raise anything
    except Exception as error:
        raise ValueError(f'{kind}: cannot read the truth {truth!r:.200}: {error}') from error


def check_by_itself(kind, truth):
    """Raises GaveUp unless a completion that gives the truth itself is right."""
    # 1. the answer that a right completion gives
    right = truth
    if kind == 'mcq':
        need(truth is not None, 'one text is needed')
        choices = loaded(truth)
        if isinstance(choices, dict):
            right = choices['answer']
    else:
        is_plain = isinstance(truth, (str, int, float)) and not isinstance(truth, bool)
        need(is_plain, 'one text is needed')

    # 2. the verdict on it
    reward, _ = KINDS[kind](right_form(kind, right), truth)
    need(reward == 1, 'it is not right by itself')


def check_code(truth):
    """Raises GaveUp if the tests are broken or if programs cannot be run here."""
    tests = tests_of(truth)
    check_language(tests.language)
    need(sandboxed(), "no sandbox here (unshare); a function of your own may use sandbox='none'")


# --- verdicts -------------------------------------------------------------------
def extract(kind, completion):
    """The answer in a completion as text to vote on (maj@k), '1/2' for 0.5; None without one."""
    # code and functions of the user's have no answer to vote on
    if kind not in ANSWERS or not isinstance(completion, str):
        return None
    answer = ANSWERS[kind](completion)
    # 0.5 and \frac12 are one vote
    if kind == 'math' and answer and '%' not in answer:
        number = exact(answer)
        if number is not None:
            answer = number
    if answer is None:
        return None
    return str(answer)


def verify(kind, completion, truth, explain=False, **opts):
    """Reward in [0, 1]; with explain=True (reward, the rule that fired).

    Options: mode, fraction (ifeval), sandbox (code). What a model writes never raises here. An
    unknown kind and a bug of a verifier are counted, and printed once.
    """
    try:
        judge = judge_of(kind)
        # a caller may give what is no text
        if isinstance(completion, str):
            reward, rule = judge(completion, truth, **opts)
        else:
            reward, rule = 0.0, 'no text'
    # the text is too long, too deep or makes no sense
    except GIVE_UPS as error:
        reward, rule = give_up(kind, error)
    except Exception as error:
        # a bug of a verifier, but what a model writes must not end a run
        if raise_bugs:
            raise
        bugs[kind] += 1
        if bugs[kind] == 1:
            traceback.print_exc()
        reward, rule = give_up(kind, error)
    if explain:
        return reward, rule
    return reward


def give_up(kind, error):
    """Counts a verdict that could not be reached; (0.0, why)."""
    gave_up[kind] += 1
    return 0.0, f'gave up: {type(error).__name__} {error}'


# --- many verdicts --------------------------------------------------------------
CHEAP = ('search', 'sums', 'gsm8k', 'mcq', 'countdown')  # kinds that are judged in this process
idle = []  # worker processes between calls of verify_all


def here(kind, completion, truth):
    """(reward, whether it was given up) by this process."""
    reward, rule = verify(kind, completion, truth, explain=True)
    return reward, rule.startswith('gave up: ')


def new_worker():
    """A process that judges: a line of JSON in, a line of JSON out."""
    command = [sys.executable, os.path.abspath(__file__), '--worker']
    pipe = subprocess.PIPE
    # a session of its own, so that Ctrl-C reaches only this process
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)


def ask(item, deadline):
    """A worker process's (reward, given up).

    A worker that dies or is too slow is ended, and its item is given up.
    """
    # 1. an idle worker, or a new one
    try:
        worker = idle.pop()
    except IndexError:
        worker = new_worker()

    # 2. ask it
    try:
        worker.stdin.write(json.dumps(item).encode() + b'\n')
        worker.stdin.flush()
        ready, _, _ = select.select([worker.stdout], [], [], deadline)
        line = worker.stdout.readline() if ready else ''
        # no line is no JSON: ValueError
        reward, given_up = json.loads(line)
        idle.append(worker)
    # a dead worker is a broken pipe: OSError
    except (OSError, ValueError):
        worker.kill()
        worker.wait()
        reward, given_up = 0.0, True
    return reward, given_up


def verify_all(items, workers=None, deadline=120.0):
    """[(reward, given up)] of [(kind, completion, truth)].

    Cheap kinds are judged here, others by worker processes, which have `deadline` seconds an item.
    """
    if workers is None:
        # the other ranks of this machine have their share of the cores
        cores = (os.cpu_count() or 1) // int(os.environ.get('LOCAL_WORLD_SIZE', 1))
        workers = max(1, min(16, cores))
    # the order of the verdicts is that of the items
    costly = [item for item in items if item[0] not in CHEAP]
    with ThreadPoolExecutor(workers) as pool:
        # the workers are busy while this process judges the cheap kinds
        answers = pool.map(lambda item: ask(item, deadline), costly)
        verdicts = []
        for item in items:
            verdict = here(*item) if item[0] in CHEAP else next(answers)
            verdicts.append(verdict)

    # here() counted its own give-ups
    for (kind, _, _), (_, given_up) in zip(items, verdicts):
        if given_up and kind not in CHEAP:
            gave_up[kind] += 1
    return verdicts


def work():
    """A worker process: reads items from stdin until it ends, writes verdicts to stdout."""
    # what a function of the user's prints is no verdict
    out = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        verdict = here(*json.loads(line))
        print(json.dumps(verdict), file=out, flush=True)


def main(arguments):
    """The command line: python verify.py KIND TRUTH < completion."""
    if arguments == ['--worker']:
        work()
        return
    if len(arguments) != 2:
        print(__doc__)
        return
    kind, truth = arguments
    # the same check as of a row's truth
    try:
        truth = read_truth(kind, truth)
    except ValueError as error:
        sys.exit(f'error: {error}')
    reward, rule = verify(kind, sys.stdin.read(), truth, explain=True)
    print(reward, rule)


if __name__ == '__main__':
    main(sys.argv[1:])
