"""FastCocoMetric: the numbers of mmdet's CocoMetric, from another evaluator."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('faster_coco_eval')

from mmdet.evaluation.metrics import CocoMetric, coco_metric
from mmengine.registry import METRICS, DefaultScope
from pycocotools import mask as rle

from mmffnet import registry
from mmffnet.engine import fast_coco

CLASSES = ('small', 'large', 'crowded', 'never labelled')
SIZE = 240


def draw_box(dice, label):
    side = dice.uniform(6, 40) if label == 0 else dice.uniform(60, 200)
    x, y = dice.uniform(0, SIZE - side, 2)
    return [x, y, side, side * dice.uniform(0.6, 1.0)]


def mask_of(box):
    """An ellipse in the box."""
    x, y, w, h = box
    rows, columns = np.mgrid[:SIZE, :SIZE]
    inside = ((columns - x - w / 2) * 2 / w) ** 2 + ((rows - y - h / 2) * 2 / h) ** 2 <= 1
    return inside if inside.any() else (np.abs(columns - x) < 2) & (np.abs(rows - y) < 2)


def truth(dice, path, pictures):
    """Annotations: polygons and run lengths, crowds, a picture with nothing."""
    annotations = []
    for picture in range(1, pictures):
        for label in (0, *dice.integers(3, size=dice.integers(7)).tolist()):
            box = draw_box(dice, label)
            crowd = label == 2 and dice.random() < 0.4
            encoded = rle.encode(np.asfortranarray(mask_of(box), np.uint8))
            x, y, w, h = box
            outline = dict(size=encoded['size'], counts=encoded['counts'].decode())
            if not crowd and dice.random() < 0.5:
                outline = [[x, y, x + w, y, x + w, y + h, x + w / 3, y + h]]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=picture,
                    category_id=10 * label + 3,
                    bbox=box,
                    area=float(rle.area(encoded)),
                    iscrowd=int(crowd),
                    segmentation=outline,
                )
            )
    images = [dict(id=i, width=SIZE, height=SIZE, file_name='') for i in range(pictures)]
    categories = [dict(id=10 * i + 3, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    path.write_text(json.dumps(content))
    return annotations


def predictions(dice, annotations, picture, more):
    """Detections near the truth, some twice, some of another class, and false ones."""
    found = []
    for thing in annotations:
        if thing['image_id'] == picture:
            for _ in range(dice.integers(0, 3) + (more > 100)):
                label = (thing['category_id'] - 3) // 10
                label = label if dice.random() < 0.8 else int(dice.integers(4))
                box = np.array(thing['bbox']) + dice.normal(0, 1.5, 4)
                found.append((box, label))
    near = len(found)
    found += [(np.array(draw_box(dice, 0)), 0 if more > 100 else 3) for _ in range(more)]
    boxes = np.array([box for box, _ in found]).reshape(-1, 4)
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].clip(2)
    corners = torch.tensor(boxes, dtype=torch.float32)
    # coarse: equal scores must be ranked alike
    scores = dice.integers(1, 20, len(found)) / 20
    if more > 100:  # the right ones come last
        scores[:near] /= 20
    masks = [mask_of([x1, y1, x2 - x1, y2 - y1]) for x1, y1, x2, y2 in boxes]
    instances = dict(
        bboxes=corners,
        labels=torch.tensor([label for _, label in found], dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
        masks=torch.tensor(np.array(masks).reshape(-1, SIZE, SIZE)),
    )
    return dict(img_id=picture, ori_shape=(SIZE, SIZE), pred_instances=instances)


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
    """An annotation file, and predictions: none for two pictures, for one far more than 100."""
    dice = np.random.default_rng(3)
    path = tmp_path_factory.mktemp('coco') / 'truth.json'
    annotations = truth(dice, path, 12)
    more = {1: 260}
    samples = [
        predictions(dice, annotations if i not in (4, 5) else [], i, more.get(i, i % 3))
        for i in range(12)
        if i not in (4, 5)
    ]
    empty = [predictions(dice, [], i, 0) for i in (4, 5)]
    return str(path), samples + empty


def evaluate(kind, path, samples, evaluator, monkeypatch, **settings):
    """The metrics, and the evaluators behind them with their unrounded numbers."""
    behind = []

    class Recorded(evaluator):
        def summarize(self):
            super().summarize()
            behind.append(self)

    module = vars(coco_metric) if kind is CocoMetric else kind.compute_metrics.__globals__
    monkeypatch.setitem(module, 'COCOeval', Recorded)
    metric = kind(ann_file=path, **settings)
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, samples)
    return metric.evaluate(len(samples)), behind


@pytest.mark.parametrize(
    'settings',
    [
        dict(metric=['bbox', 'segm'], classwise=True),
        dict(metric='proposal'),
        dict(metric='bbox', proposal_nums=(1, 10, 100), iou_thrs=np.array([0.3, 0.5, 0.75])),
    ],
    ids=['boxes and masks', 'proposals', 'other limits'],
)
def test_same_numbers(scored, monkeypatch, settings):
    path, samples = scored
    ours, fast = evaluate(
        fast_coco.FastCocoMetric, path, samples, fast_coco.COCOeval, monkeypatch, **settings
    )
    theirs, slow = evaluate(
        CocoMetric, path, samples, coco_metric.COCOeval, monkeypatch, **settings
    )
    assert 'faster_coco_eval' in str(type(fast[0]).__mro__) and len(fast) == len(slow)
    assert 'faster_coco_eval' not in str(type(slow[0]).__mro__)
    np.testing.assert_equal(ours, theirs)
    for one, other in zip(fast, slow, strict=True):
        np.testing.assert_allclose(one.stats, other.stats, atol=1e-6, rtol=0)
        for name in ('precision', 'recall', 'scores'):
            np.testing.assert_allclose(one.eval[name], other.eval[name], atol=1e-6, rtol=0)
    if settings.get('classwise'):
        stats = fast[0].stats
        assert (stats[3:6] > 0).all(), 'every range of areas has objects'
        # more than 100 detections in a picture are not in the mAP
        recall = fast[0].eval['recall'][:, 0, 0]
        assert (recall[:, 0] < recall[:, -1]).any()
        assert np.isnan(ours['coco/never labelled_precision'])


def test_nothing_was_detected(scored, monkeypatch):
    path, samples = scored
    results = [
        evaluate(kind, path, samples[-2:], evaluator, monkeypatch, metric=['bbox', 'segm'])[0]
        for kind, evaluator in (
            (fast_coco.FastCocoMetric, fast_coco.COCOeval),
            (CocoMetric, coco_metric.COCOeval),
        )
    ]
    assert results[0] == results[1] == {}


def test_configs_name_it(scored):
    with DefaultScope.overwrite_default_scope('mmdet'):
        metric = METRICS.build(dict(type='mmffnet.FastCocoMetric', ann_file=scored[0]))
    assert isinstance(metric, CocoMetric)


def test_without_the_package_it_is_mmdets(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faster_coco_eval.core.faster_eval_api', None)
    monkeypatch.delitem(registry.METRICS.module_dict, 'FastCocoMetric')
    spec = spec_from_file_location('mmffnet.engine.plain_coco', fast_coco.__file__)
    plain = module_from_spec(spec)
    spec.loader.exec_module(plain)
    assert plain.COCOeval is coco_metric.COCOeval is not fast_coco.COCOeval
