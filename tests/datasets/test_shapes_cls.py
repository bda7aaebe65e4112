from pathlib import Path

import pytest
from mmengine.model import BaseModel
from mmengine.runner import Runner

from mmffnet.datasets import CLASSES

pytest.importorskip('mmpretrain')


class Oracle(BaseModel):
    """A classifier that reads the name of the folder."""

    def forward(self, inputs, data_samples, mode):
        for sample in data_samples:
            sample.set_pred_label(CLASSES.index(Path(sample.img_path).parent.name))
        return data_samples


def test_a_runner_makes_the_data_and_the_truth_scores_100(tmp_path):
    import mmffnet.datasets.shapes_cls  # noqa: F401

    root = tmp_path / 'shapes'
    runner = Runner(
        model=Oracle(),
        work_dir=str(tmp_path / 'work'),
        test_dataloader={
            'batch_size': 4,
            'dataset': {
                'type': 'mmpretrain.ShapesClsDataset',
                'data_root': str(root),
                'data_prefix': 'val',
                'shapes': {'train': 5, 'val': 12, 'size': 32},
                'pipeline': [
                    {'type': 'LoadImageFromFile'},
                    {'type': 'mmpretrain.PackInputs'},
                ],
            },
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'collate_fn': {'type': 'pseudo_collate'},
        },
        test_evaluator={'type': 'mmpretrain.Accuracy'},
        test_cfg={},
        default_scope='mmpretrain',
        experiment_name='shapes_cls',
    )
    assert not root.exists(), 'nothing is made before somebody reads'
    assert runner.test()['accuracy/top1'] == 100

    data = runner.test_dataloader.dataset
    assert data.metainfo['classes'] == CLASSES
    assert [data.get_data_info(i)['gt_label'] for i in range(len(data))].count(0) == 3
