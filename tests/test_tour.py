"""The notebook runs from its first cell to its last."""

import os
import re
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / 'demo' / 'tour.ipynb'


@pytest.mark.slow
def test_tour(tmp_path, monkeypatch):
    for package in ('mmdet', 'ipykernel'):
        pytest.importorskip(package, reason=f'the tour needs {package}: pip install {package}')
    nbformat = pytest.importorskip('nbformat')
    nbclient = pytest.importorskip('nbclient', reason='pip install nbclient runs the notebook')
    tour = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get('outputs') for cell in tour.cells), 'commit it without outputs'

    monkeypatch.setenv('MMFFNET_TOUR', 'short')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    # `!mmffnet` in it must be the one of this environment
    folder = Path(sys.executable).parent
    monkeypatch.setenv('PATH', os.pathsep.join([str(folder), os.environ['PATH']]))
    client = nbclient.NotebookClient(
        tour, timeout=240, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}
    )
    client.execute()

    outputs = [output for cell in tour.cells for output in cell.get('outputs', [])]
    text = ''.join(output.get('text', '') for output in outputs)
    assert '3 (1, 256, 5, 5)' in text
    assert '-> 0 batch norms' in text
    assert re.search(r"'bbox_mAP', '0[.]\d+'", text)
    pictures = [o for o in outputs if 'image/png' in o.get('data', {})]
    assert len(pictures) == 2
    assert (tmp_path / 'work_dirs' / 'tour' / 'iter_1.pth').is_file()
