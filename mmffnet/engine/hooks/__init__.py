"""Hooks for any training or test; importing this registers them."""

from .averaging import AverageBuffersHook, RawAndEMAHook
from .exact_resume import ExactResumeHook
from .finite_loss import FiniteLossHook
from .pictures import ClsPicturesHook, SegPicturesHook
from .safe_checkpoint import SafeCheckpointHook
from .speed import ChannelsLastHook, CompileHook, CudaGraphHook, FuseHook
from .strict_load import WholeCheckpointHook

__all__ = [
    'AverageBuffersHook',
    'ChannelsLastHook',
    'ClsPicturesHook',
    'CompileHook',
    'CudaGraphHook',
    'ExactResumeHook',
    'FiniteLossHook',
    'FuseHook',
    'RawAndEMAHook',
    'SafeCheckpointHook',
    'SegPicturesHook',
    'WholeCheckpointHook',
]
