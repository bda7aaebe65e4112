"""Speed on a GPU: FFNet-2 in all its forms beside other networks, single kernels, and a profile.

Writes one Markdown and one JSON file, named after the card. ``--device cpu --quick`` takes tiny
sizes, with Triton's kernels in its interpreter: the numbers mean nothing, but everything has run.
"""

import argparse
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from mmengine.config import Config
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from mmffnet.benchmark import speed_report
from mmffnet.benchmark.forms import parse_form, prepare_training
from mmffnet.benchmark.networks import Network, find_network
from mmffnet.benchmark.profile import quiet_profile
from mmffnet.benchmark.report import (
    Rows,
    describe_machine,
    device_name,
    markdown,
    write,
    write_json,
)
from mmffnet.benchmark.speed import measure
from mmffnet.engine.models import build_model
from mmffnet.engine.runner import check_device
from mmffnet.errors import UsageError
from mmffnet.models.layers import MultiBranchDWConv
from mmffnet.ops.depthwise import depthwise_conv2d, describe_kernels, use_kernels

#: The first one is the official code's, which the others are compared with
TRAINING = [
    *('plain+bf16', 'channels_last+bf16+plain', 'channels_last+bf16'),
    *('channels_last+bf16+graph', 'channels_last+bf16+triton', 'channels_last+bf16+triton+graph'),
]
INFERENCE = ['plain', 'fused+channels_last+bf16', 'fused+channels_last+bf16+graph']
COMPILED = ['plain', 'fused+channels_last+bf16+compile', 'fused+channels_last+bf16+compile+graph']
PEERS = ['channels_last+bf16', 'channels_last+bf16+graph']
#: What, batch, height and width, the forms of FFNet-2, those of its peers
TABLES: dict[str, tuple[int, tuple[int, int], list[str], list[str]]] = {
    'training step': (32, (256, 256), TRAINING, PEERS),
    'training step, detection': (2, (800, 1344), TRAINING, PEERS),
    'inference': (64, (256, 256), INFERENCE, PEERS),
    'inference, one picture': (1, (256, 256), INFERENCE, PEERS),
    'inference, compiled': (64, (256, 256), COMPILED, []),
}
#: Channels and side, kernel, stride, outputs a channel
SHAPES = [
    *((88, 64, 7, 1, 1), (176, 32, 7, 1, 1), (352, 16, 7, 1, 1), (704, 8, 7, 1, 1)),
    *((88, 64, 3, 1, 1), (176, 32, 9, 1, 1), (88, 64, 7, 2, 2), (88, 64, 3, 2, 2)),
]
PASSES = ('forward', 'gradient of x', 'gradient of the weight')


class TorchvisionFeatures(nn.Module):
    """The maps of the four stages of a network of torchvision, without its weights.

    Args:
        name (str): Its name there.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        net = torchvision.models.get_model(name, weights=None)
        staged = hasattr(net, 'features')
        self.parts = net.features if staged else nn.Sequential(*list(net.children())[:-2])
        self.last = (1, 3, 5, 7) if staged else (4, 5, 6, 7)
        self.channels_are_last = name.startswith('swin')
        for module in self.modules():
            if isinstance(module, torchvision.ops.StochasticDepth):
                module.p = 0.0

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for number, part in enumerate(self.parts):
            x = part(x)
            if number in self.last:
                maps.append(x.permute(0, 3, 1, 2) if self.channels_are_last else x)
        return maps


def our_network(quick: bool) -> Network:
    """FFNet-2, or one that Triton's interpreter is done with in seconds."""
    if not quick:
        return find_network('ffnet2')
    arch = dict(depths=(1, 1, 1, 1), channels=(4, 8, 8, 8), stem_channels=4)
    cfg = Config(dict(model=dict(type='FFNet', arch=arch)))
    return Network('tiny', partial(build_model, cfg), (32, 32), ours=True)


def peers(quick: bool) -> list[Network]:
    """Networks of torchvision's, and ConvNeXt as timm has it."""

    def build(name: str, device: str) -> nn.Module:
        return TorchvisionFeatures(name).to(device).eval()

    names = ['resnet18'] if quick else ['convnext_tiny', 'resnet50', 'swin_t']
    found = [Network(f'torchvision:{n}', partial(build, n), (256, 256)) for n in names]
    return found if quick else [*found, find_network('timm:convnext_tiny')]


def table(what: str, args: argparse.Namespace) -> tuple[str, Rows]:
    """FFNet-2 in its forms and the peers in theirs, in turns; as Markdown and as rows."""
    batch, size, forms, others = TABLES[what]
    train = forms is TRAINING
    if args.quick:  # minutes in Triton's interpreter, which single kernels are enough for
        batch, size, forms = 2, (32, 32), [form for form in forms if 'triton' not in form]
    found = []
    for networks, texts in (([our_network(args.quick)], forms), (peers(args.quick), others)):
        found += measure(
            networks,
            [parse_form(text) for text in texts],
            size=size,
            batch=batch,
            device=args.device,
            rounds=1 if args.quick else 10,
            train=train,
        )
    title = f'{what}, batch {batch}, {size[0]}x{size[1]}'
    rows = [dict(row, what=what) for row in speed_report.rows(found, batch)]
    return f'\n## {title}\n\n{speed_report.table(found, batch)}', rows


def device_ms(call: Callable[[], Any], device: str, calls: int) -> float:
    """Milliseconds that the device works on a call, without the gaps between kernels."""
    if not device.startswith('cuda'):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return 1e3 * (time.perf_counter() - start) / calls
    call()
    with quiet_profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(calls):
            call()
        torch.cuda.synchronize(device)
    return sum(e.self_device_time_total for e in found.key_averages()) / 1e3 / calls


def passes(y: Callable[[], Tensor], x: Tensor, weight: Tensor) -> list[Callable[[], Any]]:
    """Forward pass, and the two halves of the backward pass."""
    out = y()
    grad = torch.randn_like(out)
    halves = [partial(torch.autograd.grad, out, t, grad, retain_graph=True) for t in (x, weight)]
    return [y, *halves]


def kernel_rows(device: str, quick: bool) -> Rows:
    """Single convolutions: GB/s of reading a map and writing one, and what copying it has."""
    torch.manual_seed(0)
    rows = []
    calls, batch = (1, 1) if quick else (10, 32)
    shapes = [(4, 4, 3, 1, 1)] if quick else SHAPES
    for dtype in (torch.bfloat16, torch.float32):
        few = shapes if dtype == torch.bfloat16 else shapes[:2]
        for channels, side, kernel, stride, multiplier in few:
            x = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
            x = x.to(memory_format=torch.channels_last).requires_grad_()
            weight = torch.randn(channels * multiplier, 1, kernel, kernel, device=device)
            weight = weight.to(dtype).requires_grad_()
            call = partial(depthwise_conv2d, x, weight, stride=(stride, stride))
            call = partial(call, padding=(kernel // 2, kernel // 2))
            row: dict[str, Any] = dict(channels=channels, size=side, kernel=kernel, stride=stride)
            row |= dict(outputs=multiplier, dtype=str(dtype).removeprefix('torch.'))
            copied = device_ms(x.detach().clone, device, calls)
            row['copy'] = f'{2e-6 * x.numel() * x.element_size() / copied:.3g}'
            for kernels in ('plain', 'auto', 'triton'):
                y = partial(call, kernels=kernels)
                size = (x.numel() + y().numel()) * x.element_size()
                for name, part in zip(PASSES, passes(y, x, weight), strict=True):
                    row[f'{kernels}, {name}'] = (
                        f'{1e-6 * size / device_ms(part, device, calls):.3g}'
                    )
            rows.append(row)
    return rows


def pair_rows(device: str, quick: bool) -> Rows:
    """Training pairs of two convolutions with batch norms: milliseconds of the device."""
    rows = []
    calls, batch = (1, 2) if quick else (10, 32)
    shapes = [(4, 4, 3, 1, 1)] if quick else [s for s in SHAPES if s[2] == 7]
    for channels, side, kernel, stride, multiplier in shapes:
        torch.manual_seed(0)
        block = MultiBranchDWConv(
            channels, kernel, out_channels=channels * multiplier, stride=stride
        ).to(device)
        x = torch.randn(batch, channels, side, side, device=device, dtype=torch.bfloat16)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        row: dict[str, Any] = dict(channels=channels, size=side, kernel=kernel, stride=stride)
        inputs = [x, *block.parameters()]
        for kernels in ('plain', 'auto', 'triton'):

            def y(block: nn.Module = block, x: Tensor = x, kernels: str = kernels) -> Tensor:
                kind = torch.device(device).type
                with torch.autocast(kind, torch.bfloat16), use_kernels(kernels):
                    return block(x)

            out = y()
            grad = torch.randn_like(out)
            back = partial(torch.autograd.grad, out, inputs, grad, retain_graph=True)
            row[f'{kernels}, forward'] = f'{device_ms(y, device, calls):.3f}'
            row[f'{kernels}, backward'] = f'{device_ms(back, device, calls):.3f}'
        rows.append(row)
    return rows


def profile_rows(text: str, device: str, quick: bool) -> tuple[float, Rows]:
    """Launches in a training step, and the kernels (operators on a CPU) that take the most time."""
    torch.manual_seed(0)
    side, batch, calls = (32, 2, 1) if quick else (256, 32, 3)
    model = our_network(quick).build('cpu')
    image = torch.rand(batch, 3, side, side, device=device)
    call, _ = prepare_training(model, parse_form(text), image)
    on_gpu = image.is_cuda
    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    for _ in range(3):
        call()
    with quiet_profile(activities=kinds) as found:
        for _ in range(calls):
            call()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = found.key_averages()
    launch = ('cudaLaunchKernel', 'cuLaunchKernel', 'cudaGraphLaunch') if on_gpu else ('aten::',)
    launches = sum(e.count for e in events if e.key.startswith(launch)) / calls
    time_of = f'self_{"device" if on_gpu else "cpu"}_time_total'
    # with a device, operators have the time of their kernels as well
    own = [e for e in events if not on_gpu or e.device_type == torch.autograd.DeviceType.CUDA]
    own.sort(key=lambda e: -getattr(e, time_of))
    return launches, [
        {
            'kernel': e.key[:80],
            'calls': f'{e.count / calls:g}',
            'ms': f'{getattr(e, time_of) / 1e3 / calls:.2f}',
        }
        for e in own[:15]
    ]


def sections(args: argparse.Namespace) -> dict[str, Callable[[], tuple[str, Any]]]:
    """What is measured, the most important first: each gives Markdown and rows."""

    def rows_of(title: str, make: Callable[[str, bool], Rows]) -> tuple[str, Rows]:
        rows = make(args.device, args.quick)
        return f'\n## {title}\n\n{markdown(rows)}', rows

    def profiled(form: str) -> tuple[str, Any]:
        launches, rows = profile_rows(form, args.device, args.quick)
        title = f'\n## Profile of a training step, {form}: {launches:.0f} launches\n\n'
        return title + markdown(rows), dict(form=form, launches=launches, rows=rows)

    forms = TRAINING[:3] if args.quick else [*TRAINING[1:3], *TRAINING[4:]]
    return {
        'training step': partial(table, 'training step', args),
        'kernels': partial(rows_of, 'Single convolutions, channels_last, GB/s', kernel_rows),
        'inference, one picture': partial(table, 'inference, one picture', args),
        'training step, detection': partial(table, 'training step, detection', args),
        'inference': partial(table, 'inference', args),
        'pairs': partial(rows_of, 'Pairs with batch norms, bfloat16 autocast, ms', pair_rows),
        **{f'profile, {form}': partial(profiled, form) for form in forms},
        'inference, compiled': partial(table, 'inference, compiled', args),
    }


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if a section failed, 2 for a wrong call."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--quick', action='store_true', help='tiny sizes')
    parser.add_argument('--minutes', type=float, default=4, help='start no section later')
    parser.add_argument('--only', nargs='+', default=[''], metavar='TEXT', help='sections by name')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, metavar='DIR')
    args = parser.parse_args(argv)
    try:
        args.device = check_device(args.device)
    except UsageError as error:
        parser.error(str(error))
    card = device_name(args.device)
    start, failed = time.perf_counter(), []
    text = f'# {card}\n\nPyTorch {torch.__version__}; depthwise kernels: {describe_kernels()}\n'
    content: dict[str, Any] = dict(environment=describe_machine(args.device), quick=args.quick)
    path = args.out / re.sub(r'\W+', '-', card.lower()).strip('-')
    for name, section in sections(args).items():
        if not any(part in name for part in args.only):
            continue
        if time.perf_counter() - start > 60 * args.minutes:
            added = f'\n{name}: not measured, the time was over\n'
        else:
            try:
                added, content[name] = section()
            except Exception as error:  # a kernel that does not compile must not end the others
                problem = ' '.join(str(error).split())[:300]
                added = f'\n{name} failed: {type(error).__name__}: {problem}\n'
                failed.append(name)
        print(added, flush=True)
        text += added
        write(path.with_suffix('.md'), text)  # at any time, in case this is ended from outside
        write_json(path.with_suffix('.json'), content)
    print(f'{time.perf_counter() - start:.0f} s; written: {path}.md, .json')
    return int(bool(failed))


if __name__ == '__main__':
    raise SystemExit(main())
