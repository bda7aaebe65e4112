"""Checkpoints as safetensors: weights, and metadata as JSON in the header, but never code."""

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from ..errors import DamagedCheckpointError, import_package


def read_safetensors(path: Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """Reads ``state_dict`` and ``meta`` if the file has our metadata, the tensors otherwise."""
    library: Any = import_package('safetensors', str(path))
    try:
        with library.safe_open(path, framework='pt') as file:
            names = file.keys()
            place = _place(map_location)
            tensors = {name: file.get_tensor(name).to(place) for name in names}
            header = file.metadata() or {}
    except library.SafetensorError as error:
        raise DamagedCheckpointError(f'cannot read {path}: it is damaged ({error})') from None
    meta = None
    with contextlib.suppress(ValueError):  # other programs may mean something else by it
        meta = json.loads(header.get('meta', 'null'))
    return dict(meta=meta, state_dict=tensors) if isinstance(meta, dict) else tensors


def _place(map_location: Any) -> Any:
    """Where tensors on the CPU go, by what ``torch.load`` takes."""
    if isinstance(map_location, dict):
        return map_location.get('cpu', 'cpu')
    if callable(map_location):
        moved = map_location(torch.UntypedStorage(0), 'cpu')
        return 'cpu' if moved is None else moved.device
    return map_location or 'cpu'


def dump_safetensors(content: dict[str, Any], path: Path) -> bytes:
    """Makes a file's content of ``state_dict`` and ``meta``, or of tensors alone.

    Of metadata, arrays become lists and what JSON does not know becomes text. ``path`` names the
    file in errors.
    """
    library: Any = import_package('safetensors.torch', str(path))
    tensors: dict[str, torch.Tensor] = {}
    places = set()
    for name, value in content.get('state_dict', content).items():
        dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
        if not dense or value.is_meta or value.is_quantized:
            raise ValueError(
                f'{path} cannot hold {name}, which is no plain tensor: take a name that ends in '
                '.pth'
            )
        tensor = value.detach().cpu().contiguous()
        # two names of one tensor are two tensors in a file
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in places else tensor
        places.add(place)
    meta = json.dumps(content.get('meta') or {}, default=_plain, skipkeys=True, ensure_ascii=False)
    return library.save(tensors, {'format': 'pt', 'meta': meta})


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, 'tolist') else str(value)
