"""Addresses of the Hugging Face Hub, with its own client against a server of this machine.

The client reads its settings when it is imported, so each setting has a process of its own.
"""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, hub_server
from mmengine.registry import MODELS

from mmffnet.checkpoint import read_checkpoint, save_atomically
from mmffnet.checkpoint.hub import fetch
from mmffnet.errors import MissingPackageError, UsageError

pytest.importorskip('huggingface_hub')

CODE = """
import json, os, time
os.environ.update(environment)
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.1))  # the client tries again for half a minute
from mmengine.runner import CheckpointLoader
found = {}
for address in addresses:
    try:
        raw = CheckpointLoader.load_checkpoint(address, 'cpu', logger='silent')
        found[address] = float(raw['weight'].flatten()[0])
    except Exception as error:
        found[address] = [type(error).__name__, str(error)]
with open(out, 'w') as file:
    json.dump(found, file)
"""


def checkpoint(value, size=10):
    file = io.BytesIO()
    torch.save({'weight': torch.full((size,), float(value))}, file)
    return file.getvalue()


@pytest.fixture
def hub():
    with hub_server() as server:
        yield server


@pytest.fixture
def load(hub, toy, tmp_path):
    """Loads addresses in a new process: the first number of each, or type and text of the error."""

    def start(*addresses, **environment):
        name = f'{len(list(tmp_path.glob("*.log")))}'
        environment = dict(
            dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / 'home'), HF_HUB_DISABLE_XET='1'),
            **environment,
        )
        out = tmp_path / f'{name}.json'
        known = dict(addresses=addresses, environment=environment, out=str(out))
        child = toy.Child(tmp_path / f'{name}.log', CODE, known, function=toy.run_code)
        assert child.wait() == 0, child.text
        return json.loads(out.read_text())

    return start


@pytest.mark.dist
def test_revisions_and_the_cache(hub, load):
    old = hub.add('me/net', {'a.pth': checkpoint(1)})
    hub.add('me/net', {'a.pth': checkpoint(2), 'in/a folder/b.pth': checkpoint(3, 10_000)})
    hub.add('me/net', {'a.pth': checkpoint(4)}, branch='v1.0')
    hub.add('me/net', {'a.pth': checkpoint(5)}, branch='refs/pr/1')
    hub.add('me/net', {'a.pth': checkpoint(6)}, branch='some/branch')
    numbers = {
        'hf://me/net/a.pth': 2,
        f'hf://me/net@{old}/a.pth': 1,
        'hf://me/net@v1.0/a.pth': 4,
        'hf://me/net@refs/pr/1/a.pth': 5,
        'hf://me/net@some%2Fbranch/a.pth': 6,
        'hf://me/net/in/a folder/b.pth': 3,
    }
    assert load(*numbers) == numbers
    assert any('/stored/' in request for request in hub.requests)  # the large one, redirected
    hub.requests.clear()
    assert load(*numbers) == numbers
    assert all('HEAD' in request for request in hub.requests if '/me/net/' in request)
    assert not any('/stored/' in request for request in hub.requests)
    hub.requests.clear()
    gone = 'hf://me/net/c.pth'
    found = load(*numbers, gone, HF_HUB_OFFLINE='1')
    kind, text = found.pop(gone)
    assert found == numbers and not hub.requests
    assert kind == 'ConnectionError' and 'HF_HUB_OFFLINE' in text and 'c.pth' in text


@pytest.mark.dist
def test_what_is_not_there_or_not_allowed(hub, load):
    hub.add('me/net', {'a.pth': checkpoint(1)})
    hub.add('me/gated', {'a.pth': checkpoint(2)}, gated=True)
    hub.add('me/private', {'a.pth': checkpoint(3)}, private=True)
    cases = {
        'hf://me/nothing/a.pth': ('FileNotFoundError', 'me/nothing'),
        'hf://me/net@v7/a.pth': ('FileNotFoundError', "'v7'"),
        'hf://me/net/b.pth': ('FileNotFoundError', "'b.pth'"),
        'hf://me/gated/a.pth': ('PermissionError', 'HF_TOKEN'),
        'hf://me/private/a.pth': ('FileNotFoundError', 'HF_TOKEN'),
        'hf://me/net': ('ValueError', 'hf://me/net'),
        'hf://me/a--b/a.pth': ('ValueError', 'me/a--b'),
    }
    found = load(*cases)
    for address, (kind, text) in cases.items():
        assert found[address][0] == kind, found[address]
        assert text in found[address][1] and '\n' not in found[address][1]
    own = [address for address in cases if 'gated' in address or 'private' in address]
    assert list(load(*own, HF_TOKEN=TOKEN).values()) == [2, 3]


IN_CONFIGS = """
import os
os.environ.update(environment)
import torch
from mmengine.registry import MODELS
from toy_training import toy_config, train
exec(block)
model = MODELS.build(backbone)
model.init_weights()
torch.save(dict(state_dict=model.state_dict()), f'{folder}/init_cfg.pth')
cfg = toy_config(f'{folder}/work', load_from='hf://me/toy/toy.safetensors')
# nothing is learned, so what was loaded is what is saved
cfg.merge_from_dict(dict(optim_wrapper=dict(optimizer=dict(lr=0.0)), train_cfg=dict(max_epochs=1)))
train(cfg)
"""


@pytest.mark.dist
def test_init_cfg_and_load_from(hub, toy, tmp_path):
    """The block of the docs, and a training that starts from the hub."""
    text = (Path(__file__).parents[2] / 'docs' / 'sharing.md').read_text(encoding='utf-8')
    (block,) = re.findall(r'<!-- tested: init_cfg -->\n```python\n(.*?)```', text, re.DOTALL)
    backbone = MODELS.build(dict(type='FFNet', arch='nano'))
    classifier = MODELS.build(toy.toy_config(tmp_path).model)
    for model, name in ((backbone, 'nano'), (classifier, 'toy')):
        for tensor in model.parameters():
            torch.nn.init.normal_(tensor)
        path = tmp_path / f'{name}.safetensors'
        save_atomically(dict(state_dict=model.state_dict()), path)
    hub.add('OWNER/NAME', {'README.md': b'# nothing'})
    nano, trained = ((tmp_path / f'{name}.safetensors').read_bytes() for name in ('nano', 'toy'))
    hub.add('OWNER/NAME', {'weights/model.safetensors': nano}, branch='v1.0')
    hub.add('me/toy', {'toy.safetensors': trained})
    environment = dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / 'home'))
    known = dict(environment=environment, block=block, folder=str(tmp_path))
    child = toy.Child(tmp_path / 'log', IN_CONFIGS, known, function=toy.run_code)
    assert child.wait() == 0, child.text
    for path, model in (('init_cfg.pth', backbone), ('work/epoch_1.pth', classifier)):
        found = read_checkpoint(tmp_path / path)['state_dict']
        for name, tensor in model.named_parameters():
            assert torch.equal(found[name], tensor), name


@pytest.mark.dist
def test_a_hub_that_does_not_answer(hub, load):
    hub.add('me/net', {'a.pth': checkpoint(1)})
    address = 'hf://me/net/a.pth'
    assert load(address) == {address: 1}
    hub.down = True
    found = load(address, 'hf://me/net/b.pth')
    assert found[address] == 1
    assert found['hf://me/net/b.pth'][0] == 'ConnectionError'


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    for error in (ImportError, UsageError, MissingPackageError):
        with pytest.raises(error, match='pip install huggingface_hub'):
            fetch('hf://me/net/a.pth')
