"""What there is to know of labelled pictures before a training."""

import html
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .convert import labels_of
from .formats import OwnData, Picture, mask_values, read_mask

_STRIDES = (4, 8, 16, 32, 64)
_SHOWN = 5  # files that a finding names


@dataclass
class DataReport:
    """The findings.

    Args:
        fatal (list[str]): What a training cannot do without.
        odd (list[str]): What should be looked at.
        tables (dict): By title the rows of a table, its head first.
    """

    fatal: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    tables: dict[str, list[Sequence[Any]]] = field(default_factory=dict)

    def as_text(self) -> str:
        lines = []
        for title, rows in self.tables.items():
            cells = [[str(cell) for cell in row] for row in rows]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            lines += ['', title]
            for row in cells:
                first, *rest = (
                    c.ljust(w) if i == 0 else c.rjust(w)
                    for i, (c, w) in enumerate(zip(row, widths, strict=True))
                )
                lines.append('  ' + '  '.join([first, *rest]))
        for title, found in (('Cannot be trained', self.fatal), ('To look at', self.odd)):
            if found:
                lines += ['', title, *(f'- {text}' for text in found)]
        return '\n'.join(lines[1:])

    def as_html(self) -> str:
        parts = []
        for title, found in (('Cannot be trained', self.fatal), ('To look at', self.odd)):
            if found:
                items = ''.join(f'<li>{html.escape(text)}</li>' for text in found)
                parts.append(f'<h3>{title}</h3><ul>{items}</ul>')
        for title, rows in self.tables.items():
            parts.append(f'<h3>{html.escape(title)}</h3>{html_table(rows)}')
        return '\n'.join(parts)


def html_table(rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table; the first row is its head."""
    lines = []
    for number, row in enumerate(rows):
        tag = 'th' if number == 0 else 'td'
        cells = ''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in row)
        lines.append(f'<tr>{cells}</tr>')
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def examine(data: OwnData, size: int, prints: dict[bytes, list[Picture]]) -> DataReport:
    """Look at labelled pictures, whose parts are settled.

    Args:
        data (OwnData): The data. Boxes are cut at the pictures' borders.
        size (int): The longer side of pictures in training.
        prints (dict): From :func:`read_pictures`.
    """
    report = DataReport(odd=list(data.remarks))
    _examine_copies(data, prints, report)
    if data.task in ('det', 'instance'):
        _examine_boxes(data, report, size)
    if data.task == 'seg':
        _examine_masks(data, report)
    _examine_classes(data, report)
    if not data.part('train') or not data.part('val'):
        report.fatal.append('no pictures are left for training or for validation')
    return report


def _shorten(paths: Iterable[Path], data: OwnData) -> str:
    names = [path.relative_to(data.root).as_posix() for path in paths]
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more


def read_pictures(data: OwnData) -> dict[bytes, list[Picture]]:
    """Read each picture once, and leave out what cannot be read.

    Returns:
        dict[bytes, list[Picture]]: The pictures by a small print of what they show.
    """
    prints: dict[bytes, list[Picture]] = {}
    broken = []
    for picture in list(data.pictures):
        try:
            with Image.open(picture.path) as image:
                image.draft('L', (64, 64))
                small = np.asarray(image.convert('L').resize((17, 16)), np.int16)
            picture.size  # noqa: B018 - read now, when an error can be said
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            broken.append(picture.path)
            data.pictures.remove(picture)
            continue
        print_ = (
            np.packbits(small[:, 1:] > small[:, :-1]).tobytes()
            + np.packbits(small > small.mean()).tobytes()
        )
        if small.std() > 1:  # empty ones are all alike
            prints.setdefault(print_, []).append(picture)
    if broken:
        data.remarks.append(
            f'{len(broken)} pictures cannot be read and are left out: {_shorten(broken, data)}'
        )
    return prints


def _examine_copies(data: OwnData, prints: dict[bytes, list[Picture]], report: DataReport) -> None:
    copies = [same for same in prints.values() if len({picture.split for picture in same}) > 1]
    if copies:
        pairs = [f'{_shorten([p.path for p in same], data)}' for same in copies[:_SHOWN]]
        report.odd.append(
            f'{len(copies)} pictures are in training and validation as well, so that results look '
            f'better than they are: {"; ".join(pairs)}'
        )


def _examine_boxes(data: OwnData, report: DataReport, size: int) -> None:
    outside, tiny, whole = [], [], []
    sides = []
    for picture in data.pictures:
        width, height = picture.size
        kept = []
        for thing in picture.objects:
            x, y, w, h = thing['bbox']
            x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
            if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
                outside.append(picture.path)
            if x2 - x1 < 1 or y2 - y1 < 1:
                tiny.append(picture.path)
                continue
            if (x2 - x1) * (y2 - y1) > 0.95 * width * height:
                whole.append(picture.path)
            thing['bbox'] = [x1, y1, x2 - x1, y2 - y1]
            longer = min(max(width, height), data.tiles or np.inf)
            sides.append(np.sqrt((x2 - x1) * (y2 - y1)) * size / longer)
            kept.append(thing)
        picture.objects = kept
    for found, text in (
        (outside, 'boxes reach out of their picture and are cut'),
        (tiny, 'boxes have less than a pixel inside of their picture and are left out'),
        (whole, 'boxes cover their whole picture'),
    ):
        if found:
            names = _shorten(dict.fromkeys(found), data)
            report.odd.append(f'{len(found)} {text}: {names}')
    empty = [picture.path for picture in data.pictures if not picture.objects]
    if empty:
        report.odd.append(
            f'{len(empty)} pictures have no objects, and serve as examples of nothing: '
            f'{_shorten(empty, data)}'
        )
    edges = [0, *_STRIDES, np.inf]
    counts = np.histogram(sides, edges)[0]
    bins = [f'below {_STRIDES[0]}', *(f'{a} to {b}' for a, b in itertools.pairwise(_STRIDES))]
    report.tables[f'Sizes of objects, in pixels of a picture of {size}'] = [
        ('size', 'objects'),
        *zip([*bins, f'{_STRIDES[-1]} and more'], counts.tolist(), strict=True),
    ]
    if len(sides) and counts[:2].sum() > 0.2 * len(sides):
        report.odd.append(
            f'{counts[:2].sum()} of {len(sides)} objects are smaller than {_STRIDES[1]} pixels at '
            f'a picture size of {size}: larger pictures (--size) or --tiles will find more of them'
        )


def _examine_masks(data: OwnData, report: DataReport) -> None:
    for picture in list(data.pictures):
        assert picture.mask is not None
        mask = read_mask(picture.mask)
        if mask.shape[1::-1] != picture.size:
            report.fatal.append(
                f'{_shorten([picture.mask], data)} has {mask.shape[1]} x {mask.shape[0]} pixels, '
                f'its picture {picture.size[0]} x {picture.size[1]}'
            )
        labels = {data.values[value] for value in mask_values(mask) if value in data.values}
        picture.objects = [dict(category=data.classes[label]) for label in labels]


def _examine_classes(data: OwnData, report: DataReport) -> None:
    counts: dict[str, Counter[str]] = {split: Counter() for split in ('train', 'val')}
    for picture in data.pictures:
        if picture.split in counts:
            names = [thing['category'] for thing in picture.objects] or sorted(labels_of(picture))
            counts[picture.split].update(names)
    what = dict(seg='pictures with it', cls='pictures').get(data.task, 'objects')
    report.tables[f'Classes, {what}'] = [
        ('class', 'training', 'validation'),
        *((name, counts['train'][name], counts['val'][name]) for name in data.classes),
    ]
    if not sum(counts['train'].values()):
        report.fatal.append('nothing is labelled in the pictures for training')
    elif not sum(counts['val'].values()):
        report.fatal.append('nothing is labelled in the pictures for validation')
    for split, other, text in (
        ('val', 'train', 'no example in validation, and no result therefore'),
        ('train', 'val', 'no example in training, and will not be found'),
    ):
        names = [n for n in data.classes if not counts[split][n] and counts[other][n]]
        if names:
            report.odd.append(f'{len(names)} classes have {text}: {", ".join(names[:_SHOWN])}')
    spellings: dict[str, list[str]] = {}
    for name in data.classes:
        spellings.setdefault(re.sub(r'[\W_]+', '', name).casefold(), []).append(name)
    for same in spellings.values():
        if len(same) > 1:
            report.odd.append(f'the classes {", ".join(map(repr, same))} differ in spelling alone')
