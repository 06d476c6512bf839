"""Parameter groups with their own learning rates, and schedules as pure functions of training progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Callable[[float], float]
"""Maps progress `p` in [0, 1] to a factor on every learning rate."""


def constant(progress: float) -> float:
    """Factor 1 throughout."""
    return 1.0


def cosine(progress: float, *, final: float) -> float:
    """Half a cosine from 1 to `final` (Loshchilov & Hutter 2017, without restarts)."""
    return final + (1 - final) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


def step(progress: float, *, milestones: Sequence[float], factor: float) -> float:
    """Multiply by `factor` at each milestone, given as progress in [0, 1]."""
    return factor ** sum(progress >= milestone for milestone in milestones)


def warmed_up(schedule: Schedule, fraction: float) -> Schedule:
    """Rise linearly to the schedule over the first `fraction` of training.

    Raises:
        ValueError: the fraction is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"warmup={fraction}: the share of training that warms up lies in [0, 1).")

    def factor(progress: float) -> float:
        rise = min(1.0, progress / fraction) if fraction else 1.0
        return rise * schedule(progress)

    return factor


@dataclass(frozen=True)
class Optimization:
    """How parameters move: one optimiser, a learning rate for each kind of parameter.

    Args:
        algorithm: makes the optimiser from parameter groups (a partial of a `torch.optim` class).
        learning_rates: for `backbone`, `head` (fusion and embedding), `adversary`, `proxies` and `loss` (the
            parameters of a loss that are no proxies, such as the boundary of the margin loss).
        schedule: factor on all of them, by training progress.
        warmup: share of training over which the factor rises from zero.
        frozen_backbone_epochs: epochs at the start in which only the new layers learn.

    Raises:
        ValueError: a learning rate is negative, or a kind of parameter has none.
    """

    algorithm: Callable[..., Optimizer]
    learning_rates: Mapping[str, float]
    schedule: Schedule
    warmup: float
    frozen_backbone_epochs: int

    def __post_init__(self) -> None:
        wanted = {"backbone", "head", "adversary", "proxies", "loss"}
        if set(self.learning_rates) != wanted:
            raise ValueError(
                f"learning_rates has {sorted(self.learning_rates)}, wanted one for each of {sorted(wanted)}."
            )
        for kind, rate in self.learning_rates.items():
            if not rate >= 0:
                raise ValueError(f"learning_rates.{kind}={rate}: a learning rate is not negative.")
        if self.frozen_backbone_epochs < 0:
            raise ValueError(f"frozen_backbone_epochs={self.frozen_backbone_epochs}: wanted 0 or more.")
        warmed_up(self.schedule, self.warmup)

    def configure(self, kinds: Mapping[str, Iterable[nn.Parameter]], total_steps: int) -> dict[str, Any]:
        """Lightning's optimiser dictionary.

        Args:
            kinds: kind of parameter → the parameters.
            total_steps: optimiser steps of the whole run; the end of the schedule.
        """
        groups = [group for kind, held in kinds.items() for group in self._groups(kind, list(held))]
        optimizer = self.algorithm(groups)
        factor = warmed_up(self.schedule, self.warmup)
        # One step late on purpose: with a warm-up the very first step would otherwise have rate zero.
        scheduler = LambdaLR(optimizer, lambda done: factor(min(1.0, (done + 1) / max(1, total_steps))))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _groups(self, kind: str, parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
        """Weights, and apart from them what weight decay would only harm: biases, norms and proxies."""
        undecayed = [parameter for parameter in parameters if parameter.ndim < 2 or kind == "proxies"]
        chosen = {id(parameter) for parameter in undecayed}
        decayed = [parameter for parameter in parameters if id(parameter) not in chosen]
        rate = self.learning_rates[kind]
        groups = [
            {"name": kind, "params": decayed, "lr": rate},
            {"name": f"{kind}_no_decay", "params": undecayed, "lr": rate, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]
