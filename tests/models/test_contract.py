"""What every backbone keeps to, on every device, and what each family declares that it can do.

Adding a family is one entry of FAMILIES. A capability that is not declared must be seen to fail, so
that the declarations stay true.
"""

import contextlib
import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmffnet.models import reparameterize

#: What a family may declare
CAPABILITIES = {
    'any size',  # sides that are no multiples of the size divisor
    'channels last',  # no module hands on a map of another memory format
    'compile',  # torch.compile without graph breaks, in training too
    'deterministic',  # a training step under torch.use_deterministic_algorithms
    'export',  # torch.export with free sizes
    'fp16',  # half precision under autocast, gradients included
    'fuse',  # some of its layers fold into others
    'fx',  # torch.fx.symbolic_trace
    'script',  # torch.jit.script
    'trace',  # torch.jit.trace
}


@dataclass(frozen=True)
class Family:
    """The smallest network of a family.

    Args:
        cfg (dict): Its config.
        cannot (frozenset[str]): The capabilities that it lacks.
    """

    cfg: dict
    cannot: frozenset[str] = frozenset()

    def __post_init__(self):
        assert self.cannot <= CAPABILITIES

    def build(self, device='cpu', **kwargs):
        model = MODELS.build(dict(drop_path_rate=0.0) | self.cfg | kwargs)
        model.init_weights()
        with torch.no_grad():  # statistics and scales that are not those of a new network
            for m in model.modules():
                if isinstance(m, _BatchNorm):
                    m.running_mean.normal_(0, 0.1)
                    m.running_var.uniform_(0.5, 2)
            for name, param in model.named_parameters():
                if name.endswith('scale'):
                    param.uniform_(0.5, 1.5)
        return model.to(device)

    def declares(self, capability):
        """A context in which what is not declared must fail."""
        if capability in self.cannot:  # of many types, most of them PyTorch's
            return pytest.raises(Exception)
        return contextlib.nullcontext()


_TINY = dict(depths=(1, 1, 2, 1), channels=(8, 16, 32, 64), stem_channels=8)
_HYBRID = dict(
    token_mixer=[None, None, dict(type='Pooling'), dict(type='SelfAttention')],
    channel_mixer=dict(kernel_size=5),
)
FAMILIES = {
    'AFFNet': Family(
        dict(
            type='mmffnet.AFFNet',
            arch=dict(depths=(2, 1, 2, 1), channels=(24, 32, 40, 48), expansion=2),
        ),
        cannot=frozenset({'fx', 'script'}),
    ),
    'FFNet': Family(dict(type='mmffnet.FFNet', arch=_TINY, layer_scale_init_value=0.5)),
    'FFNet hybrid': Family(dict(type='mmffnet.FFNet', arch=_TINY, **_HYBRID)),
    'FFNetSeg': Family(
        dict(
            type='mmffnet.FFNetSeg',
            arch=dict(depths=(1, 1, 2, 1), channels=(16, 32, 48, 64), stem_channels=8),
            out_indices=(0, 1, 2, 3),
        )
    ),
    'PoolFormer': Family(
        dict(type='mmffnet.PoolFormer', arch=dict(depths=(1, 2, 1, 1), channels=(8, 12, 20, 16))),
        cannot=frozenset({'fuse'}),
    ),
    'CASViT': Family(
        dict(type='mmffnet.CASViT', arch=dict(depths=(1, 2, 1, 1), channels=(8, 12, 20, 16)))
    ),
    'TransNeXt': Family(
        dict(
            type='mmffnet.TransNeXt',
            arch=dict(depths=(1, 1, 1, 1), channels=(24, 48, 48, 72)),
            bias='interpolate',
        ),
        frozenset({'export', 'fuse', 'fx', 'script'}),
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def loss_of(outs):
    return sum(out.float().square().mean() for out in outs)


def assert_same(ours, theirs, **kwargs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **kwargs)


def test_sizes_channels_and_strides(family, device):
    model = family.build(device).train()
    assert model.train() is model and model.eval() is model
    assert model.out_channels == tuple(model.channels[i] for i in model.out_indices)
    assert model.size_divisor == max(model.strides)
    model.train()
    height, width = 2 * model.size_divisor, 3 * model.size_divisor
    outs = model(torch.rand(2, 3, height, width, device=device))
    assert isinstance(outs, tuple)
    assert [tuple(out.shape) for out in outs] == [
        (2, model.channels[i], height // model.strides[i], width // model.strides[i])
        for i in model.out_indices
    ]
    loss_of(outs).backward()
    for name, param in model.named_parameters():
        assert param.grad is not None and param.grad.isfinite().all(), name


@pytest.mark.parametrize(('height', 'width'), [(33, 64), (71, 45), (97, 32)])
def test_any_size(family, height, width, device):
    model = family.build(device).train()
    with family.declares('any size'):
        outs = model(torch.rand(2, 3, height, width, device=device))
        for i, out in zip(model.out_indices, outs, strict=True):
            for side, given in zip(out.shape[2:], (height, width), strict=True):
                # whether a last incomplete patch counts is up to the family's padding
                assert given // model.strides[i] <= side <= -(-given // model.strides[i])
        loss_of(outs).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_without_memory(family):
    """On the device that computes shapes alone, as where parameters are counted."""
    x = torch.rand(1, 3, 64, 96, device='meta')
    shapes = [out.shape for out in family.build('meta').eval()(x)]
    assert shapes == [out.shape for out in family.build().eval()(torch.rand(x.shape))]


@torch.no_grad()
def test_out_indices(family, device):
    whole = family.build(device).eval()
    last = len(whole.channels) - 2
    part = family.build(device, out_indices=(0, last)).eval()
    assert len(part.stages) == last + 1
    state = whole.state_dict()
    part.load_state_dict({name: state[name] for name in part.state_dict()})
    x = torch.rand(1, 3, 64, 64, device=device)
    outs = whole(x)
    assert_same(part(x), [outs[0], outs[last]])


@pytest.mark.parametrize('frozen', [0, 2])
def test_frozen_stages(family, frozen, device):
    model = family.build(device, frozen_stages=frozen)
    before = copy.deepcopy(model.state_dict())
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss_of(model(torch.rand(2, 3, 64, 64, device=device))).backward()
    optimizer.step()
    still = ('stem.', *(f'stages.{i}.' for i in range(frozen)))
    for name, value in model.state_dict().items():
        if name.startswith(still):
            assert torch.equal(value, before[name]), name
        elif name.endswith(('running_mean', 'num_batches_tracked')):
            assert not torch.equal(value, before[name]), name
    for name, param in model.named_parameters():
        assert param.requires_grad != name.startswith(still), name


def test_norm_eval(family, device):
    model = family.build(device, norm_eval=True).train()
    before = copy.deepcopy(dict(model.named_buffers()))
    loss_of(model(torch.rand(2, 3, 64, 64, device=device))).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_recomputation_changes_nothing(family, device):
    """Gradients, and running statistics, which must not be updated twice."""
    models = [family.build(device, drop_path_rate=0.3, with_cp=cp).train() for cp in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    saved = []
    for model in models:
        kept, weights = {}, {p.data_ptr() for p in model.parameters()}

        def pack(tensor, kept=kept, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        for step in range(2):
            kept.clear()  # addresses are used again
            torch.manual_seed(step)
            x = torch.rand(2, 3, 64, 64).to(device)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                loss = loss_of(model(x))
            loss.backward()
        saved.append(sum(kept.values()))
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        assert torch.equal(a, b), name
    assert saved[1] < 0.75 * saved[0]


@torch.no_grad()
@pytest.mark.slow
def test_fusing_changes_no_output(family, device):
    model = family.build(device).eval()
    x = torch.rand(2, 3, 64, 96, device=device)
    expected = model(x)
    deployed = family.build(device, deploy=True).eval()
    deployed.load_state_dict(model.state_dict())
    assert deployed.deploy
    assert_same(deployed(x), expected, rtol=1e-3, atol=1e-4)
    parts = len(list(model.modules()))
    fused = reparameterize(copy.deepcopy(model))
    assert_same(fused(x), expected, rtol=1e-3, atol=1e-4)
    with family.declares('fuse'):
        assert len(list(fused.modules())) != parts


@pytest.mark.slow
def test_names(family):
    """Each parameter has one official name, and that name leads back to it."""
    model = family.build()
    names = model.official_names
    ours = [name for name in model.state_dict() if not name.startswith(model.optional_names())]
    official = [names.to_official(name) for name in ours]
    assert len({*official}) == len(ours)
    assert [names.to_ours(name) for name in official] == ours
    assert {*official} != {*ours}
    renamed = {names.to_official(name): value for name, value in model.state_dict().items()}
    other = family.build()
    missing, unexpected = other.load_state_dict(renamed, strict=False)
    assert not unexpected and all(name.startswith(other.optional_names()) for name in missing)
    for name in ours:
        assert torch.equal(other.state_dict()[name], model.state_dict()[name]), name


def test_layer_depths_have_no_gaps(family):
    model = family.build()
    found = {n: model.get_layer_depth(f'a.{n}', 'a.') for n, _ in model.named_parameters()}
    layers = {layer for layer, _ in found.values()} | {
        model.get_layer_depth('head.weight', 'a.')[0]
    }
    assert {number for _, number in found.values()} == {len(layers)}
    assert layers == {*range(len(layers))}


def test_no_weight_decay_names_parameters(family):
    model = family.build()
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


@torch.no_grad()
def test_copies(family, device):
    model = family.build(device).eval()
    x = torch.rand(2, 3, 64, 96, device=device)
    expected = model(x)
    assert_same(copy.deepcopy(model)(x), expected)
    assert_same(pickle.loads(pickle.dumps(model))(x), expected)  # noqa: S301
    other = family.build(device).eval()
    other.load_state_dict(model.state_dict())
    assert_same(other(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'fused'),
    [(name, False) for name in FAMILIES]
    + [(name, True) for name, family in FAMILIES.items() if 'fuse' not in family.cannot],
)
@torch.no_grad()
def test_graphs(name, fused, device):
    """Traced, exported with free sizes, as a graph of torch.fx, and scripted."""
    family = FAMILIES[name]
    model = family.build(device).eval()
    model = reparameterize(model) if fused else model
    x, other = torch.rand(2, 3, 64, 96, device=device), torch.rand(1, 3, 52, 70, device=device)
    expected = model(x)
    with family.declares('trace'):
        assert_same(torch.jit.trace(model, x, check_trace=False)(x), expected)
    with family.declares('export'):
        auto = torch.export.Dim.AUTO
        shapes = {'x': {0: auto, 2: auto, 3: auto}}
        exported = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
        assert_same(exported(x), expected)
        assert_same(exported(other), model(other))
    with family.declares('fx'):
        assert_same(torch.fx.symbolic_trace(model)(x), expected)
    with family.declares('script'):
        scripted = torch.jit.script(model)
        assert set(scripted.state_dict()) == set(model.state_dict())
        assert_same(scripted(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_compiles_without_graph_breaks(family, training, device):
    """With the code generator left out: it takes a minute and is PyTorch's own affair."""
    torch._dynamo.reset()
    model = family.build(device, with_cp=True).train(training)
    x = torch.rand(2, 3, 64, 64, device=device)
    reference = copy.deepcopy(model)
    with family.declares('compile'), torch.set_grad_enabled(training):
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        outs, expected = compiled(x), reference(x)
        assert_same(outs, expected, rtol=1e-3, atol=1e-5)
        if not training:
            return
        loss_of(outs).backward()
        loss_of(expected).backward()
        for a, b in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
        buffers = [list(m.buffers()) for m in (model, reference)]
        assert_same(*buffers, rtol=1e-4, atol=1e-6)


def test_memory_format_stays(family, device):
    """No module hands on a map in another format than it got, and so nothing is copied."""
    layouts = []

    def look(module, args, out):
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 4:
                layouts.append((type(module).__name__, tensor.is_contiguous(memory_format=layout)))

    model = family.build(device).eval()
    for module in model.modules():
        module.register_forward_hook(look)
    for layout in (torch.channels_last, torch.contiguous_format):
        layouts.clear()
        model.to(memory_format=layout)
        outs = model(torch.rand(1, 3, 96, 96).to(device, memory_format=layout))
        assert len(layouts) > 10
        assert all(out.is_contiguous(memory_format=layout) for out in outs)
        if layout == torch.channels_last:
            with family.declares('channels last'):
                assert not [name for name, same in layouts if not same]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(family, dtype, device):
    model = family.build(device).eval()
    x = torch.rand(2, 3, 64, 64, device=device)
    expected = model(x)
    half = dtype == torch.float16
    with family.declares('fp16') if half else contextlib.nullcontext():
        with torch.autocast(device, dtype=dtype):
            outs = model(x)
            loss_of(outs).backward()
        for out, reference in zip(outs, expected, strict=True):
            assert float((out.float() - reference).norm() / reference.norm()) < 0.05
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_deterministic(family, device):
    model = family.build(device).train()
    x = torch.rand(2, 3, 70, 64, device=device)
    grads = []
    with family.declares('deterministic'):
        for _ in range(2):
            model.zero_grad()
            torch.use_deterministic_algorithms(True)
            try:
                loss_of(model(x)).backward()
            finally:
                torch.use_deterministic_algorithms(False)
            grads.append([p.grad.clone() for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize('shape', [(1, 4, 64, 64), (1, 3, 31, 64), (1, 3, 64, 31), (3, 64, 64)])
def test_bad_input(family, shape):
    model = family.build()
    with pytest.raises(ValueError, match=type(model).__name__):
        model(torch.rand(shape))
    with pytest.raises(ValueError, match='floating point'):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_initialisation_is_finite_and_repeatable(family):
    outs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = MODELS.build(family.cfg)
        model.init_weights()
        outs.append([p.detach() for p in model.parameters()])
        assert not any(isinstance(m, nn.Conv2d) and not m.weight.std() for m in model.modules())
    assert_same(*outs, rtol=0, atol=0)
