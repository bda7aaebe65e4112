"""What there is to know of labelled pictures before a training."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np

from mmffnet.benchmark.page import list_items, table
from mmffnet.benchmark.report import markdown
from mmffnet.errors import shorten

from .formats import UNREADABLE, OwnData, listed, open_image

_STRIDES = (4, 8, 16, 32, 64)
_SAME = 24  # bits of 528 in which copies may differ; other pictures do in 60 and more


@dataclass
class DataReport:
    """The findings."""

    fatal: list[str] = field(default_factory=list)  #: What a training cannot do without
    odd: list[str] = field(default_factory=list)  #: What should be looked at
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  #: Rows by title

    def as_text(self) -> str:
        parts = [f'{title}\n\n{markdown(rows)}' for title, rows in self.tables.items()]
        for title, texts in (('Cannot be trained', self.fatal), ('To look at', self.odd)):
            parts += ['\n- '.join([f'{title}\n', *texts]) + '\n'] if texts else []
        return '\n'.join(parts)

    def as_html(self) -> str:
        parts = [list_items('Cannot be trained', self.fatal), list_items('To look at', self.odd)]
        parts += [f'<h3>{title}</h3>{table(rows)}' for title, rows in self.tables.items()]
        return '\n'.join(parts)


def read_pictures(data: OwnData) -> dict[Path, np.ndarray]:
    """Leave out what cannot be read; of the others a small print of what they show, in -1 and 1."""
    prints = {}
    broken, deep = [], []
    for picture in data.pictures:
        try:
            with open_image(picture.path) as image:
                usual = image.format in ('BMP', 'JPEG', 'MPO', 'PNG')
                # the training reads them with OpenCV
                if image.mode == 'F' or not (usual or mmcv.imread(picture.path) is not None):
                    raise ValueError('a picture of fractions, or of an unusual compression')
                if image.mode.startswith('I'):
                    deep.append(picture.path)
                image.draft('L', (64, 64))
                small = np.asarray(image.convert('L').resize((17, 16)), np.int16)
        except (*UNREADABLE, cv2.error):
            broken.append(picture.path)
            continue
        if small.std() > 1:  # empty ones are all alike
            bits = np.concatenate([small[:, 1:] > small[:, :-1], small > small.mean()], 1)
            prints[picture.path] = np.where(bits.ravel(), 1, -1).astype(np.float32)
    gone = set(broken)
    data.pictures = [picture for picture in data.pictures if picture.path not in gone]
    data.remarks += _found(data, broken, 'pictures cannot be read and are left out')
    data.remarks += _found(data, deep, 'pictures have 16 bits, of which the upper 8 are used')
    return prints


def examine(data: OwnData, size: int, prints: dict[Path, np.ndarray]) -> DataReport:
    """Look at pictures of settled parts, as they are seen at a size; cuts boxes at the borders."""
    report = DataReport(odd=list(data.remarks))
    _examine_copies(data, prints, report)
    if data.task in ('det', 'instance') or data.has_outlines:
        _examine_boxes(data, report, size)
    _examine_sizes(data, report)
    _examine_classes(data, report)
    return report


def _found(data: OwnData, paths: Iterable[Path], text: str) -> list[str]:
    """One finding, or none, about files; one that is named twice is shown once."""
    paths = list(paths)
    names = shorten(map(data.name, dict.fromkeys(paths)), 5)
    return [f'{text} ({len(paths)}): {names}'] if paths else []


def _examine_copies(data: OwnData, prints: dict, report: DataReport) -> None:
    paths = {
        split: [p.path for p in data.part(split) if p.path in prints] for split in ('train', 'val')
    }
    if not all(paths.values()):
        return
    train = np.stack([prints[path] for path in paths['train']])
    pairs = []
    for path in paths['val']:
        agree = train @ prints[path]
        if agree.max() >= train.shape[1] - 2 * _SAME:
            pairs.append(f'{data.name(paths["train"][agree.argmax()])} = {data.name(path)}')
    if pairs:
        report.odd.append(
            f'pictures of the validation are in training as well ({len(pairs)}), so that results '
            f'look better than they are: {shorten(pairs, 5)}'
        )


def _examine_boxes(data: OwnData, report: DataReport, size: int) -> None:
    outside, tiny, whole, sides = [], [], [], []
    for picture in data.pictures:
        width, height = picture.size
        kept = []
        for thing in picture.objects:
            x, y, w, h = thing['bbox']
            x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
            if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
                outside.append(picture.path)
            if not (x2 - x1 >= 1 and y2 - y1 >= 1):  # also what is no number
                tiny.append(picture.path)
                continue
            if (x2 - x1) * (y2 - y1) > 0.95 * width * height:
                whole.append(picture.path)
            longer = min(max(width, height), data.tiles or np.inf)
            sides.append(np.sqrt((x2 - x1) * (y2 - y1)) * size / longer)
            kept.append(thing | dict(bbox=[x1, y1, x2 - x1, y2 - y1]))
        picture.objects = kept
    report.odd += _found(data, outside, 'boxes reach out of their picture and are cut')
    text = 'boxes have less than a pixel inside of their picture and are left out'
    report.odd += _found(data, tiny, text)
    report.odd += _found(data, whole, 'boxes cover their whole picture')
    empty = [picture.path for picture in data.pictures if not picture.objects]
    report.odd += _found(data, empty, 'pictures have no objects, and serve as examples of nothing')
    counts = np.histogram(sides, [0, *_STRIDES, np.inf])[0].tolist()
    bins = [f'below {_STRIDES[0]}', *(f'{a} to {b}' for a, b in itertools.pairwise(_STRIDES))]
    report.tables[f'Sizes of objects, in pixels of a picture of {size}'] = [
        dict(size=name, objects=count)
        for name, count in zip([*bins, f'{_STRIDES[-1]} and more'], counts, strict=True)
    ]
    if sum(counts[:2]) > 0.2 * len(sides):
        report.odd.append(
            f'{sum(counts[:2])} of {len(sides)} objects are smaller than {_STRIDES[1]} pixels at '
            f'a picture size of {size}: larger pictures (--size) or --tiles will find more of them'
        )


def _examine_sizes(data: OwnData, report: DataReport) -> None:
    """Labels for another size than the picture has, as where it was turned or scaled since."""
    masks, boxes = [], []
    for picture in data.pictures:
        if picture.mask:
            with open_image(picture.mask) as mask:
                if mask.size != picture.size:
                    masks.append(picture.mask)
        elif all(picture.labelled_size) and picture.labelled_size != picture.size:
            boxes.append(picture.path)
        shapes = [thing.get('segmentation') for thing in picture.objects]
        if any(isinstance(s, dict) and s['size'] != [*picture.size[::-1]] for s in shapes):
            masks.append(picture.path)
    report.fatal += _found(data, masks, 'masks have another size than their pictures')
    text = 'pictures have another size than their labels are for, which may be wrong'
    report.odd += _found(data, boxes, text)


def _examine_classes(data: OwnData, report: DataReport) -> None:
    count = set if data.task == 'seg' else list
    counts = {
        split: Counter(name for picture in data.part(split) for name in count(picture.classes))
        for split in ('train', 'val')
    }
    what = dict(seg='pictures with it', cls='pictures').get(data.task, 'objects')
    report.tables[f'Classes, {what}'] = [
        {'class': name, 'training': counts['train'][name], 'validation': counts['val'][name]}
        for name in data.classes
    ]
    for split, part in (('train', 'training'), ('val', 'validation')):
        if not counts[split]:
            report.fatal.append(f'nothing is labelled in the pictures for {part} of {data.root}')
    train, val = (set(counts[split]) for split in ('train', 'val'))
    for there, text in (
        (train - val, 'in validation, and no result therefore'),
        (val - train, 'in training, and will not be found'),
        (set(data.classes) - train - val, 'at all'),
    ):
        if names := [name for name in data.classes if name in there]:
            report.odd.append(listed(f'classes have no example {text}', names))
    spellings: dict[str, list[str]] = {}
    for name in data.classes:
        spellings.setdefault(re.sub(r'[\W_]+', '', name).casefold(), []).append(name)
    for same in spellings.values():
        if len(same) > 1:
            report.odd.append(f'the classes {", ".join(map(repr, same))} differ in spelling alone')
