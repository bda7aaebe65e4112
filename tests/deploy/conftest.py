"""Small models that give something: statistics and scores like those of trained ones."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmffnet
from mmffnet.deploy.check import draw_pictures, predict

CHANNELS = [8, 16, 32, 64]
TINY = dict(depths=[1, 1, 1, 1], channels=CHANNELS, stem_channels=8)
BN = dict(type='BN')


def _classifier() -> Config:
    backbone = dict(type='FFNet', arch=TINY, out_indices=3, out_norm_cfg=BN)
    steps = [dict(type='ResizeEdge', scale=72, edge='short'), dict(type='CenterCrop', crop_size=64)]
    return Config(
        dict(
            default_scope='mmpretrain',
            data_preprocessor=dict(
                mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
            ),
            model=dict(
                type='ImageClassifier',
                backbone=backbone,
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=5, in_channels=64),
            ),
            test_dataloader=dict(
                dataset=dict(
                    type='CustomDataset',
                    metainfo=dict(classes=['a', 'b', 'c', 'd', 'e']),
                    pipeline=[dict(type='LoadImageFromFile'), *steps, dict(type='PackInputs')],
                )
            ),
        )
    )


def _semfpn() -> Config:
    cfg = Config.fromfile(mmffnet.config_path('segmentation/semfpn_nano_shapes'))
    cfg.model.backbone.update(arch=TINY, out_indices=(1, 2, 3))
    cfg.model.neck.update(in_channels=CHANNELS[1:], out_channels=16, num_outs=3)
    cfg.model.decode_head.update(
        in_channels=[16, 16, 16], in_index=[0, 1, 2], feature_strides=[8, 16, 32], channels=16
    )
    return cfg


def _upernet() -> Config:
    cfg = Config.fromfile(mmffnet.config_path('segmentation/upernet_nano_shapes'))
    cfg.model.backbone.arch = TINY
    cfg.model.decode_head.update(in_channels=CHANNELS, channels=16)
    cfg.model.auxiliary_head.update(in_channels=32, channels=8)
    return cfg


def _ffnetseg() -> Config:
    cfg = Config.fromfile(mmffnet.config_path('segmentation/ffnetseg_ade20k'))
    # weights below a fresh layer scale of 1e-5 are too small for float16, trained ones are not
    cfg.model.backbone.update(arch=TINY, norm_cfg=BN, init_cfg=None, layer_scale_init_value=0.1)
    cfg.model.decode_head.update(
        in_channels=CHANNELS[1:], head_width=8, head_depth=1, num_classes=6, norm_cfg=BN
    )
    return cfg


def _retinanet() -> Config:
    cfg = Config.fromfile(mmffnet.config_path('detection/retinanet_nano_shapes'))
    cfg.model.backbone.update(arch=TINY, out_indices=(1, 2, 3))
    cfg.model.neck.update(in_channels=CHANNELS[1:], out_channels=16, num_outs=3)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    return cfg


def _maskrcnn() -> Config:
    cfg = Config.fromfile(mmffnet.config_path('detection/maskrcnn_nano_shapes'))
    cfg.model.backbone.arch = TINY
    cfg.model.neck.update(in_channels=CHANNELS, out_channels=16)
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    head = cfg.model.roi_head
    head.bbox_roi_extractor.update(out_channels=16, finest_scale=28)
    head.mask_roi_extractor.out_channels = 16
    head.bbox_head.update(in_channels=16, fc_out_channels=32, reg_class_agnostic=False)
    head.mask_head.update(in_channels=16, conv_out_channels=16, num_convs=1, class_agnostic=False)
    return cfg


CONFIGS = dict(
    classifier=_classifier,
    semfpn=_semfpn,
    upernet=_upernet,
    ffnetseg=_ffnetseg,
    retinanet=_retinanet,
    maskrcnn=_maskrcnn,
)


@pytest.fixture(scope='session')
def tiny_config() -> Callable[[str], Config]:
    """Gives the config of one of the small models, by name."""
    return functools.cache(lambda name: CONFIGS[name]())


@pytest.fixture(scope='session')
def tiny_model(tiny_config) -> Callable[..., Any]:
    """Builds one of the small models, by name, with changes of its config."""

    built: dict[str, Any] = {}

    def build(name: str, **changes: Any) -> Any:
        key = f'{name} {changes}'
        if key not in built:
            built[key] = make(name, changes)
        return built[key]

    def make(name: str, changes: dict) -> Any:
        torch.manual_seed(1)
        cfg = tiny_config(name)
        init_default_scope(cfg.default_scope)
        settings = ConfigDict(cfg.model.to_dict())
        if 'data_preprocessor' in cfg:
            settings.setdefault('data_preprocessor', cfg.data_preprocessor)
        model = MODELS.build(Config._merge_a_into_b(changes, settings)).eval()
        if changes:
            model.load_state_dict(build(name).state_dict())
        else:
            enliven(model)
        return model

    return build


def enliven(model: Any) -> None:
    """Random statistics, and scores that differ, as they do in trained models."""
    for m in model.modules():
        if isinstance(m, _BatchNorm):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
            nn.init.normal_(m.weight, 1, 0.2)
            nn.init.normal_(m.bias, 0, 0.2)
    if hasattr(model, 'roi_head'):
        head = model.roi_head
        layers = [(model.rpn_head.rpn_cls, 2, 0), (model.rpn_head.rpn_reg, 0.3, 0)]
        layers += [(head.bbox_head.fc_cls, 1.5, 0), (head.bbox_head.fc_reg, 0.5, 0)]
        layers += [(head.mask_head.conv_logits, 1, 0)]
    elif hasattr(model, 'bbox_head'):
        layers = [(model.bbox_head.retina_cls, 1, -2.5), (model.bbox_head.retina_reg, 0.3, 0)]
    else:
        layers = [(model.head.fc if hasattr(model, 'head') else model.decode_head.conv_seg, 1, 0)]
    for layer, std, mean in layers:
        _spread(model, layer, std, mean)


def _spread(model: Any, layer: Any, std: float, mean: float) -> None:
    """Gives every channel of a layer this standard deviation and mean, on synthetic pictures."""
    outs: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _, args, out: outs.append(out.detach()))
    task = 'segmentation' if hasattr(model, 'decode_head') else 'detection'
    predict(model, 'classification' if hasattr(model, 'head') else task, draw_pictures(2, 128, 128))
    handle.remove()
    out = torch.cat([one.transpose(0, 1).flatten(1) for one in outs], dim=1)
    factor = std / out.std(dim=1).clamp(min=1e-6)
    layer.weight.data *= factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
    layer.bias.data = mean + (layer.bias.data - out.mean(dim=1)) * factor
