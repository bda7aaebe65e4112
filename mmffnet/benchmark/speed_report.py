"""What people see of a speed measurement: table, CSV, JSON, accuracy-latency plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .report import describe_machine, markdown, write, write_csv, write_json
from .speed import Measurement, Spread, speedup, spread


def table(measurements: Sequence[Measurement], batch: int) -> str:
    """The table for people, in Markdown."""
    start, firsts = measurements[0], _firsts(measurements)
    own_forms = {str(first.form) for first in firsts}
    # an exported file has no form but its own
    own_name = f'x {own_forms.pop()}' if len(own_forms) == 1 else 'x first form'
    lines = []
    for m, first in zip(measurements, firsts, strict=True):
        line = {
            'network': m.network.name,
            'form': str(m.form),
            'input': 'x'.join(map(str, m.size)),
            'params (M)': f'{m.parameters / 1e6:.1f}' if m.parameters else '-',
            'ms / image': _show(m.milliseconds(batch), 1),
            own_name: _show(speedup(first, m), 2),
        }
        if any(other.network is not start.network for other in measurements):
            line[f'x {start.name}'] = _show(speedup(start, m), 2)
        if any(other.memory for other in measurements):
            line['memory (MB)'] = f'{m.memory / 1e6:.0f}' if m.memory else '-'
        line['deviation'] = '-' if m.deviation is None else f'{m.deviation:.0e}'
        lines.append(line)
    problems = [f'- {m.name}: {m.problem}\n' for m in measurements if m.problem]
    return markdown(lines) + ''.join(['\n' * bool(problems), *problems])


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
        for name, values in (('ms', m.milliseconds()), ('speedup', speedup(first, m))):
            for i, key in enumerate(Spread._fields):
                row[f'{name}_{key}'] = None if values is None else round(values[i], 4)
        found.append(dict(row, deviation=m.deviation, memory=m.memory, problem=m.problem))
    return found


def save(
    measurements: Sequence[Measurement], out: Path, settings: dict[str, Any], title: str
) -> list[Path]:
    """Writes speed.md, speed.csv, speed.json (every single time), and speed.png where networks
    have a published accuracy; returns the files.

    ``settings`` are how it was measured, ``batch``, ``device`` and others; the title says the same.
    """
    batch = settings['batch']
    files = [out / f'speed.{ending}' for ending in ('md', 'csv', 'json', 'png')]
    write(files[0], f'# {title[:1].upper()}{title[1:]}\n\n{table(measurements, batch)}')
    write_csv(files[1], rows(measurements, batch))
    rounds = [
        dict(network=m.network.name, form=str(m.form), seconds=[round(s, 6) for s in m.seconds])
        for m in measurements
    ]
    machine = describe_machine(settings['device'])
    write_json(files[2], dict(environment=machine, **settings, rounds=rounds))
    return files if plot(measurements, batch, files[3], title) else files[:3]


def plot(measurements: Sequence[Measurement], batch: int, path: Path, title: str) -> bool:
    """Draws accuracy over latency, a panel for each form; says whether there was anything to draw.

    Networks appear at the size that their accuracy was published for, and nowhere else.
    """
    from matplotlib.figure import Figure

    known = [m for m in measurements if m.seconds and m.network.accuracy]
    known = [m for m in known if m.size == m.network.size]
    forms = list(dict.fromkeys(m.form for m in known))
    if len({m.network.name for m in known}) < 2:
        return False
    columns = min(3, len(forms))
    lines = -(-len(forms) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.2 * lines + 0.6), dpi=110, layout='constrained')
    axes = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axis in axes[len(forms) :]:
        axis.remove()
    for form, axis in zip(forms, axes, strict=False):
        points = [m for m in known if m.form == form]
        _draw([m for m in points if not m.network.ours], batch, axis, color='#34495e', fmt='s')
        _draw([m for m in points if m.network.ours], batch, axis, color='#c0392b', fmt='o-')
        axis.set_title(str(form), fontsize=10)
        axis.set_xscale('log')
        axis.xaxis.set_major_formatter('{x:g}')
        axis.xaxis.set_minor_formatter('{x:g}')
        axis.tick_params(which='both', labelsize=7)
        axis.grid(True, which='both', color='#dddddd', linewidth=0.5)
        axis.margins(x=0.18, y=0.12)
    figure.supxlabel('milliseconds per image (median and quartiles)', fontsize=10)
    figure.supylabel('published ImageNet-1k top-1 (%)', fontsize=10)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True


def _draw(points: Sequence[Measurement], batch: int, axis: Any, **style: Any) -> None:
    spreads = [spread([1e3 * s / batch for s in m.seconds]) for m in points]
    x, y = [s.median for s in spreads], [m.network.accuracy for m in points]
    error = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
    axis.errorbar(x, y, xerr=error, markersize=5, elinewidth=1, linewidth=1.2, **style)
    for m, here, top1 in zip(points, x, y, strict=True):
        # ours above the line between them, the others below their points
        place, side = ((-6, 5), 'right') if m.network.ours else ((0, -12), 'center')
        label = dict(textcoords='offset points', fontsize=8, color=style['color'], ha=side)
        axis.annotate(m.network.name, (here, top1), place, **label)


def _firsts(measurements: Sequence[Measurement]) -> list[Measurement]:
    """For each, the first form of the same network."""
    firsts: dict[str, Measurement] = {}
    return [firsts.setdefault(m.network.name, m) for m in measurements]


def _show(values: Spread | None, digits: int) -> str:
    if values is None:
        return '-'
    return f'{values.median:.{digits}f} [{values.low:.{digits}f}, {values.high:.{digits}f}]'
