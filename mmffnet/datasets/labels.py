"""Label files of semantic segmentation that are missing or wrong: said by name, with a remedy."""

import functools
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from PIL import UnidentifiedImageError
from torch import nn
from torch.utils.data import DataLoader

from ..registry import TRANSFORMS
from .checks import find_datasets

_LOOKED_AT = 30  # label files that are read before anything else


@TRANSFORMS.register_module()
class LoadCheckedLabels:
    """Loads a label file as mmseg's ``LoadAnnotations`` does, and refuses one that is wrong.

    Wrong are a file that is missing or unreadable, colours in place of class numbers, another size
    than the picture's, and values that are neither a class nor ignored.

    The tools put it around ``LoadAnnotations`` by themselves. Pipelines that run elsewhere have it
    in the place of ``dict(type='LoadAnnotations')``.

    Args:
        num_classes (int): Number of classes of the data set.
        ignored (Sequence[int]): Values that mark ignored pixels once ``reduce_zero_label`` has
            been applied; 255 always does. Defaults to ().
        load (dict | Callable, optional): The transform that loads. Defaults to None, which is
            ``dict(type='mmseg.LoadAnnotations')``.
    """

    def __init__(
        self,
        num_classes: int,
        ignored: Sequence[int] = (),
        load: dict | Callable[[dict], dict] | None = None,
    ) -> None:
        load = load or dict(type='mmseg.LoadAnnotations')
        self.load: Any = TRANSFORMS.build(load) if isinstance(load, dict) else load
        self.num_classes = num_classes
        self.ignored = sorted({255, *ignored})

    def __call__(self, results: dict) -> dict:
        path = results['seg_map_path']
        try:
            results = self.load(results)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'there is no label file {path} for the picture {results.get("img_path")}: add it, '
                'or remove the picture'
            ) from error
        except UnidentifiedImageError as error:
            raise ValueError(f'the label file {path} is damaged, or no picture') from error
        except OSError as error:
            raise ValueError(f'the label file {path} cannot be read: {error}') from error
        labels = results['gt_seg_map']
        if labels.ndim != 2:
            raise ValueError(f'the label file {path} has {self._describe_colours(labels)}')
        shape = tuple(results.get('ori_shape', labels.shape)[:2])
        if labels.shape != shape:
            raise ValueError(
                f'the label file {path} is {_size(labels.shape)} pixels large, but its picture '
                f'{results.get("img_path")} {_size(shape)}: '
                + (
                    'one of them is turned, perhaps by an EXIF orientation'
                    if labels.shape == shape[::-1]
                    else 'they must be of one size; do the two belong together?'
                )
            )
        if not np.isin(labels[labels >= self.num_classes], self.ignored).all():
            raise self.bad_values(results)
        return results

    def __repr__(self) -> str:
        name, classes, ignored = type(self).__name__, self.num_classes, self.ignored
        return f'{name}(num_classes={classes}, ignored={ignored}, load={self.load})'

    def values(self, path: str) -> list[int]:
        """The values in a label file, before anything is made of them."""
        import mmcv
        from mmengine import fileio

        content = fileio.get(path, backend_args=self.load.backend_args)
        backend = self.load.imdecode_backend
        pixels = mmcv.imfrombytes(content, flag='unchanged', backend=backend)
        return np.unique(pixels).astype(int).tolist()

    def bad_values(self, results: dict) -> ValueError:
        """The error for values that are neither a class nor ignored."""
        path = results['seg_map_path']
        values = self.values(path)
        # label_map leads from all classes of the data set to those that are wanted
        number = len(results.get('label_map') or ()) or self.num_classes
        reduced = bool(results.get('reduce_zero_label'))
        classes = range(reduced, number + reduced)
        ignored = {value + reduced for value in self.ignored if value < 255} | {255}
        wrong = [v for v in values if v not in {*classes, *ignored} and not (reduced and v == 0)]
        text = (
            f'the label file {path} has the values {_ranges(values)}; {_ranges(wrong)} is not '
            f'among the {number} classes, which are {_ranges(classes)}'
        )
        if reduced:
            text += ' as reduce_zero_label=True ignores 0'
        if not reduced and wrong == [number]:
            advice = 'If 0 means not labelled, set reduce_zero_label=True in the data set'
        elif max(values) > 255:
            advice = 'Labels must fit into 8 bits: are these numbers of instances?'
        else:
            advice = 'Store ignored pixels as 255; or name all classes in metainfo'
        return ValueError(f'{text}. {advice}')

    def _describe_colours(self, labels: np.ndarray) -> str:
        text = f'{labels.shape[-1]} channels: it shows colours, and must hold class numbers. '
        if getattr(self.load, 'imdecode_backend', None) == 'cv2':
            text += "For a palette PNG, set imdecode_backend='pillow'; else turn"
        else:
            text += 'Turn'
        return f'{text} the colours to class numbers, in a PNG of mode L or P'


def check_labels(runner: Any) -> None:
    """Makes a runner check the label files of mmseg's data sets.

    Before the first sample is loaded, it looks for all label files, and reads some of them for
    mistakes that no single file shows. Later each label file is checked whenever it is loaded. The
    runner must not have built its data loaders yet.
    """
    runner.build_dataloader = partial(_build_dataloader, runner, runner.build_dataloader)


def _build_dataloader(runner: Any, build: Callable, *args: Any, **kwargs: Any) -> DataLoader:
    loader = build(*args, **kwargs)
    modules = runner.model.modules() if isinstance(runner.model, nn.Module) else ()  # not yet built
    ignored = {getattr(module, 'ignore_index', None) for module in modules}
    for dataset in find_datasets(loader.dataset):
        if hasattr(dataset, 'reduce_zero_label') and hasattr(dataset, 'get_data_info'):
            check_dataset(dataset, [value for value in ignored if isinstance(value, int)])
    return loader


def check_dataset(dataset: Any, ignored: Sequence[int] = ()) -> None:
    """Checks label files of one of mmseg's data sets, and has it check each that it loads.

    LoadCheckedLabels takes the place of LoadAnnotations in its pipeline. A data set without labels
    is left alone. ``ignored`` are values of ignored pixels beside 255 and its ``ignore_index``.
    """
    classes = (dataset.metainfo or {}).get('classes') or [str(i) for i in range(256)]
    ignored = [*ignored, dataset.ignore_index]
    found = _check_loaders(dataset.pipeline, partial(LoadCheckedLabels, len(classes), ignored))
    if not found or not len(dataset):
        return
    reduced = getattr(found[0].load, 'reduce_zero_label', None)
    if reduced is not None and reduced != dataset.reduce_zero_label:
        raise ValueError(
            f'reduce_zero_label is {dataset.reduce_zero_label} in {type(dataset).__name__} and '
            f'{reduced} in its LoadAnnotations: set it in the data set, and not in the pipeline'
        )
    _find_files(dataset)
    _look_for_patterns(dataset, found[0], list(classes))


def _check_loaders(node: Any, check: Callable[..., LoadCheckedLabels]) -> list[LoadCheckedLabels]:
    """Puts checks around what loads labels in a pipeline and in the transforms inside of it."""
    from mmseg.datasets.transforms import LoadAnnotations

    found = []
    for name in ('transforms', 'subroutines'):
        steps = getattr(node, name, ())
        if not isinstance(steps, list | tuple):
            found += _check_loaders(steps, check)
            continue
        for i, step in enumerate(steps):
            if isinstance(step, LoadAnnotations) and isinstance(steps, list):
                step = steps[i] = check(load=step)
            found += [step] if isinstance(step, LoadCheckedLabels) else _check_loaders(step, check)
    return found


def _find_files(dataset: Any) -> None:
    """Looks for all label files, in listings of their folders: asking for each takes longer."""
    if getattr(dataset, 'backend_args', None):
        return

    @functools.cache
    def names(folder: str) -> set[str]:
        return {path.name for path in Path(folder).iterdir()} if Path(folder).is_dir() else set()

    missing = []
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        path = info['seg_map_path']
        folder, _, name = path.rpartition('/')
        if '://' not in path and name not in names(folder):
            missing.append(info)
    if not missing:
        return
    first = Path(missing[0]['seg_map_path'])
    there = sorted(names(str(first.parent)))[:3]
    raise FileNotFoundError(
        f'{len(missing)} of {len(dataset)} pictures have no label file: there is no {first} for '
        f'{missing[0]["img_path"]}. The folder {first.parent} '
        + (f'has {", ".join(there)}, ...: ' if there else 'is empty or does not exist: ')
        + 'do data_prefix, img_suffix and seg_map_suffix fit? Or add the labels, or remove the '
        'pictures'
    )


def _look_for_patterns(dataset: Any, load: LoadCheckedLabels, classes: Sequence[str]) -> None:
    """Reads some label files, and says if reduce_zero_label or 255 seems to be misunderstood."""
    steps = np.linspace(0, len(dataset) - 1, min(_LOOKED_AT, len(dataset))).round().astype(int)
    found: set[int] = set()
    raw: set[int] = set()
    for i in steps.tolist():
        info = load(dataset.get_data_info(i))
        values = load.values(info['seg_map_path'])
        if max(values) > 255:  # mmseg takes the last 8 bits, which can be a class
            raise load.bad_values(info)
        raw.update(values)
        found.update(np.unique(info['gt_seg_map']).tolist())
    if dataset.label_map is not None:  # where few classes are wanted, files may have none
        return
    found.difference_update(load.ignored)
    reduced, number = dataset.reduce_zero_label, len(classes)
    text = f'the {len(steps)} label files looked at, from {Path(info["seg_map_path"]).parent},'
    text += f' have the values {_ranges(sorted(raw))}'
    if reduced:
        advice = (
            f'reduce_zero_label=True ignores 0 and takes {_ranges(range(1, number + 1))} for the '
            f"classes; if 0 is the class '{classes[0]}', set reduce_zero_label=False"
        )
    else:
        advice = f'the classes are {_ranges(range(number))}'
    if 255 in raw:
        advice += '; 255 is ignored: store another number if it is a class'
    if not found:
        raise ValueError(f'{text}, and not one labelled pixel: {advice}')
    last_is_missing = reduced and 0 in raw and found == set(range(number - 1))
    if number > 1 and (len(found) == 1 or last_is_missing):
        lacking = f"no '{classes[-1]}'" if last_is_missing else f"only '{classes[min(found)]}'"
        print_log(f'{text}, so {lacking}: {advice}', 'current', logging.WARNING)


def _size(shape: Sequence[int]) -> str:
    return f'{shape[1]}x{shape[0]}'


def _ranges(values: Sequence[int], most: int = 8) -> str:
    """Whole numbers in ascending order, as in '0-3, 7, 255'."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1][1:] = [value]
        else:
            runs.append([value])
    texts = ['-'.join(map(str, run)) for run in runs]
    if len(texts) > most:
        texts[most - 1 : -1] = ['...']
    return ', '.join(texts)
