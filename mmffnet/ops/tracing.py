"""Who calls modules (eager code, a tracer, a compiler, an export), and who listens to them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def constant_when_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """What torch.compiler.assume_constant_result does, which imports the whole compiler first."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def is_exported() -> bool:
    """Whether ``torch.export`` calls; what ``torch.compile`` traces is not exported."""
    # a constant, since code that dynamo traces always finds that it is exported; torch 2.6 has no
    # such question, and this one is true while it exports without dynamo
    return getattr(torch.compiler, 'is_exporting', torch.compiler.is_compiling)()


def is_traced(x: Any) -> bool:
    """Whether the calls make a graph, in which shapes are a given and a check only adds guards."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or isinstance(x, torch.fx.Proxy)


def is_eager(*tensors: Tensor) -> bool:
    """Whether these are computed now and by PyTorch, and not traced, transformed or counted."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors)
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch.autograd.forward_ad._current_level >= 0
    )


def is_observed(*modules: nn.Module) -> bool:
    """Whether something waits for calls of these modules: hooks, or what replaced ``forward``."""
    return any(
        m._forward_hooks
        or m._forward_pre_hooks
        or m._backward_hooks
        or m._backward_pre_hooks
        or 'forward' in m.__dict__
        for m in modules
    )
