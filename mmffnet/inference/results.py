"""What was predicted for a picture: as arrays, as a painted picture, as files."""

import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from PIL import Image

from mmffnet.checkpoint import atomic_write
from mmffnet.errors import UsageError

from ..visualization import (
    Legend,
    paint_detections,
    paint_labels,
    paint_maps,
    paint_scores,
)
from .sources import Picture, Video
from .tiles import PlacedMasks

_WRITABLE = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


@dataclass(frozen=True, eq=False)
class Result(ABC):
    """What a model predicts for one picture.

    Args:
        picture (Picture): The picture.
        legend (Legend): Names and colours of the classes.
    """

    picture: Picture
    legend: Legend

    @abstractmethod
    def paint(self) -> np.ndarray:
        """Returns the picture with the prediction on or beside it: (H, W, 3) uint8, R, G, B."""

    def paint_frame(self) -> np.ndarray:
        """Returns it as :meth:`paint`, of a size that depends on the size of the picture alone."""
        return self.paint()

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns the prediction as what JSON can hold."""

    @property
    def image(self) -> np.ndarray:
        """The picture in the order R, G, B."""
        return self.picture.pixels[..., ::-1]


@dataclass(frozen=True, eq=False)
class Detections(Result):
    """The objects that a detector finds.

    Args:
        boxes (np.ndarray): (n, 4) float32: x1, y1, x2, y2 in pixels of the picture.
        scores (np.ndarray): (n,) float32.
        labels (np.ndarray): (n,) int64.
        masks (np.ndarray | PlacedMasks, optional): (n, H, W) bool. Defaults to None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | PlacedMasks | None = None

    def above(self, score: float | np.ndarray) -> 'Detections':
        """Returns those that are at least so sure; the score may be one for each."""
        kept = self.scores >= score
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
            masks=None if self.masks is None else self.masks[kept],
        )

    def paint(self) -> np.ndarray:
        found = (self.boxes, self.scores, self.labels, self.masks)
        return paint_detections(self.image, *found, self.legend)

    def describe(self) -> dict[str, Any]:
        """Returns 'annotations' as COCO has them, with a score and without ids of pictures."""
        annotations = []
        for i, (x1, y1, x2, y2) in enumerate(self.boxes.astype(float)):
            box = [x1, y1, x2 - x1, y2 - y1]
            annotation = dict(
                category_id=int(self.labels[i]) + 1,
                bbox=[round(value, 2) for value in box],
                score=round(float(self.scores[i]), 5),
                area=round(box[2] * box[3], 2),
                iscrowd=0,
            )
            if self.masks is not None:
                mask = self.masks[i]
                annotation.update(segmentation=_encode(mask), area=int(mask.sum()))
            annotations.append(annotation)
        return dict(annotations=annotations)


def _encode(mask: np.ndarray) -> dict[str, Any]:
    try:
        from pycocotools import mask as coco
    except ImportError:  # exported models run without mmdet, which brings it
        changes = np.flatnonzero(np.diff(mask.ravel(order='F'), prepend=False))
        counts = np.diff(changes, prepend=0, append=mask.size)
        return dict(size=list(mask.shape), counts=counts.tolist())
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    return dict(size=encoded['size'], counts=encoded['counts'].decode())


@dataclass(frozen=True, eq=False)
class Segmentation(Result):
    """The class of every pixel.

    Args:
        labels (np.ndarray): (H, W) int64.
    """

    labels: np.ndarray

    def paint(self) -> np.ndarray:
        """Returns the picture, the prediction and a legend of the classes in it."""
        return paint_maps(self.image, {'prediction': self.labels}, self.legend)

    def paint_frame(self) -> np.ndarray:
        return paint_labels(self.image, self.labels, self.legend)

    def describe(self) -> dict[str, Any]:
        """Returns 'pixels': how many there are of each class in the picture."""
        labels, counts = np.unique(self.labels, return_counts=True)
        order = np.argsort(-counts, kind='stable')
        return dict(pixels={self.legend.name(int(labels[i])): int(counts[i]) for i in order})

    def encode(self) -> Image.Image:
        """Returns the labels as a picture of one channel, in the classes' colours if it can."""
        top = int(self.labels.max(initial=0))
        if top > 255:
            return Image.fromarray(self.labels.astype(np.uint16))
        encoded = Image.fromarray(self.labels.astype(np.uint8))
        encoded.putpalette([part for label in range(256) for part in self.legend.colour(label)])
        return encoded


@dataclass(frozen=True, eq=False)
class Classification(Result):
    """The probability of every class.

    Args:
        scores (np.ndarray): (classes,) float32.
    """

    scores: np.ndarray

    def top(self, number: int = 5) -> list[tuple[int, float]]:
        """Returns the most probable labels with their probabilities."""
        order = np.argsort(-self.scores, kind='stable')[:number]
        return [(int(label), float(self.scores[label])) for label in order]

    def paint(self) -> np.ndarray:
        labels, scores = zip(*self.top(), strict=True)
        return paint_scores(self.image, [self.legend.name(label) for label in labels], scores)

    def describe(self) -> dict[str, Any]:
        """Returns the most probable class, and the five most probable ones in 'top'."""
        top = [
            dict(category_id=label, category=self.legend.name(label), score=round(score, 5))
            for label, score in self.top()
        ]
        return dict(**top[0], top=top)


class ResultWriter:
    """Writes results into a folder, as they come.

    - ``painted/``: painted pictures, and videos;
    - ``labels/``: label maps as PNG, the value of a pixel is its class (segmentors alone);
    - ``predictions.json``: everything as numbers; written at the end, when the ``with`` block is
      left, also by an error or an interruption.
    """

    def __init__(self, out_dir: str | os.PathLike, legend: Legend) -> None:
        self.folder = Path(out_dir)
        self.legend = legend
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] | None = None
        self.first_category = 0
        self.number = 0
        self._video: tuple[Video, cv2.VideoWriter] | None = None

    def __enter__(self) -> 'ResultWriter':
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f'cannot write to {self.folder}: {error}') from error
        return self

    def __exit__(self, *_: object) -> None:
        self._end_video()
        categories = [
            dict(
                id=self.first_category + label,
                name=self.legend.name(label),
                color=self.legend.colour(label),
            )
            for label in range(max(self.number, len(self.legend.classes)))
        ]
        content: dict[str, Any] = dict(images=self.images, categories=categories)
        if self.annotations is not None:
            content['annotations'] = self.annotations
        with atomic_write(self.folder / 'predictions.json') as file:
            file.write(json.dumps(content, separators=(',', ':'), ensure_ascii=False).encode())

    def add(self, result: Result) -> None:
        """Write the files of a result, and keep its numbers."""
        picture = result.picture
        entry: dict[str, Any] = dict(
            id=len(self.images) + 1,
            file_name=picture.file_name,
            width=picture.pixels.shape[1],
            height=picture.pixels.shape[0],
        )
        if picture.video:
            entry.update(frame=picture.frame)
        described = result.describe()
        found = described.pop('annotations', None)
        if found is not None:
            self.annotations = self.annotations or []
            self.first_category = 1  # as in COCO, where 0 stands for the background
            self.number = max([self.number, *(one['category_id'] for one in found)])
            for one in found:
                ids = dict(id=len(self.annotations) + 1, image_id=entry['id'])
                self.annotations.append(ids | one)
        if isinstance(result, Segmentation):
            entry['labels'] = f'labels/{Path(picture.name).with_suffix(".png").as_posix()}'
            path = self.folder / entry['labels']
            path.parent.mkdir(parents=True, exist_ok=True)
            result.encode().save(path)
            self.number = max(self.number, int(result.labels.max(initial=0)) + 1)
        self.images.append(entry | described)
        self._paint(result)

    def _paint(self, result: Result) -> None:
        picture = result.picture
        if picture.video:
            painted = result.paint_frame()
            if not self._video or self._video[0] is not picture.video:
                self._end_video()
                self._video = (picture.video, self._start_video(picture.video, painted))
            self._video[1].write(np.ascontiguousarray(painted[..., ::-1]))
            return
        self._end_video()
        path = self.folder / 'painted' / picture.name
        if path.suffix.lower() not in _WRITABLE or isinstance(result, Segmentation):
            path = path.with_suffix('.png')  # drawings with much white are smaller and clearer so
        if not mmcv.imwrite(result.paint()[..., ::-1], str(path)):
            raise OSError(f'OpenCV cannot write the picture {path}')

    def _start_video(self, video: Video, frame: np.ndarray) -> cv2.VideoWriter:
        path = (self.folder / 'painted' / video.name).with_suffix('.mp4')
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (frame.shape[1], frame.shape[0])
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), video.fps, size)
        if not writer.isOpened():
            raise OSError(f'OpenCV cannot write the video {path}')
        return writer

    def _end_video(self) -> None:
        if self._video:
            self._video[1].release()
        self._video = None
