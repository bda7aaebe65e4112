"""Stand-in for ``mmcv._ext``, the compiled part of mmcv, built on torchvision's operators.

mmcv-lite ships the Python side of ``mmcv.ops`` without its compiled functions. The import hook in
``mmffnet_ops_hook`` loads this file under the name ``mmcv._ext`` when nothing else provides that
module, so the functions below have the names, arguments and in-place outputs that mmcv's wrappers
expect. The numbers are mmcv's as well, also where torchvision computes something else under the
same name (RoIPool). A native function that is not covered can be imported, and says what to do when
it is called. docs/operators.md lists all of them.

Half precision is computed in float32 and rounded once at the end. This file must not import from
the package: it is executed while mmcv, mmdet or mmseg are only half imported.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

_HOW_TO_GET = (
    'install the full mmcv, which has to be compiled: uninstall mmcv-lite, then '
    "`pip install --no-build-isolation 'mmcv==2.1.0'` in an environment with a C++ compiler "
    '(and nvcc for GPUs), ninja and setuptools < 81.'
)

_MOST_SAMPLES = 2**21  # of all RoIs, in some 600 MB


@cache
def torchvision_ops() -> Any:
    """torchvision's compiled operators, imported when the first of them is needed."""
    try:
        import torchvision  # noqa: F401

        ops = torch.ops.torchvision
        ops.nms  # noqa: B018  # raises where torchvision was installed without its operators
    except (ImportError, RuntimeError, AttributeError) as error:
        raise RuntimeError(
            'mmcv.ops needs either the full mmcv or torchvision, and torchvision does not work '
            f'with torch {torch.__version__} here ({error}). Install the torchvision release '
            'made for this torch.'
        ) from error
    return ops


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


# Suppression and overlaps


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    if offset:
        # Sizes are x2 - x1 + 1 here: moving x2 is the same only where the sum is not rounded.
        dtype = torch.float64
    # Sorted as mmcv sorts: the order of equal scores decides which of their boxes is kept.
    scores, order = scores.sort(descending=True)
    boxes, scores = boxes[order].to(dtype), scores.to(dtype)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # The operator compares in double precision: an IoU of exactly 0.6 must not exceed 0.6.
    threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    return order[torchvision_ops().nms(boxes, scores, threshold)]


def _overlaps(box: Tensor, others: Tensor, offset: int = 0, mode: int = 0) -> Tensor:
    """IoU (mode 0), or share of the first box (mode 1), of boxes (..., 4); nan for empty ones."""
    top_left = torch.maximum(box[..., :2], others[..., :2])
    bottom_right = torch.minimum(box[..., 2:], others[..., 2:])
    inter = (bottom_right - top_left + offset).clamp(min=0).prod(dim=-1)
    base = (box[..., 2:] - box[..., :2] + offset).prod(dim=-1)
    if mode == 0:
        base = base + (others[..., 2:] - others[..., :2] + offset).prod(dim=-1) - inter
    return inter / (base.clamp(min=offset) if base.is_cuda else base)  # as in mmcv's two kernels


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    first = _wide(bboxes1)
    ious.copy_(_overlaps(first if aligned else first[:, None], _wide(bboxes2), offset, mode))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Write the kept boxes with their decayed scores into ``dets``, return their indices.

    ``method`` is 0 (hard), 1 (linear) or 2 (gaussian).
    """
    scores = scores.clone()
    order = torch.arange(len(boxes))
    i = 0
    while i < len(order):
        best = i + int(scores[order[i:]].argmax())
        order[[i, best]] = order[[best, i]]
        head, tail = order[i], order[i + 1 :]
        dets[i, :4] = boxes[head]
        dets[i, 4] = scores[head]
        i += 1

        overlap = _overlaps(boxes[head], boxes[tail], offset).nan_to_num(0)
        if method == 2:
            scores[tail] *= (-(overlap * overlap) / sigma).exp()
        else:
            decay = 1 - overlap if method == 1 else torch.zeros_like(overlap)
            scores[tail] *= torch.where(overlap >= iou_threshold, decay, 1.0)

        # The last box takes the place of a dropped one, as in mmcv: it decides between ties.
        keep = scores[tail] >= min_score
        count = int(keep.sum())
        holes = (~keep[:count]).nonzero().flatten()
        tail[holes] = tail[count:][keep[count:]].flip(0)
        order = order[: i + count]
    return order


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group boxes (N, 5): each kept one with those that it suppresses, by falling score."""
    groups = []
    order = dets[:, 4].argsort(descending=True)
    while len(order):
        head, rest = order[0], order[1:]
        matched = _overlaps(dets[head, :4], dets[rest, :4]) >= iou_threshold
        groups.append([int(head), *rest[matched].tolist()])
        order = rest[~matched]
    return groups


# Pooling


def _require_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "roi_align with pool_mode='max' is not available without the full mmcv: "
            f"use pool_mode='avg' (the default), or {_HOW_TO_GET}"
        )


def _require_boxes(rois: Tensor, spatial_scale: float, sampling_ratio: int, aligned: bool) -> None:
    """Refuse what mmcv refuses on CPUs, and what makes torchvision read or reserve any memory."""
    usable = torch.ones(len(rois), dtype=torch.bool)
    if sampling_ratio > 0:
        usable &= rois.isfinite().all(dim=1)
    if aligned:
        corners = _wide(rois[:, 1:]) * spatial_scale - 0.5
        usable &= (corners[:, 2:] >= corners[:, :2]).all(dim=1)
    if not bool(usable.all()):
        raise ValueError(
            f'roi_align: {int((~usable).sum())} of {len(rois)} rois are no boxes, first '
            f'{rois[~usable][0].tolist()}; give (index, x1, y1, x2, y2) of finite numbers with '
            'x1 <= x2 and y1 <= y2'
        )


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    _require_average(pool_mode)
    wide = _wide(input)
    if wide.device.type == 'cpu':
        _require_boxes(rois, spatial_scale, sampling_ratio, aligned)
    output.copy_(
        torchvision_ops().roi_align(
            wide,
            rois.to(wide.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    _require_average(pool_mode)
    wide = _wide(grad_output)
    rois = rois.to(wide.dtype)
    batch, channels, height, width = grad_input.shape
    if wide.device.type == 'cpu':
        shares = _bin_shares(
            rois, grad_input.shape, wide.shape[2:], spatial_scale, sampling_ratio, aligned
        )
        if shares is not None:
            pixels = torch.sparse.mm(shares, wide.permute(0, 2, 3, 1).reshape(-1, channels))
            grad_input.copy_(pixels.view(batch, height, width, channels).permute(0, 3, 1, 2))
            return
    grad_input.copy_(
        torchvision_ops()._roi_align_backward(
            wide,
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            batch,
            channels,
            height,
            width,
            sampling_ratio,
            aligned,
        )
    )


def _bin_shares(
    rois: Tensor,
    image_shape: Sequence[int],
    size: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor | None:
    """What all pixels (rows) have of each bin of all RoIs (columns): a sparse matrix.

    None if it would be too large. This is for CPUs, where torchvision's gradients repeat the work
    for each channel, in one thread, and take two to six times as long.
    """
    batch, _, *shape = image_shape
    first, last = (rois[:, 1:] * spatial_scale - 0.5 * aligned).view(-1, 2, 2).flip(2).unbind(1)
    step = (last - first if aligned else (last - first).clamp(min=1)) / rois.new_tensor(size)
    if sampling_ratio > 0:
        grid = torch.full_like(step, sampling_ratio)
    else:
        grid = step.nan_to_num(0, 0).ceil().clamp(0, 2**20)
    # all samples in one row: which RoI they are of, then the bin, then the place in the bin
    counts = grid.long().prod(1) * math.prod(size)
    if counts.sum() > _MOST_SAMPLES:
        return None
    roi = torch.arange(len(rois)).repeat_interleave(counts)
    rest = torch.arange(len(roi)) - (counts.cumsum(0) - counts)[roi]
    places = []
    for points in (grid[roi, 1].long(), grid[roi, 0].long(), size[1], size[0]):
        places.append(rest % points)
        rest = rest // points
    x, y, column, row = places
    bins = (roi * size[0] + row) * size[1] + column

    corners = []
    for axis, bin_, place in ((0, row, y), (1, column, x)):
        at = first[roi, axis] + (bin_ + (place + 0.5) / grid[roi, axis]) * step[roi, axis]
        inside = (at >= -1) & (at <= shape[axis])
        at = at.where(inside, 0).clamp(0, shape[axis] - 1)
        low = at.long()
        share = inside / grid[roi, axis]
        above = share * (at - low)
        corners.append([(low, share - above), ((low + 1).clamp(max=shape[axis] - 1), above)])
    pixels, shares = [], []
    for (y, share_y), (x, share_x) in itertools.product(*corners):
        pixels.append((rois[roi, 0].long() * shape[0] + y) * shape[1] + x)
        shares.append(share_y * share_x)
    index = torch.stack([torch.cat(pixels), bins.repeat(4)])
    totals = (batch * math.prod(shape), len(rois) * math.prod(size))
    with torch.sparse.check_sparse_tensor_invariants():  # a RoI may be of no picture
        return torch.sparse_coo_tensor(index, torch.cat(shares), totals)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maximum of each bin, and the pixel that it is from (-1 for an empty bin).

    torchvision rounds the corners of a RoI, mmcv does not and ends it one pixel later. Hence each
    of mmcv's bins, whose edges are whole pixels, is passed to torchvision as a RoI of one bin.
    """
    wide = _wide(input)
    height, width = wide.shape[2:]
    rois = rois.to(wide.dtype)
    start, end = rois[:, 1:3] * spatial_scale, (rois[:, 3:] + 1) * spatial_scale
    edges: list[Tensor] = []
    for axis, count, pixels in ((1, pooled_height, height), (0, pooled_width, width)):
        step = (end - start)[:, axis, None] / count
        at = torch.arange(count + 1, device=rois.device) * step + start[:, axis, None]
        at = at.nan_to_num(0)
        edges += [at[:, :-1].floor().clamp(0, pixels), at[:, 1:].ceil().clamp(0, pixels)]
    y1, y2, x1, x2 = edges
    y1, y2, x1, x2 = torch.broadcast_tensors(
        y1[:, :, None], y2[:, :, None], x1[:, None], x2[:, None]
    )
    # torchvision gives each bin one pixel at least: put those without outside of the picture
    empty = (y2 <= y1) | (x2 <= x1) | ~(end > start).all(dim=1)[:, None, None]
    index = rois[:, 0, None, None].expand_as(y1)
    bins = torch.stack([index, x1, y1.masked_fill(empty, height), x2 - 1, y2 - 1], dim=-1)
    largest, pixel = torchvision_ops().roi_pool(wide, bins.view(-1, 5), 1.0, 1, 1)
    for target, values in ((output, largest), (argmax, pixel)):
        target.copy_(values.view(*y1.shape, input.size(1)).permute(0, 3, 1, 2))


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    wide = _wide(grad_output)
    # of the RoIs, only the index of their picture is read
    grad_input.copy_(
        torchvision_ops()._roi_pool_backward(
            wide,
            rois.to(wide.dtype),
            argmax,
            spatial_scale,
            pooled_height,
            pooled_width,
            *grad_input.shape,
        )
    )


# Focal losses


def _focal_entries(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Per entry (N, C): logit, whether it is the target, and the signed factor of its loss.

    A target equal to the number of classes is background: no entry of its row is positive.
    """
    logits = _wide(input)
    classes = logits.size(1)
    positive = target[:, None] == torch.arange(classes, device=target.device)
    factor = torch.where(positive, -alpha, alpha - 1).to(logits.dtype)
    if weight.numel():
        if bool((target >= classes).any()):
            raise ValueError(
                f'sigmoid_focal_loss: a class weight of {classes} entries has none for the '
                f'background (targets of {classes}); weight the entries of the loss instead'
            )
        factor = factor * weight.to(logits.dtype)[target][:, None]
    return logits, positive, factor


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    # log(1 - p) is taken from the logit: mmcv's kernel loses it in rounding above logits of 16.
    x, positive, factor = _focal_entries(input, target, weight, alpha)
    as_positive = (-x).sigmoid() ** gamma * logsigmoid(x)
    as_negative = x.sigmoid() ** gamma * logsigmoid(-x)
    output.copy_(factor * torch.where(positive, as_positive, as_negative))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    x, positive, factor = _focal_entries(input, target, weight, alpha)
    p, q = x.sigmoid(), (-x).sigmoid()
    as_positive = q**gamma * (q - gamma * p * logsigmoid(x))
    as_negative = p**gamma * (gamma * q * logsigmoid(-x) - p)
    grad_input.copy_(factor * torch.where(positive, as_positive, as_negative))


def _target_entries(
    softmax: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: probability of its target, logarithm of that, and the factor of its loss.

    Rows with a negative target count for nothing.
    """
    label = target.clamp(min=0)
    p = _wide(softmax).gather(1, label[:, None])[:, 0]
    factor = torch.where(target >= 0, alpha, 0.0).to(p.dtype)
    if weight.numel():
        factor = factor * weight.to(p.dtype)[label]
    return p, p.clamp(min=torch.finfo(torch.float32).tiny).log(), factor


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    p, log_p, factor = _target_entries(input, target, weight, alpha)
    output.copy_(-factor * (1 - p) ** gamma * log_p)


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    p, log_p, factor = _target_entries(input, target, weight, alpha)
    # 0 is the limit of what is infinity times 0 for a probability of 1 and a gamma below 1
    slope = (gamma * (1 - p) ** (gamma - 1) * p * log_p).nan_to_num(0)
    row = factor * (slope - (1 - p) ** gamma)
    is_target = target[:, None] == torch.arange(input.size(1), device=target.device)
    buff.copy_(row)
    grad_input.copy_(row[:, None] * (is_target.to(p.dtype) - _wide(input)))


# Deformable convolution and attention


def _deform_conv_args(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> tuple[Any, ...]:
    """Arguments of torchvision's operator; geometry is stride, padding, dilation (h, w), groups."""
    placeholders = input.new_zeros(len(input), 1), input.new_zeros(len(weight))
    tensors = (
        input,
        weight,
        offset,
        placeholders[0] if mask is None else mask,
        placeholders[1] if bias is None else bias,
    )
    return (*map(_wide, tensors), *geometry, mask is not None)


def _deform_conv_backward(grad_output: Tensor, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Gradients for input, weight, offset, mask and bias.

    The offset of a sample at exactly -1 has none in mmcv, and a one-sided one in torchvision. That
    is the first row and column of a convolution with padding whose offsets are still 0.
    """
    grads = torchvision_ops()._deform_conv2d_backward(_wide(grad_output), *args)
    _, weight, offset, _, _, *geometry, _ = args
    kernel, size = weight.shape[2:], offset.shape[2:]
    # (picture, group, row and column of the kernel, axis, row and column of the output)
    shape = (geometry[7], *kernel, 2)
    offset, grad = offset.unflatten(1, shape), grads[2].unflatten(1, shape)
    for axis in (0, 1):
        stride, padding, dilation = geometry[axis:6:2]
        tap, place = (torch.arange(n, device=offset.device) for n in (kernel[axis], size[axis]))
        start = tap[:, None] * dilation + place * stride - padding
        at = offset[..., axis, :, :] + (start[:, None, :, None] if axis == 0 else start[:, None])
        grad[..., axis, :, :].masked_fill_(at == -1, 0)
    return grads


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    args = _deform_conv_args(input, weight, offset, None, None, _geometry_v1(**geometry))
    output.copy_(torchvision_ops().deform_conv2d(*args))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    args = _deform_conv_args(input, weight, offset, None, None, _geometry_v1(**geometry))
    grads = _deform_conv_backward(gradOutput, args)
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **geometry: int,
) -> None:
    # Only the shape of the weight matters for its own gradient.
    args = _deform_conv_args(input, gradWeight, offset, None, None, _geometry_v1(**geometry))
    grads = torchvision_ops()._deform_conv2d_backward(_wide(gradOutput), *args)
    gradWeight.add_(grads[1], alpha=scale)


def _geometry_v1(
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> tuple[int, ...]:
    return dH, dW, padH, padW, dilationH, dilationW, group, deformable_group


def _values_read(
    offset: Tensor, mask: Tensor, weight: Tensor, output: Tensor, deform_groups: int
) -> list[Tensor]:
    """Offsets and masks of the output's size: the first values of each picture, as mmcv reads.

    DyHead passes those of a larger feature map.
    """
    kernel, size = weight.shape[2:], output.shape[2:]
    parts = []
    for name, tensor, count in (('offset', offset, 2), ('mask', mask, 1)):
        channels = deform_groups * count * math.prod(kernel)
        values = tensor.flatten(1)
        needed = channels * math.prod(size)
        if values.size(1) < needed:
            raise ValueError(
                f'modulated_deform_conv: {name} of shape {tuple(tensor.shape)} has too few values '
                f'for an output of {size[0]}x{size[1]}: it needs {channels} channels of that size'
            )
        parts.append(values[:, :needed].unflatten(1, (channels, *size)))
    return parts


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    offset, mask = _values_read(offset, mask, weight, output, geometry['deformable_group'])
    args = _deform_conv_args(
        input, weight, offset, mask, bias if with_bias else None, _geometry_v2(**geometry)
    )
    output.copy_(torchvision_ops().deform_conv2d(*args))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    offset, mask = _values_read(offset, mask, weight, grad_output, geometry['deformable_group'])
    args = _deform_conv_args(
        input, weight, offset, mask, bias if with_bias else None, _geometry_v2(**geometry)
    )
    grads = _deform_conv_backward(grad_output, args)
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    for target, grad in ((grad_offset, grads[2]), (grad_mask, grads[3])):
        unread = math.prod(target.shape[1:]) - math.prod(grad.shape[1:])
        target.copy_(pad(grad.flatten(1), (0, unread)).view(target.shape))
    if with_bias:
        grad_bias.copy_(grads[4])


def _geometry_v2(
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
) -> tuple[int, ...]:
    return stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    # mmcv has this in plain PyTorch, but uses it on the CPU alone.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(
        _wide(value), value_spatial_shapes, _wide(sampling_locations), _wide(attention_weights)
    ).type_as(value)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    with torch.enable_grad():
        value, locations, weights = inputs = [
            tensor.detach().requires_grad_()
            for tensor in (value, sampling_locations, attention_weights)
        ]
        output = ms_deform_attn_forward(
            value, value_spatial_shapes, value_level_start_index, locations, weights, im2col_step
        )
        grads = torch.autograd.grad(output, inputs, grad_output)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)


# Attention over windows, masked convolution, reassembly of features


def psamask_forward(input: Tensor, output: Tensor, psa_type: int, num_: int, **sizes: int) -> None:
    """Attention of each place over the whole map, from its attention over a window around it.

    ``psa_type`` is 0 (collect: to the place, from all others) or 1 (distribute: the reverse).
    """
    whole = _psa_select(input, 1, sizes)
    output.copy_((whole.transpose(1, 2) if psa_type else whole).reshape(output.shape))


def psamask_backward(
    grad_output: Tensor, grad_input: Tensor, psa_type: int, num_: int, **sizes: int
) -> None:
    whole = grad_output.flatten(2)
    whole = (whole.transpose(1, 2) if psa_type else whole).reshape(grad_output.shape)
    grad_input.copy_(_psa_select(whole, -1, sizes).view(grad_input.shape))


def _psa_select(source: Tensor, sign: int, sizes: dict[str, int]) -> Tensor:
    """Map for each place (columns) from the places of its window (sign 1), or the reverse (-1)."""
    index, inside = [], []
    for side in ('h', 'w'):
        full, window = sizes[f'{side}_feature'], sizes[f'{side}_mask']
        place = torch.arange(full, device=source.device)
        here = place if sign > 0 else torch.arange(window, device=source.device)
        there = here[:, None] - sign * (place - sizes[f'half_{side}_mask'])
        index.append(there)
        inside.append((there >= 0) & (there < (window if sign > 0 else full)))
    across = sizes['w_mask'] if sign > 0 else sizes['w_feature']
    place = (index[0][:, None, :, None] * across + index[1][:, None]).flatten(0, 1).flatten(1)
    valid = (inside[0][:, None, :, None] & inside[1][:, None]).flatten(0, 1).flatten(1)
    chosen = source.flatten(2).gather(1, place.where(valid, 0).expand(len(source), -1, -1))
    return chosen.masked_fill(~valid, 0)


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    padded = pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    windows = padded.unfold(1, kernel_h, 1).unfold(2, kernel_w, 1)
    chosen = windows[:, mask_h_idx, mask_w_idx]  # (channel, place, row, column)
    col.copy_(chosen.permute(0, 2, 3, 1).reshape(col.shape))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    im[0][:, mask_h_idx, mask_w_idx] = col


def _reassemble(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    """CARAFE: each output pixel is a sum of the window around its source, weighted by its mask."""
    batch, channels, height, width = features.shape
    padded = pad(_wide(features), [kernel // 2] * 4).unflatten(1, (groups, -1))
    masks = _wide(masks).view(batch, groups, kernel**2, 1, height, scale, width, scale)
    total = padded.new_zeros(())
    for tap, (y, x) in enumerate(itertools.product(range(kernel), repeat=2)):
        source = padded[..., y : y + height, x : x + width]
        total = total + source[..., None, :, None] * masks[:, :, tap]
    return total.reshape(batch, channels, height * scale, width * scale)


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    output.copy_(_reassemble(features, masks, kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    with torch.enable_grad():
        features, masks = (tensor.detach().requires_grad_() for tensor in (features, masks))
        output = _reassemble(features, masks, kernel_size, group_size, scale_factor)
        grads = torch.autograd.grad(output, (features, masks), top_grad.to(output.dtype))
    bottom_grad.copy_(grads[0])
    mask_grad.copy_(grads[1])


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    **how: int,
) -> None:
    rfeatures.copy_(features)  # all that the gradients get of the features
    carafe_naive_forward(features, masks, output, **how)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    **how: int,
) -> None:
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, **how)


# What mmcv asks of the module itself


def get_compiler_version() -> str:
    return 'not compiled: operators of torchvision through mmffnet'


def get_compiling_cuda_version() -> str:
    return str(torch.version.cuda or 'not available')


def __getattr__(name: str) -> Callable[..., Any]:
    """Any other native function: present for mmcv's checks at import, an error when called."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def unavailable(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"mmcv's native operator '{name}' is not available with mmcv-lite, and torchvision "
            f'has no equal. To use it, {_HOW_TO_GET}'
        )

    unavailable.__name__ = unavailable.__qualname__ = name
    return unavailable
