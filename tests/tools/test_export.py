"""The command: what it prints, and one line for mistakes."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from mmffnet.deploy.check import draw_pictures
from mmffnet.deploy.runtimes import load_exported
from mmffnet.engine.runner import read_config

pytestmark = pytest.mark.export

TOOL = Path(__file__).parents[2] / 'tools' / 'export.py'
CONFIG = 'segmentation/semfpn_nano_shapes.py'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    cfg = read_config(CONFIG)
    init_default_scope(cfg.default_scope)
    path = tmp_path_factory.mktemp('trained') / 'trained.pth'
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), path)
    return str(path)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_a_file_is_written_and_described(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, CONFIG, checkpoint, '--format', 'torchscript', '--size', 64, 96)
    text = capsys.readouterr().out
    assert 'semfpn_nano_shapes.torchscript: segmentation, any x 3 x 64 x 96, float32, ' in text
    assert 'largest deviation from PyTorch: labels 0.0e+00' in text
    loaded = load_exported('semfpn_nano_shapes.torchscript')
    assert loaded.meta['classes'][0] == 'background' and len(loaded.meta['palette']) == 6
    assert loaded(draw_pictures(2, 64, 96))['labels'].shape == (2, 64, 96)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--format', 'onnx', '--out', 'a.xml'], 'a.xml must end in .onnx, the ending of onnx'),
        (['--format', 'tflite'], "argument --format: invalid choice: 'tflite'"),
        ([], 'the following arguments are required: --format'),
        (['--format', 'torchscript', '--size', '16', '16'], 'at least 32 x 32, not 16 x 16'),
        (['--format', 'torchscript', '--batch', '0'], '--batch must be at least 1'),
        (['--format', 'onnx', '--int8', 'nowhere'], 'there are none in nowhere'),
        (['--format', 'onnx', '--pictures', 'nowhere'], 'there are none in nowhere'),
    ],
)
def test_mistakes(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, CONFIG, checkpoint, *arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.count('\n') == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('format', ['coreml', 'torch-export'])
def test_formats_for_detectors_are_named_at_once(tmp_path, monkeypatch, capsys, format):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(monkeypatch, 'detection/retinanet_nano_shapes.py', 'missing.pth', '--format', format)
    message = f'detectors cannot be exported to {format}: use onnx, openvino or torchscript'
    assert message in capsys.readouterr().err


def test_names_that_do_not_exist(tmp_path, monkeypatch, capsys):
    for config, checkpoint, message in (
        ('nothing', 'a.pth', "there is no config file 'nothing'"),
        (CONFIG, 'nothing.pth', 'checkpoint nothing.pth does not exist'),
    ):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, config, checkpoint, '--format', 'onnx', '--out', tmp_path / 'a.onnx')
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count('\n') == 1
