"""tools/train.py and tools/test.py from the command line, alone and through their launchers."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import torch
from mmengine.registry import MODELS

DETECTOR = 'detection/maskrcnn_ffnet2_coco.py'


def tool(toy, folder, name, *arguments):
    """Run a tool to its end: its exit status and what it printed."""
    log = folder / f'log{len(list(folder.glob("log*")))}'
    child = toy.Child(log, name, folder, *map(str, arguments), function=toy.run_tool)
    return child.wait(), child.text


def write_config(toy, folder, name, **changes):
    cfg = toy.toy_config(folder / name, **changes)
    cfg.log_level = 'INFO'
    cfg.dump(folder / f'{name}.py')
    return str(folder / f'{name}.py')


def mean_score(text):
    return re.findall(r'Epoch\(test\) .* mean: (\S+)', text)


def test_missing_data_stop_training_at_once(toy, tmp_path):
    pytest.importorskip('mmdet')
    status, text = tool(toy, tmp_path, 'train.py', DETECTOR)
    assert status == 2
    assert text.startswith("train.py: error: the data folder 'data/coco/' does not exist (looked")
    assert 'annotations/instances_train2017.json' in text
    assert 'or get them: `python tools/prepare_data.py coco`' in text
    assert text.count('\n') == 1  # nothing was built, nothing else is said
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.slow
def test_fused_model_scores_the_same(toy, tmp_path):
    config = write_config(toy, tmp_path, 'toy')
    assert tool(toy, tmp_path, 'train.py', config)[0] == 0
    checkpoint = tmp_path / 'toy' / 'epoch_4.pth'
    scores = []
    for options in ([], ['--fuse']):
        status, text = tool(toy, tmp_path, 'test.py', config, checkpoint, *options)
        assert status == 0, text
        scores += mean_score(text)
    assert len(scores) == 2
    assert scores[0] == scores[1]
    # the config of the training is left as it was, for other tools
    left = {path.name: path.read_text() for path in (tmp_path / 'toy').glob('*.py')}
    assert left.keys() == {'toy.py', 'toy_test.py'}
    assert 'SafeCheckpointHook' in left['toy.py']
    assert 'FuseHook' in left['toy_test.py']


@pytest.mark.slow
def test_detector_that_learned_its_pictures_scores_the_same_when_fused(toy, tmp_path):
    """The whole way with mmdet's own metric."""
    pytest.importorskip('mmdet')
    pictures = 'annotations/instances_train.json'
    options = [
        'train_dataloader.batch_size=4',
        'train_cfg.max_iters=80',
        'train_cfg.val_interval=80',
        'param_scheduler.0.end=5',
        'test_dataloader.dataset.data_prefix.img=images/train/',
        f'test_dataloader.dataset.ann_file={pictures}',
        f'test_evaluator.ann_file=data/shapes/coco/{pictures}',
    ]
    for part in ('train', 'val', 'test'):
        shapes = f'{part}_dataloader.dataset.shapes'
        options += [f'{shapes}.train=4', f'{shapes}.val=1']
    options = ['detection/maskrcnn_nano_shapes.py', '--work-dir', 'here', '--cfg-options', *options]
    status, text = tool(toy, tmp_path, 'train.py', *options)
    assert status == 0, text[-4000:]
    options.insert(1, 'here/iter_80.pth')
    scores = []
    for more in ([], ['--fuse']):
        status, text = tool(toy, tmp_path, 'test.py', *options[:2], *more, *options[2:])
        assert status == 0, text[-4000:]
        found = dict(re.findall(r'(bbox|segm)_mAP_copypaste: ([\d.]+)', text))
        scores.append({kind: float(score) for kind, score in found.items()})
    assert min(scores[0].values()) > 0.1
    # a box may be at the very edge of what counts
    assert scores[1] == pytest.approx(scores[0], abs=0.01) and len(scores[1]) == 2


@pytest.mark.parametrize(
    ('package', 'config'),
    [
        ('mmdet', 'detection/retinanet_nano_shapes.py'),
        ('mmseg', 'segmentation/upernet_nano_shapes.py'),
        ('mmpretrain', 'classification/ffnet_nano_shapes.py'),
    ],
)
@pytest.mark.slow
def test_one_of_the_packages_is_enough(toy, tmp_path, package, config):
    pytest.importorskip(package)
    others = sorted({'mmdet', 'mmseg', 'mmpretrain'} - {package})
    options = ['train_cfg.max_iters=1', 'train_cfg.val_interval=1', 'train_dataloader.batch_size=2']
    for part in ('train', 'val', 'test'):
        shapes = f'{part}_dataloader.dataset.shapes'
        options += [f'{shapes}.train=4', f'{shapes}.val=2']
    argv = [config, '--work-dir', 'here', '--cfg-options', *options]
    code = 'import sys, toy_training as toy\n'
    code += f'sys.modules.update(dict.fromkeys({others}))\n'  # as if they were not installed
    code += f'toy.run_tool("train.py", {str(tmp_path)!r}, *{argv})'
    child = toy.Child(tmp_path / 'log', code, function=toy.run_code)
    assert child.wait() == 0, child.text[-4000:]
    assert (tmp_path / 'here' / 'iter_1.pth').is_file()


@pytest.mark.slow
def test_checkpoints_that_do_not_fit(toy, tmp_path):
    config = write_config(toy, tmp_path, 'toy')
    model = MODELS.build(toy.toy_config(tmp_path).model)
    backbone, whole = model.backbone.state_dict(), model.state_dict()
    other_head = {**whole, 'head.1.weight': torch.rand(7, 64)}
    less = {
        key: value for key, value in other_head.items() if key != 'backbone.stem.conv1.conv.weight'
    }
    for name, state in dict(backbone=backbone, other_head=other_head, less=less).items():
        torch.save(dict(state_dict=state), tmp_path / f'{name}.pth')
    (tmp_path / 'damaged.pth').write_bytes(b'PK')
    for name, arguments, message in (
        ('test.py', [tmp_path / 'backbone.pth'], 'It is that of a bare backbone'),
        ('test.py', [tmp_path / 'other_head.pth'], 'size mismatch for head.1.weight'),
        ('test.py', [tmp_path / 'damaged.pth'], 'it is damaged'),
        ('train.py', ['--cfg-options', f'load_from={tmp_path}/less.pth'], 'fill 1 of 179 tensors'),
        ('train.py', ['--cfg-options', f'load_from={tmp_path}/other_head.pth'], None),
        ('train.py', ['--resume', tmp_path / 'less.pth'], 'less.pth has no meta, no message_hub'),
        (
            'train.py',
            ['--cfg-options', 'model.backbone.depth=50'],
            'unexpected keyword argument',
        ),
        ('train.py', ['--cfg-options', 'model.backbone.type=FNet'], 'is not in the '),
    ):
        status, text = tool(toy, tmp_path, name, config, *arguments)
        *_, last = text.splitlines()
        if message is None:
            assert status == 0, text
        else:
            assert status == 2, text
            assert last.startswith(f'{name}: error: ')
            assert message in last


def launch(script, *arguments, folder, **settings):
    environment = {**os.environ, 'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': '', **settings}
    command = ['bash', script, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launch_far(script, config, folder):
    """Two launchers that find each other, as on two machines."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    place = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=port)
    return [launch(script, config, 1, folder=folder, NODE_RANK=n, **place) for n in '01']


@pytest.mark.dist
def test_two_machines_train_as_one_does(toy, tmp_path):
    """Same global batches, batch norms in eval mode: the same weights."""
    ends = []
    for name, size, norm in (('one', 4, 'BN'), ('two', 2, 'SyncBN')):
        changes = {
            'model.dropout': 0.0,
            'model.backbone.drop_path_rate': 0.0,
            'model.backbone.norm_eval': True,
            'model.backbone.norm_cfg': dict(type=norm),
            'train_dataloader.batch_size': size,
            'train_dataloader.dataset.test_mode': True,  # no augmentation
            'optim_wrapper.optimizer.type': 'SGD',
        }
        config = write_config(toy, tmp_path, name, **changes)
        if name == 'one':
            assert tool(toy, tmp_path, 'train.py', config)[0] == 0
        else:
            machines = launch_far(toy.TOOLS / 'dist_train.sh', config, tmp_path)
            texts = [machine.communicate()[0] for machine in machines]
            assert [machine.returncode for machine in machines] == [0, 0], texts[0][-4000:]
            assert 'GPU number: 2' in texts[0]
            assert 'SyncBN needs GPUs: BN takes its place' in texts[0]
        state = toy.end_state(tmp_path / name)
        ends.append({k: v for k, v in state.items() if k.startswith('/state_dict')})
    one, two = ends
    assert one.keys() == two.keys()
    largest = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert largest < 1e-5

    # and two processes of one launcher test as one does
    checkpoint = toy.find_checkpoint(tmp_path / 'two')
    assert checkpoint == str(tmp_path / 'two' / 'epoch_4.pth')
    process = launch(toy.TOOLS / 'dist_test.sh', config, checkpoint, 2, folder=tmp_path)
    together = process.communicate()[0]
    assert process.returncode == 0, together[-4000:]
    status, alone = tool(toy, tmp_path, 'test.py', config, checkpoint)
    assert status == 0, alone
    assert mean_score(together) == mean_score(alone) != []


@pytest.mark.dist
def test_two_processes_stop_together(toy, tmp_path):
    options = {
        'model.backbone.norm_eval': True,
        'train_cfg.max_epochs': 1000,
        'train_cfg.val_interval': 1000,
        'default_hooks.checkpoint.interval': 1000,
    }
    config = write_config(toy, tmp_path, 'long', **options)
    process = launch(toy.TOOLS / 'dist_train.sh', config, 2, folder=tmp_path)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(r'Epoch\(train\) +\[2\]', line):
            process.send_signal(signal.SIGTERM)  # torchrun passes it on
            break
    text = ''.join(lines) + process.communicate()[0]
    stopped = re.search(r'SIGTERM: stopped after iteration (\d+), which (\S+) holds', text)
    assert stopped, text
    assert toy.find_checkpoint(tmp_path / 'long') == stopped[2]


@pytest.mark.parametrize(
    ('script', 'arguments', 'expected'),
    [
        (
            'slurm_train.sh',
            ['part', 'job', 'c.py', 'work', '--amp'],
            '-p part --job-name=job --gres=gpu:4 --ntasks=4 --ntasks-per-node=4 --cpus-per-task=5 '
            '--kill-on-bad-exit=1 --qos x python -u TOOLS/train.py c.py --work-dir work '
            '--launcher slurm --amp',
        ),
        (
            'slurm_test.sh',
            ['part', 'job', 'c.py', 'x.pth', '--fuse'],
            '-p part --job-name=job --gres=gpu:4 --ntasks=4 --ntasks-per-node=4 --cpus-per-task=5 '
            '--kill-on-bad-exit=1 --qos x python -u TOOLS/test.py c.py x.pth --launcher slurm '
            '--fuse',
        ),
    ],
)
def test_slurm_scripts(toy, tmp_path, script, arguments, expected):
    """With an srun that says what it is asked for: there is no cluster here."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    environment = {'PATH': f'{tmp_path}:/usr/bin:/bin', 'GPUS': '4', 'SRUN_ARGS': '--qos x'}
    command = ['bash', toy.TOOLS / script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected.replace('TOOLS', str(toy.TOOLS))


@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_scripts_say_how_to_call_them(toy, script):
    done = subprocess.run(
        ['bash', toy.TOOLS / f'{script}.sh', 'one'], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert f'{script}.sh' in done.stderr
    assert 'usage: ' in done.stderr
    assert os.access(toy.TOOLS / f'{script}.sh', os.X_OK)
