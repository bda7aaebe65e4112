"""What is installed, which operators are in use, and what is missing or mixed up.

Imports the standard library only: it has to speak where torch or mmengine cannot be imported.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import platform
import re
import sys
from pathlib import Path
from typing import Any

_MODULES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'numpy')
_COMPANY = ('timm', 'triton', 'onnxruntime', 'openvino')
# The optional packages, by what installs them: the official ones and those of the onedl fork.
_OPTIONAL = {
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation ftfy regex', 'onedl-mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}


def environment(quick: bool = False) -> dict[str, Any]:
    """Looks at what is installed; if ``quick``, without importing any of it.

    Returns:
        dict: ``packages`` (name -> version or None), ``ops`` ('mmcv (native)',
        'torchvision (mmffnet)' or 'none'), ``kernels`` (implementations of depthwise convolutions)
        and ``problems`` (sentences that say what to do).
    """
    versions = {module: _version(module) for module in _MODULES}
    packages: dict[str, str | None] = {
        'python': platform.python_version(),
        'platform': platform.platform(),
        'torch': versions['torch'],
        'torchvision': versions['torchvision'],
    }
    problems: list[str] = []
    if not quick:
        packages['cuda'], packages['devices'], problems = _torch()
    packages |= {**versions, 'opencv': _version('cv2')}
    packages |= {module: _version(module) for module in _COMPANY}
    ops, kernels = 'none', ''
    if not quick and not problems and packages['mmengine'] and packages['mmcv']:
        ops, problems = _ops()
    if ops != 'none':
        try:
            kernels = importlib.import_module('mmffnet.ops.depthwise').describe_kernels()
        except ValueError as error:
            problems = [f'{error}.']
    problems += _missing(packages) + _mixed_up() + _too_new(packages)
    if ops != 'none':  # else what is wrong below would be said again of each
        problems += _broken(packages, problems)
    return {'packages': packages, 'ops': ops, 'kernels': kernels, 'problems': problems}


def _torch() -> tuple[str | None, str | None, list[str]]:
    """CUDA version and devices of torch, and what keeps it from being imported."""
    if importlib.util.find_spec('torch') is None:
        return None, None, ['torch is not installed: see https://pytorch.org for the right build.']
    try:
        import torch
    except Exception as error:  # a library that is not there, for example
        return None, None, [f'torch cannot be imported: {type(error).__name__}: {error}']
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return torch.version.cuda, ', '.join(names) or 'cpu', []


def _source(module: str, *files: str) -> str:
    """Text of the first of these files of a package, without importing it; '' if none is there."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ''
    for file in files:
        path = Path(spec.origin).parent / file
        if path.is_file():
            return path.read_text(encoding='utf-8')
    return ''


def _version(module: str) -> str | None:
    """Version of a package, read without importing it; None if it is not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    if hasattr(sys.modules.get(module), '__version__'):
        return str(sys.modules[module].__version__)
    found = re.search(
        r'^(?:__version__|version|opencv_version)\b[^\'"]*[\'"]([^\'"]+)',
        _source(module, 'version.py', '__init__.py'),
        re.MULTILINE,
    )
    if found and found[1][0].isdigit():
        return found[1]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        # the name in importlib.metadata.version('...'), or no version at all
        return importlib.metadata.version(found[1] if found else module)
    return 'unknown'


def _ops() -> tuple[str, list[str]]:
    """Which operators stand behind mmcv.ops, and what is wrong with them."""
    try:
        from mmffnet.ops import mmcv_ext
    except Exception as error:  # whatever is wrong in mmengine, mmcv or below
        return 'none', [f'mmffnet cannot be imported: {type(error).__name__}: {error}']

    spec = importlib.util.find_spec('mmcv._ext') if importlib.util.find_spec('mmcv') else None
    if spec is None:
        return 'none', []
    if not spec.origin or Path(spec.origin).name == Path(mmcv_ext.__file__).name:
        try:
            mmcv_ext.torchvision_ops()
        except RuntimeError as error:
            return 'none', [str(error)]
        return 'torchvision (mmffnet)', []
    try:
        importlib.import_module('mmcv._ext')
    except ImportError as error:
        return 'none', [
            f"mmcv's compiled operators do not load ({error}): mmcv was built for another torch. "
            'Build it again, or replace it by mmcv-lite to use the operators of torchvision.'
        ]
    return 'mmcv (native)', []


def _broken(packages: dict[str, str | None], known: list[str]) -> list[str]:
    """Packages that are installed and cannot be imported, because of a library for example."""
    problems = []
    for name in ('cv2', *(name for name in _OPTIONAL if packages[name])):
        if any(text.startswith(f'{name} ') for text in known):
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # anything can go wrong in there
            text = str(error).strip().partition('\n')[0]
            problems.append(f'{name} cannot be imported: {type(error).__name__}: {text}')
    return problems


def _missing(packages: dict[str, str | None]) -> list[str]:
    fork = any(name.startswith('onedl-') for name in _installed())
    problems = [
        f'{name} is not installed: `pip install {wanted[fork]}` if you need it.'
        for name, wanted in _OPTIONAL.items()
        if packages[name] is None
    ]
    for name, wanted in (('mmengine', 'mmengine'), ('mmcv', 'mmcv-lite==2.1.0')):
        if packages[name] is None:
            wanted = f'onedl-{name}' if fork else wanted
            problems.append(f'{name} is not installed: `pip install {wanted}`.')
    # mmengine 0.11 and the fork do without it
    needed = 'import pkg_resources' in _source('mmengine', 'utils/package_utils.py')
    if needed and importlib.util.find_spec('pkg_resources') is None:
        problems.append(
            'pkg_resources is missing, which mmengine needs to find the configs of mmdet and '
            "mmseg: `pip install 'setuptools<82'`."
        )
    if packages['mmseg']:
        problems += [
            f'{name} is not installed, but mmseg imports it: `pip install {name}`.'
            for name in ('ftfy', 'regex')
            if importlib.util.find_spec(name) is None
        ]
    return problems


def _installed() -> set[str]:
    """Names of all distributions."""
    return {
        (dist.name or '').lower().replace('_', '-') for dist in importlib.metadata.distributions()
    }


def _mixed_up() -> list[str]:
    """Distributions that overwrite each other's files."""
    installed = _installed()
    official = installed & {
        *('mmengine', 'mmcv', 'mmcv-full', 'mmcv-lite', 'mmdet', 'mmsegmentation', 'mmpretrain')
    }
    fork = {name for name in installed if name.startswith('onedl-mm')}
    problems = []
    if official and fork:
        problems.append(
            f'official packages ({", ".join(sorted(official))}) are mixed with the onedl fork '
            f'({", ".join(sorted(fork))}), and both write the same folders: uninstall all of '
            'them, then install one family.'
        )
    mmcv = sorted(official & {'mmcv', 'mmcv-full', 'mmcv-lite'})
    if len(mmcv) > 1:
        problems.append(
            f'{" and ".join(mmcv)} are both installed and write the same folder: uninstall both, '
            'then install one.'
        )
    return problems


def _too_new(packages: dict[str, str | None]) -> list[str]:
    """Packages that refuse the installed mmcv, by the limit in their own source."""
    problems = []
    for name in _OPTIONAL:
        limit = re.search(
            r'^mmcv_max\w*\s*=\s*[\'"]([^\'"]+)',
            _source(name, '__init__.py') if packages[name] else '',
            re.MULTILINE | re.IGNORECASE,
        )
        mmcv = packages['mmcv']
        if limit and mmcv and _numbers(mmcv) >= _numbers(limit[1]):
            problems.append(
                f'{name} {packages[name]} refuses mmcv {mmcv} (it wants less than {limit[1]}): '
                '`pip install mmcv-lite==2.1.0`.'
            )
    return problems


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r'\d+', version)][:3]
