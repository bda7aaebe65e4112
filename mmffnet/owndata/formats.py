"""Folders of labelled pictures, in the formats that labelling tools write.

Libraries that read them (supervision, say) want to be told the format and the paths, turn outlines
into masks, and do not name the file in errors; what is left to do around them is no shorter.
"""

import base64
import io
import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as rle

from mmffnet.errors import UsageError, describe_error, shorten
from mmffnet.inference.sources import PICTURES

#: What Pillow raises for files that are no whole pictures
UNREADABLE = (OSError, SyntaxError, ValueError)

_SPLITS = {'train': 'train training', 'val': 'val valid validation dev', 'test': 'test testing'}
_MASK_FOLDERS: tuple[str, ...] = ('annotations', 'gt', 'labels', 'mask', 'masks')
_MASK_FOLDERS += ('segmentationclass', 'segmentationclasspng')
#: What tools write beside pictures and classes of pixels: numbers of objects, and drawings
_SKIPPED = ('segmentationobject', 'segmentationobjectpng', 'segmentationclassvisualization')
_PICTURE_FOLDERS = ('image', 'images', 'img', 'imgs', 'jpegimages', 'photos', 'pictures')
_MASK_FILES = ('.bmp', '.png', '.tif', '.tiff')
_CLASS_FILES = ('classes.txt', 'labels.txt', 'class_names.txt', 'obj.names')
_MASK_WORD = re.compile(r'[_\-.](mask|label|labels|seg|gt)$', re.IGNORECASE)
_PICTURE_SUFFIX = r'\.(jpe?g|png|bmp|tiff?|webp)'
_MASK_NAME = re.compile(
    rf'^(mask|label|labels|seg|gt)[_\-]|({_PICTURE_SUFFIX})?{_MASK_WORD.pattern}|{_PICTURE_SUFFIX}$',
    re.IGNORECASE,
)
_FEW = 0.1  # of the objects that may lack an outline where the others have one
_IGNORED = 255
_COLOUR = 2**24  # what values of masks that are colours begin with


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Opens a picture of any size: Pillow refuses large ones, which may be meant for tiles."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@dataclass
class Picture:
    """A picture and what is labelled in it."""

    path: Path
    split: str | None = None  #: 'train', 'val' or 'test', as the data have it
    #: Annotations as in COCO's format, with the name of the class as ``category``;
    #: ``segmentation`` is missing where there is just a box. Of a mask, the classes alone
    objects: list[dict[str, Any]] = field(default_factory=list)
    mask: Path | None = None  #: File with the class of each pixel
    label: str | None = None  #: Class of the whole picture
    labelled_size: tuple[Any, Any] = (None, None)  #: Width, height that the labels say

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height as they are shown, turned as EXIF says; (0, 0) if it is no picture."""
        try:
            with open_image(self.path) as image:
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
                return image.size[::-1] if turned else image.size
        except UNREADABLE:
            return (0, 0)

    @property
    def classes(self) -> list[str]:
        """Its class, or that of each object."""
        return [self.label] if self.label else [thing['category'] for thing in self.objects]


@dataclass
class OwnData:
    """Labelled pictures."""

    root: Path
    format: str
    task: str  #: The most that the labels serve: 'instance', 'det', 'seg' or 'cls'
    classes: list[str]
    pictures: list[Picture]
    remarks: list[str] = field(default_factory=list)  #: What the user should know
    values: dict[int, int] = field(default_factory=dict)  #: The class of each value of masks
    tiles: int | None = None  #: Size of the tiles to cut the pictures into

    @property
    def has_outlines(self) -> bool:
        return any(
            'segmentation' in thing for picture in self.pictures for thing in picture.objects
        )

    def part(self, split: str) -> list[Picture]:
        return [picture for picture in self.pictures if picture.split == split]

    def name(self, path: Path) -> str:
        """A file as it is called below the folder."""
        return path.relative_to(self.root).as_posix()


class Folder:
    """A folder with all files in it and below it, hidden ones apart; links are followed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[Path] = []
        walked = set()
        for place, folders, names in os.walk(root, followlinks=True):
            if (real := os.path.realpath(place)) in walked:  # a link that leads back
                folders.clear()
                continue
            walked.add(real)
            folders[:] = [
                name
                for name in folders
                if not name.startswith(('.', '__MACOSX')) and name.lower() not in _SKIPPED
            ]
            self.files += [Path(place, name) for name in names if not name.startswith('.')]
        self.files = sorted(path for path in self.files if path.is_file())
        self.pictures = dict.fromkeys(self.endings(*PICTURES))
        self.faults: list[UsageError] = []  #: JSON files that cannot be read
        self.by_stem: dict[str, list[Path]] = {}
        for path in self.pictures:
            self.by_stem.setdefault(path.stem, []).append(path)

    def endings(self, *suffixes: str) -> list[Path]:
        return [path for path in self.files if path.suffix.lower() in suffixes]

    @cached_property
    def unmasked(self) -> list[Path]:
        """The pictures that are no masks by their names."""
        return [path for path in self.pictures if not _is_mask(path.relative_to(self.root))]

    @cached_property
    def json(self) -> dict[Path, dict[str, Any]]:
        """The JSON objects among the files."""
        found = {}
        for path in self.endings('.json'):
            try:
                with _reading(path, 'JSON'):
                    content = json.loads(path.read_bytes())
            except UsageError as error:
                self.faults.append(error)
                continue
            if isinstance(content, dict):
                content.pop('imageData', None)  # LabelMe's copy of the picture
                found[path] = content
        return found

    def by_path(self, names: list[str], near: list[Path]) -> Path | None:
        """The picture that labels mean by its path, or by the end of it that one alone has."""
        for place in near:
            for name in names:
                if (path := Path(os.path.normpath(place / name))) in self.pictures:
                    return path
        for parts in (Path(name).parts for name in names):
            for count in range(len(parts), 1, -1):
                same = [p for p in self._of_stem(parts[-1]) if p.parts[-count:] == parts[-count:]]
                if len(same) == 1:
                    return same[0]
        return None

    def by_name(self, names: list[str], near: list[Path], split: str | None = None) -> Path | None:
        """The picture that labels mean, if its name in their folder or split is one alone's."""
        for name in names:
            places = self._of_stem(name)
            same_split = [p for p in places if split and self.split_of(p) == split]
            others = [p for p in places if not (split and self.split_of(p))]
            places = [p for p in places if p.parent in near] or same_split or others
            places = [p for p in places if p.name == Path(name).name] or places
            if len(places) == 1:
                return places[0]
        return None

    def beside(self, path: Path) -> list[str]:
        """The picture of the name of a file, in its folder."""
        same = [str(place) for place in self._of_stem(path.name) if place.parent == path.parent]
        return same if len(same) == 1 else []

    def _of_stem(self, name: str) -> list[Path]:
        return self.by_stem.get(Path(name).stem, [])

    def split_of(self, path: Path) -> str | None:
        """The split that a folder between the root and a file is called after."""
        return _split_of(path.relative_to(self.root).parts[:-1])


def read_own_data(root: str | Path, format: str | None = None) -> OwnData:
    """Find the format of a folder, one of :data:`FORMATS`, if it is not given; read its labels."""
    root = Path(root).expanduser().resolve()
    if root.is_file():
        raise UsageError(f"'{root}' is a file: give the folder with the pictures and labels")
    if not root.is_dir():
        raise UsageError(f"the data folder '{root}' does not exist")
    folder = Folder(root)
    if not folder.pictures:
        raise UsageError(f'{root} holds no pictures ({", ".join(PICTURES)})')
    found: list[OwnData] = []
    refused: list[UsageError] = []
    for name in FORMATS[:-1] if format is None else [format]:
        try:
            found += filter(None, [_READERS[name](folder)])
        except UsageError as error:
            refused.append(error)
    if refused and not found:
        raise refused[0]
    if folder.faults and (not found or found[0].format in ('coco', 'labelme')):
        raise folder.faults[0]
    if len(found) > 1:
        several = ' and '.join(data.format for data in found)
        raise UsageError(
            f'{root} holds labels in more than one format, {several}: say which with --format'
        )
    data = found[0] if found else _guess_folders(folder) if format is None else None
    if data is None:
        wanted = format or 'COCO or LabelMe json, YOLO data.yaml, VOC xml, masks, class folders'
        raise UsageError(f'{root} holds pictures, but no labels: looked for {wanted}')
    if not data.pictures:
        raise UsageError(f'{root}: none of the {data.format} labels belongs to a picture there')
    data.remarks += map(str, refused)
    for picture in data.pictures:
        picture.split = picture.split or folder.split_of(picture.path)
    return data


def _split_of(names: Iterable[str]) -> str | None:
    """The split that the folders or words of a name say, such as 'train2017'."""
    for name in names:
        word = re.sub(r'\d+$', '', name.lower())
        for split, words in _SPLITS.items():
            if word in words.split():
                return split
    return None


@contextmanager
def _reading(where: Any, what: str) -> Iterator[None]:
    """Says which file an error is about."""
    try:
        yield
    except (*UNREADABLE, AttributeError, LookupError, TypeError) as error:
        raise UsageError(f'{where} cannot be read as {what}: {describe_error(error)}') from error


def listed(text: str, names: Collection[str]) -> str:
    """A finding, how many it is about, and the first of them."""
    return f'{text} ({len(names)}): {shorten(names, 5)}'


def _left_out(what: str, paths: Collection[Path]) -> str:
    return listed(f'{what} are left out', [path.name for path in paths])


#: A file of labels, names of the picture they are for, its split, the size that they say it has,
#: and its objects
_Entry = tuple[Path, list[str], str | None, tuple[Any, Any], list[dict[str, Any]]]


def _read_objects(
    format: str, read: Callable[[Folder, list[str]], Iterator[_Entry]], rest: bool, folder: Folder
) -> OwnData | None:
    """Data of boxes, or of outlines if all objects have some that are more than their boxes.

    ``read`` adds to the classes those that may be without objects; ``rest`` is whether pictures
    without labels belong to the data.
    """
    classes: list[str] = []
    entries = list(read(folder, classes))
    if not entries:
        return None
    entries.sort(key=lambda entry: entry[2] is None)  # a file of all may be beside those of parts
    pictures: dict[Path, Picture] = {}
    faults: dict[str, list[str]] = {}
    asked = [([n.replace('\\', '/') for n in e[1]], [e[0].parent, folder.root]) for e in entries]
    places = [folder.by_path(*names) for names in asked]
    certain = set(places)
    for (path, _, split, size, things), names, place in zip(entries, asked, places, strict=True):
        if place is None and (place := folder.by_name(*names, split)) in certain:
            place = None
        if place is None or place in pictures:
            fault = 'are labelled already' if place else 'are not there'
            faults.setdefault(fault, []).append(f'{names[0][0]} ({path.name})')
        else:
            objects = [thing for thing in things if 'bbox' in thing]
            pictures[place] = Picture(place, split, objects, labelled_size=size)
    kinds: dict[str, list[str]] = {}
    for path, *_, things in entries:
        for kind in (thing['kind'] for thing in things if 'kind' in thing):
            kinds.setdefault(kind, []).append(path.name)
    remarks = [
        listed(f'shapes of the kind {kind} are left out, as if nothing was', files)
        for kind, files in sorted(kinds.items())
    ]
    for fault, found in faults.items():
        remarks.append(listed(f'labels are for pictures that {fault}', found))
    others = [path for path in folder.unmasked if path not in pictures]
    folders, stems = {path.parent for path in pictures}, {path.stem for path in pictures}
    drawn = {path.parent for path in others if path.stem in stems} - folders
    if rest and pictures:
        pictures |= {path: Picture(path) for path in others if path.parent not in drawn}
        others = [path for path in others if path.parent in drawn]
    if others:
        remarks.append(_left_out('pictures that no label is for', others))
    if not classes:
        classes = sorted({name for picture in pictures.values() for name in picture.classes})
    things = [thing for p in pictures.values() for thing in p.objects if not thing['iscrowd']]
    outlines = [thing['segmentation'] for thing in things if 'segmentation' in thing]
    boxes = all(isinstance(s, list) and all(map(_is_rectangle, s)) for s in outlines)
    classes = list(dict.fromkeys(classes))
    data = OwnData(folder.root, format, 'det', classes, [*pictures.values()], remarks)
    lacking = len(things) - len(outlines)
    if lacking <= _FEW * len(things) and not boxes:
        outline_boxes(data)
    elif lacking and not boxes:
        remarks.append(
            f'{lacking} of {len(things)} objects have no outline: boxes are learned, unless '
            '--task instance takes these boxes for outlines'
        )
    return data


def outline_boxes(data: OwnData) -> None:
    """Make data of boxes such of outlines: the box is that of objects that have no other."""
    data.task, count = 'instance', 0
    for thing in (thing for picture in data.pictures for thing in picture.objects):
        if 'segmentation' not in thing:
            x, y, w, h = thing['bbox']
            thing['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            count += 1
    if count:
        data.remarks.append(f'{count} objects have no outline, and get that of their box')


def _thing(category: str, box: Iterable, outline: Any = None, crowd: Any = 0) -> dict[str, Any]:
    x, y, w, h = map(float, box)
    if not np.isfinite([x, y, w, h]).all():
        raise ValueError(f'a box of {category} is {[x, y, w, h]}')
    thing = dict(category=category, bbox=[x, y, w, h], iscrowd=int(crowd or 0))
    if isinstance(outline, list):  # less than three corners are none
        if any(len(part) % 2 for part in outline):
            raise ValueError(f'an outline of {category} has a corner with one number')
        outline = [[*map(float, part)] for part in outline if len(part) >= 6]
    elif outline and not {'size', 'counts'} <= outline.keys():
        raise ValueError(f'an outline of {category} is neither polygons nor run lengths')
    return thing | (dict(segmentation=outline) if outline else {})


def _box(points: np.ndarray) -> list[float]:
    return [*points.min(0).tolist(), *np.ptp(points, 0).tolist()]


def _outlined(category: str, points: np.ndarray) -> dict[str, Any]:
    return _thing(category, _box(points), [points.ravel().tolist()])


def _is_rectangle(polygon: list[float]) -> bool:
    points = np.reshape(polygon, (-1, 2))
    corners = len(np.unique(points, axis=0))
    sides = [len(np.unique(points[:, axis])) for axis in (0, 1)]
    return corners in (1, 2, 4) and max(sides) <= 2


def _read_coco(folder: Folder, classes: list[str]) -> Iterator[_Entry]:
    for path, content in folder.json.items():
        if not {'images', 'annotations', 'categories'} <= content.keys():
            continue
        split = _split_of(re.split(r'[_\-.\s]+', path.stem)) or folder.split_of(path)
        things: dict[Any, list] = {}
        with _reading(path, "COCO's format"):
            categories = sorted(content['categories'], key=itemgetter('id'))
            names = {category['id']: str(category['name']) for category in categories}
            classes += names.values()
            for one in content['annotations']:
                shape = (one['bbox'], one.get('segmentation'), one.get('iscrowd'))
                thing = _thing(names[one['category_id']], *shape)
                things.setdefault(one['image_id'], []).append(thing)
            for image in content['images']:
                size = (image.get('width'), image.get('height'))
                yield path, [str(image['file_name'])], split, size, things.get(image['id'], [])


def _read_labelme(folder: Folder, classes: list[str]) -> Iterator[_Entry]:
    for path, content in folder.json.items():
        if {'shapes', 'imagePath'} <= content.keys():
            with _reading(path, "LabelMe's format"):
                size = (content.get('imageWidth'), content.get('imageHeight'))
                things: dict[Any, dict[str, Any]] = {}
                for number, shape in enumerate(content['shapes']):
                    thing = _labelme_thing(**shape, size=size)
                    group = shape.get('group_id')  # the parts of one object
                    key = number if group is None else (thing.get('category'), str(group))
                    things[key] = _merge(things[key], thing) if key in things else thing
                names = [content['imagePath'] or path.name, path.name]
                yield path, folder.beside(path) or names, None, size, list(things.values())


def _labelme_thing(
    label: str,
    points: list,
    size: tuple[Any, Any],
    shape_type: str | None = None,
    mask: str | None = None,
    **_: Any,
) -> dict[str, Any]:
    label, corners = str(label), np.array(points, float).reshape(-1, 2)
    if shape_type == 'rectangle' and len(points) >= 2:  # two corners, or four in other tools
        return _thing(label, _box(corners))
    if shape_type == 'mask' and mask:  # the pixels of a box, as a picture
        pixels = np.zeros(size[::-1], np.uint8, order='F')
        with Image.open(io.BytesIO(base64.b64decode(mask))) as image:
            part = np.asarray(image) > 0
        x, y = corners[0].astype(int)
        pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
        packed = rle.encode(pixels)
        return _thing(label, rle.toBbox(packed), packed | dict(counts=packed['counts'].decode()))
    if shape_type == 'circle' and len(points) == 2:  # its centre, and a point on it
        angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        radius = np.linalg.norm(corners[1] - corners[0])
        corners = corners[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    elif shape_type not in (None, 'polygon', 'rotation', 'quadrilateral') or len(points) < 3:
        return dict(kind=shape_type or 'polygon')
    return _outlined(label, corners)


def _merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two parts of an object; of which one alone has an outline, that is lost."""
    if 'bbox' not in one or 'bbox' not in other:
        return one if 'bbox' in one else other
    (x, y, w, h), (u, v, p, q) = one['bbox'], other['bbox']
    corners = np.array([[x, y], [x + w, y + h], [u, v], [u + p, v + q]])
    outline, more = one.get('segmentation'), other.get('segmentation')
    both = [*outline, *more] if isinstance(outline, list) and isinstance(more, list) else None
    return _thing(one['category'], _box(corners), both)


def _read_yolo(folder: Folder, classes: list[str]) -> Iterator[_Entry]:
    found: dict[Path, str | None] = {}
    for path in folder.endings('.yaml', '.yml'):
        with suppress(yaml.YAMLError, ValueError):  # not ours to judge
            content = yaml.safe_load(path.read_text(encoding='utf-8-sig'))
            if isinstance(content, dict) and 'names' in content and content.keys() & _SPLITS:
                break
    else:  # as CVAT, Label Studio and LabelImg write it: a list of classes, and files of labels
        texts = [text for p in folder.pictures if (text := _yolo_labels(folder, p)).is_file()]
        if not texts:
            return
        near = sorted({folder.root} | {text.parent for text in texts})
        lists = [names for place in near if (names := _class_list(place, counted=True))]
        if not lists:
            return
        if any(names != lists[0] for names in lists):
            raise UsageError(f'{folder.root}: the lists of classes beside the labels differ')
        path, content = folder.root / 'train.txt', dict(names=lists[0])
        for split, words in _SPLITS.items():
            files = [f'{word}.txt' for word in words.split()]
            content[split] = [name for name in files if (folder.root / name).is_file()]
        if not any(content[split] for split in _SPLITS):
            found |= dict.fromkeys(folder.unmasked)
    if 'kpt_shape' in content:
        raise UsageError(f'{path} is for key points: boxes or outlines can be trained')
    with _reading(path, 'a data.yaml of YOLO'):
        names = content['names'] or {}
        names = names if isinstance(names, dict) else dict(enumerate(names))
        names = {int(number): str(name) for number, name in names.items()}
        if not names or sorted(names) != list(range(len(names))):
            raise ValueError(f'names must count from 0, and are {content["names"]!r}')
        classes += [names[number] for number in range(len(names))]
        starts = [path.parent / str(content.get('path') or ''), path.parent, folder.root]
        for split in _SPLITS:
            places = content.get(split) or []
            for place in [places] if isinstance(places, str) else places:
                found |= (
                    dict.fromkeys(_yolo_pictures(folder, starts, str(place), split), split) | found
                )
    if not found:
        raise UsageError(f'{path}: no pictures are where train, val and test say')
    for picture, part in found.items():
        things = _yolo_things(_yolo_labels(folder, picture), Picture(picture).size, classes)
        yield path, [str(picture)], part, (None, None), things


def _yolo_labels(folder: Folder, picture: Path) -> Path:
    """The file of labels: in the place of ``images``, or beside the picture."""
    if folder.root not in picture.parents:
        return picture.with_suffix('.txt')
    name = picture.relative_to(folder.root).as_posix()
    there = folder.root / re.sub(r'(.*/|^)images/', r'\1labels/', name, count=1)
    paths = [path.with_suffix('.txt') for path in (there, picture)]
    return next(filter(Path.is_file, paths), paths[0])


def _yolo_pictures(folder: Folder, starts: list[Path], place: str, split: str) -> list[Path]:
    names = (place, re.sub(r'^(\.\./)+', '', place))  # Roboflow writes ../train/images
    for base in (Path(os.path.normpath(start / name)) for start in starts for name in names):
        if base.is_file():  # a list of pictures
            near = [base.parent, *starts]
            lines = [line.replace('\\', '/') for line in _read_lines(base)]
            found = {
                n: folder.by_path([n], near) or folder.by_name([n], near, split) for n in lines
            }
            return [path or base.parent / line for line, path in found.items()]
        if below := [path for path in folder.pictures if base in path.parents]:
            return below
    return []


def _yolo_things(path: Path, size: tuple[int, int], classes: list[str]) -> list[dict[str, Any]]:
    things = []
    lines = _read_text(path).splitlines() if path.is_file() else []
    for number, words in enumerate(map(str.split, lines), 1):
        with _reading(f'{path}, line {number},', 'a class and a box or polygon'):
            label, *values = map(float, words or ['-1'])
            if words and not 0 <= label < len(classes):
                raise ValueError(f'{label:g} is none of the {len(classes)} classes')
            if len(values) == 4:
                x, y, w, h = (np.array(values) * (*size, *size)).tolist()
                things.append(_thing(classes[int(label)], (x - w / 2, y - h / 2, w, h)))
            elif len(values) >= 6:
                corners = np.reshape(values, (-1, 2)) * size
                things.append(_outlined(classes[int(label)], corners))
            elif words:
                raise ValueError(f'{len(values)} numbers behind the class')
    return things


def _read_voc(folder: Folder, classes: list[str]) -> Iterator[_Entry]:
    splits = {
        re.sub(r'\s+-?[01]$', '', line): path.stem
        for path in folder.endings('.txt')
        if path.parent.name == 'Main' and path.stem in _SPLITS
        for line in _read_lines(path)
    }
    for path in folder.endings('.xml'):
        if re.search(rb'<annotation[\s>]', path.read_bytes()[:1024]):
            with _reading(path, 'a Pascal VOC annotation'):
                tree = ET.parse(path)
                name = tree.findtext('filename') or path.name
                width, height = (tree.findtext(f'size/{side}') for side in ('width', 'height'))
                size = (int(width or 0), int(height or 0))
                things = [_voc_thing(thing) for thing in tree.iter('object')]
                names = folder.beside(path) or [path.name, name]
                yield path, names, splits.get(path.stem), size, things


def _voc_thing(thing: ET.Element) -> dict[str, Any]:
    corners = [thing.findtext(f'bndbox/{side}') for side in ('xmin', 'ymin', 'xmax', 'ymax')]
    if None in corners:
        raise ValueError('an object without a whole bndbox')
    x1, y1, x2, y2 = (float(corner or 'nan') for corner in corners)
    name = (thing.findtext('name') or '').strip()
    # pixels count from 1, and both corners belong to the box
    return _thing(name, (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1))


def _read_text(path: Path) -> str:
    with _reading(path, 'text in UTF-8'):
        return path.read_text('utf-8-sig')


def _read_lines(path: Path) -> list[str]:
    """The lines that hold something."""
    return [line.strip() for line in _read_text(path).splitlines() if line.strip()]


def _is_mask(path: Path) -> bool:
    """Whether a file below the folder is a mask by its name or by those of its folders."""
    named = any(name.lower() in _MASK_FOLDERS for name in path.parts[:-1])
    return (named or bool(_MASK_WORD.search(path.stem))) and path.suffix.lower() in _MASK_FILES


def _read_masks(folder: Folder) -> OwnData | None:
    masks: dict[tuple, list[Path]] = {}
    others: dict[tuple, list[Path]] = {}
    for path in folder.unmasked:
        others.setdefault((folder.split_of(path), path.stem), []).append(path)
    stems, plain = {stem for _, stem in others}, set(folder.unmasked)
    for path in (path for path in folder.pictures if path not in plain):
        stem = path.stem if path.stem in stems else _MASK_NAME.sub('', path.stem)
        masks.setdefault((folder.split_of(path), stem), []).append(path)
    pairs = [
        pair for key, paths in others.items() for pair in _pair(folder, paths, masks.get(key, []))
    ]
    if not pairs:
        return None
    values = [set(np.unique(read_mask(mask)).tolist()) for _, mask in pairs]
    remarks: list[str] = []
    used = {path for pair in pairs for path in pair}
    for what, lists in (('pictures without a mask', others), ('masks without a picture', masks)):
        if alone := [path for paths in lists.values() for path in paths if path not in used]:
            remarks.append(_left_out(what, alone))
    classes, mapping = _name_values(folder.root, set().union(*values), remarks)
    pictures = []
    for (path, mask), mine in zip(pairs, values, strict=True):
        found = sorted({mapping[value] for value in mine if value in mapping})
        pictures.append(Picture(path, None, [dict(category=classes[i]) for i in found], mask))
    return OwnData(folder.root, 'masks', 'seg', classes, pictures, remarks, mapping)


def _pair(folder: Folder, paths: list[Path], masks: list[Path]) -> list[tuple[Path, Path]]:
    """Pictures and masks of one name; if these are several, by their folders."""
    if len(paths) == len(masks) == 1:
        return [(paths[0], masks[0])]

    def place(path: Path) -> tuple[str, ...]:
        names = path.relative_to(folder.root).parts[:-1]
        return tuple(n for n in names if n.lower() not in (*_MASK_FOLDERS, *_PICTURE_FOLDERS))

    places = {place(mask): mask for mask in masks}
    return [(path, places[place(path)]) for path in paths if place(path) in places]


def _name_values(
    root: Path, values: set[int], remarks: list[str]
) -> tuple[list[str], dict[int, int]]:
    """The names of the classes, and the class of each value or colour."""
    names = _class_list(root)
    if len(names) == 1 and (values <= {0, 1} or values <= {0, _IGNORED}):
        names = {0: 'background', 1: next(iter(names.values()))}
    classes = list(names.values())
    numbers = sorted(values - {_IGNORED})
    listed_colours = _colour_list(root)
    if listed_colours and values <= listed_colours.keys():
        return list(listed_colours.values()), {v: i for i, v in enumerate(listed_colours)}
    shades = not names and 8 * len(numbers) < max(numbers, default=0)  # 0, 128, 255, say
    if shades or max(values) >= _COLOUR or (len(numbers) > 64 and not names):
        if len(values) > 64 or len(values) != len(classes or values):
            raise UsageError(
                f'the masks of {root} have {len(values)} values or colours and {len(classes)} '
                'classes are named: there must be a class for each, without colours between them; '
                'if these are pictures of classes, say --format folders'
            )
        colours = {f'#{v - _COLOUR if v >= _COLOUR else v * 0x10101:06x}': v for v in values}
        ordered = sorted(colours)
        found = ', '.join(f'{c} = {n}' for c, n in zip(ordered, classes or ordered, strict=True))
        remarks.append(f'the colours of the masks are classes in this order: {found}')
        return classes or ordered, {colours[name]: i for i, name in enumerate(ordered)}
    if values <= {0, _IGNORED} and _IGNORED in values and len(classes) in (0, 2):
        return classes or ['background', 'foreground'], {0: 0, _IGNORED: 1}
    if not names:
        names = {number: f'class {number}' for number in range(max(numbers, default=0) + 1)}
        remarks.append(f'the classes have no names: write them into {root / _CLASS_FILES[0]}')
    elif min(names) == 0 and max(numbers, default=0) == len(names):
        names = {number + 1: name for number, name in names.items()}
    if unknown := [str(number) for number in numbers if number and number not in names]:
        raise UsageError(
            f'the masks of {root} hold the values {shorten(unknown, 5)}, which are none of the '
            f'{len(names)} classes'
        )
    if 0 in numbers and 0 not in names:
        remarks.append('0 is taken for "not labelled": the classes count from 1')
    if _IGNORED in values and _IGNORED not in names:
        remarks.append(f'{_IGNORED} is taken for "not labelled"')
    remarks.append(listed('values of the masks', [f'{n} = {name}' for n, name in names.items()]))
    return list(names.values()), {number: i for i, number in enumerate(names)}


def _class_list(place: Path, counted: bool = False) -> dict[int, str]:
    """Names of classes by their numbers, which lines may begin with; else they count from 0.

    ``counted`` takes numbers for a part of the names if they do not count from 0.
    """
    for path in (place / name for name in _CLASS_FILES):
        if path.is_file():
            lines = [line for line in _read_lines(path) if line != '__ignore__']  # LabelMe's -1
            numbered = [re.fullmatch(r'(\d+)[\s:=,]+(.+)', line) for line in lines]
            names = {int(found[1]): found[2] for found in numbered if found}
            unique = len(set(names.values())) == len(lines)
            if unique and (not counted or sorted(names) == list(range(len(lines)))):
                return names
            return dict(enumerate(lines))
    return {}


def _colour_list(root: Path) -> dict[int, str]:
    """Names of classes by the colour or number of their masks, as CVAT and Roboflow list them."""
    for path in (root / 'labelmap.txt', *sorted(root.rglob('_classes.csv'))):
        if path.is_file():
            lines = [line for line in _read_lines(path) if not line.startswith('#')]
            with _reading(path, 'a list of classes'):
                if path.suffix == '.csv':  # Pixel Value, Class
                    rows = [line.split(',', 1) for line in lines[1:]]
                    return {int(number): name.strip() for number, name in rows}
                rows = [line.split(':')[:2] for line in lines]  # name:red,green,blue:parts:actions
                colours = (np.array(colour.split(','), int) for _, colour in rows)
                return {int(_pack(c)): name for c, (name, _) in zip(colours, rows, strict=True)}
    return {}


def _pack(colours: np.ndarray) -> np.ndarray:
    """One number for a colour: of shades of grey their value, of others more than these have."""
    grey = (colours == colours[..., :1]).all(-1)
    return np.where(grey, colours[..., 0], _COLOUR + colours @ (0x10000, 0x100, 1))


def read_mask(path: Path) -> np.ndarray:
    """(H, W): the numbers in a mask (of a palette its indices), larger ones for its colours."""
    with _reading(path, 'a mask'), open_image(path) as image:
        if image.mode in ('L', 'P', 'I', 'I;16'):
            return np.asarray(image, np.int64)
        return _pack(np.asarray(image.convert('RGB'), np.int64))


def index_mask(mask: np.ndarray, values: dict[int, int]) -> np.ndarray:
    """The class of each pixel, 255 where there is none."""
    out = np.full(mask.shape, _IGNORED, np.uint8)
    for value, label in values.items():
        out[mask == value] = label
    return out


def _read_folders(folder: Folder) -> OwnData | None:
    """Pictures in folders that are called after classes, below those of the splits if any."""
    pictures = []
    for path in folder.pictures:
        names = [part for part in path.relative_to(folder.root).parts[:-1] if not _split_of([part])]
        if names:
            pictures.append(Picture(path, label=names[-1]))
    classes = sorted({str(picture.label) for picture in pictures})
    labelled = {picture.path for picture in pictures}
    remarks = []
    if others := [path for path in folder.pictures if path not in labelled]:
        remarks.append(_left_out('pictures that are in no folder of a class', others))
    if len(classes) < 2:
        return None
    return OwnData(folder.root, 'folders', 'cls', classes, pictures, remarks)


def _guess_folders(folder: Folder) -> OwnData | None:
    """Folders of classes where nothing else was found."""
    data = _read_folders(folder)
    known = _MASK_FOLDERS + _PICTURE_FOLDERS
    if data and (others := [name for name in data.classes if name.lower() in known]):
        raise UsageError(
            f'{folder.root}: the folders {", ".join(others)} look like pictures and masks, but no '
            'mask (PNG, BMP, TIFF) is called as a picture; if they are classes, say --format '
            'folders'
        )
    return data


_READERS: dict[str, Callable[[Folder], OwnData | None]] = {
    'coco': partial(_read_objects, 'coco', _read_coco, False),
    'labelme': partial(_read_objects, 'labelme', _read_labelme, True),
    'yolo': partial(_read_objects, 'yolo', _read_yolo, False),
    'voc': partial(_read_objects, 'voc', _read_voc, True),
    'masks': _read_masks,
    'folders': _read_folders,
}
FORMATS = tuple(_READERS)
