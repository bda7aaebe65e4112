"""The demos, much shortened."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOL = Path(__file__).parents[1] / 'tools' / 'demo.py'
demo = SimpleNamespace(**runpy.run_path(str(TOOL)))
PACKAGES = {'detection': 'mmdet', 'segmentation': 'mmseg', 'classification': 'mmpretrain'}
METRICS = {
    'detection': ['box mAP', 'mask mAP'],
    'segmentation': ['mIoU'],
    'classification': ['accuracy'],
}


@pytest.mark.parametrize('task', PACKAGES)
@pytest.mark.slow
def test_demo(task, tmp_path, monkeypatch, capsys):
    pytest.importorskip(PACKAGES[task])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('DEMO_MINUTES', '0.001')
    options = ['train_dataloader.batch_size=4', 'default_hooks.logger.interval=1']
    for part in ('train', 'val', 'test'):
        shapes = f'{part}_dataloader.dataset.shapes'
        options += [f'{shapes}.train=8', f'{shapes}.val=6']
    run_tool(monkeypatch, task, '--work-dir', 'here', '--cfg-options', *options)
    lines = capsys.readouterr().out.splitlines()
    plan = 'There is time for 1 steps in 0.001 minutes (DEMO_MINUTES) here.'
    assert lines.count(plan) == 2  # before and after
    result = dict(line.partition(': ')[::2] for line in lines if ': ' in line)
    for name in METRICS[task]:
        assert 0 <= float(result[name]) <= 1
    assert Path(result['checkpoint']) == Path('here', 'demo.pth')
    assert Path('here', 'demo.pth').read_bytes() == Path('here', 'iter_1.pth').read_bytes()
    page = Path(result['page']).read_text()
    assert f'<p>{plan}</p>' in page  # what other budgets give as well
    assert METRICS[task][0] in page and page.count('<img alt="truth"') == 6


def test_plan():
    reached = {500: 'mAP 0.4', 2000: 'mAP 0.6'}
    plan = demo.plan_steps(demo.Demo('config.py', 6, reached), 4, 0.2 * demo.TRAINING, 40)
    assert plan == (
        1000,
        'There is time for 1000 steps in 4 minutes (DEMO_MINUTES) here.\n'
        '500 steps, 2.3 minutes here: mAP 0.4\n'
        '2000 steps, 7.3 minutes here: mAP 0.6',
    )
    # the measuring alone may take longer
    steps, text = demo.plan_steps(demo.DEMOS['detection'], 0.1, 0.2, 10)
    assert steps == 1 and text.endswith('raise DEMO_MINUTES.')


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['demo.py', *arguments])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_tool_runs_on_a_picture(monkeypatch, capsys):
    run_tool(monkeypatch, 'features', '--arch', 'nano')
    assert 'level 3: shape (1, 256, 8, 8), stride 32' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['features', 'nowhere.jpg'], 'there is no picture nowhere.jpg'),
        (['features', '--arch', 'ffnet9'], "has no arch 'ffnet9'"),
        (['segmentation', '--cfg-options', 'nonsense'], "cannot apply --cfg-options 'nonsense'"),
        (['classification', '--minutes', '0'], '--minutes'),
        (['classification', '--minutes', 'six'], '--minutes'),
        ([], 'required: TASK'),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run_tool(monkeypatch, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
