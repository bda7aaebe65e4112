"""What to look at: pictures, folders, patterns, videos and cameras, as one stream of pictures."""

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np

from mmffnet.errors import UsageError

PICTURES = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')


@dataclass(frozen=True)
class Video:
    """Where a frame comes from: the name of the video among the results, its frames per second."""

    name: str
    fps: float


@dataclass(frozen=True)
class Picture:
    """A picture that was read."""

    #: Its name among the results, with '/' between folders. Those of different pictures differ in
    #: more than the ending
    name: str
    file_name: str  #: Its own name, below the folder that was given
    pixels: np.ndarray  #: (H, W, 3) uint8, in the order B, G, R, as OpenCV has it
    video: Video | None = None  #: The video that it is a frame of
    frame: int = 0  #: Its number in the video, from 0


@dataclass(frozen=True)
class Unreadable:
    """The path of something that should be a picture or a video and could not be read, and why."""

    where: str
    why: str


@dataclass(frozen=True)
class Source:
    """A file, camera or array to read."""

    where: str | int | np.ndarray  #: A path, the index of a camera or the picture itself
    file_name: str  #: Its own name, below the folder or pattern that was given
    name: str = ''  #: Its name among the results, the same unless given

    @property
    def moving(self) -> bool:
        """Whether it is a video or a camera."""
        if isinstance(self.where, str):
            return self.where.lower().endswith(VIDEOS)
        return isinstance(self.where, int)


def find_sources(inputs: Any, out_dir: str | os.PathLike | None = None) -> list[Source]:
    """Find all pictures, videos and cameras that are meant.

    Args:
        inputs (str | Path | int | np.ndarray | list): One or more of: a picture; a folder, all
            pictures in it and below it; a pattern such as ``'photos/**/*.jpg'``; a video; the
            index of a camera, also as a string; an array (H, W, 3) in the order B, G, R.
        out_dir (str | PathLike, optional): A folder of results, which is not looked into.
            Defaults to None.

    Raises:
        UsageError: If there is no such file or camera, or a folder or pattern has no pictures.
    """
    several = isinstance(inputs, Iterable) and not isinstance(
        inputs, str | os.PathLike | np.ndarray
    )
    found: list[Source] = []
    for item in inputs if several else [inputs]:
        found += _find(item, None if out_dir is None else Path(out_dir).resolve())
    if not found:
        raise UsageError('nothing to look at: give pictures, folders, patterns or videos')
    return _with_unique_names(found)


def _find(item: Any, out_dir: Path | None) -> list[Source]:
    if isinstance(item, np.ndarray):
        if item.ndim != 3 or item.shape[2] != 3 or item.dtype != np.uint8 or not item.size:
            raise UsageError(
                f'an array must be a picture (H, W, 3) of uint8, not {item.shape} of {item.dtype}'
            )
        return [Source(item, 'array')]
    path = Path(item).expanduser() if not isinstance(item, int) else Path(str(item))
    if path.is_dir():
        files = [p for p in sorted(path.rglob('*')) if _is_picture(p, out_dir)]
        if not files:
            raise UsageError(
                f"the folder '{item}' has no pictures ({' '.join(PICTURES)}) besides results; "
                'videos are given one by one, or by a pattern'
            )
        return [Source(str(p), p.relative_to(path).as_posix()) for p in files]
    if path.is_file():
        return [Source(str(path), path.name)]
    if isinstance(item, int) or str(item).isdecimal():
        camera = Source(int(item), f'camera{int(item)}.mp4')
        capture = _open(camera)
        if not capture.isOpened():
            raise UsageError(f'there is no camera {item}, or it cannot be opened')
        capture.release()
        return [camera]
    if glob.has_magic(str(item)):
        paths = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
        files = [p for p in paths if _is_picture(p, out_dir) or _is_video(p)]
        if not files:
            raise UsageError(f"no picture or video matches the pattern '{item}'")
        base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        return [Source(str(p), p.relative_to(base).as_posix()) for p in files]
    raise UsageError(f"there is no picture, folder or video '{item}'")


def _is_picture(path: Path, out_dir: Path | None) -> bool:
    if path.suffix.lower() not in PICTURES or not path.is_file():
        return False
    return out_dir is None or out_dir not in path.resolve().parents


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS and path.is_file()


def _with_unique_names(sources: Sequence[Source]) -> list[Source]:
    """Results of a.jpg and a.png, or of the a.jpg of two folders, must not share a file."""
    unique, taken = [], set()
    number_of = Counter(source.file_name for source in sources)
    for source in sources:
        path = Path(source.file_name)
        stem, number = path.stem, 1
        while (key := str(path.with_name(stem)).lower()) in taken:
            number += 1
            stem = f'{path.stem}_{number}'
        taken.add(key)
        # two of the same name have been given one by one: only their paths tell them apart
        own = str(source.where) if number_of[source.file_name] > 1 else source.file_name
        if isinstance(source.where, np.ndarray):
            own = source.file_name
        unique.append(Source(source.where, own, path.with_name(stem + path.suffix).as_posix()))
    return unique


def read(
    source: Source, color_type: str = 'color', backend: str = 'cv2'
) -> Iterator[Picture | Unreadable]:
    """Read the picture of a source, or its pictures one after the other.

    ``color_type`` and ``backend`` are those of mmcv's ``LoadImageFromFile``.
    """
    if isinstance(source.where, np.ndarray):
        yield Picture(source.name, source.file_name, source.where)
    elif source.moving:
        yield from _read_video(source)
    else:
        yield _read_file(source, color_type, backend)


def _read_file(source: Source, color_type: str, backend: str) -> Picture | Unreadable:
    where = str(source.where)
    try:
        data = Path(where).read_bytes()
        with _quiet_opencv():
            pixels = mmcv.imfrombytes(data, flag=color_type, backend=backend) if data else None
    except (OSError, ValueError, cv2.error) as error:
        return Unreadable(where, ' '.join(str(error).split()))
    if pixels is None:
        why = 'it is damaged, incomplete or not a picture' if data else 'the file is empty'
        return Unreadable(where, why)
    return Picture(source.name, source.file_name, pixels)


def _read_video(source: Source) -> Iterator[Picture | Unreadable]:
    capture = _open(source)
    try:
        fps = capture.get(cv2.CAP_PROP_FPS)
        # cameras may not know
        video = Video(source.name, fps if 1 <= fps <= 1000 else 25.0)
        number = 0
        while capture.isOpened():
            there, pixels = capture.read()
            if not there:
                break
            name = Path(source.name).with_suffix('') / f'{number:06d}.png'
            yield Picture(name.as_posix(), source.file_name, pixels, video, number)
            number += 1
        promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)  # an estimate in some containers
        if not number:
            yield Unreadable(str(source.where), 'it is damaged, incomplete or not a video')
        elif promised - number > max(2, 0.05 * promised):
            yield Unreadable(str(source.where), f'it ends after {number} of {promised:.0f} frames')
    finally:
        capture.release()


def count(sources: Iterable[Source]) -> int | None:
    """How many pictures there will be, about; None if that cannot be known."""
    total = 0
    for source in sources:
        if not source.moving:
            total += 1
            continue
        if isinstance(source.where, int):
            return None
        capture = _open(source)
        frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        if frames < 0:  # some containers do not say
            return None
        total += frames
    return total


def _open(source: Source) -> cv2.VideoCapture:
    with _quiet_opencv():
        return cv2.VideoCapture(source.where)  # type: ignore[arg-type] # a path or a number


class _quiet_opencv:
    """OpenCV would write about every way of opening a file or camera that failed."""

    def __enter__(self) -> None:
        self.level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

    def __exit__(self, *_: object) -> None:
        cv2.utils.logging.setLogLevel(self.level)
