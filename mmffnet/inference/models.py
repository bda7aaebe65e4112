"""Models that predict: networks of mmdet, mmseg and mmpretrain through their inferencers."""

import copy
import logging
import warnings
from collections.abc import Sequence
from itertools import groupby
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger, print_log
from mmengine.model import BaseTTAModel
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from mmffnet.checkpoint import load_strict
from mmffnet.config_types import find_type, type_name
from mmffnet.datasets.checks import without_annotations
from mmffnet.engine.runner import check_checkpoint, check_device, innermost_dataset, use_tta
from mmffnet.errors import UsageError, describe_error
from mmffnet.models import reparameterize

from ..visualization import Legend

Arrays = dict[str, np.ndarray]


class Model(Protocol):
    """Something that predicts.

    Args:
        task (str): 'detection', 'segmentation' or 'classification'.
        legend (Legend): Names and colours of the classes.
        loading (dict): How it wants pictures to be read, as :func:`~.sources.read` takes it.
    """

    task: str
    legend: Legend
    loading: dict[str, str]

    def predict(self, pictures: Sequence[np.ndarray]) -> list[Arrays]:
        """Returns what is predicted for pictures (H, W, 3) in the order B, G, R.

        For each picture the fields of :class:`~.results.Detections`, ``Segmentation`` or
        ``Classification``.
        """


class OpenMMLabModel:
    """A network of mmdet, mmseg or mmpretrain, from a config and a checkpoint.

    Their inferencers build the network and prepare pictures. What they leave open is closed here:
    a checkpoint that does not fit is refused, names of classes come from the checkpoint, else from
    the config's data set (which need not be there), and pictures of several sizes may be mixed.

    Args:
        cfg (Config): From :func:`~mmffnet.engine.runner.read_config`.
        checkpoint (str): A file or an address.
        device (str, optional): Such as 'cpu' or 'cuda:1'. Defaults to None, the best there is.
        fuse (bool): Whether to re-parameterise the network. Defaults to False.
        tta (bool): Whether to average over augmented pictures; flipping only, unless the config
            has a ``tta_pipeline``. Defaults to False.

    Raises:
        UsageError: If anything of this does not fit together.
    """

    TASKS: ClassVar = dict(mmdet='detection', mmseg='segmentation', mmpretrain='classification')

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        device: str | None = None,
        fuse: bool = False,
        tta: bool = False,
    ) -> None:
        scope = cfg.get('default_scope')
        self.task = task_of(cfg)
        self.scope = scope
        device = check_device(device)
        raw = _read_checkpoint(checkpoint)
        cfg = copy.deepcopy(cfg)  # leave the caller's alone
        if tta:
            use_tta(cfg)
        dataset = innermost_dataset(cfg, 'test')
        if 'pipeline' not in dataset:
            raise UsageError('the config has no test_dataloader with a pipeline: nothing says how')
        pipeline = without_annotations(dataset['pipeline'])
        self.loading = _loading(pipeline)
        self.legend = find_legend(raw, dataset, scope)
        # of any data set, as the legend has been found, and one inferencer wants a name
        cfg.test_dataloader = ConfigDict(
            dataset=dict(type='BaseDataset', pipeline=pipeline, metainfo={})
        )
        self.inferencer = self._build(cfg, device)
        self.model: nn.Module = self.inferencer.model
        network = self.model.module if isinstance(self.model, BaseTTAModel) else self.model
        _load(network, raw, checkpoint)
        if fuse:
            reparameterize(network)
        self.model.eval()

    def _build(self, cfg: Config, device: str) -> Any:
        scope = str(self.scope)
        logger = MMLogger.get_current_instance()
        level = logger.level
        with warnings.catch_warnings(), DefaultScope.overwrite_default_scope(scope):
            # they warn that there are no weights yet, and of what they look for in vain
            warnings.simplefilter('ignore')
            logger.setLevel('ERROR')
            try:
                if scope == 'mmdet':
                    from mmdet.apis import DetInferencer

                    cfg.visualizer = dict(type='DetLocalVisualizer')
                    return DetInferencer(cfg, None, device, palette='random', show_progress=False)
                if scope == 'mmseg':
                    from mmseg.apis import MMSegInferencer

                    cfg.visualizer = dict(type='SegLocalVisualizer')
                    return MMSegInferencer(cfg, device=device)
                from mmpretrain.apis import ImageClassificationInferencer

                return ImageClassificationInferencer(cfg, pretrained=False, device=device)
            except (
                AssertionError,
                AttributeError,
                ImportError,
                KeyError,
                TypeError,
                ValueError,
            ) as error:
                text = f'cannot build the model of the config: {describe_error(error)}'
                raise UsageError(text) from error
            finally:
                logger.setLevel(level)

    def predict(self, pictures: Sequence[np.ndarray]) -> list[Arrays]:
        if self.scope == 'mmdet':  # which pads pictures to one size; the others cannot
            return self._predict(pictures)
        groups = groupby(pictures, lambda picture: picture.shape)
        return [found for _, group in groups for found in self._predict(list(group))]

    def _predict(self, pictures: Sequence[np.ndarray]) -> list[Arrays]:
        samples: list[Any] = []
        with DefaultScope.overwrite_default_scope(str(self.scope)):
            for data in self.inferencer.preprocess(list(pictures), batch_size=len(pictures)):
                # mmdet's gives the pictures back, too
                batch = data[1] if self.scope == 'mmdet' else data
                samples += self.inferencer.forward(batch)
        return [getattr(self, f'_{self.task}')(sample) for sample in samples]

    @staticmethod
    def _detection(sample: Any) -> Arrays:
        found = sample.pred_instances.cpu()
        arrays = dict(
            boxes=torch.as_tensor(found.bboxes).float().numpy(),
            scores=found.scores.float().numpy(),
            labels=found.labels.numpy(),
        )
        if 'masks' in found:
            arrays['masks'] = np.asarray(found.masks, bool)
        return arrays

    @staticmethod
    def _segmentation(sample: Any) -> Arrays:
        labels = sample.pred_sem_seg.data.cpu().numpy()
        # test-time augmentation leaves out the first dimension
        return dict(labels=labels.reshape(labels.shape[-2:]).astype(np.int64))

    @staticmethod
    def _classification(sample: Any) -> Arrays:
        return dict(scores=sample.pred_score.float().cpu().numpy())


def task_of(cfg: Config) -> str:
    """Return what the model of a config does.

    Raises:
        UsageError: If its ``default_scope`` is none of mmdet, mmseg and mmpretrain.
    """
    scope = cfg.get('default_scope')
    if scope not in OpenMMLabModel.TASKS:
        known = ', '.join(OpenMMLabModel.TASKS)
        raise UsageError(f'the config has the default_scope {scope!r}; it must be one of {known}')
    return OpenMMLabModel.TASKS[scope]


def _loading(pipeline: Sequence[Any]) -> dict[str, str]:
    """How the pipeline reads pictures; the step that does gets its plain name."""
    for step in pipeline:
        if type_name(step.get('type')) == 'LoadImageFromFile':
            step['type'] = 'LoadImageFromFile'  # the inferencers look for nothing else
            return dict(
                color_type=step.get('color_type', 'color'),
                backend=step.get('imdecode_backend', 'cv2'),
            )
    raise UsageError("the config's test pipeline has no LoadImageFromFile: pictures are not read")


def _read_checkpoint(checkpoint: str) -> Any:
    path = check_checkpoint(checkpoint)
    try:
        return CheckpointLoader.load_checkpoint(path, 'cpu', logger='silent')
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f'cannot read the checkpoint: {error}') from error


def _load(network: nn.Module, raw: Any, checkpoint: str) -> None:
    where = f'the checkpoint {checkpoint}'
    try:
        unexpected = load_strict(network, raw, where)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if unexpected:
        text = f'{where} has tensors that the model lacks ({len(unexpected)}): {unexpected[0]}'
        print_log(text + ', ...' * (len(unexpected) > 1), 'current', logging.WARNING)


def find_legend(raw: Any, dataset: dict, scope: str) -> Legend:
    """Find names and colours of the classes.

    Names come from the checkpoint, else from the config's data set. A data set's colours are used
    for its own classes only.

    Args:
        raw (Any): The checkpoint.
        dataset (dict): Config of the data set; it is not built, as the data need not be there.
        scope (str): Whose data set it is.
    """
    meta = (raw.get('meta') if isinstance(raw, dict) else None) or {}
    saved = {str(key).lower(): value for key, value in (meta.get('dataset_meta') or meta).items()}
    known = dict(getattr(find_type(dataset.get('type'), DATASETS, scope), 'METAINFO', {}))
    known.update(dataset.get('metainfo') or {})
    for info in (saved, known):
        if info.get('classes'):
            break
    else:
        return Legend(())
    classes = info['classes']
    classes = (classes,) if isinstance(classes, str) else tuple(classes)
    for palette in (info.get('palette'), known.get('palette')):
        if isinstance(palette, list | tuple) and len(palette) == len(classes):
            return Legend(classes, palette)
    return Legend(classes)
