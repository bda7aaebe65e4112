"""The detection configs on COCO: what they say, that they train, and that official files fit."""

import ast
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    FUNCTIONS,
    HOOKS,
    MODELS,
    PARAM_SCHEDULERS,
    RUNNERS,
    TRANSFORMS,
    DefaultScope,
)
from mmengine.structures import InstanceData
from torch import nn

import mmffnet
from mmffnet import FFNet
from mmffnet.checkpoint import OFFICIAL_WEIGHTS, convert_names
from mmffnet_cli.paths import config_names

pytest.importorskip('mmdet')
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks

CONFIGS = [n for n in config_names() if re.fullmatch(r'detection/\w+_coco\.py', n)]
CASCADES = [f'detection/cascademaskrcnn_ffnet{i}_3x_coco.py' for i in (2, 3, 4)]
ONE_X = [f'detection/{m}_ffnet{i}_coco.py' for m in ('maskrcnn', 'retinanet') for i in range(1, 5)]


@cache
def _read(name):
    return Config.fromfile(mmffnet.config_path(name))


def read(name):
    return Config(_read(name).to_dict())


def build(cfg, device='cpu'):
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device(device):
        return revert_sync_batchnorm(MODELS.build(cfg.model))


def test_what_is_there():
    others = ['maskrcnn_ffnet2_3x', 'maskrcnn_ffnet4_fsdp', 'maskrcnn_nano', 'rtmdet_ffnet2']
    others = [f'detection/{name}_coco.py' for name in others]
    assert sorted(CONFIGS) == sorted([*ONE_X, *CASCADES, *others])


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.slow
def test_contract(name):
    text = Path(mmffnet.config_path(name)).read_text()
    assert len(text.splitlines()) <= 40
    arch = name.split('_')[1]
    assert arch.replace('ffnet', 'FFNet-') in ast.get_docstring(ast.parse(text))
    cfg = read(name)
    assert cfg.custom_imports == dict(imports=['mmffnet'], allow_failed_imports=False)
    assert cfg.default_scope == 'mmdet'

    model = build(cfg, 'meta')  # the whole network, without its memory
    assert isinstance(model.backbone, FFNet) and model.backbone.arch == arch
    assert tuple(cfg.model.neck.in_channels) == model.backbone.out_channels
    init = cfg.model.backbone.init_cfg
    if arch == 'nano':  # of which there are no weights
        assert init is None
    else:
        weights = init.checkpoint.removeprefix('mmffnet://')
        assert init.type == 'Pretrained' and weights.partition('-')[0] == arch
        assert weights in OFFICIAL_WEIGHTS
    # these weights were trained on RGB
    assert cfg.model.data_preprocessor.bgr_to_rgb
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert cfg.model.data_preprocessor.std == [58.395, 57.12, 57.375]


def shrink(cfg):
    """Keeps the structure and the widths, with few blocks and few proposals."""
    backbone = cfg.model.backbone
    backbone.update(
        arch=dict(FFNet.arch_settings[backbone.arch], depths=(1, 1, 2, 1)), init_cfg=None
    )
    if 'rpn_head' in cfg.model:
        train_cfg = cfg.model.train_cfg
        train_cfg.rpn_proposal.max_per_img = 20
        stages = train_cfg.rcnn if isinstance(train_cfg.rcnn, list) else [train_cfg.rcnn]
        for stage in stages:
            stage.sampler.num = 8
        cfg.model.test_cfg.rpn.max_per_img = 8
        cfg.model.test_cfg.rcnn.max_per_img = 4
    return cfg


def batch(with_masks, height=64, width=96):
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 10:50, 20:60] = 1
    masks[1, 4:40, 50:90] = 1
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_shape=(height, width),
            ori_shape=(height, width),
            scale_factor=(1.0, 1.0),
            batch_input_shape=(height, width),
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[20.0, 10, 60, 50], [50, 4, 90, 40]]),
        labels=torch.tensor([3, 70]),
    )
    if with_masks:
        sample.gt_instances.masks = BitmapMasks(masks.numpy(), height, width)
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    images = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=[sample, sample.clone()])


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.slow
def test_trains_and_predicts(name):
    cfg = shrink(read(name))
    model = build(cfg).train()
    model.init_weights()
    with DefaultScope.overwrite_default_scope('mmdet'):
        optim = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    grads = {}
    for key, param in model.named_parameters():
        param.register_hook(lambda grad, key=key: grads.setdefault(key, grad))
    with_masks = 'mask_head' in cfg.model.get('roi_head', {})
    losses = model.train_step(batch(with_masks), optim)
    assert losses and all(math.isfinite(float(value.detach().mean())) for value in losses.values())
    # what gets no gradient is an error in distributed training
    assert set(grads) == set(before)
    assert all(grad.isfinite().all() for grad in grads.values())
    optimized = [p for group in optim.optimizer.param_groups for p in group['params']]
    assert {id(p) for p in optimized} == {id(p) for p in model.parameters()}
    for part in ('backbone.stem.conv1.conv.weight', 'backbone.stages.3.blocks.0.'):
        assert any(
            key.startswith(part) and not torch.equal(param, before[key])
            for key, param in model.named_parameters()
        )

    model.eval()
    with torch.no_grad():
        (result, _) = model.test_step(batch(with_masks))
    found = result.pred_instances
    assert found.bboxes.shape == (len(found.labels), 4) and found.scores.isfinite().all()
    assert ('masks' in found) == with_masks


def rates(name):
    """The learning rate at the start of each epoch, and those of the first iterations."""
    cfg = read(name)
    schedulers = []
    (param,) = params = [nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.AdamW(params, lr=cfg.optim_wrapper.optimizer.lr)
    param.grad = torch.zeros(1)
    for scheduler in cfg.param_scheduler:
        schedulers.append(PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=optimizer)))
    warmup, steps = schedulers
    first = []
    for _ in range(600):
        first.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        warmup.step()
    epochs = []
    for _ in range(cfg.train_cfg.max_epochs):
        epochs.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        steps.step()
    return first, epochs


@pytest.mark.parametrize('name', [*ONE_X, 'detection/maskrcnn_ffnet2_3x_coco.py'])
@pytest.mark.slow
def test_own_recipe(name):
    cfg = read(name)
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.type == 'AdamW' and optimizer.weight_decay == 0.05
    assert 'momentum' not in optimizer
    assert cfg.train_dataloader.batch_size == 2 and cfg.auto_scale_lr.base_batch_size == 16
    _, epochs = rates(name)
    third = len(epochs) // 3
    drops = (8, 11) if third == 4 else (27, 33)
    expected = [optimizer.lr * 0.1 ** sum(e >= d for d in drops) for e in range(len(epochs))]
    assert epochs == pytest.approx(expected)
    model = build(cfg, 'meta')
    optim = build_optim_wrapper(model, cfg.optim_wrapper)
    scale = {id(p): g['lr_scale'] for g in optim.optimizer.param_groups for p in g['params']}
    depth = model.backbone.get_layer_depth('stem.')[1]
    assert scale[id(model.backbone.stem.conv1.conv.weight)] == pytest.approx(0.95 ** (depth - 1))
    assert all(scale[id(p)] == 1 for p in model.neck.parameters())


# ------------------------------------------------------------------ the official recipe


@pytest.mark.parametrize(('name', 'drop_path'), zip(CASCADES, (0.35, 0.6, 0.6), strict=True))
@pytest.mark.slow
def test_official_settings(name, drop_path):
    cfg = read(name)
    optimizer = dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert cfg.optim_wrapper.optimizer == optimizer
    assert 'clip_grad' not in cfg.optim_wrapper
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.train_cfg.max_epochs == 36
    warmup, epochs = rates(name)
    assert warmup[0] == pytest.approx(1e-7) and warmup[250] == pytest.approx(5e-5, rel=0.01)
    assert warmup[498] < 1e-4 and warmup[499:] == pytest.approx([1e-4] * 101)
    assert epochs == pytest.approx([1e-4] * 27 + [1e-5] * 6 + [1e-6] * 3)

    model = build(cfg, 'meta')
    drop_paths = [
        getattr(b.drop_path, 'drop_prob', 0) for s in model.backbone.stages for b in s.blocks
    ]
    assert drop_paths[0] == 0 and drop_paths[-1] == pytest.approx(drop_path)
    scales = {float(p.detach().cpu()[0]) for p in _layer_scales(cfg)}
    assert scales == (set() if 'ffnet2' in name else {1.0})
    heads = model.roi_head.bbox_head
    assert model.roi_head.stage_loss_weights == [1, 0.5, 0.25]
    assert [head.bbox_coder.stds for head in heads] == [
        (0.1, 0.1, 0.2, 0.2),
        (0.05, 0.05, 0.1, 0.1),
        (0.033, 0.033, 0.067, 0.067),
    ]
    assert [stage.assigner.pos_iou_thr for stage in cfg.model.train_cfg.rcnn] == [0.5, 0.6, 0.7]
    for head in heads:
        assert head.loss_bbox.loss_weight == 10 and type(head.loss_bbox).__name__ == 'GIoULoss'
        assert head.reg_decoded_bbox and not head.reg_class_agnostic
    original = cfg.model.roi_head.bbox_head
    assert all(head.norm_cfg.type == 'SyncBN' for head in [*original, cfg.model.backbone])
    test = cfg.model.test_cfg.rcnn
    assert (test.score_thr, test.nms.iou_threshold, test.max_per_img) == (0.05, 0.5, 100)
    assert cfg.val_evaluator.metric == ['bbox', 'segm']
    resize = cfg.test_pipeline[1]
    assert (resize.type, resize.scale, resize.keep_ratio) == ('Resize', (1333, 800), True)


def _layer_scales(cfg):
    backbone = MODELS.build(dict(cfg.model.backbone, init_cfg=None, norm_cfg=dict(type='BN')))
    return [p for key, p in backbone.named_parameters() if key.endswith('.scale')]


# Stage 0, stage 1, first and last block of stage 2, stage 3; from the official constructor.
OFFICIAL_SCALES = [
    (0.0687, 0.0859, 0.1074, 0.3277, 0.8),
    (0.0687, 0.0859, 0.1074, 0.5120, 0.8),
    (0.0687, 0.0859, 0.1074, 0.8, 0.8),
]


@pytest.mark.parametrize(('name', 'expected'), zip(CASCADES, OFFICIAL_SCALES, strict=True))
def test_official_layer_decay(name, expected):
    cfg = read(name)
    model = build(cfg, 'meta')
    optim = build_optim_wrapper(model, cfg.optim_wrapper)
    rate = {id(p): g['lr'] / 1e-4 for g in optim.optimizer.param_groups for p in g['params']}
    stages = model.backbone.stages
    second = stages[2].blocks
    parts = (stages[0], stages[1], second[0], second[-1], stages[3])
    for part, scale in zip(parts, expected, strict=True):
        assert all(rate[id(p)] == pytest.approx(scale, abs=6e-5) for p in part.parameters())
    rest = (model.backbone.stem, model.backbone.norm3, model.neck, model.rpn_head, model.roi_head)
    assert all(rate[id(p)] == pytest.approx(1) for part in rest for p in part.parameters())


def test_official_augmentation():
    with DefaultScope.overwrite_default_scope('mmdet'):
        steps = [TRANSFORMS.build(step) for step in read(CASCADES[0]).train_pipeline]
    assert steps[2].prob == 0.5
    plain, cropped = steps[3].transforms
    sizes = [(s, 1333) for s in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]
    assert [t.scales for t in plain] == [sizes]
    before, crop, after = cropped
    assert before.scales == [(400, 1333), (500, 1333), (600, 1333)]
    assert (crop.crop_type, crop.crop_size) == ('absolute_range', (384, 600))
    assert crop.allow_negative_crop
    assert after.scales == sizes


def test_official_moving_average():
    """For FFNet-4: momentum decays to 1e-4, and batch norms' statistics are averaged too."""
    for name in CASCADES[:2]:
        assert not read(name).get('custom_hooks')
    (hook,) = read(CASCADES[2]).custom_hooks
    assert hook.type == 'EMAHook' and hook.priority == 49
    with DefaultScope.overwrite_default_scope('mmdet'):
        HOOKS.build(hook)  # the arguments are known
        average_cfg = {k: v for k, v in hook.items() if k not in ('type', 'ema_type', 'priority')}
        source = nn.BatchNorm2d(1)
        average = MODELS.build(
            dict(type=hook.ema_type, **average_cfg), default_args=dict(model=source)
        )
    expected = 0.0
    nn.init.zeros_(source.weight)
    source.running_mean.zero_()
    average.update_parameters(source)
    nn.init.ones_(source.weight)
    source.running_mean.fill_(1)
    for step in range(1, 6):
        average.update_parameters(source)
        momentum = (1 - 1e-4) * math.exp(-(1 + step) / 2000) + 1e-4
        expected += momentum * (1 - expected)
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
        assert average.module.running_mean.item() == pytest.approx(expected, rel=1e-5)


def mmdet2_names():
    """What a Cascade Mask R-CNN of mmdet 2 with these heads holds besides the backbone."""

    def layer(key, *shape):
        return {f'{key}.weight': shape, f'{key}.bias': shape[:1]}

    names = {}
    for i in range(4):
        names |= layer(f'neck.fpn_convs.{i}.conv', 256, 256, 3, 3)
        names[f'neck.lateral_convs.{i}.conv.bias'] = (256,)
    names |= layer('rpn_head.rpn_conv', 256, 256, 3, 3)
    names |= layer('rpn_head.rpn_cls', 3, 256, 1, 1) | layer('rpn_head.rpn_reg', 12, 256, 1, 1)
    for i in range(3):
        box, mask = f'roi_head.bbox_head.{i}', f'roi_head.mask_head.{i}'
        for j in range(4):
            names[f'{box}.shared_convs.{j}.conv.weight'] = (256, 256, 3, 3)
            norm = f'{box}.shared_convs.{j}.bn'
            names |= layer(norm, 256) | {f'{norm}.num_batches_tracked': ()}
            names |= {f'{norm}.running_mean': (256,), f'{norm}.running_var': (256,)}
            names |= layer(f'{mask}.convs.{j}.conv', 256, 256, 3, 3)
        names |= layer(f'{box}.shared_fcs.0', 1024, 256 * 7 * 7)
        names |= layer(f'{box}.fc_cls', 81, 1024) | layer(f'{box}.fc_reg', 4 * 80, 1024)
        names |= layer(f'{mask}.upsample', 256, 256, 2, 2)
        names |= layer(f'{mask}.conv_logits', 80, 256, 1, 1)
    return names


@pytest.mark.parametrize(('name', 'variant'), zip(CASCADES, (2, 3, 4), strict=True))
def test_official_detectors_fit(name, variant, official):
    cfg = read(name)
    state = convert_names(build(cfg, 'meta').state_dict(), 'official')
    expected = mmdet2_names()
    keys = official.official_keys(f'ffnet_{variant}', 'det')
    expected |= {f'backbone.{key}': shape for key, shape in keys}
    for i, channels in enumerate(official.ARCHS[f'ffnet_{variant}'].dims):
        expected[f'neck.lateral_convs.{i}.conv.weight'] = (256, channels, 1, 1)
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


@pytest.mark.slow
def test_sharded_training_builds(tmp_path):
    """All that can be seen without GPUs: mmengine takes the strategy and its settings."""
    cfg = read('detection/maskrcnn_ffnet4_fsdp_coco.py')
    cfg.work_dir = str(tmp_path)
    built = RUNNERS.build(cfg)
    assert type(built.strategy).__name__ == 'FSDPStrategy'
    assert built.strategy._is_full_state_dict()
    policy = dict(built.strategy.model_wrapper['auto_wrap_policy'])
    assert callable(FUNCTIONS.get(policy.pop('type')))
    assert policy == dict(min_num_params=5_000_000)
