"""Layer-wise learning-rate decay for any model whose backbone tells the depth of its parameters."""

import inspect
import itertools
from typing import Any

from mmcv.cnn import is_norm
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS

_RATE_KEYS = ('layer_decay_rate', 'decay_rate')
_DECAY_MULTS = ('norm_decay_mult', 'bias_decay_mult', 'flat_decay_mult')
_KEYS = ('mode', *_RATE_KEYS, 'num_layers', *_DECAY_MULTS, 'custom_keys', 'bypass_duplicate')
_CUSTOM_KEYS = ('lr_mult', 'decay_mult')
_MODES = ('depth', 'official')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Gives the early layers of a backbone lower learning rates than the late ones.

    A parameter of layer ``k`` out of ``n`` gets the learning rate of the optimizer times
    ``layer_decay_rate ** (n - 1 - k)``; necks, heads and all else outside the backbone get it
    whole. The layers are what the backbone's ``get_layer_depth(param_name, prefix)`` says, which
    mmffnet's backbones have, and many of mmpretrain's. Norms, biases and layer scales get no weight
    decay, nor what the backbone's ``no_weight_decay()`` names, if it has that. Frozen parameters
    are left out. Parameters that are treated alike share a group, and the groups are logged as a
    table.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper; its ``optimizer`` must name
            ``lr`` and ``weight_decay``.
        paramwise_cfg (dict): The settings:

            - **layer_decay_rate** (float): The rate, in (0, 1]. ``decay_rate``, the name that mmdet
              and mmseg use, will do as well.
            - **mode** (str): ``'depth'``, or ``'official'`` for the layers and the groups of the
              official FFNet recipes: see :meth:`mmffnet.FFNet.get_official_layer_depth`. There,
              only biases and tensors of one dimension are without weight decay: layer scales have
              it. Defaults to ``'depth'``.
            - **num_layers** (int): For ``'official'`` only, and needed there.
            - **norm_decay_mult** (float): Factor to the weight decay of norms. Defaults to 0.
            - **bias_decay_mult** (float): The same for other biases. Defaults to 0.
            - **flat_decay_mult** (float): The same for vectors and scalars, such as layer scales,
              of whatever shape. Defaults to 0.
            - **custom_keys** (dict[str, dict]): For parameters whose name contains the key (the
              longest such key counts), ``lr_mult``, a further factor to the learning rate, and
              ``decay_mult``, in place of the three factors above. Defaults to none.
            - **bypass_duplicate** (bool): Changes nothing: a shared parameter is always taken
              once. It may stand here because configs to inherit from say it.

    Note:
        Schedulers scale each group's own rate, but a floor such as ``eta_min`` is one number for
        all groups: use ``eta_min_ratio``, lest it exceed the rates of the early layers.

    Example:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='mmffnet.LayerDecayConstructor',
        ...     paramwise_cfg=dict(layer_decay_rate=0.8),
        ... )
    """

    def _validate_cfg(self) -> None:
        cfg = self.paramwise_cfg
        if not isinstance(cfg, dict):
            raise ValueError(f'paramwise_cfg must be a dict, got {cfg!r}')
        unknown = sorted(set(cfg) - set(_KEYS))
        if unknown:
            raise ValueError(
                f'paramwise_cfg: {type(self).__name__} does not know {", ".join(unknown)}; it '
                f'takes {", ".join(_KEYS)}'
            )
        mode = cfg.get('mode', 'depth')
        if mode not in _MODES:
            raise ValueError(f'paramwise_cfg: mode must be one of {_MODES}, got {mode!r}')
        self.official = mode == 'official'
        rates = [cfg[key] for key in _RATE_KEYS if key in cfg]
        if len(rates) != 1:
            raise ValueError(f'paramwise_cfg must have one of {" and ".join(_RATE_KEYS)}')
        self.rate = _non_negative('paramwise_cfg: layer_decay_rate', rates[0])
        if not 0 < self.rate <= 1:
            raise ValueError(f'paramwise_cfg: layer_decay_rate must be in (0, 1], got {self.rate}')
        self.num_layers: Any = cfg.get('num_layers')
        if not (isinstance(self.num_layers, int) if self.official else self.num_layers is None):
            raise ValueError(
                "paramwise_cfg: num_layers must be an integer in mode 'official', and is not for "
                f"mode 'depth', where the backbone knows; got {self.num_layers!r}"
            )
        for key in _DECAY_MULTS:
            _non_negative(f'paramwise_cfg: {key}', cfg.get(key, 0.0))
        self.custom_keys = _check_custom_keys(cfg.get('custom_keys', {}))
        _non_negative('lr of the optimizer, which each layer gets a part of,', self.base_lr)
        _non_negative('weight_decay of the optimizer', self.base_wd)

    def add_params(self, params: list[dict], module: nn.Module) -> None:
        """Adds the parameter groups of a model or a bare backbone to ``params``."""
        backbones = _find_backbones(module)
        depths = self._depths(module, backbones)
        undecayed = set() if self.official else _undecayed(backbones)
        owners = {id(p): m for m in module.modules() for p in m.parameters(recurse=False)}
        groups: dict[tuple[float, float], dict[str, list]] = {}
        num_frozen = 0
        for name, param in module.named_parameters():
            if not param.requires_grad:
                num_frozen += 1
                continue
            layer, num_layers = depths[name]
            custom = next((v for key, v in self.custom_keys.items() if key in name), {})
            scale = self.rate ** (num_layers - 1 - layer) * custom.get('lr_mult', 1.0)
            decay_mult = 0.0 if name in undecayed else self._decay_mult(name, param, owners)
            decay_mult = custom.get('decay_mult', decay_mult)
            group = groups.setdefault(
                (scale, self.base_wd * decay_mult), dict(params=[], names=[], layers=[])
            )
            group['params'].append(param)
            group['names'].append(name)
            group['layers'].append(layer)

        ordered = sorted(groups.items(), key=lambda item: (min(item[1]['layers']), -item[0][1]))
        lines = ['  layer  lr scale  weight decay  tensors   parameters  where']
        for (scale, weight_decay), group in ordered:
            own = dict(lr=self.base_lr * scale, lr_scale=scale, weight_decay=weight_decay)
            params.append(dict(params=group['params'], **own))
            layers = dict.fromkeys((min(group['layers']), max(group['layers'])))
            number = sum(param.numel() for param in group['params'])
            lines.append(
                f'{"-".join(map(str, layers)):>7}  {scale:8.4g}  {weight_decay:12g}  '
                f'{len(group["params"]):7}  {number:11,}  {_where(group["names"])}'
            )
        if is_main_process():
            frozen = f' ({num_frozen} frozen tensors left out)' if num_frozen else ''
            title = f'Layer-wise decay {self.rate:g} of lr {self.base_lr:g}{frozen}'
            print_log('\n'.join([f'{title}:', *lines]), logger='current')

    def _depths(self, model: nn.Module, backbones: dict[str, Any]) -> dict[str, tuple[int, int]]:
        """Layer and number of layers by the names of the parameters, of frozen ones too."""
        depths = {}
        for name, _ in model.named_parameters():
            prefix = next((p for p in backbones if name.startswith(p)), next(iter(backbones)))
            backbone = backbones[prefix]
            if not self.official:
                depths[name] = backbone.get_layer_depth(name, prefix)
            elif hasattr(backbone, 'get_official_layer_depth'):
                depths[name] = backbone.get_official_layer_depth(name, prefix, self.num_layers)
            else:
                raise ValueError(
                    "paramwise_cfg: mode 'official' is for backbones with the method "
                    f'get_official_layer_depth, which {type(backbone).__name__} has not'
                )
        return depths

    def _decay_mult(self, name: str, param: Tensor, owners: dict[int, nn.Module]) -> float:
        """The factor to the weight decay of a parameter, given the modules of all of them."""
        owner = owners[id(param)]
        if is_norm(owner):
            kind = 'norm_decay_mult'
        elif name.rpartition('.')[2] == 'bias':
            kind = 'bias_decay_mult'
        elif param.ndim == 1 if self.official else _is_flat(param, owner):
            kind = 'flat_decay_mult'
        else:
            return 1.0
        return self.paramwise_cfg.get(kind, 0.0)


def _find_backbones(model: nn.Module) -> dict[str, Any]:
    """The modules that know the depths of their parameters, by the prefix of these."""
    backbones = {}
    for name, module in model.named_modules():
        # mmpretrain's classifiers have a get_layer_depth() without prefix, which asks the backbone
        depth = getattr(module, 'get_layer_depth', None)
        if depth is not None and 'prefix' in inspect.signature(depth).parameters:
            backbones[f'{name}.' if name else ''] = module
    if not backbones:
        backbone = getattr(model, 'backbone', model)
        raise ValueError(
            'layer-wise learning-rate decay needs a backbone with the method '
            f'get_layer_depth(param_name, prefix), which {type(backbone).__name__} does not have'
        )
    return backbones


def _undecayed(backbones: dict[str, Any]) -> set[str]:
    """Names of the parameters that the backbones want to be without weight decay."""
    return {
        prefix + name
        for prefix, backbone in backbones.items()
        if hasattr(backbone, 'no_weight_decay')
        for name in backbone.no_weight_decay()
    }


def _is_flat(param: Tensor, owner: nn.Module) -> bool:
    """Whether it is a vector or scalar, as layer scales of the shape (C, 1, 1) are."""
    # a kernel with one output channel has but one long axis too
    is_kernel = param.ndim > 1 and isinstance(owner, _ConvNd | nn.Linear | nn.Embedding)
    return not is_kernel and sum(size > 1 for size in param.shape) <= 1


def _non_negative(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f'{name} must be a number, not negative; got {value!r}')
    return float(value)


def _check_custom_keys(custom_keys: Any) -> dict[str, dict[str, float]]:
    """Checks the custom keys and sorts the longest first."""
    if not isinstance(custom_keys, dict) or not all(
        isinstance(value, dict) and set(value) <= set(_CUSTOM_KEYS)
        for value in custom_keys.values()
    ):
        raise ValueError(
            'paramwise_cfg: custom_keys must be a dict from parts of parameter names to dicts of '
            f'{" and ".join(_CUSTOM_KEYS)}, got {custom_keys!r}'
        )
    for key, value in custom_keys.items():
        for name, mult in value.items():
            _non_negative(f'paramwise_cfg: {name} of the custom key {key!r}', mult)
    return {key: custom_keys[key] for key in sorted(custom_keys, key=lambda k: (-len(k), k))}


def _where(names: list[str]) -> str:
    """The module that all parameters are in, or else the parts of the model that they are in."""
    levels = zip(*(name.split('.') for name in names), strict=False)
    common = [level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels)]
    return '.'.join(common) or ', '.join(dict.fromkeys(name.split('.')[0] for name in names))
