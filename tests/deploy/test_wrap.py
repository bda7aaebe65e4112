"""Plain modules give what mmpretrain's and mmseg's own prediction gives."""

import numpy as np
import pytest
import torch
from torch import nn

from mmffnet.deploy.check import draw_pictures, predict
from mmffnet.deploy.plain import AdaptivePool
from mmffnet.deploy.wrap import wrap


@torch.inference_mode()
def outputs(module, images):
    found = module(torch.from_numpy(images))
    return dict(zip(module.outputs, (out.numpy() for out in found), strict=True))


def test_classifier(tiny_model):
    model = tiny_model('classifier')
    module = wrap(model)
    images = draw_pictures(2, 64, 96)
    expected = predict(model, 'classification', images)['scores']
    assert module.task == 'classification' and module.outputs == ['scores']
    np.testing.assert_allclose(outputs(module, images)['scores'], expected, atol=1e-6)
    assert expected.std() > 0.01  # the scores say something


@pytest.mark.parametrize('name', ['semfpn', 'upernet', 'ffnetseg'])
@pytest.mark.parametrize('size', [(64, 96), (71, 101)])
def test_segmentors(tiny_model, name, size):
    model = tiny_model(name)
    images = draw_pictures(2, *size)
    expected = predict(model, 'segmentation', images)['labels']
    found = outputs(wrap(model), images)['labels']
    assert found.shape == (2, *size)
    assert (found == expected).mean() > 0.9999
    assert len(np.unique(expected)) > 1


def test_padding_is_cut_off_again(tiny_model):
    model = tiny_model('semfpn', data_preprocessor=dict(test_cfg=dict(size_divisor=32)))
    images = draw_pictures(1, 71, 101)
    expected = predict(model, 'segmentation', images)['labels']
    assert (outputs(wrap(model), images)['labels'] == expected).mean() > 0.9999
    plain = tiny_model('semfpn', data_preprocessor=dict(test_cfg=None))
    assert (predict(plain, 'segmentation', images)['labels'] != expected).any()


def test_sliding_windows_become_the_whole_picture(tiny_model):
    slide = dict(mode='slide', crop_size=(64, 64), stride=(32, 32))
    model = tiny_model('semfpn', test_cfg=slide)
    images = draw_pictures(1, 96, 128)
    expected = predict(model, 'segmentation', images)['labels']
    assert (outputs(wrap(model), images)['labels'] == expected).all()
    assert model.test_cfg.mode == 'slide'  # the model is as it was


@pytest.mark.parametrize('rgb', [True, False])
def test_features_and_the_order_of_channels(tiny_model, rgb):
    model = tiny_model('semfpn', data_preprocessor=dict(bgr_to_rgb=rgb))
    module = wrap(model, backbone=True)
    images = draw_pictures(1, 64, 64)
    expected = predict(model, 'features', images)
    found = outputs(module, images)
    assert list(found) == list(expected) == ['stage1', 'stage2', 'stage3']
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    other = outputs(module, images[:, ::-1].copy())
    assert np.abs(other['stage1'] - found['stage1']).max() > 1e-2


def test_a_bare_backbone_gets_pictures_as_they_are(tiny_model):
    backbone = tiny_model('semfpn').backbone
    images = draw_pictures(1, 64, 64) / 255
    found = outputs(wrap(backbone), images)
    expected = backbone(torch.from_numpy(images))
    for out, wanted in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(out, wanted.detach().numpy(), atol=1e-5)


def test_the_model_is_left_as_it_was(tiny_model):
    model = tiny_model('upernet')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wrap(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize('bins', [1, 2, 3, 6])
@pytest.mark.parametrize('size', [(5, 7), (12, 6), (3, 2)])
def test_adaptive_pool(bins, size):
    x = torch.randn(2, 4, *size)
    expected = nn.AdaptiveAvgPool2d(bins)(x)
    torch.testing.assert_close(AdaptivePool(bins)(x), expected, atol=1e-6, rtol=1e-5)


def test_what_cannot_be_exported(tiny_model):
    with pytest.raises(ValueError, match='Linear has no backbone with out_indices'):
        wrap(nn.Linear(1, 1))
    fixed = tiny_model('semfpn', data_preprocessor=dict(test_cfg=dict(size=(64, 64))))
    with pytest.raises(ValueError, match='padding to one size'):
        wrap(fixed)
