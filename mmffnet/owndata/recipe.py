"""Sensible settings for a training on one's own data, and the config that holds them."""

import math
import pprint
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.device import get_device

from mmffnet.checkpoint import OWN_WEIGHTS, SCHEME
from mmffnet.errors import UsageError

from .formats import OwnData

#: By task the config that is inherited from, what it is, and the metric of the best checkpoint
_TASKS = {
    'instance': ('detection/maskrcnn_{}_coco.py', 'Mask R-CNN', 'coco/segm_mAP'),
    'det': ('detection/maskrcnn_{}_coco.py', 'Faster R-CNN', 'coco/bbox_mAP'),
    'seg': ('segmentation/semfpn_{}_ade20k.py', 'Semantic FPN', 'mIoU'),
    'cls': ('classification/{}_in1k.py', 'Image classifier', 'accuracy/top1'),
}
#: What detectors of photographs start from where there is nothing better: docs/owndata.md
_DRAWN = f'{SCHEME}ffnet-nano-seg'
#: Rough need of a training, GB for a megapixel of input
_MEMORY = dict(nano=1.5, ffnet1=5, ffnet2=8, ffnet3=11, ffnet4=16)
_FEW = (500, 100)  # pictures below which one, two early stages keep their pre-trained weights
_MANY = 5000  # pictures from which a larger backbone pays
_EPOCHS = 50  # where the budget says nothing
_MOST_EPOCHS = 300  # more is for the pictures' own details
_OBJECT = 48  # pixels that nine of ten objects keep where pictures are made small for a CPU


@dataclass
class Recipe:
    """The settings of a training."""

    task: str
    arch: str
    size: int  #: Longer side of the pictures
    batch: int
    lr: float
    epochs: int = _EPOCHS
    weights: str | None = None
    frozen: int = 0  #: Stages (the stem counts) that are not trained
    reasons: list[str] = field(default_factory=list)


def choose(data: OwnData, arch: str | None, weights: str | None, size: int | None) -> Recipe:
    """Choose what is not given by the task, the pictures and the machine, and say why."""
    device, task = get_device(), data.task
    reasons = [f'{_TASKS[task][1]}: what the {data.format} labels are for (task {task})']
    count, least = len(data.part('train')), 1 if task in ('det', 'instance') else 2
    if count < least:
        raise UsageError(f'{count} pictures to train with are too few: at least {least} are needed')
    if arch is None:
        arch = 'nano' if device == 'cpu' else 'ffnet1' if count < _MANY else 'ffnet2'
        reasons.append(f'backbone {arch}: the training runs on {device}, with {count} pictures')
    if weights is None and arch != 'nano':
        weights = f'mmffnet://{arch}-{"384" if arch == "ffnet4" else "distilled"}'
    if weights is None and task in ('det', 'instance'):  # for classifiers and masks not tried
        weights = _DRAWN
    drawn = weights is not None and weights.removeprefix(SCHEME) in OWN_WEIGHTS
    seen = ', which have seen drawn shapes alone: trained as random weights are' * drawn
    reasons.append(f'starts from {weights or "random weights"}{seen}')
    trained = weights is not None and not drawn
    if size is None:
        size, why = _choose_size(data, device)
        reasons.append(f'pictures of {size}: {why}')
    batch, why = _choose_batch(task, arch, size, device)
    batch = max(min(batch, count // 4), least)  # for batch norm
    reasons.append(f'batches of {batch}: {why}, and {count} pictures')
    reasons.append('augmentation: other scales, crops and flips; colours stay, as they may matter')
    # AdamW's rate goes with the root of the batch
    usual, usual_batch = (2e-4, 16) if trained else (2e-3, 8)
    lr = min(float(f'{usual * math.sqrt(batch / usual_batch):.2g}'), 2e-3)
    reasons.append(
        f'learning rate {lr:g}: {usual:g} for batches of {usual_batch} and '
        f'{"pre-trained" if trained else "random"} weights, by the root, at most 0.002'
    )
    frozen = sum(count < few for few in _FEW) if trained else 0
    if frozen:
        reasons.append(f'{("stem", "stem and first stage")[frozen - 1]} frozen: {count} are few')
    return Recipe(task, arch, size, batch, lr, weights=weights, frozen=frozen, reasons=reasons)


def _choose_size(data: OwnData, device: str) -> tuple[int, str]:
    longer = [max(picture.size) for picture in data.pictures]
    most = 224 if data.task == 'cls' else 416 if device == 'cpu' else 1024
    size = min(float(np.median(longer)), most)
    why = f'theirs are {np.median(longer):.0f}, at most {most} on {device}'
    if data.task in ('det', 'instance') and device == 'cpu':
        parts = [
            math.sqrt(max(thing['bbox'][2] * thing['bbox'][3], 0)) / max(max(picture.size), 1)
            for picture in data.pictures
            for thing in picture.objects
        ]
        enough = max(_OBJECT / max(float(np.quantile(parts, 0.1)), 1e-3), 192) if parts else size
        if enough < size:
            size, why = enough, f'{_OBJECT} pixels or more for nine of ten objects are enough'
    return max(32 * math.ceil(size / 32), 64), why


def _choose_batch(task: str, arch: str, size: int, device: str) -> tuple[int, str]:
    megapixels = size**2 / 1e6
    if device == 'cpu':
        return 32 if task == 'cls' else 4, 'steps of a CPU'
    memory = torch.cuda.mem_get_info()[1] / 2**30 if device == 'cuda' else 16
    fits = int(0.7 * memory / (_MEMORY[arch] * megapixels))
    return min(max(fits, 1), 64 if task == 'cls' else 16), f'{memory:.0f} GB of {device}'


def halve_batch(recipe: Recipe) -> None:
    """Take less memory than the GPU was found to have."""
    if recipe.batch < 2:
        raise UsageError(f'the GPU cannot hold pictures of {recipe.size}: choose a smaller --size')
    recipe.reasons.append(f'batches of {recipe.batch // 2} after all: more did not fit in the GPU')
    recipe.batch //= 2
    recipe.lr = float(f'{recipe.lr / math.sqrt(2):.2g}')


def fit_epochs(recipe: Recipe, data: OwnData, minutes: float, step: float) -> None:
    """Set the epochs that a time allows, by the seconds of a step."""
    steps = math.ceil(len(data.part('train')) / recipe.batch)
    # tested five times on the way and once at the end, at half of the cost of training
    tests = 3 * len(data.part('val')) / recipe.batch * step
    fits = max(int((60 * minutes - tests) / (steps * step)), 1)
    recipe.epochs = min(fits, _MOST_EPOCHS)
    recipe.reasons.append(
        f'{recipe.epochs} epochs of {steps} steps: {step:.2f} s a step here, for {minutes:g} min'
        + (f', where {fits} would fit' if fits > _MOST_EPOCHS else '')
    )


_START = """\
\"\"\"{title}, written by `mmffnet finetune`: edit, then `mmffnet train` it.\"\"\"

_base_ = __import__('mmffnet').config_path('{base}')
labels = {labels!r}
classes = {classes}
size, tiles, batch_size, epochs, lr = {size}, {tiles}, {batch}, {epochs}, {lr:g}
"""
_DETECTION = """\
own = dict(data_root={root!r}, metainfo=dict(classes=classes))
own.update(data_prefix=dict(img=''), filter_cfg=dict(filter_empty_gt=False, min_size=1))
model = dict({backbone}
    rpn_head=dict(anchor_generator=dict(scales=[{scale}])),
    roi_head=dict(
        bbox_roi_extractor=dict(finest_scale={finest}),
        bbox_head=dict(num_classes=len(classes)), {heads},
    ),{light}
)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask={masks})]
train_pipeline = [
    *load,
    dict(type='RandomResize', scale=(size, size), ratio_range=(0.75, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(size, size), allow_negative_crop=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
resize = dict(type='Resize', scale=(size, size), keep_ratio=True)
test_pipeline = [load[0], resize, load[1], dict(type='PackDetInputs')]
train = dict(**own, ann_file=labels + '/train.json', pipeline=train_pipeline)
val = dict(**own, ann_file=labels + '/val.json', pipeline=test_pipeline)
train_dataloader = dict(batch_size=batch_size, dataset=train)
coco = dict(type='mmffnet.FastCocoMetric', ann_file=labels + '/val.json')
val_evaluator = test_evaluator = dict(**coco, metric={metric})
"""
_MASKS = 'mask_head=dict(num_classes=len(classes))'
_NO_MASKS = 'mask_head=None, mask_roi_extractor=None'
_LIGHT = """
    train_cfg=dict(rpn_proposal=dict(nms_pre=500), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),"""
_SEGMENTATION = """\
own = dict(_delete_=True, type='BaseSegDataset', metainfo=dict(classes=classes))
own.update(data_root={root!r}, img_suffix='', seg_map_suffix='.png')
own.update(data_prefix=dict(img_path='', seg_map_path=labels + '/masks'))
model = dict({backbone}
    data_preprocessor=dict(size=(size, size)),
    decode_head=dict(num_classes=len(classes)),
)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
train_pipeline = [
    *load,
    dict(type='RandomResize', scale=(size, size), ratio_range=(0.7, 1.6), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(size, size), cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
resize = dict(type='Resize', scale=(size, size), keep_ratio=True)
resize = [resize, dict(type='ResizeToMultiple', size_divisor=32)]
test_pipeline = [load[0], *resize, load[1], dict(type='PackSegInputs')]
train = dict(**own, ann_file=labels + '/train.txt', pipeline=train_pipeline)
val = dict(**own, ann_file=labels + '/val.txt', pipeline=test_pipeline)
sampler = dict(type='DefaultSampler', shuffle=True)
train_dataloader = dict(batch_size=batch_size, num_workers=2, sampler=sampler, dataset=train)
"""
_CLASSIFICATION = """\
own = dict(_delete_=True, type='CustomDataset', classes=classes)
own.update(data_root={root!r})
data_preprocessor = dict(num_classes=len(classes))
model = dict({backbone}
    head=dict(num_classes=len(classes)),
    train_cfg=None,
)
load = dict(type='LoadImageFromFile')
train_pipeline = [
    load,
    dict(type='RandomResizedCrop', scale=size, crop_ratio_range=(0.3, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
crop = [dict(type='ResizeEdge', scale=size * 8 // 7), dict(type='CenterCrop', crop_size=size)]
test_pipeline = [load, *crop, dict(type='PackInputs')]
train = dict(**own, ann_file=labels + '/train.txt', pipeline=train_pipeline)
val = dict(**own, ann_file=labels + '/val.txt', pipeline=test_pipeline)
train_dataloader = dict(batch_size=batch_size, num_workers=2, dataset=train)
val_evaluator = test_evaluator = dict(topk=(1,))
custom_hooks = []
"""
_END = """\
val_dataloader = test_dataloader = dict(num_workers=2, dataset=val)
optim_wrapper = dict(optimizer=dict(lr=lr))
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=epochs, val_interval={interval})
cosine = dict(type='CosineAnnealingLR', T_max=epochs, convert_to_iter_based=True)
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, end={warmup}), cosine]
saving = dict(_delete_=True, type='CheckpointHook', interval={keep}, max_keep_ckpts=1)
default_hooks = dict(checkpoint=dict(**saving, save_best={best!r}), logger=dict(interval={log}))
"""


def write_config(recipe: Recipe, data: OwnData, files: dict[str, str], path: Path) -> None:
    """Write a config that inherits from a shipped one and holds what is the data's own.

    ``files`` are those of :func:`write_annotations`.
    """
    base, title, best = _TASKS[recipe.task]
    labels = Path(files['train']).parent
    steps = math.ceil(len(data.part('train')) / recipe.batch)
    masks = recipe.task == 'instance'
    scale = 8 if recipe.size >= 800 else 4  # anchors are made for COCO at 800 pixels
    own = dict(seg=_SEGMENTATION, cls=_CLASSIFICATION).get(recipe.task, _DETECTION)
    text = (_START + own + _END).format(
        **vars(recipe),
        title=f'{title} with FFNet {recipe.arch} on {data.root.resolve().name}',
        base=base.format(recipe.arch).replace('tion/nano_in', 'tion/ffnet_nano_in'),
        classes=_write_classes(data, labels),
        labels=str(labels.resolve()),
        tiles=data.tiles,
        root=str(data.root.resolve()),
        backbone=_backbone(recipe),
        scale=scale,
        finest=7 * scale,
        light=_LIGHT if get_device() == 'cpu' else '',
        masks=masks,
        heads=_MASKS if masks else _NO_MASKS,
        metric=['bbox', 'segm'] if masks else ['bbox'],
        interval=max(recipe.epochs // 5, 1),
        keep=max(recipe.epochs // 10, 1),
        warmup=min(max(steps, 20), 500),
        best=best,
        log=min(max(steps // 4, 1), 50),
    )
    path.write_text(text, encoding='utf-8')


def _write_classes(data: OwnData, folder: Path) -> str:
    """The classes as they stand in the config, or in a file beside the labels if they are many."""
    text = pprint.pformat(tuple(data.classes), indent=1, width=98, compact=True)
    if '\n' not in text:
        return text
    (folder / 'classes.txt').write_text('\n'.join(data.classes), encoding='utf-8')
    return "__import__('mmengine').list_from_file(labels + '/classes.txt')"


def _backbone(recipe: Recipe) -> str:
    if not recipe.weights:
        return ''
    frozen = f'frozen_stages={recipe.frozen - 1}, ' if recipe.frozen else ''
    delete = '' if recipe.task == 'cls' else '_delete_=True, '  # of classifiers there is none
    weights = f"dict({delete}type='Pretrained', checkpoint={recipe.weights!r})"
    return f'\n    backbone=dict({frozen}init_cfg={weights}),'
