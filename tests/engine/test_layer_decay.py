"""Layer-wise learning-rate decay: the groups, and what an optimizer step does to them."""

import logging
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmffnet import FFNet
from mmffnet.checkpoint import convert_names

LR, WEIGHT_DECAY = 1e-4, 0.05
# The official recipes: the scales of stage 0, stage 1, the layers of stage 2, and stage 3
DET_STAGE_2 = [0.1074, 0.1342, 0.1678, 0.2097, 0.2621, 0.3277, 0.4096, 0.5120, 0.64, 0.8]
SEG_STAGE_2 = [0.3487, 0.3874, 0.4305, 0.4783, 0.5314, 0.5905, 0.6561, 0.7290, 0.81, 0.9]
OFFICIAL = {
    'detection, ffnet2': ('ffnet2', 0.8, 12, 0.0687, 0.0859, DET_STAGE_2[:6], 0.8),
    'detection, ffnet3': ('ffnet3', 0.8, 12, 0.0687, 0.0859, DET_STAGE_2[:8], 0.8),
    'detection, ffnet4': ('ffnet4', 0.8, 12, 0.0687, 0.0859, DET_STAGE_2, 0.8),
    'upernet, ffnet2': ('ffnet2', 1.0, 9, 1.0, 1.0, [1.0] * 6, 1.0),
    'upernet, ffnet3': ('ffnet3', 0.9, 12, 0.2824, 0.3138, SEG_STAGE_2[:8], 0.9),
    'upernet, ffnet4': ('ffnet4', 0.9, 12, 0.2824, 0.3138, SEG_STAGE_2, 0.9),
}


def build(model, optimizer=None, wrapper=None, **paramwise_cfg) -> OptimWrapper:
    return build_optim_wrapper(
        model,
        dict(
            optimizer=optimizer or dict(type='AdamW', lr=LR, weight_decay=WEIGHT_DECAY),
            constructor='mmffnet.LayerDecayConstructor',
            paramwise_cfg=paramwise_cfg,
            **(wrapper or {}),
        ),
    )


def settings(model, wrapper) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by the names of the parameters."""
    groups = {id(p): g for g in wrapper.optimizer.param_groups for p in g['params']}
    assert len(groups) == sum(len(g['params']) for g in wrapper.optimizer.param_groups)
    return {
        n: (groups[id(p)]['lr'], groups[id(p)]['weight_decay'])
        for n, p in model.named_parameters()
        if id(p) in groups
    }


def scales(model, wrapper) -> dict[str, float]:
    return {n: lr / LR for n, (lr, _) in settings(model, wrapper).items()}


def undecayed(model, wrapper) -> set[str]:
    return {n for n, (_, weight_decay) in settings(model, wrapper).items() if not weight_decay}


def detector(arch: str, **kwargs) -> nn.ModuleDict:
    """The backbone among other things, without memory for the weights."""
    with torch.device('meta'):
        return nn.ModuleDict(
            dict(
                backbone=FFNet(arch, **kwargs),
                neck=nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)),
                head=nn.Conv2d(8, 1, 1),
            )
        )


@pytest.fixture
def table():
    """The lines that are logged."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.extend(record.getMessage().splitlines())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.mark.parametrize('recipe', OFFICIAL)
def test_official_scales(recipe):
    arch, rate, num_layers, stage0, stage1, stage2, stage3 = OFFICIAL[recipe]
    model = detector(arch)
    wrapper = build(model, mode='official', decay_rate=rate, num_layers=num_layers)
    found = scales(model, wrapper)

    def of(start):
        return {round(s, 4) for n, s in found.items() if n.startswith(start)}

    assert of('backbone.stages.0.') == {stage0}
    assert of('backbone.stages.1.') == {stage1}
    assert of('backbone.stages.2.') == {*stage2}
    assert of('backbone.stages.3.') == {stage3}
    for rest in ('backbone.stem.', 'backbone.norm0.', 'neck.', 'head.'):
        assert of(rest) == {1.0}


@pytest.mark.parametrize('recipe', OFFICIAL)
def test_official_rule_on_official_names(recipe):
    arch, rate, num_layers, *_ = OFFICIAL[recipe]
    model = detector(arch)
    wrapper = build(model, mode='official', decay_rate=rate, num_layers=num_layers)
    found = settings(model, wrapper)
    state = dict(model.named_parameters())
    for ours, official in zip(state, convert_names(state, 'official'), strict=True):
        parts = official.split('.')
        layer = num_layers + 1
        if parts[:2] == ['backbone', 'stages']:
            stage, child = int(parts[2]), int(parts[3])
            layer = {0: 1, 1: 2, 2: 3 + child // 3, 3: num_layers}[stage]
        exempt = state[ours].dim() == 1 or official.endswith('.bias')
        lr = LR * rate ** (num_layers + 1 - layer)
        assert found[ours] == pytest.approx((lr, 0.0 if exempt else WEIGHT_DECAY)), official


@pytest.mark.parametrize(
    ('arch', 'num_layers'),
    [('nano', 6), ('ffnet1', 8), ('ffnet2', 10), ('ffnet3', 13), ('ffnet4', 14)],
)
def test_depth_scales(arch, num_layers):
    model = detector(arch)
    found = scales(model, build(model, layer_decay_rate=0.8))
    # each layer has its scale, none is skipped
    assert sorted({round(s, 12) for s in found.values()}) == pytest.approx(
        [0.8**k for k in reversed(range(num_layers))]
    )
    for name, scale in found.items():
        if name.startswith('backbone.stem.'):
            assert scale == pytest.approx(0.8 ** (num_layers - 1))
        elif name.startswith('backbone.stages.0.'):
            assert scale == pytest.approx(0.8 ** (num_layers - 2))
        elif name.startswith('backbone.stages.3.'):
            assert scale == pytest.approx(0.8)
        elif not name.startswith('backbone.stages.'):
            assert name.startswith(('backbone.norm', 'neck.', 'head.'))
            assert scale == 1


def test_depth_weight_decay():
    model = detector('nano', layer_scale_init_value=1.0)
    exempt = {n for n, p in model.named_parameters() if p.dim() == 1 or '_scale.' in n}
    assert len([n for n in exempt if '_scale.' in n]) == 12
    assert undecayed(model, build(model, layer_decay_rate=0.8)) == exempt
    assert 'head.weight' not in exempt  # a kernel, though of one output channel
    # the factors are for exclusive kinds
    for key, kind in dict(
        norm_decay_mult=lambda n: '.norm' in n or n.startswith('neck.1'),
        bias_decay_mult=lambda n: n.endswith('.bias') and '.norm' not in n and 'neck.1' not in n,
        flat_decay_mult=lambda n: '_scale.' in n,
    ).items():
        found = settings(model, build(model, layer_decay_rate=0.8, **{key: 0.5}))
        halved = {n for n, (_, wd) in found.items() if wd == pytest.approx(WEIGHT_DECAY / 2)}
        assert halved == {n for n in exempt if kind(n)}
        assert halved


def test_custom_keys():
    model = detector('nano')
    plain = settings(model, build(model, layer_decay_rate=0.8))
    found = settings(
        model,
        build(
            model,
            layer_decay_rate=0.8,
            custom_keys={
                'backbone': dict(lr_mult=0.1),
                'backbone.stem': dict(lr_mult=0.5, decay_mult=2),
                'head.weight': dict(decay_mult=0.0),
            },
        ),
    )
    for name, (lr, weight_decay) in plain.items():
        if name.startswith('backbone.stem'):
            expected = lr * 0.5, WEIGHT_DECAY * 2
        elif name.startswith('backbone.'):
            expected = lr * 0.1, weight_decay
        else:
            expected = lr, 0.0 if name == 'head.weight' else weight_decay
        assert found[name] == pytest.approx(expected)


def test_frozen_parameters_are_left_out(table):
    model = detector('nano', frozen_stages=2)
    found = settings(model, build(model, layer_decay_rate=0.8))
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(found) == trainable
    assert not any(n.startswith(('backbone.stem', 'backbone.stages.1')) for n in found)
    assert found['backbone.stages.2.downsample.channel.conv.weight'][0] == pytest.approx(LR * 0.64)
    frozen = sum(1 for _ in model.parameters()) - len(trainable)
    assert f'({frozen} frozen tensors left out)' in table[0]
    # the network is still one that the official recipes know when all its stages are frozen
    model = detector('nano', frozen_stages=4)
    build(model, mode='official', layer_decay_rate=0.8, num_layers=12)


def test_shared_parameters_are_taken_once():
    model = detector('nano')
    model['branch'] = model['head']
    model['tied'] = nn.Conv2d(8, 1, 1, device='meta')
    model['tied'].weight = model['head'].weight
    found = settings(model, build(model, layer_decay_rate=0.8, bypass_duplicate=True))
    assert {'head.weight', 'head.bias', 'tied.bias'} <= set(found)


@pytest.mark.parametrize('mode', [dict(), dict(mode='official', num_layers=12)])
def test_table_is_short_and_complete(table, mode):
    model = detector('ffnet4')
    wrapper = build(model, layer_decay_rate=0.8, **mode)
    title, head, *rows = table
    assert title == 'Layer-wise decay 0.8 of lr 0.0001:'
    assert head.split() == [
        'layer',
        'lr',
        'scale',
        'weight',
        'decay',
        'tensors',
        'parameters',
        'where',
    ]
    assert len(rows) == len(wrapper.optimizer.param_groups) <= 28
    cells = [row.split(maxsplit=5) for row in rows]
    assert sum(int(c[3]) for c in cells) == sum(1 for _ in model.parameters())
    assert sum(int(c[4].replace(',', '')) for c in cells) == sum(
        p.numel() for p in model.parameters()
    )
    for (_, scale, weight_decay, *_), group in zip(
        cells, wrapper.optimizer.param_groups, strict=True
    ):
        assert float(scale) == pytest.approx(group['lr'] / LR, rel=1e-3)
        assert float(weight_decay) == group['weight_decay']
    if not mode:
        assert cells[0][0] == cells[1][0] == '0'
        assert cells[0][-1] == 'backbone.stem'
        assert cells[-1][-1] == 'backbone, neck, head'


def test_layers_of_equal_treatment_share_a_group(table):
    wrapper = build(detector('ffnet2'), layer_decay_rate=1.0)
    assert len(wrapper.optimizer.param_groups) == 2
    assert table[2].split()[0] == '0-9'


NANO_LAYERS = {'stem': 0, 'stages.0': 1, 'stages.1': 2, 'stages.2': 3, 'stages.3': 4, 'norm': 5}


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
@pytest.mark.parametrize(
    'wrapper', [dict(), dict(accumulative_counts=2), dict(clip_grad=dict(max_norm=0.5))]
)
@pytest.mark.slow
def test_one_step_moves_each_layer_as_stated(optimizer, wrapper):
    lr, weight_decay, rate, eps = 0.1, 0.3, 0.7, 1e-8
    backbone = FFNet('nano', layer_scale_init_value=0.5).double().eval()
    batches = torch.rand(wrapper.get('accumulative_counts', 1), 2, 3, 64, 64, dtype=torch.double)
    weights = [torch.randn_like(out) for out in backbone(batches[0])]

    def loss(batch):
        return sum((w * out).mean() for w, out in zip(weights, backbone(batch), strict=True))

    params = dict(backbone.named_parameters())
    old = {n: p.detach().clone() for n, p in params.items()}
    grads = torch.autograd.grad(sum(map(loss, batches)) / len(batches), [*params.values()])
    norm = torch.stack([g.norm() for g in grads]).norm()
    if 'clip_grad' in wrapper:
        assert norm > 0.5
        grads = [g * 0.5 / (norm + 1e-6) for g in grads]

    optim_wrapper = build(
        backbone,
        dict(type=optimizer, lr=lr, weight_decay=weight_decay),
        wrapper,
        layer_decay_rate=rate,
    )
    optim_wrapper.initialize_count_status(backbone, 0, len(batches))
    for batch in batches:
        optim_wrapper.update_params(loss(batch))

    for (name, param), grad in zip(params.items(), grads, strict=True):
        (layer,) = (k for start, k in NANO_LAYERS.items() if name.startswith(start))
        step = lr * rate ** (5 - layer)
        shrink = 0.0 if param.dim() == 1 or '_scale.' in name else weight_decay
        if optimizer == 'SGD':
            expected = old[name] - step * (grad + shrink * old[name])
        else:
            expected = old[name] * (1 - step * shrink) - step * grad / (grad.abs() + eps)
        torch.testing.assert_close(param.detach(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='mixed precision needs a GPU')
def test_mixed_precision():
    backbone = FFNet('nano').cuda()
    wrapper = build(
        backbone, wrapper=dict(type='AmpOptimWrapper', loss_scale=1.0), layer_decay_rate=0.8
    )
    assert settings(backbone, wrapper) == settings(backbone, build(backbone, layer_decay_rate=0.8))
    old = backbone.norm3.bias.detach().clone()
    with wrapper.optim_context(backbone):
        loss = sum(out.square().mean() for out in backbone(torch.rand(2, 3, 64, 64).cuda()))
    wrapper.update_params(loss)
    assert not torch.equal(backbone.norm3.bias, old)


DISTRIBUTED = """
import gc
import torch
import torch.distributed as dist
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmffnet import FFNet

def step(rank):
    model = MMDistributedDataParallel(FFNet('nano').eval())
    wrapper = build_optim_wrapper(model, dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.0),
        constructor='mmffnet.LayerDecayConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5),
    ))
    weight = model.module.stem.conv1.conv.weight
    old = weight.detach().clone()
    out = model(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(rank)))
    wrapper.update_params(sum(o[:, ::2].sum() for o in out))
    steps = [torch.empty_like(weight) for _ in range(2)]
    dist.all_gather(steps, weight.detach() - old)
    assert torch.equal(*steps)
    print('step', (weight - old).abs().median().item())

torch.set_num_threads(1)
dist.init_process_group('gloo', init_method='file://' + store, rank=rank, world_size=2)
MMLogger.get_instance('step')  # that of the process this one is forked from writes elsewhere
step(rank)
gc.collect()  # the group's threads end with the last that holds it, the model in this case
dist.destroy_process_group()
"""


@pytest.mark.dist
def test_two_processes(toy, tmp_path):
    known = dict(store=str(tmp_path / 'store'))
    processes = [
        toy.Child(tmp_path / f'{i}.log', DISTRIBUTED, dict(known, rank=i), function=toy.run_code)
        for i in range(2)
    ]
    for process in processes:
        assert process.wait() == 0, process.text
        step = float(re.search(r'^step (.*)', process.text, re.MULTILINE)[1])
        assert step == pytest.approx(0.5**5, rel=1e-2)  # Adam's first step is the learning rate
    assert [process.text.count('Layer-wise decay') for process in processes] == [1, 0]


def from_config(tmp_path, scope, text):
    (tmp_path / 'config.py').write_text(text)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(Config.fromfile(tmp_path / 'config.py').model)


BACKBONE = "backbone=dict(_delete_=True, type='FFNet', arch='nano')"
MODEL_CONFIGS = {
    'mmdet': f"""
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
model = dict(
    {BACKBONE},
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=16),
    bbox_head=dict(num_classes=1, in_channels=16, feat_channels=16, stacked_convs=1))
""",
    'mmseg': f"""
_base_ = 'mmseg::_base_/models/upernet_r50.py'
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(64, 64)),
    {BACKBONE},
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=16, norm_cfg=dict(type='BN')),
    auxiliary_head=dict(in_channels=128, channels=16, norm_cfg=dict(type='BN')))
""",
}


@pytest.mark.parametrize('scope', MODEL_CONFIGS)
@pytest.mark.parametrize('mode', [dict(), dict(mode='official', num_layers=12)])
def test_detector_and_segmentor(tmp_path, scope, mode):
    model = from_config(tmp_path, scope, MODEL_CONFIGS[scope])
    with DefaultScope.overwrite_default_scope(scope):
        wrapper = build(model, layer_decay_rate=0.8, **mode)
    assert isinstance(wrapper, OptimWrapper)
    found = scales(model, wrapper)
    assert set(found) == set(dict(model.named_parameters()))
    for name, scale in found.items():
        if not name.startswith('backbone.'):
            assert scale == 1
        elif name.startswith('backbone.stem.'):
            assert scale == pytest.approx(1 if mode else 0.8**5)
        elif name.startswith('backbone.stages.0.'):
            assert scale == pytest.approx(0.8**12 if mode else 0.8**4)
    assert undecayed(model, wrapper) == {n for n, p in model.named_parameters() if p.dim() == 1}


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='FFNet', arch='nano', out_indices=3, out_norm_cfg=dict(type='BN')),
        dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 3, 1], channels=[8, 16, 32, 256])),
        dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=32, patch_size=16),
    ],
    ids=lambda backbone: backbone['type'],
)
def test_classifier_gets_what_mmpretrain_gives(backbone):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(
                type='mmpretrain.ImageClassifier',
                backbone=backbone,
                neck=dict(type='mmpretrain.GlobalAveragePooling'),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=256),
            )
        )
        theirs = build_optim_wrapper(
            model,
            dict(
                optimizer=dict(type='AdamW', lr=LR, weight_decay=WEIGHT_DECAY),
                constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
                paramwise_cfg=dict(
                    layer_decay_rate=0.7,
                    norm_decay_mult=0.0,
                    bias_decay_mult=0.0,
                    flat_decay_mult=0.0,
                    custom_keys={'cls_token': dict(decay_mult=0.0)},
                ),
            ),
        )
    expected = settings(model, theirs)
    assert len({lr for lr, _ in expected.values()}) > 5
    ours = settings(model, build(model, layer_decay_rate=0.7))
    assert set(ours) == set(expected)
    for name, values in expected.items():
        assert ours[name] == pytest.approx(values), name


@pytest.mark.parametrize(
    ('paramwise_cfg', 'message'),
    [
        (dict(), 'must have one of layer_decay_rate and decay_rate'),
        (dict(layer_decay_rate=0.8, decay_rate=0.8), 'must have one of'),
        (dict(layer_decay_rate=0), r'must be in \(0, 1\], got 0'),
        (dict(layer_decay_rate=1.25), r'must be in \(0, 1\], got 1.25'),
        (dict(layer_decay_rate=float('nan')), 'must be a number, not negative; got nan'),
        (dict(layer_decay_rate='0.8'), "must be a number, not negative; got '0.8'"),
        (dict(layer_decay_rate=0.8, decay_type='layer_wise'), 'does not know decay_type; it takes'),
        (dict(layer_decay_rate=0.8, mode='stage'), "mode must be one of .*, got 'stage'"),
        (dict(layer_decay_rate=0.8, num_layers=12), "num_layers must be .* mode 'official'"),
        (dict(layer_decay_rate=0.8, num_layers='12'), "num_layers must be .*; got '12'"),
        (dict(layer_decay_rate=0.8, mode='official'), 'num_layers must be an integer .*; got None'),
        (dict(layer_decay_rate=0.8, norm_decay_mult=-1), 'norm_decay_mult must be a number'),
        (dict(layer_decay_rate=0.8, custom_keys=['stem']), 'custom_keys must be a dict'),
        (dict(layer_decay_rate=0.8, custom_keys={'stem': dict(lr=1)}), 'of lr_mult and decay_mult'),
        (
            dict(layer_decay_rate=0.8, custom_keys={'stem': dict(lr_mult='1')}),
            "lr_mult of the custom key 'stem' must be a number",
        ),
        (
            dict(layer_decay_rate=0.8, mode='official', num_layers=3),
            'num_layers must be at least 4 for backbone.stages.2.blocks.2.* got 3',
        ),
    ],
)
def test_bad_settings(paramwise_cfg, message):
    with pytest.raises(ValueError, match=message):
        build(detector('nano'), **paramwise_cfg)


@pytest.mark.parametrize('missing', ['lr', 'weight_decay'])
def test_optimizer_must_name_what_is_scaled(missing):
    optimizer = dict(type='AdamW', lr=LR, weight_decay=WEIGHT_DECAY)
    del optimizer[missing]
    with pytest.raises(ValueError, match=f'{missing} of the optimizer.* got None'):
        build(detector('nano'), optimizer, layer_decay_rate=0.8)


def test_what_the_backbone_wants_undecayed():
    class Table(FFNet):
        def no_weight_decay(self):
            return {'stem.conv1.conv.weight'}

    model = nn.ModuleDict(dict(backbone=Table('nano')))
    plain = undecayed(model, build(detector('nano'), layer_decay_rate=0.8))
    found = undecayed(model, build(model, layer_decay_rate=0.8))
    assert not plain and 'backbone.stem.conv1.conv.weight' in found
    custom = {'stem.conv1.conv': dict(decay_mult=1.0)}
    found = undecayed(model, build(model, layer_decay_rate=0.8, custom_keys=custom))
    assert 'backbone.stem.conv1.conv.weight' not in found


class Foreign(BaseModule):
    """A backbone that knows its layers, but not those of the official recipes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        return int(param_name.removeprefix(f'{prefix}layers.')[0]), 3


def test_other_backbones():
    model = Foreign()
    found = scales(model, build(model, layer_decay_rate=0.5))
    assert found['layers.0.weight'] == pytest.approx(0.25)
    assert found['layers.1.weight'] == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"mode 'official' is for .* which Foreign has not"):
        build(model, layer_decay_rate=0.5, mode='official', num_layers=12)
    with pytest.raises(ValueError, match=r'needs a backbone with .* which Conv2d does not have'):
        build(nn.ModuleDict(dict(backbone=nn.Conv2d(3, 3, 1))), layer_decay_rate=0.5)
