"""The argument parser of all tools."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, with exit status 2."""

    def add_cfg_options(
        self, help: str = 'override settings of the config; lists as key="[a,b]" or key=a,b'
    ) -> None:
        self.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=help)

    def add_compile(self) -> None:
        self.add_argument(
            '--compile',
            nargs='?',
            const=True,
            default=False,
            choices=['default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'],
            help="compile backbone and neck, in this mode of torch.compile (default: 'default')",
        )

    def add_channels_last(self) -> None:
        self.add_argument(
            '--channels-last',
            action=argparse.BooleanOptionalAction,
            help='use the memory format channels_last (default: where it is faster, see '
            'docs/speed.md)',
        )

    def error(self, message: str) -> NoReturn:
        one_line = ' '.join(message.split())
        self.exit(2, f'{self.prog}: error: {one_line}\n')
