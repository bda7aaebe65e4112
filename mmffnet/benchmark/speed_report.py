"""What people see of a speed measurement: table, CSV, JSON, accuracy-latency plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .report import describe_machine, markdown, write, write_csv, write_json
from .speed import Measurement, Spread, speedup, spread


def table(measurements: Sequence[Measurement], batch: int) -> str:
    """The table for people, in Markdown."""
    start = measurements[0]
    several = len({m.network.name for m in measurements}) > 1
    training = any(m.memory for m in measurements)
    firsts = {str(first.form) for first in _firsts(measurements)}
    # an exported file has no form but its own
    own_name = f'x {firsts.pop()}' if len(firsts) == 1 else 'x first form'
    lines = []
    for found, first in zip(measurements, _firsts(measurements), strict=True):
        own, same = speedup(first, found), speedup(start, found)
        ms = spread([1e3 * s / batch for s in found.seconds]) if found.seconds else None
        line = {
            'network': found.network.name,
            'form': str(found.form),
            'input': 'x'.join(map(str, found.size)),
            'params (M)': f'{found.parameters / 1e6:.1f}' if found.parameters else '-',
            'ms / image': _show(ms, 1),
            own_name: _show(own, 2),
        }
        if several:
            line[f'x {start.name}'] = _show(same, 2)
        if training:
            line['memory (MB)'] = f'{found.memory / 1e6:.0f}' if found.memory else '-'
        line['deviation'] = '-' if found.deviation is None else f'{found.deviation:.0e}'
        lines.append(line)
    text = markdown(lines)
    problems = [f'- {m.name}: {m.problem}' for m in measurements if m.problem]
    return text + ('\n' + '\n'.join(problems) + '\n' if problems else '')


def rows(measurements: Sequence[Measurement], batch: int) -> list[dict[str, Any]]:
    """The same for machines: times of a batch in milliseconds, speed-ups over the first form."""
    found = []
    for m, first in zip(measurements, _firsts(measurements), strict=True):
        row: dict[str, Any] = dict(
            network=m.network.name,
            form=str(m.form),
            batch=batch,
            height=m.size[0],
            width=m.size[1],
            parameters=m.parameters or None,
            rounds=len(m.seconds),
        )
        for name, values in (
            ('ms', spread([1e3 * s for s in m.seconds]) if m.seconds else None),
            ('speedup', speedup(first, m)),
        ):
            for key in ('median', 'low', 'high'):
                row[f'{name}_{key}'] = None if values is None else round(getattr(values, key), 4)
        row.update(deviation=m.deviation, memory=m.memory, problem=m.problem)
        found.append(row)
    return found


def save(
    measurements: Sequence[Measurement], out: Path, settings: dict[str, Any], title: str
) -> list[Path]:
    """Writes speed.md, speed.csv, speed.json (every single time), and speed.png where networks
    have a published accuracy.

    Args:
        measurements (Sequence[Measurement]): What was measured.
        out (Path): The folder.
        settings (dict): How it was measured: ``batch``, ``device``, ``threads`` and others.
        title (str): One line that says the same.

    Returns:
        list[Path]: The files.
    """
    batch = settings['batch']
    text = f'{title}\n\n{table(measurements, batch)}'
    files = [out / 'speed.md', out / 'speed.csv', out / 'speed.json']
    write(files[0], text)
    write_csv(files[1], rows(measurements, batch))
    seconds = [
        dict(network=m.network.name, form=str(m.form), seconds=[round(s, 6) for s in m.seconds])
        for m in measurements
    ]
    content = dict(environment=describe_machine(settings['device']), **settings, rounds=seconds)
    write_json(files[2], content)
    if plot(measurements, batch, out / 'speed.png', title):
        files.append(out / 'speed.png')
    return files


def plot(measurements: Sequence[Measurement], batch: int, path: Path, title: str) -> bool:
    """Draws accuracy over latency, a panel for each form; says whether there was anything to draw.

    Networks appear at the size that their accuracy was published for, and nowhere else.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    known = [m for m in measurements if m.seconds and m.network.accuracy and _at_its_size(m)]
    forms = list(dict.fromkeys(m.form for m in known))
    if len({m.network.name for m in known}) < 2:
        return False
    columns = min(3, len(forms))
    lines = -(-len(forms) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.2 * lines + 0.6), dpi=110, layout='constrained')
    axes = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axis in axes[len(forms) :]:
        axis.remove()
    most = max(1e3 * spread(m.seconds).median / batch for m in known)
    for form, axis in zip(forms, axes, strict=False):
        points = [m for m in known if m.form == form]
        _draw(
            [m for m in points if not m.network.ours], batch, axis, most, color='#34495e', fmt='s'
        )
        _draw([m for m in points if m.network.ours], batch, axis, most, color='#c0392b', fmt='o-')
        axis.set_title(str(form), fontsize=10)
        axis.set_xscale('log')
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter('{x:g}')
        axis.xaxis.set_minor_formatter('')
        axis.grid(True, which='both', color='#dddddd', linewidth=0.5)
        axis.margins(x=0.18, y=0.12)
    figure.supxlabel('milliseconds per image (median and quartiles)', fontsize=10)
    figure.supylabel('published ImageNet-1k top-1 (%)', fontsize=10)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True


def _draw(points: Sequence[Measurement], batch: int, axis: Any, most: float, **style: Any) -> None:
    spreads = [spread([1e3 * s / batch for s in m.seconds]) for m in points]
    x, y = [s.median for s in spreads], [m.network.accuracy for m in points]
    error = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
    axis.errorbar(x, y, xerr=error, markersize=5, elinewidth=1, linewidth=1.2, **style)
    for m, here, top1 in zip(points, x, y, strict=True):
        # ours beside the line between them; those at the right edge have no room beyond it
        left = m.network.ours or here > 0.85 * most
        place = (-6, 5) if m.network.ours else (-5 if left else 5, -11)
        label = dict(textcoords='offset points', fontsize=8, color=style['color'])
        axis.annotate(m.network.name, (here, top1), place, ha='right' if left else 'left', **label)


def _at_its_size(measurement: Measurement) -> bool:
    return measurement.size == measurement.network.size


def _firsts(measurements: Sequence[Measurement]) -> list[Measurement]:
    """For each, the first form of the same network."""
    firsts: dict[str, Measurement] = {}
    return [firsts.setdefault(m.network.name, m) for m in measurements]


def _show(values: Spread | None, digits: int) -> str:
    if values is None:
        return '-'
    return f'{values.median:.{digits}f} [{values.low:.{digits}f}, {values.high:.{digits}f}]'
