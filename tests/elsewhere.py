"""Tensors that behave as if they were on a GPU: for tests of what may only meet its own device."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


class Elsewhere(Tensor):
    """Says that it is on another device ('meta', which torch has everywhere), and has values.

    As on a GPU, an operation that also gets a tensor of the CPU (other than a scalar) is an error,
    and so is ``numpy()``.
    """

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> 'Elsewhere':
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device='meta'
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and not isinstance(value, cls) and value.ndim:
                raise RuntimeError(f'{func} got tensors on two devices')
        device = kwargs.pop('device', None)
        args, kwargs = tree_map(lambda t: t.inner if isinstance(t, cls) else t, (args, kwargs))
        out = func(*args, **kwargs)
        if device is not None and torch.device(device).type == 'cpu':
            return out
        return tree_map(lambda t: cls(t) if isinstance(t, Tensor) else t, out)


def elsewhere(model: Any) -> Any:
    """A copy of a model there. ``Module.cpu()`` needs torch's overwrite_module_params for it."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(Elsewhere(parameter.data), parameter.requires_grad)
                module._parameters[name] = moved
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer)
    if hasattr(model, '_set_device'):
        model._set_device(torch.device('meta'))
    return model
