"""Layouts and habits of labelling tools that are easily misread."""

import base64
import json
import shutil

import cv2
import labelled_pictures as labelled
import numpy as np
import pytest

from mmffnet.errors import UsageError
from mmffnet.owndata.convert import paint_outlines, split_pictures, write_annotations
from mmffnet.owndata.finetune import finetune
from mmffnet.owndata.formats import read_own_data


def by_name(data):
    return {picture.path.name: picture for picture in data.pictures}


def labelme(path, shapes, **more):
    labelled.save(path.with_suffix('.jpg'), labelled.draw('a1'))
    content = dict(shapes=shapes, imagePath=f'{path.stem}.jpg', imageWidth=96, imageHeight=64)
    path.write_text(json.dumps(content | more))


def shape(label, points, kind='polygon', **more):
    return dict(label=label, points=points, shape_type=kind, **more)


TRIANGLE = [[4, 4], [20, 4], [4, 30]]


# pictures and masks


@pytest.mark.parametrize('name', ['masks/mask_{}.png', 'masks/{}.jpg.png', 'gt/{}_gt.png'])
def test_names_of_masks(tmp_path, name):
    for stem in ('1', 'photo.v2'):
        labelled.save(tmp_path / 'images' / f'{stem}.jpg', labelled.draw('a1'))
        labelled.save(tmp_path / name.format(stem), labelled.label_map('a1'))
    data = read_own_data(tmp_path)
    assert data.format == 'masks' and len(data.pictures) == 2


def test_a_mask_that_has_the_name_of_its_picture_as_it_is(tmp_path):
    labelled.save(tmp_path / 'images' / 'label_1.jpg', labelled.draw('a1'))
    labelled.save(tmp_path / 'masks' / 'label_1.png', labelled.label_map('a1'))
    assert len(read_own_data(tmp_path).pictures) == 1


def test_masks_that_fit_no_picture_are_no_classes(tmp_path):
    for stem in '12':
        labelled.save(tmp_path / 'images' / f'{stem}.jpg', labelled.draw('a1'))
        labelled.save(tmp_path / 'masks' / f'{stem}.jpg', labelled.draw('a2'))
    with pytest.raises(UsageError, match='images, masks look like pictures and masks'):
        read_own_data(tmp_path)
    assert read_own_data(tmp_path, 'folders').classes == ['images', 'masks']


def test_what_labelme2voc_writes(tmp_path):
    labelled.save(tmp_path / 'JPEGImages' / 'a.jpg', labelled.draw('a1'))
    for name in ('SegmentationClassPNG', 'SegmentationObjectPNG'):
        labelled.save(tmp_path / name / 'a.png', labelled.label_map('a1'))
    labelled.save(tmp_path / 'SegmentationClassVisualization' / 'a.jpg', labelled.draw('a2'))
    names = '_background_\ncat\nbig dog\n'
    (tmp_path / 'class_names.txt').write_text(names)
    (tmp_path / 'labels.txt').write_text(f'__ignore__\n{names}')  # what it was told
    data = read_own_data(tmp_path)
    assert (data.format, len(data.pictures), len(data.remarks)) == ('masks', 1, 1)
    assert data.remarks[0].endswith('0 = _background_, 1 = cat, 2 = big dog')


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        (
            'labelmap.txt',
            '# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,0,0::\ndog:0,250,0::\n',
        ),
        ('train/_classes.csv', 'Pixel Value, Class\n0, background\n1, cat\n2, dog\n'),
    ],
)
def test_lists_of_colours_and_values(tmp_path, name, text):
    values = np.zeros((64, 96), np.uint8)
    values[:30], values[30:40] = 1, 2  # the order of the colours is another than that of the list
    colours = np.array([[0, 0, 0], [0, 0, 250], [0, 250, 0]])
    mask = values if name.endswith('csv') else colours[values]
    labelled.save(tmp_path / 'train' / 'images' / 'a.jpg', labelled.draw('a1'))
    labelled.save(tmp_path / 'train' / 'masks' / 'a.png', mask.astype(np.uint8))
    (tmp_path / name).write_text(text)
    data = read_own_data(tmp_path)
    assert data.classes == ['background', 'cat', 'dog']
    assert [data.classes[data.values[value]] for value in data.values] == data.classes
    counts = [thing['category'] for thing in data.pictures[0].objects]
    assert counts == data.classes


def test_shades_of_masks(tmp_path):
    mask = np.zeros((64, 96), np.uint8)
    mask[:20], mask[20:40] = 128, 255
    labelled.save(tmp_path / 'images' / 'a.jpg', labelled.draw('a1'))
    labelled.save(tmp_path / 'masks' / 'a.png', mask)
    data = read_own_data(tmp_path)
    assert data.classes == ['#000000', '#808080', '#ffffff']
    assert data.values == {0: 0, 128: 1, 255: 2}
    assert any('are classes in this order' in text for text in data.remarks)


# YOLO


@pytest.mark.parametrize('place', ['labels', 'images'])
def test_labelimg_writes_the_classes_beside_the_labels(tmp_path, place):
    root = tmp_path / 'images' / 'photos'  # a folder of that name above is not theirs
    for name in ('a', 'b', 'c'):
        labelled.save(root / 'images' / f'{name}.jpg', labelled.draw('a1'))
    (root / place).mkdir(exist_ok=True)
    for name in ('a', 'b'):
        (root / place / f'{name}.txt').write_text('1 0.5 0.5 0.2 0.2\n')
    (root / place / 'classes.txt').write_text('1 euro\n2 euro\n50 cent\n')
    data = read_own_data(root)
    assert (data.format, data.classes) == ('yolo', ['1 euro', '2 euro', '50 cent'])
    found = {name: picture.classes for name, picture in by_name(data).items()}
    assert found == {'a.jpg': ['2 euro'], 'b.jpg': ['2 euro'], 'c.jpg': []}


def test_lists_that_cvat_writes(tmp_path):
    for name in ('a', 'b', 'c'):
        labelled.save(tmp_path / 'obj_train_data' / f'{name}.jpg', labelled.draw('a1'))
        (tmp_path / 'obj_train_data' / f'{name}.txt').write_text('0 0.5 0.5 0.2 0.2\n')
    (tmp_path / 'obj.names').write_text('cat\n')
    lines = ['data\\obj_train_data\\a.jpg', 'data/obj_train_data/lost.jpg']
    (tmp_path / 'train.txt').write_text('\n'.join(lines))
    (tmp_path / 'valid.txt').write_text('data/obj_train_data/b.jpg\n')
    data = read_own_data(tmp_path)
    splits = {name: picture.split for name, picture in by_name(data).items()}
    assert splits == {'a.jpg': 'train', 'b.jpg': 'val'}
    assert all(picture.classes == ['cat'] for picture in data.pictures)
    assert any('lost.jpg' in text for text in data.remarks)


def test_bare_names_in_lists(tmp_path):
    for split in ('train', 'valid'):
        labelled.save(tmp_path / split / '1.jpg', labelled.draw('a1'))
        (tmp_path / split / '1.txt').write_text('0 0.5 0.5 0.2 0.2\n')
        (tmp_path / f'{split}.txt').write_text('1.jpg\n')
    (tmp_path / 'obj.names').write_text('cat\n')
    found = {p.path.parent.name: (p.split, p.classes) for p in read_own_data(tmp_path).pictures}
    assert found == {'train': ('train', ['cat']), 'valid': ('val', ['cat'])}


def test_lists_of_classes_that_differ(tmp_path):
    for split, names in (('train', 'cat\ndog\n'), ('val', 'dog\ncat\n')):
        labelled.save(tmp_path / split / '1.jpg', labelled.draw('a1'))
        (tmp_path / split / '1.txt').write_text('0 0.5 0.5 0.2 0.2\n')
        (tmp_path / split / 'classes.txt').write_text(names)
    with pytest.raises(UsageError, match='the lists of classes beside the labels differ'):
        read_own_data(tmp_path)


@pytest.mark.parametrize(
    ('names', 'classes'),
    [
        (
            "{'10': k, '0': a, '1': b, '2': c, '3': d, '4': e, '5': f, '6': g, '7': h, "
            "'8': i, '9': j}",
            11,
        ),
        ('{1: cat, 2: dog}', None),
        ('', None),
    ],
)
def test_names_of_yolo_count_from_0(tmp_path, names, classes):
    root = labelled.write_yolo(tmp_path)
    (root / 'data.yaml').write_text(f'train: train/images\nval: val/images\nnames: {names}\n')
    if classes:
        assert read_own_data(root).classes == list('abcdefghijk')
    else:
        with pytest.raises(UsageError, match=r'data\.yaml .* must count from 0'):
            read_own_data(root)


# LabelMe and its relatives


def test_few_objects_without_an_outline(tmp_path):
    for i in range(10):
        labelme(tmp_path / f'{i}.json', [shape('cat', TRIANGLE)])
    labelme(tmp_path / '10.json', [shape('cat', [[5, 6], [15, 26]], 'rectangle')])
    data = read_own_data(tmp_path)
    assert data.task == 'instance'
    assert '1 objects have no outline, and get that of their box' in data.remarks
    (thing,) = by_name(data)['10.jpg'].objects
    assert thing['segmentation'] == [[5, 6, 15, 6, 15, 26, 5, 26]]


def test_parts_pixels_and_kinds_of_shapes(tmp_path):
    pixels = np.zeros((6, 5), np.uint8)
    pixels[2:, 1:] = 255
    drawn = base64.b64encode(cv2.imencode('.png', pixels)[1].tobytes()).decode()
    shapes = [
        shape('cat', TRIANGLE, group_id=1),
        shape('cat', [[40, 4], [60, 4], [40, 30]], None, group_id=1),
        shape('dog', [[10, 20], [14, 25]], 'mask', mask=drawn),
        shape('dog', [[0, 0], [9, 0], [9, 9], [0, 9]], 'rotation'),
        shape('dog', [[0, 0], [9, 9]], 'line'),
        shape('dog', [[0, 0]], 'point'),
    ]
    labelme(tmp_path / 'a.json', shapes)
    data = read_own_data(tmp_path)
    first, mask, turned = data.pictures[0].objects
    assert first['bbox'] == [4, 4, 56, 26] and len(first['segmentation']) == 2
    assert mask['bbox'] == [11, 22, 4, 4] and mask['segmentation']['size'] == [64, 96]
    assert turned['bbox'] == [0, 0, 9, 9] and data.task == 'instance'
    assert [text.split(' are left')[0] for text in data.remarks] == [
        'shapes of the kind line',
        'shapes of the kind point',
    ]


def test_outlines_as_classes_of_pixels(tmp_path):
    """The masks of the same pictures, made by another way."""
    data = read_own_data(labelled.write_labelme(tmp_path / 'data'))
    split_pictures(data)
    data.task = 'seg'
    paint_outlines(data, tmp_path / 'masks')
    write_annotations(data, tmp_path / 'out')
    assert data.classes == ['background', 'big dog', 'cat']
    for path in (tmp_path / 'data').rglob('*.jpg'):
        name = path.relative_to(tmp_path / 'data').as_posix()
        mask = cv2.imread(str(tmp_path / 'out/annotations/masks' / f'{name}.png'), -1)
        expected = np.array([0, 2, 1])[labelled.label_map(path.stem)]
        assert (mask == expected).mean() > 0.98  # the edges differ


def test_outlines_as_classes_of_pixels_in_tiles(tmp_path):
    """What a tile sees of a large object is of its class, however little that is."""
    root, out = tmp_path / 'data', tmp_path / 'out'
    for i in range(4):
        road = shape('road', [[0, 0], [383, 0], [383, 255]])
        labelme(root / f'{i}.json', [road], imageWidth=384, imageHeight=256)
        labelled.save(root / f'{i}.jpg', cv2.resize(labelled.draw('a1'), (384, 256)))
    finetune(
        str(root), str(out), task='seg', tiles=64, size=64, dry_run=True, say=lambda text: None
    )
    seen = [cv2.imread(str(path), -1) for path in (out / 'annotations' / 'masks').rglob('*.png')]
    assert {mask.shape for mask in seen} == {(64, 64)}
    assert sum(mask.mean() == 1 for mask in seen) > 20  # a twentieth of the road's box
    (whole,) = {cv2.imread(str(path), -1).sum() for path in (out / 'masks').glob('*.png')}
    assert whole == pytest.approx(384 * 256 / 2, rel=0.02)


def test_outlines_without_objects(tmp_path):
    root = labelled.write_labelme(tmp_path / 'data')
    for path in (root / 'val').glob('*.json'):
        path.unlink()
    said = []
    with pytest.raises(UsageError, match='nothing is labelled in the pictures for validation'):
        finetune(str(root), str(tmp_path / 'out'), task='seg', say=said.append)
    assert any('have no objects' in text for text in said)


def test_pixels_for_another_size(tmp_path):
    pixels = base64.b64encode(cv2.imencode('.png', np.full((6, 5), 255, np.uint8))[1].tobytes())
    root = tmp_path / 'data'
    for i in range(4):
        mask = shape('cat', [[1, 2], [5, 7]], 'mask', mask=pixels.decode())
        labelme(root / f'{i}.json', [mask], imageWidth=64, imageHeight=96)
    with pytest.raises(UsageError, match='masks have another size than their pictures'):
        finetune(str(root), str(tmp_path / 'out'), say=lambda text: None)


# pictures of one name


def coco(path, names):
    images = [dict(id=i, file_name=name, width=96, height=64) for i, name in enumerate(names)]
    labels = [
        dict(id=i, image_id=i, category_id=1, bbox=[i, 0, 10, 10], area=100, iscrowd=0)
        for i, _ in enumerate(names)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [dict(id=1, name='cat')]
    path.write_text(json.dumps(dict(images=images, annotations=labels, categories=categories)))


def test_paths_of_pictures_count_from_their_end(tmp_path):
    for scene in ('scene1', 'scene2'):
        labelled.save(tmp_path / 'images' / scene / '1.jpg', labelled.draw('a1'))
    coco(tmp_path / 'annotations' / 'all.json', ['scene1/1.jpg', 'scene2/1.jpg'])
    found = {p.path.parent.name: p.objects[0]['bbox'][0] for p in read_own_data(tmp_path).pictures}
    assert found == {'scene1': 0, 'scene2': 1}
    shutil.rmtree(tmp_path / 'images' / 'scene1')  # its labels are not for the other
    data = read_own_data(tmp_path)
    assert [p.objects[0]['bbox'][0] for p in data.pictures] == [1]
    assert data.remarks == [
        'labels are for pictures that are not there (1): scene1/1.jpg (all.json)'
    ]


def test_a_file_of_all_beside_those_of_the_parts(tmp_path):
    for name in 'ab':
        labelled.save(tmp_path / f'{name}.jpg', labelled.draw('a1'))
    coco(tmp_path / 'annotations.json', ['a.jpg', 'b.jpg'])
    coco(tmp_path / 'train.json', ['a.jpg'])
    coco(tmp_path / 'val.json', ['b.jpg'])
    splits = {name: picture.split for name, picture in by_name(read_own_data(tmp_path)).items()}
    assert splits == {'a.jpg': 'train', 'b.jpg': 'val'}


def test_a_file_beside_its_picture_is_for_that(tmp_path):
    """Renumbered after they were labelled: what the file says is another picture now."""
    for name, said, label in (('a6', 'a7', 'cat'), ('a7', 'a8', 'dog')):
        path = tmp_path / 'labelme' / f'{name}.json'
        path.parent.mkdir(exist_ok=True)
        labelme(path, [shape(label, TRIANGLE)], imagePath=f'{said}.jpg')
    data = read_own_data(tmp_path / 'labelme')
    assert {n: p.classes for n, p in by_name(data).items()} == {
        'a6.jpg': ['cat'],
        'a7.jpg': ['dog'],
    }
    shutil.rmtree(tmp_path / 'labelme')
    text = '<annotation><filename>{}.jpg</filename><object><name>{}</name>{}</object></annotation>'
    box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>'
    for name, said, label in (('6', '7', 'cat'), ('7', '8', 'dog')):
        labelled.save(tmp_path / f'{name}.jpg', labelled.draw('a1'))
        (tmp_path / f'{name}.xml').write_text(text.format(said, label, box))
    found = {name: picture.classes for name, picture in by_name(read_own_data(tmp_path)).items()}
    assert found == {'6.jpg': ['cat'], '7.jpg': ['dog']}


def test_labels_of_one_part_are_not_for_pictures_of_the_other(tmp_path):
    for name in ('train/2.jpg', 'val/1.jpg'):
        labelled.save(tmp_path / name, labelled.draw('a1'))
    coco(tmp_path / 'annotations' / 'train.json', ['1.jpg', '2.jpg'])  # the first is lost
    coco(tmp_path / 'annotations' / 'val.json', ['1.jpg'])
    data = read_own_data(tmp_path)
    assert {name: picture.split for name, picture in by_name(data).items()} == {
        '1.jpg': 'val',
        '2.jpg': 'train',
    }
    assert [text.split(' that ')[1] for text in data.remarks] == [
        'are not there (1): 1.jpg (train.json)'
    ]


def test_drawn_labels_are_no_pictures_of_nothing(tmp_path):
    root = labelled.write_labelme(tmp_path)
    shutil.copytree(root / 'train', root / 'drawn', ignore=shutil.ignore_patterns('*.json'))
    labelled.save(root / 'negatives' / 'n.jpg', labelled.draw('a4'))
    data = read_own_data(root)
    folders = {picture.path.parent.name for picture in data.pictures}
    assert folders == {'train', 'val', 'negatives'}
    assert any('left out (4): a1.jpg' in text for text in data.remarks)


def test_text_in_another_encoding(tmp_path):
    root = labelled.write_masks(tmp_path)
    (root / 'classes.txt').write_bytes('Größe\n'.encode('cp1252'))
    with pytest.raises(UsageError, match=r'classes\.txt cannot be read as text in UTF-8'):
        read_own_data(root)


def test_what_cannot_be_read_beside_what_can_is_said(tmp_path):
    root = labelled.write_labelme(tmp_path)
    (root / 'data.yaml').write_text('train: elsewhere\nnames: [cat]\n')
    data = read_own_data(root)
    assert data.format == 'labelme'
    assert any('data.yaml: no pictures are where train' in text for text in data.remarks)


def test_one_format_does_not_hide_another(tmp_path):
    for folder in ('mask', 'no_mask'):  # classes of faces
        for number in range(3):
            picture = np.random.default_rng(number).integers(0, 255, (32, 32, 3)).astype(np.uint8)
            labelled.save(tmp_path / folder / f'{number}.png', picture)
    with pytest.raises(UsageError, match='--format folders'):
        read_own_data(tmp_path)
    assert read_own_data(tmp_path, 'folders').classes == ['mask', 'no_mask']
