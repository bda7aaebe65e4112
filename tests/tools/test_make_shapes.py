import json
import runpy
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'make_shapes.py'


@pytest.fixture
def make_shapes(monkeypatch):
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, 'argv', [TOOL.name, *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name='__main__')

    return run


def test_it_makes_what_is_asked_for(make_shapes, tmp_path, capsys):
    root = tmp_path / 'shapes'
    make_shapes('folder', root, '--train', 5, '--val', 6, '--size', 32, '--seed', 3)
    assert capsys.readouterr().out.splitlines()[-1] == str(root)
    stamp = json.loads((root / 'shapes.json').read_text())
    assert [stamp[name] for name in ('layout', 'train', 'val', 'size', 'seed')] == [
        'folder',
        5,
        6,
        32,
        3,
    ]


def test_the_folder_is_named_after_the_layout_by_default(make_shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_shapes('coco', '--train', 1, '--val', 1, '--size', 32)
    assert (tmp_path / 'data' / 'shapes' / 'coco' / 'shapes.json').exists()


def test_a_refusal_is_one_sentence(make_shapes, tmp_path, capsys):
    (tmp_path / 'mine').touch()
    with pytest.raises(SystemExit, match='2'):
        make_shapes('coco', tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'make_shapes.py: error: {tmp_path} exists and is not a shapes')
