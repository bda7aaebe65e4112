"""The segmentation configs: what they say, that they train, and that official files fit."""

import ast
import functools
import math
import re
from pathlib import Path

import cv2
import mmengine.config.utils
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, PARAM_SCHEDULERS, DefaultScope
from mmengine.structures import PixelData
from torch import nn

import mmffnet
from mmffnet.benchmark.flops import count
from mmffnet.checkpoint import OFFICIAL_WEIGHTS, convert_names
from mmffnet_cli.paths import config_names

pytest.importorskip('mmseg')
from mmseg.structures import SegDataSample

CONFIGS = [
    name
    for name in config_names()
    if re.fullmatch(r'segmentation/\w+\.py', name) and not name.endswith('_shapes.py')
]
UPERNETS = [f'segmentation/upernet_ffnet{i}_ade20k.py' for i in (1, 2, 3, 4)]
SEMFPNS = [f'segmentation/semfpn_ffnet{i}_ade20k.py' for i in (1, 2, 3, 4)]
SYSTEMS = ['segmentation/ffnetseg_ade20k.py', 'segmentation/ffnetseg_cityscapes.py']
OTHERS = ['segmentation/upernet_ffnet2_cityscapes.py', 'segmentation/segformer_ffnet2_ade20k.py']
NANO = 'segmentation/semfpn_nano_ade20k.py'
PAPER = [*UPERNETS[1:], *SYSTEMS]
METHODS = ('upernet', 'semfpn', 'segformer')


@pytest.fixture(scope='module', autouse=True)
def _read_metafiles_once():
    # mmengine goes through all of mmseg's for every base of every config
    with pytest.MonkeyPatch.context() as patch:
        utils = mmengine.config.utils
        patch.setattr(utils, 'load', functools.cache(utils.load))
        yield


@functools.cache
def _read(name):
    return Config.fromfile(mmffnet.config_path(name))


def read(name):
    return Config(_read(name).to_dict())


def build(cfg, device='cpu'):
    with DefaultScope.overwrite_default_scope('mmseg'), torch.device(device):
        return revert_sync_batchnorm(MODELS.build(cfg.model))


def num_classes(name):
    return 150 if 'ade20k' in name else 19


def test_what_is_there():
    assert sorted(CONFIGS) == sorted([*UPERNETS, *SEMFPNS, *SYSTEMS, *OTHERS, NANO])


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.slow
def test_contract(name):
    text = Path(mmffnet.config_path(name)).read_text()
    assert len(text.splitlines()) <= 40
    summary = ast.get_docstring(ast.parse(text))
    assert ("the paper's recipe" in summary) == (name in PAPER)
    assert ('not of the paper' in summary) != (name in PAPER)
    cfg = read(name)
    assert cfg.custom_imports == dict(imports=['mmffnet'], allow_failed_imports=False)
    assert cfg.default_scope == 'mmseg'

    model = build(cfg, 'meta')  # the whole network, without its memory
    backbone = model.backbone
    assert name.split('/')[1].startswith(('ffnetseg', *(f'{m}_{backbone.arch}_' for m in METHODS)))
    label = 'FFNet nano' if name == NANO else f'FFNet-{backbone.arch[-1]}'
    assert ('FFNetSeg' if 'ffnetseg' in name else label) in summary
    if model.with_neck:
        assert tuple(cfg.model.neck.in_channels) == backbone.out_channels
        assert tuple(model.decode_head.in_channels) == (64 if name == NANO else 256,) * 4
    else:
        assert tuple(model.decode_head.in_channels) == backbone.out_channels
    assert tuple(model.decode_head.in_index) == tuple(range(len(backbone.out_channels)))
    heads = [model.decode_head]
    if model.with_auxiliary_head:
        assert model.auxiliary_head.in_channels == backbone.out_channels[2]
        heads.append(model.auxiliary_head)
    assert all(head.num_classes == num_classes(name) for head in heads)
    assert cfg.model.backbone.norm_cfg.type == cfg.model.decode_head.norm_cfg.type == 'SyncBN'
    init = cfg.model.backbone.init_cfg
    if name == NANO:  # of which there are no weights
        assert init is None
    else:
        weights = init.checkpoint.removeprefix('mmffnet://')
        assert init.type == 'Pretrained' and weights.partition('-')[0] == backbone.arch
        assert weights in OFFICIAL_WEIGHTS
    # these weights were trained on RGB
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.bgr_to_rgb
    assert preprocessor.mean == [123.675, 116.28, 103.53]
    assert preprocessor.std == [58.395, 57.12, 57.375]
    crop = 512 if 'ade20k' in name else 1024
    (step,) = [t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomCrop']
    assert tuple(preprocessor.size) == step.crop_size == (crop, crop)
    images = 8 * cfg.train_dataloader.batch_size
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=images)


# ------------------------------------------------------------------ training and prediction


def shrink(cfg):
    """Keeps the structure and the widths, with one block per stage and small crops."""
    backbone = cfg.model.backbone
    settings = MODELS.get(backbone.type).arch_settings[backbone.get('arch', 'ffnetseg')]
    backbone.update(arch=dict(settings, depths=(1, 1, 1, 1)), init_cfg=None)
    cfg.model.data_preprocessor.size = (64, 64)
    if cfg.model.test_cfg.mode == 'slide':
        cfg.model.test_cfg.update(crop_size=(64, 64), stride=(48, 48))
    return cfg


def batch(height, width, classes, images=1):
    labels = torch.randint(0, classes, (1, height, width))
    labels[:, :8] = 255
    sample = SegDataSample(
        gt_sem_seg=PixelData(data=labels),
        metainfo=dict(img_shape=(height, width), ori_shape=(height, width)),
    )
    inputs = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8) for _ in range(images)]
    return dict(inputs=inputs, data_samples=[sample.clone() for _ in range(images)])


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.slow
def test_trains_and_predicts(name):
    cfg = shrink(read(name))
    model = build(cfg).train()
    model.init_weights()
    with DefaultScope.overwrite_default_scope('mmseg'):
        optim = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {key: param.detach().clone() for key, param in model.named_parameters()}
    grads = {}
    for key, param in model.named_parameters():
        param.register_hook(lambda grad, key=key: grads.setdefault(key, grad))
    losses = model.train_step(batch(64, 64, num_classes(name), images=2), optim)
    expected = {'decode.loss_ce', 'decode.acc_seg', 'loss'}
    if 'upernet' in name:
        expected |= {'aux.loss_ce', 'aux.acc_seg'}
    assert set(losses) == expected
    assert all(math.isfinite(float(value)) for value in losses.values())
    # what gets no gradient is an error in distributed training
    assert set(grads) == set(before)
    assert all(grad.isfinite().all() for grad in grads.values())
    changed = [k for k, p in model.named_parameters() if not torch.equal(p, before[k])]
    for part in ('backbone.stem.conv1.conv.', 'backbone.stages.3.blocks.0.', 'decode_head.'):
        assert any(key.startswith(part) for key in changed)

    # an image of any size, in one piece or in windows
    (result,) = model.eval().test_step(batch(70, 99, num_classes(name)))
    assert result.pred_sem_seg.data.shape == (1, 70, 99)
    assert result.seg_logits.data.shape == (num_classes(name), 70, 99)
    assert result.seg_logits.data.isfinite().all()


def test_deep_supervision_off():
    cfg = shrink(read(UPERNETS[0]))
    cfg.merge_from_dict({'model.auxiliary_head': None})
    model = build(cfg).train()
    inputs = model.data_preprocessor(batch(64, 64, 150, images=2), training=True)
    assert set(model(**inputs, mode='loss')) == {'decode.loss_ce', 'decode.acc_seg'}
    assert not [key for key in model.state_dict() if 'auxiliary' in key]


# ------------------------------------------------------------------ published sizes


@pytest.mark.parametrize(
    ('name', 'parameters', 'flops'),
    zip(UPERNETS[1:], (58, 80, 113), (942, 1010, 1158), strict=True),
)
@pytest.mark.slow
def test_published_size_of_upernet(name, parameters, flops):
    """At 512x2048, counted with biases and ReLU but without SyncBN."""
    cost = count(build(read(name), 'meta'), (512, 2048))
    assert round(cost.parameters / 1e6) == parameters
    assert round((cost.macs + cost.values['bias'] + cost.values['relu']) / 1e9) == flops


@pytest.mark.parametrize(
    ('name', 'size', 'parameters', 'macs', 'total'),
    [
        # published as 68M and 74G, 68M and 577G
        (SYSTEMS[0], (512, 512), 68.477, 74.571, 75.002),
        (SYSTEMS[1], (1024, 2048), 67.758, 572.64, 576.53),
    ],
)
@pytest.mark.slow
def test_published_size_of_the_system(name, size, parameters, macs, total):
    cost = count(build(read(name), 'meta'), size)
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=1e-3)
    assert cost.macs / 1e9 == pytest.approx(macs, abs=6e-3)
    assert (cost.macs + 2 * cost.values['norm']) / 1e9 == pytest.approx(total, abs=6e-3)


# ------------------------------------------------------------------ official checkpoints


def conv_bn(key, *shape):
    norm = dict.fromkeys(('weight', 'bias', 'running_mean', 'running_var'), shape[:1])
    norm['num_batches_tracked'] = ()
    return {f'{key}.conv.weight': shape} | {f'{key}.bn.{k}': v for k, v in norm.items()}


def conv_seg(key, *shape):
    return {f'{key}.conv_seg.weight': (*shape, 1, 1), f'{key}.conv_seg.bias': shape[:1]}


def mmseg0_names(dims):
    """What a UPerNet of mmseg 0.x on ADE20K holds besides the backbone."""
    head, width = 'decode_head', 512
    names = conv_seg(head, 150, width)
    for i in range(4):
        names |= conv_bn(f'{head}.psp_modules.{i}.1', width, dims[3], 1, 1)
    names |= conv_bn(f'{head}.bottleneck', width, dims[3] + 4 * width, 3, 3)
    for i in range(3):
        names |= conv_bn(f'{head}.lateral_convs.{i}', width, dims[i], 1, 1)
        names |= conv_bn(f'{head}.fpn_convs.{i}', width, width, 3, 3)
    names |= conv_bn(f'{head}.fpn_bottleneck', width, 4 * width, 3, 3)
    names |= conv_seg('auxiliary_head', 150, 256)
    return names | conv_bn('auxiliary_head.convs.0', 256, dims[2], 3, 3)


def official_shapes(name):
    state = convert_names(build(read(name), 'meta').state_dict(), 'official')
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize(('name', 'variant'), zip(UPERNETS[1:], (2, 3, 4), strict=True))
def test_official_upernets_fit(name, variant, official):
    keys = official.official_keys(f'ffnet_{variant}', 'det')
    expected = {f'backbone.{key}': shape for key, shape in keys}
    expected |= mmseg0_names(official.ARCHS[f'ffnet_{variant}'].dims)
    assert official_shapes(name) == expected


@pytest.mark.parametrize('name', SYSTEMS)
def test_official_systems_fit(name, official):
    head = official.official_keys(name.removesuffix('.py').rpartition('_')[2], 'head')
    expected = {f'backbone.{k}': shape for k, shape in official.official_keys('ffnet_seg', 'seg')}
    expected |= {f'decode_head.{key}': shape for key, shape in head}
    assert official_shapes(name) == expected


# ------------------------------------------------------------------ recipes


def rates(name, iterations):
    """The learning rate of the first iterations, relative to the optimizer's."""
    cfg = read(name)
    (param,) = params = [nn.Parameter(torch.zeros(1))]
    param.grad = torch.zeros(1)
    optimizer = torch.optim.AdamW(params, lr=1.0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        schedulers = [
            PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=optimizer))
            for scheduler in cfg.param_scheduler
        ]
    found = []
    for _ in range(iterations):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


def test_learning_rates_of_160k_iterations():
    """As mmcv 1.x had them: the warm-up reduces a rate that decays from the first iteration."""
    found = rates(PAPER[0], 3000)
    for name in (*PAPER, *OTHERS):
        assert read(name).param_scheduler == read(PAPER[0]).param_scheduler
        assert read(name).train_cfg.max_iters == 160000
    for i in (0, 1, 700, 1499, 1500, 2999):
        decayed = 1 - i / 160000
        warmup = min(1, 1 - (1 - i / 1500) * (1 - 1e-6))
        assert found[i] == pytest.approx(decayed * warmup, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize('name', SEMFPNS)
def test_semantic_fpn_recipe(name):
    cfg = read(name)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=2e-4, weight_decay=1e-4)
    assert cfg.train_cfg.max_iters == 40000 and cfg.train_dataloader.batch_size == 4
    assert rates(name, 201)[200] == pytest.approx((1 - 200 / 40000) ** 0.9, rel=1e-5)


def groups(name):
    """Learning rate and weight decay of every parameter."""
    cfg = read(name)
    model = build(cfg, 'meta')
    optim = build_optim_wrapper(model, cfg.optim_wrapper)
    found = {id(p): (g['lr'], g['weight_decay']) for g in optim.param_groups for p in g['params']}
    return {key: (found[id(param)], param) for key, param in model.named_parameters()}


@pytest.mark.parametrize(
    ('name', 'drop_path', 'decay', 'tensors'),
    [(SYSTEMS[0], 0.3, 0.05, 140), (SYSTEMS[1], 0.35, 0.02, None)],
)
@pytest.mark.slow
def test_official_recipe_of_the_system(name, drop_path, decay, tensors):
    cfg = read(name)
    optimizer = dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=decay)
    assert cfg.optim_wrapper.optimizer == optimizer
    found = groups(name)
    head = {key for key, _ in found.items() if key.startswith('decode_head.')}
    assert tensors in (None, len(head))
    for key, (group, _) in found.items():
        assert group == pytest.approx((6e-4 if key in head else 6e-5, decay)), key
    assert cfg.model.backbone.drop_path_rate == drop_path


@pytest.mark.parametrize('name', UPERNETS)
def test_official_recipe_of_upernet(name):
    cfg = read(name)
    optimizer = dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert cfg.optim_wrapper.optimizer == optimizer and cfg.optim_wrapper.clip_grad is None
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 4000
    drop_path = {'ffnet1': 0.1, 'ffnet2': 0.2, 'ffnet3': 0.3, 'ffnet4': 0.3}
    assert cfg.model.backbone.drop_path_rate == drop_path[cfg.model.backbone.arch]
    found = groups(name)
    for key, ((_, decay), param) in found.items():
        assert decay == (0.0 if param.ndim == 1 else 0.05), key
    rate = {key: lr / 1e-4 for key, ((lr, _), _) in found.items()}
    if name in UPERNETS[:2]:
        assert set(rate.values()) == {1.0}
        return
    last = {'ffnet3': 0.7290, 'ffnet4': 0.9}[cfg.model.backbone.arch]
    stage2 = [value for key, value in rate.items() if key.startswith('backbone.stages.2.')]
    assert (min(stage2), max(stage2)) == pytest.approx((0.3487, last), abs=1e-4)
    for part, value in {'stages.0.': 0.2824, 'stages.1.': 0.3138, 'stages.3.': 0.9}.items():
        of_part = [v for key, v in rate.items() if key.startswith(f'backbone.{part}')]
        assert of_part == pytest.approx([value] * len(of_part), abs=1e-4)
    rest = [v for key, v in rate.items() if not key.startswith('backbone.stages.')]
    assert rest == pytest.approx([1] * len(rest))


# ------------------------------------------------------------------ data


@pytest.fixture
def ade20k(tmp_path):
    """Two pictures in the layout of ADE20K; label 0 is 'none of the classes'."""
    rng = np.random.default_rng(0)
    for part in ('training', 'validation'):
        for folder in ('images', 'annotations'):
            (tmp_path / folder / part).mkdir(parents=True)
        image = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
        label = rng.integers(0, 151, (60, 90), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / 'images' / part / 'a.jpg'), image)
        cv2.imwrite(str(tmp_path / 'annotations' / part / 'a.png'), label)
    return tmp_path, label


def dataset(loader, root):
    cfg = dict(loader.dataset, data_root=str(root))
    with DefaultScope.overwrite_default_scope('mmseg'):
        return DATASETS.build(cfg)


def test_ade20k_pipelines(ade20k):
    root, label = ade20k
    cfg = read(UPERNETS[0])
    (sample,) = dataset(cfg.train_dataloader, root)
    assert max(sample['inputs'].shape[1:]) <= 512
    assert set(sample['data_samples'].gt_sem_seg.data.unique().tolist()) <= {*range(150), 255}

    (sample,) = dataset(cfg.val_dataloader, root)
    # 60x90 is resized to 512x768, labels stay as they are: 255 instead of 0, the others one less
    assert sample['inputs'].shape == (3, 512, 768)
    expected = torch.from_numpy(label - np.uint8(1))
    assert torch.equal(sample['data_samples'].gt_sem_seg.data[0], expected)
    assert cfg.test_dataloader == cfg.val_dataloader


@pytest.mark.slow
def test_ade20k_multi_scale_and_flip(ade20k):
    cfg = read(SEMFPNS[0])
    cfg.model.backbone.update(
        arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8], stem_channels=8), init_cfg=None
    )
    cfg.model.neck.update(in_channels=[8, 8, 8, 8], out_channels=8)
    cfg.model.decode_head.update(in_channels=[8, 8, 8, 8], channels=8, num_classes=3)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    (sample,) = dataset(cfg.test_dataloader, ade20k[0])
    # 0.5 .. 1.75 of 512x768, each side the next multiple of 32, as it is and flipped
    sizes = [(256, 384), (384, 576), (512, 768), (640, 960), (768, 1152), (896, 1344)]
    found = [tuple(view.shape[1:]) for view in sample['inputs']]
    assert found == [size for size in sizes for _ in range(2)]
    assert [view.flip for view in sample['data_samples']] == [False, True] * 6
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = revert_sync_batchnorm(MODELS.build(dict(cfg.tta_model, module=cfg.model))).eval()
    (result,) = model.test_step(pseudo_collate([sample]))
    assert result.pred_sem_seg.data.shape == (1, 60, 90)


def test_cityscapes_pipelines(tmp_path):
    rng = np.random.default_rng(0)
    for part in ('train', 'val'):
        for folder, suffix in (('leftImg8bit', 'leftImg8bit'), ('gtFine', 'gtFine_labelTrainIds')):
            (tmp_path / folder / part / 'ulm').mkdir(parents=True)
            shape = (64, 128, 3) if folder == 'leftImg8bit' else (64, 128)
            picture = rng.integers(0, 19, shape, dtype=np.uint8)
            cv2.imwrite(str(tmp_path / folder / part / 'ulm' / f'ulm_0_{suffix}.png'), picture)
    cfg = read(SYSTEMS[1])
    (sample,) = dataset(cfg.train_dataloader, tmp_path)
    assert max(sample['inputs'].shape[1:]) <= 1024
    (sample,) = dataset(cfg.val_dataloader, tmp_path)
    assert sample['inputs'].shape == (3, 1024, 2048)
    assert sample['data_samples'].gt_sem_seg.data.unique().tolist() == list(range(19))
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(1024, 1024), stride=(768, 768))
    scales = [step.scale for step in cfg.tta_pipeline[1].transforms[0]]
    assert scales == [(2048 * r, 1024 * r) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]


_ALONE = """
import sys

sys.modules['mmdet'] = sys.modules['mmpretrain'] = None  # not installed
import torch
from mmengine.registry import MODELS, init_default_scope

from mmffnet.engine import runner

torch.set_num_threads(1)
small = [f'{part}_dataloader.dataset.{name}' for part in ('train', 'val', 'test') for name in (
    'data_root=shapes', 'shapes.train=8', 'shapes.val=2', 'shapes.size=64')]
small += ['model.data_preprocessor.size=(64,64)', 'train_cfg.max_iters=2']
cfg = runner.read_config('segmentation/semfpn_nano_shapes.py', small, 'work')
runner.build_runner(runner.train_config(cfg)).train()
cfg = runner.read_config('segmentation/semfpn_nano_shapes.py', small, 'work')
found = runner.build_runner(runner.test_config(cfg, 'work/iter_2.pth', fuse=True)).test()
assert 0 <= found['mIoU'] <= 100
for name in ('upernet_ffnet2', 'ffnetseg', 'segformer_ffnet2'):
    with torch.device('meta'):
        MODELS.build(runner.read_config(f'segmentation/{name}_ade20k.py').model)
"""


@pytest.mark.slow
def test_without_mmdet_and_mmpretrain(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    child = toy.Child(tmp_path / 'log', _ALONE, function=toy.run_code)
    assert child.wait() == 0, child.text
    assert (tmp_path / 'work' / 'iter_2.pth').is_file()
