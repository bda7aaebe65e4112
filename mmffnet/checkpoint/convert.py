"""Conversion of checkpoints between official parameter names and ours."""

import os
import re
from collections import OrderedDict
from pathlib import Path

from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from ..errors import shorten
from ..version import __version__
from .files import refuse_existing, save_atomically
from .load import describe_places, find_state_dict
from .names import find_networks


def convert_names(state: dict[str, Tensor], to: str) -> OrderedDict[str, Tensor]:
    """Renames the parameters of our networks, wherever in a model they are.

    Args:
        state (dict): The state dict.
        to (str): ``'ours'`` or ``'official'``.
    """
    if to not in ('ours', 'official'):
        raise ValueError(f"to must be 'ours' or 'official', got {to!r}")
    networks = find_networks(state, official=to == 'ours')
    if not networks:
        raise ValueError(
            f'no network of mmffnet with {"official" if to == "ours" else "our"} names in it; '
            f'it has {shorten(state)}'
        )
    if to == 'official' and any(n.is_folded(p, state) for p, n in networks.items()):
        raise ValueError('it is re-parameterised: the official names have no such form')

    outputs = {
        prefix: {m[1] for key in state if (m := re.match(re.escape(prefix) + r'(norm\d)\.', key))}
        for prefix in networks
    }

    def rename(key: str) -> str:
        for prefix, names in networks.items():
            if key.startswith(prefix):
                name = key[len(prefix) :]
                if to == 'ours':
                    return prefix + names.to_ours(name)
                official = names.to_official(name)
                norm, _, rest = name.partition('.')
                # the only norm is the official classifier's, unless it has no statistics and the
                # outputs' norms are of that kind
                if outputs[prefix] == {norm} and (
                    official != name or f'{prefix}{norm}.running_mean' in state
                ):
                    return f'{prefix}norm.{rest}'
                return prefix + official
        return key

    return OrderedDict((rename(key), value) for key, value in state.items())


def convert_file(
    source: str, target: str | os.PathLike, to: str, force: bool = False, use_ema: bool = False
) -> str:
    """Converts a checkpoint (a file, an URL or a short name) as :func:`convert_names` does.

    With ``use_ema`` it is the moving average of the weights. Returns what was done, for people.
    """
    refuse_existing([Path(target)], force)
    raw = CheckpointLoader.load_checkpoint(str(source), 'cpu', logger='silent')
    state = find_state_dict(raw, f'checkpoint {source}', use_ema)
    try:
        converted = convert_names(state, to)
    except ValueError as error:
        raise ValueError(f'checkpoint {source}: {error}') from None
    meta = dict(mmffnet_version=__version__, converted_from=Path(str(source)).name)
    save_atomically(dict(state_dict=converted, meta=meta), target, force)
    kept = [key for key in converted if key in state]
    report = (
        f'{target}: {len(converted)} tensors, {len(converted) - len(kept)} renamed to '
        f'{"our" if to == "ours" else to} names'
    )
    return report + (f', kept {describe_places(kept)}' if kept else '')
