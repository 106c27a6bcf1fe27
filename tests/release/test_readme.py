"""README.md, EXERCISES.md, docs/ and papers/README.md: commands can be typed, links lead somewhere, figures and quoted code are those of the files."""
import ast
import fnmatch
import glob
import os
import re
import shlex
import textwrap

import pytest
from conftest import ROOT

from model import memory_plan, shape_config
from tools import distill, lora
from tools.report import report
from tools.results import REAL, SEARCH, Summary, all_tuning_runs, seed_runs


def read(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as f:
        return f.read()


PAGES = {os.path.relpath(path, ROOT): read(path) for path in sorted(
    [os.path.join(ROOT, 'README.md'), os.path.join(ROOT, 'EXERCISES.md'), os.path.join(ROOT, 'papers/README.md'),
     *glob.glob(os.path.join(ROOT, 'docs', '*.md'))])}
FENCE = re.compile(r'^```\n(.*?)^```$', re.M | re.S)


def commands_of(page):
    """Lines of its blocks and pieces between backticks that begin with a command, without their comments."""
    lines = [line for block in FENCE.findall(page) for line in block.split('\n')]
    lines += re.findall(r'^    (.*)', page, re.M)  # an indented block
    lines += re.findall(r'`([^`]+)`', FENCE.sub('', page))
    commands = [re.sub(r'\s+# .*', '', ' '.join(line.split())) for line in lines]
    return {command for command in commands
            if re.match(r'(make|python|torchrun|pytest|diff|bash|git apply) ', command) and '...' not in command}


COMMANDS = sorted(set().union(*map(commands_of, PAGES.values())))


def knobs(script):
    source = read(script)
    end = source.index('configure(globals()')
    return set(re.findall(r'^(\w+) = ', source[source.rindex('# --- config', 0, end):end], re.M))


def test_there_are_commands():
    assert len(COMMANDS) > 25


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_can_be_typed(command):
    """Scripts, modules, configs, make targets, options, knobs and names of tests exist."""
    if command.startswith('python verify.py'):  # its `< completion` and its TeX are the shell's
        command = command.replace('<', ' ').replace("'", '"')
    words = shlex.split(command)
    if words[0] == 'make':
        targets = re.findall(r'^([\w-]+):', read('Makefile'), re.M)
        assert {word for word in words[1:] if '=' not in word} <= set(targets)
    elif words[0] in ('diff', 'git'):
        files = [word for word in words[1:] if '.' in word]
        assert files and all(os.path.exists(os.path.join(ROOT, name)) or 'NAME' in name for name in files)
    elif words[0] == 'bash':
        assert os.path.exists(os.path.join(ROOT, words[1]))
    elif words[0] == 'pytest':
        path = next(word for word in words if word.endswith('.py'))
        chosen = words[words.index('-k') + 1] if '-k' in words else ''
        assert chosen == 'NAME' or re.search(rf'def test_\w*{chosen}', read(path))
    elif words[1] != '-c':
        script, rest = script_of(words)
        source = read(script)
        for word in rest:
            if word.endswith('.py') and not word.startswith('--'):
                assert os.path.exists(os.path.join(ROOT, word)), word
            elif word.startswith('--') and 'configure(globals()' in source:
                assert word[2:].split('=')[0] in knobs(script), word
            elif word.startswith('--'):
                assert word.split('=')[0] in source, word


def script_of(words):
    """The file that a command runs, and the words after it."""
    if words[1] == '-m':
        return words[2].replace('.', '/') + '.py', words[3:]
    at = next(i for i, word in enumerate(words) if word.endswith('.py'))
    return words[at], words[at + 1:]


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    """To files, beside the page that has the link; to headings; to tests of those names."""
    folder = os.path.dirname(os.path.join(ROOT, page))
    for text, target in re.findall(r'\[([^][]*)\]\(([^)\s]+)\)', PAGES[page]):
        if target.startswith('http'):
            continue
        path, _, heading = target.partition('#')
        path = os.path.join(folder, path) if path else os.path.join(ROOT, page)
        assert os.path.exists(path), target
        assert not heading or heading in headings_of(path), target
        for name in re.findall(r'\btest_[\w*]+', text):
            if name + '.py' not in text:
                assert fnmatch.filter(re.findall(r'^def (\w+)', read(path), re.M), name), (name, path)


def headings_of(path):
    """As GitHub makes them into anchors."""
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in re.findall(r'^#+ (.*)', read(path), re.M)}


def test_every_page_is_linked():
    linked = {os.path.normpath(os.path.join(os.path.dirname(page), target.partition('#')[0]))
              for page, text in PAGES.items() for target in re.findall(r'\]\(([^)\s]+)\)', text)}
    assert set(PAGES) - {'README.md'} <= linked


def test_files_that_are_named_exist():
    for page, text in PAGES.items():
        for name in re.findall(r'\b(?:[a-z]+/)*[a-z0-9_.]+\.py\b', text):
            folders = ('', 'tests', 'tests/release', 'tests/release/exercises', 'tools', 'examples', 'examples/svamp', 'papers')
            exists = any(os.path.exists(os.path.join(ROOT, folder, name)) for folder in folders)
            assert exists or name in ('my_file.py', 'my_reward.py', 'train.py') or page == 'docs/peers.md', (page, name)


def test_figures_are_those_of_the_logs():
    """After `<!-- figures: FILE -->` every decimal of the next block of lines is in that file, as it is written."""
    marked = [found for text in PAGES.values() for found in re.findall(r'<!-- figures: (\S+) -->\n(.*?)\n\n', text + '\n\n', re.S)]
    assert len(marked) >= 10
    for path, block in marked:
        known = set(re.findall(r'\d[\d,]*\.\d+', read(path)))
        found = re.findall(r'(?<![\w.])\d[\d,]*\.\d+', block)
        assert found and {*found} <= known, (path, {*found} - known)


def test_quoted_code_stands_in_its_function():
    """After `<!-- quote: FILE FUNCTION -->` each line of the block is one of that function, in the same order."""
    quotes = [found for text in PAGES.values() for found in re.findall(r'<!-- quote: (\S+) (\S+) -->\n```(?:python)?\n(.*?)^```$', text, re.M | re.S)]
    assert quotes
    for path, name, quoted in quotes:
        source = read(path)
        function, = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name == name]
        lines = source.split('\n')[function.lineno - 1:function.end_lineno]
        body = iter(textwrap.dedent('\n'.join(lines[1:])).split('\n'))
        missing = [line for line in quoted.rstrip().split('\n') if line not in body]  # `in` goes on from the last find
        assert not missing, (path, missing)


@pytest.mark.parametrize('task', [SEARCH, REAL], ids=lambda task: task.name)
def test_the_tables_of_methods_are_those_of_the_runs(task):
    """docs/results.txt is the report of docs/curves.jsonl; the page's tables of these runs stand in it, line by line."""
    path = task.path('curves.jsonl')
    if not os.path.exists(os.path.join(ROOT, path)):
        pytest.skip(f'{path} is not there yet')
    summary = Summary(os.path.join(ROOT, path))
    known = report(task, summary.records, all_tuning_runs(task), seed_runs(task, summary))
    assert read(task.path('results.txt')) == known + '\n'
    tables = re.findall(rf'<!-- tables: {re.escape(task.path("results.txt"))} -->\n(.*?)\n\n', PAGES['docs/results.md'], re.S)
    assert tables
    for table in tables:
        assert set(table.split('\n')) <= set(known.split('\n'))


def test_the_tables_of_lora_are_those_of_the_runs(monkeypatch):
    """docs/lora.txt is the report of docs/lora.jsonl; the page's tables stand in it, line by line."""
    monkeypatch.chdir(ROOT)
    known = lora.report(lora.read_kept())
    assert read('docs/lora.txt') == known
    tables = re.findall(r'<!-- figures: docs/lora.txt -->\n(.*?)\n\n', PAGES['docs/lora.md'], re.S)
    assert len(tables) >= 2 and all(set(table.split('\n')) <= set(known.split('\n')) for table in tables)


def test_the_table_of_distillation_is_that_of_the_runs(monkeypatch):
    """docs/distill.txt is the report of docs/distill.jsonl; the page's table stands in it, line by line."""
    monkeypatch.chdir(ROOT)
    known = distill.report(distill.read_kept())
    assert read('docs/distill.txt') == known
    table, = re.findall(r'<!-- figures: docs/distill.txt -->\n(\|.*?)\n\n', PAGES['docs/distill.md'], re.S)
    assert set(table.split('\n')) <= set(known.split('\n'))


@pytest.mark.parametrize('shape', ['0.6b', '1.7b', '4b', '8b'])
def test_the_table_of_memory_is_the_plan(shape):
    """Each cell: the peaks of an update and of a rollout; in brackets what does not fit 80 GB."""
    cells = []
    for ranks, options in ((1, {}), (1, {'lora_rank': 32}), (8, {}), (8, {'shard': 'all'})):
        peaks = [memory_plan(shape_config(f'qwen3-{shape}'), ranks, 16384, **options, **rollout)['peak']
                 for rollout in ({}, {'kv_cache_gb': 24, 'rollout_rows': 128, 'max_new_tokens': 2048})]
        cells.append(', '.join(f'{gb:.1f}' if gb < 80 else f'({gb:.1f})' for gb in peaks))
    assert f'| {shape.upper()} | {" | ".join(cells)} |' in PAGES['docs/memory.md']
