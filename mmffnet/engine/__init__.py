"""Running configs; importing this registers the hooks and the optimizer constructor in mmengine."""

from .checkpointing import SafeCheckpointHook, find_checkpoint
from .hooks import CompileHook, ExactResumeHook, FiniteLossHook, FuseHook
from .layer_decay import LayerDecayConstructor

__all__ = [
    'CompileHook',
    'ExactResumeHook',
    'FiniteLossHook',
    'FuseHook',
    'LayerDecayConstructor',
    'SafeCheckpointHook',
    'find_checkpoint',
]
