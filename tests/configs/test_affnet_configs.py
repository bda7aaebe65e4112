"""The configs of AFFNet: they fit the networks, train, and say where the weights are."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

import mmffnet
from mmffnet.checkpoint import OFFICIAL_WEIGHTS
from mmffnet_cli.paths import config_names

CONFIGS = [name for name in config_names() if '/affnet/' in name]
TASKS = {'detection': 'mmdet', 'segmentation': 'mmseg', 'classification': 'mmpretrain'}


def scope_of(name):
    return TASKS[name.partition('/')[0]]


@cache
def _read(name):
    pytest.importorskip(scope_of(name))
    with DefaultScope.overwrite_default_scope(scope_of(name)):
        return Config.fromfile(mmffnet.config_path(name))


def read(name):
    return Config(_read(name).to_dict())


def build(name, cfg, device):
    model = dict(cfg.model)
    if 'data_preprocessor' in cfg and 'data_preprocessor' not in model:
        model['data_preprocessor'] = cfg.data_preprocessor
    with DefaultScope.overwrite_default_scope(scope_of(name)), torch.device(device):
        return revert_sync_batchnorm(MODELS.build(model))


def test_what_is_there():
    expected = [f'detection/affnet/maskrcnn_affnet-{a}_coco.py' for a in ('et', 't', 's')]
    expected += [f'classification/affnet/affnet-{a}_in1k.py' for a in ('et', 't', 's')]
    expected += [
        f'segmentation/affnet/deeplabv3_affnet-{a}_{d}.py'
        for a in ('et', 't', 's')
        for d in ('ade20k', 'voc12')
    ]
    assert sorted(CONFIGS) == sorted(expected)


@pytest.mark.parametrize('name', CONFIGS)
def test_contract(name):
    assert len(Path(mmffnet.config_path(name)).read_text().splitlines()) <= 60
    cfg = read(name)
    assert cfg.default_scope == scope_of(name)
    assert cfg.custom_imports == dict(imports=['mmffnet'], allow_failed_imports=False)
    preprocessor = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    assert (preprocessor.mean, preprocessor.std) == ([0.0] * 3, [255.0] * 3)
    assert preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')
    arch = re.search(r'affnet-(\w+?)_', name)[1]
    model = build(name, cfg, 'meta')
    backbone = model.backbone
    assert isinstance(backbone, mmffnet.AFFNet) and backbone.arch == arch
    if name.startswith('classification/'):
        table = {'et': 1_436_264, 't': 2_654_232, 's': 5_568_696}
        assert sum(p.numel() for p in model.parameters()) == table[arch]
        return
    init = cfg.model.backbone.init_cfg
    assert OFFICIAL_WEIGHTS[init.checkpoint.removeprefix('mmffnet://')].by_hand
    if name.startswith('detection/'):
        assert tuple(cfg.model.neck.in_channels) == backbone.out_channels
    else:
        head = model.decode_head
        assert head.in_channels == backbone.out_channels[-1] and backbone.strides[-1] == 16
        assert head.num_classes == (150 if 'ade20k' in name else 21)


def targets(name, height, width):
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


@pytest.mark.parametrize('name', [n for n in CONFIGS if '-et_' in n])
def test_trains(name):
    cfg = read(name)
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.norm_cfg = None
    if name.startswith('segmentation/'):
        cfg.model.data_preprocessor.size = (64, 96)
    if name.startswith('detection/'):
        cfg.model.train_cfg.rpn_proposal.max_per_img = 20
        cfg.model.train_cfg.rcnn.sampler.num = 8
    model = build(name, cfg, 'cpu').train()
    model.init_weights()
    with DefaultScope.overwrite_default_scope(scope_of(name)):
        optim = build_optim_wrapper(model, cfg.optim_wrapper)
        before = {k: p.detach().clone() for k, p in model.backbone.named_parameters()}
        data = dict(
            inputs=[torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(2)],
            data_samples=[targets(name, 64, 96) for _ in range(2)],
        )
        losses = model.train_step(data, optim)
    assert torch.isfinite(losses['loss'])
    after = dict(model.backbone.named_parameters())
    changed = [k for k, v in before.items() if not torch.equal(v, after[k])]
    assert len(changed) > 0.9 * len(before)
    assert all(p.isfinite().all() for p in after.values())


def test_weights_that_no_program_can_fetch():
    """The error says where they are."""
    name = 'detection/affnet/maskrcnn_affnet-et_coco.py'
    backbone = MODELS.build(dict(read(name).model.backbone, norm_cfg=dict(type='BN')))
    with pytest.raises(ValueError, match=r'by hand from https://drive\.google\.com'):
        backbone.init_weights()


def test_metafiles_name_the_configs():
    root = Path(mmffnet.config_path(CONFIGS[0])).parents[3]
    listed = []
    for task in TASKS:
        metafile = yaml.safe_load((root / f'configs/{task}/affnet/metafile.yml').read_text())
        listed += [model['Config'].removeprefix('configs/') for model in metafile['Models']]
    assert sorted(listed) == sorted(CONFIGS)
