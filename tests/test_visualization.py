"""Painted pictures."""

import numpy as np
import pytest
from toy_models import colour_share

from mmffnet.visualization import Legend, enlarge, paint_detections, paint_labels, paint_scores

LEGEND = Legend(('one', 'two', 'three'), [(200, 30, 30), (30, 200, 30), (30, 30, 200)])


@pytest.mark.parametrize('size', [(60, 80), (900, 1200), (3000, 2250)])
def test_detections_are_painted_where_they_are(size):
    height, width = size
    image = np.full((height, width, 3), 120, np.uint8)
    boxes = np.array([[0.1, 0.2, 0.4, 0.7], [0.6, 0.3, 0.9, 0.9]]) * ([width, height] * 2)
    masks = np.zeros((2, height, width), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[(y1 + y2) // 2 : y2, x1:x2] = True  # the lower halves
    painted = paint_detections(image, boxes, np.array([0.9, 0.8]), np.array([0, 2]), masks, LEGEND)
    factor = painted.shape[0] / height
    assert factor == enlarge(image)[1] and max(painted.shape) >= 800

    def part(box, top, bottom):
        x1, y1, x2, y2 = box * factor
        rows = slice(round(y1 + top * (y2 - y1)), round(y1 + bottom * (y2 - y1)))
        return painted[rows, round(x1 + 0.1 * (x2 - x1)) : round(x2 - 0.1 * (x2 - x1))]

    for box, label in zip(boxes, (0, 2), strict=True):
        tint = 0.55 * 120 + 0.45 * np.array(LEGEND.colour(label))
        assert colour_share(part(box, 0.6, 0.9), tint) > 0.95
        assert colour_share(part(box, 0.2, 0.4), (120, 120, 120)) > 0.95
    # names are a readable part of the picture, whatever its size: about 2 % of its longer side
    name = (painted == LEGEND.colour(0)).all(axis=2)
    rows = np.flatnonzero(name.sum(axis=1) > 0.02 * painted.shape[1])
    run = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    assert max(map(len, run)) / max(painted.shape[:2]) == pytest.approx(0.024, abs=0.008)
    assert (image == 120).all()


def test_names_do_not_cover_each_other():
    image = np.full((800, 800, 3), 120, np.uint8)
    boxes = np.array([[300.0, 300, 500, 500], [300, 300, 502, 502], [300, 298, 505, 500]])
    painted = paint_detections(image, boxes, np.full(3, 0.5), np.arange(3), None, LEGEND)
    areas = [int((painted == LEGEND.colour(label)).all(axis=2).sum()) for label in range(3)]
    assert min(areas) > 1000  # a plate for a name has about 2000 pixels
    # at the corner of the picture there is room for a name, too
    corner = np.array([[795.0, 0, 800, 5]])
    painted = paint_detections(image, corner, np.ones(1), np.zeros(1, int), None, LEGEND)
    assert int((painted == LEGEND.colour(0)).all(axis=2).sum()) > 500


def test_nothing_found_paints_nothing():
    image = np.random.default_rng(0).integers(0, 255, (900, 700, 3), np.uint8)
    none = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
    np.testing.assert_array_equal(paint_detections(image, *none, None, LEGEND), image)


def test_labels_are_painted_on_grey():
    image = np.full((400, 900, 3), (250, 100, 100), np.uint8)
    labels = np.zeros((400, 900), int)
    labels[:, 450:] = 1
    painted = paint_labels(image, labels, LEGEND)
    for half, label in ((painted[:, :440], 0), (painted[:, 460:], 1)):
        assert colour_share(half, 0.3 * 150 + 0.7 * np.array(LEGEND.colour(label))) > 0.95
        assert 0.001 < colour_share(half, (255, 255, 255)) < 0.03  # the name


def test_bars_are_as_long_as_scores():
    image = np.full((600, 900, 3), 50, np.uint8)
    painted = paint_scores(image, ['a rather long name of a class, indeed' * 2, 'b'], [0.8, 0.4])
    np.testing.assert_array_equal(painted[:600], image)
    bar = (np.abs(painted[600:].astype(int) - (60, 120, 200)).max(axis=2) < 3).sum(axis=1)
    lengths = np.unique(bar[bar > 0])
    assert len(lengths) == 2 and lengths[0] / lengths[1] == pytest.approx(0.5, abs=0.02)


def test_colours_without_a_palette_differ():
    colours = np.array([Legend(()).colour(label) for label in range(20)])
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 999 * np.eye(20)
    assert distances.min() > 30
