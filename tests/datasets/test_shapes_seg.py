import pytest
from mmengine.model import BaseModel
from mmengine.runner import Runner

from mmffnet.datasets import CLASSES

pytest.importorskip('mmseg')


class Oracle(BaseModel):
    """A segmentor that predicts the annotations it was handed."""

    def forward(self, inputs, data_samples, mode):
        for sample in data_samples:
            sample.pred_sem_seg = sample.gt_sem_seg.clone()
        return data_samples


def test_a_runner_makes_the_data_and_the_truth_scores_100(tmp_path):
    import mmffnet.datasets.shapes_seg  # noqa: F401

    root = tmp_path / 'shapes'
    runner = Runner(
        model=Oracle(),
        work_dir=str(tmp_path / 'work'),
        test_dataloader={
            'batch_size': 2,
            'dataset': {
                'type': 'mmseg.ShapesSegDataset',
                'data_root': str(root),
                'data_prefix': {
                    'img_path': 'images/validation',
                    'seg_map_path': 'annotations/validation',
                },
                'shapes': {'train': 1, 'val': 12, 'size': 96},
                'pipeline': [
                    {'type': 'LoadImageFromFile'},
                    {'type': 'mmseg.LoadAnnotations'},
                    {'type': 'mmseg.PackSegInputs'},
                ],
            },
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'collate_fn': {'type': 'pseudo_collate'},
        },
        test_evaluator={'type': 'mmseg.IoUMetric', 'iou_metrics': ['mIoU']},
        test_cfg={},
        default_scope='mmseg',
        experiment_name='shapes_seg',
    )
    assert not root.exists(), 'nothing is made before somebody reads'
    assert runner.test()['mIoU'] == 100

    data = runner.test_dataloader.dataset
    assert data.metainfo['classes'] == ('background', *CLASSES)
    assert len(data.metainfo['palette']) == len(CLASSES) + 1
    labels = [data[i]['data_samples'].gt_sem_seg.data for i in range(len(data))]
    # the thin lines are 255, ignored; everything else is a class
    assert set().union(*(label.unique().tolist() for label in labels)) == {*range(6), 255}
