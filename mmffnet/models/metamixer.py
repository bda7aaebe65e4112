"""MetaMixer: the block of two residual mixers, and the staged backbone made of such blocks.

Nothing here knows which mixers, stem or downsampling a network uses; `ffnet.py` says that.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.utils.checkpoint as cp
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath as MMCVDropPath
from mmengine.model import BaseModule, ModuleList, Sequential
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoint import load_pretrained
from ..config_types import find_type
from ..registry import MODELS
from .arch import (
    MixerCfg,
    check_count,
    check_fraction,
    check_init_cfg,
    check_layer_cfg,
    is_pretrained,
    resolve_arch,
    resolve_mixers,
    resolve_out_indices,
)
from .mixers import build_act
from .norm import CHANNEL_LAYER_NORM
from .reparam import FusibleBlock, reparameterize


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor.

    Args:
        channels (int): Number of channels.
        init_value (float): Initial factor.
    """

    def __init__(self, channels: int, init_value: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class DropPath(MMCVDropPath):
    """mmcv's drop path for ``(N, C, H, W)``, written so that it can be scripted and traced."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.drop_prob
        return x.div(keep) * (keep + torch.rand_like(x[:, :1, :1, :1])).floor()


class MetaMixerBlock(BaseModule):
    """Two residual units: ``x + token_mixer(x)``, then ``x + channel_mixer(x)``.

    Each branch has its own layer scale and drop path.

    Args:
        channels (int): Channels in and out.
        token_mixer (dict): Config of the token mixer.
        channel_mixer (dict): Config of the channel mixer.
        drop_path (float): Probability of dropping a branch. Defaults to 0.
        layer_scale_init_value (float, optional): Initial layer scale; None for no layer scale.
            Defaults to None.
        post_act (bool): Put an activation after each addition. Defaults to False.
        norm_cfg (dict, optional): Norm of the mixers. Defaults to None, which is batch norm.
        act_cfg (dict, optional): Activation of the mixers. Defaults to None, which is GELU.
        init_cfg (dict, optional): Initialisation. Defaults to None.
    """

    def __init__(
        self,
        channels: int,
        token_mixer: dict,
        channel_mixer: dict,
        drop_path: float = 0.0,
        layer_scale_init_value: float | None = None,
        post_act: bool = False,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)

        def scale() -> nn.Module:
            if layer_scale_init_value is None:
                return nn.Identity()
            return LayerScale(channels, layer_scale_init_value)

        defaults = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.token_mixer = build_mixer(token_mixer, channels, **defaults)
        self.token_scale = scale()
        self.channel_mixer = build_mixer(channel_mixer, channels, **defaults)
        self.channel_scale = scale()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.post_act = build_act(act_cfg) if post_act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.post_act(x + self.drop_path(self.token_scale(self.token_mixer(x))))
        return self.post_act(x + self.drop_path(self.channel_scale(self.channel_mixer(x))))


def build_mixer(cfg: dict, channels: int, **defaults: Any) -> nn.Module:
    """Builds a mixer from its config.

    Args:
        cfg (dict): ``type`` and the mixer's own arguments.
        channels (int): Channels in and out.
        **defaults: Arguments of the whole network; a mixer gets those that its signature names.
    """
    kwargs = dict(cfg)
    kind = kwargs.pop('type')
    ours = MODELS.module_dict.get(kind) if isinstance(kind, str) else None
    mixer = ours or find_type(kind)  # a mixer of ours needs no scope
    if mixer is None:
        raise ValueError(
            f'mixer {kind!r} is not registered in MODELS: import the module that registers '
            f"it (custom_imports), or name its registry ('mmdet.{kind}'), or use one of "
            f'mmffnet.models.mixers'
        )
    wanted = inspect.signature(mixer).parameters
    kwargs = {**{k: v for k, v in defaults.items() if k in wanted}, **kwargs}
    try:
        inspect.signature(mixer).bind(channels=channels, **kwargs)
    except TypeError as error:
        raise ValueError(f'mixer {cfg["type"]!r}: {error}; it takes {", ".join(wanted)}') from None
    return mixer(channels=channels, **kwargs)


class Stage(BaseModule):
    """Downsampling (none in the first stage) and the blocks of one resolution.

    Args:
        downsample (nn.Module): Makes the stage's resolution and width.
        blocks (list[MetaMixerBlock]): The blocks.
        with_cp (bool): Recompute the blocks in the backward pass to save memory.
    """

    def __init__(self, downsample: nn.Module, blocks: list[MetaMixerBlock], with_cp: bool):
        super().__init__()
        self.downsample = downsample
        self.blocks = Sequential(*blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if not torch.jit.is_scripting() and self.with_cp and self.training:
            return self._checkpointed(x)
        return self.blocks(x)

    @torch.jit.unused
    def _checkpointed(self, x: Tensor) -> Tensor:
        # a compiler decides for itself what to keep and what to compute again
        if _is_traced(x) or not torch.is_grad_enabled():
            return self.blocks(x)
        for block in self.blocks:
            x = cp.checkpoint(
                block,
                x,
                use_reentrant=False,
                context_fn=lambda block=block: (  # type: ignore[misc]
                    contextlib.nullcontext(),
                    _keep_statistics(block),
                ),
            )
        return x


def _is_traced(x: Any) -> bool:
    """Whether the calls make a graph, in which shapes are a given and a check only adds guards."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or isinstance(x, torch.fx.Proxy)


class _SkeletonTracer(torch.fx.Tracer):
    """Traces the modules of mmengine, which cannot be scripted, and calls all others as are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, BaseModule)


@contextlib.contextmanager
def _keep_statistics(module: nn.Module) -> Iterator[None]:
    """Lets batch norms run without updating their statistics.

    For the second forward pass of gradient checkpointing: the first one has updated them already.
    The statistics are exchanged for copies, as the pass must otherwise be the same to autograd.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    buffers = [dict(norm._buffers) for norm in norms]
    for norm, kept in zip(norms, buffers, strict=True):
        norm._buffers.update({k: None if v is None else v.clone() for k, v in kept.items()})
    try:
        yield
    finally:
        for norm, kept in zip(norms, buffers, strict=True):
            norm._buffers.update(kept)


class MetaMixer(BaseModule):
    """Backbone skeleton: a stem and stages of MetaMixer blocks, with multi-scale outputs.

    Subclasses give the table of architectures (``arch_settings``), :meth:`make_stem` and
    :meth:`make_downsample`.

    Args:
        arch (str or dict): A name in ``arch_settings`` or a dict with

            - **depths** (list[int]): Blocks per stage.
            - **channels** (list[int]): Channels per stage.
            - and optionally, each with a default: **stem_channels** (int), **token_mixer** and
              **channel_mixer** (dict, or list with a dict per stage), **layer_scale_init_value**
              (float or None).
        in_channels (int): Channels of the input image. Defaults to 3.
        out_indices (int or Sequence[int]): Stages whose maps are returned, ascending. Stages
            after the last one are not built. Defaults to ``(0, 1, 2, 3)``.
        out_norm_cfg (dict, optional): Norm of each returned map (the next stage gets the map
            without it). Defaults to LayerNorm over the channels, ``eps=1e-6``; None for none;
            ``dict(type='BN')`` with ``out_indices=3`` is the classifier.
        drop_path_rate (float): Drop path of the last block, growing linearly from 0 at the first.
            Defaults to 0.2.
        layer_scale_init_value (float, optional): Initial layer scale, 0 for no layer scale.
            Defaults to None, which is what ``arch`` says.
        token_mixer (dict or list, optional): Replaces the token mixers of ``arch``: one config for
            all stages, or a list with one per stage, where None keeps the stage's own. A dict
            without ``type`` changes arguments of the one that is there. Defaults to None.
        channel_mixer (dict or list, optional): The same for the channel mixers. Defaults to None.
        norm_cfg (dict): Norm of every convolution. Defaults to ``dict(type='BN')``.
        act_cfg (dict): Activation. Defaults to ``dict(type='GELU')`` (exact).
        frozen_stages (int): -1 freezes nothing, 0 the stem, k the stem and the first k stages.
            Frozen parts keep weights and statistics. Defaults to -1.
        norm_eval (bool): Keep batch norms in eval mode while training. Defaults to False.
        with_cp (bool): Recompute blocks in the backward pass to save memory; gradients and
            running statistics are the same. Without effect under ``torch.compile``, which plans
            its own memory, and in traced and scripted models. Defaults to False.
        deploy (bool): Build the re-parameterised network; it loads checkpoints of both forms.
            Defaults to False.
        init_cfg (dict or list[dict], optional): ``dict(type='Pretrained', checkpoint=...)`` takes
            a file, an URL or a short name (``mmffnet://ffnet2``), official or ours; see
            :func:`mmffnet.load_pretrained` for its further arguments. Defaults to None: truncated
            normal with std 0.02, biases 0.
    """

    arch_settings: ClassVar[dict[str, dict]] = {}
    #: What an arch dict may leave out
    arch_defaults: ClassVar[dict[str, Any]] = {}
    #: The smallest input side that leaves something at every stage
    min_size = 32

    def __init__(
        self,
        arch: str | dict,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        out_norm_cfg: dict | None = CHANNEL_LAYER_NORM,
        drop_path_rate: float = 0.2,
        layer_scale_init_value: float | None = None,
        token_mixer: MixerCfg = None,
        channel_mixer: MixerCfg = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        cfgs = list(init_cfg or []) if isinstance(init_cfg, list | tuple | None) else [init_cfg]
        check_init_cfg(cfgs, list(inspect.signature(load_pretrained).parameters)[1:])
        self._pretrained = [cfg for cfg in cfgs if is_pretrained(cfg)]
        for name, cfg in dict(
            norm_cfg=norm_cfg, act_cfg=act_cfg, out_norm_cfg=out_norm_cfg
        ).items():
            check_layer_cfg(name, cfg)
        if len(cfgs) == len(self._pretrained):  # what a checkpoint leaves out is initialised too
            cfgs.insert(0, dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0))
        super().__init__(cfgs)
        settings = resolve_arch(type(self).__name__, arch, self.arch_settings, self.arch_defaults)
        depths, channels = settings['depths'], settings['channels']
        token_mixers, channel_mixers = (
            resolve_mixers(name, settings[name], override, len(depths))
            for name, override in (('token_mixer', token_mixer), ('channel_mixer', channel_mixer))
        )
        if layer_scale_init_value is None:
            layer_scale_init_value = settings['layer_scale_init_value'] or 0
        if not isinstance(layer_scale_init_value, int | float) or layer_scale_init_value < 0:
            raise ValueError(
                f'layer_scale_init_value must be a number, 0 for no layer scale; '
                f'got {layer_scale_init_value!r}'
            )
        check_fraction('drop_path_rate', drop_path_rate)
        check_count('in_channels', in_channels)

        self.arch = arch if isinstance(arch, str) else 'custom'
        self.in_channels = in_channels
        self.norm_cfg, self.act_cfg = norm_cfg, act_cfg
        self.norm_eval = norm_eval
        self.out_indices = resolve_out_indices(out_indices, len(depths))
        num_stages = self.out_indices[-1] + 1
        self.frozen_stages = frozen_stages
        if type(frozen_stages) is not int or not -1 <= frozen_stages <= num_stages:
            raise ValueError(
                f'frozen_stages must be -1 (nothing), 0 (the stem) or 1..{num_stages} (the stem '
                f'and that many stages), got {frozen_stages!r}'
            )

        self.depths = tuple(depths[:num_stages])
        self.channels = tuple(channels[:num_stages])
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        self.stem = self.make_stem(in_channels, settings['stem_channels'], channels[0])
        self.stages = ModuleList()
        for i in range(num_stages):
            downsample = self.make_downsample(channels[i - 1], channels[i]) if i else nn.Identity()
            blocks = [
                MetaMixerBlock(
                    channels[i],
                    token_mixers[i],
                    channel_mixers[i],
                    drop_path=next(rates),
                    layer_scale_init_value=layer_scale_init_value or None,
                    norm_cfg=norm_cfg,
                    act_cfg=act_cfg,
                )
                for _ in range(depths[i])
            ]
            self.stages.append(Stage(downsample, blocks, with_cp))
        if out_norm_cfg is not None:
            for i in self.out_indices:
                self.add_module(f'norm{i}', build_norm_layer(out_norm_cfg, channels[i])[1])
        if deploy:
            reparameterize(self)
        self._freeze_stages()

    def make_stem(self, in_channels: int, stem_channels: int, out_channels: int) -> nn.Module:
        """Builds the part that turns the image into the first stage's input."""
        raise NotImplementedError(f'{type(self).__name__} must define make_stem()')

    def make_downsample(self, in_channels: int, out_channels: int) -> nn.Module:
        """Builds the part that halves the resolution before a stage."""
        raise NotImplementedError(f'{type(self).__name__} must define make_downsample()')

    @property
    def deploy(self) -> bool:
        """Whether the network is re-parameterised."""
        return not any(isinstance(m, FusibleBlock) for m in self.modules())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not _is_traced(x):
            self._check_input(x)
        x = self.stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                norm = getattr(self, f'norm{i}', None)
                outs.append(x if norm is None else norm(x))
        return tuple(outs)

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles: its language has no attributes of computed names.

        Where the backbone is a part of what is scripted, torch puts this in its place for good.
        """
        graph = _SkeletonTracer().trace(self)
        next(iter(reversed(graph.nodes))).type = None  # nor has it tuples of unknown length
        return torch.fx.GraphModule(self, graph)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay besides biases and 1-D tensors."""
        return {f'{n}.scale' for n, m in self.named_modules() if isinstance(m, LayerScale)}

    def _check_input(self, x: Tensor) -> None:
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f'{type(self).__name__} takes a tensor of floating point, got {kind}')
        if x.ndim != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < self.min_size:
            raise ValueError(
                f'{type(self).__name__} takes (N, {self.in_channels}, H, W) with H and W of at '
                f'least {self.min_size}, got {tuple(x.shape)}'
            )

    def init_weights(self) -> None:
        """Initialises the weights; a ``Pretrained`` checkpoint must match or it is an error."""
        first = not self.is_init
        kept = self.init_cfg  # type: ignore[has-type]
        self.init_cfg: Any = [cfg for cfg in kept if cfg not in self._pretrained]
        try:
            super().init_weights()
        finally:
            self.init_cfg = kept
        for cfg in self._pretrained if first else ():
            load_pretrained(self, **{k: v for k, v in cfg.items() if k != 'type'})
            if hasattr(self, '_params_init_info'):
                update_init_info(self, init_info=f'Pretrained: {cfg["checkpoint"]}')

    def _dump_init_info(self) -> None:
        # mmengine's list of all tensors, when the checkpoint is not loaded yet; load_pretrained
        # reports what arrived
        if not self._pretrained:
            super()._dump_init_info()

    def train(self, mode: bool = True) -> 'MetaMixer':
        """Sets the training mode; frozen stages (and norms with ``norm_eval``) stay in eval."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for m in self.modules():
                if isinstance(m, _BatchNorm):
                    m.eval()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for part in (self.stem, *self.stages[: self.frozen_stages]):
            part.eval()
            part.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning-rate decay.

        The stem is layer 0. A stage is one layer, a long one (over 6 blocks) a layer for every
        three blocks; its downsampling belongs to its first. Output norms, and whatever else is
        not below ``prefix``, are the last layer.

        Args:
            param_name (str): Name of the parameter in the whole model.
            prefix (str): The backbone's prefix in these names. Defaults to ''.

        Returns:
            tuple[int, int]: The layer, and the number of layers.
        """
        sizes = [-(-depth // 3) if depth > 6 else 1 for depth in self.depths]
        num_layers = sum(sizes) + 2
        path = param_name[len(prefix) :].split('.') if param_name.startswith(prefix) else ['']
        if path[0] == 'stem':
            return 0, num_layers
        if path[0] != 'stages':
            return num_layers - 1, num_layers
        stage = int(path[1])
        first = 1 + sum(sizes[:stage])
        if path[2] != 'blocks' or sizes[stage] == 1:
            return first, num_layers
        return first + int(path[3]) // 3, num_layers
