"""The numbers of a trained model, from predictions that are known."""

import numpy as np
import pytest

from mmffnet.benchmark.evaluation import _classification, _detection
from mmffnet.inference.results import Classification, Detections
from mmffnet.inference.sources import Picture
from mmffnet.visualization import Legend

LEGEND = Legend(['cat', 'dog'], [(250, 0, 0), (0, 0, 250)])
BOXES = np.array([[10, 10, 40, 40], [60, 10, 90, 50], [10, 60, 50, 90]], np.float32)


def picture(name='a.jpg'):
    return Picture(name, name, np.full((100, 100, 3), 128, np.uint8))


def outline(box):
    x1, y1, x2, y2 = map(float, box)
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def detected(labels, scores, boxes=BOXES, masks=None):
    labels = np.array(labels, np.int64)
    found = (boxes, np.array(scores, np.float32), labels, masks)
    return Detections(picture(), LEGEND, *found)


@pytest.fixture
def sample():
    pytest.importorskip('mmdet')
    instances = [
        dict(bbox=box.tolist(), bbox_label=label, ignore_flag=0, mask=outline(box))
        for box, label in zip(BOXES, (0, 0, 1), strict=True)
    ]
    return dict(img_path='a.jpg', instances=instances)


def test_what_is_found_is_right(sample):
    masks = np.zeros((3, 100, 100), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, BOXES.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    pairs = [(sample, detected([0, 0, 1], [0.9, 0.6, 0.8], masks=masks))]
    results, paint = _detection(iter(pairs), LEGEND)
    assert results.summary['box mAP'] == results.summary['mask mAP'] == pytest.approx(1)
    assert results.confusion.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert results.scores == [1.0]
    cat, dog = results.per_class
    assert cat['objects'] == 2 and cat['best F1'] == pytest.approx(1)
    # the highest score that keeps all that is right
    assert (cat['threshold'], dog['threshold']) == (pytest.approx(0.6), pytest.approx(0.8))
    real, guess = paint(0, pairs[0][1])
    assert real.shape == guess.shape and (real != guess).any()  # the scores differ


def test_what_is_confused_missed_and_made_up(sample):
    boxes = np.concatenate([BOXES[:2], BOXES[:1] + 50])
    pairs = [
        (sample, detected([0, 1, 0], [0.9, 0.8, 0.1], boxes)),
        (dict(instances=[]), detected([], [], BOXES[:0])),
    ]
    results, _ = _detection(iter(pairs), LEGEND)
    # a cat found, one taken for a dog, a dog missed; the unsure cat is below the threshold
    assert results.confusion.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert results.scores == [pytest.approx(2 / 5), 1.0]
    assert results.per_class[0]['threshold'] == pytest.approx(0.9)
    assert results.per_class[1]['best F1'] == 0 and 'threshold' not in results.per_class[1]


def test_no_detections_at_all(sample):
    results, _ = _detection(iter([(sample, detected([], [], BOXES[:0]))]), LEGEND)
    assert results.summary['box mAP'] == 0
    assert results.confusion.tolist() == [[0, 0, 2], [0, 0, 1], [0, 0, 0]]


def test_classes():
    scores = [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]
    pairs = [
        (dict(gt_label=label), Classification(picture(), LEGEND, np.array(score, np.float32)))
        for label, score in zip((0, 0, 1, 1), scores, strict=True)
    ]
    results, _ = _classification(iter(pairs), LEGEND)
    assert results.summary == {'accuracy': 0.75}
    assert results.confusion.tolist() == [[1, 1], [0, 2]]
    cat, dog = results.per_class
    assert (cat['precision'], cat['recall']) == (1, 0.5)
    assert (cat['best F1'], cat['threshold']) == (1, pytest.approx(0.4))
    assert (dog['best F1'], dog['threshold']) == (1, pytest.approx(0.7))
