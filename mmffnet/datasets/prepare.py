"""COCO, ADE20K and Cityscapes: fetched, checked, and laid out where the configs look for them."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from .archives import (
    PreparationError,
    Progress,
    check_space,
    download,
    show_bytes,
    stage_of,
    unpack,
    verify,
)


@dataclass(frozen=True)
class Archive:
    """An archive that a data set is published in.

    Args:
        name (str): Its file name.
        url (str): Where it is published.
        files (Mapping[str, int]): What of it a data set needs: patterns, below the folder of the
            data set, and how many files they match.
        size (int, optional): Its length in bytes, if that is known. Defaults to None.
        checksum (str, optional): Its checksum such as 'md5:0123...', if one is known. Defaults to
            None.
        register (str, optional): Where one has to register before it can be fetched, by hand;
            None if anybody can download it. Defaults to None.
    """

    name: str
    url: str
    files: Mapping[str, int]
    size: int | None = None
    checksum: str | None = None
    register: str | None = None


@dataclass(frozen=True)
class DataSet:
    """A data set, and how it is laid out on disk.

    Args:
        name (str): What it is called.
        folder (str): Its folder, below the folder of all data sets.
        archives (tuple[Archive, ...]): What it is published in.
        made (Mapping[str, int]): Patterns and numbers of files that ``make`` adds. Defaults to
            none.
        make (Callable, optional): Adds to the unpacked files, in the folder that it is given,
            those that are missing of ``made``. Defaults to None.
    """

    name: str
    folder: str
    archives: tuple[Archive, ...]
    made: Mapping[str, int] = field(default_factory=dict)
    make: Callable[[Path], None] | None = None

    @property
    def files(self) -> dict[str, int]:
        """Patterns and numbers of all files that the data set needs."""
        files: dict[str, int] = {}
        for archive in self.archives:
            files |= archive.files
        return files | dict(self.made)


def prepare(
    dataset: DataSet,
    root: str | os.PathLike[str] = 'data',
    archives: str | os.PathLike[str] | None = None,
    *,
    checksum: bool = True,
    force: bool = False,
    attempts: int = 4,
    pause: float = 1.0,
) -> Path:
    """Make sure that a data set is there, and fetch what of it is not.

    Every step can be interrupted, or killed, and is taken up again by the next call.

    Args:
        dataset (DataSet): One of :data:`DATASETS`.
        root (str | PathLike): The folder of all data sets. Defaults to 'data'.
        archives (str | PathLike, optional): Where the archives are, or are downloaded to.
            Defaults to None, the folder 'archives' in ``root``.
        checksum (bool): Whether to accept only the archives whose size and checksum are known;
            where not, the checksums inside the archives remain. Defaults to True.
        force (bool): Whether to replace files that differ from the archives'. Defaults to False.
        attempts (int): As in :func:`~mmffnet.datasets.archives.download`. Defaults to 4.
        pause (float): As in :func:`~mmffnet.datasets.archives.download`. Defaults to 1.0.

    Returns:
        Path: The folder of the data set.

    Raises:
        PreparationError: If something is missing, damaged or in the way; says what to do.
        OSError: If something cannot be read or written; names the file.
    """
    root = Path(root).expanduser()
    folder = root / dataset.folder
    store = root / 'archives' if archives is None else Path(archives).expanduser()
    lacking = _lacking(folder, dataset.files)
    if not lacking and not _needed(dataset, folder):
        print(f'{dataset.name}: complete in {folder}, nothing to do ({_summary(dataset)})')
        return folder
    print(f'{dataset.name}: {folder} lacks', _amounts(lacking) or 'what is being unpacked')
    with _alone(root, dataset.name):
        needed = _needed(dataset, folder)
        _refuse_by_hand(needed, store)
        _check_room(needed, folder, store)
        # what is there is looked at first: long downloads need not precede a complaint
        for archive in sorted(needed, key=lambda archive: not (store / archive.name).is_file()):
            try:
                _obtain(archive, store, checksum, attempts, pause)
            except ConnectionError as error:
                raise PreparationError(*_by_other_means(needed, store, archive, error)) from error
        for archive in needed:
            tops = {pattern.partition('/')[0] for pattern in archive.files}
            unpack(store / archive.name, folder, sorted(tops), force)
        if dataset.make is not None and _lacking(folder, dataset.made):
            dataset.make(folder)
    lacking = _lacking(folder, dataset.files)
    if lacking:
        raise PreparationError(
            *(
                f'{folder / pattern} matches {found} files instead of {number}, although the '
                'archives are unpacked: fetch the archives from their official places'
                for pattern, (found, number) in lacking.items()
            )
        )
    print(f'{dataset.name}: complete in {folder} ({_summary(dataset)})')
    if needed:
        print(f'The archives in {store} are not needed any more.')
    return folder


def _needed(dataset: DataSet, folder: Path) -> list[Archive]:
    """The archives that are not, or not entirely, unpacked."""
    return [
        archive
        for archive in dataset.archives
        if _lacking(folder, archive.files) or stage_of(archive.name, folder).exists()
    ]


def _lacking(folder: Path, files: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """The patterns that match too few files, with how many there are and should be."""
    lacking = {}
    for pattern, number in files.items():
        found = sum(not path.name.startswith('.') for path in folder.glob(pattern))
        if found > number:
            raise PreparationError(
                f'{folder / pattern} matches {found} files instead of {number}: move those away '
                'that do not belong to the data set'
            )
        if found < number:
            lacking[pattern] = found, number
    return lacking


def _amounts(lacking: Mapping[str, tuple[int, int]]) -> str:
    return ', '.join(
        f'{number - found} of {number} {pattern}' for pattern, (found, number) in lacking.items()
    )


def _summary(dataset: DataSet) -> str:
    return ', '.join(f'{number} {pattern}' for pattern, number in dataset.files.items())


def _check_room(archives: list[Archive], folder: Path, store: Path) -> None:
    """Say before a long download that the disk is too small for it, as far as sizes are known."""
    needs = []
    for archive in archives:
        path = store / archive.name
        if archive.size is not None and not path.is_file():
            part = _part(path)
            begun = part.stat().st_size if part.is_file() else 0
            lacking = _lacking(folder, archive.files).values()
            share = sum(number - found for found, number in lacking) / sum(archive.files.values())
            # at least: what is unpacked is never smaller
            needs += [(store, archive.size - begun), (folder, int(share * archive.size))]
    check_space(*needs)


def _part(path: Path) -> Path:
    return path.with_name(f'{path.name}.part')


def _refuse_by_hand(archives: list[Archive], store: Path) -> None:
    """Say all at once which archives somebody has to log in for."""
    absent = [
        archive for archive in archives if archive.register and not (store / archive.name).is_file()
    ]
    if absent:
        raise PreparationError(
            *(
                f'{_title(archive)} can only be fetched by hand: register at {archive.register}, '
                f'log in, fetch {archive.url} and put it at {store / archive.name}'
                for archive in absent
            )
        )


def _obtain(archive: Archive, store: Path, checksum: bool, attempts: int, pause: float) -> None:
    """Make sure that an archive is there and is the right one."""
    path = store / archive.name
    size, digest = (archive.size, archive.checksum) if checksum else (None, None)
    if path.is_file():
        try:
            verify(path, size, digest)
        except PreparationError as error:
            raise PreparationError(
                f'{error}: delete it and fetch {archive.url} again, or use --no-checksum to accept '
                'it as it is'
            ) from error
        return
    part = _part(path)
    download(archive.url, part, size, attempts, pause)
    try:
        verify(part, size, digest)
    except PreparationError as error:
        part.unlink()
        raise PreparationError(
            f'what {archive.url} gave was not kept, because {error}: try again'
        ) from error
    part.rename(path)


def _by_other_means(
    archives: list[Archive], store: Path, failed: Archive, error: ConnectionError
) -> Iterator[str]:
    for archive in archives:
        path = store / archive.name
        if not path.is_file():
            fault = f'cannot be downloaded ({error})' if archive is failed else 'is needed, too'
            yield (
                f'{_title(archive)} {fault}: try again later, or fetch {archive.url} by other '
                f'means and put it at {path}'
            )


def _title(archive: Archive) -> str:
    return archive.name + (f' ({show_bytes(archive.size)})' if archive.size else '')


@contextmanager
def _alone(root: Path, name: str) -> Iterator[None]:
    """Keep a second process from preparing the same data set at the same time."""
    try:
        import fcntl
    except ImportError:  # there are no such locks on Windows
        yield
        return
    root.mkdir(parents=True, exist_ok=True)
    path = root / f'.{name}.lock'
    with path.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise PreparationError(
                    f'another process is preparing {name} in {root}: wait for it'
                ) from error
            # else: a file system without locks
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


# Cityscapes: the ids, in the files *_labelIds.png, of the 19 classes that are trained, in the order
# of their training ids. All other ids, 0 to 33, are ignored in training.
_TRAINED_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_HIGHEST_ID = 33
_IGNORED = 255


def make_train_ids(folder: Path) -> None:
    """Make the files ``*_labelTrainIds.png`` of Cityscapes from ``*_labelIds.png``.

    Those that are there already are left alone.

    Args:
        folder (Path): The folder of Cityscapes, with ``gtFine/<split>/<city>/`` in it.

    Raises:
        PreparationError: If a file is not a label image of Cityscapes; names it.
    """
    pairs = [
        (source, source.with_name(source.name.replace('_labelIds.png', '_labelTrainIds.png')))
        for source in sorted(folder.glob('gtFine/*/*/*_gtFine_labelIds.png'))
        if not source.name.startswith('.')
    ]
    pairs = [(source, target) for source, target in pairs if not target.exists()]
    label = 'converting label ids to training ids'
    with Progress(label, len(pairs), unit='files') as bar, ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda pair: _write_train_ids(*pair), pairs):
            bar.add(1)


def _write_train_ids(source: Path, target: Path) -> None:
    data = np.fromfile(source, np.uint8)
    labels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if labels is None or labels.ndim != 2 or labels.dtype != np.uint8:
        raise PreparationError(
            f'{source} is damaged or no label image (one channel of 8 bits): delete it and run '
            'this again'
        )
    if labels.max() > _HIGHEST_ID:
        raise PreparationError(
            f'{source} holds the label {labels.max()}, but the labels of Cityscapes end at '
            f'{_HIGHEST_ID}: delete it and run this again'
        )
    table = np.full(256, _IGNORED, np.uint8)
    table[list(_TRAINED_IDS)] = np.arange(len(_TRAINED_IDS))
    unfinished = target.with_name(f'.{target.name}')
    unfinished.write_bytes(cv2.imencode('.png', table[labels])[1].tobytes())
    unfinished.replace(target)


_COCO = DataSet(
    name='coco',
    folder='coco',
    archives=(
        Archive(
            name='annotations_trainval2017.zip',
            url='http://images.cocodataset.org/annotations/annotations_trainval2017.zip',
            files={
                'annotations/instances_train2017.json': 1,
                'annotations/instances_val2017.json': 1,
            },
            size=252907541,
            checksum='sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268',
        ),
        Archive(
            name='val2017.zip',
            url='http://images.cocodataset.org/zips/val2017.zip',
            files={'val2017/*.jpg': 5000},
            size=815585330,
            checksum='sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05',
        ),
        Archive(
            name='train2017.zip',
            url='http://images.cocodataset.org/zips/train2017.zip',
            files={'train2017/*.jpg': 118287},
            size=19336861798,
            checksum='sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929',
        ),
    ),
)

_ADE20K = DataSet(
    name='ade20k',
    folder='ade',
    archives=(
        Archive(
            name='ADEChallengeData2016.zip',
            url='http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
            files={
                'ADEChallengeData2016/images/training/*.jpg': 20210,
                'ADEChallengeData2016/images/validation/*.jpg': 2000,
                'ADEChallengeData2016/annotations/training/*.png': 20210,
                'ADEChallengeData2016/annotations/validation/*.png': 2000,
            },
            checksum='md5:7328b3957e407ddae1d3cbf487f149ef',
        ),
    ),
)

_CITYSCAPES = DataSet(
    name='cityscapes',
    folder='cityscapes',
    archives=(
        Archive(
            name='gtFine_trainvaltest.zip',
            url='https://www.cityscapes-dataset.com/file-handling/?packageID=1',
            files={
                'gtFine/train/*/*_gtFine_labelIds.png': 2975,
                'gtFine/val/*/*_gtFine_labelIds.png': 500,
            },
            size=252567705,
            checksum='md5:4237c19de34c8a376e9ba46b495d6f66',
            register='https://www.cityscapes-dataset.com/register/',
        ),
        Archive(
            name='leftImg8bit_trainvaltest.zip',
            url='https://www.cityscapes-dataset.com/file-handling/?packageID=3',
            files={
                'leftImg8bit/train/*/*_leftImg8bit.png': 2975,
                'leftImg8bit/val/*/*_leftImg8bit.png': 500,
            },
            size=11592327197,
            checksum='md5:0a6e97e94b616a514066c9e2adb0c97f',
            register='https://www.cityscapes-dataset.com/register/',
        ),
    ),
    made={
        'gtFine/train/*/*_gtFine_labelTrainIds.png': 2975,
        'gtFine/val/*/*_gtFine_labelTrainIds.png': 500,
    },
    make=make_train_ids,
)

DATASETS = {dataset.name: dataset for dataset in (_COCO, _ADE20K, _CITYSCAPES)}
