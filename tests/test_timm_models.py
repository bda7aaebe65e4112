"""Our networks as models of timm: found without being asked, same weights, same outputs."""

import subprocess
import sys

import official_reference as official
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from reference_numbers import LIMITS, deviation, load

from mmffnet import timm_hook
from mmffnet.checkpoint import OFFICIAL_WEIGHTS, official_url
from mmffnet.engine import runner

timm = pytest.importorskip('timm')
LIMIT = LIMITS['float64']


def test_it_is_there_as_soon_as_timm_is():
    code = (
        'import sys, mmffnet\n'
        'assert not {"timm", "mmffnet.timm_models"} & set(sys.modules)\n'
        'import timm\n'
        'print(timm.create_model("mmffnet_nano", features_only=True).feature_info.channels())'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout == '[32, 64, 128, 256]\n', done.stderr


def test_it_is_there_if_timm_came_first(monkeypatch):
    monkeypatch.delitem(sys.modules, 'mmffnet.timm_models')
    with pytest.warns(UserWarning, match='Overwriting mmffnet_nano in registry'):
        timm_hook.install()
    assert timm_hook.TimmFinder not in sys.meta_path
    assert timm.models.model_entrypoint('mmffnet_nano').__module__ == 'mmffnet.timm_models'


def test_a_timm_that_does_not_fit_is_still_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, 'mmffnet.timm_models')
    monkeypatch.delattr(timm.models, 'build_model_with_cfg')
    with pytest.warns(UserWarning, match='timm does not get the models of mmffnet'):
        timm_hook.install()


def test_names_and_weights():
    found = timm.list_models('mmffnet_*')
    assert found == [f'mmffnet_{name}' for name in ('ffnet1', 'ffnet2', 'ffnet3', 'ffnet4', 'nano')]
    tags = timm.list_models('mmffnet_*', pretrained=True)
    urls = {timm.get_pretrained_cfg(tag).url for tag in tags}
    classifiers = [n for n in OFFICIAL_WEIGHTS if n[:5] == 'ffnet' and n[5].isdigit()]
    assert urls == {official_url(name) for name in classifiers} and len(urls) == len(tags)
    cfg = timm.get_pretrained_cfg('mmffnet_ffnet2')
    assert cfg.url == official_url('ffnet2') and (cfg.input_size, cfg.crop_pct) == (
        (3, 256, 256),
        0.9,
    )
    assert timm.get_pretrained_cfg('mmffnet_ffnet4').crop_pct == 1.0


@pytest.fixture(scope='module')
def official_file(tmp_path_factory):
    weights = official.fill(official.official_keys('ffnet_1', 'cls'))
    path = tmp_path_factory.mktemp('official') / 'ffnet_1.pth.tar'
    torch.save({'state_dict': weights, 'epoch': 300}, path)
    return str(path), weights


def create(name, path=None, **kwargs):
    overlay = dict(file=path) if path else None
    return timm.create_model(
        f'mmffnet_{name}', pretrained=bool(path), pretrained_cfg_overlay=overlay, **kwargs
    ).eval()


@torch.no_grad()
def test_official_logits(official_file):
    model = create('ffnet1', official_file[0]).double()
    model.load_state_dict(official_file[1])  # the first time as float32
    (record, _) = load('cls_ffnet_1')
    x = official.make_input(*record['size'])
    assert deviation(model(x), record) < LIMIT
    timm.utils.reparameterize_model(model, inplace=True)
    assert deviation(model(x), record) < LIMIT


@torch.no_grad()
def test_features_are_the_backbones(official_file):
    path, weights = official_file
    features = create('ffnet1', path, features_only=True)
    assert features.feature_info.channels() == [80, 160, 320, 640]
    assert features.feature_info.reduction() == [4, 8, 16, 32]
    backbone = MODELS.build(dict(type='FFNet', arch='ffnet1', out_norm_cfg=None)).eval()
    backbone.load_state_dict(
        {k: v for k, v in weights.items() if not k.startswith(('norm', 'head'))}
    )
    x = torch.randn(1, 3, 64, 96)
    expected = backbone(x)
    for map_, other in zip(features(x), expected, strict=True):
        assert torch.equal(map_, other)
    assert not [key for key in features.state_dict() if 'norm3' in key or 'head' in key]
    two = create('ffnet1', path, features_only=True, out_indices=(0, 2))
    assert [tuple(m.shape) for m in two(x)] == [tuple(expected[i].shape) for i in (0, 2)]
    assert len(two.model.backbone.stages) == 3


@torch.no_grad()
def test_the_same_as_mmpretrains_classifier():
    pytest.importorskip('mmpretrain')
    cfg = runner.read_config('classification/ffnet_nano_shapes.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        classifier = MODELS.build(cfg.model).eval()
    model = create('nano', num_classes=5)
    classifier.load_state_dict(model.state_dict())
    model.load_state_dict(classifier.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), classifier(x))


@torch.no_grad()
def test_other_classes_and_channels(official_file):
    model = create('ffnet1', official_file[0], num_classes=7, in_chans=1)
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 7)
    stem = model.backbone.stem.conv1.conv.weight
    torch.testing.assert_close(
        stem, official_file[1]['patch_embed.0.c.weight'].sum(1, keepdim=True).float()
    )
    model.reset_classifier(3)
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 3) and model.num_classes == 3
    assert model.get_classifier().out_features == 3
    model.reset_classifier(0)
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, model.num_features)


def test_intermediates():
    model = create('nano').eval()
    x = torch.randn(1, 3, 64, 64)
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x)) and len(maps) == 4
    (last,) = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
    assert torch.equal(last, final)
    (first,) = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    assert torch.equal(first, maps[0])
    model.train().set_grad_checkpointing()
    assert all(stage.with_cp for stage in model.backbone.stages)
    with pytest.raises(ValueError, match="must be 'NCHW', got 'NLC'"):
        model.forward_intermediates(x, output_fmt='NLC')
