"""Train a model on a folder of one's own labelled pictures."""

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
    try:
        from mmffnet.errors import UsageError
        from mmffnet.owndata.finetune import finetune
    except ImportError as error:
        parser.error(f'mmffnet cannot be imported: {error}')
    options = vars(args)
    root = options.pop('data')
    out = options.pop('out') or f'work_dirs/finetune_{Path(root).resolve().name}'
    if args.resume:
        given = [key for key in options if options[key] != parser.get_default(key)]
        given.remove('resume')
        if given:
            names = ', '.join(f'--{name.replace("_", "-")}' for name in given)
            parser.error(f'--resume goes on as before, by the config in {out}: leave out {names}')
    if min(args.minutes, args.epochs or 1, args.size or 1) <= 0:
        parser.error('--minutes, --epochs and --size must be more than 0')
    try:
        finetune(root, out, **options)
    except (UsageError, OSError) as error:  # such as a disk that is full
        parser.error(str(error))


if __name__ == '__main__':
    main()
