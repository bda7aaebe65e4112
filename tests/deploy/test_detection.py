"""Detectors as plain modules find what mmdet finds."""

import numpy as np
import pytest
import torch

from mmffnet.deploy.check import deviations, draw_pictures, predict
from mmffnet.deploy.wrap import wrap


@torch.inference_mode()
def outputs(module, images):
    found = module(torch.from_numpy(images))
    return dict(zip(module.outputs, (out.numpy() for out in found), strict=True))


@pytest.mark.parametrize('name', ['retinanet', 'maskrcnn'])
@pytest.mark.parametrize('shape', [(1, 160, 160), (3, 131, 170)])
def test_detections_are_those_of_mmdet(tiny_model, name, shape):
    model = tiny_model(name)
    images = draw_pictures(*shape)
    expected = predict(model, 'detection', images)
    found = outputs(wrap(model), images)
    number = (expected['labels'] >= 0).sum()
    assert number > 15 * shape[0] / 2  # there is something to compare
    assert len(np.unique(expected['labels'])) > 2
    worst = deviations(expected, found, 'detection')
    assert worst['detections'] == 0
    assert worst['scores'] < 1e-5 and worst['boxes'] < 1e-3
    assert ('masks' in worst) == (name == 'maskrcnn')
    if name == 'maskrcnn':
        assert expected['masks'].mean() > 0.01 and worst['masks'] < 1e-3


@pytest.mark.parametrize('name', ['retinanet', 'maskrcnn'])
def test_empty_places(tiny_model, name):
    strict = dict(score_thr=0.6)
    test_cfg = dict(rcnn=strict) if name == 'maskrcnn' else strict
    module = wrap(tiny_model(name, test_cfg=test_cfg))
    assert module.score_threshold == 0.6
    found = outputs(module, draw_pictures(2, 128, 128))
    empty = found['labels'] < 0
    assert empty.any()
    assert (found['labels'][empty] == -1).all()
    assert (found['scores'][empty] == 0).all() and (found['boxes'][empty] == 0).all()
    assert (found['scores'][~empty] > 0.6).all()
    assert (np.diff(found['scores']) <= 0).all()


def test_nothing_at_all(tiny_model):
    model = tiny_model('retinanet', test_cfg=dict(score_thr=0.999))
    images = draw_pictures(2, 64, 64)
    found = outputs(wrap(model), images)
    assert (found['labels'] == -1).all()
    assert deviations(predict(model, 'detection', images), found, 'detection')['detections'] == 0


def test_pictures_do_not_meet(tiny_model):
    """What is in a batch finds what it finds alone."""
    module = wrap(tiny_model('retinanet'))
    images = draw_pictures(3, 96, 128)
    together = outputs(module, images)
    for i, image in enumerate(images):
        alone = outputs(module, image[None])
        one = {name: value[i : i + 1] for name, value in together.items()}
        assert deviations(alone, one, 'detection')['detections'] == 0


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('retinanet', dict(test_cfg=dict(nms=dict(type='soft_nms'))), 'type nms'),
        ('retinanet', dict(test_cfg=dict(nms_pre=-1)), 'nms_pre'),
        ('maskrcnn', dict(test_cfg=dict(rcnn=dict(max_per_img=-1))), 'max_per_img'),
    ],
)
def test_what_cannot_be_exported(tiny_model, name, changes, message):
    with pytest.raises(ValueError, match=message):
        wrap(tiny_model(name, **changes))
