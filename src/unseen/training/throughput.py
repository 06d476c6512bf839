"""How fast a run trains and how long it waits for data: first-class results, not an afterthought."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Images per second of training, and the share of time spent waiting for the next batch.

    Attributes:
        images_per_second: over all steps but the first, which warms up.
        waiting: share of that time, in [0, 1], between one step's end and the next batch.
    """

    def __init__(self) -> None:
        self.images_per_second = float("nan")
        self.waiting = float("nan")
        self._images = 0
        self._working = self._idle = 0.0
        self._mark = 0.0
        self._warm = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock anew: evaluation between epochs does not count."""
        self._mark = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there: what passed since the last step was waiting."""
        now = time.perf_counter()
        if self._warm:
            self._idle += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done: what passed was work."""
        now = time.perf_counter()
        if self._warm:
            self._working += now - self._mark
            self._images += len(batch.labels) * trainer.world_size
        self._warm = True
        self._mark = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log both."""
        total = self._working + self._idle
        if total == 0:
            return
        self.images_per_second = self._images / total
        self.waiting = self._idle / total
        pl_module.log("train/images_per_second", self.images_per_second)
        pl_module.log("train/waiting_for_data", self.waiting)
