"""mmcv.ops on torchvision: against plain references, and against the full mmcv where it is there.

Every call goes through mmcv's own Python wrappers. With mmcv-lite the references below decide;
with the full mmcv, each result is compared with that of its compiled operators as well.
"""

import importlib
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv_operators import DEVICES, compare, operators, output_and_gradients
from torch.autograd import gradcheck

from mmffnet.ops import mmcv_ext

ops = importlib.import_module('mmcv.ops')  # needs mmffnet, imported above


@pytest.fixture(autouse=True)
def ours():
    with operators(mmcv_ext):
        yield


def random_boxes(count, generator, size=40.0):
    corner = torch.rand(count, 2, generator=generator) * size
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * size], dim=1)


def reference_iou(a, b, offset):
    a, b, one = np.float32(a), np.float32(b), np.float32(offset)
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]) + one
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]) + one
    inter = max(width, np.float32(0)) * max(height, np.float32(0))
    areas = [(x[2] - x[0] + one) * (x[3] - x[1] + one) for x in (a, b)]
    return inter / (areas[0] + areas[1] - inter)


def reference_nms(boxes, scores, threshold, offset):
    kept = []
    for i in np.argsort(-np.asarray(scores), kind='stable'):
        if all(reference_iou(boxes[i], boxes[j], offset) <= np.float32(threshold) for j in kept):
            kept.append(int(i))
    return kept


# Suppression


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 12)] * 4, st.integers(0, 50)), max_size=12),
    st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.7, 0.9]),
    st.sampled_from([0, 1]),
)
def test_nms_is_the_plain_loop_also_where_the_iou_equals_the_threshold(rows, threshold, offset):
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    boxes = torch.cat([table[:, :2], table[:, :2] + table[:, 2:4] + 1], dim=1)
    scores = table[:, 4] / 50
    dets, kept = compare(ops.nms, boxes, scores, threshold, offset)
    assert kept.tolist() == reference_nms(boxes.numpy(), scores.numpy(), threshold, offset)
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[kept])


def test_nms_keeps_a_box_whose_iou_rounds_to_the_threshold():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])
    assert compare(ops.nms, boxes, torch.tensor([0.9, 0.8]), 0.6)[1].tolist() == [0, 1]
    assert compare(ops.nms, boxes, torch.tensor([0.9, 0.8]), 0.59)[1].tolist() == [0]


def test_nms_of_many_boxes_with_equal_scores():
    generator = torch.Generator().manual_seed(10)
    boxes = random_boxes(300, generator, size=100.0)
    scores = torch.randint(0, 4, (300,), generator=generator) / 4
    kept = compare(ops.nms, boxes, scores, 0.2)[1].tolist()
    assert 20 < len(kept) < 200
    for i in range(300):
        stronger = [j for j in kept if j != i and scores[j] >= scores[i]]
        beaten = any(reference_iou(boxes[i].numpy(), boxes[j].numpy(), 0) > 0.2 for j in stronger)
        assert beaten == (i not in kept)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_of_other_types(dtype, device):
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(30, generator).to(dtype)
    scores = torch.rand(30, generator=generator)
    kept = ops.nms(boxes.to(device), scores.to(device), 0.4)[1]
    assert kept.tolist() == reference_nms(boxes.float().numpy(), scores.numpy(), 0.4, 0)


def test_nms_of_a_numpy_array_with_limits():
    boxes = np.float32([[0, 0, 4, 4], [10, 0, 14, 4], [20, 0, 24, 4], [20, 0, 24, 4]])
    scores = np.float32([0.1, 0.5, 0.9, 0.8])
    dets, kept = compare(lambda: ops.nms(boxes, scores, 0.5, score_threshold=0.2, max_num=1))
    assert kept.tolist() == [2]
    assert dets.tolist() == [[20, 0, 24, 4, np.float32(0.9)]]


def test_batched_nms_keeps_classes_apart():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0])
    config = {'type': 'nms', 'iou_threshold': 0.5}
    assert compare(ops.batched_nms, boxes, scores, labels, config)[1].tolist() == [0, 1]
    assert compare(ops.batched_nms, boxes, scores, labels, config, True)[1].tolist() == [0]


def reference_soft_nms(boxes, scores, threshold, sigma, floor, method, offset):
    left, kept = dict(enumerate(map(float, scores))), []
    while left:
        best = max(left, key=left.get)
        kept.append((best, left.pop(best)))
        for i in list(left):
            iou = float(reference_iou(boxes[best], boxes[i], offset))
            if method == 'gaussian':
                left[i] *= np.exp(-(iou**2) / sigma)
            elif iou >= threshold:
                left[i] *= 1 - iou if method == 'linear' else 0
            if left[i] < floor:
                del left[i]
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method, offset):
    generator = torch.Generator().manual_seed(1)
    boxes, scores = random_boxes(40, generator), torch.rand(40, generator=generator)
    dets, kept = compare(ops.soft_nms, boxes, scores, 0.3, 0.5, 0.05, method, offset)
    expected = reference_soft_nms(boxes.numpy(), scores.numpy(), 0.3, 0.5, 0.05, method, offset)
    assert 5 < len(kept) < 40
    assert kept.tolist() == [i for i, _ in expected]
    assert torch.equal(dets[:, :4], boxes[kept])
    torch.testing.assert_close(dets[:, 4], torch.tensor([s for _, s in expected]).float())


def test_soft_nms_with_equal_scores_and_without_boxes():
    generator = torch.Generator().manual_seed(2)
    boxes = random_boxes(30, generator).round()
    scores = torch.randint(1, 4, (30,), generator=generator) / 4
    dets, kept = compare(ops.soft_nms, boxes, scores, 0.2, 0.5, 0.3, 'linear')
    assert torch.equal(dets[:, 4], dets[:, 4].sort(descending=True).values)
    assert len(set(kept.tolist())) == len(kept)
    assert len(ops.soft_nms(boxes[:0], scores[:0])[1]) == 0


def test_soft_nms_of_empty_boxes():
    boxes, scores = torch.tensor([[3.0, 3, 3, 3]] * 2), torch.tensor([0.5, 0.9])
    dets, kept = ops.soft_nms(boxes, scores, method='gaussian')
    assert kept.tolist() == [1, 0]
    assert dets[:, 4].tolist() == scores[kept].tolist()  # mmcv's own scores are nan here


def test_nms_match():
    generator = torch.Generator().manual_seed(3)
    boxes, scores = random_boxes(25, generator), torch.rand(25, generator=generator)
    groups = compare(ops.nms_match, torch.cat([boxes, scores[:, None]], dim=1), 0.3)
    left = np.argsort(-scores.numpy()).tolist()
    for group in groups:
        head = left[0]
        ious = {i: reference_iou(boxes[head].numpy(), boxes[i].numpy(), 0) for i in left}
        assert group.tolist() == [i for i in left if i == head or ious[i] >= np.float32(0.3)]
        left = [i for i in left if i not in group.tolist()]
    assert not left
    assert max(map(len, groups)) > 1


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('mode', ['iou', 'iof'])
def test_bbox_overlaps(mode, offset, device):
    generator = torch.Generator().manual_seed(11)
    first, second = (random_boxes(n, generator, size=20.0).to(device) for n in (7, 9))

    def reference(a, b):
        if mode == 'iou':
            return reference_iou(a, b, offset)
        both = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + offset
        return both.clip(min=0).prod() / (a[2:] - a[:2] + offset).prod()

    result = compare(ops.bbox_overlaps, first, second, mode, False, offset)
    boxes = [x.cpu().numpy() for x in (first, second)]
    expected = np.float32([[reference(a, b) for b in boxes[1]] for a in boxes[0]])
    assert 10 < (expected > 0).sum() < 60
    np.testing.assert_allclose(result.cpu().numpy(), expected, rtol=1e-5, atol=1e-6)
    aligned = compare(ops.bbox_overlaps, first, second[:7], mode, True, offset)
    assert torch.equal(aligned, result.diagonal())
    half = ops.bbox_overlaps(first.half(), second.half(), mode, False, offset)
    whole = ops.bbox_overlaps(first.half().float(), second.half().float(), mode, False, offset)
    assert torch.equal(half, whole.half())


def test_bbox_overlaps_of_empty_boxes():
    boxes = torch.tensor([[3.0, 3, 3, 3], [0, 0, 4, 4]])
    result = ops.bbox_overlaps(boxes, boxes)
    assert result.isnan().tolist() == [[True, False], [False, False]]  # 0 of 0, as in mmcv
    assert ops.bbox_overlaps(boxes, boxes, offset=1).diagonal().tolist() == [1, 1]
    assert ops.bbox_overlaps(boxes[:0], boxes).shape == (0, 2)


# Pooling


def reference_roi_align(image, rois, size, scale, ratio, aligned):
    """Average of bilinear samples, as in the Mask R-CNN paper and Detectron2."""
    channels, height, width = image.shape[1:]
    output = np.zeros((len(rois), channels, *size))
    shift = 0.5 if aligned else 0.0

    def sample(plane, y, x):
        if not (-1 <= y <= height and -1 <= x <= width):
            return 0.0
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
        y0, x0 = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
        y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
        top = plane[y0, x0] * (1 - x + x0) + plane[y0, x1] * (x - x0)
        bottom = plane[y1, x0] * (1 - x + x0) + plane[y1, x1] * (x - x0)
        return top * (1 - y + y0) + bottom * (y - y0)

    for n, (index, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c * scale - shift for c in corners)
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        bin_h, bin_w = h / size[0], w / size[1]
        grid_h, grid_w = ratio or int(np.ceil(bin_h)), ratio or int(np.ceil(bin_w))
        for c, i, j in np.ndindex(channels, *size):
            samples = [
                sample(
                    image[int(index), c].numpy(),
                    y1 + (i + (a + 0.5) / grid_h) * bin_h,
                    x1 + (j + (b + 0.5) / grid_w) * bin_w,
                )
                for a in range(grid_h)
                for b in range(grid_w)
            ]
            output[n, c, i, j] = np.mean(samples) if samples else 0.0
    return torch.from_numpy(output)


ROIS = torch.tensor(
    [
        [0, 1, 2, 9, 11],
        [1, 0, 0, 16, 12],
        [0, -3, -2, 4.5, 3.25],
        [1, 14, 9, 30, 30],
        [0, 5, 5, 5, 5],
    ]
)


@pytest.mark.parametrize('ratio', [0, 2, 3])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_roi_align(scale, aligned, ratio):
    image = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(4))

    def pool(x):
        return ops.roi_align(x, ROIS.to(x), (2, 3), scale, ratio, 'avg', aligned)

    output, gradient = compare(output_and_gradients, pool, image)
    expected = reference_roi_align(image, ROIS, (2, 3), scale, ratio, aligned)
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)
    # The operator is linear: its gradient is known from outputs alone.
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(5))
    weight = torch.linspace(-1, 1, output.numel()).view_as(output)
    torch.testing.assert_close(
        (gradient * direction).sum(), (pool(direction) * weight).sum(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_gradcheck(ratio):
    image = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = ROIS[:3].double()
    assert gradcheck(lambda x: ops.roi_align(x, rois, 2, 0.5, ratio, 'avg', True), image)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_in_half_precision_rounds_once(dtype, device):
    image = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(6)).to(device, dtype)

    def pool(x):
        return ops.roi_align(x, ROIS.to(x), 4, 0.5, 2, 'avg', True)

    half = output_and_gradients(pool, image)
    assert {x.dtype for x in half} == {dtype}
    torch.testing.assert_close(half[0], pool(image.float()).to(dtype), rtol=0, atol=0)
    exact = output_and_gradients(pool, image.float())[1]
    torch.testing.assert_close(half[1].float(), exact, rtol=2e-2, atol=2e-2)


def test_roi_align_of_channels_last_and_of_no_rois():
    image = torch.randn(2, 4, 8, 8)
    rows = ops.roi_align(image.to(memory_format=torch.channels_last), ROIS, 3)
    assert torch.equal(rows, ops.roi_align(image, ROIS, 3))
    nothing = output_and_gradients(lambda x: ops.roi_align(x, ROIS[:0], 3), image)
    assert nothing[0].shape == (0, 4, 3, 3)
    assert not nothing[1].any()


def test_roi_align_of_broken_rois():
    image = torch.randn(2, 4, 8, 8)
    rois = torch.tensor([[0, math.nan, 1, 5, 5], [0, 1, 1, math.inf, 5], [0, 6, 6, 1, 1]])
    for ratio in (0, 2):
        pixels = torch.ones(2, 4, 8, 8)
        bins = torch.ones(3, 4, 3, 3)
        mmcv_ext.roi_align_backward(
            bins, rois, bins, bins, pixels, 3, 3, 1.0, ratio, pool_mode=1, aligned=True
        )
        assert torch.isfinite(pixels).all()
        assert ratio or not pixels.any()
    rois = torch.tensor([[2.0, 1, 1, 5, 5]])  # there is no third picture
    with pytest.raises(RuntimeError, match='size is inconsistent with indices'):
        mmcv_ext.roi_align_backward(
            bins, rois, bins, bins, image, 3, 3, 1.0, 2, pool_mode=1, aligned=True
        )


@pytest.mark.slow
def test_roi_align_where_the_matrix_would_be_too_large():
    """Large RoIs on a fine map: torchvision's way, with the same gradients."""
    image = torch.randn(1, 2, 8, 8)
    rois = torch.tensor([[0, -900.0, -900, 1300, 1300]])
    how = (rois, image.shape, (2, 2), 1.0, 0, True)
    assert mmcv_ext._bin_shares(*how) is None
    large = output_and_gradients(lambda x: ops.roi_align(x, rois, 2, 1.0, 0, 'avg', True), image)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmcv_ext, '_MOST_SAMPLES', 2**23)
        shares = mmcv_ext._bin_shares(*how)
    bins = torch.linspace(-1, 1, 8).view(1, 2, 2, 2)
    pixels = torch.sparse.mm(shares, bins.permute(0, 2, 3, 1).reshape(-1, 2))
    torch.testing.assert_close(large, pixels.T.reshape(1, 2, 8, 8), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize(
    'roi', [[0.0, 6, 1, 5, 5], [0, 1, 6, 5, 5], [0, math.nan, 1, 5, 5], [0, 5, 5, -math.inf, 5]]
)
def test_roi_align_refuses_rois_that_are_no_boxes(roi, ratio):
    image = torch.rand(1, 1, 8, 8)
    rois = torch.stack([torch.tensor([0.0, 1, 1, 1, 1]), torch.tensor(roi)])
    with pytest.raises(ValueError, match=r'roi_align: 1 of 2 rois .*x1 <= x2'):
        ops.roi_align(image, rois, 2, 1.0, ratio, 'avg', True)


def test_roi_align_that_is_not_aligned_widens_reversed_rois():
    image = torch.rand(1, 1, 8, 8)
    reversed_, small = torch.tensor([[0.0, 4, 4, 1, 1]]), torch.tensor([[0.0, 4, 4, 5, 5]])
    results = [
        compare(ops.roi_align, image, x, 2, 1.0, 2, 'avg', False) for x in (reversed_, small)
    ]
    assert torch.equal(*results)
    with pytest.raises(ValueError, match='roi_align: 1 of 1 rois'):
        ops.roi_align(image, torch.tensor([[0.0, 1, 1, math.inf, 5]]), 2, 1.0, 2, 'avg', False)


def reference_roi_pool(image, rois, size, scale):
    """Maximum of every bin in float32, as mmcv's kernel defines the bins, and its pixel."""
    _, channels, height, width = image.shape
    output = np.zeros((len(rois), channels, *size), np.float32)
    argmax = np.full(output.shape, -1)
    scale, one = np.float32(scale), np.float32(1)
    for n, (index, x1, y1, x2, y2) in enumerate(np.float32(rois)):
        start = np.array([y1, x1]) * scale
        extent = np.array([y2 + one, x2 + one]) * scale - start
        if (extent <= 0).any():
            continue
        for c, *place in np.ndindex(channels, *size):
            sides = []
            for axis, length in ((0, height), (1, width)):
                step = extent[axis] / np.float32(size[axis])
                low = np.floor(np.float32(place[axis]) * step + start[axis])
                high = np.ceil(np.float32(place[axis] + 1) * step + start[axis])
                sides.append(range(*(int(np.clip(x, 0, length)) for x in (low, high))))
            pixels = [y * width + x for y in sides[0] for x in sides[1]]
            if pixels:
                values = image[int(index), c].numpy().ravel()[pixels]
                output[(n, c, *place)] = values.max()
                argmax[(n, c, *place)] = pixels[values.argmax()]
    return torch.from_numpy(output), torch.from_numpy(argmax)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('scale', [1.0, 0.5, 1 / 3])
def test_roi_pool(scale, device):
    generator = torch.Generator().manual_seed(12)
    image = torch.randint(-9, 0, (2, 3, 7, 9), generator=generator).float()  # has equal maxima
    corner = torch.rand(20, 2, generator=generator) * 30 - 5
    extent = torch.rand(20, 2, generator=generator) * 25 - 1  # to the end of the last pixel
    index = torch.randint(0, 2, (20, 1), generator=generator)
    rois = torch.cat([ROIS.float(), torch.cat([index, corner, corner + extent], dim=1)])
    expected, argmax = reference_roi_pool(image, rois.numpy(), (2, 3), scale)
    assert (argmax < 0).any()
    gradient = torch.zeros_like(image).flatten(2)
    weight = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    for n, c, *place in np.ndindex(*argmax.shape):
        if argmax[(n, c, *place)] >= 0:
            gradient[int(rois[n, 0]), c, argmax[(n, c, *place)]] += weight[(n, c, *place)]
    rois = rois.to(device)
    result = compare(
        output_and_gradients,
        lambda x: ops.roi_pool(x, rois, (2, 3), scale),
        image.to(device),
        compiled=device == 'cuda',
    )
    assert torch.equal(result[0].cpu(), expected)
    torch.testing.assert_close(result[1].cpu().flatten(2), gradient)


def test_roi_pool_of_rois_without_pixels():
    image = torch.rand(1, 2, 5, 6) + 1
    rois = torch.tensor(
        [[0.0, 4, 4, 2, 2], [0, 9, 9, 20, 20], [0, math.nan, 1, 5, 5], [0, -math.inf, 0, 5, 4]]
    )
    output, gradient = output_and_gradients(lambda x: ops.roi_pool(x, rois, 2), image)
    assert not output.any()
    assert not gradient.any()
    assert ops.roi_pool(image, rois[:0], 2).shape == (0, 2, 2, 2)


def test_roi_pool_gradcheck_and_half_precision():
    image = torch.randperm(60, generator=torch.Generator().manual_seed(13)).view(2, 1, 5, 6)
    rois = ROIS[:3].double()
    exact = image.double().requires_grad_()
    assert gradcheck(lambda x: ops.roi_pool(x, rois, 2, 0.5), exact)
    half = ops.roi_pool(image.half(), rois.half(), 2, 0.5)
    assert torch.equal(half, ops.roi_pool(image.float(), rois.float(), 2, 0.5).half())


def test_max_pooling_is_refused_by_name():
    with pytest.raises(NotImplementedError, match=r"pool_mode='max'.*full mmcv"):
        ops.roi_align(torch.rand(1, 1, 4, 4), ROIS[:1], 2, 1.0, 0, 'max')


# Focal loss


def reference_focal(x, target, gamma, alpha):
    one_hot = F.one_hot(target, x.size(1) + 1)[:, :-1].to(x)
    p = x.sigmoid()
    miss = (1 - p) * one_hot + p * (1 - one_hot)
    share = alpha * one_hot + (1 - alpha) * (1 - one_hot)
    return share * miss**gamma * F.binary_cross_entropy_with_logits(x, one_hot, reduction='none')


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (1.5, 0.5), (0.0, 0.5)])
def test_sigmoid_focal_loss(gamma, alpha, device):
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(7)).to(device) * 4
    target = torch.tensor([0, 1, 2, 3, 4, 4, 0], device=device)  # 4 is background

    def loss(x):
        return ops.sigmoid_focal_loss(x, target, gamma, alpha, None, 'none')

    result = compare(output_and_gradients, loss, logits, compiled=device == 'cuda')
    expected = output_and_gradients(lambda x: reference_focal(x, target, gamma, alpha), logits)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6)
    assert gradcheck(loss, logits.double().requires_grad_())
    for reduction, reduce in (('mean', lambda x: x.sum() / 7), ('sum', torch.sum)):
        total = ops.sigmoid_focal_loss(logits, target, gamma, alpha, None, reduction)
        torch.testing.assert_close(total, reduce(expected[0]))


def test_sigmoid_focal_loss_with_class_weights():
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    weight = torch.tensor([1.0, 2.0, 0.5])
    result = output_and_gradients(
        lambda x: ops.sigmoid_focal_loss(x, target, 2.0, 0.25, weight, 'none'), logits
    )
    expected = output_and_gradients(
        lambda x: reference_focal(x, target, 2.0, 0.25) * weight[target][:, None], logits
    )
    torch.testing.assert_close(result, expected)
    with pytest.raises(ValueError, match='class weight of 3 entries has none for the background'):
        ops.sigmoid_focal_loss(logits, target + 1, 2.0, 0.25, weight)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_sigmoid_focal_loss_of_extreme_logits_in_half_precision(dtype):
    logits = torch.tensor([[-60.0, 60.0], [60.0, -60.0], [0.0, 3.0]], dtype=dtype)
    target = torch.tensor([0, 0, 2])
    loss, gradient = output_and_gradients(
        lambda x: ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'none'), logits
    )
    expected = reference_focal(logits.float(), target, 2.0, 0.25).to(dtype)
    torch.testing.assert_close(loss, expected)
    assert gradient.isfinite().all()


def reference_softmax_focal(x, target, gamma, alpha, weight=None):
    log_p = x.log_softmax(dim=1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    loss = -alpha * (1 - log_p.exp()) ** gamma * log_p * (target >= 0)
    return loss if weight is None else loss * weight[target.clamp(min=0)]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (1.5, 0.5), (0.0, 0.5)])
@pytest.mark.parametrize('weighted', [False, True])
def test_softmax_focal_loss(weighted, gamma, alpha, device):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(14)).to(device) * 3
    target = torch.tensor([0, 1, 2, 3, 3, 0], device=device)
    weight = torch.tensor([1.0, 2, 0.5, 3], device=device) if weighted else None

    def loss(x):
        return ops.softmax_focal_loss(x, target, gamma, alpha, weight, 'none')

    def reference(x):
        return reference_softmax_focal(x, target, gamma, alpha, weight)

    result = compare(loss, logits, compiled=device == 'cuda')
    torch.testing.assert_close(result, reference(logits), rtol=1e-4, atol=1e-6)
    for reduction in ('mean', 'sum'):
        result = compare(
            output_and_gradients,
            lambda x, r=reduction: ops.softmax_focal_loss(x, target, gamma, alpha, weight, r),
            logits,
            compiled=device == 'cuda',
        )
        expected = output_and_gradients(lambda x, r=reduction: getattr(reference(x), r)(), logits)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6)
    assert gradcheck(
        lambda x: ops.softmax_focal_loss(
            x, target, gamma, alpha, None if weight is None else weight.double(), 'sum'
        ),
        logits.double().requires_grad_(),
    )


def test_softmax_focal_loss_ignores_negative_targets():
    logits, target = torch.randn(3, 4), torch.tensor([1, -1, 2])
    loss, gradient = output_and_gradients(
        lambda x: ops.softmax_focal_loss(x, target, 2.0, 0.25, torch.ones(4), 'sum'), logits
    )
    expected = reference_softmax_focal(logits, target, 2.0, 0.25).sum()
    torch.testing.assert_close(loss, expected)
    assert gradient.any(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_softmax_focal_loss_of_extreme_logits(dtype, gamma):
    logits = torch.tensor([[-60.0, 60.0], [60.0, -60.0], [0.0, 3.0]], dtype=dtype)
    target = torch.tensor([0, 0, 1])
    loss, gradient = output_and_gradients(
        lambda x: ops.softmax_focal_loss(x, target, gamma, 0.25, None, 'sum'), logits
    )
    # the probability of 0 is raised to the smallest float32, as in mmcv
    assert 20 < float(loss) < 25
    assert loss.dtype == gradient.dtype == dtype
    assert gradient.isfinite().all()


# Attention over windows, masked convolution, reassembly


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('kind', ['collect', 'distribute'])
@pytest.mark.parametrize('window', [(3, 5), (4, 4), (11, 9), (1, 1)])
def test_psa_mask(window, kind, device):
    height, width = 5, 4
    mask = torch.randn(2, math.prod(window), height, width)
    expected = torch.zeros(2, height * width, height * width)
    for i, j, y, x in np.ndindex(*window, height, width):
        row, column = y + i - (window[0] - 1) // 2, x + j - (window[1] - 1) // 2
        if 0 <= row < height and 0 <= column < width:
            expected[:, row * width + column, y * width + x] = mask[:, i * window[1] + j, y, x]
    if kind == 'distribute':
        expected = expected.transpose(1, 2)
    pool = ops.PSAMask(kind, window)
    output, gradient = compare(output_and_gradients, pool, mask.to(device))
    assert torch.equal(output.cpu().flatten(2), expected)
    # The operator is linear: its gradient is known from outputs alone.
    weight = torch.linspace(-1, 1, output.numel(), device=device).view_as(output)
    direction = torch.randn_like(gradient)
    torch.testing.assert_close(
        (gradient * direction).sum(), (pool(direction) * weight).sum(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('kernel', 'padding'), [(3, 1), ((1, 3), (0, 1)), (1, 0)])
def test_masked_convolution(kernel, padding, device):
    torch.manual_seed(0)
    conv = ops.MaskedConv2d(3, 4, kernel, padding=padding).to(device)
    image = torch.randn(1, 3, 6, 5, device=device)
    mask = (torch.rand(1, 6, 5, device=device) > 0.5).float()
    result = compare(conv, image, mask, compiled=device == 'cuda')
    torch.testing.assert_close(result, conv(image) * mask[:, None], rtol=1e-4, atol=1e-5)
    assert not conv(image, mask * 0).any()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('kernel', 'groups', 'scale'), [(3, 2, 2), (5, 1, 3), (1, 4, 1)])
def test_carafe(kernel, groups, scale, device):
    generator = torch.Generator().manual_seed(15)
    features = torch.randn(2, 4, 3, 4, generator=generator, dtype=torch.float64).to(device)
    masks = torch.randn(
        2, groups * kernel**2, 3 * scale, 4 * scale, generator=generator, dtype=torch.float64
    ).to(device)
    expected = torch.zeros(2, 4, 3 * scale, 4 * scale, dtype=torch.float64, device=device)
    for c, y, x, i, j in np.ndindex(*expected.shape[1:], kernel, kernel):
        row, column = y // scale + i - kernel // 2, x // scale + j - kernel // 2
        if 0 <= row < 3 and 0 <= column < 4:
            mask = masks[:, (c // (4 // groups) * kernel + i) * kernel + j, y, x]
            expected[:, c, y, x] += features[:, c, row, column] * mask

    how = kernel, groups, scale
    on_cuda = device == 'cuda'
    output = compare(
        output_and_gradients, lambda f, m: ops.carafe(f, m, *how), features, masks, compiled=on_cuda
    )[0]
    torch.testing.assert_close(output, expected)
    last = features.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ops.carafe(last, masks, *how), expected)
    naive = compare(ops.carafe_naive, features, masks, *how, compiled=on_cuda)
    torch.testing.assert_close(naive, expected)
    inputs = features.requires_grad_(), masks.requires_grad_()
    assert gradcheck(lambda f, m: ops.carafe(f, m, *how), inputs, fast_mode=True)


# What is not there


def test_other_operators_can_be_imported_and_fail_by_name_when_called():
    rois, offset = ROIS[:1].float(), torch.tensor([])
    with pytest.raises(NotImplementedError, match=r"'deform_roi_pool_forward'.*mmcv==2\.1\.0"):
        ops.deform_roi_pool(torch.rand(1, 1, 4, 4), rois, offset, (2, 2), 1.0, 2, 0.1)
    with pytest.raises(NotImplementedError, match="'nms_rotated'"):
        ops.nms_rotated(torch.rand(2, 5), torch.rand(2), 0.5)
    assert mmcv_ext.border_align_forward.__name__ == 'border_align_forward'
    with pytest.raises(AttributeError, match='_private'):
        mmcv_ext._private  # noqa: B018


def test_information_for_collect_env():
    assert 'torchvision' in ops.get_compiler_version()
    assert ops.get_compiling_cuda_version() == (torch.version.cuda or 'not available')


def test_missing_torchvision_is_named(monkeypatch):
    mmcv_ext.torchvision_ops.cache_clear()
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    with pytest.raises(RuntimeError, match=r'torchvision does not work with torch .* Install'):
        ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)


# Whole detectors


def small_detector(name):
    """mmdet's own detector with a ResNet-18, 32 channels and 5 classes."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config

    register_all_modules()
    config = get_config(f'mmdet::{name}').model
    config.backbone.update(depth=18, init_cfg=None)
    config.neck.update(in_channels=[64, 128, 256, 512], out_channels=32)
    for part in (config.get('rpn_head'), config.get('bbox_head')):
        if part:
            part.update(in_channels=32, feat_channels=32)
    if 'roi_head' in config:
        roi_head = config.roi_head
        roi_head.bbox_roi_extractor.out_channels = roi_head.mask_roi_extractor.out_channels = 32
        roi_head.bbox_head.update(in_channels=32, fc_out_channels=64, num_classes=5)
        roi_head.mask_head.update(in_channels=32, conv_out_channels=32, num_classes=5)
    else:
        config.bbox_head.num_classes = 5
    torch.manual_seed(0)
    return MODELS.build(config)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    'name',
    ['mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'retinanet/retinanet_r50_fpn_1x_coco.py'],
)
@pytest.mark.slow
def test_detector_losses_gradients_and_predictions(name, device):
    pytest.importorskip('mmdet')
    from mmdet.testing import demo_mm_inputs

    model = small_detector(name).to(device)
    shapes = [[3, 96, 96], [3, 96, 80]]
    data = demo_mm_inputs(2, shapes, num_items=[3, 2], num_classes=5, with_mask=True)
    data = model.data_preprocessor(data, True)

    def train_and_predict():
        torch.manual_seed(0)  # the samplers draw
        model.train().zero_grad()
        parsed, log = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
        parsed.backward()
        with torch.no_grad():
            results = model.eval().predict(data['inputs'], data['data_samples'])
        gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.requires_grad}
        return log, gradients, [dict(result.pred_instances.items()) for result in results]

    log, gradients, results = compare(train_and_predict, rtol=1e-5, atol=1e-6)
    assert all(value.isfinite() for value in log.values())
    assert any(gradient.any() for gradient in gradients.values())
    assert all(len(result['bboxes']) > 10 for result in results)
