"""AFFNet backbones.

Paper: Adaptive Frequency Filters As Efficient Global Token Mixers (ICCV 2023),
https://arxiv.org/abs/2307.14008. Original implementation: https://github.com/microsoft/TokenMixers
(MIT, parts of it under Apple's sample-code licence). Written anew from a description of the
architecture; the official weights load as they are.
"""

import itertools
from collections import OrderedDict
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from ..checkpoint import NameMap, OfficialFile, add_family
from ..registry import MODELS
from .arch import check_layer_cfg
from .backbone import MixerBackbone
from .block import DropPath
from .layers import ConvNorm, build_norm
from .mixers import InvertedResidual, build_act, build_mixer
from .stage import Stage

_INVERTED = {'expand.': 'exp_1x1.', 'dwconv.': 'conv_3x3.', 'project.': 'red_1x1.'}
_BLOCK = {
    'channel_norm.': 'norm1.',
    **{f'channel_mixer.{ours}': f'mlp.block.{official}' for ours, official in _INVERTED.items()},
    'token_norm.': 'norm2.',
    'token_mixer.': 'filter.',
}
AFFNET_NAMES = NameMap(
    {'stem.conv.': 'conv_1.', 'stem.blocks.0.expand.': 'layer_1.0.block.exp_1x1.'},
    ('stem.blocks.{j}.', 'layer_1.{j}.block.', _INVERTED),
    ('stages.0.downsample.', 'layer_2.0.block.', _INVERTED),
    ('stages.0.blocks.{j}.', 'layer_2.{j+1}.block.', _INVERTED),
    ('stages.{i}.downsample.', 'layer_{i+2}.0.block.', _INVERTED),
    ('stages.{i}.blocks.{j}.', 'layer_{i+2}.1.global_rep.{j}.', _BLOCK),
    ('stages.{i}.', 'layer_{i+2}.1.', {'tail.': 'conv_proj.', 'fusion.conv.': 'fusion.'}),
    leaves={'conv.': 'block.conv.', 'norm.': 'block.norm.'},
    classifier={'neck.conv.': 'conv_1x1_exp.', 'head.fc.': 'classifier.fc.'},
)
# folders with the weights, logs and configs, which the official README links to
_FOLDERS = {
    'et': '1q134GgWljvkvX2i_miEMlRcZ3CU9JK-V',
    't': '1yM_4bqTQdjjmBwIvlktYpuOvLgB8OhX7',
    's': '14MZ4QND009KqTmeFBpBnVVDSx7FfiKMi',
}
add_family(
    AFFNET_NAMES,
    weights={
        f'affnet-{arch}': OfficialFile(f'https://drive.google.com/drive/folders/{id}', by_hand=True)
        for arch, id in _FOLDERS.items()
    },
)


class AFFBlock(BaseModule):
    """Channel mixer, then token mixer, in one residual branch; both add their input themselves.

    Args:
        channels (int): Channels in and out.
        channel_mixer (dict): Config of the channel mixer.
        token_mixer (dict): Config of the token mixer.
        block_norm_cfg (dict): Norm in front of each.
        drop_path (float): Probability of dropping the branch. Defaults to 0.
        **mixer_cfg: ``norm_cfg`` and ``act_cfg`` of the mixers.
    """

    def __init__(
        self,
        channels: int,
        channel_mixer: dict,
        token_mixer: dict,
        block_norm_cfg: dict,
        drop_path: float = 0.0,
        **mixer_cfg: dict,
    ):
        super().__init__()
        self.channel_norm = build_norm(block_norm_cfg, channels)
        self.channel_mixer = build_mixer(channel_mixer, channels, **mixer_cfg)
        self.token_norm = build_norm(block_norm_cfg, channels)
        self.token_mixer = build_mixer(token_mixer, channels, **mixer_cfg)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.channel_mixer(self.channel_norm(x))
        return x + self.drop_path(self.token_mixer(self.token_norm(y)))


class AFFStage(Stage):
    """A stage whose blocks end in a projection, which is fused with what they began with.

    Args:
        fusion (nn.Module, optional): Of the concatenation of both; None gives the projection alone.
        **kwargs: The arguments of :class:`Stage`.
    """

    def __init__(self, fusion: nn.Module | None, **kwargs: Any):
        super().__init__(**kwargs)
        self.fusion = fusion

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        y = self.tail(self.forward_blocks(x))
        return y if self.fusion is None else self.fusion(torch.cat([x, y], 1))


@MODELS.register_module()
class AFFNet(MixerBackbone):
    """AFFNet, inverted residuals and adaptive frequency filters.

    =========  ============  ==================  =========
    arch       blocks        channels            expansion
    =========  ============  ==================  =========
    ``et``     2, 2, 4, 3    48, 64, 104, 144    2
    ``t``      2, 2, 4, 3    48, 96, 160, 192    4
    ``s``      2, 2, 4, 3    64, 128, 256, 320   4
    ``base``   2, 2, 4, 3    128, 256, 512, 640  4
    ``large``  5, 4, 18, 6   128, 256, 512, 768  4
    =========  ============  ==================  =========

    ``s`` is the AFFNet of the paper (``small`` in its code); ``base`` and ``large`` are in the code
    alone. Downsampling and the blocks of the first stage are inverted residuals. The other stages
    fuse the output of their blocks with the input, in ``base`` and ``large`` the second one alone.
    Channels must be multiples of 8.

    The code leaves activation and norms to configs that come with the weights. The defaults are
    those with which others reproduced the published accuracy of ``et``: SiLU everywhere, group norm
    with one group in front of the mixers. ``act_cfg`` changes the activation, and
    ``token_mixer=dict(act_cfg=dict(type='ReLU'))`` that of the filters alone.

    Args:
        arch (str or dict): A name, or a dict as in :class:`MixerBackbone` with, optionally,
            **stem_channels**, **stem_depth** (inverted residuals in the stem), **expansion** (of
            the inverted residuals in stem, downsampling and first stage), **fusion** (list[bool],
            per stage), **token_mixer** and **channel_mixer**.
        block_norm_cfg (dict, optional): Norm in front of the mixers. Defaults to
            ``dict(type='GN', num_groups=1)``.
        output_stride (int): The stride of the last map, 32, 16 or 8. Stages beyond it keep the
            resolution, and dilate as the official segmentors do. Defaults to 32.
        **kwargs: The other arguments of :class:`MixerBackbone`. ``out_norm_cfg`` defaults to None.
            The first stage has no drop path.
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        'et': dict(depths=(2, 2, 4, 3), channels=(48, 64, 104, 144), expansion=2),
        't': dict(depths=(2, 2, 4, 3), channels=(48, 96, 160, 192)),
        's': dict(depths=(2, 2, 4, 3), channels=(64, 128, 256, 320)),
        'base': dict(
            depths=(2, 2, 4, 3),
            channels=(128, 256, 512, 640),
            stem_channels=64,
            fusion=(False, True, False, False),
        ),
        'large': dict(
            depths=(5, 4, 18, 6),
            channels=(128, 256, 512, 768),
            stem_channels=64,
            stem_depth=2,
            fusion=(False, True, False, False),
        ),
    }
    arch_defaults: ClassVar[dict[str, Any]] = dict(
        stem_channels=32,
        stem_depth=1,
        expansion=4,
        fusion=[False, True],
        token_mixer=dict(type='AdaptiveFrequencyFilter'),
        channel_mixer=dict(type='InvertedResidual', expansion=2),
    )
    default_act_cfg: ClassVar[dict] = dict(type='SiLU')
    default_out_norm_cfg: ClassVar[dict | None] = None
    default_init_cfg: ClassVar[list[dict]] = [
        dict(type='Kaiming', layer='Conv2d', mode='fan_out'),
        dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ]
    official_names: ClassVar = AFFNET_NAMES
    left_over: ClassVar[str] = r'(conv_1x1_exp|classifier|neck|head)\.'

    def __init__(
        self,
        arch: str | dict | None = None,
        *args: Any,
        block_norm_cfg: dict | None = None,
        output_stride: int = 32,
        **kwargs: Any,
    ):
        if output_stride not in (8, 16, 32):
            raise ValueError(f'output_stride must be 8, 16 or 32, got {output_stride!r}')
        check_layer_cfg('block_norm_cfg', block_norm_cfg)
        self.block_norm_cfg = block_norm_cfg or dict(type='GN', num_groups=1)
        self.output_stride = output_stride
        super().__init__(arch, *args, **kwargs)
        self.strides = tuple(min(stride, output_stride) for stride in self.strides)

    def _inverted(self, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
        expansion = self.settings['expansion']
        cfg = dict(norm_cfg=self.norm_cfg, act_cfg=self.act_cfg, **kwargs)
        return InvertedResidual(in_channels, expansion, out_channels, **cfg)

    def make_stem(self, in_channels: int, out_channels: int) -> nn.Module:
        width = self.settings['stem_channels']
        widths = [16, *[width] * self.settings['stem_depth']]
        blocks = [self._inverted(a, b) for a, b in itertools.pairwise(widths)]
        conv = ConvNorm(in_channels, 16, 3, 2, norm_cfg=self.norm_cfg)
        parts = OrderedDict(conv=conv, act=build_act(self.act_cfg), blocks=Sequential(*blocks))
        return Sequential(parts)

    def make_downsample(self, i: int, in_channels: int, out_channels: int) -> nn.Module:
        if i == 0:
            in_channels = self.settings['stem_channels']
        excess = self.first_stride * 2**i // self.output_stride
        if excess < 2:
            return self._inverted(in_channels, out_channels, stride=2)
        return self._inverted(in_channels, out_channels, dilation=excess // 2)

    def make_block(self, i: int, j: int, drop_path: float) -> nn.Module:
        channels = self.channels[i]
        if i == 0:
            return self._inverted(channels, channels)
        return AFFBlock(
            channels,
            self.mixers['channel_mixer'][i],
            self.mixers['token_mixer'][i],
            self.block_norm_cfg,
            drop_path,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )

    def make_tail(self, i: int) -> nn.Module | None:
        channels = self.channels[i]
        return ConvNorm(channels, channels, 1, norm_cfg=self.norm_cfg) if i else None

    def make_stage(self, i: int, **parts: Any) -> Stage:
        if i == 0:
            return super().make_stage(i, **parts)
        channels, fusion = self.channels[i], None
        if self.settings['fusion'][i]:
            conv = ConvNorm(2 * channels, channels, 1, norm_cfg=self.norm_cfg)
            fusion = Sequential(OrderedDict(conv=conv, act=build_act(self.act_cfg)))
        # the final norm counts as a block, as in the official names
        parts['blocks'].append(build_norm(self.block_norm_cfg, channels))
        return AFFStage(fusion, **parts)
