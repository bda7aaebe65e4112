"""Token mixers and channel mixers, the two exchangeable parts of a MetaMixer block.

A mixer maps a feature map ``(N, C, H, W)`` to one of the same shape; the block around it adds the
residual connection, the layer scale and the drop path. Any module that a registry of models holds
serves: it is built with ``channels`` and the arguments of its config, and with the network's
``norm_cfg`` and ``act_cfg`` if its signature names them. A name without a scope means a mixer of
ours if there is one of that name.
"""

import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from torch import Tensor, nn

from ..registry import MODELS
from .arch import check_count, check_odd
from .reparam import ConvNorm, NormConv, depthwise_conv


@MODELS.register_module()
class FFNifiedAttention(nn.Module):
    """Self-attention with convolutions in place of dot products (the paper's FFNification).

    ``value(act(key(query(x))))``: a 1x1 convolution makes the query; a depthwise convolution with a
    learned, static key takes the place of the product with the keys of all positions; GELU that of
    the softmax; a second depthwise convolution that of the weighted sum of the values.

    Args:
        channels (int): Channels in and out.
        kernel_size (int): Size of both depthwise kernels. Defaults to 7.
        branches (str, optional): Form of the depthwise convolutions, see
            :func:`~mmffnet.models.reparam.depthwise_conv`. Defaults to ``'plain'`` for kernels
            up to 3 and ``'pair'`` above.
        norm_cfg (dict, optional): Norm of the convolutions. Defaults to ``dict(type='BN')``.
        act_cfg (dict, optional): Activation. Defaults to ``dict(type='GELU')``.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        branches: str | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
    ):
        super().__init__()
        check_odd('FFNifiedAttention: kernel_size', kernel_size)
        branches = branches or ('plain' if kernel_size <= 3 else 'pair')
        self.query = ConvNorm(channels, channels, 1, norm_cfg=norm_cfg)
        self.key = depthwise_conv(channels, kernel_size, branches, norm_cfg)
        self.act = build_act(act_cfg)
        self.value = depthwise_conv(channels, kernel_size, branches, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(self.act(self.key(self.query(x))))


@MODELS.register_module()
class ConvFFN(nn.Module):
    """ConvNeXt-like channel mixer: depthwise convolution, expansion, activation, projection.

    Args:
        channels (int): Channels in and out.
        kernel_size (int): Size of the depthwise kernel. Defaults to 7.
        expansion (int): Hidden channels per channel. Defaults to 3.
        branches (str, optional): Form of the depthwise convolution, see
            :func:`~mmffnet.models.reparam.depthwise_conv`. Defaults to ``'norm'`` for kernels
            up to 3 and ``'pair'`` above.
        norm_cfg (dict, optional): Norm of the depthwise convolution. Defaults to
            ``dict(type='BN')``.
        act_cfg (dict, optional): Activation. Defaults to ``dict(type='GELU')``.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        expansion: int = 3,
        branches: str | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
    ):
        super().__init__()
        check_odd('ConvFFN: kernel_size', kernel_size)
        check_count('ConvFFN: expansion', expansion)
        branches = branches or ('norm' if kernel_size <= 3 else 'pair')
        self.dwconv = depthwise_conv(channels, kernel_size, branches, norm_cfg)
        self.expand = nn.Conv2d(channels, channels * expansion, 1)
        self.act = build_act(act_cfg)
        self.project = nn.Conv2d(channels * expansion, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.act(self.expand(self.dwconv(x))))


@MODELS.register_module()
class Pooling(nn.Module):
    """PoolFormer's token mixer: the average over the neighbourhood, minus the input.

    At the border only the valid positions are averaged.

    Args:
        channels (int): Channels in and out.
        pool_size (int): Odd size of the neighbourhood. Defaults to 3.
    """

    def __init__(self, channels: int, pool_size: int = 3):
        super().__init__()
        check_odd('Pooling: pool_size', pool_size)
        self.pool = nn.AvgPool2d(pool_size, 1, pool_size // 2, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x


@MODELS.register_module()
class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions of the map, for the late stages of hybrids.

    The FFNet block has no norm in front of its mixers, hence attention brings one: it folds into
    the projection to queries, keys and values.

    Args:
        channels (int): Channels in and out, a multiple of ``head_dim``.
        head_dim (int): Channels per head. Defaults to 32.
        norm_cfg (dict, optional): Norm of the input. Defaults to ``dict(type='BN')``.
    """

    def __init__(self, channels: int, head_dim: int = 32, norm_cfg: dict | None = None):
        super().__init__()
        check_count('SelfAttention: head_dim', head_dim)
        if channels % head_dim:
            raise ValueError(
                f'SelfAttention: channels must be a multiple of head_dim, '
                f'got channels={channels} and head_dim={head_dim}'
            )
        self.head_dim = head_dim
        self.qkv = NormConv(channels, 3 * channels, norm_cfg=norm_cfg)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        # (3, N, heads, positions, head_dim)
        qkv = self.qkv(x).reshape(n, 3, c // self.head_dim, self.head_dim, h * w)
        q, k, v = qkv.permute(1, 0, 2, 4, 3).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.transpose(2, 3).reshape(n, c, h, w)
        return self.project(y)


def build_act(act_cfg: dict | None) -> nn.Module:
    """Builds the activation of a config, exact (erf) GELU where there is none."""
    return build_activation_layer(act_cfg or dict(type='GELU'))
