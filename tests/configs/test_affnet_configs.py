"""The configs of AFFNet: they fit the networks, train, and say where the weights are."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from family_configs import ROOT, TASKS, batch, build, metadata, names_of, read, scope_of, small
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

import mmffnet
from mmffnet.benchmark.flops import count
from mmffnet.checkpoint import OFFICIAL_WEIGHTS

CONFIGS = names_of('affnet')


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
@pytest.mark.slow
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
        parameters = sum(p.numel() for p in model.parameters())
        assert parameters == table[arch] == metadata(name)['Parameters']
        return
    init = cfg.model.backbone.init_cfg
    assert OFFICIAL_WEIGHTS[init.checkpoint.removeprefix('mmffnet://')].by_hand
    if name.startswith('detection/'):
        assert tuple(cfg.model.neck.in_channels) == backbone.out_channels
    else:
        head = model.decode_head
        assert head.in_channels == backbone.out_channels[-1] and backbone.strides[-1] == 16
        assert head.num_classes == (150 if 'ade20k' in name else 21)


@pytest.mark.parametrize('name', [n for n in CONFIGS if '-et_' in n])
@pytest.mark.slow
def test_trains(name):
    cfg = small(name)
    cfg.model.backbone.norm_cfg = None
    model = build(name, cfg, 'cpu').train()
    model.init_weights()
    with DefaultScope.overwrite_default_scope(scope_of(name)):
        optim = build_optim_wrapper(model, cfg.optim_wrapper)
        before = {k: p.detach().clone() for k, p in model.backbone.named_parameters()}
        losses = model.train_step(batch(name), optim)
    assert torch.isfinite(losses['loss'])
    after = dict(model.backbone.named_parameters())
    changed = [k for k, v in before.items() if not torch.equal(v, after[k])]
    assert len(changed) > 0.9 * len(before)
    assert all(p.isfinite().all() for p in after.values())


def test_flops_of_the_smallest():
    name = 'classification/affnet/affnet-et_in1k.py'
    assert count(build(name, read(name), 'cpu'), (256, 256)).macs == metadata(name)['FLOPs']


def test_weights_that_no_program_can_fetch():
    """The error says where they are."""
    name = 'detection/affnet/maskrcnn_affnet-et_coco.py'
    backbone = MODELS.build(dict(read(name).model.backbone, norm_cfg=dict(type='BN')))
    with pytest.raises(ValueError, match=r'by hand from https://drive\.google\.com'):
        backbone.init_weights()


def test_metafiles_name_the_configs():
    listed = []
    for task in TASKS:
        metafile = yaml.safe_load((ROOT / f'configs/{task}/affnet/metafile.yml').read_text())
        listed += [model['Config'].removeprefix('configs/') for model in metafile['Models']]
    assert sorted(listed) == sorted(CONFIGS)
