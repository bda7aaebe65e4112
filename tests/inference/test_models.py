"""Predictions against those of mmdet, mmseg and mmpretrain; models that do not fit."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from toy_models import META, TASKS

from mmffnet.datasets import PALETTE
from mmffnet.engine.hooks import speed
from mmffnet.engine.runner import read_config
from mmffnet.errors import UsageError
from mmffnet.inference import Inferencer
from mmffnet.ops import depthwise_cpu
from mmffnet.visualization import Legend


def test_detections_are_those_of_mmdet(models, inferencers, pictures):
    config, checkpoint = models('detection')
    results = inferencers('detection')(pictures)
    from mmdet.apis import inference_detector, init_detector

    cfg = read_config(config)
    model = init_detector(cfg, checkpoint, palette='random', device='cpu')
    for path, result in zip(pictures, results, strict=True):
        expected = inference_detector(model, str(path)).pred_instances
        assert 5 < len(expected) == len(result.scores)
        np.testing.assert_array_equal(result.boxes, expected.bboxes.numpy())
        np.testing.assert_array_equal(result.scores, expected.scores.numpy())
        np.testing.assert_array_equal(result.labels, expected.labels.numpy())
        np.testing.assert_array_equal(result.masks, expected.masks.numpy())
        assert result.masks.dtype == bool and result.masks.any()


def test_labels_are_those_of_mmseg(models, inferencers, pictures):
    config, checkpoint = models('segmentation')
    results = inferencers('segmentation')(pictures, batch_size=3)
    from mmseg.apis import inference_model, init_model

    cfg = read_config(config)
    load, _, *others = cfg.test_dataloader.dataset.pipeline
    cfg.test_pipeline = [load, *others]  # without the labels
    model = init_model(cfg, checkpoint, device='cpu')
    for path, result in zip(pictures, results, strict=True):
        expected = inference_model(model, str(path)).pred_sem_seg.data[0].numpy()
        np.testing.assert_array_equal(result.labels, expected)
    assert len(np.unique(results[0].labels)) > 1


def test_scores_are_those_of_mmpretrain(models, inferencers, pictures):
    config, checkpoint = models('classification')
    results = inferencers('classification')(pictures, batch_size=2)
    from mmpretrain.apis import ImageClassificationInferencer

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = ImageClassificationInferencer(read_config(config), checkpoint, device='cpu')
    for path, result in zip(pictures, results, strict=True):
        expected = theirs(str(path))[0]['pred_scores']
        np.testing.assert_allclose(result.scores, expected, atol=1e-6)
        assert result.top(1)[0][0] == expected.argmax()
    assert np.ptp(results[0].scores) > 0.02


@pytest.mark.parametrize('task', TASKS)
def test_batches_fused_models_and_arrays_give_the_same(models, inferencers, pictures, task):
    config, checkpoint = models(task)
    same = [cv2.imread(str(pictures[i])) for i in (0, 2)]
    plain, fused = inferencers(task), Inferencer(config, checkpoint, fuse=True)
    norms = [
        sum(isinstance(m, torch.nn.BatchNorm2d) for m in one.model.model.backbone.modules())
        for one in (plain, fused)
    ]
    assert norms[0] > 30 and norms[1] <= 4
    expected = plain([str(pictures[i]) for i in (0, 2)])
    for results in (plain(same, batch_size=2), fused(same)):
        for result, wanted in zip(results, expected, strict=True):
            if task == 'segmentation':
                assert (result.labels == wanted.labels).mean() > 0.999
            else:
                np.testing.assert_allclose(result.scores, wanted.scores, atol=1e-4)
            if task == 'detection':
                np.testing.assert_allclose(result.boxes, wanted.boxes, atol=0.05)


@pytest.mark.parametrize('task', TASKS)
def test_fast_forms_give_nearly_the_same(models, inferencers, pictures, task, monkeypatch):
    expected, said = inferencers(task)(pictures), []
    monkeypatch.setattr(speed, 'print_log', lambda text, *_: said.append(text))
    monkeypatch.setattr(depthwise_cpu, 'has_bfloat16', lambda: False)
    depthwise_cpu.warn_of_bfloat16.cache_clear()
    with pytest.warns(UserWarning, match='float32'):
        fast = Inferencer(*models(task), device='cpu', amp=True, channels_last=True, graph=True)
    assert len(said) == 1 and 'GPU' in said[0]
    stem = fast.model.model.backbone.stem.conv1.conv.weight
    assert stem.is_contiguous(memory_format=torch.channels_last) and not stem.is_contiguous()
    count = 0
    for result, wanted in zip(fast(pictures), expected, strict=True):
        if task == 'segmentation':
            assert 0.9 < (result.labels == wanted.labels).mean() < 1
        elif task == 'classification':
            np.testing.assert_allclose(result.scores, wanted.scores, atol=0.05)
            assert (result.scores != wanted.scores).any()
        else:
            count += len(result.scores)
    assert task != 'detection' or count > 5


@pytest.mark.parametrize('task', TASKS)
def test_augmented_predictions_are_symmetric(models, inferencers, pictures, task):
    config, checkpoint = models(task)
    options = ['model.roi_head.mask_head=None', 'test_evaluator.metric=bbox']
    options = options if task == 'detection' else []
    # what the mask head would have used is in the checkpoint, and is left out
    inferencer = Inferencer(config, checkpoint, tta=True, cfg_options=options)
    picture = cv2.imread(str(pictures[0]))
    one, mirrored = inferencer([picture, np.ascontiguousarray(picture[:, ::-1])])
    plain = inferencers(task)(picture)[0]
    if task == 'segmentation':
        np.testing.assert_array_equal(one.labels, mirrored.labels[:, ::-1])
        assert (one.labels != plain.labels).any()
        return
    np.testing.assert_allclose(one.scores, mirrored.scores, atol=1e-5)
    assert one.scores.shape != plain.scores.shape or (one.scores != plain.scores).any()
    if task == 'detection':
        x1, y1, x2, y2 = mirrored.boxes.T
        back = np.stack([picture.shape[1] - x2, y1, picture.shape[1] - x1, y2], axis=1)
        np.testing.assert_allclose(one.boxes, back, atol=1e-2)


def test_classes_come_from_the_data_set_without_the_data(models, tmp_path, monkeypatch):
    config, checkpoint = models('classification')
    monkeypatch.chdir(tmp_path)
    torch.save(torch.load(checkpoint)['state_dict'], 'bare.pth')
    assert Inferencer(config, 'bare.pth').legend.classes == META['classification']['classes']
    config, checkpoint = models('detection')
    raw = torch.load(checkpoint)
    raw['meta']['dataset_meta'] = dict(CLASSES=['a', 'b', 'c', 'd', 'e'])
    torch.save(raw, 'other.pth')
    legend = Inferencer(config, 'other.pth').legend
    assert legend == Legend(('a', 'b', 'c', 'd', 'e'), PALETTE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['bare.pth', 'other.pth']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda raw: raw['state_dict'].pop('rpn_head.rpn_cls.bias'),
            r'fill 1 of 297 tensors: rpn_head\.rpn_cls\.bias',
        ),
        (lambda raw: raw.pop('state_dict'), 'has no state_dict'),
        (
            lambda raw: raw['state_dict'].update({'rpn_head.rpn_cls.bias': torch.zeros(7)}),
            'does not fit the model: .*size mismatch for rpn_head.rpn_cls.bias',
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(models, tmp_path, change, message):
    config, checkpoint = models('detection')
    raw = torch.load(checkpoint)
    change(raw)
    torch.save(raw, tmp_path / 'bad.pth')
    with pytest.raises(UsageError, match=message):
        Inferencer(config, str(tmp_path / 'bad.pth'))


@pytest.mark.parametrize(
    ('text', 'settings', 'message'),
    [
        ('', {}, 'the default_scope None; it must be one of mmdet'),
        ("default_scope = 'mmseg'\nmodel = dict()", {}, 'no test_dataloader with a pipeline'),
        ("default_scope = 'mmseg'", dict(device='cuda:77'), "there is no device 'cuda:77'"),
        ("default_scope = 'mmseg'", dict(checkpoint='no.pth'), "no checkpoint file 'no.pth'"),
        (
            "default_scope = 'mmseg'\nmodel = dict(type='NoSuch')\n"
            "test_dataloader = dict(dataset=dict(type='ADE20KDataset', "
            "pipeline=[dict(type='LoadImageFromFile')]))",
            {},
            'cannot build the model of the config: .*NoSuch',
        ),
    ],
)
def test_configs_that_do_not_do_are_refused(tmp_path, text, settings, message):
    pytest.importorskip('mmseg')
    (tmp_path / 'config.py').write_text(text)
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), tmp_path / 'some.pth')
    settings = dict(checkpoint=str(tmp_path / 'some.pth')) | settings
    with pytest.raises(UsageError, match=message):
        Inferencer(str(tmp_path / 'config.py'), **settings)
