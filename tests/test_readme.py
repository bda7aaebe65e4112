"""The examples of the README and of the pages that it begins work as they stand."""

import re
from functools import partial

import pages
import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

import mmffnet
from mmffnet.checkpoint import OFFICIAL_WEIGHTS, OWN_WEIGHTS

block = partial(pages.block, 'README.md')


def model_of(page, name, tmp_path):
    (tmp_path / 'config.py').write_text(pages.block(page, name))
    cfg = Config.fromfile(tmp_path / 'config.py')
    assert cfg.model.backbone.init_cfg.checkpoint.removeprefix('mmffnet://') in OFFICIAL_WEIGHTS
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
    assert isinstance(model.backbone, mmffnet.FFNet)
    return cfg, model.train()


@pytest.mark.parametrize(('page', 'name'), [('README.md', 'three'), ('docs/backbone.md', 'mmdet')])
@pytest.mark.slow
def test_mmdet_config_trains(tmp_path, page, name):
    pytest.importorskip('mmdet')
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    cfg, model = model_of(page, name, tmp_path)
    if name == 'mmdet':
        assert cfg.optim_wrapper.optimizer.type == 'AdamW' and 'momentum' not in cfg.optim_wrapper
    sample = DetDataSample(metainfo=dict(img_shape=(64, 96), pad_shape=(64, 96)))
    masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
    masks[:, 10:50, 20:60] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[20.0, 10, 60, 50]]),
        labels=torch.tensor([3]),
        masks=BitmapMasks(masks.numpy(), 64, 96),
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
    losses = model(torch.rand(2, 3, 64, 96), [sample, sample.clone()], mode='loss')
    loss, parts = model.parse_losses(losses)
    loss.backward()
    assert {'loss_cls', 'loss_bbox', 'loss_rpn_cls'} <= set(parts)
    assert ('loss_mask' in parts) == (name == 'mmdet')
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())


@pytest.mark.slow
def test_mmseg_config_trains(tmp_path):
    pytest.importorskip('mmseg')
    from mmseg.structures import SegDataSample

    _, model = model_of('docs/backbone.md', 'mmseg', tmp_path)
    sample = SegDataSample(metainfo=dict(img_shape=(64, 64)))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 64, 64)))
    losses = model(torch.rand(2, 3, 64, 64), [sample, sample.clone()], mode='loss')
    loss, parts = model.parse_losses(losses)
    loss.backward()
    assert {'decode.loss_ce', 'aux.loss_ce'} <= set(parts)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())


def test_mixers_example():
    names = {}
    exec(block('mixers'), names)  # noqa: S102
    backbone = MODELS.build(names['model'])
    assert backbone.stages[2].blocks[0].token_mixer.key.large.conv.kernel_size == (9, 9)
    sum(out.mean() for out in backbone(torch.rand(2, 3, 64, 64))).backward()


def test_meta_mixer_example():
    names = {}
    exec(pages.block('docs/mixers.md', 'meta-mixer'), names)  # noqa: S102
    backbone = MODELS.build(names['model'])
    mixers = [stage.blocks[0].token_mixer for stage in backbone.stages]
    assert {type(mixer) for mixer in mixers} == {mmffnet.models.MetaMixer}
    assert mixers[0].key.large.conv.kernel_size == (11, 11)
    sum(out.mean() for out in backbone(torch.rand(2, 3, 64, 64))).backward()


@pytest.mark.slow
def test_table_of_variants():
    rows = re.findall(
        r'^\| `(\w+)` \| ([\d, ]+) \| .*? \| ([\d. /]+) \| ([\d. /]+) \| (.*) \|$',
        pages.read('README.md'),
        re.M,
    )
    assert [row[0] for row in rows] == list(mmffnet.FFNet.arch_settings)
    for arch, depths, params, macs, weights in rows:
        backbone = MODELS.build(dict(type='FFNet', arch=arch)).eval()
        assert ', '.join(map(str, backbone.depths)) == depths
        assert set(re.findall(r'`(.*?)`', weights)) <= {*OFFICIAL_WEIGHTS, *OWN_WEIGHTS}
        for form in range(2):
            if form:
                mmffnet.reparameterize(backbone)
            count = sum(p.numel() for p in backbone.parameters()) / 1e6
            assert float(params.split(' / ')[form]) == pytest.approx(count, abs=0.0051)
            analysis = FlopAnalyzer(backbone, torch.zeros(1, 3, 64, 64))
            analysis.unsupported_ops_warnings(False)
            conv = analysis.by_operator()['conv'] * 16 / 1e9
            assert float(macs.split(' / ')[form]) == pytest.approx(conv, abs=0.0051)
