"""Non-finite losses and skipped steps."""

from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from ...registry import HOOKS


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Ends training when the loss is NaN or infinite, before that reaches a checkpoint.

    Where a gradient scaler is in use (``AmpOptimWrapper``), it skips such steps, and only many of
    them in a row are an error. A forward pass whose step is skipped has updated running statistics
    all the same: they, and all other buffers, become again what they were before it. With
    accumulated gradients that is before the first iteration of the step.

    Args:
        patience (int): How many steps in a row a gradient scaler may skip. Defaults to 100.
    """

    priority = 'HIGH'  # before moving averages take the buffers over

    def __init__(self, patience: int = 100) -> None:
        self.patience = patience
        self._skipped = 0
        self._scaled = False
        self._stepped: Any = False  # of one iteration; a tensor if only the device knows
        self._begins = True  # whether the next iteration is the first one of a step
        self._kept: list[Tensor] = []

    def before_train(self, runner: Runner) -> None:
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        self._begins = True
        self._scaled = scaler is not None and scaler.is_enabled()
        if not isinstance(optimizer, Optimizer):
            self._scaled = False  # several optimizers step at times of their own
        elif self._scaled:
            # A scaler forgets at once that it skipped a step, and where the scale is fixed nothing
            # else tells.
            optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Any, *args: Any) -> None:
        # fused optimizers are called in any case, and skip the step on the device
        found_inf = getattr(optimizer, 'found_inf', None)
        self._stepped = True if found_inf is None else found_inf == 0

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._stepped = False
        if self._scaled and self._begins:
            buffers = list(runner.model.buffers())
            if [b.shape for b in buffers] != [b.shape for b in self._kept]:
                self._kept = [torch.empty_like(buffer) for buffer in buffers]
            _copy(buffers, self._kept)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        outputs = outputs or {}
        loss = torch.as_tensor(outputs.get('loss', 0.0))
        self._begins = getattr(runner.optim_wrapper, 'should_update', lambda: True)()
        bad = ~torch.isfinite(loss).all()
        if self._scaled and self._begins:
            bad = bad | ~torch.as_tensor(self._stepped, device=bad.device)
        bad = bad.long()
        all_reduce(bad, 'max')  # each process has running statistics of its own
        if not bad:
            if self._begins:
                self._skipped = 0
            return
        if self._scaled:
            _copy(self._kept, list(runner.model.buffers()))
            if not self._begins:
                return  # the step, which has these gradients in it, is still to be skipped
        self._skipped += 1
        if self._scaled and self._skipped <= self.patience:
            return
        if not torch.isfinite(loss).all():
            what, are = 'loss', 'is'
        else:
            what, are = ('gradients', 'are') if self._scaled else ('loss of another process', 'is')
        values = ', '.join(
            f'{name} = {torch.as_tensor(value).item():.4g}' for name, value in outputs.items()
        )
        in_a_row = f', {self._skipped} times in a row' if self._skipped > 1 else ''
        pictures = [
            str(path)
            for sample in (data_batch or {}).get('data_samples', ())
            if (path := getattr(sample, 'img_path', None))
        ]
        raise FloatingPointError(
            f'the {what} of iteration {runner.iter + 1} (epoch {runner.epoch + 1}) {are} not finite'
            f'{in_a_row}: {values}. A lower learning rate, a longer '
            f'warm-up or clipped gradients may help; or look at the data'
            + (f' ({", ".join(pictures[:4])})' if pictures else '')
        )


@torch.no_grad()
def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    """Copies in one go what has one type: running statistics, and counts of batches."""
    for floating in (True, False):
        pairs = [
            (target, source)
            for target, source in zip(targets, sources, strict=True)
            if source.is_floating_point() == floating
        ]
        if pairs:
            torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])
