"""A classifier that learns from another one.

The only module that imports mmpretrain's models; ``import mmffnet`` leaves it out. The registry has
a function that imports and builds it: ``type='mmffnet.DistilledClassifier'`` in a config is enough.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..checkpoint import find_state_dict
from ..config_types import type_name
from ..errors import DamagedCheckpointError

_KINDS = ('hard', 'soft')


class _Apart(list[nn.Module]):
    """Holds a module that is no submodule, and that copies of the holder share."""

    def __deepcopy__(self, memo: Any) -> '_Apart':
        return self


class DistilledClassifier(ImageClassifier):
    """mmpretrain's ImageClassifier, trained on labels and on what a teacher says.

    The loss is ``(1 - alpha) * loss of the head + alpha * distillation``. The teacher sees exactly
    what the student sees (normalised, mixed), in eval mode and without gradients.

    The teacher is no part of the model: it is in no checkpoint, no moving average, no optimizer
    and no DDP bucket. It is built and gets its weights when a training starts (by
    ``init_weights``), so testing the student needs neither. The student's checkpoints are those of
    an ImageClassifier.

    Args:
        *args: As for ImageClassifier.
        teacher (dict): Config of any model that gives logits for a batch of pictures, such as
            ``dict(type='TimmClassifier', model_name='regnety_160')`` or an ImageClassifier. It
            must have been trained on pictures normalised as the student's.
        teacher_checkpoint (str, optional): A file or address with the teacher's weights, all of
            them. None only if the teacher brings them along, as TimmClassifier does with
            ``pretrained=True``. Defaults to None.
        distillation (str): 'hard' takes the teacher's best class as a second label, 'soft' the
            distribution: Kullback-Leibler divergence times ``temperature ** 2``, averaged over
            pictures and classes as in DeiT. Defaults to 'hard'.
        alpha (float): Weight of the distillation, from 0 to 1. Defaults to 0.5.
        temperature (float): What logits are divided by, for 'soft'. Defaults to 1.0.
        **kwargs: As for ImageClassifier.
    """

    def __init__(
        self,
        *args: Any,
        teacher: dict,
        teacher_checkpoint: str | None = None,
        distillation: str = 'hard',
        alpha: float = 0.5,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if distillation not in _KINDS:
            raise ValueError(f'distillation must be one of {_KINDS}, got {distillation!r}')
        if not 0 <= alpha <= 1:
            raise ValueError(f'alpha must be a number from 0 to 1, got {alpha!r}')
        if not temperature > 0:
            raise ValueError(f'temperature must be a positive number, got {temperature!r}')
        if not (teacher_checkpoint or teacher.get('pretrained') is True):
            # an init_cfg could load a part only, and nobody would notice
            raise ValueError(
                'the teacher has no weights: set teacher_checkpoint to a file or address with '
                f'those of {type_name(teacher.get("type"))}'
            )
        self.teacher_cfg = teacher
        self.teacher_checkpoint = teacher_checkpoint
        self.distillation = distillation
        self.alpha = alpha
        self.temperature = temperature
        self._teacher = _Apart()

    @property
    def teacher(self) -> nn.Module:
        """The teacher; there is none before ``init_weights``."""
        if not self._teacher:
            raise RuntimeError('the teacher is built by init_weights(): call it before training')
        return self._teacher[0]

    def init_weights(self) -> None:
        """Initialises the student, and builds the teacher with its weights."""
        super().init_weights()
        if not self._teacher:
            self._teacher.append(self._build_teacher())

    def _build_teacher(self) -> nn.Module:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            teacher = MODELS.build(self.teacher_cfg)
        if self.teacher_checkpoint:
            where = f'teacher_checkpoint {self.teacher_checkpoint}'
            try:
                raw = CheckpointLoader.load_checkpoint(
                    self.teacher_checkpoint, 'cpu', logger='silent'
                )
            # types of their own, such as HTTPError, cannot be made of a text
            except FileNotFoundError as error:
                raise FileNotFoundError(f'{where}: {error}') from error
            except OSError as error:
                raise OSError(f'{where}: {error}') from error
            except ValueError as error:
                raise ValueError(f'{where}: {error}') from error
            except RuntimeError as error:
                raise DamagedCheckpointError(f'{where}: {error}') from error
            try:
                teacher.load_state_dict(find_state_dict(raw, where))
            except RuntimeError as error:
                reason = ' '.join(str(error).split())
                raise ValueError(
                    f'{where} does not fit the teacher {type(teacher).__name__}: {reason}'
                ) from None
            print_log(f'{where}: loaded all of it into {type(teacher).__name__}', 'current')
        return teacher.requires_grad_(False).eval()

    def loss(self, inputs: Tensor, data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Losses of a batch, ``loss_cls`` from the labels and ``loss_distillation``.

        Args:
            inputs (Tensor): The pictures.
            data_samples (Sequence[DataSample]): Their labels.
        """
        # The head is run twice, once by its own loss: it should hold no batch norm and no dropout.
        feats = self.extract_feat(inputs)
        losses = {'loss_distillation': self.alpha * self._distill(self.head(feats), inputs)}
        for name, value in self.head.loss(feats, data_samples).items():
            # mmengine logs the sum of all losses as 'loss'
            name = 'loss_cls' if name == 'loss' else name
            losses[name] = (1 - self.alpha) * value if 'loss' in name else value
        return losses

    def _distill(self, scores: Tensor, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher.to(inputs.device)(inputs)
        if target.shape != scores.shape:
            raise ValueError(
                f'the teacher gives scores of the shape {tuple(target.shape)}, the student of '
                f'{tuple(scores.shape)}: both must know the same classes'
            )
        if self.distillation == 'hard':
            return F.cross_entropy(scores, target.argmax(1))
        ours, theirs = (F.log_softmax(x / self.temperature, 1) for x in (scores, target))
        divergence = F.kl_div(ours, theirs, reduction='sum', log_target=True)
        return divergence * self.temperature**2 / scores.numel()
