"""What to resume from: the newest complete checkpoint, the same one in all processes."""

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..errors import DamagedCheckpointError

_RESUMABLE = re.compile(r'(epoch|iter|stopped_iter)_\d+\.pth')


def find_checkpoint(work_dir: str | Path) -> str | None:
    """Finds the newest whole checkpoint of a work directory; None if there are none at all."""
    work_dir = Path(work_dir).resolve()
    pointer = work_dir / 'last_checkpoint'
    named = pointer.read_text(errors='replace').strip(' \n\0') if pointer.is_file() else ''
    if '://' in named:
        return named  # on a storage of its own, read when training resumes
    candidates = []
    if named:
        path = Path(named).resolve()
        candidates = [path if path.exists() else work_dir / path.name]
    folders = {work_dir, *(path.parent for path in candidates)}
    others = [p for f in folders for p in f.glob('*.pth') if _RESUMABLE.fullmatch(p.name)]
    others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in dict.fromkeys(candidates + others):
        problem = _find_damage(path)
        if problem is None:
            return str(path)
        print_log(f'{path} {problem}: it is passed over', 'current', logging.WARNING)
    if not candidates and not others:
        return None
    raise RuntimeError(
        f'no checkpoint in {work_dir} is whole: start without resuming, or name a checkpoint'
    )


def settle_resume(runner: Runner) -> None:
    """Makes all processes resume from what the main one found, or was told.

    The main process alone reads a whole file to look for damage. The others do so with files that
    are not the same, as where each machine has a disk of its own. It is for a runner that has not
    loaded anything.

    Raises:
        DamagedCheckpointError: In all processes, if all checkpoints are damaged, or one process
            lacks the checkpoint.
    """
    answer: list[Any] = [None]
    if is_main_process():
        try:
            if runner._resume is True and runner._load_from is None:
                runner._load_from = find_checkpoint(runner.work_dir)
                runner._resume = runner._load_from is not None
            answer = [(runner._resume, runner._load_from, _identify(runner._load_from))]
        except (OSError, RuntimeError) as error:
            answer = [str(error)]
    broadcast_object_list(answer)
    if isinstance(answer[0], str):
        raise DamagedCheckpointError(answer[0])
    resume, name, identity = answer[0]
    runner._resume, runner._load_from = resume, name
    problem = None
    if resume and _identify(name) != identity:
        try:
            problem = _find_damage(Path(name))
        except OSError as error:
            problem = f'cannot be read ({error})'
    found = next(filter(None, all_gather_object(problem)), None)
    if found:
        raise DamagedCheckpointError(
            f'{name}, from which the main process resumes, {found} in another process: work_dir '
            'must be on a disk that all machines share, or copied to all of them'
        )


def _identify(name: str | None) -> tuple[int, int] | None:
    if name is None:
        return None
    try:
        status = Path(name).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _find_damage(path: Path) -> str | None:
    if path.is_dir():
        return None  # of DeepSpeed or FSDP
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()  # torch itself reads altered numbers without noticing
    except FileNotFoundError:
        return 'does not exist'
    except OSError:
        raise
    except Exception as error:  # damage can look like anything
        return f'is incomplete or damaged ({error})'
    return f'is damaged (in its part {bad})' if bad else None
