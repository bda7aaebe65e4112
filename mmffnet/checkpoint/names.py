"""The official parameter names and ours, in both directions, and where the official files are.

A family brings both: :func:`add_family` makes them known to the checkpoint tools.
"""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

#: '{2*i-1}' in a template: a factor, the letter of a number, a summand
_FIELD = re.compile(r'\{(?:(\d+)\*)?([a-z])([+-]\d+)?\}')


class _Template:
    """The start of names with numbers in it, such as ``network.{2*i-1}.``."""

    def __init__(self, text: str):
        self.text = text
        self.fields = [(m[2], int(m[1] or 1), int(m[3] or 0)) for m in _FIELD.finditer(text)]
        plain = [re.escape(part) for part in re.split(r'\{.*?\}', text)]
        self.pattern = re.compile(r'(\d+)'.join(plain))

    def read(self, name: str) -> tuple[dict[str, int], str] | None:
        """Returns the numbers in a name and what follows, None if it does not start so."""
        match = self.pattern.match(name)
        if match is None:
            return None
        numbers: dict[str, int] = {}
        for text, (letter, factor, summand) in zip(match.groups(), self.fields, strict=True):
            number, rest = divmod(int(text) - summand, factor)
            if rest or number < 0 or numbers.setdefault(letter, number) != number:
                return None
        return numbers, name[match.end() :]

    def write(self, numbers: Mapping[str, int]) -> str:
        return _FIELD.sub(lambda m: str(int(m[1] or 1) * numbers[m[2]] + int(m[3] or 0)), self.text)


class NameMap:
    """Translates parameter names of one network between the official ones and ours.

    A place is where names begin: two templates, ours and the official one, and a table of what
    follows there, ours to official. The first place that a name begins with counts, and in it the
    longest entry; what the table does not have is kept as it is.

    Args:
        root (dict[str, str]): Our name to the official one, of what is in no place. All of these
            names together tell the network from others; the first is that of the first layer.
        *places (tuple[str, str, dict[str, str]]): The places. Numbers are written ``{i}``,
            ``{i+1}``, ``{2*i-1}``.
        leaves (dict[str, str], optional): Ours to official, of what follows an entry of a table.
            Defaults to None, which is none.
        classifier (dict[str, str], optional): Name in mmpretrain's ImageClassifier to the official
            one, of what a classifier has besides the backbone. Defaults to None, which is none.

    Example:
        >>> names = NameMap(
        ...     {'stem.': 'patch_embed.proj.'},
        ...     ('stages.{i}.blocks.{j}.', 'network.{2*i}.{j}.', {'token_norm.': 'norm1.'}),
        ... )
        >>> names.to_ours('network.4.1.norm1.bias')
        'stages.2.blocks.1.token_norm.bias'
    """

    def __init__(
        self,
        root: dict[str, str],
        *places: tuple[str, str, dict[str, str]],
        leaves: dict[str, str] | None = None,
        classifier: dict[str, str] | None = None,
    ):
        self.root = root
        self.classifier = None if classifier is None else NameMap(classifier, leaves=leaves)
        every = [*places, ('', '', root)]
        self._places = [(_Template(ours), _Template(official)) for ours, official, _ in every]
        forth = [table for *_, table in every]
        back = [{v: k for k, v in table.items()} for table in forth]
        leaves = leaves or {}
        # each by the side that is read: ours, official
        self._tables = [_longest_first(tables) for tables in (forth, back)]
        self._leaves = [list(leaves.items()), [(v, k) for k, v in leaves.items()]]
        #: Both names of the first layer
        self.our_start, self.official_start = next(iter(root.items()))

    def is_folded(self, prefix: str, state: Container[str]) -> bool:
        """Whether the first layer, of our names below a prefix, has lost its norm."""
        return f'{prefix}{self.our_start}weight' in state

    def to_ours(self, key: str) -> str:
        """Returns our name for an official one; any other name comes back as it is."""
        return self._translate(key, 1)

    def to_official(self, key: str) -> str:
        """Returns the official name for ours; any other name comes back as it is."""
        return self._translate(key, 0)

    def _translate(self, key: str, side: int) -> str:
        for place, table in zip(self._places, self._tables[side], strict=True):
            if (found := place[side].read(key)) is None:
                continue
            numbers, rest = found
            for old, new in table:
                if rest.startswith(old):
                    rest = rest[len(old) :]
                    for leaf, other in self._leaves[side]:
                        if rest.startswith(leaf):
                            rest = other + rest[len(leaf) :]
                            break
                    rest = new + rest
                    break
            return place[1 - side].write(numbers) + rest
        return key


def _longest_first(tables: list[dict[str, str]]) -> list[list[tuple[str, str]]]:
    return [sorted(table.items(), key=lambda item: -len(item[0])) for table in tables]


@dataclass(frozen=True)
class OfficialFile:
    """An official checkpoint.

    Args:
        url (str): Its address, or that of the page to get it from by hand.
        by_hand (bool): Whether no program can download it. Defaults to False.
    """

    url: str
    by_hand: bool = False


#: Official checkpoints by short name (``mmffnet://ffnet2-distilled``)
OFFICIAL_WEIGHTS: dict[str, OfficialFile] = {}
#: Checkpoints that come with the package, by short name (``mmffnet://ffnet-nano``)
OWN_WEIGHTS: dict[str, Path] = {}
_NETWORKS: list[NameMap] = []


def add_family(
    *names: NameMap,
    weights: Mapping[str, OfficialFile],
    own_weights: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Makes a family's names known, and its official files and those of the package.

    Short names of files are ``<family>-<arch>...``.
    """
    known = {*OFFICIAL_WEIGHTS, *OWN_WEIGHTS}
    if twice := sorted(known.intersection([*weights, *own_weights])):
        raise ValueError(f'weights: there are checkpoints of these names already: {twice}')
    _NETWORKS.extend(names)
    OFFICIAL_WEIGHTS.update(weights)
    OWN_WEIGHTS.update(own_weights)


def find_networks(keys: Iterable[str], official: bool) -> dict[str, NameMap]:
    """Finds the networks in the parameters of a whole model: the names of each by its prefix."""
    keys = list(keys)
    found: dict[str, NameMap] = {}
    # a root may be a part of another's, which comes first therefore
    for names in sorted(_NETWORKS, key=lambda names: -len(names.root)):
        first, *others = names.root.values() if official else names.root
        prefixes = [key[: key.index(first)] for key in keys if f'.{first}' in f'.{key}']
        for prefix in dict.fromkeys(prefixes):
            if all(any(key.startswith(prefix + start) for key in keys) for start in others):
                found.setdefault(prefix, names)
    return found
