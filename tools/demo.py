"""Show what FFNet does: trained on synthetic pictures, or run on one."""

import copy
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import mmffnet
from mmffnet.benchmark.page import write_report
from mmffnet.engine.measure import measure_step
from mmffnet.engine.runner import build_runner, read_config, run, train_config
from mmffnet_cli import Parser


@dataclass(frozen=True)
class Demo:
    """A training on the synthetic shapes.

    Args:
        config (str): The config.
        minutes (float): How long it may take.
        reached (dict[int, str]): What came out after how many steps, measured with seed 0.
    """

    config: str
    minutes: float
    reached: dict[int, str]


DEMOS = {
    'detection': Demo(
        'detection/maskrcnn_nano_shapes.py',
        7.5,
        {400: 'box mAP 0.54, mask mAP 0.47', 943: 'box mAP 0.61, mask mAP 0.57'},
    ),
    'segmentation': Demo(
        'segmentation/semfpn_nano_shapes.py', 5, {400: 'mIoU 0.74', 930: 'mIoU 0.75'}
    ),
    'classification': Demo(
        'classification/ffnet_nano_shapes.py', 3, {376: 'accuracy 0.94 to 0.97'}
    ),
}
TRAINING = 0.85  # of the time is for steps, the rest for looks at held-out pictures and the page


def main() -> None:
    parser = Parser(description=__doc__)
    tasks = parser.add_subparsers(dest='task', required=True, metavar='TASK')
    for name, demo in DEMOS.items():
        task = tasks.add_parser(name, help=f'train {name} on synthetic pictures and test it')
        task.add_argument('--work-dir', metavar='DIR', help='where all results go')
        task.add_argument(
            '--minutes',
            type=float,
            default=os.environ.get('DEMO_MINUTES') or demo.minutes,
            help=f'how long it may take (default: $DEMO_MINUTES, or {demo.minutes:g})',
        )
        task.add_cfg_options()
    features = tasks.add_parser('features', help='run a network on a picture, time it, fuse it')
    features.add_argument('picture', nargs='?', type=Path, help='default: a generated one')
    features.add_argument('--arch', default='ffnet2', help='default: ffnet2')
    args = parser.parse_args()
    try:
        if args.task == 'features':
            show_features(args.arch, draw() if args.picture is None else read(args.picture))
        else:
            run_demo(DEMOS[args.task], args.minutes, args.work_dir, args.cfg_options)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f'demo: error: {error}\n')


def run_demo(demo: Demo, minutes: float, work_dir: str | None, options: Sequence[str]) -> None:
    """Train for as long as the minutes allow, and write the page of results."""
    start = time.perf_counter()
    if not 0 < minutes < math.inf:
        raise ValueError(f'--minutes (DEMO_MINUTES) must be more than 0, not {minutes:g}')
    cfg = train_config(read_config(demo.config, options, work_dir))
    step = measure_step(cfg, steps=16)
    steps, plan = plan_steps(demo, minutes, step, time.perf_counter() - start)
    print(plan, flush=True)
    cfg.train_cfg.update(max_iters=steps, val_interval=steps // 2 + 1)  # half way, at the end
    # mmengine would take an earlier one of the same name, which writes elsewhere
    cfg.visualizer.name = f'demo {time.time_ns()}'
    run(build_runner(cfg), 'train')
    folder = Path(cfg.work_dir)
    checkpoint = folder / 'demo.pth'  # a name that does not tell how many steps there were
    shutil.copyfile((folder / 'last_checkpoint').read_text().strip(), checkpoint)
    config = folder / Path(demo.config).name
    page = folder / 'results.html'
    write_report(str(config), str(checkpoint), page, notes=plan.splitlines())
    found = json.loads(page.with_suffix('.json').read_text())['summary']
    print(f'\n{plan}\n')
    print(*(f'{name}: {value:.3f}' for name, value in found.items()), sep='\n')
    print(f'time: {(time.perf_counter() - start) / 60:.1f} min, {torch.get_num_threads()} threads')
    print(f'checkpoint: {checkpoint}\npage: {page}')


def plan_steps(demo: Demo, minutes: float, step: float, spent: float) -> tuple[int, str]:
    """Returns how many steps there is time for, and what these and others would give.

    Args:
        demo (Demo): The demo.
        minutes (float): How long all may take.
        step (float): Seconds of a step here.
        spent (float): Seconds that are over.
    """
    step /= TRAINING
    steps = max(int((60 * minutes - spent) / step), 1)
    plan = [f'There is time for {steps} steps in {minutes:g} minutes (DEMO_MINUTES) here.']
    for number, metrics in demo.reached.items():
        plan.append(f'{number} steps, {(spent + number * step) / 60:.1f} minutes here: {metrics}')
    if steps < min(demo.reached):
        plan.append('That is fewer than these: expect less, or raise DEMO_MINUTES.')
    return steps, '\n'.join(plan)


def show_features(arch: str, picture: Tensor) -> None:
    model = MODELS.build(dict(type='FFNet', arch=arch)).eval()
    fused = mmffnet.reparameterize(copy.deepcopy(model))
    height, width = picture.shape[-2:]
    print(f'{arch} (random weights) on a picture of {width} x {height}')
    features = look(model, picture)
    for level, feature in enumerate(features):
        stride = 2 ** round(math.log2(width / feature.shape[-1]))
        print(f'  level {level}: shape {tuple(feature.shape)}, stride {stride}')
    times = measure((model, fused), picture)
    for name, network, seconds in zip(('trained', 'fused'), (model, fused), times, strict=True):
        parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        print(f'  {name:7}: {parameters:.2f} M parameters, {1e3 * seconds:.0f} ms')
    pairs = zip(features, look(fused, picture), strict=True)
    difference = max(float((one - two).abs().max()) for one, two in pairs)
    print(f'  largest difference between the two: {difference:.1e}')


def draw(size: int = 256) -> Tensor:
    """A picture with an edge, a disc and a gradient, normalised like a photograph."""
    y, x = np.mgrid[0:size, 0:size] / size
    picture = np.stack([x, y, (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1]).astype(np.float32)
    return normalise(picture * 255)


def read(path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f'there is no picture {path}')
    picture = cv2.imread(str(path))
    if picture is None:
        raise ValueError(f'{path} is not a picture that OpenCV can read')
    return normalise(picture[..., ::-1].transpose(2, 0, 1).astype(np.float32))


def normalise(picture: np.ndarray) -> Tensor:
    mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])
    return ((torch.from_numpy(picture) - mean[:, None, None]) / std[:, None, None])[None]


@torch.inference_mode()
def look(model: nn.Module, picture: Tensor) -> tuple[Tensor, ...]:
    return model(picture)


def measure(models: Sequence[nn.Module], picture: Tensor, runs: int = 5) -> list[float]:
    """Seconds for one forward pass of each: the best of a few, taken in turns."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(runs):
        for model, taken in zip(models, times, strict=True):
            start = time.perf_counter()
            look(model, picture)
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


if __name__ == '__main__':
    main()
