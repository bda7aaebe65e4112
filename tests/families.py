"""What the tests of all families share: filled official weights, inputs, and official outputs.

The rule of filling is that of the stored outputs: each tensor follows from its official name and
its shape alone. The full outputs are in ``families/`` of the fixtures, compact ones in
``tests/data/families/``, where `tools/dev/make_reference.py --families` writes them. An array of a
backbone is called by size and level (``64x64_0``), that of a mixer by its name (``catm/out``).
"""

import json
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).with_name('data') / 'families'
SIZES = ((64, 64), (96, 128))


def _fill_one(key: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    last = key.rpartition('.')[2]
    if last == 'running_var':
        return 1 + 0.5 * rng.random_sample(shape)
    noise = rng.standard_normal(shape)
    if 'layer_scale' in key:
        return 0.5 + 0.1 * noise
    if last == 'temperature':
        return 1 + 0.1 * noise
    if last in ('b1', 'b2', 'query_embedding', 'relative_pos_bias_local', 'learnable_bias'):
        return 0.1 * noise
    if last in ('w1', 'w2') and len(shape) == 4:
        return noise * np.sqrt(1 / shape[-2])
    if len(shape) >= 2:
        return gain * noise * np.sqrt(1 / np.prod(shape[1:]))
    return 1 + 0.1 * noise if last.endswith('weight') else 0.1 * noise


def fill(
    keys: Iterable[tuple[str, Sequence[int]]], gain: float = 1.0
) -> 'OrderedDict[str, Tensor]':
    """Give every official parameter its fixed value, in float64.

    Args:
        keys (Iterable[tuple[str, Sequence[int]]]): Names and shapes.
        gain (float): Factor of the weights of two and more axes. Defaults to 1.
    """
    filled = OrderedDict()
    for key, shape in keys:
        if key.endswith('num_batches_tracked'):
            filled[key] = torch.zeros((), dtype=torch.int64)
        else:
            value = np.asarray(_fill_one(key, tuple(shape), gain))
            filled[key] = torch.from_numpy(value.reshape(tuple(shape)))
    return filled


def make_input(*shape: int) -> Tensor:
    """Make the fixed random input of a shape, float64; two numbers mean an image of that size."""
    shape = (1, 3, *shape) if len(shape) == 2 else shape
    return torch.from_numpy(np.random.RandomState(0).standard_normal(shape))


def compact(name: str) -> dict[str, dict[str, Any]]:
    """Read the committed summaries of official outputs, by array.

    `reference_numbers.deviation` compares an output with one of them.
    """
    return json.loads((FOLDER / f'{name}.json').read_text(encoding='utf-8'))


def full(fixture_dir: Path, name: str) -> dict[str, np.ndarray]:
    """Read the full official outputs, by array."""
    with np.load(fixture_dir / 'families' / f'{name}.out.npz') as arrays:
        return {key: arrays[key] for key in arrays.files}


def full_keys(fixture_dir: Path, name: str) -> Any:
    """Read the official names and shapes as they were recorded."""
    path = fixture_dir / 'families' / f'{name}.keys.json'
    return json.loads(path.read_text(encoding='utf-8'))
