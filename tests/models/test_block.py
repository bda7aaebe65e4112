"""The block of named residual branches."""

import copy

import pytest
import torch
from mmcv.cnn.bricks import DropPath
from torch import nn

from mmffnet.models import MixerBlock

POOLING = dict(token=dict(mixer=dict(type='Pooling')), channel=dict(mixer=dict(type='Pooling')))
GROUP_NORM = dict(type='GN', num_groups=1)


def test_a_dropped_sample_passes_unchanged():
    block = MixerBlock(4, POOLING, drop_path=0.5, layer_scale_init_value=0.3).train()
    x = torch.rand(256, 4, 8, 8)
    y = block(x)
    dropped = (y == x).flatten(1).all(1)
    assert 30 < int(dropped.sum()) < 98  # both branches dropped: a quarter of the samples
    assert isinstance(block.drop_path, DropPath)
    twice = x + 0.3 * block.token_mixer(x)
    torch.testing.assert_close(block.eval()(x), twice + 0.3 * block.channel_mixer(twice))


def test_half_precision_does_not_round_the_rate():
    """0.001 is less than bfloat16 can tell from 0."""
    drop = MixerBlock(4, POOLING, drop_path=0.001).train().drop_path
    y = drop(torch.ones(200_000, 1, 1, 1, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert 100 < int((y == 0).sum()) < 300


def test_post_activation():
    plain = MixerBlock(4, POOLING)
    post = MixerBlock(4, POOLING, post_act=True)
    x = torch.rand(1, 4, 8, 8)
    token = nn.functional.gelu(x + plain.token_mixer(x))
    expected = nn.functional.gelu(token + plain.channel_mixer(token))
    torch.testing.assert_close(post(x), expected)


def test_branches_have_their_own_parts():
    """Three of them: one bare, one with all parts, one with the norm of the second."""
    block = MixerBlock(
        4,
        dict(
            local=dict(mixer=dict(type='Pooling'), layer_scale=False, drop_path=False),
            token=dict(mixer=dict(type='Pooling', pool_size=5), norm=GROUP_NORM),
            channel=dict(mixer=dict(type='Pooling'), norm='token'),
        ),
        drop_path=0.5,
        layer_scale_init_value=0.3,
    )
    assert list(block.state_dict()) == [
        'token_norm.weight',
        'token_norm.bias',
        'token_scale.scale',
        'channel_scale.scale',
    ]
    nn.init.uniform_(block.token_norm.weight)
    x = torch.rand(64, 4, 6, 6)
    local = x + block.local_mixer(x)
    token = local + 0.3 * block.token_mixer(block.token_norm(local))
    expected = token + 0.3 * block.channel_mixer(block.token_norm(token))
    for form in (block, copy.deepcopy(block)):
        torch.testing.assert_close(form.eval()(x), expected)
    dropped = (block.train()(x) == local).flatten(1).all(1)
    assert 4 < int(dropped.sum()) < 28  # a quarter of them, and the first branch never


@pytest.mark.parametrize(
    ('branch', 'message'),
    [
        (dict(type='Pooling'), "branch 'token' .* mixer"),
        (dict(mixer=dict(type='Pooling'), scale=True), "branch 'token' .* scale; .* layer_scale"),
        (dict(mixer=dict(type='Pooling'), norm='local'), "branch 'token'.* norm .* 'local'"),
        (dict(mixer=dict(type='Pooling'), norm='token'), "branch 'token'.* norm .* 'token'"),
    ],
)
def test_bad_branches(branch, message):
    with pytest.raises(ValueError, match=message):
        MixerBlock(4, dict(local=dict(mixer=dict(type='Pooling')), token=branch))
