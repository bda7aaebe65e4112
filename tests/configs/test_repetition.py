"""What configs have in common is in a base config."""

from pathlib import Path

from mmffnet_cli.paths import config_path

CONFIGS = Path(config_path('detection/maskrcnn_ffnet2_coco.py')).parents[1]
LINES = 10


def test_no_ten_lines_are_repeated():
    places: dict[tuple[str, ...], Path] = {}
    for path in sorted(CONFIGS.rglob('*.py')):
        lines = [line for line in path.read_text().splitlines() if line.strip('[]() ,')]
        for i in range(len(lines) - LINES + 1):
            passage = tuple(lines[i : i + LINES])
            other = places.setdefault(passage, path)
            assert other == path, f'{path.name} and {other.name} have in common:\n' + '\n'.join(
                passage
            )


def test_base_configs_are_sorted_by_kind():
    folders = {path.parent.name for path in (CONFIGS / '_base_').rglob('*.py')}
    assert folders == {'models', 'datasets', 'schedules'}
