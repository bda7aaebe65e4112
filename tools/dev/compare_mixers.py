"""Compare token mixers: train a small detector with each on the synthetic shapes.

The detector is RetinaNet with FFNet nano, whose stages 3 and 4 get the mixer; all else is the same,
the schedule and the learning rate too. Results go to benchmarks/mixers_shapes/results.json after
every training; what is there is not trained again. The last step writes the table of
docs/families.md.

    OMP_NUM_THREADS=1 python tools/dev/compare_mixers.py
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from mmffnet.benchmark.report import environment, markdown, write, write_json
from mmffnet.benchmark.speed import spread
from mmffnet.engine import runner

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'benchmarks' / 'mixers_shapes' / 'results.json'
PAGE = ROOT / 'docs' / 'families.md'
CONFIG = 'detection/retinanet_nano_shapes.py'
MIXERS: dict[str, dict[str, Any]] = {
    'FFNifiedAttention': dict(kernel_size=7),
    'none': dict(type='mmffnet.Pooling', pool_size=1),  # the average of one position minus it is 0
    'Pooling': {},
    'AdditiveAttention': dict(norm=True),
    'AdaptiveFrequencyFilter': dict(residual=False),
    'AggregatedAttention': {},
    'CosineAttention': {},
    'SelfAttention': {},
    'GatingMixer': {},
    'ShuffleMixer': {},
    'SpectrumMixer': {},
}
SEEDS = (0, 1, 2)
ROUNDS = 15


def build(name: str, seed: int, args: argparse.Namespace) -> Any:
    """The runner of one training."""
    options = [f'randomness.seed={seed}', 'model.backbone.init_cfg=None']
    steps = args.epochs * args.pictures // 8
    options += [f'train_cfg.max_iters={steps}', f'train_cfg.val_interval={steps}']
    data = args.work_dir / 'data'
    for part in ('train', 'val'):
        dataset = f'{part}_dataloader.dataset'
        options += [f'{dataset}.data_root={data}', f'{dataset}.shapes.train={args.pictures}']
        options.append(f'{dataset}.shapes.val=200')
    options.append(f'val_evaluator.ann_file={data}/annotations/instances_val.json')
    cfg = runner.read_config(CONFIG, options, str(args.work_dir / f'{name}_{seed}'))
    mixer = dict(dict(type=f'mmffnet.{name}'), **MIXERS[name])
    cfg.model.backbone.token_mixer = [None, None, mixer, mixer]
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.default_hooks.logger.interval = 50
    cfg.experiment_name = f'{name} {seed} {time.time_ns()}'
    cfg.visualizer.name = cfg.experiment_name
    return runner.build_runner(runner.train_config(cfg))


def train(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains once, and returns what it reached at the end."""
    training = build(name, seed, args)
    start = time.process_time()
    training.train()
    scores = training.message_hub.log_scalars.get('val/coco/bbox_mAP')
    return dict(  # mmdet leaves the score out where nothing was detected
        bbox_mAP=scores.current() if scores else 0.0,
        cpu_seconds=round(time.process_time() - start),
    )


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Milliseconds of a training step on one batch, all detectors taking turns, and parameters."""
    steps, found = {}, {}
    for name in MIXERS:
        training = build(name, 0, args)
        training.train_loop  # noqa: B018, which makes the data
        training.optim_wrapper = training.build_optim_wrapper(training.optim_wrapper)
        batch = next(iter(training.train_dataloader))
        model = training.model.train()
        steps[name] = lambda m=model, b=batch, o=training.optim_wrapper: m.train_step(b, o)
        steps[name]()
        count = sum(p.numel() for p in model.parameters())
        found[name] = dict(
            parameters=count, backbone=sum(p.numel() for p in model.backbone.parameters())
        )
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(1e3 * (time.process_time() - start))
    for name, values in times.items():
        ratios = [v / b for v, b in zip(values, times['FFNifiedAttention'], strict=True)]
        found[name].update(milliseconds=spread(values).median, ratio=spread(ratios).median)
    return found


def table(results: dict[str, Any]) -> str:
    """The table of the page, best first."""

    def mean(name: str) -> float:
        return 100 * statistics.mean(run['bbox_mAP'] for run in results['runs'][name].values())

    rows = []
    for name in sorted(results['runs'], key=mean, reverse=True):
        scores = [100 * run['bbox_mAP'] for run in results['runs'][name].values()]
        step = results['steps'][name]
        rows.append(
            {
                'mixer in stages 3 and 4': name,
                'box mAP': f'{mean(name):.1f}',
                'of the seeds': ', '.join(f'{score:.1f}' for score in scores),
                'parameters (M)': f'{step["parameters"] / 1e6:.2f}',
                'training step (ms)': f'{step["milliseconds"]:.0f}',
                'to FFNifiedAttention': f'{step["ratio"]:.2f}x',
            }
        )
    return markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--pictures', type=int, default=800, help='of the training')
    parser.add_argument('--epochs', type=int, default=8)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs', 'mixers'))
    parser.add_argument('--out', type=Path, default=RESULTS, help='where the results go')
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.is_file() else dict(runs={})
    settings = dict(config=CONFIG, pictures=args.pictures, epochs=args.epochs, mixers=MIXERS)
    if results.setdefault('settings', settings) != settings:
        parser.error(f'{args.out} has results of other settings')
    results['environment'] = environment()
    runs = results['runs']

    def run(name: str, seed: int) -> None:
        if str(seed) not in runs.setdefault(name, {}):
            runs[name][str(seed)] = train(name, seed, args)
            write_json(args.out, results)

    for name in MIXERS:
        run(name, SEEDS[0])
    order = sorted(MIXERS, key=lambda name: runs[name]['0']['bbox_mAP'])
    for name in (order[0], order[-1]):
        for seed in SEEDS[1:]:
            run(name, seed)
    if 'steps' not in results:
        results['steps'] = measure(args)
        write_json(args.out, results)
    if args.out != RESULTS:
        print(table(results))
        return
    text = PAGE.read_text(encoding='utf-8')
    begin, end = '<!-- mixers -->\n', '<!-- end of mixers -->\n'
    before, rest = text.split(begin)
    write(PAGE, before + begin + '\n' + table(results) + '\n' + end + rest.split(end)[1])


if __name__ == '__main__':
    main()
