"""FFNetHead is numerically the official one, in mmseg's segmentors and in its registry."""

import copy
import subprocess
import sys
from functools import lru_cache

import numpy as np
import official_reference as official
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.analysis import FlopAnalyzer
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from reference_numbers import LIMITS, deviation, load
from torch import nn

import mmffnet
from mmffnet.checkpoint import convert_names
from mmffnet.models.ffnet import FFNET_HEAD_NAMES
from mmffnet.models.layers import FusibleBlock

pytest.importorskip('mmseg')

HEADS = {
    'ade20k': dict(num_classes=150),
    'cityscapes': dict(num_classes=19, head_depth=5, expansion_ratio=1, drop_path_rate=0.0),
}
LIMIT = LIMITS['float64']


def build(**kwargs):
    kwargs.setdefault('in_channels', [192, 384, 768])
    return MODELS.build(dict(type='FFNetHead', **kwargs))


def build_tiny(**kwargs):
    kwargs = {**dict(in_channels=[8, 12, 20], head_width=8, head_depth=2, num_classes=5), **kwargs}
    return build(**kwargs)


@lru_cache(maxsize=2)
def filled(variant):
    return official.fill(official.official_keys(variant, 'head'))


@pytest.fixture(scope='module', params=list(HEADS))
def loaded(request, device):
    """A float64 head with the filled official weights."""
    head = build(**HEADS[request.param]).double().eval()
    head.load_state_dict(filled(request.param))
    return request.param, head.to(device)


def tiny_official(head, seed=0):
    """Random weights of a head under the official names."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, like in head.state_dict().items():
        noise = torch.rand(like.shape, generator=generator)
        if name.endswith(('var', 'norm.weight')):
            value = 0.5 + noise
        else:
            value = (noise - 0.5) * 2 / max(like[0].numel(), 4) ** 0.5 if like.ndim else like
        state[FFNET_HEAD_NAMES.to_official(name)] = value.to(like.dtype)
    return state


def tiny_maps(height, width, batch=1, channels=(8, 12, 20)):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s), generator=generator)
        for c, s in zip(channels, (8, 16, 32), strict=True)
    ]


# --------------------------------------------------------------------------- numbers


@torch.no_grad()
def test_logits_equal_the_committed_numbers(loaded, device):
    variant, head = loaded
    records = load(f'head_{variant}')
    assert {tuple(r['size']) for r in records} == {(64, 64), (96, 128)}
    for record in records:
        maps = [x.to(device) for x in official.make_features(*record['size'])]
        assert deviation(head(maps), record) < LIMIT


@torch.no_grad()
def test_logits_equal_the_full_official_ones(fixture_dir):
    head = build(**HEADS['ade20k']).double().eval()
    head.load_state_dict(filled('ade20k'))
    for form in ('unfused', 'fused'):
        if form == 'fused':
            mmffnet.reparameterize(head)
        with np.load(fixture_dir / 'head_ade20k.out.npz') as arrays:
            for size in ('64x64', '96x128'):
                maps = [torch.from_numpy(arrays[f'f{i}_{size}']) for i in range(3)]
                assert deviation(head(maps), arrays[f'logits_{size}']) < LIMIT, (form, size)


@torch.no_grad()
@pytest.mark.slow
def test_both_forms_equal_the_reference(loaded, device):
    variant, head = loaded
    maps = official.make_features(64, 96, batch=2)
    expected = official.forward(filled(variant), maps)[0]['logits'].numpy()
    maps = [x.to(device) for x in maps]
    deployed = build(**HEADS[variant], deploy=True).double().eval().to(device)
    deployed.load_state_dict(filled(variant))
    for form in (head, deployed, mmffnet.reparameterize(copy.deepcopy(head))):
        assert deviation(form(maps), expected) < LIMIT
    assert not any(isinstance(m, FusibleBlock) for m in deployed.modules())


@pytest.mark.parametrize('expansion_ratio', [1, 4])
def test_training_equals_the_reference(expansion_ratio, device):
    """Logits from batch statistics, running statistics after the step, and all gradients."""
    head = build_tiny(
        expansion_ratio=expansion_ratio, drop_path_rate=0.0, dropout_ratio=0.0
    ).double()
    weights = tiny_official(head)
    head.load_state_dict(weights)
    params = {
        key: value.clone().requires_grad_() if value.is_floating_point() else value
        for key, value in weights.items()
    }
    ours = [x.double().to(device).requires_grad_() for x in tiny_maps(64, 96, batch=2)]
    theirs = [x.detach().cpu().clone().requires_grad_() for x in ours]
    expected, statistics = official.forward(params, theirs, training=True)
    logits = head.train().to(device)(ours).cpu()
    assert deviation(logits, expected['logits'].detach().numpy()) < LIMIT
    factors = torch.rand(logits.shape, dtype=logits.dtype)
    (factors * logits).sum().backward()
    (factors * expected['logits']).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert deviation(a.grad, b.grad.numpy()) < LIMIT
    for name, param in head.named_parameters():
        gradient = params[FFNET_HEAD_NAMES.to_official(name)].grad
        # gradients that cancel to nothing (weights before a batch norm) have no scale of their own
        scale = max(float(gradient.abs().max()), 1e-3)
        assert float((param.grad.cpu() - gradient).abs().max()) / scale < 1e-8, name
    buffers = dict(head.named_buffers())
    assert len(statistics) == len(buffers) > 60
    for name, buffer in buffers.items():
        reference = statistics[FFNET_HEAD_NAMES.to_official(name)].detach()
        torch.testing.assert_close(buffer.cpu(), reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ('variant', 'sizes'),
    [
        ('ade20k', ((4.651, 18.929), (4.532, 18.523))),
        ('cityscapes', ((3.932, 15.938), (3.736, 15.262))),
    ],
)
def test_parameters_and_macs(variant, sizes):
    """For an image of 512x512: millions, and billions of multiply-adds."""
    head = build(**HEADS[variant]).eval()
    for params, macs in sizes:
        assert round(sum(p.numel() for p in head.parameters()) / 1e6, 3) == params
        analysis = FlopAnalyzer(head, ([x.float() for x in official.make_features(64, 64)],))
        analysis.unsupported_ops_warnings(False)
        # the multiply-adds of convolutions grow with the area exactly
        assert analysis.by_operator()['conv'] * 64 / 1e9 == pytest.approx(macs, abs=6e-4)
        mmffnet.reparameterize(head)


# --------------------------------------------------------------------------- levels


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 9), width=st.integers(1, 9), dtype=st.sampled_from(['float32', 'float64'])
)
def test_resizing_by_size_is_the_official_scaling_for_multiples_of_32(height, width, dtype):
    maps = [x.to(getattr(torch, dtype)) for x in tiny_maps(32 * height, 32 * width)]
    for i, x in enumerate(maps):
        by_size = F.interpolate(x, maps[0].shape[2:], mode='bicubic', align_corners=False)
        by_factor = F.interpolate(x, scale_factor=2**i, mode='bicubic', align_corners=False)
        assert torch.equal(by_size, by_factor)


@torch.no_grad()
@pytest.mark.parametrize('size', [(33, 65), (47, 100), (8, 8), (250, 40)])
def test_any_size(size):
    head = build_tiny().eval()
    maps = tiny_maps(*size)
    logits = head(maps)
    assert logits.shape == (1, 5, *maps[0].shape[2:])
    # a constant map is the same in every size
    constant = [torch.full_like(x, 0.3 + i) for i, x in enumerate(maps)]
    same_size = [x[..., :1, :1].expand(-1, -1, *maps[0].shape[2:]) for x in constant]
    torch.testing.assert_close(head(constant), head(same_size), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_in_index_chooses_the_maps():
    head = build_tiny().eval()
    maps = tiny_maps(64, 64)
    expected = head(maps)
    finest = torch.rand(1, 4, 16, 16)
    other = build_tiny(in_index=[1, 2, 3]).eval()
    other.load_state_dict(head.state_dict())
    assert torch.equal(other([finest, *maps]), expected)
    assert torch.equal(other((finest, *maps)), expected)
    with pytest.raises(ValueError, match=r'in_index \[1, 2, 3\] asks for more than the 3 maps'):
        other(maps)


@torch.no_grad()
def test_any_number_of_levels():
    x = torch.rand(1, 8, 6, 7)
    assert build_tiny(in_channels=[8]).eval()([x]).shape == (1, 5, 6, 7)
    four = build_tiny(in_channels=[8, 8, 8, 8]).eval()
    assert four([x, x[..., :3], x[..., :2], x[..., :1]]).shape == (1, 5, 6, 7)


# --------------------------------------------------------------------------- arguments


def test_arguments_reach_their_layers():
    head = build_tiny(
        head_depth=3,
        kernel_size=5,
        drop_path_rate=0.3,
        dropout_ratio=0.2,
        final_expansion_ratio=2,
        channels=16,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        act_cfg=dict(type='SiLU'),
        ignore_index=7,
        loss_decode=dict(type='mmseg.FocalLoss'),
    )
    assert head.conv_seg.in_channels == 16 and head.ignore_index == 7
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for block in head.blocks]
    assert rates == pytest.approx([0.0, 0.15, 0.3])
    assert isinstance(head.dropout, nn.Dropout2d) and head.dropout.p == 0.2
    assert type(head.loss_decode).__name__ == 'FocalLoss'
    assert head.blocks[0].token_mixer.key.large.conv.kernel_size == (5, 5)
    assert head.blocks[0].channel_mixer.dwconv.row.conv.kernel_size == (1, 5)
    assert not any(isinstance(m, nn.GELU | nn.BatchNorm2d) for m in head.modules())
    assert not [n for n, _ in head.named_parameters() if n.endswith('scale')]


def test_initialisation():
    """As official: conv_seg is normal with std 0.01, all else is PyTorch's own."""
    torch.manual_seed(0)
    head = build_tiny(num_classes=150, head_width=64)
    kept = copy.deepcopy(head.state_dict())
    head.init_weights()
    assert head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.conv_seg.bias.any()
    changed = {k for k, v in head.state_dict().items() if not torch.equal(v, kept[k])}
    assert changed == {'conv_seg.weight', 'conv_seg.bias'}


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(in_channels=192), 'in_channels must list the channels of each level, got 192'),
        (dict(in_channels=[]), 'in_channels must list'),
        (dict(in_index=[0, 1]), r'one entry for each of in_channels \[8, 12, 20\], got \[0, 1\]'),
        (dict(in_index=1), 'one entry for each of in_channels'),
        (dict(channels=512), r'channels must be head_width \* .* = 8 \* 4 = 32, got 512'),
        (dict(head_depth=0), 'head_depth must be a positive integer, got 0'),
        (dict(head_depth=True), 'head_depth must be a positive integer, got True'),
        (dict(final_expansion_ratio=1.5), 'final_expansion_ratio must be a positive integer'),
        (dict(drop_path_rate=1.5), r'drop_path_rate must be a number in \[0, 1\), got 1.5'),
        (dict(drop_path_rate='0.1'), r'drop_path_rate must be a number'),
        (dict(norm_cfg=dict(type='LN')), "norm_cfg: 'LN' is over the last dimension"),
        (dict(norm_cfg=dict(type='BNN')), "norm_cfg: no layer of the type 'BNN'"),
        (dict(kernel_size=8), 'kernel_size must be a positive odd integer'),
        (dict(norm_cfg=dict(type='GN', num_groups=2), deploy=True), 'GroupNorm'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_tiny(**kwargs)


# --------------------------------------------------------------------------- checkpoints


def test_every_official_name_has_exactly_one_of_ours(loaded):
    variant, head = loaded
    keys = [key for key, _ in official.official_keys(variant, 'head')]
    ours = [FFNET_HEAD_NAMES.to_ours(key) for key in keys]
    assert [FFNET_HEAD_NAMES.to_official(key) for key in ours] == keys
    assert sorted(ours) == sorted(head.state_dict())


ARCH = dict(depths=[1, 1, 1, 1], channels=[8, 8, 12, 20], stem_channels=8)


def segmentor(model_type='EncoderDecoder', **kwargs):
    cfg = dict(
        type=model_type,
        backbone=dict(type='FFNetSeg', arch=ARCH),
        decode_head=dict(
            type='FFNetHead', in_channels=[8, 12, 20], head_width=8, head_depth=2, num_classes=5
        ),
        test_cfg=dict(mode='whole'),
        **kwargs,
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(cfg)


@pytest.mark.parametrize('form', ['trained', 'deployed'])
def test_official_segmentor_loads_through_load_from(form, tmp_path):
    source = segmentor().double().eval()
    for name in ('backbone', 'decode_head'):
        part = getattr(source, name)
        for module in part.modules():  # statistics that are not those of a new network
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    state = convert_names(source.state_dict(), 'official')
    assert {'backbone.patch_embed.5.c.weight', 'decode_head.squeeze.0.c.weight'} <= set(state)
    assert 'decode_head.head_blocks.1.channel_mixer.main.conv.strip_conv2.bn.bias' in state
    back = convert_names(state, 'ours')
    assert list(back) == list(source.state_dict())
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'official.pth')
    if form == 'trained':
        target = segmentor()
    else:
        target = segmentor('mmffnet.Reparameterized', original='EncoderDecoder')
    target.double().eval()
    load_checkpoint(target, str(tmp_path / 'official.pth'), strict=True)
    x = torch.rand(1, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(target(x), source(x), rtol=1e-9, atol=1e-9)


def test_weights_that_do_not_fit_are_refused():
    state = build_tiny(expansion_ratio=1).state_dict()
    with pytest.raises(
        ValueError,
        match=r'another variant than FFNetHead.*expanded to 8, those of the network .*to 32',
    ):
        build_tiny(expansion_ratio=4).load_state_dict(state)
    fused = mmffnet.reparameterize(build_tiny()).state_dict()
    with pytest.raises(ValueError, match='build the FFNetHead with deploy=True'):
        build_tiny().load_state_dict(fused)
    build_tiny(deploy=True).load_state_dict(fused)


# --------------------------------------------------------------------------- what PyTorch does


@pytest.mark.parametrize('deploy', [False, True])
@torch.no_grad()
@pytest.mark.slow
def test_trace_and_export(deploy):
    head = build_tiny(head_depth=1, deploy=deploy).eval()
    maps, other = tiny_maps(64, 96, batch=2), tiny_maps(70, 50)
    traced = torch.jit.trace(head, (maps,))
    auto = torch.export.Dim.AUTO
    shapes = {'inputs': [{0: auto, 2: auto, 3: auto} for _ in maps]}
    exported = torch.export.export(head, (maps,), dynamic_shapes=shapes).module()
    for run in (traced, exported):
        for inputs in (maps, other):
            torch.testing.assert_close(run(inputs), head(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    """A training step; with the code generator left out, which is PyTorch's own affair."""
    torch._dynamo.reset()
    head = build_tiny(head_depth=1, dropout_ratio=0.0).train()
    compiled = torch.compile(head, fullgraph=True, backend='aot_eager')
    reference = copy.deepcopy(head)
    maps = tiny_maps(64, 64, batch=2)
    compiled(maps).square().mean().backward()
    reference(maps).square().mean().backward()
    for a, b in zip(head.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


# --------------------------------------------------------------------------- registries

CONFIG = "dict(type='FFNetHead', in_channels=[4], head_width=4, head_depth=1, num_classes=3)"
FIND_IT = f"""
from mmengine.registry import MODELS as ROOT, init_default_scope
from mmseg.registry import MODELS
head = MODELS.build({CONFIG})
init_default_scope('mmseg')
other = ROOT.build({CONFIG})
from mmffnet.models.ffnet_head import FFNetHead
assert type(head) is type(other) is MODELS.get('FFNetHead') is FFNetHead
assert ROOT.get('mmseg.FFNetHead') is FFNetHead
"""


@pytest.mark.slow
def test_configs_find_it_if_mmseg_is_imported_first():
    code = 'import mmseg.models, mmffnet' + FIND_IT
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True, timeout=200)


@pytest.mark.slow
def test_configs_find_it_if_mmffnet_is_imported_first(toy, tmp_path):
    child = toy.Child(tmp_path / 'log', FIND_IT, function=toy.run_code)
    assert child.wait() == 0, child.text


@pytest.mark.slow
def test_without_mmseg_the_error_says_so(toy, tmp_path):
    code = f"""
import sys
sys.modules['mmseg'] = None
from mmengine.registry import MODELS
try:
    MODELS.build({CONFIG})
except ImportError as error:
    print(error)
"""
    child = toy.Child(tmp_path / 'log', code, function=toy.run_code)
    assert child.wait() == 0, child.text
    message = 'FFNetHead is a decode head for mmsegmentation, which cannot be imported'
    assert message in child.text
