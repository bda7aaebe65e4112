"""Forms: their names, and that all compute the same."""

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmffnet.benchmark import forms
from mmffnet.benchmark.forms import (
    Form,
    parse_form,
    prepare,
    prepare_exported,
    prepare_training,
)
from mmffnet.benchmark.networks import TimmFeatures, find_network
from mmffnet.benchmark.speed import deviation
from mmffnet.errors import UsageError


def test_names():
    assert parse_form('eager') == Form() and str(Form()) == 'eager'
    form = parse_form('bf16+compile+fused+channels_last')
    assert form == Form(fused=True, channels_last=True, compile=True, bf16=True)
    assert str(form) == 'fused+channels_last+compile+bf16'
    assert parse_form('openvino+bf16').runtime == 'openvino'


@pytest.mark.parametrize(
    'text',
    [
        *('fast', 'fused+', 'onnxruntime+bf16', 'onnxruntime+compile', 'openvino+onnxruntime'),
        *('openvino+graph', 'plain+triton'),
    ],
)
def test_no_forms(text):
    with pytest.raises(UsageError, match='is no form'):
        parse_form(text)


@pytest.fixture(scope='module')
def nano():
    torch.manual_seed(0)
    model = find_network('nano').build('cpu')
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model, torch.rand(2, 3, 64, 96)


@pytest.mark.parametrize(
    ('text', 'tolerance'),
    [
        ('fused', 1e-5),
        ('fused+channels_last', 1e-5),
        ('fused+channels_last+bf16', 0.05),
        ('onnxruntime', 1e-4),
        ('openvino', 1e-4),
        ('openvino+bf16', 0.1),
    ],
)
@pytest.mark.export
def test_every_form_computes_the_same(nano, text, tolerance, tmp_path):
    form = parse_form(text)
    if form.runtime:
        pytest.importorskip(form.runtime)
        pytest.importorskip('onnxscript')
    model, image = nano
    expected, parameters = prepare(copy.deepcopy(model), Form(), image, 1, tmp_path)
    call, fewer = prepare(copy.deepcopy(model), form, image, 1, tmp_path)
    assert fewer < parameters
    found = deviation(expected(), call())
    assert 0 < found < tolerance
    if not form.runtime:  # where a processor has no bfloat16, a runtime may do without
        assert (found > 1e-4) == form.bf16


@pytest.mark.slow
def test_compiled(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    image = torch.rand(1, 3, 8, 8)
    expected, _ = prepare(copy.deepcopy(model), Form(), image, 1, tmp_path)
    call, _ = prepare(model, parse_form('fused+compile'), image, 1, tmp_path)
    assert deviation(expected(), call()) < 1e-5
    assert model._compiled_call_impl is not None


def test_networks_of_timm_are_fused_as_timm_does_it(tmp_path):
    pytest.importorskip('timm')
    model, image = TimmFeatures('fastvit_t8').eval(), torch.rand(1, 3, 64, 64)
    expected, parameters = prepare(copy.deepcopy(model), Form(), image, 1, tmp_path)
    call, fewer = prepare(model, Form(fused=True), image, 1, tmp_path)
    assert fewer < parameters
    assert deviation(expected(), call()) < 1e-5


def test_training_step():
    torch.manual_seed(0)
    model = find_network('nano').build('cpu')
    image = torch.rand(2, 3, 64, 64)
    call, parameters = prepare_training(model, Form(channels_last=True), image)
    assert parameters == sum(p.numel() for p in model.parameters())
    call()
    first = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None and grad.abs().max() > 0 for grad in first.values())
    call()
    for name, p in model.named_parameters():
        assert p.grad is not first[name]  # thrown away, not added to


@pytest.mark.parametrize('text', ['fused', 'freeze', 'onnxruntime'])
def test_forms_that_do_not_train(text):
    with pytest.raises(UsageError, match='form for inference'):
        prepare_training(nn.Identity(), parse_form(text), torch.rand(1, 3, 8, 8))


def test_graphs_need_a_gpu(tmp_path):
    for make in (partial(prepare, threads=1, folder=tmp_path), prepare_training):
        with pytest.raises(UsageError, match='GPU'):
            make(nn.Identity(), Form(graph=True), image=torch.rand(1, 3, 8, 8))


def test_index_of_a_gpu_is_kept(monkeypatch):
    """Seen from the call, as there are hardly ever two GPUs where this runs."""
    asked = []
    monkeypatch.setattr(forms, 'load_exported', lambda path, device, *args: asked.append(device))
    image = SimpleNamespace(device=torch.device('cuda', 1), cpu=lambda: torch.zeros(1))
    prepare_exported(Path('a.onnx'), parse_form('onnxruntime'), image, 1)
    assert asked == ['cuda:1']
