"""The benchmark for GPUs, as far as a CPU can run it in tiny sizes."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'benchmarks' / 'gpu' / 'speed.py'


@pytest.mark.slow
def test_sections_on_a_cpu(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location('gpu_speed', SCRIPT)
    speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speed)
    options = ['--quick', '--only', 'kernels', 'one picture', 'profile, channels_last+bf16+plain']
    assert speed.main(['--device', 'cpu', '--out', str(tmp_path), *options]) == 0
    (found,) = tmp_path.glob('*.json')
    content = json.loads(found.read_text())
    assert {row['network'] for row in content['inference, one picture']} == {
        *('tiny', 'torchvision:resnet18')
    }
    problems = {row['form']: row['problem'] for row in content['inference, one picture']}
    assert 'GPU' in problems['fused+channels_last+bf16+graph'] and not problems['plain']
    assert all(float(row['triton, forward']) > 0 for row in content['kernels'])
    assert content['profile, channels_last+bf16+plain']['launches'] > 100
    text = found.with_suffix('.md').read_text()
    assert '| tiny ' in text and 'not measured' not in text
    assert speed.main(['--device', 'cpu', '--out', str(tmp_path), '--minutes', '-1']) == 0
    assert 'not measured' in found.with_suffix('.md').read_text()
