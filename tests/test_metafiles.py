"""model-index.yml and the metafiles: valid, complete, and in agreement with the models."""

import copy
import importlib.util
import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.analysis import FlopAnalyzer
from mmengine.registry import MODELS
from torch import nn

import mmffnet
from mmffnet.checkpoint import OFFICIAL_WEIGHTS

ROOT = Path(__file__).parents[1]
CLASSIFIERS = ROOT / 'configs' / 'classification' / 'metafile.yml'


@pytest.fixture(scope='module')
def check():
    path = ROOT / 'tools' / 'dev' / 'check_metafiles.py'
    spec = importlib.util.spec_from_file_location('check_metafiles', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.check


@pytest.fixture
def small(tmp_path):
    """A checkout with one metafile, the classifiers', and no configs."""
    (tmp_path / 'configs').mkdir()
    lines = CLASSIFIERS.read_text(encoding='utf-8').splitlines()
    kept = [line for line in lines if not line.startswith('    Config: ')]
    (tmp_path / 'configs' / CLASSIFIERS.name).write_text('\n'.join(kept), encoding='utf-8')
    (tmp_path / 'model-index.yml').write_text('Import: [configs/metafile.yml]\n')
    return tmp_path


def models(path):
    return yaml.safe_load(path.read_text())['Models']


def test_there_are_no_problems(check):
    assert check() == []


@pytest.mark.parametrize(
    ('edit', 'problem'),
    [
        (lambda m: m.update(Name='ffnet1_3rdparty_in1k'), 'used twice'),
        (lambda m: m.update({'In Collection': 'Other'}), "no collection 'Other'"),
        (lambda m: m.update(Config='configs/none.py'), 'configs/none.py does not exist'),
        (lambda m: m.pop('Weights'), 'neither Config nor Weights'),
        (lambda m: m.update(Weights='ffnet_2.pth'), 'not an https address'),
        (lambda m: m.update(Name='ffnet2_in1k'), "must contain '_3rdparty_'"),
        (lambda m: m.pop('Reported By'), 'must say who reported them'),
        (lambda m: m['Results'][0].pop('Dataset'), 'model-index: .*Dataset'),
    ],
)
def test_a_bad_entry_is_found(check, small, edit, problem):
    path = small / 'configs' / 'metafile.yml'
    metafile = yaml.safe_load(path.read_text())
    edit(metafile['Models'][1])
    path.write_text(yaml.safe_dump(metafile))
    found = check(small)
    assert any(re.search(problem, text) for text in found), found


def test_a_metafile_without_import_is_found(check, small):
    assert check(small) == []
    (small / 'configs' / 'task').mkdir()
    (small / 'configs' / 'task' / 'metafile.yml').write_text('Models: []\n')
    assert check(small) == ['configs/task/metafile.yml: model-index.yml does not import it']


def test_the_official_weights_are_all_there():
    entries = [model for path in ROOT.glob('configs/**/metafile.yml') for model in models(path)]
    official = {
        file.url
        for name, file in OFFICIAL_WEIGHTS.items()
        if name != 'ffnetseg' and not file.by_hand
    }
    assert {m['Weights'] for m in entries if '_3rdparty_' in m['Name']} == official


class Classifier(nn.Module):
    def __init__(self, arch):
        super().__init__()
        settings = dict(type='FFNet', arch=arch, out_indices=(3,), out_norm_cfg=dict(type='BN'))
        self.backbone = MODELS.build(settings)
        self.head = nn.Linear(self.backbone.out_channels[-1], 1000)

    def forward(self, x):
        return self.head(self.backbone(x)[0].mean((2, 3)))


def classifiers(arch):
    """The model as trained and fused, by the prefix of their numbers, and the entries."""
    model = Classifier(arch).eval()
    fused = mmffnet.reparameterize(copy.deepcopy(model))
    entries = [entry['Metadata'] for entry in models(CLASSIFIERS) if entry['Name'].startswith(arch)]
    assert entries
    return {'': model, 'Fused ': fused}, entries


@pytest.mark.parametrize('arch', ['ffnet1', 'ffnet2', 'ffnet3', 'ffnet4'])
@pytest.mark.slow
def test_parameters_are_the_models(arch):
    both, entries = classifiers(arch)
    for prefix, model in both.items():
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert {entry[f'{prefix}Parameters'] for entry in entries} == {parameters}


@pytest.mark.parametrize('arch', ['ffnet1', 'ffnet2'])  # the others take seconds
@pytest.mark.slow
def test_flops_are_the_models(arch):
    both, entries = classifiers(arch)
    for prefix, model in both.items():
        flops = FlopAnalyzer(model, torch.zeros(1, 3, 32, 32)).by_module()
        for entry in entries:
            # All but the head grows with the area.
            growth = (entry['Input Size'] // 32) ** 2
            assert entry[f'{prefix}FLOPs'] == flops['backbone'] * growth + flops['head']
