"""Averages over a grid of fixed size, and angles, for mixers that must take maps of any size."""

import math

import torch
from torch import Tensor

from ..arch import is_count


def check_grid(name: str, grid: int | tuple[int, int]) -> tuple[int, int]:
    """Demands one or two positive integers, and returns two."""
    sides = tuple(grid) if isinstance(grid, tuple | list) else (grid, grid)
    if len(sides) != 2 or not all(map(is_count, sides)):
        raise ValueError(f'{name} must be a positive integer or two of them, got {grid!r}')
    return sides


def average_cells(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Averages (..., H, W) over a grid of cells, as adaptive average pooling does.

    As products with matrices it can be exported for any size and is deterministic on GPUs.
    """
    return _cells(x.shape[-2], grid[0], x) @ x @ _cells(x.shape[-1], grid[1], x).mT


def _cells(length: int, cells: int, like: Tensor) -> Tensor:
    position = torch.arange(length, device=like.device)
    cell = torch.arange(cells, device=like.device)[:, None]
    first, last = cell * length // cells, ((cell + 1) * length - 1) // cells
    inside = ((position >= first) * (position <= last)).to(like.dtype)
    return inside / (last - first + 1)


def angles(steps: Tensor, period: int, like: Tensor) -> Tensor:
    """The angles of integer steps on a circle of ``period`` of them."""
    # whole turns are taken away while they are integers (ONNX has no remainder of a free length)
    rest = steps % torch.full_like(steps, period)
    return rest.to(like.dtype) * (2 * math.pi / period)
