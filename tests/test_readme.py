"""README.md: its commands can be typed, its links lead somewhere, its figures are those of the logs that it names."""
import fnmatch
import json
import os
import re
import shlex
import statistics
import subprocess

import pytest
from conftest import ROOT

from model import memory_plan, shape_config

SCRIPTS = ('sft.py', 'dpo.py', 'grpo.py', 'hpt.py', 'prefix_rft.py')


def read(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as f:
        return f.read()


README = read('README.md')
BLOCKS = re.findall(r'^```\n(.*?)^```$', README, re.M | re.S)
INLINE = re.findall(r'`([^`]+)`', re.sub(r'^```\n.*?^```$', '', README, flags=re.M | re.S))
COMMANDS = [re.sub(r'\s+# .*', '', ' '.join(line.split())) for line in [line for b in BLOCKS for line in b.split('\n')] + INLINE
            if re.match(r'(make|python|torchrun|pytest|diff) ', line) and '...' not in line]


def knobs(script):
    source = read(script)
    end = source.index('configure(globals()')
    return set(re.findall(r'^(\w+) = ', source[source.rindex('# --- config', 0, end):end], re.M))


@pytest.mark.parametrize('command', sorted(set(COMMANDS)))
def test_commands_can_be_typed(command):
    """Scripts, configs, make targets, options, knobs and names of tests exist."""
    words = shlex.split(command.replace('<', ' ').replace("'", '"') if command.startswith('python verify.py') else command)
    if words[0] == 'make':
        targets = re.findall(r'^(\w+):', read('Makefile'), re.M)
        assert {word for word in words[1:] if '=' not in word} <= set(targets)
    elif words[0] == 'diff':
        assert all(os.path.exists(os.path.join(ROOT, name)) for name in words[1:])
    elif words[0] == 'pytest':
        path = next(word for word in words if word.endswith('.py'))
        chosen = words[words.index('-k') + 1] if '-k' in words else ''
        assert re.search(rf'def test_\w*{chosen}', read(path))
    elif words[1] != '-c':
        at = next(i for i, word in enumerate(words) if word.endswith('.py'))
        script, *rest = words[at:]
        source = read(script)
        for word in rest:
            if word.endswith('.py') and not word.startswith('--'):
                assert os.path.exists(os.path.join(ROOT, word)), word
            elif word.startswith('--') and 'configure(globals()' in source:
                assert word[2:].split('=')[0] in knobs(script), word
            elif word.startswith('--'):
                assert word.split('=')[0] in source, word


def test_links_lead_somewhere():
    """To files, to headings, and to tests of those names."""
    headings = {re.sub(r'[^\w -]', '', h.lower()).replace(' ', '-') for h in re.findall(r'^#+ (.*)', README, re.M)}
    links = re.findall(r'\[([^][]*)\]\(([^)\s]+)\)', README)
    assert len(links) > 30
    for text, target in links:
        if target.startswith('http'):
            continue
        path, _, heading = target.partition('#')
        assert (path or heading) and (not path or os.path.exists(os.path.join(ROOT, path))), target
        assert not heading or path or heading in headings, target
        for name in re.findall(r'\btest_[\w*]+', text):
            if name + '.py' not in text:
                assert fnmatch.filter(re.findall(r'^def (\w+)', read(path), re.M), name), (name, path)


def test_figures_are_those_of_the_logs():
    """After `<!-- figures: FILE -->` every decimal of the next block of lines is in that file, as it is written."""
    marked = re.findall(r'<!-- figures: (\S+) -->\n(.*?)\n\n', README, re.S)
    assert len(marked) >= 1
    for path, block in marked:
        known = set(re.findall(r'\d[\d,]*\.\d+', read(path)))
        found = re.findall(r'(?<![\w.])\d[\d,]*\.\d+', block)
        assert found and {*found} <= known, (path, {*found} - known)


def test_the_table_of_methods_is_that_of_the_curves():
    records = [json.loads(line) for line in read('docs/curves.jsonl').split('\n') if line]
    levels = [range(2, 5), range(5, 9), range(9, 11)]
    for method in {r['method'] for r in records}:
        ends = {r['seed']: r for r in records if r['method'] == method}  # the last of each seed
        scores = [[r['eval/pass@1'] for r in ends.values()]]
        scores += [[statistics.mean(r[f'eval/pass@1/{n}'] for n in level) for r in ends.values()] for level in levels]
        cells = [f'{statistics.mean(s):.3f} ± {statistics.stdev(s):.3f}' for s in scores]
        spent = statistics.mean(r['flops'] for r in ends.values()) / 1e12
        assert len(ends) == 5 and re.search(rf'\| {method} \| [\d.e-]+ \| {" | ".join(cells)} \| {spent:.2f} \|'.replace(
            ' | ', r' \| '), README), (method, cells, spent)


def test_the_table_of_lines_is_what_the_files_have():
    for script, sibling in zip(SCRIPTS, ('', 'sft.py', '', 'grpo.py', 'grpo.py')):
        row = next(line for line in README.split('\n') if re.match(rf'\|.*\| {script} \|', line))
        assert f'| {read(script).count(chr(10))} |' in row
        if sibling:
            diff = subprocess.run(['diff', sibling, script], capture_output=True, text=True, cwd=ROOT).stdout
            assert f'| {len(re.findall("^>", diff, re.M))} to {sibling} |' in row


@pytest.mark.parametrize('shape', ['0.6b', '1.7b', '4b', '8b'])
def test_the_table_of_memory_is_the_plan(shape):
    config = shape_config(f'qwen3-{shape}')
    update = memory_plan(config, 8, 16384)
    rollout = memory_plan(config, 8, 16384, kv_cache_gb=24, rollout_rows=128, max_new_tokens=2048)
    always = sum(update[key] for key in ('weights (fp32)', 'gradients (fp32)', 'Adam moments / 8'))
    cells = ' | '.join(f'{gb:.1f}' for gb in (always, update['peak'], rollout['peak']))
    fits = 'fits' if rollout['peak'] < 80 else 'does not fit'
    assert f'| {shape.upper()} | {cells} | {fits} |' in README
