"""Segmentation data with every mistake that we know, as mmseg's own data sets load them."""

import copy
import logging
import re

import numpy as np
import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from PIL import Image

from mmffnet.datasets.labels import check_dataset
from mmffnet.engine import LoadCheckedLabels
from mmffnet.engine.runner import build_runner, read_config, train_config

pytest.importorskip('mmseg')
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules

SIZE = (8, 12)
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
PACK = dict(type='PackSegInputs')


def labels_of(*values, size=SIZE):
    """A label map that holds these values, and no others."""
    return np.resize(np.array(values, np.uint8), size)


class Folder:
    """Pictures and label files.

    Args:
        root (Path): The folder.
        *labels (np.ndarray | Image): A label file for each picture.
    """

    def __init__(self, root, *labels):
        self.root = root
        for name in ('images', 'labels'):
            (root / name).mkdir()
        for i, label in enumerate(labels):
            label = label if isinstance(label, Image.Image) else Image.fromarray(label)
            label.save(self.label(i))
            Image.new('RGB', SIZE[::-1], (10, 20, 30)).save(root / f'images/{i}.png')

    def label(self, i):
        return self.root / f'labels/{i}.png'

    def config(self, number=3, steps=(*LOAD, PACK), **settings):
        return copy.deepcopy(
            dict(
                type='BaseSegDataset',
                data_root=str(self.root),
                data_prefix=dict(img_path='images', seg_map_path='labels'),
                img_suffix='.png',
                metainfo=dict(classes=tuple(f'class {i}' for i in range(number))),
                pipeline=list(steps),
                **settings,
            )
        )

    def build(self, number=3, **settings):
        return build(self.config(number, **settings))


def build(cfg):
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return DATASETS.build(cfg)


@pytest.fixture
def make(tmp_path):
    return lambda *labels: Folder(tmp_path, *labels)


@pytest.fixture
def warnings():
    """What is logged as a warning."""
    texts, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)


def refuses(dataset, error=ValueError, **kwargs):
    """The message with which a data set is refused at the start."""
    with pytest.raises(error) as info:
        check_dataset(dataset, **kwargs)
    return str(info.value)


def refuses_sample(dataset, i):
    """The message when a sample is loaded, of a data set that looked good at the start."""
    check_dataset(dataset)
    with pytest.raises(ValueError, match=re.escape(dataset.get_data_info(i)['seg_map_path'])) as e:
        dataset[i]
    return str(e.value)


# ------------------------------------------------------------------------------ good data


def test_good_labels_load_as_before(make, warnings):
    palette = Image.fromarray(labels_of(0, 1, 2, 255), 'P')
    palette.putpalette(list(range(256)) * 3)
    assert palette.mode == 'P'
    folder = make(labels_of(0, 1, 2), palette, Image.fromarray(labels_of(0, 1) > 0))
    plain, checked = folder.build(), folder.build()
    check_dataset(checked)
    for i in range(3):
        one, other = (d[i]['data_samples'].gt_sem_seg.data for d in (plain, checked))
        assert (one == other).all()
    assert (checked[1]['data_samples'].gt_sem_seg.data[0].numpy() == labels_of(0, 1, 2, 255)).all()
    assert not warnings


def test_zero_and_255_are_ignored_where_zero_is_reduced(make, warnings):
    dataset = make(labels_of(0, 1, 2, 3, 255)).build(reduce_zero_label=True)
    check_dataset(dataset)
    found = dataset[0]['data_samples'].gt_sem_seg.data[0].numpy()
    assert (found == labels_of(255, 0, 1, 2, 255)).all()
    assert not warnings


@pytest.mark.slow
def test_other_ignored_values(make):
    folder = make(labels_of(0, 1, 2, 100))
    assert '100 is not among the 3 classes' in refuses(folder.build())
    check_dataset(folder.build(ignore_index=100))
    check_dataset(folder.build(), ignored=[100])


def test_classes_left_out(make):
    dataset = make(labels_of(0, 1, 2), labels_of(0, 2)).config()
    whole = type('Whole', (DATASETS.get('BaseSegDataset'),), dict(METAINFO=dataset['metainfo']))
    del dataset['type']
    dataset['metainfo'] = dict(classes=('class 1',))
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = whole(**dataset)
    check_dataset(dataset)  # although the second file has none of the classes
    found = dataset[0]['data_samples'].gt_sem_seg.data[0].numpy()
    assert (found == labels_of(255, 0, 255)).all()
    Image.fromarray(labels_of(0, 3)).save(dataset.get_data_info(1)['seg_map_path'])
    assert '3 is not among the 3 classes, which are 0-2' in refuses(dataset)


def test_data_without_labels_are_left_alone(make):
    folder = make(labels_of(9))
    folder.label(0).unlink()
    dataset = folder.build(steps=[LOAD[0], PACK])
    check_dataset(dataset)
    assert 'gt_sem_seg' not in dataset[0]['data_samples']


# ------------------------------------------------------------------------------ bad files


def test_label_of_another_size(make):
    folder = make(labels_of(0, 1, 2, size=(6, 12)), labels_of(0, 1, 2, size=SIZE[::-1]))
    message = refuses_sample(folder.build(), 0)
    assert 'is 12x6 pixels large, but its picture' in message
    assert 'images/0.png 12x8: they must be of one size' in message
    assert 'turned, perhaps by an EXIF orientation' in refuses_sample(folder.build(), 1)


@pytest.mark.parametrize(('mode', 'channels'), [('RGB', 3), ('RGBA', 4), ('LA', 2)])
def test_colours_for_class_numbers(make, mode, channels):
    folder = make(labels_of(0, 1, 2), Image.fromarray(labels_of(0, 1, 2)).convert(mode))
    message = refuses(folder.build())
    assert message.startswith(f'the label file {folder.label(1)} has {channels} channels')
    assert message.endswith('Turn the colours to class numbers, in a PNG of mode L or P')


def test_palette_read_as_colours(make):
    folder = make(Image.fromarray(labels_of(0, 1, 2)).convert('P'))
    steps = [LOAD[0], dict(LOAD[1], imdecode_backend='cv2'), PACK]
    assert "set imdecode_backend='pillow'" in refuses(folder.build(steps=steps))


def test_unlabelled_zero_taken_for_a_class(make):
    folder = make(np.resize(np.arange(151, dtype=np.uint8), (16, 12)))
    message = refuses(folder.build(150))
    assert f'the label file {folder.label(0)} has the values 0-150; 150 is not among' in message
    assert 'the 150 classes, which are 0-149' in message
    assert message.endswith('If 0 means not labelled, set reduce_zero_label=True in the data set')
    check_dataset(folder.build(150, reduce_zero_label=True))


def test_values_beyond_reduced_classes(make):
    message = refuses(make(labels_of(0, 1, 7, 5, 255)).build(reduce_zero_label=True))
    assert (
        'has the values 0-1, 5, 7, 255; 5, 7 is not among the 3 classes, which are 1-3' in message
    )
    assert 'reduce_zero_label=True ignores 0' in message


@pytest.mark.parametrize('number', [26001, 258])  # the second becomes a class in 8 bits
def test_numbers_of_instances(make, number):
    label = Image.fromarray(np.resize(np.array([0, 1, number], np.uint16), SIZE))
    message = refuses(make(label).build())
    assert f'has the values 0-1, {number}; {number} is not among the 3 classes' in message
    assert 'Labels must fit into 8 bits' in message


@pytest.mark.slow
def test_missing_labels_are_found_at_the_start(make):
    folder = make(*[labels_of(0, 1, 2)] * 50)
    folder.label(7).unlink()
    folder.label(8).unlink()
    message = refuses(folder.build(), FileNotFoundError)
    assert message.startswith(f'2 of 50 pictures have no label file: there is no {folder.label(7)}')
    assert 'labels has 0.png, 1.png, 10.png, ...: do data_prefix, img_suffix' in message
    dataset = folder.build(seg_map_suffix='_seg.png')
    assert '50 of 50 pictures have no label file' in refuses(dataset, FileNotFoundError)
    (folder.root / 'labels').rename(folder.root / 'elsewhere')
    message = refuses(folder.build(), FileNotFoundError)
    assert 'labels is empty or does not exist' in message


def test_label_that_vanishes_or_breaks_later(make):
    folder = make(labels_of(0, 1, 2), labels_of(0, 1, 2))
    dataset = folder.build()
    check_dataset(dataset)
    folder.label(0).unlink()
    with pytest.raises(FileNotFoundError, match=f'no label file {folder.label(0)} for the picture'):
        dataset[0]
    content = folder.label(1).read_bytes()
    for broken in (content[: len(content) // 2], b'no picture', b''):
        folder.label(1).write_bytes(broken)
        with pytest.raises(ValueError, match=f'the label file {folder.label(1)} is damaged'):
            dataset[1]


# ------------------------------------------------------------------------------ bad sets


def test_no_labelled_pixel(make):
    folder = make(labels_of(0, 255), labels_of(0))
    message = refuses(folder.build(2, reduce_zero_label=True))
    assert f'from {folder.root / "labels"}, have the values 0, 255, and not one labelled' in message
    assert "if 0 is the class 'class 0', set reduce_zero_label=False; 255 is ignored" in message


def test_some_files_may_have_no_labelled_pixel(make, warnings):
    dataset = make(labels_of(0), labels_of(0, 1, 2, 3)).build(reduce_zero_label=True)
    check_dataset(dataset)
    assert (dataset[0]['data_samples'].gt_sem_seg.data == 255).all()
    assert not warnings


@pytest.mark.parametrize(
    ('number', 'values', 'reduced', 'text'),
    [
        (2, (0, 1), True, "no 'class 1': reduce_zero_label=True ignores 0 and takes 1-2 for the"),
        (150, range(150), True, "no 'class 149'.* if 0 is the class 'class 0', set reduce_zero_la"),
        (2, (0, 255), False, "only 'class 0': the classes are 0-1; 255 is ignored: store another"),
        (3, (1,), False, "have the values 1, so only 'class 1': the classes are 0-2"),
    ],
)
def test_suspicious_sets_give_a_warning(make, warnings, number, values, reduced, text):
    label = np.resize(np.array(values, np.uint8), (16, 12))
    check_dataset(make(label).build(number, reduce_zero_label=reduced))
    assert len(warnings) == 1
    assert re.search(text, warnings[0])


def test_two_opinions_on_reduce_zero_label(make):
    steps = [LOAD[0], dict(LOAD[1], reduce_zero_label=True), PACK]
    message = refuses(make(labels_of(0, 1, 2, 3)).build(steps=steps))
    assert 'reduce_zero_label is False in BaseSegDataset and True in its LoadAnnot' in message


# ------------------------------------------------------------------------------ pipelines


@pytest.mark.parametrize(
    'steps',
    [
        [LOAD[0], dict(type='RandomChoice', transforms=[[LOAD[1]], [LOAD[1]]]), PACK],
        [LOAD[0], dict(type='TestTimeAug', transforms=[[LOAD[1]], [PACK]])],
        [dict(type='LoadImageFromFile'), dict(type='LoadCheckedLabels', num_classes=3), PACK],
    ],
    ids=['choice', 'tta', 'by name'],
)
def test_wherever_labels_are_loaded(make, steps):
    folder = make(labels_of(0, 1, 2), labels_of(0, 1, 2, size=(6, 12)))
    dataset = folder.build(steps=steps)
    check_dataset(dataset)
    assert dataset[0]['inputs'] is not None
    with pytest.raises(ValueError, match='is 12x6 pixels large'):
        dataset[1]


def test_by_name_in_a_pipeline_without_the_tools(make):
    step = dict(type='mmffnet.LoadCheckedLabels', num_classes=3, ignored=[9])
    dataset = make(labels_of(0, 9), labels_of(3)).build(steps=[LOAD[0], step, PACK])
    assert dataset[0]['data_samples'].gt_sem_seg.data.max() == 9
    with pytest.raises(ValueError, match='has the values 3; 3 is not among the 3 classes'):
        dataset[1]
    assert str(dataset.pipeline.transforms[1]).startswith('LoadCheckedLabels(num_classes=3, ignore')


# ------------------------------------------------------------------------------ trainings


def training(folder, dataset):
    """The runner that tools/train.py makes of the nano Semantic FPN with these data."""
    cfg = read_config('segmentation/semfpn_nano_shapes.py', (), str(folder.root / 'work'))
    cfg.train_dataloader = dict(cfg.train_dataloader, batch_size=2, num_workers=0, dataset=dataset)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=1)
    cfg.model.data_preprocessor.size = (32, 32)
    cfg.log_level = 'WARNING'
    cfg.experiment_name = folder.root.name
    return build_runner(train_config(cfg))


@pytest.mark.parametrize('wrapper', [None, 'RepeatDataset', 'ConcatDataset'])
@pytest.mark.slow
def test_trainings_check_labels(make, wrapper):
    folder = make(labels_of(0, 1, 5), labels_of(0, 1, 7))
    dataset = folder.config(6)
    if wrapper == 'RepeatDataset':
        dataset = dict(type=wrapper, times=2, dataset=dataset)
    elif wrapper:
        dataset = dict(type=wrapper, datasets=[dataset])
    with pytest.raises(ValueError, match=f'{folder.label(1)} has the values 0-1, 7; 7 is not amo'):
        training(folder, dataset).train()


@pytest.mark.slow
def test_trainings_go_through_with_good_labels(make):
    folder = make(labels_of(0, 1, 5), labels_of(0, 1, 4, 255))
    runner = training(folder, folder.config(6))
    runner.train()
    steps = runner.train_dataloader.dataset.pipeline.transforms
    assert [type(step) for step in steps].count(LoadCheckedLabels) == 1


@pytest.mark.slow
def test_ignored_values_of_the_model_count(make):
    folder = make(labels_of(0, 1, 200))
    with pytest.raises(ValueError, match='200 is not among the 6 classes'):
        training(folder, folder.config(6)).train()
    runner = training(folder, folder.config(6))
    runner.model.decode_head.ignore_index = runner.model.data_preprocessor.seg_pad_val = 200
    runner.train()
