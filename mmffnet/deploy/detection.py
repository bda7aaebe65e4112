"""Detectors as plain modules: anchors, decoding, NMS and RoIAlign inside the graph.

The results are those of mmdet. Where mmdet loops over pictures and drops what is not needed, here
everything has as many places as there can be candidates, and marks the empty ones: only so is the
number of pictures free.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from ..config_types import type_name
from .plain import Plain, exportable

_EMPTY = -1.0  # the score of a place without a candidate


class DenseBoxes(nn.Module):
    """Candidates of mmdet's ``RetinaHead`` or ``RPNHead``: the best of every level, decoded."""

    def __init__(self, head: Any):
        super().__init__()
        _demand(head.use_sigmoid_cls, 'a sigmoid classification', head)
        _demand(_kind(head.prior_generator) == 'AnchorGenerator', 'an AnchorGenerator', head)
        cfg = head.test_cfg
        _demand(cfg.get('nms_pre', -1) > 0, 'nms_pre in test_cfg', head)
        self.nms_pre = cfg.nms_pre
        self.classes = head.cls_out_channels
        self.coder = BoxCoder(head.bbox_coder)
        self.strides = list(head.prior_generator.strides)
        for i, base in enumerate(head.prior_generator.base_anchors):
            self.register_buffer(f'base{i}', base.detach().cpu().clone().float())
        self.head = exportable(head)

    def forward(self, feats: tuple[Tensor, ...], size: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Returns boxes (N, M, 4), scores (N, M) and the index of the level and of the class."""
        boxes, scores, classes = [], [], []
        outs = zip(*self.head(feats), strict=True)
        for i, (logits, deltas) in enumerate(outs):
            height, width = logits.shape[2:]
            anchors = self._anchors(i, height, width)
            score = logits.permute(0, 2, 3, 1).flatten(1).sigmoid()
            # a level may have fewer candidates than are wanted
            best, index = F.pad(score, (0, self.nms_pre), value=_EMPTY).topk(self.nms_pre)
            anchor = torch.div(index, self.classes, rounding_mode='floor')
            anchor = torch.where(best > _EMPTY, anchor, 0)
            deltas = deltas.permute(0, 2, 3, 1).reshape(deltas.shape[0], -1, 4)
            boxes.append(self.coder(anchors[anchor], _pick(deltas, anchor), size))
            scores.append(best)
            classes.append(index % self.classes)
        return torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(classes, 1)

    def levels(self, like: Tensor) -> Tensor:
        """The level of each of the M candidates."""
        levels = torch.arange(len(self.strides), device=like.device)
        return levels.repeat_interleave(self.nms_pre)

    def _anchors(self, level: int, height: int, width: int) -> Tensor:
        base: Tensor = getattr(self, f'base{level}')
        step_x, step_y = self.strides[level]
        x = (torch.arange(width, device=base.device) * step_x).to(base)
        y = (torch.arange(height, device=base.device) * step_y).to(base)
        y, x = y[:, None].expand(height, width), x[None].expand(height, width)
        return (torch.stack([x, y, x, y], -1)[:, :, None] + base).reshape(-1, 4)


class BoxCoder(nn.Module):
    """What mmdet's ``DeltaXYWHBBoxCoder`` decodes."""

    means: Tensor
    stds: Tensor

    def __init__(self, coder: Any):
        super().__init__()
        usual = _kind(coder) == 'DeltaXYWHBBoxCoder' and not coder.add_ctr_clamp
        _demand(usual and coder.clip_border, 'a DeltaXYWHBBoxCoder that clips', coder)
        self.register_buffer('means', torch.tensor(coder.means, dtype=torch.float32))
        self.register_buffer('stds', torch.tensor(coder.stds, dtype=torch.float32))
        self.limit = abs(math.log(16 / 1000))

    def forward(self, boxes: Tensor, deltas: Tensor, size: Any) -> Tensor:
        height, width = size
        shift, scale = (deltas * self.stds + self.means).split(2, -1)
        low, high = boxes.split(2, -1)
        center = (low + high) * 0.5 + (high - low) * shift
        half = (high - low) * scale.clamp(-self.limit, self.limit).exp() * 0.5
        x1, y1 = (center - half).split(1, -1)
        x2, y2 = (center + half).split(1, -1)
        x1, x2 = x1.clamp(0, width), x2.clamp(0, width)
        y1, y2 = y1.clamp(0, height), y2.clamp(0, height)
        return torch.cat([x1, y1, x2, y2], -1)


def select(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, cfg: Any, size: Any
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression for all pictures, by mmdet's ``test_cfg``.

    Of M boxes a picture, (N, M, 4), those that are ``valid`` are candidates. Boxes of other groups,
    (N, M) or (M,), do not matter; no box exceeds ``size``, height and width. Returns scores (N, K),
    descending, with -1 in empty places, and indices (N, K) into M.
    """
    count = scores.shape[1]
    candidates = valid.flatten().nonzero()[:, 0]
    picture = torch.div(candidates, count, rounding_mode='floor')
    group = groups.expand_as(scores).flatten()[candidates]
    # groups move to the right and pictures down, so that those that must not meet never overlap
    height, width = size
    right, down = group.to(boxes) * (width + 1), picture.to(boxes) * (height + 1)
    moved = boxes.reshape(-1, 4)[candidates] + torch.stack([right, down, right, down], -1)
    chosen = scores.flatten()[candidates]
    kept = nms(moved, chosen, cfg.nms.iou_threshold)
    empty = torch.full_like(scores, _EMPTY).flatten()
    left = empty.scatter(0, candidates[kept], chosen[kept]).reshape(scores.shape)
    return left.topk(min(cfg.max_per_img, count))


class Detector(Plain):
    """Base of detectors: the end of all, and what they have in common."""

    task = 'detection'

    def __init__(self, model: Any):
        super().__init__(model)
        self.backbone = exportable(model.backbone)
        self.neck = exportable(getattr(model, 'neck', None))
        self.outputs = ['boxes', 'scores', 'labels']

    @staticmethod
    def finish(scores: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = scores > _EMPTY
        return (
            torch.where(found[..., None], boxes, 0.0),
            torch.where(found, scores, 0.0),
            torch.where(found, labels, -1),
        )


class SingleStage(Detector):
    """mmdet's ``RetinaNet``."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.dense = DenseBoxes(model.bbox_head)
        self.cfg = _test_cfg(model.bbox_head.test_cfg, model)
        self.score_threshold = float(self.cfg.score_thr)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = images.shape[2:]
        feats = self.neck(self.backbone(self.prepare(images)))
        boxes, scores, labels = self.dense(feats, size)
        valid = (scores > self.cfg.score_thr) & _large_enough(boxes, self.cfg)
        best, index = select(boxes, scores, labels, valid, self.cfg, size)
        return self.finish(best, _pick(boxes, index), labels.gather(1, index))


class TwoStage(Detector):
    """mmdet's ``FasterRCNN`` and ``MaskRCNN``."""

    def __init__(self, model: Any):
        super().__init__(model)
        head = model.roi_head
        _demand(_kind(head) == 'StandardRoIHead', 'a StandardRoIHead', head)
        _demand(not head.with_shared_head, 'no shared head', head)
        self.rpn = DenseBoxes(model.rpn_head)
        self.rpn_cfg = _test_cfg(model.rpn_head.test_cfg, model)
        self.cfg = _test_cfg(head.test_cfg, model)
        self.score_threshold = float(self.cfg.score_thr)
        self.box_align = RoIAlign(head.bbox_roi_extractor)
        self.box_head = exportable(head.bbox_head)
        self.coder = BoxCoder(head.bbox_head.bbox_coder)
        self.mask_head = exportable(head.mask_head) if head.with_mask else None
        if head.with_mask:
            self.mask_align = RoIAlign(head.mask_roi_extractor)
            self.outputs = [*self.outputs, 'masks']

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = images.shape[2:]
        feats = self.neck(self.backbone(self.prepare(images)))
        boxes, scores = self._second_stage(feats, *self._proposals(feats, size), size)
        n, count, classes = scores.shape
        labels = torch.arange(classes, device=scores.device).repeat(count)
        boxes, scores = boxes.reshape(n, count * classes, 4), scores.reshape(n, count * classes)
        valid = scores > self.cfg.score_thr
        best, index = select(boxes, scores, labels, valid, self.cfg, size)
        boxes, scores, labels = self.finish(best, _pick(boxes, index), labels[index])
        if self.mask_head is None:
            return boxes, scores, labels
        masks = self.mask_head(self.mask_align(feats, boxes))
        masks = masks.reshape(*labels.shape, *masks.shape[1:])
        if masks.shape[2] > 1:
            chosen = labels.clamp(min=0)[..., None, None, None]
            masks = masks.gather(2, chosen.expand(-1, -1, 1, *masks.shape[3:]))
        return boxes, scores, labels, masks.squeeze(2).sigmoid()

    def _proposals(self, feats: tuple[Tensor, ...], size: Any) -> tuple[Tensor, Tensor]:
        boxes, scores, _ = self.rpn(feats, size)
        valid = (scores > _EMPTY) & _large_enough(boxes, self.rpn_cfg)
        best, index = select(boxes, scores, self.rpn.levels(boxes), valid, self.rpn_cfg, size)
        found = best > _EMPTY
        return torch.where(found[..., None], _pick(boxes, index), 0.0), found

    def _second_stage(
        self, feats: tuple[Tensor, ...], proposals: Tensor, found: Tensor, size: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns boxes (N, K, classes, 4) and scores (N, K, classes), -1 for empty places."""
        logits, deltas = self.box_head(self.box_align(feats, proposals))
        n, count = found.shape
        scores = logits.softmax(-1).reshape(n, count, logits.shape[1])[..., :-1]
        scores = torch.where(found[..., None], scores, _EMPTY)
        deltas = deltas.reshape(n, count, deltas.shape[1] // 4, 4)
        boxes = self.coder(proposals[:, :, None], deltas, size)
        return boxes.expand(-1, -1, scores.shape[2], -1), scores


class RoIAlign(nn.Module):
    """The maps of boxes, each from the level that suits its size: a ``SingleRoIExtractor``."""

    def __init__(self, extractor: Any):
        super().__init__()
        layers = extractor.roi_layers
        usual = _kind(extractor) == 'SingleRoIExtractor' and _kind(layers[0]) == 'RoIAlign'
        _demand(usual, 'a SingleRoIExtractor with RoIAlign', extractor)
        self.scales = [layer.spatial_scale for layer in layers]
        self.size = layers[0].output_size
        self.sampling_ratio = layers[0].sampling_ratio
        self.aligned = layers[0].aligned
        self.finest_scale = extractor.finest_scale

    def forward(self, feats: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
        """Returns (N * K, C, h, w) for boxes (N, K, 4)."""
        n, count = boxes.shape[:2]
        picture = torch.arange(n, device=boxes.device).to(boxes)[:, None].expand(n, count)
        rois = torch.cat([picture[..., None], boxes], -1).reshape(-1, 5)
        area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
        level = torch.floor(torch.log2(area.sqrt() / self.finest_scale + 1e-6))
        level = level.clamp(0, len(self.scales) - 1)
        maps = feats[0].new_zeros(n * count, feats[0].shape[1], *self.size)
        for i, scale in enumerate(self.scales):
            place = (level == i).nonzero()[:, 0]
            part = roi_align(
                feats[i], rois[place], self.size, scale, self.sampling_ratio, self.aligned
            )
            maps = maps.index_put((place,), part)
        return maps


def wrap_detector(model: Any) -> Detector:
    """Makes the module that is exported of one of mmdet's detectors."""
    if hasattr(model, 'roi_head') and hasattr(model, 'rpn_head'):
        return TwoStage(model)
    head = getattr(model, 'bbox_head', None)
    _demand(_kind(head) == 'RetinaHead', 'a RetinaHead, or an RPN and a StandardRoIHead', model)
    return SingleStage(model)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """(N, K, 4) of (N, M, 4)."""
    return values.gather(1, index[..., None].expand(-1, -1, 4))


def _large_enough(boxes: Tensor, cfg: Any) -> Tensor:
    low, high = boxes.split(2, -1)
    # without a smallest size all are: none is negative
    return ((high - low) > cfg.get('min_bbox_size', -1)).all(-1)


def _kind(thing: Any) -> str:
    return type(thing).__name__


def _test_cfg(cfg: Any, model: Any) -> Any:
    usual = type_name(cfg.nms.get('type', 'nms')) == 'nms' and not cfg.nms.get('class_agnostic')
    _demand(
        usual and cfg.max_per_img > 0, 'nms of the type nms, and max_per_img, in test_cfg', model
    )
    return cfg


def _demand(condition: bool, what: str, where: Any) -> None:
    if not condition:
        raise ValueError(f'{_kind(where)} cannot be exported as it is: a detector needs {what}')
