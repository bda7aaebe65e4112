"""Times single depthwise convolutions on a CPU: PyTorch's own against what the table chooses.

Forward and backward pass, with the shapes of FFNet-2 (two pictures of 256x256) and FFNetSeg.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from mmffnet.benchmark.report import device_name, environment, markdown, write, write_json
from mmffnet.ops.depthwise import depthwise_conv2d

# channels, height and width, kernel, stride, multiplier
SHAPES = [
    (88, 64, 7, 1, 1),
    (176, 32, 7, 1, 1),
    (352, 16, 7, 1, 1),
    (704, 8, 7, 1, 1),
    (704, 4, 7, 1, 1),
    (88, 64, 5, 1, 1),
    (192, 32, 9, 1, 1),
    (384, 16, 9, 1, 1),
    (88, 64, 7, 2, 2),
    (176, 32, 7, 2, 2),
    (352, 16, 7, 2, 2),
    (88, 64, 3, 2, 2),
    (352, 16, 3, 2, 2),
]
LAYOUTS = {'NHWC': torch.channels_last, 'NCHW': torch.contiguous_format}
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


def measure(shape: tuple, layout: str, dtype: torch.dtype, rounds: int) -> dict:
    """Median times in milliseconds, taken in turns, and the deviation of the weight gradient."""
    channels, side, kernel, stride, multiplier = shape
    fmt = LAYOUTS[layout]
    x = torch.randn(2, channels, side, side).to(dtype).to(memory_format=fmt).requires_grad_()
    weight = torch.randn(channels * multiplier, 1, kernel, kernel).to(dtype)
    weight = weight.to(memory_format=fmt).requires_grad_()
    geometry = ((stride, stride), (kernel // 2, kernel // 2))
    grad = torch.randn_like(depthwise_conv2d(x, weight, None, *geometry))
    times: dict[str, dict[str, list]] = {
        k: dict(forward=[], backward=[]) for k in ('plain', 'auto')
    }
    found = {}
    for number in range(rounds + 1):
        for kernels, kept in times.items():
            start = time.process_time()
            y = depthwise_conv2d(x, weight, None, *geometry, kernels=kernels)
            middle = time.process_time()
            grads = torch.autograd.grad(y, (x, weight), grad)
            end = time.process_time()
            found[kernels] = grads[1].double()
            if number:
                kept['forward'].append(1e3 * (middle - start))
                kept['backward'].append(1e3 * (end - middle))
    row = dict(channels=channels, size=side, kernel=kernel, stride=stride, multiplier=multiplier)
    row |= dict(layout=layout, dtype=str(dtype).removeprefix('torch.'))
    for part in ('forward', 'backward'):
        for kernels, kept in times.items():
            row[f'{part} {kernels} (ms)'] = f'{statistics.median(kept[part]):.2f}'
    both = [
        statistics.median(map(sum, zip(*kept.values(), strict=True))) for kept in times.values()
    ]
    row['gain'] = f'{both[0] / both[1]:.1f}'
    difference = (found['auto'] - found['plain']).norm() / found['plain'].norm()
    row['deviation'] = f'{float(difference):.0e}'
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--dtypes', nargs='+', default=['float32'], choices=list(DTYPES))
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = [
        measure(shape, layout, DTYPES[dtype], args.rounds)
        for dtype in args.dtypes
        for layout in LAYOUTS
        for shape in SHAPES
    ]
    table = markdown(rows)
    print(table)
    if args.out:
        write(args.out / 'kernels.md', f'# Depthwise convolutions on a CPU\n\n{table}')
        content = dict(device=device_name('cpu'), threads=args.threads, rows=rows)
        content['environment'] = environment('cpu')
        write_json(args.out / 'kernels.json', content)


if __name__ == '__main__':
    main()
