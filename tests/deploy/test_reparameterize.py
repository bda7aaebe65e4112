"""From a trained detector or segmentor to a re-parameterised checkpoint that its config loads."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmffnet
from mmffnet.deploy.reparameterize import compare, reparameterize_file

TINY = dict(depths=[1, 1, 2, 1], channels=[8, 16, 32, 64], stem_channels=8)
BN = dict(type='BN', requires_grad=True)


def detector():
    cfg = Config.fromfile(mmffnet.config_path('detection/maskrcnn_ffnet2_coco.py'))
    cfg.model.backbone.update(arch=TINY, norm_cfg=BN)
    cfg.model.neck.update(in_channels=TINY['channels'], out_channels=16, norm_cfg=BN)
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    roi_head = cfg.model.roi_head
    roi_head.bbox_roi_extractor.out_channels = roi_head.mask_roi_extractor.out_channels = 16
    roi_head.bbox_head.update(in_channels=16, fc_out_channels=16)
    roi_head.mask_head.update(in_channels=16, conv_out_channels=16)
    cfg.model.test_cfg.rpn.update(max_per_img=20, nms_pre=50)
    return cfg


def segmentor():
    cfg = Config.fromfile(mmffnet.config_path('segmentation/upernet_ffnet2_ade20k.py'))
    cfg.model.backbone.update(arch=TINY, norm_cfg=BN)
    cfg.model.decode_head.update(in_channels=TINY['channels'], channels=16, norm_cfg=BN)
    cfg.model.auxiliary_head.update(in_channels=32, channels=16, norm_cfg=BN)
    return cfg


def trained(cfg, path):
    """A model with weights and statistics that are not those of a new one."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    for m in model.modules():
        if isinstance(m, _BatchNorm):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
            nn.init.normal_(m.weight, 1, 0.2)
            nn.init.normal_(m.bias, 0, 0.2)
    torch.save({'state_dict': model.state_dict(), 'meta': {'epoch': 7}}, path)
    return model


@pytest.mark.parametrize('make', [detector, segmentor])
@pytest.mark.slow
def test_checkpoint_and_config_of_the_fused_model(make, tmp_path):
    cfg = make()
    source = trained(cfg, tmp_path / 'trained.pth')
    report = reparameterize_file(cfg, str(tmp_path / 'trained.pth'), tmp_path / 'fused.pth')
    assert 'fused.pth' in report and 'million parameters' in report
    content = torch.load(tmp_path / 'fused.pth', weights_only=True)
    assert content['meta'] == {'epoch': 7, 'reparameterized': True}

    deployed = Config.fromfile(tmp_path / 'fused.py')
    assert deployed.model.backbone.arch == TINY  # the rest of the config is where it was
    fused = MODELS.build(deployed.model).eval()
    fused.load_state_dict(content['state_dict'])
    assert not any(isinstance(m, _BatchNorm) for m in fused.modules())
    assert compare(source.double(), fused.double()) < 1e-5  # its weights went through float32
    fused.load_state_dict(source.state_dict())
    assert compare(source, fused) < 1e-12


def test_nothing_is_overwritten_unasked(tmp_path):
    cfg = segmentor()
    trained(cfg, tmp_path / 'trained.pth')
    for name in ('fused.pth', 'fused.py'):
        (tmp_path / name).write_text('mine')
        with pytest.raises(FileExistsError, match=f'{name} exists already'):
            reparameterize_file(cfg, str(tmp_path / 'trained.pth'), tmp_path / 'fused.pth')
        assert (tmp_path / name).read_text() == 'mine'
        (tmp_path / name).unlink()


def test_a_checkpoint_that_does_not_fit(tmp_path):
    cfg = segmentor()
    torch.save({'state_dict': {'other.weight': torch.ones(1)}}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'other.pth does not fit the model'):
        reparameterize_file(cfg, str(tmp_path / 'other.pth'), tmp_path / 'fused.pth')
    assert not (tmp_path / 'fused.pth').exists()


def test_a_difference_is_seen():
    model = mmffnet.FFNet(TINY).double().eval()
    other = copy.deepcopy(model)
    assert compare(model, other) == 0
    other.stages[3].blocks[0].token_mixer.query.norm.bias.data[3] += 1e-3
    assert compare(model, other) > 1e-6
    other.stem.conv1.conv.weight.data[0, 0, 0, 0] = float('nan')
    assert not compare(model, other) <= 1
