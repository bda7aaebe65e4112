"""PNG files and COCO masks as bytes and numbers that no library version can change."""

import struct
import zlib

import numpy as np

_STORED_BLOCK = 65535  # the most that one uncompressed deflate block can hold


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode a grey (H, W) or RGB (H, W, 3) uint8 picture.

    The data is stored, not compressed: compressed bytes differ between zlib, zlib-ng and their
    versions, and pictures are to be the same bytes everywhere.
    """
    height, width = pixels.shape[:2]
    colour_type = 0 if pixels.ndim == 2 else 2
    rows = pixels.reshape(height, -1)
    # each row starts with its filter type, 0: unfiltered
    data = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    header = struct.pack('>IIBBBBB', width, height, 8, colour_type, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        _chunk(kind, body)
        for kind, body in ((b'IHDR', header), (b'IDAT', _stored(data)), (b'IEND', b''))
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def _stored(data: bytes) -> bytes:
    """Wrap ``data`` into a zlib stream of stored blocks."""
    parts = [b'\x78\x01']
    for start in range(0, len(data), _STORED_BLOCK):
        block = data[start : start + _STORED_BLOCK]
        last = start + _STORED_BLOCK >= len(data)
        parts += [struct.pack('<BHH', last, len(block), len(block) ^ 0xFFFF), block]
    return b''.join(parts) + struct.pack('>I', zlib.adler32(data))


def encode_rle(mask: np.ndarray) -> dict:
    """Encode a boolean mask as COCO's uncompressed run lengths (columns first, zeros first)."""
    flat = np.concatenate(([False], mask.ravel(order='F'), [False]))
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(changes, prepend=0).tolist()
    trailing = mask.size - int(changes[-1]) if changes.size else mask.size
    if trailing:
        counts.append(trailing)
    return {'counts': counts, 'size': list(mask.shape)}


def trace_polygons(mask: np.ndarray) -> list[list[int]] | None:
    """Trace the pixel edges of a mask: one polygon ``[x, y, x, y, ...]`` per 4-connected part.

    Corners lie on the pixel grid, so COCO's rasteriser gives back exactly this mask.

    Returns:
        list[list[int]] | None: The polygons, or None where a part has a hole, which COCO's
        polygons cannot express.
    """
    padded = np.pad(mask, 1)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Every edge between inside and outside, walked with the inside on the right hand.
    # (dx, dy): the step; (nx, ny): where the outside neighbour lies; (ox, oy): the start corner.
    for (dx, dy), (nx, ny), (ox, oy) in (
        ((1, 0), (0, -1), (0, 0)),
        ((0, 1), (1, 0), (1, 0)),
        ((-1, 0), (0, 1), (1, 1)),
        ((0, -1), (-1, 0), (0, 1)),
    ):
        outside = ~np.roll(padded, (-ny, -nx), axis=(0, 1))[1:-1, 1:-1]
        for y, x in np.argwhere(mask & outside).tolist():
            steps.setdefault((x + ox, y + oy), []).append((dx, dy))

    polygons = []
    while steps:
        polygon = _walk(steps)
        xs, ys = polygon[::2], polygon[1::2]
        doubled_area = sum(
            x * after - after_x * y
            for x, y, after_x, after in zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
        )
        if doubled_area < 0:
            return None
        polygons.append(polygon)
    return polygons


def _walk(steps: dict[tuple[int, int], list[tuple[int, int]]]) -> list[int]:
    """Take one closed loop out of ``steps`` and return its corners."""
    start = x, y = next(iter(steps))
    heading = steps[start][0]
    polygon: list[int] = []
    while True:
        ways = steps[x, y]
        # where two parts touch in a corner, the right turn stays with the part it came from
        right = (-heading[1], heading[0])
        turn = right if right in ways else ways[0]
        ways.remove(turn)
        if not ways:
            del steps[x, y]
        if turn != heading or not polygon:
            polygon += [x, y]
        heading = turn
        x, y = x + heading[0], y + heading[1]
        if (x, y) == start:
            return polygon
