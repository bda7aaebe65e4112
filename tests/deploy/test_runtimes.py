"""One interface for all runtimes, and clear words where there is no going on."""

import logging
import sys
import threading
import warnings

import numpy as np
import onnx
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

from mmffnet.deploy import runtimes
from mmffnet.deploy.check import draw_pictures
from mmffnet.deploy.export import export_model
from mmffnet.deploy.plain import AdaptivePool
from mmffnet.deploy.runtimes import load_exported, paste_masks, quiet

pytestmark = pytest.mark.export


@pytest.fixture(scope='module')
def exported(tiny_model, tmp_path_factory):
    """A bare backbone for two pictures 64 wide and of any height."""
    path = tmp_path_factory.mktemp('exported') / 'backbone.torchscript'
    info = dict(classes=['a'], palette=[(1, 2, 3)], config='mine')
    export_model(tiny_model('semfpn'), path, 'torchscript', info=info, backbone=True)
    return load_exported(path, threads=1)


def test_metadata(exported):
    assert exported.meta == dict(
        task='features',
        classes=['a'],
        palette=[[1, 2, 3]],
        batch=None,
        height=None,
        width=None,
        min_size=33,
        resize=[],
        channel_order='rgb',
        mean=None,
        std=None,
        score_threshold=None,
        precision='float32',
        config='mine',
        mmffnet=exported.meta['mmffnet'],
        inputs=['images'],
        outputs=['stage1', 'stage2', 'stage3'],
    )


def test_outputs(exported):
    images = draw_pictures(2, 64, 96)
    found = exported(images)
    assert {name: value.shape for name, value in found.items()} == dict(
        stage1=(2, 16, 8, 12), stage2=(2, 32, 4, 6), stage3=(2, 64, 2, 3)
    )
    assert all(value.dtype == np.float32 for value in found.values())
    whole = exported(images.round().astype(np.uint8))
    np.testing.assert_array_equal(whole['stage1'], exported(images.round())['stage1'])


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((3, 64, 64), r'of the shape \(N, 3, H, W\), got float32 of the shape \(3, 64, 64\)'),
        ((1, 1, 64, 64), r'got float32 of the shape \(1, 1, 64, 64\)'),
        ((0, 3, 64, 64), r'got float32 of the shape \(0, 3, 64, 64\)'),
        ((1, 3, 64, 20), 'at least 33 x 33, got 64 x 20'),
    ],
)
def test_wrong_pictures(exported, shape, message):
    with pytest.raises(ValueError, match=message):
        exported(np.zeros(shape, np.float32))


def test_fixed_sizes(tiny_model, tmp_path):
    path = tmp_path / 'fixed.torchscript'
    model = tiny_model('classifier')
    export_model(model, path, 'torchscript', batch=1, size=(32, 64))
    loaded = load_exported(path)
    assert [loaded.meta[key] for key in ('batch', 'height', 'width')] == [1, 32, 64]
    assert loaded(draw_pictures(1, 32, 64))['scores'].shape == (1, 5)
    with pytest.raises(ValueError, match='exported for 1 x 3 x 32 x 64, got'):
        loaded(draw_pictures(1, 64, 64))


def test_files_that_are_not_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'there is no exported model .*none\.onnx'):
        load_exported(tmp_path / 'none.onnx')
    with pytest.raises(ValueError, match=r'known endings are \.onnx, \.xml'):
        load_exported('model.mlpackage')
    for name in ('a.onnx', 'a.torchscript', 'a.pt2', 'a.xml', 'a.bin'):
        (tmp_path / name).write_bytes(b'nothing')
    for suffix in ('onnx', 'torchscript', 'pt2', 'xml'):
        with pytest.raises(RuntimeError, match=f'cannot load .*a.{suffix} on cpu'):
            load_exported(tmp_path / f'a.{suffix}')
    (tmp_path / 'b.xml').touch()
    with pytest.raises(FileNotFoundError, match=r'the weights .*b\.bin'):
        load_exported(tmp_path / 'b.xml')
    torch.jit.save(torch.jit.script(torch.nn.Identity()), tmp_path / 'foreign.torchscript')
    value = onnx.helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node('Identity', ['x'], ['y'])
    out = onnx.helper.make_tensor_value_info('y', onnx.TensorProto.FLOAT, [1])
    unknown = onnx.helper.make_node('Unknown', ['x'], ['y'])
    graph = onnx.helper.make_graph([unknown], 'g', [value], [out])
    strange = [onnx.helper.make_opsetid('', 20)]
    model = onnx.helper.make_model(graph, opset_imports=strange, ir_version=10)
    onnx.save(model, tmp_path / 'strange.onnx')
    with pytest.raises(RuntimeError, match=r'cannot load .*strange\.onnx on cpu: .*Unknown'):
        load_exported(tmp_path / 'strange.onnx')
    graph = onnx.helper.make_graph([node], 'g', [value], [out])
    opset = [onnx.helper.make_opsetid('', 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.save(model, tmp_path / 'foreign.onnx')
    for suffix in ('torchscript', 'onnx'):
        with pytest.raises(ValueError, match=r'was not written by tools/export\.py'):
            load_exported(tmp_path / f'foreign.{suffix}')


def test_devices_and_precisions_that_are_not_there(exported, tmp_path):
    with pytest.raises(ValueError, match='cannot be computed in bfloat16'):
        load_exported(exported.path, precision='bfloat16')
    (tmp_path / 'a.onnx').touch()
    with pytest.raises(ValueError, match="no device 'cuda'"):
        load_exported(tmp_path / 'a.onnx', 'cuda')
    for name in ('a.xml', 'a.bin'):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"OpenVINO has no device 'npu': it has .*cpu"):
        load_exported(tmp_path / 'a.xml', 'npu')


def test_torchscript_makes_its_tensors_on_the_device_that_it_is_loaded_on(tiny_model, tmp_path):
    """Tracing writes 'cpu' into the graph, for whatever the network makes while it runs."""
    export_model(tiny_model('semfpn'), tmp_path / 'a.torchscript', 'torchscript')
    loaded = torch.jit.load(str(tmp_path / 'a.torchscript'))
    assert '"cpu"' in str(loaded.inlined_graph)
    runtimes._move_constants(loaded, 'meta')
    assert '"cpu"' not in str(loaded.inlined_graph)
    image = torch.rand(1, 3, 6, 8)
    traced = torch.jit.trace(AdaptivePool((2, 3)), image)
    runtimes._move_constants(traced, 'meta')
    assert traced(image.to('meta')).device.type == 'meta'


def test_runtimes_that_are_not_installed(tmp_path, monkeypatch):
    for suffix, package in (('onnx', 'onnxruntime'), ('xml', 'openvino')):
        (tmp_path / f'a.{suffix}').touch()
        (tmp_path / 'a.bin').touch()
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=f'`pip install {package}`'):
            load_exported(tmp_path / f'a.{suffix}')


def test_masks_are_pasted_as_mmdet_does():
    generator = np.random.default_rng(0)
    masks = generator.random((6, 28, 28), np.float32)
    low = generator.uniform(-10, 40, (6, 2))
    boxes = np.concatenate([low, low + generator.uniform(5, 40, (6, 2))], 1).astype(np.float32)
    boxes[5] = [3, 3, 3, 3]  # of no size
    args = torch.from_numpy(masks)[:5, None], torch.from_numpy(boxes[:5]), 50, 60
    expected, _ = _do_paste_mask(*args, skip_empty=False)
    found = paste_masks(masks, boxes, 50, 60)
    assert found.shape == (6, 50, 60) and found.dtype == bool
    assert 100 < expected.ge(0.5).sum() < 5000
    np.testing.assert_array_equal(found[:5], expected.ge(0.5).numpy())
    assert not found[5].any()


def test_only_exporters_are_quiet(caplog, capsys):
    """Whoever uses the package goes on logging and printing meanwhile."""
    names = ('mine', 'coremltools', 'torch.onnx')
    levels = [logging.getLogger(name).level for name in names]
    both = threading.Barrier(2)

    def other():
        with quiet():
            both.wait()
        both.wait()

    thread = threading.Thread(target=other)
    thread.start()
    with quiet():
        both.wait()
        both.wait()  # the other thread has left, and this one is still inside
        thread.join()
        print('printed')
        logging.getLogger('mine').warning('logged')
        logging.warning('by the root')
        warnings.warn('warned', stacklevel=1)
        for name in ('coremltools', 'torch.onnx.some'):
            logging.getLogger(name).warning('hidden')
            logging.getLogger(name).error('shown')
    assert capsys.readouterr().out == 'printed\n'
    assert caplog.messages == ['logged', 'by the root', 'shown', 'shown']
    assert [logging.getLogger(name).level for name in names] == levels
    assert not logging.getLogger().filters
