"""What the original model makes of pictures, and how far an exported one is from it."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import ConfigDict
from torch.nn.utils.rnn import pad_sequence

from .runtimes import paste_masks, resize

#: Largest accepted deviations, by the precision of the file. ``features`` and ``scores``: of the
#: largest number; ``labels``: share of the pixels; ``detections``: share that has no counterpart
TOLERANCES = {
    'float32': dict(features=1e-4, scores=1e-4, labels=1e-3, detections=0.01),
    'int8': dict(features=0.3, scores=0.3, labels=0.05),
}
#: How far counterparts may be from one another: scores, corners in pixels, share of mask pixels
COUNTERPART = dict(scores=1e-3, boxes=0.1, masks=0.01)


def draw_pictures(number: int, height: int, width: int) -> np.ndarray:
    """Synthetic scenes as an exported model takes them: (N, 3, H, W) float32, R, G, B, 0 to 255."""
    from ..datasets.scenes import draw_scene

    pictures = np.empty((number, 3, height, width), np.float32)
    for i, picture in enumerate(pictures):
        # the same scene over and over where the picture is longer than it is high
        scene = draw_scene(0, 0, 4 * i, min(height, width)).image.transpose(2, 0, 1)
        repeats = (-(-height // scene.shape[1]), -(-width // scene.shape[2]))
        picture[:] = np.tile(scene, (1, *repeats))[:, :height, :width]
    return pictures


def read_pictures(
    folder: str, resizing: Sequence[dict[str, Any]], size: Sequence[int] | None, most: int
) -> list[np.ndarray]:
    """Reads at most so many pictures of a folder, in equal steps.

    They are resized by the steps of a test pipeline, and then to a size (height, width), if there
    is one, and come as (3, H, W) float32, R, G, B, 0 to 255.
    """
    files = (p for p in sorted(Path(folder).rglob('*')) if p.is_file())
    paths = [str(p) for p in files if cv2.haveImageReader(str(p))]
    if not paths:
        raise ValueError(f'pictures are needed: there are none in {folder}')
    chosen = np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)
    pictures = []
    for path in (paths[i] for i in chosen):
        image = mmcv.imread(path)
        if image is None:
            raise ValueError(f'{path} cannot be read as a picture')
        for step in resizing:
            image = resize(image, step)
        if size:
            image = mmcv.imresize(image, (size[1], size[0]))
        pictures.append(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1), np.float32))
    return pictures


def in_batches(pictures: Sequence[np.ndarray], batch: int | None) -> list[np.ndarray]:
    """Each picture as (N, 3, H, W), as often as a file of a fixed batch wants."""
    return [np.repeat(picture[None], batch or 1, axis=0) for picture in pictures]


@torch.inference_mode()
def predict(model: Any, task: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """The original model's own results, in the form of :class:`~mmffnet.deploy.runtimes.Exported`.

    Everything that mmdet, mmseg and mmpretrain do themselves is theirs here. Masks are bool and
    have the size of the pictures.
    """
    if task == 'features':
        return _features(model, images)
    if task == 'segmentation':
        # also those of sliding windows take the picture as a whole, as exported ones do
        model = copy.copy(model)
        model.test_cfg = ConfigDict(model.test_cfg or {}, mode='whole')
    pictures = [torch.from_numpy(image[::-1].copy()) for image in images]  # read as B, G, R
    samples = [_sample(task, image.shape[1:]) for image in images]
    results = model.test_step(dict(inputs=pictures, data_samples=samples))
    if task == 'classification':
        return dict(scores=torch.stack([r.pred_score for r in results]).numpy())
    if task == 'segmentation':
        return dict(labels=torch.cat([r.pred_sem_seg.data for r in results]).numpy())
    found = [r.pred_instances for r in results]

    def padded(name: str, fill: float = 0) -> np.ndarray:
        values = [getattr(f, name) for f in found]
        return pad_sequence(values, batch_first=True, padding_value=fill).numpy()

    out = dict(boxes=padded('bboxes'), scores=padded('scores'), labels=padded('labels', -1))
    return dict(out, masks=padded('masks')) if 'masks' in found[0] else out


def _features(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    backbone = getattr(model, 'backbone', model)
    x = torch.from_numpy(images)
    if hasattr(model, 'data_preprocessor'):
        batch: dict[str, Any] = dict(inputs=[image.flip(0) for image in x])
        if getattr(model.data_preprocessor, 'test_cfg', None):  # mmseg's pads nothing without them
            batch['data_samples'] = [_sample('segmentation', image.shape[1:]) for image in x]
        x = model.data_preprocessor(batch, False)['inputs']
        x = torch.stack(x) if isinstance(x, list) else x
    names = (f'stage{i}' for i in backbone.out_indices)
    return {name: out.numpy() for name, out in zip(names, backbone(x), strict=True)}


def _sample(task: str, shape: Any) -> Any:
    if task == 'classification':
        from mmpretrain.structures import DataSample

        return DataSample()
    if task == 'segmentation':
        from mmseg.structures import SegDataSample

        sample: Any = SegDataSample()
    else:
        from mmdet.structures import DetDataSample

        sample = DetDataSample()
    sample.set_metainfo(dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
    return sample


def deviations(
    expected: dict[str, np.ndarray], got: dict[str, np.ndarray], task: str
) -> dict[str, float]:
    """How far an exported model's results are from those of :func:`predict`.

    By the names of :data:`TOLERANCES`, and for detections by those of :data:`COUNTERPART`, too.
    Infinite where shapes differ.
    """
    if task == 'detection':
        return _compare_detections(expected, got)
    name = {'segmentation': 'labels', 'classification': 'scores'}.get(task, 'features')
    shapes, others = ({k: v.shape for k, v in values.items()} for values in (expected, got))
    if shapes != others:
        return {name: float('inf')}
    if task == 'segmentation':
        return {name: float((expected['labels'] != got['labels']).mean())}
    return {name: float(np.max([_relative(got[k], expected[k]) for k in expected]))}


def _relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-12))


def _compare_detections(
    expected: dict[str, np.ndarray], got: dict[str, np.ndarray]
) -> dict[str, float]:
    """Pairs detections: runtimes may order those of almost equal scores otherwise."""
    worst = {name: 0.0 for name in COUNTERPART if name in expected}
    total, paired = 0, 0
    for i, labels in enumerate(expected['labels']):
        ours, theirs = ({k: v[i] for k, v in values.items()} for values in (expected, got))
        free = np.flatnonzero(theirs['labels'] >= 0).tolist()
        wanted = np.flatnonzero(labels >= 0).tolist()
        total += len(free) + len(wanted)
        for j in wanted:
            distances = {k: _distances(ours, theirs, j, k) for k in free}
            fitting = [k for k, d in distances.items() if _is_counterpart(d)]
            if fitting:
                best = min(fitting, key=lambda k: distances[k]['boxes'])
                free.remove(best)
                paired += 2
                worst = {name: max(worst[name], distances[best][name]) for name in worst}
    return dict(detections=1 - paired / total if total else 0.0, **worst)


def _is_counterpart(distances: dict[str, float]) -> bool:
    return all(distances.get(name, 0) <= limit for name, limit in COUNTERPART.items())


def _distances(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], j: int, k: int
) -> dict[str, float]:
    if ours['labels'][j] != theirs['labels'][k]:
        return dict(boxes=float('inf'))
    found = {n: float(np.abs(ours[n][j] - theirs[n][k]).max()) for n in ('scores', 'boxes')}
    if 'masks' in ours and _is_counterpart(found):
        mask, place = ours['masks'][j], slice(k, k + 1)
        (pasted,) = paste_masks(theirs['masks'][place], theirs['boxes'][place], *mask.shape)
        found['masks'] = float((mask != pasted).sum() / max(mask.sum(), 1))
    return found
