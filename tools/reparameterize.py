"""Fold a trained model's batch norms and parallel branches, and write checkpoint and config.

OUT gets the re-parameterised weights, the file of the same name ending in .py the config that loads
them. The outputs are compared with the original model's before anything is written.
"""

from collections.abc import Sequence

from mmffnet_cli import Parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument('config', help='a config file, or the name of one that mmffnet ships')
    parser.add_argument('checkpoint', help='its trained weights')
    parser.add_argument('out', help='the checkpoint to write, such as deployed.pth')
    parser.add_argument('--force', action='store_true', help='replace files that exist')
    args = parser.parse_args(argv)

    with parser.reporting(ValueError, OSError, RuntimeError):
        from mmffnet.deploy import reparameterize_file
        from mmffnet.engine.imports import import_models
        from mmffnet.engine.runner import read_config

        cfg = read_config(args.config)
        import_models(cfg)
        print(reparameterize_file(cfg, args.checkpoint, args.out, args.force))


if __name__ == '__main__':
    main()
