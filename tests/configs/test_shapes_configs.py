"""The configs on the synthetic shapes: they make their data, train and are evaluated."""

import ast
import math
from pathlib import Path

import pytest
import torch

import mmffnet
from mmffnet.datasets import CLASSES
from mmffnet.engine import runner
from mmffnet_cli.paths import config_names

CONFIGS = [name for name in config_names() if name.endswith('_nano_shapes.py')]
PACKAGES = {'detection': 'mmdet', 'segmentation': 'mmseg', 'classification': 'mmpretrain'}
METRICS = {
    'detection': 'coco/bbox_mAP',
    'segmentation': 'mIoU',
    'classification': 'accuracy/top1',
}


def options(name, root):
    """Few pictures, in another place."""
    result = []
    for part in ('train', 'val', 'test'):
        dataset = f'{part}_dataloader.dataset'
        result += [f'{dataset}.data_root={root}', f'{dataset}.shapes.train=8']
        result.append(f'{dataset}.shapes.val=2')
        if name.startswith('detection') and part != 'train':
            result.append(f'{part}_evaluator.ann_file={root}/annotations/instances_val.json')
    return result


def test_what_is_there():
    names = (
        'classification/ffnet',
        'detection/maskrcnn',
        'detection/retinanet',
        'segmentation/semfpn',
    )
    expected = [f'{name}_nano_shapes.py' for name in (*names, 'segmentation/upernet')]
    assert sorted(CONFIGS) == expected


@pytest.mark.parametrize('name', CONFIGS)
def test_contract(name):
    pytest.importorskip(PACKAGES[name.partition('/')[0]])
    text = Path(mmffnet.config_path(name)).read_text()
    assert len(text.splitlines()) <= 40
    assert 'FFNet nano' in ast.get_docstring(ast.parse(text))
    cfg = runner.read_config(name)
    runner.train_config(cfg)  # nothing is missing: the data are made on first use
    assert cfg.default_scope == PACKAGES[name.partition('/')[0]]
    assert cfg.randomness.seed == 0
    for data in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert data.dataset.data_root == cfg.data_root
    assert cfg.train_cfg.type == 'IterBasedTrainLoop' and 'T_max' not in cfg.param_scheduler[-1]


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.slow
def test_trains_and_is_evaluated(name, tmp_path):
    pytest.importorskip(PACKAGES[name.partition('/')[0]])
    root = tmp_path / 'shapes'
    work_dir = tmp_path / 'work'
    cfg = runner.read_config(name, options(name, root), str(work_dir))
    built = runner.build_runner(cfg)
    model = built.model
    model.init_weights()
    channels = model.backbone.out_channels
    if name.startswith('classification'):
        assert (cfg.model.head.in_channels,) == channels
    else:
        heads = cfg.model.get('neck', cfg.model.get('decode_head'))
        assert tuple(heads.in_channels) == channels

    loader = built.build_dataloader(cfg.train_dataloader)
    assert (root / 'shapes.json').is_file()
    expected = ('background', *CLASSES) if 'segmentation' in name else CLASSES
    assert tuple(loader.dataset.metainfo['classes']) == expected
    optim = built.build_optim_wrapper(built.optim_wrapper)
    batch = next(iter(loader))
    grads = set()
    trained = {key: param for key, param in model.named_parameters() if param.requires_grad}
    for key, param in trained.items():
        param.register_hook(lambda _, key=key: grads.add(key))
    losses = model.train().train_step(batch, optim)
    assert all(math.isfinite(float(value.detach().mean())) for value in losses.values())
    assert grads == set(trained)

    with torch.no_grad():
        found = built.val()
    metric = METRICS[name.partition('/')[0]]
    # an untrained RetinaNet detects nothing, and mmdet then leaves the metric out
    if 'retinanet' not in name:
        assert 0 <= found[metric] <= 100
