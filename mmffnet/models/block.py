"""The block of residual branches, which backbones and heads are made of."""

from typing import Any

import torch
from mmcv.cnn.bricks import DropPath as MMCVDropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from .layers import build_norm
from .mixers import build_act, build_mixer

_BRANCH_KEYS = ('mixer', 'norm', 'layer_scale', 'drop_path')


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor.

    Args:
        channels (int): Number of channels.
        init_value (float): Initial factor.
    """

    def __init__(self, channels: int, init_value: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class DropPath(MMCVDropPath):
    """mmcv's drop path for ``(N, C, H, W)``, written so that it can be scripted and traced."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.drop_prob
        # half precision would round the probability
        random = torch.rand_like(x[:, :1, :1, :1], dtype=torch.float32)
        return x.div(keep) * (keep + random).floor().to(x.dtype)


class MixerBlock(BaseModule):
    """Residual branches, one after the other: ``x + drop_path(scale(mixer(norm(x))))``.

    The parts of the branch ``token`` are the modules ``token_norm`` (if it has one),
    ``token_mixer`` and ``token_scale``.

    Args:
        channels (int): Channels in and out.
        branches (dict[str, dict]): The branches by name, in their order. Each is a dict of

            - **mixer** (dict): Config of the mixer.
            - **norm** (dict or str, optional): Config of the norm in front of it, or the name of an
              earlier branch, whose norm it shares. Defaults to None, which is none.
            - **layer_scale** (bool): Whether the branch has a layer scale, if the block has.
              Defaults to True.
            - **drop_path** (bool): Whether the branch can be dropped. Defaults to True.
        drop_path (float): Probability of dropping a branch. Defaults to 0.
        layer_scale_init_value (float, optional): Initial layer scale; None for no layer scale.
            Defaults to None.
        post_act (bool): Put an activation after each addition. Defaults to False.
        norm_cfg (dict, optional): Norm inside the mixers. Defaults to None, which is batch norm.
        act_cfg (dict, optional): Activation of the mixers. Defaults to None, which is GELU.
        init_cfg (dict, optional): Initialisation. Defaults to None.

    Example:
        >>> norm = dict(type='GN', num_groups=1)
        >>> block = MixerBlock(
        ...     64,
        ...     dict(
        ...         token=dict(mixer=dict(type='Pooling'), norm=norm),
        ...         channel=dict(mixer=dict(type='ConvFFN'), norm=norm),
        ...     ),
        ... )
    """

    def __init__(
        self,
        channels: int,
        branches: dict[str, dict[str, Any]],
        drop_path: float = 0.0,
        layer_scale_init_value: float | None = None,
        post_act: bool = False,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        #: Names of each branch's norm (if it has one), mixer and scale; whether it is dropped
        self.branches: list[tuple[list[str], bool]] = []
        norms: dict[str, str] = {}
        for name, branch in branches.items():
            if not isinstance(branch, dict) or 'mixer' not in branch:
                raise ValueError(f'branch {name!r} must be a dict with a mixer, got {branch!r}')
            if unknown := [key for key in branch if key not in _BRANCH_KEYS]:
                raise ValueError(
                    f'branch {name!r} does not take {", ".join(unknown)}; it takes '
                    f'{", ".join(_BRANCH_KEYS)}'
                )
            norm = branch.get('norm')
            if isinstance(norm, dict):
                norms[name] = f'{name}_norm'
                self.add_module(norms[name], build_norm(norm, channels))
            elif norm is not None:
                if norm not in norms:
                    raise ValueError(
                        f'branch {name!r}: norm must be a config, None or the name of an earlier '
                        f'branch that has one, got {norm!r}'
                    )
                norms[name] = norms[norm]
            defaults = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
            self.add_module(f'{name}_mixer', build_mixer(branch['mixer'], channels, **defaults))
            scale: nn.Module = nn.Identity()
            if layer_scale_init_value is not None and branch.get('layer_scale', True):
                scale = LayerScale(channels, layer_scale_init_value)
            self.add_module(f'{name}_scale', scale)
            parts = [f'{name}_mixer', f'{name}_scale']
            if name in norms:
                parts.insert(0, norms[name])
            self.branches.append((parts, bool(branch.get('drop_path', True))))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.post_act = build_act(act_cfg) if post_act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for parts, dropped in self.branches:
            y = x
            for name in parts:
                y = getattr(self, name)(y)
            x = self.post_act(x + (self.drop_path(y) if dropped else y))
        return x
