"""Checkpoints of small models for each task, with random weights that are not all alike."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import MODELS, DefaultScope

from mmffnet.datasets import CLASSES, PALETTE
from mmffnet.datasets.scenes import draw_scene
from mmffnet.engine.runner import read_config

TASKS = ('detection', 'segmentation', 'classification')
CONFIGS = dict(
    detection='detection/maskrcnn_nano_shapes.py',
    segmentation='segmentation/semfpn_nano_shapes.py',
)
META = dict(
    detection=dict(classes=CLASSES, palette=PALETTE),
    segmentation=dict(classes=('background', *CLASSES), palette=[(110, 110, 110), *PALETTE]),
    classification=dict(classes=CLASSES),
)
CLASSIFIER = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmffnet', 'mmffnet.datasets.shapes_cls'])
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], to_rgb=True),
    backbone=dict(
        type='FFNet',
        arch='nano',
        out_indices=(3,),
        out_norm_cfg=dict(type='BN'),
        drop_path_rate=0.0,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=256),
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=72, edge='short'),
    dict(type='CenterCrop', crop_size=64),
    dict(type='PackInputs'),
]
test_dataloader = dict(dataset=dict(type='ShapesClsDataset', data_root='none', pipeline=pipeline))
"""


def make_model(task: str, folder: Path) -> tuple[str, str]:
    """Writes a checkpoint; returns the config and the checkpoint's path."""
    config = CONFIGS.get(task)
    if config is None:
        config = str(folder / 'classifier.py')
        Path(config).write_text(CLASSIFIER)
    cfg = read_config(config)
    cfg.model.pop('pretrained', None)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # spreads scores: fresh networks give nearly the same everywhere
            wide = (
                0.25 if name.endswith(('fc_cls.weight', 'conv_seg.weight', 'fc.weight')) else 0.06
            )
            parameter.data.normal_(0, wide, generator=generator)
        if 'conv_logits' in name:  # behind a ReLU: masks that are not empty
            parameter.data.abs_().add_(0.01)
    path = folder / f'{task}.pth'
    torch.save(dict(meta=dict(dataset_meta=META[task]), state_dict=model.state_dict()), path)
    return config, str(path)


def make_pictures(folder: Path, number: int = 3, size: int = 96) -> list[Path]:
    """Writes pictures 000.png, 001.png...; every second one is not square."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'{index:03d}.png' for index in range(number)]
    for index, path in enumerate(paths):
        cv2.imwrite(str(path), draw_scene(0, 1, index, size).image[..., ::-1])
    return paths


def make_video(path: Path, frames: int = 5, fps: float = 8.0) -> Path:
    """Writes a video of 96 x 72 pixels."""
    first = draw_scene(0, 1, 1, 96).image[..., ::-1]
    fourcc = cv2.VideoWriter.fourcc(*'mp4v')
    writer = cv2.VideoWriter(str(path), fourcc, fps, (first.shape[1], first.shape[0]))
    for index in range(frames):
        writer.write(np.ascontiguousarray(np.roll(first, 8 * index, axis=1)))
    writer.release()
    return path


def colour_share(picture: Any, colour: Any, tolerance: int = 12) -> float:
    """The share of pixels that have about this colour."""
    difference = np.abs(np.asarray(picture).astype(int) - np.array(colour))
    return float((difference.max(axis=-1) <= tolerance).mean())
