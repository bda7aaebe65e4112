"""Reading checkpoints safely, downloads, the import hook, and the report on the environment."""

import argparse
import collections
import errno
import importlib
import io
import json
import os
import pickle
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import mmcv
import mmengine.config.utils
import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn

import mmffnet
from mmffnet import compat
from mmffnet.checkpoint import files
from mmffnet.errors import DamagedCheckpointError
from mmffnet_cli.environment import environment
from mmffnet_ops_hook import NativeOpsFinder

ROOT = Path(mmffnet.__file__).parents[1]
NATIVE = environment()['ops'] == 'mmcv (native)'


def python(code, *args, **variables):
    """Run code in a fresh interpreter that finds mmffnet and does not know of it yet."""
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, *map(str, args)],
        env={**os.environ, 'PYTHONPATH': str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_what_cannot_be_done_without_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    with pytest.raises(ModuleNotFoundError, match=r"needs mmcv, .* mmengine 'mmcv-lite<2\.2' "):
        runpy.run_path(compat.__file__)


# The hook behind mmcv.ops

USE_OPS = """
import torch
from mmcv.ops import nms
kept = nms(torch.tensor([[0., 0, 4, 4], [0, 0, 4, 4]]), torch.tensor([.5, .9]), .5)[1]
assert kept.tolist() == [1], kept
import mmcv._ext
print(mmcv._ext.__file__)
"""


@pytest.mark.slow
def test_mmcv_ops_asked_for_before_mmffnet_is_imported():
    first = 'try:\n    import mmcv.ops\nexcept ImportError:\n    pass\nimport mmffnet\n'
    names = 'mmdet', 'mmseg', 'mmpretrain'
    report = (
        'import json, sys; import mmffnet_cli.environment\n'
        f'assert not {{*{names}}} & {{*sys.modules}}\n'
        'print(json.dumps(mmffnet_cli.environment.environment()["packages"]))'
    )
    result = python(first + USE_OPS + report)
    assert result.returncode == 0, result.stderr
    *_, file, packages = result.stdout.splitlines()
    assert file.endswith('mmcv_ext.py') == (not NATIVE)
    # The report reads versions without importing what it reports on.
    for name in names:
        if importlib.util.find_spec(name):
            assert json.loads(packages)[name] == importlib.import_module(name).__version__


@pytest.mark.slow
def test_pth_file_alone_makes_mmdet_work(tmp_path):
    pytest.importorskip('mmdet')
    (tmp_path / 'mmffnet-ops.pth').write_text('import mmffnet_ops_hook\n')
    code = f'import site; site.addsitedir({str(tmp_path)!r})\nfrom mmdet.apis import init_detector'
    result = python(code + USE_OPS + 'import sys; assert "mmffnet" not in sys.modules')
    assert result.returncode == 0, result.stderr


def test_hook_loads_nothing_until_it_is_needed():
    code = 'import sys; before = set(sys.modules); import mmffnet_ops_hook'
    result = python(f'{code}; print(set(sys.modules) - before - {{"mmffnet_ops_hook"}})')
    assert result.stdout.strip() == 'set()', result.stderr


def test_hook_gives_way_to_any_other_extension(tmp_path, monkeypatch):
    (tmp_path / '_ext.py').touch()
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    monkeypatch.setattr(mmcv, '__path__', [str(tmp_path), *mmcv.__path__])
    compat.setup()
    assert importlib.util.find_spec('mmcv._ext').origin == str(tmp_path / '_ext.py')
    assert sys.meta_path.count(NativeOpsFinder) == 1


def test_hook_does_nothing_once_mmffnet_is_gone(monkeypatch):
    assert NativeOpsFinder.find_spec('mmcv._ext').origin.endswith('mmcv_ext.py')
    monkeypatch.setitem(sys.modules, 'mmffnet', None)
    assert NativeOpsFinder.find_spec('mmcv._ext') is None


def test_bases_of_mmseg_are_found_whoever_distributes_it(monkeypatch):
    pytest.importorskip('mmseg')
    packages = mmengine.config.utils.MODULE2PACKAGE
    monkeypatch.setitem(packages, 'mmseg', 'mmsegmentation-that-is-not-installed')
    with pytest.raises(ModuleNotFoundError):
        mmengine.Config.fromfile(mmffnet.config_path('segmentation/semfpn_nano_shapes.py'))
    compat.setup()
    cfg = mmengine.Config.fromfile(mmffnet.config_path('segmentation/semfpn_nano_shapes.py'))
    assert cfg.model.type == 'EncoderDecoder'


# Reading checkpoints


class TinyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, inputs, targets, mode):
        output = self.linear(inputs)
        return {'loss': (output - targets).square().mean()} if mode == 'loss' else [output]


class Score(BaseMetric):
    """Reports numpy scalars, as the COCO metrics do."""

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return {'score': np.float64(0.5), 'count': np.int64(len(results))}


def runner(work_dir, epochs, **kwargs):
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(4, generator=generator), torch.randn(2, generator=generator)) for _ in range(4)
    ]
    loader = {
        'dataset': pairs,
        'batch_size': 2,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'collate_fn': {'type': 'default_collate'},
    }
    return Runner(
        TinyModel(),
        str(work_dir),
        train_dataloader=loader,
        val_dataloader=loader,
        train_cfg={'by_epoch': True, 'max_epochs': epochs, 'val_interval': 1},
        val_cfg={},
        val_evaluator=[Score()],
        optim_wrapper={'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 0.1}},
        param_scheduler=[
            {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'end': 3},
            {'type': 'MultiStepLR', 'milestones': [1, 2]},
            {'type': 'ReduceOnPlateauLR', 'monitor': 'score', 'rule': 'greater'},
        ],
        custom_hooks=[{'type': 'EMAHook'}],
        default_hooks={
            'checkpoint': {
                'type': 'CheckpointHook',
                'interval': 1,
                'save_best': 'score',
                'rule': 'greater',
            }
        },
        experiment_name=f'{Path(work_dir).name}_{epochs}',
        **kwargs,
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A real run of two epochs."""
    result = runner(tmp_path_factory.mktemp('run'), 2)
    result.train()
    return result


def test_runner_resumes_from_its_own_checkpoint(trained, tmp_path):
    first = Path(trained.work_dir, 'epoch_1.pth')
    resumed = runner(tmp_path, 2, load_from=str(first), resume=True)
    resumed.train()
    for name, value in trained.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    history = resumed.message_hub.get_scalar('train/loss')
    assert history.data[0].tolist() == trained.message_hub.get_scalar('train/loss').data[0].tolist()
    assert len(history.data[0]) == 4


def test_read_checkpoint_of_a_runner(trained):
    checkpoint = files.read_checkpoint(Path(trained.work_dir, 'epoch_2.pth'))
    assert checkpoint['message_hub']['runtime_info']['best_score'] == 0.5
    history = checkpoint['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.mean() == trained.message_hub.get_scalar('train/loss').mean()
    assert checkpoint['optimizer']['state'][0]['exp_avg'].shape == (2, 4)
    assert len(checkpoint['param_schedulers']) == 3
    assert {name.split('.')[0] for name in checkpoint['ema_state_dict']} == {'module', 'steps'}


def saved(value, **kwargs):
    buffer = io.BytesIO()
    torch.save(value, buffer, **kwargs)
    return buffer.getvalue()


@pytest.mark.parametrize(('old', 'new'), [(b'numpy._core', b'numpy.core'), (b'numpy.core',) * 2])
def test_arrays_under_the_names_of_numpy_1_and_2(old, new, tmp_path):
    values = {
        'scalar': np.float32(1.5),
        'array': np.arange(6, dtype=np.int64).reshape(2, 3),
        'names': np.array(['cat', 'dog']),
        'flags': np.array([True, False]),
    }
    content = saved(values, _use_new_zipfile_serialization=False).replace(old, new)
    assert b'numpy.core.multiarray' in content or b'numpy._core.multiarray' in content
    (tmp_path / 'arrays.pth').write_bytes(content)
    loaded = files.read_checkpoint(tmp_path / 'arrays.pth')
    assert type(loaded['scalar']) is np.float32
    for name, value in values.items():
        assert np.array_equal(loaded[name], value), name


@pytest.mark.parametrize('zipped', [True, False])
def test_checkpoint_of_timm(zipped, tmp_path):
    content = {
        'epoch': 3,
        'arch': 'ffnet_2',
        'state_dict': collections.OrderedDict(weight=torch.ones(2, dtype=torch.bfloat16)),
        'optimizer': {'state': {}, 'param_groups': [{'lr': 0.1, 'params': [0]}]},
        'args': argparse.Namespace(lr=0.1, device=torch.device('cpu'), crop=None, sizes=[1, 2]),
        'metric': np.float64(81.3),
    }
    path = tmp_path / 'ffnet_2.pth.tar'
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = files.read_checkpoint(path)
    model = nn.ParameterDict({'weight': torch.zeros(2)})
    load_checkpoint(model, str(path))
    assert torch.equal(model['weight'], torch.ones(2))
    assert torch.equal(loaded.pop('state_dict')['weight'], content.pop('state_dict')['weight'])
    assert loaded == content


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def attacks(target):
    return {
        'posix.system': Malicious(os.system, f'touch {target}'),
        'eval': Malicious(eval, f'open({target!r}, "w")'),
        'getattr': Malicious(getattr, Path(target), 'touch'),
        'HistoryBuffer': Malicious(getattr, HistoryBuffer, '__init__'),
        'functools.partial': Malicious(__import__('functools').partial, print),
        'random': np.random.RandomState(0),
        'defaultdict': collections.defaultdict(list),
    }


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('name', attacks(''))
def test_file_that_asks_for_code_is_refused_and_runs_nothing(name, zipped, tmp_path):
    target, path = tmp_path / 'executed', tmp_path / 'bad.pth'
    content = {'state_dict': {}, 'extra': attacks(str(target))[name]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for read in (files.read_checkpoint, CheckpointLoader.load_checkpoint):
        with pytest.raises(ValueError, match=r'refused .*bad\.pth') as error:
            read(str(path))
        assert not target.exists()
    assert name in str(error.value) or 'pathlib' in str(error.value)


GOOD = saved({'state_dict': {'weight': torch.ones(100, 10)}})
OLD = saved({'state_dict': {'weight': torch.ones(100, 10)}}, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    'content',
    [b'', b'<html>404</html>', bytes(500), pickle.dumps({'a': 1}, 2)]
    + [part for whole in (GOOD, OLD) for part in (whole[:40], whole[:-2000], whole[:-1])],
    ids=lambda content: f'{content[:4]!r}{len(content)}',
)
def test_damaged_file(content, tmp_path):
    path = tmp_path / 'damaged.pth'
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=rf'damaged\.pth \({len(content)} bytes\).* incomplete'):
        files.read_checkpoint(path)


def test_web_page_in_the_place_of_a_checkpoint(tmp_path):
    (tmp_path / 'page.pth').write_text('<!DOCTYPE html><html>404</html>')
    with pytest.raises(DamagedCheckpointError, match='it is a web page'):
        files.read_checkpoint(tmp_path / 'page.pth')


def test_missing_file_and_home_directory(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r'checkpoint .*none\.pth does not exist'):
        files.read_checkpoint(tmp_path / 'none.pth')
    with pytest.raises(FileNotFoundError, match='is not a file'):
        CheckpointLoader.load_checkpoint(str(tmp_path))
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'good.pth').write_bytes(GOOD)
    assert 'state_dict' in files.read_checkpoint('~/good.pth')


def test_trouble_with_the_device_is_not_called_damage(tmp_path):
    (tmp_path / 'good.pth').write_bytes(GOOD)
    with pytest.raises(RuntimeError) as error:
        files.read_checkpoint(tmp_path / 'good.pth', map_location='cuda:99')
    assert 'damaged' not in str(error.value)


def test_zip_archive_that_holds_one_checkpoint(tmp_path):
    path = tmp_path / 'detector.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('folder/detector.pth', GOOD)
        archive.writestr('folder/log.json', '{}')
        archive.writestr('__MACOSX/folder/._detector.pth', 'x')
    assert files.read_checkpoint(path)['state_dict']['weight'].shape == (100, 10)
    assert list(tmp_path.iterdir()) == [path]
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('other.pth.tar', GOOD)
    with pytest.raises(ValueError, match=r'must hold exactly one checkpoint .* holds 2'):
        files.read_checkpoint(path)


def test_damaged_zip_archive(tmp_path):
    path = tmp_path / 'detector.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('detector.pth', GOOD)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r'detector\.zip .* is damaged'):
        files.read_checkpoint(path)
    content = bytearray(GOOD)  # the list of what is in it
    content[content.rindex(b'PK\1\2') + 46] = 255
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r'detector\.zip .* is damaged'):
        files.read_checkpoint(path)


def test_trouble_with_the_disk_is_not_called_damage(tmp_path, monkeypatch):
    (tmp_path / 'good.pth').write_bytes(GOOD)

    def fail(path):
        raise OSError(errno.EIO, 'Input/output error')

    monkeypatch.setattr(files, '_open_checkpoint', fail)
    with pytest.raises(OSError, match='Input/output error'):
        files.read_checkpoint(tmp_path / 'good.pth')


def test_torchscript_is_no_checkpoint(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)).save(tmp_path / 'model.pt')
    with pytest.raises(ValueError, match=r'model\.pt is a TorchScript model'):
        files.read_checkpoint(tmp_path / 'model.pt')
