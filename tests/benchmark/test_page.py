"""The page of results in a real browser, on a screen and on a phone."""

import json

import numpy as np
import pytest

from mmffnet.benchmark.evaluation import Example, Results
from mmffnet.benchmark.page import write_page

NAMES = ['apple', 'a class with a name that is much longer than a phone is wide', '<b>&']


@pytest.fixture
def page(tmp_path):
    recall = np.linspace(0, 1, 20)
    rows = [{'class': name, 'AP': 0.5, 'threshold': 0.3, 'best F1': 0.6} for name in NAMES]
    images = np.zeros((2, 300, 400, 3), np.uint8)
    results = Results(
        classes=NAMES,
        summary={'box mAP': 0.5},
        per_class=rows,
        confusion=np.full((4, 4), 12345),
        scores=[0.5],
        curves=dict.fromkeys(NAMES, (recall, 1 - recall, 1 - recall)),
        examples={'The worst': [Example('x' * 80 + '.jpg', 0.5, *images)] * 3},
        facts={'parameters': '1.0 M'},
    )
    log = tmp_path / 'scalars.json'
    lines = [dict(loss=2.0, step=1), dict(loss=1.0, step=2), {'coco/bbox_mAP': 0.5, 'step': 2}]
    lines.append(dict(loss=float('nan'), step=3))
    log.write_text('\n'.join(map(json.dumps, lines)) + '\n{"loss": 1.')  # killed while it wrote
    write_page(tmp_path / 'page.html', 'A title', results, 'mmffnet train ' + 'x' * 300, [log])
    return tmp_path / 'page.html'


@pytest.mark.slow
@pytest.mark.parametrize('width', [1200, 390])
def test_shows_all_without_a_connection(browser, page, width):
    browser.execute_cdp_cmd(
        'Emulation.setDeviceMetricsOverride',
        dict(width=width, height=800, deviceScaleFactor=1, mobile=width < 600),
    )
    browser.get(page.as_uri())
    assert browser.execute_script('return innerWidth') == width
    needed = browser.execute_script('return document.documentElement.scrollWidth')
    assert needed <= width  # tables scroll on their own
    images = browser.find_elements('tag name', 'img')
    assert len(images) == 6
    for image in images:
        browser.execute_script('arguments[0].loading = "eager"', image)
        assert browser.execute_async_script(
            'arguments[0].decode().then(() => arguments[1](true), () => arguments[1](false))', image
        )
        assert 0 < image.rect['width'] < width
    charts = browser.find_elements('tag name', 'svg')
    assert len(charts) == 4 and all(100 < chart.rect['width'] <= width for chart in charts)
    assert '<b>&' in browser.find_element('tag name', 'body').text  # names are no markup
    log = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    sent = [m['params']['request']['url'] for m in log if m['method'].endswith('BeSent')]
    assert [url for url in sent if not url.startswith(('data:', 'file:'))] == []
