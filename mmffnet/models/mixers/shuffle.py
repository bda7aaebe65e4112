"""Attention among shuffled scalars, after RelaCtrl's two-dimensional shuffle mixer (TDSM).

Paper: RelaCtrl, https://arxiv.org/abs/2502.14377. Its code has no licence: this is written from a
description alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.tracing import constant_when_compiled
from ...registry import MODELS
from ..arch import check_channels
from ..layers import ChannelLayerNorm
from .constants import Constants

#: Runs that a shuffled map is cut into
_RUNS = 4

#: Few, as the permutations of all scalars of a map take four times its memory
_kept = Constants(8)


@MODELS.register_module()
class ShuffleMixer(nn.Module):
    """Shuffles all scalars of the map, lets four runs of them attend, and puts them back.

    The channels are permuted and cut into groups. In each group all scalars are permuted and cut
    into four runs, self-attention works within each, and the permutations are undone. A token of
    the attention consists of scalars from everywhere, so that it has no spatial order; its cost is
    quadratic in the number of positions, for late stages.

    This is an adaptation: the permutations follow from ``seed`` and the size of the map (in the
    original they are drawn anew in each call, at inference too), and maps are padded with zeros to
    a multiple of four positions. An exported model has a fixed size.

    Args:
        channels (int): Channels in and out, a multiple of ``groups * num_heads``.
        num_heads (int): Heads in each group. Defaults to 4.
        groups (int): Groups of channels, each with its own attention. Defaults to 1.
        seed (int): Of the permutations; weights belong to the seed that they were trained with.
            Defaults to 0.
        norm (bool): Put a layer norm in front. Defaults to True.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 4,
        groups: int = 1,
        seed: int = 0,
        norm: bool = True,
    ):
        super().__init__()
        check_channels('ShuffleMixer', channels, groups=groups, num_heads=num_heads)
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f'ShuffleMixer: seed must be an integer in [0, 2**32), got {seed!r}')
        self.channels, self.groups, self.seed = channels, groups, seed
        self.norm = ChannelLayerNorm(channels, eps=1e-6) if norm else nn.Identity()
        self.attentions = nn.ModuleList(
            _Attention(channels // groups, num_heads) for _ in range(groups)
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if isinstance(height * width, torch.SymInt):
            raise ValueError(
                'ShuffleMixer: its permutations belong to one size of the map, export it with a '
                'fixed batch and size'
            )
        length = int(height * width)  # a tensor while it is traced
        padding = -length % _RUNS
        z = F.pad(self.norm(x).flatten(2).mT, (0, 0, 0, padding))
        what = (self.seed, self.channels, self.groups, length + padding)
        channels, *scalars = _kept(x, _permutations, *what)
        y = self.mix(z, channels, scalars)
        return y[:, :length].mT.reshape(x.shape)

    def mix(self, z: Tensor, channels: Tensor, scalars: Sequence[Tensor]) -> Tensor:
        """Mixes (N, positions, channels).

        Each permutation is (2, size), itself and its inverse.

        Args:
            z (Tensor): The map; the number of positions is a multiple of four.
            channels (Tensor): That of the channels.
            scalars (Sequence[Tensor]): For each group that of its scalars.
        """
        parts = z[..., channels[0]].chunk(self.groups, -1)
        mixed = []
        for part, permutation, attention in zip(parts, scalars, self.attentions, strict=True):
            runs = part.flatten(1)[:, permutation[0]].unflatten(1, (_RUNS, -1, part.shape[2]))
            y = attention(runs.flatten(0, 1)).reshape(part.shape[0], -1)[:, permutation[1]]
            mixed.append(y.reshape(part.shape))
        return torch.cat(mixed, -1)[..., channels[1]]


class _Attention(nn.Module):
    """Multi-head self-attention on (runs, tokens, channels)."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@constant_when_compiled
def _permutations(
    seed: int, channels: int, groups: int, length: int, device: torch.device
) -> list[Tensor]:
    """The permutations of the channels and of the scalars of each group, with their inverses."""
    # NumPy's old generator gives the same numbers in all versions
    rng = np.random.RandomState(seed)
    sizes = [channels, *[length * channels // groups] * groups]
    drawn = (np.stack([p, p.argsort()]) for p in map(rng.permutation, sizes))
    return [torch.from_numpy(p).to(device) for p in drawn]
