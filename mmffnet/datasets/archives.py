"""Archives of data sets: downloaded with resume, verified, and unpacked without surprises."""

import hashlib
import os
import re
import shutil
import stat
import sys
import time
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PureWindowsPath
from urllib.error import HTTPError
from urllib.request import Request, build_opener

_CHUNK = 1 << 18
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


class PreparationError(RuntimeError):
    """What keeps a data set from being prepared: one sentence for each problem."""

    def __init__(self, *problems: str) -> None:
        super().__init__('\n'.join(problems))
        self.problems = problems


class _Interrupted(Exception):
    """A transfer that broke off and is worth another try."""


class Progress:
    """Counts what is done: one living line in a terminal, a line each tenth in a log file.

    Args:
        label (str): What is done.
        total (int, optional): How much there is to do, None if that is not known.
        done (int): How much was done before. Defaults to 0.
        unit (str): 'bytes', or what is counted. Defaults to 'bytes'.
    """

    def __init__(self, label: str, total: int | None, done: int = 0, unit: str = 'bytes') -> None:
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self._before, self._start = done, time.monotonic()
        self._shown, self._last = -1, 0.0
        self._live = sys.stderr.isatty()

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._show()
            print(file=sys.stderr)

    def add(self, amount: int) -> None:
        self.done += amount
        now = time.monotonic()
        if self._live:
            due = now - self._last > 0.2
        elif self.total:
            due = 10 * self.done // self.total > self._shown
        else:
            due = now - self._last > 30
        if due:
            self._last = now
            self._show()

    def _show(self) -> None:
        spent = time.monotonic() - self._start
        rate = (self.done - self._before) / spent if spent else 0
        text = f'{self.label}: {self._amount(self.done)}'
        if self.total:
            self._shown = 10 * self.done // self.total
            text += f' of {self._amount(self.total)} ({100 * self.done // self.total} %)'
        if rate:
            text += f', {self._amount(int(rate))}/s'
        if rate and self.total:
            left = int((self.total - self.done) / rate)
            text += f', {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left'
        before, after = ('\r\033[K', '') if self._live else ('', '\n')
        print(f'{before}{text}', end=after, file=sys.stderr, flush=True)

    def _amount(self, number: int) -> str:
        return show_bytes(number) if self.unit == 'bytes' else f'{number} {self.unit}'


def show_bytes(number: int) -> str:
    """Return a number of bytes as people write it."""
    for power, unit in ((9, 'GB'), (6, 'MB'), (3, 'kB')):
        if number >= 10**power:
            return f'{number / 10**power:.1f} {unit}'
    return f'{number} bytes'


def check_space(*needs: tuple[Path, int]) -> None:
    """Raise PreparationError if a disk has no room for what is to be written to these folders.

    Args:
        needs (tuple[Path, int]): Folders, which need not exist yet, and numbers of bytes.
    """
    disks: dict[int, tuple[Path, int]] = {}
    for folder, amount in needs:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        disk = existing.stat().st_dev
        disks[disk] = (existing, disks.get(disk, (existing, 0))[1] + amount)
    for existing, amount in disks.values():
        free = shutil.disk_usage(existing).free
        if amount > free:
            raise PreparationError(
                f'{show_bytes(amount)} are needed on the disk of {existing}, but only '
                f'{show_bytes(free)} are free: make room or choose a folder on another disk'
            )


def download(
    url: str,
    path: Path,
    size: int | None = None,
    attempts: int = 4,
    pause: float = 1.0,
    timeout: float = 30.0,
) -> None:
    """Download a file, continuing where an earlier call or connection broke off.

    Args:
        url (str): An http(s) address.
        path (Path): The file; what it holds is taken for the beginning.
        size (int, optional): The length that the file must have. Defaults to None.
        attempts (int): Connections in a row that may bring nothing. Defaults to 4.
        pause (float): Seconds before the second of them; doubles each time. Defaults to 1.0.
        timeout (float): Seconds of silence that end a connection. Defaults to 30.0.

    Raises:
        ConnectionError: If the file cannot be had. What has come stays in ``path``.
        PreparationError: If the server's file has another length, or the disk no room.
        OSError: If ``path`` cannot be written.
    """
    failures = 0
    while True:
        before = _size(path)
        try:
            return _receive(url, path, size, timeout)
        except _Interrupted as error:
            failures = 0 if _size(path) > before else failures + 1
            if failures >= attempts:
                raise ConnectionError(str(error)) from error
            print(f'{url}: {error}; trying again', file=sys.stderr)
        time.sleep(pause * 2 ** max(failures - 1, 0))


def _receive(url: str, path: Path, size: int | None, timeout: float) -> None:
    """Append what one connection brings."""
    offset = _size(path)
    if size is not None and offset == size:
        return
    request = Request(url, headers={'Range': f'bytes={offset}-'} if offset else {})
    try:
        response = build_opener().open(request, timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code == 416:
            if error.headers.get('Content-Range') == f'bytes */{offset}':
                return  # all of it had come
            path.unlink()
            raise _Interrupted('the server has another file than the one begun') from error
        if error.code >= 500 or error.code in (408, 429):
            raise _Interrupted(str(error)) from error
        raise ConnectionError(str(error)) from error
    except (OSError, HTTPException) as error:
        raise _Interrupted(str(getattr(error, 'reason', error)) or repr(error)) from error
    with response:
        start, total = _extent(response)
        if start not in (0, offset):
            path.unlink()
            raise _Interrupted('the server sent another part of the file than was asked for')
        if size is not None and total is not None and size != total:
            raise PreparationError(
                f'{url} is {total} bytes long, not {size}: it is not the file that is expected'
            )
        if total is not None:
            check_space((path.parent, total - start))
        label = f'downloading {path.name.removesuffix(".part")}'
        with _named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open('ab' if start else 'wb') as file, Progress(label, total, start) as bar:
                while chunk := _read(response):
                    file.write(chunk)
                    bar.add(len(chunk))
    if total is not None and _size(path) != total:
        raise _Interrupted(f'the connection ended after {_size(path)} of {total} bytes')


def _extent(response: HTTPResponse) -> tuple[int, int | None]:
    """Where the body begins in the file, and how long the file is if the server says so."""
    if response.status == 206:
        content_range = response.headers.get('Content-Range', '')
        found = re.fullmatch(r'bytes (\d+)-\d+/(\d+|\*)', content_range)
        if found is None:
            raise ConnectionError(f'the server sent a strange Content-Range: {content_range!r}')
        return int(found[1]), int(found[2]) if found[2] != '*' else None
    length = response.headers.get('Content-Length', '')
    return 0, int(length) if length.isdecimal() else None


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, HTTPException) as error:
        raise _Interrupted(f'the connection broke ({error or repr(error)})') from error


def verify(path: Path, size: int | None, checksum: str | None) -> None:
    """Raise PreparationError if a file is not the one that it should be.

    Args:
        path (Path): The file.
        size (int, optional): Its length in bytes, None if that is not known.
        checksum (str, optional): Its checksum such as 'md5:0123...', None if that is not known.
    """
    found = path.stat().st_size
    if size is not None and found != size:
        raise PreparationError(f'{path} has {found} bytes instead of {size}')
    if checksum is None:
        return
    algorithm, _, wanted = checksum.partition(':')
    digest = hashlib.new(algorithm, usedforsecurity=False)
    label = f'checking {path.name.removesuffix(".part")}'
    with path.open('rb') as file, Progress(label, found) as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.add(len(chunk))
    if digest.hexdigest() != wanted:
        raise PreparationError(
            f'{path} is damaged or another file: its {algorithm.upper()} is {digest.hexdigest()} '
            f'instead of {wanted}'
        )


def stage_of(name: str, folder: Path) -> Path:
    """Return where an archive is being unpacked; not there before and after."""
    return folder / f'.{name}.unpacking'


def unpack(path: Path, folder: Path, wanted: Collection[str], force: bool = False) -> None:
    """Unpack folders of a zip archive; what is already there, in full, is not written again.

    The files are unpacked beside their place and moved there when all of them are, so a folder
    that did not exist appears complete or not at all. A call that was killed is completed by the
    next one. Nothing is written if the archive holds any absolute path, '..', link or device.

    Args:
        path (Path): The archive.
        folder (Path): Where to unpack it.
        wanted (Collection[str]): The folders at the archive's top level that are unpacked.
        force (bool): Whether to replace files that differ from the archive's. Defaults to False.

    Raises:
        PreparationError: If the archive is damaged or unsafe, holds none of a wanted folder, the
            disk has no room, or files are there that differ from the archive's.
        OSError: If something cannot be read or written; names the file.
    """
    stage = stage_of(path.name, folder)
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path, wanted)
            total = sum(info.file_size for info in members)
            with Progress(f'unpacking {path.name}', total) as bar:
                members = [info for info in members if not _is_there(folder, info, bar)]
                if not force:
                    _refuse_others(path, [folder / info.filename for info in members])
                members = [info for info in members if not _is_there(stage, info, bar)]
                check_space((folder, sum(info.file_size for info in members)))
                for info in members:
                    _extract(archive, info, stage / info.filename)
                    bar.add(info.file_size)
    except _DAMAGE as error:
        shutil.rmtree(stage, ignore_errors=True)
        raise PreparationError(f'{path} is damaged ({error or repr(error)})') from error
    if stage.is_dir():
        if hasattr(os, 'sync'):
            os.sync()  # no file may be in its place, after a loss of power, without its contents
        _move(stage, folder)


def _members(
    archive: zipfile.ZipFile, path: Path, wanted: Collection[str]
) -> list[zipfile.ZipInfo]:
    members = {}
    for info in archive.infolist():
        # Windows' idea of a path: drives, and slashes of both kinds
        name = PureWindowsPath(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if name.anchor or '..' in name.parts or '\\' in info.filename or not name.parts:
            fault = 'leads out of its folder'
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            fault = 'is a link or a device'
        elif info.flag_bits & 1:
            fault = 'is encrypted'
        elif info.filename in members:
            fault = 'is there twice'
        else:
            members[info.filename] = info
            continue
        raise PreparationError(
            f'{path} is not unpacked, because {info.filename!r} in it {fault}: fetch the archive '
            'from its official place'
        )
    found = [
        info
        for info in members.values()
        if not info.filename.endswith('/') and info.filename.partition('/')[0] in wanted
    ]
    for top in wanted:
        if not any(info.filename.startswith(f'{top}/') for info in found):
            raise PreparationError(f'{path} is another archive: there is no {top}/ in it')
    return found


def _is_there(folder: Path, info: zipfile.ZipInfo, bar: Progress) -> bool:
    path = folder / info.filename
    if not path.is_file() or path.stat().st_size != info.file_size:
        return False
    crc = 0
    with path.open('rb') as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    if crc == info.CRC:
        bar.add(info.file_size)
    return crc == info.CRC


def _refuse_others(archive: Path, paths: list[Path]) -> None:
    others = [path for path in paths if path.exists() or path.is_symlink()]
    if others:
        more = f' and {len(others) - 1} more differ' if others[1:] else ' differs'
        raise PreparationError(
            f'{others[0]}{more} from what {archive} holds: move that away, or use --force to '
            'replace it'
        )


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, target.open('wb') as file:
            shutil.copyfileobj(source, file, _CHUNK)


def _move(source: Path, target: Path) -> None:
    """Move a file or folder into its place, or its contents where the folder is there already."""
    if source.is_dir() and target.is_dir():
        for child in list(source.iterdir()):
            _move(child, target / child.name)
        source.rmdir()
    else:
        source.replace(target)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the name of the file to the error of a full disk, which comes without."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(error.filename or path)) from error
