"""Blocks and backbones; importing this registers them."""

from typing import Any

from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from ..registry import MODELS
from .affnet import AFFNet
from .backbone import MixerBackbone
from .block import MixerBlock
from .casvit import CASViT
from .classifier import ConvPoolNeck
from .ffnet import FFNet, FFNetSeg
from .layers import ChannelLayerNorm, Reparameterized, reparameterize
from .losses import ClassDiceLoss
from .mixers import (
    MLP,
    AdaptiveFrequencyFilter,
    AdditiveAttention,
    AggregatedAttention,
    ConvFFN,
    ConvGLU,
    CosineAttention,
    FFNifiedAttention,
    GatingMixer,
    InvertedResidual,
    MetaMixer,
    Pooling,
    SelfAttention,
    ShuffleMixer,
    SpectrumMixer,
)
from .poolformer import PoolFormer
from .transnext import TransNeXt

__all__ = [
    'MLP',
    'AFFNet',
    'AdaptiveFrequencyFilter',
    'AdditiveAttention',
    'AggregatedAttention',
    'CASViT',
    'ChannelLayerNorm',
    'ClassDiceLoss',
    'ConvFFN',
    'ConvGLU',
    'ConvPoolNeck',
    'CosineAttention',
    'FFNet',
    'FFNetSeg',
    'FFNifiedAttention',
    'GatingMixer',
    'InvertedResidual',
    'MetaMixer',
    'MixerBackbone',
    'MixerBlock',
    'PoolFormer',
    'Pooling',
    'Reparameterized',
    'SelfAttention',
    'ShuffleMixer',
    'SpectrumMixer',
    'TransNeXt',
    'reparameterize',
]


@MMENGINE_MODELS.register_module(name='FFNetHead')
@MODELS.register_module(name='FFNetHead')
def _build_ffnet_head(**kwargs: Any) -> nn.Module:
    """Builds mmseg's FFNetHead, importing it (and mmseg) no sooner than a config asks for it."""
    try:
        from .ffnet_head import FFNetHead
    except ImportError as error:
        raise ImportError(
            f'FFNetHead is a decode head for mmsegmentation, which cannot be imported: {error}'
        ) from error
    return FFNetHead(**kwargs)


@MODELS.register_module(name='DistilledClassifier')
def _build_distilled_classifier(**kwargs: Any) -> nn.Module:
    """Builds DistilledClassifier, importing it (and mmpretrain) no sooner than a config asks."""
    try:
        from .distillation import DistilledClassifier
    except ImportError as error:
        raise ImportError(
            f'DistilledClassifier is a classifier for mmpretrain, which cannot be imported: {error}'
        ) from error
    return DistilledClassifier(**kwargs)
