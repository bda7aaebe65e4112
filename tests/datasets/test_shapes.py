import hashlib
import json
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmffnet.datasets import CLASSES, ensure_shapes
from mmffnet.datasets.scenes import draw_scene

SMALL = {'train': 4, 'val': 3, 'size': 48, 'seed': 5}
# The pixels and labels of the SMALL sets: they change only together with shapes.VERSION.
DIGESTS = {
    'coco': 'f187528a88d6243fbacff297b23ac9bbce5c7c23b2851ec9fb5e7811d2315a5a',
    'ade20k': '58d69643576aabc7e5bd12bfa66d3abd948d0c1e1188b4a94310d1943e6d41d9',
    'folder': '923ea56b7c1e02672d2bd979d855acc47ec085cf9e6c525e0bc48c7c75a5977f',
}
fork = multiprocessing.get_context('fork')


def digest(root: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(root.rglob('*')):
        if path.is_file():
            data = path.read_bytes()
            found.update(f'{path.relative_to(root).as_posix()} {len(data)}\n'.encode() + data)
    return found.hexdigest()


def content_digest(root: Path) -> str:
    """Of what the files mean, however they are encoded."""
    found = hashlib.sha256()
    for path in sorted(root.rglob('*')):
        if path.suffix == '.png':
            with Image.open(path) as picture:
                pixels = np.asarray(picture)
            name = path.relative_to(root).as_posix()
            found.update(f'{name} {pixels.shape}'.encode() + pixels.tobytes())
        elif path.name.startswith('instances_'):
            coco = COCO(path)
            for annotation in coco.dataset['annotations']:
                found.update(coco.annToMask(annotation).tobytes())
                del annotation['segmentation']
            found.update(json.dumps(coco.dataset, sort_keys=True).encode())
    return found.hexdigest()


@pytest.fixture(scope='module')
def coco_root(tmp_path_factory):
    return ensure_shapes(tmp_path_factory.mktemp('shapes') / 'coco', 'coco', train=1, val=40)


@pytest.fixture(scope='module')
def coco(coco_root):
    return COCO(coco_root / 'annotations' / 'instances_val.json')


@pytest.mark.parametrize('layout', DIGESTS)
def test_the_same_seed_gives_the_same_pixels_and_labels(layout, tmp_path):
    assert content_digest(ensure_shapes(tmp_path / 'x', layout, **SMALL)) == DIGESTS[layout]


def test_a_larger_set_begins_with_the_smaller_one(tmp_path):
    small = ensure_shapes(tmp_path / 'small', 'ade20k', **SMALL)
    large = ensure_shapes(tmp_path / 'large', 'ade20k', **(SMALL | {'train': 6}))
    pictures = [path.relative_to(small) for path in small.rglob('*.png')]
    assert len(pictures) == 2 * (4 + 3)
    assert all((small / path).read_bytes() == (large / path).read_bytes() for path in pictures)


def test_another_seed_gives_other_pictures(tmp_path):
    one = ensure_shapes(tmp_path / 'one', 'coco', **SMALL)
    two = ensure_shapes(tmp_path / 'two', 'coco', **(SMALL | {'seed': 6}))
    name = 'images/val/val_00000.png'
    assert (one / name).read_bytes() != (two / name).read_bytes()


def test_coco_annotations_agree_with_pycocotools(coco, coco_root):
    kinds = set()
    for ann in coco.anns.values():
        rle = coco.annToRLE(ann)
        assert ann['area'] == coco_mask.area(rle) > 0
        assert ann['bbox'] == coco_mask.toBbox(rle).tolist()
        kinds.add(ann['iscrowd'])
    assert kinds == {0, 1}
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for image in coco.imgs.values():
        with Image.open(coco_root / 'images' / 'val' / image['file_name']) as picture:
            assert picture.size == (image['width'], image['height'])
    assert any(not coco.getAnnIds(image_id) for image_id in coco.imgs)


def test_coco_masks_are_those_that_were_drawn(coco):
    for image_id in list(coco.imgs)[:12]:
        drawn = draw_scene(0, 1, image_id - 1, 160).instances
        anns = coco.loadAnns(coco.getAnnIds(image_id))
        assert len(anns) == len(drawn)
        for ann, instance in zip(anns, drawn, strict=True):
            assert ann['category_id'] == instance.label + 1
            np.testing.assert_array_equal(coco.annToMask(ann), instance.mask)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_the_ground_truth_scores_one_at_all_sizes(coco, kind):
    results = [
        {
            'image_id': ann['image_id'],
            'category_id': ann['category_id'],
            'score': 1.0,
            'bbox': ann['bbox'],
            'segmentation': coco.annToRLE(ann),
        }
        for ann in coco.anns.values()
        if not ann['iscrowd']
    ]
    if kind == 'bbox':
        for result in results:
            del result['segmentation']
    evaluation = COCOeval(coco, coco.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    # AP, then AP for small, medium and large objects; -1 would mean that there are none
    assert evaluation.stats[[0, 3, 4, 5]] == pytest.approx(1.0)


def test_ade20k_label_maps(tmp_path):
    root = ensure_shapes(tmp_path / 'x', 'ade20k', train=1, val=12, size=96)
    seen = set()
    for index in range(12):
        with Image.open(root / 'annotations' / 'validation' / f'val_{index:05d}.png') as picture:
            labels = np.asarray(picture)
        scene = draw_scene(0, 1, index, 96)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels == 0, scene.lines)
        for instance in scene.instances:
            assert set(labels[instance.mask]) == {instance.label + 2}
        seen |= set(labels.ravel().tolist())
    assert seen == set(range(len(CLASSES) + 2)), 'unlabelled, background and every class'


def test_the_folder_layout(tmp_path):
    root = ensure_shapes(tmp_path / 'x', 'folder', train=10, val=7, size=32)
    for split, counts in (('train', [2, 2, 2, 2, 2]), ('val', [2, 2, 1, 1, 1])):
        assert sorted(path.name for path in (root / split).iterdir()) == list(CLASSES)
        assert [len(list((root / split / name).glob('*.png'))) for name in CLASSES] == counts


def test_what_is_there_is_kept(tmp_path):
    root = ensure_shapes(tmp_path / 'x', 'folder', **SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert ensure_shapes(str(tmp_path / 'x'), 'folder', **SMALL) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before


@pytest.mark.parametrize(
    ('layout', 'change', 'message'),
    [
        ('coco', {'seed': 6}, 'seed=5 instead of 6'),
        ('coco', {'train': 5, 'size': 64}, 'train=4 instead of 5, size=48 instead of 64'),
        ('folder', {}, "layout='coco' instead of 'folder'"),
    ],
)
def test_other_parameters_are_refused(layout, change, message, tmp_path):
    root = ensure_shapes(tmp_path / 'x', 'coco', **SMALL)
    before = digest(root)
    with pytest.raises(FileExistsError, match=message):
        ensure_shapes(root, layout, **(SMALL | change))
    assert digest(root) == before


@pytest.mark.parametrize(
    'stamp', [None, b'', b'[]', b'{"version":1}', b'\xff\xfe', b'{"dataset":"shapes"}']
)
def test_what_is_not_ours_is_refused_and_left_alone(stamp, tmp_path):
    (tmp_path / 'precious.txt').write_text('mine')
    if stamp is not None:
        (tmp_path / 'shapes.json').write_bytes(stamp)
    before = digest(tmp_path)
    with pytest.raises(FileExistsError, match='choose another folder'):
        ensure_shapes(tmp_path, 'coco', **SMALL)
    assert digest(tmp_path) == before


def test_an_empty_folder_is_filled_also_through_a_link(tmp_path):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'disk')
    ensure_shapes(tmp_path / 'link', 'folder', **SMALL)
    assert content_digest(tmp_path / 'disk') == DIGESTS['folder']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'layout': 'voc'}, "layout must be one of coco, ade20k, folder, not 'voc'"),
        ({'train': 0}, 'train .* from 1 to 99999, not 0'),
        ({'val': -1}, 'val .* not -1'),
        ({'size': 31}, 'size .* from 32 to 4096, not 31'),
        ({'size': 64.0}, 'size .* not 64.0'),
        ({'seed': 2**32}, 'seed .* from 0 to 4294967295, not 4294967296'),
    ],
)
def test_parameters_out_of_range_are_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ensure_shapes(tmp_path / 'x', **({'layout': 'coco', **SMALL} | change))
    assert not (tmp_path / 'x').exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match=str(tmp_path / 'file')):
        ensure_shapes(tmp_path / 'file' / 'x', 'coco', **SMALL)


def _create_with_little_space(root, report):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        ensure_shapes(root, 'coco', **SMALL)
    except OSError as error:
        report.put((error.errno, str(error)))


def test_no_space_left_is_an_error_with_the_path_and_leaves_nothing(tmp_path):
    report = fork.SimpleQueue()
    process = fork.Process(target=_create_with_little_space, args=(tmp_path / 'x', report))
    process.start()
    process.join(60)
    errno, message = report.get()
    assert errno > 0
    assert 'train_00000.png' in message
    assert list(tmp_path.iterdir()) == []


def test_a_killed_creation_leaves_nothing_that_looks_complete(tmp_path):
    arguments = {'train': 99999, 'val': 1, 'size': 64}
    process = fork.Process(target=ensure_shapes, args=(tmp_path / 'x', 'coco'), kwargs=arguments)
    process.start()
    deadline = time.time() + 60
    while not list(tmp_path.rglob('train_00003.png')):
        assert time.time() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    assert not (tmp_path / 'x').exists()
    (left,) = tmp_path.iterdir()
    assert not list(left.rglob('*.json'))
    ensure_shapes(tmp_path / 'x', 'coco', **SMALL)
    assert content_digest(tmp_path / 'x') == DIGESTS['coco']
    assert left.exists(), 'it could still belong to a living process'

    os.utime(left, (0, 0))
    (tmp_path / 'x').rename(tmp_path / 'elsewhere')
    ensure_shapes(tmp_path / 'x', 'coco', **SMALL)
    assert not left.exists()


def test_processes_that_start_at_once_all_get_the_complete_set(tmp_path):
    barrier = fork.Barrier(4)

    def create() -> None:
        barrier.wait()
        root = ensure_shapes(tmp_path / 'x', 'coco', **SMALL)
        os._exit(0 if content_digest(root) == DIGESTS['coco'] else 3)

    processes = [fork.Process(target=create) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert [path.name for path in tmp_path.iterdir()] == ['x']


def test_the_stamp_says_what_is_inside(tmp_path):
    root = ensure_shapes(tmp_path / 'x', 'coco', **SMALL)
    stamp = json.loads((root / 'shapes.json').read_text())
    assert stamp == {'dataset': 'shapes', 'version': 1, 'layout': 'coco', **SMALL}
