"""Token mixers and channel mixers, the exchangeable parts of a block.

A mixer maps a feature map ``(N, C, H, W)`` to one of the same shape; the block around it adds norm,
layer scale, drop path and the residual connection. Any module that a registry of models holds
serves: it is built with ``channels`` and the arguments of its config, and with the network's
``norm_cfg`` and ``act_cfg`` if its signature names them. A name without a scope means a mixer of
ours if there is one of that name.
"""

from .additive import AdditiveAttention
from .aggregated import AggregatedAttention, CosineAttention
from .attention import SelfAttention
from .build import build_act, build_mixer
from .conv_glu import ConvGLU
from .frequency import AdaptiveFrequencyFilter
from .gating import GatingMixer
from .inverted_residual import InvertedResidual
from .meta import MLP, ConvFFN, DepthwiseConv, FFNifiedAttention, MetaMixer, PointwiseConv
from .pooling import Pooling
from .shuffle import ShuffleMixer
from .spectrum import SpectrumMixer

__all__ = [
    'MLP',
    'AdaptiveFrequencyFilter',
    'AdditiveAttention',
    'AggregatedAttention',
    'ConvFFN',
    'ConvGLU',
    'CosineAttention',
    'DepthwiseConv',
    'FFNifiedAttention',
    'GatingMixer',
    'InvertedResidual',
    'MetaMixer',
    'PointwiseConv',
    'Pooling',
    'SelfAttention',
    'ShuffleMixer',
    'SpectrumMixer',
    'build_act',
    'build_mixer',
]
