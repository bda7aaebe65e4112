"""Sizes of the blocks of the Triton kernels: measured on the card, or else a guess.

:func:`tune` measures; ``MMFFNET_TRITON_CHOICES`` names a file with what it found. Nothing is timed
while a model runs, so a choice depends neither on the run nor on what is captured or compiled.
"""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

#: Pixels and channels of a block, and fewer where a program keeps sums. On GPUs, what fits into the
#: registers of sm_75 to sm_90; the interpreter takes as long for a large block as for a small one
_BLOCKS = {'cuda': (16, 64), 'cpu': (64, 64)}
_SUM_BLOCKS = {'cuda': (8, 32), 'cpu': (64, 64)}
_SUMS = ('statistics', 'norm_sums', 'weight_gradient')
#: Pixels, channels and warps of a block that are tried
_CANDIDATES = ((8, 32, 4), (8, 64, 4), (16, 32, 4), (16, 64, 4), (16, 64, 8), (32, 64, 8))

#: The sizes in use while :func:`tune` runs
_trial: dict[str, tuple[int, int, int]] | None = None


def class_of(
    what: str,
    dtype: torch.dtype,
    sizes: tuple[tuple[int, int], ...],
    stride: int,
    channels: tuple[int, int],
    pixels: int,
) -> str:
    """What is chosen for at once: maps whose numbers of pixels have the same next power of 2.

    Args:
        what (str): A kernel, or ``'convolve'`` or ``'norms'`` for a layer; ``'+gelu'`` behind it if
            it computes that as well.
        dtype (torch.dtype): Of the map.
        sizes (tuple[tuple[int, int], ...]): Height and width of the kernels.
        stride (int): Stride.
        channels (tuple[int, int]): In and out.
        pixels (int): Of all maps of the batch.
    """
    kernels = '+'.join(f'{height}x{width}' for height, width in sizes)
    return (
        f'{what} {str(dtype)[6:]} {kernels} stride {stride}, '
        f'{channels[0]} to {channels[1]} channels, 2^{(pixels - 1).bit_length()} pixels'
    )


def blocks(
    what: str,
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[tuple[int, int], ...],
    stride: int,
    channels: tuple[int, int],
    pixels: int,
) -> dict[str, int]:
    """Sizes of the blocks of a kernel; the arguments are those of :func:`class_of`."""
    written = channels[0] if what == 'input_gradient' else channels[1]
    guess = (*(_SUM_BLOCKS if what.startswith(_SUMS) else _BLOCKS)[device.type], 4)
    found, choices = guess, _chosen(device) if _trial is None else {}
    if _trial is not None or choices:
        name = class_of(what, dtype, sizes, stride, channels, pixels)
        found = choices.get(name, guess) if _trial is None else _trial.setdefault(name, guess)
    return dict(
        BP=min(found[0], _power(pixels)), BC=min(found[1], _power(written)), num_warps=found[2]
    )


def _power(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def is_slower(device: torch.device, name: str) -> bool:
    """Whether PyTorch's own was measured to be faster."""
    return _trial is None and _chosen(device).get(name) == 'plain'


def _chosen(device: torch.device) -> dict[str, Any]:
    path = os.environ.get('MMFFNET_TRITON_CHOICES')
    return _read(path).get(_card(device), {}) if path else {}


@functools.cache
def _read(path: str) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise FileNotFoundError(f'MMFFNET_TRITON_CHOICES: there is no file {path}') from None
    except json.JSONDecodeError as error:
        raise ValueError(f'MMFFNET_TRITON_CHOICES: {path} is not JSON: {error}') from None


@functools.cache
def _card(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'


def tune(
    triton: Callable[[], Any], plain: Callable[[], Any], measure: Callable[[Callable], float]
) -> dict[str, Any]:
    """The fastest blocks of all kernels that a step launches.

    Args:
        triton (Callable): The step with the Triton kernels.
        plain (Callable): The same step with PyTorch's own.
        measure (Callable): Gives the time of a step.

    Returns:
        dict: The sizes by :func:`class_of`, and whether ``'plain'`` is faster still.
    """
    global _trial
    _trial = {}
    try:
        triton()
        for name, guess in list(_trial.items()):
            times = {}
            for sizes in dict.fromkeys((guess, *_CANDIDATES)):
                _trial[name] = sizes
                times[sizes] = measure(triton)
            _trial[name] = min(times, key=times.__getitem__)
        return {**_trial, 'plain': measure(plain) < measure(triton)}
    finally:
        _trial = None
