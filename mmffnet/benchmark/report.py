"""Tables for people and machines, and what they were measured with."""

import csv
import io
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmffnet_cli.environment import environment

from ..checkpoint import atomic_write

Rows = Sequence[dict[str, Any]]


def markdown(rows: Rows) -> str:
    """A Markdown table that can be read as text, too; numbers to the right."""
    if not rows:
        return ''
    names = list(rows[0])
    cells = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    numeric = [all(isinstance(row[n], int | float | None) for row in rows) for n in names]
    # what is put together from numbers is lined up like them
    numeric = [n or all(_is_number(line[i]) for line in cells[1:]) for i, n in enumerate(numeric)]

    def line(values: Sequence[str]) -> str:
        aligned = (
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        )
        return f'| {" | ".join(aligned)} |'

    rule = [f'{"-" * (w - 1)}:' if r else '-' * w for w, r in zip(widths, numeric, strict=True)]
    return '\n'.join([line(cells[0]), line(rule), *map(line, cells[1:])]) + '\n'


def _text(value: Any) -> str:
    if value is None:
        return '-'
    return str(value).replace('|', '/').replace('\n', ' ')


def _is_number(text: str) -> bool:
    return text == '-' or text.lstrip('+-~').partition(' ')[0].replace('.', '', 1).isdigit()


def write(path: Path, text: str) -> None:
    """Writes a text file as a whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_csv(path: Path, rows: Rows) -> None:
    """Writes rows of plain values."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write(path, out.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON."""
    write(path, json.dumps(content, indent=1) + '\n')


def describe_machine(device: str) -> dict[str, Any]:
    """The device and the versions that a measurement depends on."""
    return dict(device=device_name(device), **environment(quick=True)['packages'])


def device_name(device: str) -> str:
    """What the device calls itself."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()
