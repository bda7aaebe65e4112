"""tools/web.py in a real browser, without a connection to anywhere else."""

import json
import re
import runpy
import socket
import sys
import urllib.request
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from toy_models import META, colour_share, make_model, make_pictures

from mmffnet import web
from mmffnet.errors import UsageError
from mmffnet.inference import Classification, Detections, Picture, Segmentation
from mmffnet.visualization import Legend, enlarge
from mmffnet_cli.paths import tools_path

DETECTOR = 'detection/maskrcnn_nano_shapes.py'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    pytest.importorskip('mmdet')
    folder = tmp_path_factory.mktemp('web')
    make_model('detection', folder)
    make_pictures(folder, number=1)
    return folder


@pytest.fixture
def tool():
    return runpy.run_path(tools_path('web.py'))['main']


@pytest.mark.slow
def test_a_picture_is_painted_and_the_slider_decides(
    browser, tool, place, monkeypatch, capsys, tmp_path
):
    gradio = pytest.importorskip('gradio', reason="pip install 'gradio>=6'")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    monkeypatch.chdir(place)
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path))
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    # the tool waits for the end of the page, the test goes on
    monkeypatch.setattr(gradio.Blocks, 'block_thread', lambda self: None)
    options = ['--score-thr', '0.2', '--device', 'cpu', '--fuse', '--port', str(port)]
    tool([DETECTOR, 'detection.pth', *options])
    address = f'http://127.0.0.1:{port}/'
    assert f'the page is at {address}' in capsys.readouterr().out

    wait = WebDriverWait(browser, 120)

    def summary(text):
        def ready(_):
            found = browser.find_elements(By.ID, 'summary')
            return found and re.search(text, found[0].text)

        return wait.until(ready)

    def painted():
        (image,) = browser.find_elements(By.CSS_SELECTOR, '#painted img')
        with urllib.request.urlopen(image.get_attribute('src')) as answer:
            return np.asarray(Image.open(BytesIO(answer.read())).convert('RGB'))

    try:
        browser.get(address)
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, 'input[type=file]'))
        assert 'Detection of box, disc, ring, star, triangle' in browser.page_source
        upload = browser.find_element(By.CSS_SELECTOR, 'input[type=file]')
        upload.send_keys(str(place / '000.png'))
        number = int(summary(r'(\d+) found: \w+ \(\d+\)')[1])
        assert number > 1
        plain, _ = enlarge(cv2.imread(str(place / '000.png'))[..., ::-1])
        sheet = painted()
        assert sheet.shape == plain.shape == (960, 960, 3)
        colours = META['detection']['palette']
        assert sum(colour_share(sheet, colour) for colour in colours) > 0.02

        # the slider all the way to the right: nothing is left
        slider = browser.find_element(By.CSS_SELECTOR, '#score input[type=range]')
        slider.send_keys(Keys.END)
        summary('Nothing is that sure')
        wait.until(lambda _: (painted() == plain).all())
        slider.send_keys(Keys.HOME)
        assert int(summary(r'(\d+) found')[1]) >= number

        log = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
        sent = [m['params']['request']['url'] for m in log if m['method'].endswith('BeSent')]
        local = (address, 'data:', 'blob:')
        assert len(sent) > 10 and [url for url in sent if not url.startswith(local)] == []
        assert list(tmp_path.rglob('*.png'))
    finally:
        gradio.close_all()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([DETECTOR, 'no.pth'], "there is no checkpoint file 'no.pth'"),
        ([DETECTOR], 'needs a checkpoint'),
        (['no.onnx'], 'there is no exported model no.onnx'),
        ([DETECTOR, 'detection.pth', '--host', '192.0.2.1', '--port', '9'], 'cannot listen at'),
        ([DETECTOR, 'detection.pth', '--port', '70000'], 'cannot listen at 127.0.0.1:70000'),
    ],
)
@pytest.mark.slow
def test_mistakes_are_one_line(tool, place, monkeypatch, capsys, arguments, message):
    pytest.importorskip('gradio', reason="pip install 'gradio>=6'")
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as stopped:
        tool(arguments, prog='web')
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('web: error: ') and error.count('\n') == 1 and message in error


def test_without_gradio(tool, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(SystemExit) as stopped:
        tool([DETECTOR, 'detection.pth'], prog='web')
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "pip install 'gradio>=6'" in error and error.count('\n') == 1


def test_old_gradio(monkeypatch):
    gradio = pytest.importorskip('gradio', reason="pip install 'gradio>=6'")
    monkeypatch.setattr(gradio, '__version__', '5.49.1')
    with pytest.raises(UsageError, match=r'needs gradio 6, not 5\.49\.1'):
        web._import_gradio()


def test_results_are_described():
    picture, legend = Picture('x.png', 'x.png', np.zeros((2, 5, 3), np.uint8)), Legend(('a', 'b'))
    boxes, scores = np.zeros((3, 4)), np.full(3, 0.5)
    found = Detections(picture, legend, boxes, scores, np.array([1, 0, 1]))
    assert web.describe(found) == '**3 found:** b (2), a (1)'
    assert web.describe(found.above(0.6)) == 'Nothing is that sure.'
    labels = np.array([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]])
    assert web.describe(Segmentation(picture, legend, labels)) == 'a 80.0 %, b 20.0 %'
    scores = np.array([0.25, 0.75])
    assert web.describe(Classification(picture, legend, scores)) == '**b**, 75.0 %'
