"""The yardstick is measured first: tests of the independent reference itself."""

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import official_reference as ref
import pytest
import reference_numbers as numbers
import torch
from torch import Tensor, nn

# Entries of the state dict and millions of parameters, from the description of the architecture
# (ffnet_seg, pre-training and head have no stated number of entries).
SIZES = {
    'cls_ffnet_1': (553, 13.776),
    'cls_ffnet_2': (1057, 27.208),
    'cls_ffnet_3': (1593, 48.818),
    'cls_ffnet_4': (1737, 79.869),
    'det_ffnet_1': (554, 13.136),
    'det_ffnet_2': (1058, 26.505),
    'det_ffnet_3': (1594, 48.050),
    'det_ffnet_4': (1738, 78.846),
    'seg_ffnet_seg': (None, 63.826),
    'seg_ffnet_seg_pretrain': (None, 67.210),
    'head_ade20k': (None, 4.651),
    'head_cityscapes': (None, 3.932),
}

# First three values by name and shape, as stated with the official outputs.
FILLED = [
    (
        'patch_embed.0.c.weight',
        (64, 3, 3, 3),
        2748766341,
        (0.2051016492925262, -0.03298597050281502, 0.04348375938235358),
    ),
    (
        'patch_embed.0.bn.weight',
        (64,),
        380281559,
        (1.0936865226176002, 1.051459476356864, 1.0728620223879537),
    ),
    (
        'patch_embed.0.bn.bias',
        (64,),
        3094772609,
        (-0.02517709008399612, -0.07824085109769383, 0.04387239225322352),
    ),
    (
        'patch_embed.0.bn.running_mean',
        (64,),
        121892306,
        (0.1374559517295669, 0.1269137843063624, -0.08221963565268225),
    ),
    (
        'patch_embed.0.bn.running_var',
        (64,),
        3521278727,
        (1.0011602117740646, 1.1442060236678813, 1.0550567112115294),
    ),
    (
        'stages.0.0.token_mixer.0.layer_scale',
        (96, 1, 1),
        2560691537,
        (0.5746734405095071, 0.5762908872420848, 0.5347722078354634),
    ),
    (
        'head.weight',
        (1000, 640),
        2154464288,
        (0.01569278425230764, 0.00011041430803410928, -0.004377386936016769),
    ),
    (
        'head.bias',
        (1000,),
        976205810,
        (0.026870771198179356, -0.03432288091593272, -0.0717884273362923),
    ),
    (
        'norm0.weight',
        (96,),
        2320158095,
        (0.9821170627122316, 0.8807590252068733, 1.1283736761631484),
    ),
]

OFFICIAL = ('cls_ffnet_1', 'det_ffnet_1', 'det_ffnet_2', 'seg_ffnet_seg', 'head_ade20k')
BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked')


def keys_of(name: str) -> list[ref.Key]:
    kind, _, variant = name.partition('_')
    return ref.official_keys(variant, kind)


def trunk_of(name: str) -> str:
    return name.partition('_')[2].removesuffix('_pretrain')


@cache
def trunk_outputs(trunk: str) -> dict[str, dict[tuple[int, int], dict[str, Tensor]]]:
    """Outputs of all networks that share a trunk, because filling it takes most of the time."""
    names = [name for name in ref.NAMES if trunk_of(name) == trunk]
    shared = ref.fill({key: shape for name in names for key, shape in keys_of(name)}.items())
    results: dict[str, dict[tuple[int, int], dict[str, Tensor]]] = {}
    for name in names:
        make_input = ref.make_features if name.startswith('head') else ref.make_input
        params = {key: shared[key] for key, _ in keys_of(name)}
        sizes = {tuple(record['size']) for record in numbers.load(name)}
        with torch.no_grad():
            results[name] = {size: ref.forward(params, make_input(*size))[0] for size in sizes}
    return results


def outputs(name: str) -> dict[tuple[int, int], dict[str, Tensor]]:
    """Outputs by size and array name, at every size that has a committed number."""
    return trunk_outputs(trunk_of(name))[name]


@pytest.mark.parametrize('name', ref.NAMES)
def test_keys_have_the_stated_sizes(name: str) -> None:
    keys = keys_of(name)
    entries, millions = SIZES[name]
    assert len({key for key, _ in keys}) == len(keys)
    assert entries in (None, len(keys))
    learned = sum(int(np.prod(shape)) for key, shape in keys if not key.endswith(BUFFERS))
    assert round(learned / 1e6, 3) == millions


def test_unknown_network() -> None:
    with pytest.raises(ValueError, match='known are cls_ffnet_1'):
        ref.official_keys('ffnet_seg', 'det')


@pytest.mark.parametrize(('key', 'shape', 'crc', 'first'), FILLED, ids=[row[0] for row in FILLED])
def test_fill_rule(
    key: str, shape: tuple[int, ...], crc: int, first: tuple[float, float, float]
) -> None:
    assert zlib.crc32(key.encode()) == crc
    values = ref.fill([(key, shape)])[key]
    assert values.shape == shape
    assert values.dtype == torch.float64
    np.testing.assert_array_almost_equal_nulp(values.flatten()[:3].numpy(), np.array(first), 2)


def test_input_rule() -> None:
    first = [1.764052345967664, 0.4001572083672233, 0.9787379841057392]
    assert ref.make_input(64, 64).flatten()[:3].tolist() == first
    features = ref.make_features(64, 96)
    assert [tuple(x.shape) for x in features] == [(1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]
    assert features[0].flatten()[:3].tolist() == first
    stream = np.random.RandomState(0).standard_normal(sum(x.numel() for x in features))
    assert np.array_equal(torch.cat([x.flatten() for x in features]).numpy(), stream)


@pytest.mark.parametrize('name', ref.NAMES)
@pytest.mark.slow
def test_compact_numbers(name: str) -> None:
    records = numbers.load(name)
    for record in records:
        official = name in OFFICIAL and record['size'] != [75, 101]
        assert record['origin'] == ('official' if official else 'independent')
    results = outputs(name)
    assert len(records) == sum(map(len, results.values()))
    for record in records:
        output = results[tuple(record['size'])][record['array']]
        assert numbers.deviation(output, record) < numbers.LIMITS[record['dtype']], record


@pytest.mark.parametrize('name', OFFICIAL)
def test_full_outputs(name: str, fixture_dir: Path) -> None:
    keys = json.loads((fixture_dir / f'{name}.keys.json').read_text(encoding='utf-8'))
    assert keys_of(name) == [(key, tuple(shape)) for key, shape in keys]
    inputs = ref.make_features if name == 'head_ade20k' else ref.make_input
    with np.load(fixture_dir / f'{name}.out.npz') as arrays:
        expected = {key: arrays[key] for key in arrays.files}
    for size in ((64, 64), (96, 128)):
        suffix = '{}x{}'.format(*size)
        stored = [v for k, v in expected.items() if k.endswith(suffix) and k[0] in 'xf']
        made = inputs(*size)
        for a, b in zip(stored, [made] if isinstance(made, Tensor) else made, strict=True):
            assert np.array_equal(a, b.numpy())
        for array, output in outputs(name)[size].items():
            official = expected[f'{array}_{suffix}']
            assert numbers.deviation(output, official) < numbers.LIMITS[str(official.dtype)], array


def test_deviation_sees_every_kind_of_difference() -> None:
    x = np.random.RandomState(0).standard_normal((2, 3, 5))
    record = numbers.summarize(x)
    assert numbers.deviation(x, record) == numbers.deviation(x, x) == 0
    for expected in (record, x):
        assert numbers.deviation(x.reshape(3, 2, 5), expected) == float('inf')
        assert numbers.deviation(x + 1e-6, expected) > 5e-7
        assert not numbers.deviation(np.full_like(x, np.nan), expected) < 1
    spoiled = x.copy()
    spoiled.flat[7] += 1e-3
    assert numbers.deviation(spoiled, record) > 1e-6


@pytest.mark.parametrize('size', [(32, 32), (33, 50)])
def test_any_size(size: tuple[int, int]) -> None:
    params = ref.fill(keys_of('det_ffnet_1'))
    with torch.no_grad():
        maps, running = ref.forward(params, ref.make_input(*size, batch=2))
    assert not running
    for i, y in enumerate(maps.values()):
        stride = 4 * 2**i
        assert y.shape == (2, (80, 160, 320, 640)[i], -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize('training', [True, False])
def test_batch_norm_is_that_of_torch(training: bool) -> None:
    bn = nn.BatchNorm2d(5).double().train(training)
    params = ref.fill((f'n.{key}', value.shape) for key, value in bn.state_dict().items())
    bn.load_state_dict({key.removeprefix('n.'): value for key, value in params.items()})
    reference = ref.Reference(params, training)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    expected, actual = bn(x), reference.bn('n', x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for_expected, for_actual = (torch.autograd.grad(y.pow(3).sum(), x) for y in (expected, actual))
    torch.testing.assert_close(for_actual, for_expected, rtol=1e-10, atol=1e-10)
    assert len(reference.running) == (3 if training else 0)
    for key, value in reference.running.items():
        assert not torch.equal(value, params[key])
        torch.testing.assert_close(
            value, bn.state_dict()[key.removeprefix('n.')], rtol=1e-12, atol=1e-12
        )


@pytest.mark.slow
def test_training_mode() -> None:
    """Every BN is visited, nothing in the dict changes, every parameter has a gradient."""
    params = ref.fill(keys_of('det_ffnet_1'))
    before = {key: value.clone() for key, value in params.items()}
    learned = {key: value for key, value in params.items() if not key.endswith(BUFFERS)}
    for value in learned.values():
        value.requires_grad_()
    maps, running = ref.forward(params, ref.make_input(64, 64, batch=2), training=True)
    assert set(running) == set(params) - set(learned)
    assert all(torch.equal(params[key], value) for key, value in before.items())
    assert all(running[key] == 1 for key in running if key.endswith('num_batches_tracked'))
    loss = sum(y.square().mean() + y.mean() for y in maps.values())
    grads = torch.autograd.grad(loss, list(learned.values()))
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_training_needs_two_values_per_channel() -> None:
    with pytest.raises(ValueError, match=r'stages\.3.*more than one value per channel'):
        ref.forward(ref.fill(keys_of('det_ffnet_1')), ref.make_input(32, 32), training=True)
