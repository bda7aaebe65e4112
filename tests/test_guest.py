"""What importing mmffnet changes in the process of a host: what README says, and nothing else."""

import json
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine import fileio
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

import mmffnet
from mmffnet import registry
from mmffnet.checkpoint import read_checkpoint
from mmffnet.models import SelfAttention
from mmffnet.models.mixers import build_mixer

IN_OUR_REGISTRIES = {
    name: kind
    for kind in ('MODELS', 'HOOKS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'PARAM_SCHEDULERS', 'TRANSFORMS')
    for name in getattr(registry, kind).module_dict
}

SNAPSHOT = """
import json, logging, signal, sys, warnings
import mmcv.cnn, mmengine.model, mmengine.runner, numpy, torch, torch.hub
from mmengine import fileio
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import root
from mmengine.runner import checkpoint

def state():
    return dict(
        registered={
            name: sorted(value.module_dict)
            for name, value in vars(root).items() if isinstance(value, root.Registry)
        },
        loaders={p: f'{f.__module__}.{f.__name__}'
                 for p, f in checkpoint.CheckpointLoader._schemes.items()},
        storages=sorted(fileio.backends.registry_utils.backends),
        safe=sorted(map(str, torch.serialization.get_safe_globals())),
        finders=[getattr(f, '__name__', type(f).__name__) for f in sys.meta_path],
        filters=len(warnings.filters),
        distributions=dict(MODULE2PACKAGE),
        levels=[logging.root.level, logging.root.manager.disable],
        signals=[str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        torch=[torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(),
               torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark],
        packages=sorted({'mmdet', 'mmseg', 'mmpretrain', 'timm', 'torchvision', 'safetensors',
                         'huggingface_hub'} & set(sys.modules)),
    )

before = state()
import mmffnet
print(json.dumps([before, state()]))
"""


@pytest.mark.slow
def test_an_import_changes_what_the_readme_says():
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', SNAPSHOT], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    before, after = json.loads(run.stdout.splitlines()[-1])
    added = {
        kind: [name for name in after['registered'][kind] if name not in names]
        for kind, names in before['registered'].items()
    }
    assert added.pop('MODELS') == ['FFNet', 'FFNetHead', 'FFNetSeg']
    assert not any(added.values()), added
    theirs, ours = before['loaders'], after['loaders']
    replaced = ['', 'http://', 'https://', *(p for p in theirs if 's3' in p or 'petrel' in p)]
    changed = [prefix for prefix in ours if ours[prefix] != theirs.get(prefix)]
    assert sorted(changed) == sorted(['hf://', 'mmffnet://', *replaced]) and len(replaced) == 5
    assert [s for s in after['storages'] if s not in before['storages']] == ['whole_file']
    extra = [finder for finder in after['finders'] if finder not in before['finders']]
    assert extra in ([], ['NativeOpsFinder'])  # it is there already where mmffnet is installed
    same = ('safe', 'filters', 'levels', 'signals', 'torch', 'packages', 'distributions')
    for part in same:
        assert after[part] == before[part], part


@pytest.mark.parametrize('name', ['SelfAttention', 'Pooling', 'ConvFFN', 'ClassDiceLoss'])
def test_a_host_can_register_its_own(name):
    theirs = type(name, (nn.Module,), {})
    assert name not in MODELS
    MODELS.register_module(name=name, module=theirs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert MODELS.get(name) is theirs
            assert MODELS.get(f'mmffnet.{name}') is registry.MODELS.module_dict[name] is not theirs
    finally:
        del MODELS.module_dict[name]


def test_our_mixers_need_no_scope_and_a_host_has_its_own_by_scope():
    class Attention(nn.Identity):
        def __init__(self, channels):
            super().__init__()

    MODELS.register_module(name='SelfAttention', module=Attention)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert type(build_mixer(dict(type='SelfAttention'), 32)) is SelfAttention
            assert type(build_mixer(dict(type='mmffnet.SelfAttention'), 32)) is SelfAttention
            assert type(build_mixer(dict(type='mmengine.SelfAttention'), 32)) is Attention
    finally:
        del MODELS.module_dict['SelfAttention']


def test_conv_layers_of_the_root_registry_are_conv_layers():
    """The rule of mmcv's own test of `build_conv_layer`."""
    kwargs = dict(in_channels=4, out_channels=8, kernel_size=3)
    names = [name for name in MODELS.module_dict if 'conv' in name.lower()]
    ours = [name for name in names if MODELS.get(name).__module__.startswith('mmffnet')]
    assert names and not ours
    for name in ('Conv', 'Conv2d', 'deconv'):
        assert build_conv_layer(dict(type=name), **kwargs).out_channels == 8


@pytest.mark.parametrize('name', sorted(registry._MOVED))
def test_names_of_version_0_1_are_found_everywhere(name):
    theirs = getattr(
        __import__('mmengine.registry', fromlist=['x']), IN_OUR_REGISTRIES[name], MODELS
    )
    with pytest.warns(FutureWarning, match=f'mmffnet.{name}'):
        found = theirs.get(name)
    assert found is theirs.get(f'mmffnet.{name}') is not None


def test_old_names_in_the_scope_of_another_package():
    pytest.importorskip('mmdet')
    with DefaultScope.overwrite_default_scope('mmdet'):
        with pytest.warns(FutureWarning, match='mmffnet.ChannelLayerNorm'):
            _, norm = build_norm_layer(dict(type='ChannelLayerNorm'), 4)
        with pytest.warns(FutureWarning, match='mmffnet.FiniteLossHook'):
            hook = HOOKS.build(dict(type='FiniteLossHook', patience=3))
    assert type(norm) is mmffnet.models.ChannelLayerNorm and hook.patience == 3
    with pytest.warns(FutureWarning, match='LayerDecayConstructor'):
        kind = OPTIM_WRAPPER_CONSTRUCTORS.get('LayerDecayConstructor')
    assert kind is mmffnet.LayerDecayConstructor


def test_names_that_nobody_has_stay_unknown():
    assert MODELS.get('NoSuchModel') is None
    assert HOOKS.get('FFNifiedAttention') is None  # a model, not a hook


def test_allowances_end_with_the_reading(tmp_path):
    file = tmp_path / 'a.pth'
    torch.save(dict(history=HistoryBuffer([1.0], [1])), file)
    before = set(map(str, torch.serialization.get_safe_globals()))
    assert 'HistoryBuffer' not in str(before)
    assert read_checkpoint(file)['history'].current() == 1
    assert set(map(str, torch.serialization.get_safe_globals())) == before
    with pytest.raises(Exception, match='HistoryBuffer'):
        torch.load(file, weights_only=True)


def test_allowances_of_the_host_stay(tmp_path):
    file = tmp_path / 'a.pth'
    torch.save(dict(history=HistoryBuffer([1.0], [1])), file)
    host = (HistoryBuffer, 'mmengine.logging.history_buffer.HistoryBuffer')
    with torch.serialization.safe_globals([host]):
        read_checkpoint(file)
        assert host in torch.serialization.get_safe_globals()


def test_threads_read_at_the_same_time(tmp_path):
    file = tmp_path / 'a.pth'
    torch.save(dict(history=HistoryBuffer([1.0], [1]), x=torch.zeros(9)), file)
    failed = []

    def read() -> None:
        try:
            for _ in range(20):
                read_checkpoint(file)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_checkpoints_on_a_storage_backend(tmp_path, monkeypatch):
    class Storage(fileio.LocalBackend):
        def get(self, filepath):
            return Path(tmp_path, str(filepath).removeprefix('s3://bucket/')).read_bytes()

    monkeypatch.setitem(fileio.backends.registry_utils.backends, 'petrel', Storage)
    torch.save(dict(history=HistoryBuffer([2.0], [1])), tmp_path / 'a.pth')
    loaded = CheckpointLoader.load_checkpoint('s3://bucket/a.pth', 'cpu', logger='silent')
    assert loaded['history'].current() == 2
