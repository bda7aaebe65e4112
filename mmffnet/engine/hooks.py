"""Hooks for any training or test: exact resuming, losses that are no numbers, speed."""

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader

from ..checkpoint import load_whole
from ..models import MixerBackbone, reparameterize
from ..registry import HOOKS
from .data import name_bad_samples

_MODEL, _DATA, _ORDER = range(3)


def seed_generators(*key: int) -> None:
    """Seeds the global generators of Python, numpy and torch with numbers made from a key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=24).digest()
    random.seed(digest[:8])
    np.random.seed(np.frombuffer(digest[8:16], '<u4'))
    torch.manual_seed(int.from_bytes(digest[16:], 'little', signed=True))


class _Batch(list):
    """Indices of the samples of a batch, with the seed of whatever is random in loading them."""

    def __init__(self, indices: Sequence[int], key: tuple[int, ...]) -> None:
        super().__init__(indices)
        self.key = key


class _Batches:
    """A batch sampler that knows which iteration of the training each batch belongs to.

    Args:
        batch_sampler (BatchSampler): What yields the batches.
        loop (BaseLoop): The training loop.
        seed (int): Seed of the training.
        endless (bool): Whether to start again at the end, as loops over iterations need it.
    """

    def __init__(self, batch_sampler: Any, loop: Any, seed: int, endless: bool) -> None:
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler
        self.loop = loop
        self.seed = seed
        self.endless = endless
        self.skip = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[_Batch]:
        skip, self.skip = self.skip, 0
        number = self.loop.iter - skip
        seed_generators(self.seed, _ORDER, number)
        for epoch in itertools.count() if self.endless else (0,):
            if epoch and hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            start = number
            for indices in self.batch_sampler:
                if skip:
                    skip -= 1
                else:
                    yield _Batch(indices, (self.seed, _DATA, get_rank(), number))
                number += 1
            if number == start:
                raise ValueError(
                    f'the training data do not fill one batch: {len(self.sampler)} samples, batch '
                    f'size {self.batch_sampler.batch_size}, drop_last'
                )


class _Iterator:
    """Stands for mmengine's iterator over batches without end.

    A loop that resumes first fetches all batches that were trained with before. Those are not
    loaded again.
    """

    def __init__(self, loader: DataLoader, skip: int) -> None:
        self.loader = loader
        self.skip = skip
        self.batches: Iterator | None = None

    def __iter__(self) -> '_Iterator':
        return self

    def __next__(self) -> Any:
        if self.skip:
            self.skip -= 1
            return None
        if self.batches is None:
            self.batches = iter(self.loader)
        return next(self.batches)


def _load_batch(load: Callable[[Sequence[int]], Any], indices: Any) -> Any:
    if isinstance(indices, _Batch):
        seed_generators(*indices.key)
    return load(indices)


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a resumed training the one that would have been without the interruption.

    mmengine restores weights, their moving averages, optimizer, schedules and loss scaler. It does
    not restore random numbers (drop path, augmentation) nor, where the config names no seed, the
    order of the data; in loops over iterations it loads all past batches again. With this hook,
    everything random in an iteration depends on the seed and the iteration's number alone: the
    generators of the main process are seeded before each step, those of the data workers before
    each batch. So nothing has to be stored but the place in the epoch, a resumed training starts
    at once at the right sample, and the number of workers makes no difference to the result.

    Resuming from a checkpoint repeats exactly what came after it: on a CPU to the bit, on a GPU as
    far as its kernels are deterministic (``randomness=dict(deterministic=True)``). Not restored is
    what keeps its state outside of the checkpoint: caches in transforms (CachedMosaic), gradients
    collected for a later step (``accumulative_counts``) in a checkpoint between two steps, early
    stopping and ReduceOnPlateau when killed during validation.
    """

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self._epoch_start = (0, 0)
        self._loaded: dict[str, Any] = {}
        self._skip = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._loaded = dict(checkpoint.get('meta', {}), **checkpoint.get('data_position', {}))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        meta = checkpoint['meta']
        epoch, start = self._epoch_start
        if not hasattr(runner.train_loop, 'dataloader_iterator'):
            done = meta['iter'] - start if meta['epoch'] == epoch else 0
            checkpoint['data_position'] = dict(batch=done, batches=len(runner.train_dataloader))

    def before_train(self, runner: Runner) -> None:
        loop, cfg = runner.train_loop, runner._train_dataloader
        loader = loop.dataloader
        sampler_cfg = cfg.get('sampler') if isinstance(cfg, dict) else None
        if not isinstance(sampler_cfg, dict) or loader.batch_sampler is None:
            runner.logger.warning(
                'ExactResumeHook leaves the data as they are: it needs a train_dataloader with a '
                'sampler that is a dict'
            )
            return
        name_bad_samples(loader.dataset)
        loader.dataset.__getitems__ = partial(_load_batch, loader.dataset.__getitems__)
        endless = hasattr(loop, 'dataloader_iterator')
        batch_sampler = self._build_batch_sampler(runner, cfg, loader)
        batches = _Batches(batch_sampler, loop, runner.seed, endless)
        # torch refuses to exchange these two, for good reasons once there are workers
        object.__setattr__(loader, 'sampler', batches.sampler)
        object.__setattr__(loader, 'batch_sampler', batches)
        self._skip = 0
        if endless:
            batches.skip = loop.iter
            loader._iterator = None
            loop.dataloader_iterator = _Iterator(loader, loop.iter)
        elif loop.iter and self._loaded.get('iter') == loop.iter:
            if self._loaded.get('batches', len(loader)) == len(loader):
                self._skip = batches.skip = self._loaded.get('batch', 0)
            else:
                runner.logger.warning(
                    f'an epoch had {self._loaded["batches"]} batches and has {len(loader)} now: '
                    'training continues at the start of the epoch'
                )

    def _build_batch_sampler(self, runner: Runner, cfg: dict, loader: DataLoader) -> Any:
        """Builds it anew: the first one may have been used, and made with another seed."""
        seed_generators(runner.seed, _ORDER)
        different = runner._randomness_cfg.get('diff_rank_seed', False)
        defaults: dict[str, Any] = dict(
            dataset=loader.dataset, seed=None if different else runner.seed
        )
        sampler = DATA_SAMPLERS.build(cfg['sampler'], default_args=defaults)
        if cfg.get('batch_sampler') is None:
            size: Any = loader.batch_size
            return BatchSampler(sampler, size, loader.drop_last)
        defaults = dict(sampler=sampler, batch_size=cfg['batch_size'])
        return DATA_SAMPLERS.build(cfg['batch_sampler'], default_args=defaults)

    def before_train_epoch(self, runner: Runner) -> None:
        loop, skip = runner.train_loop, self._skip
        self._epoch_start = (runner.epoch, runner.iter - skip)
        if skip:
            run_iter = loop.run_iter
            loop.run_iter = lambda number, batch: run_iter(number + skip, batch)

    def after_train_epoch(self, runner: Runner) -> None:
        if self._skip:
            del runner.train_loop.run_iter
            self._skip = 0

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        rank = get_rank()  # each process drops other paths; one alone has the numbers it always had
        seed_generators(runner.seed, _MODEL, runner.iter, *([rank] if rank else []))


@HOOKS.register_module()
class WholeCheckpointHook(Hook):
    """Refuses a checkpoint that does not fit, where mmengine says so in the log and goes on.

    What is tested must be filled completely, and testing never resumes, whatever the config of a
    training that did resume says. A training may begin (``load_from``) from a model with other
    heads, but not with a part of an FFNet.
    """

    priority = 'HIGHEST'

    def before_run(self, runner: Runner) -> None:
        if not isinstance(runner._train_loop, BaseLoop):  # it is built for a training only
            runner._resume = False

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # FlexibleRunner's strategies spread the weights over processes before they load
        if runner._resume or not isinstance(runner, Runner):
            return
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        where = f'the checkpoint {runner._load_from}'
        if not isinstance(runner._train_loop, BaseLoop):
            load_whole(model, checkpoint, where)
        elif isinstance(getattr(model, 'backbone', None), MixerBackbone):
            new = ''.join(f'(?!{re.escape(name)})' for name in model.backbone.optional_names())
            load_whole(model, checkpoint, where, rf'backbone\.{new}')


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


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles a model's backbone and neck with ``torch.compile``.

    mmengine's own ``compile`` takes the whole step, with data samples, losses and NMS, and breaks
    it into many graphs.

    Args:
        **kwargs: As for ``torch.compile``, such as ``mode`` and ``dynamic``.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs

    def before_run(self, runner: Runner) -> None:
        model = runner.model
        while not hasattr(model, 'backbone') and hasattr(model, 'module'):
            model = model.module  # of DDP or test-time augmentation
        parts = [getattr(model, name, None) for name in ('backbone', 'neck')]
        if not isinstance(parts[0], nn.Module):
            raise ValueError(f'{type(model).__name__} has no backbone that could be compiled')
        for part in filter(None, parts):
            part.compile(**self.kwargs)


@HOOKS.register_module()
class FuseHook(Hook):
    """Re-parameterises a model before it is tested, see :func:`mmffnet.reparameterize`."""

    def before_test(self, runner: Runner) -> None:
        reparameterize(runner.model)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keeps a model in PyTorch's memory format ``channels_last``.

    Convolutions pass the format of their weights on, so the pictures need not be converted.

    DistributedDataParallel lays out its gradients like the weights that it finds. Hooks come after
    it, so :func:`~.runner.build_runner` converts the model already when it sees this hook in the
    config. With a runner of another type torch warns once of strides that do not match.
    """

    priority = 'LOW'  # after FuseHook, which makes new weights

    def before_train(self, runner: Runner) -> None:
        runner.model.to(memory_format=torch.channels_last)

    before_test = before_train
