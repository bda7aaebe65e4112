"""Export a trained model to ONNX, OpenVINO, CoreML, TorchScript or torch.export.

The exported model takes pictures and gives results; normalising, NMS and the like are inside. It is
loaded in its own runtime and compared with PyTorch before it is kept.
"""

from collections.abc import Sequence

from mmffnet_cli import FORMATS, Parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument('config', help='a config file, or the name of one that mmffnet ships')
    parser.add_argument('checkpoint', help='its trained weights')
    parser.add_argument('--format', choices=list(FORMATS), required=True)
    parser.add_argument(
        '--out', metavar='FILE', help='what to write; by default here, named after the config'
    )
    parser.add_argument('--backbone', action='store_true', help='the bare backbone: its maps')
    parser.add_argument('--batch', type=int, metavar='N', help='pictures per call; default: any')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the pictures; default: any, for CoreML that of the config',
    )
    parser.add_argument(
        '--int8', metavar='FOLDER', help='quantise, calibrated on the pictures in a folder'
    )
    parser.add_argument(
        '--pictures', metavar='FOLDER', help='compare on these, in place of synthetic pictures'
    )
    parser.add_argument('--force', action='store_true', help='replace files that exist')
    parser.add_cfg_options()
    args = parser.parse_args(argv)

    with parser.reporting(ValueError, OSError, RuntimeError):
        from mmffnet.deploy.export import export_config
        from mmffnet.engine.imports import import_models
        from mmffnet.engine.runner import read_config

        cfg = read_config(args.config, args.cfg_options)
        import_models(cfg)
        report = export_config(
            cfg,
            args.checkpoint,
            args.format,
            args.out,
            backbone=args.backbone,
            batch=args.batch,
            size=args.size,
            calibration=args.int8,
            pictures=args.pictures,
            force=args.force,
        )
    print(report)


if __name__ == '__main__':
    main()
