"""The tool as a user runs it; what it does is tested in tests/datasets/test_prepare.py."""

import multiprocessing
import os
import runpy
import signal
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from range_server import range_server

from mmffnet.datasets.archives import DATASETS

TOOL = Path(__file__).parents[2] / 'tools' / 'prepare_data.py'
fork = multiprocessing.get_context('fork')


@pytest.fixture
def tool(monkeypatch, capsys):
    """Runs the tool; gives its exit status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [TOOL.name, *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def proxy(monkeypatch):
    """Answers, in place of the official servers, with what it has: nothing at first."""
    with range_server() as server:
        monkeypatch.setenv('http_proxy', server.url)
        monkeypatch.delenv('no_proxy', raising=False)
        yield server


def write_cityscapes(folder):
    """As many files as there are, all but two of them empty; without their training ids."""
    dataset = DATASETS['cityscapes']
    files = dict(dataset.train_ids)
    for archive in dataset.archives:
        files.update(archive.files)
    for pattern, number in files.items():
        (folder / pattern).parent.parent.joinpath('town').mkdir(parents=True, exist_ok=True)
        for index in range(number):
            (folder / pattern.replace('*/*', f'town/{index}')).touch()
    for split in ('train', 'val'):
        start = folder / 'gtFine' / split / 'town' / '7_gtFine_label'
        Image.fromarray(np.full((2, 2), 8, np.uint8)).save(f'{start}Ids.png')
        Path(f'{start}TrainIds.png').unlink()


def test_cityscapes(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path('data', 'cityscapes')
    write_cityscapes(folder)
    status, out, _ = tool('cityscapes')
    assert status == 0
    assert 'cityscapes: data/cityscapes lacks 1 of 2975 gtFine/train/' in out
    assert 'cityscapes: complete in data/cityscapes (2975 gtFine/train/' in out
    for split in ('train', 'val'):
        with Image.open(folder / f'gtFine/{split}/town/7_gtFine_labelTrainIds.png') as labels:
            assert (np.asarray(labels) == 1).all()
    status, out, err = tool('cityscapes', '--root', tmp_path / 'data')
    assert (status, err) == (0, '')
    assert out.startswith(f'cityscapes: complete in {tmp_path}/data/cityscapes (')


def test_archives_of_ones_own(tool, tmp_path):
    store = tmp_path / 'store'
    store.mkdir()
    with zipfile.ZipFile(store / 'ADEChallengeData2016.zip', 'w') as file:
        file.writestr('ADEChallengeData2016/images/training/1.jpg', b'mine')
    arguments = ['ade20k', '--root', tmp_path, '--archives', store]
    status, _, err = tool(*arguments)
    assert status == 2
    assert 'instead of 7328b3957e407ddae1d3cbf487f149ef: fetch http' in err
    path = tmp_path / 'ade' / 'ADEChallengeData2016' / 'images' / 'training' / '1.jpg'
    path.parent.mkdir(parents=True)
    path.touch()
    status, _, err = tool(*arguments, '--no-checksum')
    assert status == 2
    assert f'{path} differs from that in {store}/ADEChallengeData2016.zip' in err
    status, _, err = tool(*arguments, '--no-checksum', '--force')
    assert status == 2
    assert path.read_bytes() == b'mine'
    errors = [line for line in err.splitlines() if 'error' in line]
    assert len(errors) == 1
    assert 'lacks 20209 of 20210 ADEChallengeData2016/images/training/*.jpg, 2000 of' in errors[0]


def test_each_missing_file_is_one_line(tool, tmp_path):
    status, _, err = tool('cityscapes', '--root', tmp_path)
    lines = err.splitlines()
    assert (status, len(lines)) == (2, 2)
    for line, archive in zip(lines, DATASETS['cityscapes'].archives, strict=True):
        assert line.startswith(f'prepare_data.py: error: {archive.name} cannot be')
        assert archive.url in line and line.endswith(f'{tmp_path}/archives/{archive.name}')


def test_a_file_that_cannot_be_downloaded(tool, proxy, tmp_path):
    status, _, err = tool('ade20k', '--root', tmp_path)
    assert (status, err.count('\n')) == (2, 1)
    assert 'cannot be downloaded (HTTP Error 404: Not Found)' in err
    assert f'put it at {tmp_path}/archives/ADEChallengeData2016.zip' in err


def test_another_file_than_the_official_one_is_refused(tool, proxy, tmp_path):
    proxy.files['ADEChallengeData2016.zip'] = b'not it'
    status, _, err = tool('ade20k', '--root', tmp_path)
    assert status == 2
    assert 'md5' in err and 'instead of 7328b3957e407ddae1d3cbf487f149ef' in err


@pytest.mark.parametrize('arguments', [[], ['voc'], ['coco', '--rot', 'x'], ['coco', 'ade20k']])
def test_a_mistake_is_one_line(tool, arguments):
    status, out, err = tool(*arguments)
    assert (status, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('prepare_data.py: error: ')


def test_a_place_that_cannot_be_written_is_named(tool, proxy, tmp_path):
    (tmp_path / 'file').touch()
    status, _, err = tool('coco', '--root', tmp_path / 'file' / 'data')
    assert status == 2
    assert err.count('\n') == 1 and str(tmp_path / 'file') in err


def test_all_data_sets_are_offered(tool):
    status, out, _ = tool('--help')
    assert status == 0
    assert '{' + ','.join(DATASETS) + '}' in out


def test_ctrl_c_is_no_traceback(tool, proxy, tmp_path):
    proxy.files['ADEChallengeData2016.zip'] = bytes(600_000)
    proxy.faults = [{'stall': 300_000}]
    receiver, sender = fork.Pipe(duplex=False)

    def run():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        sender.send(tool('ade20k', '--root', tmp_path))

    child = fork.Process(target=run)
    child.start()
    part = tmp_path / 'archives' / 'ADEChallengeData2016.zip.part'
    deadline = time.monotonic() + 10
    while not (part.is_file() and part.stat().st_size):
        assert time.monotonic() < deadline and child.is_alive()
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    assert receiver.poll(10)
    status, _, err = receiver.recv()
    child.join()
    assert status == 130
    assert err.endswith('prepare_data.py: interrupted; run it again to continue\n')
    assert 'Traceback' not in err
