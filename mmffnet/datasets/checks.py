"""Data that are missing, empty or broken: said early, by name, and never waited for."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine import fileio
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import DataLoader

from ..config_types import type_name
from ..errors import shorten

#: What `tools/prepare_data.py` can fetch, by type of data set and the name of its folder
_FETCHED = {
    'CocoDataset': ('coco', 'coco'),
    'CocoPanopticDataset': ('coco', 'coco'),
    'ADE20KDataset': ('ade', 'ade20k'),
    'CityscapesDataset': ('cityscapes', 'cityscapes'),
}
#: What mmdet reads of the entries of a file in COCO's format
_COCO_KEYS = {
    'images': ('id', 'file_name', 'height', 'width'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}


class BadSampleError(RuntimeError):
    """A sample that cannot be loaded; says which and why."""


def find_missing_data(cfg: Config, *parts: str) -> str | None:
    """Looks for the local files and folders that a config's data sets will want to read.

    It says what is missing, where it was looked for and how to get it; None if all is there. Data
    that are made on first use are not missing.
    """
    missing: dict[str, list[str]] = {}
    advice: dict[str, str] = {}
    for part in parts:
        for dataset in _innermost(cfg.get(f'{part}_dataloader')):
            kind = type_name(dataset.get('type'))
            root = str(dataset.get('data_root') or '')
            if _is_made(dataset.get('type')) or '://' in root or dataset.get('backend_args'):
                continue
            folder = Path(root).expanduser()
            names = _names(dataset)
            lacking = [name for name in names if not (folder / name).exists()]
            evaluators = cfg.get(f'{part}_evaluator') or []
            for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
                # the evaluator's file is given as a whole, not below data_root
                name = str(evaluator.get('ann_file') or '')
                if name and '://' not in name and not Path(name).expanduser().exists():
                    lacking.append(str(Path(name)).removeprefix(f'{Path(root)}/'))
            if lacking or not folder.is_dir():
                missing[root] = list(dict.fromkeys([*missing.get(root, []), *lacking]))
                tag, name = _FETCHED.get(kind, ('', ''))
                parts_of_root = Path(root).parts
                if name and tag in parts_of_root:
                    place = Path(*parts_of_root[: parts_of_root.index(tag)])
                    advice[root] = name if place == Path('data') else f'{name} --root {place}'
    reports = [_report(root, names, advice.get(root)) for root, names in missing.items()]
    return '; '.join(reports) or None


def _is_made(kind: Any) -> bool:
    """Whether a data set of this type makes its data on first use."""
    kinds = kind.__mro__ if isinstance(kind, type) else (kind,)
    return any(type_name(one).startswith('Shapes') for one in kinds)


def _report(root: str, names: Sequence[str], fetched: str | None) -> str:
    place = Path(root).expanduser()
    if place.is_dir():
        text = f"the data folder '{root}' ({place.resolve()}) lacks {', '.join(names)}"
    else:
        text = f"the data folder '{root}' does not exist (looked for {place.absolute()})"
        text += f', which should hold {", ".join(names)}' if names else ''
    text += '. Put them there' + ('' if place.is_dir() else f' (ln -s FOLDER {place})')
    if fetched:
        text += f', or get them: `python tools/prepare_data.py {fetched}` (`mmffnet prepare-data`)'
    return text


def _innermost(node: Any) -> Iterator[dict]:
    """The data sets inside a data loader and the wrappers around them."""
    if not isinstance(node, dict):
        return
    if isinstance(node.get('datasets'), list):
        for dataset in node['datasets']:
            yield from _innermost(dataset)
    elif isinstance(node.get('dataset'), dict):
        yield from _innermost(node['dataset'])
    elif 'data_root' in node or 'ann_file' in node:
        yield node


def find_datasets(dataset: Any) -> Iterator[Any]:
    """A data set and those inside of it, if it is a wrapper."""
    yield dataset
    for inner in [*getattr(dataset, 'datasets', ()), getattr(dataset, 'dataset', None)]:
        if inner is not None:
            yield from find_datasets(inner)


def _names(dataset: dict) -> list[str]:
    """Annotation file and folders of pictures, as the config gives them."""
    prefix = dataset.get('data_prefix') or {}
    values = [dataset.get('ann_file'), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
    return [value for value in values if isinstance(value, str) and value and '://' not in value]


def without_annotations(steps: Any) -> list:
    """Return a pipeline, or part of one, without the steps that load annotations."""
    kept = []
    for step in steps:
        if isinstance(step, list | tuple):
            step = without_annotations(step)
            if not step:
                continue
        elif type_name(step.get('type')).startswith('Load'):
            if 'Annotation' in type_name(step['type']):
                continue
        elif 'transforms' in step:
            step = ConfigDict(step, transforms=without_annotations(step['transforms']))
        kept.append(step)
    return kept


def check_samples(runner: Any) -> None:
    """Makes a runner refuse empty data sets, and name samples that cannot be loaded.

    Samplers without end would look for the first sample of an empty data set forever. The runner
    must not have built its data loaders yet.
    """
    runner.build_dataloader = partial(_build_dataloader, runner.build_dataloader)


def _build_dataloader(build: Callable, dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
    try:
        loader = build(dataloader, *args, **kwargs)
    except Exception as error:
        if 'need at least one array' in str(error):  # mmengine packs a list without an entry
            raise _no_samples(dataloader) from error
        for dataset in _innermost(dataloader):
            fault = _find_fault(dataset, error)
            if fault:
                raise ValueError(fault) from error
        raise
    if isinstance(loader.dataset, Sized) and not len(loader.dataset):
        raise _no_samples(dataloader)
    for dataset in find_datasets(loader.dataset):
        _check_classes(dataset)
    name_bad_samples(loader.dataset)
    return loader


def _find_fault(dataset: dict, error: Exception) -> str | None:
    """What is wrong with a data set's annotation file, if it is what the error came from."""
    path = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '').expanduser()
    if not path.is_file():
        return None
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            return f'{path} is no whole JSON file ({error}): get or make it again'
    if type_name(dataset.get('type')) != 'CocoDataset':
        return None
    if isinstance(error, AssertionError) and 'annotation file format' in str(error):
        return f"{path} holds no JSON object: it is not in COCO's format"
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    parts = [part for part, keys in _COCO_KEYS.items() if key in (part, *keys)]
    content = json.loads(path.read_bytes()) if parts else {}
    for part in parts:
        if part == key and part not in content:
            return f"{path} has no list '{part}': it is not in COCO's format"
        for number, entry in enumerate(content.get(part, ())):
            if part != key and key not in entry:
                return f"{path}: '{key}' is missing in entry {number} of '{part}'"
    return None


def _check_classes(dataset: Any) -> None:
    """Refuses a COCO file that lacks classes, or has them in another order.

    mmdet numbers the labels by the file, and would call them by the names of other classes.
    """
    numbers = getattr(dataset, 'cat_ids', None)
    classes = list((getattr(dataset, 'metainfo', None) or {}).get('classes') or ())
    if not isinstance(numbers, list) or not classes:
        return
    usual = dataset.METAINFO.get('classes') or ()
    own = not type(dataset).__module__.startswith('mmdet.')
    if len(numbers) == len(classes) and classes == list(usual) and not own:
        return  # the files of well-known data sets are large, and need not be read twice
    text = fileio.get_text(dataset.ann_file, backend_args=getattr(dataset, 'backend_args', None))
    names = {category['id']: category['name'] for category in json.loads(text)['categories']}
    there = set(names.values())
    lacking = [name for name in classes if name not in there]
    if lacking:
        raise ValueError(
            f'{dataset.ann_file} has {len(numbers)} of the {len(classes)} classes of the data '
            f'set; {", ".join(lacking[:5])} is not among its categories, and the labels of others '
            'would be wrong: name in metainfo.classes what the file has'
        )
    order = [names[number] for number in sorted(numbers, key=dataset.cat2label.__getitem__)]
    if order != classes:
        raise ValueError(
            f'{dataset.ann_file} has its categories in the order ({shorten(order)}), not in that '
            f'of metainfo.classes, ({shorten(classes)}), and labels would get wrong names: sort '
            'the categories of the file, or the classes, if all files have this order'
        )


def _no_samples(dataloader: Any) -> ValueError:
    texts = []
    for dataset in _innermost(dataloader):
        classes = list((dataset.get('metainfo') or {}).get('classes') or ())
        there = ', '.join(_names(dataset)) or dataset.get('data_root')
        text = f'{type_name(dataset.get("type"))} with {there}'
        if classes:
            text += f'; are its classes ({shorten(classes)}) called so there?'
        texts.append(text)
    return ValueError(f'the data set has no samples: {"; ".join(texts)}')


def name_bad_samples(dataset: Any) -> None:
    """Makes errors in loading a sample say which one it is.

    It also warns of pictures that have another size than their annotations were made for. Any data
    set with indices and a length gets torch's ``__getitems__`` for it.
    """
    if hasattr(dataset, '__len__') and not hasattr(dataset, '__getitems__'):
        # shared with workers, which may be new ones in every epoch
        compared = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()
        dataset.__getitems__ = partial(_load_samples, dataset, compared)


def _load_samples(dataset: Any, compared: Tensor, indices: Sequence[int]) -> list:
    samples = []
    for index in indices:
        try:
            samples.append(dataset[index])
        except Exception as error:
            path = _info(dataset, index).get('img_path')
            text = (
                f'cannot load sample {index} of {type(dataset).__name__}'
                f'{f" ({path})" if path else ""}: {type(error).__name__}: {error}'
            )
            if error.args == ('mask',):  # mmdet looks for it in the object
                text += ' (an object in this picture has no segmentation, which masks need)'
            raise BadSampleError(text) from error
        # annotations take a while to read; some samplers yield more than numbers
        if isinstance(index, int) and not compared[index]:
            _compare_size(_info(dataset, index), samples[-1])
            compared[index] = True
    return samples


def _info(dataset: Any, index: int) -> dict:
    try:
        return dataset.get_data_info(index)
    except Exception:  # not every data set has it, and there may be an error to report already
        return {}


def _compare_size(info: dict, sample: Any) -> None:
    loaded = sample.get('data_samples') if isinstance(sample, dict) else None
    shape = getattr(loaded, 'ori_shape', None)
    said = (info.get('height'), info.get('width'))
    if shape is None or None in said or getattr(loaded, 'img_path', None) != info.get('img_path'):
        return
    if tuple(shape[:2]) != said:
        print_log(
            f'{info["img_path"]} is {shape[1]} x {shape[0]} pixels large, but its annotations are '
            f'for {said[1]} x {said[0]}: the boxes are wrong',
            'current',
            logging.WARNING,
        )
