"""Our networks as models of timm: registered by an import, same weights, same outputs."""

import re

import official_reference as official
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from reference_numbers import LIMITS, deviation, load

from mmffnet.checkpoint import OFFICIAL_WEIGHTS, official_url
from mmffnet.engine import runner

timm = pytest.importorskip('timm')
optim = pytest.importorskip('timm.optim')
pytest.importorskip('mmffnet.timm_models')
LIMIT = LIMITS['float64']


@pytest.mark.slow
def test_an_import_registers_them_and_waits_for_nothing(toy, tmp_path):
    code = (
        'import sys, mmffnet\n'
        'assert not {"timm", "mmffnet.timm_models"} & set(sys.modules)\n'
        'import mmffnet.timm_models, timm\n'
        'assert not any("timm" in repr(finder).lower() for finder in sys.meta_path)\n'
        'print(timm.create_model("mmffnet_nano", features_only=True).feature_info.channels())'
    )
    child = toy.Child(tmp_path / 'log', code, function=toy.run_code)
    assert child.wait() == 0 and child.text.endswith('[32, 64, 128, 256]\n'), child.text


def test_names_and_weights():
    found = {name.removeprefix('mmffnet_') for name in timm.list_models('mmffnet_*')}
    assert found == {
        *('ffnet1', 'ffnet2', 'ffnet3', 'ffnet4', 'nano'),
        *(f'casvit_{arch}' for arch in ('xs', 's', 'm', 't', 'l')),
        *(f'transnext_{arch}' for arch in ('micro', 'tiny', 'small', 'base', 'micro_aaaa')),
        *(f'affnet_{arch}' for arch in ('et', 't', 's', 'base', 'large')),
    }
    tags = timm.list_models('mmffnet_*', pretrained=True)
    urls = {timm.get_pretrained_cfg(tag).url for tag in tags}
    classifiers = [n for n in OFFICIAL_WEIGHTS if re.match(r'(ffnet\d|transnext-)', n)]
    assert urls == {official_url(name) for name in classifiers} and len(urls) == len(tags)
    cfg = timm.get_pretrained_cfg('mmffnet_ffnet2')
    assert cfg.url == official_url('ffnet2') and (cfg.input_size, cfg.crop_pct) == (
        (3, 256, 256),
        0.9,
    )
    assert timm.get_pretrained_cfg('mmffnet_ffnet4').crop_pct == 1.0
    cfg = timm.get_pretrained_cfg('mmffnet_transnext_base.384_in1k')
    assert cfg.url == official_url('transnext-base-384') and cfg.input_size == (3, 384, 384)


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


def test_default_cfgs_tell_the_size_before_pooling():
    for name in timm.list_models('mmffnet_*', pretrained=True) + ['mmffnet_nano']:
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.pool_size == tuple(size // 32 for size in cfg.input_size[1:]), name
    with torch.device('meta'):
        model = timm.create_model('mmffnet_nano')
        features = model.forward_features(torch.empty(1, *model.default_cfg['input_size']))
    assert features.shape[2:] == model.default_cfg['pool_size']


def test_device_and_dtype():
    model = timm.create_model('mmffnet_nano', device='meta', dtype=torch.float16)
    assert {p.device.type for p in model.parameters()} == {'meta'}
    assert {p.dtype for p in model.parameters()} == {torch.float16} and model.in_chans == 3
    model.reset_classifier(0)
    model.reset_classifier(2)
    weight = model.get_classifier().weight
    assert (weight.device.type, weight.dtype) == ('meta', torch.float16)
    with pytest.raises(TypeError, match='no_such'):
        timm.create_model('mmffnet_nano', no_such=1)


@torch.no_grad()
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.slow
def test_script_and_feature_extractor(fused):
    model = create('nano', num_classes=3)
    if fused:
        model = timm.utils.reparameterize_model(model)
    x = torch.randn(1, 3, 64, 64)
    backbone, expected = model.backbone, model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    assert model.backbone is backbone  # scripting leaves the model as it was
    graph = timm.models.create_feature_extractor(model, ['head'])
    torch.testing.assert_close(graph(x)['head'], expected)


@pytest.mark.parametrize('coarse', [False, True])
@pytest.mark.slow
def test_parameters_are_grouped_by_layers(coarse):
    with torch.device('meta'):
        model = timm.create_model('mmffnet_ffnet3')
    layers = timm.models.group_parameters(model, model.group_matcher(coarse=coarse))
    names = [name for group in layers.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(name.startswith('backbone.stem.') for name in layers[0])
    last = max(layers)
    assert last == (5 if coarse else 12)
    assert {name.split('.')[-2] for name in layers[last]} == {'norm3', 'fc'}


@pytest.mark.slow
def test_layer_scales_get_no_weight_decay():
    with torch.device('meta'):
        model = timm.create_model('mmffnet_ffnet3')
    scales = {name for name, p in model.named_parameters() if p.shape[1:] == (1, 1)}
    assert model.no_weight_decay() == scales and len(scales) == 2 * sum(model.backbone.depths)
    decayed, _ = sorted(
        optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay()),
        key=lambda group: -group['weight_decay'],
    )
    assert not {id(p) for n, p in model.named_parameters() if n in scales} & set(
        map(id, decayed['params'])
    )
    assert not timm.create_model('mmffnet_nano').no_weight_decay()


@torch.no_grad()
@pytest.mark.parametrize('stage', range(4))
def test_a_pruned_model_ends_at_its_map(stage):
    model = create('nano')
    x = torch.randn(1, 3, 64, 64)
    expected = model.forward_intermediates(x, intermediates_only=True)[stage]
    for _ in range(2):  # the second time changes nothing
        model.prune_intermediate_layers([stage], prune_norm=True)
    assert torch.equal(model(x), expected)


# ------------------------------------------------------------------ the other families


FAMILIES = {
    'casvit_xs': dict(type='mmffnet.CASViT', arch='xs'),
    'transnext_micro': dict(type='mmffnet.TransNeXt', arch='micro'),
    'affnet_et': dict(type='mmffnet.AFFNet', arch='et'),
}
PARAMETERS = {'casvit_xs': 2_979_700, 'transnext_micro': 12_809_304, 'affnet_et': 1_436_264}


def official_state(name, model):
    """Weights by the official names of a classifier, at random."""
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in model.items()}
    names = MODELS.build(FAMILIES[name]).official_names
    official_ = {}
    for key, value in state.items():
        if key.startswith('backbone.'):
            key = names.to_official(key.removeprefix('backbone.'))
            key = key.replace('norm6.', 'norm.') if name.startswith('casvit') else key
        else:
            key = names.classifier.to_official(key)
        official_[key] = value
    return state, official_


@torch.no_grad()
@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.slow
def test_official_classifiers_of_other_families(name, tmp_path):
    model = create(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    expected, weights = official_state(name, model.state_dict())
    assert 'backbone' not in ' '.join(weights)
    if name.startswith('casvit'):  # two heads, whose scores are averaged
        for key in ('weight', 'bias'):
            weights[f'dist_head.{key}'] = torch.rand_like(weights[f'head.{key}'])
            expected[f'head.fc.{key}'] = (weights[f'head.{key}'] + weights[f'dist_head.{key}']) / 2
    torch.save(dict(model=weights), tmp_path / 'official.pth')
    loaded = create(name, str(tmp_path / 'official.pth')).state_dict()
    for key, value in expected.items():
        torch.testing.assert_close(loaded[key], value, msg=key)
    other = create(name, str(tmp_path / 'official.pth'), num_classes=7, in_chans=1)
    assert other(torch.randn(1, 1, 64, 64)).shape == (1, 7)


@torch.no_grad()
@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.slow
def test_features_of_other_families(name):
    features = create(name, features_only=True)
    backbone = MODELS.build(dict(FAMILIES[name], out_norm_cfg=None)).eval()
    backbone.load_state_dict(
        {k.removeprefix('backbone.'): v for k, v in features.model.state_dict().items()}
    )
    x = torch.randn(1, 3, 70, 96)
    for map_, other in zip(features(x), backbone(x), strict=True):
        torch.testing.assert_close(map_, other)
    assert features.feature_info.channels() == list(backbone.channels)
    assert features.feature_info.reduction() == list(backbone.strides)
    model = create(name)
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert len(maps) == 4
    torch.testing.assert_close(model.forward_head(final), model(x))
    model.prune_intermediate_layers([1])
    torch.testing.assert_close(model(x), maps[1])


@pytest.mark.parametrize('name', FAMILIES)
def test_preprocessing_and_parameters_of_other_families(name):
    cfg = timm.get_pretrained_cfg(f'mmffnet_{name}')
    model = create(name)
    assert model.get_parameter(f'{cfg.first_conv}.weight').shape[1] == 3
    x = torch.randn(1, *cfg.input_size)
    with torch.no_grad():
        assert model.forward_features(x).shape[2:] == cfg.pool_size
    layers = timm.models.group_parameters(model, model.group_matcher())
    assert sorted(n for g in layers.values() for n in g) == sorted(dict(model.named_parameters()))
    assert model.no_weight_decay() <= set(dict(model.named_parameters()))
    if name.startswith('affnet'):
        assert (cfg.mean, cfg.std) == ((0, 0, 0), (1, 1, 1))
