"""What the tests of the families' configs share: reading, building, and something to train on."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import nn

import mmffnet
from mmffnet_cli.paths import config_names

ROOT = Path(__file__).parents[1]
TASKS = {'detection': 'mmdet', 'segmentation': 'mmseg', 'classification': 'mmpretrain'}


def names_of(family: str) -> list[str]:
    """Names of all configs of a family."""
    return [name for name in config_names() if f'/{family}/' in name]


def scope_of(name: str) -> str:
    return TASKS[name.partition('/')[0]]


def entry(name: str) -> dict[str, Any]:
    """What the metafile says of a config."""
    path = ROOT / 'configs' / Path(name).parent / 'metafile.yml'
    models = yaml.safe_load(path.read_text())['Models']
    return next(m for m in models if m['Config'] == f'configs/{name}')


def metadata(name: str) -> dict[str, Any]:
    return entry(name)['Metadata']


@cache
def _read(name: str) -> Config:
    pytest.importorskip(scope_of(name))
    with DefaultScope.overwrite_default_scope(scope_of(name)):
        return Config.fromfile(mmffnet.config_path(name))


def read(name: str) -> Config:
    return Config(_read(name).to_dict())


def build(name: str, cfg: Config, device: str) -> nn.Module:
    model = dict(cfg.model)
    if 'data_preprocessor' in cfg and 'data_preprocessor' not in model:
        model['data_preprocessor'] = cfg.data_preprocessor
    with DefaultScope.overwrite_default_scope(scope_of(name)), torch.device(device):
        return revert_sync_batchnorm(MODELS.build(model))


@cache
def meta(name: str) -> nn.Module:
    """The whole network, without its memory."""
    return build(name, read(name), 'meta')


def small(name: str) -> Config:
    """The config, made to train on pictures of 64x96 without a checkpoint."""
    cfg = read(name)
    cfg.model.backbone.init_cfg = None
    if name.startswith('segmentation/'):
        cfg.model.data_preprocessor.size = (64, 96)
    if 'rpn_head' in cfg.model:
        cfg.model.train_cfg.rpn_proposal.max_per_img = 20
        cfg.model.train_cfg.rcnn.sampler.num = 8
    return cfg


def batch(name: str, height: int = 64, width: int = 96) -> dict[str, Any]:
    """Two pictures with what is to be learned from them."""
    pictures = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=pictures, data_samples=[_targets(name, height, width) for _ in pictures])


def _targets(name: str, height: int, width: int) -> Any:
    if name.startswith('detection/'):
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks

        masks = torch.zeros(1, height, width, dtype=torch.uint8)
        masks[0, 10:50, 20:60] = 1
        sample = DetDataSample(
            metainfo=dict(img_shape=(height, width), batch_input_shape=(height, width))
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[20.0, 10, 60, 50]]),
            labels=torch.tensor([3]),
            masks=BitmapMasks(masks.numpy(), height, width),
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long()
        )
        return sample
    if name.startswith('segmentation/'):
        from mmseg.structures import SegDataSample

        labels = torch.randint(0, 20, (1, height, width))
        return SegDataSample(
            gt_sem_seg=PixelData(data=labels), metainfo=dict(img_shape=(height, width))
        )
    from mmpretrain.structures import DataSample

    return DataSample().set_gt_label(7)
