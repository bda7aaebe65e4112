"""Parameters and multiply-adds of a model, counted while it runs without its memory."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from ..deploy.reparameterize import run_tensors
from .networks import Network, fuse


class Cost(NamedTuple):
    """What one picture costs."""

    parameters: int
    macs: int  #: Multiply-adds of convolutions and matrix products, which papers call FLOPs
    parts: dict[str, int]  #: The same for each module that has some, by its name
    #: Numbers of values that pass ``norm`` (batch norms), ``bias`` (of convolutions) and ``relu``;
    #: some papers add those
    values: dict[str, int]


def count(model: nn.Module, size: Sequence[int]) -> Cost:
    """Counts what one picture of some height and width costs.

    On the device 'meta' nothing is computed; models whose work depends on their results, as that of
    two-stage detectors does, must be elsewhere.
    """
    model.eval()
    parameters = list(model.parameters())
    values = dict.fromkeys(('norm', 'bias', 'relu'), 0)

    def look(module: nn.Module, args: Any, out: Tensor) -> None:
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            values['bias'] += out.numel()
        elif isinstance(module, nn.ReLU):
            values['relu'] += out.numel()
        elif isinstance(module, _BatchNorm):
            values['norm'] += out.numel()

    hook = nn.modules.module.register_module_forward_hook(look)
    image = torch.zeros(1, 3, *size, device=parameters[0].device)
    with hook, torch.no_grad(), FlopCounterMode(display=False) as counter:
        run_tensors(model, image)
    counts = {
        name.partition('.')[2]: sum(found.values()) // 2
        for name, found in counter.get_flop_counts().items()
    }
    ran = set(counts)
    # a module whose methods are called in other ways than by itself is the sum of those in it
    for name in sorted(counts, key=lambda name: -name.count('.')):
        parent = name.rpartition('.')[0]
        if parent and parent not in ran:
            counts[parent] = counts.get(parent, 0) + counts[name]
    return Cost(
        parameters=sum(parameter.numel() for parameter in parameters),
        macs=counter.get_total_flops() // 2,
        parts={name: counts[name] for name, _ in model.named_modules() if name and name in counts},
        values=values,
    )


def count_network(network: Network, size: Sequence[int]) -> tuple[Cost, Cost]:
    """Counts what a network costs as it is trained, and re-parameterised."""
    for device in ('meta', 'cpu'):  # what is chosen by score needs numbers
        torch.manual_seed(0)  # and depends on the weights
        try:
            model = network.build(device)
            return count(model, size), count(fuse(model), size)
        except (RuntimeError, TypeError) as error:
            problem = error
    height, width = size
    reason = str(problem).partition('\n')[0]
    raise ValueError(f'{network.name} cannot take {height} x {width}: {reason}') from problem


def describe(name: str, size: Sequence[int], trained: Cost, fused: Cost, depth: int = 0) -> str:
    """Says what a network costs, and what its modules do down to some depth."""
    lines = [f'{name} at {size[0]} x {size[1]} (height x width)']
    for text, cost in (('as trained', trained), ('fused', fused)):
        lines.append(
            f'{text:10}  {cost.parameters / 1e6:9.3f} M parameters  {cost.macs / 1e9:9.3f} G '
            'multiply-adds'
        )
    norms, biases, relus = (trained.values[kind] / 1e9 for kind in ('norm', 'bias', 'relu'))
    lines.append(
        f'not in it:  {norms:.3f} G values through batch norms, {biases:.3f} G through biases, '
        f'{relus:.3f} G through ReLU'
    )
    listed = [part for part in trained.parts if part.count('.') < depth]
    width = max(map(len, listed), default=0)
    for part in listed:
        before, after = (cost.parts.get(part, 0) / 1e9 for cost in (trained, fused))
        lines.append(f'  {part:{width}}  {before:9.3f} G, fused {after:9.3f} G')
    return '\n'.join(lines)
