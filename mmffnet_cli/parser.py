"""The argument parser of all tools."""

import argparse
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
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

    def add_launcher(self) -> None:
        self.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
        self.add_argument('--local_rank', '--local-rank', default='0', help='set by launchers')

    @contextmanager
    def reporting(self, *mistakes: type[Exception]) -> Iterator[None]:
        """Ends with one line for UsageError, missing packages, and further types of errors.

        What needs torch is imported within it.
        """
        try:
            yield
        except BrokenPipeError:
            raise
        except Exception as error:
            errors = sys.modules.get('mmffnet.errors')  # it is there if one of its errors is
            if isinstance(error, (*mistakes, getattr(errors, 'UsageError', ()))):
                self.error(str(error))
            if isinstance(error, ImportError):
                frames = traceback.extract_tb(error.__traceback__)
                place = [frame for frame in frames if 'importlib' not in frame.filename][-1]
                self.error(f'cannot import: {error} ({place.filename}, line {place.lineno})')
            raise

    def error(self, message: str) -> NoReturn:
        one_line = ' '.join(message.split())
        self.exit(2, f'{self.prog}: error: {one_line}\n')
