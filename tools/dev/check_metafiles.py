"""Check model-index.yml and the metafiles that it imports: format, names, files, honesty.

Prints one line for each problem, and exits with status 1 if there is any.
"""

import sys
from pathlib import Path
from typing import Any

import modelindex
import yaml

ROOT = Path(__file__).resolve().parents[2]
RELEASE = 'https://github.com/ysj9909/FFNet/releases/download/'


def check(root: Path = ROOT) -> list[str]:
    """Return what is wrong with the model index of this checkout."""
    index = yaml.safe_load((root / 'model-index.yml').read_text(encoding='utf-8'))
    imported = index['Import']
    problems = [f'{name}: no such file' for name in imported if not (root / name).is_file()]
    for path in sorted(root.glob('configs/**/metafile.yml')):
        if path.relative_to(root).as_posix() not in imported:
            problems.append(f'{path.relative_to(root)}: model-index.yml does not import it')
    if problems:
        return problems
    parsed = modelindex.load(str(root / 'model-index.yml'))
    problems += [f'model-index: {error}' for error in parsed.check(silent=True) or []]

    collections: set[str] = set()
    models: list[tuple[str, dict[str, Any]]] = []
    for name in imported:
        metafile = yaml.safe_load((root / name).read_text(encoding='utf-8'))
        collections.update(item['Name'] for item in metafile.get('Collections', ()))
        models += [(name, model) for model in metafile['Models']]
    for name, model in models:
        found = _check_model(root, model, collections)
        problems += [f'{name}: {model.get("Name")}: {problem}' for problem in found]
    names = [model.get('Name') for _, model in models]
    problems += [f'{name}: this name is used twice' for name in {*names} if names.count(name) > 1]
    return problems


def _check_model(root: Path, model: dict[str, Any], collections: set[str]) -> list[str]:
    problems = []
    if model.get('In Collection') not in collections:
        problems.append(f"there is no collection '{model.get('In Collection')}'")
    config, weights = model.get('Config'), model.get('Weights')
    if config is None and weights is None:
        problems.append('it has neither Config nor Weights')
    if config is not None and not (root / config).is_file():
        problems.append(f'{config} does not exist')
    if weights is not None and not weights.startswith('https://'):
        problems.append(f'{weights} is not an https address')
    if str(weights).startswith(RELEASE) and '_3rdparty_' not in model['Name']:
        problems.append("official weights: the name must contain '_3rdparty_'")
    if 'Results' in model and not model.get('Reported By'):
        problems.append('it has Results, so it must say who reported them (Reported By)')
    return problems


if __name__ == '__main__':
    found = check()
    print('\n'.join(found) or 'model-index.yml: no problems')
    sys.exit(1 if found else 0)
