"""PoolFormer backbones.

Paper: MetaFormer Is Actually What You Need for Vision, https://arxiv.org/abs/2111.11418. Original
implementation: https://github.com/sail-sg/poolformer (Apache-2.0). Written anew from a description
of the architecture; the official weights load as they are.
"""

from typing import Any, ClassVar

from torch import nn

from ..checkpoint import NameMap, OfficialFile, add_family
from ..registry import MODELS
from .backbone import MixerBackbone

POOLFORMER_NAMES = NameMap(
    {'stem.weight': 'patch_embed.proj.weight', 'stem.bias': 'patch_embed.proj.bias'},
    (
        'stages.{i}.blocks.{j}.',
        'network.{2*i}.{j}.',
        {
            'token_norm.': 'norm1.',
            'token_scale.scale': 'layer_scale_1',
            'channel_norm.': 'norm2.',
            'channel_mixer.expand.': 'mlp.fc1.',
            'channel_mixer.project.': 'mlp.fc2.',
            'channel_scale.scale': 'layer_scale_2',
        },
    ),
    ('stages.{i}.downsample.', 'network.{2*i-1}.proj.', {}),
    ('norm{i}.', 'norm{2*i}.', {}),
    classifier={'head.fc.': 'head.'},
)
_RELEASE = 'https://github.com/sail-sg/poolformer/releases/download/v1.0/'
_BY_HAND = {
    'retinanet-poolformer-s12-coco': '1GKx4jbxdO4ClagPXXt7CoomrV4pOpqul',
    'retinanet-poolformer-s24-coco': '1EjsWpdopem-xeLndPQnQcHp8aoEUHQXR',
    'retinanet-poolformer-s36-coco': '1EgJDCg7LXXnHdGdJaHyEnoBPm-fNG2bt',
    'maskrcnn-poolformer-s12-coco': '1-GSkqaS3SovfCVDsH8CzS1DikPX3cFTY',
    'maskrcnn-poolformer-s24-coco': '10Br62EU-VErQq6rP67sf4qXJIBLOnmLT',
    'maskrcnn-poolformer-s36-coco': '1LyJxcO0fw2hwZg9Z--Zbjbw3W7U4JyqT',
    'semfpn-poolformer-s12-ade20k': '1BcqU1yU2IPkI7RtWEmIw-R8tqMGY_XBt',
    'semfpn-poolformer-s24-ade20k': '1DO329W8eDrfgycHi7YagFWz7IyAb07Wl',
    'semfpn-poolformer-s36-ade20k': '1Rd6XxBXLEYWH-70IMvF6UiVymaWA3gik',
    'semfpn-poolformer-m36-ade20k': '1Xgk7FI3FpOW2__UQhnGf7UGUHA3UzTRq',
    'semfpn-poolformer-m48-ade20k': '1KjeR_4Ue0QyslDimp3OYkRqeqNAwoAez',
}
add_family(
    POOLFORMER_NAMES,
    weights={
        **{
            f'poolformer-{arch}': OfficialFile(f'{_RELEASE}poolformer_{arch}.pth.tar')
            for arch in ('s12', 's24', 's36', 'm36', 'm48')
        },
        **{
            name: OfficialFile(f'https://drive.google.com/file/d/{file}/view', by_hand=True)
            for name, file in _BY_HAND.items()
        },
    },
)

_SMALL, _MEDIUM = (64, 128, 320, 512), (96, 192, 384, 768)


@MODELS.register_module()
class PoolFormer(MixerBackbone):
    """PoolFormer, whose token mixer is an average over the neighbourhood.

    =======  ============  ==================  ===========
    arch     blocks        channels            layer scale
    =======  ============  ==================  ===========
    ``s12``  2, 2, 6, 2    64, 128, 320, 512   1e-5
    ``s24``  4, 4, 12, 4   64, 128, 320, 512   1e-5
    ``s36``  6, 6, 18, 6   64, 128, 320, 512   1e-6
    ``m36``  6, 6, 18, 6   96, 192, 384, 768   1e-6
    ``m48``  8, 8, 24, 8   96, 192, 384, 768   1e-6
    =======  ============  ==================  ===========

    The norm is that of one group (over all channels and positions), in front of each mixer and on
    each returned map. With ``out_indices=3`` it is the classifier.

    Arguments: see :class:`~mmffnet.models.backbone.MixerBackbone`.

    Note:
        The stem pads by 2, so a side of H gives ``(H - 3) // 4 + 1``, which is not rounded up.

    Example:
        >>> import torch, mmffnet
        >>> from mmengine.registry import MODELS
        >>> backbone = MODELS.build(dict(type='mmffnet.PoolFormer', arch='s12')).eval()
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 64, 16, 24), (1, 128, 8, 12), (1, 320, 4, 6), (1, 512, 2, 3)]
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        's12': dict(depths=(2, 2, 6, 2), channels=_SMALL),
        's24': dict(depths=(4, 4, 12, 4), channels=_SMALL),
        's36': dict(depths=(6, 6, 18, 6), channels=_SMALL, layer_scale_init_value=1e-6),
        'm36': dict(depths=(6, 6, 18, 6), channels=_MEDIUM, layer_scale_init_value=1e-6),
        'm48': dict(depths=(8, 8, 24, 8), channels=_MEDIUM, layer_scale_init_value=1e-6),
    }
    arch_defaults: ClassVar[dict[str, Any]] = dict(
        token_mixer=dict(type='Pooling'),
        channel_mixer=dict(type='MLP'),
        layer_scale_init_value=1e-5,
    )
    default_norm_cfg: ClassVar = dict(type='GN', num_groups=1)
    default_out_norm_cfg: ClassVar = dict(type='GN', num_groups=1)
    pre_norm: ClassVar = True
    default_init_cfg: ClassVar = []
    official_names: ClassVar = POOLFORMER_NAMES

    def make_stem(self, in_channels: int, out_channels: int) -> nn.Module:
        return nn.Conv2d(in_channels, out_channels, 7, stride=4, padding=2)

    def make_downsample(self, i: int, in_channels: int, out_channels: int) -> nn.Module:
        if i == 0:
            return nn.Identity()
        return nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def make_block(self, i: int, j: int, drop_path: float) -> nn.Module:
        block: Any = super().make_block(i, j, drop_path)
        if not self.init_cfg or self.init_cfg == self._pretrained:
            # convolutions outside of the blocks start as PyTorch makes them
            block.init_cfg = dict(type='TruncNormal', layer='Conv2d', std=0.02, bias=0.0)
        return block
