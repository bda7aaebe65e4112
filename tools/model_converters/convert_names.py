"""Convert a checkpoint between the official parameter names and ours.

Not needed for loading: official files load as they are. Optimiser state and other contents are left
out; the weights are bit-identical.
"""

from collections.abc import Sequence

from mmffnet_cli import Parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument('source', help='a file, an URL or a short name (mmffnet://ffnet2)')
    parser.add_argument('target', help='the file to write')
    parser.add_argument(
        '--to', choices=['ours', 'official'], default='ours', help='default: %(default)s'
    )
    parser.add_argument('--use-ema', action='store_true', help='take the averaged weights')
    parser.add_argument('--force', action='store_true', help='replace TARGET if it exists')
    args = parser.parse_args(argv)

    with parser.reporting(ValueError, OSError, RuntimeError):
        from mmffnet.checkpoint import convert_file

        print(convert_file(args.source, args.target, args.to, args.force, args.use_ema))


if __name__ == '__main__':
    main()
