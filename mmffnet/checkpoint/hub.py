"""Files on the Hugging Face Hub, by addresses ``hf://owner/name[@revision]/path/to/file``.

huggingface_hub is imported when it is needed. It caches what it downloads, goes on with what broke
off, and obeys HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mmengine.runner.checkpoint import CheckpointLoader

from ..errors import describe_error, import_package
from ..version import __version__
from .files import main_first, read_checkpoint

HUB = 'hf://'
REPOSITORY = r'[\w.-]+/[\w.-]+'
# branches may have slashes, written as %2F; those of pull requests do as they are
_ADDRESS = re.compile(rf'{HUB}({REPOSITORY})(?:@(refs/pr/\d+|[^/]+))?/(.*[^/])')


@CheckpointLoader.register_scheme(prefixes=HUB, force=True)
def _load_from_hub(filename: str, map_location: Any = None) -> Any:
    return read_checkpoint(fetch(filename), map_location)


def fetch(address: str) -> Path:
    """Download a file from the hub, unless it is in the cache, and return where it is.

    In distributed runs every rank must call it.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(f'{address} must be {HUB}owner/name[@revision]/path/to/file')
    repository, revision, file = found[1], unquote(found[2] or 'main'), found[3]
    hub = import_hub(address)
    with explained(repository, revision, file):
        return main_first(
            lambda: Path(
                hub.hf_hub_download(
                    repository,
                    file,
                    revision=revision,
                    library_name='mmffnet',
                    library_version=__version__,
                )
            )
        )


def import_hub(what: str) -> Any:
    """The package huggingface_hub; ``what`` names what needs it in the error."""
    for name in ('constants', 'errors'):
        import_package(f'huggingface_hub.{name}', what)
    return import_package('huggingface_hub', what)


@contextmanager
def explained(repository: str, revision: str = 'main', file: str = '') -> Iterator[None]:
    """Makes one sentence, of a type that Python knows, of what goes wrong with the hub."""
    hub = import_hub(repository)
    errors, place = hub.errors, hub.constants.ENDPOINT
    log_in = 'log in with `hf auth login` or HF_TOKEN'
    why = 'HF_HUB_OFFLINE is set' if hub.constants.HF_HUB_OFFLINE else 'it does not answer'
    uncached = f', and {file} is not in the cache {hub.constants.HF_HUB_CACHE}' if file else ''
    offline = ConnectionError(f'cannot ask {place} for {repository}: {why}{uncached}')
    cases = {
        errors.GatedRepoError: PermissionError(
            f'{repository} is gated: ask for access at {place}/{repository}, and {log_in}'
        ),
        errors.RepositoryNotFoundError: FileNotFoundError(
            f'there is no repository {repository} at {place}, or it is private: then {log_in}'
        ),
        errors.RevisionNotFoundError: FileNotFoundError(
            f'{repository} has no revision {revision!r}'
        ),
        errors.LocalEntryNotFoundError: offline,
        errors.OfflineModeIsEnabled: offline,
        errors.EntryNotFoundError: FileNotFoundError(
            f'{repository} has no file {file!r} in its revision {revision!r}'
        ),
        errors.HFValidationError: ValueError(f'{repository} is no name of a repository'),
    }
    try:
        yield
    except tuple(cases) as error:
        raise next(said for kind, said in cases.items() if isinstance(error, kind)) from error
    except Exception as error:  # of the HTTP library, which differs between versions
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        status = getattr(getattr(error, 'response', None), 'status_code', None)
        hint = f': {log_in}' if status in (401, 403) else ''
        raise ConnectionError(
            f'{place} cannot serve {repository} ({describe_error(error)}){hint}'
        ) from error
