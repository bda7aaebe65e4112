"""The Triton kernels give the numbers of float64: on a GPU, or else in Triton's interpreter."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmffnet.models.layers import DepthwiseConv2d, MultiBranchDWConv
from mmffnet.ops import depthwise
from mmffnet.ops.depthwise import use_kernels

pytest.importorskip('triton')
ops = pytest.importorskip('mmffnet.ops.depthwise_triton')
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
#: channels, height, width, kernel, stride, multiplier: 70 is more than a block, and no multiple
SHAPES = [
    (5, 4, 6, 3, 1, 1),
    (3, 5, 4, 5, 2, 2),
    (4, 3, 5, 7, 1, 1),
    (2, 4, 3, 9, 1, 2),
    (70, 3, 2, 3, 2, 1),
]


@pytest.fixture
def device():
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def make(shape, dtype, device, small=None):
    channels, height, width, kernel, _, multiplier = shape
    x = 3 + torch.randn(2, channels, height, width)
    tensors = [x.to(memory_format=torch.channels_last)]
    tensors += [torch.randn(channels * multiplier, 1, k, k) for k in (kernel, small) if k]
    return [t.to(device, dtype).requires_grad_() for t in tensors]


def assert_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        a, b = (t.detach().cpu().double() for t in (a, b))
        assert (a - b).norm() <= tolerance * b.norm()


def in_float64(tensors):
    return [t.detach().cpu().double().requires_grad_() for t in tensors]


@pytest.mark.parametrize(
    ('shape', 'dtype'),
    [(shape, torch.float32) for shape in SHAPES]
    + [(SHAPES[0], torch.bfloat16), (SHAPES[1], torch.float16)],
)
def test_convolution(shape, dtype, device):
    x, weight = make(shape, dtype, device)
    bias = torch.randn(len(weight), device=device, dtype=dtype).requires_grad_()
    stride, padding = shape[4], shape[3] // 2
    y = ops.depthwise(x, weight, bias, stride, [padding, padding])
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(y)
    exact = in_float64((x, weight, bias))
    expected = F.conv2d(*exact, stride, padding, 1, x.shape[1])
    assert_close(
        [y, *torch.autograd.grad(y, (x, weight, bias), grad)],
        [expected, *torch.autograd.grad(expected, exact, grad.cpu().double())],
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize(
    ('shape', 'small', 'dtype'),
    [
        ((5, 4, 6, 7, 1, 1), 3, torch.float32),
        ((3, 5, 4, 5, 2, 2), 3, torch.float32),
        ((3, 4, 4, 5, 1, 1), 3, torch.bfloat16),
    ],
)
def test_pair(shape, small, dtype, device):
    tensors = make(shape, dtype, device, small)
    channels = len(tensors[1])
    tensors += [t.to(device).requires_grad_() for t in (torch.rand(2, channels) + 0.5,)]
    tensors += [torch.randn(2, channels, device=device).requires_grad_()]
    stride, padding, eps = shape[4], shape[3] // 2, [1e-5, 1e-3]
    y, mean, variance = ops.pair(*tensors, eps, stride, [padding, padding])
    grad = torch.randn_like(y)
    exact = in_float64(tensors)
    maps = [F.conv2d(exact[0], w, None, stride, w.shape[2] // 2, 1, shape[0]) for w in exact[1:3]]
    expected = sum(
        F.batch_norm(z, None, None, exact[3][i], exact[4][i], True, 0.1, eps[i])
        for i, z in enumerate(maps)
    )
    assert_close(mean, [z.mean((0, 2, 3)) for z in maps], 1e-6)
    assert_close(variance, [z.var((0, 2, 3), unbiased=False) for z in maps], 1e-6)
    assert_close(
        [y, *torch.autograd.grad(y, tensors, grad)],
        [expected, *torch.autograd.grad(expected, exact, grad.cpu().double())],
        2 * TOLERANCE[dtype],
    )


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(2, 2, 3, 3, 1, 1), (2, 3, 2, 3, 2, 2)])
def test_operators_are_well_formed(shape, device):
    x, weight = make(shape, torch.float32, device)
    bias = torch.randn(len(weight), device=device).requires_grad_()
    geometry = (shape[4], [1, 1])
    y = ops.depthwise(x, weight, None, *geometry).detach()
    scale = torch.rand(2, len(weight), device=device).requires_grad_()
    large, small = weight, torch.randn(len(weight), 1, 1, 1, device=device).requires_grad_()
    given = [t.detach() for t in (x, large, small)]
    statistics = ops.pair_statistics(*given, *geometry)
    for op, args in [
        (ops.depthwise, (x, weight, bias, *geometry)),
        (ops.depthwise, (x, weight, None, *geometry)),
        (ops.input_gradient, (y, given[1], y, given[2], list(x.shape), *geometry)),
        (ops.weight_gradient, (y, *given[:2], True, *geometry)),
        (ops.pair_statistics, (*given, *geometry)),
        (ops.pair_gradients, (y, *given, *statistics, scale.detach(), [1e-5, 1e-5], *geometry)),
        (ops.pair, (x, large, small, scale, scale.detach(), [1e-5, 1e-5], *geometry)),
    ]:
        torch.library.opcheck(op, args)


@pytest.mark.parametrize('mode', ['train', 'eval', 'mixed'])
def test_layers_use_them_when_asked_for(mode, device, monkeypatch):
    used = []
    for name in ('depthwise', 'pair'):
        op = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, op=op, name=name: used.append(name) or op(*a))
    block = MultiBranchDWConv(3, 5, out_channels=6, stride=2).train(mode != 'eval').to(device)
    block.large.norm.momentum = None
    block.small.norm.eval() if mode == 'mixed' else None
    for norm in (block.large.norm, block.small.norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.running_mean.uniform_(-1, 1)
    model = nn.Sequential(block, DepthwiseConv2d(6, 6, 3, padding=1).to(device))
    other = copy.deepcopy(model)
    x = torch.randn(2, 3, 5, 4, device=device).to(memory_format=torch.channels_last)
    found = []
    for net, kernels in ((model, 'triton'), (other, 'plain')):
        with use_kernels(kernels):
            y = net(x)
        y.square().sum().backward()
        found.append([y, *(p.grad for p in net.parameters()), *net.buffers()])
    first = ['pair'] if mode == 'train' else []  # which calls the other one
    assert used == first + ['depthwise'] * (3 if mode == 'mixed' else 2)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_where_they_do_not_serve():
    x, weight = make((3, 4, 4, 3, 1, 1), torch.float32, 'cpu')
    large = torch.randn(3, 1, 11, 11)
    for a, b, stride in [
        (x.detach().contiguous(), weight, (1, 1)),  # NCHW
        (x.double(), weight.double(), (1, 1)),
        (x, weight, (3, 3)),
        (x, weight, (1, 2)),
        (x, large, (1, 1)),
    ]:
        padding = (b.shape[2] // 2, b.shape[3] // 2)
        assert depthwise._choose(a, b, stride, padding, 'triton') != 'triton'
        assert depthwise._choose(x, weight, (1, 1), (1, 1), 'auto') != 'triton'


def test_pair_under_autocast(device):
    block = MultiBranchDWConv(3, 5).to(device)
    x = torch.randn(2, 3, 4, 3, device=device).to(memory_format=torch.channels_last)
    found = []
    for kernels in ('triton', 'plain'):
        with torch.autocast(device, torch.bfloat16), use_kernels(kernels):
            y = block(x)
        found.append([y, *torch.autograd.grad(y.float().square().sum(), list(block.parameters()))])
    assert found[0][0].dtype == torch.bfloat16
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
    assert_close(found[0][:1], found[1][:1], 2e-2)
