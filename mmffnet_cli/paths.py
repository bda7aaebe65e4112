"""Where the configs and tools that belong to this package lie.

A wheel carries them in ``mmffnet/.mim``; in a checkout, and in an editable install of one, they are
beside the package. This module imports the standard library only.
"""

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent / 'mmffnet'


def _root() -> Path:
    for root in (_PACKAGE / '.mim', _PACKAGE.parent):
        if (root / 'model-index.yml').is_file():
            return root
    raise FileNotFoundError(
        f'the configs of mmffnet are neither in {_PACKAGE / ".mim"} nor beside {_PACKAGE}: '
        'install the package again'
    )


def config_names() -> list[str]:
    """Return the names of all configs, such as 'detection/maskrcnn_ffnet2_coco.py', sorted.

    The building blocks in ``_base_`` folders are left out; :func:`config_path` knows them too.
    """
    return [name for name in _all_names() if '_base_' not in Path(name).parts]


def config_path(name: str) -> str:
    """Return the absolute path of a config that mmffnet ships.

    A text config can inherit from it. mmengine evaluates the value of ``_base_`` by itself, before
    the rest of the file and without its imports, so the import must be part of the expression::

        _base_ = __import__('mmffnet').config_path('detection/maskrcnn_ffnet2_coco.py')

    or, with further bases, ``_base_ = [__import__('mmffnet').config_path(...), 'my_schedule.py']``.

    Args:
        name (str): The path of the config below ``configs/``, with or without '.py'.

    Raises:
        FileNotFoundError: If there is no such config; names the most similar ones.
    """
    wanted = name.removesuffix('.py') + '.py'
    names = _all_names()
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
        near += [other for other in names if Path(other).name == Path(wanted).name]
        hint = f'did you mean {", ".join(dict.fromkeys(near))}' if near else 'see `mmffnet configs`'
        raise FileNotFoundError(f"mmffnet has no config '{name}': {hint}")
    return str(_root() / 'configs' / wanted)


def tools_path(name: str) -> str:
    """Return the absolute path of a tool that mmffnet ships, such as 'train.py'.

    Raises:
        FileNotFoundError: If there is no such tool; names those that exist.
    """
    tools = _root() / 'tools'
    if not (tools / name).is_file():
        names = sorted(path.relative_to(tools).as_posix() for path in tools.rglob('*.py'))
        raise FileNotFoundError(f"mmffnet has no tool '{name}': it has {', '.join(names)}")
    return str(tools / name)


def _all_names() -> list[str]:
    configs = _root() / 'configs'
    return sorted(path.relative_to(configs).as_posix() for path in configs.rglob('*.py'))
