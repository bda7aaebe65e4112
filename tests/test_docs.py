"""The pages: links lead somewhere, code loads or runs, commands and messages are the real ones."""

import argparse
import ast
import re
import runpy
import shlex
import sys
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pages
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import mmffnet
from mmffnet_cli.main import main as mmffnet_command

ROOT, PAGES = pages.ROOT, pages.PAGES


def slugs(page):
    """What its headings are called in links."""
    headings = re.findall(r'(?m)^#+ (.*)$', pages.read(page))
    return [re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-') for text in headings]


@pytest.mark.parametrize('page', PAGES)
def test_links(page):
    for link in re.findall(r'\]\((?!https?://)(.+?)\)', pages.read(page)):
        path, _, anchor = link.partition('#')
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in slugs(target.resolve().relative_to(ROOT)), link


CODE = [(page, *found) for page in PAGES for found in pages.blocks(page) if found[1] == 'python']
IDS = [f'{page}-{number}' for number, (page, *_) in enumerate(CODE)]


@pytest.mark.parametrize(('page', 'name', 'language', 'code'), CODE, ids=IDS)
def test_python(page, name, language, code, tmp_path, monkeypatch, capsys):
    compile(code, page, 'exec')
    monkeypatch.chdir(tmp_path)
    if name == 'runs':
        exec(code, {})  # noqa: S102
        printed = re.findall(r'(?m)^print\(.*\)  # (.*)$', code)
        assert capsys.readouterr().out.splitlines() == printed
    elif not re.search(r'(?m)^(import|from) ', code):  # part of a config
        Path('config.py').write_text(code)
        cfg = Config.fromfile('config.py')
        if name == 'loads':
            check_widths(cfg)


def check_widths(cfg):
    """Neck and heads take what the backbone gives."""
    pytest.importorskip(cfg.default_scope)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model).eval()
        maps = model.extract_feat(torch.rand(1, 3, 64, 96))
        heads = [getattr(model, name, None) for name in ('decode_head', 'auxiliary_head', 'head')]
        assert all(head.forward(maps) is not None for head in heads if head is not None)
    assert isinstance(model.backbone, mmffnet.models.MixerBackbone)


def commands(page):
    """Words of all calls of `make`, `mmffnet` and tools, in blocks and in sentences."""
    text = re.sub(r'(?m)^#.*$|\\\n', '', pages.read(page))
    lines = '\n'.join(re.findall(r'(?ms)^```(?:bash|shell)\n(.*?)^```$', text)).splitlines()
    lines += re.findall(r'(?m)^    (\w.*)$', text) + re.findall(r'(?<!`)`([^`]+)`(?!`)', text)
    for line in lines:
        line = re.sub(r'^([A-Z_]+=\S* |(\.venv/bin/)?python )+|\[.*?\]|\S*\.\.\.', '', line)
        if re.match(r'make |mmffnet\s|tools/\S+\.(py|sh)\b', line):
            yield shlex.split(line, comments=True)


class Parsed(Exception):
    """The parser has accepted the arguments: the tool is not to run."""


@pytest.fixture
def parse(monkeypatch, capsys):
    def stop_after(method):
        def parse_and_stop(self, args=None, namespace=None):
            method(self, args, namespace)
            raise Parsed

        return parse_and_stop

    for name in ('parse_args', 'parse_intermixed_args'):
        method = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, stop_after(method))

    def parse(program, *arguments):
        monkeypatch.setattr(sys, 'argv', [program, *arguments])
        with pytest.raises((Parsed, SystemExit)) as stopped:
            if program == 'mmffnet':
                mmffnet_command()
            else:
                runpy.run_path(str(ROOT / program), run_name='__main__')
        text = capsys.readouterr().err
        incomplete = re.search('are required|invalid (int|float)', text)  # in a sentence
        assert incomplete or not getattr(stopped.value, 'code', 0), text

    return parse


@pytest.mark.parametrize('page', PAGES)
def test_commands(page, parse):
    for program, *arguments in commands(page):
        if program == 'make':
            targets = [word for word in arguments if re.fullmatch(r'[\w-]+', word)]
            assert all(f'\n{name}: ' in pages.read('Makefile') for name in targets), arguments
        elif program.endswith('.sh'):  # the options go to a tool
            assert (ROOT / program).is_file()
            while arguments and not arguments[0].startswith('--'):
                del arguments[0]
            tool, files = ('test', 2) if 'test' in program else ('train', 1)
            parse(f'tools/{tool}.py', *['FILE'] * files, *arguments)
        elif program == 'mmffnet' or 'Parser(' in pages.read(program):
            parse(program, *arguments)


def test_a_wrong_command_is_noticed(parse):
    with pytest.raises(AssertionError, match='--never'):
        parse('mmffnet', 'train', 'CONFIG', '--never')


def template(node):
    """A string in a program, with … for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return ''.join(p.value if isinstance(p, ast.Constant) else '…' for p in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ''


@cache
def sources(package):
    folders = [Path(find_spec(name).origin).parent for name in package.split()]
    return [path.read_text(encoding='utf-8') for root in folders for path in root.rglob('*.py')]


MESSAGES = re.findall(r'(?m)^### (\w+): `(.+)`$', pages.read('docs/troubleshooting.md'))


@pytest.mark.parametrize(
    ('package', 'message'), [found for found in MESSAGES if found[0] not in ('Python', 'PyTorch')]
)
def test_messages(package, message):
    pytest.importorskip(package)
    parts = [part for part in message.split('…') if part.strip()]
    word = max(re.findall(r'\w+', ' '.join(parts)), key=len)
    nodes = (
        node
        for program in sources('mmffnet mmffnet_cli' if package == 'mmffnet' else package)
        if word in program
        for node in ast.walk(ast.parse(program))
    )
    pattern = re.compile('.*?'.join(map(re.escape, parts)), re.S)
    assert any(pattern.search(template(node)) for node in nodes)


def test_widths():
    rows = re.findall(
        r'(?m)^\| `([\w.]+)` \| (`.*`) \| `\[(.*)\]` \|$', pages.read('docs/backbone.md')
    )
    assert len(rows) > 15
    for kind, archs, widths in rows:
        family = getattr(mmffnet, kind.removeprefix('mmffnet.'))
        for arch in re.findall('`(.*?)`', archs):
            small = family.arch_settings[arch] | dict(depths=(1, 1, 1, 1))
            maps = MODELS.build(dict(type=kind, arch=small, out_indices=(0, 1, 2, 3))).eval()(
                torch.rand(1, 3, 64, 64)
            )
            assert ', '.join(str(m.shape[1]) for m in maps) == widths
            assert all(a.shape[2] == 2 * b.shape[2] for a, b in pairwise(maps))


def build_site(source, out, *options):
    from sphinx.cmd.build import build_main

    return build_main(['-q', '-W', '-c', str(ROOT / 'docs'), *options, str(source), str(out)])


@pytest.mark.slow
def test_site(tmp_path):
    assert build_site(ROOT, tmp_path) == 0
    names = (tmp_path / 'docs' / 'api.html').read_text()
    assert all(f'id="mmffnet.{name}"' in names for name in mmffnet.__all__ if name[0] != '_')
    assert 'docs/index.html' in (tmp_path / 'index.html').read_text()
    for page in tmp_path.rglob('*.html'):  # nothing comes from elsewhere but by a click
        assert not re.search(
            r'<(script|img|link|iframe)\b[^>]*(src|href)="https?:', page.read_text()
        )


def test_a_broken_link_fails(tmp_path, capsys):
    page = tmp_path / 'CHANGELOG.md'
    for text, status in ('[there](#there)\n\n## There', 0), ('[there](#nowhere)', 1):
        page.write_text(f'# Title\n\n{text}\n')
        assert build_site(tmp_path, tmp_path / 'out', '-D', 'root_doc=CHANGELOG') == status
