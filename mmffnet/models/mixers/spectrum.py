"""Weighting of spectral bands, inspired by the abstract of Dynamic Spectrum Mixer.

Paper: DSM, https://arxiv.org/abs/2309.06721, of which no code was published. This is a design of
our own on its idea (tokens mixed by a discrete cosine transform, with weights of the bands that
depend on the input); it makes no claim to be that network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.autocast import full_precision
from ...registry import MODELS
from ..arch import check_channels, check_count
from ..layers import NormConv
from .build import build_act
from .grid import angles, average_cells, check_grid


@MODELS.register_module()
class SpectrumMixer(nn.Module):
    """Multiplies the cosine spectrum of the map by weights that are made from its bands.

    The steps: a 1x1 convolution with a norm in front; an orthonormal DCT; its magnitudes, averaged
    over a grid of bands; from these, by two 1x1 convolutions and a sigmoid, a weight between 0 and
    2 for each band of each channel; the weights, upsampled bilinearly to all frequencies, times the
    spectrum; the inverse transform; a 1x1 convolution. The transforms are products with matrices,
    in float32 at least: they need no FFT, take maps of any size and can be exported.

    Args:
        channels (int): Channels in and out.
        grid (int or tuple[int, int]): Bands along height and width. Defaults to 8.
        reduction (int): Channels per hidden channel in what makes the weights. Defaults to 4.
        norm_cfg (dict, optional): Norm of the input. Defaults to ``dict(type='BN')``.
        act_cfg (dict, optional): Activation. Defaults to ``dict(type='GELU')``.
    """

    def __init__(
        self,
        channels: int,
        grid: int | tuple[int, int] = 8,
        reduction: int = 4,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
    ):
        super().__init__()
        check_channels('SpectrumMixer', channels)
        check_count('SpectrumMixer: reduction', reduction)
        self.grid = check_grid('SpectrumMixer: grid', grid)
        hidden = max(channels // reduction, 1)
        self.query = NormConv(channels, channels, norm_cfg=norm_cfg)
        self.weigh = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), build_act(act_cfg), nn.Conv2d(hidden, channels, 1)
        )
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.query(x)
        height, width = x.shape[-2:]
        # the lowest frequency is the mean times the root of the number of positions
        with full_precision(x):
            z = x.to(torch.promote_types(x.dtype, torch.float32))
            rows, columns = _cosines(height, z), _cosines(width, z)
            spectrum = rows @ z @ columns.mT
            bands = average_cells(spectrum.abs(), self.grid).log1p()
        weights = 2 * self.weigh(bands.to(x.dtype)).sigmoid()
        weights = F.interpolate(weights, (height, width), mode='bilinear', align_corners=False)
        with full_precision(x):
            y = rows.mT @ (spectrum * weights) @ columns
        return self.project(y.to(x.dtype))


def _cosines(length: int, like: Tensor) -> Tensor:
    """The orthonormal DCT-II, (frequencies, positions); its transpose is the inverse."""
    n = torch.arange(length, device=like.device)
    angle = angles(n[:, None] * (2 * n + 1), 4 * length, like)
    scale = torch.where(n == 0, 1.0, 2.0).to(like.dtype) / length
    return angle.cos() * scale.sqrt()[:, None]
