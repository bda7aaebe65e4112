"""int8 for CPUs: weights and maps of convolutions in eight bits, calibrated on pictures."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from .formats import onnx_to_openvino, write
from .runtimes import import_runtime, quiet

#: Endings of the pictures that are read
_PICTURES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp')
#: More pictures hardly change the ranges
_MOST = 64


def write_int8(
    module: nn.Module,
    path: Path,
    format: str,
    meta: dict[str, Any],
    pictures: Sequence[np.ndarray],
) -> None:
    """Writes a module with its convolutions and matrix products in int8.

    ONNX Runtime's static quantisation, a scale for every channel of the weights; OpenVINO reads
    the same graph.

    Args:
        module (nn.Module): Pictures to a tuple of tensors.
        path (Path): The file to write.
        format (str): ``'onnx'`` or ``'openvino'``.
        meta (dict): Its metadata.
        pictures (Sequence[np.ndarray]): (3, H, W), R, G, B, 0 to 255.

    Raises:
        ValueError: If format or task have no int8.
    """
    if format not in ('onnx', 'openvino') or meta['task'] == 'detection':
        raise ValueError(
            'int8 is for classifiers, segmentors and backbones, in the formats onnx and openvino'
        )
    import_runtime('onnxruntime')
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source, target = Path(folder, 'float32.onnx'), Path(folder, 'int8.onnx')
        write(module, source, 'onnx', meta)
        with quiet():
            quantize_static(
                source,
                target,
                _Reader(meta['inputs'][0], pictures),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        if format == 'openvino':
            onnx_to_openvino(target, path, meta)
        else:
            target.replace(path)


class _Reader:
    """Hands over one picture after the other, as onnxruntime wants to have them."""

    def __init__(self, name: str, pictures: Sequence[np.ndarray]):
        self.rest: Iterator = iter([{name: picture[None]} for picture in pictures])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)


def read_pictures(folder: str, resize: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    """Reads pictures for the calibration, resized as the config's test pipeline does.

    Args:
        folder (str): Where they are; at most 64 of them are taken, in equal steps.
        resize (Sequence[dict]): The steps of the pipeline that change the size.

    Returns:
        list[np.ndarray]: (3, H, W) float32, R, G, B, 0 to 255.
    """
    import mmcv
    from mmcv.transforms import Compose

    paths = sorted(p for p in Path(folder).rglob('*') if p.suffix.lower() in _PICTURES)
    if not paths:
        raise ValueError(f'int8 needs pictures to calibrate on: there are none in {folder}')
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(_MOST, len(paths))).astype(int)]
    pipeline = Compose([dict(step) for step in resize])
    pictures = []
    for path in chosen:
        image = mmcv.imread(str(path))
        if image is None:
            raise ValueError(f'{path} cannot be read as a picture')
        shape = image.shape[:2]
        results = pipeline(dict(img=image, img_shape=shape, ori_shape=shape))
        pictures.append(
            np.ascontiguousarray(results['img'][..., ::-1].transpose(2, 0, 1), np.float32)
        )
    return pictures
