"""Programs that a model wrote, judged by what they print, in a sandbox of Linux namespaces."""
import functools
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time

from rewards.answers import after_thinking, loaded, need

PROGRAMS = {  # language: file, compile, run, further names of the language
    'python': ('main.py', '', f'{sys.executable} main.py', 'py python3'),
    'bash': ('main.sh', '', 'bash main.sh', 'sh shell'),
    'c': ('main.c', 'gcc -O2 -o main main.c -lm', './main', ''),
    'cpp': ('main.cpp', 'g++ -O2 -o main main.cpp', './main', 'c++ cc cxx'),
    'javascript': ('main.js', '', 'node main.js', 'js node'),
    'perl': ('main.pl', '', 'perl main.pl', 'pl'),
    'awk': ('main.awk', '', 'awk -f main.awk', ''),
    'lua': ('main.lua', '', 'lua main.lua', ''),
    'ruby': ('main.rb', '', 'ruby main.rb', 'rb'),
    'go': ('main.go', 'go build -o main main.go', './main', 'golang'),
    'rust': ('main.rs', 'rustc -O -o main main.rs', './main', 'rs'),
    'java': ('Main.java', 'javac Main.java', 'java Main', ''),
    'ocaml': ('main.ml', 'ocamlfind ocamlopt -package str -linkpkg -o main main.ml', './main', 'ml'),
    'fortran': ('main.f90', 'gfortran -O2 -o main main.f90', './main', 'f90'),
    'r': ('main.R', '', 'Rscript main.R', ''),
    'julia': ('main.jl', '', 'julia main.jl', 'jl')}
LAUNCH = r"""
import ctypes, os, resource, signal, sys, time
folder, seconds, memory, sandbox, *command = sys.argv[1:]
# this is process 1 of its namespace: all files read-only but the folder, all die with it
if sandbox != 'none':
    libc, place = ctypes.CDLL(None), folder.encode()
    def mount_setattr(path, flags, on, off):
        return libc.syscall(442, -100, path, flags, (ctypes.c_uint64 * 4)(on, off, 0, 0), 32)
    bound = libc.mount(place, place, None, 4096, None)
    if bound or mount_setattr(b'/', 0x8000, 1, 0) or mount_setattr(place, 0, 0, 1):
        os._exit(97)
os.chdir(folder)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 26, 2 ** 26))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        os.execvp(command[0], command)
    except OSError:
        os._exit(96)
end, page = time.monotonic() + float(seconds), os.sysconf('SC_PAGE_SIZE')
while True:
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid == child:
        code = os.waitstatus_to_exitcode(status)
        break
    used, pids = 0, [str(child)]
    if sandbox != 'none':
        pids = [p for p in os.listdir('/proc') if p.isdigit() and p != '1']
    for p in pids:
        try:
            with open(f'/proc/{p}/statm') as f:
                used += int(f.read().split()[1]) * page
        except (OSError, IndexError):
            pass
    code = 98 if used > float(memory) * 2 ** 20 or len(pids) > 500 else 99 if time.monotonic() > end else None
    if code:
        break
    time.sleep(0.005)
if sandbox == 'none':
    try:
        os.killpg(child, signal.SIGKILL)
    except OSError:
        pass
os._exit(code if code >= 0 else 128 - code)
"""

def run_program(command, folder, text, seconds, memory, sandbox, cap=2**20):
    """Exit status (96: no such program, 97: no sandbox, 98: memory, 99: time, 95: output) and output."""
    isolate = 'unshare --user --map-root-user --net --pid --mount-proc --fork --kill-child --'.split()
    launch = [sys.executable, '-I', '-S', '-c', LAUNCH, folder, str(seconds), str(memory), sandbox, *command]
    env = {'PATH': os.environ.get('PATH', os.defpath), 'HOME': os.environ.get('HOME', '/'), 'LANG': 'C.UTF-8',
           'TMPDIR': folder, 'GOCACHE': f'{folder}/.go', 'PYTHONDONTWRITEBYTECODE': '1'}
    with tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode('utf-8', 'replace'))
        stdin.seek(0)
        try:
            process = subprocess.Popen(([] if sandbox == 'none' else isolate) + launch, env=env, stdin=stdin,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except OSError:
            return 97, ''
    output, end, full = b'', time.monotonic() + seconds + 2, False
    with process.stdout:
        while (left := end - time.monotonic()) > 0 and not full:
            if select.select([process.stdout], [], [], left)[0]:
                piece = os.read(process.stdout.fileno(), 2**16)
                output += piece
                full = len(output) > cap
                if not piece:
                    break
        try:
            process.wait(0 if full else max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return 95 if full else 99, ''
    return process.returncode, output.decode('utf-8', 'replace')

def program_of(text, names):
    """The last fenced block of that language, else the last without a language; None without either."""
    text = after_thinking(text).replace('\r\n', '\n').replace('~~~', '```')
    blocks = re.findall(r'(?ms)^[ \t]*```[ \t]*([^\s`]*)[^\n]*\n(.*?)^[ \t]*```', text)
    for wanted in (names, ('',)):
        if fitting := [body for tag, body in blocks if tag.lower() in wanted]:
            return fitting[-1]
    return None

def tests_of(truth):
    """language, [(input, output)], seconds, MB of a truth, Agnostics' or verl's too. Raises GaveUp."""
    truth = loaded(truth)
    truth = {'tests': truth} if isinstance(truth, list) else loaded(truth, dict)
    tests = [(test['input'], test['output']) for test in truth.get('tests') or truth.get('test_cases') or ()]
    tests = tests or list(zip(truth.get('inputs') or (), truth.get('outputs') or ()))
    name = str(truth.get('language', 'python')).lower()
    language = next((key for key, row in PROGRAMS.items() if name in (key, *row[3].split())), None)
    need(tests and language, f'no tests, or a language without a row in PROGRAMS: {name!r}')
    seconds = float(truth.get('time_limit_s') or truth.get('timeout_s') or 10)
    return language, tests, seconds, float(truth.get('memory_mb') or 1024)

def code(completion, truth, sandbox='namespace'):
    """1.0 if every test's output is right but for blanks at line ends. Raises GaveUp if none could run."""
    language, tests, seconds, memory = tests_of(truth)
    file, build, run, others = PROGRAMS[language]
    source = program_of(completion, (language, *others.split()))
    if not source:
        return 0.0, 'no code block'
    def lines(text):
        return [line.rstrip() for line in text.rstrip().split('\n')]
    def execute(*args, **caps):
        status, output = run_program(*args, sandbox, **caps)
        need(status != 96, f'{language} is not installed')
        need(status != 97, "no sandbox; sandbox='none' does without")
        return status, output
    with tempfile.TemporaryDirectory(prefix='verify') as folder:
        made = os.path.join(folder, 'made')
        os.mkdir(made)
        with open(os.path.join(made, file), 'w', encoding='utf-8', errors='replace') as f:
            f.write(source)
        if build and execute(build.split(), made, '', 60, 4096)[0]:
            return 0.0, 'does not compile'
        for i, (given, wanted) in enumerate(tests):
            place = shutil.copytree(made, os.path.join(folder, str(i)))  # no test sees another's files
            status, output = execute(run.split(), place, given, seconds, memory, cap=2**20 + 2 * len(wanted))
            shutil.rmtree(place)
            if status or lines(output) != lines(wanted):
                said = {98: 'memory', 99: 'time', 95: 'too much output', 0: 'wrong output'}
                return 0.0, f'test {i + 1}: {said.get(status, f"exit {status}")}'
    return 1.0, f'{len(tests)} tests'

@functools.lru_cache(1)
def sandboxed():
    """Whether programs can be isolated here."""
    with tempfile.TemporaryDirectory() as folder:
        return run_program(['true'], folder, '', 5, 512, 'namespace')[0] == 0
