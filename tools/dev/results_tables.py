"""Write the tables of results and of widths in README.md and in docs/.

They are made of the metafiles, of the measurements in benchmarks/ and of the backbones, and stand
between a comment with the name of the table and a comment with its end; the rest of the pages is
kept.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = ('README.md', 'docs/families.md', 'docs/backbone.md')
#: Measurements for docs/families.md, as `mmffnet benchmark speed ... --out FOLDER` leaves them
SPEED = {
    'speed of backbones': 'benchmarks/families_2threads',
    'speed in Mask R-CNN': 'benchmarks/families_maskrcnn_2threads',
}
SYSTEMS = {
    'cascademaskrcnn': 'Cascade Mask R-CNN',
    'maskrcnn': 'Mask R-CNN',
    'retinanet': 'RetinaNet',
    'upernet': 'UPerNet',
    'semfpn': 'Semantic FPN',
    'deeplabv3': 'DeepLabV3',
    'ffnetseg': 'FFNetHead',
}
SCHEDULES = {12: '1x', 36: '3x'}


def read(root: Path = ROOT) -> tuple[dict[str, dict], list[dict]]:
    """The collections by name and all models, in the order of the model index."""
    index = yaml.safe_load((root / 'model-index.yml').read_text(encoding='utf-8'))
    files = [yaml.safe_load((root / name).read_text(encoding='utf-8')) for name in index['Import']]
    collections = {c['Name']: c for file in files for c in file.get('Collections', ())}
    return collections, [model for file in files for model in file['Models']]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def results(model: dict) -> dict[str, dict[str, float]]:
    """Metrics by data set."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for result in model.get('Results', ()):
        found[result['Dataset']] |= result['Metrics']
    return found


def published(models: Sequence[dict]) -> str:
    """FFNet's official models, one in a row."""
    rows = []
    for model in models:
        if model['In Collection'] != 'FFNet':
            continue
        for data, metrics in results(model).items():
            numbers = ', '.join(f'{name} {number}' for name, number in metrics.items())
            name = model['Name'].replace('_3rdparty', '')
            rows.append(
                (f'[{name}]({model["Config"]})', data, numbers, f'[file]({model["Weights"]})')
            )
    return table(('config', 'data', 'published', 'weights'), rows)


def arch_of(model: dict) -> str:
    """What a model's backbone is called: ``ffnet2``, ``poolformer-s12``."""
    parts = model['Name'].split('_')
    arch = parts[1] if parts[0] in SYSTEMS and parts[0] != 'ffnetseg' else parts[0]
    return arch.removesuffix('-distilled')


def families(collections: dict[str, dict], models: Sequence[dict]) -> str:
    """All families and variants, with what is published of them."""
    variants: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for model in models:
        variants[model['In Collection'], arch_of(model)].append(model)
    rows = []
    for name in collections:
        for (family, arch), group in variants.items():
            if family == name:
                rows.append((family, f'`{arch}`', *_variant(group)))
    head = ('family', 'arch', 'parameters (M)', 'FLOPs (G)', 'ImageNet top-1', 'COCO', 'ADE20K')
    sources = ''.join(
        f'- {name}: [{c["Paper"]["Title"]}]({c["Paper"]["URL"]}), [code]({c["Code"]["URL"]})\n'
        for name, c in collections.items()
    )
    return f'{table(head, rows)}\nSources:\n\n{sources}'


def _variant(models: Sequence[dict]) -> tuple[str, ...]:
    cells: dict[str, list[str]] = defaultdict(list)
    size = ('-', '-')
    for model in models:
        meta, found = model['Metadata'], results(model)
        if accuracy := found.get('ImageNet-1k', {}).get('Top 1 Accuracy'):
            side = meta['Input Size']
            if size == ('-', '-'):
                size = f'{meta["Parameters"] / 1e6:.1f}', f'{meta["FLOPs"] / 1e9:.1f} at {side}'
            distilled = ' distilled' if '-distilled' in model['Name'] else ''
            cells['ImageNet-1k'].append(f'{accuracy} at {side}{distilled}')
        system = SYSTEMS.get(model['Name'].split('_')[0], '')
        if coco := found.get('COCO'):
            numbers = ' / '.join(str(coco[key]) for key in ('box AP', 'mask AP') if key in coco)
            cells['COCO'].append(f'{system} {SCHEDULES[meta["Epochs"]]} {numbers}')
        if miou := found.get('ADE20K', {}).get('mIoU'):
            cells['ADE20K'].append(f'{system} {miou}')
    return (*size, *('; '.join(cells[key]) or '-' for key in ('ImageNet-1k', 'COCO', 'ADE20K')))


def speed(folder: Path) -> str:
    """Times of a measurement, and how many times faster than the first network's first form."""
    if not (folder / 'speed.json').is_file():
        return 'Not measured yet.\n'
    content = json.loads((folder / 'speed.json').read_text(encoding='utf-8'))
    seconds: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for entry in content['rounds']:
        seconds[entry['network']][entry['form']] = entry['seconds']
    forms = list(dict.fromkeys(entry['form'] for entry in content['rounds']))
    first = next(iter(seconds))
    base = seconds[first][forms[0]]

    def cell(times: list[float] | None) -> str:
        if not times:
            return '-'
        ratio = median(a / b for a, b in zip(base, times, strict=False))
        return f'{1e3 * median(times) / content["batch"]:.1f} ({ratio:.2f})'

    rows = [
        (f'`{name}`', *(cell(found.get(form)) for form in forms)) for name, found in seconds.items()
    ]
    threads = content['threads']
    title = (
        f'{content["environment"]["device"]}, {threads} thread{"s" * (threads > 1)}, batch '
        f'{content["batch"]}, PyTorch {content["environment"]["torch"]}, one run of {len(base)} '
        f'rounds: milliseconds per image (times faster than `{first}` {forms[0]}).'
    )
    return f'{title}\n\n{table(("network", *forms), rows)}'


def in_channels() -> str:
    """The widths of the maps of all variants, one row for those of a family that share them."""
    from mmengine.registry import MODELS

    import mmffnet

    widths: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name in sorted(mmffnet.__all__, key=lambda name: name not in MODELS.module_dict):
        for arch, settings in getattr(getattr(mmffnet, name), 'arch_settings', {}).items():
            kind = name if name in MODELS.module_dict else f'mmffnet.{name}'
            widths[kind, tuple(settings['channels'])].append(f'`{arch}`')
    rows = [
        (f'`{kind}`', ', '.join(archs), f'`{list(channels)}`')
        for (kind, channels), archs in widths.items()
    ]
    return table(('`type`', '`arch`', '`in_channels`'), rows)


def tables(root: Path = ROOT) -> dict[str, str]:
    collections, models = read(root)
    found = {
        'published results of FFNet': published(models),
        'published results of all families': families(collections, models),
        'in_channels': in_channels(),
    }
    return found | {name: speed(root / folder) for name, folder in SPEED.items()}


def fill(page: str, found: dict[str, str]) -> str:
    """The page with the present tables."""

    return re.sub(
        r'(?s)(<!-- table: (.*?) -->\n).*?(<!-- end of table -->)',
        lambda match: f'{match[1]}\n{found[match[2]]}\n{match[3]}',
        page,
    )


if __name__ == '__main__':
    for page in PAGES:
        path = ROOT / page
        path.write_text(fill(path.read_text(encoding='utf-8'), tables()), encoding='utf-8')
