"""Test a trained model on the test pictures of its config and write a page of results."""

from collections.abc import Sequence

from mmffnet_cli import Parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument('config', help='a config file, or the name of one that mmffnet ships')
    parser.add_argument('checkpoint', help='a checkpoint file or address')
    parser.add_argument(
        '--out', metavar='FILE', default='results.html', help='the page (default: results.html)'
    )
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' (default: the best there is)")
    args = parser.parse_args(argv)
    with parser.reporting():
        from mmffnet.benchmark.page import write_report

        print(f'results: {write_report(args.config, args.checkpoint, args.out, args.device)}')


if __name__ == '__main__':
    main()
