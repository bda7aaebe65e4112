"""Pictures of what a segmentor predicted, to be looked at."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine import fileio
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...registry import HOOKS

if TYPE_CHECKING:  # takes a second, which only those who draw should wait
    from matplotlib.figure import Figure

_PANEL = 5.2  # inches, the longer side of a picture
_NOT_LABELLED = (1.0, 1.0, 1.0)
_INK = '#222222'


@HOOKS.register_module()
class SegPicturesHook(Hook):
    """Draws each tested picture beside its ground truth and the prediction, with a legend.

    ``tools/test.py --show-dir`` adds it for mmseg's configs.

    Args:
        out_dir (str): The folder to write to, one .png for each picture, below the same folders
            as the pictures.
    """

    priority = 'NORMAL'

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        import mmcv

        meta = runner.test_loop.dataloader.dataset.metainfo
        for sample in outputs or ():
            # test-time augmentation leaves out the first dimension
            maps = {
                title: getattr(sample, name).data.squeeze().cpu().numpy().astype(np.int64)
                for title, name in (('ground truth', 'gt_sem_seg'), ('prediction', 'pred_sem_seg'))
                if name in sample
            }
            image = mmcv.imfrombytes(fileio.get(sample.img_path), channel_order='rgb')
            figure = draw_segmentation(image, maps, meta['classes'], meta['palette'])
            target = self.out_dir / name_below(sample.img_path, runner).with_suffix('.png')
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(target)


@HOOKS.register_module()
def ClsPicturesHook(**kwargs: Any) -> Hook:
    """mmpretrain's VisualizationHook, with pictures of the same name in several folders told apart.

    Args:
        **kwargs: As for that hook.
    """
    from mmpretrain.engine import VisualizationHook

    class Named(VisualizationHook):
        def after_test_iter(
            self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[Any]
        ) -> None:
            samples = [sample.clone() for sample in outputs]
            for sample in samples:
                if 'img_path' in sample:
                    name = '_'.join(name_below(sample.img_path, runner).parts)
                    sample.set_metainfo(dict(img_path=name))
            super().after_test_iter(runner, batch_idx, data_batch, samples)

    return Named(**kwargs)


def name_below(picture: str, runner: Runner) -> Path:
    """Path of a tested picture below the folder of all, or its name if it is elsewhere."""
    dataset = runner.test_loop.dataloader.dataset
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    prefix = getattr(dataset, 'data_prefix', None)
    folder = prefix.get('img_path') if isinstance(prefix, dict) else prefix
    path = Path(picture)
    return path.relative_to(folder) if folder and path.is_relative_to(folder) else Path(path.name)


def draw_segmentation(
    image: np.ndarray,
    maps: dict[str, np.ndarray],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> 'Figure':
    """Draws a picture and label maps side by side, above a legend of the classes in them.

    Args:
        image (np.ndarray): The picture, RGB, of shape (H, W, 3).
        maps (dict[str, np.ndarray]): Label maps of shape (H, W), by their titles. What is not a
            class counts as not labelled. If there are a 'ground truth' and a 'prediction', the
            share of right pixels is shown.
        classes (Sequence[str]): Names of the classes.
        palette (Sequence[Sequence[int]]): Their colours, from 0 to 255.

    Returns:
        Figure: The drawing.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    number = len(classes)
    maps = {title: np.where((m < 0) | (m >= number), number, m) for title, m in maps.items()}
    table = np.concatenate([np.asarray(palette).reshape(-1, 3) / 255, [_NOT_LABELLED]])
    areas = np.sum([np.bincount(m.ravel(), minlength=number + 1) for m in maps.values()], axis=0)
    present = [i for i in np.argsort(-areas[:number], kind='stable') if areas[i]]
    names = [classes[i] for i in present]
    if areas[number]:
        present, names = [*present, number], [*names, 'not labelled']

    height, width = np.array(image.shape[:2]) * _PANEL / max(image.shape[:2])
    near, margin, top = 0.08, 0.1, 0.32
    total = (1 + len(maps)) * (width + near) - near + 2 * margin
    columns = max(1, int((total - 2 * margin) / (0.55 + 0.085 * max(map(len, names)))))
    rows = -(-len(names) // columns)
    bottom = 0.22 * rows + 0.2
    size = np.array([total, top + height + bottom])
    figure = Figure(tuple(size), dpi=110, facecolor='white')
    panels = {'picture': image, **{title: _paint(image, m, table) for title, m in maps.items()}}
    for i, (title, panel) in enumerate(panels.items()):
        corner = np.array([margin + i * (width + near), bottom])
        ax = figure.add_axes((*(corner / size), *(np.array([width, height]) / size)))
        ax.imshow(panel, aspect='auto', extent=(0, image.shape[1], image.shape[0], 0))
        ax.set_axis_off()
        for x, y, label in find_places(maps[title], number) if title in maps else ():
            box = dict(facecolor='white', edgecolor='none', alpha=0.75, pad=1.2)
            ax.text(x, y, classes[label], size=7, color=_INK, ha='center', va='center', bbox=box)
        if title == 'prediction' and 'ground truth' in maps:
            title += _describe_agreement(maps['prediction'], maps['ground truth'], number)
        ax.set_title(title, size=10, color=_INK, pad=4)
    handles = [
        Patch(facecolor=table[i], edgecolor='#888888', lw=0.5, label=name)
        for i, name in zip(present, names, strict=True)
    ]
    figure.legend(
        # matplotlib goes down the columns
        handles=[handle for i in range(columns) for handle in handles[i::columns]],
        loc='lower center',
        ncols=columns,
        frameon=False,
        fontsize=9,
        borderaxespad=0.3,
        columnspacing=1.2,
        handlelength=1.4,
    )
    return figure


def _paint(image: np.ndarray, labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Colours over a faint grey picture, with thin dark lines between them."""
    scale = max(1, 500 // max(labels.shape))  # lines in small pictures would be thick
    grey, labels = (
        pixels.repeat(scale, axis=0).repeat(scale, axis=1)
        for pixels in (image.mean(axis=2, keepdims=True) / 255, labels)
    )
    painted = 0.3 * grey + 0.7 * table[labels]
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    painted[edge] *= 0.4
    return painted


def find_places(labels: np.ndarray, number: int) -> Iterator[tuple[float, float, int]]:
    """Where names fit: the innermost point (x, y) of each class that covers a good part."""
    import cv2

    areas = np.bincount(labels.ravel(), minlength=number)[:number]
    for label in np.flatnonzero(areas >= 0.015 * labels.size):
        inside = np.pad(labels == label, 1).astype(np.uint8)
        y, x = divmod(int(cv2.distanceTransform(inside, cv2.DIST_L2, 3).argmax()), inside.shape[1])
        yield x - 0.5, y - 0.5, int(label)


def _describe_agreement(prediction: np.ndarray, truth: np.ndarray, number: int) -> str:
    known = truth < number
    if not known.any():
        return ''
    return f': {100 * (prediction == truth)[known].mean():.1f} % of the labelled pixels are right'
