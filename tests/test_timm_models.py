"""Our networks as models of timm: registered by an import, same weights, same outputs."""

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
