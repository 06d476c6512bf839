"""What a run says of itself while it trains: a bar on a terminal, elsewhere one plain line an epoch."""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichModelSummary, RichProgressBar
from rich import box, get_console
from rich.table import Table

from unseen.tracking.table import duration

# Warnings of libraries that nobody can act on, or that say what the run means to do.
NOT_FOR_USERS = (
    # The run's folder already holds the config, and a resumed run its checkpoints.
    r"Experiment logs directory .* exists and is not empty",
    r"Checkpoint directory .* exists and is not empty",
    # Batch norm that embedding.frozen_batch_norm keeps still.
    r"Found \d+ module\(s\) in eval mode",
    r".*isinstance.treespec, LeafSpec.* is deprecated",
    # What is logged of training is the same in all processes.
    r"It is recommended to use `self.log\('train/.*sync_dist=True",
)


def progress(refresh_rate: int = 1) -> ProgressBar:
    """A bar where standard output is a terminal, else `EpochLines`.

    Args:
        refresh_rate: batches between two updates of the bar.
    """
    return EpochBar(refresh_rate=refresh_rate) if sys.stdout.isatty() else EpochLines()


class EpochBar(RichProgressBar):
    """Lightning's bar, with epochs counted from 1."""

    def _get_train_description(self, current_epoch: int) -> str:
        # Padded to the name that takes its place meanwhile, so that the bar stands still.
        return f"{_epoch(self.trainer, current_epoch):{len(self.validation_description)}}"


class EpochLines(ProgressBar):
    """One line an epoch: losses, images a second, Recall@1 on the validation classes, time left."""

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._started = self._mark = 0.0
        self._share = 0.0
        self._images = 0
        self._seconds = 0.0

    def disable(self) -> None:
        """Lightning asks for silence, in all processes but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Lightning asks for lines again."""
        self._is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run starts in the middle."""
        self._started = time.perf_counter()
        self._share = _share_done(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self._mark = time.perf_counter()
        self._images, self._seconds = 0, 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validation, which comes after the last batch, does not count."""
        self._images += len(batch.labels) * trainer.world_size
        self._seconds = time.perf_counter() - self._mark

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it."""
        if self._is_enabled:
            print(self.line(trainer), flush=True)

    def line(self, trainer: Trainer) -> str:
        """Of the epoch that ends."""
        metrics = trainer.callback_metrics
        losses = sorted(name for name in metrics if name.startswith("train/") and name.endswith("loss"))
        parts = [_epoch(trainer, trainer.current_epoch)]
        for name in sorted(losses, key=lambda name: name != "train/loss"):  # the sum first
            parts.append(f"{name.removeprefix('train/').replace('_', ' ')} {float(metrics[name]):.3f}")
        if self._seconds > 0:
            parts.append(f"{self._images / self._seconds:.0f} images/s")
        if "validation/recall_at_1" in metrics:
            parts.append(f"validation R@1 {100 * float(metrics['validation/recall_at_1']):.1f} %")
        left = self._seconds_left(trainer)
        if math.isfinite(left):
            parts.append(f"{duration(left)} left")
        return " · ".join(parts)

    def _seconds_left(self, trainer: Trainer) -> float:
        done = _share_done(trainer)
        if done <= self._share:
            return math.nan
        return (time.perf_counter() - self._started) * (1 - done) / (done - self._share)


def _share_done(trainer: Trainer) -> float:
    """Of all optimiser steps, in [0, 1]; 0 of a run without end."""
    return trainer.global_step / max(1, trainer.estimated_stepping_batches)


def _epoch(trainer: Trainer, current: int) -> str:
    has_end = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"Epoch {current + 1}/{trainer.max_epochs}" if has_end else f"Epoch {current + 1}"


class PartsSummary(RichModelSummary):
    """The parts of the network and their parameters; Lightning's own counts modes and FLOPs, to no use."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *_: Any,
        **__: Any,
    ) -> None:
        """Print the table."""
        columns = dict(summary_data)
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("part")
        table.add_column("type")
        table.add_column("parameters", justify="right")
        rows = list(zip(columns["Name"], columns["Type"], columns["Params"], strict=True))
        for number, row in enumerate(rows, start=1):
            table.add_row(*row, end_section=number == len(rows))
        table.add_row("all", f"{trainable_parameters:,} of them learn", f"{total_parameters:,}")
        get_console().print(table)


@contextmanager
def quiet() -> Iterator[None]:
    """While a run is built and goes on: no advertisement and no warning that its user cannot act on."""
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in NOT_FOR_USERS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        lightning.setLevel(level)
