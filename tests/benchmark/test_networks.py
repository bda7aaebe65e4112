"""What names stand for, and networks of timm's as backbones."""

import pytest
import torch
from torch import nn

from mmffnet.benchmark.networks import PEERS, find_network
from mmffnet.errors import UsageError


@pytest.mark.slow
def test_our_names():
    network = find_network('ffnet2')
    assert (network.size, network.accuracy, network.ours) == ((256, 256), 82.9, True)
    assert network.build('meta').arch == 'ffnet2'
    assert find_network('nano').accuracy is None
    assert find_network('ffnet4').accuracy is None  # published for 384 pixels alone
    maps = find_network('ffnetseg').build('meta')(torch.rand(1, 3, 64, 64, device='meta'))
    assert [y.shape[2] for y in maps] == [16, 8, 4, 2]


@pytest.mark.parametrize(
    ('name', 'side', 'accuracy'),
    [
        ('poolformer-s12', 224, 77.2),
        ('casvit-xs', 224, 78.3),
        ('casvit-l', 224, None),
        ('transnext-micro-AAAA', 256, 82.6),
        ('affnet-et', 256, 73.0),
    ],
)
def test_families(name, side, accuracy):
    network = find_network(name)
    assert (network.size, network.accuracy, network.ours) == ((side, side), accuracy, False)
    assert network.build('meta').arch == name.partition('-')[2]


@pytest.mark.parametrize('name', ['resnet50', 'swin_tiny', 'fastvit_sa24', 'timm:resnet18'])
def test_peers(name):
    pytest.importorskip('timm')
    network = find_network(name)
    assert not network.ours
    assert network.accuracy == (PEERS[name].accuracy if name in PEERS else None)
    model = network.build('cpu')
    with torch.no_grad():
        maps = model(torch.rand(1, 3, 64, 96))
    assert [tuple(y.shape) for y in maps] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(model.out_channels, (4, 8, 16, 32), strict=True)
    ]


def test_all_peers_exist():
    timm = pytest.importorskip('timm')
    for peer in PEERS.values():
        assert timm.is_model(peer.timm_name)
        assert peer.size in (224, 256) and 75 < peer.accuracy < 90


@pytest.mark.parametrize('around', ['maskrcnn', 'upernet'])
@pytest.mark.slow
def test_around(around):
    pytest.importorskip('mmdet' if around == 'maskrcnn' else 'mmseg')
    pytest.importorskip('timm')
    for name in ('nano', 'casvit-xs', 'timm:resnet18'):
        network = find_network(name, around)
        assert network.size == dict(maskrcnn=(800, 1344), upernet=(512, 512))[around]
        model = network.build('cpu')
        assert not model.training
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
        widths = model.backbone.out_channels
        with torch.no_grad():
            maps = model.extract_feat(torch.rand(1, 3, 64, 64))
        assert len(maps) == (5 if around == 'maskrcnn' else 4) and len(widths) == 4


@pytest.mark.parametrize(
    ('config', 'size'),
    [
        ('detection/retinanet_ffnet1_coco.py', (800, 1344)),
        ('detection/rtmdet_ffnet2_coco.py', (640, 640)),
        ('segmentation/upernet_ffnet2_cityscapes.py', (1024, 1024)),
    ],
)
def test_sizes_of_configs(config, size):
    pytest.importorskip('mmdet' if 'detection' in config else 'mmseg')
    assert find_network(config).size == size


@pytest.mark.parametrize(
    ('name', 'around', 'message'),
    [
        ('ffnet9', None, "no network 'ffnet9': there are nano, ffnet1"),
        ('no/such.py', None, "no config file 'no/such.py'"),
        ('detection/retinanet_ffnet1_coco.py', 'upernet', 'is a whole model'),
        ('none.onnx', None, 'no exported model none.onnx'),
        ('none.onnx', 'upernet', 'is a whole model'),
    ],
)
def test_mistakes(name, around, message):
    with pytest.raises(UsageError, match=message):
        find_network(name, around)


def test_mistake_in_a_name_of_timm():
    pytest.importorskip('timm')
    with pytest.raises(UsageError, match="timm has no backbone 'bla'"):
        find_network('timm:bla').build('cpu')
