"""Parameters and multiply-adds: by hand for a small network, published ones for the large."""

import pytest
import torch
from torch import nn

from mmffnet.benchmark.flops import count, count_network, describe
from mmffnet.benchmark.networks import find_network
from mmffnet.errors import UsageError


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict()
        self.body['conv'] = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body['depthwise'] = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.norm(self.body['depthwise'](self.body['conv'](x)))
        return self.head(self.act(x).mean((2, 3)))


@pytest.mark.parametrize('device', ['meta', 'cpu'])
def test_by_hand(device):
    with torch.device(device):
        model = Small()
    cost = count(model, (32, 48))
    area = 16 * 24
    conv, depthwise, head = area * 8 * 27, area * 8 * 25, 8 * 10
    assert cost.parameters == 8 * 27 + 8 + 8 * 25 + 2 * 8 + 8 * 10 + 10
    assert cost.macs == conv + depthwise + head
    # what is called by its parts is their sum
    parts = {'body': conv + depthwise, 'body.conv': conv, 'body.depthwise': depthwise, 'head': head}
    assert cost.parts == parts
    assert cost.values == dict(bias=area * 8, norm=area * 8, relu=area * 8)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ('arch', 'numbers'),
    [('ffnet1', (13.136, 3.000, 13.020, 2.984)), ('ffnet2', (26.505, 6.060, 26.205, 6.003))],
)
@pytest.mark.slow
def test_backbones_of_the_readme(arch, numbers):
    both = count_network(find_network(arch), (256, 256))
    found = [value for cost in both for value in (cost.parameters / 1e6, cost.macs / 1e9)]
    assert found == pytest.approx(numbers, abs=6e-4)


def test_two_stages():
    """What a second stage does depends on the first: it cannot be counted on 'meta'."""
    pytest.importorskip('mmdet')
    network = find_network('detection/maskrcnn_nano_shapes.py')
    trained, fused = count_network(network, (64, 96))
    top = {name: macs for name, macs in trained.parts.items() if '.' not in name}
    assert set(top) == {'backbone', 'neck', 'rpn_head', 'roi_head'}
    assert sum(top.values()) == trained.macs
    # 50 proposals, two fully connected layers and two outputs
    assert trained.parts['roi_head.bbox_head'] == 50 * (48 * 49 * 256 + 256 * 256 + 256 * 10)
    assert fused.macs < trained.macs and fused.parameters < trained.parameters
    text = describe('mask', (64, 96), trained, fused, depth=1)
    assert '64 x 96' in text and 'roi_head ' in text and 'roi_head.' not in text


def test_pictures_that_do_not_fit():
    with pytest.raises(ValueError, match='at least 32'):
        count_network(find_network('nano'), (16, 16))
    with pytest.raises(UsageError, match='no network'):
        find_network('ffnet5')
