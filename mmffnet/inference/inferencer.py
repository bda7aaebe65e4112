"""Models on pictures: the class for Python, and what ``tools/infer.py`` does."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

from mmffnet.engine.runner import read_config
from mmffnet.errors import UsageError
from mmffnet_cli import format_of

from ..visualization import Legend
from . import sources
from .exported import ExportedModel, Model, PredictionError
from .models import OpenMMLabModel
from .results import Classification, Detections, Result, ResultWriter, Segmentation
from .sources import Picture, Source, Unreadable
from .tiles import Tiling, predict_tiles


@dataclass
class Summary:
    """What came of many pictures: how many have results, and whether somebody stopped it."""

    done: int = 0
    skipped: list[Unreadable] = field(default_factory=list)
    interrupted: bool = False

    def __str__(self) -> str:
        text = f'{self.done} picture{"s" * (self.done != 1)} done'
        if self.interrupted:
            text += ', then interrupted'
        if self.skipped:
            names = '; '.join(f'{one.where} ({one.why})' for one in self.skipped)
            text += f'; {len(self.skipped)} skipped: {names}'
        return text


class Inferencer:
    """A trained detector, segmentor or classifier, ready for pictures.

    Args:
        model (str): A config file, the name of one that mmffnet ships, or a file that
            ``tools/export.py`` wrote.
        checkpoint (str, optional): The weights for a config: a file or an address. Defaults to
            None.
        device (str, optional): Such as 'cpu' or 'cuda:1'. Defaults to None, the best there is.
        fuse (bool): Whether to re-parameterise the network, which is faster. Defaults to False.
        tta (bool): Whether to average over flipped pictures, or whatever ``tta_pipeline`` the
            config has. Defaults to False.
        cfg_options (Sequence[str]): Settings of the config to override, as 'key=value'. Defaults
            to ().
        tiles (int, optional): Width and height, in pixels, of tiles that larger pictures are cut
            into and predicted by. Defaults to None: pictures are seen as a whole.
        overlap (float): Share of a tile that the next one sees too. Defaults to 0.2.
        amp (bool): Whether to predict in mixed precision. Defaults to False.
        channels_last (bool, optional): Whether to use the memory format channels_last. Defaults
            to None, where it was measured to be faster.
        graph (bool): Whether to replay backbone and neck as CUDA graphs for shapes that come again.
            Defaults to False.

    Raises:
        UsageError: A ValueError: if a file is missing or things do not fit together.
    """

    _RESULTS: ClassVar = dict(
        detection=Detections, segmentation=Segmentation, classification=Classification
    )

    def __init__(
        self,
        model: str,
        checkpoint: str | None = None,
        device: str | None = None,
        fuse: bool = False,
        tta: bool = False,
        cfg_options: Sequence[str] = (),
        tiles: int | None = None,
        overlap: float = 0.2,
        amp: bool = False,
        channels_last: bool | None = None,
        graph: bool = False,
    ) -> None:
        # without tiles, one that is larger than any picture
        self.tiling = Tiling(sys.maxsize if tiles is None else tiles, overlap)
        self.model: Model
        if format_of(model):
            if checkpoint or fuse or tta or cfg_options or amp or channels_last or graph:
                raise UsageError(
                    f'{model} is all there is to an exported model: it is fused, and takes no '
                    'checkpoint, test-time augmentation, config options or other forms of speed'
                )
            self.model = ExportedModel(model, device)
        elif checkpoint is None:
            raise UsageError(f'the config {model} needs a checkpoint')
        else:
            self.model = OpenMMLabModel(
                read_config(model, cfg_options),
                checkpoint,
                device,
                fuse,
                tta,
                amp,
                channels_last,
                graph,
            )
        if tiles is not None and self.task == 'classification':
            raise UsageError('tiles are for detectors and segmentors, this is a classifier')

    @property
    def task(self) -> str:
        """'detection', 'segmentation' or 'classification'."""
        return self.model.task

    @property
    def legend(self) -> Legend:
        """Names and colours of the classes."""
        return self.model.legend

    def __call__(self, inputs: Any, batch_size: int = 1, score_thr: float = 0.0) -> list[Any]:
        """Predict for pictures, keeping all results in memory.

        Args:
            inputs (Any): As :func:`~mmffnet.inference.sources.find_sources` takes them: pictures,
                folders, patterns, videos, arrays in the order B, G, R; one or a list.
            batch_size (int): Pictures (or tiles) that the network sees at once. Defaults to 1.
            score_thr (float): Objects that are less sure are left out. Defaults to 0.0.

        Returns:
            list: :class:`Detections`, :class:`Segmentation` or :class:`Classification` for each
            picture, in their order.

        Raises:
            UsageError: If there are no such pictures, or one cannot be read.
        """
        results = []
        for found in self.stream(sources.find_sources(inputs), batch_size, score_thr):
            if isinstance(found, Unreadable):
                raise UsageError(f'cannot read {found.where}: {found.why}')
            results.append(found)
        return results

    def stream(
        self, inputs: Iterable[Source], batch_size: int = 1, score_thr: float = 0.0
    ) -> Iterator[Result | Unreadable]:
        """Predict for any number of pictures, a few at a time.

        Args:
            inputs (Iterable[Source]): From :func:`~mmffnet.inference.sources.find_sources`.
            batch_size (int): Pictures (or tiles) that the network sees at once. Defaults to 1.
            score_thr (float): Objects that are less sure are left out. Defaults to 0.0.

        Yields:
            A result for each picture, or what could not be read.
        """
        if batch_size < 1:
            raise UsageError(f'batch_size must be at least 1, not {batch_size}')
        pictures = (p for source in inputs for p in sources.read(source, **self.model.loading))
        while batch := list(islice(pictures, batch_size)):
            readable = [picture for picture in batch if isinstance(picture, Picture)]
            yield from (picture for picture in batch if isinstance(picture, Unreadable))
            try:
                pixels = [picture.pixels for picture in readable]
                predicted = predict_tiles(self.model, pixels, self.tiling, batch_size, score_thr)
            except PredictionError as error:
                yield from (Unreadable(picture.file_name, str(error)) for picture in readable)
                continue
            for picture, arrays in zip(readable, predicted, strict=True):
                result = self._RESULTS[self.task](picture, self.legend, **arrays)
                yield result.above(score_thr) if self.task == 'detection' else result

    def write(
        self,
        inputs: Sequence[Source],
        out_dir: str | os.PathLike,
        batch_size: int = 1,
        score_thr: float | None = None,
        max_frames: int | None = None,
        progress: bool = False,
    ) -> Summary:
        """Predict for any number of pictures and write painted pictures and results.

        :class:`ResultWriter` says what is written. Somebody who stops it with Ctrl+C, which is how
        a camera ends, gets what was done until then.

        Args:
            inputs (Sequence[Source]): From :func:`~mmffnet.inference.sources.find_sources`.
            out_dir (str | PathLike): The folder to write to.
            batch_size (int): Pictures (or tiles) that the network sees at once. Defaults to 1.
            score_thr (float, optional): Objects that are less sure are left out. Defaults to
                None, which is 0.3 for detectors; other models have no such thing.
            max_frames (int, optional): Stop after so many pictures. Defaults to None.
            progress (bool): Whether to show how far it is. Defaults to False.

        Raises:
            UsageError: If the folder cannot be written to, or there is a score but no detector.
        """
        if score_thr is not None and self.task != 'detection':
            raise UsageError(f'a score threshold is for detectors, this is a model for {self.task}')
        score_thr = 0.3 if score_thr is None else score_thr
        if not 0 <= score_thr <= 1:
            raise UsageError(f'a score threshold is between 0 and 1, not {score_thr}')
        summary = Summary()
        found = islice(self.stream(inputs, batch_size, score_thr), max_frames)
        total = sources.count(inputs)
        with ResultWriter(out_dir, self.legend) as writer, _bar(progress) as bar:
            task = bar.add_task(self.task, total=total if max_frames is None else max_frames)
            try:
                for result in found:
                    if isinstance(result, Unreadable):
                        summary.skipped.append(result)
                        bar.console.print(f'skipped {result.where}: {result.why}', markup=False)
                    else:
                        writer.add(result)
                        summary.done += 1
                    bar.advance(task)
            except KeyboardInterrupt:
                summary.interrupted = True
        return summary


def _bar(shown: bool) -> Any:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    # what is not a terminal gets one line at the end
    return Progress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        console=Console(stderr=True, soft_wrap=True),
        disable=not shown,
    )
