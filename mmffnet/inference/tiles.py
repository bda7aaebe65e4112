"""Large pictures in overlapping tiles, each predicted as a picture of its own, and merged.

Detections of two tiles are of one object where they agree about the strip that both tiles see:
there the one box, cut at the strip's borders, is about the other. NMS compares whole boxes, and
would keep the piece of an object that a tile cuts off beside the object.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import cv2
import numpy as np

from mmffnet.errors import UsageError

from .exported import Model
from .models import Arrays

Window = tuple[int, int, int, int]  # x1, y1, x2, y2
Part = tuple[tuple[slice, slice], np.ndarray]  # a place in a picture, and the mask there

_LEAST = 32  # pixels: the stride of the networks
_SAME = 0.5  # of two boxes, or of a piece: what they share if they are about one object
_CUT = 0.01  # of a tile: what ends so near to its border may go on behind it


@dataclass(frozen=True)
class Tiling:
    """How large pictures are cut.

    Args:
        size (int): Width and height of a tile, in pixels.
        overlap (float): Share of a tile that its neighbour sees too, at least. Defaults to 0.2.
    """

    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.size < _LEAST:
            raise UsageError(f'tiles must have at least {_LEAST} pixels, not {self.size}')
        if not 0 <= self.overlap < 1:
            raise UsageError(f'the overlap of tiles must be from 0 to below 1, not {self.overlap}')

    def windows(self, height: int, width: int) -> list[Window]:
        """The places of all tiles; one that is the whole picture if that is no larger."""
        high, wide = min(self.size, height), min(self.size, width)
        rows, columns = self._starts(height), self._starts(width)
        return [(x, y, x + wide, y + high) for y in rows for x in columns]

    def _starts(self, length: int) -> list[int]:
        step = max(round(self.size * (1 - self.overlap)), 1)
        rest = max(length - self.size, 0)
        return np.linspace(0, rest, 1 + math.ceil(rest / step)).round().astype(int).tolist()


class PlacedMasks:
    """Masks (n, H, W) of a large picture, of which only the parts with something are kept.

    They are indexed like an array, and ``np.asarray`` makes one of them.
    """

    def __init__(self, parts: list[Part], size: tuple[int, ...]) -> None:
        self.parts, self.shape = parts, (len(parts), *size)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: Any) -> Any:
        if not np.ndim(index):
            return _paste([self.parts[index]], self.shape[1:])
        chosen = np.arange(len(self))[index]
        return PlacedMasks([self.parts[i] for i in chosen], self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array([self[i] for i in range(len(self))], dtype or bool).reshape(self.shape)


def _paste(parts: Iterable[Part], size: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(size, bool)
    for place, part in parts:
        mask[place] |= part
    return mask


def _crop(mask: np.ndarray, x: int = 0, y: int = 0) -> Part:
    """The part of a mask with something in it; the mask begins at x and y of the picture."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    part = mask[top : top + height, left : left + width].copy()
    return np.s_[y + top : y + top + height, x + left : x + left + width], part


def predict_tiles(
    model: Model, pictures: Sequence[np.ndarray], tiling: Tiling, batch_size: int, score_thr: float
) -> list[dict[str, Any]]:
    """Predict for pictures, tile by tile; gives what the model's own ``predict`` gives.

    Where there are tiles, objects that are less sure are left out, and masks are
    :class:`PlacedMasks`.
    """
    plan = [(picture, tiling.windows(*picture.shape[:2])) for picture in pictures]
    tiles = [picture[y1:y2, x1:x2] for picture, places in plan for x1, y1, x2, y2 in places]
    batches = (tiles[i : i + batch_size] for i in range(0, len(tiles), batch_size))
    found = (one for batch in batches for one in model.predict(batch))
    merge = _merge_labels if model.task == 'segmentation' else _merge_detections
    return [
        next(found)
        if len(places) == 1
        else merge(zip(places, islice(found, len(places)), strict=True), picture, score_thr)
        for picture, places in plan
    ]


def _merge_labels(found: Iterable[tuple[Window, Arrays]], picture: np.ndarray, _: float) -> Arrays:
    """Each pixel from the tile that sees most around it: what two see is divided in the middle.

    To average scores, those of every class would have to be kept for the whole picture.
    """
    labels = np.zeros(picture.shape[:2], np.int64)
    right = above = bottom = 0  # where the tile on the left ends, those above, and these
    for (x1, y1, x2, y2), one in found:
        if not x1:
            right, above, bottom = 0, bottom, y2
        left, top = (right - x1) // 2, (above - y1) // 2
        labels[y1 + top : y2, x1 + left : x2] = one['labels'][top:, left:]
        right = x2
    return dict(labels=labels)


def _merge_detections(
    found: Iterable[tuple[Window, Arrays]], picture: np.ndarray, score_thr: float
) -> dict[str, Any]:
    rows: list[tuple[np.ndarray, ...]] = []
    parts: list[Part] = []
    for window, one in found:
        sure = one['scores'] >= score_thr
        boxes = one['boxes'][sure] + np.array(window[:2] * 2, np.float32)
        rows.append((boxes, one['scores'][sure], one['labels'][sure], np.full(boxes.shape, window)))
        parts += [_crop(mask, *window[:2]) for mask in one['masks'][sure]] if 'masks' in one else []
    joined = [np.concatenate(arrays) for arrays in zip(*rows, strict=True)]
    (boxes, scores, labels, _), size = joined, picture.shape[:2]
    groups = _group(joined, size)
    first = [group[0] for group in groups]
    unions = [[*boxes[group, :2].min(0), *boxes[group, 2:].max(0)] for group in groups]
    merged: dict[str, Any] = dict(boxes=np.array(unions, np.float32).reshape(-1, 4))
    merged.update(scores=scores[first], labels=labels[first])
    if 'masks' in one:
        pieces = [[parts[i] for i in group] for group in groups]
        masks = [one[0] if len(one) == 1 else _crop(_paste(one, size)) for one in pieces]
        merged.update(masks=PlacedMasks(masks, size))
    return merged


def _group(found: Sequence[np.ndarray], size: tuple[int, ...]) -> list[list[int]]:
    """The detections that make up each object, the surest first.

    One that a tile cuts off counts as half as sure, and is put together with others that are cut
    off; of those that are whole, one is enough.
    """
    boxes, scores, labels, windows = found
    near = np.abs(boxes - windows) <= _CUT * np.ptp(windows[:, ::2], 1)[:, None]
    cut = (near & (windows != [0, 0, *size[::-1]])).any(1)
    left = np.ones(len(boxes), bool)
    groups = []
    for i in np.argsort(-np.where(cut, scores / 2, scores), kind='stable').tolist():
        if not left[i]:
            continue
        left[i] = False
        groups.append([i])
        for k in groups[-1]:  # grows
            others = left & (labels == labels[k]) & (windows != windows[k]).any(1)
            same = np.flatnonzero(others & _agree(boxes, windows, cut, k))
            left[same] = False
            if cut[k]:
                groups[-1] += same[cut[same]].tolist()
    return groups


def _agree(boxes: np.ndarray, windows: np.ndarray, cut: np.ndarray, k: int) -> np.ndarray:
    """Which boxes are about box k in what its tile and theirs both see.

    Of an object that goes on behind its border a tile may see a corner that is smaller than the
    box is there: such a piece need only be inside.
    """
    low, high = np.maximum(windows, windows[k])[:, :2], np.minimum(windows, windows[k])[:, 2:]
    start, end = np.clip(boxes[:, :2], low, high), np.clip(boxes[:, 2:], low, high)
    start_k, end_k = np.clip(boxes[k, :2], low, high), np.clip(boxes[k, 2:], low, high)
    inner = np.minimum(end, end_k) - np.maximum(start, start_k)
    both, theirs, mine = (sides.clip(0).prod(1) for sides in (inner, end - start, end_k - start_k))
    piece = np.minimum(theirs, mine) if cut[k] else theirs
    return both > _SAME * np.where(cut, piece, theirs + mine - both)
