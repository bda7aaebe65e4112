"""Evaluates one model in a process of its own: ``python -m mmffnet.benchmark.evaluate RESULT``.

What to do comes as JSON on the standard input; the result is there when it is complete.
"""

import json
import sys
from pathlib import Path

from mmengine.device import get_device

from ..engine.runner import build_runner, read_config, run, test_config
from ..errors import UsageError
from .flops import count_network
from .networks import find_network
from .report import describe_machine, write_json


def main() -> None:
    request = json.load(sys.stdin)
    options = request['cfg_options']
    try:
        cfg = read_config(request['config'], options, request['work_dir'])
        test_config(cfg, request['checkpoint'], tta=request['tta'], fuse=request['fuse'])
        metrics = run(build_runner(cfg), 'test')
    except UsageError as error:
        sys.exit(str(error))
    result = dict(
        key=request['key'],
        metrics={name: float(value) for name, value in metrics.items()},
        environment=describe_machine(get_device()),
    )
    try:
        network = find_network(request['config'], cfg_options=options)
        cost = count_network(network, network.size)[request['fuse']]
        result.update(parameters=cost.parameters, macs=cost.macs, size=network.size)
    except Exception as error:  # a model of any kind; no reason to lose hours of evaluation
        print(f'the size of the model could not be counted: {error}')
    write_json(Path(sys.argv[1]), result)


if __name__ == '__main__':
    main()
