"""A few pictures with known objects, written as labelling tools write them."""

import json
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
import yaml

CLASSES = ['cat', 'big dog']
COLOURS = {'cat': (250, 60, 60), 'big dog': (60, 60, 250)}
WIDTH, HEIGHT = 96, 64
#: By name of a picture its part and its objects: class, and corners of a polygon
PICTURES = {
    'a1': ('train', [('cat', [[8, 8], [40, 8], [24, 40]])]),
    'a2': ('train', [('big dog', [[50, 10], [90, 10], [90, 50], [70, 60]])]),
    'a3': (
        'train',
        [('cat', [[4, 4], [30, 10], [20, 30]]), ('big dog', [[40, 20], [80, 24], [60, 60]])],
    ),
    'a4': ('train', []),
    'b1': ('val', [('cat', [[10, 20], [60, 20], [30, 56]])]),
    'b2': ('val', [('big dog', [[30, 8], [70, 8], [70, 48], [50, 60]])]),
}


def draw(name: str) -> np.ndarray:
    """The picture, B, G, R."""
    dice = np.random.default_rng(sum(name.encode()))
    image = dice.integers(90, 160, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    for label, corners in PICTURES[name][1]:
        cv2.fillPoly(image, [np.array(corners)], COLOURS[label][::-1])
    return image


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def box(corners: list) -> list[float]:
    (x1, y1), (x2, y2) = np.min(corners, 0), np.max(corners, 0)
    return [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]


def write_coco(root: Path) -> Path:
    for split in ('train', 'val'):
        images, annotations = [], []
        for name, (part, objects) in PICTURES.items():
            if part == split:
                save(root / f'{split}2017' / f'{name}.jpg', draw(name))
                images.append(
                    dict(id=len(images) + 7, file_name=f'{name}.jpg', width=WIDTH, height=HEIGHT)
                )
                for label, corners in objects:
                    annotations.append(
                        dict(
                            id=len(annotations) + 1,
                            image_id=images[-1]['id'],
                            category_id=10 + 5 * CLASSES.index(label),
                            bbox=box(corners),
                            segmentation=[np.ravel(corners).tolist()],
                            area=1.0,
                            iscrowd=0,
                        )
                    )
        categories = [dict(id=10 + 5 * i, name=name) for i, name in enumerate(CLASSES)]
        path = root / 'annotations' / f'instances_{split}2017.json'
        path.parent.mkdir(exist_ok=True)
        content = dict(images=images, annotations=annotations, categories=categories)
        path.write_text(json.dumps(content))
    return root


def write_labelme(root: Path) -> Path:
    for name, (part, objects) in PICTURES.items():
        save(root / part / f'{name}.jpg', draw(name))
        shapes = [
            dict(label=label, points=corners, shape_type='polygon') for label, corners in objects
        ]
        if shapes:  # the tool writes no file for a picture without shapes
            (root / part / f'{name}.json').write_text(
                json.dumps(dict(shapes=shapes, imagePath=f'{name}.jpg', imageData=None))
            )
    return root


def write_yolo(root: Path) -> Path:
    for name, (part, objects) in PICTURES.items():
        save(root / part / 'images' / f'{name}.jpg', draw(name))
        lines = [
            ' '.join([str(CLASSES.index(label)), *map(str, np.ravel(np.divide(corners, (96, 64))))])
            for label, corners in objects
        ]
        text = root / part / 'labels' / f'{name}.txt'
        text.parent.mkdir(exist_ok=True)
        text.write_text('\n'.join(lines))
    content = dict(train='../train/images', val='../val/images', nc=2, names=CLASSES)
    (root / 'data.yaml').write_text(yaml.safe_dump(content))
    return root


def write_voc(root: Path) -> Path:
    parts: dict[str, list[str]] = {}
    for name, (part, objects) in PICTURES.items():
        save(root / 'JPEGImages' / f'{name}.jpg', draw(name))
        parts.setdefault(part, []).append(name)
        text = f'<annotation><filename>{name}.jpg</filename>'
        for label, corners in objects:
            x, y, w, h = box(corners)
            corner = dict(xmin=x + 1, ymin=y + 1, xmax=x + w, ymax=y + h)
            sides = ''.join(f'<{k}>{int(v)}</{k}>' for k, v in corner.items())
            text += f'<object><name>{escape(label)}</name><bndbox>{sides}</bndbox></object>'
        path = root / 'Annotations' / f'{name}.xml'
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'{text}</annotation>')
    for part, names in parts.items():
        path = root / 'ImageSets' / 'Main' / f'{part}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('\n'.join(names))
    return root


def label_map(name: str) -> np.ndarray:
    """0 where there is nothing, then the classes."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, corners in PICTURES[name][1]:
        cv2.fillPoly(labels, [np.array(corners)], 1 + CLASSES.index(label))
    return labels


def write_masks(root: Path, kind: str = 'index') -> Path:
    from PIL import Image

    for name, (part, _) in PICTURES.items():
        save(root / 'images' / part / f'{name}.jpg', draw(name))
        labels = label_map(name)
        path = root / 'masks' / part / f'{name}.png'
        if kind == 'index':
            save(path, labels)
        elif kind == 'binary':
            save(path, (labels > 0).astype(np.uint8) * 255)
        elif kind == 'colour':
            table = np.array([(0, 0, 0), *(COLOURS[label] for label in CLASSES)], np.uint8)
            save(path, table[labels][..., ::-1])
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(labels, 'P')
            image.putpalette([0, 0, 0, 250, 60, 60, 60, 60, 250])
            image.save(path)
    if kind != 'binary':
        (root / 'classes.txt').write_text('\n'.join(['ground', *CLASSES]))
    return root


def write_folders(root: Path) -> Path:
    for name, (part, objects) in PICTURES.items():
        if objects:
            save(root / part / objects[0][0] / f'{name}.jpg', draw(name))
    return root
