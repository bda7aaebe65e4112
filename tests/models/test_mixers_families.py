"""The mixers of other papers: their numbers, any size, and training inside of FFNet."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import compact, fill, full, full_keys, make_input
from mmengine.registry import MODELS
from reference_numbers import LIMITS, deviation
from torch import nn

from mmffnet.models import (
    AdaptiveFrequencyFilter,
    GatingMixer,
    InvertedResidual,
    MixerBlock,
    ShuffleMixer,
    SpectrumMixer,
)
from mmffnet.models.mixers import frequency, shuffle
from mmffnet.models.mixers.grid import average_cells

LIMIT = LIMITS['float64']
MIXERS = {
    'AdaptiveFrequencyFilter': AdaptiveFrequencyFilter,
    'GatingMixer': GatingMixer,
    'InvertedResidual': InvertedResidual,
    'ShuffleMixer': ShuffleMixer,
    'SpectrumMixer': SpectrumMixer,
}
SIZES = [(1, 1), (2, 3), (7, 5), (8, 8), (13, 10)]


def build(name, channels=16, **kwargs):
    """A mixer in eval mode with weights that are far from their initial ones."""
    mixer = MIXERS[name](channels, **kwargs).double().eval()
    for key, value in mixer.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if 'var' in key else torch.randn_like(value))
    return mixer


def load(module, official, names):
    """Loads weights by pairs of our names and the official ones."""
    state = {}
    for key, value in module.state_dict().items():
        ours = next(name for name in names if key.startswith(name))
        state[key] = official.pop(names[ours] + key.removeprefix(ours)).reshape(value.shape)
    module.load_state_dict(state)
    assert not official


# ---- AFFNet's filter ----


def by_the_formula(mixer, x):
    """The filter as the paper has it, with complex numbers."""
    w1, w2 = (torch.complex(*w) for w in (mixer.w1, mixer.w2))
    b1, b2 = (torch.complex(*b)[..., None, None] for b in (mixer.b1, mixer.b2))

    def apart(f, z):
        return torch.complex(f(z.real), f(z.imag))

    spectrum = torch.fft.rfft2(x, norm='ortho')
    z = spectrum.unflatten(1, (mixer.num_blocks, -1))
    z = apart(mixer.act, torch.einsum('nkchw,kcd->nkdhw', z, w1) + b1)
    z = torch.einsum('nkchw,kcd->nkdhw', z, w2) + b2
    mask = apart(lambda v: F.softshrink(v, mixer.threshold), z).flatten(1, 2)
    return torch.fft.irfft2(mask * spectrum, s=x.shape[2:], norm='ortho') + x


@pytest.mark.parametrize('size', SIZES)
def test_frequency_filter_is_the_formula(size):
    mixer = build('AdaptiveFrequencyFilter')
    x = torch.randn(2, 16, *size, dtype=torch.double)
    expected = by_the_formula(mixer, x)
    torch.testing.assert_close(mixer(x), expected, rtol=1e-12, atol=1e-12)
    alone = build('AdaptiveFrequencyFilter', residual=False)
    alone.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(alone(x), expected - x, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize('size', SIZES)
def test_fourier_matrices_are_the_fft(size, monkeypatch):
    """What exported models compute, with its gradient."""
    mixer = build('AdaptiveFrequencyFilter')
    x = torch.randn(2, 16, *size, dtype=torch.double, requires_grad=True)
    expected = mixer(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    monkeypatch.setattr(frequency, 'is_exported', lambda: True)
    actual = mixer(x)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    actual = torch.autograd.grad(actual.square().sum(), x)[0]
    torch.testing.assert_close(actual, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('training', [False, True])
def test_compiled_frequency_filter_has_the_fft(training):
    """Matrices are for exported models alone."""
    graphs = []

    def look(graph, inputs):
        graphs.append(graph.code)
        return graph

    mixer = build('AdaptiveFrequencyFilter').train(training)
    x = torch.randn(2, 16, 6, 7, dtype=torch.double)
    torch._dynamo.reset()
    compiled = torch.compile(mixer, backend=look, fullgraph=True)
    torch.testing.assert_close(compiled(x), mixer(x), rtol=1e-12, atol=1e-12)
    assert 'rfft2' in graphs[0] and len(graphs) == 1
    exported = torch.export.export(mixer, (x,), strict=training).module()
    assert 'fft' not in exported.code
    torch.testing.assert_close(exported(x), mixer(x), rtol=1e-10, atol=1e-10)


def test_frequency_filter_parameters_and_init():
    mixer = AdaptiveFrequencyFilter(64)
    assert sum(p.numel() for p in mixer.parameters()) == 64**2 // 2 + 4 * 64
    for param in mixer.parameters():
        assert param.std().item() == pytest.approx(0.02, rel=0.4)
    assert isinstance(mixer.act, nn.SiLU)


# ---- NiNformer's gating unit ----

GATE = {
    'project.': 'proj.',
    'token_norm.': 'Mixer.token_mix.0.',
    'token_mlp.': 'Mixer.token_mix.2.net.',
    'channel_norm.': 'Mixer.channel_mix.0.',
    'channel_mlp.': 'Mixer.channel_mix.1.net.',
}
GATE_SHAPES = {
    **{f'Mixer.{m}_mix.0.{p}': (16,) for m in ('token', 'channel') for p in ('weight', 'bias')},
    'Mixer.token_mix.2.net.0.weight': (32, 24),
    'Mixer.token_mix.2.net.0.bias': (32,),
    'Mixer.token_mix.2.net.3.weight': (24, 32),
    'Mixer.token_mix.2.net.3.bias': (24,),
    'Mixer.channel_mix.1.net.0.weight': (32, 16),
    'Mixer.channel_mix.1.net.0.bias': (32,),
    'Mixer.channel_mix.1.net.3.weight': (16, 32),
    'Mixer.channel_mix.1.net.3.bias': (16,),
    'proj.weight': (16, 16),
    'proj.bias': (16,),
}
FFN_SHAPES = {
    'net.0.weight': (32, 16),
    'net.0.bias': (32,),
    'net.3.weight': (16, 32),
    'net.3.bias': (16,),
}


def as_map(tokens, height, width):
    return tokens.mT.unflatten(2, (height, width))


def gating_block():
    """The original's block: its gating unit and its FFN share the norm."""
    gate = dict(type='GatingMixer', grid=(4, 6), hidden_channels=32, norm=False)
    ffn = dict(
        type='MetaMixer',
        key=dict(type='PointwiseConv', expansion=2),
        value=dict(type='PointwiseConv'),
    )
    norm = dict(type='mmffnet.ChannelLayerNorm', eps=1e-5)
    return MixerBlock(
        16, dict(token=dict(mixer=gate, norm=norm), channel=dict(mixer=ffn, norm='token'))
    )


def nin(part):
    """The original on a grid of 4 x 6 positions, with its weights, and its input."""
    x = as_map(make_input(1, 24, 16), 4, 6)
    if part == 'nin_mgu':
        mixer = GatingMixer(16, grid=(4, 6), hidden_channels=32, norm=False)
        load(mixer.double(), fill(GATE_SHAPES.items()), GATE)
        return mixer.eval(), x
    shapes = {'norm.weight': (16,), 'norm.bias': (16,)}
    shapes |= {f'mgu.{k}': v for k, v in GATE_SHAPES.items()}
    shapes |= {f'ffn.{k}': v for k, v in FFN_SHAPES.items()}
    names = {f'token_mixer.{k}': f'mgu.{v}' for k, v in GATE.items()}
    names |= {'channel_mixer.key.': 'ffn.net.0.', 'channel_mixer.value.': 'ffn.net.3.'}
    block = gating_block().double().eval()
    load(block, fill(shapes.items()), {'token_norm.': 'norm.', **names})
    return block, x


@pytest.mark.parametrize('part', ['nin_mgu', 'nin_block'])
def test_gating_on_its_grid_is_the_original(part):
    module, x = nin(part)
    with torch.no_grad():
        assert deviation(module(x).flatten(2).mT, compact('mixers')[f'{part}/out']) < LIMIT


@pytest.mark.parametrize('part', ['nin_mgu', 'nin_block'])
def test_gating_on_its_grid_is_the_original_in_full(part, fixture_dir):
    module, _ = nin(part)
    arrays = full(fixture_dir, 'mixers')
    x = as_map(torch.from_numpy(arrays[f'{part}/x']), 4, 6)
    with torch.no_grad():
        assert deviation(module(x).flatten(2).mT, arrays[f'{part}/out']) < LIMIT


@pytest.mark.parametrize('size', SIZES)
def test_average_cells_is_adaptive_pooling(size):
    x = torch.randn(2, 3, *size, dtype=torch.double)
    for grid in ((1, 1), (3, 4), (8, 8)):
        expected = F.adaptive_avg_pool2d(x, grid)
        torch.testing.assert_close(average_cells(x, grid), expected, rtol=1e-12, atol=1e-12)


# ---- RelaCtrl's shuffle mixer ----


def with_inverse(permutation):
    return torch.from_numpy(np.stack([permutation, permutation.argsort()]))


def shuffled(part, arrays):
    """The original's output for the permutations that were drawn when it was recorded."""
    channels, groups = (32, 1) if part == 'tdsm_token' else (64, 2)
    mixer = ShuffleMixer(channels, groups=groups, norm=False).double().eval()
    attention = {
        'qkv.weight': (96, 32),
        'qkv.bias': (96,),
        'proj.weight': (32, 32),
        'proj.bias': (32,),
    }
    prefixes = ['attn.'] if groups == 1 else [f'experts_attn.{g}.attn.' for g in range(groups)]
    shapes = {p + k: v for p in prefixes for k, v in attention.items()}
    names = {}
    for g, prefix in enumerate(prefixes):
        names[f'attentions.{g}.qkv.'] = f'{prefix}qkv.'
        names[f'attentions.{g}.project.'] = f'{prefix}proj.'
    load(mixer, fill(shapes.items()), names)
    x = torch.from_numpy(arrays[f'{part}/x'])
    if groups == 1:
        return mixer.mix(x, with_inverse(np.arange(32)), [with_inverse(arrays['tdsm_token/perm'])])
    table = fill([('scale_shift_table', (6, 64))])['scale_shift_table']
    time = torch.from_numpy(arrays['tdsm/t']).reshape(6, 64)
    shift, scale, gate = (table + time)[:3]
    permutations = [with_inverse(arrays[f'tdsm/token_perm{g}']) for g in range(groups)]
    z = F.layer_norm(x, (64,), eps=1e-6) * (1 + scale) + shift
    return x + gate * mixer.mix(z, with_inverse(arrays['tdsm/channel_perm']), permutations)


@pytest.mark.parametrize('part', ['tdsm_token', 'tdsm'])
def test_shuffling_is_the_original(part, fixture_dir):
    arrays = full(fixture_dir, 'mixers')
    with torch.no_grad():
        assert deviation(shuffled(part, arrays), arrays[f'{part}/out']) < LIMIT


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('groups', [1, 2])
def test_shuffling_step_by_step(size, groups):
    mixer = build('ShuffleMixer', groups=groups, num_heads=2, seed=3)
    x = torch.randn(2, 16, *size, dtype=torch.double)
    length = size[0] * size[1]
    padded = -(-length // 4) * 4
    permutations = shuffle._permutations(3, 16, groups, padded, 'cpu')
    channels, *scalars = (p[0].numpy() for p in permutations)
    z = torch.zeros(2, padded, 16, dtype=torch.double)
    z[:, :length] = mixer.norm(x).flatten(2).mT
    expected = torch.zeros_like(z)
    width = 16 // groups
    for g, attention in enumerate(mixer.attentions):
        mine = channels[g * width : (g + 1) * width]
        flat = z[..., mine].flatten(1)
        out = torch.zeros_like(flat)
        for run in np.split(scalars[g], 4):
            tokens = flat[:, run].reshape(2, -1, width)
            q, k, v = attention.qkv(tokens).chunk(3, -1)
            heads = []
            for head in range(2):
                s = slice(head * width // 2, (head + 1) * width // 2)
                scores = q[..., s] @ k[..., s].mT / (width // 2) ** 0.5
                heads.append(scores.softmax(-1) @ v[..., s])
            out[:, run] = attention.project(torch.cat(heads, -1)).flatten(1)
        expected[..., mine] = out.reshape(2, padded, width)
    expected = expected[:, :length].mT.reshape(x.shape)
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-10)


def test_permutations_are_fixed():
    """Weights are worth nothing with others."""
    channels, scalars = (p[0].numpy() for p in shuffle._permutations(0, 8, 1, 4, 'cpu'))
    assert channels.tolist() == np.random.RandomState(0).permutation(8).tolist()
    assert channels.tolist() == [6, 2, 1, 7, 3, 0, 5, 4]
    assert sorted(scalars) == list(range(32))
    mixer, other = ShuffleMixer(16), ShuffleMixer(16, seed=1)
    other.load_state_dict(mixer.state_dict())
    x = torch.rand(1, 16, 5, 5)
    assert torch.equal(mixer(x), copy.deepcopy(mixer)(x))
    assert not torch.allclose(mixer(x), other(x))


# ---- our spectrum mixer ----


@pytest.mark.parametrize('size', SIZES)
def test_spectrum_mixer_weighs_a_cosine_spectrum(size):
    dctn = pytest.importorskip('scipy.fft').dctn
    mixer = build('SpectrumMixer', grid=3)
    x = torch.randn(2, 16, *size, dtype=torch.double)
    z = mixer.query(x)
    spectrum = torch.from_numpy(dctn(z.detach().numpy(), axes=(2, 3), norm='ortho'))
    weights = 2 * mixer.weigh(F.adaptive_avg_pool2d(spectrum.abs(), 3).log1p()).sigmoid()
    weights = F.interpolate(weights, size, mode='bilinear')
    y = dctn((spectrum * weights).detach().numpy(), type=3, axes=(2, 3), norm='ortho')
    expected = mixer.project(torch.from_numpy(y))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-10)


def test_spectrum_mixer_with_equal_weights_changes_nothing():
    mixer = build('SpectrumMixer')
    for param in mixer.weigh[2].parameters():
        nn.init.zeros_(param)  # a sigmoid of 0.5, a weight of 1
    x = torch.randn(1, 16, 9, 6, dtype=torch.double)
    torch.testing.assert_close(mixer(x), mixer.project(mixer.query(x)), rtol=1e-10, atol=1e-10)


# ---- all of them ----


@pytest.mark.parametrize('name', MIXERS)
def test_gradients(name):
    mixer = build(name, 8).train()
    x = torch.randn(2, 8, 3, 5, dtype=torch.double, requires_grad=True)
    for module in mixer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # gradcheck calls it many times
    assert torch.autograd.gradcheck(mixer, (x,), atol=1e-4)
    grads = torch.autograd.grad(mixer(x).square().sum(), list(mixer.parameters()))
    assert all(torch.isfinite(g).all() and g.any() for g in grads)


@pytest.mark.parametrize('name', MIXERS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_and_half(name, dtype, device):
    """Odd sizes too, for which there is no FFT in half precision."""
    mixer = MIXERS[name](16).to(device).eval()
    x = torch.randn(2, 16, 9, 7, device=device)
    with torch.no_grad():
        expected = mixer(x)
        with torch.autocast(device, dtype):
            cast = mixer(x)
        half = copy.deepcopy(mixer).to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    scale = float(expected.std())
    for actual in (cast, half):
        assert float((actual.float() - expected).abs().max()) < 0.1 * scale


@pytest.mark.parametrize('name', MIXERS)
def test_trains_inside_ffnet(name):
    backbone = MODELS.build(
        dict(
            type='FFNet',
            arch='nano',
            drop_path_rate=0.0,
            token_mixer=[None, None, None, dict(type=f'mmffnet.{name}')],
        )
    ).train()
    assert isinstance(backbone.stages[3].blocks[0].token_mixer, MIXERS[name])
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    x = torch.rand(2, 3, 96, 70)
    before = {k: p.detach().clone() for k, p in backbone.named_parameters()}
    sum((torch.rand_like(out) * out).mean() for out in backbone(x)).backward()
    optimizer.step()
    for key, param in backbone.named_parameters():
        if 'stages.3.blocks.0.token_mixer' in key:
            assert torch.isfinite(param).all()
            # a bias in front of what subtracts its mean has no gradient, as keys in a softmax
            if not key.endswith('bias'):
                assert not torch.equal(param, before[key]), key


def test_shuffling_says_that_it_has_one_size():
    shapes = ({2: torch.export.Dim('h', min=2)},)
    with pytest.raises(ValueError, match=r'ShuffleMixer.*fixed'):
        torch.export.export(
            ShuffleMixer(16).eval(), (torch.rand(1, 16, 9, 7),), dynamic_shapes=shapes
        )


@pytest.mark.parametrize(
    ('name', 'kwargs', 'argument'),
    [
        ('AdaptiveFrequencyFilter', dict(channels=20), 'channels'),
        ('AdaptiveFrequencyFilter', dict(channels=16, num_blocks=0), 'num_blocks'),
        ('AdaptiveFrequencyFilter', dict(channels=16, threshold=-0.1), 'threshold'),
        ('GatingMixer', dict(channels=16, grid=0), 'grid'),
        ('GatingMixer', dict(channels=16, grid=(4, 6, 2)), 'grid'),
        ('GatingMixer', dict(channels=16, hidden_channels=-1), 'hidden_channels'),
        ('GatingMixer', dict(channels=16, drop_rate=1.5), 'drop_rate'),
        ('InvertedResidual', dict(channels=16, expansion=0), 'expansion'),
        ('ShuffleMixer', dict(channels=18), 'num_heads'),
        ('ShuffleMixer', dict(channels=16, groups=0), 'groups'),
        ('ShuffleMixer', dict(channels=16, groups=8), 'groups'),
        ('ShuffleMixer', dict(channels=16, seed=-1), 'seed'),
        ('SpectrumMixer', dict(channels=16, grid=1.5), 'grid'),
        ('SpectrumMixer', dict(channels=16, reduction=0), 'reduction'),
    ],
)
def test_bad_arguments(name, kwargs, argument):
    with pytest.raises(ValueError, match=rf'{name}.*{argument}'):
        MIXERS[name](**kwargs)


def test_recorded_names(fixture_dir):
    """The shapes above are those of the original."""
    keys = full_keys(fixture_dir, 'mixers')
    assert {k: tuple(s) for k, s in keys['nin_mgu']['keys']} == GATE_SHAPES
    assert {k: tuple(s) for k, s in keys['nin_block']['keys'] if 'ffn' in k} == {
        f'ffn.{k}': v for k, v in FFN_SHAPES.items()
    }
