"""rewards/sandbox.py: what a program may do, which text is the program, truths, languages as configuration."""
import json
import os
import shutil
import tempfile
import time

import pytest

import verify as module
from rewards import sandbox
from rewards.answers import GaveUp
from verify import check_truth, gave_up, verify

needs_sandbox = pytest.mark.skipif(not sandbox.sandboxed(), reason='no namespaces here')
MEGABYTE = 10 ** 6


@pytest.fixture(autouse=True)
def bugs_surface(monkeypatch):
    """A TypeError, KeyError, ... of ours fails the test; in training it is printed once and counted."""
    monkeypatch.setattr(module, 'raise_bugs', True)


def code_truth(tests=(('1 2', '3'),), **more):
    return {'language': 'python', 'tests': [{'input': a, 'output': b} for a, b in tests], 'time_limit_s': 2,
            'memory_mb': 256, **more}


def said(completion, truth):
    """The verdict in words."""
    return verify('code', completion, truth, explain=True)[1]


# --- the sandbox -----------------------------------------------------------------
@needs_sandbox
@pytest.mark.parametrize('program, verdict, rule', [
    ('print(sum(map(int, input().split())))', 1, '1 tests'), ('print(4)', 0, 'wrong output'),
    ('print("3  \\n\\n")', 1, '1 tests'), ('print(" 3")', 0, 'wrong output'),
    ('print(3); raise SystemExit(1)', 0, 'exit 1'), ('while True: pass', 0, 'time'),
    ('import os; os.kill(os.getpid(), 9)', 0, 'exit 137'), ('x = "a" * 10**9; print(3)', 0, 'memory'),
    ('while True: print("y" * 10**5)', 0, 'too much output'),
    ('open("big", "wb").write(b"a" * 2**27)', 0, 'exit'), ('open("made", "w"); print(3)', 1, '1 tests'),
    ('open("/tmp/escaped_verify", "w")', 0, 'exit 1'),
    ('import socket; socket.create_connection(("1.1.1.1", 53))', 0, 'exit 1'),
    ('import subprocess; subprocess.Popen(["sleep", "4321"], start_new_session=True); print(3)', 1, '1 tests')])
def test_sandbox_leaves_nothing(monkeypatch, tmp_path, program, verdict, rule):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))  # other tests' sandboxes are elsewhere
    reward, why = verify('code', f'```python\n{program}\n```', code_truth(), explain=True)
    assert (reward, rule in why) == (verdict, True), why
    assert not os.listdir(tmp_path) and not os.path.exists('/tmp/escaped_verify')
    time.sleep(0.05)
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open(f'/proc/{pid}/cmdline') as f:
                assert '4321' not in f.read()
        except OSError:
            pass


@needs_sandbox
def test_a_fork_bomb_is_ended():
    # the parent waits too: on a busy machine it could end before the watcher has counted its children
    program = 'import os, time\nfor i in range(600):\n    if not os.fork():\n        time.sleep(20)\ntime.sleep(20)'
    assert said(f'```python\n{program}\n```', code_truth(memory_mb=10**6, time_limit_s=15)) == 'test 1: memory'


@needs_sandbox
def test_no_test_sees_the_files_of_another():
    program = 'import os\nprint(len(os.listdir()))\nopen("left", "w")'
    assert verify('code', f'```python\n{program}\n```', code_truth([('', '1'), ('', '1')])) == 1
    assert said('```python\nprint(input())\n```', code_truth([('a', 'a'), ('b', 'c')])) == 'test 2: wrong output'


def test_code_without_a_sandbox_is_refused_and_without_tests_is_wrong(monkeypatch):
    with pytest.raises(ValueError):
        check_truth('code', code_truth([]))
    monkeypatch.setenv('PATH', '')
    gave_up.clear()
    assert verify('code', '```python\nprint(3)\n```', code_truth()) == 0 and gave_up['code'] == 1
    assert verify('code', '```python\nprint(3)\n```', code_truth(), sandbox='none') == 1
    assert verify('code', '```python\nwhile True: pass\n```', code_truth(time_limit_s=0.3), sandbox='none') == 0
    with pytest.raises(GaveUp, match='bash is not installed'):
        sandbox.code('```bash\necho 3\n```', code_truth(language='bash'), sandbox='none')


# --- the program in a completion ---------------------------------------------------
def test_the_last_block_of_the_language_is_the_program():
    text = '```python\nold\n```\nthen\n  ```Python\nnew\n```\nprints\n```\n5\n```\n```js\nno\n```\n'
    assert sandbox.program_of(text, ('python', 'py')) == 'new\n'
    assert sandbox.program_of(text, ('c',)) == '5\n'
    assert sandbox.program_of('```python\nopen', ('python',)) is None
    assert sandbox.program_of('<think>```\nold\n```</think>', ('python',)) is None
    start = time.perf_counter()
    for text in ('```\n' * (MEGABYTE // 4), '\n```c' * (MEGABYTE // 5), '```c\n' + ' ' * MEGABYTE,
                 '```c\n' + '\n' * MEGABYTE):
        sandbox.program_of(text, ('python',))
        sandbox.bare_text(text)
    for text in (' ' * MEGABYTE, '\n' * MEGABYTE, '\n '.join('a' * MEGABYTE)):
        assert sandbox.bare_text(text) == ''
    assert time.perf_counter() - start < 2


# languages that are installed almost everywhere: what computes the sum, what is prose
BARE = {
    'python': ('a, b = input().split()\nprint(int(a) + int(b))', 'The answer is 5'),
    'bash': ('read a b\necho $((a + b))', "It's 5"),
    'perl': ('my ($a, $b) = split " ", <STDIN>; print $a + $b;', 'The answer is 5.'),
    'javascript': ("const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number)\n"
                   'console.log(a + b)', 'The answer is 5'),
    'c': ('#include <stdio.h>\nint main() {int a, b; scanf("%d %d", &a, &b); printf("%d", a + b);}',
          'The answer is 5'),
    'ruby': ('puts gets.split.map(&:to_i).sum', 'The answer is: 5.'),
    'lua': ('print(io.read("n") + io.read("n"))', 'The answer is 5'),
}


@needs_sandbox
@pytest.mark.parametrize('name', BARE)
def test_a_completion_without_a_fence_is_the_program_if_it_compiles(name):
    language = sandbox.LANGUAGES[name]
    try:
        sandbox.check_language(language)
    except GaveUp as error:
        pytest.skip(str(error))
    program, prose = BARE[name]
    truth = code_truth([('1 2', '3'), ('2 2', '4')], language=name, memory_mb=4096, time_limit_s=10)
    for text in (program, f' {program}\n', f'<think>{prose}</think>\n{program}',
                 program.replace('\n', '\r\n')):
        assert verify('code', text, truth) == 1, text
    for text in (prose, f'{program}\n```', f'~~~\n{program}', f'<think>{program}', ''):
        assert verify('code', text, truth) == 0, text
    assert 'test' not in said(prose, truth)  # it was not run


@needs_sandbox
def test_a_text_without_a_fence_is_only_read_where_its_syntax_can_be_checked(tmp_path):
    awk = code_truth(language='awk')
    assert said('{print $1 + $2}', awk) == 'no code block'
    assert verify('code', '```awk\n{print $1 + $2}\n```', awk) == 1
    # a program that compiles is not run by the check: it fails its test like any other
    assert said('hello', code_truth()) == 'test 1: exit 1'
    assert said('5', code_truth()) == 'test 1: wrong output'
    assert 'no python' in said('print(3', code_truth())
    # what is in a block is not checked
    assert said('```python\nprint(3\n```', code_truth()) == 'test 1: exit 1'
    assert said('print(3)' + ' ' * sandbox.MAX_BARE + '#', code_truth()) == 'no code block'


# --- truths ----------------------------------------------------------------------
def test_every_form_of_a_truth():
    test = {'input': '1 2', 'output': '3'}
    for truth in ([test], test, {'tests': [test]}, {'test_cases': [test], 'language': None},
                  {'inputs': ['1 2'], 'outputs': ['3'], 'fn_name': None}, {'tests': [test], 'language': 'Py'}):
        for form in (truth, json.dumps(truth), str(truth)):
            tests = sandbox.tests_of(form)
            assert tests.language.name == 'python' and tests.cases == [sandbox.Case('1 2', '3')]
            assert (tests.seconds, tests.memory_mb) == (10, 1024)
    tests = sandbox.tests_of(code_truth(time_limit_s='3', memory_mb=None))
    assert (tests.seconds, tests.memory_mb) == (3, 1024)
    assert sandbox.tests_of({'tests': [test], 'timeout_s': 4, 'memory_mb': float('nan')}).seconds == 4


@pytest.mark.parametrize('truth, why', [
    ({'inputs': [[1, 2]], 'outputs': [3], 'fn_name': 'add'}, r'call a function \(add\); only programs that read'),
    ([{'input': '1', 'output': '2', 'testtype': 'functional'}], 'call a function'),
    (code_truth([('1', 3)]), 'the output of test 1 must be a text, not 3'),
    (code_truth([('1', '3'), (['1'], '3')]), r"the input of test 2 must be a text, not \['1'\]"),
    ({'inputs': ['1', '2'], 'outputs': ['3']}, '2 inputs and 1 outputs'), ({'inputs': [], 'outputs': []}, 'one test'),
    ([], 'tests are needed'), ({}, 'tests are needed'), ({'tests': 'abc'}, 'tests are needed'),
    ([{'input': '1'}], 'a test is .*, not'), (['1'], 'a test is .*, not'), ('5', 'dict is needed'),
    (code_truth(language='nosuch'), "unknown language 'nosuch'; known are python, .*--languages"),
    (code_truth(language=5), 'unknown language 5'),
    (code_truth(time_limit_s=-1), 'time_limit_s must be a positive number'),
    (code_truth(memory_mb=float('inf')), 'memory_mb must be a positive number')], ids=lambda value: ascii(value)[:50])
def test_truths_that_cannot_be_judged_are_refused(truth, why):
    with pytest.raises(GaveUp, match=why):
        sandbox.tests_of(truth)
    with pytest.raises(ValueError, match=why):
        check_truth('code', truth)


# --- languages as configuration ------------------------------------------------------
# a language of another name that every Linux has
SQUID = {'name': 'Squid', 'file': 'main.squid', 'run': 'sh main.squid', 'check': 'sh -n main.squid', 'aliases': ['SQ']}
SUM = 'read a b\necho $((a + b))'


@needs_sandbox
def test_a_truth_defines_its_language():
    truth = code_truth(language=SQUID)
    for form in (truth, json.dumps(truth), str(truth)):
        check_truth('code', form)
        for text in (f'```squid\n{SUM}\n```', f'```Sq\n{SUM}\n```', f'```\n{SUM}\n```', SUM):
            assert verify('code', text, form) == 1, text
        assert verify('code', f'```sh\n{SUM}\n```', form) == 0  # a block of another language
    # with a build, and without a check
    built = {'name': 'squid', 'file': 'main.squid', 'build': 'cp main.squid built', 'run': 'sh ./built'}
    assert verify('code', f'```squid\n{SUM}\n```', code_truth(language=built)) == 1
    failing = {**built, 'build': 'sh -n main.squid'}
    assert said('```squid\nif\n```', code_truth(language=failing)) == 'does not compile'
    plain = {key: SQUID[key] for key in ('name', 'file', 'run')}
    assert verify('code', f'```squid\n{SUM}\n```', code_truth(language=plain)) == 1
    assert said(SUM, code_truth(language=plain)) == 'no code block'
    # words of a command are quoted as in a shell
    quoted = {**plain, 'run': '''sh -c "sh 'main.squid'"'''}
    assert verify('code', f'```squid\n{SUM}\n```', code_truth(language=quoted)) == 1


@needs_sandbox
@pytest.mark.skipif(not shutil.which('tclsh'), reason='no tclsh here')
def test_tcl(tmp_path):
    path = tmp_path / 'languages.jsonl'
    path.write_text('{"name": "tcl", "file": "main.tcl", "build": "", "run": "tclsh main.tcl", "aliases": ["tclsh"]}\n')
    truth = sandbox.with_language(code_truth(language='tcl', memory_mb=512), sandbox.read_languages(path))
    check_truth('code', truth)
    for tag in ('tcl', 'tclsh', ''):
        assert verify('code', f'```{tag}\nputs [expr [join [gets stdin] +]]\n```', truth) == 1
    assert verify('code', '```tcl\nputs 4\n```', truth) == 0


WRONG = [
    ({'run': None}, 'a language needs run'), ({'run': ' '}, 'a language needs run'), ({'name': ''}, 'needs name'),
    ({'name': 5}, 'name must be a text, not 5'), ({'command': 'sh'}, "unknown key 'command'; known are name, file"),
    ({'file': '../main.sh'}, 'file must be a plain file name without a folder'), ({'file': None}, 'needs file'),
    ({'file': '/etc/passwd'}, 'plain file name'), ({'file': 'a/b'}, 'plain file name'), ({'file': '..'}, 'plain file'),
    ({'file': '-x'}, 'plain file name'), ({'file': 'a b'}, 'plain file name'), ({'file': 'a\nb'}, 'plain file name'),
    ({'aliases': 'sq'}, 'aliases must be a list of texts'), ({'aliases': [5]}, 'aliases must be a list of texts'),
    ({'run': 'sh "main'}, 'run is no command'), ({'build': ['cc']}, 'build must be a text'),
]


@pytest.mark.parametrize('change, why', WRONG, ids=lambda value: ascii(value)[:40])
def test_broken_definitions_are_refused(tmp_path, change, why):
    with pytest.raises(ValueError, match=why):
        check_truth('code', code_truth(language={**SQUID, **change}))
    path = tmp_path / 'languages.jsonl'
    path.write_text(json.dumps({**SQUID, 'name': 'first', 'aliases': []}) + '\n\n' + json.dumps({**SQUID, **change}))
    with pytest.raises(ValueError, match=f'languages.jsonl:3: .*{why}.*A line looks like'):
        sandbox.read_languages(path)


@needs_sandbox
def test_a_missing_interpreter_is_found_before_the_run():
    for change in ({'run': 'nosuch1 main.squid'}, {'build': 'nosuch1'}, {'check': 'nosuch1'}):
        with pytest.raises(ValueError, match='nosuch1 is not installed, which squid needs'):
            check_truth('code', code_truth(language={**SQUID, **change}))
    check_truth('code', code_truth(language={**SQUID, 'build': 'cp main.squid built', 'run': './built'}))


def test_a_file_of_languages(tmp_path):
    path = tmp_path / 'languages.jsonl'
    path.write_text(json.dumps({**SQUID, 'build': None}) + '\n\n{"name": "x", "file": "x.x", "run": "sh x.x"}\n')
    languages = sandbox.read_languages(path)
    assert list(languages) == ['squid', 'x'] and languages['squid'] == sandbox.Language(
        'squid', 'main.squid', run='sh main.squid', check='sh -n main.squid', aliases=('sq',))
    for language in (*languages.values(), *sandbox.LANGUAGES.values()):
        assert sandbox.defined_language(sandbox.definition(language)) == language
    for text, why in [('', 'no language in it'), ('{"name"', 'jsonl:1: the line is not JSON'), ('[]', 'is a dict'),
                      (f'{json.dumps(SQUID)}\n' * 2, "jsonl:2: 'squid' is already the name of a language above"),
                      (json.dumps(SQUID) + '\n{"name": "sq", "file": "x", "run": "sh x"}', "jsonl:2: 'sq' is already")]:
        path.write_text(text)
        with pytest.raises(ValueError, match=why) as error:
            sandbox.read_languages(path)
        assert 'A line looks like' in str(error.value)
    path.write_bytes(b'\xff')
    for bad in (path, tmp_path / 'nosuch.jsonl'):
        with pytest.raises(ValueError, match=f'{bad.name}: cannot read the languages'):
            sandbox.read_languages(bad)


def test_the_definition_is_written_into_the_truth():
    squid = sandbox.defined_language(SQUID)
    languages = {'squid': squid}
    for name in ('squid', 'SQUID', 'sq'):
        truth = code_truth(language=name)
        before = json.dumps(truth)
        found = sandbox.with_language(truth, languages)
        assert found == {**truth, 'language': sandbox.definition(squid)}
        assert json.dumps(truth) == before  # the row itself is not changed
        assert json.loads(sandbox.with_language(before, languages)) == found
        assert json.loads(sandbox.with_language(str(truth), languages)) == found
        assert sandbox.tests_of(found).language == squid == sandbox.tests_of(str(found)).language
        assert sandbox.with_language(found, languages) is found  # defined already
    # a truth of another language, or no truth at all
    for other in (code_truth(), str(code_truth(language='nosuch')), code_truth(language=5), '\\frac12', '5', 5, None):
        assert sandbox.with_language(other, languages) is other
    # a built-in name: the file's language takes its place, for truths without a language too
    python = sandbox.defined_language({'name': 'python', 'file': 'main.py', 'run': 'pypy3 main.py'})
    test = {'input': '', 'output': '3'}
    for truth in ([test], json.dumps([test]), test, code_truth(), code_truth(language='py'), {'tests': [test]}):
        found = sandbox.with_language(truth, {'python': python})
        assert sandbox.tests_of(found).language == python and isinstance(found, str) == isinstance(truth, str)
    assert sandbox.tests_of(code_truth()).language == sandbox.LANGUAGES['python']
