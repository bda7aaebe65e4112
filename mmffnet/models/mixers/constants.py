"""Tensors that follow from the size of a map."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...ops.tracing import is_traced


class Constants:
    """Calls functions that make tensors for a size, and keeps what they made.

    They are no buffers: they follow the device of the input and are in no state dict.

    Args:
        number (int): How many are kept.
    """

    def __init__(self, number: int) -> None:
        self._keep = functools.lru_cache(maxsize=number)(self._make)
        self._captured: dict[int, Any] = {}

    @staticmethod
    def _make(make: Callable, *args: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return make(*args)

    def __call__(self, x: Tensor, make: Callable, *args: Any) -> Any:
        # a graph, or a tensor without values, makes tensors that are good for nothing else
        keep = type(x) is Tensor and not is_traced(x)
        found = (self._keep if keep else self._make)(make, *args, x.device)
        if keep and x.is_cuda and torch.cuda.is_current_stream_capturing():
            self._captured[id(found)] = found  # a graph reads it where it is, long after this call
        return found


constants = Constants(128)
