"""Parameters and multiply-adds (which papers call FLOPs) of a model, as trained and fused.

Counted are convolutions and matrix products.
"""

import json
from collections.abc import Sequence

from mmffnet_cli import Parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument(
        'model', help='a config file, the name of one that mmffnet ships, or a backbone (ffnet2...)'
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs='+',
        metavar='N',
        help='height and width, or the side of a square (default: as the config crops or tests)',
    )
    parser.add_argument(
        '--depth', type=int, default=0, metavar='N', help='list modules, so many levels of them'
    )
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_cfg_options()
    args = parser.parse_args(argv)
    if args.size and len(args.size) > 2:
        parser.error('--size takes a height and a width, or one number for both')

    with parser.reporting(ValueError):
        from mmffnet.benchmark.flops import count_network, describe
        from mmffnet.benchmark.networks import find_network

        network = find_network(args.model, cfg_options=args.cfg_options)
        size = (args.size * 2)[:2] if args.size else network.size
        trained, fused = count_network(network, size)
    if args.json:
        both = dict(trained=trained._asdict(), fused=fused._asdict())
        print(json.dumps(dict(model=args.model, size=size, **both), indent=1))
    else:
        print(describe(args.model, size, trained, fused, args.depth))


if __name__ == '__main__':
    main()
