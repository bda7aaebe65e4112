"""Tables, files and the plot of made-up measurements."""

import csv
import json

import cv2
import pytest
from torch import nn

from mmffnet.benchmark import speed_report
from mmffnet.benchmark.forms import Form
from mmffnet.benchmark.networks import Network
from mmffnet.benchmark.report import markdown
from mmffnet.benchmark.speed import Measurement


@pytest.fixture
def measurements():
    ours = Network('ours', nn.Identity, (256, 256), 82.0, ours=True)
    bigger = Network('bigger', nn.Identity, (256, 256), 83.0, ours=True)
    theirs = Network('theirs', nn.Identity, (224, 224), 81.0)
    unknown = Network('unknown', nn.Identity, (224, 224))
    eager, fused = Form(), Form(fused=True, channels_last=True)
    rows = []
    for network, factor in ((ours, 1), (bigger, 2), (theirs, 3), (unknown, 1)):
        for form, gain in ((eager, 1.0), (fused, 2.0)):
            seconds = [factor * s / gain for s in (0.4, 0.8, 0.4, 0.44, 0.4)]
            rows.append(Measurement(network, form, network.size, 25_000_000, seconds, 1e-6))
    failed = rows[-1]
    failed.seconds, failed.parameters, failed.deviation = [], 0, None
    failed.problem = 'ValueError: a | b'
    return rows


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_table(measurements):
    lines = speed_report.table(measurements, batch=4).splitlines()
    assert cells(lines[0])[4:7] == ['ms / image', 'x eager', 'x ours eager']
    assert cells(lines[2])[:6] == [
        'ours', 'eager', '256x256', '25.0', '100.0 [100.0, 110.0]', '1.00 [1.00, 1.00]',
    ]  # fmt: skip
    fused = cells(lines[7])
    assert fused[:2] == ['theirs', 'fused+channels_last']
    assert fused[4:7] == ['150.0 [150.0, 165.0]', '2.00 [2.00, 2.00]', '0.67 [0.67, 0.67]']
    assert cells(lines[9])[3:] == ['-'] * 5
    assert lines[-1] == '- unknown fused+channels_last: ValueError: a | b'
    assert len({len(line) for line in lines[:10]}) == 1


def test_files(measurements, tmp_path):
    settings = dict(what='inference', batch=4, device='cpu', threads=2)
    files = speed_report.save(measurements, tmp_path / 'new', settings, 'the title')
    assert [path.name for path in files] == ['speed.md', 'speed.csv', 'speed.json', 'speed.png']
    assert files[0].read_text().startswith('# The title\n\n| network')
    with files[1].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert rows[1]['ms_median'] == '200.0' and rows[1]['speedup_median'] == '2.0'
    assert (rows[5]['height'], rows[5]['deviation']) == ('224', '1e-06')
    assert rows[7]['ms_median'] == '' and rows[7]['problem'] == 'ValueError: a | b'
    content = json.loads(files[2].read_text())
    assert content['threads'] == 2 and content['environment']['torch']
    assert content['rounds'][1] == dict(
        network='ours', form='fused+channels_last', seconds=[0.2, 0.4, 0.2, 0.22, 0.2]
    )
    assert '/' not in content['environment']['device']
    picture = cv2.imread(str(files[3]))
    assert picture.shape[1] > 1.5 * picture.shape[0] > 500  # two panels
    left, right = picture[:, : picture.shape[1] // 2], picture[:, picture.shape[1] // 2 :]
    for panel, networks in ((left, 2), (right, 2)):
        blue, _, red = cv2.split(panel.astype(int))
        assert (red - blue > 100).sum() > 100 * networks  # ours
        assert (blue - red > 30).sum() > 50  # theirs


def test_exported_file_beside_networks(measurements):
    file = Network('model.onnx', nn.Identity, (256, 256))
    exported = Measurement(file, Form(onnxruntime=True), (256, 256), 0, [0.1] * 5)
    lines = speed_report.table([*measurements, exported], batch=1).splitlines()
    assert cells(lines[0])[5] == 'x first form'
    assert cells(lines[10])[5] == '1.00 [1.00, 1.00]'


def test_nothing_to_draw(measurements, tmp_path):
    """Not one network alone, nor at another size than the accuracy is for."""
    other = [Measurement(m.network, m.form, (64, 64), 1, [1.0]) for m in measurements]
    for points in (measurements[:2], measurements[6:], other):
        assert not speed_report.plot(points, 1, tmp_path / 'speed.png', '')
    assert not list(tmp_path.iterdir())


def test_markdown():
    rows = [dict(name='a|b', value=1.5), dict(name='c', value=None)]
    expected = '| name | value |\n| ---- | ----: |\n| a/b  |   1.5 |\n| c    |     - |\n'
    assert markdown(rows) == expected
    assert markdown([]) == ''
