"""Testing a segmentor: what is kept, painted and printed."""

import copy
import re
import shutil

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmffnet.datasets import CLASSES as CLASSES_OF_SHAPES
from mmffnet.datasets import ensure_shapes
from mmffnet.engine import runner as tools
from mmffnet.visualization import draw_segmentation

PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
CLASSES = ('wall', 'floor', 'bed')
SIZE = (40, 60)


def draw(**maps):
    image = np.full((*SIZE, 3), 90, np.uint8)
    maps = {title.replace('_', ' '): np.resize(np.array(m), SIZE) for title, m in maps.items()}
    return draw_segmentation(image, maps, CLASSES, PALETTE)


def legend(figure):
    (found,) = figure.legends
    names = [text.get_text() for text in found.get_texts()]
    colours = [to_rgb(patch.get_facecolor()) for patch in found.get_patches()]
    return dict(zip(names, colours, strict=True))


def test_panels_and_legend():
    half = np.repeat([0, 2], 30)
    figure = draw(ground_truth=np.where(half, 255, half), prediction=half)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:2] == ['picture', 'ground truth']
    assert titles[2] == 'prediction: 100.0 % of the labelled pixels are right'
    found = legend(figure)
    assert list(found) == ['wall', 'bed', 'not labelled']  # the largest first, and none else
    assert found['bed'] == pytest.approx((0, 0, 200 / 255))
    truth, painted = (np.asarray(ax.images[0].get_array()) for ax in figure.axes[1:])
    grey = 0.3 * 90 / 255
    assert painted[0, 0] == pytest.approx([0.7 * 200 / 255 + grey, grey, grey])
    assert painted[0, -1] == pytest.approx([grey, grey, 0.7 * 200 / 255 + grey])
    assert truth[0, -1] == pytest.approx([0.7 + grey] * 3)
    # names stand in their regions
    places = {text.get_text(): text.get_position() for text in figure.axes[2].texts}
    assert places.keys() == {'wall', 'bed'}
    assert places['wall'][0] < 30 < places['bed'][0]


def test_prediction_alone_and_names_of_small_regions():
    label = np.zeros(SIZE, int)
    label[3:5, 3:6] = 1
    figure = draw(prediction=label)
    assert [ax.get_title() for ax in figure.axes] == ['picture', 'prediction']
    assert list(legend(figure)) == ['wall', 'floor']
    assert [text.get_text() for text in figure.axes[1].texts] == ['wall']
    share = draw(ground_truth=[0, 0, 1, 255], prediction=[0, 1, 1, 1]).axes[2].get_title()
    assert share == 'prediction: 66.7 % of the labelled pixels are right'


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
def test_what_the_tool_leaves(segmentor, tmp_path, tta):
    cfg, checkpoint = segmentor, tmp_path / 'x.pth'
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), checkpoint)
    kept, shown = tmp_path / 'kept', tmp_path / 'shown'
    tools.test_config(cfg, str(checkpoint), out=str(kept), show_dir=str(shown), tta=tta)
    runner = tools.build_runner(cfg)
    predictions = {}

    def remember(runner, batch_idx, data_batch=None, outputs=None):
        for sample in outputs:
            predictions[sample.img_path[-5]] = sample.pred_sem_seg.data.squeeze().numpy()

    runner.hooks[0].after_test_iter = remember
    metrics = runner.test()
    assert 0 <= metrics['mIoU'] < 10
    assert sorted(path.name for path in kept.iterdir()) == ['0.png', '1.png']
    for name, prediction in predictions.items():
        with Image.open(kept / f'{name}.png') as image:
            assert image.mode == 'L'
            assert (np.asarray(image) == prediction + 1).all()  # 1 to 150, as ADE20K counts
    assert sorted(path.name for path in shown.iterdir()) == ['0.png', '1.png']
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
