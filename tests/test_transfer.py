"""From a classifier that was trained here to a detector and a segmentor: every weight arrives."""

import logging
import pickle
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope

from mmffnet.checkpoint import read_checkpoint
from mmffnet.datasets import CLASSES
from mmffnet.datasets.scenes import draw_portrait
from mmffnet.engine import find_checkpoint, runner
from mmffnet.inference import Inferencer
from mmffnet.models.ffnet import FFNET_NAMES

pytestmark = pytest.mark.slow

pytest.importorskip('mmpretrain')
TOOLS = Path(__file__).parents[1] / 'tools'
CONFIG = 'classification/ffnet_nano_shapes.py'
AVERAGE = dict(type='mmffnet.RawAndEMAHook', momentum=0.3, update_buffers=True)


def options(root):
    found = ['train_cfg.max_iters=3', 'train_dataloader.batch_size=4', 'train_cfg.val_interval=3']
    for part in ('train', 'val', 'test'):
        dataset = f'{part}_dataloader.dataset'
        found += [f'{dataset}.data_root={root}/shapes', f'{dataset}.shapes.train=12']
        found += [f'{dataset}.shapes.val=6', f'{dataset}.shapes.size=32']
    return found


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Folder of three iterations with a moving average."""
    root = tmp_path_factory.mktemp('transfer')
    cfg = runner.read_config(CONFIG, options(root), str(root / 'work'))
    cfg.custom_hooks = [AVERAGE]
    runner.build_runner(runner.train_config(cfg)).train()
    return root


def predict(root, checkpoint, name, **options_of_the_tool):
    """What tools/test.py finds, and the scores of all pictures."""
    cfg = runner.read_config(CONFIG, options(root), str(root / 'work'))
    cfg.custom_hooks = [AVERAGE]
    cfg.test_evaluator.topk = (1, 5)
    out = root / f'{name}.pkl'
    runner.test_config(cfg, str(checkpoint), str(out), **options_of_the_tool)
    found = runner.build_runner(cfg).test()
    predictions = pickle.loads(out.read_bytes())  # noqa: S301 - written just now
    return found, torch.stack([prediction['pred_score'] for prediction in predictions])


def test_the_tool_tests_own_and_official_checkpoints_plain_and_fused(trained):
    path = find_checkpoint(trained / 'work')
    found, scores = predict(trained, path, 'own')
    assert 0 <= found['accuracy/top1'] <= found['accuracy/top5'] == 100  # of five classes
    torch.testing.assert_close(predict(trained, path, 'fused', fuse=True)[1], scores)

    def official(key):
        if key.startswith('backbone.norm3.'):
            return key.removeprefix('backbone.').replace('norm3', 'norm')
        key = FFNET_NAMES.to_official(key.removeprefix('backbone.'))
        return key.replace('head.fc.', 'head.')

    state = read_checkpoint(path)['state_dict']
    renamed = {official(key): value for key, value in state.items()}
    assert renamed.keys() >= {'patch_embed.0.c.weight', 'norm.running_var', 'head.bias'}
    torch.save({'state_dict': renamed, 'epoch': 3}, trained / 'official.pth.tar')
    other = predict(trained, trained / 'official.pth.tar', 'official')[1]
    assert torch.equal(other, scores)


def test_own_weights_are_such_a_checkpoint_in_half_precision(trained, tmp_path, monkeypatch):
    path = find_checkpoint(trained / 'work')
    monkeypatch.setattr(sys, 'argv', ['make_nano.py', path, str(tmp_path / 'nano.pth')])
    runpy.run_path(str(TOOLS / 'dev' / 'make_nano.py'), run_name='__main__')
    whole, half = read_checkpoint(path)['state_dict'], read_checkpoint(tmp_path / 'nano.pth')
    assert half['meta']['dataset_meta']['classes'] == CLASSES and half['meta']['iterations'] == 3
    for name, tensor in half['state_dict'].items():
        assert torch.equal(tensor, whole[name].half())
    found, _ = predict(trained, tmp_path / 'nano.pth', 'half')
    assert found.keys() == predict(trained, path, 'own')[0].keys()


def test_own_weights_know_the_shapes():
    """Pictures that no training has seen."""
    inferencer = Inferencer(CONFIG, 'mmffnet://ffnet-nano')
    pictures = [draw_portrait(seed=7, split=3, index=i, size=96).image for i in range(40)]
    # arrays are in the order B, G, R
    found = [result.top()[0][0] for result in inferencer([p[..., ::-1] for p in pictures])]
    right = sum(label == i % len(CLASSES) for i, label in enumerate(found))
    assert right >= 36


@pytest.mark.parametrize(
    ('config', 'scope'),
    [
        ('detection/maskrcnn_nano_shapes.py', 'mmdet'),
        ('segmentation/upernet_nano_shapes.py', 'mmseg'),
    ],
)
def test_every_tensor_of_the_backbone_arrives(config, scope, trained, caplog):
    pytest.importorskip(scope)
    path = find_checkpoint(trained / 'work')
    checkpoint = read_checkpoint(path)
    state, raw = checkpoint['state_dict'], checkpoint['ema_state_dict']
    weights = {
        key.removeprefix('backbone.'): value
        for key, value in state.items()
        if key.startswith('backbone.') and 'norm3' not in key
    }
    # something was learned, and the average is not the last step
    name = 'backbone.stem.conv1.conv.weight'
    assert not torch.equal(state[name], raw[f'module.{name}'])

    cfg = runner.read_config(config)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model)
    logger = MMLogger.get_instance('test_transfer', logger_name='test_transfer')
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    model.init_weights()
    logger.removeHandler(caplog.handler)
    own = model.backbone.state_dict()
    outputs = {key for key in own if key.startswith('norm')}
    assert weights.keys() == own.keys() - outputs
    assert all(torch.equal(own[key], value) for key, value in weights.items())
    # the classifier's batch norm is not taken for the layer norm of the same name
    assert len(outputs) == 8 and state['backbone.norm3.bias'].any()
    for key in outputs:
        assert (own[key] == float(key.endswith('weight'))).all(), key
    assert 'new, not in the checkpoint: norm0.*, norm1.*, norm2.*, norm3.*' in caplog.text
