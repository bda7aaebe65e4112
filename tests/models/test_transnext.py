"""TransNeXt is numerically the official network."""

import families
import pytest
import torch
from reference_numbers import LIMITS, deviation

from mmffnet.checkpoint import load_pretrained
from mmffnet.models import FFNet, TransNeXt
from mmffnet.models.mixers import AggregatedAttention
from mmffnet.models.transnext import TRANSNEXT_NAMES

LIMIT = LIMITS['float64']
TINY = dict(depths=(1, 1, 1, 1), channels=(24, 48, 48, 72))
# of the classifiers, as published
PARAMETERS = {
    'micro': 12_809_304,
    'tiny': 28_258_960,
    'small': 49_741_564,
    'base': 89_721_496,
    'micro-AAAA': 13_114_008,
}


def filled(backbone):
    """The state of the stored outputs, by official names."""
    return families.fill(
        (TRANSNEXT_NAMES.to_official(name), value.shape)
        for name, value in backbone.state_dict().items()
    )


@pytest.fixture(scope='module')
def loaded(device):
    backbone = TransNeXt('micro').double().eval()
    backbone.load_state_dict(filled(backbone))
    return backbone.to(device)


@torch.no_grad()
def levels(backbone, size):
    x = families.make_input(*size).to(next(backbone.parameters()).device)
    return {f'{size[0]}x{size[1]}_{i}': out.cpu() for i, out in enumerate(backbone(x))}


@pytest.mark.parametrize('size', families.SIZES)
def test_outputs_equal_the_committed_official_numbers(loaded, size):
    stored = families.compact('transnext_micro')
    for name, out in levels(loaded, size).items():
        (key,) = (key for key in stored if key.endswith(name))
        assert deviation(out.numpy(), stored[key]) < LIMIT, name


@pytest.mark.parametrize('size', families.SIZES)
def test_outputs_equal_the_full_official_outputs(loaded, size, fixture_dir):
    stored = families.full(fixture_dir, 'transnext_micro')
    for name, out in levels(loaded, size).items():
        expected = torch.from_numpy(stored[f'extrap_{name}'])
        assert float((out - expected).abs().max() / expected.std()) < LIMIT, name


@torch.no_grad()
def test_interpolation_of_the_own_size_changes_nothing(loaded):
    other = TransNeXt('micro', bias='interpolate', img_size=64).double().eval()
    other.load_state_dict(loaded.state_dict())
    x = families.make_input(64, 64)
    device = next(loaded.parameters()).device
    for a, b in zip(other.to(device)(x.to(device)), loaded(x.to(device)), strict=True):
        assert float((a - b).abs().max() / b.std()) < LIMIT


@pytest.mark.parametrize('arch', PARAMETERS)
def test_parameters(arch):
    with torch.device('meta'):
        backbone = TransNeXt(arch)
    head = 1000 * (backbone.channels[-1] + 1)
    assert sum(p.numel() for p in backbone.parameters()) + head == PARAMETERS[arch]


@pytest.mark.parametrize('size', [(96, 64), (75, 101)])
def test_rows_at_a_time_give_the_same_numbers_and_gradients(size, monkeypatch):
    backbone = TransNeXt(TINY, drop_path_rate=0.0).double()
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    results = []
    for chunk_size in (2**24, 1000):
        for module in backbone.modules():
            if hasattr(module, 'chunk_size'):
                monkeypatch.setattr(module, 'chunk_size', chunk_size)
        backbone.zero_grad()
        outs = backbone(x)
        sum(out.square().mean() for out in outs).backward()
        results.append([*outs, *(p.grad for p in backbone.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_official_files_load_strictly_at_any_prefix(tmp_path):
    source = TransNeXt(TINY)
    state = {TRANSNEXT_NAMES.to_official(k): v for k, v in source.state_dict().items()}
    assert 'block1.0.attn.query_embedding' in state and 'norm4.weight' in state
    path = tmp_path / 'transnext.pth'
    head = {'head.weight': torch.zeros(1000, 72), 'head.bias': torch.zeros(1000)}
    torch.save(dict(model={**state, **head}), path)
    target = TransNeXt(TINY)
    load_pretrained(target, str(path))
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in state.items()}), path)
    load_pretrained(target, str(path))
    state.pop('block2.0.attn.temperature')
    torch.save(dict(model=state), path)
    with pytest.raises(ValueError, match='temperature'):
        load_pretrained(target, str(path))


def test_no_weight_decay_as_published():
    names = TransNeXt(TINY).no_weight_decay()
    parts = {TRANSNEXT_NAMES.to_official(name).split('attn.')[1] for name in names}
    assert {'query_embedding', 'relative_pos_bias_local', 'temperature', 'cpb_fc1.weight'} <= parts


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


@pytest.mark.parametrize('name', ['bias', 'pretrain_size', 'img_size'])
def test_bad_arguments(name):
    with pytest.raises(ValueError, match=name):
        TransNeXt(TINY, **{name: 0})


def test_aggregated_attention_takes_maps_of_any_size():
    mixer = AggregatedAttention(24, head_dim=24).eval()
    for size in ((1, 1), (2, 5), (9, 4)):
        assert mixer(torch.rand(1, 24, *size)).shape == (1, 24, *size)
