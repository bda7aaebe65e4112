"""The same pictures in all formats give the same training set; what is wrong is said."""

import json
import shutil
from pathlib import Path

import cv2
import labelled_pictures as labelled
import numpy as np
import pytest
from PIL import Image

from mmffnet.errors import UsageError
from mmffnet.owndata.convert import split_pictures, write_annotations
from mmffnet.owndata.formats import index_mask, read_mask, read_own_data

DETECTION = {
    'coco': labelled.write_coco,
    'labelme': labelled.write_labelme,
    'yolo': labelled.write_yolo,
    'voc': labelled.write_voc,
}


def training_set(root, out):
    """By the names of pictures, the objects of what is written for the packages."""
    data = read_own_data(root)
    split_pictures(data)
    found = {}
    for split, path in write_annotations(data, out).items():
        content = json.loads(Path(path).read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        for image in content['images']:
            assert (image['width'], image['height']) == (labelled.WIDTH, labelled.HEIGHT)
            assert (data.root / image['file_name']).is_file()
            found[Path(image['file_name']).stem] = (
                split,
                [
                    (names[a['category_id']], a['bbox'], a.get('segmentation'), a['area'])
                    for a in content['annotations']
                    if a['image_id'] == image['id']
                ],
            )
    return data, found


@pytest.mark.parametrize('format', DETECTION)
def test_detection_formats_agree(tmp_path, format):
    data, found = training_set(DETECTION[format](tmp_path / 'data'), tmp_path / 'out')
    assert (data.format, data.task) == (format, 'det' if format == 'voc' else 'instance')
    assert sorted(data.classes) == sorted(labelled.CLASSES)
    assert set(found) == set(labelled.PICTURES)
    for name, (split, objects) in labelled.PICTURES.items():
        assert found[name][0] == split
        assert len(found[name][1]) == len(objects)
        for (label, corners), (label_, box, outline, area) in zip(
            objects, found[name][1], strict=True
        ):
            assert label_ == label
            assert box == pytest.approx(labelled.box(corners), abs=2e-3)
            if format != 'voc':
                assert np.ravel(outline) == pytest.approx(np.ravel(corners), abs=1e-6)
                x, y = np.transpose(corners)
                exact = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
                assert area == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize('kind', ['index', 'palette', 'colour', 'binary'])
def test_kinds_of_masks_agree(tmp_path, kind):
    data = read_own_data(labelled.write_masks(tmp_path / 'data', kind))
    assert (data.format, data.task) == ('masks', 'seg')
    if kind == 'binary':
        assert data.classes == ['background', 'foreground']
    else:
        assert len(data.classes) == 3
    split_pictures(data)
    files = write_annotations(data, tmp_path / 'out')
    for split, path in files.items():
        for line in Path(path).read_text().splitlines():
            name = Path(line).stem
            assert labelled.PICTURES[name][0] == split
            expected = labelled.label_map(name)
            if kind == 'binary':
                expected = (expected > 0).astype(np.uint8)
            if kind == 'colour':  # in the order of their numbers
                expected = np.array([0, 2, 1], np.uint8)[expected]
            written = np.asarray(Image.open(Path(path).parent / 'masks' / f'{line}.png'))
            np.testing.assert_array_equal(written, expected)


def test_folders(tmp_path):
    data = read_own_data(labelled.write_folders(tmp_path / 'data'))
    assert (data.format, data.task) == ('folders', 'cls')
    assert data.classes == ['big dog', 'cat']
    split_pictures(data)
    files = write_annotations(data, tmp_path / 'out')
    lines = Path(files['train']).read_text().splitlines()
    assert sorted(lines) == ['train/big dog/a2.jpg 0', 'train/cat/a1.jpg 1', 'train/cat/a3.jpg 1']


def test_numbers_of_masks_that_count_from_one(tmp_path):
    root = labelled.write_masks(tmp_path / 'data')
    (root / 'classes.txt').write_text('cat\nbig dog\n')
    data = read_own_data(root)
    assert data.values == {1: 0, 2: 1}
    assert any('not labelled' in remark for remark in data.remarks)
    mask = index_mask(read_mask(root / 'masks' / 'train' / 'a1.png'), data.values)
    assert set(np.unique(mask)) == {0, 255}
    (root / 'classes.txt').write_text('cat\n')
    with pytest.raises(UsageError, match='the values 1, 2, which are none of the 1 classes'):
        read_own_data(root)


def test_labelme_shapes(tmp_path):
    root = labelled.write_labelme(tmp_path)
    shapes = [
        dict(label='cat', points=[[30, 40], [10, 20]], shape_type='rectangle'),
        dict(label='cat', points=[[2, 3], [8, 3], [8, 7], [2, 7]], shape_type='rectangle'),
        dict(label='cat', points=[[40, 30], [50, 30]], shape_type='circle'),
        dict(label='cat', points=[[4, 4], [5, 5]], shape_type='line'),
    ]
    (root / 'train' / 'a1.json').write_text(json.dumps(dict(shapes=shapes, imagePath='a1.jpg')))
    data = read_own_data(root)
    (picture,) = [p for p in data.pictures if p.path.stem == 'a1']
    assert [thing['bbox'] for thing in picture.objects] == [
        [10, 20, 20, 20],
        [2, 3, 6, 4],
        pytest.approx([30, 20, 20, 20], abs=0.1),
    ]
    assert data.task == 'det'  # the rectangle has no outline
    assert any('line' in remark for remark in data.remarks)


def test_a_rotated_picture_has_the_size_that_is_shown(tmp_path):
    root = labelled.write_labelme(tmp_path)
    path = root / 'train' / 'a1.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    data = read_own_data(root)
    (picture,) = [p for p in data.pictures if p.path == path]
    assert picture.size == (labelled.HEIGHT, labelled.WIDTH)
    assert cv2.imread(str(path)).shape[:2] == picture.size[::-1]  # as it is loaded


def test_names_of_all_kinds(tmp_path):
    root = labelled.write_labelme(tmp_path / 'dätä with spaces')
    target = root / 'train' / f'{"ü" * 100}.jpg'
    shutil.move(root / 'train' / 'a1.jpg', target)
    label = root / 'train' / 'a1.json'
    label.write_text(label.read_text().replace('a1.jpg', target.name))
    outside = labelled.save(tmp_path / 'elsewhere.jpg', labelled.draw('a2'))
    (root / 'train' / 'a2.jpg').unlink()
    (root / 'train' / 'a2.jpg').symlink_to(outside)
    _, found = training_set(root, tmp_path / 'out')
    assert found[target.stem][1] and found['a2'][1]


def test_links_to_folders(tmp_path):
    root = labelled.write_labelme(tmp_path / 'data')
    shutil.move(root / 'train', tmp_path / 'elsewhere')
    (root / 'train').symlink_to(tmp_path / 'elsewhere')
    (root / 'val' / 'round').symlink_to(root)  # leads back
    (root / 'val' / '._b1.jpg').write_bytes(b'what macOS leaves')
    _, found = training_set(root, tmp_path / 'out')
    assert {name: len(objects) for name, (_, objects) in found.items()} == {
        name: len(objects) for name, (_, objects) in labelled.PICTURES.items()
    }


def test_what_coco_files_may_hold(tmp_path):
    root = labelled.write_coco(tmp_path)
    path = root / 'annotations' / 'instances_val2017.json'
    content = json.loads(path.read_text())
    first, second = content['annotations']
    first['segmentation'] = [[1, 1, 2, 2], *first['segmentation']]  # a line is no outline
    second['segmentation'] = []
    path.write_text(json.dumps(content))
    # the same pictures once more, as in the files of key points
    shutil.copy(path, path.with_name('keypoints_val2017.json'))
    data = read_own_data(root)
    assert data.task == 'det'
    assert any('1 of 6 objects have no outline' in remark for remark in data.remarks)
    assert any('already (2)' in remark for remark in data.remarks)
    objects = {p.path.stem: p.objects for p in data.pictures}
    assert len(objects['b1']) == len(objects['b2']) == 1
    assert len(objects['b1'][0]['segmentation']) == 1 and 'segmentation' not in objects['b2'][0]


def test_labels_that_lie_apart(tmp_path):
    """Pictures in one folder, labels in another, and names in the labels that are not theirs."""
    root = labelled.write_labelme(tmp_path)
    for path in [*(root / 'train').glob('*.json')]:
        target = root / 'json' / 'train' / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text().replace('.jpg"', '.bmp"'))
        path.unlink()
    data, found = training_set(root, tmp_path / 'out')
    assert data.remarks == []
    assert [len(found[name][1]) for name in ('a1', 'a2', 'a3', 'a4')] == [1, 1, 2, 0]


def test_lists_of_pictures_and_absolute_paths_in_yolo(tmp_path):
    root = labelled.write_yolo(tmp_path / 'data')
    lines = [f'./train/images/{name}.jpg' for name in ('a1', 'a2', 'a3')]
    (root / 'train.txt').write_text('\n'.join(lines))
    (root / 'data.yaml').write_text(
        f'path: {root}\ntrain: train.txt\nval: {root}/val/images\nnames: {{1: big dog, 0: cat}}'
    )
    data, found = training_set(root, tmp_path / 'out')
    assert data.classes == labelled.CLASSES
    assert {name for name, (split, _) in found.items() if split == 'train'} == {'a1', 'a2', 'a3'}
    assert found['a3'][1][1][0] == 'big dog'


def test_yolo_by_a_list_of_classes(tmp_path):
    """As Label Studio writes it: there is no data.yaml."""
    root = labelled.write_yolo(tmp_path / 'data')
    data, expected = training_set(root, tmp_path / 'a')
    (root / 'data.yaml').unlink()
    (root / 'classes.txt').write_text('cat\nbig dog\n')
    again, found = training_set(root, tmp_path / 'b')
    assert (again.format, again.classes) == ('yolo', data.classes)
    labels = sorted(path.stem for path in root.rglob('labels/*.txt'))
    assert sorted(found) == labels
    assert [found[name] for name in labels] == [expected[name] for name in labels]


def test_other_files_that_have_nothing_to_do_with_it(tmp_path):
    root = labelled.write_voc(tmp_path)
    (root / 'deploy.yml').write_text('names: [server, client]\nreplicas: 2\n')
    (root / 'annotations.xml').write_text('<annotations><version>1.1</version></annotations>')
    data = read_own_data(root)
    assert data.format == 'voc' and data.remarks == []


def test_voc_with_its_masks(tmp_path):
    root = labelled.write_voc(tmp_path)
    for name in labelled.PICTURES:
        labelled.save(root / 'SegmentationClass' / f'{name}.png', labelled.label_map(name))
    with pytest.raises(UsageError, match='voc and masks'):
        read_own_data(root)
    assert len(read_own_data(root, 'voc').pictures) == len(labelled.PICTURES)
    assert len(read_own_data(root, 'masks').pictures) == len(labelled.PICTURES)


def test_numbers_of_classes_of_masks(tmp_path):
    root = labelled.write_masks(tmp_path)
    (root / 'classes.txt').write_text('2: big dog\n1: cat\n7: wolf')
    data = read_own_data(root)
    assert data.classes == ['big dog', 'cat', 'wolf'] and data.values == {2: 0, 1: 1, 7: 2}
    (root / 'masks' / 'train' / 'a1.png').write_bytes(b'no picture')
    with pytest.raises(UsageError, match=r'a1\.png'):
        read_own_data(root)


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match='does not exist'):
        read_own_data(tmp_path / 'none')
    with pytest.raises(UsageError, match='holds no pictures'):
        read_own_data(tmp_path)
    (tmp_path / 'data.yaml').touch()
    with pytest.raises(UsageError, match=r"data\.yaml' is a file: give the folder"):
        read_own_data(tmp_path / 'data.yaml')
    labelled.save(tmp_path / 'a.jpg', labelled.draw('a1'))
    with pytest.raises(UsageError, match='no labels'):
        read_own_data(tmp_path)
    with pytest.raises(UsageError, match='looked for yolo'):
        read_own_data(tmp_path, 'yolo')


def test_two_formats_at_once(tmp_path):
    labelled.write_labelme(labelled.write_yolo(tmp_path))
    with pytest.raises(UsageError, match='labelme and yolo: say which with --format'):
        read_own_data(tmp_path)
    assert read_own_data(tmp_path, 'yolo').format == 'yolo'


@pytest.mark.parametrize(
    ('format', 'name', 'text', 'problem'),
    [
        ('coco', 'annotations/instances_val2017.json', '{"images": [1', r'val2017\.json'),
        (
            'coco',
            'annotations/instances_val2017.json',
            '{"images": [{"id": 1}], "annotations": [], "categories": []}',
            r"val2017\.json.*'file_name'",
        ),
        (
            'coco',
            'annotations/instances_val2017.json',
            '{"images": [{"id": 1, "file_name": "b1.jpg"}], '
            '"categories": [{"id": 1, "name": "a"}], '
            '"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], '
            '"segmentation": [[1, 1, 9, 1, 9, 9, 1]]}]}',
            r'val2017\.json.*outline of a',
        ),
        *(
            (
                'coco',
                'annotations/instances_val2017.json',
                '{"images": [{"id": 1, "file_name": "b1.jpg"}], '
                '"categories": [{"id": 1, "name": "a"}], '
                '"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], '
                f'"segmentation": {outline}}}]}}',
                r'val2017\.json',
            )
            for outline in ('{"counts": "x"}', '[[1, 1, 9, null, 9, 9]]', '[[1, 1, 9, "a", 9, 9]]')
        ),
        ('labelme', 'train/a1.json', '{"shapes": [{}], "imagePath": "a1.jpg"}', r'a1\.json.*label'),
        ('yolo', 'train/labels/a1.txt', '0 0.5 0.5 0.1', r'a1\.txt, line 1'),
        ('yolo', 'train/labels/a1.txt', '9 0.5 0.5 0.1 0.1', r'a1\.txt, line 1'),
        ('yolo', 'train/labels/a1.txt', '\n-1 0.5 0.5 0.1 0.1', r'a1\.txt, line 2'),
        ('yolo', 'train/labels/a1.txt', '0 nan 0.5 0.1 0.1', r'a1\.txt, line 1'),
        ('voc', 'Annotations/a1.xml', '<annotation><object/></annotation>', r'a1\.xml.*bndbox'),
        ('voc', 'Annotations/a1.xml', '<annotation>', r'a1\.xml'),
    ],
)
def test_a_broken_label_file_is_named(tmp_path, format, name, text, problem):
    root = DETECTION[format](tmp_path)
    (root / name).write_text(text)
    with pytest.raises(UsageError, match=problem):
        read_own_data(root)


def test_labels_without_pictures(tmp_path):
    root = labelled.write_labelme(tmp_path)
    (root / 'train' / 'a1.jpg').unlink()
    data = read_own_data(root)
    assert any('a1.jpg (a1.json)' in text for text in data.remarks)


@pytest.mark.parametrize('value', [1, 255])
def test_one_class_in_masks(tmp_path, value):
    """What is none of it is a class, too: there would be nothing to tell it from."""
    picture = labelled.draw('a1')
    labelled.save(tmp_path / 'images' / 'a.jpg', picture)
    labelled.save(
        tmp_path / 'masks' / 'a.png', np.where(picture[..., 2] > 200, value, 0).astype(np.uint8)
    )
    (tmp_path / 'classes.txt').write_text('tumour\n')
    data = read_own_data(tmp_path)
    assert data.classes == ['background', 'tumour'] and data.values == {0: 0, value: 1}


def test_masks_of_one_name_in_several_folders(tmp_path):
    for folder, shade in (('a', 50), ('b', 200)):
        mask = np.full((labelled.HEIGHT, labelled.WIDTH), shade // 200, np.uint8)
        for number in range(2):
            labelled.save(tmp_path / 'images' / folder / f'{number}.jpg', labelled.draw('a1'))
            labelled.save(tmp_path / 'masks' / folder / f'{number}.png', mask)
    labelled.save(tmp_path / 'images' / 'lonely.jpg', labelled.draw('a1'))
    labelled.save(tmp_path / 'masks' / 'c' / '0.png', mask)
    data = read_own_data(tmp_path)
    pairs = {(p.path.parent.name, p.path.stem): p.mask.parent.name for p in data.pictures}
    assert pairs == {('a', '0'): 'a', ('a', '1'): 'a', ('b', '0'): 'b', ('b', '1'): 'b'}
    remarks = ' '.join(data.remarks)
    assert 'without a mask are left out (1): lonely.jpg' in remarks
    assert 'without a picture are left out (1): 0.png' in remarks


@pytest.mark.parametrize('format', DETECTION)
def test_a_folder_by_a_relative_path(tmp_path, monkeypatch, format):
    root = DETECTION[format](tmp_path / 'data')
    (tmp_path / 'other').mkdir()
    monkeypatch.chdir(tmp_path / 'other')
    data = read_own_data('../data')
    assert {p.path for p in data.pictures} == {p.path for p in read_own_data(root).pictures}


def test_names_with_spaces_in_the_parts_of_voc(tmp_path):
    root = labelled.write_voc(tmp_path)
    for path in [*root.rglob('a1.*')]:
        path.rename(path.with_name(f'a one{path.suffix}'))
    parts = root / 'ImageSets' / 'Main'
    parts.mkdir(parents=True, exist_ok=True)
    (parts / 'train.txt').write_text('a one\na2 -1\n')
    (parts / 'val.txt').write_text('b1  1\n')
    found = {p.path.stem: p.split for p in read_own_data(root).pictures}
    assert [found[name] for name in ('a one', 'a2', 'b1')] == ['train', 'train', 'val']


def test_pictures_that_coco_does_not_list(tmp_path):
    root = labelled.write_coco(tmp_path)
    labelled.save(root / 'train2017' / 'more.jpg', labelled.draw('a1'))
    (remark,) = read_own_data(root).remarks
    assert 'left out (1): more.jpg' in remark


def test_json_that_has_nothing_to_do_with_it(tmp_path):
    root = labelled.write_voc(tmp_path)
    (root / 'settings.json').write_text('{"half": ')
    assert read_own_data(root).format == 'voc'
    with pytest.raises(UsageError, match=r'settings\.json'):
        read_own_data(root, 'labelme')


class TestSplit:
    @pytest.fixture
    def data(self, tmp_path):
        for i in range(20):
            name = f'{"ab"[i % 2]}{i // 4}_{i}'
            path = labelled.save(tmp_path / f'{name}.jpg', labelled.draw('a1'))
            shapes = [dict(label='xy'[i == 3 or i == 5], points=[[1, 1], [9, 9], [1, 9]])]
            path.with_suffix('.json').write_text(
                json.dumps(dict(shapes=shapes, imagePath=path.name))
            )
        return read_own_data(tmp_path)

    def test_a_fifth_with_all_classes(self, data):
        text = split_pictures(data)
        assert text == '16 pictures to train and 4 to validate, chosen by their names'
        for split in ('train', 'val'):
            names = {thing['category'] for p in data.part(split) for thing in p.objects}
            assert names == {'x', 'y'}

    def test_the_same_each_time(self, data):
        again = read_own_data(data.root)
        again.pictures.reverse()
        for one in (data, again):
            split_pictures(one)
        assert {p.path for p in data.part('val')} == {p.path for p in again.part('val')}

    def test_groups_stay_together(self, data):
        split_pictures(data, r'([ab]\d)_')
        groups = {p.path.name.split('_')[0]: set() for p in data.pictures}
        for picture in data.pictures:
            groups[picture.path.name.split('_')[0]].add(picture.split)
        assert all(len(splits) == 1 for splits in groups.values())
        assert {split for splits in groups.values() for split in splits} == {'train', 'val'}

    def test_the_rest_trains_where_there_is_just_a_part_to_validate(self, data):
        for picture in data.pictures[:4]:
            picture.split = 'val'
        assert split_pictures(data).endswith('16 pictures to train, 4 to validate')

    def test_no_pictures_that_can_be_read(self, data):
        data.pictures, data.remarks = [], ['pictures cannot be read: a.jpg']
        with pytest.raises(UsageError, match=r'a\.jpg'):
            split_pictures(data)

    def test_what_cannot_be_split(self, data):
        with pytest.raises(UsageError, match='no regular expression'):
            split_pictures(data, '(')
        with pytest.raises(UsageError, match='1 group of pictures'):
            split_pictures(data, '()')
