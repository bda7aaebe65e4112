"""Measure a detector's training step at detection size: peak memory, and the time of each stage.

Every row is a process of its own, since what is measured is the most memory that the process ever
held (ru_maxrss), with Python and libraries. Times are those of the CPU, of one thread.

    OMP_NUM_THREADS=1 python tools/dev/detection_memory.py
"""

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmffnet.benchmark.networks import build_model
from mmffnet.benchmark.report import environment, markdown, write_json
from mmffnet.engine.runner import read_config

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'detection/transnext/maskrcnn_transnext-tiny_coco.py'
PLAIN = ['model.backbone.init_cfg=None', 'model.backbone.drop_path_rate=0.0']
ROWS = {
    'interpolate, with_cp': ['model.backbone.with_cp=True'],
    'extrapolate, with_cp': ['model.backbone.with_cp=True', 'model.backbone.bias=extrapolate'],
    'interpolate': [],
    'extrapolate': ['model.backbone.bias=extrapolate'],
}


def gigabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Stopwatch:
    """Sums up the CPU time that modules spend in their forward and backward passes."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.seconds: dict[str, float] = {}
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda *_, n=name: self.start(n, 'forward'))
            module.register_forward_hook(lambda *_, n=name: self.stop(n, 'forward'))
            module.register_full_backward_pre_hook(lambda *_, n=name: self.start(n, 'backward'))
            module.register_full_backward_hook(lambda *_, n=name: self.stop(n, 'backward'))

    def start(self, name: str, what: str) -> None:
        self.seconds[f'{name} {what}'] = -time.process_time()

    def stop(self, name: str, what: str) -> None:
        self.seconds[f'{name} {what}'] += time.process_time()


def measure(config: str, options: list[str], size: list[int]) -> dict[str, Any]:
    """One training step on one picture with ten objects."""
    from mmdet.testing import demo_mm_inputs

    torch.manual_seed(0)
    model = build_model(read_config(config, PLAIN + options), 'cpu').train()
    data = demo_mm_inputs(1, [[3, *size]], num_items=[10], num_classes=80, with_mask=True)
    data = model.data_preprocessor(data, True)
    stages = {f'stage {i + 1}': stage for i, stage in enumerate(model.backbone.stages)}
    watch = Stopwatch({**stages, 'backbone': model.backbone})
    before, start = gigabytes(), time.process_time()
    image = data['inputs'].requires_grad_()  # or no hook would see the end of the first stage
    losses = model.loss(image, data['data_samples'])
    loss, _ = model.parse_losses(losses)
    loss.backward()
    seconds = time.process_time() - start
    return dict(
        parameters=sum(p.numel() for p in model.parameters()),
        before_gb=before,
        peak_gb=gigabytes(),
        seconds=dict(watch.seconds, step=seconds),
    )


def table(results: dict[str, dict[str, Any]]) -> str:
    """Memory and times as Markdown."""
    rows = []
    for name, found in results.items():
        seconds = found['seconds']
        row = {
            'backbone': name,
            'peak (GB)': f'{found["peak_gb"]:.2f}',
            'before the step (GB)': f'{found["before_gb"]:.2f}',
            'step (s)': f'{seconds["step"]:.0f}',
        }
        for i in range(1, 5):
            pair = (seconds[f'stage {i} {what}'] for what in ('forward', 'backward'))
            row[f'stage {i} (s)'] = ' + '.join(f'{s:.1f}' for s in pair)
        rows.append(row)
    return markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', default=CONFIG)
    parser.add_argument('--size', nargs=2, type=int, default=[800, 1344])
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS))
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'benchmarks' / 'transnext_memory' / 'results.json'
    )
    args = parser.parse_args()
    content = json.loads(args.out.read_text()) if args.out.is_file() else dict(results={})
    content.update(size=args.size, environment=environment())
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        for name in args.rows:
            work = (args.config, ROWS[name], args.size)
            content['results'][name] = pool.apply(measure, work)
            print(table({name: content['results'][name]}), flush=True)
            write_json(args.out, content)
    print(table(content['results']))


if __name__ == '__main__':
    main()
