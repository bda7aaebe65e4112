"""tools/finetune.py and tools/report.py from the command line."""

import labelled_pictures as labelled


def tool(toy, folder, *arguments):
    log = folder / f'log{len(list(folder.glob("log*")))}'
    child = toy.Child(log, *arguments, function=toy.run_tool)
    return child.wait(), child.text


def test_dry_run(toy, tmp_path):
    root = labelled.write_voc(tmp_path / 'my pictures')
    options = ('--epochs', '2', '--size', '64', '--group-by', r'\d', '--dry-run')
    status, text = tool(toy, tmp_path, 'finetune.py', tmp_path, str(root), *options)
    assert status == 0, text
    out = tmp_path / 'work_dirs' / 'finetune_my pictures'
    assert 'config: work_dirs/finetune_my pictures/config.py' in text
    assert 'epochs, lr = 64, 1, 2,' in (out / 'config.py').read_text()
    assert sorted(path.name for path in out.iterdir()) == ['annotations', 'config.py', 'data.html']


def test_what_is_refused(toy, tmp_path):
    (tmp_path / 'empty').mkdir()
    for name, arguments, problem in (
        ('finetune.py', ['empty'], 'empty holds no pictures'),
        ('finetune.py', ['empty', '--minutes', '3', '--epochs', '2'], 'not allowed with'),
        ('finetune.py', ['empty', '--minutes', '0'], '--minutes'),
        ('finetune.py', ['empty', '--resume'], 'no training to resume'),
        ('report.py', ['detection/maskrcnn_nano_shapes.py', 'none.pth'], 'none.pth'),
    ):
        status, text = tool(toy, tmp_path, name, tmp_path, *arguments)
        assert status == 2
        assert problem in text.splitlines()[-1]
