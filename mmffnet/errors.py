"""Errors that the tools report in one line."""

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


class UsageError(ValueError):
    """A mistake in what the user asked for, which the tools report in one line."""


class MissingPackageError(UsageError, ImportError):
    """An optional package is needed that cannot be imported."""


class DamagedCheckpointError(RuntimeError):
    """A file that is damaged, incomplete or no checkpoint at all."""


def import_package(name: str, what: str = 'this') -> ModuleType:
    """Imports an optional package or a module of one; ``what`` names what needs it in the error."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition('.')[0]
        raise MissingPackageError(
            f'{what} needs {package}, which cannot be imported ({error}): `pip install {package}`'
        ) from error


def describe_error(error: BaseException) -> str:
    """The first line that says something, after the type unless that is all there is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__


def shorten(names: Iterable[str], most: int = 6) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' * (len(names) > most))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the name of the file to the error of a full disk, which comes without."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
