"""Checkpoints: safe reading, atomic writing, names of parameters, strict loading, conversion."""

from .convert import convert_file, convert_names
from .files import atomic_write, download, read_checkpoint, save_atomically
from .hub import HUB
from .load import (
    SCHEME,
    find_state_dict,
    load_pretrained,
    load_strict,
    official_url,
    translate_state_dict,
)
from .names import (
    OFFICIAL_WEIGHTS,
    OWN_WEIGHTS,
    NameMap,
    OfficialFile,
    add_family,
    find_networks,
)

__all__ = [
    'HUB',
    'OFFICIAL_WEIGHTS',
    'OWN_WEIGHTS',
    'SCHEME',
    'NameMap',
    'OfficialFile',
    'add_family',
    'atomic_write',
    'convert_file',
    'convert_names',
    'download',
    'find_networks',
    'find_state_dict',
    'load_pretrained',
    'load_strict',
    'official_url',
    'read_checkpoint',
    'save_atomically',
    'translate_state_dict',
]
