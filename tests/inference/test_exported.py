"""Exported models: places in the picture that was given, whatever was done to its size."""

import cv2
import numpy as np
import pytest
from toy_models import META

from mmffnet.deploy import runtimes
from mmffnet.engine.runner import read_config
from mmffnet.errors import UsageError
from mmffnet.inference import Inferencer, find_sources
from mmffnet.inference.tiles import Tiling

META_DATA = dict(
    classes=['ground', 'square'],
    palette=None,
    batch=None,
    height=None,
    width=None,
    min_size=33,
    resize=[],
    inputs=['images'],
)


def find_square(images):
    """A detector of one white square, as an exported one: two places, one of them empty."""
    found = [np.where(image.min(axis=0) > 200) for image in images]
    corners = [(x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in found]
    boxes = np.zeros((len(images), 2, 4))
    boxes[:, 0] = corners
    scores, labels = np.array([[0.9, 0]] * len(images)), np.array([[1, -1]] * len(images))
    masks = np.zeros((len(images), 2, 28, 28))
    masks[:, :, :14] = 1
    return boxes, scores, labels, masks


def segment_square(images):
    return ((images.min(axis=1) > 200).astype(int),)


@pytest.fixture
def make(monkeypatch):
    """Makes an inferencer of a function on arrays; also the shapes that it was called with."""

    def make(task, outputs, run, **meta):
        meta = META_DATA | dict(task=task, outputs=outputs) | meta
        shapes = []

        def record(images):
            shapes.append(images.shape)
            return run(images)

        model = runtimes.Exported('model.onnx', meta, record)
        monkeypatch.setattr(runtimes, 'load_exported', lambda path, device: model)
        return Inferencer('model.onnx'), shapes

    return make


def picture(height, width):
    """Blue, with a white square in the middle."""
    image = np.full((height, width, 3), (200, 50, 50), np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = 255
    return image, np.array([width // 4, height // 4, width // 2, height // 2])


@pytest.mark.parametrize(
    ('meta', 'expected'),
    [
        ({}, (80, 120)),
        (dict(resize=[dict(type='Resize', scale=[333, 200], keep_ratio=True)]), (200, 300)),
        (dict(resize=[dict(type='Resize', scale=[160, 160])]), (160, 160)),
        (dict(height=160, width=160), (160, 160)),
        (dict(height=60, width=60), (60, 60)),
        (dict(min_size=100), (100, 120)),
        (
            dict(
                resize=[
                    dict(type='Resize', scale=[240, 240], keep_ratio=True),
                    dict(type='mmdet.Pad', size=[256, 256], pad_val=dict(img=[114, 114, 114])),
                ]
            ),
            (256, 256),
        ),
        (
            dict(
                resize=[dict(type='Pad', size=[240, 160], pad_val=dict(img=[114, 114, 114]))],
                height=80,
                width=120,
            ),
            (80, 120),
        ),
    ],
)
def test_places_are_those_of_the_picture(make, meta, expected):
    image, box = picture(80, 120)
    names = ['boxes', 'scores', 'labels', 'masks']
    inferencer, shapes = make('detection', names, find_square, **meta)
    (result,) = inferencer(image)
    assert shapes == [(1, 3, *expected)]
    assert result.labels.tolist() == [1] and result.scores.tolist() == pytest.approx([0.9])
    np.testing.assert_allclose(result.boxes, [box], atol=2)
    x1, y1, x2, y2 = box
    assert result.masks.shape == (1, 80, 120)
    assert result.masks[0, y1 + 2 : (y1 + y2) // 2 - 1, x1 + 2 : x2 - 2].all()
    assert not result.masks[0, (y1 + y2) // 2 + 2 :].any()

    inferencer, _ = make('segmentation', ['labels'], segment_square, **meta)
    labels = inferencer(image)[0].labels
    wanted = np.zeros((80, 120), int)
    wanted[y1:y2, x1:x2] = 1
    assert labels.shape == wanted.shape and (labels != wanted).mean() < 0.02


def test_batches(make):
    images = [picture(*size)[0] for size in ((80, 120), (80, 120), (64, 64), (80, 120))]
    inferencer, shapes = make('segmentation', ['labels'], segment_square)
    results = inferencer(images, batch_size=4)
    assert shapes == [(2, 3, 80, 120), (1, 3, 64, 64), (1, 3, 80, 120)]
    for image, result in zip(images, results, strict=True):
        np.testing.assert_array_equal(result.labels, image.min(axis=2) > 200)
    inferencer, shapes = make('segmentation', ['labels'], segment_square, batch=3)
    inferencer(images, batch_size=4)
    assert [shape[0] for shape in shapes] == [3, 3, 3]


def find_white(images):
    """As find_square, without masks; a picture may have no white."""
    found = [np.argwhere(image.min(axis=0) > 200)[:, ::-1] for image in images]
    boxes = [[*at.min(0), *(at.max(0) + 1)] if len(at) else [0] * 4 for at in found]
    labels = [[1 if len(at) else -1] for at in found]
    return np.array(boxes, float)[:, None], np.full((len(images), 1), 0.9), np.array(labels)


def test_tiles(make):
    image, box = picture(160, 240)
    inferencer, shapes = make('segmentation', ['labels'], segment_square)
    inferencer.tiling = Tiling(64, 0.25)
    (result,) = inferencer(image, batch_size=8)
    np.testing.assert_array_equal(result.labels, image.min(axis=2) > 200)
    assert shapes == [(8, 3, 64, 64), (7, 3, 64, 64)]
    inferencer, shapes = make('detection', ['boxes', 'scores', 'labels'], find_white)
    inferencer.tiling = Tiling(64, 0.25)
    (result,) = inferencer(image, batch_size=8)  # larger than the overlap: in pieces
    np.testing.assert_array_equal(result.boxes, [box])


def test_a_model_that_fails_does_not_end_the_others(make, tmp_path):
    def fail_on_black(images):
        if not images.any():
            raise RuntimeError('expression u7 >= 2\nand a long explanation')
        return segment_square(images)

    inferencer, _ = make('segmentation', ['labels'], fail_on_black)
    images = [picture(64, 64)[0], np.zeros((64, 64, 3), np.uint8), picture(64, 64)[0]]
    summary = inferencer.write(find_sources(images), tmp_path / 'out')
    assert (
        str(summary) == '2 pictures done; 1 skipped: array (the model failed: expression u7 >= 2)'
    )


@pytest.mark.parametrize('size', [(50, 81), (97, 60), (64, 64)])
@pytest.mark.parametrize(
    ('package', 'step'),
    [
        ('mmdet', dict(type='Resize', scale=[133, 80], keep_ratio=True)),
        ('mmdet', dict(type='Resize', scale_factor=1.5)),
        ('mmdet', dict(type='Pad', size_divisor=32)),
        ('mmseg', dict(type='ResizeToMultiple', size_divisor=32)),
        ('mmpretrain', dict(type='ResizeEdge', scale=40, edge='short', backend='cv2')),
        ('mmpretrain', dict(type='ResizeEdge', scale=40, edge='long', interpolation='bicubic')),
        ('mmpretrain', dict(type='CenterCrop', crop_size=[30, 40])),
    ],
)
def test_sizes_change_as_in_the_pipelines(package, step, size):
    registry = pytest.importorskip(f'{package}.registry').TRANSFORMS
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    steps = {k: tuple(v) if isinstance(v, list) else v for k, v in step.items()}
    expected = registry.build(steps)(dict(img=image, img_shape=size, ori_shape=size))['img']
    np.testing.assert_array_equal(runtimes.resize(image, step), expected)


@pytest.mark.export
def test_the_whole_way_through_a_file(models, inferencers, pictures, tmp_path):
    from mmffnet.deploy.export import export_config

    config, checkpoint = models('classification')
    target = tmp_path / 'model.torchscript'
    export_config(read_config(config), checkpoint, 'torchscript', target)
    inferencer = Inferencer(str(target))
    assert inferencer.task == 'classification'
    assert inferencer.legend.classes == list(META['classification']['classes'])
    expected = inferencers('classification')(pictures)
    for ours, theirs in zip(inferencer(pictures), expected, strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
    image = cv2.imread(str(pictures[0]))
    np.testing.assert_array_equal(inferencer(image)[0].scores, inferencer(pictures[0])[0].scores)


def test_what_does_not_do(make, tmp_path):
    with pytest.raises(UsageError, match='is a bare backbone: it predicts nothing'):
        make('features', ['stage0'], segment_square)
    steps = [dict(type='RandomCrop')]
    inferencer, _ = make('segmentation', ['labels'], segment_square, resize=steps)
    with pytest.raises(UsageError, match='with the step RandomCrop'):
        inferencer(picture(40, 40)[0])
    for settings in (dict(fuse=True), dict(tta=True), dict(checkpoint='x.pth')):
        with pytest.raises(UsageError, match='is all there is to an exported model'):
            Inferencer('model.onnx', **settings)


def test_a_file_that_is_none(tmp_path):
    (tmp_path / 'model.onnx').write_text('not a model')
    with pytest.raises(UsageError, match=r'model\.onnx'):
        Inferencer(str(tmp_path / 'model.onnx'))
