"""The argument parser of all tools."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, with exit status 2."""

    def add_cfg_options(
        self, help: str = 'override settings of the config; lists as key="[a,b]" or key=a,b'
    ) -> None:
        self.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=help)

    def error(self, message: str) -> NoReturn:
        one_line = ' '.join(message.split())
        self.exit(2, f'{self.prog}: error: {one_line}\n')
