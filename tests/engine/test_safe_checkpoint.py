"""Trainings that are killed, stopped, out of disk space, and resumed."""

import contextlib
import os
import runpy
import shutil
import signal

import pytest
import torch
from mmengine.logging import MMLogger

from mmffnet.engine import SafeCheckpointHook, find_checkpoint


@pytest.mark.parametrize(
    ('by_epoch', 'workers', 'point', 'iteration', 'what'),
    [
        (True, 0, 'before_train_iter', 5, ['kill']),
        (True, 2, 'before_train_iter', 0, ['kill_while', 'writing', 3]),  # epoch_2.pth
        (True, 0, 'before_train_iter', 0, ['kill_while', 'renamed', 3]),  # before last_checkpoint
        (False, 0, 'before_train_iter', 0, ['kill_while', 'writing', 5]),  # the second best
        (False, 2, 'before_val_iter', 8, ['kill']),
        (False, 2, 'after_train_iter', 10, ['kill']),
    ],
    ids=['step', 'writing', 'renamed', 'writing-best', 'validation', 'later-step'],
)
@pytest.mark.slow
def test_killed_and_resumed_ends_the_same(
    toy, undisturbed, tmp_path, by_epoch, workers, point, iteration, what
):
    log, (action, *details) = tmp_path / 'log', what
    hook = toy.At(point, iteration, getattr(toy, action), *details)
    killed = toy.Child(log, toy.toy_config(tmp_path, by_epoch, workers), None, hook)
    assert killed.wait() == -signal.SIGKILL, killed.text
    assert find_checkpoint(tmp_path) is not None
    resumed = toy.Child(log, toy.toy_config(tmp_path, by_epoch, workers), 'auto')
    assert resumed.wait() == 0, resumed.text
    expected = toy.end_state(undisturbed[by_epoch])
    assert len(expected) > 400
    assert toy.differences(expected, toy.end_state(tmp_path)) == []
    assert list(tmp_path.glob('.*.tmp')) == []


@pytest.mark.slow
def test_killed_with_a_flexible_runner(toy, tmp_path):
    """It saves after a validation, too, for a new best score: with the wrong epoch, if let be."""

    def train(name, *hooks):
        cfg = toy.toy_config(tmp_path / name, workers=2, runner_type='FlexibleRunner')
        cfg.strategy = dict(type='SingleDeviceStrategy')
        cfg.env_cfg = dict()
        cfg.custom_hooks = []  # this runner knows no moving averages when it resumes
        child = toy.Child(tmp_path / 'log', cfg, 'auto', *hooks)
        return child.wait(), child.text

    status, text = train('whole')
    assert status == 0, text
    status, text = train('killed', toy.At('before_train_iter', 7, toy.kill))
    assert status == -signal.SIGKILL, text
    status, text = train('killed')
    assert status == 0, text
    ends = [toy.end_state(tmp_path / name) for name in ('whole', 'killed')]
    assert toy.differences(*ends) == []


@pytest.mark.parametrize(
    ('by_epoch', 'number'), [(True, signal.SIGTERM), (False, signal.SIGINT)], ids=['term', 'int']
)
@pytest.mark.slow
def test_stopped_by_a_signal(toy, undisturbed, tmp_path, by_epoch, number):
    log, here = tmp_path / 'log', tmp_path / 'here'
    hook = toy.At('before_train_iter', 4, toy.await_signal, number, here)  # amid the second epoch
    child = toy.Child(log, toy.toy_config(tmp_path, by_epoch, 2), None, hook)
    child.wait_for(here)
    child.signal(number)
    assert child.wait() == 128 + number, child.text
    assert f'{number.name}: stopped after iteration 5, which' in child.text
    newest = find_checkpoint(tmp_path)
    assert newest == str(tmp_path / ('stopped_iter_5.pth' if by_epoch else 'iter_5.pth'))

    resumed = toy.Child(log, toy.toy_config(tmp_path, by_epoch, 2), 'auto')
    assert resumed.wait() == 0, resumed.text
    ended = toy.end_state(tmp_path)
    assert toy.differences(toy.end_state(undisturbed[by_epoch]), ended) == []
    assert list(tmp_path.glob('stopped*')) == []


def test_second_interrupt_is_immediate():
    hook = SafeCheckpointHook()
    hook._ask_to_stop(signal.SIGINT, None)
    hook._ask_to_stop(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        hook._ask_to_stop(signal.SIGINT, None)


@pytest.fixture
def handlers():
    """Handlers to be found again: Ctrl-C raises, SIGTERM does what it does by default."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    for number, handler in before.items():
        signal.signal(number, handler)


def raise_error(runner):
    raise ArithmeticError


@pytest.mark.parametrize(
    ('action', 'arguments', 'error'),
    [
        (raise_error, [], ArithmeticError),
        ('send', [signal.SIGINT], SystemExit),
        (None, [], None),
    ],
    ids=['error', 'stopped', 'finished'],
)
@pytest.mark.slow
def test_handlers_of_signals_are_put_back(toy, tmp_path, handlers, action, arguments, error):
    found = []
    hooks = [toy.At('before_train_iter', 3, lambda runner: found.append(current()))]
    if action:
        action = getattr(toy, action) if isinstance(action, str) else action
        hooks.append(toy.At('before_train_iter', 4, action, *arguments))

    def current():
        return {number: signal.getsignal(number) for number in handlers}

    with pytest.raises(error) if error else contextlib.nullcontext():
        toy.train(toy.toy_config(tmp_path), None, *hooks)
    assert current() == handlers
    assert all(handler not in handlers.values() for handler in found[0].values())


@pytest.mark.slow
def test_ignored_signals_stay_ignored(toy, tmp_path, handlers):
    """As in a background job of a script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hook = toy.At('before_train_iter', 4, toy.send, signal.SIGINT)
    toy.train(toy.toy_config(tmp_path), None, hook)
    assert find_checkpoint(tmp_path) == str(tmp_path / 'epoch_4.pth')
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.slow
def test_no_space_left(toy, tmp_path):
    hook = toy.At('before_train_epoch', 3, toy.limit_file_size, 100_000)
    cfg = toy.toy_config(tmp_path, **{'default_hooks.checkpoint.max_keep_ckpts': 1})
    child = toy.Child(tmp_path / 'log', cfg, None, hook)
    assert child.wait() == 1
    assert f'cannot write {tmp_path}/epoch_2.pth (' in child.text
    assert 'File too large; the checkpoints before it are as they were' in child.text
    assert find_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['epoch_1.pth']
    assert list(tmp_path.glob('.*.tmp')) == []


@pytest.mark.slow
def test_damaged_checkpoint_in_any_config(toy, undisturbed, tmp_path):
    """By the hooks' names, with mmengine's own way to resume."""
    shutil.copytree(undisturbed[True], tmp_path, dirs_exist_ok=True)
    damaged = tmp_path / 'epoch_4.pth'
    os.truncate(damaged, damaged.stat().st_size // 2)
    (tmp_path / 'last_checkpoint').write_text(str(damaged))
    cfg = toy.toy_config(tmp_path, **{'default_hooks.checkpoint.type': 'SafeCheckpointHook'})
    cfg.custom_hooks += [dict(type='mmffnet.ExactResumeHook')]
    cfg.resume = True
    child = toy.Child(tmp_path / 'log', cfg, 'plain')
    assert child.wait() == 0, child.text
    assert f'{damaged} is incomplete or damaged' in child.text
    expected = toy.end_state(undisturbed[True])
    assert toy.differences(expected, toy.end_state(tmp_path)) == []


@pytest.fixture
def work_dir(tmp_path):
    """Three checkpoints, the newest of them with the lowest number."""
    for age, number in enumerate((3, 2, 1)):
        path = tmp_path / f'epoch_{number}.pth'
        torch.save(dict(weight=torch.rand(1000), number=number), path)
        os.utime(path, (age, age))
    torch.save({}, tmp_path / 'best_score_epoch_3.pth')
    torch.save({}, tmp_path / 'exported.pth')
    return tmp_path


def test_find_checkpoint(work_dir):
    assert find_checkpoint(work_dir / 'nothing_here') is None
    assert find_checkpoint(work_dir) == str(work_dir / 'epoch_1.pth')
    pointer = work_dir / 'last_checkpoint'
    for text in (f'{work_dir}/epoch_2.pth', f'{work_dir}/epoch_2.pth\n', '/moved/epoch_2.pth'):
        pointer.write_text(text)
        assert find_checkpoint(work_dir) == str(work_dir / 'epoch_2.pth')
    for text in ('', '\0\0\0', '/gone/epoch_9.pth'):
        pointer.write_text(text)
        assert find_checkpoint(work_dir) == str(work_dir / 'epoch_1.pth')
    pointer.write_text('s3://bucket/epoch_4.pth')
    assert find_checkpoint(work_dir) == 's3://bucket/epoch_4.pth'


def test_find_checkpoint_passes_over_damage(work_dir):
    first, second, third = (work_dir / f'epoch_{number}.pth' for number in (1, 2, 3))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1  # amid the numbers: torch.load does not notice
    first.write_bytes(content)
    assert isinstance(torch.load(first), dict)
    assert find_checkpoint(work_dir) == str(second)
    second.write_bytes(second.read_bytes()[:-10])
    assert find_checkpoint(work_dir) == str(third)
    third.write_bytes(b'')
    with pytest.raises(RuntimeError, match='is whole: start without'):
        find_checkpoint(work_dir)


def test_find_checkpoint_says_once_what_is_damaged(work_dir, monkeypatch, caplog):
    monkeypatch.chdir(work_dir.parent)
    (work_dir / 'epoch_1.pth').write_bytes(b'')
    (work_dir / 'last_checkpoint').write_text(f'{work_dir}/epoch_1.pth')
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    assert find_checkpoint(f'../{work_dir.parent.name}/{work_dir.name}') == str(
        work_dir / 'epoch_2.pth'
    )
    logger.removeHandler(caplog.handler)
    assert [record.message.rpartition(': ')[2] for record in caplog.records] == [
        'it is passed over'
    ]


RANK = """
import errno
import os
import zipfile
from pathlib import Path
import torch
import toy_training as toy

os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
torch.distributed.init_process_group('gloo', 'file://' + store, rank=rank, world_size=2)
read, test, stat = [], zipfile.ZipFile.testzip, Path.stat
zipfile.ZipFile.testzip = lambda archive: (read.append(archive), test(archive))[1]
size = {'train_dataloader.batch_size': 3, 'default_hooks.checkpoint.save_best': None}

def train(epochs):
    toy.train(
        toy.toy_config(folder, launcher='pytorch', **size, **{'train_cfg.max_epochs': epochs}),
        'auto', toy.At('before_train', 2 * epochs - 2, lambda runner: print('starts', runner.iter)),
    )

train(1)
train(2)
print('read', len(read))

def stat_elsewhere(path, **options):
    if path.suffix == '.pth':
        raise FileNotFoundError(errno.ENOENT, 'not here', path)
    return stat(path, **options)

def open_elsewhere(archive, path):
    raise FileNotFoundError(errno.ENOENT, 'not here', path)

if rank:  # a disk of its own
    Path.stat, zipfile.ZipFile.__init__ = stat_elsewhere, open_elsewhere
try:
    train(3)
except ValueError as error:
    print('refused', error)
"""


@pytest.mark.dist
def test_main_process_alone_looks_for_damage(toy, tmp_path):
    script, folder = tmp_path / 'rank.py', tmp_path / 'work'
    script.write_text(RANK)
    known = dict(store=str(tmp_path / 'store'), folder=folder)
    children = [
        toy.Child(tmp_path / f'{i}.log', str(script), dict(known, rank=i), function=runpy.run_path)
        for i in range(2)
    ]
    for child, read in zip(children, (1, 0), strict=True):
        assert child.wait() == 0, child.text
        assert 'starts 0' in child.text and 'starts 2' in child.text
        assert f'read {read}' in child.text
        assert f'refused {folder / "epoch_2.pth"}, from which' in child.text
        assert 'does not exist in another process' in child.text


def test_directories_of_other_strategies_are_left_to_them(work_dir):
    (work_dir / 'iter_4').mkdir()
    (work_dir / 'last_checkpoint').write_text(f'{work_dir}/iter_4')
    assert find_checkpoint(work_dir) == str(work_dir / 'iter_4')
