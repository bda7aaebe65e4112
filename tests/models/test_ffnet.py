"""FFNet is numerically the official network."""

import re
from functools import lru_cache

import numpy as np
import official_reference as official
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.analysis import FlopAnalyzer
from mmengine.registry import MODELS
from reference_numbers import LIMITS, deviation, load

import mmffnet
from mmffnet.models.ffnet import FFNET_NAMES

ARCHS = ['ffnet1', 'ffnet2', 'ffnet3', 'ffnet4']
CLASSIFIER = dict(out_indices=3, out_norm_cfg=dict(type='BN'))
LIMIT = LIMITS['float64']


def build(arch, **kwargs):
    return MODELS.build(dict(type='FFNet', arch=arch, **kwargs))


def official_name(arch):
    return arch.replace('ffnet', 'ffnet_')


@lru_cache(maxsize=2)
def filled(arch):
    """The filled official weights of the classifier and of the dense backbone in one."""
    keys = {kind: official.official_keys(official_name(arch), kind) for kind in ('cls', 'det')}
    return official.fill(dict([*keys['cls'], *keys['det']]).items())


def dense(arch):
    return {k: v for k, v in filled(arch).items() if not k.startswith(('norm.', 'head.'))}


@pytest.fixture(scope='module', params=ARCHS)
def loaded(request, device):
    """A float64 backbone with the filled official weights."""
    backbone = build(request.param).double().eval()
    backbone.load_state_dict(dense(request.param))
    return backbone.to(device)


def levels(backbone, x):
    x = x.to(next(backbone.parameters()).device)
    with torch.no_grad():
        return {f'out{i}': out for i, out in enumerate(backbone(x))}


@pytest.mark.slow
def test_outputs_equal_the_committed_official_numbers(loaded):
    records = load(f'det_{official_name(loaded.arch)}')
    assert {tuple(r['size']) for r in records} >= {(64, 64), (96, 128)}
    for size in {tuple(r['size']) for r in records}:
        outs = levels(loaded, official.make_input(*size))
        for record in (r for r in records if tuple(r['size']) == size):
            limit = LIMITS[record['dtype']]
            assert deviation(outs[record['array']], record) < limit, record['array']


@pytest.mark.parametrize('arch', ['ffnet1', 'ffnet2'])
@pytest.mark.slow
def test_outputs_equal_the_full_official_outputs(arch, fixture_dir, device):
    backbone = build(arch).double().eval().to(device)
    backbone.load_state_dict(dense(arch))
    for form in ('unfused', 'fused'):
        if form == 'fused':
            mmffnet.reparameterize(backbone)
        with np.load(fixture_dir / f'det_{official_name(arch)}.out.npz') as arrays:
            for size in ('64x64', '96x128'):
                outs = levels(backbone, torch.from_numpy(arrays[f'x_{size}']))
                for name, out in outs.items():
                    expected = arrays[f'{name}_{size}']
                    limit = LIMITS[str(expected.dtype)]
                    assert deviation(out, expected) < limit, (form, name, size)


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.slow
def test_classifier_features_give_the_official_logits(arch, device):
    weights = {k: v for k, v in filled(arch).items() if not re.match(r'norm\d', k)}
    head = {k: weights.pop(f'head.{k}') for k in ('weight', 'bias')}
    backbone = build(arch, **CLASSIFIER).double().eval().to(device)
    backbone.load_state_dict(weights)
    for record in load(f'cls_{official_name(arch)}'):
        with torch.no_grad():
            (features,) = backbone(official.make_input(*record['size']).to(device))
            logits = features.mean((2, 3)).cpu() @ head['weight'].T + head['bias']
        assert deviation(logits, record) < LIMIT


@settings(max_examples=6, deadline=None)
@given(height=st.integers(32, 90), width=st.integers(32, 90))
@pytest.mark.slow
def test_any_size_equals_the_reference(height, width):
    weights = dense('ffnet1')
    backbone = build('ffnet1').double().eval()
    backbone.load_state_dict(weights)
    x = official.make_input(height, width)
    expected, _ = official.forward(weights, x)
    for name, out in levels(backbone, x).items():
        assert deviation(out, expected[name].numpy()) < LIMIT


@pytest.mark.parametrize('arch', ['ffnet1', 'ffnet3'])
@pytest.mark.slow
def test_training_equals_the_reference(arch, device):
    """Outputs from batch statistics, running statistics after the step, and all gradients."""
    weights = dense(arch)
    backbone = build(arch, drop_path_rate=0.0).double().train().to(device)
    backbone.load_state_dict(weights)
    params = {
        key: value.clone().requires_grad_() if value.is_floating_point() else value
        for key, value in weights.items()
    }
    x = official.make_input(65, 66, batch=2)
    x_ours, x_theirs = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    theirs, statistics = official.forward(params, x_theirs, training=True)
    ours = [out.cpu() for out in backbone(x_ours)]
    for name, out in zip(theirs, ours, strict=True):
        assert deviation(out, theirs[name].detach().numpy()) < LIMIT

    # an arbitrary loss that weighs all positions differently
    factors = [torch.rand(out.shape, dtype=out.dtype) for out in ours]
    sum((f * o).sum() for f, o in zip(factors, ours, strict=True)).backward()
    sum((f * o).sum() for f, o in zip(factors, theirs.values(), strict=True)).backward()
    assert deviation(x_ours.grad, x_theirs.grad.numpy()) < LIMIT
    checked = 0
    for name, param in backbone.named_parameters():
        expected = params[FFNET_NAMES.to_official(name)].grad
        # gradients that cancel to nothing (weights before a batch norm) have no scale of their own
        scale = max(float(expected.abs().max()), 1e-3)
        assert float((param.grad.cpu() - expected).abs().max()) / scale < 1e-8, name
        checked += 1
    assert checked == len(list(backbone.parameters())) > 100
    state = backbone.state_dict()
    buffers = [k for k in state if k.endswith(('running_mean', 'running_var'))]
    assert buffers and len(statistics) >= len(buffers)
    for name in buffers:
        expected = statistics[FFNET_NAMES.to_official(name)]
        torch.testing.assert_close(state[name].cpu(), expected.detach(), rtol=1e-9, atol=1e-9)
        assert state[name.rpartition('.')[0] + '.num_batches_tracked'] == 1


def test_float32_is_close_to_the_official_float64(device):
    backbone = build('ffnet1').eval().to(device)
    backbone.load_state_dict(dense('ffnet1'))
    outs = levels(backbone, official.make_input(64, 64).float())
    for record in load('det_ffnet_1'):
        if record['size'] == [64, 64]:
            assert deviation(outs[record['array']], record) < 2e-5


# parameters in millions and multiply-adds of convolutions at 256x256 in billions: unfused, fused
SIZES_PUBLISHED = {
    'ffnet1': ((13.136, 3.000), (13.020, 2.984)),
    'ffnet2': ((26.505, 6.060), (26.205, 6.003)),
    'ffnet3': ((48.050, 10.235), (47.563, 10.146)),
    'ffnet4': ((78.846, 19.298), (78.177, 19.165)),
}


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.slow
def test_parameters_and_macs(arch):
    backbone = build(arch).eval()
    for form, (params, macs) in zip(('unfused', 'fused'), SIZES_PUBLISHED[arch], strict=True):
        if form == 'fused':
            mmffnet.reparameterize(backbone)
        assert round(sum(p.numel() for p in backbone.parameters()) / 1e6, 3) == params
        # the multiply-adds of convolutions grow with the area exactly: no need for 256x256
        analysis = FlopAnalyzer(backbone, torch.zeros(1, 3, 64, 64))
        analysis.unsupported_ops_warnings(False)
        assert analysis.by_operator()['conv'] * 16 / 1e9 == pytest.approx(macs, abs=6e-4)


@pytest.mark.parametrize(
    ('arch', 'millions'),
    [('ffnet1', 13.776), ('ffnet2', 27.208), ('ffnet3', 48.818), ('ffnet4', 79.869)],
)
def test_classifier_parameters(arch, millions):
    backbone = build(arch, **CLASSIFIER)
    head = torch.nn.Linear(backbone.out_channels[0], 1000)
    parameters = [*backbone.parameters(), *head.parameters()]
    assert round(sum(p.numel() for p in parameters) / 1e6, 3) == millions


@pytest.mark.parametrize('registry', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_every_registry_builds_it(registry):
    models = pytest.importorskip(f'{registry}.registry').MODELS
    backbone = models.build(dict(type='FFNet', arch='nano', out_indices=(1, 3)))
    assert isinstance(backbone, mmffnet.FFNet)
    assert backbone.out_channels == (64, 256)
    outs = backbone.eval()(torch.rand(1, 3, 40, 70))
    assert isinstance(outs, tuple)
    assert [tuple(out.shape) for out in outs] == [(1, 64, 5, 9), (1, 256, 2, 3)]


@pytest.mark.slow
def test_initialisation():
    backbone = build('ffnet3', layer_scale_init_value=1e-6)
    backbone.init_weights()
    weights = [p for n, p in backbone.named_parameters() if n.endswith('weight') and p.ndim == 4]
    assert len(weights) > 100
    for weight in weights:
        if weight.numel() > 1000:
            assert weight.std().item() == pytest.approx(0.02, rel=0.2)
            assert abs(weight.mean().item()) < 0.002
    for name, param in backbone.named_parameters():
        if name.endswith('bias'):
            assert not param.any()
        elif name.endswith('norm.weight') or name.startswith('norm'):
            assert (param == 1).all()
        elif name.endswith('scale'):
            assert param.shape[1:] == (1, 1) and (param == 1e-6).all()


def test_layer_scale_is_as_the_variant_says():
    def scales(arch, **kwargs):
        return {float(p[0]) for n, p in build(arch, **kwargs).named_parameters() if 'scale' in n}

    tiny = dict(depths=[1, 1, 1, 1], channels=[8, 16, 32, 64])
    assert scales('ffnet2') == set()
    assert scales('ffnet3') == {1.0}
    assert scales('ffnet3', layer_scale_init_value=0) == set()
    assert scales(tiny, layer_scale_init_value=0.25) == {0.25}
    assert scales({**tiny, 'layer_scale_init_value': 0.5}) == {0.5}


@pytest.mark.parametrize('arch', ['nano', *ARCHS])
def test_layer_depths(arch):
    backbone = build(arch)
    depths = {
        n: backbone.get_layer_depth('backbone.' + n, 'backbone.')
        for n, _ in backbone.named_parameters()
    }
    (num_layers,) = {layers for _, layers in depths.values()}
    # every layer has parameters: no learning rate is skipped
    assert {layer for layer, _ in depths.values()} == set(range(num_layers))
    assert depths['stem.conv1.conv.weight'][0] == 0
    assert depths['norm0.weight'][0] == num_layers - 1
    assert backbone.get_layer_depth('neck.fpn.weight', 'backbone.') == (num_layers - 1, num_layers)
    layers = [
        depths[f'stages.{i}.blocks.{j}.channel_mixer.expand.weight'][0]
        for i, depth in enumerate(backbone.depths)
        for j in range(depth)
    ]
    assert layers == sorted(layers)
    for i in (1, 2, 3):
        first = depths[f'stages.{i}.blocks.0.channel_mixer.expand.weight']
        assert depths[f'stages.{i}.downsample.channel.conv.weight'] == first
    assert num_layers == {'nano': 6, 'ffnet1': 8, 'ffnet2': 10, 'ffnet3': 13, 'ffnet4': 14}[arch]
