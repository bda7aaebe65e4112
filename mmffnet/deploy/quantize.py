"""int8 for CPUs: weights and maps of convolutions in eight bits, calibrated on pictures."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from .check import in_batches
from .formats import onnx_to_openvino, write
from .runtimes import import_runtime, quiet


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
                _Reader(meta, pictures),
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

    def __init__(self, meta: dict[str, Any], pictures: Sequence[np.ndarray]):
        (name,) = meta['inputs']
        self.rest: Iterator = ({name: images} for images in in_batches(pictures, meta['batch']))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)
