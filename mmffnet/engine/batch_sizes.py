"""Training with another size of the pictures in each batch."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, Sampler

from ..config_types import find_type
from ..models.arch import check_count
from ..registry import DATA_SAMPLERS, TRANSFORMS


class SizedIndex(int):
    """The index of a sample, which knows the size of its batch's pictures."""

    size: int

    def __new__(cls, index: int, size: int) -> 'SizedIndex':
        self = super().__new__(cls, index)
        self.size = size
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        return int(self), self.size


@DATA_SAMPLERS.register_module()
class MultiSizeBatchSampler(BatchSampler):
    """Draws a size for each batch, the same one in all processes; :class:`OfBatchSize` takes it.

    Small pictures come in batches that fill the same memory, rounded to a multiple of 8. An epoch
    has as many batches as see each sample once on the average of all draws.

    Args:
        sampler (Sampler): What orders the samples.
        batch_size (int): Pictures of the size ``size`` in a batch, and the least of any size.
        size (int): Side of the pictures that ``batch_size`` is meant for. Defaults to 224.
        sizes (Sequence[int]): The sides to draw from. Defaults to those of CAS-ViT's training,
            160 to 320.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        size: int = 224,
        sizes: Sequence[int] = (160, 192, 224, 256, 288, 320),
    ):
        super().__init__(sampler, batch_size, drop_last=True)
        for side in (size, *sizes):
            check_count('MultiSizeBatchSampler: a size', side)
        filling = [(side, batch_size * (size / side) ** 2) for side in sizes]
        #: Each size, and the pictures in its batches
        self.batches = [(side, max(batch_size, round(n / 8) * 8)) for side, n in filling]

    def __len__(self) -> int:
        mean = sum(number for _, number in self.batches) / len(self.batches)
        return max(round(len(self.sampler) / mean), 1)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        sampler: Any = self.sampler
        generator = torch.Generator().manual_seed(sampler.seed + getattr(sampler, 'epoch', 0))
        draws = torch.randint(len(self.batches), (len(self),), generator=generator, device='cpu')
        indices = itertools.chain.from_iterable(itertools.repeat(sampler))
        for draw in draws.tolist():
            side, number = self.batches[draw]
            yield [SizedIndex(index, side) for index in itertools.islice(indices, number)]


@TRANSFORMS.register_module()
class OfBatchSize:
    """A transform whose ``scale`` is the size that :class:`MultiSizeBatchSampler` has drawn.

    Args:
        transform (dict): Its config. The ``scale`` there is that of a sample by itself.
    """

    def __init__(self, transform: dict):
        cfg = dict(transform)
        name = cfg.pop('type')
        self.kind: Any = find_type(name, TRANSFORMS, cfg.pop('_scope_', None))
        if self.kind is None or 'scale' not in cfg:
            raise ValueError(f'OfBatchSize: {name!r} must be registered and have a scale')
        self.cfg = cfg

    def __call__(self, results: dict) -> dict | None:
        scale = getattr(results.get('sample_idx'), 'size', self.cfg['scale'])
        return self.kind(**{**self.cfg, 'scale': scale})(results)
