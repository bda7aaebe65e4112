"""Evaluate a checkpoint of a detector, segmentor or classifier with its config."""

import os
from collections.abc import Sequence

from mmffnet_cli import Parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument('config', help='a config file, or the name of one that mmffnet ships')
    parser.add_argument('checkpoint', help='a checkpoint file or address')
    parser.add_argument('--work-dir', metavar='DIR', help='where logs and metrics go')
    parser.add_argument(
        '--out', metavar='PATH', help='keep the predictions: a folder for mmseg, else a .pkl file'
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', metavar='DIR', help='save painted predictions')
    parser.add_argument(
        '--wait-time', type=float, default=2.0, metavar='S', help='seconds for each window'
    )
    parser.add_argument('--tta', action='store_true', help='average over augmented inputs')
    parser.add_argument('--fuse', action='store_true', help='re-parameterise the model first')
    parser.add_compile()
    parser.add_channels_last()
    parser.add_cfg_options()
    parser.add_launcher()
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', args.local_rank)

    with parser.reporting():
        from mmffnet.engine import runner
        from mmffnet.engine.imports import import_models

        cfg = runner.read_config(args.config, args.cfg_options, args.work_dir, args.launcher)
        runner.test_config(
            cfg,
            args.checkpoint,
            args.out,
            args.show,
            args.show_dir,
            args.wait_time,
            args.tta,
            args.fuse,
            args.compile,
            args.channels_last,
        )
        import_models(cfg)
        runner.run(runner.build_runner(cfg), 'test')


if __name__ == '__main__':
    main()
