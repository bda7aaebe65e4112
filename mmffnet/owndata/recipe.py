"""Sensible settings for a training on one's own data, and the config that holds them."""

import math
import pprint
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.device import get_device

from .formats import OwnData

#: The configs that are inherited from
_BASES = {
    'instance': 'detection/maskrcnn_{arch}_coco.py',
    'det': 'detection/maskrcnn_{arch}_coco.py',
    'seg': 'segmentation/semfpn_{arch}_ade20k.py',
    'cls': 'classification/{arch}_in1k.py',
}
ARCHS = ('nano', 'ffnet1', 'ffnet2', 'ffnet3', 'ffnet4')
_MODELS = dict(
    instance='Mask R-CNN', det='Faster R-CNN', seg='Semantic FPN', cls='an image classifier'
)
#: Rough need of a training, GB for a megapixel of input
_MEMORY = dict(nano=1.5, ffnet1=5, ffnet2=8, ffnet3=11, ffnet4=16)
_FEW = 500  # pictures below which early stages keep their pre-trained weights
_EPOCHS = 50  # where the budget says nothing


@dataclass
class Recipe:
    """The settings of a training.

    Args:
        task (str): 'instance', 'det', 'seg' or 'cls'.
        arch (str): The backbone.
        size (int): Longer side of the pictures.
        batch (int): Pictures of a step.
        lr (float): Learning rate.
        epochs (int): Rounds through the training pictures.
        weights (str, optional): What the training starts from. Defaults to None.
        frozen (int): Stages (the stem counts) that are not trained. Defaults to 0.
        reasons (list[str]): Why these. Defaults to [].
    """

    task: str
    arch: str
    size: int
    batch: int
    lr: float
    epochs: int = _EPOCHS
    weights: str | None = None
    frozen: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def base(self) -> str:
        arch = 'ffnet_nano' if (self.task, self.arch) == ('cls', 'nano') else self.arch
        return _BASES[self.task].format(arch=arch)


def choose(
    data: OwnData, task: str, arch: str | None, weights: str | None, size: int | None
) -> Recipe:
    """Choose settings by the task, the pictures and the machine.

    Args:
        data (OwnData): The pictures.
        task (str): The task.
        arch (str, optional): The backbone. Defaults to None: nano on a CPU, FFNet-1 on a GPU.
        weights (str, optional): A checkpoint to start from. Defaults to None: the official
            ImageNet weights of ``arch``, none for nano.
        size (int, optional): Longer side of the pictures. Defaults to None, which goes by theirs.
    """
    device = get_device()
    reasons = [f'{_MODELS[task]}: the labels are for it ({data.format}, task {task})']
    if arch is None:
        arch = 'nano' if device == 'cpu' else 'ffnet1'
        reasons.append(f'backbone {arch}: the training runs on {device}')
    if weights is None and arch != 'nano':
        weights = f'mmffnet://{arch}-{"384" if arch == "ffnet4" else "distilled"}'
    reasons.append(f'starts from {weights or "random weights, as there are none for nano"}')
    if size is None:
        most = dict(cls=224).get(task, 416 if device == 'cpu' else 1024)
        middle = float(np.median([max(picture.size) for picture in data.pictures]))
        size = 32 * math.ceil(min(middle, most) / 32)
        reasons.append(f'pictures of {size}: theirs are {middle:.0f}, at most {most} on {device}')
    count = len(data.part('train'))
    megapixels = size**2 / 1e6
    if device == 'cpu':
        batch, why = (32 if task == 'cls' else 4), 'a step of a CPU'
    else:
        memory = torch.cuda.mem_get_info()[1] / 2**30 if device == 'cuda' else 16
        batch = int(0.7 * memory / (_MEMORY[arch] * megapixels))
        batch, why = min(max(batch, 1), 64 if task == 'cls' else 16), f'{memory:.0f} GB of {device}'
    batch = max(min(batch, count // 4), 1)
    if task == 'seg':
        batch = max(batch, 2)  # batch norm on a map of one pixel takes two
    reasons.append(f'batches of {batch}: {why}, and {count} pictures')
    # AdamW's rate goes with the root of the batch
    usual, usual_batch = (1e-3, 4) if arch == 'nano' else (2e-4, 16)
    lr = float(f'{usual * math.sqrt(batch / usual_batch):.1g}')
    reasons.append(f'learning rate {lr:g}: {usual:g} for batches of {usual_batch}, by the root')
    frozen = 1 if weights and count < _FEW else 0
    if frozen:
        reasons.append(f'the stem stays as pre-trained: {count} pictures are few')
    return Recipe(task, arch, size, batch, lr, weights=weights, frozen=frozen, reasons=reasons)


def fit_epochs(recipe: Recipe, count: int, minutes: float, step: float, test: float) -> None:
    """Set the epochs that a time allows.

    Args:
        recipe (Recipe): The settings.
        count (int): Number of pictures for training.
        minutes (float): The time.
        step (float): Seconds of a step, measured.
        test (float): Seconds of a test, estimated.
    """
    steps = max(count // recipe.batch, 1)
    # tested five times on the way and once at the end
    recipe.epochs = max(int((60 * minutes - 6 * test) / (steps * step)), 1)
    recipe.reasons.append(
        f'{recipe.epochs} epochs of {steps} steps: {step:.2f} s a step here, for {minutes:g} min'
    )


_START = """\
\"\"\"{title}, written by `mmffnet finetune`: edit it, and train with `mmffnet train`.\"\"\"

_base_ = __import__('mmffnet').config_path('{base}')

classes = {classes}
size, tiles, batch_size, epochs, lr = {size}, {tiles}, {batch}, {epochs}, {lr:g}
labels = {labels!r}
"""
_DETECTION = """\
own = dict(data_root={root!r}, metainfo=dict(classes=classes), data_prefix=dict(img=''))
model = dict({backbone}
    rpn_head=dict(anchor_generator=dict(scales=[{scale}])),
    roi_head=dict(bbox_head=dict(num_classes=len(classes)), {mask_head}),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask={masks}),
    dict(type='RandomResize', scale=(size, size), ratio_range=(0.7, 1.0), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
resize = dict(type='Resize', scale=(size, size), keep_ratio=True)
pack = dict(type='PackDetInputs', meta_keys=keys)
test_pipeline = [train_pipeline[0], resize, train_pipeline[1], pack]
train = dict(ann_file=labels + '/train.json', filter_cfg=dict(filter_empty_gt=False, min_size=1))
train_set = dict(**own, **train, pipeline=train_pipeline)
train_dataloader = dict(batch_size=batch_size, dataset=train_set)
val_dataloader = dict(dataset=dict(**own, ann_file=labels + '/val.json', pipeline=test_pipeline))
val_evaluator = dict(type='mmffnet.FastCocoMetric', metric={metric})
val_evaluator.update(ann_file=labels + '/val.json')
test_evaluator = val_evaluator
"""
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
to_multiple = dict(type='ResizeToMultiple', size_divisor=32)
test_pipeline = [load[0], resize, to_multiple, load[1], dict(type='PackSegInputs')]
train = dict(**own, ann_file=labels + '/train.txt', pipeline=train_pipeline)
sampler = dict(type='DefaultSampler', shuffle=True)
train_dataloader = dict(batch_size=batch_size, sampler=sampler, dataset=train)
val_dataloader = dict(dataset=dict(**own, ann_file=labels + '/val.txt', pipeline=test_pipeline))
"""
_CLASSIFICATION = """\
own = dict(_delete_=True, type='CustomDataset', data_root={root!r}, classes=classes)
data_preprocessor = dict(num_classes=len(classes))
model = dict({backbone} head=dict(num_classes=len(classes)), train_cfg=None)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=size, crop_ratio_range=(0.3, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
crop = [dict(type='ResizeEdge', scale=size * 8 // 7), dict(type='CenterCrop', crop_size=size)]
test_pipeline = [train_pipeline[0], *crop, train_pipeline[-1]]
train = dict(ann_file=labels + '/train.txt', pipeline=train_pipeline)
train_dataloader = dict(batch_size=batch_size, dataset=dict(**own, **train))
val_dataloader = dict(dataset=dict(**own, ann_file=labels + '/val.txt', pipeline=test_pipeline))
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
custom_hooks = []
"""
_END = """\
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=lr))
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=epochs, val_interval={interval})
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end={warmup}),
    dict(type='CosineAnnealingLR', T_max=epochs, convert_to_iter_based=True),
]
best = dict(_delete_=True, type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best={best!r})
default_hooks = dict(logger=dict(interval={log}), checkpoint=best)
"""
_BEST = {'instance': 'coco/segm_mAP', 'det': 'coco/bbox_mAP', 'seg': 'mIoU', 'cls': 'accuracy/top1'}


def write_config(recipe: Recipe, data: OwnData, files: dict[str, str], path: Path) -> None:
    """Write a config that inherits from a shipped one and holds what is the data's own.

    Args:
        recipe (Recipe): The settings.
        data (OwnData): The pictures.
        files (dict[str, str]): The annotation file of each part.
        path (Path): The file to write.
    """
    steps = max(len(data.part('train')) // recipe.batch, 1)
    masks = recipe.task == 'instance'
    own = dict(seg=_SEGMENTATION, cls=_CLASSIFICATION).get(recipe.task, _DETECTION)
    text = (_START + own + _END).format(
        title=f'{_MODELS[recipe.task]} with FFNet {recipe.arch} on {data.root.name}',
        base=recipe.base,
        classes=pprint.pformat(tuple(data.classes), indent=1, width=98, compact=True),
        size=recipe.size,
        tiles=data.tiles,
        batch=recipe.batch,
        epochs=recipe.epochs,
        lr=recipe.lr,
        labels=str(Path(files['train']).parent.resolve()),
        root=str(data.root.resolve()),
        backbone=_backbone(recipe),
        # anchors are made for COCO at 800 pixels
        scale=8 if recipe.size >= 800 else 4,
        masks=masks,
        mask_head='mask_head=dict(num_classes=len(classes))'
        if masks
        else 'mask_head=None, mask_roi_extractor=None',
        metric=['bbox', 'segm'] if masks else ['bbox'],
        interval=max(recipe.epochs // 5, 1),
        warmup=min(max(steps, 20), 500),
        best=_BEST[recipe.task],
        log=min(max(steps // 4, 1), 50),
    )
    path.write_text(text, encoding='utf-8')


def _backbone(recipe: Recipe) -> str:
    parts = []
    if recipe.frozen:
        parts.append(f'frozen_stages={recipe.frozen}')
    if recipe.weights:
        parts.append(
            f"init_cfg=dict(_delete_=True, type='Pretrained', checkpoint={recipe.weights!r})"
        )
    return f' backbone=dict({", ".join(parts)}),' if parts else ''
