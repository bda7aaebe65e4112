"""What the ``type`` of a config stands for.

In text configs it is a name, alone ('Resize'), with a scope ('mmseg.Resize') or, where mmengine
wrote down a lazy config, with its module ('mmcv.transforms.Resize'). In lazy (pure-Python) configs,
and in those made in Python, it is the class or function itself.
"""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmengine.config.config
from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import MODELS, Registry

#: The packages whose configs the tools take
SCOPES = ('mmdet', 'mmseg', 'mmpretrain')


def type_name(kind: Any) -> str:
    """Return the bare name of a ``type``, without scope and module; '' for None.

    It is what to go by where the name says enough. Classes of different packages may share one:
    see :func:`find_type`.
    """
    named = inspect.isclass(kind) or inspect.isroutine(kind)
    return (kind.__name__ if named else str(kind or '')).rpartition('.')[2]


def find_type(kind: Any, registry: Registry = MODELS, scope: str | None = None) -> Any:
    """Return the class or function that a ``type`` stands for, None if it is not registered.

    ``scope`` is the one whose registry comes first, None for the default scope.
    """
    if isinstance(kind, LazyObject | LazyAttr):
        return kind.build()
    if not isinstance(kind, str):
        return kind
    # the scope's registry first: modules may be registered in mmdet's, say
    with registry.switch_scope_and_registry(scope) as found:
        return found.get(kind)


def find_scope(cfg: Config) -> str | None:
    """Return a config's ``default_scope``, or else the package that its model's ``type`` is from.

    The lazy configs of the three packages have none, as their classes need none.
    """
    scope = cfg.get('default_scope')
    if scope is not None:
        return scope
    kind = (cfg.get('model') or {}).get('type')
    module = kind if isinstance(kind, str) else getattr(kind, '__module__', '')
    package = module.partition('.')[0]
    return package if package in SCOPES else None


@contextmanager
def packages_by_path() -> Iterator[None]:
    """Within it, configs of packages (``mmdet::...``) are looked for under their names first.

    mmengine reads all metafiles of the package before it does, a hundred, and asks anew which
    packages there are, for each of the configs that one inherits from: a second or more.
    """
    config = mmengine.config.config
    search, is_installed = config._get_external_cfg_path, config.is_installed

    def find(folder: str, name: str) -> str:
        path = Path(folder, '.mim', 'configs', name)
        return str(path) if path.is_file() else search(folder, name)

    config._get_external_cfg_path, config.is_installed = find, functools.cache(is_installed)
    try:
        yield
    finally:
        config._get_external_cfg_path, config.is_installed = search, is_installed
