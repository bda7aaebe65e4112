"""Running configs; importing this registers the hooks and the optimizer constructor in mmengine."""

from .checkpointing import SafeCheckpointHook, find_checkpoint
from .hooks import ChannelsLastHook, CompileHook, ExactResumeHook, FiniteLossHook, FuseHook
from .labels import LoadCheckedLabels
from .layer_decay import LayerDecayConstructor
from .pictures import SegPicturesHook

__all__ = [
    'ChannelsLastHook',
    'CompileHook',
    'ExactResumeHook',
    'FiniteLossHook',
    'FuseHook',
    'LayerDecayConstructor',
    'LoadCheckedLabels',
    'SafeCheckpointHook',
    'SegPicturesHook',
    'find_checkpoint',
]
