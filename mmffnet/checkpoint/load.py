"""Checked loading of official checkpoints and ours, by file, address or short name."""

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import shorten
from .names import OFFICIAL_WEIGHTS, OWN_WEIGHTS, NameMap, find_networks

SCHEME = 'mmffnet://'


def official_url(name: str) -> str:
    """Returns the address of a checkpoint by its short name: an URL, or a file of the package."""
    name = name.removeprefix(SCHEME)
    if name in OWN_WEIGHTS:
        return str(OWN_WEIGHTS[name])
    if name not in OFFICIAL_WEIGHTS:
        names = ', '.join([*OFFICIAL_WEIGHTS, *OWN_WEIGHTS])
        raise ValueError(f'no checkpoint is called {name!r}; there are {names}')
    file = OFFICIAL_WEIGHTS[name]
    if file.by_hand:
        raise ValueError(
            f'{name!r} cannot be downloaded by a program: get it by hand from {file.url} and give '
            f'the path of the file'
        )
    return file.url


@CheckpointLoader.register_scheme(prefixes=SCHEME, force=True)
def _load_official(filename: str, map_location: Any = None) -> dict:
    return CheckpointLoader.load_checkpoint(official_url(filename), map_location, logger='silent')


def translate_state_dict(network: nn.Module, state_dict: dict, prefix: str, names: NameMap) -> None:
    """Makes a network's part of a whole model's state loadable, in place, while it is being loaded.

    Official names become ours, tensors that differ by axes of size 1 alone get our shape. The state
    of another variant, or of a re-parameterised network while this one is not, is refused.
    """
    own = network.state_dict()
    last_norm = f'norm{len(getattr(network, "stages", ())) - 1}'
    final_norm = last_norm if _has_final_norm(network, last_norm) else None
    _rename(state_dict, prefix, names, own, final_norm)
    _drop_foreign_norms(network, state_dict, prefix, own, final_norm)
    _refuse_misfits(network, state_dict, prefix, names, own)


def _rename(
    state_dict: dict,
    prefix: str,
    names: NameMap,
    own: dict[str, Tensor],
    final_norm: str | None,
) -> None:
    """Gives tensors our names and shapes; the official final norm may be an output norm here."""
    official = any(key.startswith(prefix + names.official_start) for key in state_dict)
    for key in [k for k in state_dict if k.startswith(prefix)]:
        name = key[len(prefix) :]
        name = names.to_ours(name) if official else name
        if final_norm and name.startswith('norm.'):
            name = final_norm + name.removeprefix('norm')
        value = state_dict.pop(key)
        like = own.get(name)
        if like is not None and like.shape != value.shape and _long_axes(like) == _long_axes(value):
            value = value.reshape(like.shape)
        state_dict[prefix + name] = value


def _drop_foreign_norms(
    network: Any, state_dict: dict, prefix: str, own: dict[str, Tensor], final_norm: str | None
) -> None:
    """Drops output norms of another kind.

    The same name is a batch norm in a classifier and a layer norm in a detector, or the only norm
    of a classifier and one of several in a detector.
    """
    outputs = [f'norm{i}.' for i in range(len(getattr(network, 'stages', ())))]
    present = [norm for norm in outputs if any(k.startswith(prefix + norm) for k in state_dict)]
    for norm in present:
        statistics = f'{norm}running_mean'
        foreign = (statistics in own) != (prefix + statistics in state_dict)
        if statistics in own and final_norm is None:
            foreign |= len(present) == 1 < len(network.out_indices)
        if foreign:
            for key in [k for k in state_dict if k.startswith(prefix + norm)]:
                del state_dict[key]


def _refuse_misfits(
    network: nn.Module, state_dict: dict, prefix: str, names: NameMap, own: dict[str, Tensor]
) -> None:
    """Raises ValueError for another variant, and for a folded state of a network that is not."""
    there = _variant({k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)})
    here = _variant(own)
    if any(there[stage] != here[stage] for stage in set(there) & set(here)):
        raise ValueError(
            f'the checkpoint holds another variant than {type(network).__name__} '
            f'{getattr(network, "arch", "")}: below {prefix or "its root"} its blocks are '
            f'{_describe(there)}, those of the network {_describe(here)}'
        )
    if names.is_folded(prefix, state_dict) and not names.is_folded('', own):
        raise ValueError(
            'the checkpoint is re-parameterised (its batch norms are folded), the network is not: '
            f'build the {type(network).__name__} with deploy=True (a whole re-parameterised model '
            "with type='mmffnet.Reparameterized', original=...), or load the original checkpoint"
        )


def _has_final_norm(network: Any, name: str) -> bool:
    """Whether this output norm is the official classifier's final norm.

    It is that of the last stage if there is no other output, or if it is a batch norm and those
    of the family's outputs are not.
    """
    norm = getattr(network, name, None)
    if norm is None or len(network.stages) < len(network.settings['depths']):
        return False
    family = network.default_out_norm_cfg or {}
    alone = len(network.out_indices) == 1
    return alone or (isinstance(norm, _BatchNorm) and family.get('type') != 'BN')


def _long_axes(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _variant(state: dict) -> dict[str, tuple[int, ...]]:
    """Number, width and hidden width of the blocks of each stage."""
    found: dict[str, tuple[int, ...]] = {}
    for key, value in state.items():
        match = re.match(
            r'(stages\.\d+\.|)blocks\.\d+\.channel_mixer\.project\.(?:conv\.)?weight$', key
        )
        if match:
            found[match[1]] = (found.get(match[1], (0,))[0] + 1, *value.shape[:2])
    return found


def _describe(variant: dict[str, tuple[int, ...]]) -> str:
    return ', '.join('{} of {} channels expanded to {}'.format(*v) for v in variant.values())


def load_pretrained(
    model: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    map_location: Any = 'cpu',
    strict: bool = True,
    use_ema: bool = False,
) -> None:
    """Loads a pre-trained backbone and makes sure that it arrived.

    Takes official files and ours, of classifiers, backbones and whole detectors or segmentors.
    Left over may be the final norm and the head of the pre-training, and stages that this backbone
    does not have; new may be the output norms. Anything else that is missing or unexpected is an
    error.

    Args:
        model (nn.Module): The backbone.
        checkpoint (str): A file, an URL or a short name such as ``mmffnet://ffnet2-distilled``.
        prefix (str, optional): Where the backbone is in the checkpoint. Defaults to None, which
            finds it at the root or below ``backbone.``.
        map_location (str): Where to load to. Defaults to ``'cpu'``.
        strict (bool): False makes a warning of missing and unexpected names, for networks with
            other mixers in some stages. Defaults to True.
        use_ema (bool): Take the moving average of the weights, where the file has one besides the
            raw weights (official training takes the raw ones). Defaults to False.

    Raises:
        ValueError: If the checkpoint does not fit.
    """
    raw = CheckpointLoader.load_checkpoint(str(checkpoint), map_location, logger='silent')
    where = f'checkpoint {checkpoint}'
    state = find_state_dict(raw, where, use_ema)
    raw_names = list(state)
    if prefix is None:
        prefix = next((p for p in ('', 'backbone.') if _has_backbone(state, p, model)), '')
    elif prefix and not prefix.endswith('.'):
        prefix += '.'
    state = OrderedDict((k[len(prefix) :], v) for k, v in state.items() if k.startswith(prefix))
    name = f'{type(model).__name__} {getattr(model, "arch", "")}'.strip()
    try:
        result = model.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f'{where} does not fit {name}: {error}') from None

    stages = len(getattr(model, 'stages', []))
    # the family says it; another network must be filled by the file, and fill it
    optional: tuple[str, ...] = getattr(model, 'optional_names', tuple)()
    left_over = getattr(model, 'left_over', '(?!)')

    def leftover(key: str) -> bool:
        match = re.match(r'stages\.(\d+)\.', key)
        return bool(re.match(left_over, key) or (match and int(match[1]) >= stages))

    missing = [k for k in result.missing_keys if not k.startswith(optional)]
    unexpected = [k for k in result.unexpected_keys if not leftover(k)]
    # PyTorch makes up counts of batches that a file does not have
    total, absent = (
        len([k for k in keys if not k.endswith('num_batches_tracked')])
        for keys in (model.state_dict(), result.missing_keys)
    )
    matched = total - absent
    problems = [
        f'{len(keys)} {what} ({shorten(keys)})'
        for what, keys in (('missing', missing), ('unexpected', unexpected))
        if keys
    ]
    if problems and (strict or 2 * matched < total):
        others = [p for p in find_networks(raw_names, official=True) if p != prefix]
        others += [p for p in find_networks(raw_names, official=False) if p != prefix]
        hint = f'; is it prefix={others[0]!r} that you mean?' if others and not matched else ''
        raise ValueError(
            f'{where} does not fit {name}: {matched} of {total} tensors found below the prefix '
            f'{prefix!r}; {"; ".join(problems)}{hint}'
        )
    report = f'{where}: loaded {matched} of {total} tensors into {name}'
    for what, keys in (
        ('not in this network', [k for k in result.unexpected_keys if leftover(k)]),
        ('new, not in the checkpoint', sorted(set(result.missing_keys) - set(missing))),
    ):
        if keys:
            report += f'; {what}: {describe_places(keys)}'
    print_log(report, logger='current')
    if problems:
        print_log(f'{where}: {"; ".join(problems)}', logger='current', level=30)


def load_strict(model: nn.Module, raw: Any, where: str, part: str = '') -> list[str]:
    """Loads a model's checkpoint and makes sure that it fills the model, or a part of it.

    Args:
        model (nn.Module): A backbone, detector, segmentor or classifier.
        raw (Any): What the file holds.
        where (str): Names the file in errors.
        part (str): A regular expression: the names of what must be filled start so. Defaults to
            '', which is everything.

    Returns:
        list[str]: Names in the checkpoint that the model does not have.
    """
    state = find_state_dict(raw, where)
    tensors = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not name.endswith('num_batches_tracked')  # PyTorch makes up those that are missing
    }
    # Names change while they are loaded, and what PyTorch reports is incomplete once a shape does
    # not fit: but what is written to knows it.
    before = {name: tensor._version for name, tensor in tensors.items()}
    shapes, unexpected = [], []
    try:
        unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    except ValueError as error:
        raise ValueError(f'{where} does not fit the model: {error}') from None
    except RuntimeError as error:
        shapes = [line.strip() for line in str(error).splitlines()[1:]]
    empty = [
        name
        for name, tensor in tensors.items()
        if re.match(part, name) and tensor._version == before[name]
    ]
    if empty:
        reason = next((line for line in shapes if f' {empty[0]}:' in line), None)
        number = f'{len(empty)} of {sum(bool(re.match(part, name)) for name in tensors)} tensors'
        raise ValueError(
            f'{where} does not fit the model: it does not fill {number}: '
            f'{reason or shorten(empty)}{_guess(state)}'
        )
    return unexpected


def _guess(state: dict[str, Tensor]) -> str:
    """What a checkpoint is, if it is that of a part."""
    networks = {**find_networks(state, official=True), **find_networks(state, official=False)}
    if '' not in networks:
        return ''
    return (
        '. It is that of a bare backbone or an official classifier, which goes to the backbone of '
        "a model: backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=...))"
    )


def find_state_dict(raw: Any, where: str, use_ema: bool = False) -> OrderedDict[str, Tensor]:
    """Takes the weights, or their moving average, out of what a file holds, however it is made.

    ``where`` names the file in errors.
    """
    entries = ['state_dict', 'model', 'state_dict_ema']
    if use_ema:
        entries = ['state_dict_ema', 'model_ema']
    state = raw
    if isinstance(raw, dict) and not all(isinstance(v, Tensor) for v in raw.values()):
        found = next((e for e in entries if isinstance(raw.get(e), dict)), None)
        if found is None:
            hint = ' (use_ema=True takes it)' if isinstance(raw.get('model_ema'), dict) else ''
            raise ValueError(
                f'{where} has no {" or ".join(entries)}; it has {shorten(map(str, raw))}{hint}'
            )
        state = raw[found]
    elif use_ema:
        raise ValueError(f'{where} holds nothing but one set of weights, use_ema finds no other')
    tensors = isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())
    if not tensors or not state:
        raise ValueError(f'{where} holds no weights (a dict of tensors)')
    # of DistributedDataParallel, of torch.compile
    return OrderedDict((re.sub(r'^(module\.|_orig_mod\.)+', '', k), v) for k, v in state.items())


def _has_backbone(state: dict, prefix: str, model: nn.Module) -> bool:
    names = getattr(model, 'official_names', None)
    starts = (names.our_start, names.official_start) if names else ('stem.', 'patch_embed.')
    return any(k.startswith(tuple(prefix + start for start in starts)) for k in state)


def describe_places(keys: Iterable[str]) -> str:
    """The modules that parameters are in, such as ``stem.*, stages.2.*``."""
    parts = (key.split('.') for key in keys)
    places = ('.'.join(p[:2] if p[0] == 'stages' else p[:1]) for p in parts)
    return ', '.join(f'{place}.*' for place in dict.fromkeys(places))
