"""A training in which everything is random, small enough to be repeated many times."""

import gc
import multiprocessing
import os
import random
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401 - a runner asks for these four later
import numpy as np
import quick_configs  # noqa: F401
import torch
import torch._dynamo
import torchvision  # noqa: F401
import yapf.yapflib.yapf_api  # noqa: F401
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, METRICS, MODELS, OPTIM_WRAPPERS
from torch import Tensor, nn

from mmffnet.checkpoint import read_checkpoint
from mmffnet.engine import find_checkpoint
from mmffnet.engine.runner import build_runner, train_config

torch.set_num_threads(1)
TOOLS = Path(__file__).parents[1] / 'tools'
ARCH = dict(depths=(1, 1, 1, 1), channels=(8, 16, 32, 64), stem_channels=8)


@DATASETS.register_module()
class RandomPictures(BaseDataset):
    """Ten pictures of noise, augmented with all three generators of random numbers."""

    def load_data_list(self) -> list[dict]:
        return [dict(label=number % 4, img_path=f'{number}.png') for number in range(10)]

    def prepare_data(self, idx: int) -> dict:
        info = self.get_data_info(idx)
        picture = torch.linspace(-1, 1, 3 * 32 * 32).reshape(3, 32, 32) * (idx + 1)
        if not self.test_mode:
            picture = picture * random.uniform(0.5, 1.5) + np.random.normal()
            picture = picture + 0.1 * torch.randn(3, 1, 1)
        return dict(inputs=picture.float(), labels=info['label'])


@MODELS.register_module()
class ToyClassifier(BaseModel):
    """A backbone with drop path, and a linear head behind dropout."""

    def __init__(self, backbone: dict, dropout: float = 0.2) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(backbone['arch']['channels'][-1], 4)
        )

    def forward(self, inputs: Any, labels: Any, mode: str = 'tensor') -> Any:
        scores = self.head(self.backbone(torch.stack(list(inputs)))[-1].mean((2, 3)))
        if mode == 'loss':
            target = torch.as_tensor(labels, device=scores.device)
            return dict(loss_cls=nn.functional.cross_entropy(scores, target))
        return list(scores)


@METRICS.register_module()
class MeanScore(BaseMetric):
    def __init__(self, sign: int = 1) -> None:
        super().__init__()
        self.sign = sign

    def process(self, data_batch: Any, data_samples: list[Tensor]) -> None:
        self.results += [float(scores.sum()) for scores in data_samples]

    def compute_metrics(self, results: list) -> dict:
        return dict(mean=self.sign * float(np.mean(results)))


@OPTIM_WRAPPERS.register_module()
class ScaledOptimWrapper(OptimWrapper):
    """A gradient scaler on the CPU, where mmengine's AmpOptimWrapper refuses to work."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu')

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()


def toy_config(work_dir: Path, by_epoch: bool = True, workers: int = 0, **changes: Any) -> Config:
    """Twelve iterations, as four epochs of three or in one go, with validation and EMA."""

    def loader(train: bool) -> dict:
        kind = 'DefaultSampler' if by_epoch or not train else 'InfiniteSampler'
        return dict(
            batch_size=4,
            num_workers=workers,
            persistent_workers=workers > 0,
            dataset=dict(type='RandomPictures', test_mode=not train),
            sampler=dict(type=kind, shuffle=train),
        )

    length = dict(max_epochs=4, val_interval=2) if by_epoch else dict(max_iters=12, val_interval=4)
    cfg = Config(
        dict(
            custom_imports=dict(imports=['mmffnet', 'toy_training']),
            work_dir=str(work_dir),
            launcher='none',
            experiment_name=Path(work_dir).name,
            log_level='WARNING',
            model=dict(
                type='ToyClassifier',
                backbone=dict(type='FFNet', arch=ARCH, out_indices=(3,), drop_path_rate=0.3),
            ),
            train_dataloader=loader(True),
            val_dataloader=loader(False),
            test_dataloader=loader(False),
            val_evaluator=dict(type='MeanScore'),
            test_evaluator=dict(type='MeanScore'),
            val_cfg=dict(),
            test_cfg=dict(),
            train_cfg=dict(by_epoch=by_epoch, **length),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01)),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5),
                dict(type='MultiStepLR', milestones=[2 if by_epoch else 8], by_epoch=by_epoch),
            ],
            default_hooks=dict(
                checkpoint=dict(
                    type='CheckpointHook',
                    by_epoch=by_epoch,
                    interval=1 if by_epoch else 5,
                    max_keep_ckpts=2,
                    save_best='mean',
                    rule='greater',
                )
            ),
            custom_hooks=[dict(type='EMAHook', momentum=0.1)],
            randomness=dict(seed=7),
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


def train(cfg: Config, resume: str | None = None, *hooks: Hook) -> None:
    """What ``tools/train.py`` does, with further hooks; resume='plain' is without its changes."""
    if resume != 'plain':
        train_config(cfg, resume)
    runner = build_runner(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()


def run_tool(name: str, folder: Path, *arguments: str) -> None:
    """Runs one of the tools in a folder."""
    os.chdir(folder)
    sys.argv = [name, *arguments]
    runpy.run_path(str(TOOLS / name), run_name='__main__')


class At(Hook):
    """Does something at one point of a training, or whenever a file is written.

    Args:
        point (str): The method of hooks that does it.
        iteration (int): The number of iterations done at that time.
        action (Callable): What to do, with the arguments that follow.
    """

    def __init__(self, point: str, iteration: int, action: Callable, *args: Any) -> None:
        self.point = point
        self.iteration = iteration
        self.action = action
        self.args = args

    def before_run(self, runner: Any) -> None:
        setattr(self, self.point, self._call)

    def _call(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter == self.iteration:
            self.action(runner, *self.args)


def kill(runner: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_while(runner: Any, action: str, count: int) -> None:
    """Kills this process when a file is 'writing' or has been 'renamed' for the n-th time."""
    owner: Any = os if action == 'writing' else Path
    name = 'fsync' if action == 'writing' else 'replace'
    original, calls = getattr(owner, name), []

    def act(*args: Any) -> Any:
        calls.append(args)
        if action == 'writing' and len(calls) == count:
            kill(runner)
        result = original(*args)
        if len(calls) == count:
            kill(runner)
        return result

    setattr(owner, name, act)


def await_signal(runner: Any, number: int, here: Path) -> None:
    """Shows that it is here, and goes on when the signal has come."""
    hook = signal.getsignal(number).__self__  # type: ignore[union-attr]
    here.touch()
    while not hook._signal:
        time.sleep(0.01)


def send(runner: Any, number: int) -> None:
    os.kill(os.getpid(), number)


def limit_file_size(runner: Any, size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def spoil_weight(runner: Any) -> None:
    runner.model.head[1].bias.data[0] = float('nan')


def overflow(runner: Any) -> None:
    """Makes the maps of the next forward pass infinite, as float16 might."""
    model = getattr(runner.model, 'module', runner.model)
    handle = model.backbone.stem.register_forward_hook(
        lambda module, inputs, maps: (handle.remove(), maps * float('inf'))[1]
    )


def overflow_gradient(runner: Any, once: bool = True) -> None:
    """Makes a gradient infinite that comes from a loss that is a number."""

    def spoil(gradient: Tensor) -> Tensor:
        if once:
            handle.remove()
        return gradient * float('inf')

    handle = runner.model.head[1].bias.register_hook(spoil)


def spoil(runner: Any, what: str) -> None:
    """Makes a number of the 'buffer', 'average' or 'optimizer' infinite."""
    average = next(hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model'))
    tensors = dict(
        buffer=next(b for b in runner.model.buffers() if b.is_floating_point() and b.numel() > 3),
        average=next(average.module.parameters()),
        optimizer=next(iter(runner.optim_wrapper.optimizer.state.values()))['exp_avg'],
    )
    tensors[what].data.flatten()[0] = float('inf')


class Child:
    """A training in a process of its own, forked from one that has imported everything.

    The test's own process must not be forked: torch's threads are in it.

    Args:
        log (Path): Where to write what it prints.
        *args: The arguments of the function.
        function (Callable): What it does. Defaults to :func:`train`.
    """

    def __init__(self, log: Path, *args: Any, function: Callable = train) -> None:
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload([__name__])
        self.log = log
        self.process = context.Process(target=_run, args=(function, log, *args))
        self.process.start()

    def signal(self, number: int) -> None:
        """Reaches the data workers as well, as the signals of clusters and terminals do."""
        assert self.process.pid
        os.killpg(self.process.pid, number)

    def wait(self) -> int | None:
        """The exit status, negative for a signal."""
        self.process.join()
        return self.process.exitcode

    def wait_for(self, path: Path) -> None:
        while not path.exists():
            assert self.process.exitcode is None, self.text
            time.sleep(0.01)

    @property
    def text(self) -> str:
        return self.log.read_text()


def _run(function: Callable, log: Path, *args: Any) -> None:
    sys.stdout = sys.stderr = log.open('a', buffering=1)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background
    gc.freeze()  # mmengine collects garbage, and there is much to look through here
    function(*args)


def run_code(code: str, known: dict[str, Any] | None = None) -> None:
    """Runs code that knows some names. mmffnet has been imported, mmdet and its like have not."""
    assert not {'mmdet', 'mmseg', 'mmpretrain', 'timm'} & sys.modules.keys()
    exec(code, dict(known or {}, __name__='__main__'))  # noqa: S102


def end_state(work_dir: Path) -> dict[str, Any]:
    """All that was trained, from the newest checkpoint: weights, averages, optimizer, schedules."""
    checkpoint = read_checkpoint(find_checkpoint(work_dir))
    names = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    return dict(_flatten({name: checkpoint.get(name) for name in names}, ''))


def _flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in items:
            yield from _flatten(child, f'{name}/{key}')
    else:
        yield name, value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of whatever is not the same to the bit."""
    names = sorted(one.keys() ^ other.keys())
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
        names += [] if same else [name]
    return names
