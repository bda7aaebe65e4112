"""TransNeXt's bias of attention logits by the offset between query and key."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from torch import Tensor, nn

from ...ops.tracing import is_traced
from .constants import constants

#: The logit of what is no key; finite, since infinity times a weight of 0 is not a number
_NEVER = -1e9
#: Width of the MLP
_HIDDEN = 512


def _edges(size: int, bins: int) -> tuple[list[int], list[int]]:
    """Where the bins of adaptive average pooling begin and end, which may overlap."""
    starts = [k * size // bins for k in range(bins)]
    return starts, [-(-(k + 1) * size // bins) for k in range(bins)]


def pooling(size: int, bins: int, device: torch.device) -> Tensor:
    """Adaptive average pooling along an axis, as a matrix of the shape ``(bins, size)``.

    PyTorch's own has no deterministic gradient on GPUs, and is not exported for all sizes.
    """
    positions = torch.arange(size, device=device)
    starts, ends = (torch.tensor(e, device=device)[:, None] for e in _edges(size, bins))
    return ((starts <= positions) & (positions < ends)).double() / (ends - starts)


def _offsets(size: int, bins: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The different offsets between positions and the centres of bins, along an axis.

    Args:
        size (int): Number of positions, the queries.
        bins (int): Number of bins of adaptive average pooling, the keys.
        device (torch.device): Where to.

    Returns:
        tuple[Tensor, Tensor]: The offsets, and the place of each query's and key's offset in them.
    """
    # all is doubled, since centres of bins may be halves
    centres = [start + end - 1 for start, end in zip(*_edges(size, bins), strict=True)]
    step = 2 if len({c % 2 for c in centres}) == 1 else 1
    first, last = -max(centres), 2 * (size - 1) - min(centres)
    offsets = torch.arange(first, last + 1, step, dtype=torch.float64, device=device) / 2
    queries = 2 * torch.arange(size, device=device)[:, None]
    index = (queries - torch.tensor(centres, device=device) - first) // step
    return offsets, index


def _taps(size: int, grid: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Places in a grid and their weights, which bilinear interpolation sums up, along an axis."""
    positions = torch.arange(size, dtype=torch.float64, device=device)
    if size == grid:
        return [(positions.long(), torch.ones_like(positions))]
    source = ((positions + 0.5) * (grid / size) - 0.5).clamp(min=0)
    low = source.floor()
    return [
        (low.long(), 1 - (source - low)),
        ((low + 1).clamp(max=grid - 1).long(), source - low),
    ]


def _axis(
    size: int, bins: int, grid: int, grid_bins: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The offsets along an axis, and for queries and keys the places to take and their weights.

    Args:
        size (int): Number of queries.
        bins (int): Number of keys.
        grid (int): Number of queries for which there are offsets; the others are interpolated.
        grid_bins (int): The same of keys.
        device (torch.device): Where to.

    Returns:
        tuple[Tensor, Tensor, Tensor]: The offsets ``(U,)``; places in them, and weights, of the
        shape ``(taps, size, bins)``.
    """
    offsets, index = _offsets(grid, grid_bins, device)
    pairs = [(q, k) for q in _taps(size, grid, device) for k in _taps(bins, grid_bins, device)]
    places = torch.stack([index[q[:, None], k] for (q, _), (k, _) in pairs])
    weights = torch.stack([v[:, None] * w for (_, v), (_, w) in pairs])
    return offsets, places, weights


def window(height: int, width: int, kernel: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of the neighbours of each position are in the map, and their number."""
    shift = torch.arange(kernel, device=device)[:, None] - kernel // 2
    rows, columns = (
        (i >= 0) & (i < n)
        for n in (height, width)
        for i in [shift + torch.arange(n, device=device)]
    )
    inside = (rows[:, None, :, None] & columns[:, None]).reshape(kernel**2, height, width)
    return inside, inside.sum(0)


class PositionBias(nn.Module):
    """Bias of attention logits by the offset between query and key, made by a small MLP.

    The MLP sees each offset once: an offset is one of few along the height and one of few along
    the width. Offsets are on a log scale, in units of the map of the pre-training.

    Args:
        heads (int): Number of heads.
        sr_ratio (int): Positions per key and axis.
        pretrain_size (int): Side of the map in the pre-training.
        bias_size (int, optional): Side of the square map whose bias is computed and then
            interpolated. Defaults to None, which is no interpolation: the bias is computed for the
            size of the input, whatever it is.
    """

    def __init__(
        self,
        heads: int,
        sr_ratio: int,
        pretrain_size: int,
        bias_size: int | None = None,
    ):
        super().__init__()
        self.sr_ratio = sr_ratio
        self.pretrain_size = pretrain_size
        self.bias_size = bias_size
        self.hidden = nn.Linear(2, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, heads)

    def bins(self, size: int) -> int:
        """Number of keys along an axis."""
        return max(size // self.sr_ratio, 1)

    def forward(self, x: Tensor, dtype: torch.dtype, chunk: int, recompute: bool) -> 'Bias':
        """Makes the bias for a map, ready to be cut into rows of queries."""
        height, width = map(int, x.shape[2:])
        dh, rows, row_weights = self._axis(x, height)
        dw, columns, column_weights = self._axis(x, width)
        weight, shift = self.hidden.weight.to(dtype), self.hidden.bias.to(dtype)
        out = [p.to(dtype) for p in self.out.parameters()]
        across = self._scale(dw, dtype)[:, None] * weight[:, 1] + shift

        def table(dh: Tensor, weight: Tensor, across: Tensor, *out: Tensor) -> Tensor:
            along = self._scale(dh, dtype)[:, None] * weight[:, 0]
            return F.linear(F.relu(along[:, None] + across), *out)

        step = max(chunk // across.numel(), 1)
        if not is_traced(x) and torch.is_grad_enabled():
            recompute = recompute or step < len(dh)
        parts = [call(recompute, table, d, weight, across, *out) for d in dh.split(step)]
        values = torch.cat(parts).permute(2, 0, 1)  # heads, offsets of rows, offsets of columns
        taken = weighted(values, 2, columns, column_weights.to(dtype))
        taken = taken.unflatten(2, columns.shape[1:]).transpose(1, 2)
        return Bias(taken, rows, row_weights.to(dtype))

    def _axis(self, x: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        grid = self.bias_size or size
        return constants(x, _axis, size, self.bins(size), grid, self.bins(grid))

    def _scale(self, offsets: Tensor, dtype: torch.dtype) -> Tensor:
        offsets = offsets * (8 / (self.pretrain_size - 1))
        return (offsets.sign() * (offsets.abs() + 1).log2() / 3).to(dtype)


@dataclass(frozen=True)
class Bias:
    """The bias of a map, by offsets of rows.

    Args:
        values (Tensor): Of the shape (heads, columns of queries, offsets of rows, columns of keys).
        places (Tensor): Offsets to take, of the shape (taps, rows of queries, rows of keys).
        weights (Tensor): Their weights.
    """

    values: Tensor
    places: Tensor
    weights: Tensor

    def with_extra_key(self) -> 'Bias':
        """Returns it with one more row of keys, of which the first alone is a key, without bias."""
        extra = torch.full_like(self.values[:, :, :1], _NEVER)
        extra[..., 0] = 0
        places = F.pad(self.places, (0, 1), value=self.values.shape[2])
        weights = F.pad(self.weights, (0, 1), value=1 / len(places))  # all taps take the new row
        return Bias(torch.cat([self.values, extra], 2), places, weights)

    def rows(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Returns values, places and weights for some rows of queries."""
        return self.values, self.places[:, part], self.weights[:, part]


def weighted(values: Tensor, dim: int, places: Tensor, weights: Tensor) -> Tensor:
    """Sums up the taps, ``(taps, queries, keys)``, of an axis of ``values``."""
    if len(places) == 1:  # whose weights are 1
        return values.index_select(dim, places[0].flatten())
    shape = [-1 if i == dim else 1 for i in range(values.ndim)]
    taps = zip(places, weights, strict=True)
    parts = (values.index_select(dim, p.flatten()) * w.reshape(shape) for p, w in taps)
    return functools.reduce(torch.add, parts)


def call(recompute: bool, function: Callable, *args: Tensor) -> Tensor:
    """Calls a function, and again in the backward pass in place of keeping what it computed."""
    if not recompute:
        return function(*args)
    return cp.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
