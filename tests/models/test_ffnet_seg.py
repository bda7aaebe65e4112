"""FFNetSeg is numerically the official segmentation backbone."""

import copy
from functools import lru_cache

import numpy as np
import official_reference as official
import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from reference_numbers import LIMITS, deviation, load
from torch import nn

import mmffnet
from mmffnet.models.ffnet import FFNET_NAMES, FFNET_SEG_NAMES

TINY = dict(depths=[1, 1, 2, 1], channels=[8, 12, 20, 28], stem_channels=8)
LIMIT = LIMITS['float64']


def build(**kwargs):
    return MODELS.build(dict(type='FFNetSeg', **kwargs))


@lru_cache(maxsize=1)
def filled():
    """The filled official weights of the backbone and its pre-training head."""
    return official.fill(official.official_keys('ffnet_seg_pretrain', 'seg'))


def trunk():
    return {k: v for k, v in filled().items() if not k.startswith('head')}


def tiny_official(seed=0):
    """Random weights of a tiny backbone under the official names."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, like in build(arch=TINY).state_dict().items():
        noise = torch.rand(like.shape, generator=generator)
        if name.endswith(('var', 'norm.weight', 'scale')):
            value = 0.5 + noise
        else:
            value = (noise - 0.5) * 2 / max(like[0].numel(), 4) ** 0.5 if like.ndim else like
        state[FFNET_SEG_NAMES.to_official(name)] = value
    return state


@pytest.fixture(scope='module')
def loaded(device):
    """A float64 backbone with the filled official weights."""
    backbone = build().double().eval()
    backbone.load_state_dict(trunk())
    return backbone.to(device)


def levels(backbone, x):
    x = x.to(next(backbone.parameters()).device)
    with torch.no_grad():
        return {f'out{i}': out for i, out in enumerate(backbone(x))}


@pytest.mark.slow
def test_outputs_equal_the_committed_official_numbers(loaded):
    records = load('seg_ffnet_seg')
    assert {tuple(r['size']) for r in records} == {(64, 64), (96, 128)}
    for record in records:
        if record['array'] == 'out0':
            outs = levels(loaded, official.make_input(*record['size']))
        assert deviation(outs[record['array']], record) < LIMIT, record['array']


@pytest.mark.slow
def test_outputs_equal_the_full_official_outputs(loaded, fixture_dir):
    fused = mmffnet.reparameterize(copy.deepcopy(loaded))
    with np.load(fixture_dir / 'seg_ffnet_seg.out.npz') as arrays:
        for size in ('64x64', '96x128'):
            for form, backbone in (('unfused', loaded), ('fused', fused)):
                outs = levels(backbone, torch.from_numpy(arrays[f'x_{size}']))
                assert len(outs) == 3
                for name, out in outs.items():
                    assert deviation(out, arrays[f'{name}_{size}']) < LIMIT, (form, name, size)


@pytest.mark.parametrize('size', [(32, 32), (47, 81)])
@pytest.mark.slow
def test_any_size_and_both_forms_equal_the_reference(loaded, size, device):
    x = official.make_input(*size)
    expected, _ = official.forward(trunk(), x)
    fused = build(deploy=True).double().eval().to(device)
    assert fused.deploy and not loaded.deploy
    fused.load_state_dict(trunk())
    for backbone in (loaded, fused):
        for name, out in levels(backbone, x).items():
            assert deviation(out, expected[name].numpy()) < LIMIT


@pytest.mark.slow
def test_parameters_and_macs(loaded, device):
    """At 512x512: 55.642 and, fused, 54.854 billion multiply-adds."""
    backbone = copy.deepcopy(loaded).float()
    for params, macs in ((63.826, 55.642), (62.700, 54.854)):
        assert round(sum(p.numel() for p in backbone.parameters()) / 1e6, 3) == params
        # the multiply-adds of convolutions grow with the area exactly
        analysis = FlopAnalyzer(backbone, torch.zeros(1, 3, 64, 64, device=device))
        analysis.unsupported_ops_warnings(False)
        assert analysis.by_operator()['conv'] * 64 / 1e9 == pytest.approx(macs, abs=1e-3)
        mmffnet.reparameterize(backbone)


def test_training_equals_the_reference(device):
    """Outputs from batch statistics, running statistics after the step, and all gradients."""
    weights = {k: v.double() if v.ndim else v for k, v in tiny_official().items()}
    backbone = build(arch=TINY, drop_path_rate=0.0).double().train().to(device)
    backbone.load_state_dict(weights)
    params = {
        key: value.clone().requires_grad_() if value.is_floating_point() else value
        for key, value in weights.items()
    }
    x = official.make_input(65, 66, batch=2)
    x_ours, x_theirs = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    theirs, statistics = official.forward(params, x_theirs, training=True)
    ours = [out.cpu() for out in backbone(x_ours)]
    for out, expected in zip(ours, theirs.values(), strict=True):
        assert deviation(out, expected.detach().numpy()) < LIMIT
    # an arbitrary loss that weighs all positions differently
    factors = [torch.rand(out.shape, dtype=out.dtype) for out in ours]
    sum((f * o).sum() for f, o in zip(factors, ours, strict=True)).backward()
    sum((f * o).sum() for f, o in zip(factors, theirs.values(), strict=True)).backward()
    assert deviation(x_ours.grad, x_theirs.grad.numpy()) < LIMIT
    for name, param in backbone.named_parameters():
        expected = params[FFNET_SEG_NAMES.to_official(name)].grad
        # gradients that cancel to nothing (weights before a batch norm) have no scale of their own
        scale = max(float(expected.abs().max()), 1e-3)
        assert float((param.grad.cpu() - expected).abs().max()) / scale < 1e-8, name
    buffers = dict(backbone.named_buffers())
    assert len(statistics) == len(buffers) > 100
    for name, buffer in buffers.items():
        expected = statistics[FFNET_SEG_NAMES.to_official(name)]
        torch.testing.assert_close(buffer.cpu(), expected.detach(), rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------------- names


def test_every_official_name_has_exactly_one_of_ours(loaded):
    keys = [key for key, _ in official.official_keys('ffnet_seg', 'seg')]
    ours = [FFNET_SEG_NAMES.to_ours(key) for key in keys]
    assert [FFNET_SEG_NAMES.to_official(key) for key in ours] == keys
    assert sorted(ours) == sorted(loaded.state_dict())


def test_the_same_official_path_is_another_branch_in_ffnet(loaded):
    path = 'stages.2.1.token_mixer.0.main.conv1.conv1.c.weight'
    name = 'stages.2.blocks.0.token_mixer.key.{}.conv.weight'.format
    assert FFNET_SEG_NAMES.to_ours(path) == name('large')
    assert FFNET_NAMES.to_ours(path) == name('small')
    shapes = {n: tuple(loaded.get_parameter(name(n)).shape[2:]) for n in ('large', 'small')}
    shapes.update({n: tuple(loaded.get_parameter(name(n)).shape[2:]) for n in ('row', 'column')})
    assert shapes == {'large': (9, 9), 'small': (5, 5), 'row': (1, 9), 'column': (9, 1)}
    other = MODELS.build(dict(type='FFNet', arch='nano')).get_parameter(name('small'))
    assert tuple(other.shape[2:]) == (3, 3)


@pytest.mark.parametrize('deploy', [False, True])
def test_init_cfg_loads_the_official_pretraining(deploy, tmp_path, caplog):
    state = tiny_official()
    heads = {k: torch.rand(2) for k, _ in official.official_keys('ffnet_seg_pretrain', 'seg')}
    heads = {k: v for k, v in heads.items() if k.startswith('head')}
    assert {k.split('.')[0] for k in heads} == {'head1', 'head2'}
    torch.save({'state_dict': {**state, **heads}, 'epoch': 299}, tmp_path / 'ffnet_seg.pth.tar')
    logger = MMLogger.get_instance('test_ffnet_seg', logger_name='test_ffnet_seg')
    logger.addHandler(caplog.handler)
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'ffnet_seg.pth.tar'))
    backbone = build(arch=TINY, init_cfg=init_cfg, deploy=deploy).eval()
    backbone.init_weights()
    logger.removeHandler(caplog.handler)
    assert 'not in this network: head1.*, head2.*' in caplog.text
    assert not [r for r in caplog.records if r.levelname in ('WARNING', 'ERROR')]
    x = official.make_input(64, 64).float()
    expected, _ = official.forward(state, x)
    for name, out in levels(backbone, x).items():
        assert deviation(out, expected[name].numpy()) < 1e-4


@pytest.mark.parametrize('prefix', ['backbone.', 'a.b.c.'])
def test_official_names_load_at_any_prefix(prefix, tmp_path):
    model = nn.Module()
    place = model
    for part in prefix.rstrip('.').split('.')[:-1]:
        place.add_module(part, nn.Module())
        place = place.get_submodule(part)
    backbone = build(arch=TINY)
    place.add_module(prefix.rstrip('.').split('.')[-1], backbone)
    state = {prefix + k: v for k, v in tiny_official().items()}
    torch.save({'state_dict': state}, tmp_path / 'segmentor.pth')
    load_checkpoint(model, str(tmp_path / 'segmentor.pth'), strict=True)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[prefix + FFNET_SEG_NAMES.to_official(name)]), name


def test_ffnet_and_ffnet_seg_refuse_each_others_weights(tmp_path):
    """Their official names look alike, and ffnet3 even has the same widths."""
    torch.save(tiny_official(), tmp_path / 'seg.pth')
    arch = dict(TINY, channels=[8, 16, 32, 64])
    torch.save(MODELS.build(dict(type='FFNet', arch=arch)).state_dict(), tmp_path / 'ffnet.pth')
    with pytest.raises(ValueError, match=r'seg\.pth does not fit FFNet custom'):
        mmffnet.load_pretrained(
            MODELS.build(dict(type='FFNet', arch=arch)), str(tmp_path / 'seg.pth')
        )
    with pytest.raises(ValueError, match='another variant'):
        mmffnet.load_pretrained(build(arch=arch), str(tmp_path / 'ffnet.pth'))


# --------------------------------------------------------------------------- as a backbone


def test_defaults_are_the_official_ones():
    backbone = build()
    assert backbone.arch == 'ffnetseg' and backbone.out_channels == (192, 384, 768)
    assert not [n for n, _ in backbone.named_parameters() if n.startswith('norm')]
    scales = [p for n, p in backbone.named_parameters() if n.endswith('scale')]
    assert len(scales) == 2 * 30 and all((p == 1e-5).all() for p in scales)
    rates = [getattr(b.drop_path, 'drop_prob', 0.0) for s in backbone.stages for b in s.blocks]
    assert rates == pytest.approx([0.2 * j / 29 for j in range(30)], abs=1e-7)


def test_arguments_of_ffnet_work_here_too():
    backbone = build(
        arch=TINY,
        in_channels=4,
        out_indices=(0, 3),
        out_norm_cfg=dict(type='BN'),
        token_mixer=[None, None, None, dict(kernel_size=7)],
        act_cfg=dict(type='SiLU'),
        norm_cfg=dict(type='SyncBN'),
        frozen_stages=1,
        with_cp=True,
    )
    assert backbone.out_channels == (8, 28)
    branches = backbone.stages[3].blocks[0].token_mixer.key.children()
    kernels = [branch.conv.kernel_size for branch in branches]
    assert kernels == [(7, 7), (3, 3), (1, 7), (7, 1)]
    assert not any(isinstance(m, nn.GELU | nn.BatchNorm2d) for m in backbone.stages.modules())
    assert not any(p.requires_grad for p in backbone.stem.parameters())


def test_layer_depths():
    """A layer for the stem, 1 + 1 + 6 + 1 for the stages, and one for the rest."""
    backbone = build(arch=dict(TINY, depths=[3, 4, 18, 5]), out_norm_cfg=dict(type='BN'))
    depths = {n: backbone.get_layer_depth(n)[0] for n, _ in backbone.named_parameters()}
    assert set(depths.values()) == set(range(11))
    assert depths['stages.2.downsample.spatial.conv.weight'] == 3
    assert depths['stages.2.blocks.17.channel_mixer.project.weight'] == 8


@torch.no_grad()
@pytest.mark.export
def test_compile_and_export():
    backbone = build(arch=dict(TINY, depths=[1, 1, 1, 1])).eval()
    x, other = torch.rand(2, 3, 64, 96), torch.rand(1, 3, 50, 70)
    torch._dynamo.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend='aot_eager')
    for out, expected in zip(compiled(x), backbone(x), strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    mmffnet.reparameterize(backbone)
    auto = torch.export.Dim.AUTO
    shapes = {'x': {0: auto, 2: auto, 3: auto}}
    exported = torch.export.export(backbone, (x,), dynamic_shapes=shapes).module()
    for out, expected in zip(exported(other), backbone(other), strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
