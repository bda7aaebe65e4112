"""Checkpoints that survive kills and full disks, and training that stops when it is asked to."""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from ...checkpoint import atomic_write
from ...errors import shorten
from ...registry import HOOKS
from ..resume import settle_resume

#: Checkpoint of a training that was asked to stop; the next regular one replaces it
STOPPED = 'stopped_iter_{}.pth'
_UNFINISHED = re.compile(r'\.(last_checkpoint|.+\.pth)\.\w+\.tmp')


class WholeFileBackend(LocalBackend):
    """Local files that appear under their names when they are complete, or not at all.

    In configs: ``backend_args=dict(backend='whole_file')``.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        try:
            with atomic_write(filepath) as file:
                file.write(obj)
        except OSError as error:
            raise OSError(
                error.errno,
                f'cannot write {filepath} ({len(obj) / 2**20:.1f} MiB): {error.strerror}; '
                'the checkpoints before it are as they were',
            ) from error


register_backend('whole_file', WholeFileBackend, force=True)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook for runs that may be killed, stopped or out of disk space.

    - Checkpoint files and ``last_checkpoint`` are whole if they exist, and an old checkpoint is
      removed only when the new one is complete.
    - On SIGTERM (which a cluster sends before it takes a machine away) and on Ctrl-C, every process
      finishes its iteration (during validation: the validation and one more iteration), the main
      one writes ``stopped_iter_<number>.pth``, and all of them exit with status 128 + signal (143
      and 130). A second Ctrl-C interrupts at once. Signals that are ignored when training begins
      stay ignored, and however it ends, what handled them before handles them again.
    - Resuming without naming a checkpoint (``resume=True``, ``load_from=None``) takes the newest
      one that is whole.

    Args:
        *args: As for mmengine's CheckpointHook.
        **kwargs: As for mmengine's CheckpointHook. With ``backend_args``, ``file_client_args`` or a
            remote ``out_dir``, whether files are whole is up to that storage, and with
            FlexibleRunner up to its strategy.
    """

    backend_args: dict | None
    file_backend: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._local = not (
            self.backend_args or self.file_client_args or '://' in str(self.out_dir or '')
        )
        if self._local:
            self.backend_args = dict(backend='whole_file')
        self._signal = 0
        self._saved = -1  # the number of iterations in the newest checkpoint
        self._place: dict[str, int] = {}  # the epoch and iteration of the one being written

    def before_run(self, runner: Runner) -> None:
        settle_resume(runner)
        loop: Any = runner._train_loop
        if isinstance(loop, BaseLoop):  # it is built for a training only
            loop.run = partial(self._run, loop, loop.run)

    def _run(self, loop: Any, run: Callable[[], Any]) -> Any:
        vars(loop).pop('run', None)
        with self._awaiting_signals():
            return run()

    @contextmanager
    def _awaiting_signals(self) -> Iterator[None]:
        """Takes signals, but for those that somebody ignores, as shells do for background jobs."""
        handlers: dict[int, Any] = {}
        self._signal = 0
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):  # None could not be put back
                    handlers[number] = signal.signal(number, self._ask_to_stop)
        try:
            yield
        finally:
            for taken, handler in handlers.items():
                signal.signal(taken, handler)

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if self._local and is_main_process():
            for folder in (self.out_dir, runner.work_dir):
                for path in Path(folder).glob('.*.tmp'):
                    if _UNFINISHED.fullmatch(path.name):  # of a killed process
                        path.unlink(missing_ok=True)
        for loop in (runner.train_loop, runner.val_loop):
            if loop is not None:
                loader = loop.dataloader
                loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # FlexibleRunner works it out anew, and is ahead after a validation
        checkpoint['meta'].update(self._place)

    def after_train(self, runner: Runner) -> None:
        super().after_train(runner)
        barrier()  # a process that is gone can take the connections of the others with it

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        super().after_train_iter(runner, *args, **kwargs)
        # Gradients on their way to a step are in no checkpoint: wait for the step.
        should_update = getattr(runner.optim_wrapper, 'should_update', lambda: True)
        if self._everybody_stops() and should_update():
            self._stop(runner)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def _everybody_stops(self) -> bool:
        asked = torch.tensor(self._signal)
        all_reduce(asked, 'max')
        if asked:  # never set to 0: a signal may come at any moment
            self._signal = int(asked)
        return bool(asked)

    def _stop(self, runner: Runner) -> None:
        done = runner.iter + 1
        if self._saved != done:
            meta = dict(epoch=runner.epoch, iter=done)
            self._save(runner, STOPPED.format(done), meta, by_epoch=False)
        name, status = signal.Signals(self._signal).name, 128 + self._signal
        runner.logger.warning(
            f'{name}: stopped after iteration {done}, which {self.last_ckpt} holds; continue with '
            f'--resume. Exit status {status}.'
        )
        barrier()  # launchers end all processes as soon as one is gone
        raise SystemExit(status)

    def _save(self, runner: Runner, filename: str, meta: dict, by_epoch: bool) -> None:
        _refuse_non_finite(runner, meta['iter'])
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._place = self._place or dict(meta)
        self._saved = self._place['iter']
        runner.save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self._place = {}
        if is_main_process():
            with atomic_write(Path(runner.work_dir, 'last_checkpoint')) as file:
                file.write(self.last_ckpt.encode())

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        expired = None
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                expired = self.keep_ckpt_ids.popleft()
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._save(runner, self.filename_tmpl.format(step), meta, self.by_epoch)
        if not is_main_process():
            return
        if expired is not None:
            name = self.filename_tmpl.format(expired)
            _remove(self.file_backend, self.file_backend.join_path(self.out_dir, name))
        if self._local:
            for path in Path(self.out_dir).glob(STOPPED.format('*')):
                path.unlink(missing_ok=True)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if self.save_best:
            _refuse_non_finite(runner, runner.iter)
        self._place = dict(epoch=runner.epoch, iter=runner.iter)
        with self._removing_last():
            super()._save_best_checkpoint(runner, metrics)
        self._place = {}

    @contextmanager
    def _removing_last(self) -> Iterator[None]:
        """Puts off what mmengine removes until what replaces it has been written."""
        backend = self.file_backend
        self.file_backend = lasting = _Lasting(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        current = [getattr(self, 'best_ckpt_path', None)]
        current += getattr(self, 'best_ckpt_path_dict', {}).values()
        for path in lasting.removed:
            if path not in current:
                _remove(backend, path)


class _Lasting:
    """A file backend that takes note of what is to be removed, and removes nothing."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.removed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.removed.append(path)

    rmtree = remove


def _remove(backend: Any, path: str) -> None:
    if backend.isfile(path):
        backend.remove(path)
    elif backend.isdir(path):  # of DeepSpeed or FSDP
        backend.rmtree(path)


def _start_worker(init: Callable[[int], None] | None, worker: int) -> None:
    """Keeps a data worker alive when a whole process group is asked to stop.

    The main process finishes its iteration, which needs data, and ends its workers itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # on Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if init is not None:
        init(worker)


def _end_with_parent() -> None:
    """Waits for a SIGTERM that comes from the main process."""
    parent = multiprocessing.parent_process()
    while parent and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


def _refuse_non_finite(runner: Runner, iteration: int) -> None:
    """Raises an error, in all processes, if anything that goes into checkpoints is not finite.

    It would be in every file from now on, and the good ones would be removed one by one.
    """
    non_finite: dict[str, list[str]] = {}
    for kind, name, tensor in _find_state(runner):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            non_finite.setdefault(kind, []).append(name)
    somewhere = torch.tensor(bool(non_finite), dtype=torch.long)
    all_reduce(somewhere, 'max')  # one alone that refuses would leave the others waiting
    if somewhere:
        texts = [
            f'{len(names)} {kind} are not finite ({shorten(names, 3)})'
            for kind, names in non_finite.items()
        ]
        raise FloatingPointError(
            f'after iteration {iteration} '
            f'{", ".join(texts) or "the numbers of another process are not finite"}: no checkpoint '
            'is written. A lower learning rate or clipped gradients may help'
        )


def _find_state(runner: Runner) -> Iterator[tuple[str, str, Tensor]]:
    """Whatever is trained: what it is, its name, and its numbers."""
    yield from _find_tensors(runner.model)
    for hook in runner.hooks:
        average = getattr(hook, 'ema_model', None)
        if isinstance(average, nn.Module):
            for kind, name, tensor in _find_tensors(average):
                yield f'{kind} of the moving average', name, tensor
    wrapper: Any = runner.optim_wrapper
    names = {parameter: name for name, parameter in runner.model.named_parameters()}
    for part in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
        optimizer = getattr(part, 'optimizer', None)
        for parameter, state in getattr(optimizer, 'state', {}).items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    yield 'optimizer states', f'{key} of {names.get(parameter)}', value


def _find_tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield 'parameters', name, parameter
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            # what is in no checkpoint may be infinite, as masks are
            if name.rpartition('.')[2] not in module._non_persistent_buffers_set:
                yield 'buffers', name, buffer
