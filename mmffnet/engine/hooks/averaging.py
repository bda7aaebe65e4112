"""Moving averages of the official ImageNet recipe."""

import re
from typing import Any

from mmengine.dist import all_reduce_params
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from ...registry import HOOKS


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
