"""Self-attention as a token mixer."""

import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MODELS
from ..arch import check_channels
from ..layers import NormConv


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
        check_channels('SelfAttention', channels, head_dim=head_dim)
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
