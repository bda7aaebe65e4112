"""The command ``mmffnet``."""

import ast
import fnmatch
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from .environment import environment
from .parser import Parser
from .paths import config_names, config_path, tools_path

TOOLS = {
    'train': 'train a model from a config',
    'test': 'evaluate a checkpoint',
    'finetune': 'train on a folder of your own labelled pictures',
    'report': 'test a trained model and write a page of results',
    'infer': 'run a model on pictures, folders, videos or a camera',
    'web': 'try a model on pictures in the browser',
    'export': 'write a model as ONNX, OpenVINO, CoreML or TorchScript',
    'benchmark': 'accuracy and speed of models, side by side',
    'get-flops': 'parameters and multiply-adds of a config',
    'push': 'upload a trained model to the Hugging Face Hub',
    'reparameterize': 'fold batch norms and branches of a trained model into a new checkpoint',
    'convert-names': 'convert a checkpoint between official names and ours',
    'prepare-data': 'fetch COCO, ADE20K or Cityscapes and lay it out',
}


def main(argv: Sequence[str] | None = None) -> int:
    try:
        status = _main(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read it, `head` for example, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in TOOLS:
        return _run_tool(argv[0], argv[1:])  # the tool has its own options, and its own --help
    parser = Parser(prog='mmffnet', description='FFNet / MetaMixer backbones for OpenMMLab 2.x')
    parser.add_argument('--version', action='version', version=f'mmffnet {_version()}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, text in TOOLS.items():
        commands.add_parser(name, help=f'{text} (options: mmffnet {name} --help)')
    configs = commands.add_parser('configs', help='list the configs that come with mmffnet')
    configs.add_argument(
        'pattern', nargs='?', default='', help="such as 'upernet' or 'detection/*'"
    )
    env = commands.add_parser('env', help='versions, operators in use, and what is missing')
    env.add_argument(
        '--quick', action='store_true', help='versions alone, without importing any package'
    )
    args = parser.parse_args(argv)
    if args.command == 'env':
        return _print_environment(args.quick)
    return _list_configs(args.pattern)


def _version() -> str:
    try:
        return version('mmffnet')
    except PackageNotFoundError:
        return '(not installed: run from a checkout)'


def _run_tool(name: str, arguments: Sequence[str]) -> int:
    file = name.replace('-', '_') + '.py'
    if name == 'convert-names':
        file = f'model_converters/{file}'
    spec = spec_from_file_location(f'mmffnet_tool_{Path(file).stem}', tools_path(file))
    assert spec is not None and spec.loader is not None
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.main(arguments, prog=f'mmffnet {name}') or 0


def _list_configs(pattern: str) -> int:
    wanted = pattern if any(sign in pattern for sign in '*?[') else f'*{pattern}*'
    names = fnmatch.filter(config_names(), wanted)
    if not names:
        print(
            f"mmffnet: error: no config matches '{pattern}': `mmffnet configs` lists all",
            file=sys.stderr,
        )
        return 2
    width = max(map(len, names))
    for name in names:
        tree = ast.parse(Path(config_path(name)).read_text(encoding='utf-8'))
        summary = (ast.get_docstring(tree) or '').partition('\n')[0]
        print(f'{name:{width}}  {summary}'.rstrip())
    return 0


def _print_environment(quick: bool) -> int:
    found = environment(quick)
    rows = {'mmffnet': _version(), **found['packages']}
    if not quick:
        rows['mmcv.ops'] = found['ops']
        rows['depthwise'] = found['kernels'] or None
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f'{name:{width}}  {value or "-"}')
    optional = [text for text in found['problems'] if text.endswith('if you need it.')]
    problems = [text for text in found['problems'] if text not in optional]
    for text in optional:
        print(f'note: {text}')
    for text in problems:
        print(f'problem: {text}')
    return 1 if problems else 0
