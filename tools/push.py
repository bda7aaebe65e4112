"""Upload a trained model to the Hugging Face Hub: weights, config and a model card.

Weights are written as safetensors, the config as one file without absolute paths. Log in with
`hf auth login` or HF_TOKEN; --dry-run writes the same files and needs no connection.
"""

from collections.abc import Sequence

from mmffnet_cli import Parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument('repository', metavar='OWNER/NAME', help='made if it is not there')
    parser.add_argument('config', help='a config file, or the name of one that mmffnet ships')
    parser.add_argument('checkpoint', help='its trained weights: a file or an address')
    parser.add_argument(
        '--results', metavar='FILE', help='results.json of mmffnet report, or a metafile'
    )
    parser.add_argument(
        '--dataset', metavar='NAME', help='what it was trained on, if a metafile does not say it'
    )
    parser.add_argument('--license', metavar='ID', help='such as apache-2.0')
    parser.add_argument('--private', action='store_true', help='let only the owner see it')
    parser.add_argument('--dry-run', metavar='DIR', help='write the files there, upload nothing')
    args = parser.parse_args(argv)
    with parser.reporting(ValueError, OSError):
        from mmffnet.engine.imports import import_models
        from mmffnet.engine.runner import read_config
        from mmffnet.sharing.push import push

        cfg = read_config(args.config)
        import_models(cfg)
        print(
            push(
                args.repository,
                cfg,
                args.checkpoint,
                args.results,
                args.dataset,
                args.license,
                args.private,
                args.dry_run,
            )
        )


if __name__ == '__main__':
    main()
