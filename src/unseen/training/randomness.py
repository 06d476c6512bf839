"""Random numbers of a step are its own, whatever was drawn before it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer


class SeedsSteps(Callback):
    """Seed the generators of PyTorch, NumPy and Python before each step by (seed, epoch, batch, rank).

    Dropout, noise of an adversary and draws of a miner are then the same however often a run was interrupted,
    whatever was validated or logged in between, and on every rank of a run that resumes. (Augmentation has
    seeds of its own for each image: `unseen.data.module.TrainingImages`.)

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """After the batch was loaded, before anything is computed of it."""
        key = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        state = np.random.SeedSequence(key).generate_state(2, np.uint64)
        torch.manual_seed(int(state[0]))
        # The global one, which libraries draw from.
        np.random.seed(int(state[1] % 2**32))  # noqa: NPY002
        random.seed(int(state[1]))
