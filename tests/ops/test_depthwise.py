"""All implementations give PyTorch's numbers, and what is traced is PyTorch's own."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from mmffnet.models.layers import DepthwiseConv2d, MultiBranchDWConv, reparameterize
from mmffnet.ops import depthwise, depthwise_cpu
from mmffnet.ops.depthwise import depthwise_conv2d, depthwise_repeat, use_kernels
from mmffnet.ops.depthwise_cpu import depthwise_strips

LAYOUTS = [torch.contiguous_format, torch.channels_last]
KERNELS = [(3, 3), (5, 5), (7, 7), (9, 9), (11, 11), (1, 9), (9, 1), (13, 2)]


def make(kernel, multiplier=1, size=(9, 11), layout=LAYOUTS[0], dtype=torch.double, bias=True):
    x = torch.randn(2, 3, *size, dtype=dtype).to(memory_format=layout)
    weight = torch.randn(3 * multiplier, 1, *kernel, dtype=dtype).to(memory_format=layout)
    shift = torch.randn(3 * multiplier, dtype=dtype) if bias else None
    return [None if t is None else t.requires_grad_() for t in (x, weight, shift)]


def plain(x, weight, bias, stride, padding):
    return F.conv2d(x, weight, bias, stride, padding, 1, x.shape[1])


def results(function, args, stride, padding):
    """The output and all gradients."""
    y = function(*args, stride, padding)
    given = [t for t in args if t is not None]
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
    return [y, *torch.autograd.grad((y * weights).sum(), given)]


def assert_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        for layout in LAYOUTS:
            assert a.is_contiguous(memory_format=layout) == b.is_contiguous(memory_format=layout)
        difference, norm = (t.detach().double().norm() for t in (a - b, b))
        assert difference <= tolerance * max(norm, 1e-6)


@pytest.mark.parametrize(
    ('implementation', 'layout'),
    [
        (depthwise_strips, torch.contiguous_format),
        (depthwise_strips, torch.channels_last),
        (depthwise_repeat, torch.channels_last),
    ],
    ids=['strips-nchw', 'strips-nhwc', 'repeat-nhwc'],
)
@pytest.mark.parametrize('multiplier', [1, 2, 3])
@pytest.mark.parametrize('stride', [(1, 1), (2, 2), (3, 3), (1, 2)])
@pytest.mark.parametrize('kernel', KERNELS, ids=str)
def test_equal_in_float64(implementation, layout, multiplier, stride, kernel):
    for padded, size in itertools.product((True, False), [(9, 11), (4, 7), (16, 13)]):
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        if not padded and (size[0] < kernel[0] or size[1] < kernel[1]):
            continue
        args = make(kernel, multiplier, size, layout)
        ours = results(implementation, args, stride, padding)
        assert_close(ours, results(plain, args, stride, padding), 1e-12)


@pytest.mark.parametrize('layout', LAYOUTS, ids=['nchw', 'nhwc'])
@pytest.mark.parametrize(('stride', 'multiplier'), [(1, 1), (2, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize('kernel', [3, 5, 7, 9])
def test_float32_to_its_rounding(kernel, stride, multiplier, layout):
    """oneDNN's kernels, which float64 does not use."""
    padding = (kernel // 2, kernel // 2)
    for size in [(32, 32), (17, 23), (8, 8), (3, 5)]:
        args = make((kernel, kernel), multiplier, size, layout, torch.float32)
        ours = results(depthwise_strips, args, (stride, stride), padding)
        assert_close(ours, results(plain, args, (stride, stride), padding), 3e-6)
        assert ours[2].stride() == args[1].stride()  # as DistributedDataParallel wants it


@pytest.mark.parametrize(('stride', 'multiplier'), [(1, 1), (2, 1), (2, 2), (1, 2)])
@pytest.mark.slow
def test_gradients_of_gradients(stride, multiplier):
    args = make((5, 5), multiplier, (5, 6))

    def function(x, weight, bias):
        return depthwise_strips(x, weight, bias, (stride, stride), (2, 2))

    assert gradcheck(function, args) and gradgradcheck(function, args)


@pytest.mark.parametrize('frozen', [(), (0,), (1,), (2,), (0, 2), (0, 1)])
@pytest.mark.parametrize('multiplier', [1, 2])
def test_frozen(frozen, multiplier):
    args = make((5, 5), multiplier)
    for i in frozen:
        args[i].requires_grad_(False)
    asked = [t for t in args if t.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(depthwise_strips(*args, (1, 1), (2, 2)).square().sum(), asked),
        torch.autograd.grad(plain(*args, (1, 1), (2, 2)).square().sum(), asked),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def chosen(x, weight, padding=(3, 3), **kwargs):
    return depthwise._choose(x, weight, (1, 1), padding, **kwargs)


@pytest.fixture
def vectorised(monkeypatch):
    """A CPU that oneDNN has kernels for, whatever this one is."""
    monkeypatch.delenv('MMFFNET_KERNELS', raising=False)
    monkeypatch.setattr(depthwise, 'has_depthwise_kernels', lambda dtype: dtype == torch.float32)


@pytest.mark.usefixtures('vectorised')
def test_the_table():
    x, weight, _ = make((7, 7), dtype=torch.float32)
    assert chosen(x, weight) == 'strips'
    assert chosen(x.double(), weight.double()) == 'plain'
    assert chosen(x[..., :2], weight) == 'plain'  # less than the padding
    assert chosen(x[:0], weight) == 'plain'
    assert chosen(x[0], weight) == 'plain'
    with torch.no_grad():
        assert chosen(x, weight) == 'plain'
    assert chosen(x, weight.detach()) == 'plain'
    small = make((3, 3), dtype=torch.float32)[1]
    assert chosen(x, small, (1, 1)) == 'plain'
    assert chosen(x[:, :, :2], small, (1, 1)) == 'strips'  # lower than the kernel
    two = make((3, 3), multiplier=2, dtype=torch.float32)[1].detach()
    assert chosen(x, two, (1, 1)) == 'strips'


@pytest.mark.usefixtures('vectorised')
def test_what_overrides_the_table(monkeypatch):
    x, weight, _ = make((7, 7), dtype=torch.float32)
    monkeypatch.setenv('MMFFNET_KERNELS', 'plain')
    assert chosen(x, weight) == 'plain'
    with use_kernels('auto'):
        assert chosen(x, weight) == 'strips'
        with use_kernels('plain'):
            assert chosen(x, weight) == 'plain'
            assert chosen(x, weight, kernels='auto') == 'strips'
        assert chosen(x, weight) == 'strips'
    monkeypatch.setenv('MMFFNET_KERNELS', 'fast')
    with pytest.raises(ValueError, match='MMFFNET_KERNELS must be one of'):
        chosen(x, weight)
    with pytest.raises(ValueError, match='kernels must be one of'), use_kernels('fast'):
        pass


@pytest.fixture
def strips_used(monkeypatch):
    """Counts the uses of what is not PyTorch's own."""
    used = []

    def count(*args):
        used.append(args)
        return depthwise_strips(*args)

    monkeypatch.delenv('MMFFNET_KERNELS', raising=False)
    monkeypatch.setattr(depthwise, 'has_depthwise_kernels', lambda dtype: True)
    monkeypatch.setattr(depthwise, 'depthwise_strips', count)
    return used


def two_convolutions():
    return nn.Sequential(
        DepthwiseConv2d(4, 8, 7, stride=2, padding=3), DepthwiseConv2d(8, 8, 5, padding=2)
    )


def test_graphs_are_plain(strips_used):
    model = two_convolutions()
    x = torch.rand(2, 4, 16, 16)
    expected = model(x)
    assert len(strips_used) == 2
    strips_used.clear()
    batch = torch.export.Dim('batch')
    graphs = [
        torch.jit.trace(model, x, check_trace=False),
        torch.jit.script(model),
        torch.fx.symbolic_trace(model),
        torch.export.export(model, (x,), strict=False).module(),
        torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=True).module(),
        torch.compile(model, backend='eager', fullgraph=True),
    ]
    for graph in graphs:
        torch.testing.assert_close(graph(x), expected)
    ops = [str(n.target) for n in graphs[2].graph.nodes if n.op == 'call_function']
    assert all('conv2d' in op for op in ops)
    params = dict(model.named_parameters())
    torch.func.grad(lambda p: torch.func.functional_call(model, p, x).sum())(params)
    torch.func.vmap(model)(x[None])
    with torch.autograd.forward_ad.dual_level():
        model(torch.autograd.forward_ad.make_dual(x, x))
    assert not strips_used


def test_autocast(strips_used):
    model, x = two_convolutions(), torch.rand(1, 4, 16, 16)
    found = []
    for kernels in ('plain', 'auto'):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16), use_kernels(kernels):
            y = model(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        found.append([y.float(), *(p.grad for p in model.parameters())])
    assert strips_used
    for a, b in zip(*found, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).detach().norm() <= 0.02 * b.detach().norm()


def test_layer_is_a_convolution():
    layer = DepthwiseConv2d(4, 8, 5, stride=2, padding=2).double()
    other = nn.Conv2d(4, 8, 5, stride=2, padding=2, groups=4).double()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(1, 4, 9, 9, dtype=torch.double)
    assert torch.equal(layer(x), other(x))
    block = MultiBranchDWConv(4, 7, 'strips', 8, 2)
    assert all(type(branch.conv) is DepthwiseConv2d for branch in block.children())


def test_fused_blocks_use_the_table(strips_used):
    block = MultiBranchDWConv(4, 7, out_channels=8, stride=2).eval()
    fused = reparameterize(block)
    x = torch.rand(2, 4, 16, 16)
    assert len(strips_used) == 0
    torch.testing.assert_close(fused(x), block(x))
    assert len(strips_used) == 3  # one for the fused block, two for its branches


def compiled_on_a_gpu(channels_last):
    """What the compiler is given for the downsampling on a GPU, which need not be there."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    with FakeTensorMode(), torch.device('cuda'):
        layout = LAYOUTS[channels_last]
        x = torch.empty(2, 4, 8, 8).to(memory_format=layout)
        layer = DepthwiseConv2d(4, 8, 3, stride=2, padding=1, bias=False)
        y = torch.compile(layer, backend=keep, fullgraph=True)(x)
        assert y.shape == (2, 8, 4, 4) and y.is_contiguous(memory_format=layout)
    (conv,) = [node for node in graphs[0].graph.nodes if node.target in (F.conv2d, torch.conv2d)]
    return conv.args[-1]


@pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_exporting'),
    reason='this PyTorch hides exports',
)
def test_compiled_downsampling_has_no_groups_to_launch(monkeypatch):
    monkeypatch.delenv('MMFFNET_KERNELS', raising=False)
    assert compiled_on_a_gpu(channels_last=True) == 8  # as many as outputs, a true depthwise one
    assert compiled_on_a_gpu(channels_last=False) == 4
    with use_kernels('plain'):
        torch._dynamo.reset()
        assert compiled_on_a_gpu(channels_last=True) == 4


def test_triton_that_does_not_run_is_reported(monkeypatch):
    with FakeTensorMode():
        x, weight = (torch.empty(*size, device='cuda') for size in ((2, 4, 8, 8), (4, 1, 3, 3)))
    monkeypatch.setattr(depthwise, '_has_triton', lambda device: True)
    with pytest.warns(UserWarning, match='not run on Triton: the map is not in channels_last'):
        assert chosen(x, weight, (1, 1), kernels='triton') == 'plain'
    x = x.to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert chosen(x, weight, (1, 1), kernels='triton') == 'triton'
    with pytest.warns(UserWarning, match=r'has none for torch.float64'):
        chosen(x.double(), weight.double(), (1, 1), kernels='triton')
    monkeypatch.setattr(depthwise, '_has_triton', lambda device: False)
    with pytest.warns(UserWarning, match='it cannot run here'):
        chosen(x, weight, (1, 1), kernels='triton')


def test_bfloat16_without_hardware_is_reported_once(monkeypatch, recwarn):
    x, weight, _ = make((3, 3), dtype=torch.bfloat16)
    depthwise_cpu.warn_of_bfloat16.cache_clear()
    monkeypatch.setattr(depthwise_cpu, 'has_bfloat16', lambda: True)
    depthwise_conv2d(x, weight)
    depthwise_cpu.warn_of_bfloat16.cache_clear()
    assert not [w for w in recwarn if 'AVX512-BF16' in str(w.message)]
    monkeypatch.setattr(depthwise_cpu, 'has_bfloat16', lambda: False)
    for _ in range(2):
        depthwise_conv2d(x, weight)
    assert len([w for w in recwarn if 'AVX512-BF16' in str(w.message)]) == 1
    depthwise_cpu.warn_of_bfloat16.cache_clear()
