"""tools/finetune.py and tools/report.py from the command line."""

import runpy

import labelled_pictures as labelled
import pytest

from mmffnet_cli.paths import tools_path


@pytest.fixture
def tool(monkeypatch, capsys, tmp_path):
    """Runs a tool; gives its exit status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        status = 0
        try:
            runpy.run_path(tools_path(name))['main'](arguments)
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


def test_dry_run(tool, tmp_path):
    root = labelled.write_voc(tmp_path / 'my pictures')
    options = ('--epochs', '2', '--size', '64', '--group-by', r'\d', '--dry-run')
    status, text, _ = tool('finetune.py', str(root), *options)
    assert status == 0
    out = tmp_path / 'work_dirs' / 'finetune_my pictures'
    assert 'config: work_dirs/finetune_my pictures/config.py' in text
    assert 'epochs, lr = 64, None, 1, 2,' in (out / 'config.py').read_text()
    assert sorted(path.name for path in out.iterdir()) == ['annotations', 'config.py', 'data.html']


@pytest.mark.parametrize(
    ('name', 'arguments', 'problem'),
    [
        ('finetune.py', ['empty'], 'empty holds no pictures'),
        ('finetune.py', ['empty', '--minutes', '3', '--epochs', '2'], 'not allowed with'),
        ('finetune.py', ['empty', '--minutes', '0'], '--minutes'),
        ('finetune.py', ['empty', '--resume'], 'no training to resume'),
        ('finetune.py', ['empty', '--resume', '--epochs', '7'], 'leave out --epochs'),
        ('finetune.py', ['empty', '--weights', 'none.pth'], 'none.pth'),
        ('report.py', ['detection/maskrcnn_nano_coco.py', 'none.pth'], 'data/coco'),
    ],
)
def test_what_is_refused(tool, tmp_path, name, arguments, problem):
    (tmp_path / 'empty').mkdir()
    status, _, text = tool(name, *arguments)
    assert status == 2
    assert problem in text.splitlines()[-1]
