"""Configs and tools are found by name, and other configs can inherit from ours."""

from pathlib import Path

import pytest
from mmengine.config import Config

import mmffnet
from mmffnet_cli import paths

DETECTOR = 'detection/maskrcnn_ffnet2_coco.py'


@pytest.mark.parametrize('name', [DETECTOR, DETECTOR.removesuffix('.py')])
def test_config_path(name):
    path = Path(mmffnet.config_path(name))
    assert path.is_absolute()
    assert path.is_file()
    assert path.as_posix().endswith(f'/configs/{DETECTOR}')


@pytest.mark.parametrize(
    ('name', 'near'),
    [
        ('detection/maskrcn_ffnet2_coco', DETECTOR),  # mistyped
        ('maskrcnn_ffnet2_coco.py', DETECTOR),  # without its folder
        ('segmentation/maskrcnn_ffnet2_coco', DETECTOR),  # in the wrong folder
    ],
)
def test_unknown_config_names_near_ones(name, near):
    with pytest.raises(FileNotFoundError, match='has no config') as error:
        paths.config_path(name)
    assert f'did you mean {near}' in str(error.value)


def test_unknown_config_without_near_ones():
    with pytest.raises(FileNotFoundError, match='see `mmffnet configs`'):
        paths.config_path('zzz')


def test_a_config_outside_configs_is_not_reachable():
    with pytest.raises(FileNotFoundError, match='has no config'):
        paths.config_path('../setup')


def test_config_names():
    names = paths.config_names()
    assert DETECTOR in names
    assert names == sorted(set(names))
    assert not any('_base_' in name for name in names)
    assert all(Path(paths.config_path(name)).is_file() for name in names)


def test_tools_path():
    assert Path(paths.tools_path('train.py')).is_file()
    with pytest.raises(FileNotFoundError, match=r"no tool 'tain\.py': it has .*train\.py"):
        paths.tools_path('tain.py')


@pytest.mark.parametrize(
    'base',
    [
        f"__import__('mmffnet').config_path('{DETECTOR}')",
        f"[__import__('mmffnet').config_path('{DETECTOR}')]",
        repr(paths.config_path(DETECTOR)),  # an absolute path written out
    ],
)
def test_a_config_elsewhere_inherits(tmp_path, base):
    pytest.importorskip('mmdet')
    mine = tmp_path / 'mine.py'
    mine.write_text(f"_base_ = {base}\nmodel = dict(backbone=dict(arch='ffnet1'))\n")
    cfg = Config.fromfile(mine)
    assert cfg.model.type == 'MaskRCNN'  # from mmdet, through ours
    assert cfg.model.backbone.type == 'FFNet'  # from ours
    assert cfg.model.backbone.arch == 'ffnet1'  # from the new one


def test_an_import_in_front_of_base_does_not_help(tmp_path):
    """Why the docstring of `config_path` insists on `__import__`."""
    mine = tmp_path / 'mine.py'
    mine.write_text(f"from mmffnet import config_path\n_base_ = config_path('{DETECTOR}')\n")
    with pytest.raises(NameError, match='config_path'):
        Config.fromfile(mine, lazy_import=False)
