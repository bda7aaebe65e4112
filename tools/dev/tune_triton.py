"""Measure which blocks the Triton kernels should have on this GPU, layer by layer of a backbone.

Writes a file for MMFFNET_TRITON_CHOICES; where PyTorch's own kernels are faster it says 'plain'.
A file that is there is extended. The first run compiles for some minutes.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmffnet.models.layers import (
    ConvNorm,
    DepthwiseConv2d,
    MultiBranchDWConv,
    convolve_and_activate,
)
from mmffnet.models.layers.fusible import is_exact_gelu
from mmffnet.models.mixers import MetaMixer
from mmffnet.ops.depthwise import use_kernels
from mmffnet.ops.triton_tuning import class_of, tune
from mmffnet.registry import MODELS

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': torch.float32}


class Activated(nn.Module):
    """A layer and its GELU, which the kernels compute at once."""

    def __init__(self, conv: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.act = conv, act

    def forward(self, x: Tensor) -> Tensor:
        return convolve_and_activate(self.conv, self.act, x)


def depthwise_layers(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The outermost modules that are computed by the kernels, and what is computed at once."""
    fused = isinstance(module, ConvNorm) and isinstance(module.conv, DepthwiseConv2d)
    if fused or isinstance(module, (MultiBranchDWConv, DepthwiseConv2d)):
        yield module, module
        return
    acts: dict[nn.Module, nn.Module] = {}
    if isinstance(module, MetaMixer):
        _, key, act, _ = (getattr(module, name) for name in module.names)
        acts = {key: act} if is_exact_gelu(act) else {}
    for child in module.children():
        for layer, at_once in depthwise_layers(child):
            yield layer, Activated(layer, acts[layer]) if layer in acts else at_once


def shapes(model: nn.Module, x: Tensor) -> dict[str, tuple[nn.Module, Tensor]]:
    """One layer of each shape class, and a map for it."""
    found: dict[str, tuple[nn.Module, Tensor]] = {}

    def record(at_once: nn.Module, layer: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
        convs: Any = [m for m in layer.modules() if isinstance(m, DepthwiseConv2d)]
        what = 'convolve' if isinstance(layer, DepthwiseConv2d) else 'norms'
        name = class_of(
            what + '+gelu' * isinstance(at_once, Activated),
            x.dtype,
            tuple(conv.kernel_size for conv in convs),
            convs[0].stride[0],
            (args[0].shape[1], y.shape[1]),
            y.numel() // y.shape[1],
        )
        found.setdefault(name, (at_once, args[0].detach()))

    layers = list(depthwise_layers(model))
    hooks = [layer.register_forward_hook(partial(record, at_once)) for layer, at_once in layers]
    with torch.no_grad(), use_kernels('plain'):
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def tune_layer(layer: nn.Module, x: Tensor, measure: Callable[[Callable], float]) -> dict:
    x = torch.randn_like(x).requires_grad_()
    tensors = [x, *layer.parameters()]
    grad = torch.randn_like(layer(x))

    def step(kernels: str) -> Callable[[], None]:
        def run() -> None:
            with use_kernels(kernels):
                y = layer(x)
            torch.autograd.grad(y, tensors, grad)

        return run

    return tune(step('triton'), step('plain'), measure)


def median_time(function: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        from triton.testing import do_bench

        return float(do_bench(function, return_mode='median'))
    start = time.perf_counter()  # in the interpreter, to try this
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--backbone', default='FFNet')
    parser.add_argument('--arch', default='ffnet2')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--size', type=int, nargs=2, default=[256, 256])
    parser.add_argument('--dtype', choices=list(DTYPES), default='bf16')
    parser.add_argument('--out', type=Path, default=Path('triton_choices.json'))
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    device, dtype = 'cuda' if cuda else 'cpu', DTYPES[args.dtype]
    model = MODELS.build(dict(type=args.backbone, arch=args.arch)).to(device, dtype)
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(args.batch_size, 3, *args.size, device=device, dtype=dtype)
    kept = json.loads(args.out.read_text()) if args.out.exists() else {}
    choices = kept.setdefault(torch.cuda.get_device_name() if cuda else 'cpu', {})
    for name, (layer, given) in shapes(model, x.to(memory_format=torch.channels_last)).items():
        found = tune_layer(layer, given, median_time)
        choices.pop(name, None)
        if found.pop('plain'):
            choices[name] = 'plain'
        choices |= found
        print(f'{name}: {choices.get(name, "triton")}', flush=True)
        args.out.write_text(json.dumps(kept, indent=1))


if __name__ == '__main__':
    main()
