"""Show what FFNet does: trained on synthetic pictures, or run on one."""

import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import mmffnet
from mmffnet_cli import Parser


def main() -> None:
    parser = Parser(description=__doc__)
    tasks = parser.add_subparsers(dest='task', required=True, metavar='TASK')
    for name in ('detection', 'segmentation', 'classification'):
        task = tasks.add_parser(name, help=f'train {name} on synthetic pictures, test and draw it')
        task.add_argument('--work-dir', metavar='DIR', help='where all results go')
        task.add_cfg_options()
    features = tasks.add_parser('features', help='run a network on a picture, time it, fuse it')
    features.add_argument('picture', nargs='?', type=Path, help='default: a generated one')
    features.add_argument('--arch', default='ffnet2', help='default: ffnet2')
    args = parser.parse_args()
    if args.task == 'features':
        try:
            show_features(args.arch, draw() if args.picture is None else read(args.picture))
        except (FileNotFoundError, ValueError) as error:
            parser.exit(2, f'demo: error: {error}\n')
        return

    # only these tasks need mmdet, mmseg or mmpretrain, and matplotlib
    from mmffnet.demo import describe, run_demo
    from mmffnet.errors import UsageError

    try:
        print(describe(run_demo(args.task, args.work_dir, args.cfg_options)))
    except UsageError as error:
        parser.exit(2, f'demo: error: {error}\n')


def show_features(arch: str, picture: Tensor) -> None:
    model = MODELS.build(dict(type='FFNet', arch=arch)).eval()
    fused = mmffnet.reparameterize(copy.deepcopy(model))
    height, width = picture.shape[-2:]
    print(f'{arch} (random weights) on a picture of {width} x {height}')
    features = run(model, picture)
    for level, feature in enumerate(features):
        stride = 2 ** round(math.log2(width / feature.shape[-1]))
        print(f'  level {level}: shape {tuple(feature.shape)}, stride {stride}')
    times = measure((model, fused), picture)
    for name, network, seconds in zip(('trained', 'fused'), (model, fused), times, strict=True):
        parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        print(f'  {name:7}: {parameters:.2f} M parameters, {1e3 * seconds:.0f} ms')
    pairs = zip(features, run(fused, picture), strict=True)
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
def run(model: nn.Module, picture: Tensor) -> tuple[Tensor, ...]:
    return model(picture)


def measure(models: Sequence[nn.Module], picture: Tensor, runs: int = 5) -> list[float]:
    """Seconds for one forward pass of each: the best of a few, taken in turns."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(runs):
        for model, taken in zip(models, times, strict=True):
            start = time.perf_counter()
            run(model, picture)
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


if __name__ == '__main__':
    main()
