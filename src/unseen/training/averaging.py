"""What is validated, kept and deployed in the place of the last step's weights: averages of several steps' or
of the trained and the pretrained ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from unseen.nn.embedder import PRETRAINED, READOUT
from unseen.training.learner import MetricLearner

STATE = "averaging"
"""Key of a checkpoint under which it has the weights that training goes on from, and the averages."""
EMBEDDER = "embedder."

Share = Callable[[int], float]
"""Number of weights that are averaged so far, from 1 → how much the next ones count, in [0, 1]."""


def exponential(decay: float) -> Share:
    """`1 − min(d, (1 + t) / (10 + t))`: an exponential moving average (Polyak & Juditsky 1992; Tarvainen &
    Valpola 2017) that is short at first, as `tf.train.ExponentialMovingAverage` has it.

    Raises:
        ValueError: the decay is outside (0, 1).
    """
    if not 0 < decay < 1:
        raise ValueError(f"decay={decay}: the share that earlier weights keep at each step lies in (0, 1).")
    return lambda averaged: 1 - min(decay, (1 + averaged) / (10 + averaged))


def equal(averaged: int) -> float:
    """`1 / (t + 1)`: all count the same (SWA, Izmailov et al. 2018, arXiv:1803.05407, algorithm 1)."""
    return 1 / (averaged + 1)


def latest(averaged: int) -> float:
    """1: no average over steps."""
    return 1.0


class WeightAveraging(Callback):
    """Puts averaged weights into the embedder while it is validated, between epochs and after training.

    Averaged are all weights of the embedder and the statistics of its batch norm, in float32, after each
    step of the optimiser. The readout is not: it is fitted to what is deployed. Loss and adversary, which are
    not deployed, keep the weights of the last step. In a checkpoint the embedder's weights are those that
    would be deployed; what a run needs to go on as if it had never stopped lies beside them.

    Unlike Lightning's `WeightAveraging` it starts by a share of training, has an average that is short at
    first, leaves no checkpoint with exchanged weights when validation fails, and lets the readout that a
    checkpoint holds be fitted to the weights that it holds.

    Args:
        share: how much the weights of a step count in the average.
        start: share of training, in [0, 1), from which on weights are averaged; before, those of the last
            step are deployed. Those of the first step from there on are the first average.
        trained: α; the backbone is deployed as `α w + (1 − α) w⁰`, of these averages w and the pretrained
            weights w⁰ (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903, eq. 1), statistics of batch norm
            included. 1 for none of w⁰; else the learner must keep them.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, share: Share, start: float, trained: float) -> None:
        if not 0 <= start < 1:
            raise ValueError(f"start={start}: the share of training before the average lies in [0, 1).")
        if not 0 <= trained <= 1:
            raise ValueError(f"trained={trained}: the share of the trained weights lies in [0, 1].")
        self.share = share
        self.start = start
        self.trained = trained
        self._average: dict[str, Tensor] = {}
        self._averaged = 0
        self._step = 0
        # What training goes on from, while what is deployed is in its place.
        self._aside: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that resumes has done steps, and its averages lie on the CPU."""
        self._step = trainer.global_step
        self._average = {name: value.to(pl_module.device) for name, value in self._average.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, if there was a step: gradients of several batches may make one."""
        learner = _learner(pl_module)
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if learner.progress < self.start:
            return
        weights = _weights(learner.embedder.state_dict())
        if self._averaged == 0:
            self._average = {name: value.float().clone() for name, value in weights.items()}
        else:
            share = self.share(self._averaged)
            for name, value in weights.items():
                self._average[name].lerp_(value.float(), share)
        self._averaged += 1

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is validated is what would be deployed."""
        self._deploy(_learner(pl_module))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on."""
        self._withdraw(_learner(pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is probed between epochs, and what the readout is fitted to, would be deployed as well."""
        self._deploy(_learner(pl_module))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on."""
        self._withdraw(_learner(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """For good, however training ended."""
        self._deploy(_learner(pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise when nothing was left to train."""
        self._deploy(_learner(pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Training may go on in this process."""
        self._withdraw(_learner(pl_module))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The embedder's weights are those to deploy; beside them those to go on from, and the averages."""
        learner = _learner(pl_module)
        current = self._aside or _weights(learner.embedder.state_dict())
        state = {"weights": current, "average": self._average, "averaged": self._averaged}
        deployed = {
            f"{EMBEDDER}{name}": value.to(current[name].dtype)
            for name, value in self._deployed(learner, current).items()
        }
        checkpoint |= {STATE: state, "state_dict": {**checkpoint["state_dict"], **deployed}}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on from the weights of the last step."""
        if STATE not in checkpoint:  # written by other software, without averages
            return
        state = checkpoint[STATE]
        self._average, self._averaged = dict(state["average"]), state["averaged"]
        _put(state["weights"], _learner(pl_module).embedder)

    def _deploy(self, learner: MetricLearner) -> None:
        if self._aside:
            return
        weights = _weights(learner.embedder.state_dict())
        self._aside = {name: value.clone() for name, value in weights.items()}
        _put(self._deployed(learner, self._aside), learner.embedder)

    def _withdraw(self, learner: MetricLearner) -> None:
        _put(self._aside, learner.embedder)
        self._aside = {}

    @torch.no_grad()
    def _deployed(self, learner: MetricLearner, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        averaged = self._average if self._averaged else weights
        if self.trained == 1:
            return averaged
        if learner.pretrained is None:
            raise ValueError("The learner kept no pretrained weights: MetricLearner(keeps_pretrained=True).")
        starts = {f"backbone.{name}": value for name, value in learner.pretrained.state_dict().items()}
        return {
            name: starts[name].float().lerp(value.float(), self.trained) if name in starts else value
            for name, value in averaged.items()
        }


def _learner(module: LightningModule) -> MetricLearner:
    assert isinstance(module, MetricLearner)
    return module


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that are averaged: not what counts batches, not the readout, and not the pretrained network."""
    return {
        name: value
        for name, value in state.items()
        if value.is_floating_point() and not name.startswith((READOUT, PRETRAINED))
    }


@torch.no_grad()
def _put(weights: Mapping[str, Tensor], embedder: nn.Module) -> None:
    own = embedder.state_dict()
    for name, value in weights.items():
        own[name].copy_(value)
