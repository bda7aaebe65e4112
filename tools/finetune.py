"""Train a model on a folder of one's own labelled pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

from mmffnet_cli import Parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument('data', help='the folder; nothing in it is changed')
    parser.add_argument('--task', choices=['det', 'instance', 'seg', 'cls'])
    parser.add_argument('--arch', choices=['nano', 'ffnet1', 'ffnet2', 'ffnet3', 'ffnet4'])
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        '--minutes', type=float, default=30, metavar='M', help='how long to train (default: 30)'
    )
    budget.add_argument('--epochs', type=int, metavar='N', help='how often to see each picture')
    parser.add_argument('--weights', metavar='FILE', help='a checkpoint or address to start from')
    parser.add_argument('--out', metavar='DIR', help='where all that is made goes')
    parser.add_argument(
        '--format',
        choices=['coco', 'labelme', 'yolo', 'voc', 'masks', 'folders'],
        help='of the labels; found by looking',
    )
    parser.add_argument(
        '--group-by', metavar='REGEX', help='pictures that match alike stay in one part'
    )
    parser.add_argument('--size', type=int, metavar='PIXELS', help='longer side of the pictures')
    parser.add_argument(
        '--tiles', type=int, metavar='PIXELS', help='cut larger pictures into tiles'
    )
    parser.add_argument('--dry-run', action='store_true', help='stop after config and report')
    parser.add_argument('--resume', action='store_true', help='continue what was interrupted')
    args = parser.parse_args(argv)
    options = vars(args)
    root = options.pop('data')
    out = options.pop('out') or f'work_dirs/finetune_{Path(root).resolve().name}'
    if args.resume:
        given = [key for key in options if options[key] != parser.get_default(key)]
        given.remove('resume')
        if given:
            names = ', '.join(f'--{name.replace("_", "-")}' for name in given)
            parser.error(f'--resume goes on as before, by the config in {out}: leave out {names}')
    if not 0 < args.minutes < math.inf or (args.epochs is not None and args.epochs < 1):
        parser.error('--minutes and --epochs must be more than 0')
    if args.size is not None and args.size < 32:
        parser.error('--size must be at least 32')
    with parser.reporting(OSError):  # such as a disk that is full
        from mmffnet.owndata.finetune import finetune

        finetune(root, out, **options)


if __name__ == '__main__':
    main()
