"""FFNet / MetaMixer backbones for OpenMMLab 2.x (arXiv 2406.02021).

Importing this package registers the backbones in mmengine's registry of models and all else in the
scope ``mmffnet``, where mmdet, mmseg and mmpretrain find them.
"""

from . import compat

compat.setup()

from mmffnet_cli.paths import config_path  # noqa: E402

from .checkpoint import load_pretrained  # noqa: E402
from .engine import LayerDecayConstructor  # noqa: E402
from .models import (  # noqa: E402
    AFFNet,
    CASViT,
    FFNet,
    FFNetSeg,
    PoolFormer,
    TransNeXt,
    reparameterize,
)
from .version import __version__  # noqa: E402

__all__ = [
    'AFFNet',
    'CASViT',
    'FFNet',
    'FFNetSeg',
    'LayerDecayConstructor',
    'PoolFormer',
    'TransNeXt',
    '__version__',
    'config_path',
    'load_pretrained',
    'reparameterize',
]
