"""Backbones that timm lacks, as its models: ``timm.create_model('mmffnet_ffnet2')``.

Importing this registers them. Parameters have the names that they have in mmpretrain's
ImageClassifier, so checkpoints go in both directions; official files load as they are.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule, initialize
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .checkpoint import convert_names, find_state_dict, official_url
from .models import AFFNet, CASViT, FFNet, MixerBackbone, TransNeXt
from .models.block import LayerScale
from .models.layers import ConvNorm
from .models.mixers import build_act

_FAMILIES: dict[str, type[MixerBackbone]] = {
    '': FFNet,
    'casvit_': CASViT,
    'transnext_': TransNeXt,
    'affnet_': AFFNet,
}
#: The official weights that a program can download, the first ones are taken unless a tag says
#: otherwise
_WEIGHTS: dict[str, Sequence[str]] = {
    'nano': (),
    'ffnet1': ('ffnet1', 'ffnet1-distilled'),
    'ffnet2': ('ffnet2', 'ffnet2-distilled'),
    'ffnet3': ('ffnet3', 'ffnet3-distilled', 'ffnet3-384'),
    'ffnet4': ('ffnet4-384',),
    **{f'casvit_{arch}': () for arch in CASViT.arch_settings},
    'transnext_micro': ('transnext-micro',),
    'transnext_tiny': ('transnext-tiny',),
    'transnext_small': ('transnext-small', 'transnext-small-384'),
    'transnext_base': ('transnext-base', 'transnext-base-384'),
    'transnext_micro_aaaa': ('transnext-micro-AAAA',),
    **{f'affnet_{arch}': () for arch in AFFNet.arch_settings},
}


class TimmBackbone(nn.Module):
    """One of our backbones as a classifier with the interface of timm's models.

    Arguments are timm's, besides the class of the backbone (``family``), and others of that class.
    """

    def __init__(
        self,
        family: type[MixerBackbone],
        arch: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if arch in ('ffnet3', 'ffnet4'):
            kwargs.setdefault('layer_scale_init_value', 1e-6)  # as the official classifiers
        if family is FFNet:
            kwargs['out_norm_cfg'] = dict(type='BN')
        self.backbone = family(
            arch, in_channels=in_chans, out_indices=3, drop_path_rate=drop_path_rate, **kwargs
        )
        channels = self.backbone.channels
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = channels[-1]
        self.feature_info = [
            dict(num_chs=width, reduction=stride, module=f'backbone.stages.{i}')
            for i, (width, stride) in enumerate(zip(channels, self.backbone.strides, strict=True))
        ]
        self.neck: nn.Module = nn.Identity()
        if family is AFFNet:
            self.num_features = min(4 * channels[-1], 960)
            conv = ConvNorm(channels[-1], self.num_features, 1)
            self.neck = nn.Sequential(OrderedDict(conv=conv, act=build_act(self.backbone.act_cfg)))
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        self.head_hidden_size = self.head.num_features
        # as its init_weights(), which would log every parameter
        initialize(self.backbone, family.default_init_cfg)
        for module in self.backbone.modules():
            if hasattr(module, 'init_weights') and not isinstance(module, BaseModule):
                module.init_weights()
        for part in (self.neck, self.head):
            initialize(part, dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02))
        self._register_load_state_dict_pre_hook(self.backbone._checkpoint_filter)
        self.to(device=device, dtype=dtype)

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` may change: it replaces the backbone in the model it gets."""
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        return twin

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.neck(self.backbone(x)[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of the stages, and the final features; arguments are as for timm's models."""
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        stages = self.backbone.stages
        wanted, last = feature_take_indices(len(stages), indices)
        final_norm = getattr(self.backbone, 'norm3', nn.Identity())
        maps = []
        x = self.backbone.stem(x)
        for i, stage in enumerate(stages[: last + 1] if stop_early else stages):
            x = stage(x)
            if i in wanted:
                maps.append(final_norm(x) if norm and i == 3 else x)
        if intermediates_only:
            return maps
        return (self.neck(final_norm(x)) if i == 3 else x), maps

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Removes what the given maps do not need, and returns their indices."""
        wanted, last = feature_take_indices(len(self.backbone.stages), indices)
        self.backbone.stages = self.backbone.stages[: last + 1]
        self.backbone.out_indices = (last,)
        if prune_norm or last < 3:
            self.backbone.norm3 = nn.Identity()
        if prune_head or last < 3:
            self.neck = nn.Identity()
            self.num_features = self.head.in_features = self.backbone.channels[last]
            self.reset_classifier(0, '')
        return wanted

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Gives it another number of classes, or other pooling."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head.to(next(self.backbone.parameters()))  # its dtype and device
        self.head_hidden_size = self.head.num_features

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layer of a parameter by its name: those of the backbone's ``get_layer_depth()``.

        If ``coarse``, there are only the stem, each stage, and all behind.
        """

        def layer(name: str) -> int:
            path = name.split('.')
            if not coarse:
                return self.backbone.get_layer_depth(name, 'backbone.')[0]
            if path[:2] == ['backbone', 'stages']:
                return 1 + int(path[2])
            return 0 if path[:2] == ['backbone', 'stem'] else 1 + len(self.backbone.depths)

        return layer

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay besides biases and one-dimensional tensors."""
        # timm looks for axes, of which layer scales have three
        scales = {f'{n}.scale' for n, m in self.named_modules() if isinstance(m, LayerScale)}
        return scales | {f'backbone.{name}' for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches recomputation of the blocks in the backward pass."""
        for stage in self.backbone.stages:
            stage.with_cp = enable


def _translate(raw: dict, model: TimmBackbone) -> dict[str, Tensor]:
    """Our names for whatever file is loaded, as timm looks for the first and the last layer."""
    state = find_state_dict(raw, 'the checkpoint')
    names: Any = model.backbone.official_names
    if any(key.startswith(names.official_start) for key in state):
        model.backbone._checkpoint_filter(state, '')
        state = convert_names(state, to='ours')
    return state


def _cfg(name: str, weights: str | None) -> dict:
    """Preprocessing as in the configs of ``configs/classification``."""
    small = name.startswith(('casvit', 'transnext')) and not name.endswith('aaaa')
    size = 384 if (weights or '').endswith('384') else 224 if small else 256
    cfg: dict[str, Any] = dict(first_conv='backbone.stem.conv1.conv', license='apache-2.0')
    if name.startswith('casvit'):
        cfg.update(crop_pct=0.875, license='mit')
    elif name.startswith('transnext'):
        cfg.update(crop_pct=0.875, first_conv='backbone.stages.0.downsample.conv')
        if size == 384:
            cfg.update(crop_pct=1.0, crop_mode='squash')
    elif name.startswith('affnet'):
        cfg.update(crop_pct=256 / 288, first_conv='backbone.stem.conv.conv', license='mit')
        cfg.update(mean=(0, 0, 0), std=(1, 1, 1), interpolation='bilinear')
    else:
        cfg['crop_pct'] = 1.0 if size == 384 else 0.95 if name in ('ffnet3', 'ffnet4') else 0.9
    return dict(
        cfg,
        url=official_url(weights) if weights else None,
        input_size=(3, size, size),
        pool_size=(size // 32, size // 32),
        classifier='head.fc',
    )


def _tag(name: str, weights: str) -> str:
    """'ffnet3-384' is the tag '384_in1k' of its model."""
    known = name.replace('_', '-').lower()
    return '_'.join([*weights.lower().removeprefix(known).split('-')[1:], 'in1k'])


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    prefix = name[: name.find('_') + 1]
    family = _FAMILIES[prefix]
    wanted = name.removeprefix(prefix).replace('_', '-')
    (arch,) = (arch for arch in family.arch_settings if arch.lower() == wanted)

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            TimmBackbone,
            f'mmffnet_{name}',
            pretrained,
            family=family,
            arch=arch,
            pretrained_filter_fn=_translate,
            feature_cfg=dict(feature_cls='getter', out_indices=(0, 1, 2, 3)),
            **kwargs,
        )

    create.__name__ = create.__qualname__ = f'mmffnet_{name}'
    create.__doc__ = f'{family.__name__} {arch} of mmffnet.'
    return create


default_cfgs = generate_default_cfgs(
    {
        f'mmffnet_{name}.{_tag(name, file)}' if file else f'mmffnet_{name}': _cfg(name, file)
        for name, files in _WEIGHTS.items()
        for file in files or (None,)
    }
)
for _name in _WEIGHTS:
    register_model(_entrypoint(_name))
