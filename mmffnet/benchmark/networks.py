"""What can be measured by name: the backbones here, those of timm, and whole models of configs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from torch import Tensor, nn

from mmffnet_cli import format_of

from ..deploy.export import natural_size
from ..deploy.runtimes import load_exported
from ..engine.models import build_model
from ..engine.runner import innermost_dataset, read_config
from ..errors import UsageError, import_package
from ..models import AFFNet, CASViT, FFNet, FFNetSeg, PoolFormer, TransNeXt, reparameterize
from ..registry import MODELS
from .metafiles import read_entries

#: Models that a backbone can be measured inside: config, and height and width of the input.
AROUND = {
    'maskrcnn': ('detection/maskrcnn_ffnet2_coco.py', (800, 1344)),  # 800x1333 as it is padded
    'upernet': ('segmentation/upernet_ffnet2_ade20k.py', (512, 512)),
}


class Peer(NamedTuple):
    """A network of timm's and what its authors published, for ImageNet-1k alone and no teacher."""

    timm_name: str
    size: int  #: Height and width of the pictures that the accuracy was measured on
    accuracy: float  #: Top 1


#: Where the accuracies are published is in docs/benchmarks.md
PEERS = {
    'resnet50': Peer('resnet50', 224, 80.4),
    'convnext_tiny': Peer('convnext_tiny', 224, 82.1),
    'convnext_small': Peer('convnext_small', 224, 83.1),
    'swin_tiny': Peer('swin_tiny_patch4_window7_224', 224, 81.3),
    'swin_small': Peer('swin_small_patch4_window7_224', 224, 83.0),
    'poolformer_s36': Peer('poolformer_s36', 224, 81.4),
    'fastvit_sa24': Peer('fastvit_sa24', 256, 82.7),
    'fastvit_sa36': Peer('fastvit_sa36', 256, 83.6),
    'convformer_s18': Peer('convformer_s18', 224, 83.0),
    'caformer_s18': Peer('caformer_s18', 224, 83.6),
}
#: The families that are called ``<family>-<arch>``: class, and size of the pictures
FAMILIES: dict[str, tuple[Any, int]] = {
    'poolformer': (PoolFormer, 224),
    'casvit': (CASViT, 224),
    'transnext': (TransNeXt, 224),
    'affnet': (AFFNet, 256),
}


@MODELS.register_module()
class TimmFeatures(nn.Module):
    """The last four maps of a network of timm's, without its weights."""

    out_indices = (0, 1, 2, 3)

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = import_package('timm')
        # Swin would refuse pictures of any other size than it was pre-trained on
        options = dict(strict_img_size=False) if name.startswith('swin') else {}
        try:
            self.net = timm.create_model(name, features_only=True, pretrained=False, **options)
        except (AttributeError, RuntimeError, TypeError) as error:
            raise UsageError(f"timm has no backbone '{name}': {error}") from error
        self.out_channels = tuple(self.net.feature_info.channels()[-4:])
        self.channels_are_last = getattr(self.net, 'output_fmt', 'NCHW') == 'NHWC'

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = tuple(self.net(x))[-4:]
        return tuple(y.permute(0, 3, 1, 2) for y in maps) if self.channels_are_last else maps

    def init_weights(self) -> None:
        """Models that a backbone is part of call this; timm has initialised it already."""


@dataclass(frozen=True)
class Network:
    """Something that can be built and measured."""

    name: str
    build: Callable[[str], nn.Module]  #: Builds it on a device, in evaluation mode
    size: tuple[int, int]  #: Height and width to measure at unless told otherwise
    accuracy: float | None = None  #: Published, on ImageNet-1k at this size, top 1
    ours: bool = False  #: Whether it is a FFNet
    exported: Path | None = None  #: The file, if it is an exported model


def find_network(name: str, around: str | None = None, cfg_options: Sequence[str] = ()) -> Network:
    """Finds what a name stands for.

    It is a variant of FFNet or FFNetSeg, a family of :data:`FAMILIES` and a variant of it
    (``poolformer-s12``), a key of :data:`PEERS`, ``timm:`` and a name of timm's, a config (a file,
    or one that mmffnet ships, by its folder and name), or an exported model. ``around``, a key of
    :data:`AROUND`, puts a backbone into that model.
    """
    peer = PEERS.get(name)
    family, _, arch = name.partition('-')
    network, side = FAMILIES.get(family, (FFNet, 256))
    backbone: dict[str, Any]
    if name in FFNet.arch_settings:
        backbone = dict(type='FFNet', arch=name)
    elif name in FFNetSeg.arch_settings:
        backbone = dict(type='FFNetSeg', arch=name, out_indices=(0, 1, 2, 3))
    elif family in FAMILIES and arch in network.arch_settings:
        backbone = dict(type=f'mmffnet.{network.__name__}', arch=arch)
        side = network.arch_settings[arch].get('pretrain_size', side)
    elif peer or name.startswith('timm:'):
        timm_name = peer.timm_name if peer else name.removeprefix('timm:')
        backbone = dict(type='mmffnet.TimmFeatures', name=timm_name)
    elif format_of(name) or name.endswith('.py') or '/' in name:
        if around is not None:
            raise UsageError(f'{name} is a whole model: it cannot be put into {around}')
        if format_of(name):
            return _find_exported(Path(name))
        cfg = read_config(name, cfg_options)
        return Network(name, partial(build_model, cfg), input_size(cfg))
    else:
        families = [f'{key}-{arch}' for key in FAMILIES for arch in FAMILIES[key][0].arch_settings]
        known = ', '.join([*FFNet.arch_settings, *FFNetSeg.arch_settings, *families, *PEERS])
        raise UsageError(
            f"there is no network '{name}': there are {known}, timm:NAME, configs, exported files"
        )
    if around is not None:
        config, size = AROUND[around]
        return Network(name, partial(_build_around, config, backbone), size)
    side = peer.size if peer else side
    return Network(
        name,
        build=partial(build_model, Config(dict(model=backbone))),
        size=(side, side),
        accuracy=peer.accuracy if peer else _published(name, side),
        ours=backbone['type'].startswith('FFNet'),
    )


def _find_exported(path: Path) -> Network:
    def build(device: str) -> nn.Module:
        raise UsageError(f'{path} is an exported model: it has no modules')

    try:
        meta = load_exported(path).meta
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(str(error)) from error
    size = (meta['height'] or 256, meta['width'] or 256)
    return Network(path.name, build, size, exported=path)


def _build_around(config: str, backbone: dict[str, Any], device: str) -> nn.Module:
    cfg = read_config(config)
    channels = list(MODELS.build(backbone).out_channels)
    cfg.model.backbone = backbone
    if cfg.model.get('neck'):
        cfg.model.neck.in_channels = channels
    else:
        cfg.model.decode_head.in_channels = channels
        cfg.model.auxiliary_head.in_channels = channels[2]
    return build_model(cfg, device)


def fuse(model: nn.Module) -> nn.Module:
    """Re-parameterises our networks, and timm's as timm does it."""
    for child in model.modules():
        if isinstance(child, TimmFeatures):
            child.net = import_package('timm').utils.reparameterize_model(child.net)
    return reparameterize(model)


def input_size(cfg: Config) -> tuple[int, int]:
    """Height and width of a config's input, as it is cropped or, else, as it is tested."""
    size = natural_size(cfg)
    if size:
        return size
    for step in reversed(innermost_dataset(cfg, 'test').get('pipeline') or ()):
        if isinstance(step.get('scale'), list | tuple):
            # the longer side first; padded as networks with 32 as their largest stride need it
            width, height = (-(-side // 32) * 32 for side in step['scale'])
            return height, width
    return 256, 256


def _published(name: str, size: int) -> float | None:
    for entry in read_entries():
        if entry.name.startswith(f'{name}_') and entry.metadata.get('Input Size') == size:
            return entry.published.get('Top 1 Accuracy')
    return None
