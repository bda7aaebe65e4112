"""Checkpoints that a model is tested with, or that a training starts from, must fit it."""

import re

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from ...checkpoint import load_strict
from ...models import MixerBackbone
from ...registry import HOOKS


@HOOKS.register_module()
class WholeCheckpointHook(Hook):
    """Refuses a checkpoint that does not fit, where mmengine says so in the log and goes on.

    What is tested must be filled completely, and testing never resumes, whatever the config of a
    training that did resume says. A training may begin (``load_from``) from a model with other
    heads, but not with a part of an FFNet.
    """

    priority = 'HIGHEST'

    def before_run(self, runner: Runner) -> None:
        if not isinstance(runner._train_loop, BaseLoop):  # it is built for a training only
            runner._resume = False

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # FlexibleRunner's strategies spread the weights over processes before they load
        if runner._resume or not isinstance(runner, Runner):
            return
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        where = f'the checkpoint {runner._load_from}'
        if not isinstance(runner._train_loop, BaseLoop):
            load_strict(model, checkpoint, where)
        elif isinstance(getattr(model, 'backbone', None), MixerBackbone):
            new = ''.join(f'(?!{re.escape(name)})' for name in model.backbone.optional_names())
            load_strict(model, checkpoint, where, rf'backbone\.{new}')
