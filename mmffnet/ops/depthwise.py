"""Depthwise convolutions, and which implementation computes them.

All implementations give the numbers of ``torch.nn.functional.conv2d`` within the rounding of the
dtype. Which one runs is decided by a table; ``MMFFNET_KERNELS`` or :func:`use_kernels` choose
PyTorch's own everywhere (``plain``), or take Triton's into the table (``triton``). What is traced,
exported, compiled or transformed always is PyTorch's own.
docs/speed.md has the measurements.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._triton import has_triton, has_triton_package

from .depthwise_cpu import depthwise_strips, has_depthwise_kernels, warn_of_bfloat16

#: What ``MMFFNET_KERNELS`` may be
KERNELS = ('plain', 'auto', 'triton')

_chosen: ContextVar[str | None] = ContextVar('kernels', default=None)


@dataclass(frozen=True)
class _Call:
    """What the choice depends on."""

    device: str
    dtype: torch.dtype
    channels_last: bool
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    multiplier: int
    trains: bool  # whether the weight needs a gradient
    triton: bool  # whether Triton is asked for


@dataclass(frozen=True)
class _Row:
    implementation: str
    fits: Callable[[_Call], bool]


@functools.cache
def _has_triton(device: str) -> bool:
    if device == 'cpu':
        return os.environ.get('TRITON_INTERPRET') == '1' and has_triton_package()
    return device == 'cuda' and has_triton()


def _lacks_weight_gradient(call: _Call) -> bool:
    return call.kernel[1] > 3 or call.size[0] < call.kernel[0]


# The first row that fits. Why:
# - oneDNN's depthwise weight gradient takes kernels of at most 3 columns and maps that are at least
#   as high as the kernel. All others are computed as dense convolutions: 3 to 40 times as long.
# - Its depthwise kernels take multiplier 1 only: others are 2 to 6 times slower forward, 2 to 13
#   times backward.
# - cuDNN computes a multiplier in channels_last with one launch for each group: 1,233 of the 2,500
#   launches of a training step of FFNet-2. In NCHW PyTorch has one kernel for it.
# - The Triton kernels have been run in the interpreter only, so they must be asked for.
_TABLE = (
    _Row(
        'triton',
        lambda call: (
            call.triton
            and call.channels_last
            and call.dtype in (torch.float32, torch.bfloat16, torch.float16)
            and call.stride[0] == call.stride[1] <= 2
            and call.multiplier <= 2
            and max(call.kernel) <= 9
            and _has_triton(call.device)
        ),
    ),
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
        same = x.dtype == weight.dtype
        implementation = _choose(x, weight, stride, padding, kernels) if same else 'plain'
        if implementation == 'triton':
            from .depthwise_triton import depthwise

            return depthwise(x, weight, bias, stride[0], list(padding))
        if implementation == 'strips':
            return depthwise_strips(x, weight, bias, stride, padding)
        if implementation == 'repeat':
            return depthwise_repeat(x, weight, bias, stride, padding)
    return F.conv2d(x, weight, bias, stride, padding, 1, groups or x.shape[1])


def depthwise_pair(
    x: Tensor, large: nn.Conv2d, norm: nn.Module, small: nn.Conv2d, small_norm: nn.Module
) -> Tensor | None:
    """The sum of two depthwise convolutions of a map, each with its batch norm, in fused kernels.

    Statistics of the batch are computed, and the running ones updated, as in the norms themselves;
    with frozen statistics the two convolutions are merged into one.

    Args:
        x (Tensor): The map.
        large (nn.Conv2d): A depthwise convolution without bias, 'same' padding.
        norm (nn.Module): Its norm.
        small (nn.Conv2d): Another one, of the same stride, with a smaller, square kernel.
        small_norm (nn.Module): Its norm.

    Returns:
        Tensor, optional: None where the parts are to be called one by one.
    """
    if not _is_eager(x, large.weight, small.weight):
        return None
    weight, geometry = large.weight, (large.stride, large.padding)
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        return None
    x = _autocast(x)  # the kernels take weights of any precision
    if _choose(x, weight, *geometry) != 'triton':  # type: ignore[arg-type]
        return None
    if x.numel() <= 4 * x.shape[1]:  # there may be a single value a channel
        return None
    if not (_is_batch_norm(norm) and _is_batch_norm(small_norm)):
        return None
    if norm.training != small_norm.training:
        return None
    from .depthwise_triton import norm_pair

    return norm_pair(x, large, norm, small, small_norm)


def _is_batch_norm(norm: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether this is a batch norm that needs nothing from other processes."""
    return (
        isinstance(norm, _BatchNorm)
        and norm.affine
        and norm.track_running_stats
        and type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
        and not (isinstance(norm, nn.SyncBatchNorm) and torch.distributed.is_initialized())
    )


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
        kernels (str): ``'plain'`` for PyTorch's own, ``'auto'`` for the fastest that was measured,
            ``'triton'`` for Triton where it can, and the same elsewhere.
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


def _default_kernels() -> str:
    return _check(os.environ.get('MMFFNET_KERNELS') or 'auto', 'MMFFNET_KERNELS')


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
    if x.dtype == torch.float64 or kind == 'meta' or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def _choose(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    kernels: str | None = None,
) -> str:
    kernels = kernels or _chosen.get()
    if kernels is None:
        kernels = _default_kernels()
    else:
        _check(kernels, 'kernels')
    if x.dtype == torch.bfloat16 and x.device.type == 'cpu':
        warn_of_bfloat16()
    if kernels == 'plain' or x.ndim != 4 or not x.numel():
        return 'plain'
    call = _Call(
        device=x.device.type,
        dtype=x.dtype,
        channels_last=x.is_contiguous(memory_format=torch.channels_last),
        size=(x.shape[2], x.shape[3]),
        kernel=(weight.shape[2], weight.shape[3]),
        stride=stride,
        padding=padding,
        multiplier=len(weight) // x.shape[1],
        trains=weight.requires_grad and torch.is_grad_enabled(),
        triton=kernels == 'triton',
    )
    return next((row.implementation for row in _TABLE if row.fits(call)), 'plain')


def describe_kernels() -> str:
    """Which implementations there are on this machine, and why there is no Triton if so."""
    on_gpu = torch.cuda.is_available()
    names = ['plain', *['strips'] * has_depthwise_kernels(torch.float32), *['repeat'] * on_gpu]
    if _has_triton('cuda' if on_gpu else 'cpu'):
        names.append('triton')
        why = ''
    elif not has_triton_package():
        why = '; no triton, which is not installed'
    elif not on_gpu:
        why = '; no triton without a GPU'
    else:
        found = '.'.join(map(str, torch.cuda.get_device_capability()))
        why = f'; no triton, as the GPU has the compute capability {found} and 7.0 is needed'
    return f'{", ".join(names)} (MMFFNET_KERNELS={_default_kernels()}){why}'
