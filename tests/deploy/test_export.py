"""From a config and a checkpoint to a file that computes the same."""

import numpy as np
import pytest
import torch
from mmengine.config import Config

import mmffnet
from mmffnet.datasets import CLASSES
from mmffnet.deploy import export
from mmffnet.deploy.check import draw_pictures, predict
from mmffnet.deploy.coreml import check_coreml
from mmffnet.deploy.export import export_config, export_model, export_module
from mmffnet.deploy.runtimes import load_exported
from mmffnet.deploy.wrap import wrap


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    def save(name):
        meta = dict(dataset_meta=dict(CLASSES=('x', 'y'), PALETTE=[(1, 2, 3), (4, 5, 6)]))
        content = dict(state_dict=tiny_model(name).state_dict(), meta=meta)
        torch.save(content, tmp_path / 'trained.pth')
        return str(tmp_path / 'trained.pth')

    return save


@pytest.mark.parametrize(
    ('name', 'format', 'file'),
    [
        ('semfpn', 'onnx', 'a.onnx'),
        ('classifier', 'openvino', 'a.xml'),
        ('upernet', 'torchscript', 'a.torchscript'),
        ('ffnetseg', 'torch-export', 'a.pt2'),
    ],
)
def test_formats(tiny_model, tmp_path, name, format, file):
    """Any number of pictures of any size gives what the package of the model predicts."""
    model = tiny_model(name)
    report = export_model(model, tmp_path / file, format)
    assert str(report).startswith(f'{tmp_path / file}: ') and max(report.deviations.values()) < 1e-3
    loaded = load_exported(report.path, threads=1)
    images = draw_pictures(3, 97, 130)
    (key,) = loaded.meta['outputs']
    expected = predict(model, loaded.meta['task'], images)[key]
    found = loaded(images)[key]
    assert found.shape == expected.shape
    assert np.mean(np.abs(found - expected) > 1e-4) < 1e-3
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        ['a.bin', 'a.xml'] if format == 'openvino' else [file]
    )


def test_retinanet_in_onnx_and_openvino(tiny_model, tmp_path):
    report = export_model(tiny_model('retinanet'), tmp_path / 'a.onnx', 'onnx')
    assert report.deviations['detections'] == 0 and not report.notes
    loaded = load_exported(report.path, threads=1)
    assert loaded.meta['score_threshold'] == 0.05
    found = loaded(draw_pictures(1, 90, 70))
    assert {name: value.dtype for name, value in found.items()} == dict(
        boxes=np.float32, scores=np.float32, labels=np.int64
    )


def test_mask_rcnn_in_onnx(tiny_model, tmp_path):
    path = tmp_path / 'a.onnx'
    report = export_model(tiny_model('maskrcnn'), path, 'onnx', batch=1, size=(128, 160))
    assert report.deviations['detections'] == 0 and report.deviations['masks'] < 1e-3
    assert load_exported(path).meta['outputs'] == ['boxes', 'scores', 'labels', 'masks']


def test_coreml(tiny_model, tmp_path):
    model = tiny_model('ffnetseg')
    report = export_model(model, tmp_path / 'a.mlpackage', 'coreml', batch=1, size=(64, 96))
    assert 0 < report.deviations['weights'] < 1e-3  # rounded to float16
    assert 'its results were not' in str(report)
    other = wrap(tiny_model('ffnetseg', decode_head=dict(align_corners=True)))
    other.head.conv_seg.weight.data[2, 3] += 1
    with pytest.raises(RuntimeError, match=r'weight of head\.conv_seg is not in the package'):
        check_coreml(other, report.path, report.meta)
    with pytest.raises(ValueError, match='give its height and width'):
        export_model(model, tmp_path / 'b.mlpackage', 'coreml')
    with pytest.raises(ValueError, match='detectors cannot be exported to CoreML'):
        export_model(
            tiny_model('retinanet'), tmp_path / 'b.mlpackage', 'coreml', batch=1, size=(64, 64)
        )


def test_what_the_config_and_the_checkpoint_say(tiny_config, checkpoint, tmp_path):
    path = tmp_path / 'a.torchscript'
    export_config(tiny_config('classifier'), checkpoint('classifier'), 'torchscript', path)
    meta = load_exported(path).meta
    assert meta['classes'] == ['x', 'y'] and meta['palette'] == [[1, 2, 3], [4, 5, 6]]
    assert [step['type'] for step in meta['resize']] == ['ResizeEdge', 'CenterCrop']
    assert meta['precision'] == 'float32' and meta['task'] == 'classification'


def test_classes_of_the_data_set(tiny_config, tiny_model, tmp_path):
    path = tmp_path / 'a.torchscript'
    bare = tmp_path / 'bare.pth'
    torch.save(tiny_model('retinanet').state_dict(), bare)
    report = export_config(tiny_config('retinanet'), str(bare), 'torchscript', path)
    assert report.meta['classes'] == list(CLASSES)
    assert len(report.meta['palette']) == 5 and report.meta['config'] == 'retinanet_nano_shapes'


def test_a_file_that_deviates_is_removed(tiny_model, tmp_path, monkeypatch):
    model = tiny_model('semfpn')

    def spoil(module, path, format, meta):
        module.backbone.stem.conv2.weight.data[0] += 1e-2
        write(module, path, format, meta)

    write = export.write
    monkeypatch.setattr(export, 'write', spoil)
    with pytest.raises(RuntimeError, match=r'features deviate by .* the file is removed'):
        export_model(model, tmp_path / 'a.torchscript', 'torchscript', backbone=True)
    assert not list(tmp_path.iterdir())


def test_a_model_that_a_format_cannot_take(tmp_path):
    class Choosy(mmffnet.FFNet):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else ()

    arch = dict(depths=[1] * 4, channels=[8, 16, 32, 64], stem_channels=8)
    choosy = Choosy(arch, out_indices=0).eval()
    with pytest.raises(RuntimeError, match='torch-export cannot take this model: '):
        export_model(choosy, tmp_path / 'a.pt2', 'torch-export')
    assert not list(tmp_path.iterdir())


def test_existing_files(tiny_model, tmp_path):
    model, path = tiny_model('classifier'), tmp_path / 'a.torchscript'
    path.write_text('mine')
    with pytest.raises(FileExistsError, match=r'a\.torchscript exists already'):
        export_model(model, path, 'torchscript')
    assert path.read_text() == 'mine'
    export_model(model, path, 'torchscript', force=True)
    assert load_exported(path).meta['task'] == 'classification'
    (tmp_path / 'b.bin').write_text('mine')
    with pytest.raises(FileExistsError, match=r'b\.bin exists already'):
        export_model(model, tmp_path / 'b.xml', 'openvino')
    with pytest.raises(ValueError, match=r'must end in \.pt2'):
        export_model(model, path, 'torch-export')


def test_nothing_is_detected(tiny_model, tmp_path):
    model = tiny_model('retinanet', test_cfg=dict(score_thr=0.9999))
    report = export_model(model, tmp_path / 'a.torchscript', 'torchscript', size=(64, 64))
    assert 'nothing was detected in the pictures of the comparison' in str(report)


def test_sliding_windows_are_named(tiny_model, tmp_path):
    slide = dict(mode='slide', crop_size=(64, 64), stride=(32, 32))
    model = tiny_model('semfpn', test_cfg=slide)
    report = export_model(model, tmp_path / 'a.torchscript', 'torchscript')
    assert 'sliding windows' in str(report)


def test_any_module_can_be_exported_to_be_measured(tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    path = export_module(net, tmp_path / 'a.onnx', (2, 3, 32, 40))
    images = draw_pictures(2, 32, 40)
    (found,) = load_exported(path)(images).values()
    expected = net(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_int8(tiny_model, tmp_path):
    """In OpenVINO, which reads what ONNX Runtime has quantised."""
    model = tiny_model('classifier')
    pictures = list(draw_pictures(4, 64, 64))
    report = export_model(model, tmp_path / 'a.xml', 'openvino', calibration=pictures)
    assert report.meta['precision'] == 'int8'
    assert 1e-3 < report.deviations['scores'] < 0.3
    loaded = load_exported(report.path, threads=1)
    assert loaded.meta == report.meta
    expected = predict(model, 'classification', np.stack(pictures))['scores']
    found = loaded(np.stack(pictures))['scores']
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert b'f32' in report.path.read_bytes() and b'element_type="i8"' in report.path.read_bytes()


def test_int8_is_not_for_everything(tiny_model, tiny_config, checkpoint, tmp_path):
    pictures = list(draw_pictures(1, 64, 64))
    for name, format, file in (
        ('classifier', 'torchscript', 'a.torchscript'),
        ('retinanet', 'onnx', 'a.onnx'),
    ):
        with pytest.raises(ValueError, match='int8 is for classifiers'):
            export_model(tiny_model(name), tmp_path / file, format, calibration=pictures)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='there are none in'):
        export_config(
            tiny_config('classifier'),
            checkpoint('classifier'),
            'onnx',
            tmp_path / 'a.onnx',
            calibration=str(tmp_path / 'empty'),
        )


def test_checkpoints_that_do_not_fit(tiny_config, tmp_path):
    torch.save({'state_dict': {'other.weight': torch.ones(1)}}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'other\.pth does not fit the config'):
        export_config(
            tiny_config('semfpn'), str(tmp_path / 'other.pth'), 'onnx', tmp_path / 'a.onnx'
        )
    unbuildable = Config(dict(model=dict(type='Unheard')))
    with pytest.raises(ValueError, match='cannot build the model of the config'):
        export_config(unbuildable, 'any.pth', 'onnx', tmp_path / 'a.onnx')
