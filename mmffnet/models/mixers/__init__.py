"""Token mixers and channel mixers, the exchangeable parts of a block.

A mixer maps a feature map ``(N, C, H, W)`` to one of the same shape; the block around it adds norm,
layer scale, drop path and the residual connection. Any module that a registry of models holds
serves: it is built with ``channels`` and the arguments of its config, and with the network's
``norm_cfg`` and ``act_cfg`` if its signature names them. A name without a scope means a mixer of
ours if there is one of that name.
"""

from .aggregated import AggregatedAttention, CosineAttention
from .attention import SelfAttention
from .build import build_act, build_mixer
from .conv_glu import ConvGLU
from .meta import ConvFFN, DepthwiseConv, FFNifiedAttention, MetaMixer, PointwiseConv
from .pooling import Pooling

__all__ = [
    'AggregatedAttention',
    'ConvFFN',
    'ConvGLU',
    'CosineAttention',
    'DepthwiseConv',
    'FFNifiedAttention',
    'MetaMixer',
    'PointwiseConv',
    'Pooling',
    'SelfAttention',
    'build_act',
    'build_mixer',
]
