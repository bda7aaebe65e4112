"""Re-parameterised networks compute the same function, and load both kinds of checkpoints."""

import copy
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmffnet
from mmffnet.models.layers import (
    ConvNorm,
    DepthwiseConv2d,
    FusibleBlock,
    MultiBranchDWConv,
    NormConv,
)

TINY = dict(depths=[1, 1, 2, 1], channels=[8, 16, 32, 64], stem_channels=8)


def disturb(model):
    """Statistics and weights that a fresh network has not: fresh BN is nearly the identity."""
    for m in model.modules():
        if isinstance(m, _BatchNorm):
            m.running_mean.normal_(0, 0.5)
            m.running_var.uniform_(0.3, 3)
            nn.init.normal_(m.weight, 1, 0.3)
            nn.init.normal_(m.bias, 0, 0.3)
    return model


def build(**kwargs):
    return disturb(
        MODELS.build(dict(type='FFNet', arch=TINY, layer_scale_init_value=0.5, **kwargs))
    )


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * max(float(b.abs().max()), 1)


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.sampled_from([3, 5, 7, 9, 11]),
    branches=st.sampled_from(['pair', 'strips']),
    stride=st.integers(1, 2),
    multiplier=st.integers(1, 2),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
)
def test_branches_fold(kernel, branches, stride, multiplier, size):
    block = disturb(MultiBranchDWConv(3, kernel, branches, 3 * multiplier, stride)).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.double)
    fused = block.fuse()
    assert type(fused) is DepthwiseConv2d and fused.kernel_size == (kernel, kernel)
    assert_same([fused(x)], [block(x)])


@pytest.mark.parametrize('residual', [False, True])
def test_norm_before_convolution_folds(residual):
    block = disturb(NormConv(6, 6, residual)).double().eval()
    x = torch.randn(2, 6, 3, 3, dtype=torch.double)
    assert_same([block.fuse()(x)], [block(x)])
    with pytest.raises(ValueError, match='as many channels'):
        NormConv(4, 6, residual=True)


def test_backbone_is_unchanged_in_value_and_kind(device):
    backbone = build(frozen_stages=1).double().to(device, memory_format=torch.channels_last)
    backbone.train()
    expected = copy.deepcopy(backbone).eval()
    x = torch.randn(2, 3, 65, 70, dtype=torch.double, device=device)
    fused = mmffnet.reparameterize(backbone)
    assert fused is backbone and fused.deploy and not expected.deploy
    assert not any(isinstance(m, _BatchNorm | FusibleBlock) for m in fused.modules())
    # flags: training as before, frozen parts frozen
    assert fused.training and not fused.stem.training
    assert not fused.stem.conv1.training and fused.stages[3].blocks[0].token_mixer.key.training
    assert not fused.stem.conv1.weight.requires_grad
    assert fused.stages[1].blocks[0].token_mixer.query.weight.requires_grad
    assert {p.dtype for p in fused.parameters()} == {torch.double}
    assert {p.device.type for p in fused.parameters()} == {device}
    assert fused.stem.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert_same(fused.eval()(x), expected(x))
    once = copy.deepcopy(fused.state_dict())
    mmffnet.reparameterize(fused)
    assert all(torch.equal(v, once[k]) for k, v in fused.state_dict().items())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_folds_in_double(dtype, device):
    backbone = build().to(device, dtype)
    fused = mmffnet.reparameterize(copy.deepcopy(backbone))
    exact = mmffnet.reparameterize(copy.deepcopy(backbone).double())
    for a, b in zip(fused.parameters(), exact.parameters(), strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype))


@pytest.mark.parametrize('norm', ['BN', 'SyncBN', 'reverted'])
def test_every_batch_norm_is_recognised(norm, device):
    norm_cfg = dict(type='BN' if norm == 'BN' else 'SyncBN')
    backbone = build(norm_cfg=norm_cfg).double().eval().to(device)
    if norm == 'reverted':  # what mmengine's Runner does on one device
        backbone = revert_sync_batchnorm(backbone)
    x = torch.randn(1, 3, 64, 64, dtype=torch.double, device=device)
    expected = copy.deepcopy(backbone)
    mmffnet.reparameterize(backbone)
    assert not any(isinstance(m, _BatchNorm) for m in backbone.modules())
    assert_same(backbone(x), expected(x))


def test_other_norms_are_refused_and_nothing_is_lost():
    model = nn.Sequential(
        ConvNorm(4, 4, 3), ConvNorm(4, 4, 3, norm_cfg=dict(type='GN', num_groups=2))
    )
    with pytest.raises(ValueError, match=r'only a batch norm .* not GroupNorm'):
        mmffnet.reparameterize(model)
    assert isinstance(model[0], ConvNorm) and isinstance(model[0].norm, nn.BatchNorm2d)


def test_deploy_loads_both_forms(device):
    trained = build().double().eval().to(device)
    x = torch.randn(1, 3, 64, 64, dtype=torch.double, device=device)
    expected = trained(x)
    fused = mmffnet.reparameterize(copy.deepcopy(trained))
    for state in (trained.state_dict(), fused.state_dict()):
        keys = list(state)
        deployed = MODELS.build(
            dict(type='FFNet', arch=TINY, layer_scale_init_value=0.5, deploy=True)
        )
        deployed.double().eval().to(device).load_state_dict(state)
        assert deployed.deploy and list(state) == keys  # the caller's dict is left alone
        assert_same(deployed(x), expected)
    deployed.float().load_state_dict(trained.float().state_dict(), assign=True)
    assert {p.dtype for p in deployed.parameters()} == {torch.float32}
    trained.double(), deployed.double()
    # weights that take the places of others stay where they are
    there = {key: value.to('meta') for key, value in trained.state_dict().items()}
    moved = copy.deepcopy(deployed)
    moved.load_state_dict(there, assign=True)
    assert {p.device.type for p in moved.parameters()} == {'meta'}
    wrong = trained.state_dict()
    wrong['stem.conv1.conv.weight'] = torch.rand(8, 3, 5, 5)
    with pytest.raises(
        RuntimeError, match=r'(?s)below stem\.conv1: .*size mismatch for conv\.weight'
    ):
        deployed.load_state_dict(wrong)
    incomplete = trained.state_dict()
    del incomplete['stem.conv1.norm.running_var']
    with pytest.raises(RuntimeError, match=r'stem.conv1.norm.running_mean'):
        deployed.load_state_dict(incomplete)


def test_a_fused_checkpoint_needs_a_fused_network():
    backbone = build()
    state = mmffnet.reparameterize(copy.deepcopy(backbone)).state_dict()
    with pytest.raises(ValueError, match=r're-parameterised.*deploy=True'):
        backbone.load_state_dict(state)


class Head(nn.Module):
    """Plain convolutions with batch norms as they stand in necks and heads."""

    def __init__(self):
        super().__init__()
        bn = dict(type='BN')
        shared = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.a = ConvModule(4, 4, 3, padding=1, norm_cfg=bn)
        self.b = ConvModule(4, 4, 3, padding=1, norm_cfg=bn)
        self.a.conv = self.b.conv = shared  # as heads that share weights between levels do
        self.biased = ConvModule(4, 4, 1, bias=True, norm_cfg=bn)
        self.norm_first = ConvModule(4, 4, 1, norm_cfg=bn, order=('norm', 'conv', 'act'))
        self.act_between = ConvModule(4, 4, 1, norm_cfg=bn, order=('conv', 'act', 'norm'))
        self.group = ConvModule(4, 4, 1, norm_cfg=dict(type='GN', num_groups=2))
        self.sequence = nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)
        )
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.biased(self.a(x) + self.b(x))
        x = self.group(self.act_between(self.norm_first(x)))
        return self.conv(self.bn(self.sequence(x)))  # the norm first, whatever the names suggest


def test_batch_norms_elsewhere_fold_where_it_is_safe():
    head = disturb(Head()).double().eval()
    x = torch.randn(2, 4, 5, 6, dtype=torch.double)
    fused = mmffnet.reparameterize(copy.deepcopy(head))
    assert_same([fused(x)], [head(x)])
    left = sorted(n for n, m in fused.named_modules() if isinstance(m, _BatchNorm))
    assert left == ['act_between.bn', 'bn', 'norm_first.bn', 'sequence.3']
    # both forms of checkpoints load
    for state in (head.state_dict(), fused.state_dict()):
        other = mmffnet.reparameterize(Head().double().eval())
        other.load_state_dict(state)
        assert_same([other(x)], [head(x)])


def test_a_block_in_several_places_stays_one():
    block = ConvNorm(4, 4, 3).eval()
    model = mmffnet.reparameterize(nn.Sequential(block, block, nn.Sequential(block)))
    first, second, (third,) = model
    assert type(first) is nn.Conv2d
    assert first is second is third


def test_who_listens_to_a_block_goes_on_listening():
    heard = []
    block = ConvNorm(4, 4, 3).eval()
    block.register_forward_hook(lambda module, args, out: heard.append(out))
    block.register_forward_pre_hook(
        lambda module, args, kwargs: heard.append(kwargs), with_kwargs=True
    )
    model = mmffnet.reparameterize(nn.Sequential(block))
    out = model(torch.rand(1, 4, 5, 5))
    assert heard[0] == {}
    assert torch.equal(heard[1], out)


def test_what_is_not_plain_is_left_alone():
    class Rectified(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    heard = nn.BatchNorm2d(4)
    heard.register_forward_hook(lambda module, args, out: out + 1)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Rectified(4), nn.Conv2d(4, 4, 1), heard)
    model = disturb(model).double().eval()
    x = torch.randn(1, 4, 3, 3, dtype=torch.double)
    expected = model(x)
    assert_same([mmffnet.reparameterize(model)(x)], [expected])
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model) == 2


def test_convolutions_that_change_their_weights_are_left_alone():
    class Standardised(nn.Conv2d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(input, weight / weight.std(), bias)

    model = nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4), DepthwiseConv2d(4, 4, 3))
    model = disturb(model.append(nn.BatchNorm2d(4))).double().eval()
    x = torch.randn(1, 3, 9, 8, dtype=torch.double)
    expected = model(x)
    assert_same([mmffnet.reparameterize(model)(x)], [expected])
    assert [isinstance(m, nn.BatchNorm2d) for m in model] == [False, True, False, False]


def test_who_listens_inside_a_block_is_not_dropped_in_silence():
    for change in (
        lambda block: block.norm.register_forward_hook(lambda module, args, out: 2 * out),
        lambda block: block.norm.register_full_backward_hook(lambda module, *grads: None),
        lambda block: setattr(block.conv, 'forward', lambda x: x),
        lambda block: setattr(block, 'forward', lambda x: x),
        lambda block: block.register_full_backward_hook(lambda module, *grads: None),
    ):
        model = nn.Sequential(nn.Sequential(ConvNorm(3, 4, 3)), ConvNorm(4, 4, 3))
        change(model[0][0])
        with pytest.raises(ValueError, match=r'0\.0: ConvNorm cannot be folded: it has'):
            mmffnet.reparameterize(model)
        assert isinstance(model[0][0], FusibleBlock) and isinstance(model[1], FusibleBlock)


def test_loading_keeps_no_copy_of_who_listens():
    class Recorder:
        def __init__(self, model):
            self.model, self.lock = model, threading.Lock()  # which cannot be copied

        def __call__(self, module, args, out):
            self.heard = out

    model = build(deploy=False).double().eval()
    before = copy.deepcopy(model.state_dict())
    recorder = Recorder(model)
    model.stem.conv1.register_forward_hook(recorder)
    x = torch.rand(1, 3, 64, 64, dtype=torch.double)
    expected = model(x)
    mmffnet.reparameterize(model)
    assert_same(model(x), expected)
    assert recorder.heard.shape[1] == 8
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    model.load_state_dict(before)
    assert_same(model(x), expected)
    structure = next(iter(model.stem.conv1._load_state_dict_pre_hooks.values())).hook.block
    assert all(t.is_meta for t in [*structure.parameters(), *structure.buffers()])


def test_whole_segmentor_and_its_deploy_config(tmp_path):
    mmseg = pytest.importorskip('mmseg.registry')
    bn = dict(type='BN')
    model = dict(
        type='mmseg.EncoderDecoder',
        backbone=dict(type='FFNet', arch=TINY),
        decode_head=dict(
            type='FCNHead', in_channels=64, channels=8, num_classes=3, norm_cfg=bn, num_convs=2
        ),
        test_cfg=dict(mode='whole'),
    )
    pytest.importorskip('mmseg.models')
    with mmseg.MODELS.switch_scope_and_registry('mmseg'):
        segmentor = disturb(mmseg.MODELS.build(model)).double().eval()
        x = torch.randn(1, 3, 64, 64, dtype=torch.double)
        expected = segmentor(x)
        fused = mmffnet.reparameterize(copy.deepcopy(segmentor))
        assert not any(isinstance(m, _BatchNorm) for m in fused.modules())
        assert_same([fused(x)], [expected])
        for source in (segmentor, fused):
            torch.save({'state_dict': source.state_dict()}, tmp_path / 'checkpoint.pth')
            deployed = mmseg.MODELS.build(
                dict(model, type='mmffnet.Reparameterized', original=model['type'])
            )
            deployed.double().eval()
            load_checkpoint(deployed, str(tmp_path / 'checkpoint.pth'), strict=True)
            assert_same([deployed(x)], [expected])
