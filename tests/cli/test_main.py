"""The command `mmffnet`, and the tools behind `mmffnet train` and `mmffnet test`."""

import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmffnet_cli import Parser, main

ROOT = Path(__file__).parents[2]
DETECTOR = 'detection/maskrcnn_ffnet2_coco.py'
TOY = '''
"""A model and data small enough to train in no time."""

import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS


@MODELS.register_module()
class ToyModel(BaseModel):
    def __init__(self, backbone, **kwargs):
        super().__init__(**kwargs)
        self.backbone = MODELS.build(backbone)

    def forward(self, x, mode='tensor', **kwargs):
        feature = self.backbone(torch.stack(list(x)))[-1]
        return dict(loss=feature.square().mean()) if mode == 'loss' else [feature.mean()]


@DATASETS.register_module()
class ToyData(BaseDataset):
    def load_data_list(self):
        return [dict(x=torch.ones(3, 32, 32) * i) for i in range(4)]


@METRICS.register_module()
class ToyMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(mean=float(sum(results)) / len(results))
'''
TOY_CONFIG = """
custom_imports = dict(imports=['mmffnet', 'toy'], allow_failed_imports=False)
data = dict(batch_size=2, num_workers=0, dataset=dict(type='ToyData'),
            sampler=dict(type='DefaultSampler', shuffle=False))
model = dict(type='ToyModel', backbone=dict(type='FFNet', arch='nano'))
train_dataloader = test_dataloader = data
test_evaluator = dict(type='ToyMetric')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
train_cfg = dict(by_epoch=True, max_epochs=1)
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=4)
"""


def run_python(*arguments, cwd, path=()):
    environment = {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join(map(str, [*path, ROOT])),
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def one_line_error(capsys, *arguments):
    """Run the command, expect status 2, and return the one line that it printed."""
    try:
        status = main.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = exit_.code
    assert status == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    (line,) = printed.err.splitlines()
    return line


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main.main(['--version'])
    assert exit_.value.code == 0
    assert re.fullmatch(r'mmffnet \S.*\n', capsys.readouterr().out)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'required: COMMAND'),
        (['trian'], "invalid choice: 'trian'"),
        (['configs', 'a', 'b'], 'unrecognized arguments: b'),
        (['env', '--long'], 'unrecognized arguments: --long'),
        (['configs', 'nothing*'], "no config matches 'nothing*'"),
    ],
)
def test_mistaken_command(capsys, arguments, message):
    line = one_line_error(capsys, *arguments)
    assert line.startswith('mmffnet')
    assert message in line


@pytest.mark.parametrize(
    ('pattern', 'names'),
    [('maskrcnn_ffnet2', [DETECTOR]), ('detection/*_coco.py', [DETECTOR]), ('', [DETECTOR])],
)
def test_configs(capsys, pattern, names):
    assert main.main(['configs', *filter(None, [pattern])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(names) <= {line.split()[0] for line in lines}
    assert all(len(line.split()) > 1 for line in lines), 'every config has a docstring'


def test_python_dash_m(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['mmffnet', 'configs'])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module('mmffnet', run_name='__main__')
    assert exit_.value.code == 0
    assert DETECTOR in capsys.readouterr().out


def test_answers_without_importing_torch(tmp_path):
    code = (
        'import sys\n'
        'from mmffnet_cli import main\n'
        'for command in (["configs"], ["env", "--quick"], ["train", "--help"], ["train"]):\n'
        '    try: main.main(command)\n'
        '    except SystemExit: pass\n'
        'print([m for m in ("torch", "mmengine") if m in sys.modules])'
    )
    done = run_python('-c', code, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == '[]'
    assert 'usage: mmffnet train' in done.stdout


def test_env(capsys):
    status = main.main(['env'])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.partition('  ')[2].strip() for line in lines}
    assert rows['torch'] == torch.__version__
    assert rows['mmcv.ops'] in ('torchvision (mmffnet)', 'mmcv (native)')
    assert status == any(line.startswith('problem: ') for line in lines)


def test_env_finds_mixed_families(tmp_path, monkeypatch, capsys):
    for name in ('mmengine', 'onedl-mmengine'):
        folder = tmp_path / f'{name.replace("-", "_")}-0.10.7.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 0.10.7\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert main.main(['env']) == 1
    printed = capsys.readouterr().out
    assert re.search(r'^problem: .*mixed with the onedl fork', printed, re.MULTILINE)


@pytest.mark.slow
def test_without_mmengine(tmp_path):
    missing = "raise ModuleNotFoundError(\"No module named 'mmengine'\", name='mmengine')\n"
    (tmp_path / 'mmengine.py').write_text(missing)
    code = 'from mmffnet_cli.main import main; print(main(["env"])); main(["train", "any.py"])'
    done = run_python('-c', code, cwd=tmp_path, path=[tmp_path])
    assert re.search(r'^problem: mmffnet cannot be imported: .*mmengine', done.stdout, re.MULTILINE)
    assert re.search(rf'^torch +{re.escape(torch.__version__)}$', done.stdout, re.MULTILINE)
    assert done.stdout.endswith('\n1\n')
    assert done.returncode == 2
    assert re.fullmatch(r'mmffnet train: error: .*mmengine.*\n', done.stderr)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / 'toy.py').write_text(TOY)
    (tmp_path / 'toy_config.py').write_text(TOY_CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['train'], 'required: config'),
        (['prepare-data', 'imagenet'], "invalid choice: 'imagenet'"),
        (['train', 'none.py'], "there is no config file 'none.py'"),
        (['train', 'maskrcnn_ffnet2_coco'], f'did you mean {DETECTOR}'),
        (['train', 'broken.py'], 'cannot read the config broken.py: SyntaxError'),
        (['train', 'orphan.py'], 'cannot read the config orphan.py: FileNotFoundError'),
        (['train', 'faulty.py'], "name 'undefined' is not defined"),
        (['train', 'toy_config.py', '--cfg-options', 'lr'], "--cfg-options 'lr'"),
        (['train', 'toy_config.py', '--cfg-options', 'a=[1,2'], "--cfg-options 'a=[1,2'"),
        (['train', 'toy_config.py', '--cfg-options', 'model.type.x=1'], 'model.type.x=1'),
        (['train', 'toy_config.py', '--resume', 'none.pth'], "no checkpoint file 'none.pth'"),
        (['train', 'toy_config.py', '--lr', '1'], 'unrecognized arguments: --lr 1'),
        (['train', 'no_data.py'], "data folder 'nowhere' does not exist"),
        (['train', 'bare.py', '--auto-scale-lr'], 'auto_scale_lr.base_batch_size'),
        (['test', 'toy_config.py'], 'required: checkpoint'),
        (['test', 'toy_config.py', 'none.pth'], "no checkpoint file 'none.pth'"),
        (['test', 'toy_config.py', 'toy.py', '--out', 'here'], '--out must be a .pkl file'),
        (['test', 'toy_config.py', 'toy.py', '--show'], 'default_hooks.visualization'),
        (['test', 'toy_config.py', 'toy.py', '--tta'], '--tta needs a tta_model'),
    ],
)
def test_mistakes_with_the_tools(toy, capsys, arguments, message):
    (toy / 'broken.py').write_text('model = dict(\n')
    (toy / 'orphan.py').write_text("_base_ = 'nobody.py'\n")
    (toy / 'faulty.py').write_text('model = undefined\n')
    (toy / 'bare.py').write_text('model = dict()\n')
    (toy / 'no_data.py').write_text(
        "train_dataloader = dict(dataset=dict(dataset=dict(data_root='nowhere')))\n"
    )
    line = one_line_error(capsys, *arguments)
    assert line.startswith(f'mmffnet {arguments[0]}: error: ')
    assert message in line


def test_a_package_that_is_missing_is_named_with_its_place(capsys):
    parser = Parser(prog='tool')
    with pytest.raises(SystemExit, match='2'), parser.reporting():
        importlib.import_module('no_such_package')
    line = capsys.readouterr().err
    assert "No module named 'no_such_package'" in line and f'{Path(__file__).name}, line' in line
    with pytest.raises(ValueError, match='a fault of ours'), parser.reporting():
        raise ValueError('a fault of ours')
    with pytest.raises(BrokenPipeError), parser.reporting(OSError):
        raise BrokenPipeError


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_amp_needs_a_gpu(toy, capsys):
    assert '--amp needs a GPU' in one_line_error(capsys, 'train', 'toy_config.py', '--amp')


@pytest.mark.parametrize('tool', ['reparameterize', 'convert-names'])
def test_tools_for_checkpoints_have_commands(capsys, tool):
    assert one_line_error(capsys, tool).startswith(f'mmffnet {tool}: error: the following')


def test_reader_that_has_enough(tmp_path):
    """As in `mmffnet configs | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, '-m', 'mmffnet', 'configs']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    with os.fdopen(writing, 'wb') as pipe:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=pipe, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (0, '')


@pytest.mark.slow
def test_train_resume_and_test(toy):
    """The whole way, in a process of its own: mmengine's runner keeps global state."""
    code = (
        'from mmffnet_cli.main import main\n'
        'main(["train", "toy_config.py", "--auto-scale-lr"])\n'
        'main(["train", "toy_config.py", "--resume", "--cfg-options", "train_cfg.max_epochs=2"])\n'
        'main(["test", "toy_config.py", "work_dirs/toy_config/epoch_2.pth", "--work-dir", "out",\n'
        '      "--out", "out/predictions.pkl"])\n'
    )
    done = run_python('-c', code, cwd=toy, path=[toy])
    assert done.returncode == 0, done.stderr
    log = done.stdout + done.stderr
    assert 'resumed epoch: 1' in log
    assert 'Epoch(train) [2]' in log
    assert (toy / 'work_dirs' / 'toy_config' / 'epoch_2.pth').is_file()
    assert (toy / 'out' / 'predictions.pkl').is_file()
    assert re.search(r'Epoch\(test\) .*mean: ', log)
