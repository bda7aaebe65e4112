"""Where the time goes, by module and by operator, and how much memory a step takes."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from ..errors import UsageError, describe_error
from .forms import Form, prepare
from .networks import Network
from .report import Rows

_MARK = 'module '


@contextmanager
def quiet_profile(**options: Any) -> Iterator[profile]:
    """PyTorch's profiler without its remarks on cycles, and on GPUs that are not there."""
    os.environ.setdefault('KINETO_LOG_LEVEL', '5')
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*Profiler clears events')
        with profile(**options) as found:
            yield found


def profile_network(
    network: Network,
    form: Form,
    *,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    device: str = 'cpu',
    calls: int = 5,
    depth: int = 2,
    trace: str | None = None,
) -> tuple[Rows, Rows]:
    """Measures how long the parts of a network take, and which operators take it.

    Compiled forms have no modules, runtimes no operators either. ``calls`` are averaged, ``depth``
    is how deep in the tree of modules to look, ``trace`` a file for the whole trace.

    Returns:
        tuple: Rows of modules in the order in which they run, and of operators, the most expensive
        first: milliseconds per call, with what the profiler adds, and shares in percent.
    """
    if form.runtime:
        raise UsageError(f'{form} runs outside of PyTorch, where nothing can be profiled')
    torch.manual_seed(0)
    model = network.build('cpu')
    try:
        image = torch.rand(batch, 3, *(size or network.size), device=device)
        call, _ = prepare(model, form, image, torch.get_num_threads(), Path())
        call()
    except UsageError:
        raise
    except (RuntimeError, ValueError) as error:  # of a compiler, the memory, or a size
        raise UsageError(f'{network.name}, {form}: {describe_error(error)}') from error
    names = [] if form.compile or form.freeze else _mark_modules(model, depth)
    call()
    activities = [ProfilerActivity.CPU]
    on_gpu = torch.device(device).type == 'cuda'
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with quiet_profile(activities=activities) as found:
        for _ in range(calls):
            call()
        if on_gpu:
            torch.cuda.synchronize(device)
    if trace:
        found.export_chrome_trace(trace)
    events = found.key_averages()
    unit = 1e-3 / calls  # microseconds of all calls to milliseconds of one
    kind = 'device' if on_gpu else 'cpu'
    # on GPUs the marks come a second time, as what the device did in the meantime
    own = [
        (e.key, e.count / calls, getattr(e, f'self_{kind}_time_total') * unit)
        for e in events
        if not e.key.startswith((_MARK, 'ProfilerStep'))
    ]
    total = sum(ms for *_, ms in own) or 1.0
    spent = {e.key: getattr(e, f'{kind}_time_total') * unit for e in events}
    ran = [name for name in names if _MARK + name in spent]
    modules = []
    for name in ran:
        indent = '  ' * sum(name.startswith(f'{other}.') for other in ran)
        ms = spent[_MARK + name]
        modules.append(dict(module=indent + name, ms=f'{ms:.2f}', share=f'{100 * ms / total:.1f}'))
    return modules, [
        dict(operator=key, calls=f'{n:g}', ms=f'{ms:.2f}', share=f'{100 * ms / total:.1f}')
        for key, n, ms in sorted(own, key=lambda one: -one[2])
        if ms > 0
    ]


def _mark_modules(model: nn.Module, depth: int) -> list[str]:
    """Makes modules tell the profiler when they run; returns their names."""
    marked = {n: m for n, m in model.named_modules() if n and n.count('.') < depth}
    for name, module in marked.items():
        # by hooks: kernels for several modules at once heed these alone
        marks: list[record_function] = []
        module.register_forward_pre_hook(partial(_open, _MARK + name, marks))
        module.register_forward_hook(partial(_close, marks))
    return list(marked)


def _open(name: str, marks: list[record_function], *_: Any) -> None:
    marks.append(record_function(name).__enter__())


def _close(marks: list[record_function], *_: Any) -> None:
    marks.pop().__exit__(None, None, None)


def peak_memory(
    call: Callable[[], Any], model: nn.Module, *inputs: Tensor, before: int | None = None
) -> tuple[Any, int]:
    """Runs something, and finds the most bytes that PyTorch's tensors took during it.

    On a GPU the allocator counts them itself, on a CPU the profiler sees it give and take. What a
    library takes by itself, such as the scratch space of a convolution, is in neither.

    Returns the result, and the bytes, with parameters, buffers and inputs. The call must free its
    gradients itself. ``before`` are the bytes on the GPU before any of this was there, which are
    known if the memory of graphs is to be counted.
    """
    for parameter in model.parameters():
        parameter.grad = None
    held = [*model.parameters(), *model.buffers(), *inputs]
    resident = sum(tensor.numel() * tensor.element_size() for tensor in held)
    device = inputs[0].device
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        if before is None:
            before = torch.cuda.memory_allocated(device) - resident
        result = call()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    with quiet_profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = call()
    events: Any = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]']
    most = now = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        now += change
        most = max(most, now)
    return result, resident + most
