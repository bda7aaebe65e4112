"""From a config and a checkpoint to a file that computes the same."""

import copy
import logging

import cv2
import numpy as np
import pytest
import torch
from elsewhere import Elsewhere, elsewhere
from mmengine.config import Config

import mmffnet
from mmffnet.datasets import CLASSES
from mmffnet.deploy import export
from mmffnet.deploy.check import deviations, draw_pictures, predict
from mmffnet.deploy.coreml import check_coreml
from mmffnet.deploy.export import export_config, export_model, export_module
from mmffnet.deploy.formats import write
from mmffnet.deploy.runtimes import load_exported
from mmffnet.deploy.wrap import wrap

pytestmark = pytest.mark.export


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


@pytest.fixture(params=['stand-in', 'cuda'])
def on_a_gpu(request, monkeypatch):
    """Moves a copy of a model to a GPU, or to what stands for one where there is none."""
    if request.param == 'cuda':
        if not torch.cuda.is_available():
            pytest.skip('there is no GPU')
        return lambda model: copy.deepcopy(model).cuda()
    overwrites = torch.__future__.set_overwrite_module_params_on_conversion
    overwrites(True)
    request.addfinalizer(lambda: overwrites(False))
    return elsewhere


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', ['semfpn', 'maskrcnn', 'backbone'])
def test_models_on_a_gpu(tiny_model, on_a_gpu, tmp_path, name, training):
    """They stay there, and the file is the one of the model on the CPU."""
    original = tiny_model('semfpn').backbone if name == 'backbone' else tiny_model(name)
    model = on_a_gpu(original).train(training)
    report = export_model(model, tmp_path / 'a.torchscript', 'torchscript')
    assert max(report.deviations.values()) < 1e-3
    assert model.training == training
    assert all(isinstance(p, Elsewhere) or p.is_cuda for p in model.parameters())
    images = draw_pictures(1, 97, 130)
    task = load_exported(report.path).meta['task']
    found = load_exported(report.path, threads=1)(images)
    assert max(deviations(predict(original, task, images), found, task).values()) < 1e-3


def test_a_fused_model_on_a_gpu_is_wrapped_on_the_cpu(tiny_model, on_a_gpu):
    """Also its buffers for normalising and the anchors, which are no part of a network."""
    original = mmffnet.reparameterize(copy.deepcopy(tiny_model('retinanet')))
    module, expected = wrap(on_a_gpu(original)), wrap(original)
    for (name, found), (_, same) in zip(
        module.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert found.device.type == 'cpu' and torch.equal(found, same), name
    assert 'mean' in dict(module.named_buffers())


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
    with pytest.raises(ValueError, match='leave out --pictures'):
        export_model(model, tmp_path / 'b.mlpackage', 'coreml', pictures=draw_pictures(1, 64, 64))


@pytest.mark.parametrize(('format', 'file'), [('coreml', 'a.mlpackage'), ('torch-export', 'a.pt2')])
def test_formats_that_are_not_for_detectors(tiny_model, tmp_path, format, file):
    with pytest.raises(ValueError, match=f'{format}: use onnx, openvino or torchscript'):
        export_model(tiny_model('retinanet'), tmp_path / file, format)


@pytest.mark.parametrize(('name', 'size'), [('semfpn', (70, 90)), ('upernet', None)])
def test_padded_segmentors(tiny_config, tiny_model, checkpoint, tmp_path, name, size):
    """Whether a size needs padding or not."""
    cfg, model = tiny_config(name), tiny_model(name)
    assert cfg.model.data_preprocessor.test_cfg.size_divisor == 32
    weights = checkpoint(name)
    report = export_config(cfg, weights, 'coreml', tmp_path / 'a.mlpackage', size=size)
    assert (report.meta['height'], report.meta['width']) == (size or (96, 96))
    assert 0 < report.deviations['weights'] < 2e-3
    report = export_config(cfg, weights, 'torch-export', tmp_path / 'a.pt2')
    loaded = load_exported(report.path, threads=1)
    for shape in ((1, 96, 96), (2, 64, 160), (3, 97, 130), (1, 33, 40)):
        images = draw_pictures(*shape)
        expected = predict(model, 'segmentation', images)['labels']
        found = loaded(images)['labels']
        assert found.shape == expected.shape and len(np.unique(expected)) > 1
        assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize('few', [0, 1])
def test_few_candidates_in_onnx(tiny_model, tmp_path, few):
    """torch.export, which this format is made with, expects two."""
    images = draw_pictures(1, 96, 128)
    model = tiny_model('retinanet')
    scores = np.sort(predict(model, 'detection', images)['scores'][0])[::-1]
    threshold = float(scores[:2].mean()) if few else 0.9999
    model = tiny_model('retinanet', test_cfg=dict(score_thr=threshold))
    found = load_exported(export_module(model, tmp_path / 'a.onnx', images.shape))(images)
    assert (found['labels'] >= 0).sum() == few
    expected = predict(model, 'detection', images)
    assert deviations(expected, found, 'detection')['detections'] == 0


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

    monkeypatch.setattr(export, 'write', spoil)
    with pytest.raises(RuntimeError, match=r'features deviate by .* the file is removed'):
        export_model(model, tmp_path / 'a.torchscript', 'torchscript', backbone=True)
    assert not list(tmp_path.iterdir())


def write_random(module, path, format, meta):
    for parameter in module.parameters():
        parameter.data.normal_()
    write(module, path, format, meta)


@pytest.mark.parametrize('name', ['classifier', 'semfpn', 'retinanet', 'maskrcnn'])
def test_a_file_of_random_parameters_is_refused(tiny_model, tmp_path, monkeypatch, name):
    monkeypatch.setattr(export, 'write', write_random)
    with pytest.raises(RuntimeError, match='the exported model computes something else'):
        export_model(tiny_model(name), tmp_path / 'a.torchscript', 'torchscript', size=(64, 96))
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


def test_detectors_that_find_nothing(tiny_config, tiny_model, checkpoint, tmp_path, monkeypatch):
    """Nothing is not taken for the same: the file is compared where something is found."""
    scenes = draw_pictures(12, 64, 64)  # the first is the one of the comparison
    best = predict(tiny_model('retinanet'), 'detection', scenes)['scores'].max(axis=1)
    own = best.argmax()
    assert best[own] > best[0] + 0.01
    cv2.imwrite(str(tmp_path / 'own.png'), scenes[own, ::-1].transpose(1, 2, 0))
    cfg = copy.deepcopy(tiny_config('retinanet'))
    cfg.model.test_cfg.score_thr = float(best[0] + best[own]) / 2
    target = tmp_path / 'out' / 'a.torchscript'

    def export_own(**options):
        weights = checkpoint('retinanet')
        return export_config(cfg, weights, 'torchscript', target, batch=1, size=(64, 64), **options)

    with pytest.raises(RuntimeError, match=r'nothing could be compared: .*--pictures FOLDER'):
        export_own()
    assert not list(target.parent.iterdir())
    report = export_own(pictures=str(tmp_path))
    assert report.deviations['detections'] == 0
    monkeypatch.setattr(export, 'write', write_random)
    with pytest.raises(RuntimeError, match=r'detections deviate by 1\.0e\+00'):
        export_own(pictures=str(tmp_path), force=True)


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


def test_int8(tiny_model, tmp_path, caplog):
    """In OpenVINO, which reads what ONNX Runtime has quantised."""
    model = tiny_model('classifier')
    pictures = list(draw_pictures(4, 64, 64))
    report = export_model(model, tmp_path / 'a.xml', 'openvino', calibration=pictures)
    assert report.meta['precision'] == 'int8'
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
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
    options = dict(calibration='no_such_folder')
    for format, file, message in (
        ('torchscript', 'a.torchscript', 'int8 is for'),
        ('onnx', 'a.onnx', 'none in'),
    ):
        with pytest.raises(ValueError, match=message):  # before the weights are fetched
            export_config(
                tiny_config('classifier'),
                'https://nowhere.invalid/a.pth',
                format,
                tmp_path / file,
                **options,
            )
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
    with pytest.raises(ValueError, match=r'other\.pth does not fit the model'):
        export_config(
            tiny_config('semfpn'), str(tmp_path / 'other.pth'), 'onnx', tmp_path / 'a.onnx'
        )
    unbuildable = Config(dict(model=dict(type='Unheard')))
    with pytest.raises(ValueError, match='cannot build the model of the config'):
        export_config(unbuildable, 'any.pth', 'onnx', tmp_path / 'a.onnx')
