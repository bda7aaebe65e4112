"""Predictions painted on pictures, readable on small and on large ones.

Pictures are arrays (H, W, 3) of uint8 in the order R, G, B.
"""

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

_SMALL = 900  # pixels: where the longer side has fewer, pictures are enlarged
_INK = (34, 34, 34)
_BAR = (60, 120, 200)
_NOT_LABELLED = (255, 255, 255)


@dataclass(frozen=True)
class Legend:
    """Names and colours of classes."""

    classes: Sequence[str]
    palette: Sequence[Sequence[int]] = ()  #: (R, G, B) for each; without them colours that differ

    def name(self, label: int) -> str:
        return str(self.classes[label]) if label < len(self.classes) else f'class {label}'

    def colour(self, label: int) -> Colour:
        if label < len(self.palette):
            red, green, blue = self.palette[label]
            return int(red), int(green), int(blue)
        # steps of the golden ratio never come close to where they have been
        hue = (label * 0.618034 + 0.02) % 1
        r, g, b = colorsys.hsv_to_rgb(hue, 0.75, 0.9 if label % 2 else 0.75)
        return round(r * 255), round(g * 255), round(b * 255)


def enlarge(image: np.ndarray) -> tuple[np.ndarray, int]:
    """Enlarges a small picture, so that lines and names on it are thin; returns the factor too."""
    factor = -(-_SMALL // max(image.shape[:2]))
    if factor == 1:
        return image.copy(), 1
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), factor


def paint_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    masks: Any,
    legend: Legend,
) -> np.ndarray:
    """Paints masks, boxes and names of objects on a new picture; small ones are enlarged.

    Boxes, scores, labels and masks, if any, are those of :class:`mmffnet.inference.Detections`.
    """
    painted, factor = enlarge(image)
    width = max(2, round(max(painted.shape[:2]) / 450))
    order = np.argsort(scores, kind='stable')  # the surest on top
    for i in order if masks is not None else ():
        _fill(painted, masks[i], factor, legend.colour(labels[i]), width)
    for i in order:
        # thin where there is an outline already
        corners = [round(float(c) * factor) for c in boxes[i]]
        thickness = width if masks is None else max(1, width // 2)
        for shade, thick in _strokes(legend.colour(labels[i]), thickness):
            cv2.rectangle(painted, corners[:2], corners[2:], shade, thick, cv2.LINE_AA)
    texts = [
        (
            f'{legend.name(labels[i])} {scores[i]:.2f}',
            tuple(boxes[i] * factor),
            legend.colour(labels[i]),
        )
        for i in order[::-1]
    ]
    return _write_names(painted, texts, width)


def _fill(painted: np.ndarray, mask: np.ndarray, factor: int, colour: Colour, width: int) -> None:
    """Tints the inside of a mask and draws its outline."""
    inside = np.asarray(mask, np.uint8)
    x, y, w, h = cv2.boundingRect(inside)
    if not w:
        return
    inside = inside[y : y + h, x : x + w]
    x, y, w, h = x * factor, y * factor, w * factor, h * factor
    if factor > 1:  # round what would be stairs
        large = cv2.resize(inside * 255, (w, h), interpolation=cv2.INTER_LINEAR)
        inside = (large > 127).astype(np.uint8)
    place = painted[y : y + h, x : x + w]
    chosen = inside.astype(bool)
    place[chosen] = (0.55 * place[chosen] + 0.45 * np.array(colour)).astype(np.uint8)
    outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for shade, thickness in _strokes(colour, width):
        cv2.drawContours(painted, outlines, -1, shade, thickness, cv2.LINE_AA, offset=(x, y))


def _strokes(colour: Colour, width: int) -> tuple[tuple[Colour, int], tuple[Colour, int]]:
    """A line with a dark rim, which is seen on any ground."""
    red, green, blue = (part // 3 for part in colour)
    return ((red, green, blue), width + 2 * max(1, width // 3)), (colour, width)


def _write_names(
    image: np.ndarray, texts: Sequence[tuple[str, Box, Colour]], width: int
) -> np.ndarray:
    """Writes a name at each box where it covers no other, the first ones at their best places."""
    if not texts:
        return image
    drawing = Image.fromarray(image)
    draw = ImageDraw.Draw(drawing)
    # smaller ones where there are many
    size = _font_size(image.shape) * float(np.clip(1.1 - len(texts) / 50, 0.6, 1))
    font = _font(round(size))
    pad = max(2, round(size / 5))
    taken: list[Box] = []
    for text, box, _ in texts:
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font, anchor='lt')
        plate = (right - left + 2 * pad, bottom - top + 2 * pad)
        taken.append(_find_place(box, *plate, image.shape, taken, width))
    for (text, _, colour), place in reversed(list(zip(texts, taken, strict=True))):
        draw.rectangle(place, fill=colour)
        start = (place[0] + pad, place[1] + pad)
        draw.text(start, text, fill=_readable_on(colour), font=font, anchor='lt')
    return np.asarray(drawing)


def _find_place(
    box: Box, width: float, height: float, shape: Sequence[int], taken: Sequence[Box], line: int
) -> Box:
    """Above the box, inside of it or below; never outside of the picture."""
    x1, y1, x2, y2 = box
    half = line // 2
    corners = [
        (x1 - half, y1 - height),
        (x1, y1),
        (x2 - width, y1 - height),
        (x1 - half, y2),
        (x2 - width, y1),
        (x1, y2 - height),
    ]
    found: list[tuple[float, Box]] = []
    for number, (x, y) in enumerate(corners):
        left = float(np.clip(x, 0, max(0, shape[1] - width)))
        top = float(np.clip(y, 0, max(0, shape[0] - height)))
        place = (left, top, left + width, top + height)
        moved = abs(left - x) + abs(top - y)
        cost = sum(_overlap(place, other) for other in taken) + moved * height + number
        found.append((cost, place))
    return min(found)[1]


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def paint_labels(image: np.ndarray, labels: np.ndarray, legend: Legend) -> np.ndarray:
    """Tints a picture by a label map and writes the names of what covers a good part of it.

    It is grey and faint under the colours, with thin dark lines between them, and enlarged if it is
    small.
    """
    number = int(labels.max(initial=0)) + 1
    table = np.array([*map(legend.colour, range(number)), _NOT_LABELLED])
    painted, _ = enlarge(image)
    labels = np.where(labels < 0, number, labels).astype(np.int32)
    labels = cv2.resize(labels, painted.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    # a picture's own colours would change those of the classes
    painted = 0.3 * painted.mean(axis=2, keepdims=True) + 0.7 * table[labels]
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    painted[edge] *= 0.4
    drawing = Image.fromarray(painted.astype(np.uint8))
    draw = ImageDraw.Draw(drawing)
    font = _font(round(_font_size(painted.shape)))
    for x, y, label in find_places(labels, number):
        place = draw.textbbox((x, y), legend.name(label), font=font, anchor='mm')
        draw.rectangle([place[0] - 3, place[1] - 3, place[2] + 3, place[3] + 3], fill='white')
        draw.text((x, y), legend.name(label), fill=_INK, font=font, anchor='mm')
    return np.asarray(drawing)


def find_places(labels: np.ndarray, number: int) -> Iterator[tuple[float, float, int]]:
    """Where names fit: the innermost point (x, y) of each class that covers a good part."""
    areas = np.bincount(labels.ravel(), minlength=number)[:number]
    for label in np.flatnonzero(areas >= 0.015 * labels.size):
        inside = np.pad(labels == label, 1).astype(np.uint8)
        y, x = divmod(int(cv2.distanceTransform(inside, cv2.DIST_L2, 3).argmax()), inside.shape[1])
        yield x - 0.5, y - 0.5, int(label)


def paint_maps(image: np.ndarray, maps: dict[str, np.ndarray], legend: Legend) -> np.ndarray:
    """Paints a picture and label maps side by side, above the names of the classes in them.

    The maps are called by their titles; what is below 0 in them is not labelled.
    """
    panels = {'picture': enlarge(image)[0]}
    panels |= {title: paint_labels(image, labels, legend) for title, labels in maps.items()}
    height, width = panels['picture'].shape[:2]
    size = round(_font_size((height, width)))
    font, row = _font(size), 2 * size
    found, areas = np.unique(np.concatenate([*map(np.ravel, maps.values())]), return_counts=True)
    found = found[np.argsort(-areas, kind='stable')]
    names = [(legend.name(label), legend.colour(label)) for label in found if label >= 0]
    names += [('not labelled', _NOT_LABELLED)] * bool((found < 0).any())
    column = row + size + max(font.getlength(name) for name, _ in names)
    apart = size + max(width, *(round(font.getlength(title)) for title in panels))
    total = max(len(panels) * apart - size, round(column))
    columns = max(1, int(total // column))
    rows = -(-len(names) // columns)
    drawing = Image.new('RGB', (total, height + row * (1 + rows) + size), 'white')
    draw = ImageDraw.Draw(drawing)
    for i, (title, panel) in enumerate(panels.items()):
        left = i * apart
        draw.text((left + (apart - size) / 2, size), title, fill=_INK, font=font, anchor='mm')
        drawing.paste(Image.fromarray(panel), (left + (apart - size - width) // 2, row))
    for i, (name, colour) in enumerate(names):
        x, y = size + i % columns * column, height + row * (1 + i // columns) + size
        draw.rectangle((x, y, x + size, y + size), fill=colour, outline=(136, 136, 136))
        draw.text((x + 1.5 * size, y + size / 2), name, fill=_INK, font=font, anchor='lm')
    return np.array(drawing)


def paint_scores(image: np.ndarray, names: Sequence[str], scores: Sequence[float]) -> np.ndarray:
    """Adds bars with classes and their probabilities, from 0 to 1, below a picture."""
    painted, _ = enlarge(image)
    height, width = painted.shape[:2]
    size = _font_size((max(height, width) // 2, width))
    font, row = _font(round(size)), round(2 * size)
    margin = round(size * 0.8)
    drawing = Image.new('RGB', (width, height + row * len(names) + 2 * margin), 'white')
    drawing.paste(Image.fromarray(painted))
    draw = ImageDraw.Draw(drawing)
    start = margin + round(max(draw.textlength(name, font) for name in names)) + margin
    start = min(start, width // 2)
    end = width - margin - draw.textlength('100.0 %', font) - margin
    for i, (name, score) in enumerate(zip(names, scores, strict=True)):
        y = height + margin + (i + 0.5) * row
        shown = name
        while len(shown) > 1 and draw.textlength(shown, font) > start - 1.5 * margin:
            shown = f'{shown[:-2]}…'
        draw.text((margin, y), shown, fill=_INK, font=font, anchor='lm')
        bar = (start, y - 0.3 * row, start + max(1, (end - start) * score), y + 0.3 * row)
        draw.rectangle((start, bar[1], max(start, end), bar[3]), fill=(238, 238, 238))
        draw.rectangle(bar, fill=_BAR)
        text = f'{100 * score:.1f} %'
        draw.text((width - margin, y), text, fill=_INK, font=font, anchor='rm')
    return np.asarray(drawing)


def _font_size(shape: Sequence[int]) -> float:
    return max(12.0, max(shape[:2]) / 50)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # it brings a font that is the same everywhere

    path = Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
    return ImageFont.truetype(str(path), size)


def _readable_on(colour: Colour) -> Colour:
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return _INK if light > 150 else (255, 255, 255)
