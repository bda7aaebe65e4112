"""``python -m mmffnet_cli``: the command ``mmffnet``."""

import sys

from .main import main

sys.exit(main())
