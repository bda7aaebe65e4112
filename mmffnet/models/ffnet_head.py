"""FFNetHead, the decode head that goes with FFNetSeg.

The only module that imports mmseg; ``import mmffnet`` leaves it out. mmengine's root registry has
a stand-in for it, so that ``type='FFNetHead'`` in a config is enough.

Paper: MetaMixer Is All You Need, https://arxiv.org/abs/2406.02021. Original implementation:
https://github.com/ysj9909/FFNet. Written anew from a description of the architecture; the official
weights load as they are.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import Sequential
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor

from ..checkpoint import translate_state_dict
from .arch import check_count, check_fraction
from .block import MixerBlock
from .ffnet import FFNET_HEAD_NAMES
from .layers import ConvNorm, reparameterize
from .mixers import build_act


@MODELS.register_module()
class FFNetHead(BaseDecodeHead):
    """Mixer blocks on the concatenated maps of several levels.

    The levels are resized to the finest one (bicubic), concatenated and squeezed to ``head_width``
    channels, pass the blocks, and are widened to ``channels`` before the classification. The
    logits have the resolution of the finest level.

    Args:
        in_channels (Sequence[int]): Channels of each level, finest first.
        in_index (Sequence[int], optional): Which of the backbone's maps these are. Defaults to
            None, which is the first ones.
        head_width (int): Channels of the blocks. Defaults to 256.
        head_depth (int): Number of blocks. Defaults to 3.
        expansion_ratio (int): Hidden channels of the channel mixers per channel. Defaults to 4.
        final_expansion_ratio (int): Channels before the classification per channel of the
            blocks. Defaults to 4.
        channels (int, optional): The same as a number, for configs that inherit one; must be
            ``head_width * final_expansion_ratio``. Defaults to None, which is just that.
        kernel_size (int): Size of all depthwise kernels. Defaults to 9.
        drop_path_rate (float): Drop path of the last block, growing linearly from 0 at the first.
            Defaults to 0.1.
        norm_cfg (dict, optional): Norm of every convolution. Defaults to None, which is batch norm.
        act_cfg (dict, optional): Activation. Defaults to None, which is GELU (exact).
        deploy (bool): Build the re-parameterised head; it loads checkpoints of both forms.
            Defaults to False.
        **kwargs: ``num_classes`` and other arguments of mmseg's ``BaseDecodeHead``.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        in_index: Sequence[int] | None = None,
        head_width: int = 256,
        head_depth: int = 3,
        expansion_ratio: int = 4,
        final_expansion_ratio: int = 4,
        channels: int | None = None,
        kernel_size: int = 9,
        drop_path_rate: float = 0.1,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        deploy: bool = False,
        **kwargs: Any,
    ):
        if isinstance(in_channels, int) or not in_channels:
            raise ValueError(
                f'FFNetHead: in_channels must list the channels of each level, got {in_channels!r}'
            )
        if in_index is None:
            in_index = range(len(in_channels))
        if isinstance(in_index, int) or len(in_index) != len(in_channels):
            raise ValueError(
                f'FFNetHead: in_index must have one entry for each of in_channels '
                f'{list(in_channels)}, got {in_index!r}'
            )
        for name, value in dict(
            head_width=head_width,
            head_depth=head_depth,
            expansion_ratio=expansion_ratio,
            final_expansion_ratio=final_expansion_ratio,
        ).items():
            check_count(f'FFNetHead: {name}', value)
        check_fraction('FFNetHead: drop_path_rate', drop_path_rate)
        width = head_width * final_expansion_ratio
        if channels is not None and channels != width:
            raise ValueError(
                f'FFNetHead: channels must be head_width * final_expansion_ratio = {head_width} * '
                f'{final_expansion_ratio} = {width}, got {channels}'
            )
        super().__init__(
            in_channels=list(in_channels),
            channels=width,
            in_index=list(in_index),
            input_transform='multiple_select',
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
            **kwargs,
        )
        total = sum(in_channels)
        self.squeeze = Sequential(
            OrderedDict(
                conv1=ConvNorm(total, total, 1, norm_cfg=norm_cfg),
                act=build_act(act_cfg),
                conv2=ConvNorm(total, head_width, 1, norm_cfg=norm_cfg),
            )
        )
        mixer = dict(kernel_size=kernel_size, branches='strips')
        token_mixer = dict(type='FFNifiedAttention', **mixer)
        channel_mixer = dict(type='ConvFFN', expansion=expansion_ratio, **mixer)
        branches = dict(token=dict(mixer=token_mixer), channel=dict(mixer=channel_mixer))
        self.blocks = Sequential(
            *(
                MixerBlock(
                    head_width,
                    branches,
                    drop_path=rate,
                    post_act=True,
                    norm_cfg=norm_cfg,
                    act_cfg=act_cfg,
                )
                for rate in torch.linspace(0, drop_path_rate, head_depth, device='cpu').tolist()
            )
        )
        self.align = Sequential(
            OrderedDict(
                conv=ConvNorm(head_width, width, 1, norm_cfg=norm_cfg), act=build_act(act_cfg)
            )
        )
        if deploy:
            reparameterize(self)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        if not all(-len(inputs) <= i < len(inputs) for i in self.in_index):
            raise ValueError(
                f'FFNetHead: in_index {self.in_index} asks for more than the {len(inputs)} maps '
                f'that the backbone gives'
            )
        finest, *coarser = self._transform_inputs(inputs)
        # by size and not by factor, so that maps of an image of any size fit together
        coarser = [
            F.interpolate(x, finest.shape[2:], mode='bicubic', align_corners=self.align_corners)
            for x in coarser
        ]
        x = self.squeeze(torch.cat([finest, *coarser], dim=1))
        return self.cls_seg(self.align(self.blocks(x)))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        translate_state_dict(self, state_dict, prefix, FFNET_HEAD_NAMES)
        super()._load_from_state_dict(state_dict, prefix, *args)
