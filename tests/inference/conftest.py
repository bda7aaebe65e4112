"""Small models of each task, made once, and pictures for them."""

import pytest
from toy_models import make_model, make_pictures

from mmffnet.inference import Inferencer

NEEDS = dict(detection='mmdet', segmentation='mmseg', classification='mmpretrain')


@pytest.fixture(scope='session')
def models(tmp_path_factory):
    """Makes the model of a task once: its config and checkpoint."""
    folder, made = tmp_path_factory.mktemp('models'), {}

    def make(task):
        pytest.importorskip(NEEDS[task])
        if task not in made:
            made[task] = make_model(task, folder)
        return made[task]

    return make


@pytest.fixture(scope='session')
def inferencers(models):
    """Makes the inferencer of a task once."""
    made = {}

    def make(task):
        if task not in made:
            # compared to the bit with models in the usual memory format
            made[task] = Inferencer(*models(task), channels_last=False)
        return made[task]

    return make


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('pictures'))
