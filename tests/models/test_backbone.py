"""The backbone skeleton: arguments, training modes, and what PyTorch does to modules."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS
from torch import nn

from mmffnet.models import FFNet, MixerBackbone

LAYER_NORM = dict(type='mmffnet.ChannelLayerNorm')
TINY = dict(depths=[1, 1, 2, 1], channels=[8, 16, 32, 64], stem_channels=8)


def build(arch=TINY, **kwargs):
    kwargs.setdefault('drop_path_rate', 0.0)
    return MODELS.build(dict(type='FFNet', arch=arch, **kwargs))


def loss_of(outs):
    return sum(out.square().mean() for out in outs)


def assert_same(ours, theirs, **kwargs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **kwargs)


@settings(max_examples=15, deadline=None)
@given(
    depths=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    first=st.integers(1, 4),
    factors=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    out_indices=st.sets(st.integers(0, 3), min_size=1).map(sorted),
    in_channels=st.integers(1, 4),
)
def test_any_arch(depths, first, factors, out_indices, in_channels):
    channels = [first]
    for factor in factors:
        channels.append(channels[-1] * factor)
    arch = dict(depths=depths, channels=channels, stem_channels=4)
    backbone = build(arch, out_indices=out_indices, in_channels=in_channels).eval()
    outs = backbone(torch.rand(1, in_channels, 33, 64))
    expected = [(1, channels[i], -(-33 // 2 ** (i + 2)), 2 ** (4 - i)) for i in out_indices]
    assert [tuple(out.shape) for out in outs] == expected
    assert backbone.out_channels == tuple(channels[i] for i in out_indices)
    # what no output needs is not there: nothing is left without a gradient
    loss_of(backbone(torch.rand(2, in_channels, 64, 64))).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_outputs_are_normalised_but_the_next_stage_gets_the_raw_map():
    raw = build(out_norm_cfg=None).eval()
    normed = build().eval()
    assert normed.load_state_dict(raw.state_dict(), strict=False).unexpected_keys == []
    x = torch.rand(1, 3, 64, 64)
    for a, b in zip(raw(x), normed(x), strict=True):
        expected = (a - a.mean(1, keepdim=True)) / (a.var(1, False, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(b, expected, rtol=1e-4, atol=1e-5)


def test_drop_path_grows_linearly_over_all_blocks():
    backbone = build('ffnet1', drop_path_rate=0.26)
    blocks = [block for stage in backbone.stages for block in stage.blocks]
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for block in blocks]
    assert rates == pytest.approx([0.02 * j for j in range(14)], abs=1e-7)
    assert isinstance(blocks[0].drop_path, nn.Identity)
    # without the last stages the schedule of the others is the same
    blocks = [
        b
        for stage in build('ffnet1', drop_path_rate=0.26, out_indices=1).stages
        for b in stage.blocks
    ]
    assert blocks[-1].drop_path.drop_prob == pytest.approx(0.06)


class Patches(MixerBackbone):
    """A family without a stem, with norms in front of the mixers and behind the stages."""

    arch_settings: ClassVar = {
        'five': dict(depths=(1, 1, 7, 1, 1), channels=(4, 8, 12, 16, 20), patch=2)
    }
    arch_defaults: ClassVar = dict(
        patch=3, token_mixer=dict(type='Pooling'), channel_mixer=dict(type='mmffnet.MetaMixer')
    )
    default_norm_cfg = LAYER_NORM
    default_out_norm_cfg = None
    pre_norm = True
    first_stride = 2

    def make_downsample(self, i, in_channels, out_channels):
        patch = self.settings['patch']
        return nn.Conv2d(in_channels, out_channels, patch, 2, patch - 2)

    def make_tail(self, i):
        return MODELS.build(dict(self.norm_cfg, channels=self.channels[i]))


@pytest.mark.parametrize('with_cp', [False, True])
def test_a_family_with_other_parts(with_cp):
    backbone = Patches('five', out_indices=(1, 3), with_cp=with_cp, frozen_stages=1)
    assert isinstance(backbone.stages[0].downsample, nn.Conv2d)
    assert (backbone.channels, backbone.out_channels) == ((4, 8, 12, 16), (8, 16))
    assert (backbone.strides, backbone.size_divisor) == ((2, 4, 8, 16), 16)
    assert backbone.layer_scale_init_value is None and backbone.default_drop_path_rate == 0
    x = torch.rand(2, 3, 64, 96)
    outs = backbone.train()(x)
    assert [tuple(out.shape) for out in outs] == [(2, 8, 16, 24), (2, 16, 4, 6)]
    loss_of(outs).backward()
    trained = {name for name, param in backbone.named_parameters() if param.grad is not None}
    assert trained == {n for n in backbone.state_dict() if not n.startswith('stages.0.')}
    # the norm is inline: the output has it, and the next stage as well
    x = backbone.stages[0](x)
    second = backbone.stages[1](x)
    block = backbone.stages[1].blocks[0]
    y = backbone.stages[1].downsample(x)
    y = y + block.token_mixer(block.token_norm(y))
    y = y + block.channel_mixer(block.channel_norm(y))
    torch.testing.assert_close(second, backbone.stages[1].tail(y))
    torch.testing.assert_close(outs[0], second)
    torch.testing.assert_close(outs[1], backbone.stages[3](backbone.stages[2](second)))


def test_layer_depths_of_a_family_without_a_stem():
    backbone = Patches('five')
    depths = {n: backbone.get_layer_depth(f'a.{n}', 'a.') for n, _ in backbone.named_parameters()}
    assert {layer for layer, _ in depths.values()} == {*range(7)}  # each has parameters
    assert {layers for _, layers in depths.values()} == {8}  # and the last is the head's
    assert depths['stages.0.downsample.weight'][0] == 0
    assert depths['stages.2.downsample.weight'][0] == 2
    assert depths['stages.2.blocks.6.token_norm.weight'][0] == 4
    assert depths['stages.2.tail.weight'][0] == 4
    assert backbone.get_layer_depth('head.weight', 'a.') == (7, 8)


def test_a_family_refuses_what_it_has_not():
    for name, value in dict(layer_scale_init_value=1.0, patch=3).items():
        with pytest.raises((TypeError, ValueError), match=name):
            Patches('five', **{name: value})
    arch = dict(depths=[1], channels=[4])
    assert Patches(arch).settings['patch'] == 3
    with pytest.raises(ValueError, match='stem_channels'):
        Patches(dict(arch, stem_channels=3))
    with pytest.raises(ValueError, match='4 follows 3'):
        build(dict(depths=[1, 1], channels=[3, 4]))


@pytest.mark.parametrize('stages', [1, 3, 5])
def test_any_number_of_stages(stages):
    arch = dict(
        depths=[1] * stages,
        channels=[4 * 2**i for i in range(stages)],
        stem_channels=4,
    )
    backbone = build(arch).eval()
    keys = [stage.blocks[0].token_mixer.key for stage in backbone.stages]
    assert [isinstance(key, nn.Conv2d) for key in keys] == [i < 2 for i in range(stages)]
    assert backbone.out_indices == tuple(range(stages))
    assert backbone.strides == tuple(4 * 2**i for i in range(stages))
    sizes = [out.shape[-1] for out in backbone(torch.rand(1, 3, 64, 64))]
    assert sizes == [64 // stride for stride in backbone.strides]


def test_norm_cfg_and_act_cfg_reach_every_layer():
    norm_cfg = dict(type='BN', momentum=0.01, eps=2e-5)
    backbone = build(
        norm_cfg=norm_cfg,
        act_cfg=dict(type='SiLU'),
        token_mixer=[None, None, None, dict(type='SelfAttention')],
    )
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 20 and {(m.momentum, m.eps) for m in norms} == {(0.01, 2e-5)}
    assert not any(isinstance(m, nn.GELU) for m in backbone.modules())
    assert sum(isinstance(m, nn.SiLU) for m in backbone.modules()) == 1 + 5 + 4
    syncbn = build(norm_cfg=dict(type='SyncBN', requires_grad=True))
    assert any(isinstance(m, nn.SyncBatchNorm) for m in syncbn.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in syncbn.modules())


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='ffnet9'), 'has no arch .ffnet9.; it has nano, ffnet1'),
        (dict(arch=3), 'a name or a dict'),
        (dict(arch=dict(depths=[1] * 4)), 'depths and channels'),
        (dict(arch=dict(TINY, deep=1)), 'may have stem_channels'),
        (dict(arch=dict(TINY, depths=[1, 1])), r'depths and channels must be of the same length'),
        (dict(arch=dict(TINY, depths=[])), 'depths must be positive integers, one for each stage'),
        (dict(arch=dict(TINY, channels=[8, 16, 32, 0])), 'channels must be positive integers'),
        (
            dict(arch=dict(TINY, channels=[8, 12, 32, 64])),
            'multiple of the one before, but 12 follows 8',
        ),
        (dict(out_indices=(1, 4)), r'out_indices .*0\.\.3 .*\(1, 4\)'),
        (dict(out_indices=(2, 1)), 'ascending'),
        (dict(out_indices=()), 'out_indices'),
        (dict(out_indices=1.5), 'out_indices'),
        (dict(out_indices=None), 'out_indices'),
        (dict(arch=dict(TINY, stem_channels=0)), 'stem_channels must be a positive'),
        (dict(channel_mixer=dict(expansion=2.5)), 'expansion must be a positive integer'),
        (dict(layer_scale_init_value='a'), "layer_scale_init_value .* got 'a'"),
        (dict(init_cfg=dict(type='Pretrained')), 'needs a checkpoint'),
        (dict(drop_path_rate='0.1'), 'drop_path_rate'),
        (dict(frozen_stages=5), r'frozen_stages must be -1'),
        (dict(frozen_stages=2, out_indices=0), r'1\.\.1'),
        (dict(drop_path_rate=1.0), 'drop_path_rate'),
        (dict(in_channels=0), 'in_channels'),
        (dict(token_mixer=[None, None]), 'token_mixer must be a dict or a list of 4'),
        (dict(token_mixer=dict(type='Nothing')), "mixer 'Nothing' is not registered"),
        (dict(channel_mixer=dict(kernel_size=4)), 'positive odd integer, got 4'),
        (dict(channel_mixer=dict(branches='many')), 'branches must be one of'),
        (dict(token_mixer=dict(type='SelfAttention')), 'multiple of head_dim'),
        (dict(token_mixer=dict(type='Pooling', pool_size=2)), 'pool_size'),
        (dict(deploy=True, norm_cfg=dict(type='GN', num_groups=2)), 'GroupNorm'),
        (dict(norm_cfg='BN'), "norm_cfg must be a dict with a type.* got 'BN'"),
        (dict(act_cfg=dict()), 'act_cfg must be a dict with a type.* got {}'),
        (
            dict(norm_cfg=dict(type='Nothing')),
            "norm_cfg: no layer of the type 'Nothing' is registered",
        ),
        (dict(out_norm_cfg=dict(type='LN')), r"out_norm_cfg: 'LN' .*'mmffnet.ChannelLayerNorm'"),
        (dict(init_cfg='x.pth'), "init_cfg must be a dict with a type.* got 'x.pth'"),
        (dict(init_cfg=dict(checkpoint='x.pth')), 'init_cfg must be a dict with a type'),
        (
            dict(init_cfg=dict(type='Pretrained', checkpoint='x.pth', prefx='')),
            'Pretrained does not take prefx; it takes checkpoint, prefix',
        ),
        (dict(token_mixer=dict(kernel_size='7')), "positive odd integer, got '7'"),
        (dict(token_mixer=dict(kernel_sise=7)), "'FFNifiedAttention'.*'kernel_sise'; it takes"),
        (dict(layer_scale_init_value=-1), 'layer_scale_init_value .* got -1'),
        (dict(out_indices=True), 'out_indices .*got True'),
        (dict(norm_cfg=dict(type='GN')), 'norm_cfg: .*GN.* for .* channels: an argument is miss'),
        (dict(norm_cfg=dict(type='BN', momentun=1)), 'norm_cfg: .*momentun'),
        (dict(out_norm_cfg=dict(type='GN', num_groups=3)), 'out_norm_cfg: .*GN.*divisible'),
        (dict(act_cfg=dict(type='BN')), 'act_cfg: '),
        (dict(act_cfg=dict(type='GELU', aproximate='tanh')), 'act_cfg: .*aproximate'),
        (dict(token_mixer=dict(norm_cfg=dict(type='LN'))), "norm_cfg: 'LN' is over the last"),
        (dict(frozen_stages=True), 'frozen_stages .*got True'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_recomputation_leaves_statistics_of_instance_norms():
    norm = dict(type='IN', track_running_stats=True)
    models = [FFNet('nano', norm_cfg=norm, drop_path_rate=0.0, with_cp=cp) for cp in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(1, 3, 64, 64)
    for model in models:
        model.train()(x)[-1].sum().backward()
    for one, other in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_scripted_models_can_be_trained():
    model = FFNet('nano', drop_path_rate=0.9, with_cp=True).train()
    scripted = torch.jit.script(model)
    x = torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    expected = model(x)[-1]
    torch.manual_seed(0)
    torch.testing.assert_close(scripted(x)[-1], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scripted.eval()(x)[-1], model.eval()(x)[-1])
    torch.fx.symbolic_trace(model.train())(x)[-1].sum().backward()
    assert all(p.grad is not None for p in model.stem.parameters())
