"""PoolFormer is numerically the official network."""

import re
from collections.abc import Iterator

import families
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import DefaultScope
from reference_numbers import LIMITS, deviation
from torch import nn

from mmffnet.checkpoint import (
    OFFICIAL_WEIGHTS,
    convert_names,
    find_networks,
    load_pretrained,
    official_url,
)
from mmffnet.models import PoolFormer
from mmffnet.models.poolformer import POOLFORMER_NAMES
from mmffnet.registry import MODELS

LIMIT = LIMITS['float64']
TINY = dict(depths=(1, 2, 1, 1), channels=(6, 8, 12, 10))
# of the classifiers, as published and in the official code
PARAMETERS = {
    's12': 11_915_176,
    's24': 21_388_968,
    's36': 30_862_760,
    'm36': 56_172_520,
    'm48': 73_473_448,
}


def official_keys(arch, dense=True) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the official state dict in its order."""

    def layer(key, *shape):
        yield f'{key}.weight', shape
        yield f'{key}.bias', shape[:1]

    dims = arch['channels']
    yield from layer('patch_embed.proj', dims[0], 3, 7, 7)
    for i, (depth, c) in enumerate(zip(arch['depths'], dims, strict=True)):
        if i > 0:
            yield from layer(f'network.{2 * i - 1}.proj', c, dims[i - 1], 3, 3)
        for j in range(depth):
            block = f'network.{2 * i}.{j}'
            yield f'{block}.layer_scale_1', (c,)
            yield f'{block}.layer_scale_2', (c,)
            yield from layer(f'{block}.norm1', c)
            yield from layer(f'{block}.norm2', c)
            yield from layer(f'{block}.mlp.fc1', 4 * c, c, 1, 1)
            yield from layer(f'{block}.mlp.fc2', c, 4 * c, 1, 1)
    if dense:
        for i, c in enumerate(dims):
            yield from layer(f'norm{2 * i}', c)
    else:
        yield from layer('norm', dims[-1])
        yield from layer('head', 1000, dims[-1])


def reference(p, x, arch):
    """The network in plain functions of the official tensors."""

    def norm(key, x):
        y = (x - x.mean((1, 2, 3), True)) / (x.var((1, 2, 3), False, True) + 1e-5).sqrt()
        return y * p[f'{key}.weight'].view(-1, 1, 1) + p[f'{key}.bias'].view(-1, 1, 1)

    def conv(key, x, stride=1, padding=0):
        return F.conv2d(x, p[f'{key}.weight'], p[f'{key}.bias'], stride, padding)

    def pool(x):
        ones = torch.ones_like(x[:1, :1])
        window = ones.new_ones(1, 1, 3, 3)
        sums = F.conv2d(x.flatten(0, 1).unsqueeze(1), window, padding=1).view_as(x)
        return sums / F.conv2d(ones, window, padding=1) - x

    x, outs = conv('patch_embed.proj', x, 4, 2), []
    for i, depth in enumerate(arch['depths']):
        if i > 0:
            x = conv(f'network.{2 * i - 1}.proj', x, 2, 1)
        for j in range(depth):
            block = f'network.{2 * i}.{j}'
            x = x + p[f'{block}.layer_scale_1'].view(-1, 1, 1) * pool(norm(f'{block}.norm1', x))
            y = conv(f'{block}.mlp.fc1', norm(f'{block}.norm2', x))
            y = conv(f'{block}.mlp.fc2', y * (1 + torch.erf(y / 2**0.5)) / 2)
            x = x + p[f'{block}.layer_scale_2'].view(-1, 1, 1) * y
        if f'norm{2 * i}.weight' in p:
            outs.append(norm(f'norm{2 * i}', x))
    if 'norm.weight' not in p:
        return outs
    return norm('norm', x).mean((2, 3)) @ p['head.weight'].T + p['head.bias']


@pytest.fixture(scope='module')
def loaded(device):
    backbone = PoolFormer('s12').double().eval()
    backbone.load_state_dict(families.fill(official_keys(PoolFormer.arch_settings['s12'])))
    return backbone.to(device)


def levels(backbone, x):
    x = x.to(next(backbone.parameters()).device)
    with torch.no_grad():
        return {f'{x.shape[2]}x{x.shape[3]}_{i}': out for i, out in enumerate(backbone(x))}


def test_outputs_equal_the_official_numbers(loaded):
    expected = families.compact('poolformer_s12')
    assert len(expected) == 8
    for size in families.SIZES:
        for name, out in levels(loaded, families.make_input(*size)).items():
            assert deviation(out, expected[name]) < LIMIT, name


def test_outputs_equal_the_full_official_outputs(loaded, fixture_dir):
    expected = families.full(fixture_dir, 'poolformer_s12')
    for size in families.SIZES:
        for name, out in levels(loaded, families.make_input(*size)).items():
            assert deviation(out, expected.pop(name)) < LIMIT, name
    assert not expected


def test_names_are_the_recorded_ones(fixture_dir):
    keys = [[k, list(s)] for k, s in official_keys(PoolFormer.arch_settings['s12'])]
    assert keys == families.full_keys(fixture_dir, 'poolformer_s12') and len(keys) == 136


@pytest.mark.parametrize('arch', PARAMETERS)
@pytest.mark.parametrize('dense', [True, False])
def test_every_variant_has_the_official_names_and_shapes(arch, dense):
    with torch.device('meta'):
        backbone = PoolFormer(arch, out_indices='default' if dense else 3)
    keys = dict(official_keys(PoolFormer.arch_settings[arch], dense))
    if not dense:
        assert sum(torch.Size(shape).numel() for shape in keys.values()) == PARAMETERS[arch]
    head = {k: keys.pop(k) for k in list(keys) if k.startswith('head.')}
    assert bool(head) != dense
    state = {f'backbone.{k}': v for k, v in backbone.state_dict().items()}
    assert find_networks(state, official=False) == {'backbone.': POOLFORMER_NAMES}
    assert find_networks([f'backbone.{k}' for k in keys], True) == {'backbone.': POOLFORMER_NAMES}
    official = convert_names(state, 'official')
    # the official layer scales are vectors
    shapes = {k: v.shape[:1] if 'layer_scale' in k else v.shape for k, v in official.items()}
    assert shapes == {f'backbone.{k}': shape for k, shape in keys.items()}


def test_layer_scales_and_drop_path_of_the_variants():
    for arch in PARAMETERS:
        with torch.device('meta'):
            assert PoolFormer(arch).layer_scale_init_value == (1e-5 if arch in 's12 s24' else 1e-6)
    blocks = [b for s in PoolFormer('s12', drop_path_rate=0.11).stages for b in s.blocks]
    rates = [getattr(block.drop_path, 'drop_prob', 0) for block in blocks]
    assert rates == pytest.approx([0.01 * k for k in range(12)])
    assert isinstance(PoolFormer(TINY).stages[3].blocks[0].drop_path, nn.Identity)


@settings(max_examples=8, deadline=None)
@given(height=st.integers(32, 100), width=st.integers(32, 100))
def test_any_size_equals_the_reference(height, width):
    weights = families.fill(official_keys(TINY))
    backbone = PoolFormer(TINY).double().eval()
    backbone.load_state_dict(weights)
    x = families.make_input(height, width)
    outs = list(levels(backbone, x).values())
    for i, (out, expected) in enumerate(zip(outs, reference(weights, x, TINY), strict=True)):
        # one position alone is normalised to the bias, which has no deviation of its own
        assert float((out - expected).abs().max()) < LIMIT * max(float(expected.std()), 0.1), i


def test_gradients_equal_the_reference(device):
    weights = families.fill(official_keys(TINY))
    backbone = PoolFormer(TINY).double().train().to(device)
    backbone.load_state_dict(weights)
    params = {key: value.requires_grad_() for key, value in weights.items()}
    x = families.make_input(2, 3, 65, 66)
    ours = [out.cpu() for out in backbone(x.to(device))]
    theirs = reference(params, x, TINY)
    factors = [torch.rand_like(out) for out in ours]
    sum((f * o).sum() for f, o in zip(factors, ours, strict=True)).backward()
    sum((f * o).sum() for f, o in zip(factors, theirs, strict=True)).backward()
    for name, param in backbone.named_parameters():
        expected = params[POOLFORMER_NAMES.to_official(name)].grad
        found = param.grad.cpu().view_as(expected)
        # the pooling takes a constant away, so that a bias in front of it has no gradient
        scale = max(float(expected.abs().max()), 1e-3)
        assert float((found - expected).abs().max()) < 1e-9 * scale, name


def test_initialisation():
    """A truncated normal in the blocks, PyTorch's own elsewhere."""
    torch.manual_seed(0)
    expected = PoolFormer('s12')
    torch.manual_seed(0)
    backbone = PoolFormer('s12')
    backbone.init_weights()
    seen = 0
    for name, param in backbone.named_parameters():
        if re.search(r'(expand|project)\.weight$', name):
            assert param.std().item() == pytest.approx(0.02, rel=0.05), name
            seen += 1
        elif re.search(r'(expand|project)\.bias$', name):
            assert not param.any(), name
        elif name.endswith('.scale'):
            assert (param == 1e-5).all(), name
        else:
            assert torch.equal(param, expected.get_parameter(name)), name
    assert seen == 24
    other = PoolFormer(TINY, init_cfg=dict(type='Constant', layer='Conv2d', val=0.5))
    other.init_weights()
    assert all((m.weight == 0.5).all() for m in other.modules() if isinstance(m, nn.Conv2d))


# ------------------------------------------------------------------ official files


def assert_arrived(backbone, weights):
    own = backbone.state_dict()
    for key, value in weights.items():
        assert torch.equal(own[POOLFORMER_NAMES.to_ours(key)].flatten(), value.flatten()), key


@pytest.fixture(scope='module')
def imagenet():
    """A bare state dict, as released."""
    keys = official_keys(PoolFormer.arch_settings['s12'], dense=False)
    return {k: v.float() for k, v in families.fill(keys).items()}


@pytest.mark.slow
def test_imagenet_file_by_its_short_name(imagenet, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    path = tmp_path / 'hub' / 'checkpoints' / official_url('poolformer-s12').rpartition('/')[2]
    path.parent.mkdir(parents=True)
    torch.save(imagenet, path)
    init_cfg = dict(type='Pretrained', checkpoint='mmffnet://poolformer-s12')
    body = {k: v for k, v in imagenet.items() if not k.startswith(('norm.', 'head.'))}
    dense = PoolFormer('s12', init_cfg=init_cfg)
    dense.init_weights()
    assert_arrived(dense, body)
    # the classifier's norm is not that of the last level
    assert (dense.norm3.weight == 1).all() and not dense.norm3.bias.any()
    classifier = PoolFormer('s12', out_indices=3, init_cfg=init_cfg)
    classifier.init_weights()
    assert_arrived(classifier, body)
    assert torch.equal(classifier.norm3.weight, imagenet['norm.weight'])
    short = PoolFormer('s12', out_indices=(0, 1), init_cfg=init_cfg)
    short.init_weights()
    assert torch.equal(short.norm1.weight, torch.ones(128))
    for other in ('s24', 'm36', TINY):
        with pytest.raises(ValueError, match='does not fit PoolFormer'):
            load_pretrained(PoolFormer(other), str(path))
    del imagenet['network.4.5.mlp.fc2.bias']
    torch.save(imagenet, path)
    with pytest.raises(ValueError, match='1 missing'):
        load_pretrained(PoolFormer('s12'), str(path))


def test_files_by_hand():
    assert sum(name.endswith(('-coco', '-ade20k')) for name in OFFICIAL_WEIGHTS) > 11
    with pytest.raises(ValueError, match='by hand'):
        load_pretrained(PoolFormer(TINY), 'mmffnet://maskrcnn-poolformer-s12-coco')


def test_official_classifier(tmp_path):
    """An ImageClassifier takes the official file whole and gives the official scores."""
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(
                type='mmpretrain.ImageClassifier',
                backbone=dict(type='mmffnet.PoolFormer', arch=TINY, out_indices=3),
                neck=dict(type='mmpretrain.GlobalAveragePooling'),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=1000, in_channels=10),
            )
        )
    weights = families.fill(official_keys(TINY, dense=False))
    model = model.double().eval()
    model.load_state_dict(weights)
    x = families.make_input(75, 101)
    with torch.no_grad():
        scores = model(x)
    assert deviation(scores, reference(weights, x, TINY).numpy()) < LIMIT


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2, 3)])
def test_official_detector(out_indices):
    """The norm of the first level is missing in the official RetinaNets (FORK_LAST3)."""
    weights = families.fill(official_keys(TINY))
    if out_indices[0] == 1:
        weights = {k: v for k, v in weights.items() if not k.startswith('norm0.')}
    model = nn.Module()
    model.backbone = PoolFormer(TINY, out_indices=out_indices)
    model.double().load_state_dict({f'backbone.{k}': v for k, v in weights.items()})
    assert_arrived(model.backbone, weights)
