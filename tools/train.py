"""Train a detector, segmentor or classifier from a config.

SIGTERM and Ctrl-C end training after the current iteration, with a checkpoint and exit status 143
or 130; --resume continues there. After a crash or SIGKILL it continues from the newest checkpoint.
"""

import os
from collections.abc import Sequence

from mmffnet_cli import Parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument('config', help='a config file, or the name of one that mmffnet ships')
    parser.add_argument('--work-dir', metavar='DIR', help='where logs and checkpoints go')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='FILE',
        help='continue from this checkpoint, or from the newest one in the work directory',
    )
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size'
    )
    parser.add_compile()
    parser.add_argument(
        '--cuda-graphs',
        action='store_true',
        help='capture the steps of backbone and neck where the shape of the inputs is fixed',
    )
    parser.add_channels_last()
    parser.add_cfg_options()
    parser.add_launcher()
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', args.local_rank)

    with parser.reporting():
        from mmffnet.engine import runner
        from mmffnet.engine.imports import import_models

        cfg = runner.read_config(args.config, args.cfg_options, args.work_dir, args.launcher)
        runner.train_config(
            cfg,
            args.resume,
            args.amp,
            args.auto_scale_lr,
            args.compile,
            args.channels_last,
            args.cuda_graphs,
        )
        import_models(cfg)
        runner.run(runner.build_runner(cfg), 'train')


if __name__ == '__main__':
    main()
