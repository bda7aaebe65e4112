"""The demos: train FFNet nano on the synthetic shapes, test it, and draw what came of it.

They run shipped configs as ``tools/train.py`` and ``tools/test.py`` do.
"""

import json
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from mmengine.config import Config
from PIL import Image

from .datasets import CLASSES, PALETTE
from .engine import runner

Painter = Callable[[Axes], Any]
Curves = dict[str, np.ndarray]

_COLOURS = [(red / 255, green / 255, blue / 255) for red, green, blue in PALETTE]
_INK = '#222222'
_SCORE = 0.5  # what is less certain is not drawn


@dataclass(frozen=True)
class Demo:
    """What a task's demo runs and shows.

    Args:
        config (str): Name of the shipped config.
        title (str): What is trained.
        metrics (dict[str, str]): The metrics to show, by the names that the evaluator gives them.
        out (str): Where in the work directory the predictions are kept.
        examples (Callable): Makes the painters of each example's panels, and the panels' titles.
        unit (float): What the evaluator's 1 means; 0.01 where it counts in percent. Defaults to 1.
    """

    config: str
    title: str
    metrics: dict[str, str]
    out: str
    examples: Callable[[Config, str, int], tuple[list[list[Painter]], list[str]]]
    unit: float = 1.0


def run_demo(
    task: str, work_dir: str | None = None, cfg_options: Sequence[str] = ()
) -> dict[str, Any]:
    """Trains, tests and draws.

    Args:
        task (str): 'detection', 'segmentation' or 'classification'.
        work_dir (str, optional): Where all results go. Defaults to None, which is
            ``work_dirs/<name of the config>``.
        cfg_options (Sequence[str]): Settings of the config to override, as 'key=value'.
            Defaults to ().

    Returns:
        dict: The shown metrics by their readable names, ``pictures`` and ``curves`` (paths of the
        drawings), ``checkpoint``, and the ``seconds`` of the training.

    Raises:
        mmffnet.engine.runner.UsageError: If an option does not fit the config.
    """
    demo = DEMOS[task]
    cfg = runner.train_config(runner.read_config(demo.config, cfg_options, work_dir))
    # mmengine would take an earlier one of the same name, which writes elsewhere
    cfg.visualizer.name = f'demo {time.time_ns()}'
    training = runner.build_runner(cfg)
    start = time.perf_counter()
    training.train()
    seconds = time.perf_counter() - start

    folder = Path(cfg.work_dir)
    checkpoint = (folder / 'last_checkpoint').read_text().strip()
    cfg = runner.read_config(demo.config, cfg_options, work_dir)
    out = str(folder / demo.out)
    found = runner.build_runner(runner.test_config(cfg, checkpoint, out)).test()
    # mmdet leaves the metrics out when nothing at all was detected
    metrics = {name: float(found.get(key, 0)) * demo.unit for key, name in demo.metrics.items()}

    text = ', '.join(f'{name} {value:.3f}' for name, value in metrics.items())
    examples, titles = demo.examples(cfg, out, 12)
    pictures, curves = folder / 'predictions.png', folder / 'curves.png'
    draw_sheet(examples, titles, f'{demo.title}: {text} on held-out pictures', pictures)
    scalars = Path(training.log_dir, 'vis_data', 'scalars.json')
    draw_curves(scalars, demo, curves)
    return dict(
        metrics, pictures=pictures, curves=curves, checkpoint=Path(checkpoint), seconds=seconds
    )


def describe(result: dict[str, Any]) -> str:
    """Says what a demo reached and where to look."""
    paths = {k: v for k, v in result.items() if isinstance(v, Path)}
    metrics = {k: v for k, v in result.items() if k not in paths and k != 'seconds'}
    minutes, seconds = divmod(round(result['seconds']), 60)
    lines = [f'trained in {minutes} min {seconds} s with {torch.get_num_threads()} threads']
    lines += [f'{name}: {value:.3f}' for name, value in metrics.items()]
    lines += [f'{name}: {path}' for name, path in paths.items()]
    return '\n'.join(lines)


# ------------------------------------------------------------------------------ examples


def _detections(cfg: Config, out: str, most: int) -> tuple[list[list[Painter]], list[str]]:
    from pycocotools import mask as rle
    from pycocotools.coco import COCO

    dataset = cfg.test_dataloader.dataset
    coco = COCO(str(Path(dataset.data_root, dataset.ann_file)))
    # written by this process just now
    predictions = pickle.loads(Path(out).read_bytes())  # noqa: S301
    examples: list[list[Painter]] = []
    for prediction in _spread([p for p in predictions if coco.getAnnIds(p['img_id'])], most):
        image = _read(prediction['img_path'])
        truth = [
            (coco.annToMask(a), a['bbox'], a['category_id'] - 1, 'crowd' if a['iscrowd'] else '')
            for a in coco.loadAnns(coco.getAnnIds(prediction['img_id']))
        ]
        found = prediction['pred_instances']
        fields = (found[key] for key in ('masks', 'bboxes', 'labels', 'scores'))
        guess = [
            (rle.decode(mask), [x1, y1, x2 - x1, y2 - y1], int(label), f'{score:.2f}')
            for mask, (x1, y1, x2, y2), label, score in zip(*fields, strict=True)
            if score >= _SCORE
        ]
        examples.append([_picture(image), _instances(image, truth), _instances(image, guess)])
    return examples, ['picture', 'truth', 'prediction']


def _segmentations(cfg: Config, out: str, most: int) -> tuple[list[list[Painter]], list[str]]:
    dataset = cfg.test_dataloader.dataset
    prefixes = dataset.data_prefix
    images = Path(dataset.data_root, prefixes.img_path)
    labels = Path(dataset.data_root, prefixes.seg_map_path)
    examples = []
    for path in _spread(sorted(Path(out).glob('*.png')), most):
        image, truth, guess = _read(images / path.name), _read(labels / path.name), _read(path)
        examples.append([_picture(image), _labels(image, truth), _labels(image, guess)])
    return examples, ['picture', 'truth (white: ignored)', 'prediction']


def _classifications(cfg: Config, out: str, most: int) -> tuple[list[list[Painter]], list[str]]:
    # written by this process just now
    predictions = pickle.loads(Path(out).read_bytes())  # noqa: S301
    examples: list[list[Painter]] = []
    for prediction in _spread(predictions, most):
        image = _read(prediction['img_path'])
        scores, truth = prediction['pred_score'].tolist(), int(prediction['gt_label'])
        examples.append([_picture(image), _bars(max(image.shape), scores, truth)])
    return examples, ['picture', 'scores']


def _spread(items: Sequence, most: int) -> list:
    """At most so many of the items, from first to last in equal steps."""
    steps = np.linspace(0, len(items) - 1, min(most, len(items)))
    return [items[i] for i in steps.round().astype(int)]


def _read(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def _picture(image: np.ndarray) -> Painter:
    return lambda ax: ax.imshow(image, interpolation='bicubic')


def _faint(image: np.ndarray) -> np.ndarray:
    """The picture in light greys, on which the colours of classes stand out."""
    grey = image.mean(axis=2, keepdims=True) / 255
    return np.repeat(0.35 + 0.6 * grey, 3, axis=2)


def _instances(image: np.ndarray, instances: Sequence[tuple]) -> Painter:
    """Paints masks, boxes and names of instances: (mask, box, label, remark)."""

    def paint(ax: Axes) -> None:
        ax.imshow(_faint(image), interpolation='bicubic')
        for mask, (x, y, width, height), label, _ in instances:
            fill = np.zeros((*mask.shape, 4))
            fill[mask > 0] = (*_COLOURS[label], 0.6)
            ax.imshow(fill, interpolation='nearest')
            # pixels are centred on whole numbers
            corner = (x - 0.5, y - 0.5)
            ax.add_patch(Rectangle(corner, width, height, fill=False, ec=_COLOURS[label], lw=1.2))
        for _, (x, y, _, _), label, remark in instances:
            ax.text(
                max(x, 0),
                max(y, 10),
                f'{CLASSES[label]} {remark}'.strip(),
                size=6.5,
                color='white',
                va='bottom',
                bbox=dict(facecolor=_COLOURS[label], edgecolor='none', pad=0.8),
                clip_on=True,
            )

    return paint


def _bars(size: int, scores: Sequence[float], truth: int) -> Painter:
    """Paints a bar with name and score for each class, on a white square."""

    def paint(ax: Axes) -> None:
        ax.imshow(np.ones((size, size, 3)))
        step = size / len(scores)
        for label, score in enumerate(scores):
            y, length = label * step, max(score, 0.01) * 0.92 * size
            bar = Rectangle((0.04 * size, y + 0.55 * step), length, 0.3 * step, fc=_COLOURS[label])
            ax.add_patch(bar)
            remark, weight = (' (truth)', 'bold') if label == truth else ('', 'normal')
            style: dict[str, Any] = dict(size=7, color=_INK, va='bottom', weight=weight)
            height = y + 0.5 * step
            ax.text(0.04 * size, height, CLASSES[label] + remark, ha='left', **style)
            ax.text(0.96 * size, height, f'{score:.2f}', ha='right', **style)

    return paint


def _labels(image: np.ndarray, labels: np.ndarray) -> Painter:
    """Paints a label map: 0 is what nobody labelled, 1 the background."""
    colours = np.array([(1, 1, 1), (1, 1, 1), *_COLOURS])[labels]
    strength = np.array([1.0, 0.0, *[0.75] * len(_COLOURS)])[labels][..., None]
    painted = _faint(image) * (1 - strength) + colours * strength
    return lambda ax: ax.imshow(painted, interpolation='nearest')


DEMOS = {
    'detection': Demo(
        'detection/maskrcnn_nano_shapes.py',
        'Mask R-CNN with FFNet nano',
        {'coco/bbox_mAP': 'bbox mAP', 'coco/segm_mAP': 'segm mAP'},
        'predictions.pkl',
        _detections,
    ),
    'segmentation': Demo(
        'segmentation/semfpn_nano_shapes.py',
        'Semantic FPN with FFNet nano',
        {'mIoU': 'mIoU'},
        'predictions',
        _segmentations,
        unit=0.01,
    ),
    'classification': Demo(
        'classification/ffnet_nano_shapes.py',
        'Classification with FFNet nano',
        {'accuracy/top1': 'top-1 accuracy'},
        'predictions.pkl',
        _classifications,
        unit=0.01,
    ),
}


# ------------------------------------------------------------------------------ drawings


def draw_sheet(
    examples: Sequence[Sequence[Painter]], titles: Sequence[str], headline: str, path: Path
) -> None:
    """Draws examples beside one another, each a row of square panels.

    Args:
        examples (Sequence[Sequence[Painter]]): For each example, what paints its panels.
        titles (Sequence[str]): What the panels of every example are.
        headline (str): Text above all.
        path (Path): The picture file to write.
    """
    panel, near, far, margin, top, bottom = 1.7, 0.05, 0.3, 0.25, 0.75, 0.45
    panels = len(titles)
    columns = max(1, min(len(examples), round(8 / panels)))
    rows = max(1, -(-len(examples) // columns))
    group = panels * panel + (panels - 1) * near
    width = 2 * margin + columns * group + (columns - 1) * far
    height = top + rows * panel + (rows - 1) * 0.15 + bottom
    figure = Figure((width, height), dpi=130, facecolor='white')
    figure.text(margin / width, 1 - 0.3 / height, headline, size=13, color=_INK, weight='bold')
    for number, painters in enumerate(examples):
        row, column = divmod(number, columns)
        y = height - top - (row + 1) * panel - row * 0.15
        for i, (title, paint) in enumerate(zip(titles, painters, strict=True)):
            x = margin + column * (group + far) + i * (panel + near)
            ax = figure.add_axes((x / width, y / height, panel / width, panel / height))
            paint(ax)
            shape = np.asarray(ax.images[0].get_array()).shape[:2]
            # a square, also of pictures that are none
            rest_y, rest_x = ((max(shape) - size) / 2 + 0.5 for size in shape)
            ax.set(xlim=(-rest_x, shape[1] - 1 + rest_x), ylim=(shape[0] - 1 + rest_y, -rest_y))
            ax.set_facecolor('#f2f2f2')
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if row == 0:
                ax.set_title(title, size=9, color=_INK, pad=4)
    handles = [Patch(color=c, label=name) for name, c in zip(CLASSES, _COLOURS, strict=True)]
    figure.legend(
        handles=handles, loc='lower center', ncols=len(handles), frameon=False, fontsize=9
    )
    figure.savefig(path)


def read_scalars(path: Path, metrics: Sequence[str]) -> tuple[Curves, Curves]:
    """Reads what mmengine's LocalVisBackend wrote during a training.

    Args:
        path (Path): Its ``scalars.json``.
        metrics (Sequence[str]): The metrics to look for.

    Returns:
        tuple[dict, dict]: Losses and ``lr``, and metrics; by name, arrays of (iteration, value).
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    training: dict[str, list] = {}
    validation: dict[str, list] = {}
    ends = {}  # iterations at the ends of epochs
    for line in lines:
        if 'loss' in line:
            ends[line.get('epoch')] = line['step']
            for name, value in line.items():
                if name == 'lr' or name.rpartition('.')[2].startswith('loss'):
                    training.setdefault(name, []).append((line['step'], value))
        for name in metrics:
            if name in line:
                # loops over epochs validate at the number of an epoch
                step = ends.get(line['step'], line['step'])
                validation.setdefault(name, []).append((step, line[name]))
    losses, metric_values = (
        {name: np.array(points) for name, points in part.items()} for part in (training, validation)
    )
    return losses, metric_values


def draw_curves(scalars: Path, demo: Demo, path: Path) -> None:
    """Draws losses, learning rate and metrics of a training.

    Args:
        scalars (Path): mmengine's ``scalars.json``.
        demo (Demo): Whose training it was.
        path (Path): The picture file to write.
    """
    training, validation = read_scalars(scalars, list(demo.metrics))
    rate = training.pop('lr')
    figure = Figure((12, 3.6), dpi=130, layout='constrained', facecolor='white')
    figure.suptitle(demo.title, x=0.01, ha='left', size=13, color=_INK, weight='bold')
    loss_ax, rate_ax, metric_ax = figure.subplots(1, 3)
    for name, points in training.items():
        whole = name == 'loss'
        style = dict(color=_INK, lw=2.2, zorder=3) if whole else dict(lw=1.2)
        if whole or len(training) > 2:  # a single part is the whole
            loss_ax.plot(*points.T, label='total' if whole else name, **style)
    rate_ax.plot(*rate.T, color='#3c8ce6', lw=2)
    rate_ax.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    for name, points in validation.items():
        steps, values = points.T
        values = values * demo.unit
        metric_ax.plot(steps, values, marker='o', label=f'{demo.metrics[name]} {values[-1]:.3f}')
    metric_ax.set_ylim(0, 1)
    names = ('loss', 'learning rate', 'on held-out pictures')
    for ax, name in zip((loss_ax, rate_ax, metric_ax), names, strict=True):
        ax.set_title(name, size=11, color=_INK)
        ax.set_xlabel('iteration')
        ax.set_xlim(left=0)
        ax.grid(alpha=0.25)
        ax.spines[['top', 'right']].set_visible(False)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=9)
    loss_ax.set_ylim(bottom=0)
    figure.savefig(path)
