"""Checkpoints that version 0.1 wrote load bit-equal and give the outputs that they gave."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmffnet.registry import MODELS

DATA = Path(__file__).parents[1] / 'data'


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('network', ['ffnet', 'ffnetseg'])
def test_checkpoints_of_version_0_1(network, deploy):
    """Half-precision weights with statistics of training steps; the outputs are in float64."""
    file = torch.load(DATA / f'version_0.1_{network}.pth', weights_only=True)
    state, meta = file['state_dict'], file['meta']
    model = MODELS.build(dict(meta['backbone'], deploy=deploy)).double().eval()
    result = model.load_state_dict({k: v.double() for k, v in state.items()})
    assert not result.missing_keys and not result.unexpected_keys
    if not deploy:
        own = model.state_dict()
        assert list(own) == list(state)
        assert all(torch.equal(own[key], value.to(own[key].dtype)) for key, value in state.items())
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 40, 56)))
    with torch.no_grad():
        outs = model(x)
    for out, expected in zip(outs, meta['outputs'], strict=True):
        assert float((out - expected).abs().max() / expected.std()) < 1e-9
