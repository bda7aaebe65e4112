"""Write docs/versions.md from the files that tools/dev/matrix.sh leaves in docs/versions/."""

import json
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / 'docs'
PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'numpy')
HEADER = """\
# Versions

What was seen to work, and what was not, on a CPU under Linux (x86-64). `tools/dev/matrix.sh` makes
an environment for each row, runs `tools/dev/smoke.py` there, and writes this page. mmcv is
mmcv-lite, or onedl-mmcv as pip builds it: both without operators, so mmffnet's are used. The whole
test suite runs in the environment of `requirements/pins.txt` only.

The steps: {steps}.

"""
# What a row cannot say by itself.
REMARKS = {
    'floors': 'mmsegmentation 1.2.0 does not work: its wheel lacks a file.',
    'onedl': (
        'its packages are on the index as sources only, except onedl-mmengine. Their mmseg is not '
        'found by the `mmseg::` of onedl-mmengine, unless mmffnet is imported first.'
    ),
}


def row(*cells: str) -> str:
    return f'| {" | ".join(cells)} |\n'


def render(reports: dict[str, dict]) -> str:
    steps = next((list(r['steps']) for r in reports.values() if 'steps' in r), [])
    text = HEADER.format(steps=', '.join(steps))
    text += row('environment', 'Python', *PACKAGES, 'seen', 'on')
    text += row(*['---'] * (len(PACKAGES) + 4))
    notes = ''
    for name, report in reports.items():
        packages = report.get('packages', {})
        failed = {k: v for k, v in report.get('steps', {}).items() if v != 'ok'}
        if 'failed' in report:
            failed = {'not run': report['failed']}
        versions = [(packages.get(package) or '-').partition('+')[0] for package in PACKAGES]
        seen = ', '.join(failed) if failed else 'all steps work'
        seen = seen if 'failed' in report or not failed else f'fails: {seen}'
        text += row(name, report['python'], *versions, seen, report['date'])
        notes += ''.join(f'- {name}, {step}: {reason}\n' for step, reason in failed.items())
        notes += f'- {name}: {REMARKS[name]}\n' if name in REMARKS else ''
    return text + (f'\n{notes}' if notes else '')


def read_reports() -> dict[str, dict]:
    files = sorted((DOCS / 'versions').glob('*.json'))
    return {file.stem: json.loads(file.read_text()) for file in files}


def main() -> None:
    (DOCS / 'versions.md').write_text(render(read_reports()))


if __name__ == '__main__':
    main()
