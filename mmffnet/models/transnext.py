"""TransNeXt backbones.

Paper: TransNeXt: Robust Foveal Visual Perception for Vision Transformers,
https://arxiv.org/abs/2311.17132. Original implementation:
https://github.com/DaiShiResearch/TransNeXt (Apache-2.0). Written anew from a description of the
architecture; the official weights load as they are.
"""

from collections import OrderedDict
from typing import Any, ClassVar

from mmengine.model import Sequential
from torch import nn

from ..checkpoint import NameMap, OfficialFile, add_family
from ..config_types import type_name
from ..registry import MODELS
from .arch import check_count
from .backbone import MixerBackbone
from .layers import CHANNEL_LAYER_NORM, build_norm

_BLOCK = {
    'token_norm.': 'norm1.',
    'token_mixer.': 'attn.',
    'token_mixer.query.': 'attn.q.',
    'token_mixer.key_value.': 'attn.kv.',
    'token_mixer.query_key_value.': 'attn.qkv.',
    'token_mixer.pool.': 'attn.sr.',
    'token_mixer.pool_norm.': 'attn.norm.',
    'token_mixer.project.': 'attn.proj.',
    'token_mixer.position.hidden.': 'attn.cpb_fc1.',
    'token_mixer.position.out.': 'attn.cpb_fc2.',
    'token_mixer.local_bias': 'attn.relative_pos_bias_local',
    'token_mixer.local_tokens': 'attn.learnable_tokens',
    'token_mixer.local_token_bias': 'attn.learnable_bias',
    'channel_norm.': 'norm2.',
    'channel_mixer.expand.': 'mlp.fc1.',
    'channel_mixer.dwconv.': 'mlp.dwconv.dwconv.',
    'channel_mixer.project.': 'mlp.fc2.',
}
TRANSNEXT_NAMES = NameMap(
    {
        'stages.0.downsample.': 'patch_embed1.',
        'stages.0.blocks.0.token_mixer.query_embedding': 'block1.0.attn.query_embedding',
    },
    ('stages.{i}.blocks.{j}.', 'block{i+1}.{j}.', _BLOCK),
    ('stages.{i}.downsample.', 'patch_embed{i+1}.', {'conv.': 'proj.'}),
    ('stages.{i}.tail.', 'norm{i+1}.', {}),
    classifier={'head.fc.': 'head.'},
)
_HUB = 'https://huggingface.co/DaiShiResearch/'
_FILES = {  # repository and file
    'transnext-micro': 'transnext-micro-224-1k transnext_micro_224_1k',
    'transnext-tiny': 'transnext-tiny-224-1k transnext_tiny_224_1k',
    'transnext-small': 'transnext-small-224-1k transnext_small_224_1k',
    'transnext-base': 'transnext-base-224-1k transnext_base_224_1k',
    'transnext-small-384': 'transnext-small-384-1k-ft-1k transnext_small_384_1k_ft_1k',
    'transnext-base-384': 'transnext-base-384-1k-ft-1k transnext_base_384_1k_ft_1k',
    'transnext-micro-AAAA': 'transnext-micro-AAAA-256-1k transnext_micro_AAAA_256_1k',
}
for _arch in ('tiny', 'small', 'base'):
    _FILES[f'maskrcnn-transnext-{_arch}-coco'] = (
        f'maskrcnn-transnext-{_arch}-coco mask_rcnn_transnext_{_arch}_fpn_1x_coco_in1k'
    )
    _FILES[f'upernet-transnext-{_arch}-ade20k'] = (
        f'upernet-transnext-{_arch}-ade upernet_transnext_{_arch}_512x512_160k_ade20k_in1k'
    )
add_family(
    TRANSNEXT_NAMES,
    weights={
        name: OfficialFile(_HUB + '/resolve/main/'.join(file.split()) + '.pth?download=true')
        for name, file in _FILES.items()
    },
)
#: What has no weight decay in the official recipes, by parts of the official names
_NO_WEIGHT_DECAY = ('query_embedding', 'relative_pos_bias_local', 'cpb', 'temperature')


def _aggregated(*sr_ratios: int) -> list[dict]:
    return [dict(type='AggregatedAttention', head_dim=24, sr_ratio=ratio) for ratio in sr_ratios]


@MODELS.register_module()
class TransNeXt(MixerBackbone):
    """TransNeXt: aggregated attention and convolutional gated linear units.

    ==============  ===========  ==================  =======================================
    arch            blocks       channels            token mixers
    ==============  ===========  ==================  =======================================
    ``micro``       2, 2, 15, 2  48, 96, 192, 384    aggregated 8, 4, 2; cosine attention
    ``tiny``        2, 2, 15, 2  72, 144, 288, 576   aggregated 8, 4, 2; cosine attention
    ``small``       5, 5, 22, 5  72, 144, 288, 576   aggregated 8, 4, 2; cosine attention
    ``base``        5, 5, 23, 5  96, 192, 384, 768   aggregated 8, 4, 2; cosine attention
    ``micro-AAAA``  2, 2, 15, 2  48, 96, 192, 384    aggregated 16, 8, 4, 2
    ==============  ===========  ==================  =======================================

    The numbers are positions per pooled key and axis. The norm at the end of a stage is in front of
    the next one too, so the maps of a detector and of the classifier are the same. The attention
    knows positions from a bias that an MLP makes of offsets; for a size other than that of the
    training it is made of the larger offsets (``'extrapolate'``) or resized (``'interpolate'``).

    Args:
        arch (str or dict): See :class:`~mmffnet.models.backbone.MixerBackbone`; an arch dict may
            have a **pretrain_size** (int) besides.
        bias (str): ``'extrapolate'``: the position bias is computed for the size of the input.
            ``'interpolate'``: it is computed for ``img_size`` and resized, as in the official
            detectors and segmentors. Defaults to ``'extrapolate'``.
        pretrain_size (int, optional): Side of the images of the first pre-training, the unit of
            offsets. Defaults to None, which is what ``arch`` says: 224, 256 for ``micro-AAAA``.
        img_size (int, optional): Side of the square image that ``'interpolate'`` resizes from: 800
            in the official detectors, 512 in the segmentors. Defaults to None, which is
            ``pretrain_size``.
        **kwargs: The other arguments of :class:`~mmffnet.models.backbone.MixerBackbone`.

    Note:
        Large inputs are computed some rows at a time, see :class:`.AggregatedAttention`, without
        custom kernels. It is not for ``torch.jit.script``; ``torch.jit.trace`` works.
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        'micro': dict(depths=(2, 2, 15, 2), channels=(48, 96, 192, 384)),
        'tiny': dict(depths=(2, 2, 15, 2), channels=(72, 144, 288, 576)),
        'small': dict(depths=(5, 5, 22, 5), channels=(72, 144, 288, 576)),
        'base': dict(depths=(5, 5, 23, 5), channels=(96, 192, 384, 768)),
        'micro-AAAA': dict(
            depths=(2, 2, 15, 2),
            channels=(48, 96, 192, 384),
            token_mixer=_aggregated(16, 8, 4, 2),
            pretrain_size=256,
        ),
    }
    arch_defaults: ClassVar[dict[str, Any]] = dict(
        token_mixer=[*_aggregated(8, 4, 2), dict(type='CosineAttention', head_dim=24)],
        channel_mixer=[dict(type='ConvGLU', expansion=n) for n in (8, 8, 4, 4)],
        pretrain_size=224,
    )
    default_norm_cfg: ClassVar = CHANNEL_LAYER_NORM
    default_out_norm_cfg: ClassVar = None
    default_init_cfg: ClassVar = [
        dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        dict(type='Kaiming', layer='Conv2d', mode='fan_out', distribution='normal', bias=0.0),
    ]
    pre_norm: ClassVar = True
    official_names: ClassVar = TRANSNEXT_NAMES
    left_over: ClassVar = r'head\.'

    def __init__(
        self,
        arch: str | dict | None = None,
        *,
        bias: str = 'extrapolate',
        pretrain_size: int | None = None,
        img_size: int | None = None,
        **kwargs: Any,
    ):
        if bias not in ('extrapolate', 'interpolate'):
            raise ValueError(f"bias must be 'extrapolate' or 'interpolate', got {bias!r}")
        for name, side in dict(pretrain_size=pretrain_size, img_size=img_size).items():
            if side is not None:
                check_count(name, side)
        self.bias = bias
        self.pretrain_size = pretrain_size
        self.img_size = img_size
        super().__init__(arch, **kwargs)

    def make_downsample(self, i: int, in_channels: int, out_channels: int) -> nn.Module:
        kernel, stride = (7, 4) if i == 0 else (3, 2)
        return Sequential(
            OrderedDict(
                conv=nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2),
                norm=build_norm(dict(self.norm_cfg, eps=1e-5), out_channels),
            )
        )

    def make_branches(self, i: int) -> dict[str, dict[str, Any]]:
        branches = super().make_branches(i)
        mixer = branches['token']['mixer']
        if type_name(mixer['type']) in ('AggregatedAttention', 'CosineAttention'):
            pretrain_size = self.pretrain_size or self.settings['pretrain_size']
            img_size, stride = self.img_size or pretrain_size, self.strides[i]
            for name, side, least in [
                ('pretrain_size', pretrain_size, 2 * stride),
                ('img_size', img_size, stride),
            ]:
                if side < least:
                    raise ValueError(f'{name} must be at least {least}, got {side}')
            sides = dict(pretrain_size=pretrain_size // stride)
            if self.bias == 'interpolate':
                sides['bias_size'] = img_size // stride
            branches['token']['mixer'] = {**sides, **mixer}
        return branches

    def make_tail(self, i: int) -> nn.Module:
        return build_norm(self.norm_cfg, self.channels[i])

    def no_weight_decay(self) -> set[str]:
        return {
            name
            for name, _ in self.named_parameters()
            if any(part in TRANSNEXT_NAMES.to_official(name) for part in _NO_WEIGHT_DECAY)
        }
