"""Formats the text of a config once: runners ask for it with each checkpoint that they write.

It is most of the time of a small training.
"""

from typing import Any

import mmengine.config.config as module

_format = module.FormatCode
_formatted: dict[str, Any] = {}


def _format_once(text: str, **options: Any) -> Any:  # whose options are the same for all texts
    if text not in _formatted:
        _formatted[text] = _format(text, **options)
    return _formatted[text]


module.FormatCode = _format_once  # type: ignore[assignment]
