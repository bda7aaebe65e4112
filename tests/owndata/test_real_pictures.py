"""Photographs with labels, converted from one format to the others, give the same training set."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mmffnet.owndata.convert import split_pictures, write_annotations
from mmffnet.owndata.formats import read_own_data

FRUIT = ('mixed_1', 'mixed_2', 'mixed_3', 'apple_1', 'banana_1', 'orange_1', 'orange_2', 'apple_2')


@pytest.fixture(scope='module')
def photographs():
    folder = Path(os.environ.get('MMFFNET_TEST_DATA', '')) / 'data'
    if not (folder / 'fruit').is_dir():
        pytest.skip('MMFFNET_TEST_DATA is not set, or holds no photographs')
    return folder


def training_set(data, out):
    """For each picture its part, and the labels and boxes of its objects."""
    split_pictures(data)
    found = {}
    for split, path in write_annotations(data, out).items():
        content = json.loads(Path(path).read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        of_image = {image['id']: Path(image['file_name']).stem for image in content['images']}
        found |= {name: (split, []) for name in of_image.values()}
        for one in content['annotations']:
            thing = (names[one['category_id']], one['bbox'], one.get('segmentation'), one['area'])
            found[of_image[one['image_id']]][1].append(thing)
    return found


def write(data, format, root):
    """The pictures and labels of some data in another format."""
    lists = {}
    images, annotations = [], []
    for picture in data.pictures:
        width, height = picture.size
        path = root / 'images' / picture.split / picture.path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture.path, path)
        lists.setdefault(picture.split, []).append(path.stem)
        lines, things = [], ''
        if format == 'coco':
            name = path.relative_to(root / 'images').as_posix()
            images.append(dict(id=len(images), file_name=name, width=width, height=height))
        for thing in picture.objects:
            label = data.classes.index(thing['category'])
            x, y, w, h = thing['bbox']
            if format == 'coco':
                ids = dict(id=len(annotations), image_id=len(images) - 1, category_id=label)
                annotations.append(thing | ids)
            elif format == 'yolo':
                numbers = np.divide([x + w / 2, y + h / 2, w, h], [width, height, width, height])
                if data.task == 'instance':
                    corners = np.reshape(thing['segmentation'][0], (-1, 2))
                    numbers = (corners / (width, height)).ravel()
                lines.append(' '.join(map(str, [label, *numbers])))
            else:
                corners = dict(xmin=x + 1, ymin=y + 1, xmax=x + w, ymax=y + h)
                sides = ''.join(f'<{side}>{value}</{side}>' for side, value in corners.items())
                name = f'<name>{thing["category"]}</name>'
                things += f'<object>{name}<bndbox>{sides}</bndbox></object>'
        if format == 'yolo':
            text = root / 'labels' / picture.split / f'{path.stem}.txt'
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text('\n'.join(lines))
        elif format == 'voc':
            text = root / 'Annotations' / f'{path.stem}.xml'
            text.parent.mkdir(exist_ok=True)
            text.write_text(f'<annotation><filename>{path.name}</filename>{things}</annotation>')
    if format == 'coco':
        categories = [dict(id=i, name=name) for i, name in enumerate(data.classes)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / 'labels.json').write_text(json.dumps(content))
    elif format == 'yolo':
        paths = {split: f'images/{split}' for split in lists}
        (root / 'data.yaml').write_text(yaml.safe_dump(dict(names=data.classes, **paths)))
    return root


def compare(found, expected, outlines):
    assert found.keys() == expected.keys()
    for name, (split, objects) in expected.items():
        assert found[name][0] == split
        assert len(found[name][1]) == len(objects)
        for one, other in zip(found[name][1], objects, strict=True):
            assert one[0] == other[0]
            assert one[1] == pytest.approx(other[1], abs=2e-3)
            if outlines:
                assert np.ravel(one[2]) == pytest.approx(np.ravel(other[2]), abs=1e-6)
                assert one[3] == pytest.approx(other[3], rel=0.01, abs=2)


@pytest.fixture(scope='module')
def fruit(photographs, tmp_path_factory):
    root = tmp_path_factory.mktemp('fruit')
    for path in (photographs / 'fruit').rglob('*.json'):
        if path.stem in FRUIT or path.stem in ('mixed_21', 'apple_77'):
            target = root / path.parent.name
            target.mkdir(exist_ok=True)
            shutil.copy(path, target)
            shutil.copy(path.with_suffix('.jpg'), target)
    data = read_own_data(root)
    assert (data.format, data.task) == ('labelme', 'det')  # outlines that are boxes
    assert data.classes == ['apple', 'banana', 'orange']
    return data


@pytest.mark.parametrize('format', ['coco', 'yolo', 'voc'])
def test_boxes(fruit, format, tmp_path):
    expected = training_set(fruit, tmp_path / 'a')
    data = read_own_data(write(fruit, format, tmp_path / 'data'))
    assert (data.format, data.task, data.classes) == (format, 'det', fruit.classes)
    compare(training_set(data, tmp_path / 'b'), expected, outlines=False)


@pytest.mark.parametrize('format', ['coco', 'yolo'])
def test_outlines(photographs, format, tmp_path):
    data = read_own_data(photographs / 'tiny_coco')
    assert (data.format, data.task, len(data.classes)) == ('coco', 'instance', 80)
    data.pictures = data.part('train')[:10] + data.part('val')[:4]
    for picture in data.pictures:  # the others cannot be written in YOLO's format
        picture.objects = [
            thing
            for thing in picture.objects
            if not thing['iscrowd'] and len(thing['segmentation']) == 1
        ]
        for thing in picture.objects:  # COCO rounds its boxes
            corners = np.reshape(thing['segmentation'][0], (-1, 2))
            thing['bbox'] = [*corners.min(0).tolist(), *np.ptp(corners, 0).tolist()]
    expected = training_set(data, tmp_path / 'a')
    again = read_own_data(write(data, format, tmp_path / 'data'))
    assert (again.format, again.task, again.classes) == (format, 'instance', data.classes)
    compare(training_set(again, tmp_path / 'b'), expected, outlines=True)


@pytest.mark.parametrize('kind', ['index', 'palette', 'colours'])
@pytest.mark.slow
def test_masks(photographs, kind, tmp_path):
    root = tmp_path / 'ade'
    shutil.copytree(photographs / 'ade_sample' / 'images', root / 'images')
    lines = (photographs / 'ade_sample' / 'objectInfo150.txt').read_text().splitlines()[1:]
    names = {int(line.split('\t')[0]): line.split('\t')[-1] for line in lines}
    numbers = np.random.default_rng(0).permutation(256**3)[:256]
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 256**2], axis=1)
    (root / 'masks').mkdir()
    for path in (photographs / 'ade_sample' / 'annotations').glob('*.png'):
        labels = np.asarray(Image.open(path))
        image = Image.fromarray(labels)
        if kind == 'palette':
            image.putpalette(colours.astype(np.uint8).tobytes())
        elif kind == 'colours':
            image = Image.fromarray(colours.astype(np.uint8)[labels])
        image.save(root / 'masks' / path.name)
    if kind != 'colours':
        text = '\n'.join(f'{number}\t{name}' for number, name in names.items())
        (root / 'classes.txt').write_text(text)
    data = read_own_data(root)
    assert (data.format, data.task) == ('masks', 'seg')
    split_pictures(data)
    assert {len(data.part('train')), len(data.part('val'))} == {1, 2}
    files = write_annotations(data, tmp_path / 'out')
    for path in (photographs / 'ade_sample' / 'annotations').glob('*.png'):
        expected = np.asarray(Image.open(path))
        (mask,) = Path(files['train']).parent.rglob(f'{path.stem}.jpg.png')
        written = np.asarray(Image.open(mask))
        if kind == 'colours':  # each number has a class of its own
            pairs = np.unique(np.stack([expected.ravel(), written.ravel()]), axis=1).T
            assert len(pairs) == len(np.unique(expected)) == len(np.unique(written))
        else:
            assert data.classes[0] == 'wall' and len(data.classes) == 150
            np.testing.assert_array_equal(written, expected - 1)  # 0, not labelled, becomes 255
