"""How long the steps of a training take on this machine."""

import statistics
import time
from itertools import islice

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from .models import build_model, scope_of
from .runner import keeps_channels_last


def measure_step(cfg: Config, steps: int = 8) -> float:
    """Seconds of a training step, the loading of its data included.

    Of the steps the first third does not count. The config stays as it is.
    """
    model = build_model(cfg, get_device()).train()
    if keeps_channels_last(cfg):
        model.to(memory_format=torch.channels_last)
    with scope_of(cfg):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        loader = Runner.build_dataloader(cfg.train_dataloader)
    times = []
    start = time.perf_counter()
    for batch in islice(iter(loader), steps):
        model.train_step(batch, optimizer)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
    return statistics.median(times[len(times) // 3 :])
