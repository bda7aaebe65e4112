"""``python -m mmffnet``: the command ``mmffnet``, for launchers that take a module."""

import sys

from mmffnet_cli.main import main

sys.exit(main())
