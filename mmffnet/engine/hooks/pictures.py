"""Pictures of what a segmentor predicted, to be looked at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from ...registry import HOOKS
from ...visualization import Legend, paint_maps


@HOOKS.register_module()
class SegPicturesHook(Hook):
    """Draws each tested picture beside its ground truth and the prediction, with a legend.

    ``tools/test.py --show-dir`` adds it for mmseg's configs.

    Args:
        out_dir (str): The folder to write to, one .png for each picture, below the same folders
            as the pictures.
    """

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
        legend = Legend(meta['classes'], meta['palette'])
        for sample in outputs or ():
            maps = {}
            for title, name in (('ground truth', 'gt_sem_seg'), ('prediction', 'pred_sem_seg')):
                if name in sample:
                    # test-time augmentation leaves out the first dimension
                    labels = getattr(sample, name).data.squeeze().cpu().numpy().astype(np.int64)
                    maps[title] = np.where(labels < len(legend.classes), labels, -1)
            if len(maps) == 2 and (known := maps['ground truth'] >= 0).any():
                prediction = maps.pop('prediction')
                right = 100 * (prediction == maps['ground truth'])[known].mean()
                maps[f'prediction: {right:.1f} % of the labelled pixels are right'] = prediction
            image = mmcv.imfrombytes(fileio.get(sample.img_path), channel_order='rgb')
            target = self.out_dir / name_below(sample.img_path, runner).with_suffix('.png')
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(paint_maps(image, maps, legend)).save(target)


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
