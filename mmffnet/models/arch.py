"""Resolves and checks the arguments that describe a network."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..config_types import find_type, type_name

#: A mixer's config, or one per stage; None or a dict without 'type' keeps (and updates) the default
MixerCfg = dict | None | Sequence[dict | None]


def resolve_arch(network: str, arch: Any, settings: dict[str, dict], defaults: dict) -> dict:
    """Returns the arch dict behind a name or a dict, defaults filled in.

    Args:
        network (str): Name of the class, for errors.
        arch (str or dict): What the user gave.
        settings (dict): Arch dicts by name.
        defaults (dict): What an arch dict may leave out. A list has an entry per stage, the last
            one is that of further stages too; a positive integer may be no other number.
    """
    if isinstance(arch, str):
        if arch not in settings:
            raise ValueError(
                f'{network} has no arch {arch!r}; it has {", ".join(settings)}, or takes a dict'
            )
        arch = settings[arch]
    elif not isinstance(arch, dict):
        kind = 'nothing' if arch is None else type(arch).__name__
        raise ValueError(f'{network}: arch must be a name or a dict, got {kind}')
    if not {'depths', 'channels'} <= set(arch) <= {'depths', 'channels', *defaults}:
        raise ValueError(
            f'an arch dict has depths and channels, and may have {", ".join(defaults)}; '
            f'got {", ".join(map(str, arch)) or "nothing"}'
        )
    for key in ('depths', 'channels'):
        values = arch[key]
        if not (isinstance(values, list | tuple) and values and all(map(is_count, values))):
            raise ValueError(
                f'arch: {key} must be positive integers, one for each stage, got {values!r}'
            )
    if len(arch['depths']) != len(arch['channels']):
        raise ValueError(
            f'arch: depths and channels must be of the same length, the number of stages, '
            f'got {arch["depths"]!r} and {arch["channels"]!r}'
        )
    stages = range(len(arch['depths']))
    spread = {
        key: [value[min(i, len(value) - 1)] for i in stages] if isinstance(value, list) else value
        for key, value in defaults.items()
    }
    arch = {**spread, **arch}
    for key, default in defaults.items():
        value = arch[key]
        per_stage = isinstance(value, list | tuple) and len(value) == len(stages)
        # one dict is for all stages, where there are dicts
        dicts = isinstance(default, list) and all(isinstance(one, dict) for one in default)
        fits = per_stage or (dicts and isinstance(value, dict))
        if is_count(default):
            check_count(f'arch: {key}', value)
        elif isinstance(default, list) and not fits:
            raise ValueError(
                f'arch: {key} must have an entry for each of {len(stages)} stages, got {value!r}'
            )
    return arch


def is_count(value: Any) -> bool:
    """Whether this is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_count(name: str, value: Any) -> None:
    """Demands a positive integer."""
    if not is_count(value):
        raise ValueError(f'{name} must be a positive integer, got {value!r}')


def check_channels(mixer: str, channels: Any, **parts: Any) -> None:
    """Demands a positive number of channels, and a multiple of what they are split into.

    Args:
        mixer (str): Name of the class, for errors.
        channels (int): The channels.
        **parts (int): Arguments of the mixer, whose product the channels are a multiple of.
    """
    for name, value in dict(channels=channels, **parts).items():
        check_count(f'{mixer}: {name}', value)
    if channels % math.prod(parts.values()):
        given = ', '.join(f'{name}={value}' for name, value in parts.items())
        raise ValueError(
            f'{mixer}: channels must be a multiple of {" * ".join(parts)}, '
            f'got channels={channels} and {given}'
        )


def check_odd(name: str, value: Any) -> None:
    """Demands a positive odd integer."""
    if not is_count(value) or value % 2 == 0:
        raise ValueError(f'{name} must be a positive odd integer, got {value!r}')


def check_layer_cfg(name: str, cfg: Any) -> None:
    """Demands the config of a registered layer that takes maps, or None."""
    if cfg is None:
        return
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise ValueError(f"{name} must be a dict with a type, such as dict(type='BN'); got {cfg!r}")
    layer = find_type(cfg['type'])
    if layer is None:
        raise ValueError(f'{name}: no layer of the type {cfg["type"]!r} is registered in MODELS')
    if layer is nn.LayerNorm:
        raise ValueError(
            f'{name}: {cfg["type"]!r} is over the last dimension, which is none of the channels of '
            "a map: use dict(type='mmffnet.ChannelLayerNorm')"
        )


def is_pretrained(cfg: dict) -> bool:
    """Whether this initialisation loads a checkpoint."""
    return type_name(cfg['type']) in ('Pretrained', 'PretrainedInit')  # the name, and the class


def check_init_cfg(cfgs: Sequence[Any], pretrained_arguments: Sequence[str]) -> None:
    """Demands initialisations with a type, and that Pretrained is told what it knows."""
    for cfg in cfgs:
        if not isinstance(cfg, dict) or 'type' not in cfg:
            raise ValueError(f'init_cfg must be a dict with a type, or a list of them; got {cfg!r}')
        if not is_pretrained(cfg):
            continue
        if 'checkpoint' not in cfg:
            raise ValueError(f'init_cfg: Pretrained needs a checkpoint, got {dict(cfg)!r}')
        unknown = [key for key in cfg if key not in ('type', *pretrained_arguments)]
        if unknown:
            raise ValueError(
                f'init_cfg: Pretrained does not take {", ".join(unknown)}; it takes '
                f'{", ".join(pretrained_arguments)}'
            )


def check_fraction(name: str, value: Any) -> None:
    """Demands a number in [0, 1)."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f'{name} must be a number in [0, 1), got {value!r}')


def resolve_out_indices(out_indices: Any, num_stages: int) -> tuple[int, ...]:
    """Returns the stages whose maps are returned, as ascending numbers from 0."""
    indices = (out_indices,) if isinstance(out_indices, int) else out_indices
    valid = isinstance(indices, list | tuple) and all(
        type(i) is int and -num_stages <= i < num_stages for i in indices
    )
    resolved = tuple(i % num_stages for i in indices) if valid else ()
    if not resolved or any(a >= b for a, b in itertools.pairwise(resolved)):
        raise ValueError(
            f'out_indices must be stages out of 0..{num_stages - 1} in ascending order, '
            f'got {out_indices!r}'
        )
    return resolved


def resolve_mixers(name: str, default: MixerCfg, override: MixerCfg, stages: int) -> list[dict]:
    """Resolves a mixer argument to one config per stage."""

    def spread(cfg: MixerCfg) -> list[dict | None]:
        if cfg is None or isinstance(cfg, dict):
            return [cfg] * stages
        if (
            not isinstance(cfg, list | tuple)
            or len(cfg) != stages
            or not all(c is None or isinstance(c, dict) for c in cfg)
        ):
            raise ValueError(
                f'{name} must be a dict or a list of {stages} (a dict or None per stage), '
                f'got {cfg!r}'
            )
        return list(cfg)

    resolved = []
    for base, new in zip(spread(default), spread(override), strict=True):
        cfg = new if new and 'type' in new else {**(base or {}), **(new or {})}
        if 'type' not in cfg:
            raise ValueError(f'{name}: {cfg!r} names no type')
        resolved.append(cfg)
    return resolved
