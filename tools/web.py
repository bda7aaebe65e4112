"""Try a trained model on pictures in the browser; the page is served on this machine alone."""

from collections.abc import Sequence
from pathlib import Path

from mmffnet_cli import Parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = Parser(
        prog=prog, description=__doc__, usage='%(prog)s [options] CONFIG CHECKPOINT | EXPORTED'
    )
    parser.add_argument(
        'model',
        metavar='CONFIG | EXPORTED',
        help='a config file, the name of one that mmffnet ships, or a file of tools/export.py',
    )
    parser.add_argument('checkpoint', nargs='?', metavar='CHECKPOINT', help='after a config')
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1'; default: the best there is")
    parser.add_argument('--fuse', action='store_true', help='re-parameterise the model first')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        metavar='S',
        help='where the slider stands at the beginning; default: %(default)s',
    )
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        metavar='ADDRESS',
        help="where to listen; '0.0.0.0' lets other machines in; default: %(default)s",
    )
    parser.add_argument('--port', type=int, metavar='N', help='default: a free one from 7860')
    args = parser.parse_args(argv)
    with parser.reporting():
        from mmffnet.inference import Inferencer
        from mmffnet.web import build_page, prepare, serve

        prepare(args.host, args.port)
        inferencer = Inferencer(args.model, args.checkpoint, args.device, args.fuse)
        serve(build_page(inferencer, Path(args.model).stem, args.score_thr), args.host, args.port)


if __name__ == '__main__':
    main()
