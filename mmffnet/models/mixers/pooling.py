"""Pooling as a token mixer."""

from torch import Tensor, nn

from ...registry import MODELS
from ..arch import check_odd


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
