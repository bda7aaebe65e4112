"""The package has no circle of imports."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for package in ('mmffnet', 'mmffnet_cli')
    for path in sorted((ROOT / package).rglob('*.py'))
}


def find_imports(module: str, source: str, is_package: bool) -> set[str]:
    """The project's modules that a module imports, inside of functions too."""
    found = set()
    parents = module.split('.') if is_package else module.split('.')[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) - node.level + 1] if node.level else []
            base = '.'.join([*start, *filter(None, [node.module])])
            for alias in node.names:
                name = f'{base}.{alias.name}'
                found.add(name if name in FILES else base)
    return {name for name in found if name in FILES and name != module}


def test_find_imports():
    source = 'from . import block\ndef f():\n    from ..registry import MODELS\nimport mmffnet_cli'
    found = find_imports('mmffnet.models.ffnet', source, is_package=False)
    assert found == {'mmffnet.models.block', 'mmffnet.registry', 'mmffnet_cli'}


def test_no_circles():
    graph = {
        module: find_imports(module, path.read_text(encoding='utf-8'), path.name == '__init__.py')
        for module, path in FILES.items()
    }
    assert sum(map(len, graph.values())) > 100
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f'a circle of imports: {" <- ".join(error.args[1])}')
