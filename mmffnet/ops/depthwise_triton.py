"""Depthwise convolutions in Triton, as operators of PyTorch: channels_last, on CUDA.

``TRITON_INTERPRET=1`` runs the kernels on CPUs, for tests. The sizes of the blocks are not tuned.
"""

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels

#: Columns and channels that a program works on
_COLUMNS = 16
_CHANNELS = 64
#: Programs that share a sum over a map
_PARTS = 256


def _empty(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _blocks(width: int, channels: int) -> tuple[int, int, int, int]:
    """Columns and channels of a block, and the number of blocks of each."""
    columns = min(_COLUMNS, triton.next_power_of_2(width))
    part = min(_CHANNELS, triton.next_power_of_2(channels))
    return columns, part, triton.cdiv(width, columns), triton.cdiv(channels, part)


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
        self.columns, self.part, self.width_blocks, self.channel_blocks = _blocks(
            self.out[1], self.channels_out
        )
        self.blocks = dict(BW=self.columns, BC=self.part)
        self.parts = min(_PARTS, self.rows)
        self.rows_each = triton.cdiv(self.rows, self.parts)
        self.parts = triton.cdiv(self.rows, self.rows_each)

    def map(self, like: Tensor) -> Tensor:
        return _empty(like, (self.rows // self.out[0], self.channels_out, *self.out))

    def sums(self, like: Tensor, *shape: int) -> Tensor:
        return like.new_empty((self.parts, *shape), dtype=torch.float32)


@torch.library.custom_op('mmffnet::depthwise', mutates_args=())
def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: list[int]
) -> Tensor:
    """A depthwise convolution of a map in channels_last."""
    x, weight = _last(x), weight.contiguous()
    geometry = _Geometry(x, weight, stride, padding)
    y = geometry.map(x)
    grid = (geometry.rows * geometry.width_blocks, geometry.channel_blocks)
    kernels.forward[grid](
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
    columns, part, width_blocks, channel_blocks = _blocks(width, channels)
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
        BW=columns,
        BC=part,
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
    part = min(geometry.part, 32)
    dw = geometry.sums(x, height, width, len(weight))
    db = geometry.sums(x, len(weight) if with_bias else 0)
    grid = (geometry.parts, triton.cdiv(len(weight), part), height)
    columns = min(geometry.columns, 8)
    kernels.weight_gradient[grid](
        grad,
        x,
        dw,
        db,
        geometry.rows,
        geometry.rows_each,
        *geometry.sizes,
        geometry.channels_out,
        triton.cdiv(geometry.out[1], columns),
        HAS_BIAS=with_bias,
        TAPS=triton.next_power_of_2(width),
        BW=columns,
        BC=part,
        **geometry.constants,
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
