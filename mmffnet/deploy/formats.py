"""Writes a plain module in each of the formats, with its metadata inside the file."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import describe_error, import_package
from .check import in_batches
from .coreml import write_coreml
from .runtimes import META_KEY, quiet

#: The smallest height and width of files for any size: at 32 the last map is one pixel high or
#: wide, which torch.export takes for another network
MIN_SIZE = 33


def write(module: nn.Module, path: Path, format: str, meta: dict[str, Any]) -> None:
    """Writes a module in eval mode that makes a tuple of tensors of pictures (N, 3, H, W).

    OpenVINO's weights go to the same name ending in ``.bin``. :class:`~.runtimes.Exported`
    describes the metadata.
    """
    try:
        with quiet():
            _WRITERS[format](module, path, meta)
    except ImportError:
        raise
    except Exception as error:  # exporters and converters raise all kinds
        cause = error
        while isinstance(cause.__cause__, Exception):  # exporters wrap what went wrong
            cause = cause.__cause__
        raise RuntimeError(f'{format} cannot take this model: {describe_error(cause)}') from error


def example(meta: dict[str, Any]) -> Tensor:
    """Pictures of a size that a file takes, and that is not special where it is free."""
    batch, height, width = (meta[key] for key in ('batch', 'height', 'width'))
    return torch.rand(batch or 2, 3, height or 160, width or 192) * 255


def _write_onnx(module: nn.Module, path: Path, meta: dict[str, Any]) -> None:
    import_package('onnx')
    import_package('onnxscript')
    program = torch.onnx.export(
        module,
        (example(meta),),
        input_names=meta['inputs'],
        output_names=meta['outputs'],
        dynamic_shapes=_dynamic_shapes(meta),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[META_KEY] = json.dumps(meta)
    program.save(str(path))


def _write_openvino(module: nn.Module, path: Path, meta: dict[str, Any]) -> None:
    import_package('openvino')
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        onnx = Path(folder, 'model.onnx')
        _write_onnx(module, onnx, meta)
        _onnx_to_openvino(onnx, path, meta)


def _onnx_to_openvino(onnx: Path, path: Path, meta: dict[str, Any]) -> None:
    ov = import_package('openvino')
    model = ov.convert_model(onnx)
    model.set_rt_info(json.dumps(meta), [META_KEY])
    ov.save_model(model, path, compress_to_fp16=False)


def _write_torchscript(module: nn.Module, path: Path, meta: dict[str, Any]) -> None:
    with torch.inference_mode():
        traced: Any = torch.jit.trace(module, example(meta), check_trace=False)
    torch.jit.save(traced, str(path), _extra_files={f'{META_KEY}.json': json.dumps(meta)})


def _write_torch_export(module: nn.Module, path: Path, meta: dict[str, Any]) -> None:
    program: ExportedProgram = torch.export.export(
        module, (example(meta),), dynamic_shapes=_dynamic_shapes(meta), strict=False
    )
    torch.export.save(program, path, extra_files={f'{META_KEY}.json': json.dumps(meta)})


def _dynamic_shapes(meta: dict[str, Any]) -> tuple[dict[int, Any]]:
    free: dict[int, Any] = {}
    if meta['batch'] is None:
        free[0] = Dim('batch')
    for axis, name in ((2, 'height'), (3, 'width')):
        if meta[name] is None:
            free[axis] = Dim(name, min=meta['min_size'])
    return (free,)


_WRITERS: dict[str, Callable[[nn.Module, Path, dict[str, Any]], None]] = {
    'onnx': _write_onnx,
    'openvino': _write_openvino,
    'torchscript': _write_torchscript,
    'torch-export': _write_torch_export,
    'coreml': write_coreml,
}


def write_int8(
    module: nn.Module,
    path: Path,
    format: str,
    meta: dict[str, Any],
    pictures: Sequence[np.ndarray],
) -> None:
    """Writes a module with its convolutions and matrix products in int8.

    ONNX Runtime's static quantisation, a scale for every channel of the weights, calibrated on
    pictures (3, H, W), R, G, B, 0 to 255; OpenVINO reads the same graph.
    """
    import_package('onnxruntime')
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    (name,) = meta['inputs']
    inputs = ({name: images} for images in in_batches(pictures, meta['batch']))
    reader = SimpleNamespace(get_next=lambda: next(inputs, None))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source, target = Path(folder, 'float32.onnx'), Path(folder, 'int8.onnx')
        write(module, source, 'onnx', meta)
        with quiet():
            quantize_static(
                source,
                target,
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        if format == 'openvino':
            _onnx_to_openvino(target, path, meta)
        else:
            target.replace(path)
