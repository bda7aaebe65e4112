"""Checkpoints as safetensors: what comes back, and what such a file cannot hold."""

import sys

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from toy_training import ARCH, toy_config, train

import mmffnet  # noqa: F401
from mmffnet.checkpoint import convert_file, read_checkpoint, save_atomically
from mmffnet.engine.runner import read_config, train_config
from mmffnet.errors import DamagedCheckpointError, MissingPackageError, UsageError

safetensors = pytest.importorskip('safetensors.torch')


def test_weights_and_metadata_come_back(tmp_path):
    state = dict(
        weight=torch.rand(3, 4),
        half=torch.rand(2).bfloat16(),
        count=torch.tensor(7),
        mask=torch.tensor([True, False]),
        empty=torch.zeros(0, 3),
        turned=torch.rand(3, 4).t(),
    )
    meta = dict(
        dataset_meta=dict(classes=('Apfel', 'Käse'), palette=np.array([[1, 2, 3], [4, 5, 6]])),
        epoch=np.int64(3),
        device=torch.device('cpu'),
    )
    path = tmp_path / 'a.safetensors'
    save_atomically(dict(state_dict=state, meta=meta, optimizer='left out'), path)
    found = CheckpointLoader.load_checkpoint(str(path), 'cpu', logger='silent')
    assert set(found) == {'meta', 'state_dict'}
    assert found['meta']['dataset_meta'] == dict(
        classes=['Apfel', 'Käse'], palette=[[1, 2, 3], [4, 5, 6]]
    )
    assert (found['meta']['epoch'], found['meta']['device']) == (3, 'cpu')
    for name, tensor in state.items():
        assert torch.equal(found['state_dict'][name], tensor)
        assert found['state_dict'][name].dtype == tensor.dtype
    with pytest.raises(FileExistsError):
        save_atomically(dict(state_dict=state), path)


def test_tensors_that_share_memory(tmp_path):
    whole = torch.arange(12.0)
    state = dict(one=whole, other=whole, part=whole[4:8], later=whole.view(3, 4)[1:])
    save_atomically(state, tmp_path / 'a.safetensors')
    found = read_checkpoint(tmp_path / 'a.safetensors')['state_dict']
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    'value', ['text', torch.eye(2).to_sparse(), torch.empty(2, device='meta')], ids=str
)
def test_what_such_a_file_cannot_hold(tmp_path, value):
    with pytest.raises(ValueError, match='head'):
        save_atomically(
            dict(state_dict=dict(weight=torch.ones(1), head=value)), tmp_path / 'a.safetensors'
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'place', [None, 'meta', torch.device('meta'), {'cpu': 'meta'}, lambda storage, where: storage]
)
def test_places_are_those_of_torch_load(tmp_path, place):
    content = dict(state_dict=dict(weight=torch.ones(2)), meta={})
    found = []
    for name in ('a.pth', 'a.safetensors'):
        save_atomically(content, tmp_path / name)
        found.append(read_checkpoint(tmp_path / name, place)['state_dict']['weight'].device)
    assert found[0] == found[1]


def test_files_of_other_programs(tmp_path):
    path = tmp_path / 'a.safetensors'
    safetensors.save_file({'weight': torch.ones(100, 10)}, path, {'meta': 'not JSON'})
    assert torch.equal(CheckpointLoader.load_checkpoint(str(path))['weight'], torch.ones(100, 10))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpointError, match=r'a\.safetensors'):
        read_checkpoint(path)
    path.write_text('<html>404</html>')
    with pytest.raises(DamagedCheckpointError, match=r'a\.safetensors'):
        read_checkpoint(path)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    for error in (ImportError, UsageError, MissingPackageError):
        with pytest.raises(error, match='pip install safetensors'):
            save_atomically({}, tmp_path / 'a.safetensors')


def test_converted_names(tmp_path):
    backbone = MODELS.build(dict(type='FFNet', arch=ARCH))
    ours, official, back = (tmp_path / f'{name}.safetensors' for name in ('o', 'f', 'b'))
    save_atomically(dict(state_dict=backbone.state_dict()), ours)
    convert_file(str(ours), official, 'official')
    convert_file(str(official), back, 'ours')
    found = read_checkpoint(back)
    assert found['meta']['converted_from'] == official.name
    assert found['state_dict'].keys() == backbone.state_dict().keys()
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(found['state_dict'][name], tensor)


@pytest.mark.slow
def test_a_training_starts_from_it_but_cannot_resume(tmp_path):
    cfg = toy_config(tmp_path / 'work')
    model = MODELS.build(cfg.model)
    path = tmp_path / 'a.safetensors'
    save_atomically(dict(state_dict=model.state_dict(), meta=dict(epoch=4)), path)
    # nothing is learned, so what was loaded is what is saved
    cfg.merge_from_dict(dict(load_from=str(path), optim_wrapper=dict(optimizer=dict(lr=0.0))))
    cfg.train_cfg.max_epochs = 1
    train(cfg)
    found = read_checkpoint(tmp_path / 'work' / 'epoch_1.pth')['state_dict']
    assert torch.equal(found['head.1.weight'], model.state_dict()['head.1.weight'])
    with pytest.raises(UsageError, match='load_from'):
        train_config(toy_config(tmp_path / 'other'), str(path))


def test_a_config_is_no_address():
    with pytest.raises(UsageError, match='is code'):
        read_config('hf://me/net/config.py')
