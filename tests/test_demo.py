"""The demos, much shortened, and their drawings."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmffnet import demo
from mmffnet.datasets import PALETTE

ROOT = Path(__file__).parents[1]
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
def test_demo(task, tmp_path, monkeypatch):
    pytest.importorskip(PACKAGES[task])
    monkeypatch.chdir(tmp_path)
    options = [*SHORT[task], 'train_dataloader.batch_size=4', 'default_hooks.logger.interval=1']
    for part in ('train', 'val', 'test'):
        shapes = f'{part}_dataloader.dataset.shapes'
        options += [f'{shapes}.train=8', f'{shapes}.val=6']
    result = demo.run_demo(task, 'here', options)
    for name in METRICS[task]:
        assert 0 <= result[name] <= 1
    text = demo.describe(result)
    for name in ('pictures', 'curves', 'checkpoint'):
        assert result[name].is_file() and f'{name}: {result[name]}' in text
        assert tmp_path / 'here' in result[name].resolve().parents
    for name in ('pictures', 'curves'):
        picture = pixels(result[name])
        assert min(picture.shape[:2]) > 300 and picture.std() > 10
    # the true instances, or labels, are painted in their classes' colours
    sheet = pixels(result['pictures'])[80:-80]
    assert sum(share(sheet, colour) > 1e-4 for colour in PALETTE) >= 3


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert('RGB')).astype(int)


def share(picture, colour, tolerance=40):
    return (np.abs(picture - colour).max(axis=2) <= tolerance).mean()


def test_detections_are_drawn_where_they_are(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:50] = 1
    grey = np.full((40, 60, 3), 128, np.uint8)
    instances = [(mask, [20, 10, 30, 20], 2, '0.87')]
    empty, full = demo._instances(grey, []), demo._instances(grey, instances)
    path = tmp_path / 'sheet.png'
    demo.draw_sheet([[empty, full]], ['one', 'two'], 'headline', path)
    picture = pixels(path)
    height, width = picture.shape[:2]
    panels = picture[int(height * 0.25) : int(height * 0.8)]
    left, right = panels[:, : width // 2], panels[:, width // 2 :]
    assert share(left, PALETTE[2]) == 0 and share(right, PALETTE[2]) > 0.005
    blend = 0.4 * (0.35 * 255 + 0.6 * 128) + 0.6 * np.array(PALETTE[2])
    assert share(left, blend, 8) == 0 and share(right, blend, 8) > 0.1


def test_labels_are_drawn_in_their_colours(tmp_path):
    grey = np.full((40, 40, 3), 100, np.uint8)
    labels = np.ones((40, 40), np.uint8)
    labels[:20] = 6
    path = tmp_path / 'sheet.png'
    demo.draw_sheet([[demo._picture(grey), demo._labels(grey, labels)]], ['a', 'b'], 'h', path)
    picture = pixels(path)
    colour = 0.25 * (0.35 * 255 + 0.6 * 100) + 0.75 * np.array(PALETTE[4])
    half = picture.shape[1] // 2
    assert share(picture[:, :half], colour, 6) < 0.005 < 0.1 < share(picture[:, half:], colour, 6)


def test_scores_are_bars_in_the_colours_of_the_classes(tmp_path):
    path = tmp_path / 'sheet.png'
    scores, truth = [0.0, 0.75, 0.25, 0.0, 0.0], 2
    grey = np.full((40, 40, 3), 100, np.uint8)
    examples = [[demo._picture(grey), demo._bars(40, scores, truth)]]
    demo.draw_sheet(examples, ['a', 'b'], 'h', path)
    picture = pixels(path)[:-80]  # without the legend
    shares = [share(picture, colour, 3) for colour in PALETTE]
    assert shares[1] == pytest.approx(3 * shares[2], rel=0.1) and shares[2] > 0.002
    assert max(shares[0], shares[3], shares[4]) < shares[2] / 5


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
    training, validation = demo.read_scalars(path, ['coco/bbox_mAP'])
    assert {name: points.tolist() for name, points in training.items()} == {
        'lr': [[5, 0.1], [10, 0.2], [20, 0.1]],
        'loss': [[5, 4], [10, 2], [20, 1]],
        'loss_cls': [[5, 3], [10, 1], [20, 0.5]],
    }
    # validation is placed at the iteration at which its epoch ended
    assert validation['coco/bbox_mAP'].tolist() == [[10, 0.25], [20, 0.5]]


def test_scalars_of_a_loop_over_iterations(tmp_path):
    lines = [dict(lr=0.1, loss=4.0, iter=2, step=2), dict(mIoU=30.0, step=2)]
    path = tmp_path / 'scalars.json'
    path.write_text('\n'.join(map(json.dumps, lines)))
    assert demo.read_scalars(path, ['mIoU'])[1]['mIoU'].tolist() == [[2, 30]]


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['demo.py', *arguments])
    runpy.run_path(str(ROOT / 'tools' / 'demo.py'), run_name='__main__')


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
