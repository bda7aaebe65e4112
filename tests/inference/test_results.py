"""Results and the files they are written to."""

import copy
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from toy_models import META, make_video

from mmffnet.errors import UsageError
from mmffnet.inference import Detections, Picture, ResultWriter, find_sources
from mmffnet.visualization import Legend

LEGEND = Legend(('one', 'two', 'three'), [(200, 30, 30), (30, 200, 30), (30, 30, 200)])


def test_detections_are_written_as_coco_has_them(inferencers, pictures, tmp_path):
    coco = pytest.importorskip('pycocotools.coco')
    inferencer = inferencers('detection')
    video = make_video(tmp_path / 'clip.mp4', frames=3, fps=8)
    (tmp_path / 'broken.jpg').write_bytes(b'x')
    pictures = pictures[::2]  # of one size: mmdet would pad, and predict a little differently
    inputs = find_sources([*pictures, tmp_path / 'broken.jpg', video])
    out = tmp_path / 'out'
    summary = inferencer.write(inputs, out, batch_size=2, score_thr=0.25)
    assert summary.done == 5
    assert [Path(one.where).name for one in summary.skipped] == ['broken.jpg']
    assert re.match(r'5 pictures done; 1 skipped: .*broken.jpg \(', str(summary))

    truth = coco.COCO(out / 'predictions.json')
    assert [c['name'] for c in truth.cats.values()] == list(META['detection']['classes'])
    annotations = copy.deepcopy(truth.dataset['annotations'])
    assert len(truth.loadRes(annotations).anns) == len(annotations) > 0
    images = list(truth.imgs.values())
    assert [i['file_name'] for i in images] == ['000.png', '002.png'] + ['clip.mp4'] * 3
    assert [i.get('frame') for i in images] == [None, None, 0, 1, 2]
    for image, path in zip(images, pictures, strict=False):
        (result,) = inferencer(path, score_thr=0.25)
        found = truth.loadAnns(truth.getAnnIds(image['id']))
        assert len(found) == len(result.scores)
        for i, one in enumerate(found):
            x, y, width, height = one['bbox']
            corners = [x, y, x + width, y + height]
            np.testing.assert_allclose(corners, result.boxes[i], atol=0.02)
            assert one['score'] == pytest.approx(result.scores[i], abs=1e-5)
            assert one['score'] >= 0.25
            assert one['category_id'] == result.labels[i] + 1
            mask = truth.annToMask(one).astype(bool)
            assert (mask != result.masks[i]).mean() < 1e-3  # in another batch sums are rounded so
            assert one['area'] == mask.sum() > 0

    painted = cv2.imread(str(out / 'painted' / '000.png'))
    assert painted.shape == (960, 960, 3)
    video = cv2.VideoCapture(str(out / 'painted' / 'clip.mp4'))
    assert video.get(cv2.CAP_PROP_FPS) == 8
    frames = [video.read() for _ in range(4)]
    assert [there for there, _ in frames] == [True, True, True, False]
    assert frames[0][1].shape == (720, 960, 3)


def test_labels_are_written_as_pictures(inferencers, pictures, tmp_path):
    inferencer = inferencers('segmentation')
    video = make_video(tmp_path / 'clip.mp4', frames=2)
    results = inferencer([pictures[1], video])
    inferencer.write(find_sources([pictures[1], video]), tmp_path / 'out')
    names = ['001.png', 'clip/000000.png', 'clip/000001.png']
    content = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    assert [one['labels'] for one in content['images']] == [f'labels/{name}' for name in names]
    colours = np.array(META['segmentation']['palette'])
    assert [c['color'] for c in content['categories']] == colours.tolist()
    assert [c['id'] for c in content['categories']] == list(range(6))
    for name, result, entry in zip(names, results, content['images'], strict=True):
        with Image.open(tmp_path / 'out' / 'labels' / name) as image:
            np.testing.assert_array_equal(np.asarray(image), result.labels)
            np.testing.assert_array_equal(np.asarray(image.convert('RGB')), colours[result.labels])
        by_name = {c['name']: int((result.labels == c['id']).sum()) for c in content['categories']}
        assert entry['pixels'] == {name: number for name, number in by_name.items() if number}
    painted = cv2.imread(str(tmp_path / 'out' / 'painted' / '001.png'))
    assert painted.shape[1] > 2 * painted.shape[0] * 0.9  # the picture beside the prediction
    assert (tmp_path / 'out' / 'painted' / 'clip.mp4').is_file()


def test_probabilities_are_written(inferencers, pictures, tmp_path):
    inferencer = inferencers('classification')
    (result,) = inferencer(pictures[1])
    inferencer.write(find_sources(pictures[1]), tmp_path)
    content = json.loads((tmp_path / 'predictions.json').read_text())
    (entry,) = content['images']
    assert entry['category'] == META['classification']['classes'][result.scores.argmax()]
    assert [one['score'] for one in entry['top']] == sorted(
        (round(float(score), 5) for score in result.scores), reverse=True
    )
    with pytest.raises(UsageError, match='a score threshold is for detectors'):
        inferencer.write(find_sources(pictures[1]), tmp_path, score_thr=0.5)


@pytest.mark.slow
def test_more_than_256_classes(tmp_path):
    from mmffnet.inference import Segmentation

    labels = np.arange(300).reshape(10, 30)
    picture = Picture('many.gif', 'many.gif', np.zeros((10, 30, 3), np.uint8))
    with ResultWriter(tmp_path, Legend(())) as writer:
        writer.add(Segmentation(picture, Legend(()), labels))
    with Image.open(tmp_path / 'labels' / 'many.png') as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
    content = json.loads((tmp_path / 'predictions.json').read_text())
    assert content['categories'][299]['name'] == 'class 299'


def test_the_score_decides_what_is_left():
    picture = Picture('x.png', 'x.png', np.zeros((20, 20, 3), np.uint8))
    boxes = np.array([[0, 0, 5, 5], [5, 5, 9, 9.0]])
    found = Detections(picture, LEGEND, boxes, np.array([0.9, 0.3]), np.array([1, 2]))
    assert found.above(0.3).boxes.shape == (2, 4)
    kept = replace(found, masks=np.ones((2, 20, 20), bool)).above(0.5)
    assert kept.labels.tolist() == [1] and kept.masks.shape == (1, 20, 20)


@pytest.mark.parametrize('first', [False, True])
def test_masks_without_pycocotools(first, monkeypatch):
    coco = pytest.importorskip('pycocotools.mask')
    masks = np.random.RandomState(0).rand(3, 7, 5) < 0.5
    masks[0], masks[:, 0, 0] = False, first
    picture = Picture('a.png', 'a.png', np.zeros((7, 5, 3), np.uint8))
    found = Detections(picture, LEGEND, np.ones((3, 4)), np.ones(3), np.zeros(3, int), masks)
    monkeypatch.setitem(sys.modules, 'pycocotools', None)
    annotations = found.describe()['annotations']
    for mask, one in zip(masks, annotations, strict=True):
        rle = coco.frPyObjects(one['segmentation'], 7, 5)
        np.testing.assert_array_equal(coco.decode(rle), mask)
