"""Regenerate tests/data/official_numbers.json, the compact reference numbers of the tests.

Outputs of the official code are summarised from its stored arrays; networks and sizes for which
there are none are computed by tests/official_reference.py and marked 'independent'. With
`--families` it writes those of the other families, tests/data/families/*.json, instead.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tests'))
reference = importlib.import_module('official_reference')
numbers = importlib.import_module('reference_numbers')
families = importlib.import_module('families')

SIZES = ((64, 64), (96, 128))
ODD_SIZE = (75, 101)
OFFICIAL = ('cls_ffnet_1', 'det_ffnet_1', 'det_ffnet_2', 'seg_ffnet_seg', 'head_ade20k')
ODD = ('det_ffnet_1', 'det_ffnet_2')


def official_outputs(name: str, folder: Path) -> Iterator[tuple[tuple[int, int], str, np.ndarray]]:
    path = folder / f'{name}.out.npz'
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing: it holds the official outputs of {name}')
    with np.load(path) as arrays:
        for height, width in SIZES:
            for key in arrays.files:
                array, _, size = key.rpartition('_')
                if size == f'{height}x{width}' and array.startswith(('out', 'logits')):
                    yield (height, width), array, arrays[key]


def own_outputs(
    name: str, sizes: tuple[tuple[int, int], ...]
) -> Iterator[tuple[tuple[int, int], str, np.ndarray]]:
    kind, _, variant = name.partition('_')
    make_input = reference.make_features if kind == 'head' else reference.make_input
    params = reference.fill(reference.official_keys(variant, kind))
    for size in sizes:
        with torch.no_grad():
            outputs, _ = reference.forward(params, make_input(*size))
        for array, values in outputs.items():
            yield size, array, values.numpy()


def records(folder: Path) -> Iterator[dict[str, Any]]:
    for name in reference.NAMES:
        sources = []
        if name in OFFICIAL:
            sources.append(('official', official_outputs(name, folder)))
        else:
            sources.append(('independent', own_outputs(name, SIZES)))
        if name in ODD:
            sources.append(('independent', own_outputs(name, (ODD_SIZE,))))
        for origin, outputs in sources:
            for size, array, values in outputs:
                yield {
                    'network': name,
                    'size': size,
                    'array': array,
                    'origin': origin,
                    'dtype': str(values.dtype),
                    **numbers.summarize(values),
                }


def write_families(folder: Path, out: Path) -> None:
    """Summarise the outputs of each family, leaving out the inputs, which make_input() makes."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted((folder / 'families').glob('*.out.npz')):
        with np.load(path) as arrays:
            lines = [
                f'{json.dumps(key)}: {json.dumps(numbers.summarize(arrays[key]))}'
                for key in arrays.files
                if arrays[key].dtype == np.float64 and not key.endswith('/x')
            ]
        target = out / f'{path.name.removesuffix(".out.npz")}.json'
        target.write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')
        print(f'{len(lines)} arrays, {target.stat().st_size} bytes: {target}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('fixtures', type=Path, help='folder with the official *.out.npz files')
    parser.add_argument('--out', type=Path, default=numbers.FILE)
    parser.add_argument('--families', action='store_true', help='of the other families')
    args = parser.parse_args()
    if args.families:
        write_families(args.fixtures, families.FOLDER)
        return

    # More threads are slower on such small maps, far slower on a busy machine.
    torch.set_num_threads(1)
    lines = [json.dumps(record) for record in records(args.fixtures)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text('[\n' + ',\n'.join(lines) + '\n]\n', encoding='utf-8')
    print(f'{len(lines)} arrays, {args.out.stat().st_size} bytes: {args.out}')


if __name__ == '__main__':
    main()
