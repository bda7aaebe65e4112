"""How good a trained model is on the pictures of its config, and where it errs."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from mmffnet.datasets.checks import find_missing_data
from mmffnet.engine.models import scope_of
from mmffnet.engine.runner import innermost_dataset, read_config, refusing
from mmffnet.errors import UsageError
from mmffnet.inference import Inferencer
from mmffnet.inference.models import OpenMMLabModel
from mmffnet.visualization import Legend, paint_scores

_IOU = 0.5  # where a detection counts as the object
_UNKNOWN = 0.5  # the threshold of classes for which none is better than another
_SHOWN = 6  # pictures, of the worst and of others

#: Samples of the data set with what is predicted for them, one after the other
_Pairs = Iterator[tuple[dict[str, Any], Any]]
#: From the number of a sample and its prediction to the pictures of truth and prediction
_Paint = Callable[[int, Any], tuple[np.ndarray, np.ndarray]]


@dataclass
class Example:
    """A picture with truth and prediction, painted, and how good the prediction is (0 to 1)."""

    name: str
    score: float
    truth: np.ndarray
    prediction: np.ndarray


@dataclass
class Results:
    """What a model does on its test pictures."""

    classes: list[str]
    summary: dict[str, float]  #: The numbers of the whole
    per_class: list[dict[str, Any]]  #: Of each class, with a ``threshold`` if there are scores
    #: (truth, prediction); for detectors with a last row and column for what was not there, and
    #: what was not found
    confusion: np.ndarray
    scores: Sequence[float]  #: How good the prediction is for each picture, from 0 to 1
    curves: dict[str, tuple] = field(default_factory=dict)  #: Recall, precision, scores
    examples: dict[str, list[Example]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)  #: Size and speed of the model


def evaluate(config: str, checkpoint: str, device: str | None = None) -> Results:
    """Run a model on the test pictures of its config; the device is the best there is if None."""
    cfg = read_config(config)
    settings = dict(innermost_dataset(cfg, 'test'))
    if not settings:
        raise UsageError(f'{config} has no test_dataloader with pictures to look at')
    if missing := find_missing_data(cfg, 'test'):
        raise UsageError(missing)
    settings.update(pipeline=[], lazy_init=False, test_mode=True)
    with scope_of(cfg), refusing():
        dataset = DATASETS.build(settings)
    samples = [dataset.get_data_info(i) for i in range(len(dataset))]
    if not samples:
        raise UsageError(f'the test data of {config} hold no pictures')
    inferencer = Inferencer(config, checkpoint, device)
    times = []

    def predict() -> _Pairs:  # predictions of all pictures at once would fill the memory
        for sample in samples:
            start = time.perf_counter()
            (prediction,) = inferencer(sample['img_path'])
            times.append(time.perf_counter() - start)
            yield sample, prediction

    judge = dict(detection=_detection, segmentation=_segmentation, classification=_classification)
    results, paint = judge[inferencer.task](predict(), inferencer.legend)
    for title, chosen in _choose(results.scores).items():
        results.examples[title] = []
        for k in chosen:
            path = samples[k]['img_path']
            example = Example(Path(path).name, results.scores[k], *paint(k, inferencer(path)[0]))
            results.examples[title].append(example)
    results.facts = {'test pictures': str(len(samples))}
    if isinstance(inferencer.model, OpenMMLabModel):
        parameters = list(inferencer.model.model.parameters())
        results.facts |= {
            'million parameters': f'{sum(p.numel() for p in parameters) / 1e6:.1f}',
            f'ms a picture on {parameters[0].device.type}': f'{1e3 * np.median(times):.0f}',
        }
    return results


def _ratio(part: Any, whole: Any) -> np.ndarray:
    """Part by whole; not a number where there is no whole."""
    return np.where(np.asarray(whole) > 0, part / np.maximum(whole, 1e-12), np.nan)


def _choose(scores: Sequence[float]) -> dict[str, list[int]]:
    order = np.argsort(scores, kind='stable').tolist()
    found = {'The worst pictures': order[:_SHOWN]}
    if rest := sorted(order[_SHOWN:]):
        picked = np.random.default_rng(0).permutation(rest)[:_SHOWN]
        found['Other pictures'] = sorted(picked.tolist())
    return found


def _best_f1(recall: np.ndarray, precision: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    f1 = np.nan_to_num(_ratio(2 * precision * recall, precision + recall))
    best = int(f1.argmax())
    found = {'best F1': float(f1[best])}
    return found | ({'threshold': float(scores[best])} if f1[best] else {})


# ---------------------------------------------------------------------------------- detection


def _detection(pairs: _Pairs, legend: Legend) -> tuple[Results, _Paint]:
    truth, found, kinds = _as_coco(pairs, legend)
    evals = {word: _coco_eval(truth, found, kind) for word, kind in kinds.items()}
    main = list(evals.values())[-1]
    summary = {
        f'{word} {name}': float(result.stats[i])
        for word, result in evals.items()
        for i, name in enumerate(('mAP', 'mAP at IoU 0.5', 'mAP at IoU 0.75'))
    }
    per_class, curves = [], {}
    recall = main.params.recThrs
    for i, name in enumerate(legend.classes):
        row: dict[str, Any] = {'class': name, 'objects': len(truth.getAnnIds(catIds=[i]))}
        for word, result in evals.items():
            precision = result.eval['precision'][:, :, i, 0, -1]
            there = precision[precision > -1]
            row[f'{word} AP'] = float(there.mean()) if len(there) else float('nan')
        precision = main.eval['precision'][0, :, i, 0, -1]
        if (precision > -1).any():
            curves[name] = (recall, precision, main.eval['scores'][0, :, i, 0, -1])
            row |= _best_f1(*curves[name])
        per_class.append(row)
    thresholds = [row.get('threshold', _UNKNOWN) for row in per_class]
    sure = [one for one in found if one['score'] >= thresholds[one['category_id']]]
    confusion, scores = _confuse(truth, sure, len(legend.classes))

    def paint(k: int, prediction: Any) -> tuple[np.ndarray, np.ndarray]:
        objects = truth.loadAnns(truth.getAnnIds(imgIds=[k]))
        boxes = np.array([one['bbox'] for one in objects], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([one['category_id'] for one in objects], int)
        masks = None
        if prediction.masks is not None:
            masks = np.array([truth.annToMask(one) for one in objects], bool)
        real = replace(prediction, boxes=boxes, scores=np.ones(len(boxes)), labels=labels)
        sure = prediction.above(np.array(thresholds)[prediction.labels])
        return replace(real, masks=masks).paint(), sure.paint()

    results = Results(list(legend.classes), summary, per_class, confusion, scores, curves)
    return results, paint


def _as_coco(pairs: _Pairs, legend: Legend) -> tuple[Any, list[dict], dict[str, str]]:
    """Truth and predictions in COCO's format, and by their names the kinds of results."""
    from mmdet.evaluation import CocoMetric
    from pycocotools.coco import COCO

    truths, found = [], []
    kinds = dict(box='bbox')
    for i, (sample, prediction) in enumerate(pairs):
        height, width = prediction.image.shape[:2]
        truths.append(dict(img_id=i, width=width, height=height, anns=sample['instances']))
        for one in prediction.describe()['annotations']:
            found.append(one | dict(image_id=i, category_id=one['category_id'] - 1))
        if prediction.masks is not None:
            kinds['mask'] = 'segm'
    metric = CocoMetric(metric='bbox')
    metric.dataset_meta = dict(classes=legend.classes)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        return COCO(metric.gt_to_coco_json(truths, f'{folder}/truth')), found, kinds


def _coco_eval(truth: Any, found: list[dict], kind: str) -> Any:
    from mmffnet.engine.fast_coco import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes looks at the first one
        result = COCOeval(truth, truth.loadRes(found) if found else type(truth)(), kind)
        result.evaluate()
        result.accumulate()
        result.summarize()
    return result


def _confuse(truth: Any, found: list[dict], number: int) -> tuple[np.ndarray, list[float]]:
    """The confusion matrix, and the F1 of each picture: the best overlaps are pairs."""
    from pycocotools import mask as rle

    confusion = np.zeros((number + 1, number + 1), int)
    of_picture: dict[int, list[dict]] = {i: [] for i in truth.getImgIds()}
    for one in found:
        of_picture[one['image_id']].append(one)
    scores = []
    for i, mine in of_picture.items():
        objects = truth.loadAnns(truth.getAnnIds(imgIds=[i], iscrowd=False))
        real, said = ([one['category_id'] for one in part] for part in (objects, mine))
        iou = np.zeros((len(real), len(said)))
        if iou.size:
            boxes = ([one['bbox'] for one in part] for part in (objects, mine))
            iou = np.array(rle.iou(*boxes, [0] * len(said)))
        right, total = 0, len(real) + len(said)
        while iou.size and iou.max() >= _IOU:
            j, k = np.unravel_index(iou.argmax(), iou.shape)
            label, guess = real.pop(j), said.pop(k)
            confusion[label, guess] += 1
            right += label == guess
            iou = np.delete(np.delete(iou, j, axis=0), k, axis=1)
        for label in real:
            confusion[label, -1] += 1
        for guess in said:
            confusion[-1, guess] += 1
        scores.append(2 * right / total if total else 1.0)
    return confusion, scores


# ------------------------------------------------------------------------------- segmentation


def _segmentation(pairs: _Pairs, legend: Legend) -> tuple[Results, _Paint]:
    from mmseg.registry import TRANSFORMS

    number = len(legend.classes)
    load = TRANSFORMS.build(dict(type='LoadAnnotations'))
    confusion = np.zeros((number, number), int)
    samples, scores = [], []
    for sample, prediction in pairs:
        truth = load(dict(sample))['gt_seg_map']
        if truth.shape != prediction.labels.shape:
            raise UsageError(f'{sample["seg_map_path"]} has another size than its picture')
        known = truth < number
        both = number * truth[known].astype(int) + prediction.labels[known]
        mine = np.bincount(both, minlength=number**2).reshape(number, number)
        confusion += mine
        scores.append(float(np.trace(mine) / max(mine.sum(), 1)))
        samples.append(sample)
    right, there, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    iou, accuracy = _ratio(right, there + said - right), _ratio(right, there)
    per_class = [
        {'class': name, 'IoU': float(iou[i]), 'accuracy': float(accuracy[i])}
        for i, name in enumerate(legend.classes)
    ]
    summary = {
        'mIoU': float(np.nanmean(iou)),
        'pixels right': float(right.sum() / max(confusion.sum(), 1)),
    }

    def paint(k: int, prediction: Any) -> tuple[np.ndarray, np.ndarray]:
        truth = load(dict(samples[k]))['gt_seg_map'].astype(int)
        real = replace(prediction, labels=np.where(truth < number, truth, -1))
        return real.paint_frame(), prediction.paint_frame()

    return Results(list(legend.classes), summary, per_class, confusion, scores), paint


# ----------------------------------------------------------------------------- classification


def _classification(pairs: _Pairs, legend: Legend) -> tuple[Results, _Paint]:
    classes = list(legend.classes)
    found = [(int(sample['gt_label']), prediction.scores) for sample, prediction in pairs]
    truth, probabilities = map(np.array, zip(*found, strict=True))
    guess = probabilities.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (truth, guess), 1)
    right = np.diag(confusion)
    precision, recall = _ratio(right, confusion.sum(0)), _ratio(right, confusion.sum(1))
    per_class, curves = [], {}
    for i, name in enumerate(classes):
        row: dict[str, Any] = {'class': name, 'pictures': int((truth == i).sum())}
        row |= {'precision': float(precision[i]), 'recall': float(recall[i])}
        if row['pictures']:
            order = np.argsort(-probabilities[:, i], kind='stable')
            hits = np.cumsum(truth[order] == i)
            precision_ = hits / np.arange(1, len(order) + 1)
            curves[name] = (hits / hits[-1], precision_, probabilities[order, i])
            row |= _best_f1(*curves[name])
        per_class.append(row)
    scores = probabilities[np.arange(len(truth)), truth].tolist()

    def paint(k: int, prediction: Any) -> tuple[np.ndarray, np.ndarray]:
        real = paint_scores(prediction.image, [classes[truth[k]]], [1.0])
        return real, prediction.paint()

    summary = {'accuracy': float((truth == guess).mean())}
    return Results(classes, summary, per_class, confusion, scores, curves), paint
