"""The learning-rate schedule of the official ImageNet recipe."""

import math
from typing import Any

from mmengine.optim import _ParamScheduler

from ..registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(_ParamScheduler):
    """timm's cosine schedule: the first epochs of a whole cosine are replaced by a warm-up.

    The cosine runs from epoch 0, so it has already begun when the warm-up ends; what comes after
    it (timm's cooldown) stays at the minimum. A LinearLR before a CosineAnnealingLR, in contrast,
    starts the cosine when the warm-up ends. The rates are constant within an epoch.

    Args:
        optimizer (Optimizer or BaseOptimWrapper): Whose learning rates are scheduled.
        warmup_epochs (int): Epochs of warm-up: the rate grows by equal steps, and the epoch after
            the last one would have all of it. Defaults to 5.
        start_factor (float): The rate of the first epoch of the warm-up, in parts of the
            optimizer's rate. Defaults to 1e-3.
        cosine_epochs (int): Epochs from the start to the minimum. Defaults to 300.
        eta_min_ratio (float): The minimum, in parts of the optimizer's rate. Defaults to 0.01.
        **kwargs: ``last_step`` and ``verbose``, as for mmengine's schedulers.
    """

    def __init__(
        self,
        optimizer: Any,
        warmup_epochs: int = 5,
        start_factor: float = 1e-3,
        cosine_epochs: int = 300,
        eta_min_ratio: float = 0.01,
        **kwargs: Any,
    ) -> None:
        if not 0 <= warmup_epochs < cosine_epochs:
            raise ValueError(
                'WarmupCosineLR: warmup_epochs must be at least 0 and less than cosine_epochs, got '
                f'{warmup_epochs} and {cosine_epochs}'
            )
        self.warmup_epochs = warmup_epochs
        self.start_factor = start_factor
        self.cosine_epochs = cosine_epochs
        self.eta_min_ratio = eta_min_ratio
        super().__init__(optimizer, 'lr', **kwargs)

    def _get_value(self) -> list[float]:
        return [rate * self._factor(self.last_step) for rate in self.base_values]

    def _factor(self, epoch: int) -> float:
        if epoch < self.warmup_epochs:
            return self.start_factor + (1 - self.start_factor) * epoch / self.warmup_epochs
        progress = min(epoch / self.cosine_epochs, 1)
        return (
            self.eta_min_ratio + (1 - self.eta_min_ratio) * (1 + math.cos(math.pi * progress)) / 2
        )
