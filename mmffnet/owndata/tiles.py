"""Labelled pictures cut into tiles, so that small objects in large pictures keep their pixels."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from pycocotools import mask as rle

from mmffnet.inference.tiles import Tiling, Window

from .convert import as_run_lengths
from .formats import OwnData, Picture, open_image

_LEAST = 0.1  # of the box of an object: what a tile must see of it


def cut_into_tiles(data: OwnData, tiling: Tiling, folder: Path) -> OwnData:
    """Write pictures as tiles into a folder, and return these with what is labelled in each."""
    tiles = []
    for picture in data.pictures:
        tiles += _cut(picture, tiling, folder / picture.path.relative_to(data.root))
    return replace(data, root=folder, pictures=tiles)


def _cut(picture: Picture, tiling: Tiling, target: Path) -> list[Picture]:
    """The tiles of a picture, in a folder of its name; one that is no larger is copied."""
    windows = tiling.windows(*picture.size[::-1])
    if len(windows) == 1:
        target.parent.mkdir(parents=True, exist_ok=True)
        return [replace(picture, path=Path(shutil.copyfile(picture.path, target)))]
    pixels = mmcv.imread(picture.path)  # as the training reads them: turned as EXIF says
    mask = None
    if picture.mask is not None:
        with open_image(picture.mask) as image:
            mask = image.copy()
    # formats of one channel, or of few colours
    suffix = '.png' if target.suffix.lower() in ('.pgm', '.gif') else target.suffix
    tiles = []
    for window in windows:
        x1, y1, x2, y2 = window
        tile = Picture(target / f'{x1}_{y1}{suffix}', picture.split)
        mmcv.imwrite(pixels[y1:y2, x1:x2], str(tile.path))
        if mask is None:
            cropped = (_crop(thing, window, picture.size) for thing in picture.objects)
            tile.objects = [thing for thing in cropped if thing]
        else:
            tile.mask = tile.path.with_suffix('.mask.png')
            mask.crop(window).save(tile.mask)
        tiles.append(tile)
    return tiles


def _crop(thing: dict[str, Any], window: Window, size: tuple[int, int]) -> dict[str, Any] | None:
    """What a tile sees of an object; None if that is too little."""
    x, y, w, h = thing['bbox']
    start = np.maximum([x, y], window[:2])
    sides = np.minimum([x + w, y + h], window[2:]) - start
    if sides.min() < 1 or sides.prod() < _LEAST * w * h:
        return None
    box = [*(start - window[:2]).tolist(), *sides.tolist()]
    if not thing.get('segmentation'):
        return dict(thing, bbox=box)
    outline = _crop_outline(thing['segmentation'], window, size)
    if not rle.area(outline):
        return None
    outline = dict(size=outline['size'], counts=outline['counts'].decode())
    return dict(thing, bbox=rle.toBbox(outline).tolist(), segmentation=outline)


def _crop_outline(shape: Any, window: Window, size: tuple[int, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = window
    if isinstance(shape, list):
        moved = [(np.reshape(part, (-1, 2)) - [x1, y1]).ravel().tolist() for part in shape]
        return as_run_lengths(moved, x2 - x1, y2 - y1)
    whole = rle.decode(as_run_lengths(shape, *size))
    return rle.encode(np.asfortranarray(whole[y1:y2, x1:x2]))
