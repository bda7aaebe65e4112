"""Text configs turned into lazy ones, in which every type is a class."""

import pprint
from pathlib import Path
from typing import Any

import mmcv.ops
from mmengine import registry
from mmengine.config import Config
from mmengine.config.lazy import LazyObject

from mmffnet.config_types import find_type

_REGISTRIES = [
    registry.MODELS,
    registry.DATASETS,
    registry.DATA_SAMPLERS,
    registry.TRANSFORMS,
    registry.HOOKS,
    registry.LOOPS,
    registry.METRICS,
    registry.OPTIM_WRAPPERS,
    registry.OPTIM_WRAPPER_CONSTRUCTORS,
    registry.OPTIMIZERS,
    registry.PARAM_SCHEDULERS,
    registry.TASK_UTILS,
    registry.VISUALIZERS,
    registry.VISBACKENDS,
    registry.LOG_PROCESSORS,
    registry.WEIGHT_INITIALIZERS,
]


def with_classes(node: Any, scope: str) -> Any:
    """The same config, with classes and functions in the place of the names of all types."""
    if isinstance(node, list | tuple):
        return type(node)(with_classes(item, scope) for item in node)
    if not isinstance(node, dict):
        return node
    new = {k: with_classes(value, scope) for k, value in node.items() if k != '_scope_'}
    if isinstance(new.get('type'), str):
        new['type'] = _find(new['type'], scope)
    return new


def _find(name: str, scope: str) -> Any:
    for one in _REGISTRIES:
        found = find_type(name, one, scope)
        if found is not None:
            return found
    return getattr(mmcv.ops, name)


def write_lazy(cfg: Config, path: Path) -> str:
    """Writes a text config as a file of the lazy kind, without a default scope; returns its path.

    Classes are imported from the modules that define them.
    """
    scope = cfg.default_scope
    content = with_classes(cfg.to_dict(), scope)
    for key in ('default_scope', 'custom_imports'):
        content.pop(key, None)
    imports: dict[str, str] = {}

    def name(kind: Any) -> Any:
        alias = f'{kind.__module__}.{kind.__name__}'.replace('.', '_')
        imports[alias] = f'from {kind.__module__} import {kind.__name__} as {alias}'
        return LazyObject(kind.__module__, alias)  # which is printed as its name

    def named(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: name(v) if k == 'type' else named(v) for k, v in node.items()}
        return type(node)(map(named, node)) if isinstance(node, list | tuple) else node

    content = named(content)
    lines = [f'{key} = {pprint.pformat(value)}' for key, value in content.items()]
    path.write_text('\n'.join([*imports.values(), 'default_scope = None', *lines, '']))
    return str(path)
