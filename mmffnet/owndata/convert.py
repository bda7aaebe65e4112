"""Training and validation part of one's own data, and the files that the packages read."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from pycocotools import mask as rle

from mmffnet.errors import UsageError

from .formats import OwnData, Picture, index_mask, read_mask

_FRACTION = 0.2  # of the pictures, for validation


def split_pictures(data: OwnData, group_by: str | None = None) -> str:
    """Give each picture a part, 'train' or 'val' (or 'test'), and say how.

    A part that the data have is kept. Otherwise a fifth is chosen for validation by a hash of the
    names, so that it is the same in each call and for more pictures later on; pictures in whose
    names ``group_by``, a regular expression, matches the same (first group) stay together.
    """
    if not data.pictures:
        raise UsageError(f'{data.root}: {data.remarks[-1]}')
    if data.part('val') and not data.part('train'):
        for picture in data.pictures:
            picture.split = picture.split or 'train'
    there = Counter(picture.split for picture in data.pictures)
    if there['train'] and (there['val'] or there['test']):
        text = f'the split of the data: {there["train"]} pictures to train, '
        text += f'{there["val"] or there["test"]} to validate'
        if not there['val']:
            text += ', which they call test'
            for picture in data.part('test'):
                picture.split = 'val'
        data.pictures = [picture for picture in data.pictures if picture.split]
        left = there[None]
        return text + (f'; {left} are in no part and left out' if left else '')
    groups: dict[str, list[Picture]] = {}
    for picture in data.pictures:
        if picture.split in (None, 'train'):
            groups.setdefault(_group(data.name(picture.path), group_by), []).append(picture)
    if len(groups) < 2:
        raise UsageError(
            f'{data.root} has {len(groups)} group of pictures: there must be two at least, one to '
            'train with and one to validate with'
        )
    chosen = _choose(list(groups.items()))
    for picture in data.pictures:
        picture.split = picture.split or 'train'
    for picture in chosen:
        picture.split = 'val'
    how = f'in groups by {group_by!r}' if group_by else 'by their names'
    train = len(data.part('train'))
    return f'{train} pictures to train and {len(chosen)} to validate, chosen {how}'


def _choose(groups: list[tuple[str, list[Picture]]]) -> list[Picture]:
    """Groups for validation: first those with a class that it has not yet, and training keeps."""
    groups = sorted(groups, key=lambda group: hashlib.sha256(group[0].encode()).digest())
    counts = [Counter(c for picture in group for c in set(picture.classes)) for _, group in groups]
    total: Counter[str] = sum(counts, Counter())
    wanted = max(_FRACTION * sum(len(group) for _, group in groups), 1)
    chosen: dict[int, list[Picture]] = {}
    taken: Counter[str] = Counter()
    for only_new in (True, False):
        for i, (_, group) in enumerate(groups):
            new = any(not taken[c] and total[c] > count for c, count in counts[i].items())
            if sum(map(len, chosen.values())) >= wanted or len(chosen) == len(groups) - 1:
                break
            if i not in chosen and (new or not only_new):
                chosen[i] = group
                taken += counts[i]
    return [picture for group in chosen.values() for picture in group]


def _group(name: str, group_by: str | None) -> str:
    try:
        found = re.search(group_by, name) if group_by is not None else None
    except re.error as error:
        raise UsageError(f'--group-by {group_by!r} is no regular expression: {error}') from error
    return (found[1] if found.re.groups else found[0]) or '' if found else name


def write_annotations(data: OwnData, out: Path) -> dict[str, str]:
    """Write the labels in the format that the packages read: a file for 'train', one for 'val'."""
    folder = out / 'annotations'
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split in ('train', 'val'):
        pictures = {data.name(picture.path): picture for picture in data.part(split)}
        if data.task == 'cls':
            lines = [f'{n} {data.classes.index(str(p.label))}\n' for n, p in pictures.items()]
        elif data.task == 'seg':
            lines = [f'{name}\n' for name in pictures]
            for name, picture in pictures.items():
                labels = index_mask(read_mask(picture.mask), data.values)  # type: ignore[arg-type]
                mmcv.imwrite(labels, str(folder / 'masks' / f'{name}.png'))
        else:
            lines = [json.dumps(_coco(data.classes, pictures))]
        path = folder / f'{split}.{"txt" if data.task in ("cls", "seg") else "json"}'
        path.write_text(''.join(lines), encoding='utf-8')
        files[split] = str(path)
    return files


def paint_outlines(data: OwnData, folder: Path) -> None:
    """Make masks of outlines, of which the first class is the background.

    Where objects lie on each other, the small ones are seen.
    """
    data.classes = list(dict.fromkeys(['background', *data.classes]))
    data.values = {i: i for i in range(len(data.classes))}
    for picture in data.pictures:
        width, height = picture.size
        labels = np.zeros((height, width), np.uint8)
        shapes = [as_run_lengths(one['segmentation'], width, height) for one in picture.objects]
        for i in np.argsort([-float(rle.area(shape)) for shape in shapes], kind='stable'):
            labels[rle.decode(shapes[i]) > 0] = data.classes.index(picture.objects[i]['category'])
        picture.mask = folder / f'{data.name(picture.path)}.png'
        mmcv.imwrite(labels, str(picture.mask))


def _coco(classes: list[str], pictures: dict[str, Picture]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, picture) in enumerate(pictures.items(), 1):
        width, height = picture.size
        images.append(dict(id=number, file_name=name, width=width, height=height))
        for thing in picture.objects:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=classes.index(thing['category']) + 1,
                    bbox=[round(side, 3) for side in thing['bbox']],
                    iscrowd=thing['iscrowd'],
                    **_outline(thing, width, height),
                )
            )
    categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
    return dict(images=images, annotations=annotations, categories=categories)


def _outline(thing: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    shape = thing.get('segmentation')
    if not shape:
        return dict(area=float(np.prod(thing['bbox'][2:])))
    return dict(segmentation=shape, area=float(rle.area(as_run_lengths(shape, width, height))))


def as_run_lengths(shape: Any, width: int, height: int) -> dict[str, Any]:
    """A ``segmentation`` of COCO's format, polygons or run lengths, as pycocotools packs them."""
    if isinstance(shape, list):
        return rle.merge(rle.frPyObjects(shape, height, width))
    return rle.frPyObjects(shape, height, width) if isinstance(shape['counts'], list) else shape
