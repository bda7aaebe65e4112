"""Evaluates many checkpoints, and compares what is measured with what is published.

``python -m mmffnet.benchmark.accuracy RESULT`` evaluates one of them in a process of its own: what
to do comes as JSON on the standard input, and the result is there when it is complete.
"""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.device import get_device

from mmffnet_cli.environment import environment

from ..checkpoint import SCHEME, official_url
from ..datasets.checks import find_missing_data
from ..engine import runner
from ..engine.imports import import_models
from ..errors import UsageError
from ..version import __version__
from .flops import count_network
from .metafiles import Entry
from .networks import find_network
from .report import Rows, describe_machine, markdown, write, write_csv, write_json

#: Differences up to this (in points) are what rounding and other versions of libraries make
TOLERANCE = 0.1
#: For each metric of a metafile: what runners call it, and what their 1 is in points
METRICS = {
    'box AP': ('coco/bbox_mAP', 100.0),
    'mask AP': ('coco/segm_mAP', 100.0),
    'mIoU': ('mIoU', 1.0),
    'mIoU(ms+flip)': ('mIoU', 1.0),
    'Top 1 Accuracy': ('accuracy/top1', 1.0),
    'Top 5 Accuracy': ('accuracy/top5', 1.0),
}
#: Packages whose versions may change results
_MATTER = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
#: Metrics that need test-time augmentation
_AUGMENTED = {'mIoU(ms+flip)'}


@dataclass
class Job:
    """One evaluation of one model."""

    entry: Entry
    tta: bool  #: Whether test-time augmentation is on
    result: Path  #: Where its result goes
    request: dict[str, Any]  #: What the process that evaluates it is told
    missing: list[str] = field(default_factory=list)  #: What it cannot run without
    outcome: dict[str, Any] | None = None  #: What came of it, None for nothing yet

    @property
    def status(self) -> str:
        if self.outcome is not None:
            return 'failed' if 'problem' in self.outcome else 'done'
        if self.missing:
            return 'missing'
        return 'to download' if self.download else 'to run'

    @property
    def download(self) -> str | None:
        """The address that the checkpoint is yet to be fetched from."""
        url = self.entry.weights or ''
        url = official_url(url) if url.startswith(SCHEME) else url
        if not url.startswith(('http://', 'https://')):
            return None
        cached = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(url).path).name)
        return None if cached.is_file() else url

    def read_outcome(self) -> dict[str, Any] | None:
        """The outcome of a run of the same job."""
        try:
            outcome = json.loads(self.result.read_text())
        except (OSError, ValueError):
            return None
        return outcome if outcome.get('key') == self.request['key'] else None


def own_entries(pairs: Sequence[str]) -> list[Entry]:
    """Makes entries of configs and checkpoints in turn."""
    if len(pairs) % 2:
        raise UsageError(f'configs and checkpoints come in pairs: there is none for {pairs[-1]}')
    return [
        Entry(f'{Path(config).stem}/{Path(checkpoint).stem}', config, checkpoint)
        for config, checkpoint in zip(pairs[::2], pairs[1::2], strict=True)
    ]


def plan(
    entries: Sequence[Entry],
    out: Path,
    *,
    tta: bool = False,
    fuse: bool = False,
    cfg_options: Sequence[str] = (),
) -> list[Job]:
    """Finds out what is to be run, what has been run already, and what is missing.

    Nothing is built, loaded or downloaded. With ``tta``, models that have a number published for
    test-time augmentation are evaluated so as well; those that have no other number always are.
    """
    jobs: list[Job] = []
    versions = [__version__, *map(environment(quick=True)['packages'].get, _MATTER)]
    for entry in entries:
        published = {metric in _AUGMENTED for metric in entry.published} or {False}
        for with_tta in sorted(published) if tta else [min(published)]:
            stem = re.sub(r'[^\w.=+-]', '_', entry.name) + ('_tta' if with_tta else '')
            if any(job.result.stem == stem for job in jobs):
                raise UsageError(
                    f'{entry.name} and another model would write the same result, {stem}.json: '
                    'each needs a name of its own'
                )
            request = dict(
                config=entry.config,
                checkpoint=entry.weights,
                cfg_options=list(cfg_options),
                tta=with_tta,
                fuse=fuse,
            )
            job = Job(entry, with_tta, out / f'{stem}.json', request)
            # changes with everything that the result depends on
            content = json.dumps([request, *_look(job), versions])
            request['key'] = hashlib.sha256(content.encode()).hexdigest()
            request['work_dir'] = str(out / 'work_dirs' / stem)
            job.outcome = job.read_outcome()
            jobs.append(job)
    return jobs


def _look(job: Job) -> tuple[str | None, list[int] | None]:
    """The config's text and the stamp of the checkpoint; notes what is missing."""
    text = stamp = None
    config, weights = job.entry.config, job.entry.weights
    try:
        if config is None:
            raise UsageError('it has no config')
        cfg = runner.read_config(config, job.request['cfg_options'])
        text = cfg.pretty_text
        job.missing += filter(None, [find_missing_data(cfg, 'test')])
    except UsageError as error:
        job.missing.append(str(error))
    if weights is None:
        job.missing.append('it has no checkpoint')
    elif '://' not in weights:
        path = Path(weights).expanduser()
        if path.is_file():
            stamp = [path.stat().st_size, path.stat().st_mtime_ns]
        else:
            job.missing.append(f"there is no checkpoint file '{weights}'")
    return text, stamp


def run(jobs: Sequence[Job], progress: Callable[[str], None] = print) -> None:
    """Runs what can be run, each in a process of its own, and goes on after a failure."""
    for number, job in enumerate(jobs, 1):
        title = f'[{number}/{len(jobs)}] {job.entry.name}{" (ms+flip)" if job.tta else ""}'
        if job.outcome is not None:
            progress(f'{title}: done before ({job.result})')
        elif job.missing:
            progress(f'{title}: not run: {"; ".join(job.missing)}')
        else:
            progress(f'{title}: running, log in {job.result.with_suffix(".log")}')
            start = time.perf_counter()
            job.outcome = _run(job)
            found = [f'{r["metric"]} {r["measured"]}' for r in rows([job]) if r['measured']]
            problem = job.outcome.get('problem')
            text = f'failed: {problem}' if problem else ', '.join(found)
            progress(f'{title}: {text} ({time.perf_counter() - start:.0f} s)')


def _run(job: Job) -> dict[str, Any]:
    job.result.parent.mkdir(parents=True, exist_ok=True)
    job.result.unlink(missing_ok=True)
    log = job.result.with_suffix('.log')
    with log.open('w') as file:
        done = subprocess.run(
            [sys.executable, '-m', __name__, str(job.result)],
            input=json.dumps(job.request),
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )
    outcome = job.read_outcome()
    if outcome is not None:
        return outcome
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
    last = lines[-1][:300] if lines else 'no output'
    if done.returncode < 0:
        last = f'killed by signal {-done.returncode} (9 often means too little memory)'
    return dict(problem=f'{last} (log: {log})')


def rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The table: a row for each model and metric."""
    table = []
    for job in jobs:
        outcome = job.outcome or {}
        metrics = outcome.get('metrics', {})
        measured = {
            name: round(metrics[key] * unit, 2)
            for name, (key, unit) in METRICS.items()
            if key in metrics and (name in _AUGMENTED) == job.tta
        }
        names = [n for n in job.entry.published if (n in _AUGMENTED) == job.tta] or list(measured)
        plans = [*job.missing, *([f'to be downloaded: {job.download}'] if job.download else [])]
        general = outcome.get('problem') or ('' if job.outcome else '; '.join(plans))
        for name in names or ['']:
            note, status = general, job.status
            published, value = job.entry.published.get(name), measured.get(name)
            known = published is not None and value is not None
            difference = round(value - published, 2) if known else None  # type: ignore[operator]
            if value is None and job.status == 'done':
                note = f'the evaluator gave no {name or "metric that is known here"}'
                status = 'missing'
            table.append(
                dict(
                    model=job.entry.name,
                    dataset=job.entry.dataset,
                    metric=name,
                    published=published,
                    measured=value,
                    difference=difference,
                    outside=difference is not None and abs(difference) > TOLERANCE + 1e-9,
                    parameters=outcome.get('parameters'),
                    macs=outcome.get('macs'),
                    size='x'.join(map(str, outcome.get('size', ()))),
                    status=status,
                    note=note,
                )
            )
    return table


def describe(table: Rows) -> str:
    """The table for people, in Markdown."""

    def number(value: float | None, digits: int, sign: str = '') -> str:
        return '-' if value is None else f'{value:{sign}.{digits}f}'

    lines = [
        {
            'model': row['model'],
            'data': row['dataset'] or '-',
            'metric': row['metric'] or '-',
            'published': number(row['published'], 2),
            'measured': number(row['measured'], 2),
            'difference': number(row['difference'], 2, '+') + (' (!)' if row['outside'] else ''),
            'params (M)': number(row['parameters'] and row['parameters'] / 1e6, 2),
            'FLOPs (G)': number(row['macs'] and row['macs'] / 1e9, 1)
            + (f' at {row["size"]}' if row['size'] else ''),
            'state': row['status'],
        }
        for row in table
    ]
    text = markdown(lines)
    outside = sum(row['outside'] for row in table)
    if outside:
        text += f'\n(!) {outside} of {len(table)} differ by more than {TOLERANCE} points.\n'
    notes = dict.fromkeys(f'- {row["model"]}: {row["note"]}' for row in table if row['note'])
    return text + ('\n' + '\n'.join(notes) + '\n' if notes else '')


def save(jobs: Sequence[Job], out: Path) -> str:
    """Writes accuracy.md, .csv and .json, and returns the table for people."""
    table = rows(jobs)
    text = describe(table)
    write(out / 'accuracy.md', text)
    write_csv(out / 'accuracy.csv', table)
    environments = [job.outcome.get('environment') for job in jobs if job.outcome]
    environment = next(filter(None, environments), None)
    write_json(out / 'accuracy.json', dict(rows=table, environment=environment))
    return text


def evaluate(request: dict[str, Any], result: Path) -> None:
    """Evaluates one model in this process, and writes its result."""
    options = request['cfg_options']
    try:
        cfg = runner.read_config(request['config'], options, request['work_dir'])
        runner.test_config(cfg, request['checkpoint'], tta=request['tta'], fuse=request['fuse'])
        import_models(cfg)
        metrics = runner.run(runner.build_runner(cfg), 'test')
    except UsageError as error:
        sys.exit(str(error))
    found = dict(
        key=request['key'],
        metrics={name: float(value) for name, value in metrics.items()},
        environment=describe_machine(get_device()),
    )
    try:
        network = find_network(request['config'], cfg_options=options)
        cost = count_network(network, network.size)[request['fuse']]
        found.update(parameters=cost.parameters, macs=cost.macs, size=network.size)
    except Exception as error:  # a model of any kind; no reason to lose hours of evaluation
        print(f'the size of the model could not be counted: {error}')
    write_json(result, found)


if __name__ == '__main__':
    evaluate(json.load(sys.stdin), Path(sys.argv[1]))
