"""The page of results: one HTML file that holds all it shows."""

import base64
import html
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mmffnet.checkpoint import atomic_write

from .report import html_table
from .results import Example, Results

_WIDTH = 640  # pixels of a painted picture
_STYLE = """
:root { color-scheme: light; --ink: #1c1f24; --line: #d9dde3; --blue: #2f6fc4 }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1.2rem; color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; background: #fff }
h1 { font-size: 1.6rem; line-height: 1.2 } h2 { margin-top: 2.2rem; font-size: 1.25rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem }
.tile b { display: block; font-size: 1.5rem; color: var(--blue) }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .92rem }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto }
figure { margin: 0 0 1.2rem } figcaption { font-size: .9rem; overflow-wrap: anywhere }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem } .pair img { width: 100% }
@media (min-width: 60rem) { .examples { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem } }
pre { background: #f4f5f7; padding: .8rem; border-radius: .5rem; overflow-x: auto }
"""


def write_page(
    path: Path,
    title: str,
    results: Results,
    commands: str,
    facts: dict[str, Any],
    scalars: Path | None = None,
    data: str = '',
) -> None:
    """Write the page, and beside it all numbers as JSON.

    Args:
        path (Path): The HTML file.
        title (str): The title.
        results (Results): What to show.
        commands (str): How to repeat, use and export.
        facts (dict): Size, speed and the like, by name.
        scalars (Path, optional): mmengine's log of the training. Defaults to None.
        data (str): HTML about the data. Defaults to ''.
    """
    tiles = {name: f'{value:.3f}' for name, value in results.summary.items()} | facts
    parts = [
        f'<h1>{html.escape(title)}</h1>',
        '<div class="tiles">',
        *(f'<div class="tile"><b>{html.escape(str(v))}</b>{k}</div>' for k, v in tiles.items()),
        '</div>',
        '<h2>Classes</h2>',
        html_table(_rows(results)),
    ]
    if any('threshold' in row for row in results.per_class):
        parts.append('<p>The threshold is the score above which F1 is best for the class.</p>')
    if results.curves:
        parts += ['<h2>Precision and recall</h2>', _svg(_draw_precision(results))]
    parts += ['<h2>What is taken for what</h2>', _confusion(results)]
    if scalars is not None and scalars.is_file():
        parts += ['<h2>Training</h2>', _svg(_draw_curves(scalars))]
    for heading, examples in (
        ('The worst pictures', results.worst),
        ('Other pictures', results.others),
    ):
        if examples:
            parts.append(f'<h2>{heading}</h2><p>Truth and prediction.</p><div class="examples">')
            parts += [*map(_figure, examples), '</div>']
    if data:
        parts += ['<h2>Data</h2>', data]
    parts += ['<h2>Commands</h2>', f'<pre>{html.escape(commands)}</pre>']
    head = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>'
    )
    with atomic_write(path) as file:
        file.write(f'{head}{"".join(parts)}</body></html>\n'.encode())
    numbers = dict(
        title=title,
        summary=results.summary,
        facts=facts,
        classes=results.per_class,
        confusion=results.confusion.tolist(),
    )
    with atomic_write(path.with_suffix('.json')) as file:
        file.write(json.dumps(_finite(numbers), indent=1, ensure_ascii=False).encode())


def _finite(node: Any) -> Any:
    """JSON has no number for what could not be computed."""
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def _rows(results: Results) -> list[list[str]]:
    keys = list(dict.fromkeys(key for row in results.per_class for key in row))
    rows = [keys]
    for row in results.per_class:
        values = [row.get(key, float('nan')) for key in keys]
        rows.append(
            [v if isinstance(v, str) else '-' if math.isnan(v) else f'{v:.3f}' for v in values]
        )
    return rows


def _confusion(results: Results) -> str:
    """Rows are the truth; classes that do not occur are left out."""
    matrix = results.confusion
    names = [*results.classes, 'nothing'][: len(matrix)]
    kept = [i for i in range(len(matrix)) if matrix[i].any() or matrix[:, i].any()]
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    lines = ['<div class="scroll"><table><tr><th>truth \\ prediction</th>']
    lines += [f'<th>{html.escape(names[j])}</th>' for j in kept] + ['</tr>']
    for i in kept:
        lines.append(f'<tr><td>{html.escape(names[i])}</td>')
        for j in kept:
            strength = share[i, j] * 0.6
            colour = '47,111,196' if i == j else '214,84,54'
            lines.append(
                f'<td style="background:rgba({colour},{strength:.2f})">{matrix[i, j]}</td>'
            )
        lines.append('</tr>')
    return ''.join([*lines, '</table></div>'])


def _figure(example: Example) -> str:
    images = ''.join(
        f'<img alt="{alt}" src="{_encode(image)}">'
        for alt, image in (('truth', example.truth), ('prediction', example.prediction))
    )
    caption = f'{html.escape(example.name)}, {100 * example.score:.0f} % right'
    return f'<figure><div class="pair">{images}</div><figcaption>{caption}</figcaption></figure>'


def _encode(image: np.ndarray) -> str:
    small = Image.fromarray(image)
    small.thumbnail((_WIDTH, _WIDTH))
    buffer = io.BytesIO()
    small.save(buffer, 'JPEG', quality=80)
    return f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format='svg', bbox_inches='tight')
    return buffer.getvalue().partition('<svg')[2].join(['<svg', ''])


def _draw_precision(results: Results) -> Figure:
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    for name, (recall, precision) in list(results.curves.items())[:12]:
        axes.plot(recall, precision, label=name, lw=1.6)
    axes.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc='upper left', bbox_to_anchor=(1, 1))
    return figure


def _draw_curves(scalars: Path) -> Figure:
    """Loss of the training and metrics of the tests, over the steps."""
    lines = [json.loads(line) for line in scalars.read_text(encoding='utf-8').splitlines()]
    losses = [(line['step'], line['loss']) for line in lines if 'loss' in line]
    tests = [line for line in lines if 'loss' not in line and 'lr' not in line]
    figure = Figure(figsize=(9, 3.4), layout='constrained')
    left, right = figure.subplots(1, 2)
    if losses:
        left.plot(*zip(*losses, strict=True), lw=1.2)
    left.set(xlabel='step', ylabel='loss', ylim=(0, None))
    wanted = ('bbox_mAP', 'segm_mAP', 'mIoU', 'top1')
    for key in sorted({key for line in tests for key in line if key.endswith(wanted)}):
        points = [(line['step'], line[key]) for line in tests if key in line]
        right.plot(*zip(*points, strict=True), marker='o', ms=4, label=key.rpartition('/')[2])
    right.set(xlabel='epoch', ylim=(0, None))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
