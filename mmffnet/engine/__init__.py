"""Running configs; importing this registers the hooks and the optimizer constructor in mmengine."""

from ..datasets.labels import LoadCheckedLabels
from .hooks import (
    AverageBuffersHook,
    ChannelsLastHook,
    ClsPicturesHook,
    CompileHook,
    ExactResumeHook,
    FiniteLossHook,
    FuseHook,
    RawAndEMAHook,
    SafeCheckpointHook,
    SegPicturesHook,
    WholeCheckpointHook,
)
from .layer_decay import LayerDecayConstructor
from .resume import find_checkpoint
from .schedules import WarmupCosineLR

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
