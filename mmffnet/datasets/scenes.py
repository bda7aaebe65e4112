"""Pictures of overlapping textured shapes on cluttered backgrounds, the same on every machine.

Only integers are drawn with: angles are Pythagorean (exact rational sines and cosines), shapes
are tests on whole numbers, and the dice are numpy's frozen ``RandomState``. No floating-point
function, whose last bit could depend on the platform, decides about a pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# in the order of their names, which is the order that readers of image folders give them
CLASSES = ('box', 'disc', 'ring', 'star', 'triangle')
PALETTE = [(230, 80, 60), (60, 140, 230), (250, 190, 40), (150, 80, 200), (60, 180, 90)]

_UNIT = 1000  # the radius of a shape in its own frame
# Corners lie further out than that, so that all classes have about the same area.
_TRIANGLE = ((0, -1200), (1039, 600), (-1039, 600))
_POINTS = ((0, -1150), (1094, -355), (676, 930), (-676, 930), (-1094, -355))
_STAR = tuple(
    corner
    for i in range(5)
    # an inner corner lies opposite one of the points
    for corner in (_POINTS[i], tuple(-value * 50 // 100 for value in _POINTS[(i + 3) % 5]))
)
_BOX = 820  # half a side
_HOLE = 520  # the inner radius of a ring
_LINE = -1  # the label of a line, which belongs to no class


@dataclass(frozen=True)
class Instance:
    """What can be seen of an object, or of a crowd of objects of one class."""

    label: int
    mask: np.ndarray
    crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3; RGB), its instances from back to front, and the pixels of its lines."""

    image: np.ndarray
    instances: list[Instance]
    lines: np.ndarray


def draw_scene(seed: int, split: int, index: int, size: int) -> Scene:
    """Draw picture ``index`` of a split: up to six objects that hide one another.

    What a set needs is spread over the indices, so that small sets have it too: every 25th
    picture has no object, every 12th a crowd, every sixth a large object, half are not square.
    Splits, which are numbers, share no random numbers. ``size`` is the longer side in pixels.
    """
    dice = _Dice(seed, split, index)
    short = size * 3 // 4
    height, width = ((size, size), (short, size), (size, size), (size, short))[index % 4]
    canvas = _Canvas(dice, height, width)
    canvas.scatter_lines(dice, dice.integer(0, 3))
    if index % 25 != 9:
        others = dice.integer(1, 5)
        if index % 6 == 2:
            canvas.place(dice, dice.integer(size * 46 // 100, size * 51 // 100))
            others = dice.integer(1, 2)
        if index % 12 == 4:
            canvas.place_crowd(dice, size // 16)
        for _ in range(others):
            if dice.integer(1, 5) == 1:
                radius = dice.integer(size * 9 // 100, size * 12 // 100)
            else:
                radius = dice.integer(size * 17 // 100, size * 27 // 100)
            canvas.place(dice, radius)
    canvas.scatter_lines(dice, max(0, dice.integer(-2, 2)))
    return canvas.finish(dice)


def draw_portrait(seed: int, split: int, index: int, size: int) -> Scene:
    """Draw a square picture that one object dominates; its class is ``index % len(CLASSES)``."""
    dice = _Dice(seed, split, index)
    canvas = _Canvas(dice, size, size)
    canvas.scatter_lines(dice, dice.integer(0, 3))
    # the first object always finds its place
    radius = dice.integer(size * 28 // 100, size * 45 // 100)
    canvas.place(dice, radius, label=index % len(CLASSES))
    if dice.integer(0, 2) == 0:
        canvas.place(dice, size * 10 // 100)
    canvas.scatter_lines(dice, max(0, dice.integer(-2, 1)))
    return canvas.finish(dice)


class _Dice:
    """Random integers from numpy's legacy generator, whose stream is guaranteed never to change."""

    def __init__(self, *seeds: int) -> None:
        self._state = np.random.RandomState(seeds)

    def integers(self, low: int, high: int, shape: Sequence[int] | None = None) -> np.ndarray:
        """Draw from ``low`` to ``high``, both included."""
        # the width is named because numpy's default one depends on the platform
        return np.asarray(self._state.randint(low, high + 1, shape, dtype=np.int64))

    def integer(self, low: int, high: int) -> int:
        return int(self.integers(low, high))

    def direction(self, spread: int = 63) -> tuple[int, int, int]:
        """Draw an angle as (cosine, sine, common denominator).

        It is as far from 0 as twice the arc tangent of ``spread / 64``, 89 degrees by default.
        """
        p, q = self.integer(-spread, spread), 64
        return q * q - p * p, 2 * p * q, q * q + p * p

    def colour(self, unlike: Sequence[np.ndarray]) -> np.ndarray:
        """Draw a few colours and keep the one that differs most from those in ``unlike``."""
        candidates = self.integers(0, 255, (8, 3))
        distances = [min(int(np.abs(c - other).sum()) for other in unlike) for c in candidates]
        return candidates[distances.index(max(distances))]


@dataclass(frozen=True)
class _Layer:
    label: int
    area: int
    colour: np.ndarray
    crowd: bool = False


class _Canvas:
    """A picture that is painted from back to front and remembers which layer owns each pixel."""

    def __init__(self, dice: _Dice, height: int, width: int) -> None:
        self.size = max(height, width)
        self.image, self.background = _background(dice, height, width)
        # layer 0 is the background
        self.owner = np.zeros((height, width), np.int64)
        self.layers = [_Layer(_LINE, 0, self.background[0])]

    def place(self, dice: _Dice, radius: int, label: int | None = None) -> None:
        """Paint an object where it hides no other one too much; after some tries, nowhere.

        The radius is its longer half axis.
        """
        height, width = self.owner.shape
        if label is None:
            label = dice.integer(0, len(CLASSES) - 1)
        margin = radius * 3 // 4
        for _ in range(8):
            x = dice.integer(min(margin, width // 2), max(width - margin, width // 2))
            y = dice.integer(min(margin, height // 2), max(height - margin, height // 2))
            mask = self._outline(dice, label, x, y, radius)
            if self._fits(mask):
                colour = self._paint(dice, mask, radius)
                self._claim(mask, _Layer(label, int(mask.sum()), colour))
                return

    def place_crowd(self, dice: _Dice, radius: int) -> None:
        """Paint many small objects of one class that count as one region, if there is room."""
        height, width = self.owner.shape
        label = dice.integer(0, len(CLASSES) - 1)
        columns, rows = dice.integer(2, 4), dice.integer(2, 3)
        pitch = radius * 2
        left = dice.integer(radius, width - radius - columns * pitch)
        top = dice.integer(radius, height - radius - rows * pitch)
        members = []
        for column in range(columns):
            for row in range(rows):
                x = left + column * pitch + dice.integer(0, radius)
                y = top + row * pitch + dice.integer(0, radius)
                members.append(self._outline(dice, label, x, y, radius))
        crowd = np.any(members, axis=0)
        if self._fits(crowd):
            colours = [self._paint(dice, mask, radius) for mask in members]
            self._claim(crowd, _Layer(label, int(crowd.sum()), colours[0], crowd=True))

    def scatter_lines(self, dice: _Dice, count: int) -> None:
        """Paint thin lines across the picture."""
        height, width = self.owner.shape
        ys, xs = np.ogrid[:height, :width]
        for _ in range(count):
            cosine, sine, unit = dice.direction()
            x, y = dice.integer(0, width), dice.integer(0, height)
            thickness = max(1, dice.integer(self.size, self.size * 3) // 160)
            distance = (2 * (xs - x) + 1) * sine - (2 * (ys - y) + 1) * cosine
            mask = np.abs(distance) <= thickness * unit
            if self._fits(mask):
                colour = self.image[mask] = dice.integers(0, 255, (3,))
                self._claim(mask, _Layer(_LINE, 0, colour))

    def finish(self, dice: _Dice) -> Scene:
        """Soften the picture's edges, add the noise of a camera and read off what is visible."""
        padded = np.pad(self.image, ((1, 1), (1, 1), (0, 0)), mode='edge')
        rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
        soft = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:] + 8) >> 4
        grain = dice.integer(1, 8)
        image = np.clip(soft + dice.integers(-grain, grain, soft.shape), 0, 255).astype(np.uint8)
        instances = [
            Instance(layer.label, self.owner == number, layer.crowd)
            for number, layer in enumerate(self.layers)
            if layer.label != _LINE
        ]
        labels = np.array([layer.label for layer in self.layers])
        return Scene(image, instances, (self.owner > 0) & (labels[self.owner] == _LINE))

    def _outline(self, dice: _Dice, label: int, x: int, y: int, radius: int) -> np.ndarray:
        """Draw the mask of a shape that is more or less upright."""
        height, width = self.owner.shape
        reach = radius * 5 // 4 + 1  # further out than any corner
        top, left = max(0, y - reach), max(0, x - reach)
        window = np.s_[top : min(height, y + reach), left : min(width, x + reach)]
        # 64 bits on every platform: the products below need more than 32
        ys, xs = (axis.astype(np.int64) for axis in np.ogrid[window])
        right, down = 2 * (xs - x) + 1, 2 * (ys - y) + 1
        cosine, sine, unit = dice.direction(spread=10)  # up to 18 degrees
        breadth = radius * dice.integer(80, 100) // 100
        u = (right * cosine + down * sine) * _UNIT // (2 * unit * breadth)
        v = (down * cosine - right * sine) * _UNIT // (2 * unit * radius)
        mask = np.zeros((height, width), bool)
        mask[window] = _inside(CLASSES[label], u, v)
        return mask

    def _fits(self, mask: np.ndarray) -> bool:
        """Tell whether a new front layer is large enough and leaves enough of the others."""
        least = self.size * self.size // 400
        left = np.bincount(self.owner[~mask], minlength=len(self.layers))
        return mask.sum() >= least and all(
            left[number] >= max(least, layer.area * 45 // 100)
            for number, layer in enumerate(self.layers)
            if layer.label != _LINE
        )

    def _paint(self, dice: _Dice, mask: np.ndarray, radius: int) -> np.ndarray:
        """Paint a textured surface that stands out from what is under it; return its colour."""
        under = [self.layers[number].colour for number in np.unique(self.owner[mask])]
        first = dice.colour([*self.background, *under])
        # closer to the first than to what is around: the outline is the strongest edge
        second = np.clip(first + dice.integers(-60, 60, (3,)), 0, 255)
        ys, xs = np.nonzero(mask)
        mix = _texture(dice, 2 * (xs - xs.min()), 2 * (ys - ys.min()), radius)[:, None]
        self.image[mask] = first + ((second - first) * mix >> 8)
        return first

    def _claim(self, mask: np.ndarray, layer: _Layer) -> None:
        self.owner[mask] = len(self.layers)
        self.layers.append(layer)


def _inside(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Tell which points of a shape's own frame, in thousandths of its radius, are in it."""
    if name == 'box':
        return (np.abs(u) <= _BOX) & (np.abs(v) <= _BOX)
    if name == 'disc':
        return u * u + v * v <= _UNIT * _UNIT
    if name == 'ring':
        squared = u * u + v * v
        return (squared <= _UNIT * _UNIT) & (squared >= _HOLE * _HOLE)
    corners = _STAR if name == 'star' else _TRIANGLE
    mask = np.zeros(u.shape, bool)
    for (x1, y1), (x2, y2) in zip(corners, (*corners[1:], corners[0]), strict=True):
        # the even-odd rule: count the edges that lie to the right of the point
        if y1 > y2:
            x1, y1, x2, y2 = x2, y2, x1, y1
        mask ^= (y1 <= v) & (v < y2) & ((u - x1) * (y2 - y1) < (x2 - x1) * (v - y1))
    return mask


def _texture(dice: _Dice, right: np.ndarray, down: np.ndarray, radius: int) -> np.ndarray:
    """Draw how much of the second colour, 0 to 256, each pixel of a surface has.

    ``right`` and ``down`` are the distances from its left and upper end, in half pixels.
    """
    cosine, sine, unit = dice.direction()
    across = (right * cosine + down * sine) // unit
    along = (down * cosine - right * sine) // unit
    period = max(4, radius * 2 // dice.integer(2, 5))
    kind = dice.integer(0, 4)
    if kind == 0:  # stripes
        return across // period % 2 * 256
    if kind == 1:  # checks
        return (across // period + along // period) % 2 * 256
    if kind == 2:  # noise in blocks of 2 x 2 pixels
        row, column = down // 4, right // 4
        return dice.integers(0, 256, (int(row.max()) + 1, int(column.max()) + 1))[row, column]
    if kind == 3:  # gradient
        return (across - across.min()) * 256 // int(np.ptp(across) + 1)
    return np.zeros(across.shape, np.int64)


def _background(dice: _Dice, height: int, width: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw a background and return it with its colours."""
    # not far from grey, so that the objects can be told from it
    first = np.clip(dice.integer(40, 215) + dice.integers(-40, 40, (3,)), 0, 255)
    colours = [first, *(np.clip(first + dice.integers(-45, 45, (3,)), 0, 255) for _ in range(2))]
    if dice.integer(0, 2) == 0:
        ys, xs = np.ogrid[:height, :width]
        mix = _texture(dice, 2 * xs, 2 * ys, max(height, width) // 6)
    else:
        mix = _clouds(dice, height, width, dice.integer(1, 2))
    image = colours[0] + ((colours[1] - colours[0]) * mix[..., None] >> 8)
    blobs = _clouds(dice, height, width, dice.integer(3, 6)) > dice.integer(140, 190)
    image[blobs] = (image[blobs] + 3 * colours[2]) // 4
    return image, colours


def _clouds(dice: _Dice, height: int, width: int, cells: int) -> np.ndarray:
    """Draw values of 0 to 256 that change smoothly from one random grid point to the next."""
    grid = dice.integers(0, 256, (cells + 1, cells + 1))
    y = np.arange(height)[:, None] * cells * 256 // height
    x = np.arange(width)[None] * cells * 256 // width
    row, column, dy, dx = y >> 8, x >> 8, y & 255, x & 255
    upper = grid[row, column] * (256 - dx) + grid[row, column + 1] * dx
    lower = grid[row + 1, column] * (256 - dx) + grid[row + 1, column + 1] * dx
    return (upper * (256 - dy) + lower * dy) >> 16
