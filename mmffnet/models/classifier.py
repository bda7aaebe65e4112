"""Classifiers of mmpretrain: the neck of FFNetSeg's pre-training, and official names of it all."""

from mmengine.model import BaseModule
from torch import Tensor

from ..checkpoint import NameMap
from ..registry import MODELS
from .layers import ConvNorm
from .mixers import build_act


@MODELS.register_module()
class ConvPoolNeck(BaseModule):
    """1x1 convolution with norm, activation and global average pooling, on the last map.

    Args:
        in_channels (int): Channels of the map.
        out_channels (int): Channels out.
        norm_cfg (dict, optional): Norm of the convolution. Defaults to None, which is batch norm.
        act_cfg (dict, optional): The activation. Defaults to None, which is hard swish.
        init_cfg (dict, optional): Initialisation. Defaults to None, which is a truncated normal
            distribution with std 0.02.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
        act_cfg: dict | None = None,
    ):
        super().__init__(init_cfg or dict(type='TruncNormal', layer='Conv2d', std=0.02))
        self.conv = ConvNorm(in_channels, out_channels, 1, norm_cfg=norm_cfg)
        self.act = build_act(act_cfg or dict(type='HSwish'))

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (self.act(self.conv(feats[-1])).mean((2, 3)),)


def adopt_classifier(state_dict: dict, prefix: str, names: NameMap) -> None:
    """Gives an official classifier's state the names of an ImageClassifier, in place.

    The backbone's own names stay official below ``backbone.``: the backbone translates them. Any
    other state is left alone.

    Args:
        state_dict (dict): State of the whole model.
        prefix (str): Where the classifier is in it.
        names (NameMap): Those of the backbone.
    """
    head = names.classifier
    if head is None or not any(key.startswith(prefix + names.official_start) for key in state_dict):
        return
    for key in [k for k in state_dict if k.startswith(prefix)]:
        name = key[len(prefix) :]
        new = head.to_ours(name)
        new = f'backbone.{name}' if new == name else new
        state_dict[prefix + new] = state_dict.pop(key)
