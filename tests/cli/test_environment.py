"""The report on what is installed."""

import importlib
import re
import sys

import mmcv
import pytest
import torch

from mmffnet.ops import depthwise, mmcv_ext
from mmffnet_cli import environment

NATIVE = environment.environment()['ops'] == 'mmcv (native)'


def test_environment():
    report = environment.environment()
    assert list(report['packages']) == [
        *('python', 'platform', 'torch', 'torchvision', 'cuda', 'devices'),
        *('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'numpy', 'opencv'),
        *('timm', 'triton', 'onnxruntime', 'openvino'),
    ]
    assert report['packages']['torch'] == torch.__version__
    assert report['packages']['mmcv'] == mmcv.__version__
    assert report['packages']['opencv'] == importlib.import_module('cv2').__version__
    assert report['ops'] in ('mmcv (native)', 'torchvision (mmffnet)')
    assert report['kernels'].startswith('plain')


@pytest.mark.parametrize(
    ('installed', 'capability', 'expected'),
    [
        (True, (9, 0), 'plain, repeat, triton (MMFFNET_KERNELS=auto)'),
        (True, (6, 1), 'compute capability 7.0 are needed, not Triton N and 6.1'),
        (False, (9, 0), '; no triton, which is not installed'),
        (True, None, '; no triton without a GPU'),
    ],
)
def test_line_about_kernels(monkeypatch, installed, capability, expected):
    monkeypatch.delenv('MMFFNET_KERNELS', raising=False)
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    monkeypatch.setattr(depthwise, 'has_depthwise_kernels', lambda dtype: False)
    monkeypatch.setattr(depthwise, 'has_triton_package', lambda: installed)
    monkeypatch.setattr(depthwise, 'has_triton', lambda: installed and (capability or (0,)) >= (7,))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: capability)
    depthwise._find_triton.cache_clear()
    line = depthwise.describe_kernels()
    depthwise._find_triton.cache_clear()
    assert re.sub(r'Triton \d+\.\d+\.\d+', 'Triton N', line).endswith(expected)


def test_mistake_in_the_environment_is_a_problem(monkeypatch):
    monkeypatch.setenv('MMFFNET_KERNELS', 'fast')
    assert any('MMFFNET_KERNELS' in text for text in environment.environment()['problems'])


def test_missing_packages_are_problems(monkeypatch):
    for name in ('mmdet', 'mmcv', 'pkg_resources', 'mmcv._ext', 'ftfy'):
        monkeypatch.setitem(sys.modules, name, None)
    report = environment.environment()
    assert report['ops'] == 'none'
    assert report['packages']['mmdet'] is None
    text = '\n'.join(report['problems'])
    assert 'mmdet is not installed: `pip install mmdet`' in text
    assert 'mmffnet[' not in text  # nothing of that name is on the package index
    assert 'mmcv is not installed: `pip install mmcv-lite==2.1.0`' in text
    assert "`pip install 'setuptools<82'`" in text
    assert ('ftfy is not installed' in text) == (report['packages']['mmseg'] is not None)


def write_package(folder, name, version, source):
    """A package as pip leaves it behind."""
    (folder / name).mkdir()
    for file, text in source.items():
        (folder / name / file).parent.mkdir(exist_ok=True)
        (folder / name / file).write_text(text)
    info = folder / f'onedl_{name}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(
        f'Metadata-Version: 2.1\nName: onedl-{name}\nVersion: {version}\n'
    )


def test_version_that_a_package_takes_from_its_metadata(tmp_path, monkeypatch):
    source = "from importlib.metadata import version\n\n__version__ = version('onedl-mmpretrain')\n"
    write_package(tmp_path, 'mmpretrain', '1.3.6', {'__init__.py': '', 'version.py': source})
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmpretrain']:
        monkeypatch.delitem(sys.modules, name)
    assert environment._version('mmpretrain') == '1.3.6'


@pytest.mark.parametrize('needed', [True, False])
def test_pkg_resources_is_asked_for_only_where_mmengine_imports_it(needed, tmp_path, monkeypatch):
    source = 'import pkg_resources' if needed else 'import importlib.metadata'
    write_package(
        tmp_path, 'mmengine', '0.11.0', {'__init__.py': '', 'utils/package_utils.py': source}
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)
    monkeypatch.delitem(sys.modules, 'mmengine')
    names = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
    problems = environment._missing(dict.fromkeys(names, '1'))
    assert any('pkg_resources' in text for text in problems) == needed


def test_broken_torchvision_is_a_problem(monkeypatch):
    if NATIVE:
        pytest.skip('the full mmcv does not need torchvision')
    mmcv_ext.torchvision_ops.cache_clear()
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    report = environment.environment()
    assert report['ops'] == 'none'
    assert any('Install the torchvision release made for' in p for p in report['problems'])


def test_package_that_cannot_be_imported_is_a_problem(tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmdet']:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / 'mmdet').mkdir()
    (tmp_path / 'mmdet' / '__init__.py').write_text("raise OSError('libGL.so.1 is not there')")
    monkeypatch.syspath_prepend(str(tmp_path))
    problems = environment.environment()['problems']
    assert problems == ['mmdet cannot be imported: OSError: libGL.so.1 is not there']


def test_mixed_families_are_problems(tmp_path, monkeypatch):
    assert environment._mixed_up() == []
    for name in ('onedl_mmcv', 'mmengine', 'mmcv', 'mmcv_lite'):
        (tmp_path / f'{name}-2.1.0.dist-info').mkdir()
        metadata = f'Metadata-Version: 2.1\nName: {name.replace("_", "-")}\nVersion: 2.1.0\n'
        (tmp_path / f'{name}-2.1.0.dist-info' / 'METADATA').write_text(metadata)
    monkeypatch.syspath_prepend(str(tmp_path))
    mixed, twice = environment._mixed_up()
    assert 'mmengine' in mixed
    assert 'mixed with the onedl fork (onedl-mmcv)' in mixed
    assert twice.startswith('mmcv and mmcv-lite are both installed')


def test_too_new_mmcv_is_a_problem():
    packages = environment.environment()['packages']
    assert environment._too_new(packages) == []
    refusing = {text.split()[0] for text in environment._too_new({**packages, 'mmcv': '2.2.0'})}
    assert refusing == {name for name in ('mmdet', 'mmseg') if packages[name]}
