"""Reading metafiles: ours, and those of others."""

import pytest

from mmffnet.benchmark.metafiles import read_entries, select
from mmffnet.checkpoint import OFFICIAL_WEIGHTS
from mmffnet.errors import UsageError


def test_ours():
    entries = {entry.name: entry for entry in read_entries()}
    weights = {entry.weights for entry in entries.values() if '_3rdparty_' in entry.name}
    assert weights == {
        file.url
        for name, file in OFFICIAL_WEIGHTS.items()
        if name != 'ffnetseg' and not file.by_hand
    }
    cascade = entries['cascademaskrcnn_ffnet2_3rdparty_3x_coco']
    assert cascade.published == {'box AP': 51.8, 'mask AP': 44.9}
    assert cascade.dataset == 'COCO'
    assert cascade.config.endswith('configs/detection/cascademaskrcnn_ffnet2_3x_coco.py')
    assert entries['upernet_ffnet2_3rdparty_ade20k'].published['mIoU(ms+flip)'] == 47.8


def test_select():
    entries = read_entries()
    found = [entry.name for entry in select(entries, ['upernet_ffnet*', '*_cityscapes'])]
    expected = [f'upernet_ffnet{i}_3rdparty_ade20k' for i in (2, 3, 4)]
    assert found == [*expected, 'ffnetseg_3rdparty_cityscapes']
    assert select(entries, []) == entries
    with pytest.raises(UsageError, match=r"no model is called 'upper\*': there are ffnet1_3rd"):
        select(entries, ['upper*'])


def test_files_beside_a_metafile(tmp_path):
    (tmp_path / 'model.py').touch()
    metafile = tmp_path / 'metafile.yml'
    metafile.write_text('Models: [{Name: mine, Config: model.py, Weights: none.pth}]')
    (entry,) = read_entries(str(metafile))
    assert entry.config == str(tmp_path / 'model.py')
    assert entry.weights == str(tmp_path / 'none.pth')
    assert entry.published == {}


@pytest.mark.parametrize(
    'text', ['', 'Models: {', 'Models: [1]', 'Models: [{Name: a, Results: [1]}]']
)
def test_no_metafile(tmp_path, text):
    with pytest.raises(UsageError, match='there is no metafile'):
        read_entries(str(tmp_path / 'metafile.yml'))
    (tmp_path / 'metafile.yml').write_text(text)
    with pytest.raises(UsageError, match='is no metafile with Models'):
        read_entries(str(tmp_path / 'metafile.yml'))
