"""The classification configs on ImageNet: the official recipe in numbers, a step, a prediction."""

import ast
import math
import re
import shutil
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
import pages
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    DATASETS,
    HOOKS,
    MODELS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    DefaultScope,
)
from torch import nn

import mmffnet
from mmffnet import FFNet, FFNetSeg
from mmffnet.datasets import ensure_shapes
from mmffnet.engine import runner
from mmffnet.errors import UsageError
from mmffnet_cli.paths import config_names

pytest.importorskip('mmpretrain')
from mmpretrain.structures import DataSample

CONFIGS = [n for n in config_names() if re.fullmatch(r'classification/\w+_in1k\.py', n)]
FFNETS = [f'ffnet{i}' for i in (1, 2, 3, 4)]
#: Drop path rate and the first alpha of mixup, from the official commands; 4 has none distilled
OFFICIAL = {
    'ffnet1_in1k': (0.1, 0.2),
    'ffnet2_in1k': (0.15, 0.2),
    'ffnet3_in1k': (0.35, 0.8),
    'ffnet4_in1k': (0.4, 0.8),
    'ffnet1_distilled_in1k': (0.02, 0.8),
    'ffnet2_distilled_in1k': (0.08, 0.8),
    'ffnet3_distilled_in1k': (0.2, 0.8),
    'ffnet3_384_in1k': (0.4, 0.8),
    'ffnet4_384_in1k': (0.5, 0.8),
}


@cache
def _read(name):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return Config.fromfile(mmffnet.config_path(name))


def read(name):
    name = name if '/' in name else f'classification/{name}.py'
    return Config(_read(name).to_dict())


def build(cfg, device='cpu'):
    """The model as a runner builds it."""
    model = dict(cfg.model, data_preprocessor=cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device(device):
        return MODELS.build(model)


@cache
def meta(name):
    """The whole network, without its memory."""
    return build(read(name), 'meta')


def optimizer(cfg, model):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return build_optim_wrapper(model, cfg.optim_wrapper).optimizer


def test_what_is_there():
    others = ['ffnet3_384', 'ffnet4_384', 'ffnet_nano', 'ffnetseg']
    names = [*FFNETS, *[f'{n}_distilled' for n in FFNETS], *others]
    assert sorted(CONFIGS) == sorted(f'classification/{n}_in1k.py' for n in names)


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.slow
def test_contract(name):
    text = Path(mmffnet.config_path(name)).read_text()
    assert len(text.splitlines()) <= 40
    arch = 'nano' if '_nano_' in name else Path(name).name.partition('_')[0]
    label = dict(ffnetseg='FFNetSeg', nano='FFNet nano').get(arch, arch.replace('ffnet', 'FFNet-'))
    assert label in ast.get_docstring(ast.parse(text))
    cfg = read(name)
    assert cfg.custom_imports == dict(imports=['mmffnet'], allow_failed_imports=False)
    assert cfg.default_scope == 'mmpretrain'
    model = meta(name)
    assert type(model.backbone) is (FFNetSeg if arch == 'ffnetseg' else FFNet)
    assert model.backbone.arch == arch
    scores = model(torch.zeros(1, 3, 64, 64, device='meta'))
    assert scores.shape == (1, 1000)
    with pytest.raises(UsageError, match="the data folder 'data/imagenet' does not exist"):
        runner.train_config(cfg)


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.slow
def test_trains_and_predicts(name, tmp_path):
    cfg = read(name)
    backbone = cfg.model.backbone
    classes = dict(FFNet=FFNet, FFNetSeg=FFNetSeg)[backbone.type]
    arch = backbone.get('arch', 'ffnetseg')
    settings = dict(classes.arch_settings[arch], depths=(1, 1, 1, 1))
    backbone.arch = settings
    if 'teacher' in cfg.model:
        tiny = dict(type='FFNet', arch='nano', out_indices=3, out_norm_cfg=dict(type='BN'))
        cfg.model.teacher = dict(
            type='ImageClassifier',
            backbone=tiny,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=256),
        )
        cfg.model.teacher_checkpoint = str(tmp_path / 'teacher.pth')
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            teacher = MODELS.build(cfg.model.teacher)
        torch.save(teacher.state_dict(), cfg.model.teacher_checkpoint)
    model = build(cfg).train()
    model.init_weights()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    grads = {}
    for key, param in model.named_parameters():
        param.register_hook(lambda grad, key=key: grads.setdefault(key, grad))
    samples = [DataSample().set_gt_label(label) for label in (3, 999)]
    pictures = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in samples]
    losses = model.train_step(dict(inputs=pictures, data_samples=samples), wrapper)
    assert losses and all(math.isfinite(float(value.detach())) for value in losses.values())
    assert set(grads) == {key for key, _ in model.named_parameters()}
    assert all(grad.isfinite().all() for grad in grads.values())
    (result, _) = model.eval().test_step(dict(inputs=pictures, data_samples=samples))
    assert float(result.pred_score.sum()) == pytest.approx(1, abs=1e-5)


# ------------------------------------------------------------------ the official recipe


def rates(cfg):
    """The learning rate of each epoch, stepped as a runner does."""
    (param,) = params = [nn.Parameter(torch.zeros(1))]
    adamw = torch.optim.AdamW(params, lr=cfg.optim_wrapper.optimizer.lr)
    param.grad = torch.zeros(1)
    schedulers = [
        PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=adamw))
        for scheduler in cfg.param_scheduler
    ]
    assert all(scheduler.by_epoch for scheduler in schedulers)
    found = []
    for _ in range(cfg.train_cfg.max_epochs):
        found.append(adamw.param_groups[0]['lr'])
        adamw.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


@pytest.mark.parametrize('name', [n for n in CONFIGS if '384' not in n])
def test_learning_rate_by_epoch(name):
    found = rates(read(name))
    assert len(found) == 320
    expected = {0: 1e-6, 1: 2.008e-4, 4: 8.002e-4, 5: 9.993e-4, 150: 5.05e-4}
    assert {epoch: found[epoch] for epoch in expected} == pytest.approx(expected, rel=5e-5)
    assert found[300:] == pytest.approx([1e-5] * 20, rel=1e-9)
    assert found[299] > 1e-5 and found[5:301] == sorted(found[5:301], reverse=True)


@pytest.mark.parametrize('name', ['ffnet3_384_in1k', 'ffnet4_384_in1k'])
def test_fine_tuning(name):
    cfg = read(name)
    assert rates(cfg) == [5e-6] * 30
    assert cfg.optim_wrapper.optimizer.weight_decay == 1e-8
    assert cfg.train_dataloader.batch_size == 64 and cfg.auto_scale_lr.base_batch_size == 512
    transforms = {t.type: t for t in cfg.train_dataloader.dataset.pipeline}
    assert transforms.pop('RandomResizedCrop').scale == 384
    others = {t.type: t for t in read('ffnet3_in1k').train_dataloader.dataset.pipeline}
    assert others.pop('RandomResizedCrop').scale == 256
    assert transforms == others
    expected = dict(ffnet3='mmffnet://ffnet3', ffnet4='work_dirs/ffnet4_in1k/epoch_320.pth')
    assert cfg.load_from == expected[name[:6]]


@pytest.mark.parametrize('name', CONFIGS)
def test_optimizer_and_its_groups(name):
    cfg = read(name)
    model = meta(name)
    found = optimizer(cfg, model)
    defaults = found.defaults
    assert type(found) is torch.optim.AdamW
    assert (defaults['betas'], defaults['eps']) == ((0.9, 0.999), 1e-8)
    if '384' not in name:
        assert (defaults['lr'], defaults['weight_decay']) == (1e-3, 0.05)
        assert cfg.train_dataloader.batch_size == 128
        assert cfg.auto_scale_lr.base_batch_size == 1024
    assert 'clip_grad' not in cfg.optim_wrapper and not cfg.auto_scale_lr.get('enable')
    decay = {id(p): g['weight_decay'] for g in found.param_groups for p in g['params']}
    assert {g['lr'] for g in found.param_groups} == {defaults['lr']}
    expected = {
        key: 0 if param.ndim <= 1 or key.endswith('.bias') else defaults['weight_decay']
        for key, param in model.named_parameters()
    }
    assert {key: decay[id(param)] for key, param in model.named_parameters()} == expected
    scales = [value for key, value in expected.items() if key.endswith('scale')]
    without = re.search('ffnet1|ffnet2|nano', name)
    assert bool(scales) == (without is None) and all(scales)


@pytest.mark.parametrize('name', OFFICIAL)
def test_settings_of_the_variants(name):
    cfg = read(name)
    drop_path, alpha = OFFICIAL[name]
    model = meta(f'classification/{name}.py')
    probs = [getattr(b.drop_path, 'drop_prob', 0) for s in model.backbone.stages for b in s.blocks]
    assert probs[0] == 0 and probs[-1] == pytest.approx(drop_path)
    mixup, cutmix = model.data_preprocessor.batch_augments.augments
    assert (type(mixup).__name__, mixup.alpha) == ('Mixup', alpha)
    assert (type(cutmix).__name__, cutmix.alpha, cutmix.correct_lam) == ('CutMix', 1.0, True)
    assert cfg.model.backbone.get('layer_scale_init_value') == (1e-6 if name[5] in '34' else None)
    crop = cfg.test_dataloader.dataset.pipeline
    resized = 384 if '384' in name else 284 if name[5] in '12' else 269
    assert (crop[1].scale, crop[2].crop_size) == (resized, 384 if '384' in name else 256)
    if 'distilled' in name:
        assert cfg.model.teacher == dict(type='TimmClassifier', model_name='regnety_160')
        assert cfg.model.teacher_checkpoint.endswith('deit/regnety_160-a5fe301d.pth')
        assert (model.distillation, model.alpha, model.temperature) == ('hard', 0.5, 1)


@pytest.mark.parametrize(('name', 'alpha'), [('ffnet1_in1k', 0.2), ('ffnet3_in1k', 0.8)])
def test_mixing_is_the_official_one(name, alpha):
    """Every batch is mixed, half of them by cutmix, in shares from Beta(alpha, alpha)."""
    augment = meta(f'classification/{name}.py').data_preprocessor.batch_augments
    # a class of its own for each of two pictures, whose pixels tell where they come from
    pictures = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 32, 32)
    shares = dict(mixup=[], cutmix=[])
    for _ in range(2000):
        mixed, scores = augment(pictures.clone(), torch.eye(2))
        assert scores.sum(1).tolist() == pytest.approx([1, 1])
        assert mixed.mean((1, 2, 3)).tolist() == pytest.approx(scores[:, 1].tolist(), abs=1e-5)
        share = float(scores[0, 0])
        if share == 1:  # mixed with itself, which happens in small batches
            continue
        flat = bool((mixed == mixed[:, :, :1, :1]).all())
        shares['mixup' if flat else 'cutmix'].append(share)
    found = np.array(shares['mixup'])
    assert found.mean() == pytest.approx(0.5, abs=0.04)
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.02)
    ratio = len(found) / sum(map(len, shares.values()))
    assert ratio == pytest.approx(0.5, abs=0.06)


def test_targets_are_smoothed_inside_of_the_mixture():
    """As in timm: cross entropy to lam * smooth(one) + (1 - lam) * smooth(other)."""
    head = meta('classification/ffnet1_in1k.py').head
    logits = torch.randn(4, 1000, dtype=torch.float64)
    labels, others, lam = torch.tensor([1, 5, 999, 0]), torch.tensor([0, 999, 5, 1]), 0.3
    one_hot = [nn.functional.one_hot(x, 1000).double() for x in (labels, others)]
    off = 0.1 / 1000
    smooth = [x * (1 - 0.1) + off for x in one_hot]
    target = lam * smooth[0] + (1 - lam) * smooth[1]
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    samples = [
        DataSample().set_gt_score(score) for score in lam * one_hot[0] + (1 - lam) * one_hot[1]
    ]
    found = head._get_loss(logits, samples)['loss']
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_augmentation():
    cfg = read('ffnet1_in1k')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        steps = [TRANSFORMS.build(t) for t in cfg.train_dataloader.dataset.pipeline]
    names = [type(step).__name__ for step in steps]
    order = ['RandomResizedCrop', 'RandomFlip', 'RandAugment', 'RandomErasing']
    assert names == ['LoadImageFromFile', *order, 'PackInputs']
    crop, flip, rand, erase = steps[1:-1]
    assert (crop.scale, crop.backend, crop.interpolation) == ((256, 256), 'pillow', 'bicubic')
    assert crop.crop_ratio_range == (0.08, 1) and crop.aspect_ratio_range == (3 / 4, 4 / 3)
    assert (flip.prob, flip.direction) == (0.5, 'horizontal')
    assert (rand.num_policies, rand.magnitude_level, rand.magnitude_std) == (2, 9, 0.5)
    assert len(rand.transforms) == 15 and all(t.prob == 0.5 for t in rand.transforms)
    assert rand.hparams == dict(pad_val=[104, 116, 124], interpolation='bicubic')
    assert (erase.erase_prob, erase.mode) == (0.25, 'rand')
    assert (erase.min_area_ratio, erase.max_area_ratio) == (0.02, 1 / 3)
    assert erase.aspect_range == pytest.approx((0.3, 1 / 0.3))


def test_colour_jitter_is_off_in_the_official_run_too():
    """timm drops the 0.4 of the official defaults where RandAugment is on."""
    timm = pytest.importorskip('timm')
    transform = timm.data.create_transform(
        256,
        is_training=True,
        color_jitter=0.4,
        auto_augment='rand-m9-mstd0.5-inc1',
        interpolation='bicubic',
        re_prob=0.25,
        re_mode='pixel',
    )
    names = [type(step).__name__ for step in transform.transforms]
    assert 'RandAugment' in names and not any('Jitter' in name for name in names)


def test_moving_average_and_randomness():
    cfg = read('ffnet1_in1k')
    ema, average = cfg.custom_hooks
    assert ema.type == 'mmffnet.RawAndEMAHook'
    hook = HOOKS.build({key: value for key, value in ema.items() if key != 'priority'})
    hook.before_run(type('Runner', (), dict(model=nn.BatchNorm1d(2))))
    model, averaged = hook.src_model, hook.ema_model
    averaged.update_parameters(model)  # the first one copies
    model.weight.data += 1
    model.running_mean += 1
    averaged.update_parameters(model)
    assert averaged.module.weight.tolist() == pytest.approx([1.0005, 1.0005])
    assert averaged.module.running_mean.tolist() == pytest.approx([0.0005, 0.0005])
    assert average == dict(type='mmffnet.AverageBuffersHook')
    assert (cfg.randomness.seed, cfg.randomness.diff_rank_seed) == (42, True)


# ------------------------------------------------------------------ what the documentation shows


block = partial(pages.block, 'docs/classification.md')


@pytest.mark.slow
def test_own_pictures_as_documented(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ensure_shapes(tmp_path / 'data' / 'pets', 'folder', train=9, val=5, size=40)
    for split in ('train', 'val'):
        for name, pet in (('box', 'cat'), ('disc', 'dog'), ('ring', 'fish')):
            (tmp_path / f'data/pets/{split}/{name}').rename(tmp_path / f'data/pets/{split}/{pet}')
        for name in ('star', 'triangle'):
            shutil.rmtree(tmp_path / 'data' / 'pets' / split / name)
    Path('pets.py').write_text(block('own'))
    options = ['train_dataloader.batch_size=2', 'model.backbone.init_cfg=None']
    options += ['model.backbone.arch=nano', 'model.head.in_channels=256']
    for part in ('train', 'val', 'test'):
        options.append(f'{part}_dataloader.num_workers=0')
    cfg = runner.read_config('pets.py', options)
    # an average of 1 / 0.0005 iterations would be that of the first ones
    assert not any('EMA' in hook.type for hook in cfg.custom_hooks)
    assert rates(cfg)[2] == pytest.approx(1e-4, rel=0.02) and len(rates(cfg)) == 30
    built = runner.build_runner(runner.train_config(cfg))
    loader = built.build_dataloader(cfg.train_dataloader)
    assert loader.dataset.metainfo['classes'] == ['cat', 'dog', 'fish']
    batch = next(iter(loader))
    assert [tuple(picture.shape) for picture in batch['inputs']] == [(3, 256, 256)] * 2
    losses = built.model.train_step(batch, built.build_optim_wrapper(cfg.optim_wrapper))
    assert math.isfinite(float(losses['loss'].detach()))
    assert 0 <= built.test()['accuracy/top1'] <= 100


def test_timm_as_documented(capsys):
    pytest.importorskip('timm')
    exec(block('timm'), {})  # noqa: S102 - our own documentation
    assert capsys.readouterr().out == '[88, 176, 352, 704]\n'


def test_lmdb_as_documented(tmp_path, monkeypatch):
    pytest.importorskip('lmdb')
    monkeypatch.chdir(tmp_path)
    folder = Path('data/imagenet/train/n01440764')
    folder.mkdir(parents=True)
    Path('data/imagenet/meta').mkdir()
    pixels = np.random.randint(0, 256, (40, 50, 3), np.uint8)
    cv2.imwrite(str(folder / 'a.JPEG'), pixels)
    Path('data/imagenet/meta/train.txt').write_text('n01440764/a.JPEG 0\n')
    monkeypatch.setattr('sys.argv', ['script', 'data/imagenet/train', 'imagenet.lmdb'])
    exec(block('lmdb'), {})  # noqa: S102 - our own documentation
    shutil.rmtree(folder)
    backend = 'train_dataloader.dataset.pipeline.0.backend_args'
    options = [f'{backend}.backend=lmdb', f'{backend}.db_path=imagenet.lmdb']
    cfg = runner.read_config('classification/ffnet2_in1k.py', options)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    (sample,) = dataset
    assert sample['inputs'].shape == (3, 256, 256)
    assert sample['data_samples'].gt_label.tolist() == [0]
