"""The synthetic 'shapes' data set on disk: made on first use, the same pixels for the same seed."""

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from mmengine.logging import print_log

from ..errors import naming
from .scenes import CLASSES, draw_portrait, draw_scene

# raised whenever the same parameters come to mean other pixels or labels
VERSION = 1
# What each layout holds unless told otherwise: pictures per split, longer side in pixels, seed.
DEFAULTS = {
    'coco': {'train': 600, 'val': 100, 'size': 160, 'seed': 0},
    'ade20k': {'train': 600, 'val': 100, 'size': 160, 'seed': 0},
    'folder': {'train': 1500, 'val': 250, 'size': 96, 'seed': 0},
}
_STAMP = 'shapes.json'
_ABANDONED = 3600  # seconds after which an unfinished folder cannot belong to a living process


def ensure_shapes(
    root: str | os.PathLike[str],
    layout: str,
    *,
    train: int | None = None,
    val: int | None = None,
    size: int | None = None,
    seed: int | None = None,
) -> Path:
    """Make sure that ``root`` holds the shapes data set, and make it where it does not.

    The folder appears complete or not at all, also when the process is killed or when several
    processes start at once. A folder that holds anything else is never touched.

    Args:
        root (str | PathLike): The folder of this one layout, for example ``data/shapes/coco``.
        layout (str): ``'coco'`` (images, instances in JSON), ``'ade20k'`` (images, label maps with
            0 for the unlabelled thin lines, 1 for background and then the classes) or ``'folder'``
            (a folder for each class, one dominant object in each picture).
        train (int, optional): Number of training pictures. Defaults to None, the layout's.
        val (int, optional): Number of validation pictures. Defaults to None, the layout's.
        size (int, optional): Longer side in pixels, at least 32. Defaults to None, the layout's.
        seed (int, optional): Seed, 0 to 2**32 - 1. Defaults to None, the layout's.

    Raises:
        ValueError: A parameter is out of its range.
        FileExistsError: The folder holds something else than what is asked for.
        OSError: The folder cannot be written; the message names the path.
    """
    if layout not in DEFAULTS:
        raise ValueError(f'layout must be one of {", ".join(DEFAULTS)}, not {layout!r}.')
    given = {'train': train, 'val': val, 'size': size, 'seed': seed}
    wanted = {name: DEFAULTS[layout][name] if v is None else v for name, v in given.items()}
    limits = {'train': (1, 99999), 'val': (1, 99999), 'size': (32, 4096), 'seed': (0, 2**32 - 1)}
    for name, (low, high) in limits.items():
        if not isinstance(wanted[name], int) or not low <= wanted[name] <= high:
            raise ValueError(
                f'{name} of the shapes must be a whole number from {low} to {high}, '
                f'not {wanted[name]!r}.'
            )
    stamp = {'dataset': 'shapes', 'version': VERSION, 'layout': layout, **wanted}
    root = Path(root).expanduser().resolve()
    if not _is_complete(root, stamp):
        total = wanted['train'] + wanted['val']
        print_log(f'Making the shapes data set ({total} pictures) in {root}', logger='current')
        _create(root, stamp)
    return root


def _is_complete(root: Path, stamp: dict) -> bool:
    """Tell whether the folder holds this data set; refuse one that holds something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _STAMP).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get('dataset') != 'shapes':
        raise FileExistsError(
            f'{root} exists and is not a shapes data set (it has no readable {_STAMP}): '
            'remove it or choose another folder.'
        )
    differences = [
        f'{name}={found.get(name)!r} instead of {value!r}'
        for name, value in stamp.items()
        if found.get(name) != value
    ]
    if differences:
        raise FileExistsError(
            f'{root} holds shapes made with {", ".join(differences)}: '
            'remove it, choose another folder or ask for the same parameters.'
        )
    return True


def _create(root: Path, stamp: dict) -> None:
    """Write the data set beside its place and move it there in one step."""
    root.parent.mkdir(parents=True, exist_ok=True)
    for other in root.parent.glob(f'.{root.name}.*.tmp'):
        # what a killed process left; a living one may be moving its own away just now
        with suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > _ABANDONED:
                shutil.rmtree(other, ignore_errors=True)
    unfinished = root.parent / f'.{root.name}.{uuid.uuid4().hex[:12]}.tmp'
    unfinished.mkdir()
    try:
        _LAYOUTS[stamp['layout']](unfinished, stamp)
        _write(unfinished / _STAMP, _json(stamp))
        try:
            unfinished.rename(root)
        except OSError:
            # another process was faster: what it made is what we were asked for, or is refused
            if not _is_complete(root, stamp):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_coco(root: Path, stamp: dict) -> None:
    from pycocotools import mask as coco_mask  # mmdet requires it

    for number, split in enumerate(('train', 'val')):
        images: list[dict] = []
        annotations: list[dict] = []
        for index in range(stamp[split]):
            scene = draw_scene(stamp['seed'], number, index, stamp['size'])
            name = f'{split}_{index:05d}.png'
            _write(root / 'images' / split / name, _encode_png(scene.image))
            height, width = scene.image.shape[:2]
            image_id = index + 1
            images.append({'id': image_id, 'file_name': name, 'height': height, 'width': width})
            for instance in scene.instances:
                rle = coco_mask.encode(np.asfortranarray(instance.mask, np.uint8))
                annotations.append(
                    {
                        'id': len(annotations) + 1,
                        'image_id': image_id,
                        'category_id': instance.label + 1,
                        'iscrowd': int(instance.crowd),
                        'area': int(coco_mask.area(rle)),
                        'bbox': [int(value) for value in coco_mask.toBbox(rle)],
                        'segmentation': {**rle, 'counts': rle['counts'].decode()},
                    }
                )
        content = {
            'info': {'description': 'shapes', 'version': str(VERSION)},
            'licenses': [],
            'categories': [
                {'id': i, 'name': name, 'supercategory': 'shape'}
                for i, name in enumerate(CLASSES, 1)
            ],
            'images': images,
            'annotations': annotations,
        }
        _write(root / 'annotations' / f'instances_{split}.json', _json(content))


def _write_ade20k(root: Path, stamp: dict) -> None:
    for number, (split, folder) in enumerate((('train', 'training'), ('val', 'validation'))):
        for index in range(stamp[split]):
            scene = draw_scene(stamp['seed'], number, index, stamp['size'])
            name = f'{split}_{index:05d}.png'
            _write(root / 'images' / folder / name, _encode_png(scene.image))
            labels = np.where(scene.lines, 0, 1)
            for instance in scene.instances:
                labels[instance.mask] = instance.label + 2
            _write(root / 'annotations' / folder / name, _encode_png(labels.astype(np.uint8)))


def _write_folder(root: Path, stamp: dict) -> None:
    # splits 2 and 3: the pictures have nothing in common with the scenes of splits 0 and 1
    for number, split in enumerate(('train', 'val'), 2):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
        for index in range(stamp[split]):
            scene = draw_portrait(stamp['seed'], number, index, stamp['size'])
            name = f'{split}_{index:05d}.png'
            label = CLASSES[index % len(CLASSES)]
            _write(root / split / label / name, _encode_png(scene.image))


_LAYOUTS: dict[str, Callable[[Path, dict], None]] = {
    'coco': _write_coco,
    'ade20k': _write_ade20k,
    'folder': _write_folder,
}


def _json(content: dict) -> bytes:
    return (json.dumps(content, sort_keys=True, separators=(',', ':')) + '\n').encode()


def _encode_png(pixels: np.ndarray) -> bytes:
    """Encode a grey (H, W) or RGB (H, W, 3) picture."""
    return cv2.imencode('.png', pixels if pixels.ndim == 2 else pixels[..., ::-1])[1].tobytes()


def _write(path: Path, data: bytes) -> None:
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
