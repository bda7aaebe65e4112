"""What the official ImageNet recipe has and mmengine and mmpretrain have not."""

import math
import re
from typing import Any

from mmengine.dist import all_reduce_params
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import _ParamScheduler
from mmengine.runner import Runner

from ..registry import HOOKS, PARAM_SCHEDULERS


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


@HOOKS.register_module()
class RawAndEMAHook(EMAHook):
    """mmengine's EMAHook that validates the raw weights as well.

    Both scores are logged, those of the raw weights with ``_raw`` in their names. The better of the
    two is what ``save_best`` goes by, and the ``state_dict`` of such a checkpoint holds the weights
    that reached it; that of other checkpoints the averaged ones. The others of the two are in
    ``ema_state_dict``. Higher must be better.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._raw_is_better: dict[str, bool] = {}
        self._best_files: set[str] = set()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        super().after_val_epoch(runner, metrics)  # the raw weights are back
        loop: Any = runner.val_loop
        runner.model.eval()
        for number, batch in enumerate(loop.dataloader):
            loop.run_iter(number, batch)
        for name, value in loop.evaluator.evaluate(len(loop.dataloader.dataset)).items():
            runner.message_hub.update_scalar(f'val/{name}_raw', value)
            if metrics is not None:
                self._raw_is_better[name] = value > metrics[name]
                metrics[name] = max(metrics[name], value)
        self._best_files = _find_best_files(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        super().before_save_checkpoint(runner, checkpoint)
        # CheckpointHook gives the name of a new best file away just before it writes the file
        before, self._best_files = self._best_files, _find_best_files(runner)
        for name in self._best_files - before:
            metrics = [
                metric
                for metric in self._raw_is_better
                if name.startswith(f'best_{metric.replace("/", "_")}_')
            ]
            if metrics and self._raw_is_better[max(metrics, key=len)]:
                self._swap_ema_state_dict(checkpoint)
                checkpoint['averages_swapped'] = True

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume and checkpoint.get('averages_swapped'):
            self._swap_ema_state_dict(checkpoint)
        super().after_load_checkpoint(runner, checkpoint)


def _find_best_files(runner: Runner) -> set[str]:
    info = runner.message_hub.runtime_info
    paths = [value for key, value in info.items() if re.match(r'best_ckpt(_|$)', key)]
    return {str(path).rpartition('/')[2] for path in paths}


@HOOKS.register_module()
class AverageBuffersHook(Hook):
    """Averages buffers over all processes after each epoch: those of the model and of its EMA.

    This is for batch norms that are not synchronised while training (timm's ``--dist-bn reduce``).
    mmengine's SyncBuffersHook leaves the moving average out.
    """

    def after_train_epoch(self, runner: Runner) -> None:
        averages = [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]
        for model in (runner.model, *averages):
            all_reduce_params(model.buffers(), op='mean')
