"""Blocks and backbones; importing this registers them."""

from typing import Any

from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from ..registry import MODELS
from .backbone import MixerBackbone
from .block import MixerBlock
from .classifier import ConvPoolNeck
from .ffnet import FFNet, FFNetSeg
from .layers import ChannelLayerNorm, Reparameterized, reparameterize
from .losses import ClassDiceLoss
from .mixers import ConvFFN, FFNifiedAttention, MetaMixer, Pooling, SelfAttention
from .transnext import TransNeXt

__all__ = [
    'ChannelLayerNorm',
    'ClassDiceLoss',
    'ConvFFN',
    'ConvPoolNeck',
    'FFNet',
    'FFNetSeg',
    'FFNifiedAttention',
    'MetaMixer',
    'MixerBackbone',
    'MixerBlock',
    'Pooling',
    'Reparameterized',
    'SelfAttention',
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
