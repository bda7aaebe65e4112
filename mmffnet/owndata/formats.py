"""Folders of labelled pictures, in the formats that labelling tools write."""

import functools
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from mmffnet.errors import UsageError, describe_error

PICTURES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
_SPLITS = {
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation', 'dev'),
    'test': ('test', 'testing'),
}
_MASK_FOLDERS = ('annotations', 'labels', 'mask', 'masks', 'segmentationclass')
_CLASS_FILES = ('classes.txt', 'labels.txt', 'class_names.txt', 'obj.names')
_IGNORED = 255


@dataclass
class Picture:
    """A picture and what is labelled in it.

    Args:
        path (Path): The file.
        split (str, optional): 'train', 'val' or 'test', as the data have it. Defaults to None.
        objects (list[dict]): Annotations as in COCO's format, with the name of the class as
            ``category``; ``segmentation`` is missing where there is just a box. Defaults to [].
        mask (Path, optional): File with the class of each pixel. Defaults to None.
        label (str, optional): Class of the whole picture. Defaults to None.
    """

    path: Path
    split: str | None = None
    objects: list[dict[str, Any]] = field(default_factory=list)
    mask: Path | None = None
    label: str | None = None

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Width and height as they are shown, that is after what EXIF says of rotation."""
        with Image.open(self.path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size


@dataclass
class OwnData:
    """Labelled pictures.

    Args:
        root (Path): The folder.
        format (str): The format that was found.
        task (str): The most that the labels serve: 'instance', 'det', 'seg' or 'cls'.
        classes (list[str]): Names of the classes.
        pictures (list[Picture]): The pictures.
        remarks (list[str]): What the user should know. Defaults to [].
        values (dict): For 'seg', the class of each value (or colour) of the masks.
        tiles (int, optional): Size of the tiles to cut the pictures into. Defaults to None.
    """

    root: Path
    format: str
    task: str
    classes: list[str]
    pictures: list[Picture]
    remarks: list[str] = field(default_factory=list)
    values: dict[Any, int] = field(default_factory=dict)
    tiles: int | None = None

    def part(self, split: str) -> list[Picture]:
        return [picture for picture in self.pictures if picture.split == split]


def read_own_data(root: str | Path, format: str | None = None) -> OwnData:
    """Find the format of a folder and read its labels.

    Args:
        root (str | Path): The folder.
        format (str, optional): One of :data:`FORMATS`. Defaults to None, which looks for it.

    Raises:
        UsageError: If there are no labelled pictures, or more than one format.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UsageError(f"the data folder '{root}' does not exist")
    files = [path for path in sorted(root.rglob('*')) if path.is_file()]
    if not any(map(_is_picture, files)):
        raise UsageError(f'{root} holds no pictures ({", ".join(PICTURES)})')
    if format is None:
        found = {name: labels for name, find in _FINDERS.items() if (labels := find(root, files))}
        if not found:
            found = {'folders': labels} if (labels := _find_folders(root, files)) else {}
        if not found:
            raise UsageError(
                f'{root} holds pictures and no labels: neither COCO or LabelMe json, YOLO '
                'data.yaml, Pascal VOC xml, masks beside pictures, nor a folder per class'
            )
        if len(found) > 1:
            raise UsageError(
                f'{root} holds labels in more than one format, {" and ".join(found)}: say which '
                'with --format, or give a folder with one of them'
            )
        format, labels = found.popitem()
    else:
        labels = (_FINDERS | {'folders': _find_folders})[format](root, files)
        if not labels:
            raise UsageError(f'{root} holds no labels of the format {format}')
    data = _READERS[format](root, files, labels)
    if not data.pictures:
        raise UsageError(f'{root}: none of the {format} labels belongs to a picture that is there')
    for picture in data.pictures:
        picture.split = picture.split or _split_of(picture.path.relative_to(root).parts[:-1])
    return data


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def _split_of(names: Iterable[str]) -> str | None:
    """The split that the folders or words of a name say, such as 'train2017'."""
    for name in names:
        word = re.sub(r'\d+$', '', name.lower())
        for split, words in _SPLITS.items():
            if word in words:
                return split
    return None


def _words(path: Path) -> list[str]:
    return re.split(r'[_\-.\s]+', path.stem)


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f'{path} is no whole JSON file ({error})') from error


def _by_name(files: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in filter(_is_picture, files):
        found.setdefault(path.name, []).append(path)
    return found


def _class_list(root: Path) -> list[str]:
    for name in _CLASS_FILES:
        if (root / name).is_file():
            lines = (root / name).read_text(encoding='utf-8-sig').splitlines()
            return [line.strip() for line in lines if line.strip()]
    return []


def _names_of(pictures: Iterable[Picture]) -> list[str]:
    return sorted({thing['category'] for picture in pictures for thing in picture.objects})


def _polygon_box(points: np.ndarray) -> list[float]:
    (x1, y1), (x2, y2) = points.min(0), points.max(0)
    return [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]


def _is_rectangle(polygon: list[float]) -> bool:
    points = np.reshape(polygon, (-1, 2))
    corners = len(np.unique(points, axis=0))
    return corners <= 4 and all(len(np.unique(points[:, axis])) <= 2 for axis in (0, 1))


def _object_task(pictures: Iterable[Picture]) -> str:
    """'instance' if the objects have outlines that are more than their boxes."""
    things = [thing for picture in pictures for thing in picture.objects]
    outlined = [thing.get('segmentation') for thing in things if not thing.get('iscrowd')]
    if not outlined or not all(outlined):
        return 'det'
    boxes = all(isinstance(s, list) and all(map(_is_rectangle, s)) for s in outlined)
    return 'det' if boxes else 'instance'


# ----------------------------------------------------------------------------------- COCO


def _find_json(root: Path, files: list[Path], keys: set[str]) -> list[Path]:
    found = []
    for path in files:
        if path.suffix.lower() == '.json':
            with path.open('rb') as file:
                start = file.read(2**20)
            if any(f'"{key}"'.encode() in start for key in keys):
                content = _load_json(path)
                if isinstance(content, dict) and keys <= set(content):
                    found.append(path)
    return found


def _find_coco(root: Path, files: list[Path]) -> list[Path]:
    return _find_json(root, files, {'images', 'annotations', 'categories'})


def _read_coco(root: Path, files: list[Path], labels: list[Path]) -> OwnData:
    by_name = _by_name(files)
    pictures: dict[Path, Picture] = {}
    classes: dict[str, None] = {}
    remarks = []
    for path in labels:
        content = _load_json(path)
        try:
            names = {c['id']: str(c['name']) for c in content['categories']}
            classes.update(dict.fromkeys(names[key] for key in sorted(names)))
            split = _split_of([*_words(path), *path.relative_to(root).parts[:-1]])
            mine: dict[Any, Picture] = {}
            lost = []
            for image in content['images']:
                name = str(image['file_name'])
                place = _locate(name, [root, path.parent], by_name, split)
                if place is None:
                    lost.append(name)
                    continue
                mine[image['id']] = pictures.setdefault(place, Picture(place, split))
            for annotation in content['annotations']:
                if annotation['image_id'] in mine:
                    thing = {k: annotation.get(k) for k in ('bbox', 'segmentation', 'iscrowd')}
                    thing['category'] = names[annotation['category_id']]
                    mine[annotation['image_id']].objects.append(thing)
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"{path} is not in COCO's format: {describe_error(error)} "
                'in its images, annotations or categories'
            ) from error
        remarks += _lost(path, lost)
    found = list(pictures.values())
    return OwnData(root, 'coco', _object_task(found), list(classes), found, remarks)


def _locate(
    name: str, folders: list[Path], by_name: dict[str, list[Path]], split: str | None
) -> Path | None:
    """The picture that an annotation file means: by its path, or else by its name alone."""
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    places = by_name.get(Path(name.replace('\\', '/')).name, [])
    same = [place for place in places if split and _split_of(place.parts[:-1]) == split]
    places = same or places
    return places[0] if len(places) == 1 else None


def _lost(where: Path, names: list[str]) -> list[str]:
    if not names:
        return []
    return [f'{where} labels {len(names)} pictures that are not there, {names[0]} for one']


# -------------------------------------------------------------------------------- LabelMe


def _find_labelme(root: Path, files: list[Path]) -> list[Path]:
    return _find_json(root, files, {'shapes', 'imagePath'})


def _read_labelme(root: Path, files: list[Path], labels: list[Path]) -> OwnData:
    by_name = _by_name(files)
    pictures = {path: Picture(path) for path in filter(_is_picture, files)}
    lost = []
    other: set[str] = set()
    for path in labels:
        content = _load_json(path)
        place = _locate(str(content['imagePath']), [path.parent], by_name, None)
        if place is None:
            lost.append(path.name)
            continue
        for shape in content['shapes']:
            try:
                points = np.array(shape['points'], float).reshape(-1, 2)
                kind = shape.get('shape_type', 'polygon')
                label = str(shape['label'])
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(f'{path}: a shape is broken ({describe_error(error)})') from error
            thing = dict(category=label, iscrowd=0)
            if kind == 'polygon' and len(points) >= 3:
                thing['segmentation'] = [points.flatten().tolist()]
            elif kind == 'circle' and len(points) == 2:
                angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
                radius = np.linalg.norm(points[1] - points[0])
                points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
                thing['segmentation'] = [points.flatten().tolist()]
            elif kind != 'rectangle' or len(points) != 2:
                other.add(kind)
                continue
            pictures[place].objects.append(thing | dict(bbox=_polygon_box(points)))
    found = list(pictures.values())
    remarks = _lost(labels[0].parent, lost)
    if other:
        remarks.append(f'shapes of the kind {", ".join(sorted(other))} are left out')
    return OwnData(root, 'labelme', _object_task(found), _names_of(found), found, remarks)


# ----------------------------------------------------------------------------------- YOLO


def _find_yolo(root: Path, files: list[Path]) -> list[Path]:
    found = []
    for path in files:
        if path.suffix.lower() in ('.yaml', '.yml') and len(path.relative_to(root).parts) <= 2:
            try:
                content = yaml.safe_load(path.read_text(encoding='utf-8-sig'))
            except (yaml.YAMLError, UnicodeDecodeError):
                continue
            if isinstance(content, dict) and 'names' in content:
                found.append(path)
    return found[:1]


def _read_yolo(root: Path, files: list[Path], labels: list[Path]) -> OwnData:
    (path,) = labels
    content = yaml.safe_load(path.read_text(encoding='utf-8-sig'))
    names = content['names']
    classes = [str(names[k]) for k in sorted(names)] if isinstance(names, dict) else list(names)
    pictures: dict[Path, Picture] = {}
    for split in _SPLITS:
        places = content.get(split) or []
        for place in [places] if isinstance(places, str) else places:
            for found_ in _yolo_pictures(root, path, str(content.get('path') or ''), place):
                pictures.setdefault(found_, Picture(found_, split))
    if not pictures:
        raise UsageError(f'{path}: no pictures are where train, val and test say')
    for picture in pictures.values():
        parts = list(picture.path.parts)
        if 'images' in parts:
            parts[len(parts) - 1 - parts[::-1].index('images')] = 'labels'
        text = Path(*parts).with_suffix('.txt')
        if text.is_file():
            picture.objects = list(_yolo_objects(text, picture.size, classes))
    found = list(pictures.values())
    return OwnData(root, 'yolo', _object_task(found), classes, found)


def _yolo_pictures(root: Path, config: Path, base: str, place: str) -> Iterator[Path]:
    starts = [config.parent / base, config.parent, root]
    for start in starts:
        for name in (place, re.sub(r'^(\.\./)+', '', place)):  # Roboflow writes ../train/images
            folder = start / name
            if folder.is_file():  # a list of pictures
                for line in folder.read_text(encoding='utf-8').splitlines():
                    for near in (folder.parent, *starts):
                        if line.strip() and (near / line.strip()).is_file():
                            yield near / line.strip()
                            break
                return
            if folder.is_dir():
                yield from filter(_is_picture, sorted(folder.rglob('*')))
                return


def _yolo_objects(
    path: Path, size: tuple[int, int], classes: list[str]
) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        if not line.strip():
            continue
        try:
            label, *numbers = (float(word) for word in line.split())
            category = classes[int(label)]
            if len(numbers) == 4:
                x, y, w, h = numbers * np.array([*size, *size])
                yield dict(category=category, bbox=[x - w / 2, y - h / 2, w, h], iscrowd=0)
            elif len(numbers) >= 6 and len(numbers) % 2 == 0:
                points = np.reshape(numbers, (-1, 2)) * size
                polygon = [points.flatten().tolist()]
                box = _polygon_box(points)
                yield dict(category=category, bbox=box, segmentation=polygon, iscrowd=0)
            else:
                raise ValueError(f'{len(numbers)} numbers behind the class')
        except (ValueError, IndexError) as error:
            raise UsageError(
                f'{path}, line {number}: not a class among {len(classes)} and a box or polygon '
                f'({error})'
            ) from error


# ------------------------------------------------------------------------------------ VOC


def _find_voc(root: Path, files: list[Path]) -> list[Path]:
    found = []
    for path in files:
        if path.suffix.lower() == '.xml':
            with path.open('rb') as file:
                if b'<annotation' in file.read(1024):
                    found.append(path)
    return found


def _read_voc(root: Path, files: list[Path], labels: list[Path]) -> OwnData:
    by_stem: dict[str, list[Path]] = {}
    for file in filter(_is_picture, files):
        by_stem.setdefault(file.stem, []).append(file)
    splits = {
        line.split()[0]: list_.stem
        for list_ in files
        if list_.parent.name == 'Main' and list_.stem in _SPLITS and list_.suffix == '.txt'
        for line in list_.read_text(encoding='utf-8').splitlines()
        if line.strip()
    }
    pictures: dict[Path, Picture] = {}
    lost = []
    for path in labels:
        try:
            tree = ET.parse(path)
            name = tree.findtext('filename') or ''
            places = [p for p in by_stem.get(path.stem, ()) if p.parent == path.parent]
            places = places or by_stem.get(path.stem) or by_stem.get(Path(name).stem, [])
            if len(places) != 1:
                lost.append(path.name)
                continue
            picture = pictures.setdefault(places[0], Picture(places[0], splits.get(places[0].stem)))
            for thing in tree.iter('object'):
                x1, y1, x2, y2 = (
                    float(thing.findtext(f'bndbox/{side}') or 'nan')
                    for side in ('xmin', 'ymin', 'xmax', 'ymax')
                )
                if np.isnan([x1, y1, x2, y2]).any():
                    raise ValueError('an object without a whole bndbox')
                category = (thing.findtext('name') or '').strip()
                # pixels count from 1, and both corners belong to the box
                box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
                picture.objects.append(dict(category=category, bbox=box, iscrowd=0))
        except (ET.ParseError, ValueError) as error:
            raise UsageError(f'{path} is no Pascal VOC annotation: {error}') from error
    found = list(pictures.values())
    return OwnData(root, 'voc', 'det', _names_of(found), found, _lost(labels[0].parent, lost))


# ---------------------------------------------------------------------------------- masks


def _find_masks(root: Path, files: list[Path]) -> list[tuple[Path, Path]]:
    """Pictures and their masks: of one name in a folder for masks, or with a word for it."""
    masks: dict[str, Path] = {}
    pictures: dict[str, Path] = {}
    for path in filter(_is_picture, files):
        *folders, _ = path.relative_to(root).parts
        words = [folder.lower() for folder in folders]
        stem = re.sub(r'[_\-.](mask|label|labels|seg)$', '', path.stem, flags=re.IGNORECASE)
        is_mask = path.suffix.lower() == '.png' and (
            any(word in _MASK_FOLDERS for word in words) or stem != path.stem
        )
        split = _split_of(folders) or ''
        (masks if is_mask else pictures)[f'{split}/{stem if is_mask else path.stem}'] = path
    return [(path, masks[key]) for key, path in pictures.items() if key in masks]


def _read_masks(root: Path, files: list[Path], labels: list[tuple[Path, Path]]) -> OwnData:
    found = [Picture(path, mask=mask) for path, mask in labels]
    values: set[Any] = set()
    for _, path in labels:
        values |= set(mask_values(read_mask(path)))
    classes, remarks = _class_list(root), []
    numbers = sorted(value for value in values if not isinstance(value, tuple))
    if len(numbers) < len(values):
        colours = sorted((v,) * 3 if isinstance(v, int) else v for v in values)
        if len(colours) > 256:
            raise UsageError(
                f'the masks of {root} have {len(colours)} colours: they look like pictures'
            )
        classes = classes or ['#{:02x}{:02x}{:02x}'.format(*colour) for colour in colours]
        if len(classes) != len(colours):
            raise UsageError(
                f'the masks of {root} have {len(colours)} colours and {len(classes)} classes are '
                'named: the colours must be as many as the classes'
            )
        mapping: dict[Any, int] = {
            (c[0] if len(set(c)) == 1 else c): i for i, c in enumerate(colours)
        }
    elif numbers in ([0, _IGNORED], [_IGNORED]) and len(classes) <= 2:
        classes = classes or ['background', 'foreground']
        mapping = {0: 0, _IGNORED: 1}
    else:
        numbers = [number for number in numbers if number != _IGNORED]
        if not classes:
            classes = [f'class {number}' for number in range(max(numbers) + 1)]
            remarks.append(
                f'the classes have no names: write them into {root / _CLASS_FILES[0]}, one a line'
            )
        first = 1 if numbers and max(numbers) == len(classes) else 0
        if first:
            remarks.append('0 is taken for "not labelled": the masks count classes from 1')
        mapping = {first + i: i for i in range(len(classes))}
        unknown = [number for number in numbers if number >= first and number not in mapping]
        if unknown:
            raise UsageError(
                f'the masks of {root} hold the values {", ".join(map(str, unknown[:5]))}, which '
                f'are none of the {len(classes)} classes'
            )
    return OwnData(root, 'masks', 'seg', classes, found, remarks, mapping)


def read_mask(path: Path) -> np.ndarray:
    """(H, W) of numbers, or (H, W, 3) of colours; the indices of a picture with a palette."""
    with Image.open(path) as image:
        modes = {'1': 'L', 'L': 'L', 'P': 'P', 'I': 'I', 'I;16': 'I;16'}
        mask = np.asarray(image.convert(modes.get(image.mode, 'RGB')))
    if mask.ndim == 3 and (mask == mask[..., :1]).all():
        mask = mask[..., 0]
    return mask


def mask_values(mask: np.ndarray) -> list[Any]:
    """The values in a mask: colours that are no grey as (R, G, B)."""
    if mask.ndim == 2:
        return np.unique(mask).tolist()
    colours = np.unique(mask.reshape(-1, 3), axis=0).tolist()
    return [r if r == g == b else (r, g, b) for r, g, b in colours]


def index_mask(mask: np.ndarray, values: dict[Any, int]) -> np.ndarray:
    """The class of each pixel, 255 where there is none."""
    out = np.full(mask.shape[:2], _IGNORED, np.uint8)
    channels = mask.reshape(*mask.shape[:2], -1)
    for value, label in values.items():
        out[(channels == value).all(-1)] = label
    return out


# -------------------------------------------------------------------------------- folders


def _find_folders(root: Path, files: list[Path]) -> list[Path]:
    """Pictures in folders that are called after classes, below those of the splits if any."""
    found = [path for path in filter(_is_picture, files) if _class_of(root, path)]
    return found if len({_class_of(root, path) for path in found}) > 1 else []


def _class_of(root: Path, path: Path) -> str | None:
    folders = [part for part in path.relative_to(root).parts[:-1] if not _split_of([part])]
    return folders[-1] if folders else None


def _read_folders(root: Path, files: list[Path], labels: list[Path]) -> OwnData:
    pictures = [Picture(path, label=_class_of(root, path)) for path in labels]
    classes = sorted({str(picture.label) for picture in pictures})
    return OwnData(root, 'folders', 'cls', classes, pictures)


_FINDERS: dict[str, Callable] = {
    'coco': _find_coco,
    'labelme': _find_labelme,
    'yolo': _find_yolo,
    'voc': _find_voc,
    'masks': _find_masks,
}
_READERS: dict[str, Callable] = {
    'coco': _read_coco,
    'labelme': _read_labelme,
    'yolo': _read_yolo,
    'voc': _read_voc,
    'masks': _read_masks,
    'folders': _read_folders,
}
FORMATS = tuple(_READERS)
