"""See in a minute whether mmffnet works with the versions that are installed.

Runs a few steps that do not depend on each other and prints 'ok' or the reason of the failure for
each. Whatever else the packages print goes to stderr. Exit status 1 if a step failed.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DETECTION = 'detection/maskrcnn_nano_shapes.py'
SEGMENTATION = 'segmentation/semfpn_nano_shapes.py'
CLASSIFICATION = 'classification/ffnet_nano_shapes.py'
PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'numpy')
STEPS: dict[str, Callable[[], None]] = {}


def step(function: Callable[[], None]) -> Callable[[], None]:
    STEPS[function.__name__.replace('_', ' ')] = function
    return function


def check(condition: object, problem: str) -> None:
    if not condition:
        raise RuntimeError(problem)


def train(config: str, steps: int, resume: str | None = None):
    """Do what tools/train.py does, with few pictures, below the current folder."""
    from mmffnet.engine import runner

    options = [f'train_cfg.max_iters={steps}', 'train_cfg.val_interval=1']
    options += ['train_dataloader.batch_size=2', 'default_hooks.checkpoint.interval=1']
    for part in ('train', 'val', 'test'):
        shapes = f'{part}_dataloader.dataset.shapes'
        options += [f'{shapes}.train=2', f'{shapes}.val=2']
    cfg = runner.read_config(config, options, 'work')
    cfg.experiment_name = f'{Path.cwd().name} {steps}'
    cfg.visualizer.name = cfg.experiment_name  # mmengine would take an earlier one of that name
    built = runner.build_runner(runner.train_config(cfg, resume))
    runner.run(built, 'train')
    return built


def check_losses(built, number: int) -> None:
    losses = built.message_hub.get_scalar('train/loss').data[0]
    check(len(losses) == number, f'{len(losses)} losses were recorded, not {number}')
    check(all(0 < loss < 1e4 for loss in losses), f'the losses are {losses}')


@step
def imports() -> None:
    import mmcv.ops  # noqa: F401
    import mmdet  # noqa: F401
    import mmpretrain  # noqa: F401
    import mmseg  # noqa: F401

    import mmffnet  # noqa: F401


@step
def mmffnet_env() -> None:
    from mmffnet_cli.environment import environment

    problems = environment()['problems']
    check(not problems, 'it reports: ' + ' '.join(problems))


@step
def every_config_builds() -> None:
    import torch
    from mmengine.registry import MODELS, DefaultScope

    from mmffnet.engine.runner import read_config
    from mmffnet_cli.paths import config_names

    for name in config_names():
        try:
            cfg = read_config(name)
            model = cfg.model
            if 'data_preprocessor' in cfg:
                model.setdefault('data_preprocessor', cfg.data_preprocessor)
            with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
                MODELS.build(model)
        except Exception as error:
            raise RuntimeError(f'{name}: {type(error).__name__}: {error}') from error


@step
def detector_trains() -> None:
    check_losses(train(DETECTION, 1), 1)


@step
def segmentor_trains() -> None:
    check_losses(train(SEGMENTATION, 1), 1)


@step
def classifier_trains() -> None:
    check_losses(train(CLASSIFICATION, 1), 1)


@step
def training_resumes() -> None:
    first = train(DETECTION, 1)
    second = train(DETECTION, 2, resume='auto')
    check_losses(second, 2)
    losses = [run.message_hub.get_scalar('train/loss').data[0][0] for run in (first, second)]
    check(losses[0] == losses[1], f'the first loss became another: {losses}')


@step
def official_file_loads() -> None:
    import numpy as np
    import torch
    from mmengine.registry import MODELS

    import mmffnet  # noqa: F401
    from mmffnet.checkpoint import convert_names

    # The layout of timm's training script, which wrote the official files.
    network = dict(type='FFNet', arch='nano', out_indices=3, out_norm_cfg=dict(type='BN'))
    source = MODELS.build(network)
    torch.save(
        {
            'epoch': 299,
            'arch': 'ffnet_nano',
            'state_dict': convert_names(source.state_dict(), to='official'),
            'args': argparse.Namespace(lr=1e-3, crop_pct=None, mean=[0.485, 0.456, 0.406]),
            'metric': np.float64(81.3),
            'history': np.arange(3.0),
        },
        'official.pth.tar',
    )
    init_cfg = dict(type='Pretrained', checkpoint='official.pth.tar')
    loaded = MODELS.build(dict(network, init_cfg=init_cfg))
    loaded.init_weights()
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = [model.eval()(picture)[0] for model in (source, loaded)]
    check(torch.equal(*maps), 'the loaded network gives another output')


def run(function: Callable[[], None]) -> str:
    """Run a step in a folder of its own, and return 'ok' or why it failed."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        os.chdir(folder)
        try:
            function()
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            text = ' '.join(str(error).split())
            for place in (folder, ROOT, sysconfig.get_path('purelib')):
                text = text.replace(f'{place}/', '')
            return f'{type(error).__name__}: {text}'
        finally:
            os.chdir(before)
    return 'ok'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the results here')
    parser.add_argument('steps', nargs='*', help=f'some of: {", ".join(STEPS)} (default: all)')
    args = parser.parse_args()
    unknown = set(args.steps) - set(STEPS)
    if unknown:
        parser.error(f'no step is called {", ".join(unknown)}: there are {", ".join(STEPS)}')
    results = {}
    for name in args.steps or STEPS:
        results[name] = run(STEPS[name])
        print(f'{name}: {results[name]}', flush=True)
    if args.json:
        packages = {}
        with contextlib.suppress(Exception):  # the step 'mmffnet env' says why
            from mmffnet_cli.environment import environment

            packages = environment()['packages']
        report = dict(
            date=str(datetime.date.today()),
            python=platform.python_version(),
            packages={name: packages.get(name) for name in PACKAGES},
            steps=results,
        )
        args.json.write_text(json.dumps(report, indent=1) + '\n')
    sys.exit(any(text != 'ok' for text in results.values()))


if __name__ == '__main__':
    main()
