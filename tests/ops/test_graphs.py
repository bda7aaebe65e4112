"""CUDA graphs: what decides about them, on CPUs; graphs themselves where there is a GPU."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmffnet.ops.graphs import (
    InferenceGraphs,
    TrainingGraph,
    keep_gradients,
    why_no_training_graph,
)

GPU_CHECK = Path(__file__).parents[2] / 'tools' / 'dev' / 'gpu_check.py'


@pytest.fixture
def nano():
    return MODELS.build(dict(type='FFNet', arch='nano', drop_path_rate=0.0))


def test_only_what_comes_again_gets_a_graph():
    class Two(InferenceGraphs):
        room = 2

    two = Two(nn.Identity(), print)
    assert [two.wants(key) for key in 'abab'] == [False, False, True, True]
    two.graphs.update(a=print, b=print)
    assert [two.wants(key) for key in 'acc'] == [False, False, False]
    two.graphs.clear()  # they are captured again at once
    assert two.wants('a')


@pytest.mark.parametrize('graphs', [InferenceGraphs, TrainingGraph])
def test_on_a_cpu_all_runs_as_usual_and_is_said_once(graphs, nano):
    image, said = torch.rand(1, 3, 64, 64), []
    nano.train(graphs is TrainingGraph)
    plain = copy.deepcopy(nano)
    graphs(nano, said.append)
    with torch.set_grad_enabled(graphs is TrainingGraph):
        for _ in range(3):
            for found, expected in zip(nano(image), plain(image), strict=True):
                assert torch.equal(found, expected)
                assert found.requires_grad == (graphs is TrainingGraph)
    assert len(said) == 1 and said[0].startswith('FFNet runs without a CUDA graph')
    for name, buffer in plain.named_buffers():
        assert torch.equal(nano.get_buffer(name), buffer)


def test_the_other_mode_is_nothing_to_speak_of(nano):
    said = []
    TrainingGraph(nano.eval(), said.append)
    InferenceGraphs(nano, said.append)
    nano(torch.rand(1, 3, 64, 64))  # with gradients: neither training nor inference
    with torch.no_grad():
        nano.train()(torch.rand(2, 3, 64, 64))
    assert not said


def test_copies_have_no_graphs(nano):
    said, names = [], list(nano.state_dict())
    InferenceGraphs(nano.eval(), said.append)
    other = copy.deepcopy(nano)
    nn.init.zeros_(other.stem.conv1.conv.weight)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(other(image)[0], nano(image)[0])  # each has its own weights
    assert list(nano.state_dict()) == names and other._compiled_call_impl is None


@pytest.mark.slow
def test_what_has_been_compiled_stays_so(nano):
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    nano.eval().compile(backend=backend)
    InferenceGraphs(nano, [].append)
    with torch.no_grad():
        nano(torch.rand(1, 3, 64, 64))
    assert calls


def test_a_graph_is_captured_again_for_other_parameters(nano):
    graph = TrainingGraph(nano.train(), [].append)
    image = torch.rand(2, 3, 64, 64)
    changes = [
        lambda: None,
        lambda: nano.stem.requires_grad_(False),
        lambda: nano.to(memory_format=torch.channels_last),
    ]
    kept = []
    for change in changes:
        nano(image)
        graph.graphs['a shape'] = print
        change()
        nano(image)
        kept.append('a shape' in graph.graphs)
    assert kept == [True, False, False]


class Double(torch.autograd.Function):
    """Stands for a graph: its backward pass needs what the forward pass left."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_no_replay_before_the_backward_pass_of_the_last_one():
    said, x = [], torch.ones(2, requires_grad=True)
    graph = TrainingGraph(nn.Identity().train(), said.append)
    for _ in range(2):
        graph.replay(Double.apply, (x,)).sum().backward()
    loss = graph.replay(Double.apply, (x,)).sum()
    assert not said
    assert torch.equal(graph.replay(Double.apply, (x,)), x)  # by the module
    assert len(said) == 1 and 'twice before a backward pass' in said[0]
    del loss  # as where a step ran out of memory
    assert torch.equal(graph.replay(Double.apply, (x,)), 2 * x)


def test_what_cannot_be_captured(nano, tmp_path):
    assert 'GPU' in why_no_training_graph(nano)
    again = MODELS.build(dict(type='FFNet', arch='nano', with_cp=True))
    assert 'with_cp' in why_no_training_graph(nn.Sequential(again))
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        assert 'processes' in why_no_training_graph(nano)
    finally:
        torch.distributed.destroy_process_group()


def test_accumulated_gradients_leave_the_memory_of_the_graph():
    parameters = [nn.Parameter(torch.rand(4, 3, 3, 3)), nn.Parameter(torch.rand(2))]
    parameters[0].data = parameters[0].data.to(memory_format=torch.channels_last)
    memory = [torch.rand_like(p) for p in parameters]
    expected = [m.clone() for m in memory]
    for p, m in zip(parameters, memory, strict=True):
        p.grad = m.detach()  # as an accumulated gradient takes it over
    keep_gradients([*parameters, nn.Parameter(torch.rand(1))])
    for p, m, e in zip(parameters, memory, expected, strict=True):
        m.fill_(7)
        assert torch.equal(p.grad, e) and p.grad.stride() == p.stride()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='CUDA graphs need a GPU')
def test_graphs_compute_the_same():
    """Training with accumulated gradients and drop path, and inference with several shapes."""
    spec = importlib.util.spec_from_file_location('gpu_check', GPU_CHECK)
    gpu_check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu_check)
    assert gpu_check.main(['--only', 'graphs: training', 'graphs: inference']) == 0
