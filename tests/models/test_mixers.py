"""Mixers, and the seam that other mixers plug into."""

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmffnet.models.mixers import MetaMixer, build_mixer

TINY = dict(depths=[1, 1, 1, 1], channels=[8, 16, 32, 64], stem_channels=8)


def test_pooling_averages_the_valid_neighbours():
    x = torch.rand(1, 2, 5, 4)
    y = build_mixer(dict(type='Pooling'), 2)(x)
    for i in range(5):
        for j in range(4):
            near = x[0, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            torch.testing.assert_close(y[0, :, i, j], near.mean((1, 2)) - x[0, :, i, j])


def test_self_attention_is_softmax_attention():
    mixer = build_mixer(dict(type='SelfAttention', head_dim=4), 8).double().eval()
    mixer.qkv.norm.running_mean.normal_()
    x = torch.randn(2, 8, 3, 5, dtype=torch.double)
    q, k, v = mixer.qkv.conv(mixer.qkv.norm(x)).flatten(2).chunk(3, 1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = q[:, head].transpose(1, 2) @ k[:, head] / 2  # sqrt of 4 channels per head
        heads.append(v[:, head] @ scores.softmax(-1).transpose(1, 2))
    expected = mixer.project(torch.cat(heads, 1).reshape(2, 8, 3, 5))
    torch.testing.assert_close(mixer(x), expected)


def test_ffnified_attention_is_query_key_value():
    mixer = build_mixer(dict(type='FFNifiedAttention', kernel_size=7), 4)
    names = [name for name, _ in mixer.named_children()]
    assert names == ['query', 'key', 'act', 'value']
    assert {n: b.conv.kernel_size for n, b in mixer.key.named_children()} == {
        'large': (7, 7),
        'small': (3, 3),
    }
    plain = build_mixer(dict(type='FFNifiedAttention', kernel_size=3), 4)
    assert isinstance(plain.key, nn.Conv2d) and plain.key.bias is not None


@pytest.mark.parametrize('kernel_size', [3, 7])
def test_presets_are_cases_of_the_meta_mixer(kernel_size):
    """The same operations, in the same order, as configs."""
    attention_branches = 'plain' if kernel_size == 3 else 'pair'
    depthwise = dict(type='DepthwiseConv', kernel_size=kernel_size, branches=attention_branches)
    ffn_branches = 'norm' if kernel_size == 3 else 'pair'
    presets = {
        'FFNifiedAttention': dict(
            query=dict(type='PointwiseConv', norm=True), key=depthwise, value=depthwise
        ),
        'ConvFFN': dict(
            query=dict(depthwise, branches=ffn_branches),
            key=dict(type='PointwiseConv', expansion=3),
            value=dict(type='PointwiseConv'),
        ),
    }
    x = torch.rand(2, 4, 9, 8)
    for name, operations in presets.items():
        preset = build_mixer(dict(type=name, kernel_size=kernel_size), 4)
        meta = build_mixer(dict(type='mmffnet.MetaMixer', **operations), 4)
        assert isinstance(preset, MetaMixer) and type(meta) is MetaMixer
        values = preset.state_dict().values()
        meta.load_state_dict(dict(zip(meta.state_dict(), values, strict=True)))
        assert torch.equal(meta(x), preset(x))


def test_meta_mixer_is_value_of_act_of_key_of_query():
    cfg = dict(
        type='MetaMixer',
        query=dict(type='PointwiseConv', expansion=2, norm=True),
        value=dict(type='PointwiseConv'),
        act_cfg=dict(type='SiLU'),
        norm_cfg=dict(type='BN', eps=1e-2),
    )
    mixer = build_mixer(cfg, 4)
    assert [name for name, _ in mixer.named_children()] == ['query', 'key', 'act', 'value']
    assert isinstance(mixer.key, nn.Identity) and mixer.query.norm.eps == 1e-2
    x = torch.rand(2, 4, 3, 5)
    expected = mixer.value(nn.functional.silu(mixer.query(x)))
    assert torch.equal(mixer(x), expected) and expected.shape == x.shape
    nothing = build_mixer(dict(type='MetaMixer'), 4)
    assert torch.equal(nothing(x), nn.functional.gelu(x))


@pytest.mark.parametrize(
    ('operations', 'message'),
    [
        (dict(query='PointwiseConv'), 'query must be a dict with a type'),
        (dict(key=dict(expansion=2)), 'key must be a dict with a type'),
        (dict(key=dict(type='PointwiseConv', expansion=2)), 'value must give 4 channels.* got 8'),
        (dict(value=dict(type='PointwiseConv', out_channels=3)), 'value must give 4 .* got 3'),
        (dict(value=dict(type='Nothing')), "'Nothing' is not registered"),
        (dict(key=dict(type='DepthwiseConv', size=3)), "'DepthwiseConv'.* 'size'"),
    ],
)
def test_bad_operations(operations, message):
    with pytest.raises(ValueError, match=message):
        build_mixer(dict(type='MetaMixer', **operations), 4)


@pytest.mark.parametrize(
    ('branches', 'kernel', 'expected'),
    [
        ('pair', 9, {'large': (9, 9), 'small': (5, 5)}),
        ('pair', 5, {'large': (5, 5), 'small': (3, 3)}),
        ('strips', 9, {'large': (9, 9), 'small': (5, 5), 'row': (1, 9), 'column': (9, 1)}),
        ('strips', 3, {'large': (3, 3), 'row': (1, 3), 'column': (3, 1)}),
    ],
)
def test_branches(branches, kernel, expected):
    mixer = build_mixer(dict(type='ConvFFN', kernel_size=kernel, branches=branches), 4)
    kernels = {n: b.conv.kernel_size for n, b in mixer.dwconv.named_children()}
    assert kernels == expected
    assert mixer(torch.rand(2, 4, 6, 5)).shape == (2, 4, 6, 5)


def test_a_mixer_from_elsewhere_plugs_in():
    """It need not know of norm_cfg or act_cfg, and gets them where it asks for them."""

    @MODELS.register_module(name='ShiftMixer', force=True)
    class ShiftMixer(nn.Module):
        def __init__(self, channels, step=1):
            super().__init__()
            self.channels, self.step = channels, step

        def forward(self, x):
            return x.roll(self.step, 3)

    @MODELS.register_module(name='NormMixer', force=True)
    class NormMixer(nn.Module):
        def __init__(self, channels, norm_cfg):
            super().__init__()
            self.norm_cfg = norm_cfg

        def forward(self, x):
            return x

    norm_cfg = dict(type='BN', eps=1e-3)
    backbone = MODELS.build(
        dict(
            type='FFNet',
            arch=TINY,
            norm_cfg=norm_cfg,
            token_mixer=[dict(type='ShiftMixer', step=2), None, dict(kernel_size=5), None],
            channel_mixer=[None, None, None, dict(type='NormMixer')],
        )
    )
    shift = backbone.stages[0].blocks[0].token_mixer
    assert (shift.channels, shift.step) == (8, 2)
    assert backbone.stages[2].blocks[0].token_mixer.key.large.conv.kernel_size == (5, 5)
    assert backbone.stages[3].blocks[0].token_mixer.key.large.conv.kernel_size == (7, 7)
    assert backbone.stages[3].blocks[0].channel_mixer.norm_cfg == norm_cfg
    sum(out.mean() for out in backbone(torch.rand(2, 3, 64, 64))).backward()


def test_a_mixer_of_the_default_scope_is_found():
    mmseg_registry = pytest.importorskip('mmseg.registry')
    from mmengine.registry import DefaultScope

    @mmseg_registry.MODELS.register_module(name='SegMixer', force=True)
    class SegMixer(nn.Identity):
        def __init__(self, channels):
            super().__init__()

    with DefaultScope.overwrite_default_scope('mmseg'):
        assert isinstance(build_mixer(dict(type='SegMixer'), 4), SegMixer)
    with (
        DefaultScope.overwrite_default_scope('mmengine'),
        pytest.raises(ValueError, match='not registered'),
    ):
        build_mixer(dict(type='SegMixer'), 4)
