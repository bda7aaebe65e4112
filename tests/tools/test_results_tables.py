"""The tables of README.md and docs/families.md are what tools/dev/results_tables.py writes."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def script():
    path = ROOT / 'tools' / 'dev' / 'results_tables.py'
    spec = importlib.util.spec_from_file_location('results_tables', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('page', ['README.md', 'docs/families.md'])
def test_tables_are_up_to_date(script, page):
    text = (ROOT / page).read_text(encoding='utf-8')
    assert script.fill(text, script.tables()) == text, 'run make docs'
    assert text.count('<!-- table: ') == text.count('<!-- end of table -->')


def test_every_table_has_a_place(script):
    text = ''.join((ROOT / page).read_text(encoding='utf-8') for page in script.PAGES)
    assert all(text.count(f'<!-- table: {name} -->') == 1 for name in script.tables())


def test_every_variant_is_listed(script):
    rows = script.tables()['published results of all families']
    collections, models = script.read()
    assert all(f'| {name} |' in rows for name in collections)
    for arch in {script.arch_of(model) for model in models}:
        assert rows.count(f'| `{arch}` |') == 1, arch
    s12 = next(row for row in rows.splitlines() if '`poolformer-s12`' in row)
    assert (
        '| 11.9 | 1.8 at 224 | 77.2 at 224 | RetinaNet 1x 36.2; Mask R-CNN 1x 37.3 / 34.6 |' in s12
    )


def test_speed(script, tmp_path):
    assert script.speed(tmp_path) == 'Not measured yet.\n'
    seconds = {
        ('ffnet1', 'eager'): [0.2, 0.4, 0.2],
        ('ffnet1', 'fused'): [0.1, 0.2, 0.1],
        ('casvit-xs', 'eager'): [0.05, 0.1, 0.05],
        ('casvit-xs', 'fused'): [],  # failed
    }
    rounds = [dict(network=n, form=f, seconds=s) for (n, f), s in seconds.items()]
    environment = dict(device='CPU', torch='2.11.0')
    content = dict(environment=environment, batch=2, threads=2, rounds=rounds)
    (tmp_path / 'speed.json').write_text(json.dumps(content))
    title, _, *rows = script.speed(tmp_path).splitlines()
    assert title.startswith('CPU, 2 threads, batch 2, PyTorch 2.11.0, one run of 3 rounds: ')
    assert rows[0] == '| network | eager | fused |'
    assert rows[2:] == [
        '| `ffnet1` | 100.0 (1.00) | 50.0 (2.00) |',
        '| `casvit-xs` | 25.0 (4.00) | - |',
    ]
