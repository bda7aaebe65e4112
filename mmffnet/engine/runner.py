"""From a command line to a runner: what ``tools/train.py`` and ``tools/test.py`` do.

One pair of tools serves mmdet, mmseg and mmpretrain configs; where the three differ, the config's
``default_scope`` decides.
"""

import argparse
import gc
import logging
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import (
    HOOKS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    RUNNERS,
)
from mmengine.runner import Runner
from torch import nn

from mmffnet.config_types import find_scope, find_type, packages_by_path, type_name
from mmffnet.errors import DamagedCheckpointError, UsageError, describe_error
from mmffnet_cli.paths import config_path

from ..checkpoint.files import check_writable
from ..datasets.checks import BadSampleError, check_samples, find_missing_data, without_annotations
from ..datasets.labels import check_labels
from ..models import MixerBackbone
from ..ops.depthwise_cpu import warn_of_bfloat16
from ..registry import MODELS
from .hooks import ChannelsLastHook
from .resume import find_checkpoint, settle_resume

_TTA_MODELS = {
    'mmdet': dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    'mmseg': dict(type='mmseg.SegTTAModel'),
    'mmpretrain': dict(type='mmpretrain.AverageClsScoreTTA'),
}
#: What Python and mmengine's registries say of a wrong name in a config
_MISTYPED = r'unexpected keyword argument|missing \d+ required|is not in the .* registry'
#: Where launchers say which process this is
_RANKS = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}
_STARTERS = {
    'pytorch': 'torchrun: call tools/dist_train.sh or dist_test.sh',
    'slurm': 'srun: call tools/slurm_train.sh or slurm_test.sh',
    'mpi': 'mpirun',
}
#: The methods of runners that build a part of the config or read a file
_STEPS = (
    '_init_model_weights',
    'load_or_resume',
    'build_dataloader',
    'build_train_loop',
    'build_val_loop',
    'build_test_loop',
    'build_evaluator',
    'build_optim_wrapper',
    'build_param_scheduler',
)
_PICKLED = ('.pkl', '.pickle')
_DUMP_METRICS = {'mmdet': 'mmdet.DumpDetResults', 'mmpretrain': 'DumpResults'}


def read_config(
    config: str,
    cfg_options: Sequence[str] = (),
    work_dir: str | None = None,
    launcher: str = 'none',
) -> Config:
    """Read a config, a file or the name of one that mmffnet ships, and apply the tools' options.

    Without a ``work_dir`` it is the config's own, or else ``work_dirs/<name of the config>``.

    Raises:
        UsageError: If the config cannot be found or read, or an option does not fit it.
    """
    if '://' in config:
        raise UsageError(
            f'{config} is an address, but a config is code: download it, look at it, give the file'
        )
    try:
        path = config if Path(config).is_file() else config_path(config)
    except FileNotFoundError as error:
        raise UsageError(f"there is no config file '{config}', and {error}") from error
    try:
        with packages_by_path(), warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'pkg_resources is deprecated')  # by mmengine, often
            cfg = Config.fromfile(path)
    except Exception as error:  # a config is code: anything can go wrong in it
        cause: BaseException = error
        # mmengine hides what was wrong with a custom import behind errors of its own
        while str(cause).startswith('Failed to import') and cause.__context__ is not None:
            cause = cause.__context__
        raise UsageError(f'cannot read the config {path}: {describe_error(cause)}') from error
    for option in cfg_options:
        try:
            cfg.merge_from_dict(_parse_option(option))
        except Exception as error:  # mmengine checks neither the syntax nor the place of a setting
            raise UsageError(
                f"cannot apply --cfg-options '{option}': it must be key=value and fit the config "
                f'({describe_error(error)})'
            ) from error
    scope = find_scope(cfg)
    if scope is not None:  # lazy configs have none, and the tools go by it
        cfg.default_scope = scope
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(path).stem))
    return cfg


def train_config(
    cfg: Config,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    compile: bool | str = False,
    channels_last: bool | None = False,
    cuda_graphs: bool = False,
) -> Config:
    """Apply the options of ``tools/train.py`` to a config, in place.

    The config also gets the hooks that make training robust: SafeCheckpointHook in the place of
    mmengine's CheckpointHook, ExactResumeHook, FiniteLossHook and WholeCheckpointHook. ``resume``
    is 'auto' for the newest whole checkpoint in the work directory, ``channels_last`` None for
    where it was measured to be faster.

    Raises:
        UsageError: If data are missing, or an option does not fit the config.
    """
    if missing := find_missing_data(cfg, 'train', 'val'):
        raise UsageError(missing)
    if amp:
        if get_device() in ('cpu', 'mps'):
            warn_of_bfloat16()
            raise UsageError('--amp needs a GPU: mmengine trains in full precision elsewhere')
        wrapper = cfg.get('optim_wrapper', {})
        kind = wrapper.get('type', 'OptimWrapper')
        found = find_type(kind, OPTIM_WRAPPERS, cfg.get('default_scope'))
        if found not in (OptimWrapper, AmpOptimWrapper):
            raise UsageError(f'--amp does not go with the optim_wrapper {type_name(kind)}')
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    if auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UsageError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
        cfg.auto_scale_lr.enable = True
    if resume is not None:
        _resume(cfg, resume)
    _add_training_hooks(cfg)
    kind = (cfg.get('optim_wrapper') or {}).get('type')
    half = find_type(kind, OPTIM_WRAPPERS, cfg.get('default_scope')) is AmpOptimWrapper
    _add_speed_hooks(cfg, compile, channels_last, half)
    if cuda_graphs:
        if compile in ('reduce-overhead', 'max-autotune'):
            raise UsageError(f'--cuda-graphs: --compile {compile} captures graphs by itself')
        _add_hook(cfg, 'CudaGraphHook')
    return cfg


def test_config(
    cfg: Config,
    checkpoint: str,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2.0,
    tta: bool = False,
    fuse: bool = False,
    compile: bool | str = False,
    channels_last: bool | None = False,
) -> Config:
    """Apply the options of ``tools/test.py`` to a config, in place.

    ``channels_last`` is None for where it was measured to be faster.

    Raises:
        UsageError: If data are missing, or an option does not fit the config.
    """
    cfg.resume, cfg.load_from = False, check_checkpoint(checkpoint)
    _add_hook(cfg, 'WholeCheckpointHook')
    if cfg.filename:
        # mmengine writes the config to the work directory: not over that of the training
        path = Path(cfg.filename)
        object.__setattr__(cfg, '_filename', str(path.with_name(f'{path.stem}_test.py')))
    if tta:
        use_tta(cfg)
    if show or show_dir:
        _show_predictions(cfg, show, show_dir, wait_time)
    if out:
        _keep_predictions(cfg, out)
    if missing := find_missing_data(cfg, 'test'):  # after the options that can do without labels
        raise UsageError(missing)
    if fuse:
        # A checkpoint's weights are the averaged ones, and a fused model has nothing to swap with.
        hooks = cfg.get('custom_hooks') or []
        cfg.custom_hooks = [hook for hook in hooks if not _is_hook(cfg, hook, EMAHook)]
        _add_hook(cfg, 'FuseHook')
    half = bool((cfg.get('test_cfg') or {}).get('fp16'))
    _add_speed_hooks(cfg, compile, channels_last, half)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for.

    Raises:
        UsageError: If a part of the config is refused by what it builds.
    """
    _demand(cfg, 'model')
    launcher = cfg.get('launcher', 'none')
    rank = _RANKS.get(launcher)
    if rank and rank not in os.environ and not torch.distributed.is_initialized():
        raise UsageError(f'--launcher {launcher} is for processes of {_STARTERS[launcher]}')
    if launcher != 'none' and get_device() == 'cpu':
        _distribute_on_cpu(cfg)
    kind = _ChannelsLast if keeps_channels_last(cfg) else Runner
    build = RUNNERS.build if 'runner_type' in cfg else kind.from_cfg
    with refusing():
        runner = build(cfg)
        settle_resume(runner)
    check_samples(runner)
    check_labels(runner)
    return runner


class _ChannelsLast(Runner):
    """Sets the memory format before DistributedDataParallel makes its gradients after it."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return super().wrap_model(model_wrapper_cfg, model)


def run(runner: Runner, task: str) -> Any:
    """Train ('train') or test ('test'), and take leave of the other processes, if there are any.

    A thread of gloo that still holds tensors while Python ends makes it abort, after a training
    that went well. These threads end with their group, and the group with what wraps the model.
    After an error the group stays: its end could wait for processes that are not coming.

    Returns:
        What mmengine's runner returns: the trained model, or the metrics.

    Raises:
        UsageError: If a part of the config, pre-trained weights, the checkpoint, or data cannot be
            had or do not fit, the loss is not finite, or the disk is full.
    """
    if task == 'train':
        _demand(runner.cfg, 'train_dataloader', 'train_cfg', 'optim_wrapper')
        _check_optimizer(runner.cfg)
    else:
        _demand(runner.cfg, 'test_dataloader', 'test_cfg', 'test_evaluator')
    for step in _STEPS:
        if hasattr(runner, step):  # FlexibleRunner initialises weights elsewhere
            setattr(runner, step, refusing()(getattr(runner, step)))
    result = status = None
    try:
        result = getattr(runner, task)()
    except BadSampleError as error:  # from a worker it comes with all that the worker printed
        raise UsageError(str(error).rpartition(f'{BadSampleError.__name__}: ')[2]) from error
    except FloatingPointError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        # of a worker, with all that it printed, or not of a disk
        if error.errno is None or isinstance(error, ConnectionError):
            raise
        raise UsageError(str(error)) from error
    except SystemExit as stop:  # all processes were asked to stop, and did
        status = stop.code
    finally:
        _stop_workers(runner)
    if torch.distributed.is_initialized():
        runner.model = None
        gc.collect()
        torch.distributed.destroy_process_group()
    if status is not None:
        raise SystemExit(status)
    return result


def _stop_workers(runner: Runner) -> None:
    """End the workers of data loaders that would keep them.

    Left to the garbage collector, which takes the queues to the workers away first, torch waits
    five seconds for each of them.
    """
    for part in ('train', 'val', 'test'):
        loop = getattr(runner, f'_{part}_loop', None)
        for holder in ('dataloader', 'dataloader_iterator'):
            if hasattr(getattr(loop, holder, None), '_iterator'):
                getattr(loop, holder)._iterator = None


@contextmanager
def refusing() -> Iterator[None]:
    """Makes one line of what is wrong with a config, or with a file that it names."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError, DamagedCheckpointError) as error:  # what a model refuses, say
        raise UsageError(str(error)) from error
    except (KeyError, TypeError) as error:
        if not re.search(_MISTYPED, str(error)):
            raise
        raise UsageError(describe_error(error)) from error
    except AssertionError as error:  # many have no text
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f'a part of the config does not fit: {str(error) or place.line} '
            f'({Path(place.filename).name}, line {place.lineno})'
        ) from error


def _demand(cfg: Config, *parts: str) -> None:
    lacking = [part for part in parts if cfg.get(part) is None]
    if lacking:
        raise UsageError(f'the config {cfg.filename or "given"} has no {", ".join(lacking)}')


def _check_optimizer(cfg: Config) -> None:
    """mmengine would call what it did not find."""
    wrapper = cfg.optim_wrapper
    if not isinstance(wrapper, dict) or not isinstance(wrapper.get('optimizer'), dict):
        return
    kind, scope = wrapper['optimizer'].get('type'), cfg.get('default_scope')
    constructor = wrapper.get('constructor', 'DefaultOptimWrapperConstructor')
    found = find_type(constructor, OPTIM_WRAPPER_CONSTRUCTORS, scope)
    usual = isinstance(found, type) and issubclass(found, DefaultOptimWrapperConstructor)
    if usual and isinstance(kind, str) and not find_type(kind, OPTIMIZERS, scope):
        raise UsageError(f"optim_wrapper.optimizer: '{kind}' is not in the optimizer registry")


def _parse_option(option: str) -> dict[str, Any]:
    namespace = argparse.Namespace()
    DictAction(['--cfg-options'], 'options')(argparse.ArgumentParser(), namespace, [option])
    return namespace.options


def check_checkpoint(name: str) -> str:
    """Returns the name of a checkpoint, or raises UsageError if it is a file that is not there."""
    if '://' not in name and not Path(name).expanduser().is_file():
        raise UsageError(f"there is no checkpoint file '{name}'")
    return name


def check_device(device: str | None) -> str:
    """Returns the device to use, or raises UsageError if there is no such device."""
    if device is None:
        return get_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"there is no device '{device}' here: {describe_error(error)}") from error
    return device


def innermost_dataset(cfg: Config, part: str) -> ConfigDict:
    """The innermost data set of a data loader: wrappers hold theirs in ``dataset``."""
    dataset = cfg.get(f'{part}_dataloader') or {}
    while isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    return dataset


def _resume(cfg: Config, resume: str) -> None:
    if resume == 'auto':
        rank = _RANKS.get(cfg.get('launcher', 'none'))
        if rank and os.environ.get(rank, '0') != '0':
            return  # the main process looks, and build_runner tells the others
        try:
            found = find_checkpoint(cfg.work_dir)
        except (OSError, RuntimeError) as error:
            raise UsageError(str(error)) from error
        if found is None:
            message = f'there is no checkpoint in {cfg.work_dir}: training starts anew'
            print_log(message, 'current', logging.WARNING)
            return
        resume = found
    elif resume.endswith('.safetensors'):
        raise UsageError(
            f'{resume} holds weights alone, nothing to resume with: start from it with '
            f'--cfg-options load_from={resume}'
        )
    elif not (cfg.get('runner_type') == 'FlexibleRunner' and Path(resume).is_dir()):
        check_checkpoint(resume)
    cfg.resume, cfg.load_from = True, resume


def _hook_class(cfg: Config, hook: Any) -> Any:
    if not isinstance(hook, dict):
        return type(hook)
    return find_type(hook.get('type'), HOOKS, cfg.get('default_scope'))


def _is_hook(cfg: Config, hook: Any, base: type) -> bool:
    """Whether this is a hook of the class ``base``, or one that somebody has made of it."""
    found = _hook_class(cfg, hook)
    return isinstance(found, type) and issubclass(found, base)


def keeps_channels_last(cfg: Config) -> bool:
    """Whether a hook of the config sets the memory format channels_last."""
    return any(_is_hook(cfg, hook, ChannelsLastHook) for hook in cfg.get('custom_hooks') or [])


def _add_hook(cfg: Config, name: str, **settings: Any) -> None:
    hooks = cfg.get('custom_hooks') or []
    if not any(_is_hook(cfg, hook, HOOKS.get(f'mmffnet.{name}')) for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type=f'mmffnet.{name}', **settings)]
    # The config that lies beside the checkpoints must find the hook in other tools, too.
    imports = cfg.get('custom_imports') or dict(imports=[])
    modules = imports['imports'] if isinstance(imports['imports'], list) else [imports['imports']]
    if 'mmffnet' not in modules:
        cfg.custom_imports = dict(imports, imports=['mmffnet', *modules])


def _add_speed_hooks(
    cfg: Config, compile: bool | str, channels_last: bool | None, half: bool
) -> None:
    if compile:
        _add_hook(cfg, 'CompileHook', **({} if compile is True else dict(mode=compile)))
    if half and get_device() == 'cpu':
        warn_of_bfloat16()
    if channels_last is None:
        say = os.environ.get(_RANKS.get(cfg.get('launcher'), ''), '0') == '0'
        channels_last = is_faster_channels_last(cfg, half, get_device(), say)
    if channels_last:
        _add_hook(cfg, 'ChannelsLastHook')


def is_faster_channels_last(cfg: Config, half: bool, device: str, say: bool = True) -> bool:
    """Whether the measurements in docs/speed.md say so of this model and kind of device.

    ``half`` is for mixed precision; the user is told if it is faster and ``say`` is set.
    """
    model = cfg.get('model') or {}
    backbone = (model.get('module') or model).get('backbone') or {}
    kind = find_type(backbone.get('type'), MODELS, cfg.get('default_scope'))
    if not (isinstance(kind, type) and issubclass(kind, MixerBackbone)):
        return False
    vectorised = torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512')
    faster = half if device == 'cuda' else device == 'cpu' and vectorised
    if faster and say:
        text = 'the memory format channels_last is used, which is faster here; '
        print_log(f'{text}--no-channels-last switches it off', 'current')
    return faster


def _add_training_hooks(cfg: Config) -> None:
    hooks = cfg.get('default_hooks') or {}
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
    if isinstance(checkpoint, dict) and _hook_class(cfg, checkpoint) is CheckpointHook:
        checkpoint = dict(checkpoint, type='mmffnet.SafeCheckpointHook')
    cfg.default_hooks = dict(hooks, checkpoint=checkpoint)
    for name in ('ExactResumeHook', 'FiniteLossHook', 'WholeCheckpointHook'):
        _add_hook(cfg, name)


def _distribute_on_cpu(cfg: Config) -> None:
    """Several processes without GPUs: gloo, no SyncBN, and none of mmengine's calls to CUDA."""
    if cfg.launcher != 'pytorch':
        raise UsageError(f'--launcher {cfg.launcher} needs GPUs; --launcher pytorch does not')
    if _replace_sync_bn(cfg.model) and os.environ.get('RANK', '0') == '0':
        print_log('SyncBN needs GPUs: BN takes its place', 'current', logging.WARNING)
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')


def _replace_sync_bn(node: Any) -> bool:
    children = node.values() if isinstance(node, dict) else node
    if not isinstance(node, dict | list | tuple):
        return False
    found = any([_replace_sync_bn(child) for child in children])  # noqa: C419 - all of them
    names = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')
    if isinstance(node, dict) and type_name(node.get('type')) in names:
        node['type'], found = 'BN', True
    return found


def _evaluators(cfg: Config) -> list:
    evaluators = cfg.get('test_evaluator') or []
    return evaluators if isinstance(evaluators, list) else [evaluators]


def use_tta(cfg: Config) -> None:
    """Wraps the model for test-time augmentation and exchanges the test pipeline, in place."""
    scope = cfg.get('default_scope')
    dataset = innermost_dataset(cfg, 'test')
    if 'tta_model' not in cfg:
        if scope not in _TTA_MODELS:
            raise UsageError(f"--tta needs a tta_model in a config of the scope '{scope}'")
        if any('segm' in evaluator.get('metric', ()) for evaluator in _evaluators(cfg)):
            raise UsageError(
                'mmdet cannot average masks (--tta); for the boxes alone, add '
                '--cfg-options model.roi_head.mask_head=None test_evaluator.metric=bbox'
            )
        cfg.tta_model = _TTA_MODELS[scope]
    if 'pipeline' not in dataset:
        raise UsageError('--tta needs a test_dataloader with one data set that has a pipeline')
    if 'tta_pipeline' not in cfg:
        *steps, pack = dataset.pipeline
        # A list of keys made for plain testing would lose the flips, which must be undone.
        pack = {key: value for key, value in pack.items() if key != 'meta_keys'}
        flips = [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]
        cfg.tta_pipeline = [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _show_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    scope = cfg.get('default_scope')
    if show_dir:
        check_writable(Path(show_dir))
    if show_dir and scope == 'mmseg':
        _add_hook(cfg, 'SegPicturesHook', out_dir=show_dir)
        if not show:
            return
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UsageError('--show and --show-dir need default_hooks.visualization in the config')
    hook['enable' if scope == 'mmpretrain' else 'draw'] = True
    if scope == 'mmpretrain':
        hook['type'] = 'mmffnet.ClsPicturesHook'
    hook.update(show=show, wait_time=wait_time, interval=1)
    if show_dir and scope != 'mmseg':
        # absolute, as mmdet puts a relative one below the time of the run in the work directory
        hook['out_dir' if scope == 'mmpretrain' else 'test_out_dir'] = str(
            Path(show_dir).absolute()
        )


def _keep_predictions(cfg: Config, out: str) -> None:
    evaluators = _evaluators(cfg)
    scope = cfg.get('default_scope')
    if scope == 'mmseg':
        if out.endswith(_PICKLED):
            raise UsageError(f"--out must be a folder for a config of this kind, not '{out}'")
        check_writable(Path(out))
        for evaluator in evaluators:
            evaluator['output_dir'] = out
        if all(evaluator.get('format_only') for evaluator in evaluators):
            # nothing is scored, so there need not be labels
            dataset = innermost_dataset(cfg, 'test')
            dataset.pipeline = without_annotations(dataset.pipeline)
            dataset.get('data_prefix', {}).pop('seg_map_path', None)
    elif out.endswith(_PICKLED):
        check_writable(Path(out).parent)
        metric = _DUMP_METRICS.get(scope, 'DumpResults')
        evaluators = [*evaluators, dict(type=metric, out_file_path=out)]
    else:
        raise UsageError(f"--out must be a .pkl file for a config of this kind, not '{out}'")
    cfg.test_evaluator = evaluators
