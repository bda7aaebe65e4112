"""What autocast does to the operators here, and where it must not."""

import contextlib

import torch
from torch import Tensor


def full_precision(x: Tensor) -> contextlib.AbstractContextManager:
    """Ends autocast on the device of a tensor, where half precision is too coarse."""
    on = _is_on(x)
    return torch.autocast(x.device.type, enabled=False) if on else contextlib.nullcontext()


def as_autocast(x: Tensor) -> Tensor:
    """What autocast makes of the arguments of a convolution."""
    if x.dtype == torch.float64 or not _is_on(x):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def same_dtype(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution finds one dtype, after autocast."""
    return x.dtype == weight.dtype or (_is_on(x) and torch.float64 not in (x.dtype, weight.dtype))


def _is_on(x: Tensor) -> bool:
    return x.device.type != 'meta' and torch.is_autocast_enabled(x.device.type)
