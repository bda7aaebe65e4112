"""FFNet backbones.

Paper: MetaMixer Is All You Need, https://arxiv.org/abs/2406.02021. Original implementation:
https://github.com/ysj9909/FFNet. Written anew from a description of the architecture; the official
weights load as they are.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmengine.model import Sequential
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from ..checkpoint import NameMap, OfficialFile, add_family
from ..registry import MODELS
from .backbone import MixerBackbone
from .layers import ConvNorm, MultiBranchDWConv, NormConv
from .mixers import build_act


def _block(branches: dict[str, str], token_mixer: str = 'token_mixer.0') -> dict[str, str]:
    """The official names below a block, given those of the branches of its depthwise kernels."""
    table = {
        'token_scale.scale': f'{token_mixer}.layer_scale',
        'token_mixer.query.': f'{token_mixer}.main.fc.',
        'channel_scale.scale': 'channel_mixer.layer_scale',
        'channel_mixer.expand.': 'channel_mixer.main.fc1.',
        'channel_mixer.project.': 'channel_mixer.main.fc2.',
    }
    for ours, official in (
        ('token_mixer.key.', f'{token_mixer}.main.conv1.'),
        ('token_mixer.value.', f'{token_mixer}.main.conv2.'),
        ('channel_mixer.dwconv.', 'channel_mixer.main.conv.'),
    ):
        table[ours] = official
        table.update({f'{ours}{k}.': f'{official}{v}.' for k, v in branches.items()})
    return table


def _backbone(
    stem: dict[str, str], downsample: dict[str, str], branches: dict[str, str]
) -> NameMap:
    # the official stages count the downsampling, which the first stage has not
    return NameMap(
        {f'stem.{ours}.': f'patch_embed.{official}.' for ours, official in stem.items()},
        ('stages.0.blocks.{j}.', 'stages.0.{j}.', _block(branches)),
        ('stages.{i}.blocks.{j}.', 'stages.{i}.{j+1}.', _block(branches)),
        ('stages.{i}.downsample.', 'stages.{i}.0.', downsample),
        leaves=_LEAVES,
        classifier=_CLASSIFIER,
    )


_LEAVES = {'conv.weight': 'c.weight', 'norm.': 'bn.'}
_CLASSIFIER = {
    'head.fc.': 'head.',
    'neck.conv.': 'head1.0.',
    'head.layers.0.fc.': 'head2.0.',
    'head.layers.0.norm.': 'head2.1.',
    'head.layers.1.fc.': 'head2.3.',
}
# the same official path means different things: conv1.conv1 is FFNet's small branch and FFNetSeg's
# large one
_PAIR = {'large': 'conv', 'small': 'conv1'}
_STRIPS = {'large': 'conv1', 'small': 'conv2', 'row': 'strip_conv1', 'column': 'strip_conv2'}
FFNET_NAMES = _backbone(
    {'conv1': '0', 'conv2': '2'},
    {
        'spatial.large.': 'proj.0.conv.',
        'spatial.small.': 'proj.0.conv1.',
        'channel.': 'proj.1.conv.',
    },
    _PAIR,
)
FFNET_SEG_NAMES = _backbone(
    {'conv1': '0', 'conv2': '2', 'conv3': '4', 'conv4': '5'},
    {'spatial.': 'proj.0.', 'channel.': 'proj.2.'},
    _STRIPS,
)
FFNET_HEAD_NAMES = NameMap(
    {'squeeze.conv1.': 'squeeze.0.', 'squeeze.conv2.': 'squeeze.2.', 'align.conv.': 'align.0.'},
    ('blocks.{j}.', 'head_blocks.{j}.', _block(_STRIPS, token_mixer='token_mixer')),
    leaves=_LEAVES,
)
_RELEASE = 'https://github.com/ysj9909/FFNet/releases/download/v1.0/'
_FILES = {
    'ffnet1': 'ffnet_1.pth.tar',
    'ffnet2': 'ffnet_2.pth.tar',
    'ffnet3': 'ffnet_3.pth.tar',
    'ffnet3-384': 'ffnet_3_384.pth.tar',
    'ffnet4-384': 'ffnet_4_384.pth.tar',
    'ffnet1-distilled': 'ffnet_1_distillation.pth.tar',
    'ffnet2-distilled': 'ffnet_2_distillation.pth.tar',
    'ffnet3-distilled': 'ffnet_3_distillation.pth.tar',
    'ffnetseg': 'ffnet_seg.pth.tar',
    'cascademaskrcnn-ffnet2-coco': 'casc_mask_rcnn_ffnet_2_fpn_3x_coco.pth',
    'cascademaskrcnn-ffnet3-coco': 'casc_mask_rcnn_ffnet_3_fpn_3x_coco.pth',
    'cascademaskrcnn-ffnet4-coco': 'casc_mask_rcnn_ffnet_4_fpn_3x_coco.zip',
    'upernet-ffnet2-ade20k': 'upernet_ffnet_2_512_160k_ade20k.pth',
    'upernet-ffnet3-ade20k': 'upernet_ffnet_3_512_160k_ade20k.pth',
    'upernet-ffnet4-ade20k': 'upernet_ffnet_4_512_160k_ade20k.pth',
    'ffnetseg-ade20k': 'ffnet_seg_sys_512_160k_ade20k.pth',
    'ffnetseg-cityscapes': 'ffnet_seg_sys_1024_160k_cityscapes.pth',
}
add_family(
    FFNET_SEG_NAMES,
    FFNET_NAMES,
    FFNET_HEAD_NAMES,
    weights={name: OfficialFile(_RELEASE + file) for name, file in _FILES.items()},
    own_weights={
        name: Path(__file__).parents[1] / 'weights' / f'{name}.pth'
        for name in ('ffnet-nano', 'ffnet-nano-seg')
    },
)


def _variant(
    depths: tuple,
    channels: tuple,
    channel_kernel: int,
    stem_channels: int = 64,
    layer_scale_init_value: float | None = None,
) -> dict:
    return dict(
        depths=depths,
        channels=channels,
        stem_channels=stem_channels,
        channel_mixer=dict(type='ConvFFN', kernel_size=channel_kernel),
        layer_scale_init_value=layer_scale_init_value,
    )


@MMENGINE_MODELS.register_module()
@MODELS.register_module()
class FFNet(MixerBackbone):
    """FFNet, a convolutional network with FFNified attention.

    ==========  ==============  ====================  =============  ===========
    arch        blocks          channels              channel mixer  layer scale
    ==========  ==============  ====================  =============  ===========
    ``nano``    1, 1, 3, 1      32, 64, 128, 256      3x3            no
    ``ffnet1``  2, 2, 8, 2      80, 160, 320, 640     3x3            no
    ``ffnet2``  3, 3, 15, 3     88, 176, 352, 704     7x7            no
    ``ffnet3``  4, 4, 22, 5     96, 192, 384, 768     7x7            yes
    ``ffnet4``  4, 4, 27, 3     128, 256, 512, 1024   7x7            yes
    ==========  ==============  ====================  =============  ===========

    Token mixers have 3x3 kernels in the first two stages and 7x7 in the others. ``nano`` is not of
    the paper: it is for trying things on a CPU, with weights of our own for pictures like the
    synthetic ones (``mmffnet://ffnet-nano``, ``mmffnet://ffnet-nano-seg``).

    Arguments: see :class:`~mmffnet.models.backbone.MixerBackbone`; ``drop_path_rate`` defaults to
    0.2. In an arch dict each entry of ``channels`` must be a multiple of the one before.

    Note:
        The layer scale starts at 1, as in the official dense-prediction backbones; the official
        classifiers start it at 1e-6 (``layer_scale_init_value=1e-6``).

    Example:
        >>> import torch, mmffnet
        >>> from mmengine.registry import MODELS
        >>> backbone = MODELS.build(dict(type='FFNet', arch='nano')).eval()
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)]
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        'nano': _variant((1, 1, 3, 1), (32, 64, 128, 256), 3, stem_channels=32),
        'ffnet1': _variant((2, 2, 8, 2), (80, 160, 320, 640), 3),
        'ffnet2': _variant((3, 3, 15, 3), (88, 176, 352, 704), 7),
        'ffnet3': _variant((4, 4, 22, 5), (96, 192, 384, 768), 7, layer_scale_init_value=1.0),
        'ffnet4': _variant((4, 4, 27, 3), (128, 256, 512, 1024), 7, layer_scale_init_value=1.0),
    }
    arch_defaults: ClassVar[dict[str, Any]] = dict(
        stem_channels=64,
        token_mixer=[dict(type='FFNifiedAttention', kernel_size=k) for k in (3, 3, 7, 7)],
        channel_mixer=dict(type='ConvFFN', kernel_size=7),
        layer_scale_init_value=None,
    )
    default_drop_path_rate: ClassVar = 0.2
    official_names: ClassVar = FFNET_NAMES

    def make_stem(self, in_channels: int, out_channels: int) -> nn.Module:
        stem_channels = self.settings['stem_channels']
        return Sequential(
            OrderedDict(
                conv1=ConvNorm(in_channels, stem_channels, 3, 2, norm_cfg=self.norm_cfg),
                act=build_act(self.act_cfg),
                conv2=ConvNorm(stem_channels, out_channels, 3, 2, norm_cfg=self.norm_cfg),
            )
        )

    def make_downsample(self, i: int, in_channels: int, out_channels: int) -> nn.Module:
        if i == 0:
            return nn.Identity()
        if out_channels % in_channels:
            raise ValueError(
                f'arch: channels of {type(self).__name__} must each be a multiple of the one '
                f'before, but {out_channels} follows {in_channels}'
            )
        return Sequential(
            OrderedDict(
                spatial=MultiBranchDWConv(
                    in_channels, 7, out_channels=out_channels, stride=2, norm_cfg=self.norm_cfg
                ),
                channel=NormConv(out_channels, out_channels, residual=True, norm_cfg=self.norm_cfg),
            )
        )

    def get_official_layer_depth(
        self, param_name: str, prefix: str, num_layers: int
    ) -> tuple[int, int]:
        """Depth of a parameter in the official recipes for detection and UPerNet.

        Stage 0 is layer 1 and stage 1 layer 2. Stage 2 has a layer, from 3 on, for every three of
        its children, which are the downsampling and the blocks. Stage 3 is layer ``num_layers``,
        whatever the length of stage 2, and all else the last layer, even the stem.

        Args:
            param_name (str): Name of the parameter in the whole model.
            prefix (str): The backbone's prefix in these names.
            num_layers (int): The ``num_layers`` of the recipe.

        Returns:
            tuple[int, int]: The layer, and the number of layers, ``num_layers + 2``.
        """
        pattern = re.escape(prefix) + r'stages\.([0-3])\.(?:downsample|blocks\.(\d+))\.'
        match = re.match(pattern, param_name)
        if match is None:
            return num_layers + 1, num_layers + 2
        child = 0 if match[2] is None else int(match[2]) + 1
        layer = (1, 2, 3 + child // 3, num_layers)[int(match[1])]
        if layer > num_layers:
            raise ValueError(
                f'paramwise_cfg: num_layers must be at least {layer} for {param_name}, '
                f'got {num_layers}'
            )
        return layer, num_layers + 2


@MMENGINE_MODELS.register_module()
@MODELS.register_module()
class FFNetSeg(FFNet):
    """The FFNet of whole segmentation systems, made for :class:`FFNetHead`.

    ============  ===========  ==================  =============  ===========
    arch          blocks       channels            channel mixer  layer scale
    ============  ===========  ==================  =============  ===========
    ``ffnetseg``  3, 4, 18, 5  96, 192, 384, 768   3x3            yes
    ============  ===========  ==================  =============  ===========

    Token mixers have 3x3 kernels in the first two stages and 9x9 in the others, everywhere with
    row and column branches beside the square ones. The stem has four convolutions, downsampling is
    dense. By default the maps of the last three stages are returned, without a norm.

    Args:
        arch (str or dict): As in :class:`FFNet`. Defaults to ``'ffnetseg'``.
        out_indices (int or Sequence[int]): As in :class:`FFNet`. Defaults to ``(1, 2, 3)``.
        out_norm_cfg (dict, optional): As in :class:`FFNet`. Defaults to None.
        **kwargs: The other arguments of :class:`FFNet`.
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        'ffnetseg': dict(depths=(3, 4, 18, 5), channels=(96, 192, 384, 768)),
    }
    arch_defaults: ClassVar[dict[str, Any]] = dict(
        stem_channels=64,
        token_mixer=[
            dict(type='FFNifiedAttention', kernel_size=k, branches='strips') for k in (3, 3, 9, 9)
        ],
        channel_mixer=dict(type='ConvFFN', kernel_size=3, expansion=4),
        layer_scale_init_value=1e-5,
    )
    official_names: ClassVar = FFNET_SEG_NAMES

    def __init__(
        self,
        arch: str | dict = 'ffnetseg',
        *,
        out_indices: int | Sequence[int] = (1, 2, 3),
        out_norm_cfg: dict | None = None,
        **kwargs: Any,
    ):
        super().__init__(arch, out_indices=out_indices, out_norm_cfg=out_norm_cfg, **kwargs)

    def make_stem(self, in_channels: int, out_channels: int) -> nn.Module:
        stem_channels, norm_cfg = self.settings['stem_channels'], self.norm_cfg
        return Sequential(
            OrderedDict(
                conv1=ConvNorm(in_channels, stem_channels, 3, 2, norm_cfg=norm_cfg),
                act1=build_act(self.act_cfg),
                conv2=ConvNorm(stem_channels, stem_channels, 3, norm_cfg=norm_cfg),
                act2=build_act(self.act_cfg),
                conv3=ConvNorm(stem_channels, out_channels, 3, norm_cfg=norm_cfg),
                conv4=ConvNorm(out_channels, out_channels, 3, 2, norm_cfg=norm_cfg),
            )
        )

    def make_downsample(self, i: int, in_channels: int, out_channels: int) -> nn.Module:
        if i == 0:
            return nn.Identity()
        middle = 2 * out_channels
        return Sequential(
            OrderedDict(
                spatial=ConvNorm(in_channels, middle, 3, 2, norm_cfg=self.norm_cfg),
                act=build_act(self.act_cfg),
                channel=ConvNorm(middle, out_channels, 1, norm_cfg=self.norm_cfg),
            )
        )
