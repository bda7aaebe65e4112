"""The model of a config: built, loaded, and how its classes are called."""

import copy
import logging
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader

from ..checkpoint import load_strict
from ..config_types import find_scope, find_type
from ..errors import UsageError, describe_error
from ..visualization import Legend
from .runner import innermost_dataset


def scope_of(cfg: Config) -> AbstractContextManager:
    """Within it, names are looked up in the package that a config is for."""
    return DefaultScope.overwrite_default_scope(find_scope(cfg) or 'mmengine')


def build_model(cfg: Config, device: str = 'cpu') -> Any:
    """Builds a config's model in evaluation mode, with random weights and without SyncBN.

    Raises:
        UsageError: If the config has no model or it cannot be built.
    """
    if not cfg.get('model'):
        raise UsageError(f'the config {cfg.filename} has no model')
    settings = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') and {'backbone', 'module'} & set(settings):
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)  # as the runner does
    try:
        with scope_of(cfg), warnings.catch_warnings(), torch.device(device):
            warnings.simplefilter('ignore')  # of losses, which are not needed here
            return revert_sync_batchnorm(MODELS.build(settings)).eval()
    except (AssertionError, AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        text = f'cannot build the model of the config: {describe_error(error)}'
        raise UsageError(text) from error


def load_model(cfg: Config, checkpoint: str) -> tuple[Any, dict[str, Any]]:
    """Builds a config's model and fills all of it from a checkpoint.

    Returns:
        tuple: The model on the CPU, in evaluation mode, and the metadata of the checkpoint.

    Raises:
        UsageError: If the model cannot be built, or the checkpoint cannot be read or does not fit.
    """
    model = build_model(cfg)
    where = f'the checkpoint {checkpoint}'
    try:
        raw = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', logger='silent')
        network = model.module if isinstance(model, BaseTTAModel) else model
        unexpected = load_strict(network, raw, where)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(str(error)) from error
    if unexpected:
        text = f'{where} has tensors that the model lacks ({len(unexpected)}): {unexpected[0]}'
        print_log(text + ', ...' * (len(unexpected) > 1), 'current', logging.WARNING)
    meta = raw.get('meta') if isinstance(raw, dict) else None
    return model, meta if isinstance(meta, dict) else {}


def find_legend(cfg: Config, meta: dict[str, Any]) -> Legend:
    """Finds names and colours of the classes.

    Names come from the checkpoint, else from the config's data set, which is not built, as the data
    need not be there. Colours of the data set are used for its own classes only.
    """
    dataset = innermost_dataset(cfg, 'test')
    saved = {str(key).lower(): value for key, value in (meta.get('dataset_meta') or meta).items()}
    known = dict(getattr(find_type(dataset.get('type'), DATASETS, find_scope(cfg)), 'METAINFO', {}))
    known.update(dataset.get('metainfo') or {})
    info = next((info for info in (saved, known) if info.get('classes')), None)
    if info is None:
        return Legend(())
    classes = info['classes']
    classes = (classes,) if isinstance(classes, str) else tuple(classes)
    for palette in (info.get('palette'), known.get('palette')):
        if isinstance(palette, list | tuple) and len(palette) == len(classes):
            return Legend(classes, palette)
    return Legend(classes)
