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


def rows():
    """The cells of the table whose header ends in 'config'."""
    lines = iter(PAGE.read_text(encoding='utf-8').splitlines())
    header = next(line for line in lines if line.startswith('| family |'))
    next(lines)
    names = [cell.strip() for cell in header.strip('|').split('|')]
    assert names == ['family', 'query', 'key interaction', 'activation', 'value', 'config']
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


ROWS = {row['family']: parse(row['config']) for row in rows()}


def test_every_mixer_has_a_row():
    assert len(ROWS) == len(rows())
    named = {cfg['type'].removeprefix('mmffnet.') for cfg in ROWS.values()}
    assert named == set(mixers.__all__) - NO_MIXERS


@pytest.mark.parametrize('family', ROWS)
def test_each_row_builds_and_trains(family):
    token_mixer = [None, None, None, ROWS[family]]
    backbone = MODELS.build(dict(type='FFNet', arch='nano', token_mixer=token_mixer)).train()
    mixer = backbone.stages[3].blocks[0].token_mixer
    assert type(mixer).__name__ == ROWS[family]['type'].removeprefix('mmffnet.')
    outs = backbone(torch.rand(2, 3, 70, 96))
    sum((torch.rand_like(out) * out).mean() for out in outs).backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


def test_the_row_that_is_spelled_out_is_the_first():
    first = build_mixer(ROWS['FFNet, token mixer'], 8)
    spelled = build_mixer(ROWS['the first row, spelled out'], 8)
    spelled.load_state_dict(first.state_dict())
    x = torch.rand(2, 8, 9, 7)
    assert torch.equal(first(x), spelled(x))
