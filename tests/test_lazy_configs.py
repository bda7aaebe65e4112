"""Lazy (pure-Python) configs, in which types are classes, through everything that reads configs."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lazy_configs import write_lazy
from mmcv.transforms import Resize
from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import PretrainedInit
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, DefaultScope
from torch import nn
from toy_models import META, make_model, make_pictures

import mmffnet
from mmffnet.benchmark.networks import find_network
from mmffnet.config_types import find_scope, find_type, type_name
from mmffnet.datasets.checks import find_missing_data, without_annotations
from mmffnet.deploy.export import export_config
from mmffnet.deploy.reparameterize import reparameterize_file
from mmffnet.deploy.runtimes import load_exported
from mmffnet.engine import runner
from mmffnet.engine.hooks import FiniteLossHook, FuseHook
from mmffnet.engine.runner import build_runner, read_config, run, test_config, train_config
from mmffnet.errors import UsageError
from mmffnet.inference import Inferencer

pytest.importorskip('mmdet.models')
pytest.importorskip('mmseg.models')
pytest.importorskip('mmpretrain.models')
test_config.__test__ = False  # a function of ours, not a test
TASKS = ('detection', 'segmentation', 'classification')
ARCH = dict(depths=[1, 1, 1, 1], channels=[8, 16, 32, 64], stem_channels=8)


class Averaging(EMAHook):
    pass


class Patient(FiniteLossHook):
    pass


class KeepEverything(CheckpointHook):
    pass


class Named:
    """Somebody's hook that has the name of mmengine's."""

    class CheckpointHook(CheckpointHook):
        pass


@pytest.fixture(scope='module')
def lazy(tmp_path_factory):
    """For a task: the lazy config, its text form, and a checkpoint."""
    folder, made = tmp_path_factory.mktemp('lazy'), {}

    def make(task):
        if task not in made:
            text, checkpoint = make_model(task, folder)
            made[task] = write_lazy(read_config(text), folder / f'lazy_{task}.py'), text, checkpoint
        return made[task]

    return make


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('checkpoint') / 'epoch_1.pth'
    path.touch()
    return str(path)


def test_names_of_types():
    def function():
        pass

    kinds = [
        'Resize',
        'mmseg.Resize',
        'mmcv.transforms.Resize',
        EMAHook,
        function,
        LazyObject('mmengine.hooks', 'EMAHook'),
        LazyObject('mmengine.hooks').EMAHook,
        None,
    ]
    names = ['Resize', 'Resize', 'Resize', 'EMAHook', 'function', 'EMAHook', 'EMAHook', '']
    assert [type_name(kind) for kind in kinds] == names


@pytest.mark.parametrize(
    'kind',
    [
        'EMAHook',
        'mmengine.EMAHook',
        'mmengine.hooks.EMAHook',
        EMAHook,
        LazyObject('mmengine.hooks', 'EMAHook'),
        LazyObject('mmengine.hooks').EMAHook,
    ],
)
def test_found_types(kind):
    assert find_type(kind, HOOKS) is EMAHook


def test_types_of_two_packages_with_one_name():
    import mmpretrain.engine

    assert find_type('EMAHook', HOOKS, 'mmpretrain') is mmpretrain.engine.EMAHook is not EMAHook
    assert find_type('NoSuch', HOOKS) is None and find_type(None, HOOKS) is None


@pytest.mark.parametrize('task', TASKS)
def test_the_scope_is_that_of_the_model(lazy, task):
    config, text, _ = lazy(task)
    assert Config.fromfile(config).default_scope is None
    assert read_config(config).default_scope == read_config(text).default_scope
    again = Config(Config.fromfile(config).to_dict())  # as mmengine writes it down
    assert isinstance(again.model.type, str)
    assert find_scope(again) == read_config(text).default_scope
    assert find_scope(Config(dict(model=dict(type=nn.Linear)))) is None
    assert find_scope(Config(dict())) is None


def fuse(hooks, checkpoint):
    cfg = Config(dict(custom_hooks=[dict(type=hook) for hook in hooks]))
    return [hook.type for hook in test_config(cfg, checkpoint, fuse=True).custom_hooks]


def test_fusing_drops_moving_averages(checkpoint):
    from mmpretrain.engine import EMAHook as TheirHook

    dropped = [EMAHook, Averaging, TheirHook, 'mmengine.hooks.EMAHook', 'EMAHook']
    assert fuse(dropped, checkpoint) == ['mmffnet.WholeCheckpointHook', 'mmffnet.FuseHook']
    assert fuse([FiniteLossHook, FuseHook], checkpoint) == [
        FiniteLossHook,
        FuseHook,
        'mmffnet.WholeCheckpointHook',
    ]


def test_hooks_are_not_doubled():
    robust = ['ExactResumeHook', 'FiniteLossHook', 'WholeCheckpointHook']
    for mine in (FiniteLossHook, Patient, 'mmffnet.engine.hooks.FiniteLossHook'):
        cfg = train_config(Config(dict(custom_hooks=[dict(type=mine)])))
        others = [f'mmffnet.{name}' for name in robust if name != 'FiniteLossHook']
        assert [hook.type for hook in cfg.custom_hooks] == [mine, *others]


@pytest.mark.parametrize('kind', [CheckpointHook, 'mmengine.hooks.CheckpointHook'])
def test_the_checkpoint_hook_is_replaced(kind):
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(type=kind, interval=7))))
    found = train_config(cfg).default_hooks.checkpoint
    assert found == dict(type='mmffnet.SafeCheckpointHook', interval=7)


def test_a_scoped_checkpoint_hook_is_replaced():
    hooks = dict(checkpoint=dict(type='mmdet.CheckpointHook'))
    cfg = train_config(Config(dict(default_hooks=hooks)))
    assert cfg.default_hooks.checkpoint.type == 'mmffnet.SafeCheckpointHook'


@pytest.mark.parametrize(
    'kind', [KeepEverything, Named.CheckpointHook, f'{__name__}.Named.CheckpointHook']
)
def test_a_checkpoint_hook_of_ones_own_stays(kind):
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(type=kind))))
    assert train_config(cfg).default_hooks.checkpoint == dict(type=kind)


def test_mixed_precision(monkeypatch):
    monkeypatch.setattr(runner, 'get_device', lambda: 'cuda')
    names = ['mmengine.OptimWrapper', 'mmengine.optim.OptimWrapper', 'mmdet.OptimWrapper']
    for kind in (OptimWrapper, AmpOptimWrapper, *names):
        cfg = Config(dict(optim_wrapper=dict(type=kind)))
        assert train_config(cfg, amp=True).optim_wrapper.type == 'AmpOptimWrapper'
    own = type('OptimWrapper', (OptimWrapper,), {})
    with pytest.raises(UsageError, match='--amp'):
        train_config(Config(dict(optim_wrapper=dict(type=own))), amp=True)


@pytest.mark.parametrize('kind', [nn.SyncBatchNorm, 'torch.nn.SyncBatchNorm', 'mmcv.SyncBN'])
def test_sync_bn(kind):
    model = Config(dict(model=dict(parts=[dict(norm_cfg=dict(type=kind, eps=1))]))).model
    assert runner._replace_sync_bn(model)
    assert model.parts[0].norm_cfg == dict(type='BN', eps=1)


@pytest.mark.parametrize('task', TASKS)
def test_pipelines_without_annotations(lazy, task):
    config, text, _ = lazy(task)

    def names(path):
        dataset = read_config(path).test_dataloader.dataset
        return [type_name(step.type) for step in without_annotations(dataset.pipeline)]

    assert names(config) == names(text) and names(config)[0] == 'LoadImageFromFile'
    assert 'LoadAnnotations' not in names(config)


def test_data_that_are_missing():
    from mmdet.datasets import CocoDataset

    from mmffnet.datasets.shapes_det import ShapesDetDataset

    class Mine(ShapesDetDataset):
        pass

    def find(kind):
        dataset = dict(type=kind, data_root='data/coco/', ann_file='a.json')
        return find_missing_data(Config(dict(test_dataloader=dict(dataset=dataset))), 'test')

    assert find(ShapesDetDataset) is None and find(Mine) is None
    for kind in (CocoDataset, 'mmdet.datasets.CocoDataset'):
        assert 'prepare_data.py coco`' in find(kind)


def test_damaged_annotations_are_explained(tmp_path):
    from mmdet.datasets import CocoDataset

    from mmffnet.datasets.checks import _find_fault

    (tmp_path / 'a.json').write_text(json.dumps(dict(images=[dict(id=1)])))
    dataset = dict(type=CocoDataset, data_root=str(tmp_path), ann_file='a.json')
    assert "'file_name' is missing in entry 0" in _find_fault(dataset, KeyError('file_name'))


def test_empty_data_sets_are_named():
    from mmdet.datasets import CocoDataset

    from mmffnet.datasets.checks import _no_samples

    error = _no_samples(dict(dataset=dict(type=CocoDataset, data_root='here')))
    assert 'CocoDataset with here' in str(error)


@pytest.mark.parametrize('task', TASKS)
def test_predictions_are_those_of_the_text_config(lazy, tmp_path, task):
    config, text, checkpoint = lazy(task)
    pictures = make_pictures(tmp_path, 2)
    found, expected = (Inferencer(path, checkpoint)(pictures) for path in (config, text))
    for one, other in zip(found, expected, strict=True):
        name = 'labels' if task == 'segmentation' else 'scores'
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize('task', ['segmentation', 'classification'])
def test_flips_are_those_of_the_text_config(lazy, tmp_path, task):
    config, text, checkpoint = lazy(task)
    pictures = make_pictures(tmp_path, 1)
    found, expected = (
        Inferencer(path, checkpoint, fuse=True, tta=True)(pictures)[0] for path in (config, text)
    )
    name = 'labels' if task == 'segmentation' else 'scores'
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_classes_of_the_data_set(lazy, tmp_path):
    """Where the checkpoint names none."""
    config, _, checkpoint = lazy('detection')
    torch.save(torch.load(checkpoint)['state_dict'], tmp_path / 'bare.pth')
    inferencer = Inferencer(config, str(tmp_path / 'bare.pth'))
    assert inferencer.model.legend.classes == META['detection']['classes']


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.export
def test_exported_files_are_those_of_the_text_config(lazy, tmp_path, task):
    """With the steps that change the size of pictures, and the classes of the data set."""
    config, text, checkpoint = lazy(task)
    content = torch.load(checkpoint)['state_dict']
    torch.save(content, tmp_path / 'bare.pth')
    metas = []
    for path in (config, text):
        cfg = read_config(path)
        kind = Resize if path == config else 'mmcv.transforms.Resize'
        cfg.test_dataloader.dataset.pipeline.insert(1, dict(type=kind, scale=(96, 64)))
        name = tmp_path / f'{Path(path).stem}.torchscript'
        report = export_config(cfg, str(tmp_path / 'bare.pth'), 'torchscript', name)
        metas.append(load_exported(report.path).meta)
        assert metas[-1]['resize'][0] == dict(type='Resize', scale=[96, 64])
        DefaultScope._instance_dict.clear()
    for meta in metas:
        meta.pop('config')
    assert metas[0] == metas[1]
    assert metas[0]['classes'] == list(META[task]['classes'])


def test_the_size_of_a_crop():
    from mmpretrain.datasets import CenterCrop

    from mmffnet.deploy.export import natural_size

    for kind in (CenterCrop, 'mmpretrain.CenterCrop', 'CenterCrop'):
        pipeline = [dict(type=kind, crop_size=48)]
        cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))
        assert natural_size(cfg) == (48, 48)


@pytest.mark.parametrize('task', ['segmentation', 'classification'])
@pytest.mark.slow
def test_reparameterized_files(lazy, tmp_path, task):
    config, _, checkpoint = lazy(task)
    reparameterize_file(read_config(config), checkpoint, tmp_path / 'fused.pth')
    cfg = read_config(str(tmp_path / 'fused.py'))
    (picture,) = make_pictures(tmp_path / 'pictures', 1)
    found = Inferencer(str(tmp_path / 'fused.py'), str(tmp_path / 'fused.pth'))([picture])[0]
    expected = Inferencer(config, checkpoint)([picture])[0]
    assert type_name(cfg.model.type) == 'Reparameterized'
    if task == 'segmentation':
        assert (found.labels == expected.labels).mean() > 0.999
    else:
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


@pytest.mark.parametrize('task', TASKS)
def test_networks_to_be_measured(lazy, task):
    config, text, _ = lazy(task)
    found, expected = find_network(config), find_network(text)
    assert found.size == expected.size
    state, wanted = (network.build('meta').state_dict() for network in (found, expected))
    assert state.keys() == wanted.keys()


@pytest.mark.parametrize('kind', [PretrainedInit, 'Pretrained', 'mmengine.model.PretrainedInit'])
def test_pretrained_weights(tmp_path, kind):
    donor = mmffnet.FFNet(ARCH)
    torch.save(donor.state_dict(), tmp_path / 'a.pth')
    init = dict(type=kind, checkpoint=str(tmp_path / 'a.pth'))
    model = mmffnet.FFNet(ARCH, init_cfg=init)
    model.init_weights()
    for name, value in donor.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    del donor.stem.conv1
    torch.save(donor.state_dict(), tmp_path / 'a.pth')
    model = mmffnet.FFNet(ARCH, init_cfg=init)
    with pytest.raises(ValueError, match='missing'):  # where mmengine would go on
        model.init_weights()
    with pytest.raises(ValueError, match='prefx'):
        mmffnet.FFNet(ARCH, init_cfg=dict(init, prefx=''))


def shrink(cfg, folder):
    cfg.merge_from_dict(
        {
            'work_dir': str(folder / 'work'),
            'train_dataloader.batch_size': 2,
            'train_dataloader.dataset.shapes': dict(train=4, val=2, size=48),
            'val_dataloader.dataset.shapes': dict(train=4, val=2, size=48),
            'test_dataloader.dataset.shapes': dict(train=4, val=2, size=48),
            'train_dataloader.dataset.data_root': str(folder / 'data'),
            'val_dataloader.dataset.data_root': str(folder / 'data'),
            'test_dataloader.dataset.data_root': str(folder / 'data'),
            'train_cfg.max_iters': 2,
            'train_cfg.val_interval': 2,
            'log_level': 'WARNING',
        }
    )
    return cfg


@pytest.mark.slow
def test_training_and_testing(tmp_path):
    """Of a lazy config, and of what mmengine writes down of it."""
    text = read_config('segmentation/semfpn_nano_shapes.py')
    text.custom_hooks = [dict(type='EMAHook')]
    text.model.decode_head.norm_cfg = dict(type='SyncBN')
    config = write_lazy(text, tmp_path / 'lazy.py')
    cfg = train_config(shrink(read_config(config), tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        first = build_runner(cfg)
        run(first, 'train')
        assert [type(hook).__name__ for hook in first.hooks].count('SafeCheckpointHook') == 1
        written = str(tmp_path / 'work' / 'lazy.py')
        checkpoint = str(tmp_path / 'work' / 'iter_2.pth')
        found = []
        for path in (config, written):
            cfg = shrink(read_config(path), tmp_path)
            cfg.experiment_name = Path(path).parent.name
            tested = build_runner(test_config(cfg, checkpoint, fuse=True))
            assert not any(isinstance(hook, EMAHook) for hook in tested.hooks)
            found.append(run(tested, 'test'))
    assert found[0] == found[1] and 'mIoU' in found[0]
