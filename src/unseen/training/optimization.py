"""Parameter groups with their own learning rates, and schedules as pure functions of training progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
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
        layer_decay: ξ; the l-th of L layers of the backbone learns at ξ^(L − l) times the backbone's rate
            (Howard & Ruder 2018, arXiv:1801.06146, section 3.2; for transformers of images Bao et al. 2022,
            arXiv:2106.08254). 1 gives all layers the same.
        l2_sp: α of `pull_back`, in the place of the backbone's weight decay; 0 leaves it out.

    Raises:
        ValueError: a learning rate is negative, a kind of parameter has none, or a number is out of range.
    """

    algorithm: Callable[..., Optimizer]
    learning_rates: Mapping[str, float]
    schedule: Schedule
    warmup: float
    frozen_backbone_epochs: int
    layer_decay: float
    l2_sp: float

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
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay}: wanted a factor above 0, up to 1 for none.")
        if not self.l2_sp >= 0:
            raise ValueError(f"l2_sp={self.l2_sp}: wanted a strength of 0 or more.")
        warmed_up(self.schedule, self.warmup)

    def configure(
        self,
        kinds: Mapping[str, Iterable[nn.Parameter]],
        total_steps: int,
        layers: Sequence[Sequence[nn.Parameter]] = (),
    ) -> dict[str, Any]:
        """Lightning's optimiser dictionary.

        Args:
            kinds: kind of parameter → the parameters.
            total_steps: optimiser steps of the whole run; the end of the schedule.
            layers: of the backbone, from the image on; for `layer_decay`.
        """
        groups = [group for kind, held in kinds.items() for group in self._groups(kind, list(held), layers)]
        optimizer = self.algorithm(groups)
        factor = warmed_up(self.schedule, self.warmup)
        # One step late on purpose: with a warm-up the very first step would otherwise have rate zero.
        scheduler = LambdaLR(optimizer, lambda done: factor(min(1.0, (done + 1) / max(1, total_steps))))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _groups(
        self, kind: str, parameters: Sequence[nn.Parameter], layers: Sequence[Sequence[nn.Parameter]]
    ) -> list[dict[str, Any]]:
        rate = self.learning_rates[kind]
        if kind != "backbone" or self.layer_decay == 1:
            return self._decayed_or_not(kind, kind, parameters, rate)
        chosen = {id(parameter) for parameter in parameters}
        groups = []
        for place, layer in enumerate(layers, start=1):
            held = [parameter for parameter in layer if id(parameter) in chosen]
            factor = self.layer_decay ** (len(layers) - place)
            groups += self._decayed_or_not(kind, f"{kind}_layer_{place}", held, rate * factor)
        return groups

    def _decayed_or_not(
        self, kind: str, name: str, parameters: Sequence[nn.Parameter], rate: float
    ) -> list[dict[str, Any]]:
        """Weights, and apart from them what weight decay would only harm: biases, norms and proxies."""
        undecayed = [parameter for parameter in parameters if parameter.ndim < 2 or kind == "proxies"]
        chosen = {id(parameter) for parameter in undecayed}
        decayed = [parameter for parameter in parameters if id(parameter) not in chosen]
        groups: list[dict[str, Any]] = [
            {"name": name, "params": decayed, "lr": rate},
            {"name": f"{name}_no_decay", "params": undecayed, "lr": rate, "weight_decay": 0.0},
        ]
        if kind == "backbone" and self.l2_sp > 0:
            groups[0]["weight_decay"] = 0.0
        return [group for group in groups if group["params"]]


@torch.no_grad()
def pull_back(optimizer: Optimizer, starts: Iterable[tuple[nn.Parameter, Tensor]], strength: float) -> None:
    """`w ← w − η α (w − w⁰)`: the gradient step of `α/2 ‖w − w⁰‖²` (L2-SP, Li et al. 2018,
    arXiv:1802.01483), apart from the loss.

    As with the weight decay of AdamW (Loshchilov & Hutter 2019), apart from the loss the strength does not
    depend on how large the gradients of the loss are; with plain SGD the two are the same.

    Args:
        optimizer: whose groups have the rates η; before it steps on the gradients at w.
        starts: each parameter with its w⁰, of the same shape.
        strength: α.
    """
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    for parameter, start in starts:
        if parameter.requires_grad and id(parameter) in rates:
            parameter.lerp_(start, rates[id(parameter)] * strength)
