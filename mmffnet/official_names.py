"""The official parameter names and ours, in both directions.

The official names say little about what a tensor is, and the same path means different things:
``conv1.conv1`` is the small branch of FFNet's depthwise convolutions and the large one of
FFNetSeg's. Hence one table per network.
"""

import re
from collections.abc import Iterable
from typing import ClassVar


class NameMap:
    """Translates parameter names of one network between the official ones and ours.

    Args:
        root (dict[str, str]): Official name to ours, of what is in no stage and no block. All of
            these names together tell the network from others.
        block (dict[str, str]): The same, below a block.
        downsample (dict[str, str]): The same, below a stage. Defaults to none.
    """

    #: What every name ends with
    leaves: ClassVar = {'c.weight': 'conv.weight', 'bn.': 'norm.'}

    def __init__(
        self, root: dict[str, str], block: dict[str, str], downsample: dict[str, str] | None = None
    ):
        self.parts = (root, block, downsample or {})
        self.reversed = tuple({v: k for k, v in part.items()} for part in self.parts)
        #: Both names of the first layer
        self.official_start, self.our_start = next(iter(root.items()))

    def to_ours(self, key: str) -> str:
        """Returns our name for an official one; any other name comes back as it is."""
        root, block, downsample = self.parts
        if match := re.match(r'head_blocks\.(\d+\.)', key):
            return f'blocks.{match[1]}' + self._leaf(key[match.end() :], block, self.leaves)
        if not (match := re.match(r'stages\.(\d+)\.(\d+)\.', key)):
            return self._leaf(key, root, self.leaves)
        stage, child = int(match[1]), int(match[2])
        rest = key[match.end() :]
        if stage and not child:
            return f'stages.{stage}.' + self._leaf(rest, downsample, self.leaves)
        # the official stages count the downsampling, which the first stage has not
        number = child - (stage > 0)
        return f'stages.{stage}.blocks.{number}.' + self._leaf(rest, block, self.leaves)

    def to_official(self, key: str) -> str:
        """Returns the official name for ours; any other name comes back as it is."""
        root, block, downsample = self.reversed
        leaves = {v: k for k, v in self.leaves.items()}
        if match := re.match(r'blocks\.(\d+\.)', key):
            return f'head_blocks.{match[1]}' + self._leaf(key[match.end() :], block, leaves)
        if match := re.match(r'stages\.(\d+)\.blocks\.(\d+)\.', key):
            child = int(match[2]) + (int(match[1]) > 0)
            return f'stages.{match[1]}.{child}.' + self._leaf(key[match.end() :], block, leaves)
        if match := re.match(r'stages\.(\d+)\.(?=downsample)', key):
            return f'stages.{match[1]}.0.' + self._leaf(key[match.end() :], downsample, leaves)
        return self._leaf(key, root, leaves)

    @staticmethod
    def _leaf(name: str, table: dict[str, str], leaves: dict[str, str]) -> str:
        for old in sorted(table, key=len, reverse=True):
            if name.startswith(old):
                rest = name[len(old) :]
                for leaf, new in leaves.items():
                    if rest.startswith(leaf):
                        rest = new + rest[len(leaf) :]
                        break
                return table[old] + rest
        return name


def _block(branches: dict[str, str], token_mixer: str = 'token_mixer.0') -> dict[str, str]:
    """The table below a block, given the branches of its depthwise convolutions."""
    table = {
        f'{token_mixer}.layer_scale': 'token_scale.scale',
        f'{token_mixer}.main.fc.': 'token_mixer.query.',
        'channel_mixer.layer_scale': 'channel_scale.scale',
        'channel_mixer.main.fc1.': 'channel_mixer.expand.',
        'channel_mixer.main.fc2.': 'channel_mixer.project.',
    }
    for official, ours in (
        (f'{token_mixer}.main.conv1.', 'token_mixer.key.'),
        (f'{token_mixer}.main.conv2.', 'token_mixer.value.'),
        ('channel_mixer.main.conv.', 'channel_mixer.dwconv.'),
    ):
        table[official] = ours
        table.update({f'{official}{k}.': f'{ours}{v}.' for k, v in branches.items()})
    return table


_PAIR = {'conv': 'large', 'conv1': 'small'}
_STRIPS = {'conv1': 'large', 'conv2': 'small', 'strip_conv1': 'row', 'strip_conv2': 'column'}

FFNET_NAMES = NameMap(
    root={'patch_embed.0.': 'stem.conv1.', 'patch_embed.2.': 'stem.conv2.'},
    block=_block(_PAIR),
    downsample={
        'proj.0.conv.': 'downsample.spatial.large.',
        'proj.0.conv1.': 'downsample.spatial.small.',
        'proj.1.conv.': 'downsample.channel.',
    },
)
FFNET_SEG_NAMES = NameMap(
    root={
        'patch_embed.0.': 'stem.conv1.',
        'patch_embed.2.': 'stem.conv2.',
        'patch_embed.4.': 'stem.conv3.',
        'patch_embed.5.': 'stem.conv4.',
    },
    block=_block(_STRIPS),
    downsample={'proj.0.': 'downsample.spatial.', 'proj.2.': 'downsample.channel.'},
)
FFNET_HEAD_NAMES = NameMap(
    root={
        'squeeze.0.': 'squeeze.conv1.',
        'squeeze.2.': 'squeeze.conv2.',
        'align.0.': 'align.conv.',
    },
    block=_block(_STRIPS, token_mixer='token_mixer'),
)
#: FFNet's root is a part of FFNetSeg's, which comes first therefore
_NETWORKS = (FFNET_SEG_NAMES, FFNET_NAMES, FFNET_HEAD_NAMES)


def find_networks(keys: Iterable[str], official: bool) -> dict[str, NameMap]:
    """Finds the networks in the names of a whole model.

    Args:
        keys (Iterable[str]): Names of parameters.
        official (bool): Whether to look for official names, or for ours.

    Returns:
        dict[str, NameMap]: Names of each network by its prefix.
    """
    keys = list(keys)
    found: dict[str, NameMap] = {}
    for names in _NETWORKS:
        root = names.parts[0]
        first, *others = root if official else root.values()
        prefixes = [key[: key.index(first)] for key in keys if f'.{first}' in f'.{key}']
        for prefix in dict.fromkeys(prefixes):
            if all(any(key.startswith(prefix + start) for key in keys) for start in others):
                found.setdefault(prefix, names)
    return found
