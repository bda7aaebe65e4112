"""tools/get_flops.py from the command line."""

import json
import re

import pytest


def tool(toy, folder, *arguments):
    log = folder / f'log{len(list(folder.glob("log*")))}'
    child = toy.Child(log, 'get_flops.py', folder, *arguments, function=toy.run_tool)
    return child.wait(), child.text


@pytest.mark.slow
def test_backbone(toy, tmp_path):
    status, text = tool(toy, tmp_path, 'ffnet2', '--depth', '1')
    assert status == 0
    lines = text.splitlines()
    assert lines[0] == 'ffnet2 at 256 x 256 (height x width)'
    assert re.sub(' +', ' ', lines[1]) == 'as trained 26.505 M parameters 6.060 G multiply-adds'
    assert re.sub(' +', ' ', lines[2]) == 'fused 26.205 M parameters 6.003 G multiply-adds'
    assert lines[3].startswith('not in it:')
    assert [line.split()[0] for line in lines[4:]] == ['stem', 'stages']


@pytest.mark.slow
def test_config_of_any_size(toy, tmp_path):
    pytest.importorskip('mmseg')
    config = 'segmentation/semfpn_nano_shapes.py'
    found = []
    for size in ('160', '320'):
        options = ['--cfg-options', 'model.decode_head.num_classes=9']
        status, text = tool(toy, tmp_path, config, '--size', size, '--json', *options)
        assert status == 0, text
        found.append(json.loads(text))
    assert [case['size'] for case in found] == [[160, 160], [320, 320]]
    # nothing here but convolutions: four times the area is four times the work
    assert found[1]['trained']['macs'] == 4 * found[0]['trained']['macs']
    assert found[1]['trained']['parameters'] == found[0]['trained']['parameters']
    assert found[0]['fused']['macs'] < found[0]['trained']['macs']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['ffnet7'], "there is no network 'ffnet7'"),
        (['no.py'], "there is no config file 'no.py'"),
        (['nano', '--size', '1', '2', '3'], '--size takes a height and a width'),
        (['nano', '--size', '31'], 'at least 32'),
    ],
)
def test_mistakes(toy, tmp_path, arguments, message):
    status, text = tool(toy, tmp_path, *arguments)
    assert status == 2
    assert text.startswith('get_flops.py: error: ') and message in text
    assert text.count('\n') == 1
