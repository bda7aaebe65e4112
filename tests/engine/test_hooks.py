"""What a training does when it is repeated, resumed in other circumstances, or goes wrong."""

import copy
import runpy
import shutil

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from torch._dynamo.testing import CompileCounter
from torch.utils.data import BatchSampler

import mmffnet
from mmffnet.checkpoint import read_checkpoint
from mmffnet.engine import ChannelsLastHook, CompileHook, FuseHook
from mmffnet.engine import runner as engine_runner
from mmffnet.engine.hooks.exact_resume import _Batches, seed_generators


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


@pytest.mark.slow
def test_number_of_workers_makes_no_difference(toy, undisturbed, tmp_path):
    child = toy.Child(tmp_path / 'log', toy.toy_config(tmp_path, True, 3))
    assert child.wait() == 0, child.text
    assert toy.differences(toy.end_state(undisturbed[True]), toy.end_state(tmp_path)) == []


@pytest.mark.slow
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


@pytest.mark.slow
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
    cfg.custom_hooks = [dict(type='mmffnet.FiniteLossHook', patience=3)]
    hook = toy.At('before_train_iter', 4, toy.spoil_weight)
    child = toy.Child(tmp_path / 'log', cfg, None, hook)
    assert child.wait() == 1
    assert 'the loss of iteration 8 (epoch 3) is not finite, 4 times in a row' in child.text


class Record(Hook):
    """Keeps copies of all buffers, from before and from after each iteration."""

    def __init__(self):
        self.before, self.after, self.stepped = [], [], []

    def copy(self, model):
        return {name: buffer.clone() for name, buffer in model.named_buffers()}

    def before_train_iter(self, runner, *args, **kwargs):
        self.before.append(self.copy(runner.model))
        self.weight = runner.model.head[1].weight.detach().clone()

    def after_train_iter(self, runner, *args, **kwargs):
        self.after.append(self.copy(runner.model))
        self.stepped.append(not torch.equal(self.weight, runner.model.head[1].weight))


def scaled_config(toy, folder, **changes):
    options = {
        'optim_wrapper.type': 'ScaledOptimWrapper',
        'custom_hooks.0.update_buffers': True,
        'custom_hooks.0.priority': 'ABOVE_NORMAL',  # as in the official recipe
    }
    return toy.toy_config(folder, **options, **changes)


@pytest.mark.parametrize(
    ('action', 'accumulated', 'fused'),
    [('overflow', 1, False), ('overflow', 2, False), ('overflow_gradient', 1, True)],
    ids=['loss', 'accumulated', 'gradient'],
)
@pytest.mark.slow
def test_a_skipped_step_leaves_no_trace(toy, tmp_path, action, accumulated, fused):
    changes = {
        'optim_wrapper.accumulative_counts': accumulated,
        'optim_wrapper.optimizer.fused': fused,
    }
    record, spoil = Record(), toy.At('before_train_iter', 4, getattr(toy, action))
    toy.train(scaled_config(toy, tmp_path, **changes), None, spoil, record)

    skipped = [4, 5] if accumulated == 2 else [4]
    steps = range(accumulated - 1, 12, accumulated)
    assert [i for i, stepped in enumerate(record.stepped) if stepped] == [
        i for i in steps if i not in skipped
    ]
    for i, (before, after) in enumerate(zip(record.before, record.after, strict=True)):
        changed = toy.differences(before, after)
        if i == 4:
            assert changed == []
        elif i == 5 and accumulated == 2:  # the rest of the same step
            assert toy.differences(record.before[4], after) == []
        else:
            assert len(changed) > 50
    for path in tmp_path.glob('*.pth'):
        tensors = dict(toy._flatten(read_checkpoint(path), ''))
        spoiled = [
            name
            for name, tensor in tensors.items()
            if isinstance(tensor, torch.Tensor) and not tensor.isfinite().all()
        ]
        assert spoiled == [], path
    assert {path.name for path in tmp_path.glob('epoch_*.pth')} == {'epoch_3.pth', 'epoch_4.pth'}


@pytest.mark.slow
def test_gradients_that_are_never_numbers_end_the_training(toy, tmp_path):
    cfg = scaled_config(toy, tmp_path)
    cfg.custom_hooks += [dict(type='FiniteLossHook', patience=2)]
    spoil = toy.At('before_train_iter', 4, toy.overflow_gradient, False)
    with pytest.raises(FloatingPointError, match=r'gradients of iteration 7 .* 3 times in a row'):
        toy.train(cfg, None, spoil)
    assert [path.name for path in tmp_path.glob('epoch_*.pth')] == ['epoch_1.pth', 'epoch_2.pth']


@pytest.mark.parametrize(
    ('point', 'iteration', 'what', 'kept'),
    [
        ('after_train_iter', 5, 'buffer', ['epoch_1.pth']),
        ('after_train_iter', 5, 'average', ['epoch_1.pth']),
        ('after_train_iter', 5, 'optimizer', ['epoch_1.pth']),
        ('before_val', 6, 'buffer', ['epoch_1.pth', 'epoch_2.pth']),
    ],
)
@pytest.mark.slow
def test_nothing_that_is_no_number_is_kept(toy, tmp_path, point, iteration, what, kept):
    spoil = toy.At(point, iteration, toy.spoil, what)
    with pytest.raises(FloatingPointError, match=f'after iteration 6 1 .*{what}'):
        toy.train(toy.toy_config(tmp_path), None, spoil)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == kept


RANK = """
import os

import torch
import toy_training as toy

os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')

torch.distributed.init_process_group('gloo', 'file://' + store, rank=rank, world_size=2)

def train(name, *hooks, **changes):
    changes['train_dataloader.batch_size'] = 3
    cfg = toy.toy_config(folder / name, launcher='pytorch', **changes)
    toy.train(cfg, None, *(hooks if rank else ()))

scaled = {'optim_wrapper.type': 'ScaledOptimWrapper', 'default_hooks.checkpoint.save_best': None}
train('goes_on', toy.At('before_train_iter', 2, toy.overflow), **scaled)
print('trained')
for name, spoil in [
    ('loss', toy.At('before_train_iter', 2, toy.overflow)),
    ('numbers', toy.At('before_val', 4, toy.spoil, 'buffer')),
]:
    try:
        train(name, spoil)
    except FloatingPointError as error:
        print(name, error)
"""


@pytest.mark.dist
def test_all_processes_agree_on_what_is_no_number(toy, tmp_path):
    """It happens in the second one."""
    script = tmp_path / 'rank.py'
    script.write_text(RANK)
    known = dict(store=str(tmp_path / 'store'), folder=tmp_path)
    children = [
        toy.Child(tmp_path / f'{i}.log', str(script), dict(known, rank=i), function=runpy.run_path)
        for i in range(2)
    ]
    for child in children:
        assert child.wait() == 0, child.text
        assert 'trained' in child.text
    first, second = (child.text for child in children)
    assert 'loss the loss of another process of iteration 3 (epoch 2) is not finite' in first
    assert 'loss the loss of iteration 3 (epoch 2) is not finite' in second
    assert 'numbers after iteration 4 the numbers of another process are not finite' in first
    assert 'numbers after iteration 4 1 buffers are not finite' in second
    names = ('goes_on', 'loss', 'numbers')
    kept = {name: sorted(p.name for p in (tmp_path / name).glob('*.pth')) for name in names}
    assert kept == dict(
        goes_on=['epoch_3.pth', 'epoch_4.pth'],
        loss=['epoch_1.pth'],
        numbers=['epoch_1.pth', 'epoch_2.pth'],
    )


@pytest.mark.parametrize('prepared', [True, False], ids=['tools', 'plain'])
@pytest.mark.slow
def test_testing_never_resumes(toy, tmp_path, prepared):
    """With the config that a resumed training left behind, by our tools or those of others."""
    cfg = toy.toy_config(tmp_path / 'work')
    cfg.custom_hooks = [dict(type='WholeCheckpointHook')]
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.resume, cfg.load_from = True, 'epoch_4.pth'
    model = MODELS.build(cfg.model)
    whole, part = tmp_path / 'whole.pth', tmp_path / 'part.pth'
    torch.save(model.state_dict(), whole)  # nothing but weights, as official files
    torch.save({k: v for k, v in model.state_dict().items() if 'head' not in k}, part)

    def test(path):
        config = copy.deepcopy(cfg)
        config.load_from = str(path)
        runner = engine_runner.build_runner(
            engine_runner.test_config(config, str(path)) if prepared else config
        )
        runner.test()
        return runner.model

    assert toy.differences(model.state_dict(), test(whole).state_dict()) == []
    with pytest.raises(ValueError, match=r'does not fill 2 of .* head'):
        test(part)


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_cuda_graphs_fall_back_visibly(toy, tmp_path, undisturbed, capfd):
    """On a CPU the training is what it is without them, and one line says so."""
    cfg = engine_runner.train_config(toy.toy_config(tmp_path), cuda_graphs=True)
    engine_runner.build_runner(cfg).train()
    assert not toy.differences(toy.end_state(tmp_path), toy.end_state(undisturbed[True]))
    assert capfd.readouterr().out.count('without CUDA graphs: it is not on a GPU') == 1


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
