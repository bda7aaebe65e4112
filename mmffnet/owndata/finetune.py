"""From a folder of labelled pictures to a trained model."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from mmffnet.benchmark.page import list_items, write_html, write_report
from mmffnet.checkpoint import read_checkpoint, save_atomically
from mmffnet.engine import runner
from mmffnet.engine.measure import measure_step
from mmffnet.engine.resume import find_checkpoint
from mmffnet.errors import UsageError
from mmffnet.inference.tiles import Tiling

from .convert import paint_outlines, split_pictures, write_annotations
from .formats import outline_boxes, read_own_data
from .recipe import choose, fit_epochs, halve_batch, write_config
from .report import examine, read_pictures
from .tiles import cut_into_tiles


def finetune(
    root: str,
    out: str,
    task: str | None = None,
    arch: str | None = None,
    minutes: float | None = None,
    epochs: int | None = None,
    weights: str | None = None,
    format: str | None = None,
    group_by: str | None = None,
    size: int | None = None,
    tiles: int | None = None,
    dry_run: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> Path | None:
    """Look at labelled pictures, write a config for them, train, test, and return the page.

    Nothing in the folder ``root`` is changed, all that is made goes to ``out``. Other arguments are
    the options of ``mmffnet finetune``: what is None is chosen. The epochs are those that the
    minutes allow, or 50; a dry run stops after the config and the report, and returns None.
    """
    folder = Path(out)
    config = folder / 'config.py'
    if resume:
        if not config.is_file():
            raise UsageError(f'there is no training to resume: {config} does not exist')
        return _train(config, folder, resume, say)
    tiling = None if tiles is None else Tiling(tiles)
    if weights is not None:
        runner.check_checkpoint(weights)
    if config.exists():
        raise UsageError(f'{config} exists: train with it by --resume, or choose another --out')
    data = read_own_data(root, format)
    here, there = folder.resolve(), data.root.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UsageError(f'{folder} holds or is in the data, which are never changed: choose --out')
    page = folder / 'data.html'
    if folder.is_dir() and any(folder.iterdir()) and not page.is_file():
        raise UsageError(f'{folder} holds other files, which would be replaced: choose --out')
    if task == 'instance' and data.task == 'det' and data.has_outlines:
        outline_boxes(data)
    if outlines := task == 'seg' and data.task == 'instance':
        data.task = 'seg'
    if task not in (None, data.task, 'det') or (task == 'det' and data.task in ('seg', 'cls')):
        raise UsageError(f'the {data.format} labels of {root} are for {data.task}, not {task}')
    data.task = task or data.task
    if data.task == 'seg' and len(data.classes) + outlines > 255:
        raise UsageError(f'{len(data.classes)} classes are too many for masks of 8 bits')
    if tiling and data.task == 'cls':
        raise UsageError('--tiles is for labels of objects or pixels, these are of whole pictures')
    data.tiles = tiles
    say(f'{len(data.pictures)} pictures with {data.format} labels, {len(data.classes)} classes')
    prints = read_pictures(data)
    say(split_pictures(data, group_by) + '\n')
    recipe = choose(data, arch, weights, size or tiles)
    report = examine(data, recipe.size, prints)
    say(report.as_text())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        title = f'{there.name}: data'
        write_html(page, title, [report.as_html()])
        if report.fatal:
            raise UsageError(f'{report.fatal[0]}; all that was found: {page}')
        if outlines:
            paint_outlines(data, folder / 'masks')
        if tiling:
            data = cut_into_tiles(data, tiling, folder / 'tiles' / data.root.name)
            recipe = choose(data, arch, weights, size or tiles)
            say(f'{len(data.pictures)} tiles of {tiles} pixels')
        files = write_annotations(data, folder)
        recipe.epochs = epochs or recipe.epochs
        write_config(recipe, data, files, config)
        budget = None if epochs else minutes
        while budget or torch.cuda.is_available():
            try:
                step = measure_step(runner.read_config(str(config)))
                break
            except torch.OutOfMemoryError:
                halve_batch(recipe)
            write_config(recipe, data, files, config)
        if budget:
            fit_epochs(recipe, data, budget, step)
            write_config(recipe, data, files, config)
        write_html(page, title, [report.as_html(), list_items('Settings', recipe.reasons)])
    except BaseException as error:
        if config.is_file():  # what is not finished would be taken for a training
            config.unlink()
        if isinstance(error, OSError) and _is_of(error, folder):
            raise UsageError(f'cannot write to {folder}: {error}') from error
        raise
    say('\n- '.join(['Settings\n', *recipe.reasons]) + f'\n\nconfig: {config}')
    return None if dry_run else _train(config, folder, resume, say)


def _is_of(error: OSError, folder: Path) -> bool:
    """Whether an error is one of writing to a folder; a full disk comes without a name."""
    name = error.filename
    return name is None or Path(str(name)).resolve().is_relative_to(folder.resolve())


def _train(config: Path, folder: Path, resume: bool, say: Callable[[str], None]) -> Path:
    training = folder / 'training'
    cfg = runner.read_config(str(config), work_dir=str(training))
    runner.train_config(cfg, 'auto' if resume else None, channels_last=None)
    runner.run(runner.build_runner(cfg), 'train')
    best = sorted(training.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    checkpoint = best[-1] if best else Path(str(find_checkpoint(str(training))))
    content = read_checkpoint(checkpoint)
    weights = folder / f'model.{"safetensors" if find_spec("safetensors") else "pth"}'
    save_atomically({key: content[key] for key in ('meta', 'state_dict')}, weights, force=True)
    say(f'weights: {weights}')
    page = write_report(str(config), str(checkpoint), folder / 'results.html')
    say(f'results: {page}')
    return page
