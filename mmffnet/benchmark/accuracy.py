"""Evaluates many checkpoints, and compares what is measured with what is published."""

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

import torch
from mmengine.config import Config

from ..checkpoint import SCHEME, official_url
from ..datasets.checks import find_missing_data
from ..engine.runner import read_config
from ..errors import UsageError
from .metafiles import Entry
from .report import markdown, write, write_csv, write_json

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
#: Metrics that need test-time augmentation
_AUGMENTED = {'mIoU(ms+flip)'}


def own_entries(pairs: Sequence[str]) -> list[Entry]:
    """Makes entries of configs and checkpoints in turn.

    Raises:
        UsageError: If a config has no checkpoint.
    """
    if len(pairs) % 2:
        raise UsageError(f'configs and checkpoints come in pairs: there is none for {pairs[-1]}')
    found = []
    for config, checkpoint in zip(pairs[::2], pairs[1::2], strict=True):
        name = f'{Path(config).stem}/{Path(checkpoint).stem}'
        found.append(Entry(name, config, checkpoint))
    return found


@dataclass
class Job:
    """One evaluation of one model.

    Args:
        entry (Entry): The model.
        tta (bool): Whether test-time augmentation is on.
        result (Path): Where its result goes.
        request (dict): What :mod:`.evaluate` is told.
        missing (list[str]): What it cannot run without. Defaults to nothing.
        outcome (dict, optional): What came of it. Defaults to None: nothing yet.
    """

    entry: Entry
    tta: bool
    result: Path
    request: dict[str, Any]
    missing: list[str] = field(default_factory=list)
    outcome: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.entry.name + (' (ms+flip)' if self.tta else '')


def plan(
    entries: Sequence[Entry],
    out: Path,
    *,
    tta: bool = False,
    fuse: bool = False,
    cfg_options: Sequence[str] = (),
) -> list[Job]:
    """Finds out what is to be run, what has been run already, and what is missing.

    Nothing is built, loaded or downloaded.

    Args:
        entries (Sequence[Entry]): The models.
        out (Path): The folder of results.
        tta (bool): Evaluate also with test-time augmentation the models that have a number
            published for it. Defaults to False.
        fuse (bool): Re-parameterise the models first. Defaults to False.
        cfg_options (Sequence[str]): Settings to override in every config. Defaults to ().
    """
    jobs = []
    for entry in entries:
        augmented = tta and bool(_AUGMENTED & set(entry.published))
        for with_tta in (False, True) if augmented else (False,):
            stem = re.sub(r'[^\w.=+-]', '_', entry.name) + ('_tta' if with_tta else '')
            request = dict(
                config=entry.config,
                checkpoint=entry.weights,
                cfg_options=list(cfg_options),
                tta=with_tta,
                fuse=fuse,
                work_dir=str(out / 'work_dirs' / stem),
            )
            job = Job(entry, with_tta, out / f'{stem}.json', request)
            jobs.append(job)
            cfg = _read(job)
            _look_for_checkpoint(job)
            request['key'] = _key(job, cfg)
            job.outcome = _finished(job)
    return jobs


def run(jobs: Sequence[Job], progress: Callable[[str], None] = print) -> None:
    """Runs what can be run, each in a process of its own, and goes on after a failure.

    Args:
        jobs (Sequence[Job]): From :func:`plan`.
        progress (Callable): Is told what happens. Defaults to print.
    """
    for number, job in enumerate(jobs, 1):
        title = f'[{number}/{len(jobs)}] {job.name}'
        if job.outcome is not None:
            progress(f'{title}: done before ({job.result})')
            continue
        if job.missing:
            progress(f'{title}: not run: {"; ".join(job.missing)}')
            continue
        progress(f'{title}: running, log in {job.result.with_suffix(".log")}')
        start = time.perf_counter()
        job.outcome = _run(job)
        seconds = time.perf_counter() - start
        problem = job.outcome.get('problem')
        if problem:
            progress(f'{title}: failed after {seconds:.0f} s: {problem}')
        else:
            found = ', '.join(
                f'{row["metric"]} {row["measured"]}' for row in rows([job]) if row['measured']
            )
            progress(f'{title}: {found} in {seconds:.0f} s')


def rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The table: a row for each model and metric."""
    table = []
    for job in jobs:
        outcome = job.outcome or {}
        measured = _points(outcome.get('metrics', {}), job.tta)
        names = [n for n in job.entry.published if (n in _AUGMENTED) == job.tta] or list(measured)
        url = will_download(job)
        plans = [*job.missing, *([f'to be downloaded: {url}'] if url else [])]
        note = outcome.get('problem') or ('' if job.outcome else '; '.join(plans))
        for name in names or ['']:
            published, value = job.entry.published.get(name), measured.get(name)
            difference = None
            if published is not None and value is not None:
                difference = round(value - published, 2)
            if value is None and _status(job) == 'done':
                note = f'the evaluator gave no {name or "metric that is known here"}'
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
                    size=outcome.get('size'),
                    status=_status(job),
                    note=note,
                )
            )
    return table


def describe(table: Sequence[dict[str, Any]]) -> str:
    """The table for people, in Markdown."""
    lines = []
    for row in table:
        difference = '-' if row['difference'] is None else f'{row["difference"]:+.2f}'
        size = 'x'.join(map(str, row['size'] or ()))
        lines.append(
            {
                'model': row['model'],
                'data': row['dataset'] or '-',
                'metric': row['metric'] or '-',
                'published': _number(row['published'], 2),
                'measured': _number(row['measured'], 2),
                'difference': difference + (' (!)' if row['outside'] else ''),
                'params (M)': _number(row['parameters'], 2, 1e-6),
                'FLOPs (G)': _number(row['macs'], 1, 1e-9) + (f' at {size}' if size else ''),
                'state': row['status'],
            }
        )
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
    write_csv(
        out / 'accuracy.csv',
        [dict(row, size='x'.join(map(str, row['size'] or ()))) for row in table],
    )
    environments = (job.outcome.get('environment') for job in jobs if job.outcome)
    environment = next(filter(None, environments), None)
    write_json(out / 'accuracy.json', dict(rows=table, environment=environment))
    return text


def _read(job: Job) -> Config | None:
    if job.entry.config is None:
        job.missing.append('it has no config')
        return None
    try:
        cfg = read_config(job.entry.config, job.request['cfg_options'])
    except UsageError as error:
        job.missing.append(str(error))
        return None
    missing = find_missing_data(cfg, 'test')
    if missing:
        job.missing.append(missing)
    return cfg


def _look_for_checkpoint(job: Job) -> None:
    weights = job.entry.weights
    if weights is None:
        job.missing.append('it has no checkpoint')
    elif '://' not in weights and not Path(weights).expanduser().is_file():
        job.missing.append(f"there is no checkpoint file '{weights}'")


def will_download(job: Job) -> str | None:
    """The address that a job's checkpoint is yet to be fetched from."""
    url = job.entry.weights or ''
    url = official_url(url) if url.startswith(SCHEME) else url
    if not url.startswith(('http://', 'https://')):
        return None
    cached = Path(torch.hub.get_dir(), 'checkpoints', url.rpartition('/')[2])
    return None if cached.is_file() else url


def _key(job: Job, cfg: Config | None) -> str:
    """Changes with everything that the result depends on."""
    weights = job.entry.weights
    stamp = None
    if weights and '://' not in weights and Path(weights).is_file():
        found = Path(weights).stat()
        stamp = [found.st_size, found.st_mtime_ns]
    asked = {k: v for k, v in job.request.items() if k != 'work_dir'}
    content = [asked, stamp, cfg.pretty_text if cfg else None]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _finished(job: Job) -> dict[str, Any] | None:
    """The outcome of an earlier run of the same job."""
    try:
        outcome = json.loads(job.result.read_text())
    except (OSError, ValueError):
        return None
    return outcome if outcome.get('key') == job.request['key'] else None


def _run(job: Job) -> dict[str, Any]:
    job.result.parent.mkdir(parents=True, exist_ok=True)
    job.result.unlink(missing_ok=True)
    command = [sys.executable, '-m', 'mmffnet.benchmark.evaluate', str(job.result)]
    log = job.result.with_suffix('.log')
    with log.open('w') as file:
        done = subprocess.run(
            command,
            input=json.dumps(job.request),
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )
    outcome = _finished(job)
    if outcome is not None:
        return outcome
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
    last = lines[-1][:300] if lines else 'no output'
    if done.returncode < 0:
        last = f'killed by signal {-done.returncode} (9 often means too little memory)'
    return dict(problem=f'{last} (log: {log})')


def _points(metrics: dict[str, float], tta: bool) -> dict[str, float]:
    """What was measured, by the names of metafiles."""
    return {
        name: round(metrics[key] * unit, 2)
        for name, (key, unit) in METRICS.items()
        if key in metrics and (name in _AUGMENTED) == tta
    }


def _status(job: Job) -> str:
    if job.outcome is not None:
        return 'failed' if 'problem' in job.outcome else 'done'
    if job.missing:
        return 'missing'
    return 'to download' if will_download(job) else 'to run'


def _number(value: float | None, digits: int, unit: float = 1.0) -> str:
    return '-' if value is None else f'{value * unit:.{digits}f}'
