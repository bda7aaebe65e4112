"""Start a tool without importing the packages that its config does not need."""

import sys
from importlib import import_module

from mmengine.config import Config

from ..config_types import SCOPES
from ..errors import MissingPackageError

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
    if scope not in SCOPES:
        return
    text = repr(cfg.to_dict())
    needed = {scope, *(package for package in SCOPES if package in text)}
    needed |= {package for name, package in _NEED.items() if name in text}
    # imports of these fail as if they were not installed
    hidden = set(SCOPES) - needed - sys.modules.keys()
    for package in hidden:
        sys.modules[package] = None  # type: ignore[assignment]
    try:
        import_module(f'{scope}.models')
    except (ImportError, AssertionError) as error:  # they assert that mmcv's version fits
        raise MissingPackageError(
            f'the config needs {scope}, which cannot be imported ({error}): `mmffnet env` says '
            'what is missing'
        ) from error
    finally:
        for package in hidden:
            del sys.modules[package]
