"""The pages: links lead somewhere, code loads or runs, commands and messages are the real ones."""

import argparse
import ast
import re
import runpy
import shlex
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pages
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import mmffnet
from mmffnet.engine import hooks
from mmffnet.models import MixerBackbone, mixers
from mmffnet_cli.main import main as mmffnet_command

every_page = pytest.mark.parametrize('page', pages.PAGES)
CODE = [
    pytest.param(page, name, code, id=f'{page}-{name or number}')
    for page in pages.PAGES
    for number, (name, language, code) in enumerate(pages.blocks(page))
    if language == 'python'
]
MESSAGES = re.findall(r'(?m)^### (mm\w+): `(.+)`$', pages.read('docs/troubleshooting.md'))
WIDTHS = re.findall(r'(?m)^\| `([\w.]+)` \| (.*) \| `\[(.*)\]` \|$', pages.read('docs/backbone.md'))


@every_page
def test_links(page):
    for link in re.findall(r'\]\((?!https?://)(.+?)\)', pages.read(page)):
        path, _, anchor = link.partition('#')
        target = pages.ROOT / page if not path else (pages.ROOT / page).parent / path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r'(?m)^#+ (.*)$', target.read_text(encoding='utf-8').lower())
            assert anchor in [re.sub(r'[^\w\- ]', '', h).replace(' ', '-') for h in headings], link


@pytest.mark.parametrize(('page', 'name', 'code'), CODE)
@pytest.mark.slow
def test_python(page, name, code, tmp_path, monkeypatch, capsys):
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
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model).eval()
        maps = model.extract_feat(torch.rand(1, 3, 64, 96))
        for name in ('decode_head', 'auxiliary_head', 'head'):
            assert not hasattr(model, name) or getattr(model, name).forward(maps) is not None
    assert isinstance(model.backbone, MixerBackbone)


@pytest.mark.parametrize(('kind', 'archs', 'widths'), WIDTHS)
def test_in_channels(kind, archs, widths):
    for arch in archs.strip('`').split('`, `'):
        settings = getattr(mmffnet, kind.removeprefix('mmffnet.')).arch_settings[arch]
        small = settings | dict(depths=(1, 1, 1, 1))  # widths do not depend on depths
        backbone = MODELS.build(dict(type=kind, arch=small, out_indices=(0, 1, 2, 3))).eval()
        maps = backbone(torch.rand(1, 3, 64, 64))
        assert ', '.join(str(m.shape[1]) for m in maps) == widths
        assert [64 // m.shape[2] for m in maps] == [4, 8, 16, 32]


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
                runpy.run_path(str(pages.ROOT / program), run_name='__main__')
        text = capsys.readouterr().err
        incomplete = re.search('are required|invalid (int|float)', text)  # in a sentence
        assert incomplete or not getattr(stopped.value, 'code', 0), text

    return parse


def commands(page):
    """Words of all calls of `make`, `mmffnet` and tools, in blocks and in sentences."""
    text = re.sub(r'(?m)^#.*$|\\\n', '', pages.read(page))
    lines = '\n'.join(re.findall(r'(?ms)^```(?:bash|shell)\n(.*?)^```$', text)).splitlines()
    lines += re.findall(r'(?m)^    (\w.*)$', text) + re.findall(r'(?<!`)`([^`]+)`(?!`)', text)
    for line in lines:
        line = re.sub(r'^([A-Z_]+=\S* |(\.venv/bin/)?python )+|\[.*?\]|\S*\.\.\.', '', line)
        if re.match(r'make |mmffnet\s|tools/\S+\.(py|sh)\b', line):
            yield shlex.split(line, comments=True)


@every_page
def test_commands(page, parse):
    for program, *arguments in commands(page):
        if program == 'make':
            targets = [word for word in arguments if re.fullmatch(r'[\w-]+', word)]
            assert all(f'\n{name}: ' in pages.read('Makefile') for name in targets), arguments
        elif program.endswith('.sh'):  # its options go to a tool
            assert (pages.ROOT / program).is_file()
            first = [word[:2] for word in [*arguments, '--']].index('--')
            tool = ('test.py', 'C', 'C') if 'test' in program else ('train.py', 'C')
            parse(f'tools/{tool[0]}', *tool[1:], *arguments[first:])
        elif program == 'mmffnet' or 'Parser(' in pages.read(program):
            parse(program, *arguments)


def test_a_wrong_option_is_noticed(parse):
    with pytest.raises(AssertionError, match='--never'):
        parse('mmffnet', 'train', 'CONFIG', '--never')


def template(node):
    """A string in a program, with … for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return ''.join(p.value if isinstance(p, ast.Constant) else '…' for p in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else ''


@cache
def sources(package):
    names = ('mmffnet', 'mmffnet_cli') if package == 'mmffnet' else (package,)
    files = [path for name in names for path in Path(find_spec(name).origin).parent.rglob('*.py')]
    return [path.read_text(encoding='utf-8') for path in files]


@pytest.mark.parametrize(('package', 'message'), MESSAGES)
@pytest.mark.slow
def test_messages(package, message):
    parts = [part for part in message.split('…') if part.strip()]
    word = max(re.findall(r'\w+', message), key=len)
    programs = [ast.parse(text) for text in sources(package) if word in text]
    pattern = re.compile('.*?'.join(map(re.escape, parts)), re.S)
    assert any(pattern.search(template(node)) for tree in programs for node in ast.walk(tree))


def build_site(source, out, *options):
    from sphinx.cmd.build import build_main

    return build_main(['-qWc', str(pages.ROOT / 'docs'), *options, str(source), str(out)])


@pytest.mark.slow
def test_site(tmp_path):
    assert build_site(pages.ROOT, tmp_path) == 0
    assert (tmp_path / re.search(r'url=(.*)"', (tmp_path / 'index.html').read_text())[1]).is_file()
    reference = (tmp_path / 'docs' / 'api.html').read_text()
    for module in (mmffnet, mixers, hooks):
        names = [name for name in module.__all__ if name[0] != '_']
        assert all(f'id="{module.__name__}.{name}"' in reference for name in names)
    for page in tmp_path.rglob('*.html'):  # nothing is fetched from elsewhere
        fetched = r'<(script|img|link|iframe)\b[^>]*(src|href)="(https?:)?//'
        assert not re.search(fetched, page.read_text()), page


@pytest.mark.parametrize(('anchor', 'status'), [('there', 0), ('nowhere', 1)])
@pytest.mark.slow
def test_a_broken_link_fails(tmp_path, anchor, status):
    (tmp_path / 'CHANGELOG.md').write_text(f'# Title\n\n[link](#{anchor})\n\n## There\n')
    assert build_site(tmp_path, tmp_path / 'out', '-D', 'root_doc=CHANGELOG') == status
