"""From a trained model to a file for another runtime, compared with PyTorch before it is there."""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmffnet_cli import FORMATS

from .. import __version__
from ..checkpoint.files import refuse_existing
from ..config_types import type_name
from ..engine.models import find_legend, load_model
from ..engine.runner import innermost_dataset
from .check import TOLERANCES, deviations, draw_pictures, in_batches, predict, read_pictures
from .coreml import check_coreml
from .formats import MIN_SIZE, write, write_int8
from .runtimes import load_exported
from .wrap import wrap

#: Steps of test pipelines that change the size of a picture
_RESIZING = ('Resize', 'ResizeEdge', 'ResizeToMultiple', 'CenterCrop', 'Pad')
#: More pictures hardly change the ranges of int8
_MOST_CALIBRATION = 64
#: More pictures take their time in the comparison
_MOST_COMPARED = 8


@dataclass(frozen=True)
class Report:
    """What was exported, with the largest deviations that were found, by what deviates."""

    path: Path
    meta: dict[str, Any]
    deviations: dict[str, float]
    notes: list[str]

    def __str__(self) -> str:
        found = ', '.join(f'{name} {value:.1e}' for name, value in self.deviations.items())
        files = [p for file in _files(self.path) for p in (file, *file.rglob('*'))]
        size = sum(p.stat().st_size for p in files if p.is_file()) / 2**20
        n, height, width = (self.meta[key] or 'any' for key in ('batch', 'height', 'width'))
        takes = f'{n} x 3 x {height} x {width}'
        lines = [
            f'{self.path}: {self.meta["task"]}, {takes}, {self.meta["precision"]}, {size:.1f} MiB',
            f'largest deviation from PyTorch: {found}',
        ]
        return '\n'.join([*lines, *self.notes])


def export_config(
    cfg: Config,
    checkpoint: str,
    format: str,
    target: str | os.PathLike | None = None,
    *,
    backbone: bool = False,
    batch: int | None = None,
    size: Sequence[int] | None = None,
    calibration: str | None = None,
    pictures: str | None = None,
    force: bool = False,
) -> Report:
    """Exports a trained model.

    Args:
        cfg (Config): Its config.
        checkpoint (str): Its weights: a file, an URL or a short name.
        format (str): A key of ``mmffnet_cli.FORMATS``.
        target (str, optional): The file to write. Defaults to None, which is the name of the
            config in the current folder.
        calibration (str, optional): A folder of pictures on which int8 is calibrated. Defaults to
            None, which exports float32.
        pictures (str, optional): A folder of pictures on which the file is compared. Defaults to
            None: synthetic ones, or those of the calibration.
        backbone, batch, size, force: As for :func:`export_model`.
    """
    name = Path(cfg.filename or 'model').stem
    target = Path(target or f'{name}{FORMATS[format].suffix}')
    _check_target(target, format, force)
    if format == 'coreml':
        batch, size = batch or 1, size or natural_size(cfg)
    # what wrap() goes by, before the weights are fetched
    detector = not backbone and {'roi_head', 'bbox_head'} & set(cfg.get('model') or {})
    task = 'detection' if detector else None
    _check_request(task, format, batch, size, calibration is not None, pictures is not None)
    resize = _resizing(cfg)
    read = partial(read_pictures, resizing=resize, size=size)
    images = dict(
        calibration=read(calibration, most=_MOST_CALIBRATION) if calibration else None,
        pictures=read(pictures, most=_MOST_COMPARED) if pictures else None,
    )
    model, raw_meta = load_model(cfg, checkpoint)
    legend = find_legend(cfg, raw_meta)
    info = dict(
        classes=[str(one) for one in legend.classes] or None,
        palette=[[int(v) for v in colour] for colour in legend.palette] or None,
        resize=resize,
        config=name,
    )
    return export_model(
        model,
        target,
        format,
        info=info,
        backbone=backbone,
        batch=batch,
        size=size,
        **images,
        force=force,
    )


def export_model(
    model: nn.Module,
    target: str | os.PathLike,
    format: str,
    *,
    info: dict[str, Any] | None = None,
    backbone: bool = False,
    batch: int | None = None,
    size: Sequence[int] | None = None,
    calibration: Sequence[np.ndarray] | None = None,
    pictures: Sequence[np.ndarray] | None = None,
    force: bool = False,
) -> Report:
    """Exports a model that has been built and loaded.

    Args:
        model (nn.Module): A detector, segmentor, classifier or backbone, on any device; left as it
            is and where it is.
        target (str): The file to write.
        format (str): A key of ``mmffnet_cli.FORMATS``.
        info (dict, optional): ``classes``, ``palette``, ``resize`` and ``config`` of the metadata.
            Defaults to None.
        backbone (bool): Export nothing but the backbone. Defaults to False.
        batch (int, optional): A fixed number of pictures per call. Defaults to None, any number
            where the format allows it.
        size (Sequence[int], optional): A fixed height and width. Defaults to None, any size where
            the format allows it.
        calibration (Sequence[np.ndarray], optional): Pictures (3, H, W), R, G, B, 0 to 255, on
            which int8 is calibrated. Defaults to None, which exports float32.
        pictures (Sequence[np.ndarray], optional): Pictures of the same form on which the file is
            compared. Defaults to None: synthetic ones, or those of the calibration.
        force (bool): Replace what is there already. Defaults to False.
    """
    target = Path(target)
    _check_target(target, format, force)
    reference: Any = model
    if model.training or any(p.device.type != 'cpu' for p in model.parameters()):
        # the comparison is made on the CPU, too: GPUs may round convolutions to TF32
        reference = copy.deepcopy(model).cpu().eval()
    module = wrap(reference, backbone)
    int8 = calibration is not None
    _check_request(module.task, format, batch, size, int8, pictures is not None)
    meta = _meta(module, format, batch, size, info or {}, int8)
    notes = []
    if module.task == 'segmentation' and (reference.test_cfg or {}).get('mode') == 'slide':
        notes = ['note: the config tests in sliding windows; the file takes the picture as a whole']
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix='.export-') as folder:
        path = Path(folder, target.name)
        if calibration is not None:
            write_int8(module, path, format, meta, calibration)
        else:
            write(module, path, format, meta)
        if format == 'coreml':
            found = dict(weights=check_coreml(module, path, meta))
            notes += [
                'note: CoreML runs on Apple systems alone; inputs, outputs and weights were '
                'compared, its results were not'
            ]
        else:
            compared = calibration if pictures is None else pictures
            found = _compare(reference, module.task, path, compared)
        for file in _files(path):
            place = target.with_name(file.name)
            if place.is_dir():
                shutil.rmtree(place)
            file.replace(place)
    return Report(target, meta, found, notes)


def export_module(model: nn.Module, path: str | os.PathLike, shape: Sequence[int]) -> Path:
    """Exports any module for inputs of one shape, without a comparison: to be measured.

    The ending of the file tells the format, the shape is (N, 3, H, W). What is not a model of this
    kind, such as a network of timm, gets its input as it is.
    """
    path = Path(path)
    format = next(name for name, f in FORMATS.items() if f.suffix == path.suffix)
    ours = hasattr(model, 'data_preprocessor') or hasattr(model, 'out_indices')
    module = wrap(model) if ours else _Any(model, shape).eval()
    n, _, *size = shape
    _check_request(module.task, format, n, size)
    write(module, path, format, _meta(module, format, n, size, {}))
    return path


class _Any(nn.Module):
    """A module of any kind, with a flat tuple of outputs."""

    task = 'features'
    score_threshold = None

    def __init__(self, model: nn.Module, shape: Sequence[int]):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval()
        with torch.no_grad():
            self.outputs = [f'output{i}' for i, _ in enumerate(self(torch.rand(*shape)))]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        out = self.model(images)
        return (out,) if isinstance(out, Tensor) else tuple(out)


def _check_target(target: Path, format: str, force: bool) -> None:
    if target.suffix != FORMATS[format].suffix:
        raise ValueError(f'{target} must end in {FORMATS[format].suffix}, the ending of {format}')
    refuse_existing(_files(target), force)


def _check_request(
    task: str | None,
    format: str,
    batch: int | None,
    size: Sequence[int] | None,
    int8: bool = False,
    pictures: bool = False,
) -> None:
    if int8 and (format not in ('onnx', 'openvino') or task == 'detection'):
        raise ValueError(
            'int8 is for classifiers, segmentors and backbones, in the formats onnx and openvino'
        )
    if format == 'coreml' and pictures:
        raise ValueError(
            'what a file for CoreML gives for pictures is not compared: leave out --pictures'
        )
    if task == 'detection' and not FORMATS[format].detectors:
        raise ValueError(
            f'detectors cannot be exported to {format}: use onnx, openvino or torchscript'
        )
    if format == 'coreml' and (batch != 1 or not size):
        raise ValueError('CoreML takes one picture of one size: give its height and width (--size)')
    if batch is not None and batch < 1:
        raise ValueError(f'--batch must be at least 1, not {batch}')
    if size and min(size) < 32:
        raise ValueError(
            f'the network takes pictures of at least 32 x 32, not {size[0]} x {size[1]}'
        )


def _files(path: Path) -> list[Path]:
    """What belongs to an exported file: OpenVINO's weights are beside it."""
    return [path, path.with_suffix('.bin')] if path.suffix == '.xml' else [path]


def _meta(
    module: Any,
    format: str,
    batch: int | None,
    size: Sequence[int] | None,
    info: dict[str, Any],
    int8: bool = False,
) -> dict[str, Any]:
    height, width = size or (None, None)
    precision = 'int8' if int8 else 'float16' if format == 'coreml' else 'float32'
    meta = dict(
        task=module.task,
        classes=info.get('classes'),
        palette=info.get('palette'),
        batch=batch,
        height=height,
        width=width,
        min_size=MIN_SIZE,
        resize=info.get('resize', []),
        channel_order='rgb',
        mean=None,
        std=None,
        score_threshold=module.score_threshold,
        precision=precision,
        config=info.get('config', ''),
        mmffnet=__version__,
        inputs=['images'],
        outputs=module.outputs,
    )
    return json.loads(json.dumps(meta))  # as it comes out of a file: lists, no tuples


def _compare(
    model: nn.Module, task: str, path: Path, pictures: Sequence[np.ndarray] | None
) -> dict[str, float]:
    """The largest deviations from the original model, none of them over its tolerance."""
    exported = load_exported(path)
    meta = exported.meta
    tolerances = TOLERANCES[meta['precision']]
    worst: dict[str, float] = {}
    seen = False
    for images in _check_pictures(meta, pictures):
        expected = predict(model, task, images)
        seen = seen or task != 'detection' or bool((expected['labels'] >= 0).any())
        for name, value in deviations(expected, exported(images), task).items():
            # NaN is beyond every tolerance, and max() would lose it
            if name in tolerances and not value <= tolerances[name]:
                raise RuntimeError(
                    f'the exported model computes something else: {name} deviate by {value:.1e} '
                    f'for pictures of {images.shape[2]} x {images.shape[3]} (at most '
                    f'{tolerances[name]:.0e} is right); the file is removed'
                )
            worst[name] = max(worst.get(name, 0.0), value)
    if not seen:
        raise RuntimeError(
            f'nothing could be compared: neither the model nor the exported one detects anything '
            f'(score above {meta["score_threshold"]:g}) in the pictures of the comparison; train '
            f'the model, or give pictures in which it does (--pictures FOLDER); the file is removed'
        )
    return worst


def _check_pictures(
    meta: dict[str, Any], pictures: Sequence[np.ndarray] | None
) -> list[np.ndarray]:
    """The given ones, or else synthetic scenes in two sizes if it is free, one of them odd."""
    if pictures is not None:
        return in_batches(pictures[:_MOST_COMPARED], meta['batch'])
    shapes = [(1, 224, 256), (2, 203, 161)]
    fixed = [meta[key] for key in ('batch', 'height', 'width')]
    wanted = [tuple(f or s for f, s in zip(fixed, shape, strict=True)) for shape in shapes]
    return [draw_pictures(*shape) for shape in dict.fromkeys(wanted)]


def _resizing(cfg: Config) -> list[dict[str, Any]]:
    steps = innermost_dataset(cfg, 'test').get('pipeline') or []
    found = [dict(s, type=type_name(s.get('type'))) for s in steps]
    return [s for s in found if s['type'] in _RESIZING and s.get('scale_factor') != 1.0]


def natural_size(cfg: Config) -> tuple[int, int] | None:
    """The size that the config's pictures have, if they have one."""
    for step in reversed(_resizing(cfg)):
        crop = step.get('crop_size')
        if step['type'] == 'CenterCrop':
            return (crop, crop) if isinstance(crop, int) else tuple(crop)
    model = cfg.get('model') or {}
    size = (model.get('data_preprocessor') or {}).get('size')
    return tuple(size) if size else None
