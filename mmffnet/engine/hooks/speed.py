"""Compilation, re-parameterisation and memory format of a runner's model."""

import logging
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from ...errors import UsageError
from ...models import reparameterize
from ...ops.graphs import InferenceGraphs, TrainingGraph, why_no_training_graph
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
        for part in trunk(runner.model):
            part.compile(**self.kwargs)


@HOOKS.register_module()
class CudaGraphHook(Hook):
    """Captures the training steps of backbone and neck as CUDA graphs, each for one shape.

    What has no graph runs as usual, and a warning says why: on a CPU, in several processes, with
    ``with_cp``, and inputs of other shapes than the first that comes twice.
    """

    def before_train(self, runner: Runner) -> None:
        parts = trunk(runner.model)
        why = next(filter(None, map(why_no_training_graph, parts)), None)
        if why is not None:
            _warn(f'--cuda-graphs: backbone and neck run without CUDA graphs: {why}')
            return
        for part in parts:
            TrainingGraph(part, _warn)


def replay_inference(model: nn.Module) -> None:
    """Lets backbone and neck of a model answer with CUDA graphs where shapes come again."""
    parts = trunk(model)
    if not next(parts[0].parameters()).is_cuda:
        _warn('backbone and neck run without CUDA graphs: they are not on a GPU')
        return
    for part in parts:
        InferenceGraphs(part, _warn)


def _warn(text: str) -> None:
    print_log(text, 'current', logging.WARNING)


def trunk(model: Any) -> list[nn.Module]:
    """Backbone and neck, which have neither data samples nor losses in them."""
    while not hasattr(model, 'backbone') and hasattr(model, 'module'):
        model = model.module  # of DDP or test-time augmentation
    if not isinstance(getattr(model, 'backbone', None), nn.Module):
        raise UsageError(f'{type(model).__name__} has no backbone')
    return [part for part in (model.backbone, getattr(model, 'neck', None)) if part is not None]


@HOOKS.register_module()
class FuseHook(Hook):
    """Re-parameterises a model before it is tested, see :func:`mmffnet.reparameterize`."""

    def before_test(self, runner: Runner) -> None:
        try:
            reparameterize(runner.model)
        except ValueError as error:
            raise UsageError(f'--fuse: {error}') from error


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
