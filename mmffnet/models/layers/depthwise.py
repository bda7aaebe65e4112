"""The depthwise convolution as a layer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.depthwise import depthwise_conv2d


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with a group for each channel, which runs on the fastest implementation.

    See :func:`~mmffnet.ops.depthwise.depthwise_conv2d`.

    Args:
        in_channels (int): Channels in.
        out_channels (int): Channels out, a multiple of ``in_channels``.
        kernel_size (int or tuple): Size of the kernel.
        stride (int): Stride. Defaults to 1.
        padding (int or tuple): Zeros around the map. Defaults to 0.
        bias (bool): Whether there is a bias. Defaults to True.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, groups=in_channels, bias=bias
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.jit.is_scripting():
            return F.conv2d(input, weight, bias, self.stride, self.padding, 1, self.groups)
        else:  # noqa: RET505 (TorchScript must not see it)
            geometry: Any = (self.stride, self.padding, self.groups)
            return depthwise_conv2d(input, weight, bias, *geometry)
