"""The class Inferencer."""

import json
import shutil
from pathlib import Path

import pages
import pytest
from mmengine.registry import DefaultScope
from toy_models import make_video

from mmffnet.errors import UsageError
from mmffnet.inference import Inferencer, find_sources


@pytest.mark.slow
def test_documented_examples(models, pictures, tmp_path, monkeypatch, capsys):
    blocks = {name: code for name, _, code in pages.blocks('docs/inference.md')}
    config, checkpoint = models('detection')
    assert config in blocks['python']
    monkeypatch.chdir(tmp_path)
    shutil.copy(checkpoint, 'demo.pth')
    shutil.copy(pictures[0], 'picture.png')
    shutil.copytree(pictures[0].parent, 'photos')
    make_video(Path('clip.mp4'), frames=2)
    names = {}
    exec(blocks['python'], names)  # noqa: S102
    assert names['result'].picture.pixels.shape == (96, 96, 3)
    exec(blocks['many'], names)  # noqa: S102
    assert capsys.readouterr().out == '5 pictures done\n'
    assert Path('results', 'predictions.json').is_file()
    assert len(blocks['python'].strip().splitlines()) == 4  # three lines, and one between


def test_scope_is_left_as_it_was(models, pictures):
    config, checkpoint = models('segmentation')
    with DefaultScope.overwrite_default_scope('mmdet'):
        Inferencer(config, checkpoint)(pictures[0])
        assert DefaultScope.get_current_instance().scope_name == 'mmdet'


def test_what_was_done_is_kept_when_it_is_stopped(inferencers, pictures, tmp_path, monkeypatch):
    inferencer = inferencers('classification')
    predict, calls = inferencer.model.predict, []

    def stop_later(batch):
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(batch)

    monkeypatch.setattr(inferencer.model, 'predict', stop_later)
    summary = inferencer.write(find_sources(list(pictures)), tmp_path)
    assert summary.interrupted and str(summary) == '2 pictures done, then interrupted'
    assert len(json.loads((tmp_path / 'predictions.json').read_text())['images']) == 2


def test_batches_of_nothing(inferencers, pictures):
    with pytest.raises(UsageError, match='batch_size must be at least 1, not 0'):
        inferencers('classification')(pictures, batch_size=0)
