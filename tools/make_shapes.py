"""Make the synthetic shapes data set that the ``_shapes`` configs train on.

The configs make it themselves on first use; this is for having it beforehand, larger, or with
another seed (the config then needs the same numbers in the ``shapes`` argument of its data sets).
"""

import argparse

from mmffnet.datasets import ensure_shapes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('layout', choices=['coco', 'ade20k', 'folder'], help='format on disk')
    parser.add_argument('root', nargs='?', help='folder to make (default: data/shapes/<layout>)')
    parser.add_argument('--train', type=int, help='number of training pictures')
    parser.add_argument('--val', type=int, help='number of validation pictures')
    parser.add_argument('--size', type=int, help='longer side in pixels')
    parser.add_argument('--seed', type=int, help='seed (default: 0)')
    return parser.parse_args()


def main() -> None:
    args = vars(parse_args())
    layout = args.pop('layout')
    root = args.pop('root') or f'data/shapes/{layout}'
    try:
        print(ensure_shapes(root, layout, **args))
    except (ValueError, OSError) as error:
        raise SystemExit(f'make_shapes: {error}') from error


if __name__ == '__main__':
    main()
