"""Adaptive frequency filters, the token mixer of AFFNet.

Paper: Adaptive Frequency Filters As Efficient Global Token Mixers, https://arxiv.org/abs/2307.14008.
Original implementation: https://github.com/microsoft/TokenMixers (MIT). Written anew from a
description of the operator.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.autocast import full_precision
from ...ops.tracing import is_exported
from ...registry import MODELS
from ..arch import check_channels
from .build import build_act
from .grid import angles


@MODELS.register_module()
class AdaptiveFrequencyFilter(nn.Module):
    """Multiplies the spectrum of the map by a mask that is made from the spectrum.

    The mask comes from two block-diagonal complex layers over the channels at each frequency, with
    an activation between them (of real and imaginary parts separately) and soft shrinkage at the
    end. Nothing depends on the size of the map.

    The transforms are computed in float32 at least, under autocast too. In exported models they are
    products with Fourier matrices, real ones, which every runtime has, for any size.

    Args:
        channels (int): Channels in and out, a multiple of ``num_blocks``.
        num_blocks (int): Blocks of the complex layers. Defaults to 8.
        threshold (float): That of the soft shrinkage. Defaults to 0.01.
        residual (bool): Add the input to the output. Defaults to True, as in AFFNet; False in a
            block that adds it anyway.
        act_cfg (dict, optional): Activation. Defaults to ``dict(type='SiLU')``.
    """

    def __init__(
        self,
        channels: int,
        num_blocks: int = 8,
        threshold: float = 0.01,
        residual: bool = True,
        act_cfg: dict | None = None,
    ):
        super().__init__()
        check_channels('AdaptiveFrequencyFilter', channels, num_blocks=num_blocks)
        if not isinstance(threshold, int | float) or threshold < 0:
            raise ValueError(
                f'AdaptiveFrequencyFilter: threshold must be a number of at least 0, '
                f'got {threshold!r}'
            )
        self.num_blocks, self.threshold, self.residual = num_blocks, threshold, residual
        size = channels // num_blocks
        # the real parts and the imaginary ones, of each block from its channels in to those out
        self.w1, self.w2 = (_small(2, num_blocks, size, size) for _ in range(2))
        self.b1, self.b2 = (_small(2, num_blocks, size) for _ in range(2))
        self.act = build_act(act_cfg or dict(type='SiLU'))

    def forward(self, x: Tensor) -> Tensor:
        # there is no half FFT for most sizes, and its sums would overflow
        with full_precision(x):
            y = self.filter(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)
        return x + y if self.residual else y

    def filter(self, x: Tensor) -> Tensor:
        """Returns the filtered map, without the input."""
        height, width = x.shape[-2:]
        re, im = _transform(x)
        z = torch.cat([v.unflatten(1, (self.num_blocks, -1)) for v in (re, im)], 2)
        z = self.act(_complex_layer(z, self.w1, self.b1))
        z = F.softshrink(_complex_layer(z, self.w2, self.b2), self.threshold)
        mask_re, mask_im = (v.flatten(1, 2) for v in z.chunk(2, 2))
        re, im = re * mask_re - im * mask_im, re * mask_im + im * mask_re
        return _inverse(re, im, height, width)


def _small(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(shape))


def _complex_layer(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A block-diagonal complex layer on (N, blocks, real and imaginary parts, H, W)."""
    weight, bias = weight.to(z.dtype), bias.to(z.dtype)
    re, im = weight[0], weight[1]
    matrix = torch.cat([torch.cat([re, im], 2), torch.cat([-im, re], 2)], 1)
    bias = torch.cat([bias[0], bias[1]], 1)[..., None, None]
    return torch.einsum('kio,nkihw->nkohw', matrix, z) + bias


def _transform(x: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of the orthonormal rfft2."""
    if not is_exported():
        spectrum = torch.fft.rfft2(x, norm='ortho')
        return spectrum.real, spectrum.imag
    height, width = x.shape[-2:]
    cos, sin = _fourier(width, width // 2 + 1, x)
    re, im = x @ cos, -(x @ sin)
    cos, sin = _fourier(height, height, x)
    return cos @ re + sin @ im, cos @ im - sin @ re


def _inverse(re: Tensor, im: Tensor, height: int, width: int) -> Tensor:
    """The orthonormal irfft2."""
    if not is_exported():
        return torch.fft.irfft2(torch.complex(re, im), s=(height, width), norm='ortho')
    cos, sin = _fourier(height, height, re)
    re, im = cos @ re - sin @ im, cos @ im + sin @ re
    cos, sin = _fourier(width, width // 2 + 1, re)
    # the frequencies that the real transform leaves out are conjugates of the others
    k = torch.arange(width // 2 + 1, device=re.device)
    times = 2 - (k == 0).to(re.dtype) - (2 * k == width).to(re.dtype)
    return (re * times) @ cos.mT - (im * times) @ sin.mT


def _fourier(length: int, frequencies: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, frequencies) of the orthonormal transform."""
    n = torch.arange(length, device=like.device)
    k = torch.arange(frequencies, device=like.device)
    angle = angles(n[:, None] * k, length, like)
    return angle.cos() * length**-0.5, angle.sin() * length**-0.5
