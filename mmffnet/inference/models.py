"""Models that predict: networks of mmdet, mmseg and mmpretrain, as their configs test them."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from mmffnet.config_types import type_name
from mmffnet.datasets.checks import without_annotations
from mmffnet.engine.hooks.speed import replay_inference
from mmffnet.engine.models import find_legend, load_model, scope_of
from mmffnet.engine.runner import (
    check_checkpoint,
    check_device,
    innermost_dataset,
    is_faster_channels_last,
    refusing,
    use_tta,
)
from mmffnet.errors import UsageError
from mmffnet.models import reparameterize

from ..ops.depthwise_cpu import warn_of_bfloat16

Arrays = dict[str, np.ndarray]


class OpenMMLabModel:
    """A network of mmdet, mmseg or mmpretrain, from a config and a checkpoint.

    The config's test pipeline prepares the pictures, which may be of several sizes. Names of
    classes come from the checkpoint, else from the config's data set, which need not be there. The
    arguments are those of :class:`~.inferencer.Inferencer`.
    """

    TASKS: ClassVar = dict(mmdet='detection', mmseg='segmentation', mmpretrain='classification')

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        device: str | None = None,
        fuse: bool = False,
        tta: bool = False,
        amp: bool = False,
        channels_last: bool | None = None,
        graph: bool = False,
    ) -> None:
        scope = cfg.get('default_scope')
        if scope not in self.TASKS:
            raise UsageError(
                f'the config has the default_scope {scope!r}; it must be one of '
                f'{", ".join(self.TASKS)}'
            )
        self.task = self.TASKS[scope]
        device = check_device(device)
        self.kind, self.amp = torch.device(device).type, amp
        check_checkpoint(checkpoint)
        cfg = self.cfg = copy.deepcopy(cfg)  # leave the caller's alone
        if tta:
            use_tta(cfg)
        dataset = innermost_dataset(cfg, 'test')
        if 'pipeline' not in dataset:
            raise UsageError('the config has no test_dataloader with a pipeline: nothing says how')
        steps = without_annotations(dataset['pipeline'])
        kinds = [type_name(step.get('type')) for step in steps]
        if 'LoadImageFromFile' not in kinds:
            raise UsageError(
                "the config's test pipeline has no LoadImageFromFile: pictures are not read"
            )
        load = steps.pop(kinds.index('LoadImageFromFile'))
        # as sources.read() takes it
        self.loading = dict(
            color_type=load.get('color_type', 'color'), backend=load.get('imdecode_backend', 'cv2')
        )
        self.dtype = np.float32 if load.get('to_float32') else np.uint8
        with scope_of(cfg), refusing():
            self.pipeline = Compose(steps)
        self.model, meta = load_model(cfg, checkpoint)
        self.legend = find_legend(cfg, meta)
        if fuse:
            reparameterize(self.model)
        self.model.to(device)
        if amp and self.kind == 'cpu':
            warn_of_bfloat16()
        if channels_last is None:
            channels_last = is_faster_channels_last(cfg, amp, self.kind, say=False)
        self.channels_last = channels_last
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if graph:
            replay_inference(self.model)

    def predict(self, pictures: Sequence[np.ndarray]) -> list[Arrays]:
        """Returns what is predicted for pictures (H, W, 3) in the order B, G, R.

        For each picture the fields of :class:`~.results.Detections`, ``Segmentation`` or
        ``Classification``.
        """
        if self.task == 'detection':  # mmdet pads pictures to one size; the others cannot
            return self._predict(pictures)
        groups = groupby(pictures, lambda picture: picture.shape)
        return [found for _, group in groups for found in self._predict(list(group))]

    @torch.no_grad()
    def _predict(self, pictures: Sequence[np.ndarray]) -> list[Arrays]:
        cast = torch.autocast(self.kind) if self.amp else nullcontext()
        with scope_of(self.cfg), cast:
            batch = pseudo_collate([self._prepare(picture) for picture in pictures])
            samples = self.model.test_step(batch)
        return [getattr(self, f'_{self.task}')(sample) for sample in samples]

    def _prepare(self, picture: np.ndarray) -> Any:
        """Runs the pipeline on what LoadImageFromFile would have given it."""
        shape = picture.shape[:2]
        image = picture.astype(self.dtype)
        return self.pipeline(dict(img=image, img_path=None, img_shape=shape, ori_shape=shape))

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
