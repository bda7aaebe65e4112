"""Batches of several sizes."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from family_configs import read
from mmengine.dataset import DefaultSampler
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmffnet.engine.batch_sizes import MultiSizeBatchSampler, OfBatchSize, SizedIndex


def batches(seed=0, epoch=0, length=3000, **kwargs):
    sampler = DefaultSampler(range(length), seed=seed)
    sampler.set_epoch(epoch)
    return MultiSizeBatchSampler(sampler, **dict(dict(batch_size=128), **kwargs))


def test_an_index_with_a_size():
    index = SizedIndex(5, 224)
    copied = pickle.loads(pickle.dumps(index))  # noqa: S301  as workers get it
    assert (index, copied, copied.size, [*range(9)][copied]) == (5, 5, 224, 5)


@pytest.mark.parametrize(
    ('kwargs', 'numbers'),
    [
        ({}, {160: 248, 192: 176, 224: 128, 256: 128, 288: 128, 320: 128}),
        (
            dict(batch_size=64, size=384, sizes=(160, 192, 256, 288, 320, 384)),
            {160: 368, 192: 256, 256: 144, 288: 112, 320: 96, 384: 64},
        ),
    ],
    ids=['training', 'fine-tuning'],
)
def test_sizes_of_the_official_sampler(kwargs, numbers):
    """Sides and pictures on each of 8 GPUs."""
    sampler = batches(length=100_000, **kwargs)
    found = [({index.size for index in batch}, len(batch)) for batch in sampler]
    assert all(len(sizes) == 1 for sizes, _ in found)
    assert {size: number for (size,), number in found} == numbers
    assert len(found) == len(sampler)
    assert sum(number for _, number in found) == pytest.approx(100_000, rel=0.15)


def test_draws_follow_from_seed_and_epoch():
    def draws(**kwargs):
        return [[(int(i), i.size) for i in batch] for batch in batches(**kwargs)]

    assert draws() == draws()
    assert draws() != draws(epoch=1) and draws() != draws(seed=1)
    seen = [index for batch in draws() for index, _ in batch]
    assert len({*seen[:3000]}) == min(3000, len(seen))  # none twice in a row through the data


@pytest.mark.parametrize('kwargs', [dict(size=0), dict(sizes=(160, 1.5)), dict(batch_size=0)])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match='size'):
        batches(**kwargs)


def test_batches_of_the_recipe(tmp_path):
    """Pictures of the size of their batch, with the data loader of the config."""
    for i in range(12):
        picture = np.random.default_rng(i).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / str(i % 2) / f'{i}.png'), picture)
    cfg = read('classification/casvit/casvit-xs_in1k.py').train_dataloader
    cfg.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.batch_sampler.update(size=64, sizes=(32, 64, 96))
    cfg.dataset = dict(
        type='CustomDataset', data_prefix=str(tmp_path), pipeline=cfg.dataset.pipeline
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loader = Runner.build_dataloader(cfg, seed=0)
    seen = set()
    for epoch in range(4):
        loader.batch_sampler.sampler.set_epoch(epoch)
        for batch in loader:
            pictures = torch.stack(batch['inputs'])
            seen.add(tuple(pictures.shape))
        assert tuple(loader.dataset[0]['inputs'].shape) == (3, 224, 224)  # by itself
    assert seen == {(8, 3, 32, 32), (2, 3, 64, 64), (2, 3, 96, 96)}


@pytest.mark.parametrize('transform', [dict(type='Resizze', scale=8), dict(type='Resize')])
def test_transforms_that_cannot_be(transform):
    with pytest.raises(ValueError, match='must be registered and have a scale'):
        OfBatchSize(transform)
