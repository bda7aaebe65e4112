"""Which OpenMMLab packages are imported for a config."""

import json
import sys

import pytest
from mmengine.config import Config

from mmffnet.engine.imports import import_models

SCRIPT = """
import json, sys
from mmengine.registry import MODELS, DefaultScope
from mmffnet.engine.imports import import_models
from mmffnet.engine.runner import read_config

cfg = read_config(config, options)
import_models(cfg)
with DefaultScope.overwrite_default_scope(cfg.default_scope):
    MODELS.build(cfg.model)
packages = [name for name in ('mmdet', 'mmpretrain', 'mmseg') if name in sys.modules]
print(json.dumps(packages))
"""
REID = """
default_scope = 'mmdet'
model = dict(
    type='BaseReID',
    data_preprocessor=dict(type='ReIDDataPreprocessor'),
    backbone=dict(type='FFNet', arch='nano', out_indices=(3,)),
    head=dict(
        type='LinearReIDHead',
        num_fcs=1,
        in_channels=256,
        fc_channels=8,
        out_channels=8,
        loss_triplet=dict(type='TripletLoss'),
    ),
)
"""


@pytest.mark.parametrize(
    ('config', 'options', 'packages'),
    [
        ('detection/maskrcnn_nano_shapes', [], ['mmdet']),
        ('segmentation/semfpn_nano_shapes', [], ['mmseg']),
        ('classification/ffnet_nano_shapes', [], ['mmpretrain']),
        # named, and needed by a class of the scope
        ('segmentation/semfpn_nano_shapes', ['model.neck.type=mmdet.FPN'], ['mmdet', 'mmseg']),
        ('reid.py', [], ['mmdet', 'mmpretrain']),
    ],
)
@pytest.mark.slow
def test_packages_of_a_config(toy, tmp_path, monkeypatch, config, options, packages):
    for name in ('mmdet', 'mmpretrain', 'mmseg'):
        pytest.importorskip(f'{name}.models')
    (tmp_path / 'reid.py').write_text(REID)
    monkeypatch.chdir(tmp_path)
    known = dict(config=config, options=options)
    child = toy.Child(tmp_path / 'log', SCRIPT, known, function=toy.run_code)
    assert child.wait() == 0, child.text
    assert json.loads(child.text.splitlines()[-1]) == packages


def test_an_imported_package_stays():
    mmdet = pytest.importorskip('mmdet.models')
    pytest.importorskip('mmseg.models')
    import_models(Config(dict(default_scope='mmseg', model=dict(type='EncoderDecoder'))))
    assert sys.modules['mmdet.models'] is mmdet


@pytest.mark.parametrize('scope', [None, 'mmengine', 'mmffnet'])
def test_other_scopes(scope):
    import_models(Config(dict(default_scope=scope)))
