"""Stops a run at the step at which its loss or its gradients cease to be finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from unseen.tracking.run_folder import FINISHED, newest_first

SHOWN = 8
"""Images of a batch that a message names."""


class DivergedError(ArithmeticError):
    """Loss or gradients are no finite numbers; the message names the step, its images and a checkpoint."""


class StopsAtNaN(Callback):
    """Ends training before the optimiser steps on a loss or gradients that are NaN or infinite.

    Raises:
        DivergedError: they are.
    """

    def __init__(self) -> None:
        # Of the batches since the last step.
        self._losses: list[Tensor] = []
        self._ids: list[Tensor] = []
        self._batch = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember which images these are."""
        self._ids.append(batch.ids)
        self._batch = batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Remember the loss; it is looked at together with the gradients, as each look waits for a GPU."""
        self._losses.append(loss.detach().float())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at both."""
        # Under a gradient scaler infinite gradients are its business: it skips the step.
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        gradients = [] if scaled else [p.grad for p in pl_module.parameters() if p.grad is not None]
        length = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        # Lightning divides each by their number.
        total = torch.stack(self._losses).sum()
        loss, length = torch.stack([total, length.to(total.device).float()]).tolist()
        if not all(map(math.isfinite, (loss, length))):
            raise DivergedError(self._words(trainer, loss, length))
        self._losses, self._ids = [], []

    def _words(self, trainer: Trainer, loss: float, length: float) -> str:
        ids = torch.cat(self._ids).tolist()
        images = ", ".join(map(str, ids[:SHOWN])) + (", …" if len(ids) > SHOWN else "")
        good = last_finite(trainer)
        go_on = "no checkpoint was written before" if good is None else f"the last good checkpoint is {good}"
        return (
            f"Training diverged in step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1}, batch "
            f"{self._batch + 1}): the loss is {loss:g}, the norm of its gradients {length:g}. Rows {images} "
            f"of manifest.csv are its images; {go_on}. Lower optimizer.learning_rates.*, or "
            "trainer.gradient_clip_val."
        )


def last_finite(trainer: Trainer) -> Path | None:
    """The newest checkpoint of a run all of whose weights are finite."""
    folders = [Path(path) for one in trainer.checkpoint_callbacks if (path := getattr(one, "dirpath", None))]
    found = [path for folder in folders for path in folder.glob(FINISHED)]
    for path in newest_first(found):
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
        if all(bool(value.isfinite().all()) for value in state.values()):
            return path
    return None
