"""Turns, rounds and ratios. No times are asserted: they are the machine's."""

import time

import pytest
import torch
from torch import nn

from mmffnet.benchmark import speed
from mmffnet.benchmark.forms import Form, parse_form
from mmffnet.benchmark.networks import Network, find_network
from mmffnet.benchmark.speed import Measurement, deviation, measure, speedup, spread


class Noted(nn.Module):
    """Notes when it is called."""

    def __init__(self, name, notes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.name, self.notes = name, notes

    def forward(self, x):
        self.notes.append(self.name)
        return self.conv(x)


def noted(name, notes):
    return Network(name, lambda device: Noted(name, notes).eval(), (8, 8))


@pytest.mark.slow
def test_everything_takes_its_turn_in_each_round(monkeypatch):
    monkeypatch.setattr(speed, '_TURN', 0.0)  # one call a turn
    notes, said = [], []
    networks = [noted('a', notes), noted('b', notes), noted('c', notes)]
    found = measure(networks, [Form()], rounds=6, progress=said.append)
    calls = notes[-18:]
    rounds = [''.join(calls[i : i + 3]) for i in range(0, 18, 3)]
    assert rounds == ['abc', 'abc', 'bca', 'bca', 'cab', 'cab']
    assert [len(m.seconds) for m in found] == [6, 6, 6]
    assert all(second > 0 for m in found for second in m.seconds)
    assert len(said) == 3


@pytest.mark.slow
def test_time_of_others_can_be_left_out():
    class Waiting(Noted):
        def forward(self, x):
            time.sleep(0.05)
            return self.conv(x)

    network = Network('w', lambda device: Waiting('w', []).eval(), (8, 8))
    for cpu_time in (False, True):
        (found,) = measure([network], [Form()], rounds=1, cpu_time=cpu_time)
        assert (found.seconds[0] < 0.05) == cpu_time


def test_what_is_fast_is_called_several_times(monkeypatch):
    notes = []
    monkeypatch.setattr(speed, '_TURN', 1e9 * 1e-6)
    monkeypatch.setattr(speed, '_turn', lambda call, repeats, *_: notes.append(repeats) or 10.0)
    measure([noted('a', [])], [Form()], rounds=2, progress=lambda text: None)
    assert notes == [1, 1, 100, 100]


@pytest.mark.slow
def test_all_forms_have_the_same_weights():
    forms = [parse_form(text) for text in ('eager', 'fused', 'channels_last', 'bf16')]
    found = measure([find_network('nano')], forms, size=(64, 64), rounds=1, progress=print)
    assert [m.size for m in found] == [(64, 64)] * 4
    assert found[0].deviation == 0
    assert max(m.deviation for m in found[1:3]) < 1e-5 < 1e-3 < found[3].deviation < 0.1
    assert found[1].parameters < found[0].parameters


def test_a_form_that_fails_does_not_stop_the_others():
    class Broken(Noted):
        def forward(self, x):
            if x.is_contiguous(memory_format=torch.channels_last):
                raise RuntimeError('only NCHW\nhere')
            return self.conv(x)

    said = []
    network = Network('broken', lambda device: Broken('x', []).eval(), (8, 8))
    forms = [parse_form(text) for text in ('eager', 'channels_last', 'bf16')]
    found = measure([network], forms, rounds=2, progress=said.append)
    assert [len(m.seconds) for m in found] == [2, 0, 2]
    assert found[1].problem == 'RuntimeError: only NCHW here'
    assert 'broken channels_last: RuntimeError: only NCHW here' in said


@pytest.mark.slow
def test_training():
    forms = [parse_form(text) for text in ('eager', 'bf16')]
    found = measure([find_network('nano')], forms, size=(64, 64), batch=2, rounds=1, train=True)
    assert 0 < found[1].deviation < 0.1
    held = 4 * (found[0].parameters + 2 * 3 * 64 * 64)
    # the gradients are as large as the parameters
    assert all(m.memory > held + 4 * m.parameters for m in found)


@pytest.mark.export
def test_exported_files(tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    from mmffnet.deploy.export import export_module

    model = find_network('nano').build('cpu')
    path = export_module(model, tmp_path / 'nano.onnx', (2, 3, 64, 96))
    network = find_network(str(path))
    assert (network.name, network.size) == ('nano.onnx', (64, 96))
    forms = [Form(), parse_form('openvino+bf16')]
    (found,) = measure([network], forms, batch=2, rounds=2)
    assert found.form == Form(onnxruntime=True) and len(found.seconds) == 2
    (found,) = measure([network], forms[:1], batch=2, rounds=1, train=True)
    assert 'cannot be trained' in found.problem and not found.seconds


def test_ratios_within_rounds():
    network = Network('n', nn.Identity, (8, 8))
    base = Measurement(network, Form(), (8, 8), seconds=[2.0, 4.0, 6.0, 8.0, 10.0])
    other = Measurement(network, Form(fused=True), (8, 8), seconds=[1.0, 1.0, 2.0, 2.0, 2.0])
    found = speedup(base, other)  # 2, 4, 3, 4, 5
    assert (found.low, found.median, found.high) == (3, 4, 4)
    assert speedup(base, Measurement(network, Form(), (8, 8))) is None
    assert spread([7.0]) == speed.Spread(7.0, 7.0, 7.0)


def test_deviation():
    a = [torch.tensor([1.0, -4.0]), torch.tensor([2.0])]
    b = [torch.tensor([1.0, -4.0]), torch.tensor([2.5])]
    assert deviation(a, a) == 0
    assert deviation(a, b) == pytest.approx(0.5 / 4)
    assert deviation(a, a[:1]) is None
