"""Watches the adversary: does it bite, does it break the metric loss, how much class do the features hold."""

from __future__ import annotations

import logging
import math
from typing import Any

from lightning import Callback, LightningModule, Trainer

from unseen.data.module import DataModule
from unseen.evaluation.probe import check_probe_size, probe_rows
from unseen.training.learner import MetricLearner

log = logging.getLogger(__name__)

HISTORY = ("_metric_losses", "_accuracies", "_feature_norms")


class AdversaryAudit(Callback):
    """Linear probes of the fused features, and warnings in words.

    Test classes are not touched: while training runs, the probe sees held-out images of seen classes and,
    where the protocol holds classes out, the validation classes.

    Args:
        probe_every: epochs between two probes; 0 never probes during training.
        probe_classes: at most so many classes are probed, the same in each epoch; 0 never probes.
        probe_images: at most so many images of each.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, probe_every: int, probe_classes: int, probe_images: int) -> None:
        if probe_every < 0:
            raise ValueError(f"probe_every={probe_every}: wanted a number of epochs, or 0 for never.")
        check_probe_size(probe_classes, probe_images)
        self.probe_every = probe_every if probe_classes else 0
        self.probe_classes = probe_classes
        self.probe_images = probe_images
        self._metric_losses: list[float] = []
        self._accuracies: list[float] = []
        self._feature_norms: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        """What its warnings look back at."""
        return {name: list(getattr(self, name)) for name in HISTORY}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        for name in HISTORY:
            setattr(self, name, list(state_dict[name]))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe and warn."""
        assert isinstance(pl_module, MetricLearner)
        if pl_module.adversary is not None:
            self._warn(trainer)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if (
            self.probe_every
            and (trainer.current_epoch + 1) % self.probe_every == 0
            and trainer.is_global_zero
        ):
            self._probe(pl_module, data)

    def _probe(self, learner: MetricLearner, data: DataModule) -> None:
        for name, rows in (("seen", data.split.held_out), ("validation", data.split.validation)):
            if len(rows) == 0:
                continue
            accuracy = probe_rows(
                learner.embedder, data, rows, classes=self.probe_classes, images=self.probe_images, seed=0
            )
            learner.log(f"probe/{name}", accuracy, rank_zero_only=True)

    def _warn(self, trainer: Trainer) -> None:
        metrics = trainer.callback_metrics
        self._metric_losses.append(float(metrics["train/metric_loss"]))
        self._accuracies.append(float(metrics["train/adversary_accuracy"]))
        chance = 1 / trainer.datamodule.num_classes  # type: ignore[attr-defined]
        # A network that starts from nothing has no classes to tell apart at first: half may pass.
        epochs = trainer.max_epochs or 0
        if len(self._accuracies) == min(epochs, max(3, math.ceil(epochs / 2))):
            _say(dead_adversary(self._accuracies, chance))
        _say(dominating_adversary(self._metric_losses))
        self._feature_norms.append(float(metrics["train/feature_norm"]))
        _say(escaping_features(self._feature_norms))


def _say(warning: str | None) -> None:
    if warning:
        log.warning(warning)


def dead_adversary(accuracies: list[float], chance: float) -> str | None:
    """A warning when the head never rose above twice chance, or, of two or three classes, halfway from chance
    to certainty; else none.

    Args:
        accuracies: of the adversary's head on training batches, by epoch, in [0, 1].
        chance: 1 / number of seen classes.
    """
    if max(accuracies) >= min(2 * chance, (1 + chance) / 2):
        return None
    return (
        f"The adversary is dead: its head is at {accuracies[-1]:.1%} where chance is {chance:.1%}, so its "
        "gradient carries nothing. Raise optimizer.learning_rates.adversary, or lower "
        "adversary.strength.maximum."
    )


def dominating_adversary(metric_losses: list[float]) -> str | None:
    """A warning when the metric loss has risen two epochs in a row; else none.

    Args:
        metric_losses: mean of each epoch.
    """
    if len(metric_losses) < 3 or not metric_losses[-3] < metric_losses[-2] < metric_losses[-1]:
        return None
    return (
        f"The adversary may dominate: the metric loss rose two epochs in a row "
        f"({metric_losses[-3]:.4g} → {metric_losses[-1]:.4g}). "
        "Lower adversary.strength.maximum, or compare with ablation=gdfl."
    )


def escaping_features(norms: list[float]) -> str | None:
    """A warning in the epoch in which the features' length first leaves a quarter to four times what it was;
    else none.

    The embedding is normalised and the adversary's head normalises what it sees, so length means nothing to
    either, and a length that runs away is a sign that something in the features is escaped through.

    Args:
        norms: mean length of the fused features, by epoch.
    """
    inside = [norms[0] / 4 <= norm <= 4 * norms[0] for norm in norms]
    if inside[-1] or not all(inside[:-1]):
        return None
    return (
        f"The features may escape through their length: it went from {norms[0]:.3g} to {norms[-1]:.3g}, "
        "which changes neither the normalised embedding nor what the adversary's head sees. Compare with "
        "ablation=gdfl, or lower adversary.strength.maximum."
    )
