"""Which settings train fastest on this machine: measured with the run's own network on its own images."""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lightning import Callback
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor

from unseen.data.batch import Batch
from unseen.data.images import available_cores
from unseen.data.module import DataModule
from unseen.nn.embedder import Embedder
from unseen.training.learner import memory_layout

WORKERS = (0, 1, 2, 4, 8)
PREFETCHED = 2
"""Batches that each worker prepares ahead, as torch has it; they are taken before the clock runs."""
STEPS = 3
"""Timed ones at least."""
CLEARLY = 1.03
"""How many times as fast as what was given something must be to be chosen: less is chance."""

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Network:
    """Forms of a network that compute the same, up to rounding.

    Args:
        precision: Lightning's `trainer.precision`.
        channels_last: see `MetricLearner`.
        compile: whether the backbone goes through `torch.compile`.
    """

    precision: str
    channels_last: bool
    compile: bool


@dataclass(frozen=True)
class Settings:
    """What makes a run fast or slow, and changes little or nothing of what it learns.

    Args:
        network: its form.
        workers: see `DataModule`.
        threads: that torch computes with.
    """

    network: Network
    workers: int
    threads: int


@dataclass(frozen=True)
class Measured:
    """What was found.

    Args:
        chosen: the fastest settings, or those given where none is clearly faster.
        images_per_second: with them.
        as_given: images per second with what was given.
    """

    chosen: Settings
    images_per_second: float
    as_given: float


def fastest(
    embedder: Embedder,
    data: DataModule,
    given: Settings,
    networks: Iterable[Network],
    *,
    accelerator: str,
    seconds: float,
) -> Measured:
    """Time the forms of the network on one batch; then, with the best, numbers of workers and threads.

    A step is forward, backward and an optimiser's step at a rate of 0; loss and adversary cost little beside
    them. The networks take turns, so that a machine that others use slows all alike.

    Args:
        embedder: a copy of it is timed.
        data: whose training batches are loaded.
        given: what is kept unless something is clearly faster.
        networks: forms to try.
        accelerator: Lightning's.
        seconds: for which each number of workers and threads is timed.
    """
    threads, workers = torch.get_num_threads(), data.workers
    try:
        steps = {
            one: _stepper(embedder, one, accelerator) for one in dict.fromkeys([given.network, *networks])
        }
        data.workers = 0
        images = _images(next(_batches(data)))
        took = _in_turns({one: functools.partial(step, images) for one, step in steps.items()})
        network = _best({one: 1 / median for one, median in took.items()}, given.network)
        choices = [Settings(network, *one) for one in _loaders(threads)]
        rates = {
            one: _rate(steps[one.network], data, one, seconds) for one in dict.fromkeys([given, *choices])
        }
    finally:
        torch.set_num_threads(threads)
        data.workers = workers
    chosen = _best(rates, given)
    return Measured(chosen, rates[chosen], rates[given])


def _stepper(embedder: Embedder, form: Network, accelerator: str) -> Callable[[Tensor], None]:
    precision: Any = form.precision
    # Not the cluster's environment: this is one process, whatever comes after.
    fabric = Fabric(accelerator=accelerator, devices=1, precision=precision, plugins=[LightningEnvironment()])
    layout = memory_layout(form.channels_last)
    timed = copy.deepcopy(embedder).to(fabric.device).to(memory_format=layout).train()
    if form.compile:
        timed.backbone.compile()
    learning = [parameter for parameter in timed.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.0, weight_decay=0.0)

    def step(images: Tensor) -> None:
        images = images.to(fabric.device).contiguous(memory_format=layout)
        with fabric.autocast():
            loss = timed(images).embedding.float().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for a GPU

    return step


def _in_turns(calls: Mapping[Network, Callable[[], None]]) -> dict[Network, float]:
    """Median seconds of each; the first round warms up."""
    times: dict[Network, list[float]] = {one: [] for one in calls}
    for _ in range(1 + STEPS):
        for one, call in calls.items():
            started = time.perf_counter()
            call()
            times[one].append(time.perf_counter() - started)
    return {one: statistics.median(taken[1:]) for one, taken in times.items()}


def _loaders(threads: int) -> list[tuple[int, int]]:
    """Workers and threads to try: all threads beside the workers, or only as many as leave them a core."""
    pairs = [
        (workers, left)
        for workers in WORKERS
        if workers <= available_cores()
        for left in (threads, max(1, threads - workers))
    ]
    return list(dict.fromkeys(pairs))


def _rate(step: Callable[[Tensor], None], data: DataModule, settings: Settings, seconds: float) -> float:
    """Images per second."""
    data.workers = settings.workers
    torch.set_num_threads(settings.threads)
    batches = _batches(data)
    for _ in range(1 + PREFETCHED * settings.workers):
        step(_images(next(batches)))
    started, images, steps = time.perf_counter(), 0, 0
    while steps < STEPS or time.perf_counter() - started < seconds:
        batch = _images(next(batches))
        step(batch)
        images, steps = images + len(batch), steps + 1
    return images / (time.perf_counter() - started)


def _batches(data: DataModule) -> Iterator[Batch]:
    loader = data.train_dataloader()
    while True:
        yield from loader


def _images(batch: Batch) -> Tensor:
    if batch.images is None:
        raise ValueError("Batches of stored feature maps have no images, so there is no backbone to time.")
    return batch.images


def _best(rates: Mapping[Choice, float], given: Choice) -> Choice:
    best = max(rates, key=lambda one: rates[one])
    return best if rates[best] > CLEARLY * rates[given] else given


class Threads(Callback):
    """Training steps have so many threads; validation and what follows have all."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._all = torch.get_num_threads()

    def on_train_start(self, *_: Any) -> None:
        self._all = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def on_validation_start(self, *_: Any) -> None:
        torch.set_num_threads(self._all)

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        if trainer.state.fn == "fit":
            torch.set_num_threads(self.count)

    def on_train_end(self, *_: Any) -> None:
        torch.set_num_threads(self._all)

    def on_exception(self, *_: Any) -> None:
        torch.set_num_threads(self._all)
