"""Depthwise convolutions, and which implementation computes them.

All implementations give the numbers of ``torch.nn.functional.conv2d`` within the rounding of the
dtype. Which one runs is decided by a table; ``MMFFNET_KERNELS=plain`` or :func:`use_kernels` choose
PyTorch's own everywhere. What is traced, exported, compiled or transformed always is PyTorch's own.
docs/speed.md has the measurements.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .depthwise_cpu import depthwise_strips, has_depthwise_kernels, warn_of_bfloat16

#: What ``MMFFNET_KERNELS`` may be
KERNELS = ('plain', 'auto')

_chosen: ContextVar[str | None] = ContextVar('kernels', default=None)


@dataclass(frozen=True)
class _Call:
    """What the choice depends on."""

    device: str
    dtype: torch.dtype
    channels_last: bool
    size: tuple[int, int]
    kernel: tuple[int, int]
    padding: tuple[int, int]
    multiplier: int
    trains: bool  # whether the weight needs a gradient


@dataclass(frozen=True)
class _Row:
    implementation: str
    fits: Callable[[_Call], bool]


def _lacks_weight_gradient(call: _Call) -> bool:
    return call.kernel[1] > 3 or call.size[0] < call.kernel[0]


# The first row that fits. Why:
# - oneDNN's depthwise weight gradient takes kernels of at most 3 columns and maps that are at least
#   as high as the kernel. All others are computed as dense convolutions: 3 to 40 times as long.
# - Its depthwise kernels take multiplier 1 only: others are 2 to 6 times slower forward, 2 to 13
#   times backward.
# - cuDNN computes a multiplier in channels_last with one launch for each group: 1,233 of the 2,500
#   launches of a training step of FFNet-2. In NCHW PyTorch has one kernel for it.
_TABLE = (
    _Row(
        'strips',
        lambda call: (
            call.device == 'cpu'
            and has_depthwise_kernels(call.dtype)
            and call.size[1] >= call.padding[1]
            and (call.multiplier > 1 or (call.trains and _lacks_weight_gradient(call)))
        ),
    ),
    _Row(
        'repeat',
        lambda call: call.device == 'cuda' and call.channels_last and call.multiplier > 1,
    ),
)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int | None = None,
    kernels: str | None = None,
) -> Tensor:
    """A convolution whose every output sees one channel.

    Args:
        x (Tensor): The map, (N, C, H, W).
        weight (Tensor): The kernels, (M * C, 1, height, width). The outputs ``M * c`` to
            ``M * c + M - 1`` belong to channel ``c``.
        bias (Tensor, optional): (M * C,). Defaults to None.
        stride (tuple[int, int]): Defaults to (1, 1).
        padding (tuple[int, int]): Zeros around the map. Defaults to (0, 0).
        groups (int, optional): C, which a graph should have as a constant. Defaults to None.
        kernels (str, optional): Overrides :func:`use_kernels` and ``MMFFNET_KERNELS``. Defaults to
            None.
    """
    if _is_eager(x, weight):
        x, weight = _autocast(x), _autocast(weight)
        bias = None if bias is None else _autocast(bias)
        implementation = _choose(x, weight, padding, kernels)
        if implementation == 'strips':
            return depthwise_strips(x, weight, bias, stride, padding)
        if implementation == 'repeat':
            return depthwise_repeat(x, weight, bias, stride, padding)
    return F.conv2d(x, weight, bias, stride, padding, 1, groups or x.shape[1])


def depthwise_repeat(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """As many channels as outputs, which libraries have a kernel for; channels_last."""
    groups, multiplier = len(weight), len(weight) // x.shape[1]
    x = x.permute(0, 2, 3, 1).unsqueeze(-1).expand(-1, -1, -1, -1, multiplier).flatten(3)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, 1, groups)


@contextlib.contextmanager
def use_kernels(kernels: str) -> Iterator[None]:
    """Chooses the implementations in this context, over ``MMFFNET_KERNELS``.

    Args:
        kernels (str): ``'plain'`` for PyTorch's own, ``'auto'`` for the fastest that was measured.
    """
    token = _chosen.set(_check(kernels, 'kernels'))
    try:
        yield
    finally:
        _chosen.reset(token)


def _check(kernels: str, name: str) -> str:
    if kernels not in KERNELS:
        raise ValueError(f'{name} must be one of {", ".join(KERNELS)}, got {kernels!r}')
    return kernels


def _is_eager(*tensors: Tensor) -> bool:
    """Whether these are computed now and by PyTorch, and not traced, transformed or counted."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors)
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _autocast(x: Tensor) -> Tensor:
    """What autocast makes of the arguments of a convolution."""
    kind = x.device.type
    known = torch.amp.is_autocast_available(kind)  # 'meta' has none
    if x.dtype == torch.float64 or not (known and torch.is_autocast_enabled(kind)):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def _choose(x: Tensor, weight: Tensor, padding: tuple[int, int], kernels: str | None = None) -> str:
    kernels = kernels or _chosen.get()
    if kernels is None:
        kernels = _check(os.environ.get('MMFFNET_KERNELS') or 'auto', 'MMFFNET_KERNELS')
    else:
        _check(kernels, 'kernels')
    if x.dtype == torch.bfloat16 and x.device.type == 'cpu':
        warn_of_bfloat16()
    if kernels == 'plain' or x.ndim != 4 or not x.numel() or x.dtype != weight.dtype:
        return 'plain'
    call = _Call(
        device=x.device.type,
        dtype=x.dtype,
        channels_last=x.is_contiguous(memory_format=torch.channels_last),
        size=(x.shape[2], x.shape[3]),
        kernel=(weight.shape[2], weight.shape[3]),
        padding=padding,
        multiplier=len(weight) // x.shape[1],
        trains=weight.requires_grad and torch.is_grad_enabled(),
    )
    return next((row.implementation for row in _TABLE if row.fits(call)), 'plain')
