"""From labelled pictures to a page of results, for each task, and what is refused."""

import json
import re

import labelled_pictures as labelled
import pytest
import torch
from mmengine.config import Config

from mmffnet.checkpoint import read_checkpoint
from mmffnet.errors import UsageError
from mmffnet.owndata.finetune import finetune

TASKS = {
    'instance': labelled.write_coco,
    'det': labelled.write_voc,
    'seg': labelled.write_masks,
    'cls': labelled.write_folders,
}


def snapshot(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob('*')}


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_trains_and_reports(tmp_path, task, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, out = TASKS[task](tmp_path / 'data'), tmp_path / 'out'
    before = snapshot(root)
    said = []
    page = finetune(str(root), str(out), epochs=1, size=64, say=said.append)
    assert snapshot(root) == before
    text = page.read_text()
    assert page == out / 'results.html' and text.startswith('<!DOCTYPE html>')
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # self-contained
    numbers = json.loads((out / 'results.json').read_text())
    names = [row['class'] for row in numbers['classes']]
    assert set(labelled.CLASSES) <= set(names)
    assert all(0 <= value <= 1 or value == -1 for value in numbers['summary'].values())
    matrix = numbers['confusion']
    assert len(matrix) == len(names) + (task in ('det', 'instance'))
    if task == 'seg':
        assert sum(map(sum, matrix)) == 2 * labelled.WIDTH * labelled.HEIGHT
    elif task == 'cls':
        assert sum(map(sum, matrix)) == 2
    else:  # each object is found or missed
        assert [sum(row) for row in matrix[:-1]] == [1, 1]
    (best,) = out.glob('training/best_*.pth')
    trained, kept = read_checkpoint(best), read_checkpoint(out / 'model.safetensors')
    assert kept['meta']['dataset_meta']['classes'] == names
    for name, tensor in trained['state_dict'].items():
        assert torch.equal(tensor, kept['state_dict'][name])
    # the config goes on with the ordinary tools
    config = out / 'config.py'
    assert len(config.read_text().splitlines()) <= 40
    cfg = Config.fromfile(config)
    assert cfg.size == 64 and cfg.epochs == 1


@pytest.mark.parametrize('task', TASKS)
def test_dry_run(tmp_path, task):
    root, out = TASKS[task](tmp_path / 'data'), tmp_path / 'out'
    said = []
    assert finetune(str(root), str(out), dry_run=True, say=said.append) is None
    text = '\n'.join(said)
    assert f'task {task}' in text and 'Settings' in text
    assert (out / 'data.html').read_text().count('<td>cat</td>') == 1
    assert (out / 'config.py').is_file() and not (out / 'training').exists()


def test_pretrained_weights_freeze_the_stem(tmp_path):
    root = labelled.write_coco(tmp_path / 'data')
    finetune(str(root), str(tmp_path / 'a'), arch='ffnet1', dry_run=True, say=lambda text: None)
    cfg = Config.fromfile(tmp_path / 'a' / 'config.py')
    assert cfg.model.backbone.frozen_stages == 1
    assert cfg.model.backbone.init_cfg.checkpoint == 'mmffnet://ffnet1-distilled'
    finetune(
        str(root), str(tmp_path / 'b'), weights='mine.pth', dry_run=True, say=lambda text: None
    )
    cfg = Config.fromfile(tmp_path / 'b' / 'config.py')
    assert cfg.model.backbone.init_cfg.checkpoint == 'mine.pth'


def test_boxes_of_outlines(tmp_path):
    root = labelled.write_coco(tmp_path / 'data')
    finetune(str(root), str(tmp_path / 'out'), task='det', dry_run=True, say=lambda text: None)
    cfg = Config.fromfile(tmp_path / 'out' / 'config.py')
    assert cfg.model.roi_head.mask_head is None
    assert cfg.val_evaluator.metric == ['bbox']


def test_what_is_refused(tmp_path):
    root, out = labelled.write_voc(tmp_path / 'data'), tmp_path / 'out'
    with pytest.raises(UsageError, match='are for det, not instance'):
        finetune(str(root), str(out), task='instance')
    with pytest.raises(UsageError, match='inside of the data'):
        finetune(str(root), str(root / 'out'))
    with pytest.raises(UsageError, match='no training to resume'):
        finetune(str(root), str(out), resume=True)
    finetune(str(root), str(out), dry_run=True, say=lambda text: None)
    with pytest.raises(UsageError, match='holds a training'):
        finetune(str(root), str(out))


def test_a_folder_that_cannot_be_written(tmp_path):
    root, out = labelled.write_voc(tmp_path / 'data'), tmp_path / 'out'
    out.write_text('a file')
    with pytest.raises(UsageError, match='cannot write to'):
        finetune(str(root), str(out / 'deeper'), dry_run=True)
