"""mmpretrain's ImageClassifier with our backbones is the official classifier."""

import copy

import numpy as np
import official_reference as official
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from reference_numbers import LIMITS, deviation, load

import mmffnet
from mmffnet.engine import runner

pytest.importorskip('mmpretrain')

LIMIT = LIMITS['float64']
NETWORKS = {
    'ffnet1_in1k': ('cls', 'ffnet_1'),
    'ffnetseg_in1k': ('seg', 'ffnet_seg_pretrain'),
}


def build(name, **changes):
    cfg = runner.read_config(f'classification/{name}.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(cfg.model, **changes)).double().eval()


@pytest.fixture(scope='module', params=NETWORKS)
def classifier(request, device):
    """A classifier with the filled official weights, its kind and variant, and these weights."""
    kind, variant = NETWORKS[request.param]
    weights = official.fill(official.official_keys(variant, kind))
    model = build(request.param)
    model.load_state_dict(weights)  # all of them, under the official names
    return model.to(device), kind, variant, weights


def logits(model, x):
    with torch.no_grad():
        return model(x.to(next(model.parameters()).device))


@pytest.mark.slow
def test_logits_equal_the_committed_official_numbers(classifier):
    model, kind, variant, _ = classifier
    records = load(f'{kind}_{variant}')
    assert {tuple(r['size']) for r in records} == {(64, 64), (96, 128)}
    fused = mmffnet.reparameterize(copy.deepcopy(model))
    assert len(list(fused.modules())) < len(list(model.modules()))
    for record in records:
        x = official.make_input(*record['size'])
        assert deviation(logits(model, x), record) < LIMIT
        assert deviation(logits(fused, x), record) < LIMIT


def test_logits_equal_the_full_official_outputs(classifier, fixture_dir):
    model, kind, variant, _ = classifier
    path = fixture_dir / f'{kind}_{variant}.out.npz'
    if not path.is_file():
        pytest.skip(f'there is no {path.name} in the full outputs')
    fused = mmffnet.reparameterize(copy.deepcopy(model))
    with np.load(path) as arrays:
        for size in ('64x64', '96x128'):
            x = torch.from_numpy(arrays[f'x_{size}'])
            assert deviation(logits(model, x), arrays[f'logits_{size}']) < LIMIT
            assert deviation(logits(fused, x), arrays[f'logits_{size}']) < LIMIT


@pytest.mark.slow
def test_a_fused_model_loads_official_files(tmp_path):
    """Through mmengine, as `load_from` and tools/test.py do it."""
    weights = official.fill(official.official_keys('ffnet_1', 'cls'))
    torch.save({'state_dict': weights, 'epoch': 3}, tmp_path / 'ffnet_1.pth.tar')
    model = build('ffnet1_in1k', type='mmffnet.Reparameterized', original='ImageClassifier')
    load_checkpoint(model, str(tmp_path / 'ffnet_1.pth.tar'), strict=True)
    (record, _) = load('cls_ffnet_1')
    assert deviation(logits(model, official.make_input(*record['size'])), record) < LIMIT


@pytest.mark.slow
def test_own_checkpoints_load_as_they_are(classifier):
    model = classifier[0]
    state = model.state_dict()
    assert not any('patch_embed' in key for key in state)
    other = copy.deepcopy(model)
    for value in other.state_dict().values():
        value.zero_()
    other.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize('name', ['ffnet1_in1k', 'ffnetseg_in1k'])
@pytest.mark.slow
def test_initial_weights_are_the_official_ones(name):
    """Truncated normal with std 0.02 in all convolutions and linear layers, biases 0."""
    model = build(name)
    model.init_weights()
    for key, param in model.named_parameters():
        value = param.detach()
        if key.endswith('bias'):
            assert not value.any(), key
        elif key.endswith('scale'):
            assert value.unique().tolist() == pytest.approx([1e-5]), key
        elif value.ndim == 1:
            assert (value == 1).all(), key
        else:
            error = 4 * 0.02 / (2 * value.numel()) ** 0.5  # four standard errors
            assert float(value.std()) == pytest.approx(0.02, abs=error), key
