"""The MetaMixer of the paper and its presets: two in FFNet, and the plain feed-forward network.

Paper: MetaMixer Is All You Need, https://arxiv.org/abs/2406.02021.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...registry import MODELS
from ..arch import check_channels, check_count, check_odd
from ..layers import ConvNorm, convolve_and_activate, depthwise_conv
from .build import build_act, build_mixer


@MODELS.register_module()
def PointwiseConv(
    channels: int,
    out_channels: int | None = None,
    expansion: int = 1,
    norm: bool = False,
    norm_cfg: dict | None = None,
) -> nn.Module:
    """A 1x1 convolution, an operation for :class:`MetaMixer`.

    Args:
        channels (int): Channels in.
        out_channels (int, optional): Channels out. Defaults to None, which is
            ``channels * expansion``.
        expansion (int): Channels out per channel in. Defaults to 1.
        norm (bool): Put a norm behind it in place of the bias. Defaults to False.
        norm_cfg (dict, optional): The norm. Defaults to ``dict(type='BN')``.
    """
    check_count('PointwiseConv: expansion', expansion)
    out_channels = out_channels or channels * expansion
    if norm:
        return ConvNorm(channels, out_channels, 1, norm_cfg=norm_cfg)
    return nn.Conv2d(channels, out_channels, 1)


@MODELS.register_module()
def DepthwiseConv(
    channels: int, kernel_size: int = 7, branches: str = 'plain', norm_cfg: dict | None = None
) -> nn.Module:
    """A depthwise convolution, an operation for :class:`MetaMixer`.

    Args:
        channels (int): Channels in and out.
        kernel_size (int): Odd kernel size. Defaults to 7.
        branches (str): Its form, see :func:`~mmffnet.models.layers.depthwise_conv`. Defaults to
            ``'plain'``.
        norm_cfg (dict, optional): The norm. Defaults to ``dict(type='BN')``.
    """
    return depthwise_conv(channels, kernel_size, branches, norm_cfg)


@MODELS.register_module()
class MetaMixer(nn.Module):
    """The query-key-value mechanism with its operations left open.

    ``value(act(key(query(x))))``. Self-attention and the feed-forward network are two of its cases;
    :class:`FFNifiedAttention`, :class:`ConvFFN` and :class:`MLP` are presets of this class.

    Args:
        channels (int): Channels in and out.
        query (dict, optional): Config of the operation that makes the query. Any registered module
            that takes ``channels`` is an operation; one that has ``out_channels`` may change their
            number. Defaults to None, which is the identity.
        key (dict, optional): The interaction of query and key. Defaults to None, likewise.
        value (dict, optional): The aggregation of the values, which gives ``channels`` again; its
            ``out_channels`` are that if it takes such an argument. Defaults to None, likewise.
        act_cfg (dict, optional): Activation. Defaults to ``dict(type='GELU')``.
        norm_cfg (dict, optional): Norm of the operations that take one. Defaults to
            ``dict(type='BN')``.

    Example:
        >>> token_mixer = dict(
        ...     type='mmffnet.MetaMixer',
        ...     query=dict(type='mmffnet.PointwiseConv', norm=True),
        ...     key=dict(type='mmffnet.DepthwiseConv', kernel_size=11, branches='pair'),
        ...     value=dict(type='mmffnet.DepthwiseConv', kernel_size=3),
        ... )
    """

    #: Names of the query, the key, the activation and the value among the modules
    names: ClassVar = ('query', 'key', 'act', 'value')

    def __init__(
        self,
        channels: int,
        query: dict | None = None,
        key: dict | None = None,
        value: dict | None = None,
        act_cfg: dict | None = None,
        norm_cfg: dict | None = None,
    ):
        super().__init__()
        kind = type(self).__name__
        check_channels(kind, channels)
        self.channels = width = channels
        defaults: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)

        def build(role: str, cfg: dict | None) -> nn.Module:
            if cfg is None:
                return nn.Identity()
            if not isinstance(cfg, dict) or 'type' not in cfg:
                raise ValueError(f'{kind}: {role} must be a dict with a type or None, got {cfg!r}')
            return build_mixer(cfg, width, **defaults)

        query_name, key_name, act_name, value_name = self.names
        for name, role, cfg in ((query_name, 'query', query), (key_name, 'key', key)):
            operation = build(role, cfg)
            width = getattr(operation, 'out_channels', width)
            self.add_module(name, operation)
        self.add_module(act_name, build_act(act_cfg))
        defaults['out_channels'] = channels
        operation = build('value', value)
        width = getattr(operation, 'out_channels', width)
        self.add_module(value_name, operation)
        if width != channels:
            raise ValueError(f'{kind}: value must give {channels} channels again, got {width}')

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return self._interact(x)
        for operation in self.children():  # TorchScript finds no modules by their names
            x = operation(x)
        return x

    @torch.jit.unused
    def _interact(self, x: Tensor) -> Tensor:
        query, key, act, value = (getattr(self, name) for name in self.names)
        return value(convolve_and_activate(key, act, query(x)))


@MODELS.register_module()
class FFNifiedAttention(MetaMixer):
    """Self-attention with convolutions in place of dot products (the paper's FFNification).

    A 1x1 convolution makes the query; a depthwise convolution with a
    learned, static key takes the place of the product with the keys of all positions; GELU that of
    the softmax; a second depthwise convolution that of the weighted sum of the values.

    Args:
        channels (int): Channels in and out.
        kernel_size (int): Size of both depthwise kernels. Defaults to 7.
        branches (str, optional): Form of the depthwise convolutions, see
            :func:`~mmffnet.models.layers.depthwise_conv`. Defaults to ``'plain'`` for kernels
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
        check_odd('FFNifiedAttention: kernel_size', kernel_size)
        branches = branches or ('plain' if kernel_size <= 3 else 'pair')
        depthwise = dict(type=DepthwiseConv, kernel_size=kernel_size, branches=branches)
        super().__init__(
            channels,
            query=dict(type=PointwiseConv, norm=True),
            key=depthwise,
            value=depthwise,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        )


@MODELS.register_module()
class ConvFFN(MetaMixer):
    """ConvNeXt-like channel mixer: depthwise convolution, expansion, activation, projection.

    Args:
        channels (int): Channels in and out.
        kernel_size (int): Size of the depthwise kernel. Defaults to 7.
        expansion (int): Hidden channels per channel. Defaults to 3.
        branches (str, optional): Form of the depthwise convolution, see
            :func:`~mmffnet.models.layers.depthwise_conv`. Defaults to ``'norm'`` for kernels
            up to 3 and ``'pair'`` above.
        norm_cfg (dict, optional): Norm of the depthwise convolution. Defaults to
            ``dict(type='BN')``.
        act_cfg (dict, optional): Activation. Defaults to ``dict(type='GELU')``.
    """

    names: ClassVar = ('dwconv', 'expand', 'act', 'project')

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        expansion: int = 3,
        branches: str | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
    ):
        check_odd('ConvFFN: kernel_size', kernel_size)
        check_count('ConvFFN: expansion', expansion)
        branches = branches or ('norm' if kernel_size <= 3 else 'pair')
        super().__init__(
            channels,
            query=dict(type=DepthwiseConv, kernel_size=kernel_size, branches=branches),
            key=dict(type=PointwiseConv, expansion=expansion),
            value=dict(type=PointwiseConv),
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        )


@MODELS.register_module()
class MLP(MetaMixer):
    """The feed-forward network of transformers, a channel mixer: expand, activate, project.

    Args:
        channels (int): Channels in and out.
        expansion (int): Hidden channels per channel. Defaults to 4.
        act_cfg (dict, optional): Activation. Defaults to ``dict(type='GELU')``.
    """

    names: ClassVar = ('query', 'expand', 'act', 'project')

    def __init__(self, channels: int, expansion: int = 4, act_cfg: dict | None = None):
        check_count('MLP: expansion', expansion)
        super().__init__(
            channels,
            key=dict(type=PointwiseConv, expansion=expansion),
            value=dict(type=PointwiseConv),
            act_cfg=act_cfg,
        )
