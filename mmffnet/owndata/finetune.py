"""From a folder of labelled pictures to a trained model."""

import time
from collections.abc import Callable
from pathlib import Path

from mmffnet.engine import runner
from mmffnet.engine.measure import measure_step
from mmffnet.engine.resume import find_checkpoint
from mmffnet.errors import UsageError

from .convert import split_pictures, write_annotations
from .formats import read_own_data
from .page import write_page
from .recipe import choose, fit_epochs, write_config
from .report import examine, read_pictures
from .results import evaluate


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
    dry_run: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> Path | None:
    """Look at labelled pictures, write a config for them, train and test.

    Args:
        root (str): The folder; nothing in it is changed.
        out (str): The folder for all that is made.
        task (str, optional): 'det', 'instance', 'seg' or 'cls'. Defaults to None, which is the
            most that the labels serve.
        arch (str, optional): See :func:`choose`, as for ``weights`` and ``size``.
        minutes (float, optional): How long to train. Defaults to None.
        epochs (int, optional): Rounds through the pictures. Defaults to None: what ``minutes``
            allow, or 50.
        weights (str, optional): A checkpoint to start from.
        format (str, optional): The format of the labels. Defaults to None, which finds it.
        group_by (str, optional): See :func:`split_pictures`.
        size (int, optional): The longer side of pictures.
        dry_run (bool): Stop after the config and the report. Defaults to False.
        resume (bool): Continue a training that was interrupted. Defaults to False.
        say (Callable): Gets what there is to say. Defaults to print.

    Returns:
        Path | None: The page of results; None after a dry run.

    Raises:
        UsageError: If the data cannot be trained on.
    """
    folder = Path(out)
    config = folder / 'config.py'
    if resume:
        if not config.is_file():
            raise UsageError(f'there is no training to resume: {config} does not exist')
        return _train(config, folder, resume, say)
    data = read_own_data(root, format)
    if task is not None and task != data.task:
        if (task, data.task) != ('det', 'instance'):
            raise UsageError(f'the {data.format} labels of {root} are for {data.task}, not {task}')
        data.task = task
    if config.exists():
        raise UsageError(f'{folder} holds a training: continue it with --resume, or choose --out')
    if folder.resolve().is_relative_to(data.root.resolve()):
        raise UsageError(f'{folder} is inside of the data, which are never changed: choose --out')
    say(f'{len(data.pictures)} pictures with {data.format} labels, {len(data.classes)} classes')
    prints = read_pictures(data)
    say(split_pictures(data, group_by))
    recipe = choose(data, data.task, arch, weights, size)
    report = examine(data, recipe.size, prints)
    say(report.as_text())
    if report.fatal:
        raise UsageError(report.fatal[0])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = write_annotations(data, folder)
    except OSError as error:
        raise UsageError(f'cannot write to {folder}: {error}') from error
    recipe.epochs = epochs or recipe.epochs
    write_config(recipe, data, files, config)
    if minutes and not epochs and not dry_run:
        count = len(data.part('train'))
        step = measure_step(runner.read_config(str(config)))
        test = len(data.part('val')) * step / recipe.batch
        fit_epochs(recipe, count, minutes, step, test)
        write_config(recipe, data, files, config)
    say('\n'.join(['', 'Settings', *(f'- {reason}' for reason in recipe.reasons)]))
    say(f'\nconfig: {config}')
    (folder / 'data.html').write_text(report.as_html(), encoding='utf-8')
    return None if dry_run else _train(config, folder, resume, say)


def _train(config: Path, folder: Path, resume: bool, say: Callable[[str], None]) -> Path:
    training = folder / 'training'
    cfg = runner.read_config(str(config), work_dir=str(training))
    runner.train_config(cfg, 'auto' if resume else None, channels_last=None)
    runner.run(runner.build_runner(cfg), 'train')
    best = sorted(training.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    checkpoint = best[-1] if best else Path(str(find_checkpoint(str(training))))
    page = write_report(str(config), str(checkpoint), folder / 'results.html')
    say(f'results: {page}')
    return page


def write_report(config: str, checkpoint: str, page: str | Path, device: str | None = None) -> Path:
    """Test a trained model on the pictures of its config and write the page of results.

    Args:
        config (str): The config.
        checkpoint (str): The weights.
        page (str | Path): The HTML file to write; numbers go beside it as JSON.
        device (str, optional): Defaults to None, the best there is.
    """
    page, folder = Path(page), Path(checkpoint).parent
    start = time.perf_counter()
    results = evaluate(config, checkpoint, device)
    seconds = time.perf_counter() - start
    report = page.with_name('data.html')
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    facts = {
        'million parameters': f'{results.parameters / 1e6:.2f}',
        's for the test': f'{seconds:.0f}',
    }
    commands = (
        f'mmffnet train {config}                # again, after changes\n'
        f'mmffnet infer {config} {checkpoint} PICTURES --out-dir predictions\n'
        f'mmffnet export {config} {checkpoint} --format onnx'
    )
    write_page(
        page,
        f'{Path(config).resolve().parent.name}: results',
        results,
        commands,
        facts,
        logs[-1] if logs else None,
        report.read_text(encoding='utf-8') if report.is_file() else '',
    )
    return page
