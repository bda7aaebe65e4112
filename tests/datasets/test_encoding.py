import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco_mask

from mmffnet.datasets.encoding import encode_png, encode_rle, trace_polygons

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def decode_rle(rle: dict) -> np.ndarray:
    return coco_mask.decode(coco_mask.frPyObjects(rle, *rle['size'])).astype(bool)


def decode_polygons(polygons: list[list[int]], shape: tuple[int, int]) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))).astype(bool)


@pytest.mark.parametrize('shape', [(1, 1), (5, 7), (5, 7, 3), (160, 160, 3)])
def test_a_png_is_read_back_by_another_library(shape):
    pixels = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.mode == ('L' if len(shape) == 2 else 'RGB')
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_png_holds_the_bytes_of_the_standard():
    assert encode_png(np.full((1, 1), 7, np.uint8)).hex() == (
        '89504e470d0a1a0a'
        '0000000d49484452000000010000000108000000003a7e9b55'
        '0000000d494441547801010200fdff000700090008b9ac8687'
        '0000000049454e44ae426082'
    )


@given(masks)
@settings(max_examples=100, deadline=None)
def test_run_lengths_are_read_back_by_pycocotools(mask):
    rle = encode_rle(mask)
    assert sum(rle['counts']) == mask.size
    np.testing.assert_array_equal(decode_rle(rle), mask)


@given(masks)
@settings(max_examples=150, deadline=None)
def test_polygons_are_exact_or_refused_because_of_a_hole(mask):
    polygons = trace_polygons(mask)
    if polygons is None:
        assert _has_hole(mask)
    elif mask.any():
        assert not _has_hole(mask)
        np.testing.assert_array_equal(decode_polygons(polygons, mask.shape), mask)
    else:
        assert polygons == []


def _has_hole(mask: np.ndarray) -> bool:
    """Flood the outside; whatever background stays dry is a hole."""
    outside = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), bool)
    outside[0] = True
    free = np.pad(~mask, 1, constant_values=True)
    while True:
        padded = np.pad(outside, 1)
        # diagonals count, because the inside is connected by edges only
        spread = (
            free
            & np.any(
                [np.roll(padded, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)],
                axis=0,
            )[1:-1, 1:-1]
        )
        if (spread == outside).all():
            return bool((free & ~outside).any())
        outside = spread


def test_a_box_has_four_corners():
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:8] = True
    assert trace_polygons(mask) == [[3, 2, 8, 2, 8, 5, 3, 5]]


def test_parts_become_polygons_of_their_own():
    mask = np.zeros((6, 6), bool)
    mask[1:3, 1:3] = mask[3:5, 3:5] = True  # they touch in a corner
    assert trace_polygons(mask) == [[1, 1, 3, 1, 3, 3, 1, 3], [3, 3, 5, 3, 5, 5, 3, 5]]
