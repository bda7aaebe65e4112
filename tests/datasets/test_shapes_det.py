import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from mmffnet.datasets import CLASSES

pytest.importorskip('mmdet')
pytest.importorskip('pycocotools')

SHAPES = {'train': 1, 'val': 34, 'size': 96}


class Oracle(BaseModel):
    """A detector that predicts the annotations it was handed."""

    def forward(self, inputs, data_samples, mode):
        for sample in data_samples:
            truth = sample.gt_instances
            sample.pred_instances = InstanceData(
                bboxes=truth.bboxes.tensor,
                labels=truth.labels,
                scores=torch.ones(len(truth)),
                masks=torch.as_tensor(truth.masks.masks.astype(bool)),
            )
        return data_samples


def dataset(root, **kwargs):
    return {
        'type': 'mmdet.ShapesDetDataset',
        'data_root': f'{root}/',
        'ann_file': 'annotations/instances_val.json',
        'data_prefix': {'img': 'images/val'},
        'shapes': SHAPES,
        'pipeline': [
            {'type': 'LoadImageFromFile'},
            {'type': 'mmdet.LoadAnnotations', 'with_bbox': True, 'with_mask': True},
            {
                'type': 'mmdet.PackDetInputs',
                'meta_keys': ('img_id', 'img_path', 'ori_shape', 'img_shape'),
            },
        ],
        **kwargs,
    }


@pytest.fixture(scope='module')
def registry():
    from mmdet.registry import DATASETS

    import mmffnet.datasets.shapes_det  # noqa: F401

    return DATASETS


@pytest.mark.slow
def test_a_runner_makes_the_data_and_the_truth_scores_one(registry, tmp_path):
    root = tmp_path / 'shapes'
    runner = Runner(
        model=Oracle(),
        work_dir=str(tmp_path / 'work'),
        test_dataloader={
            'batch_size': 2,
            'dataset': dataset(root, test_mode=True),
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'collate_fn': {'type': 'pseudo_collate'},
        },
        test_evaluator={
            'type': 'mmdet.CocoMetric',
            'ann_file': f'{root}/annotations/instances_val.json',
            'metric': ['bbox', 'segm'],
        },
        test_cfg={},
        default_scope='mmdet',
        experiment_name='shapes_det',
    )
    assert not root.exists(), 'nothing is made before somebody reads'
    metrics = runner.test()
    assert metrics['coco/bbox_mAP'] == metrics['coco/segm_mAP'] == 1.0


def test_samples_have_classes_masks_and_ignored_crowds(registry, tmp_path):
    data = registry.build(dataset(tmp_path / 'shapes', test_mode=True))
    assert data.metainfo['classes'] == CLASSES
    assert len(data.metainfo['palette']) == len(CLASSES)
    samples = [data[i]['data_samples'] for i in range(len(data))]
    assert len(samples) == SHAPES['val']
    assert any(len(sample.gt_instances) == 0 for sample in samples)
    assert any(len(sample.ignored_instances) > 0 for sample in samples)
    for sample in samples:
        for box, mask in zip(
            sample.gt_instances.bboxes.tensor, sample.gt_instances.masks.masks, strict=True
        ):
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.slow
def test_training_may_leave_out_pictures_without_objects(registry, tmp_path):
    every = registry.build(dataset(tmp_path / 'shapes'))
    filtered = registry.build(
        dataset(tmp_path / 'shapes', filter_cfg={'filter_empty_gt': True, 'min_size': 32})
    )
    assert len(filtered) == len(every) - 1 == SHAPES['val'] - 1


def test_other_parameters_than_those_on_disk_are_refused(registry, tmp_path):
    registry.build(dataset(tmp_path / 'shapes'))
    with pytest.raises(FileExistsError, match='seed=0 instead of 1'):
        registry.build(dataset(tmp_path / 'shapes', shapes={**SHAPES, 'seed': 1}))
