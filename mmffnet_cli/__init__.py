"""What the command line needs before torch is imported.

Importing anything from ``mmffnet`` imports torch and mmengine. This package imports the standard
library alone: ``--help`` and mistyped arguments are answered at once, and ``mmffnet env`` can say
that one of the two is missing.
"""

from .formats import FORMATS, format_of
from .parser import Parser
from .paths import config_names, config_path, tools_path

__all__ = ['FORMATS', 'Parser', 'config_names', 'config_path', 'format_of', 'tools_path']
