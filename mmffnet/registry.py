"""The registries of mmffnet: children of mmengine's, with the scope ``mmffnet``.

``dict(type='mmffnet.ChannelLayerNorm')`` is found from the scope of every OpenMMLab package,
without ``custom_imports``. In mmengine's own registries are FFNet, FFNetSeg and FFNetHead alone, so
that a host may give any other name to what it registers itself.
"""

import functools
import warnings
from typing import Any

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry

SCOPE = 'mmffnet'


def _child(name: str, parent: Registry, location: str) -> Registry:
    return Registry(name, parent=parent, scope=SCOPE, locations=[location])


MODELS = _child('model', mmengine_registry.MODELS, 'mmffnet.models')
HOOKS = _child('hook', mmengine_registry.HOOKS, 'mmffnet.engine')
METRICS = _child('metric', mmengine_registry.METRICS, 'mmffnet.engine.fast_coco')
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    'optim_wrapper_constructor', mmengine_registry.OPTIM_WRAPPER_CONSTRUCTORS, 'mmffnet.engine'
)
PARAM_SCHEDULERS = _child(
    'parameter scheduler', mmengine_registry.PARAM_SCHEDULERS, 'mmffnet.engine'
)
TRANSFORMS = _child('transform', mmengine_registry.TRANSFORMS, 'mmffnet.engine')
DATA_SAMPLERS = _child('data sampler', mmengine_registry.DATA_SAMPLERS, 'mmffnet.engine')

#: What version 0.1 had in mmengine's registries and newer versions have in ours
_MOVED = frozenset(
    {
        'AverageBuffersHook',
        'ChannelLayerNorm',
        'ChannelsLastHook',
        'ClassDiceLoss',
        'ClsPicturesHook',
        'CompileHook',
        'ConvFFN',
        'ConvPoolNeck',
        'DistilledClassifier',
        'ExactResumeHook',
        'FFNifiedAttention',
        'FiniteLossHook',
        'FuseHook',
        'LayerDecayConstructor',
        'LoadCheckedLabels',
        'Pooling',
        'RawAndEMAHook',
        'Reparameterized',
        'SafeCheckpointHook',
        'SegPicturesHook',
        'SelfAttention',
        'WarmupCosineLR',
        'WholeCheckpointHook',
    }
)


def accept_moved_names() -> None:
    """Let configs go on naming types as in version 0.1, without their scope.

    An alias in mmengine's registries would keep the host from registering the name. So the lookup
    itself is extended: only a name that nobody has registered is looked up in our registries.
    """
    get = Registry.get
    if hasattr(get, '_accepts_moved_names'):
        return

    @functools.wraps(get)
    def get_moved(self: Registry, key: str) -> Any:
        found = get(self, key)
        ours = self._get_root_registry()._children.get(SCOPE)
        name = key.removeprefix('mmengine.')
        if found is None and name in _MOVED and ours is not None:
            found = get(ours, f'{SCOPE}.{name}')
            if found is not None:
                warnings.warn(
                    f"type='{key}' is deprecated: write type='{SCOPE}.{name}'",
                    FutureWarning,
                    stacklevel=2,
                )
        return found

    get_moved._accepts_moved_names = True  # type: ignore[attr-defined]
    Registry.get = get_moved
    # `in` asks get(), and a host asks whether a name is free
    Registry.__contains__ = lambda self, key: get(self, key) is not None
