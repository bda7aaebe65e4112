"""Peak memory of a step, against what can be worked out by hand."""

from functools import partial

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmffnet.benchmark.profile import peak_memory


@pytest.mark.parametrize(
    'device',
    [
        'cpu',
        pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='GPU')),
    ],
)
def test_by_hand(device):
    model = nn.Linear(1000, 1000, bias=False).to(device)
    x = torch.rand(500, 1000, device=device)

    def step():
        y = model(x)
        z = y.relu()
        z.sum().backward()
        return z

    result, found = peak_memory(step, model, x)
    weight, map_ = 4_000_000, 2_000_000
    # weight and x; y and z, which are both held; the gradients of y and of the weight
    assert found == pytest.approx(weight + map_ + 2 * map_ + map_ + weight, rel=0.02)
    assert result.shape == (500, 1000)
    # the gradients are there now, and are not counted the next time
    assert peak_memory(step, model, x)[1] == found


@pytest.mark.parametrize(('with_cp', 'least', 'most'), [(False, 12, 40), (True, 1, 3)])
def test_recomputing_keeps_one_map_a_block(with_cp, least, most):
    found = {}
    for depth in (2, 8):
        arch = dict(depths=(depth, 1, 1, 1), channels=(16, 16, 16, 16), stem_channels=8)
        settings = dict(type='FFNet', arch=arch, out_indices=(0,), with_cp=with_cp)
        model = MODELS.build(settings).train()
        step = partial(run_and_differentiate, model, torch.rand(1, 3, 128, 128))
        found[depth] = peak_memory(step, model, step.args[1])[1]
    map_ = 4 * 16 * 32 * 32
    assert least < (found[8] - found[2]) / 6 / map_ < most


def run_and_differentiate(model, image):
    sum(y.sum() for y in model(image)).backward()
