"""Measure accuracy against published numbers, speed against other networks, and where time goes."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmffnet_cli import Parser

FORMS = (
    'eager,fused,fused+channels_last,fused+channels_last+compile,'
    'fused+channels_last+compile+bf16,onnxruntime,openvino,openvino+bf16'
)
TRAINING_FORMS = 'eager,channels_last,channels_last+bf16'


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = Parser(prog=prog, description=__doc__)
    tasks = parser.add_subparsers(dest='task', required=True, metavar='TASK')
    _add_accuracy(tasks)
    _add_speed(tasks)
    _add_profile(tasks)
    args = parser.parse_args(argv)

    with parser.reporting(OSError):
        return args.run(args)


def _add_accuracy(tasks: Any) -> None:
    text = 'evaluate checkpoints and compare with what is published'
    parser = tasks.add_parser('accuracy', help=text, description=text)
    parser.set_defaults(run=_accuracy)
    parser.add_argument(
        'pairs',
        nargs='*',
        metavar='CONFIG CHECKPOINT',
        help='models of your own, instead of those in a metafile',
    )
    parser.add_argument('--metafile', help='a metafile of your own (default: those of mmffnet)')
    parser.add_argument(
        '--models', nargs='+', default=[], metavar='GLOB', help="such as 'upernet_*' (default: all)"
    )
    parser.add_argument('--out', default='work_dirs/accuracy', type=Path, metavar='DIR')
    parser.add_argument(
        '--dry-run', action='store_true', help='say what would be run and what is missing'
    )
    parser.add_argument(
        '--tta', action='store_true', help='evaluate the numbers with augmentation, too'
    )
    parser.add_argument('--fuse', action='store_true', help='re-parameterise the models first')
    parser.add_cfg_options(
        'override settings of every config, such as test_dataloader.num_workers=4'
    )


def _accuracy(args: argparse.Namespace) -> int:
    from mmffnet.benchmark import accuracy
    from mmffnet.benchmark.metafiles import read_entries, select
    from mmffnet.checkpoint.files import check_writable

    entries = accuracy.own_entries(args.pairs) if args.pairs else read_entries(args.metafile)
    entries = select(entries, args.models)
    if not args.dry_run:
        check_writable(args.out)
    jobs = accuracy.plan(
        entries,
        args.out,
        tta=args.tta,
        fuse=args.fuse,
        cfg_options=args.cfg_options,
    )
    if args.dry_run:
        print(accuracy.describe(accuracy.rows(jobs)), end='')
        return 0
    accuracy.run(jobs)
    print(accuracy.save(jobs, args.out), end='')
    print(f'\nwritten: {args.out}/accuracy.md, .csv, .json')
    table = accuracy.rows(jobs)
    return int(any(row['outside'] or row['status'] != 'done' for row in table))


def _add_networks(parser: Any) -> None:
    parser.add_argument(
        '--size',
        type=int,
        nargs='+',
        metavar='N',
        help="height and width, or the side of a square (default: each network's own)",
    )
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='default: 1')
    parser.add_argument('--device', help="such as 'cuda:1'; default: cuda where there is one")
    parser.add_argument(
        '--threads', type=int, metavar='N', help='CPU threads (default: one per core)'
    )
    parser.add_argument(
        '--around',
        choices=['maskrcnn', 'upernet'],
        help='put the backbones into this model, at 800x1333 and 512x512',
    )


def _add_speed(tasks: Any) -> None:
    text = 'measure networks in several forms side by side'
    parser = tasks.add_parser('speed', help=text, description=text)
    parser.set_defaults(run=_speed)
    parser.add_argument(
        'networks',
        nargs='*',
        default=['ffnet2'],
        metavar='NETWORK',
        help='ffnet2, poolformer-s12, resnet50, timm:NAME, a config, a file; ffnets and peers '
        'stand for all of these (default: ffnet2)',
    )
    parser.add_argument(
        '--forms',
        help='separated by commas, each a sum of fused, channels_last, compile, freeze, bf16, '
        'plain, triton, graph, onnxruntime, openvino '
        f'(default: {FORMS}; for training: {TRAINING_FORMS})',
    )
    parser.add_argument('--train', action='store_true', help='a forward and a backward pass')
    parser.add_argument('--rounds', type=int, default=20, metavar='N', help='default: 20')
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='count what this process gets of the CPU: for busy machines, with --threads 1',
    )
    parser.add_argument('--out', type=Path, metavar='DIR', help='for table, CSV, JSON and plot')
    _add_networks(parser)


def _speed(args: argparse.Namespace) -> int:
    from mmffnet.benchmark import networks, speed_report
    from mmffnet.benchmark.forms import parse_form
    from mmffnet.benchmark.report import device_name
    from mmffnet.benchmark.speed import measure
    from mmffnet.checkpoint.files import check_writable
    from mmffnet.errors import UsageError

    size, device, threads = _prepare(args)
    if args.out:
        check_writable(args.out)
    if args.cpu_time and (device != 'cpu' or threads > 1):
        raise UsageError('--cpu-time says something of one CPU thread alone: add --threads 1')
    if args.train and args.around:
        raise UsageError('a training step is measured for backbones alone: no --around')
    groups = dict(ffnets=['ffnet1', 'ffnet2', 'ffnet3', 'ffnet4'], peers=list(networks.PEERS))
    names = [name for word in args.networks for name in groups.get(word, [word])]
    texts = (args.forms or (TRAINING_FORMS if args.train else FORMS)).split(',')
    found = measure(
        [networks.find_network(name, args.around) for name in dict.fromkeys(names)],
        [parse_form(text) for text in dict.fromkeys(texts)],
        size=size,
        batch=args.batch_size,
        device=device,
        rounds=args.rounds,
        train=args.train,
        cpu_time=args.cpu_time,
    )
    what = 'training step' if args.train else 'inference'
    title = (
        f'{what}{f" in {args.around}" if args.around else ""}, {device_name(device)}, '
        f'{threads} thread{"s" * (threads > 1)}, batch {args.batch_size}, {args.rounds} rounds'
        f'{", CPU time" if args.cpu_time else ""}'
    )
    files = []
    if args.out:
        settings = dict(
            what=what,
            around=args.around,
            batch=args.batch_size,
            device=device,
            threads=threads,
            cpu_time=args.cpu_time,
        )
        files = speed_report.save(found, args.out, settings, title)
    print(f'\n{title}\n\n{speed_report.table(found, args.batch_size)}', end='')
    if files:
        print(f'\nwritten: {", ".join(map(str, files))}')
    return int(not any(m.seconds for m in found))


def _add_profile(tasks: Any) -> None:
    text = 'show which modules and operators of a network take the time'
    parser = tasks.add_parser('profile', help=text, description=text)
    parser.set_defaults(run=_profile)
    parser.add_argument('network', nargs='?', default='ffnet2', help='as for speed')
    parser.add_argument('--form', default='fused', help='as for speed (default: fused)')
    parser.add_argument('--depth', type=int, default=2, help='levels of modules (default: 2)')
    parser.add_argument('--top', type=int, default=12, help='operators to list (default: 12)')
    parser.add_argument('--calls', type=int, default=5, help='calls to average (default: 5)')
    parser.add_argument('--trace', metavar='FILE', help='a trace for Perfetto or chrome://tracing')
    _add_networks(parser)


def _profile(args: argparse.Namespace) -> int:
    from mmffnet.benchmark.forms import parse_form
    from mmffnet.benchmark.networks import find_network
    from mmffnet.benchmark.profile import profile_network
    from mmffnet.benchmark.report import markdown
    from mmffnet.checkpoint.files import check_writable

    size, device, _ = _prepare(args)
    if args.trace:
        check_writable(Path(args.trace).parent)
    modules, operators = profile_network(
        find_network(args.network, args.around),
        parse_form(args.form),
        size=size,
        batch=args.batch_size,
        device=device,
        calls=args.calls,
        depth=args.depth,
        trace=args.trace,
    )
    print(f'{markdown(modules)}\n{markdown(operators[: args.top])}', end='')
    return 0


def _prepare(args: argparse.Namespace) -> tuple[tuple[int, int] | None, str, int]:
    """Size, device and number of threads, checked."""
    import torch

    from mmffnet.engine.runner import check_device
    from mmffnet.errors import UsageError

    counts = [args.batch_size, *(args.size or ()), 1 if args.threads is None else args.threads]
    counts += [getattr(args, name, 1) for name in ('rounds', 'calls')]
    if min(counts) < 1 or len(args.size or ()) > 2:
        raise UsageError('sizes, batches, threads, rounds and calls are positive numbers')
    device = check_device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if args.threads:
        torch.set_num_threads(args.threads)
    size = tuple((args.size * 2)[:2]) if args.size else None
    return size, device, torch.get_num_threads()  # type: ignore[return-value]


if __name__ == '__main__':
    raise SystemExit(main())
