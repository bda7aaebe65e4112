"""Formats the text of a config once: runners ask for it with each checkpoint that they write.

It is most of the time of a small training.
"""

import functools
from typing import Any

import mmengine.config.config as module

_format = module.FormatCode
_style: dict[str, Any] = {}


@functools.cache
def _format_once(text: str, **options: Any) -> Any:
    return _format(text, style_config=_style, **options)


def _format_code(text: str, style_config: dict[str, Any], **options: Any) -> Any:
    _style.update(style_config)  # the same for all
    return _format_once(text, **options)


module.FormatCode = _format_code  # type: ignore[assignment]
