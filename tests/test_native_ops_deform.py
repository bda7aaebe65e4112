"""Deformable convolution and attention of mmcv.ops on torchvision (see test_native_ops.py)."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from mmcv_operators import DEVICES, compare, operators, output_and_gradients
from torch.autograd import gradcheck

from mmffnet import native_ops

ops = importlib.import_module('mmcv.ops')  # needs mmffnet, imported above
attention = importlib.import_module('mmcv.ops.multi_scale_deform_attn')


@pytest.fixture(autouse=True)
def ours():
    with operators(native_ops):
        yield


# Deformable convolution

GEOMETRIES = {  # stride, padding, dilation, groups, deform_groups
    'plain': (1, 1, 1, 1, 1),
    'strided': ((2, 1), (0, 1), 1, 2, 1),
    'dilated': (1, (2, 1), (2, 1), 1, 2),
}


def deform_inputs(geometry, dtype=torch.float32, batch=2):
    """Image, offset, mask, weight, bias."""
    *conv, groups, deform_groups = geometry
    generator = torch.Generator().manual_seed(8)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    image, weight, bias = randn(batch, 4, 5, 6), randn(6, 4 // groups, 3, 3), randn(6)
    size = F.conv2d(image, weight, None, *conv, groups).shape[2:]
    taps = 9 * deform_groups
    return image, randn(batch, 2 * taps, *size), randn(batch, taps, *size).sigmoid(), weight, bias


@pytest.mark.parametrize('name', GEOMETRIES)
def test_deform_conv_without_offsets_is_a_convolution(name):
    geometry = GEOMETRIES[name]
    image, offset, mask, weight, bias = deform_inputs(geometry)
    expected = F.conv2d(image, weight, None, *geometry[:-1])
    result = compare(ops.deform_conv2d, image, offset * 0, weight, *geometry)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    result = compare(
        ops.modulated_deform_conv2d, image, offset * 0, mask * 0 + 1, weight, bias, *geometry
    )
    torch.testing.assert_close(result, expected + bias[:, None, None], rtol=1e-4, atol=1e-4)


def test_offsets_are_in_rows_then_columns_and_masks_scale():
    image = torch.arange(30.0).view(1, 1, 5, 6)
    weight = torch.ones(1, 1, 1, 1)
    offset = torch.tensor([1.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 5, 6).contiguous()
    result = compare(ops.deform_conv2d, image, offset, weight)
    assert torch.equal(result[0, 0, :4, :5], image[0, 0, 1:, :5] + 0.5)
    mask = torch.full((1, 1, 5, 6), 0.5)
    scaled = compare(ops.modulated_deform_conv2d, image, offset, mask, weight, None, 1, 0)
    assert torch.equal(scaled, result / 2)


@pytest.mark.parametrize('name', GEOMETRIES)
def test_deform_conv_gradients(name):
    geometry = GEOMETRIES[name]
    image, offset, mask, weight, bias = deform_inputs(geometry)
    compare(
        output_and_gradients,
        lambda x, o, w: ops.deform_conv2d(x, o, w, *geometry, False, 1),
        *(image, offset, weight),
        rtol=1e-4,
        atol=1e-4,
    )
    compare(
        output_and_gradients,
        lambda x, o, m, w, b: ops.modulated_deform_conv2d(x, o, m, w, b, *geometry),
        *(image, offset, mask, weight, bias),
        rtol=1e-4,
        atol=1e-4,
    )
    inputs = deform_inputs(geometry, torch.float64, batch=1)
    image, offset, mask, weight, bias = (x.requires_grad_() for x in inputs)
    assert gradcheck(
        lambda x, o, w: ops.deform_conv2d(x, o, w, *geometry),
        (image, offset, weight),
        fast_mode=True,
    )
    assert gradcheck(
        lambda x, o, m, w, b: ops.modulated_deform_conv2d(x, o, m, w, b, *geometry),
        (image, offset, mask, weight, bias),
        fast_mode=True,
    )


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_deform_conv_in_half_precision(dtype, device):
    geometry = GEOMETRIES['plain']
    inputs = [x.to(device, dtype) for x in deform_inputs(geometry)]

    def conv(x, o, m, w, b):
        return ops.modulated_deform_conv2d(x, o, m, w, b, *geometry)

    half = output_and_gradients(conv, *inputs)
    assert {x.dtype for x in half} == {dtype}
    expected = conv(*(x.float() for x in inputs)).to(dtype)
    torch.testing.assert_close(half[0], expected, rtol=0, atol=0)


# Deformable attention


@pytest.mark.parametrize('device', DEVICES)
def test_deformable_attention_on_the_gpu_path(device):
    generator = torch.Generator().manual_seed(9)
    shapes = torch.tensor([[4, 5], [2, 3]], device=device)
    starts = torch.tensor([0, 20], device=device)
    value = torch.randn(2, 26, 2, 4, generator=generator).to(device)
    locations = torch.rand(2, 3, 2, 2, 2, 2, generator=generator).to(device)
    weights = torch.rand(2, 3, 2, 2, 2, generator=generator).to(device)

    def native(v, x, w):
        return attention.MultiScaleDeformableAttnFunction.apply(v, shapes, starts, x, w, 2)

    def plain(v, x, w):
        return attention.multi_scale_deformable_attn_pytorch(v, shapes, x, w)

    inputs = value, locations, weights
    result = compare(output_and_gradients, native, *inputs, compiled=device == 'cuda')
    torch.testing.assert_close(result, output_and_gradients(plain, *inputs))
    assert result[0].shape == (2, 3, 8)
