"""Depthwise convolutions, and which implementation computes them.

All implementations give the numbers of ``torch.nn.functional.conv2d`` within the rounding of the
dtype. Which one runs is decided by a table; ``MMFFNET_KERNELS`` or :func:`use_kernels` choose
PyTorch's own everywhere (``plain``), or take Triton's into the table (``triton``). What is traced,
exported or transformed always is PyTorch's own; on CPUs what is compiled too, unless Triton is
asked for. docs/speed.md has the measurements.
"""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._triton import has_triton, has_triton_package

from .autocast import as_autocast, same_dtype
from .depthwise_cpu import depthwise_strips, has_depthwise_kernels, warn_of_bfloat16
from .tracing import constant_when_compiled, is_eager, is_exported

#: What ``MMFFNET_KERNELS`` may be
KERNELS = ('plain', 'auto', 'triton')

#: The oldest Triton that the kernels have been compiled with
_OLDEST_TRITON = (3, 6)

_chosen: ContextVar[str | None] = ContextVar('kernels', default=None)


@dataclass(frozen=True)
class _Call:
    """What the choice depends on."""

    device: str
    dtype: torch.dtype
    channels_last: bool
    batch: int
    channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    multiplier: int
    trains: bool  # whether the weight needs a gradient
    triton: bool  # whether Triton is asked for
    gelu: bool  # whether GELU is to be in the same kernel


@dataclass(frozen=True)
class _Row:
    implementation: str
    fits: Callable[[_Call], bool]


@constant_when_compiled
def _has_triton(device: str) -> bool:
    return _find_triton(device)


@functools.cache
def _find_triton(device: str) -> bool:
    try:
        import triton
    except ImportError:
        return False
    if tuple(int(n) for n in triton.__version__.split('.')[:2]) < _OLDEST_TRITON:
        return False
    if device == 'cpu':
        return os.environ.get('TRITON_INTERPRET') == '1'
    return device == 'cuda' and has_triton()


def _fits_triton(call: _Call) -> bool:
    height, width = (n + 2 * p for n, p in zip(call.size, call.padding, strict=True))
    return (
        call.channels_last
        and call.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and call.stride[0] == call.stride[1] <= 2
        and call.multiplier <= 2
        and max(call.kernel) <= 9
        and call.kernel[0] <= height
        and call.kernel[1] <= width
        and call.batch * height * width < 2**30  # the kernels' numbers of pixels are int32
        and _has_triton(call.device)
    )


def _is_slower(what: str, call: _Call, kernels: tuple[tuple[int, int], ...]) -> bool:
    """Whether Triton has lost on this card, for maps of about this size."""
    if torch.compiler.is_compiling() or not os.environ.get('MMFFNET_TRITON_CHOICES'):
        return False
    from .triton_tuning import class_of, is_slower

    pixels = call.batch
    for n, k, p, s in zip(call.size, call.kernel, call.padding, call.stride, strict=True):
        pixels *= (n + 2 * p - k) // s + 1
    channels = (call.channels, call.channels * call.multiplier)
    what += '+gelu' * call.gelu
    name = class_of(what, call.dtype, kernels, call.stride[0], channels, pixels)
    return is_slower(torch.device(call.device), name)


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
            call.triton and _fits_triton(call) and not _is_slower('convolve', call, (call.kernel,))
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
    gelu: bool = False,
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
        gelu (bool): Apply GELU to the result. Defaults to False.
    """
    eager = is_eager(x, weight)
    implementation = 'plain'
    if (eager or _compiles(x.device.type, kernels)) and same_dtype(x, weight):
        x = as_autocast(x)
        implementation = _choose(x, weight, stride, padding, kernels, gelu)
    if implementation == 'triton':
        from .depthwise_triton import depthwise

        return depthwise(x, weight, bias, stride[0], padding, gelu)
    if implementation == 'plain' or (implementation == 'strips' and not eager):
        y = F.conv2d(x, weight, bias, stride, padding, 1, groups or x.shape[1])
    else:
        weight, bias = as_autocast(weight), None if bias is None else as_autocast(bias)
        compute = depthwise_strips if implementation == 'strips' else depthwise_repeat
        y = compute(x, weight, bias, stride, padding)
    return F.gelu(y) if gelu else y


def fuses(x: Tensor) -> bool:
    """Whether a convolution of this map and what follows it may be computed at once."""
    return not torch.compiler.is_compiling() and asked_kernels() == 'triton' and is_eager(x)


def depthwise_norms(
    x: Tensor, convs: Sequence[nn.Conv2d], norms: Sequence[nn.Module], gelu: bool = False
) -> Tensor | None:
    """The sum of depthwise convolutions of a map, each with its batch norm, in fused kernels.

    Statistics of the batch are computed, and the running ones updated, as in the norms themselves;
    with frozen statistics the convolutions are merged into one.

    Args:
        x (Tensor): The map.
        convs (Sequence[nn.Conv2d]): Depthwise convolutions of the same stride with 'same' padding;
            no kernel is higher or wider than the first.
        norms (Sequence[nn.Module]): Their norms.
        gelu (bool): Apply GELU to the sum. Defaults to False.

    Returns:
        Tensor, optional: None where the parts are to be called one by one.
    """
    if not (fuses(x) and is_eager(*(conv.weight for conv in convs))):
        return None
    first: Any = convs[0]
    if x.ndim != 4 or not same_dtype(x, first.weight):
        return None
    if not all(_is_batch_norm(norm) for norm in norms):
        return None
    groups = {_processes(norm) for norm in norms}  # type: ignore[arg-type]
    if len(groups) > 1 or len({norm.training for norm in norms}) > 1:
        return None
    x, group = as_autocast(x), groups.pop()
    call = _call(x, first.weight, first.stride, first.padding, True, gelu)
    if group:  # all processes must decide alike, whatever their maps
        call = replace(call, channels_last=True, batch=1, size=call.kernel)
    elif x.numel() <= 4 * x.shape[1]:  # there may be a single value a channel
        return None
    kernels: Any = tuple(conv.kernel_size for conv in convs)
    if not _fits_triton(call) or (not group and _is_slower('norms', call, kernels)):
        return None
    from .depthwise_triton import conv_norms

    return conv_norms(x, convs, norms, group, gelu)  # type: ignore[arg-type]


def _is_batch_norm(norm: nn.Module) -> TypeGuard[_BatchNorm]:
    return (
        isinstance(norm, _BatchNorm)
        and norm.affine
        and norm.track_running_stats
        and type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    )


def _processes(norm: _BatchNorm) -> str:
    """The name of the group of processes that share the statistics of the batch, '' for none."""
    synchronised = isinstance(norm, nn.SyncBatchNorm) and norm.training
    if not (synchronised and dist.is_available() and dist.is_initialized()):
        return ''
    group: Any = norm.process_group or dist.group.WORLD
    return group.group_name if dist.get_world_size(group) > 1 else ''


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


def _compiles(device: str, kernels: str | None) -> bool:
    """Whether ``torch.compile`` traces this, not an export, and might do better than PyTorch."""
    if not torch.compiler.is_compiling():
        return False
    asked = _asked_of_compiler(kernels)
    return asked == 'triton' or (asked == 'auto' and device == 'cuda')


def asked_kernels(kernels: str | None = None) -> str:
    """The choice that holds here: an argument, :func:`use_kernels` or ``MMFFNET_KERNELS``."""
    if kernels is None:
        kernels = _chosen.get()
    if kernels is None:
        return _check(os.environ.get('MMFFNET_KERNELS') or 'auto', 'MMFFNET_KERNELS')
    return _check(kernels, 'kernels')


@constant_when_compiled
def _asked_of_compiler(kernels: str | None) -> str:
    return 'plain' if is_exported() else asked_kernels(kernels)


def _choose(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    kernels: str | None = None,
    gelu: bool = False,
) -> str:
    kernels = (
        _asked_of_compiler(kernels) if torch.compiler.is_compiling() else asked_kernels(kernels)
    )
    if x.dtype == torch.bfloat16 and x.device.type == 'cpu':
        warn_of_bfloat16()
    if kernels == 'plain' or x.ndim != 4 or not x.numel():
        return 'plain'
    call = _call(x, weight, stride, padding, kernels == 'triton', gelu)
    found = next((row.implementation for row in _TABLE if row.fits(call)), 'plain')
    asked_in_vain = call.triton and call.device == 'cuda' and found != 'triton'
    if asked_in_vain and not torch.compiler.is_compiling():
        _warn_of_no_triton(call)
    return found


def _warn_of_no_triton(call: _Call) -> None:
    """Nobody should take PyTorch's times for Triton's."""
    if _fits_triton(call):
        return  # a measured choice decided
    if not _has_triton(call.device):
        why = 'it cannot run here (`mmffnet env` says why)'
    elif not call.channels_last:
        why = 'the map is not in channels_last'
    else:
        why = f'it has none for {call.dtype}, {call.kernel}, stride {call.stride} on such a map'
    warnings.warn(f'a depthwise convolution does not run on Triton: {why}', stacklevel=4)


def _call(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    triton: bool,
    gelu: bool,
) -> _Call:
    return _Call(
        device=x.device.type,
        dtype=x.dtype,
        channels_last=x.is_contiguous(memory_format=torch.channels_last),
        batch=len(x),
        channels=x.shape[1],
        size=(x.shape[2], x.shape[3]),
        kernel=(weight.shape[2], weight.shape[3]),
        stride=stride,
        padding=padding,
        multiplier=len(weight) // x.shape[1],
        trains=weight.requires_grad and torch.is_grad_enabled(),
        triton=triton,
        gelu=gelu,
    )


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
        import triton

        card = '.'.join(map(str, torch.cuda.get_device_capability()))
        oldest = '.'.join(map(str, _OLDEST_TRITON))
        why = (
            f'; no triton: Triton {oldest} and compute capability 7.0 are needed, not Triton '
            f'{triton.__version__} and {card}'
        )
    return f'{", ".join(names)} (MMFFNET_KERNELS={asked_kernels()}){why}'
