"""Show what FFNet does: trained on synthetic pictures, or run on one."""

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.registry import MODELS
from PIL import Image
from torch import Tensor, nn

import mmffnet
from mmffnet.engine.runner import build_runner, read_config, test_config, train_config
from mmffnet.errors import UsageError
from mmffnet.inference import Detections, Inferencer, Segmentation
from mmffnet_cli import Parser

# config, title, and the names of the evaluator's metrics with what its 1 means
DEMOS: dict[str, tuple[str, str, dict[str, tuple[str, float]]]] = {
    'detection': (
        'detection/maskrcnn_nano_shapes.py',
        'Mask R-CNN with FFNet nano',
        {'coco/bbox_mAP': ('bbox mAP', 1), 'coco/segm_mAP': ('segm mAP', 1)},
    ),
    'segmentation': (
        'segmentation/semfpn_nano_shapes.py',
        'Semantic FPN with FFNet nano',
        {'mIoU': ('mIoU', 0.01)},
    ),
    'classification': (
        'classification/ffnet_nano_shapes.py',
        'Classification with FFNet nano',
        {'accuracy/top1': ('top-1 accuracy', 0.01)},
    ),
}


def main() -> None:
    parser = Parser(description=__doc__)
    tasks = parser.add_subparsers(dest='task', required=True, metavar='TASK')
    for name in DEMOS:
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

    try:
        result = run_demo(args.task, args.work_dir, args.cfg_options)
    except UsageError as error:
        parser.exit(2, f'demo: error: {error}\n')
    for name, value in result.items():
        print(f'{name}: {value:.3f}' if isinstance(value, float) else f'{name}: {value}')


def run_demo(task: str, work_dir: str | None, cfg_options: Sequence[str]) -> dict[str, Any]:
    """Train, test and draw; return the metrics and where the drawings are."""
    config, title, metrics = DEMOS[task]
    cfg = train_config(read_config(config, cfg_options, work_dir))
    # mmengine would take an earlier one of the same name, which writes elsewhere
    cfg.visualizer.name = f'demo {time.time_ns()}'
    training = build_runner(cfg)
    start = time.perf_counter()
    training.train()
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)

    folder = Path(cfg.work_dir)
    checkpoint = (folder / 'last_checkpoint').read_text().strip()
    cfg = read_config(config, cfg_options, work_dir)
    testing = build_runner(test_config(cfg, checkpoint))
    found = testing.test()
    # mmdet leaves the metrics out when nothing at all was detected
    result: dict[str, Any] = {
        name: float(found.get(key, 0)) * unit for key, (name, unit) in metrics.items()
    }
    headline = f'{title}: ' + ', '.join(f'{name} {value:.3f}' for name, value in result.items())
    inferencer = Inferencer(config, checkpoint, cfg_options=cfg_options)
    examples = find_examples(inferencer, testing.test_loop.dataloader.dataset)
    draw_sheet(examples, f'{headline} on held-out pictures', folder / 'predictions.png')
    scalars = Path(training.log_dir, 'vis_data', 'scalars.json')
    draw_curves(scalars, title, metrics, folder / 'curves.png')
    return result | {
        'training': f'{minutes} min {seconds} s with {torch.get_num_threads()} threads',
        'pictures': folder / 'predictions.png',
        'curves': folder / 'curves.png',
        'checkpoint': checkpoint,
    }


def find_examples(inferencer: Inferencer, dataset: Any, most: int = 12) -> list[dict]:
    """Pictures of a data set from first to last, with the truth and what a model predicts."""
    examples = []
    for i in np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int).tolist():
        info = dataset.get_data_info(i)
        (result,) = inferencer(info['img_path'], score_thr=0.5)
        panels = {'picture': result.image}
        if isinstance(result, Detections):
            from pycocotools.coco import COCO  # mmdet requires it

            coco = COCO(dataset.ann_file)
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=[info['img_id']]))
            boxes = np.array([one['bbox'] for one in annotations], np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = np.array([one['category_id'] - 1 for one in annotations], int)
            masks = [coco.annToMask(one).astype(bool) for one in annotations]
            truth = replace(
                result,
                boxes=boxes,
                scores=np.ones(len(labels)),
                labels=labels,
                masks=np.array(masks).reshape(-1, *result.image.shape[:2]),
            )
            panels |= {'truth': truth.paint_frame()}
        elif isinstance(result, Segmentation):
            # 0 is what nobody labelled
            labels = np.asarray(Image.open(info['seg_map_path'])).astype(int) - 1
            panels |= {'truth': replace(result, labels=labels).paint_frame()}
        else:
            panels = {f'truth: {inferencer.legend.name(info["gt_label"])}': result.image}
        examples.append(panels | {'prediction': result.paint_frame()})
    return examples


def draw_sheet(examples: Sequence[dict], headline: str, path: Path, columns: int = 2) -> None:
    """Draw examples, each a row of pictures by their titles."""
    panels = len(examples[0])
    shape = (-(-len(examples) // columns), columns * panels)
    figure = Figure((2.1 * shape[1], 2.3 * shape[0] + 0.4), dpi=130, layout='constrained')
    figure.suptitle(headline, weight='bold')
    axes = figure.subplots(*shape, squeeze=False).reshape(-1, panels)
    for ax in axes.ravel():
        ax.axis('off')
    for row, example in zip(axes, examples, strict=False):
        for ax, (title, image) in zip(row, example.items(), strict=True):
            ax.imshow(image)
            ax.set_title(title, size=9)
    figure.savefig(path)


def read_scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Read what mmengine's LocalVisBackend wrote: (iteration, value) by name."""
    scalars: dict[str, list[tuple[int, float]]] = {}
    ends = {}  # iterations at the ends of epochs
    for line in map(json.loads, path.read_text().splitlines()):
        if 'loss' in line:
            ends[line.get('epoch')] = line['step']
        # loops over epochs validate at the number of an epoch
        step = line['step'] if 'loss' in line else ends.get(line['step'], line['step'])
        for name, value in line.items():
            scalars.setdefault(name, []).append((step, value))
    return scalars


def draw_curves(path: Path, title: str, metrics: dict, target: Path) -> None:
    """Draw losses, learning rate and metrics of a training."""
    scalars = read_scalars(path)
    figure = Figure((12, 3.6), dpi=130, layout='constrained')
    figure.suptitle(title, weight='bold')
    parts = {
        'loss': {name: name for name in scalars if name.rpartition('.')[2].startswith('loss')},
        'learning rate': {'lr': 'lr'},
        'on held-out pictures': {key: name for key, (name, _) in metrics.items()},
    }
    for ax, (part, names) in zip(figure.subplots(1, 3), parts.items(), strict=True):
        for key, name in names.items():
            steps, values = np.array(scalars.get(key, [(0, 0)])).T
            unit = metrics[key][1] if key in metrics else 1
            ax.plot(steps, values * unit, label=name, marker='o' if key in metrics else None)
        ax.set(title=part, xlabel='iteration')
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, fontsize=9)
    ax.set_ylim(0, 1)
    figure.savefig(target)


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
