"""tools/benchmark.py from the command line; its accuracy task with two trained models."""

import json
import re

import pytest
import torch
import yaml

from mmffnet_cli.main import main

SMALL = dict(train=16, val=6, size=64, seed=0)


def tool(toy, folder, name, *arguments):
    log = folder / f'log{len(list(folder.glob("log*")))}'
    child = toy.Child(log, name, folder, *map(str, arguments), function=toy.run_tool)
    return child.wait(), child.text


@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory):
    """A detector and a segmentor, trained for a moment, and the scores that training saw."""
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    folder = tmp_path_factory.mktemp('trained')
    scores = {}
    for name, base, layout, epoch, pattern, extra in (
        (
            'detector',
            'detection/retinanet_nano_shapes.py',
            'coco',
            'train_cfg = dict(max_iters=2, val_interval=2)',
            r'coco/bbox_mAP: (\S+)',
            # after a moment of training nothing is more than barely likely
            'model = dict(test_cfg=dict(score_thr=0.0))\n'
            f"test_evaluator = val_evaluator = dict(ann_file='{folder}/coco/annotations/"
            "instances_val.json')\n",
        ),
        (
            'segmentor',
            'segmentation/semfpn_nano_shapes.py',
            'ade20k',
            'train_cfg = dict(max_iters=6, val_interval=6)',
            r'mIoU: (\S+)',
            'tta_model = dict(type="SegTTAModel")\n',
        ),
    ):
        data = f'dict(dataset=dict(data_root={str(folder / layout)!r}, shapes={SMALL}))'
        config = folder / f'{name}.py'
        config.write_text(
            f"_base_ = __import__('mmffnet').config_path('{base}')\n{epoch}\n{extra}"
            f'train_dataloader = {data}\ntest_dataloader = val_dataloader = {data}\n'
            "default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))\n"
        )
        status, text = tool(toy, folder, 'train.py', config, '--work-dir', folder / name)
        assert status == 0, text[-3000:]
        scores[name] = float(re.findall(pattern, text)[-1])
        last = (folder / name / 'last_checkpoint').read_text()
        (folder / f'{name}.pth').symlink_to(last)
    return folder, scores


@pytest.mark.timeout(900)  # seven processes that import everything
@pytest.mark.slow
def test_accuracy(toy, trained, tmp_path):
    folder, scores = trained
    box_ap, miou = 100 * scores['detector'], scores['segmentor']
    models = [
        ('small_detector', 'detector', {'box AP': round(box_ap, 2)}),
        ('small_segmentor', 'segmentor', {'mIoU': miou + 1.5, 'mIoU(ms+flip)': 99.0}),
        ('lost', 'detector', {'box AP': 50.0}),
    ]
    metafile = folder / 'metafile.yml'
    content = [
        dict(
            Name=name,
            Config=f'{file}.py',
            Weights='lost.pth' if name == 'lost' else f'{file}.pth',
            Results=[dict(Task='-', Dataset='shapes', Metrics=metrics)],
        )
        for name, file, metrics in models
    ]
    metafile.write_text(yaml.safe_dump(dict(Models=content)))
    command = ['benchmark.py', 'accuracy', '--metafile', metafile, '--tta']

    status, text = tool(toy, tmp_path, *command, '--dry-run')
    assert status == 0, text
    assert 'running' not in text and text.count('to run') == 3 and 'missing' in text
    assert not (tmp_path / 'work_dirs').exists()

    status, text = tool(toy, tmp_path, *command)
    assert status == 1  # one is lost, one is outside
    assert 'lost: not run: there is no checkpoint file' in text
    out = tmp_path / 'work_dirs' / 'accuracy'
    table = json.loads((out / 'accuracy.json').read_text())['rows']
    found = {(row['model'], row['metric']): row for row in table}
    detector = found['small_detector', 'box AP']
    assert detector['difference'] == pytest.approx(0, abs=0.05) and not detector['outside']
    assert detector['parameters'] > 1e6 and detector['macs'] > 1e8
    segmentor = found['small_segmentor', 'mIoU']
    assert segmentor['difference'] == pytest.approx(-1.5, abs=0.011) and segmentor['outside']
    augmented = found['small_segmentor', 'mIoU(ms+flip)']
    assert augmented['measured'] > 0
    assert 'TestTimeAug' in (out / 'small_segmentor_tta.log').read_text()
    assert 'TestTimeAug' not in (out / 'small_segmentor.log').read_text()
    assert found['lost', 'box AP']['status'] == 'missing'
    assert (out / 'accuracy.md').read_text() in text
    assert '-1.50 (!)' in text

    # a second time nothing is evaluated again
    status, text = tool(toy, tmp_path, *command, '--models', 'small_*')
    assert status == 1
    assert text.count('done before') == 3 and 'running' not in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'arguments are required: TASK'),
        (['accuracy', '--models', 'bla*'], "no model is called 'bla*'"),
        (['accuracy', '--metafile', 'none.yml'], "there is no metafile 'none.yml'"),
        (['accuracy', 'only.py'], 'configs and checkpoints come in pairs'),
        (['speed', 'bla'], "there is no network 'bla'"),
        (['speed', '--forms', 'eager,quick'], "'quick' is no form"),
        (['speed', '--rounds', '0'], 'are positive numbers'),
        (['speed', '--size', '1', '2', '3'], 'are positive numbers'),
        (['speed', '--train', '--around', 'upernet'], 'a training step is measured for backbones'),
        (['speed', '--cpu-time', '--threads', '2'], 'add --threads 1'),
        (['profile', '--form', 'openvino'], 'runs outside of PyTorch'),
        (['profile', '--calls', '0'], 'are positive numbers'),
        (['profile', '--trace', '/dev/null/x.json'], 'cannot be a folder for results'),
        (['speed', '--threads', '0'], 'are positive numbers'),
        (['speed', '--out', '/dev/null/x'], 'cannot be a folder for results'),
        (['accuracy', '--out', '/dev/null/x'], 'cannot be a folder for results'),
        pytest.param(
            ['speed', '--device', 'cuda'],
            "there is no device 'cuda'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is one'),
        ),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    try:
        with pytest.raises(SystemExit, match='2'):
            main(['benchmark', *arguments])
    finally:
        torch.set_num_threads(1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('mmffnet benchmark: error: ') and message in line


@pytest.mark.slow
def test_speed(toy, tmp_path):
    pytest.importorskip('timm')
    status, text = tool(
        toy, tmp_path, 'benchmark.py', 'speed', 'nano', 'timm:resnet18', '--forms', 'eager,fused',
        '--size', '64', '96', '--rounds', '2', '--threads', '1', '--device', 'cpu', '--out', 'new',
    )  # fmt: skip
    assert status == 0, text
    assert ', 1 thread, batch 1, 2 rounds' in text
    assert len(re.findall(r'^\| (nano|timm:resnet18) +\| (eager|fused) +\| 64x96', text, re.M)) == 4
    assert {path.name for path in (tmp_path / 'new').iterdir()} == {
        'speed.md', 'speed.csv', 'speed.json',
    }  # fmt: skip


@pytest.mark.slow
def test_profile(toy, tmp_path):
    status, text = tool(
        toy, tmp_path, 'benchmark.py', 'profile', 'nano', '--size', '64', '--form', 'eager',
        '--calls', '1', '--threads', '1', '--device', 'cpu', '--trace', 'trace.json',
    )  # fmt: skip
    assert status == 0, text
    modules = re.findall(r'^\| ( *[\w.]+) +\| +([\d.]+) \| +([\d.]+) \|$', text, re.M)
    names = [name.rstrip() for name, *_ in modules]
    expected = ['stem', '  stem.conv1', '  stem.act', '  stem.conv2']
    expected += [f'stages.{i}' for i in range(4)] + [f'norm{i}' for i in range(4)]
    assert names == expected
    shares = [float(share) for name, _, share in modules if not name.startswith(' ')]
    assert 50 < sum(shares) < 300
    assert re.search(r'^\| aten::native_batch_norm +\| +39 \|', text, re.M)
    assert (tmp_path / 'trace.json').stat().st_size > 1000
