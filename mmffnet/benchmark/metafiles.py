"""Models and their published results, from model-index.yml and metafiles of one's own."""

from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from mmffnet_cli.paths import tools_path

from ..errors import UsageError


@dataclass(frozen=True)
class Entry:
    """A model of a metafile, or one that was named by its config and checkpoint."""

    name: str
    config: str | None = None
    weights: str | None = None  #: Checkpoint file or address
    dataset: str = ''  #: What it is evaluated on
    published: dict[str, float] = field(default_factory=dict)  #: By the metafile's names
    metadata: dict[str, Any] = field(default_factory=dict)  #: What the metafile says besides
    reported_by: str = ''


def read_entries(metafile: str | None = None) -> list[Entry]:
    """Reads what the model index of mmffnet lists, or a metafile of one's own.

    Paths in that one are relative to its folder, or to the current one.
    """
    if metafile is not None:
        return _read(Path(metafile), Path(metafile).parent, Path())
    root = Path(tools_path('test.py')).parents[1]
    index = yaml.safe_load((root / 'model-index.yml').read_text(encoding='utf-8'))
    return [entry for name in index['Import'] for entry in _read(root / name, root)]


def select(entries: list[Entry], patterns: list[str]) -> list[Entry]:
    """Those entries whose names match one of the patterns; all if there is no pattern."""
    for pattern in patterns:
        if not any(fnmatch(entry.name, pattern) for entry in entries):
            names = ', '.join(entry.name for entry in entries)
            raise UsageError(f"no model is called '{pattern}': there are {names}")
    return [e for e in entries if not patterns or any(fnmatch(e.name, p) for p in patterns)]


def _read(path: Path, *folders: Path) -> list[Entry]:
    def locate(name: str | None) -> str | None:
        if name is None or '://' in name:
            return name
        places = [folder / name for folder in folders]
        return str(next((place for place in places if place.exists()), places[0]))

    if not path.is_file():
        raise UsageError(f"there is no metafile '{path}'")
    try:
        return [
            Entry(
                name=str(model['Name']),
                config=locate(model.get('Config')),
                weights=locate(model.get('Weights')),
                dataset=', '.join(dict.fromkeys(str(r.get('Dataset', '')) for r in results)),
                published={k: float(v) for r in results for k, v in r['Metrics'].items()},
                metadata=model.get('Metadata') or {},
                reported_by=str(model.get('Reported By') or ''),
            )
            for model in yaml.safe_load(path.read_text(encoding='utf-8'))['Models'] or ()
            for results in [model.get('Results') or []]
        ]
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        reason = f'{type(error).__name__}: {error}'.partition('\n')[0]
        raise UsageError(f'{path} is no metafile with Models ({reason})') from error
