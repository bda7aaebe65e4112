"""What is wrong with labelled pictures is found and said."""

import shutil

import cv2
import labelled_pictures as labelled
import mmcv
import numpy as np
import pytest
from PIL import Image

from mmffnet.owndata.convert import split_pictures
from mmffnet.owndata.formats import read_own_data
from mmffnet.owndata.report import examine, read_pictures


def report_of(root, size=96):
    data = read_own_data(root)
    prints = read_pictures(data)
    split_pictures(data)
    return data, examine(data, size, prints)


def rewrite(root, name, old, new):
    path = root / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def root(tmp_path):
    return labelled.write_labelme(tmp_path)


def found(report, words):
    return [text for text in report.odd if words in text]


def test_nothing_to_say(root):
    _, report = report_of(root)
    assert report.fatal == []
    assert report.odd == [
        'pictures have no objects, and serve as examples of nothing (1): train/a4.jpg'
    ]
    assert report.tables['Classes, objects'] == [
        {'class': 'big dog', 'training': 2, 'validation': 1},
        {'class': 'cat', 'training': 2, 'validation': 1},
    ]
    assert '| big dog |        2 |          1 |' in report.as_text()
    assert '<td>big dog</td><td>2</td>' in report.as_html()


def test_sizes_against_strides(root):
    _, report = report_of(root, size=48)  # half their size
    rows = report.tables['Sizes of objects, in pixels of a picture of 48']
    rows = {row['size']: row['objects'] for row in rows}
    sides = [
        np.sqrt(np.prod(labelled.box(corners)[2:])) / 2
        for _, objects in labelled.PICTURES.values()
        for _, corners in objects
    ]
    assert rows['16 to 32'] == sum(16 <= side < 32 for side in sides)
    assert rows['8 to 16'] == sum(8 <= side < 16 for side in sides)
    assert not found(report, 'smaller than 8')
    assert found(report_of(root, size=20)[1], 'objects are smaller than 8 pixels')


def test_boxes(root):
    rewrite(root, 'train/a1.json', '[24, 40]', '[24, 400]')
    rewrite(
        root,
        'train/a2.json',
        '[[50, 10], [90, 10], [90, 50], [70, 60]]',
        '[[500,1],[5e2,9],[500.5,3]]',
    )
    rewrite(root, 'val/b1.json', '[[10, 20], [60, 20], [30, 56]]', '[[0,0],[96,0],[96,64],[0,64]]')
    data, report = report_of(root)
    assert (
        'boxes reach out of their picture and are cut (2): train/a1.jpg'
        in found(report, 'reach')[0]
    )
    assert found(report, 'left out (1)')
    assert found(report, 'boxes cover their whole picture (1): val/b1.jpg')
    boxes = {p.path.stem: [thing['bbox'] for thing in p.objects] for p in data.pictures}
    assert boxes['a1'] == [[8, 8, 32, 56]]
    assert boxes['a2'] == []


def test_pictures_that_cannot_be_read(root):
    (root / 'train' / 'a1.jpg').write_bytes(b'')
    (root / 'train' / 'a2.jpg').write_bytes((root / 'train' / 'a3.jpg').read_bytes()[:200])
    data, report = report_of(root)
    assert found(report, 'cannot be read and are left out (2): train/a1.jpg, train/a2.jpg')
    assert {p.path.stem for p in data.pictures} == {'a3', 'a4', 'b1', 'b2'}


def test_unusual_pictures_are_read(root):
    deep = cv2.imread(str(root / 'train' / 'a1.jpg')).astype(np.uint16) * 257
    (root / 'train' / 'a1.jpg').unlink()
    labelled.save(root / 'train' / 'a1.png', deep[..., 1])
    rewrite(root, 'train/a1.json', 'a1.jpg', 'a1.png')
    Image.open(root / 'train' / 'a2.jpg').convert('CMYK').save(root / 'train' / 'a2.jpg')
    data, report = report_of(root)
    assert not found(report, 'cannot be read')
    assert found(report, 'pictures have 16 bits, of which the upper 8 are used (1)')
    for name in ('a1.png', 'a2.jpg'):  # as mmcv loads them
        assert cv2.imread(str(root / 'train' / name)).shape == (64, 96, 3)
    assert len(data.pictures) == len(labelled.PICTURES)


def test_large_pictures_and_those_of_fractions(root, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    (root / 'train' / 'a1.jpg').unlink()
    Image.fromarray(np.zeros((64, 96), np.float32)).save(root / 'train' / 'a1.tif')
    rewrite(root, 'train/a1.json', 'a1.jpg', 'a1.tif')
    data, report = report_of(root)
    assert found(report, 'cannot be read and are left out (1): train/a1.tif')
    assert len(data.pictures) == len(labelled.PICTURES) - 1
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_pictures_that_the_training_cannot_read(root):
    (root / 'train' / 'a1.jpg').unlink()
    picture = Image.fromarray(labelled.draw('a1')[..., ::-1].copy())
    picture.save(root / 'train' / 'a1.tif', compression='zstd')
    rewrite(root, 'train/a1.json', 'a1.jpg', 'a1.tif')
    if mmcv.imread(root / 'train' / 'a1.tif') is None:
        assert found(report_of(root)[1], 'cannot be read and are left out (1): train/a1.tif')
    else:  # an OpenCV that can
        assert not found(report_of(root)[1], 'cannot be read')


def test_a_picture_that_is_too_high_for_opencv(root):
    (root / 'train' / 'a1.jpg').unlink()
    Image.new('L', (1, 1_100_000)).save(root / 'train' / 'a1.tif')
    rewrite(root, 'train/a1.json', 'a1.jpg', 'a1.tif')
    assert found(report_of(root)[1], 'cannot be read and are left out (1): train/a1.tif')


def test_labels_for_a_picture_before_it_was_turned(root):
    size = ', "imageWidth": 96, "imageHeight": 64}'
    for name in ('a1', 'a2'):
        label = root / 'train' / f'{name}.json'
        label.write_text(label.read_text()[:-1] + size)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / 'train' / 'a1.jpg').save(root / 'train' / 'a1.jpg', exif=exif)
    (text,) = found(report_of(root)[1], 'another size than their labels')
    assert 'train/a1.jpg' in text and 'a2' not in text


def test_copies_in_both_parts(root):
    shutil.copy(root / 'train' / 'a2.jpg', root / 'val' / 'b2.jpg')
    _, report = report_of(root)
    (text,) = found(report, 'in training as well')
    assert 'train/a2.jpg = val/b2.jpg' in text


def test_copies_that_were_saved_again(root):
    scene = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    scene = cv2.resize(scene, (96, 64), interpolation=cv2.INTER_CUBIC)
    labelled.save(root / 'train' / 'a2.jpg', scene)
    again = cv2.resize(scene, (70, 46), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(root / 'val' / 'b2.jpg'), again, [cv2.IMWRITE_JPEG_QUALITY, 60])
    _, report = report_of(root)
    assert found(report, 'train/a2.jpg = val/b2.jpg')


def test_classes(root):
    rewrite(root, 'val/b1.json', '"cat"', '"Cat "')
    rewrite(root, 'val/b2.json', '"big dog"', '"wolf"')
    _, report = report_of(root)
    assert found(report, "the classes 'Cat ', 'cat' differ in spelling alone")
    assert found(report, 'no example in training, and will not be found (2): Cat , wolf')
    assert found(report, 'no example in validation, and no result therefore (2)')


def test_nothing_to_train_with(root):
    for path in (root / 'train').glob('*.json'):
        path.unlink()
    _, report = report_of(root)
    assert report.fatal == [f'nothing is labelled in the pictures for training of {root}']


def test_masks(tmp_path):
    root = labelled.write_masks(tmp_path)
    _, report = report_of(root)
    assert report.fatal == []
    assert report.odd == ['values of the masks (3): 0 = ground, 1 = cat, 2 = big dog']
    row = {'class': 'cat', 'training': 2, 'validation': 1}
    assert row in report.tables['Classes, pictures with it']
    labelled.save(root / 'masks' / 'train' / 'a1.png', labelled.label_map('a1')[:50])
    _, report = report_of(root)
    assert report.fatal == ['masks have another size than their pictures (1): masks/train/a1.png']
