"""CoreML packages: written anywhere, run on Apple's systems alone.

What can be checked here is checked: the description that an app sees, and every weight.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..errors import import_package
from .check import draw_pictures
from .runtimes import META_KEY, quiet

#: Largest accepted deviation of a weight, of the largest one of its channel: two roundings to
#: float16. A layer scale of 1e-5, as untrained networks have it, makes weights too small for that.
TOLERANCE = 2e-3


def write_coreml(module: nn.Module, path: Path, meta: dict[str, Any]) -> None:
    """Writes an mlprogram that takes a picture (an image, not an array) and computes in float16."""
    ct = import_package('coremltools')
    shape = (meta['batch'], 3, meta['height'], meta['width'])
    images = torch.from_numpy(draw_pictures(shape[0], *shape[2:]))
    program = torch.export.export(module, (images,), strict=False)
    program = program.run_decompositions({torch.ops.aten.upsample_bicubic2d.vec: _bicubic})
    _check_program(program, module, images)
    model = ct.convert(
        program,
        inputs=[ct.ImageType(name=meta['inputs'][0], shape=shape, color_layout=ct.colorlayout.RGB)],
        outputs=[ct.TensorType(name=name) for name in meta['outputs']],
        convert_to='mlprogram',
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT16,
    )
    model.user_defined_metadata[META_KEY] = json.dumps(meta)
    model.short_description = f'{meta["task"]}: {meta["config"]}'
    model.save(str(path))


def _bicubic(
    x: Tensor, size: Sequence[int], align_corners: bool, scales: Sequence[float] | None = None
) -> Tensor:
    """Bicubic resizing, which CoreML does not know, as two matrix products."""
    rows, columns = (
        _bicubic_weights(new, old, align_corners, x)
        for new, old in zip(size, x.shape[2:], strict=True)
    )
    return rows @ x @ columns.T


def _bicubic_weights(new: int, old: int, align_corners: bool, like: Tensor) -> Tensor:
    i = torch.arange(new, dtype=like.dtype)[:, None]
    if align_corners:
        place = i * ((old - 1) / max(new - 1, 1))
    else:
        place = (i + 0.5) * (old / new) - 0.5
    first = place.floor()
    weights = torch.zeros(new, old, dtype=like.dtype)
    columns = torch.arange(old, dtype=like.dtype)
    for tap in range(-1, 3):
        t = (place - first - tap).abs()
        # the two pieces of the kernel, for a = -0.75
        near = (1.25 * t - 2.25) * t * t + 1
        far = -0.75 * (((t - 5) * t + 8) * t - 4)
        at = (first + tap).clamp(0, old - 1)
        weights = weights + torch.where(t <= 1, near, far) * (columns == at).to(like.dtype)
    return weights


def _check_program(program: ExportedProgram, module: nn.Module, images: Tensor) -> None:
    """What is given to the converter must compute what the module does."""
    with torch.no_grad():
        for out, expected in zip(program.module()(images), module(images), strict=True):
            deviation = float((out != expected).double().mean())
            if out.is_floating_point():
                deviation = float((out - expected).abs().max() / expected.abs().max())
            if not deviation <= TOLERANCE:
                raise RuntimeError(f'its graph deviates by {deviation:.1e} from the model')


def check_coreml(module: nn.Module, path: Path, meta: dict[str, Any]) -> float:
    """Compares a package's inputs, outputs, metadata and weights with those of its module.

    Returns the largest deviation of a weight.
    """
    ct = import_package('coremltools')
    model = ct.models.MLModel(str(path), skip_model_load=True)
    description = model.get_spec().description
    (given,) = description.input
    image = given.type.imageType
    rgb = image.ColorSpace.Value('RGB')
    wanted = (meta['inputs'][0], meta['height'], meta['width'], rgb)
    if (given.name, image.height, image.width, image.colorSpace) != wanted:
        raise RuntimeError(f'the package takes {given}, not an RGB image as asked for')
    names = [output.name for output in description.output]
    if names != meta['outputs']:
        raise RuntimeError(f'the package gives {names} instead of {meta["outputs"]}')
    if json.loads(model.user_defined_metadata[META_KEY]) != meta:
        raise RuntimeError('the package has lost its metadata')
    with torch.no_grad():
        shape = (meta['batch'], 3, meta['height'], meta['width'])
        shapes = [list(out.shape) for out in module(torch.rand(shape) * 255)]
    given_shapes = [list(output.type.multiArrayType.shape) for output in description.output]
    if given_shapes != shapes:
        raise RuntimeError(f'the package gives shapes {given_shapes} instead of {shapes}')
    with quiet():
        weights = ct.optimize.coreml.get_weights_metadata(model, weight_threshold=1)
    return _compare_weights(module, [np.asarray(w.val, np.float64) for w in weights.values()])


def _compare_weights(module: nn.Module, found: list[np.ndarray]) -> float:
    """The largest deviation of a convolution's or linear layer's weight from the nearest in it.

    The converter moves factors of whole channels, such as layer scales, from layer to layer: the
    weights of each output channel are compared by their proportions.
    """
    worst = 0.0
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        weight = layer.weight.detach().double().flatten(1).numpy()
        largest = np.abs(weight).argmax(1)[:, None]
        wanted = _proportions(weight, largest)
        alike = [w.reshape(weight.shape) for w in found if w.size == weight.size]
        distances = [np.abs(_proportions(w, largest) - wanted).max() for w in alike]
        nearest = min(distances, default=np.inf)
        if not nearest <= TOLERANCE:
            raise RuntimeError(f'the weight of {name} is not in the package as it should be')
        worst = max(worst, float(nearest))
    return worst


def _proportions(weight: np.ndarray, largest: np.ndarray) -> np.ndarray:
    divisor = np.take_along_axis(weight, largest, 1)
    return weight / np.where(divisor == 0, 1, divisor)
