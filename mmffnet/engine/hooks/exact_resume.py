"""Exact resuming: everything random depends on the seed and the iteration alone."""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import FlexibleRunner, Runner
from torch.utils.data import BatchSampler, DataLoader

from ...datasets.checks import name_bad_samples
from ...errors import UsageError
from ...registry import HOOKS

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

    If ``endless``, it starts again at the end, as loops over iterations need it.
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
                raise UsageError(
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
        self._iterator: Iterator | None = None  # as mmengine calls it

    def __iter__(self) -> '_Iterator':
        return self

    def __next__(self) -> Any:
        if self.skip:
            self.skip -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self.loader)
        return next(self._iterator)


def _load_batch(load: Callable[[Sequence[int]], Any], indices: Any) -> Any:
    if isinstance(indices, _Batch):
        seed_generators(*indices.key)
    return load(indices)


def _check_parts(runner: Runner, checkpoint: dict) -> None:
    """Says what a checkpoint lacks, which mmengine begins anew without a word."""
    lacking = [key for key in ('meta', 'message_hub') if key not in checkpoint]
    if lacking:
        raise ValueError(
            f'{runner._load_from} has no {", no ".join(lacking)} to resume with: start from its '
            f'weights with --cfg-options load_from={runner._load_from}'
        )
    if isinstance(runner, FlexibleRunner):
        return  # its strategies keep the rest in files of their own
    lacking = [key for key in ('optimizer', 'param_schedulers') if key not in checkpoint]
    if lacking:
        runner.logger.warning(
            f'{runner._load_from} holds no {" and no ".join(lacking)}, as best_*.pth: they begin '
            'anew in the middle of the training. iter_*.pth and epoch_*.pth hold them'
        )


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
        if runner._resume and not runner._has_loaded:
            _check_parts(runner, checkpoint)
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
