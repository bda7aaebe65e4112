"""Fetch COCO, ADE20K or Cityscapes, check it, and lay it out where the configs look for it.

What is there already is kept; an interrupted call is completed by the next one.
"""

from collections.abc import Sequence

from mmffnet_cli import Parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument('dataset', choices=['coco', 'ade20k', 'cityscapes'])
    parser.add_argument(
        '--root', default='data', metavar='DIR', help='the folder of all data sets (default: data)'
    )
    parser.add_argument(
        '--archives',
        metavar='DIR',
        help='where the archives are, or are downloaded to (default: archives in the root)',
    )
    parser.add_argument(
        '--no-checksum',
        dest='checksum',
        action='store_false',
        help='accept archives of another size or checksum than the official ones',
    )
    parser.add_argument('--force', action='store_true', help='replace files that are there')
    args = parser.parse_args(argv)

    with parser.reporting():
        from mmffnet.datasets.archives import DATASETS
        from mmffnet.datasets.prepare import prepare
        from mmffnet.errors import UsageError
    dataset = DATASETS[args.dataset]
    try:
        prepare(dataset, args.root, args.archives, checksum=args.checksum, force=args.force)
    except (UsageError, OSError) as error:
        problems = [f'{parser.prog}: error: {line}\n' for line in str(error).splitlines()]
        parser.exit(2, ''.join(problems))
    except KeyboardInterrupt:
        parser.exit(130, f'\n{parser.prog}: interrupted; run it again to continue\n')


if __name__ == '__main__':
    main()
