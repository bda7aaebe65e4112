"""Convolution + batch-norm building blocks that fold into one convolution."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...ops.depthwise import depthwise_conv2d, depthwise_norms, fuses
from ...ops.tracing import is_observed
from ..arch import check_layer_cfg, check_odd
from .depthwise import DepthwiseConv2d

#: Where a module keeps what listens to it, and with which arguments
_FORWARD_HOOKS = (
    '_forward_hooks',
    '_forward_hooks_with_kwargs',
    '_forward_hooks_always_called',
    '_forward_pre_hooks',
    '_forward_pre_hooks_with_kwargs',
)

#: The forms that a depthwise convolution can take, see :func:`depthwise_conv`.
_BRANCHES = ('plain', 'norm', 'pair', 'strips')


class FusibleBlock(nn.Module):
    """A block that equals one convolution at inference time.

    ``fuse`` is the method name that timm's ``reparameterize_model`` looks for too.
    """

    def fuse(self) -> nn.Conv2d:
        """Returns the equivalent convolution, with this block's dtype, device and flags."""
        own = self._backward_hooks or self._backward_pre_hooks or 'forward' in vars(self)
        if own or self._is_observed_inside():
            raise ValueError(
                f'{type(self).__name__} cannot be folded: it has backward hooks or a forward of '
                'its own, or its parts have hooks, which would be gone; remove them first'
            )
        kernel, bias, like = self.folded()
        conv = conv_like(like, kernel, bias)
        conv._register_load_state_dict_pre_hook(FuseOnLoad(self))
        for hooks in _FORWARD_HOOKS:
            getattr(conv, hooks).update(getattr(self, hooks))
        return conv.train(self.training)

    def folded(self) -> tuple[Tensor, Tensor, nn.Conv2d]:
        """Returns kernel and bias in float64, and a convolution to take all else from."""
        raise NotImplementedError(f'{type(self).__name__} must define folded()')

    def _is_observed_inside(self) -> bool:
        return is_observed(*(m for m in self.modules() if m is not self))

    @torch.jit.unused
    def _fused(self, x: Tensor, gelu: bool = False) -> Tensor | None:
        """The sum of the conv-norm branches, where kernels compute all of them at once."""
        if not fuses(x):  # first, as it is asked in each forward pass of each block
            return None
        parts: list[Any] = [self] if isinstance(self, ConvNorm) else list(self.children())
        if not all(isinstance(part, ConvNorm) for part in parts):
            return None
        if not isinstance(parts[0].conv, DepthwiseConv2d):
            return None
        if self._is_observed_inside():
            return None
        convs, norms = zip(*((part.conv, part.norm) for part in parts), strict=True)
        return depthwise_norms(x, convs, norms, gelu)


class ConvNorm(FusibleBlock):
    """Convolution, then a norm. 'Same' padding at stride 1.

    Args:
        in_channels (int): Channels in.
        out_channels (int): Channels out.
        kernel_size (int or tuple): Odd kernel size.
        stride (int): Stride. Defaults to 1.
        groups (int): Convolution groups. Defaults to 1.
        norm_cfg (dict, optional): The norm. Defaults to ``dict(type='BN')``.
        dilation (int): Dilation of the kernel. Defaults to 1.
        bias (bool): Give the convolution a bias, as some official weights have it although the norm
            has one. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        groups: int = 1,
        norm_cfg: dict | None = None,
        dilation: int = 1,
        bias: bool = False,
    ):
        super().__init__()
        self.out_channels = out_channels
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        padding = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2))
        conv: nn.Conv2d
        if groups == in_channels > 1 and dilation == 1:
            conv = DepthwiseConv2d(in_channels, out_channels, kernel, stride, padding, bias=bias)
        else:
            conv = nn.Conv2d(
                in_channels, out_channels, kernel, stride, padding, dilation, groups, bias
            )
        self.conv = conv
        self.norm = build_norm(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            fused = self._fused(x)
            if fused is not None:
                return fused
        return self.norm(self.conv(x))

    def folded(self) -> tuple[Tensor, Tensor, nn.Conv2d]:
        return *fold_norm(self.conv, self.norm), self.conv


class NormConv(FusibleBlock):
    """A norm, then a 1x1 convolution without bias; with ``residual`` the input is added.

    Args:
        in_channels (int): Channels in.
        out_channels (int): Channels out.
        residual (bool): Add the input to the output. Defaults to False.
        norm_cfg (dict, optional): The norm. Defaults to ``dict(type='BN')``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        residual: bool = False,
        norm_cfg: dict | None = None,
    ):
        super().__init__()
        if residual and in_channels != out_channels:
            raise ValueError(
                f'NormConv: residual=True needs as many channels out as in, '
                f'got {in_channels} and {out_channels}'
            )
        self.residual = residual
        self.norm = build_norm(norm_cfg, in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.norm(x))
        return x + y if self.residual else y

    def folded(self) -> tuple[Tensor, Tensor, nn.Conv2d]:
        scale, shift = _scale_and_shift(self.norm)
        weight = self.conv.weight.detach().to(scale.dtype)
        bias = weight.flatten(1) @ shift
        kernel = weight * scale[:, None, None]
        if self.residual:
            kernel = (
                kernel
                + torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)[..., None, None]
            )
        return kernel, bias, self.conv


class MultiBranchDWConv(FusibleBlock):
    """Parallel depthwise conv-norm branches on one input, summed.

    * ``pair``: a large kernel and a small one of about half its size (3 beside 7).
    * ``strips``: a large kernel ``k``, a small one of ``k - 4`` (none beside 3), one row ``1 x k``
      and one column ``k x 1``.

    Args:
        in_channels (int): Channels in.
        kernel_size (int): Odd size of the large kernel.
        branches (str): ``'pair'`` or ``'strips'``. Defaults to ``'pair'``.
        out_channels (int, optional): Channels out, a multiple of ``in_channels``. Defaults to as
            many as in.
        stride (int): Stride. Defaults to 1.
        norm_cfg (dict, optional): The norm. Defaults to ``dict(type='BN')``.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        branches: str = 'pair',
        out_channels: int | None = None,
        stride: int = 1,
        norm_cfg: dict | None = None,
    ):
        super().__init__()
        k = kernel_size
        self.branches = branches
        out_channels = out_channels or in_channels
        if out_channels % in_channels:
            raise ValueError(
                f'a depthwise convolution gives a multiple of its channels: {out_channels} out of '
                f'{in_channels} is none'
            )
        kernels = {'large': (k, k)}
        if branches == 'pair':
            # the official k // 2 where that is odd (7 -> 3, 11 -> 5), the next odd one otherwise
            small = k // 2 | 1
            kernels['small'] = (small, small)
        elif branches == 'strips':
            if k > 4:
                kernels['small'] = (k - 4, k - 4)
            kernels.update(row=(1, k), column=(k, 1))
        else:
            raise ValueError(f"branches must be 'pair' or 'strips', got {branches!r}")
        for name, kernel in kernels.items():
            branch = ConvNorm(
                in_channels,
                out_channels,
                kernel,
                stride,
                groups=in_channels,
                norm_cfg=norm_cfg,
            )
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            fused = self._fused(x)
            if fused is not None:
                return fused
        y = self.large(x)  # type: ignore[operator]
        for name, branch in self.named_children():
            if name != 'large':
                y = y + branch(x)
        return y

    def folded(self) -> tuple[Tensor, Tensor, nn.Conv2d]:
        parts = [branch.folded() for branch in self.children()]  # type: ignore[operator]
        kernel, bias, large = parts[0]
        height, width = kernel.shape[-2:]
        for other, other_bias, _ in parts[1:]:
            dy, dx = (height - other.shape[-2]) // 2, (width - other.shape[-1]) // 2
            kernel = kernel + nn.functional.pad(other, (dx, dx, dy, dy))
            bias = bias + other_bias
        return kernel, bias, large


def depthwise_conv(
    channels: int, kernel_size: int, branches: str, norm_cfg: dict | None = None
) -> nn.Module:
    """Builds a depthwise convolution in one of its forms.

    Args:
        channels (int): Channels in and out.
        kernel_size (int): Odd kernel size.
        branches (str): ``'plain'`` (with bias, no norm), ``'norm'`` (conv-norm), ``'pair'`` or
            ``'strips'`` (see :class:`MultiBranchDWConv`).
        norm_cfg (dict, optional): The norm. Defaults to ``dict(type='BN')``.
    """
    check_odd('kernel_size', kernel_size)
    if branches not in _BRANCHES:
        raise ValueError(f'branches must be one of {_BRANCHES}, got {branches!r}')
    if branches == 'plain':
        return DepthwiseConv2d(channels, channels, kernel_size, padding=kernel_size // 2)
    if branches == 'norm':
        return ConvNorm(channels, channels, kernel_size, groups=channels, norm_cfg=norm_cfg)
    return MultiBranchDWConv(channels, kernel_size, branches, norm_cfg=norm_cfg)


def convolve_and_activate(conv: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """``act(conv(x))``, at once where there is a kernel for both."""
    if fuses(x) and is_exact_gelu(act) and not is_observed(conv, act):
        if isinstance(conv, FusibleBlock):
            y = conv._fused(x, gelu=True)
            if y is not None:
                return y
        elif type(conv) is DepthwiseConv2d:
            geometry: Any = dict(stride=conv.stride, padding=conv.padding)
            return depthwise_conv2d(x, conv.weight, conv.bias, **geometry, gelu=True)
    return act(conv(x))


def is_exact_gelu(act: nn.Module) -> bool:
    return type(act) is nn.GELU and act.approximate == 'none'


def build_norm(norm_cfg: dict | None, channels: int, name: str = 'norm_cfg') -> nn.Module:
    """Builds the norm of a config, batch norm where there is none; ``name`` is for errors."""
    norm_cfg = norm_cfg or dict(type='BN')
    check_layer_cfg(name, norm_cfg)
    try:
        return build_norm_layer(norm_cfg, channels)[1]
    except (AssertionError, TypeError, ValueError) as error:  # mmcv asserts some without a word
        reason = str(error) or 'an argument is missing'
        raise ValueError(f'{name}: {dict(norm_cfg)} for {channels} channels: {reason}') from error


def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Folds the batch norm that follows a convolution into kernel and bias (float64)."""
    scale, shift = _scale_and_shift(norm)
    kernel = conv.weight.detach().to(scale.dtype) * scale[:, None, None, None]
    if conv.bias is not None:
        shift = shift + conv.bias.detach().to(scale.dtype) * scale
    return kernel, shift


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """An inference-time batch norm as ``scale * x + shift``.

    Computed in float64, so that a float32 or half network loses nothing but the final rounding.
    """
    if not can_fold(norm):
        raise ValueError(
            f'only a batch norm with running statistics can be folded into a convolution, '
            f'not {type(norm).__name__}; keep the model as it is (deploy=False)'
        )
    assert isinstance(norm, _BatchNorm)
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    # Apple's GPUs have no float64
    dtype = torch.float32 if mean.device.type == 'mps' else torch.float64
    scale = (var.to(dtype) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().to(dtype)
    shift = -mean.to(dtype) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().to(dtype)
    return scale, shift


def can_fold(norm: nn.Module) -> bool:
    # `_BatchNorm` also covers SyncBN and what mmengine puts in its place on one device
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def conv_like(conv: nn.Conv2d, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
    weight = conv.weight
    sizes: Any = (conv.kernel_size, conv.stride, conv.padding)
    with torch.device('meta'):
        fused: nn.Conv2d
        if isinstance(conv, DepthwiseConv2d):
            fused = DepthwiseConv2d(conv.in_channels, conv.out_channels, *sizes)
        else:
            sizes += (conv.dilation, conv.groups, True, conv.padding_mode)
            fused = nn.Conv2d(conv.in_channels, conv.out_channels, *sizes)
    fused.weight = nn.Parameter(kernel.to(weight.dtype), requires_grad=weight.requires_grad)
    fused.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)
    return fused


class FuseOnLoad:
    """Lets a fused convolution load the parameters of the block that it came from.

    So a network built with ``deploy=True`` loads training checkpoints as well as fused ones.
    A hook on ``holder``: ``conv`` is the path from there to the fused convolution.
    """

    def __init__(self, block: FusibleBlock, conv: str = ''):
        # only structure is needed to fuse what a checkpoint brings: no memory, and nobody listens
        memo: dict[int, Any] = {id(p): nn.Parameter(p.to('meta')) for p in block.parameters()}
        memo |= {id(b): b.to('meta') for b in block.buffers()}
        hooks = (*_FORWARD_HOOKS, '_backward_hooks', '_backward_pre_hooks')
        memo |= {id(getattr(m, name)): OrderedDict() for m in block.modules() for name in hooks}
        self.block = copy.deepcopy(block, memo)
        self.conv = conv

    def __call__(self, state_dict: dict, prefix: str, *args: Any) -> None:
        needed = [k for k in self.block.state_dict() if not k.endswith('num_batches_tracked')]
        if any(prefix + key not in state_dict for key in needed):
            return
        first = state_dict[prefix + needed[0]]
        dtype = first.dtype
        block = copy.deepcopy(self.block).to(dtype).to_empty(device=first.device)
        own = {k: state_dict.get(prefix + k) for k in self.block.state_dict()}
        local_metadata, *_, error_msgs = args
        try:
            block.load_state_dict({k: v for k, v in own.items() if v is not None}, strict=False)
        except RuntimeError as error:
            error_msgs.append(f'below {prefix.rstrip(".")}: {error}')
            return
        for key in own:
            state_dict.pop(prefix + key, None)
        kernel, bias, _ = block.folded()
        if local_metadata.get('assign_to_params_buffers'):  # otherwise loading casts
            kernel, bias = kernel.to(dtype), bias.to(dtype)
        state_dict[f'{prefix}{self.conv}weight'] = kernel
        state_dict[f'{prefix}{self.conv}bias'] = bias
