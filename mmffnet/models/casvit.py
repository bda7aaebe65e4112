"""CAS-ViT backbones.

Paper: CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile
Applications, https://arxiv.org/abs/2408.03703. Original implementation (as RCViT):
https://github.com/Tianfang-Zhang/CAS-ViT (MIT). Written anew from a description of the
architecture; the official weights load as they are.
"""

from collections import OrderedDict
from typing import Any, ClassVar

from mmengine.model import Sequential
from torch import nn

from ..checkpoint import NameMap, OfficialFile, add_family
from ..registry import MODELS
from .backbone import MixerBackbone
from .layers import ConvNorm, DepthwiseConv2d
from .mixers import build_act

_GATES = {
    'spatial.dwconv.conv.': '0.block.0.',
    'spatial.dwconv.norm.': '0.block.1.',
    'spatial.gate.': '0.block.3.',
    'channel.': '1.block.1.',
}
CASVIT_NAMES = NameMap(
    {
        'stem.conv1.': 'patch_embed.0.',
        'stem.conv1.conv.': 'patch_embed.0.',
        'stem.conv1.conv.bias': 'patch_embed.0.bias',  # which FFNet's convolution has not
        'stem.conv1.norm.': 'patch_embed.1.',
        'stem.conv2.conv.': 'patch_embed.3.',
        'stem.conv2.norm.': 'patch_embed.4.',
    },
    (
        'stages.{i}.blocks.{j}.',
        'network.{2*i}.{j}.',
        {
            'local_mixer.conv.conv.': 'local_perception.network.0.',
            'local_mixer.conv.norm.': 'local_perception.network.1.',
            'local_mixer.dwconv.': 'local_perception.network.2.',
            'local_mixer.project.': 'local_perception.network.4.',
            'token_norm.': 'norm1.',
            'token_mixer.qkv.': 'attn.qkv.',
            **{f'token_mixer.query.{k}': f'attn.oper_q.{v}' for k, v in _GATES.items()},
            **{f'token_mixer.key.{k}': f'attn.oper_k.{v}' for k, v in _GATES.items()},
            'token_mixer.similarity.': 'attn.dwc.',
            'token_mixer.project.': 'attn.proj.',
            'channel_norm.': 'norm2.',
            'channel_mixer.expand.': 'mlp.fc1.',
            'channel_mixer.project.': 'mlp.fc2.',
        },
    ),
    ('stages.{i}.downsample.', 'network.{2*i-1}.', {'conv.': 'proj.', 'norm.': 'norm.'}),
    ('norm{i}.', 'norm{2*i}.', {}),
    classifier={'head.fc.': 'head.'},
)

# Each variant has two ImageNet files in the authors' list, which does not tell what they are. The
# second is the better one, probably fine-tuned at 384x384.
_FILES = {
    'casvit-xs': '16wKcwF6QMW5w_lyPYnDKjMNuoxQDfrLK',
    'casvit-s': '1facFRq8s8oelYUtK1fj3fcfdoWoKDBQQ',
    'casvit-m': '13sQpSEf0h_uuh0jRy9V0yIW6ZsbDpVGy',
    'casvit-t': '1NqoIUPbwBC91RTjTUvubAbOfGqo1VYT0',
    'casvit-xs-second': '1kwRPtJ4FdmNeTm2MsiFN7N2DJpou3Pgl',
    'casvit-s-second': '1UagCihMWmNCmYGC1DV5euAvA5TONI818',
    'casvit-m-second': '1pTwKKRLPA7vBfk_KTgJ4J1Jq3ttkh3O2',
    'casvit-t-second': '1N5Y81Vcyf2ox41TC3wlRBxgQPYaEndTW',
    'retinanet-casvit-xs-coco': '1n3NKegRLC6wz8EgY-dKWaoPETKumfPlO',
    'retinanet-casvit-s-coco': '18msm_na7s25aNV7AfBPpJRMGFChpnC5-',
    'retinanet-casvit-m-coco': '1k5S6by4i6vEmr0P_w35z1ipyTFu59T7z',
    'retinanet-casvit-t-coco': '1tp6x0pP-6zZvyPGQlvFtMBpw3WpomGac',
    'maskrcnn-casvit-xs-coco': '1E8ZhO708_5J7iCmqN1Hc7HH0OAGmlMsH',
    'maskrcnn-casvit-s-coco': '1Kttud7Pqc_Tvw--F19knbfF4haJdJOG8',
    'maskrcnn-casvit-m-coco': '1zI_N7YCfpi95L6Jr0FLhVIT4u-Y2sidO',
    'maskrcnn-casvit-t-coco': '1CKGqkFC763gHEmNtXbalF0YBDN6Dhv7_',
    'semfpn-casvit-xs-ade20k': '1gCWmdNNQEa9EEwsxIuL2daIavJPcnGny',
    'semfpn-casvit-s-ade20k': '1fRY5RZXF7inaDgGKQhLKPpexz5t9p7w2',
    'semfpn-casvit-m-ade20k': '1QgBkh006WXqOrw23ehWOHPZM_V_O84c6',
    'semfpn-casvit-t-ade20k': '14tn6hctKu16GKNBeUiwuUzJml-qsxdkh',
}
add_family(
    CASVIT_NAMES,
    weights={
        name: OfficialFile(f'https://drive.google.com/file/d/{file}/view', by_hand=True)
        for name, file in _FILES.items()
    },
)


@MODELS.register_module()
class LocalPerception(nn.Sequential):
    """CAS-ViT's convolutional branch, a mixer of neighbours and of channels.

    Args:
        channels (int): Channels in and out.
        norm_cfg (dict, optional): The norm. Defaults to ``dict(type='BN')``.
        act_cfg (dict, optional): Activation. Defaults to ``dict(type='GELU')``.
    """

    def __init__(self, channels: int, norm_cfg: dict | None = None, act_cfg: dict | None = None):
        super().__init__(
            OrderedDict(
                conv=ConvNorm(channels, channels, 1, norm_cfg=norm_cfg, bias=True),
                dwconv=DepthwiseConv2d(channels, channels, 3, padding=1),
                act=build_act(act_cfg),
                project=nn.Conv2d(channels, channels, 1),
            )
        )


@MODELS.register_module()
class CASViT(MixerBackbone):
    """CAS-ViT, of convolutions and convolutional additive attention (RCViT in the official code).

    ======  ==========  ==================
    arch    blocks      channels
    ======  ==========  ==================
    ``xs``  2, 2, 4, 2  48, 56, 112, 220
    ``s``   3, 3, 6, 3  48, 64, 128, 256
    ``m``   3, 3, 6, 3  64, 96, 192, 384
    ``t``   3, 3, 6, 3  96, 128, 256, 512
    ``l``   4, 4, 8, 4  96, 128, 256, 512
    ======  ==========  ==================

    A block has three residual branches: local perception, which has no norm in front of it and is
    not dropped, the token mixer and the channel mixer. ``l`` is in the official code for
    segmentation, without weights. With ``out_indices=3`` it is the classifier.

    Arguments: see :class:`~mmffnet.models.backbone.MixerBackbone`.

    Note:
        The official detectors and segmentors are trained with the statistics of all batch norms
        frozen, which is ``norm_eval=True``. The norms of the outputs, which are new there, have the
        statistics 0 and 1 then.

    Example:
        >>> import torch, mmffnet
        >>> from mmengine.registry import MODELS
        >>> backbone = MODELS.build(dict(type='mmffnet.CASViT', arch='xs')).eval()
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 48, 16, 24), (1, 56, 8, 12), (1, 112, 4, 6), (1, 220, 2, 3)]
    """

    arch_settings: ClassVar[dict[str, dict]] = {
        'xs': dict(depths=(2, 2, 4, 2), channels=(48, 56, 112, 220)),
        's': dict(depths=(3, 3, 6, 3), channels=(48, 64, 128, 256)),
        'm': dict(depths=(3, 3, 6, 3), channels=(64, 96, 192, 384)),
        't': dict(depths=(3, 3, 6, 3), channels=(96, 128, 256, 512)),
        'l': dict(depths=(4, 4, 8, 4), channels=(96, 128, 256, 512)),
    }
    arch_defaults: ClassVar[dict[str, Any]] = dict(
        token_mixer=dict(type='AdditiveAttention'), channel_mixer=dict(type='MLP')
    )
    default_out_norm_cfg: ClassVar = dict(type='BN')
    pre_norm: ClassVar = True
    default_init_cfg: ClassVar = []  # PyTorch's own
    official_names: ClassVar = CASVIT_NAMES
    left_over: ClassVar = r'(norm|head|dist_head)\d?\.'

    def make_stem(self, in_channels: int, out_channels: int) -> nn.Module:
        middle = max(out_channels // 2, 1)
        return Sequential(
            OrderedDict(
                conv1=self._halve(in_channels, middle),
                act1=nn.ReLU(),
                conv2=self._halve(middle, out_channels),
                act2=nn.ReLU(),
            )
        )

    def make_downsample(self, i: int, in_channels: int, out_channels: int) -> nn.Module:
        return self._halve(in_channels, out_channels) if i > 0 else nn.Identity()

    def _halve(self, in_channels: int, out_channels: int) -> nn.Module:
        return ConvNorm(in_channels, out_channels, 3, 2, norm_cfg=self.norm_cfg, bias=True)

    def make_branches(self, i: int) -> dict[str, dict[str, Any]]:
        local = dict(mixer=dict(type=LocalPerception), drop_path=False)
        return dict(local=local, **super().make_branches(i))

    def _checkpoint_filter(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # the mean of the two linear heads that some official classifiers have is linear as well
        for name in ('weight', 'bias'):
            head, second = f'{prefix}head.{name}', f'{prefix}dist_head.{name}'
            if {head, second} <= state_dict.keys():
                state_dict[head] = (state_dict[head] + state_dict.pop(second)) / 2
        super()._checkpoint_filter(state_dict, prefix, *args)
