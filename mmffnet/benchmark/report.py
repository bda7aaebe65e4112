"""Tables for people and machines, and what they were measured with."""

import csv
import io
import json
import platform
import re
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
    texts = [
        ['-' if v is None else str(v).replace('|', '/').replace('\n', ' ') for v in row.values()]
        for row in rows
    ]
    columns = []
    for name, *column in zip(rows[0], *texts, strict=True):
        width = max(map(len, (name, *column)))
        right = all(re.match(r'[+~-]?\d[\d.]*( |$)|-$', text) for text in column)
        rule = '-' * (width - 1) + ':' if right else '-' * width
        column = [text.rjust(width) if right else text.ljust(width) for text in (name, *column)]
        columns.append([column[0], rule, *column[1:]])
    return ''.join(f'| {" | ".join(line)} |\n' for line in zip(*columns, strict=True))


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
