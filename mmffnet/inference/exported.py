"""Models that left PyTorch, on pictures: the files of ``tools/export.py``."""

from collections.abc import Sequence
from itertools import groupby

import cv2
import mmcv
import numpy as np

from mmffnet.deploy import runtimes
from mmffnet.errors import UsageError

from ..visualization import Legend
from .models import Arrays, OpenMMLabModel

_GROUND = (104, 116, 124)  # about the mean of photographs: what is added where pictures are small


class PredictionError(RuntimeError):
    """An exported model that fails on pictures."""


class ExportedModel:
    """An exported model; neither the config nor mmdet, mmseg or mmpretrain is needed.

    Pictures are resized as the config says, and what is found is given in their own pixels. Where
    the file takes pictures of one size only, they are made to fit into it.
    """

    def __init__(self, path: str, device: str | None = None) -> None:
        try:
            self.exported = runtimes.load_exported(path, device or 'cpu')
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise UsageError(str(error)) from error
        meta = self.exported.meta
        self.task = meta['task']
        if self.task == 'features':
            raise UsageError(f'{path} is a bare backbone: it predicts nothing')
        self.loading: dict[str, str] = {}
        self.legend = Legend(meta['classes'] or (), meta['palette'] or ())

    def predict(self, pictures: Sequence[np.ndarray]) -> list[Arrays]:
        """As :meth:`.OpenMMLabModel.predict`."""
        prepared = [self._prepare(picture) for picture in pictures]
        results: list[Arrays] = []
        number = self.exported.meta['batch']
        for _, group in groupby(prepared, lambda one: one[0].shape):
            arrays, sizes = zip(*group, strict=True)
            step = number or len(arrays)
            for start in range(0, len(arrays), step):
                part = list(arrays[start : start + step])
                filled = part + part[:1] * (step - len(part))
                try:
                    found = self.exported(np.stack(filled))
                except Exception as error:  # every runtime has its own kinds
                    reason = str(error).strip().partition('\n')[0]
                    raise PredictionError(f'the model failed: {reason}') from error
                for i in range(len(part)):
                    one = {name: value[i] for name, value in found.items()}
                    picture = pictures[len(results)]
                    results.append(self._restore(one, picture.shape, sizes[start + i]))
        return results

    def _prepare(self, picture: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """What the model gets, and how much of that is the resized picture (height, width)."""
        meta = self.exported.meta
        size = picture.shape[:2]
        for step in meta['resize']:
            picture = runtimes.resize(picture, step)
            if not step['type'].endswith('Pad'):
                size = picture.shape[:2]
        if meta['height'] and meta['width']:
            wanted = (meta['height'], meta['width'])
            if any(a > b for a, b in zip(picture.shape, wanted, strict=False)):
                before = picture.shape[0]
                picture = mmcv.imrescale(picture, wanted[::-1])
                factor = picture.shape[0] / before
                size = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
        else:
            wanted = (meta['min_size'], meta['min_size'])
        padded = mmcv.impad(picture, shape=wanted, pad_val=_GROUND)
        return padded[..., ::-1].transpose(2, 0, 1), size

    def _restore(self, found: Arrays, shape: Sequence[int], size: tuple[int, int]) -> Arrays:
        """What was found, in the pixels of the picture that was given."""
        height, width = size
        if self.task == 'segmentation':
            labels = found['labels'][:height, :width].astype(np.int32)
            full = cv2.resize(labels, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
            return dict(labels=full.astype(np.int64))
        if self.task == 'detection':
            kept = found['labels'] >= 0
            found = {name: value[kept] for name, value in found.items()}
            scale = np.array([shape[1] / width, shape[0] / height] * 2, np.float32)
            limits = np.array([shape[1], shape[0]] * 2, np.float32)
            found['boxes'] = np.clip(found['boxes'] * scale, 0, limits)
            if 'masks' in found:
                masks, boxes = found['masks'], found['boxes']
                found['masks'] = runtimes.paste_masks(masks, boxes, shape[0], shape[1])
        return found


Model = OpenMMLabModel | ExportedModel
