"""Forms that a network can run in: fused or not, memory layout, compiled, precision, runtime."""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmffnet_cli import FORMATS

from ..deploy.export import export_module
from ..deploy.reparameterize import run_tensors
from ..deploy.runtimes import load_exported
from ..engine.hooks.speed import trunk
from ..errors import UsageError
from ..ops.depthwise import use_kernels
from ..ops.depthwise_cpu import warn_of_bfloat16
from ..ops.graphs import InferenceGraphs, TrainingGraph
from .networks import fuse

#: Formats of the files that runtimes load
RUNTIMES = {f.runtime: f for f in FORMATS.values() if f.runtime in ('onnxruntime', 'openvino')}

Call = Callable[[], list[Tensor]]


class Form(NamedTuple):
    """How a network runs; without any of these it is PyTorch in eager mode, NCHW, float32."""

    fused: bool = False  #: Re-parameterised. Exported models always are
    channels_last: bool = False  #: NHWC in memory
    compile: bool = False  #: ``torch.compile``; of a whole model, backbone and neck
    freeze: bool = False  #: Compiled with the weights as constants
    onnxruntime: bool = False  #: Exported, in ONNX Runtime
    openvino: bool = False  #: Exported, in OpenVINO
    #: bfloat16: weights and maps of backbones, automatic mixed precision in whole models and
    #: training, the runtime's own choice of layers in OpenVINO
    bf16: bool = False
    plain: bool = False  #: PyTorch's own depthwise convolutions, see :mod:`mmffnet.ops.depthwise`
    triton: bool = False  #: Triton's, where they can
    graph: bool = False  #: CUDA graphs; of a whole model, of backbone and neck

    def __str__(self) -> str:
        return '+'.join(name for name, on in self._asdict().items() if on) or 'eager'

    @property
    def runtime(self) -> str | None:
        return next((name for name in RUNTIMES if getattr(self, name)), None)


def parse_form(text: str) -> Form:
    """Reads a form such as 'eager', 'fused+channels_last+bf16' or 'openvino+bf16'."""
    parts = [part for part in text.split('+') if part != 'eager']
    for part in parts:
        if part not in Form._fields:
            known = ', '.join(Form._fields)
            raise UsageError(f"'{text}' is no form: its parts are eager or {known}")
    form = Form(**dict.fromkeys(parts, True))
    if form.runtime and set(parts) - {'fused', 'bf16', form.runtime}:
        raise UsageError(f"'{text}' is no form: {form.runtime} goes with fused and bf16 alone")
    if form.onnxruntime and form.bf16:
        raise UsageError(f"'{text}' is no form: ONNX Runtime computes in float32 on CPUs")
    if form.plain and form.triton:
        raise UsageError(f"'{text}' is no form: plain and triton exclude each other")
    return form


def prepare(
    model: nn.Module, form: Form, image: Tensor, threads: int, folder: Path
) -> tuple[Call, int]:
    """Brings a network in eval mode, which is changed, into a form.

    Returns what runs it once and gives its outputs, and its number of parameters. It runs on the
    device of the image. The threads are those of a runtime: PyTorch's are set for the whole
    process. The folder is where exported models go.
    """
    if form.fused or form.runtime:
        model = fuse(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if form.runtime:
        path = export_module(model, folder / f'model{RUNTIMES[form.runtime].suffix}', image.shape)
        return prepare_exported(path, form, image, threads), parameters
    whole = hasattr(model, 'data_preprocessor')
    model, image = _lay_out(model, form, image)
    if form.bf16 and not whole:
        model, image = model.bfloat16(), image.bfloat16()
    _speed_up(model, form, image, InferenceGraphs)

    @torch.no_grad()
    def call() -> list[Tensor]:
        cast = torch.autocast(image.device.type, torch.bfloat16, enabled=form.bf16 and whole)
        with cast, _kernels(form):
            return run_tensors(model, image)

    if form.graph:
        call()  # a shape must come again to get a graph
    return call, parameters


def prepare_training(model: nn.Module, form: Form, image: Tensor) -> tuple[Call, int]:
    """Brings a backbone into a form that trains; the call is a forward and a backward pass.

    The loss is the sum of all maps, weighted at random, as a plain mean of maps behind a layer norm
    has no gradient. The gradients of the call before are thrown away first.
    """
    if form.fused or form.freeze or form.runtime:
        raise UsageError(f'{form} is a form for inference: no training step can be measured in it')
    model, image = _lay_out(model.train(), form, image)
    _speed_up(model, form, image, TrainingGraph)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        weights = [
            torch.randn(y.shape, generator=generator).to(image.device) / y.numel() ** 0.5
            for y in model(image)
        ]

    def call() -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        cast = torch.autocast(image.device.type, torch.bfloat16, enabled=form.bf16)
        with cast, _kernels(form):
            maps = model(image)
        loss = torch.stack([(y.float() * w).sum() for y, w in zip(maps, weights, strict=True)])
        loss.sum().backward()
        return [loss.detach()]

    return call, sum(parameter.numel() for parameter in model.parameters())


def _kernels(form: Form) -> contextlib.AbstractContextManager[None]:
    chosen = 'plain' if form.plain else 'triton' if form.triton else None
    return use_kernels(chosen) if chosen else contextlib.nullcontext()


def _lay_out(model: nn.Module, form: Form, image: Tensor) -> tuple[nn.Module, Tensor]:
    layout = torch.channels_last if form.channels_last else torch.contiguous_format
    model = model.to(image.device)
    if form.bf16 and image.device.type == 'cpu':
        warn_of_bfloat16()
    if form.channels_last:
        model = model.to(memory_format=layout)  # type: ignore[call-overload]
    return model, image.contiguous(memory_format=layout)


def _speed_up(
    model: nn.Module, form: Form, image: Tensor, graphs: type[TrainingGraph | InferenceGraphs]
) -> None:
    """Compiles and captures a backbone, or backbone and neck of a whole model."""
    parts = trunk(model) if hasattr(model, 'backbone') else [model]
    if form.compile or form.freeze:
        # several networks share the code of their modules: each is one more compilation of it
        # (by the names that torch 2.6 knows, too)
        torch._dynamo.config.cache_size_limit = 1000
        torch._dynamo.config.accumulated_cache_size_limit = 10000
        options = dict(options={'freezing': True}) if form.freeze else {}
        for part in parts:
            part.compile(**options)
    if form.graph:
        if not image.is_cuda:
            raise UsageError('graph is a form for GPUs')
        for part in parts:
            graphs(part, warnings.warn)


def prepare_exported(path: Path, form: Form, image: Tensor, threads: int) -> Call:
    """Loads an exported model into its runtime, as :func:`prepare` does."""
    precision = 'bfloat16' if form.bf16 else 'float32'
    exported = load_exported(path, str(image.device), threads, precision)
    pictures = image.cpu().numpy()

    def call() -> list[Tensor]:
        return [torch.from_numpy(np.asarray(out)) for out in exported(pictures).values()]

    return call
