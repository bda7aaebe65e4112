"""Depthwise convolutions in Triton, as operators of PyTorch: channels_last, on CUDA.

``TRITON_INTERPRET=1`` runs the kernels on CPUs, for tests. The sizes of the blocks are not tuned.
"""

from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import triton_kernels as kernels

#: Columns and channels that a program works on, and fewer where it keeps sums: what fits into the
#: registers of sm_75 to sm_90
_BLOCK = (16, 64)
_SUM_BLOCK = (8, 32)
#: Programs that share a sum over a map
_PARTS = 256


def _empty(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _blocks(width: int, channels: int, most: tuple[int, int] = _BLOCK) -> tuple[dict, int, int]:
    """The sizes of a block, and how many there are of columns and of channels."""
    columns, part = (
        min(n, triton.next_power_of_2(m)) for n, m in zip(most, (width, channels), strict=True)
    )
    return dict(BW=columns, BC=part), triton.cdiv(width, columns), triton.cdiv(channels, part)


def _out_size(x: Tensor, weight: Tensor, stride: int, padding: list[int]) -> tuple[int, int]:
    height, width = (
        (x.shape[i + 2] + 2 * padding[i] - weight.shape[i + 2]) // stride + 1 for i in (0, 1)
    )
    return height, width


class _Geometry:
    """What the kernels want to know of a convolution of a map."""

    def __init__(self, x: Tensor, weight: Tensor, stride: int, padding: list[int]):
        self.out = _out_size(x, weight, stride, padding)
        self.rows = len(x) * self.out[0]
        self.channels_out = len(weight)
        self.sizes = (x.shape[2], x.shape[3], x.shape[1], *self.out)
        self.constants = dict(M=len(weight) // x.shape[1], S=stride, PH=padding[0], PW=padding[1])
        self.constants |= dict(KH=weight.shape[2], KW=weight.shape[3])
        self.blocks, self.width_blocks, channel_blocks = _blocks(self.out[1], len(weight))
        self.grid = (self.rows * self.width_blocks, channel_blocks)
        self.sum_blocks = _blocks(self.out[1], len(weight), _SUM_BLOCK)
        self.values = self.rows * self.out[1]
        self.parts = min(_PARTS, self.rows)
        self.rows_each = triton.cdiv(self.rows, self.parts)
        self.parts = triton.cdiv(self.rows, self.rows_each)

    def map(self, like: Tensor) -> Tensor:
        return _empty(like, (self.rows // self.out[0], self.channels_out, *self.out))

    def sums(self, like: Tensor, *shape: int) -> Tensor:
        return like.new_empty((self.parts, *shape), dtype=torch.float32)

    def sum_up(self, kernel: Any, *tensors: Tensor, planes: int = 1, **constants: int) -> None:
        kernel[(self.parts, self.sum_blocks[2], planes)](
            *tensors,
            self.rows,
            self.rows_each,
            *self.sizes,
            self.channels_out,
            self.sum_blocks[1],
            **constants,
            **self.constants,
            **self.sum_blocks[0],
        )


@torch.library.custom_op('mmffnet::depthwise', mutates_args=())
def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: list[int]
) -> Tensor:
    """A depthwise convolution of a map in channels_last."""
    x, weight = _last(x), weight.contiguous()
    geometry = _Geometry(x, weight, stride, padding)
    y = geometry.map(x)
    kernels.forward[geometry.grid](
        x,
        weight,
        weight if bias is None else bias,
        y,
        *geometry.sizes,
        geometry.channels_out,
        geometry.width_blocks,
        HAS_BIAS=bias is not None,
        **geometry.constants,
        **geometry.blocks,
    )
    return y


@depthwise.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: list[int]) -> Tensor:
    return _empty(x, (len(x), len(weight), *_out_size(x, weight, stride, padding)))


@torch.library.custom_op('mmffnet::depthwise_input_gradient', mutates_args=())
def input_gradient(
    grad: Tensor,
    weight: Tensor,
    grad2: Tensor | None,
    weight2: Tensor | None,
    size: list[int],
    stride: int,
    padding: list[int],
) -> Tensor:
    """Gradient of the map, of ``size``; of a second, smaller kernel on it too."""
    grad, weight = _last(grad), weight.contiguous()
    grad2 = grad if grad2 is None else _last(grad2)
    small = 0 if weight2 is None else weight2.shape[2]
    dx = _empty(grad, tuple(size))
    n, channels, height, width = size
    blocks, width_blocks, channel_blocks = _blocks(width, channels)
    kernels.input_gradient[(n * height * width_blocks, channel_blocks)](
        grad,
        weight,
        grad2,
        weight if weight2 is None else weight2.contiguous(),
        dx,
        height,
        width,
        channels,
        *grad.shape[2:],
        width_blocks,
        M=len(weight) // channels,
        S=stride,
        PH=padding[0],
        PW=padding[1],
        KH=weight.shape[2],
        KW=weight.shape[3],
        K2=small,
        **blocks,
    )
    return dx


@input_gradient.register_fake
def _(
    grad: Tensor,
    weight: Tensor,
    grad2: Tensor | None,
    weight2: Tensor | None,
    size: list[int],
    stride: int,
    padding: list[int],
) -> Tensor:
    return _empty(grad, tuple(size))


@torch.library.custom_op('mmffnet::depthwise_weight_gradient', mutates_args=())
def weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, with_bias: bool, stride: int, padding: list[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of the weight and, if asked for, of the bias, in float32."""
    grad, x = _last(grad), _last(x)
    geometry = _Geometry(x, weight, stride, padding)
    height, width = weight.shape[2:]
    dw = geometry.sums(x, height, width, len(weight))
    db = geometry.sums(x, len(weight) if with_bias else 0)
    geometry.sum_up(
        kernels.weight_gradient,
        grad,
        x,
        dw,
        db,
        planes=height,
        HAS_BIAS=with_bias,
        TAPS=triton.next_power_of_2(width),
    )
    return dw.sum(0).permute(2, 0, 1).unsqueeze(1).contiguous(), db.sum(0)


@weight_gradient.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, with_bias: bool, stride: int, padding: list[int]
) -> tuple[Tensor, Tensor]:
    dw = weight.new_empty(weight.shape, dtype=torch.float32)
    return dw, weight.new_empty(len(weight) if with_bias else 0, dtype=torch.float32)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight = ctx.saved_tensors
    geometry = (ctx.stride, ctx.padding)
    dx = dw = db = None
    if ctx.needs_input_grad[0]:
        dx = input_gradient(grad, weight, None, None, list(x.shape), *geometry)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        dw, db = weight_gradient(grad, x, weight, ctx.needs_input_grad[2], *geometry)
        dw = dw.to(weight.dtype)
        db = db.to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
    return dx, dw, db, None, None


depthwise.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op('mmffnet::depthwise_pair_statistics', mutates_args=())
def pair_statistics(
    x: Tensor, weight: Tensor, weight2: Tensor, stride: int, padding: list[int]
) -> tuple[Tensor, Tensor]:
    """Means and biased variances of two convolutions of a map, (2, C_out) each, in float32."""
    x, weight, weight2 = _last(x), weight.contiguous(), weight2.contiguous()
    geometry = _Geometry(x, weight, stride, padding)
    found, counts = geometry.sums(x, 4, len(weight)), geometry.sums(x)
    small = len(weight2[0, 0])
    geometry.sum_up(kernels.pair_statistics, x, weight, weight2, found, counts, K2=small)
    share = counts.double()[:, None, None] / geometry.values
    means, squares = found.double().unflatten(1, (2, 2)).unbind(2)
    mean = (share * means).sum(0)
    variance = squares.sum(0) / geometry.values + (share * (means - mean).square()).sum(0)
    return mean.float(), variance.float()


@pair_statistics.register_fake
def _(
    x: Tensor, weight: Tensor, weight2: Tensor, stride: int, padding: list[int]
) -> tuple[Tensor, Tensor]:
    shape = (2, len(weight))
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op('mmffnet::depthwise_pair_gradients', mutates_args=())
def pair_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    eps: list[float],
    stride: int,
    padding: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of both convolutions, and of scale (2, C_out) and shift (C_out) of the norms."""
    grad, x, weight, weight2 = _last(grad), _last(x), weight.contiguous(), weight2.contiguous()
    geometry = _Geometry(x, weight, stride, padding)
    small = len(weight2[0, 0])
    sums = geometry.sums(x, 3, len(weight))
    mean = mean.contiguous()
    geometry.sum_up(kernels.pair_sums, grad, x, weight, weight2, mean, sums, K2=small)
    sums = sums.sum(0)
    inverse = (variance + variance.new_tensor(eps)[:, None]).rsqrt()
    # with zhat = (z - mean) * inverse: dz = scale * inverse * (g - mean(g) - zhat * mean(g * zhat))
    a = scale * inverse
    d = -a * inverse.square() * sums[1:] / geometry.values
    c = -a * sums[0] / geometry.values - d * mean
    factors = torch.stack([a, c, d], 1).contiguous()
    dz, dz2 = geometry.map(grad), geometry.map(grad)
    kernels.pair_gradients[geometry.grid](
        grad,
        x,
        weight,
        weight2,
        factors,
        dz,
        dz2,
        *geometry.sizes,
        geometry.channels_out,
        geometry.width_blocks,
        K2=small,
        **geometry.constants,
        **geometry.blocks,
    )
    return dz, dz2, sums[1:] * inverse, sums[0].clone()


@pair_gradients.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    eps: list[float],
    stride: int,
    padding: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    maps = [_empty(grad, tuple(grad.shape)) for _ in range(2)]
    return maps[0], maps[1], torch.empty_like(mean), torch.empty_like(mean[0])


@torch.library.custom_op('mmffnet::depthwise_pair', mutates_args=())
def pair(
    x: Tensor,
    weight: Tensor,
    weight2: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: list[float],
    stride: int,
    padding: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of two batch norms, each behind a convolution of the map, with statistics of the batch.

    Args:
        x (Tensor): The map, (N, C, H, W), in channels_last.
        weight (Tensor): The large kernel, (C_out, 1, height, width).
        weight2 (Tensor): The small one, square; it shares the centre of the large one.
        scale (Tensor): Weights of both norms, (2, C_out).
        shift (Tensor): Biases of both norms, (2, C_out).
        eps (list[float]): Those of both norms.
        stride (int): Stride.
        padding (list[int]): Padding of the large kernel.

    Returns:
        tuple[Tensor, Tensor, Tensor]: The sum, and means and biased variances, (2, C_out).
    """
    mean, variance = pair_statistics(x, weight, weight2, stride, padding)
    a = scale * (variance + variance.new_tensor(eps)[:, None]).rsqrt()
    merged, bias = merge(weight, weight2, a, shift - a * mean)
    return depthwise(x, merged, bias, stride, padding), mean, variance


@pair.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    weight2: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: list[float],
    stride: int,
    padding: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    y = _empty(x, (len(x), len(weight), *_out_size(x, weight, stride, padding)))
    return y, torch.empty_like(scale), torch.empty_like(scale)


def _save_pair(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, weight2, scale, _, ctx.eps, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, weight, weight2, scale, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _pair_backward(ctx, grad, *_):  # type: ignore[no-untyped-def]
    x, weight, weight2, scale, mean, variance = ctx.saved_tensors
    geometry = (ctx.stride, ctx.padding)
    dz, dz2, dscale, dshift = pair_gradients(
        grad, x, weight, weight2, mean, variance, scale, ctx.eps, *geometry
    )
    dx = dw = dw2 = None
    if ctx.needs_input_grad[0]:
        dx = input_gradient(dz, weight, dz2, weight2, list(x.shape), *geometry)
    if ctx.needs_input_grad[1]:
        dw = weight_gradient(dz, x, weight, False, *geometry)[0].to(weight.dtype)
    if ctx.needs_input_grad[2]:
        less = [(a - b) // 2 for a, b in zip(weight.shape[2:], weight2.shape[2:], strict=True)]
        inner = [p - q for p, q in zip(ctx.padding, less, strict=True)]
        dw2 = weight_gradient(dz2, x, weight2, False, ctx.stride, inner)[0].to(weight2.dtype)
    return dx, dw, dw2, dscale, torch.stack([dshift, dshift]), None, None, None


pair.register_autograd(_pair_backward, setup_context=_save_pair)


def merge(weight: Tensor, weight2: Tensor, factors: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """One kernel and its bias in place of two, each with a factor and a shift, (2, C_out)."""
    dy, dx = ((a - b) // 2 for a, b in zip(weight.shape[2:], weight2.shape[2:], strict=True))
    scaled = weight * factors[0, :, None, None, None]
    scaled2 = weight2 * factors[1, :, None, None, None]
    return scaled + torch.nn.functional.pad(scaled2, (dx, dx, dy, dy)), shift.sum(0)


def norm_pair(
    x: Tensor, large: nn.Conv2d, norm: _BatchNorm, small: nn.Conv2d, small_norm: _BatchNorm
) -> Tensor:
    """Sum of two batch norms, each behind a convolution; see :func:`.depthwise.depthwise_pair`."""
    norms, stride = (norm, small_norm), large.stride[0]
    padding: Any = list(large.padding)
    scale = torch.stack([n.weight for n in norms]).float()
    shift = torch.stack([n.bias for n in norms]).float()
    if not norm.training:
        inverse = torch.stack([(n.running_var + n.eps).rsqrt() for n in norms])  # type: ignore[operator,union-attr]
        mean = torch.stack([n.running_mean for n in norms])  # type: ignore[misc]
        factors = scale * inverse
        kernel, bias = merge(large.weight, small.weight, factors, shift - factors * mean)
        return depthwise(x, kernel, bias, stride, padding)
    eps = [n.eps for n in norms]
    y, mean, variance = pair(x, large.weight, small.weight, scale, shift, eps, stride, padding)
    values = y.numel() // y.shape[1]
    for n, m, v in zip(norms, mean, variance * (values / (values - 1)), strict=True):
        assert n.running_mean is not None and n.running_var is not None
        assert n.num_batches_tracked is not None
        n.num_batches_tracked.add_(1)
        momentum = 1 / float(n.num_batches_tracked) if n.momentum is None else n.momentum
        n.running_mean.lerp_(m.to(n.running_mean), momentum)
        n.running_var.lerp_(v.to(n.running_var), momentum)
    return y
