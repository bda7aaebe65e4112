"""The skeleton of all backbones: a stem and stages of blocks, with multi-scale outputs.

Nothing here knows which mixers, stem or downsampling a network uses; the families say that.
"""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule, ModuleList
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoint import NameMap, load_pretrained, translate_state_dict
from ..ops.tracing import is_traced
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
from .block import MixerBlock
from .classifier import adopt_classifier
from .layers import CHANNEL_LAYER_NORM, FusibleBlock, build_norm, reparameterize
from .stage import Stage


class _SkeletonTracer(torch.fx.Tracer):
    """Traces the modules of mmengine, which cannot be scripted, and calls all others as are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, BaseModule)


class MixerBackbone(BaseModule):
    """Backbone skeleton: a stem and stages of blocks, with multi-scale outputs.

    A family gives its table (``arch_settings``, ``arch_defaults``), its other class attributes, and
    builds its parts in :meth:`make_stem`, :meth:`make_downsample`, :meth:`make_branches` (or
    :meth:`make_block`) and :meth:`make_tail`. There it finds the arch dict as ``self.settings``,
    the mixers of each stage as ``self.mixers['token_mixer'][i]`` and ``['channel_mixer'][i]``,
    and ``self.channels``, ``norm_cfg``, ``act_cfg`` and ``layer_scale_init_value``.

    Args:
        arch (str or dict): A name in ``arch_settings`` or a dict with

            - **depths** (list[int]): Blocks per stage, for any number of stages.
            - **channels** (list[int]): Channels per stage.
            - and optionally whatever the family has a default for: **stem_channels** (int),
              **token_mixer** and **channel_mixer** (dict, or list with a dict per stage),
              **layer_scale_init_value** (float or None), and keys of its own.
        in_channels (int): Channels of the input image. Defaults to 3.
        out_indices (int or Sequence[int]): Stages whose maps are returned, ascending. Stages
            after the last one are not built. Defaults to ``'default'``, which is all.
        out_norm_cfg (dict, optional): Norm of each returned map (the next stage gets the map
            without it). Defaults to ``'default'``, which is the family's: LayerNorm over the
            channels, ``eps=1e-6``, in FFNet; None for none; ``dict(type='BN')`` with
            ``out_indices=3`` is FFNet's classifier.
        drop_path_rate (float, optional): Drop path of the last block, growing linearly from 0 at
            the first. Defaults to None, which is the family's.
        layer_scale_init_value (float, optional): Initial layer scale, 0 for no layer scale.
            Defaults to None, which is what ``arch`` says.
        token_mixer (dict or list, optional): Replaces the token mixers of ``arch``: one config for
            all stages, or a list with one per stage, where None keeps the stage's own. A dict
            without ``type`` changes arguments of the one that is there. Defaults to None.
        channel_mixer (dict or list, optional): The same for the channel mixers. Defaults to None.
        norm_cfg (dict, optional): The norm. Defaults to None, which is the family's.
        act_cfg (dict, optional): Activation. Defaults to None, which is the family's.
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
            :func:`mmffnet.load_pretrained` for its further arguments. Defaults to None, which is
            the family's initialisation.
    """

    arch_settings: ClassVar[dict[str, dict]] = {}
    #: What an arch dict may leave out. A family whose blocks have no such part leaves out
    #: 'token_mixer', 'channel_mixer' or 'layer_scale_init_value', and refuses the argument then.
    arch_defaults: ClassVar[dict[str, Any]] = {}
    default_norm_cfg: ClassVar[dict] = dict(type='BN')
    #: Whether there is a norm in front of each mixer
    pre_norm: ClassVar[bool] = False
    default_act_cfg: ClassVar[dict] = dict(type='GELU')
    #: Norm of the outputs alone; one whose result the next stage gets too is a tail
    default_out_norm_cfg: ClassVar[dict | None] = CHANNEL_LAYER_NORM
    default_drop_path_rate: ClassVar[float] = 0.0
    #: Initialisation of what a checkpoint does not fill
    default_init_cfg: ClassVar[list[dict]] = [
        dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0)
    ]
    #: The stride of stage 0; each further stage halves the resolution
    first_stride: ClassVar[int] = 4
    #: The smallest input side that leaves something at every stage
    min_size = 32
    #: The official names of its parameters, if it has official weights
    official_names: ClassVar[NameMap | None] = None
    #: What a checkpoint of the pre-training may hold besides the backbone: a regular expression for
    #: the start of names
    left_over: ClassVar[str] = r'(norm|head)\d?\.'

    def __init__(
        self,
        arch: str | dict | None = None,
        in_channels: int = 3,
        out_indices: int | Sequence[int] | str = 'default',
        out_norm_cfg: dict | str | None = 'default',
        drop_path_rate: float | None = None,
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
        if out_norm_cfg == 'default':
            out_norm_cfg = self.default_out_norm_cfg
        for name, cfg in dict(
            norm_cfg=norm_cfg, act_cfg=act_cfg, out_norm_cfg=out_norm_cfg
        ).items():
            check_layer_cfg(name, cfg)
        if len(cfgs) == len(self._pretrained):  # what a checkpoint leaves out is initialised too
            cfgs = [*self.default_init_cfg, *cfgs]
        super().__init__(cfgs)
        network = type(self).__name__
        settings = resolve_arch(network, arch, self.arch_settings, self.arch_defaults)
        depths, channels = settings['depths'], settings['channels']
        for name, value in dict(
            token_mixer=token_mixer,
            channel_mixer=channel_mixer,
            layer_scale_init_value=layer_scale_init_value,
        ).items():
            if value is not None and name not in settings:
                raise ValueError(f'{network} takes no {name}')
        self.mixers = {
            name: resolve_mixers(name, settings[name], override, len(depths))
            for name, override in dict(token_mixer=token_mixer, channel_mixer=channel_mixer).items()
            if name in settings
        }
        if layer_scale_init_value is None:
            layer_scale_init_value = settings.get('layer_scale_init_value') or 0
        if not isinstance(layer_scale_init_value, int | float) or layer_scale_init_value < 0:
            raise ValueError(
                f'layer_scale_init_value must be a number, 0 for no layer scale; '
                f'got {layer_scale_init_value!r}'
            )
        if drop_path_rate is None:
            drop_path_rate = self.default_drop_path_rate
        check_fraction('drop_path_rate', drop_path_rate)
        check_count('in_channels', in_channels)

        self.arch = arch if isinstance(arch, str) else 'custom'
        self.settings = settings
        self.in_channels = in_channels
        self.norm_cfg = norm_cfg or self.default_norm_cfg
        self.act_cfg = act_cfg or self.default_act_cfg
        self.layer_scale_init_value = layer_scale_init_value or None
        self.norm_eval = norm_eval
        if out_indices == 'default':
            out_indices = tuple(range(len(depths)))
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
        self.strides = tuple(self.first_stride * 2**i for i in range(num_stages))
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        self.stem = self.make_stem(in_channels, channels[0])
        width = in_channels if isinstance(self.stem, nn.Identity) else channels[0]
        self.stages = ModuleList()
        for i, (depth, out_width) in enumerate(zip(self.depths, self.channels, strict=True)):
            parts: dict[str, Any] = dict(
                downsample=self.make_downsample(i, width, out_width),
                blocks=[self.make_block(i, j, next(rates)) for j in range(depth)],
                tail=self.make_tail(i),
            )
            self.stages.append(self.make_stage(i, with_cp=with_cp, **parts))
            width = out_width
        if out_norm_cfg is not None:
            for i in self.out_indices:
                norm = build_norm(out_norm_cfg, channels[i], 'out_norm_cfg')  # type: ignore[arg-type]
                self.add_module(f'norm{i}', norm)
        if deploy:
            reparameterize(self)
        self._freeze_stages()

    def make_stem(self, in_channels: int, out_channels: int) -> nn.Module:
        """Builds what comes before the stages; by default nothing.

        Args:
            in_channels (int): Channels of the image.
            out_channels (int): Channels of the first stage.
        """
        return nn.Identity()

    def make_downsample(self, i: int, in_channels: int, out_channels: int) -> nn.Module:
        """Builds the start of stage ``i``, which makes its resolution and width.

        Args:
            i (int): The stage.
            in_channels (int): Channels of the stage before; for the first stage those of the image
                if there is no stem, and its own otherwise.
            out_channels (int): Channels of the stage.
        """
        raise NotImplementedError(f'{type(self).__name__} must define make_downsample()')

    def make_branches(self, i: int) -> dict[str, dict[str, Any]]:
        """Returns the branches of a block of stage ``i``, see :class:`MixerBlock`.

        By default they are the token mixer and the channel mixer.
        """
        norm = self.norm_cfg if self.pre_norm else None
        return dict(
            token=dict(mixer=self.mixers['token_mixer'][i], norm=norm),
            channel=dict(mixer=self.mixers['channel_mixer'][i], norm=norm),
        )

    def make_block(self, i: int, j: int, drop_path: float) -> nn.Module:
        """Builds block ``j`` of stage ``i``."""
        return MixerBlock(
            self.channels[i],
            self.make_branches(i),
            drop_path=drop_path,
            layer_scale_init_value=self.layer_scale_init_value,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )

    def make_tail(self, i: int) -> nn.Module | None:
        """Builds what comes behind the blocks of stage ``i``; by default nothing."""
        return None

    def make_stage(self, i: int, **parts: Any) -> Stage:
        """Puts stage ``i`` together; for families with a :class:`Stage` of their own.

        Args:
            i (int): The stage.
            **parts: The arguments of :class:`Stage`.
        """
        return Stage(**parts)

    @property
    def size_divisor(self) -> int:
        """What the sides of an input should be multiples of: the largest stride."""
        return max(self.strides)

    @property
    def deploy(self) -> bool:
        """Whether nothing is left to fold."""
        return not any(isinstance(m, FusibleBlock) for m in self.modules())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not is_traced(x):
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
        """Names of the parameters without weight decay besides norms, biases and layer scales."""
        return set()

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

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        if self.official_names is not None:
            translate_state_dict(self, state_dict, prefix, self.official_names)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _checkpoint_filter(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """mmpretrain's ImageClassifier calls it with what is being loaded into the whole."""
        if self.official_names is not None:
            adopt_classifier(state_dict, prefix, self.official_names)

    def train(self, mode: bool = True) -> 'MixerBackbone':
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

    def optional_names(self) -> tuple[str, ...]:
        """Starts of the names of parameters that a checkpoint may lack: the output norms."""
        return tuple(f'norm{i}.' for i in self.out_indices)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning-rate decay.

        The stem, if there is one, is layer 0. A stage is one layer, a long one (over 6 blocks) a
        layer for every three blocks; its downsampling belongs to its first, its tail to its last.
        Output norms, and whatever else is not below ``prefix``, are the last layer.

        Args:
            param_name (str): Name of the parameter in the whole model.
            prefix (str): The backbone's prefix in these names. Defaults to ''.

        Returns:
            tuple[int, int]: The layer, and the number of layers.
        """
        sizes = [-(-depth // 3) if depth > 6 else 1 for depth in self.depths]
        stem_layers = int(any(True for _ in self.stem.parameters()))
        num_layers = stem_layers + sum(sizes) + 1
        path = param_name[len(prefix) :].split('.') if param_name.startswith(prefix) else ['']
        if path[0] == 'stem':
            return 0, num_layers
        if path[0] != 'stages':
            return num_layers - 1, num_layers
        stage = int(path[1])
        first = stem_layers + sum(sizes[:stage])
        if sizes[stage] == 1 or path[2] == 'downsample':
            return first, num_layers
        if path[2] != 'blocks':
            return first + sizes[stage] - 1, num_layers
        return first + min(int(path[3]) // 3, sizes[stage] - 1), num_layers
