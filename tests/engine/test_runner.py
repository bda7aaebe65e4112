"""What the tools' options do to configs of the three packages."""

import copy
import functools
import multiprocessing
import sys
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, DefaultScope

from mmffnet.engine import ChannelsLastHook, runner
from mmffnet.engine.runner import build_runner, read_config, run, test_config, train_config
from mmffnet.errors import UsageError
from mmffnet.ops import depthwise_cpu

UPERNET = 'segmentation/upernet_ffnet2_ade20k.py'
DETECTOR = 'detection/maskrcnn_ffnet2_coco.py'
#: What reads the metafiles
SEARCH = ('_get_external_cfg_path', mmengine.config.utils._get_external_cfg_path)
test_config.__test__ = False  # a function of ours, not a test


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    path.touch()
    return str(path)


read_once = functools.cache(read_config)  # takes a second each


def read(name, **settings):
    """A shipped config, its data elsewhere: nothing looks for them on this disk."""
    cfg = copy.deepcopy(read_once(name))
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.backend_args = dict(backend='petrel')
    cfg.merge_from_dict(settings)
    return cfg


def test_read_config(tmp_path):
    pytest.importorskip('mmdet')
    cfg = read_config(DETECTOR, ['model.backbone.arch=ffnet1', 'model.neck.in_channels=1,2'])
    assert cfg.model.backbone.arch == 'ffnet1'
    assert cfg.model.neck.in_channels == [1, 2]
    assert cfg.work_dir == 'work_dirs/maskrcnn_ffnet2_coco'
    assert cfg.launcher == 'none'
    assert read_config(DETECTOR, [], 'here', 'pytorch').work_dir == 'here'
    mine = tmp_path / 'mine.py'
    mine.write_text("work_dir = 'there'\n")
    assert read_config(str(mine)).work_dir == 'there'


def test_configs_of_packages_are_found_without_their_metafiles(tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    mine = tmp_path / 'mine.py'
    mine.write_text("_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n")
    with monkeypatch.context() as patch:  # as mmengine does it
        patch.setattr(mmengine.config.config, *SEARCH)
        there = Config.fromfile(mine).to_dict()
    monkeypatch.setattr('mmengine.config.utils._get_cfg_metainfo', pytest.fail)
    cfg = read_config(str(mine)).to_dict()
    assert there == {k: v for k, v in cfg.items() if k not in ('work_dir', 'launcher')}
    monkeypatch.undo()
    mine.write_text("_base_ = 'mmdet::yolo/no_such.py'\n")
    with pytest.raises(UsageError, match='no_such'):
        read_config(str(mine))


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.slow
def test_workers_end_with_the_training(toy, tmp_path, by_epoch):
    """At once, while the runner is still there."""
    cfg = toy.toy_config(tmp_path, by_epoch, workers=1)
    runner = build_runner(train_config(cfg))
    run(runner, 'train')
    assert runner.iter == 12 and multiprocessing.active_children() == []


def test_train_options(checkpoint):
    pytest.importorskip('mmdet')
    cfg = train_config(read(DETECTOR), checkpoint, auto_scale_lr=True)
    assert (cfg.resume, cfg.load_from) == (True, checkpoint)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)
    cfg = train_config(read(DETECTOR, load_from='x.pth'))
    assert (cfg.resume, cfg.load_from) == (False, 'x.pth')


def test_data_behind_a_wrapper_and_remote_data(tmp_path):
    def check(**dataset):
        train_config(Config(dict(train_dataloader=dict(dataset=dataset))))

    check(data_root=str(tmp_path))
    check(data_root='s3://bucket/data')
    check(data_root='bucket/data', backend_args=dict(backend='petrel'))
    check(type='ConcatDataset', datasets=[])
    with pytest.raises(UsageError, match="'nowhere' does not exist"):
        check(dataset=dict(dataset=dict(data_root='nowhere')))


def test_options_of_test_for_mmdet(checkpoint):
    pytest.importorskip('mmdet')
    resumed = read(DETECTOR, resume=True, load_from='epoch_2.pth')
    cfg = test_config(resumed, checkpoint, out='out.pkl', show_dir='shown', wait_time=1.0)
    assert (cfg.resume, cfg.load_from) == (False, checkpoint)
    assert cfg.test_evaluator[-1] == dict(type='mmdet.DumpDetResults', out_file_path='out.pkl')
    assert cfg.test_evaluator[0].type == 'CocoMetric'
    hook = cfg.default_hooks.visualization
    assert (hook.draw, hook.show, hook.wait_time) == (True, False, 1.0)
    assert hook.test_out_dir == str(Path('shown').absolute())


def test_options_of_test_for_mmseg(checkpoint):
    pytest.importorskip('mmseg')
    cfg = test_config(
        read(UPERNET), 'https://host.invalid/x.pth', out='maps', show=True, show_dir='d'
    )
    assert cfg.load_from == 'https://host.invalid/x.pth'
    assert [metric.output_dir for metric in cfg.test_evaluator] == ['maps']
    assert cfg.custom_hooks[-1] == dict(type='mmffnet.SegPicturesHook', out_dir='d')
    assert cfg.default_hooks.visualization.draw


def test_options_of_test_for_mmpretrain(checkpoint):
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            default_hooks=dict(visualization=dict(type='VisualizationHook')),
            test_evaluator=[dict(type='Accuracy')],
        )
    )
    cfg = test_config(cfg, checkpoint, out='out.pkl', show_dir='shown')
    assert cfg.test_evaluator[-1] == dict(type='DumpResults', out_file_path='out.pkl')
    hook = cfg.default_hooks.visualization
    assert (hook.enable, hook.out_dir) == (True, str(Path('shown').absolute()))


def test_tta_of_the_config_is_used(checkpoint):
    pytest.importorskip('mmseg')
    plain = read(UPERNET)
    cfg = test_config(read(UPERNET), checkpoint, tta=True)
    assert cfg.model.type == 'SegTTAModel'
    assert cfg.model.module == plain.model
    assert cfg.test_dataloader.dataset.pipeline == plain.tta_pipeline


def test_tta_flips_by_default(checkpoint):
    pytest.importorskip('mmdet')
    from mmdet.registry import TRANSFORMS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    with pytest.raises(UsageError, match='cannot average masks'):
        test_config(read(DETECTOR), checkpoint, tta=True)
    boxes = {'model.roi_head.mask_head': None, 'test_evaluator.metric': 'bbox'}
    cfg = test_config(read(DETECTOR, **boxes), checkpoint, tta=True)
    assert cfg.model.type == 'DetTTAModel'
    assert cfg.model.module.type == 'MaskRCNN'
    *_, augmentation = cfg.test_dataloader.dataset.pipeline
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    data = dict(img=image, img_shape=(4, 6), ori_shape=(4, 6), img_path='', img_id=0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        packed = TRANSFORMS.build(augmentation)(dict(data, scale_factor=(1.0, 1.0)))
    assert [sample.flip for sample in packed['data_samples']] == [False, True]
    first, second = (picture.numpy() for picture in packed['inputs'])
    assert (first == second[:, :, ::-1]).all()
    assert (first == image.transpose(2, 0, 1)).all()


def test_resume_takes_the_newest_whole_checkpoint(tmp_path):
    def resume():
        cfg = train_config(Config(dict(work_dir=str(tmp_path), load_from='x.pth')), 'auto')
        return cfg.get('resume', False), cfg.load_from

    assert resume() == (False, 'x.pth')  # a job that was killed before its first checkpoint
    path = tmp_path / 'epoch_1.pth'
    torch.save({}, path)
    assert resume() == (True, str(path))
    path.write_bytes(b'')
    with pytest.raises(UsageError, match='is whole: start without'):
        resume()


def test_resume_takes_a_directory_of_fsdp_or_deepspeed(tmp_path):
    (tmp_path / 'iter_4.pth').mkdir()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_4.pth'))
    cfg = train_config(Config(dict(work_dir=str(tmp_path))), resume='auto')
    assert cfg.resume and cfg.load_from == str(tmp_path / 'iter_4.pth')


def test_types_may_be_classes(monkeypatch):
    monkeypatch.setattr(runner, 'get_device', lambda: 'cuda')
    cfg = Config(dict(optim_wrapper=dict(type=OptimWrapper), auto_scale_lr=None))
    assert train_config(cfg, amp=True).optim_wrapper.type == 'AmpOptimWrapper'
    with pytest.raises(UsageError, match='base_batch_size'):
        train_config(cfg, auto_scale_lr=True)


def test_training_hooks_in_any_config():
    cfg = train_config(Config(dict(model=dict())), compile=True)
    assert cfg.default_hooks == dict(checkpoint=dict(type='mmffnet.SafeCheckpointHook', interval=1))
    added = ['ExactResumeHook', 'FiniteLossHook', 'WholeCheckpointHook', 'CompileHook']
    assert [hook.type for hook in cfg.custom_hooks] == [f'mmffnet.{name}' for name in added]
    assert cfg.custom_imports == dict(imports=['mmffnet'])

    mine = dict(
        default_hooks=dict(timer=dict(type='Timer'), checkpoint=dict(type='MyCheckpointHook')),
        custom_hooks=[dict(type='EMAHook'), dict(type='FiniteLossHook', patience=3)],
        custom_imports=dict(imports='mine', allow_failed_imports=False),
    )
    cfg = train_config(Config(copy.deepcopy(mine)))
    assert cfg.default_hooks == mine['default_hooks']
    added = [dict(type=f'mmffnet.{name}Hook') for name in ('ExactResume', 'WholeCheckpoint')]
    assert cfg.custom_hooks == [*mine['custom_hooks'], *added]
    assert cfg.custom_imports == dict(imports=['mmffnet', 'mine'], allow_failed_imports=False)
    cfg = Config(dict(default_hooks=dict(checkpoint=None)))
    assert train_config(cfg).default_hooks.checkpoint is None


def test_fast_forms(checkpoint):
    hooks = [dict(type='EMAHook'), dict(type='mmpretrain.EMAHook'), dict(type='Mine')]
    speed = dict(compile=True, channels_last=True)
    cfg = test_config(Config(dict(custom_hooks=hooks)), checkpoint, fuse=True, **speed)
    added = ['mmffnet.CompileHook', 'mmffnet.ChannelsLastHook']
    found = [hook.type for hook in cfg.custom_hooks]
    assert found == ['Mine', 'mmffnet.WholeCheckpointHook', 'mmffnet.FuseHook', *added]
    robust = [f'mmffnet.{name}Hook' for name in ('ExactResume', 'FiniteLoss', 'WholeCheckpoint')]
    assert [hook.type for hook in train_config(Config(), **speed).custom_hooks] == robust + added
    cfg = train_config(Config(), compile='max-autotune-no-cudagraphs', cuda_graphs=True)
    assert cfg.custom_hooks[-2] == dict(
        type='mmffnet.CompileHook', mode='max-autotune-no-cudagraphs'
    )
    assert cfg.custom_hooks[-1] == dict(type='mmffnet.CudaGraphHook')
    with pytest.raises(UsageError, match='--compile reduce-overhead'):
        train_config(Config(), compile='reduce-overhead', cuda_graphs=True)


def test_half_precision_on_a_cpu_that_lacks_it(monkeypatch, checkpoint):
    monkeypatch.setattr(runner, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(depthwise_cpu, 'has_bfloat16', lambda: False)
    for call in (
        lambda: test_config(Config(dict(test_cfg=dict(fp16=True))), checkpoint),
        lambda: train_config(Config(dict(optim_wrapper=dict(type='AmpOptimWrapper')))),
    ):
        depthwise_cpu.warn_of_bfloat16.cache_clear()
        with pytest.warns(UserWarning, match='float32'):
            call()
    depthwise_cpu.warn_of_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ('found', 'half', 'backbone', 'expected'),
    [
        ('cuda', True, 'FFNet', True),
        ('cuda', False, 'FFNet', False),
        ('cuda', True, 'mmpretrain.ResNet', False),
        ('AVX512', False, 'mmffnet.PoolFormer', True),
        ('DEFAULT', False, 'FFNet', False),
        ('mps', False, 'FFNet', False),
    ],
)
def test_where_channels_last_is_the_default(
    monkeypatch, checkpoint, found, half, backbone, expected
):
    device = found if found in ('cuda', 'mps') else 'cpu'
    said: list[str] = []
    monkeypatch.setattr(runner, 'print_log', lambda text, logger: said.append(text))
    monkeypatch.setattr(runner, 'get_device', lambda: device)
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: found)
    text = dict(
        model=dict(backbone=dict(type=backbone)),
        optim_wrapper=dict(type='AmpOptimWrapper' if half else 'OptimWrapper'),
        test_cfg=dict(fp16=half),
    )
    for used, cfg in (
        (expected, train_config(Config(text), channels_last=None)),
        (expected, test_config(Config(text), checkpoint, channels_last=None)),
        (False, train_config(Config(text), channels_last=False)),
    ):
        assert any(h.type == 'mmffnet.ChannelsLastHook' for h in cfg.custom_hooks) == used
    assert len(said) == 2 * expected and all('--no-channels-last' in line for line in said)


@pytest.fixture
def one_process(tmp_path, monkeypatch):
    """A group of gloo that has this process alone."""
    for name, value in dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1').items():
        monkeypatch.setenv(name, value)
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    torch.set_warn_always(True)  # otherwise once in a process
    yield
    torch.set_warn_always(False)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('how', ['option', 'config', 'too late'])
def test_channels_last_before_ddp(how, toy, tmp_path, one_process, recwarn):
    """It lays out the gradients like the weights that it finds, and warns when they differ."""
    cfg = toy.toy_config(tmp_path, launcher='pytorch', custom_hooks=[])
    cfg.train_cfg = dict(by_epoch=False, max_iters=1)
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.default_hooks.checkpoint = None
    cfg = train_config(cfg, channels_last=how == 'option')
    if how == 'config':
        cfg.custom_hooks = [dict(type='mmengine.ChannelsLastHook')]
    made = build_runner(cfg)
    if how == 'too late':
        made.register_hook(ChannelsLastHook())
    made.train()
    assert isinstance(made.model, torch.nn.parallel.DistributedDataParallel)
    stem = made.model.module.backbone.stem.conv1.conv.weight
    assert stem.is_contiguous(memory_format=torch.channels_last) and not stem.is_contiguous()
    warned = any('strides do not match bucket' in str(w.message) for w in recwarn)
    assert warned == (how == 'too late')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train_dataloader.dataset.type': 'RandomPicturess'}, 'RandomPicturess is not in the'),
        ({'train_dataloader.bach_size': 2}, 'bach_size'),
        ({'train_cfg.max_iter': 5}, 'max_iter'),
        ({'val_evaluator.type': 'MeanScores'}, 'MeanScores is not in the'),
        ({'param_scheduler': [dict(type='Linear')]}, 'Linear is not in the'),
        ({'optim_wrapper.optimizer.type': 'AdamWW'}, "'AdamWW' is not in the optimizer registry"),
        ({'optim_wrapper.optimizer.learning_rate': 1}, 'learning_rate'),
        (
            dict.fromkeys(['train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler']),
            'has no train_dataloader, train_cfg, optim_wrapper',
        ),
        ({'model': None}, 'has no model'),
        ({'model.backbone.arch.depths': (1, 0, 1, 1)}, 'depths must be positive integers'),
        ({'train_dataloader.batch_size': 99, 'train_dataloader.drop_last': True}, 'one batch'),
        ({'launcher': 'slurm'}, 'is for processes of srun: call tools/slurm_train.sh'),
        ({'custom_hooks': [dict(type='Spoiling')]}, 'loss of iteration 1 .* not finite'),
    ],
)
@pytest.mark.slow
def test_mistakes_in_a_config(toy, tmp_path, changes, message):
    """Of whatever is built or found out during a training, in one sentence."""
    cfg = toy.toy_config(tmp_path)
    for key, value in changes.items():
        *path, last = key.split('.')
        functools.reduce(lambda part, name: part[name], path, cfg)[last] = value
    with pytest.raises(UsageError, match=message) as error:
        run(build_runner(train_config(cfg)), 'train')
    assert 'Traceback' not in str(error.value)


@HOOKS.register_module()
class Spoiling(Hook):
    """Makes the loss infinite."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.model.head[1].bias.data[0] = float('nan')


def test_assertions_of_a_model_name_their_place():
    """mmdet's have no text."""
    pytest.importorskip('mmdet')
    cfg = read_config('detection/retinanet_nano_shapes.py', ['model.neck.num_outs=2'])
    with pytest.raises(
        UsageError, match=r'does not fit: assert .*num_outs.* \(fpn\.py, line \d+\)'
    ):
        build_runner(cfg)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('import no_such_package', "ModuleNotFoundError: No module named 'no_such_package'"),
        (
            'try:\n    import fast\nexcept ImportError:\n    import required',
            "No module named 'required'",
        ),
        (
            "try:\n    import fast\nexcept ImportError:\n    raise ImportError('see README')",
            'ImportError: see README',
        ),
    ],
)
def test_what_a_custom_import_lacks_is_named(tmp_path, monkeypatch, text, message):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'imported_by_a_config.py').write_text(text)
    monkeypatch.delitem(sys.modules, 'imported_by_a_config', raising=False)
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['imported_by_a_config'])\n")
    with pytest.raises(UsageError, match=message):
        read_config(str(config))
    config.write_text(
        "try:\n    import fast\nexcept ImportError:\n    raise ValueError('see README')\n"
    )
    with pytest.raises(UsageError, match='ValueError: see README'):
        read_config(str(config))


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (BrokenPipeError(32, 'Broken pipe'), BrokenPipeError),
        (ConnectionResetError(104, 'reset'), ConnectionResetError),
        (OSError('of a worker'), OSError),
        (OSError(28, 'No space left on device'), UsageError),
    ],
)
@pytest.mark.slow
def test_what_is_no_mistake_keeps_its_traceback(toy, tmp_path, error, expected):
    cfg = toy.toy_config(tmp_path)
    runner = build_runner(train_config(cfg))

    def fail(runner):
        raise error

    runner.register_hook(toy.At('after_train_iter', 1, fail))
    with pytest.raises(expected) as found:
        run(runner, 'train')
    assert type(found.value) is expected


def test_optimizers_that_a_constructor_makes(toy, tmp_path):
    cfg = toy.toy_config(tmp_path)
    cfg.optim_wrapper = dict(constructor='Own', optimizer=dict(type='NobodyElses'))
    runner._check_optimizer(cfg)
    cfg.optim_wrapper = OptimWrapper(torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1))
    runner._check_optimizer(cfg)


def test_places_for_results_are_tried_first(toy, tmp_path, checkpoint):
    (tmp_path / 'file').touch()
    for options in (dict(out=f'{tmp_path}/file/a.pkl'), dict(show_dir=f'{tmp_path}/file')):
        cfg = toy.toy_config(tmp_path)
        cfg.default_hooks.visualization = dict(type='VisualizationHook')
        with pytest.raises(UsageError, match='cannot be a folder for results'):
            test_config(cfg, checkpoint, **options)
