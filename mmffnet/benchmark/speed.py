"""Speed side by side: every network in every form takes its turn in each round."""

import gc
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmffnet_cli import FORMATS, format_of

from ..deploy.reparameterize import deviation
from ..errors import UsageError
from .forms import RUNTIMES, Call, Form, prepare, prepare_exported, prepare_training
from .networks import Network
from .profile import peak_memory

#: Seconds that a turn should last at least: what is faster is called several times
_TURN = 0.05
#: Seconds between turns: threads of a runtime go on spinning for a moment when they have finished
_PAUSE = 0.02


@dataclass
class Measurement:
    """A network in a form, and how long it took."""

    network: Network
    form: Form
    size: tuple[int, int]  #: Height and width of the input
    parameters: int = 0  #: Number of them in this form
    seconds: list[float] = field(default_factory=list)  #: Time for one batch, by round
    #: Largest difference of the outputs from those of the network's first form, relative to the
    #: largest output; of the loss in training. None where they cannot be compared
    deviation: float | None = None
    memory: int | None = None  #: Most bytes that PyTorch held during a training step
    problem: str = ''  #: Why it could not be measured

    @property
    def name(self) -> str:
        return f'{self.network.name} {self.form}'

    def milliseconds(self, batch: int = 1) -> 'Spread | None':
        return spread([1e3 * s / batch for s in self.seconds]) if self.seconds else None


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(*map(float, np.quantile(values, (0.5, 0.25, 0.75))))


def speedup(base: Measurement, other: Measurement) -> Spread | None:
    """How many times faster one is than another, compared within each round."""
    pairs = list(zip(base.seconds, other.seconds, strict=False))
    return spread([b / o for b, o in pairs]) if pairs else None


def measure(
    networks: Sequence[Network],
    forms: Sequence[Form],
    *,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    device: str = 'cpu',
    rounds: int = 20,
    train: bool = False,
    cpu_time: bool = False,
    progress: Callable[[str], None] = print,
) -> list[Measurement]:
    """Measures networks in forms against each other.

    In every round each takes one turn, in an order that moves on from round to round, so that
    whatever else the machine does meets all of them. A form that a network does not have is
    reported, and the others are measured. The first form is what the others are compared with.

    The size is each network's own if it is None. With ``train`` a training step is measured, and
    its memory; with ``cpu_time`` the time that this process gets from the CPU, not what passes on
    the clock: for machines that others use, with one thread.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    measurements: list[Measurement] = []
    calls: list[tuple[Measurement, Call, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        for network in networks:
            first: list[Tensor] | None = None
            for form in _forms_of(network, forms):
                found = Measurement(network, form, size or network.size)
                measurements.append(found)
                start = time.perf_counter()
                try:
                    call, outputs = _prepare(found, batch, device, train, folder)
                except Exception as error:  # whatever a compiler or exporter raises
                    text = ' '.join(str(error).split())[:200]
                    found.problem = f'{type(error).__name__}: {text}'
                    progress(f'{found.name}: {found.problem}')
                    continue
                first = first or outputs
                found.deviation = deviation(first, outputs)
                del outputs
                taken = min(_turn(call, 1, device, clock) for _ in range(2))
                calls.append((found, call, max(1, math.ceil(_TURN / max(taken, 1e-4)))))
                seconds = time.perf_counter() - start
                progress(f'{found.name}: ready in {seconds:.0f} s, one call {1e3 * taken:.1f} ms')
            gc.collect()
        for number in range(rounds):
            shift = number * len(calls) // rounds
            for found, call, repeats in calls[shift:] + calls[:shift]:
                time.sleep(_PAUSE)
                found.seconds.append(_turn(call, repeats, device, clock))
    return measurements


def _forms_of(network: Network, forms: Sequence[Form]) -> Sequence[Form]:
    """An exported model is in its form already; OpenVINO chooses the precision when it loads it."""
    if network.exported is None:
        return forms
    runtime = FORMATS[str(format_of(network.exported))].runtime
    if runtime not in RUNTIMES:
        return [Form()]
    found = [Form(**{runtime: True})]
    return found + [form for form in forms if form.openvino and form.bf16 and found[0].openvino]


def _prepare(
    found: Measurement, batch: int, device: str, train: bool, folder: str
) -> tuple[Call, list[Tensor]]:
    """Builds the network, with the same weights for every form, and calls it."""
    torch.manual_seed(0)
    before = None
    if device.startswith('cuda'):
        gc.collect()  # nothing of other forms is to be freed in between
        before = torch.cuda.memory_allocated(device)
    image = torch.rand(batch, 3, *found.size, device=device)
    threads = torch.get_num_threads()
    if found.network.exported:
        if train:
            raise UsageError('it is an exported model, which cannot be trained')
        call = prepare_exported(found.network.exported, found.form, 255 * image, threads)
        return call, call()
    model = found.network.build('cpu')
    for module in model.modules():
        if train and hasattr(module, 'drop_prob'):
            # which branches are dropped would decide about the time
            module.drop_prob = 0.0  # type: ignore[assignment]
    if train:
        call, found.parameters = prepare_training(model, found.form, image)
        for _ in range(2):  # lets compilers, allocators and captures do what they do once
            call()
        outputs, found.memory = peak_memory(call, model, image, before=before)
        return call, outputs
    place = Path(tempfile.mkdtemp(dir=folder))
    call, found.parameters = prepare(model, found.form, image, threads, place)
    return call, call()


def _turn(call: Call, repeats: int, device: str, clock: Callable[[], float]) -> float:
    _synchronize(device)
    start = clock()
    for _ in range(repeats):
        call()
    _synchronize(device)
    return (clock() - start) / repeats


def _synchronize(device: str) -> None:
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)
