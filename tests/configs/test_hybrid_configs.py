"""The hybrids: FFNet with attention in the last stage, and official weights in the others."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import mmffnet
from mmffnet.models import AggregatedAttention, FFNifiedAttention, SelfAttention
from mmffnet_cli.paths import config_names

CONFIGS = [name for name in config_names() if '/hybrid/' in name]


def test_what_is_there():
    assert CONFIGS == [
        'detection/hybrid/maskrcnn_ffnet2-aggregated_coco.py',
        'detection/hybrid/maskrcnn_ffnet2-attention_coco.py',
        'segmentation/hybrid/semfpn_ffnet1-attention_ade20k.py',
    ]


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.slow
def test_attention_in_the_last_stage(name, tmp_path):
    scope = 'mmdet' if name.startswith('detection/') else 'mmseg'
    pytest.importorskip(scope)
    cfg = Config.fromfile(mmffnet.config_path(name))
    with DefaultScope.overwrite_default_scope(scope):
        with torch.device('meta'):
            assert MODELS.build(cfg.model).backbone.arch == cfg.model.backbone.arch
        backbone = dict(cfg.model.backbone, norm_cfg=dict(type='BN'))
        # the official file is not at hand: one of the same network
        plain = MODELS.build(dict(backbone, token_mixer=None, init_cfg=None))
        torch.save(plain.state_dict(), tmp_path / 'plain.pth')
        backbone['init_cfg'] = dict(backbone['init_cfg'], checkpoint=str(tmp_path / 'plain.pth'))
        hybrid = MODELS.build(backbone)
    hybrid.init_weights()
    kinds = [type(stage.blocks[0].token_mixer) for stage in hybrid.stages]
    attention = AggregatedAttention if 'aggregated' in name else SelfAttention
    assert kinds == [FFNifiedAttention] * 3 + [attention]
    state = plain.state_dict()
    loaded = [n for n, v in hybrid.state_dict().items() if n in state and torch.equal(v, state[n])]
    new = [n for n in hybrid.state_dict() if n not in loaded]
    assert new and all('stages.3.' in n and 'token_mixer' in n for n in new)
