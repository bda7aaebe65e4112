"""The configs of PoolFormer, CAS-ViT and TransNeXt: they fit, train, and take official files."""

import re
from pathlib import Path

import cv2
import families
import numpy as np
import pytest
import torch
import yaml
from family_configs import (
    ROOT,
    TASKS,
    batch,
    build,
    entry,
    meta,
    metadata,
    names_of,
    read,
    scope_of,
    small,
)
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from torch.nn.modules.batchnorm import _BatchNorm

import mmffnet
from mmffnet.benchmark.flops import count
from mmffnet.checkpoint import OFFICIAL_WEIGHTS, convert_names, load_strict
from mmffnet.models import CASViT, PoolFormer, TransNeXt

FAMILIES = dict(poolformer=PoolFormer, casvit=CASViT, transnext=TransNeXt)
CONFIGS = [name for family in FAMILIES for name in names_of(family)]
DETECTORS = [name for name in CONFIGS if name.startswith('detection/')]
SEGMENTORS = [n for n in CONFIGS if n.startswith('segmentation/') and '_ms' not in n]
CLASSIFIERS = [name for name in CONFIGS if name.startswith('classification/')]
#: The smallest network in each system
SMALLEST = [
    n for n in CONFIGS if re.search(r'-(s12|xs|micro)_(?!384)|/(mask|uper).*-tiny_(?!ms)', n)
]


def family_of(name):
    return name.split('/')[1]


def arch_of(name):
    return re.search(r'(?:poolformer|casvit|transnext)-([\w-]+?)_', name)[1]


def test_what_is_there():
    published = {
        'detection/poolformer/{}_poolformer-{}_coco': ('maskrcnn retinanet', 's12 s24 s36'),
        'detection/casvit/{}_casvit-{}_coco': ('maskrcnn retinanet', 'xs s m t'),
        'detection/transnext/{}_transnext-{}_coco': ('maskrcnn', 'tiny small base'),
        'segmentation/poolformer/{}_poolformer-{}_ade20k': ('semfpn', 's12 s24 s36 m36 m48'),
        'segmentation/casvit/{}_casvit-{}_ade20k': ('semfpn', 'xs s m t'),
        'segmentation/transnext/{}_transnext-{}_ade20k': (
            'upernet',
            'tiny small base tiny_ms small_ms base_ms '
            'tiny_ms-extrapolate small_ms-extrapolate base_ms-extrapolate',
        ),
        'classification/poolformer/{}-{}_in1k': ('poolformer', 's12 s24 s36 m36 m48'),
        'classification/casvit/{}-{}_in1k': (
            'casvit',
            'xs s m t xs_384 s_384 m_384 t_384',
        ),
        'classification/transnext/{}-{}_in1k': (
            'transnext',
            'micro tiny small base micro-AAAA small_384 base_384',
        ),
    }
    expected = [
        f'{template.format(system, arch)}.py'
        for template, (systems, archs) in published.items()
        for system in systems.split()
        for arch in archs.split()
    ]
    assert sorted(CONFIGS) == sorted(expected)
    assert len(SMALLEST) == 11


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.slow
def test_contract(name):
    assert len(Path(mmffnet.config_path(name)).read_text().splitlines()) <= 60
    cfg = read(name)
    assert cfg.default_scope == scope_of(name)
    assert cfg.custom_imports == dict(imports=['mmffnet'], allow_failed_imports=False)
    preprocessor = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    assert preprocessor.mean == [123.675, 116.28, 103.53]
    assert preprocessor.std == [58.395, 57.12, 57.375]
    assert preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')
    model = meta(name)
    backbone = model.backbone
    assert type(backbone) is FAMILIES[family_of(name)] and backbone.arch == arch_of(name)
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    images = 8 * cfg.train_dataloader.batch_size * accumulated
    assert cfg.auto_scale_lr.base_batch_size == images
    if name in CLASSIFIERS:
        assert model(torch.zeros(1, 3, 64, 64, device='meta')).shape == (1, 1000)
        return
    init = cfg.model.backbone.init_cfg
    assert init == dict(
        type='Pretrained', checkpoint=f'mmffnet://{family_of(name)}-{arch_of(name)}'
    )
    assert init.checkpoint.removeprefix('mmffnet://') in OFFICIAL_WEIGHTS
    if model.with_neck:
        assert tuple(cfg.model.neck.in_channels) == backbone.out_channels
    else:
        assert tuple(model.decode_head.in_channels) == backbone.out_channels
        assert model.auxiliary_head.in_channels == backbone.out_channels[2]
    if name.startswith('segmentation/'):
        assert model.decode_head.num_classes == 150
        assert cfg.model.data_preprocessor.size == (512, 512)


@pytest.mark.parametrize('name', CLASSIFIERS)
@pytest.mark.slow
def test_size_of_the_classifiers(name):
    model, known = meta(name), metadata(name)
    side = known['Input Size']
    assert side == (384 if '_384_' in name else 256 if 'AAAA' in name else 224)
    crop = read(name).test_dataloader.dataset.pipeline[-2]
    assert crop == (
        dict(type='CenterCrop', crop_size=side)
        if side < 384
        else dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic')
    )
    cost = count(model, (side, side))
    assert (cost.parameters, cost.macs) == (known['Parameters'], known['FLOPs'])


@pytest.mark.parametrize('name', [n for n in [*DETECTORS, *SEGMENTORS] if 'transnext' in n])
def test_published_size(name):
    """TransNeXt's detectors and segmentors have the published number of parameters."""
    published = metadata(name)['Parameters'] / 1e6
    parameters = sum(p.numel() for p in meta(name).parameters()) / 1e6
    assert parameters == pytest.approx(published, abs=0.5 if name in SEGMENTORS else 0.06)


@pytest.mark.parametrize('name', SMALLEST)
@pytest.mark.slow
def test_trains(name):
    cfg = small(name)
    model = build(name, cfg, 'cpu')
    model.init_weights()
    model.train()
    with DefaultScope.overwrite_default_scope(scope_of(name)):
        optim = build_optim_wrapper(model, cfg.optim_wrapper)
        optim._accumulative_counts = 1
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        grads = {}
        for key, param in model.named_parameters():
            param.register_hook(lambda grad, key=key: grads.setdefault(key, grad))
        losses = model.train_step(batch(name), optim)
    assert torch.isfinite(losses['loss'])
    # what gets no gradient is an error in distributed training
    assert set(grads) == set(before)
    assert all(grad.isfinite().all() for grad in grads.values())
    after = dict(model.named_parameters())
    assert sum(not torch.equal(v, after[k]) for k, v in before.items()) > 0.9 * len(before)


# ------------------------------------------------------------------ recipes


def groups(name):
    """Learning rate and weight decay of every parameter, and the parameter."""
    cfg = read(name)
    model = meta(name)
    with DefaultScope.overwrite_default_scope(scope_of(name)):
        optim = build_optim_wrapper(model, cfg.optim_wrapper)
    found = {id(p): (g['lr'], g['weight_decay']) for g in optim.param_groups for p in g['params']}
    return {key: (found[id(param)], param) for key, param in model.named_parameters()}


@pytest.mark.parametrize('name', [n for n in [*DETECTORS, *SEGMENTORS] if 'transnext' not in n])
def test_one_rate_and_one_decay(name):
    """Norms and biases are decayed as well."""
    rate = 1e-4 if 'retinanet_poolformer' in name else 2e-4
    assert {group for group, _ in groups(name).values()} == {(rate, 1e-4)}
    cfg = read(name)
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    batch_size = 2 if 'detection/poolformer' in name else 4
    assert cfg.train_dataloader.batch_size == batch_size
    if name in DETECTORS:
        assert cfg.train_cfg.max_epochs == 12 and cfg.param_scheduler[1].milestones == [8, 11]
    else:
        assert cfg.train_cfg.max_iters == 40000
        (schedule,) = cfg.param_scheduler
        assert (schedule.type, schedule.power, schedule.eta_min) == ('PolyLR', 0.9, 0)


@pytest.mark.parametrize('name', [n for n in [*DETECTORS, *SEGMENTORS] if 'transnext' in n])
@pytest.mark.slow
def test_weight_decay_of_transnext(name):
    """The official rule goes by parts of official names, in the whole model."""
    found = groups(name)
    official = convert_names({k: p for k, (_, p) in found.items()}, 'official')
    by_id = {id(p): key for key, p in official.items()}
    undecayed = ('query_embedding', 'relative_pos_bias_local', 'cpb', 'temperature', 'norm')
    rate = 6e-5 if name in SEGMENTORS else 1e-4
    for group, param in found.values():
        key = by_id[id(param)]
        assert group == (rate, 0.0 if any(part in key for part in undecayed) else 0.05), key
    cfg = read(name)
    drop_path = dict(tiny=0.4, small=0.6, base=0.7)[arch_of(name)]
    assert cfg.model.backbone.drop_path_rate == drop_path
    if name in DETECTORS:
        assert (cfg.model.backbone.bias, cfg.model.backbone.img_size) == ('interpolate', 800)


@pytest.mark.parametrize('name', [n for n in CONFIGS if 'upernet_transnext' in n])
def test_scales_of_transnext(name, tmp_path):
    """One scale in windows, several of whole pictures: multiples of 512 pixels."""
    cfg = read(name)
    several = '_ms' in name
    (result,) = entry(name)['Results']
    assert [*result['Metrics']] == ['mIoU(ms+flip)' if several else 'mIoU']
    assert cfg.model.test_cfg.mode == ('whole' if several else 'slide')
    assert (cfg.model.backbone.bias == 'extrapolate') == ('extrapolate' in name)
    assert cfg.model.backbone.img_size == (800 if name.endswith('_ms_ade20k.py') else 512)
    path = str(tmp_path / 'picture.png')
    cv2.imwrite(path, np.ones((90, 120), dtype=np.uint8))
    data = dict(img_path=path, seg_map_path=path, reduce_zero_label=True, seg_fields=[])
    with DefaultScope.overwrite_default_scope('mmseg'):
        found = Compose(cfg.tta_pipeline)(dict(data, label_map=None))
    sides = [tuple(picture.shape[1:]) for picture in found['inputs']]
    heights = (256, 384, 512, 640, 768, 896)
    assert sides == [(height, round(height * 4 / 3)) for height in heights for _ in range(2)]


@pytest.mark.parametrize('name', [n for n in CLASSIFIERS if '384' not in n])
@pytest.mark.slow
def test_recipe_of_the_classifiers(name):
    cfg = read(name)
    rate = 6e-3 if 'casvit' in name else 1e-3
    undecayed = ('query_embedding', 'relative_pos_bias_local', 'cpb', 'temperature')
    found = groups(name)
    names = FAMILIES[family_of(name)].official_names
    for key, (group, param) in found.items():
        official = names.to_official(key.removeprefix('backbone.'))
        vector = param.squeeze().ndim <= 1 if 'layer_scale' in official else param.ndim == 1
        none = vector or key.endswith('.bias') or any(part in official for part in undecayed)
        assert group == (rate, 0.0 if none else 0.05), key
    drop_path = dict(s36=0.2, m36=0.3, m48=0.4, micro=0.15, tiny=0.25, small=0.45, base=0.6)
    drop_path['micro-AAAA'] = 0.15
    assert cfg.model.backbone.drop_path_rate == drop_path.get(arch_of(name), 0.1)
    epochs = 310 if 'poolformer' in name else 300
    assert cfg.train_cfg.max_epochs == epochs
    assert (cfg.model.train_cfg is None) == ('casvit' in name)
    assert cfg.optim_wrapper.get('clip_grad') == (
        dict(max_norm=1.0) if 'transnext' in name else None
    )


@pytest.mark.parametrize('name', [n for n in CLASSIFIERS if 'casvit-xs' in n])
def test_rates_of_casvit(name):
    """The rate rises from 0 for 20 epochs of 10 steps here."""
    cfg = read(name)
    params = [torch.nn.Parameter(torch.zeros(1))]
    rate = cfg.optim_wrapper.optimizer.lr
    adamw = torch.optim.AdamW(params, lr=rate)
    schedulers = [
        PARAM_SCHEDULERS.get(s.pop('type')).build_iter_from_epoch(
            optimizer=adamw, epoch_length=10, **{k: v for k, v in s.items() if k[:7] != 'convert'}
        )
        for s in cfg.param_scheduler
    ]
    params[0].grad = torch.zeros(1)
    found = []
    for _ in range(10 * cfg.train_cfg.max_epochs):
        found.append(adamw.param_groups[0]['lr'])
        adamw.step()
        for scheduler in schedulers:
            scheduler.step()
    assert found[0] < 1e-5 * rate and found[100] == pytest.approx(rate / 2, rel=0.01)
    assert found[200] == pytest.approx(rate, rel=0.01)
    if '384' in name:
        assert found[200:] == pytest.approx([5e-5] * 100)
    else:
        assert found[1600] == pytest.approx(3e-3, rel=0.01)
        assert found[-1] == pytest.approx(1e-6, rel=0.2)


@pytest.mark.parametrize('name', [n for n in CLASSIFIERS if re.search('s12|m36|xs|micro|small', n)])
def test_pipelines_of_the_classifiers(name, tmp_path):
    cfg = read(name)
    side = metadata(name)['Input Size']
    path = str(tmp_path / 'picture.png')
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            pipeline = Compose(loader.dataset.pipeline)
            found = pipeline(dict(img_path=path, gt_label=3))
        assert tuple(found['inputs'].shape) == (3, side, side)
    erased = 'RandomErasing' in [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert erased == ('casvit' not in name)
    sampler = 'RepeatAugSampler' if 'transnext' in name else 'DefaultSampler'
    assert (cfg.train_dataloader.sampler.type, cfg.train_dataloader.sampler.shuffle) == (
        sampler,
        True,
    )


@pytest.mark.parametrize('name', [n for n in SMALLEST if 'casvit' in n and n not in CLASSIFIERS])
def test_casvit_keeps_its_statistics(name):
    """In detectors and segmentors all batch norms of the backbone learn, in eval mode."""
    cfg = small(name)
    model = build(name, cfg, 'cpu')
    model.init_weights()
    norms = {key: m for key, m in model.train().named_modules() if isinstance(m, _BatchNorm)}
    for key, norm in norms.items():
        assert norm.training == (not key.startswith('backbone.')), key
        assert norm.weight.requires_grad and norm.bias.requires_grad
    assert any(re.fullmatch(r'backbone\.norm\d', key) for key in norms)
    before = {k: b.clone() for k, b in model.backbone.named_buffers()}
    with DefaultScope.overwrite_default_scope(scope_of(name)):
        model.train_step(batch(name), build_optim_wrapper(model, cfg.optim_wrapper))
    assert all(torch.equal(b, before[k]) for k, b in model.backbone.named_buffers())


# ------------------------------------------------------------------ official checkpoints


def layer(key, *shape):
    return {f'{key}.weight': shape, f'{key}.bias': shape[:1]}


def conv_bn(key, *shape):
    norm = dict.fromkeys(('weight', 'bias', 'running_mean', 'running_var'), shape[:1])
    norm['num_batches_tracked'] = ()
    return {f'{key}.conv.weight': shape} | {f'{key}.bn.{k}': v for k, v in norm.items()}


def mmdet2_names(system, widths):
    """What a Mask R-CNN or RetinaNet of mmdet 2 holds besides the backbone."""
    names = {}
    for i, width in enumerate(widths):
        names |= layer(f'neck.lateral_convs.{i}.conv', 256, width, 1, 1)
    if system == 'retinanet':
        for i in range(5):
            width = widths[-1] if i == 3 else 256
            names |= layer(f'neck.fpn_convs.{i}.conv', 256, width, 3, 3)
        for i in range(4):
            names |= layer(f'bbox_head.cls_convs.{i}.conv', 256, 256, 3, 3)
            names |= layer(f'bbox_head.reg_convs.{i}.conv', 256, 256, 3, 3)
        names |= layer('bbox_head.retina_cls', 9 * 80, 256, 3, 3)
        return names | layer('bbox_head.retina_reg', 9 * 4, 256, 3, 3)
    for i in range(4):
        names |= layer(f'neck.fpn_convs.{i}.conv', 256, 256, 3, 3)
        names |= layer(f'roi_head.mask_head.convs.{i}.conv', 256, 256, 3, 3)
    names |= layer('rpn_head.rpn_conv', 256, 256, 3, 3)
    names |= layer('rpn_head.rpn_cls', 3, 256, 1, 1) | layer('rpn_head.rpn_reg', 12, 256, 1, 1)
    names |= layer('roi_head.bbox_head.shared_fcs.0', 1024, 256 * 7 * 7)
    names |= layer('roi_head.bbox_head.shared_fcs.1', 1024, 1024)
    names |= layer('roi_head.bbox_head.fc_cls', 81, 1024)
    names |= layer('roi_head.bbox_head.fc_reg', 4 * 80, 1024)
    names |= layer('roi_head.mask_head.upsample', 256, 256, 2, 2)
    return names | layer('roi_head.mask_head.conv_logits', 80, 256, 1, 1)


def mmseg0_names(system, widths):
    """What a Semantic FPN or UPerNet of mmseg 0.x on ADE20K holds besides the backbone."""
    names = {}
    if system == 'semfpn':
        for i, width in enumerate(widths):
            names |= layer(f'neck.lateral_convs.{i}.conv', 256, width, 1, 1)
            names |= layer(f'neck.fpn_convs.{i}.conv', 256, 256, 3, 3)
            for j in range(max(i, 1)):
                width = 256 if j == 0 else 128
                key = f'decode_head.scale_heads.{i}.{2 * j if i else 0}'
                names |= conv_bn(key, 128, width, 3, 3)
        return names | layer('decode_head.conv_seg', 150, 128, 1, 1)
    for i in range(4):
        names |= conv_bn(f'decode_head.psp_modules.{i}.1', 512, widths[3], 1, 1)
    for i in range(3):
        names |= conv_bn(f'decode_head.lateral_convs.{i}', 512, widths[i], 1, 1)
        names |= conv_bn(f'decode_head.fpn_convs.{i}', 512, 512, 3, 3)
    names |= conv_bn('decode_head.bottleneck', 512, widths[3] + 4 * 512, 3, 3)
    names |= conv_bn('decode_head.fpn_bottleneck', 512, 4 * 512, 3, 3)
    names |= layer('decode_head.conv_seg', 150, 512, 1, 1)
    names |= conv_bn('auxiliary_head.convs.0', 256, widths[2], 3, 3)
    return names | layer('auxiliary_head.conv_seg', 150, 256, 1, 1)


def official_state(model):
    """A state with the official names, and layer scales as the vectors that they are there."""
    state = convert_names(model.state_dict(), 'official')
    return {k: v.flatten() if 'layer_scale' in k else v for k, v in state.items()}


@pytest.mark.parametrize('name', [*DETECTORS, *SEGMENTORS])
@pytest.mark.slow
def test_names_of_the_official_checkpoints(name):
    model = meta(name)
    state = official_state(model)
    system = name.split('/')[2].partition('_')[0]
    others = mmdet2_names if name in DETECTORS else mmseg0_names
    found = {k: tuple(v.shape) for k, v in state.items() if not k.startswith('backbone.')}
    assert found == others(system, model.backbone.out_channels)
    start = FAMILIES[family_of(name)].official_names.official_start
    assert any(key.startswith(f'backbone.{start}') for key in state)


@pytest.mark.parametrize(
    ('name', 'recorded'),
    [
        ('detection/poolformer/maskrcnn_poolformer-s12_coco.py', 'poolformer_s12'),
        ('detection/casvit/maskrcnn_casvit-xs_coco.py', 'rcvit_xs'),
    ],
)
def test_names_of_the_official_backbone(name, recorded, fixture_dir):
    state = official_state(meta(name).backbone)
    keys = {key: tuple(shape) for key, shape in families.full_keys(fixture_dir, recorded)}
    assert {key: tuple(value.shape) for key, value in state.items()} == keys


@pytest.mark.parametrize('name', [n for n in SMALLEST if n not in CLASSIFIERS])
@pytest.mark.slow
def test_official_checkpoint_loads_strictly(name):
    cfg = small(name)
    source, model = (build(name, cfg, 'cpu') for _ in range(2))
    with torch.no_grad():
        for tensor in [*source.parameters(), *source.buffers()]:
            if tensor.is_floating_point():
                tensor.normal_()
    state = official_state(source)
    left_over = []
    if 'retinanet_casvit' in name:  # whose official backbone has a norm that nobody looks at
        left_over = ['backbone.norm0.weight', 'backbone.norm0.bias']
        state |= dict.fromkeys(left_over, torch.zeros(48))
    assert load_strict(model, dict(state_dict=state, meta={}), 'the file') == left_over
    loaded = model.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in source.state_dict().items())


@pytest.mark.parametrize('name', [n for n in SMALLEST if n in CLASSIFIERS])
def test_official_classifier_loads_strictly(name):
    cfg = read(name)
    source, model = (build(name, cfg, 'cpu') for _ in range(2))
    with torch.no_grad():
        for param in source.parameters():
            param.normal_()
    names = FAMILIES[family_of(name)].official_names
    state = {}
    for key, value in source.state_dict().items():
        if key.startswith('backbone.'):
            key = names.to_official(key.removeprefix('backbone.'))
            key = re.sub(r'^norm\d\.', 'norm.', key) if 'transnext' not in name else key
        else:
            key = names.classifier.to_official(key)
        state[key] = value.flatten() if 'layer_scale' in key else value
    assert {'head.weight', 'head.bias'} <= set(state)
    assert load_strict(model, dict(model=state), 'the file') == []
    loaded = model.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in source.state_dict().items())


# ------------------------------------------------------------------ metafiles


def test_weights_that_no_program_can_fetch():
    """The error says where they are."""
    backbone = MODELS.build(read('detection/casvit/maskrcnn_casvit-xs_coco.py').model.backbone)
    with pytest.raises(ValueError, match=r'by hand from https://drive\.google\.com'):
        backbone.init_weights()


@pytest.mark.parametrize('family', FAMILIES)
def test_metafiles_name_the_configs(family):
    listed = []
    for task in TASKS:
        metafile = yaml.safe_load((ROOT / f'configs/{task}/{family}/metafile.yml').read_text())
        listed += [model['Config'].removeprefix('configs/') for model in metafile['Models']]
        assert all('Results' in model for model in metafile['Models'])
    assert sorted(listed) == sorted(names_of(family))
