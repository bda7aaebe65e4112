"""Large pictures in tiles: the objects and labels of the small pictures that they are made of."""

import itertools

import cv2
import numpy as np
import pytest
from toy_models import make_pictures

from mmffnet.errors import UsageError
from mmffnet.inference import Inferencer
from mmffnet.inference.tiles import PlacedMasks, Tiling, predict_tiles


class Colours:
    """A detector of what is bright, by its colour: red is class 0, blue class 1."""

    task = 'detection'

    def __init__(self):
        self.batches = []

    def predict(self, pictures):
        self.batches.append(len(pictures))
        return [self._find(picture) for picture in pictures]

    def _find(self, picture):
        boxes, labels, masks = [], [], []
        for label, channel in enumerate((2, 0)):
            number, parts = cv2.connectedComponents((picture[..., channel] > 128).astype(np.uint8))
            for i in range(1, number):
                x, y, w, h = cv2.boundingRect((parts == i).astype(np.uint8))
                boxes.append([x, y, x + w, y + h])
                labels.append(label)
                masks.append(parts == i)
        return dict(
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            # what shows less of an object is less sure of it
            scores=np.array([mask.sum() / 1e4 for mask in masks], np.float32),
            labels=np.array(labels, np.int64),
            masks=np.array(masks, bool).reshape(-1, *picture.shape[:2]),
        )


def draw(dice, height, width, count, largest):
    """Discs and bars of two colours that do not touch."""
    picture = np.zeros((height, width, 3), np.uint8)
    taken = np.zeros((height, width), np.uint8)
    while count:
        w, h = dice.integers(6, largest, 2)
        x, y = dice.integers(0, width - w), dice.integers(0, height - h)
        if taken[max(y - 3, 0) : y + h + 3, max(x - 3, 0) : x + w + 3].any():
            continue
        taken[y : y + h, x : x + w] = 1
        colour = (0, 0, 255) if dice.random() < 0.5 else (255, 0, 0)
        if count % 2:
            centre, axes = (int(x + w // 2), int(y + h // 2)), (int(w // 2 - 1), int(h // 2 - 1))
            cv2.ellipse(picture, centre, axes, 0, 0, 360, colour, -1)
        else:
            picture[y : y + h, x : x + w] = colour
        count -= 1
    return picture


def ordered(found):
    order = np.lexsort([*found['boxes'].T, found['labels']])
    return found['boxes'][order], found['labels'][order], np.asarray(found['masks'])[order]


@pytest.mark.parametrize('shape', [(300, 420), (90, 500), (150, 100)])
@pytest.mark.parametrize(
    ('overlap', 'largest'),
    [(0.5, 48), (0.4, 90)],
    ids=['objects as large as the overlap', 'larger than the overlap, and cut in each tile'],
)
def test_objects_at_the_borders_of_tiles_are_found_once(shape, overlap, largest):
    whole = pieces = 0
    for seed in range(4):
        picture = draw(np.random.default_rng(seed), *shape, 12, min(largest, 60 + shape[0] // 5))
        model = Colours()
        (expected,) = model.predict([picture])
        (found,) = predict_tiles(model, [picture], Tiling(100, overlap), 4, 0.0)
        for mine, theirs in zip(ordered(found), ordered(expected), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        whole += len(expected['labels'])
        tiles = [picture[b:d, a:c] for a, b, c, d in Tiling(100, overlap).windows(*shape)]
        pieces += sum(len(one['labels']) for one in model.predict(tiles))
    assert pieces > 1.3 * whole, 'there was something to merge'


def test_windows_cover_the_picture():
    for length in (64, 65, 99, 100, 101, 180, 181, 1000):
        windows = Tiling(100, 0.2).windows(70, length)
        assert windows[0][:2] == (0, 0) and windows[-1][2:] == (length, 70)
        ends = [(x1, x2) for x1, _, x2, _ in windows]
        assert all(x2 - x1 == min(length, 100) for x1, x2 in ends)
        assert all(b - a >= 20 for (_, b), (a, _) in itertools.pairwise(ends))
        assert len(windows) == 1 + max(-(-(length - 100) // 80), 0)


@pytest.mark.parametrize(('size', 'overlap'), [(0, 0.2), (-640, 0.2), (640, 1.0), (640, -0.1)])
def test_what_is_no_tiling(size, overlap):
    with pytest.raises(UsageError, match='tiles'):
        Tiling(size, overlap)


def test_tiles_go_in_batches_and_scores_are_cut():
    model = Colours()
    picture = draw(np.random.default_rng(0), 180, 260, 8, 40)
    (found,) = predict_tiles(model, [picture], Tiling(100), 4, 0.05)
    assert model.batches == [4, 2]
    assert 0 < len(found['scores']) < 8 and (found['scores'] >= 0.05).all()


def test_masks_are_kept_in_parts():
    masks = np.zeros((3, 40, 50), bool)
    masks[0, 3:9, 4:20], masks[2, 39, 49] = True, True
    (found,) = predict_tiles(Colours(), [np.zeros((120, 130, 3), np.uint8)], Tiling(100), 1, 0.0)
    assert found['masks'].shape == (0, 120, 130) and np.asarray(found['masks']).dtype == bool
    parts = [(np.s_[3:9, 4:20], masks[0, 3:9, 4:20]), (np.s_[:0, :0], masks[1, :0, :0])]
    placed = PlacedMasks([*parts, (np.s_[39:, 49:], masks[2, 39:, 49:])], (40, 50))
    np.testing.assert_array_equal(np.asarray(placed), masks)
    np.testing.assert_array_equal(placed[-1], masks[2])
    np.testing.assert_array_equal(np.asarray(placed[np.array([True, False, True])]), masks[::2])
    assert [mask.sum() for mask in placed] == [96, 0, 1]


@pytest.fixture(scope='module')
def mosaic(tmp_path_factory):
    """Four small pictures, and the large one that they make."""
    paths = make_pictures(tmp_path_factory.mktemp('tiles'), 7)[::2]
    small = [cv2.resize(cv2.imread(str(path)), (96, 96)) for path in paths]
    return small, np.vstack([np.hstack(small[:2]), np.hstack(small[2:])])


def test_a_detector_finds_what_it_finds_in_small_pictures(models, mosaic):
    small, large = mosaic
    inferencer = Inferencer(*models('detection'), tiles=96, overlap=0.0)
    alone = inferencer(small, score_thr=0.25)
    (together,) = inferencer(large, batch_size=3, score_thr=0.25)
    offsets = [(0, 0), (96, 0), (0, 96), (96, 96)]
    boxes = np.concatenate(
        [one.boxes + np.tile(offset, 2) for one, offset in zip(alone, offsets, strict=True)]
    )
    assert len(boxes) > 8
    order, theirs = np.argsort(-together.scores), np.concatenate([one.scores for one in alone])
    np.testing.assert_allclose(together.scores[order], -np.sort(-theirs), atol=1e-4)
    distance = np.abs(together.boxes[:, None] - boxes).max(-1)
    assert (distance.min(0) < 0.1).all() and (distance.min(1) < 0.1).all()
    # masks are where they are in the small picture
    for one, (x, y) in zip(alone, offsets, strict=True):
        for box, mask in zip(one.boxes + np.tile((x, y), 2), one.masks, strict=True):
            k = int(np.abs(together.boxes - box).max(1).argmin())
            assert (together.masks[k][y : y + 96, x : x + 96] != mask).mean() < 0.01
    assert together.describe()['annotations'][0]['segmentation']['size'] == [192, 192]
    assert together.paint().shape[:2] >= (192, 192)


def test_a_segmentor_sees_each_tile(models, mosaic):
    small, large = mosaic
    inferencer = Inferencer(*models('segmentation'), tiles=96, overlap=0.0)
    alone = [one.labels for one in inferencer(small)]
    (together,) = inferencer(large, batch_size=2)
    expected = np.vstack([np.hstack(alone[:2]), np.hstack(alone[2:])])
    assert len(np.unique(expected)) > 1
    assert (together.labels == expected).mean() > 0.999


class Distances:
    """A segmentor that labels each pixel with its distance from the ends of a tile."""

    task = 'segmentation'

    def predict(self, pictures):
        return [self._label(*picture.shape[:2]) for picture in pictures]

    @staticmethod
    def _label(height, width):
        places = np.arange(width)
        return dict(labels=np.tile(np.minimum(places, places[::-1]), (height, 1)))


def test_labels_come_from_the_tile_that_sees_most():
    picture = np.zeros((96, 300, 3), np.uint8)
    (found,) = predict_tiles(Distances(), [picture], Tiling(100), 1, 0)
    labels = found['labels']
    # tiles start at 0, 67, 133 and 200: 33 pixels are in two of them, and divided in the middle
    assert labels.shape == (96, 300) and labels[:, 16:-16].min() == 16
    np.testing.assert_array_equal(labels[0, :50], np.arange(50))


@pytest.mark.slow
def test_small_pictures_are_as_without_tiles(inferencers, models, pictures):
    plain = inferencers('detection')(list(pictures))
    tiled = Inferencer(*models('detection'), tiles=96)(list(pictures))
    for one, other in zip(plain, tiled, strict=True):
        # in batches of other sizes sums are rounded otherwise
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        assert (one.masks != other.masks).mean() < 1e-3


def test_a_classifier_has_no_tiles(models):
    with pytest.raises(UsageError, match='classifier'):
        Inferencer(*models('classification'), tiles=96)
