"""Deformable convolution and attention of mmcv.ops on torchvision (see test_mmcv_ext.py)."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from mmcv_operators import DEVICES, compare, operators, output_and_gradients
from torch.autograd import gradcheck

from mmffnet.ops import mmcv_ext

ops = importlib.import_module('mmcv.ops')  # needs mmffnet, imported above
attention = importlib.import_module('mmcv.ops.multi_scale_deform_attn')


@pytest.fixture(autouse=True)
def ours():
    with operators(mmcv_ext):
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


def reference_conv(image, offset, mask, weight, bias, geometry):
    """Plain PyTorch with mmcv's rules, for autograd.

    A sample counts where -1 < y < height and -1 < x < width. Of the offsets and the masks, the
    first values of each picture are read.
    """
    stride, padding, dilation, groups, parts = geometry
    batch, channels, *shape = image.shape
    kernel = weight.shape[2:]
    size = F.conv2d(image, weight, None, stride, padding, dilation, groups).shape[2:]
    count = parts * math.prod((*kernel, *size))
    offset = offset.flatten(1)[:, : 2 * count].view(batch, parts, *kernel, 2, *size)
    mask = mask.flatten(1)[:, :count].view(batch, parts, *kernel, *size)
    start = torch.meshgrid(*map(torch.arange, (*kernel, *size)), indexing='ij')
    low, above, inside = [], [], torch.tensor(True)
    for axis in (0, 1):
        step, edge, spread = (
            x if isinstance(x, int) else x[axis] for x in (stride, padding, dilation)
        )
        at = start[2 + axis] * step - edge + start[axis] * spread + offset[..., axis, :, :]
        inside = inside & (at > -1) & (at < shape[axis])
        low.append(at.detach().floor())
        above.append(at - low[-1])
    planes = F.pad(image, (1, 1, 1, 1)).view(batch, parts, channels // parts, -1)
    samples = 0
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y, x = (
            (part + 1 + move).clamp(0, length + 1).long()
            for part, move, length in zip(low, (down, right), shape, strict=True)
        )
        pixel = (y * (shape[1] + 2) + x).flatten(2)[:, :, None].expand(*planes.shape[:3], -1)
        share = (above[0] if down else 1 - above[0]) * (above[1] if right else 1 - above[1])
        value = planes.gather(3, pixel).view(*planes.shape[:3], *share.shape[2:])
        samples = samples + value * share[:, :, None]
    columns = (samples * inside[:, :, None] * mask[:, :, None]).reshape(
        batch, groups, channels // groups * math.prod(kernel), -1
    )
    output = weight.view(groups, len(weight) // groups, -1) @ columns
    return output.view(batch, len(weight), *size) + bias[:, None, None]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('places', ['zero', 'whole', 'halves', 'any'])
@pytest.mark.parametrize('name', GEOMETRIES)
def test_gradients_also_of_samples_on_the_border(name, places, device):
    """Whole offsets put many samples at exactly -1, height or width: these have no gradient."""
    geometry = GEOMETRIES[name]
    image, offset, mask, weight, bias = deform_inputs(geometry)
    offset = {
        'zero': offset * 0,
        'whole': (offset * 3).round(),
        'halves': (offset * 4).round() / 2,
        'any': offset * 2,
    }[places]
    inputs = [x.to(device) for x in (image, offset, mask, weight, bias)]
    expected = output_and_gradients(
        lambda *tensors: reference_conv(*tensors, geometry), *(x.cpu() for x in inputs)
    )
    result = compare(
        output_and_gradients,
        lambda x, o, m, w, b: ops.modulated_deform_conv2d(x, o, m, w, b, *geometry),
        *inputs,
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close([x.cpu() for x in result], expected, rtol=1e-4, atol=1e-4)

    image, offset, mask, weight, bias = (x.cpu() for x in inputs)
    expected = output_and_gradients(
        lambda x, o, w: reference_conv(x, o, mask * 0 + 1, w, bias * 0, geometry),
        *(image, offset, weight),
    )
    result = compare(
        output_and_gradients,
        lambda x, o, w: ops.deform_conv2d(x, o, w, *geometry, False, 1),
        *(inputs[0], inputs[1], inputs[3]),
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close([x.cpu() for x in result], expected, rtol=1e-4, atol=1e-4)


def test_offsets_that_only_round_to_the_border_have_no_gradient():
    """-1 + 1e-9 is -1 in float32, where the sample is taken."""
    image, offset, _, weight, _ = deform_inputs(GEOMETRIES['plain'])
    how = GEOMETRIES['plain']
    gradients = [
        output_and_gradients(lambda x, o, w: ops.deform_conv2d(x, o, w, *how), image, o, weight)[2]
        for o in (offset * 0, offset * 0 + 1e-9)
    ]
    assert not gradients[1][:, 0, 0].any()
    assert gradients[1][:, 0, 1:].any()
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', GEOMETRIES)
def test_offsets_and_masks_larger_than_the_output(name, layout, batch):
    geometry = GEOMETRIES[name]
    image, offset, mask, weight, bias = deform_inputs(geometry, batch=batch)
    offset, mask = (F.pad(x, (2, 1, 1, 3), value=0.25) for x in (offset, mask))
    expected = output_and_gradients(
        lambda *tensors: reference_conv(*tensors, geometry), image, offset, mask, weight, bias
    )
    result = compare(
        output_and_gradients,
        lambda x, o, m, w, b: ops.modulated_deform_conv2d(x, o, m, w, b, *geometry),
        *(image, offset.to(memory_format=layout), mask.to(memory_format=layout), weight, bias),
        compiled=layout is torch.contiguous_format,  # mmcv takes no other
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    assert not result[2][:, -1, -1].any()


@pytest.mark.parametrize('name', ['offset', 'mask'])
def test_offsets_and_masks_smaller_than_the_output_are_refused(name):
    image, offset, mask, weight, bias = deform_inputs(GEOMETRIES['plain'])
    small = {'offset': offset, 'mask': mask}
    small[name] = small[name][:, :, 1:].contiguous()
    with pytest.raises(ValueError, match=f'modulated_deform_conv: {name}'):
        ops.modulated_deform_conv2d(image, *small.values(), weight, bias, *GEOMETRIES['plain'])


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('autocast', [False, True])
def test_dyhead_which_shares_offsets_between_levels(autocast, device):
    pytest.importorskip('mmdet')
    from mmdet.models.necks import DyHead

    torch.manual_seed(0)
    neck = DyHead(16, 16, num_blocks=2).to(device)
    shapes = ((9, 10), (5, 5), (3, 3))
    levels = [torch.randn(2, 16, *shape, device=device).requires_grad_() for shape in shapes]
    for block in neck.dyhead_blocks:  # they start at 0
        torch.nn.init.normal_(block.spatial_conv_offset.weight, std=0.1)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        outputs = neck(levels)
    assert [x.shape for x in outputs] == [x.shape for x in levels]
    sum(x.float().square().sum() for x in outputs).backward()
    gradients = [x.grad for x in (*levels, *neck.parameters())]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(block.spatial_conv_offset.weight.grad.any() for block in neck.dyhead_blocks)


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
