"""How far results are from one another."""

import numpy as np
import pytest

from mmffnet.deploy.check import deviations, draw_pictures


def detections(**changes):
    found = dict(
        boxes=np.array([[[0, 0, 10, 10], [5, 5, 20, 20], [0, 0, 0, 0]]], np.float32),
        scores=np.array([[0.9, 0.8, 0]], np.float32),
        labels=np.array([[1, 0, -1]]),
    )
    return {**found, **{name: np.array(value) for name, value in changes.items()}}


def test_pictures_are_drawn_in_any_size():
    pictures = draw_pictures(2, 70, 131)
    assert pictures.shape == (2, 3, 70, 131) and pictures.dtype == np.float32
    assert pictures.min() >= 0 and 128 < pictures.max() <= 255
    assert (pictures[0] != pictures[1]).mean() > 0.5


def test_numbers_are_compared_with_the_largest():
    one = dict(stage0=np.array([[1.0, -4.0]]), stage1=np.zeros((1, 2)))
    other = dict(stage0=np.array([[1.0, -4.4]]), stage1=np.zeros((1, 2)))
    assert deviations(one, other, 'features') == {'features': pytest.approx(0.1)}
    nan = dict(one, stage1=np.full((1, 2), np.nan))
    assert np.isnan(deviations(one, nan, 'features')['features'])
    short = dict(one, stage1=np.zeros((1, 1)))
    assert deviations(one, short, 'features')['features'] == np.inf


def test_labels_are_counted():
    one = np.zeros((1, 4, 5), np.int64)
    other = one.copy()
    other[0, 0, 0] = 3
    assert deviations(dict(labels=one), dict(labels=other), 'segmentation') == {'labels': 0.05}


def test_detections_may_come_in_another_order():
    one = detections()
    other = {name: value[:, [1, 0, 2]] for name, value in one.items()}
    assert deviations(one, other, 'detection') == dict(detections=0, scores=0, boxes=0)


@pytest.mark.parametrize(
    ('change', 'share'),
    [
        (dict(labels=[[1, 2, -1]]), 0.5),
        (dict(labels=[[1, -1, -1]]), 1 / 3),
        (dict(labels=[[1, 0, 0]]), 0.2),
        (dict(scores=[[0.9, 0.79, 0]]), 0.5),
        (dict(boxes=[[[0, 0, 10, 10.2], [5, 5, 20, 20], [0, 0, 0, 0]]]), 0.5),
        (dict(boxes=[[[0, 0, 10, 10.05], [5, 5, 20, 20], [0, 0, 0, 0]]]), 0),
        (dict(labels=[[-1, -1, -1]]), 1),
    ],
)
def test_detections_without_counterpart(change, share):
    found = deviations(detections(), detections(**change), 'detection')
    assert found['detections'] == pytest.approx(share)


def test_masks_belong_to_detections():
    masks = np.zeros((1, 3, 24, 24), bool)
    masks[0, 0, :10, :10] = masks[0, 1, 5:20, 5:20] = True
    soft = np.ones((1, 3, 28, 28), np.float32)
    one, other = detections(masks=masks), detections(masks=soft)
    assert deviations(one, other, 'detection')['detections'] == 0
    soft[0, 0, :14] = 0
    found = deviations(one, detections(masks=soft), 'detection')
    assert found['detections'] == 0.5 and found['masks'] == 0
