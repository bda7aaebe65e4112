"""The checks for machines with a GPU, as far as a CPU can run them in seconds."""

import importlib.util
import json
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'dev' / 'gpu_check.py'
QUICK = ['nms', 'with_cp', 'ffnet1, float64', 'DDP: one']


@pytest.fixture(scope='module')
def gpu_check():
    spec = importlib.util.spec_from_file_location('gpu_check', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_quick_checks_pass_on_the_cpu(gpu_check, tmp_path, capsys):
    out = tmp_path / 'new' / 'found.json'
    assert gpu_check.main(['--device', 'cpu', '--out', str(out), '--only', *QUICK]) == 0
    found = json.loads(out.read_text())
    status = {row['check']: row['status'] for row in found['results']}
    assert status == {
        'exactness: ffnet1, float64': 'ok',
        'exactness: ffnet1, float64, fused': 'ok',
        'with_cp: outputs, gradients, buffers': 'ok',
        'DDP: one process, BN': 'ok',
        'DDP: one process, SyncBN': 'not run',
        'operators: nms': 'ok',
        'operators: soft_nms': 'ok',
    }
    printed = capsys.readouterr().out
    assert '| not run: SyncBN needs a GPU |' in printed and '6 ok, 0 FAILED, 1 not run' in printed


def test_a_failure_does_not_end_the_others(gpu_check, monkeypatch, capsys):
    def broken(device):
        raise RuntimeError('broken\nfor good')

    checks = dict(broken=broken, wrong=lambda d: (2.0, 1.0), nan=lambda d: (float('nan'), 1.0))
    checks['fine'] = lambda d: (1.0, 1.0)
    monkeypatch.setattr(gpu_check, 'all_checks', lambda: checks)
    assert gpu_check.main(['--device', 'cpu']) == 1
    rows = capsys.readouterr().out.splitlines()[2:6]
    assert [row.split(' | ')[3].split(':')[0] for row in rows] == ['FAILED'] * 3 + ['ok']
    assert 'RuntimeError: broken' in rows[0]
    assert gpu_check.main(['--device', 'cpu', '--minutes', '0', '--only', 'wrong']) == 1
    assert '0 ok, 0 FAILED, 1 not run' in capsys.readouterr().out


def test_wrong_calls(gpu_check, capsys):
    assert gpu_check.main(['--only', 'nothing like it', '--device', 'cpu']) == 2
    assert gpu_check.main(['--device', 'meta']) == 2
    assert gpu_check.main(['--device', 'cuda:77']) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and 'cuda:77' in lines[2]


def test_order_of_the_checks(gpu_check, capsys):
    assert gpu_check.main(['--list']) == 0
    kinds = [line.partition(':')[0] for line in capsys.readouterr().out.splitlines()]
    assert list(dict.fromkeys(kinds)) == [
        *('exactness', 'mixed precision', 'graphs', 'kernels', 'with_cp', 'DDP'),
        *('operators', 'torch.compile', 'export', 'checkpoints'),
    ]
