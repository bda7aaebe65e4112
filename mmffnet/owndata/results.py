"""How good a trained model is on the pictures of its config, and where it errs."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from mmffnet.engine.models import scope_of
from mmffnet.engine.runner import innermost_dataset, read_config
from mmffnet.errors import UsageError
from mmffnet.inference import Inferencer
from mmffnet.inference.models import OpenMMLabModel
from mmffnet.visualization import Legend, paint_detections, paint_labels, paint_scores

_IOU = 0.5  # where a detection counts as the object
_SHOWN = 6  # pictures, of the worst and of others


@dataclass
class Example:
    """A picture with truth and prediction, painted, and how good the prediction is (0 to 1)."""

    name: str
    score: float
    truth: np.ndarray
    prediction: np.ndarray


@dataclass
class Results:
    """What a model does on its test pictures.

    Args:
        task (str): 'detection', 'segmentation' or 'classification'.
        classes (list[str]): Names of the classes.
        summary (dict[str, float]): The numbers of the whole.
        per_class (list[dict]): The numbers of each class, with a ``threshold`` where there are
            scores.
        confusion (np.ndarray): (truth, prediction); for detectors with a last row and column for
            what was not there, and what was not found.
        curves (dict[str, tuple]): For each class recall and precision. Defaults to {}.
        worst (list[Example]): Pictures with the worst predictions. Defaults to [].
        others (list[Example]): Some pictures. Defaults to [].
        parameters (int): Of the model. Defaults to 0.
    """

    task: str
    classes: list[str]
    summary: dict[str, float]
    per_class: list[dict[str, Any]]
    confusion: np.ndarray
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    worst: list[Example] = field(default_factory=list)
    others: list[Example] = field(default_factory=list)
    parameters: int = 0


def evaluate(config: str, checkpoint: str, device: str | None = None) -> Results:
    """Run a model on the test pictures of its config.

    Args:
        config (str): The config.
        checkpoint (str): The weights.
        device (str, optional): Defaults to None, the best there is.

    Raises:
        UsageError: If the config has no such pictures.
    """
    cfg = read_config(config)
    settings = dict(innermost_dataset(cfg, 'test'))
    if not settings:
        raise UsageError(f'{config} has no test_dataloader with pictures to look at')
    settings.update(pipeline=[], lazy_init=False, test_mode=True)
    with scope_of(cfg):
        dataset = DATASETS.build(settings)
    inferencer = Inferencer(config, checkpoint, device)
    samples = [dataset.get_data_info(i) for i in range(len(dataset))]
    predictions = inferencer([sample['img_path'] for sample in samples])
    names = [Path(sample['img_path']).name for sample in samples]
    evaluate_task = dict(
        detection=_detection, segmentation=_segmentation, classification=_classification
    )[inferencer.task]
    results = evaluate_task(names, samples, predictions, inferencer.legend)
    if isinstance(inferencer.model, OpenMMLabModel):
        network = inferencer.model.model
        results.parameters = sum(parameter.numel() for parameter in network.parameters())
    return results


def _ratio(part: Any, whole: Any) -> np.ndarray:
    """Part by whole; not a number where there is no whole."""
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.where(np.asarray(whole) > 0, part / np.maximum(whole, 1e-12), np.nan)


def _choose(scores: Sequence[float]) -> tuple[list[int], list[int]]:
    """The worst ones, and some of the others."""
    order = np.argsort(scores, kind='stable').tolist()
    worst, rest = order[:_SHOWN], sorted(order[_SHOWN:])
    picked = np.random.default_rng(0).permutation(len(rest))[:_SHOWN]
    return worst, [rest[i] for i in sorted(picked)]


# ------------------------------------------------------------------------------ detection


def _detection(names: list[str], samples: list[dict], predictions: list, legend: Legend) -> Results:
    classes = list(legend.classes)
    masks = predictions and predictions[0].masks is not None
    truth, found = _as_coco(samples, predictions, len(classes))
    kinds = ['bbox', 'segm'] if masks else ['bbox']
    evals = {kind: _coco_eval(truth, found, kind) for kind in kinds}
    main = evals[kinds[-1]]
    summary = {}
    for kind, result in evals.items():
        for name, i in (('mAP', 0), ('mAP at IoU 0.5', 1), ('mAP at IoU 0.75', 2)):
            summary[f'{"mask" if kind == "segm" else "box"} {name}'] = float(result.stats[i])
    per_class, curves = [], {}
    recall = main.params.recThrs
    for i, name in enumerate(classes):
        row: dict[str, Any] = {'class': name}
        for kind, result in evals.items():
            precision = result.eval['precision'][:, :, i, 0, -1]
            there = precision[precision > -1]
            word = 'mask AP' if kind == 'segm' else 'box AP'
            row[word] = float(there.mean()) if len(there) else float('nan')
        precision = main.eval['precision'][0, :, i, 0, -1]
        if (precision > -1).any():
            curves[name] = (recall, precision)
            f1 = _ratio(2 * precision * recall, precision + recall)
            best = int(np.nanargmax(np.nan_to_num(f1)))
            row['best F1'] = float(np.nan_to_num(f1)[best])
            row['threshold'] = float(main.eval['scores'][0, best, i, 0, -1])
        per_class.append(row)
    thresholds = np.array([row.get('threshold', 1.1) for row in per_class])
    confusion = np.zeros((len(classes) + 1, len(classes) + 1), int)
    scores = []
    sure = [_above(prediction, thresholds) for prediction in predictions]
    for sample, (boxes, labels, *_) in zip(samples, sure, strict=True):
        objects = [o for o in sample['instances'] if not o.get('ignore_flag')]
        pairs = _match(np.array([o['bbox'] for o in objects]).reshape(-1, 4), boxes)
        right = 0
        for i, j in pairs:
            label = int(objects[i]['bbox_label'])
            confusion[label, labels[j]] += 1
            right += label == labels[j]
        for i in set(range(len(objects))) - {i for i, _ in pairs}:
            confusion[int(objects[i]['bbox_label']), -1] += 1
        for j in set(range(len(boxes))) - {j for _, j in pairs}:
            confusion[-1, labels[j]] += 1
        total = len(objects) + len(boxes)
        scores.append(2 * right / total if total else 1.0)

    def example(k: int) -> Example:
        image = predictions[k].image
        objects = samples[k]['instances']
        boxes = np.array([o['bbox'] for o in objects], np.float32).reshape(-1, 4)
        labels = np.array([o['bbox_label'] for o in objects], int)
        outlines = _masks(samples[k], image.shape[:2]) if masks else None
        real = paint_detections(image, boxes, np.ones(len(boxes)), labels, outlines, legend)
        boxes, labels, confidences, outlines = sure[k]
        guess = paint_detections(image, boxes, confidences, labels, outlines, legend)
        return Example(names[k], scores[k], real, guess)

    worst, others = (list(map(example, chosen)) for chosen in _choose(scores))
    return Results('detection', classes, summary, per_class, confusion, curves, worst, others)


def _above(prediction: Any, thresholds: np.ndarray) -> tuple:
    kept = prediction.scores >= thresholds[prediction.labels]
    masks = None if prediction.masks is None else prediction.masks[kept]
    return prediction.boxes[kept], prediction.labels[kept], prediction.scores[kept], masks


def _match(truth: np.ndarray, boxes: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of objects and detections, the best overlaps first."""
    if not len(truth) or not len(boxes):
        return []
    corner = np.maximum(truth[:, None, :2], boxes[None, :, :2])
    inner = np.minimum(truth[:, None, 2:], boxes[None, :, 2:]) - corner
    both = inner.clip(0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (truth, boxes)]
    iou = both / (areas[0][:, None] + areas[1] - both)
    pairs = []
    while iou.max() >= _IOU:
        i, j = np.unravel_index(iou.argmax(), iou.shape)
        pairs.append((int(i), int(j)))
        iou[i] = iou[:, j] = 0
    return pairs


def _masks(sample: dict, size: tuple[int, int]) -> np.ndarray:
    from mmdet.structures.mask import PolygonMasks
    from pycocotools import mask as rle

    masks = []
    for thing in sample['instances']:
        outline = thing['mask']
        if isinstance(outline, dict):
            if isinstance(outline['counts'], list):
                outline = rle.frPyObjects(outline, *size)
            masks.append(rle.decode(outline).astype(bool))
        else:
            polygons = [[np.array(part) for part in outline]]
            masks.append(PolygonMasks(polygons, *size).to_ndarray()[0].astype(bool))
    return np.array(masks).reshape(-1, *size)


def _as_coco(samples: list[dict], predictions: list, number: int) -> tuple[Any, list[dict]]:
    from pycocotools.coco import COCO

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for i, (sample, prediction) in enumerate(zip(samples, predictions, strict=True), 1):
        height, width = prediction.image.shape[:2]
        images.append(dict(id=i, height=height, width=width))
        for thing in sample['instances']:
            x1, y1, x2, y2 = thing['bbox']
            annotation = dict(
                id=len(annotations) + 1,
                image_id=i,
                category_id=int(thing['bbox_label']) + 1,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=(x2 - x1) * (y2 - y1),
                iscrowd=int(thing.get('ignore_flag', 0)),
            )
            if 'mask' in thing:
                annotation['segmentation'] = thing['mask']
            annotations.append(annotation)
        found += [dict(one, image_id=i) for one in prediction.describe()['annotations']]
    coco = COCO()
    categories = [dict(id=i + 1, name=str(i)) for i in range(number)]
    coco.dataset = dict(images=images, annotations=annotations, categories=categories)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco, found


def _coco_eval(truth: Any, found: list[dict], kind: str) -> Any:
    from mmffnet.engine.fast_coco import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        one = [{k: v for k, v in d.items() if k != 'segmentation'} for d in found]
        ours = truth.loadRes((one if kind == 'bbox' else found) or np.zeros((0, 7)))
        result = COCOeval(truth, ours, kind)
        result.evaluate()
        result.accumulate()
        result.summarize()
    return result


# --------------------------------------------------------------------------- segmentation


def _segmentation(
    names: list[str], samples: list[dict], predictions: list, legend: Legend
) -> Results:
    from mmseg.registry import TRANSFORMS

    number = len(legend.classes)
    load = TRANSFORMS.build(dict(type='LoadAnnotations'))
    confusion = np.zeros((number, number), int)
    truths, scores = [], []
    for sample, prediction in zip(samples, predictions, strict=True):
        truth = load(dict(sample))['gt_seg_map']
        known = truth < number
        pairs = number * truth[known].astype(int) + prediction.labels[known]
        mine = np.bincount(pairs, minlength=number**2).reshape(number, number)
        confusion += mine
        scores.append(float(np.trace(mine) / max(mine.sum(), 1)))
        truths.append(np.where(known, truth.astype(int), -1))
    right = np.diag(confusion)
    there, said = confusion.sum(1), confusion.sum(0)
    iou, accuracy = _ratio(right, there + said - right), _ratio(right, there)
    per_class = [
        {'class': name, 'IoU': float(iou[i]), 'accuracy': float(accuracy[i])}
        for i, name in enumerate(legend.classes)
    ]
    summary = {
        'mIoU': float(np.nanmean(iou)),
        'pixels right': float(right.sum() / max(confusion.sum(), 1)),
    }

    def example(k: int) -> Example:
        image = predictions[k].image
        real = paint_labels(image, truths[k], legend)
        return Example(
            names[k], scores[k], real, paint_labels(image, predictions[k].labels, legend)
        )

    worst, others = (list(map(example, chosen)) for chosen in _choose(scores))
    return Results(
        'segmentation', list(legend.classes), summary, per_class, confusion, {}, worst, others
    )


# ------------------------------------------------------------------------- classification


def _classification(
    names: list[str], samples: list[dict], predictions: list, legend: Legend
) -> Results:
    classes = list(legend.classes)
    truth = np.array([int(sample['gt_label']) for sample in samples])
    probabilities = np.array([prediction.scores for prediction in predictions])
    guess = probabilities.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (truth, guess), 1)
    right = np.diag(confusion)
    precision, recall = _ratio(right, confusion.sum(0)), _ratio(right, confusion.sum(1))
    per_class, curves = [], {}
    for i, name in enumerate(classes):
        row: dict[str, Any] = {
            'class': name,
            'precision': float(precision[i]),
            'recall': float(recall[i]),
        }
        if (truth == i).any():
            order = np.argsort(-probabilities[:, i], kind='stable')
            hits = np.cumsum(truth[order] == i)
            p, r = hits / np.arange(1, len(order) + 1), hits / hits[-1]
            f1 = _ratio(2 * p * r, p + r)
            best = int(np.nanargmax(np.nan_to_num(f1)))
            row['best F1'] = float(f1[best])
            row['threshold'] = float(probabilities[order[best], i])
            curves[name] = (r, p)
        per_class.append(row)
    summary = {'accuracy': float((truth == guess).mean())}
    scores = probabilities[np.arange(len(truth)), truth].tolist()

    def example(k: int) -> Example:
        image = predictions[k].image
        top = predictions[k].top()
        painted = paint_scores(image, [classes[i] for i, _ in top], [s for _, s in top])
        truth_ = paint_scores(image, [classes[truth[k]]], [1.0])
        return Example(names[k], scores[k], truth_, painted)

    worst, others = (list(map(example, chosen)) for chosen in _choose(scores))
    return Results('classification', classes, summary, per_class, confusion, curves, worst, others)
