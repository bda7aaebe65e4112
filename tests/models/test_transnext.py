"""TransNeXt is numerically the official network."""

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

from mmffnet.checkpoint import OFFICIAL_WEIGHTS, convert_names, find_networks, load_pretrained
from mmffnet.models import FFNet, TransNeXt
from mmffnet.models.mixers import AggregatedAttention, ConvGLU, CosineAttention
from mmffnet.models.transnext import TRANSNEXT_NAMES
from mmffnet.registry import MODELS

LIMIT = LIMITS['float64']
TINY = dict(depths=(1, 1, 2, 1), channels=(24, 48, 48, 72))
ALL_AGGREGATED = dict(
    TINY,
    token_mixer=[dict(type='AggregatedAttention', head_dim=24, sr_ratio=n) for n in (16, 8, 4, 2)],
    pretrain_size=256,
)
# of the classifiers, as published
PARAMETERS = {
    'micro': 12_809_304,
    'tiny': 28_258_960,
    'small': 49_741_564,
    'base': 89_721_496,
    'micro-AAAA': 13_114_008,
}


def official_keys(arch, head=False, aaaa=False) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the official state dict in its order."""

    def layer(key, *shape):
        yield f'{key}.weight', shape
        yield f'{key}.bias', shape[:1]

    before = 3
    for i, (depth, c) in enumerate(zip(arch['depths'], arch['channels'], strict=True), 1):
        size = 7 if i == 1 else 3
        yield from layer(f'patch_embed{i}.proj', c, before, size, size)
        yield from layer(f'patch_embed{i}.norm', c)
        before = c
        for j in range(depth):
            block, heads = f'block{i}.{j}', c // 24
            attention = f'{block}.attn'
            yield from layer(f'{block}.norm1', c)
            yield f'{attention}.temperature', (heads, 1, 1)
            yield f'{attention}.query_embedding', (heads, 1, 24)
            if i < 4 or aaaa:
                yield f'{attention}.relative_pos_bias_local', (heads, 9)
                yield f'{attention}.learnable_tokens', (heads, 24, 9)
                yield f'{attention}.learnable_bias', (heads, 1, 9)
                yield from layer(f'{attention}.q', c, c)
                yield from layer(f'{attention}.kv', 2 * c, c)
                yield from layer(f'{attention}.proj', c, c)
                yield from layer(f'{attention}.sr', c, c, 1, 1)
                yield from layer(f'{attention}.norm', c)
            else:
                yield from layer(f'{attention}.qkv', 3 * c, c)
                yield from layer(f'{attention}.proj', c, c)
            yield from layer(f'{attention}.cpb_fc1', 512, 2)
            yield from layer(f'{attention}.cpb_fc2', heads, 512)
            yield from layer(f'{block}.norm2', c)
            hidden = 2 * c * (8 if i < 3 else 4) // 3
            yield from layer(f'{block}.mlp.fc1', 2 * hidden, c)
            yield from layer(f'{block}.mlp.dwconv.dwconv', hidden, 1, 3, 3)
            yield from layer(f'{block}.mlp.fc2', c, hidden)
        yield from layer(f'norm{i}', c)
    if head:
        yield from layer('head', 1000, before)


class Reference:
    """The network in plain functions of the official tensors, step by step as it is described.

    Tokens are a sequence (N, L, C), neighbours are unfolded, every pair of a query and a key goes
    through the MLP of the position bias, and that bias is interpolated as a whole.

    Args:
        params (dict[str, Tensor]): By official names.
        pretrain_size (int): Of the images, or of the map for a mixer alone.
        img_size (int, optional): The size that the bias is interpolated from. Defaults to None, no
            interpolation.
        sr_ratios (tuple[int]): Of the stages. Defaults to the official ones.
    """

    def __init__(self, params, pretrain_size=224, img_size=None, sr_ratios=(8, 4, 2, 1)):
        self.p, self.sr_ratios = params, sr_ratios
        self.pretrain_size, self.img_size = pretrain_size, img_size

    def linear(self, key, x):
        return x @ self.p[f'{key}.weight'].flatten(1).T + self.p[f'{key}.bias']

    def norm(self, key, x, eps):
        weight, bias = self.p[f'{key}.weight'], self.p[f'{key}.bias']
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def unit(self, x):
        return x / x.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)

    def scaled(self, key, query, count):
        temperature = torch.log(1 + self.p[f'{key}.temperature'].exp())
        query = query + self.p[f'{key}.query_embedding']
        return query * temperature * count.double().log()[:, None]

    def bias_of(self, key, height, width, rows, columns, unit):
        """The position bias (heads, queries, keys) of a map and its pooled keys."""
        places = torch.stack(
            torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
        )
        keys = F.adaptive_avg_pool2d(places.double(), (rows, columns)).flatten(1).T
        delta = (places.flatten(1).T[:, None] - keys) / (unit - 1) * 8
        delta = delta.sign() * torch.log2(delta.abs() + 1) / 3
        hidden = self.linear(f'{key}.cpb_fc1', delta).clamp(min=0)
        return self.linear(f'{key}.cpb_fc2', hidden).permute(2, 0, 1)

    def bias(self, key, height, width, rows, columns, stride, ratio):
        unit = self.pretrain_size // stride
        if self.img_size is None:
            return self.bias_of(key, height, width, rows, columns, unit)
        side = self.img_size // stride
        few = side // ratio
        table = self.bias_of(key, side, side, few, few, unit)
        table = table.unflatten(2, (few, few))
        table = F.interpolate(table, (rows, columns), mode='bilinear').flatten(2).mT
        table = table.unflatten(2, (side, side))
        return F.interpolate(table, (height, width), mode='bilinear').flatten(2).mT

    def aggregated(self, key, x, height, width, stride, ratio):
        n, length, c = x.shape
        heads = self.p[f'{key}.temperature'].shape[0]
        rows, columns = max(height // ratio, 1), max(width // ratio, 1)
        split = lambda t: t.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
        windows = lambda t: F.unfold(  # noqa: E731
            t.mT.unflatten(2, (height, width)), 3, padding=1
        ).reshape(n, heads, c // heads, 9, length)
        ones = torch.ones(1, 1, height, width, dtype=x.dtype)
        inside = F.unfold(ones, 3, padding=1)[0].T > 0
        query = self.unit(split(self.linear(f'{key}.q', x)))
        scaled = self.scaled(key, query, inside.sum(1) + rows * columns)
        k, v = self.linear(f'{key}.kv', x).split(c, -1)
        k = self.unit(split(k)).transpose(1, 2).flatten(2)
        near = torch.einsum('nhlc,nhctl->nhlt', scaled, windows(k))
        near = near + self.p[f'{key}.relative_pos_bias_local'][:, None]
        near = near.masked_fill(~inside, -torch.inf)
        pooled = self.linear(f'{key}.sr', x)
        pooled = pooled * (1 + torch.erf(pooled / 2**0.5)) / 2
        pooled = F.adaptive_avg_pool2d(pooled.mT.unflatten(2, (height, width)), (rows, columns))
        pooled = self.norm(f'{key}.norm', pooled.flatten(2).mT, 1e-5)
        far_k, far_v = map(split, self.linear(f'{key}.kv', pooled).split(c, -1))
        far = scaled @ self.unit(far_k).mT
        far = far + self.bias(key, height, width, rows, columns, stride, ratio)
        weights = torch.cat([near, far], -1).softmax(-1)
        tokens = query @ self.p[f'{key}.learnable_tokens'] + self.p[f'{key}.learnable_bias']
        y = torch.einsum('nhlt,nhctl->nhlc', weights[..., :9] + tokens, windows(v))
        y = y + weights[..., 9:] @ far_v
        return self.linear(f'{key}.proj', y.transpose(1, 2).flatten(2))

    def cosine(self, key, x, height, width, stride):
        heads = self.p[f'{key}.temperature'].shape[0]
        qkv = self.linear(f'{key}.qkv', x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        count = torch.full((x.shape[1],), x.shape[1], dtype=x.dtype)
        logits = self.scaled(key, self.unit(qkv[0]), count) @ self.unit(qkv[1]).mT
        logits = logits + self.bias(key, height, width, height, width, stride, 1)
        return self.linear(f'{key}.proj', (logits.softmax(-1) @ qkv[2]).transpose(1, 2).flatten(2))

    def conv_glu(self, key, x, height, width):
        gate, x = self.linear(f'{key}.fc1', x).chunk(2, -1)
        dw = f'{key}.dwconv.dwconv'
        weight, bias = self.p[f'{dw}.weight'], self.p[f'{dw}.bias']
        gate = F.conv2d(gate.mT.unflatten(2, (height, width)), weight, bias, 1, 1, 1, len(weight))
        return self.linear(f'{key}.fc2', F.gelu(gate).flatten(2).mT * x)

    def __call__(self, x):
        outs, names = [], list(self.p)
        for i, ratio in enumerate(self.sr_ratios, 1):
            embed = f'patch_embed{i}.proj'
            weight, bias = self.p[f'{embed}.weight'], self.p[f'{embed}.bias']
            x = F.conv2d(x, weight, bias, 4 if i == 1 else 2, weight.shape[-1] // 2)
            n, c, height, width = x.shape
            x = self.norm(f'patch_embed{i}.norm', x.flatten(2).mT, 1e-5)
            for j in range(len({name.split('.')[1] for name in names if f'block{i}.' in name})):
                block = f'block{i}.{j}'
                y, place = self.norm(f'{block}.norm1', x, 1e-6), (height, width, 2 ** (i + 1))
                if f'{block}.attn.qkv.weight' in self.p:
                    x = x + self.cosine(f'{block}.attn', y, *place)
                else:
                    x = x + self.aggregated(f'{block}.attn', y, *place, ratio)
                y = self.norm(f'{block}.norm2', x, 1e-6)
                x = x + self.conv_glu(f'{block}.mlp', y, height, width)
            tokens = self.norm(f'norm{i}', x, 1e-6)
            x = tokens.mT.reshape(n, c, height, width)
            outs.append(x)
        if 'head.weight' in self.p:
            return self.linear('head', tokens.mean(1))
        return outs


def assert_equal(outs, expected):
    """To the limit of the stored outputs; a map of one position has no deviation of its own."""
    for i, (out, wanted) in enumerate(zip(outs, expected, strict=True)):
        scale = max(float(wanted.detach().std()), 0.1) if wanted.numel() > 1 else 1
        assert float((out - wanted).detach().abs().max()) < LIMIT * scale, i


@pytest.fixture(scope='module')
def loaded(device):
    backbone = TransNeXt('micro').double().eval()
    backbone.load_state_dict(families.fill(official_keys(TransNeXt.arch_settings['micro'])))
    return backbone.to(device)


@torch.no_grad()
def levels(backbone, size):
    x = families.make_input(*size).to(next(backbone.parameters()).device)
    return {f'{size[0]}x{size[1]}_{i}': out.cpu() for i, out in enumerate(backbone(x))}


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize('size', families.SIZES)
def test_outputs_equal_the_committed_official_numbers(loaded, size):
    stored = families.compact('transnext_micro')
    assert len(stored) == 8
    for name, out in levels(loaded, size).items():
        assert deviation(out.numpy(), stored[f'extrap_{name}']) < LIMIT, name


@pytest.mark.parametrize('size', families.SIZES)
def test_outputs_equal_the_full_official_outputs(loaded, size, fixture_dir):
    stored = families.full(fixture_dir, 'transnext_micro')
    for name, out in levels(loaded, size).items():
        assert deviation(out, stored[f'extrap_{name}']) < LIMIT, name


def test_names_are_the_recorded_ones(fixture_dir):
    keys = [[k, list(s)] for k, s in official_keys(TransNeXt.arch_settings['micro'])]
    assert sorted(keys) == sorted(families.full_keys(fixture_dir, 'transnext_micro'))
    assert len(keys) == 615


@torch.no_grad()
def test_the_reference_is_the_official_network():
    weights = families.fill(official_keys(TransNeXt.arch_settings['micro']))
    stored = families.compact('transnext_micro')
    for i, out in enumerate(Reference(weights)(families.make_input(96, 128))):
        assert deviation(out, stored[f'extrap_96x128_{i}']) < LIMIT


@torch.no_grad()
@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(32, 140),
    width=st.integers(32, 140),
    img_size=st.sampled_from([None, 64, 75, 96, 224]),
    pretrain_size=st.sampled_from([64, 100, 224, 256]),
)
@pytest.mark.slow
def test_any_size_equals_the_reference(height, width, img_size, pretrain_size):
    """In both modes."""
    weights = families.fill(official_keys(TINY))
    bias = 'extrapolate' if img_size is None else 'interpolate'
    backbone = TransNeXt(TINY, bias=bias, img_size=img_size, pretrain_size=pretrain_size)
    backbone.double().eval().load_state_dict(weights)
    x = families.make_input(height, width)
    assert_equal(backbone(x), Reference(weights, pretrain_size, img_size)(x))


@torch.no_grad()
@pytest.mark.parametrize('img_size', [None, 96])
@pytest.mark.parametrize('size', [(64, 64), (75, 133)])
def test_all_aggregated_equals_the_reference(size, img_size):
    weights = families.fill(official_keys(ALL_AGGREGATED, aaaa=True))
    bias = 'extrapolate' if img_size is None else 'interpolate'
    backbone = TransNeXt(ALL_AGGREGATED, bias=bias, img_size=img_size).double().eval()
    backbone.load_state_dict(weights)
    x = families.make_input(*size)
    assert_equal(backbone(x), Reference(weights, 256, img_size, (16, 8, 4, 2))(x))


@pytest.mark.parametrize('img_size', [None, 64])
@pytest.mark.parametrize('chunk_size', [2**24, 300])
def test_gradients_equal_the_reference(img_size, chunk_size, device):
    """Computed at once, and some rows at a time."""
    weights = families.fill(official_keys(TINY))
    bias = 'extrapolate' if img_size is None else 'interpolate'
    mixers = dict(chunk_size=chunk_size)
    backbone = TransNeXt(TINY, bias=bias, img_size=img_size, token_mixer=mixers, drop_path_rate=0)
    backbone.double().load_state_dict(weights)
    backbone.to(device)
    params = {k: v.requires_grad_() for k, v in weights.items()}
    x = families.make_input(2, 3, 65, 98)
    ours = [out.cpu() for out in backbone(x.to(device))]
    theirs = Reference(params, img_size=img_size)(x)
    assert_equal(ours, theirs)
    factors = [torch.rand_like(out) for out in ours]
    sum((f * o).sum() for f, o in zip(factors, ours, strict=True)).backward()
    sum((f * o).sum() for f, o in zip(factors, theirs, strict=True)).backward()
    for name, param in backbone.named_parameters():
        expected = params[TRANSNEXT_NAMES.to_official(name)].grad
        # a bias that is the same for all logits has no gradient but rounding
        scale = max(float(expected.abs().max()), 1e-3)
        assert float((param.grad.cpu() - expected).abs().max()) < 1e-8 * scale, name


@torch.no_grad()
def test_interpolation_of_the_own_size_changes_nothing(loaded):
    other = TransNeXt('micro', bias='interpolate', img_size=64).double().eval()
    other.load_state_dict(loaded.state_dict())
    x = families.make_input(64, 64)
    device = next(loaded.parameters()).device
    for a, b in zip(other.to(device)(x.to(device)), loaded(x.to(device)), strict=True):
        assert float((a - b).abs().max() / b.std()) < LIMIT


@pytest.mark.parametrize('arch', PARAMETERS)
def test_every_variant_has_the_official_names_and_shapes(arch):
    with torch.device('meta'):
        backbone = TransNeXt(arch)
    keys = dict(official_keys(TransNeXt.arch_settings[arch], True, arch == 'micro-AAAA'))
    assert sum(torch.Size(shape).numel() for shape in keys.values()) == PARAMETERS[arch]
    state = {f'backbone.{k}': v for k, v in backbone.state_dict().items()}
    assert find_networks(state, official=False) == {'backbone.': TRANSNEXT_NAMES}
    body = {f'backbone.{k}': shape for k, shape in keys.items() if not k.startswith('head.')}
    assert find_networks(body, official=True) == {'backbone.': TRANSNEXT_NAMES}
    official = convert_names(state, 'official')
    assert {k: tuple(v.shape) for k, v in official.items()} == body


def test_initialisation():
    torch.manual_seed(0)
    backbone = TransNeXt('micro')
    backbone.init_weights()
    for name, param in backbone.named_parameters():
        value = param.detach()
        if name.endswith('temperature'):
            assert F.softplus(value).allclose(torch.tensor(1 / 0.24))
        elif name.endswith('local_bias'):
            assert 0 < float(value.std()) < 1e-3
        elif name.endswith(('query_embedding', 'local_tokens')) or value.ndim == 2:
            assert float(value.std()) == pytest.approx(0.02, rel=0.5), name
        elif value.ndim == 4:
            fan_out = value.shape[2] * value.shape[3] * (1 if 'dwconv' in name else len(value))
            assert float(value.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.2), name
        else:
            one = 'norm' in name or '.tail.' in name
            assert (value == float(one and name.endswith('weight'))).all(), name


# ------------------------------------------------------------------ mixers

#: The mixer, its arguments in the recorded modules, and where it is in a block
RECORDED = {
    'agg_attn': (AggregatedAttention, dict(head_dim=8, sr_ratio=2, pretrain_size=14), 'attn.'),
    'cos_attn': (CosineAttention, dict(head_dim=8, pretrain_size=7), 'attn.'),
    'conv_glu': (ConvGLU, dict(expansion=4), 'mlp.'),
}


@pytest.mark.parametrize('name', RECORDED)
def test_mixers_equal_the_official_numbers(name, fixture_dir):
    kind, kwargs, place = RECORDED[name]
    mixer = kind(24, **kwargs).double().eval()
    keys = families.full_keys(fixture_dir, 'mixers')[name]['keys']
    ours = {k: TRANSNEXT_NAMES.to_ours(f'block1.0.{place}{k}') for k, _ in keys}
    weights = families.fill(keys)
    mixer.load_state_dict({ours[k].partition('mixer.')[2]: v for k, v in weights.items()})
    stored = families.full(fixture_dir, 'mixers')
    x = torch.from_numpy(stored[f'{name}/x']).mT.unflatten(2, (7, 10))
    with torch.no_grad():
        out = mixer(x).flatten(2).mT
    assert deviation(out, families.compact('mixers')[f'{name}/out']) < LIMIT
    assert deviation(out, stored[f'{name}/out']) < LIMIT


@pytest.mark.parametrize('mixer', ['AggregatedAttention', 'CosineAttention'])
def test_mixers_in_ffnet(mixer):
    backbone = FFNet(
        'nano',
        token_mixer=[None, None, None, dict(type=mixer)],
        channel_mixer=[None, None, dict(type='ConvGLU'), None],
    )
    outs = backbone(torch.rand(2, 3, 64, 96))
    sum(out.square().mean() for out in outs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_aggregated_attention_takes_maps_of_any_size():
    mixer = AggregatedAttention(24, head_dim=24).eval()
    for size in ((1, 1), (2, 5), (9, 4)):
        assert mixer(torch.rand(1, 24, *size)).shape == (1, 24, *size)


# ------------------------------------------------------------------ official files


def single(weights):
    return {k: v.float() for k, v in weights.items()}


def assert_arrived(backbone, weights):
    own = backbone.state_dict()
    for key, value in weights.items():
        assert torch.equal(own[TRANSNEXT_NAMES.to_ours(key)], value), key


@pytest.mark.parametrize('wrapped', [False, True])
def test_imagenet_file(wrapped, tmp_path):
    weights = single(families.fill(official_keys(TINY, head=True)))
    path = str(tmp_path / 'transnext.pth')
    torch.save(dict(model=weights) if wrapped else weights, path)
    body = {k: v for k, v in weights.items() if not k.startswith('head.')}
    for kwargs in ({}, dict(out_indices=3), dict(bias='interpolate', img_size=800)):
        cfg = dict(type='Pretrained', checkpoint=path)
        backbone = TransNeXt(TINY, init_cfg=cfg, **kwargs)
        backbone.init_weights()
        assert_arrived(backbone, body)
    for other in ('micro', dict(TINY, depths=(1, 1, 3, 1)), ALL_AGGREGATED):
        with pytest.raises(ValueError, match='does not fit TransNeXt'):
            load_pretrained(TransNeXt(other), path)
    weights.pop('block2.0.attn.temperature')
    torch.save(weights, path)
    with pytest.raises(ValueError, match='temperature'):
        load_pretrained(TransNeXt(TINY), path)


def test_official_detector(tmp_path):
    """Its backbone has the names of the classifier's, and its norms."""
    weights = single(families.fill(official_keys(TINY)))
    state = {f'backbone.{k}': v for k, v in weights.items()}
    model = nn.Module()
    model.backbone = TransNeXt(TINY, bias='interpolate', img_size=800)
    model.load_state_dict(state)
    assert_arrived(model.backbone, weights)
    torch.save(dict(state_dict=state), tmp_path / 'detector.pth')
    backbone = TransNeXt(TINY)
    load_pretrained(backbone, str(tmp_path / 'detector.pth'))
    assert_arrived(backbone, weights)


def test_official_classifier():
    """An ImageClassifier takes the official file whole and gives the official scores."""
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(
                type='mmpretrain.ImageClassifier',
                backbone=dict(type='mmffnet.TransNeXt', arch=TINY, out_indices=3),
                neck=dict(type='mmpretrain.GlobalAveragePooling'),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=1000, in_channels=72),
            )
        )
    weights = families.fill(official_keys(TINY, head=True))
    model = model.double().eval()
    model.load_state_dict(dict(weights))
    x = families.make_input(75, 101)
    with torch.no_grad():
        assert deviation(model(x), Reference(weights)(x).numpy()) < LIMIT


def test_addresses_of_the_files():
    names = [name for name in OFFICIAL_WEIGHTS if 'transnext' in name]
    assert len(names) == 13 and 'transnext-small-384' in names
    for name in names:
        file = OFFICIAL_WEIGHTS[name]
        assert file.url.startswith('https://huggingface.co/DaiShiResearch/') and not file.by_hand
        assert file.url.count('/resolve/main/') == 1 and '.pth' in file.url


def test_no_weight_decay_as_published():
    names = TransNeXt(TINY).no_weight_decay()
    parts = {TRANSNEXT_NAMES.to_official(name).split('attn.')[1] for name in names}
    assert parts == {
        'query_embedding',
        'relative_pos_bias_local',
        'temperature',
        *(f'cpb_fc{n}.{kind}' for n in (1, 2) for kind in ('weight', 'bias')),
    }


@pytest.mark.parametrize(
    ('kwargs', 'argument'),
    [
        (dict(arch='nano'), 'arch'),
        (dict(arch=dict(TINY, channels=(24, 48, 50, 72))), 'channels'),
        (dict(arch=dict(TINY, sr_ratios=(8, 4, 2, 1))), 'sr_ratios'),
        (dict(bias='extrapolated'), 'bias'),
        (dict(pretrain_size=0), 'pretrain_size'),
        (dict(pretrain_size=32), 'pretrain_size'),
        (dict(arch=dict(TINY, pretrain_size='224')), 'pretrain_size'),
        (dict(img_size=0), 'img_size'),
        (dict(bias='interpolate', img_size=31), 'img_size'),
        (dict(token_mixer=dict(sr_ratio=0)), 'sr_ratio'),
        (dict(token_mixer=dict(head_dim=25)), 'head_dim'),
        (dict(token_mixer=dict(chunk_size=0)), 'chunk_size'),
        (dict(channel_mixer=dict(kernel_size=2)), 'kernel_size'),
        (dict(layer_scale_init_value=0.1), 'layer_scale_init_value'),
    ],
)
def test_bad_arguments(kwargs, argument):
    with pytest.raises(ValueError, match=argument):
        TransNeXt(**{'arch': TINY, **kwargs})
