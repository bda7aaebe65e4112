"""Models as repositories of the hub: what is written, uploaded, and used again by its address."""

import json
import sys
from pathlib import Path

import labelled_pictures as labelled
import pytest
import torch
import yaml
from hub_server import TOKEN, hub_server
from mmengine.config import Config
from toy_models import META, TASKS, make_model, make_pictures

from mmffnet.checkpoint import read_checkpoint
from mmffnet.engine.models import find_legend, load_model
from mmffnet.engine.runner import read_config
from mmffnet.errors import UsageError
from mmffnet.sharing.push import _without_places, push

pytest.importorskip('huggingface_hub')
PARTS = ('train', 'val', 'test')
PIPELINES = ('image-segmentation', 'image-segmentation', 'image-classification')


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')
    return {task: make_model(task, folder) for task in TASKS}


def header_of(folder):
    _, header, text = (folder / 'README.md').read_text().split('---\n', 2)
    return yaml.safe_load(header), text


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('/home/me/data', 'data'),
        ('~/data', 'data'),
        ('file:///home/me/data', 'data'),
        ('file:///C:\\Users\\me\\data', 'data'),
        ('~\\data', 'data'),
        ('~me\\secret\\data', 'data'),
        ('C:\\Users\\me\\data', 'data'),
        ('\\\\server\\share\\data', 'data'),
        ('data/coco', 'data/coco'),
        ('hf://me/net/a.pth', 'hf://me/net/a.pth'),
        ('/', '/'),
    ],
)
def test_places_of_this_machine_are_not_published(text, expected):
    assert _without_places(dict(a=[(text, 1)])) == dict(a=[(expected, 1)])


@pytest.mark.parametrize(('task', 'pipeline'), zip(TASKS, PIPELINES, strict=True))
def test_dry_run(models, task, pipeline, tmp_path):
    config, checkpoint = models[task]
    cfg = read_config(config, ['train_dataloader.dataset.data_root=/home/me/Ripe Fruit'])
    (tmp_path / 'results.json').write_text(
        '{"summary": {"box mAP": 0.25, "mask mAP": -1, "x": null}}'
    )
    folder = tmp_path / 'out'
    results = str(tmp_path / 'results.json')
    said = push('me/net', cfg, checkpoint, results, 'Ripe Fruit', dry_run=str(folder))
    assert str(folder) in said and 'me/net' in said
    assert {path.name for path in folder.iterdir()} == {
        *('README.md', 'config.py', 'model.safetensors')
    }
    header, text = header_of(folder)
    (result,) = header.pop('model-index')[0]['results']
    assert result['dataset'] == dict(name='Ripe Fruit', type='ripe-fruit')
    assert result['metrics'] == [dict(type='box-map', value=0.25, name='box mAP')]
    tags = header.pop('tags')
    assert tags[:2] == [cfg.default_scope, 'ffnet']
    assert ('instance-segmentation' in tags) == (task == 'detection')
    assert header == dict(library_name='mmffnet', pipeline_tag=pipeline, datasets=['ripe-fruit'])
    assert 'hf://me/net/model.safetensors' in text and ', '.join(META[task]['classes']) in text
    assert '/home' not in (folder / 'config.py').read_text()
    # what was written is the model
    written = read_checkpoint(folder / 'model.safetensors')
    for name, tensor in read_checkpoint(checkpoint)['state_dict'].items():
        assert torch.equal(written['state_dict'][name], tensor)
    alone = Config.fromfile(folder / 'config.py')
    assert '_base_' not in alone and 'work_dir' not in alone
    assert tuple(find_legend(alone, written['meta']).classes) == tuple(META[task]['classes'])


def test_results_of_a_metafile(models, tmp_path):
    config, checkpoint = models['classification']
    cfg = read_config(config)
    entry = dict(
        Name='one',
        Config=config,
        Results=[dict(Task='x', Dataset='ImageNet-1k', Metrics={'Top 1 Accuracy': 81.3})],
    )
    entry['Reported By'] = 'the authors'
    metafile = tmp_path / 'metafile.yml'
    metafile.write_text(yaml.safe_dump(dict(Models=[entry, dict(entry, Config='other.py')])))
    push(
        'me/net',
        cfg,
        checkpoint,
        str(metafile),
        license='apache-2.0',
        dry_run=str(tmp_path / 'out'),
    )
    header, text = header_of(tmp_path / 'out')
    assert (header['license'], header['datasets']) == ('apache-2.0', ['imagenet-1k'])
    (result,) = header['model-index'][0]['results']
    assert result['metrics'][0]['value'] == 81.3
    assert 'Reported by the authors' in text
    metafile.write_text(yaml.safe_dump(dict(Models=[entry, entry])))
    with pytest.raises(UsageError, match='has 2 models'):
        push('me/net', cfg, checkpoint, str(metafile), dry_run=str(tmp_path / 'other'))


def test_what_is_refused(models, tmp_path, monkeypatch):
    config, checkpoint = models['classification']
    cfg = read_config(config)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine').touch()
    for repository, settings in (
        ('net', {}),
        ('me/net', dict(dry_run=str(tmp_path / 'full'))),
        ('me/net', dict(results=str(tmp_path / 'none.json'))),
        ('me/net', dict(results=str(tmp_path / 'none.yml'))),
    ):
        with pytest.raises(UsageError):
            push(repository, cfg, checkpoint, **settings)
    with pytest.raises(UsageError, match='mmdet'):
        push('me/net', Config(dict(model=cfg.model)), checkpoint)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ImportError, match='pip install huggingface_hub'):
        push('me/net', cfg, checkpoint, dry_run=str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


RUN = """
import json, os
os.environ.update(environment)
os.chdir(folder)
from mmffnet_cli.main import main
statuses = []
for command in commands:
    print('$', *command, flush=True)
    token = command[0] == 'with-token'
    os.environ.update(HF_TOKEN=secret) if token else os.environ.pop('HF_TOKEN', None)
    try:
        statuses.append(main(command[token:]))
    except SystemExit as stop:
        statuses.append(stop.code)
json.dump(statuses, open('statuses.json', 'w'))
"""


@pytest.mark.slow
@pytest.mark.dist
def test_push_and_use(models, toy, tmp_path):
    """Uploaded by the real client, then used by the tools by its address."""
    config, checkpoint = models['classification']
    detector, weights = models['detection']
    few = [f'{part}_dataloader.dataset.shapes.{n}=2' for part in PARTS for n in ('train', 'val')]
    few += ['train_dataloader.batch_size=2', 'train_cfg.max_iters=1', 'load_from=hf://me/det/a.pth']
    make_pictures(tmp_path / 'photos', number=1)
    labelled.write_folders(tmp_path / 'data')
    address = 'hf://me/net/model.safetensors'
    model = ('push', 'me/net', config, checkpoint)
    commands = {
        model: 2,  # not logged in
        ('with-token', *model): 0,
        ('with-token', *model, '--private'): 2,  # it is public
        ('with-token', 'push', 'me/secret', *model[2:], '--private'): 0,
        ('with-token', 'push', 'others/net', *model[2:]): 2,
        ('infer', config, address, 'photos', '--out-dir', 'found', '--device', 'cpu'): 0,
        ('infer', config, 'hf://me/secret/model.safetensors', 'photos'): 2,
        ('infer', 'hf://me/net/config.py', address, 'photos'): 2,
        ('reparameterize', config, address, 'fused.safetensors'): 0,
        ('infer', 'fused.py', 'fused.safetensors', 'photos', '--out-dir', 'fused'): 0,
        ('export', config, address, '--format', 'onnx', '--out', 'net.onnx'): 0,
        ('test', detector, 'hf://me/det/a.pth', '--cfg-options', *few[:-1]): 0,
        ('train', detector, '--work-dir', 'here', '--cfg-options', *few): 0,
        ('finetune', 'data', '--dry-run', '--weights', address, '--out', 'tuned'): 0,
    }
    with hub_server() as hub:
        hub.add('me/det', {'a.pth': Path(weights).read_bytes()})
        environment = dict(
            HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / 'home'), HF_HUB_DISABLE_XET='1'
        )
        known = dict(
            commands=list(commands), environment=environment, folder=tmp_path, secret=TOKEN
        )
        child = toy.Child(tmp_path / 'log', RUN, known, function=toy.run_code)
        assert child.wait() == 0, child.text
        files = hub.files('me/net')
        assert hub.repositories['me/secret'].private and not hub.repositories['me/net'].private
        assert len(hub.repositories['me/net'].commits) == 1
    statuses = json.loads((tmp_path / 'statuses.json').read_text())
    assert statuses == list(commands.values()), child.text
    assert 'Traceback' not in child.text and child.text.count('HF_TOKEN') == 3
    assert (tmp_path / 'here' / 'iter_1.pth').is_file()
    assert set(files) == {'README.md', 'config.py', 'model.safetensors'}
    (tmp_path / 'model.safetensors').write_bytes(files['model.safetensors'])
    (tmp_path / 'config.py').write_bytes(files['config.py'])
    load_model(read_config(str(tmp_path / 'config.py')), str(tmp_path / 'model.safetensors'))
    first, fused = (
        json.loads((tmp_path / name / 'predictions.json').read_text())['images'][0]
        for name in ('found', 'fused')
    )
    assert first['category'] in META['classification']['classes']
    assert [top['category'] for top in first['top']] == [top['category'] for top in fused['top']]
    assert (
        Config.fromfile(tmp_path / 'tuned' / 'config.py').model.backbone.init_cfg.checkpoint
        == address
    )
