"""Write docs/operators.md: every native operator of mmcv, supplied or not, and who wants it.

Read from the sources of the installed packages, which are not imported.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ('mmdet', 'mmseg', 'mmpretrain')
MOST = 6  # names in a cell
HEAD = """# Native operators of mmcv

What `mmffnet/ops/mmcv_ext.py` supplies where mmcv has no compiled extension (mmcv-lite). A full
mmcv, where there is one, is used instead and has them all. An operator that is not supplied can be
imported, and raises an error with its name when called.

The last column lists source files that import the operator from `mmcv.ops`, and folders of configs
that name it as a `type`; configs that inherit it from others are not followed. Parts of `mmcv.ops`
in plain Python (`CornerPool`, `CrissCrossAttention`, `point_sample`) need no native operator.

Written by `python tools/dev/operators_table.py` for {versions}.

| file of `mmcv/ops` | native operators | supplied | wanted by |
|---|---|---|---|
"""


def folder(package: str) -> Path:
    """Where a package is installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f'operators_table.py: {package} is not installed')
    return Path(spec.origin).parent


def installed() -> str:
    """The versions that the table is made from."""
    files = [folder(package) / 'version.py' for package in ('mmcv', *PACKAGES)]
    texts = [
        re.findall(r"__version__ = '(.+)'", file.read_text(encoding='utf-8')) for file in files
    ]
    return 'mmcv {}, mmdet {}, mmseg {} and mmpretrain {}'.format(*(text[0] for text in texts))


def strings(nodes: Iterable[ast.AST]) -> set[str]:
    """All texts in these parts of a program."""
    parts = [part for node in nodes for part in ast.walk(node)]
    return {x.value for x in parts if isinstance(x, ast.Constant) and isinstance(x.value, str)}


def native_operators() -> dict[str, tuple[str, set[str]]]:
    """For each native function, the file of its wrapper and all names of `mmcv.ops` that use it."""
    natives: dict[str, tuple[str, set[str]]] = {}
    mentions: dict[str, set[str]] = defaultdict(set)
    for path in sorted((folder('mmcv') / 'ops').glob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'load_ext':
                for name in ast.literal_eval(node.args[1]):
                    natives.setdefault(name, (path.stem, set()))
        for node in tree.body:
            names = {x.id for x in getattr(node, 'targets', ()) if isinstance(x, ast.Name)}
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names = {node.name, *strings(node.decorator_list)}  # these are registered names
            for part in ast.walk(node):
                found = strings([part]) if isinstance(part, ast.Constant) else set()
                if isinstance(part, ast.Name):
                    found.add(part.id)
                elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                    found.add(f'{part.value.id}.{part.attr}')
                for name in names - {'__all__', 'ext_module'}:
                    mentions[name] |= found
    for native, (_, users) in natives.items():
        found = {f'ext_module.{native}'}
        while found:
            users |= found
            found = {name for name, words in mentions.items() if words & users} - users
    return natives


def wishes(known: set[str]) -> dict[str, set[tuple[str, str]]]:
    """Which of these names are imported from `mmcv.ops` or named as a type, and by what."""
    wanted: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for package in PACKAGES:
        for path in sorted(folder(package).rglob('*.py')):
            text = path.read_text(encoding='utf-8')
            if known.isdisjoint(re.findall(r'\w+', text)):
                continue
            tree = ast.parse(text)
            place = package, path.stem
            if 'configs' in path.parts:
                place = f'configs of {package}', path.parts[path.parts.index('configs') + 1]
            for node in ast.walk(tree):
                names = set()
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith('mmcv.ops'):
                    names = {alias.name for alias in node.names}
                elif isinstance(node, ast.keyword) and node.arg == 'type':
                    names = strings([node.value])
                for name in names & known:
                    wanted[name].add(place)
    return wanted


def table() -> str:
    """The page, as Markdown."""
    ours = (ROOT / 'mmffnet/ops/mmcv_ext.py').read_text(encoding='utf-8')
    supplied = set(re.findall(r'(?m)^def (\w+)', ours))
    natives, rows = native_operators(), defaultdict(list)
    wanted = wishes(set().union(*(users for _, users in natives.values())))
    for native, (file, users) in natives.items():
        places: dict[str, set[str]] = defaultdict(set)
        for name in users:
            for group, place in wanted.get(name, ()):
                places[group].add(place)
        cells = []
        for group, names in sorted(places.items()):
            more = f' and {len(names) - MOST} more' if len(names) > MOST else ''
            cells.append(f'{group}: {", ".join(sorted(names)[:MOST])}{more}')
        answer = 'yes' if native in supplied else 'no'
        rows[file, answer, '; '.join(cells)].append(f'`{native}`')
    lines = [f'| {f} | {", ".join(n)} | {yes} | {by} |' for (f, yes, by), n in sorted(rows.items())]
    return HEAD.format(versions=installed()) + '\n'.join(lines) + '\n'


if __name__ == '__main__':
    (ROOT / 'docs/operators.md').write_text(table(), encoding='utf-8')
