"""Programs that a model wrote, judged by what they print, in a sandbox of Linux namespaces.

A truth (kind `code`) has a language and tests: inputs, and the output that each must give. `code`
runs the program of a completion on each input and compares. Only text goes in and comes out, so one
judge serves every language. No test calls a function of the program.

A language is a row: the name of the program's file, the command that builds it, the command that
runs it. LANGUAGES has 16 rows. A truth may define a language of its own, and so may a line of a
file (`read_languages`), as in Agnostics (arXiv 2508.04865).

No program is run or compiled outside the sandbox, which is made of
1. namespaces (`unshare`): there is no network, and all processes of a program end with it;
2. read-only files, but for those of a folder that is deleted afterwards;
3. limits on seconds, memory, processes and output.
"""
import functools
import json
import math
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

from rewards.answers import GaveUp, after_thinking, loaded, need

# exit statuses of the sandbox itself; any other is the program's own
TOO_MUCH_OUTPUT = 95
NO_PROGRAM = 96  # the command is not installed
NO_SANDBOX = 97
OUT_OF_MEMORY = 98
OUT_OF_TIME = 99

# limits of a build, and of a check whether a text is a program at all
BUILD_SECONDS = 60
CHECK_SECONDS = 10
BUILD_MEMORY_MB = 4096
# limits of a test whose truth has none
TEST_SECONDS = 10
TEST_MEMORY_MB = 1024
# bytes that a program may print, beside twice the output that is wanted
MAX_OUTPUT = 2 ** 20
# characters of a completion without a code block that may be a program
MAX_BARE = 50000


# --- languages -------------------------------------------------------------------
@dataclass(frozen=True)
class Language:
    """How programs of a language are built and run.

    A command is split into words as by a shell, but no shell runs it: no pipes, no variables.
    """
    name: str
    file: str  # the name that the program's file gets
    run: str  # the command that runs it
    build: str = ''  # the command that builds it; '': nothing is built
    check: str = ''  # a command that fails if the file is no program, and does not run it; '': none
    aliases: tuple = ()  # further names, also behind the ``` of a code block

    def names(self):
        """The name and the further names."""
        return (self.name, *self.aliases)


# the Python that runs this file
PYTHON = shlex.quote(sys.executable)
BUILT_IN = [
    # interpreted languages
    Language('python', 'main.py', run=f'{PYTHON} main.py', aliases=('py', 'python3'),
             check=f'''{PYTHON} -c "compile(open('main.py', 'rb').read(), 'main.py', 'exec')"'''),
    # to bash most prose is a program of unknown commands, which then fails its tests
    Language('bash', 'main.sh', run='bash main.sh', check='bash -n main.sh',
             aliases=('sh', 'shell')),
    Language('javascript', 'main.js', run='node main.js', check='node --check main.js',
             aliases=('js', 'node')),
    Language('perl', 'main.pl', run='perl main.pl', check='perl -c main.pl', aliases=('pl',)),
    Language('ruby', 'main.rb', run='ruby main.rb', check='ruby -c main.rb', aliases=('rb',)),
    Language('lua', 'main.lua', run='lua main.lua',
             check='''lua -e "assert(loadfile('main.lua'))"'''),
    # interpreted languages without a command that only checks
    Language('awk', 'main.awk', run='awk -f main.awk'),
    Language('r', 'main.R', run='Rscript main.R'),
    Language('julia', 'main.jl', run='julia main.jl', aliases=('jl',)),
    # compiled languages, which the build checks
    Language('c', 'main.c', build='gcc -O2 -o main main.c -lm', run='./main'),
    Language('cpp', 'main.cpp', build='g++ -O2 -o main main.cpp', run='./main',
             aliases=('c++', 'cc', 'cxx')),
    Language('go', 'main.go', build='go build -o main main.go', run='./main', aliases=('golang',)),
    Language('rust', 'main.rs', build='rustc -O -o main main.rs', run='./main', aliases=('rs',)),
    Language('java', 'Main.java', build='javac Main.java', run='java Main'),
    Language('ocaml', 'main.ml', run='./main', aliases=('ml',),
             build='ocamlfind ocamlopt -package str -linkpkg -o main main.ml'),
    Language('fortran', 'main.f90', build='gfortran -O2 -o main main.f90', run='./main',
             aliases=('f90',)),
]
LANGUAGES = {language.name: language for language in BUILT_IN}


def find_language(name, languages):
    """The Language of that name or further name, in any case; None without one."""
    for language in languages.values():
        if name.strip().lower() in language.names():
            return language
    return None


def check_language(language):
    """Raises GaveUp if a program that the language needs is not installed here."""
    for command in (language.build, language.check, language.run):
        words = shlex.split(command)
        # ./main is what the build makes
        if words and not words[0].startswith('./'):
            is_installed = shutil.which(words[0]) is not None
            need(is_installed, f'{words[0]} is not installed, which {language.name} needs')


# --- languages that a truth or a file defines --------------------------------------
# the fields of Language
LANGUAGE_KEYS = ('name', 'file', 'build', 'run', 'check', 'aliases')
# shown in error messages
EXAMPLE = '{"name": "tcl", "file": "main.tcl", "run": "tclsh main.tcl"}'
# letters, digits, and between them . _ + -; no folder
FILE_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.+-]*')


def is_absent(value):
    """Whether a value is null, or pandas' NaN of an empty column."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan


def text_of(fields, key, is_required):
    """A text of a language's definition. Raises GaveUp if it is of another type or missing."""
    value = fields.get(key)
    if is_absent(value):
        value = ''
    need(isinstance(value, str), f'{key} must be a text, not {value!r}')
    need(value.strip() or not is_required, f'a language needs {key}')
    return value.strip()


def command_of(fields, key, is_required=False):
    """A command of a language's definition. Raises GaveUp if it cannot be split into words."""
    command = text_of(fields, key, is_required)
    try:
        shlex.split(command)
    except ValueError as error:
        raise GaveUp(f'{key} is no command: {error} in {command!r}') from error
    return command


def defined_language(fields):
    """The Language that a dict defines. Raises GaveUp on whatever is unknown, missing or unsafe."""
    # 1. a misspelt key must not be silent
    need(isinstance(fields, dict), f'a language is a dict, not {fields!r}')
    for key in fields:
        need(key in LANGUAGE_KEYS, f'unknown key {key!r}; known are {", ".join(LANGUAGE_KEYS)}')

    # 2. the file must stay in the folder of the sandbox
    file = text_of(fields, 'file', is_required=True)
    is_plain = FILE_NAME.fullmatch(file) is not None
    need(is_plain, f'file must be a plain file name without a folder, not {file!r}')

    # 3. further names are a list: of one text each letter would be a name
    aliases = fields.get('aliases')
    if is_absent(aliases):
        aliases = []
    is_list = isinstance(aliases, (list, tuple))
    need(is_list and all(isinstance(alias, str) for alias in aliases),
         f'aliases must be a list of texts, not {aliases!r}')

    # 4. names are compared in small letters
    return Language(
        name=text_of(fields, 'name', is_required=True).lower(),
        file=file,
        run=command_of(fields, 'run', is_required=True),
        build=command_of(fields, 'build'),
        check=command_of(fields, 'check'),
        aliases=tuple(alias.strip().lower() for alias in aliases),
    )


def language_of_line(line):
    """The Language that a line of JSON defines. Raises GaveUp."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise GaveUp('the line is not JSON') from error
    return defined_language(fields)


def read_languages(path):
    """The languages that a file defines, one a line in JSON: name -> Language.

    Raises ValueError that names file, line, what is wrong and how a line should look.
    """
    try:
        with open(path, encoding='utf-8') as file:
            lines = file.readlines()
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: cannot read the languages: {error}') from error

    languages = {}
    for number, line in enumerate(lines, start=1):
        # blank lines may separate others
        if not line.strip():
            continue
        try:
            language = language_of_line(line)
            # a name or further name must not have two meanings
            for name in language.names():
                is_new = find_language(name, languages) is None
                need(is_new, f'{name!r} is already the name of a language above')
        except GaveUp as error:
            raise ValueError(f'{path}:{number}: {error}. A line looks like {EXAMPLE}; '
                             'build, check and aliases (a list) may be added.') from error
        languages[language.name] = language
    # an empty file is a mistake, too
    if not languages:
        raise ValueError(f'{path}: no language in it. A line looks like {EXAMPLE}.')
    return languages


def definition(language):
    """The dict that defines a Language: defined_language() of it is the Language again."""
    fields = asdict(language)
    fields['aliases'] = list(language.aliases)
    # an empty field has its default anyway
    return {key: value for key, value in fields.items() if value}


def with_language(truth, languages):
    """The truth with the definition of its language written into it, if `languages` has it.

    A truth then says all that a verdict needs, in worker processes and in resumed runs too. The
    file's language of a built-in name replaces the built-in one. Any other truth is returned as it
    is. A truth given as text stays text.
    """
    # 1. a dict; a list of tests is a truth without a language, which is Python
    fields = loaded(truth)
    if isinstance(fields, list):
        fields = {'tests': fields}
    if not isinstance(fields, dict):
        return truth
    name = fields.get('language')
    if is_absent(name):
        name = 'python'
    # a truth may have defined its language itself
    if not isinstance(name, str):
        return truth

    # 2. the file's language of that name; 'py' is also the file's 'python'
    language = find_language(name, languages)
    built_in = find_language(name, LANGUAGES)
    if language is None and built_in is not None:
        language = languages.get(built_in.name)
    if language is None:
        return truth

    # 3. in the form in which the truth was given
    fields = {**fields, 'language': definition(language)}
    return json.dumps(fields) if isinstance(truth, str) else fields


# --- the sandbox -------------------------------------------------------------------
# LAUNCH is a Python program of its own, the first process of the sandbox. It prepares the sandbox,
# starts the command, watches it, and exits with the command's exit status or one of those above.
# Its parts, in order:

# 1. the exit statuses of the sandbox itself, by their names
STATUSES = f'''
NO_PROGRAM = {NO_PROGRAM}
NO_SANDBOX = {NO_SANDBOX}
OUT_OF_MEMORY = {OUT_OF_MEMORY}
OUT_OF_TIME = {OUT_OF_TIME}
'''
# 2. what `start` passes, and limits that no truth sets
ARGUMENTS = r'''
import ctypes
import os
import resource
import signal
import sys
import time

folder, seconds, memory_mb, sandbox, *command = sys.argv[1:]
is_isolated = sandbox != 'none'
max_memory = float(memory_mb) * 2 ** 20  # bytes of all processes together
max_processes = 500
max_file = 2 ** 26  # bytes
'''
# 3. All files become read-only but those of the folder. Only this process and its children see
# that. Python has no function for mounts, so the C library is called. The numbers are those of
# mount.h, fcntl.h and unistd.h of Linux. Both calls return 0 if they succeed.
READ_ONLY = r'''
MS_BIND = 4096
MOUNT_ATTR_RDONLY = 1
AT_FDCWD = -100
AT_RECURSIVE = 0x8000
SYS_MOUNT_SETATTR = 442

def mount_setattr(path, flags, attr_set, attr_clr):
    # struct mount_attr: what to set, what to clear, propagation, user namespace; 8 bytes each
    attributes = (ctypes.c_uint64 * 4)(attr_set, attr_clr, 0, 0)
    return libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path, flags, attributes, 32)

if is_isolated:
    libc = ctypes.CDLL(None)
    place = folder.encode()
    # the folder becomes a mount of its own, so that it can differ from what is around it
    if libc.mount(place, place, None, MS_BIND, None):
        os._exit(NO_SANDBOX)
    # everything read-only, with all that is mounted below
    if mount_setattr(b'/', AT_RECURSIVE, MOUNT_ATTR_RDONLY, 0):
        os._exit(NO_SANDBOX)
    # the folder writable again
    if mount_setattr(place, 0, 0, MOUNT_ATTR_RDONLY):
        os._exit(NO_SANDBOX)
os.chdir(folder)
'''
# 4. A child process becomes the command. Its process group can be killed as a whole, its files
# cannot grow without end, and a crash leaves no core dump.
BECOME_COMMAND = r'''
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file, max_file))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        os.execvp(command[0], command)
    except OSError:
        os._exit(NO_PROGRAM)
'''
# 5. This process watches until the command ends or all processes together are over a limit.
WATCH = r'''
page = os.sysconf('SC_PAGE_SIZE')
end = time.monotonic() + float(seconds)

def memory_of(pid):
    # the second number of statm is the resident memory in pages; the process may have ended
    try:
        with open(f'/proc/{pid}/statm') as f:
            return int(f.read().split()[1]) * page
    except (OSError, IndexError):
        return 0

while True:
    # as process 1 of its namespace it also reaps the orphans of the command
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid == child:
        code = os.waitstatus_to_exitcode(status)
        break
    # in a namespace /proc has the processes of the sandbox only; this one is number 1
    pids = [str(child)]
    if is_isolated:
        pids = [p for p in os.listdir('/proc') if p.isdigit() and p != '1']
    if sum(memory_of(p) for p in pids) > max_memory or len(pids) > max_processes:
        code = OUT_OF_MEMORY
        break
    if time.monotonic() > end:
        code = OUT_OF_TIME
        break
    time.sleep(0.005)
'''
# 6. With process 1 a namespace ends, and all that runs in it. Without a namespace the process group
# is killed. A command that a signal ended has a negative code; shells write 128 + signal for it.
END = r'''
if not is_isolated:
    try:
        os.killpg(child, signal.SIGKILL)
    except OSError:
        pass
os._exit(code if code >= 0 else 128 - code)
'''
LAUNCH = STATUSES + ARGUMENTS + READ_ONLY + BECOME_COMMAND + WATCH + END

# a user namespace, in which this user may mount; no network; process numbers of its own
ISOLATE = 'unshare --user --map-root-user --net --pid --mount-proc --fork --kill-child --'.split()


def start(command, folder, text, seconds, memory, sandbox):
    """Starts a command in the sandbox: a process whose stdout is a pipe; None without `unshare`."""
    # -I and -S: neither the user's settings nor packages, which also starts Python sooner
    launch = [sys.executable, '-I', '-S', '-c', LAUNCH]
    launch += [folder, str(seconds), str(memory), sandbox, *command]
    if sandbox != 'none':
        launch = ISOLATE + launch
    # nothing of our environment but where programs are; caches go to the folder
    environment = {
        'PATH': os.environ.get('PATH', os.defpath),
        'HOME': os.environ.get('HOME', '/'),
        'LANG': 'C.UTF-8',
        'TMPDIR': folder,
        'GOCACHE': f'{folder}/.go',
        'PYTHONDONTWRITEBYTECODE': '1',
    }
    # the input is a file: a program that does not read it cannot block us
    with tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode('utf-8', 'replace'))
        stdin.seek(0)
        try:
            return subprocess.Popen(launch, env=environment, stdin=stdin,
                                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except OSError:
            return None


def read_output(pipe, end, cap):
    """What comes through a pipe until it closes, or the time is `end`, or over `cap` bytes came."""
    output = b''
    while len(output) <= cap:
        # wait for more, but not beyond the end
        left = max(0.0, end - time.monotonic())
        ready, _, _ = select.select([pipe], [], [], left)
        if not ready:
            break
        # nothing to read from a ready pipe: it was closed
        piece = os.read(pipe.fileno(), 2 ** 16)
        if not piece:
            break
        output += piece
    return output


def run_program(command, folder, text, seconds, memory, sandbox, cap=MAX_OUTPUT):
    """Runs a command (a list of words) in a folder: exit status, output.

    text: its input; seconds, memory (MB): its limits; sandbox: 'namespace' or 'none'; cap: bytes of
    output. The exit status is the command's own or one of those at the top of this file.
    """
    # 1. the launcher has the time limit, too; two seconds more are for its start and end
    process = start(command, folder, text, seconds, memory, sandbox)
    if process is None:
        return NO_SANDBOX, ''
    end = time.monotonic() + seconds + 2

    # 2. its output, and its end; a program that printed too much is not waited for
    with process.stdout:
        output = read_output(process.stdout, end, cap)
        is_full = len(output) > cap
        left = 0.0 if is_full else max(0.0, end - time.monotonic())
        try:
            process.wait(left)
        except subprocess.TimeoutExpired:
            # --kill-child ends all of the sandbox with it
            process.kill()
            process.wait()
            return TOO_MUCH_OUTPUT if is_full else OUT_OF_TIME, ''
    return process.returncode, output.decode('utf-8', 'replace')


@functools.lru_cache(1)
def sandboxed():
    """Whether programs can be isolated here."""
    with tempfile.TemporaryDirectory() as folder:
        status, _ = run_program(['true'], folder, '', 5, 512, 'namespace')
    return status == 0


# --- the program in a completion ---------------------------------------------------
# a block's language (the word behind the opening ```) and its text
BLOCK = re.compile(r'(?ms)^[ \t]*```[ \t]*([^\s`]*)[^\n]*\n(.*?)^[ \t]*```')
# a line that opens or closes a block
FENCE = re.compile(r'(?m)^[ \t]*(?:```|~~~)')


def program_of(text, names):
    """The last code block with one of the language's names, else the last without a name.

    None if there is neither: a block that is never closed does not count.
    """
    text = after_thinking(text).replace('\r\n', '\n').replace('~~~', '```')
    named = None
    unnamed = None
    for tag, body in BLOCK.findall(text):
        if tag.lower() in names:
            named = body
        elif tag == '':
            unnamed = body
    return unnamed if named is None else named


def bare_text(completion):
    """A completion without any fence, which may be a program as a whole; '' if it has one."""
    text = after_thinking(completion).replace('\r\n', '\n')
    if len(text) > MAX_BARE or FENCE.search(text):
        return ''
    return text.strip()


# --- the reading of a truth ----------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """A test: what the program reads and what it must print."""
    input: str
    output: str


@dataclass(frozen=True)
class Tests:
    """What a truth says."""
    language: Language
    cases: list  # of Case
    seconds: float  # limits of each test
    memory_mb: float


def language_of(fields):
    """The Language of a truth: built-in, or defined by the truth; Python without one."""
    wanted = fields.get('language')
    if isinstance(wanted, dict):
        return defined_language(wanted)
    if is_absent(wanted):
        wanted = 'python'
    language = find_language(str(wanted), LANGUAGES)
    known = ', '.join(LANGUAGES)
    is_known = language is not None
    need(is_known, f'unknown language {wanted!r}; known are {known}. A truth may define another, '
         f'"language": {EXAMPLE}, or a file of such lines may: --languages=FILE.')
    return language


def pairs_of(fields):
    """[(input, output)] of a truth, in any form that rows have."""
    # 1. verl's and PRIME's: a list of inputs and a list of outputs
    tests = fields.get('tests') or fields.get('test_cases')
    inputs = fields.get('inputs')
    outputs = fields.get('outputs')
    if not tests and isinstance(inputs, list) and isinstance(outputs, list):
        n_inputs, n_outputs = len(inputs), len(outputs)
        need(n_inputs == n_outputs, f'{n_inputs} inputs and {n_outputs} outputs are no pairs')
        return list(zip(inputs, outputs))

    # 2. one test alone, without a list around it
    if not tests and 'input' in fields:
        tests = [fields]

    # 3. ours and Agnostics': a list of tests
    need(tests and isinstance(tests, list), 'tests are needed: [{"input": ..., "output": ...}]')
    pairs = []
    for test in tests:
        is_test = isinstance(test, dict) and 'input' in test and 'output' in test
        need(is_test, f'a test is {{"input": ..., "output": ...}}, not {test!r}')
        # LiveCodeBench's name for a test that calls a function
        need(test.get('testtype') != 'functional', 'tests that call a function cannot be judged')
        pairs.append((test['input'], test['output']))
    return pairs


def cases_of(fields):
    """The Cases of a truth. Raises GaveUp on tests that are not text in and text out."""
    # 1. verl's and PRIME's name of the function that the tests call
    function = fields.get('fn_name')
    need(is_absent(function), f'the tests call a function ({function}); only programs that read '
         'standard input and print can be judged')

    # 2. a number as output, say, would leave open how it is to be printed
    cases = []
    for number, (given, wanted) in enumerate(pairs_of(fields), start=1):
        need(isinstance(given, str), f'the input of test {number} must be a text, not {given!r}')
        need(isinstance(wanted, str), f'the output of test {number} must be a text, not {wanted!r}')
        cases.append(Case(given, wanted))
    need(cases, 'at least one test is needed')
    return cases


def limit_of(fields, keys, default):
    """The first of these limits that a truth has. Raises GaveUp if it is no positive number."""
    for key in keys:
        value = fields.get(key)
        # 0 and null leave it to the default
        if value and not is_absent(value):
            limit = float(value)
            need(0 < limit < math.inf, f'{key} must be a positive number, not {value!r}')
            return limit
    return float(default)


def tests_of(truth):
    """The Tests of a truth, in our form, Agnostics' or verl's. Raises GaveUp."""
    fields = loaded(truth)
    # a list of tests for a Python program
    if isinstance(fields, list):
        fields = {'tests': fields}
    fields = loaded(fields, dict)
    return Tests(
        language=language_of(fields),
        cases=cases_of(fields),
        seconds=limit_of(fields, ('time_limit_s', 'timeout_s'), TEST_SECONDS),
        memory_mb=limit_of(fields, ('memory_mb',), TEST_MEMORY_MB),
    )


# --- the verdict -------------------------------------------------------------------
# what a verdict says about an exit status; of any other it says the number
FAULTS = {
    0: 'wrong output',
    TOO_MUCH_OUTPUT: 'too much output',
    OUT_OF_MEMORY: 'memory',
    OUT_OF_TIME: 'time',
}


def execute(language, command, folder, sandbox, text='', seconds=BUILD_SECONDS,
            memory=BUILD_MEMORY_MB, cap=MAX_OUTPUT):
    """run_program for a command of a language. Raises GaveUp if nothing could be run."""
    words = shlex.split(command)
    status, output = run_program(words, folder, text, seconds, memory, sandbox, cap)
    need(status != NO_PROGRAM, f'{language.name} is not installed')
    need(status != NO_SANDBOX, "no sandbox; sandbox='none' does without")
    return status, output


def fault_of_program(language, folder, sandbox, is_bare):
    """Builds the program in the folder: what is wrong with it; '' if nothing is.

    is_bare: it is a completion without a code block, which may not be a program at all.
    """
    # 1. a compiler tells programs from other texts
    if language.build:
        status, _ = execute(language, language.build, folder, sandbox)
        return 'does not compile' if status else ''

    # 2. what is in a code block is meant to be one
    if not is_bare:
        return ''

    # 3. any other text must pass the check of its language
    if not language.check:
        return 'no code block'
    status, _ = execute(language, language.check, folder, sandbox, seconds=CHECK_SECONDS)
    return f'no code block, and no {language.name}' if status else ''


def trimmed_lines(text):
    """The lines of a text without blanks at their ends and without blank lines at its end."""
    return [line.rstrip() for line in text.rstrip().split('\n')]


def fault_of_run(tests, case, folder, sandbox):
    """Runs the program in the folder on a test: what is wrong; '' if nothing is."""
    language = tests.language
    status, output = execute(
        language,
        language.run,
        folder,
        sandbox,
        text=case.input,
        seconds=tests.seconds,
        memory=tests.memory_mb,
        cap=MAX_OUTPUT + 2 * len(case.output),
    )
    # a program that prints the right output and then fails is wrong
    is_right = trimmed_lines(output) == trimmed_lines(case.output)
    if status == 0 and is_right:
        return ''
    return FAULTS.get(status, f'exit {status}')


def code(completion, truth, sandbox='namespace'):
    """1.0 if each test's output is right but for blanks at line ends, else 0.0; and the reason.

    sandbox: 'none' runs programs without one. Raises GaveUp if none could be run.
    """
    # 1. the tests, and the program: a code block, or a completion that has none
    tests = tests_of(truth)
    language = tests.language
    source = program_of(completion, language.names())
    is_bare = source is None
    if is_bare:
        source = bare_text(completion)
    if not source:
        return 0.0, 'no code block'

    with tempfile.TemporaryDirectory(prefix='verify') as folder:
        # 2. the program's file, and what the build makes of it
        built = os.path.join(folder, 'built')
        os.mkdir(built)
        path = os.path.join(built, language.file)
        with open(path, 'w', encoding='utf-8', errors='replace') as file:
            file.write(source)
        fault = fault_of_program(language, built, sandbox, is_bare)
        if fault:
            return 0.0, fault

        # 3. each test in a copy, so that none sees another's files; the first fault ends it
        for number, case in enumerate(tests.cases, start=1):
            place = os.path.join(folder, str(number))
            shutil.copytree(built, place)
            fault = fault_of_run(tests, case, place, sandbox)
            shutil.rmtree(place)
            if fault:
                return 0.0, f'test {number}: {fault}'
    return 1.0, f'{len(tests.cases)} tests'
