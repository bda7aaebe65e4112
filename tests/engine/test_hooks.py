"""What a training does when it is repeated, resumed in other circumstances, or goes wrong."""

import shutil

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import MODELS
from torch._dynamo.testing import CompileCounter
from torch.utils.data import BatchSampler

import mmffnet
from mmffnet.engine import ChannelsLastHook, CompileHook, FuseHook
from mmffnet.engine.hooks import _Batches, seed_generators


class Loop:
    """A training loop as far as the order of data depends on it."""

    iter = 0


def batches(sampler, endless, done=0, skip=0):
    made = _Batches(BatchSampler(sampler, 4, False), Loop(), 5, endless)
    made.loop.iter, made.skip = done, skip
    return made


def take(iterator, count):
    return [(list(batch), batch.key) for batch, _ in zip(iterator, range(count), strict=False)]


def test_batches_of_an_epoch():
    plain = list(BatchSampler(DefaultSampler(range(10), seed=3), 4, False))
    made = batches(DefaultSampler(range(10), seed=3), endless=False, done=6)
    assert len(made) == 3
    assert [list(batch) for batch in made] == plain
    keys = [batch.key for batch in made]
    assert [key[-1] for key in keys] == [6, 7, 8]
    resumed = batches(DefaultSampler(range(10), seed=3), endless=False, done=8, skip=2)
    assert take(resumed, 9) == [(plain[2], keys[2])]
    assert len(take(resumed, 9)) == 3  # the epochs after it are whole


@pytest.mark.parametrize('kind', [DefaultSampler, InfiniteSampler])
def test_batches_without_end(kind):
    whole = take(batches(kind(range(10), seed=3), endless=True), 12)
    resumed = take(batches(kind(range(10), seed=3), endless=True, done=7, skip=7), 5)
    assert resumed == whole[7:]
    if kind is DefaultSampler:  # in another order in every epoch
        flat = [index for indices, _ in whole for index in indices]
        epochs = flat[:10], flat[10:20]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
        assert epochs[0] != epochs[1]


def test_too_few_samples_for_a_batch_are_an_error():
    made = batches(DefaultSampler(range(3)), endless=True)
    made.batch_sampler.drop_last = True
    with pytest.raises(ValueError, match='3 samples, batch size 4, drop_last'):
        next(iter(made))


def test_seeds_are_independent():
    drawn = set()
    for key in [(0, 0), (0, 1), (1, 0), (2**63, 0), (-1, 0), (0, 0, 0)]:
        seed_generators(*key)
        drawn.add(float(torch.rand(())))
    assert len(drawn) == 6
    seed_generators(0, 1)
    assert float(torch.rand(())) in drawn


def test_number_of_workers_makes_no_difference(toy, undisturbed, tmp_path):
    child = toy.Child(tmp_path / 'log', toy.toy_config(tmp_path, True, 3))
    assert child.wait() == 0, child.text
    assert toy.differences(toy.end_state(undisturbed[True]), toy.end_state(tmp_path)) == []


def test_seed_chosen_by_mmengine_is_kept(toy, tmp_path):
    once, again = tmp_path / 'once', tmp_path / 'again'
    for folder in (once, again):
        folder.mkdir(exist_ok=True)
        cfg = toy.toy_config(folder, randomness=dict(seed=None))
        child = toy.Child(folder / 'log', cfg, 'auto')
        assert child.wait() == 0, child.text
        again.mkdir(exist_ok=True)
        shutil.copy(once / 'epoch_3.pth', again)  # the second one starts from here
    first, second = toy.end_state(once), toy.end_state(again)
    assert toy.differences(first, second) == []


def test_other_batch_size_is_noticed(toy, tmp_path):
    (tmp_path / 'first').mkdir()
    cfg = toy.toy_config(tmp_path / 'first', **{'default_hooks.checkpoint.by_epoch': False})
    child = toy.Child(tmp_path / 'log', cfg)  # the interval is one iteration now
    assert child.wait() == 0, child.text
    cfg = toy.toy_config(tmp_path, **{'train_dataloader.batch_size': 5})
    child = toy.Child(tmp_path / 'log', cfg, str(tmp_path / 'first' / 'iter_11.pth'))
    assert child.wait() == 0, child.text
    assert 'an epoch had 3 batches and has 2 now' in child.text


def test_loss_that_is_no_number(toy, tmp_path):
    hook = toy.At('before_train_iter', 4, toy.spoil_weight)
    child = toy.Child(tmp_path / 'log', toy.toy_config(tmp_path), None, hook)
    assert child.wait() == 1
    assert (
        'FloatingPointError: the loss of iteration 5 (epoch 2) is not finite: loss = nan, '
        'loss_cls = nan. A lower learning rate'
    ) in child.text
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']


def test_weights_that_are_no_numbers_are_not_kept(toy, tmp_path):
    """Spoiled by the last step of an epoch, whose loss was still a number."""
    hook = toy.At('after_train_iter', 5, toy.spoil_weight)
    child = toy.Child(tmp_path / 'log', toy.toy_config(tmp_path), None, hook)
    assert child.wait() == 1
    assert 'after iteration 6 1 parameters are not finite (head.1.bias)' in child.text
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']


def test_gradient_scaler_may_skip_some_steps(toy, tmp_path):
    options = {
        'optim_wrapper.type': 'ScaledOptimWrapper',
        'default_hooks.checkpoint.interval': 1000,  # weights like these are not written
        'default_hooks.checkpoint.save_best': None,
    }
    cfg = toy.toy_config(tmp_path, **options)
    cfg.custom_hooks = [dict(type='FiniteLossHook', patience=3)]
    hook = toy.At('before_train_iter', 4, toy.spoil_weight)
    child = toy.Child(tmp_path / 'log', cfg, None, hook)
    assert child.wait() == 1
    assert 'the loss of iteration 8 (epoch 3) is not finite for the 4th time' in child.text


class Runner:
    """What hooks see of a runner before it does anything."""

    def __init__(self, model):
        self.model = model


class Neck(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(256, 4, 1)

    def forward(self, maps):
        return self.conv(maps[-1]).relu()


class Detector(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = MODELS.build(dict(type='FFNet', arch='nano'))
        self.neck = Neck()

    def forward(self, x):
        return self.neck(self.backbone(x))


def test_compile_takes_backbone_and_neck():
    wrapped = torch.nn.Module()
    wrapped.module = model = Detector().eval()
    names, image = list(model.state_dict()), torch.rand(1, 3, 64, 64)
    expected, counter = model(image), CompileCounter()
    CompileHook(backend=counter).before_run(Runner(wrapped))
    assert torch.allclose(model(image), expected, atol=1e-5)
    assert counter.frame_count == 2
    assert list(model.state_dict()) == names
    with pytest.raises(ValueError, match='Linear has no backbone'):
        CompileHook().before_run(Runner(torch.nn.Linear(1, 1)))


def test_fuse_before_test():
    model = torch.nn.Sequential(MODELS.build(dict(type='FFNet', arch='nano'))).eval()
    image = torch.rand(1, 3, 64, 64)
    expected, before = model(image), len(model.state_dict())
    FuseHook().before_test(Runner(model))
    assert len(model.state_dict()) < before
    for one, other in zip(model(image), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert mmffnet.reparameterize(model) is model


def test_channels_last_everywhere():
    model = torch.nn.Sequential(MODELS.build(dict(type='FFNet', arch='nano'))).eval()
    image = torch.rand(2, 3, 64, 64)
    expected = model(image)
    FuseHook().before_test(Runner(model))
    ChannelsLastHook().before_test(Runner(model))
    for one, other in zip(model(image), expected, strict=True):
        assert one.is_contiguous(memory_format=torch.channels_last) and not one.is_contiguous()
        assert torch.allclose(one, other, atol=1e-4)
    assert ChannelsLastHook.priority == 'LOW' and FuseHook.priority == 'NORMAL'
