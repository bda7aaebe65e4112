"""Compact numbers of the official outputs, and the measure by which outputs are compared with them.

`tools/dev/make_reference.py` writes the file.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

FILE = Path(__file__).with_name('data') / 'official_numbers.json'

# Largest allowed `deviation`, by the type in which the official output was stored.
LIMITS = {'float64': 1e-9, 'float32': 1e-6}


def summarize(array: np.ndarray) -> dict[str, Any]:
    """Reduce an array to its shape, mean, standard deviation, largest magnitude and 16 values."""
    flat = array.astype(np.float64).ravel()
    positions = np.linspace(0, flat.size - 1, 16).astype(int)
    return {
        'shape': list(array.shape),
        'mean': float(flat.mean()),
        'std': float(flat.std()),
        'absmax': float(np.abs(flat).max()),
        'values': flat[positions].tolist(),
    }


def load(network: str) -> list[dict[str, Any]]:
    """Read the committed records of one network, one record per output array and image size.

    Each holds what `summarize` returns plus ``network``, ``size`` (height, width), ``array`` (as in
    the result of `official_reference.forward`), ``origin`` and ``dtype``. The origin is 'official'
    for outputs of the official code and 'independent' for outputs of `official_reference`.
    """
    records = json.loads(FILE.read_text(encoding='utf-8'))
    return [record for record in records if record['network'] == network]


def deviation(output: Tensor | np.ndarray, expected: dict[str, Any] | np.ndarray) -> float:
    """Return max |difference| / std against a record or a full array; inf for a wrong shape."""
    actual = output.detach().cpu().numpy() if isinstance(output, Tensor) else output
    if isinstance(expected, np.ndarray):
        if actual.shape != expected.shape:
            return float('inf')
        return float(np.abs(actual - expected.astype(np.float64)).max() / expected.std())
    summary = summarize(actual)
    if summary['shape'] != expected['shape']:
        return float('inf')
    pairs = [(summary[key], expected[key]) for key in ('mean', 'std', 'absmax')]
    pairs += zip(summary['values'], expected['values'], strict=True)
    # Not the built-in max: it could let a NaN through.
    return float(np.max([abs(a - b) for a, b in pairs])) / expected['std']
