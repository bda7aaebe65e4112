"""Data that are missing, empty or broken."""

import copy
import json
from functools import partial

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmffnet.datasets import ensure_shapes
from mmffnet.datasets.checks import (
    _build_dataloader,
    check_samples,
    find_missing_data,
    name_bad_samples,
)
from mmffnet.engine.runner import read_config

DETECTOR = 'detection/maskrcnn_ffnet2_coco.py'


def test_nothing_is_missing(tmp_path):
    def find(**dataset):
        return find_missing_data(Config(dict(train_dataloader=dict(dataset=dataset))), 'train')

    (tmp_path / 'list.txt').touch()
    assert find(data_root=str(tmp_path)) is None
    assert find(data_root=str(tmp_path), ann_file='list.txt', data_prefix='') is None
    assert find(data_root=str(tmp_path), data_prefix=dict(img=None)) is None
    assert find(data_root='s3://bucket/data', ann_file='list.txt') is None
    assert find(data_root='bucket/data', backend_args=dict(backend='petrel')) is None
    assert find(type='ConcatDataset', datasets=[]) is None
    assert find(type='ShapesDetDataset', data_root='nowhere', ann_file='a.json') is None
    assert find_missing_data(Config(dict(model=dict())), 'train', 'val') is None


def test_missing_files_inside_wrappers(tmp_path):
    leaves = [
        dict(type='VOC', data_root='nowhere', ann_file='train.txt', data_prefix=dict(img='jpg')),
        dict(type='VOC', data_root=str(tmp_path), ann_file='train.txt'),
        dict(type='VOC', data_root='nowhere', ann_file='val.txt'),
    ]
    dataset = dict(dataset=dict(type='ConcatDataset', datasets=leaves))
    text = find_missing_data(Config(dict(train_dataloader=dict(dataset=dataset))), 'train')
    assert "'nowhere' does not exist (looked for /" in text
    assert '/nowhere), which should hold train.txt, jpg, val.txt. Put them there' in text
    assert f"the data folder '{tmp_path}' ({tmp_path}) lacks train.txt" in text
    assert 'prepare_data' not in text


@pytest.mark.slow
def test_missing_coco(tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    text = find_missing_data(read_config(DETECTOR), 'train', 'val')
    assert text == (
        f"the data folder 'data/coco/' does not exist (looked for {tmp_path}/data/coco), which "
        'should hold annotations/instances_train2017.json, train2017/, '
        'annotations/instances_val2017.json, val2017/. Put them there (ln -s FOLDER data/coco), '
        'or get them: `python tools/prepare_data.py coco` (`mmffnet prepare-data`)'
    )
    for root, command in (('/sets/coco/', 'coco --root /sets`'), ('data/coco_mini/', None)):
        cfg = read_config(DETECTOR, [f'train_dataloader.dataset.data_root={root}'])
        text = find_missing_data(cfg, 'train')
        assert text.endswith(f'prepare_data.py {command} (`mmffnet prepare-data`)') == bool(command)
        assert ('prepare_data' in text) == bool(command)
    folder = tmp_path / 'data' / 'coco'
    for name in ('annotations', 'train2017', 'val2017'):
        (folder / name).mkdir(parents=True)
    (folder / 'annotations' / 'instances_train2017.json').touch()
    assert find_missing_data(read_config(DETECTOR), 'train') is None
    text = find_missing_data(read_config(DETECTOR), 'train', 'val')
    assert f'({folder}) lacks annotations/instances_val2017.json. Put them there, or get' in text


@pytest.fixture
def coco(tmp_path):
    """Four pictures in COCO format, a function that changes them, and one that loads them."""
    pytest.importorskip('mmdet.datasets')
    root = ensure_shapes(tmp_path / 'coco', 'coco', train=4, val=1, size=48)
    path = root / 'annotations' / 'instances_train.json'
    original = json.loads(path.read_text())
    init_default_scope('mmdet')

    def change(edit):
        content = copy.deepcopy(original)
        edit(content, [entry for entry in content['annotations'] if entry['image_id'] == 1])
        path.write_text(json.dumps(content))

    def load(workers=0, filters=(), classes=None, sampler='DefaultSampler', **options):
        """The number of objects of each picture."""
        pipeline = [
            dict(type='LoadImageFromFile', **options),
            dict(type='LoadAnnotations', with_bbox=True),
            *filters,
            dict(type='PackDetInputs'),
        ]
        dataset = dict(
            type='CocoDataset',
            data_root=str(root),
            ann_file=f'annotations/{path.name}',
            data_prefix=dict(img='images/train'),
            metainfo=dict(classes=classes or [entry['name'] for entry in original['categories']]),
            filter_cfg=dict(filter_empty_gt=True),
            pipeline=pipeline,
        )
        sampler = dict(type=sampler, shuffle=False)
        config = dict(batch_size=2, num_workers=workers, dataset=dataset, sampler=sampler)
        loader = _build_dataloader(Runner.build_dataloader, config)
        return [len(one.gt_instances) for batch in loader for one in batch['data_samples']]

    load.annotations = path
    load.picture = root / 'images' / 'train' / 'train_00001.png'
    yield change, load
    init_default_scope('mmengine')


@pytest.mark.parametrize(
    ('content', 'workers', 'reason'),
    [
        (b'no picture', 0, 'failed to load image'),
        (b'', 1, 'buf.empty()'),
        (None, 0, 'FileNotFoundError: [Errno 2] No such file or directory'),
    ],
    ids=['corrupt', 'empty', 'missing'],
)
@pytest.mark.slow
def test_bad_picture_is_named(coco, content, workers, reason):
    _, load = coco
    load.picture.unlink()
    if content is not None:
        load.picture.write_bytes(content)
    with pytest.raises(RuntimeError) as caught:
        load(workers)
    text = str(caught.value)
    assert f'cannot load sample 1 of CocoDataset ({load.picture}): ' in text
    assert reason in text
    if content is None:  # mmcv's option to take another picture in its place still does
        assert len(load(ignore_empty=True)) == 4


def test_class_that_the_file_lacks_is_named(coco):
    """mmdet would give its number to the next class."""
    _, load = coco
    with pytest.raises(ValueError, match=r'instances_train\.json has 4 of the 5 .*; Disc is not'):
        load(classes=['box', 'Disc', 'ring', 'star', 'triangle'])


@pytest.mark.slow
def test_classes_in_another_order_than_in_the_file(coco):
    """Labels follow the file, names the config: those in pictures would be wrong."""
    change, load = coco
    whole = load(classes=['disc', 'ring'])
    with pytest.raises(ValueError, match=r'train\.json has its .* order \(disc, ring\), not in'):
        load(classes=['ring', 'disc'])
    change(lambda content, first: content['categories'].reverse())
    assert load(classes=['ring', 'disc']) == whole


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"images": [{"id"', r'is no whole JSON file \(Expecting'),
        (b'\xff\xfe\x00', 'is no whole JSON file'),
        ('[1, 2]', "holds no JSON object: it is not in COCO's format"),
        ('{"images": [{"file_name": "a.png"}]}', "'id' is missing in entry 0 of 'images'"),
        (
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}',
            "'height' is missing in entry 0 of 'images'",
        ),
    ],
    ids=['cut', 'binary', 'list', 'no id', 'no size'],
)
def test_broken_annotation_file_is_named(coco, content, message):
    _, load = coco
    load.annotations.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f'instances_train.json:? {message}'):
        load()


def test_object_without_a_mask_is_explained(coco):
    change, load = coco
    change(lambda content, first: first[0].pop('segmentation'))
    load()
    masks = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
    with pytest.raises(RuntimeError, match=r'train_0000\d\.png\): .* has no segmentation, which'):
        load(filters=[masks])


@pytest.mark.slow
def test_useless_annotations_are_skipped(coco):
    change, load = coco
    whole = load()

    def spoil(content, first):
        first[0]['area'] = 0
        first[1]['category_id'] = 99
        first[2]['bbox'][2] = 0.0

    change(spoil)
    assert load() == [whole[0] - 3, *whole[1:]]
    change(lambda content, first: [content['annotations'].remove(entry) for entry in first])
    assert load() == whole[1:]


def test_picture_of_another_size_is_reported(coco, caplog):
    change, load = coco
    change(lambda content, first: content['images'][0].update(width=4000))
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    load()
    logger.removeHandler(caplog.handler)
    (text,) = [record.message for record in caplog.records if 'pixels' in record.message]
    assert 'train_00000.png is 48 x ' in text
    assert 'its annotations are for 4000 x ' in text


class Counted(list):
    """Counts in all processes how often its annotations are read."""

    count = torch.zeros(1, dtype=torch.long).share_memory_()

    def get_data_info(self, index):
        self.count += 1
        return {}


def test_sizes_are_compared_once():
    """Not in every epoch, whose workers are new ones."""
    data = Counted(dict(value=number) for number in range(6))
    name_bad_samples(data)
    loader = DataLoader(data, batch_size=2, num_workers=1)
    for _ in range(2):
        assert sum(int(batch['value'].sum()) for batch in loader) == 15
    assert int(data.count) == 6


def test_pipeline_that_rejects_everything_gives_up(coco):
    _, load = coco
    nothing = dict(type='FilterAnnotations', min_gt_bbox_wh=(1000, 1000))
    with pytest.raises(RuntimeError, match='Cannot find valid image after 1000'):
        load(filters=[nothing])


def test_classes_that_do_not_occur(coco):
    _, load = coco
    with pytest.raises(ValueError, match=r'no samples: CocoDataset .* classes \(dog, cat\) called'):
        load(classes=['dog', 'cat'], sampler='InfiniteSampler')


@pytest.mark.slow
def test_empty_data_set_is_not_waited_for(toy, tmp_path):
    cfg = toy.toy_config(tmp_path, by_epoch=False)
    cfg.train_dataloader.dataset.update(indices=[], serialize_data=False)
    child = toy.Child(tmp_path / 'log', cfg)
    assert child.wait() == 1
    assert 'ValueError: the data set has no samples' in child.text


def test_check_samples_serves_all_loaders():
    class Bare:
        build_dataloader = staticmethod(Runner.build_dataloader)

    runner = Bare()
    check_samples(runner)
    assert isinstance(runner.build_dataloader, partial)
    empty = dict(batch_size=1, num_workers=0, dataset=[], sampler=dict(type='DefaultSampler'))
    with pytest.raises(ValueError, match='no samples'):
        runner.build_dataloader(empty)
