"""How far results are from one another."""

import cv2
import numpy as np
import pytest

from mmffnet.deploy.check import deviations, draw_pictures, in_batches, read_pictures


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


def test_pictures_are_read_and_resized(tmp_path):
    for i in range(5):
        cv2.imwrite(str(tmp_path / f'{i}.png'), np.full((40, 60, 3), (0, i, 200), np.uint8))
    pictures = read_pictures(tmp_path, [], None, most=3)
    assert [picture[1, 0, 0] for picture in pictures] == [0, 2, 4]
    assert pictures[2].shape == (3, 40, 60) and pictures[2][:, 5, 5].tolist() == [200, 4, 0]
    resize = [dict(type='Resize', scale=(90, 60), keep_ratio=True)]
    assert read_pictures(tmp_path, resize, None, most=1)[0].shape == (3, 60, 90)
    (small,) = read_pictures(tmp_path, resize, (32, 50), most=1)
    assert small.shape == (3, 32, 50)
    assert [images.shape for images in in_batches([small], 2)] == [(2, 3, 32, 50)]
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'there are none in .*empty'):
        read_pictures(tmp_path / 'empty', [], None, most=1)


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
