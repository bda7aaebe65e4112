"""Run a trained model on pictures, folders, videos or a camera; paint and write what it finds.

Results go to --out-dir: painted pictures and videos in painted/, label maps of segmentors in
labels/, everything as numbers in predictions.json (as COCO has it for detectors). The exit status
is 0, or 1 if something could not be read, or 2 if nothing was done.
"""

import argparse
import sys
from collections.abc import Sequence

from mmffnet_cli import Parser, format_of


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = Parser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='%(prog)s [options] CONFIG CHECKPOINT INPUT... | EXPORTED INPUT...',
    )
    parser.add_argument(
        'model',
        metavar='CONFIG | EXPORTED',
        help='a config file, the name of one that mmffnet ships, or a file of tools/export.py',
    )
    parser.add_argument(
        'rest',
        nargs='+',
        metavar='INPUT',
        help='the checkpoint (after a config); then pictures, folders, quoted patterns such as '
        "'photos/**/*.jpg', videos, the index of a camera (Ctrl+C ends it)",
    )
    parser.add_argument(
        '--out-dir', default='work_dirs/infer', metavar='DIR', help='default: %(default)s'
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        metavar='S',
        help='detectors: leave out what is less sure, in pictures and numbers; default: 0.3',
    )
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='default: 1')
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1'; default: the best there is")
    parser.add_argument('--fuse', action='store_true', help='re-parameterise the model first')
    parser.add_argument('--tta', action='store_true', help='average over augmented inputs')
    parser.add_argument(
        '--tiles', type=int, metavar='PIXELS', help='cut larger pictures into tiles of this size'
    )
    parser.add_argument(
        '--overlap', type=float, metavar='SHARE', help='of neighbouring tiles; default: 0.2'
    )
    parser.add_argument('--amp', action='store_true', help='predict in mixed precision')
    parser.add_channels_last()
    parser.add_argument(
        '--graph', action='store_true', help='CUDA graphs of backbone and neck, one for a shape'
    )
    parser.add_argument('--max-frames', type=int, metavar='N', help='stop after N pictures')
    parser.add_cfg_options()
    args = parser.parse_intermixed_args(argv)
    for name in ('batch_size', 'max_frames'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1')

    if args.overlap is not None and args.tiles is None:
        parser.error('--overlap is for --tiles')
    checkpoint, inputs = None, args.rest
    if not format_of(args.model):
        checkpoint, *inputs = args.rest
    with parser.reporting(OSError):
        from mmffnet.engine.imports import import_models
        from mmffnet.engine.runner import read_config
        from mmffnet.inference import Inferencer, find_sources

        sources = find_sources(inputs, args.out_dir)
        if checkpoint is not None:
            import_models(read_config(args.model, args.cfg_options))
        tiling = dict(tiles=args.tiles, overlap=0.2 if args.overlap is None else args.overlap)
        inferencer = Inferencer(
            args.model,
            checkpoint,
            args.device,
            args.fuse,
            args.tta,
            args.cfg_options,
            amp=args.amp,
            channels_last=args.channels_last,
            graph=args.graph,
            **tiling,
        )
        summary = inferencer.write(
            sources, args.out_dir, args.batch_size, args.score_thr, args.max_frames, progress=True
        )
    if args.channels_last is None and getattr(inferencer.model, 'channels_last', False):
        print(
            'channels_last was used: faster here, --no-channels-last switches it off',
            file=sys.stderr,
        )
    print(f'{summary}\nresults: {args.out_dir}')
    parser.exit(1 if summary.skipped or summary.interrupted else 0)


if __name__ == '__main__':
    main()
