"""docs/mixers.md: each row of the MetaMixer table builds."""

import ast
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from mmffnet.models import mixers
from mmffnet.models.mixers.build import build_mixer

PAGE = Path(__file__).parents[1] / 'docs' / 'mixers.md'
#: Operations for MetaMixer, helpers
NO_MIXERS = {'DepthwiseConv', 'PointwiseConv', 'build_act', 'build_mixer'}


def rows(*names):
    """The cells of the table with this header."""
    lines = iter(PAGE.read_text(encoding='utf-8').splitlines())
    assert f'| {" | ".join(names)} |' in lines
    next(lines)
    found = []
    for line in lines:
        if not line.startswith('|'):
            return found
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        assert len(cells) == len(names) and all(cells), line
        found.append(dict(zip(names, cells, strict=True)))
    raise AssertionError('the page ends in the table')


def parse(text):
    """Reads a config made of dict() and literals, and nothing else."""

    def value(node):
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args
            return {keyword.arg: value(keyword.value) for keyword in node.keywords}
        return ast.literal_eval(node)

    return value(ast.parse(text.strip('`'), mode='eval').body)


TABLE = rows('family', 'query', 'key interaction', 'activation', 'value', 'config')
ROWS = {row['family']: parse(row['config']) for row in TABLE}
#: What the second table says of each mixer's export
EXPORTS = {
    name: row['export']
    for row in rows('mixer', 'cost', 'export', 'parity')
    for name in row['mixer'].split(', ')
}


def test_every_mixer_has_a_row():
    assert len(ROWS) == len(TABLE)
    named = {cfg['type'].removeprefix('mmffnet.') for cfg in ROWS.values()}
    assert named == set(mixers.__all__) - NO_MIXERS
    assert set(EXPORTS) == named - {'MetaMixer'}


@pytest.mark.parametrize('family', ROWS)
def test_each_row_builds_and_trains(family):
    token_mixer = [None, None, None, ROWS[family]]
    backbone = MODELS.build(dict(type='FFNet', arch='nano', token_mixer=token_mixer)).train()
    mixer = backbone.stages[3].blocks[0].token_mixer
    assert type(mixer).__name__ == ROWS[family]['type'].removeprefix('mmffnet.')
    outs = backbone(torch.rand(2, 3, 70, 96))
    sum((torch.rand_like(out) * out).mean() for out in outs).backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize('name', sorted({*EXPORTS} - {'Pooling'}))  # which keeps whatever it gets
@pytest.mark.parametrize('channels', [0, -8, 3.5, '8', None])
def test_each_mixer_refuses_what_is_no_number_of_channels(name, channels):
    with pytest.raises(ValueError, match=rf'{name}.*channels'):
        MODELS.build(dict(type=f'mmffnet.{name}', channels=channels))


@pytest.mark.export
@pytest.mark.parametrize('name', EXPORTS)
def test_each_mixer_is_exported_as_declared(name):
    mixer = MODELS.build(dict(type=f'mmffnet.{name}', channels=32)).eval()
    x = torch.rand(2, 32, 10, 12)
    dim = torch.export.Dim
    shapes = ({0: dim('n', min=1), 2: dim('h', min=2), 3: dim('w', min=2)},)
    if EXPORTS[name].startswith('any size'):
        program = torch.export.export(mixer, (x,), dynamic_shapes=shapes)
        inputs = [x, torch.rand(1, 32, 9, 7), torch.rand(1, 32, 16, 21)]
    else:
        assert EXPORTS[name] == 'one fixed size'
        with pytest.raises(Exception):  # noqa: B017  of several types, most of them PyTorch's
            torch.export.export(mixer, (x,), dynamic_shapes=shapes)
        program = torch.export.export(mixer, (x,))
        inputs = [x]
    for one in inputs:
        torch.testing.assert_close(program.module()(one), mixer(one), rtol=1e-4, atol=1e-5)


def test_the_row_that_is_spelled_out_is_the_first():
    first = build_mixer(ROWS['FFNet, token mixer'], 8)
    spelled = build_mixer(ROWS['the first row, spelled out'], 8)
    spelled.load_state_dict(first.state_dict())
    x = torch.rand(2, 8, 9, 7)
    assert torch.equal(first(x), spelled(x))
