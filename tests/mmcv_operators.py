"""Calls mmcv's own wrappers with mmffnet's operators, and with the compiled ones where they are."""

import importlib
from contextlib import contextmanager

import pytest
import torch

from mmffnet_cli.environment import environment

DEVICES = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']
COMPILED = importlib.import_module('mmcv._ext') if environment()['ops'] == 'mmcv (native)' else None
WRAPPERS = [
    importlib.import_module(f'mmcv.ops.{name}')
    for name in (
        'nms',
        'bbox',
        'roi_align',
        'roi_pool',
        'focal_loss',
        'deform_conv',
        'modulated_deform_conv',
        'multi_scale_deform_attn',
        'carafe',
        'psa_mask',
        'masked_conv',
        'deform_roi_pool',
        'info',
    )
]


@contextmanager
def operators(module):
    """Let mmcv's wrappers call the native functions of this module."""
    with pytest.MonkeyPatch.context() as patch:
        for wrapper in WRAPPERS:
            patch.setattr(wrapper, 'ext_module', module)
        yield


def compare(function, *args, compiled=True, rtol=1e-5, atol=1e-5):
    """Result of function(*args) with our operators, after comparing it with the compiled ones'."""
    result = function(*args)
    if COMPILED and compiled:
        with operators(COMPILED):
            torch.testing.assert_close(function(*args), result, rtol=rtol, atol=atol)
    return result


def output_and_gradients(function, *inputs):
    """Output, and gradients of its product with a fixed tensor, for all floating inputs."""
    inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    output = function(*inputs)
    weight = torch.linspace(-1, 1, output.numel(), device=output.device, dtype=output.dtype)
    (output * weight.view_as(output)).sum().backward()
    return [output.detach(), *(x.grad for x in inputs if x.grad is not None)]
