"""CUDA graphs of modules: what a GPU was asked to do once, started again as a whole.

A network of many small kernels waits for the host, which starts them one by one. A graph is started
at once, but for one shape, with fixed memory. Whatever has no graph runs as usual, and the reason
is said once.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

Call = Callable[..., Any]


class InferenceGraphs:
    """Takes the calls of a module in eval mode, and answers with graphs for shapes that come again.

    It stands where ``nn.Module.compile`` puts compiled code, in front of which it may be: copies of
    the module and checkpoints leave it out. A graph works on the parameters where they are: they
    must not be moved or replaced afterwards.

    Args:
        module (nn.Module): The module.
        say (Callable): Is told, once each, why there are calls without a graph.
    """

    room = 8  # how many graphs there may be

    def __init__(self, module: nn.Module, say: Callable[[str], None]) -> None:
        self.module, self.say = module, say
        self.said: set[str] = set()
        self.seen: set[Hashable] = set()
        self.graphs: dict[Hashable, Call] = {}
        self.eager: Call = module._compiled_call_impl or module._call_impl
        module._compiled_call_impl = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs or not self.applies():
            return self.eager(*args, **kwargs)
        tensors = tree_leaves(args)
        if not all(isinstance(t, Tensor) and t.is_cuda for t in tensors):
            return self.without('its inputs are not on a GPU', args)
        key = _describe(tensors)
        if self.wants(key):
            self._capture(key, args)
        if key in self.graphs:
            return self.replay(self.graphs[key], args)
        if len(self.seen) > self.room > 0:
            return self.without(f'its inputs have more than {self.room} shape(s)', args)
        return self.eager(*args)

    def wants(self, key: Hashable) -> bool:
        """Whether a graph is to be captured for a call of this kind: if there was one before."""
        known = key in self.seen
        self.seen.add(key)
        return known and key not in self.graphs and len(self.graphs) < self.room

    def applies(self) -> bool:
        return not (self.module.training or torch.is_grad_enabled())

    def capture(self, args: tuple) -> Call:
        inputs, side = tree_map(torch.clone, args), torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        with _autocast():
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # libraries choose kernels and get memory when they run first
                    self.eager(*inputs)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph, capture_error_mode='thread_local'):
                outputs = self.eager(*inputs)

        def call(*args: Any) -> Any:
            for kept, given in zip(tree_leaves(inputs), tree_leaves(args), strict=True):
                kept.copy_(given)
            graph.replay()
            # the next call writes to the same memory
            return tree_map_only(Tensor, torch.clone, outputs)

        return call

    def replay(self, graph: Call, args: tuple) -> Any:
        return graph(*args)

    def without(self, why: str, args: tuple) -> Any:
        self._report(why)
        return self.eager(*args)

    def _capture(self, key: Hashable, args: tuple) -> None:
        try:
            if any(m._forward_hooks or m._forward_pre_hooks for m in self.module.modules()):
                raise RuntimeError('a graph would leave out the hooks of its modules')
            with torch.cuda.device(tree_leaves(args)[0].device):
                self.graphs[key] = self.capture(args)
        except Exception as error:  # whatever a module does that a graph cannot
            self.room = 0
            self._report(f'{type(error).__name__}: {" ".join(str(error).split())[:200]}')

    def _report(self, why: str) -> None:
        if why not in self.said:
            self.said.add(why)
            self.say(f'{type(self.module).__name__} runs without a CUDA graph: {why}')


class TrainingGraph(InferenceGraphs):
    """Forward and backward pass of a module, for the first shape that comes a second time.

    A graph works on the parameters and buffers where they are: it is captured again if they have
    moved, or others are trained. What else is changed in the module later, such as the rate of drop
    path, it does not notice.
    """

    room = 1
    state: Hashable = None
    pending: weakref.ref[Any] | None = None  # the outputs whose backward pass needs the memory

    def applies(self) -> bool:
        if not (self.module.training and torch.is_grad_enabled()):
            return False
        tensors = [*self.module.parameters(), *self.module.buffers()]
        state = tuple((t.data_ptr(), t.requires_grad) for t in tensors)
        if state != self.state:
            self.graphs.clear()
            self.state = state
        return True

    def capture(self, args: tuple) -> Call:
        inputs = tree_map(lambda t: t.detach().clone().requires_grad_(t.requires_grad), args)
        buffers = list(self.module.buffers())
        kept, random = [b.clone() for b in buffers], torch.cuda.get_rng_state()
        step = _Forward(self.module, self.eager, _autocast())
        try:
            with torch.autocast('cuda', enabled=False):  # as it is in backward passes
                torch.cuda.make_graphed_callables(step, inputs, allow_unused_input=True)
        finally:  # it has run a few times to warm up, which are no steps of the training
            for buffer, before in zip(buffers, kept, strict=True):
                buffer.data.copy_(before)
            torch.cuda.set_rng_state(random)
        return step

    def replay(self, graph: Call, args: tuple) -> Any:
        if self.pending is not None and self.pending() is not None:
            return self.without('it is called twice before a backward pass', args)
        outputs = graph(*args)
        node = next((t.grad_fn for t in tree_leaves(outputs) if t.grad_fn is not None), None)
        if node is not None:
            self.pending = weakref.ref(node)  # whose outputs may be thrown away, too
            node.register_prehook(self._before_backward)
        return outputs

    def _before_backward(self, *_: Any) -> None:
        self.pending = None
        keep_gradients(list(self.module.parameters()))


class _Forward(nn.Module):
    """A module's call under an autocast of its own, as something that has the parameters."""

    def __init__(self, module: nn.Module, call: Call, cast: torch.autocast) -> None:
        super().__init__()
        self.module, self.call, self.cast = module, call, cast

    def forward(self, *args: Any) -> Any:
        with self.cast:
            return self.call(*args)


def _describe(tensors: list[Tensor]) -> Hashable:
    shapes = tuple((t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in tensors)
    cast = torch.is_autocast_enabled('cuda') and torch.get_autocast_dtype('cuda')
    return shapes, cast, torch.is_inference_mode_enabled()


def _autocast() -> torch.autocast:
    """The autocast that is on, but weights are cast within the graph, into its own memory."""
    on, dtype = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
    return torch.autocast('cuda', dtype, enabled=on, cache_enabled=False)


def keep_gradients(parameters: list[nn.Parameter]) -> None:
    """Moves gradients that others are to be added to: a replay writes where the last one wrote."""
    held = [(p, p.grad) for p in parameters if p.grad is not None]
    if held:
        moved = torch._foreach_mul([gradient for _, gradient in held], 1)
        for (parameter, _), gradient in zip(held, moved, strict=True):
            parameter.grad = gradient


def why_no_training_graph(module: nn.Module) -> str | None:
    """What keeps the steps of a module from being captured, or None."""
    if any(getattr(child, 'with_cp', False) for child in module.modules()):
        return 'with_cp computes maps a second time'
    if torch.distributed.is_initialized():
        return 'it is one of several processes'
    return None if all(p.is_cuda for p in module.parameters()) else 'it is not on a GPU'
