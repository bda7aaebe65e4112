"""Write one of mmffnet/weights: a network for the synthetic shapes, in half precision.

docs/classification.md says how they are trained.

    python tools/dev/make_nano.py work_dirs/nano/demo.pth mmffnet/weights/ffnet-nano.pth
"""

import argparse
from pathlib import Path

from mmffnet.checkpoint import find_state_dict, read_checkpoint, save_atomically
from mmffnet.version import __version__


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('target', type=Path)
    args = parser.parse_args()
    raw = read_checkpoint(args.checkpoint)
    state = find_state_dict(raw, f'checkpoint {args.checkpoint}')
    half = {
        name: tensor.half()
        for name, tensor in state.items()
        if not name.endswith('num_batches_tracked')
    }
    meta = dict(
        mmffnet_version=__version__,
        dataset_meta=raw['meta']['dataset_meta'],
        iterations=raw['meta']['iter'],
    )
    save_atomically(dict(state_dict=half, meta=meta), args.target, force=True)
    print(f'{args.target}: {args.target.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    main()
