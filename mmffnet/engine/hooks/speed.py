"""Compilation, re-parameterisation and memory format of a runner's model."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ...models import reparameterize
from ...registry import HOOKS


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles a model's backbone and neck with ``torch.compile``.

    mmengine's own ``compile`` takes the whole step, with data samples, losses and NMS, and breaks
    it into many graphs.

    Args:
        **kwargs: As for ``torch.compile``, such as ``mode`` and ``dynamic``.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs

    def before_run(self, runner: Runner) -> None:
        model = runner.model
        while not hasattr(model, 'backbone') and hasattr(model, 'module'):
            model = model.module  # of DDP or test-time augmentation
        parts = [getattr(model, name, None) for name in ('backbone', 'neck')]
        if not isinstance(parts[0], nn.Module):
            raise ValueError(f'{type(model).__name__} has no backbone that could be compiled')
        for part in filter(None, parts):
            part.compile(**self.kwargs)


@HOOKS.register_module()
class FuseHook(Hook):
    """Re-parameterises a model before it is tested, see :func:`mmffnet.reparameterize`."""

    def before_test(self, runner: Runner) -> None:
        reparameterize(runner.model)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keeps a model in PyTorch's memory format ``channels_last``.

    Convolutions pass the format of their weights on, so the pictures need not be converted.

    DistributedDataParallel lays out its gradients like the weights that it finds. Hooks come after
    it, so :func:`~.runner.build_runner` converts the model already when it sees this hook in the
    config. With a runner of another type torch warns once of strides that do not match.
    """

    priority = 'LOW'  # after FuseHook, which makes new weights

    def before_train(self, runner: Runner) -> None:
        runner.model.to(memory_format=torch.channels_last)

    before_test = before_train
