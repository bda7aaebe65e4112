"""A stage of a backbone, and the recomputation of its blocks."""

import contextlib
from collections.abc import Iterator

import torch
import torch.utils.checkpoint as cp
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..ops.depthwise import asked_kernels, use_kernels
from ..ops.tracing import is_traced


class Stage(BaseModule):
    """Downsampling, the blocks of one resolution, and what a family puts behind them.

    Args:
        downsample (nn.Module): Makes the stage's resolution and width.
        blocks (list[nn.Module]): The blocks.
        with_cp (bool): Recompute the blocks in the backward pass to save memory.
        tail (nn.Module, optional): What comes behind the blocks. Defaults to None, which is
            nothing.
    """

    def __init__(
        self,
        downsample: nn.Module,
        blocks: list[nn.Module],
        with_cp: bool,
        tail: nn.Module | None = None,
    ):
        super().__init__()
        self.downsample = downsample
        self.blocks = Sequential(*blocks)
        self.tail = nn.Identity() if tail is None else tail
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.forward_blocks(self.downsample(x)))

    def forward_blocks(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and self.with_cp and self.training:
            return self._checkpointed(x)
        return self.blocks(x)

    @torch.jit.unused
    def _checkpointed(self, x: Tensor) -> Tensor:
        # a compiler decides for itself what to keep and what to compute again
        if is_traced(x) or not torch.is_grad_enabled():
            return self.blocks(x)
        kernels = asked_kernels()
        for block in self.blocks:
            x = cp.checkpoint(
                block,
                x,
                use_reentrant=False,
                context_fn=lambda block=block: (  # type: ignore[misc]
                    contextlib.nullcontext(),
                    _again(block, kernels),
                ),
            )
        return x


@contextlib.contextmanager
def _again(module: nn.Module, kernels: str) -> Iterator[None]:
    """For the second forward pass of gradient checkpointing, which is the same to autograd.

    The backward pass may be outside of the context that chose the kernels, and in a thread of its
    own. Norms have updated their statistics in the first pass: copies take their place.
    """
    norms = [m for m in module.modules() if isinstance(m, _NormBase)]
    buffers = [dict(norm._buffers) for norm in norms]
    for norm, kept in zip(norms, buffers, strict=True):
        norm._buffers.update({k: None if v is None else v.clone() for k, v in kept.items()})
    try:
        with use_kernels(kernels):
            yield
    finally:
        for norm, kept in zip(norms, buffers, strict=True):
            norm._buffers.update(kept)
