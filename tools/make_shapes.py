"""Make the synthetic shapes data set that the ``_shapes`` configs train on.

The configs make it themselves on first use; this is for having it beforehand, larger, or with
another seed (the config then needs the same numbers in the ``shapes`` argument of its data sets).
"""

from mmffnet_cli import Parser


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('layout', choices=['coco', 'ade20k', 'folder'], help='format on disk')
    parser.add_argument('root', nargs='?', help='folder to make (default: data/shapes/<layout>)')
    parser.add_argument('--train', type=int, help='number of training pictures')
    parser.add_argument('--val', type=int, help='number of validation pictures')
    parser.add_argument('--size', type=int, help='longer side in pixels')
    parser.add_argument('--seed', type=int, help='seed (default: 0)')
    args = vars(parser.parse_args())
    layout = args.pop('layout')
    root = args.pop('root') or f'data/shapes/{layout}'
    with parser.reporting(ValueError, OSError):
        from mmffnet.datasets import ensure_shapes

        print(ensure_shapes(root, layout, **args))


if __name__ == '__main__':
    main()
