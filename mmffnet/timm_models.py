"""FFNet as models of timm: ``timm.create_model('mmffnet_ffnet2', pretrained=True)``.

Importing this registers them. Parameters have the names that they have in mmpretrain's
ImageClassifier, so checkpoints go in both directions; official files load as they are.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from mmengine.model import trunc_normal_init
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .checkpoint import convert_names, find_state_dict, official_url
from .models import FFNet
from .models.block import LayerScale
from .models.classifier import adopt_classifier

#: The official weights of each model, the first ones are taken unless a tag says otherwise
_WEIGHTS = {
    'nano': (),
    'ffnet1': ('ffnet1', 'ffnet1-distilled'),
    'ffnet2': ('ffnet2', 'ffnet2-distilled'),
    'ffnet3': ('ffnet3', 'ffnet3-distilled', 'ffnet3-384'),
    'ffnet4': ('ffnet4-384',),
}


class TimmFFNet(nn.Module):
    """An FFNet classifier with the interface of timm's models.

    Args:
        arch (str): As for :class:`FFNet`.
        num_classes (int): Number of classes, 0 for features without a classifier. Defaults to 1000.
        in_chans (int): Channels of the pictures. Defaults to 3.
        global_pool (str): timm's kind of pooling. Defaults to 'avg'.
        drop_rate (float): Dropout before the classifier. Defaults to 0.
        drop_path_rate (float): As for :class:`FFNet`. Defaults to 0.
        device (torch.device, optional): Where it is made. Defaults to None, torch's default.
        dtype (torch.dtype, optional): Of the parameters. Defaults to None, torch's default.
        **kwargs: The other arguments of :class:`FFNet`.
    """

    def __init__(
        self,
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
        self.backbone = FFNet(
            arch,
            in_channels=in_chans,
            out_indices=3,
            out_norm_cfg=dict(type='BN'),
            drop_path_rate=drop_path_rate,
            **kwargs,
        )
        channels = self.backbone.channels
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = channels[-1]
        self.feature_info = [
            dict(num_chs=width, reduction=4 * 2**i, module=f'backbone.stages.{i}')
            for i, width in enumerate(channels)
        ]
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        self.head_hidden_size = self.head.num_features
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                trunc_normal_init(module, std=0.02)
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
        return self.backbone(x)[-1]

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
        """The maps of the stages, and the final features.

        Args:
            x (Tensor): The pictures.
            indices (int or list[int], optional): Which maps; an int for the last ones. Defaults
                to None, which is all.
            norm (bool): Give the last stage's map after the final norm. Defaults to False.
            stop_early (bool): Stop behind the last map that is wanted. Defaults to False.
            output_fmt (str): 'NCHW', there is no other. Defaults to 'NCHW'.
            intermediates_only (bool): Leave out the final features. Defaults to False.
        """
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
        return (final_norm(x) if i == 3 else x), maps

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
        if last < 3:
            self.num_features = self.head.in_features = self.backbone.channels[last]
        if prune_head or last < 3:
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

        Args:
            coarse (bool): Only the stem, each stage, and all behind. Defaults to False.
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


def _translate(raw: dict, model: TimmFFNet) -> dict[str, Tensor]:
    """Our names for whatever file is loaded, as timm looks for the first and the last layer."""
    state = find_state_dict(raw, 'the checkpoint')
    names = model.backbone.official_names
    if any(key.startswith(names.official_start) for key in state):
        adopt_classifier(state, '', names)
        state = convert_names(state, to='ours')
    return state


def _cfg(arch: str, weights: str | None) -> dict:
    size = 384 if (weights or '').endswith('384') else 256
    crop = 1.0 if size == 384 else 0.95 if arch in ('ffnet3', 'ffnet4') else 0.9
    return dict(
        url=official_url(weights) if weights else None,
        input_size=(3, size, size),
        pool_size=(size // 32, size // 32),
        crop_pct=crop,
        first_conv='backbone.stem.conv1.conv',
        classifier='head.fc',
        license='apache-2.0',
    )


def _tag(weights: str) -> str:
    """'ffnet3-384' is the tag '384_in1k' of its model."""
    return '_'.join([*weights.split('-')[1:], 'in1k'])


def _entrypoint(arch: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            TimmFFNet,
            f'mmffnet_{arch}',
            pretrained,
            arch=arch,
            pretrained_filter_fn=_translate,
            feature_cfg=dict(feature_cls='getter', out_indices=(0, 1, 2, 3)),
            **kwargs,
        )

    create.__name__ = create.__qualname__ = f'mmffnet_{arch}'
    create.__doc__ = f'The {arch} of mmffnet.'
    return create


default_cfgs = generate_default_cfgs(
    {
        f'mmffnet_{arch}.{_tag(name)}' if name else f'mmffnet_{arch}': _cfg(arch, name)
        for arch, names in _WEIGHTS.items()
        for name in names or (None,)
    }
)
for _arch in _WEIGHTS:
    register_model(_entrypoint(_arch))
