import pytest
import torch
from mmengine.registry import MODELS


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_normalises_over_channels_and_keeps_the_layout(layout):
    norm = MODELS.build(dict(type='mmffnet.ChannelLayerNorm', channels=6)).double()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x = torch.randn(2, 6, 4, 5, dtype=torch.double).to(memory_format=layout)
    y = norm(x)
    assert y.is_contiguous(memory_format=layout)
    for n, h, w in ((0, 0, 0), (1, 3, 4), (1, 2, 0)):
        v = x[n, :, h, w]
        expected = (v - v.mean()) / (v.var(unbiased=False) + 1e-6).sqrt() * norm.weight + norm.bias
        torch.testing.assert_close(y[n, :, h, w], expected)


def test_gradients():
    norm = MODELS.build(dict(type='mmffnet.ChannelLayerNorm', channels=3)).double()
    x = torch.randn(2, 3, 2, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
