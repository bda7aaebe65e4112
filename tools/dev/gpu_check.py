"""Check mmffnet on a GPU in one go, in a few minutes: exactness, training, operators, export.

Needs neither pytest nor the packages of the exporters. What cannot run where it is called is
reported as 'not run' and counts as neither passed nor failed. Exit status: 0, 1 if a check failed,
2 for a wrong call.
"""

import argparse
import copy
import functools
import importlib
import importlib.util
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.backends import cudnn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tests'))
import mmffnet
from mmffnet.benchmark.report import describe_machine
from mmffnet.datasets.scenes import draw_scene
from mmffnet.deploy.check import TOLERANCES, deviations, draw_pictures, predict
from mmffnet.deploy.export import export_model
from mmffnet.deploy.runtimes import load_exported
from mmffnet.engine import find_checkpoint
from mmffnet.engine.models import load_model
from mmffnet.engine.runner import build_runner, check_device, read_config, train_config
from mmffnet.errors import UsageError, describe_error
from mmffnet.models.layers import ConvNorm, MultiBranchDWConv
from mmffnet.models.mixers import DepthwiseConv, MetaMixer
from mmffnet.ops.depthwise import depthwise_conv2d, describe_kernels, use_kernels
from mmffnet.ops.graphs import InferenceGraphs, TrainingGraph
from mmffnet_cli import FORMATS

#: What a check found, and the most that is right
Found = tuple[float, float]
Check = Callable[[torch.device], Found]

#: Largest deviation from the recorded numbers, relative to the standard deviation of a map
EXACT = {torch.float64: 1e-9, torch.float32: 2e-5}
#: Kind and name of a network in the reference numbers, and its config
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f'ffnet{i}': ('det', f'ffnet_{i}', dict(type='FFNet', arch=f'ffnet{i}'))
        for i in range(1, 5)
    },
    'ffnetseg': ('seg', 'ffnet_seg', dict(type='FFNetSeg')),
    'head': (
        'head',
        'ade20k',
        dict(type='FFNetHead', in_channels=[192, 384, 768], num_classes=150),
    ),
}
FORMS = {
    'float64': (torch.float64, False, False),
    'float64, fused': (torch.float64, True, False),
    'float32': (torch.float32, False, False),
    'float32, channels_last': (torch.float32, False, True),
    'float32, fused, channels_last': (torch.float32, True, True),
}


LATE = 'the time was over'
#: Largest deviation of the kernels, relative to the largest value
ROUNDING = {torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float16: 4e-3}
#: Channels, height, width, kernel, stride and outputs a channel; tiny for Triton's interpreter
SHAPES = {
    'cpu': [(3, 5, 4, 3, 1, 1), (3, 5, 4, 5, 2, 2)],
    'cuda': [
        *((88, 64, 63, 7, 1, 1), (704, 9, 8, 7, 1, 1), (50, 17, 9, 9, 1, 1)),
        *((88, 33, 32, 7, 2, 2), (96, 7, 5, 3, 1, 1), (64, 15, 17, 5, 2, 2)),
    ],
}


class NotRunError(Exception):
    """A check that is not possible here; says why."""


@dataclass
class Result:
    """One row of the table."""

    check: str
    value: float | None
    limit: float | None
    status: str
    seconds: float
    note: str = ''


# Exactness


@functools.lru_cache(maxsize=1)
def official_network(name: str) -> nn.Module:
    """A network in float64 with the weights that the recorded numbers were made with."""
    reference = importlib.import_module('official_reference')
    kind, variant, cfg = NETWORKS[name]
    if kind == 'head':
        require('mmseg')
    model = MODELS.build(dict(cfg)).double().eval()
    model.load_state_dict(reference.fill(reference.official_keys(variant, kind)))
    return model


def exactness(name: str, form: str, device: torch.device) -> Found:
    reference, numbers = map(importlib.import_module, ('official_reference', 'reference_numbers'))
    kind, variant, _ = NETWORKS[name]
    dtype, fused, channels_last = FORMS[form]
    model: Any = copy.deepcopy(official_network(name)).to(device)
    if fused:
        mmffnet.reparameterize(model)
    model = model.to(dtype)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    # two arrays are recorded in float32 alone: too coarse for what float64 is asked for
    records = [r for r in numbers.load(f'{kind}_{variant}') if r['dtype'] == 'float64']
    worst = 0.0
    for size in {tuple(record['size']) for record in records}:
        make = reference.make_features if kind == 'head' else reference.make_input
        given = make(*size)
        x = [m.to(device, dtype) for m in given] if kind == 'head' else given.to(device, dtype)
        with torch.no_grad():
            outs = model(x)
        names = {'logits': outs} if kind == 'head' else {f'out{i}': y for i, y in enumerate(outs)}
        for record in records:
            if tuple(record['size']) == size:
                worst = largest(worst, numbers.deviation(names[record['array']], record))
    return worst, EXACT[dtype]


# Training


def mixed_precision(config: str, dtype: torch.dtype, device: torch.device) -> Found:
    """Three steps; how many losses, weights and buffers are not finite or did not move."""
    on_gpu = device.type == 'cuda'
    if not on_gpu and dtype == torch.float16:
        raise NotRunError('mixed precision in float16 is for GPUs')
    cfg = Config.fromfile(mmffnet.config_path(config))
    require(cfg.default_scope)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model: Any = MODELS.build(cfg.model).to(device).train()
        samples = [make_sample(cfg.default_scope, index) for index in (0, 4)]
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if on_gpu:
        # the default scale would be too high for the first steps, which would be skipped
        wrapper: OptimWrapper = AmpOptimWrapper(
            dtype=dtype, loss_scale=dict(init_scale=256.0), optimizer=optimizer
        )
    else:
        wrapper = OptimWrapper(optimizer)
    bad = 0
    for _ in range(3):
        batch = dict(
            inputs=[image for image, _ in samples],
            data_samples=[copy.deepcopy(sample) for _, sample in samples],
        )
        batch = model.data_preprocessor(batch, True)
        with wrapper.optim_context(model), torch.autocast(device.type, dtype):
            loss, _ = model.parse_losses(model(**batch, mode='loss'))
        wrapper.update_params(loss)
        bad += not bool(loss.isfinite())
    tensors = [*model.parameters(), *model.buffers()]
    bad += sum(not bool(t.isfinite().all()) for t in tensors)
    bad += all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return float(bad), 0.0


def make_sample(scope: str, index: int) -> tuple[Tensor, Any]:
    """A synthetic picture, B, G, R, with its truth."""
    scene = draw_scene(0, 0, index, 128 if scope == 'mmdet' else 96)
    image = torch.from_numpy(scene.image[..., ::-1].transpose(2, 0, 1).copy())
    meta = dict(img_shape=image.shape[1:], ori_shape=image.shape[1:], scale_factor=(1.0, 1.0))
    if scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        labels = torch.zeros(1, *image.shape[1:], dtype=torch.long)
        for instance in scene.instances:
            labels[0][torch.from_numpy(instance.mask)] = instance.label + 1
        return image, SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels))
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    seen = [i for i in scene.instances if i.mask.any() and not i.crowd]
    truth = InstanceData(labels=torch.tensor([instance.label for instance in seen]))
    masks = BitmapMasks([i.mask.astype('uint8') for i in seen], *image.shape[1:])
    truth.masks, truth.bboxes = masks, masks.get_bboxes('hbox').tensor
    return image, DetDataSample(metainfo=meta, gt_instances=truth)


def small_network(device: torch.device, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    cfg = dict(type='FFNet', arch='nano', drop_path_rate=0.0) | changes
    return MODELS.build(cfg).to(device).train()


def one_step(model: nn.Module, device: torch.device) -> list[Tensor]:
    """Outputs, gradients and buffers of a step; random weights keep any map from cancelling."""
    generator = torch.Generator().manual_seed(0)
    outs = model(torch.rand(2, 3, 64, 64, generator=generator).to(device))
    factors = [torch.randn(y.shape, generator=generator).to(device) for y in outs]
    torch.stack([(y * f).mean() for y, f in zip(outs, factors, strict=True)]).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [*(y.detach() for y in outs), *gradients, *model.buffers()]


def with_cp(device: torch.device) -> Found:
    plain, checkpointed = small_network(device), small_network(device, with_cp=True)
    return compare(one_step(checkpointed, device), one_step(plain, device)), 1e-6


@contextmanager
def one_process(device: torch.device) -> Iterator[None]:
    """A group of this process alone: nccl on GPUs, gloo on the CPU."""
    backend = 'nccl' if device.type == 'cuda' else 'gloo'
    if backend == 'nccl' and not torch.distributed.is_nccl_available():
        raise NotRunError('this torch has no nccl')
    variables = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK=str(device.index or 0))
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = torch.distributed.FileStore(f'{folder}/store', 1)
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
            try:
                yield
            finally:
                torch.distributed.destroy_process_group()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def ddp(norm: str, device: torch.device) -> Found:
    if norm == 'SyncBN' and device.type != 'cuda':
        raise NotRunError('SyncBN needs a GPU')
    expected = one_step(small_network(device), device)
    with one_process(device):
        model = small_network(device, norm_cfg=dict(type=norm))
        ids = [device] if device.type == 'cuda' else None
        wrapped = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
        found = one_step(wrapped, device)
        del wrapped
    return compare(found, expected), 1e-5


def ddp_channels_last(device: torch.device) -> Found:
    """How often torch warns that gradients are laid out otherwise than DDP wants them.

    It also warns where the strides differ in axes of size 1 alone, in which nothing is strided: a
    depthwise kernel is laid out alike in both formats.
    """
    toy = toy_training(device)
    always = torch.is_warn_always_enabled()
    with one_process(device), tempfile.TemporaryDirectory() as folder:
        cfg = short_training(toy, folder, launcher='pytorch')
        torch.set_warn_always(True)
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter('always')
                runner = build_runner(train_config(cfg, channels_last=True))
                runner.train()
        finally:
            torch.set_warn_always(always)
        if not isinstance(runner.model, DistributedDataParallel):
            raise RuntimeError('the runner did not wrap the model')
        runner.model = None
    texts = [str(warning.message) for warning in seen]
    texts = [text for text in texts if 'strides do not match' in text]
    differing = [text for text in texts if _layouts_differ(text)]
    if differing:
        print(differing[0], file=sys.stderr)
    return float(len(differing)), 0.0


def _layouts_differ(text: str) -> bool:
    """Whether torch's warning names strides that differ in an axis longer than 1."""
    sizes, grad, _, bucket = (
        [int(number) for number in group.split(',')] for group in re.findall(r'\[([\d, ]+)\]', text)
    )
    return any(a != b for size, a, b in zip(sizes, grad, bucket, strict=True) if size > 1)


# Kernels and graphs


def kernels(implementation: str, dtype: torch.dtype, device: torch.device) -> Found:
    """Depthwise convolutions: output and gradients against float64, of the largest value."""
    names, _, why = describe_kernels().partition(' (')
    if implementation == 'triton' and 'triton' not in names:
        raise NotRunError(why.rpartition('; ')[2])
    worst = 0.0
    for channels, height, width, kernel, stride, multiplier in SHAPES[device.type]:
        torch.manual_seed(0)
        x = torch.randn(2, channels, height, width)
        weight = torch.randn(channels * multiplier, 1, kernel, kernel)
        given = [x.to(memory_format=torch.channels_last), weight, torch.randn(len(weight))]
        geometry = ((stride, stride), (kernel // 2, kernel // 2))

        call = partial(depthwise_conv2d, stride=geometry[0], padding=geometry[1])
        given = [t.to(device, dtype) for t in given]
        found = output_and_gradients(partial(call, kernels=implementation), given)
        plain = partial(call, kernels='plain')
        expected = output_and_gradients(plain, [t.double() for t in given])
        worst = largest(worst, compare(found, expected))
    return worst, ROUNDING[dtype]


def blocks(kind: str, dtype: torch.dtype, device: torch.device) -> Found:
    """Blocks of convolutions and norms in Triton: output, gradients and buffers against float64."""
    if 'triton' not in describe_kernels().partition(' (')[0]:
        raise NotRunError(describe_kernels().rpartition('; ')[2])
    worst = 0.0
    shapes = SHAPES[device.type]
    if kind != 'pair':  # large kernels take seconds to compile
        shapes = shapes[-2:]
    for channels, height, width, kernel, stride, multiplier in shapes:
        torch.manual_seed(0)
        x = torch.randn(2, channels, height, width).to(memory_format=torch.channels_last)
        x = x.to(device, dtype)
        more = (channels * multiplier, stride)
        if kind == 'norm':
            block: nn.Module = ConvNorm(channels, more[0], kernel, stride, groups=channels)
        elif kind == 'pair with GELU':
            key = dict(type=DepthwiseConv, kernel_size=kernel, branches='pair')
            block = MetaMixer(channels, key=key)
        else:
            block = MultiBranchDWConv(channels, kernel, kind.partition(',')[0], *more)
        block.train('frozen' not in kind).to(device)
        norms: Any = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.running_var.uniform_(0.5, 1.5)
            norm.eps = 0.5  # without it, the gradient of a kernel's scale is nothing but rounding
        expected = _block_step(copy.deepcopy(block).double(), x.double(), 'plain')
        on = dtype != torch.float32
        with torch.autocast(device.type, dtype if on else torch.bfloat16, enabled=on):
            found = _block_step(block, x, 'triton')
        worst = largest(worst, compare(found, expected))
    return worst, ROUNDING[dtype]


def _block_step(block: nn.Module, x: Tensor, kernels: str) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with use_kernels(kernels):
        y = block(x)
    (y * torch.linspace(-1, 1, y.numel()).to(y).view_as(y)).sum().backward()
    gradients = [t.grad for t in (x, *block.parameters()) if t.grad is not None]
    return [y.detach(), *gradients, *(b for b in block.buffers() if b.is_floating_point())]


def training_graph(dtype: torch.dtype, device: torch.device) -> Found:
    """Six passes, two to a step of the optimizer, replayed against eager; with drop path."""
    states = []
    for graphed in (False, True):
        model, optimizer, said = _to_train(device, graphed)
        _train(model, optimizer, range(6), dtype, device)
        states.append([*model.parameters(), *model.buffers()])
    if said:
        raise RuntimeError('; '.join(said))
    return compare(*states), 1e-6


def resumed_graph(device: torch.device) -> Found:
    """Six passes with a graph, against two, and four more of another model with the same state."""
    model, optimizer, said = _to_train(device, True)
    _train(model, optimizer, range(2), torch.float32, device)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    _train(model, optimizer, range(2, 6), torch.float32, device)
    other, optimizer, said_later = _to_train(device, True)
    other.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    _train(other, optimizer, range(2, 6), torch.float32, device)
    if said or said_later:
        raise RuntimeError('; '.join(said + said_later))
    expected, found = ([*m.parameters(), *m.buffers()] for m in (model, other))
    return compare(found, expected), 1e-6  # the first pass of a model has no graph yet


def _to_train(device: torch.device, graphed: bool) -> tuple[nn.Module, Any, list[str]]:
    """A model, its optimizer, and what is said if there is no graph."""
    if device.type != 'cuda':
        raise NotRunError('graphs need a GPU')
    model: Any = small_network(device, drop_path_rate=0.3)
    model.to(memory_format=torch.channels_last)
    said: list[str] = []
    if graphed:
        model.graph = TrainingGraph(model, said.append)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), said


def _train(
    model: Any, optimizer: Any, numbers: range, dtype: torch.dtype, device: torch.device
) -> None:
    for number in numbers:
        torch.manual_seed(number)
        x = torch.rand(2, 3, 64, 64, device=device)
        with torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
            loss = torch.stack([y.float().square().mean() for y in model(x)]).sum()
        loss.backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    if hasattr(model, 'graph') and len(numbers) > 2 and len(model.graph.graphs) != 1:
        raise RuntimeError('nothing was captured')


def inference_graph(device: torch.device) -> Found:
    """Maps of two shapes that come three times each, kept until all have been computed."""
    if device.type != 'cuda':
        raise NotRunError('graphs need a GPU')
    said: list[str] = []
    model = small_network(device).eval()
    images = [torch.rand(1, 3, *size, device=device) for size in 3 * [(64, 64), (64, 96)]]
    with torch.no_grad():
        expected = [y for image in images for y in model(image)]
        graph = InferenceGraphs(model, said.append)
        found = [y for image in images for y in model(image)]
    if said or len(graph.graphs) != 2:
        raise RuntimeError('; '.join(said) or 'nothing was captured')
    return compare(found, expected), 1e-6


# Operators, compiler, export


def operators(name: str, device: torch.device) -> Found:
    """In float32, output and gradients, against float64 on the CPU."""
    ops: Any = importlib.import_module('mmcv.ops')
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    if name in ('nms', 'soft_nms'):
        corner, scores = 40 * rand(200, 2).float(), rand(200).float()
        boxes = torch.cat([corner, corner + 5 + 40 * rand(200, 2).float()], 1)
        call = partial(getattr(ops, name), iou_threshold=0.4)
        expected, kept = call(boxes, scores)
        found, found_kept = call(boxes.to(device), scores.to(device))
        if found_kept.tolist() != kept.tolist():
            return float('inf'), 1e-5
        return compare([found], [expected]), 1e-5
    function: Callable[..., Tensor]
    if name == 'roi_align':
        low = 20 * rand(6, 2)
        index = torch.arange(6)[:, None] % 2
        rois = torch.cat([index.double(), low, low + 5 + 20 * rand(6, 2)], 1)

        def function(x: Tensor) -> Tensor:
            return ops.roi_align(x, rois.to(x), 7, 0.5, 2, 'avg', True)

        inputs = [rand(2, 4, 24, 24)]
    elif name == 'sigmoid_focal_loss':
        target = torch.arange(12) % 5

        def function(x: Tensor) -> Tensor:
            return ops.sigmoid_focal_loss(x, target.to(x.device), 2.0, 0.25, None, 'none')

        inputs = [8 * rand(12, 4) - 4]
    elif name == 'softmax_focal_loss':
        classes = torch.arange(12) % 4

        def function(x: Tensor) -> Tensor:
            return ops.softmax_focal_loss(x, classes.to(x.device), 2.0, 0.25, None, 'sum')

        inputs = [8 * rand(12, 4) - 4]
    elif name == 'roi_pool':
        low = 20 * rand(6, 2)
        regions = torch.cat([torch.arange(6)[:, None] % 2, low, low + 5 + 20 * rand(6, 2)], 1)

        def function(x: Tensor) -> Tensor:
            return ops.roi_pool(x, regions.to(x), 7, 0.5)

        inputs = [rand(2, 4, 24, 24)]
    elif name == 'carafe':

        def function(*tensors: Tensor) -> Tensor:
            return ops.carafe(*tensors, 3, 1, 2)

        inputs = [rand(2, 4, 6, 5), rand(2, 9, 12, 10)]
    elif name == 'bbox_overlaps':

        def function(*corners: Tensor) -> Tensor:
            first, second = (torch.cat([c, c + 5 + c.flip(1)], 1) for c in corners)
            return ops.bbox_overlaps(first, second)

        corners = [40 * rand(20, 2), 40 * rand(30, 2)]
        expected_overlaps = function(*corners)
        return compare(
            [function(*[c.to(device).float() for c in corners])], [expected_overlaps]
        ), 1e-5
    elif name == 'deform_conv2d, offsets of zero':

        def function(*tensors: Tensor) -> Tensor:
            return ops.deform_conv2d(*tensors, 1, 1)

        inputs = [rand(2, 4, 8, 9), 0 * rand(2, 18, 8, 9), rand(6, 4, 3, 3)]
    elif name == 'deform_conv2d':

        def function(*tensors: Tensor) -> Tensor:
            return ops.deform_conv2d(*tensors, 1, 1)

        inputs = [rand(2, 4, 8, 9), rand(2, 18, 8, 9) - 0.5, rand(6, 4, 3, 3)]
    elif name == 'modulated_deform_conv2d, larger offsets':

        def function(*tensors: Tensor) -> Tensor:
            return ops.modulated_deform_conv2d(*tensors, 2, 1)

        inputs = [rand(2, 4, 8, 9), rand(2, 18, 8, 9) - 0.5, rand(2, 9, 8, 9)]
        inputs += [rand(6, 4, 3, 3), rand(6)]
    elif name == 'modulated_deform_conv2d':

        def function(*tensors: Tensor) -> Tensor:
            return ops.modulated_deform_conv2d(*tensors, 1, 1)

        inputs = [rand(2, 4, 8, 9), rand(2, 18, 8, 9) - 0.5, rand(2, 9, 8, 9)]
        inputs += [rand(6, 4, 3, 3), rand(6)]
    else:
        shapes, starts = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
        attention = importlib.import_module('mmcv.ops.multi_scale_deform_attn')

        def function(value: Tensor, *rest: Tensor) -> Tensor:
            where = (shapes.to(value.device), starts.to(value.device))
            return attention.MultiScaleDeformableAttnFunction.apply(value, *where, *rest, 2)

        inputs = [rand(2, 26, 2, 4), rand(2, 3, 2, 2, 2, 2), rand(2, 3, 2, 2, 2)]
    expected_all = output_and_gradients(function, inputs)
    found_all = output_and_gradients(function, [x.to(device, torch.float32) for x in inputs])
    return compare(found_all, expected_all), 1e-4


def output_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    (out * torch.linspace(-1, 1, out.numel()).to(out).view_as(out)).sum().backward()
    return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]


def compiled(device: torch.device) -> Found:
    if not any(map(shutil.which, ('cc', 'gcc', 'g++', 'clang'))):
        raise NotRunError('torch.compile needs a C compiler')
    plain, other = small_network(device), small_network(device)
    torch._dynamo.reset()
    found = one_step(torch.compile(other, fullgraph=True), device)  # type: ignore[arg-type]
    return compare(found, one_step(plain, device)), 1e-3


def export(task: str, format: str, device: torch.device) -> Found:
    require(*{'onnx': ('onnx', 'onnxscript', 'onnxruntime')}.get(format, ()))
    require('mmdet' if task == 'detection' else 'mmseg')
    toy_models = importlib.import_module('toy_models')
    with tempfile.TemporaryDirectory() as folder:
        config, checkpoint = toy_models.make_model(task, Path(folder))
        model, _ = load_model(read_config(config), checkpoint)
        original = copy.deepcopy(model)
        model.to(device)
        report = export_model(model, Path(folder, f'model{FORMATS[format].suffix}'), format)
        if any(p.device != device for p in model.parameters()):
            raise RuntimeError('the model was moved')
        runs_on = 'cpu' if format == 'onnx' else str(device)
        images = draw_pictures(1, 97, 130)
        found = load_exported(report.path, runs_on)(images)
        name = {'detection': 'detections', 'segmentation': 'labels'}[task]
        deviation = deviations(predict(original, task, images), found, task)[name]
    return deviation, TOLERANCES['float32'][name]


# Checkpoints


def toy_training(device: torch.device) -> Any:
    """Runners of mmengine choose the device themselves."""
    if device.type != ('cuda' if torch.cuda.is_available() else 'cpu'):
        raise NotRunError('mmengine trains on the GPU where there is one')
    return importlib.import_module('toy_training')


def short_training(toy: Any, folder: str, **changes: Any) -> Config:
    cfg = toy.toy_config(Path(folder), custom_hooks=[], **changes)
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.train_cfg = dict(by_epoch=True, max_epochs=2)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    return cfg


def checkpoint_is_whole(device: torch.device) -> Found:
    """How many tensors of the newest checkpoint are not those of the trained model."""
    toy = toy_training(device)
    with tempfile.TemporaryDirectory() as folder:
        runner = build_runner(train_config(short_training(toy, folder)))
        runner.train()
        saved = toy.read_checkpoint(find_checkpoint(folder))['state_dict']
        state = runner.model.state_dict()
    if any(value.device != device for value in state.values()):
        raise RuntimeError(f'the model was not trained on {device}')
    same = [name for name in state if torch.equal(state[name].cpu(), saved[name].cpu())]
    return float(len(state.keys() | saved.keys()) - len(same)), 0.0


def checkpoint_is_refused(device: torch.device) -> Found:
    """How many files hold the weights that a NaN has spoiled after the first epoch."""
    toy = toy_training(device)
    with tempfile.TemporaryDirectory() as folder:
        runner = build_runner(train_config(short_training(toy, folder)))
        runner.register_hook(toy.At('after_train_iter', 5, toy.spoil_weight))
        try:
            runner.train()
        except FloatingPointError:
            return float(len(list(Path(folder).glob('*.pth'))) - 1), 0.0
    raise RuntimeError('weights that are NaN were not noticed')


# Helpers


def require(*packages: str) -> None:
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise NotRunError(f'{name} is not installed')


def largest(*values: float) -> float:
    """The built-in max could lose a NaN."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def compare(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference, of the largest value of each tensor; inf where shapes differ."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float('inf')
    scale = largest(*(float(t.detach().abs().max()) for t in expected))
    worst = [0.0]
    for a, b in zip(found, expected, strict=True):
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        # what cancels to nothing has no scale of its own
        worst.append(float((a - b).abs().max()) / max(float(b.abs().max()), 1e-3 * scale))
    return largest(*worst)


def all_checks() -> dict[str, Check]:
    """All checks by their names, in the order in which they run."""
    checks: dict[str, Check] = {
        f'exactness: {name}, {form}': partial(exactness, name, form)
        for name in NETWORKS
        for form in FORMS
    }
    models = {
        'Mask R-CNN': 'detection/maskrcnn_nano_shapes',
        'Semantic FPN': 'segmentation/semfpn_nano_shapes',
    }
    for label, config in models.items():
        for dtype in (torch.float16, torch.bfloat16):
            name = f'mixed precision: {label}, {str(dtype).rpartition(".")[2]}'
            checks[name] = partial(mixed_precision, config, dtype)
    for dtype in (torch.float32, torch.bfloat16):
        name = f'graphs: training, {str(dtype).rpartition(".")[2]}'
        checks[name] = partial(training_graph, dtype)
    checks['graphs: resumed training'] = resumed_graph
    checks['graphs: inference'] = inference_graph
    for dtype in ROUNDING:
        name = str(dtype).rpartition('.')[2]
        for implementation in ('auto', 'triton'):
            checks[f'kernels: {implementation}, {name}'] = partial(kernels, implementation, dtype)
        for kind in ('pair', 'pair with GELU'):
            checks[f'kernels: {kind}, {name}'] = partial(blocks, kind, dtype)
    for kind in ('norm', 'pair, frozen', 'strips'):
        checks[f'kernels: {kind}, float32'] = partial(blocks, kind, torch.float32)
    checks['with_cp: outputs, gradients, buffers'] = with_cp
    checks['DDP: one process, BN'] = partial(ddp, 'BN')
    checks['DDP: one process, SyncBN'] = partial(ddp, 'SyncBN')
    checks['DDP: warnings with channels_last'] = ddp_channels_last
    for name in (
        *('nms', 'soft_nms', 'bbox_overlaps', 'roi_align', 'roi_pool', 'sigmoid_focal_loss'),
        *('softmax_focal_loss', 'carafe', 'deform_conv2d', 'deform_conv2d, offsets of zero'),
        *('modulated_deform_conv2d', 'modulated_deform_conv2d, larger offsets', 'ms_deform_attn'),
    ):
        checks[f'operators: {name}'] = partial(operators, name)
    checks['torch.compile: outputs, gradients, buffers'] = compiled
    for task, format in (
        *(('segmentation', 'torchscript'), ('segmentation', 'torch-export')),
        *(('detection', 'torchscript'), ('segmentation', 'onnx')),
    ):
        checks[f'export: {task}, {format}'] = partial(export, task, format)
    checks['checkpoints: as trained'] = checkpoint_is_whole
    checks['checkpoints: NaN refused'] = checkpoint_is_refused
    return checks


def run_check(name: str, check: Check, device: torch.device) -> Result:
    """Runs one check; whatever goes wrong in it is its result."""
    start = time.perf_counter()
    value = limit = None
    status, note = 'FAILED', ''
    try:
        value, limit = check(device)
        if value <= limit:  # not so for NaN
            status = 'ok'
    except NotRunError as reason:
        status, note = 'not run', str(reason)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and 'mmffnet' not in str(error.name):
            status = 'not run'
        note = describe_error(error)[:200]
    return Result(name, value, limit, status, round(time.perf_counter() - start, 2), note)


def table(results: list[Result]) -> str:
    """The results as Markdown."""
    lines = ['| check | found | at most | | s |', '|---|---|---|---|---|']
    for r in results:
        value, limit = ('' if v is None else f'{v:.1e}' for v in (r.value, r.limit))
        outcome = f'{r.status}: {r.note}'.replace('|', '/') if r.note else r.status
        lines.append(f'| {r.check} | {value} | {limit} | {outcome} | {r.seconds:.1f} |')
    counts = {s: sum(r.status == s for r in results) for s in ('ok', 'FAILED', 'not run')}
    lines += ['', ', '.join(f'{count} {status}' for status, count in counts.items())]
    return '\n'.join(lines)


def write_json(path: Path, device: torch.device, results: list[Result]) -> None:
    found = dict(describe_machine(str(device)), cuda=torch.version.cuda, ran_on=str(device))
    rows = [asdict(result) for result in results]
    for row in rows:
        if row['value'] is not None and not math.isfinite(row['value']):
            row['value'] = str(row['value'])  # JSON has neither NaN nor infinity
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(environment=found, results=rows), indent=1) + '\n')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument('--device', default='cuda', help="'cpu', 'cuda' (the default), 'cuda:1'...")
    parser.add_argument(
        '--minutes', type=float, default=8, help='start no check later (default: 8)'
    )
    parser.add_argument('--only', nargs='+', metavar='TEXT', help='checks whose names contain one')
    parser.add_argument('--out', type=Path, metavar='FILE', help='write the results as JSON')
    parser.add_argument('--list', action='store_true', help='print the names of the checks')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if a check failed or was not reached in time."""
    args = parse_args(argv)
    checks = {
        name: check
        for name, check in all_checks().items()
        if any(text in name for text in args.only or [''])
    }
    try:
        if not checks:
            raise UsageError(f'no check has {" or ".join(args.only)} in its name: see --list')
        if args.list:
            print('\n'.join(checks))
            return 0
        device = torch.device(check_device(args.device))
        if device.type not in ('cpu', 'cuda'):
            raise UsageError(f'--device must be cpu or a cuda device, not {device}')
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    if device.type == 'cuda':
        device = torch.device('cuda', device.index or 0)
        torch.cuda.set_device(device)
    start, results = time.perf_counter(), []
    # on GPUs, convolutions would otherwise be rounded to TF32
    with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for name, check in checks.items():
            if time.perf_counter() - start > 60 * args.minutes:
                results.append(Result(name, None, None, 'not run', 0.0, LATE))
                continue
            results.append(run_check(name, check, device))
            print(f'{results[-1].status}: {name} {results[-1].note}', file=sys.stderr, flush=True)
            if args.out:  # at any time, in case this is ended from outside
                write_json(args.out, device, results)
    if args.out:
        write_json(args.out, device, results)
    print(table(results))
    return int(any(result.status == 'FAILED' or result.note == LATE for result in results))


if __name__ == '__main__':
    sys.exit(main())
