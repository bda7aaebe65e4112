"""The pages of data and of results: HTML files that hold all they show."""

import base64
import contextlib
import html
import io
import json
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from mmffnet.checkpoint.files import check_writable
from mmffnet.engine.runner import read_config
from mmffnet.errors import UsageError

from .evaluation import Example, Results, evaluate
from .report import write

_WIDTH = 640  # pixels of a painted picture
_LINES = 10  # classes whose curves are drawn

_STYLE = """
:root { color-scheme: light; --soft: #5b6470; --line: #dfe3e8; --blue: #2459a9 }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 1.2rem; color: #1c1f24; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .6rem 0 }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .4rem; padding-top: .8rem }
h2, .tile, th, td { border: 0 solid var(--line) } h2 { border-top-width: 1px }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem } p { margin: .4rem 0 }
p, th, .tile, figcaption { color: var(--soft); font-size: .92rem }
.tiles, .charts, .examples { display: grid; gap: .9rem; margin: .8rem 0 }
.tiles { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)) }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)) }
.examples { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)) }
.tile { border-width: 1px; border-radius: .5rem; padding: .5rem .8rem }
.tile b { display: block; font-size: 1.45rem; color: var(--blue) }
.scroll { overflow-x: auto; overflow-wrap: normal }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom-width: 1px; white-space: nowrap }
th, tr > :first-child { max-width: 13rem; overflow: hidden; text-overflow: ellipsis }
tr > :first-child { text-align: left; position: sticky; left: 0; background: #fff }
svg { width: 100%; max-width: 34rem; height: auto }
figure { margin: 0 } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem }
.pair img { width: 100%; border-radius: .3rem }
pre { background: #f4f5f7; padding: .8rem; overflow: auto; font-size: .85rem }
@media (max-width: 30rem) { table { font-size: .84rem } th, td { padding: .25rem .3rem } }
"""


def write_html(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page of its own."""
    title = html.escape(title)
    head = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>'
    )
    write(path, '\n'.join([head, *parts, '</body></html>\n']))


def list_items(title: str, texts: Sequence[str]) -> str:
    items = ''.join(f'<li>{html.escape(text)}</li>' for text in texts)
    return f'<h3>{title}</h3><ul>{items}</ul>' if texts else ''


def table(
    rows: Sequence[dict[str, Any]], shade: Callable[[int, int], str] = lambda i, j: ''
) -> str:
    """A table of rows, of which each may lack values."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [''.join(f'<th>{html.escape(str(key))}</th>' for key in keys)]
    for i, row in enumerate(rows):
        cells = (f'<td{shade(i, j)}>{_show(row.get(key))}</td>' for j, key in enumerate(keys))
        lines.append(''.join(cells))
    return f'<div class="scroll"><table><tr>{"</tr><tr>".join(lines)}</tr></table></div>'


def _show(value: Any) -> str:
    if value is None or value != value:
        return '-'
    return f'{value:.3f}' if isinstance(value, float) else html.escape(str(value))


def write_report(
    config: str,
    checkpoint: str,
    page: str | Path,
    device: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Test a trained model on the pictures of its config and write the page of results.

    The numbers go beside the page as JSON; the notes come first.
    """
    page = Path(page)
    if page.is_dir():
        raise UsageError(f'{page} is a folder: give the name of the page in it')
    check_writable(page.parent)
    results = evaluate(config, checkpoint, device)
    report = page.with_name('data.html')
    data = report.read_text(encoding='utf-8') if report.is_file() else ''
    data = data.partition('</h1>')[2].replace('</body></html>', '')
    folder = Path(checkpoint).parent
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    logs = logs or sorted(folder.glob('training/*/vis_data/scalars.json'))
    tiles = read_config(config).get('tiles')
    cut = f' --tiles {tiles}' if tiles else ''
    model, shown = shlex.join([config, checkpoint]), shlex.quote(str(page))
    commands = (
        f'mmffnet train {shlex.quote(config)}\n'
        f'mmffnet report {model} --out {shown}\n'
        f'mmffnet infer {model} PICTURES{cut} --out-dir predictions\n'
        f'mmffnet export {model} --format onnx'
    )
    name = Path(config).stem if Path(config).stem != 'config' else page.resolve().parent.name
    try:
        write_page(page, f'{name}: results', results, commands, logs, data, notes)
    except OSError as error:
        raise UsageError(f'cannot write {page}: {error}') from error
    return page


def write_page(
    path: Path,
    title: str,
    results: Results,
    commands: str,
    scalars: Sequence[Path] = (),
    data: str = '',
    notes: Sequence[str] = (),
) -> None:
    """Write the page, and beside it all numbers as JSON; ``scalars`` are mmengine's logs."""
    tiles = {name: f'{value:.3f}' for name, value in results.summary.items()} | results.facts
    parts = [f'<p>{html.escape(note)}</p>' for note in notes]
    parts += ['<div class="tiles">']
    parts += [f'<div class="tile"><b>{html.escape(v)}</b>{k}</div>' for k, v in tiles.items()]
    parts += ['</div><h2>Classes</h2>']
    if any('threshold' in row for row in results.per_class):
        parts.append('<p>Above the threshold as score, F1 is best for the class.</p>')
    rows = [
        row
        for row in results.per_class
        if any(isinstance(value, float) and value == value for value in row.values())
    ]
    parts.append(table(rows))
    if len(rows) < len(results.per_class):
        parts.append(f'<p>{len(results.per_class) - len(rows)} classes have no example.</p>')
    if results.curves:
        parts += ['<h2>Precision and recall</h2>', _draw_precision(results)]
    parts += ['<h2>What is taken for what</h2>', _confusion(results)]
    parts += ['<p>A row for each true class, a column for what was predicted.</p>']
    if scalars:
        parts += ['<h2>Training</h2>', _draw_training(scalars)]
    for heading, examples in results.examples.items():
        parts.append(f'<h2>{heading}</h2><p>Truth left, prediction right.</p>')
        parts += ['<div class="examples">', *map(_figure, examples), '</div>']
    parts += ['<h2>Data</h2>', data] if data else []
    parts += ['<h2>Commands</h2>', f'<pre>{html.escape(commands)}</pre>']
    write_html(path, title, parts)
    numbers: dict[str, Any] = dict(title=title, summary=results.summary, facts=results.facts)
    numbers |= dict(classes=results.per_class, confusion=results.confusion.tolist())
    # JSON has no number for what could not be computed
    finite = json.loads(json.dumps(numbers), parse_constant=lambda _: None)
    write(path.with_suffix('.json'), json.dumps(finite, indent=1, ensure_ascii=False))


def _confusion(results: Results) -> str:
    """Rows are the truth; classes that do not occur are left out."""
    matrix = results.confusion
    names = [*results.classes, 'nothing'][: len(matrix)]
    kept = [i for i in range(len(matrix)) if matrix[i].any() or matrix[:, i].any()]
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)

    def shade(i: int, j: int) -> str:
        if j == 0:
            return ''
        i, j = kept[i], kept[j - 1]
        colour = '47,111,196' if i == j else '214,84,54'
        return f' style="background:rgba({colour},{0.6 * share[i, j]:.2f})"'

    return table([{'': names[i]} | {names[j]: matrix[i, j] for j in kept} for i in kept], shade)


def _figure(example: Example) -> str:
    images = ''.join(
        f'<img alt="{alt}" loading="lazy" src="{_encode(image)}">'
        for alt, image in (('truth', example.truth), ('prediction', example.prediction))
    )
    caption = f'{html.escape(example.name)}: {100 * example.score:.0f} % right'
    return f'<figure><div class="pair">{images}</div><figcaption>{caption}</figcaption></figure>'


def _encode(image: np.ndarray) -> str:
    small = Image.fromarray(image)
    small.thumbnail((_WIDTH, _WIDTH))
    buffer = io.BytesIO()
    small.save(buffer, 'JPEG', quality=80)
    return f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _chart(xlabel: str, ylabel: str, **settings: Any) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.1), layout='constrained')
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, **settings)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    return figure, axes


def _svg(*figures: Figure) -> str:
    parts = []
    for figure in figures:
        buffer = io.StringIO()
        # as text, which the browser sets, and with ids that differ from those of other charts
        with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': str(id(figure))}):
            figure.savefig(buffer, format='svg')
        parts.append(f'<div><svg{buffer.getvalue().partition("<svg")[2]}</div>')
    return f'<div class="charts">{"".join(parts)}</div>'


def _draw_precision(results: Results) -> str:
    """The curves of the classes, for many of the worst, and F1 over the threshold."""
    order = sorted(results.curves, key=lambda name: float(np.mean(results.curves[name][1])))
    left, axes = _chart('recall', 'precision', xlim=(0, 1), ylim=(0, 1.02))
    right, other = _chart('threshold', 'F1', xlim=(0, 1), ylim=(0, 1.02))
    for name in order[:_LINES]:
        recall, precision, scores = results.curves[name]
        axes.plot(recall, precision, label=name, lw=1.6)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        other.plot(scores[precision > 0], f1[precision > 0], label=name, lw=1.6)
    axes.legend(frameon=False, fontsize=8)
    text = f'<p>The {_LINES} worst of {len(order)} classes.</p>' if len(order) > _LINES else ''
    return text + _svg(left, right)


def _draw_training(scalars: Sequence[Path]) -> str:
    """Loss of the training and metrics of the tests, over the steps."""
    texts = [log.read_text(encoding='utf-8') for log in scalars]  # one for each time it was resumed
    lines = []
    for line in (line for text in texts for line in text.splitlines()):
        with contextlib.suppress(json.JSONDecodeError):  # what was being written when it was killed
            lines.append(json.loads(line))
    by_step = {line['step']: line['loss'] for line in lines if 'loss' in line}
    losses = sorted((step, loss) for step, loss in by_step.items() if math.isfinite(loss))
    left, axes = _chart('step', 'loss')
    if losses:
        axes.plot(*zip(*losses, strict=True), lw=1.2)
        axes.set_ylim(0, 1.2 * float(np.quantile([loss for _, loss in losses], 0.98)))
    tests = [line for line in lines if 'loss' not in line and 'lr' not in line]
    steps = losses and tests and max(line['step'] for line in tests) >= losses[-1][0]
    right, axes = _chart('step' if steps else 'epoch', 'validation')
    wanted = ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'mIoU', 'top1')
    for key in sorted({key for line in tests for key in line if key.endswith(wanted)}):
        points = sorted({line['step']: line[key] for line in tests if key in line}.items())
        axes.plot(*zip(*points, strict=True), marker='o', ms=4, label=key.rpartition('/')[2])
        axes.legend(frameon=False, fontsize=8)
    axes.set_ylim(0, None)
    return _svg(left, right)
