"""Depthwise convolutions on CPUs, out of those that oneDNN has fast kernels for.

oneDNN has them for as many outputs as channels, and for weight gradients of kernels of at most 3
columns on maps that are at least as high as the kernel. A wider kernel is cut into strips: the
gradient of a strip is that of a narrow convolution over a part of the map's columns.
"""

import functools
import itertools
import platform
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDEST = 3  # columns of a kernel that oneDNN has a depthwise weight gradient for


def depthwise_strips(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """The implementation ``strips`` of :func:`~mmffnet.ops.depthwise.depthwise_conv2d`."""
    return _Strips.apply(x, weight, bias, stride, padding)


class _Strips(torch.autograd.Function):
    """The backward pass is made of differentiable operations, so it has a gradient too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        channels = x.shape[1]
        multiplier = len(weight) // channels
        parts = []
        for i in range(multiplier):
            w, b = weight[i::multiplier], None if bias is None else bias[i::multiplier]
            parts.append(F.conv2d(x, w, b, stride, padding, 1, channels))
        if multiplier == 1:
            return parts[0]
        shape = (len(x), len(weight), *parts[0].shape[2:])
        layout = _memory_format(x)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
        for i, part in enumerate(parts):
            y[:, i::multiplier] = part
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        multiplier = len(weight) // x.shape[1]
        parts = [
            (grad[:, i::multiplier], weight[i::multiplier]) if multiplier > 1 else (grad, weight)
            for i in range(multiplier)
        ]
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            found = [_convolution_backward(g, x, w, stride, padding, 0) for g, w in parts]
            grad_x = sum(found[1:], found[0])
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight)  # of its strides, as a reducer wants gradients
            if multiplier == 1 or stride == (1, 1) or weight.shape[3] <= _WIDEST:
                for i, (g, w) in enumerate(parts):
                    grad_weight[i::multiplier] = _weight_gradient(g, x, w, stride, padding)
            else:  # strips of several parts with a stride take longer than a dense convolution
                last = torch.channels_last
                g, x = grad.contiguous(memory_format=last), x.contiguous(memory_format=last)
                grad_weight[:] = _convolution_backward(g, x, weight, stride, padding, 1)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None


def _weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Gradient of the weight, for as many outputs as channels."""
    height, width = weight.shape[2:]
    strips = -(-width // _WIDEST)
    edges = [round(i * width / strips) for i in range(strips + 1)]
    # what oneDNN's kernel does not take as padding: rows for a low map, and all with a stride
    rows = x.shape[2] < height or (stride != (1, 1) and strips > 1)
    top = padding[0]
    bottom = (grad.shape[2] - 1) * stride[0] + height - x.shape[2] - top
    found = []
    for first, end in itertools.pairwise(edges):
        left = padding[1] - first
        right = (grad.shape[3] - 1) * stride[1] + end - first - x.shape[3] - left
        if rows:
            part, pad = F.pad(x, (left, right, top, bottom)), (0, 0)
        elif strips == 1 or left == right >= 0:
            part, pad = x, (top, left)
        else:
            part, pad = F.pad(x, (left, right)), (top, 0)
        found.append(_convolution_backward(grad, part, weight[..., first:end], stride, pad, 1))
    return found[0] if strips == 1 else torch.cat(found, 3)


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    index: int,
) -> Tensor:
    """Gradient of the map (0) or the weight (1) of a convolution."""
    mask = [i == index for i in range(3)]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), x.shape[1], mask
    )[index]


def _memory_format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


@functools.cache
def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; True where that is not known."""
    if platform.machine() not in ('x86_64', 'AMD64'):
        return True
    info = Path('/proc/cpuinfo')
    flags = info.read_text(encoding='utf-8') if info.is_file() else 'amx_bf16'
    return 'amx_bf16' in flags or 'avx512_bf16' in flags


def has_depthwise_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN has vectorised depthwise kernels for this CPU and dtype."""
    if torch.backends.cpu.get_cpu_capability() not in ('AVX2', 'AVX512'):
        return False
    vectorised = dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16())
    return vectorised and torch._C._get_mkldnn_enabled() and torch.backends.mkldnn.is_available()


@functools.cache
def warn_of_bfloat16() -> None:
    """Says once that bfloat16 is slow on this CPU, if it is."""
    if not has_bfloat16():
        warnings.warn(
            'this CPU has neither AVX512-BF16 nor AMX: depthwise convolutions take 30 to 120 times '
            'as long in bfloat16 as in float32',
            stacklevel=2,
        )
