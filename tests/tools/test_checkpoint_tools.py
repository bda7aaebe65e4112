"""The two tools that write checkpoints, as a user runs them."""

import subprocess
import sys
from pathlib import Path

import torch
from mmengine.registry import MODELS

import mmffnet
from mmffnet_cli.paths import tools_path

TINY = dict(depths=[1, 1, 1, 1], channels=[8, 16, 32, 64], stem_channels=8)


def run(tool, *args, cwd):
    command = [sys.executable, '-W', 'ignore', tools_path(tool), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def assert_one_line(result, text):
    assert result.returncode == 2
    assert text in result.stderr
    assert 'Traceback' not in result.stderr
    assert len([line for line in result.stderr.splitlines() if 'error:' in line]) == 1


def test_convert_names(tmp_path):
    state = MODELS.build(dict(type='FFNet', arch=TINY)).state_dict()
    torch.save({'state_dict': state}, tmp_path / 'ours.pth')
    tool = 'model_converters/convert_names.py'
    result = run(tool, 'ours.pth', 'official.pth', '--to', 'official', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f'official.pth: {len(state)} tensors' in result.stdout
    result = run(tool, 'official.pth', 'ours.pth', cwd=tmp_path)
    assert_one_line(result, 'ours.pth exists already; give another name, or --force')
    result = run(tool, 'official.pth', 'ours.pth', '--force', cwd=tmp_path)
    assert result.returncode == 0
    back = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    assert list(back) == list(state) and all(torch.equal(back[k], state[k]) for k in state)


def test_reparameterize(tmp_path):
    Path(tmp_path, 'config.py').write_text(
        f"custom_imports = dict(imports=['mmffnet'])\nmodel = dict(type='FFNet', arch={TINY!r})\n"
    )
    model = MODELS.build(dict(type='FFNet', arch=TINY)).eval()
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    result = run('reparameterize.py', 'config.py', 'weights.pth', 'fused.pth', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert 'outputs differ by' in result.stdout
    # the config that was written stands on its own, in a new process
    code = (
        'from mmengine import Config; from mmengine.registry import MODELS;'
        "print(type(MODELS.build(Config.fromfile('fused.py').model)).__name__)"
    )
    command = [sys.executable, '-W', 'ignore', '-c', code]
    assert subprocess.check_output(command, cwd=tmp_path, text=True).strip() == 'FFNet'
    fused = MODELS.build(dict(type='FFNet', arch=TINY, deploy=True)).eval()
    fused.load_state_dict(torch.load(tmp_path / 'fused.pth', weights_only=True)['state_dict'])
    x = torch.rand(1, 3, 64, 64)
    for a, b in zip(fused(x), mmffnet.reparameterize(model)(x), strict=True):
        torch.testing.assert_close(a, b)
    result = run('reparameterize.py', 'config.py', 'missing.pth', 'other.pth', cwd=tmp_path)
    assert_one_line(result, 'missing.pth')
    result = run('reparameterize.py', 'missing.py', 'weights.pth', 'other.pth', cwd=tmp_path)
    assert_one_line(result, 'missing.py')
    result = run('reparameterize.py', 'config.py', 'weights.pth', 'config.pth', cwd=tmp_path)
    assert_one_line(result, 'in the place of')
    result = run('reparameterize.py', 'config.py', 'weights.pth', 'other.py', cwd=tmp_path)
    assert_one_line(result, 'cannot have the ending')
    assert not list(tmp_path.glob('other*'))
