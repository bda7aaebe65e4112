"""Depthwise convolutions in Triton, as operators of PyTorch: channels_last, on CUDA.

``TRITON_INTERPRET=1`` runs the kernels on CPUs, for tests. All sums have a fixed order.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import triton
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import triton_kernels as kernels
from .triton_tuning import blocks

#: Programs that share a sum over a map
_PARTS = 256


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _sizes(geometry: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(geometry[3::2], geometry[4::2], strict=True))


def _out_shape(shape: Sequence[int], weight: Tensor, geometry: Sequence[int]) -> tuple[int, ...]:
    stride, *padding = geometry[:3]
    height, width = (
        (shape[i + 2] + 2 * padding[i] - geometry[i + 3]) // stride + 1 for i in (0, 1)
    )
    return shape[0], weight.shape[1], height, width


@functools.lru_cache(None)
def _taps(sizes: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """For each convolution and each tap of the largest, its row of the weights, or -1."""
    height, width = sizes[0]
    found, row = [], 0
    for h, w in sizes:
        top, left = (height - h) // 2, (width - w) // 2
        for i in range(height):
            for j in range(width):
                inside = 0 <= i - top < h and 0 <= j - left < w
                found.append(row + (i - top) * w + j - left if inside else -1)
        row += h * w
    return tuple(found)


class _Launcher:
    """Launches kernels for convolutions of a map.

    Args:
        shape (Sequence[int]): The map's.
        weight (Tensor): All kernels, (taps, C_out).
        geometry (Sequence[int]): Stride and padding, then height and width of each kernel, the
            largest one first.
    """

    def __init__(self, shape: Sequence[int], weight: Tensor, geometry: Sequence[int]):
        self.shape, self.out = shape, _out_shape(shape, weight, geometry)
        self.maps = (shape[2], shape[3], shape[1], *self.out[2:])
        self.sizes = _sizes(geometry)
        height, width = self.sizes[0]
        self.taps: dict[str, Any] = dict(
            B=len(self.sizes), KH=height, KW=width, TAPS=_taps(self.sizes)
        )
        stride, top, left = geometry[:3]
        self.window = dict(M=self.out[1] // shape[1], S=stride, PH=top, PW=left)

    def _blocks(
        self, kernel: Any, like: Tensor, gelu: bool = False
    ) -> tuple[int, tuple[int, int], dict[str, int]]:
        """Number of pixels, of blocks of them and of channels, and the sizes of a block."""
        shape = self.shape if kernel is kernels.input_gradient else self.out
        pixels, channels = shape[0] * shape[2] * shape[3], (self.shape[1], self.out[1])
        what, stride = kernel.__name__ + '+gelu' * gelu, self.window['S']
        sizes = blocks(what, like.device, like.dtype, self.sizes, stride, channels, pixels)
        grid = triton.cdiv(pixels, sizes['BP']), triton.cdiv(shape[1], sizes['BC'])
        return pixels, grid, sizes

    def each(self, kernel: Any, *tensors: Tensor, more: tuple = (), **constants: Any) -> None:
        """Runs a kernel that writes a map."""
        pixels, grid, sizes = self._blocks(kernel, tensors[0], constants.get('GELU', False))
        constants |= self.window | self.taps | sizes
        _run(kernel, grid, *tensors, pixels, *self.maps, *more, **constants)

    def sums(
        self, kernel: Any, rows: int, *tensors: Tensor, dtype: torch.dtype, **constants: Any
    ) -> Tensor:
        """Runs a kernel that sums over the map; (rows, C_out)."""
        pixels, grid, sizes = self._blocks(kernel, tensors[0], constants.get('GELU', False))
        parts, each = _share(grid[0])
        found = tensors[0].new_empty((parts, rows, self.out[1]), dtype=dtype)
        constants |= self.window | self.taps | sizes
        _run(kernel, (parts, grid[1]), *tensors, found, pixels, each, *self.maps, **constants)
        return found.sum(0)

    def weights(self, grads: Sequence[Tensor], x: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
        """Gradients of all kernels, (taps, C_out), and of the bias of a single one."""
        pixels, grid, sizes = self._blocks(kernels.weight_gradient, x)
        parts, each = _share(grid[0])
        rows = sum(h * w for h, w in self.sizes)
        dw = x.new_empty((parts, rows, self.out[1]), dtype=torch.float32)
        db = x.new_empty((parts, self.out[1] if bias else 0), dtype=torch.float32)
        first = 0
        for grad, (height, width) in zip(grads, self.sizes, strict=True):
            window = dict(self.window, KW=width)
            window['PH'] -= (self.sizes[0][0] - height) // 2
            window['PW'] -= (self.sizes[0][1] - width) // 2
            args = (grad, x, dw[:, first:], db, pixels, each, *self.maps, rows)
            programs = (parts, grid[1], height)
            _run(kernels.weight_gradient, programs, *args, HAS_BIAS=bias, **window, **sizes)
            first += height * width
        return dw.sum(0), db.sum(0)


def _share(steps: int) -> tuple[int, int]:
    """How many programs share the steps of a sum, and how many steps each has."""
    each = max(triton.cdiv(steps, _PARTS), 1)
    return max(triton.cdiv(steps, each), 1), each


def _run(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, **constants)


@torch.library.custom_op('mmffnet::depthwise', mutates_args=())
def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[int], gelu: bool
) -> Tensor:
    """A depthwise convolution of a map in channels_last, or the GELU of it.

    Args:
        x (Tensor): The map, (N, C, H, W).
        weight (Tensor): The kernel, (height * width, C_out), float32.
        bias (Tensor, optional): (C_out,), float32.
        geometry (list[int]): Stride, padding in height and width, height and width of the kernel.
        gelu (bool): Apply GELU to the result.
    """
    launcher = _Launcher(x.shape, weight, geometry)
    y = _empty(x, *launcher.out)
    given = weight if bias is None else bias
    maps = (_last(x), weight, given, y)
    launcher.each(kernels.forward, *maps, HAS_BIAS=bias is not None, GELU=gelu)
    return y


@convolve.register_fake
def _(x, weight, bias, geometry, gelu):  # type: ignore[no-untyped-def]
    return _empty(x, *_out_shape(x.shape, weight, geometry))


@torch.library.custom_op('mmffnet::depthwise_gelu_gradient', mutates_args=())
def gelu_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[int]
) -> Tensor:
    """Gradient of a convolution from that of its GELU."""
    launcher = _Launcher(x.shape, weight, geometry)
    dz = _empty(grad, *grad.shape)
    given = (_last(grad), _last(x), weight, weight if bias is None else bias, dz)
    launcher.each(kernels.gelu_gradient, *given, HAS_BIAS=bias is not None)
    return dz


@gelu_gradient.register_fake
def _(grad, x, weight, bias, geometry):  # type: ignore[no-untyped-def]
    return _empty(grad, *grad.shape)


@torch.library.custom_op('mmffnet::depthwise_input_gradient', mutates_args=())
def input_gradient(grads: Tensor, weight: Tensor, geometry: list[int], shape: list[int]) -> Tensor:
    """Gradient of the map, of ``shape``.

    ``grads`` are those of all convolutions, one after the other in the dimension of the batch.
    """
    launcher = _Launcher(shape, weight, geometry)
    dx = _empty(grads, *shape)
    more = (grads.numel() // len(launcher.sizes),)
    launcher.each(kernels.input_gradient, _last(grads), weight, dx, more=more)
    return dx


@input_gradient.register_fake
def _(grads, weight, geometry, shape):  # type: ignore[no-untyped-def]
    return _empty(grads, *shape)


@torch.library.custom_op('mmffnet::depthwise_weight_gradient', mutates_args=())
def weight_gradient(
    grads: Tensor, x: Tensor, weight: Tensor, geometry: list[int], bias: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of all kernels, (taps, C_out), and of the bias of a single one, in float32."""
    launcher = _Launcher(x.shape, weight, geometry)
    parts = _last(grads).split(len(x)) if len(x) else [grads] * len(launcher.sizes)
    return launcher.weights(parts, _last(x), bias)


@weight_gradient.register_fake
def _(grads, x, weight, geometry, bias):  # type: ignore[no-untyped-def]
    return torch.empty_like(weight), weight.new_empty(weight.shape[1] if bias else 0)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, ctx.geometry, ctx.gelu = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight, bias = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dx = dw = db = None
    if ctx.gelu:
        grad = gelu_gradient(grad, x, weight, bias, ctx.geometry)
    if needs[0]:
        dx = input_gradient(grad, weight, ctx.geometry, x.shape)
    if needs[1] or needs[2]:
        dw, db = weight_gradient(grad, x, weight, ctx.geometry, needs[2])
    return dx, dw, db if needs[2] else None, None, None


convolve.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op('mmffnet::depthwise_norms', mutates_args=())
def norms(
    x: Tensor,
    weight: Tensor,
    affine: Tensor,
    geometry: list[int],
    eps: list[float],
    group: str,
    gelu: bool,
) -> tuple[Tensor, Tensor]:
    """Sum of batch norms with statistics of the batch, each behind a convolution of one map.

    Args:
        x (Tensor): The map, (N, C, H, W), in channels_last.
        weight (Tensor): All kernels, (taps, C_out), float32; they share the centre of the first.
        affine (Tensor): Weights of all norms, then the biases, (2 * branches, C_out), float32.
        geometry (list[int]): Stride, padding of the first kernel, height and width of each.
        eps (list[float]): Those of all norms.
        group (str): Name of the processes that share the statistics, '' for none.
        gelu (bool): Apply GELU to the sum.

    Returns:
        tuple[Tensor, Tensor]: The sum or its GELU, and (3 * branches + 1, C_out): means, inverse
        deviations, unbiased variances, and the number of values.
    """
    launcher = _Launcher(x.shape, weight, geometry)
    x = _last(x)
    sums = launcher.sums(kernels.statistics, 2 * len(eps) + 1, x, weight, dtype=torch.float64)
    _sum_over(group, sums)
    height, width = launcher.sizes[0]
    channels = weight.shape[1]
    merged, bias = weight.new_empty(height * width, channels), weight.new_empty(channels)
    found = weight.new_empty(3 * len(eps) + 1, channels)
    args = (sums, weight, affine, merged, bias, found, channels)
    block = min(64, triton.next_power_of_2(channels))
    grid = (triton.cdiv(channels, block),)
    _run(kernels.merge, grid, *args, EPS=tuple(eps), BC=block, **launcher.taps)
    return convolve(x, merged, bias, geometry[:5], gelu), found


@norms.register_fake
def _(x, weight, affine, geometry, eps, group, gelu):  # type: ignore[no-untyped-def]
    y = _empty(x, *_out_shape(x.shape, weight, geometry))
    return y, weight.new_empty(3 * len(eps) + 1, weight.shape[1])


@torch.library.custom_op('mmffnet::depthwise_norms_gradients', mutates_args=())
def norms_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    affine: Tensor,
    found: Tensor,
    geometry: list[int],
    group: str,
    gelu: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the convolutions, in the dimension of the batch, and of ``affine``."""
    launcher = _Launcher(x.shape, weight, geometry)
    branches = len(launcher.sizes)
    grad, x = _last(grad), _last(x)
    given = (grad, x, weight, affine, found)
    rows, dtype = branches + 1, torch.float32
    sums = launcher.sums(kernels.norm_sums, rows, *given, dtype=dtype, GELU=gelu)
    inverses = found[branches : 2 * branches]
    daffine = torch.cat((sums[1:] * inverses, sums[:1].expand(branches, -1)))
    _sum_over(group, sums)
    dz = _empty(grad, branches * len(grad), *grad.shape[1:])
    more = (grad.numel(),)
    launcher.each(kernels.norm_gradients, *given, sums, dz, more=more, GELU=gelu)
    return dz, daffine


@norms_gradients.register_fake
def _(grad, x, weight, affine, found, geometry, group, gelu):  # type: ignore[no-untyped-def]
    branches = len(geometry[3::2])
    return _empty(grad, branches * len(grad), *grad.shape[1:]), torch.empty_like(affine)


def _save_norms(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, affine, ctx.geometry, _, ctx.group, ctx.gelu = inputs
    ctx.save_for_backward(x, weight, affine, output[1])
    ctx.mark_non_differentiable(output[1])


def _norms_backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    x, weight, affine, found = ctx.saved_tensors
    geometry, needs = ctx.geometry, ctx.needs_input_grad
    more = (geometry, ctx.group, ctx.gelu)
    dz, daffine = norms_gradients(grad, x, weight, affine, found, *more)
    dx = input_gradient(dz, weight, geometry, x.shape) if needs[0] else None
    dw = weight_gradient(dz, x, weight, geometry, False)[0] if needs[1] else None
    return dx, dw, daffine, None, None, None, None


norms.register_autograd(_norms_backward, setup_context=_save_norms)


def _sum_over(group: str, x: Tensor) -> None:
    if group:
        name: Any = group
        dist.all_reduce(x, group=dist.distributed_c10d._resolve_process_group(name))


def _rows(*weights: Tensor) -> Tensor:
    """Kernels, (C_out, 1, height, width) each, as the operators want them."""
    return torch.cat([w.flatten(1).t() for w in weights]).float().contiguous()


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    gelu: bool = False,
) -> Tensor:
    """A depthwise convolution; see :func:`.depthwise.depthwise_conv2d`."""
    bias = None if bias is None else bias.float()
    return convolve(x, _rows(weight), bias, [stride, *padding, *weight.shape[2:]], gelu)


def conv_norms(
    x: Tensor, convs: Sequence[nn.Conv2d], norms_: Sequence[_BatchNorm], group: str, gelu: bool
) -> Tensor:
    """Sum of batch norms, each behind a convolution; see :func:`.depthwise.depthwise_norms`."""
    stride, padding = convs[0].stride[0], tuple(map(int, convs[0].padding))
    if not norms_[0].training:
        kernel, bias = _folded(convs, norms_)
        return depthwise(x, kernel, bias, stride, padding, gelu)
    geometry = [stride, *padding, *(n for conv in convs for n in conv.kernel_size)]
    weight = _rows(*(conv.weight for conv in convs))
    # the norm takes the bias of a convolution away again: its gradient is zero, not None
    shifts = [
        n.bias if c.bias is None else n.bias + 0 * c.bias
        for c, n in zip(convs, norms_, strict=True)
    ]
    affine = torch.stack([*(n.weight for n in norms_), *shifts]).float()
    y, found = norms(x, weight, affine, geometry, [n.eps for n in norms_], group, gelu)
    means, _, variances, _ = found.split([len(norms_)] * 3 + [1])
    shifted = [m if c.bias is None else m + c.bias for c, m in zip(convs, means, strict=True)]
    _update(norms_, shifted, variances)
    return y


def _folded(convs: Sequence[nn.Conv2d], norms_: Sequence[_BatchNorm]) -> tuple[Tensor, Tensor]:
    """One kernel and its bias in place of convolutions and norms with frozen statistics."""
    kernels_, biases = [], []
    for conv, norm in zip(convs, norms_, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()
        mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        biases.append(norm.bias - mean * scale)
        less = (convs[0].kernel_size[i] - conv.kernel_size[i] for i in (1, 1, 0, 0))
        kernel = conv.weight.float() * scale[:, None, None, None]
        kernels_.append(torch.nn.functional.pad(kernel, [n // 2 for n in less]))
    return torch.stack(kernels_).sum(0), torch.stack(biases).sum(0)


@torch.no_grad()
def _update(
    norms_: Sequence[_BatchNorm], means: Iterable[Tensor], variances: Iterable[Tensor]
) -> None:
    """Running statistics, in few launches and without waiting for the device."""
    counts: list[Any] = [norm.num_batches_tracked for norm in norms_]
    torch._foreach_add_(counts, 1)
    for norm, count, *found in zip(norms_, counts, means, variances, strict=True):
        running: list[Any] = [norm.running_mean, norm.running_var]
        found = [t.to(running[0]) for t in found]
        if norm.momentum is None:
            weight = count.reciprocal().to(running[0])
            torch._foreach_lerp_(running, found, [weight, weight])
        else:
            torch._foreach_lerp_(running, found, norm.momentum)
