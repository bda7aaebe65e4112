"""Re-parameterisation of whole models."""

import itertools
from collections import OrderedDict
from typing import Any

from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...ops.tracing import is_observed
from ...registry import MODELS
from .depthwise import DepthwiseConv2d
from .fusible import FuseOnLoad, FusibleBlock, can_fold, conv_like, fold_norm


class _NamedConvNorm(FusibleBlock):
    """A convolution and the batch norm behind it, under the names that they have elsewhere."""

    def __init__(self, conv_name: str, conv: nn.Conv2d, norm_name: str, norm: nn.Module):
        super().__init__()
        self.names = (conv_name, norm_name)
        self.add_module(conv_name, conv)
        self.add_module(norm_name, norm)

    def folded(self) -> tuple[Tensor, Tensor, nn.Conv2d]:
        conv, norm = (getattr(self, name) for name in self.names)
        return *fold_norm(conv, norm), conv


def reparameterize(model: nn.Module) -> nn.Module:
    """Folds every fusible block of a model into one convolution, in place.

    Works on anything that holds such blocks: a bare backbone, a detector, a segmentor, a
    classifier. Batch norms behind plain convolutions elsewhere in the model are folded as well
    where their order is certain as long as a module is called as a whole: inside mmcv's
    ``ConvModule`` and as neighbours in a ``Sequential``. (Where a model calls a ``ConvModule`` with
    ``norm=False``, or the convolution of a ``Sequential`` alone, it gets the norm all the same.)
    dtype, device, memory format, ``training``, ``requires_grad`` and the forward hooks of a block
    are kept. Calling it twice changes nothing more.

    Args:
        model (nn.Module): The model; changed in place.

    Returns:
        nn.Module: The same model (a new convolution if ``model`` itself is one fusible block).

    Raises:
        ValueError: If a block's norm is not a batch norm, something listens to a part of a block
            or to its gradients, or its forward was replaced; the model is then left as it was.
    """
    if isinstance(model, FusibleBlock):
        return model.fuse()
    # everything is computed before anything is replaced: an error leaves the model whole
    replacements: list[tuple[nn.Module, str, nn.Module]] = []
    hooks: list[tuple[nn.Module, FuseOnLoad]] = []
    fused: dict[FusibleBlock, nn.Conv2d] = {}
    inside: set[nn.Module] = set()
    for path, parent in model.named_modules():
        if parent in inside:
            continue
        for name, child in parent._modules.items():  # named_children() leaves out repetitions
            if isinstance(child, FusibleBlock):
                if child not in fused:  # a block in two places stays one convolution
                    try:
                        fused[child] = child.fuse()
                    except ValueError as error:
                        raise ValueError(f'{f"{path}.{name}".lstrip(".")}: {error}') from error
                    inside.update(child.modules())
                replacements.append((parent, name, fused[child]))
        for conv_name, norm_name in _conv_norm_neighbours(parent):
            conv, norm = parent._modules[conv_name], parent._modules[norm_name]
            pair = _NamedConvNorm(conv_name, conv, norm_name, norm)  # type: ignore[arg-type]
            kernel, bias, like = pair.folded()
            # a new convolution, as heads that share one between levels have a norm per level
            replacements.append((parent, conv_name, conv_like(like, kernel, bias)))
            replacements.append((parent, norm_name, nn.Identity()))
            hooks.append((parent, FuseOnLoad(pair, conv=f'{conv_name}.')))
    for parent, name, child in replacements:
        child.train(parent._modules[name].training)  # type: ignore[union-attr]
        parent._modules[name] = child
        if isinstance(parent, ConvModule):
            parent.with_norm = False  # its forward would take the norm apart
    for parent, hook in hooks:
        parent._register_load_state_dict_pre_hook(hook)
    return model


def _conv_norm_neighbours(parent: nn.Module) -> list[tuple[str, str]]:
    """Names of (convolution, batch norm) pairs that certainly run one after the other."""
    if isinstance(parent, ConvModule):
        names = list(parent.order)
        pair = ('conv', parent.norm_name)
        in_order = parent.with_norm and names.index('norm') == names.index('conv') + 1
        pairs = [pair] if in_order and not parent.with_spectral_norm else []
    elif isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
        names = list(parent._modules)
        pairs = list(itertools.pairwise(names))
    else:
        pairs = []
    modules: OrderedDict[str, nn.Module | None] = parent._modules  # type: ignore[assignment]
    return [
        (conv, norm)
        for conv, norm in pairs
        if _is_plain(modules[conv], _PLAIN_CONVS)
        and _is_plain(modules[norm], _PLAIN_NORMS)
        and can_fold(modules[norm])  # type: ignore[arg-type]
    ]


def _is_plain(module: nn.Module | None, forwards: set) -> bool:
    """Whether a module computes what its base class does, and nobody listens in between.

    Subclasses (deformable, weight-standardised...) may compute something else.
    """
    if module is None or is_observed(module):
        return False
    kind: Any = type(module)
    return (kind.forward, getattr(kind, '_conv_forward', None)) in forwards


# mmcv's Conv2d only adds support for empty inputs
_PLAIN_CONVS = {
    (kind.forward, kind._conv_forward) for kind in (nn.Conv2d, DepthwiseConv2d, MODELS.get('Conv'))
}
_PLAIN_NORMS = {(kind.forward, None) for kind in (_BatchNorm, nn.SyncBatchNorm)}


@MODELS.register_module()
def Reparameterized(original: str, **kwargs: Any) -> nn.Module:
    """A model of any type, re-parameterised.

    In a config: ``dict(type='mmffnet.Reparameterized', original='MaskRCNN', ...)``.

    All else in the config stays as it is, so that two keys on top of a model's config make its
    deployed form. Checkpoints load into it in both forms.

    Args:
        original (str): The ``type`` of the model.
        **kwargs: The rest of the model's config.
    """
    return reparameterize(MODELS.build(dict(type=original, **kwargs)))
