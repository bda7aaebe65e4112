"""The schedule and the hook of the official ImageNet recipe."""

import copy
import json
import runpy
import socket

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from mmffnet.checkpoint import read_checkpoint
from mmffnet.engine.runner import build_runner, test_config

test_config.__test__ = False  # a function of ours, not a test


def schedule(lr=1e-3, groups=1, **settings):
    params = [dict(params=[nn.Parameter(torch.zeros(1))], lr=lr / 2**i) for i in range(groups)]
    optimizer = torch.optim.SGD(params, lr=lr)
    scheduler = PARAM_SCHEDULERS.build(
        dict(type='mmffnet.WarmupCosineLR', **settings), default_args=dict(optimizer=optimizer)
    )
    return optimizer, scheduler


def rates(optimizer, scheduler, epochs):
    found = []
    for _ in range(epochs):
        found.append([group['lr'] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ('warmup', 'epochs', 'start', 'end'), [(5, 300, 1e-3, 0.01), (0, 7, 0.5, 0.0), (3, 4, 0.0, 1.0)]
)
def test_rates_are_those_of_timm(warmup, epochs, start, end):
    timm = pytest.importorskip('timm.scheduler')
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.2)
    theirs = timm.CosineLRScheduler(
        optimizer,
        t_initial=epochs,
        lr_min=0.2 * end,
        warmup_t=warmup,
        warmup_lr_init=0.2 * start,
    )
    expected = []
    for epoch in range(epochs + 5):
        theirs.step(epoch)
        expected.append(optimizer.param_groups[0]['lr'])
    settings = dict(warmup_epochs=warmup, cosine_epochs=epochs)
    ours = schedule(0.2, start_factor=start, eta_min_ratio=end, **settings)
    assert [rate for (rate,) in rates(*ours, epochs + 5)] == pytest.approx(expected, rel=1e-12)


def test_groups_keep_their_proportions():
    for one, half in rates(*schedule(groups=2, warmup_epochs=2, cosine_epochs=6), 8):
        assert half == pytest.approx(one / 2)


def test_it_can_be_resumed():
    settings = dict(warmup_epochs=2, cosine_epochs=6)
    whole = rates(*schedule(**settings), 8)
    optimizer, scheduler = schedule(**settings)
    rates(optimizer, scheduler, 3)
    saved = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = schedule(**settings)
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    assert rates(optimizer, scheduler, 5) == whole[3:]


def test_a_warmup_longer_than_the_cosine_is_refused():
    with pytest.raises(ValueError, match='less than cosine_epochs, got 5 and 5'):
        schedule(warmup_epochs=5, cosine_epochs=5)


@pytest.mark.slow
def test_the_better_of_raw_and_averaged_weights_counts(toy, tmp_path):
    hooks = [dict(type='mmffnet.RawAndEMAHook', momentum=0.1, update_buffers=True)]
    cfg = toy.toy_config(tmp_path, custom_hooks=hooks)
    child = toy.Child(tmp_path / 'log', cfg)
    assert child.wait() == 0, child.text
    (path,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    scores = {line['step']: (line['mean'], line['mean_raw']) for line in lines if 'mean' in line}
    assert scores.keys() == {2, 4} and all(mean != raw for mean, raw in scores.values())
    best = max(scores, key=lambda epoch: max(scores[epoch]))
    checkpoint = read_checkpoint(tmp_path / f'best_mean_epoch_{best}.pth')
    assert checkpoint['message_hub']['runtime_info']['best_score'] == max(scores[best])
    # the raw weights go on being trained, and both are saved
    averaged, raw = checkpoint['state_dict'], checkpoint['ema_state_dict']
    assert not torch.equal(averaged['head.1.weight'], raw['module.head.1.weight'])


@pytest.mark.parametrize(
    ('kind', 'sign', 'winner'),
    [('EMAHook', 1, 'mean'), ('RawAndEMAHook', 1, 'mean'), ('RawAndEMAHook', -1, 'mean_raw')],
)
@pytest.mark.slow
def test_best_checkpoint_scores_what_it_was_chosen_for(toy, tmp_path, kind, sign, winner):
    """Its ``state_dict`` holds the weights that reached the score, raw or averaged."""
    settings = dict(
        custom_hooks=[dict(type=kind, momentum=0.1, update_buffers=True)],
        val_evaluator=dict(type='MeanScore', sign=sign),
        test_evaluator=dict(type='MeanScore', sign=sign),
    )
    cfg = toy.toy_config(tmp_path, **settings, **{'train_cfg.val_interval': 1})
    toy.train(cfg)
    (path,) = tmp_path.glob('best_*.pth')
    checkpoint = read_checkpoint(path)
    best = checkpoint['message_hub']['runtime_info']['best_score']
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert best in [line[winner] for line in lines if winner in line]

    cfg = toy.toy_config(tmp_path / 'test', **settings)
    found = build_runner(test_config(cfg, str(path))).test()
    assert found['mean'] == pytest.approx(best, rel=1e-6)

    # resumed, the raw weights are trained and the averages go on, in any case
    resumed = {}
    keep = toy.At(
        'before_train', checkpoint['meta']['iter'], lambda runner: resumed.update(copied(runner))
    )
    toy.train(toy.toy_config(tmp_path / 'resumed', **settings), str(path), keep)
    (log,) = (tmp_path / 'resumed').glob('*/*.log')
    assert 'holds no optimizer and no param_schedulers' in log.read_text()
    raw, average = checkpoint['ema_state_dict'], checkpoint['state_dict']
    if winner == 'mean_raw':
        raw, average = average, raw
    expected = [
        {name.removeprefix('module.'): value for name, value in state.items() if name != 'steps'}
        for state in (raw, average)
    ]
    assert toy.differences(expected[0], resumed['raw']) == []
    assert toy.differences(expected[1], resumed['average']) == []


def copied(runner):
    average = next(hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model'))
    states = dict(raw=runner.model.state_dict(), average=average.module.state_dict())
    return copy.deepcopy(states)


RANK = """
import sys
import torch
from torch import nn
from mmengine.hooks import EMAHook
from mmffnet.engine import AverageBuffersHook

store = torch.distributed.TCPStore('127.0.0.1', port, 2, is_master=rank == 0)
torch.distributed.init_process_group('gloo', store=store, rank=rank, world_size=2)
class Runner:
    model = nn.BatchNorm1d(2)
    hooks = [EMAHook(momentum=0.5, update_buffers=True), AverageBuffersHook()]
Runner.hooks[0].before_run(Runner)
Runner.model.running_mean += 1 + rank
Runner.model.num_batches_tracked += 6
averaged = Runner.hooks[0].ema_model.module
averaged.running_mean += 10 * (1 + rank)
for hook in Runner.hooks:
    hook.after_train_epoch(Runner)
found = [*Runner.model.running_mean.tolist(), *averaged.running_mean.tolist()]
print(found, int(Runner.model.num_batches_tracked))
"""


@pytest.mark.dist
def test_two_processes_share_the_average_of_their_statistics(toy, tmp_path):
    script = tmp_path / 'rank.py'
    script.write_text(RANK)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    children = [
        toy.Child(
            tmp_path / f'{rank}.log',
            str(script),
            dict(rank=rank, port=port),
            function=runpy.run_path,
        )
        for rank in range(2)
    ]
    for child in children:
        assert child.wait() == 0, child.text
        assert '[1.5, 1.5, 15.0, 15.0] 6' in child.text
