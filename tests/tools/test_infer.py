"""tools/infer.py: its options, its exit status, and what it says."""

import json
import logging
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.logging import MMLogger
from toy_models import make_model, make_pictures, make_video

from mmffnet_cli.paths import tools_path

DETECTOR = 'detection/maskrcnn_nano_shapes.py'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with a detector, a classifier, pictures, a video and a broken file."""
    pytest.importorskip('mmdet')
    pytest.importorskip('mmpretrain')
    folder = tmp_path_factory.mktemp('place')
    make_model('detection', folder)
    make_model('classification', folder)
    make_pictures(folder / 'photos')
    make_video(folder / 'clip.mp4', frames=4)
    (folder / 'broken.jpg').write_text('not a picture')
    (folder / 'empty').mkdir()
    return folder


@pytest.fixture
def infer(place, monkeypatch, capsys):
    """Runs the tool here: its exit status, what it prints and its errors."""
    monkeypatch.chdir(place)
    tool = runpy.run_path(tools_path('infer.py'))

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            tool['main'](list(arguments), prog='infer')
        printed = capsys.readouterr()
        return stopped.value.code, printed.out, printed.err

    return run


def images(folder):
    return json.loads((Path(folder) / 'predictions.json').read_text())['images']


@pytest.mark.slow
def test_command_line_without_a_display(place, tmp_path):
    """As a user runs it; what cannot be read is named, skipped, and told by the exit status."""
    hidden = ('DISPLAY', 'WAYLAND_DISPLAY')
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    command = [sys.executable, tools_path('infer.py'), DETECTOR, 'detection.pth']
    command += ['photos', 'broken.jpg', 'clip.mp4', '--out-dir', str(tmp_path), '--device', 'cpu']
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    message = r'7 pictures done; 1 skipped: broken.jpg \(it is damaged.*\)\nresults: '
    assert re.search(message, done.stdout)
    assert 'skipped broken.jpg: it is damaged' in done.stderr
    assert re.search(r'detection .* 8/8', done.stderr)  # the progress bar
    assert 'Traceback' not in done.stderr and 'WARN' not in done.stderr
    painted = sorted(p.name for p in (tmp_path / 'painted').iterdir())
    assert painted == ['000.png', '001.png', '002.png', 'clip.mp4']
    assert len(images(tmp_path)) == 7
    assert not (place / 'data').exists()  # the data set is not needed


def test_options(infer, place):
    options = ['--score-thr', '0.28', '--batch-size', '2', '--fuse', '--tta', '--max-frames', '2']
    options += ['--cfg-options', 'model.roi_head.mask_head=None', 'test_evaluator.metric=bbox']
    options += ['model.test_cfg.rcnn.max_per_img=3']
    status, out, err = infer(DETECTOR, 'detection.pth', 'clip.mp4', '--out-dir', 'a', *options)
    assert (status, out.splitlines()[-2:]) == (0, ['2 pictures done', 'results: a']), err
    content = json.loads((place / 'a' / 'predictions.json').read_text())
    assert [image['frame'] for image in content['images']] == [0, 1]
    found = content['annotations']
    assert all(one['score'] >= 0.28 and 'segmentation' not in one for one in found)
    # each of two flipped views gives three
    assert 0 < sum(one['image_id'] == 1 for one in found) <= 6


def test_tiles(infer, place):
    options = ['--tiles', '64', '--overlap', '0.25', '--batch-size', '4', '--out-dir', 'tiles']
    status, _, err = infer(DETECTOR, 'detection.pth', 'photos/000.png', *options)
    assert status == 0, err
    content = json.loads((place / 'tiles' / 'predictions.json').read_text())
    height, width = (content['images'][0][side] for side in ('height', 'width'))
    assert content['annotations'] and height > 64
    assert all(one['segmentation']['size'] == [height, width] for one in content['annotations'])
    assert (place / 'tiles' / 'painted' / '000.png').is_file()


def test_default_folder_and_classifier(infer, place):
    status, out, _ = infer('classifier.py', 'classification.pth', 'photos/*1.png')
    assert (status, out) == (0, '1 picture done\nresults: work_dirs/infer\n')
    (image,) = images('work_dirs/infer')
    assert image['file_name'] == '001.png' and len(image['top']) == 5
    assert cv2.imread('work_dirs/infer/painted/001.png').shape[0] > 96


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        # the pictures are looked for before anything takes time: the checkpoint is missing, too
        ([DETECTOR, 'no.pth', 'empty'], "the folder 'empty' has no pictures"),
        ([DETECTOR, 'no.pth', 'nothing/*.jpg'], 'no picture or video matches the pattern'),
        ([DETECTOR, 'no.pth', 'none.jpg'], "there is no picture, folder or video 'none.jpg'"),
        ([DETECTOR, 'no.pth', 'photos'], "there is no checkpoint file 'no.pth'"),
        (['no.py', 'detection.pth', 'photos'], "there is no config file 'no.py'"),
        (['no.onnx', 'photos'], 'there is no exported model no.onnx'),
        ([DETECTOR, 'detection.pth'], 'nothing to look at'),
        ([DETECTOR], 'the following arguments are required: INPUT'),
        ([DETECTOR, 'broken.jpg', 'photos'], 'cannot read .*broken.jpg'),
        (
            [DETECTOR, 'classification.pth', 'photos'],
            r'does not fit the model: it does not fill \d+ of',
        ),
        ([DETECTOR, 'detection.pth', 'photos', '--tta'], 'mmdet cannot average masks'),
        ([DETECTOR, 'detection.pth', 'photos', '--device', 'gpu9'], "there is no device 'gpu9'"),
        ([DETECTOR, 'detection.pth', 'photos', '--batch-size', '0'], 'must be at least 1'),
        ([DETECTOR, 'detection.pth', 'photos', '--score-thr', '30'], 'between 0 and 1, not 30'),
        ([DETECTOR, 'no.pth', 'photos', '--tiles', '0'], 'tiles must have at least 32 pixels'),
        ([DETECTOR, 'no.pth', 'photos', '--tiles', '64', '--overlap', '1'], 'overlap of tiles'),
        ([DETECTOR, 'no.pth', 'photos', '--overlap', '0.1'], '--overlap is for --tiles'),
        ([DETECTOR, 'detection.pth', 'photos', '--cfg-options', 'x'], 'cannot apply --cfg-options'),
        (
            ['classifier.py', 'classification.pth', 'photos', '--score-thr', '0.5'],
            'a score threshold is for detectors',
        ),
        ([DETECTOR, 'detection.pth', 'photos', '--out-dir', 'broken.jpg'], 'cannot write to'),
    ],
)
@pytest.mark.slow
def test_mistakes_are_one_line(infer, arguments, message):
    status, out, err = infer(*arguments)
    assert status == 2 and not out
    assert err.startswith('infer: error: ') and err.count('\n') == 1
    assert re.search(message, err)


def test_a_checkpoint_with_more_than_the_model(infer, place):
    raw = torch.load(place / 'classification.pth')
    raw['state_dict']['extra'] = torch.zeros(1)
    torch.save(raw, place / 'more.pth')
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    status, _, _ = infer('classifier.py', 'more.pth', 'photos/000.png', '--out-dir', 'b')
    logger.removeHandler(handler)
    assert status == 0
    assert said[-1:] == ['the checkpoint more.pth has tensors that the model lacks (1): extra']
