"""Lets ``mmcv.ops`` work without mmcv's compiled extension, whoever imports it first.

A ``.pth`` file beside the installed package imports this module when Python starts, so mmdet or
mmseg need not know of mmffnet; ``import mmffnet`` does the same. It therefore imports nothing
but ``sys``, and does nothing until ``mmcv._ext`` is asked for and nobody else has it.
"""

import sys


class NativeOpsFinder:
    """Meta-path finder that provides ``mmcv._ext`` from ``mmffnet/ops/mmcv_ext.py``."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != 'mmcv._ext':
            return None
        from importlib.util import find_spec, spec_from_file_location
        from pathlib import Path

        package = find_spec('mmffnet')
        if package is None or package.origin is None:
            return None
        # By file, not by import: mmffnet itself may need the modules that are being imported now.
        return spec_from_file_location(name, Path(package.origin).parent / 'ops' / 'mmcv_ext.py')


def install():
    """Put the finder behind all others, so that a real extension always comes first."""
    if NativeOpsFinder not in sys.meta_path:
        sys.meta_path.append(NativeOpsFinder)


install()
