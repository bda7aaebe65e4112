"""How much memory a step takes, counted the same way on CPUs and GPUs."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


@contextmanager
def quiet_profile(**options: Any) -> Iterator[profile]:
    """PyTorch's profiler without its remarks on cycles, and on GPUs that are not there."""
    os.environ.setdefault('KINETO_LOG_LEVEL', '5')
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*Profiler clears events')
        with profile(**options) as found:
            yield found


def peak_memory(call: Callable[[], Any], model: nn.Module, *inputs: Tensor) -> tuple[Any, int]:
    """Runs something, and finds the most bytes that PyTorch's tensors took during it.

    On a GPU the allocator counts them itself, on a CPU the profiler sees it give and take. What a
    library takes by itself, such as the scratch space of a convolution, is in neither.

    Args:
        call (Callable): What to run; it must free its gradients itself.
        model (nn.Module): The model in it.
        *inputs (Tensor): Its inputs.

    Returns:
        tuple[Any, int]: What the call returned, and the bytes: parameters, buffers and inputs, and
        the most that was there besides.
    """
    for parameter in model.parameters():
        parameter.grad = None
    held = [*model.parameters(), *model.buffers(), *inputs]
    resident = sum(tensor.numel() * tensor.element_size() for tensor in held)
    device = inputs[0].device
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        return result, resident + torch.cuda.max_memory_allocated(device) - before
    with quiet_profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = call()
    events: Any = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]']
    most = now = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        now += change
        most = max(most, now)
    return result, resident + most
