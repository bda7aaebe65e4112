"""The two tools that write checkpoints, as a user runs them."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

import mmffnet
from mmffnet_cli.paths import tools_path

TINY = dict(depths=[1, 1, 1, 1], channels=[8, 16, 32, 64], stem_channels=8)


def run(tool, *args, cwd):
    command = [sys.executable, '-W', 'ignore', tools_path(tool), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def assert_one_line(monkeypatch, capsys, tmp_path):
    """Asserts that a tool refuses its arguments, in this process: starting one takes long."""
    monkeypatch.chdir(tmp_path)

    def check(text, tool, *args):
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(tools_path(tool))['main'](args)
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert text in error
        assert len([line for line in error.splitlines() if 'error:' in line]) == 1

    return check


@pytest.mark.slow
def test_convert_names(assert_one_line, tmp_path):
    state = MODELS.build(dict(type='FFNet', arch=TINY)).state_dict()
    torch.save({'state_dict': state}, tmp_path / 'ours.pth')
    tool = 'model_converters/convert_names.py'
    result = run(tool, 'ours.pth', 'official.pth', '--to', 'official', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f'official.pth: {len(state)} tensors' in result.stdout
    exists = 'ours.pth exists already; give another name, or --force'
    assert_one_line(exists, tool, 'official.pth', 'ours.pth')
    runpy.run_path(tools_path(tool))['main'](['official.pth', 'ours.pth', '--force'])
    back = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    assert list(back) == list(state) and all(torch.equal(back[k], state[k]) for k in state)


@pytest.mark.slow
def test_reparameterize(assert_one_line, tmp_path):
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
    tool = 'reparameterize.py'
    assert_one_line('missing.pth', tool, 'config.py', 'missing.pth', 'other.pth')
    assert_one_line('missing.py', tool, 'missing.py', 'weights.pth', 'other.pth')
    assert_one_line('in the place of', tool, 'config.py', 'weights.pth', 'config.pth')
    assert_one_line('cannot have the ending', tool, 'config.py', 'weights.pth', 'other.py')
    assert not list(tmp_path.glob('other*'))
