"""Building blocks: convolutions and norms that fold, and norms over channels."""

from .depthwise import DepthwiseConv2d
from .fusible import (
    ConvNorm,
    FusibleBlock,
    MultiBranchDWConv,
    NormConv,
    build_norm,
    convolve_and_activate,
    depthwise_conv,
)
from .norm import CHANNEL_LAYER_NORM, ChannelLayerNorm
from .reparameterize import Reparameterized, reparameterize

__all__ = [
    'CHANNEL_LAYER_NORM',
    'ChannelLayerNorm',
    'ConvNorm',
    'DepthwiseConv2d',
    'FusibleBlock',
    'MultiBranchDWConv',
    'NormConv',
    'Reparameterized',
    'build_norm',
    'convolve_and_activate',
    'depthwise_conv',
    'reparameterize',
]
