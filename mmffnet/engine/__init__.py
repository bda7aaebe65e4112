"""Running configs; importing this registers the hooks and the optimizer constructor in mmengine."""

from ..datasets.labels import LoadCheckedLabels
from . import hooks
from .batch_sizes import MultiSizeBatchSampler, OfBatchSize
from .hooks import *  # noqa: F403
from .layer_decay import LayerDecayConstructor
from .resume import find_checkpoint
from .schedules import WarmupCosineLR

__all__ = [
    *hooks.__all__,
    'LayerDecayConstructor',
    'LoadCheckedLabels',
    'MultiSizeBatchSampler',
    'OfBatchSize',
    'WarmupCosineLR',
    'find_checkpoint',
]
