"""Blocks and backbones; importing this registers them in mmengine's MODELS."""

from typing import Any

from mmengine.registry import MODELS
from torch import nn

from .ffnet import FFNet, FFNetSeg
from .metamixer import MetaMixer, MetaMixerBlock
from .mixers import ConvFFN, FFNifiedAttention, Pooling, SelfAttention
from .norm import ChannelLayerNorm
from .reparam import Reparameterized, reparameterize

__all__ = [
    'ChannelLayerNorm',
    'ConvFFN',
    'FFNet',
    'FFNetSeg',
    'FFNifiedAttention',
    'MetaMixer',
    'MetaMixerBlock',
    'Pooling',
    'Reparameterized',
    'SelfAttention',
    'reparameterize',
]


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
