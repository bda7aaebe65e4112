"""Testing a segmentor: what is kept, painted and printed."""

import copy
import re
import shutil

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image, ImageDraw

from mmffnet.datasets import CLASSES as CLASSES_OF_SHAPES
from mmffnet.datasets import ensure_shapes
from mmffnet.engine import runner as tools
from mmffnet.visualization import Legend, paint_maps

PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
CLASSES = ('wall', 'floor', 'bed')
SIZE = (40, 60)


@pytest.fixture
def written(monkeypatch):
    """What is written on pictures, and where."""
    texts = []
    text = ImageDraw.ImageDraw.text

    def remember(draw, place, words, **kwargs):
        texts.append((words, place))
        return text(draw, place, words, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, 'text', remember)
    return texts


def test_panels_and_legend(written):
    half = np.resize(np.repeat([0, 2], 30), SIZE)
    image = np.full((*SIZE, 3), 90, np.uint8)
    maps = {'ground truth': np.where(half, -1, half), 'prediction': half}
    painted = paint_maps(image, maps, Legend(CLASSES, PALETTE))
    height, width = 600, 900  # small pictures are enlarged
    font = 18
    assert painted.shape == (height + 5 * font, 3 * (width + font) - font, 3)
    panels = [painted[2 * font :, i * (width + font) :][:height, :width] for i in range(3)]
    assert (panels[0] == 90).all()
    grey = 0.3 * 90
    truth, prediction = panels[1:]
    assert prediction[5, 5] == pytest.approx([0.7 * 200 + grey, grey, grey], abs=1)
    assert prediction[5, -5] == pytest.approx([grey, grey, 0.7 * 200 + grey], abs=1)
    assert truth[5, -5] == pytest.approx([0.7 * 255 + grey] * 3, abs=1)
    # names stand in their regions: one in the truth, two in the prediction
    inside = [(text, place[0]) for text, place in written[:3]]
    assert [text for text, _ in inside] == ['wall', 'wall', 'bed']
    assert inside[1][1] < width / 2 < inside[2][1]
    titles = ['picture', 'ground truth', 'prediction']
    # the largest first, and none that is not there
    assert [text for text, _ in written[3:]] == [*titles, 'wall', 'bed', 'not labelled']
    strip = painted[-3 * font :].reshape(-1, 3)
    for colour in (PALETTE[0], PALETTE[2], (255, 255, 255)):
        assert (strip == colour).all(1).sum() >= font * font / 2
    assert not (strip == PALETTE[1]).all(1).any()


def test_names_of_small_regions_are_in_the_legend_only(written):
    label = np.zeros(SIZE, int)
    label[3:5, 3:6] = 1
    image = np.zeros((*SIZE, 3), np.uint8)
    paint_maps(image, {'prediction': label}, Legend(CLASSES, PALETTE))
    words = ['wall', 'picture', 'prediction', 'wall', 'floor']
    assert [text for text, _ in written] == words


@pytest.fixture
def segmentor(tmp_path):
    """A config in ADE20K's format with two pictures of their own sizes, and a checkpoint."""
    pytest.importorskip('mmseg')
    for kind in ('images', 'labels'):
        (tmp_path / kind).mkdir()
    for i, (height, width) in enumerate([(40, 60), (33, 32)]):
        image = np.random.randint(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f'images/{i}.jpg')
        label = np.random.randint(0, 151, (height, width), np.uint8)
        Image.fromarray(label).save(tmp_path / f'labels/{i}.png')

    cfg = tools.read_config(
        'segmentation/semfpn_nano_shapes.py',
        ['model.decode_head.num_classes=150', 'model.data_preprocessor.size=None'],
        str(tmp_path / 'work'),
    )
    cfg.model.data_preprocessor.test_cfg = dict(size_divisor=32)
    cfg.test_dataloader.dataset = dict(
        type='ADE20KDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        pipeline=cfg.test_dataloader.dataset.pipeline,
    )
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.experiment_name = tmp_path.name
    return cfg


@pytest.mark.parametrize('tta', [False, True])
@pytest.mark.slow
def test_what_the_tool_leaves(segmentor, tmp_path, tta, written):
    cfg, checkpoint = segmentor, tmp_path / 'x.pth'
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), checkpoint)
    kept, shown = tmp_path / 'kept', tmp_path / 'shown'
    tools.test_config(cfg, str(checkpoint), out=str(kept), show_dir=str(shown), tta=tta)
    runner = tools.build_runner(cfg)
    predictions, right = {}, {}

    def remember(runner, batch_idx, data_batch=None, outputs=None):
        for sample in outputs:
            name, prediction = sample.img_path[-5], sample.pred_sem_seg.data.squeeze().numpy()
            truth = sample.gt_sem_seg.data.squeeze().numpy()
            predictions[name] = prediction
            right[name] = (prediction == truth)[truth < 150].mean()

    runner.hooks[0].after_test_iter = remember
    metrics = runner.test()
    assert 0 <= metrics['mIoU'] < 10
    assert sorted(path.name for path in kept.iterdir()) == ['0.png', '1.png']
    for name, prediction in predictions.items():
        with Image.open(kept / f'{name}.png') as image:
            assert image.mode == 'L'
            assert (np.asarray(image) == prediction + 1).all()  # 1 to 150, as ADE20K counts
    assert sorted(path.name for path in shown.iterdir()) == ['0.png', '1.png']
    texts = [text for text, _ in written]
    assert texts.count('ground truth') == texts.count('not labelled') == 2
    for share in right.values():
        assert f'prediction: {100 * share:.1f} % of the labelled pixels are right' in texts
    with Image.open(shown / '0.png') as image:
        assert image.size[0] > 1000
    (log,) = (tmp_path / 'work').rglob('*.log')
    assert re.search(r'\| +wall +\| +[\d.]+ +\|', log.read_text())  # the table of all classes


@pytest.mark.slow
def test_a_submission_needs_no_labels(segmentor, tmp_path):
    cfg, checkpoint = segmentor, tmp_path / 'x.pth'
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), checkpoint)
    shutil.rmtree(tmp_path / 'labels')
    (tmp_path / 'images' / 'deep').mkdir()
    (tmp_path / 'images' / '1.jpg').rename(tmp_path / 'images' / 'deep' / '1.jpg')
    kept, shown = tmp_path / 'kept', tmp_path / 'shown'
    with pytest.raises(tools.UsageError, match='lacks labels'):
        tools.test_config(copy.deepcopy(cfg), str(checkpoint), out=str(kept))
    cfg.test_evaluator.format_only = True
    tools.test_config(cfg, str(checkpoint), out=str(kept), show_dir=str(shown))
    tools.run(tools.build_runner(cfg), 'test')
    for name, size in (('0.png', (60, 40)), ('1.png', (32, 33))):
        with Image.open(kept / name) as image:
            assert image.size == size
    assert sorted(path.relative_to(shown).as_posix() for path in shown.rglob('*.png')) == [
        '0.png', 'deep/1.png',
    ]  # fmt: skip


@pytest.mark.slow
def test_pictures_of_one_name_in_the_folders_of_classes(tmp_path):
    pytest.importorskip('mmpretrain')
    ensure_shapes(tmp_path / 'data', 'folder', train=5, val=5, size=40)
    for picture in sorted((tmp_path / 'data' / 'val').glob('*/*')):
        picture.rename(picture.with_name('same.png'))
    cfg = tools.read_config('classification/ffnet_nano_shapes.py', [], str(tmp_path / 'work'))
    cfg.test_dataloader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='CustomDataset',
            data_root=str(tmp_path / 'data'),
            data_prefix='val',
            pipeline=cfg.test_dataloader.dataset.pipeline,
        ),
    )
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.experiment_name = tmp_path.name
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'x.pth')
    shown = tmp_path / 'shown'
    tools.test_config(cfg, str(tmp_path / 'x.pth'), show_dir=str(shown))
    tools.run(tools.build_runner(cfg), 'test')
    names = [f'{name}_same.png_0.png' for name in CLASSES_OF_SHAPES]
    assert sorted(path.name for path in shown.iterdir()) == sorted(names)
