"""Checkpoint files: read without running code, downloaded once, written atomically."""

import argparse
import codecs
import collections
import errno
import io
import os
import pickle
import re
import secrets
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer

from ..download import download_file
from ..errors import DamagedCheckpointError, UsageError
from .safe_tensors import dump_safetensors, read_safetensors

# What torch's reader is allowed belongs to the process: one thread at a time changes it.
_READING = threading.RLock()


def _history_method(owner: Any, name: str) -> Any:
    """Stands for the ``getattr`` by which a HistoryBuffer refers to its own methods in a file."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'GLOBAL getattr({owner!r}, {name!r})')
    return getattr(HistoryBuffer, name)


def _safe_globals() -> dict[str, Any]:
    """What the checkpoints of mmengine and timm hold beside tensors, by the name in the file."""
    named = {
        '_codecs.encode': codecs.encode,
        'argparse.Namespace': argparse.Namespace,
        'builtins.getattr': _history_method,
        'collections.Counter': collections.Counter,
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'numpy.dtype': np.dtype,
        'numpy.ndarray': np.ndarray,
        'torch.device': torch.device,
    }
    for package in ('numpy.core', 'numpy._core'):  # the names of numpy 1 and numpy 2
        named[f'{package}.multiarray._reconstruct'] = np.array(0).__reduce__()[0]
        named[f'{package}.multiarray.scalar'] = np.float64(0).__reduce__()[0]
    for code in np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?SU':
        kind = type(np.dtype(code))
        named[f'numpy.dtypes.{kind.__name__}'] = kind
    return named


def _torch_load(file: BinaryIO, map_location: Any) -> Any:
    """Reads with torch's safe reader, which is allowed :func:`_safe_globals` meanwhile."""
    ours = [(value, name) for name, value in _safe_globals().items()]
    with _READING:
        # leaving torch's context takes away all that it names, a host's own allowance included
        there = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([entry for entry in ours if entry not in there]):
            return torch.load(file, map_location=map_location, weights_only=True)


class _UnfitArchiveError(ValueError):
    """An archive that is whole, but no checkpoint."""


def _open_checkpoint(path: Path) -> BinaryIO:
    """The checkpoint file, or the single checkpoint inside a zip archive, in memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith('__MACOSX/')]
            if any(name.endswith('/constants.pkl') for name in names):
                raise _UnfitArchiveError(f'{path} is a TorchScript model, not a checkpoint')
            if not any(name.endswith('/data.pkl') for name in names):
                inside = [name for name in names if name.endswith(('.pth', '.pth.tar', '.pt'))]
                if len(inside) != 1:
                    raise _UnfitArchiveError(
                        f'{path} must hold exactly one checkpoint (.pth, .pth.tar or .pt), but '
                        f'holds {len(inside)}: unpack it and give the file that you mean'
                    )
                return io.BytesIO(archive.read(inside[0]))
    return path.open('rb')


def read_checkpoint(path: Any, map_location: Any = 'cpu') -> Any:
    """Read a checkpoint file without ever running code from it.

    Args:
        path (str | Path): A file written by ``torch.save``, a zip archive that holds one, or a
            file of safetensors.
        map_location (optional): As in ``torch.load``. Defaults to 'cpu'.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file asks for a class or function that is not known to be harmless.
        DamagedCheckpointError: If the file is damaged, incomplete or no checkpoint at all.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist or is not a file')
    if path.suffix == '.safetensors':
        return read_safetensors(path, map_location)
    try:
        with _open_checkpoint(path) as file:
            return _torch_load(file, map_location)
    except Exception as error:  # damage can look like anything
        raise _explain(error, path) from None


def _explain(error: Exception, path: Path) -> Exception:
    """A clear error for a file that was refused or is damaged; any other comes back as it is."""
    text = str(error).split('WeightsUnpickler error:')[-1].strip() or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):
        refused = re.search(
            r'GLOBAL (.+?)(?: was not | whose module |$)|unrecognized function (.+)|but got (.+)',
            text,
            re.MULTILINE,
        )
        if refused:
            name = next(filter(None, refused.groups()))
            return ValueError(
                f'refused to read the checkpoint {path}: it asks for {name}, which is not known '
                'to be harmless. Only if you trust its author, load it yourself with '
                "torch.load(..., weights_only=False) and save its 'state_dict' alone."
            )
    damage = 'PytorchStreamReader|EOF|corrupt|byte size|[.]tar format'
    if (
        isinstance(error, MemoryError | _UnfitArchiveError)
        or (isinstance(error, RuntimeError) and not re.search(damage, text))
        # seeking to a place that damage names is EINVAL, and decoders give no number
        or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL))
    ):
        return error  # a device that is not there, for example
    reason = re.split(r'\. |\n', text)[0]
    with path.open('rb') as file:
        if file.read(64).lstrip().startswith(b'<'):
            reason = 'it is a web page'
    return DamagedCheckpointError(
        f'cannot read {path} ({path.stat().st_size} bytes): it is damaged, incomplete or not a '
        f'checkpoint ({reason}). Fetch it again; delete it first if it was downloaded.'
    )


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Replaces mmengine's loader of local files."""
    return read_checkpoint(filename, map_location)


def load_from_http(
    filename: str, map_location: Any = None, model_dir: Any = None, progress: bool = True
) -> Any:
    """Replaces mmengine's loader of http(s) addresses."""
    return read_checkpoint(download(filename, model_dir, progress), map_location)


def load_from_storage(filename: str, map_location: Any = None, backend: str = 'petrel') -> Any:
    """Replaces mmengine's loader of files on its storage backends."""
    storage = get_file_backend(filename, backend_args=dict(backend=backend))
    return _torch_load(io.BytesIO(storage.get(filename)), map_location)


def download(url: str, folder: Any = None, progress: bool = True) -> Path:
    """Download a file once, and return where it is: in torch.hub's folder, unless one is given.

    In distributed runs every rank must call it: rank 0 downloads, the others wait, and download
    for themselves only if they do not share its disk.
    """
    folder = Path(torch.hub.get_dir(), 'checkpoints') if folder is None else Path(folder)
    name = Path(unquote(urlparse(url).path)).name
    if not name:
        raise ValueError(f'{url} names no file to download')
    path = folder.expanduser() / name
    return main_first(lambda: _fetch(url, path, progress and get_rank() == 0))


def main_first(fetch: Callable[[], Path]) -> Path:
    """Lets rank 0 fetch a file, then the others, who find it there if they share its disk."""
    path = None
    try:
        if get_rank() == 0:
            path = fetch()
    finally:
        barrier()
    return path or fetch()


def _fetch(url: str, path: Path, progress: bool) -> Path:
    if path.is_file():
        return path
    try:
        with atomic_path(path) as unfinished:
            download_file(url, unfinished, attempts=1, progress=progress)
    except ConnectionError as error:
        raise ConnectionError(
            f'cannot download {url} ({error}). Without a connection, fetch it elsewhere and put '
            f'it at {path}'
        ) from error
    return path


def save_atomically(content: Any, path: str | os.PathLike, force: bool = False) -> None:
    """Writes a checkpoint that is either whole or not there.

    Into a file that ends in ``.safetensors``, ``state_dict`` and ``meta`` alone are written.
    """
    path = Path(path)
    refuse_existing([path], force)
    with atomic_write(path) as file:
        if path.suffix == '.safetensors':
            file.write(dump_safetensors(content, path))
        else:
            torch.save(content, file)


def refuse_existing(paths: Iterable[Path], force: bool) -> None:
    """Raises FileExistsError for a file that is there, unless it may be replaced."""
    for path in paths:
        if path.exists() and not force:
            raise FileExistsError(
                f'{path} exists already; give another name, or --force to replace it'
            )


def check_writable(folder: Path) -> None:
    """Makes a folder, and raises UsageError if nothing could be written there.

    Before long work, whose results would be lost.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"'{folder}' cannot be a folder for results: {error}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"nothing can be written in the folder '{folder}'")


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears under its name when it is complete, or not at all.

    What is written goes to ``.<name>.<random>.tmp`` beside it, which only a killed process leaves
    behind; a file that was there before is replaced at the end. Its folder is made if need be.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as unfinished, unfinished.open('xb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """The same for what writes to a path: gives one that is moved to its place at the end."""
    path = Path(path)
    # made without tempfile, whose files are for their owner alone
    unfinished = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
