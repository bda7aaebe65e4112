"""Training and validation part of one's own data, and the files that the packages read."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from mmffnet.errors import UsageError

from .formats import OwnData, Picture, index_mask, read_mask

_FRACTION = 0.2  # of the pictures, for validation


def split_pictures(data: OwnData, group_by: str | None = None) -> str:
    """Give each picture a part, 'train' or 'val' (or 'test'), and say how.

    A part that the data have is kept. Otherwise a fifth is chosen for validation by a hash of the
    names, so that it is the same in each call and for more pictures later on.

    Args:
        data (OwnData): The pictures.
        group_by (str, optional): A regular expression; pictures whose names give the same first
            group (or match) stay together. Defaults to None.

    Raises:
        UsageError: If one part would be empty.
    """
    there = Counter(picture.split for picture in data.pictures)
    if there['val'] and there['train']:
        left = there[None]
        data.pictures = [picture for picture in data.pictures if picture.split]
        text = f'the split of the data: {there["train"]} pictures to train, {there["val"]} to test'
        return text + (f'; {left} are in neither part and left out' if left else '')
    if there['test'] and there['train']:
        for picture in data.pictures:
            picture.split = 'val' if picture.split == 'test' else picture.split
        return f'{there["train"]} pictures to train; what the data call test is for validation'
    chosen: list[Picture] = []
    groups: dict[str, list[Picture]] = {}
    for picture in data.pictures:
        if picture.split in (None, 'train'):
            groups.setdefault(_group(picture, data.root, group_by), []).append(picture)
    if len(groups) < 2:
        raise UsageError(
            f'{data.root} has {len(groups)} group of pictures: there must be two at least, one to '
            'train with and one to validate with'
        )
    order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    wanted = max(_FRACTION * sum(map(len, groups.values())), 1)
    lacking = Counter(name for picture in data.pictures for name in labels_of(picture))
    taken: Counter[str] = Counter()
    # those first that bring a class which validation has not yet, and training keeps
    for pass_ in ('classes', 'number'):
        for name in order:
            if len(chosen) >= wanted or len(groups) < 2:
                break
            mine = Counter(
                label for picture in groups.get(name, ()) for label in labels_of(picture)
            )
            new = [label for label in mine if not taken[label] and lacking[label] > mine[label]]
            if name in groups and (new or pass_ == 'number'):
                chosen += groups.pop(name)
                taken += mine
    for picture in data.pictures:
        picture.split = picture.split or 'train'
    for picture in chosen:
        picture.split = 'val'
    train = sum(picture.split == 'train' for picture in data.pictures)
    how = f'in groups by {group_by!r}' if group_by else 'by their names'
    return f'{train} pictures to train and {len(chosen)} to validate, chosen {how}'


def _group(picture: Picture, root: Path, group_by: str | None) -> str:
    name = picture.path.relative_to(root).as_posix()
    if group_by is None:
        return name
    try:
        found = re.search(group_by, name)
    except re.error as error:
        raise UsageError(f'--group-by {group_by!r} is no regular expression: {error}') from error
    return (found[1] if found.re.groups else found[0]) if found else name


def labels_of(picture: Picture) -> set[str]:
    """The classes in a picture, as far as its labels say without reading a mask."""
    found = {thing['category'] for thing in picture.objects}
    return found | ({picture.label} if picture.label else set())


def write_annotations(data: OwnData, out: Path) -> dict[str, str]:
    """Write the labels of each part in the format that the packages read.

    Returns:
        dict[str, str]: The file of each part, 'train' and 'val'.
    """
    folder = out / 'annotations'
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split in ('train', 'val'):
        pictures = data.part(split)
        names = [picture.path.relative_to(data.root).as_posix() for picture in pictures]
        path = folder / f'{split}.{"txt" if data.task in ("cls", "seg") else "json"}'
        if data.task == 'cls':
            labels = [data.classes.index(str(picture.label)) for picture in pictures]
            text = ''.join(f'{n} {label}\n' for n, label in zip(names, labels, strict=True))
        elif data.task == 'seg':
            text = ''.join(f'{name}\n' for name in names)
            for name, picture in zip(names, pictures, strict=True):
                mask = folder / 'masks' / f'{name}.png'
                mask.parent.mkdir(parents=True, exist_ok=True)
                labels_ = index_mask(read_mask(picture.mask), data.values)  # type: ignore[arg-type]
                Image.fromarray(labels_).save(mask)
        else:
            text = json.dumps(_coco(data, names, pictures))
        path.write_text(text, encoding='utf-8')
        files[split] = str(path)
    return files


def _coco(data: OwnData, names: list[str], pictures: list[Picture]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, picture) in enumerate(zip(names, pictures, strict=True), 1):
        width, height = picture.size
        images.append(dict(id=number, file_name=name, width=width, height=height))
        for thing in picture.objects:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=data.classes.index(thing['category']) + 1,
                    bbox=[round(float(side), 3) for side in thing['bbox']],
                    iscrowd=int(thing.get('iscrowd') or 0),
                    **_outline(thing, width, height),
                )
            )
    categories = [dict(id=i, name=name) for i, name in enumerate(data.classes, 1)]
    return dict(images=images, annotations=annotations, categories=categories)


def _outline(thing: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    shape = thing.get('segmentation')
    if not shape:
        return dict(area=float(np.prod(thing['bbox'][2:])))
    found = shape
    if isinstance(shape, list):
        found = rle.merge(rle.frPyObjects(shape, height, width))
    elif isinstance(shape['counts'], list):
        found = rle.frPyObjects(shape, height, width)
    return dict(segmentation=shape, area=float(rle.area(found)))
