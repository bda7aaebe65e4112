"""From labelled pictures to a page of results, for each task, and what is refused."""

import json
import re
import resource

import labelled_pictures as labelled
import pytest
import torch
from mmengine.config import Config

from mmffnet.checkpoint import read_checkpoint
from mmffnet.errors import UsageError
from mmffnet.owndata import finetune as module
from mmffnet.owndata.convert import split_pictures
from mmffnet.owndata.finetune import finetune
from mmffnet.owndata.tiles import cut_into_tiles
from mmffnet_cli.main import main

TASKS = {
    'instance': labelled.write_coco,
    'det': labelled.write_voc,
    'seg': labelled.write_masks,
    'cls': labelled.write_folders,
}


def split_many(data, group_by):
    """As split_pictures, and each picture of the training counts ten times."""
    said = split_pictures(data, group_by)
    data.pictures = [picture for picture in data.pictures for _ in range(10)]
    return said


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
    if task == 'cls':  # edited, and resumed
        config.write_text(
            config.read_text().replace('lr = 64, None, 2, 1,', 'lr = 64, None, 2, 2,')
        )
        finetune(str(root), str(out), resume=True, say=said.append)
        assert (out / 'training' / 'last_checkpoint').read_text().endswith('epoch_2.pth')
        assert snapshot(root) == before


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
    assert cfg.model.backbone.frozen_stages == 1  # stem and first stage: there are few pictures
    assert cfg.model.backbone.init_cfg.checkpoint == 'mmffnet://ffnet1-distilled'
    (tmp_path / 'mine.pth').touch()
    mine = str(tmp_path / 'mine.pth')
    finetune(str(root), str(tmp_path / 'b'), weights=mine, dry_run=True, say=lambda text: None)
    cfg = Config.fromfile(tmp_path / 'b' / 'config.py')
    assert cfg.model.backbone.init_cfg.checkpoint == mine


@pytest.mark.parametrize('task', TASKS)
def test_nano_starts_from_drawn_shapes_where_that_was_seen_to_help(tmp_path, task):
    root, out, said = TASKS[task](tmp_path / 'data'), tmp_path / 'out', []
    finetune(str(root), str(out), arch='nano', dry_run=True, say=said.append)
    cfg = Config.fromfile(out / 'config.py')
    init = cfg.model.backbone.get('init_cfg')
    assert 'random weights, by the root' in said[-1]  # the learning rate is theirs in any case
    assert cfg.model.backbone.get('frozen_stages', -1) == -1
    if task in ('det', 'instance'):
        assert init == dict(type='Pretrained', checkpoint='mmffnet://ffnet-nano-seg')
    else:
        assert init is None and 'starts from random weights' in said[-1]


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
    for place in (root / 'out', root.parent):
        with pytest.raises(UsageError, match='holds or is in the data'):
            finetune(str(root), str(place))
    notes = tmp_path / 'project' / 'notes.txt'
    notes.parent.mkdir()
    notes.write_text('mine')
    with pytest.raises(UsageError, match='holds other files'):
        finetune(str(root), str(notes.parent))
    assert [*notes.parent.iterdir()] == [notes]
    with pytest.raises(UsageError, match='no training to resume'):
        finetune(str(root), str(out), resume=True)
    finetune(str(root), str(out), dry_run=True, say=lambda text: None)
    with pytest.raises(UsageError, match='exists'):
        finetune(str(root), str(out))


def test_data_that_cannot_be_trained(tmp_path):
    root, out = labelled.write_masks(tmp_path / 'data'), tmp_path / 'out'
    (mask,) = root.rglob('masks/**/a1.png')
    labelled.save(mask, labelled.label_map('a1')[:-1])
    with pytest.raises(UsageError, match=r'a1\.png; all that was found: .*data\.html'):
        finetune(str(root), str(out), say=lambda text: None)
    page = (out / 'data.html').read_text()
    assert 'Cannot be trained' in page and '<td>cat</td>' in page
    assert not (out / 'config.py').exists()
    labelled.save(mask, labelled.label_map('a1'))  # mended, the same command goes on
    finetune(str(root), str(out), dry_run=True, say=lambda text: None)
    assert 'Cannot be trained' not in (out / 'data.html').read_text()


def test_a_folder_that_cannot_be_written(tmp_path):
    root, out = labelled.write_voc(tmp_path / 'data'), tmp_path / 'out'
    out.write_text('a file')
    with pytest.raises(UsageError, match='cannot write to'):
        finetune(str(root), str(out / 'deeper'), dry_run=True)


def test_what_vanishes_is_not_called_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    root, out = labelled.write_voc(tmp_path / 'data'), tmp_path / 'out'

    def vanish(data, *args):
        data.pictures[0].path.unlink()
        return cut_into_tiles(data, *args)

    monkeypatch.setattr(module, 'cut_into_tiles', vanish)
    with pytest.raises(FileNotFoundError, match='data'):
        finetune(str(root), str(out), tiles=200, dry_run=True, say=lambda text: None)
    assert not (out / 'config.py').exists()


def test_few_pictures(tmp_path):
    root = labelled.write_folders(tmp_path / 'data')
    pictures = sorted(root.rglob('*.jpg'))
    for picture in pictures[2:]:
        picture.unlink()
    with pytest.raises(UsageError, match='1 pictures to train with are too few: at least 2'):
        finetune(str(root), str(tmp_path / 'out'), dry_run=True, say=lambda text: None)


@pytest.mark.parametrize(
    'arguments', [['--epochs', '0'], ['--minutes', 'nan'], ['--size', '8'], ['--minutes', '0']]
)
def test_numbers_that_are_none(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit, match='2'):
        main(['finetune', str(tmp_path), *arguments])
    assert 'must be' in capsys.readouterr().err


def test_no_space_left(tmp_path):
    root, out = labelled.write_coco(tmp_path / 'data'), tmp_path / 'out'
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, limits[1]))
    try:
        with pytest.raises(UsageError, match=f'cannot write to {out}'):
            finetune(str(root), str(out), dry_run=True, say=lambda text: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (out / 'config.py').exists()


def test_interrupted_before_the_training(tmp_path, monkeypatch):
    def interrupt(cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr('mmffnet.owndata.finetune.measure_step', interrupt)
    root, out = labelled.write_coco(tmp_path / 'data'), tmp_path / 'out'
    with pytest.raises(KeyboardInterrupt):
        finetune(str(root), str(out), minutes=1, say=lambda text: None)
    assert not (out / 'config.py').exists()


def test_data_that_cannot_be_written(tmp_path):
    root, out = labelled.write_masks(tmp_path / 'data'), tmp_path / 'out'
    before = snapshot(root)
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    finetune(str(root), str(out), dry_run=True, say=lambda text: None)
    assert snapshot(root) == before and (out / 'config.py').is_file()


def test_many_classes_most_of_them_empty(tmp_path):
    root, out = labelled.write_coco(tmp_path / 'data'), tmp_path / 'out'
    for path in root.glob('annotations/*.json'):
        content = json.loads(path.read_text())
        content['categories'] += [dict(id=i, name=f'empty class {i}') for i in range(20, 98)]
        path.write_text(json.dumps(content))
    said = []
    finetune(str(root), str(out), arch='ffnet1', dry_run=True, say=said.append)
    assert 'classes have no example at all (78)' in '\n'.join(said)
    assert len((out / 'config.py').read_text().splitlines()) <= 40
    cfg = Config.fromfile(out / 'config.py')
    assert cfg.classes[:2] == labelled.CLASSES and len(cfg.classes) == 80
    assert cfg.model.roi_head.mask_head.num_classes == 80


def test_more_classes_than_masks_can_hold(tmp_path):
    root = labelled.write_masks(tmp_path / 'data')
    (root / 'classes.txt').write_text('\n'.join(f'{i}: thing {i}' for i in range(256)))
    with pytest.raises(UsageError, match='256 classes are too many for masks of 8 bits'):
        finetune(str(root), str(tmp_path / 'out'), dry_run=True, say=lambda text: None)


def test_other_tasks_than_that_of_the_labels(tmp_path):
    root = labelled.write_labelme(tmp_path / 'data')
    finetune(str(root), str(tmp_path / 'seg'), task='seg', dry_run=True, say=lambda text: None)
    cfg = Config.fromfile(tmp_path / 'seg' / 'config.py')
    assert cfg.classes == ('background', 'big dog', 'cat')
    assert cfg.model.decode_head.num_classes == 3
    path = root / 'train' / 'a3.json'
    content = json.loads(path.read_text())
    for shape in content['shapes']:
        shape.update(shape_type='rectangle', points=shape['points'][:2])
    path.write_text(json.dumps(content))
    for task, metric in (('instance', ['bbox', 'segm']), (None, ['bbox'])):
        out = tmp_path / str(task)
        finetune(str(root), str(out), task=task, dry_run=True, say=lambda text: None)
        assert Config.fromfile(out / 'config.py').val_evaluator.metric == metric


@pytest.mark.parametrize('count', [15, 40])
def test_the_config_stays_short(tmp_path, count):
    root, out = labelled.write_yolo(tmp_path / 'data'), tmp_path / 'out'
    names = [*labelled.CLASSES, *(f'class number {i}' for i in range(count - 2))]
    text = (root / 'data.yaml').read_text()
    (root / 'data.yaml').write_text(re.sub(r'names:(\n-.*)+', f'names: {names}', text))
    (tmp_path / 'mine.pth').touch()
    weights = str(tmp_path / 'mine.pth')
    finetune(str(root), str(out), weights=weights, dry_run=True, say=lambda text: None)
    assert len((out / 'config.py').read_text().splitlines()) <= 40
    assert list(Config.fromfile(out / 'config.py').classes) == names


def test_a_batch_that_the_memory_does_not_hold(tmp_path, monkeypatch):
    """With a measurement that a GPU would end in this way: there is none here."""
    asked = []

    def measure(cfg):
        asked.append(cfg.train_dataloader.batch_size)
        if len(asked) <= enough:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return 0.1

    monkeypatch.setattr('mmffnet.owndata.finetune.measure_step', measure)
    monkeypatch.setattr('mmffnet.owndata.recipe._choose_batch', lambda *args: (7, 'a guess'))
    monkeypatch.setattr('mmffnet.owndata.finetune.split_pictures', split_many)
    root, enough = labelled.write_folders(tmp_path / 'data'), 2
    out, said = tmp_path / 'out', []
    finetune(str(root), str(out), minutes=1, size=64, dry_run=True, say=said.append)
    assert asked == [7, 3, 1] and Config.fromfile(out / 'config.py').batch_size == 1
    assert 'batches of 1 after all' in said[-1]
    asked.clear()
    enough = 9
    with pytest.raises(UsageError, match='smaller --size'):
        finetune(str(root), str(tmp_path / 'other'), minutes=1, size=64, say=said.append)
    assert asked == [7, 3, 1]


@pytest.mark.parametrize('minutes', [0.001, 1000])
@pytest.mark.slow
def test_the_schedule_goes_by_the_budget(tmp_path, minutes):
    root, out = labelled.write_folders(tmp_path / 'data'), tmp_path / 'out'
    said = []
    finetune(str(root), str(out), minutes=minutes, size=64, dry_run=True, say=said.append)
    assert Config.fromfile(out / 'config.py').epochs == (1 if minutes < 1 else 300)
    assert f'for {minutes:g} min' in said[-1]
