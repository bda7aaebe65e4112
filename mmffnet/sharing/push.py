"""A trained model as a repository of the Hugging Face Hub: weights, config and model card."""

import re
import tempfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mmengine.config import Config

from mmffnet.checkpoint import save_atomically
from mmffnet.checkpoint.hub import REPOSITORY, explained, import_hub
from mmffnet.engine.models import find_legend, load_model
from mmffnet.engine.runner import read_config
from mmffnet.errors import UsageError
from mmffnet.inference.models import OpenMMLabModel
from mmffnet.version import __version__

from .card import model_card, read_published

WEIGHTS, CONFIG, CARD = 'model.safetensors', 'config.py', 'README.md'
_KEPT = ('epoch', 'iter', 'reparameterized')
_OF_A_RUN = ('work_dir', 'load_from', 'resume', 'launcher')


def push(
    repository: str,
    cfg: Config,
    checkpoint: str,
    results: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
    private: bool = False,
    dry_run: str | None = None,
) -> str:
    """Write a trained model as a repository, upload it, and return what was done, for people.

    Arguments are those of ``mmffnet push``: ``results`` is the ``results.json`` of a report, or a
    metafile, and ``dry_run`` a folder to write to in place of uploading.

    Raises:
        UsageError: If the model or its results cannot be read.
        OSError: If the hub cannot be reached or refuses it.
    """
    if not re.fullmatch(REPOSITORY, repository):
        raise UsageError(f'the repository must be OWNER/NAME, not {repository!r}')
    if dry_run and Path(dry_run).exists() and any(Path(dry_run).iterdir()):
        raise UsageError(f'{dry_run} is not empty: choose another folder for --dry-run')
    if cfg.get('default_scope') not in OpenMMLabModel.TASKS:
        raise UsageError(f'models of {", ".join(OpenMMLabModel.TASKS)} can be pushed, no others')
    import_hub('mmffnet push')
    published = read_published(results, cfg)
    published.dataset = dataset or published.dataset
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(dry_run or temporary)
        model, classes = _write_model(folder, cfg, checkpoint)
        card = model_card(repository, cfg, model, classes, published, license)
        (folder / CARD).write_text(card, encoding='utf-8')
        if dry_run:
            return f'{folder} holds what would go to {repository}; nothing was uploaded'
        return _upload(repository, folder, private)


def _write_model(folder: Path, cfg: Config, checkpoint: str) -> tuple[Any, list[str]]:
    """Write weights and config, and load them again; returns the model and its classes."""
    model, meta = load_model(cfg, checkpoint)
    legend = find_legend(cfg, meta)
    named = dict(classes=legend.classes, palette=legend.palette)
    known: dict[str, Any] = {key: meta[key] for key in _KEPT if key in meta}
    known.update(mmffnet_version=__version__, dataset_meta={k: v for k, v in named.items() if v})
    save_atomically(dict(state_dict=model.state_dict(), meta=known), folder / WEIGHTS)
    settings = {k: v for k, v in cfg.to_dict().items() if k not in _OF_A_RUN}
    Config(_without_places(settings)).dump(folder / CONFIG)
    load_model(read_config(str(folder / CONFIG)), str(folder / WEIGHTS))
    return model, [str(name) for name in legend.classes]


def _without_places(node: Any) -> Any:
    """Absolute paths are of this machine and nobody else's business: their last part remains."""
    if isinstance(node, dict):
        return {key: _without_places(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(map(_without_places, node))
    if isinstance(node, str) and (
        node.startswith(('~', 'file://'))
        or PurePosixPath(node).is_absolute()
        or PureWindowsPath(node).is_absolute()
    ):
        return PureWindowsPath(node).name or node  # which takes both kinds of slashes
    return node


def _upload(repository: str, folder: Path, private: bool) -> str:
    """Upload the files of a folder as one commit."""
    hub = import_hub(repository)
    with explained(repository):
        api = hub.HfApi(library_name='mmffnet', library_version=__version__)
        api.create_repo(repository, private=private or None, exist_ok=True)
        public = private and not api.model_info(repository).private
    if public:  # the hub leaves one that exists as it is
        raise UsageError(f'{repository} exists and is public: nothing was uploaded')
    files = [hub.CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
    with explained(repository):
        text = f'Push {WEIGHTS} with mmffnet {__version__}'
        commit = api.create_commit(repository, files, commit_message=text)
    return f'{commit.commit_url}: weights are at hf://{repository}@{commit.oid}/{WEIGHTS}'
