"""Builds mixers and activations from their configs."""

import inspect
from typing import Any

from mmcv.cnn import build_activation_layer
from torch import nn

from ...config_types import find_type
from ...registry import MODELS
from ..arch import check_layer_cfg


def build_mixer(cfg: dict, channels: int, **defaults: Any) -> nn.Module:
    """Builds a mixer, or an operation of one, from its config.

    Args:
        cfg (dict): ``type`` and the mixer's own arguments.
        channels (int): Channels in and out.
        **defaults: Arguments of the whole network; a mixer gets those that its signature names.
    """
    kwargs = dict(cfg)
    kind = kwargs.pop('type')
    ours = MODELS.module_dict.get(kind) if isinstance(kind, str) else None
    mixer = ours or find_type(kind)  # a mixer of ours needs no scope
    if mixer is None:
        raise ValueError(
            f'mixer {kind!r} is not registered in MODELS: import the module that registers '
            f"it (custom_imports), or name its registry ('mmdet.{kind}'), or use one of "
            f'mmffnet.models.mixers'
        )
    wanted = inspect.signature(mixer).parameters
    kwargs = {**{k: v for k, v in defaults.items() if k in wanted}, **kwargs}
    try:
        inspect.signature(mixer).bind(channels=channels, **kwargs)
    except TypeError as error:
        raise ValueError(f'mixer {cfg["type"]!r}: {error}; it takes {", ".join(wanted)}') from None
    return mixer(channels=channels, **kwargs)


def build_act(act_cfg: dict | None) -> nn.Module:
    """Builds the activation of a config, exact (erf) GELU where there is none."""
    act_cfg = act_cfg or dict(type='GELU')
    check_layer_cfg('act_cfg', act_cfg)
    try:
        return build_activation_layer(act_cfg)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f'act_cfg: {dict(act_cfg)}: {error}') from error
