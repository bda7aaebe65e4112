"""Running configs; importing this registers the hooks and the optimizer constructor in mmengine."""

from .checkpointing import SafeCheckpointHook, find_checkpoint
from .hooks import (
    ChannelsLastHook,
    CompileHook,
    ExactResumeHook,
    FiniteLossHook,
    FuseHook,
    WholeCheckpointHook,
)
from .imagenet import AverageBuffersHook, RawAndEMAHook, WarmupCosineLR
from .labels import LoadCheckedLabels
from .layer_decay import LayerDecayConstructor
from .pictures import ClsPicturesHook, SegPicturesHook

__all__ = [
    'AverageBuffersHook',
    'ChannelsLastHook',
    'ClsPicturesHook',
    'CompileHook',
    'ExactResumeHook',
    'FiniteLossHook',
    'FuseHook',
    'LayerDecayConstructor',
    'LoadCheckedLabels',
    'RawAndEMAHook',
    'SafeCheckpointHook',
    'SegPicturesHook',
    'WarmupCosineLR',
    'WholeCheckpointHook',
    'find_checkpoint',
]
