"""Re-parameterised checkpoints, verified before they are written."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..checkpoint.files import refuse_existing, save_atomically
from ..engine.models import load_model
from ..models import reparameterize

#: Largest accepted deviation in float64, relative to the largest output value
TOLERANCE = 1e-9


def reparameterize_file(
    cfg: Config, checkpoint: str, target: str | os.PathLike, force: bool = False
) -> str:
    """Re-parameterises a trained model and writes its checkpoint and its config.

    The config gets the name of the checkpoint ``target`` and the ending ``.py``. Nothing is written
    if the outputs on random data differ from those of the original model. Returns what was done,
    for people.
    """
    target = Path(target)
    config = target.with_suffix('.py')
    if target == config:
        raise ValueError(
            f'{target} is to be the checkpoint: it cannot have the ending of its config'
        )
    if cfg.filename and config.resolve() == Path(cfg.filename).resolve():
        raise ValueError(
            f'{target} would put its config in the place of {cfg.filename}: give another name'
        )
    refuse_existing((target, config), force)
    model, meta = load_model(cfg, checkpoint)

    reference = copy.deepcopy(model).double()
    fused = reparameterize(copy.deepcopy(reference))
    deviation = compare(reference, fused)
    if not deviation <= TOLERANCE:
        raise RuntimeError(
            f'the re-parameterised model computes something else: outputs differ by '
            f'{deviation:.1e} of the largest value (at most {TOLERANCE:.0e} is right); '
            f'nothing is written'
        )
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, fused))
    reparameterize(model)  # folded in float64, rounded once to the checkpoint's dtype

    content = dict(meta=dict(meta, reparameterized=True), state_dict=model.state_dict())
    deployed = copy.deepcopy(cfg)
    # to_dict() gives the name of a class of a lazy config
    deployed.model.original = cfg.model.to_dict()['type']
    deployed.model.type = 'mmffnet.Reparameterized'
    # the config may have done without, as this tool imports mmffnet itself
    imports = deployed.setdefault('custom_imports', ConfigDict(imports=[]))
    if 'mmffnet' not in imports.imports:
        imports.imports = [*imports.imports, 'mmffnet']
    config.parent.mkdir(parents=True, exist_ok=True)
    deployed.dump(config)
    save_atomically(content, target, force)
    return (
        f'{target} and {config}: outputs differ by {deviation:.1e} of the largest value in '
        f'float64; {before / 1e6:.3f} -> {after / 1e6:.3f} million parameters'
    )


@torch.no_grad()
def compare(reference: nn.Module, other: nn.Module) -> float:
    """Returns the deviation of two models' outputs on random data.

    The models are in float64: then even what a detector selects by score is the same on both sides.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 128, 160, generator=generator, dtype=torch.float64)
    expected, outs = (run_tensors(model, image) for model in (reference, other))
    if expected and not any(tensor.any() for tensor in expected):
        raise RuntimeError('the model gives nothing but zeros on random data: nothing to compare')
    found = deviation(expected, outs)
    return float('inf') if found is None else found


def deviation(expected: Sequence[Tensor], outs: Sequence[Tensor]) -> float | None:
    """Largest difference of two lists of outputs, relative to the largest value of the first.

    None if they are not of the same shapes: an exported segmentor gives labels, and a detector may
    find another number of proposals in another precision.
    """
    if not expected or [t.shape for t in expected] != [t.shape for t in outs]:
        return None
    a, b = (torch.cat([t.detach().cpu().double().flatten() for t in ts]) for ts in (expected, outs))
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))  # NaN stays NaN


def run_tensors(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Runs a backbone, or a model up to its raw outputs, and lists all tensors that it returns."""
    if not hasattr(model, 'data_preprocessor'):
        out = model(image)
    elif not hasattr(model, 'roi_head'):
        out = model(image, mode='tensor')
    else:
        from mmdet.structures import DetDataSample

        # proposals are cut off at the image's border: the second stage needs to know where it is
        shape = tuple(image.shape[-2:])
        sizes = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0))
        out = model(image, [DetDataSample(metainfo=sizes)], mode='tensor')
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
