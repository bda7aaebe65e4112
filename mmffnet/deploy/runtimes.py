"""Exported models in their own runtimes, behind one interface.

``tools/export.py`` writes the files. Everything that is needed to use one is inside it, so that
neither the config nor mmdet, mmseg or mmpretrain is needed here.
"""

import json
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmcv import transforms
from torch.export.passes import move_to_device_pass

from mmffnet.errors import UsageError, import_package
from mmffnet_cli import FORMATS, format_of

with suppress(ImportError):
    import torchvision  # noqa: F401 - detectors contain its operators

#: The name of the metadata in every format
META_KEY = 'mmffnet'

#: Loggers of exporters and converters
_TALKATIVE = ('coremltools', 'onnxscript', 'onnx_ir', 'torch.onnx', 'torch.export')

_Run = Callable[[np.ndarray], Sequence[np.ndarray]]


class Exported:
    """A model that left PyTorch, ready to be called on pictures.

    Call it with pictures of one size as one array: float32 (whole numbers are converted), (N, 3, H,
    W), channels in the order R, G, B, values from 0 to 255. Normalising, and padding to the sizes
    that the network needs, is done inside. What comes back is a dict of arrays, by task
    (``meta['task']``):

    ==================  ============  ======================  =====================================
    task                name          shape, dtype            what
    ==================  ============  ======================  =====================================
    ``classification``  ``scores``    (N, classes) float32    probabilities, their sum is 1
    ``segmentation``    ``labels``    (N, H, W) int64         a class for every pixel of the input
    ``detection``       ``boxes``     (N, K, 4) float32       x1, y1, x2, y2 in pixels of the input
    ``detection``       ``scores``    (N, K) float32          descending
    ``detection``       ``labels``    (N, K) int64            classes; -1 where there is nothing
    ``detection``       ``masks``     (N, K, 28, 28) float32  Mask R-CNN alone: probabilities inside
                                                              each box; see :func:`paste_masks`
    ``features``        ``stage0``..  (N, C, h, w) float32    the backbone's maps; the numbers are
                                                              those of the stages
    ==================  ============  ======================  =====================================

    K is the same for all pictures of a call, and may differ from call to call; places without a
    detection are the last ones of a picture and have the label -1, the score 0 and a box of zeros.
    Which scores are too low to be given at all is part of the file (``meta['score_threshold']``).

    Args:
        path (str | Path): The file.
        meta (dict): What the file says about itself. All keys are always there:

            - **task** (str): One of the table above.
            - **classes** (list[str] or None): Their names, by label; None if unknown.
            - **palette** (list[list[int]] or None): A colour (R, G, B) for every class.
            - **batch** (int or None): Pictures per call; None for any number.
            - **height**, **width** (int or None): Size of the pictures; None for any.
            - **min_size** (int): The smallest height and width, where they are free.
            - **resize** (list[dict]): What the config does to the size of a picture before the
              model gets it: those steps of its test pipeline that do, with the bare names of types,
              such as ``{'type': 'Resize', 'scale': [1333, 800], 'keep_ratio': True}``.
            - **channel_order** (str): ``'rgb'``.
            - **mean**, **std** (None): How to normalise pictures; None, as the model does.
            - **score_threshold** (float or None): Detections below it are not given.
            - **precision** (str): ``'float32'``, ``'float16'`` (weights alone) or ``'int8'``.
            - **config** (str): Name of the config, such as ``'retinanet_ffnet2_coco'``.
            - **mmffnet** (str): Version that wrote the file.
            - **inputs**, **outputs** (list[str]): Names in the graph, in their order.
        run (Callable): Runs the model on a checked array; returns the outputs in their order.
    """

    def __init__(self, path: str | os.PathLike, meta: dict[str, Any], run: _Run):
        self.path = Path(path)
        self.meta = meta
        self._run = run

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the model.

        Args:
            images (np.ndarray): (N, 3, H, W), R, G, B, 0 to 255.

        Raises:
            ValueError: If the array is not of that form, or of a size that the file does not take.
        """
        outputs = self._run(self._check(images))
        return {
            name: np.asarray(value, np.int64 if name == 'labels' else np.float32)
            for name, value in zip(self.meta['outputs'], outputs, strict=True)
        }

    def _check(self, images: np.ndarray) -> np.ndarray:
        shape = images.shape
        if len(shape) != 4 or shape[1] != 3 or not shape[0] or images.dtype.kind not in 'uif':
            raise ValueError(
                f'{self.path.name} takes pictures as numbers of the shape (N, 3, H, W), got '
                f'{images.dtype} of the shape {shape}'
            )
        wanted = [self.meta[key] for key in ('batch', 'height', 'width')]
        given = [shape[0], *shape[2:]]
        if any(w not in (None, g) for w, g in zip(wanted, given, strict=True)):
            n, height, width = ('any' if w is None else w for w in wanted)
            raise ValueError(
                f'{self.path.name} was exported for {n} x 3 x {height} x {width}, got {shape}: '
                f'resize the pictures, or export with other sizes'
            )
        smallest = self.meta['min_size']
        if any(w is None and g < smallest for w, g in zip(wanted[1:], given[1:], strict=True)):
            raise ValueError(
                f'{self.path.name} takes pictures of at least {smallest} x {smallest}, got '
                f'{shape[2]} x {shape[3]}'
            )
        return np.ascontiguousarray(images, np.float32)


def load_exported(
    path: str | os.PathLike,
    device: str = 'cpu',
    threads: int | None = None,
    precision: str = 'float32',
) -> Exported:
    """Loads a file that ``tools/export.py`` wrote into the runtime that it is for.

    ================  ====================  =====================================================
    ending            runtime               devices
    ================  ====================  =====================================================
    ``.onnx``         ONNX Runtime          ``cpu``; ``cuda`` with onnxruntime-gpu
    ``.xml``          OpenVINO              ``cpu``, and what OpenVINO names (``gpu``, ``npu``)
    ``.torchscript``  PyTorch               ``cpu``, ``cuda``, ...
    ``.pt2``          PyTorch               ``cpu``, ``cuda``, ...
    ================  ====================  =====================================================

    Load only files that you trust: TorchScript files are programs.

    Args:
        path (str | Path): The file.
        device (str): Where to run. Defaults to ``'cpu'``.
        threads (int, optional): Number of CPU threads; for the two PyTorch formats this holds for
            the whole process. Defaults to None, which leaves it to the runtime.
        precision (str): ``'bfloat16'`` lets OpenVINO compute in it, which is faster on CPUs that
            can and deviates; other runtimes know nothing but ``'float32'``. Defaults to
            ``'float32'``.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the runtime is not installed.
        ValueError: If the file is of another kind or from elsewhere, or the runtime has no such
            device or precision.
        RuntimeError: If the file is damaged.
    """
    path = Path(path)
    format = format_of(path)
    if format is None:
        known = ', '.join(f.suffix for f in FORMATS.values() if f.runtime)
        raise ValueError(f'{path} is no exported model that runs here: known endings are {known}')
    if not path.is_file():
        raise FileNotFoundError(f'there is no exported model {path}')
    if precision != 'float32' and (precision, format) != ('bfloat16', 'openvino'):
        raise ValueError(f'{path.name} cannot be computed in {precision}')
    # ending in .onnx does not make it one, and every runtime has errors of its own
    try:
        with quiet():
            text, run = _LOADERS[format](path, device, threads, precision)
    except (RuntimeError, BadZipFile) as error:
        reason = ' '.join(str(error).split())[:200]
        raise RuntimeError(f'cannot load {path} on {device}: {reason}') from error
    if not text:
        raise ValueError(f'{path} was not written by tools/export.py: it says nothing of its task')
    return Exported(path, json.loads(text), run)


def resize(picture: np.ndarray, step: dict[str, Any]) -> np.ndarray:
    """One step of a test pipeline that changes the size of pictures."""
    step = _with_tuples(step)
    kind = step.pop('type').rpartition('.')[2]
    if kind == 'ResizeEdge':  # mmpretrain's, which need not be installed
        height, width = picture.shape[:2]
        edge, length = step.pop('edge', 'short'), step.pop('scale')
        by_width = edge == 'width' or (edge == 'short' and width < height)
        if by_width or (edge == 'long' and width > height):
            step['scale'] = (length, int(length * height / width))
        else:
            step['scale'] = (int(length * width / height), length)
        kind = 'Resize'
    if kind == 'ResizeToMultiple':  # mmseg's
        divisor, mode = step.get('size_divisor', 32), step.get('interpolation', 'bilinear')
        return mmcv.imresize_to_multiple(picture, divisor, scale_factor=1, interpolation=mode)
    if kind not in ('Resize', 'CenterCrop', 'Pad'):
        raise UsageError(
            f'exported models with the step {kind} in their pipeline are not supported'
        )
    return getattr(transforms, kind)(**step)(dict(img=picture))['img']


def _with_tuples(value: Any) -> Any:
    """JSON has lists alone, transforms want tuples."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> np.ndarray:
    """Paints the masks of one picture at their places in it.

    Args:
        masks (np.ndarray): (K, h, w), probabilities inside the boxes.
        boxes (np.ndarray): (K, 4), x1, y1, x2, y2 in pixels of the picture.
        height (int): Height of the picture.
        width (int): Its width.
        threshold (float): What is at least as probable belongs to the object. Defaults to 0.5.

    Returns:
        np.ndarray: (K, height, width) bool.
    """
    pasted = np.zeros((len(masks), height, width), bool)
    corners = torch.from_numpy(boxes.astype(np.float32))
    for mask, (x0, y0, x1, y1), out in zip(masks, corners, pasted, strict=True):
        # where the mask has faded to its border, half of one of its pixels outside of the box
        beyond_x, beyond_y = (x1 - x0) / mask.shape[1] / 2, (y1 - y0) / mask.shape[0] / 2
        left, right = max(int(x0 - beyond_x), 0), min(int(x1 + beyond_x) + 1, width)
        top, bottom = max(int(y0 - beyond_y), 0), min(int(y1 + beyond_y) + 1, height)
        if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
            continue
        # a pixel's centre is half a pixel from its corner
        x = (torch.arange(left, right) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(top, bottom) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing='xy'), dim=-1)[None].float()
        source = torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None, None]
        values = F.grid_sample(source, grid, align_corners=False)[0, 0]
        out[top:bottom, left:right] = (values >= threshold).numpy()
    return pasted


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters tell much of what the comparison afterwards finds, or of what nobody can change.

    Their own loggers are silenced, and no others: another thread may have something to say.
    """
    with _silence, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


class _Silence:
    """Keeps loggers from telling what is no error, for as long as any thread is inside."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.levels: dict[str, int] = {}

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                logging.getLogger().addFilter(_is_not_of_onnxruntime)
                self.levels = {name: logging.getLogger(name).level for name in _TALKATIVE}
                for name in self.levels:
                    logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *_: Any) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                logging.getLogger().removeFilter(_is_not_of_onnxruntime)
                for name, level in self.levels.items():
                    logging.getLogger(name).setLevel(level)


_silence = _Silence()


def _is_not_of_onnxruntime(record: logging.LogRecord) -> bool:
    # its quantisation has no logger of its own
    return record.levelno > logging.WARNING or 'onnxruntime' not in Path(record.pathname).parts


def _load_onnx(path: Path, device: str, threads: int | None, _: str) -> tuple[str, _Run]:
    ort = import_package('onnxruntime')
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    kind, _, number = device.partition(':')
    provider = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}.get(kind)
    if provider not in ort.get_available_providers():
        raise ValueError(
            f'the installed onnxruntime has no device {device!r} (onnxruntime-gpu has cuda): it '
            f'has {", ".join(ort.get_available_providers())}'
        )
    options = ort.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    settings = {'device_id': number or '0'} if kind == 'cuda' else {}
    providers = [(provider, settings)]
    try:
        session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:
        if type(error).__module__ != errors.__name__:  # its errors have no type in common
            raise
        raise RuntimeError(str(error)) from error
    if provider not in session.get_providers():  # it logs a line, and takes the CPU
        raise ValueError(
            f'onnxruntime cannot use {device!r}, though it was built for it: its log says why'
        )
    text = session.get_modelmeta().custom_metadata_map.get(META_KEY, '')
    name = session.get_inputs()[0].name
    return text, lambda images: session.run(None, {name: images})


def _load_openvino(
    path: Path, device: str, threads: int | None, precision: str
) -> tuple[str, _Run]:
    ov = import_package('openvino')
    if not path.with_suffix('.bin').is_file():
        raise FileNotFoundError(f'the weights {path.with_suffix(".bin")} of {path} are missing')
    core = ov.Core()
    name = device.upper().replace(':', '.')
    if name.partition('.')[0] not in {d.partition('.')[0] for d in core.available_devices}:
        raise ValueError(
            f'OpenVINO has no device {device!r}: it has {", ".join(core.available_devices).lower()}'
        )
    model = core.read_model(path)
    # where the processor can, OpenVINO would choose bfloat16 by itself
    settings: dict[str, Any] = {
        'INFERENCE_PRECISION_HINT': 'bf16' if precision == 'bfloat16' else 'f32',
        'PERFORMANCE_HINT': 'LATENCY',
    }
    if threads and name == 'CPU':
        settings['INFERENCE_NUM_THREADS'] = threads
    compiled = core.compile_model(model, name, settings)
    text = str(model.get_rt_info([META_KEY]).value) if model.has_rt_info([META_KEY]) else ''
    return text, lambda images: [np.array(out) for out in compiled(images).to_tuple()]


def _load_torchscript(path: Path, device: str, threads: int | None, _: str) -> tuple[str, _Run]:
    extra = {f'{META_KEY}.json': ''}
    model = torch.jit.load(str(path), map_location=device, _extra_files=extra)
    if torch.device(device).type != 'cpu':
        _move_constants(model, device)
    return _torch_runner(extra, model, device, threads)


def _move_constants(model: Any, device: str) -> None:
    """Where the graph makes tensors, tracing has written down the device: the CPU."""
    like = torch.jit.trace(lambda x: x.to(device), torch.zeros(1)).graph
    (wanted,) = _device_constants(like)
    for module in model.modules():
        if module._c._has_method('forward'):
            for node in _device_constants(module.graph):
                node.copyAttributes(wanted)


def _device_constants(graph: Any) -> list[Any]:
    nodes = graph.findAllNodes('prim::Constant')
    return [node for node in nodes if node.output().type().kind() == 'DeviceObjType']


def _load_pt2(path: Path, device: str, threads: int | None, _: str) -> tuple[str, _Run]:
    extra = {f'{META_KEY}.json': ''}
    program = torch.export.load(path, extra_files=extra)
    if torch.device(device).type != 'cpu':
        program = move_to_device_pass(program, device)
    return _torch_runner(extra, program.module(), device, threads)


def _torch_runner(
    extra: dict[str, Any], model: Any, device: str, threads: int | None
) -> tuple[str, _Run]:
    if threads:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(images: np.ndarray) -> list[np.ndarray]:
        return [out.cpu().numpy() for out in model(torch.from_numpy(images).to(device))]

    (text,) = extra.values()
    return text.decode() if isinstance(text, bytes) else text, run


_LOADERS: dict[str, Callable[[Path, str, int | None, str], tuple[str, _Run]]] = {
    'onnx': _load_onnx,
    'openvino': _load_openvino,
    'torchscript': _load_torchscript,
    'torch-export': _load_pt2,
}
