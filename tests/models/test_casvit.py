"""CAS-ViT is numerically the official network, and its mixer is one for any backbone."""

import copy
from collections.abc import Iterator

import families
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import DefaultScope
from reference_numbers import LIMITS, deviation
from torch import nn

import mmffnet
from mmffnet.checkpoint import (
    OFFICIAL_WEIGHTS,
    convert_names,
    find_networks,
    load_pretrained,
    official_url,
)
from mmffnet.models import AdditiveAttention, CASViT, MixerBlock, Pooling
from mmffnet.models.casvit import CASVIT_NAMES, LocalPerception
from mmffnet.registry import MODELS

LIMIT = LIMITS['float64']
GAIN = 0.7  # of the filled weights; the activations would explode with those of unit variance
TINY = dict(depths=(1, 2, 1, 1), channels=(6, 8, 12, 10))
# of the classifiers with one head and with two, and of the dense backbones, as published, in the
# official code
PARAMETERS = {
    'xs': (2_979_700, 3_200_700, 2_759_132),
    's': (5_507_224, 5_764_224, 5_250_704),
    'm': (12_036_520, 12_421_520, None),
    't': (21_250_120, 21_763_120, None),
    'l': (27_618_472, None, None),
}


def official_keys(arch, heads=()) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the official state dict in its order."""

    def layer(key, *shape):
        yield f'{key}.weight', shape
        yield f'{key}.bias', shape[:1]

    def norm(key, c):
        yield from layer(key, c)
        yield f'{key}.running_mean', (c,)
        yield f'{key}.running_var', (c,)
        yield f'{key}.num_batches_tracked', ()

    dims = arch['channels']
    for at, widths in ((0, (dims[0] // 2, 3)), (3, (dims[0], dims[0] // 2))):
        yield from layer(f'patch_embed.{at}', *widths, 3, 3)
        yield from norm(f'patch_embed.{at + 1}', widths[0])
    for i, (depth, c) in enumerate(zip(arch['depths'], dims, strict=True)):
        if i > 0:
            yield from layer(f'network.{2 * i - 1}.proj', c, dims[i - 1], 3, 3)
            yield from norm(f'network.{2 * i - 1}.norm', c)
        for j in range(depth):
            block = f'network.{2 * i}.{j}'
            local, attention = f'{block}.local_perception.network', f'{block}.attn'
            yield from layer(f'{local}.0', c, c, 1, 1)
            yield from norm(f'{local}.1', c)
            yield from layer(f'{local}.2', c, 1, 3, 3)
            yield from layer(f'{local}.4', c, c, 1, 1)
            yield from norm(f'{block}.norm1', c)
            yield f'{attention}.qkv.weight', (3 * c, c, 1, 1)
            for gates in (f'{attention}.oper_q', f'{attention}.oper_k'):
                yield from layer(f'{gates}.0.block.0', c, 1, 3, 3)
                yield from norm(f'{gates}.0.block.1', c)
                yield f'{gates}.0.block.3.weight', (1, c, 1, 1)
                yield f'{gates}.1.block.1.weight', (c, c, 1, 1)
            yield from layer(f'{attention}.dwc', c, 1, 3, 3)
            yield from layer(f'{attention}.proj', c, 1, 3, 3)
            yield from norm(f'{block}.norm2', c)
            yield from layer(f'{block}.mlp.fc1', 4 * c, c, 1, 1)
            yield from layer(f'{block}.mlp.fc2', c, 4 * c, 1, 1)
    if not heads:
        for i, c in enumerate(dims):
            yield from norm(f'norm{2 * i}', c)
    else:
        yield from norm('norm', dims[-1])
        for head in heads:
            yield from layer(head, 1000, dims[-1])


class Reference:
    """The network in plain functions of the official tensors."""

    def __init__(self, params, arch, training=False):
        self.p, self.arch, self.training = params, arch, training

    def conv(self, key, x, stride=1):
        weight = self.p[f'{key}.weight']
        pad, groups = weight.shape[-1] // 2, x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, self.p.get(f'{key}.bias'), stride, pad, 1, groups)

    def norm(self, key, x):
        p = {k: self.p[f'{key}.{k}'].view(-1, 1, 1) for k in ('weight', 'bias')}
        if self.training:
            mean, var = x.mean((0, 2, 3), True), x.var((0, 2, 3), False, True)
        else:
            mean, var = (self.p[f'{key}.running_{k}'].view(-1, 1, 1) for k in ('mean', 'var'))
        return (x - mean) / (var + 1e-5).sqrt() * p['weight'] + p['bias']

    def gelu(self, x):
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    def gates(self, key, x):
        y = self.norm(f'{key}.0.block.1', self.conv(f'{key}.0.block.0', x)).clamp(min=0)
        x = x * torch.sigmoid(self.conv(f'{key}.0.block.3', y))
        return x * torch.sigmoid(self.conv(f'{key}.1.block.1', x.mean((2, 3), True)))

    def block(self, key, x):
        local, attention = f'{key}.local_perception.network', f'{key}.attn'
        y = self.norm(f'{local}.1', self.conv(f'{local}.0', x))
        x = x + self.conv(f'{local}.4', self.gelu(self.conv(f'{local}.2', y)))
        y = self.conv(f'{attention}.qkv', self.norm(f'{key}.norm1', x))
        c = x.shape[1]
        q, k = (
            self.gates(f'{attention}.oper_{n}', y[:, i * c :][:, :c])
            for i, n in ((0, 'q'), (1, 'k'))
        )
        x = x + self.conv(f'{attention}.proj', self.conv(f'{attention}.dwc', q + k) * y[:, 2 * c :])
        y = self.conv(f'{key}.mlp.fc1', self.norm(f'{key}.norm2', x))
        return x + self.conv(f'{key}.mlp.fc2', self.gelu(y))

    def __call__(self, x):
        for at in (0, 3):
            y = self.conv(f'patch_embed.{at}', x, 2)
            x = self.norm(f'patch_embed.{at + 1}', y).clamp(min=0)
        outs = []
        for i, depth in enumerate(self.arch['depths']):
            if i > 0:
                x = self.conv(f'network.{2 * i - 1}.proj', x, 2)
                x = self.norm(f'network.{2 * i - 1}.norm', x)
            for j in range(depth):
                x = self.block(f'network.{2 * i}.{j}', x)
            if f'norm{2 * i}.weight' in self.p:
                outs.append(self.norm(f'norm{2 * i}', x))
        if outs:
            return outs
        x = self.norm('norm', x).mean((2, 3))
        heads = [h for h in ('head', 'dist_head') if f'{h}.weight' in self.p]
        scores = [x @ self.p[f'{h}.weight'].T + self.p[f'{h}.bias'] for h in heads]
        return sum(scores) / len(scores)


@pytest.fixture(scope='module')
def loaded(device):
    backbone = CASViT('xs').double().eval()
    backbone.load_state_dict(families.fill(official_keys(CASViT.arch_settings['xs']), GAIN))
    return backbone.to(device)


def levels(backbone, x):
    x = x.to(next(backbone.parameters()).device)
    with torch.no_grad():
        return {f'{x.shape[2]}x{x.shape[3]}_{i}': out for i, out in enumerate(backbone(x))}


def test_outputs_equal_the_official_numbers(loaded):
    expected = families.compact('rcvit_xs')
    assert len(expected) == 8
    for form in (loaded, mmffnet.reparameterize(copy.deepcopy(loaded))):
        for size in families.SIZES:
            for name, out in levels(form, families.make_input(*size)).items():
                assert deviation(out, expected[name]) < LIMIT, name


def test_outputs_equal_the_full_official_outputs(loaded, fixture_dir):
    expected = families.full(fixture_dir, 'rcvit_xs')
    for size in families.SIZES:
        for name, out in levels(loaded, families.make_input(*size)).items():
            assert deviation(out, expected.pop(name)) < LIMIT, name
    assert not expected


def test_names_are_the_recorded_ones(fixture_dir):
    keys = [[k, list(s)] for k, s in official_keys(CASViT.arch_settings['xs'])]
    assert keys == families.full_keys(fixture_dir, 'rcvit_xs') and len(keys) == 535


@pytest.mark.parametrize('arch', PARAMETERS)
def test_every_variant_has_the_official_names_and_shapes(arch):
    one, two, dense = PARAMETERS[arch]
    for heads, count in (((), dense), (('head',), one), (('head', 'dist_head'), two)):
        with torch.device('meta'):
            backbone = CASViT(arch, out_indices=3 if heads else 'default')
        keys = dict(official_keys(CASViT.arch_settings[arch], heads))
        parameters = {k: s for k, s in keys.items() if k.endswith(('weight', 'bias'))}
        if count is not None:
            assert sum(torch.Size(shape).numel() for shape in parameters.values()) == count
        body = {f'backbone.{k}': s for k, s in keys.items() if not k.startswith(heads or '-')}
        state = {f'backbone.{k}': v for k, v in backbone.state_dict().items()}
        assert find_networks(state, official=False) == {'backbone.': CASVIT_NAMES}
        assert find_networks(body, official=True) == {'backbone.': CASVIT_NAMES}
        official = convert_names(state, 'official')
        assert {k: tuple(v.shape) for k, v in official.items()} == body


def test_drop_path_leaves_local_perception_alone():
    backbone = CASViT('xs', drop_path_rate=0.09)
    blocks = [block for stage in backbone.stages for block in stage.blocks]
    rates = [getattr(block.drop_path, 'drop_prob', 0) for block in blocks]
    assert rates == pytest.approx([0.01 * k for k in range(10)])
    dropped = {parts[-2]: dropped for parts, dropped in blocks[-1].branches}
    assert dropped == dict(local_mixer=False, token_mixer=True, channel_mixer=True)


@settings(max_examples=8, deadline=None)
@given(height=st.integers(32, 100), width=st.integers(32, 100))
def test_any_size_equals_the_reference(height, width):
    weights = families.fill(official_keys(TINY), GAIN)
    backbone = CASViT(TINY).double().eval()
    backbone.load_state_dict(weights)
    x = families.make_input(height, width)
    expected = Reference(weights, TINY)(x)
    for out, wanted in zip(levels(backbone, x).values(), expected, strict=True):
        assert deviation(out, wanted.numpy()) < LIMIT


@pytest.mark.parametrize('norm_eval', [False, True])
def test_gradients_equal_the_reference(norm_eval, device):
    """With batch statistics, and with frozen ones as the official detectors are trained."""
    weights = families.fill(official_keys(TINY), GAIN)
    backbone = CASViT(TINY, norm_eval=norm_eval).double().train().to(device)
    backbone.load_state_dict(weights)
    params = {k: v.requires_grad_(v.is_floating_point()) for k, v in weights.items()}
    x = families.make_input(2, 3, 65, 66)
    ours = [out.cpu() for out in backbone(x.to(device))]
    theirs = Reference(params, TINY, training=not norm_eval)(x)
    factors = [torch.rand_like(out) for out in ours]
    sum((f * o).sum() for f, o in zip(factors, ours, strict=True)).backward()
    sum((f * o).sum() for f, o in zip(factors, theirs, strict=True)).backward()
    for name, param in backbone.named_parameters():
        expected = params[CASVIT_NAMES.to_official(name)].grad
        # a bias in front of a batch norm has no gradient but rounding
        scale = max(float(expected.abs().max()), 1e-3)
        assert float((param.grad.cpu() - expected).abs().max()) < 1e-8 * scale, name
    for name, value in backbone.state_dict().items():
        if name.endswith('running_mean'):
            kept = weights[CASVIT_NAMES.to_official(name)].detach()
            assert torch.equal(value.cpu(), kept) == norm_eval, name


def test_initialisation_is_that_of_pytorch():
    torch.manual_seed(0)
    expected = CASViT(TINY).state_dict()
    torch.manual_seed(0)
    backbone = CASViT(TINY)
    backbone.init_weights()
    assert all(torch.equal(value, expected[key]) for key, value in backbone.state_dict().items())


# ------------------------------------------------------------------ mixers


def build_mixer(name):
    if name == 'catm':
        return AdditiveAttention(16)
    if name == 'cas_local':
        return LocalPerception(16)
    if name == 'cas_block':
        backbone = CASViT(dict(depths=(1,), channels=(16,)))
        return backbone.stages[0].blocks[0]
    return Pooling(8)


#: Where the mixers are in an official block
PLACES = {'catm': 'attn.', 'cas_local': 'local_perception.', 'cas_block': ''}


@pytest.mark.parametrize('name', ['pool3', 'catm', 'cas_local', 'cas_block'])
def test_mixers_equal_the_official_numbers(name, fixture_dir):
    mixer = build_mixer(name).double().eval()
    if name in PLACES:
        start = {'catm': 'token_mixer.', 'cas_local': 'local_mixer.'}.get(name, '')
        weights = families.fill(
            families.full_keys(fixture_dir, 'mixers')[name]['keys'],
            GAIN if name == 'cas_block' else 1.0,
        )
        block = 'stages.0.blocks.0.'
        mixer.load_state_dict(
            {
                CASVIT_NAMES.to_ours(f'network.0.0.{PLACES[name]}{k}').removeprefix(
                    block + start
                ): v
                for k, v in weights.items()
            }
        )
    x = families.make_input(1, 8 if name == 'pool3' else 16, 7, 9)
    with torch.no_grad():
        out = mixer(x)
    assert deviation(out, families.compact('mixers')[f'{name}/out']) < LIMIT
    assert deviation(out, families.full(fixture_dir, 'mixers')[f'{name}/out']) < LIMIT


@pytest.mark.parametrize('norm', [False, True])
def test_additive_attention_in_ffnet(norm, device):
    mixers = [None, None, None, dict(type='AdditiveAttention', norm=norm)]
    backbone = mmffnet.FFNet('nano', token_mixer=mixers).train().to(device)
    mixer = backbone.stages[3].blocks[0].token_mixer
    assert type(mixer) is AdditiveAttention
    outs = backbone(torch.rand(2, 3, 64, 96, device=device))
    sum(out.square().mean() for out in outs).backward()
    assert all(param.grad.isfinite().all() for param in backbone.parameters())
    x = torch.rand(2, 3, 64, 96, device=device)
    expected = backbone.eval()(x)
    folded = mmffnet.reparameterize(backbone)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.stages[3].modules())
    for a, b in zip(folded(x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_another_mixer_in_casvit():
    backbone = CASViT(TINY, token_mixer=dict(type='Pooling'), norm_cfg=dict(type='SyncBN'))
    block = backbone.stages[0].blocks[0]
    assert isinstance(block, MixerBlock) and isinstance(block.token_mixer, Pooling)
    assert isinstance(block.local_mixer.conv.norm, nn.SyncBatchNorm)
    with pytest.raises(ValueError, match='layer_scale_init_value'):
        CASViT(TINY, layer_scale_init_value=1.0)


# ------------------------------------------------------------------ official files


def assert_arrived(backbone, weights):
    own = backbone.state_dict()
    for key, value in weights.items():
        assert torch.equal(own[CASVIT_NAMES.to_ours(key)], value), key


def single(weights):
    return {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}


@pytest.mark.parametrize('heads', [('head',), ('head', 'dist_head')])
@pytest.mark.slow
def test_imagenet_file(heads, tmp_path):
    weights = single(families.fill(official_keys(CASViT.arch_settings['xs'], heads), GAIN))
    path = str(tmp_path / 'cas-vit-xs.pth')
    average = {k: v + 1 for k, v in weights.items()}
    torch.save(dict(model=weights, model_ema=average, epoch=299), path)
    body = {k: v for k, v in weights.items() if k.startswith(('patch_embed', 'network'))}
    dense = CASViT('xs', init_cfg=dict(type='Pretrained', checkpoint=path))
    dense.init_weights()
    assert_arrived(dense, body)
    # the norm of the last level is new: frozen, it has the statistics 0 and 1
    assert not dense.norm3.running_mean.any() and (dense.norm3.running_var == 1).all()
    assert (dense.norm3.weight == 1).all()
    classifier = CASViT('xs', out_indices=3)
    load_pretrained(classifier, path)
    assert_arrived(classifier, body)
    assert torch.equal(classifier.norm3.running_var, weights['norm.running_var'])
    # neither does a classifier's norm come from a file with our names
    ours = {f'backbone.{k}': v for k, v in classifier.state_dict().items()}
    torch.save(ours, tmp_path / 'ours.pth')
    dense = CASViT('xs')
    load_pretrained(dense, str(tmp_path / 'ours.pth'))
    assert_arrived(dense, body)
    assert (dense.norm3.running_var == 1).all()
    load_pretrained(dense, path, use_ema=True)
    assert torch.equal(dense.stem.conv1.conv.bias, average['patch_embed.0.bias'])
    for other in ('s', 't', TINY):
        with pytest.raises(ValueError, match='does not fit CASViT'):
            load_pretrained(CASViT(other), path)


def test_files_are_got_by_hand():
    names = [name for name in OFFICIAL_WEIGHTS if 'casvit' in name]
    assert len(names) == 20 and 'casvit-xs' in names
    for name in names:
        with pytest.raises(ValueError, match=r'by hand from https://drive\.google\.com/'):
            official_url(name)


@pytest.mark.parametrize('heads', [('head',), ('head', 'dist_head')])
def test_official_classifier(heads):
    """An ImageClassifier takes the official file whole and gives the mean of its heads' scores."""
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(
                type='mmpretrain.ImageClassifier',
                backbone=dict(type='mmffnet.CASViT', arch=TINY, out_indices=3),
                neck=dict(type='mmpretrain.GlobalAveragePooling'),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=1000, in_channels=10),
            )
        )
    weights = families.fill(official_keys(TINY, heads), GAIN)
    model = model.double().eval()
    model.load_state_dict(weights)
    x = families.make_input(75, 101)
    with torch.no_grad():
        scores = model(x)
    assert deviation(scores, Reference(weights, TINY)(x).numpy()) < LIMIT


def test_official_detector():
    weights = single(families.fill(official_keys(TINY), GAIN))
    model = nn.Module()
    model.backbone = CASViT(TINY)
    model.load_state_dict({f'backbone.{k}': v for k, v in weights.items()})
    assert_arrived(model.backbone, weights)
    # a level alone keeps its norm
    single_level = CASViT(TINY, out_indices=1)
    own = single_level.state_dict()
    single_level.load_state_dict({k: weights[CASVIT_NAMES.to_official(k)] for k in own})
    assert torch.equal(single_level.norm1.running_mean, weights['norm2.running_mean'])
