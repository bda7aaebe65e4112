"""Downloads that go on where an earlier call or connection broke off."""

import shutil
import ssl
import sys
import time
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

from torch.hub import tqdm

from .errors import UsageError

_BROKEN = (URLError, ConnectionError, TimeoutError, HTTPException, ssl.SSLError)


def download_file(
    url: str,
    path: Path,
    attempts: int = 4,
    pause: float = 1.0,
    timeout: float = 30.0,
    progress: bool = True,
) -> None:
    """Download a file; what it holds already is taken for the beginning.

    So many ``attempts`` in a row may bring nothing; the ``pause`` before the next one doubles each
    time, and ``timeout`` seconds of silence end a connection.

    Raises:
        ConnectionError: If the file cannot be had. What has come stays in ``path``.
    """
    failures = 0
    while True:
        before = file_size(path)
        try:
            return _receive(url, path, timeout, progress)
        except _BROKEN as error:
            failures = 0 if file_size(path) > before else failures + 1
            code = error.code if isinstance(error, HTTPError) else 500
            if code == 416:  # the server's file is shorter
                path.unlink()
            elif failures >= attempts or (code < 500 and code not in (408, 429)):
                raise ConnectionError(str(error)) from error
            print(f'{url}: {error}; trying again', file=sys.stderr)
        time.sleep(pause * 2 ** max(failures - 1, 0))


def _receive(url: str, path: Path, timeout: float, progress: bool) -> None:
    """Append what one connection brings."""
    offset = file_size(path)
    headers = {'User-Agent': 'mmffnet'} | ({'Range': f'bytes={offset}-'} if offset else {})
    # an opener of its own: the environment may name another proxy than before
    with build_opener().open(Request(url, headers=headers), timeout=timeout) as response:
        if response.status != 206:
            offset = 0
        total = None if response.length is None else offset + response.length
        check_space(path.parent, response.length or 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        style = dict(unit='B', unit_scale=True, mininterval=0.1 if sys.stderr.isatty() else 30)
        bar = tqdm(total=total, initial=offset, desc=path.name, disable=not progress, **style)
        with path.open('ab' if offset else 'wb') as file, bar:
            while chunk := response.read(1 << 18):
                file.write(chunk)
                bar.update(len(chunk))
    if total not in (None, file_size(path)):
        raise ConnectionError(f'it ended after {file_size(path)} of {total} bytes')


def check_space(folder: Path, amount: int) -> None:
    """Raise UsageError if so many bytes have no room in a folder, which need not exist yet."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if amount > free:
        raise UsageError(
            f'{amount / 1e9:.1f} GB are needed on the disk of {place}, but only {free / 1e9:.1f} '
            'GB are free: make room or choose a folder on another disk'
        )


def file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
