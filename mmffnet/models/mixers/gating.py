"""Gating by a small MLP-Mixer, after NiNformer.

Paper: NiNformer, https://arxiv.org/abs/2403.02411. Original implementation:
https://github.com/Abdullah-88/NiNformer (BSD-3). Written anew from a description.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MODELS
from ..arch import check_channels, check_count, check_fraction
from ..layers import ChannelLayerNorm
from .build import build_act
from .grid import average_cells, check_grid


@MODELS.register_module()
class GatingMixer(nn.Module):
    """Multiplies a projection of the map by a gate that an MLP-Mixer generates.

    This is an adaptation: the token MLP of the original binds it to one number of positions. Here
    it works on averages over a fixed grid, and the gate is upsampled bilinearly, so that maps may
    have any size and the cost is linear in it. On a map of the size of the grid it is the original.

    Args:
        channels (int): Channels in and out.
        grid (int or tuple[int, int]): Rows and columns of the grid. Defaults to 8.
        hidden_channels (int, optional): Hidden width of both MLPs of the gate. Defaults to None,
            which is ``2 * channels``.
        norm (bool): Put a layer norm in front, which in the original is the block's. Defaults to
            True.
        drop_rate (float): Dropout behind the layers of the MLPs; 0.5 in the original. Defaults
            to 0.
        act_cfg (dict, optional): Activation of the MLPs. Defaults to ``dict(type='GELU')``.
    """

    def __init__(
        self,
        channels: int,
        grid: int | tuple[int, int] = 8,
        hidden_channels: int | None = None,
        norm: bool = True,
        drop_rate: float = 0.0,
        act_cfg: dict | None = None,
    ):
        super().__init__()
        check_channels('GatingMixer', channels)
        self.grid = check_grid('GatingMixer: grid', grid)
        hidden = 2 * channels if hidden_channels is None else hidden_channels
        check_count('GatingMixer: hidden_channels', hidden)
        check_fraction('GatingMixer: drop_rate', drop_rate)

        def mlp(width: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(width, hidden),
                build_act(act_cfg),
                nn.Dropout(drop_rate),
                nn.Linear(hidden, width),
                nn.Dropout(drop_rate),
            )

        self.norm = ChannelLayerNorm(channels, eps=1e-5) if norm else nn.Identity()
        self.project = nn.Conv2d(channels, channels, 1)
        self.token_norm = nn.LayerNorm(channels)
        self.token_mlp = mlp(self.grid[0] * self.grid[1])
        self.channel_norm = nn.LayerNorm(channels)
        self.channel_mlp = mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        z = average_cells(x, self.grid).flatten(2).mT
        z = z + self.token_mlp(self.token_norm(z).mT).mT
        z = z + self.channel_mlp(self.channel_norm(z))
        gate = z.mT.unflatten(2, self.grid)
        gate = F.interpolate(gate, x.shape[-2:], mode='bilinear', align_corners=False)
        return self.project(x) * gate
