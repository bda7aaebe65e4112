"""The demos, much shortened, and their drawings."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmffnet.datasets import PALETTE

TOOL = Path(__file__).parents[1] / 'tools' / 'demo.py'
demo = SimpleNamespace(**runpy.run_path(str(TOOL)))
SHORT = {
    'detection': ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1'],
    'segmentation': ['train_cfg.max_iters=2', 'train_cfg.val_interval=2'],
    'classification': ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1'],
}
PACKAGES = {'detection': 'mmdet', 'segmentation': 'mmseg', 'classification': 'mmpretrain'}
METRICS = {
    'detection': ['bbox mAP', 'segm mAP'],
    'segmentation': ['mIoU'],
    'classification': ['top-1 accuracy'],
}


@pytest.mark.parametrize('task', SHORT)
@pytest.mark.slow
def test_demo(task, tmp_path, monkeypatch, capsys):
    pytest.importorskip(PACKAGES[task])
    monkeypatch.chdir(tmp_path)
    options = [*SHORT[task], 'train_dataloader.batch_size=4', 'default_hooks.logger.interval=1']
    for part in ('train', 'val', 'test'):
        shapes = f'{part}_dataloader.dataset.shapes'
        options += [f'{shapes}.train=8', f'{shapes}.val=6']
    run_tool(monkeypatch, task, '--work-dir', 'here', '--cfg-options', *options)
    lines = capsys.readouterr().out.splitlines()
    result = dict(line.partition(': ')[::2] for line in lines if ': ' in line)
    for name in METRICS[task]:
        assert 0 <= float(result[name]) <= 1
    for name in ('pictures', 'curves', 'checkpoint'):
        assert Path(result[name]).is_file()
        assert tmp_path / 'here' in Path(result[name]).resolve().parents
    for name in ('pictures', 'curves'):
        picture = pixels(result[name])
        assert min(picture.shape[:2]) > 300 and picture.std() > 10
    if task != 'classification':
        # the true instances, or labels, are painted in their classes' colours
        sheet = pixels(result['pictures'])[80:]
        assert sum(share(sheet, colour) > 1e-4 for colour in PALETTE) >= 3


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert('RGB')).astype(int)


def share(picture, colour, tolerance=40):
    return (np.abs(picture - colour).max(axis=2) <= tolerance).mean()


def test_scalars(tmp_path):
    lines = [
        dict(lr=0.1, loss=4.0, loss_cls=3.0, acc=50.0, epoch=1, iter=5, step=5),
        dict(lr=0.2, loss=2.0, loss_cls=1.0, acc=60.0, epoch=1, iter=10, step=10),
        {'coco/bbox_mAP': 0.25, 'time': 1.0, 'step': 1},
        dict(lr=0.1, loss=1.0, loss_cls=0.5, acc=70.0, epoch=2, iter=20, step=20),
        {'coco/bbox_mAP': 0.5, 'time': 1.0, 'step': 2},
    ]
    path = tmp_path / 'scalars.json'
    path.write_text('\n'.join(map(json.dumps, lines)))
    scalars = demo.read_scalars(path)
    assert scalars['lr'] == [(5, 0.1), (10, 0.2), (20, 0.1)]
    assert scalars['loss_cls'] == [(5, 3), (10, 1), (20, 0.5)]
    # validation is placed at the iteration at which its epoch ended
    assert scalars['coco/bbox_mAP'] == [(10, 0.25), (20, 0.5)]


def test_scalars_of_a_loop_over_iterations(tmp_path):
    lines = [dict(lr=0.1, loss=4.0, iter=2, step=2), dict(mIoU=30.0, step=2)]
    path = tmp_path / 'scalars.json'
    path.write_text('\n'.join(map(json.dumps, lines)))
    assert demo.read_scalars(path)['mIoU'] == [(2, 30)]


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['demo.py', *arguments])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_tool_runs_on_a_picture(monkeypatch, capsys):
    run_tool(monkeypatch, 'features', '--arch', 'nano')
    assert 'level 3: shape (1, 256, 8, 8), stride 32' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['features', 'nowhere.jpg'], 'there is no picture nowhere.jpg'),
        (['features', '--arch', 'ffnet9'], "has no arch 'ffnet9'"),
        (['segmentation', '--cfg-options', 'nonsense'], "cannot apply --cfg-options 'nonsense'"),
        ([], 'required: TASK'),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run_tool(monkeypatch, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
