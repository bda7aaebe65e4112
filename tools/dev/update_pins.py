"""Resolve requirements/direct.in into requirements/pins.txt.

    python tools/dev/update_pins.py python3.11 python3.10 [python3.12 ...]

The first interpreter decides the versions. Each further one keeps them, unless it is too old or too
new to have them: then the packages that differ get a second line, with an environment marker.
Nothing is installed, and only wheels are considered.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIRECT = ROOT / 'requirements' / 'direct.in'
PINS = ROOT / 'requirements' / 'pins.txt'
HEADER = """\
# The project's own environment, package by package: tools/dev/update_pins.py makes it of direct.in.
# `make test` installs exactly this list; it can also be a constraints file (pip install -c).
"""
# Wanted by name by mmengine and mmcv-lite; opencv-python-headless stands in for it.
REPLACED = {'opencv-python'}
# Where there are wheels of what not every system has, by the beginning of names.
MARKERS = {
    ('nvidia-', 'cuda-', 'triton'): 'sys_platform == "linux"',
    ('coremltools',): '(sys_platform == "darwin" or platform_machine == "x86_64")',
    ('openvino',): 'platform_machine != "aarch64"',
}


def normalise(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def resolve(python: str, constraints: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return the interpreter's version ('3.11') and the resolved ``{package: version}``."""
    code = 'import sys; print("%d.%d" % sys.version_info[:2])'
    version = subprocess.run([python, '-c', code], check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        limits, report = Path(folder, 'constraints.txt'), Path(folder, 'report.json')
        limits.write_text(''.join(f'{name}=={pin}\n' for name, pin in constraints.items()))
        command = [python, '-m', 'pip', 'install', '--dry-run', '--quiet', '--ignore-installed']
        command += ['--only-binary', ':all:', '--report', str(report)]
        subprocess.run([*command, '-r', str(DIRECT), '-c', str(limits)], check=True)
        found = json.loads(report.read_text())['install']
    pins = {normalise(item['metadata']['name']): item['metadata']['version'] for item in found}
    return version.stdout.strip(), {k: v for k, v in pins.items() if k not in REPLACED}


def resolve_near(python: str, wanted: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Resolve with as many of the wanted versions as the interpreter can have."""
    try:
        return resolve(python, wanted)
    except subprocess.CalledProcessError:
        return resolve(python, {})


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split('.')))


def render(first: str, pinned: dict[str, str], others: list[tuple[str, dict[str, str]]]) -> str:
    lines = []
    for name in sorted(set(pinned).union(*(pins for _, pins in others))):
        differing = {v: pins.get(name) for v, pins in others if pins.get(name) != pinned.get(name)}
        newer = [number(v) > number(first) for v in differing]
        if len(set(differing.values())) > 1 or len(set(newer)) > 1:
            raise SystemExit(
                f'{name}: one version beside that of {first} is possible, these are several: '
                f'{differing}'
            )
        rows = [(pinned.get(name), '')]
        if differing:
            limit = (min if newer[0] else max)(differing, key=number)
            ours, theirs = ('<', '>=') if newer[0] else ('>', '<=')
            rows = [(pinned.get(name), f'python_version {ours} "{limit}"')]
            rows += [(differing[limit], f'python_version {theirs} "{limit}"')]
        where = next((text for names, text in MARKERS.items() if name.startswith(names)), '')
        for pin, marker in rows:
            condition = ' and '.join(filter(None, (marker, where)))
            if pin is not None:
                lines.append(f'{name}=={pin}' + (f' ; {condition}' if condition else ''))
    return HEADER + '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('pythons', nargs='+', help='interpreters, the one that decides first')
    first, *rest = parser.parse_args().pythons
    version, pinned = resolve(first, {})
    others = [resolve_near(python, pinned) for python in rest]
    PINS.write_text(render(version, pinned, others))
    print(f'wrote {PINS}', file=sys.stderr)


if __name__ == '__main__':
    main()
