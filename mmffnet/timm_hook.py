"""Makes mmffnet's models known to timm, whenever timm is imported, without importing it.

timm has no entry points for models of other packages. A finder at the front of Python's import
path therefore waits for ``timm.models``, and imports `timm_models.py`, which registers, after it.
"""

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class TimmFinder:
    """Meta-path finder that finds ``timm.models`` as Python does, and has it followed by ours."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != 'timm.models':
            return None
        sys.meta_path.remove(TimmFinder)  # type: ignore[arg-type]
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        loader.exec_module = execute_and_register
        return spec


def install() -> None:
    """Registers at once if timm is there already, and else when it comes."""
    if 'timm.models' in sys.modules:
        _register()
    elif TimmFinder not in sys.meta_path:
        sys.meta_path.insert(0, TimmFinder)  # type: ignore[arg-type]


def _register() -> None:
    try:
        importlib.import_module('mmffnet.timm_models')
    except Exception as error:  # of a timm that is too old, or too new: no reason to lose timm
        warnings.warn(f'timm does not get the models of mmffnet: {error}', stacklevel=2)
