"""docs/operators.md is what tools/dev/operators_table.py writes."""

import importlib.util
import re
from pathlib import Path

import pytest

from mmffnet.ops import mmcv_ext

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs' / 'operators.md').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def script():
    path = ROOT / 'tools' / 'dev' / 'operators_table.py'
    spec = importlib.util.spec_from_file_location('operators_table', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if any(importlib.util.find_spec(name) is None for name in module.PACKAGES):
        pytest.skip('the table is made with mmdet, mmseg and mmpretrain')
    if module.installed() not in PAGE:
        pytest.skip(f'the table is of other versions than {module.installed()}')
    return module


@pytest.mark.slow
def test_table_is_up_to_date(script):
    assert script.table() == PAGE, 'run python tools/dev/operators_table.py'


def test_table_tells_supplied_operators_from_others():
    """By what native_ops does: a function of its own, or one that only raises."""
    rows = re.findall(r'(?m)^\| \w+ \| (.+) \| (yes|no) \|', PAGE)
    states = {name: yes for names, yes in rows for name in re.findall(r'`(\w+)`', names)}
    assert len(states) > 100
    assert states['roi_align_forward'] == 'yes'
    assert states['nms_rotated'] == 'no'
    for name, state in states.items():
        assert (state == 'yes') == (name in vars(mmcv_ext)), name
