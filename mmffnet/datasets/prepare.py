"""COCO, ADE20K and Cityscapes: fetched, checked, and laid out where the configs look for them."""

import hashlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from filelock import FileLock  # torch requires it

from ..checkpoint.files import atomic_path
from ..download import check_space, download_file, file_size
from ..errors import UsageError, naming
from .archives import Archive, DataSet

# Cityscapes' ids of the 19 classes that are trained, in the order of their training ids
_TRAINED_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def prepare(
    dataset: DataSet,
    root: str | os.PathLike[str] = 'data',
    archives: str | os.PathLike[str] | None = None,
    checksum: bool = True,
    force: bool = False,
    **options: Any,
) -> Path:
    """Make sure that a data set is there, and return its folder.

    What was interrupted is taken up again. The arguments are those of ``tools/prepare_data.py``,
    with one of :data:`~mmffnet.datasets.archives.DATASETS`, and the options of
    :func:`~mmffnet.download.download_file`.

    Raises:
        UsageError: If something is missing, damaged or in the way; a line for each problem.
        OSError: If something cannot be read or written, or another process is at it.
    """
    root = Path(root).expanduser()
    folder = root / dataset.folder
    store = root / 'archives' if archives is None else Path(archives).expanduser()
    files = {name: n for one in dataset.archives for name, n in one.files.items()}
    files |= dataset.train_ids
    lacking = _find_lacking(folder, files)
    needed = [one for one in dataset.archives if lacking.keys() & one.files.keys()]
    if lacking:
        print(f'{dataset.name}: {folder} lacks {", ".join(lacking.values())}')
        root.mkdir(parents=True, exist_ok=True)
        lock = root / f'.{dataset.name}.lock'
        with FileLock(lock, timeout=0):
            _fetch(needed, folder, store, checksum, options)
            for one in needed:
                tops = {pattern.partition('/')[0] for pattern in one.files}
                unpack(store / one.name, folder, tops, force)
            if dataset.train_ids:
                make_train_ids(folder)
            with suppress(PermissionError):  # on Windows, where the lock removes it
                lock.unlink(missing_ok=True)
        if lacking := _find_lacking(folder, files):
            raise UsageError(
                f'{folder} lacks {", ".join(lacking.values())}, although the archives are '
                'unpacked: fetch the archives from their official places'
            )
    summary = ', '.join(f'{number} {pattern}' for pattern, number in files.items())
    print(f'{dataset.name}: complete in {folder} ({summary})')
    if needed:
        print(f'The archives in {store} are not needed any more.')
    return folder


def _find_lacking(folder: Path, files: Mapping[str, int]) -> dict[str, str]:
    """The patterns that match too few files, and what to say of it."""
    lacking = {}
    for pattern, number in files.items():
        found = sum(not path.name.startswith('.') for path in folder.glob(pattern))
        if found > number:
            raise UsageError(
                f'{folder / pattern} matches {found} files instead of {number}: move those away '
                'that do not belong to the data set'
            )
        if found < number:
            lacking[pattern] = f'{number - found} of {number} {pattern}'
    return lacking


def _fetch(
    archives: list[Archive], folder: Path, store: Path, checksum: bool, options: dict[str, Any]
) -> None:
    """Make sure that archives are there and are the right ones."""
    absent = [one for one in archives if not (store / one.name).is_file()]
    left = [(one.size or 0) - file_size(store / f'{one.name}.part') for one in absent]
    copies = 2 if store.parent == folder.parent else 1  # what is unpacked is not smaller
    check_space(store, copies * sum(left))
    # what is there is looked at first: a complaint need not wait for long downloads
    for one in sorted(archives, key=absent.__contains__):
        path, part = store / one.name, store / f'{one.name}.part'
        try:
            if one in absent:
                if one.register:
                    raise ConnectionError(f'register at {one.register} first')
                with naming(part):
                    download_file(one.url, part, **options)
                part.rename(path)
            if checksum:
                verify(path, one)
        except ConnectionError as error:
            lines = [
                f'{other.name} cannot be downloaded ({error}): fetch {other.url} by other means '
                f'and put it at {store / other.name}'
                for other in absent[absent.index(one) :]
            ]
            raise UsageError('\n'.join(lines)) from error
        except UsageError:
            if one in absent:
                path.unlink(missing_ok=True)
            raise


def verify(path: Path, archive: Archive) -> None:
    """Raise UsageError if a file has not the size or checksum that is known of the archive."""
    fault = ''
    if archive.size not in (None, file_size(path)):
        fault = f'has {file_size(path)} bytes instead of {archive.size}'
    elif archive.checksum:
        print(f'checking {path}')
        algorithm, _, wanted = archive.checksum.partition(':')
        digest = hashlib.new(algorithm, usedforsecurity=False)
        with path.open('rb') as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != wanted:
            fault = f'has the {algorithm} {digest.hexdigest()} instead of {wanted}'
    if fault:
        raise UsageError(f'{path} {fault}: fetch {archive.url} again, or use --no-checksum')


def unpack(path: Path, folder: Path, tops: Collection[str], force: bool = False) -> None:
    """Unpack what is not there; a folder that did not exist appears complete or not at all.

    ``tops`` are the folders at the top level of the archive that are wanted; with ``force``, files
    that are there are replaced.
    """
    print(f'unpacking {path}')
    stage = folder / f'.{path.name}.unpacking'
    shutil.rmtree(stage, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as archive, naming(stage):
            files = []
            for info in archive.infolist():
                target = folder / info.filename
                if info.filename.partition('/')[0] not in tops or info.is_dir():
                    continue
                if force or not target.exists():
                    files.append(info)
                elif file_size(target) != info.file_size:
                    raise UsageError(
                        f'{target} differs from that in {path}: move it away, or use --force to '
                        'replace all files'
                    )
            check_space(folder, sum(info.file_size for info in files))
            archive.extractall(stage, files)  # it lets no path out of the folder
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        shutil.rmtree(stage, ignore_errors=True)
        raise UsageError(f'{path} is damaged ({error or repr(error)})') from error
    for top in stage.glob('*'):
        if (folder / top.name).exists():
            shutil.copytree(top, folder / top.name, dirs_exist_ok=True, copy_function=os.replace)
        else:
            top.rename(folder / top.name)
    shutil.rmtree(stage, ignore_errors=True)


def make_train_ids(folder: Path) -> None:
    """Make the files ``*_labelTrainIds.png`` of Cityscapes that are missing."""
    table = np.full(256, 255, np.uint8)
    table[list(_TRAINED_IDS)] = np.arange(len(_TRAINED_IDS))
    for path in sorted(folder.glob('gtFine/*/*/[!.]*_labelIds.png')):
        target = path.with_name(path.name.replace('_labelIds', '_labelTrainIds'))
        if target.exists():
            continue
        content = np.fromfile(path, np.uint8)  # OpenCV opens no names beyond ASCII on Windows
        labels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if len(content) else None
        if labels is None or labels.ndim != 2 or labels.dtype != np.uint8 or labels.max() > 33:
            raise UsageError(
                f'{path} is damaged or no label image of Cityscapes (one channel, 0 to 33): '
                'delete it and run this again'
            )
        with atomic_path(target) as unfinished:
            unfinished.write_bytes(cv2.imencode('.png', table[labels])[1].tobytes())
