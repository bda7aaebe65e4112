"""Start a tool without importing the packages that its config does not need."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from mmengine.config import Config

from ..config_types import SCOPES

#: Types that other packages than their own are needed for
_NEED = {
    'ReID': 'mmpretrain',
    'MaskFormerHead': 'mmdet',
    'Mask2FormerHead': 'mmdet',
    'ResLayerExtraNorm': 'mmdet',
}


def import_models(cfg: Config) -> None:
    """Import the models of a config's package, without others that the config does not need.

    mmdet, mmseg and mmpretrain import one another for a few types, which takes two seconds. These
    types cannot be used in the process any more, so this is for processes that run one config.
    """
    scope = cfg.get('default_scope')
    if scope not in SCOPES or find_spec(scope) is None:
        return
    text = repr(cfg.to_dict())
    needed = {scope, *(package for package in SCOPES if package in text)}
    needed |= {package for name, package in _NEED.items() if name in text}
    with _hidden(set(SCOPES) - needed):
        import_module(f'{scope}.models')


@contextmanager
def _hidden(packages: set[str]) -> Iterator[None]:
    """Let imports of packages fail as if they were not installed, unless they were imported."""
    packages = packages - sys.modules.keys()
    for package in packages:
        sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for package in packages:
            del sys.modules[package]
