"""The Triton kernels give the numbers of float64: on a GPU, or else in Triton's interpreter."""

import copy
import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmffnet
from mmffnet.models import FFNet
from mmffnet.models.layers import ConvNorm, DepthwiseConv2d, MultiBranchDWConv
from mmffnet.models.mixers import FFNifiedAttention
from mmffnet.ops import depthwise
from mmffnet.ops.depthwise import use_kernels

pytest.importorskip('triton')
ops = pytest.importorskip('mmffnet.ops.depthwise_triton')
tuning = pytest.importorskip('mmffnet.ops.triton_tuning')
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
LAST = torch.channels_last


@pytest.fixture
def device():
    return 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that are smaller than a small map: several of pixels and of channels."""
    monkeypatch.setattr(tuning, '_BLOCKS', dict.fromkeys(tuning._BLOCKS, (16, 4)))
    monkeypatch.setattr(tuning, '_SUM_BLOCKS', dict.fromkeys(tuning._SUM_BLOCKS, (16, 4)))
    monkeypatch.setattr(ops, '_PARTS', 2)


def make(size, sizes, multiplier, dtype, device):
    """A map and kernels."""
    tensors = [(3 + torch.randn(size)).to(memory_format=LAST)]
    tensors += [torch.randn(size[1] * multiplier, 1, *kernel) for kernel in sizes]
    return [t.to(device, dtype).requires_grad_() for t in tensors]


def assert_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        a, b = (t.detach().cpu().double() for t in (a, b))
        assert (a - b).norm() <= tolerance * b.norm() + 1e-9


def in_float64(tensors):
    return [t.detach().cpu().double().requires_grad_() for t in tensors]


@pytest.mark.parametrize(
    ('size', 'kernel', 'stride', 'multiplier', 'dtype', 'gelu'),
    [
        ((2, 5, 5, 7), (3, 3), 1, 1, torch.float32, False),
        ((2, 3, 5, 4), (5, 5), 2, 2, torch.float32, True),
        ((1, 4, 3, 5), (7, 7), 1, 1, torch.float32, True),  # lower than the kernel
        ((1, 2, 5, 1), (9, 9), 1, 2, torch.float32, False),
        ((2, 1, 1, 4), (1, 9), 2, 1, torch.float32, False),
        ((1, 6, 4, 3), (9, 1), 1, 1, torch.float32, False),
        ((2, 5, 5, 4), (3, 3), 2, 1, torch.bfloat16, True),
        ((2, 2, 4, 3), (3, 3), 1, 2, torch.float16, True),
        ((0, 5, 4, 3), (3, 3), 1, 1, torch.float32, True),
    ],
    ids=str,
)
@pytest.mark.usefixtures('small_blocks')
@pytest.mark.slow
def test_convolution(size, kernel, stride, multiplier, dtype, gelu, device):
    x, weight = make(size, [kernel], multiplier, dtype, device)
    bias = torch.randn(len(weight), device=device, dtype=dtype).requires_grad_()
    padding = (kernel[0] // 2, kernel[1] // 2)
    y = ops.depthwise(x, weight, bias, stride, padding, gelu)
    assert y.dtype == dtype and y.is_contiguous(memory_format=LAST)
    grad = torch.randn_like(y)
    grads = torch.autograd.grad(y, (x, weight, bias), grad)
    assert [g.dtype for g in grads] == [dtype] * 3
    exact = in_float64((x, weight, bias))
    expected = F.conv2d(*exact, stride, padding, 1, size[1])
    expected = F.gelu(expected) if gelu else expected
    theirs = torch.autograd.grad(expected, exact, grad.cpu().double())
    assert_close([y, *grads], [expected, *theirs], TOLERANCE[dtype])


def test_layouts_do_not_matter(device):
    """Maps that are slices, and gradients that are the same everywhere."""
    x, weight = make((2, 6, 4, 4), [(3, 3)], 1, torch.float32, device)
    x, weight = (t.detach() for t in (x, weight))
    found = []
    for layout in (x[:, ::2], x[:, ::2].contiguous(), x.transpose(2, 3)[:, ::2].transpose(2, 3)):
        layout.requires_grad_()
        y = ops.depthwise(layout, weight[::2], None, 1, (1, 1))
        found.append([y, *torch.autograd.grad(y.sum(), layout)])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize(
    ('size', 'sizes', 'stride', 'multiplier', 'dtype', 'gelu'),
    [
        ((2, 5, 3, 6), [(7, 7), (3, 3)], 1, 1, torch.float32, True),
        ((2, 3, 5, 4), [(5, 5), (3, 3)], 2, 2, torch.float32, False),
        ((2, 3, 5, 4), [(3, 3)], 2, 1, torch.float32, True),
        ((2, 3, 5, 4), [(3, 3), (1, 3), (3, 1)], 1, 2, torch.float32, True),
        ((1, 2, 3, 5), [(9, 9), (5, 5), (1, 9), (9, 1)], 1, 1, torch.float32, False),
        ((2, 3, 4, 4), [(3, 3), (1, 1)], 1, 1, torch.bfloat16, True),
        ((2, 3, 4, 5), [(3, 3)], 1, 1, torch.float16, False),
    ],
    ids=str,
)
@pytest.mark.usefixtures('small_blocks')
@pytest.mark.slow
def test_norms(size, sizes, stride, multiplier, dtype, gelu, device):
    x, *weights = make(size, sizes, multiplier, dtype, device)
    count = len(sizes)
    affine = torch.rand(2 * count, size[1] * multiplier, device=device).add(0.5).requires_grad_()
    geometry = [stride, sizes[0][0] // 2, sizes[0][1] // 2, *(n for pair in sizes for n in pair)]
    eps = [1.0, 0.5, 2.0, 1.5][:count]  # without, the scale of a kernel has no gradient
    y, found = ops.norms(x, ops._rows(*weights), affine, geometry, eps, '', gelu)
    assert y.dtype == dtype and y.is_contiguous(memory_format=LAST)
    grad = torch.randn_like(y)
    tensors = (x, affine, *weights)
    exact = in_float64(tensors)
    maps = [
        F.conv2d(exact[0], w, None, stride, (w.shape[2] // 2, w.shape[3] // 2), 1, size[1])
        for w in exact[2:]
    ]
    expected = sum(
        F.batch_norm(z, None, None, exact[1][i], exact[1][count + i], True, 0.1, eps[i])
        for i, z in enumerate(maps)
    )
    expected = F.gelu(expected) if gelu else expected
    assert_close(found[:count], [z.mean((0, 2, 3)) for z in maps], 1e-6)
    assert_close(found[2 * count : -1], [z.var((0, 2, 3)) for z in maps], 2e-6)
    assert found[-1].unique().item() == y.numel() / y.shape[1]
    assert_close(
        [y, *torch.autograd.grad(y, tensors, grad)],
        [expected, *torch.autograd.grad(expected, exact, grad.cpu().double())],
        3 * TOLERANCE[dtype],
    )


def test_statistics_of_large_means(device):
    """As exact as PyTorch's: the deviation is a thousandth of the mean."""
    x = (1000 + torch.randn(2, 3, 8, 8)).to(device, memory_format=LAST)
    weight = torch.ones(1, 3, device=device)
    affine = torch.tensor([[1.0], [0.0]], device=device).repeat(1, 3)
    y, found = ops.norms(x, weight, affine, [1, 0, 0, 1, 1], [1e-5], '', False)
    exact = x.double()
    assert_close(found[2], exact.var((0, 2, 3)), 1e-5)
    assert_close([y], [F.batch_norm(exact, None, None, None, None, True)], 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(('stride', 'multiplier'), [(1, 1), (2, 2)])
def test_operators_are_well_formed(stride, multiplier, device):
    x, weight = make((2, 2, 2, 2), [(1, 1)], multiplier, torch.float32, device)
    bias = torch.randn(len(weight), device=device).requires_grad_()
    one, two = [stride, 0, 0, 1, 1], [stride, 0, 0, 1, 1, 1, 1]
    rows = torch.randn(2, len(weight), device=device).requires_grad_()
    affine = torch.rand(4, len(weight), device=device).requires_grad_()
    y, found = (t.detach() for t in ops.norms(x, rows, affine, two, [1e-5] * 2, '', False))
    given = [t.detach() for t in (x, rows, affine)]
    for op, args in [
        (ops.convolve, (x, rows[:1], bias, one, True)),
        (ops.convolve, (x, rows[:1], None, one, False)),
        (ops.gelu_gradient, (y, given[0], given[1][:1], None, one)),
        (ops.input_gradient, (torch.cat([y, y]), given[1], two, list(x.shape))),
        (ops.weight_gradient, (torch.cat([y, y]), given[0], given[1], two, False)),
        (ops.weight_gradient, (y, given[0], given[1][:1], one, True)),
        (ops.norms, (x, rows, affine, two, [1e-5] * 2, '', True)),
        (ops.norms_gradients, (y, *given, found, two, '', True)),
    ]:
        torch.library.opcheck(op, args)


def count_calls(monkeypatch):
    used = []
    for name in ('convolve', 'norms'):
        op = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, op=op, name=name: used.append(name) or op(*a))
    return used


def perturbed(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def outcome(model, x, kernels):
    """Output, gradients and buffers of a step."""
    with use_kernels(kernels):
        y = model(x)
    grads = torch.autograd.grad(y.float().square().sum(), list(model.parameters()))
    return [y, *grads, *model.buffers()]


@pytest.mark.slow
def test_recomputation_runs_on_the_kernels_of_the_first_pass(device, monkeypatch):
    """Although the backward pass is outside of the choice."""
    used = count_calls(monkeypatch)
    arch = dict(depths=[1], channels=[8], stem_channels=8)
    plain, again = (
        FFNet(arch, out_norm_cfg=None, with_cp=cp).to(device, memory_format=LAST).train()
        for cp in (False, True)
    )
    again.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32).to(device, memory_format=LAST)
    for model in (plain, again):
        with use_kernels('triton'):
            (y,) = model(x)
        (y.square() * y.detach().cos()).sum().backward()
    assert used
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize('mode', ['train', 'eval', 'mixed'])
@pytest.mark.parametrize('block', ['pair', 'strips', 'norm'])
@pytest.mark.slow
def test_blocks_use_them_when_asked_for(block, mode, device, monkeypatch):
    used = count_calls(monkeypatch)
    if block == 'norm':
        block = ConvNorm(3, 6, 3, 2, groups=3, bias=True)
        norms = [block.norm]
    else:
        block = MultiBranchDWConv(3, 3, block, out_channels=6, stride=2)
        norms = [branch.norm for branch in block.children()]
    norms[0].momentum = None
    norms[-1].momentum = 0.3
    model = perturbed(nn.Sequential(block, DepthwiseConv2d(6, 6, 3, padding=1)))
    model = model.train(mode != 'eval').to(device)
    if mode == 'mixed':
        norms[-1].eval()
    other = copy.deepcopy(model)
    x = torch.randn(2, 3, 5, 4, device=device).to(memory_format=LAST)
    found = [outcome(model, x, 'triton') for _ in range(2)][1], None
    found = found[0], [outcome(other, x, 'plain') for _ in range(2)][1]
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    training = sum(norm.training for norm in norms)
    # a norm in training mode calls the convolution itself
    if mode == 'mixed' and len(norms) > 1:
        expected = ['norms'] * training + ['convolve'] * (training + 2)
    else:
        expected = ['norms'] * min(training, 1) + ['convolve'] * 2
    assert sorted(used) == sorted(2 * expected)


@pytest.mark.parametrize('kernel_size', [3, 5])
@pytest.mark.slow
def test_gelu_is_in_the_kernels(kernel_size, device, monkeypatch):
    """Of a token mixer: behind a convolution with bias, and behind a pair."""
    used, seen = count_calls(monkeypatch), []
    model = perturbed(FFNifiedAttention(3, kernel_size)).to(device)
    act = nn.GELU.forward
    monkeypatch.setattr(nn.GELU, 'forward', lambda self, x: seen.append(x) or act(self, x))
    x = torch.randn(2, 3, 4, 5, device=device).to(memory_format=LAST)
    found = [outcome(copy.deepcopy(model), x, kernels) for kernels in ('triton', 'plain')]
    assert len(seen) == 1 and used
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    model.eval()
    with use_kernels('triton'):
        y = mmffnet.reparameterize(model)(x)
    with use_kernels('plain'):
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
    assert len(seen) == 2
    model.act.register_full_backward_hook(lambda *args: None)
    with use_kernels('triton'):
        model(x)
    assert len(seen) == 3


def test_hooks_are_called(device, monkeypatch):
    used, seen = count_calls(monkeypatch), []
    block = MultiBranchDWConv(2, 3).to(device)
    block.small.norm.register_forward_hook(lambda *args: seen.append(args))
    with use_kernels('triton'):
        block(torch.randn(2, 2, 3, 3, device=device).to(memory_format=LAST))
    assert len(seen) == 1 and used.count('norms') == 1  # the other branch


def test_where_they_do_not_serve():
    x, weight = (t.detach() for t in make((2, 3, 4, 4), [(3, 3)], 1, torch.float32, 'cpu'))
    large = torch.randn(3, 1, 11, 11)
    huge = torch.empty(1, 3, 2**15, 2**15, dtype=torch.float16, device='meta')
    for a, b, stride, padding in [
        (x.contiguous(), weight, (1, 1), (1, 1)),  # NCHW
        (x.double(), weight.double(), (1, 1), (1, 1)),
        (x, weight, (3, 3), (1, 1)),
        (x, weight, (1, 2), (1, 1)),
        (x, large, (1, 1), (5, 5)),
        (x[:, :, :2], weight, (1, 1), (0, 0)),  # no output
        (x[:0], weight, (1, 1), (1, 1)),
        (huge.to(memory_format=LAST), weight, (1, 1), (1, 1)),
    ]:
        assert depthwise._choose(a, b, stride, padding, 'triton') != 'triton'
    assert depthwise._choose(x, weight, (1, 1), (1, 1), 'triton') == 'triton'
    assert depthwise._choose(x, weight, (1, 1), (1, 1), 'auto') != 'triton'


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype, device):
    block = MultiBranchDWConv(3, 3).to(device)
    x = torch.randn(2, 3, 4, 3, device=device).to(memory_format=LAST)
    found = []
    for kernels in ('triton', 'plain'):
        with torch.autocast(device, dtype):
            found.append(outcome(copy.deepcopy(block), x, kernels))
    assert found[0][0].dtype == dtype
    assert [t.dtype for t in found[0]] == [t.dtype for t in found[1]]
    assert_close(found[0][:1], found[1][:1], 2e-2)


def test_deterministic(device):
    """No sum depends on the order in which programs end."""
    block = MultiBranchDWConv(3, 3).to(device)
    x = torch.randn(2, 3, 4, 3, device=device).to(memory_format=LAST)
    torch.use_deterministic_algorithms(True)
    try:
        found = [outcome(copy.deepcopy(block), x, 'triton') for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, *found))


@pytest.mark.slow
def test_compiles_without_graph_breaks(device):
    """The convolutions are in the graph; the norms are PyTorch's."""
    model = DepthwiseConv2d(2, 2, 3, padding=1).to(device)
    x = torch.randn(2, 2, 3, 4, device=device).to(memory_format=LAST)
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    with use_kernels('triton'):
        y = torch.compile(model, backend=backend, fullgraph=True)(x)
        torch.testing.assert_close(y, model(x))
    assert 'mmffnet.depthwise.default' in graphs[0]


RANK = """
import torch
from mmffnet.models.layers import MultiBranchDWConv
from mmffnet.ops.depthwise import use_kernels

torch.distributed.init_process_group('gloo', 'file://' + store, rank=rank, world_size=2)
model = MultiBranchDWConv(3, 3, norm_cfg=dict(type='SyncBN', eps=0.5))
found = []
for step in torch.load(given):
    model.load_state_dict(step['model'])
    x, grad = (t.split(step['sizes'])[rank] for t in (step['x'], step['grad']))
    x.requires_grad_()
    with use_kernels('triton'):
        y = model(x)
    grads = torch.autograd.grad(y, [x, *model.parameters()], grad)
    found.append([y.detach(), *grads, *(b.clone() for b in model.buffers())])
torch.save(found, f'{given}.{rank}')
"""


@pytest.mark.dist
def test_processes_share_their_statistics(toy, tmp_path):
    """As one process with all of the batch; one has less of it, or nothing."""
    model = perturbed(MultiBranchDWConv(3, 3, norm_cfg=dict(type='BN', eps=0.5)))
    steps = []
    for sizes in ([3, 1], [0, 2]):
        x, grad = torch.randn(2, sum(sizes), 3, 4, 3).add(2)
        steps.append(dict(model=model.state_dict(), sizes=sizes, x=x, grad=grad))
    given = str(tmp_path / 'given')
    torch.save(steps, given)
    (tmp_path / 'rank.py').write_text(RANK)
    children = []
    for rank in range(2):
        values = dict(rank=rank, given=given, store=str(tmp_path / 'store'))
        log, script = tmp_path / f'{rank}.log', str(tmp_path / 'rank.py')
        children.append(toy.Child(log, script, values, function=runpy.run_path))
    assert [child.wait() for child in children] == [0, 0], [child.text for child in children]
    exact = model.double()
    start = copy.deepcopy(exact.state_dict())
    for step, *ours in zip(
        steps, *(torch.load(f'{given}.{rank}') for rank in range(2)), strict=True
    ):
        exact.load_state_dict(start)
        x = step['x'].double().requires_grad_()
        y = exact(x)
        dx, *grads = torch.autograd.grad(y, [x, *exact.parameters()], step['grad'].double())
        assert_close([torch.cat([found[i] for found in ours]) for i in range(2)], [y, dx], 2e-6)
        count = 2 + len(grads)
        added = [sum(parts) for parts in zip(*(found[2:count] for found in ours), strict=True)]
        assert_close(added, grads, 1e-5)
        for found in ours:
            assert_close(found[count:], exact.buffers(), 1e-6)


@pytest.mark.slow
def test_kernels_compile_ahead():
    """For Turing, Ampere and Hopper, without a GPU."""
    script = Path(__file__).parents[1] / 'triton_ahead.py'
    env = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    subprocess.run([sys.executable, str(script), '75', '80', '90'], env=env, check=True)


@pytest.mark.slow
def test_tuning(device, tmp_path, monkeypatch):
    """Choices that were measured are used, and PyTorch's own where that was faster."""
    block = ConvNorm(3, 3, 3, groups=3).to(device)
    x = torch.randn(2, 3, 4, 4, device=device).to(memory_format=LAST).requires_grad_()
    monkeypatch.setattr(tuning, '_CANDIDATES', ((32, 4, 4),))

    def step(kernels):
        def run():
            with use_kernels(kernels):
                block(x).square().sum().backward()

        return run

    def measure(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    found = tuning.tune(step('triton'), step('plain'), measure)
    assert found.pop('plain') == (device == 'cpu')  # no interpreter is faster
    assert {name.split()[0] for name in found} == {
        'forward',
        'input_gradient',
        'norm_gradients',
        *tuning._SUMS,
    }
    choices = dict.fromkeys(found, (4, 2, 4))
    path = tmp_path / 'choices.json'
    path.write_text(json.dumps({tuning._card(x.device): choices}))
    monkeypatch.setenv('MMFFNET_TRITON_CHOICES', str(path))
    more = (torch.float32, ((3, 3),), 1)
    expected = dict(BP=4, BC=2, num_warps=4)
    assert tuning.blocks('forward', x.device, *more, (3, 3), 32) == expected
    assert tuning.blocks('forward', x.device, *more, (3, 3), 33) != expected
    used = count_calls(monkeypatch)
    outcome(block, x, 'triton')
    assert used == ['norms', 'convolve']
    for what in ('norms', 'convolve'):
        choices[tuning.class_of(what, *more, (3, 3), 32)] = 'plain'
    path = path.rename(tmp_path / 'other.json')
    path.write_text(json.dumps({tuning._card(x.device): choices}))
    monkeypatch.setenv('MMFFNET_TRITON_CHOICES', str(path))
    outcome(block, x, 'triton')
    assert len(used) == 2
    monkeypatch.setenv('MMFFNET_TRITON_CHOICES', str(tmp_path / 'none.json'))
    with pytest.raises(FileNotFoundError, match=r'MMFFNET_TRITON_CHOICES: there is no file .*none'):
        outcome(block, x, 'triton')
