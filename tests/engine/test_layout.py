"""That channels_last holds from the pictures to the heads, without copies in between."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmffnet.engine import ChannelsLastHook
from mmffnet.engine.runner import read_config

LAST = torch.channels_last


def _strided(x):
    """A map in which the memory format makes a difference."""
    return isinstance(x, torch.Tensor) and x.ndim == 4 and x.shape[1] > 1 and x[0, 0].numel() > 1


class Runner:
    def __init__(self, model):
        self.model = model


@pytest.mark.parametrize(
    ('package', 'config'),
    [
        ('mmdet', 'detection/maskrcnn_nano_shapes.py'),
        ('mmdet', 'detection/retinanet_nano_shapes.py'),
        ('mmseg', 'segmentation/semfpn_nano_shapes.py'),
    ],
)
def test_maps_and_gradients_between_backbone_neck_and_heads(package, config):
    pytest.importorskip(package)
    cfg = read_config(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).train()
    ChannelsLastHook().before_train(Runner(model))
    seen, wrong = set(), set()

    def look(name, what, maps):
        for x in maps if isinstance(maps, list | tuple) else [maps]:
            if _strided(x):
                seen.add((name.partition('.')[0], what))
                if x.stride(1) != 1:  # some channels of a map will do
                    wrong.add((name, what))

    def hook(name):
        def look_at(module, inputs, outputs):
            look(name, 'map', [*inputs, outputs])
            for y in outputs if isinstance(outputs, list | tuple) else [outputs]:
                if isinstance(y, torch.Tensor) and y.requires_grad:
                    y.register_hook(lambda gradient: look(name, 'gradient', gradient))

        return look_at

    for name, module in model.named_modules():
        if name and not name.startswith('data_preprocessor'):
            module.register_forward_hook(hook(name))
    maps = model.backbone(torch.rand(2, 3, 64, 96).contiguous(memory_format=LAST))
    maps = model.neck(maps) if model.with_neck else maps
    for name in ('rpn_head', 'bbox_head', 'decode_head', 'auxiliary_head'):
        head = getattr(model, name, None)
        if head is not None:
            found = head(maps)
            found = [y for ys in found for y in ys] if isinstance(found, tuple) else [found]
            rows = [y.permute(0, 2, 3, 1).flatten() for y in found]  # as losses take them
            torch.cat(rows).square().sum().backward(retain_graph=True)
    heads = {'rpn_head', 'bbox_head', 'decode_head'}
    for what in ('map', 'gradient'):
        parts = {name for name, kind in seen if kind == what}
        assert 'backbone' in parts and parts & heads
    assert not wrong
